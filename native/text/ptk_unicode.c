/*
 * Composition of pairs, and sets of code points by name for translating regular expressions; see
 * ptk_unicode.h.
 */
#include "text/ptk_unicode.h"

#define SURROGATES_BEGIN 0xD800u
#define SURROGATES_END   0xE000u

_Static_assert(PTK_UNICODE_CLASS_SHIFT == PTK_UNICODE_SCRIPT_SHIFT, "ptk_unicode_list walks both");

/* Names in small letters without separators. `Any` is every category. */
static const struct {
    const char *name;
    uint64_t mask;
} class_names[] = {
    {"l", PTK_UNICODE_L},
    {"letter", PTK_UNICODE_L},
    {"lu", PTK_UNICODE_LU},
    {"uppercaseletter", PTK_UNICODE_LU},
    {"ll", PTK_UNICODE_LL},
    {"lowercaseletter", PTK_UNICODE_LL},
    {"lt", PTK_UNICODE_LT},
    {"titlecaseletter", PTK_UNICODE_LT},
    {"lc", PTK_UNICODE_LU | PTK_UNICODE_LL | PTK_UNICODE_LT},
    {"lm", PTK_UNICODE_LM},
    {"modifierletter", PTK_UNICODE_LM},
    {"lo", PTK_UNICODE_LO},
    {"otherletter", PTK_UNICODE_LO},
    {"m", PTK_UNICODE_M},
    {"mark", PTK_UNICODE_M},
    {"mn", PTK_UNICODE_MN},
    {"nonspacingmark", PTK_UNICODE_MN},
    {"mc", PTK_UNICODE_MC},
    {"spacingmark", PTK_UNICODE_MC},
    {"me", PTK_UNICODE_ME},
    {"enclosingmark", PTK_UNICODE_ME},
    {"n", PTK_UNICODE_N},
    {"number", PTK_UNICODE_N},
    {"nd", PTK_UNICODE_ND},
    {"decimalnumber", PTK_UNICODE_ND},
    {"digit", PTK_UNICODE_ND},
    {"nl", PTK_UNICODE_NL},
    {"letternumber", PTK_UNICODE_NL},
    {"no", PTK_UNICODE_NO},
    {"othernumber", PTK_UNICODE_NO},
    {"p", PTK_UNICODE_P},
    {"punctuation", PTK_UNICODE_P},
    {"pc", PTK_UNICODE_PC},
    {"connectorpunctuation", PTK_UNICODE_PC},
    {"pd", PTK_UNICODE_PD},
    {"dashpunctuation", PTK_UNICODE_PD},
    {"ps", PTK_UNICODE_PS},
    {"openpunctuation", PTK_UNICODE_PS},
    {"pe", PTK_UNICODE_PE},
    {"closepunctuation", PTK_UNICODE_PE},
    {"pi", PTK_UNICODE_PI},
    {"initialpunctuation", PTK_UNICODE_PI},
    {"pf", PTK_UNICODE_PF},
    {"finalpunctuation", PTK_UNICODE_PF},
    {"po", PTK_UNICODE_PO},
    {"otherpunctuation", PTK_UNICODE_PO},
    {"s", PTK_UNICODE_S},
    {"symbol", PTK_UNICODE_S},
    {"sm", PTK_UNICODE_SM},
    {"mathsymbol", PTK_UNICODE_SM},
    {"sc", PTK_UNICODE_SC},
    {"currencysymbol", PTK_UNICODE_SC},
    {"sk", PTK_UNICODE_SK},
    {"modifiersymbol", PTK_UNICODE_SK},
    {"so", PTK_UNICODE_SO},
    {"othersymbol", PTK_UNICODE_SO},
    {"z", PTK_UNICODE_Z},
    {"separator", PTK_UNICODE_Z},
    {"zs", PTK_UNICODE_ZS},
    {"spaceseparator", PTK_UNICODE_ZS},
    {"zl", PTK_UNICODE_ZL},
    {"lineseparator", PTK_UNICODE_ZL},
    {"zp", PTK_UNICODE_ZP},
    {"paragraphseparator", PTK_UNICODE_ZP},
    {"c", PTK_UNICODE_C},
    {"other", PTK_UNICODE_C},
    {"cc", PTK_UNICODE_CC},
    {"control", PTK_UNICODE_CC},
    {"cntrl", PTK_UNICODE_CC},
    {"cf", PTK_UNICODE_CF},
    {"format", PTK_UNICODE_CF},
    {"cs", PTK_UNICODE_CS},
    {"surrogate", PTK_UNICODE_CS},
    {"co", PTK_UNICODE_CO},
    {"privateuse", PTK_UNICODE_CO},
    {"cn", PTK_UNICODE_CN},
    {"unassigned", PTK_UNICODE_CN},
    {"punct", PTK_UNICODE_P},
    {"space", PTK_UNICODE_SPACE},
    {"whitespace", PTK_UNICODE_SPACE},
    {"word", PTK_UNICODE_WORD},
    {"alpha", PTK_UNICODE_ALPHA},
    {"alphabetic", PTK_UNICODE_ALPHA},
    {"upper", PTK_UNICODE_UPPER},
    {"uppercase", PTK_UNICODE_UPPER},
    {"lower", PTK_UNICODE_LOWER},
    {"lowercase", PTK_UNICODE_LOWER},
    {"alnum", PTK_UNICODE_ALPHA | PTK_UNICODE_ND},
    {"any", PTK_UNICODE_L | PTK_UNICODE_M | PTK_UNICODE_N | PTK_UNICODE_P | PTK_UNICODE_S |
                PTK_UNICODE_Z | PTK_UNICODE_C},
};

