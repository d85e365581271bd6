/*
 * The real poller on rings in plain memory. This file plays the kernel (net/ptk_wake.h and the far
 * ends of the rings), the network and the engine, and does to the poller what those may do at any
 * time: late completions, full and empty rings, EAGAIN, a link that is down, batches that end in
 * the middle of a packet, refused packets, descriptors that lie.
 *
 * In every second schedule clients send long messages beside the small requests, over a link that
 * loses, doubles, delays, damages and cuts datagrams, while frames are damaged and cut as well;
 * long work pauses, and the same poller goes on inside.
 *
 * Now and then another poller takes over what the last one has left: rings and frame places.
 *
 * Shown, for every step of every schedule: no frame is lost or in two places; every accepted
 * request is answered exactly once, in order, with the right bytes, or is counted as dropped for a
 * stated reason; every long message ends in its exact reply; and every packet has one fate among
 * the counters.
 *
 * PTK_SEED sets the first seed; each schedule prints its own when it fails. A message without
 * progress is forgotten by the real cycle counter, so a schedule with long messages may differ a
 * little when it runs again.
 */
#include "serve/ptk_poller.h"

#include "net/ptk_wake.h"
#include "ptk_test_packet.h"
#include "open_guard.h"

#define LONG_MESSAGE_LEN_MAX 65536u
#include "long_client.h"

#include <stdio.h>
#include <stdlib.h>

#define PORT       7265
#define RING_LEN   32u
#define FILL_LEN   64u
#define FRAMES_MAX 256u
#define LONG_PORT  2000u /* of the first client with long messages; small requests have others */
#define LONG_COUNT 40u   /* messages of a schedule */
#define SERVER_IPV4                                                                                \
    {                                                                                              \
        192, 0, 2, 1                                                                               \
    }
#define CLIENT_IPV4                                                                                \
    {                                                                                              \
        192, 0, 2, 2                                                                               \
    }
#define FIRST_POSITION (UINT32_MAX - 500u) /* The positions wrap early in every schedule. */

/* --- the engine: a function of the request that the far end can check ----------------------------
 */

/* A request: u64 number, u32 length of the reply it wants (0: none), then filling. The reply: the
 * same number, then bytes that follow from it. */
struct ptk_engine {
    struct ptk_engine_counters counters;
    uint64_t handled;
    size_t reply_cap_seen;
};

static uint8_t reply_byte(uint64_t number, size_t off)
{
    return (uint8_t)(number * 7 + off * 3);
}

void ptk_engine_refresh(struct ptk_engine *engine)
{
    (void)engine;
}

const struct ptk_engine_counters *ptk_engine_counters(const struct ptk_engine *engine)
{
    return &engine->counters;
}

size_t ptk_engine_handle(struct ptk_engine *engine, const uint8_t *datagram, size_t len,
                         uint8_t *reply, size_t reply_cap, enum ptk_verdict *verdict)
{
    PTK_ASSERT(reply_cap >= PTK_ENGINE_REPLY_CAP_MIN);
    const uint64_t number = len >= 12 ? ptk_load_u64(datagram) : UINT64_MAX;
    engine->handled++;
    if (number > UINT16_MAX) { /* What damage has made of a datagram of a long message. */
        *verdict = PTK_VERDICT_BAD_MAGIC;
        engine->counters.verdicts[PTK_VERDICT_BAD_MAGIC]++;
        return 0;
    }
    const size_t wanted = ptk_load_u32(datagram + 8);
    for (size_t i = 12; i < len; i++) {
        PTK_ASSERT(datagram[i] == reply_byte(number, i)); /* Gathered in order, nothing missing. */
    }
    engine->reply_cap_seen = reply_cap;
    *verdict = PTK_VERDICT_OK;
    engine->counters.verdicts[PTK_VERDICT_OK]++;
    const size_t reply_len = ptk_min_size(wanted, reply_cap);
    if (reply_len >= 8) {
        ptk_store_u64(reply, number);
    }
    for (size_t i = 8; i < reply_len; i++) {
        reply[i] = reply_byte(number, i);
    }
    return reply_len;
}

/* Cycles of a step as last measured: what is idle, sanitizers and slow machines decide. */
static uint64_t step_cycles;
#define IDLE_STEPS 4000u

/* The thread sanitizer is slow, and there is one thread here. */
#ifdef __SANITIZE_THREAD__
#define SCHEDULES 16u
#else
#define SCHEDULES 48u
#endif

