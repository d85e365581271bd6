/*
 * Memory that never faults: 2 MiB pages where the machine has them, locked and touched at set-up.
 *
 * A poller that meets a page fault or a TLB miss loses more time than a small request costs, so
 * packet memory, images and scratch come from here. Without huge pages the same memory is made of 4
 * KiB pages (with a request for transparent huge pages) and the caller says so: nothing falls back
 * silently.
 */
#ifndef PTK_HUGE_H
#define PTK_HUGE_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"

/* One page of hugetlbfs. 1 GiB pages must be set aside at boot and gain nothing at our sizes. */
#define PTK_HUGE_PAGE_LEN ((size_t)2 << 20)

#define PTK_NUMA_NODE_ANY (-1)

struct ptk_huge {
    uint8_t *base;            /* aligned to PTK_HUGE_PAGE_LEN; NULL when not mapped */
    size_t len;               /* a multiple of PTK_HUGE_PAGE_LEN */
    enum ptk_page_kind pages; /* what it is made of */
    bool locked;              /* cannot be swapped out */
    int fd;                   /* the file of shared memory; -1 for memory of this process alone */
};

/*
 * ptk_huge_map maps at least `len` zeroed bytes, prefers memory of NUMA node `numa_node`
 * (PTK_NUMA_NODE_ANY: no preference), touches every page and locks it. With `require_huge` a
 * machine without enough free huge pages is an error (-ENOMEM); otherwise 4 KiB pages take their
 * place and `pages` says so. A refused lock is not an error: `locked` says so. Set-up only: mmap,
 * mbind, mlock, madvise. The caller releases it with ptk_huge_unmap.
 */
int ptk_huge_map(struct ptk_huge *memory, size_t len, int numa_node, bool require_huge,
                 struct ptk_err *err);

/*
 * ptk_huge_share is ptk_huge_map of memory that another process can inherit: a file without a name
 * (`name` shows in /proc), mapped shared, whose length nobody can change any more. Also:
 * memfd_create, ftruncate, fcntl.
 */
int ptk_huge_share(struct ptk_huge *memory, const char *name, size_t len, int numa_node,
                   bool require_huge, struct ptk_err *err);

/* The same of 4 KiB pages, for a few of them for a short time: huge pages are not for that. */
int ptk_huge_share_small(struct ptk_huge *memory, const char *name, size_t len,
                         struct ptk_err *err);

/*
 * ptk_huge_inherit maps the file `fd` that another process has made with ptk_huge_share for `len`
 * bytes; what it holds is kept. -EINVAL when it is not such a file: another length, or one that can
 * change. The descriptor is the memory's from success on, and the caller's on failure.
 */
int ptk_huge_inherit(struct ptk_huge *memory, int fd, size_t len, struct ptk_err *err);

/* Makes the memory read-only for the rest of its life. Returns 0 or a negative errno. */
int ptk_huge_protect(const struct ptk_huge *memory, struct ptk_err *err);

/*
 * ptk_huge_alloc: memory of a model's tables, not zeroed, aligned to a cache line, and where it is
 * large made of transparent huge pages if the system gives them: filling 4 MiB of small pages takes
 * a thousand faults. NULL when there is none; the caller releases it with free.
 */
void *ptk_huge_alloc(size_t len);

/* Unmaps and clears `*memory`; does nothing on one that is not mapped. */
void ptk_huge_unmap(struct ptk_huge *memory);

#endif
