/*
 * The translation of a pattern: private to text/ptk_regex*.c.
 *
 * The result is a pattern for PCRE2 in which each set of characters is still a reference: the byte
 * PTK_REGEX_SET_MARK, then the number of the set as two bytes. All other bytes are PCRE2's syntax,
 * in ASCII.
 */
#ifndef PTK_REGEX_PARSE_H
#define PTK_REGEX_PARSE_H

#include "text/ptk_regex.h"
#include "text/ptk_regex_set.h"

#define PTK_REGEX_SET_MARK 0x01u

/* Different sets in one pattern: more than any known one needs by far. */
#define PTK_REGEX_SETS_MAX 250u

/* Longest pattern in bytes, before and after translation. */
#define PTK_REGEX_PATTERN_LEN_MAX 65536u

struct ptk_regex_parsed {
    uint8_t *pattern;
    size_t pattern_len;
    size_t pattern_cap;
    struct ptk_regex_set *sets; /* PTK_REGEX_SETS_MAX of them, `set_count` in use */
    size_t set_count;
};

/*
 * ptk_regex_parse fills `parsed`, which ptk_regex_parsed_fini releases in either case. Errors are
 * those of ptk_regex_open().
 */
int ptk_regex_parse(const struct ptk_regex_config *config, struct ptk_regex_parsed *parsed,
                    struct ptk_err *err);
void ptk_regex_parsed_fini(struct ptk_regex_parsed *parsed);

#endif
