/*
 * Errors of set-up: the machine or the operator's input says no.
 *
 * A function that can fail during set-up returns 0 or a negative errno and, in the second case,
 * fills `struct ptk_err` with one sentence that names the thing, the value and the remedy.
 * The hot path has no such errors: there the other side's mistakes are verdicts
 * (`gen/ptk_wire_gen.h`).
 */
#ifndef PTK_ERR_H
#define PTK_ERR_H

#include "base/ptk_base.h"

#define PTK_ERR_TEXT_CAP 512u

struct ptk_err {
    int code;                    /* negative errno; 0 while nothing failed */
    char text[PTK_ERR_TEXT_CAP]; /* one sentence, no trailing newline, always terminated */
};

/* Sets the code and the sentence; returns `code`, so that a caller can return it at once. */
int ptk_err_set(struct ptk_err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
