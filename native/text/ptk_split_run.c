/*
 * The general way to run a pre-tokenizer program; see ptk_split.h.
 *
 * The text is a row of segments: pieces, and what was dropped. Two bit sets say where segments
 * begin and which are dropped. An operation that splits walks the pieces and sets more bits; one
 * that changes the text moves the segments to the right, last one first, so that it needs no second
 * buffer.
 */
#include "text/ptk_split_ops.h"

#include "base/ptk_pause.h"
#include "text/ptk_alphabet.h"

/* Text and bits while a program runs. */
struct run {
    const struct ptk_unicode *unicode;
    struct ptk_split_work *work;
    struct ptk_split_text text;
    struct ptk_text_buf *out;
    bool is_copied; /* `text` is in `out` */
};

static bool bit_get(const uint64_t *bits, size_t at)
{
    return bits[at / 64] >> at % 64 & 1;
}
static void bit_set(uint64_t *bits, size_t at)
{
    bits[at / 64] |= UINT64_C(1) << at % 64;
}
static void bit_clear(uint64_t *bits, size_t at)
{
    bits[at / 64] &= ~(UINT64_C(1) << at % 64);
}

/* The first bit at `from` or behind it, `len` when there is none before `len`. */
static size_t bit_next(const uint64_t *bits, size_t from, size_t len)
{
    if (from >= len) {
        return len;
    }
    size_t word = from / 64;
    size_t paused_at = word;
    uint64_t rest = bits[word] & ~UINT64_C(0) << from % 64;
    while (rest == 0) {
        ptk_pause_pos(&paused_at, word);
        word++;
        if (word * 64 >= len) {
            return len;
        }
        rest = bits[word];
    }
    return ptk_min_size(len, word * 64 + (size_t)__builtin_ctzll(rest));
}

/* The last bit at `from` or before it; there is one. */
static size_t bit_previous(const uint64_t *bits, size_t from)
{
    size_t word = from / 64;
    size_t paused_at = word;
    uint64_t rest = bits[word] & ~UINT64_C(0) >> (63 - from % 64);
    while (rest == 0) {
        ptk_pause_pos(&paused_at, word);
        word--;
        rest = bits[word];
    }
    return word * 64 + 63 - (size_t)__builtin_clzll(rest);
}

/* Takes the items of one piece and sets bits as the behaviour says. */
struct cutter {
    struct ptk_split_work *work;
    size_t end; /* of the piece */
    enum ptk_split_behaviour behaviour;
    bool invert;
    bool has_previous;
    bool previous; /* was the item before a match? */
};

/* Whether two neighbouring items stay apart. */
static bool stays_cut(enum ptk_split_behaviour behaviour, bool left, bool right)
{
    switch (behaviour) {
    case PTK_SPLIT_BEHAVIOUR_MERGED_WITH_PREVIOUS:
        return left || !right;
    case PTK_SPLIT_BEHAVIOUR_MERGED_WITH_NEXT:
        return !left || right;
    case PTK_SPLIT_BEHAVIOUR_CONTIGUOUS:
        return left != right;
    case PTK_SPLIT_BEHAVIOUR_REMOVED:
    case PTK_SPLIT_BEHAVIOUR_ISOLATED:
    case PTK_SPLIT_BEHAVIOUR_VALUE_COUNT:
        break;
    }
    return true;
}

/* Items come in order and without gaps; they may be empty. */
static void cut_item(struct cutter *cutter, size_t begin, size_t end, bool is_match)
{
    is_match = is_match != cutter->invert;
    bool cut = cutter->has_previous && stays_cut(cutter->behaviour, cutter->previous, is_match);
    if (cut && begin < cutter->end) {
        bit_set(cutter->work->starts, begin);
    }
    if (cutter->behaviour == PTK_SPLIT_BEHAVIOUR_REMOVED && is_match && end > begin) {
        bit_set(cutter->work->drops, begin);
    }
    cutter->has_previous = true;
    cutter->previous = is_match;
}

/* One match at [begin, end) after the items up to `*done`. */
static void cut_match(struct cutter *cutter, size_t *done, size_t begin, size_t end)
{
    if (begin > *done) {
        cut_item(cutter, *done, begin, false);
    }
    cut_item(cutter, begin, end, true);
    *done = end;
}

