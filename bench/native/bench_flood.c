/*
 * Flood of false addresses for a PTK1 server on a private link: encode requests whose IPv4 source
 * is one of the 131,072 addresses of 198.18.0.0/15, which are set aside for benchmarks of networks.
 * Bounded in time and rate. For a namespace of its own, never for a network: nothing leaves through
 * another interface than the one that is named.
 *
 * It sees every reply to those addresses too, on the interface that the server's route for them
 * leads to, and says for how many of them the server has sent more bytes than it received from
 * them. Needs root. Prints one JSON line.
 *
 *   bench_flood --interface ptk1 --host 10.77.0.1 --text FILE --rate 50000 --seconds 3
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"
#include "load_measure.h"

#define NETWORK          0xC6120000u /* 198.18.0.0 */
#define MASK             0xFFFE0000u
#define SOURCES          (~MASK + 1u)
#define BATCH_MAX        64u
#define IP_LEN           20u
#define UDP_LEN          8u
#define DATAGRAM_LEN_MAX 1500u
#define SECONDS_MAX      60.0
#define WAIT_NS          300000000ull /* for the last replies */

struct options {
    const char *interface;
    const char *host;
    uint16_t port;
    const char *text_path;
    size_t text_len;
    double seconds;
    double rate;
};

/* UDP payload bytes of one source. */
struct account {
    uint32_t sent;
    uint32_t received;
};

struct flood {
    struct options options;
    struct load_text text;
    struct sockaddr_in server;
    int send_fd;
    int receive_fd;
    uint64_t random;
    uint64_t next_id;
    uint64_t sent, sent_bytes, blocked, received, received_bytes, unseen;
    struct account accounts[SOURCES];
    uint32_t sources[BATCH_MAX];
    uint8_t packets[BATCH_MAX][DATAGRAM_LEN_MAX];
    struct iovec iovecs[BATCH_MAX];
    struct mmsghdr messages[BATCH_MAX];
};

static void open_sockets(struct flood *flood)
{
    /* Of IPv4 packets that come in, those to the false addresses. */
    static struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, MASK),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NETWORK, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const struct sock_fprog filter = {.len = PTK_ARRAY_LEN(code), .filter = code};
    const struct sockaddr_ll here = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_IP),
        .sll_ifindex = (int)if_nametoindex(flood->options.interface),
    };
    const int buffer_len = 32 << 20;
    flood->send_fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_RAW);
    flood->receive_fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (flood->send_fd < 0 || flood->receive_fd < 0 ||
        setsockopt(flood->send_fd, SOL_SOCKET, SO_BINDTODEVICE, flood->options.interface,
                   (socklen_t)strlen(flood->options.interface)) != 0 ||
        setsockopt(flood->receive_fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
        setsockopt(flood->receive_fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_len, sizeof buffer_len) !=
            0 ||
        bind(flood->receive_fd, (const struct sockaddr *)&here, sizeof here) != 0) {
        load_fail(flood->options.interface);
    }
}

static uint32_t next_source(struct flood *flood)
{
    flood->random ^= flood->random << 13;
    flood->random ^= flood->random >> 7;
    flood->random ^= flood->random << 17;
    return (uint32_t)(flood->random % SOURCES);
}

