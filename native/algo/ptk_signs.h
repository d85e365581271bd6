/*
 * Signs behind words of a Unigram model.
 *
 * A word with a comma behind it is mostly new, the word and the comma are not. Where normalizing
 * leaves a sign and what stands before it alone, no token holds both, and the sign is a token, its
 * ids are those of the word without it and the sign's own (ptk_unigram_cuts.h).
 */
#ifndef PTK_SIGNS_H
#define PTK_SIGNS_H

#include "algo/ptk_unigram.h"
#include "text/ptk_segments.h"

struct ptk_signs {
    uint64_t loose[128][2]; /* bit `sign` of row `before`, both ASCII */
    uint32_t ids[128];      /* of the signs */
};

/* ptk_signs_init: there are none where segments are more than one piece. */
void ptk_signs_init(struct ptk_signs *signs, const struct ptk_unigram *unigram,
                    const struct ptk_segments *segments);

/* ptk_signs_last: the id of a segment's last byte where that is on its own, or PTK_IMAGE_NONE;
 * `len` is not 0. */
static inline uint32_t ptk_signs_last(const struct ptk_signs *signs, const uint8_t *segment,
                                      size_t len)
{
    const uint8_t sign = segment[len - 1];
    const uint8_t before = len > 1 ? segment[len - 2] : 0;
    const bool is_loose =
        ((sign | before) & 0x80) == 0 && (signs->loose[before][sign >> 6] >> (sign & 63) & 1) != 0;
    return is_loose ? signs->ids[sign] : PTK_IMAGE_NONE;
}

#endif
