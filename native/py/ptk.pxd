# The part of the core's headers that Python uses, name for name.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "base/ptk_err.h" nogil:
    struct ptk_err:
        int code
        char text[512]

cdef extern from "gen/ptk_image_gen.h" nogil:
    enum:
        PTK_IMAGE_TOKEN_FLAGS_EXISTS
        PTK_IMAGE_TOKEN_FLAGS_SPECIAL
        PTK_IMAGE_ADDED_FLAGS_SPECIAL
        PTK_IMAGE_ADDED_FLAGS_NORMALIZED

    struct ptk_image_added:
        uint32_t flags
        uint32_t match_off
        uint32_t match_len

    struct ptk_image_header:
        uint8_t fingerprint[32]
        uint32_t profile
        uint32_t source
        uint32_t tag

    struct ptk_image_pair:
        uint32_t left
        uint32_t right
        uint32_t rank
        uint32_t id

    struct ptk_image_piece:
        uint8_t key[16]
        uint32_t ids[4]

    struct ptk_image_trie_unit:
        uint32_t base
        uint32_t word

    struct ptk_image_config:
        uint32_t algorithm
        uint32_t flags
        uint32_t ids_end
        uint32_t vocab_len
        uint32_t unk_id
        uint32_t bos_id
        uint32_t eos_id
        uint32_t pad_id
        uint32_t truncation_max
        uint32_t truncation_stride
        uint32_t truncation_kind
        uint32_t padding_kind
        uint32_t padding_len
        uint32_t padding_multiple
        uint32_t padding_id
        uint32_t padding_type_id

cdef extern from "gen/ptk_wire_gen.h" nogil:
    enum ptk_verdict:
        PTK_VERDICT_OK
        PTK_VERDICT_BAD_UTF8
        PTK_VERDICT_TEXT_TOO_LONG
        PTK_VERDICT_REPLY_TOO_LONG
    enum:
        PTK_WIRE_OPTIONS_OFFSETS_CHARS
        PTK_WIRE_OUTPUTS_OFFSETS
        PTK_WIRE_OUTPUTS_TYPE_IDS
        PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK

    struct ptk_wire_truncation:
        uint32_t max_length
        uint32_t stride
        uint8_t strategy
        uint8_t direction
        uint8_t reserved[6]

cdef extern from "text/ptk_text.h" nogil:
    struct ptk_span:
        uint32_t begin
        uint32_t end

    struct ptk_plain_range:
        uint32_t begin
        uint32_t end
        bint all

cdef extern from "text/ptk_utf8.h" nogil:
    bint ptk_utf8_valid(const uint8_t *bytes, size_t len)
    size_t ptk_utf8_count(const uint8_t *bytes, size_t len)
    uint8_t ptk_utf8_top(const uint8_t *bytes, size_t len)

