/*
 * A tokenizer for tests of what stands around the tokenizer: ids are bytes.
 *
 * Include it in one file of a test program: it defines the functions of algo/ptk_tokenizer.h, so
 * that the linker does not take the real ones. The id of byte b is base + b; base + 256 begins and
 * base + 257 ends a text when special tokens are added. A text with a byte 0xFF is invalid, options
 * bos and eos are unsupported, normalizing the byte 'X' would exceed the work's limit, and any id
 * that is none of these decodes to nothing. A byte '|' in a range of ordinary text is a hit.
 * Windows are cut from all ids of an item. A step gives the text of the ids behind the context,
 * unless the last one is '~': that waits.
 */
#ifndef PTK_BYTE_TOKENIZER_H
#define PTK_BYTE_TOKENIZER_H

#include "serve/ptk_models.h"

struct ptk_tokenizer {
    uint32_t base;
};

struct ptk_work {
    struct ptk_work_limits limits;
};

struct ptk_cache {
    uint64_t resets; /* counted, never cleared: memory starts as zeros */
};

size_t ptk_work_len(const struct ptk_work_limits *limits)
{
    (void)limits;
    return sizeof(struct ptk_work);
}

struct ptk_work *ptk_work_init(void *memory, const struct ptk_work_limits *limits)
{
    struct ptk_work *work = memory;
    work->limits = *limits;
    return work;
}

struct ptk_cache *ptk_cache_init(void *memory, size_t memory_len)
{
    struct ptk_cache *cache = memory;
    PTK_ASSERT(memory_len >= PTK_CACHE_LEN_MIN);
    cache->resets++;
    return cache;
}

static bool byte_add(struct ptk_encoding *out, uint32_t id, struct ptk_span span, uint8_t type_id,
                     uint8_t special)
{
    if (out->len == out->cap) {
        return false;
    }
    if (out->ids != NULL) {
        out->ids[out->len] = id;
    }
    if (out->offsets != NULL) {
        out->offsets[out->len] = span;
    }
    if (out->type_ids != NULL) {
        out->type_ids[out->len] = type_id;
    }
    if (out->special_tokens_mask != NULL) {
        out->special_tokens_mask[out->len] = special;
    }
    out->len++;
    return true;
}

static enum ptk_verdict byte_check(const struct ptk_work *work, const uint8_t *text, size_t len)
{
    if (len > work->limits.text_len_max || memchr(text, 'X', len) != NULL) {
        return PTK_VERDICT_TEXT_TOO_LONG;
    }
    return memchr(text, 0xFF, len) != NULL ? PTK_VERDICT_BAD_UTF8 : PTK_VERDICT_OK;
}

/* Bytes '|' of the item in ranges of ordinary text. */
static size_t byte_hits(const struct ptk_encode_request *request)
{
    size_t hits = 0;
    for (size_t i = 0; i < request->plain_count; i++) {
        for (size_t pos = request->plain[i].begin; pos < request->plain[i].end; pos++) {
            const uint8_t byte = pos < request->text_len ? request->text[pos]
                                                         : request->pair[pos - request->text_len];
            hits += byte == '|';
        }
    }
    return hits;
}

enum ptk_verdict ptk_tokenizer_encode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      struct ptk_cache *cache,
                                      const struct ptk_encode_request *request,
                                      struct ptk_encoding *out)
{
    const uint8_t *texts[2] = {request->text, request->pair};
    const size_t lens[2] = {request->text_len, request->pair_len};
    const size_t texts_count = request->pair != NULL ? 2 : 1;
    PTK_ASSERT(cache->resets > 0);
    if ((request->options & (PTK_WIRE_OPTIONS_BOS | PTK_WIRE_OPTIONS_EOS)) != 0) {
        return PTK_VERDICT_UNSUPPORTED;
    }
    for (size_t t = 0; t < texts_count; t++) {
        enum ptk_verdict verdict = byte_check(work, texts[t], lens[t]);
        if (verdict != PTK_VERDICT_OK) {
            return verdict;
        }
    }
    const bool special = (request->options & PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS) != 0;
    const uint32_t base = tokenizer->base;
    const struct ptk_span nowhere = {0, 0};
    bool fits = true;
    out->len = 0;
    if (special) {
        fits = byte_add(out, base + 256, nowhere, 0, 1);
    }
    for (size_t t = 0; t < texts_count; t++) {
        for (size_t i = 0; fits && i < lens[t]; i++) {
            const struct ptk_span span = {(uint32_t)i, (uint32_t)i + 1};
            fits = byte_add(out, base + texts[t][i], span, (uint8_t)t, 0);
        }
    }
    if (fits && special) {
        fits = byte_add(out, base + 257, nowhere, (uint8_t)(texts_count - 1), 1);
    }
    if (!fits) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    if (request->truncation != NULL && out->len > request->truncation->max_length) {
        out->len = request->truncation->max_length;
    }
    out->hits = byte_hits(request);
    return PTK_VERDICT_OK;
}

