/*
 * Operations that look at one character at a time: lower-casing, removing classes, spaces around
 * ideographs, stripping the ends, spelling bytes; see ptk_norm_ops.h.
 *
 * Each one first looks for something to do; text before that is copied in one go, and text without
 * it is not copied at all. What an operation makes of a character has that character's range.
 */
#include "text/ptk_norm_ops.h"

#include "base/ptk_pause.h"
#include <emmintrin.h>

static inline __m128i load_block(const uint8_t *bytes)
{
    return _mm_loadu_si128((const __m128i *)(const void *)bytes);
}

/* 0xFF where a byte is within [first, last], both ASCII. */
static inline __m128i within(__m128i block, char first, char last)
{
    return _mm_and_si128(_mm_cmpgt_epi8(block, _mm_set1_epi8((char)(first - 1))),
                         _mm_cmplt_epi8(block, _mm_set1_epi8((char)(last + 1))));
}

/* The length of the run of ASCII without capital letters that a text begins with; a part of a
 * long one. */
static size_t small_len(const uint8_t *bytes, size_t len)
{
    size_t pos = 0;
    len = ptk_min_size(len, PTK_PAUSE_WIDE_LEN);
    for (; pos + 16 <= len; pos += 16) {
        __m128i block = load_block(bytes + pos);
        uint32_t stop = (uint32_t)_mm_movemask_epi8(_mm_or_si128(block, within(block, 'A', 'Z')));
        if (stop != 0) {
            return pos + (size_t)__builtin_ctz(stop);
        }
    }
    while (pos < len && bytes[pos] < 0x80 && (bytes[pos] < 'A' || bytes[pos] > 'Z')) {
        pos++;
    }
    return pos;
}

/* The length of the run of bytes from `first` to '~' that a text begins with; a part of a long one.
 */
static size_t printable_len(const uint8_t *bytes, size_t len, char first)
{
    size_t pos = 0;
    len = ptk_min_size(len, PTK_PAUSE_WIDE_LEN);
    for (; pos + 16 <= len; pos += 16) {
        uint32_t inside = (uint32_t)_mm_movemask_epi8(within(load_block(bytes + pos), first, '~'));
        if (inside != 0xFFFF) {
            return pos + (size_t)__builtin_ctz(~inside);
        }
    }
    while (pos < len && bytes[pos] >= (uint8_t)first && bytes[pos] <= '~') {
        pos++;
    }
    return pos;
}

/* Lower-cases ASCII in place. */
static void lower_ascii(uint8_t *bytes, size_t len)
{
    size_t pos = 0;
    size_t paused_at = 0;
    for (; pos + 16 <= len; pos += 16) {
        ptk_pause_pos(&paused_at, pos);
        __m128i block = load_block(bytes + pos);
        __m128i bit = _mm_and_si128(within(block, 'A', 'Z'), _mm_set1_epi8(0x20));
        _mm_storeu_si128((__m128i *)(void *)(bytes + pos), _mm_or_si128(block, bit));
    }
    for (; pos < len; pos++) {
        if (bytes[pos] >= 'A' && bytes[pos] <= 'Z') {
            bytes[pos] |= 0x20;
        }
    }
}

/* Appends a sequence of code points that share one range. Returns false when the output is full. */
static bool put_sequence(struct ptk_text_buf *out, const uint32_t *sequence, uint32_t len,
                         struct ptk_span align)
{
    for (uint32_t i = 0; i < len; i++) {
        uint8_t bytes[4];
        if (!ptk_norm_put(out, bytes, ptk_utf8_encode(sequence[i], bytes), align)) {
            return false;
        }
    }
    return true;
}

/* Where the first character from `pos` on is that lower-casing changes. */
static size_t find_capital(const struct ptk_unicode *unicode, const struct ptk_split_text *in,
                           size_t pos)
{
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        const size_t run_len = small_len(in->bytes + pos, in->len - pos);
        pos += run_len;
        if (pos == in->len || run_len == PTK_PAUSE_WIDE_LEN) {
            continue;
        }
        if (in->bytes[pos] < 0x80) {
            break;
        }
        uint32_t len;
        uint32_t unused;
        uint32_t code_point = ptk_utf8_decode(in->bytes + pos, &len);
        if (ptk_unicode_map(&unicode->lower, code_point, &unused) != NULL) {
            break;
        }
        pos += len;
    }
    return pos;
}

enum ptk_norm_step ptk_norm_lowercase(const struct ptk_unicode *unicode,
                                      const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    size_t pos = find_capital(unicode, in, 0);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t copied = 0;
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        /* Up to the next character outside ASCII everything is copied, then lower-cased in place.
         */
        size_t ascii = ptk_utf8_ascii_len(in->bytes + pos, in->len - pos);
        if (!ptk_norm_copy(in, copied, pos + ascii, out)) {
            return PTK_NORM_STEP_FULL;
        }
        lower_ascii(out->bytes + out->len - ascii, ascii);
        pos += ascii;
        copied = pos;
        if (ascii == 0) {
            uint32_t len;
            uint32_t lower_len;
            uint32_t code_point = ptk_utf8_decode(in->bytes + pos, &len);
            const uint32_t *lower = ptk_unicode_map(&unicode->lower, code_point, &lower_len);
            PTK_ASSERT(lower != NULL);
            if (!put_sequence(out, lower, lower_len, ptk_norm_align_at(in, pos))) {
                return PTK_NORM_STEP_FULL;
            }
            copied = pos + len;
        }
        pos = find_capital(unicode, in, copied);
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}

/* Where the first character from `pos` on is that has one of the classes, a space apart; `*mask` is
 * its mask and `*len` its length. */
