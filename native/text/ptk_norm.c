/*
 * Normalizer programs: verified and translated when opened, then run on two buffers in turn; see
 * ptk_norm.h. The operations themselves are in the files that ptk_norm_ops.h names.
 */
#include "text/ptk_norm.h"

#include <errno.h>
#include <stdlib.h>

#include "text/ptk_norm_ops.h"

/* A bert operation becomes at most five steps, any other one. */
#define STEPS_PER_OP_MAX 5u

/* More operations than any tokenizer has; bounds the memory of a norm. */
#define OPS_MAX 64u

/* Searching costs at most the pattern's length per byte of text. */
#define PATTERN_LEN_MAX 256u

/* An operation may need a little more room than its result: ptk_norm_form keeps a starter's place.
 */
#define SLACK 64u

enum {
    STRIP_LEFT = 1 << 0,
    STRIP_RIGHT = 1 << 1,
    STRIP_FLAGS = STRIP_LEFT | STRIP_RIGHT,
    BERT_CLEAN_TEXT = 1 << 0,
    BERT_HANDLE_CHINESE = 1 << 1,
    BERT_STRIP_ACCENTS = 1 << 2,
    BERT_LOWERCASE = 1 << 3,
    BERT_FLAGS = BERT_CLEAN_TEXT | BERT_HANDLE_CHINESE | BERT_STRIP_ACCENTS | BERT_LOWERCASE,
};

enum step_kind {
    STEP_FORM = 1,
    STEP_LOWERCASE = 2,
    STEP_CLEAN = 3,
    STEP_SET_OFF = 4,
    STEP_STRIP = 5,
    STEP_PREPEND = 6,
    STEP_SPELL_BYTES = 7,
    STEP_REPLACE = 8,
    STEP_MAP = 9,
    STEP_REPLACE_REGEX = 10,
    STEP_SPM = 11,
};

struct step {
    enum step_kind kind;
    enum ptk_op_norm form;
    bool left;
    bool right;
    struct ptk_norm_clean clean;
    struct ptk_norm_string pattern;
    struct ptk_norm_string content;
    struct ptk_norm_charsmap charsmap;
    struct ptk_regex *regex;  /* owned */
    struct ptk_norm_spm *spm; /* owned */
};

struct ptk_norm {
    const struct ptk_unicode *unicode;
    const struct ptk_unicode *regex_unicode;
    size_t step_count;
    struct step steps[OPS_MAX * STEPS_PER_OP_MAX];
};

struct ptk_norm_work {
    size_t text_len_max;
    struct ptk_regex_work *regex_work;
    struct ptk_text_buf bufs[2]; /* with room for text_len_max + SLACK; align NULL unless wanted */
};

/* One operation of the program, its parameters and where it stands. */
struct op {
    uint16_t kind;
    uint16_t flags;
    const uint8_t *params;
    size_t params_len;
    size_t idx;
};

static const char *const op_names[] = PTK_OP_NORM_NAMES;

static const char *op_name(uint16_t kind)
{
    return kind > 0 && kind < PTK_OP_NORM_VALUE_COUNT ? op_names[kind] : "unknown";
}

static int refuse(const struct op *op, struct ptk_err *err, const char *what)
{
    return ptk_err_set(err, -EINVAL, "normalizer operation %zu (%s): %s", op->idx,
                       op_name(op->kind), what);
}

/* Reads the operation at `*pos` and moves behind it and its padding. */
static int next_op(const struct ptk_norm_config *config, size_t *pos, struct op *op,
                   struct ptk_err *err)
{
    size_t left = config->program_len - *pos;
    struct ptk_image_op header;
    if (left < sizeof header) {
        return ptk_err_set(err, -EINVAL, "normalizer operation %zu: header is cut off", op->idx);
    }
    const uint8_t *bytes = config->program + *pos;
    memcpy(&header, bytes, sizeof header);
    op->kind = header.kind;
    op->flags = header.flags;
    op->params = bytes + sizeof header;
    op->params_len = header.param_len;
    if (header.param_len > left - sizeof header) {
        return refuse(op, err, "parameters are cut off");
    }
    size_t op_len = sizeof header + ptk_align_up(header.param_len, 8);
    if (op_len > left) {
        return refuse(op, err, "padding is cut off");
    }
    for (size_t i = sizeof header + header.param_len; i < op_len; i++) {
        if (bytes[i] != 0) {
            return refuse(op, err, "padding is not zero");
        }
    }
    *pos += op_len;
    return 0;
}

