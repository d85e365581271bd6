#include "algo/ptk_tokenizer_state.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

/*
 * Normalized text may be longer than its source: a space that becomes U+2581 has three bytes. A
 * text that grows further is refused by name, and a caller may come back with a larger work.
 */
#define TEXT_GROWTH 3u
#define TEXT_EXTRA  256u

/* Tokens that are matched in the normalized text may stretch over any wall. */
static int segments_init(struct ptk_tokenizer *tokenizer, struct ptk_err *err)
{
    const struct ptk_image *image = tokenizer->image;
    if (image->added_normalized != NULL || image->config->algorithm == PTK_IMAGE_ALGORITHM_BPE) {
        return 0;
    }
    const struct ptk_segments_config config = {
        .norm_program = image->normalizer.bytes,
        .norm_program_len = image->normalizer.len,
        .pre_program = image->pre_tokenizer.bytes,
        .pre_program_len = image->pre_tokenizer.len,
        .norm = tokenizer->norm,
        .profile = (enum ptk_image_profile)image->header->profile,
    };
    const int code = ptk_segments_open(&config, &tokenizer->segments, err);
    if (tokenizer->segments != NULL && image->config->algorithm == PTK_IMAGE_ALGORITHM_UNIGRAM) {
        ptk_signs_init(&tokenizer->signs, &tokenizer->encoder.unigram, tokenizer->segments);
    }
    return code;
}

static int texts_init(struct ptk_tokenizer *tokenizer, struct ptk_err *err)
{
    const struct ptk_image *image = tokenizer->image;
    const enum ptk_image_profile profile = (enum ptk_image_profile)image->header->profile;
    const struct ptk_unicode *unicode = ptk_unicode_open(profile);
    if (unicode == NULL) {
        return ptk_err_set(err, -ENOTSUP, "this build has no Unicode tables for profile %u",
                           image->header->profile);
    }
    ptk_added_init(&tokenizer->added_raw, image, image->added_raw, unicode);
    ptk_added_init(&tokenizer->added_normalized, image, image->added_normalized, unicode);
    const struct ptk_norm_config norm = {
        .program = image->normalizer.bytes,
        .program_len = image->normalizer.len,
        .profile = profile,
    };
    const int code = ptk_norm_open(&norm, &tokenizer->norm, err);
    if (code != 0) {
        return code;
    }
    const struct ptk_split_config split = {
        .program = image->pre_tokenizer.bytes,
        .program_len = image->pre_tokenizer.len,
        .profile = profile,
        .source = (enum ptk_image_source)image->header->source,
        .byte_units = (image->config->flags & PTK_IMAGE_FLAGS_BYTE_UNITS) != 0,
    };
    const int split_code = ptk_split_open(&split, &tokenizer->split, err);
    return split_code != 0 ? split_code : segments_init(tokenizer, err);
}

static int parts_init(struct ptk_tokenizer *tokenizer, struct ptk_err *err)
{
    int code = ptk_encoder_init(&tokenizer->encoder, tokenizer->image, err);
    if (code == 0) {
        code = ptk_cuts_init(&tokenizer->cuts, tokenizer->image, tokenizer->encoder.merged,
                             &tokenizer->encoder.chars, err);
    }
    if (code == 0) {
        code = ptk_words_init(&tokenizer->words, tokenizer->image, &tokenizer->cuts, err);
    }
    if (code == 0) {
        code = texts_init(tokenizer, err);
    }
    if (code == 0) {
        code = ptk_post_init(&tokenizer->post, tokenizer->image, err);
    }
    if (code == 0) {
        code = ptk_decoder_init(&tokenizer->decoder, tokenizer->image, err);
    }
    if (code == 0 &&
        getrandom(&tokenizer->seed, sizeof tokenizer->seed, 0) != (ssize_t)sizeof tokenizer->seed) {
        code = ptk_err_set(err, -EIO, "the system gives no random bytes for the piece cache");
    }
    return code;
}

