/*
 * One of the four rings that an AF_XDP socket shares with the kernel, as a plain struct of
 * pointers.
 *
 *     fill        producer: us      entries: uint64_t          frames lent for receiving
 *     rx          consumer: us      entries: struct xdp_desc   packets received
 *     tx          producer: us      entries: struct xdp_desc   packets to send
 *     completion  consumer: us      entries: uint64_t          frames that were sent
 *
 * The memory behind the pointers is the kernel's in service and ordinary memory in the ring
 * simulation: nothing here knows the difference. Positions are 32-bit counters that wrap; the
 * length is a power of two. Each ring is used by one thread of ours; the other end is the kernel.
 *
 * Producer: ptk_ring_room, write entries at ptk_ring_*(ring, ring->position + i), ptk_ring_submit.
 * Consumer: ptk_ring_peek, read entries at ptk_ring_*(ring, ring->position + i), ptk_ring_release.
 */
#ifndef PTK_RING_H
#define PTK_RING_H

#include "base/ptk_base.h"

#include <linux/if_xdp.h>

struct ptk_ring {
    uint32_t position;  /* ours: where we write (producer) or read (consumer) next */
    uint32_t other;     /* last known position of the other end */
    uint32_t len;       /* entries, a power of two */
    uint32_t *producer; /* shared; written by the producing end */
    uint32_t *consumer; /* shared; written by the consuming end */
    uint32_t *flags;    /* shared; written by the kernel: XDP_RING_NEED_WAKEUP */
    void *entries;      /* shared; `len` entries */
};

static inline uint64_t *ptk_ring_address(const struct ptk_ring *ring, uint32_t position)
{
    return (uint64_t *)ring->entries + (position & (ring->len - 1));
}

static inline struct xdp_desc *ptk_ring_descriptor(const struct ptk_ring *ring, uint32_t position)
{
    return (struct xdp_desc *)ring->entries + (position & (ring->len - 1));
}

/* Producer: free entries. Looks at the shared position only when fewer than `wanted` are known. */
static inline uint32_t ptk_ring_room(struct ptk_ring *ring, uint32_t wanted)
{
    uint32_t room = ring->len - (ring->position - ring->other);
    if (room < wanted) {
        ring->other = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
        room = ring->len - (ring->position - ring->other);
    }
    PTK_DCHECK(room <= ring->len);
    return room;
}

/* Producer: makes the next `count` entries, already written, visible to the kernel. */
static inline void ptk_ring_submit(struct ptk_ring *ring, uint32_t count)
{
    ring->position += count;
    __atomic_store_n(ring->producer, ring->position, __ATOMIC_RELEASE);
}

/* Producer: entries that the kernel has not taken yet. */
static inline uint32_t ptk_ring_untaken(struct ptk_ring *ring)
{
    ring->other = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
    return ring->position - ring->other;
}

/* Consumer: entries that can be read, at most `wanted`. Looks at the shared position only when none
 * is known. */
static inline uint32_t ptk_ring_peek(struct ptk_ring *ring, uint32_t wanted)
{
    uint32_t count = ring->other - ring->position;
    if (count == 0) {
        ring->other = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
        count = ring->other - ring->position;
    }
    PTK_DCHECK(count <= ring->len);
    return count < wanted ? count : wanted;
}

/* Consumer: gives the first `count` peeked entries back to the kernel. */
static inline void ptk_ring_release(struct ptk_ring *ring, uint32_t count)
{
    ring->position += count;
    __atomic_store_n(ring->consumer, ring->position, __ATOMIC_RELEASE);
}

/*
 * Takes our end over from another owner, who has stopped between two of its loops: what it has not
 * submitted or released was not done. False when the shared positions cannot be a ring's.
 */
static inline bool ptk_ring_inherit_producer(struct ptk_ring *ring)
{
    ring->position = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
    ring->other = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
    return ring->position - ring->other <= ring->len;
}
static inline bool ptk_ring_inherit_consumer(struct ptk_ring *ring)
{
    ring->position = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
    ring->other = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
    return ring->other - ring->position <= ring->len;
}

static inline bool ptk_ring_needs_wakeup(const struct ptk_ring *ring)
{
    return (__atomic_load_n(ring->flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP) != 0;
}

#endif
