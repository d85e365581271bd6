/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The XDP program: packets that are certainly ours go to the AF_XDP socket of their queue,
 * everything else continues to the kernel untouched, where ARP, ICMP, TCP, other ports and our own
 * slow path live.
 *
 *     Ethernet . [one 802.1Q or 802.1ad tag] . IPv4 without options, not a fragment . UDP
 *                                            | IPv6 without extension headers      . UDP
 *
 * "Certainly ours" is the destination port and one of the destination addresses in the map. The
 * program does not look into the payload: what is no request of ours is refused, and counted, in
 * one place, the poller. It drops only what comes from outside the list of networks, where there is
 * one. Every way out has a counter.
 *
 * A VLAN tag that the network card has taken out of the frame (rx-vlan-offload) cannot be seen
 * here, and the reply would leave without it. So the address of a VLAN interface belongs into the
 * map only where that offload is off; the addresses of the interface itself never carry a tag.
 */
#include "bpf/ptk_steer_shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Set before the program is loaded; the verifier treats it as a constant. Network order. */
const volatile struct ptk_steer_settings ptk_settings = {0};

/* One slot a receive queue: the AF_XDP socket that takes its packets. */
struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, PTK_STEER_QUEUES_MAX);
    __type(key, __u32);
    __type(value, __u32);
} ptk_sockets SEC(".maps");

/* Destination addresses we answer for. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, PTK_STEER_ADDRESSES_MAX);
    __type(key, struct ptk_steer_address);
    __type(value, __u8);
} ptk_addresses SEC(".maps");

/* Networks that may send to us, if settings.listed. */
struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(max_entries, PTK_STEER_NETWORKS_MAX);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct ptk_steer_network);
    __type(value, __u8);
} ptk_networks SEC(".maps");

/* Packets by enum ptk_steer_reason, one copy a CPU. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, PTK_STEER_REASON_COUNT);
    __type(key, __u32);
    __type(value, __u64);
} ptk_reasons SEC(".maps");

struct vlan_tag {
    __be16 tci;
    __be16 protocol;
};

static __always_inline void count(__u32 reason)
{
    __u64 *packets = bpf_map_lookup_elem(&ptk_reasons, &reason);
    if (packets) {
        *packets += 1; /* This CPU's own copy: no atomic needed. */
    }
}

static __always_inline int pass(__u32 reason)
{
    count(reason);
    return XDP_PASS;
}

