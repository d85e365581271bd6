/*
 * Finds segments in blocks of 64 bytes: classes of ASCII by shuffles, other characters by table,
 * then boundaries by shifts of bit masks; see ptk_segments.h.
 */
#include "text/ptk_segments.h"

#include <errno.h>
#include <stdlib.h>
#include <tmmintrin.h>

#include "text/ptk_unicode.h"
#include "text/ptk_utf8.h"

#define BLOCK_LEN 64u

/* Characters from here on are classified when they are met: rare ideographs, mostly. */
#define TABLE_END 0x20000u

/* What a character does to the segments around it; 0: it is part of one. */
enum {
    CLASS_SPACE = 1 << 0,   /* white space that is a wall */
    CLASS_ALONE = 1 << 1,   /* a segment of its own */
    CLASS_EXTENDS = 1 << 2, /* white space just before it is no wall */
    CLASS_OPEN = 1 << 3,    /* white space just behind it is no wall */
    CLASS_CLOSES = 1 << 4,  /* no wall is known behind it */
};

enum shape {
    SHAPE_BERT = 1,
    SHAPE_WORDS = 2,
    SHAPE_MARKED = 3,
};

struct ptk_segments {
    const struct ptk_unicode *unicode;
    enum shape shape;
    uint64_t space_mask; /* SHAPE_BERT: class bits of a profile */
    uint64_t alone_mask;
    uint64_t word_mask; /* ... that go before the other two */
    /* Per class and low half of an ASCII byte: a bit for each high half that makes one of it. */
    _Alignas(16) uint8_t space_by_low[16];
    _Alignas(16) uint8_t alone_by_low[16];
    _Alignas(16) uint8_t open_by_low[16];
    uint8_t classes[TABLE_END];
};

/* ---- the shape of the programs -------------------------------------------------------------- */

/* One operation of a program that was verified by the parts that run it. */
struct op {
    uint16_t kind;
    uint16_t flags;
    const uint8_t *params;
    size_t params_len;
};

static bool next_op(const uint8_t *program, size_t len, size_t *pos, struct op *op)
{
    if (*pos >= len) {
        return false;
    }
    struct ptk_image_op header;
    PTK_ASSERT(len - *pos >= sizeof header);
    memcpy(&header, program + *pos, sizeof header);
    *op = (struct op){header.kind, header.flags, program + *pos + sizeof header, header.param_len};
    *pos += sizeof header + ptk_align_up(header.param_len, 8);
    return true;
}

/* What the normalizer does, as far as it matters here. */
struct norm_shape {
    size_t op_count;
    bool is_bert; /* one BertNormalizer */
    uint16_t bert_flags;
    bool is_plain;       /* no operation that could look across white space or at the ends */
    bool maps;           /* a charsmap, as the last operation but for runs of spaces */
    bool changes_before; /* forms or accents before the charsmap */
    bool removes;        /* Nmt may take characters away, and what they stood before follows */
    bool joins_spaces;   /* runs of spaces become one, as the last operation */
    bool strips_right;
};

enum {
    BERT_CLEAN_TEXT = 1 << 0, /* flags of op_norm.bert */
    BERT_HANDLE_CHINESE = 1 << 1,
    STRIP_LEFT = 1 << 0, /* flags of op_norm.strip */
};

/* Whether the first STRING parameter is visible ASCII and not empty. */
static bool is_visible_pattern(const struct op *op)
{
    const size_t len = op->params_len >= 4 ? ptk_load_u32(op->params) : 0;
    for (size_t i = 0; i < len; i++) {
        if (op->params[4 + i] <= ' ' || op->params[4 + i] > '~') {
            return false;
        }
    }
    return len > 0;
}

/* Whether the content that replaces a pattern is visible ASCII, too. */
static bool is_visible_content(const struct op *op)
{
    const size_t pattern_len = ptk_load_u32(op->params);
    const struct op content = {.params = op->params + 4 + pattern_len,
                               .params_len = op->params_len - 4 - pattern_len};
    return is_visible_pattern(&content);
}

