/* Messages of a hand-over: check, send, receive. */
#include "serve/ptk_server_handover.h"

#include "base/ptk_cpu.h"
#include "net/ptk_frames.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Limits of the command line (ptk_datapath_options.c); a server outside of them does not exist. */
#define RING_LEN_MAX    32768u
#define FRAME_COUNT_MAX (1u << 20)
#define MTU_MAX         65536u

_Static_assert(PTK_STEER_COUNTER_COUNT <= PTK_HANDOVER_STEER_CAP, "counters fit the block");
_Static_assert(sizeof(struct ptk_handover_head) == 24, "no padding");
_Static_assert(sizeof(struct ptk_handover_server) == 24 + 14 * 4, "no padding");
_Static_assert(sizeof(struct ptk_handover_queue) == 40, "no padding");
_Static_assert(sizeof(struct ptk_handover_socket) == 32, "no padding");

static const uint32_t LENGTHS[PTK_HANDOVER_KIND_COUNT] = {
    [PTK_HANDOVER_HELLO] = sizeof(struct ptk_handover_head),
    [PTK_HANDOVER_SERVER] = sizeof(struct ptk_handover_server),
    [PTK_HANDOVER_QUEUE] = sizeof(struct ptk_handover_queue),
    [PTK_HANDOVER_SOCKET] = sizeof(struct ptk_handover_socket),
    [PTK_HANDOVER_HOLD] = sizeof(struct ptk_handover_head),
    [PTK_HANDOVER_HELD] = sizeof(struct ptk_handover_head),
    [PTK_HANDOVER_TAKEN] = sizeof(struct ptk_handover_head),
    [PTK_HANDOVER_REFUSE] = sizeof(struct ptk_handover_refuse),
};

size_t ptk_handover_block_len(uint32_t worker_count)
{
    return sizeof(struct ptk_handover_block) +
           worker_count * (sizeof(struct ptk_handover_worker) + ptk_guard_books_len());
}

void *ptk_handover_books(struct ptk_handover_block *block, uint32_t worker_count, uint32_t i)
{
    PTK_ASSERT(i < worker_count);
    return (uint8_t *)&block->workers[worker_count] + i * ptk_guard_books_len();
}

static bool power_of_two(uint32_t value, uint32_t most)
{
    return value != 0 && value <= most && (value & (value - 1)) == 0;
}

/* Numbers of a server without XDP: none of queues, rings and frames. */
static bool server_of_sockets(const struct ptk_handover_server *server)
{
    return server->head.fd_count == 1 && server->xdp_mode == PTK_XDP_MODE_NONE &&
           server->queue_count == 0;
}

static bool server_of_queues(const struct ptk_handover_server *server)
{
    return server->head.fd_count == 4 && server->xdp_mode < PTK_XDP_MODE_VALUE_COUNT &&
           server->queue_count >= 1 && server->queue_count <= PTK_CPU_LIST_CAP &&
           server->interface_index != 0 && server->mtu > 0 && server->mtu <= MTU_MAX &&
           server->frame_count > 0 && server->frame_count <= FRAME_COUNT_MAX &&
           server->frame_len == PTK_FRAME_LEN && power_of_two(server->ring_len, RING_LEN_MAX) &&
           power_of_two(server->fill_len, 2 * RING_LEN_MAX) && server->multi_buffer <= 1;
}

static bool server_possible(const struct ptk_handover_server *server)
{
    if (server->port == 0 || server->port > 65535 || server->socket_count < 1 ||
        server->socket_count > PTK_CPU_LIST_CAP ||
        server->worker_count != server->queue_count + server->socket_count) {
        return false;
    }
    switch (server->path) {
    case PTK_DATAPATH_PATH_XDP:
        return server_of_queues(server);
    case PTK_DATAPATH_PATH_SOCKET:
        return server_of_sockets(server);
    default:
        return false;
    }
}

static bool message_possible(const union ptk_handover_message *message)
{
    const uint32_t fd_count = message->head.fd_count;
    switch (message->head.kind) {
    case PTK_HANDOVER_SERVER:
        return server_possible(&message->server);
    case PTK_HANDOVER_QUEUE:
        return fd_count == 2 && message->queue.idx < PTK_CPU_LIST_CAP;
    case PTK_HANDOVER_SOCKET:
        return message->socket.idx < PTK_CPU_LIST_CAP && message->socket.families >= 1 &&
               message->socket.families <= 3 &&
               fd_count == (uint32_t)__builtin_popcount(message->socket.families);
    case PTK_HANDOVER_REFUSE:
        return fd_count == 0 &&
               memchr(message->refuse.text, '\0', sizeof message->refuse.text) != NULL;
    default:
        return fd_count == 0;
    }
}

int ptk_handover_verify(const union ptk_handover_message *message, size_t len, size_t fd_count,
                        struct ptk_err *err)
{
    const struct ptk_handover_head *head = &message->head;
    if (len < sizeof *head || memcmp(head->magic, PTK_HANDOVER_MAGIC, sizeof head->magic) != 0) {
        return ptk_err_set(err, -EPROTO, "hand-over: %zu bytes that are no message of it", len);
    }
    if (head->version != PTK_HANDOVER_VERSION) {
        return ptk_err_set(err, -EPROTONOSUPPORT,
                           "hand-over: the other server speaks version %u of it, this one %u: "
                           "restart instead",
                           head->version, PTK_HANDOVER_VERSION);
    }
    if (head->kind < PTK_HANDOVER_HELLO || head->kind >= PTK_HANDOVER_KIND_COUNT ||
        head->len != len || len != LENGTHS[head->kind] || head->fd_count != fd_count ||
        !message_possible(message)) {
        return ptk_err_set(
            err, -EPROTO,
            "hand-over: a message of kind %u with %zu bytes and %zu descriptors that "
            "no server sends",
            head->kind, len, fd_count);
    }
    return 0;
}

