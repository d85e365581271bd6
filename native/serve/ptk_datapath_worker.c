/* The common part of pollers and socket workers. */
#include "serve/ptk_datapath_worker.h"

#include "base/ptk_sandbox.h"
#include "wire/ptk_wire_extensions.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert((int)PTK_WORKER_COUNTER_COUNT <= (int)PTK_STATS_COUNTER_CAP,
               "counters fit the segment");
_Static_assert((int)PTK_WORKER_GAUGE_COUNTER_COUNT <= (int)PTK_STATS_GAUGE_CAP, "gauges fit");
_Static_assert((int)PTK_VERDICT_VALUE_COUNT <= (int)PTK_STATS_VERDICT_CAP, "verdicts fit");
_Static_assert((int)PTK_WIRE_OP_VALUE_COUNT <= (int)PTK_STATS_OP_CAP, "operations fit");

void ptk_worker_init(struct ptk_worker *worker, const struct ptk_worker_config *config)
{
    memset(worker, 0, sizeof *worker);
    worker->config = *config;
    worker->gauges[PTK_WORKER_GAUGE_CYCLES_PER_US] = config->cycles_per_us;
    config->stats->kind = (uint32_t)config->kind;
    config->stats->cpu = config->cpu_id;
    config->stats->queue = config->queue;
    atomic_store_explicit(&worker->hold,
                          config->starts_held ? PTK_WORKER_HOLD_STILL : PTK_WORKER_HOLD_NO,
                          memory_order_relaxed);
}

void ptk_worker_enter(struct ptk_worker *worker)
{
    const struct ptk_worker_config *config = &worker->config;
    char name[16];
    if (config->kind == PTK_WORKER_KIND_POLLER) {
        (void)snprintf(name, sizeof name, "ptk-poll-%u", config->queue % 1000);
    } else {
        (void)snprintf(name, sizeof name, "ptk-socket");
    }
    (void)pthread_setname_np(pthread_self(), name); /* For top and perf only. */
    if (config->cpu_id != PTK_WORKER_NOT_PINNED) {
        PTK_ASSERT(ptk_cpu_pin(config->cpu_id) == 0); /* Verified at start: allowed and online. */
    }
    __atomic_store_n(&config->stats->thread_id, (uint32_t)gettid(), __ATOMIC_RELAXED);
    worker->gauges[PTK_WORKER_GAUGE_SANDBOXED] = ptk_sandbox_enter(PTK_SANDBOX_WORKER) == 0;
    worker->last_busy = ptk_cycles();
    worker->publish_at = worker->last_busy;
    atomic_store_explicit(&worker->entered, 1, memory_order_release);
}

