/*
 * Hash tables and merges of an image. The trie has a file of its own, ptk_image_build_trie.c.
 */
#include "image/ptk_image_build.h"

#include <errno.h>
#include <stdlib.h>

size_t ptk_build_capacity(size_t count)
{
    size_t capacity = 16;
    while (capacity < count * 2) {
        capacity *= 2;
    }
    return capacity;
}

size_t ptk_build_piece_capacity(size_t count)
{
    size_t capacity = 16;
    while (capacity * 13 < count * 20) {
        capacity *= 2;
    }
    return capacity;
}

void ptk_build_free(void *memory)
{
    free(memory);
}

/* The longest run of used slots, counted around the end of the table; 0 used slots: 0. */
static uint32_t longest_run(const void *table, size_t capacity,
                            bool (*is_used)(const void *table, size_t slot))
{
    size_t first_empty = 0;
    while (first_empty < capacity && is_used(table, first_empty)) {
        first_empty++;
    }
    if (first_empty == capacity) {
        return UINT32_MAX;
    }
    uint32_t run = 0;
    uint32_t longest = 0;
    for (size_t i = 1; i <= capacity; i++) {
        run = is_used(table, (first_empty + i) & (capacity - 1)) ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    return longest;
}

static bool pair_used(const void *table, size_t slot)
{
    return ((const struct ptk_image_pair *)table)[slot].left != PTK_IMAGE_NONE;
}

int ptk_build_pairs(const struct ptk_image_pair *merges, size_t merge_count,
                    struct ptk_image_pair *table, size_t capacity, uint32_t *probe_max)
{
    PTK_ASSERT(capacity >= 2 && (capacity & (capacity - 1)) == 0);
    const struct ptk_image_pair empty = {PTK_IMAGE_NONE, PTK_IMAGE_NONE, PTK_IMAGE_NONE,
                                         PTK_IMAGE_NONE};
    for (size_t i = 0; i < capacity; i++) {
        table[i] = empty;
    }
    size_t used = 0;
    for (size_t i = 0; i < merge_count; i++) {
        const struct ptk_image_pair *merge = &merges[i];
        size_t slot = ptk_pair_hash(merge->left, merge->right) & (capacity - 1);
        while (pair_used(table, slot) &&
               (table[slot].left != merge->left || table[slot].right != merge->right)) {
            slot = (slot + 1) & (capacity - 1);
        }
        if (!pair_used(table, slot)) {
            used++;
        }
        table[slot] = *merge;
        if (used == capacity) {
            return -ENOSPC;
        }
    }
    *probe_max = longest_run(table, capacity, pair_used);
    return *probe_max <= PTK_IMAGE_PROBE_MAX ? 0 : -ENOSPC;
}

static bool vocab_used(const void *table, size_t slot)
{
    return ((const uint32_t *)table)[slot] != PTK_IMAGE_NONE;
}

/* The look-ups of an image need these fields only. */
static struct ptk_image vocab_view(const struct ptk_build_keys *keys, const uint32_t *table,
                                   size_t capacity)
{
    struct ptk_image view;
    memset(&view, 0, sizeof view);
    view.vocab = table;
    view.vocab_mask = (uint32_t)(capacity - 1);
    view.vocab_key_offs = keys->offs;
    view.vocab_key = keys->bytes;
    return view;
}

int ptk_build_vocab(const struct ptk_build_keys *keys, uint32_t *table, size_t capacity,
                    uint32_t *probe_max, uint32_t *duplicate)
{
    PTK_ASSERT(capacity >= 2 && (capacity & (capacity - 1)) == 0);
    for (size_t i = 0; i < capacity; i++) {
        table[i] = PTK_IMAGE_NONE;
    }
    const struct ptk_image view = vocab_view(keys, table, capacity);
    size_t used = 0;
    for (uint32_t id = 0; id < keys->ids_end; id++) {
        const uint8_t *key = keys->bytes + keys->offs[id];
        const size_t len = keys->offs[id + 1] - keys->offs[id];
        if (len == 0) {
            continue;
        }
        if (++used == capacity) {
            return -ENOSPC;
        }
        const uint64_t hash = ptk_vocab_hash(key, len);
        if (ptk_image_vocab_hashed(&view, key, len, hash) != PTK_IMAGE_NONE) {
            *duplicate = id;
            return -EEXIST;
        }
        size_t slot = hash & (capacity - 1);
        while (vocab_used(table, slot)) {
            slot = (slot + 1) & (capacity - 1);
        }
        table[slot] = (uint32_t)(hash >> PTK_IMAGE_VOCAB_TAG_SHIFT) << PTK_IMAGE_VOCAB_ID_BITS | id;
    }
    *probe_max = longest_run(table, capacity, vocab_used);
    return *probe_max <= PTK_IMAGE_PROBE_MAX ? 0 : -ENOSPC;
}

static bool bucket_full(const void *table, size_t bucket)
{
    return ((const struct ptk_image_piece *)table)[bucket * 2 + 1].key[15] != 0;
}

int ptk_build_pieces(const struct ptk_image_piece *pieces, size_t piece_count,
                     struct ptk_image_piece *table, size_t capacity, uint32_t *probe_max)
{
    PTK_ASSERT(capacity >= 2 && (capacity & (capacity - 1)) == 0);
    const size_t buckets = capacity / 2;
    memset(table, 0, capacity * sizeof *table);
    if (piece_count >= capacity) {
        return -ENOSPC;
    }
    for (size_t i = 0; i < piece_count; i++) {
        const uint64_t low = ptk_load_u64(pieces[i].key);
        const uint64_t high = ptk_load_u64(pieces[i].key + 8) & PTK_PIECE_HIGH_MASK;
        size_t bucket = ptk_piece_hash(low, high) & (buckets - 1);
        while (bucket_full(table, bucket)) {
            bucket = (bucket + 1) & (buckets - 1);
        }
        struct ptk_image_piece *slots = &table[bucket * 2];
        slots[slots[0].key[15] != 0] = pieces[i];
    }
    const uint32_t run = longest_run(table, buckets, bucket_full);
    if (run >= PTK_IMAGE_PROBE_MAX) {
        return -ENOSPC;
    }
    *probe_max = run + 1; /* and the bucket in which the look-up ends */
    return 0;
}

/* Merging one token alone: its parts by index. */
struct parts {
    uint32_t begin[PTK_BUILD_TOKEN_MAX + 1]; /* byte offset; the entry behind the last is the end */
    uint32_t id[PTK_BUILD_TOKEN_MAX];
    /* part i with i + 1; rank IMAGE_NONE: never */
    struct ptk_image_pair joined[PTK_BUILD_TOKEN_MAX];
    uint32_t count;
};

/* Where merges come from: ranks of whole tokens (`ranks` given), or a table of pairs. */
struct merger {
    struct ptk_image view; /* vocabulary, and pairs without `ranks` */
    const uint32_t *ranks;
    const uint32_t *byte_ids; /* units are bytes; NULL: characters */
    bool space_marks;         /* a space is the mark */
};

static const struct ptk_image_pair never = {PTK_IMAGE_NONE, PTK_IMAGE_NONE, PTK_IMAGE_NONE,
                                            PTK_IMAGE_NONE};

static struct ptk_image_pair join(const struct merger *merger, const uint8_t *bytes,
                                  const struct parts *parts, uint32_t i)
{
    if (i + 1 >= parts->count) {
        return never;
    }
    if (merger->ranks == NULL) {
        const struct ptk_image_pair *pair =
            ptk_image_pair(&merger->view, parts->id[i], parts->id[i + 1]);
        return pair == NULL ? never : *pair;
    }
    const uint32_t begin = parts->begin[i];
    const uint32_t id = ptk_image_vocab(&merger->view, bytes + begin, parts->begin[i + 2] - begin);
    if (id == PTK_IMAGE_NONE) {
        return never;
    }
    const struct ptk_image_pair pair = {parts->id[i], parts->id[i + 1], merger->ranks[id], id};
    return pair;
}

static uint32_t lowest_rank(const struct parts *parts)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < parts->count; i++) {
        if (parts->joined[i].rank < parts->joined[best].rank) {
            best = i;
        }
    }
    return best;
}

