/* Checks in the order that native/gen/WIRE.md promises, from front to end of the datagram. */
#include "wire/ptk_wire_request.h"

#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_extensions.h"
#include "wire/ptk_wire_ids.h"

/* Options that a request of each operation may set. */
#define ENCODE_OPTIONS                                                                             \
    (PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL |                        \
     PTK_WIRE_OPTIONS_PAIR | PTK_WIRE_OPTIONS_BOS | PTK_WIRE_OPTIONS_EOS |                         \
     PTK_WIRE_OPTIONS_TRUNCATION | PTK_WIRE_OPTIONS_OFFSETS_CHARS |                                \
     PTK_WIRE_OPTIONS_ENCODE_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_OVERFLOW | PTK_WIRE_OPTIONS_RANGES)
#define COUNT_OPTIONS                                                                              \
    (ENCODE_OPTIONS & ~(PTK_WIRE_OPTIONS_OFFSETS_CHARS | PTK_WIRE_OPTIONS_OVERFLOW))
#define DECODE_OPTIONS PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS

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
    const size_t extensions_len = ptk_wire_extensions_len(header->flags);
    if (rest_len < extensions_len) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if (header->segment_len != 0) {
        return PTK_VERDICT_UNSUPPORTED;
    }
    if (header->segment_idx != 0 || (header->flags & PTK_WIRE_FLAGS_LAST_FLIGHT) != 0) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    if (rest_len - extensions_len != header->message_len) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    const uint32_t unknown = PTK_WIRE_EXTENSIONS_ALL & ~PTK_WIRE_EXTENSIONS_KNOWN;
    return (header->flags & unknown) != 0 ? PTK_VERDICT_UNSUPPORTED : PTK_VERDICT_OK;
}

