/*
 * What the engine adds to the tokenizer: nanoseconds per request, both measured on the same texts.
 *
 * Every request is a different slice of a text file. For each size the tokenizer is timed alone
 * (ptk_tokenizer_encode into an array) and then through ptk_engine_handle in place; first both are
 * proven to give the same ids. Rounds alternate, and the fastest round of each counts: the work is
 * always the same, so everything above the fastest is the machine's doing.
 *
 *   bench_engine IMAGE TEXT [ROUNDS]
 *
 * Prints one JSON line per case: {"op", "size", "tokenizer_ns", "engine_ns", "added_ns", "ids"}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "serve/ptk_engine.h"
#include "wire/ptk_wire_ids.h"

#define REQUESTS         512u
#define DATAGRAM_LEN_MAX 8192u
#define CACHE_LEN        (4u << 20)
#define OPTIONS          (PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL)
#define TEXT_OFF         48u /* header, prelude, item table of one text */

struct bench {
    struct ptk_image image;
    struct ptk_tokenizer *tokenizer;
    struct ptk_model model;
    struct ptk_models models;
    struct ptk_engine *engine;
    struct ptk_work *work;
    struct ptk_cache *cache;
    uint8_t *text;
    size_t text_len;
    size_t text_pos;
};

static uint8_t requests[REQUESTS][DATAGRAM_LEN_MAX];
static size_t request_lens[REQUESTS];
static uint8_t frames[REQUESTS][DATAGRAM_LEN_MAX];
static uint32_t ids[DATAGRAM_LEN_MAX];

static double now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* Cannot fail with this clock. */
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "bench_engine: %s\n", what);
    exit(1);
}

static void *allocate(size_t len)
{
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    if (memory == NULL) {
        fail("out of memory");
    }
    return memory;
}

static void read_text(struct bench *bench, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        fail("the text cannot be read");
    }
    const long len = ftell(file);
    if (len < (long)(2 * DATAGRAM_LEN_MAX)) {
        fail("the text is shorter than 16 KiB");
    }
    rewind(file);
    bench->text_len = (size_t)len;
    bench->text = allocate(bench->text_len);
    if (fread(bench->text, 1, bench->text_len, file) != bench->text_len) {
        fail("the text cannot be read");
    }
    (void)fclose(file); /* Read only. */
}

/* The next slice of about `size` bytes, cut between characters. */
static size_t next_slice(struct bench *bench, size_t size, const uint8_t **slice)
{
    if (bench->text_pos + size + 8 > bench->text_len) {
        bench->text_pos = 0;
    }
    size_t begin = bench->text_pos;
    while ((bench->text[begin] & 0xC0) == 0x80) {
        begin++;
    }
    size_t end = begin + size;
    while ((bench->text[end] & 0xC0) == 0x80) {
        end--;
    }
    bench->text_pos = end;
    *slice = bench->text + begin;
    return end - begin;
}

static void make_header(uint8_t *request, uint8_t op, size_t message_len)
{
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .message_len = (uint32_t)message_len,
        .request_id = 1,
        .op = op,
    };
    memcpy(request, &header, sizeof header);
}

static void make_requests(struct bench *bench, uint8_t op, size_t size)
{
    for (size_t i = 0; i < REQUESTS; i++) {
        memset(requests[i], 0, sizeof requests[i]);
        if (op == PTK_WIRE_OP_PING) {
            make_header(requests[i], op, size);
            request_lens[i] = PTK_WIRE_HEADER_LEN + size;
            continue;
        }
        const uint8_t *slice;
        const size_t len = next_slice(bench, size, &slice);
        const struct ptk_wire_request prelude = {
            .options = OPTIONS, .item_count = 1, .reply_len_max = DATAGRAM_LEN_MAX};
        make_header(requests[i], op, 16 + ptk_align_up(len, 8));
        memcpy(requests[i] + PTK_WIRE_HEADER_LEN, &prelude, sizeof prelude);
        ptk_store_u32(requests[i] + 40, (uint32_t)len);
        memcpy(requests[i] + TEXT_OFF, slice, len);
        request_lens[i] = TEXT_OFF + ptk_align_up(len, 8);
    }
}

static size_t tokenize(const struct bench *bench, const uint8_t *request)
{
    const struct ptk_encode_request encode = {
        .text = request + TEXT_OFF, .text_len = ptk_load_u32(request + 40), .options = OPTIONS};
    struct ptk_encoding out = {.ids = ids, .cap = DATAGRAM_LEN_MAX};
    if (ptk_tokenizer_encode(bench->tokenizer, bench->work, bench->cache, &encode, &out) !=
        PTK_VERDICT_OK) {
        fail("the tokenizer refused a text");
    }
    return out.len;
}

