/*
 * The normal forms NFC, NFD, NFKC, NFKD; see ptk_norm_ops.h.
 *
 * A text is read for as long as it certainly stays what it is: characters without the bit of the
 * form (ptk_unicode_norm), marks in order. At the first doubtful character the text is cut before
 * the last starter; from there to the next starter that nothing can combine with it is decomposed,
 * ordered and composed again, and reading goes on. Clean text is never touched, and doubtful text
 * is not touched far beyond the doubt.
 *
 * Nothing is buffered but in the output itself, so that a run of marks may be as long as the text:
 *
 *     out->len      + 4                     end
 *        | starter  | marks that stay | free | marks still to be composed |
 *
 * Marks are ordered by counting: their bytes per class are summed up, then each is written to its
 * place. The starter is written last, when it has taken up all the marks that compose with it.
 */
#include "text/ptk_norm_ops.h"

#include "base/ptk_pause.h"
#define STARTER_ROOM 4u /* longest encoding of the starter */
#define RANKS        256u

struct form {
    const struct ptk_unicode *unicode;
    const struct ptk_unicode_map *map;
    uint32_t doubt; /* PTK_UNICODE_NORM_* bit of the form */
    bool composes;
};

/* One code point of the decomposed text. */
struct item {
    uint32_t code_point;
    uint32_t rank;     /* combining class, 0 for a starter */
    uint32_t consumed; /* 1 for the first of a character's decomposition, 0 for the others */
};

/* Reads a range of the input as decomposed text. Copies of a cursor are independent. */
struct cursor {
    const uint8_t *pos;
    const uint8_t *end;
    const uint32_t *rest; /* what is left of a decomposition that is in the tables */
    uint32_t rest_len;
    uint32_t jamo[2]; /* what is left of a syllable, 0: nothing */
};

/* What is being put together at the end of the output. */
struct cluster {
    size_t at; /* input position up to which characters are consumed; with alignment only */
    bool has_starter;
    uint32_t starter;
    uint32_t consumed; /* characters that the starter consumes */
    size_t marks_begin;
    size_t marks_end;
};

static bool next_item(const struct form *form, struct cursor *cursor, struct item *item)
{
    item->consumed = 0;
    if (cursor->rest_len > 0) {
        item->code_point = *cursor->rest++;
        cursor->rest_len--;
    } else if (cursor->jamo[0] != 0) {
        item->code_point = cursor->jamo[0];
        cursor->jamo[0] = cursor->jamo[1];
        cursor->jamo[1] = 0;
    } else if (cursor->pos < cursor->end) {
        uint32_t len;
        uint32_t code_point = ptk_utf8_decode(cursor->pos, &len);
        cursor->pos += len;
        item->consumed = 1;
        item->code_point = code_point;
        uint32_t syllable = code_point - PTK_HANGUL_S;
        const uint32_t *parts = ptk_unicode_map(form->map, code_point, &len);
        if (parts != NULL) {
            item->code_point = parts[0];
            cursor->rest = parts + 1;
            cursor->rest_len = len - 1;
        } else if (syllable < PTK_HANGUL_S_LEN) {
            uint32_t trailing = syllable % PTK_HANGUL_T_LEN;
            uint32_t leading = syllable / PTK_HANGUL_T_LEN;
            item->code_point = PTK_HANGUL_L + leading / PTK_HANGUL_V_LEN;
            cursor->jamo[0] = PTK_HANGUL_V + leading % PTK_HANGUL_V_LEN;
            cursor->jamo[1] = trailing != 0 ? PTK_HANGUL_T + trailing : 0;
        }
    } else {
        return false;
    }
    item->rank = ptk_unicode_norm(form->unicode, item->code_point) & PTK_UNICODE_NORM_CLASS;
    return true;
}

/* Where the text from `pos` on stops to be certain: the last starter before the first doubt. */
static size_t certain_end(const struct form *form, const struct ptk_split_text *in, size_t pos)
{
    size_t starter = pos;
    uint32_t last_rank = 0;
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        if (in->bytes[pos] < 0x80) {
            pos += ptk_utf8_ascii_len(in->bytes + pos, in->len - pos);
            starter = pos - 1;
            last_rank = 0;
            continue;
        }
        uint32_t len;
        uint32_t word = ptk_unicode_norm(form->unicode, ptk_utf8_decode(in->bytes + pos, &len));
        uint32_t rank = word & PTK_UNICODE_NORM_CLASS;
        if ((word & form->doubt) != 0 || (rank != 0 && rank < last_rank)) {
            return starter;
        }
        if (rank == 0) {
            starter = pos;
        }
        last_rank = rank;
        pos += len;
    }
    return in->len;
}

