/*
 * Opens images: header, section table, checksum, typed views; contents are proved in
 * ptk_image_verify.c.
 */
#include "image/ptk_image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/ptk_image_verify.h"

#define REFUSE(...) ptk_err_set(err, -EINVAL, __VA_ARGS__)

/*
 * Four independent lanes of multiply-and-fold over 32-byte blocks, more than 5 GB/s. It answers
 * damage, not malice: whoever can write the image can write a matching checksum, and then meets the
 * verifier.
 */
struct checksum {
    uint64_t lanes[4];
    size_t fed; /* bytes behind the header so far */
};

static void checksum_feed(struct checksum *sum, const uint8_t *bytes, size_t len)
{
    uint64_t a = sum->lanes[0];
    uint64_t b = sum->lanes[1];
    uint64_t c = sum->lanes[2];
    uint64_t d = sum->lanes[3];
    const size_t fed = sum->fed;
    for (size_t i = 0; i < len; i += 32) {
        const uint64_t at = fed + i;
        a = ptk_hash_fold(ptk_load_u64(bytes + i) ^ PTK_HASH_A, a ^ PTK_HASH_B) + at;
        b = ptk_hash_fold(ptk_load_u64(bytes + i + 8) ^ PTK_HASH_B, b ^ PTK_HASH_C) + at;
        c = ptk_hash_fold(ptk_load_u64(bytes + i + 16) ^ PTK_HASH_C, c ^ PTK_HASH_A) + at;
        d = ptk_hash_fold(ptk_load_u64(bytes + i + 24) ^ PTK_HASH_A, d ^ PTK_HASH_C) + at;
    }
    sum->lanes[0] = a;
    sum->lanes[1] = b;
    sum->lanes[2] = c;
    sum->lanes[3] = d;
    sum->fed = fed + len;
}

/* Begins with the header, its checksum field taken as zero. `len` is that of the image. */
static struct checksum checksum_begin(const uint8_t *bytes, size_t len)
{
    struct ptk_image_header header;
    memcpy(&header, bytes, sizeof header);
    header.checksum = 0;
    uint8_t head[sizeof header];
    memcpy(head, &header, sizeof head);
    struct checksum sum = {{len, PTK_HASH_A, PTK_HASH_B, PTK_HASH_C}, 0};
    checksum_feed(&sum, head, sizeof head);
    sum.fed = 0;
    return sum;
}

static uint64_t checksum_end(const struct checksum *sum)
{
    return ptk_hash_fold(sum->lanes[0] ^ PTK_HASH_A, sum->lanes[1] ^ PTK_HASH_B) ^
           ptk_hash_fold(sum->lanes[2] ^ PTK_HASH_B, sum->lanes[3] ^ PTK_HASH_C);
}

uint64_t ptk_image_checksum(const uint8_t *bytes, size_t len)
{
    PTK_ASSERT(len >= sizeof(struct ptk_image_header));
    PTK_ASSERT(len % PTK_IMAGE_SECTION_ALIGN == 0);
    struct checksum sum = checksum_begin(bytes, len);
    const size_t head_len = sizeof(struct ptk_image_header);
    checksum_feed(&sum, bytes + head_len, len - head_len);
    return checksum_end(&sum);
}

