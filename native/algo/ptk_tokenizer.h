/*
 * Text to ids and back: the whole pipeline of one model.
 *
 *     added tokens · normalize · added tokens again · pre-tokenize · piece to ids · post-process
 *
 * Life: open an image (`image/ptk_image.h`), open a tokenizer over it, give every thread one
 * `ptk_work` for its buffers and one `ptk_cache` per model, encode. Opening is set-up: it allocates
 * and may fail with a sentence. Encoding and decoding allocate nothing, make no system call and
 * take no lock.
 *
 * Threads: a tokenizer is immutable and shared; a work and a cache belong to one thread.
 */
#ifndef PTK_TOKENIZER_H
#define PTK_TOKENIZER_H

#include "base/ptk_err.h"
#include "gen/ptk_wire_gen.h"
#include "image/ptk_image.h"
#include "text/ptk_text.h"

struct ptk_tokenizer;
struct ptk_work;
struct ptk_cache;

/*
 * ptk_tokenizer_open prepares a model for use: it translates the image's programs (split patterns
 * without a scanner are compiled by PCRE2 here). The image must outlive it. Returns 0, or a
 * negative errno and a sentence naming the component that this build cannot run.
 */
int ptk_tokenizer_open(const struct ptk_image *image, struct ptk_tokenizer **out,
                       struct ptk_err *err);
void ptk_tokenizer_close(struct ptk_tokenizer *tokenizer); /* NULL is allowed. */

/*
 * What opening has gathered, for the sections of the image that spare it the next time: which
 * characters stand side by side in tokens; NULL for models that need none.
 * ptk_tokenizer_neighbour_chars writes the entries of neighbour_chars, one for each code point at
 * most, and returns how many there are; `chars` may be NULL.
 */
const struct ptk_image_neighbours *ptk_tokenizer_neighbours(const struct ptk_tokenizer *tokenizer);
size_t ptk_tokenizer_neighbour_chars(const struct ptk_tokenizer *tokenizer, uint32_t *chars);
const struct ptk_image_unigram_neighbours *
ptk_tokenizer_unigram_neighbours(const struct ptk_tokenizer *tokenizer);

/*
 * What a work must be able to hold. It costs 4.3 MiB and 117 bytes per byte of text: room for a
 * text that normalization makes three times as long, and for one piece as long as the text.
 */
struct ptk_work_limits {
    size_t text_len_max; /* longest text of one item (pair: of each side), in bytes */
};

/*
 * ptk_work_len says how many bytes of memory ptk_work_init needs for these limits; ptk_work_init
 * lays the work out in `memory` (64-byte aligned, owned by the caller, not touched outside this
 * thread).
 */
size_t ptk_work_len(const struct ptk_work_limits *limits);
struct ptk_work *ptk_work_init(void *memory, const struct ptk_work_limits *limits);

/*
 * The piece cache: bounded, lossy, private to a thread. `memory_len` is a power of two of at least
 * PTK_CACHE_LEN_MIN; a cache must be initialised again before it is used with another tokenizer.
 */
#define PTK_CACHE_LEN_MIN 65536u
struct ptk_cache *ptk_cache_init(void *memory, size_t memory_len);

/* One text, or a pair. Bytes need not be terminated and are not modified. */
struct ptk_encode_request {
    const uint8_t *text;
    size_t text_len;
    const uint8_t *pair; /* NULL: no pair */
    size_t pair_len;
    uint32_t options; /* PTK_WIRE_OPTIONS_* */
    uint32_t outputs; /* PTK_WIRE_OUTPUTS_*: the result has these arrays */
    const struct ptk_wire_truncation *truncation; /* NULL: none */
    bool checked; /* the caller vouches for valid UTF-8, as of CPython's own strings */
    /* Bytes that are ordinary text, of the text and, counted on from its end, of the pair. */
    const struct ptk_plain_range *plain;
    size_t plain_count;
};

/* Result of an encode: arrays of the caller with room for `cap` entries; those that are there are
 * filled. */
struct ptk_encoding {
    uint32_t *ids;
    struct ptk_span *offsets;     /* NULL unless asked for */
    uint8_t *type_ids;            /* NULL unless asked for */
    uint8_t *special_tokens_mask; /* NULL unless asked for */
    size_t len;
    size_t cap;
    size_t hits; /* tokens in the text that `plain` made ordinary; 0 without it */
};

