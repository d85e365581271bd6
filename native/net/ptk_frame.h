/*
 * One received packet: the door through which frames come in, and the headers of its reply.
 *
 *     Ethernet 14 . [802.1Q 4] . IPv4 20 | IPv6 40 . UDP 8 . payload
 *
 * The frame is parsed completely, as if the XDP program had not looked at it. What a reader of
 * `struct ptk_frame_view` may rely on: all offsets lie inside the frame, the payload ends inside
 * it, checksums were verified as the policy says, and the sender is one we may answer.
 */
#ifndef PTK_FRAME_H
#define PTK_FRAME_H

#include "base/ptk_base.h"
#include "net/ptk_address.h"

#define PTK_FRAME_ETH_LEN  14u
#define PTK_FRAME_VLAN_LEN 4u
#define PTK_FRAME_IPV4_LEN 20u
#define PTK_FRAME_IPV6_LEN 40u
#define PTK_FRAME_UDP_LEN  8u

/* Bytes before the payload: at most (tag, IPv6), and without Ethernet, which the MTU does not
 * count. */
#define PTK_FRAME_HEADERS_LEN_MAX                                                                  \
    (PTK_FRAME_ETH_LEN + PTK_FRAME_VLAN_LEN + PTK_FRAME_IPV6_LEN + PTK_FRAME_UDP_LEN)

/* Receive checksum policy. */
enum ptk_frame_checksum {
    PTK_FRAME_CHECKSUM_OFF = 0,    /* trust the network card */
    PTK_FRAME_CHECKSUM_VERIFY = 1, /* verify every packet */
    /* Verify, but also take the partial checksum that veth, tap and virtio deliver from a local
     * sender: the folded sum of the pseudo-header, which hardware would complete on the way out. */
    PTK_FRAME_CHECKSUM_PARTIAL = 2,
};

/* Why a frame was refused. The order of the `refused_` counters of a worker. */
enum ptk_frame_refusal {
    PTK_FRAME_OK = 0,
    PTK_FRAME_TRUNCATED,
    PTK_FRAME_PROTOCOL,
    PTK_FRAME_LENGTH,
    PTK_FRAME_IP_CHECKSUM,
    PTK_FRAME_UDP_CHECKSUM,
    PTK_FRAME_SOURCE,
    PTK_FRAME_DESTINATION,
    PTK_FRAME_REFUSAL_COUNT,
};

struct ptk_frame_filter {
    const struct ptk_address_set *own; /* addresses we answer for */
    uint16_t port;                     /* our UDP port, host order */
    enum ptk_frame_checksum checksum;
};

struct ptk_frame_view {
    uint32_t ip_off;      /* 14 or 18 */
    uint32_t payload_off; /* first byte of the UDP payload */
    uint32_t payload_len;
    bool ipv6;
    bool partial; /* accepted with a partial checksum */
};

/*
 * ptk_frame_parse reads the frame of `len` contiguous bytes and fills `view`. Returns PTK_FRAME_OK
 * or why the frame is refused; `view` is then unspecified. Cost: the UDP checksum over the payload.
 */
enum ptk_frame_refusal ptk_frame_parse(const uint8_t *frame, size_t len,
                                       const struct ptk_frame_filter *filter,
                                       struct ptk_frame_view *view);

/*
 * ptk_frame_reply_build writes the headers of the reply to `request` (a frame that parsed to
 * `view`) into `reply`, whose `payload_len` bytes of payload already stand at view->payload_off.
 * `reply` may be the request's own frame. Addresses and ports are swapped, the VLAN tag stays;
 * everything else is our own: TTL 64, no ECN, no fragmentation, lengths and checksums made anew.
 * Returns the length of the frame.
 */
size_t ptk_frame_reply_build(const uint8_t *request, const struct ptk_frame_view *view,
                             uint8_t *reply, size_t payload_len);

/*
 * ptk_checksum_add adds `len` bytes as 16-bit words of memory order to a sum; only the last part of
 * a message may have an odd length. ptk_checksum_fold brings the sum to 16 bits. The sum of ones'
 * complement arithmetic does not depend on byte order as long as words are read and stored alike.
 */
uint64_t ptk_checksum_add(uint64_t sum, const uint8_t *bytes, size_t len);
static inline uint16_t ptk_checksum_fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFFu) + (sum >> 32);
    sum = (sum & 0xFFFFFFFFu) + (sum >> 32);
    sum = (sum & 0xFFFFu) + (sum >> 16);
    sum = (sum & 0xFFFFu) + (sum >> 16);
    return (uint16_t)sum;
}

#endif
