/*
 * The engine with a tokenizer whose ids are bytes: golden packets, every refusal, limits at -1, 0
 * and +1, in place and apart, hostile bytes, and models that come and go.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "byte_tokenizer.h"
#include "serve/ptk_engine.h"
#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_reply.h"

#define PACKETS          "../tests/golden/packets"
#define DATAGRAM_LEN_MAX 1472u
#define LONG_LEN_MAX     131072u
#define CANARY           0xA5u

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static struct byte_models models;
static struct ptk_engine *engine;

struct buffer {
    uint8_t bytes[65536];
    size_t len;
};

static struct ptk_engine *make_engine(uint32_t datagram_len_max, uint32_t message_len_max)
{
    const struct ptk_engine_limits limits = {.datagram_len_max = datagram_len_max,
                                             .message_len_max = message_len_max,
                                             .models_cap = 4,
                                             .cache_len = PTK_CACHE_LEN_MIN};
    const size_t len = ptk_engine_len(&limits);
    void *memory = aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    CHECK(memory != NULL);
    return ptk_engine_init(memory, &limits, &models.table);
}

/*
 * Handles a request three times: apart, in place, and apart at an odd address; all must agree, and
 * nothing may be written behind reply_cap.
 */
static enum ptk_verdict handle(const struct buffer *request, size_t reply_cap, struct buffer *reply)
{
    static struct buffer in_place, odd;
    enum ptk_verdict verdict, verdict_in_place, verdict_odd;
    memset(reply->bytes, CANARY, sizeof reply->bytes);
    reply->len =
        ptk_engine_handle(engine, request->bytes, request->len, reply->bytes, reply_cap, &verdict);
    CHECK(reply->len <= reply_cap);
    for (size_t i = reply_cap; i < sizeof reply->bytes; i++) {
        CHECK(reply->bytes[i] == CANARY);
    }

    memcpy(in_place.bytes, request->bytes, request->len);
    in_place.len = ptk_engine_handle(engine, in_place.bytes, request->len, in_place.bytes,
                                     reply_cap, &verdict_in_place);
    memcpy(odd.bytes + 1, request->bytes, request->len);
    odd.len = ptk_engine_handle(engine, odd.bytes + 1, request->len, odd.bytes + 1, reply_cap,
                                &verdict_odd);
    CHECK(verdict == verdict_in_place && verdict == verdict_odd);
    CHECK(reply->len == in_place.len && reply->len == odd.len);
    CHECK(memcmp(reply->bytes, in_place.bytes, reply->len) == 0);
    CHECK(memcmp(reply->bytes, odd.bytes + 1, reply->len) == 0);
    if (reply->len > 0) {
        struct ptk_wire_header header;
        memcpy(&header, reply->bytes, sizeof header);
        CHECK(header.magic == PTK_WIRE_MAGIC);
        CHECK(header.version_type == (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY));
        CHECK(header.verdict == verdict);
        CHECK(header.message_len == reply->len - sizeof header);
        CHECK(verdict == PTK_VERDICT_OK || reply->len == sizeof header);
    }
    return verdict;
}

/* --- golden packets -------------------------------------------------------------------------- */

static void read_hex(const char *line, struct buffer *buffer)
{
    for (; *line != '\0' && *line != '\n'; line++) {
        unsigned byte;
        if (*line == ' ') {
            continue;
        }
        CHECK(sscanf(line, "%2x", &byte) == 1);
        buffer->bytes[buffer->len++] = (uint8_t)byte;
        line++;
    }
}

static void read_packet(const char *path, struct buffer *request, struct buffer *reply)
{
    static char line[65536];
    FILE *file = fopen(path, "r");
    struct buffer *into = NULL;
    CHECK(file != NULL);
    request->len = reply->len = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strcmp(line, "request\n") == 0) {
            into = request;
        } else if (strcmp(line, "reply\n") == 0 || strcmp(line, "no reply\n") == 0) {
            into = reply;
        } else if (line[0] == ' ') {
            CHECK(into != NULL);
            read_hex(line, into);
        }
    }
    CHECK(fclose(file) == 0);
}

/* Both languages read the same files: what the client builds and parses is what the server does. */
static void test_golden_packets_are_answered_byte_for_byte(void)
{
    static struct buffer request, wanted, reply;
    DIR *folder = opendir(PACKETS);
    size_t files = 0;
    CHECK(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (strstr(entry->d_name, ".hex") == NULL) {
            continue;
        }
        char path[512];
        CHECK(snprintf(path, sizeof path, "%s/%s", PACKETS, entry->d_name) < (int)sizeof path);
        read_packet(path, &request, &wanted);
        (void)handle(&request, DATAGRAM_LEN_MAX, &reply);
        if (reply.len != wanted.len || memcmp(reply.bytes, wanted.bytes, wanted.len) != 0) {
            fprintf(stderr, "%s: another reply of %zu bytes\n", path, reply.len);
            abort();
        }
        files++;
    }
    CHECK(closedir(folder) == 0);
    CHECK(files >= 30);
}

/* --- requests made here ---------------------------------------------------------------------- */

static struct ptk_wire_header *header_of(struct buffer *request)
{
    return (struct ptk_wire_header *)(void *)request->bytes;
}

static struct ptk_wire_request *prelude_of(struct buffer *request)
{
    return (struct ptk_wire_request *)(void *)(request->bytes + PTK_WIRE_HEADER_LEN);
}

static void make_header(struct buffer *request, enum ptk_wire_op op, size_t message_len)
{
    memset(request->bytes, 0, sizeof request->bytes);
    *header_of(request) = (struct ptk_wire_header){
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .message_len = (uint32_t)message_len,
        .request_id = 0x0123456789ABCDEFu,
        .op = (uint8_t)op,
    };
    request->len = PTK_WIRE_HEADER_LEN + message_len;
}

/* One text of `text_len` letters (encode, count), or a list of that many ids 'a' (decode). */
static void make_batch(struct buffer *request, enum ptk_wire_op op, size_t text_len)
{
    const bool decode = op == PTK_WIRE_OP_DECODE;
    const size_t data_len = decode ? 2 * text_len : text_len;
    make_header(request, op, 16 + ptk_align_up(data_len, 8));
    *prelude_of(request) = (struct ptk_wire_request){
        .id_format = decode ? PTK_ID_FORMAT_U16 : PTK_ID_FORMAT_AUTO,
        .item_count = 1,
        .reply_len_max = UINT16_MAX,
    };
    ptk_store_u32(request->bytes + 40, (uint32_t)text_len);
    for (size_t i = 0; i < text_len; i++) {
        request->bytes[48 + (decode ? 2 * i : i)] = 'a';
    }
}

