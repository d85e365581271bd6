/*
 * Grapheme clusters: what a reader takes for one character, by the rules of Unicode's UAX 29.
 */
#ifndef PTK_GRAPHEME_H
#define PTK_GRAPHEME_H

#include "text/ptk_unicode.h"

/*
 * ptk_grapheme_len returns the length in bytes of the cluster that the checked, non-empty text
 * `bytes[0..len)` begins with. Assumes that a cluster begins there. Pairs of regional indicators
 * (flags) count as two clusters: the reference's answers, which the classes are taken from, do not
 * show them.
 */
size_t ptk_grapheme_len(const struct ptk_unicode *unicode, const uint8_t *bytes, size_t len);

#endif
