#include "algo/ptk_batch.h"

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"

#include <smmintrin.h>

/* What stands for a line where there is none to look at: no piece has an empty slot's key. */
PTK_ALIGNED_LINE static const struct ptk_image_piece no_line[2];
static const struct ptk_piece_key no_key = {0, 1ull << 56};

/* Asks for the lines of a piece or part in the table for longer ones. */
static inline void ask_long(const struct ptk_encode_job *job, const ptk_source_text *text,
                            struct ptk_span span, enum ptk_part part)
{
    const struct ptk_cache_long_key key = ptk_long_key(job, text, span, part);
    ptk_cache_long_ask(ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key));
}

/* Whether the tables of short pieces, the cache's and the image's, may have one. */
static inline bool is_short(const struct ptk_encode_job *job, struct ptk_span span)
{
    return ptk_span_len(span) <= PTK_IMAGE_PIECE_KEY_MAX && !job->need_ends;
}

/* Adds an entry; there is room. */
static inline void batch_add(const struct ptk_encode_job *job, const ptk_source_text *text,
                             struct ptk_batch *batch, struct ptk_span span, enum ptk_part part)
{
    const size_t i = batch->count++;
    batch->inner |= (uint64_t)(part == PTK_PART_INNER) << i;
    batch->span[i] = span;
    batch->key[i] = no_key;
    batch->line[i] = no_line;
    if (PTK_LIKELY(is_short(job, span))) {
        struct ptk_piece_key key =
            ptk_marked_key(job, ptk_text_key(text, span.begin, ptk_span_len(span)));
        if (part == PTK_PART_INNER && job->tokenizer->encoder.ignore_merges) {
            key.high |= PTK_CACHE_INNER;
        }
        batch->key[i] = key;
        batch->line[i] = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
        ptk_prefetch(batch->line[i]);
    } else if (!job->need_ends) {
        ask_long(job, text, span, part);
    }
}

static inline unsigned batch_match(const struct ptk_batch *batch, size_t i)
{
    return ptk_cache_match(batch->line[i], &batch->key[i]);
}

/* The slot of a match; of none, one that may be read. */
static inline const struct ptk_image_piece *batch_slot(const struct ptk_batch *batch, size_t i,
                                                       unsigned match)
{
    return &batch->line[i][match >> 1];
}

/* Entry i as one whose ids are owed from `at` on. */
static inline struct ptk_owed batch_entry(const struct ptk_batch *batch, size_t i, size_t at)
{
    return (struct ptk_owed){.span = batch->span[i],
                             .at = (uint32_t)at,
                             .is_inner = (batch->inner >> i & 1) != 0,
                             .key = batch->key[i]};
}

/* Asks for the image's lines of a piece: where one is full, the next is looked at, too. */
static inline void ask_image(const struct ptk_image *image, struct ptk_piece_key key)
{
    if (image->pieces != NULL) {
        const uint64_t hash = ptk_piece_hash(key.low, key.high & ~PTK_CACHE_INNER);
        const struct ptk_image_piece *line =
            &image->pieces[((uint32_t)hash & image->piece_mask) * (size_t)2];
        ptk_prefetch(line);
        ptk_prefetch(line + 2);
    }
}

/* Whether the table for longer pieces may have a piece or part with this key in the other one. */
static inline bool may_be_long(const struct ptk_encode_job *job, struct ptk_span span,
                               struct ptk_piece_key key)
{
    return ptk_span_len(span) > PTK_IMAGE_PIECE_KEY_MAX ||
           ptk_cache_has_many(job->cache, &job->tokenizer->seed, key);
}

static inline enum ptk_part owed_part(const struct ptk_owed *owed)
{
    return owed->is_inner ? PTK_PART_INNER : PTK_PART_WHOLE;
}

/* Asks for the lines that put_known() reads; those of a longer piece were asked for before. */
static inline void ask_owed(const struct ptk_encode_job *job, const ptk_source_text *text,
                            const struct ptk_owed *owed)
{
    if (is_short(job, owed->span)) {
        ask_image(job->tokenizer->image, owed->key);
        if (may_be_long(job, owed->span, owed->key)) {
            ask_long(job, text, owed->span, owed_part(owed));
        }
    }
}

