/*
 * The door of a hand-over: any message is refused with a sentence, or holds only numbers that a
 * server can have. The first byte of an input is the number of descriptors that came with it, the
 * rest is the message.
 */
#include "net/ptk_frames.h"
#include "serve/ptk_server_handover.h"

#include "base/ptk_cpu.h"

#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_server(const struct ptk_handover_server *server)
{
    PTK_ASSERT(server->port >= 1);
    PTK_ASSERT(server->port <= 65535);
    PTK_ASSERT(server->queue_count <= PTK_CPU_LIST_CAP);
    PTK_ASSERT(server->socket_count >= 1);
    PTK_ASSERT(server->socket_count <= PTK_CPU_LIST_CAP);
    PTK_ASSERT(server->worker_count == server->queue_count + server->socket_count);
    const bool xdp = server->path == PTK_DATAPATH_PATH_XDP;
    PTK_ASSERT(xdp || server->path == PTK_DATAPATH_PATH_SOCKET);
    PTK_ASSERT(xdp == (server->queue_count > 0));
    PTK_ASSERT(server->head.fd_count == (xdp ? 4u : 1u));
    if (xdp) {
        PTK_ASSERT(server->interface_index != 0);
        PTK_ASSERT(server->frame_len == PTK_FRAME_LEN);
        PTK_ASSERT((uint64_t)server->frame_count * server->frame_len <= 1ull << 32);
        PTK_ASSERT(__builtin_popcount(server->ring_len) == 1);
        PTK_ASSERT(__builtin_popcount(server->fill_len) == 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    union ptk_handover_message message;
    if (size < 1 || size - 1 > sizeof message) {
        return 0;
    }
    memset(&message, 0xA5, sizeof message);
    memcpy(&message, data + 1, size - 1);
    struct ptk_err err = {.code = 0, .text = ""};
    const int code = ptk_handover_verify(&message, size - 1, data[0], &err);
    if (code != 0) {
        PTK_ASSERT(code == -EPROTO || code == -EPROTONOSUPPORT);
        PTK_ASSERT(err.text[0] != '\0');
        return 0;
    }
    PTK_ASSERT(message.head.len == size - 1);
    PTK_ASSERT(message.head.fd_count == data[0]);
    PTK_ASSERT(data[0] <= PTK_HANDOVER_FDS_MAX);
    switch (message.head.kind) {
    case PTK_HANDOVER_SERVER:
        check_server(&message.server);
        break;
    case PTK_HANDOVER_QUEUE:
        PTK_ASSERT(message.queue.idx < PTK_CPU_LIST_CAP);
        break;
    case PTK_HANDOVER_SOCKET:
        PTK_ASSERT(message.socket.idx < PTK_CPU_LIST_CAP);
        PTK_ASSERT((uint32_t)__builtin_popcount(message.socket.families) == message.head.fd_count);
        break;
    case PTK_HANDOVER_REFUSE:
        PTK_ASSERT(strlen(message.refuse.text) < sizeof message.refuse.text);
        break;
    default:
        PTK_ASSERT(message.head.fd_count == 0);
        break;
    }
    return 0;
}
