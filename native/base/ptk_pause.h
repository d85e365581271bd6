/*
 * Pauses inside long work: a loop that may run for milliseconds says every few microseconds that it
 * may be interrupted here, and when a slice of time is over, whoever started the work gets a turn.
 *
 *     ptk_pause_begin(&pause)              the worker, around a long message
 *         ... ptk_pause_point() ...        loops over a text, a piece, a list of ids
 *             pause.run(pause.self)        answers what waits, then the loop goes on
 *     ptk_pause_end(&pause)
 *
 * The alternatives are threads (locks, and a core that is not there) and resumable steps (every
 * loop of every algorithm twice). A pause is an ordinary call: what it begins, it ends before it
 * returns.
 *
 * Threads: the active pause belongs to its thread.
 */
#ifndef PTK_PAUSE_H
#define PTK_PAUSE_H

#include "base/ptk_base.h"
#include "base/ptk_cpu.h"

struct ptk_pause {
    /* Set by the caller. */
    void (*run)(void *self);
    void *self;
    uint64_t slice_cycles;
    /* Kept here. */
    struct ptk_pause *outer; /* active before this one */
    uint64_t resumed_at;     /* cycles: when the slice in work began */
    uint64_t due;            /* cycles: when it is over */
    uint64_t slices;         /* pauses made */
    uint64_t longest;        /* cycles of the longest slice */
    uint64_t worked;         /* cycles of all slices that are over: the work without the pauses */
};

/* The pause of this thread; NULL when nothing long is in work. */
extern _Thread_local struct ptk_pause *ptk_pause_active __attribute__((tls_model("initial-exec")));

/* ptk_pause_begin makes `pause` the thread's, until ptk_pause_end; they nest. */
void ptk_pause_begin(struct ptk_pause *pause);
void ptk_pause_end(struct ptk_pause *pause);

/* The slice is over: see ptk_pause_point. While it runs, no pause is active. */
void ptk_pause_run(struct ptk_pause *pause);

/*
 * ptk_pause_point gives the turn if a slice is over. Cost: a load and a branch when nothing long is
 * in work, the cycle counter otherwise. Whatever the caller holds must stay valid: scratch of its
 * own desk does, entries of the piece cache do not.
 */
static inline void ptk_pause_point(void)
{
    struct ptk_pause *pause = ptk_pause_active;
    if (PTK_UNLIKELY(pause != NULL) && PTK_UNLIKELY(ptk_cycles() >= pause->due)) {
        ptk_pause_run(pause);
    }
}

/* The same for loops with short turns: looks at every so many. */
#define PTK_PAUSE_TURNS 64u

static inline void ptk_pause_turn(uint32_t *turns)
{
    if (PTK_UNLIKELY((++*turns & (PTK_PAUSE_TURNS - 1)) == 0)) {
        ptk_pause_point();
    }
}

/* Bytes of a text between two looks of a loop that goes through it character by character. */
#define PTK_PAUSE_LEN ((size_t)512)

/* The same where several bytes are moved or checked at a time: a microsecond or two. */
#define PTK_PAUSE_WIDE_LEN ((size_t)16384)

/* The same for loops whose turns may be long: looks when `pos` is PTK_PAUSE_LEN away from `*last`,
 * in either direction, and moves that. */
static inline void ptk_pause_pos(size_t *last, size_t pos)
{
    if (PTK_UNLIKELY(pos - *last + PTK_PAUSE_LEN >= 2 * PTK_PAUSE_LEN)) {
        *last = pos;
        ptk_pause_point();
    }
}

/* memcpy, memcmp and memset with pauses; the first is for what does not overlap, or moves down. */
static inline void ptk_pause_copy(void *dst, const void *src, size_t len)
{
    uint8_t *to = dst;
    const uint8_t *from = src;
    for (; PTK_UNLIKELY(len > PTK_PAUSE_WIDE_LEN); len -= PTK_PAUSE_WIDE_LEN) {
        memmove(to, from, PTK_PAUSE_WIDE_LEN);
        to += PTK_PAUSE_WIDE_LEN;
        from += PTK_PAUSE_WIDE_LEN;
        ptk_pause_point();
    }
    memmove(to, from, len);
}

static inline bool ptk_pause_equal(const void *a, const void *b, size_t len)
{
    const uint8_t *left = a;
    const uint8_t *right = b;
    for (; PTK_UNLIKELY(len > PTK_PAUSE_WIDE_LEN); len -= PTK_PAUSE_WIDE_LEN) {
        if (memcmp(left, right, PTK_PAUSE_WIDE_LEN) != 0) {
            return false;
        }
        left += PTK_PAUSE_WIDE_LEN;
        right += PTK_PAUSE_WIDE_LEN;
        ptk_pause_point();
    }
    return memcmp(left, right, len) == 0;
}

static inline void ptk_pause_fill(void *dst, uint8_t value, size_t len)
{
    uint8_t *to = dst;
    for (; PTK_UNLIKELY(len > PTK_PAUSE_WIDE_LEN); len -= PTK_PAUSE_WIDE_LEN) {
        memset(to, value, PTK_PAUSE_WIDE_LEN);
        to += PTK_PAUSE_WIDE_LEN;
        ptk_pause_point();
    }
    memset(to, value, len);
}

#endif