static void remove_part(struct parts *parts, uint32_t i)
{
    const size_t rest = parts->count - i - 1;
    memmove(&parts->begin[i], &parts->begin[i + 1], (rest + 1) * sizeof parts->begin[0]);
    memmove(&parts->id[i], &parts->id[i + 1], rest * sizeof parts->id[0]);
    memmove(&parts->joined[i], &parts->joined[i + 1], rest * sizeof parts->joined[0]);
    parts->count--;
}

/* Merges the parts to the end; true when one is left, and then `last` is the step that made it. */
static bool merge_alone(const struct merger *merger, const uint8_t *bytes, struct parts *parts,
                        struct ptk_image_pair *last)
{
    for (uint32_t i = 0; i < parts->count; i++) {
        parts->joined[i] = join(merger, bytes, parts, i);
    }
    while (parts->count > 1) { /* ends: each round merges two parts or leaves */
        const uint32_t i = lowest_rank(parts);
        *last = parts->joined[i];
        if (last->rank == PTK_IMAGE_NONE) {
            return false;
        }
        const uint32_t begin = parts->begin[i];
        remove_part(parts, i + 1);
        parts->begin[i] = begin;
        parts->id[i] = last->id;
        parts->joined[i] = join(merger, bytes, parts, i);
        if (i > 0) {
            parts->joined[i - 1] = join(merger, bytes, parts, i - 1);
        }
    }
    return true;
}