static struct ptk_wire_item item_of(const struct buffer *reply, size_t idx)
{
    struct ptk_wire_item item;
    memcpy(&item, reply->bytes + 40 + idx * sizeof item, sizeof item);
    return item;
}

static enum ptk_verdict verdict_of(const struct buffer *request)
{
    static struct buffer reply;
    return handle(request, DATAGRAM_LEN_MAX, &reply);
}

/* --- the door -------------------------------------------------------------------------------- */

/* A datagram cut anywhere is refused, and never read behind its end (the address sanitizer looks).
 */
static void test_requests_cut_at_every_byte_are_refused(void)
{
    static struct buffer request, reply;
    static const enum ptk_wire_op ops[] = {PTK_WIRE_OP_ENCODE, PTK_WIRE_OP_COUNT,
                                           PTK_WIRE_OP_DECODE};
    for (size_t o = 0; o < PTK_ARRAY_LEN(ops); o++) {
        make_batch(&request, ops[o], 13);
        const size_t whole = request.len;
        for (size_t len = 0; len < whole; len++) {
            uint8_t *exact = malloc(len + 1); /* one more: malloc(0) may be NULL */
            CHECK(exact != NULL);
            memcpy(exact, request.bytes, len);
            enum ptk_verdict verdict;
            reply.len =
                ptk_engine_handle(engine, exact, len, reply.bytes, DATAGRAM_LEN_MAX, &verdict);
            CHECK(verdict == (len < 32 ? PTK_VERDICT_BAD_MAGIC : PTK_VERDICT_BAD_LENGTH));
            CHECK(reply.len == (len < 32 ? 0 : 32));
            free(exact);
            /* The same with a message_len that agrees: now the message contradicts itself. */
            if (len >= 32) {
                exact = malloc(len);
                CHECK(exact != NULL);
                memcpy(exact, request.bytes, len);
                ptk_store_u32(exact + 4, (uint32_t)(len - 32));
                reply.len =
                    ptk_engine_handle(engine, exact, len, reply.bytes, DATAGRAM_LEN_MAX, &verdict);
                CHECK(verdict == PTK_VERDICT_BAD_LENGTH);
                free(exact);
            }
        }
        CHECK(verdict_of(&request) == PTK_VERDICT_OK);
    }
}

struct edit {
    enum ptk_wire_op op;
    size_t off;
    size_t len;
    uint64_t value;
    enum ptk_verdict verdict;
};

/* Each field of header and prelude beyond its range has its own verdict. */
static void test_each_field_is_checked(void)
{
    static struct buffer request;
    static const struct edit edits[] = {
        {PTK_WIRE_OP_ENCODE, 0, 2, 0x5451, PTK_VERDICT_BAD_MAGIC},
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x01, PTK_VERDICT_BAD_VERSION},
        {PTK_WIRE_OP_ENCODE, 2, 1, 0xF1, PTK_VERDICT_BAD_VERSION},
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x22, PTK_VERDICT_BAD_TYPE}, /* a reply of any version */
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x13, PTK_VERDICT_BAD_TYPE},
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x14, PTK_VERDICT_UNSUPPORTED}, /* pull */
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x15, PTK_VERDICT_UNSUPPORTED}, /* cancel */
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x16, PTK_VERDICT_BAD_TYPE},
        {PTK_WIRE_OP_ENCODE, 2, 1, 0x1F, PTK_VERDICT_BAD_TYPE},
        {PTK_WIRE_OP_ENCODE, 3, 1, 0x08, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 3, 1, 0x40, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 3, 1, PTK_WIRE_FLAGS_LAST_FLIGHT, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 4, 4, UINT32_MAX, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 4, 4, PTK_WIRE_MESSAGE_LEN_MAX + 1, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 4, 4, 0, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 16, 2, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 18, 2, 1, PTK_VERDICT_UNSUPPORTED},
        {PTK_WIRE_OP_ENCODE, 20, 2, 3, PTK_VERDICT_UNKNOWN_MODEL},
        {PTK_WIRE_OP_ENCODE, 20, 2, 4, PTK_VERDICT_UNKNOWN_MODEL},
        {PTK_WIRE_OP_ENCODE, 20, 2, UINT16_MAX, PTK_VERDICT_UNKNOWN_MODEL},
        {PTK_WIRE_OP_ENCODE, 22, 1, 0, PTK_VERDICT_BAD_OP},
        {PTK_WIRE_OP_ENCODE, 22, 1, PTK_WIRE_OP_SETTINGS, PTK_VERDICT_BAD_FLAGS}, /* no zeros */
        {PTK_WIRE_OP_ENCODE, 22, 1, PTK_WIRE_OP_PREFIX_PUT, PTK_VERDICT_UNSUPPORTED},
        {PTK_WIRE_OP_ENCODE, 22, 1, PTK_WIRE_OP_PREFIX_DROP, PTK_VERDICT_UNSUPPORTED},
        {PTK_WIRE_OP_ENCODE, 22, 1, 10, PTK_VERDICT_BAD_OP},
        {PTK_WIRE_OP_ENCODE, 22, 1, 255, PTK_VERDICT_BAD_OP},
        {PTK_WIRE_OP_ENCODE, 23, 1, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 24, 4, 0x11111111, PTK_VERDICT_OK},
        {PTK_WIRE_OP_ENCODE, 24, 4, 0x11111112, PTK_VERDICT_MODEL_CHANGED},
        {PTK_WIRE_OP_ENCODE, 28, 4, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 32, 1, PTK_ID_FORMAT_RANK_VARINT, PTK_VERDICT_UNSUPPORTED},
        {PTK_WIRE_OP_ENCODE, 32, 1, PTK_ID_FORMAT_VALUE_COUNT, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 33, 1, 0x10, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 33, 1, 0x80, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 33, 1, PTK_WIRE_OUTPUTS_OFFSETS_SHORT, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 33, 1, 0x0F, PTK_VERDICT_OK},
        {PTK_WIRE_OP_ENCODE, 34, 2, 0x800, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 34, 2, PTK_WIRE_OPTIONS_OVERFLOW, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 34, 2, 0x8000, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 34, 2, PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 34, 2, PTK_WIRE_OPTIONS_OFFSETS_CHARS, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 34, 2, PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_ENCODE, 34, 2, PTK_WIRE_OPTIONS_PAIR,
         PTK_VERDICT_OK}, /* padding as length 0 */
        {PTK_WIRE_OP_ENCODE, 36, 2, 0, PTK_VERDICT_BAD_ITEMS},
        {PTK_WIRE_OP_ENCODE, 36, 2, PTK_WIRE_ITEMS_MAX + 1, PTK_VERDICT_BAD_ITEMS},
        {PTK_WIRE_OP_ENCODE, 36, 2, UINT16_MAX, PTK_VERDICT_BAD_ITEMS},
        {PTK_WIRE_OP_ENCODE, 36, 2, PTK_WIRE_ITEMS_MAX, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 40, 4, UINT32_MAX, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 40, 4, 8, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 40, 4, 12, PTK_VERDICT_BAD_FLAGS}, /* a letter in the padding */
        {PTK_WIRE_OP_ENCODE, 40, 4, 17, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_ENCODE, 44, 4, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_ENCODE, 63, 1, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_COUNT, 32, 1, PTK_ID_FORMAT_U16, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_COUNT, 33, 1, 1, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_COUNT, 34, 2, PTK_WIRE_OPTIONS_OFFSETS_CHARS, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_COUNT, 34, 2, PTK_WIRE_OPTIONS_OVERFLOW, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 32, 1, PTK_ID_FORMAT_AUTO, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 32, 1, PTK_ID_FORMAT_RANK_VARINT, PTK_VERDICT_UNSUPPORTED},
        {PTK_WIRE_OP_DECODE, 32, 1, PTK_ID_FORMAT_U32, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_DECODE, 33, 1, 1, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 34, 2, PTK_WIRE_OPTIONS_PAIR, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 34, 2, PTK_WIRE_OPTIONS_TRUNCATION, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 34, 2, PTK_WIRE_OPTIONS_RANGES, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE, 40, 4, 0x80000000u, PTK_VERDICT_BAD_LENGTH}, /* doubled: 2^32 */
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(edits); i++) {
        const struct edit *edit = &edits[i];
        make_batch(&request, edit->op, 13);
        memcpy(request.bytes + edit->off, &edit->value, edit->len);
        const enum ptk_verdict verdict = verdict_of(&request);
        if (verdict != edit->verdict) {
            fprintf(stderr, "edit %zu: verdict %d instead of %d\n", i, verdict, edit->verdict);
            abort();
        }
    }
}

