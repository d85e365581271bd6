/*
 * One step of a stream of ids, without state but the window of ids that the caller carries.
 *
 * Two rules, by the source of the model:
 *
 *   text rule    Hugging Face: decode the context, decode context and window; when the text has
 *                grown and does not end in U+FFFD, what it has more than the context is given, and
 *                the window becomes the next context. sentencepiece: the same, but a window without
 *                text keeps the context, since spaces are dropped before the first text alone
 *   byte rule    tiktoken, Tekken: the bytes of the ids go through an incremental UTF-8 decoder;
 *                the window is what holds the unfinished character at the end
 *
 * What the references leave open (raising where the context's text has changed, never giving the
 * end, holding back without end) is defined in gen/WIRE.md.
 */
#include "algo/ptk_tokenizer_state.h"
#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

/* A text in the scratch. */
struct text {
    const uint8_t *bytes;
    size_t len;
};

/* One step under way. */
struct job {
    const struct ptk_tokenizer *tokenizer;
    struct ptk_work *work;
    const struct ptk_step_request *request;
    struct ptk_step *out;
    size_t scratch_len; /* in use */
};

/* Decodes ids[begin..end) into what is left of the scratch. */
static enum ptk_verdict decode(struct job *job, size_t begin, size_t end, struct text *text)
{
    const struct ptk_step_request *request = job->request;
    uint8_t *bytes = request->scratch + job->scratch_len;
    const enum ptk_verdict verdict = ptk_tokenizer_decode(
        job->tokenizer, job->work, request->ids + begin, end - begin, request->options, bytes,
        request->scratch_cap - job->scratch_len, &text->len);
    if (verdict != PTK_VERDICT_OK) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    text->bytes = bytes;
    job->scratch_len += text->len;
    return PTK_VERDICT_OK;
}

static bool ends_replaced(struct text text)
{
    static const uint8_t replacement[] = {0xEF, 0xBF, 0xBD};
    return text.len >= sizeof replacement &&
           memcmp(text.bytes + text.len - sizeof replacement, replacement, sizeof replacement) == 0;
}

static bool begins_with(struct text text, struct text front)
{
    return text.len >= front.len && ptk_pause_equal(text.bytes, front.bytes, front.len);
}

