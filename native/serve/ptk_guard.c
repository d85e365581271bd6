/* Cookies, keys, limits and networks; see the header for what they are for. */
#include "serve/ptk_guard.h"

#include "wire/ptk_wire_extensions.h"
#include "wire/ptk_wire_reply.h"

#include <errno.h>

/* Cells of a row of limits: at a hundred thousand sources a second each holds a few dozen of their
 * packets, far below any limit that is worth setting. */
#define CELLS 4096u
#define ROWS  2u

/* Senders of keys that each worker knows, in sets of four. */
#define SETS 256u
#define WAYS 4u

/* Time for refusals, in percent, and what each is taken to cost. */
#define REFUSAL_PERCENT 10u
#define REFUSAL_US      1u

/* Secrets of cookies: of this epoch and the one before, which hold, and of the one before these,
 * which only tells a client whose cookie has aged from a sender of false ones. */
#define COOKIE_KEYS 3u
#define COOKIE_HOLD 2u

/* A worker's time that may be saved up for strangers, in microseconds. */
#define SAVED_US 20000u

enum unit { UNIT_PACKETS = 0, UNIT_BYTES, UNIT_WORK, UNIT_COUNT };

/* What a source, or all that share this cell, have had lately. */
struct cell {
    uint64_t drained_at; /* cycles */
    double level[UNIT_COUNT];
};

struct table {
    bool limited;
    double rate[UNIT_COUNT]; /* a second; work in cycles; 0: no limit */
    struct cell rows[ROWS][CELLS];
};

struct sender {
    uint64_t used; /* 0: empty; grows */
    uint32_t key_id;
    uint32_t number;
    uint64_t highest;
    uint64_t seen[PTK_GUARD_WINDOW / 64]; /* bit n: of sequence n modulo the window */
};

struct set {
    uint64_t floor; /* a sender that was forgotten may have used numbers up to this one */
    struct sender senders[WAYS];
};

/* What a successor inherits; a change of it, or of what it is made of, is a new version of the
 * hand-over (serve/ptk_server_handover.h). */
struct books {
    struct ptk_guard_counters counters;
    uint64_t uses;
    struct set sets[SETS]; /* all empty while uses is 0 */
};

/* Cycles that may be spent on strangers. */
struct budget {
    uint32_t percent;
    uint64_t filled_at;
    double left;
};

struct key {
    uint32_t id;
    struct ptk_blake2b begun;
};

struct ptk_guard {
    struct ptk_guard_counters counters;
    struct ptk_guard_limits limits;
    struct ptk_guard_shared *shared;
    uint32_t epoch;
    struct ptk_siphash_key cookie_keys[COOKIE_KEYS]; /* by age in epochs */
    struct ptk_siphash_key places;                   /* where a source's cells and senders are */
    double cycles_per_second;
    struct budget work;
    struct budget refusals;
    uint32_t keys_version;
    uint32_t keys_count;
    struct key keys[PTK_GUARD_KEYS_MAX];
    uint64_t uses;
    struct set sets[SETS];
    struct table tables[]; /* addresses, networks; only where there are limits */
};

/* ---- what the main thread does -------------------------------------------------------------- */

static uint32_t epoch_at(uint64_t now_ns)
{
    return (uint32_t)(now_ns / PTK_GUARD_EPOCH_NS) + 2; /* 0 and 1 never live: no cookie yet. */
}

void ptk_guard_shared_init(struct ptk_guard_shared *shared, struct ptk_siphash_key master,
                           uint64_t now_ns)
{
    memset(shared, 0, sizeof *shared);
    shared->master = master;
    atomic_init(&shared->epoch, epoch_at(now_ns));
    atomic_init(&shared->keys_version, 0);
}

void ptk_guard_shared_inherit(struct ptk_guard_shared *shared, struct ptk_siphash_key master)
{
    shared->master = master;
}

