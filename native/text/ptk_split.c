/*
 * Verifies a pre-tokenizer program and translates it; see ptk_split.h.
 *
 * Translation also finds the programs that are one scanner: a byte-level step that changes nothing
 * is left out, and two sequences that models use are run by a scanner made for the whole sequence.
 */
#include "text/ptk_split.h"

#include <errno.h>
#include <stdlib.h>

#include "text/ptk_alphabet.h"
#include "text/ptk_split_ops.h"

#define FLAG_ADD_PREFIX_SPACE 0x1u
#define FLAG_USE_REGEX        0x2u
#define FLAG_TRIM_OFFSETS     0x4u /* of the post-processor; a pre-tokenizer does nothing with it */
#define FLAG_EACH_DIGIT       0x1u

static const char *const op_names[] = PTK_OP_PRE_NAMES;

/* One operation of the program as it stands there. */
struct source_op {
    unsigned number; /* counted from 0, for messages */
    unsigned kind;
    unsigned flags; /* without ALPHABET */
    bool alphabet;
    const uint8_t *params;
    size_t param_len;
};

/* What is being built, and from what. */
struct maker {
    const struct ptk_split_config *config;
    struct ptk_split *split;
    struct ptk_err *err;
    bool mapped; /* a byte_level was seen */
};

static int refuse(const struct maker *maker, const struct source_op *source, int code,
                  const char *why)
{
    const char *name = source->kind < PTK_ARRAY_LEN(op_names) ? op_names[source->kind] : NULL;
    return ptk_err_set(maker->err, code, "pre-tokenizer operation %u (%s): %s", source->number,
                       name != NULL ? name : "undefined kind", why);
}

/* A new operation at the end of the program, or NULL when there are too many. */
static struct ptk_split_op *add_op(const struct maker *maker, enum ptk_split_kind kind)
{
    struct ptk_split *split = maker->split;
    if (split->op_count == PTK_SPLIT_OPS_MAX) {
        return NULL;
    }
    struct ptk_split_op *op = &split->ops[split->op_count++];
    op->kind = kind;
    op->behaviour = PTK_SPLIT_BEHAVIOUR_ISOLATED;
    return op;
}

static int too_many(const struct maker *maker, const struct source_op *source)
{
    return refuse(maker, source, -ENOTSUP, "too many operations in one program");
}

/* Makes an operation a scanner's; false when there is no memory. */
static bool set_matcher(const struct maker *maker, struct ptk_split_op *op, unsigned number)
{
    op->matcher = ptk_split_matcher_get(number);
    PTK_ASSERT(op->matcher != NULL);
    op->scan = ptk_split_scan_best(op->matcher, number);
    op->classes = aligned_alloc(_Alignof(struct ptk_split_classes), sizeof *op->classes);
    if (op->classes != NULL) {
        ptk_split_classes_init(op->classes, maker->split->unicode, number);
    }
    return op->classes != NULL;
}

/* STRING at `at` of the parameters, which end with it. */
static bool read_string(const struct source_op *source, size_t at, const uint8_t **bytes,
                        size_t *len)
{
    if (source->param_len < at + 4) {
        return false;
    }
    *len = ptk_load_u32(source->params + at);
    *bytes = source->params + at + 4;
    return *len == source->param_len - at - 4 && ptk_utf8_valid(*bytes, *len);
}