/* Reads a STRING parameter at `*pos` of the parameters. */
static int next_string(const struct op *op, size_t *pos, struct ptk_norm_string *string,
                       struct ptk_err *err)
{
    size_t left = op->params_len - *pos;
    if (left < 4) {
        return refuse(op, err, "string length is cut off");
    }
    string->len = ptk_load_u32(op->params + *pos);
    string->bytes = op->params + *pos + 4;
    if (string->len > left - 4) {
        return refuse(op, err, "string is cut off");
    }
    *pos += 4 + string->len;
    return 0;
}

/* Reads all parameters as `count` strings. */
static int read_strings(const struct op *op, struct ptk_norm_string *strings, size_t count,
                        struct ptk_err *err)
{
    size_t pos = 0;
    for (size_t i = 0; i < count; i++) {
        int rc = next_string(op, &pos, &strings[i], err);
        if (rc != 0) {
            return rc;
        }
    }
    return pos == op->params_len ? 0 : refuse(op, err, "parameters are too long");
}

static struct step *add_step(struct ptk_norm *norm, enum step_kind kind)
{
    PTK_ASSERT(norm->step_count < PTK_ARRAY_LEN(norm->steps));
    struct step *step = &norm->steps[norm->step_count++];
    *step = (struct step){.kind = kind};
    return step;
}

static void add_clean(struct ptk_norm *norm, uint64_t removed, uint64_t spaced)
{
    add_step(norm, STEP_CLEAN)->clean = (struct ptk_norm_clean){removed, spaced};
}

static void add_form(struct ptk_norm *norm, enum ptk_op_norm form)
{
    add_step(norm, STEP_FORM)->form = form;
}

static void add_bert(struct ptk_norm *norm, uint16_t flags)
{
    if ((flags & BERT_CLEAN_TEXT) != 0) {
        add_clean(norm, PTK_UNICODE_BERT_REMOVED, PTK_UNICODE_BERT_SPACE);
    }
    if ((flags & BERT_HANDLE_CHINESE) != 0) {
        (void)add_step(norm, STEP_SET_OFF); /* Has no parameters. */
    }
    if ((flags & BERT_STRIP_ACCENTS) != 0) {
        add_form(norm, PTK_OP_NORM_NFD);
        add_clean(norm, PTK_UNICODE_BERT_MARK, 0);
    }
    if ((flags & BERT_LOWERCASE) != 0) {
        (void)add_step(norm, STEP_LOWERCASE); /* Has no parameters. */
    }
}

/* Translates an operation that has no parameters but flags. */
static int add_plain(struct ptk_norm *norm, const struct op *op, struct ptk_err *err)
{
    uint16_t allowed = op->kind == PTK_OP_NORM_STRIP  ? STRIP_FLAGS
                       : op->kind == PTK_OP_NORM_BERT ? BERT_FLAGS
                                                      : 0;
    if ((op->flags & ~allowed) != 0) {
        return refuse(op, err, "unknown flags");
    }
    if (op->params_len != 0) {
        return refuse(op, err, "parameters where there are none");
    }
    switch (op->kind) {
    case PTK_OP_NORM_NFC:
    case PTK_OP_NORM_NFD:
    case PTK_OP_NORM_NFKC:
    case PTK_OP_NORM_NFKD:
        add_form(norm, (enum ptk_op_norm)op->kind);
        break;
    case PTK_OP_NORM_LOWERCASE:
        (void)add_step(norm, STEP_LOWERCASE); /* Has no parameters. */
        break;
    case PTK_OP_NORM_STRIP_ACCENTS:
        add_clean(norm, PTK_UNICODE_MARK, 0);
        break;
    case PTK_OP_NORM_NMT:
        add_clean(norm, PTK_UNICODE_NMT_REMOVED, PTK_UNICODE_NMT_SPACE);
        break;
    case PTK_OP_NORM_BYTE_LEVEL:
        (void)add_step(norm, STEP_SPELL_BYTES); /* Has no parameters. */
        break;
    case PTK_OP_NORM_STRIP: {
        struct step *step = add_step(norm, STEP_STRIP);
        step->left = (op->flags & STRIP_LEFT) != 0;
        step->right = (op->flags & STRIP_RIGHT) != 0;
        break;
    }
    default:
        PTK_ASSERT(op->kind == PTK_OP_NORM_BERT);
        add_bert(norm, op->flags);
    }
    return 0;
}

