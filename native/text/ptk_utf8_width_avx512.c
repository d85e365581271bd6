/*
 * UTF-8 to and from integers of one width with AVX-512: every position is worked out as if it were
 * wanted, and those that are not are squeezed out.
 */
#include "text/ptk_utf8_width.h"

#include <immintrin.h>

bool ptk_utf8_width_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("bmi2");
}

/* A bit for each of the first `some` of at most 64. */
static inline uint64_t first_bits(size_t some)
{
    return _bzhi_u64(UINT64_MAX, (uint32_t)some);
}

/* ---- UTF-8 to integers ---------------------------------------------------------------------- */

/* Positions of the text that a block takes, and the bytes behind one that its character may have;
 * zeros behind the end of the text. */
struct places {
    const uint8_t *bytes;
    size_t left;
};

static inline __m512i load_64(struct places places, size_t behind)
{
    const size_t some = places.left > behind ? ptk_min_size(places.left - behind, 64) : 0;
    return _mm512_maskz_loadu_epi8(first_bits(some), places.bytes + behind);
}

static inline __m256i load_32(struct places places, size_t behind)
{
    const size_t some = places.left > behind ? ptk_min_size(places.left - behind, 32) : 0;
    return _mm256_maskz_loadu_epi8((__mmask32)first_bits(some), places.bytes + behind);
}

static inline __m128i load_16(struct places places, size_t behind)
{
    const size_t some = places.left > behind ? ptk_min_size(places.left - behind, 16) : 0;
    return _mm_maskz_loadu_epi8((__mmask16)first_bits(some), places.bytes + behind);
}

/* Characters below U+0100. */
static size_t widen_1(struct places places, uint8_t *dst, size_t room)
{
    const __m512i lead = load_64(places, 0);
    const __m512i next = load_64(places, 1);
    const __mmask64 begins = _mm512_cmpgt_epi8_mask(lead, _mm512_set1_epi8((char)0xBF)) &
                             first_bits(ptk_min_size(places.left, 64));
    const __mmask64 two = _mm512_cmpge_epu8_mask(lead, _mm512_set1_epi8((char)0xC0));
    const __m512i high = _mm512_and_si512(_mm512_slli_epi16(lead, 6), _mm512_set1_epi8((char)0xC0));
    const __m512i low = _mm512_and_si512(next, _mm512_set1_epi8(0x3F));
    const __m512i chars = _mm512_maskz_compress_epi8(
        begins, _mm512_mask_blend_epi8(two, lead, _mm512_or_si512(high, low)));
    const size_t count = (size_t)__builtin_popcountll(begins);
    if (room >= 64) {
        _mm512_storeu_si512(dst, chars);
    } else {
        _mm512_mask_storeu_epi8(dst, first_bits(count), chars);
    }
    return count;
}

/* Characters below U+10000. */
static size_t widen_2(struct places places, uint16_t *dst, size_t room)
{
    const __m256i lead = load_32(places, 0);
    const __m512i first = _mm512_cvtepu8_epi16(lead);
    const __m512i tail = _mm512_set1_epi16(0x3F);
    const __m512i second = _mm512_and_si512(_mm512_cvtepu8_epi16(load_32(places, 1)), tail);
    const __m512i third = _mm512_and_si512(_mm512_cvtepu8_epi16(load_32(places, 2)), tail);
    const __mmask32 begins = _mm256_cmpgt_epi8_mask(lead, _mm256_set1_epi8((char)0xBF)) &
                             (__mmask32)first_bits(ptk_min_size(places.left, 32));
    const __mmask32 two = _mm256_cmpge_epu8_mask(lead, _mm256_set1_epi8((char)0xC0));
    const __mmask32 three = _mm256_cmpge_epu8_mask(lead, _mm256_set1_epi8((char)0xE0));
    const __m512i of_two = _mm512_or_si512(
        _mm512_slli_epi16(_mm512_and_si512(first, _mm512_set1_epi16(0x1F)), 6), second);
    const __m512i of_three = _mm512_or_si512(
        _mm512_or_si512(_mm512_slli_epi16(first, 12), _mm512_slli_epi16(second, 6)), third);
    __m512i chars = _mm512_mask_blend_epi16(two, first, of_two);
    chars = _mm512_mask_blend_epi16(three, chars, of_three);
    chars = _mm512_maskz_compress_epi16(begins, chars);
    const size_t count = (size_t)__builtin_popcount(begins);
    if (room >= 32) {
        _mm512_storeu_si512(dst, chars);
    } else {
        _mm512_mask_storeu_epi16(dst, (__mmask32)first_bits(count), chars);
    }
    return count;
}

