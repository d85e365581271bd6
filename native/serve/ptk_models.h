/*
 * The table of loaded models: the server's main thread publishes, engines read.
 *
 * A slot is named by `model_id` on the wire. A model is immutable from its publication until it is
 * retired; replacing one publishes a new model with a new generation. Retiring is safe when every
 * engine has seen an epoch at least as new as the one that took the model out of its slot:
 *
 *     epoch = ptk_models_set(models, id, replacement);          main thread
 *     ... every ptk_engine_epoch_seen(engine) >= epoch ...      main thread, polling
 *     ptk_tokenizer_close(old->tokenizer); unmap(old->image);   main thread
 *
 * Threads: one writer (the main thread); any number of readers; no lock.
 */
#ifndef PTK_MODELS_H
#define PTK_MODELS_H

#include <stdatomic.h>

#include "algo/ptk_tokenizer.h"
#include "gen/ptk_metrics_gen.h"
#include "gen/ptk_wire_gen.h"

/* Slots of a server. Costs a pointer each here, and a piece cache each in every engine. */
#define PTK_MODELS_CAP PTK_MODEL_SLOTS_MAX

struct ptk_model {
    const struct ptk_tokenizer *tokenizer;
    const struct ptk_image *image;
    uint64_t generation; /* unique in this process, never 0: a changed one means another model */
    uint32_t tag;        /* model_tag on the wire, never 0: the fingerprint's first four bytes */
    uint32_t name_len;
    char name[PTK_WIRE_NAME_LEN_MAX]; /* UTF-8, not terminated */
};

struct ptk_models {
    _Atomic(const struct ptk_model *) slots[PTK_MODELS_CAP]; /* NULL: no model */
    _Atomic uint64_t epoch;                                  /* counts ptk_models_set */
};

/* ptk_models_init empties the table; epoch becomes 1. */
void ptk_models_init(struct ptk_models *models);

/*
 * ptk_models_set puts `model` (NULL: none) into the slot and returns the new epoch. The table keeps
 * the pointer. Asserts id < PTK_MODELS_CAP, and tag, generation and name_len as stated above.
 */
uint64_t ptk_models_set(struct ptk_models *models, uint32_t id, const struct ptk_model *model);

#endif