static size_t handle(const struct bench *bench, size_t i)
{
    enum ptk_verdict verdict;
    const size_t len = ptk_engine_handle(bench->engine, frames[i], request_lens[i], frames[i],
                                         DATAGRAM_LEN_MAX, &verdict);
    if (verdict != PTK_VERDICT_OK) {
        fail("the engine refused a request");
    }
    return len;
}

/* Both ways give the same ids, or nothing is measured. */
static size_t prove(const struct bench *bench)
{
    static uint32_t replied[DATAGRAM_LEN_MAX];
    size_t total = 0;
    memcpy(frames, requests, sizeof frames);
    for (size_t i = 0; i < REQUESTS; i++) {
        const size_t count = tokenize(bench, requests[i]);
        (void)handle(bench, i);
        if (ptk_load_u32(frames[i] + 40) != count || frames[i][44] != PTK_VERDICT_OK) {
            fail("engine and tokenizer disagree");
        }
        ptk_wire_ids_parse(frames[i] + 48, count, frames[i][32], replied);
        if (memcmp(replied, ids, count * sizeof ids[0]) != 0) {
            fail("engine and tokenizer disagree");
        }
        total += count;
    }
    return total / REQUESTS;
}

static double time_tokenizer(const struct bench *bench)
{
    const double begin = now_ns();
    for (size_t i = 0; i < REQUESTS; i++) {
        (void)tokenize(bench, requests[i]);
    }
    return (now_ns() - begin) / REQUESTS;
}

/* Frames are filled outside of the time: on a real path the network card does that. */
static double time_engine(const struct bench *bench)
{
    memcpy(frames, requests, sizeof frames);
    const double begin = now_ns();
    for (size_t i = 0; i < REQUESTS; i++) {
        (void)handle(bench, i);
    }
    return (now_ns() - begin) / REQUESTS;
}

static void run(struct bench *bench, uint8_t op, size_t size, int rounds)
{
    static const char *const names[] = PTK_WIRE_OP_NAMES;
    double tokenizer_ns = 0, engine_ns = 0;
    size_t count = 0;
    make_requests(bench, op, size);
    if (op == PTK_WIRE_OP_ENCODE) {
        count = prove(bench);
    }
    for (int round = 0; round < rounds; round++) {
        const double tokenizer = op == PTK_WIRE_OP_ENCODE ? time_tokenizer(bench) : 0;
        const double engine = time_engine(bench);
        tokenizer_ns = round == 0 || tokenizer < tokenizer_ns ? tokenizer : tokenizer_ns;
        engine_ns = round == 0 || engine < engine_ns ? engine : engine_ns;
    }
    printf("{\"op\": \"%s\", \"size\": %zu, \"tokenizer_ns\": %.0f, \"engine_ns\": %.0f, "
           "\"added_ns\": %.0f, \"ids\": %zu}\n",
           names[op], size, tokenizer_ns, engine_ns, engine_ns - tokenizer_ns, count);
}

static void open_all(struct bench *bench, const char *image_path)
{
    struct ptk_err err = {0};
    if (ptk_image_open(image_path, PTK_IMAGE_HOLD_COPY, &bench->image, &err) != 0 ||
        ptk_tokenizer_open(&bench->image, &bench->tokenizer, &err) != 0) {
        fail(err.text);
    }
    bench->model = (struct ptk_model){
        .tokenizer = bench->tokenizer, .image = &bench->image, .generation = 1, .tag = 1};
    ptk_models_init(&bench->models);
    (void)ptk_models_set(&bench->models, 0, &bench->model);
    const struct ptk_engine_limits limits = {
        .datagram_len_max = DATAGRAM_LEN_MAX, .models_cap = 1, .cache_len = CACHE_LEN};
    bench->engine = ptk_engine_init(allocate(ptk_engine_len(&limits)), &limits, &bench->models);
    const struct ptk_work_limits work = {.text_len_max = DATAGRAM_LEN_MAX};
    bench->work = ptk_work_init(allocate(ptk_work_len(&work)), &work);
    bench->cache = ptk_cache_init(allocate(CACHE_LEN), CACHE_LEN);
}

int main(int argc, char **argv)
{
    /* The densest text has an id per byte, two bytes each: the reply still fits. */
    static const size_t sizes[] = {20, 200, 1400, 4000};
    static struct bench bench;
    if (argc < 3) {
        fail("usage: bench_engine IMAGE TEXT [ROUNDS]");
    }
    const int rounds = argc > 3 ? atoi(argv[3]) : 50;
    if (rounds < 1) {
        fail("ROUNDS is a positive number");
    }
    open_all(&bench, argv[1]);
    read_text(&bench, argv[2]);
    run(&bench, PTK_WIRE_OP_PING, 0, rounds);
    run(&bench, PTK_WIRE_OP_PING, 1440, rounds);
    for (size_t i = 0; i < PTK_ARRAY_LEN(sizes); i++) {
        run(&bench, PTK_WIRE_OP_ENCODE, sizes[i], rounds);
    }
    return 0;
}