void ptk_guard_shared_turn(struct ptk_guard_shared *shared, uint64_t now_ns)
{
    atomic_store_explicit(&shared->epoch, epoch_at(now_ns), memory_order_relaxed);
}

static void store_words(uint64_t *to, const uint64_t *from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        __atomic_store_n(&to[i], from[i], __ATOMIC_RELAXED);
    }
}

static void load_words(uint64_t *to, const uint64_t *from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}

void ptk_guard_shared_keys(struct ptk_guard_shared *shared, const struct ptk_guard_key *keys,
                           uint32_t count)
{
    PTK_ASSERT(count <= PTK_GUARD_KEYS_MAX);
    const uint32_t version = atomic_load_explicit(&shared->keys_version, memory_order_relaxed);
    PTK_ASSERT(version % 2 == 0);
    atomic_store_explicit(&shared->keys_version, version + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    __atomic_store_n(&shared->keys_count, count, __ATOMIC_RELAXED);
    store_words((uint64_t *)(void *)shared->keys, (const uint64_t *)(const void *)keys,
                count * (sizeof *keys / 8));
    atomic_store_explicit(&shared->keys_version, version + 2, memory_order_release);
}

/* ---- texts ---------------------------------------------------------------------------------- */

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* One line: "17 0011...ff". */
static bool parse_key(const char *line, size_t len, struct ptk_guard_key *key)
{
    const size_t hex_len = 2 * (size_t)PTK_BLAKE2B_KEY_LEN;
    uint64_t id = 0;
    size_t pos = 0;
    for (; pos < len && line[pos] >= '0' && line[pos] <= '9' && pos < 10; pos++) {
        id = id * 10 + (uint64_t)(line[pos] - '0');
    }
    if (pos == 0 || id > UINT32_MAX || len != pos + 1 + hex_len || line[pos] != ' ') {
        return false;
    }
    uint8_t bytes[PTK_BLAKE2B_KEY_LEN];
    for (size_t i = 0; i < PTK_BLAKE2B_KEY_LEN; i++) {
        const int high = hex_digit(line[pos + 1 + 2 * i]);
        const int low = hex_digit(line[pos + 2 + 2 * i]);
        if (high < 0 || low < 0) {
            return false;
        }
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    key->id = id;
    memcpy(key->words, bytes, sizeof bytes);
    return true;
}

int ptk_guard_keys_parse(const char *text, size_t len,
                         struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX], struct ptk_err *err)
{
    uint32_t count = 0;
    uint32_t number = 0;
    for (size_t pos = 0; pos < len;) {
        const char *end = memchr(text + pos, '\n', len - pos);
        const size_t line_len = (end != NULL ? (size_t)(end - text) : len) - pos;
        number++;
        if (count == PTK_GUARD_KEYS_MAX) {
            return ptk_err_set(err, -EINVAL, "keys: more than %u", PTK_GUARD_KEYS_MAX);
        }
        if (!parse_key(text + pos, line_len, &keys[count])) {
            return ptk_err_set(err, -EINVAL,
                               "keys: line %u is not a number, a space and 64 hexadecimal digits",
                               number);
        }
        for (uint32_t i = 0; i < count; i++) {
            if (keys[i].id == keys[count].id) {
                return ptk_err_set(err, -EINVAL, "keys: line %u repeats key %u", number,
                                   (uint32_t)keys[count].id);
            }
        }
        count++;
        pos += line_len + 1;
    }
    return (int)count;
}

/* ---- life ----------------------------------------------------------------------------------- */

static bool is_limited(const struct ptk_guard_rate *rate)
{
    return rate->packets != 0 || rate->bytes != 0 || rate->work_us != 0;
}

static bool has_tables(const struct ptk_guard_limits *limits)
{
    return is_limited(&limits->address) || is_limited(&limits->network);
}

size_t ptk_guard_len(const struct ptk_guard_limits *limits)
{
    return sizeof(struct ptk_guard) + (has_tables(limits) ? 2 * sizeof(struct table) : 0);
}

static void table_init(struct table *table, const struct ptk_guard_rate *rate,
                       uint32_t cycles_per_us)
{
    table->limited = is_limited(rate);
    table->rate[UNIT_PACKETS] = (double)rate->packets;
    table->rate[UNIT_BYTES] = (double)rate->bytes;
    table->rate[UNIT_WORK] = (double)rate->work_us * cycles_per_us;
}

static struct ptk_siphash_key epoch_key(struct ptk_siphash_key master, uint32_t epoch)
{
    const uint64_t halves[2] = {(uint64_t)epoch << 1, (uint64_t)epoch << 1 | 1};
    return (struct ptk_siphash_key){.k0 = ptk_siphash(master, &halves[0], sizeof halves[0]),
                                    .k1 = ptk_siphash(master, &halves[1], sizeof halves[1])};
}

/* Everything that comes of the secret and the epoch. */
static void derive(struct ptk_guard *guard, uint32_t epoch)
{
    const struct ptk_siphash_key master = guard->shared->master;
    guard->epoch = epoch;
    for (uint32_t age = 0; age < COOKIE_KEYS; age++) {
        guard->cookie_keys[age] = epoch_key(master, epoch - age);
    }
    guard->places.k0 = ptk_siphash(master, "places 0", 8);
    guard->places.k1 = ptk_siphash(master, "places 1", 8);
}

struct ptk_guard *ptk_guard_init(void *memory, const struct ptk_guard_limits *limits,
                                 struct ptk_guard_shared *shared)
{
    PTK_ASSERT((uintptr_t)memory % PTK_CACHE_LINE == 0);
    PTK_ASSERT(limits->cycles_per_us > 0);
    PTK_ASSERT(limits->stranger_percent >= 1);
    PTK_ASSERT(limits->stranger_percent <= 100);
    struct ptk_guard *guard = memory;
    memset(memory, 0, ptk_guard_len(limits)); /* Every page is touched here. */
    guard->limits = *limits;
    guard->shared = shared;
    guard->cycles_per_second = limits->cycles_per_us * 1e6;
    guard->work.percent = limits->stranger_percent;
    guard->refusals.percent = REFUSAL_PERCENT;
    if (has_tables(limits)) {
        table_init(&guard->tables[0], &limits->address, limits->cycles_per_us);
        table_init(&guard->tables[1], &limits->network, limits->cycles_per_us);
    }
    derive(guard, atomic_load_explicit(&shared->epoch, memory_order_relaxed));
    ptk_guard_refresh(guard);
    return guard;
}

static void take_keys(struct ptk_guard *guard, uint32_t version)
{
    struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX];
    const struct ptk_guard_shared *shared = guard->shared;
    const uint64_t stated = __atomic_load_n(&shared->keys_count, __ATOMIC_RELAXED);
    const uint32_t count = (uint32_t)(stated <= PTK_GUARD_KEYS_MAX ? stated : 0);
    load_words((uint64_t *)(void *)keys, (const uint64_t *)(const void *)shared->keys,
               count * (sizeof keys[0] / 8));
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&guard->shared->keys_version, memory_order_relaxed) != version) {
        return; /* They are being replaced again; the next loop takes them. */
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t bytes[PTK_BLAKE2B_KEY_LEN];
        memcpy(bytes, keys[i].words, sizeof bytes);
        guard->keys[i].id = (uint32_t)keys[i].id;
        ptk_blake2b_init(&guard->keys[i].begun, bytes);
    }
    guard->keys_count = count;
    guard->keys_version = version;
}

