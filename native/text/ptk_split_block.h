/*
 * Piece boundaries in a block of 64 bytes, by shifts and masks: private to the parallel scanners.
 *
 * A block begins where a piece begins, or inside a run of letters at a place from which the rules
 * go on as from its first letter: nothing before it matters, no state is carried from block to
 * block. The rules below yield the boundaries inside it. The last few bytes, where a rule would
 * have to look beyond the block, are left to the next one, which begins at the last boundary that
 * is certain. What the rules do not cover, and pieces longer than a block, go to the scalar
 * scanner: it defines the result, these are its fast path.
 *
 * Bit i of a mask is byte i of the block. All bytes of a character have its class, so that runs and
 * their first bytes are the same in any script; only where single characters count, `cont` matters.
 * Adding a mask to another one lets a carry run through a run of ones: x + first bits of its runs
 * leaves the bit behind each run.
 */
#ifndef PTK_SPLIT_BLOCK_H
#define PTK_SPLIT_BLOCK_H

#include "base/ptk_pause.h"
#include "text/ptk_split_scan.h"

#define PTK_SPLIT_BLOCK_LEN 64u

/* Each scanner is one function: what its rule does not look at is not worked out. */
#define BLOCK_INLINE static inline __attribute__((always_inline))

/*
 * A boundary is certain when this many bytes from it on are in the block: the longest contraction,
 * or a white-space character and one byte of what follows.
 */
#define PTK_SPLIT_BLOCK_LOOK 4u

/*
 * Bytes that the scalar scanner takes over where the rules do not apply: what they do not cover
 * seldom comes alone.
 */
#define PTK_SPLIT_BLOCK_WALK 192u

struct ptk_split_block {
    const uint8_t *text; /* the block's first byte */
    bool long_s;         /* of the classes */
    unsigned len;        /* 1 to 64 bytes, whole characters */
    bool is_last;        /* the text ends with the block */
    uint64_t letter;
    uint64_t number;
    uint64_t space;
    uint64_t line;
    uint64_t upper;
    uint64_t lower;
    uint64_t slash;
    uint64_t special;
    uint64_t blank; /* U+0020 */
    uint64_t quote; /* U+0027 */
    uint64_t wide;  /* not ASCII */
    uint64_t cont;  /* not the first byte of its character */
};

static inline uint64_t block_below(unsigned end)
{
    return end >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << end) - 1;
}

/* First bytes of the runs in `x`. */
static inline uint64_t block_first(uint64_t x)
{
    return x & ~(x << 1);
}

/* Moves bits from any byte of a character of up to three bytes to its first one. */
static inline uint64_t block_to_lead(uint64_t x, uint64_t cont)
{
    if (cont != 0) {
        x = (x & ~cont) | (x & cont) >> 1;
        x = (x & ~cont) | (x & cont) >> 1;
    }
    return x;
}

/* Spreads bits from the first byte of a character to all of them. */
static inline uint64_t block_to_all(uint64_t x, uint64_t cont)
{
    if (cont != 0) {
        x |= x << 1 & cont;
        x |= x << 1 & cont;
        x |= x << 1 & cont;
    }
    return x;
}

/* The bits of `runs` from each of `marks` (in `runs`, at most one per run) to the end of its run.
 */
static inline uint64_t block_fill(uint64_t runs, uint64_t marks)
{
    return runs & ~(runs + marks);
}

/* How far the result of a rule goes. */
struct block_limits {
    uint64_t certain; /* where a boundary would be known; 0: not a block for the rules */
    uint64_t resume;  /* where the next block may begin if it does not begin with a piece */
};

/*
 * Bytes of `x` behind two others of `x`: inside of a run, and not inside of a contraction, which
 * begins with a quote.
 */
static inline uint64_t block_inside(uint64_t x)
{
    return x & x << 1 & x << 2;
}

/* Which boundaries are certain by their distance from the end of the block. */
static inline uint64_t block_certain(const struct ptk_split_block *b)
{
    if (b->is_last) {
        return ~UINT64_C(0);
    }
    return b->len <= PTK_SPLIT_BLOCK_LOOK ? 0 : block_below(b->len - PTK_SPLIT_BLOCK_LOOK + 1);
}

/* Quotes that a rule may look at: what follows them is in the block. */
static inline uint64_t block_quotes(const struct ptk_split_block *b)
{
    return b->quote & block_certain(b);
}

/* Bits up to the first byte of the run of `x` that reaches the end of the block, that one included.
 */
static inline uint64_t block_up_to_last_run(const struct ptk_split_block *b, uint64_t x)
{
    const uint64_t others = ~x & block_below(b->len);
    if (others == 0) {
        return 1;
    }
    const unsigned begin = 64u - (unsigned)__builtin_clzll(others);
    return block_below(begin + 1);
}

