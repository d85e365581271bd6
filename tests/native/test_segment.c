/* The two shared files, and the loop of a worker: what is published, when it sleeps, when it stops.
 */
#include "serve/ptk_datapath_segment.h"
#include "serve/ptk_datapath_worker.h"
#include "open_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct ptk_engine_counters engine_counters;
static uint32_t refreshes;

void ptk_engine_refresh(struct ptk_engine *engine)
{
    (void)engine;
    refreshes++;
}

const struct ptk_engine_counters *ptk_engine_counters(const struct ptk_engine *engine)
{
    (void)engine;
    return &engine_counters;
}

size_t ptk_engine_handle(struct ptk_engine *engine, const uint8_t *datagram, size_t len,
                         uint8_t *reply, size_t reply_cap, enum ptk_verdict *verdict)
{
    (void)engine;
    (void)datagram;
    (void)reply;
    *verdict = len > 0 ? PTK_VERDICT_OK : PTK_VERDICT_BAD_LENGTH;
    return ptk_min_size(len, reply_cap);
}

/* Long messages have tests of their own (test_bulk.c); none comes here. */
bool ptk_engine_long_fits(const struct ptk_engine *engine, uint32_t desk_idx, size_t message_len)
{
    (void)engine, (void)desk_idx, (void)message_len;
    return false;
}

enum ptk_verdict ptk_engine_long_run(struct ptk_engine *engine, uint32_t desk_idx,
                                     const struct ptk_engine_long *input,
                                     struct ptk_engine_long_reply *reply)
{
    (void)engine, (void)desk_idx, (void)input, (void)reply;
    PTK_ASSERT(false);
    return PTK_VERDICT_UNSUPPORTED;
}

void ptk_engine_long_build(struct ptk_engine *engine, uint32_t desk_idx, uint8_t *message)
{
    (void)engine, (void)desk_idx, (void)message;
}

/* A bulk that is only looked at. */
static struct ptk_bulk *make_bulk(void)
{
    static uint8_t memory[1 << 20] __attribute__((aligned(64)));
    const struct ptk_bulk_limits limits = {
        .message_len_max = 65536, .arena_len = 131072, .cycles_per_us = 1000};
    PTK_ASSERT(ptk_bulk_len(&limits) <= sizeof memory);
    return ptk_bulk_init(memory, &limits);
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    FILE *file = fopen(path, "wb");
    PTK_ASSERT(file != NULL);
    PTK_ASSERT(fwrite(bytes, 1, len, file) == len);
    PTK_ASSERT(fclose(file) == 0);
}

/* Parts lie behind each other without sharing a cache line, inside the file, and read as written.
 */
