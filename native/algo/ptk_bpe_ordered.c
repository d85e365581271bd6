#include "algo/ptk_bpe_ordered.h"

#include "base/ptk_cpu.h"
#include "base/ptk_huge.h"

#include <errno.h>
#include <smmintrin.h>
#include <stdlib.h>

#define SYMBOL_MASK ((1u << PTK_BPE_SYMBOL_BITS) - 1)
#define NO_MERGE    UINT64_MAX
#define NO_SYMBOL   SYMBOL_MASK /* no merge has it: ids end below */

/* A key of the loop: the symbol to be made above, the place below. */
#define PLACE_BITS 6u
#define PLACES     (1u << PLACE_BITS)
#define NO_KEY     UINT32_MAX
_Static_assert(PTK_BPE_ORDERED_MAX + 2 == PLACES, "a place before the units and one behind them");
_Static_assert(PTK_BPE_SYMBOL_BITS + PLACE_BITS < 32, "a key is below NO_KEY");

/* ---- the tables ----------------------------------------------------------------------------- */

static inline uint64_t pair_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << PTK_BPE_SYMBOL_BITS | right;
}

static inline uint64_t hash_of(uint64_t pair)
{
    return pair * PTK_HASH_A;
}

static inline uint64_t bucket_index(const struct ptk_bpe_merges *merges, uint64_t pair)
{
    return (hash_of(pair) >> 32) * merges->bucket_count >> 32;
}

static inline const struct ptk_bpe_bucket *bucket_of(const struct ptk_bpe_merges *merges,
                                                     uint64_t pair)
{
    return &merges->buckets[bucket_index(merges, pair)];
}

/* A bit for each place of a bucket that has no merge; merges have their highest bit clear. */
static inline uint32_t empty_places(const struct ptk_bpe_bucket *bucket)
{
    const __m128d *line = (const __m128d *)(const void *)bucket->merges;
    uint32_t empty = 0;
    for (uint32_t i = 0; i < PTK_BPE_BUCKET_MERGES / 2; i++) {
        empty |= (uint32_t)_mm_movemask_pd(line[i]) << (2 * i);
    }
    return empty;
}

/* The symbol that two make; 0: they do not merge. */
static inline uint32_t find_made(const struct ptk_bpe_merges *merges, uint32_t left, uint32_t right)
{
    const uint64_t pair = pair_of(left, right);
    const __m128i wanted = _mm_set1_epi64x((long long)pair);
    const struct ptk_bpe_bucket *bucket = bucket_of(merges, pair);
    for (;;) { /* ends: a chain of full buckets has an end, see put_merge() */
        const __m128i *line = (const __m128i *)(const void *)bucket->merges;
        __m128i found = _mm_setzero_si128();
        for (size_t i = 0; i < PTK_BPE_BUCKET_MERGES / 2; i++) {
            const __m128i merge = _mm_load_si128(&line[i]);
            const __m128i equal =
                _mm_cmpeq_epi64(_mm_srli_epi64(merge, PTK_BPE_SYMBOL_BITS), wanted);
            found = _mm_or_si128(found, _mm_and_si128(merge, equal));
        }
        found = _mm_or_si128(found, _mm_unpackhi_epi64(found, found));
        const uint32_t made = (uint32_t)_mm_cvtsi128_si32(found) & SYMBOL_MASK;
        /* One branch, hardly ever taken, and none on whether there is such a merge: where the last
         * place is empty its highest bit is set. */
        if (PTK_LIKELY((made | bucket->merges[PTK_BPE_BUCKET_MERGES - 1] >> 63) != 0)) {
            return made;
        }
        bucket++;
    }
}

/* Two bits of one word say that a pair may be among the late merges. */
#define FILTER_WORDS_LOG2 15u

static inline uint64_t filter_bits(uint64_t hash)
{
    return 1ull << (hash >> 43 & 63) | 1ull << (hash >> 37 & 63);
}

