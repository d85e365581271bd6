/*
 * Translates the reference's regular-expression syntax; see ptk_regex_parse.h.
 *
 * A single pass with an explicit stack of groups. What is accepted is listed here and nowhere else:
 *
 *   characters   themselves, . and the escapes \n \r \t \f \v \a \e \xHH \x{H..} \uHHHH, \ before
 *                punctuation
 *   sets         [...] with ranges, ^, nested sets, &&; \s \d \w \S \D \W \p{..} \P{..} \p{^..};
 *                [[:alpha:]] and its like (Oniguruma)
 *   groups       (...) (?:...) (?i:...) (?-i:...) (?>...) (?=...) (?!...) (?<=...) (?<!...)
 *   repetition   ? * + {n} {n,} {n,m}, each also lazy; possessive ?+ *+ ++ and, in tiktoken's
 * dialect, {n,m}+ places       ^ $ \A \z \b \B
 *
 * Two engines of the same pattern differ most where a group that may be empty is repeated and where
 * letters are compared without case; there only the unambiguous is let through.
 */
#include "text/ptk_regex_parse.h"

#include <errno.h>
#include <stdlib.h>

#include "text/ptk_utf8.h"

#define GROUPS_MAX  32u
#define CLASSES_MAX 8u
#define REPEAT_MAX  1000u

enum group_kind {
    GROUP_PLAIN = 1,
    GROUP_LOOK = 2, /* an assertion: matches nothing itself */
};

struct group {
    enum group_kind kind;
    bool outer_fold;     /* case rule to go back to behind the group */
    size_t begin;        /* in the output */
    uint32_t branch_min; /* shortest match of the alternative at hand */
    uint32_t min;        /* of the alternatives before it */
};

struct parser {
    const struct ptk_regex_config *config;
    struct ptk_regex_parsed *out;
    struct ptk_err *err;
    const uint8_t *pattern;
    size_t len;
    size_t at;
    bool fold; /* inside (?i:...) */
    struct group groups[GROUPS_MAX];
    size_t depth;
    /* The item that a repetition would apply to. */
    bool has_item;
    size_t item_begin; /* in the output */
    uint32_t item_min;
    uint32_t previous_folded; /* under (?i:...), the letter just before, for ligatures; or 0 */
};

static bool is_onig(const struct parser *p)
{
    return p->config->dialect == PTK_REGEX_DIALECT_ONIGURUMA;
}

static int refuse(const struct parser *p, int code, size_t at, const char *what)
{
    return ptk_err_set(p->err, code, "regular expression, byte %zu: %s", at, what);
}

static int unsupported(const struct parser *p, size_t at, const char *what)
{
    return ptk_err_set(p->err, -ENOTSUP, "regular expression, byte %zu: %s is not supported", at,
                       what);
}

static bool looking_at(const struct parser *p, const char *text)
{
    size_t len = strlen(text);
    return p->len - p->at >= len && memcmp(p->pattern + p->at, text, len) == 0;
}

static bool take(struct parser *p, const char *text)
{
    if (!looking_at(p, text)) {
        return false;
    }
    p->at += strlen(text);
    return true;
}

static int emit_bytes(struct parser *p, const void *bytes, size_t len)
{
    struct ptk_regex_parsed *out = p->out;
    if (out->pattern_cap - out->pattern_len < len) {
        return unsupported(p, p->at, "a pattern of this length");
    }
    memcpy(out->pattern + out->pattern_len, bytes, len);
    out->pattern_len += len;
    return 0;
}

static int emit(struct parser *p, const char *text)
{
    return emit_bytes(p, text, strlen(text));
}

/* Emits a reference to a set, which is taken over. */
static int emit_set(struct parser *p, struct ptk_regex_set *set)
{
    struct ptk_regex_parsed *out = p->out;
    size_t number = 0;
    if (set->has_failed) {
        ptk_regex_set_fini(set);
        return refuse(p, -ENOMEM, p->at, "no memory");
    }
    while (number < out->set_count && !ptk_regex_set_equal(&out->sets[number], set)) {
        number++;
    }
    if (number < out->set_count) {
        ptk_regex_set_fini(set);
    } else if (number == PTK_REGEX_SETS_MAX) {
        ptk_regex_set_fini(set);
        return unsupported(p, p->at, "a pattern with this many different sets of characters");
    } else {
        out->sets[out->set_count++] = *set;
        *set = (struct ptk_regex_set){0};
    }
    const uint8_t reference[3] = {PTK_REGEX_SET_MARK, (uint8_t)(number & 0xFF),
                                  (uint8_t)(number >> 8)};
    return emit_bytes(p, reference, sizeof reference);
}

