/*
 * Normalizers: each operation on texts whose result is known, alignment, limits, and every refusal
 * of a program. `test_norm --serve` runs programs that tests/unit/test_norm.py sends; see serve().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_norm.h"
#include "text/ptk_utf8.h"

#define PROGRAM_CAP 4096u
#define TEXT_CAP    256u

struct program {
    uint8_t bytes[PROGRAM_CAP];
    size_t len;
};

/* Appends one operation with its padding. */
static void add_op(struct program *program, uint16_t kind, uint16_t flags, const void *params,
                   size_t params_len)
{
    struct ptk_image_op header = {.kind = kind, .flags = flags, .param_len = (uint32_t)params_len};
    size_t op_len = sizeof header + ptk_align_up(params_len, 8);
    PTK_ASSERT(program->len + op_len <= PROGRAM_CAP);
    memset(program->bytes + program->len, 0, op_len);
    memcpy(program->bytes + program->len, &header, sizeof header);
    if (params_len > 0) {
        memcpy(program->bytes + program->len + sizeof header, params, params_len);
    }
    program->len += op_len;
}

static struct program program_of(uint16_t kind, uint16_t flags)
{
    struct program program = {.len = 0};
    add_op(&program, kind, flags, NULL, 0);
    return program;
}

/* Appends an operation whose parameters are one string, or two. */
static void add_strings(struct program *program, uint16_t kind, const char *first,
                        const char *second)
{
    uint8_t params[512];
    size_t len = 0;
    const char *strings[2] = {first, second};
    for (size_t i = 0; i < 2 && strings[i] != NULL; i++) {
        size_t string_len = strlen(strings[i]);
        ptk_store_u32(params + len, (uint32_t)string_len);
        memcpy(params + len + 4, strings[i], string_len);
        len += 4 + string_len;
    }
    add_op(program, kind, 0, params, len);
}

static struct ptk_norm *open_program(const uint8_t *bytes, size_t len)
{
    const struct ptk_norm_config config = {
        .program = bytes, .program_len = len, .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23};
    struct ptk_norm *norm = NULL;
    struct ptk_err err = {0};
    if (ptk_norm_open(&config, &norm, &err) != 0) {
        fprintf(stderr, "refused: %s\n", err.text);
        abort();
    }
    return norm;
}

static struct ptk_norm_work *make_work(size_t text_len_max, bool align)
{
    const struct ptk_norm_limits limits = {.text_len_max = text_len_max, .align = align};
    size_t len = ptk_align_up(ptk_norm_work_len(&limits), PTK_CACHE_LINE);
    void *memory = aligned_alloc(PTK_CACHE_LINE, len);
    PTK_ASSERT(memory != NULL);
    return ptk_norm_work_init(memory, &limits);
}

/* Runs a program and compares the text; `same` says whether the result must be the input itself. */
static void check(const struct program *program, const char *from, const char *want, bool same)
{
    struct ptk_norm *norm = open_program(program->bytes, program->len);
    for (int align = 0; align < 2; align++) {
        struct ptk_norm_work *work = make_work(TEXT_CAP, align != 0);
        const struct ptk_norm_section section = {.bytes = (const uint8_t *)from,
                                                 .len = strlen(from),
                                                 .origin = 100,
                                                 .align = align != 0};
        struct ptk_split_text result;
        PTK_ASSERT(ptk_norm_run(norm, work, &section, &result) == PTK_VERDICT_OK);
        if (result.len != strlen(want) || memcmp(result.bytes, want, result.len) != 0) {
            fprintf(stderr, "from '%s' want '%s' got '%.*s'\n", from, want, (int)result.len,
                    (const char *)result.bytes);
            abort();
        }
        PTK_ASSERT((result.bytes == section.bytes) == same);
        PTK_ASSERT((result.align != NULL) == (align != 0 && !same));
        free(work);
    }
    ptk_norm_close(norm);
}