static void split_scanner(const struct run *run, const struct ptk_split_op *op,
                          struct cutter *cutter, size_t begin)
{
    const uint8_t *text = run->text.bytes + begin;
    const size_t len = cutter->end - begin;
    if (op->matcher->find != NULL) {
        size_t done = begin;
        struct ptk_span match = {0, 0};
        size_t paused_at = 0;
        while (op->matcher->find(op->classes, text, len, match.end, &match)) {
            ptk_pause_pos(&paused_at, match.end);
            cut_match(cutter, &done, begin + match.begin, begin + match.end);
        }
        if (done < cutter->end) {
            cut_item(cutter, done, cutter->end, false);
        }
        return;
    }
    uint32_t ends[256];
    size_t pos = 0;
    size_t done = begin;
    for (;;) {
        ptk_pause_point();
        size_t count = op->scan(op->classes, text, len, &pos, ends, PTK_ARRAY_LEN(ends));
        if (count == 0) {
            break;
        }
        for (size_t i = 0; i < count; i++) {
            cut_match(cutter, &done, done, begin + ends[i]);
        }
    }
}

/* Returns false when the pattern is too hard for this text. */
static bool split_regex(const struct run *run, const struct ptk_split_op *op, struct cutter *cutter,
                        size_t begin)
{
    struct ptk_regex_work *work = run->work->regex;
    ptk_regex_start(op->regex, work, run->text.bytes + begin, cutter->end - begin);
    size_t done = begin;
    struct ptk_span match;
    size_t paused_at = 0;
    for (;;) {
        ptk_pause_pos(&paused_at, done);
        enum ptk_regex_answer answer = ptk_regex_next(work, &match);
        if (answer == PTK_REGEX_ANSWER_TOO_HARD) {
            return false;
        }
        if (answer == PTK_REGEX_ANSWER_END) {
            break;
        }
        cut_match(cutter, &done, begin + match.begin, begin + match.end);
    }
    if (done < cutter->end) {
        cut_item(cutter, done, cutter->end, false);
    }
    return true;
}

static void split_literal(const struct run *run, const struct ptk_split_op *op,
                          struct cutter *cutter, size_t begin)
{
    const uint8_t *text = run->text.bytes;
    const size_t literal_len = op->literal_len;
    const uint8_t first = op->literal[0];
    size_t done = begin;
    size_t at = begin;
    size_t paused_at = begin;
    while (!op->literal_absent && cutter->end - at >= literal_len) {
        ptk_pause_pos(&paused_at, at);
        if (text[at] == first && memcmp(text + at, op->literal, literal_len) == 0) {
            cut_match(cutter, &done, at, at + literal_len);
            at = done;
        } else {
            at++;
        }
    }
    if (done < cutter->end) {
        cut_item(cutter, done, cutter->end, false);
    }
}

/* The class of the character at `at`, and where the character ends. */
static uint8_t glyph_class(const struct run *run, const struct ptk_split_op *op, size_t at,
                           size_t *end)
{
    const uint8_t *src = run->text.bytes + at;
    if (op->alphabet) {
        *end = at + 1;
        return op->by_byte[*src];
    }
    uint32_t width;
    uint32_t code_point = ptk_utf8_decode(src, &width);
    *end = at + width;
    if (op->kind == PTK_SPLIT_KIND_SCRIPTS) {
        return ptk_unicode_split_script(run->unicode, code_point);
    }
    return op->by_class[ptk_unicode_class(run->unicode, code_point)];
}

static void split_glyphs(const struct run *run, const struct ptk_split_op *op,
                         struct cutter *cutter, size_t begin)
{
    size_t done = begin;
    uint32_t turns = 0;
    for (size_t at = begin, end; at < cutter->end; at = end) {
        ptk_pause_turn(&turns);
        if (glyph_class(run, op, at, &end) != 0) {
            cut_match(cutter, &done, at, end);
        }
    }
    if (done < cutter->end) {
        cut_item(cutter, done, cutter->end, false);
    }
}

