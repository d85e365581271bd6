/*
 * Messages in segments: a client of its own over a link that loses, doubles, delays, damages and
 * cuts datagrams, against the real server side and an engine whose replies can be foreseen; then
 * every refusal, the limits of memory, and a flood.
 *
 * PTK_SEED sets the first seed; each schedule prints its own when it fails.
 */
#include "serve/ptk_bulk.h"

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "ptk_test_packet.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_segment.h"

#include <stdio.h>
#include <stdlib.h>

#define MESSAGE_LEN_MAX (1u << 20)
#define ARENA_LEN       (6u << 20)
#define CLIENTS         12u
#define DATAGRAM_CAP    9216u
#define LINK_CAP        512u

static uint64_t seed, first_seed;

#define EXPECT(x)                                                                                  \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "seed %llu: %s:%d: %s\n", (unsigned long long)first_seed, __FILE__,    \
                    __LINE__, #x);                                                                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* --- the engine ------------------------------------------------------------------------------ */

/* A message: u32 length of the reply it wants, u16 largest reply datagram, then anything. The reply
 * follows from its checksum. */
struct ptk_engine {
    uint64_t runs;
    struct ptk_engine_long inputs[PTK_ENGINE_LONG_DESKS];
    uint32_t pauses; /* pauses that each run makes */
};
static struct ptk_engine engine;

static uint8_t reply_byte(uint32_t crc, size_t off)
{
    return (uint8_t)(crc * 31 + off * 7 + (off >> 8));
}

bool ptk_engine_long_fits(const struct ptk_engine *self, uint32_t desk_idx, size_t message_len)
{
    (void)self;
    return message_len <= MESSAGE_LEN_MAX >> 2 * desk_idx;
}

enum ptk_verdict ptk_engine_long_run(struct ptk_engine *self, uint32_t desk_idx,
                                     const struct ptk_engine_long *input,
                                     struct ptk_engine_long_reply *reply)
{
    EXPECT(ptk_crc32c(input->message, input->message_len) == input->header.message_crc);
    EXPECT(ptk_engine_long_fits(self, desk_idx, input->message_len));
    self->runs++;
    self->inputs[desk_idx] = *input;
    for (uint32_t i = 0; i < self->pauses && ptk_pause_active != NULL; i++) {
        ptk_pause_run(ptk_pause_active);
    }
    /* Nobody may have touched it meanwhile. */
    EXPECT(ptk_crc32c(input->message, input->message_len) == input->header.message_crc);
    const uint32_t wanted = ptk_load_u32(input->message);
    *reply = (struct ptk_engine_long_reply){
        .model_tag = 77,
        .message_len = wanted,
        .datagram_len_max = ptk_load_u16(input->message + 4),
    };
    return wanted == 0 ? PTK_VERDICT_BAD_ITEMS : PTK_VERDICT_OK;
}

void ptk_engine_long_build(struct ptk_engine *self, uint32_t desk_idx, uint8_t *message)
{
    const struct ptk_engine_long *input = &self->inputs[desk_idx];
    const uint32_t crc = input->header.message_crc;
    /* The header says the length once more: the message itself may be gone. */
    for (size_t i = 0; i < input->header.model_tag; i++) {
        message[i] = reply_byte(crc, i);
    }
}

/* --- the link -------------------------------------------------------------------------------- */

struct datagram {
    uint32_t client;
    bool to_server;
    size_t len;
    uint8_t bytes[DATAGRAM_CAP];
};

static struct link {
    struct datagram datagrams[LINK_CAP];
    uint32_t order[LINK_CAP]; /* indices of datagrams: first those on their way, then free ones */
    uint32_t count;           /* on their way */
    uint32_t loss, doubling, damage, cutting; /* per cent */
    uint64_t damaged;
} link;

static bool chance(uint32_t percent)
{
    return test_random_below(&seed, 100) < percent;
}

static void link_put_once(uint32_t client, bool to_server, const uint8_t *bytes, size_t len)
{
    if (link.count == LINK_CAP || chance(link.loss)) {
        return;
    }
    struct datagram *datagram = &link.datagrams[link.order[link.count++]];
    datagram->client = client;
    datagram->to_server = to_server;
    datagram->len = len;
    EXPECT(len <= DATAGRAM_CAP);
    memcpy(datagram->bytes, bytes, len);
    if (chance(link.damage) && chance(4)) { /* UDP lets few of them pass: one in 2,500 here. */
        datagram->bytes[test_random_below(&seed, (uint32_t)len)] ^=
            (uint8_t)(1u << test_random_below(&seed, 8));
        link.damaged++;
    }
    if (chance(link.cutting)) {
        datagram->len = test_random_below(&seed, (uint32_t)len);
    }
}