/* \p{N}{1,max} for max 1 or 3: where pieces begin inside of numbers. */
BLOCK_INLINE uint64_t block_numbers(const struct ptk_split_block *b, bool by_three)
{
    const uint64_t number = b->number;
    if (!by_three) {
        return number & ~b->cont;
    }
    uint64_t starts = block_first(number);
    if (number & b->wide) {
        unsigned count = 0;
        for (uint64_t rest = number & ~b->cont; rest != 0; rest &= rest - 1) {
            const uint64_t bit = rest & (~rest + 1);
            count = bit & starts ? 0 : count + 1;
            if (count == 3) {
                starts |= bit;
                count = 0;
            }
        }
        return starts;
    }
    const uint64_t inner = number & number << 1 & number << 2;
    for (uint64_t next = starts << 3 & inner; next != 0; next = next << 3 & inner) {
        starts |= next;
    }
    return starts;
}

/*
 * GPT-2. A space goes with what follows it; of other white space, the last character stands alone.
 * With `digits`, numbers are pieces of one character and end what is before them as the end of the
 * text would.
 */
BLOCK_INLINE uint64_t block_gpt2(const struct ptk_split_block *b, bool digits,
                                  struct block_limits *limits)
{
    limits->certain = block_certain(b);
    limits->resume = block_inside(b->letter);
    const uint64_t all = block_below(b->len);
    const uint64_t other = all & ~(b->letter | b->number | b->space);
    const uint64_t attached = b->blank << 1;
    const uint64_t solid = digits ? b->letter | other : all & ~b->space;
    if (digits && b->special != 0) {
        limits->certain = 0;
    }
    uint64_t starts = block_first(b->letter) | block_first(other);
    starts |= digits ? 0 : block_first(b->number);
    starts &= ~attached;
    starts |= digits ? b->number & ~b->cont : 0;
    starts |= block_first(b->space) | block_to_lead(b->space & solid >> 1, b->cont);

    uint64_t quotes = block_quotes(b) & block_first(other) & ~attached;
    for (; quotes != 0; quotes &= quotes - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(quotes);
        const size_t end = ptk_split_contraction(b->text, b->len, at);
        if (end != 0) {
            starts &= ~(UINT64_C(2) << at);
            starts |= end < 64 ? UINT64_C(1) << end : 0;
        }
    }
    return starts;
}

/* White space that the patterns since cl100k cut alike. */
struct block_spaces {
    uint64_t starts;
    uint64_t absorbed; /* line ends (and slashes) that belong to the symbols before them */
    uint64_t prefix;   /* may go before letters: white space but line ends */
};

/*
 * [\r\n]* behind symbols, \s*[\r\n]+, \s+(?!\S) and \s+. `solid`: what (?!\S) sees. With `to_end`,
 * white space that ends the text is one piece.
 */
BLOCK_INLINE struct block_spaces block_spaces(const struct ptk_split_block *b, uint64_t other,
                                               uint64_t solid, bool to_end,
                                               struct block_limits *limits)
{
    struct block_spaces result;
    /* From the first line end behind a symbol on, to the end of the run. */
    const uint64_t tail = b->line | b->slash;
    const uint64_t marks = b->line & other << 1;
    const uint64_t before = tail & ~marks;
    const uint64_t kept = block_fill(before, block_first(tail) & before);
    result.absorbed = marks == 0 ? 0 : tail & ~kept;
    const uint64_t space = b->space & ~result.absorbed;
    const uint64_t line = b->line & ~result.absorbed;
    result.prefix = space & ~line;
    result.starts = block_first(space) | (result.absorbed << 1 & ~result.absorbed);

    /* Behind the last line end of a run. */
    uint64_t behind = result.prefix & line << 1;
    if (block_fill(result.prefix, behind) << 1 & line) {
        for (uint64_t rest = behind; rest != 0; rest &= rest - 1) {
            const unsigned at = (unsigned)__builtin_ctzll(rest);
            const unsigned run =
                (unsigned)__builtin_ctzll(~(result.prefix >> at) | UINT64_C(1) << 63);
            if (at + run < 64 && line >> (at + run) & 1) {
                behind &= ~(UINT64_C(1) << at);
            }
        }
    }
    result.starts |= behind;
    result.starts |= block_to_lead(result.prefix & solid >> 1, b->cont);

    if (b->space >> (b->len - 1) & 1) {
        const uint64_t head = block_up_to_last_run(b, space);
        if (!b->is_last) {
            limits->certain &= block_up_to_last_run(b, b->space);
        } else if (to_end) {
            result.starts &= head;
        }
    }
    return result;
}

