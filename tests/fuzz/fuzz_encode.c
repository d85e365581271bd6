/*
 * Fuzzes encode and decode: any text, with any options, through a real model.
 *
 * The image comes from PTK_TEST_IMAGE (a compiled byte-level vocabulary without normalizer, such as
 * the default one); without it the run is skipped. Input: one byte of options, one byte of
 * truncation, then the text. What must hold: no crash, no access out of bounds (the sanitizers
 * look); exactly the texts that are not UTF-8 are refused; ids are the same with and without
 * offsets, from a fresh cache and a used one, and in an array that just fits; count counts them;
 * offsets lie inside the text and their beginnings ascend; decoding gives the text back.
 */
#include <stdio.h>
#include <stdlib.h>

#include "algo/ptk_tokenizer.h"
#include "text/ptk_utf8.h"

#define TEXT_LEN_MAX   65536u
#define SKIP_EXIT_CODE 77

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ptk_image image;
static struct ptk_tokenizer *tokenizer;
static struct ptk_work *work;
static struct ptk_cache *used_cache;
static void *fresh_memory;

static void *reserve(size_t len)
{
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    CHECK(memory != NULL);
    return memory;
}

static void set_up(void)
{
    struct ptk_err err = {0};
    const char *path = getenv("PTK_TEST_IMAGE");
    if (path == NULL) {
        printf("skip: PTK_TEST_IMAGE does not name a compiled vocabulary\n");
        exit(SKIP_EXIT_CODE);
    }
    if (ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        abort();
    }
    const struct ptk_work_limits limits = {.text_len_max = TEXT_LEN_MAX};
    work = ptk_work_init(reserve(ptk_work_len(&limits)), &limits);
    used_cache = ptk_cache_init(reserve(PTK_CACHE_LEN_MIN), PTK_CACHE_LEN_MIN);
    fresh_memory = reserve(PTK_CACHE_LEN_MIN);
}

static void check_offsets(const struct ptk_encoding *out, size_t text_len)
{
    uint32_t begin = 0;
    for (size_t i = 0; i < out->len; i++) {
        CHECK(out->offsets[i].begin <= out->offsets[i].end);
        CHECK(out->offsets[i].end <= text_len);
        CHECK(out->offsets[i].begin >= begin);
        begin = out->offsets[i].begin;
    }
}

/* The same request in other ways gives the same ids. */
static void check_same(const struct ptk_encode_request *request,
                       const struct ptk_encoding *expected)
{
    const size_t cap = expected->len;
    uint32_t *ids = malloc(cap * sizeof *ids + 1);
    CHECK(ids != NULL);
    struct ptk_encoding out = {.ids = ids, .cap = cap};
    struct ptk_cache *fresh = ptk_cache_init(fresh_memory, PTK_CACHE_LEN_MIN);
    for (int round = 0; round < 2; round++) {
        struct ptk_cache *cache = round == 0 ? fresh : used_cache;
        CHECK(ptk_tokenizer_encode(tokenizer, work, cache, request, &out) == PTK_VERDICT_OK);
        CHECK(out.len == cap);
        CHECK(memcmp(ids, expected->ids, cap * sizeof *ids) == 0);
    }
    size_t count = 0;
    size_t hits;
    CHECK(ptk_tokenizer_count(tokenizer, work, used_cache, request, &count, &hits) ==
          PTK_VERDICT_OK);
    CHECK(count == cap);
    if (cap > 0) {
        out.cap = cap - 1;
        CHECK(ptk_tokenizer_encode(tokenizer, work, used_cache, request, &out) ==
              PTK_VERDICT_REPLY_TOO_LONG);
    }
    free(ids);
}

static void check_decode(const struct ptk_encode_request *request,
                         const struct ptk_encoding *encoding)
{
    const size_t cap = 3 * request->text_len + 64;
    uint8_t *text = malloc(cap);
    CHECK(text != NULL);
    size_t len = 0;
    CHECK(ptk_tokenizer_decode(tokenizer, work, encoding->ids, encoding->len, 0, text, cap, &len) ==
          PTK_VERDICT_OK);
    CHECK(len == request->text_len);
    CHECK(len == 0 || memcmp(text, request->text, len) == 0);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (tokenizer == NULL) {
        set_up();
    }
    if (size < 2 || size - 2 > TEXT_LEN_MAX) {
        return 0;
    }
    const struct ptk_wire_truncation truncation = {.max_length = data[1],
                                                   .direction = data[0] >> 4 & 1};
    struct ptk_encode_request request = {.text = data + 2, .text_len = size - 2};
    request.options = (data[0] & 1 ? PTK_WIRE_OPTIONS_PARSE_SPECIAL : 0) |
                      (data[0] & 2 ? PTK_WIRE_OPTIONS_OFFSETS_CHARS : 0);
    request.truncation = data[0] & 4 ? &truncation : NULL;

    const size_t cap = request.text_len + 16;
    struct ptk_encoding out = {.ids = malloc(cap * sizeof *out.ids),
                               .offsets = malloc(cap * sizeof *out.offsets),
                               .cap = cap};
    CHECK(out.ids != NULL && out.offsets != NULL);
    const enum ptk_verdict verdict =
        ptk_tokenizer_encode(tokenizer, work, used_cache, &request, &out);
    if (!ptk_utf8_valid(request.text, request.text_len)) {
        CHECK(verdict == PTK_VERDICT_BAD_UTF8);
    } else {
        CHECK(verdict == PTK_VERDICT_OK);
        CHECK(request.truncation == NULL || out.len <= truncation.max_length);
        check_offsets(&out, request.text_len);
        check_same(&request, &out);
        if (request.truncation == NULL) {
            check_decode(&request, &out);
        }
    }
    free(out.ids);
    free(out.offsets);
    return 0;
}