static void test_segment_layout(const char *path)
{
    const struct ptk_segment_shape shape = {.worker_count = 3,
                                            .queue_count = 2,
                                            .steer_count = PTK_STEER_COUNTER_COUNT,
                                            .model_count = 5};
    struct ptk_segment segment;
    struct ptk_err err;
    PTK_ASSERT(ptk_segment_open(&segment, path, &shape, &err) == 0);
    const struct ptk_stats_head *head = segment.head;
    PTK_ASSERT(memcmp(head->magic, "\0\0\0\0\0\0\0\0", 8) == 0); /* nobody may look yet */
    PTK_ASSERT(head->version == PTK_STATS_VERSION);
    PTK_ASSERT(head->pid == (uint32_t)getpid());
    const uint32_t ends[][2] = {
        {head->process_off, head->process_count * 8},
        {head->worker_off, 3 * sizeof(struct ptk_stats_worker)},
        {head->queue_off, 2 * sizeof(struct ptk_stats_queue)},
        {head->steer_off, head->steer_count * 8},
        {head->model_off, 5 * sizeof(struct ptk_stats_model)},
        {head->ack_off, sizeof(struct ptk_stats_ack)},
    };
    uint32_t end = sizeof *head;
    for (size_t i = 0; i < PTK_ARRAY_LEN(ends); i++) {
        PTK_ASSERT(ends[i][0] >= end);
        PTK_ASSERT(ends[i][0] % PTK_CACHE_LINE == 0);
        end = ends[i][0] + ends[i][1];
    }
    PTK_ASSERT(end <= head->segment_len);
    PTK_ASSERT(access(path, F_OK) != 0);
    PTK_ASSERT(ptk_segment_publish(&segment, &err) == 0);
    ptk_stats_store(&segment.process[PTK_PROCESS_PORT], 7265);

    /* A second process sees it; a third one that takes the path does not disturb the first. */
    FILE *file = fopen(path, "rb");
    struct ptk_stats_head seen;
    PTK_ASSERT(file != NULL);
    PTK_ASSERT(fread(&seen, sizeof seen, 1, file) == 1);
    PTK_ASSERT(memcmp(seen.magic, PTK_STATS_MAGIC, sizeof seen.magic) == 0);
    struct ptk_segment other;
    PTK_ASSERT(ptk_segment_open(&other, path, &shape, &err) == 0);
    PTK_ASSERT(ptk_stats_load(&segment.process[PTK_PROCESS_PORT]) == 7265);
    PTK_ASSERT(ptk_stats_load(&other.process[PTK_PROCESS_PORT]) == 0);
    (void)fclose(file); /* Read only. */
    char beside[4200];
    (void)snprintf(beside, sizeof beside, "%s.%d", path, getpid());
    PTK_ASSERT(access(beside, F_OK) == 0);
    ptk_segment_close(&other);
    PTK_ASSERT(access(beside, F_OK) != 0); /* Not published: nothing is left of it. */
    PTK_ASSERT(access(path, F_OK) == 0);
    ptk_segment_close(&segment);
    PTK_ASSERT(ptk_segment_open(&segment, "/nowhere/stats", &shape, &err) == -ENOENT);
    PTK_ASSERT(ptk_segment_open(&segment, NULL, &shape, &err) == 0);
    ptk_segment_close(&segment);
}

static void test_mailbox(const char *path)
{
    static struct ptk_mailbox box;
    static struct ptk_mailbox command;
    const struct ptk_mailbox *mailbox = NULL;
    struct ptk_err err;
    PTK_ASSERT(ptk_mailbox_open(&mailbox, "/nowhere/mailbox", &err) == -ENOENT);
    memcpy(box.magic, PTK_MAILBOX_MAGIC, sizeof box.magic);
    box.version = PTK_STATS_VERSION;
    write_file(path, &box, sizeof box - 1);
    PTK_ASSERT(ptk_mailbox_open(&mailbox, path, &err) == -EINVAL); /* a byte too few */
    box.version++;
    write_file(path, &box, sizeof box);
    PTK_ASSERT(ptk_mailbox_open(&mailbox, path, &err) == -EINVAL);
    box.version--;
    write_file(path, &box, sizeof box);
    PTK_ASSERT(ptk_mailbox_open(&mailbox, path, &err) == 0);
    PTK_ASSERT(!ptk_mailbox_take(mailbox, 0, &command));

    /* A writer that fills its strings to the brim: the copy is terminated. */
    box.sequence = 1;
    box.command = PTK_MAILBOX_COMMAND_LOAD;
    memset(box.name, 'n', sizeof box.name);
    memset(box.path, 'p', sizeof box.path);
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    PTK_ASSERT(fd >= 0);
    PTK_ASSERT(write(fd, &box, sizeof box) == (ssize_t)sizeof box);
    PTK_ASSERT(close(fd) == 0);
    PTK_ASSERT(ptk_mailbox_take(mailbox, 0, &command));
    PTK_ASSERT(command.sequence == 1);
    PTK_ASSERT(strlen((const char *)command.name) == sizeof command.name - 1);
    PTK_ASSERT(strlen((const char *)command.path) == sizeof command.path - 1);
    PTK_ASSERT(!ptk_mailbox_take(mailbox, 1, &command));
    ptk_mailbox_close(mailbox);
    ptk_mailbox_close(NULL);
}

static struct ptk_worker worker_with(uint32_t spin_us, uint32_t quiet_us,
                                     struct ptk_stats_worker *stats)
{
    static struct ptk_worker worker;
    const struct ptk_worker_config config = {.kind = PTK_WORKER_KIND_SOCKET,
                                             .cpu_id = PTK_WORKER_NOT_PINNED,
                                             .queue = PTK_WORKER_NO_QUEUE,
                                             .cycles_per_us = 1000,
                                             .spin_us = spin_us,
                                             .quiet_us = quiet_us,
                                             .bulk = make_bulk(),
                                             .guard = open_guard(),
                                             .stats = stats};
    memset(stats, 0, sizeof *stats);
    ptk_worker_init(&worker, &config);
    return worker;
}

