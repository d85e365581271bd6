/*
 * UTF-8: every way to check equals the definition, every length of tail is seen, replacement is by
 * maximal subparts.
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_utf8.h"
#include "text/ptk_utf8_width.h"

#define PAD_MAX 70

/* The definition, written from the table in the Unicode standard and nothing else. */
static bool oracle(const uint8_t *b, size_t len)
{
    size_t i = 0;
    while (i < len) {
        uint32_t n;
        uint32_t value;
        if (b[i] < 0x80) {
            n = 1;
            value = b[i];
        } else if ((b[i] & 0xE0) == 0xC0) {
            n = 2;
            value = b[i] & 0x1Fu;
        } else if ((b[i] & 0xF0) == 0xE0) {
            n = 3;
            value = b[i] & 0x0Fu;
        } else if ((b[i] & 0xF8) == 0xF0) {
            n = 4;
            value = b[i] & 0x07u;
        } else {
            return false;
        }
        if (len - i < n) {
            return false;
        }
        for (uint32_t k = 1; k < n; k++) {
            if ((b[i + k] & 0xC0) != 0x80) {
                return false;
            }
            value = value << 6 | (b[i + k] & 0x3Fu);
        }
        static const uint32_t min[] = {0, 0, 0x80, 0x800, 0x10000};
        if (value < min[n] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
            return false;
        }
        i += n;
    }
    return true;
}

static uint64_t seed;

static uint32_t random_u32(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}

static void check(const uint8_t *bytes, size_t len)
{
    /* A copy of exact size: a read beyond the end is seen by the sanitizer. */
    uint8_t *copy = malloc(len + 1);
    PTK_ASSERT(copy != NULL);
    memcpy(copy, bytes, len);
    bool want = oracle(copy, len);
    bool avx2 = __builtin_cpu_supports("avx2") != 0;
    bool same = ptk_utf8_valid_scalar(copy, len) == want && ptk_utf8_valid(copy, len) == want &&
                (!avx2 || ptk_utf8_valid_avx2(copy, len) == want);
    if (!same) {
        fprintf(stderr, "disagreement, want %d:", want);
        for (size_t i = 0; i < len; i++) {
            fprintf(stderr, " %02x", copy[i]);
        }
        fprintf(stderr, "\n");
        abort();
    }
    PTK_ASSERT(ptk_utf8_count(copy, len) == ptk_utf8_count_scalar(copy, len));
    free(copy);
}