/* One encode request with IP and UDP header in front; the kernel fills in the IP checksum. */
static size_t build_packet(struct flood *flood, uint32_t source, uint8_t *out)
{
    const struct load_slice slice = load_next_slice(&flood->text, flood->options.text_len);
    const size_t message_len = ptk_align_up(16 + slice.len, 8);
    const size_t payload_len = PTK_WIRE_HEADER_LEN + message_len;
    const uint16_t lengths[2] = {htons((uint16_t)(IP_LEN + UDP_LEN + payload_len)),
                                 htons((uint16_t)(UDP_LEN + payload_len))};
    const uint32_t addresses[2] = {htonl(NETWORK | source), flood->server.sin_addr.s_addr};
    const uint16_t ports[2] = {htons((uint16_t)(1024 + source % 60000)), flood->server.sin_port};
    memset(out, 0, IP_LEN + UDP_LEN + payload_len);
    out[0] = 0x45;
    memcpy(out + 2, &lengths[0], 2);
    out[8] = 64;
    out[9] = IPPROTO_UDP;
    memcpy(out + 12, addresses, sizeof addresses);
    memcpy(out + IP_LEN, ports, sizeof ports);
    memcpy(out + IP_LEN + 4, &lengths[1], 2); /* No UDP checksum: IPv4 allows that. */
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .message_len = (uint32_t)message_len,
        .request_id = flood->next_id++,
        .op = PTK_WIRE_OP_ENCODE,
    };
    const struct ptk_wire_request request = {
        .id_format = PTK_ID_FORMAT_AUTO,
        .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL,
        .item_count = 1,
        .reply_len_max = DATAGRAM_LEN_MAX,
    };
    uint8_t *payload = out + IP_LEN + UDP_LEN;
    memcpy(payload, &header, sizeof header);
    memcpy(payload + sizeof header, &request, sizeof request);
    ptk_store_u32(payload + sizeof header + 8, (uint32_t)slice.len);
    memcpy(payload + sizeof header + 16, slice.bytes, slice.len);
    return IP_LEN + UDP_LEN + payload_len;
}

static void send_some(struct flood *flood, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        flood->sources[i] = next_source(flood);
        const size_t len = build_packet(flood, flood->sources[i], flood->packets[i]);
        flood->iovecs[i] = (struct iovec){flood->packets[i], len};
        flood->messages[i].msg_hdr = (struct msghdr){.msg_name = &flood->server,
                                                     .msg_namelen = sizeof flood->server,
                                                     .msg_iov = &flood->iovecs[i],
                                                     .msg_iovlen = 1};
        /* Before it leaves: its reply may be there when sendmmsg returns. */
        flood->accounts[flood->sources[i]].sent += (uint32_t)len - IP_LEN - UDP_LEN;
    }
    const int done = sendmmsg(flood->send_fd, flood->messages, count, 0);
    if (done < 0 && errno != EAGAIN && errno != ENOBUFS) {
        load_fail("sendmmsg");
    }
    const uint32_t left = done < 0 ? 0 : (uint32_t)done;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t len = (uint32_t)flood->iovecs[i].iov_len - IP_LEN - UDP_LEN;
        if (i < left) {
            flood->sent_bytes += len;
        } else {
            flood->accounts[flood->sources[i]].sent -= len;
        }
    }
    flood->sent += left;
    flood->blocked += count - left;
}

/* Counts what has come for the false addresses; returns the number of packets. */
static uint32_t receive_some(struct flood *flood)
{
    for (uint32_t i = 0; i < BATCH_MAX; i++) {
        flood->iovecs[i] = (struct iovec){flood->packets[i], IP_LEN};
        flood->messages[i].msg_hdr = (struct msghdr){.msg_iov = &flood->iovecs[i], .msg_iovlen = 1};
    }
    const int count =
        recvmmsg(flood->receive_fd, flood->messages, BATCH_MAX, MSG_DONTWAIT | MSG_TRUNC, NULL);
    for (int i = 0; i < count; i++) {
        uint32_t address;
        memcpy(&address, flood->packets[i] + 16, sizeof address);
        const uint32_t len = flood->messages[i].msg_len; /* Of the packet, not of the iovec. */
        const uint32_t payload_len = len > IP_LEN + UDP_LEN ? len - IP_LEN - UDP_LEN : 0;
        flood->accounts[ntohl(address) & ~MASK].received += payload_len;
        flood->received++;
        flood->received_bytes += payload_len;
    }
    return count > 0 ? (uint32_t)count : 0;
}

/* The main loop; returns the seconds that it sent. */
static double run(struct flood *flood)
{
    const struct options *options = &flood->options;
    const uint64_t begin = load_now_ns();
    const uint64_t end = begin + (uint64_t)(options->seconds * 1e9);
    uint64_t now = begin;
    for (; now < end; now = load_now_ns()) {
        const double due = (double)(now - begin) * 1e-9 * options->rate;
        const double behind = due - (double)(flood->sent + flood->blocked);
        const uint32_t want = behind <= 0 ? 0 : (uint32_t)ptk_min_size((size_t)behind, BATCH_MAX);
        if (want > 0) {
            send_some(flood, want);
        }
        if (receive_some(flood) + want == 0) {
            /* Only a pause: the core has other work. */
            (void)poll(NULL, 0, 1);
        }
    }
    const uint64_t stop = now;
    while (load_now_ns() - stop < WAIT_NS) {
        if (receive_some(flood) == 0) {
            (void)poll(NULL, 0, 1); /* Only a pause. */
        }
    }
    struct tpacket_stats stats;
    socklen_t stats_len = sizeof stats;
    if (getsockopt(flood->receive_fd, SOL_PACKET, PACKET_STATISTICS, &stats, &stats_len) == 0) {
        flood->unseen = stats.tp_drops;
    }
    return (double)(stop - begin) * 1e-9;
}

