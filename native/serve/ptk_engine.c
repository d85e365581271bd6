/*
 * One request at a time, run to completion.
 *
 *     datagram ─parse─> view ─op─> ping · info · encode · count · decode ─build─> reply
 *
 * Replies may be built over the request, so each operation first reads all it needs: encode and
 * count work into scratch and write at the end, decode widens its ids before it writes text.
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

struct ptk_engine {
    struct ptk_engine_counters counters;
    struct ptk_engine_limits limits;
    const struct ptk_models *models;
    struct ptk_work *work;
    uint32_t *ids; /* ids_cap of each */
    struct ptk_span *offsets;
    uint8_t *type_ids;
    uint8_t *special_tokens_mask;
    size_t ids_cap;
    struct ptk_wire_item items[PTK_WIRE_ITEMS_MAX];
    uint32_t models_end;
    PTK_ALIGNED_LINE _Atomic uint64_t epoch_seen; /* written here, read by the main thread */
    PTK_ALIGNED_LINE struct slot slots[];         /* limits.models_cap */
};

/* A request on its way through one operation. */
struct job {
    const struct ptk_wire_request_view *request;
    const struct ptk_wire_batch_view *batch;
    const struct slot *slot;
    uint8_t *reply;
    size_t message_cap; /* room for the reply's message */
    uint32_t id_format; /* encode: of the reply, never auto */
};

_Static_assert(PTK_ENGINE_DATAGRAM_LEN_MAX <= UINT16_MAX, "short offsets hold every position");

/* Shortest encoding of an id on the wire: what bounds the ids of a datagram. */
#define ID_LEN_MIN 2u

static struct ptk_work_limits work_limits(const struct ptk_engine_limits *limits)
{
    return (struct ptk_work_limits){.text_len_max = limits->datagram_len_max, .offsets = true};
}

/* Offsets of the engine's parts in its memory. */
struct layout {
    size_t work_off;
    size_t ids_off;
    size_t offsets_off;
    size_t type_ids_off;
    size_t special_tokens_mask_off;
    size_t caches_off;
    size_t len;
    size_t ids_cap;
};

static size_t place(size_t *end, size_t len)
{
    const size_t off = *end;
    *end = ptk_align_up(off + len, PTK_CACHE_LINE);
    return off;
}

static struct layout layout_of(const struct ptk_engine_limits *limits)
{
    PTK_ASSERT(limits->datagram_len_max >= PTK_WIRE_INFO_REQUEST_LEN);
    PTK_ASSERT(limits->datagram_len_max <= PTK_ENGINE_DATAGRAM_LEN_MAX);
    PTK_ASSERT(limits->models_cap >= 1);
    PTK_ASSERT(limits->models_cap <= PTK_MODELS_CAP);
    PTK_ASSERT(limits->cache_len >= PTK_CACHE_LEN_MIN);
    PTK_ASSERT((limits->cache_len & (limits->cache_len - 1)) == 0);

    const struct ptk_work_limits work = work_limits(limits);
    const size_t ids_cap = limits->datagram_len_max / ID_LEN_MIN;
    struct layout layout = {.ids_cap = ids_cap};
    size_t end = 0;
    (void)place(&end, sizeof(struct ptk_engine) + limits->models_cap * sizeof(struct slot));
    layout.ids_off = place(&end, ids_cap * sizeof(uint32_t));
    layout.offsets_off = place(&end, ids_cap * sizeof(struct ptk_span));
    layout.type_ids_off = place(&end, ids_cap);
    layout.special_tokens_mask_off = place(&end, ids_cap);
    layout.work_off = place(&end, ptk_work_len(&work));
    layout.caches_off = place(&end, limits->models_cap * limits->cache_len);
    layout.len = end;
    return layout;
}

size_t ptk_engine_len(const struct ptk_engine_limits *limits)
{
    return layout_of(limits).len;
}

