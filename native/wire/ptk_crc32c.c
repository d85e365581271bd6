/* CRC32C with the instruction of SSE4.2. */
#include "wire/ptk_crc32c.h"

#include <nmmintrin.h>

uint32_t ptk_crc32c(const uint8_t *bytes, size_t len)
{
    return ptk_crc32c_extend(0, bytes, len);
}

uint32_t ptk_crc32c_extend(uint32_t crc, const uint8_t *bytes, size_t len)
{
    uint64_t sum = (uint32_t)~crc;
    for (; len >= 8; bytes += 8, len -= 8) {
        sum = _mm_crc32_u64(sum, ptk_load_u64(bytes));
    }
    uint32_t tail = (uint32_t)sum;
    for (; len > 0; bytes++, len--) {
        tail = _mm_crc32_u8(tail, *bytes);
    }
    return ~tail;
}
