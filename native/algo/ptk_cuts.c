#include "algo/ptk_cuts.h"

#include <errno.h>
#include <stdlib.h>

#include "base/ptk_pause.h"
#include "text/ptk_split.h"
#include "text/ptk_utf8.h"

/*
 * One side of a boundary inside a token: a whole character, or the part of one that the token
 * holds: its last byte on the left, its first byte on the right.
 */
#define PART 0x80000000u

#define WORDS_LOG2 13u
_Static_assert(sizeof((struct ptk_image_neighbours){0}.words) == 8u << WORDS_LOG2, "by hash");

/* A word of the table and the two bits of it that a left and a right side have. */
struct place {
    size_t word;
    uint64_t bits;
};

static inline struct place place_of(uint32_t left, uint32_t right)
{
    const uint64_t hash = ((uint64_t)left << 32 | right) * PTK_HASH_A;
    return (struct place){hash >> (64 - WORDS_LOG2),
                          1ull << (hash >> 42 & 63) | 1ull << (hash >> 36 & 63)};
}

static inline uint64_t has_neighbour(const struct ptk_image_neighbours *neighbours, uint32_t left,
                                     uint32_t right)
{
    if ((left | right) < 0x80) {
        return neighbours->ascii[2 * left + (right >> 6)] >> (right & 63) & 1;
    }
    const struct place place = place_of(left, right);
    return (neighbours->words[place.word] & place.bits) == place.bits;
}

/* Where neighbours are collected. */
struct collector {
    struct ptk_image_neighbours *neighbours;
    struct ptk_chars *chars;
    bool space_marks;
};

static void add_neighbours(struct collector *to, uint32_t left, uint32_t right)
{
    struct ptk_image_neighbours *neighbours = to->neighbours;
    if ((left | right) < 0x80) {
        neighbours->ascii[2 * left + (right >> 6)] |= 1ull << (right & 63);
        return; /* add_ascii() does the rest */
    }
    const bool left_part = (left & PART) != 0;
    const bool right_part = (right & PART) != 0;
    neighbours->partial_left |= (uint64_t)left_part << (left & 63);
    neighbours->partial_right |= (uint64_t)right_part << (right & 63);
    if (left_part && right_part) {
        neighbours->parts[left & 63] |= 1ull << (right & 63);
        return;
    }
    const struct place place = place_of(left, right);
    neighbours->words[place.word] |= place.bits;
    uint32_t *records = to->chars->records;
    if (!left_part) {
        records[left] |= 1u << (right_part ? PTK_CHARS_RIGHT_PART_BIT : PTK_CHARS_RIGHT_BIT);
    }
    if (!right_part) {
        records[right] |= 1u << (left_part ? PTK_CHARS_LEFT_PART_BIT : PTK_CHARS_LEFT_BIT);
    }
    if (right < 0x80) {
        neighbours->before_ascii[2 * (left & 63) + (right >> 6)] |= 1ull << (right & 63);
    }
    if (right == PTK_CHARS_MARK) {
        const uint32_t last = left < 0x80 || left_part ? left & 0xff : 0x80 | (left & 0x3f);
        neighbours->before_mark[last >> 6] |= 1ull << (last & 63);
    }
}

/* The same, and for a space what is so for the mark. */
static void add_boundary(struct collector *to, uint32_t left, uint32_t right)
{
    add_neighbours(to, left, right);
    if (to->space_marks && (left == PTK_CHARS_MARK || right == PTK_CHARS_MARK)) {
        const uint32_t spaced_left = left == PTK_CHARS_MARK ? ' ' : left;
        const uint32_t spaced_right = right == PTK_CHARS_MARK ? ' ' : right;
        add_neighbours(to, spaced_left, right);
        add_neighbours(to, left, spaced_right);
        add_neighbours(to, spaced_left, spaced_right);
    }
}

/*
 * Adds the boundaries inside the key of a token that a merge makes. A key that no valid text holds
 * says nothing from there on.
 */
