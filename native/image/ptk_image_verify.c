/*
 * Proves the contents of an image but for its programs (ptk_image_verify_program.c); see
 * ptk_image.h for what holds afterwards.
 *
 * Reads nothing before it is known to lie inside the file; allocates nothing; ends for any input.
 */
#include "image/ptk_image_verify.h"

#include "base/ptk_cpu.h"

#include <errno.h>

#define REFUSE(...) ptk_err_set(err, -EINVAL, __VA_ARGS__)

static bool id_ok(const struct ptk_image *image, uint32_t id)
{
    return id < image->config->ids_end;
}

static bool id_or_none_ok(const struct ptk_image *image, uint32_t id)
{
    return id == PTK_IMAGE_NONE || id_ok(image, id);
}

static bool string_ok(const struct ptk_image *image, uint32_t off, uint32_t len)
{
    return off <= image->strings_len && len <= image->strings_len - off;
}

int ptk_image_verify_config(const struct ptk_image *image, struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    if (config->algorithm == 0 || config->algorithm >= PTK_IMAGE_ALGORITHM_VALUE_COUNT) {
        return REFUSE("image: unknown algorithm %u", config->algorithm);
    }
    if ((config->flags & ~PTK_IMAGE_FLAGS_MASK) != 0) {
        return REFUSE("image: unknown flags %#x", config->flags & ~PTK_IMAGE_FLAGS_MASK);
    }
    if (config->ids_end == 0 || config->ids_end > PTK_IMAGE_IDS_MAX) {
        return REFUSE("image: ids_end %u is not in 1 to %u", config->ids_end, PTK_IMAGE_IDS_MAX);
    }
    if (!id_or_none_ok(image, config->unk_id) || !id_or_none_ok(image, config->bos_id) ||
        !id_or_none_ok(image, config->eos_id) || !id_or_none_ok(image, config->pad_id)) {
        return REFUSE("image: a special id of the configuration is not below %u", config->ids_end);
    }
    if (!string_ok(image, config->prefix_off, config->prefix_len) ||
        !string_ok(image, config->suffix_off, config->suffix_len)) {
        return REFUSE("image: prefix or suffix lies outside of the strings");
    }
    if (config->added_len != image->added_count) {
        return REFUSE("image: added_len %u does not match the %u added tokens", config->added_len,
                      image->added_count);
    }
    for (size_t i = 0; i < PTK_ARRAY_LEN(config->reserved); i++) {
        if (config->reserved[i] != 0) {
            return REFUSE("image: a reserved word of the configuration is not zero");
        }
    }

    const bool byte_units = (config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0;
    if (byte_units && image->byte_ids == NULL) {
        return REFUSE("image: byte units without byte ids");
    }
    switch (config->algorithm) {
    case PTK_IMAGE_ALGORITHM_BPE:
        if (image->pairs == NULL) {
            return REFUSE("image: byte pair encoding without merges");
        }
        break;
    case PTK_IMAGE_ALGORITHM_UNIGRAM:
        if (image->scores == NULL || image->trie == NULL) {
            return REFUSE("image: Unigram without scores or trie");
        }
        break;
    case PTK_IMAGE_ALGORITHM_WORDPIECE:
    case PTK_IMAGE_ALGORITHM_LONGEST:
        if (image->trie == NULL) {
            return REFUSE("image: longest match without a trie");
        }
        break;
    default:
        break;
    }
    return 0;
}

/* Offsets of ids_end strings: ascending from 0, the last one is `end`; finds the longest. */
static int verify_offs(const struct ptk_image *image, const char *what, const uint32_t *offs,
                       size_t end, uint32_t *longest, struct ptk_err *err)
{
    const uint32_t ids_end = image->config->ids_end;
    if (offs[0] != 0 || offs[ids_end] != end) {
        return REFUSE("image: %s does not begin at 0 and end at its length", what);
    }
    uint32_t max = 0;
    uint32_t wrong = 0;
    for (uint32_t id = 0; id < ids_end; id++) {
        const uint32_t len = offs[id + 1] - offs[id];
        wrong |= offs[id + 1] < offs[id];
        max = len > max ? len : max;
    }
    if (wrong != 0) {
        return REFUSE("image: the offsets of %s do not ascend", what);
    }
    if (max > PTK_IMAGE_KEY_MAX) {
        return REFUSE("image: an entry of %s has %u bytes, %u are allowed", what, max,
                      PTK_IMAGE_KEY_MAX);
    }
    *longest = max;
    return 0;
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    uint8_t any = 0;
    for (size_t i = 0; i < len; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

/* Bytes that valid UTF-8 never holds. */
static bool utf8_uses(uint8_t byte)
{
    return byte < 0xf5 && byte != 0xc0 && byte != 0xc1;
}

int ptk_image_verify_tokens(const struct ptk_image *image, size_t token_text_len,
                            size_t token_bytes_len, size_t vocab_key_len, struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    if (token_bytes_len < PTK_IMAGE_OVERRUN || vocab_key_len < PTK_IMAGE_OVERRUN) {
        return REFUSE("image: token_bytes or vocab_key lacks its overrun");
    }
    const size_t bytes_end = token_bytes_len - PTK_IMAGE_OVERRUN;
    const size_t key_end = vocab_key_len - PTK_IMAGE_OVERRUN;

    uint32_t text_max = 0;
    uint32_t bytes_max = 0;
    uint32_t key_max = 0;
    int rc =
        verify_offs(image, "token_text", image->token_text_offs, token_text_len, &text_max, err);
    if (rc == 0) {
        rc = verify_offs(image, "token_bytes", image->token_bytes_offs, bytes_end, &bytes_max, err);
    }
    if (rc == 0) {
        rc = verify_offs(image, "vocab_key", image->vocab_key_offs, key_end, &key_max, err);
    }
    if (rc != 0) {
        return rc;
    }
    if (!all_zero(image->token_bytes + bytes_end, PTK_IMAGE_OVERRUN) ||
        !all_zero(image->vocab_key + key_end, PTK_IMAGE_OVERRUN)) {
        return REFUSE("image: the overrun of token_bytes or vocab_key is not zero");
    }
    if (config->token_bytes_max != bytes_max || config->key_bytes_max != key_max) {
        return REFUSE("image: token_bytes_max or key_bytes_max is not the longest entry");
    }

    const bool byte_gaps = (config->flags & PTK_IMAGE_FLAGS_BYTE_GAPS) != 0;
    uint32_t vocab_len = 0;
    uint32_t added_len = 0;
    for (uint32_t id = 0; id < config->ids_end; id++) {
        const uint8_t flags = image->token_flags[id];
        if ((flags & ~PTK_IMAGE_TOKEN_FLAGS_MASK) != 0) {
            return REFUSE("image: unknown flags of id %u", id);
        }
        vocab_len += flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS;
        added_len += (flags & PTK_IMAGE_TOKEN_FLAGS_ADDED) != 0;
        if ((flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS) == 0 &&
            (flags != 0 || image->token_text_offs[id + 1] != image->token_text_offs[id] ||
             image->token_bytes_offs[id + 1] != image->token_bytes_offs[id] ||
             image->vocab_key_offs[id + 1] != image->vocab_key_offs[id])) {
            return REFUSE("image: the gap id %u has contents", id);
        }
    }
    if (config->vocab_len != vocab_len || config->added_len != added_len ||
        config->model_len > vocab_len) {
        return REFUSE("image: the counts of the configuration do not match the flags of its ids");
    }

    for (size_t byte = 0; image->byte_ids != NULL && byte < 256; byte++) {
        const uint32_t id = image->byte_ids[byte];
        if ((config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) == 0) {
            if (!id_or_none_ok(image, id)) {
                return REFUSE("image: the token of byte %zu is not below ids_end", byte);
            }
            continue;
        }
        if (id == PTK_IMAGE_NONE && (byte_gaps || !utf8_uses((uint8_t)byte))) {
            continue;
        }
        if (!id_ok(image, id) || image->vocab_key_offs[id + 1] - image->vocab_key_offs[id] != 1 ||
            image->vocab_key[image->vocab_key_offs[id]] != byte) {
            return REFUSE("image: byte %zu has no token of its own", byte);
        }
    }
    return 0;
}

/*
 * Runs of used slots bound every probe sequence: a look-up, whether it finds or not, ends at the
 * first empty slot. The walk begins behind an empty slot so that a run over the end of the table is
 * one run.
 */
struct run_meter {
    uint32_t run;
    uint32_t longest;
};

static void run_count(struct run_meter *meter, bool used)
{
    meter->run = (meter->run + 1) & (0u - used);
    meter->longest = meter->run > meter->longest ? meter->run : meter->longest;
}

static int verify_probe(const char *what, uint32_t longest, uint32_t stated, struct ptk_err *err)
{
    if (longest != stated || longest > PTK_IMAGE_PROBE_MAX) {
        return REFUSE("image: the longest run of %s is %u, stated are %u, allowed %u", what,
                      longest, stated, PTK_IMAGE_PROBE_MAX);
    }
    return 0;
}

static uint32_t key_len(const struct ptk_image *image, uint32_t id)
{
    return image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
}

/*
 * Which slots are in use is as good as random. So the walks first note those that are, without a
 * branch on it, and then look at what they have noted.
 */
#define SLOTS_SOME 256u

struct used_slot {
    uint32_t slot;
    uint32_t run; /* used slots up to this one, itself included */
};

static int verify_used_pairs(const struct ptk_image *image, const struct used_slot *used,
                             size_t count, struct ptk_err *err)
{
    const uint32_t mask = image->pair_mask;
    const bool byte_units = (image->config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t slot = used[i].slot;
        const struct ptk_image_pair *pair = &image->pairs[slot];
        if (!id_ok(image, pair->left) || !id_ok(image, pair->right) || !id_ok(image, pair->id)) {
            return REFUSE("image: pair slot %u has an id that is not below ids_end", slot);
        }
        if (pair->rank == PTK_IMAGE_NONE) {
            return REFUSE("image: pair slot %u has no rank", slot);
        }
        const uint32_t home = ptk_pair_hash(pair->left, pair->right) & mask;
        if (((slot - home) & mask) >= used[i].run) {
            return REFUSE("image: pair slot %u cannot be found", slot);
        }
        if (byte_units &&
            key_len(image, pair->left) + key_len(image, pair->right) != key_len(image, pair->id)) {
            return REFUSE("image: pair slot %u does not make the bytes of its token", slot);
        }
    }
    return 0;
}

static int verify_pairs(const struct ptk_image *image, struct ptk_err *err)
{
    const uint32_t mask = image->pair_mask;
    uint32_t first_empty = 0;
    while (first_empty <= mask && image->pairs[first_empty].left != PTK_IMAGE_NONE) {
        first_empty++;
    }
    if (first_empty > mask) {
        return REFUSE("image: the pair table is full");
    }
    struct run_meter meter = {0, 0};
    for (uint32_t i = 1; i <= mask + 1;) {
        struct used_slot used[SLOTS_SOME];
        size_t count = 0;
        for (; i <= mask + 1 && count < SLOTS_SOME; i++) {
            const uint32_t slot = (first_empty + i) & mask;
            const bool is_used = image->pairs[slot].left != PTK_IMAGE_NONE;
            run_count(&meter, is_used);
            used[count] = (struct used_slot){slot, meter.run};
            count += is_used;
        }
        const int rc = verify_used_pairs(image, used, count, err);
        if (rc != 0) {
            return rc;
        }
    }
    return verify_probe("pairs", meter.longest, image->config->pair_probe_max, err);
}

/* Keys whose places in the table are asked for at once. */
#define KEYS_SOME 32u

static int verify_vocab(const struct ptk_image *image, struct ptk_err *err)
{
    const uint32_t mask = image->vocab_mask;
    uint32_t first_empty = 0;
    while (first_empty <= mask && image->vocab[first_empty] != PTK_IMAGE_NONE) {
        first_empty++;
    }
    if (first_empty > mask) {
        return REFUSE("image: the vocab table is full");
    }
    struct run_meter meter = {0, 0};
    uint32_t used = 0;
    uint32_t wrong = 0;
    for (uint32_t i = 1; i <= mask + 1; i++) {
        const uint32_t entry = image->vocab[(first_empty + i) & mask];
        const bool is_used = entry != PTK_IMAGE_NONE;
        run_count(&meter, is_used);
        used += is_used;
        wrong += is_used & !id_ok(image, entry & PTK_IMAGE_IDS_MAX);
    }
    if (wrong != 0) {
        return REFUSE("image: %u vocab slots have an id that is not below ids_end", wrong);
    }
    const int rc = verify_probe("vocab", meter.longest, image->config->vocab_probe_max, err);
    if (rc != 0) {
        return rc;
    }
    /* Every key is found as itself, and there are no further slots: so each slot is right. */
    const uint32_t ids_end = image->config->ids_end;
    uint32_t keys = 0;
    for (uint32_t first = 0; first < ids_end; first += KEYS_SOME) {
        const uint32_t end = ids_end - first < KEYS_SOME ? ids_end : first + KEYS_SOME;
        uint64_t hashes[KEYS_SOME];
        for (uint32_t id = first; id < end; id++) {
            hashes[id - first] =
                ptk_vocab_hash(image->vocab_key + image->vocab_key_offs[id], key_len(image, id));
            ptk_prefetch(&image->vocab[(uint32_t)hashes[id - first] & mask]);
        }
        for (uint32_t id = first; id < end; id++) {
            const uint32_t len = key_len(image, id);
            const uint8_t *key = image->vocab_key + image->vocab_key_offs[id];
            keys += len != 0;
            if (len != 0 && ptk_image_vocab_hashed(image, key, len, hashes[id - first]) != id) {
                return REFUSE("image: the key of id %u is not found", id);
            }
        }
    }
    if (keys != used) {
        return REFUSE("image: the vocab table has %u entries for %u keys", used, keys);
    }
    return 0;
}

/* Whether all bytes of a key behind its first `len`, 1 to 15, are zero, but for the last one. */
static bool is_padded(uint64_t low, uint64_t high, uint32_t len)
{
    const uint64_t behind = ~0ull << (8 * (len & 7));
    return ((len < 8 ? low & behind : 0) | (high & (len < 8 ? ~0ull : behind)) << 8) == 0;
}

static int verify_piece(const struct ptk_image *image, const struct ptk_image_piece *piece,
                        struct ptk_err *err)
{
    const uint32_t len = piece->key[15] & 0x0f;
    const uint32_t count = ptk_image_piece_id_count(piece);
    if (len == 0 || count == 0 || count > PTK_IMAGE_PIECE_IDS_MAX) {
        return REFUSE("image: a piece has %u bytes and %u ids", len, count);
    }
    if (!is_padded(ptk_load_u64(piece->key), ptk_load_u64(piece->key + 8), len)) {
        return REFUSE("image: a piece is not padded with zeros");
    }
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < PTK_IMAGE_PIECE_IDS_MAX; i++) {
        const uint32_t end = i < count ? image->config->ids_end : 1;
        wrong |= (uint32_t)(piece->ids[i] >= end) << i;
    }
    if (wrong != 0) {
        const uint32_t place = (uint32_t)__builtin_ctz(wrong);
        return REFUSE("image: a piece has the id %u at place %u", piece->ids[place], place);
    }
    return 0;
}

/* `used` counts slots, two a bucket; its `run` is the full buckets before. */
static int verify_used_pieces(const struct ptk_image *image, const struct used_slot *used,
                              size_t count, struct ptk_err *err)
{
    const uint32_t mask = image->piece_mask;
    for (size_t i = 0; i < count; i++) {
        const struct ptk_image_piece *piece = &image->pieces[used[i].slot];
        const int rc = verify_piece(image, piece, err);
        if (rc != 0) {
            return rc;
        }
        const uint64_t low = ptk_load_u64(piece->key);
        const uint64_t high = ptk_load_u64(piece->key + 8) & PTK_PIECE_HIGH_MASK;
        const uint32_t home = (uint32_t)ptk_piece_hash(low, high) & mask;
        const uint32_t bucket = used[i].slot / 2;
        if (((bucket - home) & mask) > used[i].run) {
            return REFUSE("image: a piece in bucket %u cannot be found", bucket);
        }
    }
    return 0;
}

/* All words of an empty slot or-ed together; 0 for one in use. */
static uint64_t leftovers(const struct ptk_image_piece *piece)
{
    const uint8_t *bytes = (const uint8_t *)(const void *)piece;
    uint64_t any = 0;
    for (size_t i = 0; i < sizeof *piece; i += 8) {
        any |= ptk_load_u64(bytes + i);
    }
    return piece->key[15] == 0 ? any : 0;
}

static int verify_pieces(const struct ptk_image *image, struct ptk_err *err)
{
    const uint32_t mask = image->piece_mask;
    uint32_t first_open = 0;
    while (first_open <= mask && image->pieces[(size_t)first_open * 2 + 1].key[15] != 0) {
        first_open++;
    }
    if (first_open > mask) {
        return REFUSE("image: the piece table is full");
    }
    /* A look-up passes over full buckets only: the run counts them, and the bucket it ends in. */
    struct run_meter meter = {0, 0};
    uint64_t left_over = 0;
    bool second_only = false;
    for (uint32_t i = 1; i <= mask + 1;) {
        struct used_slot used[SLOTS_SOME];
        size_t count = 0;
        for (; i <= mask + 1 && count + 2 <= SLOTS_SOME; i++) {
            const uint32_t bucket = (first_open + i) & mask;
            const struct ptk_image_piece *slots = &image->pieces[(size_t)bucket * 2];
            const bool has_first = slots[0].key[15] != 0;
            const bool has_second = slots[1].key[15] != 0;
            used[count] = (struct used_slot){bucket * 2, meter.run};
            count += has_first;
            used[count] = (struct used_slot){bucket * 2 + 1, meter.run};
            count += has_second;
            left_over |= leftovers(&slots[0]) | leftovers(&slots[1]);
            second_only |= has_second && !has_first;
            run_count(&meter, has_second);
        }
        const int rc = verify_used_pieces(image, used, count, err);
        if (rc != 0) {
            return rc;
        }
    }
    if (left_over != 0) {
        return REFUSE("image: an empty piece slot is not zero");
    }
    if (second_only) {
        return REFUSE("image: a piece bucket has only its second slot in use");
    }
    return verify_probe("pieces", meter.longest + 1, image->config->piece_probe_max, err);
}

int ptk_image_verify_tables(const struct ptk_image *image, struct ptk_err *err)
{
    int rc = verify_vocab(image, err);
    if (rc == 0 && image->pairs != NULL) {
        rc = verify_pairs(image, err);
    }
    if (rc == 0 && image->pieces != NULL) {
        rc = verify_pieces(image, err);
    }
    if (rc != 0) {
        return rc;
    }
    for (uint32_t id = 0; image->scores != NULL && id < image->config->ids_end; id++) {
        const double score = image->scores[id];
        if (!(score >= -1e300 && score <= 1e300)) {
            return REFUSE("image: the score of id %u is not a finite number", id);
        }
    }
    return 0;
}

/*
 * Steps stay inside, and there are as many ends as keys. That each key leads to its own end is the
 * builder's business, which proves it once: an image that lies about it has been written to lie,
 * and then states another vocabulary, which is no danger to who reads it.
 */
int ptk_image_verify_trie(const struct ptk_image *image, struct ptk_err *err)
{
    if (image->trie == NULL) {
        return 0;
    }
    uint32_t ends = 0;
    for (uint32_t unit = 0; unit < image->trie_count; unit++) {
        const struct ptk_image_trie_unit *u = &image->trie[unit];
        if (u->base >= image->trie_count || (u->base | 255u) >= image->trie_count) {
            return REFUSE("image: trie unit %u leads outside of the trie", unit);
        }
        if (unit < 256 && (u->word & PTK_TRIE_USED) != 0) {
            return REFUSE("image: trie unit %u is reserved", unit);
        }
        const uint32_t id = ptk_image_trie_id(image, unit);
        if (id != PTK_IMAGE_NONE) {
            ends++;
            if (!id_ok(image, id)) {
                return REFUSE("image: trie unit %u has an id that is not below ids_end", unit);
            }
        }
    }
    uint32_t keys = 0;
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        keys += key_len(image, id) != 0;
    }
    if (ends != keys) {
        return REFUSE("image: the trie has %u ends for %u keys", ends, keys);
    }
    return 0;
}

#define CODE_POINT_END 0x110000u
#define NEIGHBOUR_BITS 4u

/* Bits may say what they like: each says where not to cut. */
int ptk_image_verify_neighbours(const struct ptk_image *image, struct ptk_err *err)
{
    if (image->neighbours == NULL && image->neighbour_chars != NULL) {
        return REFUSE("image: the section neighbour_chars without neighbours");
    }
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < image->neighbour_char_count; i++) {
        const uint32_t character = image->neighbour_chars[i];
        wrong |= character >> (PTK_IMAGE_CHAR_BITS + NEIGHBOUR_BITS);
        wrong |= (character & ((1u << PTK_IMAGE_CHAR_BITS) - 1)) >= CODE_POINT_END;
    }
    if (wrong != 0) {
        return REFUSE("image: an entry of neighbour_chars is no character with neighbours");
    }
    return 0;
}

