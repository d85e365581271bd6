/*
 * How fast texts are cut: bench_split FILE...
 *
 * For each file and scanner: gigabytes per second and cycles per piece of every variant that this
 * CPU runs, one JSON line each. All variants must give the same pieces first. Files are read whole;
 * a file that is not UTF-8 is refused.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/ptk_cpu.h"
#include "text/ptk_split_scan.h"
#include "text/ptk_utf8.h"

#define CHUNK     512u
#define PASSES_NS UINT64_C(300000000)

static const char *const scanner_names[PTK_SPLIT_SCANNER_COUNT] = PTK_SPLIT_SCANNER_NAMES;

struct variant {
    const char *name;
    ptk_split_scan_fn *scan;
};

struct text {
    const char *name;
    uint8_t *bytes;
    size_t len;
};

static bool read_file(const char *name, struct text *text)
{
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        return false;
    }
    long len = ftell(file);
    rewind(file);
    *text = (struct text){.name = name, .len = (size_t)len, .bytes = malloc((size_t)len + 1)};
    bool is_read = text->bytes != NULL && fread(text->bytes, 1, text->len, file) == text->len;
    fclose(file);
    return is_read && text->len > 0 && ptk_utf8_valid(text->bytes, text->len);
}

/* Runs over a text once; returns the number of pieces and a sum that depends on all ends. */
static size_t pass(const struct ptk_split_classes *classes, const struct text *text,
                   ptk_split_scan_fn *scan, uint64_t *sum)
{
    uint32_t ends[CHUNK];
    size_t pos = 0;
    size_t total = 0;
    size_t count;
    *sum = 0;
    while ((count = scan(classes, text->bytes, text->len, &pos, ends, CHUNK)) > 0) {
        total += count;
        for (size_t i = 0; i < count; i++) {
            *sum = *sum * 31 + ends[i];
        }
    }
    return total;
}

/* Best time of one pass, in cycles, without the checking sum. */
static uint64_t best_cycles(const struct ptk_split_classes *classes, const struct text *text,
                            ptk_split_scan_fn *scan)
{
    uint32_t ends[CHUNK];
    uint64_t best = UINT64_MAX;
    for (uint64_t begin = ptk_clock_ns(); ptk_clock_ns() - begin < PASSES_NS;) {
        uint64_t before = ptk_cycles();
        size_t pos = 0;
        while (scan(classes, text->bytes, text->len, &pos, ends, CHUNK) > 0) {
        }
        uint64_t spent = ptk_cycles() - before;
        best = spent < best ? spent : best;
    }
    return best;
}

static int measure(const struct text *text, unsigned number, uint32_t cycles_per_us)
{
    const struct ptk_split_matcher *matcher = ptk_split_matcher_get(number);
    if (matcher == NULL || matcher->scan == NULL) {
        return 0;
    }
    static struct ptk_split_classes classes;
    ptk_split_classes_init(&classes, ptk_unicode_open(PTK_IMAGE_PROFILE_TOKENIZERS_0_23), number);
    const struct variant variants[] = {
        {"scalar", matcher->scan},
        {"avx2", ptk_split_scan_avx2(number)},
        {"avx512", ptk_split_scan_avx512(number)},
    };
    const char *name =
        number < PTK_SPLIT_SCANNER_VALUE_COUNT ? scanner_names[number] : "gpt2_digits";
    uint64_t expected;
    const size_t pieces = pass(&classes, text, matcher->scan, &expected);
    for (size_t i = 0; i < PTK_ARRAY_LEN(variants); i++) {
        uint64_t sum;
        if (variants[i].scan == NULL) {
            continue;
        }
        if (pass(&classes, text, variants[i].scan, &sum) != pieces || sum != expected) {
            fprintf(stderr, "%s: %s differs from scalar on %s\n", name, variants[i].name,
                    text->name);
            return 1;
        }
        const double cycles = (double)best_cycles(&classes, text, variants[i].scan);
        printf("{\"text\": \"%s\", \"scanner\": \"%s\", \"variant\": \"%s\", \"bytes\": %zu, "
               "\"pieces\": %zu, \"gb_per_s\": %.3f, \"cycles_per_piece\": %.1f}\n",
               text->name, name, variants[i].name, text->len, pieces,
               (double)text->len * cycles_per_us / cycles / 1e3, cycles / (double)pieces);
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct ptk_err err;
    uint32_t cycles_per_us;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_split FILE...\n");
        return 2;
    }
    if (ptk_cpu_cycles_per_us(&cycles_per_us, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (int i = 1; i < argc; i++) {
        struct text text;
        if (!read_file(argv[i], &text)) {
            fprintf(stderr, "%s: cannot be read, is empty, or is not UTF-8\n", argv[i]);
            return 1;
        }
        for (unsigned number = 1; number < PTK_SPLIT_SCANNER_COUNT; number++) {
            if (measure(&text, number, cycles_per_us) != 0) {
                return 1;
            }
        }
        free(text.bytes);
    }
    return 0;
}
