/*
 * Sets of code points as sorted ranges, for translating regular expressions: private to text/.
 *
 * Set-up only. A set that could not grow says so once, at the end: after a failed allocation
 * `has_failed` stays set and the contents mean nothing.
 */
#ifndef PTK_REGEX_SET_H
#define PTK_REGEX_SET_H

#include "text/ptk_unicode.h"

struct ptk_regex_set {
    struct ptk_unicode_range *ranges; /* ascending, neither empty nor touching, once normal */
    size_t count;
    size_t cap;
    bool has_failed;
};

void ptk_regex_set_fini(struct ptk_regex_set *set);

/* Adds code points [begin, end). The set is not normal any more. */
void ptk_regex_set_add(struct ptk_regex_set *set, uint32_t begin, uint32_t end);

/* Adds the code points of `other`. The set is not normal any more. */
void ptk_regex_set_add_set(struct ptk_regex_set *set, const struct ptk_regex_set *other);

/* Adds a set of the Unicode tables. The set is not normal any more. */
void ptk_regex_set_add_unicode(struct ptk_regex_set *set, const struct ptk_unicode *unicode,
                               struct ptk_unicode_set other);

/* Sorts and joins the ranges. The functions below need and leave normal sets. */
void ptk_regex_set_normalize(struct ptk_regex_set *set);

/* Makes `set` what it was not. */
void ptk_regex_set_complement(struct ptk_regex_set *set);

/* Takes away what is not in `other`. */
void ptk_regex_set_intersect(struct ptk_regex_set *set, const struct ptk_regex_set *other);

bool ptk_regex_set_equal(const struct ptk_regex_set *a, const struct ptk_regex_set *b);
bool ptk_regex_set_has(const struct ptk_regex_set *set, uint32_t code_point);

#endif