static int emit_mask(struct parser *p, uint64_t mask)
{
    struct ptk_regex_set set = {0};
    ptk_regex_set_add_unicode(&set, p->config->unicode, (struct ptk_unicode_set){.mask = mask});
    ptk_regex_set_normalize(&set);
    return emit_set(p, &set);
}

static int emit_range(struct parser *p, uint32_t begin, uint32_t end)
{
    struct ptk_regex_set set = {0};
    ptk_regex_set_add(&set, begin, end);
    return emit_set(p, &set);
}

/* An item was emitted from `begin` of the output on; its shortest match has `min` characters. */
static void set_item(struct parser *p, size_t begin, uint32_t min)
{
    p->has_item = true;
    p->item_begin = begin;
    p->item_min = min;
    p->groups[p->depth].branch_min += min;
}

static void set_no_item(struct parser *p)
{
    p->has_item = false;
    p->previous_folded = 0;
}

/* --- Characters and sets ------------------------------------------------------------------------
 */

/* Adds what a range stands for: under (?i:...) with the other cases of its ASCII letters. */
static int add_folded(struct parser *p, size_t at, struct ptk_regex_set *set, uint32_t begin,
                      uint32_t end)
{
    ptk_regex_set_add(set, begin, end);
    if (!p->fold) {
        return 0;
    }
    if (end > 0x80) {
        return unsupported(p, at, "a character beyond ASCII under (?i:...)");
    }
    for (uint32_t c = begin; c < end; c++) {
        const uint32_t lower = c | 0x20;
        if (lower < 'a' || lower > 'z') {
            continue;
        }
        ptk_regex_set_add(set, lower, lower + 1);
        ptk_regex_set_add(set, lower - 0x20, lower - 0x1F);
        if (lower == 's') {
            ptk_regex_set_add(set, 0x17F, 0x180); /* LATIN SMALL LETTER LONG S */
        } else if (lower == 'k') {
            ptk_regex_set_add(set, 0x212A, 0x212B); /* KELVIN SIGN */
        }
    }
    return 0;
}

static bool hex_digit(uint8_t byte, uint32_t *value)
{
    const uint32_t lower = byte | 0x20u;
    if (byte >= '0' && byte <= '9') {
        *value = byte - (uint32_t)'0';
        return true;
    }
    *value = lower - 'a' + 10;
    return lower >= 'a' && lower <= 'f';
}

/* The digits behind \x or \u; `p->at` stands at them. */
static int parse_hex(struct parser *p, uint32_t digits, uint32_t *code_point)
{
    const size_t begin = p->at;
    const bool braces = take(p, "{");
    uint32_t count = 0;
    uint32_t value = 0;
    uint32_t digit;
    *code_point = 0;
    while (p->at < p->len && count < (braces ? 6 : digits) &&
           hex_digit(p->pattern[p->at], &digit)) {
        value = value << 4 | digit;
        count++;
        p->at++;
    }
    if (braces ? count == 0 || !take(p, "}") : count != digits) {
        return unsupported(p, begin, "this form of a hexadecimal escape");
    }
    bool is_byte = digits == 2 && !braces;
    if (value >= PTK_UNICODE_END || (value >= 0xD800 && value < 0xE000) ||
        (is_byte && value > 0x7F)) {
        return unsupported(p, begin, "an escape for something that is no character");
    }
    *code_point = value;
    return 0;
}

static bool is_ascii_alnum(uint8_t byte)
{
    return (byte >= '0' && byte <= '9') || ((byte | 0x20) >= 'a' && (byte | 0x20) <= 'z');
}

/* A character, perhaps escaped, that `p->at` stands at; not one of the letters that name sets. */
static int parse_char(struct parser *p, uint32_t *code_point)
{
    const size_t begin = p->at;
    uint32_t width;
    *code_point = ptk_utf8_decode(p->pattern + p->at, &width);
    p->at += width;
    if (*code_point != '\\') {
        return 0;
    }
    if (p->at == p->len) {
        return refuse(p, -EINVAL, begin, "a backslash ends the pattern");
    }
    const uint8_t escaped = p->pattern[p->at];
    static const char plain[] = "nrtfvae";
    static const char codes[] = "\n\r\t\f\v\a\x1b";
    const char *found = escaped != 0 ? strchr(plain, escaped) : NULL;
    if (found != NULL) {
        *code_point = (uint8_t)codes[found - plain];
        p->at++;
        return 0;
    }
    if (escaped == 'x' || escaped == 'u') {
        p->at++;
        return parse_hex(p, escaped == 'x' ? 2 : 4, code_point);
    }
    if (escaped >= 0x80 || is_ascii_alnum(escaped)) {
        return unsupported(p, begin, "this escape");
    }
    *code_point = escaped;
    p->at++;
    return 0;
}