/* Nodes in breadth-first order: the children of each follow those of the one before it. So it is a
 * tree. */
static int verify_match_nodes(const struct ptk_image *image,
                              const struct ptk_image_match_node *nodes, uint32_t count,
                              uint32_t *ends, struct ptk_err *err)
{
    uint32_t next_child = 1;
    uint32_t end_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct ptk_image_match_node *node = &nodes[i];
        if (node->reserved != 0 || (i == 0 && (node->depth != 0 || node->byte != 0))) {
            return REFUSE("image: match node %u is malformed", i);
        }
        if (node->child_count == 0) {
            if (node->first_child != PTK_IMAGE_NONE) {
                return REFUSE("image: match node %u has a first child but no children", i);
            }
        } else {
            if (node->first_child != next_child || node->child_count > count - next_child ||
                next_child <= i) {
                return REFUSE("image: the children of match node %u are out of order", i);
            }
            for (uint32_t c = 0; c < node->child_count; c++) {
                const struct ptk_image_match_node *child = &nodes[next_child + c];
                if (child->depth != node->depth + 1 || (c > 0 && child->byte <= child[-1].byte)) {
                    return REFUSE("image: match node %u does not follow its parent",
                                  next_child + c);
                }
            }
            next_child += node->child_count;
        }
        if (node->added_idx != PTK_IMAGE_NONE) {
            end_count++;
            if (node->added_idx >= image->added_count || node->depth == 0 ||
                image->added[node->added_idx].match_len != node->depth) {
                return REFUSE("image: match node %u ends a token of another length", i);
            }
        }
    }
    if (next_child != count) {
        return REFUSE("image: %u match nodes have no parent", count - next_child);
    }
    *ends = end_count;
    return 0;
}

