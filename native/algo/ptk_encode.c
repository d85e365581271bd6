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
#include "algo/ptk_batch.h"
#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

/* A mark and the first word of a text, where they are put together. */
#define LEAD_LEN_MAX 64u

/* The character of the byte-level alphabet that stands for a space: U+0120. */
#define BYTE_LEVEL_SPACE 0x120u

/* ---- pieces of a Unigram model -------------------------------------------------------------- */

/*
 * Scores add up from the beginning of a piece, so that a part between two safe cuts is encoded
 * alone only where no decision in it was close: then rounding cannot change one, whatever was added
 * up before. From the first part on that is close the rest comes from the piece as a whole.
 */

/* The ids of a short or longer part where the cache has them; their number, or 0. */
static inline size_t find_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                               struct ptk_span span, const uint32_t **ids)
{
    const size_t len = span.end - span.begin;
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
        const struct ptk_piece_key key = ptk_marked_key(job, ptk_text_key(text, span.begin, len));
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

static void keep_part(const struct ptk_encode_job *job, const ptk_source_text *text,
                      struct ptk_span span, const struct ptk_encoder_ids *ids)
{
    const size_t len = span.end - span.begin;
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (len <= PTK_IMAGE_PIECE_KEY_MAX && ptk_may_keep(ids, PTK_IMAGE_PIECE_IDS_MAX)) {
        const struct ptk_piece_key key = ptk_marked_key(job, ptk_text_key(text, span.begin, len));
        ptk_cache_put(ptk_cache_line(job->cache, seed, key), key, ids->ids, ids->count);
    } else if (len > PTK_IMAGE_PIECE_KEY_MAX && len <= PTK_CACHE_LONG_KEY_MAX &&
               ptk_may_keep(ids, PTK_CACHE_LONG_IDS_MAX)) {
        const struct ptk_cache_long_key key =
            ptk_cache_long_key_make(text->bytes + span.begin, len, true);
        ptk_cache_long_put(ptk_cache_long_pair(job->cache, seed, &key), &key, ids->ids, ids->count);
    }
}

/* What follows the first `done` ids of a piece. */
static enum ptk_verdict unigram_rest(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, size_t done)
{
    struct ptk_encoder_ids ids;
    if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, text->bytes + span.begin,
                         span.end - span.begin, PTK_PART_WHOLE, &ids)) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    PTK_ASSERT(done <= ids.count);
    const struct ptk_encoder_ids rest = {.ids = ids.ids + done, .count = ids.count - done};
    ptk_put_ids(job, text, span.begin, &rest);
    return PTK_VERDICT_OK;
}

/* One piece: what the cache knows of it, and the model for the rest. */
static enum ptk_verdict unigram_piece(const struct ptk_encode_job *job, const ptk_source_text *text,
                                      struct ptk_span span)
{
    const struct ptk_unigram *unigram = &job->tokenizer->encoder.unigram;
    const size_t len = span.end - span.begin;
    const uint8_t *piece = text->bytes + span.begin;
    struct ptk_encoder_ids ids;
    if (job->need_ends || job->sink->offsets != NULL) {
        return ptk_piece_encode(job, text, span.begin, len, PTK_PART_WHOLE, &ids);
    }
    const bool in_parts = ptk_unigram_has_parts(unigram, len);
    size_t done = 0;
    for (size_t pos = 0; pos < len && !job->sink->full;) {
        ptk_pause_point();
        const size_t strange_len =
            in_parts ? ptk_unigram_cuts_strange(&unigram->cuts, piece, len, pos) : 0;
        if (strange_len > 0) {
            ids =
                (struct ptk_encoder_ids){.ids = &job->tokenizer->image->config->unk_id, .count = 1};
            ptk_put_ids(job, text, span.begin + pos, &ids);
            done++;
            pos += strange_len;
            continue;
        }
        const size_t cut = in_parts ? ptk_unigram_cuts_next(&unigram->cuts, piece, len, pos) : len;
        const struct ptk_span part = {span.begin + (uint32_t)pos, span.begin + (uint32_t)cut};
        ids = (struct ptk_encoder_ids){.ids = NULL};
        ids.count = find_part(job, text, part, &ids.ids);
        if (ids.count > 0) {
            ptk_put_ids(job, text, part.begin, &ids);
        } else {
            if (!ptk_encoder_run(&job->tokenizer->encoder, &job->work->encoder, piece + pos,
                                 cut - pos, PTK_PART_INNER, &ids)) {
                return PTK_VERDICT_TEXT_TOO_LONG;
            }
            if (pos > 0 && ids.is_close) {
                return unigram_rest(job, text, span, done);
            }
            ptk_put_ids(job, text, part.begin, &ids);
            keep_part(job, text, part, &ids);
        }
        done += ids.count;
        pos = cut;
    }
    return PTK_VERDICT_OK;
}

