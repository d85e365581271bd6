/*
 * Messages in segments: the door for what clients send of them, and the headers of what they get.
 *
 *     client  request segments . pull . cancel          server  need . reply segments
 *
 * A datagram is checked completely here; what it means for a message that is under way is decided
 * by serve/ptk_bulk.h.
 */
#ifndef PTK_WIRE_SEGMENT_H
#define PTK_WIRE_SEGMENT_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"

/* Bytes of a need or pull with `words` words. */
#define PTK_WIRE_WINDOW_LEN(words)                                                                 \
    (PTK_WIRE_HEADER_LEN + sizeof(struct ptk_wire_window) + 8 * (size_t)(words))

/* Segments that a message can have: also what segment_idx can name. */
#define PTK_WIRE_SEGMENTS_MAX (PTK_WIRE_MESSAGE_LEN_MAX / PTK_WIRE_SEGMENT_LEN_MIN)

/* ptk_wire_segment_count: how many segments a message has. */
static inline uint32_t ptk_wire_segment_count(size_t message_len, size_t segment_len)
{
    return (uint32_t)((message_len + segment_len - 1) / segment_len);
}

/* What a datagram that belongs to a message in segments is. */
struct ptk_wire_segment_view {
    struct ptk_wire_header header;
    enum ptk_wire_type type; /* request, pull or cancel */
    const uint8_t *data;     /* request: the segment; pull: the words of the window */
    size_t data_len;
    uint32_t grant; /* pull */
};

/*
 * ptk_wire_is_segmented: whether a datagram is for ptk_wire_segment_parse. Everything else, other
 * versions and short datagrams included, is for ptk_wire_request_parse.
 */
static inline bool ptk_wire_is_segmented(const uint8_t *datagram, size_t len)
{
    if (len < PTK_WIRE_HEADER_LEN) {
        return false;
    }
    const uint32_t start = ptk_load_u32(datagram) & 0xFFFFFFu;
    const uint32_t ours = PTK_WIRE_MAGIC | (uint32_t)PTK_WIRE_VERSION << 20;
    if (PTK_LIKELY(start == (ours | PTK_WIRE_TYPE_REQUEST << 16))) {
        return ptk_load_u16(datagram + 18) != 0;
    }
    return start == (ours | PTK_WIRE_TYPE_PULL << 16) ||
           start == (ours | PTK_WIRE_TYPE_CANCEL << 16);
}

/*
 * ptk_wire_segment_parse verifies a datagram that ptk_wire_is_segmented. view->header is filled
 * whatever is returned: OK, or the verdict of the first thing that is wrong.
 */
enum ptk_verdict ptk_wire_segment_parse(const uint8_t *datagram, size_t len,
                                        struct ptk_wire_segment_view *view);

/*
 * ptk_wire_need_build writes the need of the message that `request` is a segment of; returns its
 * length. `window` is complete; `words` are window->words words for the segments from
 * `segment_idx` on. `need` may be the datagram it answers.
 */
size_t ptk_wire_need_build(const struct ptk_wire_header *request, uint32_t segment_idx,
                           const struct ptk_wire_window *window, const uint64_t *words,
                           uint8_t *need);

/* A reply that is sent in segments. */
struct ptk_wire_reply_parts {
    struct ptk_wire_header request;
    uint32_t model_tag;
    uint32_t message_len;
    uint32_t message_crc;
    uint32_t segment_len; /* 0: the reply is one datagram */
};

/*
 * ptk_wire_part_build writes segment `segment_idx` of a reply whose message begins at `message`;
 * returns the length of the datagram.
 */
size_t ptk_wire_part_build(const struct ptk_wire_reply_parts *parts, uint32_t segment_idx,
                           const uint8_t *message, uint8_t *datagram);

#endif
