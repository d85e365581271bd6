/*
 * The way from text to ids; see ptk_tokenizer.h for what it promises.
 *
 *     text ─ added tokens ─┬─ token ────────────────────────────────────────────────────────> sink
 *                          └─ section ─ normalize ─ added tokens ─┬─ token ─────────────────> sink
 *                                                                 └─ pre-tokenize ─ pieces ─> sink
 *
 * Where segments of the original text are independent of each other (text/ptk_segments.h), all of
 * this is done for segments that the thread's cache does not know; the others are looked up as they
 * stand in the text.
 *
 * A piece is looked up in the thread's cache, then in the image, and only then encoded. Where the
 * pre-tokenizer is a scanner, pieces come in chunks as bare ends, and a chunk is worked on in
 * batches: make all keys and ask for their cache lines, then take the ids.
 */
#include "algo/ptk_tokenizer_state.h"
#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#include <smmintrin.h>

/* A mark and the first word of a text, where they are put together. */
#define LEAD_LEN_MAX 64u

/* Pieces whose keys are made before the first is looked up. */
#define BATCH_PIECES 64u

/*
 * Where ids go. `skip` ids are dropped first; then ids are written until `end`. When counting, none
 * are written and `len` grows.
 */
struct sink {
    uint32_t *ids;
    struct ptk_span *offsets; /* NULL: not wanted */
    size_t len;
    size_t cap;      /* of the arrays */
    size_t end;      /* ids wanted at the moment: up to cap */
    size_t fast_end; /* the same, or 0 while ids must pass put_ids() */
    size_t skip;
    bool counting;
    bool full; /* an id was refused: enough */
    struct ptk_added_plain plain; /* ranges of ordinary text in the text at work */
};

/* One encode of one text. */
struct job {
    const struct ptk_tokenizer *tokenizer;
    struct ptk_work *work;
    struct ptk_cache *cache;
    struct sink *sink;
    bool skip_special; /* special tokens in the text are ordinary text */
    bool skip_added;   /* so are all added tokens */
    bool need_ends;    /* offsets are wanted and only the model knows where an id ends */
    bool look_up;      /* cache and image's piece table are of use */
};

/* The text that pieces are ranges of, and where it came from. */
typedef struct ptk_split_text source_text;

/* The character of the byte-level alphabet that stands for a space: U+0120. */
#define BYTE_LEVEL_SPACE 0x120u

/* ---- offsets -------------------------------------------------------------------------------- */

static bool is_continuation(uint8_t byte)
{
    return (byte & 0xc0) == 0x80;
}

/* The original bytes of text[begin..end): whole characters, as the reference aligns them. */
static struct ptk_span original_span(const source_text *text, size_t begin, size_t end)
{
    if (text->align != NULL) {
        if (begin == end) {
            return (struct ptk_span){(uint32_t)begin, (uint32_t)end};
        }
        return (struct ptk_span){text->align[begin].begin, text->align[end - 1].end};
    }
    while (begin > 0 && begin < text->len && is_continuation(text->bytes[begin])) {
        begin--;
    }
    while (end < text->len && is_continuation(text->bytes[end])) {
        end++;
    }
    return (struct ptk_span){(uint32_t)(text->origin + begin), (uint32_t)(text->origin + end)};
}

static size_t key_len(const struct ptk_image *image, uint32_t id)
{
    return image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
}

/* ---- ids into the sink ---------------------------------------------------------------------- */

/* Writes one id; false when no more are wanted. */
static inline bool put_id(struct sink *sink, uint32_t id, struct ptk_span span)
{
    if (sink->skip > 0) {
        sink->skip--;
        sink->fast_end = sink->skip == 0 && sink->offsets == NULL ? sink->end : 0;
        return true;
    }
    if (sink->len == sink->end) {
        sink->full = true;
        return false;
    }
    sink->ids[sink->len] = id;
    if (sink->offsets != NULL) {
        sink->offsets[sink->len] = span;
    }
    sink->len++;
    return true;
}

/* Gives the ids of the piece at `begin` to the sink, with offsets if it wants them. */
static void put_ids(const struct job *job, const source_text *text, size_t begin,
                    const struct ptk_encoder_ids *ids)
{
    struct sink *sink = job->sink;
    if (sink->counting) {
        sink->len += ids->count;
        sink->full = sink->len >= sink->end;
        return;
    }
    const struct ptk_image *image = job->tokenizer->image;
    struct ptk_span span = {0, 0};
    size_t from = begin;
    uint32_t turns = 0;
    for (size_t i = 0; i < ids->count; i++) {
        ptk_pause_turn(&turns);
        if (sink->offsets != NULL) {
            from = ids->begins != NULL ? begin + ids->begins[i] : from;
            const size_t end =
                ids->ends != NULL ? begin + ids->ends[i] : from + key_len(image, ids->ids[i]);
            span = original_span(text, from, ptk_min_size(end, text->len));
            from = end;
        }
        if (!put_id(sink, ids->ids[i], span)) {
            return;
        }
    }
}

/* The ids of a cache's entry are too few for a pause. */
_Static_assert(PTK_CACHE_LONG_IDS_MAX < PTK_PAUSE_TURNS, "put_ids makes no pause");
_Static_assert(PTK_IMAGE_PIECE_IDS_MAX < PTK_PAUSE_TURNS, "put_ids makes no pause");

/* The same for a slot of the piece table or the cache. */
static inline void put_slot(const struct job *job, const source_text *text, size_t begin,
                            const struct ptk_image_piece *slot)
{
    struct sink *sink = job->sink;
    const size_t count = ptk_cache_id_count(slot);
    if (PTK_LIKELY(sink->len + PTK_IMAGE_PIECE_IDS_MAX <= sink->fast_end)) {
        memcpy(sink->ids + sink->len, slot->ids, sizeof slot->ids);
        sink->len += count;
        return;
    }
    const struct ptk_encoder_ids ids = {.ids = slot->ids, .count = count};
    put_ids(job, text, begin, &ids);
}

/* The same for a slot of the table for longer pieces. */
static inline void put_long_slot(const struct job *job, const source_text *text, size_t begin,
                                 const struct ptk_cache_long *slot)
{
    struct sink *sink = job->sink;
    const size_t count = ptk_cache_long_id_count(slot);
    if (PTK_LIKELY(sink->len + PTK_CACHE_LONG_IDS_MAX <= sink->fast_end)) {
        memcpy(sink->ids + sink->len, slot->ids, sizeof slot->ids);
        sink->len += count;
        return;
    }
    const struct ptk_encoder_ids ids = {.ids = slot->ids, .count = count};
    put_ids(job, text, begin, &ids);
}

/* ---- pieces --------------------------------------------------------------------------------- */

/* A piece or part that neither the image nor the cache knows. */
static enum ptk_verdict encode_piece(const struct job *job, const source_text *text, size_t begin,
                                     size_t len, enum ptk_part part, struct ptk_encoder_ids *ids)
{
    if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, text->bytes + begin, len,
                         part, ids)) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    put_ids(job, text, begin, ids);
    return PTK_VERDICT_OK;
}

/* By length: which bytes of 16 belong to a piece. */
#define LOW_MASK(len)  ((len) >= 8 ? UINT64_MAX : (1ull << 8 * ((len)&7)) - 1)
#define HIGH_MASK(len) ((len) <= 8 ? 0 : (1ull << 8 * (((len)-8) & 7)) - 1)
#define KEY_MASK(len)                                                                              \
    {                                                                                              \
        LOW_MASK(len), HIGH_MASK(len)                                                              \
    }
PTK_ALIGNED_LINE static const struct ptk_piece_key key_masks[16] = {
    KEY_MASK(0),  KEY_MASK(1),  KEY_MASK(2),  KEY_MASK(3),  KEY_MASK(4),  KEY_MASK(5),
    KEY_MASK(6),  KEY_MASK(7),  KEY_MASK(8),  KEY_MASK(9),  KEY_MASK(10), KEY_MASK(11),
    KEY_MASK(12), KEY_MASK(13), KEY_MASK(14), KEY_MASK(15),
};

/* ptk_piece_key_make without branches on the length where 16 bytes can be read. */
static inline struct ptk_piece_key piece_key(const source_text *text, size_t begin, size_t len)
{
    uint64_t low;
    uint64_t high;
    if (PTK_LIKELY(begin + 16 <= text->len)) {
        low = ptk_load_u64(text->bytes + begin);
        high = ptk_load_u64(text->bytes + begin + 8);
    } else if (text->len >= 16) {
        /* The last 16 bytes of the text, shifted down by those before the piece. */
        const uint8_t *last = text->bytes + text->len - 16;
        const ptk_u128 bytes = ((ptk_u128)ptk_load_u64(last + 8) << 64 | ptk_load_u64(last)) >>
                               8 * (begin - (text->len - 16));
        low = (uint64_t)bytes;
        high = (uint64_t)(bytes >> 64);
    } else {
        return ptk_piece_key_make(text->bytes + begin, len);
    }
    return (struct ptk_piece_key){low & key_masks[len].low,
                                  (high & key_masks[len].high) | (uint64_t)len << 56};
}

/* The key of a piece or part where the cache also has segments of original texts: marked as inner.
 */
static inline struct ptk_piece_key marked_key(const struct job *job, struct ptk_piece_key key)
{
    key.high |= job->tokenizer->segments != NULL ? PTK_CACHE_INNER : 0;
    return key;
}

/* The key of a longer piece or part, marked alike. */
static inline struct ptk_cache_long_key long_key(const struct job *job, const source_text *text,
                                                 struct ptk_span span, enum ptk_part part)
{
    return ptk_cache_long_key_make(text->bytes + span.begin, span.end - span.begin,
                                   part == PTK_PART_INNER || job->tokenizer->segments != NULL);
}