/* Translates a map. */
static int add_map(struct ptk_norm *norm, const struct op *op, struct ptk_err *err)
{
    struct ptk_norm_string string = {0};
    if (op->flags != 0) {
        return refuse(op, err, "unknown flags");
    }
    int rc = read_strings(op, &string, 1, err);
    if (rc != 0) {
        return rc;
    }
    struct step *step = add_step(norm, STEP_MAP);
    const char *wrong = ptk_norm_charsmap_verify(string.bytes, string.len, &step->charsmap);
    return wrong == NULL ? 0 : refuse(op, err, wrong);
}

/* Translates sentencepiece's normalizer, which reads the original text: nothing may stand before
 * it. */
static int add_spm(struct ptk_norm *norm, const struct op *op, struct ptk_err *err)
{
    struct ptk_norm_string strings[2] = {0};
    if ((op->flags & ~PTK_NORM_SPM_FLAGS) != 0) {
        return refuse(op, err, "unknown flags");
    }
    if (op->idx > 0) {
        return refuse(op, err, "it must be the first operation");
    }
    int rc = read_strings(op, strings, 2, err);
    if (rc != 0) {
        return rc;
    }
    struct step *step = add_step(norm, STEP_SPM);
    const char *wrong = ptk_norm_spm_open(&strings[0], &strings[1], op->flags, &step->spm);
    return wrong == NULL ? 0 : refuse(op, err, wrong);
}

/* Translates a replacement of what a pattern, the first string, matches. */
static int add_regex(struct ptk_norm *norm, const struct op *op,
                     const struct ptk_norm_string *strings, struct ptk_err *err)
{
    const struct ptk_regex_config config = {
        .pattern = strings[0].bytes,
        .pattern_len = strings[0].len,
        .dialect = PTK_REGEX_DIALECT_ONIGURUMA,
        .unicode = norm->regex_unicode,
    };
    struct ptk_regex *regex;
    struct ptk_err why;
    int rc = ptk_regex_open(&config, &regex, &why);
    if (rc != 0) {
        return ptk_err_set(err, rc, "normalizer operation %zu (%s): %.400s", op->idx,
                           op_name(op->kind), why.text);
    }
    struct step *step = add_step(norm, STEP_REPLACE_REGEX);
    step->regex = regex;
    step->content = strings[1];
    return 0;
}

/* Translates an operation whose parameters are strings of UTF-8. */
static int add_with_strings(struct ptk_norm *norm, const struct op *op, struct ptk_err *err)
{
    struct ptk_norm_string strings[2] = {0};
    bool prepends = op->kind == PTK_OP_NORM_PREPEND;
    if (op->flags != 0) {
        return refuse(op, err, "unknown flags");
    }
    size_t count = prepends ? 1 : 2;
    int rc = read_strings(op, strings, count, err);
    if (rc != 0) {
        return rc;
    }
    for (size_t i = 0; i < count; i++) {
        if (!ptk_utf8_valid(strings[i].bytes, strings[i].len)) {
            return refuse(op, err, "string is not valid UTF-8");
        }
    }
    if (prepends) {
        add_step(norm, STEP_PREPEND)->content = strings[0];
        return 0;
    }
    if (op->kind == PTK_OP_NORM_REPLACE_REGEX) {
        return add_regex(norm, op, strings, err);
    }
    if (strings[0].len > PATTERN_LEN_MAX) {
        return ptk_err_set(err, -ENOTSUP,
                           "normalizer operation %zu (%s): pattern of %zu bytes, at most %u are "
                           "supported",
                           op->idx, op_name(op->kind), strings[0].len, PATTERN_LEN_MAX);
    }
    struct step *step = add_step(norm, STEP_REPLACE);
    step->pattern = strings[0];
    step->content = strings[1];
    return 0;
}

