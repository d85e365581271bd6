/*
 * One request at a time, run to completion, at one of several desks.
 *
 *     datagram ─parse─> view ─op─> ping · info · settings · encode · count · decode · decode_step
 *                               ─build─> reply
 *
 * Replies may be built over the request, so each operation first reads all it needs: encode and
 * count work into scratch and write at the end, decode and decode_step copy ids and item table
 * before they write text.
 *
 * A desk is the scratch of one request. Datagrams are worked on at desk 0; long messages have desks
 * of their own, so that datagrams can be answered while a long message is suspended.
 */
#include "serve/ptk_engine.h"

#include "base/ptk_pause.h"
#include "wire/ptk_wire_reply.h"
#include "wire/ptk_wire_request.h"

/* What the engine knows of a slot; the copy of the table that requests are answered from. */
struct slot {
    const struct ptk_model *model; /* NULL: no model */
    struct ptk_cache *cache;
    uint64_t generation; /* of the model the cache was emptied for; 0: none yet */
    void *cache_memory;
};

/* A request on its way through one operation. */
struct job {
    const struct ptk_wire_request_view *request;
    const struct ptk_wire_batch_view *batch;
    const struct slot *slot;
    uint8_t *message;     /* of the reply */
    size_t message_cap;   /* room there */
    uint32_t id_format;   /* encode: of the reply, never auto */
    size_t reply_len_max; /* batches: largest reply datagram the client accepts */
};

/* The scratch of one request. */
struct desk {
    struct ptk_work *work;
    size_t message_len_max; /* longest request */
    size_t ids_cap;
    uint32_t *ids; /* ids_cap of each */
    struct ptk_span *offsets;
    uint8_t *type_ids;
    uint8_t *special_tokens_mask;
    /* Encode with windows: the texts before they are cut, ids_cap ids. Steps: texts to compare. */
    struct ptk_span *whole_offsets;
    uint32_t *whole_ids;
    uint32_t *window_lens; /* windows_cap */
    size_t windows_cap;
    size_t windows_count;
    struct ptk_plain_range *ranges; /* of one item: PTK_WIRE_RANGES_MAX */
    struct ptk_wire_item items[PTK_WIRE_ITEMS_MAX];
    struct ptk_wire_step steps[PTK_WIRE_ITEMS_MAX];
    struct ptk_wire_step_state states[PTK_WIRE_ITEMS_MAX];
    /* A long message between run and build. */
    struct ptk_wire_request_view request;
    struct ptk_wire_batch_view batch;
    struct job job;
    size_t count; /* encode: ids; decode: bytes of text, which stand in `offsets` */
};

struct ptk_engine {
    struct ptk_engine_counters counters;
    struct ptk_engine_limits limits;
    const struct ptk_models *models;
    struct desk desks[1 + PTK_ENGINE_LONG_DESKS];
    uint32_t models_end;
    PTK_ALIGNED_LINE _Atomic uint64_t epoch_seen; /* written here, read by the main thread */
    PTK_ALIGNED_LINE struct slot slots[];         /* limits.models_cap */
};

_Static_assert(PTK_ENGINE_DATAGRAM_LEN_MAX <= UINT16_MAX, "short offsets hold every position");

/* Shortest encoding of an id on the wire: what bounds the ids of a datagram. */
#define ID_LEN_MIN 2u

/* Bytes for each id of a whole text: its offsets, then its id. */
#define WHOLE_LEN (sizeof(struct ptk_span) + sizeof(uint32_t))

/* A desk of a long message has a quarter of the room of the one before. */
#define LONG_SHIFT 2u

/* Ids beside one for each byte: special tokens, and items of no bytes. */
#define LONG_IDS_EXTRA 4096u

static size_t desk_message_len_max(const struct ptk_engine_limits *limits, size_t idx)
{
    return idx == 0 ? limits->datagram_len_max
                    : (size_t)limits->message_len_max >> LONG_SHIFT * (idx - 1);
}

static size_t desk_count(const struct ptk_engine_limits *limits)
{
    return limits->message_len_max == 0 ? 1 : 1 + PTK_ENGINE_LONG_DESKS;
}

static size_t desk_ids_cap(const struct ptk_engine_limits *limits, size_t idx)
{
    const size_t len = desk_message_len_max(limits, idx);
    return idx == 0 ? len / ID_LEN_MIN : len + LONG_IDS_EXTRA;
}

static struct ptk_work_limits work_limits(const struct ptk_engine_limits *limits, size_t idx)
{
    return (struct ptk_work_limits){.text_len_max = desk_message_len_max(limits, idx)};
}

static size_t place(size_t *end, size_t len)
{
    const size_t off = *end;
    *end = ptk_align_up(off + len, PTK_CACHE_LINE);
    return off;
}

static void check_limits(const struct ptk_engine_limits *limits)
{
    PTK_ASSERT(limits->datagram_len_max >= PTK_WIRE_INFO_REQUEST_LEN);
    PTK_ASSERT(limits->datagram_len_max <= PTK_ENGINE_DATAGRAM_LEN_MAX);
    PTK_ASSERT(limits->message_len_max <= PTK_WIRE_MESSAGE_LEN_MAX);
    PTK_ASSERT(limits->models_cap >= 1);
    PTK_ASSERT(limits->models_cap <= PTK_MODELS_CAP);
    PTK_ASSERT(limits->cache_len >= PTK_CACHE_LEN_MIN);
    PTK_ASSERT((limits->cache_len & (limits->cache_len - 1)) == 0);
}

