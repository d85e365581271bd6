/*
 * Small images for tests, assembled in memory: a byte-level BPE with added tokens, programs and a
 * trie, so that every kind of section is there.
 *
 * Include it in one file of a test program. The vocabulary: the 256 bytes under their own ids, then
 * "th", "the", "in", "ing", " t"; added tokens "<s>" (original text) and "end" (normalized text).
 */
#ifndef PTK_IMAGE_MAKER_H
#define PTK_IMAGE_MAKER_H

#include <stdlib.h>

#include "image/ptk_image_build.h"

#define MAKER_LEN_MAX   (256u << 10)
#define MAKER_IDS_END   263u
#define MAKER_MODEL_LEN 261u

enum maker_ids {
    MAKER_TH = 256,
    MAKER_THE,
    MAKER_IN,
    MAKER_ING,
    MAKER_SPACE_T,
    MAKER_S,
    MAKER_END
};

static const char *const maker_tokens[] = {"th", "the", "in", "ing", " t"};

struct maker_section {
    uint32_t kind;
    uint32_t item_len; /* 1: plain bytes */
    size_t len;
    uint8_t *bytes;
};

struct maker {
    struct maker_section sections[PTK_IMAGE_SECTION_VALUE_COUNT];
    uint32_t count;
};

/* Adds a section; kinds must ascend. Returns its zeroed bytes. */
static void *maker_add(struct maker *maker, uint32_t kind, uint32_t item_len, size_t count)
{
    struct maker_section *section = &maker->sections[maker->count++];
    section->kind = kind;
    section->item_len = item_len;
    section->len = item_len * count;
    section->bytes = calloc(1, section->len + 1);
    PTK_ASSERT(section->bytes != NULL);
    return section->bytes;
}

static void maker_copy(struct maker *maker, uint32_t kind, const void *bytes, size_t len)
{
    memcpy(maker_add(maker, kind, 1, len), bytes, len);
}

static void maker_repair(uint8_t *image, size_t len)
{
    ptk_store_u64(image + offsetof(struct ptk_image_header, checksum),
                  ptk_image_checksum(image, len));
}

/* The bytes of the image, 64-byte aligned; release with free. Frees the sections. */
static uint8_t *maker_finish(struct maker *maker, size_t *len)
{
    uint8_t *image = aligned_alloc(64, MAKER_LEN_MAX);
    PTK_ASSERT(image != NULL);
    memset(image, 0, MAKER_LEN_MAX);
    size_t off = ptk_align_up(sizeof(struct ptk_image_header) +
                                  maker->count * sizeof(struct ptk_image_section_entry),
                              64);
    for (uint32_t i = 0; i < maker->count; i++) {
        const struct maker_section *section = &maker->sections[i];
        const struct ptk_image_section_entry entry = {
            .kind = section->kind,
            .off = off,
            .len = section->len,
            .item_count = section->item_len > 1 ? section->len / section->item_len : 0,
        };
        memcpy(image + sizeof(struct ptk_image_header) + i * sizeof entry, &entry, sizeof entry);
        PTK_ASSERT(off + section->len <= MAKER_LEN_MAX);
        memcpy(image + off, section->bytes, section->len);
        off = ptk_align_up(off + section->len, 64);
        free(section->bytes);
    }
    struct ptk_image_header header = {
        .version = PTK_IMAGE_VERSION,
        .section_count = maker->count,
        .image_len = off,
        .fingerprint = {7, 0, 0, 0, 1},
        .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
        .source = PTK_IMAGE_SOURCE_TOKENIZER_JSON,
        .tag = 7,
    };
    memcpy(header.magic, PTK_IMAGE_MAGIC, sizeof header.magic);
    memcpy(image, &header, sizeof header);
    maker_repair(image, off);
    *len = off;
    return image;
}

