/*
 * Compiles a translated pattern and matches with it; see ptk_regex.h.
 *
 * Two sets of characters cut the code points into atoms: those in neither, in one, in the other, in
 * both. All sets of a pattern together make a few dozen. PCRE2 compiles a pattern over atoms, and a
 * text is turned into atoms before it is searched: one byte a character.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/ptk_regex.h"

#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "text/ptk_alphabet.h"
#include "text/ptk_regex_parse.h"
#include "text/ptk_utf8.h"

/* Atoms are the bytes from 1 on. */
#define ATOMS_MAX 250u

/* One atom as it is written in a set, "\xHH", and the longest set. */
#define ATOM_TEXT_LEN 4u

#define LEAF_SHIFT  7u
#define LEAF_LEN    (1u << LEAF_SHIFT)
#define BLOCK_COUNT (PTK_UNICODE_END >> LEAF_SHIFT)

/*
 * Backtracking steps in one match: enough for a word of a hundred thousand characters in the usual
 * loops, and milliseconds when a pattern runs wild.
 */
#define MATCH_STEPS_MAX (1u << 20)

/*
 * Time for one text, in cycles of the counter: what no real pattern comes near, but short enough
 * for a poller to survive a pattern that takes quadratic time on the text at hand. A single call is
 * charged CALL_CHARGE_MAX at most: the counter goes on while a thread is not running, and that must
 * not count as a hard text.
 */
#define CYCLES_MIN      UINT64_C(200000000)
#define CYCLES_PER_BYTE UINT64_C(500)
#define CALL_CHARGE_MAX UINT64_C(4000000)

/*
 * PCRE2 is asked to try so many places at a time, so that the clock is looked at in between. The
 * number doubles while a call is quick and halves when it is not.
 */
#define PLACES_MIN      16u
#define PLACES_MAX      4096u
#define CALL_CYCLES_MAX UINT64_C(100000)

/* Memory for what PCRE2 needs per thread; it takes some 500 bytes. */
#define ARENA_LEN 4096u

struct ptk_regex {
    pcre2_code *code;
    bool alphabet;
    uint8_t ascii[128];
    uint8_t by_byte[256]; /* atoms of the alphabet's characters */
    uint16_t blocks[BLOCK_COUNT];
    uint8_t *leaves; /* LEAF_LEN atoms each */
    size_t leaf_count;
};

struct ptk_regex_work {
    size_t text_len_max;
    uint8_t *atoms;
    pcre2_match_data *match_data;
    pcre2_match_context *context;
    size_t arena_used;
    uint8_t *arena;
    /* The search at hand. Positions are in atoms unless they say bytes. */
    const struct ptk_regex *regex;
    const uint8_t *text;
    size_t atom_count;
    size_t from;
    size_t last_end; /* of the last match, SIZE_MAX before the first */
    size_t seen;     /* a position and the byte it stands for */
    size_t seen_byte;
    size_t places;
    uint64_t cycles_left;
};

/* --- Atoms --------------------------------------------------------------------------------------
 */

/* Which sets hold the code points of an atom: one bit a set. */
struct signature {
    uint64_t words[(PTK_REGEX_SETS_MAX + 63) / 64];
};

struct atoms {
    struct signature signatures[ATOMS_MAX];
    size_t count;
};

