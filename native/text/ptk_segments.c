/*
 * Finds segments in blocks of 64 bytes: classes of ASCII by shuffles, other characters by table,
 * then boundaries by shifts of bit masks; see ptk_segments.h.
 */
#include "text/ptk_segments.h"

#include <tmmintrin.h>

#include "base/ptk_pause.h"
#include "text/ptk_segments_ops.h"

#define BLOCK_LEN 64u

/* ---- characters ----------------------------------------------------------------------------- */

uint8_t ptk_segments_bert_class(const struct ptk_segments *segments,
                                uint32_t code_point)
{
    const struct ptk_unicode *unicode = segments->unicode;
    const uint64_t mask = ptk_unicode_mask(unicode, code_point);
    if ((mask & segments->word_mask) != 0) {
        return 0;
    }
    if ((mask & segments->space_mask & PTK_UNICODE_BERT_SPACE) != 0) {
        return CLASS_SPACE;
    }
    if ((mask & segments->alone_mask & PTK_UNICODE_BERT_HAN) != 0) {
        return CLASS_ALONE;
    }
    uint32_t len;
    const uint32_t word = ptk_unicode_norm(unicode, code_point);
    if ((word & (PTK_UNICODE_NORM_NFD | PTK_UNICODE_NORM_CLASS)) != 0 ||
        ptk_unicode_map(&unicode->lower, code_point, &len) != NULL) {
        return 0;
    }
    if ((mask & segments->space_mask) != 0) {
        return CLASS_SPACE;
    }
    return (mask & segments->alone_mask) != 0 ? CLASS_ALONE : 0;
}

void ptk_segments_parts(const struct ptk_segments *segments, uint32_t code_point,
                       struct ptk_segments_parts *parts)
{
    const uint32_t syllable = code_point - PTK_HANGUL_S;
    parts->code_points =
        segments->strips
            ? ptk_unicode_map(&segments->unicode->canonical, code_point, &parts->count)
            : NULL;
    if (parts->code_points != NULL) {
        return;
    }
    parts->code_points = parts->own;
    parts->own[0] = code_point;
    parts->count = 1;
    if (segments->strips && syllable < PTK_HANGUL_S_LEN) {
        const uint32_t trailing = syllable % PTK_HANGUL_T_LEN;
        const uint32_t leading = syllable / PTK_HANGUL_T_LEN;
        parts->own[0] = PTK_HANGUL_L + leading / PTK_HANGUL_V_LEN;
        parts->own[1] = PTK_HANGUL_V + leading % PTK_HANGUL_V_LEN;
        parts->own[2] = PTK_HANGUL_T + trailing;
        parts->count = trailing != 0 ? 3 : 2;
    }
}

const uint32_t *ptk_segments_lower(const struct ptk_segments *segments, const uint32_t *part,
                               uint32_t *count)
{
    const uint32_t *lower =
        segments->lowers ? ptk_unicode_map(&segments->unicode->lower, *part, count) : NULL;
    if (lower == NULL) {
        *count = 1;
    }
    return lower != NULL ? lower : part;
}

bool ptk_segments_strips(const struct ptk_segments *segments, uint32_t code_point)
{
    return segments->strips &&
           (ptk_unicode_mask(segments->unicode, code_point) & PTK_UNICODE_BERT_MARK) != 0;
}

size_t ptk_segments_write_bert(const struct ptk_segments *segments, uint32_t code_point,
                               uint8_t *dst, size_t cap)
{
    struct ptk_segments_parts parts;
    size_t len = 0;
    ptk_segments_parts(segments, code_point, &parts);
    for (uint32_t i = 0; i < parts.count; i++) {
        const uint32_t *part = &parts.code_points[i];
        uint32_t count = 0;
        const bool stays = !ptk_segments_strips(segments, *part);
        const uint32_t *lower = stays ? ptk_segments_lower(segments, part, &count) : NULL;
        for (uint32_t k = 0; k < count; k++) {
            if (cap - len < 4) {
                return SIZE_MAX;
            }
            len += ptk_utf8_encode(lower[k], dst + len);
        }
    }
    return len;
}

