/*
 * Privileges: what the process holds, and giving all of it up.
 *
 * Set-up needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK; serving needs none.
 * Capabilities belong to threads: they are dropped by the main thread before it starts any other.
 */
#ifndef PTK_CAPS_H
#define PTK_CAPS_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"

/* True when the calling thread has capability `capability` (CAP_NET_RAW, ...) in its effective set.
 */
bool ptk_caps_have(int capability);

/* A phrase such as "CAP_NET_RAW is missing" when `capability` is not held, else "". For messages.
 */
const char *ptk_caps_hint(int capability);

/*
 * ptk_caps_drop empties the bounding, ambient, inheritable, permitted and effective sets of the
 * calling thread and sets no_new_privs, then reads the sets back. Returns 0, or a negative errno
 * when something is still held. Bounding-set entries can only be removed with CAP_SETPCAP; without
 * it they stay, which no_new_privs makes harmless.
 */
int ptk_caps_drop(struct ptk_err *err);

#endif