enum ptk_verdict ptk_tokenizer_encode_windows(const struct ptk_tokenizer *tokenizer,
                                              struct ptk_work *work, struct ptk_cache *cache,
                                              const struct ptk_encode_request *request,
                                              struct ptk_windows *windows, struct ptk_encoding *out)
{
    const size_t max = request->truncation->max_length;
    const size_t stride = request->truncation->stride;
    struct ptk_encode_request uncut = *request;
    struct ptk_encoding *whole = &windows->whole;
    uncut.truncation = NULL;
    /* Types and mask are made in the result's own arrays: there is room for the whole text. */
    whole->type_ids = out->type_ids;
    whole->special_tokens_mask = out->special_tokens_mask;
    whole->cap = ptk_min_size(whole->cap, out->cap);
    const enum ptk_verdict verdict = ptk_tokenizer_encode(tokenizer, work, cache, &uncut, whole);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (whole->len > max && stride >= max) {
        return PTK_VERDICT_BAD_OPTION;
    }
    out->len = 0;
    out->hits = whole->hits;
    windows->count = 0;
    for (size_t begin = 0;; begin += max - stride) {
        const size_t len = ptk_min_size(whole->len - begin, max);
        if (windows->count == windows->cap || len > out->cap - out->len) {
            return PTK_VERDICT_REPLY_TOO_LONG;
        }
        for (size_t i = 0; i < len; i++) {
            out->ids[out->len + i] = whole->ids[begin + i];
            if (out->offsets != NULL) {
                out->offsets[out->len + i] = whole->offsets[begin + i];
            }
            /* Only windows of one text are tested with these: all types are 0. */
            if (out->type_ids != NULL) {
                out->type_ids[out->len + i] = 0;
            }
            if (out->special_tokens_mask != NULL) {
                out->special_tokens_mask[out->len + i] =
                    whole->ids[begin + i] - tokenizer->base >= 256;
            }
        }
        out->len += len;
        windows->lens[windows->count] = (uint32_t)len;
        windows->count++;
        if (begin + len == whole->len) {
            return PTK_VERDICT_OK;
        }
    }
}

enum ptk_verdict ptk_tokenizer_count(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                     struct ptk_cache *cache,
                                     const struct ptk_encode_request *request, size_t *count,
                                     size_t *hits)
{
    struct ptk_encoding out = {.cap = SIZE_MAX};
    enum ptk_verdict verdict = ptk_tokenizer_encode(tokenizer, work, cache, request, &out);
    *count = out.len;
    *hits = out.hits;
    return verdict;
}

enum ptk_verdict ptk_tokenizer_decode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      const uint32_t *ids, size_t ids_len, uint32_t options,
                                      uint8_t *text, size_t cap, size_t *text_len)
{
    static const char *const specials[2] = {"<s>", "</s>"};
    (void)work;
    *text_len = 0;
    for (size_t i = 0; i < ids_len; i++) {
        const uint32_t unit = ids[i] - tokenizer->base;
        uint8_t byte = (uint8_t)unit;
        const void *bytes = &byte;
        size_t len = unit < 256 ? 1 : 0;
        if ((unit == 256 || unit == 257) && (options & PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS) == 0) {
            bytes = specials[unit - 256];
            len = strlen(bytes);
        }
        if (len > cap - *text_len) {
            return PTK_VERDICT_REPLY_TOO_LONG;
        }
        memcpy(text + *text_len, bytes, len);
        *text_len += len;
    }
    return PTK_VERDICT_OK;
}

enum ptk_verdict ptk_tokenizer_step(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                    const struct ptk_step_request *request, struct ptk_step *out)
{
    const size_t before = request->ids_count - request->new_count;
    const size_t given = request->given_count > 0 ? request->given_count : before;
    const bool waits = request->ids_count > 0 &&
                       request->ids[request->ids_count - 1] == tokenizer->base + '~' &&
                       !request->flush;
    out->text_len = 0;
    out->dropped_count = 0;
    out->given_count = given;
    if (waits) {
        return PTK_VERDICT_OK;
    }
    out->dropped_count = request->flush ? request->ids_count : given;
    out->given_count = request->ids_count - out->dropped_count;
    return ptk_tokenizer_decode(tokenizer, work, request->ids + given, request->ids_count - given,
                                request->options, out->text, out->cap, &out->text_len);
}

/* Three models whose ids need two, three and four bytes, in slots 0, 1 and 2. */
#define BYTE_MODELS 3

struct byte_models {
    struct ptk_models table;
    struct ptk_model models[BYTE_MODELS];
    struct ptk_tokenizer tokenizers[BYTE_MODELS];
    struct ptk_image images[BYTE_MODELS];
    struct ptk_image_header headers[BYTE_MODELS];
    struct ptk_image_config configs[BYTE_MODELS];
};

static inline void byte_models_init(struct byte_models *all)
{
    static const uint32_t bases[BYTE_MODELS] = {0, 1u << 16, 1u << 24};
    static const char name[] = "byte-level";
    memset(all, 0, sizeof *all);
    ptk_models_init(&all->table);
    for (uint32_t id = 0; id < BYTE_MODELS; id++) {
        all->tokenizers[id].base = bases[id];
        all->configs[id] = (struct ptk_image_config){
            .ids_end = bases[id] + 258,
            .vocab_len = 258,
            .bos_id = 256,
            .eos_id = 257,
            .pad_id = PTK_IMAGE_NONE,
            .unk_id = PTK_IMAGE_NONE,
        };
        for (size_t i = 0; i < sizeof all->headers[id].fingerprint; i++) {
            all->headers[id].fingerprint[i] = (uint8_t)i;
        }
        all->images[id].header = &all->headers[id];
        all->images[id].config = &all->configs[id];
        all->models[id] = (struct ptk_model){
            .tokenizer = &all->tokenizers[id],
            .image = &all->images[id],
            .generation = id + 1,
            .tag = 0x11111111u * (id + 1),
            .name_len = sizeof name - 1,
        };
        memcpy(all->models[id].name, name, sizeof name - 1);
        (void)ptk_models_set(&all->table, id, &all->models[id]);
    }
}

#endif
