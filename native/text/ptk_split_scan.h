/*
 * The scanners behind split_known: private to text/.
 *
 * A scanner walks a text and writes where its pieces end. It decides by class bits: eight yes-or-no
 * properties of a character, looked up directly for ASCII and through the class number of
 * `ptk_unicode` for everything else. Which property the bit CUT stands for is the scanner's choice.
 *
 * The scalar scanners (ptk_split_scan.c) are the definition. The files ptk_split_avx2.c and
 * ptk_split_avx512.c hold faster twins of some of them, equal on every text.
 */
#ifndef PTK_SPLIT_SCAN_H
#define PTK_SPLIT_SCAN_H

#include "gen/ptk_image_gen.h"
#include "text/ptk_text.h"
#include "text/ptk_unicode.h"
#include "text/ptk_utf8.h"

#define PTK_SPLIT_LETTER 0x01u /* \p{L} */
#define PTK_SPLIT_UPPER  0x02u /* Lu Lt Lm Lo M: may begin a cased word */
#define PTK_SPLIT_LOWER  0x04u /* Ll Lm Lo M: may end a cased word */
#define PTK_SPLIT_MARK   0x08u /* \p{M} */
#define PTK_SPLIT_NUMBER 0x10u /* \p{N} */
#define PTK_SPLIT_SPACE  0x20u /* \s */
#define PTK_SPLIT_CUT    0x40u /* see struct ptk_split_matcher */
#define PTK_SPLIT_SYMBOL 0x80u /* \p{P} or \p{S} */

/*
 * Class bits of a byte in a block of 64: what the parallel scanners look at. UPPER, LOWER, SLASH
 * and SPECIAL mean something only to some of them, see block_bits_of().
 */
#define PTK_SPLIT_BLOCK_LETTER  0x01u
#define PTK_SPLIT_BLOCK_NUMBER  0x02u
#define PTK_SPLIT_BLOCK_SPACE   0x04u
#define PTK_SPLIT_BLOCK_LINE    0x08u /* \r \n; they are SPACE, too */
#define PTK_SPLIT_BLOCK_UPPER   0x10u
#define PTK_SPLIT_BLOCK_LOWER   0x20u
#define PTK_SPLIT_BLOCK_SLASH   0x40u
#define PTK_SPLIT_BLOCK_SPECIAL 0x80u

/*
 * Code points below U+10000 by their page of 64, which is what the last byte of a character chooses
 * from: a page is one cache line.
 */
#define PTK_SPLIT_PAGE_LEN 64u
#define PTK_SPLIT_PAGES    (0x10000u / PTK_SPLIT_PAGE_LEN)

/* In `page_bits`: the page has characters of several classes. No class has all bits set. */
#define PTK_SPLIT_PAGE_MIXED 0xFFu

/* Class bits of every character, for one scanner. */
struct ptk_split_classes {
    PTK_ALIGNED_LINE uint8_t ascii[128];
    uint8_t by_class[256]; /* by ptk_unicode_class() */
    /* For blocks, PTK_SPLIT_BLOCK_*: */
    uint8_t block_pages[PTK_SPLIT_PAGES][PTK_SPLIT_PAGE_LEN]; /* the first two are ASCII */
    uint8_t block_page_bits[PTK_SPLIT_PAGES]; /* of all characters of a page, or MIXED */
    /* By the low six bits of a first byte beyond ASCII: of all that begins with it, or MIXED. */
    uint8_t block_lead_bits[64];
    uint8_t block_by_class[256]; /* for the other planes */
    bool long_s;                 /* of the profile: U+017F is a small s in contractions */
    const struct ptk_unicode *unicode;
};

/*
 * Scanners beyond those an image can name: sequences of operations that are run as one. Numbers
 * follow enum ptk_split_scanner.
 */
#define PTK_SPLIT_SCANNER_GPT2_DIGITS                                                              \
    PTK_SPLIT_SCANNER_VALUE_COUNT /* each digit alone, then GPT-2 */
#define PTK_SPLIT_SCANNER_COUNT (PTK_SPLIT_SCANNER_VALUE_COUNT + 1)

/* Writes the ends of the next pieces: the contract of ptk_split_scan(). */
typedef size_t ptk_split_scan_fn(const struct ptk_split_classes *classes, const uint8_t *text,
                                 size_t len, size_t *pos, uint32_t *ends, size_t cap);

/*
 * Finds the leftmost match that begins at `pos` or later; false when there is none. Matches are
 * never empty.
 */
typedef bool ptk_split_find_fn(const struct ptk_split_classes *classes, const uint8_t *text,
                               size_t len, size_t pos, struct ptk_span *match);

/* One scanner. `scan` yields pieces without gaps; a pattern that leaves gaps has `find` as well. */
struct ptk_split_matcher {
    ptk_split_scan_fn *scan; /* NULL: matches only */
    ptk_split_find_fn *find; /* NULL: every piece of `scan` is a match */
    uint64_t cut_mask;       /* PTK_UNICODE_* that set CUT */
    bool cut_alone;          /* characters with CUT have no other bit */
};

/* ptk_split_matcher_get returns the scalar scanner with this number, or NULL. */
const struct ptk_split_matcher *ptk_split_matcher_get(unsigned number);

/* ptk_split_classes_init fills the class bits for the scanner with this number, which exists. */
void ptk_split_classes_init(struct ptk_split_classes *classes, const struct ptk_unicode *unicode,
                            unsigned number);

/*
 * The parallel scanners for a CPU with these instructions, NULL where this CPU lacks them or the
 * scanner has no such twin.
 */
ptk_split_scan_fn *ptk_split_scan_avx2(unsigned number);
ptk_split_scan_fn *ptk_split_scan_avx512(unsigned number);

/* ptk_split_scan_best returns the fastest way this CPU has, `matcher`'s own if there is no better.
 */
ptk_split_scan_fn *ptk_split_scan_best(const struct ptk_split_matcher *matcher, unsigned number);

/* [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]: DeepSeek's second split. */
static inline bool ptk_split_is_cjk(uint32_t code_point)
{
    return (code_point >= 0x4E00 && code_point <= 0x9FA5) ||
           (code_point >= 0x3040 && code_point <= 0x30FF);
}

/* 's|'t|'re|'ve|'m|'ll|'d at `at`, before `len`: its end, or 0. */
static inline size_t ptk_split_contraction(const uint8_t *text, size_t len, size_t at)
{
    if (len - at < 2 || text[at] != '\'') {
        return 0;
    }
    const uint8_t first = text[at + 1];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return at + 2;
    }
    if (len - at < 3) {
        return 0;
    }
    const uint8_t second = text[at + 2];
    const bool pair = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                      (first == 'l' && second == 'l');
    return pair ? at + 3 : 0;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d): the same in any case; with `long_s` U+017F is a small s, too. */
static inline size_t ptk_split_contraction_any_case(const uint8_t *text, size_t len, size_t at,
                                                    bool long_s)
{
    if (len - at < 2 || text[at] != '\'') {
        return 0;
    }
    const uint8_t first = text[at + 1] | 0x20;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return at + 2;
    }
    if (len - at < 3) {
        return 0;
    }
    if (text[at + 1] == 0xC5 && text[at + 2] == 0xBF) {
        return long_s ? at + 3 : 0;
    }
    const uint8_t second = text[at + 2] | 0x20;
    const bool pair = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                      (first == 'l' && second == 'l');
    return pair ? at + 3 : 0;
}

#endif
