/*
 * The image's door and its tables: what is whole is accepted and every look-up finds what it
 * should; what is cut, flipped or contradictory is refused, or does no harm.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "image/ptk_image.h"
#include "image_maker.h"

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static uint64_t seed = 0x9e3779b97f4a7c15ull;

static uint32_t random_below(uint32_t end)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 20) % end;
}

static uint8_t *small;
static size_t small_len;
static uint8_t *changed; /* a copy to spoil */

static void restore(void)
{
    memcpy(changed, small, small_len);
}

static int view(struct ptk_image *image, struct ptk_err *err)
{
    maker_repair(changed, small_len);
    return ptk_image_view(changed, small_len, image, err);
}

static uint64_t sink; /* keeps reads from being optimised away */

/* Everything that code behind the door may do with an accepted image. */
static void use(const struct ptk_image *image)
{
    const uint32_t ids_end = image->config->ids_end;
    for (uint32_t id = 0; id < ids_end; id++) {
        const uint32_t off = image->vocab_key_offs[id];
        const uint32_t len = image->vocab_key_offs[id + 1] - off;
        if (len > 0) {
            sink += ptk_image_vocab(image, image->vocab_key + off, len);
            if (len <= PTK_IMAGE_PIECE_KEY_MAX && image->pieces != NULL) {
                sink += ptk_image_piece(image, image->vocab_key + off, len) != NULL;
            }
        }
        if (image->pairs != NULL) {
            const struct ptk_image_pair *pair = ptk_image_pair(image, id, 'h');
            sink += pair == NULL ? 0 : image->vocab_key_offs[pair->id];
        }
        for (uint32_t i = image->token_bytes_offs[id]; i < image->token_bytes_offs[id + 1];
             i += 8) {
            sink += ptk_load_u64(image->token_bytes + i);
        }
    }
    for (uint32_t unit = 0; unit < image->trie_count; unit++) {
        uint32_t at = unit;
        for (uint32_t byte = 0; byte < 8 && ptk_image_trie_step(image, &at, (uint8_t)(byte * 37));
             byte++) {
            sink += at;
        }
        sink += ptk_image_trie_id(image, unit) == PTK_IMAGE_NONE;
    }
    const struct ptk_image_program *const programs[] = {&image->normalizer, &image->pre_tokenizer,
                                                        &image->post_processor, &image->decoder};
    for (size_t i = 0; i < PTK_ARRAY_LEN(programs); i++) {
        size_t pos = 0;
        struct ptk_image_op_view op;
        while (ptk_image_op_next(programs[i], &pos, &op)) {
            for (uint32_t j = 0; j < op.param_len; j++) {
                sink += op.params[j];
            }
        }
    }
    for (uint32_t i = 0; i < image->neighbour_char_count; i++) {
        sink += image->neighbours->words[image->neighbour_chars[i] & 0x1fff];
    }
    for (uint32_t i = 0; i < image->added_count; i++) {
        const struct ptk_image_added *added = &image->added[i];
        for (uint32_t j = 0; j < added->text_len; j++) {
            sink += image->strings[added->text_off + j];
        }
        for (uint32_t j = 0; j < added->match_len; j++) {
            sink += image->strings[added->match_off + j];
        }
    }
    const struct ptk_image_match_node *const tries[] = {image->added_raw, image->added_normalized};
    const uint32_t counts[] = {image->added_raw_count, image->added_normalized_count};
    for (size_t t = 0; t < 2; t++) {
        for (uint32_t i = 0; tries[t] != NULL && i < counts[t]; i++) {
            for (uint32_t c = 0; c < tries[t][i].child_count; c++) {
                sink += tries[t][tries[t][i].first_child + c].byte;
            }
        }
    }
}

