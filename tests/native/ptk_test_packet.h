/*
 * Packets for tests: builds Ethernet, IP and UDP with every field the caller wants to lie about, by
 * code that shares nothing with net/ptk_frame.c.
 */
#ifndef PTK_TEST_PACKET_H
#define PTK_TEST_PACKET_H

#include "base/ptk_base.h"

/* A random number generator whose sequence is the same everywhere: xorshift64*. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545F4914F6CDD1Dull;
}

static inline uint32_t test_random_below(uint64_t *state, uint32_t end)
{
    return (uint32_t)((test_random(state) >> 33) % end);
}

enum test_checksum {
    TEST_CHECKSUM_GOOD = 0,
    TEST_CHECKSUM_BAD,
    TEST_CHECKSUM_NONE,
    TEST_CHECKSUM_PARTIAL,
};

struct test_packet {
    bool ipv6;
    bool vlan;
    uint8_t source[16]; /* IPv4: the first four */
    uint8_t target[16];
    uint16_t source_port;
    uint16_t target_port;
    enum test_checksum checksum;
    const uint8_t *payload;
    size_t payload_len;
};

static inline void test_put_be16(uint8_t *dst, size_t value)
{
    dst[0] = (uint8_t)(value >> 8);
    dst[1] = (uint8_t)value;
}

/* RFC 1071, word by word, in network order: the naive twin of ptk_checksum_add and _fold. */
static inline uint32_t test_sum(uint32_t sum, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        sum += (i & 1) != 0 ? bytes[i] : (uint32_t)bytes[i] << 8;
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    return sum;
}

static inline uint32_t test_pseudo_sum(const uint8_t *ip, bool ipv6, size_t udp_len)
{
    uint8_t tail[4] = {0, 17, (uint8_t)(udp_len >> 8), (uint8_t)udp_len};
    const uint32_t sum = ipv6 ? test_sum(0, ip + 8, 32) : test_sum(0, ip + 12, 8);
    return test_sum(sum, tail, sizeof tail);
}

static inline size_t test_ip_off(const struct test_packet *packet)
{
    return packet->vlan ? 18 : 14;
}

static inline size_t test_payload_off(const struct test_packet *packet)
{
    return test_ip_off(packet) + (packet->ipv6 ? 40 : 20) + 8;
}

/* Writes the frame and returns its length. */
static inline size_t test_packet_build(const struct test_packet *packet, uint8_t *frame)
{
    static const uint8_t MACS[12] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2};
    const size_t ip_off = test_ip_off(packet);
    const size_t udp_len = 8 + packet->payload_len;
    uint8_t *ip = frame + ip_off;
    uint8_t *udp = ip + (packet->ipv6 ? 40 : 20);
    memcpy(frame, MACS, sizeof MACS);
    if (packet->vlan) {
        test_put_be16(frame + 12, 0x8100);
        test_put_be16(frame + 14, 0x6007);
    }
    test_put_be16(ip - 2, packet->ipv6 ? 0x86DD : 0x0800);
    memset(ip, 0, (size_t)(udp - ip));
    if (packet->ipv6) {
        ip[0] = 0x60;
        test_put_be16(ip + 4, udp_len);
        ip[6] = 17;
        ip[7] = 3;
        memcpy(ip + 8, packet->source, 16);
        memcpy(ip + 24, packet->target, 16);
    } else {
        ip[0] = 0x45;
        ip[1] = 3; /* congestion experienced: must not be echoed */
        test_put_be16(ip + 2, 20 + udp_len);
        ip[8] = 3;
        ip[9] = 17;
        memcpy(ip + 12, packet->source, 4);
        memcpy(ip + 16, packet->target, 4);
        test_put_be16(ip + 10, ~test_sum(0, ip, 20) & 0xFFFF);
    }
    test_put_be16(udp, packet->source_port);
    test_put_be16(udp + 2, packet->target_port);
    test_put_be16(udp + 4, udp_len);
    test_put_be16(udp + 6, 0);
    memcpy(udp + 8, packet->payload, packet->payload_len);
    const uint32_t pseudo = test_pseudo_sum(ip, packet->ipv6, udp_len);
    const uint32_t good = ~test_sum(pseudo, udp, udp_len) & 0xFFFF;
    switch (packet->checksum) {
    case TEST_CHECKSUM_GOOD:
        test_put_be16(udp + 6, good == 0 ? 0xFFFF : good);
        break;
    case TEST_CHECKSUM_BAD:
        test_put_be16(udp + 6, good == 0x1234 ? 0x4321 : 0x1234);
        break;
    case TEST_CHECKSUM_NONE:
        break;
    case TEST_CHECKSUM_PARTIAL:
        test_put_be16(udp + 6, pseudo);
        break;
    }
    return test_payload_off(packet) + packet->payload_len;
}

#endif