static void test_worker_turns(void)
{
    static struct ptk_stats_worker stats;
    const uint64_t now = ptk_cycles();

    /* With packets, never a sleep; without, at once or never, as configured. */
    struct ptk_worker worker = worker_with(0, 0, &stats);
    worker.last_busy = now;
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 1, false) == PTK_WORKER_TURN_GO);
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, false) == PTK_WORKER_TURN_SLEEP);
    worker = worker_with(PTK_WORKER_SPIN_FOREVER_US, 0, &stats);
    worker.publish_at = UINT64_MAX;
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, false) == PTK_WORKER_TURN_GO);

    /* Told to stop: at once when quiet and nothing is pending, else at the deadline. */
    worker = worker_with(0, 0, &stats);
    atomic_store(&worker.stop, 1);
    atomic_store(&worker.deadline_ns, UINT64_MAX);
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, true) == PTK_WORKER_TURN_SLEEP);
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, false) == PTK_WORKER_TURN_STOP);
    atomic_store(&worker.deadline_ns, 1);
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, true) == PTK_WORKER_TURN_STOP);

    /* Not quiet for long enough. */
    worker = worker_with(0, UINT32_MAX, &stats);
    worker.last_busy = ptk_cycles();
    atomic_store(&worker.stop, 1);
    atomic_store(&worker.deadline_ns, UINT64_MAX);
    PTK_ASSERT(ptk_worker_loop_end(&worker, now, 0, false) == PTK_WORKER_TURN_SLEEP);
}

/* Counters reach the segment before a sleep, the engine's among them. */
static void test_worker_publishes(void)
{
    static struct ptk_stats_worker stats;
    struct ptk_worker worker = worker_with(0, 0, &stats);
    uint8_t bytes[64] = {0};
    const struct ptk_guard_source source = {.port = 5000};
    refreshes = 0;
    ptk_worker_loop_begin(&worker);
    PTK_ASSERT(refreshes == 1);
    PTK_ASSERT(ptk_worker_handle(&worker, &source, bytes, 40, bytes, sizeof bytes) == 40);
    PTK_ASSERT(ptk_worker_handle(&worker, &source, bytes, 0, bytes, sizeof bytes) == 0);
    ptk_worker_latency(&worker, 1000, 1000 + 5 * 1000, 3); /* 5 us at 1000 cycles a microsecond */
    engine_counters.ids = 17;
    engine_counters.verdicts[PTK_VERDICT_BAD_OP] = 2;
    PTK_ASSERT(ptk_worker_loop_end(&worker, ptk_cycles(), 0, false) == PTK_WORKER_TURN_SLEEP);
    PTK_ASSERT(stats.counters[PTK_WORKER_REQUESTS] == 2);
    PTK_ASSERT(stats.counters[PTK_WORKER_REQUEST_BYTES] == 40);
    PTK_ASSERT(stats.counters[PTK_WORKER_SILENT] == 1);
    PTK_ASSERT(stats.counters[PTK_WORKER_IDS] == 17);
    PTK_ASSERT(stats.verdicts[PTK_VERDICT_BAD_OP] == 2);
    PTK_ASSERT(stats.latency[3] == 3);
    PTK_ASSERT(stats.counters[PTK_WORKER_LATENCY_NS] == 15000);
    PTK_ASSERT(stats.epoch == 1);
}

int main(void)
{
    char folder[] = "/tmp/ptk-test-segment-XXXXXX";
    char stats[64];
    char mailbox[64];
    PTK_ASSERT(mkdtemp(folder) != NULL);
    (void)snprintf(stats, sizeof stats, "%s/stats", folder);
    (void)snprintf(mailbox, sizeof mailbox, "%s/mailbox", folder);
    test_segment_layout(stats);
    test_mailbox(mailbox);
    (void)unlink(stats);
    (void)unlink(mailbox);
    PTK_ASSERT(rmdir(folder) == 0);
    test_worker_turns();
    test_worker_publishes();
    puts("segment: ok");
    return 0;
}
