/* Frames in, reply headers out. */
#include "net/ptk_frame.h"

#define ETHERTYPE_IPV4         0x0800u
#define ETHERTYPE_IPV6         0x86DDu
#define ETHERTYPE_VLAN         0x8100u
#define ETHERTYPE_SERVICE_VLAN 0x88A8u
#define PROTOCOL_UDP           17u
#define REPLY_TTL              64u
#define IPV4_DONT_FRAGMENT     0x40u

static uint16_t load_be16(const uint8_t *src)
{
    return __builtin_bswap16(ptk_load_u16(src));
}

static void store_be16(uint8_t *dst, size_t value)
{
    PTK_DCHECK(value <= 0xFFFF);
    ptk_store_u16(dst, __builtin_bswap16((uint16_t)value));
}

uint64_t ptk_checksum_add(uint64_t sum, const uint8_t *bytes, size_t len)
{
    size_t off = 0;
    /* 32-bit words into a 64-bit sum: no carry to handle below 2^32 words, and the compiler
     * vectorizes. */
    for (; off + 4 <= len; off += 4) {
        sum += ptk_load_u32(bytes + off);
    }
    if (off + 2 <= len) {
        sum += ptk_load_u16(bytes + off);
        off += 2;
    }
    if (off < len) {
        sum += bytes[off]; /* Padded with a zero byte behind it. */
    }
    return sum;
}

/* Sum of the pseudo-header: addresses as they stand in the IP header, protocol, UDP length. */
static uint64_t pseudo_header_sum(const uint8_t *ip, bool ipv6, size_t udp_len)
{
    uint64_t sum = ipv6 ? ptk_checksum_add(0, ip + 8, 32) : ptk_checksum_add(0, ip + 12, 8);
    sum += (uint64_t)PROTOCOL_UDP << 8; /* In memory order: 0x00, 0x11. */
    sum += __builtin_bswap16((uint16_t)udp_len);
    return sum;
}

static enum ptk_frame_refusal verify_udp_checksum(const uint8_t *ip, const uint8_t *udp,
                                                  size_t udp_len, enum ptk_frame_checksum policy,
                                                  struct ptk_frame_view *view)
{
    const uint16_t stored = ptk_load_u16(udp + 6);
    if (stored == 0) {
        /* "Not computed": allowed over IPv4, forbidden over IPv6. */
        return view->ipv6 ? PTK_FRAME_UDP_CHECKSUM : PTK_FRAME_OK;
    }
    if (policy == PTK_FRAME_CHECKSUM_OFF) {
        return PTK_FRAME_OK;
    }
    const uint64_t pseudo = pseudo_header_sum(ip, view->ipv6, udp_len);
    if (policy == PTK_FRAME_CHECKSUM_PARTIAL && stored == ptk_checksum_fold(pseudo)) {
        view->partial = true;
        return PTK_FRAME_OK;
    }
    const uint16_t total = ptk_checksum_fold(ptk_checksum_add(pseudo, udp, udp_len));
    return total == 0xFFFF ? PTK_FRAME_OK : PTK_FRAME_UDP_CHECKSUM;
}

/* Checks the IP header at view->ip_off; on success sets ipv6 and payload_off, and `ip_len`, the
 * bytes from the IP header to the end of its payload. */