static uint32_t match_walk(const struct ptk_image *image, const struct ptk_image_match_node *nodes,
                           const struct ptk_image_added *added)
{
    const uint8_t *text = image->strings + added->match_off;
    uint32_t node = 0;
    for (uint32_t i = 0; i < added->match_len; i++) {
        uint32_t child = nodes[node].first_child;
        const uint32_t end = child + nodes[node].child_count;
        while (child < end && nodes[child].byte != text[i]) {
            child++;
        }
        if (nodes[node].child_count == 0 || child == end) {
            return PTK_IMAGE_NONE;
        }
        node = child;
    }
    return nodes[node].added_idx;
}

int ptk_image_verify_added(const struct ptk_image *image, struct ptk_err *err)
{
    for (uint32_t i = 0; i < image->added_count; i++) {
        const struct ptk_image_added *added = &image->added[i];
        if (!id_ok(image, added->id) || (i > 0 && added->id <= added[-1].id) ||
            (image->token_flags[added->id] & PTK_IMAGE_TOKEN_FLAGS_ADDED) == 0) {
            return REFUSE("image: added token %u has the id %u", i, added->id);
        }
        if ((added->flags & ~PTK_IMAGE_ADDED_FLAGS_MASK) != 0 || added->reserved[0] != 0 ||
            added->reserved[1] != 0) {
            return REFUSE("image: added token %u has unknown flags", i);
        }
        if (added->match_len == 0 || added->match_len > PTK_IMAGE_KEY_MAX ||
            !string_ok(image, added->text_off, added->text_len) ||
            !string_ok(image, added->match_off, added->match_len)) {
            return REFUSE("image: the text of added token %u lies outside of the strings", i);
        }
    }

    uint32_t raw_ends = 0;
    uint32_t normalized_ends = 0;
    int rc = 0;
    if (image->added_raw != NULL) {
        rc = verify_match_nodes(image, image->added_raw, image->added_raw_count, &raw_ends, err);
    }
    if (rc == 0 && image->added_normalized != NULL) {
        rc = verify_match_nodes(image, image->added_normalized, image->added_normalized_count,
                                &normalized_ends, err);
    }
    if (rc != 0) {
        return rc;
    }
    if ((image->config->flags & PTK_IMAGE_FLAGS_NO_SPECIALS_IN_TEXT) != 0) {
        if (image->added_raw != NULL || image->added_normalized != NULL) {
            return REFUSE("image: a model that never matches special tokens has a match trie");
        }
        return 0;
    }
    /* Each token is found in its trie as itself or as the one that shares its text; no end is left
     * over. */
    for (uint32_t i = 0; i < image->added_count; i++) {
        const struct ptk_image_added *added = &image->added[i];
        const bool normalized = (added->flags & PTK_IMAGE_ADDED_FLAGS_NORMALIZED) != 0;
        const struct ptk_image_match_node *nodes =
            normalized ? image->added_normalized : image->added_raw;
        const uint32_t found = nodes == NULL ? PTK_IMAGE_NONE : match_walk(image, nodes, added);
        if (found == PTK_IMAGE_NONE) {
            return REFUSE("image: added token %u is in no match trie", i);
        }
        if (found == i) {
            raw_ends -= !normalized;
            normalized_ends -= normalized;
        }
    }
    if (raw_ends != 0 || normalized_ends != 0) {
        return REFUSE("image: a match trie ends where no added token does");
    }
    const bool has_normalized = (image->config->flags & PTK_IMAGE_FLAGS_ADDED_NORMALIZED) != 0;
    if (has_normalized != (image->added_normalized != NULL)) {
        return REFUSE("image: the flag for normalized added tokens does not match their trie");
    }
    return 0;
}
