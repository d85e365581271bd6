/*
 * The side of a hand-over that takes over: it receives copies of all descriptors, compares them
 * with its own configuration, prepares everything beside the server that serves, and takes its
 * place in the last moment.
 *
 * Long messages that are under way are not handed over: the heir answers UNKNOWN, and the client
 * sends them again.
 *
 * Until ptk_server_heir_take has moved the baton, an error here ends this process and nothing else.
 */
#include "serve/ptk_server_private.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The giver answers within a round of its housekeeping, or two seconds where its workers do not
 * stand still at once. */
#define ANSWER_S 10

static int greet(struct ptk_server_heir *heir, const char *path, struct ptk_err *err)
{
    heir->giver_fd = ptk_server_handover_connect(path, err);
    if (heir->giver_fd < 0) {
        return heir->giver_fd;
    }
    const struct timeval limit = {.tv_sec = ANSWER_S};
    if (setsockopt(heir->giver_fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
        setsockopt(heir->giver_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0) {
        return ptk_err_set(err, -errno, "take-over: %s", strerror(errno));
    }
    union ptk_handover_message message;
    ptk_handover_head_init(&message.head, PTK_HANDOVER_HELLO, 0);
    return ptk_handover_send(heir->giver_fd, &message, NULL, err);
}

/* Every descriptor that may have to be closed is -1 before it comes. */
static int make_room(struct ptk_server_heir *heir, struct ptk_err *err)
{
    const size_t count = heir->offer.queue_count + heir->offer.socket_count;
    heir->entries = calloc(count, sizeof *heir->entries);
    if (heir->entries == NULL) {
        return ptk_err_set(err, -ENOMEM, "take-over: no memory for %zu workers", count);
    }
    for (size_t i = 0; i < count; i++) {
        heir->entries[i].fds[0] = -1;
        heir->entries[i].fds[1] = -1;
    }
    return 0;
}

static int receive_server(struct ptk_server_heir *heir, struct ptk_err *err)
{
    union ptk_handover_message message;
    int fds[PTK_HANDOVER_FDS_MAX];
    int code = ptk_handover_receive(heir->giver_fd, PTK_HANDOVER_SERVER, &message, fds, err);
    if (code != 0) {
        return code;
    }
    heir->offer = message.server;
    if (message.head.fd_count == 4) {
        heir->legacy = (struct ptk_steer_legacy){
            .link_fd = fds[1],
            .sockets_fd = fds[2],
            .reasons_fd = fds[3],
            .mode = (enum ptk_xdp_mode)message.server.xdp_mode,
        };
    }
    code = ptk_huge_inherit(&heir->block_memory, fds[0],
                            ptk_handover_block_len(message.server.worker_count), err);
    if (code != 0) {
        (void)close(fds[0]);
        return code;
    }
    heir->block = (void *)heir->block_memory.base;
    return make_room(heir, err);
}

static int receive_queue(struct ptk_server_heir *heir, uint32_t i, struct ptk_err *err)
{
    union ptk_handover_message message;
    int fds[PTK_HANDOVER_FDS_MAX];
    const int code = ptk_handover_receive(heir->giver_fd, PTK_HANDOVER_QUEUE, &message, fds, err);
    if (code != 0) {
        return code;
    }
    struct ptk_server_heir_entry *entry = &heir->entries[i];
    entry->fds[0] = fds[0];
    entry->fds[1] = fds[1];
    entry->queue = message.queue.queue;
    entry->bind_retries = message.queue.bind_retries;
    return message.queue.idx == i
               ? 0
               : ptk_err_set(err, -EPROTO, "take-over: queue %u out of its turn", i);
}

static int receive_socket(struct ptk_server_heir *heir, uint32_t i, struct ptk_err *err)
{
    union ptk_handover_message message;
    int fds[PTK_HANDOVER_FDS_MAX];
    const int code = ptk_handover_receive(heir->giver_fd, PTK_HANDOVER_SOCKET, &message, fds, err);
    if (code != 0) {
        return code;
    }
    struct ptk_server_heir_entry *entry = &heir->entries[heir->offer.queue_count + i];
    uint32_t taken = 0;
    for (uint32_t family = 0; family < 2; family++) {
        if ((message.socket.families >> family & 1u) != 0) {
            entry->fds[family] = fds[taken++];
        }
    }
    return message.socket.idx == i
               ? 0
               : ptk_err_set(err, -EPROTO, "take-over: socket %u out of its turn", i);
}

static int differs(struct ptk_err *err, const char *what, uint32_t theirs, uint32_t ours)
{
    return ptk_err_set(err, -EINVAL,
                       "take-over: the running server has %s %u, this one is to have %u: "
                       "restart instead, or ask for the same",
                       what, theirs, ours);
}

/* What comes with the descriptors cannot be asked for otherwise. */
static int compare(const struct ptk_server *server, const struct ptk_handover_server *offer,
                   struct ptk_err *err)
{
    const struct ptk_server_config *config = &server->config;
    const bool xdp = offer->path == PTK_DATAPATH_PATH_XDP;
    const bool must_xdp =
        config->path == PTK_DATAPATH_PATH_XDP ||
        (config->require & (PTK_REQUIRE_XDP | PTK_REQUIRE_DRV | PTK_REQUIRE_ZEROCOPY)) != 0;
    if ((xdp && config->path == PTK_DATAPATH_PATH_SOCKET) || (!xdp && must_xdp)) {
        return ptk_err_set(err, -EINVAL,
                           "take-over: the running server uses %s, this one is to use %s: restart "
                           "instead",
                           xdp ? "AF_XDP" : "kernel sockets", xdp ? "kernel sockets" : "AF_XDP");
    }
    if (offer->stats_version != PTK_STATS_VERSION) {
        return differs(err, "statistics of version", offer->stats_version, PTK_STATS_VERSION);
    }
    if (offer->port != config->port) {
        return differs(err, "UDP port", offer->port, config->port);
    }
    if (offer->interface_index != server->iface.index) {
        return differs(err, "the interface of index", offer->interface_index, server->iface.index);
    }
    if (!xdp) {
        return offer->socket_count == config->cores.count
                   ? 0
                   : differs(err, "a number of cores of", offer->socket_count, config->cores.count);
    }
    if (offer->mtu != server->iface.mtu) {
        return differs(err, "an MTU of", offer->mtu, server->iface.mtu);
    }
    if (offer->ring_len != config->ring_len) {
        return differs(err, "rings of", offer->ring_len, config->ring_len);
    }
    if (offer->frame_count != ptk_server_xdp_frame_count(server)) {
        return differs(err, "frames in a number of", offer->frame_count,
                       ptk_server_xdp_frame_count(server));
    }
    if ((config->require & PTK_REQUIRE_DRV) != 0 && offer->xdp_mode != PTK_XDP_MODE_DRV) {
        return ptk_err_set(err, -EINVAL,
                           "take-over: the running server is in the generic hook: restart "
                           "instead, or leave drv out of --require");
    }
    return 0;
}

int ptk_server_heir_compare_queues(const struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_server_heir *heir = &server->heir;
    if (heir->offer.queue_count != server->queue_count) {
        return differs(err, "a number of queues of", heir->offer.queue_count, server->queue_count);
    }
    for (uint32_t i = 0; i < server->queue_count; i++) {
        const uint32_t queue = ptk_server_xdp_queue(server, i);
        if (queue != heir->entries[i].queue) {
            return differs(err, "queue", heir->entries[i].queue, queue);
        }
    }
    return 0;
}

int ptk_server_heir_open(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_server_heir *heir = &server->heir;
    int code = greet(heir, server->config.take_over_path, err);
    if (code == 0) {
        code = receive_server(heir, err);
    }
    for (uint32_t i = 0; i < heir->offer.queue_count && code == 0; i++) {
        code = receive_queue(heir, i, err);
    }
    for (uint32_t i = 0; i < heir->offer.socket_count && code == 0; i++) {
        code = receive_socket(heir, i, err);
    }
    return code == 0 ? compare(server, &heir->offer, err) : code;
}

int ptk_server_heir_claim(struct ptk_server_heir *heir, uint32_t entry, uint32_t which)
{
    const int fd = heir->entries[entry].fds[which];
    heir->entries[entry].fds[which] = -1;
    return fd;
}

static void read_worker(struct ptk_worker *worker, struct ptk_handover_block *block,
                        uint32_t worker_count, uint32_t i)
{
    const struct ptk_handover_worker *in = &block->workers[i];
    struct ptk_engine_counters engine;
    memset(&engine, 0, sizeof engine);
    memcpy(worker->counters, in->counters, sizeof worker->counters);
    memcpy(worker->latency, in->latency, sizeof worker->latency);
    memcpy(engine.requests, in->ops, sizeof engine.requests);
    memcpy(engine.verdicts, in->verdicts, sizeof engine.verdicts);
    memcpy(engine.item_verdicts, in->item_verdicts, sizeof engine.item_verdicts);
    engine.ids = in->counters[PTK_WORKER_IDS];
    engine.text_bytes = in->counters[PTK_WORKER_TEXT_BYTES];
    engine.cache_resets = in->counters[PTK_WORKER_CACHE_RESETS];
    engine.plain_hits = in->counters[PTK_WORKER_PLAIN_HITS];
    ptk_engine_counters_resume(worker->config.engine, &engine);
    ptk_worker_bulk_resume(worker);
    ptk_guard_inherit(worker->config.guard, ptk_handover_books(block, worker_count, i));
}

/* The books as the giver's workers have left them; they and ours stand still. */
static int take_books(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_handover_block *block = server->heir.block;
    const uint32_t worker_count = server->queue_count + server->socket_count;
    ptk_guard_shared_inherit(&server->guard_shared, block->secret);
    for (uint32_t i = 0; i < server->queue_count; i++) {
        struct ptk_server_queue *queue = &server->queues[i];
        read_worker(&queue->poller.worker, block, worker_count, i);
        if (!ptk_poller_inherit(&queue->poller)) {
            return ptk_err_set(err, -EPROTO,
                               "take-over: queue %u: rings and frames are not what a poller leaves",
                               queue->queue);
        }
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        read_worker(&server->sockets[i].socket.worker, block, worker_count,
                    server->queue_count + i);
    }
    server->answered = block->answered;
    server->commands = block->commands;
    server->link_changes = block->link_changes;
    server->queue_changes = block->queue_changes;
    server->take_overs = block->take_overs + 1;
    memcpy(server->steer.base, block->steer, sizeof server->steer.base);
    return 0;
}

static int ask_to_hold(const struct ptk_server_heir *heir, struct ptk_err *err)
{
    union ptk_handover_message message;
    ptk_handover_head_init(&message.head, PTK_HANDOVER_HOLD, 0);
    int code = ptk_handover_send(heir->giver_fd, &message, NULL, err);
    if (code == 0) {
        int fds[PTK_HANDOVER_FDS_MAX];
        code = ptk_handover_receive(heir->giver_fd, PTK_HANDOVER_HELD, &message, fds, err);
    }
    return code;
}

int ptk_server_heir_take(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_server_heir *heir = &server->heir;
    if (!ptk_server_hold_all(server)) {
        return ptk_err_set(err, -ETIMEDOUT, "take-over: the workers did not start in time");
    }
    int code = ask_to_hold(heir, err);
    if (code == 0) {
        code = take_books(server, err);
    }
    if (code == 0 &&
        !ptk_handover_move(heir->block, PTK_HANDOVER_BATON_STILL, PTK_HANDOVER_BATON_HEIR)) {
        code = ptk_err_set(err, -ETIMEDOUT,
                           "take-over: this process was too slow; the running server goes on");
    }
    if (code != 0) {
        return code;
    }
    ptk_server_ask_all(server, PTK_WORKER_HOLD_NO);
    server->take_over_gap_ns = ptk_clock_ns() - heir->block->still_at_ns;
    /* Serving. From here on nothing may end this process any more, nor its parent's end. */
    server->serves = true;
    (void)prctl(PR_SET_PDEATHSIG, 0);
    struct ptk_err lesser;
    if (server->path == PTK_DATAPATH_PATH_XDP && ptk_steer_switch(&server->steer, &lesser) != 0) {
        ptk_server_note(server, "XDP program: the former version's stays (%s)", lesser.text);
    }
    union ptk_handover_message message;
    ptk_handover_head_init(&message.head, PTK_HANDOVER_TAKEN, 0);
    (void)ptk_handover_send(heir->giver_fd, &message, NULL, NULL); /* The baton has said it. */
    return 0;
}

void ptk_server_heir_close(struct ptk_server *server)
{
    struct ptk_server_heir *heir = &server->heir;
    const uint32_t count = heir->offer.queue_count + heir->offer.socket_count;
    for (uint32_t i = 0; i < count && heir->entries != NULL; i++) {
        for (uint32_t which = 0; which < 2; which++) {
            if (heir->entries[i].fds[which] >= 0) {
                (void)close(heir->entries[i].fds[which]);
            }
        }
    }
    free(heir->entries);
    const int legacy[] = {heir->legacy.link_fd, heir->legacy.sockets_fd, heir->legacy.reasons_fd};
    for (size_t i = 0; i < PTK_ARRAY_LEN(legacy); i++) {
        if (legacy[i] >= 0) {
            (void)close(legacy[i]);
        }
    }
    if (heir->giver_fd >= 0) {
        (void)close(heir->giver_fd);
    }
    ptk_huge_unmap(&heir->block_memory);
    ptk_server_heir_init(heir);
}

void ptk_server_heir_init(struct ptk_server_heir *heir)
{
    memset(heir, 0, sizeof *heir);
    heir->giver_fd = -1;
    heir->legacy.link_fd = -1;
    heir->legacy.sockets_fd = -1;
    heir->legacy.reasons_fd = -1;
}