/* Of two pollers, one takes over from the other: each has a bulk of its own. */
static struct ptk_bulk *make_bulk(uint64_t number)
{
    static uint8_t memory[2][2 << 20] __attribute__((aligned(64)));
    const struct ptk_bulk_limits limits = {
        .message_len_max = LONG_MESSAGE_LEN_MAX,
        .arena_len = 12 * LONG_MESSAGE_LEN_MAX,
        .cycles_per_us = (uint32_t)(1 + step_cycles * IDLE_STEPS / PTK_BULK_IDLE_US)};
    PTK_ASSERT(ptk_bulk_len(&limits) <= sizeof memory[0]);
    return ptk_bulk_init(memory[number % 2], &limits);
}

/* --- the kernel
 * ------------------------------------------------------------------------------------ */

struct shared_ring {
    uint32_t producer;
    uint32_t consumer;
    uint32_t flags;
    union {
        uint64_t addresses[FILL_LEN];
        struct xdp_desc descriptors[FILL_LEN];
    } entries;
};

struct expected_reply {
    uint64_t number;
    size_t len; /* of the payload */
};

/* Everything of one schedule. */
static struct simulation {
    struct ptk_poller poller;
    struct ptk_engine engine;
    struct ptk_stats_worker stats;
    struct shared_ring rx;
    struct shared_ring tx;
    struct shared_ring fill;
    struct shared_ring completion;
    uint32_t mtu;
    bool faults;    /* the kernel may lie */
    bool copy_mode; /* the transmit side always asks for a wake-up and sends inside it */
    bool calm;      /* no more delays: everything is moved on at once */
    bool link_down;
    bool longs; /* there are long messages */
    /* Frames in the kernel's hands. */
    uint64_t receiving[FRAMES_MAX];
    uint32_t receiving_count;
    uint64_t sending[FRAMES_MAX];
    uint32_t sending_count;
    /* The packet that is being delivered in parts. */
    uint8_t packet[PTK_POLLER_PACKET_LEN_MAX + 2 * PTK_POLLER_PART_LEN];
    size_t packet_len;
    size_t packet_off;
    /* The reply that is being taken in parts. */
    uint8_t reply[PTK_POLLER_PACKET_LEN_MAX];
    size_t reply_len;
    /* Replies that must come, in this order, unless counted as dropped. */
    struct expected_reply expected[65536];
    uint32_t expected_first;
    uint32_t expected_end;
    uint64_t requests;
    uint64_t refused;
    uint64_t too_large;
    uint64_t silent;
    uint64_t answered;
    uint64_t skipped;
    uint64_t lies;
    uint64_t long_packets; /* datagrams of long messages delivered, whole or damaged */
    uint64_t long_replies; /* and sent */
    uint64_t begun;        /* long messages by clients */
    uint64_t unknown;      /* under way when a poller was taken over */
} sim;

static uint8_t frame_memory[FRAMES_MAX * PTK_FRAME_LEN] __attribute__((aligned(4096)));
static uint8_t frame_places[FRAMES_MAX];
static uint8_t poller_memory[2][FRAMES_MAX * 8 + 4 * PTK_POLLER_PACKET_LEN_MAX]
    __attribute__((aligned(64)));
static struct ptk_poller_config config;
static uint64_t take_overs;

static uint32_t shared_count(const struct shared_ring *ring)
{
    return ring->producer - ring->consumer;
}

/* Takes frames out of the fill ring. */
static void kernel_take_fill(void)
{
    uint32_t wanted = sim.calm ? FILL_LEN : test_random_below(&seed, 16);
    while (wanted-- > 0 && shared_count(&sim.fill) > 0) {
        const uint64_t address = sim.fill.entries.addresses[sim.fill.consumer % FILL_LEN];
        EXPECT(address % PTK_FRAME_LEN == 0);
        EXPECT(address / PTK_FRAME_LEN < sim.poller.frames.count);
        for (uint32_t i = 0; i < sim.receiving_count; i++) {
            EXPECT(sim.receiving[i] != address); /* lent twice */
        }
        for (uint32_t i = 0; i < sim.sending_count; i++) {
            EXPECT(sim.sending[i] / PTK_FRAME_LEN != address / PTK_FRAME_LEN);
        }
        sim.receiving[sim.receiving_count++] = address;
        sim.fill.consumer++;
    }
}

/* The next datagram of a long message for the server; what is for its clients is delivered. */
static bool network_take_long(struct datagram *datagram)
{
    while (link_take(datagram)) {
        if (datagram->to_server) {
            return true;
        }
        client_receive(datagram);
    }
    return false;
}