static enum ptk_frame_refusal parse_ip(const uint8_t *frame, size_t len, uint16_t ethertype,
                                       const struct ptk_frame_filter *filter,
                                       struct ptk_frame_view *view, size_t *ip_len)
{
    const uint8_t *ip = frame + view->ip_off;
    const size_t rest = len - view->ip_off;
    if (ethertype == ETHERTYPE_IPV4) {
        if (rest < PTK_FRAME_IPV4_LEN + PTK_FRAME_UDP_LEN) {
            return PTK_FRAME_TRUNCATED;
        }
        /* Version 4, header of 20 bytes, UDP, no fragment: all else is the kernel's. */
        if (ip[0] != 0x45 || ip[9] != PROTOCOL_UDP || (load_be16(ip + 6) & 0x3FFFu) != 0) {
            return PTK_FRAME_PROTOCOL;
        }
        if (filter->checksum != PTK_FRAME_CHECKSUM_OFF &&
            ptk_checksum_fold(ptk_checksum_add(0, ip, PTK_FRAME_IPV4_LEN)) != 0xFFFF) {
            return PTK_FRAME_IP_CHECKSUM;
        }
        view->ipv6 = false;
        view->payload_off = view->ip_off + PTK_FRAME_IPV4_LEN + PTK_FRAME_UDP_LEN;
        *ip_len = load_be16(ip + 2);
        return PTK_FRAME_OK;
    }
    if (ethertype == ETHERTYPE_IPV6) {
        if (rest < PTK_FRAME_IPV6_LEN + PTK_FRAME_UDP_LEN) {
            return PTK_FRAME_TRUNCATED;
        }
        if ((ip[0] >> 4) != 6 || ip[6] != PROTOCOL_UDP) {
            return PTK_FRAME_PROTOCOL;
        }
        view->ipv6 = true;
        view->payload_off = view->ip_off + PTK_FRAME_IPV6_LEN + PTK_FRAME_UDP_LEN;
        *ip_len = PTK_FRAME_IPV6_LEN + (size_t)load_be16(ip + 4);
        return PTK_FRAME_OK;
    }
    return PTK_FRAME_PROTOCOL;
}

/* May this sender be answered, and was this sent to us? */
static enum ptk_frame_refusal verify_ends(const uint8_t *frame,
                                          const struct ptk_frame_filter *filter,
                                          const struct ptk_frame_view *view)
{
    const uint8_t *ip = frame + view->ip_off;
    const uint8_t *udp = frame + view->payload_off - PTK_FRAME_UDP_LEN;
    const struct ptk_address source =
        view->ipv6 ? ptk_address_from_ipv6(ip + 8) : ptk_address_from_ipv4(ip + 12);
    const struct ptk_address target =
        view->ipv6 ? ptk_address_from_ipv6(ip + 24) : ptk_address_from_ipv4(ip + 16);

    /* Bit 0 of a MAC address marks a group: a group cannot send, and what is sent to one is not for
     * us. */
    if ((frame[0] & 1) != 0 || ptk_address_is_ipv4(&target) == view->ipv6 ||
        !ptk_address_set_has(filter->own, &target) || load_be16(udp + 2) != filter->port) {
        return PTK_FRAME_DESTINATION;
    }
    if ((frame[6] & 1) != 0 || ptk_address_is_ipv4(&source) == view->ipv6 ||
        !ptk_address_unicast(&source) || ptk_address_loopback(&source) ||
        ptk_address_set_has(filter->own, &source) || !ptk_port_answerable(load_be16(udp))) {
        return PTK_FRAME_SOURCE;
    }
    return PTK_FRAME_OK;
}

enum ptk_frame_refusal ptk_frame_parse(const uint8_t *frame, size_t len,
                                       const struct ptk_frame_filter *filter,
                                       struct ptk_frame_view *view)
{
    memset(view, 0, sizeof *view);
    if (len < PTK_FRAME_ETH_LEN) {
        return PTK_FRAME_TRUNCATED;
    }
    uint16_t ethertype = load_be16(frame + 12);
    view->ip_off = PTK_FRAME_ETH_LEN;
    if (ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN) {
        if (len < PTK_FRAME_ETH_LEN + PTK_FRAME_VLAN_LEN) {
            return PTK_FRAME_TRUNCATED;
        }
        ethertype = load_be16(frame + 16);
        view->ip_off += PTK_FRAME_VLAN_LEN;
    }
    size_t ip_len = 0;
    enum ptk_frame_refusal refusal = parse_ip(frame, len, ethertype, filter, view, &ip_len);
    if (refusal != PTK_FRAME_OK) {
        return refusal;
    }
    /* All lengths agree; the frame may be longer than they say (Ethernet padding), not shorter. */
    const size_t headers_len = view->payload_off - view->ip_off;
    const uint8_t *udp = frame + view->payload_off - PTK_FRAME_UDP_LEN;
    const size_t udp_len = load_be16(udp + 4);
    if (udp_len < PTK_FRAME_UDP_LEN || headers_len - PTK_FRAME_UDP_LEN + udp_len != ip_len) {
        return PTK_FRAME_LENGTH;
    }
    if (view->ip_off + ip_len > len) {
        return PTK_FRAME_TRUNCATED;
    }
    view->payload_len = (uint32_t)(udp_len - PTK_FRAME_UDP_LEN);
    refusal = verify_ends(frame, filter, view);
    if (refusal != PTK_FRAME_OK) {
        return refusal;
    }
    return verify_udp_checksum(frame + view->ip_off, udp, udp_len, filter->checksum, view);
}

