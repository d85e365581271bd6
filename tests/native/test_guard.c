/*
 * The guard refuses what it should and nothing else: cookies hold for their source and their time,
 * a MAC covers every byte, a number is taken once, limits and the strangers' share hold whatever
 * the number of sources, and a refusal is never longer than what it answers.
 */
#include "serve/ptk_guard.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

#define CYCLES_PER_US 1000u
#define SECOND        (1000000ull * CYCLES_PER_US)

static struct ptk_guard_shared shared;

static struct ptk_guard_limits limits_make(void)
{
    return (struct ptk_guard_limits){
        .validate = true, .stranger_percent = 50, .cycles_per_us = CYCLES_PER_US};
}

static struct ptk_guard *guard_make(const struct ptk_guard_limits *limits)
{
    const struct ptk_siphash_key master = {1, 2};
    ptk_guard_shared_init(&shared, master, 0);
    void *memory = aligned_alloc(64, ptk_align_up(ptk_guard_len(limits), 64));
    CHECK(memory != NULL);
    return ptk_guard_init(memory, limits, &shared);
}

static struct ptk_guard_source source_make(const char *text, uint16_t port, uint64_t now)
{
    struct ptk_guard_source source = {.port = port, .now = now};
    struct ptk_err err;
    CHECK(ptk_address_parse(text, &source.address, &err) == 0);
    return source;
}

/* A datagram of `len` bytes with these flags; everything behind the header counts up. */
static void datagram_make(uint8_t *datagram, size_t len, uint8_t flags)
{
    for (size_t i = 0; i < len; i++) {
        datagram[i] = (uint8_t)i;
    }
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = flags,
        .request_id = 0x1122334455667788ull,
        .op = PTK_WIRE_OP_ENCODE,
    };
    memcpy(datagram, &header, sizeof header);
}

static struct ptk_wire_header header_of(const uint8_t *datagram)
{
    struct ptk_wire_header header;
    memcpy(&header, datagram, sizeof header);
    return header;
}

static void take_cookie(struct ptk_guard *guard, const struct ptk_guard_source *source,
                        struct ptk_wire_cookie *cookie)
{
    uint8_t datagram[64];
    uint8_t reply[64];
    datagram_make(datagram, sizeof datagram, PTK_WIRE_FLAGS_COOKIE);
    memset(datagram + 32, 0, sizeof *cookie);
    const struct ptk_guard_pass pass = ptk_guard_admit(guard, source, datagram, sizeof datagram);
    CHECK(pass.verdict == PTK_VERDICT_BAD_COOKIE);
    const struct ptk_wire_header header = header_of(datagram);
    CHECK(ptk_guard_refuse(guard, source, &header, sizeof datagram, pass.verdict, reply) == 48);
    CHECK(header_of(reply).verdict == PTK_VERDICT_BAD_COOKIE);
    CHECK(header_of(reply).flags == PTK_WIRE_FLAGS_COOKIE);
    memcpy(cookie, reply + 32, sizeof *cookie);
}

static enum ptk_verdict show_cookie(struct ptk_guard *guard, const struct ptk_guard_source *source,
                                    const struct ptk_wire_cookie *cookie)
{
    uint8_t datagram[64];
    datagram_make(datagram, sizeof datagram, PTK_WIRE_FLAGS_COOKIE);
    memcpy(datagram + 32, cookie, sizeof *cookie);
    const struct ptk_guard_pass pass = ptk_guard_admit(guard, source, datagram, sizeof datagram);
    CHECK(pass.validated == (pass.verdict == PTK_VERDICT_OK));
    return pass.verdict;
}

