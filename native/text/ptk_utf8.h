/*
 * UTF-8: the check at the door, decoding of text that was checked, and replacement where it was
 * not.
 *
 * Valid means RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. Functions that
 * say "checked text" trust this and read no byte that the text's own lead bytes do not announce.
 */
#ifndef PTK_UTF8_H
#define PTK_UTF8_H

#include "base/ptk_base.h"

/* ptk_utf8_valid says whether all of `bytes[0..len)` is valid. Reads nothing beyond `len`. */
bool ptk_utf8_valid(const uint8_t *bytes, size_t len);

/* ptk_utf8_count returns the number of code points of checked text. */
size_t ptk_utf8_count(const uint8_t *bytes, size_t len);

/* ptk_utf8_ascii_len returns the length of the run of ASCII that `bytes[0..len)` begins with. */
size_t ptk_utf8_ascii_len(const uint8_t *bytes, size_t len);

/* ptk_utf8_top returns the greatest byte, 0 of none: below 0x80 all is ASCII; in checked text below
 * 0xC4 every character fits a byte, below 0xF0 two. */
uint8_t ptk_utf8_top(const uint8_t *bytes, size_t len);

/*
 * ptk_utf8_char_len says how the non-empty `bytes[0..len)` begin: a positive number is the length
 * of a valid character; 0 means that more bytes could still make one; a negative number is minus
 * the length of the maximal subpart, which one U+FFFD replaces.
 */
int ptk_utf8_char_len(const uint8_t *bytes, size_t len);

/*
 * ptk_utf8_replace copies `bytes[0..len)` to `dst` with U+FFFD for each maximal subpart of an
 * invalid sequence, an unfinished one at the end included, and writes the result's length. Returns
 * false when `cap` is too small; contents of `dst` are then unspecified. `dst` of 3 * `len` bytes
 * always suffices.
 */
bool ptk_utf8_replace(const uint8_t *bytes, size_t len, uint8_t *dst, size_t cap, size_t *dst_len);

/* ptk_utf8_lead_len returns the length that the lead byte of a checked character announces. */
static inline uint32_t ptk_utf8_lead_len(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* ptk_utf8_decode returns the first code point of checked, non-empty text and its length. */
static inline uint32_t ptk_utf8_decode(const uint8_t *bytes, uint32_t *len)
{
    uint32_t lead = bytes[0];
    if (lead < 0x80) {
        *len = 1;
        return lead;
    }
    if (lead < 0xE0) {
        *len = 2;
        return (lead & 0x1F) << 6 | (bytes[1] & 0x3Fu);
    }
    if (lead < 0xF0) {
        *len = 3;
        return (lead & 0x0F) << 12 | (bytes[1] & 0x3Fu) << 6 | (bytes[2] & 0x3Fu);
    }
    *len = 4;
    return (lead & 0x07) << 18 | (bytes[1] & 0x3Fu) << 12 | (bytes[2] & 0x3Fu) << 6 |
           (bytes[3] & 0x3Fu);
}

/* ptk_utf8_code_point_len returns the length of the encoding of a code point. */
static inline uint32_t ptk_utf8_code_point_len(uint32_t code_point)
{
    return code_point < 0x80 ? 1 : code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
}

/* ptk_utf8_encode writes a code point (no surrogate) to `dst`, which has room for 4 bytes, and
 * returns its length. */
static inline uint32_t ptk_utf8_encode(uint32_t code_point, uint8_t *dst)
{
    if (code_point < 0x80) {
        dst[0] = (uint8_t)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        dst[0] = (uint8_t)(0xC0 | code_point >> 6);
        dst[1] = (uint8_t)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        dst[0] = (uint8_t)(0xE0 | code_point >> 12);
        dst[1] = (uint8_t)(0x80 | (code_point >> 6 & 0x3F));
        dst[2] = (uint8_t)(0x80 | (code_point & 0x3F));
        return 3;
    }
    dst[0] = (uint8_t)(0xF0 | code_point >> 18);
    dst[1] = (uint8_t)(0x80 | (code_point >> 12 & 0x3F));
    dst[2] = (uint8_t)(0x80 | (code_point >> 6 & 0x3F));
    dst[3] = (uint8_t)(0x80 | (code_point & 0x3F));
    return 4;
}

/* The ways to do the first two, for the choice at start and for tests; the scalar ones define them.
 */
bool ptk_utf8_valid_scalar(const uint8_t *bytes, size_t len);
bool ptk_utf8_valid_avx2(const uint8_t *bytes, size_t len);
size_t ptk_utf8_count_scalar(const uint8_t *bytes, size_t len);
size_t ptk_utf8_count_avx2(const uint8_t *bytes, size_t len);

/* ptk_is_sign: whether a byte is a sign of ASCII: neither letter nor digit, but visible. */
static inline bool ptk_is_sign(uint8_t byte)
{
    const uint8_t lower = byte | 0x20;
    return byte > ' ' && byte < 0x7f && !(lower >= 'a' && lower <= 'z') &&
           !(byte >= '0' && byte <= '9');
}

#endif
