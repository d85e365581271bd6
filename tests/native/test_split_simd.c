/*
 * The parallel scanners equal the scalar ones, on texts made to reach every decision.
 *
 * PTK_TEST_SEED chooses the texts, PTK_TEST_TEXTS how many there are (each is cut by every scanner
 * and every variant this CPU has, in chunks of several sizes).
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_split_scan.h"

#define TEXT_LEN_MAX  600u
#define TEXTS_DEFAULT 20000u
#define SEED_DEFAULT  20240229u

/* Characters that patterns tell apart, most often the ones that contractions and white space need.
 */
static const char *const edges[] = {
    "a",
    "A",
    "b",
    "B",
    "s",
    "S",
    "t",
    "l",
    "L",
    "d",
    "m",
    "r",
    "e",
    "E",
    "v",
    "V",
    "'",
    "'",
    "'",
    "'",
    " ",
    " ",
    " ",
    " ",
    "\t",
    "\n",
    "\n",
    "\r",
    "/",
    "/",
    "!",
    "-",
    ".",
    "(",
    "_",
    "5",
    "9",
    "0",
    "\x01",
    "\x1c",
    "\x0b",
    "\xc5\xbf",
    "\xe2\x84\xaa",
    "\xc3\xa9",
    "\xc3\x89",
    "\xce\xb1",
    "\xce\x91",
    "\xc7\x85",
    "\xca\xb0",
    "\xc2\xaa",
    "\xc2\xa0",
    "\xc2\x85",
    "\xe2\x80\x83",
    "\xe3\x80\x80",
    "\xe1\x9a\x80",
    "\xe2\x80\x8b",
    "\xe4\xb8\xad",
    "\xe4\xb8\xad",
    "\xe9\xbe\xa6",
    "\xe3\x80\x87",
    "\xe3\x80\x85",
    "\xe2\xba\x80",
    "\xe3\x81\x82",
    "\xe3\x82\xa2",
    "\xe3\x83\xbb",
    "\xe3\x82\x9b",
    "\xe3\x82\x99",
    "\xe3\x81\x80",
    "\xed\x95\x9c",
    "\xd8\xa7",
    "\xd9\x8e",
    "\xe0\xa4\x95",
    "\xe0\xa4\xbe",
    "\xe0\xb8\x81",
    "\xcc\x81",
    "\xe2\x83\x9d",
    "\xef\xb8\x8f",
    "\xe2\x80\x8d",
    "\xe2\x9d\xa4",
    "\xf0\x9f\x98\x80",
    "\xf0\x9f\x8f\xbd",
    "\xf0\x90\x90\x80",
    "\xf0\x90\x90\xa8",
    "\xf0\x9d\x9f\x98",
    "\xf0\xa0\x80\x80",
    "\xd9\xa3",
    "\xc2\xbd",
    "\xe2\x85\xa7",
    "\xe2\x82\xac",
    "\xe2\x80\x99",
    "\xe2\x80\x9c",
    "\xcd\xb8",
    "\xf0\x96\xbf\xb0",
};

/* Words as texts have them: long runs, indents, rules. */
static const char *const words[] = {
    "The",
    " quick",
    " Brown",
    "ABCdef",
    "camelCase",
    "HTTPServer",
    "don't",
    "I'LL",
    " it's",
    "\n\n",
    "\n    ",
    "        ",
    "\r\n",
    "12345",
    " 3.14",
    "------",
    "// ",
    "();\n",
    ");\n\n\t",
    "\xc2\xa0\xc2\xa0",
    "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82",
    "\xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
};

static uint64_t random_state;

static uint32_t next_random(uint32_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % below;
}

static size_t make_text(uint8_t *text)
{
    const size_t len_max = next_random(4) == 0 ? TEXT_LEN_MAX : next_random(160);
    const uint32_t how = next_random(4);
    const uint32_t few = 3 + next_random(6);
    const char *chosen[8];
    for (uint32_t i = 0; i < 8; i++) {
        chosen[i] = edges[next_random(PTK_ARRAY_LEN(edges))];
    }
    size_t len = 0;
    for (;;) {
        const char *part = edges[next_random(how == 0 ? PTK_ARRAY_LEN(edges) : 40)];
        if (how == 1) {
            part = chosen[next_random(few)];
        } else if (how == 2 && next_random(3) > 0) {
            part = words[next_random(PTK_ARRAY_LEN(words))];
        } else if (how == 3 && next_random(16) == 0) {
            part = edges[next_random(PTK_ARRAY_LEN(edges))];
        }
        const size_t part_len = strlen(part);
        if (len + part_len > len_max) {
            return len;
        }
        memcpy(text + len, part, part_len);
        len += part_len;
    }
}

