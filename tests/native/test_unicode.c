/*
 * Unicode classes: spot values, sets and ranges. `test_unicode --dump` writes the mask (u64) and
 * the UnicodeScripts class (u8) of every code point for tests/unit/test_unicode.py.
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_unicode.h"

#define RANGES_CAP 2048

static struct ptk_unicode_range ranges[RANGES_CAP];

/* Each class holds where the reference says so, at both sides of a boundary. */
static void test_masks_match_known_code_points(const struct ptk_unicode *unicode)
{
    static const struct {
        uint32_t code_point;
        uint64_t mask;
        bool member;
    } cases[] = {
        {'A', PTK_UNICODE_LU, true},
        {'@', PTK_UNICODE_L, false},
        {'a', PTK_UNICODE_LL, true},
        {'_', PTK_UNICODE_WORD, true},
        {0xAA, PTK_UNICODE_LO, true},
        {0xB2, PTK_UNICODE_NO, true},
        {0xB2, PTK_UNICODE_WORD, true},
        {0xB2, PTK_UNICODE_WORD_RUST, false},
        {0xB2, PTK_UNICODE_WORD_POSIX, false},
        {0x85, PTK_UNICODE_SPACE, true},
        {0x200B, PTK_UNICODE_SPACE, false},
        {0x3000, PTK_UNICODE_SPACE, true},
        {0x180E, PTK_UNICODE_SPACE, false},
        {0x4E00, PTK_UNICODE_HAN, true},
        {0x4E00, PTK_UNICODE_NUMERIC, false},
        {0x3007, PTK_UNICODE_HAN, true},
        {0x0B, PTK_UNICODE_BERT_REMOVED, true},
        {0x09, PTK_UNICODE_BERT_SPACE, true},
        {0xD800, PTK_UNICODE_CS, true},
        {0xDFFF, PTK_UNICODE_CS, true},
        {0x10FFFF, PTK_UNICODE_CN, true},
        {0x10FFFD, PTK_UNICODE_CO, true},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(cases); i++) {
        bool member = (ptk_unicode_mask(unicode, cases[i].code_point) & cases[i].mask) != 0;
        if (member != cases[i].member) {
            fprintf(stderr, "U+%04X is wrong (case %zu)\n", (unsigned)cases[i].code_point, i);
            abort();
        }
    }
}

/* Exactly one category per code point: the translation of \p{...} and \P{...} relies on it. */
static void test_every_code_point_has_one_category(const struct ptk_unicode *unicode)
{
    const uint64_t categories = PTK_UNICODE_L | PTK_UNICODE_M | PTK_UNICODE_N | PTK_UNICODE_P |
                                PTK_UNICODE_S | PTK_UNICODE_Z | PTK_UNICODE_C;
    for (uint32_t code_point = 0; code_point < PTK_UNICODE_END; code_point++) {
        uint64_t mask = ptk_unicode_mask(unicode, code_point);
        PTK_ASSERT(__builtin_popcountll(mask & categories) == 1);
        PTK_ASSERT(ptk_unicode_class(unicode, code_point) < unicode->class_count);
    }
}

static struct ptk_unicode_set find(const struct ptk_unicode *unicode, const char *name)
{
    struct ptk_unicode_set set;
    PTK_ASSERT(ptk_unicode_find_set(unicode, name, strlen(name), &set));
    return set;
}

static void check_ranges(const struct ptk_unicode *unicode, struct ptk_unicode_set set,
                         uint64_t mask)
{
    size_t count = ptk_unicode_list(unicode, set, ranges, RANGES_CAP);
    PTK_ASSERT(count <= RANGES_CAP);
    size_t k = 0;
    for (uint32_t code_point = 0; code_point < PTK_UNICODE_END; code_point++) {
        while (k < count && ranges[k].end <= code_point) {
            k++;
        }
        bool listed = k < count && code_point >= ranges[k].begin;
        bool is_surrogate = code_point >= 0xD800 && code_point < 0xE000;
        bool member = (ptk_unicode_mask(unicode, code_point) & mask) != 0 && !is_surrogate;
        PTK_ASSERT(listed == member);
    }
    for (size_t i = 1; i < count; i++) {
        PTK_ASSERT(ranges[i - 1].end < ranges[i].begin);
    }
    struct ptk_unicode_range first[1];
    PTK_ASSERT(ptk_unicode_list(unicode, set, first, 1) == count);
    PTK_ASSERT(ptk_unicode_list(unicode, set, NULL, 0) == count);
    PTK_ASSERT(count == 0 || first[0].begin == ranges[0].begin);
}