/*
 * Gives what the cache knows of the batch to `ids`, which has room for PTK_OWED_GAP for each entry
 * and once more, and holds `len` already; NULL: only counts. Returns how many ids there are then.
 * The rest is owed, and has a gap of PTK_OWED_GAP ids each, where ids are written.
 */
static inline size_t batch_take(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_batch *batch, uint32_t *ids, size_t len)
{
    static const uint8_t count_masks[3] = {0, 7, 7}; /* by match */
    const uint8_t gaps[3] = {ids != NULL ? PTK_OWED_GAP : 0, 0, 0};
    uint8_t miss[PTK_BATCH_PIECES];
    uint32_t miss_at[PTK_BATCH_PIECES];
    size_t miss_count = 0;
    const size_t count = batch->count;
    for (size_t i = 0; i < count; i++) {
        const unsigned match = batch_match(batch, i);
        const struct ptk_image_piece *slot = batch_slot(batch, i, match);
        if (ids != NULL) {
            memcpy(ids + len, slot->ids, sizeof slot->ids);
        }
        miss[miss_count] = (uint8_t)i;
        miss_at[miss_count] = (uint32_t)len;
        miss_count += match == 0;
        len += (slot->key[15] >> 4 & count_masks[match]) | gaps[match];
    }
    for (size_t i = 0; i < miss_count; i++) {
        struct ptk_owed *owed = &batch->owed[batch->owed_count++];
        *owed = batch_entry(batch, miss[i], miss_at[i]);
        ask_owed(job, text, owed);
    }
    return len;
}

/* The image's slot of an owed short piece or part, or NULL. */
static const struct ptk_image_piece *owed_slot(const struct ptk_encoder *encoder,
                                               const struct ptk_owed *owed)
{
    struct ptk_piece_key key = owed->key;
    key.high &= ~PTK_CACHE_INNER;
    if (owed->is_inner) {
        return ptk_piece_known_inner(encoder, key);
    }
    return encoder->image->pieces == NULL
               ? NULL
               : ptk_image_piece_hashed(encoder->image, key, ptk_piece_hash(key.low, key.high));
}

/*
 * Teaches the cache what the image knows. Where the cache has segments of the text, their pieces
 * come up only when it has not.
 */
static void teach_slot(const struct ptk_encode_job *job, struct ptk_piece_key key,
                       const struct ptk_image_piece *slot)
{
    struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    if (job->tokenizer->segments == NULL && ptk_cache_find(line, key) == NULL) {
        ptk_cache_put_slot(line, key, slot); /* a piece may be owed twice */
    }
}

/* The slot of a piece or part in the table for longer ones, and those of many ids; or NULL. */
static inline const struct ptk_cache_long *find_long(const struct ptk_encode_job *job,
                                                     const ptk_source_text *text,
                                                     struct ptk_span span, enum ptk_part part)
{
    const struct ptk_cache_long_key key = ptk_long_key(job, text, span, part);
    return ptk_cache_long_find(ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key), &key);
}

/* An owed piece that the image or the table for longer pieces knows; false: neither does. */
static inline bool put_known(const struct ptk_encode_job *job, const ptk_source_text *text,
                             const struct ptk_owed *owed)
{
    if (is_short(job, owed->span)) {
        const struct ptk_image_piece *slot = owed_slot(&job->tokenizer->encoder, owed);
        if (slot != NULL) {
            ptk_put_slot(job, text, owed->span.begin, slot);
            teach_slot(job, owed->key, slot);
            return true;
        }
    }
    if (job->need_ends || !may_be_long(job, owed->span, owed->key)) {
        return false;
    }
    const struct ptk_cache_long *slot = find_long(job, text, owed->span, owed_part(owed));
    if (slot != NULL) {
        ptk_put_long_slot(job, text, owed->span.begin, slot);
    }
    return slot != NULL;
}

/* An owed piece that is not known. */
static enum ptk_verdict put_unknown(const struct ptk_encode_job *job, const ptk_source_text *text,
                                    const struct ptk_owed *owed)
{
    const struct ptk_span span = owed->span;
    const bool has_key = is_short(job, span);
    if (owed->is_inner) {
        return has_key ? ptk_piece_part(job, text, span, PTK_PART_INNER, owed->key)
                        : ptk_piece_long_part(job, text, span, PTK_PART_INNER);
    }
    return has_key ? ptk_piece_short(job, text, span, owed->key) : ptk_piece_long(job, text, span);
}

