/* A seccomp filter made of a table of allowed calls. */
#include "base/ptk_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
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

#define WORKER PTK_SANDBOX_WORKER
#define MAIN   PTK_SANDBOX_MAIN
#define BOTH   (PTK_SANDBOX_WORKER | PTK_SANDBOX_MAIN)

/* Which argument of a call is looked at, and how. */
enum look {
    LOOK_NOT = 0,
    LOOK_NO_BITS, /* none of these bits is set */
    LOOK_ONE_OF,  /* it is one of the three values */
};

struct call {
    uint32_t number;
    uint32_t who; /* enum ptk_sandbox, as bits */
    enum look look;
    uint32_t argument;
    uint32_t values[3];
};

#ifndef SANITIZED
static const struct call CALLS[] = {
    /* --- work: the wake-ups of AF_XDP, and the kernel's sockets --- */
    {.number = SYS_sendto, .who = WORKER},   /* wakes the transmit side */
    {.number = SYS_recvfrom, .who = WORKER}, /* wakes the receive side */
    {.number = SYS_recvmmsg, .who = WORKER},
    {.number = SYS_sendmmsg, .who = WORKER},
    {.number = SYS_poll, .who = BOTH},  /* the sleep of an idle worker; a word of an heir's */
    {.number = SYS_futex, .who = BOTH}, /* held by a hand-over; joining a thread */

    /* --- the clock, where the vDSO cannot answer; waits that a signal or a stop has cut --- */
    {.number = SYS_clock_gettime, .who = BOTH},
    {.number = SYS_restart_syscall, .who = BOTH},
    {.number = SYS_rt_sigreturn, .who = BOTH},
    {.number = SYS_clock_nanosleep, .who = MAIN}, /* until workers have stopped */
    {.number = SYS_nanosleep, .who = MAIN},       /* the same in older C libraries */
    {.number = SYS_rt_sigtimedwait, .who = MAIN}, /* between two rounds of housekeeping */

    /* --- memory: models come and go; the end of a thread gives its stack's pages back --- */
    {.number = SYS_munmap, .who = BOTH},
    {.number = SYS_madvise, .who = BOTH},
    {.number = SYS_mmap, .who = MAIN},
    {.number = SYS_mremap, .who = MAIN}, /* the allocator grows a large block */
    {.number = SYS_brk, .who = MAIN},
    {.number = SYS_mprotect, .who = MAIN}, /* images are read-only; split patterns are code */
    {.number = SYS_mlock, .who = MAIN},
    {.number = SYS_mbind, .who = MAIN},     /* on the card's node */
    {.number = SYS_getrandom, .who = MAIN}, /* the allocator's secret */
    {.number = SYS_sysinfo, .who = MAIN},   /* the C library's sort asks how much memory there is */

    /* --- files: an image is read; nothing is written, nothing is made --- */
    {.number = SYS_openat,
     .who = MAIN,
     .look = LOOK_NO_BITS,
     .argument = 2,
     .values = {O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND}},
    {.number = SYS_newfstatat, .who = MAIN},
    {.number = SYS_fstat, .who = MAIN},
    {.number = SYS_read, .who = MAIN},
    {.number = SYS_close, .who = MAIN},
    {.number = SYS_unlink, .who = MAIN}, /* the socket of hand-overs, at the end */

    /* --- counters: of the XDP program, of the AF_XDP sockets; link and queues --- */
    {.number = SYS_bpf,
     .who = MAIN,
     .look = LOOK_ONE_OF,
     .argument = 0,
     .values = {BPF_MAP_LOOKUP_ELEM, BPF_MAP_DELETE_ELEM,
                BPF_MAP_DELETE_ELEM}}, /* and queues back to the kernel */
    {.number = SYS_getsockopt, .who = MAIN},
    {.number = SYS_ioctl,
     .who = MAIN,
     .look = LOOK_ONE_OF,
     .argument = 1,
     .values = {SIOCGIFINDEX, SIOCGIFFLAGS, SIOCETHTOOL}}, /* the last changes nothing without a
                                                               capability */

    /* --- a hand-over: another process connects, says who it is, and gets descriptors --- */
    {.number = SYS_accept4, .who = MAIN},
    {.number = SYS_geteuid, .who = MAIN},
    {.number = SYS_memfd_create, .who = MAIN},
    {.number = SYS_ftruncate, .who = MAIN},
    {.number = SYS_fcntl, .who = MAIN}, /* seals; blocking sends */
    {.number = SYS_setsockopt, .who = MAIN},
    {.number = SYS_recvmsg, .who = MAIN},
    {.number = SYS_sendmsg, .who = MAIN},

    /* --- the end: of a thread, of the process, and of one whose assertion failed --- */
    {.number = SYS_exit, .who = BOTH},
    {.number = SYS_exit_group, .who = BOTH},
    {.number = SYS_rt_sigprocmask, .who = BOTH},
    {.number = SYS_rt_sigaction, .who = BOTH},
    {.number = SYS_rseq, .who = BOTH},
    {.number = SYS_write, .who = BOTH}, /* its words; the main thread's log */
    {.number = SYS_getpid, .who = BOTH},
    {.number = SYS_gettid, .who = BOTH},
    {.number = SYS_tgkill, .who = BOTH},
};