/* The next starter after the character at `pos` that nothing before it can combine with. */
static size_t doubt_end(const struct form *form, const struct ptk_split_text *in, size_t pos)
{
    pos += ptk_utf8_lead_len(in->bytes[pos]);
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        uint32_t len;
        uint32_t word = ptk_unicode_norm(form->unicode, ptk_utf8_decode(in->bytes + pos, &len));
        if ((word & (form->doubt | PTK_UNICODE_NORM_CLASS)) == 0) {
            break;
        }
        pos += len;
    }
    return pos;
}

/* Gives the character at `pos` of the output its range and moves over what it consumes. */
static void align_char(const struct ptk_split_text *in, struct cluster *cluster,
                       struct ptk_text_buf *out, size_t pos, uint32_t consumed)
{
    struct ptk_span align =
        consumed > 0 ? ptk_norm_align_at(in, cluster->at) : ptk_norm_align_before(in, cluster->at);
    for (uint32_t i = 0; i < consumed; i++) {
        cluster->at += ptk_utf8_lead_len(in->bytes[cluster->at]);
    }
    ptk_norm_fill_align(out, pos, ptk_utf8_lead_len(out->bytes[pos]), align);
}

/* Writes the starter before its marks and makes the cluster part of the output. */
static void flush(const struct ptk_split_text *in, struct cluster *cluster,
                  struct ptk_text_buf *out)
{
    size_t begin = out->len;
    size_t starter_len = 0;
    size_t marks_len = cluster->marks_end - cluster->marks_begin;
    if (cluster->has_starter) {
        uint8_t starter[STARTER_ROOM];
        starter_len = ptk_utf8_encode(cluster->starter, starter);
        ptk_pause_copy(out->bytes + begin + starter_len, out->bytes + cluster->marks_begin,
                       marks_len);
        memcpy(out->bytes + begin, starter, starter_len);
    }
    out->len = begin + starter_len + marks_len;
    if (out->align == NULL) {
        return;
    }
    if (cluster->has_starter) {
        ptk_pause_copy(out->align + begin + starter_len, out->align + cluster->marks_begin,
                       marks_len * sizeof *out->align);
        align_char(in, cluster, out, begin, cluster->consumed);
    }
    size_t paused_at = begin;
    for (size_t pos = begin + starter_len; pos < out->len;
         pos += ptk_utf8_lead_len(out->bytes[pos])) {
        ptk_pause_pos(&paused_at, pos);
        align_char(in, cluster, out, pos, out->align[pos].begin);
    }
}

/* Begins a cluster at the end of the output. Returns false when the output is full. */
static bool begin_cluster(struct cluster *cluster, const struct item *starter,
                          const struct ptk_text_buf *out)
{
    cluster->has_starter = starter != NULL;
    cluster->starter = starter != NULL ? starter->code_point : 0;
    cluster->consumed = starter != NULL ? starter->consumed : 0;
    size_t room = starter != NULL ? STARTER_ROOM : 0;
    if (out->cap - out->len < room) {
        return false;
    }
    cluster->marks_begin = out->len + room;
    cluster->marks_end = cluster->marks_begin;
    return true;
}

/* Writes one mark and returns its length; with alignment, `begin` keeps what it consumes until the
 * flush. */
static uint32_t put_mark(struct ptk_text_buf *out, size_t pos, const struct item *item)
{
    if (out->align != NULL) {
        out->align[pos].begin = item->consumed;
    }
    return ptk_utf8_encode(item->code_point, out->bytes + pos);
}

/* Writes the run of marks at `cursor` to `begin` in canonical order, each to its class's place. */
static void scatter_run(const struct form *form, const struct cursor *cursor,
                        struct ptk_text_buf *out, size_t begin)
{
    size_t places[RANKS] = {0};
    struct cursor ahead = *cursor;
    struct item item;
    uint32_t turns = 0;
    while (next_item(form, &ahead, &item) && item.rank != 0) {
        ptk_pause_turn(&turns);
        places[item.rank] += ptk_utf8_code_point_len(item.code_point);
    }
    for (size_t rank = 0; rank < RANKS; rank++) {
        size_t rank_len = places[rank];
        places[rank] = begin;
        begin += rank_len;
    }
    for (ahead = *cursor; next_item(form, &ahead, &item) && item.rank != 0;) {
        ptk_pause_turn(&turns);
        places[item.rank] += put_mark(out, places[item.rank], &item);
    }
}

/*
 * Writes the run of marks that `cursor` stands before behind the cluster's marks, in canonical
 * order, moves the cursor behind the run and sets `*end` to the end of what was written. Returns
 * false when the output is full.
 */
static bool put_run(const struct form *form, struct cursor *cursor, struct cluster *cluster,
                    struct ptk_text_buf *out, size_t *end)
{
    struct cursor ahead = *cursor;
    struct cursor run_end = *cursor;
    struct item item;
    size_t pos = cluster->marks_end;
    uint32_t last_rank = 0;
    bool ordered = true;
    uint32_t turns = 0;
    while (next_item(form, &ahead, &item) && item.rank != 0) {
        ptk_pause_turn(&turns);
        if (out->cap - pos < ptk_utf8_code_point_len(item.code_point)) {
            return false;
        }
        ordered = ordered && item.rank >= last_rank;
        last_rank = item.rank;
        pos += put_mark(out, pos, &item);
        run_end = ahead;
    }
    if (!ordered) {
        scatter_run(form, cursor, out, cluster->marks_end);
    }
    *cursor = run_end;
    *end = pos;
    return true;
}

