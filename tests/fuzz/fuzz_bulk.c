/*
 * Fuzzes the door for messages in segments: any sequence of datagrams through bulk and engine.
 *
 * Input: for each datagram one byte of settings (bits 0 to 2: the client; bit 3: as long as the
 * next two bytes say, in units of 8, else 104; bit 4: a second passes first; bit 5: not validated;
 * bit 6: work is done first), then its bytes; what is missing at the end is zero. What must hold:
 * no crash, no read or write out of bounds (the sanitizers look), no answer longer than its
 * datagram, books that balance, memory that does not grow. There is no model, so that every message
 * that is complete ends in a refusal.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "serve/ptk_bulk.h"
#include "wire/ptk_wire_segment.h"

#define MESSAGE_LEN_MAX 65536u
#define DATAGRAM_CAP    4096u

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ptk_models models;
static struct ptk_engine *engine;
static const struct ptk_bulk_limits limits = {
    .message_len_max = MESSAGE_LEN_MAX, .arena_len = 8 * MESSAGE_LEN_MAX, .cycles_per_us = 1000};
static void *bulk_memory;

static void set_up(void)
{
    const struct ptk_engine_limits engine_limits = {.datagram_len_max = 1472,
                                                    .message_len_max = MESSAGE_LEN_MAX,
                                                    .models_cap = 1,
                                                    .cache_len = PTK_CACHE_LEN_MIN};
    ptk_models_init(&models);
    engine = ptk_engine_init(
        aligned_alloc(64, ptk_align_up(ptk_engine_len(&engine_limits), PTK_CACHE_LINE)),
        &engine_limits, &models);
    bulk_memory = aligned_alloc(64, ptk_align_up(ptk_bulk_len(&limits), PTK_CACHE_LINE));
    CHECK(bulk_memory != NULL);
}

static void no_pause(void *self)
{
    (void)self;
}

static void drain(struct ptk_bulk *bulk)
{
    static uint8_t part[PTK_ENGINE_DATAGRAM_LEN_MAX];
    uint32_t sent = 0;
    for (size_t len; (len = ptk_bulk_next(bulk, part)) > 0; sent++) {
        CHECK(len <= sizeof part);
    }
    CHECK(sent <= PTK_BULK_BURST_MAX);
}

static void check_books(struct ptk_bulk *bulk, uint64_t received)
{
    const struct ptk_bulk_state *state = ptk_bulk_state(bulk);
    const uint64_t *fates = state->fates;
    CHECK(fates[PTK_BULK_BEGUN] == fates[PTK_BULK_ANSWERED] + fates[PTK_BULK_CANCELLED] +
                                       fates[PTK_BULK_EVICTED] + state->slots_used);
    CHECK(state->arena_used_len <= state->arena_len);
    static const enum ptk_bulk_fate INPUTS[] = {
        PTK_BULK_SEGMENTS, PTK_BULK_DUPLICATES, PTK_BULK_LATE,    PTK_BULK_CONFLICTS,
        PTK_BULK_PULLS,    PTK_BULK_UNKNOWN,    PTK_BULK_BUSY,    PTK_BULK_CAPPED,
        PTK_BULK_REFUSED,  PTK_BULK_EARLY,      PTK_BULK_CANCELS,
    };
    uint64_t counted = 0;
    for (size_t i = 0; i < PTK_ARRAY_LEN(INPUTS); i++) {
        counted += fates[INPUTS[i]];
    }
    CHECK(counted == received);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (engine == NULL) {
        set_up();
    }
    struct ptk_bulk *bulk = ptk_bulk_init(bulk_memory, &limits);
    uint64_t now = ptk_cycles();
    uint64_t received = 0;
    for (size_t pos = 0; pos < size;) {
        const uint8_t settings = data[pos++];
        size_t len = 104;
        if ((settings & 8) != 0 && size - pos >= 2) {
            len = (size_t)ptk_load_u16(data + pos) * 8 % DATAGRAM_CAP;
            pos += 2;
        }
        uint8_t *datagram = calloc(1, len == 0 ? 1 : len);
        CHECK(datagram != NULL);
        const size_t here = ptk_min_size(len, size - pos);
        memcpy(datagram, data + pos, here);
        pos += here;
        now += (settings & 16) != 0 ? 1000ull * PTK_BULK_IDLE_US : 1;
        if ((settings & 64) != 0) {
            struct ptk_pause pause = {.run = no_pause};
            (void)ptk_bulk_work(bulk, engine, &pause);
            drain(bulk);
        }
        if (ptk_wire_is_segmented(datagram, len)) {
            const uint8_t address[4] = {192, 0, 2, settings & 7};
            const struct ptk_bulk_packet packet = {.datagram = datagram,
                                                   .len = len,
                                                   .source = ptk_address_from_ipv4(address),
                                                   .source_port = 4000,
                                                   .validated = (settings & 32) == 0,
                                                   .link_max = 1472,
                                                   .route = &settings,
                                                   .route_len = 1,
                                                   .now = now};
            CHECK(ptk_bulk_receive(bulk, &packet, datagram) <= len);
            drain(bulk);
            check_books(bulk, ++received);
        }
        free(datagram);
    }
    return 0;
}