/* A frame of a long message, now and then damaged or cut on its way; false when there is none. */
static bool network_make_long(void)
{
    static struct datagram datagram;
    if (!network_take_long(&datagram)) {
        return false;
    }
    const struct test_packet packet = {.source = CLIENT_IPV4,
                                       .target = SERVER_IPV4,
                                       .vlan = chance(30),
                                       .source_port = (uint16_t)(LONG_PORT + datagram.client),
                                       .target_port = PORT,
                                       .payload = datagram.bytes,
                                       .payload_len = datagram.len};
    sim.packet_len = test_packet_build(&packet, sim.packet);
    sim.packet_off = 0;
    sim.long_packets++;
    if (chance(2)) {
        const uint32_t at = test_random_below(&seed, (uint32_t)sim.packet_len);
        sim.packet[at] ^= (uint8_t)(1u << test_random_below(&seed, 8));
    } else if (chance(2)) {
        sim.packet_len = 1 + test_random_below(&seed, (uint32_t)sim.packet_len);
    }
    return true;
}

/* A small request: mostly a good one, sometimes one to refuse. */
static void network_make_small(void)
{
    static uint8_t payload[PTK_POLLER_PACKET_LEN_MAX + 2 * PTK_POLLER_PART_LEN];
    struct test_packet packet = {.source = CLIENT_IPV4,
                                 .target = SERVER_IPV4,
                                 .vlan = chance(30),
                                 .source_port = (uint16_t)(1024 + test_random_below(&seed, 6)),
                                 .target_port = PORT,
                                 .payload = payload};
    packet.source_port = (uint16_t)(packet.source_port == 1900 ? 1901 : packet.source_port);
    const uint32_t payload_max = sim.mtu - 28;
    const uint64_t number = ++sim.requests;
    uint32_t reply_wanted = chance(10) ? 0 : 8 + test_random_below(&seed, payload_max);
    packet.payload_len = 12 + test_random_below(&seed, chance(30) ? payload_max - 11 : 200);
    bool good = true;
    if (chance(10)) {
        good = false;
        if (sim.mtu > PTK_POLLER_MTU_SINGLE && chance(30)) {
            packet.payload_len =
                PTK_POLLER_PACKET_LEN_MAX; /* More parts than any packet may have. */
            sim.too_large++;
        } else if (chance(50)) {
            packet.checksum = TEST_CHECKSUM_BAD;
        } else {
            packet.source_port = 53;
        }
        sim.refused++;
    }
    EXPECT(number <= UINT16_MAX);
    ptk_store_u64(payload, number);
    ptk_store_u32(payload + 8, reply_wanted);
    for (size_t i = 12; i < packet.payload_len; i++) {
        payload[i] = reply_byte(number, i);
    }
    if (packet.payload_len == PTK_POLLER_PACKET_LEN_MAX) {
        memset(sim.packet, 0, sizeof sim.packet);
        sim.packet_len = PTK_POLLER_PACKET_LEN_MAX + 1;
    } else {
        sim.packet_len = test_packet_build(&packet, sim.packet);
    }
    if (!good && packet.payload_len < PTK_POLLER_PACKET_LEN_MAX && chance(30)) {
        sim.packet_len -= 1 + test_random_below(&seed, (uint32_t)sim.packet_len - 1);
    }
    sim.packet_off = 0;
    if (good && reply_wanted > 0) {
        EXPECT(sim.expected_end < PTK_ARRAY_LEN(sim.expected));
        sim.expected[sim.expected_end].number = number;
        sim.expected[sim.expected_end].len = ptk_min_size(reply_wanted, payload_max);
        sim.expected_end++;
    } else if (good) {
        sim.silent++;
    }
}

/* The next packet from the network; false when there is none. */
static bool network_make_packet(void)
{
    if (sim.longs && (sim.calm || chance(60)) && network_make_long()) {
        return true;
    }
    if (sim.calm) {
        return false;
    }
    network_make_small();
    return true;
}

/*
 * A descriptor that names a frame the kernel does not hold for receiving: one beyond the end, or
 * one that it is sending. Written right before the poller looks, and never for a frame that may
 * come free until then.
 */
static void kernel_lie(void)
{
    uint64_t frame = sim.poller.frames.count + test_random_below(&seed, 1000);
    if (shared_count(&sim.rx) == RING_LEN || sim.poller.gathered_parts > 0) {
        return;
    }
    if (chance(50)) {
        frame = test_random_below(&seed, sim.poller.frames.count);
        if (sim.poller.frames.places[frame] != PTK_FRAME_PLACE_TX) {
            return;
        }
        for (uint32_t i = sim.completion.consumer; i != sim.completion.producer; i++) {
            if (sim.completion.entries.addresses[i % RING_LEN] / PTK_FRAME_LEN == frame) {
                return;
            }
        }
    }
    sim.rx.entries.descriptors[sim.rx.producer % RING_LEN] =
        (struct xdp_desc){.addr = frame * PTK_FRAME_LEN + PTK_POLLER_HEADROOM, .len = 100};
    sim.rx.producer++;
    sim.lies++;
}