/* Bytes of one item for sections that are arrays; 1 for sections of plain bytes. */
static const uint32_t item_lens[PTK_IMAGE_SECTION_VALUE_COUNT] = {
    [PTK_IMAGE_SECTION_CONFIG] = sizeof(struct ptk_image_config),
    [PTK_IMAGE_SECTION_STRINGS] = 1,
    [PTK_IMAGE_SECTION_TOKEN_TEXT_OFFS] = 4,
    [PTK_IMAGE_SECTION_TOKEN_TEXT] = 1,
    [PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS] = 4,
    [PTK_IMAGE_SECTION_TOKEN_BYTES] = 1,
    [PTK_IMAGE_SECTION_TOKEN_FLAGS] = 1,
    [PTK_IMAGE_SECTION_BYTE_IDS] = 4,
    [PTK_IMAGE_SECTION_PAIRS] = sizeof(struct ptk_image_pair),
    [PTK_IMAGE_SECTION_VOCAB] = 4,
    [PTK_IMAGE_SECTION_VOCAB_KEY_OFFS] = 4,
    [PTK_IMAGE_SECTION_VOCAB_KEY] = 1,
    [PTK_IMAGE_SECTION_PIECES] = sizeof(struct ptk_image_piece),
    [PTK_IMAGE_SECTION_SCORES] = 8,
    [PTK_IMAGE_SECTION_TRIE] = sizeof(struct ptk_image_trie_unit),
    [PTK_IMAGE_SECTION_ADDED] = sizeof(struct ptk_image_added),
    [PTK_IMAGE_SECTION_ADDED_RAW] = sizeof(struct ptk_image_match_node),
    [PTK_IMAGE_SECTION_ADDED_NORMALIZED] = sizeof(struct ptk_image_match_node),
    [PTK_IMAGE_SECTION_NORMALIZER] = 1,
    [PTK_IMAGE_SECTION_PRE_TOKENIZER] = 1,
    [PTK_IMAGE_SECTION_POST_PROCESSOR] = 1,
    [PTK_IMAGE_SECTION_DECODER] = 1,
    [PTK_IMAGE_SECTION_CERTIFICATE] = 1,
    [PTK_IMAGE_SECTION_META] = 1,
    [PTK_IMAGE_SECTION_NEIGHBOURS] = sizeof(struct ptk_image_neighbours),
    [PTK_IMAGE_SECTION_NEIGHBOUR_CHARS] = 4,
    [PTK_IMAGE_SECTION_UNIGRAM_NEIGHBOURS] = sizeof(struct ptk_image_unigram_neighbours),
};

/* Sections by kind; len 0 and bytes NULL when absent. An empty section counts as absent. */
struct sections {
    struct {
        const uint8_t *bytes;
        size_t len;
        size_t count;
    } by_kind[PTK_IMAGE_SECTION_VALUE_COUNT];
};

/* `checksum` is that of the bytes, or NULL: not known yet. */
static int read_header(const uint8_t *bytes, size_t len, const uint64_t *checksum,
                       struct ptk_image *out, struct ptk_err *err)
{
    if (len < sizeof(struct ptk_image_header)) {
        return REFUSE("image: %zu bytes are too few for a header", len);
    }
    if (((uintptr_t)bytes % PTK_IMAGE_SECTION_ALIGN) != 0) {
        return REFUSE("image: not aligned to %u bytes in memory", PTK_IMAGE_SECTION_ALIGN);
    }
    const struct ptk_image_header *header = (const struct ptk_image_header *)(const void *)bytes;
    if (memcmp(header->magic, PTK_IMAGE_MAGIC, sizeof header->magic) != 0) {
        return REFUSE("image: the magic bytes are missing, this is no vocabulary image");
    }
    if (header->version != PTK_IMAGE_VERSION) {
        return REFUSE("image: version %u, this build reads version %u: compile the model again",
                      header->version, PTK_IMAGE_VERSION);
    }
    if (header->image_len != len || len > PTK_IMAGE_LEN_MAX || len % PTK_IMAGE_SECTION_ALIGN != 0) {
        return REFUSE("image: states %llu bytes, the file has %zu",
                      (unsigned long long)header->image_len, len);
    }
    if (header->checksum != (checksum != NULL ? *checksum : ptk_image_checksum(bytes, len))) {
        return REFUSE("image: the checksum does not match, the file is damaged");
    }
    if (header->profile == 0 || header->profile >= PTK_IMAGE_PROFILE_VALUE_COUNT ||
        header->source == 0 || header->source >= PTK_IMAGE_SOURCE_VALUE_COUNT) {
        return REFUSE("image: unknown profile %u or source %u", header->profile, header->source);
    }
    const uint32_t tag = ptk_load_u32(header->fingerprint);
    if (header->tag == 0 || header->tag != (tag == 0 ? 1u : tag)) {
        return REFUSE("image: the tag %#x does not belong to the fingerprint", header->tag);
    }
    for (size_t i = 0; i < sizeof header->reserved; i++) {
        if (header->reserved[i] != 0) {
            return REFUSE("image: a reserved byte of the header is not zero");
        }
    }
    out->bytes = bytes;
    out->len = len;
    out->header = header;
    return 0;
}