/* \p{...} and \P{...}: adds the property's characters; `p->at` stands behind the letter. */
static int parse_property(struct parser *p, bool negated, struct ptk_regex_set *set)
{
    const size_t begin = p->at - 2;
    const uint8_t *name = p->pattern + p->at;
    size_t name_len = 1;
    if (p->fold) {
        return unsupported(p, begin, "a property under (?i:...)");
    }
    if (take(p, "{")) {
        if (take(p, "^")) {
            negated = !negated;
        }
        name = p->pattern + p->at;
        const uint8_t *end = memchr(name, '}', p->len - p->at);
        if (end == NULL) {
            return refuse(p, -EINVAL, begin, "a property without its closing brace");
        }
        name_len = (size_t)(end - name);
        p->at += name_len + 1;
    } else if (is_onig(p) || p->at == p->len) {
        return unsupported(p, begin, "a property without braces");
    } else {
        p->at++;
    }
    struct ptk_unicode_set found;
    if (!ptk_unicode_find_set(p->config->unicode, (const char *)name, name_len, &found)) {
        return unsupported(p, begin, "this property");
    }
    struct ptk_regex_set property = {0};
    ptk_regex_set_add_unicode(&property, p->config->unicode, found);
    ptk_regex_set_normalize(&property);
    if (negated) {
        ptk_regex_set_complement(&property);
    }
    ptk_regex_set_add_set(set, &property);
    ptk_regex_set_fini(&property);
    return 0;
}

/* Is `p->at` at an escape that names a set? */
static bool at_set_escape(const struct parser *p)
{
    return p->len - p->at >= 2 && p->pattern[p->at] == '\\' && p->pattern[p->at + 1] != 0 &&
           strchr("sSdDwWpP", p->pattern[p->at + 1]) != NULL;
}

/*
 * An escape that names a set: adds its characters. In Oniguruma, \w has six characters fewer inside
 * of [...], as [[:word:]] has.
 */
static int parse_set_escape(struct parser *p, bool in_class, struct ptk_regex_set *set)
{
    const size_t begin = p->at;
    const uint8_t letter = p->pattern[p->at + 1];
    p->at += 2;
    if (letter == 'p' || letter == 'P') {
        return parse_property(p, letter == 'P', set);
    }
    const uint8_t lower = letter | 0x20;
    if (lower == 'w' && p->fold) {
        return unsupported(p, begin, "\\w under (?i:...)");
    }
    const uint64_t word =
        is_onig(p) ? in_class ? PTK_UNICODE_WORD_POSIX : PTK_UNICODE_WORD : PTK_UNICODE_WORD_RUST;
    const uint64_t mask = lower == 's' ? PTK_UNICODE_SPACE : lower == 'd' ? PTK_UNICODE_ND : word;
    struct ptk_regex_set named = {0};
    ptk_regex_set_add_unicode(&named, p->config->unicode, (struct ptk_unicode_set){.mask = mask});
    ptk_regex_set_normalize(&named);
    if (letter != lower) {
        ptk_regex_set_complement(&named);
    }
    ptk_regex_set_add_set(set, &named);
    ptk_regex_set_fini(&named);
    return 0;
}

/* [:name:] inside a set. */
static int parse_posix(struct parser *p, struct ptk_regex_set *set)
{
    static const struct {
        const char *name;
        uint64_t mask;
    } names[] = {
        {"[:alpha:]", PTK_UNICODE_ALPHA},     {"[:digit:]", PTK_UNICODE_ND},
        {"[:space:]", PTK_UNICODE_SPACE},     {"[:upper:]", PTK_UNICODE_UPPER},
        {"[:lower:]", PTK_UNICODE_LOWER},     {"[:alnum:]", PTK_UNICODE_ALPHA | PTK_UNICODE_ND},
        {"[:word:]", PTK_UNICODE_WORD_POSIX},
    };
    if (!is_onig(p) || p->fold) {
        return unsupported(p, p->at, "a POSIX bracket here");
    }
    for (size_t i = 0; i < PTK_ARRAY_LEN(names); i++) {
        if (take(p, names[i].name)) {
            ptk_regex_set_add_unicode(set, p->config->unicode,
                                      (struct ptk_unicode_set){.mask = names[i].mask});
            return 0;
        }
    }
    return unsupported(p, p->at, "this POSIX bracket");
}

