/* Huge, locked memory with a stated fallback. */
#include "base/ptk_huge.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Sealed: a file that could shrink would raise SIGBUS in whoever has mapped it. */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

/* Address space of `size` bytes whose start is a multiple of PTK_HUGE_PAGE_LEN: more is taken, and
 * the ends are given back. NULL when there is none. */
static uint8_t *reserve(size_t size)
{
    void *raw = mmap(NULL, size + PTK_HUGE_PAGE_LEN, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) {
        return NULL;
    }
    uint8_t *const start = raw;
    uint8_t *const base = (uint8_t *)ptk_align_up((size_t)start, PTK_HUGE_PAGE_LEN);
    const size_t head = (size_t)(base - start);
    if (head > 0) {
        (void)munmap(start, head); /* Giving back a part of a fresh mapping cannot fail. */
    }
    (void)munmap(base + size, PTK_HUGE_PAGE_LEN - head);
    return base;
}

/* Maps `size` bytes at an aligned address; NULL, with errno, when they cannot be had. */
static uint8_t *map_at(size_t size, int flags, int fd)
{
    uint8_t *base = reserve(size);
    if (base == NULL) {
        return NULL;
    }
    if (mmap(base, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
        const int code = errno;
        (void)munmap(base, size); /* Our own reservation: cannot fail. */
        errno = code;
        return NULL;
    }
    return base;
}

/* Maps anonymous memory of either kind. Without MAP_NORESERVE huge pages are set aside here:
 * touching them later cannot raise SIGBUS. */
static uint8_t *map_anonymous(size_t size, bool huge)
{
    const int kind = huge ? MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) : 0;
    return map_at(size, MAP_PRIVATE | MAP_ANONYMOUS | kind, -1);
}

/* Makes a sealed file of `size` bytes and maps it; NULL, with errno, when it cannot be had. */
static uint8_t *map_file(const char *name, size_t size, bool huge, int *out)
{
    const unsigned kind = huge ? MFD_HUGETLB | (21u << MFD_HUGE_SHIFT) : 0;
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | kind);
    uint8_t *base = NULL;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0) {
        base = map_at(size, MAP_SHARED, fd);
    }
    if (base == NULL && fd >= 0) {
        const int code = errno;
        (void)close(fd);
        errno = code;
        return NULL;
    }
    *out = fd;
    return base;
}

/* A preference, not a demand: memory of another node is slower, none at all is worse. */
static void prefer_node(uint8_t *base, size_t len, int numa_node)
{
    if (numa_node < 0 || numa_node >= 64) {
        return;
    }
    const unsigned long mask = 1ul << numa_node;
    (void)syscall(SYS_mbind, base, len, MPOL_PREFERRED, &mask, 65ul, 0u);
}

static void touch(uint8_t *base, size_t len, size_t step)
{
    for (size_t off = 0; off < len; off += step) {
        ((volatile uint8_t *)base)[off] = 0;
    }
}

/* Pages of hugetlbfs are never swapped, so a refused lock changes nothing for them. */
static void lock(struct ptk_huge *memory)
{
    memory->locked =
        mlock(memory->base, memory->len) == 0 || memory->pages == PTK_PAGE_KIND_HUGE_2M;
}

enum wish {
    WISH_SMALL,
    WISH_HUGE,
    WISH_HUGE_OR_NOTHING,
};

/* Every kind of memory; `name` NULL: of this process alone. */
static int map_fresh(struct ptk_huge *memory, const char *name, size_t len, int numa_node,
                     enum wish wish, struct ptk_err *err)
{
    PTK_ASSERT(len > 0);
    memset(memory, 0, sizeof *memory);
    memory->fd = -1;
    memory->len = ptk_align_up(len, PTK_HUGE_PAGE_LEN);
    memory->pages = PTK_PAGE_KIND_HUGE_2M;
    if (wish != WISH_SMALL) {
        memory->base = name == NULL ? map_anonymous(memory->len, true)
                                    : map_file(name, memory->len, true, &memory->fd);
    }
    if (memory->base == NULL && wish == WISH_HUGE_OR_NOTHING) {
        return ptk_err_set(err, -ENOMEM,
                           "huge pages: %zu free pages of 2 MiB are needed (%s): "
                           "raise vm.nr_hugepages or leave hugepages out of --require",
                           memory->len / PTK_HUGE_PAGE_LEN, strerror(errno));
    }
    if (memory->base == NULL) {
        memory->pages = PTK_PAGE_KIND_SMALL;
        memory->base = name == NULL ? map_anonymous(memory->len, false)
                                    : map_file(name, memory->len, false, &memory->fd);
        if (memory->base == NULL) {
            return ptk_err_set(err, -ENOMEM, "memory: %zu MiB could not be mapped: %s",
                               memory->len >> 20, strerror(errno));
        }
        /* A wish: kernels without it refuse. */
        (void)madvise(memory->base, memory->len, MADV_HUGEPAGE);
    }
    prefer_node(memory->base, memory->len, numa_node);
    touch(memory->base, memory->len,
          memory->pages == PTK_PAGE_KIND_HUGE_2M ? PTK_HUGE_PAGE_LEN : 4096);
    lock(memory);
    return 0;
}

