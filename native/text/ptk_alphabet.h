/*
 * The byte-level alphabet: every byte as one printable character.
 *
 * Bytes 21-7E, A1-AC and AE-FF are the characters with their number; the other 68 bytes follow
 * in their order as U+0100 to U+0143.
 */
#ifndef PTK_ALPHABET_H
#define PTK_ALPHABET_H

#include "base/ptk_base.h"

/* ptk_alphabet_code_point returns the character of a byte; it is one or two bytes of UTF-8. */
static inline uint32_t ptk_alphabet_code_point(uint8_t byte)
{
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121u + (byte - 0x7Fu);
    }
    return byte == 0xAD ? 0x143u : byte;
}

/* ptk_alphabet_byte returns the byte of a character, or -1 when it is not in the alphabet. */
static inline int ptk_alphabet_byte(uint32_t code_point)
{
    if (code_point >= 0x100) {
        return code_point <= 0x120   ? (int)code_point - 0x100
               : code_point <= 0x142 ? (int)code_point - 0x121 + 0x7F
               : code_point == 0x143 ? 0xAD
                                     : -1;
    }
    return ptk_alphabet_code_point((uint8_t)code_point) == code_point ? (int)code_point : -1;
}

#endif
