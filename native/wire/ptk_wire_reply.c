/* Headers of replies and the layout of the encode reply. */
#include "wire/ptk_wire_reply.h"

#include "wire/ptk_crc32c.h"

static struct ptk_wire_header reply_header(const struct ptk_wire_header *request,
                                           enum ptk_verdict verdict, uint32_t model_tag)
{
    return (struct ptk_wire_header){
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY,
        .request_id = request->request_id,
        .model_id = request->model_id,
        .op = request->op,
        .verdict = (uint8_t)verdict,
        .model_tag = model_tag,
    };
}

size_t ptk_wire_refusal_build(const struct ptk_wire_header *request, enum ptk_verdict verdict,
                              uint32_t model_tag, uint8_t *reply)
{
    PTK_ASSERT(verdict != PTK_VERDICT_OK);
    const struct ptk_wire_header header = reply_header(request, verdict, model_tag);
    memcpy(reply, &header, sizeof header);
    return sizeof header;
}

size_t ptk_wire_answer_build(const struct ptk_wire_header *request, uint32_t model_tag,
                             size_t message_len, uint8_t *reply)
{
    PTK_ASSERT(message_len <= PTK_WIRE_MESSAGE_LEN_MAX);
    struct ptk_wire_header header = reply_header(request, PTK_VERDICT_OK, model_tag);
    header.message_len = (uint32_t)message_len;
    if ((request->flags & PTK_WIRE_FLAGS_CRC) != 0) {
        header.flags = PTK_WIRE_FLAGS_CRC;
        header.message_crc = ptk_crc32c(reply + sizeof header, message_len);
    }
    memcpy(reply, &header, sizeof header);
    return sizeof header + message_len;
}

struct ptk_wire_encode_layout ptk_wire_encode_layout(size_t tables_len, size_t ids_count,
                                                     uint32_t id_format, uint32_t outputs)
{
    const size_t bytes_len = ptk_align_up(ids_count, 8);
    struct ptk_wire_encode_layout layout = {.ids_off = tables_len};
    size_t off = layout.ids_off + ptk_align_up(ids_count * ptk_wire_id_len(id_format), 8);
    layout.offsets_off = off;
    off += ptk_align_up(ids_count * ptk_wire_offset_len(outputs), 8);
    layout.type_ids_off = off;
    off += (outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0 ? bytes_len : 0;
    layout.special_tokens_mask_off = off;
    off += (outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0 ? bytes_len : 0;
    layout.message_len = off;
    return layout;
}

size_t ptk_wire_encode_cap(size_t tables_len, size_t message_cap, uint32_t id_format,
                           uint32_t outputs)
{
    PTK_ASSERT(message_cap >= tables_len);
    const size_t room = message_cap - tables_len;
    const size_t id_len = ptk_wire_id_len(id_format) + ptk_wire_offset_len(outputs) +
                          ((outputs & PTK_WIRE_OUTPUTS_TYPE_IDS) != 0 ? 1u : 0u) +
                          ((outputs & PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK) != 0 ? 1u : 0u);
    /* Each of at most four arrays has less than 8 bytes of padding: this ends after a few steps.
     */
    size_t cap = room / id_len;
    while (ptk_wire_encode_layout(tables_len, cap, id_format, outputs).message_len > message_cap) {
        cap--;
    }
    return cap;
}
