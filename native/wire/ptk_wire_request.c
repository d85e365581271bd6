/* Checks in the order that native/gen/WIRE.md promises, from front to end of the datagram. */
#include "wire/ptk_wire_request.h"

#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_ids.h"

/* Options that a request of each operation may set. */
#define ENCODE_OPTIONS                                                                             \
    (PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL |                        \
     PTK_WIRE_OPTIONS_PAIR | PTK_WIRE_OPTIONS_BOS | PTK_WIRE_OPTIONS_EOS |                         \
     PTK_WIRE_OPTIONS_TRUNCATION | PTK_WIRE_OPTIONS_OFFSETS_CHARS |                                \
     PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS)
#define COUNT_OPTIONS  (ENCODE_OPTIONS & ~PTK_WIRE_OPTIONS_OFFSETS_CHARS)
#define DECODE_OPTIONS PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS

#define EXTENSION_FLAGS (PTK_WIRE_FLAGS_COOKIE | PTK_WIRE_FLAGS_MAC | PTK_WIRE_FLAGS_PREFIX)

bool ptk_wire_is_zero(const uint8_t *bytes, size_t len)
{
    uint64_t seen = 0;
    for (; len >= 8; bytes += 8, len -= 8) {
        seen |= ptk_load_u64(bytes);
    }
    for (; len > 0; bytes++, len--) {
        seen |= *bytes;
    }
    return seen == 0;
}

static size_t extensions_len(uint32_t flags)
{
    return ((flags & PTK_WIRE_FLAGS_COOKIE) != 0 ? sizeof(struct ptk_wire_cookie) : 0) +
           ((flags & PTK_WIRE_FLAGS_MAC) != 0 ? sizeof(struct ptk_wire_mac) : 0) +
           ((flags & PTK_WIRE_FLAGS_PREFIX) != 0 ? sizeof(struct ptk_wire_prefix) : 0);
}

