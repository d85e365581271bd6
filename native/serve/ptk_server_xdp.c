/* The AF_XDP path: which queues, the program, a socket and a poller for each. */
#include "serve/ptk_server_private.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* The fill ring holds twice what the receive ring does, so that it is never the bottleneck. */
static uint32_t fill_len(const struct ptk_server *server)
{
    return 2 * server->config.ring_len;
}

/* Frames for full rings everywhere, and one reply in parts beside them. */
uint32_t ptk_server_xdp_frame_count(const struct ptk_server *server)
{
    return server->config.frame_count != 0
               ? server->config.frame_count
               : fill_len(server) + 2 * server->config.ring_len + PTK_POLLER_PARTS_MAX;
}

uint32_t ptk_server_xdp_queue(const struct ptk_server *server, uint32_t i)
{
    return server->config.queues.count > 0 ? server->config.queues.ids[i] : i;
}

static int choose_queues(struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_cpu_list *asked = &server->config.queues;
    const uint32_t core_count = server->config.cores.count;
    const uint32_t present = server->iface.queue_count;
    if (asked->count > core_count) {
        return ptk_err_set(err, -EINVAL,
                           "--queues names %u queues and --cores %u cores: each queue needs a core",
                           asked->count, core_count);
    }
    for (uint32_t i = 0; i < asked->count; i++) {
        if (asked->ids[i] >= present) {
            return ptk_err_set(err, -EINVAL, "queue %u of %s: it has queues 0 to %u", asked->ids[i],
                               server->iface.name, present - 1);
        }
    }
    if (asked->count > 0) {
        server->queue_count = asked->count;
    } else {
        server->queue_count = present < core_count ? present : core_count;
    }
    if (server->queue_count < present) {
        ptk_server_note(
            server,
            "queues: %u of the %u queues of %s have no core, the kernel's socket answers "
            "their packets: name more cores, or ethtool -L %s combined %u",
            present - server->queue_count, present, server->iface.name, server->iface.name,
            server->queue_count);
    }
    return 0;
}

int ptk_server_xdp_plan(struct ptk_server *server, struct ptk_err *err)
{
    if (server->iface.mtu > PTK_POLLER_MTU_MAX) {
        return ptk_err_set(err, -EINVAL, "interface %s: an MTU of %u is more than the %u of AF_XDP",
                           server->iface.name, server->iface.mtu, PTK_POLLER_MTU_MAX);
    }
    if (server->addresses.count == 0) {
        return ptk_err_set(
            err, -EADDRNOTAVAIL,
            "interface %s: has no address to answer for; give it one (ip address add)",
            server->iface.name);
    }
    return choose_queues(server, err);
}

static size_t frames_len(const struct ptk_server *server)
{
    return (size_t)ptk_server_xdp_frame_count(server) * PTK_FRAME_LEN;
}

/* Frames and their places: fresh, or those of the server whose place this one takes. */
static int open_frames(struct ptk_server *server, uint32_t i, struct ptk_err *err)
{
    struct ptk_huge *frames = &server->queues[i].frames;
    const size_t len =
        frames_len(server) + ptk_frames_places_len(ptk_server_xdp_frame_count(server));
    if (!ptk_server_inherits(server)) {
        return ptk_huge_share(frames, "ptk-frames", len, server->iface.numa_node,
                              (server->config.require & PTK_REQUIRE_HUGEPAGES) != 0, err);
    }
    const int fd = ptk_server_heir_claim(&server->heir, i, 1);
    const int code = ptk_huge_inherit(frames, fd, len, err);
    if (code != 0) {
        (void)close(fd);
    }
    return code;
}

/* The socket: fresh and bound, or that of the server whose place this one takes. */
static int open_xsk(struct ptk_server *server, uint32_t i, const struct ptk_xsk_config *config,
                    struct ptk_err *err)
{
    struct ptk_xsk *xsk = &server->queues[i].xsk;
    if (!ptk_server_inherits(server)) {
        return ptk_xsk_open(xsk, config, err);
    }
    const int fd = ptk_server_heir_claim(&server->heir, i, 0);
    const int code = ptk_xsk_inherit(xsk, fd, config, err);
    if (code != 0) {
        (void)close(fd);
        return code;
    }
    xsk->bind_retries = (uint32_t)server->heir.entries[i].bind_retries;
    return 0;
}

static int open_queue(struct ptk_server *server, uint32_t i, struct ptk_err *err)
{
    struct ptk_server_queue *queue = &server->queues[i];
    int code = open_frames(server, i, err);
    if (code == 0) {
        ptk_server_note_pages(server, &queue->frames);
        code = ptk_server_worker_memory(server, &queue->memory,
                                        ptk_poller_memory_len(ptk_server_xdp_frame_count(server)),
                                        &queue->engine, &queue->bulk, &queue->guard, err);
    }
    if (code != 0) {
        return code;
    }
    const struct ptk_xsk_config config = {
        .interface = server->iface.name,
        .queue = queue->queue,
        .memory = queue->frames.base,
        .memory_len = frames_len(server),
        .rx_len = server->config.ring_len,
        .tx_len = server->config.ring_len,
        .fill_len = fill_len(server),
        .completion_len = server->config.ring_len,
        .zerocopy = server->config.zerocopy,
        .multi_buffer = server->iface.mtu > PTK_POLLER_MTU_SINGLE,
    };
    code = open_xsk(server, i, &config, err);
    if (code != 0) {
        return code;
    }
    if (!queue->xsk.zerocopy && queue->xsk.zerocopy_refusal[0] != '\0') {
        ptk_server_note(server, "zero-copy: queue %u of %s copies packets (%s)", queue->queue,
                        server->iface.name, queue->xsk.zerocopy_refusal);
    }
    if (!queue->xsk.zerocopy && (server->config.require & PTK_REQUIRE_ZEROCOPY) != 0) {
        return ptk_err_set(err, -EOPNOTSUPP,
                           "queue %u of %s: no zero-copy; leave zerocopy out of --require to copy",
                           queue->queue, server->iface.name);
    }
    return 0;
}