/* Puts parts of packets into the receive ring; may stop in the middle of a packet. */
static void kernel_receive(void)
{
    uint32_t parts = test_random_below(&seed, 24);
    while (parts-- > 0 && sim.receiving_count > 0 && shared_count(&sim.rx) < RING_LEN) {
        if (sim.packet_off == sim.packet_len && !network_make_packet()) {
            return;
        }
        const size_t len = ptk_min_size(sim.packet_len - sim.packet_off, PTK_POLLER_PART_LEN);
        const uint32_t pick = test_random_below(&seed, sim.receiving_count);
        const uint64_t frame = sim.receiving[pick];
        sim.receiving[pick] = sim.receiving[--sim.receiving_count];
        memcpy(frame_memory + frame + PTK_POLLER_HEADROOM, sim.packet + sim.packet_off, len);
        sim.packet_off += len;
        sim.rx.entries.descriptors[sim.rx.producer % RING_LEN] =
            (struct xdp_desc){.addr = frame + PTK_POLLER_HEADROOM,
                              .len = (uint32_t)len,
                              .options = sim.packet_off < sim.packet_len ? 1 : 0};
        sim.rx.producer++;
    }
}

/* A whole reply has left: it is the next expected one, or later ones were counted as dropped. */
static void network_check_reply(void)
{
    struct ptk_address_set client = {0};
    struct ptk_frame_view view;
    const struct ptk_address address = ptk_address_from_ipv4((const uint8_t[])CLIENT_IPV4);
    EXPECT(ptk_address_set_add(&client, &address, NULL) == 0);
    EXPECT(sim.reply_len >= 14);
    const size_t ip_off = sim.reply[12] == 0x81 ? 18 : 14;
    const uint16_t port = (uint16_t)(sim.reply[ip_off + 22] << 8 | sim.reply[ip_off + 23]);
    const struct ptk_frame_filter filter = {
        .own = &client, .port = port, .checksum = PTK_FRAME_CHECKSUM_VERIFY};
    EXPECT(ptk_frame_parse(sim.reply, sim.reply_len, &filter, &view) == PTK_FRAME_OK);
    const uint8_t *payload = sim.reply + view.payload_off;
    if (port >= LONG_PORT) {
        link_put(port - LONG_PORT, false, payload, view.payload_len);
        sim.long_replies++;
        sim.reply_len = 0;
        return;
    }
    EXPECT(view.payload_len >= 8);
    const uint64_t number = ptk_load_u64(payload);
    while (sim.expected_first < sim.expected_end &&
           sim.expected[sim.expected_first].number != number) {
        sim.expected_first++;
        sim.skipped++;
    }
    EXPECT(sim.expected_first < sim.expected_end);
    EXPECT(sim.expected[sim.expected_first].len == view.payload_len);
    for (size_t i = 8; i < view.payload_len; i++) {
        EXPECT(payload[i] == reply_byte(number, i));
    }
    sim.expected_first++;
    sim.answered++;
    sim.reply_len = 0;
}

/* Takes up to `budget` descriptors out of the transmit ring. */
static void kernel_send(uint32_t budget)
{
    while (budget-- > 0 && shared_count(&sim.tx) > 0) {
        const struct xdp_desc descriptor = sim.tx.entries.descriptors[sim.tx.consumer % RING_LEN];
        EXPECT(descriptor.addr / PTK_FRAME_LEN < sim.poller.frames.count);
        EXPECT(descriptor.addr % PTK_FRAME_LEN + descriptor.len <= PTK_FRAME_LEN);
        EXPECT((descriptor.options & ~1u) == 0);
        EXPECT(sim.reply_len + descriptor.len <= sizeof sim.reply);
        memcpy(sim.reply + sim.reply_len, frame_memory + descriptor.addr, descriptor.len);
        sim.reply_len += descriptor.len;
        sim.sending[sim.sending_count++] = descriptor.addr;
        sim.tx.consumer++;
        if (descriptor.options == 0) {
            network_check_reply();
        }
    }
}

/* Gives sent frames back, in any order, whenever it likes. */
static void kernel_complete(void)
{
    uint32_t count = sim.calm ? RING_LEN : test_random_below(&seed, 12);
    while (count-- > 0 && sim.sending_count > 0 && shared_count(&sim.completion) < RING_LEN) {
        const uint32_t pick = test_random_below(&seed, sim.sending_count);
        sim.completion.entries.addresses[sim.completion.producer % RING_LEN] = sim.sending[pick];
        sim.sending[pick] = sim.sending[--sim.sending_count];
        sim.completion.producer++;
    }
}

enum ptk_wake ptk_wake_tx(int socket_fd)
{
    EXPECT(socket_fd == 4711);
    if (sim.link_down) {
        return PTK_WAKE_DOWN;
    }
    if (!sim.calm && chance(20)) {
        return PTK_WAKE_DROPPED; /* Nothing is taken this time. */
    }
    kernel_send(sim.calm ? RING_LEN : 8);
    return shared_count(&sim.tx) > 0 ? PTK_WAKE_AGAIN : PTK_WAKE_DONE;
}