/* Lays the engine out from offset 0 of `base`; with base NULL nothing is written. Returns the
 * bytes, and where the caches are. */
static size_t lay_out(uint8_t *base, const struct ptk_engine_limits *limits, size_t *caches_off)
{
    struct ptk_engine *engine = (void *)base;
    size_t end = 0;
    (void)place(&end, sizeof(struct ptk_engine) + limits->models_cap * sizeof(struct slot));
    for (size_t idx = 0; idx < desk_count(limits); idx++) {
        const struct ptk_work_limits work = work_limits(limits, idx);
        const size_t ids_cap = desk_ids_cap(limits, idx);
        const size_t ids_off = place(&end, ids_cap * sizeof(uint32_t));
        const size_t offsets_off = place(&end, ids_cap * sizeof(struct ptk_span));
        const size_t type_ids_off = place(&end, ids_cap);
        const size_t special_tokens_mask_off = place(&end, ids_cap);
        const size_t whole_off = place(&end, ids_cap * WHOLE_LEN);
        const size_t window_lens_off = place(&end, ids_cap / 2 * sizeof(uint32_t));
        const size_t ranges_off = place(&end, PTK_WIRE_RANGES_MAX * sizeof(struct ptk_plain_range));
        const size_t work_off = place(&end, ptk_work_len(&work));
        if (base != NULL) {
            struct desk *desk = &engine->desks[idx];
            desk->message_len_max = desk_message_len_max(limits, idx);
            desk->ids_cap = ids_cap;
            desk->ids = (uint32_t *)(void *)(base + ids_off);
            desk->offsets = (struct ptk_span *)(void *)(base + offsets_off);
            desk->type_ids = base + type_ids_off;
            desk->special_tokens_mask = base + special_tokens_mask_off;
            desk->whole_offsets = (struct ptk_span *)(void *)(base + whole_off);
            desk->whole_ids = (uint32_t *)(void *)(desk->whole_offsets + ids_cap);
            desk->window_lens = (uint32_t *)(void *)(base + window_lens_off);
            desk->windows_cap = ids_cap / 2;
            desk->ranges = (struct ptk_plain_range *)(void *)(base + ranges_off);
            desk->work = ptk_work_init(base + work_off, &work);
        }
    }
    *caches_off = place(&end, limits->models_cap * limits->cache_len);
    return end;
}

size_t ptk_engine_len(const struct ptk_engine_limits *limits)
{
    check_limits(limits);
    size_t caches_off;
    return lay_out(NULL, limits, &caches_off);
}

struct ptk_engine *ptk_engine_init(void *memory, const struct ptk_engine_limits *limits,
                                   const struct ptk_models *models)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    uint8_t *base = memory;
    /* Every page is touched here, so that none is missing later. */
    memset(base, 0, ptk_engine_len(limits));
    struct ptk_engine *engine = memory;
    engine->limits = *limits;
    engine->models = models;
    size_t caches_off;
    (void)lay_out(base, limits, &caches_off);
    atomic_init(&engine->epoch_seen, 0);
    for (size_t id = 0; id < limits->models_cap; id++) {
        engine->slots[id].cache_memory = base + caches_off + id * limits->cache_len;
    }
    ptk_engine_refresh(engine);
    return engine;
}

void ptk_engine_refresh(struct ptk_engine *engine)
{
    const uint64_t epoch = atomic_load_explicit(&engine->models->epoch, memory_order_acquire);
    if (PTK_LIKELY(epoch == atomic_load_explicit(&engine->epoch_seen, memory_order_relaxed))) {
        return;
    }
    engine->models_end = 0;
    for (uint32_t id = 0; id < engine->limits.models_cap; id++) {
        struct slot *slot = &engine->slots[id];
        slot->model = atomic_load_explicit(&engine->models->slots[id], memory_order_acquire);
        if (slot->model == NULL) {
            continue;
        }
        engine->models_end = id + 1;
        if (slot->model->generation != slot->generation) {
            slot->cache = ptk_cache_init(slot->cache_memory, engine->limits.cache_len);
            slot->generation = slot->model->generation;
            engine->counters.cache_resets++;
        }
    }
    atomic_store_explicit(&engine->epoch_seen, epoch, memory_order_release);
}

uint64_t ptk_engine_epoch_seen(const struct ptk_engine *engine)
{
    return atomic_load_explicit(&engine->epoch_seen, memory_order_acquire);
}

void ptk_engine_counters_resume(struct ptk_engine *engine,
                                const struct ptk_engine_counters *counters)
{
    engine->counters = *counters;
}

const struct ptk_engine_counters *ptk_engine_counters(const struct ptk_engine *engine)
{
    return &engine->counters;
}

