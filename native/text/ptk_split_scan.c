/*
 * The scalar scanners: one function per pattern family that says where the piece at a position
 * ends.
 *
 * Each follows its pattern's alternatives in their order, quoted above it. None looks behind the
 * position it starts from, so a walk may stop after any piece and go on from there. All cost linear
 * time: what one piece looks at beyond its own end, only the next piece or two look at again.
 */
#include "text/ptk_split_scan.h"

#include "base/ptk_pause.h"

#define LETTER PTK_SPLIT_LETTER
#define UPPER  PTK_SPLIT_UPPER
#define LOWER  PTK_SPLIT_LOWER
#define MARK   PTK_SPLIT_MARK
#define NUMBER PTK_SPLIT_NUMBER
#define SPACE  PTK_SPLIT_SPACE
#define CUT    PTK_SPLIT_CUT
#define SYMBOL PTK_SPLIT_SYMBOL
#define END    0x100u /* no character: the text ends here */

#define INLINE static inline __attribute__((always_inline))

struct walk {
    const struct ptk_split_classes *classes;
    const uint8_t *text;
    size_t len;
};

/* A character: where it ends and its class bits. */
struct glyph {
    size_t end;
    unsigned bits;
};

INLINE struct glyph glyph_at(const struct walk *w, size_t at)
{
    if (at >= w->len) {
        return (struct glyph){at, END};
    }
    uint8_t byte = w->text[at];
    if (PTK_LIKELY(byte < 0x80)) {
        return (struct glyph){at + 1, w->classes->ascii[byte]};
    }
    uint32_t width;
    uint32_t code_point = ptk_utf8_decode(w->text + at, &width);
    uint8_t bits = w->classes->by_class[ptk_unicode_class(w->classes->unicode, code_point)];
    return (struct glyph){at + width, bits};
}

/* End of the run of characters from `at` that have a bit of `any`. */
INLINE size_t run_of(const struct walk *w, size_t at, unsigned any)
{
    size_t paused_at = at;
    for (;;) {
        ptk_pause_pos(&paused_at, at);
        const size_t stop = ptk_min_size(w->len, at + PTK_PAUSE_LEN);
        while (at < stop && w->text[at] < 0x80) {
            if (!(w->classes->ascii[w->text[at]] & any)) {
                return at;
            }
            at++;
        }
        struct glyph next = glyph_at(w, at);
        if (!(next.bits & any)) {
            return at;
        }
        at = next.end;
    }
}

/* End of the run of characters from `at` that have no bit of `none`. */
INLINE size_t run_without(const struct walk *w, size_t at, unsigned none)
{
    size_t paused_at = at;
    for (;;) {
        ptk_pause_pos(&paused_at, at);
        const size_t stop = ptk_min_size(w->len, at + PTK_PAUSE_LEN);
        while (at < stop && w->text[at] < 0x80) {
            if (w->classes->ascii[w->text[at]] & none) {
                return at;
            }
            at++;
        }
        struct glyph next = glyph_at(w, at);
        if (next.bits & (none | END)) {
            return at;
        }
        at = next.end;
    }
}

INLINE bool is_line_end(uint8_t byte)
{
    return byte == '\n' || byte == '\r';
}

/* Where the character that ends at `end` begins. */
INLINE size_t glyph_before(const struct walk *w, size_t end)
{
    do {
        end--;
    } while ((w->text[end] & 0xC0) == 0x80);
    return end;
}

/*
 * \s+(?!\S)|\s+ at white space: the run but for its last character, unless nothing follows it; a
 * character of `stop` counts as nothing.
 */
INLINE size_t spaces(const struct walk *w, size_t at, unsigned stop)
{
    size_t end = run_of(w, at, SPACE);
    if (glyph_at(w, end).bits & (END | stop)) {
        return end;
    }
    size_t last = glyph_before(w, end);
    return last > at ? last : end;
}

/*
 * \s*[\r\n]+|\s+(?!\S)|\s+ at white space: up to the last line end of the run if it has one. With
 * `to_end`, \s++$ goes before: a run that ends the text is one piece.
 */
