/*
 * CRC32C (Castagnoli), the checksum of messages whose header has the flag crc.
 *
 * The baseline of this build has the CRC32 instruction, so there is no other variant; the bitwise
 * definition it is tested against stands in the test.
 */
#ifndef PTK_CRC32C_H
#define PTK_CRC32C_H

#include "base/ptk_base.h"

/* ptk_crc32c of `len` bytes; of no bytes it is 0. Cost: 8 bytes in 3 cycles. */
uint32_t ptk_crc32c(const uint8_t *bytes, size_t len);

/*
 * ptk_crc32c_extend: the checksum of bytes whose beginning has the checksum `crc`, by their next
 * `len` bytes; with crc 0 these are the first ones.
 */
uint32_t ptk_crc32c_extend(uint32_t crc, const uint8_t *bytes, size_t len);

#endif