/* The id of a unit, or PTK_IMAGE_NONE. */
static uint32_t unit_id(const struct merger *merger, const uint8_t *unit, uint32_t len)
{
    static const uint8_t mark[] = {0xe2, 0x96, 0x81};
    if (merger->byte_ids != NULL) {
        return merger->byte_ids[unit[0]];
    }
    return merger->space_marks && unit[0] == ' '
               ? ptk_image_vocab(&merger->view, mark, sizeof mark)
               : ptk_image_vocab(&merger->view, unit, len);
}

/* The units that merging starts from; false when one has no id. */
static bool start_parts(const struct merger *merger, const uint8_t *bytes, uint32_t len,
                        struct parts *parts)
{
    parts->count = 0;
    for (uint32_t begin = 0; begin < len;) {
        uint32_t end = begin + 1;
        while (merger->byte_ids == NULL && end < len && (bytes[end] & 0xc0) == 0x80) {
            end++;
        }
        const uint32_t id = unit_id(merger, bytes + begin, end - begin);
        if (id == PTK_IMAGE_NONE) {
            return false;
        }
        parts->begin[parts->count] = begin;
        parts->id[parts->count] = id;
        parts->count++;
        begin = end;
    }
    parts->begin[parts->count] = len;
    return true;
}

int ptk_build_rank_merges(const struct ptk_build_keys *keys, const uint32_t *vocab, size_t capacity,
                          const uint32_t *ranks, struct ptk_image_pair *merges, size_t *merge_count,
                          uint8_t *reachable)
{
    uint32_t byte_ids[256];
    const struct merger merger = {
        .view = vocab_view(keys, vocab, capacity), .ranks = ranks, .byte_ids = byte_ids};
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint8_t key = (uint8_t)byte;
        byte_ids[byte] = ptk_image_vocab(&merger.view, &key, 1);
        if (byte_ids[byte] == PTK_IMAGE_NONE) {
            return -ENOENT;
        }
    }
    struct parts *parts = malloc(sizeof *parts);
    if (parts == NULL) {
        return -ENOMEM;
    }
    size_t count = 0;
    int rc = 0;
    for (uint32_t id = 0; id < keys->ids_end; id++) {
        const uint32_t len = keys->offs[id + 1] - keys->offs[id];
        reachable[id] = len == 1;
        if (len < 2 || ranks[id] == PTK_IMAGE_NONE) {
            continue;
        }
        if (len > PTK_BUILD_TOKEN_MAX) {
            rc = -E2BIG;
            break;
        }
        const uint8_t *bytes = keys->bytes + keys->offs[id];
        (void)start_parts(&merger, bytes, len, parts); /* every byte has an id */
        if (merge_alone(&merger, bytes, parts, &merges[count])) {
            reachable[id] = 1;
            count++;
        }
    }
    free(parts);
    *merge_count = count;
    return rc;
}