void ptk_worker_ask_hold(struct ptk_worker *worker, enum ptk_worker_hold hold)
{
    atomic_store_explicit(&worker->hold, (uint32_t)hold, memory_order_release);
    (void)syscall(SYS_futex, &worker->hold, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

bool ptk_worker_be_held(struct ptk_worker *worker)
{
    ptk_worker_publish(worker);
    atomic_store_explicit(&worker->held, 1, memory_order_release);
    while (atomic_load_explicit(&worker->hold, memory_order_acquire) == PTK_WORKER_HOLD_STILL) {
        /* Returns at once where the word has changed meanwhile. */
        (void)syscall(SYS_futex, &worker->hold, FUTEX_WAIT_PRIVATE, PTK_WORKER_HOLD_STILL, NULL,
                      NULL, 0);
    }
    atomic_store_explicit(&worker->held, 0, memory_order_release);
    worker->last_busy = ptk_cycles();
    worker->publish_at = worker->last_busy;
    return atomic_load_explicit(&worker->stop, memory_order_acquire) == 0;
}

/* The counters bulk_ of a worker stand in the order of enum ptk_bulk_fate, in two runs. */
#define FATES_FIRST_COUNT ((size_t)PTK_BULK_EVICTED + 1)
#define FATES_REST_COUNT  ((size_t)PTK_BULK_FATE_COUNT - FATES_FIRST_COUNT)
_Static_assert(PTK_WORKER_BULK_EVICTED - PTK_WORKER_BULK_SEGMENTS ==
                   (int)PTK_BULK_EVICTED - (int)PTK_BULK_SEGMENTS,
               "fates and counters stand in the same order");
_Static_assert(PTK_WORKER_BULK_CANCELS - PTK_WORKER_BULK_CAPPED ==
                   (int)PTK_BULK_FATE_COUNT - 1 - (int)PTK_BULK_CAPPED,
               "and so does the second run");

void ptk_worker_bulk_resume(struct ptk_worker *worker)
{
    uint64_t fates[PTK_BULK_FATE_COUNT];
    memcpy(fates, &worker->counters[PTK_WORKER_BULK_SEGMENTS], FATES_FIRST_COUNT * sizeof *fates);
    memcpy(fates + FATES_FIRST_COUNT, &worker->counters[PTK_WORKER_BULK_CAPPED],
           FATES_REST_COUNT * sizeof *fates);
    ptk_bulk_fates_resume(worker->config.bulk, fates);
}

static void publish_bulk(struct ptk_worker *worker, uint64_t verdicts[PTK_VERDICT_VALUE_COUNT])
{
    const struct ptk_bulk_state *state = ptk_bulk_state(worker->config.bulk);
    memcpy(&worker->counters[PTK_WORKER_BULK_SEGMENTS], state->fates,
           FATES_FIRST_COUNT * sizeof *state->fates);
    memcpy(&worker->counters[PTK_WORKER_BULK_CAPPED], state->fates + FATES_FIRST_COUNT,
           FATES_REST_COUNT * sizeof *state->fates);
    worker->gauges[PTK_WORKER_GAUGE_BULK_SLOTS] = state->slots_used;
    worker->gauges[PTK_WORKER_GAUGE_ARENA_LEN] = state->arena_len;
    worker->gauges[PTK_WORKER_GAUGE_ARENA_USED_LEN] = state->arena_used_len;
    for (uint32_t i = 0; i < PTK_VERDICT_VALUE_COUNT; i++) {
        verdicts[i] += state->verdicts[i];
    }
}

static void publish_guard(struct ptk_worker *worker, uint64_t verdicts[PTK_VERDICT_VALUE_COUNT])
{
    const struct ptk_guard_counters *guard = ptk_guard_counters(worker->config.guard);
    worker->counters[PTK_WORKER_VALIDATED] = guard->validated;
    worker->counters[PTK_WORKER_KEYED] = guard->keyed;
    for (uint32_t i = 0; i < PTK_VERDICT_VALUE_COUNT; i++) {
        verdicts[i] += guard->verdicts[i];
    }
}

void ptk_worker_publish(struct ptk_worker *worker)
{
    struct ptk_stats_worker *stats = worker->config.stats;
    const struct ptk_engine_counters *engine = ptk_engine_counters(worker->config.engine);
    worker->counters[PTK_WORKER_IDS] = engine->ids;
    worker->counters[PTK_WORKER_TEXT_BYTES] = engine->text_bytes;
    worker->counters[PTK_WORKER_CACHE_RESETS] = engine->cache_resets;
    worker->counters[PTK_WORKER_PLAIN_HITS] = engine->plain_hits;
    uint64_t verdicts[PTK_VERDICT_VALUE_COUNT];
    memcpy(verdicts, engine->verdicts, sizeof verdicts);
    publish_bulk(worker, verdicts);
    publish_guard(worker, verdicts);
    ptk_stats_publish(stats->counters, worker->counters, PTK_WORKER_COUNTER_COUNT);
    ptk_stats_publish(stats->gauges, worker->gauges, PTK_WORKER_GAUGE_COUNTER_COUNT);
    ptk_stats_publish(stats->latency, worker->latency, PTK_STATS_LATENCY_BUCKETS);
    ptk_stats_publish(stats->ops, engine->requests, PTK_WIRE_OP_VALUE_COUNT);
    ptk_stats_publish(stats->verdicts, verdicts, PTK_VERDICT_VALUE_COUNT);
    ptk_stats_publish(stats->item_verdicts, engine->item_verdicts, PTK_VERDICT_VALUE_COUNT);
    ptk_stats_store(&stats->epoch, worker->epoch);
}

void ptk_worker_leave(struct ptk_worker *worker)
{
    ptk_worker_publish(worker);
    atomic_store_explicit(&worker->stopped, 1, memory_order_release);
}

static bool must_stop(struct ptk_worker *worker, uint64_t idle_cycles, bool pending)
{
    if (atomic_load_explicit(&worker->stop, memory_order_acquire) == 0) {
        return false;
    }
    const bool quiet =
        idle_cycles > (uint64_t)worker->config.quiet_us * worker->config.cycles_per_us;
    return (quiet && !pending) ||
           ptk_clock_ns() >= atomic_load_explicit(&worker->deadline_ns, memory_order_relaxed);
}

enum ptk_worker_turn ptk_worker_loop_end(struct ptk_worker *worker, uint64_t start,
                                         uint32_t packets, bool pending)
{
    const uint64_t now = ptk_cycles();
    if (packets > 0) {
        worker->counters[PTK_WORKER_LOOPS_BUSY]++;
        worker->counters[PTK_WORKER_BUSY_CYCLES] += now - start;
        worker->last_busy = now;
    }
    const uint64_t idle_cycles = now - worker->last_busy;
    const uint32_t cycles_per_us = worker->config.cycles_per_us;
    const uint32_t spin_us = worker->config.spin_us;
    const bool sleepy = packets == 0 && spin_us != PTK_WORKER_SPIN_FOREVER_US &&
                        idle_cycles >= (uint64_t)spin_us * cycles_per_us;
    if (sleepy || now >= worker->publish_at) {
        ptk_worker_publish(worker);
        worker->publish_at = now + (uint64_t)PTK_WORKER_PUBLISH_US * cycles_per_us;
        if (must_stop(worker, idle_cycles, pending)) {
            return PTK_WORKER_TURN_STOP;
        }
    }
    if (sleepy) {
        worker->counters[PTK_WORKER_SLEEPS]++;
        return PTK_WORKER_TURN_SLEEP;
    }
    if (packets == 0) {
        ptk_cpu_relax();
    }
    return PTK_WORKER_TURN_GO;
}

static void count_request(struct ptk_worker *worker, size_t len)
{
    worker->counters[PTK_WORKER_REQUESTS]++;
    worker->counters[PTK_WORKER_REQUEST_BYTES] += len;
}

static size_t count_silence(struct ptk_worker *worker, size_t reply_len)
{
    worker->counters[PTK_WORKER_SILENT] += reply_len == 0;
    return reply_len;
}

/* The work on a datagram is its source's, whether it was answered or refused. */
static void charge(struct ptk_worker *worker, const struct ptk_guard_source *source,
                   const struct ptk_guard_pass *pass)
{
    if (PTK_UNLIKELY(pass->charged)) {
        ptk_guard_charge(worker->config.guard, source, pass->validated, ptk_cycles() - source->now);
    }
}

/* The answer to a datagram that the guard refuses. */
static size_t refuse(struct ptk_worker *worker, const struct ptk_guard_source *source,
                     const struct ptk_guard_pass *pass, const uint8_t *datagram, size_t len,
                     uint8_t *reply)
{
    struct ptk_wire_header header;
    worker->counters[PTK_WORKER_GUARD_REFUSED]++;
    size_t reply_len = 0;
    if (!pass->silent && len >= sizeof header) {
        memcpy(&header, datagram, sizeof header);
        reply_len =
            ptk_guard_refuse(worker->config.guard, source, &header, len, pass->verdict, reply);
    }
    charge(worker, source, pass);
    return count_silence(worker, reply_len);
}

/* The longest reply that a datagram asks for. */
static size_t asked_len(const uint8_t *datagram, size_t len)
{
    const uint32_t op = datagram[offsetof(struct ptk_wire_header, op)];
    const size_t off = PTK_WIRE_HEADER_LEN + ptk_wire_extensions_len(datagram[3]) +
                       offsetof(struct ptk_wire_request, reply_len_max);
    if (op == PTK_WIRE_OP_PING || op == PTK_WIRE_OP_INFO || off + 2 > len) {
        return len;
    }
    const uint32_t stated = ptk_load_u16(datagram + off);
    return stated != 0 ? stated : len;
}

/* Did the last request leave something out because the reply had no room? */
static uint64_t too_long_count(const struct ptk_worker *worker)
{
    const struct ptk_engine_counters *engine = ptk_engine_counters(worker->config.engine);
    return engine->verdicts[PTK_VERDICT_REPLY_TOO_LONG] +
           engine->item_verdicts[PTK_VERDICT_REPLY_TOO_LONG];
}

/* What a stranger asks for is only for validated sources. */
static size_t challenge(struct ptk_worker *worker, const struct ptk_guard_source *source,
                        const struct ptk_wire_header *header, size_t len, uint8_t *reply)
{
    worker->counters[PTK_WORKER_GUARD_REFUSED]++;
    return ptk_guard_challenge(worker->config.guard, source, header, len, reply);
}

/* A stranger's datagram: its reply is no longer than it, or a challenge. */
static size_t handle_stranger(struct ptk_worker *worker, const struct ptk_guard_source *source,
                              const uint8_t *datagram, size_t len, uint8_t *reply, size_t reply_cap)
{
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    struct ptk_wire_header header;
    if (len < sizeof header) {
        worker->counters[PTK_WORKER_HANDLED]++;
        return ptk_engine_handle(worker->config.engine, datagram, len, reply, reply_cap, &verdict);
    }
    memcpy(&header, datagram, sizeof header); /* The reply may be built over it. */
    const bool wants_more = ptk_min_size(asked_len(datagram, len), reply_cap) > len;
    const uint64_t before = too_long_count(worker);
    const size_t reply_len = ptk_engine_handle(worker->config.engine, datagram, len, reply,
                                               ptk_min_size(reply_cap, len), &verdict);
    if (wants_more && too_long_count(worker) != before) {
        return challenge(worker, source, &header, len, reply);
    }
    worker->counters[PTK_WORKER_HANDLED]++;
    return reply_len;
}

size_t ptk_worker_handle(struct ptk_worker *worker, const struct ptk_guard_source *source,
                         const uint8_t *datagram, size_t len, uint8_t *reply, size_t reply_cap)
{
    count_request(worker, len);
    const struct ptk_guard_pass pass = ptk_guard_admit(worker->config.guard, source, datagram, len);
    if (PTK_UNLIKELY(pass.verdict != PTK_VERDICT_OK)) {
        return refuse(worker, source, &pass, datagram, len, reply);
    }
    size_t reply_len;
    if (pass.validated) {
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        worker->counters[PTK_WORKER_HANDLED]++;
        reply_len =
            ptk_engine_handle(worker->config.engine, datagram, len, reply, reply_cap, &verdict);
    } else {
        reply_len = handle_stranger(worker, source, datagram, len, reply, reply_cap);
        PTK_DCHECK(reply_len <= len);
    }
    PTK_DCHECK(reply_len <= reply_cap);
    charge(worker, source, &pass);
    return count_silence(worker, reply_len);
}

size_t ptk_worker_receive(struct ptk_worker *worker, const struct ptk_bulk_packet *packet,
                          uint8_t *reply)
{
    struct ptk_guard *guard = worker->config.guard;
    const struct ptk_guard_source source = {
        .address = packet->source, .port = packet->source_port, .now = packet->now};
    count_request(worker, packet->len);
    const struct ptk_guard_pass pass =
        ptk_guard_admit(guard, &source, packet->datagram, packet->len);
    if (PTK_UNLIKELY(pass.verdict != PTK_VERDICT_OK)) {
        return refuse(worker, &source, &pass, packet->datagram, packet->len, reply);
    }
    if (PTK_UNLIKELY(!pass.validated)) { /* A message would be kept. */
        struct ptk_wire_header header;
        memcpy(&header, packet->datagram, sizeof header);
        const size_t refusal_len = challenge(worker, &source, &header, packet->len, reply);
        charge(worker, &source, &pass);
        return count_silence(worker, refusal_len);
    }
    struct ptk_bulk_packet admitted = *packet;
    admitted.validated = true;
    const size_t reply_len = ptk_bulk_receive(worker->config.bulk, &admitted, reply);
    PTK_DCHECK(reply_len <= packet->len);
    charge(worker, &source, &pass);
    return reply_len;
}

/* A slice is over: others get their turn, and a shorter message may even begin. */
static void pause_run(void *self)
{
    struct ptk_worker *worker = self;
    worker->config.driver.serve(worker->config.driver.self);
    (void)ptk_worker_work(worker);
    const uint64_t now = ptk_cycles();
    if (now >= worker->publish_at) {
        ptk_worker_publish(worker);
        worker->publish_at = now + (uint64_t)PTK_WORKER_PUBLISH_US * worker->config.cycles_per_us;
    }
}

/* The work on a long message is its source's. */
static void charge_work(struct ptk_worker *worker)
{
    struct ptk_guard_source source = {.now = 0};
    const uint64_t cycles = ptk_bulk_last_work(worker->config.bulk, &source.address, &source.port);
    ptk_guard_charge(worker->config.guard, &source, true, cycles);
}

bool ptk_worker_work(struct ptk_worker *worker)
{
    const uint32_t cycles_per_us = worker->config.cycles_per_us;
    struct ptk_bulk *bulk = worker->config.bulk;
    struct ptk_pause pause = {.run = pause_run,
                              .self = worker,
                              .slice_cycles = (uint64_t)PTK_WORKER_SLICE_US * cycles_per_us};
    if (!ptk_bulk_work(bulk, worker->config.engine, &pause)) {
        return false;
    }
    charge_work(worker);
    worker->config.driver.push(worker->config.driver.self);
    ptk_worker_latency(worker, ptk_bulk_begun_at(bulk), ptk_cycles(), 1);
    worker->counters[PTK_WORKER_SLICES] += pause.slices;
    const uint64_t longest_ns = pause.longest * 1000u / cycles_per_us;
    if (longest_ns > worker->gauges[PTK_WORKER_GAUGE_SLICE_MAX_NS]) {
        worker->gauges[PTK_WORKER_GAUGE_SLICE_MAX_NS] = longest_ns;
    }
    return true;
}
