/*
 * Byte pair encoding: every way to merge equals "the lowest rank first, the leftmost on a tie" on
 * random vocabularies, and long pieces take a number of steps in proportion to their length.
 */
#ifndef PTK_DEBUG
#define PTK_DEBUG /* steps are counted in debug builds */
#endif
#include "algo/ptk_bpe.c"

#include "image/ptk_image_build.h"

#include <stdio.h>

#define LETTERS       4u
#define TOKENS_MAX    400u
#define TOKEN_LEN_MAX 32u
#define MERGES_MAX    4000u
#define PIECE_MAX     (1u << 16)

static uint64_t seed;

static uint32_t random_below(uint32_t end)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 20) % end;
}

/* A vocabulary in the open: what the oracle reads. */
static struct {
    char text[TOKENS_MAX][TOKEN_LEN_MAX + 1];
    uint32_t token_count;
    struct ptk_image_pair merges[MERGES_MAX];
    uint32_t merge_count;
} model;

static struct ptk_image_pair table[4 * MERGES_MAX * 2];
static uint32_t byte_ids[256];
static struct ptk_image_config config;
static struct ptk_image image;
static struct ptk_bpe bpe;
static struct ptk_bpe_scratch scratch;

static uint32_t find_token(const char *text)
{
    for (uint32_t id = 0; id < model.token_count; id++) {
        if (strcmp(model.text[id], text) == 0) {
            return id;
        }
    }
    return PTK_IMAGE_NONE;
}

/* The result of merging two tokens; PTK_IMAGE_NONE when there is no room for it. */
static uint32_t joined_token(uint32_t left, uint32_t right)
{
    char text[2 * TOKEN_LEN_MAX + 1];
    snprintf(text, sizeof text, "%s%s", model.text[left], model.text[right]);
    const uint32_t id = find_token(text);
    if (id != PTK_IMAGE_NONE || strlen(text) > TOKEN_LEN_MAX || model.token_count == TOKENS_MAX) {
        return id;
    }
    strcpy(model.text[model.token_count], text);
    return model.token_count++;
}

static const struct ptk_image_pair *listed_merge(uint32_t left, uint32_t right)
{
    for (uint32_t i = 0; i < model.merge_count; i++) {
        if (model.merges[i].left == left && model.merges[i].right == right) {
            return &model.merges[i];
        }
    }
    return NULL;
}

static void model_begin(void)
{
    memset(&model, 0, sizeof model);
    for (uint32_t i = 0; i < LETTERS; i++) {
        model.text[i][0] = (char)('a' + i);
    }
    model.token_count = LETTERS;
}

static void model_end(void)
{
    const size_t capacity = ptk_build_capacity(model.merge_count);
    PTK_ASSERT(capacity <= PTK_ARRAY_LEN(table));
    uint32_t probe_max;
    PTK_ASSERT(ptk_build_pairs(model.merges, model.merge_count, table, capacity, &probe_max) == 0);
    for (uint32_t i = 0; i < 256; i++) {
        byte_ids[i] = i >= 'a' && i < 'a' + LETTERS ? i - 'a' : PTK_IMAGE_NONE;
    }
    config = (struct ptk_image_config){.flags = PTK_IMAGE_FLAGS_BYTE_UNITS,
                                       .ids_end = model.token_count};
    image = (struct ptk_image){.config = &config,
                               .pairs = table,
                               .pair_mask = (uint32_t)capacity - 1,
                               .byte_ids = byte_ids,
                               .strings = (const uint8_t *)""};
    struct ptk_err err;
    ptk_bpe_fini(&bpe);
    PTK_ASSERT(ptk_bpe_init(&bpe, &image, NULL, &err) == 0);
}

