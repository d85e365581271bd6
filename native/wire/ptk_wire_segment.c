/* Checks in the order that native/gen/WIRE.md promises. */
#include "wire/ptk_wire_segment.h"

#include "wire/ptk_wire_extensions.h"
#include "wire/ptk_wire_request.h"

_Static_assert(PTK_WIRE_SEGMENTS_MAX <= UINT16_MAX + 1, "segment_idx names every segment");

static enum ptk_verdict check_request(struct ptk_wire_segment_view *view, size_t rest_len)
{
    const struct ptk_wire_header *header = &view->header;
    if ((header->flags & PTK_WIRE_FLAGS_CRC) == 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (header->message_len == 0 || header->message_len > PTK_WIRE_MESSAGE_LEN_MAX ||
        header->segment_len < PTK_WIRE_SEGMENT_LEN_MIN || header->segment_len % 8 != 0) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    const uint32_t count = ptk_wire_segment_count(header->message_len, header->segment_len);
    if (header->segment_idx >= count) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    const size_t off = (size_t)header->segment_idx * header->segment_len;
    if (rest_len != ptk_min_size(header->segment_len, header->message_len - off)) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    switch (header->op) {
    case PTK_WIRE_OP_ENCODE:
    case PTK_WIRE_OP_DECODE:
    case PTK_WIRE_OP_COUNT:
    case PTK_WIRE_OP_DECODE_STEP:
        return PTK_VERDICT_OK;
    case PTK_WIRE_OP_PING:
    case PTK_WIRE_OP_INFO:
    case PTK_WIRE_OP_SETTINGS:
        return PTK_VERDICT_BAD_OPTION;
    default:
        return header->op < PTK_WIRE_OP_VALUE_COUNT && header->op != 0 ? PTK_VERDICT_UNSUPPORTED
                                                                       : PTK_VERDICT_BAD_OP;
    }
}

/* The window of a pull; the segments it names are checked against the reply by whoever has it. */
static enum ptk_verdict check_pull(struct ptk_wire_segment_view *view, size_t rest_len)
{
    const struct ptk_wire_header *header = &view->header;
    struct ptk_wire_window window;
    if ((header->flags & (PTK_WIRE_FLAGS_CRC | PTK_WIRE_FLAGS_LAST_FLIGHT)) != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (header->message_len != 0 || header->segment_len != 0 || rest_len < sizeof window) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    memcpy(&window, view->data, sizeof window);
    if (window.reserved != 0 || window.state != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (window.words > PTK_WIRE_WINDOW_WORDS_MAX ||
        rest_len != sizeof window + 8 * (size_t)window.words) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    view->data += sizeof window;
    view->data_len = 8 * (size_t)window.words;
    view->grant = window.grant;
    return PTK_VERDICT_OK;
}

static enum ptk_verdict check_cancel(const struct ptk_wire_header *header, size_t rest_len)
{
    if ((header->flags & (PTK_WIRE_FLAGS_CRC | PTK_WIRE_FLAGS_LAST_FLIGHT)) != 0 ||
        header->segment_idx != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    return header->message_len == 0 && header->segment_len == 0 && rest_len == 0
               ? PTK_VERDICT_OK
               : PTK_VERDICT_BAD_LENGTH;
}

enum ptk_verdict ptk_wire_segment_parse(const uint8_t *datagram, size_t len,
                                        struct ptk_wire_segment_view *view)
{
    PTK_ASSERT(ptk_wire_is_segmented(datagram, len));
    struct ptk_wire_header *header = &view->header;
    memcpy(header, datagram, sizeof *header);
    view->type = (enum ptk_wire_type)(header->version_type & 0xFu);
    view->data = datagram;
    view->data_len = 0;
    view->grant = 0;
    if ((header->flags & ~PTK_WIRE_FLAGS_MASK) != 0 || header->verdict != 0 ||
        ((header->flags & PTK_WIRE_FLAGS_CRC) == 0 && header->message_crc != 0)) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    const size_t begin = sizeof *header + ptk_wire_extensions_len(header->flags);
    if (len < begin) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if ((header->flags & PTK_WIRE_EXTENSIONS_ALL & ~PTK_WIRE_EXTENSIONS_KNOWN) != 0) {
        return PTK_VERDICT_UNSUPPORTED;
    }
    view->data = datagram + begin;
    view->data_len = len - begin;
    switch (view->type) {
    case PTK_WIRE_TYPE_PULL:
        return check_pull(view, view->data_len);
    case PTK_WIRE_TYPE_CANCEL:
        return check_cancel(header, view->data_len);
    default:
        return check_request(view, view->data_len);
    }
}

size_t ptk_wire_need_build(const struct ptk_wire_header *request, uint32_t segment_idx,
                           const struct ptk_wire_window *window, const uint64_t *words,
                           uint8_t *need)
{
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_NEED,
        .message_len = request->message_len,
        .request_id = request->request_id,
        .segment_idx = (uint16_t)segment_idx,
        .segment_len = request->segment_len,
        .model_id = request->model_id,
        .op = request->op,
    };
    memcpy(need, &header, sizeof header);
    memcpy(need + sizeof header, window, sizeof *window);
    memcpy(need + sizeof header + sizeof *window, words, 8 * (size_t)window->words);
    return PTK_WIRE_WINDOW_LEN(window->words);
}

size_t ptk_wire_part_build(const struct ptk_wire_reply_parts *parts, uint32_t segment_idx,
                           const uint8_t *message, uint8_t *datagram)
{
    const size_t off = (size_t)segment_idx * parts->segment_len;
    PTK_ASSERT(off < parts->message_len);
    const size_t rest_len = parts->message_len - off;
    const size_t len =
        parts->segment_len == 0 ? rest_len : ptk_min_size(rest_len, parts->segment_len);
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REPLY,
        .flags = PTK_WIRE_FLAGS_CRC,
        .message_len = parts->message_len,
        .request_id = parts->request.request_id,
        .segment_idx = (uint16_t)segment_idx,
        .segment_len = (uint16_t)parts->segment_len,
        .model_id = parts->request.model_id,
        .op = parts->request.op,
        .model_tag = parts->model_tag,
        .message_crc = parts->message_crc,
    };
    memcpy(datagram, &header, sizeof header);
    memcpy(datagram + sizeof header, message + off, len);
    return sizeof header + len;
}
