/* Receive a batch, answer it, send the replies. */
#include "serve/ptk_socket.h"

#include "wire/ptk_wire_segment.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* The longest datagram there is, and the header that shows a longer one could not be. */
#define DATAGRAM_CAP 65536u

/* Requests the kernel may queue while the worker is busy with one, and replies it may hold. */
#define RECEIVE_BUFFER_LEN (8 << 20)
#define SEND_BUFFER_LEN    (4 << 20)

#define CONTROL_CAP                                                                                \
    (CMSG_SPACE(sizeof(struct in6_pktinfo)) > CMSG_SPACE(sizeof(struct in_pktinfo))                \
         ? CMSG_SPACE(sizeof(struct in6_pktinfo))                                                  \
         : CMSG_SPACE(sizeof(struct in_pktinfo)))

union sender {
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
};

struct ptk_socket_buffers {
    uint8_t datagrams[PTK_SOCKET_BATCH][DATAGRAM_CAP]; /* requests, then their replies in place */
    union sender senders[PTK_SOCKET_BATCH];
    struct {
        _Alignas(struct cmsghdr) uint8_t bytes[CONTROL_CAP];
    } controls[PTK_SOCKET_BATCH];
    struct iovec rx_vectors[PTK_SOCKET_BATCH];
    struct iovec tx_vectors[PTK_SOCKET_BATCH];
    struct mmsghdr rx[PTK_SOCKET_BATCH];
    struct mmsghdr tx[PTK_SOCKET_BATCH];
    uint8_t parts[PTK_SOCKET_BATCH][DATAGRAM_CAP]; /* replies to long messages */
    struct iovec part_vectors[PTK_SOCKET_BATCH];
    struct mmsghdr part_headers[PTK_SOCKET_BATCH];
};

/* Both ends of one datagram. */
struct ends {
    struct ptk_address source;
    struct ptk_address target;
    uint16_t source_port;
    uint32_t interface_index;
    bool ipv6;
};

/* What a later reply to a long message needs. */
struct route {
    struct ends ends;
    union sender sender;
};
_Static_assert(sizeof(struct route) <= PTK_BULK_ROUTE_CAP, "a route is kept with its message");

static void serve(void *self);
static void push(void *self);

size_t ptk_socket_memory_len(void)
{
    return sizeof(struct ptk_socket_buffers);
}

uint32_t ptk_socket_mtu(const struct ptk_socket_scope *scope, uint32_t interface_index)
{
    if (scope->mtu_fixed != 0) {
        return scope->mtu_fixed;
    }
    for (uint32_t i = 0; i < scope->link_count; i++) {
        if (scope->links[i].index == interface_index) {
            return scope->links[i].mtu;
        }
    }
    return PTK_SOCKET_MTU_UNKNOWN;
}

static int set_int(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value);
}

/* Destination address of each datagram; no fragmentation of replies; a deep receive queue. */
static int set_options(int fd, bool ipv6)
{
    if (ipv6 ? set_int(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) != 0 ||
                   set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE) != 0
             : set_int(fd, IPPROTO_IP, IP_PKTINFO, 1) != 0 ||
                   set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE) != 0) {
        return -errno;
    }
    if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_LEN) != 0) {
        (void)set_int(fd, SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER_LEN); /* Up to net.core.rmem_max. */
    }
    if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_LEN) != 0) {
        (void)set_int(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_LEN); /* Up to net.core.wmem_max. */
    }
    return 0;
}

static int open_one(bool ipv6, uint16_t port, int *out)
{
    const int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    const struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    const struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    const struct sockaddr *address = ipv6 ? (const void *)&any6 : (const void *)&any4;
    int code = set_options(fd, ipv6);
    /* Two that a bound socket does not take any more. */
    if (code == 0 && (set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) != 0 ||
                      (ipv6 && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) != 0))) {
        code = -errno;
    }
    if (code == 0 && bind(fd, address, ipv6 ? sizeof any6 : sizeof any4) != 0) {
        code = -errno;
    }
    if (code != 0) {
        (void)close(fd);
        return code;
    }
    *out = fd;
    return 0;
}

