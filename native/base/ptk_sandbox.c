/* A seccomp filter as a table of allowed calls. */
#include "base/ptk_sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#define ALLOW(call)                                                                                \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

int ptk_sandbox_probe(void)
{
#ifdef SANITIZED
    return -ENOTSUP;
#else
    /* A kernel with filters looks at the pointer and refuses that; one without refuses the mode. */
    (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL);
    return errno == EFAULT ? 0 : -errno;
#endif
}

int ptk_sandbox_enter(void)
{
#ifdef SANITIZED
    return -ENOTSUP;
#else
    static const struct sock_filter FILTER[] = {
        /* Numbers mean something else to a 32-bit call. */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        /* The wake-ups of AF_XDP, and the socket path. */
        ALLOW(SYS_sendto),
        ALLOW(SYS_recvfrom),
        ALLOW(SYS_poll),
        ALLOW(SYS_recvmmsg),
        ALLOW(SYS_sendmmsg),
        ALLOW(SYS_restart_syscall),
        ALLOW(SYS_rt_sigreturn),
        /* The clock, where the vDSO cannot answer. */
        ALLOW(SYS_clock_gettime),
        /* The end of a thread in the C library. */
        ALLOW(SYS_exit),
        ALLOW(SYS_futex),
        ALLOW(SYS_madvise),
        ALLOW(SYS_rt_sigprocmask),
        ALLOW(SYS_rseq),
        ALLOW(SYS_munmap),
        /* A failed assertion says so before it aborts. */
        ALLOW(SYS_write),
        ALLOW(SYS_getpid),
        ALLOW(SYS_gettid),
        ALLOW(SYS_tgkill),
        ALLOW(SYS_rt_sigaction),
        ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    const struct sock_fprog program = {
        .len = PTK_ARRAY_LEN(FILTER),
        .filter = (struct sock_filter *)(uintptr_t)FILTER, /* The kernel only reads it. */
    };
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 ? 0 : -errno;
#endif
}
