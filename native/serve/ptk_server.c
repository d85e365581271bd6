/* Set-up, housekeeping and the end of the server. */
#include "serve/ptk_server_private.h"

#include "base/ptk_caps.h"
#include "base/ptk_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Stack of a worker. It uses a few KiB, a split pattern run by PCRE2 32 KiB more; the thread
 * sanitizer puts 900 KiB of its own on it. */
#define STACK_LEN       ((size_t)1 << 20)
#define STACK_GUARD_LEN ((size_t)4096)

/* The kernel's counters and the link are looked at this often: a dozen system calls a round. */
#define SAMPLE_NS 100000000ull

/* The smallest MTU that carries a refusal behind the largest headers; IPv6 itself asks for 1280. */
#define MTU_MIN (PTK_ENGINE_REPLY_CAP_MIN + PTK_FRAME_IPV6_LEN + PTK_FRAME_UDP_LEN)

/* A file of as many keys as there can be, and what shows that it is longer. */
#define KEYS_FILE_CAP (PTK_GUARD_KEYS_MAX * 80u)

/* Longest messages that the arena of a worker holds by default: requests, and their replies. */
#define ARENA_MESSAGES 16u

static void say(const char *kind, const char *format, va_list args)
{
    char text[1024];
    (void)vsnprintf(text, sizeof text, format, args); /* Truncation is acceptable. */
    (void)fprintf(stderr, "ptk-datapath: %s%s\n", kind, text);
}

void ptk_server_tell(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("", format, args);
    va_end(args);
}

void ptk_server_note(struct ptk_server *server, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("lesser mode: ", format, args);
    va_end(args);
    server->lesser_modes++;
}

static bool requires(const struct ptk_server *server, uint32_t what)
{
    return (server->config.require & what) != 0;
}

/* --- set-up
 * ---------------------------------------------------------------------------------------- */

void ptk_server_note_pages(struct ptk_server *server, const struct ptk_huge *memory)
{
    if (memory->pages == PTK_PAGE_KIND_SMALL) {
        server->worker_pages = PTK_PAGE_KIND_SMALL;
    }
}

int ptk_server_worker_memory(struct ptk_server *server, struct ptk_huge *memory, size_t extra_len,
                             struct ptk_engine **engine, struct ptk_bulk **bulk,
                             struct ptk_guard **guard, struct ptk_err *err)
{
    const size_t engine_off = ptk_align_up(extra_len, PTK_CACHE_LINE);
    const size_t bulk_off =
        engine_off + ptk_align_up(ptk_engine_len(&server->engine_limits), PTK_CACHE_LINE);
    const int numa_node = server->iface.index != 0 ? server->iface.numa_node : PTK_NUMA_NODE_ANY;
    const size_t guard_off =
        bulk_off + ptk_align_up(ptk_bulk_len(&server->bulk_limits), PTK_CACHE_LINE);
    const int code = ptk_huge_map(memory, guard_off + ptk_guard_len(&server->guard_limits),
                                  numa_node, requires(server, PTK_REQUIRE_HUGEPAGES), err);
    if (code != 0) {
        return code;
    }
    ptk_server_note_pages(server, memory);
    *engine =
        ptk_engine_init(memory->base + engine_off, &server->engine_limits, &server->models.table);
    *bulk = ptk_bulk_init(memory->base + bulk_off, &server->bulk_limits);
    *guard = ptk_guard_init(memory->base + guard_off, &server->guard_limits, &server->guard_shared);
    return 0;
}

/* Reads the keys of tenants and gives them to all guards. */
static int load_keys(struct ptk_server *server, const char *path, struct ptk_err *err)
{
    char text[KEYS_FILE_CAP];
    struct ptk_guard_key keys[PTK_GUARD_KEYS_MAX];
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return ptk_err_set(err, -errno, "keys %s: %s", path, strerror(errno));
    }
    size_t len = 0;
    ssize_t got = 1;
    while (got > 0 && len < sizeof text) {
        got = read(fd, text + len, sizeof text - len);
        len += got > 0 ? (size_t)got : 0;
    }
    const int read_errno = errno;
    (void)close(fd); /* Only read from. */
    int code = 0;
    if (got < 0) {
        code = ptk_err_set(err, -read_errno, "keys %s: %s", path, strerror(read_errno));
    } else if (len == sizeof text) {
        code =
            ptk_err_set(err, -EFBIG, "keys %s: longer than %u keys are", path, PTK_GUARD_KEYS_MAX);
    } else {
        code = ptk_guard_keys_parse(text, len, keys, err);
    }
    if (code >= 0) {
        ptk_guard_shared_keys(&server->guard_shared, keys, (uint32_t)code);
        code = 0;
    }
    explicit_bzero(text, sizeof text);
    explicit_bzero(keys, sizeof keys);
    return code;
}