/* ---- scanning ------------------------------------------------------------------------------- */

/* A block of whole characters; bit i of a mask is byte i. */
struct block {
    const uint8_t *text;
    size_t len;
    uint64_t space;
    uint64_t alone; /* first bytes */
    uint64_t tail;  /* other bytes of characters that stand alone */
    uint64_t opens; /* last bytes of characters just behind which white space is no wall */
    uint64_t wide;
};

static inline uint64_t below(size_t end)
{
    return end >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << end) - 1;
}

static inline uint64_t members(const uint8_t *by_low, __m128i bytes, __m128i high_bit)
{
    const __m128i table = _mm_load_si128((const __m128i *)(const void *)by_low);
    const __m128i hit = _mm_and_si128(_mm_shuffle_epi8(table, bytes), high_bit);
    const int none = _mm_movemask_epi8(_mm_cmpeq_epi8(hit, _mm_setzero_si128()));
    return (uint64_t)(~(unsigned)none & 0xFFFFu);
}

/* Classes of the ASCII among 64 bytes. */
static inline void read_ascii(const struct ptk_segments *segments, const uint8_t *bytes,
                              struct block *block)
{
    const __m128i high_bits =
        _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, (char)128, 0, 0, 0, 0, 0, 0, 0, 0);
    uint64_t opens = 0;
    block->space = 0;
    block->alone = 0;
    block->tail = 0;
    block->wide = 0;
    for (unsigned i = 0; i < BLOCK_LEN; i += 16) {
        const __m128i part = _mm_loadu_si128((const __m128i *)(const void *)(bytes + i));
        const __m128i high = _mm_and_si128(_mm_srli_epi16(part, 4), _mm_set1_epi8(15));
        const __m128i high_bit = _mm_shuffle_epi8(high_bits, high);
        block->space |= members(segments->space_by_low, part, high_bit) << i;
        block->alone |= members(segments->alone_by_low, part, high_bit) << i;
        opens |= members(segments->open_by_low, part, high_bit) << i;
        block->wide |= (uint64_t)(unsigned)_mm_movemask_epi8(part) << i;
    }
    block->opens = opens;
}

static inline uint8_t class_of(const struct ptk_segments *segments, uint32_t code_point)
{
    if (PTK_LIKELY(code_point < TABLE_END)) {
        return segments->classes[code_point];
    }
    return segments->shape == SHAPE_BERT ? ptk_segments_bert_class(segments, code_point)
                                         : CLASS_EXTENDS | CLASS_OPEN;
}

/* Whether white space before `text[at]` belongs to a cluster with what stands there. */
static bool extends_at(const struct ptk_segments *segments, const uint8_t *text, size_t len,
                       size_t at)
{
    uint32_t width;
    return at < len && text[at] >= 0x80 &&
           (class_of(segments, ptk_utf8_decode(text + at, &width)) & CLASS_EXTENDS) != 0;
}

/* Reads the characters outside of ASCII. */
static void read_wide(const struct ptk_segments *segments, struct block *block,
                      struct ptk_segments_cursor *cursor)
{
    for (uint64_t rest = block->wide; rest != 0;) {
        const unsigned at = (unsigned)__builtin_ctzll(rest);
        uint32_t width;
        const uint8_t class = class_of(segments, ptk_utf8_decode(block->text + at, &width));
        const uint64_t first = UINT64_C(1) << at;
        const uint64_t all = below(width) << at;
        rest &= ~all;
        if (PTK_LIKELY((class & CLASS_BOUNDS) == 0)) {
            continue;
        }
        if ((class & CLASS_SPACE) != 0) {
            block->space |= all;
        }
        if ((class & CLASS_ALONE) != 0) {
            block->alone |= first;
            block->tail |= all ^ first;
        }
        if ((class & CLASS_EXTENDS) != 0) {
            block->space &= ~(first >> 1);
        }
        if ((class & CLASS_OPEN) != 0) {
            block->opens |= UINT64_C(1) << (at + width - 1);
        }
        if ((class & CLASS_CLOSES) != 0) {
            cursor->is_closed = true;
            block->space &= below(at);
            return;
        }
    }
}