/* Forms: what changes, what is recognised as unchanged, and the ways they differ. */
static void test_forms(void)
{
    struct program nfc = program_of(PTK_OP_NORM_NFC, 0);
    struct program nfd = program_of(PTK_OP_NORM_NFD, 0);
    struct program nfkc = program_of(PTK_OP_NORM_NFKC, 0);
    struct program nfkd = program_of(PTK_OP_NORM_NFKD, 0);
    check(&nfc, "", "", true);
    check(&nfc, "plain ASCII text of more than sixteen bytes",
          "plain ASCII text of more than sixteen bytes", true);
    check(&nfc, "caf\u00e9 na\u00efve \u4e2d\u6587 \uac01",
          "caf\u00e9 na\u00efve \u4e2d\u6587 \uac01", true);
    check(&nfc, "e\u0301", "\u00e9", false);
    check(&nfc, "xe\u0301y", "x\u00e9y", false);
    check(&nfc, "e\u0323\u0301", "\u1eb9\u0301", false);
    check(&nfc, "e\u0301\u0323", "\u1eb9\u0301", false);
    check(&nfc, "e\u0301\u0301", "\u00e9\u0301", false);
    check(&nfc, "\u0301e", "\u0301e", true);
    check(&nfc, "\u0323\u0301", "\u0323\u0301", true); /* doubtful, and found to be right */
    check(&nfc, "\u0301\u0323", "\u0323\u0301", false);
    check(&nfc, "\u1100\u1161\u11a8", "\uac01", false);
    check(&nfc, "\uac00\u11a8", "\uac01", false);
    check(&nfc, "\uac00\u11a7", "\uac00\u11a7", true);
    check(&nfc, "\u212b", "\u00c5", false);
    check(&nfc, "\u0344", "\u0308\u0301", false);
    check(&nfc, "\ufb01", "\ufb01", true);
    check(&nfkc, "\ufb01", "fi", false);
    check(&nfkc, "\uff21\u3099", "A\u3099", false);
    check(&nfkc, "\uff76\uff9e", "\u30ac", false);
    check(&nfkc, "\u1e9b\u0323", "\u1e69", false);
    check(&nfkc, "\u32ff", "\u32ff", true); /* unknown to the reference's tables */
    check(&nfd, "\u00e9", "e\u0301", false);
    check(&nfd, "\uac01", "\u1100\u1161\u11a8", false);
    check(&nfd, "\ufb01", "\ufb01", true);
    check(&nfd, "a\u0301\u0323", "a\u0323\u0301", false);
    check(&nfkd, "\ufb01\u00e9", "fie\u0301", false);
}

/* The operations on single characters, on texts with and without something to do. */
static void test_characters(void)
{
    struct program lower = program_of(PTK_OP_NORM_LOWERCASE, 0);
    check(&lower, "\u00c9T\u00c9 \u0130x", "\u00e9t\u00e9 i\u0307x", false);
    check(&lower, "@[`{", "@[`{", true);
    check(&lower, "abc \u4e2d", "abc \u4e2d", true);
    check(&lower, "a line that is longer than A block", "a line that is longer than a block",
          false);
    struct program accents = program_of(PTK_OP_NORM_STRIP_ACCENTS, 0);
    check(&accents, "e\u0301\u0323x", "ex", false);
    check(&accents, "\u00e9", "\u00e9", true);
    check(&accents, "\u0301", "", false);
    struct program nmt = program_of(PTK_OP_NORM_NMT, 0);
    check(&nmt,
          "a\tb\u200bc\x01"
          "d",
          "a b cd", false);
    check(&nmt, "a b", "a b", true);
    struct program bytes = program_of(PTK_OP_NORM_BYTE_LEVEL, 0);
    check(&bytes, "a b\u00e9\n", "a\u0120b\u00c3\u00a9\u010a", false);
    check(&bytes, "ab", "ab", true);
    struct program both = program_of(PTK_OP_NORM_STRIP, 3);
    struct program right = program_of(PTK_OP_NORM_STRIP, 2);
    check(&both, "a b", "a b", true);
    check(&right, "a b", "a b", true);
}