/* An extension that is announced must be there. What it says is the guard's business; the message
 * stands behind it. One that is not offered is refused by name. */
static void test_extensions_are_skipped_or_unsupported(void)
{
    static struct buffer request;
    static const struct {
        uint8_t flag;
        size_t len;
    } extensions[] = {
        {PTK_WIRE_FLAGS_COOKIE, sizeof(struct ptk_wire_cookie)},
        {PTK_WIRE_FLAGS_MAC, sizeof(struct ptk_wire_mac)},
        {PTK_WIRE_FLAGS_PREFIX, sizeof(struct ptk_wire_prefix)},
        {PTK_WIRE_FLAGS_COOKIE | PTK_WIRE_FLAGS_MAC, 48},
        {PTK_WIRE_FLAGS_COOKIE | PTK_WIRE_FLAGS_MAC | PTK_WIRE_FLAGS_PREFIX, 64},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(extensions); i++) {
        make_header(&request, PTK_WIRE_OP_PING, 8);
        header_of(&request)->flags = extensions[i].flag;
        CHECK(verdict_of(&request) == PTK_VERDICT_BAD_LENGTH);
        request.len += extensions[i].len - 1;
        CHECK(verdict_of(&request) == PTK_VERDICT_BAD_LENGTH);
        request.len += 1;
        const bool offered = (extensions[i].flag & PTK_WIRE_FLAGS_PREFIX) == 0;
        CHECK(verdict_of(&request) == (offered ? PTK_VERDICT_OK : PTK_VERDICT_UNSUPPORTED));
    }
}

/* A ping's message comes back from behind its extensions, also when the reply is built in place. */
static void test_a_message_behind_extensions_is_found(void)
{
    static uint8_t bytes[PTK_WIRE_HEADER_LEN + 48 + 61];
    struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = PTK_WIRE_FLAGS_COOKIE | PTK_WIRE_FLAGS_MAC,
        .message_len = 61,
        .op = PTK_WIRE_OP_PING,
    };
    memcpy(bytes, &header, sizeof header);
    for (size_t i = 0; i < 61; i++) {
        bytes[PTK_WIRE_HEADER_LEN + 48 + i] = (uint8_t)(i + 1);
    }
    enum ptk_verdict verdict;
    CHECK(ptk_engine_handle(engine, bytes, sizeof bytes, bytes, sizeof bytes, &verdict) ==
          PTK_WIRE_HEADER_LEN + 61);
    for (size_t i = 0; i < 61; i++) {
        CHECK(bytes[PTK_WIRE_HEADER_LEN + i] == i + 1);
    }
}

static void test_checksums_are_verified_and_returned(void)
{
    static struct buffer request, reply;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 5);
    struct ptk_wire_header *header = header_of(&request);
    header->flags = PTK_WIRE_FLAGS_CRC;
    header->message_crc = ptk_crc32c(request.bytes + 32, header->message_len);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(header_of(&reply)->flags == PTK_WIRE_FLAGS_CRC);
    CHECK(header_of(&reply)->message_crc == ptk_crc32c(reply.bytes + 32, reply.len - 32));
    request.bytes[50] ^= 1;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_BAD_CRC);
    CHECK(header_of(&reply)->flags == 0 && header_of(&reply)->message_crc == 0);
}

static void test_truncation_is_checked(void)
{
    static struct buffer request, reply;
    make_header(&request, PTK_WIRE_OP_COUNT, 8 + 16 + 8 + 8);
    *prelude_of(&request) = (struct ptk_wire_request){
        .options = PTK_WIRE_OPTIONS_TRUNCATION, .item_count = 1, .reply_len_max = UINT16_MAX};
    struct ptk_wire_truncation *truncation = (void *)(request.bytes + 40);
    truncation->max_length = 3;
    ptk_store_u32(request.bytes + 56, 5);
    memcpy(request.bytes + 64, "hello", 5);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).count == 3);
    truncation->strategy = 2;
    truncation->direction = 1;
    CHECK(verdict_of(&request) == PTK_VERDICT_OK);
    truncation->strategy = 3;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_OPTION);
    truncation->strategy = 0;
    truncation->direction = 2;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_OPTION);
    truncation->direction = 0;
    truncation->stride = 1;
    CHECK(verdict_of(&request) == PTK_VERDICT_OK);
    truncation->stride = 0;
    truncation->reserved[5] = 1;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_FLAGS);
}

