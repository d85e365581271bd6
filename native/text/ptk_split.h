/*
 * Pre-tokenizers: where a text is cut into the pieces that are encoded one by one.
 *
 * A pre-tokenizer is a program of image operations (`op_pre` in `spec/image.toml`), verified and
 * translated once into an immutable `struct ptk_split`. There are two ways to run one:
 *
 *   scan   The program is one known scanner over unchanged text. Pieces follow each other without
 *          gaps, so that a piece is its end, and the state between two calls is one position.
 *          ptk_split_is_scan() says when this holds: for nearly every byte-level BPE model.
 *   run    Any program: pieces may be dropped, text may be inserted or changed. The pieces are kept
 *          as bits over the text, refined in place by one operation after the other, and read out
 * in order with ptk_split_next().
 *
 * Both ways read out in chunks of the caller's size, so that the list of pieces stays in the first
 * cache and an encode can pause between two chunks. Opening is set-up. Running allocates nothing,
 * makes no system call and keeps its state in memory of the caller.
 *
 * Threads: a split is immutable and shared; a work and the pieces read from it belong to one
 * thread.
 */
#ifndef PTK_SPLIT_H
#define PTK_SPLIT_H

#include "base/ptk_err.h"
#include "gen/ptk_image_gen.h"
#include "gen/ptk_wire_gen.h"
#include "text/ptk_text.h"

struct ptk_split;
struct ptk_split_work;

/* Flag of an operation behind byte_level: bytes count as characters, so pieces may end in one. */
#define PTK_SPLIT_FLAG_ALPHABET 0x8000u

/* What a program is translated from. */
struct ptk_split_config {
    const uint8_t
        *program; /* section pre_tokenizer, or NULL with program_len 0: no pre-tokenizer */
    size_t program_len;
    enum ptk_image_profile profile;
    enum ptk_image_source source; /* decides the regular-expression dialect of split_regex */
    bool byte_units;              /* the byte-level mapping is left out, see image_flags */
};

/*
 * ptk_split_open verifies every byte of the program and translates it. Patterns of split_regex are
 * compiled here. The program need not outlive the call. Returns 0 and a split to be closed, or a
 * negative errno (EINVAL: malformed, ENOTSUP: well-formed but not supported, ENOMEM) and a sentence
 * that names the operation.
 */
int ptk_split_open(const struct ptk_split_config *config, struct ptk_split **out,
                   struct ptk_err *err);
void ptk_split_close(struct ptk_split *split); /* NULL is allowed. */

/* ptk_split_is_scan says whether ptk_split_scan may be used. ptk_split_run always may. */
bool ptk_split_is_scan(const struct ptk_split *split);

/*
 * ptk_split_changes_text says whether pieces may hold other bytes than the text: then ptk_split_run
 * needs an `out` buffer.
 */
bool ptk_split_changes_text(const struct ptk_split *split);

/*
 * ptk_split_needs_align says whether the pieces themselves depend on where in the original text
 * they begin (Metaspace `first` behind another split). Then a normalizer that changes the text must
 * keep the alignment even if nobody asked for offsets.
 */
bool ptk_split_needs_align(const struct ptk_split *split);

/*
 * ptk_split_scan writes the ends of the next pieces of `text[*pos..len)`, at most `cap`, moves
 * `*pos` to the last end written and returns their number; 0 when `*pos` is `len`. A piece begins
 * where the one before it ends; the first one begins at `*pos`, which must be 0 or the end of a
 * piece. Assumes that the program is a scan, that `text` is valid UTF-8, that `len` fits 32 bits
 * and `cap` > 0. Reads only `text[0..len)`. A chunk of 256 to 1024 pieces keeps the cost of
 * stopping small.
 */
size_t ptk_split_scan(const struct ptk_split *split, const uint8_t *text, size_t len, size_t *pos,
                      uint32_t *ends, size_t cap);

/*
 * ptk_split_work_len says how many bytes of memory a thread needs to run any split on texts of up
 * to `text_len_max` bytes, before and after the split changes them (2^31 at most).
 * ptk_split_work_init lays the work out in `memory` (64-byte aligned, owned by the caller).
 */
size_t ptk_split_work_len(size_t text_len_max);
struct ptk_split_work *ptk_split_work_init(void *memory, size_t text_len_max);

/*
 * One section of a text: what lies between two added tokens, normalized.
 *
 * `align` is NULL, or has for each byte the range of the original text that it came from, as
 * offsets into the whole original text. Where it is NULL, the bytes are taken as the unchanged
 * bytes that begin at `origin` of the original text.
 */
struct ptk_split_text {
    const uint8_t *bytes;
    const struct ptk_span *align;
    size_t len;
    size_t origin; /* where the section begins in the original text */
};

/* The pieces of one run, to be read in order. Valid until the work's next run. */
struct ptk_split_pieces {
    struct ptk_split_text
        text; /* the bytes that the pieces are ranges of: the input's or `out`'s */
    const struct ptk_split_work *work;
    size_t pos; /* where the next piece is looked for */
};

/*
 * ptk_split_run cuts one section into pieces. `out` receives the text when the program changes it
 * (with alignment if `out->align` is not NULL) and may be NULL when ptk_split_changes_text() is
 * false; `in` and `out` must not overlap. Returns PTK_VERDICT_OK PTK_VERDICT_TEXT_TOO_LONG  the
 * text, or what the program makes of it, exceeds the work or `out` PTK_VERDICT_UNSUPPORTED    a
 * regular expression exceeded its limits on this text and nothing usable but OK's pieces. Assumes
 * valid UTF-8.
 */
enum ptk_verdict ptk_split_run(const struct ptk_split *split, struct ptk_split_work *work,
                               const struct ptk_split_text *in, struct ptk_text_buf *out,
                               struct ptk_split_pieces *pieces);

/*
 * ptk_split_next writes the next pieces, at most `cap`, as ranges of `pieces->text.bytes` in
 * ascending order, and returns their number; 0 when there are no more. Pieces are never empty;
 * bytes between two pieces were dropped.
 */
size_t ptk_split_next(struct ptk_split_pieces *pieces, struct ptk_span *spans, size_t cap);

#endif
