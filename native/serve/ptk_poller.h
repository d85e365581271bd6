/*
 * The poller: one thread, one core, one NIC queue, run to completion.
 *
 *     completion ring -> free list -> fill ring -> kernel -> rx ring -> parse · engine · headers ->
 * tx ring
 *
 * A loop drains the completion ring, tops up the fill ring, takes a batch from the receive ring,
 * answers each packet in its own frame and hands the replies to the transmit ring. Nothing waits
 * for anything: a reply for which the transmit ring has no room is dropped and counted.
 *
 * With an MTU that does not fit one frame (`multi_buffer`) a packet may span several: such a
 * request is gathered into a linear buffer, and every reply is made in a second one and spread over
 * frames. That costs one copy of a reply and keeps its largest size independent of how its request
 * arrived.
 *
 * The rings are plain structs, and the only system calls are those of net/ptk_wake.h.
 */
#ifndef PTK_POLLER_H
#define PTK_POLLER_H

#include "net/ptk_frame.h"
#include "net/ptk_frames.h"
#include "net/ptk_ring.h"
#include "serve/ptk_datapath_worker.h"

/* Packets taken at once: enough to amortise ring and wake-up, few enough to answer the first one
 * soon. */
#define PTK_POLLER_BATCH 32u

/* A batch that takes longer than this hands over what it has, completes and refills in between. */
#define PTK_POLLER_BREATH_US 20u

/* The kernel leaves this much free before a received packet (XDP_PACKET_HEADROOM). */
#define PTK_POLLER_HEADROOM 256u

/* Bytes of a packet that one frame holds. */
#define PTK_POLLER_PART_LEN (PTK_FRAME_LEN - PTK_POLLER_HEADROOM)

/* Frames of one packet: an skb has room for 17 parts beside its head; one is left in reserve. */
#define PTK_POLLER_PARTS_MAX 17u

/* Largest packet, from its Ethernet header. */
#define PTK_POLLER_PACKET_LEN_MAX (PTK_POLLER_PARTS_MAX * PTK_POLLER_PART_LEN)

/* The MTU up to which a packet, with a VLAN tag, fits one frame. */
#define PTK_POLLER_MTU_SINGLE (PTK_POLLER_PART_LEN - PTK_FRAME_ETH_LEN - PTK_FRAME_VLAN_LEN)

/* The MTU up to which it fits the parts of one packet. */
#define PTK_POLLER_MTU_MAX (PTK_POLLER_PACKET_LEN_MAX - PTK_FRAME_ETH_LEN - PTK_FRAME_VLAN_LEN)

struct ptk_poller_config {
    struct ptk_worker_config worker;
    struct ptk_ring rx;
    struct ptk_ring tx;
    struct ptk_ring fill;
    struct ptk_ring completion;
    int socket_fd;
    uint8_t *frame_memory; /* frame_count * PTK_FRAME_LEN bytes */
    void *frame_places;    /* ptk_frames_places_len(frame_count) bytes; inherited with the frames */
    uint32_t frame_count;
    bool inherits; /* another poller works on rings and frames still: ptk_poller_inherit follows */
    uint32_t mtu;
    struct ptk_frame_filter filter;
    void *memory; /* ptk_poller_memory_len() bytes, owned by the caller */
};

struct ptk_poller {
    struct ptk_worker worker;
    struct ptk_ring rx;
    struct ptk_ring tx;
    struct ptk_ring fill;
    struct ptk_ring completion;
    int socket_fd;
    uint8_t *frame_memory;
    struct ptk_frames frames;
    struct ptk_frame_filter filter;
    uint32_t mtu;
    bool multi_buffer;
    uint32_t tx_written;    /* entries written to the transmit ring and not yet submitted */
    bool tx_untaken;        /* the kernel may not have taken everything submitted */
    uint64_t batch_start;   /* cycles: when the batch in work was taken */
    uint32_t batch_replies; /* its replies whose service time is not counted yet */
    uint64_t breath_at;     /* cycles: when a long batch hands over */
    uint8_t *gathered;      /* linear copy of a packet in several parts */
    uint32_t gathered_len;  /* bytes of it so far */
    uint32_t gathered_parts;
    uint8_t *linear_reply; /* a reply before it is spread over frames */
};

/* Bytes that a poller needs beside frames, their places and engine. */
size_t ptk_poller_memory_len(uint32_t frame_count);

/* ptk_poller_init lays the poller out; every frame is free unless it inherits. Asserts that the MTU
 * is possible. */
void ptk_poller_init(struct ptk_poller *poller, const struct ptk_poller_config *config);

/*
 * ptk_poller_inherit lets an initialised poller go on where another one, of this process or of one
 * that has ended or stands still, has left rings and frame places between two of its loops. Its
 * worker has been given that one's counters before. False, and nothing usable, when the rings or
 * places are not what a poller leaves.
 */
bool ptk_poller_inherit(struct ptk_poller *poller);

/*
 * ptk_poller_step is one loop without the waiting. Returns the descriptors taken from the receive
 * ring. Afterwards no frame is held: each is free, lent for receiving or lent for sending.
 */
uint32_t ptk_poller_step(struct ptk_poller *poller);

/* Frames that are in none of their places; must be 0 between two steps. */
uint32_t ptk_poller_frames_missing(const struct ptk_poller *poller);

/* The thread: loops until the worker is told to stop and everything is answered. `poller` as
 * argument. */
void *ptk_poller_main(void *poller);

#endif