static void test_a_cookie_is_for_its_source_and_time(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    const struct ptk_guard_source other_port = source_make("192.0.2.1", 5001, SECOND);
    const struct ptk_guard_source other_host = source_make("192.0.2.2", 5000, SECOND);
    struct ptk_wire_cookie cookie;
    take_cookie(guard, &source, &cookie);
    CHECK(cookie.nonce == 0x55667788u);
    CHECK(show_cookie(guard, &source, &cookie) == PTK_VERDICT_OK);
    CHECK(show_cookie(guard, &other_port, &cookie) == PTK_VERDICT_BAD_COOKIE);
    CHECK(show_cookie(guard, &other_host, &cookie) == PTK_VERDICT_BAD_COOKIE);
    for (size_t bit = 0; bit < 8 * sizeof cookie; bit++) {
        struct ptk_wire_cookie changed = cookie;
        ((uint8_t *)&changed)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(show_cookie(guard, &source, &changed) == PTK_VERDICT_BAD_COOKIE);
    }
    for (uint64_t epochs = 1; epochs <= 3; epochs++) {
        ptk_guard_shared_turn(&shared, epochs * PTK_GUARD_EPOCH_NS);
        ptk_guard_refresh(guard);
        CHECK(show_cookie(guard, &source, &cookie) ==
              (epochs == 1 ? PTK_VERDICT_OK : PTK_VERDICT_BAD_COOKIE));
    }
    free(guard);
}

static void test_a_refusal_is_not_longer_than_the_request(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    const struct ptk_guard_source source = source_make("2001:db8::1", 5000, SECOND);
    uint8_t datagram[64];
    uint8_t reply[64];
    datagram_make(datagram, sizeof datagram, 0);
    const struct ptk_wire_header header = header_of(datagram);
    for (size_t len = 32; len <= sizeof datagram; len++) {
        const size_t reply_len =
            ptk_guard_refuse(guard, &source, &header, len, PTK_VERDICT_CHALLENGE, reply);
        CHECK(reply_len == (len >= 48 ? 48u : 32u));
        CHECK((header_of(reply).flags == PTK_WIRE_FLAGS_COOKIE) == (len >= 48));
        CHECK(ptk_guard_refuse(guard, &source, &header, len, PTK_VERDICT_BAD_KEY, reply) == 32);
    }
    free(guard);
}

static void key_make(struct ptk_guard_key *key, uint32_t id)
{
    key->id = id;
    memset(key->words, (int)id, sizeof key->words);
}

/* Signs the datagram as sender 7 with the key that key_make made. */
static void sign(uint8_t *datagram, size_t len, uint32_t key_id, uint64_t sequence)
{
    struct ptk_wire_mac mac = {.key_id = key_id, .sender = 7, .sequence = sequence};
    struct ptk_blake2b state;
    uint8_t key[PTK_BLAKE2B_KEY_LEN];
    memset(key, (int)key_id, sizeof key);
    memcpy(datagram + 32, &mac, sizeof mac);
    ptk_blake2b_init(&state, key);
    ptk_blake2b_update(&state, datagram, len);
    ptk_blake2b_final(&state, mac.mac);
    memcpy(datagram + 32, &mac, sizeof mac);
}

static enum ptk_verdict show_mac(struct ptk_guard *guard, uint32_t key_id, uint64_t sequence)
{
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    uint8_t datagram[100];
    datagram_make(datagram, sizeof datagram, PTK_WIRE_FLAGS_MAC);
    sign(datagram, sizeof datagram, key_id, sequence);
    return ptk_guard_admit(guard, &source, datagram, sizeof datagram).verdict;
}

static void test_a_mac_covers_every_byte(void)
{
    struct ptk_guard_limits limits = limits_make();
    limits.require_key = true;
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_key key;
    key_make(&key, 3);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(guard);
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    uint8_t datagram[100];
    datagram_make(datagram, sizeof datagram, PTK_WIRE_FLAGS_MAC);
    sign(datagram, sizeof datagram, 3, 1000);
    for (size_t byte = 4; byte < sizeof datagram; byte++) { /* Those before say what it is. */
        datagram[byte] ^= 0x10;
        CHECK(ptk_guard_admit(guard, &source, datagram, sizeof datagram).verdict ==
              PTK_VERDICT_BAD_KEY);
        datagram[byte] ^= 0x10;
    }
    CHECK(ptk_guard_admit(guard, &source, datagram, sizeof datagram - 1).verdict ==
          PTK_VERDICT_BAD_KEY);
    CHECK(ptk_guard_admit(guard, &source, datagram, sizeof datagram).verdict == PTK_VERDICT_OK);
    CHECK(ptk_guard_admit(guard, &source, datagram, sizeof datagram).verdict ==
          PTK_VERDICT_REPLAYED);
    datagram_make(datagram, sizeof datagram, 0);
    CHECK(ptk_guard_admit(guard, &source, datagram, sizeof datagram).verdict ==
          PTK_VERDICT_BAD_KEY);
    CHECK(show_mac(guard, 4, 1) == PTK_VERDICT_BAD_KEY);
    free(guard);
}