/* Reply message of info; returns its length, 0 when it does not fit. */
static size_t build_info(const struct ptk_engine *engine, const struct job *job)
{
    const struct ptk_model *model = job->slot->model;
    const struct ptk_image_config *config = model->image->config;
    struct ptk_wire_info info = {
        .ids_end = config->ids_end,
        .vocab_len = config->vocab_len,
        .bos_id = config->bos_id,
        .eos_id = config->eos_id,
        .pad_id = config->pad_id,
        .unk_id = config->unk_id,
        .message_len_max = (uint32_t)ptk_max_size(
            engine->limits.message_len_max, engine->limits.datagram_len_max - PTK_WIRE_HEADER_LEN),
        .datagram_len_max = engine->limits.datagram_len_max,
        .ops = 1u << PTK_WIRE_OP_PING | 1u << PTK_WIRE_OP_INFO | 1u << PTK_WIRE_OP_ENCODE |
               1u << PTK_WIRE_OP_DECODE | 1u << PTK_WIRE_OP_COUNT | 1u << PTK_WIRE_OP_DECODE_STEP |
               1u << PTK_WIRE_OP_SETTINGS,
        .id_formats = 1u << PTK_ID_FORMAT_AUTO | 1u << PTK_ID_FORMAT_U32,
        .name_off = sizeof info,
        .name_len = (uint16_t)model->name_len,
        .models_end = (uint16_t)engine->models_end,
        .source = (uint16_t)model->image->header->source,
    };
    const uint32_t narrowest = ptk_wire_id_format_auto(config->ids_end);
    for (uint32_t id_format = narrowest; id_format < PTK_ID_FORMAT_U32; id_format++) {
        info.id_formats |= 1u << id_format;
    }
    memcpy(info.fingerprint, model->image->header->fingerprint, sizeof info.fingerprint);

    const size_t padded_len = ptk_align_up(model->name_len, 8);
    if (sizeof info + padded_len > job->message_cap) {
        return 0;
    }
    uint8_t *message = job->message;
    memcpy(message, &info, sizeof info);
    memcpy(message + sizeof info, model->name, model->name_len);
    memset(message + sizeof info + model->name_len, 0, padded_len - model->name_len);
    return sizeof info + padded_len;
}

/* Reply message of settings; returns its length, 0 when it does not fit. */
static size_t build_settings(const struct job *job)
{
    const struct ptk_image_config *config = job->slot->model->image->config;
    struct ptk_wire_settings settings = {.flags = 0};
    if ((config->flags & PTK_IMAGE_FLAGS_HAS_TRUNCATION) != 0) {
        settings.flags |= PTK_WIRE_SETTINGS_FLAGS_TRUNCATION;
        settings.truncation_max = config->truncation_max;
        settings.truncation_stride = config->truncation_stride;
        settings.truncation_strategy = (uint8_t)config->truncation_kind;
        settings.truncation_direction = (uint8_t)(config->truncation_kind >> 8);
    }
    if ((config->flags & PTK_IMAGE_FLAGS_HAS_PADDING) != 0) {
        const bool fixed = (config->padding_kind & 1) != 0;
        settings.flags |= PTK_WIRE_SETTINGS_FLAGS_PADDING |
                          (fixed ? (uint32_t)PTK_WIRE_SETTINGS_FLAGS_PADDING_FIXED : 0);
        settings.padding_direction = (uint8_t)(config->padding_kind >> 8);
        settings.padding_type_id = (uint8_t)config->padding_type_id;
        settings.padding_id = config->padding_id;
        settings.padding_len = config->padding_len;
        settings.padding_multiple = config->padding_multiple;
    }
    if (sizeof settings > job->message_cap) {
        return 0;
    }
    memcpy(job->message, &settings, sizeof settings);
    return sizeof settings;
}

/* The ranges of ordinary text of an item, from `*next` on, in the form of the core. */
static void item_ranges(struct desk *desk, const struct ptk_wire_batch_view *batch, size_t item_idx,
                        const uint8_t **next, struct ptk_encode_request *request)
{
    if (PTK_LIKELY(batch->ranges == NULL)) {
        return;
    }
    request->plain = desk->ranges;
    request->plain_count = ptk_wire_batch_range_count_at(batch, item_idx);
    for (size_t i = 0; i < request->plain_count; i++) {
        const uint32_t begin = ptk_load_u32(*next);
        const uint32_t len_all = ptk_load_u32(*next + 4);
        desk->ranges[i] = (struct ptk_plain_range){
            .begin = begin, .end = begin + (len_all >> 1), .all = (len_all & 1) != 0};
        *next += sizeof(struct ptk_wire_range);
    }
}

/* The request for item `item_idx`; `*text` moves behind its bytes. */
static struct ptk_encode_request item_request(const struct ptk_wire_batch_view *batch,
                                              size_t item_idx, const uint8_t **text)
{
    struct ptk_encode_request request = {
        .options = batch->prelude.options,
        .outputs = batch->prelude.outputs,
    };
    if ((request.options & PTK_WIRE_OPTIONS_TRUNCATION) != 0) {
        request.truncation = &batch->truncation;
    }
    const bool pair = (request.options & PTK_WIRE_OPTIONS_PAIR) != 0;
    request.text = *text;
    request.text_len = ptk_wire_batch_len_at(batch, pair ? 2 * item_idx : item_idx);
    *text += request.text_len;
    if (pair) {
        request.pair = *text;
        request.pair_len = ptk_wire_batch_len_at(batch, 2 * item_idx + 1);
        *text += request.pair_len;
    }
    return request;
}