struct ptk_engine *ptk_engine_init(void *memory, const struct ptk_engine_limits *limits,
                                   const struct ptk_models *models)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    const struct layout layout = layout_of(limits);
    uint8_t *base = memory;
    /* Every page is touched here, so that none is missing later. */
    memset(base, 0, layout.len);
    struct ptk_engine *engine = memory;
    const struct ptk_work_limits work = work_limits(limits);
    engine->limits = *limits;
    engine->models = models;
    engine->work = ptk_work_init(base + layout.work_off, &work);
    engine->ids = (uint32_t *)(void *)(base + layout.ids_off);
    engine->offsets = (struct ptk_span *)(void *)(base + layout.offsets_off);
    engine->type_ids = base + layout.type_ids_off;
    engine->special_tokens_mask = base + layout.special_tokens_mask_off;
    engine->ids_cap = layout.ids_cap;
    atomic_init(&engine->epoch_seen, 0);
    for (size_t id = 0; id < limits->models_cap; id++) {
        engine->slots[id].cache_memory = base + layout.caches_off + id * limits->cache_len;
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
        .message_len_max = engine->limits.datagram_len_max - PTK_WIRE_HEADER_LEN,
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
    uint8_t *message = job->reply + PTK_WIRE_HEADER_LEN;
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

static void note_item(struct ptk_engine *engine, size_t item_idx, enum ptk_verdict verdict,
                      size_t count)
{
    engine->items[item_idx] = (struct ptk_wire_item){
        .count = verdict == PTK_VERDICT_OK ? (uint32_t)count : 0,
        .verdict = (uint8_t)verdict,
    };
    engine->counters.item_verdicts[verdict]++;
}

/* Prelude and item table of a batch reply. */
static void build_items(const struct ptk_engine *engine, const struct job *job, uint32_t id_format)
{
    const struct ptk_wire_request *asked = &job->batch->prelude;
    const struct ptk_wire_reply prelude = {
        .id_format = (uint8_t)id_format,
        .outputs = asked->outputs,
        .item_count = asked->item_count,
    };
    uint8_t *message = job->reply + PTK_WIRE_HEADER_LEN;
    memcpy(message, &prelude, sizeof prelude);
    memcpy(message + sizeof prelude, engine->items,
           asked->item_count * sizeof(struct ptk_wire_item));
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
    /* No text of one datagram reaches 64 KiB. */
    for (size_t idx = 0; idx < count; idx++) {
        PTK_DCHECK(offsets[idx].end <= UINT16_MAX);
        ptk_store_u32(dst + 4 * idx, offsets[idx].begin | offsets[idx].end << 16);
    }
    memset(dst + 4 * count, 0, ptk_align_up(4 * count, 8) - 4 * count);
}

static size_t handle_encode(struct ptk_engine *engine, const struct job *job)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint32_t outputs = batch->prelude.outputs;
    const size_t item_count = batch->prelude.item_count;
    const size_t cap = ptk_wire_encode_cap(item_count, job->message_cap, job->id_format, outputs);
    PTK_ASSERT(cap <= engine->ids_cap);

    const uint8_t *text = batch->data;
    size_t count = 0;
    for (size_t idx = 0; idx < item_count; idx++) {
        const struct ptk_encode_request request = item_request(batch, idx, &text);
        struct ptk_encoding encoding = {
            .ids = engine->ids + count,
            .offsets = (outputs & PTK_WIRE_OUTPUTS_OFFSETS) != 0 ? engine->offsets + count : NULL,
            .type_ids =
                (outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0 ? engine->type_ids + count : NULL,
            .special_tokens_mask = (outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0
                                       ? engine->special_tokens_mask + count
                                       : NULL,
            .cap = cap - count,
        };
        const enum ptk_verdict verdict = ptk_tokenizer_encode(
            job->slot->model->tokenizer, engine->work, job->slot->cache, &request, &encoding);
        note_item(engine, idx, verdict, encoding.len);
        count += engine->items[idx].count;
        PTK_ASSERT(count <= cap);
    }
    engine->counters.text_bytes += batch->data_len;
    engine->counters.ids += count;

    const struct ptk_wire_encode_layout layout =
        ptk_wire_encode_layout(item_count, count, job->id_format, outputs);
    uint8_t *message = job->reply + PTK_WIRE_HEADER_LEN;
    build_items(engine, job, job->id_format);
    const size_t ids_end = layout.ids_off + ptk_wire_ids_build(engine->ids, count, job->id_format,
                                                               message + layout.ids_off);
    memset(message + ids_end, 0, layout.offsets_off - ids_end);
    if ((outputs & PTK_WIRE_OUTPUTS_OFFSETS) != 0) {
        build_offsets(message + layout.offsets_off, engine->offsets, count, outputs);
    }
    if ((outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0) {
        build_bytes(message + layout.type_ids_off, engine->type_ids, count);
    }
    if ((outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0) {
        build_bytes(message + layout.special_tokens_mask_off, engine->special_tokens_mask, count);
    }
    return layout.message_len;
}

static size_t handle_count(struct ptk_engine *engine, const struct job *job)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const uint8_t *text = batch->data;
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        const struct ptk_encode_request request = item_request(batch, idx, &text);
        size_t count = 0;
        const enum ptk_verdict verdict = ptk_tokenizer_count(
            job->slot->model->tokenizer, engine->work, job->slot->cache, &request, &count);
        note_item(engine, idx, verdict, count);
        engine->counters.ids += engine->items[idx].count;
    }
    engine->counters.text_bytes += batch->data_len;
    build_items(engine, job, PTK_ID_FORMAT_AUTO);
    return ptk_wire_items_len(batch->prelude.item_count);
}

static size_t handle_decode(struct ptk_engine *engine, const struct job *job)
{
    const struct ptk_wire_batch_view *batch = job->batch;
    const size_t item_count = batch->prelude.item_count;
    const size_t ids_count = batch->data_len / ptk_wire_id_len(batch->prelude.id_format);
    PTK_ASSERT(ids_count <= engine->ids_cap);
    /* From here on the request's item table and ids are only read from scratch. */
    ptk_wire_ids_parse(batch->data, ids_count, batch->prelude.id_format, engine->ids);
    for (size_t idx = 0; idx < item_count; idx++) {
        engine->items[idx].count = ptk_wire_batch_len_at(batch, idx);
    }

    uint8_t *message = job->reply + PTK_WIRE_HEADER_LEN;
    const uint32_t *ids = engine->ids;
    size_t off = ptk_wire_items_len(item_count);
    const size_t text_cap = job->message_cap / 8 * 8; /* room for the padding */
    for (size_t idx = 0; idx < item_count; idx++) {
        const size_t ids_len = engine->items[idx].count;
        size_t text_len = 0;
        const enum ptk_verdict verdict =
            ptk_tokenizer_decode(job->slot->model->tokenizer, engine->work, ids, ids_len,
                                 batch->prelude.options, message + off, text_cap - off, &text_len);
        ids += ids_len;
        note_item(engine, idx, verdict, text_len);
        off += engine->items[idx].count;
        PTK_ASSERT(off <= text_cap);
    }
    engine->counters.ids += ids_count;
    engine->counters.text_bytes += off - ptk_wire_items_len(item_count);
    build_items(engine, job, PTK_ID_FORMAT_AUTO);
    const size_t message_len = ptk_align_up(off, 8);
    memset(message + off, 0, message_len - off);
    return message_len;
}

/* Encode, count and decode; 0 and a verdict for a refusal. */
static size_t handle_batch(struct ptk_engine *engine, struct job *job, size_t datagram_len,
                           enum ptk_verdict *verdict)
{
    struct ptk_wire_batch_view batch;
    *verdict = ptk_wire_batch_parse(job->request, &batch);
    if (*verdict != PTK_VERDICT_OK) {
        return 0;
    }
    const uint32_t op = job->request->header.op;
    const uint32_t narrowest = ptk_wire_id_format_auto(job->slot->model->image->config->ids_end);
    job->batch = &batch;
    job->id_format =
        batch.prelude.id_format == PTK_ID_FORMAT_AUTO ? narrowest : batch.prelude.id_format;
    if (op == PTK_WIRE_OP_ENCODE && job->id_format < narrowest) {
        *verdict = PTK_VERDICT_BAD_FORMAT;
        return 0;
    }
    const size_t reply_len_max =
        batch.prelude.reply_len_max != 0 ? batch.prelude.reply_len_max : datagram_len;
    if (reply_len_max < PTK_WIRE_HEADER_LEN + ptk_wire_items_len(batch.prelude.item_count)) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    job->message_cap = ptk_min_size(job->message_cap, reply_len_max - PTK_WIRE_HEADER_LEN);
    if (job->message_cap < ptk_wire_items_len(batch.prelude.item_count)) {
        *verdict = PTK_VERDICT_REPLY_TOO_LONG;
        return 0;
    }
    switch (op) {
    case PTK_WIRE_OP_ENCODE:
        return handle_encode(engine, job);
    case PTK_WIRE_OP_COUNT:
        return handle_count(engine, job);
    default:
        PTK_ASSERT(op == PTK_WIRE_OP_DECODE);
        return handle_decode(engine, job);
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
    if (request->message != job->reply + PTK_WIRE_HEADER_LEN) {
        memcpy(job->reply + PTK_WIRE_HEADER_LEN, request->message, request->message_len);
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
            .reply = reply,
            .message_cap =
                ptk_min_size(reply_cap, engine->limits.datagram_len_max) - PTK_WIRE_HEADER_LEN,
        };
        engine->counters.requests[request.header.op]++;
        if (request.header.op == PTK_WIRE_OP_PING) {
            message_len = handle_ping(&job, verdict);
        } else {
            job.slot = find_slot(engine, &request.header, &model_tag, verdict);
            if (job.slot != NULL) {
                message_len = request.header.op == PTK_WIRE_OP_INFO
                                  ? handle_info(engine, &job, verdict)
                                  : handle_batch(engine, &job, len, verdict);
            }
        }
    }
    engine->counters.verdicts[*verdict]++;
    if (*verdict == PTK_VERDICT_OK) {
        return ptk_wire_answer_build(&request.header, model_tag, message_len, reply);
    }
    return answer ? ptk_wire_refusal_build(&request.header, *verdict, model_tag, reply) : 0;
}