static void link_put(uint32_t client, bool to_server, const uint8_t *bytes, size_t len)
{
    link_put_once(client, to_server, bytes, len);
    if (chance(link.doubling)) {
        link_put_once(client, to_server, bytes, len);
    }
}

/* Any datagram may overtake any other. */
static bool link_take(struct datagram *out)
{
    if (link.count == 0) {
        return false;
    }
    const uint32_t pick = test_random_below(&seed, link.count < 12 ? link.count : 12);
    const uint32_t at = link.order[pick];
    out->client = link.datagrams[at].client;
    out->to_server = link.datagrams[at].to_server;
    out->len = link.datagrams[at].len;
    memcpy(out->bytes, link.datagrams[at].bytes, out->len);
    link.count--;
    memmove(&link.order[pick], &link.order[pick + 1], (link.count - pick) * sizeof link.order[0]);
    link.order[link.count] = at;
    return true;
}

/* --- the client ------------------------------------------------------------------------------ */

static struct client {
    bool busy;
    struct ptk_wire_header header;
    uint8_t *message;
    size_t message_len;
    uint32_t segment_count;
    uint32_t reply_wanted;
    bool sent_all; /* the server said working */
    bool probing;  /* a segment was repeated because the timer ran out */
    uint32_t need_seen;
    uint32_t strikes; /* refusals since the server said something new */
    uint8_t *reply;
    uint64_t *reply_missing;
    uint32_t reply_count; /* segments; 0: not known */
    uint32_t reply_left;
    size_t reply_len, reply_segment_len;
    uint32_t reply_crc;
    uint32_t attempts;
    uint64_t timer; /* rounds until it acts */
} clients[CLIENTS];

static uint64_t next_request_id = 0xFFFFFFFFFFFFFF00ull;
static uint64_t answered, refused, restarted;

static void client_send_segment(uint32_t idx, uint32_t segment_idx, bool last)
{
    struct client *client = &clients[idx];
    uint8_t bytes[DATAGRAM_CAP];
    struct ptk_wire_header header = client->header;
    header.segment_idx = (uint16_t)segment_idx;
    header.flags |= last ? PTK_WIRE_FLAGS_LAST_FLIGHT : 0;
    const size_t off = (size_t)segment_idx * header.segment_len;
    const size_t len = ptk_min_size(header.segment_len, client->message_len - off);
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, client->message + off, len);
    link_put(idx, true, bytes, sizeof header + len);
}

static void client_first_flight(uint32_t idx)
{
    struct client *client = &clients[idx];
    const uint32_t count = client->segment_count < PTK_WIRE_FLIGHT_FIRST ? client->segment_count
                                                                         : PTK_WIRE_FLIGHT_FIRST;
    for (uint32_t i = 0; i < count; i++) {
        client_send_segment(idx, i, i + 1 == count);
    }
}

static void client_begin(uint32_t idx, size_t message_len, uint32_t reply_wanted)
{
    struct client *client = &clients[idx];
    static const uint16_t LENS[] = {1024, 1200, 1440, 8904};
    client->busy = true;
    client->message_len = message_len;
    client->message = realloc(client->message, message_len);
    EXPECT(client->message != NULL);
    for (size_t i = 0; i < message_len; i++) {
        client->message[i] = (uint8_t)(test_random(&seed) >> 13);
    }
    const uint16_t segment_len = LENS[test_random_below(&seed, PTK_ARRAY_LEN(LENS))];
    ptk_store_u32(client->message, reply_wanted);
    ptk_store_u16(client->message + 4, (uint16_t)(segment_len + 32));
    client->reply_wanted = reply_wanted;
    client->header = (struct ptk_wire_header){
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = PTK_WIRE_FLAGS_CRC,
        .message_len = (uint32_t)message_len,
        .request_id = next_request_id++,
        .segment_len = segment_len,
        .op = PTK_WIRE_OP_ENCODE,
        .model_tag = reply_wanted,
        .message_crc = ptk_crc32c(client->message, message_len),
    };
    client->segment_count = ptk_wire_segment_count(message_len, segment_len);
    client->sent_all = false;
    client->reply_count = client->reply_left = 0;
    client->attempts = 0;
    client->timer = 40;
    client_first_flight(idx);
}

static void client_cancel(uint32_t idx)
{
    struct ptk_wire_header header = {.magic = PTK_WIRE_MAGIC,
                                     .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_CANCEL,
                                     .request_id = clients[idx].header.request_id,
                                     .op = clients[idx].header.op};
    link_put(idx, true, (const uint8_t *)&header, sizeof header);
}

/* From the start under a new request id: at once, or after a while. */
static void client_restart(uint32_t idx, bool at_once)
{
    struct client *client = &clients[idx];
    client->header.request_id = next_request_id++;
    client->sent_all = false;
    client->reply_count = 0;
    client->strikes = 0;
    restarted++;
    client->timer = 1 + test_random_below(&seed, 100);
    if (at_once) {
        client_first_flight(idx);
    }
}

