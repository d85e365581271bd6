/*
 * Finds out whether two programs have a known shape, and what each character does to the segments
 * around it; see ptk_segments.h. Set-up: allocates, and asks the normalizer about single
 * characters.
 */
#include <errno.h>
#include <stdlib.h>

#include "text/ptk_segments_ops.h"

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
    bool composes;       /* a form that composes is among them */
    bool removes;        /* Nmt may take characters away, and what they stood before follows */
    bool joins_spaces;   /* runs of spaces become one, as the last operation */
    bool strips_right;
};

enum {
    BERT_CLEAN_TEXT = 1 << 0, /* flags of op_norm.bert */
    BERT_HANDLE_CHINESE = 1 << 1,
    BERT_STRIP_ACCENTS = 1 << 2,
    BERT_LOWERCASE = 1 << 3,
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

static struct norm_shape find_norm_shape(const struct ptk_segments_config *config)
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
            shape.composes |= op.kind == PTK_OP_NORM_NFC || op.kind == PTK_OP_NORM_NFKC;
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

/* What the pre-tokenizer does, as far as it matters here. */
struct pre_shape {
    enum ptk_segments_shape shape; /* 0: none of them */
    bool has_pieces;  /* nothing cuts a word of ordinary characters */
    uint8_t mark[4];  /* what Metaspace puts before each piece */
    uint32_t mark_len;
};

static void read_mark(const struct op *op, struct pre_shape *pre)
{
    const size_t len = ptk_load_u32(op->params + 4);
    if (op->params[0] == 0 && len <= sizeof pre->mark) {
        memcpy(pre->mark, op->params + 8, len);
        pre->mark_len = (uint32_t)len;
    }
}

static struct pre_shape find_pre_shape(const struct ptk_segments_config *config)
{
    struct op op;
    size_t pos = 0;
    struct pre_shape pre = {.has_pieces = true};
    for (size_t i = 0; next_op(config->pre_program, config->pre_program_len, &pos, &op); i++) {
        const bool has_mark = is_even_metaspace(&op);
        if (i == 0 && op.kind == PTK_OP_PRE_BERT) {
            pre.shape = SHAPE_BERT;
        } else if (i == 0 &&
                   (op.kind == PTK_OP_PRE_WHITESPACE_SPLIT || op.kind == PTK_OP_PRE_WHITESPACE)) {
            pre.shape = SHAPE_WORDS;
            pre.has_pieces = op.kind == PTK_OP_PRE_WHITESPACE_SPLIT;
        } else if (i == 0 && has_mark && op.params[0] == 0 && op.params[1] == 1) {
            pre.shape = SHAPE_MARKED;
            read_mark(&op, &pre);
        } else if (i == 1 && pre.shape == SHAPE_WORDS && has_mark) {
            read_mark(&op, &pre);
        } else if (i > 0 && pre.shape == SHAPE_WORDS &&
                   (has_mark || op.kind == PTK_OP_PRE_PUNCTUATION ||
                    op.kind == PTK_OP_PRE_DIGITS)) {
            pre.has_pieces = false;
        } else {
            return (struct pre_shape){.shape = 0};
        }
    }
    return pre;
}

/* The shape of both programs together, or 0. */
static enum ptk_segments_shape find_shape(const struct norm_shape *norm,
                                          const struct pre_shape *pre)
{
    const enum ptk_segments_shape shape = pre->shape;
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

#define PROBE_LEN_MAX 1024u

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

static bool is_surrogate(uint32_t code_point)
{
    return code_point >= 0xD800 && code_point < 0xE000;
}

/* Whether a character of a BERT model, normalized beside any others, stays within its word: no part
 * of it is cut off, and none is a mark that could change places. */
static bool stays_in_word(const struct ptk_segments *segments, uint32_t code_point)
{
    const struct ptk_unicode *unicode = segments->unicode;
    struct ptk_segments_parts parts;
    ptk_segments_parts(segments, code_point, &parts);
    for (uint32_t i = 0; i < parts.count; i++) {
        const uint32_t *part = &parts.code_points[i];
        if (ptk_segments_strips(segments, *part)) {
            continue;
        }
        if (segments->strips && (ptk_unicode_norm(unicode, *part) & PTK_UNICODE_NORM_CLASS) != 0) {
            return false;
        }
        uint32_t count;
        const uint32_t *lower = ptk_segments_lower(segments, part, &count);
        for (uint32_t k = 0; k < count; k++) {
            if ((ptk_unicode_mask(unicode, lower[k]) & (PTK_UNICODE_WHITE | PTK_UNICODE_PUNCT)) !=
                0) {
                return false;
            }
        }
    }
    return true;
}

/* CLASS_KEEPS or CLASS_CHANGES where it is known what becomes of a character. */
static uint8_t bert_change(const struct ptk_segments *segments, uint32_t code_point, uint8_t class)
{
    const uint64_t mask = ptk_unicode_mask(segments->unicode, code_point);
    const uint64_t cut = PTK_UNICODE_WHITE | PTK_UNICODE_PUNCT | segments->space_mask |
                         segments->alone_mask | segments->word_mask;
    if ((class & CLASS_SPACE) != 0 || (class == 0 && (mask & cut) != 0) ||
        (class == 0 && !stays_in_word(segments, code_point))) {
        return 0;
    }
    uint8_t same[4];
    uint8_t changed[64];
    const size_t same_len = ptk_utf8_encode(code_point, same);
    const size_t len = ptk_segments_write_bert(segments, code_point, changed, sizeof changed);
    const bool is_same = len == same_len && memcmp(same, changed, len) == 0;
    if (is_same) {
        return CLASS_KEEPS;
    }
    return class == 0 ? CLASS_CHANGES : 0;
}

static void classify_bert(struct ptk_segments *segments, const struct norm_shape *norm)
{
    const bool cleans = (norm->bert_flags & BERT_CLEAN_TEXT) != 0;
    const bool sets_off = (norm->bert_flags & BERT_HANDLE_CHINESE) != 0;
    segments->word_mask = cleans ? PTK_UNICODE_BERT_REMOVED : 0;
    segments->space_mask = cleans ? PTK_UNICODE_BERT_SPACE : PTK_UNICODE_WHITE;
    segments->alone_mask = PTK_UNICODE_PUNCT | (sets_off ? PTK_UNICODE_BERT_HAN : 0);
    segments->strips = (norm->bert_flags & BERT_STRIP_ACCENTS) != 0;
    segments->lowers = (norm->bert_flags & BERT_LOWERCASE) != 0;
    for (uint32_t code_point = 0; code_point < TABLE_END; code_point++) {
        if (!is_surrogate(code_point)) {
            const uint8_t class = ptk_segments_bert_class(segments, code_point);
            segments->classes[code_point] = class | bert_change(segments, code_point, class);
        }
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

/* ---- characters that stay what they are ----------------------------------------------------- */

/* Characters asked at once, each before a bar, which breaks every cluster. */
#define PROBE_CHARS 48u

/*
 * Whether clusters of characters like this one are mapped character by character: it is a cluster
 * of its own, or part of a syllable of Hangul, whose clusters are too long to be mapped as wholes.
 */
static bool is_simple(uint32_t grapheme)
{
    switch (grapheme & PTK_UNICODE_GRAPHEME_CLASS) {
    case PTK_UNICODE_GRAPHEME_OTHER:
    case PTK_UNICODE_GRAPHEME_HANGUL_L:
    case PTK_UNICODE_GRAPHEME_HANGUL_V:
    case PTK_UNICODE_GRAPHEME_HANGUL_T:
    case PTK_UNICODE_GRAPHEME_HANGUL_LV:
    case PTK_UNICODE_GRAPHEME_HANGUL_LVT:
        return true;
    default:
        return false;
    }
}

/* Whether a character is mapped by itself among others like it, and neither composes with any of
 * them nor changes places. */
static bool is_single(const struct ptk_segments *segments, const struct norm_shape *norm,
                      uint32_t code_point)
{
    const struct ptk_unicode *unicode = segments->unicode;
    const uint64_t mask = ptk_unicode_mask(unicode, code_point);
    const uint32_t word = ptk_unicode_norm(unicode, code_point);
    const uint32_t moving = norm->changes_before ? PTK_UNICODE_NORM_CLASS : 0;
    const uint32_t composing =
        norm->composes ? PTK_UNICODE_NORM_NFC | PTK_UNICODE_NORM_NFKC : 0;
    uint32_t width;
    const bool is_mark = segments->mark_len > 0 &&
                         ptk_utf8_decode(segments->mark, &width) == code_point;
    return is_simple(ptk_unicode_grapheme(unicode, code_point)) && !is_mark &&
           (mask & (PTK_UNICODE_WHITE | PTK_UNICODE_MARK)) == 0 &&
           (word & (moving | composing)) == 0;
}

/* Whether the normalizer leaves all of some characters alone. */
static bool are_kept(const struct probe *probe, const uint32_t *code_points, size_t count)
{
    uint8_t text[PROBE_CHARS * 5];
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        len += ptk_utf8_encode(code_points[i], text + len);
        text[len++] = '|';
    }
    const struct ptk_split_text result = probe_run(probe, text, len);
    return result.len == len && memcmp(result.bytes, text, len) == 0;
}

static void mark_kept(const struct probe *probe, struct ptk_segments *segments,
                      const uint32_t *code_points, size_t count)
{
    const bool all = are_kept(probe, code_points, count);
    for (size_t i = 0; i < count; i++) {
        if (all || are_kept(probe, &code_points[i], 1)) {
            segments->classes[code_points[i]] |= CLASS_KEEPS;
        }
    }
}

static void find_kept_marks(const struct norm_shape *norm, const struct probe *probe,
                            struct ptk_segments *segments)
{
    for (uint32_t code_point = 0x800; code_point < 0x10000 && !norm->changes_before; code_point++) {
        const uint32_t class =
            ptk_unicode_grapheme(segments->unicode, code_point) & PTK_UNICODE_GRAPHEME_CLASS;
        uint8_t text[8] = {0xe0, 0xa4, 0x85};
        if (!is_surrogate(code_point) && is_extending(class)) {
            const size_t len = 3 + ptk_utf8_encode(code_point, text + 3);
            const struct ptk_split_text result = probe_run(probe, text, len);
            const bool is_kept = result.len == len && memcmp(result.bytes, text, len) == 0;
            segments->classes[code_point] |= is_kept ? CLASS_KEEPS : 0;
        }
    }
}

/* Whether what a character decomposes to is simple or taken away; `*is_mark`: all is taken away. */
static bool has_simple_parts(const struct ptk_unicode *unicode, uint32_t code_point, bool *is_mark)
{
    uint32_t count = 1;
    const uint32_t *parts = ptk_unicode_map(&unicode->compatible, code_point, &count);
    *is_mark = true;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t part = parts != NULL ? parts[i] : code_point;
        if ((ptk_unicode_mask(unicode, part) & PTK_UNICODE_MARK) != 0) {
            continue;
        }
        *is_mark = false;
        if (!is_simple(ptk_unicode_grapheme(unicode, part)) ||
            (ptk_unicode_norm(unicode, part) & PTK_UNICODE_NORM_CLASS) != 0) {
            return false;
        }
    }
    return true;
}

static bool all_kept(const struct ptk_segments *segments, const uint8_t *text, size_t len)
{
    uint32_t width;
    for (size_t at = 0; at < len; at += width) {
        const uint32_t code_point = ptk_utf8_decode(text + at, &width);
        const uint8_t class = code_point < TABLE_END ? segments->classes[code_point] : 0;
        if ((class & (CLASS_KEEPS | CLASS_EXTENDS)) != CLASS_KEEPS) {
            return false;
        }
    }
    return true;
}

static bool add_image(struct ptk_segments *segments, uint32_t code_point, const uint8_t *image,
                      size_t len)
{
    if (segments->images_cap - segments->images_len < len) {
        const size_t cap = 2 * segments->images_cap + 4096;
        uint8_t *grown = realloc(segments->images, cap);
        if (grown == NULL) {
            return false;
        }
        segments->images = grown;
        segments->images_cap = cap;
    }
    if (len > 0) {
        memcpy(segments->images + segments->images_len, image, len);
    }
    segments->image_of[code_point] = (uint32_t)(segments->images_len << IMAGE_LEN_BITS | len);
    segments->images_len += len;
    segments->classes[code_point] |= CLASS_CHANGES;
    return true;
}

/* Finds what single characters change to, where that is kept as it is. False without memory. */
static bool find_images(const struct norm_shape *norm, const struct probe *probe,
                        struct ptk_segments *segments)
{
    for (uint32_t code_point = 0x80; code_point < IMAGES_END && !norm->composes; code_point++) {
        if (is_surrogate(code_point) || (segments->classes[code_point] & CLASS_KEEPS) != 0) {
            continue;
        }
        bool is_mark = false;
        const bool is_plain = norm->changes_before
                                  ? has_simple_parts(segments->unicode, code_point, &is_mark)
                                  : is_single(segments, norm, code_point);
        if (!is_plain) {
            continue;
        }
        uint8_t text[6] = {'x'};
        const size_t len = 1 + ptk_utf8_encode(code_point, text + 1);
        text[len] = '|';
        const struct ptk_split_text result = probe_run(probe, text, len + 1);
        const bool is_framed = result.len >= 2 && result.bytes[0] == 'x' &&
                               result.bytes[result.len - 1] == '|';
        if (!is_framed || (result.len == 2) != is_mark || result.len - 2 >= 1u << IMAGE_LEN_BITS ||
            !all_kept(segments, result.bytes + 1, result.len - 2)) {
            continue;
        }
        if (!add_image(segments, code_point, result.bytes + 1, result.len - 2)) {
            return false;
        }
    }
    return true;
}

/* What begins a string that is replaced depends on what follows. */
static void unmark_patterns(const struct ptk_segments_config *config, struct ptk_segments *segments)
{
    struct op op;
    size_t pos = 0;
    while (next_op(config->norm_program, config->norm_program_len, &pos, &op)) {
        if (op.kind == PTK_OP_NORM_REPLACE_STRING) {
            const size_t len = ptk_load_u32(op.params);
            for (size_t i = 0; i < len; i++) { /* visible ASCII, see find_norm_shape() */
                segments->classes[op.params[4 + i]] |= CLASS_PATTERN;
            }
            segments->classes[op.params[4]] &= (uint8_t)~CLASS_KEEPS;
        }
    }
}

/* False without memory. */
static bool find_kept(const struct ptk_segments_config *config, const struct norm_shape *norm,
                      const struct probe *probe, struct ptk_segments *segments)
{
    uint32_t asked[PROBE_CHARS];
    size_t count = 0;
    for (uint32_t code_point = '!'; code_point < TABLE_END; code_point++) {
        if (!is_surrogate(code_point) && is_single(segments, norm, code_point)) {
            asked[count++] = code_point;
        }
        if (count == PROBE_CHARS || (code_point == TABLE_END - 1 && count > 0)) {
            mark_kept(probe, segments, asked, count);
            count = 0;
        }
    }
    unmark_patterns(config, segments);
    if (!find_images(norm, probe, segments)) {
        return false;
    }
    find_kept_marks(norm, probe, segments);
    return true;
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
    const bool is_done = segments->shape == SHAPE_BERT || !segments->has_pieces ||
                         find_kept(config, norm, &probe, segments);
    free(memory);
    index_ascii(segments);
    return is_done ? 0 : -ENOMEM;
}

int ptk_segments_open(const struct ptk_segments_config *config, struct ptk_segments **out,
                      struct ptk_err *err)
{
    *out = NULL;
    const struct norm_shape norm = find_norm_shape(config);
    const struct pre_shape pre = find_pre_shape(config);
    const enum ptk_segments_shape shape = find_shape(&norm, &pre);
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
    segments->has_pieces = pre.has_pieces;
    memcpy(segments->mark, pre.mark, sizeof pre.mark);
    segments->mark_len = pre.mark_len;
    if (classify(config, &norm, segments) != 0) {
        ptk_segments_close(segments);
        return ptk_err_set(err, -ENOMEM, "no memory for the classes of segments");
    }
    if ((segments->classes[' '] & CLASS_SPACE) == 0) {
        ptk_segments_close(segments); /* Without this wall there is nothing to gain. */
        return 0;
    }
    *out = segments;
    return 0;
}

void ptk_segments_close(struct ptk_segments *segments)
{
    if (segments != NULL) {
        free(segments->images);
        free(segments);
    }
}
