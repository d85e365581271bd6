#include "algo/ptk_added.h"

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#include <tmmintrin.h>

void ptk_added_init(struct ptk_added *added, const struct ptk_image *image,
                    const struct ptk_image_match_node *nodes, const struct ptk_unicode *unicode)
{
    memset(added, 0, sizeof *added);
    added->image = image;
    added->nodes = nodes;
    added->unicode = unicode;
    if (nodes == NULL) {
        return;
    }
    /* Children of the root are dealt to eight groups; a group is a set of first and second
     * bytes. */
    struct ptk_added_filter *filter = &added->filter;
    for (uint32_t i = 0; i < nodes[0].child_count; i++) {
        const struct ptk_image_match_node *first = &nodes[nodes[0].first_child + i];
        const uint8_t group = (uint8_t)(1u << (i % 8));
        filter->first_low[first->byte & 15] |= group;
        filter->first_high[first->byte >> 4] |= group;
        for (uint32_t k = 0; k < first->child_count; k++) {
            const uint8_t byte = nodes[first->first_child + k].byte;
            filter->second_low[byte & 15] |= group;
            filter->second_high[byte >> 4] |= group;
        }
        if (first->added_idx != PTK_IMAGE_NONE) {
            for (size_t k = 0; k < 16; k++) {
                filter->second_low[k] |= group;
                filter->second_high[k] |= group;
            }
        }
    }
}

static const struct ptk_image_match_node *find_child(const struct ptk_image_match_node *nodes,
                                                     const struct ptk_image_match_node *node,
                                                     uint8_t byte)
{
    uint32_t low = 0;
    uint32_t high = node->child_count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const struct ptk_image_match_node *child = &nodes[node->first_child + middle];
        if (child->byte == byte) {
            return child;
        }
        if (child->byte < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

/* The longest token that begins at `begin`, or NULL. */
static const struct ptk_image_added *longest(const struct ptk_added *added, const uint8_t *text,
                                             size_t len, size_t begin, size_t *end)
{
    const struct ptk_image_match_node *node = added->nodes;
    const struct ptk_image_added *found = NULL;
    for (size_t i = begin; i < len; i++) {
        node = find_child(added->nodes, node, text[i]);
        if (node == NULL) {
            break;
        }
        if (node->added_idx != PTK_IMAGE_NONE) {
            found = &added->image->added[node->added_idx];
            *end = i + 1;
        }
    }
    return found;
}

static bool may_begin(const struct ptk_added_filter *filter, const uint8_t *text, size_t len,
                      size_t pos)
{
    uint8_t groups = filter->first_low[text[pos] & 15] & filter->first_high[text[pos] >> 4];
    if (pos + 1 < len) {
        groups &= filter->second_low[text[pos + 1] & 15] & filter->second_high[text[pos + 1] >> 4];
    }
    return groups != 0;
}

static __m128i lookup(const uint8_t *low, const uint8_t *high, __m128i bytes)
{
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i low_table = _mm_load_si128((const __m128i *)(const void *)low);
    const __m128i high_table = _mm_load_si128((const __m128i *)(const void *)high);
    return _mm_and_si128(
        _mm_shuffle_epi8(low_table, _mm_and_si128(bytes, nibble)),
        _mm_shuffle_epi8(high_table, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble)));
}

/* The first position from `pos` on where a token may begin; `len` when there is none. */
static size_t next_candidate(const struct ptk_added_filter *filter, const uint8_t *text, size_t len,
                             size_t pos)
{
    while (pos + 17 <= len) {
        const size_t stop = ptk_min_size(len, pos + PTK_PAUSE_WIDE_LEN);
        for (; pos + 17 <= stop; pos += 16) {
            const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)(text + pos));
            const __m128i second =
                _mm_loadu_si128((const __m128i *)(const void *)(text + pos + 1));
            const __m128i groups =
                _mm_and_si128(lookup(filter->first_low, filter->first_high, first),
                              lookup(filter->second_low, filter->second_high, second));
            const uint32_t none =
                (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(groups, _mm_setzero_si128()));
            if (none != 0xffffu) {
                return pos + (size_t)__builtin_ctz(~none);
            }
        }
        if (stop < len) {
            ptk_pause_point();
        }
    }
    while (pos < len && !may_begin(filter, text, len, pos)) {
        pos++;
    }
    return pos;
}