static inline bool may_merge_late(const struct ptk_bpe_ordered *ordered, uint32_t left,
                                  uint32_t right)
{
    const uint64_t hash = hash_of(pair_of(left, right));
    const uint64_t bits = filter_bits(hash);
    return (ordered->filter[hash >> (64 - FILTER_WORDS_LOG2)] & bits) == bits;
}

/* find_made among the late merges. */
static inline uint32_t find_made_late(const struct ptk_bpe_ordered *ordered, uint32_t left,
                                      uint32_t right)
{
    return may_merge_late(ordered, left, right) ? find_made(&ordered->late, left, right) : 0;
}

/* ---- set-up --------------------------------------------------------------------------------- */

/* Buckets that a full one's merges may spill into; where they need more, the table is not made. */
#define SPILL_MAX 8u

/* Merges of a bucket on average: one in fifty then spills. */
#define BUCKET_LOAD 4u

static bool put_merge(struct ptk_bpe_merges *merges, uint64_t pair, uint32_t made)
{
    struct ptk_bpe_bucket *bucket = &merges->buckets[bucket_of(merges, pair) - merges->buckets];
    const struct ptk_bpe_bucket *end = bucket + SPILL_MAX;
    uint32_t empty = 0;
    while (bucket < end && (empty = empty_places(bucket)) == 0) {
        bucket++;
    }
    /* The last one is not filled: every look-up ends there. */
    if (bucket == end || (bucket + 1 == end && (empty & (empty - 1)) == 0)) {
        return false;
    }
    bucket->merges[__builtin_ctz(empty)] = pair << PTK_BPE_SYMBOL_BITS | made;
    return true;
}

/* The bytes at both ends of a token; those of one that cannot come up are not known. */
struct edges {
    uint8_t first;
    uint8_t last;
    bool known;
    bool one; /* and it is a single byte */
};

/* A merge of ids; `id` PTK_IMAGE_NONE: there is none of this rank. */
struct merge {
    uint32_t left;
    uint32_t right;
    uint32_t id;
};

/* What set-up knows of the merges. */
struct order {
    const struct ptk_image *image;
    struct merge *by_rank; /* later without gaps */
    uint32_t count;
    uint32_t late_count;
    uint32_t *made_by;   /* by id: index of the merge that makes it, or NOT_MADE */
    bool *late;          /* by id: it is made by a late merge */
    struct edges *edges; /* by id */
};

#define NOT_MADE UINT32_MAX

/* The end of the ranks; above SYMBOL_MASK where there are too many. */
static uint32_t find_rank_end(const struct ptk_image *image)
{
    uint32_t highest = 0;
    const struct ptk_image_pair *used[PTK_IMAGE_PAIRS_SOME];
    size_t slot = 0;
    for (size_t count; (count = ptk_image_used_pairs(image, &slot, used)) != 0;) {
        for (size_t i = 0; i < count; i++) {
            highest = used[i]->rank > highest ? used[i]->rank : highest;
        }
    }
    return highest >= SYMBOL_MASK ? UINT32_MAX : highest + 1;
}

/* Sorts the merges by rank. False where ranks or results are not one to one. */
static bool read_merges(struct order *order, uint32_t rank_end)
{
    const struct ptk_image *image = order->image;
    const struct ptk_image_pair *used[PTK_IMAGE_PAIRS_SOME];
    size_t slot = 0;
    bool twice = false;
    for (size_t count; (count = ptk_image_used_pairs(image, &slot, used)) != 0;) {
        for (size_t i = 0; i < count; i++) {
            struct merge *merge = &order->by_rank[used[i]->rank];
            twice |= merge->id != PTK_IMAGE_NONE;
            *merge = (struct merge){used[i]->left, used[i]->right, used[i]->id};
        }
    }
    if (twice) {
        return false;
    }
    for (uint32_t rank = 0; rank < rank_end; rank++) {
        order->by_rank[order->count] = order->by_rank[rank];
        order->count += order->by_rank[rank].id != PTK_IMAGE_NONE;
    }
    for (uint32_t i = 0; i < order->count; i++) {
        uint32_t *made_by = &order->made_by[order->by_rank[i].id];
        if (*made_by != NOT_MADE) {
            return false;
        }
        *made_by = i;
    }
    return order->count > 0;
}

