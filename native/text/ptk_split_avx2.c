/*
 * The parallel scanners with AVX2: ASCII is classified by two nibble look-ups per class. Rules and
 * walk are in ptk_split_block.h.
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

/* Bytes of `rows` that have a bit in common with `columns`. */
static inline uint64_t common(struct pair rows, struct pair columns)
{
    const __m256i zero = _mm256_setzero_si256();
    return ~mask_of(_mm256_cmpeq_epi8(_mm256_and_si256(rows.low, columns.low), zero),
                    _mm256_cmpeq_epi8(_mm256_and_si256(rows.high, columns.high), zero));
}

/* ASCII bytes that have class bit `bit`; bytes beyond ASCII have none. */
static inline uint64_t class_mask(const struct ptk_split_classes *classes, unsigned bit,
                                  struct pair bytes, struct pair columns)
{
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_loadu_si128((const __m128i *)(const void *)classes->block_nibbles[bit]));
    const struct pair rows = {_mm256_shuffle_epi8(table, bytes.low),
                              _mm256_shuffle_epi8(table, bytes.high)};
    return common(rows, columns);
}

/*
 * Adds the classes of characters beyond ASCII, by the Unicode tables: all bytes of each get its
 * class. Cuts the block before a character that it does not hold wholly.
 */
static void classify_wide(const struct ptk_split_classes *classes, size_t len,
                          struct ptk_split_block *b)
{
    uint8_t buffer[PTK_SPLIT_BLOCK_LEN + 4] = {0};
    uint64_t leads = b->wide & ~b->cont;
    if (len > PTK_SPLIT_BLOCK_LEN) {
        const unsigned last = 63u - (unsigned)__builtin_clzll(leads);
        if (last + ptk_utf8_lead_len(b->text[last]) > PTK_SPLIT_BLOCK_LEN) {
            b->len = last;
            leads &= block_below(last);
        }
    }
    for (; leads != 0; leads &= leads - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(leads);
        uint32_t width;
        const uint32_t code_point = ptk_utf8_decode(b->text + at, &width);
        const uint8_t bits =
            code_point < 0x10000
                ? classes->block_pages[code_point / PTK_SPLIT_PAGE_LEN]
                                      [code_point % PTK_SPLIT_PAGE_LEN]
                : classes->block_by_class[ptk_unicode_class(classes->unicode, code_point)];
        ptk_store_u32(buffer + at, bits * 0x01010101u);
    }
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)buffer);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(buffer + 32));
    uint64_t *const masks[8] = {&b->letter, &b->number, &b->space, &b->line,
                                &b->upper,  &b->lower,  &b->slash, &b->special};
    for (unsigned bit = 8; bit-- > 0;) {
        *masks[bit] |= mask_of(low, high) & b->wide;
        low = _mm256_add_epi8(low, low);
        high = _mm256_add_epi8(high, high);
    }
}

static inline __attribute__((always_inline)) void load_avx2(const struct ptk_split_classes *classes,
                                                            const uint8_t *text, size_t len,
                                                            struct ptk_split_block *b)
{
    uint8_t buffer[PTK_SPLIT_BLOCK_LEN];
    const uint8_t *src = text;
    b->text = text;
    b->len = (unsigned)ptk_min_size(len, PTK_SPLIT_BLOCK_LEN);
    b->is_last = len <= PTK_SPLIT_BLOCK_LEN;
    if (b->len < PTK_SPLIT_BLOCK_LEN) {
        memset(buffer, 0, sizeof buffer);
        memcpy(buffer, text, b->len);
        src = buffer;
    }
    const struct pair bytes = {_mm256_loadu_si256((const __m256i *)(const void *)src),
                               _mm256_loadu_si256((const __m256i *)(const void *)(src + 32))};
    const __m256i nibble = _mm256_set1_epi8(0x0F);
    /* 1 << high nibble; nothing for those of bytes beyond ASCII. */
    const __m256i powers = _mm256_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0, 1,
                                            2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
    const struct pair columns = {
        _mm256_shuffle_epi8(powers, _mm256_and_si256(_mm256_srli_epi16(bytes.low, 4), nibble)),
        _mm256_shuffle_epi8(powers, _mm256_and_si256(_mm256_srli_epi16(bytes.high, 4), nibble))};
    b->letter = class_mask(classes, 0, bytes, columns);
    b->number = class_mask(classes, 1, bytes, columns);
    b->space = class_mask(classes, 2, bytes, columns);
    b->line = class_mask(classes, 3, bytes, columns);
    b->upper = class_mask(classes, 4, bytes, columns);
    b->lower = class_mask(classes, 5, bytes, columns);
    b->slash = class_mask(classes, 6, bytes, columns);
    b->special = class_mask(classes, 7, bytes, columns);
    const __m256i blank = _mm256_set1_epi8(' ');
    const __m256i quote = _mm256_set1_epi8('\'');
    b->blank = mask_of(_mm256_cmpeq_epi8(bytes.low, blank), _mm256_cmpeq_epi8(bytes.high, blank));
    b->quote = mask_of(_mm256_cmpeq_epi8(bytes.low, quote), _mm256_cmpeq_epi8(bytes.high, quote));
    b->wide = mask_of(bytes.low, bytes.high);
    b->cont = 0;
    if (b->wide != 0) {
        const __m256i first = _mm256_set1_epi8(-64);
        b->cont =
            mask_of(_mm256_cmpgt_epi8(first, bytes.low), _mm256_cmpgt_epi8(first, bytes.high));
        classify_wide(classes, len, b);
    }
    const uint64_t all = block_below(b->len);
    b->letter &= all;
    b->number &= all;
    b->space &= all;
    b->line &= all;
    b->upper &= all;
    b->lower &= all;
    b->slash &= all;
    b->special &= all;
    b->wide &= all;
    b->cont &= all;
}

static inline __attribute__((always_inline)) size_t emit_avx2(uint64_t mask, uint32_t base,
                                                              uint32_t *ends, size_t cap)
{
    size_t count = 0;
    for (; mask != 0 && count < cap; mask &= mask - 1) {
        ends[count++] = base + (uint32_t)__builtin_ctzll(mask);
    }
    return count;
}

/* One scanner: the twin of the matcher with this number. */
#define SCANNER(name, number)                                                                      \
    static size_t scan_##name(const struct ptk_split_classes *classes, const uint8_t *text,        \
                              size_t len, size_t *pos, uint32_t *ends, size_t cap)                 \
    {                                                                                              \
        return block_scan(classes, text, len, pos, ends, cap, ptk_split_matcher_get(number)->scan, \
                          load_avx2, rule_##name, emit_avx2);                                      \
    }

SCANNER(gpt2, PTK_SPLIT_SCANNER_GPT2)
SCANNER(gpt2_digits, PTK_SPLIT_SCANNER_GPT2_DIGITS)
SCANNER(cl100k, PTK_SPLIT_SCANNER_CL100K)
SCANNER(llama3, PTK_SPLIT_SCANNER_LLAMA3)
SCANNER(qwen2, PTK_SPLIT_SCANNER_QWEN2)
SCANNER(o200k, PTK_SPLIT_SCANNER_O200K)
SCANNER(tekken, PTK_SPLIT_SCANNER_TEKKEN)
SCANNER(kimi, PTK_SPLIT_SCANNER_KIMI)
SCANNER(deepseek, PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL)

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