static void test_keys_are_replaced_while_it_works(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_key keys[2];
    key_make(&keys[0], 3);
    key_make(&keys[1], 4);
    CHECK(show_mac(guard, 3, 1) == PTK_VERDICT_BAD_KEY);
    ptk_guard_shared_keys(&shared, keys, 2);
    ptk_guard_refresh(guard);
    CHECK(show_mac(guard, 3, 1) == PTK_VERDICT_OK);
    CHECK(show_mac(guard, 4, 1) == PTK_VERDICT_OK);
    ptk_guard_shared_keys(&shared, &keys[1], 1);
    CHECK(show_mac(guard, 3, 2) == PTK_VERDICT_OK); /* Until it looks. */
    ptk_guard_refresh(guard);
    CHECK(show_mac(guard, 3, 3) == PTK_VERDICT_BAD_KEY);
    CHECK(show_mac(guard, 4, 2) == PTK_VERDICT_OK);
    atomic_store(&shared.keys_version, 5); /* Being written: the old ones hold. */
    ptk_guard_refresh(guard);
    CHECK(show_mac(guard, 4, 3) == PTK_VERDICT_OK);
    free(guard);
}

static void test_a_number_is_taken_once_within_the_window(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_key key;
    key_make(&key, 3);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(guard);
    enum { COUNT = 3 * PTK_GUARD_WINDOW };
    static bool taken[COUNT];
    uint64_t highest = 0;
    uint64_t state = 99;
    for (int i = 0; i < 200000; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const uint64_t sequence = 1 + (state >> 33) % (COUNT - 1) * (uint64_t)(i + 1) / 200000;
        const bool old = highest > 0 && highest >= sequence + PTK_GUARD_WINDOW;
        const enum ptk_verdict expected =
            old || taken[sequence] ? PTK_VERDICT_REPLAYED : PTK_VERDICT_OK;
        CHECK(show_mac(guard, 3, sequence) == expected);
        taken[sequence] = true;
        highest = sequence > highest ? sequence : highest;
    }
    CHECK(show_mac(guard, 3, UINT64_MAX) == PTK_VERDICT_OK);
    CHECK(show_mac(guard, 3, UINT64_MAX) == PTK_VERDICT_REPLAYED);
    free(guard);
}

/* Without the secret cookies end, without the windows copies are answered again. */
static void test_a_successor_knows_cookies_and_numbers(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_key key;
    key_make(&key, 3);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(guard);
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    struct ptk_wire_cookie cookie;
    take_cookie(guard, &source, &cookie);
    CHECK(show_mac(guard, 3, 5) == PTK_VERDICT_OK);
    CHECK(show_mac(guard, 3, 1000) == PTK_VERDICT_OK);
    uint64_t *books = aligned_alloc(64, ptk_align_up(ptk_guard_books_len(), 64));
    CHECK(books != NULL);
    memset(books, 0, ptk_guard_books_len());
    ptk_guard_give(guard, books);
    const struct ptk_siphash_key secret = shared.master;

    ptk_guard_shared_init(&shared, (struct ptk_siphash_key){3, 4}, 0);
    struct ptk_guard *heir = ptk_guard_init(
        aligned_alloc(64, ptk_align_up(ptk_guard_len(&limits), 64)), &limits, &shared);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(heir);
    CHECK(show_cookie(heir, &source, &cookie) == PTK_VERDICT_BAD_COOKIE);
    ptk_guard_shared_inherit(&shared, secret);
    ptk_guard_inherit(heir, books);
    CHECK(show_cookie(heir, &source, &cookie) == PTK_VERDICT_OK);
    CHECK(show_mac(heir, 3, 5) == PTK_VERDICT_REPLAYED);
    CHECK(show_mac(heir, 3, 1000) == PTK_VERDICT_REPLAYED);
    CHECK(show_mac(heir, 3, 6) == PTK_VERDICT_OK);
    CHECK(show_mac(heir, 3, 1001) == PTK_VERDICT_OK);
    const struct ptk_guard_counters *counted = ptk_guard_counters(heir);
    CHECK(counted->keyed == 4);
    CHECK(counted->validated == 1);
    CHECK(counted->verdicts[PTK_VERDICT_REPLAYED] == 2);
    ptk_guard_shared_turn(&shared, PTK_GUARD_EPOCH_NS); /* It goes on as any other guard. */
    ptk_guard_refresh(heir);
    CHECK(show_cookie(heir, &source, &cookie) == PTK_VERDICT_OK);
    free(books);
    free(heir);
    free(guard);
}