/* One level of [...]: ((items && items) && items), negated as a whole. */
struct class_level {
    struct ptk_regex_set items;    /* since the last && */
    struct ptk_regex_set operands; /* what was before it */
    bool has_operands;
    bool has_items;
    bool negated;
};

/* && and the end of a level: intersects the items with what was before. */
static void fold_operands(struct class_level *level)
{
    ptk_regex_set_normalize(&level->items);
    if (level->has_operands) {
        ptk_regex_set_intersect(&level->operands, &level->items);
        ptk_regex_set_fini(&level->items);
    } else {
        level->operands = level->items;
        level->items = (struct ptk_regex_set){0};
    }
    level->has_operands = true;
    level->has_items = false;
}

/* A character of a set, or a range of them. */
static int parse_class_char(struct parser *p, struct ptk_regex_set *set)
{
    const size_t begin = p->at;
    uint32_t first;
    if (looking_at(p, "-") && !looking_at(p, "-]") && p->pattern[p->at - 1] != '[' &&
        p->pattern[p->at - 1] != '^') {
        return unsupported(p, begin, "a hyphen in the middle of a set");
    }
    int rc = parse_char(p, &first);
    if (rc != 0) {
        return rc;
    }
    uint32_t last = first;
    if (looking_at(p, "-") && !looking_at(p, "-]")) {
        p->at++;
        if (p->at == p->len || at_set_escape(p) || looking_at(p, "[") || looking_at(p, "&&")) {
            return unsupported(p, begin, "a range that does not end in a character");
        }
        rc = parse_char(p, &last);
        if (rc != 0) {
            return rc;
        }
        if (last < first) {
            return refuse(p, -EINVAL, begin, "a range runs backwards");
        }
    }
    return add_folded(p, begin, set, first, last + 1);
}

/* One step inside the innermost level: an item. */
static int parse_class_item(struct parser *p, struct class_level *level)
{
    level->has_items = true;
    if (!is_onig(p) && (looking_at(p, "--") || looking_at(p, "~~"))) {
        return unsupported(p, p->at, "a difference of sets");
    }
    if (looking_at(p, "[:")) {
        return parse_posix(p, &level->items);
    }
    if (at_set_escape(p)) {
        return parse_set_escape(p, true, &level->items);
    }
    return parse_class_char(p, &level->items);
}

/* [...]: emits its set. `p->at` stands at the bracket. */
static int parse_class(struct parser *p)
{
    const size_t begin = p->at;
    struct class_level levels[CLASSES_MAX] = {0};
    size_t depth = 0; /* levels open */
    int rc = 0;
    do {
        if (p->at == p->len) {
            rc = refuse(p, -EINVAL, begin, "a set without its closing bracket");
        } else if (looking_at(p, "[") && !looking_at(p, "[:")) {
            if (depth == CLASSES_MAX) {
                rc = unsupported(p, p->at, "sets nested this deep");
                break;
            }
            p->at++;
            levels[depth++].negated = take(p, "^");
        } else if (take(p, "&&")) {
            if (!levels[depth - 1].has_items) {
                rc = unsupported(p, p->at - 2, "&& without a set on its left");
            }
            fold_operands(&levels[depth - 1]);
        } else if (looking_at(p, "]")) {
            struct class_level *level = &levels[--depth];
            if (!level->has_items) {
                rc = unsupported(p, p->at, "an empty set");
            }
            p->at++;
            fold_operands(level);
            if (level->negated) {
                ptk_regex_set_complement(&level->operands);
            }
            if (depth > 0) {
                ptk_regex_set_add_set(&levels[depth - 1].items, &level->operands);
                levels[depth - 1].has_items = true;
                ptk_regex_set_fini(&level->operands);
                *level = (struct class_level){0};
            }
        } else {
            rc = parse_class_item(p, &levels[depth - 1]);
        }
    } while (rc == 0 && depth > 0);

    if (rc == 0) {
        const size_t item = p->out->pattern_len;
        rc = emit_set(p, &levels[0].operands);
        set_item(p, item, 1);
        p->previous_folded = 0;
    }
    for (size_t i = 0; i < CLASSES_MAX; i++) {
        ptk_regex_set_fini(&levels[i].items);
        ptk_regex_set_fini(&levels[i].operands);
    }
    return rc;
}

