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

/* Characters from here on are never cut at. */
#define PTK_UNIGRAM_CUTS_END 0x10000u

struct ptk_unigram_cuts {
    const struct ptk_image_unigram_neighbours *neighbours;
    struct ptk_image_unigram_neighbours *owned; /* gathered here; NULL: the image's */
    bool fuses;          /* unknown neighbours become one token, never bytes */
    uint32_t not_before; /* the character that the unknown token's own text begins with */
    uint32_t not_behind; /* ... and ends with; UINT32_MAX: it has none */
};

/* ptk_unigram_cuts_init takes the neighbours of a model's tokens from its image, or gathers them
 * where that has none; false without memory. fini releases them. */
bool ptk_unigram_cuts_init(struct ptk_unigram_cuts *cuts, const struct ptk_image *image);
void ptk_unigram_cuts_fini(struct ptk_unigram_cuts *cuts);

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