/* Whatever the books hold: at worst a good number is refused, and nothing else breaks. */
static void test_any_books_may_be_inherited(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_key key;
    key_make(&key, 3);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(guard);
    const size_t len = ptk_guard_books_len();
    uint64_t *books = aligned_alloc(64, ptk_align_up(len, 64));
    CHECK(books != NULL);
    uint64_t state = 7;
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < len / sizeof *books; i++) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            books[i] = round % 2 == 0 ? UINT64_MAX : state;
        }
        ptk_guard_inherit(guard, books);
        for (uint64_t sequence = 1; sequence < 100; sequence++) {
            const enum ptk_verdict verdict = show_mac(guard, 3, sequence << round);
            CHECK(verdict == PTK_VERDICT_OK || verdict == PTK_VERDICT_REPLAYED);
            CHECK(show_mac(guard, 3, sequence << round) == PTK_VERDICT_REPLAYED);
        }
    }
    free(books);
    free(guard);
}

static enum ptk_verdict show(struct ptk_guard *guard, const struct ptk_guard_source *source,
                             size_t len)
{
    uint8_t datagram[1400];
    datagram_make(datagram, len, 0);
    return ptk_guard_admit(guard, source, datagram, len).verdict;
}

static void test_limits_hold_for_an_address_and_for_its_network(void)
{
    struct ptk_guard_limits limits = limits_make();
    limits.validate = false;
    limits.address.packets = 100;
    limits.network.packets = 250;
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_source source = source_make("192.0.2.1", 5000, 10 * SECOND);
    for (int i = 0; i < 150; i++) {
        CHECK((show(guard, &source, 64) == PTK_VERDICT_OK) == (i < 100));
    }
    source.now += SECOND / 10; /* Ten more have drained. */
    for (int i = 0; i < 20; i++) {
        CHECK((show(guard, &source, 64) == PTK_VERDICT_OK) == (i < 10));
    }
    uint32_t passed = 0;
    for (int host = 2; host < 202; host++) { /* The network's rest, whatever the number of hosts. */
        char text[32];
        (void)snprintf(text, sizeof text, "192.0.2.%d", host);
        struct ptk_guard_source neighbour = source_make(text, 5000, source.now);
        for (int i = 0; i < 10; i++) {
            passed += show(guard, &neighbour, 64) == PTK_VERDICT_OK;
        }
    }
    CHECK(passed >= 150 && passed <= 165);
    const struct ptk_guard_source stranger = source_make("198.51.100.1", 5000, source.now);
    CHECK(show(guard, &stranger, 64) == PTK_VERDICT_OK);
    /* Of an IPv6 /64 every address is one source. */
    for (int i = 0; i < 120; i++) {
        char text[64];
        (void)snprintf(text, sizeof text, "2001:db8:1:2::%x", i + 1);
        const struct ptk_guard_source host = source_make(text, 5000, source.now);
        CHECK((show(guard, &host, 64) == PTK_VERDICT_OK) == (i < 100));
    }
    free(guard);
}

static void test_bytes_and_work_are_limited_too(void)
{
    struct ptk_guard_limits limits = limits_make();
    limits.validate = false;
    limits.address = (struct ptk_guard_rate){.bytes = 10000};
    struct ptk_guard *guard = guard_make(&limits);
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, 10 * SECOND);
    for (int i = 0; i < 12; i++) {
        CHECK((show(guard, &source, 1000) == PTK_VERDICT_OK) == (i < 10));
    }
    free(guard);
    limits.address = (struct ptk_guard_rate){.work_us = 1000};
    guard = guard_make(&limits);
    CHECK(show(guard, &source, 64) == PTK_VERDICT_OK);
    ptk_guard_charge(guard, &source, true, 1001ull * CYCLES_PER_US);
    CHECK(show(guard, &source, 64) == PTK_VERDICT_RATE_LIMITED);
    struct ptk_guard_source later = source;
    later.now += SECOND;
    CHECK(show(guard, &later, 64) == PTK_VERDICT_OK);
    free(guard);
}