static void note_item(struct ptk_engine *engine, struct desk *desk, size_t item_idx,
                      enum ptk_verdict verdict, size_t count, size_t hits)
{
    const bool ok = verdict == PTK_VERDICT_OK;
    desk->items[item_idx] = (struct ptk_wire_item){
        .count = ok ? (uint32_t)count : 0,
        .verdict = (uint8_t)verdict,
        .hits = ok ? (uint8_t)ptk_min_size(hits, UINT8_MAX) : 0,
    };
    engine->counters.item_verdicts[verdict]++;
    engine->counters.plain_hits += ok ? hits : 0;
}

/* Prelude and item table of a batch reply. */
static void build_items(const struct desk *desk, const struct job *job, uint32_t id_format)
{
    const struct ptk_wire_request *asked = &job->batch->prelude;
    const struct ptk_wire_reply prelude = {
        .id_format = (uint8_t)id_format,
        .outputs = asked->outputs,
        .item_count = asked->item_count,
    };
    uint8_t *message = job->message;
    memcpy(message, &prelude, sizeof prelude);
    memcpy(message + sizeof prelude, desk->items, asked->item_count * sizeof(struct ptk_wire_item));
}

/* Ids between two pauses: a few microseconds. */
#define STEP_IDS ((size_t)4096)

static size_t build_ids(uint8_t *dst, const uint32_t *ids, size_t count, uint32_t id_format)
{
    size_t len = 0;
    for (size_t off = 0; off < count; off += STEP_IDS) {
        len += ptk_wire_ids_build(ids + off, ptk_min_size(count - off, STEP_IDS), id_format,
                                  dst + len);
        ptk_pause_point();
    }
    return len;
}

/* Writes an array and its padding to 8 bytes. */
static void build_bytes(uint8_t *dst, const uint8_t *src, size_t len)
{
    ptk_pause_copy(dst, src, len);
    memset(dst + len, 0, ptk_align_up(len, 8) - len);
}

/* Writes offsets in the width that `outputs` asks for, and their padding. */
static void build_offsets(uint8_t *dst, const struct ptk_span *offsets, size_t count,
                          uint32_t outputs)
{
    if (ptk_wire_offset_len(outputs) == sizeof *offsets) {
        ptk_pause_copy(dst, offsets, count * sizeof *offsets);
        return;
    }
    /* No text of one datagram reaches 64 KiB; long messages may not ask for short offsets. */
    for (size_t idx = 0; idx < count; idx++) {
        PTK_DCHECK(offsets[idx].end <= UINT16_MAX);
        ptk_store_u32(dst + 4 * idx, offsets[idx].begin | offsets[idx].end << 16);
    }
    memset(dst + 4 * count, 0, ptk_align_up(4 * count, 8) - 4 * count);
}