cdef extern from "text/ptk_utf8_width.h" nogil:
    void ptk_utf8_widen(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
    size_t ptk_utf8_narrow_cap(size_t count, uint32_t width)
    size_t ptk_utf8_narrow(const void *src, size_t count, uint32_t width, uint8_t *dst)

cdef extern from "text/ptk_split.h" nogil:
    struct ptk_split_text:
        const uint8_t *bytes
        size_t len

cdef extern from "text/ptk_norm.h" nogil:
    struct ptk_norm
    struct ptk_norm_work

    struct ptk_norm_config:
        const uint8_t *program
        size_t program_len
        uint32_t profile

    struct ptk_norm_limits:
        size_t text_len_max
        bint align

    struct ptk_norm_section:
        const uint8_t *bytes
        size_t len
        size_t origin
        bint align

    int ptk_norm_open(const ptk_norm_config *config, ptk_norm **out, ptk_err *err)
    void ptk_norm_close(ptk_norm *norm)
    size_t ptk_norm_work_len(const ptk_norm_limits *limits)
    ptk_norm_work *ptk_norm_work_init(void *memory, const ptk_norm_limits *limits)
    ptk_verdict ptk_norm_run(const ptk_norm *norm, ptk_norm_work *work,
                             const ptk_norm_section *section, ptk_split_text *result)

cdef extern from "image/ptk_image.h" nogil:
    enum ptk_image_hold:
        PTK_IMAGE_HOLD_COPY
        PTK_IMAGE_HOLD_MAP

    struct ptk_image:
        size_t len
        const ptk_image_header *header
        const ptk_image_config *config
        const uint32_t *token_text_offs
        const uint8_t *token_text
        const uint32_t *token_bytes_offs
        const uint8_t *token_bytes
        const uint8_t *token_flags
        const uint8_t *strings
        const ptk_image_added *added
        uint32_t added_count
        const uint8_t *certificate
        size_t certificate_len
        const uint8_t *meta
        size_t meta_len

    struct ptk_image_neighbours:
        pass

    struct ptk_image_unigram_neighbours:
        pass

    int ptk_image_view(const void *bytes, size_t len, ptk_image *out, ptk_err *err)
    uint64_t ptk_image_checksum(const uint8_t *bytes, size_t len)
    int ptk_image_open(const char *path, ptk_image_hold hold, ptk_image *out, ptk_err *err)
    void ptk_image_close(ptk_image *image)
    uint32_t ptk_image_vocab(const ptk_image *image, const uint8_t *key, size_t len)

cdef extern from "image/ptk_image_build.h" nogil:
    struct ptk_build_keys:
        const uint32_t *offs
        const uint8_t *bytes
        uint32_t ids_end

    size_t ptk_build_capacity(size_t count)
    size_t ptk_build_piece_capacity(size_t count)
    int ptk_build_pairs(const ptk_image_pair *merges, size_t merge_count, ptk_image_pair *table,
                        size_t capacity, uint32_t *probe_max)
    int ptk_build_vocab(const ptk_build_keys *keys, uint32_t *table, size_t capacity,
                        uint32_t *probe_max, uint32_t *duplicate)
    int ptk_build_pieces(const ptk_image_piece *pieces, size_t piece_count, ptk_image_piece *table,
                         size_t capacity, uint32_t *probe_max)
    int ptk_build_trie(const ptk_build_keys *keys, const uint32_t *ids, size_t id_count,
                       ptk_image_trie_unit **units, uint32_t *unit_count)
    void ptk_build_free(void *memory)
    int ptk_build_rank_merges(const ptk_build_keys *keys, const uint32_t *vocab, size_t capacity,
                              const uint32_t *ranks, ptk_image_pair *merges, size_t *merge_count,
                              uint8_t *reachable)

    struct ptk_build_tables:
        const ptk_image_pair *pairs
        size_t pair_capacity
        const uint32_t *vocab
        size_t vocab_capacity
        const uint32_t *byte_ids

    int ptk_build_prune_merges(const ptk_build_keys *keys, const ptk_build_tables *tables,
                               const ptk_image_pair *merges, size_t merge_count, uint8_t *keep,
                               uint8_t *reachable)

    struct ptk_build_seeds:
        const uint32_t *offs
        const uint8_t *bytes
        size_t count
        bint whole
        bint space_marks

    int ptk_build_seed_pieces(const ptk_build_keys *keys, const ptk_build_tables *tables,
                              const ptk_build_seeds *seeds, ptk_image_piece *pieces,
                              size_t *piece_count)

cdef extern from "algo/ptk_tokenizer.h" nogil:
    struct ptk_tokenizer
    struct ptk_work
    struct ptk_cache

    int ptk_tokenizer_open(const ptk_image *image, ptk_tokenizer **out, ptk_err *err)
    void ptk_tokenizer_close(ptk_tokenizer *tokenizer)
    const ptk_image_neighbours *ptk_tokenizer_neighbours(const ptk_tokenizer *tokenizer)
    size_t ptk_tokenizer_neighbour_chars(const ptk_tokenizer *tokenizer, uint32_t *chars)
    const ptk_image_unigram_neighbours *ptk_tokenizer_unigram_neighbours(
        const ptk_tokenizer *tokenizer)

    struct ptk_work_limits:
        size_t text_len_max

    size_t ptk_work_len(const ptk_work_limits *limits)
    ptk_work *ptk_work_init(void *memory, const ptk_work_limits *limits)
    ptk_cache *ptk_cache_init(void *memory, size_t memory_len)

    enum:
        PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS
        PTK_WIRE_OPTIONS_PARSE_SPECIAL
        PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS

    struct ptk_encode_request:
        const uint8_t *text
        size_t text_len
        const uint8_t *pair
        size_t pair_len
        uint32_t options
        uint32_t outputs
        const ptk_wire_truncation *truncation
        bint checked
        const ptk_plain_range *plain
        size_t plain_count

    struct ptk_encoding:
        uint32_t *ids
        ptk_span *offsets
        uint8_t *type_ids
        uint8_t *special_tokens_mask
        size_t len
        size_t cap
        size_t hits

    struct ptk_windows:
        ptk_encoding whole
        uint32_t *lens
        size_t count
        size_t cap

    struct ptk_step_request:
        const uint32_t *ids
        size_t ids_count
        size_t given_count
        size_t new_count
        uint32_t options
        bint flush
        uint8_t *scratch
        size_t scratch_cap

    struct ptk_step:
        uint8_t *text
        size_t cap
        size_t text_len
        size_t dropped_count
        size_t given_count

    ptk_verdict ptk_tokenizer_encode(const ptk_tokenizer *tokenizer, ptk_work *work,
                                     ptk_cache *cache, const ptk_encode_request *request,
                                     ptk_encoding *out)
    ptk_verdict ptk_tokenizer_encode_windows(const ptk_tokenizer *tokenizer, ptk_work *work,
                                             ptk_cache *cache, const ptk_encode_request *request,
                                             ptk_windows *windows, ptk_encoding *out)
    ptk_verdict ptk_tokenizer_count(const ptk_tokenizer *tokenizer, ptk_work *work,
                                    ptk_cache *cache, const ptk_encode_request *request,
                                    size_t *count, size_t *hits)
    ptk_verdict ptk_tokenizer_step(const ptk_tokenizer *tokenizer, ptk_work *work,
                                   const ptk_step_request *request, ptk_step *out)
    ptk_verdict ptk_tokenizer_decode(const ptk_tokenizer *tokenizer, ptk_work *work,
                                     const uint32_t *ids, size_t ids_len, uint32_t options,
                                     uint8_t *text, size_t cap, size_t *text_len)
    bint ptk_tokenizer_checks_text(const ptk_tokenizer *tokenizer)
    bint ptk_tokenizer_piece(const ptk_tokenizer *tokenizer, uint32_t id, bint skip_special,
                             const uint8_t **bytes, size_t *len)

cdef extern from "wire/ptk_crc32c.h" nogil:
    uint32_t ptk_crc32c(const uint8_t *bytes, size_t len)