void ptk_guard_refresh(struct ptk_guard *guard)
{
    struct ptk_guard_shared *shared = guard->shared;
    const uint32_t epoch = atomic_load_explicit(&shared->epoch, memory_order_relaxed);
    if (PTK_UNLIKELY(epoch != guard->epoch)) {
        derive(guard, epoch);
    }
    const uint32_t version = atomic_load_explicit(&shared->keys_version, memory_order_acquire);
    if (PTK_UNLIKELY(version != guard->keys_version && version % 2 == 0)) {
        take_keys(guard, version);
    }
}

const struct ptk_guard_counters *ptk_guard_counters(const struct ptk_guard *guard)
{
    return &guard->counters;
}

/* ---- a successor ---------------------------------------------------------------------------- */

size_t ptk_guard_books_len(void)
{
    return sizeof(struct books);
}

void ptk_guard_give(const struct ptk_guard *guard, void *books)
{
    struct books *out = books;
    PTK_ASSERT((uintptr_t)books % _Alignof(struct books) == 0);
    out->counters = guard->counters;
    out->uses = guard->uses;
    if (guard->uses != 0) {
        memcpy(out->sets, guard->sets, sizeof out->sets);
    }
}

void ptk_guard_inherit(struct ptk_guard *guard, const void *books)
{
    const struct books *in = books;
    PTK_ASSERT((uintptr_t)books % _Alignof(struct books) == 0);
    guard->counters = in->counters;
    guard->uses = in->uses;
    if (in->uses != 0) {
        memcpy(guard->sets, in->sets, sizeof guard->sets);
    }
    derive(guard, atomic_load_explicit(&guard->shared->epoch, memory_order_relaxed));
}