/*
 * Ids of the owed pieces; those of piece i are ids[begin[i]..begin[i] + count[i]). A piece that is
 * put together from units has a place for each of its bytes.
 */
struct paid {
    uint32_t begin[PTK_OWED_MAX];
    uint32_t count[PTK_OWED_MAX];
    uint32_t ids[PTK_OWED_MAX * PTK_CACHE_LONG_KEY_MAX + PTK_CACHE_LONG_IDS_MAX];
};

#define UNITS_MAX 192u

/*
 * Units: what merging alone decides, a piece without safe cuts, or what lies between two. Those of
 * different pieces are merged together.
 */
struct units {
    size_t count;
    struct unit {
        struct ptk_span span;
        uint32_t begin; /* of its ids: as in struct paid */
        uint32_t id_count;
        bool is_part;
        bool is_new;              /* known not to be known */
        struct ptk_piece_key key; /* in the cache, of up to PTK_IMAGE_PIECE_KEY_MAX bytes */
    } unit[UNITS_MAX];
};

/*
 * The units of an owed piece; false: it has none, or there is no room for them. A piece that is a
 * token as a whole is no unit: merging might not make it.
 */
static bool cut_units(const struct ptk_encode_job *job, const ptk_source_text *text,
                      const struct ptk_owed *owed, size_t ids_begin, struct units *units)
{
    const struct ptk_encoder *encoder = &job->tokenizer->encoder;
    const struct ptk_span span = owed->span;
    const uint8_t *piece = text->bytes + span.begin;
    const size_t len = ptk_span_len(span);
    uint32_t ends[PTK_CACHE_LONG_KEY_MAX] = {(uint32_t)len};
    size_t count = 1;
    if (!ptk_encoder_only_merges(encoder) || units->count + len > UNITS_MAX ||
        ptk_encoder_token(encoder, piece, len, owed_part(owed)) != PTK_IMAGE_NONE) {
        return false;
    }
    if (!owed->is_inner) {
        count = ptk_piece_cuts(job, piece, len, ends);
    }
    uint32_t begin = 0;
    for (size_t i = 0; i < count; i++) {
        struct unit *unit = &units->unit[units->count++];
        unit->span = (struct ptk_span){span.begin + begin, span.begin + ends[i]};
        unit->begin = (uint32_t)ids_begin + begin;
        unit->is_part = owed->is_inner || count > 1;
        unit->is_new = count == 1;
        unit->key = no_key;
        if (ptk_span_len(unit->span) <= PTK_IMAGE_PIECE_KEY_MAX) {
            unit->key = ptk_text_key(text, unit->span.begin, ptk_span_len(unit->span));
            if (count > 1) {
                ask_image(encoder->image, unit->key);
            }
        }
        begin = ends[i];
    }
    return true;
}

/* The key of a unit as the cache has it. */
static inline struct ptk_piece_key unit_key(const struct ptk_encode_job *job,
                                            const struct unit *unit)
{
    struct ptk_piece_key key = ptk_marked_key(job, unit->key);
    key.high |= unit->is_part && job->tokenizer->encoder.ignore_merges ? PTK_CACHE_INNER : 0;
    return key;
}

/* Whether a unit is known, with its ids. */
static bool know_unit(const struct ptk_encode_job *job, const ptk_source_text *text,
                      struct unit *unit, uint32_t *ids)
{
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    const struct ptk_piece_key key = unit_key(job, unit);
    const struct ptk_image_piece *slot = NULL;
    if (ptk_span_len(unit->span) <= PTK_IMAGE_PIECE_KEY_MAX) {
        slot = ptk_piece_known_inner(&job->tokenizer->encoder, unit->key);
        if (slot == NULL) {
            slot = ptk_cache_find(ptk_cache_line(job->cache, seed, key), key);
        }
    }
    if (slot != NULL) {
        unit->id_count = ptk_cache_id_count(slot);
        memcpy(ids + unit->begin, slot->ids, unit->id_count * sizeof *ids);
        return true;
    }
    if (!may_be_long(job, unit->span, key)) {
        return false;
    }
    const struct ptk_cache_long *long_slot = find_long(job, text, unit->span, PTK_PART_INNER);
    if (long_slot != NULL) {
        unit->id_count = (uint32_t)ptk_cache_long_id_count(long_slot);
        memcpy(ids + unit->begin, long_slot->ids, unit->id_count * sizeof *ids);
    }
    return long_slot != NULL;
}

