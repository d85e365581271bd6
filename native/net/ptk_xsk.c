/* AF_XDP sockets over libxdp, program loading inhibited. */
#include "net/ptk_xsk.h"

#include "base/ptk_caps.h"
#include "base/ptk_cpu.h"
#include "net/ptk_frames.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xdp/xsk.h>

/* Newer than the headers of Debian 12; values of the kernel's interface, which never change. */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4) /* bind flag: packets in several buffers, Linux 6.6 */
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9 /* socket option: packets a send call may send, Linux 6.17 */
#endif

/* Some drivers let the kernel's internal ENOTSUPP out; the C library has no name for it. */
#define KERNEL_ENOTSUPP 524

/* Copy mode sends inside our wake-up, this many packets a call instead of 32: fewer calls under
 * load. */
#define TX_BUDGET 256u

/* Copy mode makes an skb of each reply; the default buffer limit would allow a hundred or so. */
#define SEND_BUFFER_LEN (8 << 20)

/* libxdp keeps pointers to the ring structs it fills and reads them when it closes, so they live as
 * long as the socket. The poller works on its own structs, which describe the same shared memory.
 */
struct ptk_xsk_library {
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    struct xsk_ring_prod fill;
    struct xsk_ring_prod tx;
    struct xsk_ring_cons rx;
    struct xsk_ring_cons completion;
};

static void take_producer(struct ptk_ring *ring, const struct xsk_ring_prod *source)
{
    memset(ring, 0, sizeof *ring);
    ring->len = source->size;
    ring->producer = source->producer;
    ring->consumer = source->consumer;
    ring->flags = source->flags;
    ring->entries = source->ring;
    ring->position = __atomic_load_n(ring->producer, __ATOMIC_RELAXED);
    ring->other = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
}

static void take_consumer(struct ptk_ring *ring, const struct xsk_ring_cons *source)
{
    memset(ring, 0, sizeof *ring);
    ring->len = source->size;
    ring->producer = source->producer;
    ring->consumer = source->consumer;
    ring->flags = source->flags;
    ring->entries = source->ring;
    ring->position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
    ring->other = ring->position;
}

static int memory_error(const struct ptk_xsk_config *config, int code, struct ptk_err *err)
{
    switch (code) {
    case -EPERM:
        return ptk_err_set(err, code, "queue %u of %s: an AF_XDP socket is not permitted%s",
                           config->queue, config->interface, ptk_caps_hint(CAP_NET_RAW));
    case -ENOBUFS:
        /* The kernel's word for the memlock limit; it has nothing to do with network buffers. */
        return ptk_err_set(err, code, "queue %u of %s: %zu MiB of packet memory cannot be locked%s",
                           config->queue, config->interface, config->memory_len >> 20,
                           ptk_caps_hint(CAP_IPC_LOCK));
    case -EAFNOSUPPORT:
        return ptk_err_set(
            err, code,
            "queue %u of %s: no AF_XDP here: a kernel without CONFIG_XDP_SOCKETS, or a "
            "service unit without AF_XDP in RestrictAddressFamilies",
            config->queue, config->interface);
    default:
        return ptk_err_set(err, code, "queue %u of %s: packet memory cannot be registered: %s",
                           config->queue, config->interface, strerror(-code));
    }
}

static int bind_error(const struct ptk_xsk_config *config, int code, struct ptk_err *err)
{
    switch (code) {
    case -EBUSY:
        return ptk_err_set(err, code, "queue %u of %s: busy (another AF_XDP socket is bound)",
                           config->queue, config->interface);
    case -EOPNOTSUPP:
    case -EINVAL:
        return ptk_err_set(
            err, code, "queue %u of %s: the driver refuses %s (%s)%s", config->queue,
            config->interface,
            config->zerocopy == PTK_ZEROCOPY_REQUIRE ? "zero-copy" : "an AF_XDP socket",
            strerror(-code),
            config->multi_buffer ? "; packets in several buffers are needed for this MTU" : "");
    default:
        return ptk_err_set(err, code, "queue %u of %s: cannot be bound: %s", config->queue,
                           config->interface, strerror(-code));
    }
}

/* One attempt from nothing to bound. A socket whose bind has failed is not used again: libxdp would
 * have to unwind it, and a fresh one costs only set-up time. */
