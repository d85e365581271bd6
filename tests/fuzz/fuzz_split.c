/*
 * Any bytes as a pre-tokenizer program, run on any text.
 *
 * Input: one byte of flags (bit 0 byte_units, bit 1 tiktoken's dialect), u16 program length,
 * program, text. Whatever the program, pieces must be in order, not empty, inside of the text and
 * on whole characters where the program does not read bytes; the two ways to run a scan must agree.
 */
#include <stdlib.h>

#include "text/ptk_split.h"
#include "text/ptk_utf8.h"

#define TEXT_LEN_MAX 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check_scan(const struct ptk_split *split, const struct ptk_split_pieces *pieces)
{
    struct ptk_split_pieces rest = *pieces;
    const uint8_t *text = pieces->text.bytes;
    const size_t len = pieces->text.len;
    size_t pos = 0;
    uint32_t ends[100];
    size_t count;
    while ((count = ptk_split_scan(split, text, len, &pos, ends, PTK_ARRAY_LEN(ends))) > 0) {
        for (size_t i = 0; i < count; i++) {
            struct ptk_span span;
            PTK_ASSERT(ptk_split_next(&rest, &span, 1) == 1);
            PTK_ASSERT(span.end == ends[i]);
        }
    }
    PTK_ASSERT(pos == len);
}

static void check_pieces(const struct ptk_split_pieces *pieces)
{
    struct ptk_split_pieces rest = *pieces;
    struct ptk_span spans[7];
    uint32_t last = 0;
    size_t count;
    while ((count = ptk_split_next(&rest, spans, PTK_ARRAY_LEN(spans))) > 0) {
        for (size_t i = 0; i < count; i++) {
            PTK_ASSERT(spans[i].begin >= last);
            PTK_ASSERT(spans[i].end > spans[i].begin);
            PTK_ASSERT(spans[i].end <= pieces->text.len);
            last = spans[i].end;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 3) {
        return 0;
    }
    const size_t program_len = ptk_min_size(ptk_load_u16(data + 1), len - 3);
    const struct ptk_split_config config = {
        .program = data + 3,
        .program_len = program_len,
        .profile = PTK_IMAGE_PROFILE_TOKENIZERS_0_23,
        .source = data[0] & 2 ? PTK_IMAGE_SOURCE_TIKTOKEN : PTK_IMAGE_SOURCE_TOKENIZER_JSON,
        .byte_units = data[0] & 1,
    };
    struct ptk_split *split;
    struct ptk_err err;
    if (ptk_split_open(&config, &split, &err) != 0) {
        PTK_ASSERT(split == NULL);
        PTK_ASSERT(err.code < 0);
        PTK_ASSERT(err.text[0] != '\0');
        return 0;
    }
    static uint8_t out_bytes[TEXT_LEN_MAX];
    static struct ptk_span out_align[TEXT_LEN_MAX];
    static struct ptk_split_work *work;
    if (work == NULL) { /* kept: a process runs many inputs */
        work = ptk_split_work_init(aligned_alloc(PTK_CACHE_LINE, ptk_split_work_len(TEXT_LEN_MAX)),
                                   TEXT_LEN_MAX);
    }
    const size_t raw_len = ptk_min_size(len - 3 - program_len, TEXT_LEN_MAX / 4);
    uint8_t *text = malloc(3 * raw_len + 1);
    PTK_ASSERT(text != NULL);
    size_t text_len;
    PTK_ASSERT(ptk_utf8_replace(data + 3 + program_len, raw_len, text, 3 * raw_len, &text_len));

    const struct ptk_split_text in = {.bytes = text, .len = text_len};
    struct ptk_text_buf out = {.bytes = out_bytes, .align = out_align, .cap = TEXT_LEN_MAX};
    struct ptk_split_pieces pieces;
    if (ptk_split_run(split, work, &in, &out, &pieces) == PTK_VERDICT_OK) {
        check_pieces(&pieces);
        if (ptk_split_is_scan(split)) {
            check_scan(split, &pieces);
        }
    }
    free(text);
    ptk_split_close(split);
    return 0;
}