static int read_sections(const struct ptk_image *image, struct sections *out, struct ptk_err *err)
{
    const uint32_t count = image->header->section_count;
    const size_t entry_len = sizeof(struct ptk_image_section_entry);
    if (count >= PTK_IMAGE_SECTION_VALUE_COUNT ||
        image->len < sizeof(struct ptk_image_header) + count * entry_len) {
        return REFUSE("image: %u sections do not fit", count);
    }
    size_t end = sizeof(struct ptk_image_header) + count * entry_len;
    uint32_t last_kind = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct ptk_image_section_entry entry;
        memcpy(&entry, image->bytes + sizeof(struct ptk_image_header) + i * entry_len, entry_len);
        if (entry.kind <= last_kind || entry.kind >= PTK_IMAGE_SECTION_VALUE_COUNT ||
            entry.reserved != 0) {
            return REFUSE("image: section %u has the kind %u", i, entry.kind);
        }
        /* In file order and without overlap: the next one starts at the next aligned byte. */
        if (entry.off != ptk_align_up(end, PTK_IMAGE_SECTION_ALIGN) || entry.off > image->len ||
            entry.len > image->len - entry.off) {
            return REFUSE("image: section %u lies at %llu with %llu bytes", entry.kind,
                          (unsigned long long)entry.off, (unsigned long long)entry.len);
        }
        const uint32_t item_len = item_lens[entry.kind];
        const uint64_t item_count = item_len > 1 ? entry.len / item_len : 0;
        if (entry.len % item_len != 0 || entry.item_count != item_count) {
            return REFUSE("image: section %u has %llu bytes and states %llu items", entry.kind,
                          (unsigned long long)entry.len, (unsigned long long)entry.item_count);
        }
        if (entry.len != 0) {
            out->by_kind[entry.kind].bytes = image->bytes + entry.off;
            out->by_kind[entry.kind].len = entry.len;
            out->by_kind[entry.kind].count = item_count;
        }
        end = entry.off + entry.len;
        last_kind = entry.kind;
    }
    if (ptk_align_up(end, PTK_IMAGE_SECTION_ALIGN) != image->len) {
        return REFUSE("image: %zu bytes follow the last section", image->len - end);
    }
    return 0;
}

