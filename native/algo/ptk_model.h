/*
 * A model: how one piece becomes ids, whatever the algorithm.
 */
#ifndef PTK_MODEL_H
#define PTK_MODEL_H

#include "algo/ptk_bpe.h"
#include "algo/ptk_unigram.h"
#include "algo/ptk_wordpiece.h"

struct ptk_model {
    const struct ptk_image *image;
    enum ptk_image_algorithm algorithm;
    bool keys_tell;     /* ids come without ends where their keys are the bytes of the piece */
    bool ids_tell;      /* that is so for every piece: its ids alone say where each ends */
    bool ignore_merges; /* a whole piece in the vocabulary is that token */
    uint64_t *merged;   /* bit per id: its bytes alone merge to it; NULL unless BPE starts from bytes */
    union {
        struct ptk_bpe bpe;
        struct ptk_unigram unigram;
        struct ptk_wordpiece wordpiece;
    };
};

/* ptk_model_init prepares the model of an image: allocates; 0, or a negative errno and a sentence. */
int ptk_model_init(struct ptk_model *model, const struct ptk_image *image, struct ptk_err *err);
void ptk_model_fini(struct ptk_model *model);

/* Memory for one piece of up to unit_cap bytes; owned by one thread. */
struct ptk_model_scratch {
    struct ptk_bpe_scratch bpe;
    uint32_t *begins;
};

size_t ptk_model_scratch_len(size_t unit_cap);
void ptk_model_scratch_init(struct ptk_model_scratch *scratch, void *memory, size_t unit_cap);

/* The ids of a piece, valid until the scratch is used again. */
struct ptk_model_ids {
    const uint32_t *ids;
    const uint32_t *begins; /* of the piece's bytes behind each id; NULL: the end of the one before */
    const uint32_t *ends;   /* NULL: add up the lengths of the keys */
    size_t count;
};

/* What the bytes are that are encoded. */
enum ptk_model_part {
    PTK_MODEL_WHOLE = 0, /* a piece */
    PTK_MODEL_INNER = 1, /* what lies between two safe cuts of a piece: merges alone decide */
};

/* ptk_model_token: the token that the bytes are, without any merging, or PTK_IMAGE_NONE. */
uint32_t ptk_model_token(const struct ptk_model *model, const uint8_t *piece, size_t len,
                         enum ptk_model_part part);

/*
 * ptk_model_encode gives the ids of one piece or part (valid UTF-8, not empty). False when it needs more
 * than the scratch has.
 */
bool ptk_model_encode(const struct ptk_model *model, struct ptk_model_scratch *scratch,
                      const uint8_t *piece, size_t len, enum ptk_model_part part,
                      struct ptk_model_ids *out);

#endif
