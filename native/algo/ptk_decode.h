/*
 * Ids back to text.
 *
 * Byte-level models decode by concatenation: the bytes of each id one after another, invalid UTF-8
 * replaced at the end. Other models run a decoder program over the list of the ids' strings, one
 * operation after the other, as the reference does: that is the definition.
 *
 * Of most programs the operations change each string alone, but for the first one's and for the
 * ends of the whole text. Then a table holds what each id gives behind another one, the program
 * runs over the first id only, and the rest is copied as in byte-level models.
 */
#ifndef PTK_DECODE_H
#define PTK_DECODE_H

#include "algo/ptk_decode_table.h"
#include "algo/ptk_tokenizer.h"
#include "text/ptk_norm.h"

struct ptk_decode_spm;

/* Characters that a program takes off the ends of the fused text; none where the counts are 0. */
struct ptk_decode_strip {
    uint8_t content[4];
    uint32_t content_len;
    uint32_t start;
    uint32_t stop;
};

struct ptk_decoder {
    const struct ptk_image *image;
    bool concat;      /* the strings are ready in token_bytes */
    bool spaced;      /* there is no decoder: strings are joined with a space */
    bool tabled;      /* the table and the fields below say what the program gives */
    bool first_alone; /* the first string differs: the program makes it */
    bool byte_runs;   /* runs of byte tokens need nothing but their bytes */
    struct ptk_decode_strip strip;
    struct ptk_decode_table table;
    struct ptk_decode_spm *spm; /* the decoder is sentencepiece's own; owned */
};

/* ptk_decoder_init refuses programs with an operation that this build cannot run. Its memory is
 * given back by fini, also after a failure. */
int ptk_decoder_init(struct ptk_decoder *decoder, const struct ptk_image *image,
                     struct ptk_err *err);
void ptk_decoder_fini(struct ptk_decoder *decoder);

/* Memory for one decode, owned by the caller; two buffers because an operation reads one. */
struct ptk_decode_scratch {
    uint8_t *bytes[2]; /* text_cap each */
    uint32_t *ends[2]; /* end_cap each */
    size_t text_cap;
    size_t end_cap;
    struct ptk_norm_work *norm; /* for models that normalize what they decode */
};

/* ptk_decoder_run: see ptk_tokenizer_decode. */
enum ptk_verdict ptk_decoder_run(const struct ptk_decoder *decoder,
                                 const struct ptk_decode_scratch *scratch, const uint32_t *ids,
                                 size_t ids_len, bool skip_special, uint8_t *text, size_t cap,
                                 size_t *text_len);

/* ptk_decoder_piece: see ptk_tokenizer_piece. */
bool ptk_decoder_piece(const struct ptk_decoder *decoder, uint32_t id, bool skip_special,
                       const uint8_t **bytes, size_t *len);

#endif