const struct ptk_unicode *ptk_unicode_open(enum ptk_image_profile profile)
{
    switch (profile) {
    case PTK_IMAGE_PROFILE_TOKENIZERS_0_23:
        return &ptk_unicode_tokenizers_0_23;
    case PTK_IMAGE_PROFILE_TOKENIZERS_1_0:
        return &ptk_unicode_tokenizers_1_0;
    default:
        return NULL;
    }
}

const struct ptk_unicode *ptk_unicode_open_regex(enum ptk_image_profile profile)
{
    const bool is_1_0 = profile == PTK_IMAGE_PROFILE_TOKENIZERS_1_0;
    return ptk_unicode_open(is_1_0 ? PTK_IMAGE_PROFILE_TOKENIZERS_0_23 : profile);
}

static uint32_t compose_hangul(uint32_t first, uint32_t second)
{
    uint32_t l = first - PTK_HANGUL_L;
    uint32_t v = second - PTK_HANGUL_V;
    if (l < PTK_HANGUL_L_LEN && v < PTK_HANGUL_V_LEN) {
        return PTK_HANGUL_S + (l * PTK_HANGUL_V_LEN + v) * PTK_HANGUL_T_LEN;
    }
    uint32_t s = first - PTK_HANGUL_S;
    uint32_t t = second - PTK_HANGUL_T;
    if (s < PTK_HANGUL_S_LEN && s % PTK_HANGUL_T_LEN == 0 && t > 0 && t < PTK_HANGUL_T_LEN) {
        return first + t;
    }
    return 0;
}

uint32_t ptk_unicode_compose(const struct ptk_unicode *unicode, uint32_t first, uint32_t second)
{
    uint32_t syllable = compose_hangul(first, second);
    if (syllable != 0) {
        return syllable;
    }
    uint64_t key = (uint64_t)first << 21 | second;
    size_t mask = ((size_t)1 << PTK_UNICODE_PAIR_BITS) - 1;
    size_t slot = (size_t)(key * PTK_UNICODE_PAIR_FACTOR >> (64 - PTK_UNICODE_PAIR_BITS));
    while (unicode->pairs[slot] != 0) { /* Ends: the table is never full. */
        if (unicode->pairs[slot] >> 21 == key) {
            return (uint32_t)(unicode->pairs[slot] & 0x1FFFFF);
        }
        slot = (slot + 1) & mask;
    }
    return 0;
}