int ptk_huge_map(struct ptk_huge *memory, size_t len, int numa_node, bool require_huge,
                 struct ptk_err *err)
{
    return map_fresh(memory, NULL, len, numa_node, require_huge ? WISH_HUGE_OR_NOTHING : WISH_HUGE,
                     err);
}

int ptk_huge_share(struct ptk_huge *memory, const char *name, size_t len, int numa_node,
                   bool require_huge, struct ptk_err *err)
{
    PTK_ASSERT(name != NULL);
    return map_fresh(memory, name, len, numa_node, require_huge ? WISH_HUGE_OR_NOTHING : WISH_HUGE,
                     err);
}

int ptk_huge_share_small(struct ptk_huge *memory, const char *name, size_t len, struct ptk_err *err)
{
    PTK_ASSERT(name != NULL);
    return map_fresh(memory, name, len, PTK_NUMA_NODE_ANY, WISH_SMALL, err);
}

int ptk_huge_inherit(struct ptk_huge *memory, int fd, size_t len, struct ptk_err *err)
{
    PTK_ASSERT(len > 0);
    memset(memory, 0, sizeof *memory);
    memory->len = ptk_align_up(len, PTK_HUGE_PAGE_LEN);
    struct stat status;
    struct statfs filesystem;
    if (fstat(fd, &status) != 0 || fstatfs(fd, &filesystem) != 0 ||
        status.st_size != (off_t)memory->len || (fcntl(fd, F_GET_SEALS) & SEALS) != SEALS) {
        return ptk_err_set(err, -EINVAL,
                           "inherited memory: not a file of %zu bytes whose length is fixed",
                           memory->len);
    }
    memory->pages =
        filesystem.f_type == HUGETLBFS_MAGIC ? PTK_PAGE_KIND_HUGE_2M : PTK_PAGE_KIND_SMALL;
    memory->base = map_at(memory->len, MAP_SHARED | MAP_POPULATE, fd);
    if (memory->base == NULL) {
        const int code = -errno;
        return ptk_err_set(err, code, "inherited memory: %zu MiB could not be mapped: %s",
                           memory->len >> 20, strerror(-code));
    }
    memory->fd = fd;
    lock(memory);
    return 0;
}

int ptk_huge_protect(const struct ptk_huge *memory, struct ptk_err *err)
{
    PTK_ASSERT(memory->base != NULL);
    if (mprotect(memory->base, memory->len, PROT_READ) != 0) {
        const int code = -errno;
        return ptk_err_set(err, code, "memory: read-only protection failed: %s", strerror(-code));
    }
    return 0;
}

void ptk_huge_unmap(struct ptk_huge *memory)
{
    if (memory->base != NULL) {
        (void)munmap(memory->base, memory->len); /* Our own whole mapping: cannot fail. */
        if (memory->fd >= 0) {
            (void)close(memory->fd); /* Whoever has inherited it keeps it. */
        }
    }
    memset(memory, 0, sizeof *memory);
}

/* From this length on the last page may be half empty. */
#define LARGE_LEN PTK_HUGE_PAGE_LEN

void *ptk_huge_alloc(size_t len)
{
    if (len < LARGE_LEN) {
        return aligned_alloc(PTK_CACHE_LINE, ptk_align_up(len, PTK_CACHE_LINE));
    }
    const size_t size = ptk_align_up(len, PTK_HUGE_PAGE_LEN);
    void *memory = aligned_alloc(PTK_HUGE_PAGE_LEN, size);
    if (memory != NULL) {
        (void)madvise(memory, size, MADV_HUGEPAGE); /* refused: small pages do as well */
    }
    return memory;
}