/* --- windows, steps, ranges ------------------------------------------------------------------ */

/* An encode of "abcdefgh" cut to windows of three ids, of which `stride` are shared. */
static void make_windows(struct buffer *request, uint32_t stride)
{
    make_header(request, PTK_WIRE_OP_ENCODE, 8 + 16 + 8 + 8);
    *prelude_of(request) = (struct ptk_wire_request){
        .options = PTK_WIRE_OPTIONS_TRUNCATION | PTK_WIRE_OPTIONS_OVERFLOW,
        .item_count = 1,
        .reply_len_max = UINT16_MAX};
    struct ptk_wire_truncation *truncation = (void *)(request->bytes + 40);
    truncation->max_length = 3;
    truncation->stride = stride;
    ptk_store_u32(request->bytes + 56, 8);
    memcpy(request->bytes + 64, "abcdefgh", 8);
}

static void test_windows_come_with_their_lengths(void)
{
    static struct buffer request, reply;
    make_windows(&request, 1);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    /* abc cde efg gh */
    CHECK(item_of(&reply, 0).count == 11);
    CHECK(item_of(&reply, 0).window_count == 4);
    static const uint32_t lens[] = {3, 3, 3, 2};
    for (size_t i = 0; i < PTK_ARRAY_LEN(lens); i++) {
        CHECK(ptk_load_u32(reply.bytes + 48 + 4 * i) == lens[i]);
    }
    CHECK(ptk_load_u16(reply.bytes + 64) == 'a' && ptk_load_u16(reply.bytes + 64 + 20) == 'h');
    CHECK(reply.len == 32 + 16 + 16 + 24);
    /* One byte less than all windows take refuses the item. */
    CHECK(handle(&request, reply.len - 1, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_REPLY_TOO_LONG);
    CHECK(item_of(&reply, 0).window_count == 0 && item_of(&reply, 0).count == 0);
    CHECK(reply.len == 48);
    make_windows(&request, 3);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_BAD_OPTION);
}

/* Two streams: the first waits behind '~', the second ends. */
static void make_steps(struct buffer *request)
{
    static const struct ptk_wire_step steps[] = {
        {.ids_count = 3, .given_count = 1, .new_count = 1},
        {.ids_count = 2, .given_count = 0, .new_count = 0, .flags = PTK_WIRE_STEP_FLAGS_FLUSH},
    };
    static const uint16_t ids[] = {'a', 'b', '~', 'c', 'd'};
    make_header(request, PTK_WIRE_OP_DECODE_STEP, 8 + sizeof steps + 16);
    *prelude_of(request) = (struct ptk_wire_request){
        .id_format = PTK_ID_FORMAT_U16, .item_count = 2, .reply_len_max = UINT16_MAX};
    memcpy(request->bytes + 40, steps, sizeof steps);
    memcpy(request->bytes + 40 + sizeof steps, ids, sizeof ids);
}

static void test_steps_of_many_streams_share_a_datagram(void)
{
    static struct buffer request, reply;
    make_steps(&request);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).count == 0 && item_of(&reply, 0).verdict == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 1).count == 0);
    struct ptk_wire_step_state states[2];
    memcpy(states, reply.bytes + 56, sizeof states);
    CHECK(states[0].dropped_count == 0 && states[0].given_count == 1);
    CHECK(states[1].dropped_count == 2 && states[1].given_count == 0);
    request.bytes[60] = '!'; /* the last id of the first stream waits no longer */
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).count == 2 && memcmp(reply.bytes + 64, "b!", 2) == 0);
    memcpy(states, reply.bytes + 56, sizeof states);
    CHECK(states[0].dropped_count == 1 && states[0].given_count == 2);
    CHECK(reply.len == 72);
    /* The text does not fit: the window stays as it was. */
    CHECK(handle(&request, 71, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_REPLY_TOO_LONG);
    memcpy(states, reply.bytes + 56, sizeof states);
    CHECK(states[0].dropped_count == 0 && states[0].given_count == 0);
    CHECK(handle(&request, 63, &reply) == PTK_VERDICT_REPLY_TOO_LONG);
}

static void test_steps_are_checked(void)
{
    static struct buffer request;
    static const struct edit edits[] = {
        {PTK_WIRE_OP_DECODE_STEP, 32, 1, PTK_ID_FORMAT_AUTO, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE_STEP, 33, 1, 1, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE_STEP, 34, 2, PTK_WIRE_OPTIONS_PAIR, PTK_VERDICT_BAD_OPTION},
        {PTK_WIRE_OP_DECODE_STEP, 34, 2, PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS, PTK_VERDICT_OK},
        {PTK_WIRE_OP_DECODE_STEP, 40, 2, 4, PTK_VERDICT_OK}, /* of zeros in the padding */
        {PTK_WIRE_OP_DECODE_STEP, 40, 2, 7, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_DECODE_STEP, 42, 2, 3, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_DECODE_STEP, 44, 2, 3, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_DECODE_STEP, 44, 2, UINT16_MAX, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_DECODE_STEP, 46, 2, 2, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_DECODE_STEP, 54, 2, 0x8000, PTK_VERDICT_BAD_FLAGS},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(edits); i++) {
        const struct edit *edit = &edits[i];
        make_steps(&request);
        memcpy(request.bytes + edit->off, &edit->value, edit->len);
        const enum ptk_verdict verdict = verdict_of(&request);
        if (verdict != edit->verdict) {
            fprintf(stderr, "edit %zu: verdict %d instead of %d\n", i, verdict, edit->verdict);
            abort();
        }
    }
}

/* A count of "a|b|" and "|c" as a pair, with two ranges. */
static void make_ranges(struct buffer *request)
{
    static const struct ptk_wire_range ranges[] = {
        {.begin = 1, .len_all = 1 << 1}, {.begin = 3, .len_all = 2 << 1 | 1}};
    make_header(request, PTK_WIRE_OP_COUNT, 8 + 8 + 8 + sizeof ranges + 8);
    *prelude_of(request) = (struct ptk_wire_request){
        .options = PTK_WIRE_OPTIONS_PAIR | PTK_WIRE_OPTIONS_RANGES |
                   PTK_WIRE_OPTIONS_PARSE_SPECIAL,
        .item_count = 1,
        .reply_len_max = UINT16_MAX};
    ptk_store_u32(request->bytes + 40, 4);
    ptk_store_u32(request->bytes + 44, 2);
    ptk_store_u32(request->bytes + 48, 2);
    memcpy(request->bytes + 56, ranges, sizeof ranges);
    memcpy(request->bytes + 72, "a|b||c", 6);
}

