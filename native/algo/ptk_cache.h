/*
 * The piece cache: what one thread learnt about pieces that the image does not know.
 *
 * A table of fixed size with slots like the image's piece table: a 16-byte key and up to four ids, two
 * slots to a cache line. A new piece takes the first slot of its line and pushes that one's piece to the
 * second, so the older of the two is forgotten. Its hash has a secret seed: nobody outside can
 * choose texts whose pieces push each other out.
 */
#ifndef PTK_CACHE_H
#define PTK_CACHE_H

#include "algo/ptk_tokenizer.h"
#include "image/ptk_image.h"

/*
 * A key may carry this mark: a part of a piece, which merges alone decide, beside the same bytes as a
 * whole piece. Id counts are at most 4, so that the bit is free.
 */
#define PTK_CACHE_INNER (1ull << 63)
#define PTK_CACHE_HIGH_MASK (PTK_PIECE_HIGH_MASK | PTK_CACHE_INNER)

/* The first line of a cache's memory; the slots follow. */
struct ptk_cache {
    PTK_ALIGNED_LINE uint64_t line_count;
    PTK_ALIGNED_LINE struct ptk_image_piece slots[];
};

/* The seed of a tokenizer's caches; secret, drawn when the tokenizer is opened. */
struct ptk_cache_seed {
    uint64_t low;
    uint64_t high;
};

/* ptk_cache_line: where a piece belongs. */
static inline struct ptk_image_piece *ptk_cache_line(struct ptk_cache *cache,
                                                     const struct ptk_cache_seed *seed,
                                                     struct ptk_piece_key key)
{
    const uint64_t hash = ptk_hash_fold(key.low ^ seed->low, key.high ^ seed->high);
    return &cache->slots[((hash >> 32) * cache->line_count >> 32) * 2];
}

/* ptk_cache_find: the slot of a piece in its line, or NULL. */
static inline const struct ptk_image_piece *ptk_cache_find(const struct ptk_image_piece *line,
                                                           struct ptk_piece_key key)
{
    for (size_t i = 0; i < 2; i++) {
        const uint64_t low = ptk_load_u64(line[i].key);
        const uint64_t high = ptk_load_u64(line[i].key + 8) & PTK_CACHE_HIGH_MASK;
        if (((low ^ key.low) | (high ^ key.high)) == 0) {
            return &line[i];
        }
    }
    return NULL;
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

/* ptk_cache_id_count: of a slot of the cache or of the image's piece table. */
static inline uint32_t ptk_cache_id_count(const struct ptk_image_piece *slot)
{
    return slot->key[15] >> 4 & 7u;
}

#endif
