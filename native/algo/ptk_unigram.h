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

#include "algo/ptk_unigram_cuts.h"

/* Characters below have their place in `first_units`. */
#define PTK_UNIGRAM_FIRST_END 0x10000u

struct ptk_unigram {
    const struct ptk_image *image;
    uint32_t *first_units; /* by character: the trie's unit behind it, 0: begins no token; owned */
    struct ptk_unigram_cuts cuts;
    double score_abs_max;
    double unk_score; /* of a character that is no token: the lowest score minus 10 */
    uint32_t unk_id;
    bool fuse_unk;
    bool byte_fallback;
    bool sentencepiece; /* the image comes from a .model */
};

/*
 * ptk_unigram_init prepares the model of an image (which has scores and a trie). Set-up: allocates.
 * Returns 0, -ENOMEM, or -ENOTSUP and a sentence for a model without an unknown token, which cannot
 * encode every text. ptk_unigram_fini releases it.
 */
int ptk_unigram_init(struct ptk_unigram *unigram, const struct ptk_image *image,
                     struct ptk_err *err);
void ptk_unigram_fini(struct ptk_unigram *unigram);

/*
 * A part of a piece between two boundaries that no token spans is on its own, but for rounding:
 * sums of a part begin with the sum of what stands before it. Below this difference two sums count
 * as close; ptk_unigram_has_parts says for which pieces rounding stays far below it: their sums are
 * under 2^26, one rounding under 2^-27, and parts of more than PTK_UNIGRAM_PART_MAX bytes are
 * close, too. Sums of f32 are rounded too coarsely for parts.
 */
#define PTK_UNIGRAM_CLOSE    1e-4
#define PTK_UNIGRAM_PART_MAX 1024u

static inline bool ptk_unigram_has_parts(const struct ptk_unigram *unigram, size_t piece_len)
{
    return !unigram->sentencepiece &&
           (double)piece_len * unigram->score_abs_max < (double)(1u << 26);
}

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
 * for) and returns the number of ids, at most `len`. `*is_close` says whether the difference of any
 * two ways that were compared was below PTK_UNIGRAM_CLOSE, or the piece above PTK_UNIGRAM_PART_MAX;
 * never with a sentencepiece .model, whose pieces have no parts. Cost: len times the longest token
 * at worst.
 */
size_t ptk_unigram_encode(const struct ptk_unigram *unigram, struct ptk_unigram_node *nodes,
                          const uint8_t *piece, size_t len, const struct ptk_unigram_result *out,
                          bool *is_close);

#endif