INLINE size_t spaces_and_lines(const struct walk *w, size_t at, bool to_end)
{
    size_t end = run_of(w, at, SPACE);
    bool stops = glyph_at(w, end).bits & END;
    if (to_end && stops) {
        return end;
    }
    size_t paused_at = end;
    for (size_t i = end; i > at; i--) {
        ptk_pause_pos(&paused_at, i);
        if (is_line_end(w->text[i - 1])) {
            return i;
        }
    }
    if (stops) {
        return end;
    }
    size_t last = glyph_before(w, end);
    return last > at ? last : end;
}

/* \p{N}{1,max} at a number. */
INLINE size_t numbers(const struct walk *w, size_t at, unsigned max)
{
    for (unsigned i = 0; i < max; i++) {
        struct glyph next = glyph_at(w, at);
        if (!(next.bits & NUMBER)) {
            break;
        }
        at = next.end;
    }
    return at;
}

/* [\r\n]* or, with `slashes`, [\r\n/]* */
INLINE size_t line_ends(const struct walk *w, size_t at, bool slashes)
{
    size_t paused_at = at;
    while (at < w->len && (is_line_end(w->text[at]) || (slashes && w->text[at] == '/'))) {
        at++;
        ptk_pause_pos(&paused_at, at);
    }
    return at;
}

/*
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * With `digits`, characters with CUT are pieces of their own and end what is before them as the end
 * of the text would.
 */
INLINE size_t gpt2_end(const struct walk *w, size_t at, bool digits)
{
    const unsigned cut = digits ? CUT : 0;
    struct glyph here = glyph_at(w, at);
    if (here.bits & cut) {
        return here.end;
    }
    size_t end = ptk_split_contraction(w->text, w->len, at);
    if (end != 0) {
        return end;
    }
    size_t body = at;
    if (w->text[at] == ' ') {
        struct glyph next = glyph_at(w, at + 1);
        if (!(next.bits & (SPACE | END | cut))) {
            body = at + 1;
            here = next;
        }
    }
    if (here.bits & SPACE) {
        return spaces(w, at, cut);
    }
    if (here.bits & LETTER) {
        return run_of(w, body, LETTER);
    }
    if (here.bits & NUMBER) {
        return run_of(w, body, NUMBER);
    }
    return run_without(w, body, LETTER | NUMBER | SPACE | cut);
}

/*
 * (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+
 */
INLINE size_t cl100k_end(const struct walk *w, size_t at, unsigned numbers_max, bool spaces_to_end)
{
    size_t end = ptk_split_contraction_any_case(w->text, w->len, at, w->classes->long_s);
    if (end != 0) {
        return end;
    }
    struct glyph here = glyph_at(w, at);
    if (here.bits & LETTER) {
        return run_of(w, here.end, LETTER);
    }
    if (here.bits & NUMBER) {
        return numbers(w, at, numbers_max);
    }
    struct glyph next = glyph_at(w, here.end);
    if (next.bits & LETTER && !is_line_end(w->text[at])) {
        return run_of(w, next.end, LETTER);
    }
    bool spaced = w->text[at] == ' ' && !(next.bits & (LETTER | NUMBER | SPACE | END));
    if (!(here.bits & SPACE) || spaced) {
        end = run_without(w, here.end, LETTER | NUMBER | SPACE);
        return line_ends(w, end, false);
    }
    return spaces_and_lines(w, at, spaces_to_end);
}

/* [UPPER]*[LOWER]+ at `at`: its end, or 0. */
INLINE size_t word_lower(const struct walk *w, size_t at)
{
    size_t last_lower = 0; /* end of the last character so far that is in both sets */
    size_t paused_at = at;
    for (;;) {
        ptk_pause_pos(&paused_at, at);
        struct glyph next = glyph_at(w, at);
        if (!(next.bits & UPPER)) {
            return next.bits & LOWER ? run_of(w, next.end, LOWER) : last_lower;
        }
        if (next.bits & LOWER) {
            last_lower = next.end;
        }
        at = next.end;
    }
}

