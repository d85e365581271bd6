/* The parts of base/ that know the machine: core lists, memory, time, privileges, latency buckets.
 */
#include "base/ptk_caps.h"
#include "base/ptk_cpu.h"
#include "base/ptk_huge.h"
#include "base/ptk_sandbox.h"
#include "base/ptk_stats.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_core_lists(void)
{
    static const struct {
        const char *text;
        uint32_t count;
        uint32_t last;
    } GOOD[] = {{"0", 1, 0}, {"2-5", 4, 5}, {"2-5,8", 5, 8}, {"7,3", 2, 3}, {"65535", 1, 65535}};
    static const char *const BAD[] = {"",     ",",     "1,",      "a",   "1-",
                                      "5-2",  "1,1",   "1-3,2",   "1 2", "-1",
                                      "1--2", "65536", "0-65535", "+1",  " 1"};
    struct ptk_cpu_list list;
    struct ptk_err err;
    for (size_t i = 0; i < PTK_ARRAY_LEN(GOOD); i++) {
        PTK_ASSERT(ptk_cpu_list_parse(GOOD[i].text, "cores", &list, &err) == 0);
        PTK_ASSERT(list.count == GOOD[i].count);
        PTK_ASSERT(list.ids[list.count - 1] == GOOD[i].last);
    }
    for (size_t i = 0; i < PTK_ARRAY_LEN(BAD); i++) {
        err.text[0] = '\0';
        PTK_ASSERT(ptk_cpu_list_parse(BAD[i], "cores", &list, &err) < 0);
        PTK_ASSERT(strstr(err.text, "cores") == err.text);
    }
    PTK_ASSERT(ptk_cpu_list_parse("65535", "cores", &list, &err) == 0);
    PTK_ASSERT(ptk_cpu_list_verify(&list, &err) < 0);
}

/* Zeroed, aligned, of a stated kind; and read-only after protection, which a child proves by dying.
 */
