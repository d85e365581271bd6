/*
 * UTF-8 to and from integers of one width, four characters of up to three bytes at a time: where
 * they lie in 16 bytes, a shuffle that a table gives puts each into a lane of its own, or their
 * bytes behind each other. Needs what every CPU has that this is built for.
 */
#include "text/ptk_utf8_width.h"

#include <smmintrin.h>

#include "text/ptk_utf8.h"

#define FOUR ((size_t)4)

/* Bytes behind the first one in which four characters of up to three bytes end. */
#define SPAN_BITS 12u

/* Ways in which four characters have one to three bytes. */
#define WAYS 81u

/* What pshufb makes zero. */
#define NOTHING 0x80u

struct widen_way {
    uint8_t way; /* of `widen_shuffles` */
    uint8_t len; /* bytes of the four characters; 0: one of them has four */
};

static struct widen_way widen_ways[1u << SPAN_BITS]; /* by which of the bytes begin a character */
static uint8_t widen_shuffles[WAYS][16];             /* lane by lane the last byte first */

/* By which of four characters have two bytes or more, and << 4 which have three. */
static uint8_t narrow_shuffles[256][16];
static uint8_t narrow_lens[256];

static void make_way(uint32_t way)
{
    uint32_t begins = 0;
    uint32_t at = 0;
    for (uint32_t lane = 0, rest = way; lane < FOUR; lane++, rest /= 3) {
        const uint32_t len = rest % 3 + 1;
        at += len;
        begins |= 1u << (at - 1); /* the next one begins there */
        for (uint32_t i = 0; i < 4; i++) {
            widen_shuffles[way][4 * lane + i] = (uint8_t)(i < len ? at - 1 - i : NOTHING);
        }
    }
    /* The bytes behind these characters may be anything. */
    for (uint32_t behind = 0; behind < 1u << (SPAN_BITS - at); behind++) {
        widen_ways[begins | behind << at] = (struct widen_way){(uint8_t)way, (uint8_t)at};
    }
}

static void make_narrow(uint32_t lens)
{
    uint32_t at = 0;
    memset(narrow_shuffles[lens], NOTHING, sizeof narrow_shuffles[lens]);
    for (uint32_t lane = 0; lane < FOUR; lane++) {
        const uint32_t len = 1 + (lens >> lane & 1) + (lens >> (4 + lane) & 1);
        for (uint32_t i = len; i-- > 0; at++) {
            narrow_shuffles[lens][at] = (uint8_t)(4 * lane + i);
        }
    }
    narrow_lens[lens] = (uint8_t)at;
}

/* Runs before main, while there is one thread; nothing writes the tables later. */
__attribute__((constructor)) static void make_tables(void)
{
    for (uint32_t way = 0; way < WAYS; way++) {
        make_way(way);
    }
    for (uint32_t lens = 0; lens < 256; lens++) {
        make_narrow(lens);
    }
}

/* ---- UTF-8 to integers ---------------------------------------------------------------------- */

/* Bytes that are looked at together, and those of them that a step of 16 may begin at. */
#define WINDOW ((size_t)64)
#define STARTS ((size_t)48)

/* A bit for each byte of a window. */
struct window {
    uint64_t begins; /* it begins a character */
    uint64_t high;   /* it is not ASCII */
};

static inline struct window look_at(const uint8_t *bytes)
{
    struct window window = {0, 0};
    for (uint32_t i = 0; i < WINDOW; i += 16) {
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(bytes + i));
        const __m128i begins = _mm_cmpgt_epi8(block, _mm_set1_epi8((char)0xBF));
        window.begins |= (uint64_t)(uint32_t)_mm_movemask_epi8(begins) << i;
        window.high |= (uint64_t)(uint32_t)_mm_movemask_epi8(block) << i;
    }
    return window;
}

static inline __attribute__((always_inline)) void put(uint8_t *dst, size_t at, uint32_t width,
                                                      uint32_t code_point)
{
    memcpy(dst + at * width, &code_point, width);
}

/* Four integers of 32 bits, which fit the width. */
static inline __attribute__((always_inline)) void put_four(uint8_t *dst, size_t at, uint32_t width,
                                                           __m128i chars)
{
    uint8_t *out = dst + at * width;
    if (width == 4) {
        _mm_storeu_si128((__m128i *)(void *)out, chars);
    } else if (width == 2) {
        _mm_storel_epi64((__m128i *)(void *)out, _mm_packus_epi32(chars, chars));
    } else {
        const __m128i words = _mm_packus_epi32(chars, chars);
        const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(out, &bytes, FOUR);
    }
}

