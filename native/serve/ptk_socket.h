/*
 * The kernel-socket path: one thread with an IPv4 and an IPv6 UDP socket, the same engine, the same
 * replies. It is the whole datapath with `--path socket`, and beside AF_XDP it answers what the XDP
 * program leaves to the kernel: fragments, IP options, queues without a poller, the moments of a
 * restart.
 *
 * Sockets of all workers share the port (SO_REUSEPORT). Each reply leaves from the address that was
 * asked, unfragmented, and is as large as the link of the asking interface carries.
 */
#ifndef PTK_SOCKET_H
#define PTK_SOCKET_H

#include "net/ptk_address.h"
#include "serve/ptk_datapath_worker.h"

/* Datagrams per system call. */
#define PTK_SOCKET_BATCH 16u

/* Interfaces whose MTU is known; a server without --iface may be asked over any of them. */
#define PTK_SOCKET_LINKS_MAX 64u

/* MTU of an interface that came up after the start: the least every Ethernet carries. */
#define PTK_SOCKET_MTU_UNKNOWN 1500u

struct ptk_socket_link {
    uint32_t index;
    uint32_t mtu;
};

/* What all socket workers share; constant after set-up. */
struct ptk_socket_scope {
    uint16_t port;                           /* host order */
    const struct ptk_address_set *addresses; /* destinations served; NULL: every local address */
    const struct ptk_address_set *local;     /* every local address, to know ourselves */
    uint32_t link_count;
    struct ptk_socket_link links[PTK_SOCKET_LINKS_MAX];
    uint32_t mtu_fixed; /* MTU for all replies when not 0, else that of the asking interface */
};

/* MTU that limits a reply to a datagram that came over this interface. */
uint32_t ptk_socket_mtu(const struct ptk_socket_scope *scope, uint32_t interface_index);

struct ptk_socket {
    struct ptk_worker worker;
    const struct ptk_socket_scope *scope;
    int fds[2]; /* IPv4, IPv6; -1: the host has no such protocol */
    struct ptk_socket_buffers *buffers;
};

/* Bytes of buffers a worker needs. */
size_t ptk_socket_memory_len(void);

/*
 * ptk_socket_open makes and binds the sockets, or takes the bound ones in `inherited` (IPv4, IPv6;
 * -1: none; closed with the rest, also on failure). One family may be missing on a host; both is an
 * error. `memory` has ptk_socket_memory_len() bytes, 64-byte aligned, and stays the caller's.
 */
int ptk_socket_open(struct ptk_socket *sockets, const struct ptk_socket_scope *scope,
                    const struct ptk_worker_config *worker, const int *inherited, void *memory,
                    struct ptk_err *err);
void ptk_socket_close(struct ptk_socket *sockets);

/* The thread: loops until the worker is told to stop and nothing waits any more. */
void *ptk_socket_main(void *sockets);

#endif
