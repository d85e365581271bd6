/*
 * The side of a hand-over that serves: it lets one heir at a time have copies of its descriptors,
 * stands still when that asks for it, and goes on if that does not take over.
 *
 *     LISTENING -- connection of our user --> GREETED -- HELLO --> OFFERED -- HOLD --> still
 *         ^-- the heir is gone, errs, or takes too long ------------'                    |
 *         ^-- the heir is gone or takes too long: the workers go on ---------------------+--> given
 *
 * All of it is housekeeping of the main thread. Only `still` makes it wait, for at most the two
 * times below.
 */
#include "serve/ptk_server_private.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* A heir greets at once; it may load models for long; a message is read at once. */
#define GREETING_NS 2000000000ull
#define OFFER_NS    120000000000ull
#define SEND_S      1

/* Workers stand still within a loop, a slice of long work at most; an heir takes over within a
 * millisecond, unless it is stopped or swapped out. Requests wait in the rings all that time. */
#define STILL_NS 2000000000ull
#define TAKE_MS  2000

/* A path for bind and connect whatever the length of the folder's name: the address of a unix
 * socket has room for 107 bytes, so the folder is named by a descriptor. Returns that, or a
 * negative errno.
 */
static int make_address(const char *path, const char *suffix, struct sockaddr_un *address,
                        struct ptk_err *err)
{
    char folder[4096];
    char name[4096];
    if (strlen(path) >= sizeof folder) {
        return ptk_err_set(err, -ENAMETOOLONG, "hand-over socket: the path is too long");
    }
    memcpy(folder, path, strlen(path) + 1);
    memcpy(name, path, strlen(path) + 1);
    const int fd = open(dirname(folder), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        const int code = -errno;
        return ptk_err_set(err, code, "hand-over socket %s: %s", path, strerror(-code));
    }
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s%s", fd,
                 basename(name), suffix) >= (int)sizeof address->sun_path) {
        (void)close(fd);
        return ptk_err_set(err, -ENAMETOOLONG, "hand-over socket %s: the name is too long", path);
    }
    return fd;
}

int ptk_server_handover_connect(const char *path, struct ptk_err *err)
{
    struct sockaddr_un address;
    const int folder_fd = make_address(path, "", &address, err);
    if (folder_fd < 0) {
        return folder_fd;
    }
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int code = 0;
    if (fd < 0 || connect(fd, (const void *)&address, sizeof address) != 0) {
        code = ptk_err_set(err, -errno, "take-over: no server can be reached at %s: %s", path,
                           strerror(errno));
    }
    (void)close(folder_fd);
    if (code == 0) {
        code = ptk_handover_check_peer(fd, err);
    }
    if (code != 0) {
        if (fd >= 0) {
            (void)close(fd);
        }
        return code;
    }
    return fd;
}

int ptk_server_giver_open(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_server_giver *giver = &server->giver;
    if (server->config.hand_over_path == NULL) {
        return 0;
    }
    (void)snprintf(giver->suffix, sizeof giver->suffix, ".%d", getpid());
    struct sockaddr_un address;
    const int folder_fd = make_address(server->config.hand_over_path, giver->suffix, &address, err);
    if (folder_fd < 0) {
        return folder_fd;
    }
    (void)unlink(address.sun_path); /* Of a process long gone that had our number. */
    giver->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int code = 0;
    if (giver->listen_fd < 0 || fchmod(giver->listen_fd, 0600) != 0 ||
        bind(giver->listen_fd, (const void *)&address, sizeof address) != 0 ||
        listen(giver->listen_fd, 1) != 0) {
        code = ptk_err_set(err, -errno, "hand-over socket %s: %s", server->config.hand_over_path,
                           strerror(errno));
    }
    (void)close(folder_fd);
    return code;
}

/* Renames or, with a NULL target suffix, removes the socket's file. */
static int move_file(const struct ptk_server *server, const char *from, const char *to)
{
    char source[4096];
    char target[4096];
    const char *path = server->config.hand_over_path;
    if (snprintf(source, sizeof source, "%s%s", path, from) >= (int)sizeof source) {
        return -ENAMETOOLONG;
    }
    if (to == NULL) {
        return unlink(source) == 0 ? 0 : -errno;
    }
    (void)snprintf(target, sizeof target, "%s%s", path, to); /* Not longer than the source. */
    return rename(source, target) == 0 ? 0 : -errno;
}