/* One operation; returns its length. */
static size_t maker_op(uint8_t *out, uint16_t kind, uint16_t flags, const void *params,
                       uint32_t param_len)
{
    ptk_store_u16(out, kind);
    ptk_store_u16(out + 2, flags);
    ptk_store_u32(out + 4, param_len);
    memset(out + 8, 0, ptk_align_up(param_len, 8));
    if (param_len > 0) {
        memcpy(out + 8, params, param_len);
    }
    return 8 + ptk_align_up(param_len, 8);
}

/* Token strings, their offsets, and the keys of the model's own tokens. */
struct maker_keys {
    uint32_t offs[MAKER_IDS_END + 1];
    uint32_t text_offs[MAKER_IDS_END + 1];
    uint8_t bytes[1024]; /* keys, then room for the overrun */
    uint8_t text[1024];
};

static void maker_make_keys(struct maker_keys *keys)
{
    memset(keys, 0, sizeof *keys);
    uint32_t off = 0;
    for (uint32_t id = 0; id < MAKER_IDS_END; id++) {
        keys->offs[id] = off;
        keys->text_offs[id] = off;
        if (id < 256) {
            keys->bytes[off++] = (uint8_t)id;
        } else if (id < MAKER_MODEL_LEN) {
            const size_t len = strlen(maker_tokens[id - 256]);
            memcpy(keys->bytes + off, maker_tokens[id - 256], len);
            off += (uint32_t)len;
        }
    }
    memcpy(keys->text, keys->bytes, off);
    memcpy(keys->text + off, "<s>end", 6);
    keys->offs[MAKER_IDS_END] = off;
    keys->text_offs[MAKER_END] = off + 3;
    keys->text_offs[MAKER_IDS_END] = off + 6;
    keys->offs[MAKER_S] = off;
    keys->offs[MAKER_END] = off;
}

static const struct ptk_image_pair maker_merges[] = {
    {'t', 'h', 0, MAKER_TH},       {MAKER_TH, 'e', 1, MAKER_THE}, {'i', 'n', 2, MAKER_IN},
    {MAKER_IN, 'g', 3, MAKER_ING}, {' ', 't', 4, MAKER_SPACE_T},
};

/* A chain of match nodes for one text. */
static void maker_match(struct maker *maker, uint32_t kind, const char *text, uint32_t added_idx)
{
    const uint32_t len = (uint32_t)strlen(text);
    struct ptk_image_match_node *nodes = maker_add(maker, kind, sizeof *nodes, len + 1);
    for (uint32_t i = 0; i <= len; i++) {
        nodes[i].first_child = i < len ? i + 1 : PTK_IMAGE_NONE;
        nodes[i].child_count = i < len;
        nodes[i].byte = i > 0 ? (uint8_t)text[i - 1] : 0;
        nodes[i].added_idx = i == len ? added_idx : PTK_IMAGE_NONE;
        nodes[i].depth = i;
    }
}

