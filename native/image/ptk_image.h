/*
 * The vocabulary image: opened and verified once, then trusted by everyone who reads it.
 *
 * `native/spec/image.toml` is the format. ptk_image_view() is the door: it checks untrusted bytes
 * for all that safety rests on and yields typed pointers into them. After it has said yes, these
 * hold and nobody checks them again:
 *   - every id in the image is below config->ids_end, every offset table is monotone and ends
 *   inside its
 *     section, PTK_IMAGE_OVERRUN readable zero bytes follow token_bytes and vocab_key;
 *   - every entry of a hash table is found by its look-up within the stated probe length, and each
 *     look-up ends: there is an empty slot in every table;
 *   - with byte_units: byte_ids has every byte that UTF-8 uses unless the flag byte_gaps is set,
 *   and the
 *     key lengths of a pair's halves add up to that of its id;
 *   - every step in a trie stays inside it; match tries are trees whose children follow their
 *   parent;
 *   - neighbour_chars are code points, and are there only together with neighbours;
 *   - programs are whole operations with known kinds and parameters of the right length.
 *
 * Threads: a verified image is immutable and shared.
 */
#ifndef PTK_IMAGE_H
#define PTK_IMAGE_H

#include "base/ptk_err.h"
#include "gen/ptk_image_gen.h"
#include "image/ptk_image_hash.h"

/* A program of operations (normalizer, pre-tokenizer, post-processor, decoder); len 0 when
 * absent. */
struct ptk_image_program {
    const uint8_t *bytes;
    size_t len;
    uint32_t op_count;
};

/* Views into one verified image. Pointers of absent sections are NULL, their counts 0. */
struct ptk_image {
    const uint8_t *bytes;
    size_t len;
    const struct ptk_image_header *header;
    const struct ptk_image_config *config;

    const uint8_t *strings;
    size_t strings_len;
    const uint32_t *token_text_offs; /* ids_end + 1 */
    const uint8_t *token_text;
    const uint32_t *token_bytes_offs; /* ids_end + 1 */
    const uint8_t *token_bytes;
    const uint8_t *token_flags; /* ids_end, PTK_IMAGE_TOKEN_FLAGS_* */
    const uint32_t *byte_ids;   /* 256, or NULL */

    const struct ptk_image_pair *pairs; /* pair_mask + 1 slots, or NULL */
    uint32_t pair_mask;
    const uint32_t *vocab; /* vocab_mask + 1 slots */
    uint32_t vocab_mask;
    const uint32_t *vocab_key_offs; /* ids_end + 1 */
    const uint8_t *vocab_key;
    const struct ptk_image_piece *pieces; /* (piece_mask + 1) buckets of two slots, or NULL */
    uint32_t piece_mask;                  /* over buckets */
    const double *scores;                 /* ids_end, Unigram only */
    const struct ptk_image_trie_unit *trie;
    uint32_t trie_count;

    const struct ptk_image_neighbours *neighbours; /* or NULL, and then the next one, too */
    const uint32_t *neighbour_chars;
    uint32_t neighbour_char_count;
    const struct ptk_image_unigram_neighbours *unigram_neighbours; /* or NULL */

    const struct ptk_image_added *added;
    uint32_t added_count;
    /* NULL: no token is matched in the original text */
    const struct ptk_image_match_node *added_raw;
    uint32_t added_raw_count;
    const struct ptk_image_match_node *added_normalized; /* NULL: none in the normalized text */
    uint32_t added_normalized_count;

    struct ptk_image_program normalizer;
    struct ptk_image_program pre_tokenizer;
    struct ptk_image_program post_processor;
    struct ptk_image_program decoder;

    const uint8_t *certificate; /* JSON, not terminated */
    size_t certificate_len;
    const uint8_t *meta; /* JSON, not terminated */
    size_t meta_len;

    bool owned; /* set by ptk_image_open: ptk_image_close unmaps `bytes` */
};

/*
 * ptk_image_view verifies `len` bytes at `bytes` (64-byte aligned, must stay as they are while the
 * view is used) and fills `out`. Returns 0, or -EINVAL and a sentence that names what is wrong;
 * `out` is then unspecified. Reads every byte once or a few times: milliseconds per 10 MB.
 * Allocates nothing.
 */
int ptk_image_view(const void *bytes, size_t len, struct ptk_image *out, struct ptk_err *err);

/* How ptk_image_open holds the file. */
enum ptk_image_hold {
    PTK_IMAGE_HOLD_COPY = 0, /* private memory, huge pages where the system gives them: fastest */
    PTK_IMAGE_HOLD_MAP = 1,  /* the page cache, shared between processes */
};