/* Encodes an item to windows, behind the `ids_before` ids and the windows of the items before. */
static enum ptk_verdict encode_windows(struct desk *desk, const struct job *job,
                                       const struct ptk_encode_request *request, size_t ids_before,
                                       struct ptk_encoding *encoding)
{
    const struct ptk_wire_request *prelude = &job->batch->prelude;
    struct ptk_windows windows = {
        .whole = {.ids = desk->whole_ids,
                  .offsets = encoding->offsets != NULL ? desk->whole_offsets : NULL,
                  .cap = desk->ids_cap},
        .lens = desk->window_lens + desk->windows_count,
        .cap = ptk_min_size(desk->windows_cap - desk->windows_count, UINT16_MAX),
    };
    const enum ptk_verdict verdict = ptk_tokenizer_encode_windows(
        job->slot->model->tokenizer, desk->work, job->slot->cache, request, &windows, encoding);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const size_t windows_count = desk->windows_count + windows.count;
    const struct ptk_wire_encode_layout layout =
        ptk_wire_encode_layout(ptk_wire_windows_len(prelude->item_count, windows_count),
                               ids_before + encoding->len, job->id_format, prelude->outputs);
    if (layout.message_len > job->message_cap) {
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    desk->windows_count = windows_count;
    return PTK_VERDICT_OK;
}

/* Encodes every item into the desk's arrays, at most `cap` ids in all. Returns how many there are.
 */
static size_t encode_items(struct ptk_engine *engine, struct desk *desk, const struct job *job,
                           size_t cap)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint32_t outputs = batch->prelude.outputs;
    const bool overflow = (batch->prelude.options & PTK_WIRE_OPTIONS_OVERFLOW) != 0;
    PTK_ASSERT(cap <= desk->ids_cap);
    const uint8_t *text = batch->data;
    const uint8_t *range = batch->ranges;
    size_t count = 0;
    desk->windows_count = 0;
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        ptk_pause_point();
        struct ptk_encode_request request = item_request(batch, idx, &text);
        item_ranges(desk, batch, idx, &range, &request);
        struct ptk_encoding encoding = {
            .ids = desk->ids + count,
            .offsets = (outputs & PTK_WIRE_OUTPUTS_OFFSETS) != 0 ? desk->offsets + count : NULL,
            .type_ids = (outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0 ? desk->type_ids + count : NULL,
            .special_tokens_mask = (outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0
                                       ? desk->special_tokens_mask + count
                                       : NULL,
            .cap = cap - count,
        };
        const size_t windows_before = desk->windows_count;
        const enum ptk_verdict verdict =
            overflow ? encode_windows(desk, job, &request, count, &encoding)
                     : ptk_tokenizer_encode(job->slot->model->tokenizer, desk->work,
                                            job->slot->cache, &request, &encoding);
        note_item(engine, desk, idx, verdict, encoding.len, encoding.hits);
        desk->items[idx].window_count = (uint16_t)(desk->windows_count - windows_before);
        count += desk->items[idx].count;
        PTK_ASSERT(count <= cap);
    }
    engine->counters.text_bytes += batch->data_len;
    engine->counters.ids += count;
    return count;
}

/* The layout of what encode_items left in the desk. */
static struct ptk_wire_encode_layout encode_layout(const struct desk *desk, const struct job *job,
                                                   size_t count)
{
    const struct ptk_wire_request *prelude = &job->batch->prelude;
    return ptk_wire_encode_layout(ptk_wire_windows_len(prelude->item_count, desk->windows_count),
                                  count, job->id_format, prelude->outputs);
}

/* Writes what encode_items left in the desk; returns the length of the message. */
static size_t build_encode(const struct desk *desk, const struct job *job, size_t count)
{
    const uint32_t outputs = job->batch->prelude.outputs;
    const struct ptk_wire_encode_layout layout = encode_layout(desk, job, count);
    uint8_t *message = job->message;
    build_items(desk, job, job->id_format);
    build_bytes(message + ptk_wire_items_len(job->batch->prelude.item_count),
                (const uint8_t *)desk->window_lens,
                desk->windows_count * sizeof *desk->window_lens);
    const size_t ids_end =
        layout.ids_off + build_ids(message + layout.ids_off, desk->ids, count, job->id_format);
    memset(message + ids_end, 0, layout.offsets_off - ids_end);
    if ((outputs & PTK_WIRE_OUTPUTS_OFFSETS) != 0) {
        build_offsets(message + layout.offsets_off, desk->offsets, count, outputs);
    }
    if ((outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0) {
        build_bytes(message + layout.type_ids_off, desk->type_ids, count);
    }
    if ((outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0) {
        build_bytes(message + layout.special_tokens_mask_off, desk->special_tokens_mask, count);
    }
    return layout.message_len;
}

static size_t handle_encode(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    const struct ptk_wire_request *prelude = &job->batch->prelude;
    const size_t cap = ptk_wire_encode_cap(ptk_wire_items_len(prelude->item_count),
                                           job->message_cap, job->id_format, prelude->outputs);
    return build_encode(desk, job, encode_items(engine, desk, job, cap));
}

static void count_items(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint8_t *text = batch->data;
    const uint8_t *range = batch->ranges;
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        ptk_pause_point();
        struct ptk_encode_request request = item_request(batch, idx, &text);
        item_ranges(desk, batch, idx, &range, &request);
        size_t count = 0;
        size_t hits = 0;
        const enum ptk_verdict verdict = ptk_tokenizer_count(
            job->slot->model->tokenizer, desk->work, job->slot->cache, &request, &count, &hits);
        note_item(engine, desk, idx, verdict, count, hits);
        engine->counters.ids += desk->items[idx].count;
    }
    engine->counters.text_bytes += batch->data_len;
}

static size_t handle_count(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    count_items(engine, desk, job);
    build_items(desk, job, PTK_ID_FORMAT_AUTO);
    return ptk_wire_items_len(job->batch->prelude.item_count);
}

/*
 * Decodes every item into `text`, one after another, at most `text_cap` bytes; returns how many
 * there are. `text` may lie over the request: its item table and ids are read before.
 */
static size_t decode_items(struct ptk_engine *engine, struct desk *desk, const struct job *job,
                           uint8_t *text, size_t text_cap)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const size_t item_count = batch->prelude.item_count;
    const size_t id_len = ptk_wire_id_len(batch->prelude.id_format);
    const size_t ids_count = batch->data_len / id_len;
    PTK_ASSERT(ids_count <= desk->ids_cap);
    for (size_t off = 0; off < ids_count; off += STEP_IDS) {
        ptk_wire_ids_parse(batch->data + off * id_len, ptk_min_size(ids_count - off, STEP_IDS),
                           batch->prelude.id_format, desk->ids + off);
        ptk_pause_point();
    }
    for (size_t idx = 0; idx < item_count; idx++) {
        desk->items[idx].count = ptk_wire_batch_len_at(batch, idx);
    }
    const uint32_t *ids = desk->ids;
    size_t off = 0;
    for (size_t idx = 0; idx < item_count; idx++) {
        ptk_pause_point();
        const size_t ids_len = desk->items[idx].count;
        size_t text_len = 0;
        const enum ptk_verdict verdict =
            ptk_tokenizer_decode(job->slot->model->tokenizer, desk->work, ids, ids_len,
                                 batch->prelude.options, text + off, text_cap - off, &text_len);
        ids += ids_len;
        note_item(engine, desk, idx, verdict, text_len, 0);
        off += desk->items[idx].count;
        PTK_ASSERT(off <= text_cap);
    }
    engine->counters.ids += ids_count;
    engine->counters.text_bytes += off;
    return off;
}

/* Item table and padding around the `text_len` bytes of text in the message. */
static size_t build_decode(const struct desk *desk, const struct job *job, size_t text_len)
{
    const size_t end = ptk_wire_items_len(job->batch->prelude.item_count) + text_len;
    build_items(desk, job, PTK_ID_FORMAT_AUTO);
    memset(job->message + end, 0, ptk_align_up(end, 8) - end);
    return ptk_align_up(end, 8);
}

static size_t handle_decode(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    const size_t text_off = ptk_wire_items_len(job->batch->prelude.item_count);
    const size_t text_cap = job->message_cap / 8 * 8 - text_off; /* room for the padding */
    const size_t text_len = decode_items(engine, desk, job, job->message + text_off, text_cap);
    return build_decode(desk, job, text_len);
}

/* One step of one stream. */
static void step_item(struct ptk_engine *engine, struct desk *desk, const struct job *job,
                      size_t item_idx, const uint32_t *ids, struct ptk_step *step)
{
    const struct ptk_wire_step *asked = &desk->steps[item_idx];
    const struct ptk_step_request request = {
        .ids = ids,
        .ids_count = asked->ids_count,
        .given_count = asked->given_count,
        .new_count = asked->new_count,
        .options = job->batch->prelude.options,
        .flush = (asked->flags & PTK_WIRE_STEP_FLAGS_FLUSH) != 0,
        .scratch = (uint8_t *)desk->whole_offsets,
        .scratch_cap = desk->ids_cap * WHOLE_LEN,
    };
    const enum ptk_verdict verdict =
        ptk_tokenizer_step(job->slot->model->tokenizer, desk->work, &request, step);
    const bool ok = verdict == PTK_VERDICT_OK;
    note_item(engine, desk, item_idx, verdict, step->text_len, 0);
    desk->states[item_idx] = (struct ptk_wire_step_state){
        .dropped_count = ok ? (uint16_t)step->dropped_count : 0,
        .given_count = ok ? (uint16_t)step->given_count : 0,
    };
}

/* As decode_items, for steps: the text that each gives, and what it leaves of its window. */
static size_t step_items(struct ptk_engine *engine, struct desk *desk, const struct job *job,
                         uint8_t *text, size_t text_cap)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const size_t item_count = batch->prelude.item_count;
    const size_t ids_count = batch->data_len / ptk_wire_id_len(batch->prelude.id_format);
    PTK_ASSERT(ids_count <= desk->ids_cap);
    ptk_wire_ids_parse(batch->data, ids_count, batch->prelude.id_format, desk->ids);
    memcpy(desk->steps, batch->lengths, item_count * sizeof *desk->steps);
    const uint32_t *ids = desk->ids;
    size_t off = 0;
    for (size_t idx = 0; idx < item_count; idx++) {
        ptk_pause_point();
        struct ptk_step step = {.text = text + off, .cap = text_cap - off};
        step_item(engine, desk, job, idx, ids, &step);
        ids += desk->steps[idx].ids_count;
        off += desk->items[idx].count;
        PTK_ASSERT(off <= text_cap);
    }
    engine->counters.ids += ids_count;
    engine->counters.text_bytes += off;
    return off;
}

