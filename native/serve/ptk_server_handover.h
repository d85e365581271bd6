/*
 * What a running server says to the one that takes it over: messages over a unix socket that carry
 * the descriptors, and a block of shared memory for what is known only at the last moment.
 *
 *     heir                                   giver, which serves all the while
 *     HELLO              ->
 *                        <-  SERVER          block; XDP link, map of sockets, counters
 *                        <-  QUEUE, each     AF_XDP socket, frames
 *                        <-  SOCKET, each    kernel sockets with what they have queued
 *     maps, loads models, starts its threads held
 *     HOLD               ->
 *                            workers stand still, the block is filled, baton: STILL
 *                        <-  HELD
 *     takes the books over; baton STILL -> HEIR: from here on it serves
 *     TAKEN              ->
 *                            ends
 *     REFUSE with a sentence takes the place of any message, from either side.
 *
 * The baton decides: one word that both change by compare-and-exchange, so that a giver that loses
 * patience and an heir that was slow can never both serve. Whatever happens to the heir before that
 * word changes, the giver goes on.
 *
 * The messages are a door: everything in them is checked before anything is used, and the kernel
 * says who sent them. Both sides are on one machine, so integers and layouts are the machine's.
 */
#ifndef PTK_SERVER_HANDOVER_H
#define PTK_SERVER_HANDOVER_H

#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"
#include "gen/ptk_wire_gen.h"
#include "serve/ptk_guard.h"

#include <stdatomic.h>

/* Grows with every change of a layout below, of what lies in the frames' memory, and of a guard's
 * books. Another version is refused by name: then a server is restarted, not taken over. */
#define PTK_HANDOVER_MAGIC   "PTKHAND"
#define PTK_HANDOVER_VERSION 2u

/* Descriptors of the largest message. */
#define PTK_HANDOVER_FDS_MAX 4u

enum ptk_handover_kind {
    PTK_HANDOVER_HELLO = 1,
    PTK_HANDOVER_SERVER,
    PTK_HANDOVER_QUEUE,
    PTK_HANDOVER_SOCKET,
    PTK_HANDOVER_HOLD,
    PTK_HANDOVER_HELD,
    PTK_HANDOVER_TAKEN,
    PTK_HANDOVER_REFUSE,
    PTK_HANDOVER_KIND_COUNT,
};

/* HELLO, HOLD, HELD and TAKEN are this alone. */
struct ptk_handover_head {
    uint8_t magic[8];
    uint32_t version;
    uint32_t kind;
    uint32_t len;      /* of the whole message */
    uint32_t fd_count; /* descriptors that come with it */
};

/* Descriptors: the block; with XDP also link, map of sockets, map of counters. */
struct ptk_handover_server {
    struct ptk_handover_head head;
    uint32_t stats_version;
    uint32_t path;     /* enum ptk_datapath_path */
    uint32_t xdp_mode; /* enum ptk_xdp_mode */
    uint32_t port;
    uint32_t interface_index; /* 0: none */
    uint32_t mtu;
    uint32_t queue_count;
    uint32_t socket_count;
    uint32_t frame_count; /* of each queue */
    uint32_t frame_len;
    uint32_t ring_len;
    uint32_t fill_len;
    uint32_t multi_buffer;
    uint32_t worker_count; /* of the block: queues first, then sockets */
};

/* Descriptors: AF_XDP socket, frames and their places. */
struct ptk_handover_queue {
    struct ptk_handover_head head;
    uint32_t idx;
    uint32_t queue;
    uint64_t bind_retries;
};

/* Descriptors: the IPv4 socket if bit 0 of `families`, the IPv6 socket if bit 1. */
struct ptk_handover_socket {
    struct ptk_handover_head head;
    uint32_t idx;
    uint32_t families;
};

struct ptk_handover_refuse {
    struct ptk_handover_head head;
    char text[PTK_ERR_TEXT_CAP]; /* terminated */
};

