/*
 * Post-processing: what stands around the sequences, which type ids they get, how offsets are
 * trimmed, and how many ids of each sequence truncation leaves.
 *
 * All of the reference's post-processors are one form here: a template for a single text and one
 * for a pair, and a list of offset trims. BertProcessing and RobertaProcessing are templates too.
 */
#ifndef PTK_POST_H
#define PTK_POST_H

#include "algo/ptk_tokenizer.h"

enum ptk_post_what {
    PTK_POST_A = 0,
    PTK_POST_B = 1,
    PTK_POST_SPECIAL = 2,
};

struct ptk_post_item {
    uint8_t what; /* enum ptk_post_what */
    uint8_t type_id;
    uint32_t id; /* of a special token */
};

struct ptk_post_template {
    struct ptk_post_item *items; /* each sequence at most once */
    size_t item_count;
    size_t special_count;
};

/* One ByteLevel or Roberta trim: spaces at the ends of a token leave its offsets. */
struct ptk_post_trim {
    bool add_prefix_space; /* a single leading space of the first token was added and stays */
};

#define PTK_POST_TRIMS_MAX 8u

struct ptk_post {
    struct ptk_post_template single;
    struct ptk_post_template pair;
    struct ptk_post_trim trims[PTK_POST_TRIMS_MAX];
    size_t trim_count;
    bool adds_specials; /* the model has a post-processor with special tokens */
    bool types_all;     /* with special tokens, windows after the first get the template's types */
};

/*
 * ptk_post_type_id: the type id of a text in a window. The reference gives the template's to the
 * first window of each text alone; those behind it keep 0 for the first text and 1 for the second,
 * except where the post-processor is RoBERTa's and adds special tokens.
 */
static inline uint8_t ptk_post_type_id(const struct ptk_post *post,
                                       const struct ptk_post_item *entry, bool first,
                                       bool add_specials)
{
    const bool by_template = first || (post->types_all && add_specials);
    return by_template ? entry->type_id : entry->what;
}

/* ptk_post_init translates the program. Set-up: allocates. 0, or a negative errno and a
 * sentence. */
int ptk_post_init(struct ptk_post *post, const struct ptk_image *image, struct ptk_err *err);
void ptk_post_fini(struct ptk_post *post);

/* Lengths of both sequences; without a pair b is 0. */
struct ptk_post_lens {
    size_t a;
    size_t b;
};

/*
 * ptk_post_truncate reduces the lengths as the reference's truncation with these parameters does;
 * `special_count` ids come on top. PTK_VERDICT_BAD_OPTION where the reference raises: the sequence
 * to cut is missing or too short, max_length leaves no room, or stride is not below what is left.
 */
enum ptk_verdict ptk_post_truncate(const struct ptk_wire_truncation *truncation, bool pair,
                                   size_t special_count, struct ptk_post_lens *lens);

#endif
