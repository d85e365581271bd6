/* Messages of a hand-over: what is refused, what travels, and the word that decides who serves. */
#include "net/ptk_frames.h"
#include "serve/ptk_server_handover.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static union ptk_handover_message message_of(enum ptk_handover_kind kind, uint32_t fd_count)
{
    union ptk_handover_message message;
    memset(&message, 0, sizeof message);
    ptk_handover_head_init(&message.head, kind, fd_count);
    return message;
}

static union ptk_handover_message good_server(void)
{
    union ptk_handover_message message = message_of(PTK_HANDOVER_SERVER, 4);
    message.server.stats_version = PTK_STATS_VERSION;
    message.server.path = PTK_DATAPATH_PATH_XDP;
    message.server.xdp_mode = PTK_XDP_MODE_DRV;
    message.server.port = 7265;
    message.server.interface_index = 2;
    message.server.mtu = 1500;
    message.server.queue_count = 2;
    message.server.socket_count = 1;
    message.server.frame_count = 8209;
    message.server.frame_len = PTK_FRAME_LEN;
    message.server.ring_len = 2048;
    message.server.fill_len = 4096;
    message.server.worker_count = 3;
    return message;
}

static int verify(const union ptk_handover_message *message)
{
    struct ptk_err err;
    return ptk_handover_verify(message, message->head.len, message->head.fd_count, &err);
}

/* Every number of the largest message at a value that no server has. */
static void test_server_limits(void)
{
    union ptk_handover_message message = good_server();
    PTK_ASSERT(verify(&message) == 0);
#define REFUSED(field, value)                                                                      \
    do {                                                                                           \
        message = good_server();                                                                   \
        message.server.field = (value);                                                            \
        PTK_ASSERT(verify(&message) == -EPROTO);                                                   \
    } while (0)
    REFUSED(path, PTK_DATAPATH_PATH_NONE);
    REFUSED(path, PTK_DATAPATH_PATH_VALUE_COUNT);
    REFUSED(path, PTK_DATAPATH_PATH_SOCKET); /* with queues */
    REFUSED(xdp_mode, PTK_XDP_MODE_VALUE_COUNT);
    REFUSED(port, 0);
    REFUSED(port, 65536);
    REFUSED(interface_index, 0);
    REFUSED(mtu, 0);
    REFUSED(mtu, 65537);
    REFUSED(queue_count, 0);
    REFUSED(queue_count, 1); /* not what worker_count says */
    REFUSED(socket_count, 0);
    REFUSED(socket_count, 2);
    REFUSED(worker_count, 4);
    REFUSED(worker_count, UINT32_MAX);
    REFUSED(frame_count, 0);
    REFUSED(frame_count, (1u << 20) + 1);
    REFUSED(frame_len, 2048);
    REFUSED(ring_len, 0);
    REFUSED(ring_len, 2047);
    REFUSED(ring_len, 65536);
    REFUSED(fill_len, 0);
    REFUSED(fill_len, 4097);
    REFUSED(fill_len, 131072);
    REFUSED(multi_buffer, 2);
    REFUSED(head.fd_count, 3);
    REFUSED(head.kind, 0);
    REFUSED(head.kind, PTK_HANDOVER_KIND_COUNT);
    REFUSED(head.kind, UINT32_MAX);
    REFUSED(head.kind, PTK_HANDOVER_QUEUE); /* another length */
#undef REFUSED
    /* Sums that would wrap around to something possible. */
    message = good_server();
    message.server.queue_count = UINT32_MAX - 1;
    message.server.socket_count = 5;
    PTK_ASSERT(verify(&message) == -EPROTO);
    message = good_server();
    message.server.path = PTK_DATAPATH_PATH_SOCKET;
    message.server.xdp_mode = PTK_XDP_MODE_NONE;
    message.server.queue_count = 0;
    message.server.worker_count = 1;
    message.head.fd_count = 1;
    PTK_ASSERT(verify(&message) == 0);
}

/* Head and length of every kind: a byte more or less, a descriptor more or less, another version.
 */