/* Fills the class tables of GLYPHS and GROUPS: the index of the first mask that a character has. */
static void set_groups(const struct maker *maker, struct ptk_split_op *op, const uint64_t masks[4])
{
    const struct ptk_unicode *unicode = maker->split->unicode;
    for (uint32_t i = 0; i < unicode->class_count; i++) {
        for (uint8_t group = 3; group > 0; group--) {
            if (unicode->class_masks[i] & masks[group]) {
                op->by_class[i] = group;
            }
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t code_point = ptk_alphabet_code_point((uint8_t)byte);
        op->by_byte[byte] = op->by_class[ptk_unicode_class(unicode, code_point)];
    }
}

static int make_byte_level(struct maker *maker, const struct source_op *source)
{
    if (source->param_len != 0 ||
        source->flags & ~(FLAG_ADD_PREFIX_SPACE | FLAG_USE_REGEX | FLAG_TRIM_OFFSETS)) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    if (maker->mapped || source->alphabet) {
        return refuse(maker, source, -ENOTSUP, "the text is in the byte-level alphabet already");
    }
    maker->mapped = true;
    if (source->flags & FLAG_ADD_PREFIX_SPACE) {
        if (add_op(maker, PTK_SPLIT_KIND_PREFIX_SPACE) == NULL) {
            return too_many(maker, source);
        }
    }
    if (source->flags & FLAG_USE_REGEX) {
        struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_SCANNER);
        if (op == NULL) {
            return too_many(maker, source);
        }
        if (!set_matcher(maker, op, PTK_SPLIT_SCANNER_GPT2)) {
            return refuse(maker, source, -ENOMEM, "no memory");
        }
    }
    if (!maker->config->byte_units && add_op(maker, PTK_SPLIT_KIND_ALPHABET) == NULL) {
        return too_many(maker, source);
    }
    return 0;
}

static int make_split_known(struct maker *maker, const struct source_op *source)
{
    if (source->param_len != 8 || source->flags != 0) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    const unsigned number = ptk_load_u16(source->params);
    const unsigned behaviour = source->params[2];
    const unsigned invert = source->params[3];
    if (number >= PTK_SPLIT_SCANNER_VALUE_COUNT || ptk_split_matcher_get(number) == NULL ||
        behaviour >= PTK_SPLIT_BEHAVIOUR_VALUE_COUNT || invert > 1 ||
        ptk_load_u32(source->params + 4) != 0) {
        return refuse(maker, source, -EINVAL, "a parameter is out of range");
    }
    if (source->alphabet) {
        return refuse(maker, source, -ENOTSUP, "scanners do not read the byte-level alphabet");
    }
    bool is_all = number == PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL;
    if (is_all && (behaviour != PTK_SPLIT_BEHAVIOUR_ISOLATED || invert)) {
        return refuse(maker, source, -EINVAL, "three splits in one can only isolate");
    }
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_SCANNER);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->behaviour = (enum ptk_split_behaviour)behaviour;
    op->invert = invert;
    return set_matcher(maker, op, number) ? 0 : refuse(maker, source, -ENOMEM, "no memory");
}

/* Writes the bytes that spell a literal in the text: itself, or what the alphabet stands for. */
static int set_literal(const struct maker *maker, const struct source_op *source,
                       struct ptk_split_op *op, const uint8_t *bytes, size_t len)
{
    op->literal = malloc(len);
    if (op->literal == NULL) {
        return refuse(maker, source, -ENOMEM, "no memory");
    }
    if (!op->alphabet) {
        memcpy(op->literal, bytes, len);
        op->literal_len = (uint32_t)len;
        return 0;
    }
    for (size_t at = 0; at < len;) {
        uint32_t width;
        int byte = ptk_alphabet_byte(ptk_utf8_decode(bytes + at, &width));
        op->literal_absent = op->literal_absent || byte < 0;
        op->literal[op->literal_len++] = (uint8_t)byte;
        at += width;
    }
    return 0;
}

static int make_regex(struct maker *maker, const struct source_op *source, struct ptk_split_op *op,
                      const uint8_t *pattern, size_t pattern_len)
{
    const bool is_rust = maker->config->source == PTK_IMAGE_SOURCE_TIKTOKEN ||
                         maker->config->source == PTK_IMAGE_SOURCE_TEKKEN;
    const struct ptk_regex_config config = {
        .pattern = pattern,
        .pattern_len = pattern_len,
        .dialect = is_rust ? PTK_REGEX_DIALECT_FANCY_REGEX : PTK_REGEX_DIALECT_ONIGURUMA,
        .unicode = maker->split->unicode,
        .alphabet = op->alphabet,
    };
    struct ptk_err cause;
    int rc = ptk_regex_open(&config, &op->regex, &cause);
    return rc == 0 ? 0 : refuse(maker, source, rc, cause.text);
}

