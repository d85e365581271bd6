/*
 * The door for frames: any bytes are refused, or parse to a view that lies inside them and whose
 * reply parses at the other end. The first byte of an input chooses the checksum policy, the rest
 * is the frame.
 */
#include "net/ptk_frame.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PORT 7265

static struct ptk_address_set own_addresses(void)
{
    static const char *const TEXTS[] = {"192.0.2.1", "2001:db8::1"};
    struct ptk_address_set own = {0};
    for (size_t i = 0; i < PTK_ARRAY_LEN(TEXTS); i++) {
        struct ptk_address address;
        PTK_ASSERT(ptk_address_parse(TEXTS[i], &address, NULL) == 0);
        PTK_ASSERT(ptk_address_set_add(&own, &address, NULL) == 0);
    }
    return own;
}

/* What the sender of the request sees of the reply. */
static void check_reply(const uint8_t *request, const struct ptk_frame_view *view)
{
    const uint8_t *ip = request + view->ip_off;
    const struct ptk_address client =
        view->ipv6 ? ptk_address_from_ipv6(ip + 8) : ptk_address_from_ipv4(ip + 12);
    struct ptk_address_set clients = {0};
    PTK_ASSERT(ptk_address_set_add(&clients, &client, NULL) == 0);
    const uint8_t *udp = request + view->payload_off - PTK_FRAME_UDP_LEN;
    const uint16_t client_port = (uint16_t)(udp[0] << 8 | udp[1]);

    const size_t len = view->payload_off + view->payload_len;
    uint8_t *reply = malloc(len);
    PTK_ASSERT(reply != NULL);
    memcpy(reply + view->payload_off, request + view->payload_off, view->payload_len);
    PTK_ASSERT(ptk_frame_reply_build(request, view, reply, view->payload_len) == len);
    const struct ptk_frame_filter filter = {
        .own = &clients, .port = client_port, .checksum = PTK_FRAME_CHECKSUM_VERIFY};
    struct ptk_frame_view seen;
    const enum ptk_frame_refusal refusal = ptk_frame_parse(reply, len, &filter, &seen);
    PTK_ASSERT(refusal == PTK_FRAME_OK);
    PTK_ASSERT(seen.payload_off == view->payload_off);
    PTK_ASSERT(seen.payload_len == view->payload_len);
    free(reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ptk_address_set own;
    if (own.count == 0) {
        own = own_addresses();
    }
    if (size == 0) {
        return 0;
    }
    const struct ptk_frame_filter filter = {
        .own = &own, .port = PORT, .checksum = (enum ptk_frame_checksum)(data[0] % 3)};
    const uint8_t *frame = data + 1;
    struct ptk_frame_view view;
    if (ptk_frame_parse(frame, size - 1, &filter, &view) != PTK_FRAME_OK) {
        return 0;
    }
    PTK_ASSERT(view.ip_off == 14 || view.ip_off == 18);
    PTK_ASSERT(view.payload_off > view.ip_off);
    PTK_ASSERT(view.payload_off <= size - 1);
    PTK_ASSERT(view.payload_len <= size - 1 - view.payload_off);
    check_reply(frame, &view);
    return 0;
}