/* Replacing " {2,}" by a space or by U+2581. */
static bool joins_spaces(const struct op *op)
{
    static const uint8_t spaces[] = "\x05\0\0\0 {2,}\x01\0\0\0 ";
    static const uint8_t marks[] = "\x05\0\0\0 {2,}\x03\0\0\0\xe2\x96\x81";
    return (op->params_len == sizeof spaces - 1 &&
            memcmp(op->params, spaces, sizeof spaces - 1) == 0) ||
           (op->params_len == sizeof marks - 1 && memcmp(op->params, marks, sizeof marks - 1) == 0);
}

static struct norm_shape norm_shape(const struct ptk_segments_config *config)
{
    struct norm_shape shape = {.is_plain = true};
    struct op op;
    size_t pos = 0;
    while (next_op(config->norm_program, config->norm_program_len, &pos, &op)) {
        const bool is_last_so_far = !shape.maps && !shape.joins_spaces && !shape.strips_right;
        shape.op_count++;
        switch (op.kind) {
        case PTK_OP_NORM_BERT:
            shape.is_bert = shape.op_count == 1;
            shape.bert_flags = op.flags;
            break;
        case PTK_OP_NORM_NFC:
        case PTK_OP_NORM_NFD:
        case PTK_OP_NORM_NFKC:
        case PTK_OP_NORM_NFKD:
        case PTK_OP_NORM_STRIP_ACCENTS:
            shape.changes_before = true;
            shape.is_plain &= is_last_so_far;
            break;
        case PTK_OP_NORM_NMT:
            shape.removes = true;
            shape.is_plain &= is_last_so_far;
            break;
        case PTK_OP_NORM_REPLACE_STRING:
            shape.is_plain &= is_last_so_far && is_visible_pattern(&op) && is_visible_content(&op);
            break;
        case PTK_OP_NORM_PRECOMPILED:
            shape.is_plain &= is_last_so_far && !shape.removes;
            shape.maps = true;
            break;
        case PTK_OP_NORM_STRIP:
            shape.is_plain &= (op.flags & STRIP_LEFT) == 0 && !shape.joins_spaces;
            shape.strips_right = true;
            break;
        case PTK_OP_NORM_REPLACE_REGEX:
            shape.is_plain &= joins_spaces(&op) && !shape.joins_spaces;
            shape.joins_spaces = true;
            break;
        default:
            shape.is_plain = false;
        }
    }
    shape.is_plain &= !shape.is_bert;
    shape.is_bert &= shape.op_count == 1;
    return shape;
}

/* Metaspace with a mark before every piece, or without any: what it does is the same everywhere. */
static bool is_even_metaspace(const struct op *op)
{
    return op->kind == PTK_OP_PRE_METASPACE && op->params_len >= 4 && op->params[0] <= 1;
}

/* Which shape the pre-tokenizer has, or 0. */
static enum shape pre_shape(const struct ptk_segments_config *config)
{
    struct op op;
    size_t pos = 0;
    enum shape shape = 0;
    for (size_t i = 0; next_op(config->pre_program, config->pre_program_len, &pos, &op); i++) {
        const bool has_mark = is_even_metaspace(&op);
        if (i == 0 && op.kind == PTK_OP_PRE_BERT) {
            shape = SHAPE_BERT;
        } else if (i == 0 &&
                   (op.kind == PTK_OP_PRE_WHITESPACE_SPLIT || op.kind == PTK_OP_PRE_WHITESPACE)) {
            shape = SHAPE_WORDS;
        } else if (i == 0 && has_mark && op.params[0] == 0 && op.params[1] == 1) {
            shape = SHAPE_MARKED;
        } else if (i == 0 || shape != SHAPE_WORDS ||
                   !(has_mark || op.kind == PTK_OP_PRE_PUNCTUATION ||
                     op.kind == PTK_OP_PRE_DIGITS)) {
            return 0;
        }
    }
    return shape;
}