/* ---- sections ------------------------------------------------------------------------------- */

static enum ptk_verdict encode_scanned(const struct ptk_encode_job *job,
                                       const ptk_source_text *text)
{
    struct ptk_batch batch;
    ptk_batch_init(&batch);
    uint32_t *ends = job->work->ends;
    size_t pos = 0;
    uint32_t begin = 0;
    size_t count;
    while ((count = ptk_split_scan(job->tokenizer->split, text->bytes, text->len, &pos, ends,
                                   PTK_CHUNK_PIECES)) > 0) {
        const enum ptk_verdict verdict = ptk_batch_push_ends(job, text, &batch, begin, ends, count);
        if (verdict != PTK_VERDICT_OK || job->sink->full) {
            return verdict;
        }
        begin = ends[count - 1];
    }
    return ptk_batch_finish(job, text, &batch);
}

/*
 * The first word of a section with a mark before it, `head`; `*len` is how much of the section it
 * takes. False when no cut is near enough.
 */
static bool lead_word(const struct ptk_tokenizer *tokenizer, const ptk_source_text *section,
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
static enum ptk_verdict encode_words(const struct ptk_encode_job *job,
                                     const ptk_source_text *section, const ptk_source_text *head,
                                     size_t head_len)
{
    struct ptk_batch batch;
    ptk_batch_init(&batch);
    if (head_len > 0) {
        enum ptk_verdict verdict =
            ptk_batch_push(job, head, &batch, (struct ptk_span){0, (uint32_t)head->len});
        if (verdict == PTK_VERDICT_OK && !job->sink->full) {
            verdict = ptk_batch_finish(job, head, &batch);
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
        const enum ptk_verdict verdict =
            ptk_batch_push_ends(job, section, &batch, begin, ends, count);
        if (verdict != PTK_VERDICT_OK || job->sink->full) {
            return verdict;
        }
        begin = ends[count - 1];
    }
    return ptk_batch_finish(job, section, &batch);
}

static enum ptk_verdict encode_split(const struct ptk_encode_job *job,
                                     const ptk_source_text *section)
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
    struct ptk_batch batch;
    ptk_batch_init(&batch);
    size_t count;
    while ((count = ptk_split_next(&pieces, work->spans, PTK_CHUNK_PIECES)) > 0) {
        for (size_t i = 0; i < count; i++) {
            verdict = is_unigram ? unigram_piece(job, &pieces.text, work->spans[i])
                                 : ptk_batch_push(job, &pieces.text, &batch, work->spans[i]);
            if (verdict != PTK_VERDICT_OK || job->sink->full) {
                return verdict;
            }
        }
    }
    return ptk_batch_finish(job, &pieces.text, &batch);
}

static enum ptk_verdict encode_section(const struct ptk_encode_job *job,
                                       const ptk_source_text *section)
{
    if (section->len == 0) {
        return PTK_VERDICT_OK;
    }
    return job->tokenizer->scan ? encode_scanned(job, section) : encode_split(job, section);
}

/* The part of a text between two positions, as a text of its own. */
static ptk_source_text slice(const ptk_source_text *text, size_t begin, size_t end)
{
    return (ptk_source_text){
        .bytes = text->bytes + begin,
        .align = text->align != NULL ? text->align + begin : NULL,
        .len = end - begin,
        .origin = text->origin + begin,
    };
}

static void put_token(const struct ptk_encode_job *job, const ptk_source_text *text,
                      const struct ptk_added_match *match)
{
    const uint32_t end = (uint32_t)(match->end - match->begin);
    const struct ptk_encoder_ids ids = {.ids = &match->token->id, .ends = &end, .count = 1};
    ptk_put_ids(job, text, match->begin, &ids);
}

/* A part of the normalized text without tokens, or the whole of it. */
typedef enum ptk_verdict part_fn(const struct ptk_encode_job *job, const ptk_source_text *part);

/* Cuts a text at the added tokens, which go to the sink; what is between them goes to `part`. */
static enum ptk_verdict cut_at_tokens(const struct ptk_encode_job *job,
                                      const struct ptk_added *added, const ptk_source_text *text,
                                      part_fn *part)
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
            const ptk_source_text before = slice(text, done, match.begin);
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
        const ptk_source_text rest = slice(text, done, text->len);
        return part(job, &rest);
    }
    return PTK_VERDICT_OK;
}

