/*
 * The door for requests: untrusted bytes of one datagram to a verified view.
 *
 *     ptk_wire_request_parse   header, extensions, lengths, checksum, operation
 *     ptk_wire_batch_parse     message of encode, count, decode and decode_step: prelude, tables,
 *                              padding
 *
 * What a view says was checked completely; nobody checks it again. Views point into the datagram.
 */
#ifndef PTK_WIRE_REQUEST_H
#define PTK_WIRE_REQUEST_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"

/* A request whose whole message is in this datagram. */
struct ptk_wire_request_view {
    struct ptk_wire_header header;
    const uint8_t *message;
    size_t message_len;
};

/*
 * ptk_wire_request_parse verifies everything but the message itself. Returns
 *   OK           the view is complete; its operation is one that a datagram without state can carry
 *   a refusal    view->header is filled; *answer says whether the protocol answers this at all
 *   BAD_MAGIC    nothing is filled, *answer is false
 */
enum ptk_verdict ptk_wire_request_parse(const uint8_t *datagram, size_t len,
                                        struct ptk_wire_request_view *view, bool *answer);

/* The message of encode, count, decode or decode_step. */
struct ptk_wire_batch_view {
    struct ptk_wire_request prelude;
    struct ptk_wire_truncation truncation; /* meaningful with option truncation */
    const uint8_t *lengths;                /* u32 a text or id list, or wire_steps; unaligned */
    const uint8_t *range_counts;           /* u32 an item, unaligned; with ranges alone */
    const uint8_t *ranges;                 /* wire_ranges of all items, unaligned; NULL: none */
    const uint8_t *data;                   /* the texts, or the ids in prelude.id_format */
    size_t data_len;                       /* without padding */
    size_t lens_count;                     /* item_count, twice that with option pair */
    bool steps;                            /* the item table has wire_steps */
};

/*
 * ptk_wire_batch_parse verifies the message of a view whose op is encode, count, decode or
 * decode_step. Returns OK or the verdict of the first field that is wrong. It does not look into
 * the texts, and it leaves it to the caller whether the model can use id_format.
 */
enum ptk_verdict ptk_wire_batch_parse(const struct ptk_wire_request_view *request,
                                      struct ptk_wire_batch_view *batch);

/* ptk_wire_batch_len_at: entry `idx` of the item table. */
static inline uint32_t ptk_wire_batch_len_at(const struct ptk_wire_batch_view *batch, size_t idx)
{
    PTK_DCHECK(idx < batch->lens_count);
    PTK_DCHECK(!batch->steps);
    return ptk_load_u32(batch->lengths + 4 * idx);
}

/* ptk_wire_batch_step_at: the same of a decode_step. */
static inline struct ptk_wire_step ptk_wire_batch_step_at(const struct ptk_wire_batch_view *batch,
                                                          size_t idx)
{
    struct ptk_wire_step step;
    PTK_DCHECK(idx < batch->lens_count);
    PTK_DCHECK(batch->steps);
    memcpy(&step, batch->lengths + sizeof step * idx, sizeof step);
    return step;
}

/* ptk_wire_batch_range_count_at: how many of the ranges belong to item `idx`. */
static inline uint32_t ptk_wire_batch_range_count_at(const struct ptk_wire_batch_view *batch,
                                                     size_t idx)
{
    PTK_DCHECK(idx < batch->prelude.item_count);
    return ptk_load_u32(batch->range_counts + 4 * idx);
}

/* ptk_wire_is_zero: whether `len` bytes are all zero. */
bool ptk_wire_is_zero(const uint8_t *bytes, size_t len);

#endif
