/* Slots, and what each datagram does to them. */
#include "serve/ptk_bulk.h"

#include "base/ptk_pause.h"
#include "serve/ptk_arena.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_reply.h"
#include "wire/ptk_wire_segment.h"

#define SLOT_NONE UINT32_MAX

/* Messages that ended lately: a late segment of one of them must not begin it anew. */
#define ENDED_CAP 256u

enum slot_state {
    SLOT_FREE = 0,
    SLOT_RECEIVING,
    SLOT_QUEUED,
    SLOT_RUNNING,
    SLOT_READY, /* the reply is kept; with a verdict other than OK it is a refusal */
};

struct slot {
    enum slot_state state;
    bool cancelled; /* while running */
    enum ptk_verdict verdict;
    struct ptk_address source;
    uint16_t source_port;
    struct ptk_wire_header header; /* of the request; segment_idx is meaningless */
    struct ptk_region region;      /* of the request, then of the reply */
    uint32_t segment_count;
    uint32_t received_count;
    uint32_t first_missing; /* no segment below is missing */
    size_t link_max;
    uint64_t progressed_at;
    uint64_t completed_at;
    struct ptk_wire_reply_parts parts;
    uint64_t *received; /* a bit a segment */
    _Alignas(8) uint8_t route[PTK_BULK_ROUTE_CAP];
};

/* Datagrams that one input has caused and that are still to be sent. */
struct burst {
    uint32_t slot_idx; /* SLOT_NONE: none */
    uint32_t base;     /* segment of bit 0 */
    uint32_t left;     /* datagrams to send at most */
    uint64_t words[PTK_WIRE_WINDOW_WORDS_MAX];
};

struct ptk_bulk {
    struct ptk_bulk_limits limits;
    struct ptk_bulk_state state;
    struct ptk_arena arena;
    uint64_t request_ids[PTK_BULK_SLOTS]; /* of the slots, close together for the search */
    struct slot slots[PTK_BULK_SLOTS];
    struct burst burst;
    uint64_t ended[ENDED_CAP];
    uint32_t receiving_count;
    uint32_t queued_count;
    uint32_t depth;                          /* messages in work */
    uint32_t running[PTK_ENGINE_LONG_DESKS]; /* their slots */
    const struct ptk_pause *pauses[PTK_ENGINE_LONG_DESKS];
    uint64_t cycles_per_kib; /* of work, as it was lately */
    uint64_t last_completed_at;
    uint64_t last_cycles; /* of the message worked on last, */
    uint32_t last_idx;    /* and its slot */
};

/* --- memory ---------------------------------------------------------------------------------- */

static size_t words_per_slot(const struct ptk_bulk_limits *limits)
{
    const uint32_t count =
        ptk_wire_segment_count(limits->message_len_max, PTK_WIRE_SEGMENT_LEN_MIN);
    return (count + 63) / 64;
}

static uint32_t unit_count(const struct ptk_bulk_limits *limits)
{
    return (uint32_t)(limits->arena_len / PTK_ARENA_UNIT_LEN);
}

/* Bytes before the arena itself. */
static size_t books_len(const struct ptk_bulk_limits *limits)
{
    const size_t bits_len = PTK_BULK_SLOTS * words_per_slot(limits) * sizeof(uint64_t);
    return ptk_align_up(sizeof(struct ptk_bulk) + bits_len + unit_count(limits),
                        PTK_ARENA_UNIT_LEN);
}

size_t ptk_bulk_len(const struct ptk_bulk_limits *limits)
{
    PTK_ASSERT(limits->message_len_max >= PTK_WIRE_SEGMENT_LEN_MIN);
    PTK_ASSERT(limits->message_len_max <= PTK_WIRE_MESSAGE_LEN_MAX);
    PTK_ASSERT(limits->arena_len >= 2 * (size_t)limits->message_len_max);
    return books_len(limits) + (size_t)unit_count(limits) * PTK_ARENA_UNIT_LEN;
}