/* [UPPER]+[LOWER]* at `at`, where word_lower() found nothing: its end, or 0. */
INLINE size_t word_upper(const struct walk *w, size_t at)
{
    size_t end = run_of(w, at, UPPER);
    return end > at ? end : 0;
}

struct cased_rules {
    bool contractions;    /* (?i:'s|'t|'re|'ve|'m|'ll|'d)? after a word */
    bool han;             /* CUT: Han, whose runs go before everything else */
    bool slashes;         /* [\r\n/]* instead of [\r\n]* */
    unsigned numbers_max; /* \p{N}{1,numbers_max} */
};

/*
 * [^\r\n\p{L}\p{N}]?[UPPER]*[LOWER]+(contraction)?|[^\r\n\p{L}\p{N}]?[UPPER]+[LOWER]*(contraction)?
 * |\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *
 * A mark is in [^\r\n\p{L}\p{N}], in UPPER and in LOWER.
 */
INLINE size_t cased_end(const struct walk *w, size_t at, struct cased_rules rules)
{
    struct glyph here = glyph_at(w, at);
    if (rules.han && here.bits & CUT) {
        return run_of(w, here.end, CUT);
    }
    if (here.bits & NUMBER) {
        return numbers(w, at, rules.numbers_max);
    }
    size_t word = 0;
    bool free = !(here.bits & LETTER) && !is_line_end(w->text[at]);
    if (free) {
        word = word_lower(w, here.end);
    }
    if (word == 0 && here.bits & (UPPER | LOWER)) {
        word = word_lower(w, at);
    }
    if (word == 0 && free) {
        word = word_upper(w, here.end);
    }
    if (word == 0 && here.bits & UPPER) {
        word = word_upper(w, at);
    }
    if (word != 0) {
        size_t end = rules.contractions && word < w->len
                         ? ptk_split_contraction_any_case(w->text, w->len, word, w->classes->long_s)
                         : 0;
        return end != 0 ? end : word;
    }
    struct glyph next = glyph_at(w, here.end);
    bool spaced = w->text[at] == ' ' && !(next.bits & (LETTER | NUMBER | SPACE | END));
    if (!(here.bits & SPACE) || spaced) {
        size_t end = run_without(w, here.end, LETTER | NUMBER | SPACE);
        return line_ends(w, end, rules.slashes);
    }
    return spaces_and_lines(w, at, false);
}

/*
 * What one walk of DeepSeek's third pattern sees. Its first two splits take numbers and CJK runs
 * out of the text; the third one then cuts what is left, and the CJK runs once more.
 */
enum deepseek_view {
    VIEW_ALL,  /* the third pattern alone */
    VIEW_REST, /* numbers and CJK characters are CUT */
    VIEW_CJK,  /* all but CJK characters are CUT */
};

/* As glyph_at(); a character that the view leaves out is CUT and nothing else. */
INLINE struct glyph deepseek_glyph(const struct walk *w, size_t at, enum deepseek_view view)
{
    struct glyph here = glyph_at(w, at);
    if (view == VIEW_ALL || here.bits & END) {
        return here;
    }
    bool cjk = false;
    if (here.end - at == 3) {
        uint32_t width;
        cjk = ptk_split_is_cjk(ptk_utf8_decode(w->text + at, &width));
    }
    if (view == VIEW_CJK ? !cjk : cjk || here.bits & NUMBER) {
        here.bits = CUT;
    }
    return here;
}

INLINE size_t deepseek_run(const struct walk *w, size_t at, unsigned any, enum deepseek_view view)
{
    size_t paused_at = at;
    for (;;) {
        ptk_pause_pos(&paused_at, at);
        struct glyph next = deepseek_glyph(w, at, view);
        if (!(next.bits & any)) {
            return at;
        }
        at = next.end;
    }
}

/*
 * [!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+
 * |\s+(?!\S)|\s+
 *
 * The end of the match at `at`, or 0. CUT ends the text and does not stand at `at`.
 */
