#include "algo/ptk_post.h"

#include <errno.h>
#include <stdlib.h>

#define OP_TRIM_OFFSETS     4u
#define OP_ADD_PREFIX_SPACE 1u

static int template_init(struct ptk_post_template *template, const struct ptk_post_item *items,
                         size_t count, struct ptk_err *err)
{
    size_t uses[2] = {0, 0};
    for (size_t i = 0; i < count; i++) {
        if (items[i].what != PTK_POST_SPECIAL) {
            uses[items[i].what]++;
        }
    }
    if (uses[PTK_POST_A] > 1 || uses[PTK_POST_B] > 1) {
        return ptk_err_set(
            err, -ENOTSUP,
            "TemplateProcessing uses a sequence more than once, which is not supported");
    }
    template->items = malloc((count + 1) * sizeof *template->items);
    if (template->items == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    memcpy(template->items, items, count * sizeof *items);
    template->item_count = count;
    template->special_count = count - uses[PTK_POST_A] - uses[PTK_POST_B];
    return 0;
}

static int templates_init(struct ptk_post *post, const struct ptk_post_item *single,
                          size_t single_count, const struct ptk_post_item *pair, size_t pair_count,
                          struct ptk_err *err)
{
    if (post->single.items != NULL) {
        return ptk_err_set(
            err, -ENOTSUP,
            "a post-processor Sequence adds special tokens twice, which is not supported");
    }
    int code = template_init(&post->single, single, single_count, err);
    if (code == 0) {
        code = template_init(&post->pair, pair, pair_count, err);
    }
    return code;
}

static int read_template(struct ptk_post *post, const struct ptk_image_op_view *op,
                         struct ptk_err *err)
{
    const size_t single_count = ptk_load_u32(op->params);
    const size_t pair_count = ptk_load_u32(op->params + 4);
    struct ptk_post_item *items = malloc((single_count + pair_count + 1) * sizeof *items);
    if (items == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (size_t i = 0; i < single_count + pair_count; i++) {
        const uint8_t *entry = op->params + 8 + 8 * i;
        items[i] = (struct ptk_post_item){
            .what = entry[0], .type_id = entry[1], .id = ptk_load_u32(entry + 4)};
    }
    const int code =
        templates_init(post, items, single_count, items + single_count, pair_count, err);
    free(items);
    return code;
}

/* [CLS] A [SEP], and B [SEP] behind it; RoBERTa has a second [SEP] before B and no type ids. */
static int read_cls_sep(struct ptk_post *post, const struct ptk_image_op_view *op,
                        struct ptk_err *err)
{
    const uint32_t cls = ptk_load_u32(op->params);
    const uint32_t sep = ptk_load_u32(op->params + 4);
    const struct ptk_post_item bert[] = {
        {PTK_POST_SPECIAL, 0, cls}, {PTK_POST_A, 0, 0},         {PTK_POST_SPECIAL, 0, sep},
        {PTK_POST_B, 1, 0},         {PTK_POST_SPECIAL, 1, sep},
    };
    const struct ptk_post_item roberta[] = {
        {PTK_POST_SPECIAL, 0, cls}, {PTK_POST_A, 0, 0}, {PTK_POST_SPECIAL, 0, sep},
        {PTK_POST_SPECIAL, 0, sep}, {PTK_POST_B, 0, 0}, {PTK_POST_SPECIAL, 0, sep},
    };
    return op->kind == PTK_OP_POST_BERT ? templates_init(post, bert, 3, bert, 5, err)
                                        : templates_init(post, roberta, 3, roberta, 6, err);
}

static int read_op(struct ptk_post *post, const struct ptk_image_op_view *op, struct ptk_err *err)
{
    const bool trims = op->kind == PTK_OP_POST_BYTE_LEVEL || op->kind == PTK_OP_POST_ROBERTA;
    if (trims && (op->flags & OP_TRIM_OFFSETS) != 0) {
        if (post->trim_count == PTK_POST_TRIMS_MAX) {
            return ptk_err_set(err, -ENOTSUP, "a post-processor Sequence trims offsets %u times",
                               PTK_POST_TRIMS_MAX + 1);
        }
        post->trims[post->trim_count].add_prefix_space = (op->flags & OP_ADD_PREFIX_SPACE) != 0;
        post->trim_count++;
    }
    post->types_all |= op->kind == PTK_OP_POST_ROBERTA;
    switch (op->kind) {
    case PTK_OP_POST_BYTE_LEVEL:
        return 0;
    case PTK_OP_POST_TEMPLATE:
        return read_template(post, op, err);
    case PTK_OP_POST_ROBERTA:
    case PTK_OP_POST_BERT:
        return read_cls_sep(post, op, err);
    default:
        return ptk_err_set(err, -ENOTSUP, "post-processor operation %u is unknown to this build",
                           (unsigned)op->kind);
    }
}

int ptk_post_init(struct ptk_post *post, const struct ptk_image *image, struct ptk_err *err)
{
    memset(post, 0, sizeof *post);
    struct ptk_image_op_view op;
    size_t pos = 0;
    while (ptk_image_op_next(&image->post_processor, &pos, &op)) {
        const int code = read_op(post, &op, err);
        if (code != 0) {
            ptk_post_fini(post);
            return code;
        }
    }
    post->adds_specials = post->single.items != NULL;
    if (!post->adds_specials) {
        const struct ptk_post_item plain[] = {{PTK_POST_A, 0, 0}, {PTK_POST_B, 1, 0}};
        const int code = templates_init(post, plain, 1, plain, 2, err);
        if (code != 0) {
            ptk_post_fini(post);
            return code;
        }
    }
    return 0;
}

void ptk_post_fini(struct ptk_post *post)
{
    free(post->single.items);
    free(post->pair.items);
    post->single.items = NULL;
    post->pair.items = NULL;
}

/* ---- truncation ----------------------------------------------------------------------------- */

#define LONGEST_FIRST 0u
#define ONLY_FIRST    1u
#define ONLY_SECOND   2u

/* The shorter sequence is kept as long as it is below its half, otherwise both get a half. */
static struct ptk_post_lens longest_first(struct ptk_post_lens lens, size_t max)
{
    const bool swapped = lens.a > lens.b;
    size_t shorter = swapped ? lens.b : lens.a;
    size_t longer = shorter > max ? shorter : ptk_max_size(shorter, max - shorter);
    if (shorter + longer > max) {
        shorter = max / 2;
        longer = shorter + max % 2;
    }
    return swapped ? (struct ptk_post_lens){longer, shorter}
                   : (struct ptk_post_lens){shorter, longer};
}

/* The reference refuses to cut a sequence with a stride that would not advance. */
static bool may_cut(size_t from, size_t to, size_t stride)
{
    return to >= from || to == 0 || stride < to;
}

enum ptk_verdict ptk_post_truncate(const struct ptk_wire_truncation *truncation, bool pair,
                                   size_t special_count, struct ptk_post_lens *lens)
{
    if (truncation->strategy > ONLY_SECOND || truncation->direction > 1 ||
        truncation->max_length < special_count) {
        return PTK_VERDICT_BAD_OPTION;
    }
    const size_t max = truncation->max_length - special_count;
    const size_t total = lens->a + lens->b;
    if (total <= max) {
        return PTK_VERDICT_OK;
    }
    const size_t excess = total - max;
    struct ptk_post_lens kept = *lens;
    if (max == 0) {
        kept = (struct ptk_post_lens){0, 0};
    } else if (truncation->strategy == LONGEST_FIRST) {
        if (pair) {
            kept = longest_first(*lens, max);
        } else {
            kept.a = max;
        }
    } else {
        if (truncation->strategy == ONLY_SECOND && !pair) {
            return PTK_VERDICT_BAD_OPTION;
        }
        size_t *target = truncation->strategy == ONLY_FIRST ? &kept.a : &kept.b;
        if (*target <= excess) {
            return PTK_VERDICT_BAD_OPTION;
        }
        *target -= excess;
    }
    if (!may_cut(lens->a, kept.a, truncation->stride) ||
        !may_cut(lens->b, kept.b, truncation->stride)) {
        return PTK_VERDICT_BAD_OPTION;
    }
    kept.a = ptk_min_size(kept.a, lens->a);
    kept.b = ptk_min_size(kept.b, lens->b);
    *lens = kept;
    return PTK_VERDICT_OK;
}