static void client_pull(uint32_t idx)
{
    struct client *client = &clients[idx];
    uint8_t bytes[PTK_WIRE_WINDOW_LEN(PTK_WIRE_WINDOW_WORDS_MAX)];
    uint64_t words[PTK_WIRE_WINDOW_WORDS_MAX];
    uint32_t base = 0;
    memset(words, 0xFF, sizeof words);
    if (client->reply_count > 0) {
        const uint32_t all = (client->reply_count + 63) / 64;
        while (client->reply_missing[base] == 0) {
            base++;
        }
        for (uint32_t w = 0; w < PTK_WIRE_WINDOW_WORDS_MAX; w++) {
            words[w] = base + w < all ? client->reply_missing[base + w] : 0;
        }
    }
    struct ptk_wire_header header = {.magic = PTK_WIRE_MAGIC,
                                     .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_PULL,
                                     .request_id = client->header.request_id,
                                     .segment_idx = (uint16_t)(64 * base),
                                     .op = client->header.op};
    const struct ptk_wire_window window = {.grant = 24, .words = PTK_WIRE_WINDOW_WORDS_MAX};
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, &window, sizeof window);
    memcpy(bytes + sizeof header + sizeof window, words, sizeof words);
    link_put(idx, true, bytes, sizeof bytes);
}