/* ---- one sequence --------------------------------------------------------------------------- */

static enum ptk_verdict encode_part(const struct ptk_encode_job *job, const ptk_source_text *part)
{
    return encode_section(job, part);
}

/* The way of every text: normalized as a whole, cut at tokens, cut into pieces. */
static enum ptk_verdict normalize_whole(const struct ptk_encode_job *job,
                                        const ptk_source_text *part)
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
    ptk_source_text normalized;
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
static enum ptk_verdict run_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
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
        const ptk_source_text segment = slice(text, span.begin, span.end);
        return normalize_whole(job, &segment);
    }
    const ptk_source_text piece = {.bytes = bytes, .len = piece_len};
    if (job->tokenizer->encoder.algorithm != PTK_IMAGE_ALGORITHM_UNIGRAM) {
        struct ptk_encoder_ids ids;
        return ptk_piece_encode(job, &piece, 0, piece_len, PTK_PART_WHOLE, &ids);
    }
    return unigram_piece(job, &piece, (struct ptk_span){0, (uint32_t)piece_len});
}

/* What the whole pipeline makes of one segment; `*count` is SIZE_MAX where that is too much. */
static enum ptk_verdict encode_segment(const struct ptk_encode_job *job,
                                       const ptk_source_text *text, struct ptk_span span,
                                       uint32_t *ids, size_t *count)
{
    struct ptk_sink gathered = {.ids = ids, .cap = SEGMENT_IDS_MAX};
    gathered.end = gathered.cap;
    gathered.fast_end = gathered.cap;
    struct ptk_encode_job gather = *job;
    gather.sink = &gathered;
    const enum ptk_verdict verdict = run_segment(&gather, text, span);
    *count = gathered.full ? SIZE_MAX : gathered.len;
    return verdict;
}

/* Segments on their way, as in `struct ptk_batch`. */
struct segment_batch {
    const struct ptk_span *spans;
    size_t count;
    struct ptk_piece_key key[PTK_BATCH_PIECES];
    void *place[PTK_BATCH_PIECES]; /* line of the short table or pair of the long one */
};

/* The ids of a segment, gathered to be kept; `count` is SIZE_MAX where they are too many. */
struct segment_ids {
    size_t count;
    uint32_t ids[SEGMENT_IDS_MAX];
};

static enum ptk_verdict find_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, struct segment_ids *found);

/* A segment that the cache lacks: the word that it is without the sign at its end and that sign, or
 * by the pipeline. */
static enum ptk_verdict make_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, struct segment_ids *made)
{
    const uint32_t sign =
        job->need_ends
            ? PTK_IMAGE_NONE
            : ptk_signs_last(&job->tokenizer->signs, text->bytes + span.begin, ptk_span_len(span));
    if (sign == PTK_IMAGE_NONE) {
        return encode_segment(job, text, span, made->ids, &made->count);
    }
    const struct ptk_span word = {span.begin, span.end - 1};
    const enum ptk_verdict verdict = find_segment(job, text, word, made);
    if (verdict == PTK_VERDICT_OK && made->count < SEGMENT_IDS_MAX) {
        made->ids[made->count++] = sign;
    } else {
        made->count = SIZE_MAX;
    }
    return verdict;
}

/* A short segment that its line lacks; then the line has it, if that is possible. */
static enum ptk_verdict learn_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                      struct ptk_span span, struct ptk_piece_key key,
                                      struct ptk_image_piece *line, struct segment_ids *made)
{
    const enum ptk_verdict verdict = make_segment(job, text, span, made);
    if (verdict == PTK_VERDICT_OK && made->count > 0 && made->count <= PTK_IMAGE_PIECE_IDS_MAX) {
        ptk_cache_put(line, key, made->ids, made->count);
    }
    return verdict;
}

