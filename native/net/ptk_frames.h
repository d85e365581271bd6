/*
 * Where every frame of one poller's packet memory is.
 *
 * A frame is in exactly one place: the free list, lent to the kernel for receiving, held by the
 * poller while it works on a packet, or lent to the kernel for sending. Each move names the place
 * it starts from; a descriptor from the kernel that names a frame which is not there is a fault and
 * moves nothing. So a frame can neither be lost nor be in two places, and the sum of the places
 * proves it.
 *
 *     free --lend_rx--> rx --return_rx--> held --lend_tx--> tx --return_tx--> free
 *     free --take-----------------------> held --give-----------------------> free
 *
 * Threads: one owner, its poller.
 */
#ifndef PTK_FRAMES_H
#define PTK_FRAMES_H

#include "base/ptk_base.h"

/* Bytes of a frame: the page size, so that aligned mode takes any MTU up to 3.5 KiB in one frame.
 */
#define PTK_FRAME_LEN   4096u
#define PTK_FRAME_SHIFT 12u

enum ptk_frame_place {
    PTK_FRAME_PLACE_FREE = 0,
    PTK_FRAME_PLACE_RX,
    PTK_FRAME_PLACE_HELD,
    PTK_FRAME_PLACE_TX,
    PTK_FRAME_PLACE_COUNT,
};

struct ptk_frames {
    uint32_t count;                         /* frames in all */
    uint32_t counts[PTK_FRAME_PLACE_COUNT]; /* frames by place */
    uint64_t faults;                        /* moves refused */
    uint32_t *free_list;                    /* stack of counts[FREE] frame numbers */
    uint8_t *places;                        /* enum ptk_frame_place of each frame */
};

/* Bytes of the free list and of the places of `count` frames. */
static inline size_t ptk_frames_list_len(uint32_t count)
{
    return (size_t)count * sizeof(uint32_t);
}
static inline size_t ptk_frames_places_len(uint32_t count)
{
    return (size_t)count * sizeof(uint8_t);
}

/* Builds the free list out of the places, so that the lowest number is taken first. */
static inline void ptk_frames_list(struct ptk_frames *frames)
{
    uint32_t free_count = 0;
    for (uint32_t i = frames->count; i-- > 0;) {
        if (frames->places[i] == PTK_FRAME_PLACE_FREE) {
            frames->free_list[free_count++] = i;
        }
    }
    PTK_ASSERT(free_count == frames->counts[PTK_FRAME_PLACE_FREE]);
}

/*
 * Lays the bookkeeping out: the free list in `list` of ptk_frames_list_len(count) bytes, the places
 * in `places` of ptk_frames_places_len(count) bytes, which are not touched: another owner may still
 * write them, and ptk_frames_inherit follows when it has stopped.
 */
static inline void ptk_frames_lay_out(struct ptk_frames *frames, void *list, void *places,
                                      uint32_t count)
{
    memset(frames, 0, sizeof *frames);
    frames->count = count;
    frames->free_list = list;
    frames->places = places;
}

/* The same, of fresh memory: every frame is free. */
static inline void ptk_frames_init(struct ptk_frames *frames, void *list, void *places,
                                   uint32_t count)
{
    ptk_frames_lay_out(frames, list, places, count);
    frames->counts[PTK_FRAME_PLACE_FREE] = count;
    memset(frames->places, PTK_FRAME_PLACE_FREE, count);
    ptk_frames_list(frames);
}

/*
 * Takes over what another owner has left in `frames->places`, between two of its loops. False, and
 * nothing usable, when a frame is in a place where it cannot be then. Cost: one pass over the
 * places.
 */
static inline bool ptk_frames_inherit(struct ptk_frames *frames)
{
    memset(frames->counts, 0, sizeof frames->counts);
    for (uint32_t i = 0; i < frames->count; i++) {
        const uint8_t place = frames->places[i];
        if (place >= PTK_FRAME_PLACE_COUNT || place == PTK_FRAME_PLACE_HELD) {
            return false;
        }
        frames->counts[place]++;
    }
    ptk_frames_list(frames);
    return true;
}

/* Moves frame `idx` from one place to another; false, and a fault, when it is not there. */
static inline bool ptk_frames_move(struct ptk_frames *frames, uint64_t idx,
                                   enum ptk_frame_place source, enum ptk_frame_place target)
{
    if (PTK_UNLIKELY(idx >= frames->count || frames->places[idx] != source)) {
        frames->faults++;
        return false;
    }
    frames->places[idx] = (uint8_t)target;
    frames->counts[source]--;
    frames->counts[target]++;
    return true;
}

/* Takes a frame off the free list into `place` (RX or HELD); false when the list is empty. */
static inline bool ptk_frames_take(struct ptk_frames *frames, enum ptk_frame_place place,
                                   uint32_t *idx)
{
    const uint32_t free_count = frames->counts[PTK_FRAME_PLACE_FREE];
    if (free_count == 0) {
        return false;
    }
    *idx = frames->free_list[free_count - 1];
    return ptk_frames_move(frames, *idx, PTK_FRAME_PLACE_FREE, place);
}

/* Puts a frame from `place` (HELD or TX) on the free list; false, and a fault, when it is not
 * there. */
static inline bool ptk_frames_give(struct ptk_frames *frames, uint64_t idx,
                                   enum ptk_frame_place place)
{
    const uint32_t free_count = frames->counts[PTK_FRAME_PLACE_FREE];
    if (!ptk_frames_move(frames, idx, place, PTK_FRAME_PLACE_FREE)) {
        return false;
    }
    frames->free_list[free_count] = (uint32_t)idx;
    return true;
}

#endif
