/*
 * Maps of sentencepiece models ("precompiled"); see ptk_norm_ops.h.
 *
 * A unit of the double array is a u32:
 *
 *     bits 0-7    the byte that leads here     bit 8       a key ends here
 *     bits 10-30  distance to the children     bit 9       the distance is in units of 256
 *     bit 31      this unit is a value: bits 0-30 are a position in the strings
 *
 * The children of a node lie at its position XOR its distance XOR the byte; its value at byte 0.
 */
#include <stdlib.h>

#include "base/ptk_pause.h"
#include "text/ptk_grapheme.h"
#include "text/ptk_norm_ops.h"

/* Longer clusters are mapped character by character. */
#define CLUSTER_LEN_MAX 5u

#define NO_VALUE UINT32_MAX

static uint32_t unit_at(const struct ptk_norm_charsmap *charsmap, size_t node)
{
    return ptk_load_u32(charsmap->units + 4 * node);
}

static size_t unit_distance(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
}

static bool unit_ends_key(uint32_t unit)
{
    return (unit >> 8 & 1) != 0;
}

static bool unit_is_led_to_by(uint32_t unit, uint8_t byte)
{
    return (unit & 0x800000FF) == byte;
}

static uint32_t unit_value(uint32_t unit)
{
    return unit & 0x7FFFFFFF;
}

/* Follows every path of the trie once; `pending` and `seen` have a place for every unit. */
static const char *verify_trie(const struct ptk_norm_charsmap *charsmap, uint32_t *pending,
                               uint8_t *seen)
{
    size_t pending_count = 0;
    size_t base = unit_distance(unit_at(charsmap, 0));
    for (;;) { /* Ends: a node is pending once at most. */
        if ((base | 0xFF) >= charsmap->unit_count) {
            return "a node of the trie lies outside of it";
        }
        for (size_t byte = 1; byte < 256; byte++) {
            size_t node = base ^ byte;
            if (unit_is_led_to_by(unit_at(charsmap, node), (uint8_t)byte) && !seen[node]) {
                seen[node] = 1;
                pending[pending_count++] = (uint32_t)node;
            }
        }
        if (pending_count == 0) {
            return NULL;
        }
        size_t node = pending[--pending_count];
        uint32_t unit = unit_at(charsmap, node);
        base = node ^ unit_distance(unit);
        if (unit_ends_key(unit) && base < charsmap->unit_count) {
            uint32_t value = unit_value(unit_at(charsmap, base));
            if (value >= charsmap->strings_len) {
                return "a value of the trie lies outside of the strings";
            }
            if ((charsmap->strings[value] & 0xC0) == 0x80) {
                return "a value of the trie points into a character";
            }
        }
    }
}

const char *ptk_norm_charsmap_verify(const uint8_t *bytes, size_t len,
                                     struct ptk_norm_charsmap *charsmap)
{
    if (len < 4) {
        return "the length of the trie is cut off";
    }
    size_t trie_len = ptk_load_u32(bytes);
    if (trie_len > len - 4) {
        return "the trie is cut off";
    }
    if (trie_len % 4 != 0 || trie_len == 0) {
        return "the trie is empty or not made of whole units";
    }
    charsmap->units = bytes + 4;
    charsmap->unit_count = trie_len / 4;
    charsmap->strings = bytes + 4 + trie_len;
    charsmap->strings_len = len - 4 - trie_len;
    if (!ptk_utf8_valid(charsmap->strings, charsmap->strings_len)) {
        return "the strings are not valid UTF-8";
    }
    if (charsmap->strings_len == 0 || charsmap->strings[charsmap->strings_len - 1] != 0) {
        return "the last string has no end";
    }
    uint32_t *pending = calloc(charsmap->unit_count, sizeof *pending);
    uint8_t *seen = calloc(charsmap->unit_count, sizeof *seen);
    const char *wrong = pending != NULL && seen != NULL ? verify_trie(charsmap, pending, seen)
                                                        : "no memory to check the trie";
    free(pending);
    free(seen);
    return wrong;
}

/*
 * Looks up the shortest key that `bytes[0..len)` begins with: that is the one the reference takes.
 * Returns the position of its value, or NO_VALUE.
 */
static uint32_t find_value(const struct ptk_norm_charsmap *charsmap, const uint8_t *bytes,
                           size_t len)
{
    size_t node = unit_distance(unit_at(charsmap, 0));
    for (size_t i = 0; i < len && bytes[i] != 0; i++) {
        node ^= bytes[i];
        uint32_t unit = unit_at(charsmap, node);
        if (!unit_is_led_to_by(unit, bytes[i])) {
            return NO_VALUE;
        }
        node ^= unit_distance(unit);
        if (unit_ends_key(unit)) {
            return unit_value(unit_at(charsmap, node));
        }
    }
    return NO_VALUE;
}

/* A part of the text to be looked up, a cluster or a character of one. */
struct part {
    size_t pos;
    size_t len;
    uint32_t value;
};

/* Reads a text part by part. */
struct reader {
    const struct ptk_unicode *unicode;
    const struct ptk_norm_charsmap *charsmap;
    const struct ptk_split_text *in;
    size_t pos;         /* of the next part */
    size_t cluster_end; /* characters up to here are parts of their own */
    size_t paused_at;   /* over parts, which may be short */
};

