/*
 * Words that one thread writes and others read: counters, gauges, states.
 *
 * The writer counts in plain memory of its own and publishes now and then; a reader sees each word
 * whole. Relaxed order is enough: no word says anything about another one.
 */
#ifndef PTK_STATS_H
#define PTK_STATS_H

#include "base/ptk_base.h"

static inline void ptk_stats_store(uint64_t *shared, uint64_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELAXED);
}

static inline uint64_t ptk_stats_load(const uint64_t *shared)
{
    return __atomic_load_n(shared, __ATOMIC_RELAXED);
}

/* Publishes `count` words. Cost: `count` stores; meant for housekeeping, about every millisecond.
 */
static inline void ptk_stats_publish(uint64_t *shared, const uint64_t *own, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        __atomic_store_n(&shared[i], own[i], __ATOMIC_RELAXED);
    }
}

/*
 * ptk_stats_latency_bucket maps a time in nanoseconds to its bucket: i for times in
 * (2^(i-1), 2^i] microseconds, bucket_count - 1 for everything longer than the bounds.
 */
static inline uint32_t ptk_stats_latency_bucket(uint64_t elapsed_ns, uint32_t bucket_count)
{
    if (elapsed_ns <= 1000) {
        return 0;
    }
    const uint64_t above = (elapsed_ns - 1) / 1000; /* >= 1; 2^i us exactly still belongs to i */
    const uint32_t bucket = 64u - (uint32_t)__builtin_clzll(above);
    return bucket < bucket_count ? bucket : bucket_count - 1;
}

#endif
