/*
 * A translated pre-tokenizer program: private to text/ptk_split*.c.
 *
 * Every operation but the ones that change the text yields items, in order and without gaps: ranges
 * that are a match or lie between two matches. What becomes of them is the behaviour's business
 * (ptk_split_run.c), the same for all.
 */
#ifndef PTK_SPLIT_OPS_H
#define PTK_SPLIT_OPS_H

#include "text/ptk_regex.h"
#include "text/ptk_split.h"
#include "text/ptk_split_scan.h"

/* Operations of one program: far more than any real one has. */
#define PTK_SPLIT_OPS_MAX 32u

enum ptk_split_kind {
    PTK_SPLIT_KIND_SCANNER = 1, /* items of a matcher */
    PTK_SPLIT_KIND_REGEX = 2,   /* items of a regular expression */
    PTK_SPLIT_KIND_LITERAL = 3, /* occurrences of `literal` */
    PTK_SPLIT_KIND_GLYPHS = 4,  /* every character of class 1 is a match */
    PTK_SPLIT_KIND_GROUPS = 5,  /* cuts where the class changes; 1 is dropped, 2 stands alone */
    PTK_SPLIT_KIND_SCRIPTS = 6, /* cuts where the script changes; 0 joins anything */
    PTK_SPLIT_KIND_FIXED_LENGTH = 7, /* cuts after every `length` characters */
    PTK_SPLIT_KIND_PREFIX_SPACE = 8, /* changes the text: a space before each piece without one */
    PTK_SPLIT_KIND_METASPACE = 9, /* changes the text: spaces become `literal`, one goes before */
    PTK_SPLIT_KIND_ALPHABET = 10, /* changes the text: bytes become byte-level characters */
};

/* Numbers as in image.toml. */
enum ptk_split_behaviour {
    PTK_SPLIT_BEHAVIOUR_REMOVED = 0,
    PTK_SPLIT_BEHAVIOUR_ISOLATED = 1,
    PTK_SPLIT_BEHAVIOUR_MERGED_WITH_PREVIOUS = 2,
    PTK_SPLIT_BEHAVIOUR_MERGED_WITH_NEXT = 3,
    PTK_SPLIT_BEHAVIOUR_CONTIGUOUS = 4,
    PTK_SPLIT_BEHAVIOUR_VALUE_COUNT = 5,
};

enum ptk_split_prepend {
    PTK_SPLIT_PREPEND_ALWAYS = 0,
    PTK_SPLIT_PREPEND_NEVER = 1,
    PTK_SPLIT_PREPEND_FIRST = 2,
    PTK_SPLIT_PREPEND_VALUE_COUNT = 3,
};

struct ptk_split_op {
    enum ptk_split_kind kind;
    enum ptk_split_behaviour behaviour;
    bool invert;
    bool alphabet; /* each byte counts as its character of the byte-level alphabet */
    bool splits;   /* METASPACE: cuts before every replacement character */
    enum ptk_split_prepend prepend;
    bool behind_split; /* METASPACE: an operation before it has cut the text */
    uint32_t length;   /* FIXED_LENGTH: characters */
    const struct ptk_split_matcher *matcher; /* SCANNER */
    ptk_split_scan_fn *scan; /* the matcher's or a faster twin of it; NULL where it has none */
    struct ptk_split_classes *classes; /* SCANNER */
    struct ptk_regex *regex;
    uint8_t *literal; /* LITERAL, METASPACE */
    uint32_t literal_len;
    bool literal_absent;   /* LITERAL: a character that the alphabet cannot spell */
    uint8_t by_class[256]; /* GLYPHS, GROUPS: class by ptk_unicode_class() */
    uint8_t by_byte[256];  /* the same, and SCRIPTS, of the alphabet's characters */
};

struct ptk_split {
    const struct ptk_unicode *unicode;
    ptk_split_scan_fn *scan; /* NULL where the program is no scan */
    bool changes_text;
    bool needs_align;
    uint32_t op_count;
    struct ptk_split_op ops[PTK_SPLIT_OPS_MAX];
};

/*
 * The pieces of one run: a bit of `starts` where a segment begins, the same bit of
 * `drops` where it is no piece. Bit 0 of `starts` is set for a non-empty text.
 */
struct ptk_split_work {
    size_t text_len_max;
    uint64_t *starts;
    uint64_t *drops;
    struct ptk_regex_work *regex;
};

#endif