/* Takes the marks up to `end` into the cluster: the starter absorbs what composes, others stay. */
static void take_run(const struct form *form, struct cluster *cluster, struct ptk_text_buf *out,
                     size_t end)
{
    if (!form->composes || !cluster->has_starter) {
        cluster->marks_end = end;
        return;
    }
    uint32_t last_rank = 0; /* of the marks that stay */
    uint32_t len;
    size_t paused_at = cluster->marks_end;
    for (size_t pos = cluster->marks_end; pos < end; pos += len) {
        ptk_pause_pos(&paused_at, pos);
        uint32_t mark = ptk_utf8_decode(out->bytes + pos, &len);
        uint32_t rank = ptk_unicode_norm(form->unicode, mark) & PTK_UNICODE_NORM_CLASS;
        uint32_t composite =
            rank > last_rank ? ptk_unicode_compose(form->unicode, cluster->starter, mark) : 0;
        if (composite != 0) {
            cluster->starter = composite;
            cluster->consumed += out->align != NULL ? out->align[pos].begin : 0;
            continue;
        }
        last_rank = rank;
        memmove(out->bytes + cluster->marks_end, out->bytes + pos, len);
        if (out->align != NULL) {
            out->align[cluster->marks_end].begin = out->align[pos].begin;
        }
        cluster->marks_end += len;
    }
}

/* Brings `in->bytes[begin..end)` into the form. Returns false when the output is full. */
static bool put_form(const struct form *form, const struct ptk_split_text *in, size_t begin,
                     size_t end, struct ptk_text_buf *out)
{
    struct cursor cursor = {.pos = in->bytes + begin, .end = in->bytes + end};
    struct cluster cluster = {.at = begin};
    struct cursor before = cursor;
    struct item item;
    if (!begin_cluster(&cluster, NULL, out)) {
        return false;
    }
    uint32_t turns = 0;
    while (next_item(form, &cursor, &item)) {
        ptk_pause_turn(&turns);
        if (item.rank != 0) {
            size_t run_end;
            cursor = before;
            if (!put_run(form, &cursor, &cluster, out, &run_end)) {
                return false;
            }
            take_run(form, &cluster, out, run_end);
        } else {
            bool touches = cluster.has_starter && cluster.marks_end == cluster.marks_begin;
            uint32_t composite =
                form->composes && touches
                    ? ptk_unicode_compose(form->unicode, cluster.starter, item.code_point)
                    : 0;
            if (composite != 0) {
                cluster.starter = composite;
                cluster.consumed += item.consumed;
            } else {
                flush(in, &cluster, out);
                if (!begin_cluster(&cluster, &item, out)) {
                    return false;
                }
            }
        }
        before = cursor;
    }
    flush(in, &cluster, out);
    PTK_DCHECK(out->align == NULL || cluster.at == end);
    return true;
}

enum ptk_norm_step ptk_norm_form(const struct ptk_unicode *unicode, enum ptk_op_norm kind,
                                 const struct ptk_split_text *in, struct ptk_text_buf *out)
{
    bool compatible = kind == PTK_OP_NORM_NFKC || kind == PTK_OP_NORM_NFKD;
    bool composes = kind == PTK_OP_NORM_NFC || kind == PTK_OP_NORM_NFKC;
    const struct form form = {
        .unicode = unicode,
        .map = compatible ? &unicode->compatible : &unicode->canonical,
        .doubt = composes ? (compatible ? PTK_UNICODE_NORM_NFKC : PTK_UNICODE_NORM_NFC)
                          : (compatible ? PTK_UNICODE_NORM_NFKD : PTK_UNICODE_NORM_NFD),
        .composes = composes,
    };
    size_t pos = certain_end(&form, in, 0);
    if (pos == in->len) {
        return PTK_NORM_STEP_SAME;
    }
    size_t copied = 0;
    size_t paused_at = 0;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        size_t end = doubt_end(&form, in, pos);
        if (!ptk_norm_copy(in, copied, pos, out) || !put_form(&form, in, pos, end, out)) {
            return PTK_NORM_STEP_FULL;
        }
        copied = end;
        pos = certain_end(&form, in, end);
    }
    if (!ptk_norm_copy(in, copied, in->len, out)) {
        return PTK_NORM_STEP_FULL;
    }
    /* A doubt may prove unfounded: a mark that could have combined, but had nothing to combine
     * with. */
    const bool same = out->len == in->len && ptk_pause_equal(out->bytes, in->bytes, in->len);
    return same ? PTK_NORM_STEP_SAME : PTK_NORM_STEP_CHANGED;
}
