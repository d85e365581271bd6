/*
 * Unigram language model: the segmentation of a piece with the highest sum of scores.
 *
 * One pass over the characters keeps the best way to every position (Viterbi over a trie of the
 * vocabulary), one pass back reads the ids off. Scores are added as f64 from left to right and the
 * first of equal ways stays, as the reference does, so that ties fall the same way.
 *
 * A sentencepiece .model keeps its sums as f32. How they are rounded depends on everything before,
 * so its texts are one piece from beginning to end and never cut.
 */
#ifndef PTK_UNIGRAM_H
#define PTK_UNIGRAM_H

#include "image/ptk_image.h"

struct ptk_unigram {
    const struct ptk_image *image;
    double unk_score; /* of a character that is no token: the lowest score minus 10 */
    uint32_t unk_id;
    bool fuse_unk;
    bool byte_fallback;
    bool sentencepiece; /* the image comes from a .model */
};

/*
 * ptk_unigram_init prepares the model of an image (which has scores and a trie). Returns 0, or
 * -ENOTSUP and a sentence for a model without an unknown token, which cannot encode every text.
 */
int ptk_unigram_init(struct ptk_unigram *unigram, const struct ptk_image *image,
                     struct ptk_err *err);

/* The best way to one position of the piece. */
struct ptk_unigram_node {
    double score;
    uint32_t begin; /* where its last token begins; UINT32_MAX: no way found yet */
    uint32_t id;
};

/* ptk_unigram_scratch_len: bytes for the nodes of a piece of `len_max` bytes (8-byte aligned). */
static inline size_t ptk_unigram_scratch_len(size_t len_max)
{
    return (len_max + 1) * sizeof(struct ptk_unigram_node);
}

/* Where the ids go: arrays of the caller, one entry per byte of the piece. */
struct ptk_unigram_result {
    uint32_t *ids;
    /* range of the piece behind each id; byte tokens share the range of the run, those of a .model
     * have a byte each */
    uint32_t *begins;
    uint32_t *ends;
};

/*
 * ptk_unigram_encode segments a piece (valid UTF-8, not empty, at most as long as `nodes` were made
 * for) and returns the number of ids, at most `len`. Cost: len times the longest token at worst.
 */
size_t ptk_unigram_encode(const struct ptk_unigram *unigram, struct ptk_unigram_node *nodes,
                          const uint8_t *piece, size_t len, const struct ptk_unigram_result *out);

#endif