/* Teaches the cache the ids of a piece or a part, where it has room for so many. */
static void keep_ids(const struct ptk_encode_job *job, const ptk_source_text *text,
                     struct ptk_span span, struct ptk_piece_key key, enum ptk_part part,
                     const uint32_t *ids, size_t count)
{
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (ptk_span_len(span) <= PTK_IMAGE_PIECE_KEY_MAX && count <= PTK_IMAGE_PIECE_IDS_MAX) {
        struct ptk_image_piece *line = ptk_cache_line(job->cache, seed, key);
        if (count > 0 && ptk_cache_find(line, key) == NULL) { /* a piece may be owed twice */
            ptk_cache_put(line, key, ids, count);
        }
    } else if (count == 0 || count > PTK_CACHE_LONG_IDS_MAX) {
        return;
    } else if (!may_be_long(job, span, key)) {
        ptk_cache_set_many(job->cache, seed, key); /* kept if it comes again */
    } else {
        const struct ptk_cache_long_key long_one = ptk_long_key(job, text, span, part);
        struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, seed, &long_one);
        if (ptk_cache_long_find(pair, &long_one) == NULL) {
            ptk_cache_long_put(pair, &long_one, ids, count);
        }
    }
}

/* Merges some units together, and teaches the cache. */
static void merge_units(const struct ptk_encode_job *job, const ptk_source_text *text,
                        struct units *units, const uint8_t *which, size_t count, uint32_t *ids)
{
    const struct ptk_bpe *bpe = &job->tokenizer->encoder.bpe;
    struct ptk_bpe_together pieces[PTK_BPE_TOGETHER];
    for (size_t i = 0; i < count; i++) {
        const struct unit *unit = &units->unit[which[i]];
        pieces[i] = (struct ptk_bpe_together){
            .bytes = bpe->bytes ? text->bytes + unit->span.begin : NULL,
            .ids = ids + unit->begin,
            .count = bpe->bytes ? ptk_span_len(unit->span) : unit->id_count,
        };
    }
    ptk_bpe_ordered_merge_each(&bpe->ordered, pieces, count);
    for (size_t i = 0; i < count; i++) {
        struct unit *unit = &units->unit[which[i]];
        unit->id_count = (uint32_t)pieces[i].count;
        keep_ids(job, text, unit->span, unit_key(job, unit),
                 unit->is_part ? PTK_PART_INNER : PTK_PART_WHOLE, pieces[i].ids, pieces[i].count);
    }
}

/* How many ids a unit has before anything is merged; where these are characters, they are in `ids`
 * then. */
static size_t unit_len(const struct ptk_encode_job *job, const ptk_source_text *text,
                       const struct unit *unit, uint32_t *ids)
{
    const struct ptk_bpe *bpe = &job->tokenizer->encoder.bpe;
    const uint8_t *bytes = text->bytes + unit->span.begin;
    const size_t len = ptk_span_len(unit->span);
    if (bpe->bytes) {
        ids[unit->begin] = bpe->image->byte_ids[bytes[0]];
        return len;
    }
    struct ptk_bpe_scratch *scratch = &job->work->encoder.bpe;
    const size_t count = ptk_bpe_units(bpe, scratch, bytes, len);
    PTK_ASSERT(count <= len); /* any scratch fits it */
    memcpy(ids + unit->begin, scratch->ids, count * sizeof *ids);
    return count;
}