static void test_ranges_are_checked_and_hits_counted(void)
{
    static struct buffer request, reply;
    static const struct edit edits[] = {
        {PTK_WIRE_OP_COUNT, 48, 4, 1, PTK_VERDICT_BAD_LENGTH}, /* the other is then text */
        {PTK_WIRE_OP_COUNT, 48, 4, 3, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_COUNT, 48, 4, PTK_WIRE_RANGES_MAX + 1, PTK_VERDICT_BAD_ITEMS},
        {PTK_WIRE_OP_COUNT, 48, 4, UINT32_MAX, PTK_VERDICT_BAD_ITEMS},
        {PTK_WIRE_OP_COUNT, 52, 4, 1, PTK_VERDICT_BAD_FLAGS},
        {PTK_WIRE_OP_COUNT, 60, 4, 0, PTK_VERDICT_BAD_LENGTH},      /* an empty range */
        {PTK_WIRE_OP_COUNT, 60, 4, 3 << 1, PTK_VERDICT_BAD_LENGTH}, /* they overlap */
        {PTK_WIRE_OP_COUNT, 64, 4, 5, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_COUNT, 64, 4, UINT32_MAX, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_COUNT, 68, 4, 3 << 1, PTK_VERDICT_OK},
        {PTK_WIRE_OP_COUNT, 68, 4, 4 << 1, PTK_VERDICT_BAD_LENGTH},
        {PTK_WIRE_OP_COUNT, 68, 4, UINT32_MAX, PTK_VERDICT_BAD_LENGTH},
    };
    make_ranges(&request);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).count == 6 && item_of(&reply, 0).hits == 3);
    for (size_t i = 0; i < PTK_ARRAY_LEN(edits); i++) {
        const struct edit *edit = &edits[i];
        make_ranges(&request);
        memcpy(request.bytes + edit->off, &edit->value, edit->len);
        const enum ptk_verdict verdict = verdict_of(&request);
        if (verdict != edit->verdict) {
            fprintf(stderr, "edit %zu: verdict %d instead of %d\n", i, verdict, edit->verdict);
            abort();
        }
    }
    const uint64_t before = ptk_engine_counters(engine)->plain_hits;
    make_ranges(&request);
    CHECK(verdict_of(&request) == PTK_VERDICT_OK);
    CHECK(ptk_engine_counters(engine)->plain_hits == before + 9); /* handled three times */
}

/* More hits than a byte counts are 255. */
static void test_hits_are_counted_to_255(void)
{
    static struct buffer request, reply;
    for (size_t hits = 254; hits <= 257; hits++) {
        const size_t text_len = 264;
        make_header(&request, PTK_WIRE_OP_COUNT, 8 + 8 + 8 + 8 + text_len);
        *prelude_of(&request) = (struct ptk_wire_request){
            .options = PTK_WIRE_OPTIONS_RANGES, .item_count = 1, .reply_len_max = UINT16_MAX};
        ptk_store_u32(request.bytes + 40, (uint32_t)text_len);
        ptk_store_u32(request.bytes + 48, 1);
        ptk_store_u32(request.bytes + 60, (uint32_t)text_len << 1);
        memset(request.bytes + 64, 'a', text_len);
        memset(request.bytes + 64, '|', hits);
        CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
        CHECK(item_of(&reply, 0).hits == ptk_min_size(hits, 255));
    }
}

/* --- ping, info and settings ----------------------------------------------------------------- */

static void test_ping_answers_any_length_up_to_the_limit(void)
{
    static struct buffer request, reply;
    for (size_t len = 0; len <= DATAGRAM_LEN_MAX - 32; len++) {
        make_header(&request, PTK_WIRE_OP_PING, len);
        memset(request.bytes + 32, (int)(len & 0xFF), len);
        CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
        CHECK(reply.len == request.len);
        CHECK(memcmp(reply.bytes + 32, request.bytes + 32, len) == 0);
    }
    make_header(&request, PTK_WIRE_OP_PING, DATAGRAM_LEN_MAX - 31);
    CHECK(verdict_of(&request) == PTK_VERDICT_TEXT_TOO_LONG);
    make_header(&request, PTK_WIRE_OP_PING, 100);
    CHECK(handle(&request, 132, &reply) == PTK_VERDICT_OK);
    CHECK(handle(&request, 131, &reply) == PTK_VERDICT_REPLY_TOO_LONG);
    header_of(&request)->model_id = 1;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_OPTION);
    header_of(&request)->model_id = 0;
    header_of(&request)->model_tag = 0x11111111;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_OPTION);
}

static void test_info_never_outgrows_its_request(void)
{
    static struct buffer request, reply;
    make_header(&request, PTK_WIRE_OP_INFO, 80 + 16);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(reply.len == request.len);
    make_header(&request, PTK_WIRE_OP_INFO, 80 + 8);
    CHECK(verdict_of(&request) == PTK_VERDICT_REPLY_TOO_LONG);
    make_header(&request, PTK_WIRE_OP_INFO, 0);
    CHECK(verdict_of(&request) == PTK_VERDICT_REPLY_TOO_LONG);
    make_header(&request, PTK_WIRE_OP_INFO, 97);
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_LENGTH);
    make_header(&request, PTK_WIRE_OP_INFO, 208);
    request.bytes[239] = 1;
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_FLAGS);
}