int ptk_socket_open(struct ptk_socket *sockets, const struct ptk_socket_scope *scope,
                    const struct ptk_worker_config *worker, const int *inherited, void *memory,
                    struct ptk_err *err)
{
    memset(sockets, 0, sizeof *sockets);
    struct ptk_worker_config config = *worker;
    config.driver = (struct ptk_worker_driver){.self = sockets, .serve = serve, .push = push};
    ptk_worker_init(&sockets->worker, &config);
    sockets->scope = scope;
    sockets->buffers = memory;
    sockets->fds[0] = inherited != NULL ? inherited[0] : -1;
    sockets->fds[1] = inherited != NULL ? inherited[1] : -1;
    for (int family = 0; family < 2; family++) {
        if (inherited != NULL && inherited[family] < 0) {
            continue; /* The host had none when they were made. */
        }
        const int code = inherited != NULL
                             ? set_options(inherited[family], family == 1)
                             : open_one(family == 1, scope->port, &sockets->fds[family]);
        if (code != 0 && code != -EAFNOSUPPORT && code != -EADDRNOTAVAIL) {
            ptk_socket_close(sockets);
            return ptk_err_set(err, code, "UDP port %u over %s: %s", scope->port,
                               family == 1 ? "IPv6" : "IPv4", strerror(-code));
        }
    }
    if (sockets->fds[0] < 0 && sockets->fds[1] < 0) {
        return ptk_err_set(err, -EAFNOSUPPORT, "UDP port %u: this host has neither IPv4 nor IPv6",
                           scope->port);
    }
    int receive_buffer_len = 0;
    socklen_t option_len = sizeof receive_buffer_len;
    const int fd = sockets->fds[sockets->fds[0] < 0];
    if (getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer_len, &option_len) == 0) {
        sockets->worker.gauges[PTK_WORKER_GAUGE_RECEIVE_BUFFER] = (uint64_t)receive_buffer_len;
    }
    return 0;
}

void ptk_socket_close(struct ptk_socket *sockets)
{
    for (int family = 0; family < 2; family++) {
        if (sockets->fds[family] >= 0) {
            (void)close(sockets->fds[family]);
        }
        sockets->fds[family] = -1;
    }
}

static void prepare_receive(struct ptk_socket_buffers *buffers)
{
    for (uint32_t i = 0; i < PTK_SOCKET_BATCH; i++) {
        buffers->rx_vectors[i].iov_base = buffers->datagrams[i];
        buffers->rx_vectors[i].iov_len = DATAGRAM_CAP;
        struct msghdr *header = &buffers->rx[i].msg_hdr;
        memset(header, 0, sizeof *header);
        header->msg_name = &buffers->senders[i];
        header->msg_namelen = sizeof buffers->senders[i];
        header->msg_iov = &buffers->rx_vectors[i];
        header->msg_iovlen = 1;
        header->msg_control = &buffers->controls[i];
        header->msg_controllen = sizeof buffers->controls[i];
    }
}

/* Reads the ends out of what recvmmsg left; false when the kernel did not say the destination. */
static bool read_ends(const struct msghdr *header, bool ipv6, struct ends *ends)
{
    memset(ends, 0, sizeof *ends);
    ends->ipv6 = ipv6;
    const struct cmsghdr *control = CMSG_FIRSTHDR(header);
    if (control == NULL) {
        return false;
    }
    if (ipv6) {
        const struct sockaddr_in6 *sender = header->msg_name;
        struct in6_pktinfo info;
        memcpy(&info, CMSG_DATA(control), sizeof info);
        ends->source = ptk_address_from_ipv6(&sender->sin6_addr);
        ends->target = ptk_address_from_ipv6(&info.ipi6_addr);
        ends->source_port = ntohs(sender->sin6_port);
        ends->interface_index = info.ipi6_ifindex;
        return control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_PKTINFO;
    }
    const struct sockaddr_in *sender = header->msg_name;
    struct in_pktinfo info;
    memcpy(&info, CMSG_DATA(control), sizeof info);
    ends->source = ptk_address_from_ipv4(&sender->sin_addr);
    ends->target = ptk_address_from_ipv4(&info.ipi_addr);
    ends->source_port = ntohs(sender->sin_port);
    ends->interface_index = (uint32_t)info.ipi_ifindex;
    /* They differ for broadcast and multicast, which are not answered. */
    return control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO &&
           info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr;
}

/* The rules of net/ptk_frame.c, where the kernel has not applied them already. A sender on this
 * host is welcome here, as long as it is not this server itself. */
static bool admit(struct ptk_socket *sockets, const struct ends *ends)
{
    const struct ptk_socket_scope *scope = sockets->scope;
    uint64_t *counters = sockets->worker.counters;
    if (!ptk_address_unicast(&ends->target) ||
        (scope->addresses != NULL && !ptk_address_set_has(scope->addresses, &ends->target))) {
        counters[PTK_WORKER_REFUSED_DESTINATION]++;
        return false;
    }
    const bool ourselves =
        ends->source_port == scope->port && (ptk_address_equal(&ends->source, &ends->target) ||
                                             ptk_address_set_has(scope->local, &ends->source));
    if (ourselves || !ptk_address_unicast(&ends->source) ||
        !ptk_port_answerable(ends->source_port)) {
        counters[PTK_WORKER_REFUSED_SOURCE]++;
        return false;
    }
    return true;
}

