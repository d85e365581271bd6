#include "algo/ptk_decode.h"

#include "text/ptk_utf8.h"

#include <errno.h>

int ptk_decoder_init(struct ptk_decoder *decoder, const struct ptk_image *image,
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

/* ---- concatenation -------------------------------------------------------------------------- */

/* Copies of 16 bytes overrun the short tokens' ends in source and target, where both have room. */
static bool append(uint8_t *text, size_t cap, size_t *len, const uint8_t *bytes, size_t bytes_len)
{
    if (PTK_LIKELY(bytes_len <= 16 && cap - *len >= 16)) {
        memcpy(text + *len, bytes, 16);
    } else if (bytes_len <= cap - *len) {
        memcpy(text + *len, bytes, bytes_len);
    } else {
        return false;
    }
    *len += bytes_len;
    return true;
}

static bool concat(const struct ptk_image *image, const uint32_t *ids, size_t ids_len,
                   bool skip_special, uint8_t *text, size_t cap, size_t *text_len)
{
    size_t len = 0;
    for (size_t i = 0; i < ids_len; i++) {
        if (!is_shown(image, ids[i], skip_special)) {
            continue;
        }
        const uint32_t off = image->token_bytes_offs[ids[i]];
        const size_t token_len = image->token_bytes_offs[ids[i] + 1] - off;
        if (PTK_UNLIKELY(!append(text, cap, &len, image->token_bytes + off, token_len))) {
            return false;
        }
    }
    *text_len = len;
    return true;
}

static enum ptk_verdict run_concat(const struct ptk_decoder *decoder,
                                   const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                   size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                   size_t *text_len)
{
    size_t len;
    if (!concat(decoder->image, ids, ids_len, skip_special, text, cap, &len)) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    if (PTK_LIKELY(ptk_utf8_valid(text, len))) {
        *text_len = len;
        return PTK_VERDICT_OK;
    }
    if (len > scratch->text_cap) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    memcpy(scratch->bytes[0], text, len);
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
    memcpy(strings->bytes + strings->len, bytes, len);
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

/* Copies `from` with each `pattern` replaced; an empty pattern is nowhere. */
static void add_replaced(struct strings *out, struct view from, struct ptk_image_string pattern,
                         struct view content)
{
    size_t i = 0;
    while (i < from.len) {
        const struct view rest = {from.bytes + i, from.len - i};
        if (pattern.len > 0 && begins_with(rest, pattern.bytes, pattern.len)) {
            add_bytes(out, content.bytes, content.len);
            i += pattern.len;
        } else {
            add_bytes(out, rest.bytes, 1);
            i++;
        }
    }
}

static void op_replace(const struct ptk_image_op_view *op, const struct strings *in,
                       struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string pattern = ptk_image_op_string(op, &off);
    const struct ptk_image_string content = ptk_image_op_string(op, &off);
    for (size_t i = 0; i < in->count; i++) {
        add_replaced(out, string_at(in, i), pattern, (struct view){content.bytes, content.len});
        end_string(out);
    }
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
        for (size_t i = 0; i + 1 < len; i++) {
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
    for (size_t i = 0; i < in->count; i++) {
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
    for (uint32_t i = 0; i < max && begins_with(view, content.bytes, content.len); i++) {
        view.bytes += content.len;
        view.len -= content.len;
    }
    return view;
}

static struct view strip_stop(struct view view, struct view content, uint32_t max)
{
    for (uint32_t i = 0; i < max && view.len >= content.len; i++) {
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
    for (size_t i = 0; i < in->count; i++) {
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
    for (size_t i = 0; i < in->count; i++) {
        const bool drop = i == 0 && op->params[0] != PREPEND_NEVER;
        add_replaced(out, string_at(in, i), replacement, drop ? nothing : space);
        end_string(out);
    }
}

static void op_bpe(const struct ptk_image_op_view *op, const struct strings *in,
                   struct strings *out)
{
    size_t off = 0;
    const struct ptk_image_string suffix = ptk_image_op_string(op, &off);
    const struct view space = {(const uint8_t *)" ", 1};
    const struct view nothing = {(const uint8_t *)"", 0};
    for (size_t i = 0; i < in->count; i++) {
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

/* Cleans the unfinished string of `out` up in place. */
static void clean_up(struct strings *out)
{
    uint8_t *bytes = out->bytes + (out->count == 0 ? 0 : out->ends[out->count - 1]);
    size_t len = (size_t)(out->bytes + out->len - bytes);
    for (size_t k = 0; k < PTK_ARRAY_LEN(clean_ups); k++) {
        const size_t pattern_len = strlen(clean_ups[k][0]);
        const size_t content_len = strlen(clean_ups[k][1]);
        size_t kept = 0;
        for (size_t i = 0; i < len;) {
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
    for (size_t i = 0; i < in->count; i++) {
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
    for (size_t i = 0; i < in->count && !out->failed; i++) {
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
                memmove(out->bytes + begin, out->bytes + copy, out->len - copy);
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
    for (size_t at = 0; at < string.len;) {
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
    for (size_t i = 0; i < in->count; i++) {
        const struct view string = string_at(in, i);
        if (!in_alphabet(string)) {
            memmove(in->bytes + len, string.bytes, string.len);
            len += string.len;
            continue;
        }
        for (size_t at = 0; at < string.len;) {
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
    for (size_t i = 0; i < ids_len && !out->failed; i++) {
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

enum ptk_verdict ptk_decoder_run(const struct ptk_decoder *decoder,
                                 const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                 size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                 size_t *text_len)
{
    if (decoder->concat) {
        return run_concat(decoder, scratch, ids, ids_len, skip_special, text, cap, text_len);
    }
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
    if (strings[current].len > cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    memcpy(text, strings[current].bytes, strings[current].len);
    *text_len = strings[current].len;
    return PTK_VERDICT_OK;
}
