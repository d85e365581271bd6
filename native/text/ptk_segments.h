/*
 * Segments: the parts of an original text that its pipeline treats independently of each other.
 *
 * For many models normalizer and pre-tokenizer together let white space, and some also punctuation
 * and ideographs, act as walls: what stands on the two sides of one becomes the same ids whatever
 * stands beyond it. The ids of a text are then those of its segments one after the other, and the
 * ids of a segment are a function of its original bytes: a cache can know them before anything is
 * normalized.
 *
 *     " Hello, Welt\n"   BERT               Hello | , | Welt
 *                        words (T5)         Hello, | Welt
 *                        marked (XLM-R 2)    Hello, | Welt\n
 *
 * A wall is only taken for one where that is proved for the program at hand; what is doubtful joins
 * the segment beside it, whose ids the whole pipeline then finds. Three shapes of programs are
 * known:
 *
 *   bert    BertNormalizer or none, BertPreTokenizer. White space is dropped; punctuation and
 *           ideographs stand alone. No normal form used here composes anything, and marks are
 *           ordered only among themselves, so that a character that decomposing leaves alone is a
 *           wall.
 *   words   Steps that never look across white space, then a pre-tokenizer that first drops it. A
 *           charsmap looks at whole grapheme clusters: white space that is part of a larger one is
 *           no wall.
 *   marked  Metaspace over a text in which every white space became a space, runs of spaces one: a
 *           segment begins with its white space. What stands before must be certain to end in
 *           something else when normalized.
 *
 * Threads: segments are immutable and shared; a cursor belongs to one thread.
 */
#ifndef PTK_SEGMENTS_H
#define PTK_SEGMENTS_H

#include "base/ptk_err.h"
#include "text/ptk_norm.h"
#include "text/ptk_text.h"

struct ptk_segments;

/* The two programs, verified and translated already, and what they are translated to. */
struct ptk_segments_config {
    const uint8_t *norm_program;
    size_t norm_program_len;
    const uint8_t *pre_program;
    size_t pre_program_len;
    const struct ptk_norm *norm; /* of norm_program; used while opening only */
    enum ptk_image_profile profile;
};

/*
 * ptk_segments_open finds out whether the programs have one of the known shapes and classifies the
 * characters. `*out` is NULL where they have not. Returns 0, or -ENOMEM and a sentence.
 */
int ptk_segments_open(const struct ptk_segments_config *config, struct ptk_segments **out,
                      struct ptk_err *err);
void ptk_segments_close(struct ptk_segments *segments); /* NULL is allowed. */

/* Where reading a text stands. Begins as zeros. */
struct ptk_segments_cursor {
    size_t pos;
    uint32_t begin;    /* of the segment that is being read */
    bool is_open;      /* there is one */
    bool before_word;  /* the byte before `pos` is part of a run of ordinary characters */
    bool before_alone; /* ... of a character that stands alone */
    bool before_space; /* ... of white space that is a wall */
    bool joins_space;  /* white space at `pos` is no wall */
    bool is_closed;    /* the rest of the text is one segment */
};

/*
 * ptk_segments_next writes the next segments of `text[0..len)`, at most `cap`, which must be at
 * least PTK_SEGMENTS_CAP_MIN, as ranges in ascending order, and returns their number; 0 at the end.
 * Bytes between two segments become nothing. `text` is valid UTF-8 and `len` fits 32 bits.
 */
#define PTK_SEGMENTS_CAP_MIN 128u
size_t ptk_segments_next(const struct ptk_segments *segments, struct ptk_segments_cursor *cursor,
                         const uint8_t *text, size_t len, struct ptk_span *spans, size_t cap);

/*
 * ptk_segments_piece writes the one piece that a segment becomes, normalized, to `piece` and
 * returns its length; 0 where this short way does not tell (the segment has unusual characters,
 * `cap` is too small, or nothing is left of it): then the whole pipeline does.
 */
size_t ptk_segments_piece(const struct ptk_segments *segments, const uint8_t *segment, size_t len,
                          uint8_t *piece, size_t cap);

/*
 * ptk_segments_keeps: whether a character of ASCII in a segment is itself in the one piece that the
 * segment becomes, and its neighbours what they are without it. False where segments become more
 * than one piece.
 */
bool ptk_segments_keeps(const struct ptk_segments *segments, uint8_t byte);

#endif
