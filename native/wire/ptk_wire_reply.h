/*
 * Builds replies: refusals, and the frame around the messages of answers.
 *
 * The header of the request is given by value, so that a reply may be built over its request.
 */
#ifndef PTK_WIRE_REPLY_H
#define PTK_WIRE_REPLY_H

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"
#include "wire/ptk_wire_ids.h"

/*
 * ptk_wire_refusal_build writes a reply of one header; returns its length. `model_tag` is 0 where
 * no model is known.
 */
size_t ptk_wire_refusal_build(const struct ptk_wire_header *request, enum ptk_verdict verdict,
                              uint32_t model_tag, uint8_t *reply);

/*
 * ptk_wire_answer_build writes the header before a message of `message_len` bytes that stands
 * complete at reply + WIRE_HEADER_LEN; returns the length of the reply. It carries a checksum if
 * the request did.
 */
size_t ptk_wire_answer_build(const struct ptk_wire_header *request, uint32_t model_tag,
                             size_t message_len, uint8_t *reply);

/* Where the parts of an encode reply stand, as offsets into the message. */
struct ptk_wire_encode_layout {
    size_t ids_off;
    size_t offsets_off; /* also where the ids' padding ends */
    size_t type_ids_off;
    size_t special_tokens_mask_off;
    size_t message_len;
};

/* ptk_wire_items_len: bytes of prelude and item table, where ids or texts begin. */
static inline size_t ptk_wire_items_len(size_t item_count)
{
    return sizeof(struct ptk_wire_reply) + item_count * sizeof(struct ptk_wire_item);
}

/* ptk_wire_offset_len: bytes of the offsets of one id; 0 when there are none. */
static inline size_t ptk_wire_offset_len(uint32_t outputs)
{
    if ((outputs & PTK_WIRE_OUTPUTS_OFFSETS) == 0) {
        return 0;
    }
    return (outputs & PTK_WIRE_OUTPUTS_OFFSETS_SHORT) != 0 ? 4 : 8;
}

/* ptk_wire_windows_len: the same with the lengths of windows behind the item table. */
static inline size_t ptk_wire_windows_len(size_t item_count, size_t window_count)
{
    return ptk_wire_items_len(item_count) + ptk_align_up(4 * window_count, 8);
}

/* ptk_wire_steps_len: the same with the states of steps behind the item table. */
static inline size_t ptk_wire_steps_len(size_t item_count)
{
    return ptk_wire_items_len(item_count) +
           ptk_align_up(item_count * sizeof(struct ptk_wire_step_state), 8);
}

/*
 * ptk_wire_encode_layout places the arrays of `ids_count` ids in a format with fixed width behind
 * tables of `tables_len` bytes, the prelude included.
 */
struct ptk_wire_encode_layout ptk_wire_encode_layout(size_t tables_len, size_t ids_count,
                                                     uint32_t id_format, uint32_t outputs);

/*
 * ptk_wire_encode_cap: the most ids whose encode reply has a message of at most `message_cap`
 * bytes. message_cap holds at least the tables.
 */
size_t ptk_wire_encode_cap(size_t tables_len, size_t message_cap, uint32_t id_format,
                           uint32_t outputs);

#endif