/* Makes the control message of a reply, which leaves from the address that was asked. */
static void prepare_control(struct msghdr *header, const struct ends *ends)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(header);
    if (ends->ipv6) {
        struct in6_pktinfo info = {.ipi6_ifindex = 0};
        memcpy(&info.ipi6_addr, ends->target.bytes, sizeof info.ipi6_addr);
        if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr)) {
            info.ipi6_ifindex =
                ends->interface_index; /* Such an address means nothing without it. */
        }
        memcpy(CMSG_DATA(control), &info, sizeof info);
        header->msg_controllen = CMSG_SPACE(sizeof info);
    } else {
        struct in_pktinfo info = {.ipi_ifindex = 0};
        memcpy(&info.ipi_spec_dst, &ends->target.bytes[12], sizeof info.ipi_spec_dst);
        memcpy(CMSG_DATA(control), &info, sizeof info);
        header->msg_controllen = CMSG_SPACE(sizeof info);
    }
}

/* The control message of the received datagram becomes that of the reply. */
static void prepare_reply(struct ptk_socket_buffers *buffers, uint32_t from, uint32_t to,
                          const struct ends *ends, size_t reply_len)
{
    buffers->tx_vectors[to].iov_base = buffers->datagrams[from];
    buffers->tx_vectors[to].iov_len = reply_len;
    struct msghdr *header = &buffers->tx[to].msg_hdr;
    *header = buffers->rx[from].msg_hdr;
    header->msg_iov = &buffers->tx_vectors[to];
    header->msg_flags = 0;
    prepare_control(header, ends);
}

static void send_replies(struct ptk_socket *sockets, int fd, struct mmsghdr *headers,
                         uint32_t count)
{
    uint64_t *counters = sockets->worker.counters;
    for (uint32_t sent = 0; sent < count;) {
        const int done = sendmmsg(fd, &headers[sent], count - sent, MSG_DONTWAIT);
        counters[PTK_WORKER_WAKEUPS_TX]++;
        if (done <= 0) {
            counters[PTK_WORKER_TX_ERRORS]++; /* This one reply is dropped, the next ones are tried.
                                               */
            sent++;
            continue;
        }
        for (uint32_t i = sent; i < sent + (uint32_t)done; i++) {
            counters[PTK_WORKER_TX_PACKETS]++;
            counters[PTK_WORKER_TX_BYTES] += headers[i].msg_hdr.msg_iov->iov_len;
            counters[PTK_WORKER_REPLY_BYTES] += headers[i].msg_hdr.msg_iov->iov_len;
        }
        sent += (uint32_t)done;
    }
}

/* Sends the burst in batches. What the kernel refuses is counted: the client asks for it again. */
static void push(void *self)
{
    struct ptk_socket *sockets = self;
    struct ptk_socket_buffers *buffers = sockets->buffers;
    struct ptk_bulk *bulk = sockets->worker.config.bulk;
    if (PTK_LIKELY(!ptk_bulk_bursting(bulk))) {
        return;
    }
    struct route route;
    memcpy(&route, ptk_bulk_route(bulk), sizeof route);
    struct {
        _Alignas(struct cmsghdr) uint8_t bytes[CONTROL_CAP];
    } control;
    memset(&control, 0, sizeof control);
    struct cmsghdr *head = (struct cmsghdr *)(void *)control.bytes;
    head->cmsg_level = route.ends.ipv6 ? IPPROTO_IPV6 : IPPROTO_IP;
    head->cmsg_type = route.ends.ipv6 ? IPV6_PKTINFO : IP_PKTINFO;
    head->cmsg_len = route.ends.ipv6 ? CMSG_LEN(sizeof(struct in6_pktinfo))
                                     : CMSG_LEN(sizeof(struct in_pktinfo));
    for (uint32_t count = PTK_SOCKET_BATCH; count == PTK_SOCKET_BATCH;) {
        size_t len = 0;
        for (count = 0; count < PTK_SOCKET_BATCH; count++) {
            len = ptk_bulk_next(bulk, buffers->parts[count]);
            if (len == 0) {
                break;
            }
            buffers->part_vectors[count].iov_base = buffers->parts[count];
            buffers->part_vectors[count].iov_len = len;
            struct msghdr *header = &buffers->part_headers[count].msg_hdr;
            *header = (struct msghdr){
                .msg_name = &route.sender,
                .msg_namelen =
                    route.ends.ipv6 ? sizeof route.sender.ipv6 : sizeof route.sender.ipv4,
                .msg_iov = &buffers->part_vectors[count],
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof control,
            };
            prepare_control(header, &route.ends);
        }
        send_replies(sockets, sockets->fds[route.ends.ipv6], buffers->part_headers, count);
    }
}

