/*
 * The engine: bytes of a request to bytes of a reply. It knows no socket, ring or clock.
 *
 * The poller, the socket path, the ring simulation, the tests, the fuzzer and the benchmarks drive
 * this same function. One engine belongs to one thread, which owns its memory: scratch for ids and
 * texts, and one piece cache for every slot of the model table.
 *
 *     ptk_engine_len -> memory (hugepages) -> ptk_engine_init
 *     loop: ptk_engine_refresh, then any number of ptk_engine_handle
 *
 * After init there is no allocation, no system call, no lock and no untouched page.
 */
#ifndef PTK_ENGINE_H
#define PTK_ENGINE_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"
#include "serve/ptk_models.h"

/* Smallest reply buffer: a refusal is one header. */
#define PTK_ENGINE_REPLY_CAP_MIN PTK_WIRE_HEADER_LEN

/* Largest UDP payload over IPv4; no datagram is longer. */
#define PTK_ENGINE_DATAGRAM_LEN_MAX 65507u

/*
 * Desks for long messages: each has scratch of its own, so that one message can be begun while
 * another is suspended. Desk 0 takes the longest message there may be, each further one a quarter
 * of that: all together cost a third more than the first.
 */
#define PTK_ENGINE_LONG_DESKS 3u

/* What the engine must be able to hold; fixed at start. */
struct ptk_engine_limits {
    uint32_t datagram_len_max; /* largest UDP payload to accept or send; sizes the scratch */
    uint32_t message_len_max;  /* longest message in segments; 0: none, and no desks for them */
    uint32_t models_cap;       /* slots of the table in use, 1 to PTK_MODELS_CAP */
    size_t cache_len;          /* bytes of the piece cache of each slot; as ptk_cache_init asks */
};

/*
 * What the engine has done since init. One writer, the engine's thread; plain words: the poller
 * publishes a copy. A datagram is counted once, in verdicts; items have their own verdicts.
 */
struct ptk_engine_counters {
    uint64_t requests[PTK_WIRE_OP_VALUE_COUNT]; /* by op, of requests that name a defined op */
    uint64_t verdicts[PTK_VERDICT_VALUE_COUNT]; /* of whole datagrams */
    uint64_t item_verdicts[PTK_VERDICT_VALUE_COUNT];
    uint64_t text_bytes; /* texts given to encode and count, texts made by decode */
    uint64_t ids;        /* ids made by encode, counted by count, given to decode */
    uint64_t plain_hits; /* tokens in texts that ranges made ordinary */
    uint64_t cache_resets;
};

struct ptk_engine;

/*
 * ptk_engine_len says how many bytes ptk_engine_init needs for these limits; init lays the engine
 * out in `memory` (64-byte aligned; zeroed or not; owned by the caller, who keeps it until the
 * thread has stopped) and reads the table once. `models` must outlive the engine. Asserts the
 * limits.
 */
size_t ptk_engine_len(const struct ptk_engine_limits *limits);
struct ptk_engine *ptk_engine_init(void *memory, const struct ptk_engine_limits *limits,
                                   const struct ptk_models *models);

/*
 * ptk_engine_refresh takes over what the model table holds now; the poller calls it at the boundary
 * of its loop, where no request is in work. One load when nothing changed. When a slot's model
 * changed, its piece cache is emptied, which costs a pass over cache_len bytes.
 */
void ptk_engine_refresh(struct ptk_engine *engine);

/* The epoch of the table this engine works with; read by the main thread (acquire). */
uint64_t ptk_engine_epoch_seen(const struct ptk_engine *engine);

/*
 * ptk_engine_handle answers one datagram: `len` bytes of UDP payload (0 is allowed). The reply goes
 * to `reply`, which is `datagram` itself (in place) or does not overlap it; neither needs
 * alignment. reply_cap is at least PTK_ENGINE_REPLY_CAP_MIN: the room there, or the largest payload
 * the link carries if that is less. Returns the length of the reply; 0: drop without answer (bytes
 * that are not PTK1, or that only servers send). *verdict says why, for refusals and drops. A
 * refusal is one header, so it is never larger than the request.
 */
size_t ptk_engine_handle(struct ptk_engine *engine, const uint8_t *datagram, size_t len,
                         uint8_t *reply, size_t reply_cap, enum ptk_verdict *verdict);

/* A long message of encode, count, decode or decode_step: complete, and its checksum verified. */
struct ptk_engine_long {
    struct ptk_wire_header header; /* of any of its segments */
    const uint8_t *message;
    size_t message_len;
    size_t reply_message_len_max; /* longest reply to make */
};

struct ptk_engine_long_reply {
    uint32_t model_tag;
    size_t message_len;      /* of the reply */
    size_t datagram_len_max; /* largest datagram that the client accepts */
};

/* Whether a message of this length can be worked on at this desk. */
bool ptk_engine_long_fits(const struct ptk_engine *engine, uint32_t desk_idx, size_t message_len);

/*
 * ptk_engine_long_run does the work of a long message at a desk, 0 to PTK_ENGINE_LONG_DESKS - 1,
 * where it fits. With OK the reply's message waits in the desk until ptk_engine_long_build writes
 * reply->message_len bytes of it; with a refusal there is none. The build does not look at
 * input->message any more. Long messages at other desks, and datagrams, may be worked on from
 *inside ; ptk_engine_refresh may not be called meanwhile.
 */
enum ptk_verdict ptk_engine_long_run(struct ptk_engine *engine, uint32_t desk_idx,
                                     const struct ptk_engine_long *input,
                                     struct ptk_engine_long_reply *reply);
void ptk_engine_long_build(struct ptk_engine *engine, uint32_t desk_idx, uint8_t *message);

/* Goes on counting where another engine has stopped. Before the engine's first request. */
void ptk_engine_counters_resume(struct ptk_engine *engine,
                                const struct ptk_engine_counters *counters);

/* Valid as long as the engine; see the struct for who may read it. */
const struct ptk_engine_counters *ptk_engine_counters(const struct ptk_engine *engine);

#endif