static void test_settings_never_outgrow_their_request(void)
{
    static struct buffer request, reply;
    struct ptk_wire_settings settings;
    make_header(&request, PTK_WIRE_OP_SETTINGS, sizeof settings);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(reply.len == request.len);
    memcpy(&settings, reply.bytes + 32, sizeof settings);
    CHECK(settings.flags == 0);
    models.configs[0].flags = PTK_IMAGE_FLAGS_HAS_TRUNCATION | PTK_IMAGE_FLAGS_HAS_PADDING;
    models.configs[0].truncation_max = 9;
    models.configs[0].truncation_stride = 2;
    models.configs[0].truncation_kind = 1 | 1 << 8;
    models.configs[0].padding_kind = 1 | 1 << 8;
    models.configs[0].padding_len = 12;
    models.configs[0].padding_id = 3;
    models.configs[0].padding_type_id = 1;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    memcpy(&settings, reply.bytes + 32, sizeof settings);
    CHECK(settings.flags == (PTK_WIRE_SETTINGS_FLAGS_TRUNCATION | PTK_WIRE_SETTINGS_FLAGS_PADDING |
                             PTK_WIRE_SETTINGS_FLAGS_PADDING_FIXED));
    CHECK(settings.truncation_max == 9 && settings.truncation_stride == 2);
    CHECK(settings.truncation_strategy == 1 && settings.truncation_direction == 1);
    CHECK(settings.padding_direction == 1 && settings.padding_len == 12);
    CHECK(settings.padding_id == 3 && settings.padding_type_id == 1);
    models.configs[0].flags = 0;
    make_header(&request, PTK_WIRE_OP_SETTINGS, sizeof settings - 8);
    CHECK(verdict_of(&request) == PTK_VERDICT_REPLY_TOO_LONG);
    make_header(&request, PTK_WIRE_OP_SETTINGS, sizeof settings + 1);
    CHECK(verdict_of(&request) == PTK_VERDICT_BAD_LENGTH);
    make_header(&request, PTK_WIRE_OP_SETTINGS, sizeof settings);
    header_of(&request)->model_id = 3;
    CHECK(verdict_of(&request) == PTK_VERDICT_UNKNOWN_MODEL);
}

/* --- items ----------------------------------------------------------------------------------- */

/* The longest reply that fits is given, one id more is refused in its item. */
static void test_reply_limits_hold_to_the_byte(void)
{
    static struct buffer request, reply;
    for (uint32_t model_id = 0; model_id < 3; model_id++) {
        for (uint32_t outputs = 0; outputs <= PTK_WIRE_OUTPUTS_MASK; outputs++) {
            if ((outputs & PTK_WIRE_OUTPUTS_OFFSETS_SHORT) != 0 &&
                (outputs & PTK_WIRE_OUTPUTS_OFFSETS) == 0) {
                continue;
            }
            for (size_t text_len = 0; text_len < 40; text_len++) {
                const uint32_t id_format = PTK_ID_FORMAT_U16 + model_id;
                const size_t wanted =
                    32 + ptk_wire_encode_layout(ptk_wire_items_len(1), text_len, id_format, outputs)
                             .message_len;
                make_batch(&request, PTK_WIRE_OP_ENCODE, text_len);
                header_of(&request)->model_id = (uint16_t)model_id;
                prelude_of(&request)->outputs = (uint8_t)outputs;
                for (int by_client = 0; by_client < 2; by_client++) {
                    size_t reply_cap = by_client ? DATAGRAM_LEN_MAX : wanted;
                    prelude_of(&request)->reply_len_max =
                        (uint16_t)(by_client ? wanted : UINT16_MAX);
                    CHECK(handle(&request, reply_cap, &reply) == PTK_VERDICT_OK);
                    CHECK(reply.len == wanted);
                    CHECK(item_of(&reply, 0).count == text_len);
                    if (text_len == 0) {
                        continue;
                    }
                    reply_cap = by_client ? DATAGRAM_LEN_MAX : wanted - 1;
                    prelude_of(&request)->reply_len_max =
                        (uint16_t)(by_client ? wanted - 1 : UINT16_MAX);
                    CHECK(handle(&request, reply_cap, &reply) == PTK_VERDICT_OK);
                    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_REPLY_TOO_LONG);
                    CHECK(item_of(&reply, 0).count == 0);
                    CHECK(reply.len == 48);
                }
            }
        }
    }
}

static void test_reply_len_max_zero_means_no_longer_than_the_request(void)
{
    static struct buffer request, reply;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 16);
    prelude_of(&request)->reply_len_max = 0;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_REPLY_TOO_LONG);
    make_batch(&request, PTK_WIRE_OP_DECODE, 16);
    prelude_of(&request)->reply_len_max = 0;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).count == 16);
}

/* What does not fit is refused alone; a smaller item behind it is still answered. */
static void test_items_that_do_not_fit_do_not_stop_the_others(void)
{
    static struct buffer request, reply;
    static const uint32_t lens[3] = {10, 500, 10};
    make_header(&request, PTK_WIRE_OP_ENCODE, 8 + 16 + 520);
    *prelude_of(&request) =
        (struct ptk_wire_request){.item_count = 3, .reply_len_max = 32 + 8 + 24 + 40};
    memcpy(request.bytes + 40, lens, sizeof lens);
    memset(request.bytes + 56, 'b', 520);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_OK && item_of(&reply, 0).count == 10);
    CHECK(item_of(&reply, 1).verdict == PTK_VERDICT_REPLY_TOO_LONG);
    CHECK(item_of(&reply, 2).verdict == PTK_VERDICT_OK && item_of(&reply, 2).count == 10);
    CHECK(reply.len == 32 + 8 + 24 + 40);
    prelude_of(&request)->reply_len_max = 32 + 8 + 24;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    prelude_of(&request)->reply_len_max = 32 + 8 + 23;
    CHECK(verdict_of(&request) == PTK_VERDICT_REPLY_TOO_LONG);
    CHECK(handle(&request, 32 + 8 + 23, &reply) == PTK_VERDICT_REPLY_TOO_LONG);
}

static void test_verdicts_of_the_tokenizer_stay_with_their_item(void)
{
    static struct buffer request, reply;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 13);
    request.bytes[50] = 0xFF;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_BAD_UTF8);
    make_batch(&request, PTK_WIRE_OP_COUNT, 13);
    request.bytes[50] = 'X';
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_TEXT_TOO_LONG);
    make_batch(&request, PTK_WIRE_OP_ENCODE, 13);
    prelude_of(&request)->options = PTK_WIRE_OPTIONS_BOS;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_UNSUPPORTED);
    make_batch(&request, PTK_WIRE_OP_DECODE, 600);
    prelude_of(&request)->reply_len_max = 100;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(item_of(&reply, 0).verdict == PTK_VERDICT_REPLY_TOO_LONG);
}

