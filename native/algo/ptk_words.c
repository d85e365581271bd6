#include "algo/ptk_words.h"

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#include <errno.h>
#include <tmmintrin.h>

#define MARK_LEN 3u
static const uint8_t mark[MARK_LEN] = {0xe2, 0x96, 0x81};

static bool is_string(struct ptk_image_string string, const void *bytes, size_t len)
{
    return string.len == len && memcmp(string.bytes, bytes, len) == 0;
}

/* Whether a normalizer is: a mark before the text or not, then marks for spaces. */
static bool reads_normalizer(const struct ptk_image *image, bool *leads)
{
    struct ptk_image_op_view op;
    size_t pos = 0;
    *leads = false;
    while (ptk_image_op_next(&image->normalizer, &pos, &op)) {
        size_t off = 0;
        if (op.kind == PTK_OP_NORM_REPLACE_STRING) {
            return is_string(ptk_image_op_string(&op, &off), " ", 1) &&
                   is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN) &&
                   pos == image->normalizer.len;
        }
        if (*leads || op.kind != PTK_OP_NORM_PREPEND ||
            !is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN)) {
            return false;
        }
        *leads = true;
    }
    return false;
}

/* Behind such a normalizer there are no spaces, so that a split at them does nothing. */
static bool splits_nothing(const struct ptk_image *image)
{
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (ptk_image_op_next(&image->pre_tokenizer, &pos, &op)) {
        size_t off = 4;
        if (op.kind != PTK_OP_PRE_SPLIT_STRING || op.flags != 0 || op.params[1] != 0 ||
            !is_string(ptk_image_op_string(&op, &off), " ", 1)) {
            return false;
        }
    }
    return true;
}

/* Whether a pre-tokenizer is Metaspace alone, with marks, and does not split. */
static bool reads_metaspace(const struct ptk_image *image, enum ptk_words_lead *lead)
{
    static const enum ptk_words_lead leads[] = {PTK_WORDS_LEAD_UNLESS_MARK, PTK_WORDS_LEAD_NEVER,
                                                PTK_WORDS_LEAD_FIRST};
    struct ptk_image_op_view op;
    size_t pos = 0;
    size_t off = 4;
    if (image->normalizer.op_count != 0 || image->pre_tokenizer.op_count != 1 ||
        !ptk_image_op_next(&image->pre_tokenizer, &pos, &op) || op.kind != PTK_OP_PRE_METASPACE ||
        op.params[0] >= PTK_ARRAY_LEN(leads) || op.params[1] != 0 ||
        !is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN)) {
        return false;
    }
    *lead = leads[op.params[0]];
    return true;
}

/*
 * Where words may be cut: before a space unless a token holds it with what is before it; between
 * other bytes of ASCII the same, and before characters with an id only.
 */
static void read_joined(struct ptk_words *words, const struct ptk_cuts *cuts)
{
    const struct ptk_image_neighbours *neighbours = cuts->neighbours;
    uint64_t unknown[2] = {0, 0};
    for (uint32_t right = 0; right < 0x80; right++) {
        const bool known = ptk_chars_id(cuts->chars->records[right]) != PTK_IMAGE_NONE;
        unknown[right >> 6] |= (uint64_t)!known << (right & 63);
    }
    memset(words->joined, 0xff, sizeof words->joined);
    for (uint32_t left = 0; left < 0x100; left++) {
        const uint64_t *ascii =
            left < 0x80 ? &neighbours->ascii[2 * left] : &neighbours->before_ascii[2 * (left & 63)];
        const uint64_t before_space = neighbours->before_mark[left >> 6] >> (left & 63) & 1;
        words->joined[left][0] = ((ascii[0] | unknown[0]) & ~(1ull << ' ')) | before_space << ' ';
        words->joined[left][1] = ascii[1] | unknown[1];
    }
}

int ptk_words_init(struct ptk_words *words, const struct ptk_image *image,
                   const struct ptk_cuts *cuts, struct ptk_err *err)
{
    memset(words, 0, sizeof *words);
    if ((image->config->flags & PTK_IMAGE_FLAGS_SPACE_MARKS) == 0) {
        return 0;
    }
    bool leads;
    if (reads_normalizer(image, &leads) && splits_nothing(image)) {
        words->lead = leads ? PTK_WORDS_LEAD_ALWAYS : PTK_WORDS_LEAD_NEVER;
    } else if (!reads_metaspace(image, &words->lead)) {
        return ptk_err_set(err, -EINVAL,
                           "image: the flag space_marks does not fit the normalizer and the "
                           "pre-tokenizer");
    }
    if (cuts->neighbours == NULL ||
        ptk_chars_id(cuts->chars->records[PTK_CHARS_MARK]) == PTK_IMAGE_NONE) {
        return 0;
    }
    words->active = true;
    read_joined(words, cuts);
    return 0;
}