/* A secret, until a giver hands its own over, and the keys of tenants, before any guard is made. */
static int open_guards(struct ptk_server *server, struct ptk_err *err)
{
    struct ptk_siphash_key master;
    if (getrandom(&master, sizeof master, 0) != (ssize_t)sizeof master) {
        return ptk_err_set(err, -errno, "no random numbers: %s", strerror(errno));
    }
    ptk_guard_shared_init(&server->guard_shared, master, ptk_clock_ns());
    return server->config.keys_path != NULL ? load_keys(server, server->config.keys_path, err) : 0;
}

/* Interface, links, addresses: what the network is. */
static int read_network(struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_server_config *config = &server->config;
    server->iface.numa_node = PTK_NUMA_NODE_ANY;
    uint32_t mtu_max = 0;
    if (config->interface != NULL) {
        const int code = ptk_iface_read(config->interface, &server->iface, err);
        if (code != 0) {
            return code;
        }
        mtu_max = server->iface.mtu;
        server->queues_present = server->iface.queue_count;
        server->scope.mtu_fixed = server->iface.mtu;
    } else {
        struct if_nameindex *names = if_nameindex();
        for (uint32_t i = 0; names != NULL && names[i].if_index != 0; i++) {
            struct ptk_iface iface;
            if (server->scope.link_count < PTK_SOCKET_LINKS_MAX &&
                ptk_iface_read(names[i].if_name, &iface, NULL) == 0 && iface.mtu >= MTU_MIN) {
                server->scope.links[server->scope.link_count++] =
                    (struct ptk_socket_link){.index = iface.index, .mtu = iface.mtu};
                mtu_max = iface.mtu > mtu_max ? iface.mtu : mtu_max;
            }
        }
        if_freenameindex(names);
        mtu_max = mtu_max > 0 ? mtu_max : PTK_SOCKET_MTU_UNKNOWN;
    }
    if (mtu_max < MTU_MIN) {
        return ptk_err_set(err, -EINVAL, "interface %s: an MTU of %u is too small, %u is the least",
                           server->iface.name, mtu_max, MTU_MIN);
    }
    const uint32_t payload_max = mtu_max - PTK_FRAME_IPV4_LEN - PTK_FRAME_UDP_LEN;
    server->engine_limits.datagram_len_max =
        payload_max < PTK_ENGINE_DATAGRAM_LEN_MAX ? payload_max : PTK_ENGINE_DATAGRAM_LEN_MAX;

    /* More local addresses than fit only weaken a check that the socket path makes twice. */
    (void)ptk_iface_addresses(NULL, &server->local, NULL);
    server->addresses = config->address;
    if (config->address.count == 0 && config->interface != NULL) {
        const int code = ptk_iface_addresses(config->interface, &server->addresses, err);
        if (code != 0) {
            return code;
        }
    }
    server->scope.port = config->port;
    server->scope.addresses = server->addresses.count > 0 ? &server->addresses : NULL;
    server->scope.local = &server->local;
    return 0;
}

/* Cores, idling, checksum policy: what follows from machine and configuration together. */
static int decide_policies(struct ptk_server *server, struct ptk_err *err)
{
    const struct ptk_server_config *config = &server->config;
    PTK_ASSERT(config->cores.count > 0);
    int code = ptk_cpu_list_verify(&config->cores, err);
    if (code == 0) {
        code = ptk_cpu_cycles_per_us(&server->cycles_per_us, err);
    }
    if (code != 0) {
        return code;
    }
    server->cores_isolated = ptk_cpu_list_isolated(&config->cores);
    if (!server->cores_isolated && requires(server, PTK_REQUIRE_ISOLATION)) {
        return ptk_err_set(err, -EINVAL,
                           "cores: not all of them are isolated (isolcpus= or an isolated "
                           "cpuset partition); leave isolation out of --require");
    }
    if (!server->cores_isolated) {
        ptk_server_note(server,
                        "isolation: the scheduler may run other work on the cores of pollers");
    }
    const bool spin =
        config->idle == PTK_IDLE_SPIN || (config->idle == PTK_IDLE_AUTO && server->cores_isolated);
    server->spin_us = spin ? PTK_WORKER_SPIN_FOREVER_US : PTK_WORKER_SPIN_ADAPTIVE_US;
    server->checksum = PTK_FRAME_CHECKSUM_VERIFY;
    if (config->checksum_off) {
        server->checksum = PTK_FRAME_CHECKSUM_OFF;
    } else if (!config->checksum_strict && server->iface.virtual_driver) {
        server->checksum = PTK_FRAME_CHECKSUM_PARTIAL;
    }
    server->engine_limits.models_cap = config->model_slots;
    server->engine_limits.cache_len = config->cache_len;
    server->engine_limits.message_len_max = config->message_len_max;
    server->guard_limits = config->guard;
    server->guard_limits.cycles_per_us = server->cycles_per_us;
    server->bulk_limits = (struct ptk_bulk_limits){
        .message_len_max = config->message_len_max,
        .arena_len = config->arena_len != 0 ? config->arena_len
                                            : ARENA_MESSAGES * (size_t)config->message_len_max,
        .cycles_per_us = server->cycles_per_us,
    };
    if (server->bulk_limits.arena_len < 2 * (size_t)config->message_len_max) {
        return ptk_err_set(err, -EINVAL,
                           "--arena %zu: must hold two messages of --message-len-max %u",
                           server->bulk_limits.arena_len, config->message_len_max);
    }
    return 0;
}

