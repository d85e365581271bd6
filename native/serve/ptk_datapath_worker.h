/*
 * What every thread that answers packets has: an engine, counters, its place in the statistics
 * segment, and the word by which the main thread tells it to stop. The poller and the socket path
 * are built on it.
 *
 * A worker can be held: it stands still between two loops, and everything it works on may be read
 * or given to another one, in this process or in the next. So a running server is taken over.
 *
 * Threads: a worker belongs to its thread. The main thread writes `hold`, `stop` and `deadline_ns`
 * before it, and reads `held` and `stopped`; everything others may read is published in `stats`.
 * While a worker is held the main thread may write to it.
 */
#ifndef PTK_DATAPATH_WORKER_H
#define PTK_DATAPATH_WORKER_H

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "base/ptk_stats.h"
#include "gen/ptk_metrics_gen.h"
#include "serve/ptk_bulk.h"
#include "serve/ptk_engine.h"
#include "serve/ptk_guard.h"

/* Counters are published this often while there is work, and before every sleep. */
#define PTK_WORKER_PUBLISH_US 1000u

/*
 * An adaptive poller spins this long after its last packet before it sleeps. A wake-up by the
 * scheduler costs 3 to 50 us; a longer spin would burn a shared core for little, a shorter one
 * would sleep between the packets of one client.
 */
#define PTK_WORKER_SPIN_ADAPTIVE_US 50u

/* Never sleep. */
#define PTK_WORKER_SPIN_FOREVER_US UINT32_MAX

/* A sleeping worker looks up this often, so that it takes over a changed model and sees a stop. */
#define PTK_WORKER_SLEEP_MS 10

/* And this often when it may soon be asked to stand still: what comes meanwhile waits for it. */
#define PTK_WORKER_SLEEP_ALERT_MS 1

/*
 * A long message is worked on for this long before other packets get their turn. A pause costs a
 * look at the rings (about 100 ns); a small request waits for two slices at most. The rate of the
 * slowest tokenizers (some 50 MB/s) makes it about 2 KiB of text, that of the fastest 16 KiB.
 */
#define PTK_WORKER_SLICE_US 40u

#define PTK_WORKER_NOT_PINNED 0xFFFFFFFFu
#define PTK_WORKER_NO_QUEUE   0xFFFFFFFFu

/* What the main thread asks of a worker beside its work. */
enum ptk_worker_hold {
    PTK_WORKER_HOLD_NO = 0,
    PTK_WORKER_HOLD_ALERT, /* go on, but look up often */
    PTK_WORKER_HOLD_STILL, /* stand still between two loops */
};

/* What a worker asks of whoever moves its packets: the poller or the socket path. */
struct ptk_worker_driver {
    void *self;
    void (*serve)(void *self); /* receive and answer what waits, as one loop does */
    void (*push)(void *self);  /* send the burst of worker.config.bulk */
};

struct ptk_worker_config {
    enum ptk_worker_kind kind;
    uint32_t cpu_id; /* PTK_WORKER_NOT_PINNED: anywhere */
    uint32_t queue;  /* PTK_WORKER_NO_QUEUE for a socket worker */
    uint32_t cycles_per_us;
    uint32_t spin_us;  /* without packets for this long, sleep */
    uint32_t quiet_us; /* told to stop and without packets for this long, stop */
    struct ptk_engine *engine;
    struct ptk_bulk *bulk;          /* long messages */
    struct ptk_guard *guard;        /* who may have what */
    struct ptk_stats_worker *stats; /* in the segment; zeroed */
    bool starts_held;               /* before its first loop */
    struct ptk_worker_driver driver;
};

struct ptk_worker {
    struct ptk_worker_config config;
    uint64_t counters[PTK_WORKER_COUNTER_COUNT];
    uint64_t gauges[PTK_WORKER_GAUGE_COUNTER_COUNT];
    uint64_t latency[PTK_STATS_LATENCY_BUCKETS];
    uint64_t epoch;
    uint64_t publish_at; /* cycles */
    uint64_t last_busy;  /* cycles of the last loop with packets */

    /* Written by the main thread. */
    PTK_ALIGNED_LINE _Atomic uint32_t stop;
    _Atomic uint64_t deadline_ns; /* CLOCK_MONOTONIC: stop by then, whatever is left */
    _Atomic uint32_t hold;        /* enum ptk_worker_hold; a futex */

    /* Written by the worker. */
    PTK_ALIGNED_LINE _Atomic uint32_t entered;
    _Atomic uint32_t held;
    _Atomic uint32_t stopped;
};

