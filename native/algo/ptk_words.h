/*
 * Words of models in the manner of sentencepiece, found in the text as it stands.
 *
 * Such a model turns every space into U+2581, the mark, puts one before the text or not, and takes
 * all of it as one piece. Where no token holds a mark behind a certain character, a space behind
 * that character is a safe cut; so a text falls apart into words with their spaces before them. It
 * does so between letters, signs and line ends, too, where no token holds both: a word with
 * a comma behind it is mostly new, the word and the comma are not.
 *
 * The text is not rewritten: keys of the image's piece table and of the cache have the space where
 * the vocabulary has the mark (PTK_IMAGE_FLAGS_SPACE_MARKS), and merging starts from the mark where
 * it meets a space.
 *
 * Offsets count bytes of the rewritten text, so a request for them goes the general way.
 */
#ifndef PTK_WORDS_H
#define PTK_WORDS_H

#include "algo/ptk_cuts.h"
#include "image/ptk_image.h"

/* When a mark goes before a section. */
enum ptk_words_lead {
    PTK_WORDS_LEAD_NEVER = 0,
    PTK_WORDS_LEAD_ALWAYS = 1,      /* before every section, whatever it begins with */
    PTK_WORDS_LEAD_UNLESS_MARK = 2, /* unless it begins with a space or a mark */
    PTK_WORDS_LEAD_FIRST = 3,       /* the same, and only where the text begins */
};

struct ptk_words {
    bool active; /* the model is such a one, and its words can be cut */
    enum ptk_words_lead lead;
    uint64_t joined[256][4]; /* bit `right` of row `left`: no cut between the two bytes */
};

/*
 * ptk_words_init reads the programs of an image with the flag SPACE_MARKS; `cuts` are those of the
 * model. 0, or -EINVAL and a sentence when the programs do not do what the flag says.
 */
int ptk_words_init(struct ptk_words *words, const struct ptk_image *image,
                   const struct ptk_cuts *cuts, struct ptk_err *err);

/* ptk_words_leads: whether a mark goes before this section, which is not empty. */
bool ptk_words_leads(const struct ptk_words *words, const uint8_t *section, size_t len,
                     size_t origin);

/*
 * ptk_words_scan writes the ends of the next words of text[*pos..len), at most `cap` (65 at least),
 * moves `*pos` to the last one and returns their number; 0 when `*pos` is `len`.
 */
size_t ptk_words_scan(const struct ptk_words *words, const uint8_t *text, size_t len, size_t *pos,
                      uint32_t *ends, size_t cap);

#endif