/* The path of the server whose place this one takes. */
static int inherit_path(struct ptk_server *server, struct ptk_err *err)
{
    server->path = (enum ptk_datapath_path)server->heir.offer.path;
    if (server->path == PTK_DATAPATH_PATH_SOCKET) {
        return 0;
    }
    if (server->config.steer_object == NULL) {
        return ptk_err_set(err, -EINVAL, "no XDP program is named (--steer-object)");
    }
    int code = ptk_server_xdp_plan(server, err);
    if (code == 0) {
        code = ptk_server_heir_compare_queues(server, err);
    }
    if (code != 0) {
        server->queue_count = 0; /* There are none yet. */
        return code;
    }
    return ptk_server_xdp_open(server, err);
}

static int open_path(struct ptk_server *server, struct ptk_err *err)
{
    if (ptk_server_inherits(server)) {
        const int code = ptk_server_heir_open(server, err);
        return code == 0 ? inherit_path(server, err) : code;
    }
    const bool must = server->config.path == PTK_DATAPATH_PATH_XDP ||
                      requires(server, PTK_REQUIRE_XDP | PTK_REQUIRE_DRV | PTK_REQUIRE_ZEROCOPY);
    server->path = PTK_DATAPATH_PATH_SOCKET;
    if (server->config.path == PTK_DATAPATH_PATH_SOCKET) {
        return 0;
    }
    int code = 0;
    struct ptk_err cause;
    if (server->iface.index == 0) {
        code = ptk_err_set(&cause, -EINVAL, "no interface is named (--iface)");
    } else if (server->config.steer_object == NULL) {
        code = ptk_err_set(&cause, -EINVAL, "no XDP program is named (--steer-object)");
    } else {
        code = ptk_server_xdp_plan(server, &cause);
    }
    if (code == 0) {
        code = ptk_server_xdp_open(server, &cause);
    }
    if (code == 0) {
        server->path = PTK_DATAPATH_PATH_XDP;
        return 0;
    }
    server->queue_count = 0;
    if (must) {
        *err = cause;
        return code;
    }
    ptk_server_note(server, "AF_XDP: the kernel's sockets are used instead (%s)", cause.text);
    return 0;
}

/* On the socket path one worker a core; beside AF_XDP one for all, on the first core left over. */
static int open_sockets(struct ptk_server *server, struct ptk_err *err)
{
    for (uint32_t i = 0; i < server->socket_count; i++) {
        struct ptk_server_socket *entry = &server->sockets[i];
        const uint32_t core = server->queue_count + i;
        const struct ptk_cpu_list *cores = &server->config.cores;
        const size_t buffers_len = ptk_align_up(ptk_socket_memory_len(), PTK_CACHE_LINE);
        int code = ptk_server_worker_memory(server, &entry->memory, buffers_len, &entry->engine,
                                            &entry->bulk, &entry->guard, err);
        if (code != 0) {
            return code;
        }
        const struct ptk_worker_config worker = {
            .kind = PTK_WORKER_KIND_SOCKET,
            .cpu_id = core < cores->count ? cores->ids[core] : PTK_WORKER_NOT_PINNED,
            .queue = PTK_WORKER_NO_QUEUE,
            .cycles_per_us = server->cycles_per_us,
            .spin_us = server->path == PTK_DATAPATH_PATH_XDP ? 0 : server->spin_us,
            .quiet_us = 0,
            .engine = entry->engine,
            .bulk = entry->bulk,
            .guard = entry->guard,
            .stats = &server->segment.workers[core],
            .starts_held = ptk_server_inherits(server),
        };
        int inherited[2] = {-1, -1};
        for (uint32_t family = 0; family < 2 && ptk_server_inherits(server); family++) {
            inherited[family] =
                ptk_server_heir_claim(&server->heir, server->queue_count + i, family);
        }
        code = ptk_socket_open(&entry->socket, &server->scope, &worker,
                               ptk_server_inherits(server) ? inherited : NULL, entry->memory.base,
                               err);
        if (code != 0) {
            return code;
        }
    }
    for (uint32_t i = server->queue_count + server->socket_count; i < server->config.cores.count;
         i++) {
        ptk_server_tell("core %u stays idle: there is no queue for it",
                        server->config.cores.ids[i]);
    }
    return 0;
}