/*
 * ptk_tokenizer_encode writes the ids of one item. Returns
 *   PTK_VERDICT_OK
 *   PTK_VERDICT_BAD_UTF8        a text is not valid UTF-8; nothing is written
 *   PTK_VERDICT_TEXT_TOO_LONG   a text, or its normalized form, exceeds the work's limits
 *   PTK_VERDICT_REPLY_TOO_LONG  `cap` is too small; contents of the arrays are unspecified
 *   PTK_VERDICT_UNSUPPORTED     the request asks for something this model does not define (bos
 *                               without a bos token, for instance)
 *   PTK_VERDICT_BAD_OPTION      a truncation that the reference refuses: no room for the special
 *                               tokens, the sequence to cut is missing or too short, or stride is
 *                               not below what is left
 * Cost: linear in the text for every input; a truncated text may be read twice. Vocabularies with
 * more than 2^20 merges take n log n for one piece of n bytes.
 */
enum ptk_verdict ptk_tokenizer_encode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      struct ptk_cache *cache,
                                      const struct ptk_encode_request *request,
                                      struct ptk_encoding *out);

/*
 * Windows of one item: how many ids each has. `whole` is scratch of the caller for the uncut texts:
 * ids, and offsets where they are asked for, with room for all their ids.
 */
struct ptk_windows {
    struct ptk_encoding whole;
    uint32_t *lens;
    size_t count;
    size_t cap; /* of lens */
};

/*
 * ptk_tokenizer_encode_windows is ptk_tokenizer_encode with all that truncation cuts off: the ids
 * of every window, one after another, in the order of the reference, the one that encode gives
 * first. Its verdicts, and REPLY_TOO_LONG also when `whole` or `lens` is too small. Cost: linear in
 * the texts and in the ids written.
 */
enum ptk_verdict ptk_tokenizer_encode_windows(const struct ptk_tokenizer *tokenizer,
                                              struct ptk_work *work, struct ptk_cache *cache,
                                              const struct ptk_encode_request *request,
                                              struct ptk_windows *windows,
                                              struct ptk_encoding *out);

/*
 * ptk_tokenizer_count gives the number of ids encode would write, without writing any. `hits` as in
 * struct ptk_encoding.
 */
enum ptk_verdict ptk_tokenizer_count(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                     struct ptk_cache *cache,
                                     const struct ptk_encode_request *request, size_t *count,
                                     size_t *hits);

/*
 * ptk_tokenizer_decode writes the text of `ids` (UTF-8; invalid bytes become U+FFFD as the
 * reference does). Ids the vocabulary does not have are skipped, as the reference does. Returns OK,
 * TEXT_TOO_LONG when the work is too small, or REPLY_TOO_LONG when `cap` is.
 */
enum ptk_verdict ptk_tokenizer_decode(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                      const uint32_t *ids, size_t ids_len, uint32_t options,
                                      uint8_t *text, size_t cap, size_t *text_len);

/* ptk_tokenizer_checks_text: whether decode has looked at every byte of its text; otherwise that is
 * as valid as the strings of the vocabulary. */
bool ptk_tokenizer_checks_text(const struct ptk_tokenizer *tokenizer);

/*
 * ptk_tokenizer_piece gives what an id adds to a text that has begun: in byte-level models bytes
 * that need not be UTF-8 by themselves, in others whole characters; none for an id that is not
 * shown. False where that depends on the ids beside it. The bytes live as long as the tokenizer.
 */
bool ptk_tokenizer_piece(const struct ptk_tokenizer *tokenizer, uint32_t id, bool skip_special,
                         const uint8_t **bytes, size_t *len);

/* One step of a stream of ids; gen/WIRE.md has the rules. The stream is its window of ids. */
struct ptk_step_request {
    const uint32_t *ids; /* the window, then the new ids */
    size_t ids_count;
    size_t given_count; /* ids at the front whose text was given: context */
    size_t new_count;   /* ids at the end that are new; given_count + new_count <= ids_count */
    uint32_t options;   /* PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS or 0 */
    bool flush;         /* the stream ends */
    uint8_t *scratch;   /* room for the texts of the context and of all ids */
    size_t scratch_cap;
};

/* What a step gives, and what it leaves of the window. */
struct ptk_step {
    uint8_t *text; /* of the caller; empty: the ids complete nothing yet */
    size_t cap;
    size_t text_len;
    size_t dropped_count; /* ids that leave the window at its front */
    size_t given_count;   /* of those that remain, ids that are context */
};

/*
 * ptk_tokenizer_step decodes one step. Returns OK, TEXT_TOO_LONG when the work or `scratch` is too
 * small, or REPLY_TOO_LONG when `cap` is. Cost: decoding the context and the window a few times.
 */
enum ptk_verdict ptk_tokenizer_step(const struct ptk_tokenizer *tokenizer, struct ptk_work *work,
                                    const struct ptk_step_request *request, struct ptk_step *out);

#endif
