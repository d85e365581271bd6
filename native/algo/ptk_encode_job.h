/*
 * What the files that turn a text into ids share: ptk_encode.c, which knows texts, ptk_pieces.c,
 * which knows pieces, and ptk_batch.c, which knows many of them at once.
 */
#ifndef PTK_ENCODE_JOB_H
#define PTK_ENCODE_JOB_H

#include "algo/ptk_tokenizer_state.h"

/*
 * Where ids go. `skip` ids are dropped first; then ids are written until `end`. When counting, none
 * are written and `len` grows.
 */
struct ptk_sink {
    uint32_t *ids;
    struct ptk_span *offsets; /* NULL: not wanted */
    size_t len;
    size_t cap;      /* of the arrays */
    size_t end;      /* ids wanted at the moment: up to cap */
    size_t fast_end; /* the same, or 0 while ids must pass ptk_put_ids() */
    size_t skip;
    bool counting;
    bool full;                    /* an id was refused: enough */
    struct ptk_added_plain plain; /* ranges of ordinary text in the text at work */
};

/* One encode of one text. */
struct ptk_encode_job {
    const struct ptk_tokenizer *tokenizer;
    struct ptk_work *work;
    struct ptk_cache *cache;
    struct ptk_sink *sink;
    bool skip_special; /* special tokens in the text are ordinary text */
    bool skip_added;   /* so are all added tokens */
    bool need_ends;    /* offsets are wanted and only the model knows where an id ends: neither
                          cache nor image's piece table are of use */
};

/* The text that pieces are ranges of, and where it came from. */
typedef struct ptk_split_text ptk_source_text;

static inline bool ptk_is_continuation(uint8_t byte)
{
    return (byte & 0xc0) == 0x80;
}

static inline size_t ptk_span_len(struct ptk_span span)
{
    return span.end - span.begin;
}

static inline size_t ptk_key_len(const struct ptk_image *image, uint32_t id)
{
    return image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
}

/* ---- ids into the sink ---------------------------------------------------------------------- */

/* ptk_put_ids gives the ids of the piece at `begin` to the sink, with offsets if it wants them. */
void ptk_put_ids(const struct ptk_encode_job *job, const ptk_source_text *text, size_t begin,
                 const struct ptk_encoder_ids *ids);

/* ptk_put_slot: the same for a slot of the piece table or the cache. */
static inline void ptk_put_slot(const struct ptk_encode_job *job, const ptk_source_text *text,
                                size_t begin, const struct ptk_image_piece *slot)
{
    struct ptk_sink *sink = job->sink;
    const size_t count = ptk_cache_id_count(slot);
    if (PTK_LIKELY(sink->len + PTK_IMAGE_PIECE_IDS_MAX <= sink->fast_end)) {
        memcpy(sink->ids + sink->len, slot->ids, sizeof slot->ids);
        sink->len += count;
        return;
    }
    const struct ptk_encoder_ids ids = {.ids = slot->ids, .count = count};
    ptk_put_ids(job, text, begin, &ids);
}

/* ptk_put_long_slot: the same for a slot of the table for longer pieces. */
static inline void ptk_put_long_slot(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     size_t begin, const struct ptk_cache_long *slot)
{
    struct ptk_sink *sink = job->sink;
    const size_t count = ptk_cache_long_id_count(slot);
    if (PTK_LIKELY(sink->len + PTK_CACHE_LONG_IDS_MAX <= sink->fast_end)) {
        memcpy(sink->ids + sink->len, slot->ids, sizeof slot->ids);
        sink->len += count;
        return;
    }
    const struct ptk_encoder_ids ids = {.ids = slot->ids, .count = count};
    ptk_put_ids(job, text, begin, &ids);
}

/* ---- keys ----------------------------------------------------------------------------------- */

/* By length: which bytes of 16 belong to a piece, and what else its key has. */
extern const struct ptk_piece_key ptk_key_masks[16];
extern const struct ptk_piece_key ptk_key_lens[16];