/* The same for a longer one and its pair of lines. */
static enum ptk_verdict learn_long_segment(const struct ptk_encode_job *job,
                                           const ptk_source_text *text, struct ptk_span span,
                                           const struct ptk_cache_long_key *key,
                                           struct ptk_cache_long *pair, struct segment_ids *made)
{
    const enum ptk_verdict verdict = make_segment(job, text, span, made);
    if (verdict == PTK_VERDICT_OK && made->count > 0 && made->count <= PTK_CACHE_LONG_IDS_MAX) {
        ptk_cache_long_put(pair, key, made->ids, made->count);
    }
    return verdict;
}

/* A segment of up to PTK_CACHE_LONG_KEY_MAX bytes, from the cache or made. */
static enum ptk_verdict find_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, struct segment_ids *found)
{
    const size_t len = ptk_span_len(span);
    const struct ptk_cache_seed *seed = &job->tokenizer->seed;
    if (len > PTK_IMAGE_PIECE_KEY_MAX) {
        const struct ptk_cache_long_key key =
            ptk_cache_long_key_make(text->bytes + span.begin, len, false);
        struct ptk_cache_long *pair = ptk_cache_long_pair(job->cache, seed, &key);
        const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
        if (slot == NULL) {
            return learn_long_segment(job, text, span, &key, pair, found);
        }
        memcpy(found->ids, slot->ids, sizeof slot->ids);
        found->count = ptk_cache_long_id_count(slot);
        return PTK_VERDICT_OK;
    }
    const struct ptk_piece_key key = ptk_text_key(text, span.begin, len);
    struct ptk_image_piece *line = ptk_cache_line(job->cache, seed, key);
    const struct ptk_image_piece *slot = ptk_cache_find(line, key);
    if (slot == NULL) {
        return learn_segment(job, text, span, key, line, found);
    }
    memcpy(found->ids, slot->ids, sizeof slot->ids);
    found->count = ptk_cache_id_count(slot);
    return PTK_VERDICT_OK;
}

/* Gives what was made to the sink. */
static enum ptk_verdict put_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                    struct ptk_span span, const struct segment_ids *made)
{
    if (PTK_UNLIKELY(made->count == SIZE_MAX)) {
        return run_segment(job, text, span);
    }
    const struct ptk_encoder_ids ids = {.ids = made->ids, .count = made->count};
    ptk_put_ids(job, text, span.begin, &ids);
    return PTK_VERDICT_OK;
}

static enum ptk_verdict short_segment_miss(const struct ptk_encode_job *job,
                                           const ptk_source_text *text, struct ptk_span span,
                                           struct ptk_piece_key key, struct ptk_image_piece *line)
{
    struct segment_ids made;
    const enum ptk_verdict verdict = learn_segment(job, text, span, key, line, &made);
    return verdict == PTK_VERDICT_OK ? put_segment(job, text, span, &made) : verdict;
}

static enum ptk_verdict long_segment(const struct ptk_encode_job *job, const ptk_source_text *text,
                                     struct ptk_span span, struct ptk_cache_long *pair)
{
    const struct ptk_cache_long_key key =
        ptk_cache_long_key_make(text->bytes + span.begin, span.end - span.begin, false);
    const struct ptk_cache_long *slot = ptk_cache_long_find(pair, &key);
    if (slot != NULL) {
        ptk_put_long_slot(job, text, span.begin, slot);
        return PTK_VERDICT_OK;
    }
    struct segment_ids made;
    const enum ptk_verdict verdict = learn_long_segment(job, text, span, &key, pair, &made);
    return verdict == PTK_VERDICT_OK ? put_segment(job, text, span, &made) : verdict;
}

/* Makes the keys of a batch and asks for their cache lines. What does not change is in locals, as
 * in ptk_batch_push_ends(). */
static void segments_prepare(const struct ptk_encode_job *job, const ptk_source_text *text,
                             struct segment_batch *batch)
{
    const ptk_source_text source = *text;
    const struct ptk_cache_seed seed = job->tokenizer->seed;
    const struct ptk_span *spans = batch->spans;
    struct ptk_cache *cache = job->cache;
    struct ptk_image_piece *slots = cache->slots;
    const uint64_t line_mask = cache->short_mask;
    const size_t count = batch->count;
    for (size_t i = 0; i < count; i++) {
        const struct ptk_span span = spans[i];
        const size_t len = ptk_span_len(span);
        if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
            const struct ptk_piece_key key = ptk_text_key(&source, span.begin, len);
            struct ptk_image_piece *line = &slots[(ptk_cache_hash(&seed, key) & line_mask) * 2];
            ptk_prefetch(line);
            batch->key[i] = key;
            batch->place[i] = line;
        } else if (len <= PTK_CACHE_LONG_KEY_MAX) {
            const struct ptk_cache_long_key key =
                ptk_cache_long_key_make(source.bytes + span.begin, len, false);
            batch->place[i] = ptk_cache_long_pair(cache, &seed, &key);
            ptk_prefetch(batch->place[i]);
        }
    }
}