static enum ptk_verdict check_op(uint32_t op)
{
    switch (op) {
    case PTK_WIRE_OP_PING:
    case PTK_WIRE_OP_INFO:
    case PTK_WIRE_OP_ENCODE:
    case PTK_WIRE_OP_DECODE:
    case PTK_WIRE_OP_COUNT:
    case PTK_WIRE_OP_DECODE_STEP:
    case PTK_WIRE_OP_SETTINGS:
        return PTK_VERDICT_OK;
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
    view->message = datagram + sizeof *header + ptk_wire_extensions_len(header->flags);
    view->message_len = header->message_len;
    if ((header->flags & PTK_WIRE_FLAGS_CRC) != 0 &&
        ptk_crc32c(view->message, view->message_len) != header->message_crc) {
        return PTK_VERDICT_BAD_CRC;
    }
    return check_op(header->op);
}

/* Whether the items of a request are ids. */
static bool takes_ids(uint32_t op)
{
    return op == PTK_WIRE_OP_DECODE || op == PTK_WIRE_OP_DECODE_STEP;
}

static enum ptk_verdict check_id_format(uint32_t op, uint32_t id_format)
{
    if (id_format >= PTK_ID_FORMAT_VALUE_COUNT) {
        return PTK_VERDICT_BAD_OPTION;
    }
    if (op == PTK_WIRE_OP_COUNT) {
        return id_format == PTK_ID_FORMAT_AUTO ? PTK_VERDICT_OK : PTK_VERDICT_BAD_OPTION;
    }
    if (takes_ids(op) && id_format == PTK_ID_FORMAT_AUTO) {
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
    if ((options & PTK_WIRE_OPTIONS_OVERFLOW) != 0 &&
        (options & PTK_WIRE_OPTIONS_TRUNCATION) == 0) {
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
    return PTK_VERDICT_OK;
}

/* A table in the message, and where it ends with its padding. */
static enum ptk_verdict take_table(const struct ptk_wire_request_view *request, uint64_t table_len,
                                   size_t *off, const uint8_t **table)
{
    const uint64_t padded_len = (table_len + 7) & ~7ull;
    const uint8_t *begin = request->message + *off;
    if (request->message_len - *off < padded_len) {
        return PTK_VERDICT_BAD_LENGTH;
    }
    if (!ptk_wire_is_zero(begin + table_len, padded_len - table_len)) {
        return PTK_VERDICT_BAD_FLAGS;
    }
    *table = begin;
    *off += padded_len;
    return PTK_VERDICT_OK;
}

/* The item table of a decode_step. */
static enum ptk_verdict check_steps(const struct ptk_wire_batch_view *batch)
{
    for (size_t idx = 0; idx < batch->prelude.item_count; idx++) {
        const struct ptk_wire_step step = ptk_wire_batch_step_at(batch, idx);
        if ((step.flags & ~PTK_WIRE_STEP_FLAGS_MASK) != 0) {
            return PTK_VERDICT_BAD_FLAGS;
        }
        if ((uint32_t)step.given_count + step.new_count > step.ids_count) {
            return PTK_VERDICT_BAD_LENGTH;
        }
    }
    return PTK_VERDICT_OK;
}

/* The ranges of every item, which come as their numbers and then themselves. */
static enum ptk_verdict take_ranges(const struct ptk_wire_request_view *request, size_t *off,
                                    struct ptk_wire_batch_view *batch)
{
    const size_t item_count = batch->prelude.item_count;
    enum ptk_verdict verdict = take_table(request, 4 * item_count, off, &batch->range_counts);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    uint64_t total = 0;
    for (size_t idx = 0; idx < item_count; idx++) {
        total += ptk_wire_batch_range_count_at(batch, idx);
    }
    if (total > PTK_WIRE_RANGES_MAX) {
        return PTK_VERDICT_BAD_ITEMS;
    }
    verdict = take_table(request, total * sizeof(struct ptk_wire_range), off, &batch->ranges);
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }
    const size_t texts = batch->lens_count / item_count;
    const uint8_t *next = batch->ranges;
    for (size_t idx = 0; idx < item_count; idx++) {
        uint64_t item_len = 0;
        for (size_t k = 0; k < texts; k++) {
            item_len += ptk_wire_batch_len_at(batch, texts * idx + k);
        }
        uint64_t end = 0;
        for (size_t k = ptk_wire_batch_range_count_at(batch, idx); k > 0; k--, next += 8) {
            const uint64_t begin = ptk_load_u32(next);
            const uint64_t len = ptk_load_u32(next + 4) >> 1;
            if (begin < end || len == 0 || begin + len > item_len) {
                return PTK_VERDICT_BAD_LENGTH;
            }
            end = begin + len;
        }
    }
    return PTK_VERDICT_OK;
}

enum ptk_verdict ptk_wire_batch_parse(const struct ptk_wire_request_view *request,
                                      struct ptk_wire_batch_view *batch)
{
    const uint8_t *message = request->message;
    const size_t message_len = request->message_len;
    const uint32_t op = request->header.op;
    struct ptk_wire_request *prelude = &batch->prelude;
    PTK_DCHECK(op == PTK_WIRE_OP_ENCODE || op == PTK_WIRE_OP_COUNT || takes_ids(op));

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
    const bool steps = op == PTK_WIRE_OP_DECODE_STEP;
    batch->lens_count = pair ? 2u * prelude->item_count : prelude->item_count;
    batch->steps = steps;
    batch->ranges = NULL;
    const size_t entry_len = steps ? sizeof(struct ptk_wire_step) : 4;
    verdict = take_table(request, entry_len * batch->lens_count, &off, &batch->lengths);
    if (verdict == PTK_VERDICT_OK && steps) {
        verdict = check_steps(batch);
    }
    if (verdict == PTK_VERDICT_OK && (prelude->options & PTK_WIRE_OPTIONS_RANGES) != 0) {
        verdict = take_ranges(request, &off, batch);
    }
    if (verdict != PTK_VERDICT_OK) {
        return verdict;
    }

    /* At most 512 lengths below 2^32: the sum cannot wrap. */
    uint64_t units = 0;
    for (size_t idx = 0; idx < batch->lens_count; idx++) {
        units += steps ? ptk_wire_batch_step_at(batch, idx).ids_count
                       : ptk_wire_batch_len_at(batch, idx);
    }
    const uint64_t unit_len = takes_ids(op) ? ptk_wire_id_len(prelude->id_format) : 1;
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