bool ptk_words_leads(const struct ptk_words *words, const uint8_t *section, size_t len,
                     size_t origin)
{
    switch (words->lead) {
    case PTK_WORDS_LEAD_NEVER:
        return false;
    case PTK_WORDS_LEAD_ALWAYS:
        return true;
    default:
        break;
    }
    const bool marked =
        section[0] == ' ' || (len >= MARK_LEN && memcmp(section, mark, MARK_LEN) == 0);
    return !marked && (words->lead != PTK_WORDS_LEAD_FIRST || origin == 0);
}

/* Kinds of 64 bytes, a bit each; what has none is part of a word. */
struct kinds {
    uint64_t space;
    uint64_t sign;    /* punctuation and symbols of ASCII */
    uint64_t control; /* line ends, tabs */
};

/* ptk_is_sign() by the low half of a byte of ASCII: bit i says so where its high half is i. */
PTK_ALIGNED_LINE static const uint8_t sign_rows[16] = {
    0x50, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0c, 0xac, 0xac, 0xac, 0xac, 0x2c,
};

static inline uint64_t bits_of(__m128i mask)
{
    return (uint32_t)_mm_movemask_epi8(mask);
}

static inline struct kinds kinds_of_16(__m128i bytes)
{
    const __m128i rows = _mm_load_si128((const __m128i *)(const void *)sign_rows);
    const __m128i row_bits =
        _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, (char)128, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    const __m128i sign =
        _mm_and_si128(_mm_shuffle_epi8(rows, bytes), _mm_shuffle_epi8(row_bits, high));
    const __m128i low = _mm_min_epu8(bytes, _mm_set1_epi8(0x1f));
    return (struct kinds){
        .space = bits_of(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' '))),
        .sign = bits_of(_mm_cmpeq_epi8(sign, _mm_setzero_si128())) ^ 0xffff,
        .control = bits_of(_mm_cmpeq_epi8(low, bytes)),
    };
}

static inline void add_kinds(struct kinds *kinds, struct kinds more, size_t at)
{
    kinds->space |= more.space << at;
    kinds->sign |= more.sign << at;
    kinds->control |= more.control << at;
}

static inline struct kinds skip_kinds(struct kinds kinds, size_t count)
{
    return (struct kinds){kinds.space >> count, kinds.sign >> count, kinds.control >> count};
}

static inline __m128i load(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

/* Of the bytes from `at` on, up to 64; what is behind the text has none. */
static inline struct kinds kinds_at(const uint8_t *text, size_t len, size_t at)
{
    const size_t end = len - at < 64 ? len : at + 64;
    struct kinds kinds = {0, 0, 0};
    size_t i = at;
    for (; i + 16 <= end; i += 16) {
        add_kinds(&kinds, kinds_of_16(load(text + i)), i - at);
    }
    if (i < end && len >= 16) {
        add_kinds(&kinds, skip_kinds(kinds_of_16(load(text + len - 16)), 16 - (end - i)), i - at);
    } else if (i < end) {
        uint8_t last[16];
        memset(last, 'a', sizeof last);
        memcpy(last, text + i, end - i);
        add_kinds(&kinds, kinds_of_16(load(last)), i - at);
    }
    return kinds;
}

static inline struct kinds kinds_of_one(uint8_t byte)
{
    return (struct kinds){.space = byte == ' ', .sign = ptk_is_sign(byte), .control = byte < 0x20};
}

/*
 * Where words may end in 64 bytes whose kinds are `now`, those of the byte before `before`: before
 * spaces, and where the kind changes, but not behind a space.
 */
static inline uint64_t edges_of(struct kinds before, struct kinds now)
{
    const uint64_t changes = (now.sign ^ (now.sign << 1 | before.sign)) |
                             (now.control ^ (now.control << 1 | before.control));
    return now.space | (changes & ~(now.space << 1 | before.space));
}

size_t ptk_words_scan(const struct ptk_words *words, const uint8_t *text, size_t len, size_t *pos,
                      uint32_t *ends, size_t cap)
{
    PTK_DCHECK(cap > 64);
    if (*pos == len) {
        return 0;
    }
    size_t count = 0;
    size_t at = *pos + 1;
    uint32_t turns = 0;
    struct kinds before = kinds_of_one(text[*pos]);
    for (; at < len && count + 64 < cap; at += 64) {
        ptk_pause_turn(&turns);
        const struct kinds now = kinds_at(text, len, at);
        uint64_t edges = edges_of(before, now);
        if (len - at < 64) {
            edges &= (1ull << (len - at)) - 1;
        }
        before = skip_kinds(now, 63);
        while (edges != 0) {
            const size_t edge = at + (size_t)__builtin_ctzll(edges);
            const uint64_t *joined = words->joined[text[edge - 1]];
            edges &= edges - 1;
            ends[count] = (uint32_t)edge;
            count += ~joined[text[edge] >> 6] >> (text[edge] & 63) & 1;
        }
    }
    if (at >= len) {
        ends[count] = (uint32_t)len;
        count++;
    }
    *pos = ends[count - 1];
    return count;
}
