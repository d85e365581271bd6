/*
 * Integer rules, assertions and byte access that every other file uses.
 *
 * Linux on x86-64 only: little-endian, unaligned loads allowed through memcpy.
 */
#ifndef PTK_BASE_H
#define PTK_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__x86_64__) || !defined(__linux__)
#error "pintok runs on Linux on x86-64"
#endif

#define PTK_CACHE_LINE 64u
#define PTK_ALIGNED_LINE _Alignas(PTK_CACHE_LINE)
#define PTK_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define PTK_LIKELY(x) __builtin_expect(!!(x), 1)
#define PTK_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Prints file, line and expression to standard error and aborts. Never returns. */
_Noreturn void ptk_assert_failed(const char *file, int line, const char *expression);

/* A statement that is proved by the code around it; always compiled in. */
#define PTK_ASSERT(x) (PTK_LIKELY(x) ? (void)0 : ptk_assert_failed(__FILE__, __LINE__, #x))

/* The same for checks that cost too much for a release build. */
#ifdef PTK_DEBUG
#define PTK_DCHECK(x) PTK_ASSERT(x)
#else
#define PTK_DCHECK(x) ((void)0)
#endif

static inline size_t ptk_min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t ptk_max_size(size_t a, size_t b) { return a > b ? a : b; }

/* Rounds up to a power of two `align`. */
static inline size_t ptk_align_up(size_t value, size_t align)
{
    return (value + align - 1) & ~(align - 1);
}

static inline uint16_t ptk_load_u16(const void *src)
{
    uint16_t value;
    memcpy(&value, src, sizeof value);
    return value;
}

static inline uint32_t ptk_load_u32(const void *src)
{
    uint32_t value;
    memcpy(&value, src, sizeof value);
    return value;
}

static inline uint64_t ptk_load_u64(const void *src)
{
    uint64_t value;
    memcpy(&value, src, sizeof value);
    return value;
}

static inline void ptk_store_u16(void *dst, uint16_t value) { memcpy(dst, &value, sizeof value); }
static inline void ptk_store_u32(void *dst, uint32_t value) { memcpy(dst, &value, sizeof value); }
static inline void ptk_store_u64(void *dst, uint64_t value) { memcpy(dst, &value, sizeof value); }

#endif
