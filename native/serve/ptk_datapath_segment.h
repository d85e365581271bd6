/*
 * The two files that the datapath shares with the control process: the statistics segment, which we
 * write, and the mailbox, which we read. Their layout is spec/metrics.toml.
 */
#ifndef PTK_DATAPATH_SEGMENT_H
#define PTK_DATAPATH_SEGMENT_H

#include "base/ptk_err.h"
#include "gen/ptk_metrics_gen.h"

struct ptk_segment_shape {
    uint32_t worker_count;
    uint32_t queue_count;
    uint32_t steer_count; /* PTK_STEER_COUNTER_COUNT, or 0 without an XDP program */
    uint32_t model_count;
};

struct ptk_segment {
    uint8_t *base;
    size_t len;
    const char *path; /* the caller's; NULL: none, or published */
    bool on_disk;     /* the file is not in memory: its write-back can stall a worker */
    struct ptk_stats_head *head;
    uint64_t *process; /* gauges, order of counter group `process` */
    struct ptk_stats_worker *workers;
    struct ptk_stats_queue *queues;
    uint64_t *steer;
    struct ptk_stats_model *models;
    struct ptk_stats_ack *ack;
};

/*
 * ptk_segment_open makes the segment as a new file beside `path`; with a NULL path it is private
 * memory. Everything is zero but the head. Locked if allowed. ptk_segment_publish lets readers
 * look: it writes the magic and moves the file to `path`, in the place of any older one, whose
 * readers are not disturbed. A segment that is closed before leaves nothing behind.
 */
int ptk_segment_open(struct ptk_segment *segment, const char *path,
                     const struct ptk_segment_shape *shape, struct ptk_err *err);
int ptk_segment_publish(struct ptk_segment *segment, struct ptk_err *err);
void ptk_segment_close(struct ptk_segment *segment);

/* ptk_mailbox_open maps the mailbox at `path`, which the control process has made. */
int ptk_mailbox_open(const struct ptk_mailbox **mailbox, const char *path, struct ptk_err *err);
void ptk_mailbox_close(const struct ptk_mailbox *mailbox); /* NULL is allowed. */

/*
 * ptk_mailbox_take copies the command with a number other than `answered` into `command` and
 * returns true. Its strings are terminated whatever the writer did.
 */
bool ptk_mailbox_take(const struct ptk_mailbox *mailbox, uint64_t answered,
                      struct ptk_mailbox *command);

#endif