/* Finds the ids of all units. */
static void find_units(const struct ptk_encode_job *job, const ptk_source_text *text,
                       struct units *units, uint32_t *ids)
{
    uint8_t unknown[UNITS_MAX];
    size_t unknown_count = 0;
    for (size_t i = 0; i < units->count; i++) {
        struct unit *unit = &units->unit[i];
        if (unit->is_new || !know_unit(job, text, unit, ids)) {
            unit->id_count = (uint32_t)unit_len(job, text, unit, ids);
            unknown[unknown_count] = (uint8_t)i;
            unknown_count += unit->id_count > 1;
        }
    }
    for (size_t i = 0; i < unknown_count; i += PTK_BPE_TOGETHER) {
        ptk_pause_point();
        merge_units(job, text, units, unknown + i,
                    ptk_min_size(unknown_count - i, PTK_BPE_TOGETHER), ids);
    }
}

/* Puts the ids of an owed piece's units together; returns the unit behind its last one. */
static size_t join_units(const struct ptk_encode_job *job, const ptk_source_text *text,
                         const struct ptk_owed *owed, const struct units *units, size_t first,
                         uint32_t *ids, uint32_t *count)
{
    const size_t begin = units->unit[first].begin;
    size_t i = first + 1;
    size_t len = units->unit[first].id_count;
    while (i < units->count && units->unit[i].span.end <= owed->span.end) {
        const struct unit *unit = &units->unit[i];
        for (size_t k = 0; k < unit->id_count; k++) {
            ids[begin + len++] = ids[unit->begin + k];
        }
        i++;
    }
    if (i > first + 1) {
        keep_ids(job, text, owed->span, owed->key, PTK_PART_WHOLE, ids + begin, len);
    }
    *count = (uint32_t)len;
    return i;
}

/* Finds the ids of all that is owed. */
static enum ptk_verdict owed_find(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  const struct ptk_batch *batch, struct paid *paid)
{
    struct ptk_sink gathered = {.ids = paid->ids, .cap = PTK_ARRAY_LEN(paid->ids)};
    gathered.end = gathered.cap;
    gathered.fast_end = gathered.cap;
    struct ptk_encode_job gather = *job;
    gather.sink = &gathered;
    struct units units;
    units.count = 0;
    uint8_t cut[PTK_OWED_MAX];
    uint8_t unknown[PTK_OWED_MAX];
    size_t cut_count = 0;
    size_t unknown_count = 0;
    for (size_t i = 0; i < batch->owed_count; i++) {
        const struct ptk_owed *owed = &batch->owed[i];
        paid->begin[i] = (uint32_t)gathered.len;
        if (put_known(&gather, text, owed)) {
            paid->count[i] = (uint32_t)gathered.len - paid->begin[i];
        } else if (cut_units(job, text, owed, gathered.len, &units)) {
            gathered.len += ptk_span_len(owed->span);
            cut[cut_count++] = (uint8_t)i;
        } else {
            unknown[unknown_count++] = (uint8_t)i;
        }
    }
    for (size_t k = 0; k < unknown_count; k++) {
        const size_t i = unknown[k];
        paid->begin[i] = (uint32_t)gathered.len;
        ptk_pause_point();
        const enum ptk_verdict verdict = put_unknown(&gather, text, &batch->owed[i]);
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK)) {
            return verdict;
        }
        paid->count[i] = (uint32_t)gathered.len - paid->begin[i];
    }
    PTK_ASSERT(!gathered.full); /* a piece has no more ids than bytes, see may_owe() */
    find_units(job, text, &units, paid->ids);
    size_t unit = 0;
    for (size_t k = 0; k < cut_count; k++) {
        const size_t i = cut[k];
        unit = join_units(job, text, &batch->owed[i], &units, unit, paid->ids, &paid->count[i]);
    }
    return PTK_VERDICT_OK;
}

/* Copies ids down, four at a time: up to three more than `count` are written. */
static inline void close_up(uint32_t *to, const uint32_t *from, size_t count)
{
    for (size_t i = 0; i < count; i += 4) {
        const __m128i four = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        _mm_storeu_si128((__m128i *)(void *)(to + i), four);
    }
}

/*
 * Puts the ids of what was owed into their gaps, and closes what is left of them: ids move down
 * only, so that nothing is overwritten before it has been read. Returns how many there are; those
 * beyond PTK_OWED_GAP of a piece are left out, and `at` says where they belong.
 */
