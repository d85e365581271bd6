/*
 * The parallel scanners with AVX-512 (BW, VBMI, VBMI2): one table look-up classifies 64 bytes, one
 * compression lists their boundaries. Rules and walk are in ptk_split_block.h.
 */
#include <immintrin.h>

#include "text/ptk_split_block.h"

/* The block's bytes moved by one: byte i is byte i - 1. */
static inline __m512i previous_bytes(__m512i bytes)
{
    PTK_ALIGNED_LINE static const uint8_t places[PTK_SPLIT_BLOCK_LEN] = {
        0,  0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42,
        43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62};
    return _mm512_permutexvar_epi8(_mm512_load_si512(places), bytes);
}

/* Bytes of the text from `skip` behind the block's first one on. */
static inline __m512i bytes_behind(const struct ptk_split_block *b, size_t len, size_t skip)
{
    const size_t rest = len > skip ? len - skip : 0;
    const uint64_t valid = block_below((unsigned)ptk_min_size(rest, PTK_SPLIT_BLOCK_LEN));
    return _mm512_maskz_loadu_epi8(valid, b->text + ptk_min_size(skip, len));
}

/* Characters of four bytes, one by one: the class of each at its first byte. */
static __attribute__((noinline)) __m512i classify_long(const struct ptk_split_classes *classes,
                                                       uint64_t leads, __m512i found,
                                                       const struct ptk_split_block *b)
{
    uint8_t buffer[PTK_SPLIT_BLOCK_LEN];
    _mm512_storeu_si512(buffer, found);
    for (; leads != 0; leads &= leads - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(leads);
        uint32_t width;
        const uint32_t code_point = ptk_utf8_decode(b->text + at, &width);
        buffer[at] = classes->block_by_class[ptk_unicode_class(classes->unicode, code_point)];
    }
    return _mm512_loadu_si512(buffer);
}

/*
 * The classes of characters beyond ASCII; all bytes of each get its class. Cuts the block before a
 * character that it does not hold wholly.
 *
 * The last byte of a character chooses from a page of 64, the bytes before it choose the page. A
 * text keeps to few pages: each is looked up once, for all of its characters in the block.
 * Before that, first bytes and pages that stand for one class only are settled at once: most of CJK
 * and Hangul.
 */
static __m512i classify_wide(const struct ptk_split_classes *classes, size_t len, __m512i bytes,
                             __m512i found, struct ptk_split_block *b)
{
    uint64_t leads = b->wide & ~b->cont;
    if (len > PTK_SPLIT_BLOCK_LEN) {
        const unsigned last = 63u - (unsigned)__builtin_clzll(leads);
        if (last + ptk_utf8_lead_len(b->text[last]) > PTK_SPLIT_BLOCK_LEN) {
            b->len = last;
            leads &= block_below(last);
        }
    }
    const __m512i unknown = _mm512_set1_epi8((char)PTK_SPLIT_PAGE_MIXED);
    const uint64_t three = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8((char)0xE0)) & leads;
    const uint64_t four = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8((char)0xF0)) & leads;
    const __m512i second = bytes_behind(b, len, 1);
    found = _mm512_mask_permutexvar_epi8(found, leads, bytes,
                                         _mm512_loadu_si512(classes->block_lead_bits));
    const uint64_t mixed = _mm512_mask_cmpeq_epi8_mask(leads, found, unknown);
    for (uint64_t rest = mixed & ~three; rest != 0;) {
        const uint8_t lead = b->text[__builtin_ctzll(rest)];
        const uint64_t same = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8((char)lead));
        const __m512i page = _mm512_load_si512(classes->block_pages[lead & 0x1F]);
        found = _mm512_mask_permutexvar_epi8(found, same, second, page);
        rest &= ~same;
    }
    if (three == 0) {
        return _mm512_mask_mov_epi8(found, b->cont, previous_bytes(found));
    }
    for (uint64_t rest = mixed & three & ~four; rest != 0;) {
        const uint8_t lead = b->text[__builtin_ctzll(rest)];
        const uint64_t same = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8((char)lead));
        const __m512i pages = _mm512_loadu_si512(classes->block_page_bits + ((lead & 0xFu) << 6));
        found = _mm512_mask_permutexvar_epi8(found, same, second, pages);
        rest &= ~same;
    }
    const uint64_t still = mixed & three & ~four;
    const __m512i third = bytes_behind(b, len, 2);
    for (uint64_t rest = _mm512_mask_cmpeq_epi8_mask(still, found, unknown); rest != 0;) {
        const uint8_t *src = b->text + __builtin_ctzll(rest);
        const uint64_t same = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8((char)src[0])) &
                              _mm512_cmpeq_epi8_mask(second, _mm512_set1_epi8((char)src[1]));
        const size_t number = (src[0] & 0xFu) << 6 | (src[1] & 0x3Fu);
        const __m512i page = _mm512_load_si512(classes->block_pages[number]);
        found = _mm512_mask_permutexvar_epi8(found, same, third, page);
        rest &= ~same;
    }
    if (four != 0) {
        found = classify_long(classes, four, found, b);
        found = _mm512_mask_mov_epi8(found, b->cont, previous_bytes(found));
    }
    found = _mm512_mask_mov_epi8(found, b->cont, previous_bytes(found));
    return _mm512_mask_mov_epi8(found, b->cont, previous_bytes(found));
}