static size_t widen_4(struct places places, uint32_t *dst, size_t room)
{
    const __m128i lead = load_16(places, 0);
    const __m512i first = _mm512_cvtepu8_epi32(lead);
    const __m512i tail = _mm512_set1_epi32(0x3F);
    const __m512i second = _mm512_and_si512(_mm512_cvtepu8_epi32(load_16(places, 1)), tail);
    const __m512i third = _mm512_and_si512(_mm512_cvtepu8_epi32(load_16(places, 2)), tail);
    const __m512i fourth = _mm512_and_si512(_mm512_cvtepu8_epi32(load_16(places, 3)), tail);
    const __mmask16 begins = _mm_cmpgt_epi8_mask(lead, _mm_set1_epi8((char)0xBF)) &
                             (__mmask16)first_bits(ptk_min_size(places.left, 16));
    const __mmask16 two = _mm_cmpge_epu8_mask(lead, _mm_set1_epi8((char)0xC0));
    const __mmask16 three = _mm_cmpge_epu8_mask(lead, _mm_set1_epi8((char)0xE0));
    const __mmask16 four = _mm_cmpge_epu8_mask(lead, _mm_set1_epi8((char)0xF0));
    const __m512i of_two = _mm512_or_si512(
        _mm512_slli_epi32(_mm512_and_si512(first, _mm512_set1_epi32(0x1F)), 6), second);
    const __m512i of_three = _mm512_or_si512(
        _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(first, _mm512_set1_epi32(0x0F)), 12),
                        _mm512_slli_epi32(second, 6)),
        third);
    const __m512i of_four = _mm512_or_si512(
        _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(first, _mm512_set1_epi32(0x07)), 18),
                        _mm512_slli_epi32(second, 12)),
        _mm512_or_si512(_mm512_slli_epi32(third, 6), fourth));
    __m512i chars = _mm512_mask_blend_epi32(two, first, of_two);
    chars = _mm512_mask_blend_epi32(three, chars, of_three);
    chars = _mm512_mask_blend_epi32(four, chars, of_four);
    chars = _mm512_maskz_compress_epi32(begins, chars);
    const size_t count = (size_t)__builtin_popcount(begins);
    if (room >= 16) {
        _mm512_storeu_si512(dst, chars);
    } else {
        _mm512_mask_storeu_epi32(dst, (__mmask16)first_bits(count), chars);
    }
    return count;
}

void ptk_utf8_widen_avx512(const uint8_t *bytes, size_t len, uint32_t width, void *dst,
                           size_t count)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    size_t done = 0;
    if (width == 2) {
        for (size_t i = 0; i < len; i += 32) {
            done +=
                widen_2((struct places){bytes + i, len - i}, (uint16_t *)dst + done, count - done);
        }
    } else if (width == 4) {
        for (size_t i = 0; i < len; i += 16) {
            done +=
                widen_4((struct places){bytes + i, len - i}, (uint32_t *)dst + done, count - done);
        }
    } else {
        for (size_t i = 0; i < len; i += 64) {
            done +=
                widen_1((struct places){bytes + i, len - i}, (uint8_t *)dst + done, count - done);
        }
    }
    PTK_ASSERT(done == count);
}

/* ---- integers to UTF-8 ---------------------------------------------------------------------- */

