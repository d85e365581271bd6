/*
 * Byte pair encoding of one piece: exact, and linear in the piece for every vocabulary that
 * training can produce.
 *
 * A piece starts as units: its bytes (byte_units), or its characters with fallback and unknown
 * tokens. Then the pair with the lowest rank merges, the leftmost on a tie, until no pair is left.
 * Short pieces scan an array of ranks for each merge; long ones keep the positions of each rank in
 * a list and take the ranks in ascending order, so that a merge costs a constant number of steps
 * however long the piece is.
 */
#ifndef PTK_BPE_H
#define PTK_BPE_H

#include "algo/ptk_bpe_ordered.h"
#include "algo/ptk_chars.h"
#include "image/ptk_image.h"

/* Pieces up to this many units scan an array; above it lists by rank are faster. */
#define PTK_BPE_SHORT_MAX 64u

/* Ranks below this have their own list. A model with higher ranks uses a heap. */
#define PTK_BPE_RANKS_MAX (1u << 20)

/* Longest continuing-subword prefix plus end-of-word suffix, in bytes. */
#define PTK_BPE_AFFIX_MAX 64u

/* What a merge yields; rank UINT32_MAX: the two do not merge. */
struct ptk_bpe_merge {
    uint32_t rank;
    uint32_t id;
};

struct ptk_bpe {
    const struct ptk_image *image;
    const struct ptk_chars *chars;
    struct ptk_bpe_ordered ordered; /* for short pieces, where tokens are in order */
    struct ptk_bpe_merge
        *byte_merges; /* by left byte << 8 | right byte; NULL: units are characters */
    uint64_t *filter; /* a bit for every pair in the table, by hash */
    const uint8_t *prefix;
    const uint8_t *suffix;
    uint32_t prefix_len;
    uint32_t suffix_len;
    bool bytes;       /* units are bytes */
    bool gaps;        /* and some byte has no token */
    bool ascending;   /* every merge has a higher rank than the merges that make its halves */
    bool few_ranks;   /* every rank has a list of its own */
    bool short_ranks; /* ranks fit 26 bits, as the loop for short pieces needs */
};

/*
 * ptk_bpe_init prepares the model of an image for use; `chars` are its characters, must stay,
 * and may be NULL where units are bytes.
 * Set-up: allocates. Returns 0, or a negative errno and a sentence. ptk_bpe_fini releases what init
 * allocated, after a failure too.
 */
int ptk_bpe_init(struct ptk_bpe *bpe, const struct ptk_image *image, const struct ptk_chars *chars,
                 struct ptk_err *err);
void ptk_bpe_fini(struct ptk_bpe *bpe);

/*
 * What merging needs besides the image; owned by one thread. Arrays have unit_cap entries but for
 * the lists' heads. Between calls every word of `level` and `sorted` is 0.
 */
struct ptk_bpe_scratch {
    uint32_t *ids; /* by unit: id of the symbol that starts here; afterwards the result */
    /* by unit: bytes of the piece up to and with this unit; afterwards per id */
    uint32_t *ends;
    uint32_t *partner; /* by unit: at a symbol's first unit its last one, and the reverse */
    uint32_t *slot;    /* by unit: slot in the pair table of the pair that starts here */
    /* by unit: previous unit in the list of its rank, or its place in the heap */
    uint32_t *before;
    uint32_t *after; /* by unit: next unit in the list of its rank; or the heap itself */
    uint32_t *head;  /* by rank: first unit of its list */
    /* a bit for every rank with a list, then a bit for every word that is not 0 */
    uint64_t *sorted; /* a bit for every rank whose list was put back in order */
    uint64_t *level[3];
    size_t unit_cap;
};

/* ptk_bpe_scratch_len: bytes of memory ptk_bpe_scratch_init lays the arrays out in (64-byte
 * aligned). */
size_t ptk_bpe_scratch_len(size_t unit_cap);
void ptk_bpe_scratch_init(struct ptk_bpe_scratch *scratch, void *memory, size_t unit_cap);

/*
 * ptk_bpe_encode writes the ids of a piece (valid UTF-8 unless the units are bytes; not empty) to
 * scratch->ids and returns how many there are. With characters as units scratch->ends[i] is where
 * the i-th id ends, in bytes of the piece as the reference counts them; with bytes the ids' keys
 * say it and `ends` is not written. SIZE_MAX when the piece has more units than the scratch.
 */
size_t ptk_bpe_encode(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                      const uint8_t *piece, size_t len);

/*
 * ptk_bpe_units writes the ids of a piece's units to scratch->ids, before anything is merged, and
 * returns how many there are: characters, or bytes of those without an id. SIZE_MAX as above.
 */
size_t ptk_bpe_units(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                     const uint8_t *piece, size_t len);

/*
 * With bytes as units and gaps: ptk_bpe_has_gap says whether a piece has a byte without a token.
 * Such a piece goes to ptk_bpe_encode_gaps, which does the same and also writes begins[i] and
 * scratch->ends[i], the bytes behind each id as the reference counts them: in characters of the
 * byte-level alphabet, without those that were dropped. The arrays have unit_cap entries.
 */
bool ptk_bpe_has_gap(const struct ptk_bpe *bpe, const uint8_t *piece, size_t len);
size_t ptk_bpe_encode_gaps(const struct ptk_bpe *bpe, struct ptk_bpe_scratch *scratch,
                           const uint8_t *piece, size_t len, uint32_t *begins);

/*
 * ptk_bpe_steps: symbols and list entries looked at since the thread began, the measure by which
 * tests show linear time. Only debug builds count; others give 0.
 */
uint64_t ptk_bpe_steps(void);

#endif
