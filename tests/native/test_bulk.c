/*
 * Messages in segments: clients over a link that loses, doubles, delays, damages and cuts
 * datagrams, against the real server side and an engine whose replies can be foreseen; then every
 * refusal, the limits of memory, and a flood.
 *
 * PTK_SEED sets the first seed; each schedule prints its own when it fails.
 */
#include "serve/ptk_bulk.h"

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_segment.h"

#define MESSAGE_LEN_MAX      (1u << 20)
#define ARENA_LEN            (6u << 20)
#define LONG_MESSAGE_LEN_MAX MESSAGE_LEN_MAX

#include "long_client.h"

struct ptk_engine {
    uint32_t unused; /* What long messages need is in long_client.h. */
};
static struct ptk_engine engine;

static void long_pause(void) {}

/* --- the server ------------------------------------------------------------------------------ */

static struct ptk_bulk *bulk;
static uint64_t skew; /* cycles that the clock is ahead */
static uint64_t sent_len_max;
static uint64_t received; /* datagrams given to this bulk */

static void server_push(void)
{
    uint8_t bytes[DATAGRAM_CAP];
    if (!ptk_bulk_bursting(bulk)) {
        return;
    }
    uint32_t client;
    memcpy(&client, ptk_bulk_route(bulk), sizeof client);
    for (size_t len; (len = ptk_bulk_next(bulk, bytes)) > 0;) {
        sent_len_max = len > sent_len_max ? len : sent_len_max;
        link_put(client, false, bytes, len);
        if (chance(2)) {
            ptk_bulk_drop(bulk); /* The ring is full. */
        }
    }
}

static struct ptk_bulk_packet packet_from(uint32_t *client, const uint8_t *bytes, size_t len)
{
    const uint8_t address[4] = {192, 0, 2, (uint8_t)(1 + *client % 250)};
    return (struct ptk_bulk_packet){
        .datagram = bytes,
        .len = len,
        .source = ptk_address_from_ipv4(address),
        .source_port = (uint16_t)(1024 + *client),
        .validated = true,
        .link_max = 9000,
        .route = client,
        .route_len = sizeof *client,
        .now = ptk_cycles() + skew,
    };
}

static size_t server_receive(uint32_t client, uint8_t *bytes, size_t len, uint8_t *reply)
{
    const struct ptk_bulk_packet packet = packet_from(&client, bytes, len);
    const size_t reply_len = ptk_bulk_receive(bulk, &packet, reply);
    received++;
    EXPECT(reply_len <= len);
    EXPECT(reply_len == 0 || !ptk_bulk_bursting(bulk));
    return reply_len;
}

static void step(uint32_t budget);

static uint32_t nesting;

static void server_pause(void *self)
{
    (void)self;
    EXPECT(ptk_pause_active == NULL);
    if (nesting < 4) {
        nesting++;
        step(6);
        nesting--;
    }
}

static void server_work(void)
{
    struct ptk_pause pause = {.run = server_pause};
    if (ptk_bulk_work(bulk, &engine, &pause)) {
        server_push();
    }
}

/* A few datagrams arrive, in either direction. */
static void step(uint32_t budget)
{
    static struct datagram datagrams[8];
    struct datagram *datagram = &datagrams[nesting];
    while (budget-- > 0 && link_take(datagram)) {
        if (!datagram->to_server) {
            client_receive(datagram);
            continue;
        }
        if (!ptk_wire_is_segmented(datagram->bytes, datagram->len)) {
            continue; /* Damaged so far that it is another path's. */
        }
        const size_t len =
            server_receive(datagram->client, datagram->bytes, datagram->len, datagram->bytes);
        if (len > 0) {
            link_put(datagram->client, false, datagram->bytes, len);
        }
        server_push();
    }
    server_work();
}

