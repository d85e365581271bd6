/*
 * Models are replaced under engines that work: a retired model may be destroyed as soon as every
 * engine has seen the epoch, and no request is refused or answered by a mixture meanwhile.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "byte_tokenizer.h"
#include "serve/ptk_engine.h"

#define ENGINES  2
#define SWAPS    200
#define TEXT_LEN 24u

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

/* A model of one generation: its tokenizer's base is its tag, so that ids and tag must agree. */
struct generation {
    struct ptk_model model;
    struct ptk_tokenizer tokenizer;
    struct ptk_image image;
    struct ptk_image_header header;
    struct ptk_image_config config;
};

static struct ptk_models models;
static struct ptk_engine *engines[ENGINES];
static _Atomic bool stop;
static _Atomic uint64_t answered[ENGINES];

static struct generation *make_generation(uint64_t number)
{
    struct generation *made = calloc(1, sizeof *made);
    CHECK(made != NULL);
    made->tokenizer.base = (uint32_t)number << 12;
    made->config.ids_end = UINT32_MAX;
    made->image.config = &made->config;
    made->image.header = &made->header;
    made->model = (struct ptk_model){.tokenizer = &made->tokenizer,
                                     .image = &made->image,
                                     .generation = number,
                                     .tag = (uint32_t)number};
    return made;
}

static void make_request(uint8_t *request)
{
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .message_len = 16 + TEXT_LEN,
        .op = PTK_WIRE_OP_ENCODE,
    };
    const struct ptk_wire_request prelude = {.item_count = 1, .reply_len_max = 1472};
    const uint32_t lengths[2] = {TEXT_LEN, 0};
    memcpy(request, &header, sizeof header);
    memcpy(request + 32, &prelude, sizeof prelude);
    memcpy(request + 40, lengths, sizeof lengths);
    memset(request + 48, 'a', TEXT_LEN);
}

static void *serve(void *argument)
{
    const size_t idx = (size_t)(uintptr_t)argument;
    uint8_t request[48 + TEXT_LEN], reply[1472];
    make_request(request);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        ptk_engine_refresh(engines[idx]);
        for (int i = 0; i < 4; i++) {
            enum ptk_verdict verdict;
            struct ptk_wire_header header;
            const size_t len = ptk_engine_handle(engines[idx], request, sizeof request, reply,
                                                 sizeof reply, &verdict);
            CHECK(verdict == PTK_VERDICT_OK && len == 48 + 4 * TEXT_LEN);
            memcpy(&header, reply, sizeof header);
            for (size_t k = 0; k < TEXT_LEN; k++) {
                CHECK(ptk_load_u32(reply + 48 + 4 * k) == (header.model_tag << 12) + 'a');
            }
        }
        atomic_fetch_add_explicit(&answered[idx], 1, memory_order_relaxed);
    }
    return NULL;
}

static void test_models_are_replaced_without_a_refusal(void)
{
    pthread_t threads[ENGINES];
    const struct ptk_engine_limits limits = {
        .datagram_len_max = 1472, .models_cap = 1, .cache_len = PTK_CACHE_LEN_MIN};
    struct generation *current = make_generation(1);
    ptk_models_init(&models);
    (void)ptk_models_set(&models, 0, &current->model);
    for (size_t i = 0; i < ENGINES; i++) {
        void *memory =
            aligned_alloc(PTK_CACHE_LINE, ptk_align_up(ptk_engine_len(&limits), PTK_CACHE_LINE));
        CHECK(memory != NULL);
        engines[i] = ptk_engine_init(memory, &limits, &models);
        CHECK(pthread_create(&threads[i], NULL, serve, (void *)(uintptr_t)i) == 0);
    }
    for (uint64_t number = 2; number < 2 + SWAPS; number++) {
        struct generation *next = make_generation(number);
        const uint64_t epoch = ptk_models_set(&models, 0, &next->model);
        for (size_t i = 0; i < ENGINES; i++) {
            while (ptk_engine_epoch_seen(engines[i]) < epoch) {
                sched_yield();
            }
        }
        memset(current, 0xEE, sizeof *current);
        free(current);
        current = next;
    }
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    for (size_t i = 0; i < ENGINES; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(atomic_load(&answered[i]) > 0);
        free(engines[i]);
    }
    free(current);
}

int main(void)
{
    test_models_are_replaced_without_a_refusal();
    return 0;
}