static enum ptk_verdict give(struct job *job, const uint8_t *bytes, size_t len)
{
    if (len > job->out->cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    ptk_pause_copy(job->out->text, bytes, len);
    job->out->text_len = len;
    return PTK_VERDICT_OK;
}

/* ---- text rule ------------------------------------------------------------------------------ */

/* The text of the context. Without any, all ids but the new ones are it, unless they end amid a
 * character. */
static enum ptk_verdict find_context(struct job *job, size_t *given_count, struct text *context)
{
    const struct ptk_step_request *request = job->request;
    const size_t before = request->ids_count - request->new_count;
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    *given_count = request->given_count;
    *context = (struct text){request->scratch, 0};
    if (*given_count > 0) {
        verdict = decode(job, 0, *given_count, context);
    }
    if (verdict != PTK_VERDICT_OK || context->len > 0 || *given_count == before) {
        return verdict;
    }
    verdict = decode(job, 0, before, context);
    if (verdict == PTK_VERDICT_OK && ends_replaced(*context)) {
        context->len = 0;
    } else {
        *given_count = before;
    }
    return verdict;
}

/* Whether a window must always begin with some text. */
static bool keeps_text(const struct ptk_tokenizer *tokenizer)
{
    return tokenizer->image->header->source == PTK_IMAGE_SOURCE_SENTENCEPIECE;
}

static enum ptk_verdict step_text(struct job *job)
{
    const struct ptk_step_request *request = job->request;
    struct ptk_step *out = job->out;
    struct text context;
    struct text text;
    size_t given_count;
    enum ptk_verdict verdict = find_context(job, &given_count, &context);
    if (verdict == PTK_VERDICT_OK) {
        verdict = decode(job, 0, request->ids_count, &text);
    }
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const size_t held_count = request->ids_count - given_count;
    const bool complete = text.len > context.len && !ends_replaced(text);
    if (!complete && !request->flush && held_count < PTK_WIRE_STEP_HELD_MAX) {
        out->given_count = given_count;
        return PTK_VERDICT_OK;
    }
    if (!begins_with(text, context)) {
        /* What was given cannot be taken back: only what follows it is still open. */
        context.len = 0;
        verdict = decode(job, given_count, request->ids_count, &text);
    }
    if (verdict == PTK_VERDICT_OK) {
        verdict = give(job, text.bytes + context.len, text.len - context.len);
    }
    out->dropped_count = request->flush ? request->ids_count : given_count;
    if (verdict == PTK_VERDICT_OK && !request->flush && keeps_text(job->tokenizer)) {
        verdict = decode(job, given_count, request->ids_count, &text);
        out->dropped_count = text.len > 0 ? given_count : 0;
    }
    out->given_count = request->ids_count - out->dropped_count;
    return verdict;
}

/* ---- byte rule ------------------------------------------------------------------------------ */

/* The bytes of an id; none for one that is not shown. */
static struct text id_bytes(const struct job *job, uint32_t id)
{
    const struct ptk_image *image = job->tokenizer->image;
    const bool skip = (job->request->options & PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS) != 0;
    if (id >= image->config->ids_end) {
        return (struct text){image->token_bytes, 0};
    }
    const uint32_t flags = image->token_flags[id];
    const bool shown = (flags & PTK_IMAGE_TOKEN_FLAGS_EXISTS) != 0 &&
                       !(skip && (flags & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0);
    const uint32_t off = image->token_bytes_offs[id];
    const size_t len = shown ? image->token_bytes_offs[id + 1] - off : 0;
    return (struct text){image->token_bytes + off, len};
}

/* Where the unfinished character at the end of the bytes begins; their end when there is none. */
static size_t unfinished_at(const uint8_t *bytes, size_t len)
{
    /* An unfinished character has three bytes at most, and its first is no continuation. */
    for (size_t back = 1; back <= ptk_min_size(len, 3); back++) {
        if ((bytes[len - back] & 0xC0) != 0x80) {
            return ptk_utf8_char_len(bytes + len - back, back) == 0 ? len - back : len;
        }
    }
    return len;
}

static enum ptk_verdict step_bytes(struct job *job)
{
    const struct ptk_step_request *request = job->request;
    struct ptk_step *out = job->out;
    uint8_t *bytes = request->scratch;
    size_t len = 0;
    size_t begin = 0; /* of what is not given yet */
    uint32_t turns = 0;
    for (size_t i = 0; i <= request->ids_count; i++) {
        ptk_pause_turn(&turns);
        if (i == request->ids_count - request->new_count) {
            begin = unfinished_at(bytes, len);
        }
        if (i == request->ids_count) {
            break;
        }
        const struct text token = id_bytes(job, request->ids[i]);
        if (token.len > request->scratch_cap - len) {
            return PTK_VERDICT_TEXT_TOO_LONG;
        }
        memcpy(bytes + len, token.bytes, token.len);
        len += token.len;
    }
    const size_t end = request->flush ? len : begin + unfinished_at(bytes + begin, len - begin);
    if (!ptk_utf8_replace(bytes + begin, end - begin, out->text, out->cap, &out->text_len)) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    /* The window keeps the last ids that hold all bytes from `end` on. */
    out->dropped_count = request->ids_count;
    for (size_t kept = 0; kept < len - end; out->dropped_count--) {
        ptk_pause_turn(&turns);
        kept += id_bytes(job, request->ids[out->dropped_count - 1]).len;
    }
    out->given_count = request->ids_count - out->dropped_count;
    return PTK_VERDICT_OK;
}

enum ptk_verdict ptk_tokenizer_step(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                    const struct ptk_step_request *request, struct ptk_step *out)
{
    PTK_ASSERT(request->given_count <= request->ids_count);
    PTK_ASSERT(request->new_count <= request->ids_count - request->given_count);
    const uint32_t source = tokenizer->image->header->source;
    struct job job = {.tokenizer = tokenizer, .work = work, .request = request, .out = out};
    out->text_len = 0;
    out->dropped_count = 0;
    out->given_count = 0;
    return source == PTK_IMAGE_SOURCE_TIKTOKEN || source == PTK_IMAGE_SOURCE_TEKKEN
               ? step_bytes(&job)
               : step_text(&job);
}
