/* Dropping every capability, by the kernel's own interface: two calls do not justify a library. */
#include "base/ptk_caps.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct caps {
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

static int caps_get(struct caps *caps)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    memset(caps, 0, sizeof *caps);
    return syscall(SYS_capget, &header, caps->data) == 0 ? 0 : -errno;
}

static int caps_set(const struct caps *caps)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    return syscall(SYS_capset, &header, caps->data) == 0 ? 0 : -errno;
}

bool ptk_caps_have(int capability)
{
    struct caps caps;
    if (caps_get(&caps) != 0) {
        return false;
    }
    return (caps.data[capability / 32].effective & (1u << (capability % 32))) != 0;
}

const char *ptk_caps_hint(int capability)
{
    if (ptk_caps_have(capability)) {
        return "";
    }
    switch (capability) {
    case CAP_NET_ADMIN:
        return " (CAP_NET_ADMIN is missing)";
    case CAP_NET_RAW:
        return " (CAP_NET_RAW is missing)";
    case CAP_BPF:
        return " (CAP_BPF is missing)";
    case CAP_IPC_LOCK:
        return " (CAP_IPC_LOCK is missing and the memlock limit is too low)";
    default:
        return " (a capability is missing)";
    }
}

int ptk_caps_drop(struct ptk_err *err)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; capability++) {
        (void)prctl(PR_CAPBSET_DROP, capability); /* See the contract: allowed to fail. */
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0,
                0); /* Empty permitted does it too. */
    struct caps caps;
    memset(&caps, 0, sizeof caps);
    int code = caps_set(&caps);
    if (code != 0) {
        return ptk_err_set(err, code, "capabilities cannot be dropped: %s", strerror(-code));
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        code = -errno;
        return ptk_err_set(err, code, "no_new_privs cannot be set: %s", strerror(-code));
    }
    code = caps_get(&caps);
    uint32_t held = 0;
    for (size_t i = 0; i < PTK_ARRAY_LEN(caps.data); i++) {
        held |= caps.data[i].effective | caps.data[i].permitted | caps.data[i].inheritable;
    }
    if (code != 0 || held != 0) {
        return ptk_err_set(err, -EPERM, "capabilities are still held after dropping them");
    }
    return 0;
}