static void build_ipv4(uint8_t *ip, const uint8_t *request_ip, size_t ip_len)
{
    const uint32_t source = ptk_load_u32(request_ip + 12);
    const uint32_t target = ptk_load_u32(request_ip + 16);
    memset(ip, 0, PTK_FRAME_IPV4_LEN); /* Identification 0 is allowed with "do not fragment". */
    ip[0] = 0x45;
    store_be16(ip + 2, ip_len);
    ip[6] = IPV4_DONT_FRAGMENT;
    ip[8] = REPLY_TTL;
    ip[9] = PROTOCOL_UDP;
    ptk_store_u32(ip + 12, target);
    ptk_store_u32(ip + 16, source);
    ptk_store_u16(ip + 10,
                  (uint16_t)~ptk_checksum_fold(ptk_checksum_add(0, ip, PTK_FRAME_IPV4_LEN)));
}

static void build_ipv6(uint8_t *ip, const uint8_t *request_ip, size_t udp_len)
{
    uint8_t source[16];
    uint8_t target[16];
    memcpy(source, request_ip + 8, sizeof source);
    memcpy(target, request_ip + 24, sizeof target);
    memset(ip, 0, 8); /* No traffic class, no flow label. */
    ip[0] = 0x60;
    store_be16(ip + 4, udp_len);
    ip[6] = PROTOCOL_UDP;
    ip[7] = REPLY_TTL;
    memcpy(ip + 8, target, sizeof target);
    memcpy(ip + 24, source, sizeof source);
}

size_t ptk_frame_reply_build(const uint8_t *request, const struct ptk_frame_view *view,
                             uint8_t *reply, size_t payload_len)
{
    const size_t udp_len = PTK_FRAME_UDP_LEN + payload_len;
    const size_t udp_off = view->payload_off - PTK_FRAME_UDP_LEN;
    uint8_t target_mac[6];
    uint8_t source_mac[6];
    memcpy(target_mac, request, sizeof target_mac);
    memcpy(source_mac, request + 6, sizeof source_mac);
    memcpy(reply, source_mac, sizeof source_mac);
    memcpy(reply + 6, target_mac, sizeof target_mac);
    memmove(reply + 12, request + 12, view->ip_off - 12); /* Tag and EtherType. */

    const uint16_t source_port = ptk_load_u16(request + udp_off);
    const uint16_t target_port = ptk_load_u16(request + udp_off + 2);
    uint8_t *ip = reply + view->ip_off;
    if (view->ipv6) {
        build_ipv6(ip, request + view->ip_off, udp_len);
    } else {
        build_ipv4(ip, request + view->ip_off, PTK_FRAME_IPV4_LEN + udp_len);
    }
    uint8_t *udp = reply + udp_off;
    ptk_store_u16(udp, target_port);
    ptk_store_u16(udp + 2, source_port);
    store_be16(udp + 4, udp_len);
    ptk_store_u16(udp + 6, 0);
    const uint64_t sum = pseudo_header_sum(ip, view->ipv6, udp_len);
    const uint16_t checksum = (uint16_t)~ptk_checksum_fold(ptk_checksum_add(sum, udp, udp_len));
    ptk_store_u16(udp + 6, checksum == 0 ? 0xFFFF : checksum); /* 0 would mean "not computed". */
    return view->payload_off + payload_len;
}
