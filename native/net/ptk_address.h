/*
 * IP addresses: one form for both families, sets of them, and who is never answered.
 *
 * An address is 16 bytes in network order; IPv4 is IPv4-mapped (::ffff:a.b.c.d). Real IPv6 packets
 * that carry such an address are refused wherever they come in, so the two families cannot be
 * confused.
 */
#ifndef PTK_ADDRESS_H
#define PTK_ADDRESS_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"

/* Room for an address as text with its terminator (INET6_ADDRSTRLEN). */
#define PTK_ADDRESS_TEXT_CAP 46u

/* Most addresses one server answers for; the XDP program's map has the same room. */
#define PTK_ADDRESSES_MAX 256u

struct ptk_address {
    uint8_t bytes[16];
};

/* A set, filled at set-up and then only read. Open addressing at no more than half load. */
struct ptk_address_set {
    uint32_t count;
    struct ptk_address slots[2 * PTK_ADDRESSES_MAX]; /* all zero: empty (:: is never a member) */
};

/* Makes the common form from 4 bytes in network order. */
static inline struct ptk_address ptk_address_from_ipv4(const void *ipv4_be)
{
    struct ptk_address address = {.bytes = {[10] = 0xFF, [11] = 0xFF}};
    memcpy(&address.bytes[12], ipv4_be, 4);
    return address;
}

/* Makes the common form from 16 bytes in network order. */
static inline struct ptk_address ptk_address_from_ipv6(const void *ipv6_be)
{
    struct ptk_address address;
    memcpy(address.bytes, ipv6_be, sizeof address.bytes);
    return address;
}

static inline bool ptk_address_is_ipv4(const struct ptk_address *address)
{
    return ptk_load_u64(address->bytes) == 0 && ptk_load_u32(&address->bytes[8]) == 0xFFFF0000u;
}

static inline bool ptk_address_equal(const struct ptk_address *a, const struct ptk_address *b)
{
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

/* ptk_address_parse reads "192.0.2.1" or "2001:db8::1"; -EINVAL names the text. */
int ptk_address_parse(const char *text, struct ptk_address *address, struct ptk_err *err);

/* ptk_address_format writes the address as people do. */
void ptk_address_format(const struct ptk_address *address, char text[PTK_ADDRESS_TEXT_CAP]);

/* ptk_address_unicast: false for multicast, broadcast, reserved and unspecified addresses. */
bool ptk_address_unicast(const struct ptk_address *address);

/* ptk_address_loopback: 127.0.0.0/8 and ::1. Never seen on a wire. */
bool ptk_address_loopback(const struct ptk_address *address);

/* ptk_address_set_add adds a unicast address, once; -EINVAL for another kind, -E2BIG when full. */
int ptk_address_set_add(struct ptk_address_set *set, const struct ptk_address *address,
                        struct ptk_err *err);

bool ptk_address_set_has(const struct ptk_address_set *set, const struct ptk_address *address);

/* Most networks in the list of those that are allowed; the XDP program's map has the same room. */
#define PTK_NETWORKS_MAX 64u

/* A network: the first prefix_len bits of the 16 bytes, so 96 and more for IPv4; others are 0. */
struct ptk_network {
    struct ptk_address address;
    uint32_t prefix_len;
};

/* ptk_network_parse reads "192.0.2.0/24", "2001:db8::/32" or a single address; -EINVAL names the
 * text. Bits behind the prefix are cleared. */
int ptk_network_parse(const char *text, struct ptk_network *network, struct ptk_err *err);

bool ptk_network_has(const struct ptk_network *network, const struct ptk_address *address);

/* ptk_address_clear_tail clears all bits from `prefix_len` on. */
void ptk_address_clear_tail(struct ptk_address *address, uint32_t prefix_len);

/*
 * ptk_port_answerable: false for UDP source ports that no client uses and an attacker likes: 0, and
 * the services that answer whatever they are sent, with which an answer of ours would begin a loop.
 */
bool ptk_port_answerable(uint16_t port);

#endif
