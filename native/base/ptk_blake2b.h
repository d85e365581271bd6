/*
 * BLAKE2b as a message authentication code: keyed, 16 bytes of output (RFC 7693).
 *
 * Python has the same as hashlib.blake2b(data, key=key, digest_size=16).
 */
#ifndef PTK_BLAKE2B_H
#define PTK_BLAKE2B_H

#include "base/ptk_base.h"

#define PTK_BLAKE2B_BLOCK_LEN 128u
#define PTK_BLAKE2B_KEY_LEN   32u
#define PTK_BLAKE2B_MAC_LEN   16u

struct ptk_blake2b {
    uint64_t h[8];
    uint64_t count; /* bytes compressed so far */
    size_t held;    /* bytes in block */
    uint8_t block[PTK_BLAKE2B_BLOCK_LEN];
};

/* ptk_blake2b_init begins a code under `key`. The state may be kept and copied for each message:
 * the block of the key, which costs as much as 128 bytes of message, is behind it. */
void ptk_blake2b_init(struct ptk_blake2b *state, const uint8_t key[PTK_BLAKE2B_KEY_LEN]);

void ptk_blake2b_update(struct ptk_blake2b *state, const uint8_t *bytes, size_t len);

/* ptk_blake2b_final writes the code; the state is used up. At least one byte was given to it. */
void ptk_blake2b_final(struct ptk_blake2b *state, uint8_t mac[PTK_BLAKE2B_MAC_LEN]);

/* ptk_mac_equal compares in a time that does not depend on where the two differ. */
bool ptk_mac_equal(const uint8_t a[PTK_BLAKE2B_MAC_LEN], const uint8_t b[PTK_BLAKE2B_MAC_LEN]);

#endif