static int add_op(struct ptk_norm *norm, const struct op *op, struct ptk_err *err)
{
    switch (op->kind) {
    case PTK_OP_NORM_NFC:
    case PTK_OP_NORM_NFD:
    case PTK_OP_NORM_NFKC:
    case PTK_OP_NORM_NFKD:
    case PTK_OP_NORM_LOWERCASE:
    case PTK_OP_NORM_STRIP_ACCENTS:
    case PTK_OP_NORM_STRIP:
    case PTK_OP_NORM_NMT:
    case PTK_OP_NORM_BERT:
    case PTK_OP_NORM_BYTE_LEVEL:
        return add_plain(norm, op, err);
    case PTK_OP_NORM_PREPEND:
    case PTK_OP_NORM_REPLACE_STRING:
    case PTK_OP_NORM_REPLACE_REGEX:
        return add_with_strings(norm, op, err);
    case PTK_OP_NORM_PRECOMPILED:
        return add_map(norm, op, err);
    case PTK_OP_NORM_SENTENCEPIECE:
        return add_spm(norm, op, err);
    default:
        return ptk_err_set(err, -EINVAL, "normalizer operation %zu: unknown kind %u", op->idx,
                           (unsigned)op->kind);
    }
}

int ptk_norm_open(const struct ptk_norm_config *config, struct ptk_norm **out, struct ptk_err *err)
{
    const struct ptk_unicode *unicode = ptk_unicode_open(config->profile);
    if (unicode == NULL) {
        return ptk_err_set(err, -ENOTSUP, "normalizer: no Unicode tables for profile %d",
                           (int)config->profile);
    }
    struct ptk_norm *norm = calloc(1, sizeof *norm);
    if (norm == NULL) {
        return ptk_err_set(err, -ENOMEM, "normalizer: no memory for %zu bytes", sizeof *norm);
    }
    norm->unicode = unicode;
    norm->regex_unicode = ptk_unicode_open_regex(config->profile);
    int rc = 0;
    size_t pos = 0;
    for (struct op op = {0}; pos < config->program_len && rc == 0; op.idx++) {
        if (op.idx == OPS_MAX) {
            rc = ptk_err_set(err, -ENOTSUP, "normalizer: more than %u operations", OPS_MAX);
            break;
        }
        rc = next_op(config, &pos, &op, err);
        if (rc == 0) {
            rc = add_op(norm, &op, err);
        }
    }
    if (rc != 0) {
        ptk_norm_close(norm);
        return rc;
    }
    *out = norm;
    return 0;
}

void ptk_norm_close(struct ptk_norm *norm)
{
    if (norm == NULL) {
        return;
    }
    for (size_t i = 0; i < norm->step_count; i++) {
        ptk_regex_close(norm->steps[i].regex);
        ptk_norm_spm_close(norm->steps[i].spm);
    }
    free(norm);
}

bool ptk_norm_is_empty(const struct ptk_norm *norm)
{
    return norm->step_count == 0;
}

/* Bytes of one buffer's text and of its alignment. */
static size_t buf_bytes_len(const struct ptk_norm_limits *limits)
{
    return ptk_align_up(limits->text_len_max + SLACK, PTK_CACHE_LINE);
}

static size_t buf_align_len(const struct ptk_norm_limits *limits)
{
    return limits->align ? buf_bytes_len(limits) * sizeof(struct ptk_span) : 0;
}

static size_t regex_work_len(const struct ptk_norm_limits *limits)
{
    return ptk_align_up(ptk_regex_work_len(limits->text_len_max), PTK_CACHE_LINE);
}

size_t ptk_norm_work_len(const struct ptk_norm_limits *limits)
{
    return ptk_align_up(sizeof(struct ptk_norm_work), PTK_CACHE_LINE) +
           2 * (buf_bytes_len(limits) + buf_align_len(limits)) + regex_work_len(limits);
}

struct ptk_norm_work *ptk_norm_work_init(void *memory, const struct ptk_norm_limits *limits)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(limits->text_len_max < (size_t)1 << 31);
    struct ptk_norm_work *work = memory;
    uint8_t *next = (uint8_t *)memory + ptk_align_up(sizeof *work, PTK_CACHE_LINE);
    work->text_len_max = limits->text_len_max;
    for (size_t i = 0; i < 2; i++) {
        struct ptk_text_buf *buf = &work->bufs[i];
        buf->bytes = next;
        buf->cap = limits->text_len_max + SLACK;
        buf->len = 0;
        next += buf_bytes_len(limits);
        buf->align = limits->align ? (struct ptk_span *)(void *)next : NULL;
        next += buf_align_len(limits);
    }
    work->regex_work = ptk_regex_work_init(next, limits->text_len_max);
    next += regex_work_len(limits);
    PTK_ASSERT((size_t)(next - (uint8_t *)memory) == ptk_norm_work_len(limits));
    return work;
}