/* Every message and every datagram has one fate. */
static void check_sums(void)
{
    static const enum ptk_bulk_fate INPUTS[] = {
        PTK_BULK_SEGMENTS, PTK_BULK_DUPLICATES, PTK_BULK_LATE,    PTK_BULK_CONFLICTS,
        PTK_BULK_PULLS,    PTK_BULK_UNKNOWN,    PTK_BULK_BUSY,    PTK_BULK_CAPPED,
        PTK_BULK_REFUSED,  PTK_BULK_EARLY,      PTK_BULK_CANCELS,
    };
    const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
    const uint64_t *fates = state->fates;
    EXPECT(fates[PTK_BULK_BEGUN] == fates[PTK_BULK_ANSWERED] + fates[PTK_BULK_CANCELLED] +
                                        fates[PTK_BULK_EVICTED] + state->slots_used);
    EXPECT(state->slots_used <= PTK_BULK_SLOTS);
    EXPECT(state->arena_used_len <= state->arena_len);
    uint64_t counted = 0;
    for (size_t i = 0; i < PTK_ARRAY_LEN(INPUTS); i++) {
        counted += fates[INPUTS[i]];
    }
    EXPECT(counted == received);
}

static void make_bulk(void)
{
    const struct ptk_bulk_limits limits = {
        .message_len_max = MESSAGE_LEN_MAX, .arena_len = ARENA_LEN, .cycles_per_us = 2500};
    static void *memory;
    free(memory);
    memory = aligned_alloc(4096, ptk_align_up(ptk_bulk_len(&limits), 4096));
    EXPECT(memory != NULL);
    bulk = ptk_bulk_init(memory, &limits);
    long_work.pauses = 3;
    skew = 0;
    received = 0;
}

/* --- the properties -------------------------------------------------------------------------- */

/* Whatever the link does, every message ends in its exact reply. */
static void test_every_message_is_answered(void)
{
    const char *text = getenv("PTK_SEED");
    const uint64_t base = text != NULL ? strtoull(text, NULL, 10) : 1;
    uint64_t evicted = 0;
    uint64_t damaged = 0;
    for (uint32_t run = 0; run < 24; run++) {
        first_seed = base + run;
        seed = first_seed * 0x9E3779B97F4A7C15ull + 1;
        make_bulk();
        link_clear();
        link.loss = run % 4 * 4;
        link.doubling = run % 3 * 5;
        link.damage = run % 5 == 4 ? 1 : 0;
        link.cutting = run % 6 == 5 ? 2 : 0;
        link.delay = run % 7 == 6 ? 5 : 0;
        const uint64_t before = answered_long + refused_long;
        uint32_t begun = 0;
        for (uint64_t round = 0;; round++) {
            uint32_t busy = 0;
            for (uint32_t i = 0; i < CLIENTS; i++) {
                if (!clients[i].busy && begun < 60) {
                    const size_t len = 8 + test_random_below(&seed, chance(20) ? 300000 : 20000);
                    client_begin(
                        i, len,
                        chance(5) ? 0 : 1 + test_random_below(&seed, chance(20) ? 900000 : 9000));
                    begun++;
                }
                client_tick(i);
                busy += clients[i].busy;
            }
            if (busy == 0) {
                break;
            }
            skew += 2500 * 200;
            link.round++;
            step(20 + test_random_below(&seed, 60));
            check_sums();
            EXPECT(round < 3000000);
        }
        EXPECT(answered_long + refused_long - before == 60);
        evicted += ptk_bulk_state(bulk)->fates[PTK_BULK_EVICTED];
        damaged += link.damaged;
    }
    /* A link that did nothing would show nothing. */
    EXPECT(restarted > 0);
    EXPECT(damaged + evicted > 0);
    printf("bulk: ok, %llu answered, %llu refused, %llu begun again, %llu evicted\n",
           (unsigned long long)answered_long, (unsigned long long)refused_long,
           (unsigned long long)restarted, (unsigned long long)evicted);
}

/* A segment of a message of its own, with the fields that a test may change. */
static size_t make_segment(uint8_t *bytes, uint64_t request_id, uint32_t segment_idx,
                           uint32_t message_len)
{
    memset(bytes, 0, DATAGRAM_CAP);
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = PTK_WIRE_FLAGS_CRC,
        .message_len = message_len,
        .request_id = request_id,
        .segment_idx = (uint16_t)segment_idx,
        .segment_len = 1200,
        .op = PTK_WIRE_OP_ENCODE,
        .message_crc = 1,
    };
    memcpy(bytes, &header, sizeof header);
    return sizeof header + ptk_min_size(1200, message_len - 1200 * segment_idx);
}