/* Whether a cache with room for `count_max` ids may keep a result: it is the same everywhere. */
static inline bool may_keep(const struct ptk_encoder_ids *ids, size_t count_max)
{
    return ids->count > 0 && ids->count <= count_max && !ids->is_close;
}

/* A short piece or part by the model; then its line of the cache, which lacks it, knows it. */
static enum ptk_verdict learn_part(const struct job *job, const source_text *text,
                                   struct ptk_span span, enum ptk_part part,
                                   struct ptk_piece_key key, struct ptk_image_piece *line)
{
    struct ptk_encoder_ids ids;
    const enum ptk_verdict verdict =
        encode_piece(job, text, span.begin, span.end - span.begin, part, &ids);
    if (verdict == PTK_VERDICT_OK && may_keep(&ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        ptk_cache_put(line, key, ids.ids, ids.count);
    }
    return verdict;
}

/* The same for one that the cache may have. */
static enum ptk_verdict cached_part(const struct job *job, const source_text *text,
                                    struct ptk_span span, enum ptk_part part,
                                    struct ptk_piece_key key)
{
    struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    const struct ptk_image_piece *slot = ptk_cache_find(line, key);
    if (slot != NULL) {
        put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    return learn_part(job, text, span, part, key, line);
}

/* The same for one that only the table for longer ones can hold, if that. */
static enum ptk_verdict cached_long_part(const struct job *job, const source_text *text,
                                         struct ptk_span span, enum ptk_part part)
{
    struct ptk_encoder_ids ids;
    const size_t len = span.end - span.begin;
    if (len > PTK_CACHE_LONG_KEY_MAX || job->need_ends) {
        return encode_piece(job, text, span.begin, len, part, &ids);
    }
    const struct ptk_cache_long_key key = long_key(job, text, span, part);
    struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    const enum ptk_verdict verdict = encode_piece(job, text, span.begin, len, part, &ids);
    if (verdict == PTK_VERDICT_OK && may_keep(&ids, PTK_CACHE_LONG_IDS_MAX)) {
        ptk_cache_long_put(pair, &key, ids.ids, ids.count);
    }
    return verdict;
}

/* The image's slot of a part, unless only a whole piece is that token. */
static const struct ptk_image_piece *known_inner(const struct ptk_encoder *encoder,
                                                 struct ptk_piece_key key)
{
    if (encoder->image->pieces == NULL || (encoder->ignore_merges && encoder->merged == NULL)) {
        return NULL;
    }
    const struct ptk_image_piece *slot =
        ptk_image_piece_hashed(encoder->image, key, ptk_piece_hash(key.low, key.high));
    if (slot == NULL || !encoder->ignore_merges) {
        return slot;
    }
    return ptk_encoder_is_merged(encoder, slot->ids[0]) ? slot : NULL;
}

/* What lies between two safe cuts. */
static enum ptk_verdict encode_inner(const struct job *job, const source_text *text,
                                     struct ptk_span span)
{
    const size_t len = span.end - span.begin;
    if (len > PTK_IMAGE_PIECE_KEY_MAX || job->need_ends) {
        return cached_long_part(job, text, span, PTK_PART_INNER);
    }
    struct ptk_piece_key key = piece_key(text, span.begin, len);
    const struct ptk_image_piece *slot = known_inner(&job->tokenizer->encoder, key);
    if (slot != NULL) {
        put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    if (job->tokenizer->encoder.ignore_merges) {
        key.high |= PTK_CACHE_INNER;
    }
    return cached_part(job, text, span, PTK_PART_INNER, marked_key(job, key));
}

/* Whether a piece has no byte above 0x7f. */
static inline bool is_ascii(const uint8_t *piece, size_t len)
{
    uint64_t high = 0;
    size_t i = 0;
    for (; i + 8 <= len; i += 8) {
        high |= ptk_load_u64(piece + i);
    }
    for (; i < len; i++) {
        high |= (uint64_t)piece[i];
    }
    return (high & 0x8080808080808080ull) == 0;
}

/* The ids of a piece that was encoded in parts: at most one for each byte, and what is copied too
 * much behind them. */
struct parts_ids {
    uint32_t ids[PTK_CACHE_LONG_KEY_MAX + PTK_CACHE_LONG_IDS_MAX];
    size_t count;
};

/*
 * A piece of up to PTK_CACHE_LONG_KEY_MAX bytes part by part. False where it has no safe cut, or is
 * a token as a whole: nothing has been done then. Behind a pre-tokenizer ASCII nearly never has
 * one, and is not looked at.
 */
static bool encode_parts(const struct job *job, const source_text *text, struct ptk_span span,
                         struct parts_ids *parts)
{
    const uint8_t *piece = text->bytes + span.begin;
    const size_t len = span.end - span.begin;
    uint32_t ends[PTK_CACHE_LONG_KEY_MAX];
    size_t pos = 0;
    if (!job->tokenizer->words.active && is_ascii(piece, len)) {
        return false;
    }
    const size_t count =
        ptk_cuts_scan(&job->tokenizer->cuts, piece, len, &pos, ends, PTK_ARRAY_LEN(ends));
    if (count == 1 || ptk_encoder_token(&job->tokenizer->encoder, piece, len, PTK_PART_WHOLE) !=
                          PTK_IMAGE_NONE) {
        return false;
    }
    struct sink gathered = {.ids = parts->ids, .cap = PTK_ARRAY_LEN(parts->ids)};
    gathered.end = gathered.cap;
    gathered.fast_end = gathered.cap;
    struct job gather = *job;
    gather.sink = &gathered;
    uint32_t begin = span.begin;
    for (size_t i = 0; i < count; i++) {
        const struct ptk_span part = {begin, span.begin + ends[i]};
        PTK_ASSERT(encode_inner(&gather, text, part) == PTK_VERDICT_OK); /* any scratch fits it */
        begin = part.end;
    }
    parts->count = gathered.len;
    return true;
}

/* A short piece that the image does not know. What its parts yield is kept for the whole. */
static enum ptk_verdict short_piece(const struct job *job, const source_text *text,
                                    struct ptk_span span, struct ptk_piece_key key)
{
    struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    const struct ptk_image_piece *slot = ptk_cache_find(line, key);
    if (slot != NULL) {
        put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    struct parts_ids parts;
    if (!encode_parts(job, text, span, &parts)) {
        return learn_part(job, text, span, PTK_PART_WHOLE, key, line);
    }
    const struct ptk_encoder_ids ids = {.ids = parts.ids, .count = parts.count};
    if (may_keep(&ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        ptk_cache_put(line, key, ids.ids, ids.count);
    }
    put_ids(job, text, span.begin, &ids);
    return PTK_VERDICT_OK;
}

/* The same for a longer one. */
static enum ptk_verdict long_piece(const struct job *job, const source_text *text,
                                   struct ptk_span span)
{
    if (span.end - span.begin > PTK_CACHE_LONG_KEY_MAX || job->need_ends) {
        return cached_long_part(job, text, span, PTK_PART_WHOLE);
    }
    const struct ptk_cache_long_key key = long_key(job, text, span, PTK_PART_WHOLE);
    struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    struct parts_ids parts;
    if (!encode_parts(job, text, span, &parts)) {
        return cached_long_part(job, text, span, PTK_PART_WHOLE);
    }
    const struct ptk_encoder_ids ids = {.ids = parts.ids, .count = parts.count};
    if (may_keep(&ids, PTK_CACHE_LONG_IDS_MAX)) {
        ptk_cache_long_put(pair, &key, ids.ids, ids.count);
    }
    put_ids(job, text, span.begin, &ids);
    return PTK_VERDICT_OK;
}

/*
 * Pieces and parts on their way. A full batch is worked on in passes that hardly branch on what the
 * text is:
 *
 *   add    the key of each entry is made and its line of the cache asked for
 *   find   the two slots of each line are compared with the key, and the ids copied from there;
 *          what is in neither is listed
 *   learn  what is listed is looked up in the image and goes to the cache; the rest stays listed
 *   put    the ids go to the sink, run by run between the entries that are still listed
 *
 * Ids are copied because what comes later in the batch may take a slot from what came before.
 */
struct batch {
    size_t count;
    size_t miss_count;
    uint64_t inner; /* bit i: entry i is a part between safe cuts, not a whole piece */
    struct ptk_span span[BATCH_PIECES];
    PTK_ALIGNED_LINE struct ptk_piece_key key[BATCH_PIECES]; /* of short ones, as in the cache */
    uint32_t ids[BATCH_PIECES][PTK_IMAGE_PIECE_IDS_MAX];
    PTK_ALIGNED_LINE uint8_t id_count[BATCH_PIECES];
    const struct ptk_image_piece *line[BATCH_PIECES];
    uint8_t miss[BATCH_PIECES];
};
_Static_assert(BATCH_PIECES == 64, "a bit of a word for each entry");

/* What stands for a line where there is none to look at: no piece has an empty slot's key. */
PTK_ALIGNED_LINE static const struct ptk_image_piece no_line[2];
static const struct ptk_piece_key no_key = {0, 1ull << 56};

static inline void batch_set(const struct job *job, struct batch *batch, size_t i,
                             struct ptk_span span, struct ptk_piece_key key)
{
    const struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    ptk_prefetch(line);
    batch->span[i] = span;
    batch->key[i] = key;
    batch->line[i] = line;
}

static inline void batch_add(const struct job *job, const source_text *text, struct batch *batch,
                             struct ptk_span span, enum ptk_part part)
{
    const size_t len = span.end - span.begin;
    const size_t i = batch->count++;
    batch->inner |= (uint64_t)(part == PTK_PART_INNER) << i;
    if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX && job->look_up)) {
        struct ptk_piece_key key = marked_key(job, piece_key(text, span.begin, len));
        if (part == PTK_PART_INNER && job->tokenizer->encoder.ignore_merges) {
            key.high |= PTK_CACHE_INNER;
        }
        batch_set(job, batch, i, span, key);
        return;
    }
    if (len > PTK_IMAGE_PIECE_KEY_MAX && len <= PTK_CACHE_LONG_KEY_MAX) {
        const struct ptk_cache_long_key key = long_key(job, text, span, part);
        ptk_prefetch(ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key));
    }
    batch->span[i] = span;
    batch->key[i] = no_key;
    batch->line[i] = no_line;
}

/* Looks for all entries in the cache and lists those that are not there. */
static inline void batch_find(struct batch *batch, bool counting)
{
    const __m128i mask = _mm_set_epi64x((long long)PTK_CACHE_HIGH_MASK, -1);
    size_t miss_count = 0;
    for (size_t i = 0; i < batch->count; i++) {
        const struct ptk_image_piece *line = batch->line[i];
        const __m128i key = _mm_load_si128((const __m128i *)(const void *)&batch->key[i]);
        const __m128i first = _mm_load_si128((const __m128i *)(const void *)line[0].key);
        const __m128i second = _mm_load_si128((const __m128i *)(const void *)line[1].key);
        const int is_first = _mm_testz_si128(_mm_xor_si128(first, key), mask);
        const int is_second = _mm_testz_si128(_mm_xor_si128(second, key), mask);
        const struct ptk_image_piece *slot = &line[is_second];
        if (!counting) {
            memcpy(batch->ids[i], slot->ids, sizeof slot->ids);
        }
        batch->id_count[i] = (uint8_t)ptk_cache_id_count(slot);
        batch->miss[miss_count] = (uint8_t)i;
        miss_count += (size_t)((is_first | is_second) ^ 1);
    }
    batch->miss_count = miss_count;
}

/* The image's slot of a short entry, unless it is a part and only a whole piece is that token. */
static const struct ptk_image_piece *known_entry(const struct ptk_encoder *encoder,
                                                 struct ptk_piece_key key, bool inner)
{
    key.high &= ~PTK_CACHE_INNER;
    const struct ptk_image_piece *slot =
        ptk_image_piece_hashed(encoder->image, key, ptk_piece_hash(key.low, key.high));
    if (slot == NULL || !inner || !encoder->ignore_merges) {
        return slot;
    }
    const bool is_merged = encoder->merged != NULL && ptk_encoder_is_merged(encoder, slot->ids[0]);
    return is_merged ? slot : NULL;
}

/* Looks for what is listed in the image and teaches the cache. What the image does not know stays
 * listed. */
static void batch_learn(const struct job *job, struct batch *batch)
{
    const struct ptk_encoder *encoder = &job->tokenizer->encoder;
    const struct ptk_image *image = encoder->image;
    /* Where the cache has segments of the text, their pieces come up only when it has not. */
    const bool teach = job->tokenizer->segments == NULL;
    if (!job->look_up || image->pieces == NULL) {
        return;
    }
    for (size_t i = 0; i < batch->miss_count; i++) {
        const struct ptk_piece_key key = batch->key[batch->miss[i]];
        const uint64_t hash = ptk_piece_hash(key.low, key.high & ~PTK_CACHE_INNER);
        ptk_prefetch(&image->pieces[((uint32_t)hash & image->piece_mask) * (size_t)2]);
    }
    size_t miss_count = 0;
    for (size_t i = 0; i < batch->miss_count; i++) {
        const size_t at = batch->miss[i];
        const struct ptk_piece_key key = batch->key[at];
        const struct ptk_image_piece *slot =
            batch->line[at] == no_line
                ? NULL
                : known_entry(encoder, key, (batch->inner >> at & 1) != 0);
        if (slot == NULL) {
            batch->miss[miss_count++] = (uint8_t)at;
            continue;
        }
        memcpy(batch->ids[at], slot->ids, sizeof slot->ids);
        batch->id_count[at] = (uint8_t)ptk_image_piece_id_count(slot);
        struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
        if (teach && ptk_cache_find(line, key) == NULL) { /* it may be in the batch twice */
            ptk_cache_put_slot(line, key, slot);
        }
    }
    batch->miss_count = miss_count;
}

/* Gives the ids of the entries from..to, which are known, to the sink. */
static inline void batch_put(const struct job *job, const source_text *text,
                             const struct batch *batch, size_t from, size_t to)
{
    struct sink *sink = job->sink;
    size_t len = sink->len;
    if (PTK_LIKELY(len + PTK_IMAGE_PIECE_IDS_MAX * (to - from) <= sink->fast_end)) {
        uint32_t *ids = sink->ids;
        for (size_t i = from; i < to; i++) {
            memcpy(ids + len, batch->ids[i], sizeof batch->ids[i]);
            len += batch->id_count[i];
        }
        sink->len = len;
        return;
    }
    if (sink->counting) {
        for (size_t i = from; i < to; i++) {
            len += batch->id_count[i];
        }
        sink->len = len;
        sink->full = len >= sink->end;
        return;
    }
    for (size_t i = from; i < to && !sink->full; i++) {
        const struct ptk_encoder_ids ids = {.ids = batch->ids[i], .count = batch->id_count[i]};
        put_ids(job, text, batch->span[i].begin, &ids);
    }
}

/* An entry of the batch that neither cache nor image know. */
static enum ptk_verdict batch_miss(const struct job *job, const source_text *text,
                                   const struct batch *batch, size_t i)
{
    const struct ptk_span span = batch->span[i];
    const bool is_short =
        span.end - span.begin <= PTK_IMAGE_PIECE_KEY_MAX && !job->need_ends;
    if ((batch->inner >> i & 1) != 0) {
        return is_short ? cached_part(job, text, span, PTK_PART_INNER, batch->key[i])
                        : cached_long_part(job, text, span, PTK_PART_INNER);
    }
    return is_short ? short_piece(job, text, span, batch->key[i]) : long_piece(job, text, span);
}

/* Gives the batch's ids to the sink, and empties the batch. */
static enum ptk_verdict batch_flush(const struct job *job, const source_text *text,
                                    struct batch *batch)
{
    const struct sink *sink = job->sink;
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    size_t from = 0;
    ptk_pause_point(); /* The batch holds keys, and no entry of the cache yet. */
    if (sink->counting) {
        batch_find(batch, true);
    } else {
        batch_find(batch, false);
    }
    if (PTK_UNLIKELY(batch->miss_count > 0)) {
        batch_learn(job, batch);
    }
    for (size_t i = 0; i < batch->miss_count; i++) {
        batch_put(job, text, batch, from, batch->miss[i]);
        if (PTK_UNLIKELY(sink->full)) {
            return PTK_VERDICT_OK;
        }
        ptk_pause_point();
        verdict = batch_miss(job, text, batch, batch->miss[i]);
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || sink->full)) {
            return verdict;
        }
        from = batch->miss[i] + (size_t)1;
    }
    batch_put(job, text, batch, from, batch->count);
    batch->count = 0;
    batch->inner = 0;
    return verdict;
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
static inline bool comes_again(const struct job *job, const uint8_t *piece)
{
    if (job->tokenizer->image->config->model_len < RICH_VOCABULARY) {
        return false;
    }
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)piece);
    const uint32_t high = (uint32_t)_mm_movemask_epi8(bytes);
    return high != 0 ? piece[__builtin_ctz(high)] < 0xe2 : !job->tokenizer->words.active;
}