/* BertNormalizer is several operations in one, each switched by a flag. */
static void test_bert(void)
{
    struct program all = program_of(PTK_OP_NORM_BERT, 15);
    check(&all, "H\u00e9llo\tW\x01\u00d6rld\u4e2d\u6587", "hello world \u4e2d  \u6587 ", false);
    check(&all, "hello world", "hello world", true);
    struct program cased = program_of(PTK_OP_NORM_BERT, 3);
    check(&cased, "H\u00e9llo", "H\u00e9llo", true);
    struct program none = program_of(PTK_OP_NORM_BERT, 0);
    check(&none, "H\u00e9llo\t\x01", "H\u00e9llo\t\x01", true);
}

static void test_strings(void)
{
    struct program prepend = {.len = 0};
    add_strings(&prepend, PTK_OP_NORM_PREPEND, "\u2581", NULL);
    check(&prepend, "", "", true);
    check(&prepend, "a",
          "\u2581"
          "a",
          false);
    add_strings(&prepend, PTK_OP_NORM_REPLACE_STRING, " ", "\u2581");
    check(&prepend, "a b  c",
          "\u2581"
          "a\u2581"
          "b\u2581\u2581"
          "c",
          false);
    struct program quotes = {.len = 0};
    add_strings(&quotes, PTK_OP_NORM_REPLACE_STRING, "``", "\"");
    check(&quotes, "```a`b", "\"`a`b", false);
    check(&quotes, "`a`", "`a`", true);
    struct program remove = {.len = 0};
    add_strings(&remove, PTK_OP_NORM_REPLACE_STRING, "a", "");
    check(&remove, "aaa", "", false);
    struct program everywhere = {.len = 0};
    add_strings(&everywhere, PTK_OP_NORM_REPLACE_STRING, "", "x");
    check(&everywhere, "a\u00e9", "xax\u00e9x", false);
    check(&everywhere, "", "", true);
}

/* What was stripped is not copied: the result is a part of the section with a later origin. */
static void test_strip_moves_the_origin(void)
{
    struct program program = program_of(PTK_OP_NORM_STRIP, 3);
    struct ptk_norm *norm = open_program(program.bytes, program.len);
    struct ptk_norm_work *work = make_work(TEXT_CAP, true);
    static const char text[] = " \u3000"
                               "a b\n ";
    const struct ptk_norm_section section = {
        .bytes = (const uint8_t *)text, .len = sizeof text - 1, .origin = 7, .align = true};
    struct ptk_split_text result;
    PTK_ASSERT(ptk_norm_run(norm, work, &section, &result) == PTK_VERDICT_OK);
    PTK_ASSERT(result.bytes == section.bytes + 4);
    PTK_ASSERT(result.len == 3);
    PTK_ASSERT(result.origin == 11);
    free(work);
    ptk_norm_close(norm);
}

/* A composite has the range of what it was made of as the reference sees it: its first character.
 */
static void test_alignment_of_a_composite(void)
{
    struct program program = program_of(PTK_OP_NORM_NFC, 0);
    struct ptk_norm *norm = open_program(program.bytes, program.len);
    struct ptk_norm_work *work = make_work(TEXT_CAP, true);
    static const char text[] = "xe\u0323\u0301y";
    const struct ptk_norm_section section = {
        .bytes = (const uint8_t *)text, .len = sizeof text - 1, .origin = 10, .align = true};
    static const struct ptk_span want[] = {{10, 11}, {11, 12}, {11, 12}, {11, 12},
                                           {14, 16}, {14, 16}, {16, 17}};
    struct ptk_split_text result;
    PTK_ASSERT(ptk_norm_run(norm, work, &section, &result) == PTK_VERDICT_OK);
    PTK_ASSERT(result.len == PTK_ARRAY_LEN(want));
    PTK_ASSERT(memcmp(result.align, want, sizeof want) == 0);
    free(work);
    ptk_norm_close(norm);
}