static enum shape find_shape(const struct ptk_segments_config *config,
                             const struct norm_shape *norm)
{
    const enum shape shape = pre_shape(config);
    switch (shape) {
    case SHAPE_BERT:
        return norm->is_bert || norm->op_count == 0 ? shape : 0;
    case SHAPE_WORDS:
        return norm->is_plain && !norm->joins_spaces && !norm->strips_right ? shape : 0;
    case SHAPE_MARKED:
        return norm->is_plain && norm->joins_spaces ? shape : 0;
    }
    return 0;
}

/* ---- classes -------------------------------------------------------------------------------- */

/* Runs the normalizer on short texts while a model is opened. */
struct probe {
    const struct ptk_norm *norm;
    struct ptk_norm_work *work;
};

#define PROBE_LEN_MAX 256u

static struct ptk_split_text probe_run(const struct probe *probe, const uint8_t *text, size_t len)
{
    const struct ptk_norm_section section = {.bytes = text, .len = len};
    struct ptk_split_text result = {.bytes = text, .len = 0};
    if (ptk_norm_run(probe->norm, probe->work, &section, &result) != PTK_VERDICT_OK) {
        result.len = 0;
    }
    return result;
}

static bool is_ascii_space(uint8_t byte)
{
    return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

/* Whether the normalizer makes nothing but white space of a text. */
static bool becomes_space(const struct probe *probe, const char *text)
{
    const struct ptk_split_text result =
        probe_run(probe, (const uint8_t *)text, text[1] != 0 ? 2 : 1);
    for (size_t i = 0; i < result.len; i++) {
        if (!is_ascii_space(result.bytes[i])) {
            return false;
        }
    }
    return result.len > 0;
}

/* Whether white space between two letters becomes one space or, where runs are joined, one mark. */
static bool becomes_one_space(const struct probe *probe, const char *text)
{
    const struct ptk_split_text result =
        probe_run(probe, (const uint8_t *)text, text[3] != 0 ? 4 : 3);
    const bool is_run = text[3] != 0;
    return (result.len == 3 && memcmp(result.bytes, "a b", 3) == 0) ||
           (is_run && result.len == 5 && memcmp(result.bytes, "a\xe2\x96\x81\x62", 5) == 0);
}

static void classify_spaces(const struct probe *probe, struct ptk_segments *segments)
{
    static const char spaces[] = " \t\n\r";
    const bool is_marked = segments->shape == SHAPE_MARKED;
    const uint8_t other = is_marked ? CLASS_OPEN : 0; /* white space of another kind */
    for (size_t i = 0; i < sizeof spaces - 1; i++) {
        const char alone[2] = {spaces[i], 0};
        const char between[4] = {'a', spaces[i], 'b', 0};
        const bool is_wall =
            is_marked ? becomes_one_space(probe, between) : becomes_space(probe, alone);
        segments->classes[(uint8_t)spaces[i]] = is_wall ? CLASS_SPACE : other;
    }
    /* These two are one grapheme cluster. */
    if (!(is_marked ? becomes_one_space(probe, "a\r\nb") : becomes_space(probe, "\r\n"))) {
        segments->classes['\r'] = other;
    }
}

/* Whether a character, normalized by itself, is sure to end in something other than white space. */
static bool ends_visibly(const struct probe *probe, const struct ptk_unicode *unicode,
                         uint32_t code_point)
{
    uint8_t bytes[4];
    const struct ptk_split_text result =
        probe_run(probe, bytes, ptk_utf8_encode(code_point, bytes));
    size_t at = result.len;
    if (at == 0) {
        return false;
    }
    do {
        at--;
    } while (at > 0 && (result.bytes[at] & 0xC0) == 0x80);
    uint32_t len;
    const uint32_t last = ptk_utf8_decode(result.bytes + at, &len);
    return (ptk_unicode_mask(unicode, last) & PTK_UNICODE_WHITE) == 0;
}

static bool is_extending(uint32_t grapheme_class)
{
    return grapheme_class == PTK_UNICODE_GRAPHEME_EXTEND ||
           grapheme_class == PTK_UNICODE_GRAPHEME_ZWJ ||
           grapheme_class == PTK_UNICODE_GRAPHEME_SPACING;
}

/* By grapheme clusters: a mark may take the space before it along, a prefix the one behind it. */
static uint8_t cluster_class(const struct ptk_unicode *unicode, uint32_t code_point)
{
    const uint32_t class = ptk_unicode_grapheme(unicode, code_point) & PTK_UNICODE_GRAPHEME_CLASS;
    const bool is_mark = (ptk_unicode_mask(unicode, code_point) & PTK_UNICODE_MARK) != 0;
    return (uint8_t)((is_extending(class) || is_mark ? CLASS_EXTENDS : 0) |
                     (class == PTK_UNICODE_GRAPHEME_PREPEND ? CLASS_OPEN | CLASS_CLOSES : 0));
}

/* The same for what a character decomposes to, in any form. */
static uint8_t changed_class(const struct ptk_unicode *unicode, uint32_t code_point)
{
    uint8_t class = cluster_class(unicode, code_point);
    uint32_t len;
    const uint32_t *parts = ptk_unicode_map(&unicode->compatible, code_point, &len);
    for (uint32_t i = 0; parts != NULL && i < len; i++) {
        const uint8_t part = cluster_class(unicode, parts[i]);
        class |= part & (CLASS_OPEN | CLASS_CLOSES);
        class |= i == 0 ? part & CLASS_EXTENDS : 0;
    }
    /* What Nmt or a form may take away, or turn into white space, is no neighbour to rely on. */
    const uint64_t removed = PTK_UNICODE_NMT_REMOVED | PTK_UNICODE_NMT_SPACE | PTK_UNICODE_MARK;
    if ((ptk_unicode_mask(unicode, code_point) & removed) != 0) {
        class |= CLASS_EXTENDS | CLASS_OPEN;
    }
    return class;
}

static uint8_t words_class(const struct ptk_unicode *unicode, const struct norm_shape *norm,
                           uint32_t code_point)
{
    if (!norm->maps) {
        return 0;
    }
    const uint8_t class = norm->changes_before ? changed_class(unicode, code_point)
                                               : cluster_class(unicode, code_point);
    return class & (CLASS_EXTENDS | CLASS_OPEN);
}

static uint8_t bert_class(const struct ptk_segments *segments, uint32_t code_point)
{
    const struct ptk_unicode *unicode = segments->unicode;
    const uint64_t mask = ptk_unicode_mask(unicode, code_point);
    if ((mask & segments->word_mask) != 0) {
        return 0;
    }
    if ((mask & segments->space_mask & PTK_UNICODE_BERT_SPACE) != 0) {
        return CLASS_SPACE;
    }
    if ((mask & segments->alone_mask & PTK_UNICODE_BERT_HAN) != 0) {
        return CLASS_ALONE;
    }
    uint32_t len;
    const uint32_t word = ptk_unicode_norm(unicode, code_point);
    if ((word & (PTK_UNICODE_NORM_NFD | PTK_UNICODE_NORM_CLASS)) != 0 ||
        ptk_unicode_map(&unicode->lower, code_point, &len) != NULL) {
        return 0;
    }
    if ((mask & segments->space_mask) != 0) {
        return CLASS_SPACE;
    }
    return (mask & segments->alone_mask) != 0 ? CLASS_ALONE : 0;
}

static void classify_bert(struct ptk_segments *segments, const struct norm_shape *norm)
{
    const bool cleans = (norm->bert_flags & BERT_CLEAN_TEXT) != 0;
    const bool sets_off = (norm->bert_flags & BERT_HANDLE_CHINESE) != 0;
    segments->word_mask = cleans ? PTK_UNICODE_BERT_REMOVED : 0;
    segments->space_mask = cleans ? PTK_UNICODE_BERT_SPACE : PTK_UNICODE_WHITE;
    segments->alone_mask = PTK_UNICODE_PUNCT | (sets_off ? PTK_UNICODE_BERT_HAN : 0);
    for (uint32_t code_point = 0; code_point < TABLE_END; code_point++) {
        segments->classes[code_point] = bert_class(segments, code_point);
    }
}

static void classify_words(const struct probe *probe, struct ptk_segments *segments,
                           const struct norm_shape *norm)
{
    for (uint32_t code_point = 0x80; code_point < TABLE_END; code_point++) {
        segments->classes[code_point] = words_class(segments->unicode, norm, code_point);
    }
    classify_spaces(probe, segments);
}

static bool is_surrogate(uint32_t code_point)
{
    return code_point >= 0xD800 && code_point < 0xE000;
}

static void classify_marked(const struct probe *probe, struct ptk_segments *segments)
{
    const struct ptk_unicode *unicode = segments->unicode;
    const uint64_t unassigned = PTK_UNICODE_CN | PTK_UNICODE_CO;
    for (uint32_t code_point = 0; code_point < TABLE_END; code_point++) {
        uint8_t class = changed_class(unicode, code_point);
        const bool asked = code_point < 0x10000 && !is_surrogate(code_point) &&
                           (ptk_unicode_mask(unicode, code_point) & unassigned) == 0;
        /* A cluster of several characters may be replaced as a whole: its end is not asked for. */
        if (!asked || (class & CLASS_EXTENDS) != 0 || !ends_visibly(probe, unicode, code_point)) {
            class |= CLASS_OPEN;
        }
        segments->classes[code_point] = class;
    }
    classify_spaces(probe, segments);
}

static void index_ascii(struct ptk_segments *segments)
{
    for (unsigned byte = 0; byte < 128; byte++) {
        const uint8_t class = segments->classes[byte];
        const uint8_t bit = (uint8_t)(1u << (byte >> 4));
        segments->space_by_low[byte & 15] |= (class & CLASS_SPACE) != 0 ? bit : 0;
        segments->alone_by_low[byte & 15] |= (class & CLASS_ALONE) != 0 ? bit : 0;
        segments->open_by_low[byte & 15] |= (class & CLASS_OPEN) != 0 ? bit : 0;
    }
}

static int classify(const struct ptk_segments_config *config, const struct norm_shape *norm,
                    struct ptk_segments *segments)
{
    const struct ptk_norm_limits limits = {.text_len_max = PROBE_LEN_MAX};
    void *memory =
        aligned_alloc(PTK_CACHE_LINE, ptk_align_up(ptk_norm_work_len(&limits), PTK_CACHE_LINE));
    if (memory == NULL) {
        return -ENOMEM;
    }
    const struct probe probe = {.norm = config->norm,
                                .work = ptk_norm_work_init(memory, &limits)};
    switch (segments->shape) {
    case SHAPE_BERT:
        classify_bert(segments, norm);
        break;
    case SHAPE_WORDS:
        classify_words(&probe, segments, norm);
        break;
    case SHAPE_MARKED:
        classify_marked(&probe, segments);
        break;
    }
    free(memory);
    index_ascii(segments);
    return 0;
}

int ptk_segments_open(const struct ptk_segments_config *config, struct ptk_segments **out,
                      struct ptk_err *err)
{
    *out = NULL;
    const struct norm_shape norm = norm_shape(config);
    const enum shape shape = find_shape(config, &norm);
    const struct ptk_unicode *unicode = ptk_unicode_open(config->profile);
    if (shape == 0 || unicode == NULL) {
        return 0;
    }
    struct ptk_segments *segments =
        aligned_alloc(PTK_CACHE_LINE, ptk_align_up(sizeof *segments, PTK_CACHE_LINE));
    if (segments == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for the classes of segments");
    }
    memset(segments, 0, sizeof *segments);
    segments->unicode = unicode;
    segments->shape = shape;
    if (classify(config, &norm, segments) != 0) {
        free(segments);
        return ptk_err_set(err, -ENOMEM, "no memory for the classes of segments");
    }
    if (segments->classes[' '] != CLASS_SPACE) {
        free(segments); /* Without this wall there is nothing to gain. */
        return 0;
    }
    *out = segments;
    return 0;
}

void ptk_segments_close(struct ptk_segments *segments)
{
    free(segments);
}

/* ---- scanning ------------------------------------------------------------------------------- */

/* A block of whole characters; bit i of a mask is byte i. */
struct block {
    const uint8_t *text;
    size_t len;
    uint64_t space;
    uint64_t alone; /* first bytes */
    uint64_t tail;  /* other bytes of characters that stand alone */
    uint64_t opens; /* last bytes of characters just behind which white space is no wall */
    uint64_t wide;
};

static inline uint64_t below(size_t end)
{
    return end >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << end) - 1;
}

