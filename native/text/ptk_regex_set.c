/*
 * Sets of code points; see ptk_regex_set.h.
 */
#include "text/ptk_regex_set.h"

#include <stdlib.h>

void ptk_regex_set_fini(struct ptk_regex_set *set)
{
    free(set->ranges);
    *set = (struct ptk_regex_set){0};
}

/* Makes room for `more` ranges. */
static bool reserve(struct ptk_regex_set *set, size_t more)
{
    if (set->has_failed) {
        return false;
    }
    if (set->cap - set->count >= more) {
        return true;
    }
    size_t cap = ptk_max_size(set->count + more, 2 * set->cap);
    struct ptk_unicode_range *ranges = realloc(set->ranges, cap * sizeof *ranges);
    if (ranges == NULL) {
        set->has_failed = true;
        return false;
    }
    set->ranges = ranges;
    set->cap = cap;
    return true;
}

void ptk_regex_set_add(struct ptk_regex_set *set, uint32_t begin, uint32_t end)
{
    if (begin < end && reserve(set, 1)) {
        set->ranges[set->count++] = (struct ptk_unicode_range){begin, end};
    }
}

void ptk_regex_set_add_set(struct ptk_regex_set *set, const struct ptk_regex_set *other)
{
    set->has_failed = set->has_failed || other->has_failed;
    if (other->count > 0 && reserve(set, other->count)) {
        memcpy(set->ranges + set->count, other->ranges, other->count * sizeof *set->ranges);
        set->count += other->count;
    }
}

void ptk_regex_set_add_unicode(struct ptk_regex_set *set, const struct ptk_unicode *unicode,
                               struct ptk_unicode_set other)
{
    size_t count = ptk_unicode_list(unicode, other, NULL, 0);
    if (count > 0 && reserve(set, count)) {
        ptk_unicode_list(unicode, other, set->ranges + set->count, count);
        set->count += count;
    }
}

static int compare(const void *a, const void *b)
{
    const struct ptk_unicode_range *left = a;
    const struct ptk_unicode_range *right = b;
    return left->begin < right->begin ? -1 : left->begin > right->begin;
}

void ptk_regex_set_normalize(struct ptk_regex_set *set)
{
    if (set->count == 0) {
        return;
    }
    qsort(set->ranges, set->count, sizeof *set->ranges, compare);
    size_t used = 1;
    for (size_t i = 1; i < set->count; i++) {
        struct ptk_unicode_range *last = &set->ranges[used - 1];
        if (set->ranges[i].begin <= last->end) {
            last->end = last->end > set->ranges[i].end ? last->end : set->ranges[i].end;
        } else {
            set->ranges[used++] = set->ranges[i];
        }
    }
    set->count = used;
}

void ptk_regex_set_complement(struct ptk_regex_set *set)
{
    struct ptk_regex_set result = {.has_failed = set->has_failed};
    uint32_t begin = 0;
    for (size_t i = 0; i < set->count; i++) {
        ptk_regex_set_add(&result, begin, set->ranges[i].begin);
        begin = set->ranges[i].end;
    }
    ptk_regex_set_add(&result, begin, PTK_UNICODE_END);
    ptk_regex_set_fini(set);
    *set = result;
}

void ptk_regex_set_intersect(struct ptk_regex_set *set, const struct ptk_regex_set *other)
{
    struct ptk_regex_set result = {.has_failed = set->has_failed || other->has_failed};
    for (size_t i = 0, j = 0; i < set->count && j < other->count;) {
        const struct ptk_unicode_range a = set->ranges[i];
        const struct ptk_unicode_range b = other->ranges[j];
        ptk_regex_set_add(&result, a.begin > b.begin ? a.begin : b.begin,
                          a.end < b.end ? a.end : b.end);
        if (a.end < b.end) {
            i++;
        } else {
            j++;
        }
    }
    ptk_regex_set_fini(set);
    *set = result;
}

bool ptk_regex_set_equal(const struct ptk_regex_set *a, const struct ptk_regex_set *b)
{
    return a->count == b->count &&
           (a->count == 0 || memcmp(a->ranges, b->ranges, a->count * sizeof *a->ranges) == 0);
}

bool ptk_regex_set_has(const struct ptk_regex_set *set, uint32_t code_point)
{
    for (size_t i = 0; i < set->count; i++) {
        if (code_point < set->ranges[i].end) {
            return code_point >= set->ranges[i].begin;
        }
    }
    return false;
}