static void test_many_false_addresses_do_not_use_up_the_limit_of_one(void)
{
    struct ptk_guard_limits limits = limits_make();
    limits.validate = false;
    limits.address.packets = 1000;
    struct ptk_guard *guard = guard_make(&limits);
    const struct ptk_guard_source honest = source_make("198.51.100.1", 5000, SECOND);
    uint32_t refused = 0;
    for (uint32_t i = 0; i < 100000; i++) { /* Within one second. */
        char text[32];
        (void)snprintf(text, sizeof text, "10.%u.%u.%u", i >> 16, i >> 8 & 255, i & 255);
        const struct ptk_guard_source source = source_make(text, 5000, SECOND + i);
        (void)show(guard, &source, 64);
        if (i % 200 == 0) {
            refused += show(guard, &honest, 64) != PTK_VERDICT_OK;
        }
    }
    CHECK(refused == 0);
    free(guard);
}

static void test_strangers_have_their_share_of_time(void)
{
    struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_make(&limits);
    struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    struct ptk_wire_cookie cookie;
    take_cookie(guard, &source, &cookie);
    uint64_t spent = 0;
    uint32_t challenged = 0;
    uint32_t silent = 0;
    const uint64_t end = SECOND + SECOND;
    uint8_t datagram[64];
    datagram_make(datagram, sizeof datagram, 0);
    for (; source.now < end; source.now += 2 * CYCLES_PER_US) { /* One each 2 us, worth 10 us. */
        const struct ptk_guard_pass pass =
            ptk_guard_admit(guard, &source, datagram, sizeof datagram);
        if (pass.verdict == PTK_VERDICT_OK) {
            ptk_guard_charge(guard, &source, pass.validated, 10 * CYCLES_PER_US);
            spent += 10 * CYCLES_PER_US;
        } else {
            CHECK(pass.verdict == PTK_VERDICT_CHALLENGE);
            challenged++;
            silent += pass.silent;
        }
    }
    CHECK(spent > SECOND * 45 / 100 && spent < SECOND * 53 / 100);
    CHECK(challenged - silent > 90000 && challenged - silent < 125000); /* A tenth of a second. */
    CHECK(silent > 0);
    CHECK(show_cookie(guard, &source, &cookie) == PTK_VERDICT_OK); /* As ever. */
    CHECK(ptk_guard_counters(guard)->silent == silent);
    free(guard);
}

/* A datagram signed with key 3, with this cookie if there is one; false where the code is wrong. */
static size_t signed_make(uint8_t *datagram, size_t len, const struct ptk_wire_cookie *cookie,
                          uint64_t sequence, bool good)
{
    uint8_t plain[1400];
    datagram_make(plain, len, PTK_WIRE_FLAGS_MAC);
    if (cookie == NULL) {
        memcpy(datagram, plain, len);
        sign(datagram, len, 3, sequence);
        datagram[len - 1] ^= !good;
        return len;
    }
    const size_t cookie_len = sizeof *cookie;
    struct ptk_wire_mac mac = {.key_id = 3, .sender = 7, .sequence = sequence};
    struct ptk_blake2b state;
    uint8_t key[PTK_BLAKE2B_KEY_LEN];
    memset(key, 3, sizeof key);
    memcpy(datagram, plain, PTK_WIRE_HEADER_LEN);
    datagram[3] |= PTK_WIRE_FLAGS_COOKIE;
    memcpy(datagram + 32, cookie, cookie_len);
    memcpy(datagram + 32 + cookie_len, &mac, sizeof mac);
    memcpy(datagram + 32 + cookie_len + sizeof mac, plain + 64, len - 64);
    ptk_blake2b_init(&state, key);
    ptk_blake2b_update(&state, datagram, len + cookie_len);
    ptk_blake2b_final(&state, mac.mac);
    memcpy(datagram + 32 + cookie_len, &mac, sizeof mac);
    datagram[len + cookie_len - 1] ^= !good;
    return len + cookie_len;
}