/*
 * ptk_image_open reads or maps the image file at `path` and verifies it. Returns 0, a negative
 * errno of the system, or -EINVAL for an image that fails verification; the sentence names the
 * path. ptk_image_close releases it; a view that was not opened is left alone.
 */
int ptk_image_open(const char *path, enum ptk_image_hold hold, struct ptk_image *out,
                   struct ptk_err *err);
void ptk_image_close(struct ptk_image *image);

/* ptk_image_checksum: of a whole image, its checksum field taken as zero. `len` is a multiple of
 * 64. */
uint64_t ptk_image_checksum(const uint8_t *bytes, size_t len);

/* One operation of a program. */
struct ptk_image_op_view {
    uint16_t kind;
    uint16_t flags;
    uint32_t param_len;
    const uint8_t *params;
};

/*
 * ptk_image_op_next yields the operation at `*pos` and moves `*pos` behind it; false at the end.
 * Start with `*pos` 0.
 */
static inline bool ptk_image_op_next(const struct ptk_image_program *program, size_t *pos,
                                     struct ptk_image_op_view *out)
{
    if (*pos >= program->len) {
        return false;
    }
    const uint8_t *op = program->bytes + *pos;
    out->kind = ptk_load_u16(op);
    out->flags = ptk_load_u16(op + 2);
    out->param_len = ptk_load_u32(op + 4);
    out->params = op + sizeof(struct ptk_image_op);
    *pos += sizeof(struct ptk_image_op) + ptk_align_up(out->param_len, 8);
    return true;
}

/* A STRING parameter: u32 length, bytes. */
struct ptk_image_string {
    const uint8_t *bytes;
    uint32_t len;
};

/* ptk_image_op_string reads the STRING at `*off` of the parameters and moves `*off` behind it. */
static inline struct ptk_image_string ptk_image_op_string(const struct ptk_image_op_view *op,
                                                          size_t *off)
{
    const struct ptk_image_string string = {op->params + *off + 4, ptk_load_u32(op->params + *off)};
    *off += 4 + string.len;
    return string;
}

/* ptk_image_pair: the merge of two neighbouring ids, or NULL. Any two ids may be asked for. */
static inline const struct ptk_image_pair *ptk_image_pair(const struct ptk_image *image,
                                                          uint32_t left, uint32_t right)
{
    uint32_t slot = ptk_pair_hash(left, right) & image->pair_mask;
    for (;;) { /* ends: a verified table has an empty slot */
        const struct ptk_image_pair *pair = &image->pairs[slot];
        if (pair->left == left && pair->right == right) {
            return pair;
        }
        if (pair->left == PTK_IMAGE_NONE) {
            return NULL;
        }
        slot = (slot + 1) & image->pair_mask;
    }
}

/* Slots that ptk_image_used_pairs gives at once. */
#define PTK_IMAGE_PAIRS_SOME 256u

/*
 * ptk_image_used_pairs writes the next merges of the table, from slot `*slot` on, to `used` and
 * moves `*slot` behind the last one looked at; at most PTK_IMAGE_PAIRS_SOME, 0 at the end. Which
 * slots are in use is as good as random: whoever walks the table branches on it only here.
 */
static inline size_t ptk_image_used_pairs(const struct ptk_image *image, size_t *slot,
                                          const struct ptk_image_pair **used)
{
    const size_t end = image->pairs == NULL ? 0 : (size_t)image->pair_mask + 1;
    size_t count = 0;
    size_t at = *slot;
    while (at < end && count < PTK_IMAGE_PAIRS_SOME) {
        used[count] = &image->pairs[at];
        count += image->pairs[at].left != PTK_IMAGE_NONE;
        at++;
    }
    *slot = at;
    return count;
}

#define PTK_IMAGE_VOCAB_ID_BITS   22u
#define PTK_IMAGE_VOCAB_TAG_SHIFT 54u

/* ptk_image_vocab_hashed: the id whose key these bytes are, or PTK_IMAGE_NONE; hash is
 * ptk_vocab_hash. */
static inline uint32_t ptk_image_vocab_hashed(const struct ptk_image *image, const uint8_t *key,
                                              size_t len, uint64_t hash)
{
    const uint32_t tag = (uint32_t)(hash >> PTK_IMAGE_VOCAB_TAG_SHIFT);
    uint32_t slot = (uint32_t)hash & image->vocab_mask;
    for (;;) { /* ends: a verified table has an empty slot */
        const uint32_t entry = image->vocab[slot];
        if (entry == PTK_IMAGE_NONE) {
            return PTK_IMAGE_NONE;
        }
        if (entry >> PTK_IMAGE_VOCAB_ID_BITS == tag) {
            const uint32_t id = entry & PTK_IMAGE_IDS_MAX;
            const uint32_t off = image->vocab_key_offs[id];
            if (image->vocab_key_offs[id + 1] - off == len &&
                memcmp(image->vocab_key + off, key, len) == 0) {
                return id;
            }
        }
        slot = (slot + 1) & image->vocab_mask;
    }
}