static void split_groups(const struct run *run, const struct ptk_split_op *op, size_t begin,
                         size_t piece_end)
{
    int previous = -1;
    uint32_t turns = 0;
    for (size_t at = begin, end; at < piece_end; at = end) {
        ptk_pause_turn(&turns);
        int group = glyph_class(run, op, at, &end);
        if (group != previous || group == 2) {
            bit_set(run->work->starts, at);
            if (group == 1) {
                bit_set(run->work->drops, at);
            }
        }
        previous = group;
    }
}

static void split_scripts(const struct run *run, const struct ptk_split_op *op, size_t begin,
                          size_t piece_end)
{
    uint8_t previous = 0;
    uint32_t turns = 0;
    for (size_t at = begin, end; at < piece_end; at = end) {
        ptk_pause_turn(&turns);
        uint8_t script = glyph_class(run, op, at, &end);
        if (script != 0 && script != previous) {
            bit_set(run->work->starts, at);
            previous = script;
        } else if (at == begin) { /* The reference loses what is before the first script. */
            bit_set(run->work->drops, at);
        }
    }
}

static void split_fixed(const struct run *run, const struct ptk_split_op *op, size_t begin,
                        size_t piece_end)
{
    uint32_t count = 0;
    uint32_t turns = 0;
    for (size_t at = begin; at < piece_end;) {
        ptk_pause_turn(&turns);
        if (count == op->length) {
            bit_set(run->work->starts, at);
            count = 0;
        }
        at += op->alphabet ? 1 : ptk_utf8_lead_len(run->text.bytes[at]);
        count++;
    }
}

/* Cuts one piece. Returns false when a regular expression gave up. */
static bool split_piece(const struct run *run, const struct ptk_split_op *op, size_t begin,
                        size_t end)
{
    struct cutter cutter = {
        .work = run->work, .end = end, .behaviour = op->behaviour, .invert = op->invert};
    switch (op->kind) {
    case PTK_SPLIT_KIND_SCANNER:
        split_scanner(run, op, &cutter, begin);
        break;
    case PTK_SPLIT_KIND_REGEX:
        return split_regex(run, op, &cutter, begin);
    case PTK_SPLIT_KIND_METASPACE: /* The replacement character begins a piece. */
    case PTK_SPLIT_KIND_LITERAL:
        split_literal(run, op, &cutter, begin);
        break;
    case PTK_SPLIT_KIND_GLYPHS:
        split_glyphs(run, op, &cutter, begin);
        break;
    case PTK_SPLIT_KIND_GROUPS:
        split_groups(run, op, begin, end);
        break;
    case PTK_SPLIT_KIND_SCRIPTS:
        split_scripts(run, op, begin, end);
        break;
    case PTK_SPLIT_KIND_FIXED_LENGTH:
        split_fixed(run, op, begin, end);
        break;
    case PTK_SPLIT_KIND_PREFIX_SPACE:
    case PTK_SPLIT_KIND_ALPHABET:
        break;
    }
    return true;
}

static bool split_all(const struct run *run, const struct ptk_split_op *op)
{
    const size_t len = run->text.len;
    size_t paused_at = 0;
    for (size_t begin = 0, end; begin < len; begin = end) {
        ptk_pause_pos(&paused_at, begin);
        end = bit_next(run->work->starts, begin + 1, len);
        if (!bit_get(run->work->drops, begin) && !split_piece(run, op, begin, end)) {
            return false;
        }
    }
    return true;
}

/* Copies the text to `out`, once, so that it may be changed. */
static bool copy_text(struct run *run)
{
    if (run->is_copied) {
        return true;
    }
    struct ptk_text_buf *out = run->out;
    const struct ptk_split_text *in = &run->text;
    PTK_ASSERT(out != NULL);
    if (in->len > out->cap) {
        return false;
    }
    if (in->len > 0) {
        ptk_pause_copy(out->bytes, in->bytes, in->len);
    }
    if (out->align != NULL && in->align != NULL) {
        ptk_pause_copy(out->align, in->align, in->len * sizeof *in->align);
    } else if (out->align != NULL) {
        size_t paused_at = 0;
        for (size_t at = 0; at < in->len;) {
            ptk_pause_pos(&paused_at, at);
            size_t end = at + ptk_utf8_lead_len(in->bytes[at]);
            struct ptk_span range = {(uint32_t)(in->origin + at), (uint32_t)(in->origin + end)};
            while (at < end) {
                out->align[at++] = range;
            }
        }
    }
    run->text.bytes = out->bytes;
    run->text.align = out->align;
    run->is_copied = true;
    return true;
}

