/*
 * The guard: whatever arrives from whomever, a refusal is never longer than what it answers, only a
 * cookie that the guard itself made validates its source, a number is taken once, and a limit
 * holds. Beside it run plain twins of the cookies, the windows of numbers and the limit.
 *
 * The first byte of an input says what the rest is: 0 a file of keys, 1 a network, else it is the
 * limits that are on, and steps follow: kind, source, argument, length, then so many bytes. The
 * secrets are a hash of the whole input: a fuzzer that watches comparisons could otherwise learn a
 * cookie and write it down.
 */
#include "serve/ptk_guard.h"

#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CYCLES_PER_US 1000u
#define SOURCES       4u
#define NAMES         4u /* two senders of two keys: as many as a set holds, none is forgotten */
#define NUMBERS_MAX   65536u
#define COOKIES_MAX   512u
#define PACKETS_MAX   20u
#define DATAGRAM_MAX  512u

enum limit { LIMIT_VALIDATE = 2, LIMIT_KEY = 4, LIMIT_RATE = 8, LIMIT_NETWORK = 16 };

enum kind {
    KIND_RAW = 0,
    KIND_COOKIE,
    KIND_SIGNED,
    KIND_SIGNED_COOKIE,
    KIND_WAIT,
    KIND_EPOCH,
    KIND_KEYS,
    KIND_WORK,
    KIND_COUNT
};

struct step {
    uint8_t kind;
    uint8_t source;
    uint8_t argument;
    uint8_t len;
};

/* A cookie that the guard has given out. */
struct issued {
    uint32_t source;
    struct ptk_wire_cookie cookie;
};

struct name {
    bool known;
    uint64_t highest;
    bool taken[NUMBERS_MAX];
};

static struct run {
    struct ptk_guard_shared shared;
    struct ptk_guard *guard;
    struct ptk_guard_limits limits;
    struct ptk_guard_source sources[SOURCES];
    uint64_t begun_at;
    uint64_t now;
    uint64_t epoch;
    uint32_t keys_mask; /* which of the two keys hold */
    uint32_t issued_count;
    struct issued issued[COOKIES_MAX];
    struct name names[NAMES];
    uint64_t passed[SOURCES];
    uint64_t refused;
} run;

static void key_make(struct ptk_guard_key *key, uint32_t id)
{
    key->id = id;
    for (uint64_t i = 0; i < PTK_ARRAY_LEN(key->words); i++) {
        const uint64_t place = (uint64_t)id << 32 | i;
        key->words[i] = ptk_siphash(run.shared.master, &place, sizeof place);
    }
}

static void set_keys(uint32_t mask)
{
    struct ptk_guard_key keys[2];
    uint32_t count = 0;
    for (uint32_t id = 0; id < 2; id++) {
        if ((mask & 1u << id) != 0) {
            key_make(&keys[count++], id);
        }
    }
    ptk_guard_shared_keys(&run.shared, keys, count);
    ptk_guard_refresh(run.guard);
    run.keys_mask = mask & 3;
}

static void run_begin(const uint8_t *data, size_t size)
{
    static const char *const ADDRESSES[SOURCES] = {"192.0.2.1", "192.0.2.1", "198.51.100.7",
                                                   "2001:db8::1"};
    _Alignas(64) static uint8_t memory[4 << 20];
    memset(&run, 0, sizeof run);
    run.limits = (struct ptk_guard_limits){
        .validate = (data[0] & LIMIT_VALIDATE) != 0,
        .require_key = (data[0] & LIMIT_KEY) != 0,
        .stranger_percent = 50,
        .cycles_per_us = CYCLES_PER_US,
        .address = {.packets = (data[0] & LIMIT_RATE) != 0 ? PACKETS_MAX : 0},
    };
    if ((data[0] & LIMIT_NETWORK) != 0) {
        run.limits.network_count = 1;
        PTK_ASSERT(ptk_network_parse("192.0.2.0/25", &run.limits.networks[0], NULL) == 0);
    }
    const struct ptk_siphash_key fixed = {1, 2};
    const uint64_t secret = ptk_siphash(fixed, data, size);
    ptk_guard_shared_init(&run.shared, (struct ptk_siphash_key){secret, ~secret}, 0);
    PTK_ASSERT(ptk_guard_len(&run.limits) <= sizeof memory);
    run.guard = ptk_guard_init(memory, &run.limits, &run.shared);
    run.begun_at = run.now = 1000000ull * CYCLES_PER_US;
    for (uint32_t i = 0; i < SOURCES; i++) {
        PTK_ASSERT(ptk_address_parse(ADDRESSES[i], &run.sources[i].address, NULL) == 0);
        run.sources[i].port = (uint16_t)(5000 + i);
    }
    set_keys(3);
}

