#include "algo/ptk_encoder.h"

#include <errno.h>
#include <stdlib.h>

/* The image holds only merges that are the last step of their token alone: such a token is its
 * bytes. */
static int merged_init(struct ptk_encoder *encoder, struct ptk_err *err)
{
    const struct ptk_image *image = encoder->image;
    encoder->merged = calloc(image->config->ids_end / 64 + 1, sizeof *encoder->merged);
    if (encoder->merged == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    const struct ptk_image_pair *used[PTK_IMAGE_PAIRS_SOME];
    size_t slot = 0;
    for (size_t count; (count = ptk_image_used_pairs(image, &slot, used)) != 0;) {
        for (size_t i = 0; i < count; i++) {
            encoder->merged[used[i]->id >> 6] |= 1ull << (used[i]->id & 63);
        }
    }
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const size_t len = image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
        if (encoder->ignore_merges && len > 1 && !ptk_encoder_is_merged(encoder, id)) {
            encoder->whole_len_max = ptk_max_size(encoder->whole_len_max, len);
        }
    }
    return 0;
}

int ptk_encoder_init(struct ptk_encoder *encoder, const struct ptk_image *image,
                     struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    *encoder = (struct ptk_encoder){
        .image = image,
        .algorithm = (enum ptk_image_algorithm)config->algorithm,
        .keys_tell = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0,
        .ids_tell = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0 &&
                    (config->flags & PTK_IMAGE_FLAGS_BYTE_GAPS) == 0,
        .ignore_merges = (config->flags & PTK_IMAGE_FLAGS_IGNORE_MERGES) != 0,
    };
    /* Where it is not known which tokens merging makes, any may be one that only whole pieces are.
     */
    encoder->whole_len_max =
        encoder->ignore_merges && !encoder->ids_tell ? config->key_bytes_max : 0;
    switch (encoder->algorithm) {
    case PTK_IMAGE_ALGORITHM_BPE: {
        int code = encoder->ids_tell ? merged_init(encoder, err) : 0;
        if (code == 0) {
            code = ptk_chars_init(&encoder->chars, image, err);
        }
        return code != 0 ? code : ptk_bpe_init(&encoder->bpe, image, &encoder->chars, err);
    }
    case PTK_IMAGE_ALGORITHM_UNIGRAM:
        return ptk_unigram_init(&encoder->unigram, image, err);
    case PTK_IMAGE_ALGORITHM_WORDPIECE:
        return ptk_wordpiece_init(&encoder->wordpiece, image, err);
    case PTK_IMAGE_ALGORITHM_WORDLEVEL:
        if (config->unk_id == PTK_IMAGE_NONE) {
            return ptk_err_set(err, -ENOTSUP,
                               "a WordLevel model needs its unk_token in the vocabulary");
        }
        return 0;
    default:
        return ptk_err_set(err, -ENOTSUP, "models of kind %u are not supported by this build",
                           config->algorithm);
    }
}

void ptk_encoder_fini(struct ptk_encoder *encoder)
{
    if (encoder->algorithm == PTK_IMAGE_ALGORITHM_BPE) {
        ptk_bpe_fini(&encoder->bpe);
        ptk_chars_fini(&encoder->chars);
    } else if (encoder->algorithm == PTK_IMAGE_ALGORITHM_UNIGRAM) {
        ptk_unigram_fini(&encoder->unigram);
    }
    free(encoder->merged);
    encoder->merged = NULL;
}

size_t ptk_encoder_scratch_len(size_t unit_cap)
{
    return ptk_bpe_scratch_len(unit_cap) +
           ptk_align_up(unit_cap * sizeof(uint32_t), PTK_CACHE_LINE);
}

void ptk_encoder_scratch_init(struct ptk_encoder_scratch *scratch, void *memory, size_t unit_cap)
{
    ptk_bpe_scratch_init(&scratch->bpe, memory, unit_cap);
    uint8_t *behind = (uint8_t *)memory + ptk_bpe_scratch_len(unit_cap);
    scratch->begins = (uint32_t *)(void *)behind;
}

