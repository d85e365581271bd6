/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the XDP program and the process that loads it both know. Nothing else crosses.
 */
#ifndef PTK_STEER_SHARED_H
#define PTK_STEER_SHARED_H

#include <linux/types.h>

/* Receive queues that the socket map has room for. */
#define PTK_STEER_QUEUES_MAX 256

/* Destination addresses that are served. */
#define PTK_STEER_ADDRESSES_MAX 256

/* Networks in the list of those that may send. */
#define PTK_STEER_NETWORKS_MAX 64

/* What is set before the program is loaded. */
struct ptk_steer_settings {
    __u16 port_be;
    __u16 listed; /* 1: only sources in the map of networks are let in */
};

/* A network, as key of the map: the length counts from the first bit of the 16 bytes. */
struct ptk_steer_network {
    __u32 prefix_len;
    __u32 words[4];
};

/*
 * A destination address, network order. IPv4 is written as IPv4-mapped IPv6 (::ffff:a.b.c.d), so
 * that one map holds both families and no IPv6 packet can match an IPv4 entry: the program refuses
 * to look up an IPv6 destination of that form.
 */
struct ptk_steer_address {
    __u32 words[4];
};

/*
 * Index of each per-CPU counter. The same order as counter group `steer` of spec/metrics.toml;
 * static asserts in net/ptk_steer.c hold the two together.
 */
enum ptk_steer_reason {
    PTK_STEER_REASON_REDIRECT = 0,
    PTK_STEER_REASON_PASS_NO_SOCKET,
    PTK_STEER_REASON_PASS_SHORT,
    PTK_STEER_REASON_PASS_NOT_IP,
    PTK_STEER_REASON_PASS_VLAN,
    PTK_STEER_REASON_PASS_NOT_UDP,
    PTK_STEER_REASON_PASS_IP_OPTIONS,
    PTK_STEER_REASON_PASS_FRAGMENT,
    PTK_STEER_REASON_PASS_LENGTH,
    PTK_STEER_REASON_PASS_PORT,
    PTK_STEER_REASON_PASS_ADDRESS,
    PTK_STEER_REASON_DROP_NOT_ALLOWED,
    PTK_STEER_REASON_COUNT,
};

#endif
