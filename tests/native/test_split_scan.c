/*
 * The scanners against the patterns they stand for: scalar equals regular expression, parallel
 * equals scalar.
 *
 * Without arguments: every pair of ASCII bytes, every code point, and random texts made to reach
 * every decision. PTK_TEST_SEED chooses them, PTK_TEST_TEXTS says how many; each is cut by every
 * scanner and every variant this CPU has, in chunks of several sizes. A million texts are 0.2 GB:
 *
 *     PTK_TEST_TEXTS=1000000 native/build/release/tests/test_split_scan
 *
 * With arguments: those files instead, in slices.
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_split.h"
#include "text/ptk_split_scan.h"
#include "text/ptk_utf8.h"

/* Longest slice of a file, longest random text. */
#define TEXT_LEN_MAX   65536u
#define RANDOM_LEN_MAX 600u
#define TEXTS_DEFAULT  20000u
#define SEED_DEFAULT   20240229u

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define SPACES       "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define FREE         "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER        "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER        "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define NOT_HAN      "&&[^\\p{Han}]"
#define WORDS(upper, lower, suffix)                                                                \
    FREE "[" upper "]*[" lower "]+" suffix "|" FREE "[" upper "]+[" lower "]*" suffix
#define SUFFIX "(?i:" CONTRACTIONS ")?"
#define GPT2   CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* Each scanner as regular expressions: up to three splits in sequence. */
static const struct definition {
    unsigned scanner;
    enum ptk_image_source source;
    bool digits_first; /* each digit alone, before the splits */
    const char *patterns[3];
} definitions[] = {
    {PTK_SPLIT_SCANNER_GPT2, PTK_IMAGE_SOURCE_TOKENIZER_JSON, false, {GPT2}},
    {PTK_SPLIT_SCANNER_GPT2_DIGITS, PTK_IMAGE_SOURCE_TOKENIZER_JSON, true, {GPT2}},
    {PTK_SPLIT_SCANNER_CL100K,
     PTK_IMAGE_SOURCE_TIKTOKEN,
     false,
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+"
      "| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"}},
    {PTK_SPLIT_SCANNER_LLAMA3,
     PTK_IMAGE_SOURCE_TOKENIZER_JSON,
     false,
     {"(?i:" CONTRACTIONS ")|" FREE "\\p{L}+|\\p{N}{1,3}"
      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES}},
    {PTK_SPLIT_SCANNER_QWEN2,
     PTK_IMAGE_SOURCE_TOKENIZER_JSON,
     false,
     {"(?i:" CONTRACTIONS ")|" FREE "\\p{L}+|\\p{N}"
      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES}},
    {PTK_SPLIT_SCANNER_O200K,
     PTK_IMAGE_SOURCE_TOKENIZER_JSON,
     false,
     {WORDS(UPPER, LOWER, SUFFIX) "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES}},
    {PTK_SPLIT_SCANNER_TEKKEN,
     PTK_IMAGE_SOURCE_TOKENIZER_JSON,
     false,
     {WORDS(UPPER, LOWER, "") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES}},
    {PTK_SPLIT_SCANNER_KIMI,
     PTK_IMAGE_SOURCE_TIKTOKEN,
     false,
     {"[\\p{Han}]+|" WORDS(UPPER NOT_HAN, LOWER NOT_HAN,
                           SUFFIX) "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES}},
    {PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL,
     PTK_IMAGE_SOURCE_TOKENIZER_JSON,
     false,
     {"\\p{N}{1,3}", "[\\u4e00-\\u9fa5\\u3040-\\u309f\\u30a0-\\u30ff]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}"
      "\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES}},
};

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
    const size_t len_max = next_random(4) == 0 ? RANDOM_LEN_MAX : next_random(160);
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

/* One scanner with all that it is compared with. */
/* Profiles are numbered from 1 on. */
#define PROFILE_COUNT ((size_t)PTK_IMAGE_PROFILE_VALUE_COUNT - 1)

struct subject {
    unsigned number;
    struct ptk_split *by_regex;
    const struct ptk_split_matcher *matcher;
    struct ptk_split_classes classes;
    ptk_split_scan_fn *avx2;
    ptk_split_scan_fn *avx512;
};

static void add_op(uint8_t *program, size_t *len, unsigned kind, unsigned flags, const void *params,
                   size_t param_len)
{
    uint8_t *op = program + *len;
    memset(op, 0, 8 + ptk_align_up(param_len, 8));
    ptk_store_u16(op, (uint16_t)kind);
    ptk_store_u16(op + 2, (uint16_t)flags);
    ptk_store_u32(op + 4, (uint32_t)param_len);
    if (param_len > 0) {
        memcpy(op + 8, params, param_len);
    }
    *len += 8 + ptk_align_up(param_len, 8);
}

static void open_subject(const struct definition *definition, enum ptk_image_profile profile,
                         struct subject *subject)
{
    uint8_t program[4096];
    size_t len = 0;
    if (definition->digits_first) {
        add_op(program, &len, PTK_OP_PRE_DIGITS, 1, NULL, 0);
    }
    for (size_t i = 0; i < PTK_ARRAY_LEN(definition->patterns); i++) {
        const char *pattern = definition->patterns[i];
        uint8_t params[1024] = {1};
        if (pattern != NULL) {
            const size_t pattern_len = strlen(pattern);
            PTK_ASSERT(pattern_len + 8 <= sizeof params);
            ptk_store_u32(params + 4, (uint32_t)pattern_len);
            memcpy(params + 8, pattern, pattern_len);
            add_op(program, &len, PTK_OP_PRE_SPLIT_REGEX, 0, params, pattern_len + 8);
        }
    }
    const struct ptk_split_config config = {.program = program,
                                            .program_len = len,
                                            .profile = profile,
                                            .source = definition->source,
                                            .byte_units = true};
    struct ptk_err err;
    if (ptk_split_open(&config, &subject->by_regex, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    subject->number = definition->scanner;
    subject->matcher = ptk_split_matcher_get(definition->scanner);
    subject->avx2 = ptk_split_scan_avx2(definition->scanner);
    subject->avx512 = ptk_split_scan_avx512(definition->scanner);
    ptk_split_classes_init(&subject->classes, ptk_unicode_open(profile), definition->scanner);
}

static void report(const struct subject *subject, const char *what, const uint8_t *text, size_t len)
{
    fprintf(stderr, "scanner %u: %s differ on this text:\n", subject->number, what);
    for (size_t i = 0; i < len; i++) {
        fprintf(stderr, "\\x%02x", text[i]);
    }
    fprintf(stderr, "\n");
    abort();
}

/* The ends of the pieces that the regular expressions yield. */
static size_t cut_by_regex(const struct subject *subject, struct ptk_split_work *work,
                           const uint8_t *text, size_t len, uint32_t *ends)
{
    const struct ptk_split_text in = {.bytes = text, .len = len};
    struct ptk_split_pieces pieces;
    PTK_ASSERT(ptk_split_run(subject->by_regex, work, &in, NULL, &pieces) == PTK_VERDICT_OK);
    size_t count = 0;
    struct ptk_span span;
    while (ptk_split_next(&pieces, &span, 1) == 1) {
        PTK_ASSERT(span.begin == (count > 0 ? ends[count - 1] : 0));
        ends[count++] = span.end;
    }
    return count;
}

static void compare(const struct subject *subject, struct ptk_split_work *work, const uint8_t *text,
                    size_t len)
{
    static const size_t chunks[] = {1, 7, 100, TEXT_LEN_MAX};
    static uint32_t expected[TEXT_LEN_MAX];
    static uint32_t ends[TEXT_LEN_MAX];
    const size_t count = cut(subject->matcher->scan, &subject->classes, text, len, 64, expected);
    size_t found = cut_by_regex(subject, work, text, len, ends);
    if (found != count || memcmp(ends, expected, count * sizeof *ends) != 0) {
        report(subject, "scalar and regular expression", text, len);
    }
    ptk_split_scan_fn *const twins[] = {subject->avx2, subject->avx512};
    for (size_t i = 0; i < PTK_ARRAY_LEN(twins); i++) {
        if (twins[i] == NULL) {
            continue;
        }
        const size_t chunk = chunks[next_random(PTK_ARRAY_LEN(chunks))];
        found = cut(twins[i], &subject->classes, text, len, chunk, ends);
        if (found != count || memcmp(ends, expected, count * sizeof *ends) != 0) {
            report(subject, i == 0 ? "AVX2 and scalar" : "AVX-512 and scalar", text, len);
        }
    }
}

/*
 * Compares on a copy of exactly this length, so that a sanitizer sees a read beyond it. Profiles
 * other than the first get every third text.
 */
static void compare_all(struct subject subjects[][PTK_ARRAY_LEN(definitions)],
                        struct ptk_split_work *work, const uint8_t *bytes, size_t len)
{
    static unsigned texts;
    texts++;
    uint8_t *text = malloc(len > 0 ? len : 1);
    PTK_ASSERT(text != NULL);
    memcpy(text, bytes, len);
    for (size_t profile = 0; profile < PROFILE_COUNT; profile++) {
        /* Regular expressions always take U+017F for a small s. */
        const bool folds = subjects[profile][0].classes.long_s;
        if (profile > 0 && (texts % 3 != 0 || (!folds && memmem(text, len, "\u017f", 2) != NULL))) {
            continue;
        }
        for (size_t i = 0; i < PTK_ARRAY_LEN(definitions); i++) {
            compare(&subjects[profile][i], work, text, len);
        }
    }
    free(text);
}

/* Slices of a file, each a little shorter than the limit so that none ends inside of a character.
 */
static void compare_file(struct subject subjects[][PTK_ARRAY_LEN(definitions)],
                         struct ptk_split_work *work, const char *name)
{
    static uint8_t buffer[TEXT_LEN_MAX];
    FILE *file = fopen(name, "rb");
    PTK_ASSERT(file != NULL);
    size_t len = 0;
    size_t total = 0;
    size_t more;
    while ((more = fread(buffer + len, 1, sizeof buffer - len, file)) > 0 || len > 0) {
        len += more;
        size_t used = len;
        while (more > 0 && used > 1 && (buffer[used - 1] & 0xC0) == 0x80) {
            used--;
        }
        used -= more > 0 && used > 1 ? 1 : 0; /* before the last character */
        PTK_ASSERT(ptk_utf8_valid(buffer, used));
        compare_all(subjects, work, buffer, used);
        memmove(buffer, buffer + used, len - used);
        len -= used;
        total += used;
    }
    fclose(file);
    printf("%s: %zu bytes\n", name, total);
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? strtoull(value, NULL, 10) : otherwise;
}

/* Every pair of ASCII bytes, padded so that the first block is full or not: what the parallel
 * scanners know about ASCII is written down in them, not taken from the tables. */
static void compare_ascii(struct subject subjects[][PTK_ARRAY_LEN(definitions)],
                          struct ptk_split_work *work)
{
    for (unsigned pair = 0; pair < 128 * 128; pair++) {
        uint8_t bytes[70];
        const size_t len = pair % 2 == 0 ? 70 : 40;
        memset(bytes, 'x', sizeof bytes);
        bytes[20] = (uint8_t)(pair / 128);
        bytes[21] = (uint8_t)(pair % 128);
        compare_all(subjects, work, bytes, len);
    }
}

/* Every code point, 20 neighbours at a time and alone among ASCII: pages and single characters are
 * classified in different ways. */
static void compare_code_points(struct subject subjects[][PTK_ARRAY_LEN(definitions)],
                                struct ptk_split_work *work)
{
    for (uint32_t first = 0x80; first < PTK_UNICODE_END; first += first < 0x3200 ? 5 : 19) {
        uint8_t bytes[4 * 20 + 20];
        size_t len = 0;
        for (uint32_t i = 0; i < 20; i++) {
            const uint32_t code_point = first + i;
            if (code_point < PTK_UNICODE_END && (code_point < 0xD800 || code_point > 0xDFFF)) {
                len += ptk_utf8_encode(code_point, bytes + len);
            }
            if (i == 3 || i == 11) {
                bytes[len++] = i == 3 ? 'a' : ' ';
            }
        }
        compare_all(subjects, work, bytes, len);
    }
}

int main(int argc, char **argv)
{
    static struct subject subjects[PROFILE_COUNT][PTK_ARRAY_LEN(definitions)];
    unsigned twins = 0;
    for (size_t i = 0; i < PTK_ARRAY_LEN(definitions); i++) {
        for (size_t profile = 0; profile < PROFILE_COUNT; profile++) {
            open_subject(&definitions[i], (enum ptk_image_profile)(profile + 1),
                         &subjects[profile][i]);
        }
        twins += subjects[0][i].avx2 != NULL ? 1 : 0;
        twins += subjects[0][i].avx512 != NULL ? 1 : 0;
    }
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_split_work_len(TEXT_LEN_MAX));
    PTK_ASSERT(memory != NULL);
    struct ptk_split_work *work = ptk_split_work_init(memory, TEXT_LEN_MAX);

    const uint64_t seed = setting("PTK_TEST_SEED", SEED_DEFAULT);
    const size_t texts = argc > 1 ? 0 : setting("PTK_TEST_TEXTS", TEXTS_DEFAULT);
    random_state = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    printf("%zu texts, seed %llu, %zu scanners, %u parallel twins\n", texts,
           (unsigned long long)seed, PTK_ARRAY_LEN(definitions), twins);
    unsigned long long total = 0;
    for (size_t i = 0; i < texts; i++) {
        static uint8_t bytes[TEXT_LEN_MAX];
        const size_t len = make_text(bytes);
        compare_all(subjects, work, bytes, len);
        total += len;
    }
    if (argc == 1) {
        compare_ascii(subjects, work);
        compare_code_points(subjects, work);
    }
    for (int i = 1; i < argc; i++) {
        compare_file(subjects, work, argv[i]);
    }
    printf("%llu bytes of random text equal\n", total);
    for (size_t i = 0; i < PTK_ARRAY_LEN(definitions); i++) {
        for (size_t profile = 0; profile < PROFILE_COUNT; profile++) {
            ptk_split_close(subjects[profile][i].by_regex);
        }
    }
    free(memory);
    return 0;
}