/* Where segments begin in a block, and where those that were being read end. */
struct bounds {
    uint64_t begins;
    uint64_t ends;
};

static inline struct bounds find_bounds(const struct ptk_segments *segments,
                                        const struct block *block,
                                        struct ptk_segments_cursor *cursor)
{
    const uint64_t valid = below(block->len);
    const uint64_t space_before = block->space << 1 | cursor->before_space;
    if (segments->shape == SHAPE_MARKED) {
        const uint64_t cuts = block->space & ~space_before;
        const uint64_t at_start = cursor->pos == 0;
        cursor->before_space = block->space >> (block->len - 1) & 1;
        return (struct bounds){cuts | at_start, cuts & ~at_start};
    }
    const uint64_t alone = block->alone | block->tail;
    const uint64_t word = valid & ~(block->space | alone);
    const uint64_t word_before = word << 1 | cursor->before_word;
    const uint64_t alone_before = alone << 1 | cursor->before_alone;
    cursor->before_space = block->space >> (block->len - 1) & 1;
    cursor->before_word = word >> (block->len - 1) & 1;
    cursor->before_alone = alone >> (block->len - 1) & 1;
    return (struct bounds){(word & ~word_before) | block->alone,
                           ((word_before & ~word) | (alone_before & ~block->tail)) & valid};
}

/* Reads the block at the cursor. */
static inline struct bounds next_block(const struct ptk_segments *segments,
                                       struct ptk_segments_cursor *cursor, const uint8_t *text,
                                       size_t len, struct block *block)
{
    _Alignas(16) uint8_t last[BLOCK_LEN];
    const uint8_t *bytes = text + cursor->pos;
    block->text = bytes;
    block->len = ptk_min_size(len - cursor->pos, BLOCK_LEN);
    if (PTK_UNLIKELY(len - cursor->pos < BLOCK_LEN)) {
        memset(last, 0, sizeof last);
        memcpy(last, bytes, block->len);
        bytes = last;
    } else if (cursor->pos + BLOCK_LEN < len) {
        while ((block->text[block->len] & 0xC0) == 0x80) { /* Ends: within three bytes. */
            block->len--;
        }
    }
    const uint64_t valid = below(block->len);
    read_ascii(segments, bytes, block);
    block->space &= valid;
    block->alone &= valid;
    block->wide &= valid;
    block->opens &= valid;
    if (block->wide != 0) {
        read_wide(segments, block, cursor);
    }
    if ((block->space >> (block->len - 1) & 1) != 0 &&
        extends_at(segments, text, len, cursor->pos + block->len)) {
        block->space &= ~(UINT64_C(1) << (block->len - 1));
    }
    const uint64_t first = block->space & ~(block->space << 1 | cursor->before_space);
    const uint64_t opened = first & (block->opens << 1 | cursor->joins_space);
    const uint64_t joined = block->space & ~(block->space + opened);
    block->space &= ~joined;
    cursor->joins_space = ((block->opens | joined) >> (block->len - 1) & 1) != 0;
    return find_bounds(segments, block, cursor);
}