static void test_a_whole_image_is_accepted_and_its_tables_answer(void)
{
    struct ptk_image image;
    struct ptk_err err = {0};
    if (ptk_image_view(small, small_len, &image, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    CHECK(image.config->ids_end == MAKER_IDS_END);
    CHECK(ptk_image_vocab(&image, (const uint8_t *)"ing", 3) == MAKER_ING);
    CHECK(ptk_image_vocab(&image, (const uint8_t *)"inh", 3) == PTK_IMAGE_NONE);
    CHECK(ptk_image_vocab(&image, (const uint8_t *)"\0", 1) == 0);
    const struct ptk_image_pair *pair = ptk_image_pair(&image, MAKER_TH, 'e');
    CHECK(pair != NULL && pair->id == MAKER_THE && pair->rank == 1);
    CHECK(ptk_image_pair(&image, 'e', MAKER_TH) == NULL);
    CHECK(ptk_image_pair(&image, PTK_IMAGE_NONE - 1, 0) == NULL);
    const struct ptk_image_piece *piece = ptk_image_piece(&image, (const uint8_t *)" t", 2);
    CHECK(piece != NULL && ptk_image_piece_id_count(piece) == 1 && piece->ids[0] == MAKER_SPACE_T);
    CHECK(ptk_image_piece(&image, (const uint8_t *)" x", 2) == NULL);
    CHECK(image.normalizer.op_count == 2);
    use(&image);
}

static void test_every_truncation_is_refused(void)
{
    struct ptk_image image;
    struct ptk_err err;
    for (size_t len = 0; len < small_len; len++) {
        CHECK(ptk_image_view(small, len, &image, &err) < 0);
    }
    restore();
    for (size_t len = 128; len < small_len; len += 64) { /* and with length and checksum repaired */
        restore();
        ptk_store_u64(changed + offsetof(struct ptk_image_header, image_len), len);
        maker_repair(changed, len);
        CHECK(ptk_image_view(changed, len, &image, &err) < 0);
    }
}

static void test_every_flipped_bit_is_found_by_the_checksum(void)
{
    struct ptk_image image;
    struct ptk_err err;
    restore();
    for (size_t i = 0; i < small_len; i += 3) {
        const uint8_t bit = (uint8_t)(1u << (i % 8));
        changed[i] ^= bit;
        CHECK(ptk_image_view(changed, small_len, &image, &err) < 0);
        changed[i] ^= bit;
    }
}

/* A forged image, checksum and all: it is refused with a sentence, or is harmless. */
static void test_forged_bytes_are_refused_or_harmless(void)
{
    struct ptk_image image;
    size_t refused = 0;
    size_t tried = 0;
    restore();
    const size_t table_end = sizeof(struct ptk_image_header) +
                             25 * sizeof(struct ptk_image_section_entry) +
                             sizeof(struct ptk_image_config) + 64;
    for (size_t i = 0; i < small_len; i += i < table_end ? 1 : 1 + random_below(12)) {
        const uint8_t values[] = {0, 0xff, (uint8_t)(changed[i] + 1), (uint8_t)(changed[i] ^ 0x80)};
        const uint8_t before = changed[i];
        changed[i] = values[random_below(4)];
        struct ptk_err err = {.code = 0};
        if (view(&image, &err) == 0) {
            use(&image);
        } else {
            CHECK(err.text[0] != 0);
            refused++;
        }
        tried++;
        changed[i] = before;
    }
    CHECK(refused > tried / 8);
}

/* What a test spoils: the section that `kind` names in `changed`. */
static uint8_t *section(uint32_t kind)
{
    struct ptk_image_header header;
    memcpy(&header, changed, sizeof header);
    for (uint32_t i = 0; i < header.section_count; i++) {
        struct ptk_image_section_entry entry;
        memcpy(&entry, changed + sizeof header + i * sizeof entry, sizeof entry);
        if (entry.kind == kind) {
            return changed + entry.off;
        }
    }
    abort();
}

static void expect(const char *sentence)
{
    struct ptk_image image;
    struct ptk_err err = {.code = 0};
    const int rc = view(&image, &err);
    if (rc == 0 || strstr(err.text, sentence) == NULL) {
        fprintf(stderr, "expected \"%s\", got %d \"%s\"\n", sentence, rc, err.text);
        abort();
    }
    restore();
}

static struct ptk_image_config *config(void)
{
    return (void *)section(PTK_IMAGE_SECTION_CONFIG);
}

static struct ptk_image_pair *used_pair(void)
{
    struct ptk_image_pair *pair = (void *)section(PTK_IMAGE_SECTION_PAIRS);
    while (pair->left == PTK_IMAGE_NONE) {
        pair++;
    }
    return pair;
}

/* Each promise of ptk_image.h, broken once. */
static void test_each_broken_promise_has_its_sentence(void)
{
    restore();
    changed[0] ^= 1;
    expect("magic");
    changed[8]++;
    expect("compile the model again");
    changed[offsetof(struct ptk_image_header, profile)] = 99;
    expect("profile");
    changed[offsetof(struct ptk_image_header, tag)] = 9;
    expect("tag");
    changed[sizeof(struct ptk_image_header)] = 77;
    expect("has the kind");

    config()->algorithm = 99;
    expect("unknown algorithm");
    config()->flags |= 1u << 31;
    expect("unknown flags");
    config()->ids_end++;
    expect("not 265");
    config()->ids_end = 0;
    expect("items, not 1");
    config()->bos_id = MAKER_IDS_END;
    expect("special id");
    config()->suffix_off = 1u << 30;
    expect("suffix");
    config()->vocab_len--;
    expect("counts");
    config()->token_bytes_max++;
    expect("longest entry");
    config()->reserved[3] = 1;
    expect("reserved");
    config()->algorithm = PTK_IMAGE_ALGORITHM_WORDLEVEL;
    config()->flags &= ~PTK_IMAGE_FLAGS_ADDED_NORMALIZED;
    expect("normalized added tokens");

    uint32_t *offs = (void *)section(PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS);
    offs[5] = offs[6] + 1;
    expect("ascend");
    section(PTK_IMAGE_SECTION_TOKEN_FLAGS)[3] = 0;
    expect("gap id 3");
    section(PTK_IMAGE_SECTION_TOKEN_FLAGS)[3] |= 0x80;
    expect("flags of id 3");
    ((uint32_t *)(void *)section(PTK_IMAGE_SECTION_BYTE_IDS))['a'] = 'b';
    expect("byte 97");

    used_pair()->id = MAKER_IDS_END;
    expect("pair slot");
    used_pair()->id = 'q';
    expect("bytes of its token");
    used_pair()->left++;
    expect("pair slot");
    used_pair()->rank = PTK_IMAGE_NONE;
    expect("no rank");
    struct ptk_image_pair *pairs = (void *)section(PTK_IMAGE_SECTION_PAIRS);
    for (uint32_t i = 0; i < 16; i++) {
        pairs[i] = maker_merges[0];
    }
    expect("full");
    config()->pair_probe_max++;
    expect("run of pairs");
    uint32_t *vocab = (void *)section(PTK_IMAGE_SECTION_VOCAB);
    while (*vocab == PTK_IMAGE_NONE) {
        vocab++;
    }
    *vocab ^= 1u << 31;
    expect("not found");
    memset(section(PTK_IMAGE_SECTION_VOCAB), 0, 4096);
    expect("full");

    struct ptk_image_piece *piece = (void *)section(PTK_IMAGE_SECTION_PIECES);
    while (piece->key[15] == 0) {
        piece++;
    }
    piece->ids[0] = MAKER_IDS_END;
    expect("a piece has the id");
    piece->ids[2] = 1;
    expect("a piece has the id");
    piece->key[14] = 1;
    expect("padded");
    piece->key[15] = 0xf1;
    expect("15 ids");
    piece->key[0]++;
    expect("cannot be found");
    piece = (void *)section(PTK_IMAGE_SECTION_PIECES);
    while (piece->key[15] != 0) {
        piece++;
    }
    piece->ids[3] = 1;
    expect("empty piece slot");
    piece = (void *)section(PTK_IMAGE_SECTION_PIECES);
    while (piece[0].key[15] == 0 || piece[1].key[15] != 0) {
        piece += 2;
    }
    piece[1] = piece[0];
    memset(&piece[0], 0, sizeof piece[0]);
    expect("only its second slot");

    struct ptk_image_trie_unit *trie = (void *)section(PTK_IMAGE_SECTION_TRIE);
    trie[0].base = 1u << 30;
    expect("outside of the trie");
    while (ptk_image_trie_id(&(struct ptk_image){.trie = trie}, 0) == PTK_IMAGE_NONE) {
        trie++;
    }
    trie->word &= 0x1ff;
    expect("ends for 261 keys");
    trie = (void *)section(PTK_IMAGE_SECTION_TRIE);
    trie[1].word = PTK_TRIE_USED | 1;
    expect("reserved");
    ((double *)(void *)section(PTK_IMAGE_SECTION_SCORES))[9] = 0.0 / 0.0;
    expect("finite");

    uint32_t *chars = (void *)section(PTK_IMAGE_SECTION_NEIGHBOUR_CHARS);
    chars[1]++;
    expect("no character with neighbours");
    chars[0] |= 1u << 26;
    expect("no character with neighbours");
    struct ptk_image_section_entry *entries = (void *)(changed + sizeof(struct ptk_image_header));
    while (entries->kind != PTK_IMAGE_SECTION_NEIGHBOUR_CHARS) {
        entries++;
    }
    entries->kind = PTK_IMAGE_SECTION_UNIGRAM_NEIGHBOURS;
    expect("section 27 has 8 bytes");
    entries[-2].kind = PTK_IMAGE_SECTION_CERTIFICATE;
    entries[-1].kind = PTK_IMAGE_SECTION_META;
    entries[-1].item_count = 0;
    expect("neighbour_chars without neighbours");

    struct ptk_image_added *added = (void *)section(PTK_IMAGE_SECTION_ADDED);
    added[1].id = added[0].id;
    expect("added token 1");
    added[0].match_len = 0;
    expect("outside of the strings");
    added[0].flags |= PTK_IMAGE_ADDED_FLAGS_NORMALIZED;
    expect("added token 0 is in no match trie");
    struct ptk_image_match_node *nodes = (void *)section(PTK_IMAGE_SECTION_ADDED_RAW);
    nodes[0].first_child = 0;
    expect("out of order");
    nodes[1].first_child = 1;
    expect("out of order");
    nodes[2].byte++;
    expect("no match trie");
    nodes[1].added_idx = 0;
    expect("another length");
    nodes[3].depth = 9;
    expect("follow its parent");

    section(PTK_IMAGE_SECTION_NORMALIZER)[0] = 99;
    expect("unknown operation 99");
    section(PTK_IMAGE_SECTION_NORMALIZER)[2] = 1;
    expect("flags 0x1");
    section(PTK_IMAGE_SECTION_NORMALIZER)[12] = 200;
    expect("normalizer ends inside");
    section(PTK_IMAGE_SECTION_NORMALIZER)[16] = 200;
    expect("malformed parameters");
    section(PTK_IMAGE_SECTION_PRE_TOKENIZER)[8] = 99;
    expect("malformed parameters");
    ptk_store_u32(section(PTK_IMAGE_SECTION_POST_PROCESSOR) + 20, MAKER_IDS_END);
    expect("malformed parameters");
    section(PTK_IMAGE_SECTION_POST_PROCESSOR)[8] = 3;
    expect("malformed parameters");
}

static void test_open_holds_a_file_either_way_and_names_it(void)
{
    char path[] = "/tmp/ptk-test-image-XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK(write(fd, small, small_len) == (ssize_t)small_len);
    static const enum ptk_image_hold holds[] = {PTK_IMAGE_HOLD_COPY, PTK_IMAGE_HOLD_MAP};
    struct ptk_image image;
    struct ptk_err err;
    for (size_t i = 0; i < PTK_ARRAY_LEN(holds); i++) {
        CHECK(ptk_image_open(path, holds[i], &image, &err) == 0);
        CHECK(image.owned && image.len == small_len);
        CHECK(memcmp(image.bytes, small, small_len) == 0);
        use(&image);
        ptk_image_close(&image);
        CHECK(image.bytes == NULL);
    }
    CHECK(pwrite(fd, "x", 1, 300) == 1);
    CHECK(ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) < 0);
    CHECK(strstr(err.text, path) != NULL && strstr(err.text, "checksum") != NULL);
    CHECK(close(fd) == 0 && unlink(path) == 0);
    CHECK(ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) < 0);
    CHECK(strstr(err.text, "cannot be opened") != NULL);
    CHECK(ptk_image_open("/tmp", PTK_IMAGE_HOLD_MAP, &image, &err) < 0);
    ptk_image_close(&image); /* a view that was not opened is left alone */
}

