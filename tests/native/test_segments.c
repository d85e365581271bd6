/*
 * Segments of an original text: found in blocks as they are found character by character, and
 * independent of each other: what a pipeline makes of a text is what it makes of its segments.
 *
 * Random texts made of what the rules tell apart; PTK_TEST_SEED chooses them, PTK_TEST_TEXTS says
 * how many. Programs with a charsmap are held to the reference by tests/golden/families.py.
 */
#include "text/ptk_segments.c"

#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_split.h"

#define PROGRAM_CAP   256u
#define TEXT_CAP      1024u
#define SPANS_MAX     2048u
#define TEXTS_DEFAULT 20000u
#define SEED_DEFAULT  20240229u

static uint64_t random_state;

static uint32_t random_below(uint32_t end)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 33) % end);
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? strtoull(value, NULL, 10) : otherwise;
}

/* ---- programs ------------------------------------------------------------------------------- */

struct program {
    uint8_t bytes[PROGRAM_CAP];
    size_t len;
};

static void add_op(struct program *program, uint16_t kind, uint16_t flags, const void *params,
                   size_t params_len)
{
    const struct ptk_image_op header = {
        .kind = kind, .flags = flags, .param_len = (uint32_t)params_len};
    const size_t op_len = sizeof header + ptk_align_up(params_len, 8);
    PTK_ASSERT(program->len + op_len <= PROGRAM_CAP);
    memcpy(program->bytes + program->len, &header, sizeof header);
    if (params_len > 0) {
        memcpy(program->bytes + program->len + sizeof header, params, params_len);
    }
    program->len += op_len;
}

static const uint8_t metaspace[] = {0, 1, 0, 0, 3, 0, 0, 0, 0xe2, 0x96, 0x81};
static const uint8_t first_metaspace[] = {2, 1, 0, 0, 3, 0, 0, 0, 0xe2, 0x96, 0x81};
static const char one_space[] = "\x05\0\0\0 {2,}\x01\0\0\0 ";
static const char quotes[] = "\x02\0\0\0''\x01\0\0\0\"";
static const char spaced[] = "\x03\0\0\0a b\x01\0\0\0c";

/* A pipeline: the two programs and what runs them. */
struct pipeline {
    struct program norm_program;
    struct program pre_program;
    struct ptk_norm *norm;
    struct ptk_split *split;
    struct ptk_segments *segments;
};

static void open_pipeline(struct pipeline *pipeline)
{
    struct ptk_err err;
    const struct ptk_norm_config norm = {.program = pipeline->norm_program.bytes,
                                         .program_len = pipeline->norm_program.len,
                                         .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23};
    const struct ptk_split_config split = {.program = pipeline->pre_program.bytes,
                                           .program_len = pipeline->pre_program.len,
                                           .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
                                           .source = PTK_IMAGE_SOURCE_TOKENIZER_JSON};
    PTK_ASSERT(ptk_norm_open(&norm, &pipeline->norm, &err) == 0);
    PTK_ASSERT(ptk_split_open(&split, &pipeline->split, &err) == 0);
    const struct ptk_segments_config config = {
        .norm_program = pipeline->norm_program.bytes,
        .norm_program_len = pipeline->norm_program.len,
        .pre_program = pipeline->pre_program.bytes,
        .pre_program_len = pipeline->pre_program.len,
        .norm = pipeline->norm,
        .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
    };
    PTK_ASSERT(ptk_segments_open(&config, &pipeline->segments, &err) == 0);
}

static void close_pipeline(struct pipeline *pipeline)
{
    ptk_segments_close(pipeline->segments);
    ptk_split_close(pipeline->split);
    ptk_norm_close(pipeline->norm);
}

/* Memory for runs. */
struct memory {
    struct ptk_norm_work *norm;
    struct ptk_split_work *split;
    uint8_t *out;
    void *owned[3];
};

#define ROOM 8192u

static struct memory memory_make(void)
{
    const struct ptk_norm_limits limits = {.text_len_max = ROOM};
    struct memory memory;
    memory.owned[0] = aligned_alloc(64, ptk_align_up(ptk_norm_work_len(&limits), 64));
    memory.owned[1] = aligned_alloc(64, ptk_align_up(ptk_split_work_len(ROOM), 64));
    memory.owned[2] = malloc(ROOM);
    memory.norm = ptk_norm_work_init(memory.owned[0], &limits);
    memory.split = ptk_split_work_init(memory.owned[1], ROOM);
    memory.out = memory.owned[2];
    return memory;
}

