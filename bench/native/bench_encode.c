/*
 * The engine alone: how fast one thread turns text into ids in the caller's buffer.
 *
 *     bench_encode IMAGE TEXT [--lens 200,1400,32768,1048576] [--warm 1048576] [--seconds 0.5]
 *                  [--what fresh,hot,count,decode,stages,ids] [--smoke]
 *
 * For each length the file is cut into texts of about that length (at characters). "fresh" encodes
 * each text once, after warming the caches with the first --warm bytes, which are not measured;
 * "hot" repeats the texts, "count" counts their ids only. "decode" turns the hot texts' ids back,
 * and the decoded bytes are compared with the text before anything is timed. "stages" are the parts
 * of the hot encode that can run alone: the check for UTF-8, the search for added tokens and the
 * scanner. "ids" is a checksum of all ids and of what they decode to. One JSON line per length;
 * rates are of processor time.
 */
#include "algo/ptk_tokenizer_state.h"
#include "text/ptk_utf8.h"
#include "wire/ptk_crc32c.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define LENS_MAX  16u
#define CACHE_LEN (4u << 20)

static const char usage[] = "usage: bench_encode IMAGE TEXT [--lens N,N] [--warm N] [--seconds S] "
                            "[--what NAME,NAME] [--smoke]";

/* What is measured: bits of `what`. */
enum {
    WHAT_FRESH = 1,
    WHAT_HOT = 2,
    WHAT_COUNT = 4,
    WHAT_DECODE = 8,
    WHAT_STAGES = 16,
    WHAT_IDS = 32,
};
static const char *const what_names[] = {"fresh", "hot", "count", "decode", "stages", "ids"};

struct settings {
    const char *image_path;
    const char *text_path;
    size_t lens[LENS_MAX];
    size_t len_count;
    size_t warm_len;
    double seconds;
    unsigned what;
};

struct bench {
    struct ptk_image image;
    struct ptk_tokenizer *tokenizer;
    struct ptk_work *work;
    void *cache_memory;
    struct ptk_cache *cache;
    uint8_t *text;
    size_t text_len;
    uint32_t *ids;
    size_t ids_cap;
    uint8_t *decoded;
    size_t decoded_cap;
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_encode: %s\n", what);
    exit(1);
}

/* Processor time of this thread: what other programs do meanwhile does not count. */
static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *reserve(size_t len)
{
    void *memory = aligned_alloc(2u << 20, ptk_align_up(len, 2u << 20));
    if (memory == NULL) {
        fail("out of memory");
    }
    (void)madvise(memory, ptk_align_up(len, 2u << 20), MADV_HUGEPAGE); /* as a server would */
    return memory;
}

static void read_text(struct bench *bench, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        fail("the text cannot be read");
    }
    bench->text_len = (size_t)ftell(file);
    rewind(file);
    bench->text = reserve(bench->text_len + 1);
    if (fread(bench->text, 1, bench->text_len, file) != bench->text_len) {
        fail("the text cannot be read");
    }
    fclose(file);
}

/* The end of the text that begins at `begin`: at a character, `len` bytes on or at the file's end.
 */
static size_t text_end(const struct bench *bench, size_t begin, size_t len)
{
    size_t end = ptk_min_size(begin + len, bench->text_len);
    while (end < bench->text_len && (bench->text[end] & 0xc0) == 0x80) {
        end++;
    }
    return end;
}

static size_t encode(struct bench *bench, size_t begin, size_t end)
{
    const struct ptk_encode_request request = {
        .text = bench->text + begin,
        .text_len = end - begin,
        .options = PTK_WIRE_OPTIONS_PARSE_SPECIAL,
    };
    struct ptk_encoding out = {.ids = bench->ids, .cap = bench->ids_cap};
    if (ptk_tokenizer_encode(bench->tokenizer, bench->work, bench->cache, &request, &out) !=
        PTK_VERDICT_OK) {
        fail("a text was refused");
    }
    return out.len;
}

struct rate {
    uint64_t bytes;
    uint64_t ids;
    uint64_t texts;
    uint64_t ns;
};

static double mb_per_second(struct rate rate)
{
    return rate.ns == 0 ? 0 : 1e3 * (double)rate.bytes / (double)rate.ns;
}

/* Every text once, the first `warm_len` bytes unmeasured, as long as time allows. */
static struct rate measure_fresh(struct bench *bench, size_t len, const struct settings *settings)
{
    bench->cache = ptk_cache_init(bench->cache_memory, CACHE_LEN);
    struct rate rate = {0};
    size_t begin = 0;
    while (begin < ptk_min_size(settings->warm_len, bench->text_len / 2)) {
        const size_t end = text_end(bench, begin, ptk_min_size(len, 65536));
        encode(bench, begin, end);
        begin = end;
    }
    const uint64_t start = thread_ns();
    while (begin < bench->text_len) {
        const size_t end = text_end(bench, begin, len);
        rate.ids += encode(bench, begin, end);
        rate.bytes += end - begin;
        rate.texts++;
        begin = end;
    }
    rate.ns = thread_ns() - start;
    return rate;
}