static size_t fill_gaps(const struct ptk_sink *sink, struct ptk_batch *batch,
                        const struct paid *paid)
{
    size_t to = batch->owed[0].at;
    for (size_t i = 0; i < batch->owed_count; i++) {
        const size_t from = batch->owed[i].at + (size_t)PTK_OWED_GAP;
        const size_t end = i + 1 < batch->owed_count ? batch->owed[i + 1].at : sink->len;
        memcpy(sink->ids + to, paid->ids + paid->begin[i], PTK_OWED_GAP * sizeof *sink->ids);
        to += ptk_min_size(paid->count[i], PTK_OWED_GAP);
        batch->owed[i].at = (uint32_t)to;
        close_up(sink->ids + to, sink->ids + from, end - from);
        to += end - from;
    }
    return to;
}

/* Copies `count` ids to place `to` of the sink, as far as ids are wanted. */
static inline void place_ids(struct ptk_sink *sink, size_t to, const uint32_t *ids, size_t count)
{
    if (to < sink->end) {
        memmove(sink->ids + to, ids, ptk_min_size(count, sink->end - to) * sizeof *ids);
    }
}

/* Pays what is owed. Where ids were left out, those behind them move up, the last ones first. */
static void owed_place(struct ptk_sink *sink, struct ptk_batch *batch, const struct paid *paid)
{
    size_t end = fill_gaps(sink, batch, paid);
    size_t shift = 0;
    for (size_t i = 0; i < batch->owed_count; i++) {
        shift += ptk_max_size(paid->count[i], PTK_OWED_GAP) - PTK_OWED_GAP;
    }
    const size_t len = end + shift;
    for (size_t i = batch->owed_count; shift > 0;) { /* ends: some piece has the first ones */
        i--;
        if (paid->count[i] > PTK_OWED_GAP) {
            const size_t at = batch->owed[i].at;
            const size_t count = paid->count[i] - PTK_OWED_GAP;
            place_ids(sink, at + shift, sink->ids + at, end - at);
            shift -= count;
            place_ids(sink, at + shift, paid->ids + paid->begin[i] + PTK_OWED_GAP, count);
            end = at;
        }
    }
    sink->full = len > sink->end;
    sink->len = ptk_min_size(len, sink->end);
}

static enum ptk_verdict batch_settle(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_batch *batch)
{
    struct ptk_sink *sink = job->sink;
    struct paid paid;
    if (batch->owed_count == 0) {
        return PTK_VERDICT_OK;
    }
    const enum ptk_verdict verdict = owed_find(job, text, batch, &paid);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (sink->counting) {
        for (size_t i = 0; i < batch->owed_count; i++) {
            sink->len += paid.count[i];
        }
        sink->full = sink->len >= sink->end;
    } else {
        owed_place(sink, batch, &paid);
    }
    batch->owed_count = 0;
    return PTK_VERDICT_OK;
}

/* The entries of the batch one by one, for a sink that wants offsets or is nearly full. */
static enum ptk_verdict batch_put(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  const struct ptk_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const struct ptk_owed entry = batch_entry(batch, i, 0);
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        ptk_pause_point();
        const unsigned match = batch_match(batch, i);
        if (match != 0) {
            ptk_put_slot(job, text, entry.span.begin, batch_slot(batch, i, match));
        } else if (!put_known(job, text, &entry)) {
            verdict = put_unknown(job, text, &entry);
        }
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || job->sink->full)) {
            return verdict;
        }
    }
    return PTK_VERDICT_OK;
}

/* Whether pieces may be owed: an affix could make more ids of one than it has bytes. */
static inline bool may_owe(const struct ptk_encoder *encoder)
{
    return encoder->algorithm != PTK_IMAGE_ALGORITHM_BPE ||
           encoder->bpe.prefix_len + encoder->bpe.suffix_len == 0;
}