static void test_piece_keys_equal_their_definition(void)
{
    for (size_t len = 1; len <= PTK_IMAGE_PIECE_KEY_MAX; len++) {
        uint8_t piece[PTK_IMAGE_PIECE_KEY_MAX];
        uint8_t key[16] = {0};
        for (size_t i = 0; i < len; i++) {
            piece[i] = (uint8_t)random_below(256);
        }
        memcpy(key, piece, len);
        key[15] = (uint8_t)len;
        const struct ptk_piece_key made = ptk_piece_key_make(piece, len);
        CHECK(made.low == ptk_load_u64(key) && made.high == ptk_load_u64(key + 8));
    }
}

#define MANY 20000u

/* Tables of random keys: everything in is found, nothing else is, and duplicates are named. */
static void test_tables_find_what_they_hold(void)
{
    static uint32_t offs[MANY + 1];
    static uint8_t keys[MANY * 8 + PTK_IMAGE_OVERRUN];
    static uint32_t order[MANY];
    uint32_t off = 0;
    for (uint32_t id = 0; id < MANY; id++) {
        offs[id] = off;
        const uint32_t len = 3 + id % 4;
        for (uint32_t i = 0; i < len; i++) {
            keys[off + i] = (uint8_t)(i < 3 ? id >> (8 * (2 - i)) : random_below(256));
        }
        off += len;
        order[id] = id; /* the first three bytes are the id, big end first: sorted */
    }
    offs[MANY] = off;
    const struct ptk_build_keys view_keys = {offs, keys, MANY};
    const size_t capacity = ptk_build_capacity(MANY);
    uint32_t *vocab = malloc(capacity * sizeof *vocab);
    uint32_t probe_max = 0;
    uint32_t duplicate = 0;
    CHECK(vocab != NULL);
    CHECK(ptk_build_vocab(&view_keys, vocab, capacity, &probe_max, &duplicate) == 0);
    CHECK(probe_max > 0 && probe_max <= PTK_IMAGE_PROBE_MAX);

    struct ptk_image_trie_unit *units = NULL;
    uint32_t unit_count = 0;
    CHECK(ptk_build_trie(&view_keys, order, MANY, &units, &unit_count) == 0);
    const struct ptk_image image = {
        .vocab = vocab,
        .vocab_mask = (uint32_t)capacity - 1,
        .vocab_key_offs = offs,
        .vocab_key = keys,
        .trie = units,
        .trie_count = unit_count,
    };
    for (uint32_t id = 0; id < MANY; id++) {
        const uint8_t *key = keys + offs[id];
        const uint32_t len = offs[id + 1] - offs[id];
        CHECK(ptk_image_vocab(&image, key, len) == id);
        CHECK(ptk_image_vocab(&image, key, len - 1) != id);
        uint32_t unit = 0;
        for (uint32_t i = 0; i < len; i++) {
            CHECK(i < 3 || ptk_image_trie_id(&image, unit) == PTK_IMAGE_NONE);
            CHECK(ptk_image_trie_step(&image, &unit, key[i]));
        }
        CHECK(ptk_image_trie_id(&image, unit) == id);
        CHECK(!ptk_image_trie_step(&image, &unit, (uint8_t)random_below(256)));
    }
    free(units);

    memcpy(keys + offs[16], keys + offs[8], 3); /* ids 8 and 16 have keys of three bytes */
    CHECK(ptk_build_vocab(&view_keys, vocab, capacity, &probe_max, &duplicate) == -EEXIST);
    CHECK(duplicate == 16);
    free(vocab);
}

