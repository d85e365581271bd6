/* The loop of a poller. */
#include "serve/ptk_poller.h"

#include "net/ptk_wake.h"
#include "wire/ptk_wire_segment.h"

/* Multi-buffer, since Linux 6.6: the packet continues in the next descriptor. */
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)
#endif

/* What a later reply to a long message needs: the headers of a packet of its client. */
struct route {
    struct ptk_frame_view view;
    uint8_t headers[PTK_FRAME_HEADERS_LEN_MAX];
};
_Static_assert(sizeof(struct route) <= PTK_BULK_ROUTE_CAP, "a route is kept with its message");

static void serve(void *self);
static void push(void *self);

size_t ptk_poller_memory_len(uint32_t frame_count)
{
    return ptk_align_up(ptk_frames_list_len(frame_count), PTK_CACHE_LINE) +
           2 * (size_t)PTK_POLLER_PACKET_LEN_MAX;
}

void ptk_poller_init(struct ptk_poller *poller, const struct ptk_poller_config *config)
{
    PTK_ASSERT(config->mtu <= PTK_POLLER_MTU_MAX);
    PTK_ASSERT(config->frame_count > 0);
    memset(poller, 0, sizeof *poller);
    struct ptk_worker_config worker = config->worker;
    worker.driver = (struct ptk_worker_driver){.self = poller, .serve = serve, .push = push};
    ptk_worker_init(&poller->worker, &worker);
    poller->rx = config->rx;
    poller->tx = config->tx;
    poller->fill = config->fill;
    poller->completion = config->completion;
    poller->socket_fd = config->socket_fd;
    poller->frame_memory = config->frame_memory;
    poller->filter = config->filter;
    poller->mtu = config->mtu;
    poller->multi_buffer = config->mtu > PTK_POLLER_MTU_SINGLE;
    if (config->inherits) {
        ptk_frames_lay_out(&poller->frames, config->memory, config->frame_places,
                           config->frame_count);
    } else {
        ptk_frames_init(&poller->frames, config->memory, config->frame_places, config->frame_count);
    }
    poller->gathered = (uint8_t *)config->memory +
                       ptk_align_up(ptk_frames_list_len(config->frame_count), PTK_CACHE_LINE);
    poller->linear_reply = poller->gathered + PTK_POLLER_PACKET_LEN_MAX;
}

bool ptk_poller_inherit(struct ptk_poller *poller)
{
    const bool rings =
        ptk_ring_inherit_consumer(&poller->rx) && ptk_ring_inherit_producer(&poller->tx) &&
        ptk_ring_inherit_producer(&poller->fill) && ptk_ring_inherit_consumer(&poller->completion);
    poller->tx_untaken = ptk_ring_untaken(&poller->tx) > 0;
    poller->frames.faults = poller->worker.counters[PTK_WORKER_FRAME_FAULTS];
    return ptk_frames_inherit(&poller->frames) && rings;
}

static uint8_t *frame_base(const struct ptk_poller *poller, uint64_t frame)
{
    return poller->frame_memory + (frame << PTK_FRAME_SHIFT);
}

/* Frames that were sent become free. */
static void complete(struct ptk_poller *poller)
{
    const uint32_t count = ptk_ring_peek(&poller->completion, poller->completion.len);
    if (count == 0) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t address =
            *ptk_ring_address(&poller->completion, poller->completion.position + i);
        (void)ptk_frames_give(&poller->frames, address >> PTK_FRAME_SHIFT,
                              PTK_FRAME_PLACE_TX); /* A fault is counted there. */
    }
    ptk_ring_release(&poller->completion, count);
}

/* Free frames are lent for receiving until the fill ring is full. Those that one reply in parts, or
 * a few segments of a long one, need are kept back. */