static int open_segment(struct ptk_server *server, struct ptk_err *err)
{
    const bool xdp = server->path == PTK_DATAPATH_PATH_XDP;
    server->socket_count = xdp ? 1 : server->config.cores.count;
    const struct ptk_segment_shape shape = {
        .worker_count = server->queue_count + server->socket_count,
        .queue_count = server->queue_count,
        .steer_count = xdp ? PTK_STEER_COUNTER_COUNT : 0,
        .model_count = server->config.model_slots,
    };
    server->sockets = aligned_alloc(PTK_CACHE_LINE, server->socket_count * sizeof *server->sockets);
    if (server->sockets == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for %u socket workers", server->socket_count);
    }
    memset(server->sockets, 0, server->socket_count * sizeof *server->sockets);
    for (uint32_t i = 0; i < server->socket_count; i++) {
        server->sockets[i].socket.fds[0] = -1;
        server->sockets[i].socket.fds[1] = -1;
    }
    const int code = ptk_segment_open(&server->segment, server->config.stats_path, &shape, err);
    if (code != 0) {
        return code;
    }
    if (server->segment.on_disk) {
        ptk_server_note(server,
                        "statistics: %s is not in memory (tmpfs); writing it back can stall "
                        "a worker",
                        server->config.stats_path);
    }
    if (!ptk_server_inherits(server)) {
        const int published = ptk_segment_publish(&server->segment, err);
        if (published != 0) {
            return published;
        }
    }
    if (server->config.mailbox_path != NULL) {
        return ptk_mailbox_open(&server->mailbox, server->config.mailbox_path, err);
    }
    return 0;
}

static int load_images(struct ptk_server *server, struct ptk_err *err)
{
    for (uint32_t i = 0; i < server->config.image_count; i++) {
        const struct ptk_server_image *image = &server->config.images[i];
        const int code =
            ptk_server_models_load(&server->models, image->slot, image->name, image->path, err);
        if (code != 0) {
            return code;
        }
    }
    ptk_server_models_publish(&server->models, server->segment.models);
    return 0;
}

/* Everything mapped now stays in memory: libraries, stacks and heap as well. */
static int lock_memory(struct ptk_server *server, struct ptk_err *err)
{
    const bool all = mlockall(MCL_CURRENT) == 0;
    server->memory_locked = all && ptk_server_models_locked(&server->models);
    if (server->memory_locked) {
        return 0;
    }
    if (requires(server, PTK_REQUIRE_MEMLOCK)) {
        return ptk_err_set(err, -EPERM, "memory cannot be locked%s; leave memlock out of --require",
                           ptk_caps_hint(CAP_IPC_LOCK));
    }
    ptk_server_note(server, "memory lock: memory may be swapped out%s",
                    ptk_caps_hint(CAP_IPC_LOCK));
    return 0;
}

static void note_pages(struct ptk_server *server)
{
    if (server->worker_pages == PTK_PAGE_KIND_SMALL ||
        ptk_server_models_pages(&server->models) == PTK_PAGE_KIND_SMALL) {
        ptk_server_note(
            server, "huge pages: too few are free, 4 KiB pages are used: raise vm.nr_hugepages");
    }
}

static const char *pages_text(enum ptk_page_kind pages)
{
    return pages == PTK_PAGE_KIND_HUGE_2M ? "2 MiB pages" : "4 KiB pages";
}

static void print_memory(const struct ptk_server *server)
{
    const size_t engine_len = ptk_engine_len(&server->engine_limits);
    const size_t arena_len = server->bulk_limits.arena_len;
    size_t sum = server->segment.len;
    for (uint32_t i = 0; i < server->queue_count; i++) {
        const struct ptk_server_queue *queue = &server->queues[i];
        ptk_server_tell(
            "memory: queue %u  %8zu KiB  %s  (%u frames, engine %zu KiB, arena %zu KiB)",
            queue->queue, (queue->frames.len + queue->memory.len) >> 10,
            pages_text(queue->frames.pages), queue->poller.frames.count, engine_len >> 10,
            arena_len >> 10);
        sum += queue->frames.len + queue->memory.len;
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        const struct ptk_server_socket *entry = &server->sockets[i];
        ptk_server_tell(
            "memory: socket %u %8zu KiB  %s  (buffers %zu KiB, engine %zu KiB, arena %zu KiB)", i,
            entry->memory.len >> 10, pages_text(entry->memory.pages), ptk_socket_memory_len() >> 10,
            engine_len >> 10, arena_len >> 10);
        sum += entry->memory.len;
    }
    if (server->models.image_len > 0) {
        ptk_server_tell("memory: images   %8zu KiB  %s", server->models.image_len >> 10,
                        pages_text(ptk_server_models_pages(&server->models)));
        sum += server->models.image_len;
    }
    ptk_server_tell("memory: all      %8zu KiB  %s", sum >> 10,
                    server->memory_locked ? "locked" : "not locked");
}

