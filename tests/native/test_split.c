/*
 * Pre-tokenizers: what is refused, what stopping anywhere leaves unchanged, what limits do.
 *
 * `test_split --serve` runs programs for tests/property/test_split.py. It reads from standard input
 *
 *     u32 program_len, u8 source, u8 byte_units, program     once
 *     u32 text_len, u32 origin, text                         per text
 *
 * and writes per text: u32 verdict, u32 count, then u32 len, u32 begin, u32 end and the bytes of
 * each piece; begin and end are its range in the original text. Where the program is a scan, it is
 * run both ways and both must agree.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_split.h"

#define CHECK(x) (PTK_LIKELY(x) ? (void)0 : ptk_assert_failed(__FILE__, __LINE__, #x))

/* Longest text; what pieces become is at most four times as long, and one more per piece. */
#define TEXT_LEN_MAX (1u << 20)

/* --- Serving ------------------------------------------------------------------------------------
 */

static bool read_all(void *dst, size_t len)
{
    return fread(dst, 1, len, stdin) == len;
}

static void write_u32(uint32_t value)
{
    CHECK(fwrite(&value, sizeof value, 1, stdout) == 1);
}

/* Lists all pieces in chunks of an odd size, so that chunks end everywhere. */
static size_t list_pieces(struct ptk_split_pieces *pieces, struct ptk_span *spans)
{
    size_t count = 0;
    size_t more;
    while ((more = ptk_split_next(pieces, spans + count, 3)) > 0) {
        count += more;
    }
    return count;
}

static void check_scan(const struct ptk_split *split, const uint8_t *text, size_t len,
                       const struct ptk_span *spans, size_t count)
{
    static const size_t caps[] = {1, 3, 256};
    uint32_t ends[256];
    for (size_t i = 0; i < PTK_ARRAY_LEN(caps); i++) {
        size_t pos = 0;
        size_t done = 0;
        size_t more;
        while ((more = ptk_split_scan(split, text, len, &pos, ends, caps[i])) > 0) {
            CHECK(more <= caps[i]);
            CHECK(pos == ends[more - 1]);
            for (size_t j = 0; j < more; j++, done++) {
                CHECK(done < count);
                CHECK(spans[done].begin == (done > 0 ? spans[done - 1].end : 0));
                CHECK(spans[done].end == ends[j]);
            }
        }
        CHECK(pos == len);
        CHECK(done == count);
    }
}