/* As build_decode. */
static size_t build_steps(const struct desk *desk, const struct job *job, size_t text_len)
{
    const size_t item_count = job->batch->prelude.item_count;
    const size_t end = ptk_wire_steps_len(item_count) + text_len;
    build_items(desk, job, PTK_ID_FORMAT_AUTO);
    build_bytes(job->message + ptk_wire_items_len(item_count), (const uint8_t *)desk->states,
                item_count * sizeof *desk->states);
    memset(job->message + end, 0, ptk_align_up(end, 8) - end);
    return ptk_align_up(end, 8);
}

static size_t handle_steps(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    const size_t text_off = ptk_wire_steps_len(job->batch->prelude.item_count);
    const size_t text_cap = job->message_cap / 8 * 8 - text_off; /* room for the padding */
    const size_t text_len = step_items(engine, desk, job, job->message + text_off, text_cap);
    return build_steps(desk, job, text_len);
}

/* What all batches have in common before their work: parses the message into `batch`. */
static enum ptk_verdict prepare_batch(struct job *job, struct ptk_wire_batch_view *batch)
{
    const enum ptk_verdict verdict = ptk_wire_batch_parse(job->request, batch);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const uint32_t narrowest = ptk_wire_id_format_auto(job->slot->model->image->config->ids_end);
    job->batch = batch;
    job->id_format =
        batch->prelude.id_format == PTK_ID_FORMAT_AUTO ? narrowest : batch->prelude.id_format;
    if (job->request->header.op == PTK_WIRE_OP_ENCODE && job->id_format < narrowest) {
        return PTK_VERDICT_BAD_FORMAT;
    }
    if (batch->prelude.reply_len_max != 0) {
        job->reply_len_max = batch->prelude.reply_len_max;
    }
    return PTK_VERDICT_OK;
}