/* The next character of a name that counts, in small; 0 at the end. */
static char next_char(const char **cursor, const char *end)
{
    while (*cursor < end) {
        char c = *(*cursor)++;
        if (c != ' ' && c != '-' && c != '_') {
            return (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
        }
    }
    return 0;
}

/* Compares with a terminated name of ours. */
static bool is_name(const char *name, size_t name_len, const char *ours)
{
    const char *ours_end = ours;
    while (*ours_end != 0) {
        ours_end++;
    }
    const char *end = name + name_len;
    for (;;) { /* Ends at the end of the shorter one. */
        char c = next_char(&name, end);
        if (c != next_char(&ours, ours_end)) {
            return false;
        }
        if (c == 0) {
            return true;
        }
    }
}

bool ptk_unicode_find_set(const struct ptk_unicode *unicode, const char *name, size_t name_len,
                          struct ptk_unicode_set *set)
{
    for (size_t i = 0; i < PTK_ARRAY_LEN(class_names); i++) {
        if (is_name(name, name_len, class_names[i].name)) {
            *set = (struct ptk_unicode_set){.mask = class_names[i].mask};
            return true;
        }
    }
    for (uint32_t script = 0; script < unicode->script_count; script++) {
        if (is_name(name, name_len, unicode->script_names[script])) {
            *set = (struct ptk_unicode_set){.script = script};
            return true;
        }
    }
    return false;
}

/* Writes a range where there is still room. */
static void put_range(struct ptk_unicode_range *ranges, size_t cap, size_t idx, uint32_t begin,
                      uint32_t end)
{
    if (idx < cap) {
        ranges[idx] = (struct ptk_unicode_range){.begin = begin, .end = end};
    }
}

static bool is_member(const struct ptk_unicode *unicode, struct ptk_unicode_set set,
                      uint32_t code_point)
{
    if (code_point >= SURROGATES_BEGIN && code_point < SURROGATES_END) {
        return false;
    }
    if (set.mask != 0) {
        return (ptk_unicode_mask(unicode, code_point) & set.mask) != 0;
    }
    size_t block = unicode->script_blocks[code_point >> PTK_UNICODE_SCRIPT_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_SCRIPT_SHIFT) - 1);
    return unicode->script_leaves[block << PTK_UNICODE_SCRIPT_SHIFT | leaf] == set.script;
}

size_t ptk_unicode_list(const struct ptk_unicode *unicode, struct ptk_unicode_set set,
                        struct ptk_unicode_range *ranges, size_t cap)
{
    const uint16_t *blocks = set.mask != 0 ? unicode->class_blocks : unicode->script_blocks;
    const uint32_t block_len = 1u << PTK_UNICODE_CLASS_SHIFT;
    size_t count = 0;
    uint32_t begin = 0;
    bool inside = false;
    uint32_t same_block = UINT32_MAX; /* a block all of whose members are as `inside` says */
    for (uint32_t code_point = 0; code_point < PTK_UNICODE_END;) {
        /* Most of the space is few blocks again and again; surrogates begin and end with one. */
        uint32_t block = blocks[code_point >> PTK_UNICODE_CLASS_SHIFT];
        if (block == same_block && code_point != SURROGATES_BEGIN && code_point != SURROGATES_END) {
            code_point += block_len;
            continue;
        }
        size_t count_before = count;
        bool inside_before = inside;
        for (uint32_t end = code_point + block_len; code_point < end; code_point++) {
            bool member = is_member(unicode, set, code_point);
            if (member && !inside) {
                begin = code_point;
            }
            if (inside && !member) {
                put_range(ranges, cap, count++, begin, code_point);
            }
            inside = member;
        }
        bool uniform = count == count_before && inside == inside_before;
        same_block = uniform ? block : UINT32_MAX;
    }
    if (inside) {
        put_range(ranges, cap, count++, begin, PTK_UNICODE_END);
    }
    return count;
}
