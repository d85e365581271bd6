/*
 * The text types that normalizers, pre-tokenizers and algorithms hand to each other.
 *
 * A text is bytes of valid UTF-8 (checked at the door). Where offsets are wanted, every byte
 * carries the range of original bytes it came from; where they are not, `align` is NULL and costs
 * nothing.
 */
#ifndef PTK_TEXT_H
#define PTK_TEXT_H

#include "base/ptk_base.h"

/* Half-open range of byte offsets. */
struct ptk_span {
    uint32_t begin;
    uint32_t end;
};

/* Bytes of a text where special tokens, or all added tokens, are ordinary text. */
struct ptk_plain_range {
    uint32_t begin;
    uint32_t end;
    bool all; /* not only special tokens */
};

/* Bytes a function may write into; owned by the caller, never grown. */
struct ptk_text_buf {
    uint8_t *bytes;
    struct ptk_span *align; /* NULL, or one entry per byte: its range in the original text */
    size_t len;
    size_t cap; /* of `bytes`, and of `align` where there is one */
};

#endif
