/*
 * An encoder: how one piece becomes ids, whatever the algorithm.
 */
#ifndef PTK_ENCODER_H
#define PTK_ENCODER_H

#include "algo/ptk_bpe.h"
#include "algo/ptk_unigram.h"
#include "algo/ptk_wordpiece.h"

struct ptk_encoder {
    const struct ptk_image *image;
    enum ptk_image_algorithm algorithm;
    bool keys_tell;       /* ids come without ends where their keys are the bytes of the piece */
    bool ids_tell;        /* that is so for every piece: its ids alone say where each ends */
    bool ignore_merges;   /* a whole piece in the vocabulary is that token */
    size_t whole_len_max; /* longest key of a token that only a whole piece is, or 0 */
    uint64_t
        *merged; /* bit per id: its bytes alone merge to it; NULL unless BPE starts from bytes */
    struct ptk_chars chars; /* BPE only */
    union {
        struct ptk_bpe bpe;
        struct ptk_unigram unigram;
        struct ptk_wordpiece wordpiece;
    };
};

/* ptk_encoder_init prepares the encoder of an image: allocates; 0, or a negative errno and a
 * sentence. */
int ptk_encoder_init(struct ptk_encoder *encoder, const struct ptk_image *image,
                     struct ptk_err *err);
void ptk_encoder_fini(struct ptk_encoder *encoder);

/* ptk_encoder_is_merged: where `merged` is not NULL, whether an id's bytes alone merge to it. */
static inline bool ptk_encoder_is_merged(const struct ptk_encoder *encoder, uint32_t id)
{
    return encoder->merged[id >> 6] >> (id & 63) & 1;
}

/*
 * ptk_encoder_only_merges: whether the merges by ptk_bpe_ordered.h are all that a piece needs which
 * is no token as a whole.
 */
static inline bool ptk_encoder_only_merges(const struct ptk_encoder *encoder)
{
    return encoder->algorithm == PTK_IMAGE_ALGORITHM_BPE && encoder->bpe.ordered.memory != NULL &&
           !encoder->bpe.gaps;
}

/* Memory for one piece of up to unit_cap bytes; owned by one thread. */
struct ptk_encoder_scratch {
    struct ptk_bpe_scratch bpe;
    uint32_t *begins;
};

size_t ptk_encoder_scratch_len(size_t unit_cap);
void ptk_encoder_scratch_init(struct ptk_encoder_scratch *scratch, void *memory, size_t unit_cap);

/* The ids of a piece, valid until the scratch is used again. */
struct ptk_encoder_ids {
    const uint32_t *ids;
    const uint32_t
        *begins;          /* of the piece's bytes behind each id; NULL: the end of the one before */
    const uint32_t *ends; /* NULL: add up the lengths of the keys */
    size_t count;
    bool is_close; /* Unigram: what stands before the bytes could have changed them */
};

/* What the bytes are that are encoded. */
enum ptk_part {
    PTK_PART_WHOLE = 0, /* a piece */
    PTK_PART_INNER = 1, /* what lies between two safe cuts of a piece: merges alone decide */
};

/*
 * ptk_encoder_token: the token that the bytes are, without any merging, or PTK_IMAGE_NONE. Where
 * units are bytes, the image's piece table has all short ones: those that it lacks are not looked
 * up again.
 */
uint32_t ptk_encoder_token(const struct ptk_encoder *encoder, const uint8_t *piece, size_t len,
                           enum ptk_part part);

/*
 * ptk_encoder_run gives the ids of one piece or part (valid UTF-8, not empty). False when it needs
 * more than the scratch has.
 */
bool ptk_encoder_run(const struct ptk_encoder *encoder, struct ptk_encoder_scratch *scratch,
                     const uint8_t *piece, size_t len, enum ptk_part part,
                     struct ptk_encoder_ids *out);

#endif