/* Empties the batch; afterwards PTK_OWED_ENOUGH pieces are owed at most. */
static enum ptk_verdict batch_flush(const struct ptk_encode_job *job, const ptk_source_text *text,
                                    struct ptk_batch *batch)
{
    struct ptk_sink *sink = job->sink;
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    ptk_pause_point(); /* The batch holds keys, and no entry of the cache yet. */
    const bool fits = sink->len + (batch->count + 1) * PTK_OWED_GAP <= sink->fast_end;
    if (PTK_UNLIKELY(!may_owe(&job->tokenizer->encoder) || !(fits || sink->counting))) {
        verdict = batch_settle(job, text, batch);
        if (verdict == PTK_VERDICT_OK && !sink->full) {
            verdict = batch_put(job, text, batch);
        }
    } else if (sink->counting) {
        sink->len = batch_take(job, text, batch, NULL, sink->len);
        sink->full = sink->len >= sink->end;
    } else {
        sink->len = batch_take(job, text, batch, sink->ids, sink->len);
    }
    batch->count = 0;
    batch->inner = 0;
    if (verdict == PTK_VERDICT_OK && batch->owed_count > PTK_OWED_ENOUGH) {
        verdict = batch_settle(job, text, batch);
    }
    return verdict;
}

/* The same, and nothing is owed any more. */
enum ptk_verdict ptk_batch_finish(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  struct ptk_batch *batch)
{
    const enum ptk_verdict verdict = batch_flush(job, text, batch);
    return verdict == PTK_VERDICT_OK && !job->sink->full ? batch_settle(job, text, batch) : verdict;
}

/* Adds a piece or a part; a full batch is worked on at once. */
static inline enum ptk_verdict batch_push(const struct ptk_encode_job *job,
                                          const ptk_source_text *text, struct ptk_batch *batch,
                                          struct ptk_span span, enum ptk_part part)
{
    if (PTK_UNLIKELY(ptk_span_len(span) > PTK_CACHE_LONG_KEY_MAX)) {
        const enum ptk_verdict verdict = ptk_batch_finish(job, text, batch);
        return verdict == PTK_VERDICT_OK && !job->sink->full
                   ? ptk_piece_long_part(job, text, span, part)
                   : verdict;
    }
    batch_add(job, text, batch, span, part);
    return batch->count == PTK_BATCH_PIECES ? batch_flush(job, text, batch) : PTK_VERDICT_OK;
}

/* Safe cuts that are looked for at once in a long piece. */
#define CHUNK_CUTS 128u

/* A smaller vocabulary spells longer words of most scripts in more ids than a cache's entry has. */
#define RICH_VOCABULARY 65536u

/*
 * Whether a piece of 16 bytes or more is likely to come again as a whole, and short enough to be
 * kept. Where a script writes no spaces, as the first character beyond ASCII tells, its parts come
 * again; and so they do where no pre-tokenizer takes the punctuation off the words.
 */
static inline bool comes_again(const struct ptk_encode_job *job, const uint8_t *piece)
{
    if (job->tokenizer->image->config->model_len < RICH_VOCABULARY) {
        return false;
    }
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)piece);
    const uint32_t high = (uint32_t)_mm_movemask_epi8(bytes);
    return high != 0 ? piece[__builtin_ctz(high)] < 0xe2 : !job->tokenizer->words.active;
}

/* Adds a piece of more than 15 bytes, in parts where it has safe cuts. */
static enum ptk_verdict push_long(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  struct ptk_batch *batch, struct ptk_span span)
{
    const struct ptk_cuts *cuts = &job->tokenizer->cuts;
    const uint8_t *piece = text->bytes + span.begin;
    const size_t len = ptk_span_len(span);
    if (len <= PTK_CACHE_LONG_KEY_MAX && comes_again(job, piece)) {
        return batch_push(job, text, batch, span, PTK_PART_WHOLE);
    }
    uint32_t ends[CHUNK_CUTS];
    size_t pos = 0;
    size_t count = ptk_cuts_scan(cuts, piece, len, &pos, ends, CHUNK_CUTS);
    /* A token that merging makes has no cut; one that only a whole piece is may have. */
    if (ends[0] == len || (len <= job->tokenizer->encoder.whole_len_max &&
                           ptk_encoder_token(&job->tokenizer->encoder, piece, len,
                                             PTK_PART_WHOLE) != PTK_IMAGE_NONE)) {
        return batch_push(job, text, batch, span, PTK_PART_WHOLE);
    }
    uint32_t begin = span.begin;
    for (;;) { /* ends: each turn takes cuts up to the end of the piece */
        for (size_t i = 0; i < count; i++) {
            const struct ptk_span part = {begin, span.begin + ends[i]};
            const enum ptk_verdict verdict = batch_push(job, text, batch, part, PTK_PART_INNER);
            if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || job->sink->full)) {
                return verdict;
            }
            begin = part.end;
        }
        if (pos == len) {
            return PTK_VERDICT_OK;
        }
        count = ptk_cuts_scan(cuts, piece, len, &pos, ends, CHUNK_CUTS);
    }
}

