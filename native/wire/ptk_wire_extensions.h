/*
 * The extensions of a datagram of a client: where cookie and MAC stand.
 *
 *     header . [wire_cookie] . [wire_mac] . [wire_prefix] . message or part of it
 *
 * Only what must be known before a request is worth parsing. Everything else about a datagram is
 * judged at the doors ptk_wire_request_parse and ptk_wire_segment_parse, which skip what was
 * checked here.
 */
#ifndef PTK_WIRE_EXTENSIONS_H
#define PTK_WIRE_EXTENSIONS_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"

/* Extensions that a server without a prefix store understands. */
#define PTK_WIRE_EXTENSIONS_KNOWN (PTK_WIRE_FLAGS_COOKIE | PTK_WIRE_FLAGS_MAC)

/* All that flags can announce. */
#define PTK_WIRE_EXTENSIONS_ALL (PTK_WIRE_EXTENSIONS_KNOWN | PTK_WIRE_FLAGS_PREFIX)

/* ptk_wire_extensions_len: bytes of the extensions that `flags` announce. */
static inline size_t ptk_wire_extensions_len(uint32_t flags)
{
    return ((flags & PTK_WIRE_FLAGS_COOKIE) != 0 ? sizeof(struct ptk_wire_cookie) : 0) +
           ((flags & PTK_WIRE_FLAGS_MAC) != 0 ? sizeof(struct ptk_wire_mac) : 0) +
           ((flags & PTK_WIRE_FLAGS_PREFIX) != 0 ? sizeof(struct ptk_wire_prefix) : 0);
}

/* Positions are offsets into the datagram; 0: there is none. */
struct ptk_wire_extensions {
    uint32_t flags;
    size_t cookie_off;
    size_t mac_off;
};

/*
 * ptk_wire_extensions_find: true when the bytes are a datagram that a client of this version sends
 * and its extensions are whole. False: it will be refused, or dropped, for a reason of its own.
 */
static inline bool ptk_wire_extensions_find(const uint8_t *datagram, size_t len,
                                            struct ptk_wire_extensions *extensions)
{
    if (len < PTK_WIRE_HEADER_LEN || ptk_load_u16(datagram) != PTK_WIRE_MAGIC ||
        datagram[2] >> 4 != PTK_WIRE_VERSION) {
        return false;
    }
    const uint32_t type = datagram[2] & 0xFu;
    const uint32_t flags = datagram[3];
    if ((type != PTK_WIRE_TYPE_REQUEST && type != PTK_WIRE_TYPE_PULL &&
         type != PTK_WIRE_TYPE_CANCEL) ||
        (flags & ~PTK_WIRE_FLAGS_MASK) != 0 ||
        len - PTK_WIRE_HEADER_LEN < ptk_wire_extensions_len(flags)) {
        return false;
    }
    const bool cookie = (flags & PTK_WIRE_FLAGS_COOKIE) != 0;
    const bool mac = (flags & PTK_WIRE_FLAGS_MAC) != 0;
    *extensions = (struct ptk_wire_extensions){
        .flags = flags,
        .cookie_off = cookie ? PTK_WIRE_HEADER_LEN : 0,
        .mac_off = mac ? PTK_WIRE_HEADER_LEN + (cookie ? sizeof(struct ptk_wire_cookie) : 0) : 0,
    };
    return true;
}

#endif
