/*
 * Ids back to text.
 *
 * Byte-level models decode by concatenation: the bytes of each id one after another, invalid UTF-8
 * replaced at the end. Other models run a decoder program over the list of the ids' strings, one
 * operation after the other, as the reference does.
 */
#ifndef PTK_DECODE_H
#define PTK_DECODE_H

#include "algo/ptk_tokenizer.h"

struct ptk_decoder {
    const struct ptk_image *image;
    bool concat; /* the strings are ready in token_bytes */
    bool spaced; /* there is no decoder: strings are joined with a space */
};

/* ptk_decoder_init refuses programs with an operation that this build cannot run. */
int ptk_decoder_init(struct ptk_decoder *decoder, const struct ptk_image *image,
                     struct ptk_err *err);

/* Memory for one decode, owned by the caller; two buffers because an operation reads one. */
struct ptk_decode_scratch {
    uint8_t *bytes[2]; /* text_cap each */
    uint32_t *ends[2]; /* end_cap each */
    size_t text_cap;
    size_t end_cap;
};

/* ptk_decoder_run: see ptk_tokenizer_decode. */
enum ptk_verdict ptk_decoder_run(const struct ptk_decoder *decoder,
                                 const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                 size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                 size_t *text_len);

#endif
