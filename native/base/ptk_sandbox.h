/*
 * What a thread that reads strangers' bytes may ask of the kernel: to receive, to send, to wait, to
 * end.
 *
 * The filter belongs to the calling thread and cannot be taken off. Any other system call ends the
 * whole process with SIGSYS: whatever made a worker open a file or start a program is not our code
 * any more.
 */
#ifndef PTK_SANDBOX_H
#define PTK_SANDBOX_H

#include "base/ptk_base.h"

/*
 * ptk_sandbox_enter installs the filter. Needs no_new_privs (ptk_caps_drop) and a thread that has
 * made all its set-up. Returns 0 or a negative errno: -EINVAL where the kernel is built without
 * seccomp filters, -ENOTSUP in sanitizer builds, whose run time makes calls of its own.
 */
int ptk_sandbox_enter(void);

/* Would it work here? Changes nothing. The same return values. */
int ptk_sandbox_probe(void);

#endif
