/* Loading, replacing and freeing models. */
#include "serve/ptk_server_models.h"

#include "base/ptk_stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct ptk_server_model {
    struct ptk_huge memory;
    struct ptk_image image; /* a view into memory */
    struct ptk_tokenizer *tokenizer;
    struct ptk_model model;
};

void ptk_server_models_init(struct ptk_server_models *models, uint32_t slot_count, int numa_node,
                            bool require_huge)
{
    PTK_ASSERT(slot_count >= 1);
    PTK_ASSERT(slot_count <= PTK_MODELS_CAP);
    memset(models, 0, sizeof *models);
    ptk_models_init(&models->table);
    models->slot_count = slot_count;
    models->numa_node = numa_node;
    models->require_huge = require_huge;
}

static void model_free(struct ptk_server_model *model)
{
    if (model == NULL) {
        return;
    }
    ptk_tokenizer_close(model->tokenizer);
    ptk_huge_unmap(&model->memory);
    free(model);
}

static int read_all(int fd, uint8_t *dst, size_t len)
{
    for (size_t off = 0; off < len;) {
        const ssize_t count = read(fd, dst + off, len - off);
        if (count == 0) {
            return -EIO; /* Shorter than it was a moment ago. */
        }
        if (count < 0 && errno != EINTR) {
            return -errno;
        }
        off += count > 0 ? (size_t)count : 0;
    }
    return 0;
}

/* Reads the file into memory of its own. */
static int read_image(struct ptk_server_model *model, const struct ptk_server_models *models,
                      const char *path, struct ptk_err *err)
{
    struct stat status;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) {
        const int code = -errno;
        if (fd >= 0) {
            (void)close(fd);
        }
        return ptk_err_set(err, code, "image %s: %s", path, strerror(-code));
    }
    int code = 0;
    if (!S_ISREG(status.st_mode) || status.st_size <= 0 || status.st_size > PTK_IMAGE_LEN_MAX) {
        code = ptk_err_set(err, -EINVAL, "image %s: not a file of 1 byte to %u MiB", path,
                           PTK_IMAGE_LEN_MAX >> 20);
    }
    const size_t len = (size_t)status.st_size;
    if (code == 0) {
        code = ptk_huge_map(&model->memory, len, models->numa_node, models->require_huge, err);
    }
    if (code == 0) {
        code = read_all(fd, model->memory.base, len);
        if (code != 0) {
            code = ptk_err_set(err, code, "image %s: cannot be read: %s", path, strerror(-code));
        }
    }
    (void)close(fd); /* Nothing was written. */
    if (code != 0) {
        return code;
    }
    struct ptk_err cause;
    code = ptk_image_view(model->memory.base, len, &model->image, &cause);
    if (code != 0) {
        return ptk_err_set(err, code, "image %s: %.400s", path, cause.text);
    }
    return ptk_huge_protect(&model->memory, err);
}

static int model_load(struct ptk_server_model **out, struct ptk_server_models *models,
                      const char *name, const char *path, struct ptk_err *err)
{
    *out = NULL;
    const size_t name_len = strlen(name);
    if (name_len == 0 || name_len > PTK_WIRE_NAME_LEN_MAX) {
        return ptk_err_set(err, -EINVAL, "model name \"%.200s\": must have 1 to %u bytes", name,
                           PTK_WIRE_NAME_LEN_MAX);
    }
    struct ptk_server_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return ptk_err_set(err, -ENOMEM, "image %s: no memory", path);
    }
    int code = read_image(model, models, path, err);
    if (code == 0) {
        struct ptk_err cause;
        code = ptk_tokenizer_open(&model->image, &model->tokenizer, &cause);
        if (code != 0) {
            model->tokenizer = NULL;
            (void)ptk_err_set(err, code, "image %s: %.400s", path, cause.text);
        }
    }
    if (code != 0) {
        model_free(model);
        return code;
    }
    model->model.tokenizer = model->tokenizer;
    model->model.image = &model->image;
    model->model.generation = ++models->generation;
    model->model.tag = model->image.header->tag;
    model->model.name_len = (uint32_t)name_len;
    memcpy(model->model.name, name, name_len);
    *out = model;
    return 0;
}

