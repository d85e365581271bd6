/*
 * Regular expressions of split patterns that have no scanner.
 *
 * The reference's syntax is translated for PCRE2, which only ever sees bytes: all sets of
 * characters that a pattern names are intersected into at most 250 atoms, every character of the
 * text becomes the byte of its atom, and the pattern is written in terms of those bytes. So the
 * tables that decide what a letter is are ours, a class costs one bitmap, and a byte-level alphabet
 * is just another table.
 *
 * Only what means the same in both engines is translated; anything else is refused with its name.
 * Matching allocates nothing. It is bounded: where a pattern needs too much backtracking or too
 * much time on a text, the answer is "too hard", never a wrong match.
 */
#ifndef PTK_REGEX_H
#define PTK_REGEX_H

#include "base/ptk_err.h"
#include "text/ptk_text.h"
#include "text/ptk_unicode.h"

/* The engine a pattern was written for. They differ in `$`, `^` and `{n,m}+`. */
enum ptk_regex_dialect {
    PTK_REGEX_DIALECT_ONIGURUMA = 1,   /* Ruby syntax, as in tokenizer.json */
    PTK_REGEX_DIALECT_FANCY_REGEX = 2, /* Rust, as in tiktoken and tekken.json */
};

struct ptk_regex_config {
    const uint8_t *pattern; /* UTF-8 */
    size_t pattern_len;
    enum ptk_regex_dialect dialect;
    const struct ptk_unicode *unicode;
    bool alphabet; /* each byte of a text counts as its character of the byte-level alphabet */
};

struct ptk_regex;
struct ptk_regex_work;

/*
 * ptk_regex_open translates and compiles a pattern. Set-up: allocates. Returns 0, or a negative
 * errno (EINVAL: not UTF-8 or malformed, ENOTSUP: not supported, ENOMEM) and a sentence that names
 * the construct and where it stands.
 */
int ptk_regex_open(const struct ptk_regex_config *config, struct ptk_regex **out,
                   struct ptk_err *err);
void ptk_regex_close(struct ptk_regex *regex); /* NULL is allowed. */

/* Memory for matching, one per thread, as with ptk_split_work. */
size_t ptk_regex_work_len(size_t text_len_max);
struct ptk_regex_work *ptk_regex_work_init(void *memory, size_t text_len_max);

/*
 * ptk_regex_start begins a search through `text`, valid UTF-8 (or any bytes with `alphabet`) of at
 * most the work's `text_len_max` bytes. The regex, the work and the text stay in use until the last
 * ptk_regex_next.
 */
void ptk_regex_start(const struct ptk_regex *regex, struct ptk_regex_work *work,
                     const uint8_t *text, size_t len);

enum ptk_regex_answer {
    PTK_REGEX_ANSWER_MATCH = 1,
    PTK_REGEX_ANSWER_END = 2,      /* no more matches */
    PTK_REGEX_ANSWER_TOO_HARD = 3, /* a limit was reached; earlier matches are right */
};

/*
 * ptk_regex_next finds the next match, as the reference's find_iter does: leftmost, not
 * overlapping, and no empty match where the last match ended.
 */
enum ptk_regex_answer ptk_regex_next(struct ptk_regex_work *work, struct ptk_span *match);

#endif