struct ptk_bulk *ptk_bulk_init(void *memory, const struct ptk_bulk_limits *limits)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(limits->cycles_per_us > 0);
    uint8_t *base = memory;
    struct ptk_bulk *bulk = memory;
    memset(base, 0, ptk_bulk_len(limits)); /* Every page is touched here. */
    bulk->limits = *limits;
    uint64_t *bits = (uint64_t *)(void *)(base + sizeof *bulk);
    const size_t words = words_per_slot(limits);
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        bulk->slots[i].received = bits + i * words;
        bulk->slots[i].region.first = PTK_ARENA_NONE;
    }
    bulk->arena = (struct ptk_arena){.base = base + books_len(limits),
                                     .used = (uint8_t *)(bits + PTK_BULK_SLOTS * words),
                                     .unit_count = unit_count(limits)};
    bulk->burst.slot_idx = SLOT_NONE;
    bulk->cycles_per_kib = 16ull * limits->cycles_per_us; /* A first guess: 64 MB/s. */
    return bulk;
}

/* --- slots ----------------------------------------------------------------------------------- */

static uint64_t key_hash(const struct ptk_bulk_packet *packet, uint64_t request_id)
{
    uint64_t hash = request_id ^ 0x9E3779B97F4A7C15ull;
    const uint64_t parts[] = {ptk_load_u64(packet->source.bytes),
                              ptk_load_u64(packet->source.bytes + 8), packet->source_port};
    for (size_t i = 0; i < PTK_ARRAY_LEN(parts); i++) {
        hash = (hash ^ parts[i]) * 0xD6E8FEB86659FD93ull;
        hash ^= hash >> 32;
    }
    return hash | 1; /* 0 is an empty entry. */
}

static uint64_t *ended_entry(struct ptk_bulk *bulk, uint64_t hash)
{
    return &bulk->ended[(hash >> 8) % ENDED_CAP];
}

static struct slot *find(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                         uint64_t request_id)
{
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        struct slot *slot = &bulk->slots[i];
        if (PTK_UNLIKELY(bulk->request_ids[i] == request_id) && slot->state != SLOT_FREE &&
            slot->source_port == packet->source_port &&
            ptk_address_equal(&slot->source, &packet->source)) {
            return slot;
        }
    }
    return NULL;
}

static void release(struct ptk_bulk *bulk, struct slot *slot)
{
    PTK_ASSERT(slot->state != SLOT_FREE);
    PTK_ASSERT(slot->state != SLOT_RUNNING);
    if (slot->state == SLOT_RECEIVING) {
        bulk->receiving_count--;
    }
    if (slot->state == SLOT_QUEUED) {
        bulk->queued_count--;
    }
    ptk_arena_give(&bulk->arena, &slot->region);
    slot->state = SLOT_FREE;
    bulk->state.slots_used--;
}

/* Frees the slot that may be forgotten and has waited longest; false when there is none. */
static bool evict(struct ptk_bulk *bulk, uint64_t now)
{
    const int64_t idle = (int64_t)PTK_BULK_IDLE_US * bulk->limits.cycles_per_us;
    struct slot *oldest = NULL;
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        struct slot *slot = &bulk->slots[i];
        const bool may = (slot->state == SLOT_RECEIVING || slot->state == SLOT_READY) &&
                         (int64_t)(now - slot->progressed_at) >= idle;
        if (may && (oldest == NULL || slot->progressed_at < oldest->progressed_at)) {
            oldest = slot;
        }
    }
    if (oldest == NULL) {
        return false;
    }
    bulk->state.fates[PTK_BULK_EVICTED]++;
    release(bulk, oldest);
    return true;
}

static bool take_region(struct ptk_bulk *bulk, size_t len, uint64_t now, struct ptk_region *region)
{
    while (!ptk_arena_take(&bulk->arena, len, region)) {
        if (!evict(bulk, now)) {
            return false;
        }
    }
    return true;
}

