/*
 * Grapheme clusters, character by character; see ptk_grapheme.h.
 */
#include "text/ptk_grapheme.h"

#include "base/ptk_pause.h"
#include "text/ptk_utf8.h"

/* What the rules remember of a cluster that is being read. */
struct state {
    uint32_t class;       /* of its last character */
    bool pictograph;      /* it ends in a pictograph and extending characters */
    bool pictograph_join; /* ... and a zero-width joiner */
    bool consonant;       /* it ends in a consonant, linkers and extending characters */
    bool linked;          /* ... of which one is a linker */
};

static void advance(struct state *state, uint32_t word)
{
    uint32_t class = word & PTK_UNICODE_GRAPHEME_CLASS;
    state->pictograph_join = state->pictograph && class == PTK_UNICODE_GRAPHEME_ZWJ;
    state->pictograph = (word & PTK_UNICODE_GRAPHEME_PICTOGRAPH) != 0 ||
                        (state->pictograph && class == PTK_UNICODE_GRAPHEME_EXTEND);
    if ((word & PTK_UNICODE_GRAPHEME_CONSONANT) != 0) {
        state->consonant = true;
        state->linked = false;
    } else if (state->consonant && (word & PTK_UNICODE_GRAPHEME_CONJUNCT) != 0) {
        state->linked = state->linked || (word & PTK_UNICODE_GRAPHEME_LINKER) != 0;
    } else {
        state->consonant = false;
        state->linked = false;
    }
    state->class = class;
}

/* Whether a syllable of Hangul goes on. */
static bool joins_hangul(uint32_t before, uint32_t after)
{
    bool vowel = after == PTK_UNICODE_GRAPHEME_HANGUL_V;
    bool trailing = after == PTK_UNICODE_GRAPHEME_HANGUL_T;
    switch (before) {
    case PTK_UNICODE_GRAPHEME_HANGUL_L:
        return vowel || after == PTK_UNICODE_GRAPHEME_HANGUL_L ||
               after == PTK_UNICODE_GRAPHEME_HANGUL_LV || after == PTK_UNICODE_GRAPHEME_HANGUL_LVT;
    case PTK_UNICODE_GRAPHEME_HANGUL_LV:
    case PTK_UNICODE_GRAPHEME_HANGUL_V:
        return vowel || trailing;
    case PTK_UNICODE_GRAPHEME_HANGUL_LVT:
    case PTK_UNICODE_GRAPHEME_HANGUL_T:
        return trailing;
    default:
        return false;
    }
}

/* Whether the next character belongs to the cluster. */
static bool joins(const struct state *state, uint32_t word)
{
    uint32_t class = word & PTK_UNICODE_GRAPHEME_CLASS;
    if (state->class == PTK_UNICODE_GRAPHEME_CONTROL || class == PTK_UNICODE_GRAPHEME_CONTROL) {
        return false;
    }
    if (class == PTK_UNICODE_GRAPHEME_EXTEND || class == PTK_UNICODE_GRAPHEME_ZWJ ||
        class == PTK_UNICODE_GRAPHEME_SPACING || state->class == PTK_UNICODE_GRAPHEME_PREPEND) {
        return true;
    }
    return joins_hangul(state->class, class) ||
           (state->pictograph_join && (word & PTK_UNICODE_GRAPHEME_PICTOGRAPH) != 0) ||
           (state->linked && (word & PTK_UNICODE_GRAPHEME_CONSONANT) != 0);
}

size_t ptk_grapheme_len(const struct ptk_unicode *unicode, const uint8_t *bytes, size_t len)
{
    uint32_t char_len;
    struct state state = {0};
    if (len >= 2 && bytes[0] == '\r' && bytes[1] == '\n') {
        return 2;
    }
    uint32_t word = ptk_unicode_grapheme(unicode, ptk_utf8_decode(bytes, &char_len));
    size_t pos = char_len;
    advance(&state, word);
    size_t paused_at = 0;
    while (pos < len) {
        ptk_pause_pos(&paused_at, pos);
        word = ptk_unicode_grapheme(unicode, ptk_utf8_decode(bytes + pos, &char_len));
        if (!joins(&state, word)) {
            break;
        }
        advance(&state, word);
        pos += char_len;
    }
    return pos;
}
