/*
 * Messages in segments, on the server's side: what has come, what is being worked on, what is being
 * fetched. It knows no socket, ring or clock: the poller, the socket path, the simulation and the
 * fuzzer drive this same code.
 *
 *     segments ──> RECEIVING ──> QUEUED ──> RUNNING ──> READY ──> (cancelled, or evicted)
 *                   need          need       need        reply segments
 *
 * The client owns all timers (native/gen/WIRE.md). Memory is fixed at start: a table of slots, and
 * an arena that requests and replies share. When either is full, a slot that is RECEIVING or READY
 * and has made no progress for PTK_BULK_IDLE_US makes room, the one that progressed least recently
 * first; progress is a segment that was missing, or a pull. Without one the new message is refused
 * with busy. A slot that is QUEUED or RUNNING is never evicted. One source (an IPv4 address, an
 * IPv6 /64) never holds more than half of the slots, nor of the arena: beyond that it is refused
 * with busy, and what is left is for others.
 *
 * One input may have several outputs: the first one is built in place by ptk_bulk_receive, the
 * others, a burst, are taken one by one with ptk_bulk_next until it says 0, before anything else.
 *
 * One bulk belongs to one thread.
 */
#ifndef PTK_BULK_H
#define PTK_BULK_H

#include "net/ptk_address.h"
#include "serve/ptk_engine.h"

/* Messages under way at a time. */
#define PTK_BULK_SLOTS 64u

/* Without progress for this long a message may be forgotten. A client repeats itself several times
 * within it. */
#define PTK_BULK_IDLE_US 1000000u

/* Segments under way to one worker, granted to all clients together: below a receive ring, and a
 * third of a megabyte of socket buffer. */
#define PTK_BULK_GRANTS_MAX 256u

/* Of slots and arena, what one source may hold. The longest reply there may be is as long. */
#define PTK_BULK_SOURCE_PART 2u

/* Most segments granted to one message at a time, and most sent for one pull. */
#define PTK_BULK_GRANT_MAX 64u
#define PTK_BULK_BURST_MAX 64u

/* What the driver needs to send to a client: kept with the message, not looked into. */
#define PTK_BULK_ROUTE_CAP 160u

/* What a refusal with busy asks for. */
#define PTK_BULK_RETRY_US 20000u

struct ptk_bulk_limits {
    uint32_t message_len_max; /* longest message */
    size_t arena_len;         /* bytes for requests and replies; at least two messages */
    uint32_t cycles_per_us;
};

/*
 * The fates of datagrams and messages. One writer; plain words: the worker publishes a copy.
 *
 * Each datagram given to ptk_bulk_receive counts once: in SEGMENTS, DUPLICATES, LATE, CONFLICTS,
 * PULLS, UNKNOWN, BUSY, CAPPED, REFUSED, EARLY or CANCELS. Each message that got a slot counts once
 * at its end: in ANSWERED, CANCELLED or EVICTED.
 */
enum ptk_bulk_fate {
    PTK_BULK_SEGMENTS = 0, /* segments that were missing */
    PTK_BULK_DUPLICATES,   /* segments that were there already */
    PTK_BULK_LATE,         /* segments and cancels for a message that has ended */
    PTK_BULK_CONFLICTS,    /* segments that contradict their message */
    PTK_BULK_NEEDS,        /* needs sent */
    PTK_BULK_PULLS,        /* pulls answered with segments */
    PTK_BULK_PARTS,        /* reply segments, and replies in one datagram, sent */
    PTK_BULK_UNKNOWN,      /* pulls for a message that is not here */
    PTK_BULK_BUSY,         /* segments and pulls refused for lack of room */
    PTK_BULK_BEGUN,        /* messages that got a slot: */
    PTK_BULK_ANSWERED,     /*   worked on, and cancelled by the client afterwards */
    PTK_BULK_CANCELLED,    /*   cancelled by the client before that */
    PTK_BULK_EVICTED,      /*   made room for others */
    PTK_BULK_CAPPED,       /* segments refused because their source holds its part */
    PTK_BULK_REFUSED,      /* datagrams that are wrong in themselves */
    PTK_BULK_EARLY,        /* pulls for a message that has no reply yet */
    PTK_BULK_CANCELS,      /* cancels for a message that is here */
    PTK_BULK_FATE_COUNT,
};