static size_t find_class(const struct ptk_unicode *unicode, uint64_t classes,
                         const struct ptk_split_text *in, size_t pos, uint64_t *mask, uint32_t *len)
{
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        const size_t run_len = printable_len(in->bytes + pos, in->len - pos, ' ');
        pos += run_len;
        if (pos == in->len || run_len == PTK_PAUSE_WIDE_LEN) {
            continue;
        }
        *mask = ptk_unicode_mask(unicode, ptk_utf8_decode(in->bytes + pos, len));
        if ((*mask & classes) != 0) {
            break;
        }
        pos += *len;
    }
    return pos;
}

enum ptk_norm_step ptk_norm_clean(const struct ptk_unicode *unicode,
                                  const struct ptk_norm_clean *clean,
                                  const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    uint64_t classes = clean->removed | clean->spaced;
    uint64_t mask;
    uint32_t len;
    size_t copied = 0;
    size_t pos = find_class(unicode, classes, in, 0, &mask, &len);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        if (!ptk_norm_copy(in, copied, pos, out)) {
            return PTK_NORM_STEP_FULL;
        }
        if ((mask & clean->removed) == 0 &&
            !ptk_norm_put(out, (const uint8_t *)" ", 1, ptk_norm_align_at(in, pos))) {
            return PTK_NORM_STEP_FULL;
        }
        copied = pos + len;
        pos = find_class(unicode, classes, in, copied, &mask, &len);
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}

enum ptk_norm_step ptk_norm_set_off(const struct ptk_unicode *unicode,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    uint64_t mask;
    uint32_t len;
    size_t copied = 0;
    size_t pos = find_class(unicode, PTK_UNICODE_BERT_HAN, in, 0, &mask, &len);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        uint8_t spaced[6] = {' '};
        memcpy(spaced + 1, in->bytes + pos, len);
        spaced[1 + len] = ' ';
        if (!ptk_norm_copy(in, copied, pos, out) ||
            !ptk_norm_put(out, spaced, len + 2, ptk_norm_align_at(in, pos))) {
            return PTK_NORM_STEP_FULL;
        }
        copied = pos + len;
        pos = find_class(unicode, PTK_UNICODE_BERT_HAN, in, copied, &mask, &len);
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}

static bool is_white(const struct ptk_unicode *unicode, const uint8_t *bytes, uint32_t *len)
{
    uint32_t code_point = ptk_utf8_decode(bytes, len);
    return (ptk_unicode_mask(unicode, code_point) & PTK_UNICODE_WHITE) != 0;
}

void ptk_norm_strip(const struct ptk_unicode *unicode, bool left, bool right,
                    struct ptk_split_text *text)
{
    size_t begin = 0;
    size_t end = text->len;
    size_t paused_at = 0;
    uint32_t len;
    while (left && begin < end && is_white(unicode, text->bytes + begin, &len)) {
        ptk_pause_pos(&paused_at, begin);
        begin += len;
    }
    paused_at = end;
    while (right && end > begin) {
        ptk_pause_pos(&paused_at, end);
        size_t last = end - 1;
        while ((text->bytes[last] & 0xC0) == 0x80) {
            last--;
        }
        if (!is_white(unicode, text->bytes + last, &len)) {
            break;
        }
        end = last;
    }
    text->bytes += begin;
    text->align = text->align != NULL ? text->align + begin : NULL;
    text->origin += begin;
    text->len = end - begin;
}

enum ptk_norm_step ptk_norm_prepend(const struct ptk_norm_string *string,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    if (in->len == 0 || string->len == 0) {
        return PTK_NORM_STEP_SAME;
    }
    if (!ptk_norm_put(out, string->bytes, string->len, ptk_norm_align_at(in, 0)) ||
        !ptk_norm_copy(in, 0, in->len, out)) {
        return PTK_NORM_STEP_FULL;
    }
    return PTK_NORM_STEP_CHANGED;
}

/*
 * The byte-level alphabet: printable bytes of Latin-1 stand for themselves, the 68 others, in
 * ascending order, are the characters from U+0100 on.
 */
static uint32_t spell_byte(uint8_t byte)
{
    if (byte <= ' ') {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x100u + 0x21u + byte - 0x7Fu;
    }
    return byte == 0xAD ? 0x143u : byte;
}

/* Where the first byte from `pos` on is that does not stand for itself. */
static size_t next_spelled(const struct ptk_split_text *in, size_t pos)
{
    for (;;) { /* ends: pos grows up to the end */
        const size_t run_len = printable_len(in->bytes + pos, in->len - pos, '!');
        pos += run_len;
        if (run_len < PTK_PAUSE_WIDE_LEN) {
            return pos;
        }
        ptk_pause_point();
    }
}

enum ptk_norm_step ptk_norm_spell_bytes(const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    size_t pos = next_spelled(in, 0);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t copied = 0;
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        if (!ptk_norm_copy(in, copied, pos, out)) {
            return PTK_NORM_STEP_FULL;
        }
        uint32_t len = ptk_utf8_lead_len(in->bytes[pos]);
        for (uint32_t i = 0; i < len; i++) {
            uint32_t spelled = spell_byte(in->bytes[pos + i]);
            if (!put_sequence(out, &spelled, 1, ptk_norm_align_at(in, pos))) {
                return PTK_NORM_STEP_FULL;
            }
        }
        copied = pos + len;
        pos = next_spelled(in, copied);
    }
    return ptk_norm_copy(in, copied, in->len, out) ? PTK_NORM_STEP_CHANGED : PTK_NORM_STEP_FULL;
}