/* What the loop of a worker does next. */
enum ptk_worker_turn {
    PTK_WORKER_TURN_GO = 0, /* the next loop at once */
    PTK_WORKER_TURN_SLEEP,  /* wait for a packet, at most PTK_WORKER_SLEEP_MS */
    PTK_WORKER_TURN_STOP,   /* told to stop, and quiet or out of time: leave the loop */
};

void ptk_worker_init(struct ptk_worker *worker, const struct ptk_worker_config *config);

/* First thing in the thread: pins it, names it, puts its identity into the segment, and takes away
 * every system call but those of its loop. */
void ptk_worker_enter(struct ptk_worker *worker);

/* Last thing in the thread: publishes and says so. */
void ptk_worker_leave(struct ptk_worker *worker);

/* The main thread's side: asks it of the worker, waking it where it is held. */
void ptk_worker_ask_hold(struct ptk_worker *worker, enum ptk_worker_hold hold);

/* Publishes and waits until it is not held any more. False: it was told to stop meanwhile. */
bool ptk_worker_be_held(struct ptk_worker *worker);

/* The place between two loops, nothing half done, where a worker may be held. Returns false when it
 * must leave without another loop. One load when nobody asks. */
static inline bool ptk_worker_may_go_on(struct ptk_worker *worker)
{
    const uint32_t hold = atomic_load_explicit(&worker->hold, memory_order_acquire);
    return PTK_LIKELY(hold != PTK_WORKER_HOLD_STILL) || ptk_worker_be_held(worker);
}

/* How long a worker without packets may sleep. */
static inline int ptk_worker_sleep_ms(const struct ptk_worker *worker)
{
    const uint32_t hold = atomic_load_explicit(&worker->hold, memory_order_relaxed);
    return hold == PTK_WORKER_HOLD_NO ? PTK_WORKER_SLEEP_MS : PTK_WORKER_SLEEP_ALERT_MS;
}

/* The beginning of a loop: counts it and takes over changed models, unless one is in use by a long
 * message that is suspended. */
static inline void ptk_worker_loop_begin(struct ptk_worker *worker)
{
    worker->counters[PTK_WORKER_LOOPS]++;
    ptk_guard_refresh(worker->config.guard);
    if (PTK_LIKELY(ptk_bulk_depth(worker->config.bulk) == 0)) {
        worker->epoch++;
        ptk_engine_refresh(worker->config.engine);
    }
}

/*
 * ptk_worker_loop_end closes a loop that handled `packets` packets and began at `start` cycles,
 * publishes if it is time, and says what comes next. `pending`: replies are still on their way, so
 * a stop must wait.
 */
enum ptk_worker_turn ptk_worker_loop_end(struct ptk_worker *worker, uint64_t start,
                                         uint32_t packets, bool pending);

/* Counts `count` replies that took from `start` to `now` cycles. */
static inline void ptk_worker_latency(struct ptk_worker *worker, uint64_t start, uint64_t now,
                                      uint32_t count)
{
    const uint64_t elapsed_ns = (now - start) * 1000u / worker->config.cycles_per_us;
    worker->counters[PTK_WORKER_LATENCY_NS] += elapsed_ns * count;
    worker->latency[ptk_stats_latency_bucket(elapsed_ns, PTK_STATS_LATENCY_BUCKETS)] += count;
}

/*
 * ptk_worker_handle asks the guard, gives one datagram to the engine and counts it. As
 * ptk_engine_handle, but that a stranger gets no reply that is longer than its request.
 */
size_t ptk_worker_handle(struct ptk_worker *worker, const struct ptk_guard_source *source,
                         const uint8_t *datagram, size_t len, uint8_t *reply, size_t reply_cap);

/* ptk_worker_receive asks the guard and gives a datagram that ptk_wire_is_segmented to the bulk,
 * those of strangers not. As ptk_bulk_receive. */
size_t ptk_worker_receive(struct ptk_worker *worker, const struct ptk_bulk_packet *packet,
                          uint8_t *reply);

/*
 * ptk_worker_work works on one long message, if one waits, and sends the beginning of its reply.
 * While it works, driver.serve runs every PTK_WORKER_SLICE_US. Called at the end of a loop, where
 * no packet is held. Returns whether there was one.
 */
bool ptk_worker_work(struct ptk_worker *worker);

/* Lets the bulk go on counting where worker->counters stand. Before the first datagram. */
void ptk_worker_bulk_resume(struct ptk_worker *worker);

/* Copies everything into the segment. */
void ptk_worker_publish(struct ptk_worker *worker);

#endif
