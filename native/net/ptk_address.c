/* Addresses and sets of them. */
#include "net/ptk_address.h"

#include <arpa/inet.h>
#include <errno.h>

#define SLOT_MASK (2u * PTK_ADDRESSES_MAX - 1u)
_Static_assert((PTK_ADDRESSES_MAX & (PTK_ADDRESSES_MAX - 1)) == 0,
               "the slot mask needs a power of two");

static uint32_t slot_of(const struct ptk_address *address)
{
    /* Addresses are ours, not an attacker's: any mixing that spreads the low bytes will do. */
    const uint64_t mixed = (ptk_load_u64(address->bytes) * 31u + ptk_load_u64(&address->bytes[8])) *
                           0x9E3779B97F4A7C15ull;
    return (uint32_t)(mixed >> 40) & SLOT_MASK;
}

static bool is_empty(const struct ptk_address *address)
{
    return (ptk_load_u64(address->bytes) | ptk_load_u64(&address->bytes[8])) == 0;
}

int ptk_address_parse(const char *text, struct ptk_address *address, struct ptk_err *err)
{
    uint8_t ipv4[4];
    if (inet_pton(AF_INET, text, ipv4) == 1) {
        *address = ptk_address_from_ipv4(ipv4);
        return 0;
    }
    if (inet_pton(AF_INET6, text, address->bytes) == 1 && !ptk_address_is_ipv4(address)) {
        return 0;
    }
    return ptk_err_set(err, -EINVAL, "address: \"%s\" is neither an IPv4 nor an IPv6 address",
                       text);
}

void ptk_address_format(const struct ptk_address *address, char text[PTK_ADDRESS_TEXT_CAP])
{
    const bool ipv4 = ptk_address_is_ipv4(address);
    const char *written = inet_ntop(ipv4 ? AF_INET : AF_INET6, &address->bytes[ipv4 ? 12 : 0], text,
                                    PTK_ADDRESS_TEXT_CAP);
    PTK_ASSERT(written != NULL);
}

bool ptk_address_unicast(const struct ptk_address *address)
{
    if (ptk_address_is_ipv4(address)) {
        /* 0.0.0.0/8 is "this network", 224 and above are multicast, reserved and broadcast. */
        return address->bytes[12] != 0 && address->bytes[12] < 224;
    }
    return address->bytes[0] != 0xFF && !is_empty(address);
}

bool ptk_address_loopback(const struct ptk_address *address)
{
    if (ptk_address_is_ipv4(address)) {
        return address->bytes[12] == 127;
    }
    return ptk_load_u64(address->bytes) == 0 &&
           ptk_load_u64(&address->bytes[8]) == 0x0100000000000000ull;
}

int ptk_address_set_add(struct ptk_address_set *set, const struct ptk_address *address,
                        struct ptk_err *err)
{
    char text[PTK_ADDRESS_TEXT_CAP];
    if (!ptk_address_unicast(address)) {
        ptk_address_format(address, text);
        return ptk_err_set(err, -EINVAL, "address %s: not a unicast address", text);
    }
    if (ptk_address_set_has(set, address)) {
        return 0;
    }
    if (set->count == PTK_ADDRESSES_MAX) {
        return ptk_err_set(err, -E2BIG, "addresses: more than %u; name some with --address",
                           PTK_ADDRESSES_MAX);
    }
    uint32_t slot = slot_of(address);
    while (!is_empty(&set->slots[slot])) {
        slot = (slot + 1) & SLOT_MASK;
    }
    set->slots[slot] = *address;
    set->count++;
    return 0;
}

bool ptk_address_set_has(const struct ptk_address_set *set, const struct ptk_address *address)
{
    /* At most half of the slots are taken, so the walk meets an empty one. */
    for (uint32_t slot = slot_of(address); !is_empty(&set->slots[slot]);
         slot = (slot + 1) & SLOT_MASK) {
        if (ptk_address_equal(&set->slots[slot], address)) {
            return true;
        }
    }
    return false;
}

bool ptk_port_answerable(uint16_t port)
{
    switch (port) {
    case 0:     /* no socket sends from it */
    case 7:     /* echo */
    case 13:    /* daytime */
    case 17:    /* quote of the day */
    case 19:    /* character generator */
    case 37:    /* time */
    case 53:    /* domain */
    case 69:    /* tftp */
    case 111:   /* portmapper */
    case 123:   /* ntp */
    case 137:   /* netbios name service */
    case 161:   /* snmp */
    case 389:   /* connectionless ldap */
    case 1900:  /* ssdp */
    case 3702:  /* ws-discovery */
    case 5353:  /* multicast dns */
    case 5683:  /* coap */
    case 11211: /* memcached */
        return false;
    default:
        return true;
    }
}

void ptk_address_clear_tail(struct ptk_address *address, uint32_t prefix_len)
{
    for (uint32_t bit = prefix_len; bit < 128; bit++) {
        address->bytes[bit / 8] &= (uint8_t) ~(0x80u >> bit % 8);
    }
}

int ptk_network_parse(const char *text, struct ptk_network *network, struct ptk_err *err)
{
    char address[PTK_ADDRESS_TEXT_CAP];
    const char *slash = strchr(text, '/');
    const size_t len = slash != NULL ? (size_t)(slash - text) : strlen(text);
    if (len >= sizeof address) {
        return ptk_err_set(err, -EINVAL, "%.60s: not a network such as 192.0.2.0/24", text);
    }
    memcpy(address, text, len);
    address[len] = '\0';
    const int code = ptk_address_parse(address, &network->address, err);
    if (code != 0) {
        return code;
    }
    const uint32_t bits = ptk_address_is_ipv4(&network->address) ? 32 : 128;
    uint32_t prefix_len = bits;
    if (slash != NULL) {
        const char *digits = slash + 1;
        prefix_len = 0;
        for (size_t i = 0; digits[i] != '\0' || i == 0; i++) {
            if (digits[i] < '0' || digits[i] > '9' || i == 3) {
                return ptk_err_set(err, -EINVAL, "%.60s: not a network such as 192.0.2.0/24", text);
            }
            prefix_len = prefix_len * 10 + (uint32_t)(digits[i] - '0');
        }
        if (prefix_len > bits) {
            return ptk_err_set(err, -EINVAL, "%.60s: a prefix has 0 to %u bits", text, bits);
        }
    }
    network->prefix_len = 128 - bits + prefix_len;
    ptk_address_clear_tail(&network->address, network->prefix_len);
    return 0;
}

bool ptk_network_has(const struct ptk_network *network, const struct ptk_address *address)
{
    const uint32_t whole = network->prefix_len / 8;
    const uint32_t rest = network->prefix_len % 8;
    if (memcmp(network->address.bytes, address->bytes, whole) != 0) {
        return false;
    }
    return rest == 0 || ((network->address.bytes[whole] ^ address->bytes[whole]) &
                         (0xFF00u >> rest & 0xFFu)) == 0;
}