static inline __attribute__((always_inline)) void put_ascii(uint8_t *dst, size_t at, uint32_t width,
                                                            __m128i block)
{
    if (width == 1) {
        _mm_storeu_si128((__m128i *)(void *)(dst + at), block);
        return;
    }
    for (size_t i = 0; i < 16; i += 16 / width) {
        const __m128i some = width == 2 ? _mm_cvtepu8_epi16(block) : _mm_cvtepu8_epi32(block);
        _mm_storeu_si128((__m128i *)(void *)(dst + (at + i) * width), some);
        block = width == 2 ? _mm_srli_si128(block, 8) : _mm_srli_si128(block, 4);
    }
}

/* The characters whose bytes a shuffle has put into lanes, last bytes first. */
static inline __m128i chars_of(__m128i lanes)
{
    const __m128i last = _mm_and_si128(lanes, _mm_set1_epi32(0x7F));
    const __m128i middle = _mm_and_si128(_mm_srli_epi32(lanes, 2), _mm_set1_epi32(0xFC0));
    const __m128i first = _mm_and_si128(_mm_srli_epi32(lanes, 4), _mm_set1_epi32(0xF000));
    return _mm_or_si128(_mm_or_si128(last, middle), first);
}

/* Where a text is read and its characters are written. */
struct progress {
    size_t pos;
    size_t done;
};

/*
 * Characters that begin in the first STARTS bytes of `bytes`, of which a whole window can be read,
 * as long as there is room for `count` of them.
 */
static inline __attribute__((always_inline)) struct progress
widen_window(const uint8_t *bytes, uint32_t width, uint8_t *dst, size_t count)
{
    const struct window window = look_at(bytes);
    struct progress to = {0, 0};
    while (to.pos < STARTS && to.done < count) {
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(bytes + to.pos));
        if ((window.high >> to.pos & 0xFFFF) == 0 && count - to.done >= 16) {
            put_ascii(dst, to.done, width, block);
            to.pos += 16;
            to.done += 16;
            continue;
        }
        const struct widen_way way =
            widen_ways[window.begins >> (to.pos + 1) & ((1u << SPAN_BITS) - 1)];
        if (PTK_LIKELY(way.len != 0 && count - to.done >= FOUR)) {
            const __m128i shuffle =
                _mm_loadu_si128((const __m128i *)(const void *)widen_shuffles[way.way]);
            put_four(dst, to.done, width, chars_of(_mm_shuffle_epi8(block, shuffle)));
            to.pos += way.len;
            to.done += FOUR;
            continue;
        }
        uint32_t char_len;
        put(dst, to.done, width, ptk_utf8_decode(bytes + to.pos, &char_len));
        to.pos += char_len;
        to.done++;
    }
    return to;
}

static inline __attribute__((always_inline)) void widen(const uint8_t *bytes, size_t len,
                                                        uint32_t width, uint8_t *dst, size_t count)
{
    size_t pos = 0;
    size_t done = 0;
    while (len - pos >= WINDOW) {
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(bytes + pos));
        if (_mm_movemask_epi8(block) == 0) { /* 16 characters, and there are more behind them */
            put_ascii(dst, done, width, block);
            pos += 16;
            done += 16;
            continue;
        }
        const struct progress by =
            widen_window(bytes + pos, width, dst + done * width, count - done);
        pos += by.pos;
        done += by.done;
    }
    uint8_t tail[2 * WINDOW] = {0};
    memcpy(tail, bytes + pos, len - pos);
    for (size_t at = 0; done < count;) { /* ends: a window yields a character at least */
        PTK_ASSERT(at < WINDOW);
        const struct progress by = widen_window(tail + at, width, dst + done * width, count - done);
        at += by.pos;
        done += by.done;
    }
}

void ptk_utf8_widen_four(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    if (width == 2) {
        widen(bytes, len, 2, dst, count);
    } else if (width == 4) {
        widen(bytes, len, 4, dst, count);
    } else {
        widen(bytes, len, 1, dst, count);
    }
}

/* ---- integers to UTF-8 ---------------------------------------------------------------------- */

static inline __attribute__((always_inline)) uint32_t get(const uint8_t *src, size_t at,
                                                          uint32_t width)
{
    uint32_t code_point = 0;
    memcpy(&code_point, src + at * width, width);
    return code_point;
}

