/*
 * One request at a time, run to completion, at one of several desks.
 *
 *     datagram ─parse─> view ─op─> ping · info · encode · count · decode ─build─> reply
 *
 * Replies may be built over the request, so each operation first reads all it needs: encode and
 * count work into scratch and write at the end, decode widens its ids before it writes text.
 *
 * A desk is the scratch of one request. Datagrams are worked on at desk 0; long messages have desks
 * of their own, so that datagrams can be answered while a long message is suspended.
 */
#include "serve/ptk_engine.h"

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
    struct ptk_wire_item items[PTK_WIRE_ITEMS_MAX];
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
    return (struct ptk_work_limits){.text_len_max = desk_message_len_max(limits, idx),
                                    .offsets = true};
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
        const size_t work_off = place(&end, ptk_work_len(&work));
        if (base != NULL) {
            struct desk *desk = &engine->desks[idx];
            desk->message_len_max = desk_message_len_max(limits, idx);
            desk->ids_cap = ids_cap;
            desk->ids = (uint32_t *)(void *)(base + ids_off);
            desk->offsets = (struct ptk_span *)(void *)(base + offsets_off);
            desk->type_ids = base + type_ids_off;
            desk->special_tokens_mask = base + special_tokens_mask_off;
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
               1u << PTK_WIRE_OP_DECODE | 1u << PTK_WIRE_OP_COUNT,
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
                      enum ptk_verdict verdict, size_t count)
{
    desk->items[item_idx] = (struct ptk_wire_item){
        .count = verdict == PTK_VERDICT_OK ? (uint32_t)count : 0,
        .verdict = (uint8_t)verdict,
    };
    engine->counters.item_verdicts[verdict]++;
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

/* Writes an array and its padding to 8 bytes. */
static void build_bytes(uint8_t *dst, const uint8_t *src, size_t len)
{
    memcpy(dst, src, len);
    memset(dst + len, 0, ptk_align_up(len, 8) - len);
}

/* Writes offsets in the width that `outputs` asks for, and their padding. */
static void build_offsets(uint8_t *dst, const struct ptk_span *offsets, size_t count,
                          uint32_t outputs)
{
    if (ptk_wire_offset_len(outputs) == sizeof *offsets) {
        memcpy(dst, offsets, count * sizeof *offsets);
        return;
    }
    /* No text of one datagram reaches 64 KiB; long messages may not ask for short offsets. */
    for (size_t idx = 0; idx < count; idx++) {
        PTK_DCHECK(offsets[idx].end <= UINT16_MAX);
        ptk_store_u32(dst + 4 * idx, offsets[idx].begin | offsets[idx].end << 16);
    }
    memset(dst + 4 * count, 0, ptk_align_up(4 * count, 8) - 4 * count);
}

/* Encodes every item into the desk's arrays, at most `cap` ids in all. Returns how many there are.
 */
static size_t encode_items(struct ptk_engine *engine, struct desk *desk, const struct job *job,
                           size_t cap)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint32_t outputs = batch->prelude.outputs;
    PTK_ASSERT(cap <= desk->ids_cap);
    const uint8_t *text = batch->data;
    size_t count = 0;
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        const struct ptk_encode_request request = item_request(batch, idx, &text);
        struct ptk_encoding encoding = {
            .ids = desk->ids + count,
            .offsets = (outputs & PTK_WIRE_OUTPUTS_OFFSETS) != 0 ? desk->offsets + count : NULL,
            .type_ids = (outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0 ? desk->type_ids + count : NULL,
            .special_tokens_mask = (outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0
                                       ? desk->special_tokens_mask + count
                                       : NULL,
            .cap = cap - count,
        };
        const enum ptk_verdict verdict = ptk_tokenizer_encode(
            job->slot->model->tokenizer, desk->work, job->slot->cache, &request, &encoding);
        note_item(engine, desk, idx, verdict, encoding.len);
        count += desk->items[idx].count;
        PTK_ASSERT(count <= cap);
    }
    engine->counters.text_bytes += batch->data_len;
    engine->counters.ids += count;
    return count;
}

/* Writes what encode_items left in the desk; returns the length of the message. */
static size_t build_encode(const struct desk *desk, const struct job *job, size_t count)
{
    const uint32_t outputs = job->batch->prelude.outputs;
    const struct ptk_wire_encode_layout layout =
        ptk_wire_encode_layout(job->batch->prelude.item_count, count, job->id_format, outputs);
    uint8_t *message = job->message;
    build_items(desk, job, job->id_format);
    const size_t ids_end = layout.ids_off + ptk_wire_ids_build(desk->ids, count, job->id_format,
                                                               message + layout.ids_off);
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
    const size_t cap = ptk_wire_encode_cap(prelude->item_count, job->message_cap, job->id_format,
                                           prelude->outputs);
    return build_encode(desk, job, encode_items(engine, desk, job, cap));
}

static void count_items(struct ptk_engine *engine, struct desk *desk, const struct job *job)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint8_t *text = batch->data;
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        const struct ptk_encode_request request = item_request(batch, idx, &text);
        size_t count = 0;
        const enum ptk_verdict verdict = ptk_tokenizer_count(
            job->slot->model->tokenizer, desk->work, job->slot->cache, &request, &count);
        note_item(engine, desk, idx, verdict, count);
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
    const size_t ids_count = batch->data_len / ptk_wire_id_len(batch->prelude.id_format);
    PTK_ASSERT(ids_count <= desk->ids_cap);
    ptk_wire_ids_parse(batch->data, ids_count, batch->prelude.id_format, desk->ids);
    for (size_t idx = 0; idx < item_count; idx++) {
        desk->items[idx].count = ptk_wire_batch_len_at(batch, idx);
    }
    const uint32_t *ids = desk->ids;
    size_t off = 0;
    for (size_t idx = 0; idx < item_count; idx++) {
        const size_t ids_len = desk->items[idx].count;
        size_t text_len = 0;
        const enum ptk_verdict verdict =
            ptk_tokenizer_decode(job->slot->model->tokenizer, desk->work, ids, ids_len,
                                 batch->prelude.options, text + off, text_cap - off, &text_len);
        ids += ids_len;
        note_item(engine, desk, idx, verdict, text_len);
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

/* What encode, count and decode have in common before their work: parses the message into `batch`.
 */
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

/* Encode, count and decode; 0 and a verdict for a refusal. */
static size_t handle_batch(struct ptk_engine *engine, struct job *job, enum ptk_verdict *verdict)
{
    struct desk *desk = &engine->desks[0];
    struct ptk_wire_batch_view batch;
    *verdict = prepare_batch(job, &batch);
    if (*verdict != PTK_VERDICT_OK) {
        return 0;
    }
    const size_t items_len = ptk_wire_items_len(batch.prelude.item_count);
    if (job->reply_len_max < PTK_WIRE_HEADER_LEN + items_len) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    job->message_cap = ptk_min_size(job->message_cap, job->reply_len_max - PTK_WIRE_HEADER_LEN);
    if (job->message_cap < items_len) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    switch (job->request->header.op) {
    case PTK_WIRE_OP_ENCODE:
        return handle_encode(engine, desk, job);
    case PTK_WIRE_OP_COUNT:
        return handle_count(engine, desk, job);
    default:
        PTK_ASSERT(job->request->header.op == PTK_WIRE_OP_DECODE);
        return handle_decode(engine, desk, job);
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
    /* In place the message is already where it belongs. */
    if (request->message != job->message) {
        memcpy(job->message, request->message, request->message_len);
    }
    return request->message_len;
}

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
    const size_t message_len = build_info(engine, job);
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
                message_len = request.header.op == PTK_WIRE_OP_INFO
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
    const size_t items_len = ptk_wire_items_len(prelude->item_count);
    switch (job->request->header.op) {
    case PTK_WIRE_OP_ENCODE: {
        const size_t cap = ptk_wire_encode_cap(prelude->item_count, job->message_cap,
                                               job->id_format, prelude->outputs);
        desk->count = encode_items(engine, desk, job, ptk_min_size(cap, desk->ids_cap));
        return ptk_wire_encode_layout(prelude->item_count, desk->count, job->id_format,
                                      prelude->outputs)
            .message_len;
    }
    case PTK_WIRE_OP_COUNT:
        count_items(engine, desk, job);
        return items_len;
    default:
        PTK_ASSERT(job->request->header.op == PTK_WIRE_OP_DECODE);
        /* The offsets, which decode does not have, are the largest array. */
        desk->count = decode_items(engine, desk, job, (uint8_t *)desk->offsets,
                                   ptk_min_size(desk->ids_cap * sizeof *desk->offsets,
                                                job->message_cap / 8 * 8 - items_len));
        return ptk_align_up(items_len + desk->count, 8);
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
    default:
        memcpy(message + ptk_wire_items_len(job->batch->prelude.item_count), desk->offsets,
               desk->count);
        (void)build_decode(desk, job, desk->count);
        break;
    }
}
