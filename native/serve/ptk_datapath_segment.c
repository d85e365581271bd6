/* The statistics segment and the mailbox as files. */
#include "serve/ptk_datapath_segment.h"

#include "gen/ptk_wire_gen.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* Part sizes are multiples of a cache line, so no part shares a line with the next. */
static uint32_t place(uint32_t *end, size_t len)
{
    const uint32_t off = *end;
    *end = (uint32_t)ptk_align_up(off + len, PTK_CACHE_LINE);
    return off;
}

static void fill_head(struct ptk_stats_head *head, const struct ptk_segment_shape *shape)
{
    struct timespec now;
    PTK_ASSERT(clock_gettime(CLOCK_REALTIME, &now) == 0);
    uint32_t end = sizeof *head;
    head->version = PTK_STATS_VERSION;
    head->pid = (uint32_t)getpid();
    head->start_time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    head->process_count = PTK_PROCESS_COUNTER_COUNT;
    head->process_off = place(&end, PTK_PROCESS_COUNTER_COUNT * sizeof(uint64_t));
    head->worker_count = shape->worker_count;
    head->worker_off = place(&end, shape->worker_count * sizeof(struct ptk_stats_worker));
    head->queue_count = shape->queue_count;
    head->queue_off = place(&end, shape->queue_count * sizeof(struct ptk_stats_queue));
    head->steer_count = shape->steer_count;
    head->steer_off = place(&end, shape->steer_count * sizeof(uint64_t));
    head->model_count = shape->model_count;
    head->model_off = place(&end, shape->model_count * sizeof(struct ptk_stats_model));
    head->ack_off = place(&end, sizeof(struct ptk_stats_ack));
    head->worker_counter_count = PTK_WORKER_COUNTER_COUNT;
    head->worker_gauge_count = PTK_WORKER_GAUGE_COUNTER_COUNT;
    head->verdict_count = PTK_VERDICT_VALUE_COUNT;
    head->op_count = PTK_WIRE_OP_VALUE_COUNT;
    head->segment_len = end;
}

/* The name that the file has beside its final one. */
static int beside(const char *path, char temporary[4096], struct ptk_err *err)
{
    return snprintf(temporary, 4096, "%s.%d", path, getpid()) < 4096
               ? 0
               : ptk_err_set(err, -ENAMETOOLONG, "statistics segment: the path is too long");
}

/* Makes the file beside its final name, with its full length. */
static int make_file(const char *path, size_t len, bool *on_disk, struct ptk_err *err)
{
    char temporary[4096];
    if (beside(path, temporary, err) != 0) {
        return -ENAMETOOLONG;
    }
    (void)unlink(temporary); /* Of a process long gone that had our number. */
    const int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)len) != 0) {
        const int code = -errno;
        if (fd >= 0) {
            (void)unlink(temporary);
            (void)close(fd);
        }
        return ptk_err_set(err, code, "statistics segment %s: %s", path, strerror(-code));
    }
    struct statfs filesystem;
    *on_disk = fstatfs(fd, &filesystem) != 0 ||
               (filesystem.f_type != TMPFS_MAGIC && filesystem.f_type != RAMFS_MAGIC &&
                filesystem.f_type != HUGETLBFS_MAGIC);
    return fd;
}

int ptk_segment_open(struct ptk_segment *segment, const char *path,
                     const struct ptk_segment_shape *shape, struct ptk_err *err)
{
    memset(segment, 0, sizeof *segment);
    struct ptk_stats_head head;
    memset(&head, 0, sizeof head);
    fill_head(&head, shape);
    segment->len = head.segment_len;

    int fd = -1;
    if (path != NULL) {
        fd = make_file(path, segment->len, &segment->on_disk, err);
        if (fd < 0) {
            return fd;
        }
        segment->path = path;
    }
    const int flags = path != NULL ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    void *base = mmap(NULL, segment->len, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, 0);
    const int code = -errno;
    if (fd >= 0) {
        (void)close(fd); /* The mapping keeps the file. */
    }
    if (base == MAP_FAILED) {
        return ptk_err_set(err, code, "statistics segment: cannot be mapped: %s", strerror(-code));
    }
    segment->base = base;
    memcpy(base, &head, sizeof head);
    segment->head = base;
    segment->process = (void *)(segment->base + head.process_off);
    segment->workers = (void *)(segment->base + head.worker_off);
    segment->queues = (void *)(segment->base + head.queue_off);
    segment->steer = (void *)(segment->base + head.steer_off);
    segment->models = (void *)(segment->base + head.model_off);
    segment->ack = (void *)(segment->base + head.ack_off);
    return 0;
}

