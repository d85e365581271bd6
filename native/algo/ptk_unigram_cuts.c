#include "algo/ptk_unigram_cuts.h"

#include <stdlib.h>

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#define PAIRS_LOG2 21u
_Static_assert(sizeof((struct ptk_image_unigram_neighbours){0}.pairs) == 1u << (PAIRS_LOG2 - 3),
               "by hash");

static size_t bit_of(uint32_t left, uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    return (size_t)((key * PTK_HASH_A) >> (64 - PAIRS_LOG2));
}

static void set_bit(uint64_t *bits, size_t bit)
{
    bits[bit >> 6] |= 1ull << (bit & 63);
}

static bool has_bit(const uint64_t *bits, size_t bit)
{
    return bits[bit >> 6] >> (bit & 63) & 1;
}

/* Notes the characters of a token, which is whole ones, and those that stand side by side. */
static void add_key(struct ptk_image_unigram_neighbours *neighbours, const uint8_t *key, size_t len)
{
    uint32_t char_len;
    uint32_t left = 0;
    for (size_t at = 0; at < len; at += char_len) {
        const uint32_t right = ptk_utf8_decode(key + at, &char_len);
        if (at > 0 && left < 0x80 && right < 0x80) {
            set_bit(&neighbours->ascii[(size_t)2 * left], right);
        } else if (at > 0) {
            set_bit(neighbours->pairs, bit_of(left, right));
        }
        if (right < PTK_UNIGRAM_CUTS_END) {
            set_bit(neighbours->inside, right);
            if (char_len == len) {
                set_bit(neighbours->known, right);
            }
        }
        left = right;
    }
}

/* The text of the unknown token is fused with what is unknown around it. */
static void add_unknown(struct ptk_unigram_cuts *cuts, const uint8_t *key, size_t len)
{
    uint32_t char_len;
    cuts->not_before = UINT32_MAX;
    cuts->not_behind = UINT32_MAX;
    for (size_t at = 0; at < len; at += char_len) {
        const uint32_t code_point = ptk_utf8_decode(key + at, &char_len);
        cuts->not_before = at == 0 ? code_point : cuts->not_before;
        cuts->not_behind = code_point;
    }
}

static bool gather(struct ptk_unigram_cuts *cuts, const struct ptk_image *image)
{
    cuts->owned = calloc(1, sizeof *cuts->owned);
    cuts->neighbours = cuts->owned;
    if (cuts->owned == NULL) {
        return false;
    }
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint32_t off = image->vocab_key_offs[id];
        add_key(cuts->owned, image->vocab_key + off, image->vocab_key_offs[id + 1] - off);
    }
    return true;
}

bool ptk_unigram_cuts_init(struct ptk_unigram_cuts *cuts, const struct ptk_image *image)
{
    const struct ptk_image_config *config = image->config;
    *cuts = (struct ptk_unigram_cuts){
        .neighbours = image->unigram_neighbours,
        .fuses = (config->flags & PTK_IMAGE_FLAGS_FUSE_UNK) != 0 &&
                 (config->flags & PTK_IMAGE_FLAGS_BYTE_FALLBACK) == 0,
    };
    const uint32_t off = image->vocab_key_offs[config->unk_id];
    add_unknown(cuts, image->vocab_key + off, image->vocab_key_offs[config->unk_id + 1] - off);
    return cuts->neighbours != NULL || gather(cuts, image);
}

void ptk_unigram_cuts_fini(struct ptk_unigram_cuts *cuts)
{
    free(cuts->owned);
    *cuts = (struct ptk_unigram_cuts){0};
}

static bool are_neighbours(const struct ptk_unigram_cuts *cuts, uint32_t left, uint32_t right)
{
    const struct ptk_image_unigram_neighbours *neighbours = cuts->neighbours;
    return left < 0x80 && right < 0x80 ? has_bit(&neighbours->ascii[(size_t)2 * left], right)
                                       : has_bit(neighbours->pairs, bit_of(left, right));
}

/* Whether a character is a token of its own, and begins nothing that could be fused. */
static bool is_known(const struct ptk_unigram_cuts *cuts, uint32_t code_point)
{
    return code_point < PTK_UNIGRAM_CUTS_END && has_bit(cuts->neighbours->known, code_point) &&
           code_point != cuts->not_before;
}

/* Whether a character is in no token, for certain. */
static bool is_strange(const struct ptk_unigram_cuts *cuts, uint32_t code_point)
{
    return cuts->fuses && code_point < PTK_UNIGRAM_CUTS_END &&
           !has_bit(cuts->neighbours->inside, code_point);
}

/* What is in no token is unknown; it is not fused with a token of one character before it. */
static bool begins_strange(const struct ptk_unigram_cuts *cuts, uint32_t left, uint32_t right)
{
    return is_strange(cuts, right) && is_known(cuts, left) && left != cuts->not_behind;
}

size_t ptk_unigram_cuts_next(const struct ptk_unigram_cuts *cuts, const uint8_t *text, size_t len,
                             size_t pos)
{
    uint32_t char_len;
    uint32_t left = ptk_utf8_decode(text + pos, &char_len);
    uint32_t turns = 0;
    for (pos += char_len; pos < len; pos += char_len) {
        ptk_pause_turn(&turns);
        const uint32_t right = ptk_utf8_decode(text + pos, &char_len);
        if (!are_neighbours(cuts, left, right) &&
            (is_known(cuts, right) || begins_strange(cuts, left, right))) {
            return pos;
        }
        left = right;
    }
    return len;
}

size_t ptk_unigram_cuts_strange(const struct ptk_unigram_cuts *cuts, const uint8_t *text,
                                size_t len, size_t pos)
{
    const size_t begin = pos;
    uint32_t turns = 0;
    while (pos < len) {
        ptk_pause_turn(&turns);
        uint32_t char_len;
        const uint32_t code_point = ptk_utf8_decode(text + pos, &char_len);
        if (!is_strange(cuts, code_point)) {
            return is_known(cuts, code_point) ? pos - begin : 0;
        }
        pos += char_len;
    }
    return pos - begin;
}