static struct slot *free_slot(struct ptk_bulk *bulk, uint64_t now)
{
    if (bulk->state.slots_used == PTK_BULK_SLOTS && !evict(bulk, now)) {
        return NULL;
    }
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        if (bulk->slots[i].state == SLOT_FREE) {
            return &bulk->slots[i];
        }
    }
    return NULL;
}

/* One source has one address, or one IPv6 /64: its ports and hosts cost it nothing. */
static bool same_source(const struct ptk_address *one, const struct ptk_address *other)
{
    if (ptk_address_is_ipv4(one) || ptk_address_is_ipv4(other)) { /* These begin as ::/64 does. */
        return ptk_address_equal(one, other);
    }
    return memcmp(one->bytes, other->bytes, 8) == 0;
}

/* Would `len` bytes more, in `more_slots` more slots, be more than the part of this source? One
 * that holds nothing else may always have them. */
static bool is_capped(const struct ptk_bulk *bulk, const struct ptk_address *source,
                      uint32_t more_slots, size_t len)
{
    uint32_t slots = 0;
    uint64_t units = 0;
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        const struct slot *slot = &bulk->slots[i];
        if (slot->state != SLOT_FREE && same_source(&slot->source, source)) {
            slots++;
            units += slot->region.first != PTK_ARENA_NONE ? slot->region.count : 0;
        }
    }
    const uint64_t wanted = units + (len + PTK_ARENA_UNIT_LEN - 1) / PTK_ARENA_UNIT_LEN;
    return slots + more_slots > PTK_BULK_SLOTS / PTK_BULK_SOURCE_PART ||
           (units > 0 && wanted > bulk->arena.unit_count / PTK_BULK_SOURCE_PART);
}

/* A slot for the message that this segment belongs to; NULL when there is no room. */
static struct slot *begin(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                          const struct ptk_wire_header *header)
{
    if (is_capped(bulk, &packet->source, 1, header->message_len)) {
        bulk->state.fates[PTK_BULK_CAPPED]++;
        return NULL;
    }
    struct slot *slot = free_slot(bulk, packet->now);
    struct ptk_region region;
    if (slot == NULL || !take_region(bulk, header->message_len, packet->now, &region)) {
        bulk->state.fates[PTK_BULK_BUSY]++;
        return NULL;
    }
    uint64_t *received = slot->received;
    const uint32_t count = ptk_wire_segment_count(header->message_len, header->segment_len);
    memset(received, 0, (count + 63) / 64 * sizeof *received);
    *slot = (struct slot){
        .state = SLOT_RECEIVING,
        .source = packet->source,
        .source_port = packet->source_port,
        .header = *header,
        .region = region,
        .segment_count = count,
        .progressed_at = packet->now,
        .received = received,
    };
    bulk->request_ids[slot - bulk->slots] = header->request_id;
    bulk->receiving_count++;
    bulk->state.slots_used++;
    bulk->state.fates[PTK_BULK_BEGUN]++;
    return slot;
}

/* Replies go the way that the latest datagram came. */
static void keep_route(struct slot *slot, const struct ptk_bulk_packet *packet)
{
    PTK_ASSERT(packet->route_len <= PTK_BULK_ROUTE_CAP);
    memcpy(slot->route, packet->route, packet->route_len);
    slot->link_max = packet->link_max;
}

/* --- answers --------------------------------------------------------------------------------- */

static size_t refuse(struct ptk_bulk *bulk, const struct ptk_wire_header *header,
                     enum ptk_verdict verdict, uint8_t *reply)
{
    bulk->state.verdicts[verdict]++;
    const size_t len = ptk_wire_refusal_build(header, verdict, 0, reply);
    if (verdict == PTK_VERDICT_BUSY) {
        ptk_store_u32(reply + offsetof(struct ptk_wire_header, message_crc), PTK_BULK_RETRY_US);
    }
    return len;
}