static void test_a_full_item_table_is_answered(void)
{
    static struct buffer request, reply;
    make_header(&request, PTK_WIRE_OP_ENCODE, 8 + 4 * PTK_WIRE_ITEMS_MAX + PTK_WIRE_ITEMS_MAX);
    *prelude_of(&request) =
        (struct ptk_wire_request){.item_count = PTK_WIRE_ITEMS_MAX, .reply_len_max = UINT16_MAX};
    for (size_t i = 0; i < PTK_WIRE_ITEMS_MAX; i++) {
        ptk_store_u32(request.bytes + 40 + 4 * i, 1);
        request.bytes[40 + 4 * PTK_WIRE_ITEMS_MAX + i] = (uint8_t)('0' + i % 10);
    }
    struct ptk_engine *small = engine;
    engine = make_engine(9000, 0);
    CHECK(handle(&request, 9000, &reply) == PTK_VERDICT_OK);
    for (size_t i = 0; i < PTK_WIRE_ITEMS_MAX; i++) {
        CHECK(item_of(&reply, i).count == 1);
        CHECK(ptk_load_u16(reply.bytes + 40 + 8 * PTK_WIRE_ITEMS_MAX + 2 * i) == '0' + i % 10);
    }
    free(engine);
    engine = small;
}

/* --- models ---------------------------------------------------------------------------------- */

static void test_models_change_at_refresh_only(void)
{
    static struct buffer request, reply;
    struct ptk_model replacement = models.models[0];
    replacement.generation = 77;
    replacement.tag = 0x77777777;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 5);

    const uint64_t resets = ptk_engine_counters(engine)->cache_resets;
    const uint64_t epoch = ptk_models_set(&models.table, 0, &replacement);
    CHECK(ptk_engine_epoch_seen(engine) < epoch);
    CHECK(verdict_of(&request) == PTK_VERDICT_OK);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(header_of(&reply)->model_tag == 0x11111111);
    ptk_engine_refresh(engine);
    CHECK(ptk_engine_epoch_seen(engine) == epoch);
    CHECK(ptk_engine_counters(engine)->cache_resets == resets + 1);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_OK);
    CHECK(header_of(&reply)->model_tag == 0x77777777);
    header_of(&request)->model_tag = 0x11111111;
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_MODEL_CHANGED);
    CHECK(header_of(&reply)->model_tag == 0x77777777);
    header_of(&request)->model_tag = 0;

    (void)ptk_models_set(&models.table, 0, NULL);
    ptk_engine_refresh(engine);
    CHECK(handle(&request, DATAGRAM_LEN_MAX, &reply) == PTK_VERDICT_UNKNOWN_MODEL);
    CHECK(header_of(&reply)->model_tag == 0);

    /* The same generation again: its cache is still good. */
    (void)ptk_models_set(&models.table, 0, &replacement);
    ptk_engine_refresh(engine);
    CHECK(ptk_engine_counters(engine)->cache_resets == resets + 1);
    (void)ptk_models_set(&models.table, 0, &models.models[0]);
    ptk_engine_refresh(engine);
    CHECK(ptk_engine_counters(engine)->cache_resets == resets + 2);
    CHECK(verdict_of(&request) == PTK_VERDICT_OK);
}

static void test_counters_tell_what_was_done(void)
{
    static struct buffer request;
    struct buffer *reply = malloc(sizeof *reply);
    struct ptk_engine *other = make_engine(DATAGRAM_LEN_MAX, 0);
    const struct ptk_engine_counters *counters = ptk_engine_counters(other);
    enum ptk_verdict verdict;
    CHECK(reply != NULL);
    make_batch(&request, PTK_WIRE_OP_ENCODE, 13);
    (void)ptk_engine_handle(other, request.bytes, request.len, reply->bytes, 1472, &verdict);
    make_batch(&request, PTK_WIRE_OP_COUNT, 7);
    (void)ptk_engine_handle(other, request.bytes, request.len, reply->bytes, 1472, &verdict);
    make_batch(&request, PTK_WIRE_OP_DECODE, 5);
    (void)ptk_engine_handle(other, request.bytes, request.len, reply->bytes, 1472, &verdict);
    (void)ptk_engine_handle(other, request.bytes, 3, reply->bytes, 1472, &verdict);
    CHECK(counters->requests[PTK_WIRE_OP_ENCODE] == 1);
    CHECK(counters->requests[PTK_WIRE_OP_COUNT] == 1);
    CHECK(counters->requests[PTK_WIRE_OP_DECODE] == 1);
    CHECK(counters->verdicts[PTK_VERDICT_OK] == 3);
    CHECK(counters->verdicts[PTK_VERDICT_BAD_MAGIC] == 1);
    CHECK(counters->item_verdicts[PTK_VERDICT_OK] == 3);
    CHECK(counters->text_bytes == 13 + 7 + 5);
    CHECK(counters->ids == 13 + 7 + 5);
    CHECK(counters->cache_resets == BYTE_MODELS);
    free(reply);
    free(other);
}