static struct ptk_guard *guard_with_key(const struct ptk_guard_limits *limits)
{
    struct ptk_guard *guard = guard_make(limits);
    struct ptk_guard_key key;
    key_make(&key, 3);
    ptk_guard_shared_keys(&shared, &key, 1);
    ptk_guard_refresh(guard);
    return guard;
}

/* What is cheap to check comes first: a wrong cookie is refused before the code is looked at, and
 * takes no number of its sender. */
static void test_the_cookie_is_judged_before_the_code(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_with_key(&limits);
    const struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    const struct ptk_wire_cookie none = {0};
    struct ptk_wire_cookie cookie;
    take_cookie(guard, &source, &cookie);
    uint8_t datagram[200];
    for (int good = 0; good < 2; good++) {
        const size_t len = signed_make(datagram, 100, &none, 1, good != 0);
        CHECK(ptk_guard_admit(guard, &source, datagram, len).verdict == PTK_VERDICT_BAD_COOKIE);
    }
    size_t len = signed_make(datagram, 100, &cookie, 1, false);
    const struct ptk_guard_pass refused = ptk_guard_admit(guard, &source, datagram, len);
    CHECK(refused.verdict == PTK_VERDICT_BAD_KEY);
    CHECK(refused.validated);
    len = signed_make(datagram, 100, &cookie, 1, true);
    CHECK(ptk_guard_admit(guard, &source, datagram, len).verdict == PTK_VERDICT_OK);
    CHECK(ptk_guard_admit(guard, &source, datagram, len).verdict == PTK_VERDICT_REPLAYED);
    CHECK(ptk_guard_counters(guard)->keyed == 1);
    free(guard);
}

/* A flood that names a key which exists, with codes that are wrong: each costs a hash, and all of
 * them together no more than the strangers' share. Who has a cookie is judged as ever. */
static void test_codes_of_strangers_come_out_of_their_share(void)
{
    const struct ptk_guard_limits limits = limits_make();
    struct ptk_guard *guard = guard_with_key(&limits);
    struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
    struct ptk_guard_source honest = source_make("192.0.2.2", 5000, SECOND);
    struct ptk_wire_cookie cookie;
    take_cookie(guard, &honest, &cookie);
    uint8_t datagram[1400];
    uint8_t asked[1400];
    const size_t len = signed_make(datagram, 1000, NULL, 1, false);
    uint64_t hashed = 0;
    uint64_t challenged = 0;
    uint64_t number = 0;
    for (; source.now < 2 * SECOND; source.now += 2 * CYCLES_PER_US) { /* A hash takes 5 us. */
        const struct ptk_guard_pass pass = ptk_guard_admit(guard, &source, datagram, len);
        CHECK(!pass.validated);
        CHECK(pass.charged == (pass.verdict == PTK_VERDICT_BAD_KEY));
        if (pass.verdict == PTK_VERDICT_BAD_KEY) {
            ptk_guard_charge(guard, &source, pass.validated, 5 * CYCLES_PER_US);
            hashed++;
        } else {
            CHECK(pass.verdict == PTK_VERDICT_CHALLENGE);
            challenged++;
        }
        if (challenged % 1000 == 1) {
            honest.now = source.now;
            const size_t asked_len = signed_make(asked, 100, &cookie, ++number, true);
            CHECK(ptk_guard_admit(guard, &honest, asked, asked_len).verdict == PTK_VERDICT_OK);
        }
    }
    CHECK(hashed * 5 > 450000 && hashed * 5 < 530000); /* Half a second. */
    CHECK(challenged > 100000);
    CHECK(number > 100);
    free(guard);
}

/* Refusals of a wrong key and a false cookie are answered for a tenth of the time, and one of a
 * cookie that has aged always: its bearer is at its address. */