void ptk_wake_rx(int socket_fd)
{
    EXPECT(socket_fd == 4711);
    kernel_take_fill();
}

bool ptk_wake_wait(int socket_fd, int timeout_ms)
{
    (void)socket_fd;
    (void)timeout_ms;
    return shared_count(&sim.rx) > 0;
}

/* --- schedules
 * ------------------------------------------------------------------------------------- */

static struct ptk_ring ring_over(struct shared_ring *shared, uint32_t len)
{
    shared->producer = FIRST_POSITION;
    shared->consumer = FIRST_POSITION;
    return (struct ptk_ring){.position = FIRST_POSITION,
                             .other = FIRST_POSITION,
                             .len = len,
                             .producer = &shared->producer,
                             .consumer = &shared->consumer,
                             .flags = &shared->flags,
                             .entries = &shared->entries};
}

struct schedule {
    uint64_t seed;
    uint32_t mtu;
    bool faults;
    bool longs;
};

static void start(const struct schedule *schedule, const struct ptk_address_set *own)
{
    memset(&sim, 0, sizeof sim);
    first_seed = schedule->seed;
    seed = first_seed * 0x9E3779B97F4A7C15ull + 1;
    sim.mtu = schedule->mtu;
    sim.faults = schedule->faults;
    sim.longs = schedule->longs;
    link_clear();
    link.loss = test_random_below(&seed, 12);
    link.doubling = test_random_below(&seed, 10);
    link.delay = test_random_below(&seed, 10);
    link.damage = test_random_below(&seed, 2);
    link.cutting = test_random_below(&seed, 3);
    long_segment_len_max = (uint16_t)(sim.mtu - 28 - PTK_WIRE_HEADER_LEN);
    long_work.pauses = test_random_below(&seed, 4);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].busy = false;
    }
    sim.copy_mode = chance(50);
    const uint32_t frame_count =
        chance(30) ? 30 : FRAMES_MAX; /* Few: the poller runs out of them. */
    config = (struct ptk_poller_config){
        .worker = {.kind = PTK_WORKER_KIND_POLLER,
                   .cpu_id = PTK_WORKER_NOT_PINNED,
                   .cycles_per_us =
                       chance(50) ? 1 : 100000, /* Breathes after each packet, or never. */
                   .engine = &sim.engine,
                   .bulk = make_bulk(take_overs),
                   .guard = open_guard(),
                   .stats = &sim.stats},
        .rx = ring_over(&sim.rx, RING_LEN),
        .tx = ring_over(&sim.tx, RING_LEN),
        .fill = ring_over(&sim.fill, FILL_LEN),
        .completion = ring_over(&sim.completion, RING_LEN),
        .socket_fd = 4711,
        .frame_memory = frame_memory,
        .frame_places = frame_places,
        .frame_count = frame_count,
        .mtu = sim.mtu,
        .filter = {.own = own, .port = PORT, .checksum = PTK_FRAME_CHECKSUM_VERIFY},
        .memory = poller_memory[0],
    };
    PTK_ASSERT(ptk_poller_memory_len(frame_count) <= sizeof poller_memory[0]);
    ptk_poller_init(&sim.poller, &config);
}

/* Every frame is where the poller's books say, and the far end agrees. */
static void check_frames(void)
{
    const struct ptk_frames *frames = &sim.poller.frames;
    EXPECT(ptk_poller_frames_missing(&sim.poller) == 0);
    EXPECT(frames->counts[PTK_FRAME_PLACE_HELD] == 0);
    const uint32_t lent_rx = sim.receiving_count + shared_count(&sim.fill) + shared_count(&sim.rx);
    const uint32_t lent_tx =
        sim.sending_count + shared_count(&sim.tx) + shared_count(&sim.completion);
    /* A lie that still stands in the receive ring is a descriptor without a frame. */
    const uint64_t standing_lies = sim.lies - frames->faults;
    EXPECT(frames->counts[PTK_FRAME_PLACE_RX] + standing_lies == lent_rx);
    EXPECT(frames->counts[PTK_FRAME_PLACE_TX] == lent_tx);
}

/* Another poller goes on where this one is, unless this one is within a packet: it has the shared
 * memory and the counters, and nothing else. */