/* Adds a piece of more than 15 bytes, in parts where it has safe cuts. */
static enum ptk_verdict push_long(const struct job *job, const source_text *text,
                                  struct batch *batch, struct ptk_span span)
{
    const struct ptk_cuts *cuts = &job->tokenizer->cuts;
    const uint8_t *piece = text->bytes + span.begin;
    const size_t len = span.end - span.begin;
    if (len <= PTK_CACHE_LONG_KEY_MAX && comes_again(job, piece)) {
        batch_add(job, text, batch, span, PTK_PART_WHOLE);
        return batch->count == BATCH_PIECES ? batch_flush(job, text, batch) : PTK_VERDICT_OK;
    }
    uint32_t ends[CHUNK_CUTS];
    size_t pos = 0;
    size_t count = ptk_cuts_scan(cuts, piece, len, &pos, ends, CHUNK_CUTS);
    /* A token that merging makes has no cut; one that only a whole piece is may have. */
    if (ends[0] == len || (len <= job->tokenizer->encoder.whole_len_max &&
                           ptk_encoder_token(&job->tokenizer->encoder, piece, len,
                                             PTK_PART_WHOLE) != PTK_IMAGE_NONE)) {
        batch_add(job, text, batch, span, PTK_PART_WHOLE);
        return batch->count == BATCH_PIECES ? batch_flush(job, text, batch) : PTK_VERDICT_OK;
    }
    uint32_t begin = span.begin;
    for (;;) { /* ends: each turn takes cuts up to the end of the piece */
        for (size_t i = 0; i < count; i++) {
            const struct ptk_span part = {begin, span.begin + ends[i]};
            batch_add(job, text, batch, part, PTK_PART_INNER);
            if (batch->count == BATCH_PIECES) {
                const enum ptk_verdict verdict = batch_flush(job, text, batch);
                if (verdict != PTK_VERDICT_OK || job->sink->full) {
                    return verdict;
                }
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
static inline enum ptk_verdict push_piece(const struct job *job, const source_text *text,
                                          struct batch *batch, struct ptk_span span)
{
    if (PTK_UNLIKELY(span.end - span.begin > PTK_IMAGE_PIECE_KEY_MAX)) {
        return push_long(job, text, batch, span);
    }
    batch_add(job, text, batch, span, PTK_PART_WHOLE);
    return batch->count == BATCH_PIECES ? batch_flush(job, text, batch) : PTK_VERDICT_OK;
}

/* ---- pieces of a Unigram model -------------------------------------------------------------- */

/*
 * Scores add up from the beginning of a piece, so that a part between two safe cuts is encoded
 * alone only where no decision in it was close: then rounding cannot change one, whatever was added
 * up before. From the first part on that is close the rest comes from the piece as a whole.
 */

/* The ids of a short or longer part where the cache has them; their number, or 0. */
static inline size_t find_part(const struct job *job, const source_text *text, struct ptk_span span,
                               const uint32_t **ids)
{
    const size_t len = span.end - span.begin;
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
        const struct ptk_piece_key key = marked_key(job, piece_key(text, span.begin, len));
        const struct ptk_image_piece *slot =
            ptk_cache_find(ptk_cache_line(job->cache, seed, key), key);
        *ids = slot != NULL ? slot->ids : NULL;
        return slot != NULL ? ptk_cache_id_count(slot) : 0;
    }
    if (len <= PTK_CACHE_LONG_KEY_MAX) {
        const struct ptk_cache_long_key key =
            ptk_cache_long_key_make(text->bytes + span.begin, len, true);
        const struct ptk_cache_long *slot =
            ptk_cache_long_find(ptk_cache_long_pair(job->cache, seed, &key), &key);
        *ids = slot != NULL ? slot->ids : NULL;
        return slot != NULL ? ptk_cache_long_id_count(slot) : 0;
    }
    return 0;
}

static void keep_part(const struct job *job, const source_text *text, struct ptk_span span,
                      const struct ptk_encoder_ids *ids)
{
    const size_t len = span.end - span.begin;
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (len <= PTK_IMAGE_PIECE_KEY_MAX && may_keep(ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        const struct ptk_piece_key key = marked_key(job, piece_key(text, span.begin, len));
        ptk_cache_put(ptk_cache_line(job->cache, seed, key), key, ids->ids, ids->count);
    } else if (len > PTK_IMAGE_PIECE_KEY_MAX && len <= PTK_CACHE_LONG_KEY_MAX &&
               may_keep(ids, PTK_CACHE_LONG_IDS_MAX)) {
        const struct ptk_cache_long_key key =
            ptk_cache_long_key_make(text->bytes + span.begin, len, true);
        ptk_cache_long_put(ptk_cache_long_pair(job->cache, seed, &key), &key, ids->ids, ids->count);
    }
}

/* What follows the first `done` ids of a piece. */
static enum ptk_verdict unigram_rest(const struct job *job, const source_text *text,
                                     struct ptk_span span, size_t done)
{
    struct ptk_encoder_ids ids;
    if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, text->bytes + span.begin,
                         span.end - span.begin, PTK_PART_WHOLE, &ids)) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    PTK_ASSERT(done <= ids.count);
    const struct ptk_encoder_ids rest = {.ids = ids.ids + done, .count = ids.count - done};
    put_ids(job, text, span.begin, &rest);
    return PTK_VERDICT_OK;
}

/* One piece: what the cache knows of it, and the model for the rest. */
static enum ptk_verdict unigram_piece(const struct job *job, const source_text *text,
                                      struct ptk_span span)
{
    const struct ptk_unigram *unigram = &job->tokenizer->encoder.unigram;
    const size_t len = span.end - span.begin;
    const uint8_t *piece = text->bytes + span.begin;
    struct ptk_encoder_ids ids;
    if (job->need_ends || job->sink->offsets != NULL) {
        return encode_piece(job, text, span.begin, len, PTK_PART_WHOLE, &ids);
    }
    const bool in_parts = ptk_unigram_has_parts(unigram, len);
    size_t done = 0;
    for (size_t pos = 0; pos < len && !job->sink->full;) {
        ptk_pause_point();
        const size_t strange_len =
            in_parts ? ptk_unigram_cuts_strange(unigram->cuts, piece, len, pos) : 0;
        if (strange_len > 0) {
            ids = (struct ptk_encoder_ids){.ids = &job->tokenizer->image->config->unk_id,
                                           .count = 1};
            put_ids(job, text, span.begin + pos, &ids);
            done++;
            pos += strange_len;
            continue;
        }
        const size_t cut = in_parts ? ptk_unigram_cuts_next(unigram->cuts, piece, len, pos) : len;
        const struct ptk_span part = {span.begin + (uint32_t)pos, span.begin + (uint32_t)cut};
        ids = (struct ptk_encoder_ids){.ids = NULL};
        ids.count = find_part(job, text, part, &ids.ids);
        if (ids.count > 0) {
            put_ids(job, text, part.begin, &ids);
        } else {
            if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, piece + pos,
                                 cut - pos, PTK_PART_INNER, &ids)) {
                return PTK_VERDICT_TEXT_TOO_LONG;
            }
            if (pos > 0 && ids.is_close) {
                return unigram_rest(job, text, span, done);
            }
            put_ids(job, text, part.begin, &ids);
            keep_part(job, text, part, &ids);
        }
        done += ids.count;
        pos = cut;
    }
    return PTK_VERDICT_OK;
}