static uint8_t *maker_small_image(size_t *len)
{
    static struct maker_keys keys;
    maker_make_keys(&keys);
    const struct ptk_build_keys view = {keys.offs, keys.bytes, MAKER_IDS_END};
    struct maker maker = {.count = 0};
    uint32_t pair_probe_max = 0;
    uint32_t vocab_probe_max = 0;
    uint32_t piece_probe_max = 0;
    uint32_t duplicate = 0;

    struct ptk_image_config *config =
        maker_add(&maker, PTK_IMAGE_SECTION_CONFIG, sizeof *config, 1);
    maker_copy(&maker, PTK_IMAGE_SECTION_STRINGS, "<s>end", 6);
    memcpy(maker_add(&maker, PTK_IMAGE_SECTION_TOKEN_TEXT_OFFS, 4, MAKER_IDS_END + 1),
           keys.text_offs, sizeof keys.text_offs);
    maker_copy(&maker, PTK_IMAGE_SECTION_TOKEN_TEXT, keys.text, keys.text_offs[MAKER_IDS_END]);
    memcpy(maker_add(&maker, PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS, 4, MAKER_IDS_END + 1),
           keys.text_offs, sizeof keys.text_offs);
    maker_copy(&maker, PTK_IMAGE_SECTION_TOKEN_BYTES, keys.text,
               keys.text_offs[MAKER_IDS_END] + PTK_IMAGE_OVERRUN);
    uint8_t *flags = maker_add(&maker, PTK_IMAGE_SECTION_TOKEN_FLAGS, 1, MAKER_IDS_END);
    memset(flags, PTK_IMAGE_TOKEN_FLAGS_EXISTS, MAKER_IDS_END);
    flags[MAKER_S] |= PTK_IMAGE_TOKEN_FLAGS_ADDED | PTK_IMAGE_TOKEN_FLAGS_SPECIAL;
    flags[MAKER_END] |= PTK_IMAGE_TOKEN_FLAGS_ADDED;
    uint32_t *byte_ids = maker_add(&maker, PTK_IMAGE_SECTION_BYTE_IDS, 4, 256);
    for (uint32_t byte = 0; byte < 256; byte++) {
        byte_ids[byte] = byte;
    }
    struct ptk_image_pair *pairs = maker_add(&maker, PTK_IMAGE_SECTION_PAIRS, sizeof *pairs, 16);
    PTK_ASSERT(ptk_build_pairs(maker_merges, PTK_ARRAY_LEN(maker_merges), pairs, 16,
                               &pair_probe_max) == 0);
    uint32_t *vocab = maker_add(&maker, PTK_IMAGE_SECTION_VOCAB, 4, 1024);
    PTK_ASSERT(ptk_build_vocab(&view, vocab, 1024, &vocab_probe_max, &duplicate) == 0);
    memcpy(maker_add(&maker, PTK_IMAGE_SECTION_VOCAB_KEY_OFFS, 4, MAKER_IDS_END + 1), keys.offs,
           sizeof keys.offs);
    maker_copy(&maker, PTK_IMAGE_SECTION_VOCAB_KEY, keys.bytes,
               keys.offs[MAKER_IDS_END] + PTK_IMAGE_OVERRUN);

    const struct ptk_build_tables tables = {pairs, 16, vocab, 1024, byte_ids};
    static const uint32_t seed_offs[] = {0, 1, 3, 6, 8, 11, 13};
    const struct ptk_build_seeds seeds = {seed_offs, (const uint8_t *)"aththeining t",
                                          PTK_ARRAY_LEN(seed_offs) - 1, false, false};
    struct ptk_image_piece pieces[PTK_ARRAY_LEN(seed_offs) - 1];
    size_t piece_count = 0;
    PTK_ASSERT(ptk_build_seed_pieces(&view, &tables, &seeds, pieces, &piece_count) == 0);
    struct ptk_image_piece *table = maker_add(&maker, PTK_IMAGE_SECTION_PIECES, sizeof *table, 16);
    PTK_ASSERT(ptk_build_pieces(pieces, piece_count, table, 16, &piece_probe_max) == 0);

    double *scores = maker_add(&maker, PTK_IMAGE_SECTION_SCORES, 8, MAKER_IDS_END);
    scores[1] = -1.5;
    /* Keys sort as their bytes; those of more than one byte follow their first byte. */
    uint32_t order[MAKER_MODEL_LEN];
    uint32_t order_count = 0;
    for (uint32_t byte = 0; byte < 256; byte++) {
        order[order_count++] = byte;
        for (uint32_t id = 256; id < MAKER_MODEL_LEN; id++) {
            if ((uint8_t)maker_tokens[id - 256][0] == byte) {
                order[order_count++] = id;
            }
        }
    }
    struct ptk_image_trie_unit *units = NULL;
    uint32_t unit_count = 0;
    PTK_ASSERT(ptk_build_trie(&view, order, order_count, &units, &unit_count) == 0);
    memcpy(maker_add(&maker, PTK_IMAGE_SECTION_TRIE, sizeof *units, unit_count), units,
           unit_count * sizeof *units);
    ptk_build_free(units);

    struct ptk_image_added *added = maker_add(&maker, PTK_IMAGE_SECTION_ADDED, sizeof *added, 2);
    added[0] = (struct ptk_image_added){
        .id = MAKER_S, .flags = PTK_IMAGE_ADDED_FLAGS_SPECIAL, .text_len = 3, .match_len = 3};
    added[1] = (struct ptk_image_added){.id = MAKER_END,
                                        .flags = PTK_IMAGE_ADDED_FLAGS_NORMALIZED,
                                        .text_off = 3,
                                        .text_len = 3,
                                        .match_off = 3,
                                        .match_len = 3};
    maker_match(&maker, PTK_IMAGE_SECTION_ADDED_RAW, "<s>", 0);
    maker_match(&maker, PTK_IMAGE_SECTION_ADDED_NORMALIZED, "end", 1);

    uint8_t program[256];
    static const uint8_t replace[] = {1, 0, 0, 0, 'a', 2, 0, 0, 0, 'b', 'c'};
    size_t program_len = maker_op(program, PTK_OP_NORM_NFC, 0, NULL, 0);
    program_len +=
        maker_op(program + program_len, PTK_OP_NORM_REPLACE_STRING, 0, replace, sizeof replace);
    maker_copy(&maker, PTK_IMAGE_SECTION_NORMALIZER, program, program_len);
    static const uint8_t split[] = {PTK_SPLIT_SCANNER_GPT2, 0, 1, 0, 0, 0, 0, 0};
    program_len = maker_op(program, PTK_OP_PRE_SPLIT_KNOWN, 0, split, sizeof split);
    program_len += maker_op(program + program_len, PTK_OP_PRE_BYTE_LEVEL, 4, NULL, 0);
    maker_copy(&maker, PTK_IMAGE_SECTION_PRE_TOKENIZER, program, program_len);
    const uint32_t template[] = {2, 1, 2, MAKER_S, 0, 0, 1, 0};
    program_len = maker_op(program, PTK_OP_POST_TEMPLATE, 0, template, sizeof template);
    maker_copy(&maker, PTK_IMAGE_SECTION_POST_PROCESSOR, program, program_len);
    program_len = maker_op(program, PTK_OP_DEC_BYTE_LEVEL, 0, NULL, 0);
    maker_copy(&maker, PTK_IMAGE_SECTION_DECODER, program, program_len);
    maker_copy(&maker, PTK_IMAGE_SECTION_META, "{}", 2);
    (void)maker_add(&maker, PTK_IMAGE_SECTION_NEIGHBOURS, sizeof(struct ptk_image_neighbours), 1);
    uint32_t *chars = maker_add(&maker, PTK_IMAGE_SECTION_NEIGHBOUR_CHARS, 4, 2);
    chars[0] = 't' | 1u << 22;
    chars[1] = 0x10ffff | 0xfu << 22;

    *config = (struct ptk_image_config){
        .algorithm = PTK_IMAGE_ALGORITHM_BPE,
        .flags = PTK_IMAGE_FLAGS_BYTE_UNITS | PTK_IMAGE_FLAGS_DECODE_CONCAT |
                 PTK_IMAGE_FLAGS_ADDED_NORMALIZED,
        .ids_end = MAKER_IDS_END,
        .vocab_len = MAKER_IDS_END,
        .model_len = MAKER_MODEL_LEN,
        .added_len = 2,
        .unk_id = PTK_IMAGE_NONE,
        .bos_id = MAKER_S,
        .eos_id = PTK_IMAGE_NONE,
        .pad_id = PTK_IMAGE_NONE,
        .token_bytes_max = 3,
        .piece_probe_max = piece_probe_max,
        .pair_probe_max = pair_probe_max,
        .vocab_probe_max = vocab_probe_max,
        .key_bytes_max = 3,
    };
    return maker_finish(&maker, len);
}

#endif