void ptk_handover_head_init(struct ptk_handover_head *head, enum ptk_handover_kind kind,
                            uint32_t fd_count)
{
    PTK_ASSERT(kind < PTK_HANDOVER_KIND_COUNT);
    memcpy(head->magic, PTK_HANDOVER_MAGIC, sizeof head->magic);
    head->version = PTK_HANDOVER_VERSION;
    head->kind = kind;
    head->len = LENGTHS[kind];
    head->fd_count = fd_count;
}

/* Room for the descriptors of one message, aligned for its header. */
union control {
    struct cmsghdr header;
    uint8_t bytes[CMSG_SPACE(PTK_HANDOVER_FDS_MAX * sizeof(int))];
};

int ptk_handover_send(int socket_fd, const union ptk_handover_message *message, const int *fds,
                      struct ptk_err *err)
{
    PTK_ASSERT(message->head.fd_count <= PTK_HANDOVER_FDS_MAX);
    PTK_ASSERT((message->head.fd_count > 0) == (fds != NULL));
    struct iovec vector = {.iov_base = (void *)(uintptr_t)message, .iov_len = message->head.len};
    struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1};
    union control control;
    memset(&control, 0, sizeof control);
    const size_t fds_len = message->head.fd_count * sizeof(int);
    if (fds != NULL && fds_len > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(fds_len);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(fds_len);
        memcpy(CMSG_DATA(&control.header), fds, fds_len);
    }
    if (sendmsg(socket_fd, &header, MSG_NOSIGNAL) != (ssize_t)message->head.len) {
        const int code = -errno;
        return ptk_err_set(err, code, "hand-over: a message cannot be sent: %s", strerror(-code));
    }
    return 0;
}

void ptk_handover_send_refusal(int socket_fd, const struct ptk_err *cause)
{
    union ptk_handover_message message;
    memset(&message, 0, sizeof message);
    ptk_handover_head_init(&message.head, PTK_HANDOVER_REFUSE, 0);
    /* The sentence alone: what stands behind it in the caller's memory is not for others. */
    memcpy(message.refuse.text, cause->text, strnlen(cause->text, sizeof cause->text - 1));
    (void)ptk_handover_send(socket_fd, &message, NULL, NULL); /* It finds out by the end of file. */
}

/* Takes the descriptors of a received message; returns how many, at most the cap. */
static size_t take_descriptors(struct msghdr *header, int fds[PTK_HANDOVER_FDS_MAX])
{
    size_t count = 0;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item != NULL;
         item = CMSG_NXTHDR(header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        const size_t here = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < here; i++) {
            int fd = -1;
            memcpy(&fd, CMSG_DATA(item) + i * sizeof fd, sizeof fd);
            if (count < PTK_HANDOVER_FDS_MAX) {
                fds[count++] = fd;
            } else {
                (void)close(fd); /* Not possible in the room given; not kept either. */
            }
        }
    }
    return count;
}

int ptk_handover_receive(int socket_fd, enum ptk_handover_kind expected,
                         union ptk_handover_message *message, int fds[PTK_HANDOVER_FDS_MAX],
                         struct ptk_err *err)
{
    memset(message, 0, sizeof *message);
    struct iovec vector = {.iov_base = message, .iov_len = sizeof *message};
    union control control;
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    const ssize_t len = recvmsg(socket_fd, &header, MSG_CMSG_CLOEXEC);
    if (len < 0) {
        const int code = errno == EWOULDBLOCK ? -EAGAIN : -errno;
        return ptk_err_set(err, code, "hand-over: no message came: %s", strerror(-code));
    }
    const size_t fd_count = take_descriptors(&header, fds);
    int code = 0;
    if (len == 0) {
        code = ptk_err_set(err, -ECONNRESET, "hand-over: the other server is gone");
    } else if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
        code = ptk_err_set(err, -EPROTO, "hand-over: a message that is too long");
    } else {
        code = ptk_handover_verify(message, (size_t)len, fd_count, err);
    }
    if (code == 0 && message->head.kind == PTK_HANDOVER_REFUSE) {
        code = ptk_err_set(err, -ECONNREFUSED, "%s", message->refuse.text);
    } else if (code == 0 && message->head.kind != expected) {
        code = ptk_err_set(err, -EPROTO, "hand-over: a message of kind %u out of its turn",
                           message->head.kind);
    }
    for (size_t i = 0; i < fd_count && code != 0; i++) {
        (void)close(fds[i]);
    }
    return code;
}

int ptk_handover_check_peer(int socket_fd, struct ptk_err *err)
{
    struct ucred peer;
    socklen_t peer_len = sizeof peer;
    if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) != 0 ||
        peer.uid != geteuid()) {
        return ptk_err_set(err, -EPERM,
                           "hand-over: the process at the other end is another user's");
    }
    return 0;
}

bool ptk_handover_move(struct ptk_handover_block *block, enum ptk_handover_baton from,
                       enum ptk_handover_baton to)
{
    uint32_t expected = (uint32_t)from;
    return atomic_compare_exchange_strong_explicit(&block->baton, &expected, (uint32_t)to,
                                                   memory_order_acq_rel, memory_order_acquire);
}
