/* First fit over the bytes that say which units are used. */
#include "serve/ptk_arena.h"

bool ptk_arena_take(struct ptk_arena *arena, size_t len, struct ptk_region *region)
{
    const size_t wanted = (len + PTK_ARENA_UNIT_LEN - 1) / PTK_ARENA_UNIT_LEN;
    PTK_ASSERT(wanted > 0);
    *region = (struct ptk_region){.first = PTK_ARENA_NONE};
    if (wanted > arena->unit_count - arena->used_count) {
        return false;
    }
    uint32_t run = 0;
    for (uint32_t i = 0; i < arena->unit_count; i++) {
        run = arena->used[i] != 0 ? 0 : run + 1;
        if (run == wanted) {
            region->first = i + 1 - run;
            region->count = run;
            memset(arena->used + region->first, 1, run);
            arena->used_count += run;
            return true;
        }
    }
    return false;
}

void ptk_arena_give(struct ptk_arena *arena, struct ptk_region *region)
{
    if (region->first == PTK_ARENA_NONE) {
        return;
    }
    for (uint32_t i = region->first; i < region->first + region->count; i++) {
        PTK_ASSERT(arena->used[i] == 1);
    }
    memset(arena->used + region->first, 0, region->count);
    arena->used_count -= region->count;
    *region = (struct ptk_region){.first = PTK_ARENA_NONE};
}