/* Gives the ids of short segments from i on to the sink, or counts them, as long as the cache knows
 * them and the sink is far from full; returns the first one that is left. */
static inline size_t segments_take(struct ptk_sink *sink, const struct segment_batch *batch,
                                   size_t i, bool counting)
{
    const struct ptk_span *spans = batch->spans;
    const size_t count = batch->count;
    const size_t fast_end = counting ? SIZE_MAX : sink->fast_end;
    uint32_t *ids = sink->ids;
    size_t len = sink->len;
    for (; i < count && ptk_span_len(spans[i]) <= PTK_IMAGE_PIECE_KEY_MAX; i++) {
        const struct ptk_image_piece *line = batch->place[i];
        const unsigned match = ptk_cache_match(line, &batch->key[i]);
        if (PTK_UNLIKELY(match == 0 || len + PTK_IMAGE_PIECE_IDS_MAX > fast_end)) {
            break;
        }
        if (!counting) {
            memcpy(ids + len, line[match >> 1].ids, sizeof line->ids);
        }
        len += ptk_cache_id_count(&line[match >> 1]);
    }
    sink->len = len;
    sink->full = counting && len >= sink->end;
    return i;
}

static enum ptk_verdict segments_flush(const struct ptk_encode_job *job,
                                       const ptk_source_text *text,
                                       const struct segment_batch *batch)
{
    struct ptk_sink *sink = job->sink;
    for (size_t i = 0;; i++) { /* ends: i grows up to count */
        i = sink->counting ? segments_take(sink, batch, i, true)
                           : segments_take(sink, batch, i, false);
        if (i == batch->count || sink->full) {
            return PTK_VERDICT_OK;
        }
        const struct ptk_span span = batch->spans[i];
        const size_t len = ptk_span_len(span);
        enum ptk_verdict verdict = PTK_VERDICT_OK;
        if (PTK_LIKELY(len <= PTK_IMAGE_PIECE_KEY_MAX)) {
            struct ptk_image_piece *line = batch->place[i];
            const struct ptk_image_piece *slot = ptk_cache_find(line, batch->key[i]);
            if (slot != NULL) {
                ptk_put_slot(job, text, span.begin, slot);
            } else {
                verdict = short_segment_miss(job, text, span, batch->key[i], line);
            }
        } else if (len <= PTK_CACHE_LONG_KEY_MAX) {
            verdict = long_segment(job, text, span, batch->place[i]);
        } else {
            verdict = run_segment(job, text, span);
        }
        if (PTK_UNLIKELY(verdict != PTK_VERDICT_OK || sink->full)) {
            return verdict;
        }
    }
}

static enum ptk_verdict encode_segments(const struct ptk_encode_job *job,
                                        const ptk_source_text *text)
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
            batch.count = ptk_min_size(count - done, PTK_BATCH_PIECES);
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
static bool reads_words(const struct ptk_encode_job *job, const ptk_source_text *part)
{
    return job->tokenizer->words.active && job->sink->offsets == NULL && part->len > 0 &&
           (job->skip_added || job->tokenizer->image->added_normalized == NULL);
}

static enum ptk_verdict normalize_part(const struct ptk_encode_job *job,
                                       const ptk_source_text *part)
{
    const struct ptk_tokenizer *tokenizer = job->tokenizer;
    if (reads_words(job, part)) {
        uint8_t bytes[LEAD_LEN_MAX];
        size_t len = 0;
        const bool leads = ptk_words_leads(&tokenizer->words, part->bytes, part->len, part->origin);
        if (!leads || lead_word(tokenizer, part, bytes, &len)) {
            const ptk_source_text head = {.bytes = bytes, .len = len + 1};
            return encode_words(job, part, &head, len);
        }
    }
    /* Neither offsets nor ranges are known of a segment that is looked up. */
    const bool in_segments =
        tokenizer->segments != NULL && job->sink->offsets == NULL && job->sink->plain.count == 0;
    return in_segments ? encode_segments(job, part) : normalize_whole(job, part);
}