/* Finds the next part that has a value; false at the end of the text. */
static bool next_mapped(struct reader *reader, struct part *part)
{
    const uint8_t *bytes = reader->in->bytes;
    while (reader->pos < reader->in->len) {
        ptk_pause_pos(&reader->paused_at, reader->pos);
        size_t pos = reader->pos;
        size_t len = ptk_utf8_lead_len(bytes[pos]);
        if (pos >= reader->cluster_end) {
            size_t cluster_len =
                ptk_grapheme_len(reader->unicode, bytes + pos, reader->in->len - pos);
            uint32_t value = cluster_len <= CLUSTER_LEN_MAX
                                 ? find_value(reader->charsmap, bytes + pos, cluster_len)
                                 : NO_VALUE;
            if (value != NO_VALUE) {
                reader->pos += cluster_len;
                *part = (struct part){pos, cluster_len, value};
                return true;
            }
            reader->cluster_end = pos + cluster_len;
            if (cluster_len == len) {
                reader->pos += len; /* A single character was looked up already. */
                continue;
            }
        }
        reader->pos += len;
        uint32_t value = find_value(reader->charsmap, bytes + pos, len);
        if (value != NO_VALUE) {
            *part = (struct part){pos, len, value};
            return true;
        }
    }
    return false;
}

/*
 * Where alignment stands. The reference charges the characters that a deletion removes to the last
 * character written before; where nothing was written yet nothing is charged, and all that follows
 * is aligned too far to the left.
 */
struct cursor {
    size_t at;          /* input position up to which characters are consumed */
    size_t last_begin;  /* the last character written, in the output */
    size_t last_at;     /* `at` before it */
    bool last_consumed; /* it consumed something */
    size_t paused_at;   /* in the input */
};

static void skip_chars(const struct ptk_split_text *in, struct cursor *cursor, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        cursor->at += ptk_utf8_lead_len(in->bytes[cursor->at]);
    }
}

/* Appends one character that consumes `consumed` characters. Returns false when the output is full.
 */
static bool put_char(const struct ptk_split_text *in, struct cursor *cursor, const uint8_t *bytes,
                     size_t consumed, struct ptk_text_buf *out)
{
    struct ptk_span align = {0, 0};
    if (out->align != NULL) {
        align = consumed > 0 ? ptk_norm_align_at(in, cursor->at)
                             : ptk_norm_align_before(in, cursor->at);
        cursor->last_begin = out->len;
        cursor->last_at = cursor->at;
        cursor->last_consumed = consumed > 0;
        skip_chars(in, cursor, consumed);
    }
    return ptk_norm_put(out, bytes, ptk_utf8_lead_len(bytes[0]), align);
}

/* Appends unmapped text. */
static bool put_unmapped(const struct ptk_split_text *in, struct cursor *cursor, size_t begin,
                         size_t end, struct ptk_text_buf *out)
{
    if (out->align == NULL) {
        return ptk_norm_copy(in, begin, end, out);
    }
    for (size_t pos = begin; pos < end; pos += ptk_utf8_lead_len(in->bytes[pos])) {
        ptk_pause_pos(&cursor->paused_at, pos);
        if (!put_char(in, cursor, in->bytes + pos, 1, out)) {
            return false;
        }
    }
    return true;
}

/* Appends what a part is mapped to: new characters replace old ones, the rest is added or removed.
 */
static bool put_mapped(const struct ptk_norm_charsmap *charsmap, const struct ptk_split_text *in,
                       struct cursor *cursor, const struct part *part, struct ptk_text_buf *out)
{
    const uint8_t *string = charsmap->strings + part->value;
    size_t string_len = 0;
    while (string[string_len] != 0) { /* Ends: the last string has its zero. */
        string_len++;
    }
    if (out->align == NULL) {
        return ptk_norm_put(out, string, string_len, (struct ptk_span){0, 0});
    }
    size_t old_count = ptk_utf8_count(in->bytes + part->pos, part->len);
    size_t new_count = ptk_utf8_count(string, string_len);
    if (new_count == 0) {
        if (out->len > 0) {
            if (!cursor->last_consumed) {
                ptk_norm_fill_align(out, cursor->last_begin, out->len - cursor->last_begin,
                                    ptk_norm_align_at(in, cursor->last_at));
                cursor->last_consumed = true;
            }
            skip_chars(in, cursor, old_count);
        }
        return true;
    }
    size_t idx = 0;
    for (size_t pos = 0; pos < string_len; pos += ptk_utf8_lead_len(string[pos])) {
        idx++;
        size_t consumed = idx > old_count ? 0 : idx == new_count ? old_count - new_count + 1 : 1;
        if (!put_char(in, cursor, string + pos, consumed, out)) {
            return false;
        }
    }
    return true;
}

enum ptk_norm_step ptk_norm_map(const struct ptk_unicode *unicode,
                                const struct ptk_norm_charsmap *charsmap,
                                const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    struct reader reader = {.unicode = unicode, .charsmap = charsmap, .in = in};
    struct cursor cursor = {.at = 0};
    struct part part;
    if (!next_mapped(&reader, &part)) {
        return PTK_NORM_STEP_SAME;
    }
    size_t copied = 0;
    uint32_t turns = 0;
    do {
        ptk_pause_turn(&turns);
        if (!put_unmapped(in, &cursor, copied, part.pos, out) ||
            !put_mapped(charsmap, in, &cursor, &part, out)) {
            return PTK_NORM_STEP_FULL;
        }
        copied = part.pos + part.len;
    } while (next_mapped(&reader, &part));
    return put_unmapped(in, &cursor, copied, in->len, out) ? PTK_NORM_STEP_CHANGED
                                                           : PTK_NORM_STEP_FULL;
}