/* Flags, reserved fields and lengths of a header of a request of this version. */
static enum ptk_verdict check_header(const struct ptk_wire_header *header, size_t len)
{
    if ((header->flags & ~PTK_WIRE_FLAGS_MASK) != 0 || header->verdict != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if ((header->flags & PTK_WIRE_FLAGS_CRC) == 0 && header->message_crc != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (header->message_len > PTK_WIRE_MESSAGE_LEN_MAX) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    const size_t rest_len = len - sizeof *header;
    if (rest_len < extensions_len(header->flags)) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if (header->segment_len != 0) {
        return PTK_VERDICT_UNSUPPORTED;
    }
    if (header->segment_idx != 0 || (header->flags & PTK_WIRE_FLAGS_LAST_FLIGHT) != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (rest_len - extensions_len(header->flags) != header->message_len) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    return (header->flags & EXTENSION_FLAGS) != 0 ? PTK_VERDICT_UNSUPPORTED : PTK_VERDICT_OK;
}

static enum ptk_verdict check_op(uint32_t op)
{
    switch (op) {
    case PTK_WIRE_OP_PING:
    case PTK_WIRE_OP_INFO:
    case PTK_WIRE_OP_ENCODE:
    case PTK_WIRE_OP_DECODE:
    case PTK_WIRE_OP_COUNT:
        return PTK_VERDICT_OK;
    case PTK_WIRE_OP_DECODE_STEP:
    case PTK_WIRE_OP_PREFIX_PUT:
    case PTK_WIRE_OP_PREFIX_DROP:
        return PTK_VERDICT_UNSUPPORTED;
    default:
        return PTK_VERDICT_BAD_OP;
    }
}

enum ptk_verdict ptk_wire_request_parse(const uint8_t *datagram, size_t len,
                                        struct ptk_wire_request_view *view, bool *answer)
{
    *answer = false;
    if (len < sizeof view->header || ptk_load_u16(datagram) != PTK_WIRE_MAGIC) {
        return PTK_VERDICT_BAD_MAGIC;
    }
    struct ptk_wire_header *header = &view->header;
    memcpy(header, datagram, sizeof *header);
    const uint32_t type = header->version_type & 0xFu;
    if (type == PTK_WIRE_TYPE_REPLY || type == PTK_WIRE_TYPE_NEED) {
        return PTK_VERDICT_BAD_TYPE;
    }
    *answer = true;
    if (header->version_type >> 4 != PTK_WIRE_VERSION) {
        return PTK_VERDICT_BAD_VERSION;
    }
    if (type != PTK_WIRE_TYPE_REQUEST) {
        const bool defined = type == PTK_WIRE_TYPE_PULL || type == PTK_WIRE_TYPE_CANCEL;
        return defined ? PTK_VERDICT_UNSUPPORTED : PTK_VERDICT_BAD_TYPE;
    }
    enum ptk_verdict verdict = check_header(header, len);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    view->message = datagram + sizeof *header;
    view->message_len = header->message_len;
    if ((header->flags & PTK_WIRE_FLAGS_CRC) != 0 &&
        ptk_crc32c(view->message, view->message_len) != header->message_crc) {
        return PTK_VERDICT_BAD_CRC;
    }
    return check_op(header->op);
}

static enum ptk_verdict check_id_format(uint32_t op, uint32_t id_format)
{
    if (id_format >= PTK_ID_FORMAT_VALUE_COUNT) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if (op == PTK_WIRE_OP_COUNT) {
        return id_format == PTK_ID_FORMAT_AUTO ? PTK_VERDICT_OK : PTK_VERDICT_BAD_OPTION;
    }
    if (op == PTK_WIRE_OP_DECODE && id_format == PTK_ID_FORMAT_AUTO) {
        return PTK_VERDICT_BAD_OPTION;
    }
    return id_format == PTK_ID_FORMAT_RANK_VARINT ? PTK_VERDICT_UNSUPPORTED : PTK_VERDICT_OK;
}

static enum ptk_verdict check_prelude(uint32_t op, const struct ptk_wire_request *prelude)
{
    const uint32_t options = prelude->options;
    if ((prelude->outputs & ~PTK_WIRE_OUTPUTS_MASK) != 0 ||
        (options & ~PTK_WIRE_OPTIONS_MASK) != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    enum ptk_verdict verdict = check_id_format(op, prelude->id_format);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const uint32_t allowed = op == PTK_WIRE_OP_ENCODE  ? ENCODE_OPTIONS
                             : op == PTK_WIRE_OP_COUNT ? COUNT_OPTIONS
                                                       : DECODE_OPTIONS;
    if ((options & ~allowed) != 0 || (op != PTK_WIRE_OP_ENCODE && prelude->outputs != 0)) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if ((options & PTK_WIRE_OPTIONS_OFFSETS_CHARS) != 0 &&
        (prelude->outputs & PTK_WIRE_OUTPUTS_OFFSETS) == 0) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if ((prelude->outputs & PTK_WIRE_OUTPUTS_OFFSETS_SHORT) != 0 &&
        (prelude->outputs & PTK_WIRE_OUTPUTS_OFFSETS) == 0) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if ((options & PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS) != 0 &&
        (options & PTK_WIRE_OPTIONS_PARSE_SPECIAL) == 0) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if (prelude->item_count == 0 || prelude->item_count > PTK_WIRE_ITEMS_MAX) {
        return PTK_VERDICT_BAD_ITEMS;
    }
    return PTK_VERDICT_OK;
}

static enum ptk_verdict check_truncation(const struct ptk_wire_truncation *truncation)
{
    if (!ptk_wire_is_zero(truncation->reserved, sizeof truncation->reserved)) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (truncation->strategy >= PTK_WIRE_STRATEGY_VALUE_COUNT ||
        truncation->direction >= PTK_WIRE_DIRECTION_VALUE_COUNT) {
        return PTK_VERDICT_BAD_OPTION;
    }
    return truncation->stride != 0 ? PTK_VERDICT_UNSUPPORTED : PTK_VERDICT_OK;
}

enum ptk_verdict ptk_wire_batch_parse(const struct ptk_wire_request_view *request,
                                      struct ptk_wire_batch_view *batch)
{
    const uint8_t *message = request->message;
    const size_t message_len = request->message_len;
    const uint32_t op = request->header.op;
    struct ptk_wire_request *prelude = &batch->prelude;
    PTK_DCHECK(op == PTK_WIRE_OP_ENCODE || op == PTK_WIRE_OP_COUNT || op == PTK_WIRE_OP_DECODE);

    if (message_len < sizeof *prelude) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    memcpy(prelude, message, sizeof *prelude);
    enum ptk_verdict verdict = check_prelude(op, prelude);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    size_t off = sizeof *prelude;
    if ((prelude->options & PTK_WIRE_OPTIONS_TRUNCATION) != 0) {
        if (message_len - off < sizeof batch->truncation) {
            return PTK_VERDICT_BAD_LENGTH;
        }
        memcpy(&batch->truncation, message + off, sizeof batch->truncation);
        verdict = check_truncation(&batch->truncation);
        if (verdict != PTK_VERDICT_OK) {
            return verdict;
        }
        off += sizeof batch->truncation;
    }

    const bool pair = (prelude->options & PTK_WIRE_OPTIONS_PAIR) != 0;
    batch->lens_count = pair ? 2u * prelude->item_count : prelude->item_count;
    batch->lengths = message + off;
    const size_t table_len = 4 * batch->lens_count;
    const size_t table_padded = ptk_align_up(table_len, 8);
    if (message_len - off < table_padded) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if (!ptk_wire_is_zero(message + off + table_len, table_padded - table_len)) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    off += table_padded;

    /* At most 512 lengths below 2^32: the sum cannot wrap. */
    uint64_t units = 0;
    for (size_t idx = 0; idx < batch->lens_count; idx++) {
        units += ptk_wire_batch_len_at(batch, idx);
    }
    const uint64_t unit_len = op == PTK_WIRE_OP_DECODE ? ptk_wire_id_len(prelude->id_format) : 1;
    const uint64_t data_len = units * unit_len;
    if (data_len > message_len || ptk_align_up(data_len, 8) != message_len - off) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    batch->data = message + off;
    batch->data_len = data_len;
    if (!ptk_wire_is_zero(batch->data + data_len, message_len - off - data_len)) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    return PTK_VERDICT_OK;
}
