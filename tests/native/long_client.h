/*
 * Long messages for tests: clients that send messages in segments and fetch their replies over a
 * link that loses, doubles, delays, damages and cuts datagrams, and an engine whose replies can be
 * foreseen. Written from native/gen/WIRE.md.
 *
 * The program that includes it defines LONG_MESSAGE_LEN_MAX before and long_pause() after, moves
 * datagrams with link_put() and link_take(), and calls client_tick() once a round. Included once a
 * program.
 */
#ifndef LONG_CLIENT_H
#define LONG_CLIENT_H

#include "base/ptk_pause.h"
#include "ptk_test_packet.h"
#include "serve/ptk_bulk.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_segment.h"

#include <stdio.h>
#include <stdlib.h>

#define CLIENTS      12u
#define DATAGRAM_CAP 9216u
#define LINK_CAP     512u

static uint64_t seed, first_seed;

#define EXPECT(x)                                                                                  \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "seed %llu: %s:%d: %s\n", (unsigned long long)first_seed, __FILE__,    \
                    __LINE__, #x);                                                                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* What else happens in a pause of long work. */
static void long_pause(void);

/* --- the engine ------------------------------------------------------------------------------ */

/* A message: u32 length of the reply it wants, u16 largest reply datagram, then anything. The reply
 * follows from its checksum. */
static struct {
    uint64_t runs;
    struct ptk_engine_long inputs[PTK_ENGINE_LONG_DESKS];
    uint32_t pauses; /* pauses that each run makes */
} long_work;

static uint8_t long_reply_byte(uint32_t crc, size_t off)
{
    return (uint8_t)(crc * 31 + off * 7 + (off >> 8));
}

bool ptk_engine_long_fits(const struct ptk_engine *self, uint32_t desk_idx, size_t message_len)
{
    (void)self;
    return message_len <= LONG_MESSAGE_LEN_MAX >> 2 * desk_idx;
}

enum ptk_verdict ptk_engine_long_run(struct ptk_engine *self, uint32_t desk_idx,
                                     const struct ptk_engine_long *input,
                                     struct ptk_engine_long_reply *reply)
{
    EXPECT(ptk_crc32c(input->message, input->message_len) == input->header.message_crc);
    EXPECT(ptk_engine_long_fits(self, desk_idx, input->message_len));
    long_work.runs++;
    long_work.inputs[desk_idx] = *input;
    for (uint32_t i = 0; i < long_work.pauses && ptk_pause_active != NULL; i++) {
        long_pause();
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
    (void)self;
    const struct ptk_engine_long *input = &long_work.inputs[desk_idx];
    const uint32_t crc = input->header.message_crc;
    /* The header says the length once more: the message itself may be gone. */
    for (size_t i = 0; i < input->header.model_tag; i++) {
        message[i] = long_reply_byte(crc, i);
    }
}

/* --- the link -------------------------------------------------------------------------------- */

struct datagram {
    uint32_t client;
    bool to_server;
    size_t len;
    uint64_t due; /* round */
    uint8_t bytes[DATAGRAM_CAP];
};

static struct link {
    struct datagram datagrams[LINK_CAP];
    uint32_t order[LINK_CAP]; /* indices of datagrams: first those on their way, then free ones */
    uint32_t count;           /* on their way */
    uint32_t loss, doubling, damage, cutting, delay; /* per cent */
    uint64_t round;
    uint64_t lost, doubled, damaged, cut, delayed, overtaken;
} link;

static bool chance(uint32_t percent)
{
    return test_random_below(&seed, 100) < percent;
}

static void link_put_once(uint32_t client, bool to_server, const uint8_t *bytes, size_t len)
{
    if (link.count == LINK_CAP || chance(link.loss)) {
        link.lost++;
        return;
    }
    struct datagram *datagram = &link.datagrams[link.order[link.count++]];
    datagram->client = client;
    datagram->to_server = to_server;
    datagram->len = len;
    datagram->due = link.round;
    if (chance(link.delay)) {
        datagram->due += test_random_below(&seed, 300);
        link.delayed++;
    }
    EXPECT(len <= DATAGRAM_CAP);
    memcpy(datagram->bytes, bytes, len);
    if (chance(link.damage) && chance(4)) { /* UDP lets few of them pass: one in 2,500 here. */
        datagram->bytes[test_random_below(&seed, (uint32_t)len)] ^=
            (uint8_t)(1u << test_random_below(&seed, 8));
        link.damaged++;
    }
    if (chance(link.cutting)) {
        datagram->len = test_random_below(&seed, (uint32_t)len);
        link.cut++;
    }
}

static void link_put(uint32_t client, bool to_server, const uint8_t *bytes, size_t len)
{
    link_put_once(client, to_server, bytes, len);
    if (chance(link.doubling)) {
        link.doubled++;
        link_put_once(client, to_server, bytes, len);
    }
}

/* Any of the first dozen that are due may overtake the others; false when none is. */
static bool link_take(struct datagram *out)
{
    uint32_t places[12];
    uint32_t due_count = 0;
    for (uint32_t i = 0; i < link.count && due_count < PTK_ARRAY_LEN(places); i++) {
        if (link.datagrams[link.order[i]].due <= link.round) {
            places[due_count++] = i;
        }
    }
    if (due_count == 0) {
        return false;
    }
    const uint32_t pick = test_random_below(&seed, due_count);
    const uint32_t at = link.order[places[pick]];
    link.overtaken += pick > 0;
    out->client = link.datagrams[at].client;
    out->to_server = link.datagrams[at].to_server;
    out->len = link.datagrams[at].len;
    memcpy(out->bytes, link.datagrams[at].bytes, out->len);
    link.count--;
    memmove(&link.order[places[pick]], &link.order[places[pick] + 1],
            (link.count - places[pick]) * sizeof link.order[0]);
    link.order[link.count] = at;
    return true;
}

/* An empty link without faults. */
static void link_clear(void)
{
    link = (struct link){.count = 0};
    for (uint32_t i = 0; i < LINK_CAP; i++) {
        link.order[i] = i;
    }
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
static uint64_t answered_long, refused_long, restarted;

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

static uint16_t long_segment_len_max = UINT16_MAX;

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
    uint16_t segment_len = LENS[test_random_below(&seed, PTK_ARRAY_LEN(LENS))];
    segment_len = segment_len > long_segment_len_max ? LENS[0] : segment_len;
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
                refused_long++;
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
        EXPECT(client->reply[i] == long_reply_byte(client->header.message_crc, i));
    }
    answered_long++;
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

#endif