static enum ptk_verdict verdict_of(uint8_t *bytes, size_t len)
{
    static uint8_t reply[DATAGRAM_CAP];
    const size_t reply_len = server_receive(1, bytes, len, reply);
    if (reply_len == 0 || reply[2] != (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY)) {
        return PTK_VERDICT_OK;
    }
    EXPECT(reply_len == PTK_WIRE_HEADER_LEN);
    return (enum ptk_verdict)reply[23];
}

static void test_each_wrong_field_has_its_verdict(void)
{
    static const struct {
        size_t off;
        uint8_t value;
        enum ptk_verdict verdict;
    } EDITS[] = {
        {3, 0, PTK_VERDICT_BAD_FLAGS},
        {3, 0x90, PTK_VERDICT_BAD_FLAGS},
        {3, 0x11, PTK_VERDICT_BAD_LENGTH}, /* An extension in the place of message bytes. */
        {3, 0x14, PTK_VERDICT_UNSUPPORTED},
        {7, 1, PTK_VERDICT_BAD_LENGTH},
        {16, 9, PTK_VERDICT_BAD_LENGTH},
        {17, 1, PTK_VERDICT_BAD_LENGTH},
        {18, 0xB1, PTK_VERDICT_BAD_LENGTH},
        {19, 3, PTK_VERDICT_BAD_LENGTH},
        {22, PTK_WIRE_OP_PING, PTK_VERDICT_BAD_OPTION},
        {22, PTK_WIRE_OP_INFO, PTK_VERDICT_BAD_OPTION},
        {22, PTK_WIRE_OP_PREFIX_PUT, PTK_VERDICT_UNSUPPORTED},
        {22, 0, PTK_VERDICT_BAD_OP},
        {22, 200, PTK_VERDICT_BAD_OP},
        {23, 1, PTK_VERDICT_BAD_FLAGS},
    };
    static uint8_t bytes[DATAGRAM_CAP];
    make_bulk();
    for (size_t i = 0; i < PTK_ARRAY_LEN(EDITS); i++) {
        const size_t len = make_segment(bytes, 1000 + i, 1, 10000);
        bytes[EDITS[i].off] = EDITS[i].value;
        const enum ptk_verdict verdict = verdict_of(bytes, len);
        if (verdict != EDITS[i].verdict) {
            fprintf(stderr, "edit %zu: verdict %d\n", i, verdict);
        }
        EXPECT(verdict == EDITS[i].verdict);
    }
    for (size_t len = PTK_WIRE_HEADER_LEN; len < PTK_WIRE_HEADER_LEN + 1200; len++) {
        (void)make_segment(bytes, 5000, 1, 10000);
        EXPECT(verdict_of(bytes, len) == PTK_VERDICT_BAD_LENGTH);
    }
    EXPECT(ptk_bulk_state(bulk)->slots_used == 0);
    size_t len = make_segment(bytes, 5000, 1, MESSAGE_LEN_MAX + 8);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_TEXT_TOO_LONG);
    len = make_segment(bytes, 5001, 1, MESSAGE_LEN_MAX);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
    EXPECT(ptk_bulk_state(bulk)->slots_used == 1);
}

/* A segment that contradicts the first one is refused, and the message goes on as it was. */
static void test_conflicts_change_nothing(void)
{
    static uint8_t bytes[DATAGRAM_CAP];
    make_bulk();
    size_t len = make_segment(bytes, 7, 0, 10000);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
    len = make_segment(bytes, 7, 1, 10008);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_BAD_LENGTH);
    len = make_segment(bytes, 7, 1, 10000);
    bytes[28] = 2;
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_BAD_CRC);
    len = make_segment(bytes, 7, 1, 10000);
    bytes[22] = PTK_WIRE_OP_COUNT;
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_BAD_OPTION);
    const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
    EXPECT(state->fates[PTK_BULK_CONFLICTS] == 3);
    EXPECT(state->fates[PTK_BULK_SEGMENTS] == 1);
    EXPECT(state->slots_used == 1);
}

