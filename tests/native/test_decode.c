/*
 * The decoder's table: tokens at the limit of a short one, texts whose room ends at every byte,
 * ids that are not in use, and nothing written behind the room.
 */
#include <stdlib.h>

#include "algo/ptk_decode_table.h"

#define IDS_END   5u
#define TEXT_MAX  128u
#define UNWRITTEN 0xEEu

static const char *const tokens[IDS_END] = {"a", "fifteen bytes!!", "sixteen bytes..!", "", "X"};

static struct ptk_decode_table make_table(void)
{
    struct ptk_decode_table table;
    struct ptk_err err;
    PTK_ASSERT(ptk_decode_table_init(&table, IDS_END, &err) == 0);
    for (uint32_t id = 0; id < IDS_END; id++) {
        const uint8_t info = id == 4 ? PTK_DECODE_SPECIAL : 0;
        PTK_ASSERT(ptk_decode_table_add(&table, id, (const uint8_t *)tokens[id], strlen(tokens[id]),
                                        info));
    }
    return table;
}

/* What copy must take: ids as long as they fit, one after another. */
static size_t expected(const uint32_t *ids, size_t ids_len, bool skip, size_t cap, char *text,
                       size_t *len)
{
    *len = 0;
    for (size_t i = 0; i < ids_len; i++) {
        const char *token = ids[i] >= IDS_END || (skip && ids[i] == 4) ? "" : tokens[ids[i]];
        if (strlen(token) > cap - *len) {
            return i;
        }
        memcpy(text + *len, token, strlen(token));
        *len += strlen(token);
    }
    return ids_len;
}

/* The room ends at every byte from none to more than enough, for many lists of ids. */
static void test_copy_fills_the_room_and_no_more(void)
{
    struct ptk_decode_table table = make_table();
    uint64_t state = 1;
    for (unsigned round = 0; round < 200; round++) {
        uint32_t ids[8];
        for (size_t i = 0; i < PTK_ARRAY_LEN(ids); i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            ids[i] = (uint32_t)(state >> 33) % (IDS_END + 2);
        }
        ids[0] = round % 3 == 0 ? UINT32_MAX : ids[0];
        for (size_t cap = 0; cap <= TEXT_MAX; cap++) {
            const bool skip = (round & 1) != 0;
            char wanted[TEXT_MAX];
            size_t wanted_len;
            const size_t wanted_ids =
                expected(ids, PTK_ARRAY_LEN(ids), skip, cap, wanted, &wanted_len);
            uint8_t *bytes = malloc(cap + 1); /* its own block: a sanitizer sees a store behind */
            PTK_ASSERT(bytes != NULL);
            bytes[cap] = UNWRITTEN;
            struct ptk_decode_text text = {.bytes = bytes, .cap = cap};
            PTK_ASSERT(ptk_decode_table_copy(&table, ids, PTK_ARRAY_LEN(ids), skip, &text) ==
                       wanted_ids);
            PTK_ASSERT(text.len == wanted_len);
            PTK_ASSERT(memcmp(bytes, wanted, wanted_len) == 0);
            PTK_ASSERT(bytes[cap] == UNWRITTEN);
            free(bytes);
        }
    }
    ptk_decode_table_fini(&table);
}

/* A byte of its own stops the copy, unless it is special and skipped. */
static void test_copy_stops_at_a_byte_of_its_own(void)
{
    struct ptk_decode_table table = make_table();
    const uint8_t byte = 0xE4;
    PTK_ASSERT(ptk_decode_table_add(&table, 3, &byte, 1, PTK_DECODE_BYTE | PTK_DECODE_SPECIAL));
    const uint32_t ids[] = {0, 3, 0};
    uint8_t bytes[TEXT_MAX];
    struct ptk_decode_text text = {.bytes = bytes, .cap = sizeof bytes};
    PTK_ASSERT(ptk_decode_table_copy(&table, ids, 3, false, &text) == 1);
    PTK_ASSERT(text.len == 1);
    text.len = 0;
    PTK_ASSERT(ptk_decode_table_copy(&table, ids, 3, true, &text) == 3);
    PTK_ASSERT(text.len == 2);
    const uint8_t *view;
    size_t len;
    PTK_ASSERT(!ptk_decode_table_view(&table, 3, false, &view, &len));
    PTK_ASSERT(ptk_decode_table_view(&table, 3, true, &view, &len) && len == 0);
    PTK_ASSERT(ptk_decode_table_view(&table, 2, false, &view, &len) && len == 16);
    PTK_ASSERT(memcmp(view, tokens[2], 16) == 0);
    ptk_decode_table_fini(&table);
}

/* Who copies learns what the ids were, short and long ones, so that only some texts are checked. */
static void test_copy_says_what_it_has_seen(void)
{
    struct ptk_decode_table table = make_table();
    PTK_ASSERT(ptk_decode_table_add(&table, 1, (const uint8_t *)"\xC3", 1, PTK_DECODE_PARTIAL));
    PTK_ASSERT(ptk_decode_table_add(&table, 2, (const uint8_t *)"sixteen bytes..\xE4", 16,
                                    PTK_DECODE_PARTIAL));
    for (uint32_t id = 0; id < 3; id++) {
        const uint32_t ids[] = {4, id, 4};
        uint8_t bytes[TEXT_MAX];
        struct ptk_decode_text text = {.bytes = bytes, .cap = sizeof bytes};
        PTK_ASSERT(ptk_decode_table_copy(&table, ids, 3, false, &text) == 3);
        PTK_ASSERT((text.seen & PTK_DECODE_SPECIAL) != 0);
        PTK_ASSERT(((text.seen & PTK_DECODE_PARTIAL) != 0) == (id != 0));
    }
    ptk_decode_table_fini(&table);
}

int main(void)
{
    test_copy_fills_the_room_and_no_more();
    test_copy_stops_at_a_byte_of_its_own();
    test_copy_says_what_it_has_seen();
    return 0;
}