static void publish_modes(struct ptk_server *server)
{
    bool zerocopy = server->queue_count > 0;
    for (uint32_t i = 0; i < server->queue_count; i++) {
        zerocopy &= server->queues[i].xsk.zerocopy;
    }
    uint64_t *process = server->segment.process;
    ptk_stats_store(&process[PTK_PROCESS_PATH], (uint64_t)server->path);
    ptk_stats_store(&process[PTK_PROCESS_XDP_MODE], (uint64_t)server->steer.mode);
    ptk_stats_store(&process[PTK_PROCESS_ZEROCOPY], zerocopy);
    ptk_stats_store(&process[PTK_PROCESS_BUSY_SPIN], server->spin_us == PTK_WORKER_SPIN_FOREVER_US);
    ptk_stats_store(&process[PTK_PROCESS_RX_CHECKSUM], (uint64_t)server->checksum);
    ptk_stats_store(&process[PTK_PROCESS_UMEM_PAGES],
                    server->queue_count > 0 ? (uint64_t)server->worker_pages : PTK_PAGE_KIND_NONE);
    ptk_stats_store(&process[PTK_PROCESS_IMAGE_PAGES],
                    (uint64_t)ptk_server_models_pages(&server->models));
    ptk_stats_store(&process[PTK_PROCESS_MEMORY_LOCKED], server->memory_locked);
    ptk_stats_store(&process[PTK_PROCESS_CORES_ISOLATED], server->cores_isolated);
    ptk_stats_store(&process[PTK_PROCESS_MTU], server->iface.mtu);
    ptk_stats_store(&process[PTK_PROCESS_PORT], server->config.port);
    ptk_stats_store(&process[PTK_PROCESS_INTERFACE_INDEX], server->iface.index);
    ptk_stats_store(&process[PTK_PROCESS_NUMA_NODE], (uint64_t)(server->iface.numa_node + 1));
    ptk_stats_store(&process[PTK_PROCESS_CAPABILITIES], 0); /* ptk_caps_drop has read them back. */
    ptk_stats_store(&process[PTK_PROCESS_LESSER_MODES], server->lesser_modes);
    ptk_stats_store(&process[PTK_PROCESS_COMMANDS], server->commands);
    ptk_stats_store(&process[PTK_PROCESS_TAKE_OVERS], server->take_overs);
    ptk_stats_store(&process[PTK_PROCESS_TAKE_OVER_GAP_NS], server->take_over_gap_ns);
}

/* The main thread, and workers without a core of their own, keep off the workers' cores if they
 * can. */
static void leave_cores(const struct ptk_server *server)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return;
    }
    for (uint32_t i = 0; i < server->config.cores.count; i++) {
        CPU_CLR(server->config.cores.ids[i], &set);
    }
    if (CPU_COUNT(&set) > 0) {
        (void)sched_setaffinity(0, sizeof set, &set); /* A subset of what was allowed. */
    }
}

/* A thread on a stack that is locked and touched already, with a guard page below it. */
static int start_thread(pthread_t *thread, void *stack, void *(*entry)(void *), void *argument,
                        struct ptk_err *err)
{
    pthread_attr_t attributes;
    int code = pthread_attr_init(&attributes);
    if (code == 0) {
        code = pthread_attr_setstack(&attributes, (uint8_t *)stack + STACK_GUARD_LEN, STACK_LEN);
    }
    if (code == 0) {
        code = pthread_create(thread, &attributes, entry, argument);
    }
    (void)pthread_attr_destroy(&attributes); /* Cannot fail on Linux. */
    return code == 0 ? 0
                     : ptk_err_set(err, -code, "a thread cannot be started: %s", strerror(code));
}

static void *map_stack(void)
{
    void *stack = mmap(NULL, STACK_GUARD_LEN + STACK_LEN, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_POPULATE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, STACK_GUARD_LEN, PROT_NONE) != 0) {
        return NULL; /* At start, and the process ends: nothing to give back. */
    }
    return stack;
}

/* Until a started worker is pinned, confined and in its loop: what "ready" stands for. */
static void await(const struct ptk_worker *worker)
{
    while (atomic_load_explicit(&worker->entered, memory_order_acquire) == 0) {
        const struct timespec pause = {.tv_nsec = 100000};
        (void)nanosleep(&pause, NULL); /* Cut short by a signal: one look more. */
    }
}

/* Locks memory, drops every capability, and starts the workers: in this order. Stacks are never
 * unmapped: the process ends when its threads have ended. */