/* ---- networks and limits -------------------------------------------------------------------- */

static bool is_allowed(const struct ptk_guard_limits *limits, const struct ptk_address *address)
{
    for (uint32_t i = 0; i < limits->network_count; i++) {
        if (ptk_network_has(&limits->networks[i], address)) {
            return true;
        }
    }
    return limits->network_count == 0;
}

/* The cells of a source in one table: those of its address, or of its network. */
static void find_cells(struct ptk_guard *guard, uint32_t which, const struct ptk_address *address,
                       struct cell *cells[ROWS])
{
    struct ptk_address masked = *address;
    const bool ipv4 = ptk_address_is_ipv4(address);
    ptk_address_clear_tail(&masked, which == 0 ? (ipv4 ? 128 : 64) : (ipv4 ? 120 : 48));
    const uint64_t hash = ptk_siphash(guard->places, masked.bytes, sizeof masked.bytes);
    for (uint32_t row = 0; row < ROWS; row++) {
        cells[row] = &guard->tables[which].rows[row][(hash >> 32 * row) % CELLS];
    }
}

static void drain(const struct ptk_guard *guard, const struct table *table, struct cell *cell,
                  uint64_t now)
{
    const int64_t elapsed = (int64_t)(now - cell->drained_at);
    if (elapsed <= 0) {
        return;
    }
    const double seconds = (double)elapsed / guard->cycles_per_second;
    for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
        const double left = cell->level[unit] - table->rate[unit] * seconds;
        cell->level[unit] = left > 0 ? left : 0;
    }
    cell->drained_at = now;
}

/* Adds to all cells of the source, and says whether it is over a limit: in every row. */
static bool note(struct ptk_guard *guard, const struct ptk_guard_source *source,
                 const double amounts[UNIT_COUNT])
{
    bool over = false;
    for (uint32_t which = 0; which < 2; which++) {
        const struct table *table = &guard->tables[which];
        if (!table->limited) {
            continue;
        }
        struct cell *cells[ROWS];
        find_cells(guard, which, &source->address, cells);
        drain(guard, table, cells[0], source->now);
        drain(guard, table, cells[1], source->now);
        for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
            const double rate = table->rate[unit];
            const double lesser = cells[0]->level[unit] < cells[1]->level[unit]
                                      ? cells[0]->level[unit]
                                      : cells[1]->level[unit];
            over = over || (rate > 0 && lesser + amounts[unit] > rate);
        }
        /* What is refused is not counted against the source: it would never come back. */
        for (uint32_t row = 0; row < ROWS && !over; row++) {
            for (uint32_t unit = 0; unit < UNIT_COUNT; unit++) {
                cells[row]->level[unit] += amounts[unit];
            }
        }
    }
    return over;
}