/* ptk_piece_key_make without branches on the length where 16 bytes can be read. */
static inline struct ptk_piece_key ptk_text_key(const ptk_source_text *text, size_t begin,
                                                size_t len)
{
    uint64_t low;
    uint64_t high;
    if (PTK_LIKELY(begin + 16 <= text->len)) {
        low = ptk_load_u64(text->bytes + begin);
        high = ptk_load_u64(text->bytes + begin + 8);
    } else if (text->len >= 16) {
        /* The last 16 bytes of the text, shifted down by those before the piece. */
        const uint8_t *last = text->bytes + text->len - 16;
        const ptk_u128 bytes = ((ptk_u128)ptk_load_u64(last + 8) << 64 | ptk_load_u64(last)) >>
                               8 * (begin - (text->len - 16));
        low = (uint64_t)bytes;
        high = (uint64_t)(bytes >> 64);
    } else {
        return ptk_piece_key_make(text->bytes + begin, len);
    }
    return (struct ptk_piece_key){low & ptk_key_masks[len].low,
                                  (high & ptk_key_masks[len].high) | (uint64_t)len << 56};
}

/* The key of a piece or part where the cache also has segments of original texts: marked as inner.
 */
static inline struct ptk_piece_key ptk_marked_key(const struct ptk_encode_job *job,
                                                  struct ptk_piece_key key)
{
    key.high |= job->tokenizer->segments != NULL ? PTK_CACHE_INNER : 0;
    return key;
}

/* The key of a longer piece or part, marked alike. */
static inline struct ptk_cache_long_key ptk_long_key(const struct ptk_encode_job *job,
                                                     const ptk_source_text *text,
                                                     struct ptk_span span, enum ptk_part part)
{
    return ptk_cache_long_key_make(text->bytes + span.begin, span.end - span.begin,
                                   part == PTK_PART_INNER || job->tokenizer->segments != NULL);
}

/* Whether a cache with room for `count_max` ids may keep a result: it is the same everywhere. */
static inline bool ptk_may_keep(const struct ptk_encoder_ids *ids, size_t count_max)
{
    return ids->count > 0 && ids->count <= count_max && !ids->is_close;
}

/* ---- pieces --------------------------------------------------------------------------------- */

/*
 * What follows gives the ids of one piece or part of the text to the sink. The verdict is
 * PTK_VERDICT_TEXT_TOO_LONG where it has more units than the scratch has room for.
 */

/* ptk_piece_encode: of one that neither the image nor the cache knows; `ids` then has them. */
enum ptk_verdict ptk_piece_encode(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  size_t begin, size_t len, enum ptk_part part,
                                  struct ptk_encoder_ids *ids);

/* ptk_piece_part: of up to PTK_IMAGE_PIECE_KEY_MAX bytes that the image does not know. */
enum ptk_verdict ptk_piece_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_span span, enum ptk_part part, struct ptk_piece_key key);

/* ptk_piece_long_part: of more bytes. */
enum ptk_verdict ptk_piece_long_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, enum ptk_part part);

/*
 * ptk_piece_short, ptk_piece_long: of a whole piece that the image does not know, in parts where it
 * has safe cuts. What its parts yield is kept for the whole.
 */
enum ptk_verdict ptk_piece_short(const struct ptk_encode_job *job, const ptk_source_text *text,
                                 struct ptk_span span, struct ptk_piece_key key);
enum ptk_verdict ptk_piece_long(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_span span);

/* ptk_piece_cuts writes the safe cuts of a piece of up to PTK_CACHE_LONG_KEY_MAX bytes to `ends`,
 * at last its end, and returns how many. Behind a pre-tokenizer ASCII nearly never has one, and is
 * not looked at. */
size_t ptk_piece_cuts(const struct ptk_encode_job *job, const uint8_t *piece, size_t len,
                      uint32_t ends[PTK_CACHE_LONG_KEY_MAX]);

/* ptk_piece_known_inner: the image's slot of a part, unless only a whole piece is that token. */
const struct ptk_image_piece *ptk_piece_known_inner(const struct ptk_encoder *encoder,
                                                    struct ptk_piece_key key);

#endif