/* ---- sections ------------------------------------------------------------------------------- */

/* Adds pieces that follow each other, each given by its end; a full batch is worked on at once. */
static enum ptk_verdict push_ends(const struct job *job, const source_text *text,
                                  struct batch *batch, uint32_t begin, const uint32_t *ends,
                                  size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t filled = batch->count;
        const size_t stop = ptk_min_size(count, i + (BATCH_PIECES - filled));
        while (i < stop) {
            const struct ptk_span span = {begin, ends[i]};
            const size_t len = span.end - span.begin;
            if (PTK_UNLIKELY(len > PTK_IMAGE_PIECE_KEY_MAX || !job->look_up)) {
                break;
            }
            batch_set(job, batch, filled++, span, marked_key(job, piece_key(text, begin, len)));
            begin = span.end;
            i++;
        }
        batch->count = filled;
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        if (filled == BATCH_PIECES) {
            verdict = batch_flush(job, text, batch);
        } else if (i < count) {
            verdict = push_piece(job, text, batch, (struct ptk_span){begin, ends[i]});
            begin = ends[i];
            i++;
        }
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || job->sink->full)) {
            return verdict;
        }
    }
    return PTK_VERDICT_OK;
}

static enum ptk_verdict encode_scanned(const struct job *job, const source_text *text)
{
    struct batch batch;
    batch.count = 0;
    batch.inner = 0;
    uint32_t *ends = job->work->ends;
    size_t pos = 0;
    uint32_t begin = 0;
    size_t count;
    while ((count = ptk_split_scan(job->tokenizer->split, text->bytes, text->len, &pos, ends,
                                   PTK_CHUNK_PIECES)) > 0) {
        const enum ptk_verdict verdict = push_ends(job, text, &batch, begin, ends, count);
        if (verdict != PTK_VERDICT_OK || job->sink->full) {
            return verdict;
        }
        begin = ends[count - 1];
    }
    return batch_flush(job, text, &batch);
}

/*
 * The first word of a section with a mark before it, `head`; `*len` is how much of the section it
 * takes. False when no cut is near enough.
 */
static bool lead_word(const struct ptk_tokenizer *tokenizer, const source_text *section,
                      uint8_t head[LEAD_LEN_MAX], size_t *len)
{
    uint32_t ends[PTK_CHUNK_PIECES];
    const size_t near = ptk_min_size(section->len, 2 * LEAD_LEN_MAX);
    size_t pos = 0;
    (void)ptk_words_scan(&tokenizer->words, section->bytes, near, &pos, ends, PTK_CHUNK_PIECES);
    if (ends[0] >= LEAD_LEN_MAX && section->len >= LEAD_LEN_MAX) {
        /* The scan may end inside of a character; a cut before that is one all the same. */
        size_t at = 0;
        (void)ptk_cuts_scan(&tokenizer->cuts, section->bytes, section->len, &at, ends, 1);
    }
    if (ends[0] >= LEAD_LEN_MAX) {
        return false;
    }
    *len = ends[0];
    head[0] = ' ';
    memcpy(head + 1, section->bytes, *len);
    return true;
}

/* A section of a model whose spaces are marks, word by word as it stands. */
static enum ptk_verdict encode_words(const struct job *job, const source_text *section,
                                     const source_text *head, size_t head_len)
{
    struct batch batch;
    batch.count = 0;
    batch.inner = 0;
    if (head_len > 0) {
        enum ptk_verdict verdict =
            push_piece(job, head, &batch, (struct ptk_span){0, (uint32_t)head->len});
        if (verdict == PTK_VERDICT_OK && !job->sink->full) {
            verdict = batch_flush(job, head, &batch);
        }
        if (verdict != PTK_VERDICT_OK || job->sink->full) {
            return verdict;
        }
    }
    uint32_t *ends = job->work->ends;
    size_t pos = head_len;
    uint32_t begin = (uint32_t)head_len;
    size_t count;
    while ((count = ptk_words_scan(&job->tokenizer->words, section->bytes, section->len, &pos, ends,
                                   PTK_CHUNK_PIECES)) > 0) {
        const enum ptk_verdict verdict = push_ends(job, section, &batch, begin, ends, count);
        if (verdict != PTK_VERDICT_OK || job->sink->full) {
            return verdict;
        }
        begin = ends[count - 1];
    }
    return batch_flush(job, section, &batch);
}