static void print_result(const struct flood *flood, double seconds)
{
    uint32_t sources = 0;
    uint32_t exceeded = 0;
    for (uint32_t i = 0; i < SOURCES; i++) {
        sources += flood->accounts[i].sent > 0;
        exceeded += flood->accounts[i].received > flood->accounts[i].sent;
    }
    printf("{\"seconds\": %.3f, \"offered_per_s\": %.0f, \"size\": %zu, \"sources\": %u, ", seconds,
           flood->options.rate, flood->options.text_len, sources);
    printf("\"sent\": %" PRIu64 ", \"sent_per_s\": %.0f, \"sent_bytes\": %" PRIu64
           ", \"blocked\": %" PRIu64 ", ",
           flood->sent, (double)flood->sent / seconds, flood->sent_bytes, flood->blocked);
    printf("\"replies\": %" PRIu64 ", \"reply_bytes\": %" PRIu64 ", \"unseen\": %" PRIu64
           ", \"exceeded\": %u}\n",
           flood->received, flood->received_bytes, flood->unseen, exceeded);
}

static void usage(void)
{
    fprintf(stderr, "usage: bench_flood --interface NAME --host IPV4 [--port P] --text FILE\n"
                    "  [--size BYTES] [--seconds S] [--rate PER_S]\n");
    exit(2);
}

static struct options parse_options(int argc, char **argv)
{
    struct options options = {.port = PTK_WIRE_PORT, .text_len = 1000, .seconds = 2, .rate = 10000};
    static const struct option names[] = {
        {"interface", required_argument, NULL, 'i'}, {"host", required_argument, NULL, 'h'},
        {"port", required_argument, NULL, 'p'},      {"text", required_argument, NULL, 't'},
        {"size", required_argument, NULL, 's'},      {"seconds", required_argument, NULL, 'd'},
        {"rate", required_argument, NULL, 'r'},      {NULL, 0, NULL, 0},
    };
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (letter) {
        case 'i':
            options.interface = optarg;
            break;
        case 'h':
            options.host = optarg;
            break;
        case 'p':
            options.port = (uint16_t)strtoul(optarg, NULL, 10);
            break;
        case 't':
            options.text_path = optarg;
            break;
        case 's':
            options.text_len = strtoull(optarg, NULL, 10);
            break;
        case 'd':
            options.seconds = strtod(optarg, NULL);
            break;
        case 'r':
            options.rate = strtod(optarg, NULL);
            break;
        default:
            usage();
        }
    }
    const bool sane = options.interface != NULL && options.host != NULL &&
                      options.text_path != NULL && options.text_len <= DATAGRAM_LEN_MAX - 100 &&
                      options.seconds > 0 && options.seconds <= SECONDS_MAX && options.rate > 0 &&
                      options.rate <= 1e6;
    if (!sane) {
        usage();
    }
    return options;
}

int main(int argc, char **argv)
{
    static struct flood flood;
    flood.options = parse_options(argc, argv);
    flood.text = load_read_text(flood.options.text_path);
    flood.random = load_now_ns() | 1u;
    flood.next_id = flood.random;
    flood.server.sin_family = AF_INET;
    flood.server.sin_port = htons(flood.options.port);
    if (inet_pton(AF_INET, flood.options.host, &flood.server.sin_addr) != 1) {
        usage();
    }
    open_sockets(&flood);
    print_result(&flood, run(&flood));
    (void)close(flood.send_fd); /* The process ends here. */
    (void)close(flood.receive_fd);
    free(flood.text.bytes);
    return 0;
}