/*
 * cl100k, Llama 3, Qwen 2: letters take one character before them that is no letter, number or line
 * end, unless symbols or a space have taken it.
 */
BLOCK_INLINE uint64_t block_cl100k(const struct ptk_split_block *b, bool by_three, bool to_end,
                                    struct block_limits *limits)
{
    limits->certain = block_certain(b);
    limits->resume = block_inside(b->letter);
    const uint64_t all = block_below(b->len);
    const uint64_t other = all & ~(b->letter | b->number | b->space);
    const uint64_t attached = b->blank << 1;
    const struct block_spaces spaces = block_spaces(b, other, all & ~b->space, to_end, limits);
    const uint64_t symbols = block_first(other) & ~attached;
    const uint64_t joined = block_to_all(symbols, b->cont) << 1 | spaces.prefix << 1;
    uint64_t starts = spaces.starts | symbols | block_numbers(b, by_three);
    starts |= block_first(b->letter) & ~joined;

    for (uint64_t quotes = block_quotes(b) & symbols; quotes != 0; quotes &= quotes - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(quotes);
        const size_t end = ptk_split_contraction_any_case(b->text, b->len, at, b->long_s);
        starts |= end != 0 && end < 64 ? UINT64_C(1) << end : 0;
    }
    return starts;
}

/*
 * Where a word of [UPPER]*[LOWER]+|[UPPER]+[LOWER]* ends inside a run of letters: before a capital
 * behind a small letter. Letters of both kinds (`both`) continue either; behind capitals and such
 * letters, a last row of capitals is a word of its own if no small letter follows.
 */
BLOCK_INLINE uint64_t block_words(const struct ptk_split_block *b, struct block_limits *limits)
{
    const uint64_t both = b->letter & ~(b->upper | b->lower);
    if (both == 0) {
        limits->resume = b->lower & block_inside(b->letter);
        return b->upper & b->lower << 1;
    }
    const uint64_t small = b->lower | block_fill(both, both & b->lower << 1);
    limits->resume = (b->lower | (both & ~small)) & block_inside(b->letter);
    uint64_t starts = b->upper & small << 1;
    for (uint64_t rest = b->upper & both << 1 & ~starts; rest != 0; rest &= rest - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(rest);
        const uint64_t behind = ~(b->upper >> at);
        const unsigned end = at + (behind != 0 ? (unsigned)__builtin_ctzll(behind) : 64);
        if (end >= b->len && !b->is_last) {
            limits->certain &= block_below(at);
        } else if (end >= b->len || !(b->letter >> end & 1)) {
            starts |= UINT64_C(1) << at;
        }
    }
    return starts;
}

/* o200k, Tekken and, without slashes and Han, Kimi. Marks are letters here, see SPECIAL. */
BLOCK_INLINE uint64_t block_cased(const struct ptk_split_block *b, bool by_three,
                                   bool contractions, bool any_special, struct block_limits *limits)
{
    limits->certain = block_certain(b);
    const uint64_t all = block_below(b->len);
    const uint64_t symbol = all & ~(b->letter | b->number | b->space);
    const struct block_spaces spaces = block_spaces(b, symbol, all & ~b->space, false, limits);
    const uint64_t other = symbol & ~spaces.absorbed;
    /* A mark behind a symbol may be a symbol or begin a word. */
    if (b->special & (any_special ? all : other << 1)) {
        limits->certain = 0;
    }
    const uint64_t symbols = block_first(other) & ~(b->blank << 1);
    const uint64_t joined = block_to_all(symbols, b->cont) << 1 | spaces.prefix << 1;
    uint64_t starts = spaces.starts | symbols | block_numbers(b, by_three);
    starts |= (block_first(b->letter) & ~joined) | block_words(b, limits);

    if (!contractions) {
        return starts;
    }
    size_t taken = 0; /* end of the last contraction: the word it belongs to is over */
    for (uint64_t quotes = block_quotes(b) & b->letter << 1; quotes != 0; quotes &= quotes - 1) {
        const unsigned at = (unsigned)__builtin_ctzll(quotes);
        const size_t end = ptk_split_contraction_any_case(b->text, b->len, at, b->long_s);
        if (at == taken || end == 0) {
            continue;
        }
        taken = end;
        starts &= ~(block_below((unsigned)end) & ~block_below(at));
        starts |= end < 64 ? UINT64_C(1) << end : 0;
        if (end < b->len && b->text[end] >= 0x80) {
            limits->certain =
                0; /* The word begins again here, which block_words() does not know. */
        }
    }
    return starts;
}

/*
 * DeepSeek V3, its three splits at once: numbers by three and CJK runs (`upper`) end everything;
 * one ASCII symbol goes before ASCII letters; marks are letters. SPECIAL is what no alternative
 * matches.
 */