static void refill(struct ptk_poller *poller)
{
    const uint32_t kept = PTK_POLLER_PARTS_MAX;
    const uint32_t all = poller->frames.counts[PTK_FRAME_PLACE_FREE];
    const uint32_t free_count = all > kept ? all - kept : 0;
    const uint32_t room = ptk_ring_room(&poller->fill, poller->fill.len);
    const uint32_t count = free_count < room ? free_count : room;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t frame = 0;
        PTK_ASSERT(ptk_frames_take(&poller->frames, PTK_FRAME_PLACE_RX, &frame));
        *ptk_ring_address(&poller->fill, poller->fill.position + i) = (uint64_t)frame
                                                                      << PTK_FRAME_SHIFT;
    }
    if (count > 0) {
        ptk_ring_submit(&poller->fill, count);
    }
    if (ptk_ring_needs_wakeup(&poller->fill)) {
        poller->worker.counters[PTK_WORKER_WAKEUPS_RX]++;
        ptk_wake_rx(poller->socket_fd);
    }
}

/* Hands the written replies to the kernel, and wakes it as long as it has not taken all of them. */
static void flush(struct ptk_poller *poller)
{
    if (poller->tx_written > 0) {
        ptk_ring_submit(&poller->tx, poller->tx_written);
        poller->tx_written = 0;
        poller->tx_untaken = true;
    }
    if (!poller->tx_untaken) {
        return;
    }
    if (ptk_ring_needs_wakeup(&poller->tx)) {
        uint64_t *counters = poller->worker.counters;
        counters[PTK_WORKER_WAKEUPS_TX]++;
        switch (ptk_wake_tx(poller->socket_fd)) {
        case PTK_WAKE_AGAIN:
            counters[PTK_WORKER_TX_RETRIES]++;
            break;
        case PTK_WAKE_DROPPED:
            counters[PTK_WORKER_TX_ERRORS]++;
            break;
        case PTK_WAKE_DONE:
        case PTK_WAKE_DOWN:
            break;
        }
    }
    poller->tx_untaken = ptk_ring_untaken(&poller->tx) > 0;
    if (poller->batch_replies > 0) {
        /* Copy mode has sent them by now: their time includes it, as on the socket path. */
        ptk_worker_latency(&poller->worker, poller->batch_start, ptk_cycles(),
                           poller->batch_replies);
        poller->batch_replies = 0;
    }
}

/* Is there room for `count` more descriptors? If not at once, what the kernel holds is moved on
 * first. */
static bool tx_reserve(struct ptk_poller *poller, uint32_t count)
{
    const uint32_t wanted = poller->tx_written + count;
    if (PTK_LIKELY(ptk_ring_room(&poller->tx, wanted) >= wanted)) {
        return true;
    }
    flush(poller);
    complete(poller);
    return ptk_ring_room(&poller->tx, count) >= count;
}

/* Writes one descriptor; the frame is the kernel's from here on. tx_reserve has made room. */
static void tx_write(struct ptk_poller *poller, uint64_t address, size_t len, bool continued)
{
    const bool moved = ptk_frames_move(&poller->frames, address >> PTK_FRAME_SHIFT,
                                       PTK_FRAME_PLACE_HELD, PTK_FRAME_PLACE_TX);
    PTK_ASSERT(moved);
    struct xdp_desc *descriptor =
        ptk_ring_descriptor(&poller->tx, poller->tx.position + poller->tx_written);
    descriptor->addr = address;
    descriptor->len = (uint32_t)len;
    descriptor->options = continued ? XDP_PKT_CONTD : 0;
    poller->tx_written++;
}

/* Spreads the packet in linear_reply over free frames; false when there are not enough. */
static bool scatter(struct ptk_poller *poller, size_t packet_len)
{
    const uint32_t parts = (uint32_t)((packet_len + PTK_POLLER_PART_LEN - 1) / PTK_POLLER_PART_LEN);
    if (!tx_reserve(poller, parts)) {
        poller->worker.counters[PTK_WORKER_TX_FULL]++;
        return false;
    }
    if (poller->frames.counts[PTK_FRAME_PLACE_FREE] < parts) {
        poller->worker.counters[PTK_WORKER_TX_NO_FRAME]++;
        return false;
    }
    for (size_t off = 0; off < packet_len; off += PTK_POLLER_PART_LEN) {
        const size_t len = ptk_min_size(packet_len - off, PTK_POLLER_PART_LEN);
        uint32_t frame = 0;
        PTK_ASSERT(ptk_frames_take(&poller->frames, PTK_FRAME_PLACE_HELD, &frame));
        memcpy(frame_base(poller, frame) + PTK_POLLER_HEADROOM, poller->linear_reply + off, len);
        tx_write(poller, ((uint64_t)frame << PTK_FRAME_SHIFT) + PTK_POLLER_HEADROOM, len,
                 off + len < packet_len);
    }
    return true;
}

