/*
 * The server's own struct, shared by ptk_server*.c: set-up of a path, set-up as a whole,
 * housekeeping.
 */
#ifndef PTK_SERVER_PRIVATE_H
#define PTK_SERVER_PRIVATE_H

#include "base/ptk_huge.h"
#include "net/ptk_iface.h"
#include "net/ptk_steer.h"
#include "net/ptk_xsk.h"
#include "serve/ptk_bulk.h"
#include "serve/ptk_datapath_segment.h"
#include "serve/ptk_poller.h"
#include "serve/ptk_server.h"
#include "serve/ptk_server_handover.h"
#include "serve/ptk_server_models.h"
#include "serve/ptk_socket.h"

#include <pthread.h>

/* One XDP queue: frames and their places in memory that a successor inherits, engine and the
 * poller's own in memory of this process. */
struct ptk_server_queue {
    uint32_t queue;
    struct ptk_huge frames;
    struct ptk_huge memory;
    struct ptk_xsk xsk;
    struct ptk_poller poller;
    struct ptk_engine *engine;
    struct ptk_bulk *bulk;
    struct ptk_guard *guard;
    pthread_t thread;
    bool running;
};

/* One socket worker: its memory holds engine and buffers. */
struct ptk_server_socket {
    struct ptk_huge memory;
    struct ptk_socket socket;
    struct ptk_engine *engine;
    struct ptk_bulk *bulk;
    struct ptk_guard *guard;
    pthread_t thread;
    bool running;
};

/* A hand-over as the serving side sees it (ptk_server_giver.c). */
enum ptk_server_giver_step {
    PTK_SERVER_GIVER_LISTENING = 0,
    PTK_SERVER_GIVER_GREETED, /* connected; HELLO is to come */
    PTK_SERVER_GIVER_OFFERED, /* it has copies of everything; HOLD is to come */
};

struct ptk_server_giver {
    int listen_fd;
    char suffix[16]; /* of the socket's file until it is published */
    bool published;
    enum ptk_server_giver_step step;
    uint64_t deadline_ns; /* of the next message */
    int heir_fd;
    struct ptk_huge block_memory;
    bool given; /* another process serves now */
};

/* A hand-over as the side that takes over sees it (ptk_server_heir.c). */
struct ptk_server_heir_entry {
    int fds[2]; /* of a queue: AF_XDP socket, frames; of a socket worker: IPv4, IPv6 */
    uint32_t queue;
    uint64_t bind_retries;
};

struct ptk_server_heir {
    int giver_fd;
    struct ptk_handover_server offer;
    struct ptk_steer_legacy legacy;
    struct ptk_huge block_memory;
    struct ptk_handover_block *block;
    struct ptk_server_heir_entry *entries; /* queues first, then sockets */
};

struct ptk_server {
    struct ptk_server_config config;
    struct ptk_iface iface; /* name "" without an interface */
    struct ptk_address_set addresses;
    struct ptk_address_set local;
    struct ptk_socket_scope scope;
    enum ptk_datapath_path path;
    uint32_t cycles_per_us;
    uint32_t spin_us;
    bool cores_isolated;
    enum ptk_frame_checksum checksum;
    struct ptk_engine_limits engine_limits;
    struct ptk_bulk_limits bulk_limits;
    struct ptk_guard_limits guard_limits;
    struct ptk_guard_shared guard_shared;
    struct ptk_steer steer;
    uint32_t queue_count;
    struct ptk_server_queue *queues;
    uint32_t socket_count;
    struct ptk_server_socket *sockets;
    struct ptk_server_models models;
    struct ptk_segment segment;
    const struct ptk_mailbox *mailbox;
    uint64_t answered; /* mailbox sequence */
    uint32_t lesser_modes;
    bool memory_locked;
    enum ptk_page_kind worker_pages; /* the lesser kind of all worker memory */
    int link_fd;                     /* any IP socket, for questions about the interface */
    enum ptk_iface_link link;
    uint64_t link_changes;
    uint32_t queues_present; /* of the interface, at the last look */
    uint64_t queue_changes;
    uint64_t commands;
    uint64_t sample_at_ns; /* when the kernel's counters are read next */
    uint64_t take_overs;
    uint64_t take_over_gap_ns;
    bool draining;
    bool serves; /* rings, frames and sockets are this process's to work on */
    struct ptk_server_giver giver;
    struct ptk_server_heir heir; /* only while this process takes over */
};

