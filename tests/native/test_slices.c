/*
 * Slices: long messages of every operation, worked on with a pause at every point that offers one.
 *
 *   - Between two pause points no more than WORK_MAX is done, however long the message is and
 *     whatever stands in it. The program is linked with a core that counts the basic blocks it
 *     enters (`-fsanitize-coverage=trace-pc`), so that the measure is the same on every machine
 *     and has no part of the core left out; what memcpy and its kind move is added.
 *   - Small requests answered inside the pauses, with the same piece cache, have the replies that
 *     they have alone, and so has the long message.
 *
 * PTK_TEST_IMAGES names compiled vocabularies, separated by ':'; without it PTK_TEST_IMAGE names
 * one; without both the test is skipped. PTK_SLICES_LEN is the length of the long messages in
 * bytes; with PTK_SLICES_SHOW set, each one is shown with its longest stretch and where that is
 * (for addr2line). bench/native/bench_slices.c is this program over the ordinary core: it measures
 * time instead.
 */
#include "base/ptk_cpu.h"
#include "base/ptk_pause.h"
#include "ptk_test_packet.h"
#include "serve/ptk_bulk.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_segment.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Basic blocks, and MOVED_LEN bytes that are moved, from one pause point to the next: some tens of
 * microseconds. A chunk of 64 KiB that is copied, and 256 turns of a loop, are well below it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WORK_MAX 160000u /* their checks are blocks, too */
#else
#define WORK_MAX 40000u
#endif
#define MOVED_LEN 32u

/* Long enough for a stretch without a pause to show; checked builds are slower. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEXT_LEN ((size_t)1 << 16)
#elif defined(PTK_DEBUG)
#define TEXT_LEN ((size_t)1 << 17)
#else
#define TEXT_LEN ((size_t)1 << 18)
#endif
#define SMALL_LEN   400u
#define CACHE_LEN   (1u << 20)
#define SEGMENT_LEN 8192u
#define SKIP        77

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static uint64_t seed = 20240611;

/* --- work ------------------------------------------------------------------------------------ */

static uint64_t work;       /* since the last pause point */
static const void *culprit; /* where WORK_MAX was reached */

#ifdef PTK_WORK
static const bool counts = true;

