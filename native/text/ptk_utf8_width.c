/*
 * UTF-8 to and from integers of one width: the definition, and the choice of a faster variant; see
 * ptk_utf8_width.h.
 */
#include "text/ptk_utf8_width.h"

#include "text/ptk_utf8.h"

static void (*widen_chosen)(const uint8_t *, size_t, uint32_t, void *,
                            size_t) = ptk_utf8_widen_four;
static size_t (*narrow_chosen)(const void *, size_t, uint32_t, uint8_t *) = ptk_utf8_narrow_four;

/* Runs before main, while there is one thread; nothing writes the pointers later. */
__attribute__((constructor)) static void choose(void)
{
    if (ptk_utf8_width_avx512()) {
        widen_chosen = ptk_utf8_widen_avx512;
        narrow_chosen = ptk_utf8_narrow_avx512;
    }
}

void ptk_utf8_widen(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
{
    widen_chosen(bytes, len, width, dst, count);
}

size_t ptk_utf8_narrow(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    return narrow_chosen(src, count, width, dst);
}

void ptk_utf8_widen_plain(const uint8_t *bytes, size_t len, uint32_t width, void *dst, size_t count)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    size_t done = 0;
    for (size_t i = 0; i < len; done++) {
        uint32_t char_len;
        const uint32_t code_point = ptk_utf8_decode(bytes + i, &char_len);
        memcpy((uint8_t *)dst + done * width, &code_point, width);
        i += char_len;
    }
    PTK_ASSERT(done == count);
}

size_t ptk_utf8_narrow_plain(const void *src, size_t count, uint32_t width, uint8_t *dst)
{
    PTK_ASSERT(width == 1 || width == 2 || width == 4);
    size_t len = 0;
    bool surrogate = false;
    for (size_t i = 0; i < count; i++) {
        uint32_t code_point = 0;
        memcpy(&code_point, (const uint8_t *)src + i * width, width);
        surrogate |= (code_point & 0xFFFFF800u) == 0xD800;
        len += ptk_utf8_encode(code_point, dst + len);
    }
    return surrogate ? SIZE_MAX : len;
}
