/*
 * Fuzzes the door for normalizer programs, and normalizers on any text.
 *
 * Input: one byte, then a u16 and that many bytes. With the byte's bit 0 they are a program as an
 * image holds it; else each of them chooses an operation that is well-formed. The rest is the text,
 * with U+FFFD where it is not valid. What must hold: no crash, no access out of bounds, no refusal
 * without a sentence, valid UTF-8, the same text with and without alignment, one range of original
 * bytes per character (sentencepiece: per byte), and text that is the section itself unless
 * something changed.
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_norm.h"
#include "text/ptk_utf8.h"

#define OPS_MAX      16u
#define PROGRAM_CAP  (OPS_MAX * 72u)
#define TEXT_LEN_MAX 4096u
#define ORIGIN       5u

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const strings[] = {" ", "\u2581", "", "a", "aa", "\u0301", "e\u0301x"};
static const char *const patterns[] = {"\\s+", "\\p{M}", "a*", "(?i:ab)|c$", "[^\\p{L}]"};

static void put_string(uint8_t *dst, size_t *len, const char *string)
{
    const size_t string_len = strlen(string);
    ptk_store_u32(dst + *len, (uint32_t)string_len);
    memcpy(dst + *len + 4, string, string_len);
    *len += 4 + string_len;
}

/* Symbols that begin alike, hold spaces and end in them; none for 0. */
static void put_symbols(uint8_t *dst, size_t *len, unsigned choice)
{
    static const char *const symbols[] = {" a", "a", "a ", "ab"};
    const size_t begin = *len;
    *len += 4;
    for (size_t i = 0; choice != 0 && i < PTK_ARRAY_LEN(symbols); i++) {
        put_string(dst, len, symbols[i]);
    }
    ptk_store_u32(dst + begin, (uint32_t)(*len - begin - 4));
}

/* Appends the operation that a byte chooses; its upper bits choose flags and strings. */
static size_t put_op(uint8_t *dst, uint8_t choice, bool is_first)
{
    struct ptk_image_op header = {.kind = (uint16_t)(choice % (PTK_OP_NORM_VALUE_COUNT - 1) + 1)};
    const uint8_t more = choice / (PTK_OP_NORM_VALUE_COUNT - 1);
    uint8_t params[64] = {0};
    size_t len = 0;
    switch (header.kind) {
    case PTK_OP_NORM_STRIP:
        header.flags = more % 4;
        break;
    case PTK_OP_NORM_BERT:
        header.flags = more % 16;
        break;
    case PTK_OP_NORM_PREPEND:
        put_string(params, &len, strings[more % PTK_ARRAY_LEN(strings)]);
        break;
    case PTK_OP_NORM_REPLACE_STRING:
        put_string(params, &len, strings[more % PTK_ARRAY_LEN(strings)]);
        put_string(params, &len, strings[(more + 1u) % PTK_ARRAY_LEN(strings)]);
        break;
    case PTK_OP_NORM_REPLACE_REGEX:
        put_string(params, &len, patterns[more % PTK_ARRAY_LEN(patterns)]);
        put_string(params, &len, strings[more % PTK_ARRAY_LEN(strings)]);
        break;
    case PTK_OP_NORM_PRECOMPILED:
        header.kind = PTK_OP_NORM_NFKC; /* Maps come as raw programs. */
        break;
    case PTK_OP_NORM_SENTENCEPIECE:
        if (!is_first) {
            header.kind = PTK_OP_NORM_NFD;
            break;
        }
        header.flags = more % 16;
        put_string(params, &len, "");
        put_symbols(params, &len, more / 16);
        break;
    default:
        break;
    }
    header.param_len = (uint32_t)len;
    memcpy(dst, &header, sizeof header);
    memcpy(dst + sizeof header, params, ptk_align_up(len, 8));
    return sizeof header + ptk_align_up(len, 8);
}

