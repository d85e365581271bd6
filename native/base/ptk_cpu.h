/*
 * Cores and time: the list of cores, pinning, the cycle counter and its rate.
 */
#ifndef PTK_CPU_H
#define PTK_CPU_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"

/* Cores that one process may name: more than any machine we serve has pollers. */
#define PTK_CPU_LIST_CAP 256u

/* A list of numbers as operators write them: cores, queues. In the order written, no duplicates. */
struct ptk_cpu_list {
    uint32_t count;
    uint32_t ids[PTK_CPU_LIST_CAP];
};

/* ptk_cpu_list_parse reads "2-5,8" into `list`. An empty text, a reversed range, a duplicate and a
 * number above 65535 are refused with -EINVAL; `what` names the option in the sentence. */
int ptk_cpu_list_parse(const char *text, const char *what, struct ptk_cpu_list *list,
                       struct ptk_err *err);

/* Refuses with -EINVAL a core that is offline or outside this process's allowed set. */
int ptk_cpu_list_verify(const struct ptk_cpu_list *list, struct ptk_err *err);

/* True when every core of the list is isolated from the scheduler (isolcpus or a cpuset partition).
 */
bool ptk_cpu_list_isolated(const struct ptk_cpu_list *list);

/* Pins the calling thread. Returns 0 or a negative errno. */
int ptk_cpu_pin(uint32_t cpu_id);

/* The time-stamp counter. Not a barrier: a few cycles of uncertainty do not matter to us. */
static inline uint64_t ptk_cycles(void)
{
    return __builtin_ia32_rdtsc();
}

/* Tells the core that this is a waiting loop. */
static inline void ptk_cpu_relax(void)
{
    __builtin_ia32_pause();
}

static inline void ptk_prefetch(const void *address)
{
    __builtin_prefetch(address, 0, 3);
}

/* ptk_cpu_cycles_per_us measures the counter against CLOCK_MONOTONIC for about 20 ms. Refuses with
 * -ENOTSUP a machine whose counter does not run at a constant rate. */
int ptk_cpu_cycles_per_us(uint32_t *cycles_per_us, struct ptk_err *err);

/* CLOCK_MONOTONIC in nanoseconds. Set-up and housekeeping only. */
uint64_t ptk_clock_ns(void);

#endif