static void test_refusals_have_their_share_of_time(void)
{
    const struct ptk_guard_limits limits = limits_make();
    const struct ptk_wire_cookie false_cookie = {.epoch = 2, .mac = 99};
    for (int which = 0; which < 2; which++) {
        struct ptk_guard *guard = guard_with_key(&limits);
        struct ptk_guard_source source = source_make("192.0.2.1", 5000, SECOND);
        struct ptk_guard_source honest = source_make("192.0.2.2", 5000, SECOND);
        struct ptk_wire_cookie cookie;
        take_cookie(guard, &honest, &cookie);
        ptk_guard_shared_turn(&shared, 2 * PTK_GUARD_EPOCH_NS);
        ptk_guard_refresh(guard);
        uint8_t datagram[64];
        uint8_t aged[64];
        datagram_make(datagram, sizeof datagram,
                      which == 0 ? PTK_WIRE_FLAGS_COOKIE : PTK_WIRE_FLAGS_MAC);
        /* As a code it is one of key 2, which is not there. */
        memcpy(datagram + 32, &false_cookie, sizeof false_cookie);
        datagram_make(aged, sizeof aged, PTK_WIRE_FLAGS_COOKIE);
        memcpy(aged + 32, &cookie, sizeof cookie);
        uint64_t answered = 0;
        uint64_t silent = 0;
        for (; source.now < 2 * SECOND; source.now += CYCLES_PER_US) {
            const struct ptk_guard_pass pass =
                ptk_guard_admit(guard, &source, datagram, sizeof datagram);
            CHECK(pass.verdict == (which == 0 ? PTK_VERDICT_BAD_COOKIE : PTK_VERDICT_BAD_KEY));
            answered += !pass.silent;
            silent += pass.silent;
            if (silent % 1000 == 1) {
                honest.now = source.now;
                const struct ptk_guard_pass fresh =
                    ptk_guard_admit(guard, &honest, aged, sizeof aged);
                CHECK(fresh.verdict == PTK_VERDICT_BAD_COOKIE);
                CHECK(!fresh.silent);
            }
        }
        CHECK(answered > 90000 && answered < 110000);
        CHECK(silent > 800000);
        free(guard);
    }
}

static void test_networks_are_prefixes(void)
{
    static const struct {
        const char *network;
        const char *address;
        bool inside;
    } CASES[] = {
        {"192.0.2.0/24", "192.0.2.255", true},
        {"192.0.2.0/24", "192.0.3.0", false},
        {"192.0.2.128/25", "192.0.2.127", false},
        {"192.0.2.128/25", "192.0.2.128", true},
        {"192.0.2.7", "192.0.2.7", true},
        {"192.0.2.7", "192.0.2.6", false},
        {"0.0.0.0/0", "203.0.113.9", true},
        {"0.0.0.0/0", "2001:db8::1", false},
        {"2001:db8::/33", "2001:db8:7fff::", true},
        {"2001:db8::/33", "2001:db8:8000::", false},
        {"::/0", "2001:db8::1", true},
        {"192.0.2.77/24", "192.0.2.1", true},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(CASES); i++) {
        struct ptk_guard_limits limits = limits_make();
        struct ptk_err err;
        limits.network_count = 1;
        CHECK(ptk_network_parse(CASES[i].network, &limits.networks[0], &err) == 0);
        struct ptk_guard *guard = guard_make(&limits);
        const struct ptk_guard_source source = source_make(CASES[i].address, 5000, SECOND);
        const enum ptk_verdict verdict = show(guard, &source, 64);
        CHECK((verdict == PTK_VERDICT_OK) == CASES[i].inside);
        CHECK(CASES[i].inside || verdict == PTK_VERDICT_NOT_ALLOWED);
        free(guard);
    }
    static const char *const REFUSED[] = {
        "",           "192.0.2.0/33",   "192.0.2.0/",     "192.0.2.0/-1",
        "192.0.2/24", "2001:db8::/129", "192.0.2.0/0024", "x"};
    for (size_t i = 0; i < PTK_ARRAY_LEN(REFUSED); i++) {
        struct ptk_network network;
        struct ptk_err err;
        CHECK(ptk_network_parse(REFUSED[i], &network, &err) != 0);
    }
}

