/* Rings and the accounting of frames. */
#include "net/ptk_frames.h"
#include "net/ptk_ring.h"

#include "ptk_test_packet.h"

#include <stdio.h>

#define LEN 8u

struct plain_ring {
    uint32_t producer;
    uint32_t consumer;
    uint32_t flags;
    uint64_t entries[LEN];
};

static struct ptk_ring ring_over(struct plain_ring *memory, uint32_t position)
{
    memory->producer = position;
    memory->consumer = position;
    return (struct ptk_ring){.position = position,
                             .other = position,
                             .len = LEN,
                             .producer = &memory->producer,
                             .consumer = &memory->consumer,
                             .flags = &memory->flags,
                             .entries = memory->entries};
}

/* What one end writes the other end reads, in order, across the wrap of the 32-bit positions. */
static void test_ring_keeps_order_across_the_wrap(void)
{
    struct plain_ring memory = {0};
    uint64_t seed = 3;
    struct ptk_ring producer = ring_over(&memory, UINT32_MAX - 100);
    struct ptk_ring consumer = ring_over(&memory, UINT32_MAX - 100);
    uint64_t written = 0;
    uint64_t read = 0;
    for (int round = 0; round < 10000; round++) {
        const uint32_t wanted = test_random_below(&seed, LEN + 1);
        const uint32_t room = ptk_ring_room(&producer, wanted);
        PTK_ASSERT(room >= LEN - (written - read) || room >= wanted);
        PTK_ASSERT(room <= LEN - (written - read));
        const uint32_t count = wanted < room ? wanted : room;
        for (uint32_t i = 0; i < count; i++) {
            *ptk_ring_address(&producer, producer.position + i) = written++;
        }
        ptk_ring_submit(&producer, count);
        PTK_ASSERT(ptk_ring_untaken(&producer) == written - read);

        const uint32_t peeked = ptk_ring_peek(&consumer, test_random_below(&seed, LEN + 1));
        for (uint32_t i = 0; i < peeked; i++) {
            PTK_ASSERT(*ptk_ring_address(&consumer, consumer.position + i) == read++);
        }
        ptk_ring_release(&consumer, peeked);
    }
    PTK_ASSERT(written > 10000);
}

/* -1, 0, +1 around full and empty. */
static void test_ring_limits(void)
{
    struct plain_ring memory = {0};
    struct ptk_ring producer = ring_over(&memory, UINT32_MAX);
    struct ptk_ring consumer = ring_over(&memory, UINT32_MAX);
    PTK_ASSERT(ptk_ring_peek(&consumer, LEN) == 0);
    PTK_ASSERT(ptk_ring_room(&producer, LEN) == LEN);
    ptk_ring_submit(&producer, LEN - 1);
    PTK_ASSERT(ptk_ring_room(&producer, LEN) == 1);
    ptk_ring_submit(&producer, 1);
    PTK_ASSERT(ptk_ring_room(&producer, 1) == 0);
    PTK_ASSERT(ptk_ring_peek(&consumer, LEN + 1) == LEN);
    ptk_ring_release(&consumer, 1);
    PTK_ASSERT(ptk_ring_room(&producer, 1) == 1);
}

static void test_wakeup_flag(void)
{
    struct plain_ring memory = {0};
    struct ptk_ring ring = ring_over(&memory, 0);
    PTK_ASSERT(!ptk_ring_needs_wakeup(&ring));
    memory.flags = XDP_RING_NEED_WAKEUP;
    PTK_ASSERT(ptk_ring_needs_wakeup(&ring));
}

