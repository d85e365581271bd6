/*
 * Decoding as sentencepiece does, for its `.model` files.
 *
 *     control pieces   nothing (with skip_special; otherwise their own text, which the reference
 *                      has no way to show)
 *     the unknown one  what the model sets for it
 *     byte pieces      their bytes; U+FFFD for each byte that is no part of valid UTF-8
 *     the others       their text, with spaces for U+2581
 *
 * At the beginning one U+2581, or all of them, are dropped; at last the denormalizer runs where the
 * model has one.
 */
#ifndef PTK_DECODE_SPM_H
#define PTK_DECODE_SPM_H

#include "algo/ptk_decode.h"

/*
 * ptk_decode_spm_open prepares the operation, which an image has verified. Set-up: allocates.
 * Returns 0, or a negative errno and a sentence. The image must outlive the result.
 */
int ptk_decode_spm_open(const struct ptk_image_op_view *op, enum ptk_image_profile profile,
                        struct ptk_decode_spm **out, struct ptk_err *err);
void ptk_decode_spm_close(struct ptk_decode_spm *spm); /* NULL is allowed */

/* ptk_decode_spm: see ptk_tokenizer_decode. Cost: linear. */
enum ptk_verdict ptk_decode_spm(const struct ptk_decode_spm *spm, const struct ptk_image *image,
                                const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                size_t *text_len);

#endif