static int go(struct ptk_server *server, struct ptk_err *err)
{
    const uint32_t count = server->queue_count + server->socket_count;
    void *stacks[PTK_CPU_LIST_CAP + 1];
    PTK_ASSERT(count <= PTK_ARRAY_LEN(stacks));
    for (uint32_t i = 0; i < count; i++) {
        stacks[i] = map_stack();
        if (stacks[i] == NULL) {
            return ptk_err_set(err, -ENOMEM, "no memory for the stack of worker %u", i);
        }
    }
    leave_cores(server);
    int code = lock_memory(server, err);
    if (code == 0) {
        code = ptk_caps_drop(err);
    }
    if (code == 0 && ptk_sandbox_probe() != 0) {
        ptk_server_note(
            server, "sandbox: threads are not confined to the system calls they need (no seccomp)");
    }
    server->serves = !ptk_server_inherits(server);
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        struct ptk_server_queue *queue = &server->queues[i];
        code = start_thread(&queue->thread, stacks[i], ptk_poller_main, &queue->poller, err);
        queue->running = code == 0;
    }
    for (uint32_t i = 0; i < server->socket_count && code == 0; i++) {
        struct ptk_server_socket *entry = &server->sockets[i];
        code = start_thread(&entry->thread, stacks[server->queue_count + i], ptk_socket_main,
                            &entry->socket, err);
        entry->running = code == 0;
    }
    for (uint32_t i = 0; i < server->queue_count && code == 0; i++) {
        await(&server->queues[i].poller.worker);
    }
    for (uint32_t i = 0; i < server->socket_count && code == 0; i++) {
        await(&server->sockets[i].socket.worker);
    }
    return code;
}

static int start(struct ptk_server *server, struct ptk_err *err)
{
    int code = read_network(server, err);
    if (code == 0) {
        code = decide_policies(server, err);
    }
    if (code == 0) {
        code = open_guards(server, err);
    }
    if (code == 0) {
        server->link_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        ptk_server_models_init(&server->models, server->config.model_slots, server->iface.numa_node,
                               requires(server, PTK_REQUIRE_HUGEPAGES));
        code = open_path(server, err);
    }
    if (code == 0) {
        code = open_segment(server, err);
    }
    if (code == 0) {
        code = load_images(server, err);
    }
    if (code == 0) {
        code = open_sockets(server, err);
    }
    if (code == 0 && server->path == PTK_DATAPATH_PATH_XDP) {
        code = ptk_server_xdp_pollers(server, err);
    }
    if (code == 0) {
        code = ptk_server_giver_open(server, err);
    }
    if (code == 0) {
        note_pages(server);
        code = go(server, err);
    }
    if (code == 0 && ptk_server_inherits(server)) {
        print_memory(server);
        code = ptk_server_heir_take(server, err);
    }
    return code;
}

/* Files that others look for: in the place of a former server's only now that this one serves. */
static void publish_files(struct ptk_server *server)
{
    struct ptk_err err;
    if (ptk_server_inherits(server) && ptk_segment_publish(&server->segment, &err) != 0) {
        ptk_server_note(server, "%s", err.text);
    }
    if (ptk_server_giver_publish(server, &err) != 0) {
        ptk_server_note(server, "%s", err.text);
    }
}