/* Appends the pieces of a text to `pieces`, each behind its length. */
static size_t put_pieces(const struct pipeline *pipeline, const struct memory *memory,
                         const uint8_t *text, size_t len, uint8_t *pieces, size_t at)
{
    const struct ptk_norm_section section = {.bytes = text, .len = len};
    struct ptk_split_text normalized;
    PTK_ASSERT(ptk_norm_run(pipeline->norm, memory->norm, &section, &normalized) ==
               PTK_VERDICT_OK);
    if (normalized.len == 0) {
        return at;
    }
    struct ptk_text_buf out = {.bytes = memory->out, .cap = ROOM};
    struct ptk_split_pieces result;
    PTK_ASSERT(ptk_split_run(pipeline->split, memory->split, &normalized, &out, &result) ==
               PTK_VERDICT_OK);
    struct ptk_span spans[64];
    size_t count;
    while ((count = ptk_split_next(&result, spans, PTK_ARRAY_LEN(spans))) > 0) {
        for (size_t i = 0; i < count; i++) {
            const size_t piece_len = spans[i].end - spans[i].begin;
            PTK_ASSERT(at + 2 + piece_len <= 4 * ROOM);
            ptk_store_u16(pieces + at, (uint16_t)piece_len);
            memcpy(pieces + at + 2, result.text.bytes + spans[i].begin, piece_len);
            at += 2 + piece_len;
        }
    }
    return at;
}

/* ---- texts ---------------------------------------------------------------------------------- */

static const char *const parts[] = {
    " ",      " ",      "\n",     "\t",     "\r\n",   "\r",     "a",      "B",
    "word",   "Word",   ",",      "''",     "#",      "7",      "\x01",   "\x7f",
    "\u00a0", "\u3000", "\u2003", "\u0301", "\u0323", "\u200d", "\u0903", "\u0600",
    "\u06dd", "\u4e2d", "\uf900", "\u3002", "\u00e9", "\u0130", "\u226e", "\u037e",
    "\u0430", "\u0905", "\ufe0f", "\u00a8", "\u2581", "\u1100", "\u1161", "\uac00",
    "\U0001f600", "\U0001f3fb", "\U00020000", "\U000110bd", "\ufdfa", "\xc2\x85", "\u00ad", "  ",
};

static size_t make_text(uint8_t *text)
{
    const uint32_t count = random_below(random_below(8) == 0 ? 200 : 12);
    const bool few = random_below(2) == 0; /* Mostly letters and spaces. */
    size_t len = 0;
    for (uint32_t i = 0; i < count; i++) {
        const bool plain = few && random_below(3) > 0;
        const char *part = parts[random_below(plain ? 10 : (uint32_t)PTK_ARRAY_LEN(parts))];
        memcpy(text + len, part, strlen(part));
        len += strlen(part);
    }
    PTK_ASSERT(len <= TEXT_CAP);
    return len;
}

/* ---- the two properties --------------------------------------------------------------------- */

/* One character of a text as the definition sees it. */
struct seen {
    size_t at;
    uint8_t class;
    bool is_wall;
};

/* The definition: walls character by character, then what lies between them. */
static size_t naive_segments(const struct ptk_segments *segments, const uint8_t *text, size_t len,
                             struct ptk_span *spans)
{
    static struct seen seen[TEXT_CAP + 1];
    size_t count = 0;
    for (size_t at = 0; at < len;) {
        uint32_t width;
        const uint8_t class = class_of(segments, ptk_utf8_decode(text + at, &width));
        seen[count++] = (struct seen){at, class, (class & CLASS_SPACE) != 0};
        at += width;
    }
    seen[count].at = len;
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && text[seen[i].at] >= 0x80 && (seen[i].class & CLASS_EXTENDS) != 0) {
            seen[i - 1].is_wall = false;
        }
    }
    bool joins = false;
    bool closed = false;
    for (size_t i = 0; i < count; i++) {
        closed = closed || (seen[i].class & CLASS_CLOSES) != 0;
        seen[i].is_wall = seen[i].is_wall && !joins && !closed;
        joins = (seen[i].class & CLASS_OPEN) != 0 || (joins && (seen[i].class & CLASS_SPACE) != 0);
        joins = joins && !seen[i].is_wall;
    }
    size_t span_count = 0;
    const bool is_marked = segments->shape == SHAPE_MARKED;
    for (size_t i = 0; i < count; i++) {
        const bool behind = i > 0 && (seen[i - 1].is_wall || (seen[i - 1].class & CLASS_ALONE));
        const bool is_first = i == 0 || behind;
        const bool is_alone = (seen[i].class & CLASS_ALONE) != 0;
        const bool begins = is_marked
                                ? i == 0 || (seen[i].is_wall && !seen[i - 1].is_wall)
                                : !seen[i].is_wall && (is_first || is_alone);
        if (begins) {
            spans[span_count++].begin = (uint32_t)seen[i].at;
        }
        if (span_count > 0 && (is_marked || !seen[i].is_wall)) {
            spans[span_count - 1].end = (uint32_t)seen[i + 1].at;
        }
    }
    return span_count;
}