static inline uint64_t members(const uint8_t *by_low, __m128i bytes, __m128i high_bit)
{
    const __m128i table = _mm_load_si128((const __m128i *)(const void *)by_low);
    const __m128i hit = _mm_and_si128(_mm_shuffle_epi8(table, bytes), high_bit);
    const int none = _mm_movemask_epi8(_mm_cmpeq_epi8(hit, _mm_setzero_si128()));
    return (uint64_t)(~(unsigned)none & 0xFFFFu);
}

/* Classes of the ASCII among 64 bytes. */
static inline void read_ascii(const struct ptk_segments *segments, const uint8_t *bytes,
                              struct block *block)
{
    const __m128i high_bits =
        _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, (char)128, 0, 0, 0, 0, 0, 0, 0, 0);
    uint64_t opens = 0;
    block->space = 0;
    block->alone = 0;
    block->tail = 0;
    block->wide = 0;
    for (unsigned i = 0; i < BLOCK_LEN; i += 16) {
        const __m128i part = _mm_loadu_si128((const __m128i *)(const void *)(bytes + i));
        const __m128i high = _mm_and_si128(_mm_srli_epi16(part, 4), _mm_set1_epi8(15));
        const __m128i high_bit = _mm_shuffle_epi8(high_bits, high);
        block->space |= members(segments->space_by_low, part, high_bit) << i;
        block->alone |= members(segments->alone_by_low, part, high_bit) << i;
        opens |= members(segments->open_by_low, part, high_bit) << i;
        block->wide |= (uint64_t)(unsigned)_mm_movemask_epi8(part) << i;
    }
    block->opens = opens;
}

