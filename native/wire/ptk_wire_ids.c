/* Loops that the compiler vectorises (u16, u32) or that move four bytes at a time (u24). */
#include "wire/ptk_wire_ids.h"

static void build_u24(const uint32_t *ids, size_t count, uint8_t *dst)
{
    /* Four bytes are stored for every id but the last; the next id overwrites the fourth. */
    size_t idx = 0;
    for (; idx + 1 < count; idx++) {
        ptk_store_u32(dst + 3 * idx, ids[idx]);
    }
    if (idx < count) {
        ptk_store_u16(dst + 3 * idx, (uint16_t)ids[idx]);
        dst[3 * idx + 2] = (uint8_t)(ids[idx] >> 16);
    }
}

static void parse_u24(const uint8_t *src, size_t count, uint32_t *ids)
{
    size_t idx = 0;
    for (; idx + 1 < count; idx++) {
        ids[idx] = ptk_load_u32(src + 3 * idx) & 0xFFFFFFu;
    }
    if (idx < count) {
        ids[idx] = (uint32_t)ptk_load_u16(src + 3 * idx) | (uint32_t)src[3 * idx + 2] << 16;
    }
}

size_t ptk_wire_ids_build(const uint32_t *restrict ids, size_t count, uint32_t id_format,
                          uint8_t *restrict dst)
{
    switch (id_format) {
    case PTK_ID_FORMAT_U16:
        for (size_t idx = 0; idx < count; idx++) {
            PTK_DCHECK(ids[idx] <= 0xFFFFu);
            ptk_store_u16(dst + 2 * idx, (uint16_t)ids[idx]);
        }
        break;
    case PTK_ID_FORMAT_U24:
        build_u24(ids, count, dst);
        break;
    default:
        PTK_ASSERT(id_format == PTK_ID_FORMAT_U32);
        memcpy(dst, ids, 4 * count);
    }
    return ptk_wire_id_len(id_format) * count;
}

void ptk_wire_ids_parse(const uint8_t *restrict src, size_t count, uint32_t id_format,
                        uint32_t *restrict ids)
{
    switch (id_format) {
    case PTK_ID_FORMAT_U16:
        for (size_t idx = 0; idx < count; idx++) {
            ids[idx] = ptk_load_u16(src + 2 * idx);
        }
        break;
    case PTK_ID_FORMAT_U24:
        parse_u24(src, count, ids);
        break;
    default:
        PTK_ASSERT(id_format == PTK_ID_FORMAT_U32);
        memcpy(ids, src, 4 * count);
    }
}
