/*
 * The models of a running server: loading images into locked memory, putting them into the table
 * that engines read, and freeing them once no engine can still be using them.
 *
 * Threads: the main thread only. Engines see nothing of this but `ptk_models`.
 */
#ifndef PTK_SERVER_MODELS_H
#define PTK_SERVER_MODELS_H

#include "base/ptk_huge.h"
#include "gen/ptk_metrics_gen.h"
#include "serve/ptk_engine.h"
#include "serve/ptk_models.h"

/* Models taken out of their slot and not freed yet. More than ever wait: one is freed within a loop
 * of each worker, about 10 ms. */
#define PTK_SERVER_RETIRED_CAP 16u

struct ptk_server_model; /* an image, its memory and its tokenizer */

struct ptk_server_models {
    struct ptk_models table;
    uint32_t slot_count;
    int numa_node;
    bool require_huge;
    uint64_t generation; /* of the last model loaded */
    size_t image_len;    /* bytes of all images in slots */
    struct ptk_server_model *slots[PTK_MODELS_CAP];
    struct {
        struct ptk_server_model *model;
        uint64_t epoch;
    } retired[PTK_SERVER_RETIRED_CAP];
    uint32_t retired_count;
    struct ptk_stats_model *stats; /* in the segment; NULL until ptk_server_models_publish */
};

/* slot_count is 1 to PTK_MODELS_CAP. */
void ptk_server_models_init(struct ptk_server_models *models, uint32_t slot_count, int numa_node,
                            bool require_huge);

/*
 * ptk_server_models_load opens the image file at `path`, copies it into huge, locked, read-only
 * memory, verifies it there, and puts it into `slot`, in the place of what was there. -EBUSY when
 * too many replaced models still wait to be freed.
 */
int ptk_server_models_load(struct ptk_server_models *models, uint32_t slot, const char *name,
                           const char *path, struct ptk_err *err);

/* Empties the slot. -ENOENT when it is empty. */
int ptk_server_models_unload(struct ptk_server_models *models, uint32_t slot, struct ptk_err *err);

/* Frees what was replaced before every engine's last look at the table. Housekeeping. */
void ptk_server_models_reap(struct ptk_server_models *models,
                            const struct ptk_engine *const *engines, size_t engine_count);

/* From now on the slots are shown at `stats`, slot_count entries. */
void ptk_server_models_publish(struct ptk_server_models *models, struct ptk_stats_model *stats);

/* The lesser kind of memory that an image in a slot has; NONE without images. And: are all locked?
 */
enum ptk_page_kind ptk_server_models_pages(const struct ptk_server_models *models);
bool ptk_server_models_locked(const struct ptk_server_models *models);

/* Frees everything. No engine runs any more. */
void ptk_server_models_fini(struct ptk_server_models *models);

#endif