static void fill(const struct ptk_guard *guard, struct budget *budget, uint64_t now)
{
    const int64_t elapsed = (int64_t)(now - budget->filled_at);
    if (elapsed <= 0) {
        return;
    }
    const double share = budget->percent / 100.0;
    const double most = share * SAVED_US * guard->limits.cycles_per_us;
    const double left = budget->left + share * (double)elapsed;
    budget->left = left < most ? left : most;
    budget->filled_at = now;
}

void ptk_guard_charge(struct ptk_guard *guard, const struct ptk_guard_source *source,
                      bool validated, uint64_t cycles)
{
    if (guard->limits.validate && !validated) {
        guard->work.left -= (double)cycles;
    }
    if (!has_tables(&guard->limits)) {
        return;
    }
    for (uint32_t which = 0; which < 2; which++) {
        if (guard->tables[which].limited) {
            struct cell *cells[ROWS];
            find_cells(guard, which, &source->address, cells);
            cells[0]->level[UNIT_WORK] += (double)cycles;
            cells[1]->level[UNIT_WORK] += (double)cycles;
        }
    }
}

/* ---- cookies -------------------------------------------------------------------------------- */

static uint64_t cookie_mac(const struct ptk_guard *guard, const struct ptk_guard_source *source,
                           uint32_t age, uint32_t nonce)
{
    uint8_t bytes[32];
    memcpy(bytes, source->address.bytes, 16);
    ptk_store_u32(bytes + 16, source->port);
    ptk_store_u32(bytes + 20, guard->epoch - age);
    ptk_store_u32(bytes + 24, nonce);
    ptk_store_u32(bytes + 28, 0);
    return ptk_siphash(guard->cookie_keys[age], bytes, sizeof bytes);
}

/* Epochs since this source was given this cookie; COOKIE_KEYS: it never was, or long ago. */
static uint32_t cookie_age(const struct ptk_guard *guard, const struct ptk_guard_source *source,
                           const uint8_t *bytes)
{
    struct ptk_wire_cookie cookie;
    memcpy(&cookie, bytes, sizeof cookie);
    const uint32_t age = guard->epoch - cookie.epoch;
    const bool given =
        age < COOKIE_KEYS && cookie.mac == cookie_mac(guard, source, age, cookie.nonce);
    return given ? age : COOKIE_KEYS;
}

/* ---- keys ----------------------------------------------------------------------------------- */

/* Forgets the sender of the set that has been silent longest. */
static struct sender *replace_sender(struct set *set)
{
    struct sender *oldest = &set->senders[0];
    for (uint32_t i = 1; i < WAYS; i++) {
        if (set->senders[i].used < oldest->used) {
            oldest = &set->senders[i];
        }
    }
    if (oldest->used != 0 && oldest->highest > set->floor) {
        set->floor = oldest->highest;
    }
    memset(oldest, 0, sizeof *oldest);
    return oldest;
}

/* Moves the window up to `sequence`. */
static void advance(struct sender *sender, uint64_t sequence)
{
    const uint64_t steps = sequence - sender->highest;
    if (steps >= PTK_GUARD_WINDOW) {
        memset(sender->seen, 0, sizeof sender->seen);
    } else {
        for (uint64_t i = sender->highest + 1; i <= sequence; i++) {
            sender->seen[i % PTK_GUARD_WINDOW / 64] &= ~(1ull << i % 64);
        }
    }
    sender->highest = sequence;
}