/* Every sequence of interesting bytes up to four long, at every position of a wide block's end. */
static void test_short_sequences_at_every_position(void)
{
    static const uint8_t interesting[] = {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                          0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED,
                                          0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
    const size_t n = sizeof interesting;
    static const size_t pads[] = {0, 28, 29, 30, 31, 32, 61};
    for (size_t p = 0; p < PTK_ARRAY_LEN(pads); p++) {
        uint8_t bytes[PAD_MAX + 4];
        memset(bytes, 'a', sizeof bytes);
        for (size_t code = 0; code < n * n * n * n; code++) {
            size_t rest = code;
            for (size_t i = 0; i < 4; i++) {
                bytes[pads[p] + i] = interesting[rest % n];
                rest /= n;
            }
            check(bytes, pads[p] + 4);
            if (code < n * n * n) {
                check(bytes, pads[p] + 3);
                check(bytes, pads[p] + 3 + 1);
            }
        }
    }
}

/* Valid random text with one byte changed or the end cut off, across several blocks. */
static void test_damaged_texts(void)
{
    for (int round = 0; round < 20000; round++) {
        uint8_t bytes[256];
        size_t len = 0;
        while (len < 200) {
            uint32_t width = random_u32() % 5;
            uint32_t code_point = random_u32() % (width < 2    ? 0x80u
                                                  : width == 2 ? 0x800u
                                                  : width == 3 ? 0x10000u
                                                               : 0x110000u);
            if (code_point < 0xD800 || code_point > 0xDFFF) {
                len += ptk_utf8_encode(code_point, bytes + len);
            }
        }
        check(bytes, len);
        check(bytes, len - random_u32() % 5);
        bytes[random_u32() % len] = (uint8_t)random_u32();
        check(bytes, len);
    }
}

typedef void widen_fn(const uint8_t *, size_t, uint32_t, void *, size_t);
typedef size_t narrow_fn(const void *, size_t, uint32_t, uint8_t *);

static uint32_t char_at(const void *chars, size_t i, uint32_t width)
{
    return width == 1   ? ((const uint8_t *)chars)[i]
           : width == 2 ? ((const uint16_t *)chars)[i]
                        : ((const uint32_t *)chars)[i];
}

/* Memory of exact size, so that a sanitizer sees what is read or written beyond it. */
static void *exactly(const void *bytes, size_t len)
{
    void *copy = malloc(len + (len == 0));
    PTK_ASSERT(copy != NULL);
    if (bytes != NULL) {
        memcpy(copy, bytes, len);
    }
    return copy;
}

static void check_widths(widen_fn *widen, narrow_fn *narrow, const uint32_t *code_points,
                         size_t count, uint32_t width)
{
    uint8_t utf8[4 * 300] = {0};
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        len += ptk_utf8_encode(code_points[i], utf8 + len);
    }
    uint8_t *text = exactly(utf8, len);
    void *chars = exactly(NULL, count * width);
    widen(text, len, width, chars, count);
    for (size_t i = 0; i < count; i++) {
        PTK_ASSERT(char_at(chars, i, width) == code_points[i]);
    }
    uint8_t *back = exactly(NULL, ptk_utf8_narrow_cap(count, width));
    PTK_ASSERT(narrow(chars, count, width, back) == len);
    PTK_ASSERT(memcmp(back, text, len) == 0);
    if (count > 0 && width > 1) {
        const uint32_t surrogate = 0xD800 + random_u32() % 0x800;
        const size_t at = random_u32() % count;
        if (width == 2) {
            ((uint16_t *)chars)[at] = (uint16_t)surrogate;
        } else {
            ((uint32_t *)chars)[at] = surrogate;
        }
        PTK_ASSERT(narrow(chars, count, width, back) == SIZE_MAX);
    }
    free(back);
    free(chars);
    free(text);
}

/* Texts of every length and mixture, as integers of every width that holds them, and back. */
static void test_widths(void)
{
    static const uint32_t ends[] = {0x80, 0x100, 0x800, 0x10000, 0x110000};
    for (size_t round = 0; round < 40000; round++) {
        uint32_t code_points[300];
        const size_t count = round % 300;
        const size_t classes = 1 + random_u32() % PTK_ARRAY_LEN(ends);
        const uint32_t rare = random_u32() % 3 == 0 ? 1 : 1 + random_u32() % 60;
        uint32_t highest = 0;
        for (size_t i = 0; i < count; i++) {
            do {
                const size_t of = random_u32() % rare == 0 ? random_u32() % classes : 0;
                code_points[i] = random_u32() % ends[of];
            } while (code_points[i] >= 0xD800 && code_points[i] < 0xE000);
            highest = code_points[i] > highest ? code_points[i] : highest;
        }
        for (uint32_t width = highest < 0x100     ? 1
                              : highest < 0x10000 ? 2
                                                  : 4;
             width <= 4; width *= 2) {
            check_widths(ptk_utf8_widen_plain, ptk_utf8_narrow_plain, code_points, count, width);
            check_widths(ptk_utf8_widen_four, ptk_utf8_narrow_four, code_points, count, width);
            check_widths(ptk_utf8_widen, ptk_utf8_narrow, code_points, count, width);
            if (ptk_utf8_width_avx512()) {
                check_widths(ptk_utf8_widen_avx512, ptk_utf8_narrow_avx512, code_points, count,
                             width);
            }
        }
    }
}

/* Encoding and decoding are inverse for every code point. */
static void test_code_points_round_trip(void)
{
    for (uint32_t code_point = 0; code_point < 0x110000; code_point++) {
        if (code_point >= 0xD800 && code_point < 0xE000) {
            continue;
        }
        uint8_t bytes[4];
        uint32_t len = ptk_utf8_encode(code_point, bytes);
        PTK_ASSERT(len == ptk_utf8_code_point_len(code_point));
        PTK_ASSERT(len == ptk_utf8_lead_len(bytes[0]));
        PTK_ASSERT(ptk_utf8_char_len(bytes, len) == (int)len);
        uint32_t decoded_len;
        PTK_ASSERT(ptk_utf8_decode(bytes, &decoded_len) == code_point);
        PTK_ASSERT(decoded_len == len);
        for (uint32_t cut = 1; cut < len; cut++) {
            PTK_ASSERT(ptk_utf8_char_len(bytes, cut) == 0);
        }
    }
}