static void count_reply(struct ptk_poller *poller, size_t packet_len, size_t payload_len)
{
    uint64_t *counters = poller->worker.counters;
    counters[PTK_WORKER_TX_PACKETS]++;
    counters[PTK_WORKER_TX_BYTES] += packet_len;
    counters[PTK_WORKER_REPLY_BYTES] += payload_len;
}

/* Parses a packet and counts it; false when it is refused. */
static bool admit(struct ptk_poller *poller, const uint8_t *packet, size_t len,
                  struct ptk_frame_view *view)
{
    uint64_t *counters = poller->worker.counters;
    counters[PTK_WORKER_RX_PACKETS]++;
    counters[PTK_WORKER_RX_BYTES] += len;
    const enum ptk_frame_refusal refusal = ptk_frame_parse(packet, len, &poller->filter, view);
    if (refusal != PTK_FRAME_OK) {
        counters[PTK_WORKER_REFUSED_TRUNCATED + (uint32_t)refusal - PTK_FRAME_TRUNCATED]++;
        return false;
    }
    counters[PTK_WORKER_PARTIAL_CHECKSUMS] += view->partial;
    return true;
}
_Static_assert(PTK_WORKER_REFUSED_DESTINATION - PTK_WORKER_REFUSED_TRUNCATED ==
                   (int)PTK_FRAME_DESTINATION - (int)PTK_FRAME_TRUNCATED,
               "counters refused_* stand in the order of enum ptk_frame_refusal");

/* Bytes of payload that the link carries behind this packet's kind of headers. */
static size_t link_payload_max(const struct ptk_poller *poller, const struct ptk_frame_view *view)
{
    return poller->mtu - (view->payload_off - view->ip_off);
}

/* Who sent the packet. */
static struct ptk_guard_source source_of(const uint8_t *packet, const struct ptk_frame_view *view)
{
    const uint8_t *ip = packet + view->ip_off;
    const uint8_t *udp = packet + view->payload_off - PTK_FRAME_UDP_LEN;
    return (struct ptk_guard_source){
        .address = view->ipv6 ? ptk_address_from_ipv6(ip + 8) : ptk_address_from_ipv4(ip + 12),
        .port = (uint16_t)(udp[0] << 8 | udp[1]),
        .now = ptk_cycles(),
    };
}

/* A datagram of a long message: the answer is built at `reply`, what else it causes is sent. */
static size_t receive_bulk(struct ptk_poller *poller, const uint8_t *packet,
                           const struct ptk_frame_view *view, uint8_t *reply)
{
    struct route route = {.view = *view};
    memcpy(route.headers, packet, view->payload_off);
    const struct ptk_guard_source source = source_of(packet, view);
    const struct ptk_bulk_packet input = {
        .datagram = packet + view->payload_off,
        .len = view->payload_len,
        .source = source.address,
        .source_port = source.port,
        .link_max = link_payload_max(poller, view),
        .route = &route,
        .route_len = sizeof route,
        .now = source.now,
    };
    const size_t reply_len = ptk_worker_receive(&poller->worker, &input, reply);
    push(poller);
    return reply_len;
}

/* A datagram of either kind; its reply is built at `reply`, where `reply_cap` bytes have room. */
static size_t handle(struct ptk_poller *poller, const uint8_t *packet,
                     const struct ptk_frame_view *view, uint8_t *reply, size_t reply_cap)
{
    const uint8_t *payload = packet + view->payload_off;
    if (PTK_UNLIKELY(ptk_wire_is_segmented(payload, view->payload_len))) {
        return receive_bulk(poller, packet, view, reply);
    }
    const struct ptk_guard_source source = source_of(packet, view);
    return ptk_worker_handle(&poller->worker, &source, payload, view->payload_len, reply,
                             reply_cap);
}