/* Was this cookie given to this source, in this epoch or the one before? */
static bool was_issued(uint32_t source, const uint8_t *bytes)
{
    for (uint32_t i = 0; i < run.issued_count; i++) {
        const struct issued *one = &run.issued[i];
        if (one->source == source && memcmp(&one->cookie, bytes, sizeof one->cookie) == 0) {
            const uint64_t epoch = run.epoch + 2; /* The first one is called 2. */
            return one->cookie.epoch == epoch || one->cookie.epoch == epoch - 1;
        }
    }
    return false;
}

static void check_refusal(uint32_t source, const uint8_t *datagram, size_t len,
                          const uint8_t *reply, size_t reply_len, enum ptk_verdict verdict)
{
    struct ptk_wire_header header;
    PTK_ASSERT(reply_len <= len);
    PTK_ASSERT(reply_len >= sizeof header);
    memcpy(&header, reply, sizeof header);
    PTK_ASSERT(header.verdict == verdict);
    PTK_ASSERT(memcmp(&header.request_id, datagram + offsetof(struct ptk_wire_header, request_id),
                      sizeof header.request_id) == 0);
    const bool has_cookie = (header.flags & PTK_WIRE_FLAGS_COOKIE) != 0;
    PTK_ASSERT(reply_len == sizeof header + (has_cookie ? sizeof(struct ptk_wire_cookie) : 0));
    if (has_cookie && run.issued_count < COOKIES_MAX) {
        struct issued *one = &run.issued[run.issued_count++];
        one->source = source;
        memcpy(&one->cookie, reply + sizeof header, sizeof one->cookie);
    }
}

/* What the window of numbers must say, and remembers. */
static bool number_is_new(uint32_t which, uint64_t number)
{
    struct name *name = &run.names[which];
    PTK_ASSERT(number < NUMBERS_MAX);
    if (!name->known && number == 0) {
        return false; /* Begins at the clock, never at 0. */
    }
    const bool old = name->known && name->highest >= number + PTK_GUARD_WINDOW;
    if (old || name->taken[number]) {
        return false;
    }
    name->known = true;
    name->taken[number] = true;
    name->highest = number > name->highest ? number : name->highest;
    return true;
}

/* How a datagram was made: what is known about it. */
struct made {
    uint32_t source;
    bool is_signed;
    uint32_t name; /* key and sender; where it is signed */
    uint64_t number;
};

static void check_pass(const struct made *made, const uint8_t *datagram, size_t len,
                       const struct ptk_guard_pass *pass)
{
    const bool outside = run.limits.network_count != 0 && made->source >= 2;
    PTK_ASSERT((pass->verdict == PTK_VERDICT_NOT_ALLOWED) == outside);
    const bool code_refused =
        pass->verdict == PTK_VERDICT_BAD_KEY || pass->verdict == PTK_VERDICT_REPLAYED;
    PTK_ASSERT(pass->verdict == PTK_VERDICT_OK || code_refused || !pass->validated);
    run.refused += pass->verdict != PTK_VERDICT_OK;
    PTK_ASSERT(pass->silent || !outside);
    if (outside || pass->verdict == PTK_VERDICT_RATE_LIMITED) {
        return;
    }
    if (run.limits.address.packets != 0) {
        const uint32_t first = made->source == 1 ? 0 : made->source; /* One address, two ports. */
        const uint64_t elapsed_us = (run.now - run.begun_at) / CYCLES_PER_US;
        run.passed[first]++;
        PTK_ASSERT(run.passed[first] <= PACKETS_MAX + 1 + PACKETS_MAX * elapsed_us / 1000000);
    }
    const bool before_code =
        pass->verdict == PTK_VERDICT_BAD_COOKIE || pass->verdict == PTK_VERDICT_CHALLENGE;
    if (made->is_signed) {
        const bool holds = (run.keys_mask & 1u << made->name % 2) != 0;
        PTK_ASSERT((pass->verdict == PTK_VERDICT_BAD_KEY) == !holds);
        const bool fresh = holds && !before_code && number_is_new(made->name, made->number);
        PTK_ASSERT((pass->verdict == PTK_VERDICT_REPLAYED) == (holds && !before_code && !fresh));
    } else {
        PTK_ASSERT(pass->verdict != PTK_VERDICT_REPLAYED);
    }
    if (pass->validated && run.limits.validate) {
        PTK_ASSERT(len >= PTK_WIRE_HEADER_LEN + sizeof(struct ptk_wire_cookie));
        PTK_ASSERT((datagram[3] & PTK_WIRE_FLAGS_COOKIE) != 0);
        PTK_ASSERT(was_issued(made->source, datagram + PTK_WIRE_HEADER_LEN));
    }
    if (!run.limits.validate) {
        PTK_ASSERT(pass->verdict != PTK_VERDICT_CHALLENGE);
        PTK_ASSERT(pass->verdict != PTK_VERDICT_BAD_COOKIE);
    }
}

