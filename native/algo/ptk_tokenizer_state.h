/*
 * What stands behind the opaque types of ptk_tokenizer.h; for the files of this folder only.
 */
#ifndef PTK_TOKENIZER_STATE_H
#define PTK_TOKENIZER_STATE_H

#include "algo/ptk_added.h"
#include "algo/ptk_cache.h"
#include "algo/ptk_cuts.h"
#include "algo/ptk_decode.h"
#include "algo/ptk_encoder.h"
#include "algo/ptk_post.h"
#include "algo/ptk_signs.h"
#include "algo/ptk_tokenizer.h"
#include "algo/ptk_words.h"
#include "text/ptk_norm.h"
#include "text/ptk_segments.h"
#include "text/ptk_split.h"

/* Longest text a work may be made for: every position fits 31 bits, grown threefold too. */
#define PTK_TEXT_LEN_MAX (1u << 29)

/* Pieces that the pre-tokenizer hands over at once: their list stays in the first cache. */
#define PTK_CHUNK_PIECES 512u

struct ptk_tokenizer {
    const struct ptk_image *image;
    struct ptk_cache_seed seed;
    struct ptk_added added_raw;
    struct ptk_added added_normalized;
    struct ptk_norm *norm;
    struct ptk_split *split;
    struct ptk_segments *segments; /* NULL: texts are worked on as wholes */
    struct ptk_signs signs;        /* none but of a Unigram model with segments */
    struct ptk_encoder encoder;
    struct ptk_cuts cuts;
    struct ptk_words words;
    struct ptk_post post;
    struct ptk_decoder decoder;
    bool normalizes;  /* norm does anything */
    bool needs_align; /* pieces depend on where normalized text came from */
    bool scan;        /* one scanner over unchanged text; pieces go in batches */
};

struct ptk_work {
    PTK_ALIGNED_LINE struct ptk_work_limits limits;
    size_t text_cap; /* of the text buffers: room for normalized text */
    struct ptk_encoder_scratch encoder;
    struct ptk_norm_work *norm;
    struct ptk_split_work *split;
    uint32_t ends[PTK_CHUNK_PIECES];         /* ends of a chunk of pieces */
    struct ptk_span spans[PTK_CHUNK_PIECES]; /* the same where pieces may have gaps */
};

#endif