/* Another client's request id is not ours. */
static void test_clients_are_told_apart(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    make_bulk();
    const size_t len = make_segment(bytes, 7, 0, 10000);
    (void)server_receive(1, bytes, len, reply);
    (void)server_receive(2, bytes, len, reply);
    EXPECT(ptk_bulk_state(bulk)->slots_used == 2);
    EXPECT(ptk_bulk_state(bulk)->fates[PTK_BULK_DUPLICATES] == 0);
}

static void test_unvalidated_addresses_leave_no_state(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    make_bulk();
    const size_t len = make_segment(bytes, 7, 0, 10000);
    uint32_t client = 1;
    struct ptk_bulk_packet packet = packet_from(&client, bytes, len);
    packet.validated = false;
    EXPECT(ptk_bulk_receive(bulk, &packet, reply) == PTK_WIRE_HEADER_LEN);
    EXPECT(reply[23] == PTK_VERDICT_CHALLENGE);
    EXPECT(ptk_bulk_state(bulk)->slots_used == 0);
}

/* A hundred thousand first segments from as many addresses: memory is what it was, no message that
 * makes progress is forgotten, and after a second of idling the oldest make room. */
static void test_a_flood_of_first_segments_is_bounded(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    make_bulk();
    uint64_t busy = 0;
    for (uint32_t i = 0; i < 100000; i++) {
        const size_t len = make_segment(bytes, i, 0, 2408 + i);
        uint32_t client = i;
        struct ptk_bulk_packet packet = packet_from(&client, bytes, len);
        ptk_store_u32(packet.source.bytes + 12, i | 1);
        const size_t reply_len = ptk_bulk_receive(bulk, &packet, reply);
        received++;
        EXPECT(reply_len <= len);
        busy += reply_len > 0 && reply[23] == PTK_VERDICT_BUSY;
        if (reply_len > 0 && reply[23] == PTK_VERDICT_BUSY) {
            EXPECT(ptk_load_u32(reply + 28) == PTK_BULK_RETRY_US);
        }
    }
    const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
    check_sums();
    EXPECT(busy > 90000);
    EXPECT(state->fates[PTK_BULK_BUSY] == busy);
    EXPECT(state->fates[PTK_BULK_EVICTED] <= 100000 - busy);
    skew += 2500ull * PTK_BULK_IDLE_US;
    const size_t len = make_segment(bytes, 1ull << 40, 0, 10000);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
    check_sums();
}

/* What comes after the end is counted and begins nothing. */
static void test_late_segments_begin_nothing(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    make_bulk();
    const size_t len = make_segment(bytes, 7, 0, 10000);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
    struct ptk_wire_header cancel = {.magic = PTK_WIRE_MAGIC,
                                     .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_CANCEL,
                                     .request_id = 7,
                                     .op = PTK_WIRE_OP_ENCODE};
    EXPECT(server_receive(1, (uint8_t *)&cancel, sizeof cancel, reply) == 0);
    EXPECT(server_receive(1, (uint8_t *)&cancel, sizeof cancel, reply) == 0);
    EXPECT(server_receive(1, bytes, len, reply) == 0);
    const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
    EXPECT(state->slots_used == 0);
    EXPECT(state->fates[PTK_BULK_CANCELLED] == 1);
    EXPECT(state->fates[PTK_BULK_LATE] == 2);
}

/* A datagram of a source of its choice; the verdict of its refusal. */
static enum ptk_verdict verdict_for(const struct ptk_address *source, uint16_t port, uint8_t *bytes,
                                    size_t len)
{
    static uint8_t reply[DATAGRAM_CAP];
    uint32_t client = 1;
    struct ptk_bulk_packet packet = packet_from(&client, bytes, len);
    packet.source = *source;
    packet.source_port = port;
    received++;
    const size_t reply_len = ptk_bulk_receive(bulk, &packet, reply);
    const bool refusal = reply_len > 0 && reply[2] == (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY);
    return refusal ? (enum ptk_verdict)reply[23] : PTK_VERDICT_OK;
}

/* Of slots and of arena, a source never holds more than half, whatever ports and hosts of its /64
 * it uses: another one still finds room. */
