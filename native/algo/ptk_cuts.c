#include "algo/ptk_cuts.h"

#include <errno.h>
#include <stdlib.h>

#include "text/ptk_utf8.h"

/*
 * One side of a boundary inside a token: a whole character, or the part of one that the token
 * holds: its last byte on the left, its first byte on the right.
 */
#define PART 0x80000000u

static size_t bit_of(uint32_t left, uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    return (size_t)((key * PTK_HASH_A) >> (64 - PTK_CUTS_BITS_LOG2));
}

static void set_bit(uint64_t *bits, size_t bit)
{
    bits[bit >> 6] |= 1ull << (bit & 63);
}

static bool has_bit(const uint64_t *bits, size_t bit)
{
    return bits[bit >> 6] >> (bit & 63) & 1;
}

static void add_neighbours(struct ptk_cuts *cuts, uint32_t left, uint32_t right)
{
    if (left < 0x80 && right < 0x80) {
        set_bit(cuts->ascii[left], right);
        return;
    }
    set_bit(cuts->bits, bit_of(left, right));
    if ((left & PART) != 0) {
        set_bit(cuts->partial_left, left & 0xff);
    }
    if ((right & PART) != 0) {
        set_bit(cuts->partial_right, right & 0xff);
    }
}

/* Adds the boundaries inside the key of a token that a merge makes. */
static void add_key(struct ptk_cuts *cuts, const uint8_t *key, size_t len)
{
    size_t at = 0;
    while (at < len && (key[at] & 0xc0) == 0x80) {
        at++;
    }
    uint32_t left = at > 0 ? PART | key[at - 1] : 0;
    bool has_left = at > 0;
    while (at < len) {
        const size_t char_len = ptk_utf8_lead_len(key[at]);
        uint32_t right = PART | key[at];
        if (char_len <= len - at) {
            uint32_t ignored;
            right = ptk_utf8_decode(key + at, &ignored);
        }
        if (has_left) {
            add_neighbours(cuts, left, right);
        }
        left = right;
        has_left = true;
        at += char_len;
    }
}

/* Whether a merge takes a token that does not spell its text: a byte token, or the unknown one. */
static bool merges_substitutes(const struct ptk_image *image)
{
    for (size_t i = 0; image->pairs != NULL && i <= image->pair_mask; i++) {
        const uint32_t halves[] = {image->pairs[i].left, image->pairs[i].right};
        for (size_t k = 0; k < 2 && image->pairs[i].left != PTK_IMAGE_NONE; k++) {
            if (halves[k] == image->config->unk_id ||
                (image->token_flags[halves[k]] & PTK_IMAGE_TOKEN_FLAGS_BYTE) != 0) {
                return true;
            }
        }
    }
    return false;
}

int ptk_cuts_init(struct ptk_cuts *cuts, const struct ptk_image *image, struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    const bool bytes = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0;
    memset(cuts, 0, sizeof *cuts);
    cuts->image = image;
    cuts->only_known = !bytes;
    if (config->algorithm != PTK_IMAGE_ALGORITHM_BPE ||
        config->prefix_len + config->suffix_len > 0 ||
        (config->flags & PTK_IMAGE_FLAGS_BYTE_GAPS) != 0 ||
        (!bytes && (config->unk_id == PTK_IMAGE_NONE || merges_substitutes(image)))) {
        return 0;
    }
    cuts->bits = calloc((size_t)1 << (PTK_CUTS_BITS_LOG2 - 6), sizeof *cuts->bits);
    if (cuts->bits == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (size_t i = 0; image->pairs != NULL && i <= image->pair_mask; i++) {
        if (image->pairs[i].left != PTK_IMAGE_NONE) {
            const uint32_t id = image->pairs[i].id;
            const uint32_t off = image->vocab_key_offs[id];
            add_key(cuts, image->vocab_key + off, image->vocab_key_offs[id + 1] - off);
        }
    }
    return 0;
}

void ptk_cuts_fini(struct ptk_cuts *cuts)
{
    free(cuts->bits);
    cuts->bits = NULL;
}

/* A character of the text: what its neighbours are asked by. */
struct character {
    uint32_t code_point;
    uint8_t first;
    uint8_t last;
};

static bool are_neighbours(const struct ptk_cuts *cuts, struct character left,
                           struct character right)
{
    if (left.code_point < 0x80 && right.code_point < 0x80) {
        return has_bit(cuts->ascii[left.code_point], right.code_point);
    }
    if (has_bit(cuts->bits, bit_of(left.code_point, right.code_point))) {
        return true;
    }
    const bool left_part = left.code_point >= 0x80 && has_bit(cuts->partial_left, left.last);
    const bool right_part = right.code_point >= 0x80 && has_bit(cuts->partial_right, right.first);
    if (left_part && has_bit(cuts->bits, bit_of(PART | left.last, right.code_point))) {
        return true;
    }
    if (right_part && has_bit(cuts->bits, bit_of(left.code_point, PART | right.first))) {
        return true;
    }
    return left_part && right_part &&
           has_bit(cuts->bits, bit_of(PART | left.last, PART | right.first));
}

static struct character character_at(const uint8_t *at, uint32_t *len)
{
    const uint32_t code_point = ptk_utf8_decode(at, len);
    return (struct character){code_point, at[0], at[*len - 1]};
}

size_t ptk_cuts_next(const struct ptk_cuts *cuts, const uint8_t *text, size_t len, size_t pos)
{
    if (cuts->bits == NULL) {
        return len;
    }
    uint32_t char_len;
    struct character left = character_at(text + pos, &char_len);
    pos += char_len;
    while (pos < len) {
        const struct character right = character_at(text + pos, &char_len);
        if (!are_neighbours(cuts, left, right) &&
            (!cuts->only_known ||
             ptk_image_vocab(cuts->image, text + pos, char_len) != PTK_IMAGE_NONE)) {
            return pos;
        }
        left = right;
        pos += char_len;
    }
    return len;
}
