/*
 * UTF-8 to and from integers of one width, 16 characters at a time where all are ASCII, and the
 * choice of the wide variant; see ptk_utf8_width.h.
 */
#include "text/ptk_utf8_width.h"

#include <smmintrin.h>

#include "text/ptk_utf8.h"

#define BLOCK ((size_t)16)

static void (*widen_chosen)(const uint8_t *, size_t, uint32_t, void *,
                            size_t) = ptk_utf8_widen_plain;
static size_t (*narrow_chosen)(const void *, size_t, uint32_t, uint8_t *) = ptk_utf8_narrow_plain;

/* Runs before main, while there is one thread; nothing writes the pointers later. */
__attribute__((constructor)) static void choose(void)
{
    if (ptk_utf8_width_avx512()) {
        widen_chosen = ptk_utf8_widen_avx512;
        narrow_chosen = ptk_utf8_narrow_avx512;
    }
}

void ptk_utf8_widen(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
{
    widen_chosen(bytes, len, width, dst, count);
}

size_t ptk_utf8_narrow(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    return narrow_chosen(src, count, width, dst);
}

static inline void put(void *dst, size_t at, uint32_t width, uint32_t code_point)
{
    if (width == 2) {
        ((uint16_t *)dst)[at] = (uint16_t)code_point;
    } else if (width == 4) {
        ((uint32_t *)dst)[at] = code_point;
    } else {
        ((uint8_t *)dst)[at] = (uint8_t)code_point;
    }
}

static inline void put_ascii(void *dst, size_t at, uint32_t width, __m128i block)
{
    uint8_t *out = (uint8_t *)dst + at * width;
    if (width == 1) {
        _mm_storeu_si128((__m128i *)(void *)out, block);
        return;
    }
    for (size_t i = 0; i < BLOCK; i += BLOCK / width) {
        const __m128i some = width == 2 ? _mm_cvtepu8_epi16(block) : _mm_cvtepu8_epi32(block);
        _mm_storeu_si128((__m128i *)(void *)(out + i * width), some);
        block = width == 2 ? _mm_srli_si128(block, 8) : _mm_srli_si128(block, 4);
    }
}

static inline __attribute__((always_inline)) size_t widen(const uint8_t *bytes, size_t len,
                                                          uint32_t width, void *dst)
{
    size_t done = 0;
    size_t i = 0;
    while (i + BLOCK <= len) {
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(bytes + i));
        if (_mm_movemask_epi8(block) == 0) {
            put_ascii(dst, done, width, block);
            done += BLOCK;
            i += BLOCK;
            continue;
        }
        for (const size_t end = i + BLOCK; i < end; done++) {
            uint32_t char_len;
            put(dst, done, width, ptk_utf8_decode(bytes + i, &char_len));
            i += char_len;
        }
    }
    while (i < len) {
        uint32_t char_len;
        put(dst, done, width, ptk_utf8_decode(bytes + i, &char_len));
        done++;
        i += char_len;
    }
    return done;
}

void ptk_utf8_widen_plain(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    const size_t done = width == 2   ? widen(bytes, len, 2, dst)
                        : width == 4 ? widen(bytes, len, 4, dst)
                                     : widen(bytes, len, 1, dst);
    PTK_ASSERT(done == count);
}

static inline uint32_t get(const void *src, size_t at, uint32_t width)
{
    return width == 2   ? ((const uint16_t *)src)[at]
           : width == 4 ? ((const uint32_t *)src)[at]
                        : ((const uint8_t *)src)[at];
}

/* 16 integers as bytes; false where one is not ASCII. */
static inline bool get_ascii(const void *src, size_t at, uint32_t width, __m128i *bytes)
{
    const __m128i *from = (const __m128i *)(const void *)((const uint8_t *)src + at * width);
    const __m128i first = _mm_loadu_si128(from);
    if (width == 1) {
        *bytes = first;
        return _mm_movemask_epi8(first) == 0;
    }
    const __m128i second = _mm_loadu_si128(from + 1);
    if (width == 2) {
        *bytes = _mm_packus_epi16(first, second);
        return _mm_testz_si128(_mm_or_si128(first, second), _mm_set1_epi16((short)0xFF80)) != 0;
    }
    const __m128i third = _mm_loadu_si128(from + 2);
    const __m128i fourth = _mm_loadu_si128(from + 3);
    *bytes = _mm_packus_epi16(_mm_packus_epi32(first, second), _mm_packus_epi32(third, fourth));
    const __m128i any = _mm_or_si128(_mm_or_si128(first, second), _mm_or_si128(third, fourth));
    return _mm_testz_si128(any, _mm_set1_epi32((int)0xFFFFFF80)) != 0;
}

static inline __attribute__((always_inline)) size_t narrow(const void *src, size_t count,
                                                           uint32_t width, uint8_t *dst)
{
    size_t len = 0;
    bool surrogate = false;
    for (size_t i = 0; i < count;) {
        __m128i bytes;
        if (i + BLOCK <= count && get_ascii(src, i, width, &bytes)) {
            _mm_storeu_si128((__m128i *)(void *)(dst + len), bytes);
            len += BLOCK;
            i += BLOCK;
            continue;
        }
        for (const size_t end = ptk_min_size(count, i + BLOCK); i < end; i++) {
            const uint32_t code_point = get(src, i, width);
            surrogate |= (code_point & 0xFFFFF800u) == 0xD800;
            len += ptk_utf8_encode(code_point, dst + len);
        }
    }
    return surrogate ? SIZE_MAX : len;
}

size_t ptk_utf8_narrow_plain(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    return width == 2   ? narrow(src, count, 2, dst)
           : width == 4 ? narrow(src, count, 4, dst)
                        : narrow(src, count, 1, dst);
}