static int compare_u32(const void *a, const void *b)
{
    const uint32_t left = *(const uint32_t *)a;
    const uint32_t right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

/* All code points at which a range begins or ends, ascending, from 0 on; owned by the caller. */
static uint32_t *list_edges(const struct ptk_regex_parsed *parsed, size_t *count)
{
    size_t cap = 1;
    for (size_t i = 0; i < parsed->set_count; i++) {
        cap += 2 * parsed->sets[i].count;
    }
    uint32_t *edges = malloc(cap * sizeof *edges);
    if (edges == NULL) {
        return NULL;
    }
    size_t used = 0;
    edges[used++] = 0;
    for (size_t i = 0; i < parsed->set_count; i++) {
        for (size_t j = 0; j < parsed->sets[i].count; j++) {
            edges[used++] = parsed->sets[i].ranges[j].begin;
            edges[used++] = parsed->sets[i].ranges[j].end;
        }
    }
    qsort(edges, used, sizeof *edges, compare_u32);
    *count = 0;
    for (size_t i = 0; i < used; i++) {
        if (edges[i] < PTK_UNICODE_END && (*count == 0 || edges[*count - 1] != edges[i])) {
            edges[(*count)++] = edges[i];
        }
    }
    return edges;
}

/* The atom with this signature, a new one if need be; 0 when there are too many. */
static uint8_t find_atom(struct atoms *atoms, const struct signature *signature)
{
    for (size_t i = 0; i < atoms->count; i++) {
        if (memcmp(&atoms->signatures[i], signature, sizeof *signature) == 0) {
            return (uint8_t)(i + 1);
        }
    }
    if (atoms->count == ATOMS_MAX) {
        return 0;
    }
    atoms->signatures[atoms->count++] = *signature;
    return (uint8_t)atoms->count;
}

/* Appends a leaf; returns its number, or SIZE_MAX. */
static size_t add_leaf(struct ptk_regex *regex, const uint8_t leaf[LEAF_LEN])
{
    uint8_t *leaves = realloc(regex->leaves, (regex->leaf_count + 1) * LEAF_LEN);
    if (leaves == NULL) {
        return SIZE_MAX;
    }
    regex->leaves = leaves;
    memcpy(leaves + regex->leaf_count * LEAF_LEN, leaf, LEAF_LEN);
    return regex->leaf_count++;
}

/* Fills the two-stage table. Blocks of one atom, which most are, share a leaf for it. */
static bool make_leaves(struct ptk_regex *regex, const uint32_t *edges, const uint8_t *edge_atoms,
                        size_t edge_count)
{
    size_t shared[ATOMS_MAX + 1];
    memset(shared, 0xFF, sizeof shared);
    size_t edge = 0;
    for (size_t block = 0; block < BLOCK_COUNT; block++) {
        uint8_t leaf[LEAF_LEN];
        const uint32_t begin = (uint32_t)(block << LEAF_SHIFT);
        while (edge + 1 < edge_count && edges[edge + 1] <= begin) {
            edge++;
        }
        const bool is_shared = edge + 1 == edge_count || edges[edge + 1] >= begin + LEAF_LEN;
        for (uint32_t i = 0; i < LEAF_LEN; i++) {
            while (edge + 1 < edge_count && edges[edge + 1] <= begin + i) {
                edge++;
            }
            leaf[i] = edge_atoms[edge];
            if (is_shared) {
                memset(leaf, leaf[0], sizeof leaf);
                break;
            }
        }
        size_t number = is_shared ? shared[leaf[0]] : SIZE_MAX;
        if (number == SIZE_MAX) {
            number = add_leaf(regex, leaf);
        }
        if (number == SIZE_MAX) {
            return false;
        }
        if (is_shared) {
            shared[leaf[0]] = number;
        }
        regex->blocks[block] = (uint16_t)number;
    }
    return true;
}

static uint8_t atom_of(const struct ptk_regex *regex, uint32_t code_point)
{
    const size_t leaf = regex->blocks[code_point >> LEAF_SHIFT];
    return regex->leaves[leaf << LEAF_SHIFT | (code_point & (LEAF_LEN - 1))];
}

/* Cuts all code points into atoms and fills the tables. */
static int make_atoms(struct ptk_regex *regex, const struct ptk_regex_parsed *parsed,
                      struct atoms *atoms, struct ptk_err *err)
{
    size_t edge_count = 0;
    uint32_t *edges = list_edges(parsed, &edge_count);
    uint8_t *edge_atoms = malloc(edge_count + 1);
    int rc = 0;
    if (edges == NULL || edge_atoms == NULL) {
        rc = ptk_err_set(err, -ENOMEM, "regular expression: no memory");
    }
    for (size_t i = 0; rc == 0 && i < edge_count; i++) {
        struct signature signature = {{0}};
        for (size_t j = 0; j < parsed->set_count; j++) {
            if (ptk_regex_set_has(&parsed->sets[j], edges[i])) {
                signature.words[j / 64] |= UINT64_C(1) << j % 64;
            }
        }
        edge_atoms[i] = find_atom(atoms, &signature);
        if (edge_atoms[i] == 0) {
            rc = ptk_err_set(
                err, -ENOTSUP,
                "regular expression: a pattern that tells this many kinds of characters "
                "apart is not supported");
        }
    }
    if (rc == 0 && !make_leaves(regex, edges, edge_atoms, edge_count)) {
        rc = ptk_err_set(err, -ENOMEM, "regular expression: no memory");
    }
    free(edge_atoms);
    free(edges);
    for (unsigned byte = 0; rc == 0 && byte < 256; byte++) {
        regex->by_byte[byte] = atom_of(regex, ptk_alphabet_code_point((uint8_t)byte));
    }
    for (uint32_t i = 0; rc == 0 && i < sizeof regex->ascii; i++) {
        regex->ascii[i] = atom_of(regex, i);
    }
    return rc;
}

/* Writes a set as PCRE2's [...] of atoms; returns its length. */
static size_t write_set(const struct atoms *atoms, size_t set, char *dst)
{
    static const char digits[] = "0123456789abcdef";
    static const char nothing[] = "[^\\x00-\\xff]";
    size_t len = 0;
    dst[len++] = '[';
    for (size_t i = 0; i < atoms->count; i++) {
        if (atoms->signatures[i].words[set / 64] >> set % 64 & 1) {
            const char atom[ATOM_TEXT_LEN] = {'\\', 'x', digits[(i + 1) >> 4],
                                              digits[(i + 1) & 15]};
            memcpy(dst + len, atom, sizeof atom);
            len += sizeof atom;
        }
    }
    if (len == 1) {
        memcpy(dst, nothing, sizeof nothing - 1);
        return sizeof nothing - 1;
    }
    dst[len++] = ']';
    return len;
}

/* --- Set-up -------------------------------------------------------------------------------------
 */

static int compile(struct ptk_regex *regex, const struct ptk_regex_parsed *parsed,
                   const struct atoms *atoms, struct ptk_err *err)
{
    const size_t set_text_len = 16 + ATOMS_MAX * ATOM_TEXT_LEN;
    size_t cap = 1;
    for (size_t i = 0; i < parsed->pattern_len; i++) {
        const bool is_set = parsed->pattern[i] == PTK_REGEX_SET_MARK;
        cap += is_set ? set_text_len : 1;
        i += is_set ? 2 : 0;
    }
    char *pattern = malloc(cap);
    if (pattern == NULL) {
        return ptk_err_set(err, -ENOMEM, "regular expression: no memory");
    }
    size_t len = 0;
    for (size_t i = 0; i < parsed->pattern_len; i++) {
        if (parsed->pattern[i] != PTK_REGEX_SET_MARK) {
            pattern[len++] = (char)parsed->pattern[i];
            continue;
        }
        const size_t set = ptk_load_u16(parsed->pattern + i + 1);
        len += write_set(atoms, set, pattern + len);
        i += 2;
    }
    const uint32_t options =
        PCRE2_NEVER_UTF | PCRE2_NEVER_UCP | PCRE2_NO_AUTO_CAPTURE | PCRE2_USE_OFFSET_LIMIT;
    int code;
    PCRE2_SIZE at;
    regex->code = pcre2_compile((PCRE2_SPTR)pattern, len, options, &code, &at, NULL);
    free(pattern);
    if (regex->code == NULL) {
        PCRE2_UCHAR message[256] = {0};
        (void)pcre2_get_error_message(code, message, sizeof message); /* truncated at worst */
        return ptk_err_set(err, -ENOTSUP, "regular expression: PCRE2 refuses it: %s",
                           (const char *)message);
    }
    code = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    if (code != 0) {
        return ptk_err_set(
            err, -ENOTSUP,
            "regular expression: PCRE2 cannot compile just in time here (error %d): it "
            "needs a build with JIT and the right to map executable memory",
            code);
    }
    return 0;
}

int ptk_regex_open(const struct ptk_regex_config *config, struct ptk_regex **out,
                   struct ptk_err *err)
{
    *out = NULL;
    struct ptk_regex *regex = calloc(1, sizeof *regex);
    struct atoms *atoms = calloc(1, sizeof *atoms);
    struct ptk_regex_parsed parsed = {0};
    int rc = 0;
    if (regex == NULL || atoms == NULL) {
        rc = ptk_err_set(err, -ENOMEM, "regular expression: no memory");
        goto out;
    }
    regex->alphabet = config->alphabet;
    rc = ptk_regex_parse(config, &parsed, err);
    if (rc != 0) {
        goto out;
    }
    rc = make_atoms(regex, &parsed, atoms, err);
    if (rc != 0) {
        goto out;
    }
    rc = compile(regex, &parsed, atoms, err);
    if (rc != 0) {
        goto out;
    }
    *out = regex;
    regex = NULL;
out:
    ptk_regex_parsed_fini(&parsed);
    free(atoms);
    ptk_regex_close(regex);
    return rc;
}

void ptk_regex_close(struct ptk_regex *regex)
{
    if (regex == NULL) {
        return;
    }
    pcre2_code_free(regex->code); /* NULL is allowed. */
    free(regex->leaves);
    free(regex);
}

/* PCRE2 asks for memory while a work is laid out and never later: matching is just in time. */
static void *arena_take(size_t len, void *data)
{
    struct ptk_regex_work *work = data;
    const size_t begin = ptk_align_up(work->arena_used, 16);
    if (begin + len > ARENA_LEN) {
        return NULL;
    }
    work->arena_used = begin + len;
    return work->arena + begin;
}

static void arena_give(void *memory, void *data)
{
    (void)memory; /* The arena is the caller's and goes as a whole. */
    (void)data;
}

size_t ptk_regex_work_len(size_t text_len_max)
{
    return ptk_align_up(sizeof(struct ptk_regex_work), PTK_CACHE_LINE) + ARENA_LEN +
           ptk_align_up(text_len_max, PTK_CACHE_LINE);
}

struct ptk_regex_work *ptk_regex_work_init(void *memory, size_t text_len_max)
{
    struct ptk_regex_work *work = memory;
    memset(work, 0, sizeof *work);
    work->text_len_max = text_len_max;
    work->arena = (uint8_t *)memory + ptk_align_up(sizeof *work, PTK_CACHE_LINE);
    work->atoms = work->arena + ARENA_LEN;
    pcre2_general_context *general = pcre2_general_context_create(arena_take, arena_give, work);
    PTK_ASSERT(general != NULL);
    work->context = pcre2_match_context_create(general);
    PTK_ASSERT(work->context != NULL);
    work->match_data = pcre2_match_data_create(1, general);
    PTK_ASSERT(work->match_data != NULL);
    PTK_ASSERT(pcre2_set_match_limit(work->context, MATCH_STEPS_MAX) == 0);
    return work;
}

/* --- Matching -----------------------------------------------------------------------------------
 */

void ptk_regex_start(const struct ptk_regex *regex, struct ptk_regex_work *work,
                     const uint8_t *text, size_t len)
{
    PTK_ASSERT(len <= work->text_len_max);
    work->regex = regex;
    work->text = text;
    work->from = 0;
    work->last_end = SIZE_MAX;
    work->seen = 0;
    work->seen_byte = 0;
    work->places = PLACES_MIN;
    work->cycles_left = CYCLES_MIN + CYCLES_PER_BYTE * len;
    size_t count = 0;
    size_t paused_at = 0;
    if (regex->alphabet) {
        for (; count < len; count++) {
            ptk_pause_pos(&paused_at, count);
            work->atoms[count] = regex->by_byte[text[count]];
        }
    } else {
        for (size_t at = 0; at < len;) {
            ptk_pause_pos(&paused_at, at);
            if (text[at] < 0x80) {
                work->atoms[count++] = regex->ascii[text[at++]];
            } else {
                uint32_t width;
                work->atoms[count++] = atom_of(regex, ptk_utf8_decode(text + at, &width));
                at += width;
            }
        }
    }
    work->atom_count = count;
}

/* The byte a position stands for; positions are asked for in ascending order. */
static uint32_t byte_of(struct ptk_regex_work *work, size_t position)
{
    if (work->regex->alphabet) {
        return (uint32_t)position;
    }
    size_t paused_at = work->seen;
    for (; work->seen < position; work->seen++) {
        ptk_pause_pos(&paused_at, work->seen);
        work->seen_byte += ptk_utf8_lead_len(work->text[work->seen_byte]);
    }
    return (uint32_t)work->seen_byte;
}

/* The leftmost match that begins at `from` or later, with a look at the clock now and then. */
static enum ptk_regex_answer search(struct ptk_regex_work *work, size_t from, size_t *begin,
                                    size_t *end)
{
    for (;;) {
        const uint64_t before = ptk_cycles();
        (void)pcre2_set_offset_limit(work->context, from + work->places - 1); /* cannot fail */
        int rc = pcre2_jit_match(work->regex->code, work->atoms, work->atom_count, from, 0,
                                 work->match_data, work->context);
        const uint64_t spent = ptk_cycles() - before;
        const uint64_t charge = spent < CALL_CHARGE_MAX ? spent : CALL_CHARGE_MAX;
        if (charge > work->cycles_left) {
            return PTK_REGEX_ANSWER_TOO_HARD;
        }
        work->cycles_left -= charge;
        if (rc >= 0) {
            const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(work->match_data);
            *begin = vector[0];
            *end = vector[1];
            return PTK_REGEX_ANSWER_MATCH;
        }
        if (rc != PCRE2_ERROR_NOMATCH) {
            return PTK_REGEX_ANSWER_TOO_HARD; /* out of steps or of stack */
        }
        ptk_pause_point();
        from += work->places;
        if (from > work->atom_count) {
            return PTK_REGEX_ANSWER_END;
        }
        if (spent < CALL_CYCLES_MAX) {
            work->places = ptk_min_size(PLACES_MAX, 2 * work->places);
        } else {
            work->places = ptk_max_size(PLACES_MIN, work->places / 2);
        }
    }
}

enum ptk_regex_answer ptk_regex_next(struct ptk_regex_work *work, struct ptk_span *match)
{
    while (work->from <= work->atom_count) {
        size_t begin;
        size_t end;
        enum ptk_regex_answer answer = search(work, work->from, &begin, &end);
        if (answer != PTK_REGEX_ANSWER_MATCH) {
            return answer;
        }
        if (begin == end && end == work->last_end) {
            work->from++;
            continue;
        }
        work->from = end;
        work->last_end = end;
        match->begin = byte_of(work, begin);
        match->end = byte_of(work, end);
        return PTK_REGEX_ANSWER_MATCH;
    }
    return PTK_REGEX_ANSWER_END;
}
