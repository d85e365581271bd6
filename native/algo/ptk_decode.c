#include "algo/ptk_decode.h"

#include "base/ptk_pause.h"
#include "algo/ptk_decode_spm.h"
#include "text/ptk_utf8.h"

#include <emmintrin.h>
#include <errno.h>
#include <stdlib.h>

static int verify_program(struct ptk_decoder *decoder, const struct ptk_image *image,
                          struct ptk_err *err)
{
    *decoder = (struct ptk_decoder){
        .image = image,
        .concat = (image->config->flags & PTK_IMAGE_FLAGS_DECODE_CONCAT) != 0,
    };
    decoder->spaced = !decoder->concat && image->decoder.op_count == 0;
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (!decoder->concat && ptk_image_op_next(&image->decoder, &pos, &op)) {
        if (op.kind == PTK_OP_DEC_REPLACE_REGEX) {
            size_t off = 0;
            const struct ptk_image_string pattern = ptk_image_op_string(&op, &off);
            return ptk_err_set(
                err, -ENOTSUP,
                "the decoder Replace with the regular expression \"%.*s\" is not supported",
                (int)ptk_min_size(pattern.len, 200), (const char *)pattern.bytes);
        }
        if (op.kind == PTK_OP_DEC_SENTENCEPIECE) {
            if (image->decoder.op_count != 1) {
                return ptk_err_set(err, -EINVAL,
                                   "the decoder sentencepiece is not the only operation");
            }
            return ptk_decode_spm_open(&op, (enum ptk_image_profile)image->header->profile,
                                       &decoder->spm, err);
        }
        if (op.kind < PTK_OP_DEC_BYTE_LEVEL || op.kind > PTK_OP_DEC_CTC) {
            return ptk_err_set(err, -ENOTSUP, "decoder operation %u is unknown to this build",
                               (unsigned)op.kind);
        }
    }
    return 0;
}

