/*
 * Safe cuts: character boundaries that no token spans.
 *
 * If no token that merging can make holds two characters side by side, no merge ever crosses a
 * boundary between them, and what stands on its two sides is encoded independently. Long pieces
 * fall apart at such boundaries into short ones that a cache knows: a Chinese sentence into words,
 * a text without pre-tokenizer at its word marks.
 *
 * Two neighbours are two bits of one word in a table, by a hash of both: a boundary costs one line
 * of the second cache. A false hit only costs a cut; a cut is never wrong.
 */
#ifndef PTK_CUTS_H
#define PTK_CUTS_H

#include "algo/ptk_chars.h"
#include "image/ptk_image.h"

struct ptk_cuts {
    const struct ptk_image_neighbours *neighbours; /* NULL: no cuts are made */
    struct ptk_image_neighbours *owned;            /* gathered here; NULL: the image's */
    const struct ptk_chars *chars;                 /* which characters have neighbours at all */
    bool only_known; /* where characters are units: only before one with an id */
};

/*
 * ptk_cuts_init takes the neighbours of a BPE model from its image, or gathers them where that has
 * none, and marks them in `chars`, which must stay.
 * Set-up: allocates. Models with affixes, with bytes that have no token, that drop unknown
 * characters, whose merges take tokens that do not spell their text, or whose pre-tokenizer cuts
 * inside characters get no cuts. Where a space stands for a mark (PTK_IMAGE_FLAGS_SPACE_MARKS), it
 * has the mark's neighbours. `merged` are the encoder's bits, of models that start from bytes. 0,
 * or -ENOMEM and a sentence.
 */
int ptk_cuts_init(struct ptk_cuts *cuts, const struct ptk_image *image, const uint64_t *merged,
                  struct ptk_chars *chars, struct ptk_err *err);
void ptk_cuts_fini(struct ptk_cuts *cuts);

/* ptk_cuts_chars writes the characters that have neighbours as the image has them, at most
 * PTK_CHARS_COUNT, and returns how many there are; `chars` may be NULL. */
size_t ptk_cuts_chars(const struct ptk_cuts *cuts, uint32_t *chars);

/*
 * ptk_cuts_scan writes the safe cuts of text[*pos..len) behind its first character, at last `len`
 * itself, at most `cap` of them; moves `*pos` to the last one written and returns their number.
 * `*pos` is at a character below `len`. Cost: two look-ups per character, no branch on the answer.
 */
size_t ptk_cuts_scan(const struct ptk_cuts *cuts, const uint8_t *text, size_t len, size_t *pos,
                     uint32_t *ends, size_t cap);

#endif
