/*
 * Slices: a long text encoded with pauses, inside of which other texts are encoded with the same
 * piece cache, has the ids that it has in one go; and no slice is much longer than it should be.
 *
 * PTK_TEST_IMAGES names compiled vocabularies, separated by ':'; without it PTK_TEST_IMAGE names
 * one; without both the test is skipped. PTK_SLICE_MAX_US makes a longer slice a failure: machines
 * that others use too should be given a generous one.
 */
#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "ptk_test_packet.h"
#include "serve/ptk_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Long messages, and what is paused at every point. Checked builds are some twenty times slower. */
#ifdef PTK_DEBUG
#define TEXT_LEN  (1u << 17)
#define OFTEN_LEN 6000u
#else
#define TEXT_LEN  (1u << 20)
#define OFTEN_LEN 60000u
#endif
#define SMALL_LEN 2000u
#define IDS_CAP   (2u * TEXT_LEN + 64)
#define CACHE_LEN (1u << 20)
#define SKIP      77

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static uint64_t seed = 20240611;

/* --- texts ----------------------------------------------------------------------------------- */

static size_t put(uint8_t *text, size_t len, size_t cap, const char *more)
{
    const size_t more_len = strlen(more);
    if (len + more_len > cap) {
        return cap + 1;
    }
    memcpy(text + len, more, more_len);
    return len + more_len;
}

/* Repeats one of `parts` after another, in random order, until no more fits. */
static size_t fill(uint8_t *text, size_t cap, const char *const *parts, size_t part_count)
{
    size_t len = 0;
    for (;;) {
        const size_t next =
            put(text, len, cap, parts[test_random_below(&seed, (uint32_t)part_count)]);
        if (next > cap) {
            return len;
        }
        len = next;
    }
}

static const char *const PROSE[] = {"the ",  "model ", "answers ", "questions, ", "slowly. ",
                                    "It's ", "1984 ",  "Größe ",   "naïve ",      "\n\n"};
static const char *const MANY[] = {"日本語",    "русский ", "العربية ",    "한국어 ", "हिन्दी ",
                                   "ไทย",       "😀",        "é",           "ﬁ",       "①",
                                   "e\xcc\x81", "ǅ",        "\xe2\x80\x8b"};
static const char *const LETTER[] = {"a"};
static const char *const LETTERS[] = {"a", "b", "c", "ab", "ing", "tion", "x"};
static const char *const SPACES[] = {" "};
static const char *const MARKS[] = {"\xcc\x81", "\xcc\xa3", "\xcc\x88", "\xcd\x85"};
static const char *const HAN[] = {"的", "是", "不", "我", "有", "人", "这"};
static const char *const SIGNS[] = {"!", "=", "-", "<", "'", "\"", "_", "/", "."};
static const char *const ADDED[] = {"<", "<|", "<s", "[MASK", "<|endoftext|>", "<s>", "[MASK]"};

static const struct {
    const char *name;
    const char *const *parts;
    size_t part_count;
} TEXTS[] = {
    {"prose", PROSE, PTK_ARRAY_LEN(PROSE)},
    {"many languages", MANY, PTK_ARRAY_LEN(MANY)},
    {"one letter", LETTER, PTK_ARRAY_LEN(LETTER)},
    {"one word", LETTERS, PTK_ARRAY_LEN(LETTERS)},
    {"spaces", SPACES, PTK_ARRAY_LEN(SPACES)},
    {"marks", MARKS, PTK_ARRAY_LEN(MARKS)},
    {"han", HAN, PTK_ARRAY_LEN(HAN)},
    {"signs", SIGNS, PTK_ARRAY_LEN(SIGNS)},
    {"added tokens", ADDED, PTK_ARRAY_LEN(ADDED)},
};

/* --- encoding -------------------------------------------------------------------------------- */

struct result {
    uint32_t *ids;
    struct ptk_span *offsets;
    size_t len;
    enum ptk_verdict verdict;
};

