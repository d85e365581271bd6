/*
 * One encode of one generated text, and the decode of its ids: what a run of
 * `valgrind --tool=callgrind` counts.
 *
 *   bench_once IMAGE UNIT LEN [plain]
 *
 * The text is UNIT repeated to about LEN bytes; with `plain`, special tokens are ordinary text in
 * every second UNIT. Prints the number of ids. With `--toggle-collect=ptk_tokenizer_encode`, or
 * `..._decode`, only that is counted; the counts repeat from run to run whatever else the machine
 * does, which times do not.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ptk.h"

#define CACHE_LEN    (1u << 20)
#define TEXT_LEN_MAX (64u << 20)

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "bench_once: %s\n", what);
    exit(1);
}

static void *take(size_t len)
{
    void *memory = aligned_alloc(64, ptk_align_up(len, 64));
    if (memory == NULL) {
        fail("out of memory");
    }
    return memory;
}

int main(int argc, char **argv)
{
    if (argc != 4 && (argc != 5 || strcmp(argv[4], "plain") != 0)) {
        fail("usage: bench_once IMAGE UNIT LEN [plain]");
    }
    const size_t unit_len = strlen(argv[2]);
    const size_t len_max = strtoull(argv[3], NULL, 10);
    if (unit_len == 0 || len_max < unit_len || len_max > TEXT_LEN_MAX) {
        fail("UNIT is not empty, LEN is from its length to 64 MiB");
    }
    struct ptk_image image;
    struct ptk_tokenizer *tokenizer;
    struct ptk_err err;
    if (ptk_image_open(argv[1], PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
        fail(err.text);
    }
    const size_t len = len_max / unit_len * unit_len;
    uint8_t *text = take(len);
    for (size_t i = 0; i < len; i += unit_len) {
        memcpy(text + i, argv[2], unit_len);
    }
    /* Normalization may lengthen a text; four times covers what is asked here. */
    const struct ptk_work_limits limits = {.text_len_max = 4 * len};
    struct ptk_work *work = ptk_work_init(take(ptk_work_len(&limits)), &limits);
    struct ptk_cache *cache = ptk_cache_init(take(CACHE_LEN), CACHE_LEN);
    const size_t plain_count = argc == 5 ? len / unit_len / 2 : 0;
    struct ptk_plain_range *plain = take((plain_count + 1) * sizeof *plain);
    for (size_t i = 0; i < plain_count; i++) {
        const uint32_t begin = (uint32_t)(2 * i * unit_len);
        plain[i] = (struct ptk_plain_range){.begin = begin, .end = begin + (uint32_t)unit_len};
    }
    const struct ptk_encode_request request = {.text = text,
                                               .text_len = len,
                                               .plain = plain,
                                               .plain_count = plain_count,
                                               .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS |
                                                          PTK_WIRE_OPTIONS_PARSE_SPECIAL};
    struct ptk_encoding out = {.cap = 4 * len + 64};
    out.ids = take(out.cap * sizeof *out.ids);
    if (ptk_tokenizer_encode(tokenizer, work, cache, &request, &out) != PTK_VERDICT_OK) {
        fail("the text was refused");
    }
    const size_t decoded_cap = 16 * len + 64;
    uint8_t *decoded = take(decoded_cap);
    size_t decoded_len = 0;
    if (ptk_tokenizer_decode(tokenizer, work, out.ids, out.len, 0, decoded, decoded_cap,
                             &decoded_len) != PTK_VERDICT_OK) {
        fail("the ids were refused");
    }
    printf("%zu\n", out.len);
    free(decoded);
    free(out.ids);
    free(plain);
    free(cache);
    free(work);
    free(text);
    ptk_tokenizer_close(tokenizer);
    ptk_image_close(&image);
    return 0;
}