/* What an operation puts before the piece [begin, end): the length of a space or of its literal. */
static uint32_t lead_len(const struct run *run, const struct ptk_split_op *op, size_t begin,
                         size_t end)
{
    const uint8_t *piece = run->text.bytes + begin;
    if (op->kind == PTK_SPLIT_KIND_PREFIX_SPACE) {
        return piece[0] != ' ';
    }
    if (op->kind != PTK_SPLIT_KIND_METASPACE || op->prepend == PTK_SPLIT_PREPEND_NEVER ||
        piece[0] == ' ') {
        return 0;
    }
    if (end - begin >= op->literal_len && memcmp(piece, op->literal, op->literal_len) == 0) {
        return 0;
    }
    if (op->prepend == PTK_SPLIT_PREPEND_FIRST) {
        /* A part of a section begins where its first byte came from, a whole one where it begins.
         */
        const struct ptk_span *align = op->behind_split ? run->text.align : NULL;
        size_t origin = align != NULL ? align[begin].begin : run->text.origin + begin;
        return origin == 0 ? op->literal_len : 0;
    }
    return op->literal_len;
}

/* Whether an operation leaves a byte of a piece as it is. */
static inline bool keeps_byte(const struct ptk_split_op *op, uint8_t byte)
{
    switch (op->kind) {
    case PTK_SPLIT_KIND_METASPACE:
        return byte != ' ';
    case PTK_SPLIT_KIND_ALPHABET:
        return byte > 0x20 && byte < 0x7F;
    default:
        return true;
    }
}

/* What becomes of a byte that an operation does not keep; returns its length, at most 4. */
static uint32_t change_byte(const struct ptk_split_op *op, uint8_t byte, uint8_t dst[4])
{
    if (op->kind == PTK_SPLIT_KIND_ALPHABET) {
        return ptk_utf8_encode(ptk_alphabet_code_point(byte), dst);
    }
    memcpy(dst, op->literal, op->literal_len);
    return op->literal_len;
}

/* Bytes that the text becomes longer by. */
static size_t change_growth(const struct run *run, const struct ptk_split_op *op)
{
    const size_t len = run->text.len;
    size_t growth = 0;
    uint8_t changed[4];
    size_t paused_at = 0;
    for (size_t begin = 0, end; begin < len; begin = end) {
        ptk_pause_pos(&paused_at, begin);
        end = bit_next(run->work->starts, begin + 1, len);
        if (bit_get(run->work->drops, begin)) {
            continue;
        }
        growth += lead_len(run, op, begin, end);
        for (size_t at = begin; at < end; at++) {
            ptk_pause_pos(&paused_at, at);
            if (!keeps_byte(op, run->text.bytes[at])) {
                growth += change_byte(op, run->text.bytes[at], changed) - 1;
            }
        }
    }
    return growth;
}

/*
 * Changes the text in `out`. What is inserted before a piece takes the origin of the piece's first
 * character, what replaces a byte the origin of that byte. Returns false when `out` is too small.
 */
static bool change_all(struct run *run, const struct ptk_split_op *op)
{
    if (!copy_text(run)) {
        return false;
    }
    const size_t growth = change_growth(run, op);
    const size_t len = run->text.len + growth;
    if (len > run->out->cap || len > run->work->text_len_max) {
        return false;
    }
    uint8_t *bytes = run->out->bytes;
    struct ptk_span *align = run->out->align;
    uint64_t *starts = run->work->starts;
    uint64_t *drops = run->work->drops;
    const size_t words = (run->text.len + 63) / 64;
    const size_t more_len = ((len + 63) / 64 - words) * sizeof *starts;
    ptk_pause_fill(starts + words, 0, more_len);
    ptk_pause_fill(drops + words, 0, more_len);

    size_t dst = len;
    uint32_t turns = 0;
    for (size_t src = run->text.len; src > 0;) {
        const size_t begin = bit_previous(starts, src - 1);
        const bool dropped = bit_get(drops, begin);
        const uint32_t lead = dropped ? 0 : lead_len(run, op, begin, src);
        while (src > begin) {
            ptk_pause_turn(&turns);
            src--;
            const struct ptk_span range = align != NULL ? align[src] : (struct ptk_span){0, 0};
            if (dropped || keeps_byte(op, bytes[src])) {
                dst--;
                bytes[dst] = bytes[src];
                if (align != NULL) {
                    align[dst] = range;
                }
                continue;
            }
            uint8_t changed[4];
            for (uint32_t i = change_byte(op, bytes[src], changed); i > 0; i--) {
                dst--;
                bytes[dst] = changed[i - 1];
                if (align != NULL) {
                    align[dst] = range;
                }
            }
        }
        for (uint32_t i = lead; i > 0; i--) {
            dst--;
            bytes[dst] = op->kind == PTK_SPLIT_KIND_METASPACE ? op->literal[i - 1] : ' ';
            if (align != NULL) {
                align[dst] = align[dst + 1];
            }
        }
        bit_clear(starts, begin);
        bit_clear(drops, begin);
        bit_set(starts, dst);
        if (dropped) {
            bit_set(drops, dst);
        }
    }
    PTK_ASSERT(dst == 0);
    run->text.len = len;
    run->out->len = len;
    return true;
}