static void *allocate(size_t len)
{
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    CHECK(memory != NULL);
    memset(memory, 0, ptk_align_up(len, PTK_CACHE_LINE));
    return memory;
}

static struct result make_result(size_t cap)
{
    return (struct result){.ids = allocate(cap * sizeof(uint32_t)),
                           .offsets = allocate(cap * sizeof(struct ptk_span))};
}

static const struct ptk_tokenizer *tokenizer;
static struct ptk_cache *cache;

static void encode(struct ptk_work *work, const uint8_t *text, size_t len, bool offsets, size_t cap,
                   struct result *result)
{
    const struct ptk_encode_request request = {.text = text,
                                               .text_len = len,
                                               .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS |
                                                          PTK_WIRE_OPTIONS_PARSE_SPECIAL,
                                               .outputs = offsets ? PTK_WIRE_OUTPUTS_OFFSETS : 0};
    struct ptk_encoding encoding = {
        .ids = result->ids, .offsets = offsets ? result->offsets : NULL, .cap = cap};
    result->verdict = ptk_tokenizer_encode(tokenizer, work, cache, &request, &encoding);
    result->len = encoding.len;
}

static void check_equal(const struct result *result, const struct result *wanted, bool offsets)
{
    CHECK(result->verdict == wanted->verdict);
    if (result->verdict == PTK_VERDICT_OK) {
        CHECK(result->len == wanted->len);
        CHECK(memcmp(result->ids, wanted->ids, wanted->len * sizeof *wanted->ids) == 0);
        CHECK(!offsets ||
              memcmp(result->offsets, wanted->offsets, wanted->len * sizeof *wanted->offsets) == 0);
    }
}

/* What is encoded inside the pauses: small texts whose ids are known. */
static struct small {
    struct ptk_work *work;
    uint8_t texts[PTK_ARRAY_LEN(TEXTS)][SMALL_LEN];
    size_t lens[PTK_ARRAY_LEN(TEXTS)];
    struct result wanted[PTK_ARRAY_LEN(TEXTS)];
    struct result result;
    uint64_t turns;
} small;

/* The thread's own time: on a machine that others use, the clock shows them too. */
static uint64_t resumed_at_ns, longest_ns;