/* Shows the slot in the segment; the generation is odd while the rest changes. */
static void show(struct ptk_server_models *models, uint32_t slot)
{
    if (models->stats == NULL) {
        return;
    }
    struct ptk_stats_model *stats = &models->stats[slot];
    const struct ptk_server_model *model = models->slots[slot];
    const uint64_t stable = 2 * models->generation;
    /* An exchange, since no later store may be seen before this one. */
    (void)__atomic_exchange_n(&stats->generation, stable + 1, __ATOMIC_ACQ_REL);
    memset(stats->name, 0, sizeof stats->name);
    memset(stats->fingerprint, 0, sizeof stats->fingerprint);
    stats->image_len = 0;
    stats->model_tag = 0;
    stats->pages = PTK_PAGE_KIND_NONE;
    stats->locked = 0;
    if (model != NULL) {
        memcpy(stats->name, model->model.name, model->model.name_len);
        memcpy(stats->fingerprint, model->image.header->fingerprint, sizeof stats->fingerprint);
        stats->image_len = model->image.len;
        stats->model_tag = model->model.tag;
        stats->pages = (uint32_t)model->memory.pages;
        stats->locked = model->memory.locked;
    }
    __atomic_store_n(&stats->generation, stable, __ATOMIC_RELEASE);
}

static void put(struct ptk_server_models *models, uint32_t slot, struct ptk_server_model *model)
{
    struct ptk_server_model *old = models->slots[slot];
    const uint64_t epoch =
        ptk_models_set(&models->table, slot, model != NULL ? &model->model : NULL);
    models->slots[slot] = model;
    models->image_len += model != NULL ? model->image.len : 0;
    if (old != NULL) {
        models->image_len -= old->image.len;
        PTK_ASSERT(models->retired_count < PTK_SERVER_RETIRED_CAP);
        models->retired[models->retired_count].model = old;
        models->retired[models->retired_count].epoch = epoch;
        models->retired_count++;
    }
    show(models, slot);
}

static int verify_slot(const struct ptk_server_models *models, uint32_t slot, struct ptk_err *err)
{
    if (slot >= models->slot_count) {
        return ptk_err_set(err, -EINVAL, "model slot %u: this server has slots 0 to %u", slot,
                           models->slot_count - 1);
    }
    if (models->retired_count == PTK_SERVER_RETIRED_CAP) {
        return ptk_err_set(err, -EBUSY,
                           "model slot %u: %u replaced models are not free yet; try again", slot,
                           models->retired_count);
    }
    return 0;
}

int ptk_server_models_load(struct ptk_server_models *models, uint32_t slot, const char *name,
                           const char *path, struct ptk_err *err)
{
    int code = verify_slot(models, slot, err);
    if (code != 0) {
        return code;
    }
    struct ptk_server_model *model = NULL;
    code = model_load(&model, models, name, path, err);
    if (code == 0) {
        put(models, slot, model);
    }
    return code;
}

int ptk_server_models_unload(struct ptk_server_models *models, uint32_t slot, struct ptk_err *err)
{
    const int code = verify_slot(models, slot, err);
    if (code != 0) {
        return code;
    }
    if (models->slots[slot] == NULL) {
        return ptk_err_set(err, -ENOENT, "model slot %u: is empty", slot);
    }
    models->generation++; /* The slot's change is seen even though no model has this number. */
    put(models, slot, NULL);
    return 0;
}

void ptk_server_models_reap(struct ptk_server_models *models,
                            const struct ptk_engine *const *engines, size_t engine_count)
{
    if (models->retired_count == 0) {
        return;
    }
    uint64_t seen_by_all = UINT64_MAX;
    for (size_t i = 0; i < engine_count; i++) {
        const uint64_t seen = ptk_engine_epoch_seen(engines[i]);
        seen_by_all = seen < seen_by_all ? seen : seen_by_all;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < models->retired_count; i++) {
        if (models->retired[i].epoch <= seen_by_all) {
            model_free(models->retired[i].model);
        } else {
            models->retired[kept++] = models->retired[i];
        }
    }
    models->retired_count = kept;
}

void ptk_server_models_publish(struct ptk_server_models *models, struct ptk_stats_model *stats)
{
    models->stats = stats;
    for (uint32_t slot = 0; slot < models->slot_count; slot++) {
        if (models->slots[slot] != NULL) {
            show(models, slot);
        }
    }
}

enum ptk_page_kind ptk_server_models_pages(const struct ptk_server_models *models)
{
    enum ptk_page_kind pages = PTK_PAGE_KIND_NONE;
    for (uint32_t slot = 0; slot < models->slot_count; slot++) {
        if (models->slots[slot] != NULL && pages != PTK_PAGE_KIND_SMALL) {
            pages = models->slots[slot]->memory.pages;
        }
    }
    return pages;
}

bool ptk_server_models_locked(const struct ptk_server_models *models)
{
    for (uint32_t slot = 0; slot < models->slot_count; slot++) {
        if (models->slots[slot] != NULL && !models->slots[slot]->memory.locked) {
            return false;
        }
    }
    return true;
}

void ptk_server_models_fini(struct ptk_server_models *models)
{
    for (uint32_t slot = 0; slot < models->slot_count; slot++) {
        model_free(models->slots[slot]);
    }
    for (uint32_t i = 0; i < models->retired_count; i++) {
        model_free(models->retired[i].model);
    }
    memset(models, 0, sizeof *models);
}