/*
 * A merge is early where its rank is among the lowest and its halves are early, too: where ranks do
 * not ascend, what late merges make may have a low rank with its neighbour.
 */
static void find_late(struct order *order, uint32_t early_max)
{
    const uint32_t low_count = order->count < early_max ? order->count : early_max;
    for (uint32_t i = low_count; i < order->count; i++) {
        order->late[order->by_rank[i].id] = true;
    }
    order->late_count = order->count - low_count;
    bool more = true;
    while (more) { /* ends: each turn but the last makes a merge late */
        more = false;
        for (uint32_t i = 0; i < low_count; i++) {
            const struct merge *merge = &order->by_rank[i];
            if (!order->late[merge->id] &&
                (order->late[merge->left] || order->late[merge->right])) {
                order->late[merge->id] = true;
                order->late_count++;
                more = true;
            }
        }
    }
}

static bool made_later(const struct order *order, uint32_t id, uint32_t merge)
{
    return order->made_by[id] != NOT_MADE && order->made_by[id] > merge;
}

static bool is_two_units(const struct order *order, uint32_t id)
{
    const struct merge *merge = &order->by_rank[order->made_by[id]];
    return order->made_by[merge->left] == NOT_MADE && order->made_by[merge->right] == NOT_MADE;
}

/* Whether merges make what is merged earlier, and whether that happens to two units. */
static void find_descents(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    ordered->ascending = true;
    ordered->sure = true;
    for (uint32_t i = 0; i < order->count; i++) {
        const uint32_t halves[] = {order->by_rank[i].left, order->by_rank[i].right};
        for (size_t k = 0; k < PTK_ARRAY_LEN(halves); k++) {
            if (made_later(order, halves[k], i)) {
                ordered->ascending = false;
                ordered->sure = ordered->sure && !is_two_units(order, halves[k]);
            }
        }
    }
}

/* Whether ids ascend with the ranks of their merges, so that an id can be its own symbol. */
static bool ids_ascend(const struct order *order)
{
    uint32_t last = 0; /* no symbol that is made is 0 */
    for (uint32_t i = 0; i < order->count; i++) {
        if (order->by_rank[i].id <= last) {
            return false;
        }
        last = order->by_rank[i].id;
    }
    return true;
}

static void name_symbol(struct ptk_bpe_ordered *ordered, uint32_t id, uint32_t symbol)
{
    ordered->symbols[id] = symbol;
    ordered->ids[symbol] = id;
}

/* Names what no merge makes, as halves of merges first, and what merges make by rank. */
static void name_symbols(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    const uint32_t ids_end = order->image->config->ids_end;
    const uint32_t first_made = ids_end - order->count;
    uint32_t unmade = 0;
    for (uint32_t id = 0; id < ids_end; id++) {
        const uint32_t made_by = order->made_by[id];
        const uint32_t symbol = made_by == NOT_MADE ? unmade++ : first_made + made_by;
        name_symbol(ordered, id, ordered->ids_are_symbols ? id : symbol);
    }
}

static uint64_t merge_pair(const struct ptk_bpe_ordered *ordered, const struct merge *merge)
{
    return pair_of(ordered->symbols[merge->left], ordered->symbols[merge->right]);
}

/* Lines of the table that are on their way while it is filled. */
#define FILL_AHEAD 16u

static bool fill_merges(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    for (uint32_t i = 0; i < order->count; i++) {
        if (i + FILL_AHEAD < order->count) {
            const uint64_t ahead = merge_pair(ordered, &order->by_rank[i + FILL_AHEAD]);
            ptk_prefetch(bucket_of(&ordered->late, ahead));
        }
        const struct merge *merge = &order->by_rank[i];
        const uint64_t pair = merge_pair(ordered, merge);
        const uint64_t hash = hash_of(pair);
        const bool late = order->late[merge->id];
        ordered->filter[hash >> (64 - FILTER_WORDS_LOG2)] |= late ? filter_bits(hash) : 0;
        if (!put_merge(late ? &ordered->late : &ordered->early, pair,
                       ordered->symbols[merge->id])) {
            return false;
        }
    }
    return true;
}