static int open_steer(struct ptk_server *server, const struct ptk_steer_config *config,
                      struct ptk_err *err)
{
    struct ptk_server_heir *heir = &server->heir;
    if (!ptk_server_inherits(server)) {
        return ptk_steer_attach(&server->steer, config, err);
    }
    const int code = ptk_steer_inherit(&server->steer, config, &heir->legacy, err);
    if (code == 0) {
        heir->legacy = (struct ptk_steer_legacy){
            .link_fd = -1, .sockets_fd = -1, .reasons_fd = -1, .mode = heir->legacy.mode};
    }
    return code;
}

int ptk_server_xdp_open(struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_steer_config steer = {
        .object_path = server->config.steer_object,
        .interface = server->iface.name,
        .interface_index = server->iface.index,
        .port = server->config.port,
        .addresses = &server->addresses,
        .networks = server->config.guard.networks,
        .network_count = server->config.guard.network_count,
        .mode = (server->config.require & PTK_REQUIRE_DRV) != 0 ? PTK_XDP_MODE_DRV
                                                                : server->config.xdp_mode,
    };
    server->queues = aligned_alloc(PTK_CACHE_LINE, server->queue_count * sizeof *server->queues);
    if (server->queues == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for %u queues", server->queue_count);
    }
    memset(server->queues, 0, server->queue_count * sizeof *server->queues);
    int code = open_steer(server, &steer, err);
    if (code == 0 && server->steer.driver_refusal[0] != '\0') {
        ptk_server_note(server,
                        "driver hook: %s (driver %s) runs the XDP program in the generic hook "
                        "(%s)",
                        server->iface.name, server->iface.driver, server->steer.driver_refusal);
    }
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        server->queues[i].queue = ptk_server_xdp_queue(server, i);
        code = open_queue(server, i, err);
    }
    if (code != 0) {
        ptk_server_xdp_close(server);
    }
    return code;
}

static void start_poller(struct ptk_server *server, uint32_t i)
{
    struct ptk_server_queue *queue = &server->queues[i];
    const struct ptk_poller_config config = {
        .worker = {.kind = PTK_WORKER_KIND_POLLER,
                   .cpu_id = server->config.cores.ids[i],
                   .queue = queue->queue,
                   .cycles_per_us = server->cycles_per_us,
                   .spin_us = server->spin_us,
                   /* A packet that the program has already redirected arrives within a moment. */
                   .quiet_us = 5000,
                   .engine = queue->engine,
                   .bulk = queue->bulk,
                   .guard = queue->guard,
                   .stats = &server->segment.workers[i],
                   .starts_held = ptk_server_inherits(server)},
        .rx = queue->xsk.rx,
        .tx = queue->xsk.tx,
        .fill = queue->xsk.fill,
        .completion = queue->xsk.completion,
        .socket_fd = queue->xsk.fd,
        .frame_memory = queue->frames.base,
        .frame_places = queue->frames.base + frames_len(server),
        .frame_count = ptk_server_xdp_frame_count(server),
        .inherits = ptk_server_inherits(server),
        .mtu = server->iface.mtu,
        .filter = {.own = &server->addresses,
                   .port = server->config.port,
                   .checksum = server->checksum},
        .memory = queue->memory.base,
    };
    ptk_poller_init(&queue->poller, &config);
    if (!ptk_server_inherits(server)) {
        /* The fill ring must not be empty when the first packet comes; the thread does not run yet.
         */
        (void)ptk_poller_step(&queue->poller);
    }
    struct ptk_stats_queue *stats = &server->segment.queues[i];
    stats->queue = queue->queue;
    stats->zerocopy = queue->xsk.zerocopy;
    stats->multi_buffer = queue->poller.multi_buffer;
    ptk_stats_store(&stats->counters[PTK_QUEUE_BIND_RETRIES], queue->xsk.bind_retries);
}

int ptk_server_xdp_pollers(struct ptk_server *server, struct ptk_err *err)
{
    int code = 0;
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        start_poller(server, i);
        if (!ptk_server_inherits(server)) {
            code = ptk_steer_socket_add(&server->steer, server->queues[i].queue,
                                        server->queues[i].xsk.fd, err);
        }
    }
    return code;
}

void ptk_server_xdp_close(struct ptk_server *server)
{
    ptk_steer_detach(&server->steer);
    for (uint32_t i = 0; i < server->queue_count && server->queues != NULL; i++) {
        ptk_xsk_close(&server->queues[i].xsk);
        ptk_huge_unmap(&server->queues[i].memory);
        ptk_huge_unmap(&server->queues[i].frames);
    }
    free(server->queues);
    server->queues = NULL;
    server->queue_count = 0;
}