/* A datagram of a long message: the answer is built in place, what else it causes is sent. */
static size_t receive_bulk(struct ptk_socket *sockets, uint32_t idx, size_t len,
                           const struct ends *ends, size_t link_max)
{
    struct ptk_socket_buffers *buffers = sockets->buffers;
    struct route route = {.ends = *ends};
    memcpy(&route.sender, &buffers->senders[idx], sizeof route.sender);
    const struct ptk_bulk_packet packet = {
        .datagram = buffers->datagrams[idx],
        .len = len,
        .source = ends->source,
        .source_port = ends->source_port,
        .link_max = link_max,
        .route = &route,
        .route_len = sizeof route,
        .now = ptk_cycles(),
    };
    const size_t reply_len = ptk_worker_receive(&sockets->worker, &packet, buffers->datagrams[idx]);
    push(sockets);
    return reply_len;
}

/* A datagram of either kind; its reply is built in place. */
static size_t handle(struct ptk_socket *sockets, uint32_t idx, size_t len, const struct ends *ends,
                     size_t link_max)
{
    uint8_t *datagram = sockets->buffers->datagrams[idx];
    if (PTK_UNLIKELY(ptk_wire_is_segmented(datagram, len))) {
        return receive_bulk(sockets, idx, len, ends, link_max);
    }
    const struct ptk_guard_source source = {
        .address = ends->source, .port = ends->source_port, .now = ptk_cycles()};
    return ptk_worker_handle(&sockets->worker, &source, datagram, len, datagram, link_max);
}

/* One batch of one socket. Returns the datagrams received. */
static uint32_t step(struct ptk_socket *sockets, bool ipv6)
{
    struct ptk_socket_buffers *buffers = sockets->buffers;
    uint64_t *counters = sockets->worker.counters;
    const int fd = sockets->fds[ipv6];
    if (fd < 0) {
        return 0;
    }
    prepare_receive(buffers);
    const int received = recvmmsg(fd, buffers->rx, PTK_SOCKET_BATCH, MSG_DONTWAIT, NULL);
    counters[PTK_WORKER_WAKEUPS_RX]++;
    if (received <= 0) {
        return 0;
    }
    const uint64_t start = ptk_cycles();
    uint32_t reply_count = 0;
    for (uint32_t i = 0; i < (uint32_t)received; i++) {
        const size_t len = buffers->rx[i].msg_len;
        struct ends ends;
        counters[PTK_WORKER_RX_PACKETS]++;
        counters[PTK_WORKER_RX_BYTES] += len;
        if (!read_ends(&buffers->rx[i].msg_hdr, ipv6, &ends)) {
            counters[PTK_WORKER_REFUSED_DESTINATION]++;
            continue;
        }
        if (!admit(sockets, &ends)) {
            continue;
        }
        const size_t headers_len = ipv6 ? 48 : 28;
        const size_t mtu = ptk_socket_mtu(sockets->scope, ends.interface_index);
        const size_t link_max = ptk_min_size(mtu - headers_len, PTK_ENGINE_DATAGRAM_LEN_MAX);
        const size_t reply_len = handle(sockets, i, len, &ends, link_max);
        if (reply_len > 0) {
            prepare_reply(buffers, i, reply_count, &ends, reply_len);
            reply_count++;
        }
    }
    send_replies(sockets, fd, buffers->tx, reply_count);
    if (reply_count > 0) {
        ptk_worker_latency(&sockets->worker, start, ptk_cycles(), reply_count);
    }
    return (uint32_t)received;
}

static void serve(void *self)
{
    ptk_worker_loop_begin(&((struct ptk_socket *)self)->worker);
    (void)step(self, false);
    (void)step(self, true);
}

static void wait_for_packets(const struct ptk_socket *sockets)
{
    struct pollfd entries[2];
    for (int family = 0; family < 2; family++) {
        entries[family].fd = sockets->fds[family]; /* A negative one is ignored. */
        entries[family].events = POLLIN;
    }
    (void)poll(entries, 2, ptk_worker_sleep_ms(&sockets->worker)); /* The next receive finds out. */
}

void *ptk_socket_main(void *argument)
{
    struct ptk_socket *sockets = argument;
    ptk_worker_enter(&sockets->worker);
    while (ptk_worker_may_go_on(&sockets->worker)) { /* Or until the worker says stop. */
        const uint64_t start = ptk_cycles();
        ptk_worker_loop_begin(&sockets->worker);
        uint32_t packets = step(sockets, false) + step(sockets, true);
        packets += ptk_worker_work(&sockets->worker);
        const enum ptk_worker_turn turn = ptk_worker_loop_end(
            &sockets->worker, start, packets, ptk_bulk_queued(sockets->worker.config.bulk) > 0);
        if (turn == PTK_WORKER_TURN_STOP) {
            break;
        }
        if (turn == PTK_WORKER_TURN_SLEEP) {
            wait_for_packets(sockets);
        }
    }
    ptk_worker_leave(&sockets->worker);
    return NULL;
}
