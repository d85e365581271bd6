/*
 * Fuzzes the door for images: any bytes, and any forgery of a good image.
 *
 * Input: one byte of mode, then mode 0: the bytes of an image; otherwise: patches to the small
 * image of image_maker.h (modes 2 and 3: as a Unigram and a WordPiece model), each u16 position
 * times 4, u8 place within, u8 value. The checksum is
 * repaired, so that the rest of the verifier is reached. What must hold: no crash, no read out of
 * bounds, and an accepted image can be used in every way that code behind the door uses it: also a
 * tokenizer opens over it or says why not, and what it makes of a text stays in its bounds.
 */
#include <stdio.h>
#include <stdlib.h>

#include "algo/ptk_tokenizer.h"
#include "image_maker.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void use_keys(const struct ptk_image *image)
{
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint8_t *key = image->vocab_key + image->vocab_key_offs[id];
        const size_t len = image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
        const size_t bytes_end = image->token_bytes_offs[id + 1];
        for (size_t i = image->token_bytes_offs[id]; i < bytes_end; i += 16) {
            sink += ptk_load_u64(image->token_bytes + i + 8); /* wide copies overrun */
        }
        if (len == 0) {
            continue;
        }
        sink += ptk_image_vocab(image, key, len);
        if (image->pieces != NULL && len <= PTK_IMAGE_PIECE_KEY_MAX) {
            const struct ptk_image_piece *piece = ptk_image_piece(image, key, len);
            sink += piece == NULL ? 0 : image->token_bytes_offs[piece->ids[0]];
        }
        if (image->pairs != NULL) {
            const struct ptk_image_pair *pair = ptk_image_pair(image, id, key[0]);
            sink += pair == NULL ? 0 : image->vocab_key_offs[pair->id];
        }
        uint32_t unit = 0;
        for (size_t i = 0; image->trie != NULL && i < len; i++) {
            if (!ptk_image_trie_step(image, &unit, key[i])) {
                break;
            }
        }
        sink += image->trie == NULL ? 0 : ptk_image_trie_id(image, unit);
    }
}

static void use_programs(const struct ptk_image *image)
{
    const struct ptk_image_program *const programs[] = {&image->normalizer, &image->pre_tokenizer,
                                                        &image->post_processor, &image->decoder};
    for (size_t i = 0; i < PTK_ARRAY_LEN(programs); i++) {
        size_t pos = 0;
        uint32_t count = 0;
        struct ptk_image_op_view op;
        while (ptk_image_op_next(programs[i], &pos, &op)) {
            count++;
            for (uint32_t j = 0; j < op.param_len; j++) {
                sink += op.params[j];
            }
        }
        PTK_ASSERT(count == programs[i]->op_count);
    }
}

static void use_matches(const struct ptk_image *image, const struct ptk_image_match_node *nodes,
                        uint32_t count)
{
    for (uint32_t i = 0; nodes != NULL && i < count; i++) {
        for (uint32_t c = 0; c < nodes[i].child_count; c++) {
            PTK_ASSERT(nodes[i].first_child + c < count);
            PTK_ASSERT(nodes[nodes[i].first_child + c].depth == nodes[i].depth + 1);
        }
        if (nodes[i].added_idx != PTK_IMAGE_NONE) {
            const struct ptk_image_added *added = &image->added[nodes[i].added_idx];
            sink += image->strings[added->match_off + added->match_len - 1];
            sink += image->token_flags[added->id];
        }
    }
}

#define IDS_CAP 4096u

static void *reserve(size_t len)
{
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    PTK_ASSERT(memory != NULL);
    return memory;
}