int ptk_server_giver_publish(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_server_giver *giver = &server->giver;
    if (giver->listen_fd < 0) {
        return 0;
    }
    const int code = move_file(server, giver->suffix, "");
    giver->published = code == 0;
    return code == 0 ? 0
                     : ptk_err_set(err, code, "hand-over socket %s: %s",
                                   server->config.hand_over_path, strerror(-code));
}

void ptk_server_ask_all(struct ptk_server *server, enum ptk_worker_hold hold)
{
    for (uint32_t i = 0; i < server->queue_count; i++) {
        ptk_worker_ask_hold(&server->queues[i].poller.worker, hold);
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        ptk_worker_ask_hold(&server->sockets[i].socket.worker, hold);
    }
}

/* Back to listening, whatever there was. */
static void leave_heir(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    if (giver->heir_fd >= 0) {
        (void)close(giver->heir_fd);
    }
    giver->heir_fd = -1;
    giver->step = PTK_SERVER_GIVER_LISTENING;
    ptk_huge_unmap(&giver->block_memory);
    ptk_server_ask_all(server, PTK_WORKER_HOLD_NO);
}

static void refuse(struct ptk_server *server, const struct ptk_err *cause)
{
    ptk_server_tell("%s; this one serves on", cause->text);
    ptk_handover_send_refusal(server->giver.heir_fd, cause);
    leave_heir(server);
}

