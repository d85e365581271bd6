/*
 * The XDP program from outside: load, attach, arm, read, detach.
 *
 * It is attached by a bpf_link whose file descriptor only this process holds, so it is gone with
 * the process, however that ends. It never replaces another program: an interface that has one is
 * refused.
 */
#ifndef PTK_STEER_H
#define PTK_STEER_H

#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"
#include "net/ptk_address.h"

struct bpf_object;

struct ptk_steer_config {
    const char *object_path; /* ptk_steer.bpf.o */
    const char *interface;
    uint32_t interface_index;
    uint16_t port;                           /* host order */
    const struct ptk_address_set *addresses; /* at least one */
    const struct ptk_network *networks;      /* those that may send; none: all may */
    uint32_t network_count;
    enum ptk_xdp_mode mode; /* NONE: the driver first, then the generic hook */
};

struct ptk_steer {
    struct bpf_object *object;
    int link_fd; /* -1 when not attached */
    int sockets_fd;
    int reasons_fd;
    int old_reasons_fd; /* counters of the program that is not attached any more; -1: none */
    int inherited_fd;   /* the inherited one of these two; -1: none */
    /* What earlier programs have counted, without the two that `reasons` name. */
    uint64_t base[PTK_STEER_COUNTER_COUNT];
    uint32_t interface_index;
    uint32_t cpu_count;       /* copies of each counter */
    uint64_t *cpu_counters;   /* room for one counter's copies */
    enum ptk_xdp_mode mode;   /* obtained, as the kernel reports it */
    char driver_refusal[160]; /* why the driver's hook was not taken; "" if it was or was not asked
                               */
};

/*
 * ptk_steer_attach loads the program and attaches it. Needs CAP_BPF and CAP_NET_ADMIN. On failure
 * nothing stays attached and the sentence names the cause, for instance the program that is already
 * there.
 */
int ptk_steer_attach(struct ptk_steer *steer, const struct ptk_steer_config *config,
                     struct ptk_err *err);

/* What another process hands over of an attached program. */
struct ptk_steer_legacy {
    int link_fd;
    int sockets_fd;
    int reasons_fd;
    enum ptk_xdp_mode mode;
};

/*
 * ptk_steer_inherit loads this version's program beside the attached one, with its own addresses
 * and counters, and the inherited map of sockets; packets still go through the other one. Then
 * ptk_steer_switch puts it in that one's place, in one step for each packet; the counters go on.
 * Rights as ptk_steer_attach for the first, none for the second. The descriptors are the program's
 * from success on, and the caller's on failure.
 */
int ptk_steer_inherit(struct ptk_steer *steer, const struct ptk_steer_config *config,
                      const struct ptk_steer_legacy *legacy, struct ptk_err *err);
int ptk_steer_switch(struct ptk_steer *steer, struct ptk_err *err);

/* Packets of `queue` go to the AF_XDP socket from now on; or, with remove, to the kernel again. */
int ptk_steer_socket_add(struct ptk_steer *steer, uint32_t queue, int socket_fd,
                         struct ptk_err *err);
int ptk_steer_socket_remove(struct ptk_steer *steer, uint32_t queue, struct ptk_err *err);

/* Sums the program's counters, and those of all it has inherited from, over all CPUs; order of
 * counter group `steer`. */
int ptk_steer_counters(const struct ptk_steer *steer, uint64_t counters[PTK_STEER_COUNTER_COUNT]);

/* The same without this program's own map, which a successor is given: its `base`. */
int ptk_steer_past(const struct ptk_steer *steer, uint64_t counters[PTK_STEER_COUNTER_COUNT]);

/* Detaches and frees everything; does nothing on a zeroed struct whose link_fd is -1. */
void ptk_steer_detach(struct ptk_steer *steer);

#endif
