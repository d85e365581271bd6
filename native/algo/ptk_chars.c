#include "algo/ptk_chars.h"

#include <errno.h>
#include <stdlib.h>

#include "text/ptk_utf8.h"

int ptk_chars_init(struct ptk_chars *chars, const struct ptk_image *image, struct ptk_err *err)
{
    chars->records = calloc(PTK_CHARS_COUNT, sizeof *chars->records);
    if (chars->records == NULL) {
        return ptk_err_set(err, -ENOMEM, "out of memory while opening a tokenizer");
    }
    for (uint32_t id = 0; id < image->config->ids_end; id++) {
        const uint32_t off = image->vocab_key_offs[id];
        const uint32_t len = image->vocab_key_offs[id + 1] - off;
        const uint8_t *key = image->vocab_key + off;
        if (len > 0 && len <= 4 && ptk_utf8_char_len(key, len) == (int)len) {
            uint32_t ignored;
            chars->records[ptk_utf8_decode(key, &ignored)] = id + 1;
        }
    }
    if ((image->config->flags & PTK_IMAGE_FLAGS_SPACE_MARKS) != 0) {
        chars->records[' '] = chars->records[PTK_CHARS_MARK];
    }
    return 0;
}

void ptk_chars_fini(struct ptk_chars *chars)
{
    free(chars->records);
    chars->records = NULL;
}