static void client_need(uint32_t idx, const struct datagram *datagram)
{
    struct client *client = &clients[idx];
    struct ptk_wire_window window;
    if (datagram->len < PTK_WIRE_WINDOW_LEN(0)) {
        return;
    }
    memcpy(&window, datagram->bytes + PTK_WIRE_HEADER_LEN, sizeof window);
    if (datagram->len != PTK_WIRE_WINDOW_LEN(window.words) || window.words > 8) {
        return; /* damaged or cut */
    }
    if (window.state == PTK_WIRE_STATE_WORKING) {
        client->sent_all = true;
        return;
    }
    const uint32_t base = ptk_load_u16(datagram->bytes + 16);
    /* A need that says nothing new is a double: two flights for it would double each other. */
    const uint32_t news = ptk_crc32c(datagram->bytes, datagram->len);
    if (news == client->need_seen && !client->probing) {
        return;
    }
    client->need_seen = news;
    client->strikes = 0;
    client->probing = false;
    uint32_t chosen[PTK_BULK_GRANT_MAX];
    uint32_t count = 0;
    for (uint32_t bit = 0; bit < 64u * window.words && count < window.grant; bit++) {
        const uint64_t word = ptk_load_u64(datagram->bytes + PTK_WIRE_WINDOW_LEN(0) + bit / 64 * 8);
        if ((word >> bit % 64 & 1) != 0 && base + bit < client->segment_count &&
            count < PTK_ARRAY_LEN(chosen)) {
            chosen[count++] = base + bit;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        client_send_segment(idx, chosen[i], i + 1 == count);
    }
    client->timer = 40;
}

static void client_reply(uint32_t idx, const struct datagram *datagram)
{
    struct client *client = &clients[idx];
    struct ptk_wire_header header;
    memcpy(&header, datagram->bytes, sizeof header);
    if (header.verdict != 0) {
        if (datagram->len != sizeof header || header.verdict >= PTK_VERDICT_VALUE_COUNT) {
            return;
        }
        switch ((enum ptk_verdict)header.verdict) {
        case PTK_VERDICT_BUSY:
        case PTK_VERDICT_UNKNOWN_REQUEST:
        case PTK_VERDICT_BAD_CRC:
            client_cancel(idx);
            client_restart(idx, header.verdict != PTK_VERDICT_BUSY);
            return;
        case PTK_VERDICT_BAD_ITEMS:
            if (client->reply_wanted == 0) {
                refused++;
                client_cancel(idx);
                client->busy = false;
            }
            return;
        default:
            /* A damaged datagram counts as lost; a server that took one for the first is told to
             * forget the message. */
            if (++client->strikes < 4) {
                return;
            }
            client_cancel(idx);
            client_restart(idx, true);
            return;
        }
    }
    const size_t len = datagram->len - sizeof header;
    if (header.segment_len == 0
            ? len != header.message_len
            : header.segment_idx * (size_t)header.segment_len + len > header.message_len ||
                  header.segment_len < 1024) {
        return;
    }
    if (client->reply_count == 0 || client->reply_crc != header.message_crc ||
        client->reply_len != header.message_len ||
        (header.segment_len != 0 && client->reply_segment_len != header.segment_len)) {
        /* The first one, or one of them was damaged: the later one is believed. */
        if (header.message_len == 0 || header.message_len > PTK_WIRE_MESSAGE_LEN_MAX) {
            return;
        }
        client->reply_len = header.message_len;
        client->reply_crc = header.message_crc;
        client->reply_segment_len = header.segment_len != 0 ? header.segment_len : len;
        client->reply_count = ptk_wire_segment_count(client->reply_len, client->reply_segment_len);
        client->reply_left = client->reply_count;
        client->reply = realloc(client->reply, client->reply_len + 64);
        client->reply_missing = realloc(client->reply_missing, (client->reply_count / 64 + 1) * 8);
        EXPECT(client->reply != NULL && client->reply_missing != NULL);
        for (uint32_t i = 0; i < (client->reply_count + 63) / 64; i++) {
            const uint32_t here = client->reply_count - 64 * i;
            client->reply_missing[i] = here >= 64 ? UINT64_MAX : (1ull << here) - 1;
        }
    }
    const uint32_t at = header.segment_idx;
    if (at >= client->reply_count || header.segment_len % 8 != 0 ||
        (header.segment_len != 0 && header.segment_len != client->reply_segment_len) ||
        (client->reply_missing[at / 64] >> at % 64 & 1) == 0) {
        return;
    }
    const size_t off = at * client->reply_segment_len;
    if (len != ptk_min_size(client->reply_segment_len, client->reply_len - off)) {
        return;
    }
    memcpy(client->reply + off, datagram->bytes + sizeof header, len);
    client->reply_missing[at / 64] &= ~(1ull << at % 64);
    client->reply_left--;
    client->timer = 30;
    if (client->reply_left > 0) {
        if (client->reply_left % 24 == 0) {
            client_pull(idx);
        }
        return;
    }
    if (ptk_crc32c(client->reply, client->reply_len) != client->reply_crc) {
        client->reply_count = 0; /* A damaged segment of the reply: fetch it again. */
        return;
    }
    EXPECT(client->reply_len == client->reply_wanted);
    for (size_t i = 0; i < client->reply_len; i++) {
        EXPECT(client->reply[i] == reply_byte(client->header.message_crc, i));
    }
    answered++;
    client_cancel(idx);
    client->busy = false;
}

static void client_receive(const struct datagram *datagram)
{
    struct client *client = &clients[datagram->client];
    if (!client->busy || datagram->len < PTK_WIRE_HEADER_LEN ||
        ptk_load_u16(datagram->bytes) != PTK_WIRE_MAGIC ||
        ptk_load_u64(datagram->bytes + 8) != client->header.request_id) {
        return;
    }
    if (datagram->bytes[2] == (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_NEED)) {
        client_need(datagram->client, datagram);
    } else if (datagram->bytes[2] == (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY)) {
        client_reply(datagram->client, datagram);
    }
}

/* The client's timer: what is asked for again after silence. */
static void client_tick(uint32_t idx)
{
    struct client *client = &clients[idx];
    if (!client->busy || --client->timer > 0) {
        return;
    }
    client->attempts++;
    EXPECT(client->attempts < 20000);
    client->timer = 40;
    if (client->sent_all || client->reply_count > 0) {
        client_pull(idx);
    } else {
        client->probing = true;
        client_send_segment(idx, test_random_below(&seed, client->segment_count), true);
    }
}

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
    engine = (struct ptk_engine){.pauses = 3};
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
    for (uint32_t run = 0; run < 24; run++) {
        first_seed = base + run;
        seed = first_seed * 0x9E3779B97F4A7C15ull + 1;
        make_bulk();
        link.count = 0;
        for (uint32_t i = 0; i < LINK_CAP; i++) {
            link.order[i] = i;
        }
        link.loss = run % 4 * 4;
        link.doubling = run % 3 * 5;
        link.damage = run % 5 == 4 ? 1 : 0;
        link.cutting = run % 6 == 5 ? 2 : 0;
        const uint64_t before = answered + refused;
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
            step(20 + test_random_below(&seed, 60));
            check_sums();
            EXPECT(round < 3000000);
        }
        EXPECT(answered + refused - before == 60);
        evicted += ptk_bulk_state(bulk)->fates[PTK_BULK_EVICTED];
    }
    /* A link that did nothing would show nothing. */
    EXPECT(restarted > 0);
    EXPECT(link.damaged + evicted > 0);
    printf("bulk: ok, %llu answered, %llu refused, %llu begun again, %llu evicted\n",
           (unsigned long long)answered, (unsigned long long)refused, (unsigned long long)restarted,
           (unsigned long long)evicted);
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
    engine.pauses = 20;
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
    test_pauses_are_not_charged();
    test_late_segments_begin_nothing();
    test_a_flood_of_first_segments_is_bounded();
    test_every_message_is_answered();
    return 0;
}