/*
 * Under (?i:...), Oniguruma also lets these pairs of letters stand for their ligature (and U+00DF
 * for ss): refused rather than followed.
 */
static bool is_ligature(uint32_t first, uint32_t second)
{
    return (first == 'f' && (second == 'f' || second == 'i' || second == 'l')) ||
           (first == 's' && (second == 's' || second == 't'));
}

static int parse_literal(struct parser *p)
{
    const size_t begin = p->at;
    const size_t item = p->out->pattern_len;
    uint32_t code_point;
    int rc = parse_char(p, &code_point);
    if (rc != 0) {
        return rc;
    }
    const uint32_t folded = p->fold && code_point < 0x80 ? code_point | 0x20 : 0;
    if (is_onig(p) && is_ligature(p->previous_folded, folded)) {
        return unsupported(p, begin, "a pair of letters with a ligature under (?i:...)");
    }
    struct ptk_regex_set set = {0};
    rc = add_folded(p, begin, &set, code_point, code_point + 1);
    ptk_regex_set_normalize(&set);
    if (rc != 0) {
        ptk_regex_set_fini(&set);
        return rc;
    }
    rc = emit_set(p, &set);
    set_item(p, item, 1);
    p->previous_folded = folded;
    return rc;
}

/* --- Places -------------------------------------------------------------------------------------
 */

/* \b and \B */
static int parse_word_boundary(struct parser *p, bool negated)
{
    const uint64_t mask = is_onig(p) ? PTK_UNICODE_WORD : PTK_UNICODE_WORD_RUST;
    int rc = emit(p, negated ? "(?:(?<=" : "(?:(?<!");
    rc = rc != 0 ? rc : emit_mask(p, mask);
    rc = rc != 0 ? rc : emit(p, ")(?=");
    rc = rc != 0 ? rc : emit_mask(p, mask);
    rc = rc != 0 ? rc : emit(p, negated ? ")|(?<!" : ")|(?<=");
    rc = rc != 0 ? rc : emit_mask(p, mask);
    rc = rc != 0 ? rc : emit(p, ")(?!");
    rc = rc != 0 ? rc : emit_mask(p, mask);
    return rc != 0 ? rc : emit(p, "))");
}

/* ^ and $: in Oniguruma lines begin and end at every \n, in Rust only the text does. */
static int parse_line_edge(struct parser *p, bool is_end)
{
    if (!is_onig(p)) {
        return emit(p, is_end ? "\\z" : "\\A");
    }
    int rc = emit(p, is_end ? "(?:\\z|(?=" : "(?:\\A|(?<=");
    rc = rc != 0 ? rc : emit_range(p, '\n', '\n' + 1);
    return rc != 0 ? rc : emit(p, is_end ? "))" : ")(?!\\z))");
}

/* A place, if `p->at` stands at one; `*is_place` says so. */
static int parse_place(struct parser *p, bool *is_place)
{
    *is_place = true;
    if (take(p, "^")) {
        return parse_line_edge(p, false);
    }
    if (take(p, "$")) {
        return parse_line_edge(p, true);
    }
    if (take(p, "\\A")) {
        return emit(p, "\\A");
    }
    if (take(p, "\\z")) {
        return emit(p, "\\z");
    }
    if (take(p, "\\b")) {
        return parse_word_boundary(p, false);
    }
    if (take(p, "\\B")) {
        return parse_word_boundary(p, true);
    }
    *is_place = false;
    return 0;
}

/* --- Groups and repetition ----------------------------------------------------------------------
 */

