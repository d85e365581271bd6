/* A guard that lets everybody in, for tests of what lies behind it. Included once a program. */
#ifndef OPEN_GUARD_H
#define OPEN_GUARD_H

#include "serve/ptk_guard.h"

static struct ptk_guard *open_guard(void)
{
    _Alignas(64) static uint8_t memory[256 * 1024];
    static struct ptk_guard_shared shared;
    const struct ptk_siphash_key master = {1, 2};
    const struct ptk_guard_limits limits = {.stranger_percent = 100, .cycles_per_us = 1000};
    PTK_ASSERT(ptk_guard_len(&limits) <= sizeof memory);
    ptk_guard_shared_init(&shared, master, 0);
    return ptk_guard_init(memory, &limits, &shared);
}

#endif