/* Was this number of this sender never seen, and is it not too old to tell? Then it is now. */
static bool is_new(struct ptk_guard *guard, const struct ptk_wire_mac *mac)
{
    const uint64_t name = (uint64_t)mac->key_id << 32 | mac->sender;
    struct set *set = &guard->sets[ptk_siphash(guard->places, &name, sizeof name) % SETS];
    struct sender *sender = NULL;
    for (uint32_t i = 0; i < WAYS; i++) {
        struct sender *one = &set->senders[i];
        if (one->used != 0 && one->key_id == mac->key_id && one->number == mac->sender) {
            sender = one;
        }
    }
    if (sender == NULL) {
        if (mac->sequence <= set->floor) {
            return false;
        }
        sender = replace_sender(set);
        sender->key_id = mac->key_id;
        sender->number = mac->sender;
        sender->highest = mac->sequence;
    }
    sender->used = ++guard->uses;
    if (mac->sequence > sender->highest) {
        advance(sender, mac->sequence);
    } else if (sender->highest - mac->sequence >= PTK_GUARD_WINDOW) {
        return false;
    }
    uint64_t *word = &sender->seen[mac->sequence % PTK_GUARD_WINDOW / 64];
    const uint64_t bit = 1ull << mac->sequence % 64;
    const bool fresh = (*word & bit) == 0;
    *word |= bit;
    return fresh;
}

/* The key that a datagram names; NULL when there is none of this number. */
static const struct key *find_key(const struct ptk_guard *guard, const uint8_t *mac)
{
    const uint32_t id = ptk_load_u32(mac + offsetof(struct ptk_wire_mac, key_id));
    const struct key *key = NULL;
    for (uint32_t i = 0; i < guard->keys_count; i++) {
        key = guard->keys[i].id == id ? &guard->keys[i] : key;
    }
    return key;
}

/* A hash of the whole datagram: the dearest of all checks. */
static enum ptk_verdict check_mac(struct ptk_guard *guard, const struct key *key,
                                  const uint8_t *datagram, size_t len, size_t mac_off)
{
    static const uint8_t ZEROS[PTK_BLAKE2B_MAC_LEN];
    struct ptk_wire_mac mac;
    memcpy(&mac, datagram + mac_off, sizeof mac);
    const size_t code_off = mac_off + offsetof(struct ptk_wire_mac, mac);
    struct ptk_blake2b state = key->begun;
    uint8_t code[PTK_BLAKE2B_MAC_LEN];
    ptk_blake2b_update(&state, datagram, code_off);
    ptk_blake2b_update(&state, ZEROS, sizeof ZEROS);
    ptk_blake2b_update(&state, datagram + code_off + sizeof ZEROS, len - code_off - sizeof ZEROS);
    ptk_blake2b_final(&state, code);
    if (!ptk_mac_equal(code, mac.mac)) {
        return PTK_VERDICT_BAD_KEY;
    }
    return is_new(guard, &mac) ? PTK_VERDICT_OK : PTK_VERDICT_REPLAYED;
}

/* ---- the door ------------------------------------------------------------------------------- */

static struct ptk_guard_pass refuse(struct ptk_guard *guard, enum ptk_verdict verdict, bool silent)
{
    guard->counters.verdicts[verdict]++;
    guard->counters.silent += silent;
    return (struct ptk_guard_pass){.verdict = verdict, .silent = silent};
}

/* A refusal that floods may cause, answered as long as there is time for such. */
static struct ptk_guard_pass refuse_in_time(struct ptk_guard *guard, enum ptk_verdict verdict,
                                            uint64_t now)
{
    fill(guard, &guard->refusals, now);
    const bool silent = guard->refusals.left <= 0;
    if (!silent) {
        guard->refusals.left -= (double)REFUSAL_US * guard->limits.cycles_per_us;
    }
    return refuse(guard, verdict, silent);
}

static struct ptk_guard_pass accept(const struct ptk_guard *guard, bool validated)
{
    return (struct ptk_guard_pass){.verdict = PTK_VERDICT_OK,
                                   .validated = validated,
                                   .charged = !validated || has_tables(&guard->limits)};
}