static enum ptk_verdict encode_sequence(const struct ptk_encode_job *job, const uint8_t *bytes,
                                        size_t len)
{
    const ptk_source_text text = {.bytes = bytes, .len = len};
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
            chars += !ptk_is_continuation(cursor->text[i]);
        }
        cursor->pos = back ? begin : begin + some;
        cursor->chars = back ? cursor->chars - chars : cursor->chars + chars;
        cursor->walked += some;
        if (PTK_UNLIKELY(cursor->walked == PTK_PAUSE_LEN)) {
            cursor->walked = 0;
            ptk_pause_point();
        }
    }
    const bool inside = pos < cursor->len && ptk_is_continuation(cursor->text[pos]);
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
        } while (ptk_is_continuation(text[end]) && end > 0);
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
    const size_t len = ptk_key_len(image, id);
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
    const bool sentencepiece = tokenizer->image->header->source == PTK_IMAGE_SOURCE_SENTENCEPIECE;
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

static enum ptk_verdict encode_text(struct ptk_encode_job *job, const struct item *item,
                                    size_t which, struct window window)
{
    struct ptk_sink *sink = job->sink;
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
static enum ptk_verdict count_texts(const struct ptk_encode_job *job, const struct item *item,
                                    size_t limit, struct ptk_post_lens *lens, size_t *hits)
{
    size_t *const out[] = {&lens->a, &lens->b};
    *lens = (struct ptk_post_lens){0, 0};
    *hits = 0;
    for (size_t which = PTK_POST_A; which <= (item->pair ? PTK_POST_B : PTK_POST_A); which++) {
        struct ptk_sink sink = {.cap = SIZE_MAX, .counting = true};
        struct ptk_encode_job counting = *job;
        counting.sink = &sink;
        counting.need_ends = false;
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
static enum ptk_verdict truncated_lens(const struct ptk_encode_job *job, const struct item *item,
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

static enum ptk_verdict put_special(struct ptk_sink *sink, struct ptk_encoding *out, uint32_t id,
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

static enum ptk_verdict put_text(struct ptk_encode_job *job, const struct item *item,
                                 const struct ptk_post_item *entry, struct window window,
                                 struct ptk_encoding *out)
{
    struct ptk_sink *sink = job->sink;
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

static enum ptk_verdict put_item(struct ptk_encode_job *job, const struct item *item,
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

static struct ptk_encode_job job_init(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      struct ptk_cache *cache, uint32_t options)
{
    const uint32_t flags = tokenizer->image->config->flags;
    const bool parse = (options & PTK_WIRE_OPTIONS_PARSE_SPECIAL) != 0;
    return (struct ptk_encode_job){
        .tokenizer = tokenizer,
        .work = work,
        .cache = cache,
        .skip_special = !parse || (options & PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS) != 0,
        .skip_added = (flags & PTK_IMAGE_FLAGS_NO_SPECIALS_IN_TEXT) != 0,
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
    struct ptk_sink sink = {.ids = out->ids, .offsets = out->offsets, .cap = out->cap};
    struct ptk_encode_job job = job_init(tokenizer, work, cache, request->options);
    job.sink = &sink;
    job.need_ends = out->offsets != NULL && !tokenizer->encoder.ids_tell;
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
    struct ptk_sink sink;          /* of out */
    struct char_cursor cursors[2]; /* by text: windows follow each other closely */
    struct cut cuts[2];
};

static enum ptk_verdict put_rows(struct windows_job *job, const struct ptk_post_item *entry,
                                 size_t idx)
{
    struct ptk_sink *sink = &job->sink;
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
    struct ptk_sink *sink = &job->sink;
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
static enum ptk_verdict encode_whole(struct ptk_encode_job *job, const struct item *item,
                                     struct ptk_windows *windows, struct ptk_post_lens *lens)
{
    struct ptk_encoding *whole = &windows->whole;
    struct ptk_sink sink = {.ids = whole->ids, .offsets = whole->offsets, .cap = whole->cap};
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
    struct ptk_encode_job job = job_init(tokenizer, work, cache, request->options);
    job.need_ends = out->offsets != NULL && !tokenizer->encoder.ids_tell;
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
    const struct ptk_encode_job job = job_init(tokenizer, work, cache, request->options);
    struct ptk_post_lens full;
    struct ptk_post_lens kept;
    verdict = truncated_lens(&job, &item, &full, &kept, hits);
    *count = kept.a + kept.b + special_count(&item);
    return verdict;
}
