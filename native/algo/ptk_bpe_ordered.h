/*
 * Merging of short pieces where tokens are in order: each is made by one merge, each merge has a
 * rank of its own.
 *
 * Then a token can be named by its place in that order, its symbol, and a merge is two symbols and
 * the one they make: 60 bits. A pair's rank, its result and whether it merges at all are one look
 * into one cache line.
 *
 * What costs is waiting for such lines, one after the other. The merges of the lowest ranks, which
 * are most of those that happen, have a table of their own that stays near the core. Until none of
 * them is left no other one can be due, and then all pairs that remain are asked for at once.
 *
 * Where units are bytes, a table by two neighbouring bytes also says whether they surely merge with
 * each other before anything else can take one of them: those are merged before the loop begins.
 */
#ifndef PTK_BPE_ORDERED_H
#define PTK_BPE_ORDERED_H

#include "image/ptk_image.h"

/* Most units of a piece: they and what stands at both ends have a bit of a word each. */
#define PTK_BPE_ORDERED_MAX 62u

#define PTK_BPE_SYMBOL_BITS 20u

/* Merges in one line of the table. */
#define PTK_BPE_BUCKET_MERGES 8u

/* Each merge is left << 40 | right << 20 | made; what is all ones is no merge. */
struct ptk_bpe_bucket {
    PTK_ALIGNED_LINE uint64_t merges[PTK_BPE_BUCKET_MERGES];
};

/* What two neighbouring bytes are to each other. Symbols above 65534 count as 65535. */
struct ptk_bpe_neighbours {
    uint32_t made;   /* what they make together by an early merge; 0: nothing */
    uint16_t taken;  /* lowest that the right one makes with a symbol that ends in the left one */
    uint16_t taking; /* lowest that the left one makes with one that begins with the right one */
};

/* Merges by the hash of what they merge. */
struct ptk_bpe_merges {
    struct ptk_bpe_bucket *buckets;
    uint32_t bucket_count; /* and some behind them, for what does not fit */
};

struct ptk_bpe_ordered {
    void *memory; /* of the tables; NULL: tokens are not in order */
    struct ptk_bpe_merges early;
    struct ptk_bpe_merges late;
    uint64_t *filter;                      /* for the late merges */
    struct ptk_bpe_neighbours *neighbours; /* by left << 8 | right; NULL: units are characters */
    bool sure;                             /* two bytes may surely merge */
    bool ascending;                        /* no merge makes what one of a lower rank takes */
    bool ids_are_symbols;                  /* the next two are NULL */
    uint32_t *symbols;                     /* by id; NULL where units are bytes */
    uint32_t *ids;                         /* by symbol */
    uint32_t units[256];                   /* symbols of bytes */
};

/* Early merges of a model: 128 KiB. */
#define PTK_BPE_EARLY_MAX 8192u

/*
 * ptk_bpe_ordered_init makes the tables of an image with merges, the first `early_max` of them
 * early; where tokens are not in order it makes none, and `memory` stays NULL. Set-up: allocates;
 * 0, or -ENOMEM and a sentence. fini releases them, after a failure too.
 */
int ptk_bpe_ordered_init(struct ptk_bpe_ordered *ordered, const struct ptk_image *image,
                         uint32_t early_max, struct ptk_err *err);
void ptk_bpe_ordered_fini(struct ptk_bpe_ordered *ordered);

/*
 * ptk_bpe_ordered_merge merges `count` units, 2 to PTK_BPE_ORDERED_MAX, and returns how many ids
 * are left in `ids`. The units are the ids there or, if not NULL, `bytes`; `ends`, if not NULL, is
 * thinned out alike.
 */
size_t ptk_bpe_ordered_merge(const struct ptk_bpe_ordered *ordered, uint32_t *ids, uint32_t *ends,
                             const uint8_t *bytes, size_t count);

/* Most pieces that are merged together. */
#define PTK_BPE_TOGETHER 8u

/* A piece as ptk_bpe_ordered_merge takes it: its units are the ids there or, if not NULL, `bytes`.
 */
struct ptk_bpe_together {
    const uint8_t *bytes;
    uint32_t *ids;
    size_t count; /* of units, then of ids */
};

/*
 * ptk_bpe_ordered_merge_each merges up to PTK_BPE_TOGETHER pieces, a step of each in turn: a step
 * waits for the one before, but not for those of other pieces.
 */
void ptk_bpe_ordered_merge_each(const struct ptk_bpe_ordered *ordered,
                                struct ptk_bpe_together *pieces, size_t count);

#endif
