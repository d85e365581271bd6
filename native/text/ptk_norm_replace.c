/*
 * Replacing a string or what a pattern matches; see ptk_norm_ops.h. Text without an occurrence is
 * not copied.
 */
#include "text/ptk_norm_ops.h"

#include "base/ptk_pause.h"
#include <emmintrin.h>

/* Where `byte` first occurs from `pos` on, or the length of the text. */
static size_t find_byte(const struct ptk_split_text *in, uint8_t byte, size_t pos)
{
    const __m128i wanted = _mm_set1_epi8((char)byte);
    while (pos + 16 <= in->len) {
        const size_t stop = ptk_min_size(in->len, pos + PTK_PAUSE_WIDE_LEN);
        for (; pos + 16 <= stop; pos += 16) {
            __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(in->bytes + pos));
            uint32_t found = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(block, wanted));
            if (found != 0) {
                return pos + (size_t)__builtin_ctz(found);
            }
        }
        if (stop < in->len) {
            ptk_pause_point();
        }
    }
    while (pos < in->len && in->bytes[pos] != byte) {
        pos++;
    }
    return pos;
}

/* Where a pattern that is not empty first occurs from `pos` on, or the length of the text. */
static size_t find_string(const struct ptk_split_text *in, const struct ptk_norm_string *pattern,
                          size_t pos)
{
    size_t paused_at = pos;
    for (;;) { /* Ends: each round moves on, at the latest to the end. */
        ptk_pause_pos(&paused_at, pos);
        pos = find_byte(in, pattern->bytes[0], pos);
        if (in->len - pos < pattern->len) {
            return in->len;
        }
        if (memcmp(in->bytes + pos, pattern->bytes, pattern->len) == 0) {
            return pos;
        }
        pos++;
    }
}

/* The empty pattern occurs before every character and at the end, but not in an empty text. */
static enum ptk_norm_step insert_everywhere(const struct ptk_norm_string *content,
                                            const struct ptk_split_text *in,
                                            struct ptk_text_buf *out)
{
    if (in->len == 0) {
        return PTK_NORM_STEP_SAME;
    }
    size_t pos = 0;
    size_t paused_at = 0;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        size_t len = ptk_utf8_lead_len(in->bytes[pos]);
        if (!ptk_norm_put(out, content->bytes, content->len, ptk_norm_align_before(in, pos)) ||
            !ptk_norm_copy(in, pos, pos + len, out)) {
            return PTK_NORM_STEP_FULL;
        }
        pos += len;
    }
    return ptk_norm_put(out, content->bytes, content->len, ptk_norm_align_before(in, pos))
               ? PTK_NORM_STEP_CHANGED
               : PTK_NORM_STEP_FULL;
}

enum ptk_norm_step ptk_norm_replace(const struct ptk_norm_string *pattern,
                                    const struct ptk_norm_string *content,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    if (pattern->len == 0) {
        return insert_everywhere(content, in, out);
    }
    size_t pos = find_string(in, pattern, 0);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t copied = 0;
    size_t paused_at = 0;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        size_t end = pos + pattern->len;
        if (!ptk_norm_copy(in, copied, pos, out) ||
            !ptk_norm_put(out, content->bytes, content->len, ptk_norm_align_before(in, end))) {
            return PTK_NORM_STEP_FULL;
        }
        copied = end;
        pos = find_string(in, pattern, end);
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}

enum ptk_norm_step ptk_norm_replace_regex(const struct ptk_regex *regex,
                                          struct ptk_regex_work *work,
                                          const struct ptk_norm_string *content,
                                          const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    if (in->len == 0) {
        return PTK_NORM_STEP_SAME; /* The reference does not search an empty text. */
    }
    struct ptk_span match;
    size_t copied = 0;
    bool changed = false;
    ptk_regex_start(regex, work, in->bytes, in->len);
    enum ptk_regex_answer answer;
    size_t paused_at = 0;
    while ((answer = ptk_regex_next(work, &match)) == PTK_REGEX_ANSWER_MATCH) {
        ptk_pause_pos(&paused_at, match.begin);
        if (!ptk_norm_copy(in, copied, match.begin, out) ||
            !ptk_norm_put(out, content->bytes, content->len,
                          ptk_norm_align_before(in, match.end))) {
            return PTK_NORM_STEP_FULL;
        }
        copied = match.end;
        changed = true;
    }
    if (answer == PTK_REGEX_ANSWER_TOO_HARD) {
        return PTK_NORM_STEP_TOO_HARD;
    }
    if (!changed) {
        return PTK_NORM_STEP_SAME;
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}
