/*
 * The parallel scanners with AVX2: two look-ups by nibbles classify ASCII. Rules and walk are in
 * ptk_split_block.h.
 */
#include <immintrin.h>

#include "text/ptk_split_block.h"

/* 64 bytes as two registers. */
struct pair {
    __m256i low;
    __m256i high;
};

static inline uint64_t mask_of(__m256i low, __m256i high)
{
    return (uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high)
                                                     << 32;
}

/*
 * ASCII by rectangles of its table of 8 rows and 16 columns: bit n of a byte is set when the byte's
 * high nibble and its low nibble are both in rectangle n. Classes are unions of rectangles; no
 * profile of Unicode changes them. Bytes beyond ASCII are in none.
 */
enum {
    RECT_WORD_LEFT = 0,  /* A-O a-o: rows 4 6, columns 1 to F */
    RECT_WORD_RIGHT = 1, /* P-Z p-z: rows 5 7, columns 0 to A */
    RECT_DIGIT = 2,      /* row 3, columns 0 to 9 */
    RECT_BLANK = 3,      /* U+0020 */
    RECT_CONTROL = 4,    /* U+0009 to U+000D */
    RECT_LINE = 5,       /* \n \r */
    RECT_QUOTE = 6,      /* ' */
    RECT_SLASH = 7,      /* / */
};

static inline __m256i ascii_rectangles(__m256i bytes)
{
    const __m256i columns = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x0E, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x47, 0x07, 0x17, 0x33, 0x11, 0x11,
                      0x31, 0x01, (char)0x81));
    const __m256i rows = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x30, 0, (char)0xC8, 0x04, 0x01, 0x02, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(0x0F));
    return _mm256_and_si256(_mm256_shuffle_epi8(columns, bytes), _mm256_shuffle_epi8(rows, high));
}

/* Bytes that have bit `bit`. A macro because the instruction takes its count as a constant. */
#define BIT_MASK(bytes, bit)                                                                       \
    mask_of(_mm256_slli_epi16((bytes).low, 7 - (bit)), _mm256_slli_epi16((bytes).high, 7 - (bit)))

/* Bytes moved up by one: byte i is byte i - 1; the first one is zero. */
static inline struct pair moved_up(struct pair bytes)
{
    return (struct pair){
        _mm256_alignr_epi8(bytes.low, _mm256_permute2x128_si256(bytes.low, bytes.low, 0x08), 15),
        _mm256_alignr_epi8(bytes.high, _mm256_permute2x128_si256(bytes.low, bytes.high, 0x21), 15)};
}

/* Bytes moved down by one: byte i is byte i + 1; the last one is zero. */
static inline struct pair moved_down(struct pair bytes)
{
    return (struct pair){
        _mm256_alignr_epi8(_mm256_permute2x128_si256(bytes.low, bytes.high, 0x21), bytes.low, 1),
        _mm256_alignr_epi8(_mm256_permute2x128_si256(bytes.high, bytes.high, 0x81), bytes.high, 1)};
}

/* table[byte & 63] for every byte. */
static inline __m256i look_up_64(const uint8_t *table, __m256i bytes)
{
    const __m256i places = _mm256_and_si256(bytes, _mm256_set1_epi8(0x3F));
    __m256i found = _mm256_setzero_si256();
    for (int quarter = 0; quarter < 4; quarter++) {
        /* 0 to 15 in this quarter; elsewhere the addition sets the bit that yields zero. */
        const __m256i inside = _mm256_adds_epu8(
            _mm256_xor_si256(places, _mm256_set1_epi8((char)(quarter << 4))),
            _mm256_set1_epi8(0x70));
        const __m256i row = _mm256_broadcastsi128_si256(
            _mm_loadu_si128((const __m128i *)(const void *)(table + 16 * quarter)));
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(row, inside));
    }
    return found;
}

static inline struct pair look_up_pair(const uint8_t *table, struct pair bytes)
{
    return (struct pair){look_up_64(table, bytes.low), look_up_64(table, bytes.high)};
}

static inline struct pair blended(struct pair old, struct pair fresh, struct pair where)
{
    return (struct pair){_mm256_blendv_epi8(old.low, fresh.low, where.low),
                         _mm256_blendv_epi8(old.high, fresh.high, where.high)};
}

