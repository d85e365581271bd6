/*
 * The hash functions of the image's tables: one definition for the builder, the verifier and
 * look-ups.
 *
 * All are multiply-and-fold of 64-bit words. They are fixed and public: the static tables cannot be
 * flooded, since the verifier bounds every probe sequence (PTK_IMAGE_PROBE_MAX). A table that
 * outside bytes can fill must bring its own secret seed.
 */
#ifndef PTK_IMAGE_HASH_H
#define PTK_IMAGE_HASH_H

#include "base/ptk_base.h"

__extension__ typedef unsigned __int128 ptk_u128;

#define PTK_HASH_A 0x9e3779b97f4a7c15ull
#define PTK_HASH_B 0xe7037ed1a0b428dbull
#define PTK_HASH_C 0x8ebc6af09c88c6e3ull

/* Both halves of the 128-bit product, folded: every bit of a and b reaches every bit of the
 * result. */
static inline uint64_t ptk_hash_fold(uint64_t a, uint64_t b)
{
    uint64_t low;
    uint64_t high;
    /* What gcc 12 makes of a 128-bit product passes through memory. */
    __asm__("mulq %3" : "=a"(low), "=d"(high) : "%0"(a), "rm"(b) : "cc");
    return low ^ high;
}

/* ptk_pair_hash: slot = hash & mask of the pair table. */
static inline uint32_t ptk_pair_hash(uint32_t left, uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    return (uint32_t)((key * PTK_HASH_A) >> 32) ^ (uint32_t)((key * PTK_HASH_A) >> 47);
}

/*
 * ptk_piece_hash: of a piece-table key (two words, byte 15 = length). bucket = hash & mask. The
 * upper
 * 32 bits are as good as the lower ones and free for other uses.
 */
static inline uint64_t ptk_piece_hash(uint64_t key_low, uint64_t key_high)
{
    return ptk_hash_fold(key_low ^ PTK_HASH_A, key_high ^ PTK_HASH_B);
}

/* ptk_vocab_hash: of a key of any length. slot = hash & mask, tag = hash >> 54. */
static inline uint64_t ptk_vocab_hash(const uint8_t *key, size_t len)
{
    uint64_t hash = PTK_HASH_C ^ len;
    while (len > 16) {
        hash = ptk_hash_fold(ptk_load_u64(key) ^ PTK_HASH_A, ptk_load_u64(key + 8) ^ hash);
        key += 16;
        len -= 16;
    }
    uint64_t low = 0;
    uint64_t high = 0;
    if (len >= 8) {
        low = ptk_load_u64(key);
        high = ptk_load_u64(key + len - 8);
    } else if (len >= 4) {
        low = ptk_load_u32(key);
        high = ptk_load_u32(key + len - 4);
    } else if (len > 0) {
        low = (uint64_t)key[0] << 16 | (uint64_t)key[len >> 1] << 8 | key[len - 1];
    }
    return ptk_hash_fold(low ^ PTK_HASH_A, high ^ hash);
}

#endif
