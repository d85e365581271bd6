#include "algo/ptk_unigram.h"

#include "base/ptk_pause.h"
#include <errno.h>
#include <math.h>

#include "text/ptk_utf8.h"

#define NO_WAY      UINT32_MAX
#define UNK_PENALTY 10.0

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
    for (uint32_t id = 0; id < config->ids_end; id++) {
        const bool own = image->vocab_key_offs[id] != image->vocab_key_offs[id + 1];
        if (own && image->scores[id] < score_min) {
            score_min = image->scores[id];
        }
    }
    *unigram = (struct ptk_unigram){
        .image = image,
        .unk_score = sentencepiece ? image->scores[config->unk_id] : score_min - UNK_PENALTY,
        .unk_id = config->unk_id,
        .sentencepiece = sentencepiece,
        .fuse_unk = (config->flags & PTK_IMAGE_FLAGS_FUSE_UNK) != 0,
        .byte_fallback = (config->flags & PTK_IMAGE_FLAGS_BYTE_FALLBACK) != 0,
    };
    return 0;
}

static inline void offer(struct ptk_unigram_node *node, double score, uint32_t begin, uint32_t id)
{
    if (node->begin == NO_WAY || score > node->score) {
        *node = (struct ptk_unigram_node){score, begin, id};
    }
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

/* Forward: the best way to every character boundary. */
static inline __attribute__((always_inline)) void
find_ways(const struct ptk_unigram *unigram, struct ptk_unigram_node *nodes, const uint8_t *piece,
          uint32_t len, bool single)
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
        uint32_t unit = 0;
        for (uint32_t end = begin; end < len && ptk_image_trie_step(image, &unit, piece[end]);) {
            end++;
            const uint32_t id = ptk_image_trie_id(image, unit);
            if (id != PTK_IMAGE_NONE) {
                offer(&nodes[end], add_scores(image->scores[id], here, single), begin, id);
                known |= end - begin == char_len;
            }
        }
        if (!known) {
            offer(&nodes[begin + char_len], add_scores(unigram->unk_score, here, single), begin,
                  unigram->unk_id);
        }
    }
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
    const uint32_t id = sentencepiece
                            ? PTK_IMAGE_NONE
                            : ptk_image_vocab(image, writer->piece + begin, end - begin);
    if (id != PTK_IMAGE_NONE) {
        put(writer, id, begin, end);
        return;
    }
    bool bytes = writer->unigram->byte_fallback && image->byte_ids != NULL;
    for (uint32_t i = begin; i < end && bytes; i++) {
        bytes = image->byte_ids[writer->piece[i]] != PTK_IMAGE_NONE;
    }
    if (!bytes) {
        put(writer, writer->unigram->unk_id, begin, end);
        return;
    }
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t byte_id = image->byte_ids[writer->piece[i]];
        put(writer, byte_id, sentencepiece ? i : begin, sentencepiece ? i + 1 : end);
    }
}

size_t ptk_unigram_encode(const struct ptk_unigram *unigram, struct ptk_unigram_node *nodes,
                          const uint8_t *piece, size_t len, const struct ptk_unigram_result *out)
{
    PTK_DCHECK(len > 0);
    PTK_DCHECK(len < NO_WAY);
    if (unigram->sentencepiece) {
        find_ways(unigram, nodes, piece, (uint32_t)len, true);
    } else {
        find_ways(unigram, nodes, piece, (uint32_t)len, false);
    }

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