static int open_once(struct ptk_xsk *xsk, const struct ptk_xsk_config *config, uint16_t copy_flag,
                     bool *memory_failed)
{
    struct ptk_xsk_library *library = xsk->library;
    memset(library, 0, sizeof *library);
    const struct xsk_umem_config umem_config = {
        .fill_size = config->fill_len,
        .comp_size = config->completion_len,
        .frame_size = PTK_FRAME_LEN,
    };
    struct xsk_socket_config socket_config = {
        .rx_size = config->rx_len,
        .tx_size = config->tx_len,
        .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .bind_flags = (uint16_t)(XDP_USE_NEED_WAKEUP | copy_flag),
    };
    if (config->multi_buffer) {
        socket_config.bind_flags = (uint16_t)(socket_config.bind_flags | XDP_USE_SG);
    }
    int code = xsk_umem__create(&library->umem, config->memory, config->memory_len, &library->fill,
                                &library->completion, &umem_config);
    *memory_failed = code != 0;
    if (code != 0) {
        library->umem = NULL;
        return code;
    }
    code = xsk_socket__create(&library->socket, config->interface, config->queue, library->umem,
                              &library->rx, &library->tx, &socket_config);
    if (code != 0) {
        library->socket = NULL;
        (void)xsk_umem__delete(library->umem); /* Nothing uses it: cannot be busy. */
        library->umem = NULL;
        return code;
    }
    xsk->fd = xsk_socket__fd(library->socket);
    take_producer(&xsk->fill, &library->fill);
    take_producer(&xsk->tx, &library->tx);
    take_consumer(&xsk->rx, &library->rx);
    take_consumer(&xsk->completion, &library->completion);
    return 0;
}

/* open_once again and again while the queue's last owner is being taken apart. */
static int open_patiently(struct ptk_xsk *xsk, const struct ptk_xsk_config *config,
                          uint16_t copy_flag, bool *memory_failed)
{
    const uint64_t deadline_ns = ptk_clock_ns() + PTK_XSK_BIND_PATIENCE_MS * 1000000ull;
    long pause_ms = 2;
    for (;;) {
        const int code = open_once(xsk, config, copy_flag, memory_failed);
        if (code != -EBUSY || ptk_clock_ns() >= deadline_ns) {
            return code;
        }
        xsk->bind_retries++;
        const struct timespec pause = {.tv_nsec = pause_ms * 1000000};
        (void)nanosleep(&pause, NULL); /* Cut short by a signal: one attempt more. */
        pause_ms = pause_ms < 64 ? pause_ms * 2 : pause_ms;
    }
}

static bool reports_zerocopy(int fd)
{
    struct xdp_options options = {0};
    socklen_t options_len = sizeof options;
    return getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &options_len) == 0 &&
           (options.flags & XDP_OPTIONS_ZEROCOPY) != 0;
}

int ptk_xsk_open(struct ptk_xsk *xsk, const struct ptk_xsk_config *config, struct ptk_err *err)
{
    memset(xsk, 0, sizeof *xsk);
    xsk->library = calloc(1, sizeof *xsk->library);
    if (xsk->library == NULL) {
        return ptk_err_set(err, -ENOMEM, "queue %u of %s: no memory", config->queue,
                           config->interface);
    }
    bool memory_failed = false;
    int code = -EOPNOTSUPP;
    if (config->zerocopy != PTK_ZEROCOPY_OFF) {
        code = open_patiently(xsk, config, XDP_ZEROCOPY, &memory_failed);
    }
    const bool no_zerocopy = code == -EOPNOTSUPP || code == -EINVAL || code == -KERNEL_ENOTSUPP;
    if (config->zerocopy != PTK_ZEROCOPY_REQUIRE && no_zerocopy && !memory_failed) {
        if (config->zerocopy == PTK_ZEROCOPY_AUTO) {
            /* strerror's text fits; a longer one may be cut. */
            strncpy(xsk->zerocopy_refusal, strerror(-code), sizeof xsk->zerocopy_refusal - 1);
        }
        code = open_patiently(xsk, config, XDP_COPY, &memory_failed);
    }
    if (code != 0) {
        ptk_xsk_close(xsk);
        return memory_failed ? memory_error(config, code, err) : bind_error(config, code, err);
    }
    xsk->zerocopy = reports_zerocopy(xsk->fd);
    if (!xsk->zerocopy) {
        /* Both make copy mode faster and are refused by older kernels or without the right. */
        const int send_buffer_len = SEND_BUFFER_LEN;
        if (setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer_len,
                       sizeof send_buffer_len) != 0) {
            (void)setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUF, &send_buffer_len,
                             sizeof send_buffer_len);
        }
        const uint32_t budget = config->tx_len < TX_BUDGET ? config->tx_len : TX_BUDGET;
        (void)setsockopt(xsk->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget);
    }
    return 0;
}

/* One ring of a socket as the kernel lays it out. */
struct ring_layout {
    uint64_t page_off; /* names the ring to mmap */
    const struct xdp_ring_offset *offsets;
    uint32_t len;
    size_t entry_len;
};

