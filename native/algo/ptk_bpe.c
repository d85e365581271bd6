#include "algo/ptk_bpe.h"

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#include <errno.h>
#include <smmintrin.h>
#include <stdlib.h>

#define NO_SLOT   UINT32_MAX       /* no merge starts at this unit */
#define DEAD_SLOT (UINT32_MAX - 1) /* this unit no longer starts a symbol */
#define NO_UNIT   UINT32_MAX

_Static_assert(PTK_BPE_RANKS_MAX == 64u * 64u * 64u * 4u,
               "three levels of 64, four words at the top");
#define LEVEL0_WORDS (PTK_BPE_RANKS_MAX / 64u)
#define LEVEL1_WORDS (LEVEL0_WORDS / 64u)
#define LEVEL2_WORDS (LEVEL1_WORDS / 64u)

/* A key of the short loop: rank above, place below, so that the lowest key is the leftmost lowest
 * rank. */
#define PLACE_BITS 6u
#define NO_KEY     UINT32_MAX
_Static_assert(PTK_BPE_SHORT_MAX == 1u << PLACE_BITS, "a place fits its bits");

#ifdef PTK_DEBUG
static _Thread_local uint64_t steps;
#define COUNT_STEPS(count) (steps += (count))
uint64_t ptk_bpe_steps(void)
{
    return steps;
}
#else
#define COUNT_STEPS(count) ((void)0)
uint64_t ptk_bpe_steps(void)
{
    return 0;
}
#endif

/* Whether ranks only grow while merging: then no merge can make a pair due before the current
 * one. */
