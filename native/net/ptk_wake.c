/* The wake-ups of AF_XDP as system calls. */
#include "net/ptk_wake.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

enum ptk_wake ptk_wake_tx(int socket_fd)
{
    if (sendto(socket_fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0) {
        return PTK_WAKE_DONE;
    }
    switch (errno) {
    case EAGAIN:
        return PTK_WAKE_AGAIN;
    case EBUSY:
    case ENOBUFS:
        return PTK_WAKE_DROPPED;
    default:
        return PTK_WAKE_DOWN; /* ENETDOWN, ENXIO: the packets stay in the ring. */
    }
}

void ptk_wake_rx(int socket_fd)
{
    /* There is nothing to read by this call; its error says only that. */
    (void)recvfrom(socket_fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

bool ptk_wake_wait(int socket_fd, int timeout_ms)
{
    struct pollfd entry = {.fd = socket_fd, .events = POLLIN};
    return poll(&entry, 1, timeout_ms) > 0 && (entry.revents & POLLIN) != 0;
}
