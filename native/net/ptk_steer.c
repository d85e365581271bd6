/* Loading and attaching the XDP program with libbpf. */
#include "net/ptk_steer.h"

#include "base/ptk_caps.h"
#include "bpf/ptk_steer_shared.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/if_link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The program's reasons and the spec's counters are one list. */
#define SAME(reason)                                                                               \
    _Static_assert((int)PTK_STEER_REASON_##reason == (int)PTK_STEER_##reason,                      \
                   "spec/metrics.toml and bpf/ptk_steer_shared.h differ: " #reason)
SAME(REDIRECT);
SAME(PASS_NO_SOCKET);
SAME(PASS_SHORT);
SAME(PASS_NOT_IP);
SAME(PASS_VLAN);
SAME(PASS_NOT_UDP);
SAME(PASS_IP_OPTIONS);
SAME(PASS_FRAGMENT);
SAME(PASS_LENGTH);
SAME(PASS_PORT);
SAME(PASS_ADDRESS);
SAME(DROP_NOT_ALLOWED);
_Static_assert((int)PTK_STEER_REASON_COUNT == (int)PTK_STEER_COUNTER_COUNT,
               "spec/metrics.toml and bpf/ptk_steer_shared.h differ in length");
_Static_assert(sizeof(struct ptk_steer_address) == sizeof(struct ptk_address),
               "one form of address");
_Static_assert(PTK_STEER_ADDRESSES_MAX == PTK_ADDRESSES_MAX,
               "the map holds every address of a set");
_Static_assert(PTK_STEER_NETWORKS_MAX == PTK_NETWORKS_MAX, "the map holds every network of a list");

/* The last line libbpf wanted to print: the kernel's own reason, for our sentence. Set-up runs in
 * one thread, and libbpf's print hook has no argument of ours. */
static char libbpf_text[256];

__attribute__((format(printf, 2, 0))) static int keep_text(enum libbpf_print_level level,
                                                           const char *format, va_list args)
{
    if (level == LIBBPF_WARN) {
        (void)vsnprintf(libbpf_text, sizeof libbpf_text, format, args);
        libbpf_text[strcspn(libbpf_text, "\n")] = '\0';
    }
    return 0;
}

/* Opens and loads the program; with `sockets_fd` not -1, over that map of sockets. */
static int load(struct ptk_steer *steer, const struct ptk_steer_config *config, int sockets_fd,
                struct ptk_err *err)
{
    libbpf_text[0] = '\0';
    (void)libbpf_set_print(keep_text);
    steer->object = bpf_object__open_file(config->object_path, NULL);
    if (steer->object == NULL) {
        return ptk_err_set(err, -errno, "XDP program %s: cannot be opened: %s", config->object_path,
                           strerror(errno));
    }
    struct bpf_map *rodata = bpf_object__find_map_by_name(steer->object, ".rodata");
    const struct ptk_steer_settings settings = {
        .port_be = __builtin_bswap16(config->port),
        .listed = config->network_count > 0,
    };
    if (rodata == NULL || bpf_map__set_initial_value(rodata, &settings, sizeof settings) != 0) {
        return ptk_err_set(err, -EINVAL, "XDP program %s: not the program of this server",
                           config->object_path);
    }
    struct bpf_map *sockets = bpf_object__find_map_by_name(steer->object, "ptk_sockets");
    if (sockets == NULL || (sockets_fd >= 0 && bpf_map__reuse_fd(sockets, sockets_fd) != 0)) {
        return ptk_err_set(err, -EINVAL, "XDP program %s: has no use for the map handed over",
                           config->object_path);
    }
    const int code = bpf_object__load(steer->object);
    if (code != 0) {
        /* The socket map asks for CAP_NET_ADMIN, the rest for CAP_BPF. */
        const char *hint = ptk_caps_hint(CAP_BPF);
        hint = hint[0] != '\0' ? hint : ptk_caps_hint(CAP_NET_ADMIN);
        return ptk_err_set(err, code, "XDP program: the kernel refuses to load it%s: %s (%s)", hint,
                           strerror(-code), libbpf_text);
    }
    steer->sockets_fd = bpf_object__find_map_fd_by_name(steer->object, "ptk_sockets");
    steer->reasons_fd = bpf_object__find_map_fd_by_name(steer->object, "ptk_reasons");
    return 0;
}

static int add_addresses(const struct ptk_steer *steer, const struct ptk_address_set *addresses,
                         struct ptk_err *err)
{
    const int fd = bpf_object__find_map_fd_by_name(steer->object, "ptk_addresses");
    static const struct ptk_address EMPTY;
    const uint8_t present = 1;
    for (size_t i = 0; i < PTK_ARRAY_LEN(addresses->slots); i++) {
        if (ptk_address_equal(&addresses->slots[i], &EMPTY)) {
            continue;
        }
        const int code = bpf_map_update_elem(fd, &addresses->slots[i], &present, BPF_ANY);
        if (code != 0) {
            return ptk_err_set(err, code, "XDP program: address map: %s", strerror(-code));
        }
    }
    return 0;
}

static int add_networks(const struct ptk_steer *steer, const struct ptk_network *networks,
                        uint32_t count, struct ptk_err *err)
{
    const int fd = bpf_object__find_map_fd_by_name(steer->object, "ptk_networks");
    const uint8_t present = 1;
    for (uint32_t i = 0; i < count; i++) {
        struct ptk_steer_network key = {.prefix_len = networks[i].prefix_len};
        _Static_assert(sizeof key.words == sizeof networks[i].address.bytes, "one form of address");
        memcpy(key.words, networks[i].address.bytes, sizeof key.words);
        const int code = bpf_map_update_elem(fd, &key, &present, BPF_ANY);
        if (code != 0) {
            return ptk_err_set(err, code, "XDP program: network map: %s", strerror(-code));
        }
    }
    return 0;
}

/* Describes the program that occupies the interface: "program 17 (name x, tag 0123...)". */
static void describe_occupant(uint32_t interface_index, char *text, size_t cap)
{
    struct bpf_xdp_query_opts query;
    memset(&query, 0, sizeof query); /* libbpf wants the padding zero as well. */
    query.sz = sizeof query;
    (void)snprintf(text, cap, "another program");
    if (bpf_xdp_query((int)interface_index, 0, &query) != 0) {
        return;
    }
    const uint32_t ids[] = {query.prog_id, query.drv_prog_id, query.skb_prog_id, query.hw_prog_id};
    uint32_t id = 0;
    for (size_t i = 0; i < PTK_ARRAY_LEN(ids) && id == 0; i++) {
        id = ids[i];
    }
    const int fd = bpf_prog_get_fd_by_id(id);
    struct bpf_prog_info info;
    uint32_t info_len = sizeof info;
    memset(&info, 0, sizeof info);
    if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &info_len) != 0) {
        (void)snprintf(text, cap, "program %u", id);
    } else {
        uint64_t tag;
        memcpy(&tag, info.tag, sizeof tag);
        (void)snprintf(text, cap, "program %u (name %s, tag %016llx)", id, info.name,
                       (unsigned long long)__builtin_bswap64(tag));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
}