/* Mutations of good requests: no crash, no overrun, no reply to what is not a request. */
static void test_mutated_requests_are_survived(void)
{
    static struct buffer request, reply;
    const char *text = getenv("PTK_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : 20250131;
    printf("seed %llu\n", (unsigned long long)seed);
    uint64_t state = seed * 2 + 1;
    for (size_t round = 0; round < 20000; round++) {
        static const enum ptk_wire_op ops[] = {PTK_WIRE_OP_ENCODE, PTK_WIRE_OP_COUNT,
                                               PTK_WIRE_OP_DECODE};
        state = state * 6364136223846793005u + 1442695040888963407u;
        make_batch(&request, ops[round % 3], (state >> 33) % 100);
        for (size_t i = 0; i < 1 + round % 4; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            request.bytes[(state >> 33) % request.len] ^= (uint8_t)(1u << (state >> 60) % 8);
        }
        const size_t reply_cap = 32 + (size_t)(state >> 20) % 400;
        const enum ptk_verdict verdict = handle(&request, reply_cap, &reply);
        CHECK(reply.len != 0 || verdict == PTK_VERDICT_BAD_MAGIC ||
              verdict == PTK_VERDICT_BAD_TYPE);
    }
}

/* --- long messages --------------------------------------------------------------------------- */

/* A long message at desk `desk_idx`: the message of its reply, as long as it says. */
static enum ptk_verdict run_long(const struct buffer *request, uint32_t desk_idx,
                                 struct buffer *message)
{
    struct ptk_engine_long input = {.message = request->bytes + PTK_WIRE_HEADER_LEN,
                                    .message_len = request->len - PTK_WIRE_HEADER_LEN,
                                    .reply_message_len_max = sizeof message->bytes};
    struct ptk_engine_long_reply reply;
    memcpy(&input.header, request->bytes, sizeof input.header);
    const enum ptk_verdict verdict = ptk_engine_long_run(engine, desk_idx, &input, &reply);
    memset(message->bytes, CANARY, sizeof message->bytes);
    message->len = reply.message_len;
    if (verdict == PTK_VERDICT_OK) {
        ptk_engine_long_build(engine, desk_idx, message->bytes);
    }
    for (size_t i = message->len; i < sizeof message->bytes; i++) {
        CHECK(message->bytes[i] == CANARY);
    }
    return verdict;
}

/* A message means the same in one datagram and in segments, at every desk. */
static void test_long_messages_are_answered_as_datagrams_are(void)
{
    static struct buffer request, reply, message;
    static const enum ptk_wire_op ops[] = {PTK_WIRE_OP_ENCODE, PTK_WIRE_OP_COUNT,
                                           PTK_WIRE_OP_DECODE};
    for (size_t o = 0; o < PTK_ARRAY_LEN(ops); o++) {
        for (size_t len = 0; len < 300; len += 7) {
            make_batch(&request, ops[o], len);
            if (ops[o] == PTK_WIRE_OP_ENCODE) {
                prelude_of(&request)->outputs = (uint8_t)(len % 8);
            }
            CHECK(handle(&request, 65536, &reply) == PTK_VERDICT_OK);
            const uint32_t desk_idx = (uint32_t)(len % PTK_ENGINE_LONG_DESKS);
            CHECK(run_long(&request, desk_idx, &message) == PTK_VERDICT_OK);
            if (item_of(&reply, 0).verdict == PTK_VERDICT_OK) {
                CHECK(message.len == reply.len - PTK_WIRE_HEADER_LEN);
                CHECK(memcmp(message.bytes, reply.bytes + PTK_WIRE_HEADER_LEN, message.len) == 0);
            }
        }
    }
}

static void test_long_messages_have_their_refusals(void)
{
    static struct buffer request, message;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 5000);
    CHECK(run_long(&request, 0, &message) == PTK_VERDICT_OK);
    header_of(&request)->model_id = 9;
    CHECK(run_long(&request, 0, &message) == PTK_VERDICT_UNKNOWN_MODEL);
    header_of(&request)->model_id = 0;
    header_of(&request)->model_tag = 0xDEAD;
    CHECK(run_long(&request, 0, &message) == PTK_VERDICT_MODEL_CHANGED);
    header_of(&request)->model_tag = 0;
    prelude_of(&request)->item_count = 0;
    CHECK(run_long(&request, 0, &message) == PTK_VERDICT_BAD_ITEMS);
    CHECK(ptk_engine_long_fits(engine, 0, LONG_LEN_MAX));
    CHECK(!ptk_engine_long_fits(engine, 0, LONG_LEN_MAX + 1));
    CHECK(ptk_engine_long_fits(engine, 1, LONG_LEN_MAX / 4));
    CHECK(!ptk_engine_long_fits(engine, 1, LONG_LEN_MAX / 4 + 1));
}

/* Short offsets hold 65,535 bytes of text and no more. */
static void test_short_offsets_are_for_short_texts(void)
{
    static struct buffer request;
    static uint8_t message[16 + 65536];
    for (uint32_t len = 65535; len <= 65536; len++) {
        make_batch(&request, PTK_WIRE_OP_ENCODE, 1);
        prelude_of(&request)->outputs = PTK_WIRE_OUTPUTS_OFFSETS | PTK_WIRE_OUTPUTS_OFFSETS_SHORT;
        memcpy(message, request.bytes + PTK_WIRE_HEADER_LEN, 16);
        memset(message + 16, 'a', len);
        memset(message + 16 + len, 0, sizeof message - 16 - len);
        ptk_store_u32(message + 8, len);
        struct ptk_engine_long input = {
            .message = message, .message_len = sizeof message, .reply_message_len_max = 1 << 20};
        memcpy(&input.header, request.bytes, sizeof input.header);
        struct ptk_engine_long_reply reply;
        CHECK(ptk_engine_long_run(engine, 0, &input, &reply) ==
              (len < 65536 ? PTK_VERDICT_OK : PTK_VERDICT_BAD_OPTION));
    }
}

/* A reply that finds no room in its limit fails in its item, as in a datagram. */
static void test_long_replies_keep_their_limit(void)
{
    static struct buffer request;
    make_batch(&request, PTK_WIRE_OP_ENCODE, 5000);
    struct ptk_engine_long input = {.message = request.bytes + PTK_WIRE_HEADER_LEN,
                                    .message_len = request.len - PTK_WIRE_HEADER_LEN};
    memcpy(&input.header, request.bytes, sizeof input.header);
    struct ptk_engine_long_reply reply;
    input.reply_message_len_max = 16 + 10000;
    CHECK(ptk_engine_long_run(engine, 0, &input, &reply) == PTK_VERDICT_OK);
    CHECK(reply.message_len == 16 + 10000);
    input.reply_message_len_max = 16 + 10000 - 1;
    CHECK(ptk_engine_long_run(engine, 0, &input, &reply) == PTK_VERDICT_OK);
    CHECK(reply.message_len == 16);
}

int main(void)
{
    byte_models_init(&models);
    engine = make_engine(DATAGRAM_LEN_MAX, LONG_LEN_MAX);
    test_long_messages_are_answered_as_datagrams_are();
    test_long_messages_have_their_refusals();
    test_short_offsets_are_for_short_texts();
    test_long_replies_keep_their_limit();
    free(engine);
    engine = make_engine(DATAGRAM_LEN_MAX, 0);
    test_golden_packets_are_answered_byte_for_byte();
    test_requests_cut_at_every_byte_are_refused();
    test_each_field_is_checked();
    test_extensions_are_skipped_or_unsupported();
    test_a_message_behind_extensions_is_found();
    test_checksums_are_verified_and_returned();
    test_truncation_is_checked();
    test_windows_come_with_their_lengths();
    test_steps_of_many_streams_share_a_datagram();
    test_steps_are_checked();
    test_ranges_are_checked_and_hits_counted();
    test_hits_are_counted_to_255();
    test_ping_answers_any_length_up_to_the_limit();
    test_info_never_outgrows_its_request();
    test_settings_never_outgrow_their_request();
    test_reply_limits_hold_to_the_byte();
    test_reply_len_max_zero_means_no_longer_than_the_request();
    test_items_that_do_not_fit_do_not_stop_the_others();
    test_verdicts_of_the_tokenizer_stay_with_their_item();
    test_a_full_item_table_is_answered();
    test_models_change_at_refresh_only();
    test_counters_tell_what_was_done();
    test_mutated_requests_are_survived();
    free(engine);
    return 0;
}
