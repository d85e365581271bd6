#include "algo/ptk_words.h"

#include "base/ptk_pause.h"

#include <emmintrin.h>
#include <errno.h>

#define MARK_LEN 3u
static const uint8_t mark[MARK_LEN] = {0xe2, 0x96, 0x81};

static bool is_string(struct ptk_image_string string, const void *bytes, size_t len)
{
    return string.len == len && memcmp(string.bytes, bytes, len) == 0;
}

/* Whether a normalizer is: a mark before the text or not, then marks for spaces. */
static bool reads_normalizer(const struct ptk_image *image, bool *leads)
{
    struct ptk_image_op_view op;
    size_t pos = 0;
    *leads = false;
    while (ptk_image_op_next(&image->normalizer, &pos, &op)) {
        size_t off = 0;
        if (op.kind == PTK_OP_NORM_REPLACE_STRING) {
            return is_string(ptk_image_op_string(&op, &off), " ", 1) &&
                   is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN) &&
                   pos == image->normalizer.len;
        }
        if (*leads || op.kind != PTK_OP_NORM_PREPEND ||
            !is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN)) {
            return false;
        }
        *leads = true;
    }
    return false;
}

/* Behind such a normalizer there are no spaces, so that a split at them does nothing. */
static bool splits_nothing(const struct ptk_image *image)
{
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (ptk_image_op_next(&image->pre_tokenizer, &pos, &op)) {
        size_t off = 4;
        if (op.kind != PTK_OP_PRE_SPLIT_STRING || op.flags != 0 || op.params[1] != 0 ||
            !is_string(ptk_image_op_string(&op, &off), " ", 1)) {
            return false;
        }
    }
    return true;
}

/* Whether a pre-tokenizer is Metaspace alone, with marks, and does not split. */
static bool reads_metaspace(const struct ptk_image *image, enum ptk_words_lead *lead)
{
    static const enum ptk_words_lead leads[] = {PTK_WORDS_LEAD_UNLESS_MARK, PTK_WORDS_LEAD_NEVER,
                                                PTK_WORDS_LEAD_FIRST};
    struct ptk_image_op_view op;
    size_t pos = 0;
    size_t off = 4;
    if (image->normalizer.op_count != 0 || image->pre_tokenizer.op_count != 1 ||
        !ptk_image_op_next(&image->pre_tokenizer, &pos, &op) || op.kind != PTK_OP_PRE_METASPACE ||
        op.params[0] >= PTK_ARRAY_LEN(leads) || op.params[1] != 0 ||
        !is_string(ptk_image_op_string(&op, &off), mark, MARK_LEN)) {
        return false;
    }
    *lead = leads[op.params[0]];
    return true;
}

int ptk_words_init(struct ptk_words *words, const struct ptk_image *image,
                   const struct ptk_cuts *cuts, struct ptk_err *err)
{
    memset(words, 0, sizeof *words);
    if ((image->config->flags & PTK_IMAGE_FLAGS_SPACE_MARKS) == 0) {
        return 0;
    }
    bool leads;
    if (reads_normalizer(image, &leads) && splits_nothing(image)) {
        words->lead = leads ? PTK_WORDS_LEAD_ALWAYS : PTK_WORDS_LEAD_NEVER;
    } else if (!reads_metaspace(image, &words->lead)) {
        return ptk_err_set(err, -EINVAL,
                           "image: the flag space_marks does not fit the normalizer and the "
                           "pre-tokenizer");
    }
    if (cuts->words == NULL ||
        ptk_chars_id(cuts->chars->records[PTK_CHARS_MARK]) == PTK_IMAGE_NONE) {
        return 0;
    }
    words->active = true;
    memcpy(words->joined, cuts->before_mark, sizeof words->joined);
    return 0;
}

bool ptk_words_leads(const struct ptk_words *words, const uint8_t *section, size_t len,
                     size_t origin)
{
    switch (words->lead) {
    case PTK_WORDS_LEAD_NEVER:
        return false;
    case PTK_WORDS_LEAD_ALWAYS:
        return true;
    default:
        break;
    }
    const bool marked =
        section[0] == ' ' || (len >= MARK_LEN && memcmp(section, mark, MARK_LEN) == 0);
    return !marked && (words->lead != PTK_WORDS_LEAD_FIRST || origin == 0);
}

/* A bit for each of 64 bytes: it is a space. */
static inline uint64_t spaces_of(const uint8_t *at)
{
    const __m128i space = _mm_set1_epi8(' ');
    uint64_t mask = 0;
    for (unsigned i = 0; i < 4; i++) {
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(at + (size_t)16 * i));
        mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(block, space)) << 16 * i;
    }
    return mask;
}

static uint64_t last_spaces_of(const uint8_t *at, size_t len)
{
    uint64_t mask = 0;
    for (size_t i = 0; i < len; i++) {
        mask |= (uint64_t)(at[i] == ' ') << i;
    }
    return mask;
}

size_t ptk_words_scan(const struct ptk_words *words, const uint8_t *text, size_t len, size_t *pos,
                      uint32_t *ends, size_t cap)
{
    PTK_DCHECK(cap > 64);
    if (*pos == len) {
        return 0;
    }
    size_t count = 0;
    size_t at = *pos + 1;
    uint32_t turns = 0;
    for (; at < len && count + 64 < cap; at += 64) {
        ptk_pause_turn(&turns);
        uint64_t spaces =
            at + 64 <= len ? spaces_of(text + at) : last_spaces_of(text + at, len - at);
        while (spaces != 0) {
            const size_t space = at + (size_t)__builtin_ctzll(spaces);
            const uint8_t before = text[space - 1];
            spaces &= spaces - 1;
            ends[count] = (uint32_t)space;
            count += ~words->joined[before >> 6] >> (before & 63) & 1;
        }
    }
    if (at >= len) {
        ends[count] = (uint32_t)len;
        count++;
    }
    *pos = ends[count - 1];
    return count;
}