/* One attempt at one hook; returns the link's descriptor or a negative errno. */
static int attach_at(const struct ptk_steer *steer, uint32_t flags)
{
    const struct bpf_program *program =
        bpf_object__find_program_by_name(steer->object, "ptk_steer");
    struct bpf_link_create_opts options;
    memset(&options, 0, sizeof options);
    options.sz = sizeof options;
    options.flags = flags;
    return bpf_link_create(bpf_program__fd(program), (int)steer->interface_index, BPF_XDP,
                           &options);
}

/* Where does the kernel say that the program runs? */
static enum ptk_xdp_mode mode_obtained(uint32_t interface_index)
{
    struct bpf_xdp_query_opts query;
    memset(&query, 0, sizeof query); /* libbpf wants the padding zero as well. */
    query.sz = sizeof query;
    if (bpf_xdp_query((int)interface_index, 0, &query) != 0) {
        return PTK_XDP_MODE_NONE;
    }
    if (query.drv_prog_id != 0) {
        return PTK_XDP_MODE_DRV;
    }
    return query.skb_prog_id != 0 ? PTK_XDP_MODE_SKB : PTK_XDP_MODE_NONE;
}

static int attach(struct ptk_steer *steer, const struct ptk_steer_config *config,
                  struct ptk_err *err)
{
    int fd = -1;
    if (config->mode != PTK_XDP_MODE_SKB) {
        fd = attach_at(steer, XDP_FLAGS_DRV_MODE);
        if (fd < 0 && config->mode == PTK_XDP_MODE_NONE && fd != -EBUSY && fd != -EEXIST &&
            fd != -EPERM) {
            (void)snprintf(steer->driver_refusal, sizeof steer->driver_refusal, "%s",
                           strerror(-fd));
            fd = attach_at(steer, XDP_FLAGS_SKB_MODE);
        }
    } else {
        fd = attach_at(steer, XDP_FLAGS_SKB_MODE);
    }
    if (fd == -EBUSY || fd == -EEXIST) {
        char occupant[128];
        describe_occupant(config->interface_index, occupant, sizeof occupant);
        return ptk_err_set(err, -EBUSY,
                           "interface %s: %s is attached already; it is left in place "
                           "(ip link set dev %s xdp off removes it)",
                           config->interface, occupant, config->interface);
    }
    if (fd < 0) {
        return ptk_err_set(err, fd, "interface %s: XDP program cannot be attached%s: %s",
                           config->interface, ptk_caps_hint(CAP_NET_ADMIN), strerror(-fd));
    }
    steer->link_fd = fd;
    steer->mode = mode_obtained(config->interface_index);
    return 0;
}