int ptk_server_start(struct ptk_server **out, const struct ptk_server_config *config,
                     struct ptk_err *err)
{
    *out = NULL;
    struct ptk_server *server =
        aligned_alloc(PTK_CACHE_LINE, ptk_align_up(sizeof *server, PTK_CACHE_LINE));
    if (server == NULL) {
        return ptk_err_set(err, -ENOMEM, "no memory for the server");
    }
    memset(server, 0, sizeof *server);
    server->config = *config;
    server->steer.link_fd = -1;
    server->steer.old_reasons_fd = -1;
    server->steer.inherited_fd = -1;
    server->link_fd = -1;
    server->giver.listen_fd = -1;
    server->giver.heir_fd = -1;
    ptk_server_heir_init(&server->heir);
    server->link = PTK_IFACE_LINK_UP;
    server->worker_pages = PTK_PAGE_KIND_HUGE_2M;
    if (ptk_server_inherits(server)) {
        /* Whoever has started this process wants to know how it ends; nobody wants a take-over that
         * happens later. */
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    const int code = start(server, err);
    if (code != 0) {
        (void)ptk_server_drain(server);
        ptk_server_stop(server);
        return code;
    }
    if (!ptk_server_inherits(server)) {
        print_memory(server);
    }
    publish_modes(server);
    (void)ptk_server_keep(server); /* The segment is complete before the state says so. */
    __atomic_store_n(&server->segment.process[PTK_PROCESS_STATE], PTK_PROCESS_STATE_READY,
                     __ATOMIC_RELEASE);
    publish_files(server);
    if (ptk_server_inherits(server)) {
        ptk_server_tell("the workers stood still for %llu us",
                        (unsigned long long)(server->take_over_gap_ns / 1000));
    }
    ptk_server_heir_close(server);
    static const char *const MODES[] = PTK_XDP_MODE_NAMES;
    ptk_server_tell(
        "%s on port %u, path %s%s%s", ptk_server_inherits(server) ? "taken over: ready" : "ready",
        config->port, server->path == PTK_DATAPATH_PATH_XDP ? "xdp, mode " : "socket",
        server->path == PTK_DATAPATH_PATH_XDP ? MODES[server->steer.mode] : "",
        server->path == PTK_DATAPATH_PATH_XDP && server->queues[0].xsk.zerocopy ? ", zero-copy"
                                                                                : "");
    /* The last thing: from here on there is only housekeeping. */
    ptk_stats_store(&server->segment.process[PTK_PROCESS_SANDBOXED],
                    ptk_sandbox_enter(PTK_SANDBOX_MAIN) == 0);
    *out = server;
    return 0;
}

/* --- housekeeping
 * ---------------------------------------------------------------------------------- */

static void sample_kernel(struct ptk_server *server)
{
    uint64_t reasons[PTK_STEER_COUNTER_COUNT];
    if (server->path == PTK_DATAPATH_PATH_XDP && ptk_steer_counters(&server->steer, reasons) == 0) {
        ptk_stats_publish(server->segment.steer, reasons, PTK_STEER_COUNTER_COUNT);
    }
    for (uint32_t i = 0; i < server->queue_count; i++) {
        uint64_t counters[PTK_QUEUE_COUNTER_COUNT] = {0};
        if (ptk_xsk_counters(&server->queues[i].xsk, counters) == 0) {
            counters[PTK_QUEUE_BIND_RETRIES] = server->queues[i].xsk.bind_retries;
            ptk_stats_publish(server->segment.queues[i].counters, counters,
                              PTK_QUEUE_COUNTER_COUNT);
        }
    }
    ptk_server_watch(server);
}

static void reap_models(struct ptk_server *server)
{
    const struct ptk_engine *engines[2 * PTK_CPU_LIST_CAP];
    size_t count = 0;
    for (uint32_t i = 0; i < server->queue_count; i++) {
        engines[count++] = server->queues[i].engine;
    }
    for (uint32_t i = 0; i < server->socket_count; i++) {
        engines[count++] = server->sockets[i].engine;
    }
    ptk_server_models_reap(&server->models, engines, count);
}

/* Carries out one command and answers it. Returns true when it is to drain. */
static bool obey(struct ptk_server *server, const struct ptk_mailbox *command)
{
    struct ptk_err err = {.code = 0, .text = ""};
    int code = 0;
    switch ((enum ptk_mailbox_command)command->command) {
    case PTK_MAILBOX_COMMAND_LOAD:
        code = ptk_server_models_load(&server->models, command->slot, (const char *)command->name,
                                      (const char *)command->path, &err);
        break;
    case PTK_MAILBOX_COMMAND_UNLOAD:
        code = ptk_server_models_unload(&server->models, command->slot, &err);
        break;
    case PTK_MAILBOX_COMMAND_DRAIN:
        break;
    case PTK_MAILBOX_COMMAND_KEYS:
        code = load_keys(server, (const char *)command->path, &err);
        break;
    case PTK_MAILBOX_COMMAND_NONE:
    case PTK_MAILBOX_COMMAND_VALUE_COUNT:
    default:
        code = ptk_err_set(&err, -EINVAL, "mailbox: command %u is unknown", command->command);
        break;
    }
    server->answered = command->sequence;
    server->commands++;
    struct ptk_stats_ack *ack = server->segment.ack;
    _Static_assert(sizeof ack->text == sizeof err.text, "a sentence fits");
    ack->result = (uint32_t)-code;
    ack->slot = command->slot;
    memcpy(ack->text, err.text, sizeof ack->text);
    uint64_t *process = server->segment.process;
    ptk_stats_store(&process[PTK_PROCESS_COMMANDS], server->commands);
    ptk_stats_store(&process[PTK_PROCESS_IMAGE_PAGES],
                    (uint64_t)ptk_server_models_pages(&server->models));
    ptk_stats_store(&process[PTK_PROCESS_MEMORY_LOCKED],
                    server->memory_locked && ptk_server_models_locked(&server->models));
    __atomic_store_n(&ack->sequence, command->sequence, __ATOMIC_RELEASE);
    return command->command == PTK_MAILBOX_COMMAND_DRAIN;
}

bool ptk_server_keep(struct ptk_server *server)
{
    if (ptk_server_giver_keep(server)) {
        return false;
    }
    const uint64_t now_ns = ptk_clock_ns();
    if (now_ns >= server->sample_at_ns) {
        sample_kernel(server);
        server->sample_at_ns = now_ns + SAMPLE_NS;
    }
    bool drain = false;
    struct ptk_mailbox command;
    if (server->mailbox != NULL && !server->draining &&
        ptk_mailbox_take(server->mailbox, server->answered, &command)) {
        drain = obey(server, &command);
    }
    reap_models(server);
    ptk_guard_shared_turn(&server->guard_shared, now_ns);
    ptk_stats_store(&server->segment.process[PTK_PROCESS_HEARTBEAT_NS], now_ns);
    return !drain;
}

/* --- the end
 * --------------------------------------------------------------------------------------- */

static void set_state(struct ptk_server *server, enum ptk_process_state state)
{
    if (server->segment.base != NULL) {
        __atomic_store_n(&server->segment.process[PTK_PROCESS_STATE], (uint64_t)state,
                         __ATOMIC_RELEASE);
    }
}

static void tell_stop(struct ptk_worker *worker, uint64_t deadline_ns)
{
    atomic_store_explicit(&worker->deadline_ns, deadline_ns, memory_order_relaxed);
    atomic_store_explicit(&worker->stop, 1, memory_order_release);
}

/* Waits for a worker that was told to stop, keeping house meanwhile; it has a deadline of its own.
 */
static void join(struct ptk_server *server, struct ptk_worker *worker, pthread_t thread,
                 bool *running)
{
    while (*running && atomic_load_explicit(&worker->stopped, memory_order_acquire) == 0) {
        const struct timespec pause = {.tv_nsec = 2000000};
        (void)nanosleep(&pause, NULL); /* Cut short by a signal: one look more. */
        (void)ptk_server_keep(server);
    }
    if (*running) {
        (void)pthread_join(thread, NULL); /* It has said that it leaves. */
        *running = false;
    }
}

/* The queues' packets go to the kernel's socket from here on. */
static void release_queues(struct ptk_server *server)
{
    for (uint32_t i = 0; i < server->queue_count; i++) {
        struct ptk_err err;
        if (ptk_steer_socket_remove(&server->steer, server->queues[i].queue, &err) != 0) {
            ptk_server_tell("%s; the XDP program is detached instead", err.text);
            ptk_steer_detach(&server->steer);
            return;
        }
    }
}

bool ptk_server_given(const struct ptk_server *server)
{
    return server->giver.given;
}

/* Rings, frames and sockets are another process's: the held workers leave without a look at them.
 */
static void end_workers(struct ptk_server *server)
{
    for (uint32_t i = 0; i < server->queue_count; i++) {
        tell_stop(&server->queues[i].poller.worker, 0);
    }
    for (uint32_t i = 0; i < server->socket_count && server->sockets != NULL; i++) {
        tell_stop(&server->sockets[i].socket.worker, 0);
    }
    if (server->sockets != NULL) {
        ptk_server_ask_all(server, PTK_WORKER_HOLD_NO);
    }
    for (uint32_t i = 0; i < server->queue_count; i++) {
        join(server, &server->queues[i].poller.worker, server->queues[i].thread,
             &server->queues[i].running);
    }
    for (uint32_t i = 0; i < server->socket_count && server->sockets != NULL; i++) {
        join(server, &server->sockets[i].socket.worker, server->sockets[i].thread,
             &server->sockets[i].running);
    }
}

uint64_t ptk_server_drain(struct ptk_server *server)
{
    if (!server->serves || server->giver.given) {
        end_workers(server);
        return 0;
    }
    set_state(server, PTK_PROCESS_STATE_DRAINING);
    server->draining = true;
    const uint64_t deadline_ns = ptk_clock_ns() + server->config.drain_timeout_ms * 1000000ull;
    uint64_t unsent = 0;
    if (server->steer.link_fd >= 0) {
        release_queues(server);
    }
    for (uint32_t i = 0; i < server->queue_count; i++) {
        tell_stop(&server->queues[i].poller.worker, deadline_ns);
    }
    for (uint32_t i = 0; i < server->queue_count; i++) {
        struct ptk_server_queue *queue = &server->queues[i];
        join(server, &queue->poller.worker, queue->thread, &queue->running);
        unsent += queue->poller.frames.counts[PTK_FRAME_PLACE_TX];
    }
    /* Only now: until the last poller has stopped, new packets need the kernel's socket. */
    for (uint32_t i = 0; i < server->socket_count && server->sockets != NULL; i++) {
        tell_stop(&server->sockets[i].socket.worker, deadline_ns);
    }
    for (uint32_t i = 0; i < server->socket_count && server->sockets != NULL; i++) {
        struct ptk_server_socket *entry = &server->sockets[i];
        join(server, &entry->socket.worker, entry->thread, &entry->running);
    }
    if (server->segment.base != NULL) {
        sample_kernel(server); /* The last word on what came in. */
    }
    return unsent;
}

void ptk_server_stop(struct ptk_server *server)
{
    if (server == NULL) {
        return;
    }
    ptk_server_giver_close(server);
    ptk_server_heir_close(server);
    ptk_server_xdp_close(server);
    for (uint32_t i = 0; i < server->socket_count && server->sockets != NULL; i++) {
        ptk_socket_close(&server->sockets[i].socket);
        ptk_huge_unmap(&server->sockets[i].memory);
    }
    free(server->sockets);
    ptk_server_models_fini(&server->models);
    ptk_mailbox_close(server->mailbox);
    set_state(server, PTK_PROCESS_STATE_STOPPED);
    ptk_segment_close(&server->segment);
    if (server->link_fd >= 0) {
        (void)close(server->link_fd);
    }
    free(server);
}