/* One pass over a text; returns how many ids, pieces or bytes it found. */
typedef size_t pass_fn(struct bench *bench, size_t begin, size_t end);

/* The same few texts again and again. */
static struct rate measure_pass(struct bench *bench, size_t len, const struct settings *settings,
                                pass_fn *pass)
{
    struct rate rate = {0};
    const size_t all = ptk_min_size(bench->text_len, ptk_max_size(len, 65536));
    const uint64_t start = thread_ns();
    do {
        for (size_t begin = 0; begin < all;) {
            const size_t end = text_end(bench, begin, len);
            rate.ids += pass(bench, begin, end);
            rate.bytes += end - begin;
            rate.texts++;
            begin = end;
        }
        rate.ns = thread_ns() - start;
    } while ((double)rate.ns < 1e9 * settings->seconds);
    return rate;
}

static size_t count(struct bench *bench, size_t begin, size_t end)
{
    const struct ptk_encode_request request = {
        .text = bench->text + begin,
        .text_len = end - begin,
        .options = PTK_WIRE_OPTIONS_PARSE_SPECIAL,
    };
    size_t ids;
    size_t hits;
    if (ptk_tokenizer_count(bench->tokenizer, bench->work, bench->cache, &request, &ids, &hits) !=
        PTK_VERDICT_OK) {
        fail("a text was refused");
    }
    return ids;
}

static size_t check_utf8(struct bench *bench, size_t begin, size_t end)
{
    if (!ptk_utf8_valid(bench->text + begin, end - begin)) {
        fail("the text is not UTF-8");
    }
    return 0;
}

static size_t find_added(struct bench *bench, size_t begin, size_t end)
{
    struct ptk_added_search search = {.text = bench->text + begin, .len = end - begin};
    struct ptk_added_match match;
    size_t found = 0;
    while (ptk_added_next(&bench->tokenizer->added_raw, &search, &match)) {
        found++;
    }
    return found;
}

static size_t scan(struct bench *bench, size_t begin, size_t end)
{
    static uint32_t ends[PTK_CHUNK_PIECES];
    size_t pos = 0;
    size_t pieces = 0;
    size_t got;
    while ((got = ptk_split_scan(bench->tokenizer->split, bench->text + begin, end - begin, &pos,
                                 ends, PTK_CHUNK_PIECES)) > 0) {
        pieces += got;
    }
    return pieces;
}

static size_t decode(struct bench *bench, size_t ids_len)
{
    size_t len;
    if (ptk_tokenizer_decode(bench->tokenizer, bench->work, bench->ids, ids_len, 0, bench->decoded,
                             bench->decoded_cap, &len) != PTK_VERDICT_OK) {
        fail("ids were refused");
    }
    return len;
}

static struct rate measure_decode(struct bench *bench, size_t len, const struct settings *settings,
                                  bool *equal)
{
    struct rate rate = {0};
    const size_t end = text_end(bench, 0, len);
    const size_t count = encode(bench, 0, end);
    *equal = decode(bench, count) == end && memcmp(bench->decoded, bench->text, end) == 0;
    const uint64_t start = thread_ns();
    do {
        for (size_t i = 0; i < 1 + 65536 / len; i++) {
            rate.bytes += decode(bench, count);
            rate.ids += count;
            rate.texts++;
        }
        rate.ns = thread_ns() - start;
    } while ((double)rate.ns < 1e9 * settings->seconds);
    return rate;
}

/* A checksum of all ids of the text, and of what they decode to: what variants must agree on. */
static uint32_t sum_up(struct bench *bench, size_t len)
{
    uint32_t sum = 0;
    bench->cache = ptk_cache_init(bench->cache_memory, CACHE_LEN);
    for (size_t begin = 0; begin < bench->text_len;) {
        const size_t end = text_end(bench, begin, len);
        const size_t ids_len = encode(bench, begin, end);
        sum = ptk_crc32c_extend(sum, (const uint8_t *)bench->ids, ids_len * sizeof *bench->ids);
        sum = ptk_crc32c_extend(sum, bench->decoded, decode(bench, ids_len));
        begin = end;
    }
    return sum;
}

static void report_rate(const char *name, struct rate rate)
{
    printf(",\"%s_mb_s\":%.1f,\"%s_ns_per_text\":%.0f", name, mb_per_second(rate), name,
           rate.texts == 0 ? 0 : (double)rate.ns / (double)rate.texts);
}