/* ---- flags ---------------------------------------------------------------------------------- */

static size_t char_before(const uint8_t *text, size_t pos)
{
    do {
        pos--;
    } while ((text[pos] & 0xc0) == 0x80);
    return pos;
}

static bool char_has(const struct ptk_added *added, const uint8_t *at, uint64_t mask, uint32_t *len)
{
    return (ptk_unicode_mask(added->unicode, ptk_utf8_decode(at, len)) & mask) != 0;
}

static bool touches_word(const struct ptk_added *added, const struct ptk_added_search *search,
                         size_t begin, size_t end)
{
    uint32_t len;
    if (begin > 0 && char_has(added, search->text + char_before(search->text, begin),
                              PTK_UNICODE_WORD_RUST, &len)) {
        return true;
    }
    return end < search->len && char_has(added, search->text + end, PTK_UNICODE_WORD_RUST, &len);
}

static size_t strip_left(const struct ptk_added *added, const struct ptk_added_search *search,
                         size_t begin)
{
    size_t paused_at = begin;
    while (begin > search->taken) {
        ptk_pause_pos(&paused_at, begin);
        const size_t before = char_before(search->text, begin);
        uint32_t len;
        if (!char_has(added, search->text + before, PTK_UNICODE_SPACE, &len)) {
            break;
        }
        begin = before;
    }
    return begin;
}

static size_t strip_right(const struct ptk_added *added, const struct ptk_added_search *search,
                          size_t end)
{
    /* Inside white space that is known already its end is known: long runs stay linear. */
    if (end < search->space_end) {
        return search->space_end;
    }
    size_t paused_at = end;
    while (end < search->len) {
        ptk_pause_pos(&paused_at, end);
        uint32_t len;
        if (!char_has(added, search->text + end, PTK_UNICODE_SPACE, &len)) {
            break;
        }
        end += len;
    }
    return end;
}

/* ---- ranges of ordinary text ---------------------------------------------------------------- */

/* The original bytes of text[begin..end), which is not empty, as the ranges count them. */
static struct ptk_span original(const struct ptk_added_search *search, size_t begin, size_t end)
{
    const size_t base = search->plain->base;
    if (search->align != NULL) {
        return (struct ptk_span){(uint32_t)(base + search->align[begin].begin),
                                 (uint32_t)(base + search->align[end - 1].end)};
    }
    return (struct ptk_span){(uint32_t)(base + search->origin + begin),
                             (uint32_t)(base + search->origin + end)};
}

/* The first range that ends behind `pos`; NULL when there is none. */
static const struct ptk_plain_range *range_at(const struct ptk_added_plain *plain, size_t pos)
{
    size_t low = 0;
    size_t high = plain->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (plain->ranges[middle].end <= pos) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < plain->count ? &plain->ranges[low] : NULL;
}

/* Whether a range makes ordinary text of this token. */
static bool is_forbidden(const struct ptk_added_search *search, const struct ptk_image_added *token,
                         size_t begin, size_t end)
{
    const struct ptk_added_plain *plain = search->plain;
    const struct ptk_plain_range *ranges_end = plain->ranges + plain->count;
    const struct ptk_span span = original(search, begin, end);
    const bool special = (token->flags & PTK_IMAGE_ADDED_FLAGS_SPECIAL) != 0;
    const struct ptk_plain_range *range = range_at(plain, span.begin);
    for (; range != NULL && range < ranges_end && range->begin < span.end; range++) {
        if (special || range->all) {
            return true;
        }
    }
    return false;
}