static int find_order(struct ptk_bpe *bpe, struct ptk_err *err)
{
    const struct ptk_image *image = bpe->image;
    uint32_t *rank_end = calloc(image->config->ids_end, sizeof *rank_end);
    if (rank_end == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (size_t i = 0; i <= image->pair_mask; i++) {
        const struct ptk_image_pair *pair = &image->pairs[i];
        if (pair->left == PTK_IMAGE_NONE) {
            continue;
        }
        if (pair->rank >= PTK_BPE_RANKS_MAX) {
            bpe->ascending = false;
            bpe->few_ranks = false;
            bpe->short_ranks = bpe->short_ranks && pair->rank < NO_KEY >> PLACE_BITS;
            continue;
        }
        if (rank_end[pair->id] < pair->rank + 1) {
            rank_end[pair->id] = pair->rank + 1;
        }
    }
    for (size_t i = 0; i <= image->pair_mask && bpe->ascending; i++) {
        const struct ptk_image_pair *pair = &image->pairs[i];
        if (pair->left != PTK_IMAGE_NONE) {
            bpe->ascending =
                pair->rank >= rank_end[pair->left] && pair->rank >= rank_end[pair->right];
        }
    }
    free(rank_end);
    return 0;
}

/*
 * Most pairs that merging asks for do not exist, and the table is larger than the caches near the
 * core: a bit says no without it. 2^22 bits stay in the second cache and let about one in twenty
 * pass.
 */
#define FILTER_BITS_LOG2 22u

static inline size_t filter_bit(uint32_t left, uint32_t right)
{
    return (size_t)((((uint64_t)left << 32 | right) * PTK_HASH_B) >> (64 - FILTER_BITS_LOG2));
}

static int make_filter(struct ptk_bpe *bpe, struct ptk_err *err)
{
    const struct ptk_image *image = bpe->image;
    bpe->filter = calloc((size_t)1 << (FILTER_BITS_LOG2 - 6), sizeof *bpe->filter);
    if (bpe->filter == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (size_t i = 0; i <= image->pair_mask; i++) {
        if (image->pairs[i].left != PTK_IMAGE_NONE) {
            const size_t bit = filter_bit(image->pairs[i].left, image->pairs[i].right);
            bpe->filter[bit >> 6] |= 1ull << (bit & 63);
        }
    }
    return 0;
}

static inline struct ptk_bpe_merge find_merge(const struct ptk_bpe *bpe, uint32_t left,
                                              uint32_t right)
{
    const size_t bit = filter_bit(left, right);
    if ((bpe->filter[bit >> 6] >> (bit & 63) & 1) != 0) {
        const struct ptk_image_pair *pair = ptk_image_pair(bpe->image, left, right);
        if (pair != NULL) {
            return (struct ptk_bpe_merge){pair->rank, pair->id};
        }
    }
    return (struct ptk_bpe_merge){UINT32_MAX, 0};
}

static int make_byte_merges(struct ptk_bpe *bpe, struct ptk_err *err)
{
    bpe->byte_merges = malloc(65536 * sizeof *bpe->byte_merges);
    if (bpe->byte_merges == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    const uint32_t *byte_ids = bpe->image->byte_ids;
    for (size_t i = 0; i < 65536; i++) {
        bpe->byte_merges[i] = find_merge(bpe, byte_ids[i >> 8], byte_ids[i & 255]);
    }
    return 0;
}

int ptk_bpe_init(struct ptk_bpe *bpe, const struct ptk_image *image, const struct ptk_chars *chars,
                 struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    *bpe = (struct ptk_bpe){
        .image = image,
        .chars = chars,
        .prefix = image->strings + config->prefix_off,
        .suffix = image->strings + config->suffix_off,
        .prefix_len = config->prefix_len,
        .suffix_len = config->suffix_len,
        .bytes = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0,
        .gaps = (config->flags & PTK_IMAGE_FLAGS_BYTE_GAPS) != 0,
        .ascending = true,
        .few_ranks = true,
        .short_ranks = true,
    };
    if ((uint64_t)config->prefix_len + config->suffix_len > PTK_BPE_AFFIX_MAX) {
        return ptk_err_set(
            err, -ENOTSUP,
            "continuing_subword_prefix and end_of_word_suffix have %u bytes together; "
            "at most %u are supported",
            config->prefix_len + config->suffix_len, PTK_BPE_AFFIX_MAX);
    }
    if (bpe->bytes && bpe->prefix_len + bpe->suffix_len > 0) {
        return ptk_err_set(err, -EINVAL, "an affix is defined for characters, not for bytes");
    }
    if (image->pairs == NULL) {
        return 0;
    }
    int code = ptk_bpe_ordered_init(&bpe->ordered, image, PTK_BPE_EARLY_MAX, err);
    if (code != 0 || bpe->ordered.memory != NULL) {
        bpe->ascending = bpe->ordered.ascending;
        return code;
    }
    code = make_filter(bpe, err);
    if (code == 0 && bpe->bytes) {
        code = make_byte_merges(bpe, err);
    }
    return code == 0 ? find_order(bpe, err) : code;
}

void ptk_bpe_fini(struct ptk_bpe *bpe)
{
    ptk_bpe_ordered_fini(&bpe->ordered);
    free(bpe->filter);
    free(bpe->byte_merges);
    bpe->filter = NULL;
    bpe->byte_merges = NULL;
}

size_t ptk_bpe_scratch_len(size_t unit_cap)
{
    const size_t by_unit = ptk_align_up(unit_cap * sizeof(uint32_t), PTK_CACHE_LINE);
    return 6 * by_unit + PTK_BPE_RANKS_MAX * sizeof(uint32_t) +
           ptk_align_up((2 * LEVEL0_WORDS + LEVEL1_WORDS + LEVEL2_WORDS) * sizeof(uint64_t),
                        PTK_CACHE_LINE);
}

void ptk_bpe_scratch_init(struct ptk_bpe_scratch *scratch, void *memory, size_t unit_cap)
{
    PTK_ASSERT(unit_cap >= PTK_BPE_SHORT_MAX);
    const size_t by_unit = ptk_align_up(unit_cap * sizeof(uint32_t), PTK_CACHE_LINE);
    uint8_t *at = memory;
    uint32_t **const arrays[] = {&scratch->ids,  &scratch->ends,   &scratch->partner,
                                 &scratch->slot, &scratch->before, &scratch->after};
    for (size_t i = 0; i < PTK_ARRAY_LEN(arrays); i++) {
        *arrays[i] = (uint32_t *)(void *)at;
        at += by_unit;
    }
    scratch->head = (uint32_t *)(void *)at;
    at += PTK_BPE_RANKS_MAX * sizeof(uint32_t);
    const size_t words[] = {LEVEL0_WORDS, LEVEL1_WORDS, LEVEL2_WORDS};
    for (size_t i = 0; i < PTK_ARRAY_LEN(words); i++) {
        scratch->level[i] = (uint64_t *)(void *)at;
        memset(at, 0, words[i] * sizeof(uint64_t));
        at += words[i] * sizeof(uint64_t);
    }
    scratch->sorted = (uint64_t *)(void *)at;
    memset(at, 0, LEVEL0_WORDS * sizeof(uint64_t));
    scratch->unit_cap = unit_cap;
}

/* Units between two pauses of a loop that the compiler vectorises. */
#define STEP_UNITS ((size_t)8192)

/* ---- units ---------------------------------------------------------------------------------- */

/* The characters of a piece as they are turned into units. */
struct unit_writer {
    struct ptk_bpe_scratch *scratch;
    size_t count;
    size_t end;         /* bytes of all units so far */
    size_t unknown_len; /* bytes of unknown characters that are not a unit yet */
    bool unknown;       /* there are such characters */
};

static void put_unit(struct unit_writer *writer, uint32_t id, size_t len)
{
    writer->end += len;
    writer->scratch->ids[writer->count] = id;
    writer->scratch->ends[writer->count] = (uint32_t)writer->end;
    writer->count++;
}

static void flush_unknown(const struct ptk_bpe *bpe, struct unit_writer *writer)
{
    if (writer->unknown) {
        put_unit(writer, bpe->image->config->unk_id, writer->unknown_len);
        writer->unknown = false;
        writer->unknown_len = 0;
    }
}

/* A character as byte tokens; false when the vocabulary lacks one of them. */
static bool put_bytes(const struct ptk_bpe *bpe, struct unit_writer *writer, const uint8_t *key,
                      size_t len)
{
    const uint32_t *byte_ids = bpe->image->byte_ids;
    for (size_t i = 0; i < len; i++) {
        if (byte_ids[key[i]] == PTK_IMAGE_NONE) {
            return false;
        }
    }
    for (size_t i = 0; i < len; i++) {
        put_unit(writer, byte_ids[key[i]], 1);
    }
    return true;
}

static void put_unknown(const struct ptk_bpe *bpe, struct unit_writer *writer, size_t len)
{
    const struct ptk_image_config *config = bpe->image->config;
    if (config->unk_id == PTK_IMAGE_NONE) {
        return;
    }
    if ((config->flags & PTK_IMAGE_FLAGS_FUSE_UNK) == 0) {
        flush_unknown(bpe, writer);
    }
    writer->unknown = true;
    writer->unknown_len += len;
}

/*
 * One character, with its affixes in `key`, and its id if the vocabulary has it. Unknown characters
 * wait in the writer, and byte tokens pass them by: the reference does so, and order is part of the
 * result.
 */
static inline void put_char(const struct ptk_bpe *bpe, struct unit_writer *writer, uint32_t id,
                            const uint8_t *key, size_t key_len, size_t len)
{
    const struct ptk_image_config *config = bpe->image->config;
    if (PTK_LIKELY(id != PTK_IMAGE_NONE)) {
        flush_unknown(bpe, writer);
        put_unit(writer, id, len);
        return;
    }
    if ((config->flags & PTK_IMAGE_FLAGS_BYTE_FALLBACK) != 0 && bpe->image->byte_ids != NULL &&
        put_bytes(bpe, writer, key, key_len)) {
        return;
    }
    put_unknown(bpe, writer, len);
}

size_t ptk_bpe_units(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                     const uint8_t *piece, size_t len)
{
    if (len > scratch->unit_cap || scratch->unit_cap - len < bpe->prefix_len + bpe->suffix_len) {
        /* Byte tokens may need a unit for every byte; count exactly only when that cannot fit. */
        size_t units = 0;
        size_t paused_at = 0;
        for (size_t i = 0; i < len; i += ptk_utf8_lead_len(piece[i])) {
            ptk_pause_pos(&paused_at, i);
            units += (bpe->image->config->flags & PTK_IMAGE_FLAGS_BYTE_FALLBACK) != 0
                         ? ptk_utf8_lead_len(piece[i]) + bpe->prefix_len + bpe->suffix_len
                         : 1;
        }
        if (units > scratch->unit_cap) {
            return SIZE_MAX;
        }
    }
    struct unit_writer writer = {.scratch = scratch};
    uint32_t turns = 0;
    if (bpe->prefix_len + bpe->suffix_len == 0) {
        for (size_t i = 0; i < len;) {
            ptk_pause_turn(&turns);
            uint32_t step;
            const uint32_t code_point = ptk_utf8_decode(piece + i, &step);
            const uint32_t id = ptk_chars_id(bpe->chars->records[code_point]);
            put_char(bpe, &writer, id, piece + i, step, step);
            i += step;
        }
    } else {
        uint8_t key[PTK_BPE_AFFIX_MAX + 4];
        for (size_t i = 0; i < len;) {
            ptk_pause_turn(&turns);
            const size_t step = ptk_utf8_lead_len(piece[i]);
            size_t key_len = 0;
            if (i > 0) {
                memcpy(key, bpe->prefix, bpe->prefix_len);
                key_len = bpe->prefix_len;
            }
            memcpy(key + key_len, piece + i, step);
            key_len += step;
            if (i + step == len) {
                memcpy(key + key_len, bpe->suffix, bpe->suffix_len);
                key_len += bpe->suffix_len;
            }
            put_char(bpe, &writer, ptk_image_vocab(bpe->image, key, key_len), key, key_len, step);
            i += step;
        }
    }
    flush_unknown(bpe, &writer);
    return writer.count;
}

/* ---- short pieces --------------------------------------------------------------------------- */

static uint32_t pair_slot(const struct ptk_image *image, uint32_t left, uint32_t right)
{
    const struct ptk_image_pair *pair = ptk_image_pair(image, left, right);
    return pair == NULL ? NO_SLOT : (uint32_t)(pair - image->pairs);
}

/* The symbols of a short piece; `count` is the place behind the last one. */
struct short_piece {
    PTK_ALIGNED_LINE uint32_t key[PTK_BPE_SHORT_MAX]; /* of the pair that starts at a place */
    uint32_t merged[PTK_BPE_SHORT_MAX];               /* its result */
    uint8_t next[PTK_BPE_SHORT_MAX];
    uint8_t previous[PTK_BPE_SHORT_MAX + 1];
};

static inline void short_put(struct short_piece *piece, size_t at, struct ptk_bpe_merge merge)
{
    piece->key[at] = merge.rank == UINT32_MAX ? NO_KEY : merge.rank << PLACE_BITS | (uint32_t)at;
    piece->merged[at] = merge.id;
}

/* The lowest key of `groups` times 16. */
static inline uint32_t short_lowest(const struct short_piece *piece, size_t groups)
{
    const __m128i *keys = (const __m128i *)(const void *)piece->key;
    __m128i low = _mm_min_epu32(_mm_min_epu32(keys[0], keys[1]), _mm_min_epu32(keys[2], keys[3]));
    for (size_t i = 1; i < groups; i++) {
        keys += 4;
        low = _mm_min_epu32(
            low, _mm_min_epu32(_mm_min_epu32(keys[0], keys[1]), _mm_min_epu32(keys[2], keys[3])));
    }
    low = _mm_min_epu32(low, _mm_shuffle_epi32(low, _MM_SHUFFLE(1, 0, 3, 2)));
    low = _mm_min_epu32(low, _mm_shuffle_epi32(low, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(low);
}

/*
 * Merges `count` units in place and returns how many ids are left; `ends`, if not NULL, is thinned
 * out alike. `bytes`, if not NULL, are the units. Each merge looks at all keys: quadratic, but over
 * 16 registers at most.
 */
static size_t merge_short(const struct ptk_bpe *bpe, uint32_t *ids, uint32_t *ends,
                          const uint8_t *bytes, size_t count)
{
    struct short_piece piece;
    const size_t groups = (count + 15) / 16;
    for (size_t i = 0; i < count; i++) {
        piece.next[i] = (uint8_t)(i + 1);
        piece.previous[i + 1] = (uint8_t)i;
    }
    for (size_t i = count - 1; i < 16 * groups; i++) {
        piece.key[i] = NO_KEY;
    }
    for (size_t i = 0; i + 1 < count; i++) {
        short_put(&piece, i,
                  bytes != NULL ? bpe->byte_merges[(size_t)bytes[i] << 8 | bytes[i + 1]]
                                : find_merge(bpe, ids[i], ids[i + 1]));
    }
    for (;;) { /* ends: each turn takes one symbol away */
        COUNT_STEPS(16 * groups);
        const uint32_t lowest = short_lowest(&piece, groups);
        if (lowest == NO_KEY) {
            break;
        }
        const size_t at = lowest & (PTK_BPE_SHORT_MAX - 1);
        const size_t second = piece.next[at];
        const size_t right = piece.next[second];
        ids[at] = piece.merged[at];
        piece.next[at] = (uint8_t)right;
        piece.previous[right] = (uint8_t)at;
        piece.key[second] = NO_KEY;
        piece.key[at] = NO_KEY;
        if (right < count) {
            short_put(&piece, at, find_merge(bpe, ids[at], ids[right]));
        }
        if (at > 0) {
            const size_t left = piece.previous[at];
            short_put(&piece, left, find_merge(bpe, ids[left], ids[at]));
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < count; i = piece.next[i]) {
        ids[kept] = ids[i];
        if (ends != NULL) {
            ends[kept] = ends[piece.next[i] - 1];
        }
        kept++;
    }
    return kept;
}

/* ---- long pieces: the symbols --------------------------------------------------------------- */

static void symbols_init(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                         size_t count)
{
    uint32_t turns = 0;
    for (size_t i = 0; i < count; i++) {
        ptk_pause_turn(&turns);
        scratch->partner[i] = (uint32_t)i;
        scratch->slot[i] =
            i + 1 < count ? pair_slot(image, scratch->ids[i], scratch->ids[i + 1]) : NO_SLOT;
    }
}

/* A merge has happened at `at`: its neighbours before and after, NO_UNIT at the ends of the
 * piece. */
struct merged {
    uint32_t at;
    uint32_t left;
    uint32_t right;
};

static struct merged symbols_merge(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                                   uint32_t at, size_t count)
{
    COUNT_STEPS(1);
    const uint32_t second = scratch->partner[at] + 1;
    const uint32_t last = scratch->partner[second];
    scratch->ids[at] = image->pairs[scratch->slot[at]].id;
    scratch->slot[second] = DEAD_SLOT;
    scratch->partner[at] = last;
    scratch->partner[last] = at;
    return (struct merged){
        .at = at,
        .left = at > 0 ? scratch->partner[at - 1] : NO_UNIT,
        .right = last + 1 < count ? last + 1 : NO_UNIT,
    };
}

/* ---- long pieces: lists by rank ------------------------------------------------------------- */

/* Says in all levels that a rank has a list. */
static void list_mark(struct ptk_bpe_scratch *scratch, uint32_t rank)
{
    scratch->level[0][rank >> 6] |= 1ull << (rank & 63);
    scratch->level[1][rank >> 12] |= 1ull << (rank >> 6 & 63);
    scratch->level[2][rank >> 18] |= 1ull << (rank >> 12 & 63);
}

static void list_push(struct ptk_bpe_scratch *scratch, uint32_t unit, uint32_t rank)
{
    const uint64_t *word = &scratch->level[0][rank >> 6];
    const uint64_t bit = 1ull << (rank & 63);
    uint32_t next = NO_UNIT;
    if ((*word & bit) != 0) {
        next = scratch->head[rank];
        scratch->sorted[rank >> 6] &= ~bit;
    } else {
        list_mark(scratch, rank);
    }
    scratch->after[unit] = next;
    scratch->before[unit] = NO_UNIT;
    if (next != NO_UNIT) {
        scratch->before[next] = unit;
    }
    scratch->head[rank] = unit;
}

/* The rank's bit stays set when its list becomes empty; list_pop() clears it. */
static void list_remove(struct ptk_bpe_scratch *scratch, uint32_t unit, uint32_t rank)
{
    const uint32_t previous = scratch->before[unit];
    const uint32_t next = scratch->after[unit];
    if (previous == NO_UNIT) {
        scratch->head[rank] = next;
    } else {
        scratch->after[previous] = next;
    }
    if (next != NO_UNIT) {
        scratch->before[next] = previous;
    }
}

/* A list on its own: no longer found by its rank. */
struct popped {
    uint32_t first;
    uint32_t rank;
    bool sorted;
};

/* Takes the list of the lowest rank away; false when there is none. */
static bool list_pop(struct ptk_bpe_scratch *scratch, struct popped *popped)
{
    for (uint32_t top = 0; top < LEVEL2_WORDS; top++) {
        if (scratch->level[2][top] == 0) {
            continue;
        }
        const uint32_t middle = top << 6 | (uint32_t)__builtin_ctzll(scratch->level[2][top]);
        const uint32_t low = middle << 6 | (uint32_t)__builtin_ctzll(scratch->level[1][middle]);
        const uint32_t rank = low << 6 | (uint32_t)__builtin_ctzll(scratch->level[0][low]);
        const uint64_t bit = 1ull << (rank & 63);
        scratch->level[0][low] &= ~bit;
        if (scratch->level[0][low] == 0) {
            scratch->level[1][middle] &= scratch->level[1][middle] - 1;
            if (scratch->level[1][middle] == 0) {
                scratch->level[2][top] &= scratch->level[2][top] - 1;
            }
        }
        popped->first = scratch->head[rank];
        popped->rank = rank;
        popped->sorted = (scratch->sorted[low] & bit) != 0;
        scratch->sorted[low] &= ~bit;
        return true;
    }
    return false;
}

/* Merges two ascending chains (links in `after`). */
static uint32_t chain_merge(uint32_t *after, uint32_t a, uint32_t b, uint32_t *turns)
{
    uint32_t first = NO_UNIT;
    uint32_t *tail = &first;
    while (a != NO_UNIT && b != NO_UNIT) {
        ptk_pause_turn(turns);
        COUNT_STEPS(1);
        if (a < b) {
            *tail = a;
            tail = &after[a];
            a = *tail;
        } else {
            *tail = b;
            tail = &after[b];
            b = *tail;
        }
    }
    *tail = a != NO_UNIT ? a : b;
    return first;
}

/*
 * Sorts a chain by unit. Units were pushed in a few ascending sweeps, so that the chain read
 * backwards is a few ascending runs: the runs are merged pairwise, like the digits of a binary
 * counter.
 */
static uint32_t chain_sort(uint32_t *after, uint32_t first, uint32_t *turns)
{
    uint32_t reversed = NO_UNIT;
    bool ascending = true;
    uint32_t last = first;
    for (uint32_t unit = first; unit != NO_UNIT; unit = after[unit]) {
        ptk_pause_turn(turns);
        COUNT_STEPS(1);
        ascending = ascending && unit >= last;
        last = unit;
    }
    if (ascending) {
        return first;
    }
    for (uint32_t unit = first; unit != NO_UNIT;) {
        ptk_pause_turn(turns);
        const uint32_t next = after[unit];
        after[unit] = reversed;
        reversed = unit;
        unit = next;
    }
    uint32_t runs[32];
    for (size_t i = 0; i < PTK_ARRAY_LEN(runs); i++) {
        runs[i] = NO_UNIT;
    }
    while (reversed != NO_UNIT) {
        uint32_t run = reversed;
        uint32_t end = run;
        while (after[end] != NO_UNIT && after[end] > end) {
            ptk_pause_turn(turns);
            end = after[end];
        }
        reversed = after[end];
        after[end] = NO_UNIT;
        size_t i = 0;
        while (runs[i] != NO_UNIT) { /* ends: fewer than 2^32 units make fewer than 2^32 runs */
            run = chain_merge(after, runs[i], run, turns);
            runs[i] = NO_UNIT;
            i++;
        }
        runs[i] = run;
    }
    uint32_t sorted = NO_UNIT;
    for (size_t i = 0; i < PTK_ARRAY_LEN(runs); i++) {
        sorted = chain_merge(after, runs[i], sorted, turns);
    }
    return sorted;
}

/* Sorting follows only one direction: restores the other, for a list that may be put back. */
static void chain_link_back(struct ptk_bpe_scratch *scratch, uint32_t first, uint32_t *turns)
{
    uint32_t previous = NO_UNIT;
    for (uint32_t unit = first; unit != NO_UNIT; unit = scratch->after[unit]) {
        ptk_pause_turn(turns);
        COUNT_STEPS(1);
        scratch->before[unit] = previous;
        previous = unit;
    }
}

/*
 * Puts the rest of a sorted list back. Where merges of one rank make halves of others, the last
 * merge may have given the rank a list again: of one or two units, all before the rest.
 */
static void list_put_back(struct ptk_bpe_scratch *scratch, uint32_t first, uint32_t rank,
                          uint32_t *turns)
{
    const bool again = (scratch->level[0][rank >> 6] >> (rank & 63) & 1) != 0;
    uint32_t fresh = again ? chain_sort(scratch->after, scratch->head[rank], turns) : NO_UNIT;
    list_mark(scratch, rank);
    scratch->sorted[rank >> 6] |= 1ull << (rank & 63);
    scratch->head[rank] = fresh != NO_UNIT ? fresh : first;
    uint32_t previous = NO_UNIT;
    while (fresh != NO_UNIT) {
        PTK_DCHECK(fresh < first);
        scratch->before[fresh] = previous;
        previous = fresh;
        fresh = scratch->after[fresh];
    }
    if (previous != NO_UNIT) {
        scratch->after[previous] = first;
    }
    scratch->before[first] = previous;
}

/* The pair at `unit` is new: puts it into its list and returns its rank, UINT32_MAX without one. */
static uint32_t list_update(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                            uint32_t unit, uint32_t right)
{
    scratch->slot[unit] = pair_slot(image, scratch->ids[unit], scratch->ids[right]);
    if (scratch->slot[unit] == NO_SLOT) {
        return UINT32_MAX;
    }
    const uint32_t rank = image->pairs[scratch->slot[unit]].rank;
    list_push(scratch, unit, rank);
    return rank;
}

/* Merges the pair at `unit`, which is in no list, and returns the lowest rank this brought about.
 */
static uint32_t list_merge(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                           uint32_t unit, size_t count)
{
    const struct merged merged = symbols_merge(image, scratch, unit, count);
    uint32_t lowest = UINT32_MAX;
    if (merged.left != NO_UNIT) {
        const uint32_t slot = scratch->slot[merged.left];
        if (slot != NO_SLOT) {
            list_remove(scratch, merged.left, image->pairs[slot].rank);
        }
        lowest = list_update(image, scratch, merged.left, unit);
    }
    scratch->slot[unit] = NO_SLOT;
    if (merged.right != NO_UNIT) {
        const uint32_t rank = list_update(image, scratch, unit, merged.right);
        lowest = rank < lowest ? rank : lowest;
    }
    return lowest;
}

/*
 * Takes the ranks in ascending order, and the units of one rank from left to right. Where ranks
 * ascend a merge brings about higher ranks only. Otherwise, as soon as one brings about the same or
 * a lower rank, the rest of the list is put back, still sorted, until that is done.
 */
static void merge_lists(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch, size_t count)
{
    const struct ptk_image *image = bpe->image;
    uint32_t pushes = 0;
    for (size_t i = count - 1; i-- > 0;) {
        ptk_pause_turn(&pushes);
        if (scratch->slot[i] != NO_SLOT) {
            list_push(scratch, (uint32_t)i, image->pairs[scratch->slot[i]].rank);
        }
    }
    struct popped popped;
    uint32_t turns = 0;
    while (list_pop(scratch, &popped)) {
        uint32_t unit = popped.first;
        ptk_pause_turn(&turns);
        if (!popped.sorted) {
            unit = chain_sort(scratch->after, unit, &turns);
            if (!bpe->ascending) {
                chain_link_back(scratch, unit, &turns);
            }
        }
        uint32_t lowest = UINT32_MAX;
        while (unit != NO_UNIT && lowest > popped.rank) {
            ptk_pause_turn(&turns);
            const uint32_t next = scratch->after[unit];
            if (scratch->slot[unit] != DEAD_SLOT) {
                lowest = list_merge(image, scratch, unit, count);
            }
            unit = next;
        }
        if (unit != NO_UNIT) {
            PTK_DCHECK(!bpe->ascending);
            list_put_back(scratch, unit, popped.rank, &turns);
        }
    }
}

/* ---- long pieces, too many ranks: a heap ---------------------------------------------------- */

/* A binary heap of units by (rank, unit): heap in `after`, each unit's place in it in `before`. */
static uint64_t heap_key(const struct ptk_image *image, const struct ptk_bpe_scratch *scratch,
                         uint32_t unit)
{
    return (uint64_t)image->pairs[scratch->slot[unit]].rank << 32 | unit;
}

static void heap_put(struct ptk_bpe_scratch *scratch, size_t place, uint32_t unit)
{
    scratch->after[place] = unit;
    scratch->before[unit] = (uint32_t)place;
}

/* Moves the unit at `place` to where its key belongs. */
static void heap_settle(const struct ptk_image *image, struct ptk_bpe_scratch *scratch, size_t len,
                        size_t place)
{
    const uint32_t unit = scratch->after[place];
    const uint64_t key = heap_key(image, scratch, unit);
    while (place > 0) {
        const uint32_t parent = scratch->after[(place - 1) / 2];
        if (heap_key(image, scratch, parent) <= key) {
            break;
        }
        COUNT_STEPS(1);
        heap_put(scratch, place, parent);
        place = (place - 1) / 2;
    }
    for (;;) { /* ends: place grows up to len */
        size_t child = 2 * place + 1;
        if (child >= len) {
            break;
        }
        if (child + 1 < len && heap_key(image, scratch, scratch->after[child + 1]) <
                                   heap_key(image, scratch, scratch->after[child])) {
            child++;
        }
        if (heap_key(image, scratch, scratch->after[child]) >= key) {
            break;
        }
        COUNT_STEPS(1);
        heap_put(scratch, place, scratch->after[child]);
        place = child;
    }
    heap_put(scratch, place, unit);
}

static size_t heap_remove(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                          size_t len, size_t place)
{
    len--;
    if (place < len) {
        heap_put(scratch, place, scratch->after[len]);
        heap_settle(image, scratch, len, place);
    }
    return len;
}

/* The pair that starts at `unit` has changed: its right half now begins at `right`. */
static size_t heap_update(const struct ptk_image *image, struct ptk_bpe_scratch *scratch,
                          size_t len, uint32_t unit, uint32_t right)
{
    const bool was_in = scratch->slot[unit] != NO_SLOT;
    const uint32_t slot =
        right == NO_UNIT ? NO_SLOT : pair_slot(image, scratch->ids[unit], scratch->ids[right]);
    if (slot == NO_SLOT) {
        if (was_in) {
            len = heap_remove(image, scratch, len, scratch->before[unit]);
        }
        scratch->slot[unit] = NO_SLOT;
        return len;
    }
    scratch->slot[unit] = slot;
    if (!was_in) {
        heap_put(scratch, len, unit);
        len++;
    }
    heap_settle(image, scratch, len, scratch->before[unit]);
    return len;
}

static void merge_heap(const struct ptk_image *image, struct ptk_bpe_scratch *scratch, size_t count)
{
    size_t len = 0;
    uint32_t puts = 0;
    for (size_t i = 0; i + 1 < count; i++) {
        ptk_pause_turn(&puts);
        if (scratch->slot[i] != NO_SLOT) {
            heap_put(scratch, len, (uint32_t)i);
            len++;
            heap_settle(image, scratch, len, len - 1);
        }
    }
    uint32_t turns = 0;
    while (len > 0) {
        ptk_pause_turn(&turns);
        const uint32_t unit = scratch->after[0];
        const uint32_t second = scratch->partner[unit] + 1;
        if (scratch->slot[second] != NO_SLOT) {
            len = heap_remove(image, scratch, len, scratch->before[second]);
        }
        const struct merged merged = symbols_merge(image, scratch, unit, count);
        if (merged.left != NO_UNIT) {
            len = heap_update(image, scratch, len, merged.left, unit);
        }
        len = heap_update(image, scratch, len, unit, merged.right);
    }
}

/* ---- the piece ------------------------------------------------------------------------------ */

static void merge_long(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch, size_t count)
{
    symbols_init(bpe->image, scratch, count);
    if (bpe->few_ranks) {
        merge_lists(bpe, scratch, count);
    } else {
        merge_heap(bpe->image, scratch, count);
    }
}

/* What the units to merge are. */
struct units {
    const uint8_t *bytes; /* the units, if they are bytes and nothing else */
    size_t count;
    bool with_ends; /* scratch->ends is merged too */
};

/* Merges the units in the scratch. */
static size_t merge(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch, struct units units)
{
    const size_t count = units.count;
    const bool with_ends = units.with_ends;
    if (count < 2 || bpe->image->pairs == NULL) {
        return count;
    }
    const bool ordered = bpe->ordered.memory != NULL;
    if (ordered && count <= PTK_BPE_ORDERED_MAX) {
        return ptk_bpe_ordered_merge(&bpe->ordered, scratch->ids, with_ends ? scratch->ends : NULL,
                                     units.bytes, count);
    }
    size_t kept = 0;
    if (ordered || count > PTK_BPE_SHORT_MAX || !bpe->short_ranks) {
        merge_long(bpe, scratch, count);
        uint32_t turns = 0;
        for (size_t i = 0; i < count; i = scratch->partner[i] + (size_t)1) {
            ptk_pause_turn(&turns);
            scratch->ids[kept] = scratch->ids[i];
            if (with_ends) {
                scratch->ends[kept] = scratch->ends[scratch->partner[i]];
            }
            kept++;
        }
        return kept;
    }
    kept = merge_short(bpe, scratch->ids, with_ends ? scratch->ends : NULL, units.bytes, count);
    return kept;
}

size_t ptk_bpe_encode(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                      const uint8_t *piece, size_t len)
{
    if (!bpe->bytes) {
        const size_t count = ptk_bpe_units(bpe, scratch, piece, len);
        return count == SIZE_MAX ? SIZE_MAX
                                 : merge(bpe, scratch, (struct units){NULL, count, true});
    }
    if (len > scratch->unit_cap) {
        return SIZE_MAX;
    }
    const uint32_t *byte_ids = bpe->image->byte_ids;
    for (size_t i = 0; i < len;) {
        for (const size_t stop = ptk_min_size(len, i + STEP_UNITS); i < stop; i++) {
            scratch->ids[i] = byte_ids[piece[i]];
        }
        ptk_pause_point();
    }
    return merge(bpe, scratch, (struct units){piece, len, false});
}

/* ---- bytes without a token ------------------------------------------------------------------ */

bool ptk_bpe_has_gap(const struct ptk_bpe *bpe, const uint8_t *piece, size_t len)
{
    bool gap = false;
    for (size_t i = 0; i < len;) {
        for (const size_t stop = ptk_min_size(len, i + STEP_UNITS); i < stop; i++) {
            gap |= bpe->image->byte_ids[piece[i]] == PTK_IMAGE_NONE;
        }
        ptk_pause_point();
    }
    return gap;
}

/* UTF-8 length of a byte's character in the byte-level alphabet. */
static size_t alphabet_len(uint8_t byte)
{
    return byte > 0x20 && byte < 0x7f ? 1 : 2;
}

/* A byte of a piece and where its character of the alphabet begins. */
struct alphabet_cursor {
    uint32_t byte;
    size_t begin;
};

/* The byte whose character holds a position; positions must ascend. */
static uint32_t byte_at(struct alphabet_cursor *cursor, const uint8_t *piece, size_t pos)
{
    size_t paused_at = cursor->begin;
    while (cursor->begin + alphabet_len(piece[cursor->byte]) <= pos) {
        ptk_pause_pos(&paused_at, cursor->begin);
        cursor->begin += alphabet_len(piece[cursor->byte]);
        cursor->byte++;
    }
    return cursor->byte;
}

size_t ptk_bpe_encode_gaps(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                           const uint8_t *piece, size_t len, uint32_t *begins)
{
    if (len > scratch->unit_cap) {
        return SIZE_MAX;
    }
    struct unit_writer writer = {.scratch = scratch};
    uint32_t turns = 0;
    for (size_t i = 0; i < len; i++) {
        ptk_pause_turn(&turns);
        const uint32_t id = bpe->image->byte_ids[piece[i]];
        if (id == PTK_IMAGE_NONE) {
            put_unknown(bpe, &writer, alphabet_len(piece[i]));
        } else {
            flush_unknown(bpe, &writer);
            put_unit(&writer, id, alphabet_len(piece[i]));
        }
    }
    flush_unknown(bpe, &writer);
    const size_t count = merge(bpe, scratch, (struct units){NULL, writer.count, true});
    struct alphabet_cursor cursor = {0, 0};
    size_t begin = 0;
    for (size_t i = 0; i < count; i++) {
        ptk_pause_turn(&turns);
        const size_t end = scratch->ends[i];
        begins[i] = byte_at(&cursor, piece, begin);
        scratch->ends[i] = byte_at(&cursor, piece, end - 1) + 1;
        begin = end;
    }
    return count;
}