static struct ptk_norm_work *work_of(bool align)
{
    static struct ptk_norm_work *works[2];
    if (works[align] == NULL) {
        const struct ptk_norm_limits limits = {.text_len_max = TEXT_LEN_MAX, .align = align};
        const size_t len = ptk_align_up(ptk_norm_work_len(&limits), PTK_CACHE_LINE);
        void *memory = aligned_alloc(PTK_CACHE_LINE, len);
        CHECK(memory != NULL);
        works[align] = ptk_norm_work_init(memory, &limits);
    }
    return works[align];
}

static void check_result(const struct ptk_norm_section *section,
                         const struct ptk_split_text *result, bool by_byte)
{
    CHECK(result->len <= TEXT_LEN_MAX);
    CHECK(ptk_utf8_valid(result->bytes, result->len));
    if (result->align == NULL) {
        return;
    }
    CHECK(section->align);
    for (size_t pos = 0; pos < result->len;) {
        const struct ptk_span span = result->align[pos];
        const size_t len = ptk_utf8_lead_len(result->bytes[pos]);
        CHECK(span.begin >= ORIGIN);
        CHECK(span.begin <= span.end);
        CHECK(span.end <= ORIGIN + section->len);
        for (size_t i = 1; i < len && !by_byte; i++) {
            CHECK(memcmp(&result->align[pos + i], &span, sizeof span) == 0);
        }
        pos += len;
    }
}

/* `by_byte`: a character has a range for each of its bytes, as sentencepiece's normalizer gives. */
static void run(const struct ptk_norm *norm, const uint8_t *text, size_t len, bool by_byte)
{
    struct ptk_norm_section section = {.bytes = text, .len = len, .origin = ORIGIN};
    struct ptk_split_text plain;
    struct ptk_split_text aligned;
    const enum ptk_verdict verdict = ptk_norm_run(norm, work_of(false), &section, &plain);
    section.align = true;
    CHECK(ptk_norm_run(norm, work_of(true), &section, &aligned) == verdict);
    if (verdict != PTK_VERDICT_OK) {
        CHECK(verdict == PTK_VERDICT_TEXT_TOO_LONG || verdict == PTK_VERDICT_UNSUPPORTED);
        return;
    }
    check_result(&section, &plain, by_byte);
    check_result(&section, &aligned, by_byte);
    CHECK(plain.len == aligned.len);
    CHECK(memcmp(plain.bytes, aligned.bytes, plain.len) == 0);
    if (ptk_norm_is_empty(norm)) {
        CHECK(plain.bytes == text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t built[PROGRAM_CAP];
    static uint8_t text[3 * TEXT_LEN_MAX];
    if (size < 3) {
        return 0;
    }
    size_t program_len = ptk_min_size(ptk_load_u16(data + 1), size - 3);
    const uint8_t *program = data + 3;
    const uint8_t *rest = program + program_len;
    const size_t rest_len = ptk_min_size(size - 3 - program_len, TEXT_LEN_MAX);
    if ((data[0] & 1) == 0) {
        size_t len = 0;
        for (size_t i = 0; i < ptk_min_size(program_len, OPS_MAX); i++) {
            len += put_op(built + len, program[i], i == 0);
        }
        program = built;
        program_len = len;
    }
    const struct ptk_norm_config config = {.program = program,
                                           .program_len = program_len,
                                           .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23};
    struct ptk_norm *norm = NULL;
    struct ptk_err err = {0};
    if (ptk_norm_open(&config, &norm, &err) != 0) {
        CHECK((data[0] & 1) != 0);
        CHECK(err.text[0] != 0);
        return 0;
    }
    size_t text_len;
    CHECK(ptk_utf8_replace(rest, rest_len, text, sizeof text, &text_len));
    run(norm, text, text_len,
        program_len >= 2 && ptk_load_u16(program) == PTK_OP_NORM_SENTENCEPIECE);
    ptk_norm_close(norm);
    return 0;
}
