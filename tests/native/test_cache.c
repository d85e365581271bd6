/*
 * The piece cache: which slot of a line has a piece, and what is known of short pieces with many
 * ids.
 */
#include "algo/ptk_cache.h"

#include <stdio.h>
#include <stdlib.h>

static const struct ptk_cache_seed seed = {0x8c5b2f1d9e3779b9, 0xd1b54a32d192ed03};
static PTK_ALIGNED_LINE uint8_t memory[PTK_CACHE_LEN_MIN];

static struct ptk_piece_key key_of(uint32_t number)
{
    char text[16];
    const int len = snprintf(text, sizeof text, "%u", number);
    return ptk_piece_key_make((const uint8_t *)text, (size_t)len);
}

/* The newest two pieces of a line are there, the mark of parts tells them from whole ones, and the
 * ids are each one's own. */
static void test_a_line_has_its_two_newest_pieces(void)
{
    struct ptk_cache *cache = ptk_cache_init(memory, sizeof memory);
    const struct ptk_piece_key keys[] = {key_of(1), key_of(22), key_of(333)};
    struct ptk_image_piece *line = ptk_cache_line(cache, &seed, keys[0]);
    for (uint32_t i = 0; i < PTK_ARRAY_LEN(keys); i++) {
        const uint32_t ids[] = {10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3};
        PTK_ASSERT(ptk_cache_match(line, &keys[i]) == 0);
        PTK_ASSERT(ptk_cache_find(line, keys[i]) == NULL);
        ptk_cache_put(line, keys[i], ids, 1 + i);
        PTK_ASSERT(ptk_cache_match(line, &keys[i]) == 1);
    }
    PTK_ASSERT(ptk_cache_match(line, &keys[0]) == 0);
    PTK_ASSERT(ptk_cache_match(line, &keys[1]) == 2);
    for (uint32_t i = 1; i < PTK_ARRAY_LEN(keys); i++) {
        const struct ptk_image_piece *slot = ptk_cache_find(line, keys[i]);
        PTK_ASSERT(slot != NULL);
        PTK_ASSERT(slot->ids[0] == 10 * i);
        PTK_ASSERT(ptk_cache_id_count(slot) == 1 + i);
        const struct ptk_piece_key inner = {keys[i].low, keys[i].high | PTK_CACHE_INNER};
        PTK_ASSERT(ptk_cache_find(line, inner) == NULL);
    }
}

/* A bit is never lost before a quarter of them has been set; then only the newest one is left. */
static void test_bits_of_many_ids_do_not_fill_up(void)
{
    struct ptk_cache *cache = ptk_cache_init(memory, sizeof memory);
    const uint32_t limit = (uint32_t)(cache->many_mask + 1) / 4;
    uint32_t known = 0;
    for (uint32_t i = 0; i < limit; i++) {
        known += ptk_cache_has_many(cache, &seed, key_of(i));
        ptk_cache_set_many(cache, &seed, key_of(i));
    }
    PTK_ASSERT(known < limit / 4); /* by chance: an eighth on average */
    for (uint32_t i = 0; i < limit; i++) {
        PTK_ASSERT(ptk_cache_has_many(cache, &seed, key_of(i)));
    }
    ptk_cache_set_many(cache, &seed, key_of(limit));
    PTK_ASSERT(ptk_cache_has_many(cache, &seed, key_of(limit)));
    known = 0;
    for (uint32_t i = 0; i < limit; i++) {
        known += ptk_cache_has_many(cache, &seed, key_of(i));
    }
    PTK_ASSERT(known < 8);
    /* The bits lie behind the tables: nothing of these has changed. */
    const uint8_t *tables = (const uint8_t *)cache->slots;
    const uint8_t *end = (const uint8_t *)cache->many;
    while (tables < end) {
        PTK_ASSERT(*tables++ == 0);
    }
    PTK_ASSERT(end + (cache->many_mask + 1) / 8 == memory + sizeof memory);
}

/* No line of the table for longer pieces reaches into the bits. */
static void test_longer_pieces_end_before_the_bits(void)
{
    struct ptk_cache *cache = ptk_cache_init(memory, sizeof memory);
    const uint32_t ids[] = {7};
    for (uint32_t i = 0; i < 5000; i++) {
        uint8_t text[20];
        PTK_ASSERT(snprintf((char *)text, sizeof text, "piece of many %05u", i) == 19);
        const struct ptk_cache_long_key key = ptk_cache_long_key_make(text, 19, false);
        struct ptk_cache_long *pair = ptk_cache_long_pair(cache, &seed, &key);
        PTK_ASSERT((uint8_t *)(pair + 2) <= (uint8_t *)cache->many);
        ptk_cache_long_put(pair, &key, ids, 1);
        PTK_ASSERT(ptk_cache_long_find(pair, &key) == &pair[0]);
        PTK_ASSERT(!ptk_cache_has_many(cache, &seed, key_of(i)));
    }
}

int main(void)
{
    test_a_line_has_its_two_newest_pieces();
    test_bits_of_many_ids_do_not_fill_up();
    test_longer_pieces_end_before_the_bits();
    return EXIT_SUCCESS;
}