static void show(const struct made *made, const uint8_t *bytes, size_t len)
{
    uint8_t *datagram = malloc(len + (len == 0));
    uint8_t *reply = malloc(len + (len == 0));
    PTK_ASSERT(datagram != NULL);
    PTK_ASSERT(reply != NULL);
    memcpy(datagram, bytes, len);
    struct ptk_guard_source source = run.sources[made->source];
    source.now = run.now;
    const struct ptk_guard_pass pass = ptk_guard_admit(run.guard, &source, datagram, len);
    PTK_ASSERT(memcmp(datagram, bytes, len) == 0);
    check_pass(made, datagram, len, &pass);
    struct ptk_wire_header header;
    if (len >= sizeof header) {
        memcpy(&header, datagram, sizeof header);
        if (pass.verdict != PTK_VERDICT_OK && !pass.silent) {
            const size_t reply_len =
                ptk_guard_refuse(run.guard, &source, &header, len, pass.verdict, reply);
            check_refusal(made->source, datagram, len, reply, reply_len, pass.verdict);
        } else if (pass.verdict == PTK_VERDICT_OK && !pass.validated) {
            /* Its reply would be too long; the challenge is written over the datagram. */
            const size_t reply_len =
                ptk_guard_challenge(run.guard, &source, &header, len, datagram);
            run.refused++;
            if (reply_len > 0) {
                check_refusal(made->source, bytes, len, datagram, reply_len, PTK_VERDICT_CHALLENGE);
            }
        }
    }
    free(datagram);
    free(reply);
}

static void sign(uint8_t *datagram, size_t len, size_t mac_off, const struct made *made)
{
    struct ptk_wire_mac mac = {
        .key_id = made->name % 2, .sender = made->name / 2, .sequence = made->number};
    struct ptk_guard_key key;
    uint8_t key_bytes[PTK_BLAKE2B_KEY_LEN];
    struct ptk_blake2b state;
    key_make(&key, mac.key_id);
    memcpy(key_bytes, key.words, sizeof key_bytes);
    memcpy(datagram + mac_off, &mac, sizeof mac);
    ptk_blake2b_init(&state, key_bytes);
    ptk_blake2b_update(&state, datagram, len);
    ptk_blake2b_final(&state, mac.mac);
    memcpy(datagram + mac_off, &mac, sizeof mac);
}

/* A datagram of this protocol with a cookie, a MAC or both in front of `bytes`. */
static void show_made(const struct step *step, const uint8_t *bytes)
{
    const bool cookie = step->kind != KIND_SIGNED;
    struct made made = {.source = step->source % SOURCES, .is_signed = step->kind != KIND_COOKIE};
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = (uint8_t)((cookie ? PTK_WIRE_FLAGS_COOKIE : 0) |
                           (made.is_signed ? PTK_WIRE_FLAGS_MAC : 0)),
        .request_id = run.now,
    };
    uint8_t datagram[DATAGRAM_MAX] = {0};
    size_t len = sizeof header;
    memcpy(datagram, &header, sizeof header);
    if (cookie) { /* The argument chooses one that was issued, counted from the latest. */
        const uint32_t back = step->argument + 1u;
        if (back <= run.issued_count) {
            memcpy(datagram + len, &run.issued[run.issued_count - back].cookie,
                   sizeof(struct ptk_wire_cookie));
        }
        len += sizeof(struct ptk_wire_cookie);
    }
    const size_t mac_off = len;
    len += made.is_signed ? sizeof(struct ptk_wire_mac) : 0;
    memcpy(datagram + len, bytes, step->len);
    len += step->len;
    if (made.is_signed) {
        made.name = step->source / SOURCES % NAMES;
        made.number = step->len >= 2 ? ptk_load_u16(bytes) : step->argument;
        sign(datagram, len, mac_off, &made);
    }
    show(&made, datagram, len);
}

