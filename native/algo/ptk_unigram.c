#include "algo/ptk_unigram.h"

#include "base/ptk_pause.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "text/ptk_utf8.h"

#define NO_WAY      UINT32_MAX
#define UNK_PENALTY 10.0

/* Notes where in the trie the tokens begin that begin with a character, and where to cut. */
static int make_tables(struct ptk_unigram *unigram, struct ptk_err *err)
{
    const struct ptk_image *image = unigram->image;
    unigram->first_units = calloc(PTK_UNIGRAM_FIRST_END, sizeof *unigram->first_units);
    if (!ptk_unigram_cuts_init(&unigram->cuts, image) || unigram->first_units == NULL) {
        ptk_unigram_fini(unigram);
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint8_t *key = image->vocab_key + image->vocab_key_offs[id];
        const size_t len = image->vocab_key_offs[id + 1] - image->vocab_key_offs[id];
        uint32_t char_len;
        const uint32_t code_point = len > 0 ? ptk_utf8_decode(key, &char_len) : 0;
        if (len == 0 || code_point >= PTK_UNIGRAM_FIRST_END ||
            unigram->first_units[code_point] != 0) {
            continue;
        }
        uint32_t unit = 0;
        bool is_there = true; /* in every trie that was not made to lie about its keys */
        for (uint32_t i = 0; i < char_len && is_there; i++) {
            is_there = ptk_image_trie_step(image, &unit, key[i]);
        }
        unigram->first_units[code_point] = is_there ? unit : 0;
    }
    return 0;
}

int ptk_unigram_init(struct ptk_unigram *unigram, const struct ptk_image *image,
                     struct ptk_err *err)
{
    const struct ptk_image_config *config = image->config;
    PTK_ASSERT(image->scores != NULL);
    PTK_ASSERT(image->trie != NULL);
    if (config->unk_id == PTK_IMAGE_NONE) {
        return ptk_err_set(err, -ENOTSUP,
                           "a Unigram model without unk_id cannot encode every text");
    }
    const bool sentencepiece = image->header->source == PTK_IMAGE_SOURCE_SENTENCEPIECE;
    double score_min = INFINITY;
    double score_max = -INFINITY;
    for (uint32_t id = 0; id < config->ids_end; id++) {
        const bool own = image->vocab_key_offs[id] != image->vocab_key_offs[id + 1];
        if (own) {
            score_min = fmin(score_min, image->scores[id]);
            score_max = fmax(score_max, image->scores[id]);
        }
    }
    *unigram = (struct ptk_unigram){
        .image = image,
        .score_abs_max = fmax(fabs(score_min - UNK_PENALTY), fabs(score_max)),
        .unk_score = sentencepiece ? image->scores[config->unk_id] : score_min - UNK_PENALTY,
        .unk_id = config->unk_id,
        .sentencepiece = sentencepiece,
        .fuse_unk = (config->flags & PTK_IMAGE_FLAGS_FUSE_UNK) != 0,
        .byte_fallback = (config->flags & PTK_IMAGE_FLAGS_BYTE_FALLBACK) != 0,
    };
    return make_tables(unigram, err);
}

void ptk_unigram_fini(struct ptk_unigram *unigram)
{
    free(unigram->first_units);
    ptk_unigram_cuts_fini(&unigram->cuts);
    unigram->first_units = NULL;
}

/* `*closest` is the smallest difference of two ways so far. */
static inline void offer(struct ptk_unigram_node *node, double score, uint32_t begin, uint32_t id,
                         double *closest)
{
    if (node->begin != NO_WAY) {
        const double difference = fabs(score - node->score);
        *closest = difference < *closest ? difference : *closest;
        if (score <= node->score) {
            return;
        }
    }
    *node = (struct ptk_unigram_node){score, begin, id};
}

/* The sum of two scores, as f32 if they are `single`. */
static inline double add_scores(double a, double b, bool single)
{
    return single ? (double)(float)(a + b) : a + b;
}

/*
 * Scores of f32 lose their last bits on long texts. The reference takes the score of a position off
 * it and off all that follow as soon as it is below this.
 */
#define SINGLE_SCORE_MIN (-1e5)

static void rebase(struct ptk_unigram_node *nodes, uint32_t begin, uint32_t end)
{
    const double base = nodes[begin].score;
    for (uint32_t i = begin; i <= end; i++) {
        if (nodes[i].begin != NO_WAY) {
            nodes[i].score = add_scores(nodes[i].score, -base, true);
        }
    }
}

/* The unit of the trie behind a character; 0: no token begins with it. */
static inline uint32_t first_unit(const struct ptk_unigram *unigram, const uint8_t *at,
                                  uint32_t char_len)
{
    uint32_t ignored;
    if (PTK_LIKELY(char_len <= 3)) {
        return unigram->first_units[ptk_utf8_decode(at, &ignored)];
    }
    uint32_t unit = 0;
    for (uint32_t i = 0; i < char_len; i++) {
        if (!ptk_image_trie_step(unigram->image, &unit, at[i])) {
            return 0;
        }
    }
    return unit;
}