static inline __attribute__((always_inline)) void
load_avx512(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
            struct ptk_split_block *b)
{
    b->text = text;
    b->long_s = classes->long_s;
    b->len = (unsigned)ptk_min_size(len, PTK_SPLIT_BLOCK_LEN);
    b->is_last = len <= PTK_SPLIT_BLOCK_LEN;
    const __m512i bytes = _mm512_maskz_loadu_epi8(block_below(b->len), text);
    const __m512i low = _mm512_load_si512(classes->block_pages[0]);
    const __m512i high = _mm512_load_si512(classes->block_pages[1]);
    __m512i found = _mm512_permutex2var_epi8(low, bytes, high);
    b->wide = _mm512_movepi8_mask(bytes);
    b->cont = 0;
    if (b->wide != 0) {
        b->cont = _mm512_cmplt_epi8_mask(bytes, _mm512_set1_epi8(-64));
        found = classify_wide(classes, len, bytes, found, b);
    }
    const uint64_t all = block_below(b->len);
    b->wide &= all;
    b->cont &= all;
    b->letter = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_LETTER)) & all;
    b->number = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_NUMBER)) & all;
    b->space = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_SPACE)) & all;
    b->line = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_LINE)) & all;
    b->upper = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_UPPER)) & all;
    b->lower = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_LOWER)) & all;
    b->slash = _mm512_test_epi8_mask(found, _mm512_set1_epi8(PTK_SPLIT_BLOCK_SLASH)) & all;
    b->special = _mm512_movepi8_mask(found) & all;
    b->blank = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(' ')) & all;
    b->quote = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('\'')) & all;
}

static inline __attribute__((always_inline)) size_t emit_avx512(uint64_t mask, uint32_t base,
                                                                uint32_t *ends, size_t cap)
{
    PTK_ALIGNED_LINE static const uint8_t places[PTK_SPLIT_BLOCK_LEN] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const size_t count = ptk_min_size((size_t)__builtin_popcountll(mask), cap);
    const __m512i listed = _mm512_maskz_compress_epi8(mask, _mm512_load_si512(places));
    const __m512i bases = _mm512_set1_epi32((int)base);
    __m512i wide = _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(listed)), bases);
    _mm512_mask_storeu_epi32(ends, (__mmask16)block_below((unsigned)count), wide);
    if (count > 16) {
        wide = _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(listed, 1)), bases);
        _mm512_mask_storeu_epi32(ends + 16, (__mmask16)block_below((unsigned)count - 16), wide);
    }
    if (count > 32) {
        wide = _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(listed, 2)), bases);
        _mm512_mask_storeu_epi32(ends + 32, (__mmask16)block_below((unsigned)count - 32), wide);
    }
    if (count > 48) {
        wide = _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(listed, 3)), bases);
        _mm512_mask_storeu_epi32(ends + 48, (__mmask16)block_below((unsigned)count - 48), wide);
    }
    return count;
}

/* One scanner: SCALAR is the matcher that it is the twin of. */
#define SCANNER(name, number)                                                                      \
    static size_t scan_##name(const struct ptk_split_classes *classes, const uint8_t *text,        \
                              size_t len, size_t *pos, uint32_t *ends, size_t cap)                 \
    {                                                                                              \
        return block_scan(classes, text, len, pos, ends, cap, ptk_split_matcher_get(number)->scan, \
                          load_avx512, rule_##name, emit_avx512);                                  \
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

ptk_split_scan_fn *ptk_split_scan_avx512(unsigned number)
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
    const bool can_run = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512cd") &&
                         __builtin_cpu_supports("avx512vbmi") &&
                         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");
    return can_run && number < PTK_SPLIT_SCANNER_COUNT ? scans[number] : NULL;
}