/* Adds a piece; a full batch is worked on at once. */
enum ptk_verdict ptk_batch_push(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_batch *batch, struct ptk_span span)
{
    if (PTK_UNLIKELY(ptk_span_len(span) > PTK_IMAGE_PIECE_KEY_MAX)) {
        return push_long(job, text, batch, span);
    }
    return batch_push(job, text, batch, span, PTK_PART_WHOLE);
}

/*
 * Fills the batch with short pieces, as batch_add() does, from those that end at `ends`; returns
 * how many it took. It stops at a longer one and before the end of the text. What does not change
 * is in locals: after each store to the batch it would be read again.
 */
static inline size_t batch_fill(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_batch *batch, size_t begin, const uint32_t *ends,
                                size_t count, uint64_t mark)
{
    const uint8_t *bytes = text->bytes;
    const struct ptk_cache_seed seed = job->tokenizer->seed;
    const struct ptk_image_piece *slots = job->cache->slots;
    const uint64_t line_mask = job->cache->short_mask;
    const __m128i marks = _mm_set_epi64x((long long)mark, 0);
    const size_t filled = batch->count;
    size_t stop = ptk_min_size(count, PTK_BATCH_PIECES - filled);
    while (stop > 0 && ends[stop - 1] + (size_t)16 > text->len) {
        stop--;
    }
    size_t i = 0;
    for (; i < stop; i++) {
        const size_t end = ends[i];
        const size_t len = end - begin;
        if (PTK_UNLIKELY(len > PTK_IMAGE_PIECE_KEY_MAX)) {
            break;
        }
        const __m128i piece = _mm_loadu_si128((const __m128i *)(const void *)(bytes + begin));
        const __m128i mask = _mm_load_si128((const __m128i *)(const void *)&ptk_key_masks[len]);
        const __m128i tail = _mm_load_si128((const __m128i *)(const void *)&ptk_key_lens[len]);
        const __m128i key = _mm_or_si128(_mm_or_si128(_mm_and_si128(piece, mask), tail), marks);
        const uint64_t low = (uint64_t)_mm_cvtsi128_si64(key);
        const uint64_t high = (uint64_t)_mm_extract_epi64(key, 1);
        const uint64_t hash = ptk_hash_fold(low ^ seed.low, high ^ seed.high);
        const struct ptk_image_piece *line = &slots[(hash & line_mask) * 2];
        ptk_prefetch(line);
        batch->line[filled + i] = line;
        _mm_store_si128((__m128i *)(void *)&batch->key[filled + i], key);
        batch->span[filled + i] = (struct ptk_span){(uint32_t)begin, (uint32_t)end};
        begin = end;
    }
    batch->count = filled + i;
    return i;
}

/* Adds pieces that follow each other, each given by its end; a full batch is worked on at once. */
enum ptk_verdict ptk_batch_push_ends(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_batch *batch, uint32_t begin, const uint32_t *ends,
                                     size_t count)
{
    for (size_t i = 0; i < count;) {
        const size_t filled =
            job->need_ends ? 0
            : job->tokenizer->segments != NULL
                ? batch_fill(job, text, batch, begin, ends + i, count - i, PTK_CACHE_INNER)
                : batch_fill(job, text, batch, begin, ends + i, count - i, 0);
        i += filled;
        begin = filled > 0 ? ends[i - 1] : begin;
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        if (batch->count == PTK_BATCH_PIECES) {
            verdict = batch_flush(job, text, batch);
        } else if (i < count) {
            verdict = ptk_batch_push(job, text, batch, (struct ptk_span){begin, ends[i]});
            begin = ends[i];
            i++;
        }
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || job->sink->full)) {
            return verdict;
        }
    }
    return PTK_VERDICT_OK;
}