static bool is_received(const struct slot *slot, uint32_t idx)
{
    return (slot->received[idx / 64] >> idx % 64 & 1) != 0;
}

static uint32_t grant_of(const struct ptk_bulk *bulk)
{
    const uint32_t share =
        PTK_BULK_GRANTS_MAX / (bulk->receiving_count > 0 ? bulk->receiving_count : 1);
    return share < PTK_BULK_GRANT_MAX ? share : PTK_BULK_GRANT_MAX;
}

/* The need of a slot, as long as a datagram of `len_max` bytes allows; 0 when not even its head
 * does. */
static size_t build_need(struct ptk_bulk *bulk, const struct slot *slot, size_t len_max,
                         uint8_t *need)
{
    uint64_t words[PTK_WIRE_WINDOW_WORDS_MAX] = {0};
    struct ptk_wire_window window = {.state = PTK_WIRE_STATE_WORKING};
    uint32_t base = 0;
    if (len_max < PTK_WIRE_WINDOW_LEN(0)) {
        return 0;
    }
    if (slot->state == SLOT_RECEIVING) {
        const size_t room = (len_max - PTK_WIRE_WINDOW_LEN(0)) / 8;
        base = slot->first_missing / 64 * 64;
        window.state = PTK_WIRE_STATE_RECEIVING;
        window.grant = (uint16_t)grant_of(bulk);
        for (uint32_t w = 0; w < ptk_min_size(room, PTK_WIRE_WINDOW_WORDS_MAX); w++) {
            const uint32_t first = base + 64 * w;
            if (first >= slot->segment_count) {
                break;
            }
            const uint32_t here = slot->segment_count - first;
            const uint64_t valid = here >= 64 ? UINT64_MAX : (1ull << here) - 1;
            words[w] = ~slot->received[first / 64] & valid;
            window.words = (uint8_t)(w + 1);
        }
    }
    bulk->state.fates[PTK_BULK_NEEDS]++;
    return ptk_wire_need_build(&slot->header, base, &window, words, need);
}

/* The reply, or its first segments, as a burst. */
static void burst_first(struct ptk_bulk *bulk, const struct slot *slot)
{
    bulk->burst = (struct burst){.slot_idx = (uint32_t)(slot - bulk->slots),
                                 .left = PTK_WIRE_FLIGHT_FIRST,
                                 .words = {(1ull << PTK_WIRE_FLIGHT_FIRST) - 1}};
}

/* --- input ----------------------------------------------------------------------------------- */

/* Whether a segment belongs to the message that its request id names. */
static enum ptk_verdict check_same(const struct slot *slot, const struct ptk_wire_header *header)
{
    const struct ptk_wire_header *ours = &slot->header;
    if (header->message_len != ours->message_len || header->segment_len != ours->segment_len) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if (header->message_crc != ours->message_crc) {
        return PTK_VERDICT_BAD_CRC;
    }
    return header->op == ours->op && header->model_id == ours->model_id &&
                   header->model_tag == ours->model_tag
               ? PTK_VERDICT_OK
               : PTK_VERDICT_BAD_OPTION;
}

static void store(struct ptk_bulk *bulk, struct slot *slot, uint64_t now,
                  const struct ptk_wire_segment_view *view)
{
    const uint32_t idx = view->header.segment_idx;
    memcpy(ptk_arena_bytes(&bulk->arena, slot->region) + (size_t)idx * slot->header.segment_len,
           view->data, view->data_len);
    slot->received[idx / 64] |= 1ull << idx % 64;
    slot->received_count++;
    slot->progressed_at = now;
    bulk->state.fates[PTK_BULK_SEGMENTS]++;
    while (slot->first_missing < slot->segment_count && is_received(slot, slot->first_missing)) {
        slot->first_missing++;
    }
    if (slot->received_count == slot->segment_count) {
        slot->state = SLOT_QUEUED;
        slot->completed_at = now;
        bulk->receiving_count--;
        bulk->queued_count++;
    }
}