static void lower(uint16_t *lowest, uint32_t made)
{
    *lowest = made < *lowest ? (uint16_t)made : *lowest;
}

static void add_neighbours(struct ptk_bpe_ordered *ordered, struct edges left, struct edges right,
                           uint32_t made, bool early)
{
    struct ptk_bpe_neighbours *neighbours =
        &ordered->neighbours[(size_t)left.last << 8 | right.first];
    if (left.one && right.one && early) {
        neighbours->made = made;
    }
    if (right.one) {
        lower(&neighbours->taken, made);
    }
    if (left.one) {
        lower(&neighbours->taking, made);
    }
}

/* False where two bytes have one id. */
static bool name_bytes(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint32_t id = order->image->byte_ids[byte];
        ordered->units[byte] = NO_SYMBOL;
        if (id == PTK_IMAGE_NONE) {
            continue;
        }
        ordered->units[byte] = ordered->symbols[id];
        if (order->edges[id].known) {
            return false;
        }
        order->edges[id] = (struct edges){(uint8_t)byte, (uint8_t)byte, true, true};
    }
    return true;
}

static void fill_neighbours(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    for (size_t i = 0; i < 65536; i++) {
        ordered->neighbours[i] = (struct ptk_bpe_neighbours){0, UINT16_MAX, UINT16_MAX};
    }
    struct edges *edges = order->edges;
    bool more = true;
    while (more) { /* ends: each turn but the last adds a merge; one is enough where ranks ascend */
        bool added = false;
        bool left_out = false;
        for (uint32_t i = 0; i < order->count; i++) {
            const struct merge *merge = &order->by_rank[i];
            const struct edges left = edges[merge->left];
            const struct edges right = edges[merge->right];
            if (!left.known || !right.known) {
                left_out = true;
            } else if (!edges[merge->id].known) {
                add_neighbours(ordered, left, right, ordered->symbols[merge->id],
                               !order->late[merge->id]);
                edges[merge->id] = (struct edges){left.first, right.last, true, false};
                added = true;
            }
        }
        more = added && left_out;
    }
}

/* Makes all tables; false where that cannot be. */
static bool make_tables(struct ptk_bpe_ordered *ordered, struct order *order)
{
    find_descents(ordered, order);
    ordered->ids_are_symbols = ids_ascend(order);
    name_symbols(ordered, order);
    if (!fill_merges(ordered, order)) {
        return false;
    }
    if (ordered->neighbours == NULL) {
        return true;
    }
    if (!name_bytes(ordered, order)) {
        return false;
    }
    fill_neighbours(ordered, order);
    return true;
}

static size_t merges_len(struct ptk_bpe_merges *merges, uint32_t count)
{
    merges->bucket_count = count / BUCKET_LOAD + 1;
    return (merges->bucket_count + (size_t)SPILL_MAX) * sizeof *merges->buckets;
}

