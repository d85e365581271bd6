/*
 * sentencepiece's own normalizer, as its `.model` files ask for it; see ptk_norm_ops.h.
 *
 * It reads the text from left to right. At each position stands, in this order of preference, a
 * user-defined symbol (the longest), a key of the character map (the longest), or one character.
 * What stands there is written in its mapped form; spaces next to each other and at both ends are
 * dropped, and a space becomes U+2581, as the model's settings say. That the longest key counts and
 * that it may span grapheme clusters is where `precompiled` of tokenizer.json differs.
 *
 * Offsets: a byte of the result begins where the reading stood when it was written, and ends where
 * the next byte begins.
 */
#include <stdlib.h>

#include "base/ptk_pause.h"
#include "text/ptk_norm_ops.h"

#define SPACE_SYMBOL     "\xe2\x96\x81"
#define SPACE_SYMBOL_LEN 3u

/* Longest key and most keys that begin alike: the reference keeps 32 results of one search. */
#define KEY_LEN_MAX    255u
#define KEY_NESTED_MAX 32u

/* A trie of more units than this is refused, which bounds the memory of its check. */
#define UNIT_COUNT_MAX (1u << 24)

struct ptk_norm_spm {
    uint16_t flags;
    bool has_map;
    struct ptk_norm_charsmap charsmap;
    struct ptk_norm_string *symbols; /* ascending; owned */
    size_t symbol_count;
    uint32_t symbol_begin[257]; /* by first byte: its symbols */
    /* ASCII but the space: neither a symbol nor a key begins here when ASCII or the end follows */
    bool plain[256];
};

/* ---- the character map ---------------------------------------------------------------------- */

static uint32_t unit_at(const struct ptk_norm_charsmap *charsmap, size_t node)
{
    return ptk_load_u32(charsmap->units + 4 * node);
}

static size_t unit_distance(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
}

/* Where the children of a node lie; the root's parent position is 0. */
static size_t children_of(const struct ptk_norm_charsmap *charsmap, size_t node)
{
    return node ^ unit_distance(unit_at(charsmap, node));
}

/* The child of `*node` by one byte; false when there is none. */
static bool step_down(const struct ptk_norm_charsmap *charsmap, size_t *node, uint8_t byte)
{
    const size_t child = children_of(charsmap, *node) ^ byte;
    if (byte == 0 || (unit_at(charsmap, child) & 0x800000FF) != byte) {
        return false;
    }
    *node = child;
    return true;
}

static bool ends_key(const struct ptk_norm_charsmap *charsmap, size_t node)
{
    return (unit_at(charsmap, node) >> 8 & 1) != 0;
}

/* What is known of a node reached with some bytes of a character still to come. */
struct below {
    uint8_t state;  /* BELOW_NEW, BELOW_OPEN or BELOW_DONE */
    uint8_t height; /* longest way down, in bytes */
    uint8_t nested; /* most keys on one way down, its own included */
};

enum { BELOW_NEW = 0, BELOW_OPEN = 1, BELOW_DONE = 2 };

/* A node on the way down: which byte is tried next. */
struct visit {
    uint32_t node;
    uint16_t byte;
    uint8_t more; /* bytes of the character that are still to come */
};

/* How many bytes of a character follow this one; 4 where no valid text has the byte here. */
static uint8_t more_after(uint8_t byte, uint8_t more)
{
    if (more > 0) {
        return (byte & 0xC0) == 0x80 ? (uint8_t)(more - 1) : 4;
    }
    if (byte < 0x80) {
        return 0;
    }
    return byte >= 0xC2 && byte < 0xF5 ? (uint8_t)(byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1) : 4;
}

static const char *open_visit(const struct ptk_norm_charsmap *charsmap, struct below *below,
                              const struct visit *visit)
{
    const size_t base = children_of(charsmap, visit->node);
    const bool key = visit->node != 0 && ends_key(charsmap, visit->node);
    if (key && visit->more != 0) {
        return "a key of the trie ends inside of a character";
    }
    if (!key && (unit_at(charsmap, base) & 0x800000FF) == 0) {
        return "a key of the trie holds a zero byte";
    }
    *below = (struct below){BELOW_OPEN, 0, key};
    return NULL;
}