static size_t receive_segment(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                              const struct ptk_wire_segment_view *view, uint8_t *reply)
{
    const struct ptk_wire_header *header = &view->header;
    const bool last = (header->flags & PTK_WIRE_FLAGS_LAST_FLIGHT) != 0;
    if (header->message_len > bulk->limits.message_len_max) {
        bulk->state.fates[PTK_BULK_REFUSED]++;
        return refuse(bulk, header, PTK_VERDICT_TEXT_TOO_LONG, reply);
    }
    struct slot *slot = find(bulk, packet, header->request_id);
    if (slot == NULL) {
        const uint64_t hash = key_hash(packet, header->request_id);
        if (*ended_entry(bulk, hash) == hash) {
            bulk->state.fates[PTK_BULK_LATE]++;
            return 0;
        }
        if (!packet->validated) {
            bulk->state.fates[PTK_BULK_REFUSED]++;
            return refuse(bulk, header, PTK_VERDICT_CHALLENGE, reply);
        }
        slot = begin(bulk, packet, header);
        if (slot == NULL) {
            return refuse(bulk, header, PTK_VERDICT_BUSY, reply);
        }
    }
    const enum ptk_verdict verdict = check_same(slot, header);
    if (verdict != PTK_VERDICT_OK) {
        bulk->state.fates[PTK_BULK_CONFLICTS]++;
        return refuse(bulk, header, verdict, reply);
    }
    keep_route(slot, packet);
    if (slot->state != SLOT_RECEIVING || is_received(slot, header->segment_idx)) {
        bulk->state.fates[PTK_BULK_DUPLICATES]++;
        if (last && slot->state == SLOT_READY) {
            burst_first(bulk, slot);
        }
        return last && slot->state != SLOT_READY ? build_need(bulk, slot, packet->len, reply) : 0;
    }
    store(bulk, slot, packet->now, view);
    return last || slot->state == SLOT_QUEUED ? build_need(bulk, slot, packet->len, reply) : 0;
}

static size_t receive_pull(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                           const struct ptk_wire_segment_view *view, uint8_t *reply)
{
    struct slot *slot = find(bulk, packet, view->header.request_id);
    if (slot == NULL) {
        bulk->state.fates[PTK_BULK_UNKNOWN]++;
        return refuse(bulk, &view->header, PTK_VERDICT_UNKNOWN_REQUEST, reply);
    }
    keep_route(slot, packet);
    if (slot->state != SLOT_READY) {
        bulk->state.fates[PTK_BULK_EARLY]++;
        return build_need(bulk, slot, packet->len, reply);
    }
    if (slot->verdict == PTK_VERDICT_BUSY) { /* Its reply found no room: nothing is kept. */
        bulk->state.fates[PTK_BULK_BUSY]++;
        bulk->state.fates[PTK_BULK_EVICTED]++;
        release(bulk, slot);
        return refuse(bulk, &view->header, PTK_VERDICT_BUSY, reply);
    }
    slot->progressed_at = packet->now;
    bulk->state.fates[PTK_BULK_PULLS]++;
    bulk->burst = (struct burst){
        .slot_idx = (uint32_t)(slot - bulk->slots),
        .base = view->header.segment_idx,
        .left = (uint32_t)ptk_min_size(view->grant, PTK_BULK_BURST_MAX),
    };
    memcpy(bulk->burst.words, view->data, view->data_len);
    return 0;
}

static void receive_cancel(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                           const struct ptk_wire_header *header)
{
    struct slot *slot = find(bulk, packet, header->request_id);
    if (slot == NULL) {
        bulk->state.fates[PTK_BULK_LATE]++;
        return;
    }
    const uint64_t hash = key_hash(packet, header->request_id);
    *ended_entry(bulk, hash) = hash;
    bulk->state.fates[PTK_BULK_CANCELS]++;
    if (slot->state == SLOT_RUNNING) {
        slot->cancelled = true;
        return;
    }
    bulk->state.fates[slot->state == SLOT_READY ? PTK_BULK_ANSWERED : PTK_BULK_CANCELLED]++;
    release(bulk, slot);
}