/* Merges of existing tokens, each with the next rank: what training gives, in no useful order. */
static void model_random(uint32_t merge_count, bool only_new)
{
    model_begin();
    while (model.merge_count < merge_count) {
        const uint32_t left = random_below(model.token_count);
        const uint32_t right = random_below(model.token_count);
        const uint32_t known = model.token_count;
        const uint32_t id = joined_token(left, right);
        if (only_new && id < known) {
            continue;
        }
        if (id != PTK_IMAGE_NONE && listed_merge(left, right) == NULL) {
            model.merges[model.merge_count] =
                (struct ptk_image_pair){left, right, model.merge_count, id};
            model.merge_count++;
        } else if (model.token_count == TOKENS_MAX) {
            break;
        }
    }
}

/* Two tokens that are not letters change their ids. */
static void swap_tokens(void)
{
    const uint32_t a = LETTERS + random_below(model.token_count - LETTERS);
    const uint32_t b = LETTERS + random_below(model.token_count - LETTERS);
    char text[TOKEN_LEN_MAX + 1];
    memcpy(text, model.text[a], sizeof text);
    memcpy(model.text[a], model.text[b], sizeof text);
    memcpy(model.text[b], text, sizeof text);
    for (uint32_t i = 0; i < model.merge_count; i++) {
        uint32_t *const ids[] = {&model.merges[i].left, &model.merges[i].right,
                                 &model.merges[i].id};
        for (size_t k = 0; k < PTK_ARRAY_LEN(ids); k++) {
            *ids[k] = *ids[k] == a ? b : *ids[k] == b ? a : *ids[k];
        }
    }
}

static void shuffle_ranks(void)
{
    for (uint32_t i = model.merge_count; i > 1; i--) {
        const uint32_t k = random_below(i);
        const uint32_t rank = model.merges[i - 1].rank;
        model.merges[i - 1].rank = model.merges[k].rank;
        model.merges[k].rank = rank;
    }
}

/* Ranks of tokens, as tiktoken has them: every way to cut a token in two is a merge of its rank. */
static void model_ranked(uint32_t merge_count)
{
    model_random(merge_count, false);
    model.merge_count = 0;
    for (uint32_t id = LETTERS; id < model.token_count; id++) {
        const size_t len = strlen(model.text[id]);
        for (size_t cut = 1; cut < len && model.merge_count < MERGES_MAX; cut++) {
            char left[TOKEN_LEN_MAX + 1] = {0};
            memcpy(left, model.text[id], cut);
            const uint32_t left_id = find_token(left);
            const uint32_t right_id = find_token(model.text[id] + cut);
            if (left_id != PTK_IMAGE_NONE && right_id != PTK_IMAGE_NONE) {
                model.merges[model.merge_count++] =
                    (struct ptk_image_pair){left_id, right_id, id, id};
            }
        }
    }
}

static size_t oracle(const uint8_t *piece, size_t len, uint32_t *ids)
{
    for (size_t i = 0; i < len; i++) {
        ids[i] = piece[i] - 'a';
    }
    for (;;) {
        const struct ptk_image_pair *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < len; i++) {
            const struct ptk_image_pair *merge = listed_merge(ids[i], ids[i + 1]);
            if (merge != NULL && (best == NULL || merge->rank < best->rank)) {
                best = merge;
                at = i;
            }
        }
        if (best == NULL) {
            return len;
        }
        ids[at] = best->id;
        memmove(ids + at + 1, ids + at + 2, (len - at - 2) * sizeof *ids);
        len--;
    }
}

static uint8_t piece[PIECE_MAX];
static uint32_t expected[PIECE_MAX];

/* Letters at random, or a short pattern again and again: runs make the ties. */
static uint32_t length_max = 300;

static size_t random_piece(void)
{
    const size_t len = 1 + random_below(length_max);
    const uint32_t letters = 1 + random_below(LETTERS);
    const size_t period = random_below(2) == 0 ? len : 1 + random_below(6);
    for (size_t i = 0; i < len; i++) {
        piece[i] = i < period ? (uint8_t)('a' + random_below(letters)) : piece[i - period];
    }
    return len;
}

