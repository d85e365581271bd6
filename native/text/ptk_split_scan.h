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

/* Class bits of every character, for one scanner. */
struct ptk_split_classes {
    uint8_t ascii[128];
    uint8_t by_class[256]; /* by ptk_unicode_class() */
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

/* ptk_split_classes_init fills the class bits of a scanner. */
void ptk_split_classes_init(struct ptk_split_classes *classes, const struct ptk_unicode *unicode,
                            const struct ptk_split_matcher *matcher);

#endif
