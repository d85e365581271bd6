/*
 * What each id adds to a text that has already begun, packed for copying: 16 bytes an id.
 *
 *   OFFSET  SIZE  MEANING
 *        0    15  the bytes; of longer ones u32 where they begin in the pool and u32 their length
 *       15     1  info: bits 0-3 how many bytes, and the flags below
 *
 * A token of up to 15 bytes costs one load, one store of 16 bytes and one addition; the next token
 * overwrites what was stored too much. All ids that are not in use share one form: no bytes.
 */
#ifndef PTK_DECODE_TABLE_H
#define PTK_DECODE_TABLE_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"

#define PTK_DECODE_SHORT_MAX 15u

struct ptk_decode_entry {
    uint8_t bytes[PTK_DECODE_SHORT_MAX];
    uint8_t info;
};
_Static_assert(sizeof(struct ptk_decode_entry) == 16, "an entry is one load");

enum ptk_decode_info {
    PTK_DECODE_LEN = 0x0F,
    PTK_DECODE_SPECIAL = 0x10, /* left out where special tokens are skipped */
    PTK_DECODE_BYTE = 0x20,    /* a byte of its own, bytes[0]: valid only together with others */
    PTK_DECODE_LONG = 0x40,    /* the bytes are in the pool */
    PTK_DECODE_PARTIAL = 0x80, /* the bytes alone are not valid UTF-8 */
};

struct ptk_decode_table {
    struct ptk_decode_entry *entries; /* ids_end, and one without bytes for all other ids */
    uint8_t *pool;
    size_t pool_len;
    size_t pool_cap;
    uint32_t ids_end;
};

/* Where a decoded text goes. */
struct ptk_decode_text {
    uint8_t *bytes;
    size_t cap;
    size_t len;
    uint8_t seen; /* the info of all ids so far, or-ed together */
};

/* ptk_decode_table_init makes a table in which no id has bytes; fini gives its memory back, also
 * of a table that is all zero. Negative errno when there is no memory. */
int ptk_decode_table_init(struct ptk_decode_table *table, uint32_t ids_end, struct ptk_err *err);
void ptk_decode_table_fini(struct ptk_decode_table *table);

/* ptk_decode_table_add gives an id its bytes at set-up; `info` has SPECIAL, BYTE and PARTIAL where
 * they are true. False when there is no memory for long ones. */
bool ptk_decode_table_add(struct ptk_decode_table *table, uint32_t id, const uint8_t *bytes,
                          size_t len, uint8_t info);

/*
 * ptk_decode_table_copy appends the bytes of ids and returns how many ids it has taken: all of
 * them, or fewer when the next one is a byte of its own that is not skipped, or does not fit.
 * Stores up to 16 bytes where the text has room for them, whatever the token's length.
 */
size_t ptk_decode_table_copy(const struct ptk_decode_table *table, const uint32_t *ids,
                             size_t ids_len, bool skip_special, struct ptk_decode_text *text);

/* ptk_decode_table_view gives the bytes of one id; false for a byte of its own that is shown. */
bool ptk_decode_table_view(const struct ptk_decode_table *table, uint32_t id, bool skip_special,
                           const uint8_t **bytes, size_t *len);

static inline const struct ptk_decode_entry *
ptk_decode_table_at(const struct ptk_decode_table *table, uint32_t id)
{
    return &table->entries[id < table->ids_end ? id : table->ids_end];
}

#endif
