/*
 * Ids in the formats of the wire: u16, u24, u32, without gaps, at any alignment.
 */
#ifndef PTK_WIRE_IDS_H
#define PTK_WIRE_IDS_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"

/* ptk_wire_id_len: bytes of one id; 0 for formats without a fixed width (auto, rank_varint). */
static inline size_t ptk_wire_id_len(uint32_t id_format)
{
    switch (id_format) {
    case PTK_ID_FORMAT_U16:
        return 2;
    case PTK_ID_FORMAT_U24:
        return 3;
    case PTK_ID_FORMAT_U32:
        return 4;
    default:
        return 0;
    }
}

/* ptk_wire_id_format_auto: the narrowest format with fixed width for ids below `ids_end`. */
static inline uint32_t ptk_wire_id_format_auto(uint32_t ids_end)
{
    if (ids_end <= 1u << 16) {
        return PTK_ID_FORMAT_U16;
    }
    return ids_end <= 1u << 24 ? PTK_ID_FORMAT_U24 : PTK_ID_FORMAT_U32;
}

/*
 * ptk_wire_ids_build writes `count` ids in a format with fixed width, which is wide enough for
 * each, and returns the bytes written. `dst` has room for them and does not overlap the ids.
 */
size_t ptk_wire_ids_build(const uint32_t *ids, size_t count, uint32_t id_format, uint8_t *dst);

/* ptk_wire_ids_parse is the inverse: reads `count` ids of a format with fixed width. No overlap. */
void ptk_wire_ids_parse(const uint8_t *src, size_t count, uint32_t id_format, uint32_t *ids);

#endif
