/*
 * The guard: who may have what, before any work is done for a datagram.
 *
 *     datagram ─ network allowed? ─ source within its limits? ─ key known? ─ cookie
 *              ─ time left for strangers? ─ MAC ─> engine
 *
 * The checks come from cheap to dear. The MAC is a hash of the whole datagram: a stranger gets it
 * out of the strangers' time, so a flood that names a key which exists takes no more than another.
 *
 * A port that is open to everybody is open to senders of false addresses. So there are two kinds of
 * sources. One that is validated has repeated a cookie, which only somebody who receives at its
 * address can know. A stranger has not, and
 *
 *   - never gets more bytes than it sent: a longer reply becomes the verdict challenge;
 *   - leaves no state behind (serve/ptk_bulk.h asks for validation);
 *   - shares with all strangers a part of each worker's time. What is beyond it is answered with
 *     challenge, and what is beyond the time for refusals with nothing. A flood of false addresses
 *     thus takes nothing from validated sources but the reception of its packets.
 *
 * Every refusal here is answered out of that time for refusals but one: a cookie that has aged,
 * whose bearer did receive at its address, always gets a fresh one.
 *
 * A refusal with challenge or bad_cookie carries a fresh cookie where the datagram had room for it,
 * so a client goes on after one more round trip, and its cookie holds for one to two minutes.
 *
 * A tenant's key says who sends, not from where: a MAC covers header, extensions and message, and a
 * window of sequence numbers for each sender of a key refuses what was seen before. One window per
 * worker: a copy that reaches another worker is answered once there.
 *
 * Limits count packets, bytes and work of each source address and of its network, in counters that
 * drain with time, in two rows of a fixed table each: sources that share a cell in one row hardly
 * ever share the other one, and the lesser of both decides. Their places depend on a secret.
 *
 * Threads: a guard belongs to its worker. ptk_guard_shared is written by the main thread and read
 * by all guards. There is no clock: the main thread turns the epoch, callers bring cycles.
 */
#ifndef PTK_GUARD_H
#define PTK_GUARD_H

#include "base/ptk_blake2b.h"
#include "base/ptk_siphash.h"
#include "gen/ptk_wire_gen.h"
#include "net/ptk_address.h"

#include <stdatomic.h>

/* Tenants' keys of one server. */
#define PTK_GUARD_KEYS_MAX 64u

/* How long an epoch lasts. A cookie holds in its own and in the next one. */
#define PTK_GUARD_EPOCH_NS (64ull * 1000 * 1000 * 1000)

/* Sequence numbers below the highest one that may still arrive: more than a burst of segments. */
#define PTK_GUARD_WINDOW 1024u

struct ptk_guard_key {
    uint64_t id; /* a u32 */
    uint64_t words[PTK_BLAKE2B_KEY_LEN / 8];
};

/*
 * ptk_guard_keys_parse reads a file of keys: one a line, the number, a space and 64 hexadecimal
 * digits. Returns how many, or -EINVAL and a sentence that names the line and never the key.
 */
int ptk_guard_keys_parse(const char *text, size_t len,
                         struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX], struct ptk_err *err);

/* What the main thread tells all guards. */
struct ptk_guard_shared {
    struct ptk_siphash_key master; /* constant once workers run */
    _Atomic uint32_t epoch;
    _Atomic uint32_t keys_version; /* odd while keys are written */
    uint64_t keys_count;
    struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX];
};

/* ptk_guard_shared_init takes the secret of this server; `now_ns` is CLOCK_MONOTONIC. */
void ptk_guard_shared_init(struct ptk_guard_shared *shared, struct ptk_siphash_key master,
                           uint64_t now_ns);

/* ptk_guard_shared_inherit takes the secret of the server that this one succeeds on the same
 * machine. Every guard must then inherit its books before its worker runs. */
void ptk_guard_shared_inherit(struct ptk_guard_shared *shared, struct ptk_siphash_key master);

/* ptk_guard_shared_turn moves the epoch; housekeeping. */
void ptk_guard_shared_turn(struct ptk_guard_shared *shared, uint64_t now_ns);

/* ptk_guard_shared_keys replaces all keys. Guards take them over within a loop. */
void ptk_guard_shared_keys(struct ptk_guard_shared *shared, const struct ptk_guard_key *keys,
                           uint32_t count);

