/* Frames: what is accepted, what is refused and why, and the headers of replies. */
#include "net/ptk_frame.h"

#include "ptk_test_packet.h"

#include <stdio.h>

#define PORT 7265

static struct ptk_address_set own;

static struct ptk_frame_filter filter_with(enum ptk_frame_checksum checksum)
{
    return (struct ptk_frame_filter){.own = &own, .port = PORT, .checksum = checksum};
}

static const uint8_t PAYLOAD[64] = "The payload of a request, as long as the smallest ones are.";

static struct test_packet good_packet(bool ipv6, bool vlan)
{
    struct test_packet packet = {
        .ipv6 = ipv6,
        .vlan = vlan,
        .source_port = 40000,
        .target_port = PORT,
        .payload = PAYLOAD,
        .payload_len = sizeof PAYLOAD,
    };
    struct ptk_address source;
    struct ptk_address target;
    PTK_ASSERT(ptk_address_parse(ipv6 ? "2001:db8::2" : "192.0.2.2", &source, NULL) == 0);
    PTK_ASSERT(ptk_address_parse(ipv6 ? "2001:db8::1" : "192.0.2.1", &target, NULL) == 0);
    memcpy(packet.source, ipv6 ? source.bytes : &source.bytes[12], ipv6 ? 16 : 4);
    memcpy(packet.target, ipv6 ? target.bytes : &target.bytes[12], ipv6 ? 16 : 4);
    return packet;
}

static enum ptk_frame_refusal parse(const struct test_packet *packet,
                                    enum ptk_frame_checksum checksum)
{
    uint8_t frame[256];
    struct ptk_frame_view view;
    const struct ptk_frame_filter filter = filter_with(checksum);
    const size_t len = test_packet_build(packet, frame);
    return ptk_frame_parse(frame, len, &filter, &view);
}

/* Both families, with and without tag and padding: the view names the payload. */
static void test_good_packets_are_accepted(void)
{
    for (unsigned shape = 0; shape < 8; shape++) {
        const struct test_packet packet = good_packet((shape & 1) != 0, (shape & 2) != 0);
        uint8_t frame[256] = {0};
        const size_t len = test_packet_build(&packet, frame);
        const size_t padding = (shape & 4) != 0 ? 10 : 0;
        struct ptk_frame_view view;
        const struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_VERIFY);
        PTK_ASSERT(ptk_frame_parse(frame, len + padding, &filter, &view) == PTK_FRAME_OK);
        PTK_ASSERT(view.ipv6 == packet.ipv6);
        PTK_ASSERT(view.ip_off == test_ip_off(&packet));
        PTK_ASSERT(view.payload_off == test_payload_off(&packet));
        PTK_ASSERT(view.payload_len == sizeof PAYLOAD);
        PTK_ASSERT(memcmp(frame + view.payload_off, PAYLOAD, sizeof PAYLOAD) == 0);
    }
}

/* No cut is accepted and none reads past the end: the buffer ends where the cut is (asan sees it).
 */
static void test_truncated_at_every_byte(void)
{
    for (unsigned shape = 0; shape < 4; shape++) {
        const struct test_packet packet = good_packet((shape & 1) != 0, (shape & 2) != 0);
        uint8_t frame[256];
        const size_t len = test_packet_build(&packet, frame);
        const struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_VERIFY);
        for (size_t cut = 0; cut < len; cut++) {
            uint8_t exact[256];
            struct ptk_frame_view view;
            memcpy(exact + sizeof exact - cut, frame, cut);
            PTK_ASSERT(ptk_frame_parse(exact + sizeof exact - cut, cut, &filter, &view) ==
                       PTK_FRAME_TRUNCATED);
        }
    }
}

/* Any single flipped bit from the IP header on is noticed, or stands where it does not matter. */
static void test_every_flipped_bit(void)
{
    for (unsigned shape = 0; shape < 2; shape++) {
        const struct test_packet packet = good_packet(shape == 1, false);
        uint8_t frame[256];
        const size_t len = test_packet_build(&packet, frame);
        const struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_VERIFY);
        for (size_t bit = 14 * 8; bit < len * 8; bit++) {
            struct ptk_frame_view view;
            frame[bit / 8] ^= (uint8_t)(1u << (bit % 8));
            const enum ptk_frame_refusal refusal = ptk_frame_parse(frame, len, &filter, &view);
            frame[bit / 8] ^= (uint8_t)(1u << (bit % 8));
            /* IPv6 has no header checksum: traffic class, flow label and hop limit are free. */
            const bool free_bit =
                packet.ipv6 && ((bit >= 14 * 8 && bit < 18 * 8) || (bit >= 21 * 8 && bit < 22 * 8));
            PTK_ASSERT(free_bit || refusal != PTK_FRAME_OK);
        }
    }
}