static int open_group(struct parser *p)
{
    static const struct {
        const char *text;
        const char *translated;
        enum group_kind kind;
    } kinds[] = {
        {"(?:", "(?:", GROUP_PLAIN},  {"(?>", "(?>", GROUP_PLAIN},   {"(?=", "(?=", GROUP_LOOK},
        {"(?!", "(?!", GROUP_LOOK},   {"(?<=", "(?<=", GROUP_LOOK},  {"(?<!", "(?<!", GROUP_LOOK},
        {"(?i:", "(?:", GROUP_PLAIN}, {"(?-i:", "(?:", GROUP_PLAIN},
    };
    if (p->depth + 1 == GROUPS_MAX) {
        return unsupported(p, p->at, "groups nested this deep");
    }
    struct group *group = &p->groups[p->depth + 1];
    *group = (struct group){.kind = GROUP_PLAIN,
                            .outer_fold = p->fold,
                            .begin = p->out->pattern_len,
                            .min = UINT32_MAX};
    int rc = 0;
    if (looking_at(p, "(?")) {
        size_t i = 0;
        while (i < PTK_ARRAY_LEN(kinds) && !looking_at(p, kinds[i].text)) {
            i++;
        }
        if (i == PTK_ARRAY_LEN(kinds)) {
            return unsupported(p, p->at, "this kind of group");
        }
        p->fold = looking_at(p, "(?i:") || (p->fold && !looking_at(p, "(?-i:"));
        p->at += strlen(kinds[i].text);
        group->kind = kinds[i].kind;
        rc = emit(p, kinds[i].translated);
    } else {
        p->at++;
        rc = emit(p, "(?:");
    }
    p->depth++;
    set_no_item(p);
    return rc;
}

static void end_branch(struct group *group)
{
    group->min = group->branch_min < group->min ? group->branch_min : group->min;
    group->branch_min = 0;
}

static int close_group(struct parser *p)
{
    if (p->depth == 0) {
        return refuse(p, -EINVAL, p->at, "a closing parenthesis without its opening one");
    }
    struct group *group = &p->groups[p->depth];
    end_branch(group);
    p->at++;
    p->depth--;
    p->fold = group->outer_fold;
    set_no_item(p);
    if (group->kind == GROUP_PLAIN) {
        set_item(p, group->begin, group->min);
    }
    return emit(p, ")");
}

/* Digits of {n,m}; false when there are none or too many. */
static bool parse_number(struct parser *p, uint32_t *value)
{
    const size_t begin = p->at;
    *value = 0;
    while (p->at < p->len && p->pattern[p->at] >= '0' && p->pattern[p->at] <= '9') {
        *value = *value * 10 + (uint32_t)(p->pattern[p->at] - '0');
        p->at++;
        if (*value > REPEAT_MAX) {
            return false;
        }
    }
    return p->at > begin;
}

struct repeat {
    uint32_t min;
    uint32_t max; /* UINT32_MAX: no limit */
    bool braces;
};

static int parse_bounds(struct parser *p, struct repeat *repeat)
{
    const size_t begin = p->at;
    *repeat = (struct repeat){.min = 0, .max = UINT32_MAX};
    if (take(p, "*")) {
        return 0;
    }
    if (take(p, "+")) {
        repeat->min = 1;
        return 0;
    }
    if (take(p, "?")) {
        repeat->max = 1;
        return 0;
    }
    p->at++; /* the brace */
    repeat->braces = true;
    bool is_right = parse_number(p, &repeat->min);
    if (is_right && take(p, ",")) {
        if (!looking_at(p, "}")) {
            is_right = parse_number(p, &repeat->max) && repeat->max >= repeat->min;
        }
    } else {
        repeat->max = repeat->min;
    }
    return is_right && take(p, "}") ? 0 : unsupported(p, begin, "this form of a repetition");
}

/* Wraps the item before into (?:...), for a repetition of a repetition. */
static int wrap_item(struct parser *p)
{
    struct ptk_regex_parsed *out = p->out;
    int rc = emit(p, "(?:");
    if (rc != 0) {
        return rc;
    }
    uint8_t *item = out->pattern + p->item_begin;
    memmove(item + 3, item, out->pattern_len - p->item_begin - 3);
    memcpy(item, "(?:", 3);
    return emit(p, ")");
}