static int serve(void)
{
    uint32_t program_len;
    uint8_t how[2];
    if (!read_all(&program_len, sizeof program_len) || !read_all(how, sizeof how)) {
        return 1;
    }
    uint8_t *program = malloc(program_len + 1);
    CHECK(program != NULL);
    CHECK(read_all(program, program_len));
    const struct ptk_split_config config = {
        .program = program,
        .program_len = program_len,
        .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
        .source = (enum ptk_image_source)how[0],
        .byte_units = how[1],
    };
    struct ptk_split *split;
    struct ptk_err err;
    if (ptk_split_open(&config, &split, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    free(program);

    const size_t len_max = 8 * TEXT_LEN_MAX;
    const size_t work_len = ptk_split_work_len(len_max);
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(work_len, PTK_CACHE_LINE));
    struct ptk_text_buf out = {
        .bytes = malloc(len_max),
        .align = malloc(len_max * sizeof *out.align),
        .cap = len_max,
    };
    struct ptk_span *spans = malloc((len_max + 3) * sizeof *spans);
    CHECK(memory != NULL);
    CHECK(out.bytes != NULL);
    CHECK(out.align != NULL);
    CHECK(spans != NULL);
    struct ptk_split_work *work = ptk_split_work_init(memory, len_max);

    uint32_t text_len;
    uint32_t origin;
    while (read_all(&text_len, sizeof text_len) && read_all(&origin, sizeof origin)) {
        CHECK(text_len <= TEXT_LEN_MAX);
        uint8_t *text = malloc(text_len > 0 ? text_len : 1); /* of this length: for the sanitizer */
        CHECK(text != NULL);
        CHECK(read_all(text, text_len));
        const struct ptk_split_text in = {.bytes = text, .len = text_len, .origin = origin};
        struct ptk_split_pieces pieces = {0};
        enum ptk_verdict verdict = ptk_split_run(split, work, &in, &out, &pieces);
        size_t count = verdict == PTK_VERDICT_OK ? list_pieces(&pieces, spans) : 0;
        if (ptk_split_is_scan(split)) {
            CHECK(verdict == PTK_VERDICT_OK);
            check_scan(split, text, text_len, spans, count);
        }
        write_u32(verdict);
        write_u32((uint32_t)count);
        for (size_t i = 0; i < count; i++) {
            const struct ptk_span span = spans[i];
            const struct ptk_span *align = pieces.text.align;
            const uint32_t len = span.end - span.begin;
            write_u32(len);
            write_u32(align != NULL ? align[span.begin].begin : origin + span.begin);
            write_u32(align != NULL ? align[span.end - 1].end : origin + span.end);
            CHECK(fwrite(pieces.text.bytes + span.begin, 1, len, stdout) == len);
        }
        CHECK(fflush(stdout) == 0);
        free(text);
    }
    ptk_split_close(split);
    free(spans);
    free(out.align);
    free(out.bytes);
    free(memory);
    return 0;
}

/* --- Contract -----------------------------------------------------------------------------------
 */

/* A program under construction. */
struct program {
    uint8_t bytes[4096];
    size_t len;
};

/* Adds one operation with its padding. */
static void add_op(struct program *program, unsigned kind, unsigned flags, const void *params,
                   uint32_t param_len)
{
    CHECK(program->len + 8 + param_len + 8 <= sizeof program->bytes);
    uint8_t *op = program->bytes + program->len;
    memset(op, 0, 8 + ptk_align_up(param_len, 8));
    ptk_store_u16(op, (uint16_t)kind);
    ptk_store_u16(op + 2, (uint16_t)flags);
    ptk_store_u32(op + 4, param_len);
    if (param_len > 0) {
        memcpy(op + 8, params, param_len);
    }
    program->len += 8 + ptk_align_up(param_len, 8);
}

/* Adds split_regex or split_string: behaviour, invert, pattern. */
static void add_split(struct program *program, unsigned kind, uint8_t behaviour, uint8_t invert,
                      const char *pattern)
{
    uint8_t params[1024] = {behaviour, invert};
    const uint32_t len = (uint32_t)strlen(pattern);
    CHECK(len + 8 <= sizeof params);
    ptk_store_u32(params + 4, len);
    memcpy(params + 8, pattern, len);
    add_op(program, kind, 0, params, len + 8);
}

static void add_known(struct program *program, uint8_t scanner, uint8_t behaviour, uint8_t invert)
{
    const uint8_t params[8] = {scanner, 0, behaviour, invert};
    add_op(program, PTK_OP_PRE_SPLIT_KNOWN, 0, params, sizeof params);
}

static int open_program(const struct program *program, bool byte_units, struct ptk_split **out,
                        struct ptk_err *err)
{
    const struct ptk_split_config config = {
        .program = program->bytes,
        .program_len = program->len,
        .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
        .source = PTK_IMAGE_SOURCE_TOKENIZER_JSON,
        .byte_units = byte_units,
    };
    return ptk_split_open(&config, out, err);
}

static struct ptk_split *must_open(const struct program *program, bool byte_units)
{
    struct ptk_split *split;
    struct ptk_err err;
    if (open_program(program, byte_units, &split, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return split;
}

static void must_refuse(const struct program *program, int code, const char *reason)
{
    struct ptk_split *split;
    struct ptk_err err = {0};
    int rc = open_program(program, true, &split, &err);
    if (rc != code || split != NULL || strstr(err.text, reason) == NULL) {
        fprintf(stderr, "expected %d and \"%s\", got %d: %s\n", code, reason, rc, err.text);
        abort();
    }
}

/* Every way to damage an operation is refused, and never read beyond its end. */
static void test_malformed_programs_are_refused(void)
{
    struct program good = {0};
    const uint8_t metaspace[11] = {0, 1, 0, 0, 3, 0, 0, 0, 0xE2, 0x96, 0x81};
    const uint32_t four = 4;
    add_known(&good, PTK_SPLIT_SCANNER_O200K, 1, 0);
    add_split(&good, PTK_OP_PRE_SPLIT_REGEX, 1, 0, "(?i:[a-c]|d){1,3}+$");
    add_split(&good, PTK_OP_PRE_SPLIT_STRING, 1, 0, "<s>");
    add_op(&good, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
    add_op(&good, PTK_OP_PRE_PUNCTUATION, 0, &four, sizeof four);
    add_op(&good, PTK_OP_PRE_CHAR_DELIMITER, 0, &four, sizeof four);
    add_op(&good, PTK_OP_PRE_FIXED_LENGTH, 0, &four, sizeof four);
    add_op(&good, PTK_OP_PRE_DIGITS, 1, NULL, 0);
    add_op(&good, PTK_OP_PRE_BYTE_LEVEL, 7, NULL, 0);
    ptk_split_close(must_open(&good, false));

    struct ptk_split *split;
    struct ptk_err err;
    for (size_t len = 0; len < good.len; len++) {
        uint8_t *exact = malloc(len > 0 ? len : 1); /* of this length: for the sanitizer */
        CHECK(exact != NULL);
        memcpy(exact, good.bytes, len);
        const struct ptk_split_config config = {.program = exact,
                                                .program_len = len,
                                                .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
                                                .source = PTK_IMAGE_SOURCE_TOKENIZER_JSON};
        if (ptk_split_open(&config, &split, &err) == 0) {
            CHECK(len % 8 == 0); /* cut between two operations */
            ptk_split_close(split);
        } else {
            CHECK(err.text[0] != '\0');
        }
        free(exact);
    }
    /* Flipped bits: most are refused; what is accepted must be closable. */
    for (size_t bit = 0; bit < good.len * 8; bit++) {
        struct program bad = good;
        bad.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (open_program(&bad, true, &split, &err) == 0) {
            ptk_split_close(split);
        }
    }
}

/* Each kind of refusal names its reason. */
static void test_refusals_name_the_reason(void)
{
    struct program program = {0};
    add_op(&program, 99, 0, NULL, 0);
    must_refuse(&program, -EINVAL, "undefined kind");

    program.len = 0;
    add_op(&program, PTK_OP_PRE_DIGITS, 0x8000, NULL, 0);
    must_refuse(&program, -EINVAL, "alphabet flag without byte_level");

    program.len = 0;
    add_op(&program, PTK_OP_PRE_BYTE_LEVEL, 0, NULL, 0);
    add_op(&program, PTK_OP_PRE_BYTE_LEVEL, 0x8000, NULL, 0);
    must_refuse(&program, -ENOTSUP, "in the byte-level alphabet already");

    program.len = 0;
    add_known(&program, PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL, 0, 1);
    must_refuse(&program, -EINVAL, "can only isolate");

    program.len = 0;
    add_known(&program, PTK_SPLIT_SCANNER_VALUE_COUNT, 1, 0);
    must_refuse(&program, -EINVAL, "out of range");

    const uint32_t zero = 0;
    program.len = 0;
    add_op(&program, PTK_OP_PRE_FIXED_LENGTH, 0, &zero, sizeof zero);
    must_refuse(&program, -EINVAL, "length 0");

    program.len = 0;
    for (unsigned i = 0; i < 33; i++) {
        add_op(&program, PTK_OP_PRE_WHITESPACE, 0, NULL, 0);
    }
    must_refuse(&program, -ENOTSUP, "too many operations");
}

/* What the two engines may read differently is refused with the construct's name. */
static void test_regex_refuses_what_it_cannot_translate(void)
{
    static const struct {
        const char *pattern;
        int code;
        const char *reason;
    } cases[] = {
        {"(a", -EINVAL, "closing parenthesis"},
        {"a)", -EINVAL, "opening one"},
        {"[a", -EINVAL, "closing bracket"},
        {"\\", -EINVAL, "backslash"},
        {"[z-a]", -EINVAL, "backwards"},
        {"\\p{L", -EINVAL, "closing brace"},
        {"(a)\\1", -ENOTSUP, "this escape"},
        {"(?<n>a)", -ENOTSUP, "kind of group"},
        {"(?i)a", -ENOTSUP, "kind of group"},
        {"(?x: a)", -ENOTSUP, "kind of group"},
        {"a{,3}", -ENOTSUP, "form of a repetition"},
        {"a{2,1}", -ENOTSUP, "form of a repetition"},
        {"a{1001}", -ENOTSUP, "form of a repetition"},
        {"a{2}?", -ENOTSUP, "question mark"},
        {"a**", -ENOTSUP, "repetition of a repetition"},
        {"*a", -ENOTSUP, "repetition of this"},
        {"(?=a)*", -ENOTSUP, "repetition of this"},
        {"^*", -ENOTSUP, "repetition of this"},
        {"(a*)*", -ENOTSUP, "may be empty"},
        {"(a|b*)+", -ENOTSUP, "may be empty"},
        {"(?i:ss)", -ENOTSUP, "ligature"},
        {"(?i:affair)", -ENOTSUP, "ligature"},
        {"(?i:\xC3\xA9)", -ENOTSUP, "beyond ASCII"},
        {"(?i:\\p{Lu})", -ENOTSUP, "property under"},
        {"\\p{Nonsense}", -ENOTSUP, "this property"},
        {"\\pL", -ENOTSUP, "without braces"},
        {"[[:cntrl:]]", -ENOTSUP, "this POSIX bracket"},
        {"[\\w-z]", -ENOTSUP, "hyphen"},
        {"[a-\\w]", -ENOTSUP, "does not end in a character"},
        {"[]", -ENOTSUP, "empty set"},
        {"[&&a]", -ENOTSUP, "without a set on its left"},
        {"a]", -ENOTSUP, "not escaped"},
        {"\\Ga", -ENOTSUP, "this escape"},
        {"(?<=a+)b", -ENOTSUP, "PCRE2 refuses it"},
        {"\\xFF", -ENOTSUP, "no character"},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(cases); i++) {
        struct program program = {0};
        add_split(&program, PTK_OP_PRE_SPLIT_REGEX, 1, 0, cases[i].pattern);
        must_refuse(&program, cases[i].code, cases[i].reason);
    }
}

/* Which programs are scans decides how an encode runs them. */
static void test_scans_are_recognised(void)
{
    static const struct {
        uint8_t scanner;
        uint8_t behaviour;
        uint8_t invert;
        bool is_scan;
    } cases[] = {
        {PTK_SPLIT_SCANNER_LLAMA3, 1, 0, true},
        {PTK_SPLIT_SCANNER_LLAMA3, 0, 1, true}, /* cl100k's tokenizer.json */
        {PTK_SPLIT_SCANNER_LLAMA3, 0, 0, false},
        {PTK_SPLIT_SCANNER_LLAMA3, 4, 0, false},
        {PTK_SPLIT_SCANNER_DEEPSEEK_V3, 1, 0, false},
        {PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL, 1, 0, true},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(cases); i++) {
        struct program program = {0};
        add_known(&program, cases[i].scanner, cases[i].behaviour, cases[i].invert);
        add_op(&program, PTK_OP_PRE_BYTE_LEVEL, 4, NULL, 0);
        struct ptk_split *split = must_open(&program, true);
        CHECK(ptk_split_is_scan(split) == cases[i].is_scan);
        CHECK(!ptk_split_changes_text(split));
        ptk_split_close(split);
        split = must_open(&program, false); /* now the mapping is part of the program */
        CHECK(!ptk_split_is_scan(split));
        CHECK(ptk_split_changes_text(split));
        ptk_split_close(split);
    }
    struct program program = {0};
    struct ptk_split *split = must_open(&program, true);
    CHECK(ptk_split_is_scan(split)); /* no pre-tokenizer */
    ptk_split_close(split);

    add_op(&program, PTK_OP_PRE_DIGITS, 1, NULL, 0);
    add_op(&program, PTK_OP_PRE_BYTE_LEVEL, 2, NULL, 0);
    split = must_open(&program, true);
    CHECK(ptk_split_is_scan(split)); /* StarCoder, Command R */
    ptk_split_close(split);

    const uint8_t first[11] = {2, 0, 0, 0, 3, 0, 0, 0, 0xE2, 0x96, 0x81};
    program.len = 0;
    add_op(&program, PTK_OP_PRE_METASPACE, 0, first, sizeof first);
    split = must_open(&program, true);
    CHECK(!ptk_split_needs_align(split));
    ptk_split_close(split);
    program.len = 0;
    add_op(&program, PTK_OP_PRE_WHITESPACE_SPLIT, 0, NULL, 0);
    add_op(&program, PTK_OP_PRE_METASPACE, 0, first, sizeof first);
    split = must_open(&program, true);
    CHECK(ptk_split_needs_align(split));
    ptk_split_close(split);
}

/* A text that fits is run; one byte less of room and the verdict says so. */
static void test_limits_are_verdicts(void)
{
    static const uint8_t text[] = "a b c d";
    const size_t len = sizeof text - 1;
    const size_t changed_len = len + 2 * 3 + 3; /* three spaces become marks, one goes before */
    const uint8_t always[11] = {0, 1, 0, 0, 3, 0, 0, 0, 0xE2, 0x96, 0x81};
    struct program program = {0};
    add_op(&program, PTK_OP_PRE_METASPACE, 0, always, sizeof always);
    struct ptk_split *split = must_open(&program, false);
    const struct ptk_split_text in = {.bytes = text, .len = len};
    uint8_t bytes[64];
    for (size_t room = 0; room < 40; room++) {
        for (size_t cap = 0; cap < 40; cap++) {
            void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_split_work_len(room));
            CHECK(memory != NULL);
            struct ptk_split_work *work = ptk_split_work_init(memory, room);
            struct ptk_text_buf out = {.bytes = bytes, .cap = cap};
            struct ptk_split_pieces pieces;
            enum ptk_verdict verdict = ptk_split_run(split, work, &in, &out, &pieces);
            bool fits = room >= changed_len && cap >= changed_len;
            CHECK(verdict == (fits ? PTK_VERDICT_OK : PTK_VERDICT_TEXT_TOO_LONG));
            free(memory);
        }
    }
    ptk_split_close(split);
}

/* A pattern that takes quadratic or exponential time is given up, soon, and with a verdict. */
static void test_hostile_texts_are_given_up(void)
{
    enum { LEN = 1 << 18 };
    /* The last alternative keeps the engine from looking for one byte that must follow. */
    static const char *const patterns[] = {".a+[bc]|cc", "(?:a|aa)+[bc]|cc", "(?:a+,?)+[bc]|cc"};
    uint8_t *text = malloc(LEN);
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_split_work_len(LEN));
    CHECK(text != NULL);
    CHECK(memory != NULL);
    memset(text, 'a', LEN);
    struct ptk_split_work *work = ptk_split_work_init(memory, LEN);
    for (size_t i = 0; i < PTK_ARRAY_LEN(patterns); i++) {
        struct program program = {0};
        add_split(&program, PTK_OP_PRE_SPLIT_REGEX, 1, 0, patterns[i]);
        struct ptk_split *split = must_open(&program, true);
        const struct ptk_split_text in = {.bytes = text, .len = LEN};
        struct ptk_split_pieces pieces;
        if (ptk_split_run(split, work, &in, NULL, &pieces) != PTK_VERDICT_UNSUPPORTED) {
            fprintf(stderr, "%s was not given up\n", patterns[i]);
            abort();
        }
        /* The work is as good as before. */
        const struct ptk_split_text small = {.bytes = (const uint8_t *)"aab", .len = 3};
        CHECK(ptk_split_run(split, work, &small, NULL, &pieces) == PTK_VERDICT_OK);
        struct ptk_span span;
        CHECK(ptk_split_next(&pieces, &span, 1) == 1);
        CHECK(span.begin == 0);
        CHECK(span.end == 3);
        ptk_split_close(split);
    }
    free(memory);
    free(text);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--serve") == 0) {
        return serve();
    }
    test_malformed_programs_are_refused();
    test_refusals_name_the_reason();
    test_regex_refuses_what_it_cannot_translate();
    test_scans_are_recognised();
    test_limits_are_verdicts();
    test_hostile_texts_are_given_up();
    return 0;
}