INLINE size_t deepseek_end(const struct walk *w, size_t at, enum deepseek_view view)
{
    struct glyph here = deepseek_glyph(w, at, view);
    if (here.end - at == 1 && here.bits & SYMBOL) {
        size_t end = here.end;
        size_t paused_at = end;
        while (end < w->len && (uint8_t)((w->text[end] | 0x20) - 'a') < 26) {
            end++;
            ptk_pause_pos(&paused_at, end);
        }
        if (end > here.end) {
            return end;
        }
    }
    if (here.bits & LETTER) {
        return deepseek_run(w, here.end, LETTER | MARK, view);
    }
    struct glyph next = deepseek_glyph(w, here.end, view);
    if (!(here.bits & SYMBOL) && !is_line_end(w->text[at]) && next.bits & (LETTER | MARK)) {
        return deepseek_run(w, next.end, LETTER | MARK, view);
    }
    if (here.bits & MARK) {
        return here.end;
    }
    if (here.bits & SYMBOL || (w->text[at] == ' ' && next.bits & SYMBOL)) {
        size_t end = deepseek_run(w, here.end, SYMBOL, view);
        return view == VIEW_CJK ? end : line_ends(w, end, false);
    }
    if (!(here.bits & SPACE)) {
        return 0;
    }
    size_t end = run_of(w, at, SPACE);
    size_t paused_at = end;
    for (size_t i = end; i > at; i--) {
        ptk_pause_pos(&paused_at, i);
        if (is_line_end(w->text[i - 1])) {
            return i;
        }
    }
    if (deepseek_glyph(w, end, view).bits & (END | CUT)) {
        return end;
    }
    size_t last = glyph_before(w, end);
    return last > at ? last : end;
}

/* The piece at `at`, where no CUT stands: a match, or all that nothing matches up to the next one.
 */
INLINE size_t deepseek_piece(const struct walk *w, size_t at, enum deepseek_view view)
{
    size_t end = deepseek_end(w, at, view);
    size_t paused_at = at;
    while (end == 0) {
        ptk_pause_pos(&paused_at, at);
        at = deepseek_glyph(w, at, view).end;
        struct glyph next = deepseek_glyph(w, at, view);
        if (next.bits & (END | CUT) || deepseek_end(w, at, view) != 0) {
            end = at;
        }
    }
    return end;
}

static size_t scan_gpt2(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                        size_t *pos, uint32_t *ends, size_t cap)
{
    const struct walk w = {classes, text, len};
    size_t at = *pos;
    size_t count = 0;
    while (count < cap && at < len) {
        at = gpt2_end(&w, at, false);
        ends[count++] = (uint32_t)at;
    }
    *pos = at;
    return count;
}

static size_t scan_gpt2_digits(const struct ptk_split_classes *classes, const uint8_t *text,
                               size_t len, size_t *pos, uint32_t *ends, size_t cap)
{
    const struct walk w = {classes, text, len};
    size_t at = *pos;
    size_t count = 0;
    while (count < cap && at < len) {
        at = gpt2_end(&w, at, true);
        ends[count++] = (uint32_t)at;
    }
    *pos = at;
    return count;
}

INLINE size_t scan_cl100k_family(const struct ptk_split_classes *classes, const uint8_t *text,
                                 size_t len, size_t *pos, uint32_t *ends, size_t cap,
                                 unsigned numbers_max, bool spaces_to_end)
{
    const struct walk w = {classes, text, len};
    size_t at = *pos;
    size_t count = 0;
    while (count < cap && at < len) {
        at = cl100k_end(&w, at, numbers_max, spaces_to_end);
        ends[count++] = (uint32_t)at;
    }
    *pos = at;
    return count;
}

static size_t scan_cl100k(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                          size_t *pos, uint32_t *ends, size_t cap)
{
    return scan_cl100k_family(classes, text, len, pos, ends, cap, 3, true);
}

static size_t scan_llama3(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                          size_t *pos, uint32_t *ends, size_t cap)
{
    return scan_cl100k_family(classes, text, len, pos, ends, cap, 3, false);
}

static size_t scan_qwen2(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                         size_t *pos, uint32_t *ends, size_t cap)
{
    return scan_cl100k_family(classes, text, len, pos, ends, cap, 1, false);
}

