/*
 * Encode, count and decode of given texts, for a profiler that counts and for a clock.
 *
 *   bench_op IMAGE FILE...
 *
 * Each text goes twice through each operation: cold, with an empty cache of pieces, then hot. Under
 * `valgrind --tool=callgrind --instr-atstart=no` every one of these is a dump of its own, named
 * FILE/OPERATION/cold or hot, with nothing else counted. Without valgrind hot calls are timed, and
 * MB/s of their median printed. The first line says which compiler made this and which splitters
 * run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <valgrind/callgrind.h>

#include "ptk.h"
#include "text/ptk_split_scan.h"

#ifdef __clang__ /* its __VERSION__ has its name */
#define COMPILER ""
#else
#define COMPILER "gcc "
#endif
#define CACHE_LEN    (4u << 20)
#define TEXT_LEN_MAX (1u << 20)
#define CALLS        1001
#define LABEL_LEN    256

enum operation { ENCODE, COUNT, DECODE, OPERATION_COUNT };

static const char *const names[OPERATION_COUNT] = {"encode", "count", "decode"};

/* A text with everything that the operations on it need. */
struct job {
    const struct ptk_tokenizer *tokenizer;
    struct ptk_work *work;
    struct ptk_cache *cache;
    uint8_t *text;
    size_t text_len;
    uint32_t *ids;
    size_t ids_len;
    uint8_t *decoded;
    size_t decoded_cap;
};

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "bench_op: %s\n", what);
    exit(1);
}

static void *take(size_t len)
{
    void *memory = aligned_alloc(64, ptk_align_up(len, 64));
    if (memory == NULL) {
        fail("out of memory");
    }
    return memory;
}

static size_t read_text(const char *path, uint8_t *text)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail(path);
    }
    const size_t len = fread(text, 1, TEXT_LEN_MAX, file);
    fclose(file);
    return len;
}

static void run(struct job *job, enum operation operation)
{
    const struct ptk_encode_request request = {.text = job->text,
                                               .text_len = job->text_len,
                                               .options = PTK_WIRE_OPTIONS_PARSE_SPECIAL};
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    size_t len = 0;
    size_t hits;
    struct ptk_encoding out = {.ids = job->ids, .cap = TEXT_LEN_MAX};
    switch (operation) {
    case ENCODE:
        verdict = ptk_tokenizer_encode(job->tokenizer, job->work, job->cache, &request, &out);
        job->ids_len = out.len;
        break;
    case COUNT:
        verdict = ptk_tokenizer_count(job->tokenizer, job->work, job->cache, &request, &len,
                                      &hits);
        break;
    case DECODE:
        verdict = ptk_tokenizer_decode(job->tokenizer, job->work, job->ids, job->ids_len, 0,
                                       job->decoded, job->decoded_cap, &len);
        break;
    case OPERATION_COUNT:
        break;
    }
    if (verdict != PTK_VERDICT_OK) {
        fail("a text was refused");
    }
}

static void count_instructions(struct job *job, const char *file, enum operation operation)
{
    for (unsigned hot = 0; hot < 2; hot++) {
        char label[LABEL_LEN];
        snprintf(label, sizeof label, "%s/%s/%s", file, names[operation], hot ? "hot" : "cold");
        CALLGRIND_START_INSTRUMENTATION;
        run(job, operation);
        CALLGRIND_STOP_INSTRUMENTATION;
        CALLGRIND_DUMP_STATS_AT(label);
    }
}

static int by_size(const void *a, const void *b)
{
    const uint64_t left = *(const uint64_t *)a;
    const uint64_t right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void measure_time(struct job *job, const char *file, enum operation operation)
{
    static uint64_t times[CALLS];
    for (size_t i = 0; i < CALLS; i++) {
        const uint64_t begin = now_ns();
        run(job, operation);
        times[i] = now_ns() - begin;
    }
    qsort(times, CALLS, sizeof *times, by_size);
    printf("%s %s: %.0f MB/s, %llu ns\n", file, names[operation],
           1e3 * (double)job->text_len / (double)times[CALLS / 2],
           (unsigned long long)times[CALLS / 2]);
}

static const char *splitters(void)
{
    if (ptk_split_scan_avx512(PTK_SPLIT_SCANNER_GPT2) != NULL) {
        return "avx512";
    }
    return ptk_split_scan_avx2(PTK_SPLIT_SCANNER_GPT2) != NULL ? "avx2" : "scalar";
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fail("usage: bench_op IMAGE FILE...");
    }
    printf("compiler %s%s, splitters %s\n", COMPILER, __VERSION__, splitters());
    struct ptk_image image;
    struct ptk_tokenizer *tokenizer;
    struct ptk_err err;
    if (ptk_image_open(argv[1], PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
        fail(err.text);
    }
    const struct ptk_work_limits limits = {.text_len_max = 4 * TEXT_LEN_MAX};
    struct job job = {
        .tokenizer = tokenizer,
        .work = ptk_work_init(take(ptk_work_len(&limits)), &limits),
        .text = take(TEXT_LEN_MAX),
        .ids = take(TEXT_LEN_MAX * sizeof(uint32_t)),
        .decoded = take(4 * TEXT_LEN_MAX),
        .decoded_cap = 4 * TEXT_LEN_MAX,
    };
    void *cache = take(CACHE_LEN);
    for (int i = 2; i < argc; i++) {
        job.text_len = read_text(argv[i], job.text);
        for (enum operation operation = ENCODE; operation < OPERATION_COUNT; operation++) {
            job.cache = ptk_cache_init(cache, CACHE_LEN);
            if (RUNNING_ON_VALGRIND) {
                count_instructions(&job, argv[i], operation);
            } else {
                measure_time(&job, argv[i], operation);
            }
        }
    }
    free(cache);
    free(job.decoded);
    free(job.ids);
    free(job.text);
    free(job.work);
    ptk_tokenizer_close(tokenizer);
    ptk_image_close(&image);
    return 0;
}