static void accept_heir(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    giver->heir_fd = accept4(giver->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (giver->heir_fd < 0) {
        return;
    }
    struct ptk_err err;
    if (ptk_handover_check_peer(giver->heir_fd, &err) != 0) {
        refuse(server, &err);
        return;
    }
    giver->step = PTK_SERVER_GIVER_GREETED;
    giver->deadline_ns = ptk_clock_ns() + GREETING_NS;
}

static int offer_server(struct ptk_server *server, struct ptk_err *err)
{
    const bool xdp = server->path == PTK_DATAPATH_PATH_XDP;
    union ptk_handover_message message;
    memset(&message, 0, sizeof message);
    ptk_handover_head_init(&message.head, PTK_HANDOVER_SERVER, xdp ? 4 : 1);
    message.server.stats_version = PTK_STATS_VERSION;
    message.server.path = (uint32_t)server->path;
    message.server.xdp_mode = (uint32_t)server->steer.mode;
    message.server.port = server->config.port;
    message.server.interface_index = server->iface.index;
    message.server.socket_count = server->socket_count;
    message.server.worker_count = server->queue_count + server->socket_count;
    if (xdp) {
        message.server.mtu = server->iface.mtu;
        message.server.queue_count = server->queue_count;
        message.server.frame_count = server->queues[0].poller.frames.count;
        message.server.frame_len = PTK_FRAME_LEN;
        message.server.ring_len = server->queues[0].xsk.rx.len;
        message.server.fill_len = server->queues[0].xsk.fill.len;
        message.server.multi_buffer = server->queues[0].poller.multi_buffer;
    }
    const int fds[] = {server->giver.block_memory.fd, server->steer.link_fd,
                       server->steer.sockets_fd, server->steer.reasons_fd};
    return ptk_handover_send(server->giver.heir_fd, &message, fds, err);
}

static int offer_queue(struct ptk_server *server, uint32_t i, struct ptk_err *err)
{
    const struct ptk_server_queue *queue = &server->queues[i];
    union ptk_handover_message message;
    memset(&message, 0, sizeof message);
    ptk_handover_head_init(&message.head, PTK_HANDOVER_QUEUE, 2);
    message.queue.idx = i;
    message.queue.queue = queue->queue;
    message.queue.bind_retries = queue->xsk.bind_retries;
    const int fds[] = {queue->xsk.fd, queue->frames.fd};
    return ptk_handover_send(server->giver.heir_fd, &message, fds, err);
}

static int offer_socket(struct ptk_server *server, uint32_t i, struct ptk_err *err)
{
    const struct ptk_socket *sockets = &server->sockets[i].socket;
    union ptk_handover_message message;
    memset(&message, 0, sizeof message);
    int fds[2];
    uint32_t count = 0;
    for (uint32_t family = 0; family < 2; family++) {
        if (sockets->fds[family] >= 0) {
            fds[count++] = sockets->fds[family];
            message.socket.families |= 1u << family;
        }
    }
    ptk_handover_head_init(&message.head, PTK_HANDOVER_SOCKET, count);
    message.socket.idx = i;
    return ptk_handover_send(server->giver.heir_fd, &message, fds, err);
}

/* Copies of everything; the heir may map and look, and uses nothing yet. */
static int offer(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_server_giver *giver = &server->giver;
    const uint32_t worker_count = server->queue_count + server->socket_count;
    int code = ptk_huge_share_small(&giver->block_memory, "ptk-handover",
                                    ptk_handover_block_len(worker_count), err);
    /* What is sent must be read at once: a heir that does not is none. */
    const struct timeval limit = {.tv_sec = SEND_S};
    if (code == 0 &&
        (fcntl(giver->heir_fd, F_SETFL, 0) != 0 ||
         setsockopt(giver->heir_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)) {
        code = ptk_err_set(err, -errno, "hand-over: %s", strerror(errno));
    }
    if (code == 0) {
        code = offer_server(server, err);
    }
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        code = offer_queue(server, i, err);
    }
    for (uint32_t i = 0; i < server->socket_count && code == 0; i++) {
        code = offer_socket(server, i, err);
    }
    return code;
}

static bool all_held(const struct ptk_server *server)
{
    for (uint32_t i = 0; i < server->queue_count; i++) {
        if (atomic_load_explicit(&server->queues[i].poller.worker.held, memory_order_acquire) ==
            0) {
            return false;
        }
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        if (atomic_load_explicit(&server->sockets[i].socket.worker.held, memory_order_acquire) ==
            0) {
            return false;
        }
    }
    return true;
}

bool ptk_server_hold_all(struct ptk_server *server)
{
    const uint64_t deadline_ns = ptk_clock_ns() + STILL_NS;
    ptk_server_ask_all(server, PTK_WORKER_HOLD_STILL);
    while (!all_held(server)) {
        if (ptk_clock_ns() >= deadline_ns) {
            return false;
        }
        const struct timespec pause = {.tv_nsec = 50000};
        (void)nanosleep(&pause, NULL); /* Cut short by a signal: one look more. */
    }
    return true;
}

static void write_worker(struct ptk_handover_block *block, uint32_t worker_count, uint32_t place,
                         const struct ptk_worker *worker)
{
    struct ptk_handover_worker *out = &block->workers[place];
    const struct ptk_engine_counters *engine = ptk_engine_counters(worker->config.engine);
    memcpy(out->counters, worker->counters, sizeof worker->counters);
    memcpy(out->ops, engine->requests, sizeof engine->requests);
    const struct ptk_bulk_state *bulk = ptk_bulk_state(worker->config.bulk);
    for (uint32_t i = 0; i < PTK_VERDICT_VALUE_COUNT; i++) {
        out->verdicts[i] = engine->verdicts[i] + bulk->verdicts[i];
    }
    memcpy(out->item_verdicts, engine->item_verdicts, sizeof engine->item_verdicts);
    memcpy(out->latency, worker->latency, sizeof out->latency);
    ptk_guard_give(worker->config.guard, ptk_handover_books(block, worker_count, place));
}

static void write_block(struct ptk_server *server, struct ptk_handover_block *block)
{
    block->answered = server->answered;
    block->commands = server->commands;
    block->link_changes = server->link_changes;
    block->queue_changes = server->queue_changes;
    block->take_overs = server->take_overs;
    block->secret = server->guard_shared.master;
    if (server->path == PTK_DATAPATH_PATH_XDP) {
        (void)ptk_steer_past(&server->steer, block->steer); /* It was read 100 ms ago as well. */
    }
    const uint32_t worker_count = server->queue_count + server->socket_count;
    for (uint32_t i = 0; i < server->queue_count; i++) {
        write_worker(block, worker_count, i, &server->queues[i].poller.worker);
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        write_worker(block, worker_count, server->queue_count + i,
                     &server->sockets[i].socket.worker);
    }
}

/* Until the heir says TAKEN, is gone, or the patience is over; the baton says what happened. */
static void await_heir(const struct ptk_server_giver *giver)
{
    struct pollfd entry = {.fd = giver->heir_fd, .events = POLLIN};
    if (poll(&entry, 1, TAKE_MS) > 0) {
        union ptk_handover_message message;
        int fds[PTK_HANDOVER_FDS_MAX];
        (void)ptk_handover_receive(giver->heir_fd, PTK_HANDOVER_TAKEN, &message, fds, NULL);
    }
}

/* Stands still for the heir. Returns whether it has taken over. */
static bool stand_still(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    struct ptk_handover_block *block = (void *)giver->block_memory.base;
    struct ptk_err err = {.code = 0, .text = ""};
    block->still_at_ns = ptk_clock_ns();
    if (!ptk_server_hold_all(server)) {
        (void)ptk_err_set(&err, -ETIMEDOUT, "hand-over: the workers did not come to a stop");
        refuse(server, &err);
        return false;
    }
    write_block(server, block);
    /* Waiting for an heir is not hanging. */
    ptk_stats_store(&server->segment.process[PTK_PROCESS_HEARTBEAT_NS], ptk_clock_ns());
    const bool still = ptk_handover_move(block, PTK_HANDOVER_BATON_GIVER, PTK_HANDOVER_BATON_STILL);
    union ptk_handover_message message;
    ptk_handover_head_init(&message.head, PTK_HANDOVER_HELD, 0);
    if (still && ptk_handover_send(giver->heir_fd, &message, NULL, &err) == 0) {
        await_heir(giver);
    }
    if (!still || ptk_handover_move(block, PTK_HANDOVER_BATON_STILL, PTK_HANDOVER_BATON_GIVER)) {
        ptk_server_tell("hand-over: the other server did not take over; this one goes on");
        leave_heir(server);
        return false;
    }
    giver->given = true;
    return true;
}

/* One message of the heir, if there is one. Returns whether it has taken over. */
static bool hear_heir(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    const bool greeted = giver->step == PTK_SERVER_GIVER_GREETED;
    struct pollfd entry = {.fd = giver->heir_fd, .events = POLLIN};
    struct ptk_err err = {.code = 0, .text = ""};
    if (poll(&entry, 1, 0) <= 0) {
        if (ptk_clock_ns() >= giver->deadline_ns) {
            (void)ptk_err_set(&err, -ETIMEDOUT, "hand-over: the other server took too long");
            refuse(server, &err);
        }
        return false;
    }
    union ptk_handover_message message;
    int fds[PTK_HANDOVER_FDS_MAX];
    int code = ptk_handover_receive(
        giver->heir_fd, greeted ? PTK_HANDOVER_HELLO : PTK_HANDOVER_HOLD, &message, fds, &err);
    if (code == 0 && !greeted) {
        return stand_still(server);
    }
    if (code == 0) {
        code = offer(server, &err);
    }
    if (code != 0) {
        refuse(server, &err);
        return false;
    }
    giver->step = PTK_SERVER_GIVER_OFFERED;
    giver->deadline_ns = ptk_clock_ns() + OFFER_NS;
    ptk_server_ask_all(server, PTK_WORKER_HOLD_ALERT);
    return false;
}

bool ptk_server_giver_keep(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    if (!giver->published || giver->given || server->draining) {
        return giver->given;
    }
    if (giver->step == PTK_SERVER_GIVER_LISTENING) {
        accept_heir(server);
    }
    return giver->step != PTK_SERVER_GIVER_LISTENING && hear_heir(server);
}

void ptk_server_giver_close(struct ptk_server *server)
{
    struct ptk_server_giver *giver = &server->giver;
    if (giver->heir_fd >= 0) {
        (void)close(giver->heir_fd);
        giver->heir_fd = -1;
    }
    ptk_huge_unmap(&giver->block_memory);
    if (giver->listen_fd >= 0) {
        (void)close(giver->listen_fd);
        giver->listen_fd = -1;
        if (!giver->given) {
            /* An heir's file has taken its place; otherwise it leads nowhere from here on. */
            (void)move_file(server, giver->published ? "" : giver->suffix, NULL);
        }
    }
}