int ptk_tokenizer_open(const struct ptk_image *image, struct ptk_tokenizer **out,
                       struct ptk_err *err)
{
    *out = NULL;
    struct ptk_tokenizer *tokenizer =
        aligned_alloc(PTK_CACHE_LINE, ptk_align_up(sizeof *tokenizer, PTK_CACHE_LINE));
    if (tokenizer == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    memset(tokenizer, 0, sizeof *tokenizer);
    tokenizer->image = image;
    const int code = parts_init(tokenizer, err);
    if (code != 0) {
        ptk_tokenizer_close(tokenizer);
        return code;
    }
    tokenizer->normalizes = !ptk_norm_is_empty(tokenizer->norm);
    tokenizer->needs_align = ptk_split_needs_align(tokenizer->split);
    tokenizer->scan = ptk_split_is_scan(tokenizer->split) &&
                      tokenizer->encoder.algorithm != PTK_IMAGE_ALGORITHM_UNIGRAM;
    *out = tokenizer;
    return 0;
}

void ptk_tokenizer_close(struct ptk_tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    ptk_decoder_fini(&tokenizer->decoder);
    ptk_encoder_fini(&tokenizer->encoder);
    ptk_cuts_fini(&tokenizer->cuts);
    ptk_post_fini(&tokenizer->post);
    ptk_decoder_fini(&tokenizer->decoder);
    ptk_norm_close(tokenizer->norm);
    ptk_split_close(tokenizer->split);
    ptk_segments_close(tokenizer->segments);
    free(tokenizer);
}

const struct ptk_image_neighbours *ptk_tokenizer_neighbours(const struct ptk_tokenizer *tokenizer)
{
    return tokenizer->cuts.neighbours;
}

size_t ptk_tokenizer_neighbour_chars(const struct ptk_tokenizer *tokenizer, uint32_t *chars)
{
    return tokenizer->cuts.neighbours == NULL ? 0 : ptk_cuts_chars(&tokenizer->cuts, chars);
}

const struct ptk_image_unigram_neighbours *
ptk_tokenizer_unigram_neighbours(const struct ptk_tokenizer *tokenizer)
{
    return tokenizer->encoder.algorithm == PTK_IMAGE_ALGORITHM_UNIGRAM
               ? tokenizer->encoder.unigram.cuts.neighbours
               : NULL;
}

/* ---- work ----------------------------------------------------------------------------------- */

/* Where the parts of a work begin in its memory. */
struct layout {
    size_t encoder;
    size_t split;
    size_t norm;
    size_t end;
    size_t text_cap;
    size_t unit_cap;
};

static size_t place(struct layout *layout, size_t len)
{
    const size_t at = layout->end;
    layout->end = ptk_align_up(at + len, PTK_CACHE_LINE);
    return at;
}

/* Alignment is always there: some pre-tokenizers need it without anybody asking for offsets. The
 * pre-tokenizer writes into the buffer that the normalizer has left free. */
static struct ptk_norm_limits norm_limits(const struct layout *layout)
{
    return (struct ptk_norm_limits){.text_len_max = layout->text_cap, .align = true};
}

static struct layout work_layout(const struct ptk_work_limits *limits)
{
    struct layout layout = {
        .end = ptk_align_up(sizeof(struct ptk_work), PTK_CACHE_LINE),
        .text_cap = TEXT_GROWTH * limits->text_len_max + TEXT_EXTRA,
        .unit_cap = 2 * limits->text_len_max + TEXT_EXTRA,
    };
    layout.encoder = place(&layout, ptk_encoder_scratch_len(layout.unit_cap));
    layout.split = place(&layout, ptk_split_work_len(layout.text_cap));
    const struct ptk_norm_limits norm = norm_limits(&layout);
    layout.norm = place(&layout, ptk_norm_work_len(&norm));
    return layout;
}

size_t ptk_work_len(const struct ptk_work_limits *limits)
{
    return work_layout(limits).end;
}

struct ptk_work *ptk_work_init(void *memory, const struct ptk_work_limits *limits)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(limits->text_len_max <= PTK_TEXT_LEN_MAX);
    const struct layout layout = work_layout(limits);
    uint8_t *base = memory;
    struct ptk_work *work = memory;
    *work = (struct ptk_work){.limits = *limits, .text_cap = layout.text_cap};
    ptk_encoder_scratch_init(&work->encoder, base + layout.encoder, layout.unit_cap);
    work->split = ptk_split_work_init(base + layout.split, layout.text_cap);
    const struct ptk_norm_limits norm = norm_limits(&layout);
    work->norm = ptk_norm_work_init(base + layout.norm, &norm);
    return work;
}