static void take_over(void)
{
    static struct ptk_poller heir;
    if (sim.poller.gathered_parts > 0) {
        return;
    }
    take_overs++;
    ptk_worker_publish(&sim.poller.worker); /* The fates of long messages are counters now. */
    config.inherits = true;
    if (sim.longs) { /* To clear it takes longer than everything else. */
        sim.unknown += ptk_bulk_state(config.worker.bulk)->slots_used;
        config.worker.bulk = make_bulk(take_overs);
    }
    config.memory = poller_memory[take_overs % 2];
    ptk_poller_init(&heir, &config);
    sim.poller.worker.counters[PTK_WORKER_FRAME_FAULTS] = sim.poller.frames.faults;
    memcpy(heir.worker.counters, sim.poller.worker.counters, sizeof heir.worker.counters);
    memcpy(heir.worker.latency, sim.poller.worker.latency, sizeof heir.worker.latency);
    ptk_worker_bulk_resume(&heir.worker);
    EXPECT(ptk_poller_inherit(&heir));
    memset(&sim.poller, 0xEE, sizeof sim.poller);
    memcpy(&sim.poller, &heir, sizeof sim.poller);
    sim.poller.worker.config.driver.self = &sim.poller;
    check_frames();
}

/* What no poller leaves is refused: a frame that is held, one in no place, a ring that is too full.
 */
static void check_take_over_refusals(void)
{
    static struct ptk_poller heir;
    config.inherits = true;
    config.memory = poller_memory[1];
    ptk_poller_init(&heir, &config);
    for (uint32_t wrong = PTK_FRAME_PLACE_HELD; wrong < 256;
         wrong += wrong < PTK_FRAME_PLACE_COUNT ? 2 : 251) {
        const uint8_t right = frame_places[3];
        frame_places[3] = (uint8_t)wrong;
        EXPECT(ptk_poller_inherit(&heir) == (wrong == PTK_FRAME_PLACE_RX));
        frame_places[3] = right;
    }
    uint32_t *const positions[] = {&sim.rx.producer, &sim.tx.producer, &sim.fill.producer,
                                   &sim.completion.producer};
    for (size_t i = 0; i < PTK_ARRAY_LEN(positions); i++) {
        const uint32_t right = *positions[i];
        *positions[i] = right + FILL_LEN + 1;
        EXPECT(!ptk_poller_inherit(&heir));
        *positions[i] = right;
    }
    EXPECT(ptk_poller_inherit(&heir));
}

/* A round of the clients' timers, and the work on what is complete. What that sends is handed over
 * by the next step. */
static void long_round(void)
{
    if (!sim.longs) {
        return;
    }
    link.round++;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (!clients[i].busy && sim.begun < LONG_COUNT) {
            const size_t len = 8 + test_random_below(&seed, chance(20) ? 60000 : 9000);
            const uint32_t wanted = 1 + test_random_below(&seed, chance(20) ? 60000 : 9000);
            client_begin(i, len, chance(5) ? 0 : wanted);
            sim.begun++;
        }
        client_tick(i);
    }
    (void)ptk_worker_work(&sim.poller.worker);
}

/* In a pause of long work the kernel goes on, and the poller looks at its rings. */
static void long_pause(void)
{
    kernel_take_fill();
    kernel_receive();
    if (!sim.copy_mode) {
        kernel_send(test_random_below(&seed, 16));
    }
    kernel_complete();
}

static void run(uint32_t steps)
{
    const uint64_t begun_at = ptk_cycles();
    for (uint32_t step = 0; step < steps; step++) {
        long_round();
        sim.link_down = !sim.calm && chance(5);
        sim.tx.flags = sim.copy_mode || chance(50) ? XDP_RING_NEED_WAKEUP : 0;
        sim.fill.flags = chance(20) ? XDP_RING_NEED_WAKEUP : 0;
        if (chance(70)) {
            kernel_take_fill();
        }
        if (!sim.calm && chance(80)) {
            kernel_receive();
        }
        if (!sim.copy_mode && chance(60)) {
            kernel_send(test_random_below(&seed, 16));
        }
        if (chance(60)) {
            kernel_complete();
        }
        if (sim.faults && sim.packet_off == sim.packet_len && chance(10)) {
            kernel_lie();
        }
        (void)ptk_poller_step(&sim.poller);
        check_frames();
        if (chance(3)) {
            take_over();
        }
    }
    step_cycles = (ptk_cycles() - begun_at) / steps;
}

static bool clients_busy(void)
{
    bool busy = false;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        busy = busy || clients[i].busy;
    }
    return sim.longs && (busy || sim.begun < LONG_COUNT);
}