union ptk_handover_message {
    struct ptk_handover_head head;
    struct ptk_handover_server server;
    struct ptk_handover_queue queue;
    struct ptk_handover_socket socket;
    struct ptk_handover_refuse refuse;
};

/* Who may work on rings, frames and sockets. */
enum ptk_handover_baton {
    PTK_HANDOVER_BATON_GIVER = 0,
    PTK_HANDOVER_BATON_STILL, /* nobody does: the heir may take it, the giver may take it back */
    PTK_HANDOVER_BATON_HEIR,
};

/* What a worker has counted; the order is that of the statistics segment, which only grows. */
struct ptk_handover_worker {
    uint64_t counters[PTK_STATS_COUNTER_CAP];
    uint64_t ops[PTK_STATS_OP_CAP];
    uint64_t verdicts[PTK_STATS_VERDICT_CAP];
    uint64_t item_verdicts[PTK_STATS_VERDICT_CAP];
    uint64_t latency[PTK_STATS_LATENCY_BUCKETS];
};

#define PTK_HANDOVER_STEER_CAP 64u

struct ptk_handover_block {
    _Atomic uint32_t baton; /* enum ptk_handover_baton */
    uint32_t reserved;
    /* Written by the giver before STILL. */
    uint64_t answered; /* mailbox sequence */
    uint64_t commands;
    uint64_t link_changes;
    uint64_t queue_changes;
    uint64_t take_overs;
    uint64_t still_at_ns; /* CLOCK_MONOTONIC: when the workers were asked to stand still */
    uint64_t steer[PTK_HANDOVER_STEER_CAP]; /* what earlier programs have counted */
    struct ptk_siphash_key secret;          /* of cookies, and of places in the guards' books */
    struct ptk_handover_worker workers[];   /* behind them the books of every worker's guard */
};

size_t ptk_handover_block_len(uint32_t worker_count);

/* Where the books of the guard of worker `i` lie, of `worker_count` workers. */
void *ptk_handover_books(struct ptk_handover_block *block, uint32_t worker_count, uint32_t i);

/*
 * ptk_handover_verify checks `len` bytes that came with `fd_count` descriptors. On 0 the message
 * has the length and the descriptors of its kind, every number is one that a server can have, and
 * texts are terminated. Else -EPROTO, or -EPROTONOSUPPORT for another version, with a sentence.
 */
int ptk_handover_verify(const union ptk_handover_message *message, size_t len, size_t fd_count,
                        struct ptk_err *err);

/* Fills the head of a message of this kind. */
void ptk_handover_head_init(struct ptk_handover_head *head, enum ptk_handover_kind kind,
                            uint32_t fd_count);

/* Sends a message with its descriptors, which stay the caller's. */
int ptk_handover_send(int socket_fd, const union ptk_handover_message *message, const int *fds,
                      struct ptk_err *err);

/* Sends the sentence of `cause`; the other side may be gone. */
void ptk_handover_send_refusal(int socket_fd, const struct ptk_err *cause);

/*
 * ptk_handover_receive takes one message of the kind expected and its descriptors, which are the
 * caller's from then on. The other side's REFUSE is an error with its sentence. -EAGAIN when
 * nothing came within the socket's own time limit, -ECONNRESET when the other side is gone. On an
 * error no descriptor stays open.
 */
int ptk_handover_receive(int socket_fd, enum ptk_handover_kind expected,
                         union ptk_handover_message *message, int fds[PTK_HANDOVER_FDS_MAX],
                         struct ptk_err *err);

/* 0 when the process at the other end of a unix socket belongs to our user, else -EPERM. */
int ptk_handover_check_peer(int socket_fd, struct ptk_err *err);

/* Moves the baton; false when it was not where the caller believed. */
bool ptk_handover_move(struct ptk_handover_block *block, enum ptk_handover_baton from,
                       enum ptk_handover_baton to);

#endif