/*
 * Makes the reply to the packet at `packet` in linear_reply. Returns its length, 0 when there is
 * none. The request is not needed any more then.
 */
static size_t reply_linear(struct ptk_poller *poller, const uint8_t *packet, size_t len,
                           size_t *payload_len)
{
    struct ptk_frame_view view;
    if (!admit(poller, packet, len, &view)) {
        return 0;
    }
    *payload_len = handle(poller, packet, &view, poller->linear_reply + view.payload_off,
                          link_payload_max(poller, &view));
    if (*payload_len == 0) {
        return 0;
    }
    return ptk_frame_reply_build(packet, &view, poller->linear_reply, *payload_len);
}

/* Answers the packet in a held frame in place; true when the frame went to the transmit ring. */
static bool answer_in_place(struct ptk_poller *poller, uint64_t address, size_t len)
{
    uint8_t *packet = poller->frame_memory + address;
    struct ptk_frame_view view;
    if (!admit(poller, packet, len, &view)) {
        return false;
    }
    if (!tx_reserve(poller, 1)) {
        poller->worker.counters[PTK_WORKER_RX_SKIPPED]++;
        return false; /* Before the engine's work, which nobody would see. */
    }
    const size_t room = PTK_FRAME_LEN - (address & (PTK_FRAME_LEN - 1)) - view.payload_off;
    const size_t reply_cap = ptk_min_size(room, link_payload_max(poller, &view));
    const size_t reply_len = handle(poller, packet, &view, packet + view.payload_off, reply_cap);
    if (reply_len == 0) {
        return false;
    }
    const size_t packet_len = ptk_frame_reply_build(packet, &view, packet, reply_len);
    tx_write(poller, address, packet_len, false);
    count_reply(poller, packet_len, reply_len);
    poller->batch_replies++;
    return true;
}

/*
 * Appends a part to the packet that is being gathered. At its last one the packet is answered in
 * linear_reply as by reply_linear; before, there is no reply.
 */
static size_t gather(struct ptk_poller *poller, const struct xdp_desc *descriptor,
                     size_t *payload_len)
{
    poller->gathered_parts++;
    if (poller->gathered_parts <= PTK_POLLER_PARTS_MAX) {
        memcpy(poller->gathered + poller->gathered_len, poller->frame_memory + descriptor->addr,
               descriptor->len);
        poller->gathered_len += descriptor->len;
    }
    if ((descriptor->options & XDP_PKT_CONTD) != 0) {
        return 0;
    }
    size_t packet_len = 0;
    if (poller->gathered_parts <= PTK_POLLER_PARTS_MAX) {
        poller->worker.counters[PTK_WORKER_MULTI_BUFFER]++;
        packet_len = reply_linear(poller, poller->gathered, poller->gathered_len, payload_len);
    } else {
        poller->worker.counters[PTK_WORKER_RX_PACKETS]++;
        poller->worker.counters[PTK_WORKER_REFUSED_LARGE]++;
    }
    poller->gathered_parts = 0;
    poller->gathered_len = 0;
    return packet_len;
}

/* One descriptor where a packet may span several: its frame is free again before the reply takes
 * any. */
static void receive_part(struct ptk_poller *poller, const struct xdp_desc *descriptor)
{
    size_t payload_len = 0;
    const bool whole = poller->gathered_parts == 0 && (descriptor->options & XDP_PKT_CONTD) == 0;
    const size_t packet_len = whole ? reply_linear(poller, poller->frame_memory + descriptor->addr,
                                                   descriptor->len, &payload_len)
                                    : gather(poller, descriptor, &payload_len);
    (void)ptk_frames_give(&poller->frames, descriptor->addr >> PTK_FRAME_SHIFT,
                          PTK_FRAME_PLACE_HELD); /* Held since receive(): cannot fail. */
    if (packet_len > 0 && scatter(poller, packet_len)) {
        count_reply(poller, packet_len, payload_len);
        poller->batch_replies++;
    }
}

