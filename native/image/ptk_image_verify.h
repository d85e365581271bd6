/*
 * What the view does after the section table: proves the contents of each section.
 *
 * Internal to `image/`: ptk_image_view() has set every typed pointer and checked that sections lie
 * in the file and have whole items; these functions check what the items say.
 */
#ifndef PTK_IMAGE_VERIFY_H
#define PTK_IMAGE_VERIFY_H

#include "image/ptk_image.h"

/* Each returns 0, or -EINVAL with the sentence set. Call in this order: later ones rely on earlier
 * ones. */
int ptk_image_verify_config(const struct ptk_image *image, struct ptk_err *err);
int ptk_image_verify_tokens(const struct ptk_image *image, size_t token_text_len,
                            size_t token_bytes_len, size_t vocab_key_len, struct ptk_err *err);
int ptk_image_verify_tables(const struct ptk_image *image, struct ptk_err *err);
int ptk_image_verify_trie(const struct ptk_image *image, struct ptk_err *err);
int ptk_image_verify_neighbours(const struct ptk_image *image, struct ptk_err *err);
int ptk_image_verify_added(const struct ptk_image *image, struct ptk_err *err);
int ptk_image_verify_programs(struct ptk_image *image, struct ptk_err *err);

#endif