static int make_split(struct maker *maker, const struct source_op *source)
{
    const uint8_t *pattern;
    size_t pattern_len;
    if (source->flags != 0 || !read_string(source, 4, &pattern, &pattern_len)) {
        return refuse(maker, source, -EINVAL, "undefined flags or malformed parameters");
    }
    const unsigned behaviour = source->params[0];
    const unsigned invert = source->params[1];
    if (behaviour >= PTK_SPLIT_BEHAVIOUR_VALUE_COUNT || invert > 1 ||
        ptk_load_u16(source->params + 2) != 0) {
        return refuse(maker, source, -EINVAL, "a parameter is out of range");
    }
    /* The reference makes a regular expression of a literal, too: an empty one matches everywhere.
     */
    const bool is_literal = source->kind == PTK_OP_PRE_SPLIT_STRING && pattern_len > 0;
    struct ptk_split_op *op =
        add_op(maker, is_literal ? PTK_SPLIT_KIND_LITERAL : PTK_SPLIT_KIND_REGEX);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->behaviour = (enum ptk_split_behaviour)behaviour;
    op->invert = invert;
    op->alphabet = source->alphabet;
    return is_literal ? set_literal(maker, source, op, pattern, pattern_len)
                      : make_regex(maker, source, op, pattern, pattern_len);
}

static int make_metaspace(struct maker *maker, const struct source_op *source)
{
    const uint8_t *literal;
    size_t literal_len;
    if (source->flags != 0 || !read_string(source, 4, &literal, &literal_len)) {
        return refuse(maker, source, -EINVAL, "undefined flags or malformed parameters");
    }
    const unsigned prepend = source->params[0];
    const unsigned splits = source->params[1];
    if (prepend >= PTK_SPLIT_PREPEND_VALUE_COUNT || splits > 1 ||
        ptk_load_u16(source->params + 2) != 0 || literal_len == 0 ||
        ptk_utf8_lead_len(literal[0]) != literal_len) {
        return refuse(maker, source, -EINVAL, "a parameter is out of range");
    }
    if (source->alphabet) {
        return refuse(maker, source, -ENOTSUP, "it does not read the byte-level alphabet");
    }
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_METASPACE);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->prepend = (enum ptk_split_prepend)prepend;
    op->splits = splits;
    op->behaviour = PTK_SPLIT_BEHAVIOUR_MERGED_WITH_NEXT;
    for (const struct ptk_split_op *before = maker->split->ops; before < op; before++) {
        op->behind_split |= before->kind < PTK_SPLIT_KIND_PREFIX_SPACE || before->splits;
    }
    maker->split->needs_align |= op->behind_split && op->prepend == PTK_SPLIT_PREPEND_FIRST;
    return set_literal(maker, source, op, literal, literal_len);
}

/* Punctuation, Digits, WhitespaceSplit: each character of a class is a match. */
static int make_glyphs(struct maker *maker, const struct source_op *source, uint64_t mask,
                       enum ptk_split_behaviour behaviour)
{
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_GLYPHS);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->behaviour = behaviour;
    op->alphabet = source->alphabet;
    set_groups(maker, op, (const uint64_t[4]){0, mask, 0, 0});
    return 0;
}

/* Whitespace, Bert: see PTK_SPLIT_KIND_GROUPS. */
static int make_groups(struct maker *maker, const struct source_op *source, const uint64_t masks[4])
{
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_GROUPS);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->alphabet = source->alphabet;
    set_groups(maker, op, masks);
    return 0;
}

