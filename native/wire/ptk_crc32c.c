/* CRC32C with the instruction of SSE4.2. */
#include "wire/ptk_crc32c.h"

#include <nmmintrin.h>

uint32_t ptk_crc32c(const uint8_t *bytes, size_t len)
{
    uint64_t crc = 0xFFFFFFFFu;
    for (; len >= 8; bytes += 8, len -= 8) {
        crc = _mm_crc32_u64(crc, ptk_load_u64(bytes));
    }
    uint32_t tail = (uint32_t)crc;
    for (; len > 0; bytes++, len--) {
        tail = _mm_crc32_u8(tail, *bytes);
    }
    return ~tail;
}