/* Entered with every basic block of the core. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    if (++work == WORK_MAX) {
        culprit = __builtin_return_address(0);
    }
}

static void count_moved(size_t len, const void *caller)
{
    const uint64_t before = work;
    work += len / MOVED_LEN;
    culprit = before < WORK_MAX && work >= WORK_MAX ? caller : culprit;
}

void *__real_memcpy(void *dst, const void *src, size_t len);
void *__real_memmove(void *dst, const void *src, size_t len);
void *__real_memset(void *dst, int value, size_t len);
int __real_memcmp(const void *a, const void *b, size_t len);
void *__wrap_memcpy(void *dst, const void *src, size_t len);
void *__wrap_memmove(void *dst, const void *src, size_t len);
void *__wrap_memset(void *dst, int value, size_t len);
int __wrap_memcmp(const void *a, const void *b, size_t len);

void *__wrap_memcpy(void *dst, const void *src, size_t len)
{
    count_moved(len, __builtin_return_address(0));
    return __real_memcpy(dst, src, len);
}

void *__wrap_memmove(void *dst, const void *src, size_t len)
{
    count_moved(len, __builtin_return_address(0));
    return __real_memmove(dst, src, len);
}

void *__wrap_memset(void *dst, int value, size_t len)
{
    count_moved(len, __builtin_return_address(0));
    return __real_memset(dst, value, len);
}

int __wrap_memcmp(const void *a, const void *b, size_t len)
{
    count_moved(len, __builtin_return_address(0));
    return __real_memcmp(a, b, len);
}
#else
static const bool counts = false;
#endif

static struct {
    uint64_t longest;
    const void *culprit;
    uint64_t longest_ns;
    uint64_t resumed_at_ns;
    uint64_t points;
} seen;

/* The thread's own time: on a machine that others use, the clock shows them too. */
static uint64_t thread_ns(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void begin_stretch(void)
{
    work = 0;
    seen.resumed_at_ns = thread_ns();
}

static void end_stretch(void)
{
    const uint64_t len_ns = thread_ns() - seen.resumed_at_ns;
    seen.longest_ns = len_ns > seen.longest_ns ? len_ns : seen.longest_ns;
    if (work > seen.longest) {
        seen.longest = work;
        seen.culprit = culprit;
    }
    seen.points++;
}

/* --- texts ----------------------------------------------------------------------------------- */

static const char *const PROSE[] = {"the ",  "model ", "answers ", "questions, ", "slowly. ",
                                    "It's ", "1984 ",  "Größe ",   "naïve ",      "\n\n"};
static const char *const MANY[] = {"日本語",    "русский ", "العربية ",    "한국어 ", "हिन्दी ",
                                   "ไทย",       "😀",        "é",           "ﬁ",       "①",
                                   "e\xcc\x81", "ǅ",        "\xe2\x80\x8b"};
static const char *const LETTER[] = {"a"};
static const char *const CAPITAL[] = {"A"};
static const char *const TWO[] = {"ab"};
static const char *const LETTERS[] = {"a", "b", "c", "ab", "ing", "tion", "x"};
static const char *const CHAIN[] = {"aaaaaaab", "abab", "aab", "abb", "b"};
static const char *const SPACES[] = {" "};
static const char *const WIDE_SPACES[] = {"\xc2\xa0", "\xe3\x80\x80", " ", "\t", "\xe2\x96\x81"};
static const char *const LINES[] = {"\n"};
static const char *const DIGITS[] = {"0", "1", "7", "42", "1999"};
static const char *const MARKS[] = {"\xcc\x81", "\xcc\xa3", "\xcc\x88", "\xcd\x85"};
static const char *const HAN[] = {"的", "是", "不", "我", "有", "人", "这"};
static const char *const HANGUL[] = {"한", "국", "\xe1\x84\x80", "\xe1\x85\xa1", "\xe1\x86\xa8"};
static const char *const JOINED[] = {"👩\xe2\x80\x8d", "👧🏽\xe2\x80\x8d", "👩\xe2\x80\x8d"};
static const char *const PREFIXES[] = {"\xd8\x80", "\xe0\xa4\x95\xe0\xa5\x8d"};
static const char *const CONTROLS[] = {"\x01", "\xc2\xad", "\xef\xbb\xbf", "\xe2\x80\x8b"};
static const char *const UNASSIGNED[] = {"\xf0\xb0\x80\x80", "\xcd\xb8", "\xef\xbf\xbe"};
static const char *const SIGNS[] = {"!", "=", "-", "<", "'", "\"", "_", "/", "."};
static const char *const ADDED[] = {"<", "<|", "<s", "[MASK", "<|endoftext|>", "<s>", "[MASK]",
                                    " ", "</s>", "<|end|>"};

struct text_kind {
    const char *name;
    const char *const *parts;
    size_t part_count;
};

static const struct text_kind TEXTS[] = {
    {"prose", PROSE, PTK_ARRAY_LEN(PROSE)},
    {"many languages", MANY, PTK_ARRAY_LEN(MANY)},
    {"one letter", LETTER, PTK_ARRAY_LEN(LETTER)},
    {"one capital", CAPITAL, PTK_ARRAY_LEN(CAPITAL)},
    {"two letters", TWO, PTK_ARRAY_LEN(TWO)},
    {"one word", LETTERS, PTK_ARRAY_LEN(LETTERS)},
    {"chain of merges", CHAIN, PTK_ARRAY_LEN(CHAIN)},
    {"spaces", SPACES, PTK_ARRAY_LEN(SPACES)},
    {"wide spaces", WIDE_SPACES, PTK_ARRAY_LEN(WIDE_SPACES)},
    {"line ends", LINES, PTK_ARRAY_LEN(LINES)},
    {"digits", DIGITS, PTK_ARRAY_LEN(DIGITS)},
    {"marks", MARKS, PTK_ARRAY_LEN(MARKS)},
    {"han", HAN, PTK_ARRAY_LEN(HAN)},
    {"hangul", HANGUL, PTK_ARRAY_LEN(HANGUL)},
    {"joined emoji", JOINED, PTK_ARRAY_LEN(JOINED)},
    {"one cluster", PREFIXES, PTK_ARRAY_LEN(PREFIXES)},
    {"controls", CONTROLS, PTK_ARRAY_LEN(CONTROLS)},
    {"unassigned", UNASSIGNED, PTK_ARRAY_LEN(UNASSIGNED)},
    {"signs", SIGNS, PTK_ARRAY_LEN(SIGNS)},
    {"added tokens", ADDED, PTK_ARRAY_LEN(ADDED)},
};

/* Repeats one of the parts after another, in random order, until no more fits. */
static size_t fill(uint8_t *text, size_t cap, const struct text_kind *kind)
{
    for (size_t len = 0;;) {
        const char *part = kind->parts[test_random_below(&seed, (uint32_t)kind->part_count)];
        const size_t part_len = strlen(part);
        if (len + part_len > cap) {
            return len;
        }
        memcpy(text + len, part, part_len);
        len += part_len;
    }
}

/* --- requests -------------------------------------------------------------------------------- */

/* What is asked about a text. */
struct encode_kind {
    const char *name;
    uint8_t op;
    uint8_t outputs;
    uint16_t options;
    uint16_t item_count;
    uint16_t range_count;
    uint32_t max_length;
    uint32_t stride;
    uint8_t direction;
};

#define PARSE    (PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL)
#define ALL_BITS (PTK_WIRE_OUTPUTS_TYPE_IDS | PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK)

static const struct encode_kind ENCODES[] = {
    {.name = "encode", .op = PTK_WIRE_OP_ENCODE, .options = PARSE, .item_count = 1},
    {.name = "offsets",
     .op = PTK_WIRE_OP_ENCODE,
     .options = PARSE,
     .outputs = PTK_WIRE_OUTPUTS_OFFSETS | ALL_BITS,
     .item_count = 1},
    {.name = "pair, offsets in characters",
     .op = PTK_WIRE_OP_ENCODE,
     .options = PARSE | PTK_WIRE_OPTIONS_OFFSETS_CHARS | PTK_WIRE_OPTIONS_PAIR,
     .outputs = PTK_WIRE_OUTPUTS_OFFSETS,
     .item_count = 1},
    {.name = "ranges",
     .op = PTK_WIRE_OP_ENCODE,
     .options = PARSE | PTK_WIRE_OPTIONS_RANGES,
     .item_count = 1,
     .range_count = 1000},
    {.name = "windows",
     .op = PTK_WIRE_OP_ENCODE,
     .options = PARSE | PTK_WIRE_OPTIONS_TRUNCATION | PTK_WIRE_OPTIONS_OVERFLOW,
     .outputs = PTK_WIRE_OUTPUTS_OFFSETS | ALL_BITS,
     .item_count = 1,
     .max_length = 510,
     .stride = 64},
    {.name = "cut on the left",
     .op = PTK_WIRE_OP_ENCODE,
     .options = PARSE | PTK_WIRE_OPTIONS_TRUNCATION,
     .item_count = 1,
     .max_length = 20000,
     .direction = 1},
    {.name = "256 items", .op = PTK_WIRE_OP_ENCODE, .options = PARSE, .item_count = 256},
    {.name = "count",
     .op = PTK_WIRE_OP_COUNT,
     .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS,
     .item_count = 1},
};

/* A message as it is written. */
struct writer {
    uint8_t *bytes;
    size_t len;
};

static void put(struct writer *writer, const void *bytes, size_t len)
{
    memcpy(writer->bytes + writer->len, bytes, len);
    writer->len += len;
}

static void put_u32(struct writer *writer, uint32_t value)
{
    put(writer, &value, sizeof value);
}

static void pad(struct writer *writer)
{
    while (writer->len % 8 != 0) {
        writer->bytes[writer->len++] = 0;
    }
}

/* Where the `idx`-th of `count` parts of a text begins: at a character. */
static size_t part_begin(const uint8_t *text, size_t len, size_t idx, size_t count)
{
    size_t at = len / count * idx;
    at = idx == count ? len : at;
    while (at > 0 && at < len && (text[at] & 0xC0) == 0x80) {
        at--;
    }
    return at;
}

/* Room that a message needs beside its text. */
#define OVERHEAD ((size_t)16384)

static size_t write_encode(const struct encode_kind *kind, const uint8_t *text, size_t len,
                           uint8_t *message)
{
    struct writer writer = {.bytes = message};
    const struct ptk_wire_request prelude = {.outputs = kind->outputs,
                                             .options = kind->options,
                                             .item_count = kind->item_count,
                                             .reply_len_max = SEGMENT_LEN};
    put(&writer, &prelude, sizeof prelude);
    if ((kind->options & PTK_WIRE_OPTIONS_TRUNCATION) != 0) {
        const struct ptk_wire_truncation truncation = {.max_length = kind->max_length,
                                                       .stride = kind->stride,
                                                       .direction = kind->direction};
        put(&writer, &truncation, sizeof truncation);
    }
    const bool pair = (kind->options & PTK_WIRE_OPTIONS_PAIR) != 0;
    const size_t count = pair ? 2u * kind->item_count : kind->item_count;
    for (size_t i = 0; i < count; i++) {
        put_u32(&writer, (uint32_t)(part_begin(text, len, i + 1, count) -
                                    part_begin(text, len, i, count)));
    }
    pad(&writer);
    if ((kind->options & PTK_WIRE_OPTIONS_RANGES) != 0) {
        CHECK(kind->item_count == 1);
        put_u32(&writer, kind->range_count);
        pad(&writer);
        for (uint32_t i = 0; i < kind->range_count; i++) {
            const uint32_t step = (uint32_t)len / kind->range_count;
            put_u32(&writer, i * step);
            put_u32(&writer, step / 2 << 1 | (i & 1));
        }
    }
    put(&writer, text, len);
    pad(&writer);
    return writer.len;
}

/* What is decoded. */
enum ids_kind { IDS_RANDOM, IDS_ALL, IDS_BYTES, IDS_HIGH_BYTE, IDS_LONGEST, IDS_SPECIAL, IDS_NONE,
                IDS_COUNT };
static const char *const IDS_NAMES[IDS_COUNT] = {
    "random ids",      "all ids in turn", "byte tokens",      "one byte token",
    "the longest one", "one special id",  "ids there are not"};

static uint32_t pick_id(const struct ptk_image *image, enum ids_kind kind, size_t i)
{
    const uint32_t ids_end = image->config->ids_end;
    switch (kind) {
    case IDS_ALL:
        return (uint32_t)(i % ids_end);
    case IDS_BYTES:
        return image->byte_ids != NULL ? image->byte_ids[test_random_below(&seed, 256)] : 3;
    case IDS_HIGH_BYTE:
        return image->byte_ids != NULL ? image->byte_ids[0xBF] : 4;
    case IDS_NONE:
        return 0xFFFFFFFF;
    default:
        return test_random_below(&seed, ids_end);
    }
}

static uint32_t one_id(const struct ptk_image *image, enum ids_kind kind)
{
    uint32_t found = 0;
    uint32_t found_len = 0;
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint32_t len = image->token_text_offs[id + 1] - image->token_text_offs[id];
        const bool special = (image->token_flags[id] & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0;
        if (kind == IDS_SPECIAL ? special : len > found_len && len < 32) {
            found = id;
            found_len = len;
        }
    }
    return found;
}

static size_t write_decode(const struct ptk_image *image, enum ids_kind kind, uint8_t op,
                           size_t len, uint8_t *message)
{
    struct writer writer = {.bytes = message};
    const bool steps = op == PTK_WIRE_OP_DECODE_STEP;
    const uint32_t items =
        steps ? (uint32_t)ptk_min_size(PTK_WIRE_ITEMS_MAX, len / 4 / 1000 + 1) : 1;
    const uint32_t count = (uint32_t)(len / 4 / items);
    const struct ptk_wire_request prelude = {
        .id_format = PTK_ID_FORMAT_U32,
        .options = kind == IDS_ALL ? PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS : 0,
        .item_count = (uint16_t)items,
        .reply_len_max = SEGMENT_LEN};
    put(&writer, &prelude, sizeof prelude);
    for (uint32_t i = 0; i < items; i++) {
        const struct ptk_wire_step step = {.ids_count = (uint16_t)count,
                                           .given_count = (uint16_t)(count / 2),
                                           .new_count = 1};
        if (steps) {
            put(&writer, &step, sizeof step);
        } else {
            put_u32(&writer, count);
        }
    }
    pad(&writer);
    const uint32_t one = kind == IDS_LONGEST || kind == IDS_SPECIAL ? one_id(image, kind) : 0;
    for (size_t i = 0; i < (size_t)items * count; i++) {
        put_u32(&writer, kind == IDS_LONGEST || kind == IDS_SPECIAL ? one
                                                                    : pick_id(image, kind, i));
    }
    pad(&writer);
    return writer.len;
}

/* --- the server ------------------------------------------------------------------------------ */

static struct ptk_engine *engine;
static struct ptk_bulk *bulk;
static uint64_t request_id;
static uint32_t cycles_per_us;

static struct ptk_wire_header header_of(uint8_t op, const uint8_t *message, size_t len)
{
    return (struct ptk_wire_header){
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = PTK_WIRE_FLAGS_CRC,
        .message_len = (uint32_t)len,
        .request_id = ++request_id,
        .op = op,
        .message_crc = ptk_crc32c(message, len),
    };
}

static size_t receive(const uint8_t *datagram, size_t len)
{
    static uint8_t reply[SEGMENT_LEN + PTK_WIRE_HEADER_LEN];
    const struct ptk_bulk_packet packet = {.datagram = datagram,
                                           .len = len,
                                           .validated = true,
                                           .link_max = SEGMENT_LEN + PTK_WIRE_HEADER_LEN,
                                           .route = &packet,
                                           .now = ptk_cycles()};
    return ptk_bulk_receive(bulk, &packet, reply);
}

static void send(struct ptk_wire_header header, const uint8_t *message)
{
    uint8_t datagram[SEGMENT_LEN + PTK_WIRE_HEADER_LEN];
    header.segment_len = SEGMENT_LEN;
    for (size_t off = 0; off < header.message_len; off += SEGMENT_LEN) {
        const size_t len = ptk_min_size(SEGMENT_LEN, header.message_len - off);
        header.segment_idx = (uint16_t)(off / SEGMENT_LEN);
        memcpy(datagram, &header, sizeof header);
        memcpy(datagram + sizeof header, message + off, len);
        (void)receive(datagram, sizeof header + len);
    }
    CHECK(ptk_bulk_queued(bulk) == 1);
}

/* What came of a long message; the reply's checksum stands for its bytes. */
struct outcome {
    uint8_t verdict;
    uint32_t len;
    uint32_t crc;
};

static bool is_equal(const struct outcome *a, const struct outcome *b)
{
    return a->verdict == b->verdict && a->len == b->len && a->crc == b->crc;
}

/* Works on a message with these pauses. */
static struct outcome work_on(uint8_t op, const uint8_t *message, size_t len,
                              struct ptk_pause *pause)
{
    const struct ptk_wire_header header = header_of(op, message, len);
    send(header, message);
    begin_stretch();
    CHECK(ptk_bulk_work(bulk, engine, pause));
    end_stretch();
    uint8_t datagram[PTK_ENGINE_DATAGRAM_LEN_MAX];
    const size_t datagram_len = ptk_bulk_next(bulk, datagram);
    CHECK(datagram_len >= PTK_WIRE_HEADER_LEN);
    ptk_bulk_drop(bulk);
    struct ptk_wire_header reply;
    memcpy(&reply, datagram, sizeof reply);
    struct outcome outcome = {.verdict = reply.verdict,
                              .len = reply.message_len,
                              .crc = reply.message_crc};
    if (reply.segment_len == 0) {
        outcome.crc = ptk_crc32c(datagram + sizeof reply, datagram_len - sizeof reply);
    }
    struct ptk_wire_header cancel = header;
    cancel.version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_CANCEL;
    cancel.flags = 0;
    cancel.message_len = cancel.message_crc = 0;
    CHECK(receive((const uint8_t *)&cancel, sizeof cancel) == 0);
    return outcome;
}

/* What is asked inside the pauses: small texts whose replies are known. */
static struct small {
    uint8_t request[PTK_WIRE_HEADER_LEN + OVERHEAD + SMALL_LEN];
    size_t len;
    uint8_t reply[PTK_ENGINE_DATAGRAM_LEN_MAX];
    size_t reply_len;
} smalls[PTK_ARRAY_LEN(TEXTS)];
static uint64_t small_turns;

static size_t ask_small(const struct small *small, uint8_t *reply)
{
    enum ptk_verdict verdict;
    return ptk_engine_handle(engine, small->request, small->len, reply,
                             PTK_ENGINE_DATAGRAM_LEN_MAX, &verdict);
}

static void make_small(struct small *small, const struct text_kind *text, size_t idx)
{
    uint8_t bytes[SMALL_LEN];
    uint8_t *message = small->request + PTK_WIRE_HEADER_LEN;
    const size_t text_len = fill(bytes, sizeof bytes, text);
    struct encode_kind kind = ENCODES[idx % 2];
    size_t len = write_encode(&kind, bytes, text_len, message);
    ptk_store_u16(message + offsetof(struct ptk_wire_request, reply_len_max), 60000);
    const struct ptk_wire_header header = header_of(kind.op, message, len);
    memcpy(small->request, &header, sizeof header);
    small->len = sizeof header + len;
    small->reply_len = ask_small(small, small->reply);
    CHECK(small->reply_len > sizeof header);
}

/* Inside a pause; `often` is how many pauses go without a small request. */
static uint32_t often;

static void pause_run(void *self)
{
    (void)self;
    end_stretch();
    if (often != 0 && seen.points % often == 0) {
        static uint8_t reply[PTK_ENGINE_DATAGRAM_LEN_MAX];
        const struct small *small = &smalls[small_turns++ % PTK_ARRAY_LEN(smalls)];
        const size_t len = ask_small(small, reply);
        CHECK(len == small->reply_len);
        CHECK(memcmp(reply, small->reply, len) == 0);
    }
    begin_stretch();
}

/* --- the run --------------------------------------------------------------------------------- */

static const char *model_name;
static bool show;
static uint64_t failures, messages;

/* Runs whose best counts: what else the machine does is in the time of any. */
#define TIMED_RUNS 5u

static struct {
    uint64_t ns;
    const char *what;
    const char *kind;
} slowest;

/* One message with pauses at every point and with none, which makes no difference. */
static void check_message(const char *what, const char *kind, uint8_t op, const uint8_t *message,
                          size_t len)
{
    struct ptk_pause never = {.run = pause_run, .slice_cycles = UINT64_C(1) << 62};
    struct ptk_pause always = {.run = pause_run, .slice_cycles = 0};
    const struct outcome wanted = work_on(op, message, len, &never);
    struct outcome outcome;
    uint64_t ns = UINT64_MAX;
    for (uint32_t run = 0; run < (counts ? 1 : TIMED_RUNS); run++) {
        memset(&seen, 0, sizeof seen);
        culprit = NULL;
        outcome = work_on(op, message, len, &always);
        ns = seen.longest_ns < ns ? seen.longest_ns : ns;
    }
    if (ns > slowest.ns) {
        slowest.ns = ns;
        slowest.what = what;
        slowest.kind = kind;
    }
    if (!is_equal(&outcome, &wanted)) {
        fprintf(stderr, "%s: %s, %s: verdict %u, %u bytes, %08x with pauses; %u, %u, %08x without"
                        "\n",
                model_name, what, kind, outcome.verdict, outcome.len, outcome.crc, wanted.verdict,
                wanted.len, wanted.crc);
        abort();
    }
    messages++;
    if (show) {
        printf("%s: %s, %s: %zu bytes, verdict %u, %llu pause points, longest stretch %llu, "
               "%llu us, %p\n",
               model_name, what, kind, len, outcome.verdict, (unsigned long long)seen.points,
               (unsigned long long)seen.longest, (unsigned long long)(ns / 1000), seen.culprit);
    }
    if (seen.longest > WORK_MAX) {
        fprintf(stderr, "%s: %s, %s: %zu bytes: %llu blocks without a pause point, around %p\n",
                model_name, what, kind, len, (unsigned long long)seen.longest, seen.culprit);
        failures++;
    }
}

static void *allocate(size_t len)
{
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    CHECK(memory != NULL);
    return memory;
}

static void run_texts(size_t text_len, uint8_t *text, uint8_t *message)
{
    for (size_t i = 0; i < PTK_ARRAY_LEN(TEXTS); i++) {
        const size_t len = fill(text, text_len, &TEXTS[i]);
        for (size_t k = 0; k < PTK_ARRAY_LEN(ENCODES); k++) {
            const size_t message_len = write_encode(&ENCODES[k], text, len, message);
            check_message(TEXTS[i].name, ENCODES[k].name, ENCODES[k].op, message, message_len);
        }
    }
    const size_t len = fill(text, text_len, &TEXTS[0]);
    text[len - 1] = 0xFF;
    const size_t message_len = write_encode(&ENCODES[0], text, len, message);
    check_message("not UTF-8", ENCODES[0].name, ENCODES[0].op, message, message_len);
}

static void run_ids(const struct ptk_image *image, size_t len, uint8_t *message)
{
    static const uint8_t OPS[] = {PTK_WIRE_OP_DECODE, PTK_WIRE_OP_DECODE_STEP};
    for (size_t i = 0; i < IDS_COUNT * PTK_ARRAY_LEN(OPS); i++) {
        const enum ids_kind kind = (enum ids_kind)(i % IDS_COUNT);
        const uint8_t op = OPS[i / IDS_COUNT];
        const size_t message_len = write_decode(image, kind, op, len, message);
        check_message(IDS_NAMES[kind], op == PTK_WIRE_OP_DECODE ? "decode" : "decode_step", op,
                      message, message_len);
    }
}

static void run_model(const char *path, size_t text_len)
{
    struct ptk_image image;
    struct ptk_tokenizer *tokenizer;
    struct ptk_err err;
    if (ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        abort();
    }
    const char *name = strrchr(path, '/');
    model_name = name == NULL ? path : name + 1;
    static struct ptk_models models;
    static struct ptk_model model;
    static uint64_t generation;
    static uint8_t *text, *message;
    model = (struct ptk_model){.tokenizer = tokenizer,
                               .image = &image,
                               .generation = ++generation,
                               .tag = 7,
                               .name_len = 1,
                               .name = "m"};
    if (engine == NULL) {
        const struct ptk_engine_limits limits = {.datagram_len_max = 65000,
                                                 .message_len_max = (uint32_t)text_len,
                                                 .models_cap = 1,
                                                 .cache_len = CACHE_LEN};
        const struct ptk_bulk_limits bulk_limits = {.message_len_max = (uint32_t)text_len,
                                                    .arena_len = 40 * text_len,
                                                    .cycles_per_us = cycles_per_us};
        ptk_models_init(&models);
        (void)ptk_models_set(&models, 0, &model);
        engine = ptk_engine_init(allocate(ptk_engine_len(&limits)), &limits, &models);
        bulk = ptk_bulk_init(allocate(ptk_bulk_len(&bulk_limits)), &bulk_limits);
        text = allocate(text_len);
        message = allocate(text_len);
    }
    (void)ptk_models_set(&models, 0, &model);
    ptk_engine_refresh(engine);
    for (size_t i = 0; i < PTK_ARRAY_LEN(smalls); i++) {
        make_small(&smalls[i], &TEXTS[i], i);
    }
    slowest.ns = 0;
    run_texts(text_len - OVERHEAD, text, message);
    run_ids(&image, text_len - OVERHEAD, message);
    if (!counts) {
        printf("%s: longest stretch %llu us (%s, %s)\n", model_name,
               (unsigned long long)(slowest.ns / 1000), slowest.what, slowest.kind);
    }
    (void)ptk_models_set(&models, 0, NULL);
    ptk_engine_refresh(engine);
    ptk_tokenizer_close(tokenizer);
    ptk_image_close(&image);
}

int main(void)
{
    const char *paths = getenv("PTK_TEST_IMAGES");
    paths = paths != NULL ? paths : getenv("PTK_TEST_IMAGE");
    if (paths == NULL) {
        printf("skip: neither PTK_TEST_IMAGES nor PTK_TEST_IMAGE names a compiled vocabulary\n");
        return SKIP;
    }
    const char *wanted_len = getenv("PTK_SLICES_LEN");
    const size_t text_len =
        wanted_len != NULL ? (size_t)strtoull(wanted_len, NULL, 10) : TEXT_LEN;
    struct ptk_err err;
    CHECK(text_len >= 2 * OVERHEAD);
    CHECK(ptk_cpu_cycles_per_us(&cycles_per_us, &err) == 0);
    show = getenv("PTK_SLICES_SHOW") != NULL;
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    often = counts ? 16 : 0;
    char *copy = strdup(paths);
    CHECK(copy != NULL);
    size_t models = 0;
    for (char *path = strtok(copy, ":"); path != NULL; path = strtok(NULL, ":")) {
        run_model(path, text_len);
        models++;
    }
    free(copy);
    CHECK(failures == 0);
    CHECK(!counts || small_turns > 0);
    printf("slices: ok, %zu models, %llu messages, %llu turns of others\n", models,
           (unsigned long long)messages, (unsigned long long)small_turns);
    return 0;
}
