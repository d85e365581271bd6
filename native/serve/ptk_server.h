/*
 * The server: sets up everything that answers packets, keeps house while it runs, drains and stops
 * it.
 *
 *     start    privileged: addresses, XDP program, packet memory, sockets, images, locks
 *              then: all capabilities dropped, worker threads started
 *     keep     main thread, every 20 ms: heartbeat, mailbox, counters of the kernel, link
 *     drain    queues back to the kernel's socket, rings emptied, sockets emptied, threads joined
 *
 * With take_over_path a start takes the place of a running server instead of opening its own: it
 * prepares everything, models included, beside that one, and lets it stand still only to take over
 * rings, frames, sockets and counters. Nothing is lost; if it fails before, the other one goes on.
 *
 * Threads: these functions belong to the main thread. A server is not started twice.
 */
#ifndef PTK_SERVER_H
#define PTK_SERVER_H

#include "base/ptk_cpu.h"
#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"
#include "net/ptk_frame.h"
#include "net/ptk_xsk.h"
#include "serve/ptk_guard.h"
#include "serve/ptk_models.h"

/* What --require can name: without it, a refusal to start. */
#define PTK_REQUIRE_XDP       0x01u /* the AF_XDP path */
#define PTK_REQUIRE_DRV       0x02u /* the driver's hook */
#define PTK_REQUIRE_ZEROCOPY  0x04u /* on every queue */
#define PTK_REQUIRE_HUGEPAGES 0x08u /* for packets, images and scratch */
#define PTK_REQUIRE_MEMLOCK   0x10u /* all memory locked */
#define PTK_REQUIRE_ISOLATION 0x20u /* every core isolated */

enum ptk_idle {
    PTK_IDLE_AUTO = 0, /* spin on isolated cores, else adaptive */
    PTK_IDLE_SPIN,
    PTK_IDLE_ADAPTIVE,
};

struct ptk_server_image {
    uint32_t slot;
    char name[PTK_STATS_MODEL_NAME_CAP];
    const char *path;
};

struct ptk_server_config {
    const char *interface;      /* NULL: none; then the path is the socket path */
    struct ptk_cpu_list queues; /* none: the first ones, as many as there are cores */
    /* At least one. The first ones serve queues, the next one the kernel's socket beside AF_XDP;
     * any further ones stay idle. */
    struct ptk_cpu_list cores;
    struct ptk_address_set address; /* none: those the interface, or the host, has at start */
    uint16_t port;
    enum ptk_datapath_path path; /* NONE: XDP if it can be had */
    enum ptk_xdp_mode xdp_mode;  /* NONE: the driver's hook if it can be had */
    enum ptk_zerocopy zerocopy;
    enum ptk_idle idle;
    bool checksum_off;             /* trust the network card */
    bool checksum_strict;          /* take no partial checksums of virtual drivers */
    uint32_t require;              /* PTK_REQUIRE_* */
    uint32_t ring_len;             /* entries of the receive and transmit ring, a power of two */
    uint32_t frame_count;          /* frames a queue; 0: what the rings need */
    uint32_t model_slots;          /* 1 to PTK_MODELS_CAP */
    size_t cache_len;              /* piece cache of each slot and worker, a power of two */
    uint32_t message_len_max;      /* longest message in segments */
    size_t arena_len;              /* memory of each worker for these; 0: 16 of them */
    struct ptk_guard_limits guard; /* but cycles_per_us */
    const char *keys_path;         /* of tenants, for ptk_guard_keys_parse; NULL: none */
    uint32_t drain_timeout_ms;
    const char *stats_path;     /* NULL: nobody looks */
    const char *mailbox_path;   /* NULL: no commands */
    const char *hand_over_path; /* socket by which a successor takes over; NULL: none can */
    const char *take_over_path; /* such a socket of the server whose place to take; NULL: start */
    const char *steer_object;   /* the XDP program's file */
    uint32_t image_count;
    struct ptk_server_image images[PTK_MODELS_CAP];
};

struct ptk_server;

/*
 * ptk_server_start sets everything up and returns with the workers running and no capability left.
 * Prints one line to standard error for each lesser mode it had to take, and a table of the memory.
 * On failure nothing is left behind, `*server` is NULL, and the sentence says what to do. `config`
 * is not used afterwards, except the strings it points to.
 */
int ptk_server_start(struct ptk_server **server, const struct ptk_server_config *config,
                     struct ptk_err *err);

/* How long the main thread may sleep between two calls of ptk_server_keep. */
#define PTK_SERVER_KEEP_MS 20

/* ptk_server_keep is one round of housekeeping. Returns false when the mailbox asks to drain, or
 * when another process has taken over. */
bool ptk_server_keep(struct ptk_server *server);

/* Has another process taken over? Then drain only ends the threads. */
bool ptk_server_given(const struct ptk_server *server);

/*
 * ptk_server_drain gives the queues back to the kernel's socket, lets the workers finish and joins
 * them, within the drain timeout. Returns the replies that could not be sent any more.
 */
uint64_t ptk_server_drain(struct ptk_server *server);

/* Frees everything. The workers have been joined. NULL is allowed. */
void ptk_server_stop(struct ptk_server *server);

#endif