static void run_step(const struct step *step, const uint8_t *bytes)
{
    const struct made raw = {.source = step->source % SOURCES};
    switch ((enum kind)step->kind) {
    case KIND_RAW:
        show(&raw, bytes, step->len);
        break;
    case KIND_COOKIE:
    case KIND_SIGNED:
    case KIND_SIGNED_COOKIE:
        show_made(step, bytes);
        break;
    case KIND_WAIT:
        run.now += (uint64_t)step->argument * 10000 * CYCLES_PER_US;
        break;
    case KIND_EPOCH:
        run.epoch += step->argument % 4;
        ptk_guard_shared_turn(&run.shared, run.epoch * PTK_GUARD_EPOCH_NS);
        ptk_guard_refresh(run.guard);
        break;
    case KIND_KEYS:
        set_keys(step->argument);
        break;
    case KIND_WORK:
    case KIND_COUNT:
    default:
        ptk_guard_charge(run.guard, &run.sources[raw.source], step->argument % 2 == 0,
                         (uint64_t)step->argument * CYCLES_PER_US);
        break;
    }
}

static void run_datagrams(const uint8_t *data, size_t size)
{
    run_begin(data, size);
    for (size_t pos = 1; size - pos >= sizeof(struct step);) {
        struct step step;
        memcpy(&step, data + pos, sizeof step);
        pos += sizeof step;
        step.kind %= KIND_COUNT;
        step.len = (uint8_t)ptk_min_size(step.len, size - pos);
        run_step(&step, data + pos);
        pos += step.len;
    }
    uint64_t counted = 0;
    const struct ptk_guard_counters *counters = ptk_guard_counters(run.guard);
    for (uint32_t i = 0; i < PTK_VERDICT_VALUE_COUNT; i++) {
        counted += counters->verdicts[i];
    }
    PTK_ASSERT(counted == run.refused);
    PTK_ASSERT(counters->silent <= counted);
}

static void read_keys(const char *text, size_t len)
{
    struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX];
    struct ptk_err err = {.code = 0, .text = ""};
    const int count = ptk_guard_keys_parse(text, len, keys, &err);
    if (count < 0) {
        PTK_ASSERT(count == -EINVAL);
        PTK_ASSERT(err.text[0] != '\0');
        return;
    }
    PTK_ASSERT((size_t)count * (2 + 2 * PTK_BLAKE2B_KEY_LEN) <= len);
    for (int i = 0; i < count; i++) {
        PTK_ASSERT(keys[i].id <= UINT32_MAX);
        for (int j = 0; j < i; j++) {
            PTK_ASSERT(keys[i].id != keys[j].id);
        }
    }
}

static void read_network(const uint8_t *bytes, size_t len)
{
    struct ptk_network network;
    struct ptk_err err = {.code = 0, .text = ""};
    char *text = malloc(len + 1);
    PTK_ASSERT(text != NULL);
    memcpy(text, bytes, len);
    text[len] = '\0';
    const int code = ptk_network_parse(text, &network, &err);
    free(text);
    if (code != 0) {
        PTK_ASSERT(code == -EINVAL);
        PTK_ASSERT(err.text[0] != '\0');
        return;
    }
    PTK_ASSERT(network.prefix_len <= 128);
    struct ptk_address cleared = network.address;
    ptk_address_clear_tail(&cleared, network.prefix_len);
    PTK_ASSERT(ptk_address_equal(&cleared, &network.address));
    PTK_ASSERT(ptk_network_has(&network, &network.address));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (data[0] == 0) {
        read_keys((const char *)data + 1, size - 1);
    } else if (data[0] == 1) {
        read_network(data + 1, size - 1);
    } else {
        run_datagrams(data, size);
    }
    return 0;
}
