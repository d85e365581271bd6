/* BLAKE2b after RFC 7693, section 3: one lane, no tree. */
#include "base/ptk_blake2b.h"

/* The first 64 bits of the fractions of the square roots of the first eight primes. */
static const uint64_t IV[8] = {
    0x6A09E667F3BCC908ull, 0xBB67AE8584CAA73Bull, 0x3C6EF372FE94F82Bull, 0xA54FF53A5F1D36F1ull,
    0x510E527FADE682D1ull, 0x9B05688C2B3E6C1Full, 0x1F83D9ABFB41BD6Bull, 0x5BE0CD19137E2179ull,
};

/* Which words of the block each of the ten rounds mixes; rounds 10 and 11 repeat 0 and 1. */
static const uint8_t SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t rotate_right(uint64_t word, uint32_t bits)
{
    return word >> bits | word << (64 - bits);
}

static inline void mix(uint64_t *a, uint64_t *b, uint64_t *c, uint64_t *d, uint64_t x, uint64_t y)
{
    *a += *b + x;
    *d = rotate_right(*d ^ *a, 32);
    *c += *d;
    *b = rotate_right(*b ^ *c, 24);
    *a += *b + y;
    *d = rotate_right(*d ^ *a, 16);
    *c += *d;
    *b = rotate_right(*b ^ *c, 63);
}

static void compress(struct ptk_blake2b *state, const uint8_t *block, bool last)
{
    uint64_t m[16];
    uint64_t v[16];
    for (size_t i = 0; i < 16; i++) {
        m[i] = ptk_load_u64(block + 8 * i);
    }
    for (size_t i = 0; i < 8; i++) {
        v[i] = state->h[i];
        v[i + 8] = IV[i];
    }
    v[12] ^= state->count;
    v[14] = last ? ~v[14] : v[14];
    for (size_t i = 0; i < 12; i++) {
        const uint8_t *s = SIGMA[i % 10];
        mix(&v[0], &v[4], &v[8], &v[12], m[s[0]], m[s[1]]);
        mix(&v[1], &v[5], &v[9], &v[13], m[s[2]], m[s[3]]);
        mix(&v[2], &v[6], &v[10], &v[14], m[s[4]], m[s[5]]);
        mix(&v[3], &v[7], &v[11], &v[15], m[s[6]], m[s[7]]);
        mix(&v[0], &v[5], &v[10], &v[15], m[s[8]], m[s[9]]);
        mix(&v[1], &v[6], &v[11], &v[12], m[s[10]], m[s[11]]);
        mix(&v[2], &v[7], &v[8], &v[13], m[s[12]], m[s[13]]);
        mix(&v[3], &v[4], &v[9], &v[14], m[s[14]], m[s[15]]);
    }
    for (size_t i = 0; i < 8; i++) {
        state->h[i] ^= v[i] ^ v[i + 8];
    }
}

void ptk_blake2b_init(struct ptk_blake2b *state, const uint8_t key[PTK_BLAKE2B_KEY_LEN])
{
    memset(state, 0, sizeof *state);
    memcpy(state->h, IV, sizeof IV);
    /* Parameter block: digest length, key length, fanout 1, depth 1. */
    state->h[0] ^= 0x01010000u ^ PTK_BLAKE2B_KEY_LEN << 8 ^ PTK_BLAKE2B_MAC_LEN;
    memcpy(state->block, key, PTK_BLAKE2B_KEY_LEN);
    state->count = PTK_BLAKE2B_BLOCK_LEN;
    compress(state, state->block, false);
}

void ptk_blake2b_update(struct ptk_blake2b *state, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        /* A full block waits: only the last one is compressed as such. */
        if (state->held == PTK_BLAKE2B_BLOCK_LEN) {
            state->count += PTK_BLAKE2B_BLOCK_LEN;
            compress(state, state->block, false);
            state->held = 0;
        }
        const size_t taken = ptk_min_size(len, PTK_BLAKE2B_BLOCK_LEN - state->held);
        memcpy(state->block + state->held, bytes, taken);
        state->held += taken;
        bytes += taken;
        len -= taken;
    }
}

void ptk_blake2b_final(struct ptk_blake2b *state, uint8_t mac[PTK_BLAKE2B_MAC_LEN])
{
    PTK_DCHECK(state->held > 0);
    memset(state->block + state->held, 0, PTK_BLAKE2B_BLOCK_LEN - state->held);
    state->count += state->held;
    compress(state, state->block, true);
    memcpy(mac, state->h, PTK_BLAKE2B_MAC_LEN); /* Little-endian, as the host. */
}

bool ptk_mac_equal(const uint8_t a[PTK_BLAKE2B_MAC_LEN], const uint8_t b[PTK_BLAKE2B_MAC_LEN])
{
    const uint64_t differs =
        (ptk_load_u64(a) ^ ptk_load_u64(b)) | (ptk_load_u64(a + 8) ^ ptk_load_u64(b + 8));
    return differs == 0;
}