/* From cheap to dear: what is refused early costs no more than it has cost until then. */
struct ptk_guard_pass ptk_guard_admit(struct ptk_guard *guard,
                                      const struct ptk_guard_source *source,
                                      const uint8_t *datagram, size_t len)
{
    const struct ptk_guard_limits *limits = &guard->limits;
    const uint64_t now = source->now;
    if (PTK_UNLIKELY(!is_allowed(limits, &source->address))) {
        return refuse(guard, PTK_VERDICT_NOT_ALLOWED, true);
    }
    if (PTK_UNLIKELY(has_tables(limits))) {
        const double amounts[UNIT_COUNT] = {1, (double)len, 0};
        if (note(guard, source, amounts)) {
            return refuse_in_time(guard, PTK_VERDICT_RATE_LIMITED, now);
        }
    }
    struct ptk_wire_extensions extensions;
    if (!ptk_wire_extensions_find(datagram, len, &extensions)) {
        return accept(guard, !limits->validate);
    }
    const bool has_mac = extensions.mac_off != 0;
    const struct key *key = has_mac ? find_key(guard, datagram + extensions.mac_off) : NULL;
    if (key == NULL && (has_mac || limits->require_key)) {
        return refuse_in_time(guard, PTK_VERDICT_BAD_KEY, now);
    }
    bool validated = !limits->validate;
    if (!validated && extensions.cookie_off != 0) {
        const uint32_t age = cookie_age(guard, source, datagram + extensions.cookie_off);
        if (age >= COOKIE_HOLD) {
            /* One that has aged is a client's: no flood of false ones may keep it from a fresh
             * one. */
            return age < COOKIE_KEYS ? refuse(guard, PTK_VERDICT_BAD_COOKIE, false)
                                     : refuse_in_time(guard, PTK_VERDICT_BAD_COOKIE, now);
        }
        guard->counters.validated++;
        validated = true;
    }
    if (!validated) {
        fill(guard, &guard->work, now);
        if (guard->work.left <= 0) {
            return refuse_in_time(guard, PTK_VERDICT_CHALLENGE, now);
        }
    }
    const struct ptk_guard_pass pass = accept(guard, validated);
    if (key == NULL) {
        return pass;
    }
    const enum ptk_verdict verdict = check_mac(guard, key, datagram, len, extensions.mac_off);
    if (verdict == PTK_VERDICT_OK) {
        guard->counters.keyed++;
        return pass;
    }
    struct ptk_guard_pass refusal = refuse_in_time(guard, verdict, now);
    refusal.validated = pass.validated; /* The hash was work, and is charged like any other. */
    refusal.charged = pass.charged;
    return refusal;
}

size_t ptk_guard_refuse(const struct ptk_guard *guard, const struct ptk_guard_source *source,
                        const struct ptk_wire_header *header, size_t len, enum ptk_verdict verdict,
                        uint8_t *reply)
{
    const size_t reply_len = ptk_wire_refusal_build(header, verdict, 0, reply);
    const bool with_cookie = verdict == PTK_VERDICT_CHALLENGE || verdict == PTK_VERDICT_BAD_COOKIE;
    if (!with_cookie || len < reply_len + sizeof(struct ptk_wire_cookie)) {
        return reply_len;
    }
    const uint32_t nonce = (uint32_t)header->request_id;
    const struct ptk_wire_cookie cookie = {
        .epoch = guard->epoch,
        .nonce = nonce,
        .mac = cookie_mac(guard, source, 0, nonce),
    };
    reply[offsetof(struct ptk_wire_header, flags)] |= PTK_WIRE_FLAGS_COOKIE;
    memcpy(reply + reply_len, &cookie, sizeof cookie);
    return reply_len + sizeof cookie;
}

size_t ptk_guard_challenge(struct ptk_guard *guard, const struct ptk_guard_source *source,
                           const struct ptk_wire_header *header, size_t len, uint8_t *reply)
{
    if (refuse_in_time(guard, PTK_VERDICT_CHALLENGE, source->now).silent) {
        return 0;
    }
    return ptk_guard_refuse(guard, source, header, len, PTK_VERDICT_CHALLENGE, reply);
}
