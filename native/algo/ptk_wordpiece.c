#include "algo/ptk_wordpiece.h"

#include <errno.h>

#include "text/ptk_utf8.h"

/* Where the entries with the prefix of continuing subwords begin in the trie. */
static uint32_t find_suffixes(const struct ptk_image *image)
{
    const uint8_t *prefix = image->strings + image->config->prefix_off;
    uint32_t unit = 0;
    for (uint32_t i = 0; i < image->config->prefix_len; i++) {
        if (!ptk_image_trie_step(image, &unit, prefix[i])) {
            return PTK_IMAGE_NONE;
        }
    }
    return unit;
}

int ptk_wordpiece_init(struct ptk_wordpiece *wordpiece, const struct ptk_image *image,
                       struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    if (config->unk_id == PTK_IMAGE_NONE) {
        return ptk_err_set(err, -ENOTSUP,
                           "a WordPiece model needs its unk_token in the vocabulary");
    }
    if (config->prefix_len > PTK_WORDPIECE_PREFIX_MAX) {
        return ptk_err_set(err, -ENOTSUP,
                           "continuing_subword_prefix has %u bytes; at most %u are supported",
                           config->prefix_len, PTK_WORDPIECE_PREFIX_MAX);
    }
    if (config->key_bytes_max > PTK_WORDPIECE_KEY_MAX) {
        return ptk_err_set(err, -ENOTSUP,
                           "the longest WordPiece token has %u bytes; at most %u are supported",
                           config->key_bytes_max, PTK_WORDPIECE_KEY_MAX);
    }
    *wordpiece = (struct ptk_wordpiece){
        .image = image,
        .suffix_unit = find_suffixes(image),
        .word_chars_max = config->word_chars_max,
        .unk_id = config->unk_id,
    };
    return 0;
}

static size_t put_unknown(const struct ptk_wordpiece *wordpiece, size_t len, uint32_t *ids,
                          uint32_t *ends)
{
    ids[0] = wordpiece->unk_id;
    ends[0] = (uint32_t)len;
    return 1;
}

/*
 * The longest entry along the trie from `unit` on that `bytes` begin with; 0: none. A cut inside a
 * character matches nothing, since entries are whole characters.
 */
static size_t longest_match(const struct ptk_image *image, uint32_t unit, const uint8_t *bytes,
                            size_t len, uint32_t *id)
{
    size_t found = 0;
    for (size_t i = 0; i < len && ptk_image_trie_step(image, &unit, bytes[i]); i++) {
        const uint32_t here = ptk_image_trie_id(image, unit);
        if (here != PTK_IMAGE_NONE) {
            *id = here;
            found = i + 1;
        }
    }
    return found;
}

size_t ptk_wordpiece_encode(const struct ptk_wordpiece *wordpiece, const uint8_t *word, size_t len,
                            uint32_t *ids, uint32_t *ends)
{
    PTK_DCHECK(len > 0);
    const size_t chars_max = wordpiece->word_chars_max;
    if (len > chars_max * 4 || (len > chars_max && ptk_utf8_count(word, len) > chars_max)) {
        return put_unknown(wordpiece, len, ids, ends);
    }
    size_t count = 0;
    uint32_t unit = 0;
    for (size_t begin = 0; begin < len;) {
        uint32_t id = PTK_IMAGE_NONE;
        const size_t taken =
            longest_match(wordpiece->image, unit, word + begin, len - begin, &id);
        if (taken == 0) {
            return put_unknown(wordpiece, len, ids, ends);
        }
        begin += taken;
        ids[count] = id;
        ends[count] = (uint32_t)begin;
        count++;
        if (wordpiece->suffix_unit == PTK_IMAGE_NONE && begin < len) {
            return put_unknown(wordpiece, len, ids, ends);
        }
        unit = wordpiece->suffix_unit;
    }
    return count;
}