/* No new requests, no delays of the kernel: everything in flight comes to its end. */
static void settle(void)
{
    sim.calm = true;
    sim.faults = false;
    sim.link_down = false;
    while (sim.packet_off < sim.packet_len) { /* The rest of a half delivered packet. */
        kernel_take_fill();
        kernel_send(RING_LEN);
        kernel_complete();
        if (sim.receiving_count > 0 && shared_count(&sim.rx) < RING_LEN) {
            const size_t len = ptk_min_size(sim.packet_len - sim.packet_off, PTK_POLLER_PART_LEN);
            const uint64_t frame = sim.receiving[--sim.receiving_count];
            memcpy(frame_memory + frame + PTK_POLLER_HEADROOM, sim.packet + sim.packet_off, len);
            sim.packet_off += len;
            sim.rx.entries.descriptors[sim.rx.producer++ % RING_LEN] =
                (struct xdp_desc){.addr = frame + PTK_POLLER_HEADROOM,
                                  .len = (uint32_t)len,
                                  .options = sim.packet_off < sim.packet_len ? 1 : 0};
        }
        (void)ptk_poller_step(&sim.poller);
        check_frames();
    }
    for (uint32_t i = 0; i < 64 || clients_busy(); i++) {
        EXPECT(i < 1000000); /* Every long message comes to its end. */
        long_round();
        kernel_take_fill();
        kernel_receive();
        kernel_send(sim.copy_mode ? 0 : RING_LEN);
        kernel_complete();
        sim.tx.flags = XDP_RING_NEED_WAKEUP;
        (void)ptk_poller_step(&sim.poller);
        check_frames();
    }
    sim.longs = false; /* What is still on its way stays there. */
    for (uint32_t i = 0; i < 64; i++) {
        kernel_take_fill();
        kernel_receive();
        kernel_send(sim.copy_mode ? 0 : RING_LEN);
        kernel_complete();
        (void)ptk_poller_step(&sim.poller);
        check_frames();
    }
}

static uint64_t sum_of(const enum ptk_worker_counter *names, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += sim.poller.worker.counters[names[i]];
    }
    return sum;
}

/* Every packet and every datagram has one fate, and every long message one end. */
static void check_fates(void)
{
    static const enum ptk_worker_counter PACKETS[] = {
        PTK_WORKER_REFUSED_TRUNCATED,    PTK_WORKER_REFUSED_PROTOCOL,
        PTK_WORKER_REFUSED_LENGTH,       PTK_WORKER_REFUSED_IP_CHECKSUM,
        PTK_WORKER_REFUSED_UDP_CHECKSUM, PTK_WORKER_REFUSED_SOURCE,
        PTK_WORKER_REFUSED_DESTINATION,  PTK_WORKER_REFUSED_LARGE,
        PTK_WORKER_RX_SKIPPED,           PTK_WORKER_REQUESTS,
    };
    static const enum ptk_worker_counter REQUESTS[] = {
        PTK_WORKER_GUARD_REFUSED,   PTK_WORKER_HANDLED,      PTK_WORKER_BULK_SEGMENTS,
        PTK_WORKER_BULK_DUPLICATES, PTK_WORKER_BULK_LATE,    PTK_WORKER_BULK_CONFLICTS,
        PTK_WORKER_BULK_PULLS,      PTK_WORKER_BULK_UNKNOWN, PTK_WORKER_BULK_BUSY,
        PTK_WORKER_BULK_CAPPED,     PTK_WORKER_BULK_REFUSED, PTK_WORKER_BULK_EARLY,
        PTK_WORKER_BULK_CANCELS,
    };
    ptk_worker_publish(&sim.poller.worker);
    const uint64_t *counters = sim.poller.worker.counters;
    EXPECT(counters[PTK_WORKER_RX_PACKETS] == sim.requests + sim.long_packets);
    EXPECT(sum_of(PACKETS, PTK_ARRAY_LEN(PACKETS)) == counters[PTK_WORKER_RX_PACKETS]);
    EXPECT(sum_of(REQUESTS, PTK_ARRAY_LEN(REQUESTS)) == counters[PTK_WORKER_REQUESTS]);
    EXPECT(counters[PTK_WORKER_HANDLED] == sim.engine.handled);
    EXPECT(counters[PTK_WORKER_GUARD_REFUSED] == 0);
    EXPECT(counters[PTK_WORKER_TX_PACKETS] == sim.answered + sim.long_replies);
    EXPECT(counters[PTK_WORKER_BULK_BEGUN] == counters[PTK_WORKER_BULK_ANSWERED] +
                                                  counters[PTK_WORKER_BULK_CANCELLED] +
                                                  counters[PTK_WORKER_BULK_EVICTED] + sim.unknown +
                                                  ptk_bulk_state(config.worker.bulk)->slots_used);
}