struct ptk_bulk;

size_t ptk_bulk_len(const struct ptk_bulk_limits *limits);

/* ptk_bulk_init lays a bulk out in `memory` of ptk_bulk_len bytes, 64-byte aligned. */
struct ptk_bulk *ptk_bulk_init(void *memory, const struct ptk_bulk_limits *limits);

/* A datagram that ptk_wire_is_segmented, and where it came from. */
struct ptk_bulk_packet {
    const uint8_t *datagram;
    size_t len;
    struct ptk_address source;
    uint16_t source_port;
    bool validated;    /* the source has shown that it receives at its address: the worker's word */
    size_t link_max;   /* largest datagram the link carries back */
    const void *route; /* kept for later replies */
    size_t route_len;  /* at most PTK_BULK_ROUTE_CAP */
    uint64_t now;      /* cycles */
};

/*
 * ptk_bulk_receive takes one datagram. Returns the length of the answer in `reply`, which has room
 * for packet->len bytes and may be the datagram itself; 0: none. It is never longer than the
 * datagram. An address that is not validated gets the verdict challenge and leaves no state.
 */
size_t ptk_bulk_receive(struct ptk_bulk *bulk, const struct ptk_bulk_packet *packet,
                        uint8_t *reply);

/* ptk_bulk_next writes the next datagram of the burst, at most PTK_ENGINE_DATAGRAM_LEN_MAX bytes
 * and no more than the link carries; 0 when there is none (left). */
size_t ptk_bulk_next(struct ptk_bulk *bulk, uint8_t *datagram);

/* Whether there is a burst to send. */
bool ptk_bulk_bursting(const struct ptk_bulk *bulk);

/* Ends the burst early: its rest could not be sent. */
void ptk_bulk_drop(struct ptk_bulk *bulk);

/* The route of the message that the burst belongs to; valid while there is one. */
const void *ptk_bulk_route(const struct ptk_bulk *bulk);

/*
 * ptk_bulk_work works on the shortest message that waits, if there is one that may begin now: at
 * the first desk, or, from inside a pause of a longer message, at the next one if it is shorter
 * than what is left of that. Afterwards the reply is a burst. Returns whether it worked. `pause`
 * is begun and ended around the work.
 */
struct ptk_pause;
bool ptk_bulk_work(struct ptk_bulk *bulk, struct ptk_engine *engine, struct ptk_pause *pause);

/* Messages that wait for ptk_bulk_work. */
uint32_t ptk_bulk_queued(const struct ptk_bulk *bulk);

/* Messages in work: not 0 inside a pause. */
uint32_t ptk_bulk_depth(const struct ptk_bulk *bulk);

/* Whose the message was that ptk_bulk_work worked on last, and the cycles it took. */
uint64_t ptk_bulk_last_work(const struct ptk_bulk *bulk, struct ptk_address *source,
                            uint16_t *source_port);

/* When the last reply's request was complete (cycles): from there its service time counts. */
uint64_t ptk_bulk_begun_at(const struct ptk_bulk *bulk);

struct ptk_bulk_state {
    uint64_t fates[PTK_BULK_FATE_COUNT];
    uint64_t verdicts[PTK_VERDICT_VALUE_COUNT]; /* of refused datagrams */
    uint32_t slots_used;
    uint64_t arena_used_len;
    uint64_t arena_len;
};

/* Valid as long as the bulk. */
const struct ptk_bulk_state *ptk_bulk_state(struct ptk_bulk *bulk);

/* Goes on counting where another bulk has stopped. Before the first datagram. */
void ptk_bulk_fates_resume(struct ptk_bulk *bulk, const uint64_t fates[PTK_BULK_FATE_COUNT]);

#endif