INLINE size_t scan_cased(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                         size_t *pos, uint32_t *ends, size_t cap, struct cased_rules rules)
{
    const struct walk w = {classes, text, len};
    size_t at = *pos;
    size_t count = 0;
    while (count < cap && at < len) {
        at = cased_end(&w, at, rules);
        ends[count++] = (uint32_t)at;
    }
    *pos = at;
    return count;
}

static size_t scan_o200k(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                         size_t *pos, uint32_t *ends, size_t cap)
{
    const struct cased_rules rules = {.contractions = true, .slashes = true, .numbers_max = 3};
    return scan_cased(classes, text, len, pos, ends, cap, rules);
}

static size_t scan_tekken(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                          size_t *pos, uint32_t *ends, size_t cap)
{
    const struct cased_rules rules = {.slashes = true, .numbers_max = 1};
    return scan_cased(classes, text, len, pos, ends, cap, rules);
}

static size_t scan_kimi(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                        size_t *pos, uint32_t *ends, size_t cap)
{
    const struct cased_rules rules = {.contractions = true, .han = true, .numbers_max = 3};
    return scan_cased(classes, text, len, pos, ends, cap, rules);
}

static size_t scan_deepseek(const struct ptk_split_classes *classes, const uint8_t *text,
                            size_t len, size_t *pos, uint32_t *ends, size_t cap)
{
    const struct walk w = {classes, text, len};
    size_t at = *pos;
    size_t count = 0;
    uint32_t turns = 0;
    while (count < cap && at < len) {
        ptk_pause_turn(&turns);
        if (glyph_at(&w, at).bits & NUMBER) {
            at = numbers(&w, at, 3);
        } else if (deepseek_glyph(&w, at, VIEW_REST).bits & CUT) {
            at = deepseek_piece(&w, at, VIEW_CJK);
        } else {
            at = deepseek_piece(&w, at, VIEW_REST);
        }
        ends[count++] = (uint32_t)at;
    }
    *pos = at;
    return count;
}

static bool find_deepseek(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                          size_t pos, struct ptk_span *match)
{
    const struct walk w = {classes, text, len};
    size_t paused_at = pos;
    while (pos < len) {
        ptk_pause_pos(&paused_at, pos);
        size_t end = deepseek_end(&w, pos, VIEW_ALL);
        if (end != 0) {
            *match = (struct ptk_span){(uint32_t)pos, (uint32_t)end};
            return true;
        }
        pos = glyph_at(&w, pos).end;
    }
    return false;
}

static bool find_numbers(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                         size_t pos, struct ptk_span *match)
{
    const struct walk w = {classes, text, len};
    size_t begin = run_without(&w, pos, NUMBER);
    *match = (struct ptk_span){(uint32_t)begin, (uint32_t)numbers(&w, begin, 3)};
    return begin < len;
}

static bool find_deepseek_cjk(const struct ptk_split_classes *classes, const uint8_t *text,
                              size_t len, size_t pos, struct ptk_span *match)
{
    (void)classes;
    bool inside = false;
    size_t paused_at = pos;
    while (pos < len) {
        ptk_pause_pos(&paused_at, pos);
        uint32_t width;
        bool cjk = ptk_split_is_cjk(ptk_utf8_decode(text + pos, &width));
        if (cjk && !inside) {
            match->begin = (uint32_t)pos;
        }
        if (inside && !cjk) {
            break;
        }
        inside = cjk;
        pos += width;
    }
    match->end = (uint32_t)pos;
    return inside;
}

static const struct ptk_split_matcher matchers[PTK_SPLIT_SCANNER_COUNT] = {
    [PTK_SPLIT_SCANNER_GPT2] = {.scan = scan_gpt2},
    [PTK_SPLIT_SCANNER_GPT2_DIGITS] = {.scan = scan_gpt2_digits,
                                       .cut_mask = PTK_UNICODE_NUMERIC,
                                       .cut_alone = true},
    [PTK_SPLIT_SCANNER_CL100K] = {.scan = scan_cl100k},
    [PTK_SPLIT_SCANNER_LLAMA3] = {.scan = scan_llama3},
    [PTK_SPLIT_SCANNER_QWEN2] = {.scan = scan_qwen2},
    [PTK_SPLIT_SCANNER_O200K] = {.scan = scan_o200k},
    [PTK_SPLIT_SCANNER_TEKKEN] = {.scan = scan_tekken},
    [PTK_SPLIT_SCANNER_KIMI] = {.scan = scan_kimi, .cut_mask = PTK_UNICODE_HAN},
    [PTK_SPLIT_SCANNER_DEEPSEEK_DIGITS] = {.find = find_numbers},
    [PTK_SPLIT_SCANNER_DEEPSEEK_CJK] = {.find = find_deepseek_cjk},
    [PTK_SPLIT_SCANNER_DEEPSEEK_V3] = {.find = find_deepseek},
    [PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL] = {.scan = scan_deepseek},
};

