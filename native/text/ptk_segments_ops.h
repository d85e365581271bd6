/*
 * What is found out when segments are opened, and used when texts are read: private to
 * text/ptk_segments*.c.
 */
#ifndef PTK_SEGMENTS_OPS_H
#define PTK_SEGMENTS_OPS_H

#include "text/ptk_segments.h"
#include "text/ptk_unicode.h"
#include "text/ptk_utf8.h"

/* Characters from here on are classified when they are met: rare ideographs, mostly. */
#define TABLE_END 0x20000u

/* Images of characters below this are kept. */
#define IMAGES_END     0x10000u
#define IMAGE_LEN_BITS 8u

/*
 * A mark of three bytes behind a letter of three: their cluster is too long to be mapped as a
 * whole, so that the mark is mapped by itself.
 */
#define LONG_CHAR_LEN 3u

/* What a character does to the segments around it; 0: it is part of one. */
enum {
    CLASS_SPACE = 1 << 0,   /* white space that is a wall */
    CLASS_ALONE = 1 << 1,   /* a segment of its own */
    CLASS_EXTENDS = 1 << 2, /* white space just before it is no wall */
    CLASS_OPEN = 1 << 3,    /* white space just behind it is no wall */
    CLASS_CLOSES = 1 << 4,  /* no wall is known behind it */
    CLASS_BOUNDS = CLASS_SPACE | CLASS_ALONE | CLASS_EXTENDS | CLASS_OPEN | CLASS_CLOSES,
    /* What normalizing makes of it among characters of these two kinds. */
    CLASS_KEEPS = 1 << 5,   /* itself */
    CLASS_CHANGES = 1 << 6, /* what ptk_segments_write_bert() or its image says */
    CLASS_PATTERN = 1 << 7, /* it is part of a string that is replaced */
};

enum ptk_segments_shape {
    SHAPE_BERT = 1,
    SHAPE_WORDS = 2,
    SHAPE_MARKED = 3,
};

struct ptk_segments {
    const struct ptk_unicode *unicode;
    enum ptk_segments_shape shape;
    uint64_t space_mask; /* SHAPE_BERT: class bits of a profile */
    uint64_t alone_mask;
    uint64_t word_mask; /* ... that go before the other two */
    bool lowers;        /* SHAPE_BERT: what ptk_segments_write_bert() does */
    bool strips;
    bool has_pieces;  /* a segment of known characters is one piece, behind the mark */
    uint8_t mark[4];
    uint32_t mark_len; /* 0: none */
    /* Per class and low half of an ASCII byte: a bit for each high half that makes one of it. */
    _Alignas(16) uint8_t space_by_low[16];
    _Alignas(16) uint8_t alone_by_low[16];
    _Alignas(16) uint8_t open_by_low[16];
    uint8_t classes[TABLE_END];
    /* Other shapes: what characters of the basic plane change to. */
    uint8_t *images;
    size_t images_len;
    size_t images_cap;
    uint32_t image_of[IMAGES_END]; /* position in images << IMAGE_LEN_BITS | length */
};

/* ptk_segments_bert_class: the CLASS_BOUNDS of a character of a BERT model. */
uint8_t ptk_segments_bert_class(const struct ptk_segments *segments, uint32_t code_point);

/* Code points that a character decomposes to, or itself. */
struct ptk_segments_parts {
    const uint32_t *code_points;
    uint32_t count;
    uint32_t own[3];
};

void ptk_segments_parts(const struct ptk_segments *segments, uint32_t code_point,
                        struct ptk_segments_parts *parts);

/* ptk_segments_lower: what lower-casing makes of a part, or the part itself. */
const uint32_t *ptk_segments_lower(const struct ptk_segments *segments, const uint32_t *part,
                                   uint32_t *count);

/* ptk_segments_strips: whether a part is an accent that the model takes away. */
bool ptk_segments_strips(const struct ptk_segments *segments, uint32_t code_point);

/*
 * ptk_segments_write_bert writes what a BERT model makes of a character; returns its length, or
 * SIZE_MAX without room.
 */
size_t ptk_segments_write_bert(const struct ptk_segments *segments, uint32_t code_point,
                               uint8_t *dst, size_t cap);

#endif