static void add_key(struct collector *to, const uint8_t *key, size_t len)
{
    size_t at = 0;
    while (at < len && (key[at] & 0xc0) == 0x80) {
        at++;
    }
    uint32_t left = at > 0 ? PART | key[at - 1] : 0;
    bool has_left = at > 0;
    while (at < len) {
        const int char_len = key[at] < 0x80 ? 1 : ptk_utf8_char_len(key + at, len - at);
        if (char_len < 0) {
            return;
        }
        uint32_t right = PART | key[at];
        if (char_len > 0) {
            uint32_t ignored;
            right = ptk_utf8_decode(key + at, &ignored);
        }
        if (has_left) {
            add_boundary(to, left, right);
        }
        left = right;
        has_left = true;
        at = char_len > 0 ? at + (size_t)char_len : len;
    }
}

/* Tells the records of ASCII characters which neighbours were added. */
static void add_ascii(const struct collector *to)
{
    uint32_t *records = to->chars->records;
    for (uint32_t left = 0; left < 0x80; left++) {
        for (uint32_t right = 0; right < 0x80; right++) {
            const uint32_t added = (uint32_t)has_neighbour(to->neighbours, left, right);
            records[left] |= added << PTK_CHARS_RIGHT_BIT;
            records[right] |= added << PTK_CHARS_LEFT_BIT;
        }
    }
}

/* Sets a bit for each id that a merge makes. False where a merge takes a token that does not spell
 * its text: a byte token, or the unknown one. */
static bool read_merges(const struct ptk_image *image, uint64_t *made)
{
    const struct ptk_image_pair *used[PTK_IMAGE_PAIRS_SOME];
    size_t slot = 0;
    bool spells = true;
    for (size_t count; (count = ptk_image_used_pairs(image, &slot, used)) != 0;) {
        for (size_t i = 0; i < count; i++) {
            const struct ptk_image_pair *pair = used[i];
            made[pair->id >> 6] |= 1ull << (pair->id & 63);
            const uint8_t flags = image->token_flags[pair->left] | image->token_flags[pair->right];
            spells &= (flags & PTK_IMAGE_TOKEN_FLAGS_BYTE) == 0 &&
                      pair->left != image->config->unk_id && pair->right != image->config->unk_id;
        }
    }
    return spells;
}

static int neighbours_init(struct ptk_cuts *cuts, const struct ptk_image *image,
                           struct ptk_chars *chars, const uint64_t *made, struct ptk_err *err)
{
    cuts->owned = calloc(1, sizeof *cuts->owned);
    cuts->neighbours = cuts->owned;
    if (cuts->owned == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    struct collector to = {
        .neighbours = cuts->owned,
        .chars = chars,
        .space_marks = (image->config->flags & PTK_IMAGE_FLAGS_SPACE_MARKS) != 0,
    };
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint32_t off = image->vocab_key_offs[id];
        if ((made[id >> 6] >> (id & 63) & 1) != 0) {
            add_key(&to, image->vocab_key + off, image->vocab_key_offs[id + 1] - off);
        }
    }
    add_ascii(&to);
    return 0;
}

/* Whether pieces may begin or end inside a character. */
static bool splits_characters(const struct ptk_image *image)
{
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (ptk_image_op_next(&image->pre_tokenizer, &pos, &op)) {
        if ((op.flags & PTK_SPLIT_FLAG_ALPHABET) != 0) {
            return true;
        }
    }
    return false;
}

