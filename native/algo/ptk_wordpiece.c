#include "algo/ptk_wordpiece.h"

#include <errno.h>

#include "text/ptk_utf8.h"

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
        .prefix = image->strings + config->prefix_off,
        .prefix_len = config->prefix_len,
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
 * The longest entry that `key`, of which `fixed` bytes are the prefix, begins with; 0: none. A cut
 * inside a character matches nothing, since entries are whole characters.
 */
static size_t longest_match(const struct ptk_image *image, const uint8_t *key, size_t fixed,
                            size_t key_len, uint32_t *id)
{
    for (size_t len = key_len; len > fixed; len--) {
        *id = ptk_image_vocab(image, key, len);
        if (*id != PTK_IMAGE_NONE) {
            return len - fixed;
        }
    }
    return 0;
}

size_t ptk_wordpiece_encode(const struct ptk_wordpiece *wordpiece, const uint8_t *word, size_t len,
                            uint32_t *ids, uint32_t *ends)
{
    PTK_DCHECK(len > 0);
    const size_t chars_max = wordpiece->word_chars_max;
    if (len > chars_max * 4 || (len > chars_max && ptk_utf8_count(word, len) > chars_max)) {
        return put_unknown(wordpiece, len, ids, ends);
    }
    const struct ptk_image *image = wordpiece->image;
    const size_t key_max = image->config->key_bytes_max;
    uint8_t key[PTK_WORDPIECE_PREFIX_MAX + PTK_WORDPIECE_KEY_MAX];
    memcpy(key, wordpiece->prefix, wordpiece->prefix_len);

    size_t count = 0;
    for (size_t begin = 0; begin < len;) {
        uint32_t id = PTK_IMAGE_NONE;
        size_t taken;
        if (begin == 0) {
            taken = longest_match(image, word, 0, ptk_min_size(len, key_max), &id);
        } else {
            const size_t rest = ptk_min_size(len - begin, key_max);
            memcpy(key + wordpiece->prefix_len, word + begin, rest);
            taken =
                longest_match(image, key, wordpiece->prefix_len, wordpiece->prefix_len + rest, &id);
        }
        if (taken == 0) {
            return put_unknown(wordpiece, len, ids, ends);
        }
        begin += taken;
        ids[count] = id;
        ends[count] = (uint32_t)begin;
        count++;
    }
    return count;
}