/* Does this process take the place of another one, instead of opening everything itself? */
static inline bool ptk_server_inherits(const struct ptk_server *server)
{
    return server->config.take_over_path != NULL;
}

/* One line on standard error. */
void ptk_server_tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Names a lesser mode in one line on standard error and counts it. */
void ptk_server_note(struct ptk_server *server, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Takes note of what a piece of worker memory is made of. */
void ptk_server_note_pages(struct ptk_server *server, const struct ptk_huge *memory);

/* Memory for one worker: `extra_len` bytes, behind them the engine and the arena for long messages.
 */
int ptk_server_worker_memory(struct ptk_server *server, struct ptk_huge *memory, size_t extra_len,
                             struct ptk_engine **engine, struct ptk_bulk **bulk,
                             struct ptk_guard **guard,
                             struct ptk_err *err);

/* ptk_server_xdp_open attaches the program and opens a socket on every queue; ptk_server_xdp_close
 * undoes what was done of it. The segment exists already: workers 0 to queue_count - 1 are the
 * pollers. */
int ptk_server_xdp_plan(struct ptk_server *server, struct ptk_err *err);
int ptk_server_xdp_open(struct ptk_server *server, struct ptk_err *err);
int ptk_server_xdp_pollers(struct ptk_server *server, struct ptk_err *err);
void ptk_server_xdp_close(struct ptk_server *server);

/* Frames of each queue, and the number of the queue of poller `i`, as configured. */
uint32_t ptk_server_xdp_frame_count(const struct ptk_server *server);
uint32_t ptk_server_xdp_queue(const struct ptk_server *server, uint32_t i);

/* Looks at interface and link: housekeeping, some system calls. */
void ptk_server_watch(struct ptk_server *server);

/* Asks it of every worker; and waits until every worker stands between two loops, false when one
 * did not come to that in two seconds. */
void ptk_server_ask_all(struct ptk_server *server, enum ptk_worker_hold hold);
bool ptk_server_hold_all(struct ptk_server *server);

/*
 * The serving side of a hand-over: ptk_server_giver_open listens under a name of its own,
 * ptk_server_giver_publish puts that in the place of any older one, ptk_server_giver_keep is a
 * round of housekeeping and returns whether another process serves now. All do nothing without a
 * path.
 */
int ptk_server_giver_open(struct ptk_server *server, struct ptk_err *err);
int ptk_server_giver_publish(struct ptk_server *server, struct ptk_err *err);
bool ptk_server_giver_keep(struct ptk_server *server);
void ptk_server_giver_close(struct ptk_server *server);

/* Connects to the socket at `path` of a process of our user; a descriptor or a negative errno. */
int ptk_server_handover_connect(const char *path, struct ptk_err *err);

/*
 * The side that takes over: ptk_server_heir_open gets everything and compares it with the
 * configuration, ptk_server_heir_compare_queues the queues once they are chosen;
 * ptk_server_heir_claim gives a descriptor to whoever will close it; and ptk_server_heir_take, when
 * all workers stand before their first loop, makes this the process that serves. It fails only
 * before that.
 */
void ptk_server_heir_init(struct ptk_server_heir *heir);
int ptk_server_heir_open(struct ptk_server *server, struct ptk_err *err);
int ptk_server_heir_compare_queues(const struct ptk_server *server, struct ptk_err *err);
int ptk_server_heir_claim(struct ptk_server_heir *heir, uint32_t entry, uint32_t which);
int ptk_server_heir_take(struct ptk_server *server, struct ptk_err *err);
void ptk_server_heir_close(struct ptk_server *server);

#endif