/* Forward: the best way to every character boundary. Returns the smallest difference of two. */
static inline __attribute__((always_inline)) double find_ways(const struct ptk_unigram *unigram,
                                                              struct ptk_unigram_node *nodes,
                                                              const uint8_t *piece, uint32_t len,
                                                              bool single)
{
    const struct ptk_image *image = unigram->image;
    uint32_t turns = 0;
    for (uint32_t i = 1; i <= len;) {
        for (const uint32_t stop = len - i < 4096 ? len + 1 : i + 4096; i < stop; i++) {
            nodes[i].begin = NO_WAY;
        }
        ptk_pause_point();
    }
    nodes[0] = (struct ptk_unigram_node){0.0, 0, 0};
    double closest = INFINITY;
    uint32_t char_len;
    for (uint32_t begin = 0; begin < len; begin += char_len) {
        ptk_pause_turn(&turns);
        if (single && nodes[begin].score < SINGLE_SCORE_MIN) {
            const uint32_t reach = image->config->key_bytes_max;
            rebase(nodes, begin, len - begin > reach ? begin + reach : len);
        }
        const double here = nodes[begin].score;
        char_len = ptk_utf8_lead_len(piece[begin]);
        bool known = false; /* the character alone is a token */
        uint32_t unit = first_unit(unigram, piece + begin, char_len);
        uint32_t end = begin + char_len;
        while (unit != 0) {
            const uint32_t id = ptk_image_trie_id(image, unit);
            if (id != PTK_IMAGE_NONE) {
                offer(&nodes[end], add_scores(image->scores[id], here, single), begin, id,
                      &closest);
                known |= end - begin == char_len;
            }
            if (end == len || !ptk_image_trie_step(image, &unit, piece[end])) {
                break;
            }
            end++;
        }
        if (!known) {
            offer(&nodes[begin + char_len], add_scores(unigram->unk_score, here, single), begin,
                  unigram->unk_id, &closest);
        }
    }
    return closest;
}

struct writer {
    const struct ptk_unigram *unigram;
    const struct ptk_unigram_result *out;
    const uint8_t *piece;
    size_t count;
};

static void put(struct writer *writer, uint32_t id, uint32_t begin, uint32_t end)
{
    writer->out->ids[writer->count] = id;
    writer->out->begins[writer->count] = begin;
    writer->out->ends[writer->count] = end;
    writer->count++;
}

/* A stretch without a token of its own: byte tokens where the model has all of them, else
 * unknown. */
static void put_unknown(struct writer *writer, uint32_t begin, uint32_t end)
{
    const struct ptk_image *image = writer->unigram->image;
    const bool sentencepiece = writer->unigram->sentencepiece;
    const uint32_t id =
        sentencepiece ? PTK_IMAGE_NONE : ptk_image_vocab(image, writer->piece + begin, end - begin);
    if (id != PTK_IMAGE_NONE) {
        put(writer, id, begin, end);
        return;
    }
    bool bytes = writer->unigram->byte_fallback && image->byte_ids != NULL;
    uint32_t turns = 0;
    for (uint32_t i = begin; i < end && bytes; i++) {
        ptk_pause_turn(&turns);
        bytes = image->byte_ids[writer->piece[i]] != PTK_IMAGE_NONE;
    }
    if (!bytes) {
        put(writer, writer->unigram->unk_id, begin, end);
        return;
    }
    for (uint32_t i = begin; i < end; i++) {
        ptk_pause_turn(&turns);
        const uint32_t byte_id = image->byte_ids[writer->piece[i]];
        put(writer, byte_id, sentencepiece ? i : begin, sentencepiece ? i + 1 : end);
    }
}

size_t ptk_unigram_encode(const struct ptk_unigram *unigram, struct ptk_unigram_node *nodes,
                          const uint8_t *piece, size_t len, const struct ptk_unigram_result *out,
                          bool *is_close)
{
    PTK_DCHECK(len > 0);
    PTK_DCHECK(len < NO_WAY);
    double closest = INFINITY;
    if (unigram->sentencepiece) {
        (void)find_ways(unigram, nodes, piece, (uint32_t)len, true); /* never in parts */
    } else {
        closest = find_ways(unigram, nodes, piece, (uint32_t)len, false);
    }
    *is_close =
        !unigram->sentencepiece && (closest < PTK_UNIGRAM_CLOSE || len > PTK_UNIGRAM_PART_MAX);

    /* Backward: reverse the way in place, so that every node says where its token ends. */
    uint32_t turns = 0;
    for (uint32_t end = (uint32_t)len; end > 0;) {
        ptk_pause_turn(&turns);
        const uint32_t begin = nodes[end].begin;
        nodes[begin].score = (double)end; /* exact: positions are below 2^32 */
        end = begin;
    }

    struct writer writer = {unigram, out, piece, 0};
    for (uint32_t begin = 0; begin < len;) {
        ptk_pause_turn(&turns);
        uint32_t end = (uint32_t)nodes[begin].score;
        if (nodes[end].id != unigram->unk_id) {
            put(&writer, nodes[end].id, begin, end);
            begin = end;
            continue;
        }
        while (unigram->fuse_unk && end < len) {
            ptk_pause_turn(&turns);
            const uint32_t next = (uint32_t)nodes[end].score;
            if (nodes[next].id != unigram->unk_id) {
                break;
            }
            end = next;
        }
        put_unknown(&writer, begin, end);
        begin = end;
    }
    return writer.count;
}