static enum ptk_verdict encode_split(const struct job *job, const source_text *section)
{
    struct ptk_work *work = job->work;
    struct ptk_text_buf out = ptk_norm_spare(work->norm, section->bytes);
    out.align = job->sink->offsets != NULL ? out.align : NULL;
    struct ptk_split_pieces pieces;
    enum ptk_verdict verdict =
        ptk_split_run(job->tokenizer->split, work->split, section,
                      ptk_split_changes_text(job->tokenizer->split) ? &out : NULL, &pieces);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const bool is_unigram = job->tokenizer->encoder.algorithm == PTK_IMAGE_ALGORITHM_UNIGRAM;
    struct batch batch;
    batch.count = 0;
    batch.inner = 0;
    size_t count;
    while ((count = ptk_split_next(&pieces, work->spans, PTK_CHUNK_PIECES)) > 0) {
        for (size_t i = 0; i < count; i++) {
            verdict = is_unigram ? unigram_piece(job, &pieces.text, work->spans[i])
                                 : push_piece(job, &pieces.text, &batch, work->spans[i]);
            if (verdict != PTK_VERDICT_OK || job->sink->full) {
                return verdict;
            }
        }
    }
    return batch_flush(job, &pieces.text, &batch);
}

static enum ptk_verdict encode_section(const struct job *job, const source_text *section)
{
    if (section->len == 0) {
        return PTK_VERDICT_OK;
    }
    return job->tokenizer->scan ? encode_scanned(job, section) : encode_split(job, section);
}

/* The part of a text between two positions, as a text of its own. */
static source_text slice(const source_text *text, size_t begin, size_t end)
{
    return (source_text){
        .bytes = text->bytes + begin,
        .align = text->align != NULL ? text->align + begin : NULL,
        .len = end - begin,
        .origin = text->origin + begin,
    };
}

static void put_token(const struct job *job, const source_text *text,
                      const struct ptk_added_match *match)
{
    const uint32_t end = (uint32_t)(match->end - match->begin);
    const struct ptk_encoder_ids ids = {.ids = &match->token->id, .ends = &end, .count = 1};
    put_ids(job, text, match->begin, &ids);
}

/* A part of the normalized text without tokens, or the whole of it. */
typedef enum ptk_verdict part_fn(const struct job *job, const source_text *part);

/* Cuts a text at the added tokens, which go to the sink; what is between them goes to `part`. */
static enum ptk_verdict cut_at_tokens(const struct job *job, const struct ptk_added *added,
                                      const source_text *text, part_fn *part)
{
    struct ptk_added_search search = {
        .text = text->bytes,
        .len = text->len,
        .skip_special = job->skip_special,
        .plain = job->sink->plain.count > 0 ? &job->sink->plain : NULL,
        .align = text->align,
        .origin = text->origin,
    };
    struct ptk_added_match match;
    size_t done = 0;
    while (!job->skip_added && ptk_added_next(added, &search, &match)) {
        if (done < match.begin) {
            const source_text before = slice(text, done, match.begin);
            const enum ptk_verdict verdict = part(job, &before);
            if (verdict != PTK_VERDICT_OK || job->sink->full) {
                return verdict;
            }
        }
        put_token(job, text, &match);
        if (job->sink->full) {
            return PTK_VERDICT_OK;
        }
        done = match.end;
    }
    if (done < text->len) {
        const source_text rest = slice(text, done, text->len);
        return part(job, &rest);
    }
    return PTK_VERDICT_OK;
}

/* ---- one sequence --------------------------------------------------------------------------- */

static enum ptk_verdict encode_part(const struct job *job, const source_text *part)
{
    return encode_section(job, part);
}

/* The way of every text: normalized as a whole, cut at tokens, cut into pieces. */
static enum ptk_verdict normalize_whole(const struct job *job, const source_text *part)
{
    const struct ptk_tokenizer *tokenizer = job->tokenizer;
    if (!tokenizer->normalizes) {
        return cut_at_tokens(job, &tokenizer->added_normalized, part, encode_part);
    }
    const struct ptk_norm_section section = {
        .bytes = part->bytes,
        .len = part->len,
        .origin = part->origin,
        .align = job->sink->offsets != NULL || tokenizer->needs_align || job->sink->plain.count > 0,
    };
    source_text normalized;
    const enum ptk_verdict verdict =
        ptk_norm_run(tokenizer->norm, job->work->norm, &section, &normalized);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    return cut_at_tokens(job, &tokenizer->added_normalized, &normalized, encode_part);
}

/* ---- segments of the original text ---------------------------------------------------------- */

/* Most ids of a segment that are gathered to be kept. */
#define SEGMENT_IDS_MAX 64u

/* Longest segment whose piece is made the short way. */
#define SEGMENT_PIECE_MAX 512u

/* A segment that is not known: as one piece where that is plain to see, or the way of every text.
 */
static enum ptk_verdict run_segment(const struct job *job, const source_text *text,
                                    struct ptk_span span)
{
    const size_t len = span.end - span.begin;
    uint8_t bytes[SEGMENT_PIECE_MAX + 64];
    const size_t piece_len =
        len > SEGMENT_PIECE_MAX || job->need_ends
            ? 0
            : ptk_segments_piece(job->tokenizer->segments, text->bytes + span.begin, len, bytes,
                                 sizeof bytes);
    if (piece_len == 0) {
        const source_text segment = slice(text, span.begin, span.end);
        return normalize_whole(job, &segment);
    }
    const source_text piece = {.bytes = bytes, .len = piece_len};
    if (job->tokenizer->encoder.algorithm != PTK_IMAGE_ALGORITHM_UNIGRAM) {
        struct ptk_encoder_ids ids;
        return encode_piece(job, &piece, 0, piece_len, PTK_PART_WHOLE, &ids);
    }
    return unigram_piece(job, &piece, (struct ptk_span){0, (uint32_t)piece_len});
}

/* What the whole pipeline makes of one segment; `*count` is SIZE_MAX where that is too much. */
static enum ptk_verdict encode_segment(const struct job *job, const source_text *text,
                                       struct ptk_span span, uint32_t *ids, size_t *count)
{
    struct sink gathered = {.ids = ids, .cap = SEGMENT_IDS_MAX};
    gathered.end = gathered.cap;
    gathered.fast_end = gathered.cap;
    struct job gather = *job;
    gather.sink = &gathered;
    const enum ptk_verdict verdict = run_segment(&gather, text, span);
    *count = gathered.full ? SIZE_MAX : gathered.len;
    return verdict;
}

/* Segments on their way, as in `struct batch`. */
struct segment_batch {
    const struct ptk_span *spans;
    size_t count;
    struct ptk_piece_key key[BATCH_PIECES];
    void *place[BATCH_PIECES]; /* line of the short table or pair of the long one */
};

static enum ptk_verdict short_segment_miss(const struct job *job, const source_text *text,
                                           struct ptk_span span, struct ptk_piece_key key,
                                           struct ptk_image_piece *line)
{
    uint32_t ids[SEGMENT_IDS_MAX];
    size_t count;
    const enum ptk_verdict verdict = encode_segment(job, text, span, ids, &count);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (count == SIZE_MAX) {
        return run_segment(job, text, span);
    }
    if (count > 0 && count <= PTK_IMAGE_PIECE_IDS_MAX) {
        ptk_cache_put(line, key, ids, count);
    }
    const struct ptk_encoder_ids result = {.ids = ids, .count = count};
    put_ids(job, text, span.begin, &result);
    return PTK_VERDICT_OK;
}

static enum ptk_verdict long_segment(const struct job *job, const source_text *text,
                                     struct ptk_span span, struct ptk_cache_long *pair)
{
    const struct ptk_cache_long_key key =
        ptk_cache_long_key_make(text->bytes + span.begin, span.end - span.begin, false);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    uint32_t ids[SEGMENT_IDS_MAX];
    size_t count;
    const enum ptk_verdict verdict = encode_segment(job, text, span, ids, &count);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (count == SIZE_MAX) {
        return run_segment(job, text, span);
    }
    if (count > 0 && count <= PTK_CACHE_LONG_IDS_MAX) {
        ptk_cache_long_put(pair, &key, ids, count);
    }
    const struct ptk_encoder_ids result = {.ids = ids, .count = count};
    put_ids(job, text, span.begin, &result);
    return PTK_VERDICT_OK;
}

/* Makes the keys of a batch and asks for their cache lines. */
static void segments_prepare(const struct job *job, const source_text *text,
                             struct segment_batch *batch)
{
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    for (size_t i = 0; i < batch->count; i++) {
        const struct ptk_span span = batch->spans[i];
        const size_t len = span.end - span.begin;
        if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
            batch->key[i] = piece_key(text, span.begin, len);
            batch->place[i] = ptk_cache_line(job->cache, seed, batch->key[i]);
            ptk_prefetch(batch->place[i]);
        } else if (len <= PTK_CACHE_LONG_KEY_MAX) {
            const struct ptk_cache_long_key key =
                ptk_cache_long_key_make(text->bytes + span.begin, len, false);
            batch->place[i] = ptk_cache_long_pair(job->cache, seed, &key);
            ptk_prefetch(batch->place[i]);
        }
    }
}