/*
 * Follows every way that a valid text can take down the trie, whose nodes all lie inside of it.
 * `stack` has KEY_LEN_MAX + 1 entries, `all` four for every unit.
 */
static const char *walk(const struct ptk_norm_charsmap *charsmap, struct visit *stack,
                        struct below *all)
{
    size_t depth = 0;
    stack[0] = (struct visit){.node = 0, .byte = 1};
    const char *wrong = open_visit(charsmap, &all[0], &stack[0]);
    while (wrong == NULL) { /* ends: every node is opened once for each `more` */
        struct visit *visit = &stack[depth];
        struct below *below = &all[4 * (size_t)visit->node + visit->more];
        if (visit->byte == 256) {
            below->state = BELOW_DONE;
            if (depth == 0) {
                return NULL;
            }
            depth--;
            continue; /* the parent looks at the same byte again and finds it done */
        }
        const uint8_t byte = (uint8_t)visit->byte;
        const uint8_t more = more_after(byte, visit->more);
        size_t node = visit->node;
        if (more == 4 || !step_down(charsmap, &node, byte)) {
            visit->byte++;
            continue;
        }
        struct below *child = &all[4 * node + more];
        if (node == 0 || child->state == BELOW_OPEN ||
            (child->state == BELOW_NEW && depth == KEY_LEN_MAX)) {
            return "a key of the trie is too long";
        }
        if (child->state == BELOW_NEW) {
            depth++;
            stack[depth] = (struct visit){.node = (uint32_t)node, .byte = 1, .more = more};
            wrong = open_visit(charsmap, child, &stack[depth]);
            continue;
        }
        if (child->height >= KEY_LEN_MAX) {
            return "a key of the trie is too long";
        }
        const uint8_t own = visit->node != 0 && ends_key(charsmap, visit->node);
        below->height = (uint8_t)ptk_max_size(below->height, child->height + 1u);
        below->nested = (uint8_t)ptk_max_size(below->nested, own + (size_t)child->nested);
        if (below->nested > KEY_NESTED_MAX) {
            return "too many keys of the trie begin alike";
        }
        visit->byte++;
    }
    return wrong;
}

static const char *verify_keys(const struct ptk_norm_charsmap *charsmap)
{
    if (charsmap->unit_count > UNIT_COUNT_MAX) {
        return "the trie is too large";
    }
    struct visit *stack = calloc(KEY_LEN_MAX + 1, sizeof *stack);
    struct below *all = calloc(4 * charsmap->unit_count, sizeof *all);
    const char *wrong =
        stack != NULL && all != NULL ? walk(charsmap, stack, all) : "no memory to check the trie";
    free(stack);
    free(all);
    return wrong;
}

/* The longest key that a text begins with: its length, or 0, and the place of its value. */
static size_t find_key(const struct ptk_norm_charsmap *charsmap, const uint8_t *bytes, size_t len,
                       uint32_t *value)
{
    size_t node = 0;
    size_t found = 0;
    for (size_t i = 0; i < len && step_down(charsmap, &node, bytes[i]); i++) {
        if (ends_key(charsmap, node)) {
            found = i + 1;
            *value = unit_at(charsmap, children_of(charsmap, node)) & 0x7FFFFFFF;
        }
    }
    return found;
}

/* ---- user-defined symbols ------------------------------------------------------------------- */

static int compare(const struct ptk_norm_string *a, const struct ptk_norm_string *b)
{
    const int order = memcmp(a->bytes, b->bytes, ptk_min_size(a->len, b->len));
    return order != 0 ? order : (a->len > b->len) - (a->len < b->len);
}