static inline struct pair both(struct pair a, struct pair b)
{
    return (struct pair){_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}

static inline struct pair equal_to(struct pair bytes, uint8_t value)
{
    const __m256i all = _mm256_set1_epi8((char)value);
    return (struct pair){_mm256_cmpeq_epi8(bytes.low, all), _mm256_cmpeq_epi8(bytes.high, all)};
}

/* The classes of characters beyond ASCII, one by one: at their first bytes, or at all of them. */
static inline struct pair classify_each(const struct ptk_split_classes *classes, uint64_t leads,
                                        struct pair found, bool at_all,
                                        const struct ptk_split_block *b)
{
    PTK_ALIGNED_LINE uint8_t buffer[PTK_SPLIT_BLOCK_LEN + 4];
    _mm256_store_si256((__m256i *)(void *)buffer, found.low);
    _mm256_store_si256((__m256i *)(void *)(buffer + 32), found.high);
    for (; leads != 0; leads &= leads - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(leads);
        uint32_t width;
        const uint32_t code_point = ptk_utf8_decode(b->text + at, &width);
        const uint8_t bits =
            code_point < 0x10000
                ? classes->block_pages[code_point / PTK_SPLIT_PAGE_LEN]
                                      [code_point % PTK_SPLIT_PAGE_LEN]
                : classes->block_by_class[ptk_unicode_class(classes->unicode, code_point)];
        if (at_all) {
            ptk_store_u32(buffer + at, bits * 0x01010101u);
        } else {
            buffer[at] = bits;
        }
    }
    return (struct pair){_mm256_load_si256((const __m256i *)(const void *)buffer),
                         _mm256_load_si256((const __m256i *)(const void *)(buffer + 32))};
}

/* Characters that a block classifies one by one: that many cost as much as the look-ups do. */
#define FEW_CHARS 6

/* Pages that are looked up for a block: a text of more is a mixture, where each serves few. */
#define PAGES_MAX 6

/*
 * The classes of characters beyond ASCII: all bytes of each get its class, and those of ASCII may
 * get any. Cuts the block before a character that it does not hold wholly.
 *
 * The last byte of a character chooses from a page of 64, the bytes before it choose the page. A
 * text keeps to few pages: each is looked up once, for all of its characters in the block. Before
 * that, first bytes that stand for one class only are settled at once: most of CJK and Hangul.
 */
static __attribute__((noinline)) struct pair classify_wide(const struct ptk_split_classes *classes,
                                                           size_t len, struct pair bytes,
                                                           struct ptk_split_block *b)
{
    uint64_t leads = b->wide & ~b->cont;
    if (len > PTK_SPLIT_BLOCK_LEN) {
        const unsigned last = 63u - (unsigned)__builtin_clzll(leads);
        if (last + ptk_utf8_lead_len(b->text[last]) > PTK_SPLIT_BLOCK_LEN) {
            b->len = last;
            leads &= block_below(last);
        }
    }
    const struct pair none = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    if (__builtin_popcountll(leads) <= FEW_CHARS) {
        return classify_each(classes, leads, none, true, b);
    }
    const struct pair second = moved_down(bytes);
    struct pair found = look_up_pair(classes->block_lead_bits, bytes);
    const struct pair unknown = equal_to(found, PTK_SPLIT_PAGE_MIXED);
    uint64_t rest = mask_of(unknown.low, unknown.high) & leads;
    const struct pair third = moved_down(second);
    for (unsigned pages = 0; rest != 0 && pages < PAGES_MAX; pages++) {
        const uint8_t *at = b->text + __builtin_ctzll(rest);
        struct pair same = equal_to(bytes, at[0]);
        if (at[0] < 0xE0) {
            const uint8_t *page = classes->block_pages[at[0] & 0x1F];
            found = blended(found, look_up_pair(page, second), same);
        } else if (at[0] < 0xF0) {
            const uint8_t *page = classes->block_pages[(at[0] & 0xFu) << 6 | (at[1] & 0x3Fu)];
            same = both(same, equal_to(second, at[1]));
            found = blended(found, look_up_pair(page, third), same);
        } else {
            break;
        }
        rest &= ~mask_of(same.low, same.high);
    }
    if (rest != 0) {
        found = classify_each(classes, rest, found, false, b);
    }
    /* From first bytes to all bytes. */
    const __m256i first = _mm256_set1_epi8(-64);
    const struct pair cont = {_mm256_cmpgt_epi8(first, bytes.low),
                              _mm256_cmpgt_epi8(first, bytes.high)};
    found = blended(found, moved_up(found), cont);
    const struct pair cont_again = both(cont, moved_up(cont));
    found = blended(found, moved_up(found), cont_again);
    return blended(found, moved_up(found), both(cont, moved_up(cont_again)));
}

/* The last bytes of a text, fewer than a block, with zeros behind them. */
static inline void copy_tail(uint8_t *buffer, const uint8_t *text, size_t len)
{
    const __m256i zero = _mm256_setzero_si256();
    _mm256_store_si256((__m256i *)(void *)buffer, zero);
    _mm256_store_si256((__m256i *)(void *)(buffer + 32), zero);
    if (len >= 32) {
        memcpy(buffer, text, 32);
        memcpy(buffer + len - 32, text + len - 32, 32);
    } else if (len >= 16) {
        memcpy(buffer, text, 16);
        memcpy(buffer + len - 16, text + len - 16, 16);
    } else if (len >= 8) {
        memcpy(buffer, text, 8);
        memcpy(buffer + len - 8, text + len - 8, 8);
    } else {
        for (size_t i = 0; i < len; i++) {
            buffer[i] = text[i];
        }
    }
}

/* Fills a block. What a rule does not look at is not worked out, since rules are inlined. */
static inline __attribute__((always_inline)) void
load_block(const struct ptk_split_classes *classes, const uint8_t *text, size_t len, bool cased,
           bool slashes, bool deepseek, struct ptk_split_block *b)
{
    PTK_ALIGNED_LINE uint8_t buffer[PTK_SPLIT_BLOCK_LEN];
    const uint8_t *src = text;
    b->text = text;
    b->long_s = classes->long_s;
    b->len = (unsigned)ptk_min_size(len, PTK_SPLIT_BLOCK_LEN);
    b->is_last = len <= PTK_SPLIT_BLOCK_LEN;
    if (b->len < PTK_SPLIT_BLOCK_LEN) {
        copy_tail(buffer, text, b->len);
        src = buffer;
    }
    const struct pair bytes = {_mm256_loadu_si256((const __m256i *)(const void *)src),
                               _mm256_loadu_si256((const __m256i *)(const void *)(src + 32))};
    const struct pair found = {ascii_rectangles(bytes.low), ascii_rectangles(bytes.high)};
    const uint64_t all = block_below(b->len);
    b->blank = BIT_MASK(found, RECT_BLANK);
    b->quote = BIT_MASK(found, RECT_QUOTE);
    b->letter = BIT_MASK(found, RECT_WORD_LEFT) | BIT_MASK(found, RECT_WORD_RIGHT);
    b->number = BIT_MASK(found, RECT_DIGIT);
    b->space = b->blank | BIT_MASK(found, RECT_CONTROL);
    b->line = BIT_MASK(found, RECT_LINE);
    const uint64_t small = cased ? BIT_MASK(bytes, 5) : 0;
    b->upper = cased ? b->letter & ~small : 0;
    b->lower = b->letter & small;
    b->slash = slashes ? BIT_MASK(found, RECT_SLASH) : 0;
    b->special = 0;
    if (deepseek) { /* control characters but white space */
        const __m256i last = _mm256_set1_epi8(0x7F);
        const __m256i first = _mm256_set1_epi8(0x20);
        b->special = mask_of(_mm256_or_si256(_mm256_cmpgt_epi8(first, bytes.low),
                                             _mm256_cmpeq_epi8(last, bytes.low)),
                             _mm256_or_si256(_mm256_cmpgt_epi8(first, bytes.high),
                                             _mm256_cmpeq_epi8(last, bytes.high))) &
                     ~b->space & ~mask_of(bytes.low, bytes.high) & all;
    }
    b->wide = mask_of(bytes.low, bytes.high);
    b->cont = 0;
    if (b->wide != 0) {
        const __m256i first = _mm256_set1_epi8(-64);
        b->cont =
            mask_of(_mm256_cmpgt_epi8(first, bytes.low), _mm256_cmpgt_epi8(first, bytes.high));
        const struct pair wide = classify_wide(classes, len, bytes, b);
        b->letter |= BIT_MASK(wide, 0) & b->wide;
        b->number |= BIT_MASK(wide, 1) & b->wide;
        b->space |= BIT_MASK(wide, 2) & b->wide;
        b->upper |= BIT_MASK(wide, 4) & b->wide;
        b->lower |= BIT_MASK(wide, 5) & b->wide;
        b->special |= BIT_MASK(wide, 7) & b->wide;
        const uint64_t whole = block_below(b->len); /* it may be shorter now */
        b->blank &= whole;
        b->letter &= whole;
        b->number &= whole;
        b->space &= whole;
        b->line &= whole;
        b->upper &= whole;
        b->lower &= whole;
        b->slash &= whole;
        b->special &= whole;
        b->wide &= whole;
        b->cont &= whole;
    }
}

static inline __attribute__((always_inline)) void
load_plain(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
           struct ptk_split_block *b)
{
    load_block(classes, text, len, false, false, false, b);
}

static inline __attribute__((always_inline)) void
load_cased(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
           struct ptk_split_block *b)
{
    load_block(classes, text, len, true, true, false, b);
}

static inline __attribute__((always_inline)) void load_kimi(const struct ptk_split_classes *classes,
                                                            const uint8_t *text, size_t len,
                                                            struct ptk_split_block *b)
{
    load_block(classes, text, len, true, false, false, b);
}

static inline __attribute__((always_inline)) void
load_deepseek(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
              struct ptk_split_block *b)
{
    load_block(classes, text, len, false, false, true, b);
}

static inline __attribute__((always_inline)) size_t emit_avx2(uint64_t mask, uint32_t base,
                                                              uint32_t *ends, size_t cap)
{
    size_t count = (size_t)__builtin_popcountll(mask);
    if (PTK_LIKELY(cap >= PTK_SPLIT_BLOCK_LEN)) {
        /* Eight at a time, the last ones too many: jumps that depend on the text are few. */
        for (size_t i = 0; i < count; i += 8) {
            for (size_t k = 0; k < 8; k++) {
                ends[i + k] = base + (uint32_t)_tzcnt_u64(mask);
                mask = _blsr_u64(mask);
            }
        }
        return count;
    }
    count = ptk_min_size(count, cap);
    for (size_t i = 0; i < count; i++) {
        ends[i] = base + (uint32_t)_tzcnt_u64(mask);
        mask = _blsr_u64(mask);
    }
    return count;
}

/* One scanner: the twin of the matcher with this number. */
#define SCANNER(name, number, load)                                                                \
    static size_t scan_##name(const struct ptk_split_classes *classes, const uint8_t *text,        \
                              size_t len, size_t *pos, uint32_t *ends, size_t cap)                 \
    {                                                                                              \
        return block_scan(classes, text, len, pos, ends, cap, ptk_split_matcher_get(number)->scan, \
                          load, rule_##name, emit_avx2);                                           \
    }

SCANNER(gpt2, PTK_SPLIT_SCANNER_GPT2, load_plain)
SCANNER(gpt2_digits, PTK_SPLIT_SCANNER_GPT2_DIGITS, load_plain)
SCANNER(cl100k, PTK_SPLIT_SCANNER_CL100K, load_plain)
SCANNER(llama3, PTK_SPLIT_SCANNER_LLAMA3, load_plain)
SCANNER(qwen2, PTK_SPLIT_SCANNER_QWEN2, load_plain)
SCANNER(o200k, PTK_SPLIT_SCANNER_O200K, load_cased)
SCANNER(tekken, PTK_SPLIT_SCANNER_TEKKEN, load_cased)
SCANNER(kimi, PTK_SPLIT_SCANNER_KIMI, load_kimi)
SCANNER(deepseek, PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL, load_deepseek)

ptk_split_scan_fn *ptk_split_scan_avx2(unsigned number)
{
    static ptk_split_scan_fn *const scans[PTK_SPLIT_SCANNER_COUNT] = {
        [PTK_SPLIT_SCANNER_GPT2] = scan_gpt2,
        [PTK_SPLIT_SCANNER_GPT2_DIGITS] = scan_gpt2_digits,
        [PTK_SPLIT_SCANNER_CL100K] = scan_cl100k,
        [PTK_SPLIT_SCANNER_LLAMA3] = scan_llama3,
        [PTK_SPLIT_SCANNER_QWEN2] = scan_qwen2,
        [PTK_SPLIT_SCANNER_O200K] = scan_o200k,
        [PTK_SPLIT_SCANNER_TEKKEN] = scan_tekken,
        [PTK_SPLIT_SCANNER_KIMI] = scan_kimi,
        [PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL] = scan_deepseek,
    };
    const bool can_run = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    return can_run && number < PTK_SPLIT_SCANNER_COUNT ? scans[number] : NULL;
}
