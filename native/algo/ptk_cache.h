/*
 * The piece cache: what one thread saw, before the image is asked and anything is merged.
 *
 * It holds what the image knows as well. The image's piece table has a line for nearly every token,
 * and the common ones lie scattered over all of its pages: the few megabytes here cost less page
 * walks and lines of the caches near the core.
 *
 * Two tables of fixed size in one memory. Pieces of up to 15 bytes with up to four ids have slots
 * like those of the image's piece table, two to a cache line; pieces of up to 30 bytes with up to
 * eight ids have a line each, and may stand in either of two neighbouring lines. A new piece takes
 * the first of its two places and pushes that one's piece to the second, so the older of the two is
 * forgotten.
 *
 * A short piece with five to eight ids goes to the table for longer ones when it comes for the
 * second time. A bit by its hash tells that it has come before; without that bit it is not looked
 * for there.
 *
 * Hashes have a secret seed: nobody outside can choose texts whose pieces push each other out.
 */
#ifndef PTK_CACHE_H
#define PTK_CACHE_H

#include "algo/ptk_tokenizer.h"
#include "base/ptk_cpu.h"
#include "image/ptk_image.h"

#include <smmintrin.h>

/*
 * A key may carry this mark: a part of a piece, which merges alone decide, beside the same bytes as
 * a whole piece. Id counts are at most 4, so that the bit is free.
 */
#define PTK_CACHE_INNER     (1ull << 63)
#define PTK_CACHE_HIGH_MASK (PTK_PIECE_HIGH_MASK | PTK_CACHE_INNER)

#define PTK_CACHE_LONG_KEY_MAX 30u
#define PTK_CACHE_LONG_IDS_MAX 8u

/*
 * A longer piece.
 *
 *   OFFSET SIZE MEANING
 *   0      30   the piece, zero-padded
 *   30     1    1: a part of a piece, which merges alone decide
 *   31     1    length | (id count - 1) << 5; 0: empty
 *   32     32   ids
 */
struct ptk_cache_long {
    uint64_t key[4];
    uint32_t ids[PTK_CACHE_LONG_IDS_MAX];
};
_Static_assert(sizeof(struct ptk_cache_long) == PTK_CACHE_LINE, "a line each");

/* What a look-up compares of the last word: all but the id count. */
#define PTK_CACHE_LONG_MASK 0x1fffffffffffffffull

/* The first line of a cache's memory; the tables follow. */
struct ptk_cache {
    PTK_ALIGNED_LINE uint64_t short_mask; /* over the lines of the short table */
    uint64_t long_pairs;
    uint64_t *many;     /* bits of short pieces in the table for longer ones */
    uint64_t many_mask; /* over them */
    uint64_t many_left; /* how many more are set before all are forgotten */
    PTK_ALIGNED_LINE struct ptk_image_piece slots[];
};

/* The seed of a tokenizer's caches; secret, drawn when the tokenizer is opened. */
struct ptk_cache_seed {
    uint64_t low;
    uint64_t high;
};

static inline uint64_t ptk_cache_hash(const struct ptk_cache_seed *seed, struct ptk_piece_key key)
{
    return ptk_hash_fold(key.low ^ seed->low, key.high ^ seed->high);
}

/* ptk_cache_line: where a short piece belongs. */
static inline struct ptk_image_piece *
ptk_cache_line(struct ptk_cache *cache, const struct ptk_cache_seed *seed, struct ptk_piece_key key)
{
    return &cache->slots[(ptk_cache_hash(seed, key) & cache->short_mask) * 2];
}

/* ptk_cache_has_many: false where a short piece is surely not in the table for longer ones. */
static inline bool ptk_cache_has_many(const struct ptk_cache *cache,
                                      const struct ptk_cache_seed *seed, struct ptk_piece_key key)
{
    const uint64_t bit = ptk_cache_hash(seed, key) >> 32 & cache->many_mask;
    return (cache->many[bit >> 6] >> (bit & 63) & 1) != 0;
}

/*
 * ptk_cache_set_many says that a short piece may be in the table for longer ones from now on. When
 * a quarter of the bits has been set, all others are forgotten first.
 */
void ptk_cache_set_many(struct ptk_cache *cache, const struct ptk_cache_seed *seed,
                        struct ptk_piece_key key);

/*
 * ptk_cache_match: which slot of its line has a piece: 0 neither, 1 the first, 2 the second. Which
 * of them is no branch: they are alike.
 */
static inline unsigned ptk_cache_match(const struct ptk_image_piece *line,
                                       const struct ptk_piece_key *key)
{
    const __m128i wanted = _mm_loadu_si128((const __m128i *)(const void *)key);
    const __m128i first =
        _mm_xor_si128(_mm_load_si128((const __m128i *)(const void *)line[0].key), wanted);
    const __m128i second =
        _mm_xor_si128(_mm_load_si128((const __m128i *)(const void *)line[1].key), wanted);
    const __m128i low = _mm_unpacklo_epi64(first, second);
    const __m128i high = _mm_and_si128(_mm_unpackhi_epi64(first, second),
                                       _mm_set1_epi64x((long long)PTK_CACHE_HIGH_MASK));
    const __m128i equal = _mm_cmpeq_epi64(_mm_or_si128(low, high), _mm_setzero_si128());
    return (unsigned)_mm_movemask_pd(_mm_castsi128_pd(equal));
}