size_t ptk_bulk_receive(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet, uint8_t *reply)
{
    struct ptk_wire_segment_view view;
    bulk->burst.slot_idx = SLOT_NONE;
    const enum ptk_verdict verdict = ptk_wire_segment_parse(packet->datagram, packet->len, &view);
    if (verdict != PTK_VERDICT_OK) {
        bulk->state.fates[PTK_BULK_REFUSED]++;
        return refuse(bulk, &view.header, verdict, reply);
    }
    switch (view.type) {
    case PTK_WIRE_TYPE_PULL:
        return receive_pull(bulk, packet, &view, reply);
    case PTK_WIRE_TYPE_CANCEL:
        receive_cancel(bulk, packet, &view.header);
        return 0;
    default:
        return receive_segment(bulk, packet, &view, reply);
    }
}

/* --- output ---------------------------------------------------------------------------------- */

/* Segments of a reply that is READY; 1 when it is one datagram, and for a refusal, which may be
 * that of a reply whose segments would be too short. */
static uint32_t part_count(const struct slot *slot)
{
    return slot->verdict != PTK_VERDICT_OK || slot->parts.segment_len == 0
               ? 1
               : ptk_wire_segment_count(slot->parts.message_len, slot->parts.segment_len);
}

/* The lowest segment of the burst that the reply has, and takes it out; SLOT_NONE at the end. */
static uint32_t next_part(struct burst *burst, uint32_t count)
{
    for (uint32_t w = 0; w < PTK_WIRE_WINDOW_WORDS_MAX; w++) {
        if (burst->words[w] != 0) {
            const uint32_t bit = (uint32_t)__builtin_ctzll(burst->words[w]);
            const uint32_t idx = burst->base + 64 * w + bit;
            burst->words[w] &= burst->words[w] - 1;
            return idx < count ? idx : SLOT_NONE;
        }
    }
    return SLOT_NONE;
}

size_t ptk_bulk_next(struct ptk_bulk *bulk, uint8_t *datagram)
{
    struct burst *burst = &bulk->burst;
    if (PTK_LIKELY(burst->slot_idx == SLOT_NONE)) {
        return 0;
    }
    const struct slot *slot = &bulk->slots[burst->slot_idx];
    PTK_ASSERT(slot->state == SLOT_READY);
    const uint32_t idx = burst->left > 0 ? next_part(burst, part_count(slot)) : SLOT_NONE;
    if (idx == SLOT_NONE) {
        burst->slot_idx = SLOT_NONE;
        return 0;
    }
    burst->left--;
    bulk->state.fates[PTK_BULK_PARTS]++;
    if (slot->verdict != PTK_VERDICT_OK) {
        return ptk_wire_refusal_build(&slot->header, slot->verdict, slot->parts.model_tag,
                                      datagram);
    }
    return ptk_wire_part_build(&slot->parts, idx, ptk_arena_bytes(&bulk->arena, slot->region),
                               datagram);
}

bool ptk_bulk_bursting(const struct ptk_bulk *bulk)
{
    return bulk->burst.slot_idx != SLOT_NONE;
}

void ptk_bulk_drop(struct ptk_bulk *bulk)
{
    bulk->burst.slot_idx = SLOT_NONE;
}

const void *ptk_bulk_route(const struct ptk_bulk *bulk)
{
    PTK_ASSERT(bulk->burst.slot_idx != SLOT_NONE);
    return bulk->slots[bulk->burst.slot_idx].route;
}

/* --- work ------------------------------------------------------------------------------------ */