/* One descriptor of the receive ring: its frame ends in the transmit ring or in the free list. */
static void receive(struct ptk_poller *poller, const struct xdp_desc *descriptor)
{
    const uint64_t frame = descriptor->addr >> PTK_FRAME_SHIFT;
    const uint64_t offset = descriptor->addr & (PTK_FRAME_LEN - 1);
    if (!ptk_frames_move(&poller->frames, frame, PTK_FRAME_PLACE_RX, PTK_FRAME_PLACE_HELD)) {
        return;
    }
    const bool inside = descriptor->len <= PTK_FRAME_LEN - offset;
    const bool part_fits = descriptor->len <= PTK_POLLER_PART_LEN;
    if (PTK_UNLIKELY(!inside || !part_fits)) {
        poller->frames.faults++;
        (void)ptk_frames_give(&poller->frames, frame, PTK_FRAME_PLACE_HELD);
    } else if (poller->multi_buffer) {
        receive_part(poller, descriptor);
    } else if (!answer_in_place(poller, descriptor->addr, descriptor->len)) {
        (void)ptk_frames_give(&poller->frames, frame, PTK_FRAME_PLACE_HELD);
    }
}

/* A batch that takes long must not starve the rings. */
static void breathe(struct ptk_poller *poller)
{
    const uint64_t now = ptk_cycles();
    if (now < poller->breath_at) {
        return;
    }
    flush(poller);
    complete(poller);
    refill(poller);
    poller->breath_at = now + (uint64_t)PTK_POLLER_BREATH_US * poller->worker.config.cycles_per_us;
}

uint32_t ptk_poller_step(struct ptk_poller *poller)
{
    ptk_worker_loop_begin(&poller->worker);
    complete(poller);
    refill(poller);
    const uint32_t count = ptk_ring_peek(&poller->rx, PTK_POLLER_BATCH);
    if (count == 0) {
        flush(poller); /* Only what the kernel has left in the ring. */
        return 0;
    }
    poller->batch_start = ptk_cycles();
    poller->breath_at =
        poller->batch_start + (uint64_t)PTK_POLLER_BREATH_US * poller->worker.config.cycles_per_us;
    for (uint32_t i = 0; i < count; i++) {
        /* A copy: the entry is in memory the kernel shares, and is judged by what was read once. */
        const struct xdp_desc descriptor =
            *ptk_ring_descriptor(&poller->rx, poller->rx.position + i);
        if (i + 1 < count) {
            const struct xdp_desc *next =
                ptk_ring_descriptor(&poller->rx, poller->rx.position + i + 1);
            ptk_prefetch(poller->frame_memory + next->addr);
            ptk_prefetch(poller->frame_memory + next->addr + PTK_CACHE_LINE);
        }
        receive(poller, &descriptor);
        breathe(poller);
    }
    ptk_ring_release(&poller->rx, count);
    flush(poller);
    poller->worker.gauges[PTK_WORKER_GAUGE_RX_PENDING] = poller->rx.other - poller->rx.position;
    PTK_DCHECK(poller->frames.counts[PTK_FRAME_PLACE_HELD] == 0);
    return count;
}

static void serve(void *self)
{
    (void)ptk_poller_step(self);
}