static int parse_repeat(struct parser *p)
{
    const size_t begin = p->at;
    struct repeat repeat;
    if (!p->has_item) {
        return unsupported(p, begin, "a repetition of this");
    }
    int rc = parse_bounds(p, &repeat);
    if (rc != 0) {
        return rc;
    }
    if (p->item_min == 0 && repeat.max > 1) {
        return unsupported(p, begin, "the repetition of a group that may be empty");
    }
    rc = emit_bytes(p, p->pattern + begin, p->at - begin);
    if (rc != 0) {
        return rc;
    }
    struct group *group = &p->groups[p->depth];
    group->branch_min += p->item_min * repeat.min - p->item_min;
    if (group->branch_min > PTK_REGEX_PATTERN_LEN_MAX) {
        return unsupported(p, begin, "a repetition this long");
    }
    if (looking_at(p, "?") && repeat.braces && repeat.min == repeat.max) {
        return unsupported(p, p->at, "a question mark behind {n}");
    }
    if (take(p, "?")) {
        rc = emit(p, "?");
    } else if (take(p, "+")) {
        if (repeat.braces && is_onig(p)) { /* Ruby: the plus repeats the repetition. */
            if (repeat.min == 0) {
                return unsupported(p, begin, "the repetition of something that may be empty");
            }
            rc = wrap_item(p);
        }
        rc = rc != 0 ? rc : emit(p, "+");
    }
    set_no_item(p);
    if (p->at < p->len && strchr("*+?{", p->pattern[p->at]) != NULL && p->pattern[p->at] != 0) {
        return unsupported(p, p->at, "a repetition of a repetition");
    }
    return rc;
}

/* --- The whole ----------------------------------------------------------------------------------
 */

static int parse_item(struct parser *p)
{
    bool is_place;
    int rc = parse_place(p, &is_place);
    if (rc != 0 || is_place) {
        set_no_item(p);
        return rc;
    }
    switch (p->pattern[p->at]) {
    case '(':
        return open_group(p);
    case ')':
        return close_group(p);
    case '|':
        p->at++;
        end_branch(&p->groups[p->depth]);
        set_no_item(p);
        return emit(p, "|");
    case '*':
    case '+':
    case '?':
    case '{':
        return parse_repeat(p);
    case '[':
        return parse_class(p);
    case ']':
    case '}':
        return unsupported(p, p->at, "a closing bracket that is not escaped");
    default:
        break;
    }
    if (looking_at(p, ".")) {
        const size_t item = p->out->pattern_len;
        struct ptk_regex_set set = {0};
        ptk_regex_set_add(&set, '\n', '\n' + 1);
        ptk_regex_set_complement(&set);
        p->at++;
        rc = emit_set(p, &set);
        set_item(p, item, 1);
        p->previous_folded = 0;
        return rc;
    }
    if (at_set_escape(p)) {
        const size_t item = p->out->pattern_len;
        struct ptk_regex_set set = {0};
        rc = parse_set_escape(p, false, &set);
        ptk_regex_set_normalize(&set);
        if (rc != 0) {
            ptk_regex_set_fini(&set);
            return rc;
        }
        rc = emit_set(p, &set);
        set_item(p, item, 1);
        p->previous_folded = 0;
        return rc;
    }
    return parse_literal(p);
}

int ptk_regex_parse(const struct ptk_regex_config *config, struct ptk_regex_parsed *parsed,
                    struct ptk_err *err)
{
    *parsed = (struct ptk_regex_parsed){.pattern_cap = PTK_REGEX_PATTERN_LEN_MAX};
    struct parser p = {.config = config,
                       .out = parsed,
                       .err = err,
                       .pattern = config->pattern,
                       .len = config->pattern_len};
    p.groups[0] = (struct group){.kind = GROUP_PLAIN, .min = UINT32_MAX};
    if (p.len > PTK_REGEX_PATTERN_LEN_MAX) {
        return unsupported(&p, 0, "a pattern of this length");
    }
    if (!ptk_utf8_valid(p.pattern, p.len)) {
        return refuse(&p, -EINVAL, 0, "the pattern is not valid UTF-8");
    }
    parsed->pattern = malloc(parsed->pattern_cap);
    parsed->sets = calloc(PTK_REGEX_SETS_MAX, sizeof *parsed->sets);
    if (parsed->pattern == NULL || parsed->sets == NULL) {
        return refuse(&p, -ENOMEM, 0, "no memory");
    }
    while (p.at < p.len) {
        int rc = parse_item(&p);
        if (rc != 0) {
            return rc;
        }
    }
    if (p.depth != 0) {
        return refuse(&p, -EINVAL, p.len, "a group without its closing parenthesis");
    }
    return 0;
}

void ptk_regex_parsed_fini(struct ptk_regex_parsed *parsed)
{
    for (size_t i = 0; i < parsed->set_count; i++) {
        ptk_regex_set_fini(&parsed->sets[i]);
    }
    free(parsed->sets);
    free(parsed->pattern);
    *parsed = (struct ptk_regex_parsed){0};
}