/* Everything but the attachment. */
static int prepare(struct ptk_steer *steer, const struct ptk_steer_config *config, int sockets_fd,
                   struct ptk_err *err)
{
    PTK_ASSERT(config->addresses->count > 0);
    memset(steer, 0, sizeof *steer);
    steer->link_fd = -1;
    steer->old_reasons_fd = -1;
    steer->inherited_fd = -1;
    steer->interface_index = config->interface_index;
    const int cpu_count = libbpf_num_possible_cpus();
    steer->cpu_count = cpu_count > 0 ? (uint32_t)cpu_count : 1;
    steer->cpu_counters = calloc(steer->cpu_count, sizeof *steer->cpu_counters);
    const int code = steer->cpu_counters != NULL
                         ? load(steer, config, sockets_fd, err)
                         : ptk_err_set(err, -ENOMEM, "XDP program: no memory for its counters");
    if (code != 0) {
        return code;
    }
    const int added = add_addresses(steer, config->addresses, err);
    return added == 0 ? add_networks(steer, config->networks, config->network_count, err) : added;
}

int ptk_steer_attach(struct ptk_steer *steer, const struct ptk_steer_config *config,
                     struct ptk_err *err)
{
    int code = prepare(steer, config, -1, err);
    if (code == 0) {
        code = attach(steer, config, err);
    }
    if (code != 0) {
        ptk_steer_detach(steer);
    }
    return code;
}

int ptk_steer_inherit(struct ptk_steer *steer, const struct ptk_steer_config *config,
                      const struct ptk_steer_legacy *legacy, struct ptk_err *err)
{
    const int code = prepare(steer, config, legacy->sockets_fd, err);
    if (code != 0) {
        ptk_steer_detach(steer);
        return code;
    }
    (void)close(legacy->sockets_fd); /* The object has a copy. */
    steer->link_fd = legacy->link_fd;
    steer->old_reasons_fd = legacy->reasons_fd;
    steer->inherited_fd = legacy->reasons_fd;
    steer->mode = legacy->mode;
    return 0;
}

int ptk_steer_switch(struct ptk_steer *steer, struct ptk_err *err)
{
    const struct bpf_program *program =
        bpf_object__find_program_by_name(steer->object, "ptk_steer");
    const int code = bpf_link_update(steer->link_fd, bpf_program__fd(program), NULL);
    if (code != 0) {
        const int live_fd = steer->old_reasons_fd; /* The one that stays attached counts there. */
        steer->old_reasons_fd = steer->reasons_fd;
        steer->reasons_fd = live_fd;
        return ptk_err_set(err, code, "the XDP program could not be replaced: %s", strerror(-code));
    }
    return 0;
}

int ptk_steer_socket_add(struct ptk_steer *steer, uint32_t queue, int socket_fd,
                         struct ptk_err *err)
{
    if (queue >= PTK_STEER_QUEUES_MAX) {
        return ptk_err_set(err, -EINVAL, "queue %u: the XDP program has room for queues 0 to %u",
                           queue, PTK_STEER_QUEUES_MAX - 1);
    }
    const int code = bpf_map_update_elem(steer->sockets_fd, &queue, &socket_fd, BPF_ANY);
    if (code != 0) {
        return ptk_err_set(err, code, "queue %u: cannot be given to its socket: %s", queue,
                           strerror(-code));
    }
    return 0;
}

int ptk_steer_socket_remove(struct ptk_steer *steer, uint32_t queue, struct ptk_err *err)
{
    const int code = bpf_map_delete_elem(steer->sockets_fd, &queue);
    if (code != 0 && code != -ENOENT) {
        return ptk_err_set(err, code, "queue %u: cannot be given back to the kernel: %s", queue,
                           strerror(-code));
    }
    return 0;
}

/* Adds the counters of one map to the sums. */
static int add_counters(const struct ptk_steer *steer, int reasons_fd,
                        uint64_t counters[PTK_STEER_COUNTER_COUNT])
{
    for (uint32_t i = 0; i < PTK_STEER_COUNTER_COUNT; i++) {
        const int code = bpf_map_lookup_elem(reasons_fd, &i, steer->cpu_counters);
        if (code == -ENOENT) {
            return 0; /* A program that knew fewer reasons. */
        }
        if (code != 0) {
            return code;
        }
        for (uint32_t cpu = 0; cpu < steer->cpu_count; cpu++) {
            counters[i] += steer->cpu_counters[cpu];
        }
    }
    return 0;
}

int ptk_steer_counters(const struct ptk_steer *steer, uint64_t counters[PTK_STEER_COUNTER_COUNT])
{
    const int code = ptk_steer_past(steer, counters);
    return code == 0 ? add_counters(steer, steer->reasons_fd, counters) : code;
}

int ptk_steer_past(const struct ptk_steer *steer, uint64_t counters[PTK_STEER_COUNTER_COUNT])
{
    memcpy(counters, steer->base, sizeof steer->base);
    return steer->old_reasons_fd < 0 ? 0 : add_counters(steer, steer->old_reasons_fd, counters);
}

void ptk_steer_detach(struct ptk_steer *steer)
{
    if (steer->link_fd >= 0) {
        /* With the last process that holds it, the kernel detaches the program. */
        (void)close(steer->link_fd);
    }
    if (steer->object != NULL && steer->inherited_fd >= 0) {
        (void)close(steer->inherited_fd);
    }
    bpf_object__close(steer->object);
    free(steer->cpu_counters);
    memset(steer, 0, sizeof *steer);
    steer->link_fd = -1;
    steer->old_reasons_fd = -1;
    steer->inherited_fd = -1;
}
