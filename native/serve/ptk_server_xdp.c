/* The AF_XDP path: which queues, the program, a socket and a poller for each. */
#include "serve/ptk_server_private.h"

#include <errno.h>
#include <stdlib.h>

/* The fill ring holds twice what the receive ring does, so that it is never the bottleneck. */
static uint32_t fill_len(const struct ptk_server *server)
{
    return 2 * server->config.ring_len;
}

/* Frames for full rings everywhere, and one reply in parts beside them. */
static uint32_t frame_count(const struct ptk_server *server)
{
    return server->config.frame_count != 0
               ? server->config.frame_count
               : fill_len(server) + 2 * server->config.ring_len + PTK_POLLER_PARTS_MAX;
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

static int open_queue(struct ptk_server *server, struct ptk_server_queue *queue,
                      struct ptk_err *err)
{
    const size_t frames_len = (size_t)frame_count(server) * PTK_FRAME_LEN;
    const size_t poller_len =
        ptk_align_up(ptk_poller_memory_len(frame_count(server)), PTK_CACHE_LINE);
    int code = ptk_server_worker_memory(server, &queue->memory, frames_len + poller_len,
                                        &queue->engine, err);
    if (code != 0) {
        return code;
    }
    const struct ptk_xsk_config config = {
        .interface = server->iface.name,
        .queue = queue->queue,
        .memory = queue->memory.base,
        .memory_len = frames_len,
        .rx_len = server->config.ring_len,
        .tx_len = server->config.ring_len,
        .fill_len = fill_len(server),
        .completion_len = server->config.ring_len,
        .zerocopy = server->config.zerocopy,
        .multi_buffer = server->iface.mtu > PTK_POLLER_MTU_SINGLE,
    };
    code = ptk_xsk_open(&queue->xsk, &config, err);
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

int ptk_server_xdp_open(struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_steer_config steer = {
        .object_path = server->config.steer_object,
        .interface = server->iface.name,
        .interface_index = server->iface.index,
        .port = server->config.port,
        .addresses = &server->addresses,
        .mode = (server->config.require & PTK_REQUIRE_DRV) != 0 ? PTK_XDP_MODE_DRV
                                                                : server->config.xdp_mode,
    };
    server->queues = aligned_alloc(PTK_CACHE_LINE, server->queue_count * sizeof *server->queues);
    if (server->queues == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for %u queues", server->queue_count);
    }
    memset(server->queues, 0, server->queue_count * sizeof *server->queues);
    int code = ptk_steer_attach(&server->steer, &steer, err);
    if (code == 0 && server->steer.driver_refusal[0] != '\0') {
        ptk_server_note(server,
                        "driver hook: %s (driver %s) runs the XDP program in the generic hook "
                        "(%s)",
                        server->iface.name, server->iface.driver, server->steer.driver_refusal);
    }
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        server->queues[i].queue =
            server->config.queues.count > 0 ? server->config.queues.ids[i] : i;
        code = open_queue(server, &server->queues[i], err);
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
                   .stats = &server->segment.workers[i]},
        .rx = queue->xsk.rx,
        .tx = queue->xsk.tx,
        .fill = queue->xsk.fill,
        .completion = queue->xsk.completion,
        .socket_fd = queue->xsk.fd,
        .frame_memory = queue->memory.base,
        .frame_count = frame_count(server),
        .mtu = server->iface.mtu,
        .filter = {.own = &server->addresses,
                   .port = server->config.port,
                   .checksum = server->checksum},
        .memory = queue->memory.base + (size_t)frame_count(server) * PTK_FRAME_LEN,
    };
    ptk_poller_init(&queue->poller, &config);
    /* The fill ring must not be empty when the first packet comes; the thread does not run yet. */
    (void)ptk_poller_step(&queue->poller);
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
        code = ptk_steer_socket_add(&server->steer, server->queues[i].queue,
                                    server->queues[i].xsk.fd, err);
    }
    return code;
}

void ptk_server_xdp_close(struct ptk_server *server)
{
    ptk_steer_detach(&server->steer);
    for (uint32_t i = 0; i < server->queue_count && server->queues != NULL; i++) {
        ptk_xsk_close(&server->queues[i].xsk);
        ptk_huge_unmap(&server->queues[i].memory);
    }
    free(server->queues);
    server->queues = NULL;
    server->queue_count = 0;
}
