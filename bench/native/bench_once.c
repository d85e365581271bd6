/*
 * One encode of one generated text: what a run of `valgrind --tool=callgrind` counts.
 *
 *   bench_once IMAGE UNIT LEN
 *
 * The text is UNIT repeated to about LEN bytes. Prints the number of ids. With
 * `--toggle-collect=ptk_tokenizer_encode` only the encode itself is counted; the counts repeat from
 * run to run whatever else the machine does, which times do not.
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
    if (argc != 4) {
        fail("usage: bench_once IMAGE UNIT LEN");
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
    const struct ptk_encode_request request = {.text = text,
                                               .text_len = len,
                                               .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS |
                                                          PTK_WIRE_OPTIONS_PARSE_SPECIAL};
    struct ptk_encoding out = {.cap = 4 * len + 64};
    out.ids = take(out.cap * sizeof *out.ids);
    const enum ptk_verdict verdict =
        ptk_tokenizer_encode(tokenizer, work, cache, &request, &out);
    if (verdict != PTK_VERDICT_OK) {
        fail("the text was refused");
    }
    printf("%zu\n", out.len);
    free(out.ids);
    free(cache);
    free(work);
    free(text);
    ptk_tokenizer_close(tokenizer);
    ptk_image_close(&image);
    return 0;
}