BLOCK_INLINE uint64_t block_deepseek(const struct ptk_split_block *b, struct block_limits *limits)
{
    limits->certain = block_certain(b);
    const uint64_t all = block_below(b->len);
    const uint64_t cjk = b->upper;
    limits->resume = block_inside(b->letter & b->wide) | block_inside(cjk);
    const uint64_t other = all & ~(b->letter | b->number | b->space | cjk);
    const struct block_spaces spaces = block_spaces(b, other, b->letter | other, false, limits);
    const uint64_t symbols = block_first(other) & ~(b->blank << 1);
    const uint64_t ascii = b->letter & ~b->wide;
    const uint64_t joined = block_first(b->letter) & ascii & (symbols & ~b->wide) << 1;
    /* Such a word ends where its ASCII letters do. */
    const uint64_t word_ends = (ascii + joined) & ~ascii;
    if (b->special != 0 || word_ends & b->letter & b->wide) {
        limits->certain = 0;
    }
    uint64_t starts = spaces.starts | symbols | block_numbers(b, true) | block_first(cjk);
    return starts | (block_first(b->letter) & ~(joined | spaces.prefix << 1));
}

/* One rule with its constants: boundaries, and which of them are certain. */
typedef uint64_t block_rule(const struct ptk_split_block *b, struct block_limits *limits);

BLOCK_INLINE uint64_t rule_gpt2(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_gpt2(b, false, limits);
}

BLOCK_INLINE uint64_t rule_gpt2_digits(const struct ptk_split_block *b,
                                        struct block_limits *limits)
{
    return block_gpt2(b, true, limits);
}

BLOCK_INLINE uint64_t rule_cl100k(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cl100k(b, true, true, limits);
}

BLOCK_INLINE uint64_t rule_llama3(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cl100k(b, true, false, limits);
}

BLOCK_INLINE uint64_t rule_qwen2(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cl100k(b, false, false, limits);
}

BLOCK_INLINE uint64_t rule_o200k(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cased(b, true, true, false, limits);
}

BLOCK_INLINE uint64_t rule_tekken(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cased(b, false, false, false, limits);
}

BLOCK_INLINE uint64_t rule_kimi(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_cased(b, true, true, true, limits);
}

BLOCK_INLINE uint64_t rule_deepseek(const struct ptk_split_block *b, struct block_limits *limits)
{
    return block_deepseek(b, limits);
}

/* Writes the ends of pieces for the boundaries in `ends_mask`; there is room for all of them. */
typedef size_t block_emit(uint64_t ends_mask, uint32_t base, uint32_t *ends, size_t cap);

/* Fills a block from `text[0..len)`, at most 64 bytes of it. */
typedef void block_load(const struct ptk_split_classes *classes, const uint8_t *text, size_t len,
                        struct ptk_split_block *b);

/* The walk over a text, made into one function per rule and instruction set. */
static inline __attribute__((always_inline)) size_t
block_scan(const struct ptk_split_classes *classes, const uint8_t *text, size_t len, size_t *pos,
           uint32_t *ends, size_t cap, ptk_split_scan_fn *scalar, block_load *load,
           block_rule *rule, block_emit *emit)
{
    size_t done = *pos; /* end of the last piece written */
    size_t at = done;
    size_t count = 0;
    uint32_t turns = 0;
    while (count < cap && at < len) {
        struct ptk_split_block b;
        struct block_limits limits;
        load(classes, text + at, len - at, &b);
        uint64_t starts = rule(&b, &limits);
        const uint64_t known = limits.certain & block_below(b.len) & ~UINT64_C(1);
        starts &= known;
        const uint64_t stops = starts | (limits.resume & known & ~b.cont);
        if (b.is_last && limits.certain != 0) {
            starts |= b.len < 64 ? UINT64_C(1) << b.len : 0;
        }
        if (starts != 0) {
            count += emit(starts, (uint32_t)at, ends + count, cap - count);
            done = ends[count - 1];
        } else {
            ptk_pause_turn(&turns); /* No piece ends here: a long one may take all of the text. */
        }
        if ((starts | stops) != 0) {
            at += 63u - (unsigned)__builtin_clzll(starts | stops);
            continue;
        }
        /* Hard for the rules, or a long piece of something else than letters. */
        const size_t walk = limits.certain == 0 ? PTK_SPLIT_BLOCK_WALK : 1;
        const size_t walk_end = ptk_min_size(len, at + walk);
        for (at = done; count < cap && at < walk_end; done = at) {
            ptk_pause_turn(&turns);
            count += scalar(classes, text, len, &at, ends + count, 1);
        }
    }
    *pos = done;
    return count;
}

#endif
