/*
 * The system calls of a running poller, and no others: wake the kernel's transmit side, wake its
 * receive side, sleep until a packet comes. They stand apart so that the ring simulation can take
 * their place.
 */
#ifndef PTK_WAKE_H
#define PTK_WAKE_H

#include "base/ptk_base.h"

enum ptk_wake {
    PTK_WAKE_DONE = 0, /* the kernel has taken what it could */
    PTK_WAKE_AGAIN,    /* it stopped after one batch and wants another call */
    PTK_WAKE_DROPPED,  /* it dropped a packet (EBUSY) or has no socket buffer left (ENOBUFS) */
    PTK_WAKE_DOWN,     /* the link or the driver is not there at the moment */
};

/* Asks the kernel to send what stands in the transmit ring. In copy mode it sends inside this call.
 */
enum ptk_wake ptk_wake_tx(int socket_fd);

/* Asks the driver to look at the fill ring. Needed when the fill ring's flag says so. */
void ptk_wake_rx(int socket_fd);

/* Sleeps until a packet is there or `timeout_ms` has passed. True when there is one. */
bool ptk_wake_wait(int socket_fd, int timeout_ms);

#endif