static enum ptk_verdict segments_flush(const struct job *job, const source_text *text,
                                       const struct segment_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const struct ptk_span span = batch->spans[i];
        const size_t len = span.end - span.begin;
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
            struct ptk_image_piece *line = batch->place[i];
            const struct ptk_image_piece *slot = ptk_cache_find(line, batch->key[i]);
            if (PTK_LIKELY(slot != NULL)) {
                put_slot(job, text, span.begin, slot);
            } else {
                verdict = short_segment_miss(job, text, span, batch->key[i], line);
            }
        } else if (len <= PTK_CACHE_LONG_KEY_MAX) {
            verdict = long_segment(job, text, span, batch->place[i]);
        } else {
            verdict = run_segment(job, text, span);
        }
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || job->sink->full)) {
            return verdict;
        }
    }
    return PTK_VERDICT_OK;
}

static enum ptk_verdict encode_segments(const struct job *job, const source_text *text)
{
    struct ptk_segments_cursor cursor = {.pos = 0};
    struct ptk_span spans[PTK_SEGMENTS_CAP_MIN];
    struct segment_batch batch;
    size_t count;
    while ((count = ptk_segments_next(job->tokenizer->segments, &cursor, text->bytes, text->len,
                                      spans, PTK_ARRAY_LEN(spans))) > 0) {
        for (size_t done = 0; done < count; done += batch.count) {
            ptk_pause_point();
            batch.spans = spans + done;
            batch.count = ptk_min_size(count - done, BATCH_PIECES);
            segments_prepare(job, text, &batch);
            const enum ptk_verdict verdict = segments_flush(job, text, &batch);
            if (verdict != PTK_VERDICT_OK || job->sink->full) {
                return verdict;
            }
        }
    }
    return PTK_VERDICT_OK;
}

/* Whether words are found in a section as it stands: not where offsets into it are wanted. */
static bool reads_words(const struct job *job, const source_text *part)
{
    return job->tokenizer->words.active && job->sink->offsets == NULL && part->len > 0 &&
           (job->skip_added || job->tokenizer->image->added_normalized == NULL);
}

static enum ptk_verdict normalize_part(const struct job *job, const source_text *part)
{
    const struct ptk_tokenizer *tokenizer = job->tokenizer;
    if (reads_words(job, part)) {
        uint8_t bytes[LEAD_LEN_MAX];
        size_t len = 0;
        const bool leads =
            ptk_words_leads(&tokenizer->words, part->bytes, part->len, part->origin);
        if (!leads || lead_word(tokenizer, part, bytes, &len)) {
            const source_text head = {.bytes = bytes, .len = len + 1};
            return encode_words(job, part, &head, len);
        }
    }
    /* Neither offsets nor ranges are known of a segment that is looked up. */
    const bool in_segments = tokenizer->segments != NULL && job->sink->offsets == NULL &&
                             job->sink->plain.count == 0;
    return in_segments ? encode_segments(job, part) : normalize_whole(job, part);
}

static enum ptk_verdict encode_sequence(const struct job *job, const uint8_t *bytes, size_t len)
{
    const source_text text = {.bytes = bytes, .len = len};
    return cut_at_tokens(job, &job->tokenizer->added_raw, &text, normalize_part);
}

/* ---- trims and code points ------------------------------------------------------------------ */

/* Turns byte positions of one text into code points; positions mostly ascend, so each step is
 * short. */
struct char_cursor {
    const uint8_t *text;
    size_t len;
    size_t pos;    /* bytes */
    size_t chars;  /* characters that begin before pos */
    size_t walked; /* bytes since the last look at the pause, to and fro */
};

/* The index of the character that holds byte `pos`, or that of the end. */
static uint32_t char_index(struct char_cursor *cursor, size_t pos)
{
    while (cursor->pos != pos) {
        const bool back = pos < cursor->pos;
        const size_t left = back ? cursor->pos - pos : pos - cursor->pos;
        const size_t some = ptk_min_size(left, PTK_PAUSE_LEN - cursor->walked);
        const size_t begin = back ? cursor->pos - some : cursor->pos;
        size_t chars = 0;
        for (size_t i = begin; i < begin + some; i++) {
            chars += !is_continuation(cursor->text[i]);
        }
        cursor->pos = back ? begin : begin + some;
        cursor->chars = back ? cursor->chars - chars : cursor->chars + chars;
        cursor->walked += some;
        if (PTK_UNLIKELY(cursor->walked == PTK_PAUSE_LEN)) {
            cursor->walked = 0;
            ptk_pause_point();
        }
    }
    const bool inside = pos < cursor->len && is_continuation(cursor->text[pos]);
    return (uint32_t)(cursor->chars - inside);
}

/* Spaces at both ends of a token, as the reference counts them for trimming. */
struct spaces {
    size_t leading;
    size_t trailing;
};

static bool is_trimmed(const struct ptk_tokenizer *tokenizer, const uint8_t *at, uint32_t *len)
{
    const uint32_t code_point = ptk_utf8_decode(at, len);
    return code_point == BYTE_LEVEL_SPACE ||
           (ptk_unicode_mask(tokenizer->added_raw.unicode, code_point) & PTK_UNICODE_WHITE) != 0;
}

static struct spaces count_spaces(const struct ptk_tokenizer *tokenizer, const uint8_t *text,
                                  size_t len)
{
    struct spaces spaces = {0, 0};
    size_t paused_at = 0;
    for (size_t i = 0; i < len;) {
        ptk_pause_pos(&paused_at, i);
        uint32_t step;
        if (!is_trimmed(tokenizer, text + i, &step)) {
            break;
        }
        spaces.leading++;
        i += step;
    }
    paused_at = len;
    for (size_t end = len; end > 0;) {
        ptk_pause_pos(&paused_at, end);
        uint32_t step;
        do {
            end--;
        } while (is_continuation(text[end]) && end > 0);
        if (!is_trimmed(tokenizer, text + end, &step)) {
            break;
        }
        spaces.trailing++;
    }
    return spaces;
}

/* The spaces of the token at an original span: an added token's text, or the key of a model's id.
 */
static struct spaces token_spaces(const struct ptk_tokenizer *tokenizer, uint32_t id,
                                  const uint8_t *text, struct ptk_span span)
{
    const struct ptk_image *image = tokenizer->image;
    if ((image->token_flags[id] & PTK_IMAGE_TOKEN_FLAGS_ADDED) != 0) {
        return count_spaces(tokenizer, text + span.begin, span.end - span.begin);
    }
    const uint8_t *key = image->vocab_key + image->vocab_key_offs[id];
    const size_t len = key_len(image, id);
    if (!tokenizer->encoder.keys_tell) {
        return count_spaces(tokenizer, key, len);
    }
    struct spaces spaces = {0, 0};
    while (spaces.leading < len && key[spaces.leading] == ' ') {
        spaces.leading++;
    }
    while (spaces.trailing < len && key[len - 1 - spaces.trailing] == ' ') {
        spaces.trailing++;
    }
    return spaces;
}

static struct ptk_span trim_span(struct ptk_span span, struct spaces spaces, bool keep_one)
{
    const size_t leading = keep_one && spaces.leading == 1 ? 0 : spaces.leading;
    span.begin = (uint32_t)ptk_min_size(span.begin + leading, span.end);
    if (span.end >= spaces.trailing) {
        span.end = (uint32_t)ptk_max_size(span.end - spaces.trailing, span.begin);
    }
    return span;
}

/* Brings the offsets of ids of one sequence into the form that was asked for. */
static void finish_offsets(const struct ptk_tokenizer *tokenizer, struct char_cursor *cursor,
                           bool chars, const uint32_t *ids, struct ptk_span *offsets, size_t count)
{
    const struct ptk_post *post = &tokenizer->post;
    const bool sentencepiece =
        tokenizer->image->header->source == PTK_IMAGE_SOURCE_SENTENCEPIECE;
    const size_t len = cursor->len;
    uint32_t turns = 0;
    for (size_t i = 0; i < count; i++) {
        ptk_pause_turn(&turns);
        const struct ptk_span bytes = offsets[i];
        struct ptk_span span = bytes;
        /* Most references leave positions behind the text alone. */
        if (chars && (bytes.begin < len || sentencepiece)) {
            span.begin = char_index(cursor, bytes.begin);
            span.end = char_index(cursor, ptk_min_size(bytes.end, len));
        }
        if (post->trim_count > 0) {
            const struct spaces spaces = token_spaces(tokenizer, ids[i], cursor->text, bytes);
            for (size_t k = 0; k < post->trim_count; k++) {
                const bool first = i == 0 || span.begin == 0;
                span = trim_span(span, spaces, first && post->trims[k].add_prefix_space);
            }
        }
        offsets[i] = span;
    }
}

/* ---- the item ------------------------------------------------------------------------------- */

/* One request on its way: what goes around the texts, and how many ids of each are wanted. */
struct item {
    const struct ptk_encode_request *request;
    const struct ptk_post_template *template;
    bool pair;
    bool add_specials;
    uint32_t first_id; /* beginning-of-text id, or PTK_IMAGE_NONE */
    uint32_t last_id;  /* end-of-text id, or PTK_IMAGE_NONE */
};

/* The text, or the pair. */
static struct char_cursor item_text(const struct item *item, size_t which)
{
    const struct ptk_encode_request *request = item->request;
    return which == PTK_POST_A
               ? (struct char_cursor){.text = request->text, .len = request->text_len}
               : (struct char_cursor){.text = request->pair, .len = request->pair_len};
}

static size_t special_count(const struct item *item)
{
    return (item->add_specials ? item->template->special_count : 0) +
           (item->first_id != PTK_IMAGE_NONE) + (item->last_id != PTK_IMAGE_NONE);
}