/* The shortest message that answers a batch: its tables. */
static size_t tables_len_min(const struct job *job)
{
    const size_t item_count = job->batch->prelude.item_count;
    return job->request->header.op == PTK_WIRE_OP_DECODE_STEP ? ptk_wire_steps_len(item_count)
                                                              : ptk_wire_items_len(item_count);
}

/* Encode, count, decode and decode_step; 0 and a verdict for a refusal. */
static size_t handle_batch(struct ptk_engine *engine, struct job *job, enum ptk_verdict *verdict)
{
    struct desk *desk = &engine->desks[0];
    struct ptk_wire_batch_view batch;
    *verdict = prepare_batch(job, &batch);
    if (*verdict != PTK_VERDICT_OK) {
        return 0;
    }
    const size_t tables_len = tables_len_min(job);
    if (job->reply_len_max < PTK_WIRE_HEADER_LEN + tables_len) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    job->message_cap = ptk_min_size(job->message_cap, job->reply_len_max - PTK_WIRE_HEADER_LEN);
    if (job->message_cap < tables_len) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    switch (job->request->header.op) {
    case PTK_WIRE_OP_ENCODE:
        return handle_encode(engine, desk, job);
    case PTK_WIRE_OP_COUNT:
        return handle_count(engine, desk, job);
    case PTK_WIRE_OP_DECODE_STEP:
        return handle_steps(engine, desk, job);
    default:
        PTK_ASSERT(job->request->header.op == PTK_WIRE_OP_DECODE);
        return handle_decode(engine, desk, job);
    }
}

/* Copies forwards, to where nothing of the source is overwritten before it is read. */
static void move_down(uint8_t *to, const uint8_t *from, size_t len)
{
    size_t pos = 0;
    for (; pos + 8 <= len; pos += 8) {
        ptk_store_u64(to + pos, ptk_load_u64(from + pos));
    }
    for (; pos < len; pos++) {
        to[pos] = from[pos];
    }
}

static size_t handle_ping(const struct job *job, enum ptk_verdict *verdict)
{
    const struct ptk_wire_request_view *request = job->request;
    if (request->header.model_id != 0 || request->header.model_tag != PTK_WIRE_ANY_MODEL_TAG) {
        *verdict = PTK_VERDICT_BAD_OPTION;
        return 0;
    }
    if (request->message_len > job->message_cap) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    /* In place the message is where it belongs, or behind that by the extensions. */
    if (request->message != job->message) {
        move_down(job->message, request->message, request->message_len);
    }
    return request->message_len;
}

/* Info and settings, whose message is room for the reply. */
static size_t handle_info(const struct ptk_engine *engine, struct job *job,
                          enum ptk_verdict *verdict)
{
    const struct ptk_wire_request_view *request = job->request;
    if (request->message_len % 8 != 0) {
        *verdict = PTK_VERDICT_BAD_LENGTH;
        return 0;
    }
    if (!ptk_wire_is_zero(request->message, request->message_len)) {
        *verdict = PTK_VERDICT_BAD_FLAGS;
        return 0;
    }
    job->message_cap = ptk_min_size(job->message_cap, request->message_len);
    const size_t message_len =
        request->header.op == PTK_WIRE_OP_INFO ? build_info(engine, job) : build_settings(job);
    if (message_len == 0) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
    }
    return message_len;
}

/* The slot a request names; NULL and a verdict when it cannot be used. */
static const struct slot *find_slot(const struct ptk_engine *engine,
                                    const struct ptk_wire_header *header, uint32_t *model_tag,
                                    enum ptk_verdict *verdict)
{
    if (header->model_id >= engine->limits.models_cap ||
        engine->slots[header->model_id].model == NULL) {
        *verdict = PTK_VERDICT_UNKNOWN_MODEL;
        return NULL;
    }
    const struct slot *slot = &engine->slots[header->model_id];
    *model_tag = slot->model->tag;
    if (header->model_tag != PTK_WIRE_ANY_MODEL_TAG && header->model_tag != *model_tag) {
        *verdict = PTK_VERDICT_MODEL_CHANGED;
        return NULL;
    }
    return slot;
}

size_t ptk_engine_handle(struct ptk_engine *engine, const uint8_t *datagram, size_t len,
                         uint8_t *reply, size_t reply_cap, enum ptk_verdict *verdict)
{
    PTK_ASSERT(reply_cap >= PTK_ENGINE_REPLY_CAP_MIN);
    struct ptk_wire_request_view request;
    uint32_t model_tag = 0;
    bool answer;
    *verdict = ptk_wire_request_parse(datagram, len, &request, &answer);
    if (*verdict == PTK_VERDICT_OK && len > engine->limits.datagram_len_max) {
        *verdict = PTK_VERDICT_TEXT_TOO_LONG;
    }
    size_t message_len = 0;
    if (*verdict == PTK_VERDICT_OK) {
        struct job job = {
            .request = &request,
            .message = reply + PTK_WIRE_HEADER_LEN,
            .message_cap =
                ptk_min_size(reply_cap, engine->limits.datagram_len_max) - PTK_WIRE_HEADER_LEN,
            .reply_len_max = len,
        };
        engine->counters.requests[request.header.op]++;
        if (request.header.op == PTK_WIRE_OP_PING) {
            message_len = handle_ping(&job, verdict);
        } else {
            job.slot = find_slot(engine, &request.header, &model_tag, verdict);
            if (job.slot != NULL) {
                const uint32_t op = request.header.op;
                message_len = op == PTK_WIRE_OP_INFO || op == PTK_WIRE_OP_SETTINGS
                                  ? handle_info(engine, &job, verdict)
                                  : handle_batch(engine, &job, verdict);
            }
        }
    }
    engine->counters.verdicts[*verdict]++;
    if (*verdict == PTK_VERDICT_OK) {
        return ptk_wire_answer_build(&request.header, model_tag, message_len, reply);
    }
    return answer ? ptk_wire_refusal_build(&request.header, *verdict, model_tag, reply) : 0;
}