static void test_checksum_policy(void)
{
    static const struct {
        bool ipv6;
        enum test_checksum checksum;
        enum ptk_frame_checksum policy;
        enum ptk_frame_refusal expected;
    } CASES[] = {
        {false, TEST_CHECKSUM_GOOD, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_OK},
        {false, TEST_CHECKSUM_BAD, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_UDP_CHECKSUM},
        {false, TEST_CHECKSUM_BAD, PTK_FRAME_CHECKSUM_PARTIAL, PTK_FRAME_UDP_CHECKSUM},
        {false, TEST_CHECKSUM_BAD, PTK_FRAME_CHECKSUM_OFF, PTK_FRAME_OK},
        {false, TEST_CHECKSUM_NONE, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_OK},
        {true, TEST_CHECKSUM_NONE, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_UDP_CHECKSUM},
        {true, TEST_CHECKSUM_NONE, PTK_FRAME_CHECKSUM_OFF, PTK_FRAME_UDP_CHECKSUM},
        {false, TEST_CHECKSUM_PARTIAL, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_UDP_CHECKSUM},
        {true, TEST_CHECKSUM_PARTIAL, PTK_FRAME_CHECKSUM_VERIFY, PTK_FRAME_UDP_CHECKSUM},
        {false, TEST_CHECKSUM_PARTIAL, PTK_FRAME_CHECKSUM_PARTIAL, PTK_FRAME_OK},
        {true, TEST_CHECKSUM_PARTIAL, PTK_FRAME_CHECKSUM_PARTIAL, PTK_FRAME_OK},
        {true, TEST_CHECKSUM_GOOD, PTK_FRAME_CHECKSUM_PARTIAL, PTK_FRAME_OK},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(CASES); i++) {
        struct test_packet packet = good_packet(CASES[i].ipv6, false);
        packet.checksum = CASES[i].checksum;
        PTK_ASSERT(parse(&packet, CASES[i].policy) == CASES[i].expected);
    }
}

/* The senders that are never answered, and the destinations that are not ours. */
static void test_ends_are_checked(void)
{
    static const struct {
        const char *source;
        const char *target;
        uint16_t source_port;
        uint16_t target_port;
        enum ptk_frame_refusal expected;
    } CASES[] = {
        {"192.0.2.2", "192.0.2.1", 1024, PORT, PTK_FRAME_OK},
        {"192.0.2.2", "192.0.2.1", 0, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", 7, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", 53, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", 123, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", 1900, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", 11211, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.1", PORT, PORT, PTK_FRAME_OK},
        {"192.0.2.1", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.9", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE}, /* also ours */
        {"127.0.0.1", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE},
        {"0.0.0.0", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE},
        {"224.0.0.1", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE},
        {"255.255.255.255", "192.0.2.1", 1024, PORT, PTK_FRAME_SOURCE},
        {"192.0.2.2", "192.0.2.3", 1024, PORT, PTK_FRAME_DESTINATION},
        {"192.0.2.2", "224.0.0.1", 1024, PORT, PTK_FRAME_DESTINATION},
        {"192.0.2.2", "255.255.255.255", 1024, PORT, PTK_FRAME_DESTINATION},
        {"192.0.2.2", "192.0.2.1", 1024, PORT + 1, PTK_FRAME_DESTINATION},
        {"2001:db8::2", "2001:db8::1", 1024, PORT, PTK_FRAME_OK},
        {"fe80::2", "2001:db8::1", 1024, PORT, PTK_FRAME_OK},
        {"ff02::1", "2001:db8::1", 1024, PORT, PTK_FRAME_SOURCE},
        {"::", "2001:db8::1", 1024, PORT, PTK_FRAME_SOURCE},
        {"::1", "2001:db8::1", 1024, PORT, PTK_FRAME_SOURCE},
        {"2001:db8::1", "2001:db8::1", 1024, PORT, PTK_FRAME_SOURCE},
        {"2001:db8::2", "ff02::1", 1024, PORT, PTK_FRAME_DESTINATION},
        {"2001:db8::2", "2001:db8::3", 1024, PORT, PTK_FRAME_DESTINATION},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(CASES); i++) {
        struct ptk_address source;
        struct ptk_address target;
        PTK_ASSERT(ptk_address_parse(CASES[i].source, &source, NULL) == 0);
        PTK_ASSERT(ptk_address_parse(CASES[i].target, &target, NULL) == 0);
        struct test_packet packet = good_packet(!ptk_address_is_ipv4(&source), false);
        memcpy(packet.source, packet.ipv6 ? source.bytes : &source.bytes[12], packet.ipv6 ? 16 : 4);
        memcpy(packet.target, packet.ipv6 ? target.bytes : &target.bytes[12], packet.ipv6 ? 16 : 4);
        packet.source_port = CASES[i].source_port;
        packet.target_port = CASES[i].target_port;
        PTK_ASSERT(parse(&packet, PTK_FRAME_CHECKSUM_VERIFY) == CASES[i].expected);
    }
    /* IPv4-mapped addresses in an IPv6 packet are nobody's. */
    struct test_packet packet = good_packet(true, false);
    const struct ptk_address mapped = ptk_address_from_ipv4((const uint8_t[]){192, 0, 2, 1});
    memcpy(packet.target, mapped.bytes, 16);
    PTK_ASSERT(parse(&packet, PTK_FRAME_CHECKSUM_VERIFY) == PTK_FRAME_DESTINATION);
    packet = good_packet(true, false);
    memcpy(packet.source, mapped.bytes, 16);
    PTK_ASSERT(parse(&packet, PTK_FRAME_CHECKSUM_VERIFY) == PTK_FRAME_SOURCE);
}

/* Every lie about lengths that the frame could hold, at the limits. */
static void test_length_lies_are_refused(void)
{
    for (unsigned shape = 0; shape < 2; shape++) {
        const struct test_packet packet = good_packet(shape == 1, false);
        const struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_OFF);
        for (int delta = -80; delta <= 80; delta++) {
            uint8_t frame[512] = {0};
            const size_t len = test_packet_build(&packet, frame);
            const size_t udp_off = test_payload_off(&packet) - 8;
            struct ptk_frame_view view;
            test_put_be16(frame + udp_off + 4, (size_t)((int)(8 + sizeof PAYLOAD) + delta));
            const enum ptk_frame_refusal refusal = ptk_frame_parse(frame, len + 80, &filter, &view);
            PTK_ASSERT(refusal == (delta == 0 ? PTK_FRAME_OK : PTK_FRAME_LENGTH));
        }
    }
}