static enum ptk_verdict item_init(const struct ptk_tokenizer *tokenizer,
                                  const struct ptk_work *work,
                                  const struct ptk_encode_request *request, struct item *item)
{
    const struct ptk_image_config *config = tokenizer->image->config;
    const size_t text_len_max = work->limits.text_len_max;
    const bool pair = request->pair != NULL;
    *item = (struct item){
        .request = request,
        .template = pair ? &tokenizer->post.pair : &tokenizer->post.single,
        .pair = pair,
        .add_specials = (request->options & PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS) != 0,
        .first_id = PTK_IMAGE_NONE,
        .last_id = PTK_IMAGE_NONE,
    };
    if (request->text_len > text_len_max || (pair && request->pair_len > text_len_max)) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    if (request->checked) {
        PTK_DCHECK(ptk_utf8_valid(request->text, request->text_len));
    } else if (!ptk_utf8_valid(request->text, request->text_len) ||
               (pair && !ptk_utf8_valid(request->pair, request->pair_len))) {
        return PTK_VERDICT_BAD_UTF8;
    }
    if ((request->options & PTK_WIRE_OPTIONS_BOS) != 0) {
        item->first_id = config->bos_id;
        if (tokenizer->post.adds_specials || item->first_id == PTK_IMAGE_NONE) {
            return PTK_VERDICT_UNSUPPORTED;
        }
    }
    if ((request->options & PTK_WIRE_OPTIONS_EOS) != 0) {
        item->last_id = config->eos_id;
        if (tokenizer->post.adds_specials || item->last_id == PTK_IMAGE_NONE) {
            return PTK_VERDICT_UNSUPPORTED;
        }
    }
    return PTK_VERDICT_OK;
}

/* Which ids of a sequence are wanted. */
struct window {
    size_t skip;
    size_t len; /* SIZE_MAX: all */
};

static enum ptk_verdict encode_text(struct job *job, const struct item *item, size_t which,
                                    struct window window)
{
    struct sink *sink = job->sink;
    const struct char_cursor text = item_text(item, which);
    sink->skip = window.skip;
    sink->end = window.len < sink->cap - sink->len ? sink->len + window.len : sink->cap;
    sink->fast_end = sink->counting || sink->offsets != NULL || sink->skip > 0 ? 0 : sink->end;
    sink->plain.ranges = item->request->plain;
    sink->plain.count = item->request->plain_count;
    sink->plain.base = which == PTK_POST_A ? 0 : item->request->text_len;
    const enum ptk_verdict verdict = encode_sequence(job, text.text, text.len);
    const bool cut = sink->full;
    sink->full = false;
    if (verdict == PTK_VERDICT_OK && cut && window.len == SIZE_MAX) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    return verdict;
}

/* How many ids each sequence has, as far as `limit`. */
static enum ptk_verdict count_texts(const struct job *job, const struct item *item, size_t limit,
                                    struct ptk_post_lens *lens, size_t *hits)
{
    size_t *const out[] = {&lens->a, &lens->b};
    *lens = (struct ptk_post_lens){0, 0};
    *hits = 0;
    for (size_t which = PTK_POST_A; which <= (item->pair ? PTK_POST_B : PTK_POST_A); which++) {
        struct sink sink = {.cap = SIZE_MAX, .counting = true};
        struct job counting = *job;
        counting.sink = &sink;
        counting.need_ends = false;
        counting.look_up = true;
        const enum ptk_verdict verdict =
            encode_text(&counting, item, which, (struct window){0, limit});
        if (verdict != PTK_VERDICT_OK) {
            return verdict;
        }
        *out[which] = sink.len;
        *hits += sink.plain.hits;
    }
    return PTK_VERDICT_OK;
}

/* Counts the texts and applies the request's truncation to the counts; `full` are those before it.
 */
static enum ptk_verdict truncated_lens(const struct job *job, const struct item *item,
                                       struct ptk_post_lens *full, struct ptk_post_lens *kept,
                                       size_t *hits)
{
    const struct ptk_wire_truncation *truncation = item->request->truncation;
    /*
     * What is cut on the right need not be counted further than to see that it is cut, unless the
     * longer one of two texts has to be known.
     */
    const bool compared = item->pair && truncation != NULL && truncation->strategy == 0;
    const size_t limit = truncation != NULL && truncation->direction == 0 && !compared
                             ? (size_t)truncation->max_length + 1
                             : SIZE_MAX;
    const enum ptk_verdict verdict = count_texts(job, item, limit, full, hits);
    *kept = *full;
    if (verdict != PTK_VERDICT_OK || truncation == NULL) {
        return verdict;
    }
    return ptk_post_truncate(truncation, item->pair, special_count(item), kept);
}

/* Whether truncation cannot matter: over unchanged text an id stands for a byte at least. */
static bool surely_short(const struct ptk_tokenizer *tokenizer, const struct item *item)
{
    const struct ptk_encode_request *request = item->request;
    return tokenizer->scan && !tokenizer->normalizes && tokenizer->encoder.keys_tell &&
           request->truncation->strategy <= 2 && request->truncation->direction <= 1 &&
           request->text_len + request->pair_len + special_count(item) <=
               request->truncation->max_length;
}

/*
 * Whether truncation can be done by stopping, without counting first: the end of a single text is
 * cut, whatever its length, and the result has room.
 */
static bool cuts_by_stopping(const struct item *item, size_t cap)
{
    const struct ptk_wire_truncation *truncation = item->request->truncation;
    const size_t specials = special_count(item);
    return !item->pair && truncation->direction == 0 && truncation->strategy <= 1 &&
           truncation->max_length <= cap && truncation->max_length > specials &&
           truncation->stride < truncation->max_length - specials;
}

/* One array of the result from `begin` on gets `value`, if it is wanted. */
static void fill(uint8_t *array, size_t begin, size_t end, uint8_t value)
{
    if (array != NULL) {
        ptk_pause_fill(array + begin, value, end - begin);
    }
}

static enum ptk_verdict put_special(struct sink *sink, struct ptk_encoding *out, uint32_t id,
                                    uint8_t type_id)
{
    if (sink->len == sink->cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    fill(out->type_ids, sink->len, sink->len + 1, type_id);
    fill(out->special_tokens_mask, sink->len, sink->len + 1, 1);
    if (sink->offsets != NULL) {
        sink->offsets[sink->len] = (struct ptk_span){0, 0};
    }
    sink->ids[sink->len] = id;
    sink->len++;
    return PTK_VERDICT_OK;
}

static enum ptk_verdict put_text(struct job *job, const struct item *item,
                                 const struct ptk_post_item *entry, struct window window,
                                 struct ptk_encoding *out)
{
    struct sink *sink = job->sink;
    const size_t begin = sink->len;
    const enum ptk_verdict verdict = encode_text(job, item, entry->what, window);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    fill(out->type_ids, begin, sink->len, entry->type_id);
    fill(out->special_tokens_mask, begin, sink->len, 0);
    if (sink->offsets != NULL) {
        struct char_cursor cursor = item_text(item, entry->what);
        finish_offsets(job->tokenizer, &cursor,
                       (item->request->options & PTK_WIRE_OPTIONS_OFFSETS_CHARS) != 0,
                       sink->ids + begin, sink->offsets + begin, sink->len - begin);
    }
    return PTK_VERDICT_OK;
}

static enum ptk_verdict put_item(struct job *job, const struct item *item,
                                 const struct window windows[2], struct ptk_encoding *out)
{
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    if (item->first_id != PTK_IMAGE_NONE) {
        verdict = put_special(job->sink, out, item->first_id, 0);
    }
    for (size_t i = 0; i < item->template->item_count && verdict == PTK_VERDICT_OK; i++) {
        const struct ptk_post_item *entry = &item->template->items[i];
        if (entry->what != PTK_POST_SPECIAL) {
            verdict = put_text(job, item, entry, windows[entry->what], out);
        } else if (item->add_specials) {
            verdict = put_special(job->sink, out, entry->id, entry->type_id);
        }
    }
    if (item->last_id != PTK_IMAGE_NONE && verdict == PTK_VERDICT_OK) {
        verdict = put_special(job->sink, out, item->last_id, 0);
    }
    return verdict;
}

static struct job job_init(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                           struct ptk_cache *cache, uint32_t options)
{
    const uint32_t flags = tokenizer->image->config->flags;
    const bool parse = (options & PTK_WIRE_OPTIONS_PARSE_SPECIAL) != 0;
    return (struct job){
        .tokenizer = tokenizer,
        .work = work,
        .cache = cache,
        .skip_special = !parse || (options & PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS) != 0,
        .skip_added = (flags & PTK_IMAGE_FLAGS_NO_SPECIALS_IN_TEXT) != 0,
        .look_up = true,
    };
}

enum ptk_verdict ptk_tokenizer_encode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      struct ptk_cache *cache,
                                      const struct ptk_encode_request *request,
                                      struct ptk_encoding *out)
{
    PTK_DCHECK((request->outputs & PTK_WIRE_OUTPUTS_OFFSETS) == 0 || out->offsets != NULL);
    PTK_DCHECK((request->outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) == 0 || out->type_ids != NULL);
    out->len = 0;
    struct item item;
    enum ptk_verdict verdict = item_init(tokenizer, work, request, &item);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    struct sink sink = {.ids = out->ids, .offsets = out->offsets, .cap = out->cap};
    struct job job = job_init(tokenizer, work, cache, request->options);
    job.sink = &sink;
    job.need_ends = out->offsets != NULL && !tokenizer->encoder.ids_tell;
    job.look_up = !job.need_ends;
    struct window windows[2] = {{0, SIZE_MAX}, {0, SIZE_MAX}};
    if (request->truncation != NULL && surely_short(tokenizer, &item)) {
        /* all ids */
    } else if (request->truncation != NULL && cuts_by_stopping(&item, out->cap)) {
        windows[0].len = request->truncation->max_length - special_count(&item);
    } else if (request->truncation != NULL) {
        struct ptk_post_lens full;
        struct ptk_post_lens kept;
        size_t hits; /* counted again with the ids */
        verdict = truncated_lens(&job, &item, &full, &kept, &hits);
        if (verdict != PTK_VERDICT_OK) {
            return verdict;
        }
        if (kept.a + kept.b + special_count(&item) > out->cap) {
            return PTK_VERDICT_REPLY_TOO_LONG;
        }
        const bool left = request->truncation->direction != 0;
        windows[0] = (struct window){left ? full.a - kept.a : 0, kept.a};
        windows[1] = (struct window){left ? full.b - kept.b : 0, kept.b};
    }
    verdict = put_item(&job, &item, windows, out);
    if (verdict == PTK_VERDICT_OK) {
        out->len = sink.len;
        out->hits = sink.plain.hits;
    }
    return verdict;
}