/* One line of so many holds the bits of ptk_cache_has_many, and a quarter of its bits is used. */
#define MANY_SHARE    256u
#define MANY_PER_LINE 128u
_Static_assert(PTK_CACHE_LEN_MIN >= MANY_SHARE * PTK_CACHE_LINE, "one line at least");

struct ptk_cache *ptk_cache_init(void *memory, size_t memory_len)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(memory_len >= PTK_CACHE_LEN_MIN);
    PTK_ASSERT((memory_len & (memory_len - 1)) == 0);
    struct ptk_cache *cache = memory;
    memset(memory, 0, memory_len);
    const size_t lines = memory_len / PTK_CACHE_LINE;
    const size_t many_lines = lines / MANY_SHARE;
    cache->short_mask = lines / 2 - 1;
    cache->long_pairs = (lines / 2 - 1 - many_lines) / 2; /* the header takes a line */
    cache->many =
        (uint64_t *)(void *)((uint8_t *)memory + memory_len - many_lines * PTK_CACHE_LINE);
    cache->many_mask = many_lines * PTK_CACHE_LINE * 8 - 1;
    cache->many_left = many_lines * MANY_PER_LINE;
    return cache;
}

void ptk_cache_set_many(struct ptk_cache *cache, const struct ptk_cache_seed *seed,
                        struct ptk_piece_key key)
{
    const uint64_t bit = ptk_cache_hash(seed, key) >> 32 & cache->many_mask;
    if (cache->many_left == 0) {
        const size_t len = (cache->many_mask + 1) / 8;
        memset(cache->many, 0, len);
        cache->many_left = len / PTK_CACHE_LINE * MANY_PER_LINE;
    }
    cache->many_left--;
    cache->many[bit >> 6] |= 1ull << (bit & 63);
}

enum ptk_verdict ptk_tokenizer_decode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      const uint32_t *ids, size_t ids_len, uint32_t options,
                                      uint8_t *text, size_t cap, size_t *text_len)
{
    /* The arrays of a model's scratch behind those of its result: 16 bytes a unit, two units a
     * byte. */
    uint8_t *spare = (uint8_t *)work->encoder.bpe.partner;
    _Static_assert(TEXT_GROWTH <= 16, "the spare arrays hold a text");
    const struct ptk_decode_scratch scratch = {
        .bytes = {spare, ptk_norm_spare(work->norm, NULL).bytes},
        .ends = {work->encoder.bpe.ids, work->encoder.bpe.ends},
        .text_cap = work->text_cap,
        .end_cap = work->encoder.bpe.unit_cap,
        .norm = work->norm,
    };
    return ptk_decoder_run(&tokenizer->decoder, &scratch, ids, ids_len,
                           (options & PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS) != 0, text, cap,
                           text_len);
}

bool ptk_tokenizer_checks_text(const struct ptk_tokenizer *tokenizer)
{
    return tokenizer->decoder.concat;
}

bool ptk_tokenizer_piece(const struct ptk_tokenizer *tokenizer, uint32_t id, bool skip_special,
                         const uint8_t **bytes, size_t *len)
{
    return ptk_decoder_piece(&tokenizer->decoder, id, skip_special, bytes, len);
}