static int make_punctuation(struct maker *maker, const struct source_op *source)
{
    if (source->flags != 0 || source->param_len != 4) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    const uint32_t behaviour = ptk_load_u32(source->params);
    if (behaviour >= PTK_SPLIT_BEHAVIOUR_VALUE_COUNT) {
        return refuse(maker, source, -EINVAL, "a parameter is out of range");
    }
    return make_glyphs(maker, source, PTK_UNICODE_PUNCT, (enum ptk_split_behaviour)behaviour);
}

static int make_digits(struct maker *maker, const struct source_op *source)
{
    if (source->flags & ~FLAG_EACH_DIGIT || source->param_len != 0) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    const bool each = source->flags & FLAG_EACH_DIGIT;
    return make_glyphs(maker, source, PTK_UNICODE_NUMERIC,
                       each ? PTK_SPLIT_BEHAVIOUR_ISOLATED : PTK_SPLIT_BEHAVIOUR_CONTIGUOUS);
}

static int make_scripts(struct maker *maker, const struct source_op *source)
{
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_SCRIPTS);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->alphabet = source->alphabet;
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t code_point = ptk_alphabet_code_point((uint8_t)byte);
        op->by_byte[byte] = ptk_unicode_split_script(maker->split->unicode, code_point);
    }
    return 0;
}

static int make_char_delimiter(struct maker *maker, const struct source_op *source)
{
    if (source->flags != 0 || source->param_len != 4) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    const uint32_t code_point = ptk_load_u32(source->params);
    if (code_point >= PTK_UNICODE_END || (code_point >= 0xD800 && code_point <= 0xDFFF)) {
        return refuse(maker, source, -EINVAL, "the delimiter is no character");
    }
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_LITERAL);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->behaviour = PTK_SPLIT_BEHAVIOUR_REMOVED;
    op->alphabet = source->alphabet;
    uint8_t bytes[4];
    return set_literal(maker, source, op, bytes, ptk_utf8_encode(code_point, bytes));
}

static int make_fixed_length(struct maker *maker, const struct source_op *source)
{
    if (source->flags != 0 || source->param_len != 4 || ptk_load_u32(source->params) == 0) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters, or length 0");
    }
    struct ptk_split_op *op = add_op(maker, PTK_SPLIT_KIND_FIXED_LENGTH);
    if (op == NULL) {
        return too_many(maker, source);
    }
    op->alphabet = source->alphabet;
    op->length = ptk_load_u32(source->params);
    return 0;
}

/* Operations without flags and parameters. */
static int make_plain(struct maker *maker, const struct source_op *source)
{
    static const uint64_t words[4] = {0, PTK_UNICODE_WHITE, 0, PTK_UNICODE_WORD_RUST};
    static const uint64_t bert[4] = {0, PTK_UNICODE_WHITE, PTK_UNICODE_PUNCT, 0};
    if (source->flags != 0 || source->param_len != 0) {
        return refuse(maker, source, -EINVAL, "undefined flags or parameters");
    }
    switch (source->kind) {
    case PTK_OP_PRE_WHITESPACE:
        return make_groups(maker, source, words);
    case PTK_OP_PRE_BERT:
        return make_groups(maker, source, bert);
    case PTK_OP_PRE_WHITESPACE_SPLIT:
        return make_glyphs(maker, source, PTK_UNICODE_WHITE, PTK_SPLIT_BEHAVIOUR_REMOVED);
    default:
        return make_scripts(maker, source);
    }
}

static int make_op(struct maker *maker, const struct source_op *source)
{
    switch (source->kind) {
    case PTK_OP_PRE_BYTE_LEVEL:
        return make_byte_level(maker, source);
    case PTK_OP_PRE_SPLIT_KNOWN:
        return make_split_known(maker, source);
    case PTK_OP_PRE_SPLIT_REGEX:
    case PTK_OP_PRE_SPLIT_STRING:
        return make_split(maker, source);
    case PTK_OP_PRE_METASPACE:
        return make_metaspace(maker, source);
    case PTK_OP_PRE_PUNCTUATION:
        return make_punctuation(maker, source);
    case PTK_OP_PRE_DIGITS:
        return make_digits(maker, source);
    case PTK_OP_PRE_CHAR_DELIMITER:
        return make_char_delimiter(maker, source);
    case PTK_OP_PRE_FIXED_LENGTH:
        return make_fixed_length(maker, source);
    case PTK_OP_PRE_WHITESPACE:
    case PTK_OP_PRE_WHITESPACE_SPLIT:
    case PTK_OP_PRE_BERT:
    case PTK_OP_PRE_UNICODE_SCRIPTS:
        return make_plain(maker, source);
    default:
        return refuse(maker, source, -EINVAL, "undefined kind");
    }
}