static void check_pieces(const char *what, uint32_t rounds)
{
    for (uint32_t round = 0; round < rounds; round++) {
        const size_t len = random_piece();
        const size_t expected_count = oracle(piece, len, expected);
        const size_t count = ptk_bpe_encode(&bpe, &scratch, piece, len);
        if (count != expected_count ||
            memcmp(scratch.ids, expected, count * sizeof *expected) != 0) {
            fprintf(stderr, "%s differs on %.*s\n", what, (int)len, (const char *)piece);
            PTK_ASSERT(false);
        }
        for (size_t i = 0; i < LEVEL0_WORDS; i++) {
            PTK_ASSERT(scratch.level[0][i] == 0);
            PTK_ASSERT(scratch.sorted[i] == 0);
        }
        PTK_ASSERT(scratch.level[2][0] == 0);
    }
}

static void test_bpe_prefers_lowest_rank_then_leftmost(void)
{
    uint32_t ascending = 0;
    uint32_t descending = 0;
    for (uint32_t round = 0; round < 60; round++) {
        model_random(5 + random_below(150), false);
        model_end();
        ascending += bpe.ascending;
        check_pieces("merges", 30);
        shuffle_ranks();
        model_end();
        descending += !bpe.ascending;
        check_pieces("shuffled merges", 30);
        model_ranked(5 + random_below(60));
        model_end();
        check_pieces("ranks", 30);
    }
    /* Both orders of long pieces were really seen. */
    PTK_ASSERT(ascending > 5);
    PTK_ASSERT(descending > 5);
}

/* Pieces that are merged together, by their bytes and by the ids of these. */
static void check_together(uint32_t rounds)
{
    static uint8_t bytes[PTK_BPE_TOGETHER][PTK_BPE_ORDERED_MAX];
    static uint32_t ids[PTK_BPE_TOGETHER][PTK_BPE_ORDERED_MAX];
    struct ptk_bpe_together pieces[PTK_BPE_TOGETHER];
    for (uint32_t round = 0; round < rounds; round++) {
        const uint32_t count = 1 + random_below(PTK_BPE_TOGETHER);
        size_t lens[PTK_BPE_TOGETHER];
        for (uint32_t i = 0; i < count; i++) {
            do {
                lens[i] = random_piece();
            } while (lens[i] < 2);
            memcpy(bytes[i], piece, lens[i]);
            for (size_t k = 0; k < lens[i]; k++) {
                ids[i][k] = byte_ids[piece[k]];
            }
            /* Where ids are not symbols, only bytes can say what the units are. */
            const bool by_ids = bpe.ordered.ids_are_symbols && random_below(2) == 0;
            pieces[i] = (struct ptk_bpe_together){by_ids ? NULL : bytes[i], ids[i], lens[i]};
        }
        ptk_bpe_ordered_merge_each(&bpe.ordered, pieces, count);
        for (uint32_t i = 0; i < count; i++) {
            PTK_ASSERT(pieces[i].count == oracle(bytes[i], lens[i], expected));
            PTK_ASSERT(memcmp(ids[i], expected, pieces[i].count * sizeof *expected) == 0);
        }
    }
}

/* Where each token is made by one merge, short pieces have a loop of their own. Early merges, late
 * ones and both together; ids that are symbols, and ids that are not; ranks in any order. */
static void test_tokens_in_order(void)
{
    uint32_t renamed = 0;
    uint32_t unsure = 0;
    for (uint32_t round = 0; round < 200; round++) {
        model_random(5 + random_below(150), true);
        if (round % 3 == 1) {
            swap_tokens();
        } else if (round % 3 == 2) {
            shuffle_ranks();
        }
        model_end();
        ptk_bpe_ordered_fini(&bpe.ordered);
        struct ptk_err err;
        const uint32_t early_max = random_below(3) * random_below(100);
        PTK_ASSERT(ptk_bpe_ordered_init(&bpe.ordered, &image, early_max, &err) == 0);
        PTK_ASSERT(bpe.ordered.memory != NULL);
        renamed += !bpe.ordered.ids_are_symbols;
        unsure += bpe.ordered.sure == 0;
        length_max = 64;
        check_pieces("tokens in order", 60);
        length_max = PTK_BPE_ORDERED_MAX;
        check_together(20);
        length_max = 300;
    }
    PTK_ASSERT(renamed > 50);
    PTK_ASSERT(renamed < 180);
    PTK_ASSERT(unsure > 5);
}

