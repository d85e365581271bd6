/* Set-up errors as a code and one human sentence. */
#include "base/ptk_err.h"

#include <stdarg.h>
#include <stdio.h>

int ptk_err_set(struct ptk_err *err, int code, const char *format, ...)
{
    PTK_ASSERT(code < 0);
    if (err != NULL) {
        err->code = code;
        va_list args;
        va_start(args, format);
        (void)vsnprintf(err->text, sizeof err->text, format, args); /* Truncation is acceptable. */
        va_end(args);
    }
    return code;
}