/* Where nothing else is on the link, what became of each small request is known exactly. */
static void check_sums(void)
{
    const uint64_t *counters = sim.poller.worker.counters;
    const uint64_t dropped = counters[PTK_WORKER_TX_FULL] + counters[PTK_WORKER_TX_NO_FRAME] +
                             counters[PTK_WORKER_RX_SKIPPED];
    sim.skipped += sim.expected_end - sim.expected_first;
    EXPECT(counters[PTK_WORKER_REFUSED_LARGE] == sim.too_large);
    /* Without a free transmit entry a request is dropped before the engine could say "no reply". */
    EXPECT(sim.skipped <= dropped);
    EXPECT(sim.answered + sim.skipped + sim.silent + sim.refused == sim.requests);
    EXPECT(counters[PTK_WORKER_SILENT] + dropped >= sim.silent);
    EXPECT(sim.poller.frames.faults == sim.lies);
    EXPECT(shared_count(&sim.tx) == 0);
    EXPECT(sim.poller.frames.counts[PTK_FRAME_PLACE_TX] == 0);
    EXPECT(sim.poller.frames.counts[PTK_FRAME_PLACE_FREE] +
               sim.poller.frames.counts[PTK_FRAME_PLACE_RX] ==
           sim.poller.frames.count);
    if (sim.long_packets > 0) {
        return;
    }
    EXPECT(counters[PTK_WORKER_SILENT] + dropped + sim.answered + sim.refused == sim.requests);
    uint64_t timed = 0;
    for (uint32_t i = 0; i < PTK_STATS_LATENCY_BUCKETS; i++) {
        timed += sim.poller.worker.latency[i];
    }
    EXPECT(timed == sim.answered);
}

static uint64_t total(uint64_t *sum, enum ptk_worker_counter counter)
{
    return *sum += sim.poller.worker.counters[counter];
}

/* Whatever kernel, network and clients do. */
static void test_no_frame_is_lost_and_every_packet_has_one_fate(void)
{
    static const uint32_t MTUS[] = {1500, PTK_POLLER_MTU_SINGLE, PTK_POLLER_MTU_SINGLE + 1, 9000};
    const char *text = getenv("PTK_SEED");
    const uint64_t base = text != NULL ? strtoull(text, NULL, 10) : 1;
    struct ptk_address_set own = {0};
    const struct ptk_address server = ptk_address_from_ipv4((const uint8_t[])SERVER_IPV4);
    PTK_ASSERT(ptk_address_set_add(&own, &server, NULL) == 0);

    uint64_t tx_full = 0;
    uint64_t no_frame = 0;
    uint64_t answered = 0;
    uint64_t multi_buffer = 0;
    uint64_t lies = 0;
    uint64_t unknown = 0;
    uint64_t hurt[7] = {0}; /* what the link did, and pauses of long work */
    for (uint32_t i = 0; i < SCHEDULES; i++) {
        const struct schedule schedule = {.seed = base + i,
                                          .mtu = MTUS[i % PTK_ARRAY_LEN(MTUS)],
                                          .faults = (i / 4) % 2 == 1,
                                          .longs = (i / 8) % 2 == 1};
        start(&schedule, &own);
        run(1200);
        settle();
        check_fates();
        check_sums();
        check_take_over_refusals();
        PTK_ASSERT(total(&answered, PTK_WORKER_TX_PACKETS) > 0);
        (void)total(&tx_full, PTK_WORKER_TX_FULL);
        (void)total(&tx_full, PTK_WORKER_RX_SKIPPED);
        (void)total(&no_frame, PTK_WORKER_TX_NO_FRAME);
        (void)total(&multi_buffer, PTK_WORKER_MULTI_BUFFER);
        lies += sim.lies;
        unknown += sim.unknown;
        hurt[0] += link.lost;
        hurt[1] += link.doubled;
        hurt[2] += link.delayed;
        hurt[3] += link.overtaken;
        hurt[4] += link.damaged;
        hurt[5] += link.cut;
        hurt[6] += sim.poller.worker.counters[PTK_WORKER_SLICES];
    }
    /* A schedule that never met the hard cases would show nothing. */
    PTK_ASSERT(tx_full > 0);
    PTK_ASSERT(no_frame > 0);
    PTK_ASSERT(multi_buffer > 0);
    PTK_ASSERT(take_overs > 10 * SCHEDULES);
    PTK_ASSERT(lies > 0);
    PTK_ASSERT(unknown > 0);
    for (size_t i = 0; i < PTK_ARRAY_LEN(hurt); i++) {
        PTK_ASSERT(hurt[i] > 0);
    }
    PTK_ASSERT(answered_long > 0);
    printf("poller: ok, %llu answered, %llu ring full, %llu no frame, %llu gathered, %llu lies, "
           "%llu long messages, %llu begun again\n",
           (unsigned long long)answered, (unsigned long long)tx_full, (unsigned long long)no_frame,
           (unsigned long long)multi_buffer, (unsigned long long)lies,
           (unsigned long long)answered_long, (unsigned long long)restarted);
}

int main(void)
{
    test_no_frame_is_lost_and_every_packet_has_one_fate();
    return 0;
}
