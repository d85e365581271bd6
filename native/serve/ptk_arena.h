/*
 * A worker's memory for long messages: contiguous regions of whole units, first fit.
 *
 * Messages come and go once each, so a bit a unit and a scan for a gap cost nothing beside a
 * message's own bytes.
 */
#ifndef PTK_ARENA_H
#define PTK_ARENA_H

#include "base/ptk_base.h"

#define PTK_ARENA_UNIT_LEN 4096u
#define PTK_ARENA_NONE     UINT32_MAX

struct ptk_arena {
    uint8_t *base; /* unit_count * PTK_ARENA_UNIT_LEN bytes */
    uint8_t *used; /* one byte a unit: 0 or 1 */
    uint32_t unit_count;
    uint32_t used_count;
};

struct ptk_region {
    uint32_t first; /* unit; PTK_ARENA_NONE: no region */
    uint32_t count;
};

static inline uint8_t *ptk_arena_bytes(const struct ptk_arena *arena, struct ptk_region region)
{
    PTK_DCHECK(region.first != PTK_ARENA_NONE);
    return arena->base + (size_t)region.first * PTK_ARENA_UNIT_LEN;
}

/* ptk_arena_take finds a region of at least `len` bytes; false when no gap is long enough. */
bool ptk_arena_take(struct ptk_arena *arena, size_t len, struct ptk_region *region);

/* ptk_arena_give frees a region and clears it; nothing happens for one that is none. */
void ptk_arena_give(struct ptk_arena *arena, struct ptk_region *region);

#endif