static bool is_power_of_two(size_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* The sections without which no image works, and the counts that the configuration fixes. */
static int check_counts(const struct ptk_image *image, const struct sections *sections,
                        struct ptk_err *err)
{
    static const char *const names[] = PTK_IMAGE_SECTION_NAMES;
    static const uint8_t required[] = {
        PTK_IMAGE_SECTION_TOKEN_TEXT_OFFS, PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS,
        PTK_IMAGE_SECTION_TOKEN_BYTES,     PTK_IMAGE_SECTION_TOKEN_FLAGS,
        PTK_IMAGE_SECTION_VOCAB,           PTK_IMAGE_SECTION_VOCAB_KEY_OFFS,
        PTK_IMAGE_SECTION_VOCAB_KEY,
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(required); i++) {
        if (sections->by_kind[required[i]].bytes == NULL) {
            return REFUSE("image: the section %s is missing", names[required[i]]);
        }
    }
    const size_t ids_end = image->config->ids_end;
    const struct {
        uint32_t kind;
        size_t count;
    } exact[] = {
        {PTK_IMAGE_SECTION_CONFIG, 1},
        {PTK_IMAGE_SECTION_TOKEN_TEXT_OFFS, ids_end + 1},
        {PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS, ids_end + 1},
        {PTK_IMAGE_SECTION_VOCAB_KEY_OFFS, ids_end + 1},
        {PTK_IMAGE_SECTION_BYTE_IDS, 256},
        {PTK_IMAGE_SECTION_SCORES, ids_end},
        {PTK_IMAGE_SECTION_NEIGHBOURS, 1},
        {PTK_IMAGE_SECTION_UNIGRAM_NEIGHBOURS, 1},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(exact); i++) {
        const size_t count = sections->by_kind[exact[i].kind].count;
        if (sections->by_kind[exact[i].kind].bytes != NULL && count != exact[i].count) {
            return REFUSE("image: the section %s has %zu items, not %zu", names[exact[i].kind],
                          count, exact[i].count);
        }
    }
    if (sections->by_kind[PTK_IMAGE_SECTION_TOKEN_FLAGS].len != ids_end) {
        return REFUSE("image: the section token_flags does not cover every id");
    }
    static const uint8_t tables[] = {PTK_IMAGE_SECTION_PAIRS, PTK_IMAGE_SECTION_VOCAB,
                                     PTK_IMAGE_SECTION_PIECES};
    for (size_t i = 0; i < PTK_ARRAY_LEN(tables); i++) {
        const size_t count = sections->by_kind[tables[i]].count;
        if (count != 0 && (!is_power_of_two(count) || count < 2)) {
            return REFUSE("image: the table %s has %zu slots, not a power of two", names[tables[i]],
                          count);
        }
    }
    return 0;
}

static struct ptk_image_program program_of(const struct sections *sections, uint32_t kind)
{
    const struct ptk_image_program program = {sections->by_kind[kind].bytes,
                                              sections->by_kind[kind].len, 0};
    return program;
}

/* Sections are 64-byte aligned, so every item type is. */
static const void *items(const struct sections *sections, uint32_t kind)
{
    return sections->by_kind[kind].bytes;
}

static uint32_t item_count(const struct sections *sections, uint32_t kind)
{
    return (uint32_t)sections->by_kind[kind].count;
}

static void fill(struct ptk_image *image, const struct sections *s)
{
    image->strings = items(s, PTK_IMAGE_SECTION_STRINGS);
    image->strings_len = s->by_kind[PTK_IMAGE_SECTION_STRINGS].len;
    image->token_text_offs = items(s, PTK_IMAGE_SECTION_TOKEN_TEXT_OFFS);
    image->token_text = items(s, PTK_IMAGE_SECTION_TOKEN_TEXT);
    image->token_bytes_offs = items(s, PTK_IMAGE_SECTION_TOKEN_BYTES_OFFS);
    image->token_bytes = items(s, PTK_IMAGE_SECTION_TOKEN_BYTES);
    image->token_flags = items(s, PTK_IMAGE_SECTION_TOKEN_FLAGS);
    image->byte_ids = items(s, PTK_IMAGE_SECTION_BYTE_IDS);
    image->pairs = items(s, PTK_IMAGE_SECTION_PAIRS);
    image->pair_mask = image->pairs == NULL ? 0 : item_count(s, PTK_IMAGE_SECTION_PAIRS) - 1;
    image->vocab = items(s, PTK_IMAGE_SECTION_VOCAB);
    image->vocab_mask = item_count(s, PTK_IMAGE_SECTION_VOCAB) - 1;
    image->vocab_key_offs = items(s, PTK_IMAGE_SECTION_VOCAB_KEY_OFFS);
    image->vocab_key = items(s, PTK_IMAGE_SECTION_VOCAB_KEY);
    image->pieces = items(s, PTK_IMAGE_SECTION_PIECES);
    image->piece_mask = image->pieces == NULL ? 0 : item_count(s, PTK_IMAGE_SECTION_PIECES) / 2 - 1;
    image->scores = items(s, PTK_IMAGE_SECTION_SCORES);
    image->trie = items(s, PTK_IMAGE_SECTION_TRIE);
    image->trie_count = item_count(s, PTK_IMAGE_SECTION_TRIE);
    image->neighbours = items(s, PTK_IMAGE_SECTION_NEIGHBOURS);
    image->neighbour_chars = items(s, PTK_IMAGE_SECTION_NEIGHBOUR_CHARS);
    image->neighbour_char_count = item_count(s, PTK_IMAGE_SECTION_NEIGHBOUR_CHARS);
    image->unigram_neighbours = items(s, PTK_IMAGE_SECTION_UNIGRAM_NEIGHBOURS);
    image->added = items(s, PTK_IMAGE_SECTION_ADDED);
    image->added_count = item_count(s, PTK_IMAGE_SECTION_ADDED);
    image->added_raw = items(s, PTK_IMAGE_SECTION_ADDED_RAW);
    image->added_raw_count = item_count(s, PTK_IMAGE_SECTION_ADDED_RAW);
    image->added_normalized = items(s, PTK_IMAGE_SECTION_ADDED_NORMALIZED);
    image->added_normalized_count = item_count(s, PTK_IMAGE_SECTION_ADDED_NORMALIZED);
    image->normalizer = program_of(s, PTK_IMAGE_SECTION_NORMALIZER);
    image->pre_tokenizer = program_of(s, PTK_IMAGE_SECTION_PRE_TOKENIZER);
    image->post_processor = program_of(s, PTK_IMAGE_SECTION_POST_PROCESSOR);
    image->decoder = program_of(s, PTK_IMAGE_SECTION_DECODER);
    image->certificate = items(s, PTK_IMAGE_SECTION_CERTIFICATE);
    image->certificate_len = s->by_kind[PTK_IMAGE_SECTION_CERTIFICATE].len;
    image->meta = items(s, PTK_IMAGE_SECTION_META);
    image->meta_len = s->by_kind[PTK_IMAGE_SECTION_META].len;
}

static int view(const void *bytes, size_t len, const uint64_t *checksum, struct ptk_image *out,
                struct ptk_err *err)
{
    memset(out, 0, sizeof *out);
    int rc = read_header(bytes, len, checksum, out, err);
    if (rc != 0) {
        return rc;
    }
    struct sections sections;
    memset(&sections, 0, sizeof sections);
    rc = read_sections(out, &sections, err);
    if (rc != 0) {
        return rc;
    }
    out->config = items(&sections, PTK_IMAGE_SECTION_CONFIG);
    if (out->config == NULL) {
        return REFUSE("image: the section config is missing");
    }
    rc = check_counts(out, &sections, err);
    if (rc != 0) {
        return rc;
    }
    fill(out, &sections);

    rc = ptk_image_verify_config(out, err);
    if (rc == 0) {
        rc = ptk_image_verify_tokens(out, sections.by_kind[PTK_IMAGE_SECTION_TOKEN_TEXT].len,
                                     sections.by_kind[PTK_IMAGE_SECTION_TOKEN_BYTES].len,
                                     sections.by_kind[PTK_IMAGE_SECTION_VOCAB_KEY].len, err);
    }
    if (rc == 0) {
        rc = ptk_image_verify_tables(out, err);
    }
    if (rc == 0) {
        rc = ptk_image_verify_trie(out, err);
    }
    if (rc == 0) {
        rc = ptk_image_verify_neighbours(out, err);
    }
    if (rc == 0) {
        rc = ptk_image_verify_added(out, err);
    }
    if (rc == 0) {
        rc = ptk_image_verify_programs(out, err);
    }
    return rc;
}

int ptk_image_view(const void *bytes, size_t len, struct ptk_image *out, struct ptk_err *err)
{
    return view(bytes, len, NULL, out, err);
}

static int read_all(int fd, uint8_t *dst, size_t len)
{
    size_t done = 0;
    while (done < len) {
        const ssize_t got = read(fd, dst + done, len - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? -errno : -EIO;
        }
        done += (size_t)got;
    }
    return 0;
}

/* What is read at once: the second cache holds it until it is summed up. */
#define READ_LEN ((size_t)256 << 10)

/* Reads a whole image and sums it up on the way; of a length that no image has there is no sum. */
static int read_image(int fd, uint8_t *dst, size_t len, uint64_t *checksum)
{
    const size_t head_len = sizeof(struct ptk_image_header);
    const bool sums = len >= head_len && len % PTK_IMAGE_SECTION_ALIGN == 0;
    struct checksum sum = {{0}, 0};
    for (size_t done = 0; done < len; done += READ_LEN) {
        const size_t some = ptk_min_size(len - done, READ_LEN);
        const int rc = read_all(fd, dst + done, some);
        if (rc != 0) {
            return rc;
        }
        if (sums && done == 0) {
            sum = checksum_begin(dst, len);
            checksum_feed(&sum, dst + head_len, some - head_len);
        } else if (sums) {
            checksum_feed(&sum, dst + done, some);
        }
    }
    *checksum = checksum_end(&sum);
    return 0;
}

#define HUGE_PAGE_LEN ((size_t)2 << 20)

/* Memory for a copy, on a huge page boundary, so that the kernel can use huge pages. */
static uint8_t *map_copy(size_t len)
{
    const size_t padded_len = len + HUGE_PAGE_LEN;
    uint8_t *memory =
        mmap(NULL, padded_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return MAP_FAILED;
    }
    uint8_t *aligned = (uint8_t *)ptk_align_up((uintptr_t)memory, HUGE_PAGE_LEN);
    const size_t before = (size_t)(aligned - memory);
    /* What is not needed goes back; a failure would only leave it reserved. */
    if (before > 0) {
        (void)munmap(memory, before);
    }
    const size_t page_end = ptk_align_up(len, 4096);
    (void)munmap(aligned + page_end, padded_len - before - page_end);
    (void)madvise(aligned, len, MADV_HUGEPAGE); /* a hint: small pages work too */
    return aligned;
}

int ptk_image_open(const char *path, enum ptk_image_hold hold, struct ptk_image *out,
                   struct ptk_err *err)
{
    memset(out, 0, sizeof *out);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return ptk_err_set(err, -errno, "%s: cannot be opened: %s", path, strerror(errno));
    }
    uint8_t *memory = MAP_FAILED;
    size_t len = 0;
    int rc = 0;
    struct stat status;
    if (fstat(fd, &status) != 0) {
        rc = ptk_err_set(err, -errno, "%s: cannot be read: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(status.st_mode) || status.st_size <= 0 || status.st_size > PTK_IMAGE_LEN_MAX) {
        rc = ptk_err_set(err, -EINVAL, "%s: not a file of 1 to %u bytes", path, PTK_IMAGE_LEN_MAX);
        goto out;
    }
    len = (size_t)status.st_size;
    memory = hold == PTK_IMAGE_HOLD_COPY ? map_copy(len)
                                         : mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) {
        rc = ptk_err_set(err, -errno, "%s: cannot be mapped: %s", path, strerror(errno));
        goto out;
    }
    uint64_t checksum;
    if (hold == PTK_IMAGE_HOLD_COPY) {
        rc = read_image(fd, memory, len, &checksum);
        if (rc != 0) {
            rc = ptk_err_set(err, rc, "%s: cannot be read: %s", path, strerror(-rc));
            goto out;
        }
        (void)mprotect(memory, len, PROT_READ); /* a guard against our own mistakes only */
    }
    struct ptk_err why;
    rc = view(memory, len, hold == PTK_IMAGE_HOLD_COPY ? &checksum : NULL, out, &why);
    if (rc != 0) {
        rc = ptk_err_set(err, rc, "%s: %.400s", path, why.text);
        goto out;
    }
    out->owned = true;
out:
    if (rc != 0 && memory != MAP_FAILED) {
        (void)munmap(memory, len); /* the failure above is the one to report */
    }
    (void)close(fd); /* read-only: nothing can be lost */
    return rc;
}

void ptk_image_close(struct ptk_image *image)
{
    if (image->owned) {
        const int rc = munmap((void *)(uintptr_t)image->bytes, image->len);
        PTK_ASSERT(rc == 0); /* the mapping is ours and whole */
    }
    memset(image, 0, sizeof *image);
}