/* Whatever a forged vocabulary makes of a text: a verdict, and ids and offsets within bounds. */
static void use_text(const struct ptk_tokenizer *tokenizer, const struct ptk_image *image)
{
    static const char text[] =
        "the thing in the<s>ing end. Then th\xe2\x96\x81in\xc3\xa9 t\xe4\xb8"
        "\xad\xe4\xb8\xad\xf0\x9f\x98\x80 aaaaaaaaaaaaaaaathethethethe  \n\n12";
    static const struct ptk_work_limits limits = {.text_len_max = sizeof text};
    static struct ptk_work *work;
    static void *cache_memory;
    static uint32_t ids[IDS_CAP];
    static struct ptk_span offsets[IDS_CAP];
    static uint8_t decoded[1u << 16];
    if (work == NULL) {
        work = ptk_work_init(reserve(ptk_work_len(&limits)), &limits);
        cache_memory = reserve(PTK_CACHE_LEN_MIN);
    }
    struct ptk_cache *cache = ptk_cache_init(cache_memory, PTK_CACHE_LEN_MIN);
    const struct ptk_encode_request request = {.text = (const uint8_t *)text,
                                               .text_len = sizeof text - 1};
    for (int round = 0; round < 4; round++) { /* from empty caches and used ones, each both ways */
        struct ptk_encoding out = {
            .ids = ids, .cap = IDS_CAP, .offsets = (round & 1) != 0 ? offsets : NULL};
        if (ptk_tokenizer_encode(tokenizer, work, cache, &request, &out) != PTK_VERDICT_OK) {
            continue;
        }
        PTK_ASSERT(out.len <= IDS_CAP);
        for (size_t i = 0; i < out.len; i++) {
            PTK_ASSERT(ids[i] < image->config->ids_end);
        }
        size_t len = 0;
        if (ptk_tokenizer_decode(tokenizer, work, ids, out.len, 0, decoded, sizeof decoded, &len) ==
            PTK_VERDICT_OK) {
            PTK_ASSERT(len <= sizeof decoded);
        }
    }
}

static void use_tokenizer(const struct ptk_image *image)
{
    struct ptk_tokenizer *tokenizer = NULL;
    struct ptk_err err = {.code = 0};
    if (ptk_tokenizer_open(image, &tokenizer, &err) != 0) {
        PTK_ASSERT(err.code != 0 && err.text[0] != 0);
        return;
    }
    use_text(tokenizer, image);
    ptk_tokenizer_close(tokenizer);
}

/* The small image has what every algorithm needs; its configuration is the first section. */
static void change_algorithm(uint8_t *bytes, uint32_t algorithm)
{
    struct ptk_image_section_entry entry;
    memcpy(&entry, bytes + sizeof(struct ptk_image_header), sizeof entry);
    PTK_ASSERT(entry.kind == PTK_IMAGE_SECTION_CONFIG);
    struct ptk_image_config *config = (struct ptk_image_config *)(void *)(bytes + entry.off);
    config->algorithm = algorithm;
    config->flags &= ~(uint32_t)PTK_IMAGE_FLAGS_BYTE_UNITS;
    config->unk_id = 'u';
    config->word_chars_max = 100;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *small;
    static uint8_t *bytes;
    static size_t small_len;
    if (small == NULL) {
        small = maker_small_image(&small_len);
        bytes = aligned_alloc(64, MAKER_LEN_MAX);
        PTK_ASSERT(bytes != NULL);
    }
    if (size < 1) {
        return 0;
    }
    size_t len = small_len;
    if (data[0] == 0) {
        len = ptk_min_size(size - 1, MAKER_LEN_MAX) / 64 * 64;
        memcpy(bytes, data + 1, len);
        if (len >= sizeof(struct ptk_image_header)) {
            ptk_store_u64(bytes + offsetof(struct ptk_image_header, image_len), len);
        }
    } else {
        memcpy(bytes, small, len);
        if (data[0] == 2 || data[0] == 3) {
            change_algorithm(bytes, data[0] == 2 ? PTK_IMAGE_ALGORITHM_UNIGRAM
                                                 : PTK_IMAGE_ALGORITHM_WORDPIECE);
        }
        for (size_t i = 1; i + 4 <= size; i += 4) {
            bytes[((size_t)ptk_load_u16(data + i) * 4 + (data[i + 2] & 3)) % len] = data[i + 3];
        }
    }
    if (len >= sizeof(struct ptk_image_header)) {
        maker_repair(bytes, len);
    }
    struct ptk_image image;
    struct ptk_err err = {.code = 0};
    if (ptk_image_view(bytes, len, &image, &err) != 0) {
        PTK_ASSERT(err.code != 0 && err.text[0] != 0);
        return 0;
    }
    use_keys(&image);
    use_programs(&image);
    use_matches(&image, image.added_raw, image.added_raw_count);
    use_matches(&image, image.added_normalized, image.added_normalized_count);
    use_tokenizer(&image);
    return 0;
}
