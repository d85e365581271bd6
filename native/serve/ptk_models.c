/* The table of loaded models. */
#include "serve/ptk_models.h"

void ptk_models_init(struct ptk_models *models)
{
    for (size_t id = 0; id < PTK_MODELS_CAP; id++) {
        atomic_init(&models->slots[id], NULL);
    }
    atomic_init(&models->epoch, 1);
}

uint64_t ptk_models_set(struct ptk_models *models, uint32_t id, const struct ptk_model *model)
{
    PTK_ASSERT(id < PTK_MODELS_CAP);
    if (model != NULL) {
        PTK_ASSERT(model->tokenizer != NULL);
        PTK_ASSERT(model->image != NULL);
        PTK_ASSERT(model->generation != 0);
        PTK_ASSERT(model->tag != PTK_WIRE_ANY_MODEL_TAG);
        PTK_ASSERT(model->name_len <= PTK_WIRE_NAME_LEN_MAX);
    }
    /* The slot first: an engine that sees the new epoch sees what it counts. */
    atomic_store_explicit(&models->slots[id], model, memory_order_release);
    return atomic_fetch_add_explicit(&models->epoch, 1, memory_order_release) + 1;
}