static void test_one_source_never_holds_more_than_its_part(void)
{
    static uint8_t bytes[DATAGRAM_CAP];
    static const struct {
        const char *text;
        const char *other; /* the same source, by another address or port */
        const char *neighbour;
    } SOURCES[] = {
        {"192.0.2.1", "192.0.2.1", "192.0.2.2"},
        {"2001:db8:1:2::1", "2001:db8:1:2:3::9", "2001:db8:1:3::1"},
        {"::1", "::9", "192.0.2.2"}, /* As mapped addresses all of IPv4 has these 64 bits. */
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(SOURCES); i++) {
        struct ptk_address source, other, neighbour;
        EXPECT(ptk_address_parse(SOURCES[i].text, &source, NULL) == 0);
        EXPECT(ptk_address_parse(SOURCES[i].other, &other, NULL) == 0);
        EXPECT(ptk_address_parse(SOURCES[i].neighbour, &neighbour, NULL) == 0);
        for (uint32_t large = 0; large < 2; large++) { /* Slots run out first, or the arena. */
            make_bulk();
            const uint32_t message_len = large ? MESSAGE_LEN_MAX : 10000;
            const uint32_t part = large ? ARENA_LEN / MESSAGE_LEN_MAX / 2 : PTK_BULK_SLOTS / 2;
            uint32_t begun = 0;
            for (uint32_t n = 0; n < PTK_BULK_SLOTS; n++) {
                const size_t len = make_segment(bytes, n, 0, message_len);
                const enum ptk_verdict verdict =
                    verdict_for(n % 2 ? &source : &other, (uint16_t)(5000 + n), bytes, len);
                EXPECT(verdict == (n < part ? PTK_VERDICT_OK : PTK_VERDICT_BUSY));
                begun += verdict == PTK_VERDICT_OK;
            }
            const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
            EXPECT(begun == part && state->slots_used == part);
            EXPECT(state->fates[PTK_BULK_CAPPED] == PTK_BULK_SLOTS - part);
            EXPECT(state->fates[PTK_BULK_BUSY] == 0);
            for (uint32_t n = 0; n < part; n++) {
                const size_t len = make_segment(bytes, n, 0, message_len);
                EXPECT(verdict_for(&neighbour, 5000, bytes, len) == PTK_VERDICT_OK);
            }
            check_sums();
        }
    }
}

/* The longest reply there is may have what a source may hold; with another message of the same
 * source beside it the answer is busy, and nothing is kept of it. */
static void test_a_reply_counts_as_its_sources(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    for (uint32_t beside = 0; beside < 2; beside++) {
        make_bulk();
        if (beside) {
            const size_t len = make_segment(bytes, 5, 0, 10000);
            EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
        }
        size_t len = make_segment(bytes, 6, 0, 1200);
        ptk_store_u32(bytes + PTK_WIRE_HEADER_LEN, ARENA_LEN / 2);
        ptk_store_u16(bytes + PTK_WIRE_HEADER_LEN + 4, 1232);
        ptk_store_u32(bytes + offsetof(struct ptk_wire_header, message_crc),
                      ptk_crc32c(bytes + PTK_WIRE_HEADER_LEN, 1200));
        ptk_store_u32(bytes + offsetof(struct ptk_wire_header, model_tag), ARENA_LEN / 2);
        EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
        server_work();
        struct ptk_wire_header pull = {.magic = PTK_WIRE_MAGIC,
                                       .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_PULL,
                                       .request_id = 6,
                                       .op = PTK_WIRE_OP_ENCODE};
        memset(bytes, 0, sizeof bytes);
        memcpy(bytes, &pull, sizeof pull);
        len = PTK_WIRE_WINDOW_LEN(0);
        if (beside) {
            EXPECT(verdict_of(bytes, len) == PTK_VERDICT_BUSY);
            EXPECT(ptk_bulk_state(bulk)->slots_used == 1);
        } else {
            EXPECT(server_receive(1, bytes, len, reply) == 0);
            EXPECT(ptk_bulk_state(bulk)->arena_used_len == ARENA_LEN / 2);
        }
        check_sums();
    }
}

