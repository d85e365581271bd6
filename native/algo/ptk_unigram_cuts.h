/*
 * Safe cuts of a Unigram model: boundaries in a piece that no token spans.
 *
 * Where no token of the vocabulary holds two characters side by side, every way through the piece
 * passes between them, and what stands on the two sides is segmented independently, but for how
 * sums are rounded (ptk_unigram.h). Neighbours that are unknown become one unknown token: a cut
 * lies only before a character that is a token of its own, or before a run of characters that no
 * token has at all and that cannot be fused with what stands before it.
 *
 * Neighbours are kept as bits by hash: a false hit only costs a cut, a cut is never wrong.
 */
#ifndef PTK_UNIGRAM_CUTS_H
#define PTK_UNIGRAM_CUTS_H

#include "image/ptk_image.h"

#define PTK_UNIGRAM_CUTS_BITS_LOG2 21u

/* Characters from here on are never cut at. */
#define PTK_UNIGRAM_CUTS_END 0x10000u

/* One memory, of set-up. */
struct ptk_unigram_cuts {
    uint64_t neighbours[1u << (PTK_UNIGRAM_CUTS_BITS_LOG2 - 6)];
    uint64_t ascii[128][2];                    /* both ASCII: bit `right` of row `left` */
    uint64_t known[PTK_UNIGRAM_CUTS_END / 64]; /* characters that are tokens */
    uint64_t inside[PTK_UNIGRAM_CUTS_END / 64]; /* characters that are in some token */
    bool fuses;          /* unknown neighbours become one token, never bytes */
    uint32_t not_before; /* the character that the unknown token's own text begins with */
    uint32_t not_behind; /* ... and ends with; UINT32_MAX: it has none */
};

/* ptk_unigram_cuts_open gathers the neighbours of a model's tokens; NULL without memory. */
struct ptk_unigram_cuts *ptk_unigram_cuts_open(const struct ptk_image *image);

/*
 * ptk_unigram_cuts_next: the first safe cut of text[pos..len) behind its first character, or `len`.
 * `pos` is at a character below `len`. Cost: a few table look-ups per character.
 */
size_t ptk_unigram_cuts_next(const struct ptk_unigram_cuts *cuts, const uint8_t *text, size_t len,
                             size_t pos);

/*
 * ptk_unigram_cuts_strange: the length of the run of characters in no token that text[pos..len)
 * begins with, where the model makes one unknown token of it whatever stands around it; otherwise
 * 0. `pos` is at the beginning of a piece or a safe cut.
 */
size_t ptk_unigram_cuts_strange(const struct ptk_unigram_cuts *cuts, const uint8_t *text,
                                size_t len, size_t pos);

#endif
