/*
 * Safe cuts: character boundaries that no token spans.
 *
 * If no token that merging can make holds two characters side by side, no merge ever crosses a
 * boundary between them, and what stands on its two sides is encoded independently. Long pieces
 * fall apart at such boundaries into short ones that a cache knows: a Chinese sentence into words,
 * a text without pre-tokenizer at its word marks.
 *
 * The set of neighbours is kept as a bit table by hash. A false hit only costs a cut; a cut is
 * never wrong.
 */
#ifndef PTK_CUTS_H
#define PTK_CUTS_H

#include "image/ptk_image.h"

#define PTK_CUTS_BITS_LOG2 21u

struct ptk_cuts {
    uint64_t *bits;                /* neighbours by hash; NULL: no cuts are made */
    uint64_t ascii[128][2];        /* neighbours that are both ASCII: bit `right` of row `left` */
    uint64_t partial_left[4];      /* last bytes of characters whose front some token lacks */
    uint64_t partial_right[4];     /* first bytes of characters whose rest some token lacks */
    const struct ptk_image *image; /* where characters are units: only before one it knows */
    bool only_known;
};

/*
 * ptk_cuts_init collects the neighbours of a BPE model. Set-up: allocates. Models with affixes,
 * with bytes that have no token, that drop unknown characters, or whose merges take tokens that do
 * not spell their text get no cuts. 0, or -ENOMEM and a sentence.
 */
int ptk_cuts_init(struct ptk_cuts *cuts, const struct ptk_image *image, struct ptk_err *err);
void ptk_cuts_fini(struct ptk_cuts *cuts);

/*
 * ptk_cuts_next: the first safe cut of text[pos..len) behind its first character, or `len`. `pos`
 * is at a character below `len`. Cost: a few table look-ups per character.
 */
size_t ptk_cuts_next(const struct ptk_cuts *cuts, const uint8_t *text, size_t len, size_t pos);

#endif
