/* The loop of a poller. */
#include "serve/ptk_poller.h"

#include "net/ptk_wake.h"

/* Multi-buffer, since Linux 6.6: the packet continues in the next descriptor. */
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)
#endif

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
    ptk_worker_init(&poller->worker, &config->worker);
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

/* Free frames are lent for receiving until the fill ring is full. Where a reply may need several
 * frames, those of one reply are kept back. */
static void refill(struct ptk_poller *poller)
{
    const uint32_t kept = poller->multi_buffer ? PTK_POLLER_PARTS_MAX : 0;
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
    poller->batch_replies++;
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
    *payload_len =
        ptk_worker_handle(&poller->worker, packet + view.payload_off, view.payload_len,
                          poller->linear_reply + view.payload_off, link_payload_max(poller, &view));
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
        poller->worker.counters[PTK_WORKER_TX_FULL]++;
        return false; /* Before the engine's work, which nobody would see. */
    }
    const size_t room = PTK_FRAME_LEN - (address & (PTK_FRAME_LEN - 1)) - view.payload_off;
    const size_t reply_cap = ptk_min_size(room, link_payload_max(poller, &view));
    const size_t reply_len =
        ptk_worker_handle(&poller->worker, packet + view.payload_off, view.payload_len,
                          packet + view.payload_off, reply_cap);
    if (reply_len == 0) {
        return false;
    }
    const size_t packet_len = ptk_frame_reply_build(packet, &view, packet, reply_len);
    tx_write(poller, address, packet_len, false);
    count_reply(poller, packet_len, reply_len);
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
        const uint32_t packets = ptk_poller_step(poller);
        publish_frames(poller);
        const bool pending = poller->frames.counts[PTK_FRAME_PLACE_TX] > 0;
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
