#include "algo/ptk_signs.h"

#include "text/ptk_utf8.h"

void ptk_signs_init(struct ptk_signs *signs, const struct ptk_unigram *unigram,
                    const struct ptk_segments *segments)
{
    memset(signs, 0, sizeof *signs);
    for (uint32_t sign = 0; sign < 0x80; sign++) {
        const uint8_t byte = (uint8_t)sign;
        const uint32_t id = ptk_image_vocab(unigram->image, &byte, 1);
        if (!ptk_is_sign(byte) || id == PTK_IMAGE_NONE || id == unigram->unk_id ||
            !ptk_segments_keeps(segments, byte)) {
            continue;
        }
        signs->ids[sign] = id;
        for (uint32_t before = 0; before < 0x80; before++) {
            const uint8_t both[] = {(uint8_t)before, byte};
            /* A sign that is a token is not strange: a cut before it is one before a token. There
             * is one way through it, so that it does not matter how sums before it are rounded. */
            const bool is_loose = ptk_segments_keeps(segments, both[0]) &&
                                  ptk_unigram_cuts_next(&unigram->cuts, both, 2, 0) == 1;
            signs->loose[before][sign >> 6] |= (uint64_t)is_loose << (sign & 63);
        }
    }
}
