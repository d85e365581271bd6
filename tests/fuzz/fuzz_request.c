/*
 * Fuzzes the door for requests: any datagram, at any reply limit, through engine and real model.
 *
 * The image comes from PTK_TEST_IMAGE (a compiled vocabulary); without it the run is skipped.
 * Input: one byte of settings, then the datagram. What must hold: no crash, no read or write out of
 * bounds (the sanitizers look), a reply that is a PTK1 reply to this request and no longer than
 * allowed, the same reply in place and apart, silence only for what the protocol leaves unanswered.
 */
#include <stdio.h>
#include <stdlib.h>

#include "serve/ptk_engine.h"
#include "wire/ptk_wire_reply.h"

#define DATAGRAM_LEN_MAX 4096u
#define SKIP_EXIT_CODE   77

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ptk_image image;
static struct ptk_tokenizer *tokenizer;
static struct ptk_model model;
static struct ptk_models models;
static struct ptk_engine *engine;

static void set_up(void)
{
    struct ptk_err err = {0};
    const char *path = getenv("PTK_TEST_IMAGE");
    if (path == NULL) {
        printf("skip: PTK_TEST_IMAGE does not name a compiled vocabulary\n");
        exit(SKIP_EXIT_CODE);
    }
    if (ptk_image_open(path, PTK_IMAGE_HOLD_COPY, &image, &err) != 0 ||
        ptk_tokenizer_open(&image, &tokenizer, &err) != 0) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        abort();
    }
    model = (struct ptk_model){.tokenizer = tokenizer, .image = &image, .generation = 1, .tag = 1};
    ptk_models_init(&models);
    (void)ptk_models_set(&models, 0, &model);
    const struct ptk_engine_limits limits = {
        .datagram_len_max = DATAGRAM_LEN_MAX, .models_cap = 2, .cache_len = PTK_CACHE_LEN_MIN};
    const size_t len = ptk_align_up(ptk_engine_len(&limits), PTK_CACHE_LINE);
    void *memory = aligned_alloc(PTK_CACHE_LINE, len);
    CHECK(memory != NULL);
    engine = ptk_engine_init(memory, &limits, &models);
}

static void check_reply(const uint8_t *request, const uint8_t *reply, size_t reply_len,
                        enum ptk_verdict verdict)
{
    struct ptk_wire_header asked, header;
    memcpy(&asked, request, sizeof asked);
    memcpy(&header, reply, sizeof header);
    CHECK(header.magic == PTK_WIRE_MAGIC);
    CHECK(header.version_type == (PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY));
    CHECK(header.request_id == asked.request_id);
    CHECK(header.op == asked.op && header.model_id == asked.model_id);
    CHECK(header.verdict == verdict);
    CHECK(header.message_len == reply_len - sizeof header);
    CHECK(verdict == PTK_VERDICT_OK || reply_len == sizeof header);
    CHECK(header.segment_idx == 0 && header.segment_len == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (engine == NULL) {
        set_up();
    }
    if (size == 0) {
        return 0;
    }
    const size_t reply_cap = PTK_ENGINE_REPLY_CAP_MIN + (size_t)data[0] * 16;
    const uint8_t *request = data + 1;
    const size_t len = size - 1;
    enum ptk_verdict verdict, verdict_in_place;
    uint8_t *reply = malloc(reply_cap);
    uint8_t *frame = malloc(ptk_max_size(len, reply_cap));
    CHECK(reply != NULL && frame != NULL);

    const size_t reply_len = ptk_engine_handle(engine, request, len, reply, reply_cap, &verdict);
    memcpy(frame, request, len);
    const size_t in_place_len =
        ptk_engine_handle(engine, frame, len, frame, reply_cap, &verdict_in_place);
    CHECK(verdict == verdict_in_place && reply_len == in_place_len);
    CHECK(reply_len == 0 || memcmp(reply, frame, reply_len) == 0);
    CHECK(reply_len <= reply_cap);
    if (reply_len > 0) {
        check_reply(request, reply, reply_len, verdict);
    } else {
        CHECK(verdict == PTK_VERDICT_BAD_MAGIC || verdict == PTK_VERDICT_BAD_TYPE);
    }
    free(reply);
    free(frame);
    return 0;
}