static void check_replace(const char *from, size_t from_len, const char *want, size_t want_len)
{
    uint8_t dst[64];
    size_t dst_len = 0;
    for (size_t cap = 0; cap < sizeof dst; cap++) {
        bool fits = ptk_utf8_replace((const uint8_t *)from, from_len, dst, cap, &dst_len);
        PTK_ASSERT(fits == (cap >= want_len));
        if (fits) {
            PTK_ASSERT(dst_len == want_len);
            PTK_ASSERT(memcmp(dst, want, want_len) == 0);
        }
    }
}

#define CHECK_REPLACE(from, want) check_replace(from, sizeof(from) - 1, want, sizeof(want) - 1)
#define R                         "\xEF\xBF\xBD"

/* One U+FFFD per maximal subpart: what byte-level decoders show for a cut character. */
static void test_replacement_is_by_maximal_subpart(void)
{
    CHECK_REPLACE("", "");
    CHECK_REPLACE("abc", "abc");
    CHECK_REPLACE("a\xC3\xA9z", "a\xC3\xA9z");
    CHECK_REPLACE("\x80\xBF", R R);
    CHECK_REPLACE("\xC3", R);
    CHECK_REPLACE("\xC3"
                  "a",
                  R "a");
    CHECK_REPLACE("\xE2\x82", R);
    CHECK_REPLACE("\xE2\x82"
                  "a",
                  R "a");
    CHECK_REPLACE("\xF0\x9F\x98", R);
    CHECK_REPLACE("\xF0\x9F\x98\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80");
    CHECK_REPLACE("\xED\xA0\x80", R R R);
    CHECK_REPLACE("\xE0\x80\x80", R R R);
    CHECK_REPLACE("\xF4\x90\x80\x80", R R R R);
    CHECK_REPLACE("\xC0\xAF\xFE\xFF", R R R R);
    CHECK_REPLACE("\xF1\x80\x80"
                  "a\xE2\x82",
                  R "a" R);
}

static void test_ascii_runs(void)
{
    uint8_t bytes[PAD_MAX];
    memset(bytes, 'a', sizeof bytes);
    for (size_t len = 0; len <= PAD_MAX; len++) {
        PTK_ASSERT(ptk_utf8_ascii_len(bytes, len) == len);
        for (size_t at = 0; at < len; at++) {
            bytes[at] = 0x80;
            PTK_ASSERT(ptk_utf8_ascii_len(bytes, len) == at);
            bytes[at] = 'a';
        }
    }
}

/* The top byte says which width holds every character. */
static void test_top(void)
{
    const uint32_t points[] = {'a',   0x7F,  0x80,   0xFF,    0x100,
                               0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF};
    uint8_t bytes[4 * PTK_ARRAY_LEN(points)];
    size_t len = 0;
    PTK_ASSERT(ptk_utf8_top(bytes, 0) == 0);
    for (size_t count = 1; count <= PTK_ARRAY_LEN(points); count++) {
        const uint32_t last = points[count - 1];
        len += ptk_utf8_encode(last, bytes + len);
        const uint8_t top = ptk_utf8_top(bytes, len);
        PTK_ASSERT((top < 0x80) == (last < 0x80));
        PTK_ASSERT((top < 0xC4) == (last < 0x100));
        PTK_ASSERT((top < 0xF0) == (last < 0x10000));
    }
}

int main(void)
{
    const char *text = getenv("PTK_TEST_SEED");
    seed = text != NULL ? strtoull(text, NULL, 0) : 0x9E3779B97F4A7C15u;
    printf("seed %llu\n", (unsigned long long)seed);
    __builtin_cpu_init();
    test_short_sequences_at_every_position();
    test_damaged_texts();
    test_widths();
    test_code_points_round_trip();
    test_replacement_is_by_maximal_subpart();
    test_ascii_runs();
    test_top();
    return 0;
}