/* 16 characters as UTF-8, `some` of them wanted; the length. A store of 64 bytes. */
static inline size_t narrow_16(__m512i chars, size_t some, uint8_t *dst)
{
    const __m512i six = _mm512_set1_epi32(0x3F);
    const __m512i tail = _mm512_set1_epi32(0x80);
    const __mmask16 two = _mm512_cmpge_epu32_mask(chars, _mm512_set1_epi32(0x80));
    const __mmask16 three = _mm512_cmpge_epu32_mask(chars, _mm512_set1_epi32(0x800));
    const __mmask16 four = _mm512_cmpge_epu32_mask(chars, _mm512_set1_epi32(0x10000));
    const __m512i last = _mm512_or_si512(_mm512_and_si512(chars, six), tail);
    const __m512i above = _mm512_srli_epi32(chars, 6);
    const __m512i middle = _mm512_or_si512(_mm512_and_si512(above, six), tail);
    const __m512i upper = _mm512_srli_epi32(chars, 12);
    const __m512i of_two = _mm512_or_si512(_mm512_or_si512(above, _mm512_set1_epi32(0xC0)),
                                           _mm512_slli_epi32(last, 8));
    const __m512i of_three =
        _mm512_or_si512(_mm512_or_si512(upper, _mm512_set1_epi32(0xE0)),
                        _mm512_or_si512(_mm512_slli_epi32(middle, 8), _mm512_slli_epi32(last, 16)));
    __m512i bytes = _mm512_mask_blend_epi32(two, chars, of_two);
    bytes = _mm512_mask_blend_epi32(three, bytes, of_three);
    if (PTK_UNLIKELY(four != 0)) {
        const __m512i second = _mm512_or_si512(_mm512_and_si512(upper, six), tail);
        const __m512i of_four = _mm512_or_si512(
            _mm512_or_si512(_mm512_or_si512(_mm512_srli_epi32(chars, 18), _mm512_set1_epi32(0xF0)),
                            _mm512_slli_epi32(second, 8)),
            _mm512_or_si512(_mm512_slli_epi32(middle, 16), _mm512_slli_epi32(last, 24)));
        bytes = _mm512_mask_blend_epi32(four, bytes, of_four);
    }
    /* No byte of a character is zero but the one of U+0000. */
    const __mmask64 used =
        (_mm512_test_epi8_mask(bytes, bytes) | UINT64_C(0x1111111111111111)) & first_bits(4 * some);
    _mm512_storeu_si512(dst, _mm512_maskz_compress_epi8(used, bytes));
    return (size_t)__builtin_popcountll(used);
}

static inline __mmask16 surrogates(__m512i chars)
{
    const __m512i high = _mm512_and_si512(chars, _mm512_set1_epi32((int)0xFFFFF800));
    return _mm512_cmpeq_epi32_mask(high, _mm512_set1_epi32(0xD800));
}

static size_t narrow_2(const uint16_t *src, size_t count, uint8_t *dst)
{
    size_t len = 0;
    __mmask32 wrong = 0;
    for (size_t i = 0; i < count; i += 32) {
        const size_t some = ptk_min_size(count - i, 32);
        const __m512i units = _mm512_maskz_loadu_epi16((__mmask32)first_bits(some), src + i);
        if (_mm512_test_epi16_mask(units, _mm512_set1_epi16((short)0xFF80)) == 0) {
            _mm256_storeu_si256((__m256i *)(void *)(dst + len), _mm512_cvtepi16_epi8(units));
            len += some;
            continue;
        }
        const __m512i high = _mm512_and_si512(units, _mm512_set1_epi16((short)0xF800));
        wrong |= _mm512_cmpeq_epi16_mask(high, _mm512_set1_epi16((short)0xD800));
        len += narrow_16(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(units)),
                         ptk_min_size(some, 16), dst + len);
        if (some > 16) {
            len += narrow_16(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(units, 1)), some - 16,
                             dst + len);
        }
    }
    return wrong != 0 ? SIZE_MAX : len;
}

static size_t narrow_4(const uint32_t *src, size_t count, uint8_t *dst)
{
    size_t len = 0;
    __mmask16 wrong = 0;
    for (size_t i = 0; i < count; i += 16) {
        const size_t some = ptk_min_size(count - i, 16);
        const __m512i chars = _mm512_maskz_loadu_epi32((__mmask16)first_bits(some), src + i);
        wrong |= surrogates(chars);
        len += narrow_16(chars, some, dst + len);
    }
    return wrong != 0 ? SIZE_MAX : len;
}

static size_t narrow_1(const uint8_t *src, size_t count, uint8_t *dst)
{
    size_t len = 0;
    for (size_t i = 0; i < count; i += 16) {
        const size_t some = ptk_min_size(count - i, 16);
        const __m128i chars = _mm_maskz_loadu_epi8((__mmask16)first_bits(some), src + i);
        len += narrow_16(_mm512_cvtepu8_epi32(chars), some, dst + len);
    }
    return len;
}

size_t ptk_utf8_narrow_avx512(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    return width == 2   ? narrow_2(src, count, dst)
           : width == 4 ? narrow_4(src, count, dst)
                        : narrow_1(src, count, dst);
}