static uint64_t thread_ns(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void end_slice(void)
{
    const uint64_t slice_ns = thread_ns() - resumed_at_ns;
    longest_ns = slice_ns > longest_ns ? slice_ns : longest_ns;
}

static void encode_small(void *self)
{
    (void)self;
    end_slice();
    const size_t i = small.turns++ % PTK_ARRAY_LEN(TEXTS);
    encode(small.work, small.texts[i], small.lens[i], i % 2 == 0, 2 * SMALL_LEN + 64,
           &small.result);
    check_equal(&small.result, &small.wanted[i], i % 2 == 0);
    resumed_at_ns = thread_ns();
}

static void run_model(const char *path, uint32_t cycles_per_us, uint64_t slice_max_us)
{
    struct ptk_image image;
    struct ptk_tokenizer *opened;
    struct ptk_err err;
    if (ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &opened, &err) != 0) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        abort();
    }
    tokenizer = opened;
    static struct ptk_work *work;
    static struct result result, wanted;
    static uint8_t *text;
    const struct ptk_work_limits limits = {.text_len_max = TEXT_LEN, .offsets = true};
    const struct ptk_work_limits small_limits = {.text_len_max = SMALL_LEN, .offsets = true};
    if (work == NULL) {
        work = ptk_work_init(allocate(ptk_work_len(&limits)), &limits);
        small.work = ptk_work_init(allocate(ptk_work_len(&small_limits)), &small_limits);
        result = make_result(IDS_CAP);
        wanted = make_result(IDS_CAP);
        small.result = make_result(2 * SMALL_LEN + 64);
        for (size_t i = 0; i < PTK_ARRAY_LEN(TEXTS); i++) {
            small.wanted[i] = make_result(2 * SMALL_LEN + 64);
            small.lens[i] = fill(small.texts[i], SMALL_LEN, TEXTS[i].parts, TEXTS[i].part_count);
        }
        text = allocate(TEXT_LEN);
    }
    void *cache_memory = allocate(CACHE_LEN);
    cache = ptk_cache_init(cache_memory, CACHE_LEN);
    for (size_t i = 0; i < PTK_ARRAY_LEN(TEXTS); i++) {
        encode(small.work, small.texts[i], small.lens[i], true, 2 * SMALL_LEN + 64,
               &small.wanted[i]);
    }
    const char *name = strrchr(path, '/');
    for (size_t i = 0; i < 2 * PTK_ARRAY_LEN(TEXTS); i++) {
        const size_t which = i / 2;
        const bool offsets = i % 2 == 1;
        const size_t len = fill(text, TEXT_LEN, TEXTS[which].parts, TEXTS[which].part_count);
        cache = ptk_cache_init(cache_memory, CACHE_LEN);
        encode(work, text, len, offsets, IDS_CAP, &wanted);
        cache = ptk_cache_init(cache_memory, CACHE_LEN);
        /* First as the server does, to see how long slices are; then with a pause at every point
         * that is due at once, to see that nothing is held across one. */
        struct ptk_pause pause = {.run = encode_small, .slice_cycles = 40ull * cycles_per_us};
        longest_ns = 0;
        resumed_at_ns = thread_ns();
        ptk_pause_begin(&pause);
        encode(work, text, len, offsets, IDS_CAP, &result);
        ptk_pause_end(&pause);
        end_slice();
        check_equal(&result, &wanted, offsets);
        const uint64_t longest_us = longest_ns / 1000;
        if (longest_us > 150) {
            printf("%s: %s%s: longest slice %llu us, %llu slices\n", name == NULL ? path : name + 1,
                   TEXTS[which].name, offsets ? " with offsets" : "",
                   (unsigned long long)longest_us, (unsigned long long)pause.slices);
        }
        CHECK(slice_max_us == 0 || longest_us <= slice_max_us);
        const size_t short_len = len < OFTEN_LEN ? len : OFTEN_LEN / 12 * 12;
        size_t end = short_len;
        while (end > 0 && (text[end] & 0xC0) == 0x80) {
            end--;
        }
        encode(work, text, end, offsets, IDS_CAP, &wanted);
        cache = ptk_cache_init(cache_memory, CACHE_LEN);
        struct ptk_pause often = {.run = encode_small, .slice_cycles = 0};
        ptk_pause_begin(&often);
        encode(work, text, end, offsets, IDS_CAP, &result);
        ptk_pause_end(&often);
        check_equal(&result, &wanted, offsets);
    }
    free(cache_memory);
    ptk_tokenizer_close(opened);
    ptk_image_close(&image);
}

int main(void)
{
    const char *paths = getenv("PTK_TEST_IMAGES");
    paths = paths != NULL ? paths : getenv("PTK_TEST_IMAGE");
    if (paths == NULL) {
        printf("skip: neither PTK_TEST_IMAGES nor PTK_TEST_IMAGE names a compiled vocabulary\n");
        return SKIP;
    }
    const char *limit = getenv("PTK_SLICE_MAX_US");
    uint32_t cycles_per_us = 0;
    struct ptk_err err;
    CHECK(ptk_cpu_cycles_per_us(&cycles_per_us, &err) == 0);
    char *copy = strdup(paths);
    CHECK(copy != NULL);
    size_t models = 0;
    for (char *path = strtok(copy, ":"); path != NULL; path = strtok(NULL, ":")) {
        run_model(path, cycles_per_us, limit != NULL ? strtoull(limit, NULL, 10) : 0);
        models++;
    }
    free(copy);
    CHECK(small.turns > 0);
    printf("slices: ok, %zu models, %llu turns of others\n", models,
           (unsigned long long)small.turns);
    return 0;
}
