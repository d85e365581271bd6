/*
 * What each thread of a running datapath may ask of the kernel: the worker, which reads strangers'
 * bytes, to receive, to send, to wait, to end; the main thread what housekeeping needs besides:
 * loading a model, a hand-over, counters, the end.
 *
 * The filter belongs to the calling thread and cannot be taken off. Any other system call ends the
 * whole process with SIGSYS: whatever made a worker open a file or the main thread start a program
 * is not our code any more. The list, with the reason for each call, is the table in ptk_sandbox.c.
 */
#ifndef PTK_SANDBOX_H
#define PTK_SANDBOX_H

#include "base/ptk_base.h"

enum ptk_sandbox {
    PTK_SANDBOX_WORKER = 1,
    PTK_SANDBOX_MAIN = 2,
};

/*
 * ptk_sandbox_enter installs the filter. Needs no_new_privs (ptk_caps_drop) and a thread that has
 * made all its set-up. Returns 0 or a negative errno: -EINVAL where the kernel is built without
 * seccomp filters, -ENOTSUP in sanitizer builds, whose run time makes calls of its own.
 */
int ptk_sandbox_enter(enum ptk_sandbox who);

/* Would it work here? Changes nothing. The same return values. */
int ptk_sandbox_probe(void);

#endif
