/*
 * Pieces one by one: through the cache, part by part, and into the sink.
 */
#include "algo/ptk_encode_job.h"
#include "base/ptk_pause.h"

/* By length: which bytes of 16 belong to a piece. */
#define LOW_MASK(len)  ((len) >= 8 ? UINT64_MAX : (1ull << 8 * ((len)&7)) - 1)
#define HIGH_MASK(len) ((len) <= 8 ? 0 : (1ull << 8 * (((len)-8) & 7)) - 1)
#define KEY_MASK(len)                                                                              \
    {                                                                                              \
        LOW_MASK(len), HIGH_MASK(len)                                                              \
    }
PTK_ALIGNED_LINE const struct ptk_piece_key ptk_key_masks[16] = {
    KEY_MASK(0),  KEY_MASK(1),  KEY_MASK(2),  KEY_MASK(3),  KEY_MASK(4),  KEY_MASK(5),
    KEY_MASK(6),  KEY_MASK(7),  KEY_MASK(8),  KEY_MASK(9),  KEY_MASK(10), KEY_MASK(11),
    KEY_MASK(12), KEY_MASK(13), KEY_MASK(14), KEY_MASK(15),
};

/* By length: what else a key has. */
PTK_ALIGNED_LINE const struct ptk_piece_key ptk_key_lens[16] = {
    {0, 0ull << 56},  {0, 1ull << 56},  {0, 2ull << 56},  {0, 3ull << 56},
    {0, 4ull << 56},  {0, 5ull << 56},  {0, 6ull << 56},  {0, 7ull << 56},
    {0, 8ull << 56},  {0, 9ull << 56},  {0, 10ull << 56}, {0, 11ull << 56},
    {0, 12ull << 56}, {0, 13ull << 56}, {0, 14ull << 56}, {0, 15ull << 56},
};

/* ---- offsets -------------------------------------------------------------------------------- */

/* The original bytes of text[begin..end): whole characters, as the reference aligns them. */
static struct ptk_span original_span(const ptk_source_text *text, size_t begin, size_t end)
{
    if (text->align != NULL) {
        if (begin == end) {
            return (struct ptk_span){(uint32_t)begin, (uint32_t)end};
        }
        return (struct ptk_span){text->align[begin].begin, text->align[end - 1].end};
    }
    while (begin > 0 && begin < text->len && ptk_is_continuation(text->bytes[begin])) {
        begin--;
    }
    while (end < text->len && ptk_is_continuation(text->bytes[end])) {
        end++;
    }
    return (struct ptk_span){(uint32_t)(text->origin + begin), (uint32_t)(text->origin + end)};
}

/* ---- ids into the sink ---------------------------------------------------------------------- */

/* Writes one id; false when no more are wanted. */
static inline bool put_id(struct ptk_sink *sink, uint32_t id, struct ptk_span span)
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
void ptk_put_ids(const struct ptk_encode_job *job, const ptk_source_text *text, size_t begin,
                 const struct ptk_encoder_ids *ids)
{
    struct ptk_sink *sink = job->sink;
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
                ids->ends != NULL ? begin + ids->ends[i] : from + ptk_key_len(image, ids->ids[i]);
            span = original_span(text, from, ptk_min_size(end, text->len));
            from = end;
        }
        if (!put_id(sink, ids->ids[i], span)) {
            return;
        }
    }
}

/* The ids of a cache's entry are too few for a pause. */
_Static_assert(PTK_CACHE_LONG_IDS_MAX < PTK_PAUSE_TURNS, "ptk_put_ids makes no pause");
_Static_assert(PTK_IMAGE_PIECE_IDS_MAX < PTK_PAUSE_TURNS, "ptk_put_ids makes no pause");

/* ---- pieces --------------------------------------------------------------------------------- */

/* A piece or part that neither the image nor the cache knows. */
enum ptk_verdict ptk_piece_encode(const struct ptk_encode_job *job, const ptk_source_text *text,
                                  size_t begin, size_t len, enum ptk_part part,
                                  struct ptk_encoder_ids *ids)
{
    if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, text->bytes + begin, len,
                         part, ids)) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    ptk_put_ids(job, text, begin, ids);
    return PTK_VERDICT_OK;
}

/* A short piece or part by the model; then its line of the cache, which lacks it, knows it. */
static enum ptk_verdict learn_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                                   struct ptk_span span, enum ptk_part part,
                                   struct ptk_piece_key key, struct ptk_image_piece *line)
{
    struct ptk_encoder_ids ids;
    const enum ptk_verdict verdict =
        ptk_piece_encode(job, text, span.begin, span.end - span.begin, part, &ids);
    if (verdict == PTK_VERDICT_OK && ptk_may_keep(&ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        ptk_cache_put(line, key, ids.ids, ids.count);
    }
    return verdict;
}

/* The same for one that the cache may have. */
enum ptk_verdict ptk_piece_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_span span, enum ptk_part part, struct ptk_piece_key key)
{
    struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    const struct ptk_image_piece *slot = ptk_cache_find(line, key);
    if (slot != NULL) {
        ptk_put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    return learn_part(job, text, span, part, key, line);
}

/* The same for one that only the table for longer ones can hold, if that. */
enum ptk_verdict ptk_piece_long_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, enum ptk_part part)
{
    struct ptk_encoder_ids ids;
    const size_t len = span.end - span.begin;
    if (len > PTK_CACHE_LONG_KEY_MAX || job->need_ends) {
        return ptk_piece_encode(job, text, span.begin, len, part, &ids);
    }
    const struct ptk_cache_long_key key = ptk_long_key(job, text, span, part);
    struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        ptk_put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    const enum ptk_verdict verdict = ptk_piece_encode(job, text, span.begin, len, part, &ids);
    if (verdict == PTK_VERDICT_OK && ptk_may_keep(&ids, PTK_CACHE_LONG_IDS_MAX)) {
        ptk_cache_long_put(pair, &key, ids.ids, ids.count);
    }
    return verdict;
}

