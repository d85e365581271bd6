/*
 * UTF-8 to and from strings of integers of one width: 1, 2 or 4 bytes a character, the way Python
 * holds a str.
 */
#ifndef PTK_UTF8_WIDTH_H
#define PTK_UTF8_WIDTH_H

#include "base/ptk_base.h"

/* Bytes that ptk_utf8_narrow may write behind the text. */
#define PTK_UTF8_NARROW_SLACK 64u

/*
 * ptk_utf8_widen writes the `count` characters of checked text `bytes[0..len)` as integers of
 * `width` 1, 2 or 4 bytes, in which they fit. Writes nothing behind the last one.
 */
void ptk_utf8_widen(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count);

/* ptk_utf8_narrow_cap: room that `count` integers of a width need as UTF-8, slack included. */
static inline size_t ptk_utf8_narrow_cap(size_t count, uint32_t width)
{
    return count * (width == 1 ? 2 : width == 2 ? 3 : 4) + PTK_UTF8_NARROW_SLACK;
}

/*
 * ptk_utf8_narrow writes `count` integers of `width` 1, 2 or 4 bytes as UTF-8 to `dst`, which has
 * room for ptk_utf8_narrow_cap() bytes, and returns its length; SIZE_MAX where one is a surrogate,
 * which no UTF-8 has. None is above U+10FFFF.
 */
size_t ptk_utf8_narrow(const void *src, size_t count, uint32_t width, uint8_t *dst);

/* The ways to do both, for the choice at start and for tests; the plain ones define them. */
void ptk_utf8_widen_plain(const uint8_t *bytes, size_t len, uint32_t width, void *dst,
                          size_t count);
size_t ptk_utf8_narrow_plain(const void *src, size_t count, uint32_t width, uint8_t *dst);

/* Four characters of up to three bytes at a time: what every CPU can do. */
void ptk_utf8_widen_four(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count);
size_t ptk_utf8_narrow_four(const void *src, size_t count, uint32_t width, uint8_t *dst);

/* With AVX-512: 32 integers of two bytes at a time. Only where ptk_utf8_width_avx512() is true. */
bool ptk_utf8_width_avx512(void);
void ptk_utf8_widen_avx512(const uint8_t *bytes, size_t len, uint32_t width, void *dst,
                           size_t count);
size_t ptk_utf8_narrow_avx512(const void *src, size_t count, uint32_t width, uint8_t *dst);

#endif