static __always_inline int is_vlan(__be16 protocol)
{
    return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

SEC("xdp.frags")
int ptk_steer(struct xdp_md *ctx)
{
    const void *const end = (const void *)(long)ctx->data_end;
    const void *cursor = (const void *)(long)ctx->data;
    const struct ethhdr *eth = cursor;
    struct ptk_steer_address address = {0};
    struct ptk_steer_network source = {0};
    __u64 ip_off; /* bytes before the IP header */
    __u64 ip_len; /* bytes the IP header announces, from its first byte */
    __u64 ip_header_len;
    __be16 protocol;

    source.prefix_len = 128; /* Set here: an initializer would stand beside the settings. */
    cursor = eth + 1;
    if (cursor > end) {
        return pass(PTK_STEER_REASON_PASS_SHORT); /* no whole Ethernet header */
    }
    protocol = eth->h_proto;
    ip_off = sizeof *eth;
    if (is_vlan(protocol)) {
        const struct vlan_tag *tag = cursor;
        cursor = tag + 1;
        if (cursor > end) {
            return pass(PTK_STEER_REASON_PASS_SHORT); /* no whole tag */
        }
        protocol = tag->protocol;
        ip_off += sizeof *tag;
        if (is_vlan(protocol)) {
            return pass(PTK_STEER_REASON_PASS_VLAN); /* stacked tags are the kernel's business */
        }
    }

    if (protocol == bpf_htons(ETH_P_IP)) {
        const struct iphdr *ip = cursor;
        cursor = ip + 1;
        if (cursor > end) {
            return pass(PTK_STEER_REASON_PASS_SHORT); /* no whole IPv4 header */
        }
        if (ip->version != 4) {
            return pass(PTK_STEER_REASON_PASS_NOT_IP); /* the EtherType lies */
        }
        if (ip->protocol != IPPROTO_UDP) {
            return pass(PTK_STEER_REASON_PASS_NOT_UDP); /* TCP, ICMP, ... */
        }
        if (ip->frag_off & bpf_htons(0x3FFF)) {
            return pass(PTK_STEER_REASON_PASS_FRAGMENT); /* the kernel reassembles */
        }
        if (ip->ihl != 5) {
            return pass(PTK_STEER_REASON_PASS_IP_OPTIONS); /* the kernel understands options */
        }
        ip_len = bpf_ntohs(ip->tot_len);
        ip_header_len = sizeof *ip;
        address.words[2] = bpf_htonl(0xFFFF);
        address.words[3] = ip->daddr;
        source.words[2] = address.words[2];
        source.words[3] = ip->saddr;
    } else if (protocol == bpf_htons(ETH_P_IPV6)) {
        const struct ipv6hdr *ip = cursor;
        cursor = ip + 1;
        if (cursor > end) {
            return pass(PTK_STEER_REASON_PASS_SHORT); /* no whole IPv6 header */
        }
        if (ip->version != 6) {
            return pass(PTK_STEER_REASON_PASS_NOT_IP); /* the EtherType lies */
        }
        switch (ip->nexthdr) {
        case IPPROTO_UDP:
            break;
        case IPPROTO_FRAGMENT:
            return pass(PTK_STEER_REASON_PASS_FRAGMENT); /* the kernel reassembles */
        case IPPROTO_HOPOPTS:
        case IPPROTO_ROUTING:
        case IPPROTO_DSTOPTS:
        case IPPROTO_AH:
        case IPPROTO_ESP:
        case IPPROTO_MH:
            return pass(PTK_STEER_REASON_PASS_IP_OPTIONS); /* the kernel walks extension headers */
        default:
            return pass(PTK_STEER_REASON_PASS_NOT_UDP); /* TCP, ICMPv6, ... */
        }
        ip_len = sizeof *ip + (__u64)bpf_ntohs(ip->payload_len);
        ip_header_len = sizeof *ip;
        __builtin_memcpy(address.words, &ip->daddr, sizeof address.words);
        __builtin_memcpy(source.words, &ip->saddr, sizeof source.words);
        if (address.words[0] == 0 && address.words[1] == 0 &&
            address.words[2] == bpf_htonl(0xFFFF)) {
            return pass(PTK_STEER_REASON_PASS_ADDRESS); /* an IPv4 entry must not match IPv6 */
        }
    } else {
        return pass(PTK_STEER_REASON_PASS_NOT_IP); /* ARP, LLDP, ... */
    }

    const struct udphdr *udp = cursor;
    cursor = udp + 1;
    if (cursor > end) {
        return pass(PTK_STEER_REASON_PASS_SHORT); /* no whole UDP header */
    }
    if (udp->dest != ptk_settings.port_be) {
        return pass(PTK_STEER_REASON_PASS_PORT); /* another service */
    }
    if (!bpf_map_lookup_elem(&ptk_addresses, &address)) {
        return pass(PTK_STEER_REASON_PASS_ADDRESS); /* another host, multicast, broadcast */
    }
    if (ptk_settings.listed && !bpf_map_lookup_elem(&ptk_networks, &source)) {
        count(PTK_STEER_REASON_DROP_NOT_ALLOWED);
        return XDP_DROP; /* the operator has said who may send here */
    }
    /* All lengths agree and the frame holds them; it may be longer (Ethernet padding). */
    if (ip_header_len + bpf_ntohs(udp->len) != ip_len || bpf_ntohs(udp->len) < sizeof *udp ||
        ip_off + ip_len > bpf_xdp_get_buff_len(ctx)) {
        return pass(PTK_STEER_REASON_PASS_LENGTH); /* the kernel counts and drops it */
    }

    /* XDP_PASS: what is returned when no socket is in the slot, so the kernel's socket answers. */
    const long verdict = bpf_redirect_map(&ptk_sockets, ctx->rx_queue_index, XDP_PASS);
    count(verdict == XDP_REDIRECT ? PTK_STEER_REASON_REDIRECT : PTK_STEER_REASON_PASS_NO_SOCKET);
    return (int)verdict;
}

/* The kernel knows no string for "GPL-2.0 OR Apache-2.0"; it is told the half that it asks for. */
char ptk_license[] SEC("license") = "GPL";