static inline uint8_t class_of(const struct ptk_segments *segments, uint32_t code_point)
{
    if (PTK_LIKELY(code_point < TABLE_END)) {
        return segments->classes[code_point];
    }
    return segments->shape == SHAPE_BERT ? bert_class(segments, code_point)
                                         : CLASS_EXTENDS | CLASS_OPEN;
}

/* Whether white space before `text[at]` belongs to a cluster with what stands there. */
static bool extends_at(const struct ptk_segments *segments, const uint8_t *text, size_t len,
                       size_t at)
{
    uint32_t width;
    return at < len && text[at] >= 0x80 &&
           (class_of(segments, ptk_utf8_decode(text + at, &width)) & CLASS_EXTENDS) != 0;
}

/* Reads the characters outside of ASCII. */
static void read_wide(const struct ptk_segments *segments, struct block *block,
                      struct ptk_segments_cursor *cursor)
{
    for (uint64_t rest = block->wide; rest != 0;) {
        const unsigned at = (unsigned)__builtin_ctzll(rest);
        uint32_t width;
        const uint8_t class = class_of(segments, ptk_utf8_decode(block->text + at, &width));
        const uint64_t first = UINT64_C(1) << at;
        const uint64_t all = below(width) << at;
        rest &= ~all;
        if (PTK_LIKELY(class == 0)) {
            continue;
        }
        if ((class & CLASS_SPACE) != 0) {
            block->space |= all;
        }
        if ((class & CLASS_ALONE) != 0) {
            block->alone |= first;
            block->tail |= all ^ first;
        }
        if ((class & CLASS_EXTENDS) != 0) {
            block->space &= ~(first >> 1);
        }
        if ((class & CLASS_OPEN) != 0) {
            block->opens |= UINT64_C(1) << (at + width - 1);
        }
        if ((class & CLASS_CLOSES) != 0) {
            cursor->is_closed = true;
            block->space &= below(at);
            return;
        }
    }
}