static enum ptk_norm_step run_step(const struct ptk_norm *norm, const struct ptk_norm_work *work,
                                   const struct step *step, struct ptk_split_text *text,
                                   struct ptk_text_buf *out)
{
    switch (step->kind) {
    case STEP_FORM:
        return ptk_norm_form(norm->unicode, step->form, text, out);
    case STEP_LOWERCASE:
        return ptk_norm_lowercase(norm->unicode, text, out);
    case STEP_CLEAN:
        return ptk_norm_clean(norm->unicode, &step->clean, text, out);
    case STEP_SET_OFF:
        return ptk_norm_set_off(norm->unicode, text, out);
    case STEP_STRIP:
        ptk_norm_strip(norm->unicode, step->left, step->right, text);
        return PTK_NORM_STEP_SAME;
    case STEP_PREPEND:
        return ptk_norm_prepend(&step->content, text, out);
    case STEP_SPELL_BYTES:
        return ptk_norm_spell_bytes(text, out);
    case STEP_REPLACE:
        return ptk_norm_replace(&step->pattern, &step->content, text, out);
    case STEP_REPLACE_REGEX:
        return ptk_norm_replace_regex(step->regex, work->regex_work, &step->content, text, out);
    case STEP_SPM:
        return ptk_norm_spm(step->spm, text, out);
    case STEP_MAP:
        break;
    }
    PTK_ASSERT(step->kind == STEP_MAP);
    return ptk_norm_map(norm->unicode, &step->charsmap, text, out);
}

enum ptk_verdict ptk_norm_run(const struct ptk_norm *norm, struct ptk_norm_work *work,
                              const struct ptk_norm_section *section, struct ptk_split_text *result)
{
    struct ptk_split_text text = {
        .bytes = section->bytes, .len = section->len, .origin = section->origin};
    PTK_ASSERT(!section->align || work->bufs[0].align != NULL);
    if (section->len > work->text_len_max) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    size_t free_idx = 0; /* the buffer that does not hold the text */
    for (size_t i = 0; i < norm->step_count; i++) {
        struct ptk_text_buf out = work->bufs[free_idx];
        out.len = 0;
        if (!section->align) {
            out.align = NULL;
        }
        switch (run_step(norm, work, &norm->steps[i], &text, &out)) {
        case PTK_NORM_STEP_SAME:
            break;
        case PTK_NORM_STEP_CHANGED:
            if (out.len > work->text_len_max) {
                return PTK_VERDICT_TEXT_TOO_LONG;
            }
            text.bytes = out.bytes;
            text.align = out.align;
            text.len = out.len;
            free_idx ^= 1;
            break;
        case PTK_NORM_STEP_FULL:
            return PTK_VERDICT_TEXT_TOO_LONG;
        case PTK_NORM_STEP_TOO_HARD:
            return PTK_VERDICT_UNSUPPORTED;
        }
    }
    *result = text;
    return PTK_VERDICT_OK;
}

struct ptk_text_buf ptk_norm_spare(const struct ptk_norm_work *work, const uint8_t *bytes)
{
    const struct ptk_text_buf *first = &work->bufs[0];
    const bool in_first = bytes >= first->bytes && bytes < first->bytes + first->cap;
    struct ptk_text_buf spare = work->bufs[in_first ? 1 : 0];
    spare.len = 0;
    spare.cap = work->text_len_max;
    return spare;
}

bool ptk_norm_copy(const struct ptk_split_text *in, size_t begin, size_t end,
                   struct ptk_text_buf *out)
{
    size_t len = end - begin;
    if (out->cap - out->len < len) {
        return false;
    }
    ptk_norm_copy_bytes(out, in->bytes + begin, len, in->len - begin);
    if (out->align != NULL && in->align != NULL) {
        ptk_pause_copy(out->align + out->len, in->align + begin, len * sizeof *out->align);
    } else if (out->align != NULL) {
        size_t paused_at = begin;
        for (size_t pos = begin; pos < end;) {
            ptk_pause_pos(&paused_at, pos);
            size_t char_len = ptk_utf8_lead_len(in->bytes[pos]);
            ptk_norm_fill_align(out, out->len + pos - begin, char_len, ptk_norm_align_at(in, pos));
            pos += char_len;
        }
    }
    out->len += len;
    return true;
}