/* Whether the token lies in one range altogether. */
static bool is_inside(const struct ptk_added_search *search, size_t begin, size_t end)
{
    const struct ptk_span span = original(search, begin, end);
    const struct ptk_plain_range *range = range_at(search->plain, span.begin);
    return range != NULL && range->begin <= span.begin && span.end <= range->end;
}

/* The longest token at `begin` that the ranges allow, or NULL; the length of a token bounds it. */
static const struct ptk_image_added *longest_allowed(const struct ptk_added *added,
                                                     const struct ptk_added_search *search,
                                                     size_t begin, size_t *end)
{
    const struct ptk_image_match_node *node = added->nodes;
    const struct ptk_image_added *found = NULL;
    for (size_t i = begin; i < search->len; i++) {
        node = find_child(added->nodes, node, search->text[i]);
        if (node == NULL) {
            break;
        }
        if (node->added_idx != PTK_IMAGE_NONE) {
            const struct ptk_image_added *token = &added->image->added[node->added_idx];
            if (!is_forbidden(search, token, begin, i + 1)) {
                found = token;
                *end = i + 1;
            }
        }
    }
    return found;
}

/*
 * The token at `at` if ranges allow one, in place of `token`, which ends at *end. Otherwise NULL,
 * and *end is where the search goes on: behind a token that lies in a range altogether, as the
 * reference goes on behind a special token that is ordinary text; one byte on where the token
 * reaches out of it, so that no text in a range can hide a token outside.
 */
static const struct ptk_image_added *allowed(const struct ptk_added *added,
                                             struct ptk_added_search *search, size_t at,
                                             const struct ptk_image_added *token, size_t *end)
{
    const bool special = (token->flags & PTK_IMAGE_ADDED_FLAGS_SPECIAL) != 0;
    if ((search->skip_special && special) || !is_forbidden(search, token, at, *end)) {
        return token;
    }
    if (at >= search->hit_end) {
        search->plain->hits++;
        search->hit_end = *end;
    }
    size_t allowed_end = *end;
    const struct ptk_image_added *found = longest_allowed(added, search, at, &allowed_end);
    if (found != NULL) {
        *end = allowed_end;
    } else if (!is_inside(search, at, *end)) {
        *end = at + 1;
    }
    return found;
}

bool ptk_added_next(const struct ptk_added *added, struct ptk_added_search *search,
                    struct ptk_added_match *match)
{
    if (added->nodes == NULL) {
        return false;
    }
    for (;;) { /* ends: pos grows up to len */
        ptk_pause_point();
        const size_t at = next_candidate(&added->filter, search->text, search->len, search->pos);
        if (at == search->len) {
            search->pos = at;
            return false;
        }
        size_t end = at;
        const struct ptk_image_added *token = longest(added, search->text, search->len, at, &end);
        if (token == NULL) {
            search->pos = at + 1;
            continue;
        }
        if (PTK_UNLIKELY(search->plain != NULL)) {
            token = allowed(added, search, at, token, &end);
        }
        search->pos = end;
        if (token == NULL) {
            continue;
        }
        if (search->skip_special && (token->flags & PTK_IMAGE_ADDED_FLAGS_SPECIAL) != 0) {
            continue;
        }
        if ((token->flags & PTK_IMAGE_ADDED_FLAGS_SINGLE_WORD) != 0 &&
            touches_word(added, search, at, end)) {
            continue;
        }
        match->begin = at;
        if ((token->flags & PTK_IMAGE_ADDED_FLAGS_LSTRIP) != 0) {
            const size_t begin = ptk_max_size(strip_left(added, search, at), search->taken);
            match->begin = ptk_min_size(begin, end);
        }
        match->end = end;
        if ((token->flags & PTK_IMAGE_ADDED_FLAGS_RSTRIP) != 0) {
            match->end = strip_right(added, search, end);
            search->space_end = match->end;
        }
        match->token = token;
        search->taken = match->end;
        return true;
    }
}