static struct merger pair_merger(const struct ptk_build_keys *keys,
                                 const struct ptk_build_tables *tables)
{
    struct merger merger = {.view = vocab_view(keys, tables->vocab, tables->vocab_capacity),
                            .byte_ids = tables->byte_ids};
    merger.view.pairs = tables->pairs;
    merger.view.pair_mask = (uint32_t)(tables->pair_capacity - 1);
    return merger;
}

int ptk_build_prune_merges(const struct ptk_build_keys *keys, const struct ptk_build_tables *tables,
                           const struct ptk_image_pair *merges, size_t merge_count, uint8_t *keep,
                           uint8_t *reachable)
{
    const struct merger merger = pair_merger(keys, tables);
    struct parts *parts = malloc(sizeof *parts);
    struct ptk_image_pair *lasts = malloc(keys->ids_end * sizeof *lasts);
    uint8_t *certain = calloc(keys->ids_end, 1);
    int rc = 0;
    if (parts == NULL || lasts == NULL || certain == NULL) {
        rc = -ENOMEM;
        goto out;
    }
    for (uint32_t id = 0; id < keys->ids_end; id++) {
        const uint32_t len = keys->offs[id + 1] - keys->offs[id];
        const uint8_t *bytes = keys->bytes + keys->offs[id];
        lasts[id] = never;
        reachable[id] = 1;
        if (len == 0 || len > PTK_BUILD_TOKEN_MAX ||
            !start_parts(&merger, bytes, len, parts)) {
            continue;
        }
        certain[id] = 1;
        struct ptk_image_pair last = never;
        reachable[id] = merge_alone(&merger, bytes, parts, &last) && parts->id[0] == id;
        if (reachable[id]) {
            lasts[id] = last;
        }
    }
    for (size_t i = 0; i < merge_count; i++) {
        const struct ptk_image_pair *last = &lasts[merges[i].id];
        keep[i] = !certain[merges[i].id] ||
                  (last->left == merges[i].left && last->right == merges[i].right);
    }
out:
    free(parts);
    free(lasts);
    free(certain);
    return rc;
}

int ptk_build_seed_pieces(const struct ptk_build_keys *keys, const struct ptk_build_tables *tables,
                          const struct ptk_build_seeds *seeds, struct ptk_image_piece *pieces,
                          size_t *piece_count)
{
    struct merger merger = pair_merger(keys, tables);
    merger.space_marks = seeds->space_marks;
    struct parts *parts = malloc(sizeof *parts);
    if (parts == NULL) {
        return -ENOMEM;
    }
    size_t count = 0;
    for (size_t i = 0; i < seeds->count; i++) {
        const uint8_t *bytes = seeds->bytes + seeds->offs[i];
        const uint32_t len = seeds->offs[i + 1] - seeds->offs[i];
        if (len == 0 || len > PTK_IMAGE_PIECE_KEY_MAX) {
            continue;
        }
        const uint32_t token =
            seeds->whole ? ptk_image_vocab(&merger.view, bytes, len) : PTK_IMAGE_NONE;
        if (token != PTK_IMAGE_NONE) {
            parts->id[0] = token;
            parts->count = 1;
        } else {
            struct ptk_image_pair last;
            if (!start_parts(&merger, bytes, len, parts)) {
                continue;
            }
            (void)merge_alone(&merger, bytes, parts, &last); /* more than one part is fine here */
        }
        if (parts->count > PTK_IMAGE_PIECE_IDS_MAX) {
            continue;
        }
        struct ptk_image_piece piece = {{0}, {0}};
        memcpy(piece.key, bytes, len);
        piece.key[15] = (uint8_t)(len | parts->count << 4);
        memcpy(piece.ids, parts->id, parts->count * sizeof piece.ids[0]);
        pieces[count++] = piece;
    }
    free(parts);
    *piece_count = count;
    return 0;
}