static inline uint32_t ptk_image_vocab(const struct ptk_image *image, const uint8_t *key,
                                       size_t len)
{
    return ptk_image_vocab_hashed(image, key, len, ptk_vocab_hash(key, len));
}

/* A piece as the piece table keys it: the bytes zero-padded, the length in the last byte. */
struct ptk_piece_key {
    uint64_t low;
    uint64_t high;
};

/* ptk_piece_key_make: `len` is 1 to PTK_IMAGE_PIECE_KEY_MAX. */
static inline struct ptk_piece_key ptk_piece_key_make(const uint8_t *piece, size_t len)
{
    struct ptk_piece_key key = {0, 0};
    if (len >= 8) {
        key.low = ptk_load_u64(piece);
        /* The last eight bytes, shifted down by those that `low` already has. */
        if (len > 8) {
            key.high = ptk_load_u64(piece + len - 8) >> (8 * (16 - len));
        }
    } else if (len >= 4) {
        key.low = ptk_load_u32(piece) | (uint64_t)ptk_load_u32(piece + len - 4) << (8 * (len - 4));
    } else {
        key.low = (uint64_t)piece[0] | (uint64_t)piece[len >> 1] << (8 * (len >> 1)) |
                  (uint64_t)piece[len - 1] << (8 * (len - 1));
    }
    key.high |= (uint64_t)len << 56;
    return key;
}

/* The length in byte 15 shares its byte with the id count: bits 4 to 6. */
#define PTK_PIECE_HIGH_MASK 0x0fffffffffffffffull

/*
 * ptk_image_piece_hashed: the slot of a piece, or NULL. hash is ptk_piece_hash of the key. Costs
 * one cache line in nearly all cases; prefetch &pieces[(hash & piece_mask) * 2].
 */
static inline const struct ptk_image_piece *
ptk_image_piece_hashed(const struct ptk_image *image, struct ptk_piece_key key, uint64_t hash)
{
    uint32_t bucket = (uint32_t)hash & image->piece_mask;
    for (;;) { /* ends: a verified table has a bucket with an empty second slot */
        const struct ptk_image_piece *slot = &image->pieces[(size_t)bucket * 2];
        const uint64_t high0 = ptk_load_u64(slot[0].key + 8);
        const uint64_t high1 = ptk_load_u64(slot[1].key + 8);
        if (((ptk_load_u64(slot[0].key) ^ key.low) | ((high0 & PTK_PIECE_HIGH_MASK) ^ key.high)) ==
            0) {
            return &slot[0];
        }
        if (((ptk_load_u64(slot[1].key) ^ key.low) | ((high1 & PTK_PIECE_HIGH_MASK) ^ key.high)) ==
            0) {
            return &slot[1];
        }
        if (high1 == 0) {
            return NULL;
        }
        bucket = (bucket + 1) & image->piece_mask;
    }
}

static inline const struct ptk_image_piece *ptk_image_piece(const struct ptk_image *image,
                                                            const uint8_t *piece, size_t len)
{
    const struct ptk_piece_key key = ptk_piece_key_make(piece, len);
    return ptk_image_piece_hashed(image, key, ptk_piece_hash(key.low, key.high));
}

/* ptk_image_piece_id_count: 1 to PTK_IMAGE_PIECE_IDS_MAX. */
static inline uint32_t ptk_image_piece_id_count(const struct ptk_image_piece *piece)
{
    return piece->key[15] >> 4;
}

#define PTK_TRIE_USED 0x100u

/*
 * ptk_image_trie_step: from unit `*unit` (0: root) by one byte; false when there is no such child.
 * ptk_image_trie_id: the id of the key that ends at a unit, or PTK_IMAGE_NONE.
 */
static inline bool ptk_image_trie_step(const struct ptk_image *image, uint32_t *unit, uint8_t byte)
{
    const uint32_t child = image->trie[*unit].base ^ byte;
    if ((image->trie[child].word & 0x1ffu) != (PTK_TRIE_USED | byte)) {
        return false;
    }
    *unit = child;
    return true;
}

static inline uint32_t ptk_image_trie_id(const struct ptk_image *image, uint32_t unit)
{
    return (image->trie[unit].word >> 9) - 1u;
}

#endif