static void test_heads(void)
{
    struct ptk_err err;
    static const uint32_t FDS[PTK_HANDOVER_KIND_COUNT] = {
        [PTK_HANDOVER_SERVER] = 4, [PTK_HANDOVER_QUEUE] = 2, [PTK_HANDOVER_SOCKET] = 2};
    for (uint32_t kind = PTK_HANDOVER_HELLO; kind < PTK_HANDOVER_KIND_COUNT; kind++) {
        union ptk_handover_message message = message_of((enum ptk_handover_kind)kind, FDS[kind]);
        if (kind == PTK_HANDOVER_SERVER) {
            message = good_server();
        }
        message.socket.families = kind == PTK_HANDOVER_SOCKET ? 3 : message.socket.families;
        const size_t len = message.head.len;
        PTK_ASSERT(verify(&message) == 0);
        for (size_t cut = 0; cut < len; cut++) {
            PTK_ASSERT(ptk_handover_verify(&message, cut, FDS[kind], &err) == -EPROTO);
        }
        PTK_ASSERT(ptk_handover_verify(&message, len + 1, FDS[kind], &err) == -EPROTO);
        PTK_ASSERT(ptk_handover_verify(&message, len, FDS[kind] + 1, &err) == -EPROTO);
        message.head.version++;
        PTK_ASSERT(verify(&message) == -EPROTONOSUPPORT);
        PTK_ASSERT(strstr(err.text, "hand-over") != NULL);
        message.head.magic[0] ^= 1;
        PTK_ASSERT(verify(&message) == -EPROTO);
    }
    union ptk_handover_message message = message_of(PTK_HANDOVER_SOCKET, 1);
    PTK_ASSERT(verify(&message) == -EPROTO); /* no family */
    message.socket.families = 4;
    PTK_ASSERT(verify(&message) == -EPROTO);
    message.socket.families = 2;
    PTK_ASSERT(verify(&message) == 0);
    message.socket.families = 3; /* two, and one descriptor */
    PTK_ASSERT(verify(&message) == -EPROTO);
    message = message_of(PTK_HANDOVER_QUEUE, 2);
    message.queue.idx = UINT32_MAX;
    PTK_ASSERT(verify(&message) == -EPROTO);
    message = message_of(PTK_HANDOVER_REFUSE, 0);
    memset(message.refuse.text, 'x', sizeof message.refuse.text); /* without an end */
    PTK_ASSERT(verify(&message) == -EPROTO);
}

static int count_open(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    PTK_ASSERT(folder != NULL);
    while (readdir(folder) != NULL) {
        count++;
    }
    PTK_ASSERT(closedir(folder) == 0);
    return count;
}

