/*
 * UTF-8, one character at a time, and the choice of the wide variants; see ptk_utf8.h.
 */
#include "text/ptk_utf8.h"

#include "base/ptk_pause.h"
#include <emmintrin.h>

static bool (*valid_chosen)(const uint8_t *, size_t) = ptk_utf8_valid_scalar;
static size_t (*count_chosen)(const uint8_t *, size_t) = ptk_utf8_count_scalar;

/* Runs before main, while there is one thread; nothing writes the pointers later. */
__attribute__((constructor)) static void choose(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        valid_chosen = ptk_utf8_valid_avx2;
        count_chosen = ptk_utf8_count_avx2;
    }
}

/* Where the character that holds `pos` begins, or `pos`: four continuations are never valid. */
static size_t cut_before(const uint8_t *bytes, size_t pos)
{
    for (size_t back = 0; back < 4; back++) {
        if ((bytes[pos - back] & 0xC0) != 0x80) {
            return pos - back;
        }
    }
    return pos;
}

static __attribute__((noinline)) bool valid_long(const uint8_t *bytes, size_t len)
{
    while (len > PTK_PAUSE_WIDE_LEN) {
        const size_t part_len = cut_before(bytes, PTK_PAUSE_WIDE_LEN);
        if (!valid_chosen(bytes, part_len)) {
            return false;
        }
        bytes += part_len;
        len -= part_len;
        ptk_pause_point();
    }
    return valid_chosen(bytes, len);
}

bool ptk_utf8_valid(const uint8_t *bytes, size_t len)
{
    return PTK_LIKELY(len <= PTK_PAUSE_WIDE_LEN) ? valid_chosen(bytes, len)
                                                 : valid_long(bytes, len);
}

static __attribute__((noinline)) size_t count_long(const uint8_t *bytes, size_t len)
{
    size_t count = 0;
    for (; len > PTK_PAUSE_WIDE_LEN; len -= PTK_PAUSE_WIDE_LEN) {
        count += count_chosen(bytes, PTK_PAUSE_WIDE_LEN);
        bytes += PTK_PAUSE_WIDE_LEN;
        ptk_pause_point();
    }
    return count + count_chosen(bytes, len);
}

size_t ptk_utf8_count(const uint8_t *bytes, size_t len)
{
    return PTK_LIKELY(len <= PTK_PAUSE_WIDE_LEN) ? count_chosen(bytes, len)
                                                 : count_long(bytes, len);
}

static inline size_t ascii_len(const uint8_t *bytes, size_t len)
{
    size_t pos = 0;
    for (; pos + 16 <= len; pos += 16) {
        __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(bytes + pos));
        uint32_t high = (uint32_t)_mm_movemask_epi8(block);
        if (high != 0) {
            return pos + (size_t)__builtin_ctz(high);
        }
    }
    while (pos < len && bytes[pos] < 0x80) {
        pos++;
    }
    return pos;
}

static __attribute__((noinline)) size_t ascii_len_long(const uint8_t *bytes, size_t len)
{
    size_t pos = 0;
    while (len - pos > PTK_PAUSE_WIDE_LEN) {
        const size_t part_len = ascii_len(bytes + pos, PTK_PAUSE_WIDE_LEN);
        pos += part_len;
        if (part_len < PTK_PAUSE_WIDE_LEN) {
            return pos;
        }
        ptk_pause_point();
    }
    return pos + ascii_len(bytes + pos, len - pos);
}

size_t ptk_utf8_ascii_len(const uint8_t *bytes, size_t len)
{
    return PTK_LIKELY(len <= PTK_PAUSE_WIDE_LEN) ? ascii_len(bytes, len)
                                                 : ascii_len_long(bytes, len);
}

/* Range of the second byte of a character by its lead byte: where overlong forms, surrogates and
 * what lies above U+10FFFF are kept out. Returns the length, 0 for a byte that leads nothing. */
static uint32_t lead_rule(uint8_t lead, uint8_t *second_min, uint8_t *second_max)
{
    *second_min = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *second_max = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80) {
        return 1;
    }
    if (lead < 0xC2 || lead > 0xF4) {
        return 0;
    }
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

int ptk_utf8_char_len(const uint8_t *bytes, size_t len)
{
    uint8_t min;
    uint8_t max;
    uint32_t want = lead_rule(bytes[0], &min, &max);
    if (want == 0) {
        return -1;
    }
    for (uint32_t i = 1; i < want; i++) {
        if (i == len) {
            return 0;
        }
        if (bytes[i] < min || bytes[i] > max) {
            return -(int)i;
        }
        min = 0x80;
        max = 0xBF;
    }
    return (int)want;
}

bool ptk_utf8_valid_scalar(const uint8_t *bytes, size_t len)
{
    size_t pos = 0;
    while (pos < len) {
        if (bytes[pos] < 0x80) {
            pos += ptk_utf8_ascii_len(bytes + pos, len - pos);
            continue;
        }
        int step = ptk_utf8_char_len(bytes + pos, len - pos);
        if (step <= 0) {
            return false;
        }
        pos += (size_t)step;
    }
    return true;
}

size_t ptk_utf8_count_scalar(const uint8_t *bytes, size_t len)
{
    size_t count = 0;
    for (size_t pos = 0; pos < len; pos++) {
        count += (bytes[pos] & 0xC0) != 0x80;
    }
    return count;
}

bool ptk_utf8_replace(const uint8_t *bytes, size_t len, uint8_t *dst, size_t cap, size_t *dst_len)
{
    size_t pos = 0;
    size_t out = 0;
    size_t paused_at = 0;
    while (pos < len) {
        /* The longest valid run, or a part of it, then one bad sequence. */
        size_t run = pos;
        int step = 1;
        const size_t run_end = ptk_min_size(len, pos + PTK_PAUSE_LEN);
        while (run < run_end && step > 0) {
            size_t ascii = ptk_utf8_ascii_len(bytes + run, run_end - run);
            run += ascii;
            if (run < run_end) {
                step = ptk_utf8_char_len(bytes + run, len - run);
                run += step > 0 ? (size_t)step : 0;
            }
        }
        if (run - pos > cap - out) {
            return false;
        }
        memcpy(dst + out, bytes + pos, run - pos);
        out += run - pos;
        pos = run;
        ptk_pause_pos(&paused_at, pos);
        if (step <= 0) {
            if (cap - out < 3) {
                return false;
            }
            memcpy(dst + out, "\xEF\xBF\xBD", 3);
            out += 3;
            pos = step == 0 ? len : pos + (size_t)-step;
        }
    }
    *dst_len = out;
    return true;
}

uint8_t ptk_utf8_top(const uint8_t *bytes, size_t len)
{
    uint8_t top = 0;
    for (size_t i = 0; i < len; i++) {
        top = bytes[i] > top ? bytes[i] : top;
    }
    return top;
}