/* A reply that does not fit the client's datagrams is refused once, whatever a pull asks for. */
static void test_a_refusal_is_one_datagram(void)
{
    static uint8_t bytes[DATAGRAM_CAP], reply[DATAGRAM_CAP];
    make_bulk();
    size_t len = make_segment(bytes, 6, 0, 1200);
    ptk_store_u32(bytes + PTK_WIRE_HEADER_LEN, 5000);
    ptk_store_u16(bytes + PTK_WIRE_HEADER_LEN + 4, 600);
    ptk_store_u32(bytes + offsetof(struct ptk_wire_header, message_crc),
                  ptk_crc32c(bytes + PTK_WIRE_HEADER_LEN, 1200));
    bytes[3] |= PTK_WIRE_FLAGS_LAST_FLIGHT;
    (void)server_receive(1, bytes, len, reply);
    server_work();
    for (uint32_t turn = 0; turn < 2; turn++) { /* The same segment again, and a pull of eight. */
        struct ptk_wire_header pull = {.magic = PTK_WIRE_MAGIC,
                                       .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_PULL,
                                       .request_id = 6,
                                       .op = PTK_WIRE_OP_ENCODE};
        if (turn == 1) {
            const struct ptk_wire_window window = {.grant = 64, .words = 1};
            len = PTK_WIRE_WINDOW_LEN(1);
            memset(bytes, 0, len);
            memcpy(bytes, &pull, sizeof pull);
            memcpy(bytes + sizeof pull, &window, sizeof window);
            bytes[sizeof pull + sizeof window] = 0xFF;
        }
        EXPECT(server_receive(1, bytes, len, reply) == 0);
        EXPECT(ptk_bulk_next(bulk, reply) == PTK_WIRE_HEADER_LEN);
        EXPECT(reply[23] == PTK_VERDICT_REPLY_TOO_LONG);
        EXPECT(ptk_bulk_next(bulk, reply) == 0);
    }
}

static uint64_t paused_cycles;

/* What others do in a pause. */
static void spend(void *self)
{
    (void)self;
    const uint64_t begun_at = ptk_cycles();
    while (ptk_cycles() - begun_at < 2500u * 1000) { /* A millisecond. */
    }
    paused_cycles += ptk_cycles() - begun_at;
}

/* A source is charged for the work on its message, and not for what others have had meanwhile. */
static void test_pauses_are_not_charged(void)
{
    static uint8_t bytes[DATAGRAM_CAP];
    make_bulk();
    long_work.pauses = 20;
    paused_cycles = 0;
    const size_t len = make_segment(bytes, 6, 0, 1200);
    ptk_store_u32(bytes + PTK_WIRE_HEADER_LEN, 8);
    ptk_store_u16(bytes + PTK_WIRE_HEADER_LEN + 4, 1232);
    ptk_store_u32(bytes + offsetof(struct ptk_wire_header, message_crc),
                  ptk_crc32c(bytes + PTK_WIRE_HEADER_LEN, 1200));
    ptk_store_u32(bytes + offsetof(struct ptk_wire_header, model_tag), 8);
    EXPECT(verdict_of(bytes, len) == PTK_VERDICT_OK);
    const uint64_t begun_at = ptk_cycles();
    struct ptk_pause pause = {.run = spend};
    EXPECT(ptk_bulk_work(bulk, &engine, &pause));
    const uint64_t elapsed = ptk_cycles() - begun_at;
    struct ptk_address source;
    uint16_t port;
    const uint64_t charged = ptk_bulk_last_work(bulk, &source, &port);
    EXPECT(paused_cycles >= 20u * 2500 * 1000);
    EXPECT(charged <= elapsed - paused_cycles);
    EXPECT(charged > 0);
}

int main(void)
{
    test_each_wrong_field_has_its_verdict();
    test_conflicts_change_nothing();
    test_clients_are_told_apart();
    test_unvalidated_addresses_leave_no_state();
    test_one_source_never_holds_more_than_its_part();
    test_a_reply_counts_as_its_sources();
    test_a_refusal_is_one_datagram();
    test_pauses_are_not_charged();
    test_late_segments_begin_nothing();
    test_a_flood_of_first_segments_is_bounded();
    test_every_message_is_answered();
    return 0;
}