static int map_ring(int fd, const struct ring_layout *layout, struct ptk_xsk_map *map,
                    struct ptk_ring *ring)
{
    map->len = layout->offsets->desc + layout->len * layout->entry_len;
    void *base = mmap(NULL, map->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                      (off_t)layout->page_off);
    if (base == MAP_FAILED) {
        return -errno;
    }
    map->base = base;
    memset(ring, 0, sizeof *ring);
    ring->len = layout->len;
    ring->producer = (void *)((uint8_t *)base + layout->offsets->producer);
    ring->consumer = (void *)((uint8_t *)base + layout->offsets->consumer);
    ring->flags = (void *)((uint8_t *)base + layout->offsets->flags);
    ring->entries = (uint8_t *)base + layout->offsets->desc;
    return 0;
}

static void unmap_rings(struct ptk_xsk *xsk)
{
    for (size_t i = 0; i < PTK_ARRAY_LEN(xsk->maps); i++) {
        if (xsk->maps[i].base != NULL) {
            (void)munmap(xsk->maps[i].base, xsk->maps[i].len); /* Our own: cannot fail. */
        }
    }
}

int ptk_xsk_inherit(struct ptk_xsk *xsk, int fd, const struct ptk_xsk_config *config,
                    struct ptk_err *err)
{
    memset(xsk, 0, sizeof *xsk);
    struct xdp_mmap_offsets offsets;
    socklen_t offsets_len = sizeof offsets;
    if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &offsets_len) != 0 ||
        offsets_len != sizeof offsets) {
        return ptk_err_set(err, -EINVAL, "queue %u of %s: what was handed over is no AF_XDP socket",
                           config->queue, config->interface);
    }
    const struct ring_layout layouts[] = {
        {XDP_PGOFF_RX_RING, &offsets.rx, config->rx_len, sizeof(struct xdp_desc)},
        {XDP_PGOFF_TX_RING, &offsets.tx, config->tx_len, sizeof(struct xdp_desc)},
        {XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, config->fill_len, sizeof(uint64_t)},
        {XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, config->completion_len, sizeof(uint64_t)},
    };
    struct ptk_ring *const rings[] = {&xsk->rx, &xsk->tx, &xsk->fill, &xsk->completion};
    for (size_t i = 0; i < PTK_ARRAY_LEN(layouts); i++) {
        const int code = map_ring(fd, &layouts[i], &xsk->maps[i], rings[i]);
        if (code != 0) {
            unmap_rings(xsk);
            memset(xsk, 0, sizeof *xsk);
            return ptk_err_set(err, code, "queue %u of %s: inherited rings cannot be mapped: %s%s",
                               config->queue, config->interface, strerror(-code),
                               code == -EBUSY ? " (a kernel before 6.4 maps no rings of a bound "
                                                "socket: restart instead)"
                                              : "");
        }
    }
    xsk->fd = fd;
    xsk->zerocopy = reports_zerocopy(fd);
    return 0;
}

int ptk_xsk_counters(const struct ptk_xsk *xsk, uint64_t counters[PTK_QUEUE_COUNTER_COUNT])
{
    struct xdp_statistics statistics;
    memset(&statistics, 0, sizeof statistics);
    socklen_t statistics_len = sizeof statistics;
    if (getsockopt(xsk->fd, SOL_XDP, XDP_STATISTICS, &statistics, &statistics_len) != 0) {
        return -errno;
    }
    counters[PTK_QUEUE_RX_DROPPED] = statistics.rx_dropped;
    counters[PTK_QUEUE_RX_INVALID_DESCS] = statistics.rx_invalid_descs;
    counters[PTK_QUEUE_TX_INVALID_DESCS] = statistics.tx_invalid_descs;
    counters[PTK_QUEUE_RX_RING_FULL] = statistics.rx_ring_full;
    counters[PTK_QUEUE_RX_FILL_RING_EMPTY] = statistics.rx_fill_ring_empty_descs;
    counters[PTK_QUEUE_TX_RING_EMPTY] = statistics.tx_ring_empty_descs;
    return 0;
}

void ptk_xsk_close(struct ptk_xsk *xsk)
{
    struct ptk_xsk_library *library = xsk->library;
    if (library != NULL && library->socket != NULL) {
        xsk_socket__delete(library->socket);
    }
    if (library != NULL && library->umem != NULL) {
        (void)xsk_umem__delete(library->umem); /* Its only socket is closed: cannot be busy. */
    }
    if (library == NULL && xsk->maps[0].base != NULL) {
        unmap_rings(xsk);
        (void)close(xsk->fd); /* Nothing is written by closing. */
    }
    free(library);
    memset(xsk, 0, sizeof *xsk);
}