/* Bytes of the innermost message in work that are probably left, as lately measured. */
static size_t bytes_left(const struct ptk_bulk *bulk)
{
    const uint32_t top = bulk->depth - 1;
    const size_t len = bulk->slots[bulk->running[top]].header.message_len;
    const uint64_t done = bulk->pauses[top]->worked / (bulk->cycles_per_kib + 1) * 1024;
    return done < len ? len - (size_t)done : 0;
}

/* The shortest queued message that may begin; SLOT_NONE when there is none. */
static uint32_t choose(const struct ptk_bulk *bulk, const struct ptk_engine *engine)
{
    if (bulk->queued_count == 0 || bulk->depth == PTK_ENGINE_LONG_DESKS) {
        return SLOT_NONE;
    }
    uint32_t shortest = SLOT_NONE;
    size_t limit = bulk->depth > 0 ? bytes_left(bulk) : SIZE_MAX;
    for (uint32_t i = 0; i < PTK_BULK_SLOTS; i++) {
        const struct slot *slot = &bulk->slots[i];
        if (slot->state == SLOT_QUEUED && slot->header.message_len < limit &&
            ptk_engine_long_fits(engine, bulk->depth, slot->header.message_len)) {
            shortest = i;
            limit = slot->header.message_len;
        }
    }
    return shortest;
}

static uint32_t paused_crc(const uint8_t *bytes, size_t len)
{
    uint32_t crc = 0;
    for (size_t off = 0; off < len; off += PTK_PAUSE_WIDE_LEN) {
        crc = ptk_crc32c_extend(crc, bytes + off, ptk_min_size(len - off, PTK_PAUSE_WIDE_LEN));
        ptk_pause_point();
    }
    return crc;
}

/* How a reply of this length is sent; false when the client's datagrams are too small for it. */
static bool plan_parts(struct slot *slot, const struct ptk_engine_long_reply *reply)
{
    const size_t datagram_len_max = ptk_min_size(reply->datagram_len_max, slot->link_max);
    if (datagram_len_max < PTK_WIRE_HEADER_LEN) {
        return false;
    }
    const size_t room = datagram_len_max - PTK_WIRE_HEADER_LEN;
    slot->parts = (struct ptk_wire_reply_parts){
        .request = slot->header,
        .model_tag = reply->model_tag,
        .message_len = (uint32_t)reply->message_len,
    };
    if (reply->message_len > room) {
        slot->parts.segment_len = (uint32_t)(room / 8 * 8);
        return slot->parts.segment_len >= PTK_WIRE_SEGMENT_LEN_MIN;
    }
    return true;
}

/* Runs the message of a slot at a desk and keeps its reply in place of the request. */
static enum ptk_verdict work_on(struct ptk_bulk *bulk, struct ptk_engine *engine, uint32_t desk_idx,
                                struct slot *slot)
{
    const uint8_t *message = ptk_arena_bytes(&bulk->arena, slot->region);
    const size_t message_len = slot->header.message_len;
    if (paused_crc(message, message_len) != slot->header.message_crc) {
        bulk->state.verdicts[PTK_VERDICT_BAD_CRC]++;
        return PTK_VERDICT_BAD_CRC;
    }
    const struct ptk_engine_long input = {
        .header = slot->header,
        .message = message,
        .message_len = message_len,
        .reply_message_len_max = ptk_min_size(bulk->limits.arena_len / 2, PTK_WIRE_MESSAGE_LEN_MAX),
    };
    struct ptk_engine_long_reply reply;
    const enum ptk_verdict verdict = ptk_engine_long_run(engine, desk_idx, &input, &reply);
    slot->parts.model_tag = reply.model_tag;
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    if (!plan_parts(slot, &reply)) {
        bulk->state.verdicts[PTK_VERDICT_REPLY_TOO_LONG]++;
        return PTK_VERDICT_REPLY_TOO_LONG;
    }
    ptk_arena_give(&bulk->arena, &slot->region); /* The request has been read. */
    if (is_capped(bulk, &slot->source, 0, reply.message_len) ||
        !take_region(bulk, reply.message_len, ptk_cycles(), &slot->region)) {
        bulk->state.verdicts[PTK_VERDICT_BUSY]++;
        return PTK_VERDICT_BUSY;
    }
    uint8_t *built = ptk_arena_bytes(&bulk->arena, slot->region);
    ptk_engine_long_build(engine, desk_idx, built);
    slot->parts.message_crc = paused_crc(built, reply.message_len);
    return PTK_VERDICT_OK;
}