/* A frame is where the moves say; a move from another place is refused and changes nothing. */
static void test_frames_are_in_one_place(void)
{
    enum { COUNT = 5 };
    uint32_t list[COUNT];
    uint8_t places[COUNT];
    struct ptk_frames frames;
    PTK_ASSERT(ptk_frames_list_len(COUNT) == sizeof list);
    PTK_ASSERT(ptk_frames_places_len(COUNT) == sizeof places);
    ptk_frames_init(&frames, list, places, COUNT);

    uint32_t frame = 99;
    for (uint32_t i = 0; i < COUNT; i++) {
        PTK_ASSERT(ptk_frames_take(&frames, PTK_FRAME_PLACE_RX, &frame));
        PTK_ASSERT(frame == i);
    }
    PTK_ASSERT(!ptk_frames_take(&frames, PTK_FRAME_PLACE_RX, &frame));
    PTK_ASSERT(frames.counts[PTK_FRAME_PLACE_RX] == COUNT);
    PTK_ASSERT(frames.faults == 0);

    PTK_ASSERT(ptk_frames_move(&frames, 2, PTK_FRAME_PLACE_RX, PTK_FRAME_PLACE_HELD));
    PTK_ASSERT(!ptk_frames_move(&frames, 2, PTK_FRAME_PLACE_RX, PTK_FRAME_PLACE_HELD)); /* twice */
    PTK_ASSERT(!ptk_frames_give(&frames, 2, PTK_FRAME_PLACE_TX));     /* not there */
    PTK_ASSERT(!ptk_frames_give(&frames, COUNT, PTK_FRAME_PLACE_TX)); /* no such frame */
    PTK_ASSERT(!ptk_frames_give(&frames, UINT64_MAX, PTK_FRAME_PLACE_HELD));
    PTK_ASSERT(frames.faults == 4);
    PTK_ASSERT(ptk_frames_move(&frames, 2, PTK_FRAME_PLACE_HELD, PTK_FRAME_PLACE_TX));
    PTK_ASSERT(ptk_frames_give(&frames, 2, PTK_FRAME_PLACE_TX));
    PTK_ASSERT(!ptk_frames_give(&frames, 2, PTK_FRAME_PLACE_TX));
    PTK_ASSERT(frames.counts[PTK_FRAME_PLACE_FREE] == 1);
    PTK_ASSERT(ptk_frames_take(&frames, PTK_FRAME_PLACE_HELD, &frame));
    PTK_ASSERT(frame == 2);
}

/* An heir finds each frame where it was left, takes the lowest free number, and refuses places in
 * which no frame can be between two loops. */
static void test_frames_are_inherited(void)
{
    enum { COUNT = 6 };
    uint32_t lists[2][COUNT];
    uint8_t places[COUNT];
    struct ptk_frames frames;
    struct ptk_frames heir;
    uint32_t frame = 0;
    ptk_frames_init(&frames, lists[0], places, COUNT);
    for (uint32_t i = 0; i < 4; i++) {
        PTK_ASSERT(
            ptk_frames_take(&frames, i < 3 ? PTK_FRAME_PLACE_RX : PTK_FRAME_PLACE_HELD, &frame));
    }
    PTK_ASSERT(ptk_frames_move(&frames, 1, PTK_FRAME_PLACE_RX, PTK_FRAME_PLACE_HELD));
    ptk_frames_lay_out(&heir, lists[1], places, COUNT);
    PTK_ASSERT(!ptk_frames_inherit(&heir)); /* Two are held. */
    PTK_ASSERT(ptk_frames_move(&frames, 1, PTK_FRAME_PLACE_HELD, PTK_FRAME_PLACE_TX));
    PTK_ASSERT(ptk_frames_give(&frames, 3, PTK_FRAME_PLACE_HELD));
    PTK_ASSERT(ptk_frames_inherit(&heir));
    PTK_ASSERT(memcmp(heir.counts, frames.counts, sizeof heir.counts) == 0);
    PTK_ASSERT(ptk_frames_take(&heir, PTK_FRAME_PLACE_RX, &frame));
    PTK_ASSERT(frame == 3);
    PTK_ASSERT(ptk_frames_give(&heir, 1, PTK_FRAME_PLACE_TX));
    places[5] = PTK_FRAME_PLACE_COUNT;
    PTK_ASSERT(!ptk_frames_inherit(&heir));
}

int main(void)
{
    test_ring_keeps_order_across_the_wrap();
    test_ring_limits();
    test_wakeup_flag();
    test_frames_are_in_one_place();
    test_frames_are_inherited();
    puts("ring: ok");
    return 0;
}