static void test_headers_of_others_are_refused(void)
{
    const struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_OFF);
    static const struct {
        bool ipv6;
        size_t off;
        uint8_t value;
        enum ptk_frame_refusal expected;
    } CASES[] = {
        {false, 0, 0xFF, PTK_FRAME_DESTINATION}, /* broadcast MAC */
        {false, 6, 0x03, PTK_FRAME_SOURCE},      /* group MAC as sender */
        {false, 12, 0x09, PTK_FRAME_PROTOCOL},   /* EtherType */
        {false, 14, 0x46, PTK_FRAME_PROTOCOL},   /* options */
        {false, 14, 0x44, PTK_FRAME_PROTOCOL},   /* header too short */
        {false, 14, 0x55, PTK_FRAME_PROTOCOL},   /* version */
        {false, 20, 0x20, PTK_FRAME_PROTOCOL},   /* more fragments */
        {false, 21, 0x01, PTK_FRAME_PROTOCOL},   /* fragment offset */
        {false, 20, 0x40, PTK_FRAME_OK},         /* do not fragment */
        {false, 23, 6, PTK_FRAME_PROTOCOL},      /* TCP */
        {true, 14, 0x50, PTK_FRAME_PROTOCOL},    /* version */
        {true, 20, 44, PTK_FRAME_PROTOCOL},      /* fragment header */
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(CASES); i++) {
        const struct test_packet packet = good_packet(CASES[i].ipv6, false);
        uint8_t frame[256];
        struct ptk_frame_view view;
        const size_t len = test_packet_build(&packet, frame);
        frame[CASES[i].off] = CASES[i].value;
        PTK_ASSERT(ptk_frame_parse(frame, len, &filter, &view) == CASES[i].expected);
    }
}

