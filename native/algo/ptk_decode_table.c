#include "algo/ptk_decode_table.h"

#include <errno.h>
#include <stdlib.h>

#include "base/ptk_huge.h"
#include "image/ptk_image.h"

int ptk_decode_table_init(struct ptk_decode_table *table, uint32_t ids_end, struct ptk_err *err)
{
    const size_t len = ((size_t)ids_end + 1) * sizeof *table->entries;
    *table = (struct ptk_decode_table){.ids_end = ids_end};
    table->entries = ptk_huge_alloc(len);
    if (table->entries == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory for the decoder's table of %zu bytes", len);
    }
    memset(table->entries, 0, len);
    return 0;
}

void ptk_decode_table_fini(struct ptk_decode_table *table)
{
    free(table->entries);
    free(table->pool);
    *table = (struct ptk_decode_table){0};
}

static bool pool_add(struct ptk_decode_table *table, const uint8_t *bytes, size_t len)
{
    if (len > UINT32_MAX - table->pool_len) {
        return false;
    }
    if (len > table->pool_cap - table->pool_len) {
        const size_t cap = 2 * (table->pool_len + len);
        uint8_t *pool = realloc(table->pool, cap);
        if (pool == NULL) {
            return false;
        }
        table->pool = pool;
        table->pool_cap = cap;
    }
    memcpy(table->pool + table->pool_len, bytes, len);
    table->pool_len += len;
    return true;
}

bool ptk_decode_table_add(struct ptk_decode_table *table, uint32_t id, const uint8_t *bytes,
                          size_t len, uint8_t info)
{
    PTK_ASSERT(id < table->ids_end);
    struct ptk_decode_entry *entry = &table->entries[id];
    if (len == 0) {
        entry->info = info;
        return true;
    }
    if (len <= PTK_DECODE_SHORT_MAX) {
        const struct ptk_piece_key key = ptk_piece_key_make(bytes, len);
        memcpy(entry, &key, sizeof key);
        entry->info = (uint8_t)(info | len);
        return true;
    }
    const uint32_t place[2] = {(uint32_t)table->pool_len, (uint32_t)len};
    if (!pool_add(table, bytes, len)) {
        return false;
    }
    memcpy(entry->bytes, place, sizeof place);
    entry->info = (uint8_t)(info | PTK_DECODE_LONG);
    return true;
}

bool ptk_decode_table_view(const struct ptk_decode_table *table, uint32_t id, bool skip_special,
                           const uint8_t **bytes, size_t *len)
{
    const struct ptk_decode_entry *entry = ptk_decode_table_at(table, id);
    *bytes = entry->bytes;
    *len = 0;
    if (skip_special && (entry->info & PTK_DECODE_SPECIAL) != 0) {
        return true;
    }
    if ((entry->info & PTK_DECODE_BYTE) != 0) {
        return false;
    }
    if ((entry->info & PTK_DECODE_LONG) == 0) {
        *len = entry->info & PTK_DECODE_LEN;
        return true;
    }
    *bytes = table->pool + ptk_load_u32(entry->bytes);
    *len = ptk_load_u32(entry->bytes + 4);
    return true;
}

/* One id at its full length, where it is long or the room is short. False as in copy. */
static bool copy_one(const struct ptk_decode_table *table, uint32_t id, bool skip_special,
                     struct ptk_decode_text *text)
{
    const uint8_t *bytes;
    size_t len;
    if (!ptk_decode_table_view(table, id, skip_special, &bytes, &len) ||
        len > text->cap - text->len) {
        return false;
    }
    memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
    text->seen |= ptk_decode_table_at(table, id)->info;
    return true;
}

size_t ptk_decode_table_copy(const struct ptk_decode_table *table, const uint32_t *ids,
                             size_t ids_len, bool skip_special, struct ptk_decode_text *text)
{
    const uint8_t skipped = skip_special ? PTK_DECODE_SPECIAL : 0;
    const uint8_t unusual = PTK_DECODE_BYTE | PTK_DECODE_LONG | skipped;
    size_t i = 0;
    while (i < ids_len) {
        /* So many ids certainly have room for a whole store each. */
        const size_t room = (text->cap - text->len) / sizeof(struct ptk_decode_entry);
        const size_t end = i + ptk_min_size(ids_len - i, room);
        uint8_t *dst = text->bytes + text->len;
        uint8_t seen = text->seen;
        for (; i < end; i++) {
            const struct ptk_decode_entry *entry = ptk_decode_table_at(table, ids[i]);
            memcpy(dst, entry, sizeof *entry);
            const uint8_t info = entry->info;
            seen |= info;
            if (PTK_UNLIKELY((info & unusual) != 0)) {
                if ((info & skipped) == 0) {
                    break;
                }
                continue;
            }
            dst += info & PTK_DECODE_LEN;
        }
        text->len = (size_t)(dst - text->bytes);
        text->seen = seen;
        if (i < ids_len && (i < end || room == 0)) {
            if (!copy_one(table, ids[i], skip_special, text)) {
                return i;
            }
            i++;
        }
    }
    return ids_len;
}
