/*
 * UTF-8 check and count, 32 bytes at a time.
 *
 * The check looks up three nibbles per byte: high and low nibble of the byte before it and its own
 * high nibble. Each table gives the set of errors that its nibble leaves possible; an error is real
 * when it is in all three sets. What is left are third and fourth bytes: they must be continuations
 * exactly where a lead two or three bytes earlier asks for one.
 */
#include "text/ptk_utf8.h"

#include <immintrin.h>

enum {
    TOO_SHORT = 1 << 0,  /* a lead without its continuation */
    TOO_LONG = 1 << 1,   /* ASCII with a continuation */
    OVERLONG_3 = 1 << 2, /* E0 80..9F */
    TOO_LARGE = 1 << 3,  /* F4 90..BF, F5.. */
    SURROGATE = 1 << 4,  /* ED A0..BF */
    OVERLONG_2 = 1 << 5, /* C0, C1 */
    OVERLONG_4 = 1 << 6, /* F0 80..8F; F5.. 80..8F */
    TWO_CONTS = 1 << 7,  /* two continuations in a row: right or wrong by what is before */
    CARRY = TOO_SHORT | TOO_LONG | TWO_CONTS,
};

static inline __m256i table(char t0, char t1, char t2, char t3, char t4, char t5, char t6, char t7,
                            char t8, char t9, char t10, char t11, char t12, char t13, char t14,
                            char t15)
{
    return _mm256_setr_epi8(t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15,
                            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15);
}

static inline __m256i high_nibbles(__m256i bytes)
{
    return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(0x0F));
}

/* `block` moved up by `n` bytes, filled from the end of the block before it. A macro because the
 * instruction takes its count as a constant. */
#define BYTES_BEFORE(block, before, n)                                                             \
    _mm256_alignr_epi8((block), _mm256_permute2x128_si256((before), (block), 0x21), 16 - (n))

/* Not zero where a byte is wrong after the bytes before it. */
static inline __m256i errors_of(__m256i block, __m256i before)
{
    const __m256i first_high = table(
        TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG,
        (char)TWO_CONTS, (char)TWO_CONTS, (char)TWO_CONTS, (char)TWO_CONTS, TOO_SHORT | OVERLONG_2,
        TOO_SHORT, TOO_SHORT | OVERLONG_3 | SURROGATE, TOO_SHORT | TOO_LARGE | OVERLONG_4);
    const __m256i first_low = table(
        (char)(CARRY | OVERLONG_2 | OVERLONG_3 | OVERLONG_4), (char)(CARRY | OVERLONG_2),
        (char)CARRY, (char)CARRY, (char)(CARRY | TOO_LARGE), (char)(CARRY | TOO_LARGE | OVERLONG_4),
        (char)(CARRY | TOO_LARGE | OVERLONG_4), (char)(CARRY | TOO_LARGE | OVERLONG_4),
        (char)(CARRY | TOO_LARGE | OVERLONG_4), (char)(CARRY | TOO_LARGE | OVERLONG_4),
        (char)(CARRY | TOO_LARGE | OVERLONG_4), (char)(CARRY | TOO_LARGE | OVERLONG_4),
        (char)(CARRY | TOO_LARGE | OVERLONG_4), (char)(CARRY | TOO_LARGE | OVERLONG_4 | SURROGATE),
        (char)(CARRY | TOO_LARGE | OVERLONG_4), (char)(CARRY | TOO_LARGE | OVERLONG_4));
    const __m256i second_high =
        table(TOO_SHORT, TOO_SHORT, TOO_SHORT, TOO_SHORT, TOO_SHORT, TOO_SHORT, TOO_SHORT,
              TOO_SHORT, (char)(TOO_LONG | OVERLONG_2 | TWO_CONTS | OVERLONG_3 | OVERLONG_4),
              (char)(TOO_LONG | OVERLONG_2 | TWO_CONTS | OVERLONG_3 | TOO_LARGE),
              (char)(TOO_LONG | OVERLONG_2 | TWO_CONTS | SURROGATE | TOO_LARGE),
              (char)(TOO_LONG | OVERLONG_2 | TWO_CONTS | SURROGATE | TOO_LARGE), TOO_SHORT,
              TOO_SHORT, TOO_SHORT, TOO_SHORT);
    __m256i first = BYTES_BEFORE(block, before, 1);
    __m256i pairs = _mm256_and_si256(
        _mm256_and_si256(
            _mm256_shuffle_epi8(first_high, high_nibbles(first)),
            _mm256_shuffle_epi8(first_low, _mm256_and_si256(first, _mm256_set1_epi8(0x0F)))),
        _mm256_shuffle_epi8(second_high, high_nibbles(block)));
    /* The high bit is set where a lead two bytes (E0..) or three bytes (F0..) earlier needs one. */
    __m256i third =
        _mm256_subs_epu8(BYTES_BEFORE(block, before, 2), _mm256_set1_epi8((char)(0xE0 - 0x80)));
    __m256i fourth =
        _mm256_subs_epu8(BYTES_BEFORE(block, before, 3), _mm256_set1_epi8((char)(0xF0 - 0x80)));
    __m256i needed = _mm256_and_si256(_mm256_or_si256(third, fourth), _mm256_set1_epi8((char)0x80));
    return _mm256_xor_si256(needed, pairs);
}

/* True when the block ends inside a character. */
static inline bool is_unfinished(__m256i block)
{
    const __m256i max = _mm256_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         (char)(0xF0 - 1), (char)(0xE0 - 1), (char)(0xC0 - 1));
    __m256i above = _mm256_subs_epu8(block, max);
    return !_mm256_testz_si256(above, above);
}

bool ptk_utf8_valid_avx2(const uint8_t *bytes, size_t len)
{
    __m256i before = _mm256_setzero_si256();
    __m256i errors = _mm256_setzero_si256();
    bool ascii_before = true;
    size_t pos = 0;
    for (; pos + 32 <= len; pos += 32) {
        __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + pos));
        if (_mm256_movemask_epi8(block) == 0) {
            if (!ascii_before && is_unfinished(before)) {
                return false;
            }
            ascii_before = true;
        } else {
            errors = _mm256_or_si256(errors, errors_of(block, before));
            ascii_before = false;
        }
        before = block;
    }
    if (!_mm256_testz_si256(errors, errors)) {
        return false;
    }
    /* The last bytes with zeros behind them: a character that ends too early meets a zero. */
    uint8_t tail[32] = {0};
    memcpy(tail, bytes + pos, len - pos);
    __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)tail);
    errors = errors_of(block, before);
    return _mm256_testz_si256(errors, errors) && !is_unfinished(block);
}

size_t ptk_utf8_count_avx2(const uint8_t *bytes, size_t len)
{
    size_t count = 0;
    size_t pos = 0;
    const __m256i continuation_max = _mm256_set1_epi8((char)0xBF);
    for (; pos + 32 <= len; pos += 32) {
        __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)(bytes + pos));
        __m256i begins = _mm256_cmpgt_epi8(block, continuation_max);
        count += (size_t)__builtin_popcount((uint32_t)_mm256_movemask_epi8(begins));
    }
    return count + ptk_utf8_count_scalar(bytes + pos, len - pos);
}
