/*
 * WordPiece: greedy longest match from the left; what follows the first token carries a prefix
 * ("##"), and a word that cannot be covered is one unknown token.
 */
#ifndef PTK_WORDPIECE_H
#define PTK_WORDPIECE_H

#include "image/ptk_image.h"

/* Longest continuing-subword prefix, in bytes. */
#define PTK_WORDPIECE_PREFIX_MAX 32u

/* Longest key; longer vocabulary entries are refused at open: they bound the work for a byte. */
#define PTK_WORDPIECE_KEY_MAX 512u

struct ptk_wordpiece {
    const struct ptk_image *image;
    uint32_t suffix_unit; /* of the trie, behind the prefix; PTK_IMAGE_NONE: no entry has it */
    uint32_t word_chars_max; /* longer words are unknown */
    uint32_t unk_id;
};

/*
 * ptk_wordpiece_init prepares the model of an image. Returns 0, or -ENOTSUP and a sentence: no
 * unknown token, or a prefix or vocabulary entry longer than the limits above.
 */
int ptk_wordpiece_init(struct ptk_wordpiece *wordpiece, const struct ptk_image *image,
                       struct ptk_err *err);

/*
 * ptk_wordpiece_encode writes the ids of a word (valid UTF-8, not empty) and where each ends in it,
 * and returns how many there are: at most one per byte. Cost: bounded by the longest word and key.
 */
size_t ptk_wordpiece_encode(const struct ptk_wordpiece *wordpiece, const uint8_t *word, size_t len,
                            uint32_t *ids, uint32_t *ends);

#endif