static void one_id(struct ptk_bpe_scratch *scratch, uint32_t id, size_t len,
                   struct ptk_encoder_ids *out)
{
    scratch->ids[0] = id;
    scratch->ends[0] = (uint32_t)len;
    *out = (struct ptk_encoder_ids){.ids = scratch->ids, .ends = scratch->ends, .count = 1};
}

/* The nodes of Unigram lie over the arrays of BPE that its result does not use. */
static bool encode_unigram(const struct ptk_encoder *encoder, struct ptk_encoder_scratch *scratch,
                           const uint8_t *piece, size_t len, struct ptk_encoder_ids *out)
{
    _Static_assert(sizeof(struct ptk_unigram_node) == 4 * sizeof(uint32_t), "four arrays a node");
    if (len >= scratch->bpe.unit_cap) {
        return false;
    }
    struct ptk_unigram_node *nodes = (struct ptk_unigram_node *)(void *)scratch->bpe.partner;
    const struct ptk_unigram_result result = {
        .ids = scratch->bpe.ids, .begins = scratch->begins, .ends = scratch->bpe.ends};
    out->count = ptk_unigram_encode(&encoder->unigram, nodes, piece, len, &result, &out->is_close);
    out->ids = result.ids;
    out->begins = result.begins;
    out->ends = result.ends;
    return true;
}

uint32_t ptk_encoder_token(const struct ptk_encoder *encoder, const uint8_t *piece, size_t len,
                           enum ptk_part part)
{
    const struct ptk_image *image = encoder->image;
    const bool whole =
        part == PTK_PART_WHOLE &&
        (encoder->ignore_merges || encoder->algorithm == PTK_IMAGE_ALGORITHM_WORDLEVEL);
    const bool asked =
        encoder->merged != NULL && image->pieces != NULL && len <= PTK_IMAGE_PIECE_KEY_MAX;
    if (asked || (!whole && encoder->merged == NULL) || len > image->config->key_bytes_max) {
        return PTK_IMAGE_NONE;
    }
    const uint32_t id = ptk_image_vocab(image, piece, len);
    return id != PTK_IMAGE_NONE && (whole || ptk_encoder_is_merged(encoder, id)) ? id
                                                                                 : PTK_IMAGE_NONE;
}

bool ptk_encoder_run(const struct ptk_encoder *encoder, struct ptk_encoder_scratch *scratch,
                     const uint8_t *piece, size_t len, enum ptk_part part,
                     struct ptk_encoder_ids *out)
{
    struct ptk_bpe_scratch *bpe = &scratch->bpe;
    const uint32_t token = ptk_encoder_token(encoder, piece, len, part);
    if (token != PTK_IMAGE_NONE) {
        one_id(bpe, token, len, out);
        return true;
    }
    *out = (struct ptk_encoder_ids){.ids = bpe->ids, .ends = bpe->ends};
    switch (encoder->algorithm) {
    case PTK_IMAGE_ALGORITHM_BPE:
        if (PTK_UNLIKELY(encoder->bpe.gaps) && ptk_bpe_has_gap(&encoder->bpe, piece, len)) {
            out->count = ptk_bpe_encode_gaps(&encoder->bpe, bpe, piece, len, scratch->begins);
            out->begins = scratch->begins;
            return out->count != SIZE_MAX;
        }
        out->count = ptk_bpe_encode(&encoder->bpe, bpe, piece, len);
        out->ends = encoder->keys_tell ? NULL : bpe->ends;
        return out->count != SIZE_MAX;
    case PTK_IMAGE_ALGORITHM_UNIGRAM:
        return encode_unigram(encoder, scratch, piece, len, out);
    case PTK_IMAGE_ALGORITHM_WORDPIECE:
        if (len > bpe->unit_cap) {
            return false;
        }
        out->count = ptk_wordpiece_encode(&encoder->wordpiece, piece, len, bpe->ids, bpe->ends);
        return true;
    default: /* WordLevel: ptk_encoder_init() refuses the others */
        one_id(bpe, encoder->image->config->unk_id, len, out);
        return true;
    }
}
