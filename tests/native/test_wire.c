/* Small parts of the wire: the checksum against its definition, ids in every format, zero bytes. */
#include <stdio.h>
#include <stdlib.h>

#include "wire/ptk_crc32c.h"
#include "wire/ptk_wire_ids.h"
#include "wire/ptk_wire_reply.h"
#include "wire/ptk_wire_request.h"

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* The definition: one bit at a time. */
static uint32_t crc32c_bitwise(const uint8_t *bytes, size_t len)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < len; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
        }
    }
    return ~crc;
}

static void test_checksum_equals_its_definition(void)
{
    static uint8_t bytes[300];
    uint64_t state = 7;
    CHECK(ptk_crc32c((const uint8_t *)"123456789", 9) ==
          0xE3069283u); /* the published check value */
    CHECK(ptk_crc32c(bytes, 0) == 0);
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)next(&state);
    }
    for (size_t off = 0; off < 8; off++) {
        for (size_t len = 0; len + off <= sizeof bytes; len++) {
            CHECK(ptk_crc32c(bytes + off, len) == crc32c_bitwise(bytes + off, len));
        }
    }
}

/* Every count and alignment, and not a byte more than needed is written or read. */
static void test_ids_survive_every_format(void)
{
    static const uint32_t largest[] = {0xFFFF, 0xFFFFFF, 0xFFFFFFFF};
    uint64_t state = 11;
    for (uint32_t id_format = PTK_ID_FORMAT_U16; id_format <= PTK_ID_FORMAT_U32; id_format++) {
        const size_t id_len = ptk_wire_id_len(id_format);
        for (size_t count = 0; count < 50; count++) {
            for (size_t off = 0; off < 4; off++) {
                uint32_t ids[50], back[50];
                uint8_t *wire = malloc(off + count * id_len + 1);
                CHECK(wire != NULL);
                for (size_t i = 0; i < count; i++) {
                    ids[i] = i % 5 == 0 ? largest[id_format - 1]
                                        : (uint32_t)next(&state) & largest[id_format - 1];
                }
                wire[off + count * id_len] = 0xA5;
                CHECK(ptk_wire_ids_build(ids, count, id_format, wire + off) == count * id_len);
                CHECK(wire[off + count * id_len] == 0xA5);
                uint8_t *exact = malloc(count * id_len + 1);
                CHECK(exact != NULL);
                for (size_t i = 0; i < count; i++) {
                    uint32_t little = 0;
                    memcpy(&little, wire + off + i * id_len, id_len);
                    CHECK(little == ids[i]);
                }
                memcpy(exact + 1, wire + off, count * id_len); /* ends where the allocation ends */
                ptk_wire_ids_parse(exact + 1, count, id_format, back);
                CHECK(memcmp(ids, back, count * sizeof ids[0]) == 0);
                free(exact);
                free(wire);
            }
        }
    }
}

static void test_auto_takes_the_narrowest_format(void)
{
    CHECK(ptk_wire_id_format_auto(1) == PTK_ID_FORMAT_U16);
    CHECK(ptk_wire_id_format_auto(0x10000) == PTK_ID_FORMAT_U16);
    CHECK(ptk_wire_id_format_auto(0x10001) == PTK_ID_FORMAT_U24);
    CHECK(ptk_wire_id_format_auto(0x1000000) == PTK_ID_FORMAT_U24);
    CHECK(ptk_wire_id_format_auto(0x1000001) == PTK_ID_FORMAT_U32);
    CHECK(ptk_wire_id_format_auto(UINT32_MAX) == PTK_ID_FORMAT_U32);
}

/* The cap is the largest count whose layout fits: one more does not. */
static void test_encode_cap_is_exact(void)
{
    for (uint32_t id_format = PTK_ID_FORMAT_U16; id_format <= PTK_ID_FORMAT_U32; id_format++) {
        for (uint32_t outputs = 0; outputs <= PTK_WIRE_OUTPUTS_MASK; outputs++) {
            for (size_t item_count = 1; item_count < 5; item_count++) {
                const size_t table_len = ptk_wire_items_len(item_count);
                for (size_t room = 0; room < 300; room++) {
                    const size_t message_cap = table_len + room;
                    const size_t cap =
                        ptk_wire_encode_cap(table_len, message_cap, id_format, outputs);
                    CHECK(ptk_wire_encode_layout(table_len, cap, id_format, outputs).message_len <=
                          message_cap);
                    CHECK(ptk_wire_encode_layout(table_len, cap + 1, id_format, outputs)
                              .message_len > message_cap);
                }
            }
        }
    }
}

static void test_any_set_byte_is_seen(void)
{
    for (size_t len = 0; len < 40; len++) {
        uint8_t bytes[40] = {0};
        CHECK(ptk_wire_is_zero(bytes, len));
        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = 1;
            CHECK(ptk_wire_is_zero(bytes, len) == (i >= len));
            bytes[i] = 0;
        }
    }
}

int main(void)
{
    test_checksum_equals_its_definition();
    test_ids_survive_every_format();
    test_auto_takes_the_narrowest_format();
    test_encode_cap_is_exact();
    test_any_set_byte_is_seen();
    return 0;
}
