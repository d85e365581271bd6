#include "algo/ptk_decode_spm.h"

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

#include <errno.h>
#include <stdlib.h>

#define SPACE_SYMBOL     "\xe2\x96\x81"
#define SPACE_SYMBOL_LEN 3u
#define REPLACEMENT      "\xef\xbf\xbd"

/* Flags of op_dec sentencepiece. */
#define DROP_FIRST 1u
#define DROP_ALL   2u

struct ptk_decode_spm {
    bool drop_first; /* a U+2581 at the beginning */
    bool drop_all;   /* and all that follow it there */
    struct ptk_image_string unknown;
    struct ptk_norm *denormalizer; /* NULL: there is none; owned */
};

int ptk_decode_spm_open(const struct ptk_image_op_view *op, enum ptk_image_profile profile,
                        struct ptk_decode_spm **out, struct ptk_err *err)
{
    *out = NULL;
    struct ptk_decode_spm *spm = calloc(1, sizeof *spm);
    if (spm == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    size_t off = 0;
    spm->drop_first = (op->flags & DROP_FIRST) != 0;
    spm->drop_all = (op->flags & DROP_ALL) != 0;
    spm->unknown = ptk_image_op_string(op, &off);
    const struct ptk_image_string program = ptk_image_op_string(op, &off);
    int code = 0;
    if (!ptk_utf8_valid(spm->unknown.bytes, spm->unknown.len)) {
        code = ptk_err_set(err, -EINVAL, "decoder: what stands for unknown pieces is not UTF-8");
    } else if (program.len > 0) {
        const struct ptk_norm_config config = {
            .program = program.bytes, .program_len = program.len, .profile = profile};
        code = ptk_norm_open(&config, &spm->denormalizer, err);
    }
    if (code != 0) {
        ptk_decode_spm_close(spm);
        return code;
    }
    *out = spm;
    return 0;
}

void ptk_decode_spm_close(struct ptk_decode_spm *spm)
{
    if (spm != NULL) {
        ptk_norm_close(spm->denormalizer);
        free(spm);
    }
}

/* A text while it is written. */
struct output {
    uint8_t *bytes;
    size_t len;
    size_t cap;
    bool full;
    bool at_begin; /* U+2581 may still be dropped */
    uint8_t pending[4]; /* bytes of a character that is not complete yet */
    size_t pending_len;
};

static void put(struct output *out, const uint8_t *bytes, size_t len)
{
    if (len > out->cap - out->len) {
        out->full = true;
        return;
    }
    memcpy(out->bytes + out->len, bytes, len);
    out->len += len;
}

/* Writes one character of the pending bytes, or U+FFFD for the first of them. */
static void put_pending(struct output *out, size_t char_len)
{
    const bool valid = char_len <= out->pending_len && ptk_utf8_valid(out->pending, char_len);
    const size_t taken = valid ? char_len : 1;
    if (valid) {
        put(out, out->pending, char_len);
    } else {
        put(out, (const uint8_t *)REPLACEMENT, 3);
    }
    out->pending_len -= taken;
    memmove(out->pending, out->pending + taken, out->pending_len);
}

/* How many bytes a character with this first byte has; 1 where no character has it. */
static size_t char_len_of(uint8_t byte)
{
    return byte >= 0xC2 && byte < 0xF5 ? ptk_utf8_lead_len(byte) : 1;
}

static void put_byte(struct output *out, uint8_t byte)
{
    out->pending[out->pending_len++] = byte;
    while (out->pending_len > 0 && char_len_of(out->pending[0]) <= out->pending_len) {
        put_pending(out, char_len_of(out->pending[0]));
    }
}

/* A run of byte pieces is over. */
static void end_bytes(struct output *out)
{
    while (out->pending_len > 0) {
        put_pending(out, char_len_of(out->pending[0]));
    }
}

static bool begins_with_space(const uint8_t *text, size_t len)
{
    return len >= SPACE_SYMBOL_LEN && memcmp(text, SPACE_SYMBOL, SPACE_SYMBOL_LEN) == 0;
}

static void put_piece(const struct ptk_decode_spm *spm, struct output *out, const uint8_t *piece,
                      size_t len)
{
    size_t pos = 0;
    if (out->at_begin && spm->drop_first && begins_with_space(piece, len)) {
        pos = SPACE_SYMBOL_LEN;
        out->at_begin = spm->drop_all;
    }
    size_t done = pos;
    while (pos < len) {
        if (begins_with_space(piece + pos, len - pos)) {
            put(out, piece + done, pos - done);
            put(out, (const uint8_t *)" ", 1);
            pos += SPACE_SYMBOL_LEN;
            done = pos;
        } else {
            pos++;
        }
    }
    put(out, piece + done, len - done);
}

static uint8_t hex_value(uint8_t digit)
{
    return (uint8_t)(digit <= '9' ? digit - '0' : digit - 'A' + 10);
}

static void put_id(const struct ptk_decode_spm *spm, const struct ptk_image *image, uint32_t id,
                   bool skip_special, struct output *out)
{
    const uint32_t off = image->token_text_offs[id];
    const uint8_t *piece = image->token_text + off;
    const size_t len = image->token_text_offs[id + 1] - off;
    const uint8_t flags = image->token_flags[id];
    if ((flags & PTK_IMAGE_TOKEN_FLAGS_BYTE) != 0 && len == strlen("<0xNN>")) {
        put_byte(out, (uint8_t)(hex_value(piece[3]) << 4 | hex_value(piece[4])));
        return;
    }
    end_bytes(out);
    out->at_begin = out->at_begin && out->len == 0;
    if ((flags & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0) {
        put(out, piece, skip_special ? 0 : len);
    } else if (id == image->config->unk_id) {
        put(out, spm->unknown.bytes, spm->unknown.len);
    } else {
        put_piece(spm, out, piece, len);
    }
}

static enum ptk_verdict denormalize(const struct ptk_decode_spm *spm,
                                    const struct ptk_decode_scratch *scratch,
                                    const struct output *out, uint8_t *text, size_t cap,
                                    size_t *text_len)
{
    const struct ptk_norm_section section = {.bytes = out->bytes, .len = out->len};
    struct ptk_split_text result;
    const enum ptk_verdict verdict =
        ptk_norm_run(spm->denormalizer, scratch->norm, &section, &result);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (result.len > cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    ptk_pause_copy(text, result.bytes, result.len);
    *text_len = result.len;
    return PTK_VERDICT_OK;
}

enum ptk_verdict ptk_decode_spm(const struct ptk_decode_spm *spm, const struct ptk_image *image,
                                const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                size_t *text_len)
{
    const bool direct = spm->denormalizer == NULL;
    struct output out = {
        .bytes = direct ? text : scratch->bytes[0],
        .cap = direct ? cap : scratch->text_cap,
        .at_begin = true,
    };
    uint32_t turns = 0;
    for (size_t i = 0; i < ids_len && !out.full; i++) {
        ptk_pause_turn(&turns);
        if (ids[i] < image->config->ids_end) {
            put_id(spm, image, ids[i], skip_special, &out);
        }
    }
    end_bytes(&out);
    if (out.full) {
        return direct ? PTK_VERDICT_REPLY_TOO_LONG : PTK_VERDICT_TEXT_TOO_LONG;
    }
    if (!direct) {
        return denormalize(spm, scratch, &out, text, cap, text_len);
    }
    *text_len = out.len;
    return PTK_VERDICT_OK;
}
