/*
 * Builds the double array of an image over sorted keys.
 *
 * A unit's children stand at base ^ byte, so a node's children share one block of 256 units. A
 * child is recognised by its label alone; this is sound because no two nodes have the same base.
 * Nodes are placed depth first into the last few blocks that still have room, which keeps the build
 * linear and the array more than nine tenths full.
 */
#include "image/ptk_image_build.h"

#include <errno.h>
#include <stdlib.h>

enum {
    BLOCK_LEN = 256,
    /* blocks searched for room; more makes the array denser and the build slower */
    BLOCKS_OPEN = 16,
};

/* A node whose children are still to be placed: the keys from `begin` to `end` share `depth`
 * bytes. */
struct pending {
    uint32_t begin;
    uint32_t end;
    uint32_t depth;
    uint32_t unit;
};

struct trie_builder {
    const struct ptk_build_keys *keys;
    const uint32_t *ids;
    struct ptk_image_trie_unit *units;
    uint8_t *base_used;
    uint16_t *first_free; /* by block: no unit before this one is free; BLOCK_LEN when none is */
    uint32_t count;       /* units, a multiple of BLOCK_LEN */
    uint32_t cap;
    struct pending *stack;
    size_t stack_count;
    size_t stack_cap;
};

static bool is_used(const struct trie_builder *b, uint32_t unit)
{
    return (b->units[unit].word & PTK_TRIE_USED) != 0;
}

static int add_block(struct trie_builder *b)
{
    if (b->count == b->cap) {
        const uint32_t cap = b->cap == 0 ? 64 * BLOCK_LEN : b->cap * 2;
        if ((size_t)cap * sizeof *b->units > PTK_IMAGE_LEN_MAX) {
            return -EFBIG;
        }
        struct ptk_image_trie_unit *units = realloc(b->units, cap * sizeof *units);
        if (units == NULL) {
            return -ENOMEM;
        }
        b->units = units;
        uint8_t *base_used = realloc(b->base_used, cap);
        if (base_used == NULL) {
            return -ENOMEM;
        }
        b->base_used = base_used;
        uint16_t *first_free = realloc(b->first_free, cap / BLOCK_LEN * sizeof *first_free);
        if (first_free == NULL) {
            return -ENOMEM;
        }
        b->first_free = first_free;
        b->cap = cap;
    }
    memset(&b->units[b->count], 0, BLOCK_LEN * sizeof *b->units);
    memset(&b->base_used[b->count], 0, BLOCK_LEN);
    b->first_free[b->count / BLOCK_LEN] = 0;
    b->count += BLOCK_LEN;
    return 0;
}

static bool base_fits(const struct trie_builder *b, uint32_t base, const uint8_t *labels,
                      uint32_t label_count)
{
    if (b->base_used[base] != 0) {
        return false;
    }
    for (uint32_t i = 0; i < label_count; i++) {
        if (is_used(b, base ^ labels[i])) {
            return false;
        }
    }
    return true;
}

static int find_base(struct trie_builder *b, const uint8_t *labels, uint32_t label_count,
                     uint32_t *out)
{
    /* Block 0 is kept empty: units without children point there. */
    const uint32_t block_count = b->count / BLOCK_LEN;
    const uint32_t first = block_count > BLOCKS_OPEN + 1 ? block_count - BLOCKS_OPEN : 1;
    for (uint32_t block = first; block < block_count; block++) {
        uint16_t *free = &b->first_free[block];
        while (*free < BLOCK_LEN && is_used(b, block * BLOCK_LEN + *free)) {
            (*free)++;
        }
        for (uint32_t i = *free; i < BLOCK_LEN; i++) {
            const uint32_t unit = block * BLOCK_LEN + i;
            const uint32_t base = unit ^ labels[0];
            if (!is_used(b, unit) && base_fits(b, base, labels, label_count)) {
                *out = base;
                return 0;
            }
        }
    }
    const int rc = add_block(b);
    *out = (b->count - BLOCK_LEN) ^ labels[0];
    return rc;
}