size_t ptk_segments_next(const struct ptk_segments *segments, struct ptk_segments_cursor *cursor,
                         const uint8_t *text, size_t len, struct ptk_span *spans, size_t cap)
{
    PTK_DCHECK(cap >= PTK_SEGMENTS_CAP_MIN);
    size_t begins = 0;
    size_t count = 0;
    if (cursor->is_open) {
        spans[begins++].begin = cursor->begin;
    }
    size_t paused_at = cursor->pos;
    while (cursor->pos < len && !cursor->is_closed && begins + BLOCK_LEN <= cap) {
        struct block block;
        ptk_pause_pos(&paused_at, cursor->pos);
        struct bounds bounds = next_block(segments, cursor, text, len, &block);
        for (; bounds.begins != 0; bounds.begins &= bounds.begins - 1) {
            spans[begins++].begin =
                (uint32_t)cursor->pos + (uint32_t)__builtin_ctzll(bounds.begins);
        }
        for (; bounds.ends != 0; bounds.ends &= bounds.ends - 1) {
            spans[count++].end = (uint32_t)cursor->pos + (uint32_t)__builtin_ctzll(bounds.ends);
        }
        cursor->pos += block.len;
    }
    cursor->pos = cursor->is_closed ? len : cursor->pos;
    if (cursor->pos == len && begins > count) {
        spans[count++].end = (uint32_t)len;
    }
    cursor->is_open = begins > count;
    cursor->begin = cursor->is_open ? spans[count].begin : 0;
    return count;
}

/* ---- pieces of segments --------------------------------------------------------------------- */

/* Writes what a character of CLASS_CHANGES becomes; its length, or SIZE_MAX without room. */
static size_t write_image(const struct ptk_segments *segments, uint32_t code_point, uint8_t *dst,
                          size_t cap)
{
    if (segments->shape == SHAPE_BERT) {
        return ptk_segments_write_bert(segments, code_point, dst, cap);
    }
    const uint32_t entry = segments->image_of[code_point];
    const size_t len = entry & ((1u << IMAGE_LEN_BITS) - 1);
    if (len > cap) {
        return SIZE_MAX;
    }
    memcpy(dst, segments->images + (entry >> IMAGE_LEN_BITS), len);
    return len;
}

size_t ptk_segments_piece(const struct ptk_segments *segments, const uint8_t *segment, size_t len,
                          uint8_t *piece, size_t cap)
{
    if (!segments->has_pieces || len + segments->mark_len + 4 > cap) {
        return 0;
    }
    memcpy(piece, segments->mark, sizeof segments->mark);
    size_t piece_len = segments->mark_len;
    size_t at = 0;
    uint32_t base_len = 0; /* of the character that marks follow */
    while (at < len && segment[at] < 0x80 &&
           (segments->classes[segment[at]] & CLASS_SPACE) != 0) {
        at++; /* SHAPE_MARKED: the mark stands for it. */
    }
    if (at == len) {
        return 0;
    }
    while (at < len) {
        uint32_t width;
        const uint32_t code_point = ptk_utf8_decode(segment + at, &width);
        const uint8_t class = code_point < TABLE_END ? segments->classes[code_point] : 0;
        if (cap - piece_len < 4) {
            return 0;
        }
        if (PTK_LIKELY((class & CLASS_KEEPS) != 0)) {
            if (PTK_UNLIKELY((class & CLASS_EXTENDS) != 0)) {
                if (base_len < LONG_CHAR_LEN) {
                    return 0;
                }
            } else {
                base_len = width;
            }
            for (uint32_t i = 0; i < width; i++) {
                piece[piece_len + i] = segment[at + i];
            }
            piece_len += width;
        } else if ((class & CLASS_CHANGES) != 0) {
            const size_t changed =
                write_image(segments, code_point, piece + piece_len, cap - piece_len);
            if (changed == SIZE_MAX) {
                return 0;
            }
            piece_len += changed;
            base_len = width;
        } else {
            return 0;
        }
        at += width;
    }
    return piece_len > segments->mark_len ? piece_len : 0;
}

bool ptk_segments_keeps(const struct ptk_segments *segments, uint8_t byte)
{
    return segments->has_pieces && byte < 0x80 && segments->classes[byte] == CLASS_KEEPS;
}