/* A reply of every length, in place and beside: parses at the other end with verified checksums. */
static void test_reply_headers(void)
{
    uint64_t seed = 1;
    for (unsigned shape = 0; shape < 4; shape++) {
        const struct test_packet packet = good_packet((shape & 1) != 0, (shape & 2) != 0);
        for (size_t reply_len = 0; reply_len <= 1472; reply_len += reply_len < 300 ? 1 : 97) {
            uint8_t request[2048];
            uint8_t reply[2048];
            struct ptk_frame_view view;
            struct ptk_frame_filter filter = filter_with(PTK_FRAME_CHECKSUM_VERIFY);
            const size_t len = test_packet_build(&packet, request);
            PTK_ASSERT(ptk_frame_parse(request, len, &filter, &view) == PTK_FRAME_OK);
            for (size_t i = 0; i < reply_len; i++) {
                reply[view.payload_off + i] = (uint8_t)test_random(&seed);
            }
            const size_t total = ptk_frame_reply_build(request, &view, reply, reply_len);
            PTK_ASSERT(total == view.payload_off + reply_len);
            memcpy(request + view.payload_off, reply + view.payload_off, reply_len);
            PTK_ASSERT(ptk_frame_reply_build(request, &view, request, reply_len) == total);
            PTK_ASSERT(memcmp(request, reply, total) == 0);

            struct ptk_address_set client = {0};
            const struct ptk_address client_address = packet.ipv6
                                                          ? ptk_address_from_ipv6(packet.source)
                                                          : ptk_address_from_ipv4(packet.source);
            PTK_ASSERT(ptk_address_set_add(&client, &client_address, NULL) == 0);
            filter.own = &client;
            filter.port = packet.source_port;
            PTK_ASSERT(ptk_frame_parse(reply, total, &filter, &view) == PTK_FRAME_OK);
            PTK_ASSERT(view.payload_len == reply_len);
            const uint8_t *ip = reply + view.ip_off;
            PTK_ASSERT(packet.ipv6 ? ip[7] == 64 : ip[8] == 64);
            PTK_ASSERT(packet.ipv6 ? ptk_load_u32(ip) == 0x60 : ip[1] == 0 && ip[6] == 0x40);
            const uint8_t *udp = reply + view.payload_off - 8;
            PTK_ASSERT(udp[6] != 0 || udp[7] != 0);
            PTK_ASSERT(test_sum(test_pseudo_sum(ip, packet.ipv6, 8 + reply_len), udp,
                                8 + reply_len) == 0xFFFF);
        }
    }
}

/* The fast sum equals the naive one for every length, and for the bytes that carry most. */
static void test_checksum_equals_naive(void)
{
    static uint8_t bytes[70000];
    uint64_t seed = 2;
    for (int fill = 0; fill < 2; fill++) {
        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = fill == 0 ? 0xFF : (uint8_t)test_random(&seed);
        }
        for (size_t len = 0; len <= sizeof bytes; len += len < 600 ? 1 : 6941) {
            const uint16_t fast = ptk_checksum_fold(ptk_checksum_add(0, bytes, len));
            PTK_ASSERT(__builtin_bswap16(fast) == test_sum(0, bytes, len));
        }
    }
}

static void test_address_sets(void)
{
    static struct ptk_address_set set;
    struct ptk_err err;
    for (uint32_t i = 0; i < PTK_ADDRESSES_MAX; i++) {
        const uint8_t ipv4[4] = {10, 0, (uint8_t)(i >> 8), (uint8_t)i};
        const struct ptk_address address = ptk_address_from_ipv4(ipv4);
        PTK_ASSERT(!ptk_address_set_has(&set, &address));
        PTK_ASSERT(ptk_address_set_add(&set, &address, &err) == 0);
        PTK_ASSERT(ptk_address_set_add(&set, &address, &err) == 0); /* once more is no more */
        PTK_ASSERT(set.count == i + 1);
    }
    for (uint32_t i = 0; i < PTK_ADDRESSES_MAX; i++) {
        const uint8_t ipv4[4] = {10, 0, (uint8_t)(i >> 8), (uint8_t)i};
        const struct ptk_address address = ptk_address_from_ipv4(ipv4);
        PTK_ASSERT(ptk_address_set_has(&set, &address));
    }
    struct ptk_address address = ptk_address_from_ipv4((const uint8_t[]){10, 1, 0, 0});
    PTK_ASSERT(ptk_address_set_add(&set, &address, &err) < 0);
    address = ptk_address_from_ipv4((const uint8_t[]){224, 0, 0, 1});
    PTK_ASSERT(ptk_address_set_add(&set, &address, &err) < 0);
    PTK_ASSERT(ptk_address_parse("::ffff:1.2.3.4", &address, &err) < 0);
    PTK_ASSERT(ptk_address_parse("1.2.3", &address, &err) < 0);
    PTK_ASSERT(ptk_address_parse("", &address, &err) < 0);
    char text[PTK_ADDRESS_TEXT_CAP];
    PTK_ASSERT(ptk_address_parse("2001:db8::1", &address, &err) == 0);
    ptk_address_format(&address, text);
    PTK_ASSERT(strcmp(text, "2001:db8::1") == 0);
}

int main(void)
{
    static const char *const OWN[] = {"192.0.2.1", "192.0.2.9", "2001:db8::1"};
    for (size_t i = 0; i < PTK_ARRAY_LEN(OWN); i++) {
        struct ptk_address address;
        PTK_ASSERT(ptk_address_parse(OWN[i], &address, NULL) == 0);
        PTK_ASSERT(ptk_address_set_add(&own, &address, NULL) == 0);
    }
    test_good_packets_are_accepted();
    test_truncated_at_every_byte();
    test_every_flipped_bit();
    test_checksum_policy();
    test_ends_are_checked();
    test_length_lies_are_refused();
    test_headers_of_others_are_refused();
    test_reply_headers();
    test_checksum_equals_naive();
    test_address_sets();
    puts("frame: ok");
    return 0;
}