/* Where segments begin in a block, and where those that were being read end. */
struct bounds {
    uint64_t begins;
    uint64_t ends;
};

static inline struct bounds find_bounds(const struct ptk_segments *segments,
                                        const struct block *block,
                                        struct ptk_segments_cursor *cursor)
{
    const uint64_t valid = below(block->len);
    const uint64_t space_before = block->space << 1 | cursor->before_space;
    if (segments->shape == SHAPE_MARKED) {
        const uint64_t cuts = block->space & ~space_before;
        const uint64_t at_start = cursor->pos == 0;
        cursor->before_space = block->space >> (block->len - 1) & 1;
        return (struct bounds){cuts | at_start, cuts & ~at_start};
    }
    const uint64_t alone = block->alone | block->tail;
    const uint64_t word = valid & ~(block->space | alone);
    const uint64_t word_before = word << 1 | cursor->before_word;
    const uint64_t alone_before = alone << 1 | cursor->before_alone;
    cursor->before_space = block->space >> (block->len - 1) & 1;
    cursor->before_word = word >> (block->len - 1) & 1;
    cursor->before_alone = alone >> (block->len - 1) & 1;
    return (struct bounds){(word & ~word_before) | block->alone,
                           ((word_before & ~word) | (alone_before & ~block->tail)) & valid};
}