/* All tables in one memory, those first that every piece asks. */
static int allocate_tables(struct ptk_bpe_ordered *ordered, const struct order *order)
{
    const bool bytes = (order->image->config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0;
    const size_t early_len = merges_len(&ordered->early, order->count - order->late_count);
    const size_t late_len = merges_len(&ordered->late, order->late_count);
    const size_t filter_len = sizeof *ordered->filter << FILTER_WORDS_LOG2;
    const size_t neighbours_len = bytes ? 65536 * sizeof *ordered->neighbours : 0;
    uint8_t *memory = ptk_huge_alloc(early_len + filter_len + neighbours_len + late_len);
    ordered->ids = malloc(order->image->config->ids_end * sizeof *ordered->ids);
    ordered->symbols = malloc(order->image->config->ids_end * sizeof *ordered->symbols);
    ordered->memory = memory;
    if (memory == NULL || ordered->ids == NULL || ordered->symbols == NULL) {
        return -ENOMEM;
    }
    ordered->early.buckets = (struct ptk_bpe_bucket *)(void *)memory;
    ordered->filter = (uint64_t *)(void *)(memory + early_len);
    ordered->neighbours =
        bytes ? (struct ptk_bpe_neighbours *)(void *)(memory + early_len + filter_len) : NULL;
    ordered->late.buckets =
        (struct ptk_bpe_bucket *)(void *)(memory + early_len + filter_len + neighbours_len);
    memset(ordered->early.buckets, 0xff, early_len);
    memset(ordered->filter, 0, filter_len);
    memset(ordered->late.buckets, 0xff, late_len);
    return 0;
}

int ptk_bpe_ordered_init(struct ptk_bpe_ordered *ordered, const struct ptk_image *image,
                         uint32_t early_max, struct ptk_err *err)
{
    *ordered = (struct ptk_bpe_ordered){0};
    const uint32_t ids_end = image->config->ids_end;
    const uint32_t rank_end = find_rank_end(image);
    if (ids_end > NO_SYMBOL || rank_end == UINT32_MAX) {
        return 0;
    }
    struct order order = {.image = image};
    const size_t late_len = ids_end * sizeof *order.late;
    const size_t edges_len = ids_end * sizeof *order.edges;
    const size_t made_by_len = ids_end * sizeof *order.made_by;
    const size_t by_rank_len = rank_end * sizeof *order.by_rank;
    uint8_t *memory = ptk_huge_alloc(by_rank_len + made_by_len + edges_len + late_len);
    int code = 0;
    if (memory == NULL) {
        code = -ENOMEM;
        goto out;
    }
    order.by_rank = (struct merge *)(void *)memory;
    order.made_by = (uint32_t *)(void *)(memory + by_rank_len);
    order.edges = (struct edges *)(void *)(memory + by_rank_len + made_by_len);
    order.late = (bool *)(void *)(memory + by_rank_len + made_by_len + edges_len);
    memset(memory, 0xff, by_rank_len + made_by_len);
    memset(order.edges, 0, edges_len + late_len);
    if (!read_merges(&order, rank_end)) {
        goto out;
    }
    find_late(&order, early_max);
    code = allocate_tables(ordered, &order);
    if (code != 0 || !make_tables(ordered, &order)) {
        ptk_bpe_ordered_fini(ordered);
        goto out;
    }
    if (ordered->neighbours != NULL || ordered->ids_are_symbols) {
        free(ordered->symbols); /* bytes have a table of their own */
        ordered->symbols = NULL;
    }
    if (ordered->ids_are_symbols) {
        free(ordered->ids);
        ordered->ids = NULL;
    }
out:
    free(memory);
    return code == 0 ? 0 : ptk_err_set(err, code, "out of memory while opening a tokenizer");
}

void ptk_bpe_ordered_fini(struct ptk_bpe_ordered *ordered)
{
    free(ordered->memory);
    free(ordered->symbols);
    free(ordered->ids);
    *ordered = (struct ptk_bpe_ordered){0};
}

/* ---- merging -------------------------------------------------------------------------------- */

/*
 * What a processor guesses wrong here costs more than what it does: whether two symbols merge and
 * where their neighbours are is never a branch.
 */

/*
 * The symbols of a piece, by the place of their first unit. Places begin at 1: those at both ends
 * have symbols that merge with nothing.
 */
struct work {
    PTK_ALIGNED_LINE uint32_t key[PLACES]; /* of the pair that starts at a place */
    uint32_t symbol[PLACES];
    uint64_t live; /* bit i: a symbol starts at place i */
    size_t groups; /* of 16 keys */
};

static inline uint32_t make_key(uint32_t made, size_t place)
{
    return (made << PLACE_BITS | (uint32_t)place) | (0u - (made == 0));
}

/* The place of the symbol behind one. */
static inline size_t next_place(uint64_t live, size_t place)
{
    return (size_t)__builtin_ctzll(live & ~1ull << place);
}

static inline size_t previous_place(uint64_t live, size_t place)
{
    return 63 - (size_t)__builtin_clzll(live & ((1ull << place) - 1));
}

static inline uint32_t lowest_key(const struct work *work)
{
    const __m128i *keys = (const __m128i *)(const void *)work->key;
    __m128i low = _mm_min_epu32(_mm_min_epu32(keys[0], keys[1]), _mm_min_epu32(keys[2], keys[3]));
    for (size_t i = 1; i < work->groups; i++) {
        keys += 4;
        low = _mm_min_epu32(
            low, _mm_min_epu32(_mm_min_epu32(keys[0], keys[1]), _mm_min_epu32(keys[2], keys[3])));
    }
    low = _mm_min_epu32(low, _mm_shuffle_epi32(low, _MM_SHUFFLE(1, 0, 3, 2)));
    low = _mm_min_epu32(low, _mm_shuffle_epi32(low, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(low);
}

/* A piece of `count` units without keys and symbols. */
static inline void start(struct work *work, size_t count)
{
    __m128i *keys = (__m128i *)(void *)work->key;
    work->groups = (count + 2 + 15) / 16;
    for (size_t i = 0; i < work->groups; i++) {
        for (size_t k = 0; k < 4; k++) {
            keys[4 * i + k] = _mm_set1_epi32((int)NO_KEY);
        }
    }
    work->symbol[0] = NO_SYMBOL;
    work->symbol[count + 1] = NO_SYMBOL;
    work->live = UINT64_MAX >> (PTK_BPE_ORDERED_MAX - count);
}

static inline void find_key(const struct ptk_bpe_ordered *ordered, struct work *work, size_t place)
{
    const size_t right = next_place(work->live, place);
    work->key[place] =
        make_key(find_made(&ordered->early, work->symbol[place], work->symbol[right]), place);
}

/*
 * The bytes as symbols, those merged that surely merge first: no symbol that ends in the byte
 * before takes the left one earlier, and the right one takes none that begins with the byte behind.
 * Two such pairs do not share a byte: each would have to make less than the other. Returns the
 * places of those pairs.
 */
static inline uint64_t read_bytes(const struct ptk_bpe_ordered *ordered, struct work *work,
                                  const uint8_t *bytes, size_t count)
{
    uint64_t sure = 0;
    uint32_t made = 0;           /* by the pair before */
    uint32_t limit = UINT32_MAX; /* what could take that pair's left byte before */
    uint32_t next_limit = UINT32_MAX;
    const uint32_t allowed = ordered->sure;
    for (size_t i = 0; i + 1 < count; i++) {
        const struct ptk_bpe_neighbours pair =
            ordered->neighbours[(size_t)bytes[i] << 8 | bytes[i + 1]];
        /* - 1: a pair that makes nothing is above all. */
        const uint32_t is_sure = (made - 1 < limit - 1) & (made < pair.taking) & allowed;
        const uint32_t all = 0u - is_sure;
        work->symbol[i] = (made & all) | (work->symbol[i] & ~all);
        work->symbol[i + 1] = ordered->units[bytes[i]];
        work->key[i + 1] = make_key(pair.made, i + 1) | all;
        sure |= (uint64_t)is_sure << i;
        made = pair.made;
        limit = next_limit;
        next_limit = pair.taken;
    }
    const uint32_t is_sure = (made - 1 < limit - 1) & allowed;
    const uint32_t all = 0u - is_sure;
    work->symbol[count - 1] = (made & all) | (work->symbol[count - 1] & ~all);
    work->symbol[count] = ordered->units[bytes[count - 1]];
    return sure | (uint64_t)is_sure << (count - 1);
}

/* The same, and returns the places whose keys are not known. */
static inline uint64_t start_bytes(const struct ptk_bpe_ordered *ordered, struct work *work,
                                   const uint8_t *bytes, size_t count)
{
    const uint64_t sure = read_bytes(ordered, work, bytes, count);
    work->live &= ~(sure << 1);
    return sure | (sure >> 1 & work->live & ~1ull);
}

static inline void find_keys(const struct ptk_bpe_ordered *ordered, struct work *work,
                             uint64_t places)
{
    for (; places != 0; places &= places - 1) {
        find_key(ordered, work, (size_t)__builtin_ctzll(places));
    }
}

static inline void start_ids(const struct ptk_bpe_ordered *ordered, struct work *work,
                             const uint32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        work->symbol[i + 1] = ordered->symbols == NULL ? ids[i] : ordered->symbols[ids[i]];
    }
    for (size_t i = 1; i < count; i++) {
        work->key[i] =
            make_key(find_made(&ordered->early, work->symbol[i], work->symbol[i + 1]), i);
    }
}

/* A merge that is made, with its two new pairs. */
struct turn {
    size_t at;
    size_t left;
};

static inline struct turn begin_turn(struct work *work, uint32_t lowest)
{
    const size_t at = lowest & (PLACES - 1);
    const size_t second = next_place(work->live, at);
    work->live &= ~(1ull << second);
    work->symbol[at] = lowest >> PLACE_BITS;
    work->key[second] = NO_KEY;
    return (struct turn){at, previous_place(work->live, at)};
}

/* The keys of the two pairs, and the lowest of all then. The other keys are compared while the new
 * ones are fetched. */
static inline uint32_t end_turn(const struct ptk_bpe_ordered *ordered, struct work *work,
                                struct turn turn, bool late)
{
    const uint32_t made = work->symbol[turn.at];
    const uint32_t left_symbol = work->symbol[turn.left];
    const uint32_t right_symbol = work->symbol[next_place(work->live, turn.at)];
    uint32_t left_made;
    uint32_t right_made;
    if (late) {
        left_made = find_made_late(ordered, left_symbol, made);
        right_made = find_made_late(ordered, made, right_symbol);
    } else {
        left_made = find_made(&ordered->early, left_symbol, made);
        right_made = find_made(&ordered->early, made, right_symbol);
    }
    work->key[turn.left] = NO_KEY;
    work->key[turn.at] = NO_KEY;
    const uint32_t others = lowest_key(work);
    const uint32_t left_key = make_key(left_made, turn.left);
    const uint32_t right_key = make_key(right_made, turn.at);
    work->key[turn.left] = left_key;
    work->key[turn.at] = right_key;
    const uint32_t lowest = left_key < right_key ? left_key : right_key;
    return others < lowest ? others : lowest;
}

/* Merges until nothing merges. */
static inline __attribute__((always_inline)) void run(const struct ptk_bpe_ordered *ordered,
                                                      struct work *work, bool late)
{
    uint32_t lowest = lowest_key(work);
    while (lowest != NO_KEY) { /* ends: each turn takes one symbol away */
        lowest = end_turn(ordered, work, begin_turn(work, lowest), late);
    }
}

/* The same for several pieces, a turn of each in turn: none waits for what another one does. */
static inline __attribute__((always_inline)) void
run_each(const struct ptk_bpe_ordered *ordered, struct work *work, size_t count, bool late)
{
    uint32_t lowest[PTK_BPE_TOGETHER];
    uint8_t busy[PTK_BPE_TOGETHER];
    size_t busy_count = 0;
    for (size_t i = 0; i < count; i++) {
        lowest[i] = lowest_key(&work[i]);
        busy[busy_count] = (uint8_t)i;
        busy_count += lowest[i] != NO_KEY;
    }
    while (busy_count > 0) { /* ends: each turn takes one symbol away */
        size_t kept = 0;
        for (size_t k = 0; k < busy_count; k++) {
            const size_t i = busy[k];
            lowest[i] = end_turn(ordered, &work[i], begin_turn(&work[i], lowest[i]), late);
            busy[kept] = (uint8_t)i;
            kept += lowest[i] != NO_KEY;
        }
        busy_count = kept;
    }
}

/* What is left after the early merges: asks for the lines of all pairs that may merge; their
 * places. */
static inline uint64_t ask_late(const struct ptk_bpe_ordered *ordered, const struct work *work)
{
    uint64_t asked = 0;
    size_t place = (size_t)__builtin_ctzll(work->live & ~1ull);
    for (uint64_t rights = work->live & ~1ull << place; rights != 0; rights &= rights - 1) {
        const size_t right = (size_t)__builtin_ctzll(rights);
        const uint32_t left_symbol = work->symbol[place];
        const uint32_t right_symbol = work->symbol[right];
        const uint64_t may = may_merge_late(ordered, left_symbol, right_symbol);
        /* The first line stands for none: it is asked for again and again. */
        const uint64_t index =
            bucket_index(&ordered->late, pair_of(left_symbol, right_symbol)) & (0 - may);
        ptk_prefetch(&ordered->late.buckets[index]);
        asked |= may << place;
        place = right;
    }
    return asked;
}

/* The keys of what was asked for. */
static inline void start_late(const struct ptk_bpe_ordered *ordered, struct work *work,
                              uint64_t asked)
{
    for (; asked != 0; asked &= asked - 1) {
        const size_t left = (size_t)__builtin_ctzll(asked);
        const size_t right = next_place(work->live, left);
        work->key[left] =
            make_key(find_made(&ordered->late, work->symbol[left], work->symbol[right]), left);
    }
}

/* The ids of what is left, and where each ends if `ends` is not NULL; how many there are. */
static inline size_t put_ids(const struct ptk_bpe_ordered *ordered, const struct work *work,
                             uint32_t *ids, uint32_t *ends)
{
    size_t kept = 0;
    size_t place = (size_t)__builtin_ctzll(work->live & ~1ull);
    for (uint64_t rights = work->live & ~1ull << place; rights != 0; rights &= rights - 1) {
        const size_t right = (size_t)__builtin_ctzll(rights);
        const uint32_t symbol = work->symbol[place];
        ids[kept] = ordered->ids == NULL ? symbol : ordered->ids[symbol];
        if (ends != NULL) {
            ends[kept] = ends[right - 2];
        }
        place = right;
        kept++;
    }
    return kept;
}

size_t ptk_bpe_ordered_merge(const struct ptk_bpe_ordered *ordered, uint32_t *ids, uint32_t *ends,
                             const uint8_t *bytes, size_t count)
{
    PTK_DCHECK(count >= 2);
    PTK_DCHECK(count <= PTK_BPE_ORDERED_MAX);
    struct work work;
    start(&work, count);
    if (bytes != NULL) {
        find_keys(ordered, &work, start_bytes(ordered, &work, bytes, count));
    } else {
        start_ids(ordered, &work, ids, count);
    }
    run(ordered, &work, false);
    start_late(ordered, &work, ask_late(ordered, &work));
    run(ordered, &work, true);
    return put_ids(ordered, &work, ids, ends);
}

void ptk_bpe_ordered_merge_each(const struct ptk_bpe_ordered *ordered,
                                struct ptk_bpe_together *pieces, size_t count)
{
    PTK_DCHECK(count <= PTK_BPE_TOGETHER);
    struct work work[PTK_BPE_TOGETHER];
    uint64_t asked[PTK_BPE_TOGETHER];
    for (size_t i = 0; i < count; i++) {
        start(&work[i], pieces[i].count);
        asked[i] = 0;
        if (pieces[i].bytes != NULL) {
            asked[i] = start_bytes(ordered, &work[i], pieces[i].bytes, pieces[i].count);
        } else {
            start_ids(ordered, &work[i], pieces[i].ids, pieces[i].count);
        }
    }
    for (size_t i = 0; i < count; i++) {
        find_keys(ordered, &work[i], asked[i]);
    }
    run_each(ordered, work, count, false);
    for (size_t i = 0; i < count; i++) {
        asked[i] = ask_late(ordered, &work[i]);
    }
    for (size_t i = 0; i < count; i++) {
        start_late(ordered, &work[i], asked[i]);
    }
    run_each(ordered, work, count, true);
    for (size_t i = 0; i < count; i++) {
        pieces[i].count = put_ids(ordered, &work[i], pieces[i].ids, NULL);
    }
}