/* Reads a list of STRINGs, ascending; `symbols` is NULL while they are counted. */
static const char *read_symbols(const struct ptk_norm_string *list, struct ptk_norm_string *symbols,
                                size_t *count)
{
    size_t pos = 0;
    *count = 0;
    struct ptk_norm_string last = {NULL, 0};
    while (pos < list->len) {
        if (list->len - pos < 4 || ptk_load_u32(list->bytes + pos) > list->len - pos - 4) {
            return "a symbol is cut off";
        }
        const struct ptk_norm_string symbol = {list->bytes + pos + 4,
                                               ptk_load_u32(list->bytes + pos)};
        if (symbol.len == 0 || !ptk_utf8_valid(symbol.bytes, symbol.len)) {
            return "a symbol is empty or not valid UTF-8";
        }
        if (last.len > 0 && compare(&last, &symbol) >= 0) {
            return "the symbols do not ascend";
        }
        if (symbols != NULL) {
            symbols[*count] = symbol;
        }
        last = symbol;
        pos += 4 + symbol.len;
        ++*count;
    }
    return NULL;
}

static const char *add_symbols(struct ptk_norm_spm *spm, const struct ptk_norm_string *list)
{
    size_t count;
    const char *wrong = read_symbols(list, NULL, &count);
    if (wrong != NULL) {
        return wrong;
    }
    spm->symbols = calloc(ptk_max_size(count, 1), sizeof *spm->symbols);
    if (spm->symbols == NULL) {
        return "no memory for the symbols";
    }
    wrong = read_symbols(list, spm->symbols, &spm->symbol_count);
    PTK_ASSERT(wrong == NULL);
    size_t at = 0;
    for (size_t byte = 0; byte < 256; byte++) {
        spm->symbol_begin[byte] = (uint32_t)at;
        while (at < count && spm->symbols[at].bytes[0] == byte) {
            at++;
        }
    }
    spm->symbol_begin[256] = (uint32_t)count;
    return NULL;
}

/* The first symbol of [low, high), which agree before `depth`, whose byte there is not below
 * `byte`. */