static inline __attribute__((always_inline)) __m128i get_four(const uint8_t *src, size_t at,
                                                              uint32_t width)
{
    const uint8_t *from = src + at * width;
    if (width == 4) {
        return _mm_loadu_si128((const __m128i *)(const void *)from);
    }
    if (width == 2) {
        return _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
    }
    return _mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)ptk_load_u32(from)));
}

/* 16 integers as bytes; false where one is not ASCII. */
static inline __attribute__((always_inline)) bool get_ascii(const uint8_t *src, size_t at,
                                                            uint32_t width, __m128i *bytes)
{
    const __m128i *from = (const __m128i *)(const void *)(src + at * width);
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

/* The bits of all lanes that are below 0, as one number. */
static inline uint32_t lanes_of(__m128i mask)
{
    return (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(mask));
}

/* Four characters below U+10000 as UTF-8; the length. A store of 16 bytes. */
static inline size_t narrow_four(__m128i chars, uint8_t *dst)
{
    const __m128i six = _mm_set1_epi32(0x3F);
    const __m128i two = _mm_cmpgt_epi32(chars, _mm_set1_epi32(0x7F));
    const __m128i three = _mm_cmpgt_epi32(chars, _mm_set1_epi32(0x7FF));
    const __m128i tail = _mm_or_si128(_mm_and_si128(chars, six), _mm_set1_epi32(0x80));
    const __m128i last = _mm_blendv_epi8(chars, tail, two);
    /* C0 where it is the first of two, 80 where it is in the middle of three. */
    const __m128i mark =
        _mm_or_si128(_mm_andnot_si128(three, _mm_set1_epi32(0x40)), _mm_set1_epi32(0x80));
    const __m128i middle =
        _mm_slli_epi32(_mm_or_si128(_mm_and_si128(_mm_srli_epi32(chars, 6), six), mark), 8);
    const __m128i first =
        _mm_slli_epi32(_mm_or_si128(_mm_srli_epi32(chars, 12), _mm_set1_epi32(0xE0)), 16);
    const __m128i low = _mm_and_si128(last, _mm_set1_epi32(0xFF));
    const __m128i lanes = _mm_or_si128(_mm_or_si128(low, middle), first);
    const uint32_t lens = lanes_of(two) | lanes_of(three) << 4;
    const __m128i shuffle = _mm_loadu_si128((const __m128i *)(const void *)narrow_shuffles[lens]);
    _mm_storeu_si128((__m128i *)(void *)dst, _mm_shuffle_epi8(lanes, shuffle));
    return narrow_lens[lens];
}

static inline __attribute__((always_inline)) size_t narrow(const uint8_t *src, size_t count,
                                                           uint32_t width, uint8_t *dst)
{
    size_t len = 0;
    size_t i = 0;
    __m128i surrogates = _mm_setzero_si128();
    bool surrogate = false;
    while (i < count) {
        __m128i bytes;
        if (count - i >= 16 && get_ascii(src, i, width, &bytes)) {
            _mm_storeu_si128((__m128i *)(void *)(dst + len), bytes);
            len += 16;
            i += 16;
            continue;
        }
        for (const size_t end = ptk_min_size(count, i + 16); i < end;) {
            if (end - i >= FOUR) {
                const __m128i chars = get_four(src, i, width);
                const __m128i above = _mm_srli_epi32(chars, 16);
                if (PTK_LIKELY(_mm_testz_si128(above, above) != 0)) {
                    const __m128i high = _mm_and_si128(chars, _mm_set1_epi32(0xF800));
                    surrogates =
                        _mm_or_si128(surrogates, _mm_cmpeq_epi32(high, _mm_set1_epi32(0xD800)));
                    len += narrow_four(chars, dst + len);
                    i += FOUR;
                    continue;
                }
            }
            const uint32_t code_point = get(src, i, width);
            surrogate |= (code_point & 0xFFFFF800u) == 0xD800;
            len += ptk_utf8_encode(code_point, dst + len);
            i++;
        }
    }
    return surrogate || lanes_of(surrogates) != 0 ? SIZE_MAX : len;
}

size_t ptk_utf8_narrow_four(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    return width == 2   ? narrow(src, count, 2, dst)
           : width == 4 ? narrow(src, count, 4, dst)
                        : narrow(src, count, 1, dst);
}