static void test_the_later_of_two_equal_merges_counts(void)
{
    static const struct ptk_image_pair merges[] = {{1, 2, 0, 3}, {4, 5, 1, 6}, {1, 2, 2, 7}};
    struct ptk_image_pair table[16];
    uint32_t probe_max = 0;
    CHECK(ptk_build_pairs(merges, PTK_ARRAY_LEN(merges), table, 16, &probe_max) == 0);
    const struct ptk_image image = {.pairs = table, .pair_mask = 15};
    CHECK(ptk_image_pair(&image, 1, 2)->id == 7);
    CHECK(ptk_image_pair(&image, 4, 5)->id == 6);
}

static void test_crowded_tables_ask_for_more_room(void)
{
    struct ptk_image_pair merges[16];
    struct ptk_image_pair table[16];
    uint32_t probe_max = 0;
    for (uint32_t i = 0; i < 16; i++) {
        merges[i] = (struct ptk_image_pair){i, i, i, i};
    }
    CHECK(ptk_build_pairs(merges, 16, table, 16, &probe_max) == -ENOSPC);
    CHECK(ptk_build_pairs(merges, 15, table, 16, &probe_max) == 0);
    CHECK(probe_max == 15);
}

int main(void)
{
    small = maker_small_image(&small_len);
    changed = aligned_alloc(64, MAKER_LEN_MAX);
    CHECK(changed != NULL);
    test_a_whole_image_is_accepted_and_its_tables_answer();
    test_every_truncation_is_refused();
    test_every_flipped_bit_is_found_by_the_checksum();
    test_forged_bytes_are_refused_or_harmless();
    test_each_broken_promise_has_its_sentence();
    test_open_holds_a_file_either_way_and_names_it();
    test_piece_keys_equal_their_definition();
    test_tables_find_what_they_hold();
    test_the_later_of_two_equal_merges_counts();
    test_crowded_tables_ask_for_more_room();
    free(small);
    free(changed);
    return 0;
}
