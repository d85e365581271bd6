/*
 * Fills the tables of an image: the part of the compiler that would be slow in Python.
 *
 * Set-up code, used by the compiler and by tests, never by a running server. Inputs are arrays that
 * the caller has checked for length; contents may be anything. Every function returns 0 or a
 * negative errno; -ENOSPC means that a run of used slots grew longer than PTK_IMAGE_PROBE_MAX:
 * double the capacity and call again.
 */
#ifndef PTK_IMAGE_BUILD_H
#define PTK_IMAGE_BUILD_H

#include "image/ptk_image.h"

/*
 * ptk_build_capacity: slots for `count` entries, a power of two, at most half full.
 * ptk_build_piece_capacity: the same for pieces, at most 13/20 full: buckets of two bear more, and
 * the table is the largest of an image.
 */
size_t ptk_build_capacity(size_t count);
size_t ptk_build_piece_capacity(size_t count);

/* Keys of ids, as the sections vocab_key_offs and vocab_key hold them; an empty key is no entry. */
struct ptk_build_keys {
    const uint32_t *offs; /* ids_end + 1 */
    const uint8_t *bytes;
    uint32_t ids_end;
};

/*
 * ptk_build_pairs fills `table`. Of two merges with the same halves the later one counts, as in the
 * reference. `merges[i].left` is never PTK_IMAGE_NONE.
 */
int ptk_build_pairs(const struct ptk_image_pair *merges, size_t merge_count,
                    struct ptk_image_pair *table, size_t capacity, uint32_t *probe_max);

/* ptk_build_vocab fills `table`; -EEXIST when two ids have the same key: `*duplicate` is the
 * second. */
int ptk_build_vocab(const struct ptk_build_keys *keys, uint32_t *table, size_t capacity,
                    uint32_t *probe_max, uint32_t *duplicate);

/*
 * ptk_build_pieces fills `table` of `capacity` slots with `pieces`, whose keys are distinct and
 * made as ptk_piece_key_make does, id counts included. Earlier ones get the shorter probes: put the
 * commoner ones first.
 */
int ptk_build_pieces(const struct ptk_image_piece *pieces, size_t piece_count,
                     struct ptk_image_piece *table, size_t capacity, uint32_t *probe_max);

/*
 * ptk_build_trie makes the double array over the keys of `ids` (ascending by key, bytes unsigned,
 * no empty key, no key twice). `*units` is allocated; release it with ptk_build_free. -ENOMEM, or
 * -EFBIG when the trie outgrows an image.
 */
int ptk_build_trie(const struct ptk_build_keys *keys, const uint32_t *ids, size_t id_count,
                   struct ptk_image_trie_unit **units, uint32_t *unit_count);
void ptk_build_free(void *memory);

/* Longest token in bytes that is merged alone: the work is quadratic in it. */
#define PTK_BUILD_TOKEN_MAX 2048u

/*
 * ptk_build_rank_merges derives merges from ranks alone (tiktoken, Tekken), where any two
 * neighbours whose concatenation is a token may merge. One merge per token is enough: whatever
 * stands around a token's bytes, they become the token only if no merge crosses their borders, and
 * then they merge as they would alone. So each token is merged alone and its last step is kept.
 *
 *   vocab       table over `keys` from ptk_build_vocab, `capacity` slots
 *   ranks       per id; PTK_IMAGE_NONE for ids that are no merge result (specials)
 *   merges      room for ids_end entries; `*merge_count` are written, ascending by id
 *   reachable   per id: 1 when its bytes alone merge to it (single bytes always), otherwise 0
 *
 * -E2BIG when a token is longer than PTK_BUILD_TOKEN_MAX, -ENOENT when a byte has no token.
 */
int ptk_build_rank_merges(const struct ptk_build_keys *keys, const uint32_t *vocab, size_t capacity,
                          const uint32_t *ranks, struct ptk_image_pair *merges, size_t *merge_count,
                          uint8_t *reachable);

/*
 * ptk_build_prune_merges says which merges can ever happen, by the same argument: a merge is of use
 * only if it is the last step when its token is merged alone. Units are the bytes of a key
 * (`byte_ids` given) or its characters (NULL); a merge whose token has a unit without id is kept.
 *
 *   pairs       table over all merges from ptk_build_pairs, `pair_capacity` slots
 *   vocab       table over `keys` from ptk_build_vocab, `vocab_capacity` slots
 *   keep        per merge: 1 to keep, 0 to leave out
 *   reachable   per id: 0 when its units are known and do not merge to it, otherwise 1
 */
struct ptk_build_tables {
    const struct ptk_image_pair *pairs;
    size_t pair_capacity;
    const uint32_t *vocab;
    size_t vocab_capacity;
    const uint32_t *byte_ids; /* 256, or NULL */
};
int ptk_build_prune_merges(const struct ptk_build_keys *keys, const struct ptk_build_tables *tables,
                           const struct ptk_image_pair *merges, size_t merge_count, uint8_t *keep,
                           uint8_t *reachable);

/* Texts of pieces, none twice, and how the model takes a piece. */
struct ptk_build_seeds {
    const uint32_t *offs; /* count + 1 */
    const uint8_t *bytes;
    size_t count;
    bool whole;       /* ignore_merges: a piece in the vocabulary is that token */
    bool space_marks; /* a space stands for the mark */
};

/*
 * ptk_build_seed_pieces merges each text as a whole piece and writes those whose ids are certain:
 * 1 to 15 bytes, all units known, at most PTK_IMAGE_PIECE_IDS_MAX ids. `pieces` has room for all
 * texts; `*piece_count` are written, in order.
 */
int ptk_build_seed_pieces(const struct ptk_build_keys *keys, const struct ptk_build_tables *tables,
                          const struct ptk_build_seeds *seeds, struct ptk_image_piece *pieces,
                          size_t *piece_count);

#endif