static void test_a_file_of_keys_is_read_strictly(void)
{
    static const char HEX[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX];
    struct ptk_err err;
    char text[4096];
    int len = snprintf(text, sizeof text, "1 %s\n4294967295 %s", HEX, HEX);
    CHECK(ptk_guard_keys_parse(text, (size_t)len, keys, &err) == 2);
    CHECK(keys[1].id == UINT32_MAX);
    CHECK(keys[0].words[0] == 0x7766554433221100ull);
    CHECK(ptk_guard_keys_parse("", 0, keys, &err) == 0);
    static const char *const FORMS[] = {"x %s\n", "1  %s\n",  "4294967296 %s\n", "1 %sa\n",
                                        " %s\n",  "1 %s\n\n", "1 %s\n1 %s\n",    "-1 %s\n"};
    for (size_t i = 0; i < PTK_ARRAY_LEN(FORMS); i++) {
        text[0] = '\0';
        for (const char *at = FORMS[i]; *at != '\0'; at++) {
            if (at[0] == '%') {
                strncat(text, HEX, sizeof text - strlen(text) - 1);
                at++;
            } else {
                strncat(text, at, 1);
            }
        }
        CHECK(ptk_guard_keys_parse(text, strlen(text), keys, &err) == -22);
        CHECK(strstr(err.text, "0011") == NULL); /* A key is never shown. */
    }
    CHECK(ptk_guard_keys_parse("1 00", 4, keys, &err) == -22);
}

static void test_codes_equal_the_published_ones(void)
{
    uint8_t bytes[300];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)i;
    }
    const struct ptk_siphash_key key = {ptk_load_u64(bytes), ptk_load_u64(bytes + 8)};
    CHECK(ptk_siphash(key, bytes, 15) == 0xA129CA6149BE45E5ull); /* Appendix A of its paper. */
    CHECK(ptk_siphash(key, bytes, 0) == 0x726FDB47DD0E0E31ull);
    /* hashlib.blake2b(bytes(range(n)), key=bytes(range(32)), digest_size=16), n below. */
    static const struct {
        size_t len;
        uint64_t low;
        uint64_t high;
    } CODES[] = {{1, 0x237439A536770FCBull, 0x8CDD42885B586166ull},
                 {95, 0x2FB866D0C66E242Aull, 0x11E1D20209127226ull},
                 {96, 0x222FEF4E03762ABAull, 0x249292084D32BC82ull},
                 {128, 0x46A11424F03AD445ull, 0x4D55A37D3F3C80C8ull},
                 {129, 0xCE99DE7A7A51B5AAull, 0x7DA23E3DAA810A99ull},
                 {300, 0xD3594DC6DC979EC0ull, 0x0C07EB360CF258C4ull}};
    for (size_t i = 0; i < PTK_ARRAY_LEN(CODES); i++) {
        for (size_t step = 1; step <= 200; step += 33) {
            struct ptk_blake2b state;
            uint8_t mac[PTK_BLAKE2B_MAC_LEN];
            ptk_blake2b_init(&state, bytes);
            for (size_t pos = 0; pos < CODES[i].len; pos += step) {
                ptk_blake2b_update(&state, bytes + pos, ptk_min_size(step, CODES[i].len - pos));
            }
            ptk_blake2b_final(&state, mac);
            CHECK(ptk_load_u64(mac) == CODES[i].low);
            CHECK(ptk_load_u64(mac + 8) == CODES[i].high);
        }
    }
}

int main(void)
{
    test_codes_equal_the_published_ones();
    test_a_cookie_is_for_its_source_and_time();
    test_a_refusal_is_not_longer_than_the_request();
    test_a_mac_covers_every_byte();
    test_keys_are_replaced_while_it_works();
    test_a_number_is_taken_once_within_the_window();
    test_a_successor_knows_cookies_and_numbers();
    test_any_books_may_be_inherited();
    test_limits_hold_for_an_address_and_for_its_network();
    test_bytes_and_work_are_limited_too();
    test_many_false_addresses_do_not_use_up_the_limit_of_one();
    test_strangers_have_their_share_of_time();
    test_the_cookie_is_judged_before_the_code();
    test_codes_of_strangers_come_out_of_their_share();
    test_refusals_have_their_share_of_time();
    test_networks_are_prefixes();
    test_a_file_of_keys_is_read_strictly();
    return 0;
}