int ptk_cuts_init(struct ptk_cuts *cuts, const struct ptk_image *image, const uint64_t *merged,
                  struct ptk_chars *chars, struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    const bool bytes = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0;
    memset(cuts, 0, sizeof *cuts);
    cuts->chars = chars;
    cuts->only_known = !bytes;
    if (config->algorithm != PTK_IMAGE_ALGORITHM_BPE ||
        config->prefix_len + config->suffix_len > 0 ||
        (config->flags & PTK_IMAGE_FLAGS_BYTE_GAPS) != 0 || (bytes && splits_characters(image)) ||
        (!bytes && config->unk_id == PTK_IMAGE_NONE)) {
        return 0;
    }
    if (image->neighbours != NULL) {
        cuts->neighbours = image->neighbours;
        for (uint32_t i = 0; i < image->neighbour_char_count; i++) {
            const uint32_t character = image->neighbour_chars[i];
            const uint32_t code_point = character & ((1u << PTK_IMAGE_CHAR_BITS) - 1);
            chars->records[code_point] |= character & PTK_CHARS_FLAGS_MASK;
        }
        return 0;
    }
    if (bytes) {
        return neighbours_init(cuts, image, chars, merged, err);
    }
    uint64_t *made = calloc(config->ids_end / 64 + 1, sizeof *made);
    if (made == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    const int code = read_merges(image, made) ? neighbours_init(cuts, image, chars, made, err) : 0;
    free(made);
    return code;
}

void ptk_cuts_fini(struct ptk_cuts *cuts)
{
    free(cuts->owned);
    cuts->owned = NULL;
    cuts->neighbours = NULL;
}

size_t ptk_cuts_chars(const struct ptk_cuts *cuts, uint32_t *chars)
{
    size_t count = 0;
    for (uint32_t i = 0; i < PTK_CHARS_COUNT; i++) {
        const uint32_t flags = cuts->chars->records[i] & PTK_CHARS_FLAGS_MASK;
        if (flags != 0) {
            if (chars != NULL) {
                chars[count] = i | flags;
            }
            count++;
        }
    }
    return count;
}

/* A character of the text: what its neighbours are asked by. */
struct character {
    uint32_t code_point;
    uint32_t record;
    uint8_t first;
    uint8_t last;
};

/* 1 where a token may hold both. */
static inline uint64_t joins(const struct ptk_cuts *cuts, const struct character *left,
                             const struct character *right)
{
    const struct ptk_image_neighbours *neighbours = cuts->neighbours;
    uint64_t joined = left->record >> PTK_CHARS_RIGHT_BIT & right->record >> PTK_CHARS_LEFT_BIT &
                      has_neighbour(neighbours, left->code_point, right->code_point);
    /* ASCII has no parts. Last bytes differ in their low six bits, and so do first ones. */
    const uint64_t left_part = neighbours->partial_left >> (left->last & 63) & left->last >> 7;
    const uint64_t right_part =
        neighbours->partial_right >> (right->first & 63) & right->first >> 7;
    if ((right_part & left->record >> PTK_CHARS_RIGHT_PART_BIT) != 0) {
        joined |= has_neighbour(neighbours, left->code_point, PART | right->first);
    }
    if ((left_part & right->record >> PTK_CHARS_LEFT_PART_BIT) != 0) {
        joined |= has_neighbour(neighbours, PART | left->last, right->code_point);
    }
    return joined |
           (left_part & right_part & neighbours->parts[left->last & 63] >> (right->first & 63));
}

static inline struct character character_at(const struct ptk_cuts *cuts, const uint8_t *at,
                                            uint32_t *len)
{
    const uint32_t code_point = ptk_utf8_decode(at, len);
    return (struct character){code_point, cuts->chars->records[code_point], at[0], at[*len - 1]};
}

size_t ptk_cuts_scan(const struct ptk_cuts *cuts, const uint8_t *text, size_t len, size_t *pos,
                     uint32_t *ends, size_t cap)
{
    PTK_DCHECK(*pos < len);
    PTK_DCHECK(cap > 0);
    size_t count = 0;
    if (cuts->neighbours != NULL) {
        uint32_t char_len;
        struct character left = character_at(cuts, text + *pos, &char_len);
        size_t at = *pos + char_len;
        size_t paused_at = at;
        while (at < len && count < cap) {
            ptk_pause_pos(&paused_at, at);
            const struct character right = character_at(cuts, text + at, &char_len);
            const uint64_t unknown = cuts->only_known & ((right.record & PTK_CHARS_ID_MASK) == 0);
            ends[count] = (uint32_t)at;
            count += (joins(cuts, &left, &right) | unknown) == 0;
            left = right;
            at += char_len;
        }
    }
    if (count < cap) {
        ends[count] = (uint32_t)len;
        count++;
    }
    *pos = ends[count - 1];
    return count;
}