/* The limit is the result's length, exactly, for the input as for the output. */
static void test_limits(void)
{
    struct program program = program_of(PTK_OP_NORM_NFD, 0);
    struct ptk_norm *norm = open_program(program.bytes, program.len);
    for (size_t cap = 0; cap <= 40; cap++) {
        struct ptk_norm_work *work = make_work(cap, true);
        uint8_t text[64];
        size_t len = 0;
        for (; len < 20; len += 2) {
            memcpy(text + len, "\xC3\xA9", 2); /* Two bytes become three. */
        }
        const struct ptk_norm_section section = {.bytes = text, .len = len, .align = true};
        struct ptk_split_text result;
        enum ptk_verdict verdict = ptk_norm_run(norm, work, &section, &result);
        PTK_ASSERT(verdict == (cap >= 30 ? PTK_VERDICT_OK : PTK_VERDICT_TEXT_TOO_LONG));
        free(work);
    }
    ptk_norm_close(norm);
}

/* A run of marks as long as the text, in the worst order, is put in order in one go. */
static void test_long_runs_of_marks(void)
{
    enum { MARKS = 200000 };
    size_t len = 1 + 2 * (size_t)MARKS;
    uint8_t *text = malloc(len);
    PTK_ASSERT(text != NULL);
    text[0] = 'a';
    for (size_t i = 0; i < MARKS; i++) {
        memcpy(text + 1 + 2 * i, i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3", 2); /* 230, 220 */
    }
    struct program program = program_of(PTK_OP_NORM_NFC, 0);
    struct ptk_norm *norm = open_program(program.bytes, program.len);
    struct ptk_norm_work *work = make_work(len, true);
    const struct ptk_norm_section section = {.bytes = text, .len = len, .align = true};
    struct ptk_split_text result;
    PTK_ASSERT(ptk_norm_run(norm, work, &section, &result) == PTK_VERDICT_OK);
    PTK_ASSERT(result.len == 3 + 2 * ((size_t)MARKS - 1));
    PTK_ASSERT(memcmp(result.bytes, "\u1ea1\u0323", 5) == 0);
    PTK_ASSERT(memcmp(result.bytes + result.len - 2, "\u0301", 2) == 0);
    ptk_norm_close(norm);
    free(work);
    free(text);
}

static void refuse(const struct program *program, size_t len, int want)
{
    const struct ptk_norm_config config = {.program = program->bytes,
                                           .program_len = len,
                                           .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23};
    struct ptk_norm *norm = NULL;
    struct ptk_err err = {0};
    int rc = ptk_norm_open(&config, &norm, &err);
    if (rc != want) {
        fprintf(stderr, "want %d got %d: %s\n", want, rc, err.text);
        abort();
    }
    PTK_ASSERT(err.code == want);
    PTK_ASSERT(err.text[0] != 0);
    PTK_ASSERT(norm == NULL);
}

/* A program is checked to the last bit: cut anywhere, unknown kinds and flags, dirty padding. */
static void test_bad_programs_are_refused(void)
{
    struct program good = {.len = 0};
    add_strings(&good, PTK_OP_NORM_REPLACE_STRING, "ab", "c");
    for (size_t len = 1; len < good.len; len++) {
        refuse(&good, len, -EINVAL);
    }
    struct program bad = good;
    bad.bytes[good.len - 1] = 1; /* padding */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[8] = 200; /* string length */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[8] = 1; /* the second string begins too early */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[12] = 0xFF; /* not UTF-8 */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[2] = 1; /* flags */
    refuse(&bad, bad.len, -EINVAL);
    for (uint32_t kind = 0; kind < 0x10000; kind++) {
        if (kind == 0 || kind >= PTK_OP_NORM_VALUE_COUNT) {
            bad = program_of((uint16_t)kind, 0);
            refuse(&bad, bad.len, -EINVAL);
        }
    }
    bad = program_of(PTK_OP_NORM_STRIP, 4);
    refuse(&bad, bad.len, -EINVAL);
    bad = program_of(PTK_OP_NORM_BERT, 16);
    refuse(&bad, bad.len, -EINVAL);
    bad = program_of(PTK_OP_NORM_NFC, 1);
    refuse(&bad, bad.len, -EINVAL);
    struct program params = {.len = 0};
    add_op(&params, PTK_OP_NORM_NFC, 0, "x", 1);
    refuse(&params, params.len, -EINVAL);
    struct program many = {.len = 0};
    for (int i = 0; i < 64; i++) {
        add_op(&many, PTK_OP_NORM_BERT, 15, NULL, 0);
    }
    struct ptk_norm *norm = open_program(many.bytes, many.len);
    PTK_ASSERT(!ptk_norm_is_empty(norm));
    ptk_norm_close(norm);
    add_op(&many, PTK_OP_NORM_NFC, 0, NULL, 0);
    refuse(&many, many.len, -ENOTSUP);
    char pattern[258];
    memset(pattern, 'a', sizeof pattern);
    pattern[256] = 0;
    struct program longest = {.len = 0};
    add_strings(&longest, PTK_OP_NORM_REPLACE_STRING, pattern, "");
    norm = open_program(longest.bytes, longest.len);
    ptk_norm_close(norm);
    pattern[256] = 'a';
    pattern[257] = 0;
    longest.len = 0;
    add_strings(&longest, PTK_OP_NORM_REPLACE_STRING, pattern, "");
    refuse(&longest, longest.len, -ENOTSUP);
}

static void test_empty_program(void)
{
    struct ptk_norm *norm = open_program(NULL, 0);
    PTK_ASSERT(ptk_norm_is_empty(norm));
    struct program none = {.len = 0};
    check(&none, "e\u0301", "e\u0301", true);
    ptk_norm_close(norm);
    ptk_norm_close(NULL);
}

/* A profile without tables is refused: other tables would give other ids. */
static void test_unknown_profile_is_refused(void)
{
    const struct ptk_norm_config config = {.profile = PTK_IMAGE_PROFILE_VALUE_COUNT};
    struct ptk_norm *norm = NULL;
    struct ptk_err err = {0};
    PTK_ASSERT(ptk_norm_open(&config, &norm, &err) == -ENOTSUP);
    PTK_ASSERT(norm == NULL);
}

/* Verdicts of regular expressions: empty matches, none, and bad patterns with their place. */
static void test_patterns(void)
{
    struct program spaces = {.len = 0};
    add_strings(&spaces, PTK_OP_NORM_REPLACE_REGEX, "\\s+", " ");
    check(&spaces, "a \t\u3000 b", "a b", false);
    check(&spaces, "ab", "ab", true);
    check(&spaces, "", "", true);
    struct program empty = {.len = 0};
    add_strings(&empty, PTK_OP_NORM_REPLACE_REGEX, "b*", "-");
    check(&empty, "abbc", "-a-c-", false);
    struct program bad = {.len = 0};
    add_strings(&bad, PTK_OP_NORM_REPLACE_REGEX, "(", "");
    refuse(&bad, bad.len, -EINVAL);
}

/* The smallest map: one block of units, the key "a" with the value "bc". */
static struct program map_program(void)
{
    uint8_t map[4 + 4 * 256 + 3];
    ptk_store_u32(map, 4 * 256);
    memset(map + 4, 0, 4 * 256);
    ptk_store_u32(map + 4 + 4 * 'a', ('a' ^ 1u) << 10 | 1u << 8 | 'a');
    ptk_store_u32(map + 4 + 4 * 1, 0x80000000u); /* the value of the node at 'a': string 0 */
    memcpy(map + 4 + 4 * 256, "bc", 3);
    uint8_t params[4 + sizeof map];
    ptk_store_u32(params, sizeof map);
    memcpy(params + 4, map, sizeof map);
    struct program program = {.len = 0};
    add_op(&program, PTK_OP_NORM_PRECOMPILED, 0, params, sizeof params);
    return program;
}

/* A map is checked when it is opened: nothing in it leads outside of it. */
static void test_maps(void)
{
    const struct program good = map_program();
    enum { MAP = 12, TRIE = MAP + 4, STRINGS = TRIE + 4 * 256 };
    check(&good, "xay", "xbcy", false);
    check(&good, "xy", "xy", true);
    struct program bad = good;
    bad.bytes[MAP] = 1; /* not whole units */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[MAP + 3] = 1; /* longer than the map */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    ptk_store_u32(bad.bytes + TRIE, 512u << 10); /* the root's children */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    ptk_store_u32(bad.bytes + TRIE + 4 * 'a', 4096u << 10 | 1u << 8 | 'a'); /* the value's place */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    ptk_store_u32(bad.bytes + TRIE + 4, 0x80000003u); /* the value */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[STRINGS + 2] = 'd'; /* the last string has no end */
    refuse(&bad, bad.len, -EINVAL);
    bad = good;
    bad.bytes[STRINGS] = 0x80; /* not UTF-8 */
    refuse(&bad, bad.len, -EINVAL);
}

static bool read_all(void *dst, size_t len)
{
    return fread(dst, 1, len, stdin) == len;
}

/* The reader sees a short reply when a write fails. */
static void write_all(const void *src, size_t len)
{
    (void)fwrite(src, 1, len, stdout);
}

/* Writes text and, where wanted, the range of each byte. */
static void write_result(const struct ptk_split_text *result, bool align)
{
    const uint32_t reply[2] = {0, (uint32_t)result->len};
    write_all(reply, sizeof reply);
    write_all(result->bytes, result->len);
    for (size_t pos = 0; align && pos < result->len;) {
        uint32_t len = ptk_utf8_lead_len(result->bytes[pos]);
        struct ptk_span span = {(uint32_t)(result->origin + pos),
                                (uint32_t)(result->origin + pos + len)};
        for (uint32_t i = 0; i < len; i++) {
            write_all(result->align != NULL ? &result->align[pos + i] : &span, sizeof span);
        }
        pos += len;
    }
}

/*
 * Answers requests until the input ends. All numbers are u32, little-endian:
 *
 *     request   align (0 or 1), program length, text length, program, text
 *     reply     0, result length, result, with align: begin and end of each byte
 *               1, sentence length, sentence              the program was refused
 *               2, verdict                                the run did not end well
 *
 * A program of length UINT32_MAX, without bytes, is the one of the request before.
 */
static int serve(void)
{
    enum { TEXT_MAX = 1 << 20 };
    struct ptk_norm_work *work = make_work(TEXT_MAX, true);
    struct ptk_norm *norm = NULL;
    uint8_t *program = NULL;
    uint32_t head[3];
    while (read_all(head, sizeof head)) {
        struct ptk_err err = {0};
        if (head[1] != UINT32_MAX) {
            ptk_norm_close(norm);
            norm = NULL;
            free(program);
            program = malloc(head[1] + 1);
            PTK_ASSERT(program != NULL);
            if (!read_all(program, head[1])) {
                return 1;
            }
            const struct ptk_norm_config config = {.program = program,
                                                   .program_len = head[1],
                                                   .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23};
            (void)ptk_norm_open(&config, &norm, &err); /* Reported below. */
        }
        uint8_t *text = malloc(head[2] + 1);
        PTK_ASSERT(text != NULL);
        if (!read_all(text, head[2])) {
            return 1;
        }
        if (norm == NULL) {
            const uint32_t reply[2] = {1, (uint32_t)strlen(err.text)};
            write_all(reply, sizeof reply);
            write_all(err.text, reply[1]);
        } else {
            const struct ptk_norm_section section = {
                .bytes = text, .len = head[2], .align = head[0] != 0};
            struct ptk_split_text result;
            enum ptk_verdict verdict = ptk_norm_run(norm, work, &section, &result);
            if (verdict == PTK_VERDICT_OK) {
                write_result(&result, section.align);
            } else {
                const uint32_t reply[2] = {2, (uint32_t)verdict};
                write_all(reply, sizeof reply);
            }
        }
        free(text);
        if (fflush(stdout) != 0) {
            return 1;
        }
    }
    ptk_norm_close(norm);
    free(program);
    free(work);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--serve") == 0) {
        return serve();
    }
    test_empty_program();
    test_forms();
    test_characters();
    test_bert();
    test_strings();
    test_strip_moves_the_origin();
    test_alignment_of_a_composite();
    test_limits();
    test_long_runs_of_marks();
    test_bad_programs_are_refused();
    test_unknown_profile_is_refused();
    test_patterns();
    test_maps();
    return 0;
}