/* Ranges and masks are two views of one set, for every bit, and the scripts' Han is the mask's. */
static void test_ranges_are_the_set(const struct ptk_unicode *unicode)
{
    for (uint32_t bit = 0; bit < 64; bit++) {
        const uint64_t mask = UINT64_C(1) << bit;
        check_ranges(unicode, (struct ptk_unicode_set){.mask = mask}, mask);
    }
    struct ptk_unicode_set han = find(unicode, "Han");
    PTK_ASSERT(han.mask == 0);
    check_ranges(unicode, han, PTK_UNICODE_HAN);
}

/* A range may end at the last code point, and none contains a surrogate. */
static void test_ranges_cover_the_ends(const struct ptk_unicode *unicode)
{
    size_t count = ptk_unicode_list(unicode, find(unicode, "any"), ranges, RANGES_CAP);
    PTK_ASSERT(count == 2);
    PTK_ASSERT(ranges[0].begin == 0);
    PTK_ASSERT(ranges[0].end == 0xD800);
    PTK_ASSERT(ranges[1].begin == 0xE000);
    PTK_ASSERT(ranges[1].end == PTK_UNICODE_END);
    PTK_ASSERT(ptk_unicode_list(unicode, find(unicode, "Cs"), ranges, RANGES_CAP) == 0);
}

/* Names are found whatever their case and separators, unknown and partial ones are not. */
static void test_names_are_folded(const struct ptk_unicode *unicode)
{
    PTK_ASSERT(find(unicode, "LU").mask == PTK_UNICODE_LU);
    PTK_ASSERT(find(unicode, "Uppercase_Letter").mask == PTK_UNICODE_LU);
    PTK_ASSERT(find(unicode, "white space").mask == PTK_UNICODE_SPACE);
    PTK_ASSERT(find(unicode, "OLD-permic").mask == 0);
    struct ptk_unicode_set set;
    const char *unknown[] = {"", "Hank", "Ha", "L&", "_"};
    for (size_t i = 0; i < PTK_ARRAY_LEN(unknown); i++) {
        PTK_ASSERT(!ptk_unicode_find_set(unicode, unknown[i], strlen(unknown[i]), &set));
    }
}

/* Tolong Siki digits are of Unicode 17, and so is what 1.0 composes and sets off. */
static void test_profiles_differ(const struct ptk_unicode *old, const struct ptk_unicode *new)
{
    PTK_ASSERT((ptk_unicode_mask(old, 0x11DE0) & PTK_UNICODE_N) == 0);
    PTK_ASSERT((ptk_unicode_mask(new, 0x11DE0) & PTK_UNICODE_N) != 0);
    PTK_ASSERT((ptk_unicode_mask(old, 0x2E43) & PTK_UNICODE_PUNCT) == 0);
    PTK_ASSERT((ptk_unicode_mask(new, 0x2E43) & PTK_UNICODE_PUNCT) != 0);
    PTK_ASSERT(ptk_unicode_compose(old, 0x105D2, 0x307) == 0);
    PTK_ASSERT(ptk_unicode_compose(new, 0x105D2, 0x307) == 0x105C9);
    PTK_ASSERT(old->long_s);
    PTK_ASSERT(!new->long_s);
}

static int dump(const struct ptk_unicode *unicode)
{
    for (uint32_t code_point = 0; code_point < PTK_UNICODE_END; code_point++) {
        uint64_t mask = ptk_unicode_mask(unicode, code_point);
        uint8_t script = ptk_unicode_split_script(unicode, code_point);
        if (fwrite(&mask, sizeof mask, 1, stdout) != 1 || fwrite(&script, 1, 1, stdout) != 1) {
            return 1;
        }
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    const struct ptk_unicode *unicode = ptk_unicode_open(PTK_IMAGE_PROFILE_TOKENIZERS_0_23);
    PTK_ASSERT(unicode != NULL);
    if (argc == 2 && strcmp(argv[1], "--dump") == 0) {
        return dump(unicode);
    }
    PTK_ASSERT(ptk_unicode_open(PTK_IMAGE_PROFILE_VALUE_COUNT) == NULL);
    test_masks_match_known_code_points(unicode);
    test_ranges_are_the_set(unicode);
    test_ranges_cover_the_ends(unicode);
    test_names_are_folded(unicode);
    for (enum ptk_image_profile profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23;
         profile < PTK_IMAGE_PROFILE_VALUE_COUNT; profile++) {
        test_every_code_point_has_one_category(ptk_unicode_open(profile));
        PTK_ASSERT(ptk_unicode_open_regex(profile) == unicode);
    }
    test_profiles_differ(unicode, ptk_unicode_open(PTK_IMAGE_PROFILE_TOKENIZERS_1_0));
    return 0;
}
