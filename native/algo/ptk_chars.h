/*
 * What a BPE model knows of each character alone: its id, and whether any token joins it to a
 * neighbour. One word per code point; of its 4 MiB only what a vocabulary's scripts need is ever
 * written.
 */
#ifndef PTK_CHARS_H
#define PTK_CHARS_H

#include "image/ptk_image.h"

/* U+2581: what stands for a space in a vocabulary in the manner of sentencepiece. */
#define PTK_CHARS_MARK 0x2581u

#define PTK_CHARS_COUNT 0x110000u

/*
 * A record: the id plus one in its low bits, 0 without an id; then flags. Some token has behind
 * this character, or before it, another one, or a part of one: its first bytes behind, its last
 * ones before.
 */
#define PTK_CHARS_ID_MASK        PTK_IMAGE_IDS_MAX
#define PTK_CHARS_RIGHT_BIT      22u
#define PTK_CHARS_LEFT_BIT       23u
#define PTK_CHARS_RIGHT_PART_BIT 24u
#define PTK_CHARS_LEFT_PART_BIT  25u
#define PTK_CHARS_FLAGS_MASK     (0xfu << PTK_CHARS_RIGHT_BIT)
_Static_assert(PTK_CHARS_RIGHT_BIT == PTK_IMAGE_CHAR_BITS,
               "flags are where neighbour_chars have them");

struct ptk_chars {
    uint32_t *records; /* PTK_CHARS_COUNT */
};

/*
 * ptk_chars_init gathers the ids of the keys that are one character. With
 * PTK_IMAGE_FLAGS_SPACE_MARKS a space has the mark's record. Set-up: allocates; 0, or -ENOMEM and a
 * sentence.
 */
int ptk_chars_init(struct ptk_chars *chars, const struct ptk_image *image, struct ptk_err *err);
void ptk_chars_fini(struct ptk_chars *chars);

/* ptk_chars_id: of a record; PTK_IMAGE_NONE without one. */
static inline uint32_t ptk_chars_id(uint32_t record)
{
    return (record & PTK_CHARS_ID_MASK) - 1u;
}

#endif