/* Reads the block at the cursor. */
static inline struct bounds next_block(const struct ptk_segments *segments,
                                       struct ptk_segments_cursor *cursor, const uint8_t *text,
                                       size_t len, struct block *block)
{
    _Alignas(16) uint8_t last[BLOCK_LEN];
    const uint8_t *bytes = text + cursor->pos;
    block->text = bytes;
    block->len = ptk_min_size(len - cursor->pos, BLOCK_LEN);
    if (PTK_UNLIKELY(len - cursor->pos < BLOCK_LEN)) {
        memset(last, 0, sizeof last);
        memcpy(last, bytes, block->len);
        bytes = last;
    } else if (cursor->pos + BLOCK_LEN < len) {
        while ((block->text[block->len] & 0xC0) == 0x80) { /* Ends: within three bytes. */
            block->len--;
        }
    }
    const uint64_t valid = below(block->len);
    read_ascii(segments, bytes, block);
    block->space &= valid;
    block->alone &= valid;
    block->wide &= valid;
    block->opens &= valid;
    if (block->wide != 0) {
        read_wide(segments, block, cursor);
    }
    if ((block->space >> (block->len - 1) & 1) != 0 &&
        extends_at(segments, text, len, cursor->pos + block->len)) {
        block->space &= ~(UINT64_C(1) << (block->len - 1));
    }
    const uint64_t first = block->space & ~(block->space << 1 | cursor->before_space);
    const uint64_t opened = first & (block->opens << 1 | cursor->joins_space);
    const uint64_t joined = block->space & ~(block->space + opened);
    block->space &= ~joined;
    cursor->joins_space = ((block->opens | joined) >> (block->len - 1) & 1) != 0;
    return find_bounds(segments, block, cursor);
}

size_t ptk_segments_next(const struct ptk_segments *segments, struct ptk_segments_cursor *cursor,
                         const uint8_t *text, size_t len, struct ptk_span *spans, size_t cap)
{
    PTK_DCHECK(cap >= PTK_SEGMENTS_CAP_MIN);
    size_t begins = 0;
    size_t count = 0;
    if (cursor->is_open) {
        spans[begins++].begin = cursor->begin;
    }
    while (cursor->pos < len && !cursor->is_closed && begins + BLOCK_LEN <= cap) {
        struct block block;
        struct bounds bounds = next_block(segments, cursor, text, len, &block);
        for (; bounds.begins != 0; bounds.begins &= bounds.begins - 1) {
            spans[begins++].begin =
                (uint32_t)cursor->pos + (uint32_t)__builtin_ctzll(bounds.begins);
        }
        for (; bounds.ends != 0; bounds.ends &= bounds.ends - 1) {
            spans[count++].end = (uint32_t)cursor->pos + (uint32_t)__builtin_ctzll(bounds.ends);
        }
        cursor->pos += block.len;
    }
    cursor->pos = cursor->is_closed ? len : cursor->pos;
    if (cursor->pos == len && begins > count) {
        spans[count++].end = (uint32_t)len;
    }
    cursor->is_open = begins > count;
    cursor->begin = cursor->is_open ? spans[count].begin : 0;
    return count;
}