static bool is_shown(const struct ptk_image *image, uint32_t id, bool skip_special)
{
    if (id >= image->config->ids_end) {
        return false;
    }
    const uint8_t flags = image->token_flags[id];
    return (flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS) != 0 &&
           !(skip_special && (flags & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0);
}

/* Ids between two pauses: a few microseconds. */
#define SLICE_IDS ((size_t)1024)

/* ---- concatenation -------------------------------------------------------------------------- */

static enum ptk_verdict run_concat(const struct ptk_decoder *decoder,
                                   const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                   size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                   size_t *text_len)
{
    struct ptk_decode_text out = {.bytes = text, .cap = cap};
    for (size_t i = 0; i < ids_len; i += SLICE_IDS) {
        const size_t some = ptk_min_size(ids_len - i, SLICE_IDS);
        if (ptk_decode_table_copy(&decoder->table, ids + i, some, skip_special, &out) < some) {
            return PTK_VERDICT_REPLY_TOO_LONG;
        }
        ptk_pause_point();
    }
    const size_t len = out.len;
    /* Whole characters behind each other need no second look. */
    if ((out.seen & PTK_DECODE_PARTIAL) == 0 || PTK_LIKELY(ptk_utf8_valid(text, len))) {
        *text_len = len;
        return PTK_VERDICT_OK;
    }
    if (len > scratch->text_cap) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    ptk_pause_copy(scratch->bytes[0], text, len);
    return ptk_utf8_replace(scratch->bytes[0], len, text, cap, text_len)
               ? PTK_VERDICT_OK
               : PTK_VERDICT_REPLY_TOO_LONG;
}

/* ---- programs ------------------------------------------------------------------------------- */

/* A list of strings in one buffer. */
struct strings {
    uint8_t *bytes;
    uint32_t *ends;
    size_t count;
    size_t text_cap;
    size_t end_cap;
    size_t len;  /* bytes so far, an unfinished string included */
    bool failed; /* something did not fit */
};

struct view {
    const uint8_t *bytes;
    size_t len;
};

static struct view string_at(const struct strings *strings, size_t idx)
{
    const size_t begin = idx == 0 ? 0 : strings->ends[idx - 1];
    return (struct view){strings->bytes + begin, strings->ends[idx] - begin};
}

static void add_bytes(struct strings *strings, const uint8_t *bytes, size_t len)
{
    if (len > strings->text_cap - strings->len) {
        strings->failed = true;
        return;
    }
    ptk_pause_copy(strings->bytes + strings->len, bytes, len);
    strings->len += len;
}

static void end_string(struct strings *strings)
{
    if (strings->count == strings->end_cap) {
        strings->failed = true;
        return;
    }
    strings->ends[strings->count] = (uint32_t)strings->len;
    strings->count++;
}

static void add_literal(struct strings *strings, const char *literal)
{
    add_bytes(strings, (const uint8_t *)literal, strlen(literal));
}

static bool begins_with(struct view view, const uint8_t *bytes, size_t len)
{
    return view.len >= len && memcmp(view.bytes, bytes, len) == 0;
}

#define NOWHERE (SIZE_MAX / 2)

/* Where a byte is the next time, from `at` on. */
static size_t find_byte(struct view in, size_t at, uint8_t byte)
{
    while (at < in.len) {
        const size_t some = ptk_min_size(in.len - at, PTK_PAUSE_WIDE_LEN);
        const uint8_t *found = memchr(in.bytes + at, byte, some);
        if (found != NULL) {
            return (size_t)(found - in.bytes);
        }
        at += some;
        ptk_pause_point();
    }
    return NOWHERE;
}

/* A copy under way in which each `pattern` is replaced; an empty pattern is nowhere. */
struct replacing {
    struct view from;
    struct ptk_image_string pattern;
    struct view content;
    size_t kept; /* bytes from here on are still to be copied */
    size_t next; /* where the pattern's first byte is the next time */
};

static struct replacing begin_replacing(struct view from, size_t at,
                                        struct ptk_image_string pattern, struct view content)
{
    const size_t next = pattern.len > 0 ? find_byte(from, at, pattern.bytes[0]) : NOWHERE;
    return (struct replacing){from, pattern, content, at, next};
}

/* Replaces what ends at `end` or before. */
static void replace_until(struct strings *out, struct replacing *replacing, size_t end)
{
    const struct ptk_image_string pattern = replacing->pattern;
    const uint8_t *bytes = replacing->from.bytes;
    size_t next = replacing->next;
    size_t paused_at = next;
    while (next + pattern.len <= end) {
        ptk_pause_pos(&paused_at, next);
        size_t behind = next + 1;
        if (memcmp(bytes + next, pattern.bytes, pattern.len) == 0) {
            add_bytes(out, bytes + replacing->kept, next - replacing->kept);
            add_bytes(out, replacing->content.bytes, replacing->content.len);
            behind = next + pattern.len;
            replacing->kept = behind;
        }
        next = find_byte(replacing->from, behind, pattern.bytes[0]);
    }
    if (next < end) { /* what is left up to there is shorter than the pattern */
        next = find_byte(replacing->from, end, pattern.bytes[0]);
    }
    replacing->next = next;
}

/* Copies `from` with each `pattern` replaced. */
static void add_replaced(struct strings *out, struct view from, struct ptk_image_string pattern,
                         struct view content)
{
    struct replacing replacing = begin_replacing(from, 0, pattern, content);
    replace_until(out, &replacing, from.len);
    add_bytes(out, from.bytes + replacing.kept, from.len - replacing.kept);
}

/* The same for the strings from `first` on: what lies between two patterns is copied at once,
 * however many strings that are. */
static void add_all_replaced(struct strings *out, const struct strings *in, size_t first,
                             struct ptk_image_string pattern, struct view content)
{
    const size_t begin = first == 0 ? 0 : in->ends[first - 1];
    const struct view from = {in->bytes, in->count == 0 ? 0 : in->ends[in->count - 1]};
    struct replacing replacing = begin_replacing(from, begin, pattern, content);
    uint32_t turns = 0;
    for (size_t i = first; i < in->count && !out->failed; i++) {
        ptk_pause_turn(&turns);
        replace_until(out, &replacing, in->ends[i]);
        const size_t open = out->len;
        out->len += in->ends[i] - replacing.kept; /* once that is copied the string ends there */
        end_string(out);
        out->len = open;
    }
    add_bytes(out, from.bytes + replacing.kept, from.len - replacing.kept);
}

static void op_replace(const struct ptk_image_op_view *op, const struct strings *in,
                       struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string pattern = ptk_image_op_string(op, &off);
    const struct ptk_image_string content = ptk_image_op_string(op, &off);
    add_all_replaced(out, in, 0, pattern, (struct view){content.bytes, content.len});
}

static int hex_digit(uint8_t byte)
{
    if (byte >= '0' && byte <= '9') {
        return byte - '0';
    }
    if (byte >= 'A' && byte <= 'F') {
        return byte - 'A' + 10;
    }
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* The byte that a string of the form <0xNN> names, or -1. A sign counts as a digit of "+F". */
static int byte_token(struct view view)
{
    if (view.len != 6 || memcmp(view.bytes, "<0x", 3) != 0 || view.bytes[5] != '>') {
        return -1;
    }
    const int high = view.bytes[3] == '+' ? 0 : hex_digit(view.bytes[3]);
    const int low = hex_digit(view.bytes[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* The bytes from `begin` on are a run of byte tokens: one string, or a U+FFFD string for each. */
static void end_run(struct strings *out, size_t begin)
{
    const size_t len = out->len - begin;
    if (len == 0) {
        return;
    }
    if (!ptk_utf8_valid(out->bytes + begin, len)) {
        out->len = begin;
        uint32_t turns = 0;
        for (size_t i = 0; i + 1 < len; i++) {
            ptk_pause_turn(&turns);
            add_literal(out, "\xef\xbf\xbd");
            end_string(out);
        }
        add_literal(out, "\xef\xbf\xbd");
    }
    end_string(out);
}

static void op_byte_fallback(const struct strings *in, struct strings *out)
{
    size_t run = 0;
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count; i++) {
        ptk_pause_turn(&turns);
        const struct view string = string_at(in, i);
        const int byte = byte_token(string);
        if (byte >= 0) {
            const uint8_t raw = (uint8_t)byte;
            add_bytes(out, &raw, 1);
            continue;
        }
        end_run(out, run);
        add_bytes(out, string.bytes, string.len);
        end_string(out);
        run = out->len;
    }
    end_run(out, run);
}

static void op_fuse(const struct strings *in, struct strings *out)
{
    add_bytes(out, in->bytes, in->len);
    end_string(out);
}

/* Cuts up to `max` characters equal to `content` off one end. */
static struct view strip_start(struct view view, struct view content, uint32_t max)
{
    uint32_t turns = 0;
    for (uint32_t i = 0; i < max && begins_with(view, content.bytes, content.len); i++) {
        ptk_pause_turn(&turns);
        view.bytes += content.len;
        view.len -= content.len;
    }
    return view;
}

static struct view strip_stop(struct view view, struct view content, uint32_t max)
{
    uint32_t turns = 0;
    for (uint32_t i = 0; i < max && view.len >= content.len; i++) {
        ptk_pause_turn(&turns);
        if (memcmp(view.bytes + view.len - content.len, content.bytes, content.len) != 0) {
            break;
        }
        view.len -= content.len;
    }
    return view;
}

static void op_strip(const struct ptk_image_op_view *op, const struct strings *in,
                     struct strings *out)
{
    uint8_t encoded[4];
    const struct view content = {encoded, ptk_utf8_encode(ptk_load_u32(op->params), encoded)};
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count; i++) {
        ptk_pause_turn(&turns);
        struct view view = strip_start(string_at(in, i), content, ptk_load_u32(op->params + 4));
        view = strip_stop(view, content, ptk_load_u32(op->params + 8));
        add_bytes(out, view.bytes, view.len);
        end_string(out);
    }
}

#define PREPEND_NEVER 1u

static void op_metaspace(const struct ptk_image_op_view *op, const struct strings *in,
                         struct strings *out)
{
    size_t off = 4;
    const struct ptk_image_string replacement = ptk_image_op_string(op, &off);
    const struct view space = {(const uint8_t *)" ", 1};
    const struct view nothing = {(const uint8_t *)"", 0};
    if (in->count == 0) {
        return;
    }
    add_replaced(out, string_at(in, 0), replacement,
                 op->params[0] != PREPEND_NEVER ? nothing : space);
    end_string(out);
    add_all_replaced(out, in, 1, replacement, space);
}

static void op_bpe(const struct ptk_image_op_view *op, const struct strings *in,
                   struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string suffix = ptk_image_op_string(op, &off);
    const struct view space = {(const uint8_t *)" ", 1};
    const struct view nothing = {(const uint8_t *)"", 0};
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count; i++) {
        ptk_pause_turn(&turns);
        add_replaced(out, string_at(in, i), suffix, i + 1 == in->count ? nothing : space);
        end_string(out);
    }
}

/* The reference's clean-up of English, in its order; no replacement is longer than its pattern. */
static const char *const clean_ups[][2] = {
    {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
    {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
};

/* Whether one of the patterns can be there: they all begin with a space and one of these. */
static bool needs_clean_up(const uint8_t *bytes, size_t len)
{
    size_t paused_at = 0;
    for (size_t i = 0; i + 1 < len; i++) {
        ptk_pause_pos(&paused_at, i);
        if (bytes[i] == ' ' && memchr(".?!,'nd", bytes[i + 1], 7) != NULL) {
            return true;
        }
    }
    return false;
}

/* Cleans the unfinished string of `out` up in place. */
static void clean_up(struct strings *out)
{
    uint8_t *bytes = out->bytes + (out->count == 0 ? 0 : out->ends[out->count - 1]);
    size_t len = (size_t)(out->bytes + out->len - bytes);
    if (!needs_clean_up(bytes, len)) {
        return;
    }
    for (size_t k = 0; k < PTK_ARRAY_LEN(clean_ups); k++) {
        const size_t pattern_len = strlen(clean_ups[k][0]);
        const size_t content_len = strlen(clean_ups[k][1]);
        size_t kept = 0;
        size_t paused_at = 0;
        for (size_t i = 0; i < len;) {
            ptk_pause_pos(&paused_at, i);
            if (len - i >= pattern_len && memcmp(bytes + i, clean_ups[k][0], pattern_len) == 0) {
                memcpy(bytes + kept, clean_ups[k][1], content_len);
                kept += content_len;
                i += pattern_len;
            } else {
                bytes[kept] = bytes[i];
                kept++;
                i++;
            }
        }
        len = kept;
    }
    out->len = (size_t)(bytes - out->bytes) + len;
}

static void op_wordpiece(const struct ptk_image_op_view *op, const struct strings *in,
                         struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string prefix = ptk_image_op_string(op, &off);
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count; i++) {
        ptk_pause_turn(&turns);
        struct view string = string_at(in, i);
        if (i > 0 && begins_with(string, prefix.bytes, prefix.len)) {
            string.bytes += prefix.len;
            string.len -= prefix.len;
        } else if (i > 0) {
            add_literal(out, " ");
        }
        add_bytes(out, string.bytes, string.len);
        if ((op->flags & 1u) != 0 && !out->failed) {
            clean_up(out);
        }
        end_string(out);
    }
}

static bool same_string(struct view a, struct view b)
{
    return a.len == b.len && memcmp(a.bytes, b.bytes, a.len) == 0;
}

static void op_ctc(const struct ptk_image_op_view *op, const struct strings *in,
                   struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string pad = ptk_image_op_string(op, &off);
    const struct ptk_image_string delimiter = ptk_image_op_string(op, &off);
    const struct view space = {(const uint8_t *)" ", 1};
    const struct view nothing = {(const uint8_t *)"", 0};
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count && !out->failed; i++) {
        ptk_pause_turn(&turns);
        if (i > 0 && same_string(string_at(in, i), string_at(in, i - 1))) {
            continue;
        }
        const size_t begin = out->len;
        add_replaced(out, string_at(in, i), pad, nothing);
        if ((op->flags & 1u) != 0 && !out->failed) {
            clean_up(out);
            /* The delimiter is replaced by something that is not longer: copy behind, then down. */
            const struct view cleaned = {out->bytes + begin, out->len - begin};
            const size_t copy = out->len;
            add_replaced(out, cleaned, delimiter, space);
            if (!out->failed) {
                ptk_pause_copy(out->bytes + begin, out->bytes + copy, out->len - copy);
                out->len = begin + (out->len - copy);
            }
        }
        if (out->len > begin) {
            end_string(out);
        }
    }
}

/* The byte that a character of the byte-level alphabet stands for, or -1. */
static int alphabet_byte(uint32_t code_point)
{
    /* Printable bytes stand for themselves; the other 68 are U+0100 and up, in ascending order. */
    if ((code_point >= 0x21 && code_point <= 0x7e) || (code_point >= 0xa1 && code_point <= 0xac) ||
        (code_point >= 0xae && code_point <= 0xff)) {
        return (int)code_point;
    }
    if (code_point < 0x100 || code_point > 0x143) {
        return -1;
    }
    const int rank = (int)code_point - 0x100;
    if (rank <= 0x20) {
        return rank;
    }
    return rank == 0x43 ? 0xad : rank - 0x21 + 0x7f;
}

static bool in_alphabet(struct view string)
{
    size_t paused_at = 0;
    for (size_t at = 0; at < string.len;) {
        ptk_pause_pos(&paused_at, at);
        uint32_t len;
        if (alphabet_byte(ptk_utf8_decode(string.bytes + at, &len)) < 0) {
            return false;
        }
        at += len;
    }
    return true;
}

/* Strings of the alphabet become bytes, others stay; bytes are no longer, so this works in
 * place. */
static void op_byte_level(struct strings *in, struct strings *out)
{
    size_t len = 0;
    uint32_t turns = 0;
    for (size_t i = 0; i < in->count; i++) {
        ptk_pause_turn(&turns);
        const struct view string = string_at(in, i);
        if (!in_alphabet(string)) {
            ptk_pause_copy(in->bytes + len, string.bytes, string.len);
            len += string.len;
            continue;
        }
        size_t paused_at = 0;
        for (size_t at = 0; at < string.len;) {
            ptk_pause_pos(&paused_at, at);
            uint32_t step;
            in->bytes[len] = (uint8_t)alphabet_byte(ptk_utf8_decode(string.bytes + at, &step));
            len++;
            at += step;
        }
    }
    if (!ptk_utf8_replace(in->bytes, len, out->bytes, out->text_cap, &out->len)) {
        out->failed = true;
        return;
    }
    end_string(out);
}

static void run_op(const struct ptk_image_op_view *op, struct strings *in, struct strings *out)
{
    switch (op->kind) {
    case PTK_OP_DEC_BYTE_LEVEL:
        op_byte_level(in, out);
        break;
    case PTK_OP_DEC_REPLACE:
        op_replace(op, in, out);
        break;
    case PTK_OP_DEC_BYTE_FALLBACK:
        op_byte_fallback(in, out);
        break;
    case PTK_OP_DEC_FUSE:
        op_fuse(in, out);
        break;
    case PTK_OP_DEC_STRIP:
        op_strip(op, in, out);
        break;
    case PTK_OP_DEC_METASPACE:
        op_metaspace(op, in, out);
        break;
    case PTK_OP_DEC_WORDPIECE:
        op_wordpiece(op, in, out);
        break;
    case PTK_OP_DEC_BPE:
        op_bpe(op, in, out);
        break;
    case PTK_OP_DEC_CTC:
        op_ctc(op, in, out);
        break;
    default:
        PTK_ASSERT(false); /* refused by ptk_decoder_init() */
    }
}

static struct strings strings_init(const struct ptk_decode_scratch *scratch, size_t which)
{
    return (struct strings){
        .bytes = scratch->bytes[which],
        .ends = scratch->ends[which],
        .text_cap = scratch->text_cap,
        .end_cap = scratch->end_cap,
    };
}

static void add_tokens(const struct ptk_decoder *decoder, const uint32_t *ids, size_t ids_len,
                       bool skip_special, struct strings *out)
{
    const struct ptk_image *image = decoder->image;
    uint32_t turns = 0;
    for (size_t i = 0; i < ids_len && !out->failed; i++) {
        ptk_pause_turn(&turns);
        if (!is_shown(image, ids[i], skip_special)) {
            continue;
        }
        if (decoder->spaced && out->count > 0) {
            add_literal(out, " ");
        }
        const uint32_t off = image->token_text_offs[ids[i]];
        add_bytes(out, image->token_text + off, image->token_text_offs[ids[i] + 1] - off);
        end_string(out);
    }
}

/* The definition: every operation over all strings. */
static enum ptk_verdict run_program(const struct ptk_decoder *decoder,
                                    const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                    size_t ids_len, bool skip_special, struct ptk_decode_text *text)
{
    size_t current = 0;
    struct strings strings[2] = {strings_init(scratch, 0), strings_init(scratch, 1)};
    add_tokens(decoder, ids, ids_len, skip_special, &strings[0]);
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (!strings[current].failed && ptk_image_op_next(&decoder->image->decoder, &pos, &op)) {
        strings[1 - current] = strings_init(scratch, 1 - current);
        run_op(&op, &strings[current], &strings[1 - current]);
        current = 1 - current;
    }
    if (strings[current].failed) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    if (strings[current].len > text->cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    ptk_pause_copy(text->bytes, strings[current].bytes, strings[current].len);
    text->len = strings[current].len;
    return PTK_VERDICT_OK;
}

/* ---- programs by table ---------------------------------------------------------------------- */

/* Tokens that the builder sends through a program at once, and room for what becomes of them. */
#define BLOCK_TOKENS 1024u
#define BLOCK_BYTES  (1u << 18)

/*
 * Whether the operations can go into a table, and which of them are left for run_table: what the
 * table holds is the string before the operations from `Fuse` on.
 */
static bool plan_table(struct ptk_decoder *decoder)
{
    bool fused = false, bytes = false;
    struct ptk_image_op_view op;
    size_t pos = 0;
    decoder->byte_runs = true;
    decoder->first_alone = decoder->spaced;
    while (ptk_image_op_next(&decoder->image->decoder, &pos, &op)) {
        switch (op.kind) {
        case PTK_OP_DEC_STRIP:
            if (!fused) {
                decoder->byte_runs = decoder->byte_runs && !bytes;
                break;
            }
            if (decoder->strip.content_len != 0) {
                return false;
            }
            decoder->strip.content_len =
                ptk_utf8_encode(ptk_load_u32(op.params), decoder->strip.content);
            decoder->strip.start = ptk_load_u32(op.params + 4);
            decoder->strip.stop = ptk_load_u32(op.params + 8);
            break;
        case PTK_OP_DEC_METASPACE:
        case PTK_OP_DEC_WORDPIECE:
            decoder->first_alone = true;
            /* fall through */
        case PTK_OP_DEC_REPLACE:
            if (fused) {
                return false;
            }
            decoder->byte_runs = decoder->byte_runs && !bytes;
            break;
        case PTK_OP_DEC_BYTE_FALLBACK:
            if (fused || bytes) {
                return false;
            }
            bytes = true;
            break;
        case PTK_OP_DEC_FUSE:
            if (fused) {
                return false;
            }
            fused = true;
            break;
        default:
            return false; /* what the last string becomes, or equal neighbours, matters */
        }
    }
    /* The program over the first id alone would strip it, though others follow. */
    return !(decoder->first_alone && decoder->strip.content_len != 0);
}

/* The strings of ids, each behind another one, through the operations before `Fuse`. Returns which
 * of the two lists holds them, string i + 1 that of first + i; `byte_of` gets the byte or -1. */
static size_t run_block(const struct ptk_decoder *decoder, const struct ptk_decode_scratch *scratch,
                        uint32_t first, uint32_t count, int *byte_of, struct strings *strings)
{
    const struct ptk_image *image = decoder->image;
    size_t current = 0;
    strings[0] = strings_init(scratch, 0);
    end_string(&strings[0]);
    const uint32_t *offs = &image->token_text_offs[first];
    for (uint32_t i = 0; i < count && decoder->spaced; i++) {
        add_literal(&strings[0], " ");
        add_bytes(&strings[0], image->token_text + offs[i], offs[i + 1] - offs[i]);
        end_string(&strings[0]);
    }
    if (!decoder->spaced) { /* texts of ids lie next to each other */
        add_bytes(&strings[0], image->token_text + offs[0], offs[count] - offs[0]);
        for (uint32_t i = 0; i < count; i++) {
            strings[0].ends[1 + i] = offs[1 + i] - offs[0];
        }
        strings[0].count += count;
    }
    for (uint32_t i = 0; i < count; i++) {
        byte_of[i] = -1;
    }
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (!strings[current].failed && ptk_image_op_next(&image->decoder, &pos, &op) &&
           op.kind != PTK_OP_DEC_FUSE) {
        if (op.kind == PTK_OP_DEC_BYTE_FALLBACK) {
            for (uint32_t i = 0; i < count; i++) {
                byte_of[i] = byte_token(string_at(&strings[current], i + 1));
            }
            continue;
        }
        strings[1 - current] = strings_init(scratch, 1 - current);
        run_op(&op, &strings[current], &strings[1 - current]);
        current = 1 - current;
    }
    return current;
}

static bool set_block(struct ptk_decoder *decoder, const struct strings *strings, uint32_t first,
                      uint32_t count, const int *byte_of)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t flags = decoder->image->token_flags[first + i];
        if ((flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS) == 0) {
            continue;
        }
        const bool special = (flags & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0;
        const uint8_t info = special ? PTK_DECODE_SPECIAL : 0;
        const uint8_t byte = (uint8_t)(byte_of[i] < 0 ? 0 : byte_of[i]);
        const struct view string = string_at(strings, i + 1);
        const bool done =
            byte_of[i] < 0
                ? ptk_decode_table_add(&decoder->table, first + i, string.bytes, string.len, info)
                : ptk_decode_table_add(&decoder->table, first + i, &byte, 1,
                                       (uint8_t)(info | PTK_DECODE_BYTE));
        if (!done) {
            return false;
        }
    }
    return true;
}

/* Fills the table by the program itself, many ids at a time. */
static int table_init(struct ptk_decoder *decoder, struct ptk_err *err)
{
    const uint32_t ids_end = decoder->image->config->ids_end;
    int code = ptk_decode_table_init(&decoder->table, ids_end, err);
    uint8_t *memory = malloc(2 * BLOCK_BYTES);
    uint32_t *ends = malloc(2 * (BLOCK_TOKENS + 1) * sizeof *ends);
    int *byte_of = malloc(BLOCK_TOKENS * sizeof *byte_of);
    if (code == 0 && (memory == NULL || ends == NULL || byte_of == NULL)) {
        code = ptk_err_set(err, -ENOMEM, "out of memory while building the decoder's table");
    }
    decoder->tabled = code == 0;
    for (uint32_t first = 0; decoder->tabled && first < ids_end; first += BLOCK_TOKENS) {
        const struct ptk_decode_scratch scratch = {
            .bytes = {memory, memory + BLOCK_BYTES},
            .ends = {ends, ends + BLOCK_TOKENS + 1},
            .text_cap = BLOCK_BYTES,
            .end_cap = BLOCK_TOKENS + 1,
        };
        struct strings strings[2];
        const uint32_t count = ids_end - first < BLOCK_TOKENS ? ids_end - first : BLOCK_TOKENS;
        const size_t current = run_block(decoder, &scratch, first, count, byte_of, strings);
        /* Tokens of absurd lengths: such a model decodes by its program. */
        decoder->tabled = !strings[current].failed &&
                          set_block(decoder, &strings[current], first, count, byte_of);
    }
    free(memory);
    free(ends);
    free(byte_of);
    return code;
}

/* Whether a token's bytes are no whole characters. */
static bool is_partial(const uint8_t *bytes, size_t len)
{
    if (len <= 16) { /* what lies behind may be read: PTK_IMAGE_OVERRUN */
        const __m128i block = _mm_loadu_si128((const __m128i *)(const void *)bytes);
        const uint32_t high = (uint32_t)_mm_movemask_epi8(block) & ((1u << len) - 1);
        if (high == 0) {
            return false;
        }
    }
    return !ptk_utf8_valid(bytes, len);
}

static int concat_init(struct ptk_decoder *decoder, struct ptk_err *err)
{
    const struct ptk_image *image = decoder->image;
    const int code = ptk_decode_table_init(&decoder->table, image->config->ids_end, err);
    for (uint32_t id = 0; code == 0 && id < image->config->ids_end; id++) {
        const uint8_t flags = image->token_flags[id];
        const uint32_t off = image->token_bytes_offs[id];
        const size_t len = image->token_bytes_offs[id + 1] - off;
        const uint8_t *bytes = image->token_bytes + off;
        const uint8_t special =
            (flags & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0 ? PTK_DECODE_SPECIAL : 0;
        const uint8_t partial = is_partial(bytes, len) ? PTK_DECODE_PARTIAL : 0;
        if ((flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS) != 0 &&
            !ptk_decode_table_add(&decoder->table, id, bytes, len, special | partial)) {
            return ptk_err_set(err, -ENOMEM, "out of memory while building the decoder's table");
        }
    }
    return code;
}

int ptk_decoder_init(struct ptk_decoder *decoder, const struct ptk_image *image,
                     struct ptk_err *err)
{
    const int code = verify_program(decoder, image, err);
    if (code != 0) {
        return code;
    }
    if (decoder->concat) {
        return concat_init(decoder, err);
    }
    return decoder->spm == NULL && plan_table(decoder) ? table_init(decoder, err) : 0;
}

void ptk_decoder_fini(struct ptk_decoder *decoder)
{
    ptk_decode_table_fini(&decoder->table);
    ptk_decode_spm_close(decoder->spm);
    decoder->spm = NULL;
}

static bool append(struct ptk_decode_text *text, const uint8_t *bytes, size_t len)
{
    if (len > text->cap - text->len) {
        return false;
    }
    memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
    return true;
}

/* U+FFFD, `count` times. */
static __attribute__((noinline)) bool append_replaced(struct ptk_decode_text *text, size_t count)
{
    uint32_t turns = 0;
    for (size_t k = 0; k < count; k++) {
        ptk_pause_turn(&turns);
        if (!append(text, (const uint8_t *)"\xef\xbf\xbd", 3)) {
            return false;
        }
    }
    return true;
}

/* A run of byte tokens, ids that are not shown between them included: its bytes, or U+FFFD for
 * each. Returns how many ids it has; 0 when there is no room. */
static inline __attribute__((always_inline)) size_t
append_bytes(const struct ptk_decoder *decoder, const uint32_t *ids, size_t ids_len,
             bool skip_special, bool pauses, struct ptk_decode_text *text)
{
    const size_t begin = text->len;
    size_t i = 0;
    uint32_t turns = 0;
    for (; i < ids_len; i++) {
        if (pauses) {
            ptk_pause_turn(&turns);
        }
        if (!is_shown(decoder->image, ids[i], skip_special)) {
            continue;
        }
        const struct ptk_decode_entry *entry = ptk_decode_table_at(&decoder->table, ids[i]);
        if ((entry->info & PTK_DECODE_BYTE) == 0) {
            break;
        }
        if (!append(text, entry->bytes, 1)) {
            return 0;
        }
    }
    const size_t len = text->len - begin;
    if (ptk_utf8_valid(text->bytes + begin, len)) {
        return i;
    }
    text->len = begin;
    return append_replaced(text, len) ? i : 0;
}

static __attribute__((noinline)) size_t append_long_run(const struct ptk_decoder *decoder,
                                                        const uint32_t *ids, size_t ids_len,
                                                        bool skip_special,
                                                        struct ptk_decode_text *text)
{
    return append_bytes(decoder, ids, ids_len, skip_special, true, text);
}

/* The same, for most runs without a pause. */
static size_t append_run(const struct ptk_decoder *decoder, const uint32_t *ids, size_t ids_len,
                         bool skip_special, struct ptk_decode_text *text)
{
    const size_t near = ptk_min_size(ids_len, PTK_PAUSE_LEN);
    const size_t before = text->len;
    const size_t count = append_bytes(decoder, ids, near, skip_special, false, text);
    if (PTK_UNLIKELY(count == near && near < ids_len)) {
        text->len = before;
        return append_long_run(decoder, ids, ids_len, skip_special, text);
    }
    return count;
}

static void strip_ends(const struct ptk_decode_strip *strip, struct ptk_decode_text *text)
{
    const struct view content = {strip->content, strip->content_len};
    const struct view whole = {text->bytes, text->len};
    const struct view rest =
        strip_stop(strip_start(whole, content, strip->start), content, strip->stop);
    if (rest.bytes != text->bytes) {
        ptk_pause_copy(text->bytes, rest.bytes, rest.len);
    }
    text->len = rest.len;
}

/* The same as run_program; false where that has to do it: no room, or byte tokens that the
 * program changes further. */
static bool run_table(const struct ptk_decoder *decoder, const struct ptk_decode_scratch *scratch,
                      const uint32_t *ids, size_t ids_len, bool skip_special,
                      struct ptk_decode_text *text)
{
    size_t i = 0;
    uint32_t turns = 0;
    if (decoder->first_alone) {
        while (i < ids_len && !is_shown(decoder->image, ids[i], skip_special)) {
            ptk_pause_turn(&turns);
            i++;
        }
        if (i < ids_len) {
            if ((ptk_decode_table_at(&decoder->table, ids[i])->info & PTK_DECODE_BYTE) != 0 ||
                run_program(decoder, scratch, ids + i, 1, false, text) != PTK_VERDICT_OK) {
                return false;
            }
            i++;
        }
    }
    while (i < ids_len) {
        const size_t some = ptk_min_size(ids_len - i, SLICE_IDS);
        const size_t copied =
            ptk_decode_table_copy(&decoder->table, ids + i, some, skip_special, text);
        i += copied;
        ptk_pause_point();
        if (copied == some) {
            continue;
        }
        const bool byte =
            (ptk_decode_table_at(&decoder->table, ids[i])->info & PTK_DECODE_BYTE) != 0;
        const size_t taken = byte && decoder->byte_runs
                                 ? append_run(decoder, ids + i, ids_len - i, skip_special, text)
                                 : 0;
        if (taken == 0) {
            return false;
        }
        i += taken;
    }
    if (decoder->strip.content_len != 0) {
        strip_ends(&decoder->strip, text);
    }
    return true;
}

enum ptk_verdict ptk_decoder_run(const struct ptk_decoder *decoder,
                                 const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                 size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                 size_t *text_len)
{
    if (decoder->concat) {
        return run_concat(decoder, scratch, ids, ids_len, skip_special, text, cap, text_len);
    }
    if (decoder->spm != NULL) {
        return ptk_decode_spm(decoder->spm, decoder->image, scratch, ids, ids_len, skip_special,
                              text, cap, text_len);
    }
    struct ptk_decode_text out = {.bytes = text, .cap = cap};
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    if (!decoder->tabled || !run_table(decoder, scratch, ids, ids_len, skip_special, &out)) {
        out.len = 0;
        verdict = run_program(decoder, scratch, ids, ids_len, skip_special, &out);
    }
    if (verdict == PTK_VERDICT_OK) {
        *text_len = out.len;
    }
    return verdict;
}

bool ptk_decoder_piece(const struct ptk_decoder *decoder, uint32_t id, bool skip_special,
                       const uint8_t **bytes, size_t *len)
{
    /* What is taken off the end, or is not a space, could take all that an id has given. */
    const struct ptk_decode_strip *strip = &decoder->strip;
    const bool plain = strip->content_len == 0 || (strip->content[0] == ' ' && strip->stop == 0);
    if (!decoder->concat && !(decoder->tabled && plain)) {
        return false;
    }
    return ptk_decode_table_view(&decoder->table, id, skip_special, bytes, len);
}