/* Walks the program; the shape of each operation is checked here, its contents where it is made. */
static int make_all(struct maker *maker)
{
    const uint8_t *program = maker->config->program;
    const size_t len = maker->config->program_len;
    size_t at = 0;
    for (unsigned number = 0; at < len; number++) {
        struct source_op source = {.number = number};
        if (len - at < sizeof(struct ptk_image_op)) {
            return refuse(maker, &source, -EINVAL, "the program ends inside an operation");
        }
        source.kind = ptk_load_u16(program + at);
        const unsigned flags = ptk_load_u16(program + at + 2);
        source.flags = flags & ~PTK_SPLIT_FLAG_ALPHABET;
        source.param_len = ptk_load_u32(program + at + 4);
        source.params = program + at + sizeof(struct ptk_image_op);
        at += sizeof(struct ptk_image_op);
        const size_t padded_len = ptk_align_up(source.param_len, sizeof(struct ptk_image_op));
        if (padded_len > len - at) {
            return refuse(maker, &source, -EINVAL, "the program ends inside an operation");
        }
        for (size_t i = source.param_len; i < padded_len; i++) {
            if (source.params[i] != 0) {
                return refuse(maker, &source, -EINVAL, "the padding is not zero");
            }
        }
        at += padded_len;
        if (flags & PTK_SPLIT_FLAG_ALPHABET && !maker->mapped) {
            return refuse(maker, &source, -EINVAL, "the alphabet flag without byte_level before");
        }
        /* Where the mapping is done, the text is in the alphabet and is read as any text. */
        source.alphabet = flags & PTK_SPLIT_FLAG_ALPHABET && maker->config->byte_units;
        int rc = make_op(maker, &source);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

/* Releases what an operation owns and clears it. */
static void close_op(struct ptk_split_op *op)
{
    ptk_regex_close(op->regex);
    free(op->literal);
    free(op->classes);
    memset(op, 0, sizeof *op);
}

/* Is this operation the isolating split of a matcher? */
static bool isolates(const struct ptk_split_op *op, unsigned number)
{
    return op->kind == PTK_SPLIT_KIND_SCANNER && op->matcher == ptk_split_matcher_get(number) &&
           op->behaviour == PTK_SPLIT_BEHAVIOUR_ISOLATED;
}

/* Replaces the first `count` operations by one scanner; false when there is no memory. */
static bool fuse(const struct maker *maker, uint32_t count, unsigned number)
{
    struct ptk_split *split = maker->split;
    struct ptk_split_op *op = &split->ops[0];
    for (uint32_t i = 0; i < count; i++) {
        close_op(&split->ops[i]);
    }
    op->kind = PTK_SPLIT_KIND_SCANNER;
    op->behaviour = PTK_SPLIT_BEHAVIOUR_ISOLATED;
    split->op_count -= count - 1;
    memmove(op + 1, op + count, (split->op_count - 1) * sizeof *op);
    memset(&split->ops[split->op_count], 0, (count - 1) * sizeof *op);
    return set_matcher(maker, op, number);
}

static bool fuse_sequences(const struct maker *maker)
{
    struct ptk_split *split = maker->split;
    const struct ptk_split_op *ops = split->ops;
    if (split->op_count >= 3 && isolates(&ops[0], PTK_SPLIT_SCANNER_DEEPSEEK_DIGITS) &&
        isolates(&ops[1], PTK_SPLIT_SCANNER_DEEPSEEK_CJK) &&
        isolates(&ops[2], PTK_SPLIT_SCANNER_DEEPSEEK_V3)) {
        return fuse(maker, 3, PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL);
    }
    /* Of the operations of this kind, only Digits has digits in its class. */
    const bool each_digit = ops[0].kind == PTK_SPLIT_KIND_GLYPHS && !ops[0].alphabet &&
                            ops[0].behaviour == PTK_SPLIT_BEHAVIOUR_ISOLATED &&
                            ops[0].by_class[ptk_unicode_class(split->unicode, '0')] != 0;
    if (split->op_count >= 2 && each_digit && isolates(&ops[1], PTK_SPLIT_SCANNER_GPT2)) {
        return fuse(maker, 2, PTK_SPLIT_SCANNER_GPT2_DIGITS);
    }
    return true;
}

/* No pre-tokenizer: the text is one piece. */
static size_t scan_whole(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                         size_t *pos, uint32_t *ends, size_t cap)
{
    (void)classes;
    (void)text;
    if (cap == 0 || *pos == len) {
        return 0;
    }
    ends[0] = (uint32_t)len;
    *pos = len;
    return 1;
}

static void find_scan(struct ptk_split *split)
{
    const struct ptk_split_op *op = &split->ops[0];
    if (split->op_count == 0) {
        split->scan = scan_whole;
    } else if (split->op_count == 1 && op->kind == PTK_SPLIT_KIND_SCANNER &&
               op->matcher->find == NULL) {
        /* Every piece is a match: isolated or, turned around, not removed comes to the same. */
        bool keeps_all = op->behaviour == PTK_SPLIT_BEHAVIOUR_ISOLATED ||
                         (op->behaviour == PTK_SPLIT_BEHAVIOUR_REMOVED && op->invert);
        split->scan = keeps_all ? op->scan : NULL;
    }
}

int ptk_split_open(const struct ptk_split_config *config, struct ptk_split **out,
                   struct ptk_err *err)
{
    *out = NULL;
    const struct ptk_unicode *unicode = ptk_unicode_open(config->profile);
    if (unicode == NULL) {
        return ptk_err_set(err, -ENOTSUP, "this build has no Unicode tables for profile %u",
                           (unsigned)config->profile);
    }
    struct ptk_split *split = calloc(1, sizeof *split);
    if (split == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for a pre-tokenizer");
    }
    split->unicode = unicode;
    struct maker maker = {.config = config, .split = split, .err = err};
    int rc = make_all(&maker);
    if (rc != 0) {
        ptk_split_close(split);
        return rc;
    }
    if (!fuse_sequences(&maker)) {
        ptk_split_close(split);
        return ptk_err_set(err, -ENOMEM, "no memory for a pre-tokenizer");
    }
    find_scan(split);
    for (uint32_t i = 0; i < split->op_count; i++) {
        split->changes_text |= split->ops[i].kind >= PTK_SPLIT_KIND_PREFIX_SPACE;
    }
    *out = split;
    return 0;
}

void ptk_split_close(struct ptk_split *split)
{
    if (split == NULL) {
        return;
    }
    for (uint32_t i = 0; i < split->op_count; i++) {
        close_op(&split->ops[i]);
    }
    free(split);
}

bool ptk_split_is_scan(const struct ptk_split *split)
{
    return split->scan != NULL;
}

bool ptk_split_changes_text(const struct ptk_split *split)
{
    return split->changes_text;
}

bool ptk_split_needs_align(const struct ptk_split *split)
{
    return split->needs_align;
}

size_t ptk_split_scan(const struct ptk_split *split, const uint8_t *text, size_t len, size_t *pos,
                      uint32_t *ends, size_t cap)
{
    PTK_DCHECK(split->scan != NULL);
    PTK_DCHECK(*pos <= len);
    return split->scan(split->ops[0].classes, text, len, pos, ends, cap);
}
