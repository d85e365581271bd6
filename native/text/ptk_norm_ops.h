/*
 * Operations of normalizers, for ptk_norm.c only: each reads one text and writes the next.
 *
 * Alignment follows one rule for all operations. The reference describes a change as a list of new
 * characters, each of which consumes some characters of the old text: one that replaces consumes
 * its own, one that was inserted consumes none. A character that consumes any takes the alignment
 * of the first one it consumes, one that consumes none that of the byte before the cursor.
 */
#ifndef PTK_NORM_OPS_H
#define PTK_NORM_OPS_H

#include "base/ptk_pause.h"
#include "text/ptk_regex.h"
#include "text/ptk_split.h"
#include "text/ptk_text.h"
#include "text/ptk_unicode.h"
#include "text/ptk_utf8.h"

enum ptk_norm_step {
    PTK_NORM_STEP_SAME = 1,     /* the input is the result; the output holds nothing of use */
    PTK_NORM_STEP_CHANGED = 2,  /* the output is the result */
    PTK_NORM_STEP_FULL = 3,     /* the output is too small */
    PTK_NORM_STEP_TOO_HARD = 4, /* a regular expression gave up */
};

/* The range that the character at `pos` (a boundary below `len`) came from. */
static inline struct ptk_span ptk_norm_align_at(const struct ptk_split_text *in, size_t pos)
{
    if (in->align != NULL) {
        return in->align[pos];
    }
    size_t begin = in->origin + pos;
    return (struct ptk_span){(uint32_t)begin,
                             (uint32_t)(begin + ptk_utf8_lead_len(in->bytes[pos]))};
}

/* The range that a character inserted at `pos` (a boundary) is given: that of the one before it. */
static inline struct ptk_span ptk_norm_align_before(const struct ptk_split_text *in, size_t pos)
{
    if (pos == 0) {
        return (struct ptk_span){(uint32_t)in->origin, (uint32_t)in->origin};
    }
    if (in->align != NULL) {
        return in->align[pos - 1];
    }
    do {
        pos--;
    } while ((in->bytes[pos] & 0xC0) == 0x80);
    return ptk_norm_align_at(in, pos);
}

/* Gives `len` bytes of the output from `pos` on one range. */
static inline void ptk_norm_fill_align(struct ptk_text_buf *out, size_t pos, size_t len,
                                       struct ptk_span align)
{
    for (size_t i = 0; i < len; i++) {
        out->align[pos + i] = align;
    }
}

/* Copies a short run; the copy may write up to 16 bytes where both sides have room for them. */
static inline void ptk_norm_copy_bytes(struct ptk_text_buf *out, const uint8_t *bytes, size_t len,
                                       size_t readable)
{
    uint8_t *dst = out->bytes + out->len;
    if (len <= 16 && readable >= 16 && out->cap - out->len >= 16) {
        memcpy(dst, bytes, 16);
    } else {
        ptk_pause_copy(dst, bytes, len);
    }
}

/* Copies what is mostly one character: a call of memcpy would cost more than the copy. */
static inline void ptk_norm_copy_few(uint8_t *dst, const uint8_t *src, size_t len)
{
    if (len == 1) {
        dst[0] = src[0];
    } else if (len == 2 || len == 3) {
        uint16_t first = ptk_load_u16(src);
        uint16_t last = ptk_load_u16(src + len - 2);
        ptk_store_u16(dst, first);
        ptk_store_u16(dst + len - 2, last);
    } else {
        memcpy(dst, src, len);
    }
}

/* Appends bytes that share one range. Returns false when the output is full. */
static inline bool ptk_norm_put(struct ptk_text_buf *out, const uint8_t *bytes, size_t len,
                                struct ptk_span align)
{
    if (out->cap - out->len < len) {
        return false;
    }
    ptk_norm_copy_few(out->bytes + out->len, bytes, len);
    if (out->align != NULL) {
        ptk_norm_fill_align(out, out->len, len, align);
    }
    out->len += len;
    return true;
}

/* Appends `in->bytes[begin..end)`, whole characters, as they are. Returns false when full. */
bool ptk_norm_copy(const struct ptk_split_text *in, size_t begin, size_t end,
                   struct ptk_text_buf *out);

/* NFC, NFD, NFKC, NFKD. */
enum ptk_norm_step ptk_norm_form(const struct ptk_unicode *unicode, enum ptk_op_norm form,
                                 const struct ptk_split_text *in, struct ptk_text_buf *out);