static void test_memory(void)
{
    struct ptk_huge memory;
    struct ptk_err err;
    PTK_ASSERT(ptk_huge_map(&memory, 3 * PTK_HUGE_PAGE_LEN - 1, PTK_NUMA_NODE_ANY, false, &err) ==
               0);
    PTK_ASSERT(memory.len == 3 * PTK_HUGE_PAGE_LEN);
    PTK_ASSERT(((uintptr_t)memory.base & (PTK_HUGE_PAGE_LEN - 1)) == 0);
    PTK_ASSERT(memory.pages == PTK_PAGE_KIND_HUGE_2M || memory.pages == PTK_PAGE_KIND_SMALL);
    for (size_t off = 0; off < memory.len; off += 511) {
        PTK_ASSERT(memory.base[off] == 0);
    }
    memory.base[memory.len - 1] = 7;
    PTK_ASSERT(ptk_huge_protect(&memory, &err) == 0);
    PTK_ASSERT(memory.base[memory.len - 1] == 7);
    const pid_t child = fork();
    PTK_ASSERT(child >= 0);
    if (child == 0) {
        (void)fclose(stderr); /* A sanitizer's report of the intended fault would mislead. */
        memory.base[0] = 1;
        _exit(0);
    }
    int status = 0;
    PTK_ASSERT(waitpid(child, &status, 0) == child);
    PTK_ASSERT(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    ptk_huge_unmap(&memory);
    PTK_ASSERT(memory.base == NULL);
    ptk_huge_unmap(&memory);
}

/* Two mappings of one file are one memory, which outlives the first of them; files whose length is
 * another or can change are refused. */
static void test_shared_memory(void)
{
    struct ptk_huge first;
    struct ptk_huge second;
    struct ptk_err err;
    PTK_ASSERT(ptk_huge_share(&first, "test", 5000, PTK_NUMA_NODE_ANY, false, &err) == 0);
    PTK_ASSERT(first.len == PTK_HUGE_PAGE_LEN);
    PTK_ASSERT(ftruncate(first.fd, 0) != 0);
    PTK_ASSERT(ftruncate(first.fd, (off_t)first.len * 2) != 0);
    first.base[4999] = 42;
    PTK_ASSERT(ptk_huge_inherit(&second, first.fd, PTK_HUGE_PAGE_LEN + 1, &err) == -EINVAL);
    const int fd = fcntl(first.fd, F_DUPFD_CLOEXEC, 0);
    PTK_ASSERT(fd >= 0);
    PTK_ASSERT(ptk_huge_inherit(&second, fd, 5000, &err) == 0);
    PTK_ASSERT(((uintptr_t)second.base & (PTK_HUGE_PAGE_LEN - 1)) == 0);
    PTK_ASSERT(second.pages == first.pages);
    PTK_ASSERT(second.base[4999] == 42);
    second.base[1] = 7;
    PTK_ASSERT(first.base[1] == 7);
    ptk_huge_unmap(&first);
    PTK_ASSERT(second.base[4999] == 42);
    ptk_huge_unmap(&second);

    const int loose = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    PTK_ASSERT(loose >= 0);
    PTK_ASSERT(ftruncate(loose, (off_t)PTK_HUGE_PAGE_LEN) == 0);
    PTK_ASSERT(ptk_huge_inherit(&second, loose, 5000, &err) == -EINVAL);
    PTK_ASSERT(fcntl(loose, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    PTK_ASSERT(ptk_huge_inherit(&second, loose, 5000, &err) == 0);
    ptk_huge_unmap(&second);
    int ends[2];
    PTK_ASSERT(pipe(ends) == 0);
    PTK_ASSERT(ptk_huge_inherit(&second, ends[0], 5000, &err) == -EINVAL);
    (void)close(ends[0]);
    (void)close(ends[1]);
    PTK_ASSERT(ptk_huge_inherit(&second, -1, 5000, &err) == -EINVAL);
}

/* More huge pages than any machine has: the requirement is a refusal that names the remedy. */
static void test_required_huge_pages(void)
{
    struct ptk_huge memory;
    struct ptk_err err;
    PTK_ASSERT(ptk_huge_map(&memory, (size_t)1 << 44, PTK_NUMA_NODE_ANY, true, &err) < 0);
    PTK_ASSERT(strstr(err.text, "vm.nr_hugepages") != NULL);
}

static void test_time(void)
{
    uint32_t cycles_per_us = 0;
    struct ptk_err err;
    PTK_ASSERT(ptk_cpu_cycles_per_us(&cycles_per_us, &err) == 0);
    PTK_ASSERT(cycles_per_us >= 100);
    PTK_ASSERT(cycles_per_us <= 10000);
}

static void test_latency_buckets(void)
{
    PTK_ASSERT(ptk_stats_latency_bucket(0, 24) == 0);
    PTK_ASSERT(ptk_stats_latency_bucket(1000, 24) == 0);
    for (uint32_t i = 1; i < 23; i++) {
        const uint64_t bound_ns = 1000ull << i;
        PTK_ASSERT(ptk_stats_latency_bucket(bound_ns, 24) == i);
        PTK_ASSERT(ptk_stats_latency_bucket(bound_ns + 1, 24) == (i == 22 ? 23 : i + 1));
        PTK_ASSERT(ptk_stats_latency_bucket((bound_ns >> 1) + 1, 24) == i);
    }
    PTK_ASSERT(ptk_stats_latency_bucket(UINT64_MAX, 24) == 23);
}

/* In a child, since there is no way back. */
static void test_capabilities_are_dropped(void)
{
    const pid_t child = fork();
    PTK_ASSERT(child >= 0);
    if (child == 0) {
        struct ptk_err err;
        if (ptk_caps_drop(&err) != 0 || ptk_caps_have(CAP_NET_RAW) ||
            prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 || ptk_caps_hint(CAP_NET_RAW)[0] == '\0') {
            _exit(1);
        }
        _exit(0);
    }
    int status = 0;
    PTK_ASSERT(waitpid(child, &status, 0) == child);
    PTK_ASSERT(WIFEXITED(status));
    PTK_ASSERT(WEXITSTATUS(status) == 0);
}

/* What a child of this process, confined as `who`, ends with after one call. */
static int outcome_of(enum ptk_sandbox who, long number, long first, long second, long third)
{
    const pid_t child = fork();
    PTK_ASSERT(child >= 0);
    if (child == 0) {
        struct ptk_err err;
        const struct rlimit no_core = {0, 0};
        if (setrlimit(RLIMIT_CORE, &no_core) != 0 || ptk_caps_drop(&err) != 0 ||
            ptk_sandbox_enter(who) != 0) {
            _exit(1);
        }
        (void)syscall(number, first, second, third, -1L, -1L, -1L);
        _exit(0);
    }
    int status = 0;
    PTK_ASSERT(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* Written a second time, by hand, so that the table cannot grow without a look at this. */
static const long FOR_WORKERS[] = {
    SYS_sendto,       SYS_recvfrom, SYS_recvmmsg,   SYS_sendmmsg,       SYS_poll,
    SYS_futex,        SYS_munmap,   SYS_madvise,    SYS_clock_gettime,  SYS_restart_syscall,
    SYS_rt_sigreturn, SYS_exit,     SYS_exit_group, SYS_rt_sigprocmask, SYS_rt_sigaction,
    SYS_rseq,         SYS_write,    SYS_getpid,     SYS_gettid,         SYS_tgkill,
};
static const long FOR_MAIN[] = {
    SYS_poll,
    SYS_futex,
    SYS_munmap,
    SYS_madvise,
    SYS_clock_gettime,
    SYS_restart_syscall,
    SYS_rt_sigreturn,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigprocmask,
    SYS_rt_sigaction,
    SYS_rseq,
    SYS_write,
    SYS_getpid,
    SYS_gettid,
    SYS_tgkill,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_rt_sigtimedwait,
    SYS_mmap,
    SYS_mremap,
    SYS_brk,
    SYS_mprotect,
    SYS_mlock,
    SYS_mbind,
    SYS_getrandom,
    SYS_sysinfo,
    SYS_newfstatat,
    SYS_fstat,
    SYS_read,
    SYS_close,
    SYS_unlink,
    SYS_getsockopt,
    SYS_accept4,
    SYS_geteuid,
    SYS_memfd_create,
    SYS_ftruncate,
    SYS_fcntl,
    SYS_setsockopt,
    SYS_recvmsg,
    SYS_sendmsg,
};

static bool listed(const long *numbers, size_t count, long number)
{
    for (size_t i = 0; i < count; i++) {
        if (numbers[i] == number) {
            return true;
        }
    }
    return false;
}

/* Every call of the kernel, with arguments that are errors: what is not listed ends the process,
 * and what is listed does not. */
static void test_sandbox_confines(void)
{
    if (ptk_sandbox_probe() != 0) {
        puts("machine: no seccomp filters in this kernel or build, sandbox not tested");
        return;
    }
    for (long number = 0; number <= 467; number++) {
        if (number == 335 || number == 336) {
            continue; /* Traps of uprobes, of no use elsewhere: the kernel asks no filter. */
        }
        const bool worker = listed(FOR_WORKERS, PTK_ARRAY_LEN(FOR_WORKERS), number);
        const bool main_thread = listed(FOR_MAIN, PTK_ARRAY_LEN(FOR_MAIN), number);
        PTK_ASSERT((outcome_of(PTK_SANDBOX_WORKER, number, -1, -1, -1) == SIGSYS) == !worker);
        PTK_ASSERT((outcome_of(PTK_SANDBOX_MAIN, number, -1, -1, -1) == SIGSYS) == !main_thread);
    }
    /* An x32 call has a number of its own. */
    PTK_ASSERT(outcome_of(PTK_SANDBOX_MAIN, 0x40000000 | SYS_read, -1, -1, -1) == SIGSYS);

    /* Calls that the main thread may make in one way only. */
    static const struct {
        long number;
        long first;
        long second;
        long third;
        bool allowed;
    } LOOKS[] = {
        {SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDONLY | O_CLOEXEC, true},
        {SYS_openat, AT_FDCWD, (long)"/dev/null", O_PATH | O_DIRECTORY, true},
        {SYS_openat, AT_FDCWD, (long)"/dev/null", O_WRONLY, false},
        {SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDWR, false},
        {SYS_openat, AT_FDCWD, (long)"/dev/null/x", O_RDONLY | O_CREAT, false},
        {SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDONLY | O_TRUNC, false},
        {SYS_bpf, BPF_MAP_LOOKUP_ELEM, 0, 0, true},
        {SYS_bpf, BPF_MAP_DELETE_ELEM, 0, 0, true},
        {SYS_bpf, BPF_MAP_CREATE, 0, 0, false},
        {SYS_bpf, BPF_PROG_LOAD, 0, 0, false},
        {SYS_ioctl, -1, SIOCGIFFLAGS, 0, true},
        {SYS_ioctl, -1, SIOCGIFINDEX, 0, true},
        {SYS_ioctl, -1, SIOCETHTOOL, 0, true},
        {SYS_ioctl, -1, SIOCSIFFLAGS, 0, false},
    };
    for (size_t i = 0; i < PTK_ARRAY_LEN(LOOKS); i++) {
        const int outcome = outcome_of(PTK_SANDBOX_MAIN, LOOKS[i].number, LOOKS[i].first,
                                       LOOKS[i].second, LOOKS[i].third);
        PTK_ASSERT(outcome == (LOOKS[i].allowed ? 0 : SIGSYS));
    }
}

int main(void)
{
    test_core_lists();
    test_memory();
    test_shared_memory();
    test_required_huge_pages();
    test_time();
    test_latency_buckets();
    test_capabilities_are_dropped();
    test_sandbox_confines();
    puts("machine: ok");
    return 0;
}