/* Instructions of the longest entry, and of what stands around the entries. */
#define ENTRY_LEN_MAX 7u
#define FRAME_LEN     5u
#define PROGRAM_CAP   (PTK_ARRAY_LEN(CALLS) * ENTRY_LEN_MAX + FRAME_LEN)

static const struct sock_filter LOAD_NUMBER =
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
static const struct sock_filter ALLOW = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
static const struct sock_filter KILL = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);

/* Writes the instructions of one call, which begin and go on with its number loaded; returns how
 * many. What is not allowed by the look at its argument ends here. */
static uint32_t write_entry(const struct call *call, struct sock_filter *out)
{
    const uint32_t argument_off =
        (uint32_t)(offsetof(struct seccomp_data, args) + call->argument * sizeof(uint64_t));
    uint32_t count = 1;
    switch (call->look) {
    case LOOK_NOT:
        break;
    case LOOK_NO_BITS:
        out[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument_off);
        out[count++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, call->values[0], 0, 1);
        out[count++] = KILL;
        break;
    case LOOK_ONE_OF:
        out[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument_off);
        out[count++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call->values[0], 3, 0);
        out[count++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call->values[1], 2, 0);
        out[count++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call->values[2], 1, 0);
        out[count++] = KILL;
        break;
    }
    out[count++] = ALLOW;
    PTK_ASSERT(count <= ENTRY_LEN_MAX);
    /* Another number: on to the next entry. */
    out[0] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call->number, 0,
                                          (uint8_t)(count - 1));
    return count;
}
#endif

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

int ptk_sandbox_enter(enum ptk_sandbox who)
{
#ifdef SANITIZED
    (void)who;
    return -ENOTSUP;
#else
    struct sock_filter instructions[PROGRAM_CAP];
    uint32_t count = 0;
    /* Numbers mean something else to a 32-bit call. */
    instructions[count++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    instructions[count++] =
        (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    instructions[count++] = KILL;
    instructions[count++] = LOAD_NUMBER;
    for (size_t i = 0; i < PTK_ARRAY_LEN(CALLS); i++) {
        if ((CALLS[i].who & (uint32_t)who) != 0) {
            count += write_entry(&CALLS[i], &instructions[count]);
        }
    }
    instructions[count++] = KILL;
    PTK_ASSERT(count <= PTK_ARRAY_LEN(instructions));
    const struct sock_fprog program = {.len = (uint16_t)count, .filter = instructions};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 ? 0 : -errno;
#endif
}