static size_t read_segments(const struct ptk_segments *segments, const uint8_t *text, size_t len,
                            struct ptk_span *spans)
{
    struct ptk_segments_cursor cursor = {.pos = 0};
    struct ptk_span chunk[PTK_SEGMENTS_CAP_MIN];
    size_t total = 0;
    size_t count;
    while ((count = ptk_segments_next(segments, &cursor, text, len, chunk,
                                      PTK_ARRAY_LEN(chunk))) > 0) {
        PTK_ASSERT(total + count <= SPANS_MAX);
        memcpy(spans + total, chunk, count * sizeof *chunk);
        total += count;
    }
    return total;
}

static void show(const char *what, const uint8_t *text, size_t len)
{
    printf("%s:", what);
    for (size_t i = 0; i < len; i++) {
        printf(" %02x", text[i]);
    }
    printf("\n");
}

static size_t short_count; /* segments whose piece was made the short way */

/* Blocks find what the definition finds, and the segments' pieces are the text's. */
static void test_text(const struct pipeline *pipeline, const struct memory *memory,
                      const uint8_t *text, size_t len)
{
    static struct ptk_span expected[SPANS_MAX];
    static struct ptk_span found[SPANS_MAX];
    static uint8_t whole[4 * ROOM];
    static uint8_t joined[4 * ROOM];
    const size_t expected_count = naive_segments(pipeline->segments, text, len, expected);
    const size_t count = read_segments(pipeline->segments, text, len, found);
    if (count != expected_count || memcmp(expected, found, count * sizeof *found) != 0) {
        show("segments differ from the definition", text, len);
        for (size_t i = 0; i < count || i < expected_count; i++) {
            printf("%u-%u, expected %u-%u\n", found[i].begin, found[i].end, expected[i].begin,
                   expected[i].end);
        }
        exit(1);
    }
    const size_t whole_len = put_pieces(pipeline, memory, text, len, whole, 0);
    size_t joined_len = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *segment = text + found[i].begin;
        const size_t segment_len = found[i].end - found[i].begin;
        const size_t before = joined_len;
        joined_len = put_pieces(pipeline, memory, segment, segment_len, joined, joined_len);
        uint8_t piece[256];
        const size_t piece_len =
            ptk_segments_piece(pipeline->segments, segment, segment_len, piece, sizeof piece);
        if (piece_len > 0 && (joined_len != before + 2 + piece_len ||
                              memcmp(joined + before + 2, piece, piece_len) != 0)) {
            show("the short way to the piece differs", segment, segment_len);
            exit(1);
        }
        short_count += piece_len > 0;
    }
    if (joined_len != whole_len || memcmp(joined, whole, whole_len) != 0) {
        show("the pieces of the segments are not those of the text", text, len);
        exit(1);
    }
}

static void test_pipeline(struct pipeline *pipeline, size_t texts)
{
    struct memory memory = memory_make();
    open_pipeline(pipeline);
    PTK_ASSERT(pipeline->segments != NULL);
    short_count = 0;
    for (size_t i = 0; i < texts; i++) {
        uint8_t text[TEXT_CAP];
        const size_t len = make_text(text);
        /* Of its own, so that a sanitizer sees every byte too far. */
        uint8_t *copy = malloc(len + 1);
        memcpy(copy, text, len);
        uint8_t *exact = realloc(copy, len > 0 ? len : 1);
        test_text(pipeline, &memory, exact, len);
        free(exact);
    }
    PTK_ASSERT(short_count > texts / 4 || !pipeline->segments->has_pieces);
    close_pipeline(pipeline);
    for (size_t i = 0; i < PTK_ARRAY_LEN(memory.owned); i++) {
        free(memory.owned[i]);
    }
}

