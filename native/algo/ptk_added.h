/*
 * Added tokens: finds them in a text before anything else looks at it.
 *
 * Matches are taken from left to right, the longest at each position, without overlap, as the
 * reference's automaton does; then each match is held to its token's flags. A match that the flags
 * reject still counts as taken: what lies inside it is not searched again.
 *
 * Two bytes at a position decide whether any token can begin there. That test runs over 16
 * positions at once, so that a text without added tokens costs a small fraction of a cycle per
 * byte.
 */
#ifndef PTK_ADDED_H
#define PTK_ADDED_H

#include "image/ptk_image.h"
#include "text/ptk_text.h"
#include "text/ptk_unicode.h"

/* Tables over the first two bytes: bit b of both nibbles of both bytes set says group b may
 * begin. */
struct ptk_added_filter {
    uint8_t first_low[16];
    uint8_t first_high[16];
    uint8_t second_low[16];
    uint8_t second_high[16];
};

/* The tokens of one trie: those matched in the original text, or those in the normalized one. */
struct ptk_added {
    const struct ptk_image *image;
    const struct ptk_image_match_node *nodes; /* NULL: no tokens */
    const struct ptk_unicode *unicode;
    PTK_ALIGNED_LINE struct ptk_added_filter filter;
};

/* ptk_added_init prepares the search; `nodes` is image->added_raw or added_normalized, or NULL. */
void ptk_added_init(struct ptk_added *added, const struct ptk_image *image,
                    const struct ptk_image_match_node *nodes, const struct ptk_unicode *unicode);

/* Ranges that a search must respect, and what it found in them. */
struct ptk_added_plain {
    const struct ptk_plain_range *ranges; /* ascending, without overlap */
    size_t count;
    size_t base; /* where the searched text begins in them */
    size_t hits; /* tokens that are ordinary text because of a range; counts on */
};

/* A search in progress. */
struct ptk_added_search {
    const uint8_t *text;
    size_t len;
    bool skip_special; /* special tokens are ordinary text */
    size_t pos;        /* where the next match may begin */
    size_t taken;      /* end of the last match with the white space it took */
    size_t space_end;  /* end of the white space that the last rstrip went over */
    struct ptk_added_plain *plain; /* NULL: tokens are looked for everywhere */
    const struct ptk_span *align;  /* with plain: where each byte came from; NULL: from origin on */
    size_t origin;
    size_t hit_end; /* end of the last token that a range made ordinary */
};

/* One token in the text; `begin` may lie before the end of the one before it when that took
 * spaces. */
struct ptk_added_match {
    size_t begin;
    size_t end;
    const struct ptk_image_added *token;
};

/*
 * ptk_added_next finds the next token; false when there is none. A search starts with pos, taken,
 * space_end and hit_end at 0. The text between two matches is ordinary. With `plain`, a token is
 * the longest at its position that no range forbids: none of its own bytes lies in one (the white
 * space that it takes along may).
 */
bool ptk_added_next(const struct ptk_added *added, struct ptk_added_search *search,
                    struct ptk_added_match *match);

#endif
