/* Huge, locked memory with a stated fallback. */
#include "base/ptk_huge.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* mmap of 4 KiB pages whose address is a multiple of PTK_HUGE_PAGE_LEN: map more, give back the
 * ends. */
static uint8_t *map_small(size_t len)
{
    const size_t span = len + PTK_HUGE_PAGE_LEN;
    void *raw = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
        return NULL;
    }
    uint8_t *const start = raw;
    uint8_t *const base = (uint8_t *)ptk_align_up((size_t)start, PTK_HUGE_PAGE_LEN);
    const size_t head = (size_t)(base - start);
    if (head > 0) {
        (void)munmap(start, head); /* Giving back a part of a fresh mapping cannot fail. */
    }
    (void)munmap(base + len, PTK_HUGE_PAGE_LEN - head);
    (void)madvise(base, len, MADV_HUGEPAGE); /* A wish: kernels without it refuse. */
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

int ptk_huge_map(struct ptk_huge *memory, size_t len, int numa_node, bool require_huge,
                 struct ptk_err *err)
{
    PTK_ASSERT(len > 0);
    memset(memory, 0, sizeof *memory);
    const size_t size = ptk_align_up(len, PTK_HUGE_PAGE_LEN);

    /* Without MAP_NORESERVE the pages are set aside here: touching them later cannot raise SIGBUS.
     */
    void *huge = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
    if (huge != MAP_FAILED) {
        memory->base = huge;
        memory->pages = PTK_PAGE_KIND_HUGE_2M;
    } else if (require_huge) {
        return ptk_err_set(err, -ENOMEM,
                           "huge pages: %zu free pages of 2 MiB are needed (%s): "
                           "raise vm.nr_hugepages or leave hugepages out of --require",
                           size / PTK_HUGE_PAGE_LEN, strerror(errno));
    } else {
        memory->base = map_small(size);
        memory->pages = PTK_PAGE_KIND_SMALL;
        if (memory->base == NULL) {
            return ptk_err_set(err, -ENOMEM, "memory: %zu MiB could not be mapped: %s", size >> 20,
                               strerror(errno));
        }
    }
    memory->len = size;
    prefer_node(memory->base, size, numa_node);
    touch(memory->base, size, memory->pages == PTK_PAGE_KIND_HUGE_2M ? PTK_HUGE_PAGE_LEN : 4096);
    /* Pages of hugetlbfs are never swapped, so a refused lock changes nothing for them. */
    memory->locked = mlock(memory->base, size) == 0 || memory->pages == PTK_PAGE_KIND_HUGE_2M;
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
    }
    memset(memory, 0, sizeof *memory);
}
