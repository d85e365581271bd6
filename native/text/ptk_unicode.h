/*
 * Classes of code points, as the reference sees them.
 *
 * The reference mixes Unicode versions, so classes belong to a profile (`enum ptk_image_profile`):
 * its tables are answers of the reference itself, written by scripts/gen_unicode.py. One look-up
 * yields a mask with every class of a code point, PTK_UNICODE_* in gen/ptk_unicode_gen.h:
 *
 *     mask & PTK_UNICODE_L        \p{L}        mask & PTK_UNICODE_SPACE    \s
 *     mask & PTK_UNICODE_LU       \p{Lu}       mask & PTK_UNICODE_WHITE    Rust's is_whitespace
 *
 * Tables for the masks take 52 KB, of which ordinary text touches a few lines.
 */
#ifndef PTK_UNICODE_H
#define PTK_UNICODE_H

#include "base/ptk_base.h"
#include "gen/ptk_image_gen.h"
#include "gen/ptk_unicode_gen.h"

/* Code points end here. */
#define PTK_UNICODE_END 0x110000u

/* ptk_unicode_open returns the tables of a profile, or NULL when this build has none for it. */
const struct ptk_unicode *ptk_unicode_open(enum ptk_image_profile profile);

/*
 * ptk_unicode_open_regex returns the tables of what a profile's Replace matches. In tokenizers 1.0
 * split patterns have classes of their own, and its regular expressions those of 0.23: but for
 * \w, which no model of that profile has in a Replace.
 */
const struct ptk_unicode *ptk_unicode_open_regex(enum ptk_image_profile profile);

/*
 * ptk_unicode_class returns a small number that stands for the mask of `code_point`, which must be
 * below PTK_UNICODE_END: an index for tables of the caller's own, below `class_count` (at most
 * 256).
 */
static inline uint8_t ptk_unicode_class(const struct ptk_unicode *unicode, uint32_t code_point)
{
    size_t block = unicode->class_blocks[code_point >> PTK_UNICODE_CLASS_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_CLASS_SHIFT) - 1);
    return unicode->class_leaves[block << PTK_UNICODE_CLASS_SHIFT | leaf];
}

/* ptk_unicode_mask returns the PTK_UNICODE_* bits of `code_point`, below PTK_UNICODE_END. */
static inline uint64_t ptk_unicode_mask(const struct ptk_unicode *unicode, uint32_t code_point)
{
    return unicode->class_masks[ptk_unicode_class(unicode, code_point)];
}

/*
 * ptk_unicode_split_script returns the script class by which UnicodeScripts splits: a boundary lies
 * between two different classes, 0 joins anything.
 */
static inline uint8_t ptk_unicode_split_script(const struct ptk_unicode *unicode,
                                               uint32_t code_point)
{
    size_t block = unicode->split_script_blocks[code_point >> PTK_UNICODE_SCRIPT_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_SCRIPT_SHIFT) - 1);
    return unicode->split_script_leaves[block << PTK_UNICODE_SCRIPT_SHIFT | leaf];
}

/*
 * ptk_unicode_norm returns what the normal forms need to know of a code point: its combining class
 * in the bits PTK_UNICODE_NORM_CLASS, and a bit PTK_UNICODE_NORM_NFC, ... for each form in which it
 * is not certain to stay itself after any other text.
 */
static inline uint32_t ptk_unicode_norm(const struct ptk_unicode *unicode, uint32_t code_point)
{
    size_t block = unicode->norm_blocks[code_point >> PTK_UNICODE_NORM_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_NORM_SHIFT) - 1);
    return unicode->norm_words[unicode->norm_leaves[block << PTK_UNICODE_NORM_SHIFT | leaf]];
}

/*
 * ptk_unicode_grapheme returns the class of a code point by which grapheme clusters are told apart
 * (PTK_UNICODE_GRAPHEME_CLASS, then PTK_UNICODE_GRAPHEME_OTHER, ...) and its flags.
 */
static inline uint32_t ptk_unicode_grapheme(const struct ptk_unicode *unicode, uint32_t code_point)
{
    size_t block = unicode->grapheme_blocks[code_point >> PTK_UNICODE_GRAPHEME_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_GRAPHEME_SHIFT) - 1);
    return unicode->grapheme_leaves[block << PTK_UNICODE_GRAPHEME_SHIFT | leaf];
}

/*
 * ptk_unicode_map returns the code points that `map` turns `code_point` into and their number, at
 * most PTK_UNICODE_MAP_LEN_MAX; NULL where the map leaves it alone. Hangul is in no map.
 */
static inline const uint32_t *ptk_unicode_map(const struct ptk_unicode_map *map,
                                              uint32_t code_point, uint32_t *len)
{
    if (code_point >= map->end) {
        return NULL;
    }
    size_t block = map->blocks[code_point >> PTK_UNICODE_MAP_SHIFT];
    size_t leaf = code_point & ((1u << PTK_UNICODE_MAP_SHIFT) - 1);
    uint32_t idx = map->leaves[block << PTK_UNICODE_MAP_SHIFT | leaf];
    if (idx == 0) {
        return NULL;
    }
    uint32_t entry = map->entries[idx];
    *len = entry & PTK_UNICODE_MAP_LEN_MAX;
    return map->pool + (entry >> PTK_UNICODE_MAP_LEN_BITS);
}

/* Syllables of Hangul and their parts, which compose by arithmetic. */
#define PTK_HANGUL_S     0xAC00u
#define PTK_HANGUL_L     0x1100u
#define PTK_HANGUL_V     0x1161u
#define PTK_HANGUL_T     0x11A7u /* one before the first trailing part */
#define PTK_HANGUL_L_LEN 19u
#define PTK_HANGUL_V_LEN 21u
#define PTK_HANGUL_T_LEN 28u /* "no trailing part" included */
#define PTK_HANGUL_S_LEN (PTK_HANGUL_L_LEN * PTK_HANGUL_V_LEN * PTK_HANGUL_T_LEN)

/* ptk_unicode_compose returns the primary composite of a pair, Hangul included, or 0. */
uint32_t ptk_unicode_compose(const struct ptk_unicode *unicode, uint32_t first, uint32_t second);

/* A set of code points: those with any bit of `mask`, or those of one script. */
struct ptk_unicode_set {
    uint64_t mask;   /* 0: the set is a script */
    uint32_t script; /* index of a script name; unused when `mask` is not 0 */
};

/* Half-open range of code points. */
struct ptk_unicode_range {
    uint32_t begin;
    uint32_t end;
};

/*
 * ptk_unicode_find_set looks up what a regular expression writes between the braces of \p{...}:
 * category, group of categories, script, `Alphabetic`, ..., with the reference's rule that case,
 * spaces, `-` and `_` do not count. Returns false when the profile has no such name.
 */
bool ptk_unicode_find_set(const struct ptk_unicode *unicode, const char *name, size_t name_len,
                          struct ptk_unicode_set *set);

/*
 * ptk_unicode_list writes the ranges of a set, ascending, neither empty nor touching, without
 * surrogates, and returns how many there are. With a `cap` smaller than that only the first `cap`
 * are written. For set-up: it walks all code points.
 */
size_t ptk_unicode_list(const struct ptk_unicode *unicode, struct ptk_unicode_set set,
                        struct ptk_unicode_range *ranges, size_t cap);

#endif