/* BertNormalizer in all its forms, and without. */
static void test_bert_walls_are_walls(size_t texts)
{
    for (uint16_t flags = 0; flags <= 16; flags++) {
        struct pipeline pipeline = {.norm = NULL};
        if (flags < 16) {
            add_op(&pipeline.norm_program, PTK_OP_NORM_BERT, flags, NULL, 0);
        }
        add_op(&pipeline.pre_program, PTK_OP_PRE_BERT, 0, NULL, 0);
        test_pipeline(&pipeline, texts / 8);
    }
}

static void test_words_are_apart(size_t texts)
{
    for (unsigned which = 0; which < 3; which++) {
        struct pipeline pipeline = {.norm = NULL};
        if (which > 0) {
            add_op(&pipeline.norm_program, PTK_OP_NORM_REPLACE_STRING, 0, quotes,
                   sizeof quotes - 1);
            add_op(&pipeline.norm_program, PTK_OP_NORM_NFKD, 0, NULL, 0);
            add_op(&pipeline.norm_program, PTK_OP_NORM_STRIP_ACCENTS, 0, NULL, 0);
        }
        add_op(&pipeline.pre_program,
               which == 2 ? PTK_OP_PRE_WHITESPACE : PTK_OP_PRE_WHITESPACE_SPLIT, 0, NULL, 0);
        add_op(&pipeline.pre_program, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
        test_pipeline(&pipeline, texts);
    }
}

static void test_marked_words_begin_with_their_space(size_t texts)
{
    struct pipeline pipeline = {.norm = NULL};
    add_op(&pipeline.norm_program, PTK_OP_NORM_NMT, 0, NULL, 0);
    add_op(&pipeline.norm_program, PTK_OP_NORM_NFKC, 0, NULL, 0);
    add_op(&pipeline.norm_program, PTK_OP_NORM_REPLACE_REGEX, 0, one_space, sizeof one_space - 1);
    add_op(&pipeline.pre_program, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
    test_pipeline(&pipeline, texts);

    struct pipeline strips = {.norm = NULL};
    add_op(&strips.norm_program, PTK_OP_NORM_NMT, 0, NULL, 0);
    add_op(&strips.norm_program, PTK_OP_NORM_STRIP, 2, NULL, 0);
    add_op(&strips.norm_program, PTK_OP_NORM_REPLACE_REGEX, 0, one_space, sizeof one_space - 1);
    add_op(&strips.pre_program, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
    test_pipeline(&strips, texts);
}

/* Programs that look across white space, or at where a section begins, have no segments. */
static void test_other_programs_have_none(void)
{
    struct pipeline pipelines[6] = {0};
    add_op(&pipelines[0].pre_program, PTK_OP_PRE_WHITESPACE_SPLIT, 0, NULL, 0);
    add_op(&pipelines[0].pre_program, PTK_OP_PRE_METASPACE, 0, first_metaspace,
           sizeof first_metaspace);
    add_op(&pipelines[1].norm_program, PTK_OP_NORM_REPLACE_STRING, 0, spaced, sizeof spaced - 1);
    add_op(&pipelines[1].pre_program, PTK_OP_PRE_WHITESPACE_SPLIT, 0, NULL, 0);
    add_op(&pipelines[2].norm_program, PTK_OP_NORM_NFC, 0, NULL, 0);
    add_op(&pipelines[2].pre_program, PTK_OP_PRE_BERT, 0, NULL, 0);
    add_op(&pipelines[3].norm_program, PTK_OP_NORM_NFKC, 0, NULL, 0);
    add_op(&pipelines[3].pre_program, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
    add_op(&pipelines[4].norm_program, PTK_OP_NORM_STRIP, 1, NULL, 0);
    add_op(&pipelines[4].norm_program, PTK_OP_NORM_REPLACE_REGEX, 0, one_space,
           sizeof one_space - 1);
    add_op(&pipelines[4].pre_program, PTK_OP_PRE_METASPACE, 0, metaspace, sizeof metaspace);
    for (size_t i = 0; i < PTK_ARRAY_LEN(pipelines); i++) { /* The last one has no programs. */
        open_pipeline(&pipelines[i]);
        PTK_ASSERT(pipelines[i].segments == NULL);
        close_pipeline(&pipelines[i]);
    }
}

int main(void)
{
    const uint64_t seed = setting("PTK_TEST_SEED", SEED_DEFAULT);
    const size_t texts = setting("PTK_TEST_TEXTS", TEXTS_DEFAULT);
    random_state = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    printf("%zu texts, seed %llu\n", texts, (unsigned long long)seed);
    test_bert_walls_are_walls(texts);
    test_words_are_apart(texts);
    test_marked_words_begin_with_their_space(texts);
    test_other_programs_have_none();
    return 0;
}