/* Descriptors arrive as the same files; what is refused leaves none of them open. */
static void test_travel(void)
{
    int ends[2];
    int fds[PTK_HANDOVER_FDS_MAX];
    int pipes[2];
    struct ptk_err err;
    PTK_ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    PTK_ASSERT(ptk_handover_check_peer(ends[0], &err) == 0);
    PTK_ASSERT(pipe(pipes) == 0);
    const int before = count_open();

    union ptk_handover_message sent = message_of(PTK_HANDOVER_QUEUE, 2);
    union ptk_handover_message seen;
    sent.queue.idx = 7;
    PTK_ASSERT(ptk_handover_send(ends[0], &sent, pipes, &err) == 0);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_QUEUE, &seen, fds, &err) == 0);
    PTK_ASSERT(memcmp(&sent.queue, &seen.queue, sizeof sent.queue) == 0);
    for (int i = 0; i < 2; i++) {
        struct stat theirs;
        struct stat ours;
        PTK_ASSERT(fstat(pipes[i], &theirs) == 0);
        PTK_ASSERT(fstat(fds[i], &ours) == 0);
        PTK_ASSERT(theirs.st_ino == ours.st_ino);
        PTK_ASSERT(close(fds[i]) == 0);
    }

    /* Out of its turn; then with descriptors that it must not have; then too long. */
    PTK_ASSERT(ptk_handover_send(ends[0], &sent, pipes, &err) == 0);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_HELD, &seen, fds, &err) == -EPROTO);
    sent.queue.idx = UINT32_MAX;
    PTK_ASSERT(ptk_handover_send(ends[0], &sent, pipes, &err) == 0);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_QUEUE, &seen, fds, &err) == -EPROTO);
    PTK_ASSERT(count_open() == before);
    static const uint8_t LONG[sizeof(union ptk_handover_message) + 1];
    PTK_ASSERT(send(ends[0], LONG, sizeof LONG, 0) == (ssize_t)sizeof LONG);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_HELLO, &seen, fds, &err) == -EPROTO);

    memset(&err, 0xA5, sizeof err); /* What stands behind a sentence stays here. */
    (void)ptk_err_set(&err, -EBUSY, "not now");
    ptk_handover_send_refusal(ends[0], &err);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_SERVER, &seen, fds, &err) ==
               -ECONNREFUSED);
    PTK_ASSERT(strcmp(err.text, "not now") == 0);
    for (size_t i = strlen("not now"); i < sizeof seen.refuse.text; i++) {
        PTK_ASSERT(seen.refuse.text[i] == '\0');
    }
    const struct timeval moment = {.tv_usec = 1000};
    PTK_ASSERT(setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &moment, sizeof moment) == 0);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_HELLO, &seen, fds, &err) == -EAGAIN);
    (void)close(ends[0]);
    PTK_ASSERT(ptk_handover_receive(ends[1], PTK_HANDOVER_HELLO, &seen, fds, &err) == -ECONNRESET);
    sent = message_of(PTK_HANDOVER_HELLO, 0);
    PTK_ASSERT(ptk_handover_send(ends[1], &sent, NULL, &err) < 0);
    (void)close(ends[1]);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

/* Giver and heir reach for the word at the same time, again and again: one of them gets it. */
enum { ROUNDS = 20000 };
static struct ptk_handover_block block;
static pthread_barrier_t barrier;

static void *reach(void *argument)
{
    uint32_t *won = argument;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        (void)pthread_barrier_wait(&barrier);
        won[i] = ptk_handover_move(&block, PTK_HANDOVER_BATON_STILL, PTK_HANDOVER_BATON_HEIR);
        (void)pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void test_baton_has_one_winner(void)
{
    static uint32_t won[ROUNDS];
    pthread_t heir;
    PTK_ASSERT(pthread_barrier_init(&barrier, NULL, 2) == 0);
    PTK_ASSERT(!ptk_handover_move(&block, PTK_HANDOVER_BATON_STILL, PTK_HANDOVER_BATON_HEIR));
    atomic_store(&block.baton, PTK_HANDOVER_BATON_STILL);
    PTK_ASSERT(pthread_create(&heir, NULL, reach, won) == 0);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        (void)pthread_barrier_wait(&barrier);
        const bool kept =
            ptk_handover_move(&block, PTK_HANDOVER_BATON_STILL, PTK_HANDOVER_BATON_GIVER);
        (void)pthread_barrier_wait(&barrier);
        PTK_ASSERT(kept != (bool)won[i]);
        PTK_ASSERT(atomic_load(&block.baton) ==
                   (uint32_t)(kept ? PTK_HANDOVER_BATON_GIVER : PTK_HANDOVER_BATON_HEIR));
        atomic_store(&block.baton, PTK_HANDOVER_BATON_STILL);
    }
    PTK_ASSERT(pthread_join(heir, NULL) == 0);
    const size_t each = sizeof(struct ptk_handover_worker) + ptk_guard_books_len();
    PTK_ASSERT(ptk_handover_block_len(3) == sizeof block + 3 * each);
    for (uint32_t i = 0; i < 3; i++) { /* Behind the workers, one after another, to the end. */
        const size_t off =
            (size_t)((uint8_t *)ptk_handover_books(&block, 3, i) - (uint8_t *)&block);
        PTK_ASSERT(off == ptk_handover_block_len(3) - (3 - i) * ptk_guard_books_len());
        PTK_ASSERT(off % 8 == 0);
    }
}

int main(void)
{
    test_server_limits();
    test_heads();
    test_travel();
    test_baton_has_one_winner();
    puts("handover: ok");
    return 0;
}
