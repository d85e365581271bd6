/*
 * Normalizers: what happens to a text before it is cut into pieces.
 *
 * A normalizer is a program of image operations (`op_norm` in `spec/image.toml`), verified and
 * translated once into an immutable `struct ptk_norm`. It runs on one section of a text at a time
 * (what lies between two added tokens). Text that a program leaves as it is is recognised while it
 * is read and never copied: pure ASCII under NFC, for instance, costs one pass over 16 bytes at a
 * time.
 *
 * Offsets: on request each byte of the result carries the range of original bytes that it came
 * from, by the reference's rules; those are rules of its implementation, not of Unicode, and its
 * tables are too.
 *
 * Opening is set-up. Running allocates nothing and makes no system call; its cost is linear in the
 * text for every text. Threads: a norm is immutable and shared; a work belongs to one thread.
 */
#ifndef PTK_NORM_H
#define PTK_NORM_H

#include "base/ptk_err.h"
#include "gen/ptk_image_gen.h"
#include "gen/ptk_wire_gen.h"
#include "text/ptk_split.h"
#include "text/ptk_text.h"

struct ptk_norm;
struct ptk_norm_work;

/* What a program is translated from. */
struct ptk_norm_config {
    const uint8_t *program; /* section normalizer, or NULL with program_len 0: no normalizer */
    size_t program_len;
    enum ptk_image_profile profile;
};

/*
 * ptk_norm_open verifies every byte of the program and translates it. The program must outlive the
 * norm. Returns 0 and a norm to be closed, or a negative errno (EINVAL: malformed, ENOTSUP:
 * well-formed but not supported, ENOMEM) and a sentence that names the operation.
 */
int ptk_norm_open(const struct ptk_norm_config *config, struct ptk_norm **out, struct ptk_err *err);
void ptk_norm_close(struct ptk_norm *norm); /* NULL is allowed. */

/* ptk_norm_is_empty says whether the program has no operation: running it may be left out. */
bool ptk_norm_is_empty(const struct ptk_norm *norm);

/* What a work must be able to hold. */
struct ptk_norm_limits {
    size_t text_len_max; /* longest section, before, between and after the operations; < 2^31 */
    bool align;          /* alignment will be asked for: costs 16 bytes per byte of text */
};

/*
 * ptk_norm_work_len says how many bytes of memory ptk_norm_work_init needs for these limits;
 * ptk_norm_work_init lays the work out in `memory` (64-byte aligned, owned by the caller). A work
 * serves any norm.
 */
size_t ptk_norm_work_len(const struct ptk_norm_limits *limits);
struct ptk_norm_work *ptk_norm_work_init(void *memory, const struct ptk_norm_limits *limits);

/* One section of the original text: valid UTF-8, `origin` bytes after the text's beginning. */
struct ptk_norm_section {
    const uint8_t *bytes;
    size_t len;
    size_t origin;
    bool align; /* the result needs alignment; allowed when the work's limits have it */
};

/*
 * ptk_norm_run runs the program on one section. The result, in the form that a pre-tokenizer takes,
 * points to the section itself when nothing changed (then its `align` is NULL) and otherwise into
 * the work, where it is valid until the work's next run. Returns PTK_VERDICT_OK
 *   PTK_VERDICT_TEXT_TOO_LONG  the section, or what an operation makes of it, exceeds the work
 *   PTK_VERDICT_UNSUPPORTED    a regular expression exceeded its limits on this text
 */
enum ptk_verdict ptk_norm_run(const struct ptk_norm *norm, struct ptk_norm_work *work,
                              const struct ptk_norm_section *section,
                              struct ptk_split_text *result);

/* ptk_norm_spare is a buffer of the work that the text at `bytes`, a result or not, does not lie
 * in: free until the work's next run. */
struct ptk_text_buf ptk_norm_spare(const struct ptk_norm_work *work, const uint8_t *bytes);

#endif