/* ---- windows -------------------------------------------------------------------------------- */

/* How the ids of one text are cut into windows. */
struct cut {
    size_t begin; /* of the text in the whole ids */
    size_t len;
    size_t kept; /* ids of a window */
    size_t step; /* from one window to the next */
    size_t count;
    bool left;
};

static struct cut cut_init(const struct ptk_wire_truncation *truncation, size_t begin, size_t len,
                           size_t kept)
{
    struct cut cut = {.begin = begin, .len = len, .kept = kept, .count = 1};
    if (kept < len && kept == 0) {
        cut.count = 2; /* nothing, and behind it the whole text */
    } else if (kept < len) {
        PTK_ASSERT(truncation->stride < kept); /* else ptk_post_truncate() refuses */
        cut.left = truncation->direction != 0;
        cut.step = kept - truncation->stride;
        cut.count += (len - kept + cut.step - 1) / cut.step;
    }
    return cut;
}

/* Window `idx` as ids of the whole texts. */
static struct window cut_window(const struct cut *cut, size_t idx)
{
    if (cut->kept == 0) {
        return (struct window){cut->begin, idx == 0 ? 0 : cut->len};
    }
    const size_t shift = idx * cut->step;
    const size_t len = ptk_min_size(cut->kept, cut->len - shift);
    return (struct window){cut->begin + (cut->left ? cut->len - shift - len : shift), len};
}

/* The texts of an item as a whole, and where its windows go. */
struct windows_job {
    const struct ptk_tokenizer *tokenizer;
    const struct item *item;
    struct ptk_windows *windows;
    struct ptk_encoding *out;
    struct sink sink;              /* of out */
    struct char_cursor cursors[2]; /* by text: windows follow each other closely */
    struct cut cuts[2];
};

static enum ptk_verdict put_rows(struct windows_job *job, const struct ptk_post_item *entry,
                                 size_t idx)
{
    struct sink *sink = &job->sink;
    const struct ptk_encoding *whole = &job->windows->whole;
    const struct window rows = cut_window(&job->cuts[entry->what], idx);
    const size_t begin = sink->len;
    if (rows.len > sink->cap - begin) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    const uint8_t type_id =
        ptk_post_type_id(&job->tokenizer->post, entry, idx == 0, job->item->add_specials);
    sink->len += rows.len;
    ptk_pause_copy(sink->ids + begin, whole->ids + rows.skip, rows.len * sizeof *sink->ids);
    fill(job->out->type_ids, begin, sink->len, type_id);
    fill(job->out->special_tokens_mask, begin, sink->len, 0);
    if (sink->offsets != NULL) {
        ptk_pause_copy(sink->offsets + begin, whole->offsets + rows.skip,
                       rows.len * sizeof *sink->offsets);
        finish_offsets(job->tokenizer, &job->cursors[entry->what],
                       (job->item->request->options & PTK_WIRE_OPTIONS_OFFSETS_CHARS) != 0,
                       sink->ids + begin, sink->offsets + begin, rows.len);
    }
    return PTK_VERDICT_OK;
}

/* One window of the item: window idx[0] of the first text with window idx[1] of the second. */
static enum ptk_verdict put_window(struct windows_job *job, const size_t idx[2])
{
    const struct item *item = job->item;
    struct ptk_windows *windows = job->windows;
    struct sink *sink = &job->sink;
    const size_t begin = sink->len;
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    ptk_pause_point();
    if (windows->count == windows->cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    if (item->first_id != PTK_IMAGE_NONE) {
        verdict = put_special(sink, job->out, item->first_id, 0);
    }
    for (size_t i = 0; i < item->template->item_count && verdict == PTK_VERDICT_OK; i++) {
        const struct ptk_post_item *entry = &item->template->items[i];
        if (entry->what != PTK_POST_SPECIAL) {
            verdict = put_rows(job, entry, idx[entry->what]);
        } else if (item->add_specials) {
            verdict = put_special(sink, job->out, entry->id, entry->type_id);
        }
    }
    if (item->last_id != PTK_IMAGE_NONE && verdict == PTK_VERDICT_OK) {
        verdict = put_special(sink, job->out, item->last_id, 0);
    }
    windows->lens[windows->count] = (uint32_t)(sink->len - begin);
    windows->count++;
    return verdict;
}

/* All windows in the reference's order: every later window of the text that stands first with every
 * window of the other; then its first window with the later ones of the other. */
static enum ptk_verdict put_windows(struct windows_job *job)
{
    const struct ptk_post_template *template = job->item->template;
    size_t counts[2] = {1, 1};
    size_t front = PTK_POST_SPECIAL;
    for (size_t i = 0; i < template->item_count; i++) {
        const size_t what = template->items[i].what;
        if (what != PTK_POST_SPECIAL) {
            counts[what] = job->cuts[what].count;
            front = front == PTK_POST_SPECIAL ? what : front;
        }
    }
    front = front == PTK_POST_SPECIAL ? 0 : front;
    const size_t back = 1 - front;
    size_t idx[2] = {0, 0};
    enum ptk_verdict verdict = put_window(job, idx);
    for (idx[front] = 1; idx[front] < counts[front]; idx[front]++) {
        for (idx[back] = 0; idx[back] < counts[back] && verdict == PTK_VERDICT_OK; idx[back]++) {
            verdict = put_window(job, idx);
        }
    }
    idx[front] = 0;
    for (idx[back] = 1; idx[back] < counts[back] && verdict == PTK_VERDICT_OK; idx[back]++) {
        verdict = put_window(job, idx);
    }
    return verdict;
}

/* The ids of the uncut texts, one after the other. */
static enum ptk_verdict encode_whole(struct job *job, const struct item *item,
                                     struct ptk_windows *windows, struct ptk_post_lens *lens)
{
    struct ptk_encoding *whole = &windows->whole;
    struct sink sink = {.ids = whole->ids, .offsets = whole->offsets, .cap = whole->cap};
    const struct window all = {0, SIZE_MAX};
    job->sink = &sink;
    *lens = (struct ptk_post_lens){0, 0};
    enum ptk_verdict verdict = encode_text(job, item, PTK_POST_A, all);
    lens->a = sink.len;
    if (verdict == PTK_VERDICT_OK && item->pair) {
        verdict = encode_text(job, item, PTK_POST_B, all);
        lens->b = sink.len - lens->a;
    }
    whole->len = sink.len;
    whole->hits = sink.plain.hits;
    return verdict;
}

enum ptk_verdict ptk_tokenizer_encode_windows(const struct ptk_tokenizer *tokenizer,
                                              struct ptk_work *work, struct ptk_cache *cache,
                                              const struct ptk_encode_request *request,
                                              struct ptk_windows *windows, struct ptk_encoding *out)
{
    PTK_ASSERT(request->truncation != NULL);
    PTK_ASSERT((out->offsets == NULL) == (windows->whole.offsets == NULL));
    out->len = 0;
    windows->count = 0;
    struct item item;
    enum ptk_verdict verdict = item_init(tokenizer, work, request, &item);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    struct job job = job_init(tokenizer, work, cache, request->options);
    job.need_ends = out->offsets != NULL && !tokenizer->encoder.ids_tell;
    job.look_up = !job.need_ends;
    struct ptk_post_lens full;
    verdict = encode_whole(&job, &item, windows, &full);
    struct ptk_post_lens kept = full;
    if (verdict == PTK_VERDICT_OK) {
        verdict = ptk_post_truncate(request->truncation, item.pair, special_count(&item), &kept);
    }
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    struct windows_job all = {
        .tokenizer = tokenizer,
        .item = &item,
        .windows = windows,
        .out = out,
        .sink = {.ids = out->ids, .offsets = out->offsets, .cap = out->cap},
        .cursors = {item_text(&item, PTK_POST_A), item_text(&item, PTK_POST_B)},
        .cuts = {cut_init(request->truncation, 0, full.a, kept.a),
                 cut_init(request->truncation, full.a, full.b, kept.b)},
    };
    verdict = put_windows(&all);
    if (verdict == PTK_VERDICT_OK) {
        out->len = all.sink.len;
        out->hits = windows->whole.hits;
    }
    return verdict;
}

enum ptk_verdict ptk_tokenizer_count(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                     struct ptk_cache *cache,
                                     const struct ptk_encode_request *request, size_t *count,
                                     size_t *hits)
{
    struct item item;
    enum ptk_verdict verdict = item_init(tokenizer, work, request, &item);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const struct job job = job_init(tokenizer, work, cache, request->options);
    struct ptk_post_lens full;
    struct ptk_post_lens kept;
    verdict = truncated_lens(&job, &item, &full, &kept, hits);
    *count = kept.a + kept.b + special_count(&item);
    return verdict;
}
