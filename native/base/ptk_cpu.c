/* Core lists, pinning and the rate of the cycle counter. */
#include "base/ptk_cpu.h"

#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ID_MAX 65535u

static int list_add(struct ptk_cpu_list *list, uint32_t id, const char *what, struct ptk_err *err)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->ids[i] == id) {
            return ptk_err_set(err, -EINVAL, "%s: %u is named twice", what, id);
        }
    }
    if (list->count == PTK_CPU_LIST_CAP) {
        return ptk_err_set(err, -EINVAL, "%s: more than %u numbers", what, PTK_CPU_LIST_CAP);
    }
    list->ids[list->count++] = id;
    return 0;
}

/* Reads a decimal number at `*cursor`; false when there is none or it is too large. */
static bool number(const char **cursor, uint32_t *value)
{
    if (**cursor < '0' || **cursor > '9') {
        return false;
    }
    char *end = NULL;
    const unsigned long parsed = strtoul(*cursor, &end, 10);
    *cursor = end;
    *value = (uint32_t)parsed;
    return parsed <= ID_MAX;
}

int ptk_cpu_list_parse(const char *text, const char *what, struct ptk_cpu_list *list,
                       struct ptk_err *err)
{
    memset(list, 0, sizeof *list);
    for (const char *cursor = text;;) {
        uint32_t first = 0;
        if (!number(&cursor, &first)) {
            break;
        }
        uint32_t last = first;
        if (*cursor == '-') {
            cursor++;
            if (!number(&cursor, &last) || last < first) {
                break;
            }
        }
        for (uint32_t id = first; id <= last; id++) {
            const int code = list_add(list, id, what, err);
            if (code != 0) {
                return code;
            }
        }
        if (*cursor == '\0') {
            return 0;
        }
        if (*cursor != ',') {
            break;
        }
        cursor++;
    }
    return ptk_err_set(err, -EINVAL, "%s: \"%s\" is not a list of numbers such as 2-5,8", what,
                       text);
}

int ptk_cpu_list_verify(const struct ptk_cpu_list *list, struct ptk_err *err)
{
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        const int code = -errno;
        return ptk_err_set(err, code, "cores: the allowed set cannot be read: %s", strerror(-code));
    }
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->ids[i] >= CPU_SETSIZE || !CPU_ISSET(list->ids[i], &allowed)) {
            return ptk_err_set(err, -EINVAL,
                               "core %u: offline or not allowed for this process "
                               "(see Cpus_allowed_list in /proc/self/status)",
                               list->ids[i]);
        }
    }
    return 0;
}

bool ptk_cpu_list_isolated(const struct ptk_cpu_list *list)
{
    char text[4096] = "";
    FILE *file = fopen("/sys/devices/system/cpu/isolated", "re");
    if (file == NULL) {
        return false;
    }
    const bool read = fgets(text, sizeof text, file) != NULL;
    (void)fclose(file); /* Nothing was written. */
    text[strcspn(text, "\n")] = '\0';
    struct ptk_cpu_list isolated;
    if (!read || ptk_cpu_list_parse(text, "isolated", &isolated, NULL) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < list->count; i++) {
        bool found = false;
        for (uint32_t k = 0; k < isolated.count; k++) {
            found |= isolated.ids[k] == list->ids[i];
        }
        if (!found) {
            return false;
        }
    }
    return true;
}

int ptk_cpu_pin(uint32_t cpu_id)
{
    PTK_ASSERT(cpu_id < CPU_SETSIZE);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu_id, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0 ? 0 : -errno;
}

uint64_t ptk_clock_ns(void)
{
    struct timespec now;
    PTK_ASSERT(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int ptk_cpu_cycles_per_us(uint32_t *cycles_per_us, struct ptk_err *err)
{
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    /* CPUID 0x80000007, EDX bit 8: the counter runs at a constant rate in all states. */
    if (__get_cpuid(0x80000007u, &a, &b, &c, &d) == 0 || (d & (1u << 8)) == 0) {
        return ptk_err_set(err, -ENOTSUP,
                           "this processor's time-stamp counter does not run at a constant rate");
    }
    const uint64_t start_ns = ptk_clock_ns();
    const uint64_t start_cycles = ptk_cycles();
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    (void)nanosleep(&pause, NULL); /* Cut short by a signal, the measurement is only coarser. */
    const uint64_t cycles = ptk_cycles() - start_cycles;
    const uint64_t elapsed_ns = ptk_clock_ns() - start_ns;
    *cycles_per_us = (uint32_t)((cycles * 1000u + elapsed_ns / 2) / ptk_max_size(elapsed_ns, 1));
    PTK_ASSERT(*cycles_per_us > 0);
    return 0;
}