static void report(struct bench *bench, size_t len, const struct settings *settings)
{
    printf("{\"bench\":\"encode\",\"image\":\"%s\",\"text\":\"%s\",\"len\":%zu",
           settings->image_path, settings->text_path, len);
    if ((settings->what & WHAT_IDS) != 0) {
        printf(",\"ids_crc32c\":%u", sum_up(bench, len));
    }
    if ((settings->what & WHAT_FRESH) != 0) {
        const struct rate fresh = measure_fresh(bench, len, settings);
        report_rate("fresh", fresh);
        printf(",\"bytes_per_id\":%.2f",
               fresh.ids == 0 ? 0 : (double)fresh.bytes / (double)fresh.ids);
    } else {
        bench->cache = ptk_cache_init(bench->cache_memory, CACHE_LEN);
    }
    if ((settings->what & WHAT_HOT) != 0) {
        report_rate("hot", measure_pass(bench, len, settings, encode));
    }
    if ((settings->what & WHAT_COUNT) != 0) {
        report_rate("count", measure_pass(bench, len, settings, count));
    }
    if ((settings->what & WHAT_STAGES) != 0) {
        report_rate("utf8", measure_pass(bench, len, settings, check_utf8));
        report_rate("added", measure_pass(bench, len, settings, find_added));
        if (ptk_split_is_scan(bench->tokenizer->split)) {
            report_rate("scan", measure_pass(bench, len, settings, scan));
        }
    }
    if ((settings->what & WHAT_DECODE) != 0) {
        bool equal;
        report_rate("decode", measure_decode(bench, len, settings, &equal));
        printf(",\"round_trip_equal\":%s", equal ? "true" : "false");
    }
    printf("}\n");
}

static void parse_lens(const char *text, struct settings *settings)
{
    settings->len_count = 0;
    while (*text != '\0') {
        char *end;
        const size_t len = strtoul(text, &end, 10);
        if (end == text || len == 0 || settings->len_count == LENS_MAX) {
            fail("--lens wants numbers with commas between");
        }
        settings->lens[settings->len_count++] = len;
        text = *end == ',' ? end + 1 : end;
    }
}

static void parse_what(const char *text, struct settings *settings)
{
    settings->what = 0;
    while (*text != '\0') {
        const size_t len = strcspn(text, ",");
        size_t i = 0;
        while (i < PTK_ARRAY_LEN(what_names) &&
               (strlen(what_names[i]) != len || memcmp(what_names[i], text, len) != 0)) {
            i++;
        }
        if (i == PTK_ARRAY_LEN(what_names)) {
            fail("--what wants names of measurements with commas between");
        }
        settings->what |= 1u << i;
        text += len + (text[len] == ',');
    }
}

static struct settings parse(int argc, char **argv)
{
    struct settings settings = {
        .lens = {200, 1400, 32768, 1048576},
        .len_count = 4,
        .warm_len = 1u << 20,
        .seconds = 0.5,
        .what = WHAT_FRESH | WHAT_HOT | WHAT_DECODE,
    };
    for (int i = 1; i < argc; i++) {
        const bool more = i + 1 < argc;
        if (strcmp(argv[i], "--smoke") == 0) {
            settings.seconds = 0;
            settings.warm_len = 0;
        } else if (strcmp(argv[i], "--lens") == 0 && more) {
            parse_lens(argv[++i], &settings);
        } else if (strcmp(argv[i], "--warm") == 0 && more) {
            settings.warm_len = strtoul(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--what") == 0 && more) {
            parse_what(argv[++i], &settings);
        } else if (strcmp(argv[i], "--seconds") == 0 && more) {
            settings.seconds = strtod(argv[++i], NULL);
        } else if (settings.image_path == NULL) {
            settings.image_path = argv[i];
        } else if (settings.text_path == NULL) {
            settings.text_path = argv[i];
        } else {
            fail(usage);
        }
    }
    if (settings.text_path == NULL) {
        fail(usage);
    }
    return settings;
}

int main(int argc, char **argv)
{
    const struct settings settings = parse(argc, argv);
    struct bench bench = {0};
    struct ptk_err err;
    if (ptk_image_open(settings.image_path, PTK_IMAGE_HOLD_COPY, &bench.image, &err) != 0 ||
        ptk_tokenizer_open(&bench.image, &bench.tokenizer, &err) != 0) {
        fail(err.text);
    }
    read_text(&bench, settings.text_path);
    size_t len_max = 65536;
    for (size_t i = 0; i < settings.len_count; i++) {
        len_max = ptk_max_size(len_max, settings.lens[i]);
    }
    const struct ptk_work_limits limits = {.text_len_max = len_max + 4};
    bench.work = ptk_work_init(reserve(ptk_work_len(&limits)), &limits);
    bench.cache_memory = reserve(CACHE_LEN);
    bench.ids_cap = len_max + 64;
    bench.ids = reserve(bench.ids_cap * sizeof *bench.ids);
    bench.decoded_cap = 4 * len_max + 64;
    bench.decoded = reserve(bench.decoded_cap);
    for (size_t i = 0; i < settings.len_count; i++) {
        report(&bench, settings.lens[i], &settings);
    }
    ptk_tokenizer_close(bench.tokenizer);
    ptk_image_close(&bench.image);
    return 0;
}