/* What a source may have a second, in each unit; 0: no limit. A second's worth may come at once. */
struct ptk_guard_rate {
    uint32_t packets;
    uint32_t bytes; /* of UDP payload */
    uint32_t work_us;
};

struct ptk_guard_limits {
    bool validate;                 /* strangers are challenged; without it everybody is validated */
    bool require_key;              /* no request without a MAC */
    uint32_t stranger_percent;     /* of a worker's time for strangers, 1 to 100 */
    struct ptk_guard_rate address; /* of an IPv4 address or an IPv6 /64 */
    struct ptk_guard_rate network; /* of an IPv4 /24 or an IPv6 /48 */
    uint32_t network_count;        /* in the list; 0: all are allowed */
    struct ptk_network networks[PTK_NETWORKS_MAX];
    uint32_t cycles_per_us;
};

struct ptk_guard;

/* Bytes of a guard's memory; 64-byte aligned, owned by the caller. `shared` outlives the guard. */
size_t ptk_guard_len(const struct ptk_guard_limits *limits);
struct ptk_guard *ptk_guard_init(void *memory, const struct ptk_guard_limits *limits,
                                 struct ptk_guard_shared *shared);

/* ptk_guard_refresh takes over a new epoch and new keys; two loads when there are none. */
void ptk_guard_refresh(struct ptk_guard *guard);

/* Who sends, and when it was received. */
struct ptk_guard_source {
    struct ptk_address address;
    uint16_t port;
    uint64_t now; /* cycles */
};

struct ptk_guard_pass {
    enum ptk_verdict verdict; /* OK: go on */
    bool validated;
    bool charged; /* ptk_guard_charge wants to know what the work was, also that of a refusal */
    bool silent;  /* the refusal is not to be answered */
};

/*
 * ptk_guard_admit judges one datagram. Bytes that no client of this version sends pass as those of
 * a stranger: the door they go to refuses them. Refusals are counted here. About 10 ns without
 * extension and limits, 30 ns with a cookie.
 */
struct ptk_guard_pass ptk_guard_admit(struct ptk_guard *guard,
                                      const struct ptk_guard_source *source,
                                      const uint8_t *datagram, size_t len);

/*
 * ptk_guard_refuse writes the refusal of a datagram of `len` bytes, whose header is given; `reply`
 * has room for len bytes and may be the datagram. Returns the length of the reply, at most len.
 */
size_t ptk_guard_refuse(const struct ptk_guard *guard, const struct ptk_guard_source *source,
                        const struct ptk_wire_header *header, size_t len, enum ptk_verdict verdict,
                        uint8_t *reply);

/* ptk_guard_challenge counts and writes a challenge: a stranger's reply would be longer than its
 * request. As ptk_guard_refuse. */
size_t ptk_guard_challenge(struct ptk_guard *guard, const struct ptk_guard_source *source,
                           const struct ptk_wire_header *header, size_t len, uint8_t *reply);

/* ptk_guard_charge notes work of `cycles` that was done for a source. */
void ptk_guard_charge(struct ptk_guard *guard, const struct ptk_guard_source *source,
                      bool validated, uint64_t cycles);

/* What the guard refused, by verdict, and how much of that without an answer. */
struct ptk_guard_counters {
    uint64_t verdicts[PTK_VERDICT_VALUE_COUNT];
    uint64_t silent;
    uint64_t validated; /* datagrams with a good cookie */
    uint64_t keyed;     /* datagrams with a good MAC */
};

const struct ptk_guard_counters *ptk_guard_counters(const struct ptk_guard *guard);

/*
 * What a guard's successor must know so that nobody notices the change: its counters, and the
 * windows of the senders of keys, without which a copy of what was answered would be answered
 * again. Levels of limits are not part of it: they are forgotten within a second anyway.
 *
 * ptk_guard_give writes ptk_guard_books_len() bytes, 8-byte aligned; ptk_guard_inherit takes them
 * while the worker of neither guard runs. Any bytes are safe to inherit.
 */
size_t ptk_guard_books_len(void);
void ptk_guard_give(const struct ptk_guard *guard, void *books);
void ptk_guard_inherit(struct ptk_guard *guard, const void *books);

#endif
