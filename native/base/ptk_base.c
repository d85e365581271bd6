/* The one place where an assertion ends the process. */
#include "base/ptk_base.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void ptk_assert_failed(const char *file, int line, const char *expression)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression);
    abort();
}