/* Lower-cases every character by itself. */
enum ptk_norm_step ptk_norm_lowercase(const struct ptk_unicode *unicode,
                                      const struct ptk_split_text *in, struct ptk_text_buf *out);

/*
 * Removes the characters of the class `removed` and turns those of the class `spaced` into spaces.
 * Neither class may hold printable ASCII other than the space itself.
 */
struct ptk_norm_clean {
    uint64_t removed;
    uint64_t spaced;
};
enum ptk_norm_step ptk_norm_clean(const struct ptk_unicode *unicode,
                                  const struct ptk_norm_clean *clean,
                                  const struct ptk_split_text *in, struct ptk_text_buf *out);

/* Puts a space before and after every character of BertNormalizer's Chinese class. */
enum ptk_norm_step ptk_norm_set_off(const struct ptk_unicode *unicode,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out);

/* Takes white space off the ends: the text becomes a part of itself, nothing is written. */
void ptk_norm_strip(const struct ptk_unicode *unicode, bool left, bool right,
                    struct ptk_split_text *text);

/* A string of the program. */
struct ptk_norm_string {
    const uint8_t *bytes;
    size_t len;
};

/* Puts a string before a text that is not empty. */
enum ptk_norm_step ptk_norm_prepend(const struct ptk_norm_string *string,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out);

/* Each byte becomes its character of the byte-level alphabet. */
enum ptk_norm_step ptk_norm_spell_bytes(const struct ptk_split_text *in, struct ptk_text_buf *out);

/* Replaces every occurrence of `pattern`, from left to right; an empty one occurs at every
 * boundary. */
enum ptk_norm_step ptk_norm_replace(const struct ptk_norm_string *pattern,
                                    const struct ptk_norm_string *content,
                                    const struct ptk_split_text *in, struct ptk_text_buf *out);

/* The same for a regular expression, which may match the empty text. */
enum ptk_norm_step ptk_norm_replace_regex(const struct ptk_regex *regex,
                                          struct ptk_regex_work *work,
                                          const struct ptk_norm_string *content,
                                          const struct ptk_split_text *in,
                                          struct ptk_text_buf *out);

/*
 * A sentencepiece map of character sequences. Offset 0: u32 length of the trie in bytes; 4: the
 * trie, a double array of u32; then strings, each ended by a zero byte, that values of the trie
 * point to.
 */
struct ptk_norm_charsmap {
    const uint8_t *units;
    size_t unit_count;
    const uint8_t *strings;
    size_t strings_len;
};

/*
 * ptk_norm_charsmap_verify reads a map from `bytes` and checks that no key leads out of the trie
 * and no value out of the strings. Set-up: allocates while it runs. Returns NULL, or what is wrong.
 */
const char *ptk_norm_charsmap_verify(const uint8_t *bytes, size_t len,
                                     struct ptk_norm_charsmap *charsmap);

/* Maps grapheme clusters of less than six bytes, and the characters of all others, one by one. */
enum ptk_norm_step ptk_norm_map(const struct ptk_unicode *unicode,
                                const struct ptk_norm_charsmap *charsmap,
                                const struct ptk_split_text *in, struct ptk_text_buf *out);

/* What a sentencepiece model sets; flags of op_norm sentencepiece. */
enum {
    PTK_NORM_SPM_ADD_DUMMY_PREFIX = 1 << 0,
    PTK_NORM_SPM_REMOVE_EXTRA_WHITESPACES = 1 << 1,
    PTK_NORM_SPM_ESCAPE_WHITESPACES = 1 << 2,
    PTK_NORM_SPM_WHITESPACE_AS_SUFFIX = 1 << 3,
    PTK_NORM_SPM_FLAGS = 15,
};

struct ptk_norm_spm;

/*
 * ptk_norm_spm_open verifies a character map (empty: none) and a list of symbols and prepares them;
 * both must outlive the result, which ptk_norm_spm_close releases (NULL is allowed). Set-up:
 * allocates. Returns NULL, or what is wrong.
 */
const char *ptk_norm_spm_open(const struct ptk_norm_string *map,
                              const struct ptk_norm_string *symbols, uint16_t flags,
                              struct ptk_norm_spm **out);
void ptk_norm_spm_close(struct ptk_norm_spm *spm);

/* Normalizes a whole text as sentencepiece does. The text has no alignment yet. */
enum ptk_norm_step ptk_norm_spm(const struct ptk_norm_spm *spm, const struct ptk_split_text *in,
                                struct ptk_text_buf *out);

#endif
