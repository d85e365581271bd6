/*
 * SipHash-2-4: a keyed hash of 64 bits that nobody without the key can predict or steer.
 *
 * Source: J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.
 */
#ifndef PTK_SIPHASH_H
#define PTK_SIPHASH_H

#include "base/ptk_base.h"

struct ptk_siphash_key {
    uint64_t k0;
    uint64_t k1;
};

/* ptk_siphash: the hash of `len` bytes. About 20 ns for 32 bytes. */
uint64_t ptk_siphash(struct ptk_siphash_key key, const void *bytes, size_t len);

#endif