const struct ptk_split_matcher *ptk_split_matcher_get(unsigned number)
{
    if (number >= PTK_SPLIT_SCANNER_COUNT) {
        return NULL;
    }
    const struct ptk_split_matcher *matcher = &matchers[number];
    return matcher->scan != NULL || matcher->find != NULL ? matcher : NULL;
}

static uint8_t bits_of(uint64_t mask, const struct ptk_split_matcher *matcher)
{
    if (matcher->cut_alone && mask & matcher->cut_mask) {
        return CUT;
    }
    unsigned bits = 0;
    const uint64_t both = PTK_UNICODE_LM | PTK_UNICODE_LO | PTK_UNICODE_M;
    bits |= mask & PTK_UNICODE_L ? LETTER : 0;
    bits |= mask & (PTK_UNICODE_LU | PTK_UNICODE_LT | both) ? UPPER : 0;
    bits |= mask & (PTK_UNICODE_LL | both) ? LOWER : 0;
    bits |= mask & PTK_UNICODE_M ? MARK : 0;
    bits |= mask & PTK_UNICODE_N ? NUMBER : 0;
    bits |= mask & PTK_UNICODE_SPACE ? SPACE : 0;
    bits |= mask & (PTK_UNICODE_P | PTK_UNICODE_S) ? SYMBOL : 0;
    if (mask & matcher->cut_mask) {
        bits |= CUT;
        bits &= ~(UPPER | LOWER); /* Kimi's cased words are without Han. */
    }
    return (uint8_t)bits;
}

/* Class bits of a block: the same properties, arranged for the rules of this scanner. */
static uint8_t block_bits_of(uint64_t mask, unsigned number)
{
    const bool is_cased = number == PTK_SPLIT_SCANNER_O200K || number == PTK_SPLIT_SCANNER_TEKKEN ||
                          number == PTK_SPLIT_SCANNER_KIMI;
    const bool is_deepseek = number == PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL;
    unsigned bits = 0;
    bits |= mask & PTK_UNICODE_L ? PTK_SPLIT_BLOCK_LETTER : 0;
    bits |= mask & PTK_UNICODE_N ? PTK_SPLIT_BLOCK_NUMBER : 0;
    bits |= mask & PTK_UNICODE_SPACE ? PTK_SPLIT_BLOCK_SPACE : 0;
    if (is_cased || is_deepseek) {
        bits |= mask & PTK_UNICODE_M ? PTK_SPLIT_BLOCK_LETTER : 0;
    }
    if (is_cased) { /* Letters that are neither are both. */
        bits |= mask & (PTK_UNICODE_LU | PTK_UNICODE_LT) ? PTK_SPLIT_BLOCK_UPPER : 0;
        bits |= mask & PTK_UNICODE_LL ? PTK_SPLIT_BLOCK_LOWER : 0;
        bits |= mask & PTK_UNICODE_M ? PTK_SPLIT_BLOCK_SPECIAL : 0;
    }
    if (number == PTK_SPLIT_SCANNER_KIMI && mask & PTK_UNICODE_HAN) {
        bits |= PTK_SPLIT_BLOCK_SPECIAL;
    }
    if (is_deepseek && bits == 0 && !(mask & (PTK_UNICODE_P | PTK_UNICODE_S))) {
        bits = PTK_SPLIT_BLOCK_SPECIAL;
    }
    if (number == PTK_SPLIT_SCANNER_GPT2_DIGITS) {
        const bool is_cut = mask & PTK_UNICODE_NUMERIC;
        if (is_cut) {
            bits = PTK_SPLIT_BLOCK_NUMBER;
        } else if (bits & PTK_SPLIT_BLOCK_NUMBER) {
            bits = PTK_SPLIT_BLOCK_SPECIAL;
        }
    }
    return (uint8_t)bits;
}