/* The image's slot of a part, unless only a whole piece is that token. */
const struct ptk_image_piece *ptk_piece_known_inner(const struct ptk_encoder *encoder,
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
static enum ptk_verdict encode_inner(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span)
{
    const size_t len = span.end - span.begin;
    if (len > PTK_IMAGE_PIECE_KEY_MAX || job->need_ends) {
        return ptk_piece_long_part(job, text, span, PTK_PART_INNER);
    }
    struct ptk_piece_key key = ptk_text_key(text, span.begin, len);
    const struct ptk_image_piece *slot = ptk_piece_known_inner(&job->tokenizer->encoder, key);
    if (slot != NULL) {
        ptk_put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    if (job->tokenizer->encoder.ignore_merges) {
        key.high |= PTK_CACHE_INNER;
    }
    return ptk_piece_part(job, text, span, PTK_PART_INNER, ptk_marked_key(job, key));
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

size_t ptk_piece_cuts(const struct ptk_encode_job *job, const uint8_t *piece, size_t len,
                      uint32_t ends[PTK_CACHE_LONG_KEY_MAX])
{
    size_t pos = 0;
    if (!job->tokenizer->words.active && is_ascii(piece, len)) {
        ends[0] = (uint32_t)len;
        return 1;
    }
    return ptk_cuts_scan(&job->tokenizer->cuts, piece, len, &pos, ends, PTK_CACHE_LONG_KEY_MAX);
}

/* The ids of a piece that was encoded in parts: at most one for each byte, and what is copied too
 * much behind them. */
struct parts_ids {
    uint32_t ids[PTK_CACHE_LONG_KEY_MAX + PTK_CACHE_LONG_IDS_MAX];
    size_t count;
};

/*
 * A piece of up to PTK_CACHE_LONG_KEY_MAX bytes part by part. False where it has no safe cut, or is
 * a token as a whole: nothing has been done then.
 */
static bool encode_parts(const struct ptk_encode_job *job, const ptk_source_text *text,
                         struct ptk_span span, struct parts_ids *parts)
{
    const uint8_t *piece = text->bytes + span.begin;
    const size_t len = span.end - span.begin;
    uint32_t ends[PTK_CACHE_LONG_KEY_MAX];
    const size_t count = ptk_piece_cuts(job, piece, len, ends);
    if (count == 1 ||
        ptk_encoder_token(&job->tokenizer->encoder, piece, len, PTK_PART_WHOLE) != PTK_IMAGE_NONE) {
        return false;
    }
    struct ptk_sink gathered = {.ids = parts->ids, .cap = PTK_ARRAY_LEN(parts->ids)};
    gathered.end = gathered.cap;
    gathered.fast_end = gathered.cap;
    struct ptk_encode_job gather = *job;
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
enum ptk_verdict ptk_piece_short(const struct ptk_encode_job *job, const ptk_source_text *text,
                                 struct ptk_span span, struct ptk_piece_key key)
{
    struct ptk_image_piece *line = ptk_cache_line(job->cache, &job->tokenizer->seed, key);
    const struct ptk_image_piece *slot = ptk_cache_find(line, key);
    if (slot != NULL) {
        ptk_put_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    struct parts_ids parts;
    if (!encode_parts(job, text, span, &parts)) {
        return learn_part(job, text, span, PTK_PART_WHOLE, key, line);
    }
    const struct ptk_encoder_ids ids = {.ids = parts.ids, .count = parts.count};
    if (ptk_may_keep(&ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        ptk_cache_put(line, key, ids.ids, ids.count);
    }
    ptk_put_ids(job, text, span.begin, &ids);
    return PTK_VERDICT_OK;
}

/* The same for a longer one. */
enum ptk_verdict ptk_piece_long(const struct ptk_encode_job *job, const ptk_source_text *text,
                                struct ptk_span span)
{
    if (span.end - span.begin > PTK_CACHE_LONG_KEY_MAX || job->need_ends) {
        return ptk_piece_long_part(job, text, span, PTK_PART_WHOLE);
    }
    const struct ptk_cache_long_key key = ptk_long_key(job, text, span, PTK_PART_WHOLE);
    struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, &job->tokenizer->seed, &key);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        ptk_put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    struct parts_ids parts;
    if (!encode_parts(job, text, span, &parts)) {
        return ptk_piece_long_part(job, text, span, PTK_PART_WHOLE);
    }
    const struct ptk_encoder_ids ids = {.ids = parts.ids, .count = parts.count};
    if (ptk_may_keep(&ids, PTK_CACHE_LONG_IDS_MAX)) {
        ptk_cache_long_put(pair, &key, ids.ids, ids.count);
    }
    ptk_put_ids(job, text, span.begin, &ids);
    return PTK_VERDICT_OK;
}