static size_t lower_bound(const struct ptk_norm_spm *spm, size_t low, size_t high, size_t depth,
                          uint32_t byte)
{
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const struct ptk_norm_string *symbol = &spm->symbols[middle];
        if (symbol->len <= depth || symbol->bytes[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The length of the longest symbol that a text begins with, or 0. */
static size_t find_symbol(const struct ptk_norm_spm *spm, const uint8_t *bytes, size_t len)
{
    size_t low = spm->symbol_begin[bytes[0]];
    size_t high = spm->symbol_begin[bytes[0] + 1u];
    size_t found = 0;
    for (size_t depth = 1; low < high; depth++) {
        if (spm->symbols[low].len == depth) { /* the shortest of those that begin alike is first */
            found = depth;
            low++;
        }
        if (depth == len) {
            break;
        }
        low = lower_bound(spm, low, high, depth, bytes[depth]);
        high = lower_bound(spm, low, high, depth, bytes[depth] + 1u);
    }
    return found;
}

/* ---- opening -------------------------------------------------------------------------------- */

/* Whether something that begins with this ASCII byte needs a closer look before ASCII. */
static bool is_plain(const struct ptk_norm_spm *spm, uint8_t byte)
{
    size_t node = 0;
    if (spm->symbol_begin[byte] != spm->symbol_begin[byte + 1u]) {
        return false;
    }
    if (!spm->has_map || !step_down(&spm->charsmap, &node, byte)) {
        return true;
    }
    bool plain = !ends_key(&spm->charsmap, node);
    for (uint8_t next = 1; next < 0x80 && plain; next++) {
        size_t child = node;
        plain = !step_down(&spm->charsmap, &child, next);
    }
    return plain;
}

const char *ptk_norm_spm_open(const struct ptk_norm_string *map,
                              const struct ptk_norm_string *symbols, uint16_t flags,
                              struct ptk_norm_spm **out)
{
    *out = NULL;
    struct ptk_norm_spm *spm = calloc(1, sizeof *spm);
    if (spm == NULL) {
        return "no memory";
    }
    spm->flags = flags;
    spm->has_map = map->len > 0;
    const char *wrong = NULL;
    if (spm->has_map) {
        wrong = ptk_norm_charsmap_verify(map->bytes, map->len, &spm->charsmap);
        wrong = wrong == NULL ? verify_keys(&spm->charsmap) : wrong;
    }
    if (wrong == NULL) {
        wrong = add_symbols(spm, symbols);
    }
    if (wrong != NULL) {
        ptk_norm_spm_close(spm);
        return wrong;
    }
    for (uint8_t byte = 0; byte < 0x80; byte++) {
        spm->plain[byte] = byte != ' ' && is_plain(spm, byte);
    }
    *out = spm;
    return NULL;
}

void ptk_norm_spm_close(struct ptk_norm_spm *spm)
{
    if (spm != NULL) {
        free(spm->symbols);
        free(spm);
    }
}

/* ---- running -------------------------------------------------------------------------------- */

/* What stands at a position of the text, and what it is written as. */
struct prefix {
    const uint8_t *bytes;
    size_t len;      /* of `bytes` */
    size_t text_len; /* of the text, at least 1 */
};

static struct prefix prefix_at(const struct ptk_norm_spm *spm, const struct ptk_split_text *in,
                               size_t pos)
{
    const uint8_t *at = in->bytes + pos;
    const size_t left = in->len - pos;
    const size_t symbol_len = find_symbol(spm, at, left);
    if (symbol_len > 0) {
        return (struct prefix){at, symbol_len, symbol_len};
    }
    uint32_t value = 0;
    const size_t key_len = spm->has_map ? find_key(&spm->charsmap, at, left, &value) : 0;
    if (key_len > 0) {
        const uint8_t *string = spm->charsmap.strings + value;
        size_t len = 0;
        while (string[len] != 0) { /* ends: the last string has its zero */
            len++;
        }
        return (struct prefix){string, len, key_len};
    }
    const size_t char_len = ptk_utf8_lead_len(at[0]);
    return (struct prefix){at, char_len, char_len};
}

static bool is_one_space(const struct prefix *prefix)
{
    return prefix->len == 1 && prefix->bytes[0] == ' ';
}

static const uint8_t *space_of(const struct ptk_norm_spm *spm, size_t *len)
{
    const bool escape = (spm->flags & PTK_NORM_SPM_ESCAPE_WHITESPACES) != 0;
    *len = escape ? SPACE_SYMBOL_LEN : 1;
    return (const uint8_t *)(escape ? SPACE_SYMBOL : " ");
}

/* Appends bytes that begin at one place of the text; where they end is not known yet. */
static bool put(struct ptk_text_buf *out, const uint8_t *bytes, size_t len, size_t begin)
{
    return ptk_norm_put(out, bytes, len, (struct ptk_span){(uint32_t)begin, (uint32_t)begin});
}

static bool put_space(const struct ptk_norm_spm *spm, struct ptk_text_buf *out, size_t begin)
{
    size_t len;
    const uint8_t *space = space_of(spm, &len);
    return put(out, space, len, begin);
}

/* Appends what stands at a position: its spaces in their own form. */
static bool put_prefix(const struct ptk_norm_spm *spm, const struct prefix *prefix, size_t begin,
                       struct ptk_text_buf *out)
{
    size_t done = 0;
    for (size_t i = 0; i < prefix->len; i++) {
        if (prefix->bytes[i] == ' ') {
            if (!put(out, prefix->bytes + done, i - done, begin) || !put_space(spm, out, begin)) {
                return false;
            }
            done = i + 1;
        }
    }
    return put(out, prefix->bytes + done, prefix->len - done, begin);
}

/* Appends a run of plain ASCII, each byte of which stands for itself. */
static bool put_plain(const struct ptk_split_text *in, size_t pos, size_t end,
                      struct ptk_text_buf *out)
{
    const size_t len = end - pos;
    if (out->cap - out->len < len) {
        return false;
    }
    ptk_norm_copy_bytes(out, in->bytes + pos, len, in->len - pos);
    size_t paused_at = 0;
    for (size_t i = 0; i < len && out->align != NULL; i++) {
        ptk_pause_pos(&paused_at, i);
        const uint32_t begin = (uint32_t)(in->origin + pos + i);
        out->align[out->len + i] = (struct ptk_span){begin, begin};
    }
    out->len += len;
    return true;
}

/* The end of the run of plain ASCII at `pos`, or `pos`. */
static size_t plain_end(const struct ptk_norm_spm *spm, const struct ptk_split_text *in, size_t pos)
{
    size_t end = pos;
    size_t paused_at = pos;
    while (end < in->len && spm->plain[in->bytes[end]]) {
        ptk_pause_pos(&paused_at, end);
        end++;
    }
    return end > pos && end < in->len && in->bytes[end] >= 0x80 ? end - 1 : end;
}

/* Takes spaces off the end; `*end` becomes where the first of them began. */
static void trim(const struct ptk_norm_spm *spm, struct ptk_text_buf *out, size_t *end)
{
    size_t len;
    const uint8_t *space = space_of(spm, &len);
    size_t paused_at = out->len;
    while (out->len >= len && memcmp(out->bytes + out->len - len, space, len) == 0) {
        ptk_pause_pos(&paused_at, out->len);
        out->len -= len;
        if (out->align != NULL) {
            *end = out->align[out->len].begin;
        }
    }
}

/* Every byte ends where the next one begins. */
static void close_align(struct ptk_text_buf *out, size_t end)
{
    size_t paused_at = out->len;
    for (size_t i = out->len; i > 0; i--) {
        ptk_pause_pos(&paused_at, i);
        out->align[i - 1].end = (uint32_t)end;
        end = out->align[i - 1].begin;
    }
}

/* The text from `pos` on, which does not begin with a space that is dropped. */
static bool put_text(const struct ptk_norm_spm *spm, const struct ptk_split_text *in, size_t pos,
                     struct ptk_text_buf *out)
{
    const bool remove = (spm->flags & PTK_NORM_SPM_REMOVE_EXTRA_WHITESPACES) != 0;
    bool after_space = remove;
    size_t paused_at = pos;
    while (pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        const size_t run_end = plain_end(spm, in, pos);
        if (run_end > pos) {
            if (!put_plain(in, pos, run_end, out)) {
                return false;
            }
            after_space = false;
            pos = run_end;
            continue;
        }
        struct prefix prefix = prefix_at(spm, in, pos);
        while (after_space && prefix.len > 0 && prefix.bytes[0] == ' ') {
            prefix.bytes++;
            prefix.len--;
        }
        if (prefix.len > 0) {
            if (!put_prefix(spm, &prefix, in->origin + pos, out)) {
                return false;
            }
            after_space = remove && prefix.bytes[prefix.len - 1] == ' ';
        }
        pos += prefix.text_len;
    }
    return true;
}

enum ptk_norm_step ptk_norm_spm(const struct ptk_norm_spm *spm, const struct ptk_split_text *in,
                                struct ptk_text_buf *out)
{
    const bool remove = (spm->flags & PTK_NORM_SPM_REMOVE_EXTRA_WHITESPACES) != 0;
    const bool dummy = (spm->flags & PTK_NORM_SPM_ADD_DUMMY_PREFIX) != 0;
    const bool suffix = (spm->flags & PTK_NORM_SPM_WHITESPACE_AS_SUFFIX) != 0;
    PTK_ASSERT(in->align == NULL); /* the only operation of its program */
    size_t pos = 0;
    size_t paused_at = 0;
    while (remove && pos < in->len) {
        ptk_pause_pos(&paused_at, pos);
        const struct prefix prefix = prefix_at(spm, in, pos);
        if (!is_one_space(&prefix)) {
            break;
        }
        pos += prefix.text_len;
    }
    if (pos == in->len) {
        return PTK_NORM_STEP_CHANGED; /* nothing, or nothing but spaces: `out` is empty */
    }
    if (dummy && !suffix && !put_space(spm, out, in->origin + pos)) {
        return PTK_NORM_STEP_FULL;
    }
    if (!put_text(spm, in, pos, out)) {
        return PTK_NORM_STEP_FULL;
    }
    size_t end = in->origin + in->len;
    if (remove) {
        trim(spm, out, &end);
    }
    if (dummy && suffix && !put_space(spm, out, end)) {
        return PTK_NORM_STEP_FULL;
    }
    if (out->align != NULL) {
        close_align(out, end);
    }
    return PTK_NORM_STEP_CHANGED;
}