/* Class bits of a block's character below U+10000. */
static uint8_t block_bits_at(const struct ptk_split_classes *classes, unsigned number,
                             uint32_t code_point)
{
    unsigned bits = classes->block_by_class[ptk_unicode_class(classes->unicode, code_point)];
    const bool slashes = number == PTK_SPLIT_SCANNER_O200K || number == PTK_SPLIT_SCANNER_TEKKEN;
    if (code_point == '\r' || code_point == '\n') {
        bits |= PTK_SPLIT_BLOCK_LINE;
    } else if (code_point == '/' && slashes) {
        bits |= PTK_SPLIT_BLOCK_SLASH;
    } else if (number == PTK_SPLIT_SCANNER_DEEPSEEK_V3_ALL && ptk_split_is_cjk(code_point)) {
        bits = bits & PTK_SPLIT_BLOCK_LETTER ? PTK_SPLIT_BLOCK_UPPER : PTK_SPLIT_BLOCK_SPECIAL;
    }
    return (uint8_t)bits;
}

static void init_blocks(struct ptk_split_classes *classes, unsigned number)
{
    const struct ptk_unicode *unicode = classes->unicode;
    memset(classes->block_by_class, 0, sizeof classes->block_by_class);
    for (uint32_t i = 0; i < unicode->class_count; i++) {
        classes->block_by_class[i] = block_bits_of(unicode->class_masks[i], number);
    }
    for (uint32_t page = 0; page < PTK_SPLIT_PAGES; page++) {
        uint8_t *bits = classes->block_pages[page];
        bool is_mixed = false;
        for (uint32_t i = 0; i < PTK_SPLIT_PAGE_LEN; i++) {
            bits[i] = block_bits_at(classes, number, page * PTK_SPLIT_PAGE_LEN + i);
            is_mixed = is_mixed || bits[i] != bits[0];
        }
        classes->block_page_bits[page] = is_mixed ? PTK_SPLIT_PAGE_MIXED : bits[0];
    }
    memset(classes->block_lead_bits, PTK_SPLIT_PAGE_MIXED, sizeof classes->block_lead_bits);
    memcpy(classes->block_lead_bits, classes->block_page_bits, 32); /* C0-DF: one page each */
    for (uint32_t lead = 1; lead < 16; lead++) {                    /* E1-EF: 64 pages each */
        const uint8_t *pages = classes->block_page_bits + lead * 64;
        uint32_t same = 1;
        while (same < 64 && pages[same] == pages[0]) {
            same++;
        }
        classes->block_lead_bits[32 + lead] = same == 64 ? pages[0] : PTK_SPLIT_PAGE_MIXED;
    }
}

void ptk_split_classes_init(struct ptk_split_classes *classes, const struct ptk_unicode *unicode,
                            unsigned number)
{
    const struct ptk_split_matcher *matcher = ptk_split_matcher_get(number);
    classes->unicode = unicode;
    classes->long_s = unicode->long_s;
    memset(classes->by_class, 0, sizeof classes->by_class);
    for (uint32_t i = 0; i < unicode->class_count; i++) {
        classes->by_class[i] = bits_of(unicode->class_masks[i], matcher);
    }
    for (uint32_t i = 0; i < sizeof classes->ascii; i++) {
        classes->ascii[i] = classes->by_class[ptk_unicode_class(unicode, i)];
    }
    init_blocks(classes, number);
}

ptk_split_scan_fn *ptk_split_scan_best(const struct ptk_split_matcher *matcher, unsigned number)
{
    ptk_split_scan_fn *scan = ptk_split_scan_avx512(number);
    if (scan == NULL) {
        scan = ptk_split_scan_avx2(number);
    }
    return scan != NULL ? scan : matcher->scan;
}