/* Keeps the rate of work that bytes_left() goes by: an eighth of it is the last message's. */
static void learn_rate(struct ptk_bulk *bulk, size_t len, uint64_t cycles)
{
    const uint64_t here = cycles / (len / 1024 + 1);
    bulk->cycles_per_kib = bulk->cycles_per_kib - bulk->cycles_per_kib / 8 + here / 8;
}

bool ptk_bulk_work(struct ptk_bulk *bulk, struct ptk_engine *engine, struct ptk_pause *pause)
{
    const uint32_t slot_idx = choose(bulk, engine);
    if (slot_idx == SLOT_NONE) {
        return false;
    }
    struct slot *slot = &bulk->slots[slot_idx];
    const uint32_t desk_idx = bulk->depth++;
    slot->state = SLOT_RUNNING;
    slot->cancelled = false;
    bulk->queued_count--;
    bulk->running[desk_idx] = slot_idx;
    bulk->pauses[desk_idx] = pause;
    ptk_pause_begin(pause);
    slot->verdict = work_on(bulk, engine, desk_idx, slot);
    ptk_pause_end(pause);
    bulk->depth--;
    PTK_ASSERT(bulk->depth == desk_idx);
    bulk->last_cycles = pause->worked; /* Without what others have had in its pauses. */
    bulk->last_idx = slot_idx;
    learn_rate(bulk, slot->header.message_len, bulk->last_cycles);
    slot->state = SLOT_READY;
    slot->progressed_at = ptk_cycles();
    bulk->last_completed_at = slot->completed_at;
    if (slot->verdict != PTK_VERDICT_OK) {
        ptk_arena_give(&bulk->arena, &slot->region);
    }
    if (slot->cancelled) {
        bulk->state.fates[PTK_BULK_CANCELLED]++;
        release(bulk, slot);
        bulk->burst.slot_idx = SLOT_NONE;
        return true;
    }
    burst_first(bulk, slot);
    return true;
}

uint32_t ptk_bulk_queued(const struct ptk_bulk *bulk)
{
    return bulk->queued_count;
}

uint32_t ptk_bulk_depth(const struct ptk_bulk *bulk)
{
    return bulk->depth;
}

uint64_t ptk_bulk_last_work(const struct ptk_bulk *bulk, struct ptk_address *source,
                            uint16_t *source_port)
{
    /* The slot may be free by now; what it says of its source stays until the next one. */
    *source = bulk->slots[bulk->last_idx].source;
    *source_port = bulk->slots[bulk->last_idx].source_port;
    return bulk->last_cycles;
}

uint64_t ptk_bulk_begun_at(const struct ptk_bulk *bulk)
{
    return bulk->last_completed_at;
}

const struct ptk_bulk_state *ptk_bulk_state(struct ptk_bulk *bulk)
{
    bulk->state.arena_used_len = (uint64_t)bulk->arena.used_count * PTK_ARENA_UNIT_LEN;
    bulk->state.arena_len = (uint64_t)bulk->arena.unit_count * PTK_ARENA_UNIT_LEN;
    return &bulk->state;
}

void ptk_bulk_fates_resume(struct ptk_bulk *bulk, const uint64_t fates[PTK_BULK_FATE_COUNT])
{
    memcpy(bulk->state.fates, fates, sizeof bulk->state.fates);
}