int ptk_segment_publish(struct ptk_segment *segment, struct ptk_err *err)
{
    uint64_t magic;
    memcpy(&magic, PTK_STATS_MAGIC, sizeof magic);
    __atomic_store_n((uint64_t *)(void *)segment->head->magic, magic, __ATOMIC_RELEASE);
    if (segment->path == NULL) {
        return 0;
    }
    char temporary[4096];
    int code = beside(segment->path, temporary, err);
    if (code == 0 && rename(temporary, segment->path) != 0) {
        code =
            ptk_err_set(err, -errno, "statistics segment %s: %s", segment->path, strerror(errno));
    }
    segment->path = code == 0 ? NULL : segment->path;
    return code;
}

void ptk_segment_close(struct ptk_segment *segment)
{
    char temporary[4096];
    if (segment->path != NULL && beside(segment->path, temporary, NULL) == 0) {
        (void)unlink(temporary); /* It may not have come to that. */
    }
    if (segment->base != NULL) {
        (void)munmap(segment->base, segment->len); /* Our own whole mapping: cannot fail. */
    }
    memset(segment, 0, sizeof *segment);
}

int ptk_mailbox_open(const struct ptk_mailbox **mailbox, const char *path, struct ptk_err *err)
{
    *mailbox = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) {
        const int code = -errno;
        if (fd >= 0) {
            (void)close(fd);
        }
        return ptk_err_set(err, code, "mailbox %s: %s", path, strerror(-code));
    }
    if (status.st_size < (off_t)sizeof **mailbox) {
        (void)close(fd);
        return ptk_err_set(err, -EINVAL, "mailbox %s: %lld bytes are too few for a mailbox", path,
                           (long long)status.st_size);
    }
    void *base = mmap(NULL, sizeof **mailbox, PROT_READ, MAP_SHARED, fd, 0);
    const int code = -errno;
    (void)close(fd); /* The mapping keeps the file. */
    if (base == MAP_FAILED) {
        return ptk_err_set(err, code, "mailbox %s: cannot be mapped: %s", path, strerror(-code));
    }
    const struct ptk_mailbox *mapped = base;
    if (memcmp(mapped->magic, PTK_MAILBOX_MAGIC, sizeof mapped->magic) != 0 ||
        mapped->version != PTK_STATS_VERSION) {
        ptk_mailbox_close(mapped);
        return ptk_err_set(err, -EINVAL, "mailbox %s: not a mailbox of version %u", path,
                           PTK_STATS_VERSION);
    }
    *mailbox = mapped;
    return 0;
}

void ptk_mailbox_close(const struct ptk_mailbox *mailbox)
{
    if (mailbox != NULL) {
        (void)munmap((void *)(uintptr_t)mailbox, sizeof *mailbox); /* Ours: cannot fail. */
    }
}

bool ptk_mailbox_take(const struct ptk_mailbox *mailbox, uint64_t answered,
                      struct ptk_mailbox *command)
{
    const uint64_t sequence = __atomic_load_n(&mailbox->sequence, __ATOMIC_ACQUIRE);
    if (sequence == answered) {
        return false;
    }
    memcpy(command, mailbox, sizeof *command);
    command->sequence = sequence;
    command->name[sizeof command->name - 1] = '\0';
    command->path[sizeof command->path - 1] = '\0';
    return true;
}
