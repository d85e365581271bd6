/*
 * Pieces and parts on their way. A full batch is worked on in passes that hardly branch on what the
 * text is:
 *
 *   fill     the key of each entry is made and its line of the cache asked for
 *   take     the two slots of each line are compared with the key, and the ids of those that are
 *            there go to the sink; of the others it is noted where theirs belong: they are owed
 *   settle   once enough are owed, or at the end: what the image knows goes to the cache, the rest
 *            is encoded, and the ids in the sink move apart for those that were missing
 *
 * One piece in fifty is owed, and each waits for memory: the waits of many pass together.
 *
 * A verdict other than PTK_VERDICT_OK, or a full sink, ends the work on a text: the batch is not
 * used again.
 */
#ifndef PTK_BATCH_H
#define PTK_BATCH_H

#include "algo/ptk_encode_job.h"

/* Pieces whose keys are made before the first is looked up. */
#define PTK_BATCH_PIECES 64u

/* How many pieces may be owed, and how many are at most when the next batch is filled. */
#define PTK_OWED_MAX    96u
#define PTK_OWED_ENOUGH 32u
_Static_assert(PTK_OWED_ENOUGH + PTK_BATCH_PIECES <= PTK_OWED_MAX, "a whole batch may be owed");

/* Ids that are left free for a piece that is owed. */
#define PTK_OWED_GAP 4u
_Static_assert(PTK_OWED_GAP == PTK_IMAGE_PIECE_IDS_MAX,
               "an entry takes as much at most, owed or not");

struct ptk_batch {
    size_t count;
    uint64_t inner; /* bit i: entry i is a part between safe cuts, not a whole piece */
    struct ptk_span span[PTK_BATCH_PIECES];
    PTK_ALIGNED_LINE struct ptk_piece_key
        key[PTK_BATCH_PIECES]; /* of short ones, as in the cache */
    const struct ptk_image_piece *line[PTK_BATCH_PIECES];
    size_t owed_count;
    struct ptk_owed {
        struct ptk_span span;
        uint32_t at; /* how many of the sink's ids come before its own */
        bool is_inner;
        struct ptk_piece_key key;
    } owed[PTK_OWED_MAX]; /* in the order of the text */
};
_Static_assert(PTK_BATCH_PIECES == 64, "a bit of a word for each entry");

/* ptk_batch_init makes a batch empty; its arrays stay as they are. */
static inline void ptk_batch_init(struct ptk_batch *batch)
{
    batch->count = 0;
    batch->inner = 0;
    batch->owed_count = 0;
}

/* ptk_batch_push adds one piece. */
enum ptk_verdict ptk_batch_push(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_batch *batch, struct ptk_span span);

/* ptk_batch_push_ends adds pieces that follow each other from `begin` on, each given by its end. */
enum ptk_verdict ptk_batch_push_ends(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_batch *batch, uint32_t begin, const uint32_t *ends,
                                     size_t count);

/* ptk_batch_finish empties the batch: the sink has all ids that it wants. */
enum ptk_verdict ptk_batch_finish(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  struct ptk_batch *batch);

#endif
