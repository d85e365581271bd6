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
#include "serve/ptk_datapath_segment.h"
#include "serve/ptk_poller.h"
#include "serve/ptk_server.h"
#include "serve/ptk_server_models.h"
#include "serve/ptk_socket.h"

#include <pthread.h>

/* One XDP queue: its memory holds frames, engine and the poller's own. */
struct ptk_server_queue {
    uint32_t queue;
    struct ptk_huge memory;
    struct ptk_xsk xsk;
    struct ptk_poller poller;
    struct ptk_engine *engine;
    pthread_t thread;
    bool running;
};

/* One socket worker: its memory holds engine and buffers. */
struct ptk_server_socket {
    struct ptk_huge memory;
    struct ptk_socket socket;
    struct ptk_engine *engine;
    pthread_t thread;
    bool running;
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
    uint64_t commands;
    uint64_t sample_at_ns; /* when the kernel's counters are read next */
    bool draining;
};

/* Names a lesser mode in one line on standard error and counts it. */
void ptk_server_note(struct ptk_server *server, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Memory, engine included, of `extra_len` bytes for one worker; the engine stands behind the extra
 * part. */
int ptk_server_worker_memory(struct ptk_server *server, struct ptk_huge *memory, size_t extra_len,
                             struct ptk_engine **engine, struct ptk_err *err);

/* ptk_server_xdp_open attaches the program and opens a socket on every queue; ptk_server_xdp_close
 * undoes what was done of it. The segment exists already: workers 0 to queue_count - 1 are the
 * pollers. */
int ptk_server_xdp_plan(struct ptk_server *server, struct ptk_err *err);
int ptk_server_xdp_open(struct ptk_server *server, struct ptk_err *err);
int ptk_server_xdp_pollers(struct ptk_server *server, struct ptk_err *err);
void ptk_server_xdp_close(struct ptk_server *server);

#endif