size_t ptk_split_work_len(size_t text_len_max)
{
    size_t bits_len = ptk_align_up((text_len_max + 63) / 64 * sizeof(uint64_t), PTK_CACHE_LINE);
    return ptk_align_up(sizeof(struct ptk_split_work), PTK_CACHE_LINE) + 2 * bits_len +
           ptk_regex_work_len(text_len_max);
}

struct ptk_split_work *ptk_split_work_init(void *memory, size_t text_len_max)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(text_len_max <= UINT32_C(1) << 31);
    size_t bits_len = ptk_align_up((text_len_max + 63) / 64 * sizeof(uint64_t), PTK_CACHE_LINE);
    uint8_t *next = memory;
    struct ptk_split_work *work = memory;
    next += ptk_align_up(sizeof *work, PTK_CACHE_LINE);
    work->text_len_max = text_len_max;
    work->starts = (uint64_t *)(void *)next;
    next += bits_len;
    work->drops = (uint64_t *)(void *)next;
    next += bits_len;
    work->regex = ptk_regex_work_init(next, text_len_max);
    return work;
}

enum ptk_verdict ptk_split_run(const struct ptk_split *split, struct ptk_split_work *work,
                               const struct ptk_split_text *in, struct ptk_text_buf *out,
                               struct ptk_split_pieces *pieces)
{
    if (in->len > work->text_len_max) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    struct run run = {.unicode = split->unicode, .work = work, .text = *in, .out = out};
    const size_t words_len = (in->len + 63) / 64 * sizeof(uint64_t);
    ptk_pause_fill(work->starts, 0, words_len);
    ptk_pause_fill(work->drops, 0, words_len);
    if (in->len > 0) {
        bit_set(work->starts, 0);
    }
    for (uint32_t i = 0; i < split->op_count; i++) {
        const struct ptk_split_op *op = &split->ops[i];
        if (op->kind >= PTK_SPLIT_KIND_PREFIX_SPACE && !change_all(&run, op)) {
            return PTK_VERDICT_TEXT_TOO_LONG;
        }
        bool splits = op->kind < PTK_SPLIT_KIND_PREFIX_SPACE || op->splits;
        if (splits && !split_all(&run, op)) {
            return PTK_VERDICT_UNSUPPORTED;
        }
    }
    *pieces = (struct ptk_split_pieces){.text = run.text, .work = work};
    return PTK_VERDICT_OK;
}

size_t ptk_split_next(struct ptk_split_pieces *pieces, struct ptk_span *spans, size_t cap)
{
    const uint64_t *starts = pieces->work->starts;
    const uint64_t *drops = pieces->work->drops;
    const size_t len = pieces->text.len;
    size_t count = 0;
    size_t begin = pieces->pos;
    size_t paused_at = begin;
    while (count < cap && begin < len) {
        ptk_pause_pos(&paused_at, begin);
        size_t end = bit_next(starts, begin + 1, len);
        if (!bit_get(drops, begin)) {
            spans[count++] = (struct ptk_span){(uint32_t)begin, (uint32_t)end};
        }
        begin = end;
    }
    pieces->pos = begin;
    return count;
}