static size_t cut(ptk_split_scan_fn *scan, const struct ptk_split_classes *classes,
                  const uint8_t *text, size_t len, size_t chunk, uint32_t *ends)
{
    size_t pos = 0;
    size_t count = 0;
    size_t more;
    while ((more = scan(classes, text, len, &pos, ends + count, chunk)) > 0) {
        PTK_ASSERT(more <= chunk);
        count += more;
        PTK_ASSERT(pos == ends[count - 1]);
    }
    PTK_ASSERT(pos == len);
    return count;
}

static void report(unsigned number, const char *variant, uint64_t seed, size_t index,
                   const uint8_t *text, size_t len)
{
    fprintf(stderr, "scanner %u: %s differs from scalar; PTK_TEST_SEED=%llu, text %zu:\n", number,
            variant, (unsigned long long)seed, index);
    for (size_t i = 0; i < len; i++) {
        fprintf(stderr, "\\x%02x", text[i]);
    }
    fprintf(stderr, "\n");
    abort();
}

static void compare(const struct ptk_split_classes *classes, unsigned number, uint64_t seed,
                    size_t index, const uint8_t *text, size_t len)
{
    static const size_t chunks[] = {1, 7, 100, TEXT_LEN_MAX};
    const struct {
        const char *name;
        ptk_split_scan_fn *scan;
    } variants[] = {
        {"avx2", ptk_split_scan_avx2(number)},
        {"avx512", ptk_split_scan_avx512(number)},
    };
    uint32_t expected[TEXT_LEN_MAX];
    uint32_t ends[TEXT_LEN_MAX];
    const size_t count = cut(ptk_split_matcher_get(number)->scan, classes, text, len, 1, expected);
    for (size_t i = 0; i < PTK_ARRAY_LEN(variants); i++) {
        if (variants[i].scan == NULL) {
            continue;
        }
        const size_t chunk = chunks[next_random(PTK_ARRAY_LEN(chunks))];
        const size_t found = cut(variants[i].scan, classes, text, len, chunk, ends);
        if (found != count || memcmp(ends, expected, count * sizeof *ends) != 0) {
            report(number, variants[i].name, seed, index, text, len);
        }
    }
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? strtoull(value, NULL, 10) : otherwise;
}

int main(void)
{
    static struct ptk_split_classes classes[PTK_SPLIT_SCANNER_COUNT];
    const struct ptk_unicode *unicode = ptk_unicode_open(PTK_IMAGE_PROFILE_TOKENIZERS_0_23);
    const uint64_t seed = setting("PTK_TEST_SEED", SEED_DEFAULT);
    const size_t texts = setting("PTK_TEST_TEXTS", TEXTS_DEFAULT);
    bool has_scan[PTK_SPLIT_SCANNER_COUNT] = {false};
    unsigned variants = 0;
    for (unsigned number = 1; number < PTK_SPLIT_SCANNER_COUNT; number++) {
        ptk_split_classes_init(&classes[number], unicode, number);
        has_scan[number] = ptk_split_matcher_get(number)->scan != NULL;
        variants += ptk_split_scan_avx2(number) != NULL;
        variants += ptk_split_scan_avx512(number) != NULL;
    }
    if (variants == 0) {
        printf("skip: this CPU has neither AVX2 nor AVX-512\n");
        return 77;
    }
    random_state = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    for (size_t i = 0; i < texts; i++) {
        uint8_t bytes[TEXT_LEN_MAX];
        const size_t len = make_text(bytes);
        uint8_t *text = malloc(len > 0 ? len : 1); /* of this length: for the sanitizer */
        PTK_ASSERT(text != NULL);
        memcpy(text, bytes, len);
        for (unsigned number = 1; number < PTK_SPLIT_SCANNER_COUNT; number++) {
            if (has_scan[number]) {
                compare(&classes[number], number, seed, i, text, len);
            }
        }
        free(text);
    }
    printf("%zu texts, %u parallel scanners, seed %llu\n", texts, variants,
           (unsigned long long)seed);
    return 0;
}