/* --- long messages --------------------------------------------------------------------------- */

bool ptk_engine_long_fits(const struct ptk_engine *engine, uint32_t desk_idx, size_t message_len)
{
    PTK_ASSERT(desk_idx < PTK_ENGINE_LONG_DESKS);
    return message_len <= engine->desks[1 + desk_idx].message_len_max;
}

/* The work of a long message at its desk; the length of the reply it makes. */
static size_t run_long(struct ptk_engine *engine, struct desk *desk)
{
    const struct job *job = &desk->job;
    const struct ptk_wire_request *prelude = &job->batch->prelude;
    const size_t tables_len = tables_len_min(job);
    /* The offsets, which text has not, are the largest array. */
    const size_t text_cap =
        ptk_min_size(desk->ids_cap * sizeof *desk->offsets, job->message_cap / 8 * 8 - tables_len);
    switch (job->request->header.op) {
    case PTK_WIRE_OP_ENCODE: {
        const size_t cap =
            ptk_wire_encode_cap(tables_len, job->message_cap, job->id_format, prelude->outputs);
        desk->count = encode_items(engine, desk, job, ptk_min_size(cap, desk->ids_cap));
        return encode_layout(desk, job, desk->count).message_len;
    }
    case PTK_WIRE_OP_COUNT:
        count_items(engine, desk, job);
        return tables_len;
    case PTK_WIRE_OP_DECODE_STEP:
        desk->count = step_items(engine, desk, job, (uint8_t *)desk->offsets, text_cap);
        return ptk_align_up(tables_len + desk->count, 8);
    default:
        PTK_ASSERT(job->request->header.op == PTK_WIRE_OP_DECODE);
        desk->count = decode_items(engine, desk, job, (uint8_t *)desk->offsets, text_cap);
        return ptk_align_up(tables_len + desk->count, 8);
    }
}

enum ptk_verdict ptk_engine_long_run(struct ptk_engine *engine, uint32_t desk_idx,
                                     const struct ptk_engine_long *input,
                                     struct ptk_engine_long_reply *reply)
{
    PTK_ASSERT(ptk_engine_long_fits(engine, desk_idx, input->message_len));
    struct desk *desk = &engine->desks[1 + desk_idx];
    desk->request = (struct ptk_wire_request_view){
        .header = input->header, .message = input->message, .message_len = input->message_len};
    desk->job = (struct job){.request = &desk->request,
                             .message_cap = input->reply_message_len_max,
                             .reply_len_max = PTK_WIRE_HEADER_LEN + input->header.segment_len};
    *reply = (struct ptk_engine_long_reply){0};
    engine->counters.requests[input->header.op]++;
    enum ptk_verdict verdict = PTK_VERDICT_OK;
    desk->job.slot = find_slot(engine, &input->header, &reply->model_tag, &verdict);
    if (desk->job.slot != NULL) {
        verdict = prepare_batch(&desk->job, &desk->batch);
    }
    if (verdict == PTK_VERDICT_OK &&
        (desk->batch.prelude.outputs & PTK_WIRE_OUTPUTS_OFFSETS_SHORT) != 0 &&
        desk->batch.data_len > UINT16_MAX) {
        verdict = PTK_VERDICT_BAD_OPTION;
    }
    if (verdict == PTK_VERDICT_OK) {
        reply->datagram_len_max = desk->job.reply_len_max;
        reply->message_len = run_long(engine, desk);
        PTK_ASSERT(reply->message_len <= input->reply_message_len_max);
    }
    engine->counters.verdicts[verdict]++;
    return verdict;
}

void ptk_engine_long_build(struct ptk_engine *engine, uint32_t desk_idx, uint8_t *message)
{
    struct desk *desk = &engine->desks[1 + desk_idx];
    struct job *job = &desk->job;
    job->message = message;
    switch (job->request->header.op) {
    case PTK_WIRE_OP_ENCODE:
        (void)build_encode(desk, job, desk->count);
        break;
    case PTK_WIRE_OP_COUNT:
        build_items(desk, job, PTK_ID_FORMAT_AUTO);
        break;
    case PTK_WIRE_OP_DECODE_STEP:
        ptk_pause_copy(message + tables_len_min(job), desk->offsets, desk->count);
        (void)build_steps(desk, job, desk->count);
        break;
    default:
        ptk_pause_copy(message + tables_len_min(job), desk->offsets, desk->count);
        (void)build_decode(desk, job, desk->count);
        break;
    }
}
