/*
 * Fuzzes the door for patterns: any bytes as a regular expression, run on any text.
 *
 * Input: one byte (bit 0 Rust's dialect, bit 1 the byte-level alphabet), u16 pattern length, the
 * pattern, the text, with U+FFFD where it is not valid unless the alphabet reads bytes. What must
 * hold: no crash, no refusal without a sentence, matches that ascend, lie inside of the text and
 * on whole characters, no empty match where the last one ended, the same matches the second time.
 */
#include <stdio.h>
#include <stdlib.h>

#include "text/ptk_regex.h"
#include "text/ptk_utf8.h"

#define TEXT_LEN_MAX 4096u

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ptk_regex_work *work_of(void)
{
    static struct ptk_regex_work *work;
    if (work == NULL) {
        const size_t len = ptk_align_up(ptk_regex_work_len(TEXT_LEN_MAX), PTK_CACHE_LINE);
        void *memory = aligned_alloc(PTK_CACHE_LINE, len);
        CHECK(memory != NULL);
        work = ptk_regex_work_init(memory, TEXT_LEN_MAX);
    }
    return work;
}

static bool is_boundary(const uint8_t *text, size_t len, size_t pos)
{
    return pos == len || (text[pos] & 0xC0) != 0x80;
}

/* Goes through all matches and returns a number that stands for them. */
static uint64_t run(const struct ptk_regex *regex, const uint8_t *text, size_t len, bool alphabet)
{
    struct ptk_span match = {0, 0};
    uint64_t digest = 0;
    size_t end = 0;
    bool first = true;
    enum ptk_regex_answer answer;
    ptk_regex_start(regex, work_of(), text, len);
    while ((answer = ptk_regex_next(work_of(), &match)) == PTK_REGEX_ANSWER_MATCH) {
        CHECK(match.begin <= match.end);
        CHECK(match.end <= len);
        CHECK(match.begin >= end);
        CHECK(first || match.end > end);
        if (!alphabet) {
            CHECK(is_boundary(text, len, match.begin));
            CHECK(is_boundary(text, len, match.end));
        }
        digest = (digest ^ match.begin ^ (uint64_t)match.end << 32) * UINT64_C(0x9E3779B97F4A7C15);
        end = match.end;
        first = false;
    }
    return digest + (uint64_t)answer;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t replaced[3 * TEXT_LEN_MAX];
    if (size < 3) {
        return 0;
    }
    const size_t pattern_len = ptk_min_size(ptk_load_u16(data + 1), size - 3);
    const bool alphabet = (data[0] & 2) != 0;
    const uint8_t *text = data + 3 + pattern_len;
    size_t len = ptk_min_size(size - 3 - pattern_len, TEXT_LEN_MAX / 3);
    if (!alphabet) {
        CHECK(ptk_utf8_replace(text, len, replaced, sizeof replaced, &len));
        text = replaced;
    }
    const struct ptk_regex_config config = {
        .pattern = data + 3,
        .pattern_len = pattern_len,
        .dialect = (data[0] & 1) != 0 ? PTK_REGEX_DIALECT_FANCY_REGEX
                                      : PTK_REGEX_DIALECT_ONIGURUMA,
        .unicode = ptk_unicode_open(PTK_IMAGE_PROFILE_TOKENIZERS_0_23),
        .alphabet = alphabet,
    };
    struct ptk_regex *regex = NULL;
    struct ptk_err err = {0};
    if (ptk_regex_open(&config, &regex, &err) != 0) {
        CHECK(err.text[0] != 0);
        return 0;
    }
    const uint64_t once = run(regex, text, len, alphabet);
    CHECK(run(regex, text, len, alphabet) == once);
    ptk_regex_close(regex);
    return 0;
}