/* Makes and sends the next datagram of a burst; false at its end. */
static bool push_one(struct ptk_poller *poller, const struct route *route)
{
    uint8_t *packet = poller->linear_reply;
    uint32_t frame = 0;
    if (!poller->multi_buffer) {
        if (!tx_reserve(poller, 1)) {
            poller->worker.counters[PTK_WORKER_TX_FULL]++;
            return false;
        }
        if (!ptk_frames_take(&poller->frames, PTK_FRAME_PLACE_HELD, &frame)) {
            poller->worker.counters[PTK_WORKER_TX_NO_FRAME]++;
            return false;
        }
        packet = frame_base(poller, frame) + PTK_POLLER_HEADROOM;
    }
    const size_t len = ptk_bulk_next(poller->worker.config.bulk, packet + route->view.payload_off);
    bool sent = len > 0;
    size_t packet_len = 0;
    if (sent) {
        packet_len = ptk_frame_reply_build(route->headers, &route->view, packet, len);
    }
    if (poller->multi_buffer) {
        sent = sent && scatter(poller, packet_len);
    } else if (sent) {
        tx_write(poller, ((uint64_t)frame << PTK_FRAME_SHIFT) + PTK_POLLER_HEADROOM, packet_len,
                 false);
    } else {
        (void)ptk_frames_give(&poller->frames, frame,
                              PTK_FRAME_PLACE_HELD); /* Held: cannot fail. */
    }
    if (sent) {
        count_reply(poller, packet_len, len);
    }
    return sent;
}

/* Sends the burst. What finds no room is dropped and counted: the client asks for it again. */
static void push(void *self)
{
    struct ptk_poller *poller = self;
    struct ptk_bulk *bulk = poller->worker.config.bulk;
    if (PTK_LIKELY(!ptk_bulk_bursting(bulk))) {
        return;
    }
    struct route route;
    memcpy(&route, ptk_bulk_route(bulk), sizeof route);
    while (push_one(poller, &route)) {
    }
    ptk_bulk_drop(bulk);
}

uint32_t ptk_poller_frames_missing(const struct ptk_poller *poller)
{
    const struct ptk_frames *frames = &poller->frames;
    return frames->count - frames->counts[PTK_FRAME_PLACE_FREE] -
           frames->counts[PTK_FRAME_PLACE_RX] - frames->counts[PTK_FRAME_PLACE_TX];
}

static void publish_frames(struct ptk_poller *poller)
{
    uint64_t *gauges = poller->worker.gauges;
    gauges[PTK_WORKER_GAUGE_FRAMES] = poller->frames.count;
    gauges[PTK_WORKER_GAUGE_FRAMES_FREE] = poller->frames.counts[PTK_FRAME_PLACE_FREE];
    gauges[PTK_WORKER_GAUGE_FRAMES_RX] = poller->frames.counts[PTK_FRAME_PLACE_RX];
    gauges[PTK_WORKER_GAUGE_FRAMES_TX] = poller->frames.counts[PTK_FRAME_PLACE_TX];
    gauges[PTK_WORKER_GAUGE_FRAMES_MISSING] = ptk_poller_frames_missing(poller);
    poller->worker.counters[PTK_WORKER_FRAME_FAULTS] = poller->frames.faults;
}

void *ptk_poller_main(void *argument)
{
    struct ptk_poller *poller = argument;
    ptk_worker_enter(&poller->worker);
    for (;;) { /* Until the worker says stop. */
        /* Not within a packet: whoever goes on with the rings has only its remaining parts. */
        if (poller->gathered_parts == 0 && !ptk_worker_may_go_on(&poller->worker)) {
            break;
        }
        const uint64_t start = ptk_cycles();
        uint32_t packets = ptk_poller_step(poller);
        if (ptk_worker_work(&poller->worker)) {
            packets++;
            flush(poller);
        }
        publish_frames(poller);
        const bool pending = poller->frames.counts[PTK_FRAME_PLACE_TX] > 0 ||
                             ptk_bulk_queued(poller->worker.config.bulk) > 0;
        const enum ptk_worker_turn turn =
            ptk_worker_loop_end(&poller->worker, start, packets, pending);
        if (turn == PTK_WORKER_TURN_STOP) {
            break;
        }
        if (turn == PTK_WORKER_TURN_SLEEP) {
            /* Replies that the kernel has not taken yet are offered again soon. */
            (void)ptk_wake_wait(poller->socket_fd,
                                poller->tx_untaken ? 1 : ptk_worker_sleep_ms(&poller->worker));
        }
    }
    ptk_worker_leave(&poller->worker);
    return NULL;
}
