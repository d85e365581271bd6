/*
 * Proves the programs of an image: whole operations, known kinds, parameters of the right shape and
 * range.
 */
#include "image/ptk_image_verify.h"

#include <errno.h>

#define REFUSE(...) ptk_err_set(err, -EINVAL, __VA_ARGS__)

static bool id_ok(const struct ptk_image *image, uint32_t id)
{
    return id < image->config->ids_end;
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    uint8_t any = 0;
    for (size_t i = 0; i < len; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

/* What the parameters of one kind of operation look like. */
struct op_shape {
    bool known;
    uint8_t fixed;   /* bytes before the strings */
    uint8_t strings; /* STRINGs after them */
    uint16_t flags;  /* flags that may be set */
};

/* Every operation behind a pre-tokenizer's byte_level may carry the ALPHABET flag. */
#define OP_FLAG_ALPHABET 0x8000u

static const struct op_shape norm_shapes[PTK_OP_NORM_VALUE_COUNT] = {
    [PTK_OP_NORM_NFC] = {true, 0, 0, 0},           [PTK_OP_NORM_NFD] = {true, 0, 0, 0},
    [PTK_OP_NORM_NFKC] = {true, 0, 0, 0},          [PTK_OP_NORM_NFKD] = {true, 0, 0, 0},
    [PTK_OP_NORM_LOWERCASE] = {true, 0, 0, 0},     [PTK_OP_NORM_STRIP_ACCENTS] = {true, 0, 0, 0},
    [PTK_OP_NORM_STRIP] = {true, 0, 0, 3},         [PTK_OP_NORM_REPLACE_STRING] = {true, 0, 2, 0},
    [PTK_OP_NORM_REPLACE_REGEX] = {true, 0, 2, 0}, [PTK_OP_NORM_PREPEND] = {true, 0, 1, 0},
    [PTK_OP_NORM_NMT] = {true, 0, 0, 0},           [PTK_OP_NORM_PRECOMPILED] = {true, 0, 1, 0},
    [PTK_OP_NORM_BERT] = {true, 0, 0, 15},         [PTK_OP_NORM_BYTE_LEVEL] = {true, 0, 0, 0},
    [PTK_OP_NORM_SENTENCEPIECE] = {true, 0, 2, 15},
};

static const struct op_shape pre_shapes[PTK_OP_PRE_VALUE_COUNT] = {
    [PTK_OP_PRE_BYTE_LEVEL] = {true, 0, 0, 7 | OP_FLAG_ALPHABET},
    [PTK_OP_PRE_SPLIT_KNOWN] = {true, 8, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_SPLIT_REGEX] = {true, 4, 1, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_SPLIT_STRING] = {true, 4, 1, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_METASPACE] = {true, 4, 1, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_WHITESPACE] = {true, 0, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_WHITESPACE_SPLIT] = {true, 0, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_PUNCTUATION] = {true, 4, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_DIGITS] = {true, 0, 0, 1 | OP_FLAG_ALPHABET},
    [PTK_OP_PRE_BERT] = {true, 0, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_UNICODE_SCRIPTS] = {true, 0, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_CHAR_DELIMITER] = {true, 4, 0, OP_FLAG_ALPHABET},
    [PTK_OP_PRE_FIXED_LENGTH] = {true, 4, 0, OP_FLAG_ALPHABET},
};

static const struct op_shape post_shapes[PTK_OP_POST_VALUE_COUNT] = {
    [PTK_OP_POST_BYTE_LEVEL] = {true, 0, 0, 5},
    [PTK_OP_POST_TEMPLATE] = {true, 8, 0, 0}, /* and its entries, see verify_template */
    [PTK_OP_POST_ROBERTA] = {true, 8, 0, 5},
    [PTK_OP_POST_BERT] = {true, 8, 0, 0},
};

static const struct op_shape dec_shapes[PTK_OP_DEC_VALUE_COUNT] = {
    [PTK_OP_DEC_BYTE_LEVEL] = {true, 0, 0, 0},    [PTK_OP_DEC_REPLACE] = {true, 0, 2, 0},
    [PTK_OP_DEC_BYTE_FALLBACK] = {true, 0, 0, 0}, [PTK_OP_DEC_FUSE] = {true, 0, 0, 0},
    [PTK_OP_DEC_STRIP] = {true, 12, 0, 0},        [PTK_OP_DEC_METASPACE] = {true, 4, 1, 0},
    [PTK_OP_DEC_WORDPIECE] = {true, 0, 1, 1},     [PTK_OP_DEC_BPE] = {true, 0, 1, 0},
    [PTK_OP_DEC_CTC] = {true, 0, 2, 1},           [PTK_OP_DEC_REPLACE_REGEX] = {true, 0, 2, 0},
    [PTK_OP_DEC_SENTENCEPIECE] = {true, 0, 2, 3},
};

static bool shape_holds(const struct op_shape *shape, const uint8_t *params, size_t len)
{
    size_t off = shape->fixed;
    if (off > len) {
        return false;
    }
    for (uint32_t i = 0; i < shape->strings; i++) {
        if (len - off < 4 || ptk_load_u32(params + off) > len - off - 4) {
            return false;
        }
        off += 4 + (size_t)ptk_load_u32(params + off);
    }
    return off == len;
}

static bool template_holds(const struct ptk_image *image, const uint8_t *params, size_t len)
{
    if (len < 8 || (len & 7) != 0) {
        return false;
    }
    const uint64_t count = (uint64_t)ptk_load_u32(params) + ptk_load_u32(params + 4);
    if (count != len / 8 - 1) {
        return false;
    }
    for (size_t off = 8; off < len; off += 8) {
        const bool special = params[off] == 2;
        const uint32_t id = ptk_load_u32(params + off + 4);
        if (params[off] > 2 || ptk_load_u16(params + off + 2) != 0 ||
            (special ? !id_ok(image, id) : id != 0)) {
            return false;
        }
    }
    return true;
}

/* Values of parameters beyond their shape. */
static bool values_hold(const struct ptk_image *image, uint32_t section, uint32_t kind,
                        const uint8_t *params)
{
    switch (section) {
    case PTK_IMAGE_SECTION_PRE_TOKENIZER:
        switch (kind) {
        case PTK_OP_PRE_SPLIT_KNOWN: {
            const uint16_t scanner = ptk_load_u16(params);
            return scanner != 0 && scanner < PTK_SPLIT_SCANNER_VALUE_COUNT && params[2] <= 4 &&
                   params[3] <= 1 && ptk_load_u32(params + 4) == 0;
        }
        case PTK_OP_PRE_SPLIT_REGEX:
        case PTK_OP_PRE_SPLIT_STRING:
            return params[0] <= 4 && params[1] <= 1 && ptk_load_u16(params + 2) == 0;
        case PTK_OP_PRE_METASPACE:
            return params[0] <= 2 && params[1] <= 1 && ptk_load_u16(params + 2) == 0;
        case PTK_OP_PRE_PUNCTUATION:
            return ptk_load_u32(params) <= 4;
        case PTK_OP_PRE_CHAR_DELIMITER:
            return ptk_load_u32(params) <= 0x10ffff;
        case PTK_OP_PRE_FIXED_LENGTH:
            return ptk_load_u32(params) != 0;
        default:
            return true;
        }
    case PTK_IMAGE_SECTION_POST_PROCESSOR:
        if (kind == PTK_OP_POST_ROBERTA || kind == PTK_OP_POST_BERT) {
            return id_ok(image, ptk_load_u32(params)) && id_ok(image, ptk_load_u32(params + 4));
        }
        return true;
    case PTK_IMAGE_SECTION_DECODER:
        if (kind == PTK_OP_DEC_STRIP) {
            return ptk_load_u32(params) <= 0x10ffff;
        }
        if (kind == PTK_OP_DEC_METASPACE) {
            return params[0] <= 2 && params[1] <= 1 && ptk_load_u16(params + 2) == 0;
        }
        return true;
    default:
        return true;
    }
}

static int verify_program(const struct ptk_image *image, struct ptk_image_program *program,
                          uint32_t section, const struct op_shape *shapes, uint32_t shape_count,
                          struct ptk_err *err)
{
    static const char *const names[] = PTK_IMAGE_SECTION_NAMES;
    size_t pos = 0;
    uint32_t op_count = 0;
    while (pos < program->len) {
        if (program->len - pos < sizeof(struct ptk_image_op)) {
            return REFUSE("image: %s ends inside operation %u", names[section], op_count);
        }
        const uint8_t *op = program->bytes + pos;
        const uint16_t kind = ptk_load_u16(op);
        const uint16_t flags = ptk_load_u16(op + 2);
        const size_t param_len = ptk_load_u32(op + 4);
        const size_t padded_len = ptk_align_up(param_len, 8);
        pos += sizeof(struct ptk_image_op);
        if (padded_len > program->len - pos) {
            return REFUSE("image: %s ends inside operation %u", names[section], op_count);
        }
        const uint8_t *params = program->bytes + pos;
        if (kind >= shape_count || !shapes[kind].known || (flags & ~shapes[kind].flags) != 0) {
            return REFUSE("image: %s has an unknown operation %u with flags %#x", names[section],
                          kind, flags);
        }
        const bool is_template =
            section == PTK_IMAGE_SECTION_POST_PROCESSOR && kind == PTK_OP_POST_TEMPLATE;
        const bool holds = is_template ? template_holds(image, params, param_len)
                                       : shape_holds(&shapes[kind], params, param_len);
        if (!holds || !values_hold(image, section, kind, params)) {
            return REFUSE("image: operation %u of %s has malformed parameters", op_count,
                          names[section]);
        }
        if (!all_zero(params + param_len, padded_len - param_len)) {
            return REFUSE("image: operation %u of %s is not padded with zeros", op_count,
                          names[section]);
        }
        pos += padded_len;
        op_count++;
    }
    program->op_count = op_count;
    return 0;
}

int ptk_image_verify_programs(struct ptk_image *image, struct ptk_err *err)
{
    int rc = verify_program(image, &image->normalizer, PTK_IMAGE_SECTION_NORMALIZER, norm_shapes,
                            PTK_OP_NORM_VALUE_COUNT, err);
    if (rc == 0) {
        rc = verify_program(image, &image->pre_tokenizer, PTK_IMAGE_SECTION_PRE_TOKENIZER,
                            pre_shapes, PTK_OP_PRE_VALUE_COUNT, err);
    }
    if (rc == 0) {
        rc = verify_program(image, &image->post_processor, PTK_IMAGE_SECTION_POST_PROCESSOR,
                            post_shapes, PTK_OP_POST_VALUE_COUNT, err);
    }
    if (rc == 0) {
        rc = verify_program(image, &image->decoder, PTK_IMAGE_SECTION_DECODER, dec_shapes,
                            PTK_OP_DEC_VALUE_COUNT, err);
    }
    return rc;
}