/* Ranks that are too many for lists go through the heap; the result must not differ. */
static void test_heap_equals_lists(void)
{
    for (uint32_t round = 0; round < 30; round++) {
        model_random(5 + random_below(150), false);
        model_end();
        bpe.few_ranks = false;
        check_pieces("heap", 30);
    }
}

static uint64_t steps_for(size_t len)
{
    const uint64_t before = ptk_bpe_steps();
    PTK_ASSERT(ptk_bpe_encode(&bpe, &scratch, piece, len) != SIZE_MAX);
    return ptk_bpe_steps() - before;
}

static void test_long_pieces_take_linear_steps(void)
{
    model_begin();
    while (model.token_count < LETTERS + 5) { /* aa, aaaa, ... up to 32 letters */
        const uint32_t half = model.token_count == LETTERS ? 0 : model.token_count - 1;
        const uint32_t id = joined_token(half, half);
        model.merges[model.merge_count] =
            (struct ptk_image_pair){half, half, model.merge_count, id};
        model.merge_count++;
    }
    model_end();
    PTK_ASSERT(bpe.ascending);
    memset(piece, 'a', sizeof piece);
    const uint64_t half = steps_for(PIECE_MAX / 2);
    const uint64_t full = steps_for(PIECE_MAX);
    PTK_ASSERT(full <= 2 * half + half / 50);
    PTK_ASSERT(full <= 8ull * PIECE_MAX);

    model_random(120, true);
    model_end();
    PTK_ASSERT(bpe.ascending);
    for (size_t i = 0; i < PIECE_MAX; i++) {
        piece[i] = (uint8_t)('a' + random_below(LETTERS));
    }
    const uint64_t random_half = steps_for(PIECE_MAX / 2);
    const uint64_t random_full = steps_for(PIECE_MAX);
    PTK_ASSERT(random_full <= 2 * random_half + random_half / 10);
    PTK_ASSERT(random_full <= 16ull * PIECE_MAX);
}

static void test_piece_larger_than_scratch_is_refused(void)
{
    model_random(10, false);
    model_end();
    memset(piece, 'a', sizeof piece);
    const size_t cap = scratch.unit_cap;
    scratch.unit_cap = 1000;
    PTK_ASSERT(ptk_bpe_encode(&bpe, &scratch, piece, 1001) == SIZE_MAX);
    PTK_ASSERT(ptk_bpe_encode(&bpe, &scratch, piece, 1000) <= 1000);
    PTK_ASSERT(ptk_bpe_encode(&bpe, &scratch, piece, 999) <= 999);
    scratch.unit_cap = cap;
}

int main(void)
{
    const char *from = getenv("PTK_TEST_SEED");
    seed = from != NULL ? strtoull(from, NULL, 0) : 0x9e3779b97f4a7c15ull;
    printf("seed %llu\n", (unsigned long long)seed);
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_bpe_scratch_len(PIECE_MAX));
    PTK_ASSERT(memory != NULL);
    ptk_bpe_scratch_init(&scratch, memory, PIECE_MAX);
    test_bpe_prefers_lowest_rank_then_leftmost();
    test_tokens_in_order();
    test_heap_equals_lists();
    test_long_pieces_take_linear_steps();
    test_piece_larger_than_scratch_is_refused();
    ptk_bpe_fini(&bpe);
    free(memory);
    return 0;
}
