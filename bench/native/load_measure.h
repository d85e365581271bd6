/*
 * What every load generator shares: the clock, a latency histogram, and a text cut into requests.
 *
 * Two generators that use this send the same slices of the same file in the same order and count
 * latency in the same way, so that their lines can be compared.
 */
#ifndef PTK_BENCH_LOAD_MEASURE_H
#define PTK_BENCH_LOAD_MEASURE_H

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/ptk_base.h"

#define LOAD_SUB_BUCKETS  64u
#define LOAD_BUCKET_COUNT (64u * LOAD_SUB_BUCKETS)
#define LOAD_TEXT_LEN_MAX ((size_t)1 << 26)

/* Log-linear buckets: 64 per power of two, so that a quantile is within 1.6 %. */
struct load_histogram {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[LOAD_BUCKET_COUNT];
};

/* A file in memory and where the next request begins. */
struct load_text {
    uint8_t *bytes;
    size_t len;
    size_t pos;
};

struct load_slice {
    const uint8_t *bytes;
    size_t len;
};

static inline uint64_t load_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* Cannot fail with this clock. */
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

_Noreturn static inline void load_fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static inline size_t load_bucket_of(uint64_t ns)
{
    if (ns < LOAD_SUB_BUCKETS) {
        return (size_t)ns;
    }
    unsigned exponent = 63u - (unsigned)__builtin_clzll(ns);
    unsigned shift = exponent - 6u;
    size_t idx = (size_t)(shift + 1u) * LOAD_SUB_BUCKETS +
                 (size_t)((ns >> shift) & (LOAD_SUB_BUCKETS - 1u));
    return idx < LOAD_BUCKET_COUNT ? idx : LOAD_BUCKET_COUNT - 1u;
}

/* The smallest latency that falls into bucket `idx`. */
static inline uint64_t load_bucket_ns(size_t idx)
{
    if (idx < LOAD_SUB_BUCKETS) {
        return idx;
    }
    unsigned shift = (unsigned)(idx / LOAD_SUB_BUCKETS) - 1u;
    return ((uint64_t)LOAD_SUB_BUCKETS + idx % LOAD_SUB_BUCKETS) << shift;
}

static inline void load_record(struct load_histogram *histogram, uint64_t latency_ns)
{
    histogram->count++;
    histogram->buckets[load_bucket_of(latency_ns)]++;
    histogram->max_ns = latency_ns > histogram->max_ns ? latency_ns : histogram->max_ns;
}

static inline uint64_t load_quantile_ns(const struct load_histogram *histogram, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)histogram->count);
    uint64_t seen = 0;
    for (size_t i = 0; i < LOAD_BUCKET_COUNT; i++) {
        seen += histogram->buckets[i];
        if (seen > wanted) {
            return load_bucket_ns(i);
        }
    }
    return histogram->max_ns;
}

/* Reads at most LOAD_TEXT_LEN_MAX bytes; ends the program when there is nothing to read. */
static inline struct load_text load_read_text(const char *path)
{
    struct load_text text = {NULL, 0, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        load_fail(path);
    }
    text.bytes = malloc(LOAD_TEXT_LEN_MAX);
    if (text.bytes == NULL) {
        load_fail("memory");
    }
    text.len = fread(text.bytes, 1, LOAD_TEXT_LEN_MAX, file);
    (void)fclose(file); /* Read only. */
    if (text.len == 0) {
        fprintf(stderr, "load: %s is empty\n", path);
        exit(1);
    }
    return text;
}

/* The next slice of at most `len` bytes, cut at a character boundary; wraps at the end. */
static inline struct load_slice load_next_slice(struct load_text *text, size_t len)
{
    if (text->pos + len > text->len) {
        text->pos = 0;
    }
    size_t begin = text->pos;
    size_t end = ptk_min_size(begin + len, text->len);
    while (end > begin && end < text->len && (text->bytes[end] & 0xC0u) == 0x80u) {
        end--;
    }
    text->pos = end;
    return (struct load_slice){text->bytes + begin, end - begin};
}

/* Keeps the calling thread on `core`. */
static inline void load_pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        load_fail("--core");
    }
}

#endif