/* ptk_cache_find: the slot of a piece in its line, or NULL. */
static inline const struct ptk_image_piece *ptk_cache_find(const struct ptk_image_piece *line,
                                                           struct ptk_piece_key key)
{
    const unsigned match = ptk_cache_match(line, &key);
    return match != 0 ? &line[match >> 1] : NULL;
}

/* ptk_cache_put_slot: the same piece with its ids, from the image. */
static inline void ptk_cache_put_slot(struct ptk_image_piece *line, struct ptk_piece_key key,
                                      const struct ptk_image_piece *slot)
{
    line[1] = line[0];
    line[0] = *slot;
    ptk_store_u64(line[0].key + 8, ptk_load_u64(slot->key + 8) | (key.high & PTK_CACHE_INNER));
}

/* ptk_cache_put: `count` is 1 to PTK_IMAGE_PIECE_IDS_MAX; the piece is not in the line. */
static inline void ptk_cache_put(struct ptk_image_piece *line, struct ptk_piece_key key,
                                 const uint32_t *ids, size_t count)
{
    line[1] = line[0];
    ptk_store_u64(line[0].key, key.low);
    ptk_store_u64(line[0].key + 8, key.high | (uint64_t)count << 60);
    for (size_t i = 0; i < PTK_IMAGE_PIECE_IDS_MAX; i++) {
        line[0].ids[i] = i < count ? ids[i] : 0;
    }
}

/* ptk_cache_id_count: of a slot of the short table or of the image's piece table. */
static inline uint32_t ptk_cache_id_count(const struct ptk_image_piece *slot)
{
    return slot->key[15] >> 4 & 7u;
}

/* The key of a longer piece, its id count 0. */
struct ptk_cache_long_key {
    uint64_t word[4];
};

/* ptk_cache_long_key_make: `len` is 1 to PTK_CACHE_LONG_KEY_MAX. */
static inline struct ptk_cache_long_key ptk_cache_long_key_make(const uint8_t *piece, size_t len,
                                                                bool inner)
{
    struct ptk_cache_long_key key = {{0}};
    memcpy(key.word, piece, len);
    key.word[3] |= (uint64_t)len << 56 | (uint64_t)inner << 48;
    return key;
}

/* ptk_cache_long_pair: the two places of a longer piece. */
static inline struct ptk_cache_long *ptk_cache_long_pair(struct ptk_cache *cache,
                                                         const struct ptk_cache_seed *seed,
                                                         const struct ptk_cache_long_key *key)
{
    const uint64_t front = ptk_hash_fold(key->word[0] ^ seed->low, key->word[1] ^ seed->high);
    const uint64_t hash =
        ptk_hash_fold(key->word[2] ^ seed->high ^ front, key->word[3] ^ seed->low);
    struct ptk_cache_long *table =
        (struct ptk_cache_long *)(void *)&cache->slots[(cache->short_mask + 1) * 2];
    return &table[((hash >> 32) * cache->long_pairs >> 32) * 2];
}

/* ptk_cache_long_ask asks for both places, which ptk_cache_long_find reads where the first is not
 * the piece's. */
static inline void ptk_cache_long_ask(const struct ptk_cache_long *pair)
{
    ptk_prefetch(&pair[0]);
    ptk_prefetch(&pair[1]);
}

static inline const struct ptk_cache_long *ptk_cache_long_find(const struct ptk_cache_long *pair,
                                                               const struct ptk_cache_long_key *key)
{
    for (size_t i = 0; i < 2; i++) {
        const uint64_t *word = pair[i].key;
        if (((word[0] ^ key->word[0]) | (word[1] ^ key->word[1]) | (word[2] ^ key->word[2]) |
             ((word[3] & PTK_CACHE_LONG_MASK) ^ key->word[3])) == 0) {
            return &pair[i];
        }
    }
    return NULL;
}

/* ptk_cache_long_put: `count` is 1 to PTK_CACHE_LONG_IDS_MAX; the piece is not in the pair. */
static inline void ptk_cache_long_put(struct ptk_cache_long *pair,
                                      const struct ptk_cache_long_key *key, const uint32_t *ids,
                                      size_t count)
{
    pair[1] = pair[0];
    memcpy(pair[0].key, key->word, sizeof key->word);
    pair[0].key[3] |= (uint64_t)(count - 1) << 61;
    memcpy(pair[0].ids, ids, count * sizeof *ids);
}

static inline size_t ptk_cache_long_id_count(const struct ptk_cache_long *slot)
{
    return (size_t)(slot->key[3] >> 61) + 1;
}

#endif