static int push(struct trie_builder *b, struct pending pending)
{
    if (b->stack_count == b->stack_cap) {
        const size_t cap = b->stack_cap == 0 ? 1024 : b->stack_cap * 2;
        struct pending *stack = realloc(b->stack, cap * sizeof *stack);
        if (stack == NULL) {
            return -ENOMEM;
        }
        b->stack = stack;
        b->stack_cap = cap;
    }
    b->stack[b->stack_count++] = pending;
    return 0;
}

static uint32_t key_len(const struct trie_builder *b, uint32_t i)
{
    return b->keys->offs[b->ids[i] + 1] - b->keys->offs[b->ids[i]];
}

static uint8_t key_byte(const struct trie_builder *b, uint32_t i, uint32_t at)
{
    return b->keys->bytes[b->keys->offs[b->ids[i]] + at];
}

static int place(struct trie_builder *b, struct pending node)
{
    if (key_len(b, node.begin) == node.depth) {
        b->units[node.unit].word |= (b->ids[node.begin] + 1) << 9;
        node.begin++;
    }
    uint8_t labels[BLOCK_LEN];
    uint32_t begins[BLOCK_LEN + 1];
    uint32_t label_count = 0;
    for (uint32_t i = node.begin; i < node.end; i++) {
        const uint8_t label = key_byte(b, i, node.depth);
        if (label_count == 0 || labels[label_count - 1] != label) {
            labels[label_count] = label;
            begins[label_count] = i;
            label_count++;
        }
    }
    if (label_count == 0) {
        return 0;
    }
    begins[label_count] = node.end;

    uint32_t base = 0;
    int rc = find_base(b, labels, label_count, &base);
    if (rc != 0) {
        return rc;
    }
    b->base_used[base] = 1;
    b->units[node.unit].base = base;
    for (uint32_t i = 0; i < label_count; i++) {
        b->units[base ^ labels[i]].word = PTK_TRIE_USED | labels[i];
    }
    for (uint32_t i = label_count; i-- > 0 && rc == 0;) {
        const struct pending child = {begins[i], begins[i + 1], node.depth + 1, base ^ labels[i]};
        rc = push(b, child);
    }
    return rc;
}

/* Every key leads to its id; no further unit has one. */
static bool is_whole(const struct trie_builder *b, size_t id_count)
{
    const struct ptk_image view = {.trie = b->units, .trie_count = b->count};
    size_t ends = 0;
    for (uint32_t unit = 0; unit < b->count; unit++) {
        ends += ptk_image_trie_id(&view, unit) != PTK_IMAGE_NONE;
    }
    bool whole = ends == id_count;
    for (uint32_t i = 0; i < id_count && whole; i++) {
        uint32_t unit = 0;
        for (uint32_t at = 0; at < key_len(b, i) && whole; at++) {
            whole = ptk_image_trie_step(&view, &unit, key_byte(b, i, at));
        }
        whole = whole && ptk_image_trie_id(&view, unit) == b->ids[i];
    }
    return whole;
}

int ptk_build_trie(const struct ptk_build_keys *keys, const uint32_t *ids, size_t id_count,
                   struct ptk_image_trie_unit **units, uint32_t *unit_count)
{
    struct trie_builder b;
    memset(&b, 0, sizeof b);
    b.keys = keys;
    b.ids = ids;
    int rc = add_block(&b);
    if (rc == 0 && id_count > 0) {
        const struct pending root = {0, (uint32_t)id_count, 0, 0};
        rc = push(&b, root);
    }
    while (rc == 0 && b.stack_count > 0) {
        rc = place(&b, b.stack[--b.stack_count]);
    }
    PTK_ASSERT(rc != 0 || is_whole(&b, id_count)); /* readers rely on it and do not look again */
    free(b.stack);
    free(b.base_used);
    free(b.first_free);
    if (rc != 0) {
        free(b.units);
        return rc;
    }
    *units = b.units;
    *unit_count = b.count;
    return 0;
}
