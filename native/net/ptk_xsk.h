/*
 * An AF_XDP socket: packet memory registered, four rings mapped, bound to one queue of one
 * interface.
 *
 *                     fill ->           rx ->
 *     our poller  =====================  kernel, one queue
 *                     tx ->     completion ->
 *
 * libxdp's xsk_* calls do the work; its own XDP program and dispatcher are not used. A socket that
 * another process has opened is mapped by the kernel's own interface: libxdp knows only sockets it
 * has made itself.
 */
#ifndef PTK_XSK_H
#define PTK_XSK_H

#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"
#include "net/ptk_ring.h"

struct ptk_xsk_library;

/* --zerocopy */
enum ptk_zerocopy {
    PTK_ZEROCOPY_AUTO = 0, /* zero-copy if the driver has it, else copy */
    PTK_ZEROCOPY_REQUIRE,
    PTK_ZEROCOPY_OFF,
};

struct ptk_xsk_config {
    const char *interface;
    uint32_t queue;
    uint8_t *memory; /* frames of PTK_FRAME_LEN; the caller keeps it until after ptk_xsk_close */
    size_t memory_len;
    uint32_t rx_len; /* entries; powers of two */
    uint32_t tx_len;
    uint32_t fill_len;
    uint32_t completion_len;
    enum ptk_zerocopy zerocopy;
    bool multi_buffer; /* packets may span several frames */
};

/*
 * Binding a queue whose last owner has just died fails with EBUSY until the kernel has taken its
 * socket apart, which it does on its own time. Observed below 100 ms; 2 s is the limit of patience.
 */
#define PTK_XSK_BIND_PATIENCE_MS 2000u

struct ptk_xsk {
    struct ptk_xsk_library *library; /* what libxdp knows of the socket; NULL: it is inherited */
    struct ptk_xsk_map {
        void *base;
        size_t len;
    } maps[4]; /* the rings of an inherited one */
    int fd;
    uint32_t bind_retries;
    bool zerocopy;             /* as the kernel reports it */
    char zerocopy_refusal[64]; /* why zero-copy was not obtained; "" if it was or was not asked for
                                */
    struct ptk_ring rx;
    struct ptk_ring tx;
    struct ptk_ring fill;
    struct ptk_ring completion;
};

/*
 * ptk_xsk_open registers the memory and binds. Needs CAP_NET_RAW, and CAP_IPC_LOCK for more memory
 * than the memlock limit. The queue must be handed to the socket afterwards (ptk_steer_socket_add).
 */
int ptk_xsk_open(struct ptk_xsk *xsk, const struct ptk_xsk_config *config, struct ptk_err *err);

/*
 * ptk_xsk_inherit maps the rings of the bound socket `fd`, which another process has opened for the
 * same config with ptk_xsk_open, and takes nothing from them: their positions are read when that
 * process has stopped (ptk_poller_inherit). Both may hold it at the same time; only one may use it.
 * Needs no right, and Linux 6.4: older ones map no rings of a bound socket. The descriptor is the
 * socket's from success on, and the caller's on failure.
 */
int ptk_xsk_inherit(struct ptk_xsk *xsk, int fd, const struct ptk_xsk_config *config,
                    struct ptk_err *err);

/* The kernel's six counters of this socket, at the first six places of counter group `queue`. */
int ptk_xsk_counters(const struct ptk_xsk *xsk, uint64_t counters[PTK_QUEUE_COUNTER_COUNT]);

/* Closes the socket and unregisters the memory; does nothing on a zeroed struct. */
void ptk_xsk_close(struct ptk_xsk *xsk);

#endif
