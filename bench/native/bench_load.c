/*
 * Load generator for a PTK1 server: one thread, one connected UDP socket per flow, a closed loop of
 * `window` requests in flight or an open loop of a fixed rate. Bounded in time and count.
 *
 * It sends slices of a text file (so that every request differs), accepts only the reply with the
 * right id, and prints one JSON line: rate, latency quantiles in ns, losses, verdicts. Whether the
 * ids are right is proved by the harness that calls it, not here: this program only counts them.
 *
 * Where the server validates addresses, each flow asks for a cookie before the measurement begins,
 * carries it in every request and takes over the fresh one of a refusal, as a client does. A server
 * that does not answers the question as a ping, and the flow goes without.
 *
 *   bench_load --host 10.0.0.1 --op encode --size 200 --text FILE --seconds 3 --window 32
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/ptk_base.h"
#include "gen/ptk_wire_gen.h"
#include "load_measure.h"

#define FLOWS_MAX        64u
#define WINDOW_MAX       4096u
#define BATCH_MAX        64u
#define DATAGRAM_LEN_MAX 9216u

struct options {
    const char *host;
    const char *port;
    const char *text_path;
    uint8_t op;
    size_t text_len;
    double seconds;
    uint64_t count_max;
    uint32_t window;
    double rate; /* requests per second; 0: closed loop */
    uint32_t flow_count;
    uint16_t model_id;
    uint64_t timeout_ns;
    int core;
};

/* One socket, and what proves its address to the server. */
struct flow {
    int fd;
    bool has_cookie;
    struct ptk_wire_cookie cookie;
};

/* One request in flight; its place in the table is its id modulo the window. */
struct flight {
    uint64_t request_id; /* 0: free */
    uint64_t sent_ns;
};

struct load {
    struct options options;
    struct load_text text;
    struct flow flows[FLOWS_MAX];
    struct flight flights[WINDOW_MAX];
    uint32_t in_flight;
    uint64_t next_id;
    uint64_t sent, received, lost, foreign, tokens, text_bytes, blocked, cookies;
    uint64_t verdicts[PTK_VERDICT_VALUE_COUNT];
    struct load_histogram latency;
    uint8_t datagrams[BATCH_MAX][DATAGRAM_LEN_MAX];
    struct iovec iovecs[BATCH_MAX];
    struct mmsghdr messages[BATCH_MAX];
};

static struct flow *flow_of(struct load *load, uint64_t first_id)
{
    return &load->flows[(first_id / BATCH_MAX) % load->options.flow_count];
}

static size_t build_request(struct load *load, const struct flow *flow, uint8_t *out,
                            uint64_t request_id)
{
    const struct options *options = &load->options;
    struct load_slice slice = load_next_slice(&load->text, options->text_len);
    size_t message_len;
    const size_t message_off = PTK_WIRE_HEADER_LEN + (flow->has_cookie ? sizeof flow->cookie : 0);
    uint8_t *message = out + message_off;
    if (options->op == PTK_WIRE_OP_PING) {
        message_len = ptk_align_up(slice.len, 8);
        memset(message + slice.len, 0, message_len - slice.len);
        memcpy(message, slice.bytes, slice.len);
    } else {
        struct ptk_wire_request request = {
            .id_format = PTK_ID_FORMAT_AUTO,
            .options = PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS | PTK_WIRE_OPTIONS_PARSE_SPECIAL,
            .item_count = 1,
            .reply_len_max = DATAGRAM_LEN_MAX - 256,
        };
        memcpy(message, &request, sizeof request);
        ptk_store_u32(message + 8, (uint32_t)slice.len);
        ptk_store_u32(message + 12, 0);
        memcpy(message + 16, slice.bytes, slice.len);
        message_len = ptk_align_up(16 + slice.len, 8);
        memset(message + 16 + slice.len, 0, message_len - 16 - slice.len);
    }
    struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = flow->has_cookie ? PTK_WIRE_FLAGS_COOKIE : 0,
        .message_len = (uint32_t)message_len,
        .request_id = request_id,
        .model_id = options->model_id,
        .op = options->op,
    };
    memcpy(out, &header, sizeof header);
    if (flow->has_cookie) {
        memcpy(out + PTK_WIRE_HEADER_LEN, &flow->cookie, sizeof flow->cookie);
    }
    load->text_bytes += slice.len;
    return message_off + message_len;
}

/* A refusal may carry a cookie: it holds from the next request on. */
static void take_cookie(struct load *load, struct flow *flow, const uint8_t *reply, size_t len)
{
    struct ptk_wire_header header;
    memcpy(&header, reply, sizeof header);
    const bool refusal =
        header.verdict == PTK_VERDICT_CHALLENGE || header.verdict == PTK_VERDICT_BAD_COOKIE;
    if (refusal && (header.flags & PTK_WIRE_FLAGS_COOKIE) != 0 &&
        len >= sizeof header + sizeof flow->cookie) {
        memcpy(&flow->cookie, reply + sizeof header, sizeof flow->cookie);
        flow->has_cookie = true;
        load->cookies++;
    }
}

/* Asks for a cookie with one that cannot be good, up to three times. */
static void ask_for_cookie(struct load *load, struct flow *flow)
{
    uint8_t datagram[PTK_WIRE_HEADER_LEN + sizeof flow->cookie] = {0};
    const struct ptk_wire_header header = {
        .magic = PTK_WIRE_MAGIC,
        .version_type = PTK_WIRE_VERSION << 4 | PTK_WIRE_TYPE_REQUEST,
        .flags = PTK_WIRE_FLAGS_COOKIE,
        .request_id = load->next_id++,
        .op = PTK_WIRE_OP_PING,
    };
    memcpy(datagram, &header, sizeof header);
    for (int attempt = 0; attempt < 3; attempt++) {
        uint8_t reply[DATAGRAM_LEN_MAX];
        struct pollfd wait = {.fd = flow->fd, .events = POLLIN};
        if (send(flow->fd, datagram, sizeof datagram, 0) < 0 ||
            poll(&wait, 1, (int)(load->options.timeout_ns / 1000000)) <= 0) {
            continue; /* Lost, or nobody is there: the measurement shows that too. */
        }
        const ssize_t len = recv(flow->fd, reply, sizeof reply, 0);
        if (len >= (ssize_t)sizeof header) {
            take_cookie(load, flow, reply, (size_t)len);
            return;
        }
    }
}

static void open_sockets(struct load *load)
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(load->options.host, load->options.port, &hints, &found) != 0) {
        fprintf(stderr, "bench_load: no address for %s\n", load->options.host);
        exit(1);
    }
    for (uint32_t i = 0; i < load->options.flow_count; i++) {
        int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        int size = 4 << 20;
        if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) {
            load_fail("socket");
        }
        /* The default also works. */
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        load->flows[i].fd = fd;
        ask_for_cookie(load, &load->flows[i]);
    }
    freeaddrinfo(found);
}

/* Sends up to `want` requests on one flow; returns how many left. */
static uint32_t send_some(struct load *load, uint32_t want)
{
    uint32_t count = 0;
    uint64_t first_id = load->next_id;
    const struct flow *flow = flow_of(load, first_id);
    uint64_t now = load_now_ns();
    while (count < want && count < BATCH_MAX) {
        struct flight *flight = &load->flights[load->next_id % load->options.window];
        if (flight->request_id != 0) {
            break; /* The oldest of the window is still out. */
        }
        size_t len = build_request(load, flow, load->datagrams[count], load->next_id);
        load->iovecs[count] = (struct iovec){load->datagrams[count], len};
        load->messages[count].msg_hdr =
            (struct msghdr){.msg_iov = &load->iovecs[count], .msg_iovlen = 1};
        *flight = (struct flight){load->next_id, now};
        load->next_id++;
        count++;
    }
    if (count == 0) {
        return 0;
    }
    int done = sendmmsg(flow->fd, load->messages, count, 0);
    uint32_t left = done < 0 ? 0u : (uint32_t)done;
    if (done < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ECONNREFUSED) {
        load_fail("sendmmsg");
    }
    for (uint32_t i = left; i < count; i++) { /* Not sent: take the ids back. */
        load->flights[(first_id + i) % load->options.window].request_id = 0;
    }
    load->blocked += count - left;
    load->next_id = first_id + left;
    load->sent += left;
    load->in_flight += left;
    return left;
}

static void account_reply(struct load *load, struct flow *flow, const uint8_t *reply, size_t len,
                          uint64_t now)
{
    struct ptk_wire_header header;
    if (len < sizeof header) {
        load->foreign++;
        return;
    }
    memcpy(&header, reply, sizeof header);
    struct flight *flight = &load->flights[header.request_id % load->options.window];
    if (header.magic != PTK_WIRE_MAGIC || flight->request_id != header.request_id ||
        header.verdict >= PTK_VERDICT_VALUE_COUNT) {
        load->foreign++;
        return;
    }
    load_record(&load->latency, now - flight->sent_ns);
    flight->request_id = 0;
    load->in_flight--;
    load->received++;
    load->verdicts[header.verdict]++;
    if (header.verdict != PTK_VERDICT_OK) {
        take_cookie(load, flow, reply, len);
    }
    if (header.verdict == PTK_VERDICT_OK && header.op != PTK_WIRE_OP_PING && len >= 48) {
        load->tokens += ptk_load_u32(reply + PTK_WIRE_HEADER_LEN + sizeof(struct ptk_wire_reply));
    }
}

/* Takes in whatever has arrived on every flow; returns the number of datagrams. */
static uint32_t receive_some(struct load *load)
{
    uint32_t total = 0;
    for (uint32_t place = 0; place < load->options.flow_count; place++) {
        struct flow *flow = &load->flows[place];
        for (uint32_t i = 0; i < BATCH_MAX; i++) {
            load->iovecs[i] = (struct iovec){load->datagrams[i], DATAGRAM_LEN_MAX};
            load->messages[i].msg_hdr =
                (struct msghdr){.msg_iov = &load->iovecs[i], .msg_iovlen = 1};
        }
        int count = recvmmsg(flow->fd, load->messages, BATCH_MAX, MSG_DONTWAIT, NULL);
        uint64_t now = load_now_ns();
        for (int i = 0; i < count; i++) {
            account_reply(load, flow, load->datagrams[i], load->messages[i].msg_len, now);
        }
        total += count > 0 ? (uint32_t)count : 0u;
    }
    return total;
}

static void expire(struct load *load, uint64_t now)
{
    for (uint32_t i = 0; i < load->options.window; i++) {
        struct flight *flight = &load->flights[i];
        if (flight->request_id != 0 && now > flight->sent_ns + load->options.timeout_ns) {
            flight->request_id = 0;
            load->in_flight--;
            load->lost++;
        }
    }
}

/* The main loop; returns the seconds it ran, the wait for the last replies left out. */
static double run(struct load *load)
{
    const struct options *options = &load->options;
    uint64_t begin = load_now_ns();
    uint64_t end = begin + (uint64_t)(options->seconds * 1e9);
    uint64_t checked = begin;
    uint64_t last = begin;
    uint32_t idle = 0;
    for (uint64_t now = begin; now < end && load->received + load->lost < options->count_max;
         now = load_now_ns()) {
        uint32_t want = options->window - load->in_flight;
        if (options->rate > 0) {
            double due = (double)(now - begin) * 1e-9 * options->rate;
            double behind = due - (double)load->sent;
            want = behind <= 0 ? 0u : (uint32_t)ptk_min_size((size_t)behind, want);
        }
        if (load->sent + want > options->count_max) {
            want = (uint32_t)(options->count_max - load->sent);
        }
        uint32_t moved = want > 0 ? send_some(load, want) : 0u;
        uint32_t arrived = receive_some(load);
        last = arrived > 0 ? load_now_ns() : last;
        idle = moved + arrived > 0 ? 0u : idle + 1u;
        if (idle > 64) { /* Leave the core to the server for a moment. */
            struct pollfd wait = {.fd = load->flows[0].fd, .events = POLLIN};
            /* Only a pause: the loop looks again. */
            (void)poll(&wait, 1, options->rate > 0 ? 0 : 1);
            idle = 0;
        }
        if (now - checked > 10000000ull) {
            expire(load, now);
            checked = now;
        }
    }
    uint64_t stop = load_now_ns();
    while (load->in_flight > 0 && load_now_ns() - stop < options->timeout_ns) {
        if (receive_some(load) == 0) {
            (void)sched_yield(); /* Waiting for the last replies. */
        }
    }
    load->lost += load->in_flight;
    uint64_t finished = last > stop || load->received == 0 ? stop : last;
    return (double)(finished - begin) * 1e-9;
}

static void print_result(const struct load *load, double seconds)
{
    const struct options *options = &load->options;
    double rate = seconds > 0 ? (double)load->received / seconds : 0;
    printf("{\"op\": %u, \"size\": %zu, \"window\": %u, \"flows\": %u, \"offered_per_s\": %.0f, ",
           options->op, options->text_len, options->window, options->flow_count, options->rate);
    printf("\"seconds\": %.3f, \"sent\": %" PRIu64 ", \"received\": %" PRIu64 ", \"lost\": %" PRIu64
           ", \"foreign\": %" PRIu64 ", \"blocked\": %" PRIu64 ", \"cookies\": %" PRIu64 ", ",
           seconds, load->sent, load->received, load->lost, load->foreign, load->blocked,
           load->cookies);
    printf("\"requests_per_s\": %.0f, \"text_mb_per_s\": %.2f, \"tokens_per_s\": %.0f, ", rate,
           rate * (double)options->text_len / 1e6,
           (double)load->tokens / (seconds > 0 ? seconds : 1));
    printf("\"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p999_ns\": %" PRIu64
           ", \"max_ns\": %" PRIu64 ", \"verdicts\": {",
           load_quantile_ns(&load->latency, 0.50), load_quantile_ns(&load->latency, 0.99),
           load_quantile_ns(&load->latency, 0.999), load->latency.max_ns);
    static const char *const names[PTK_VERDICT_VALUE_COUNT] = PTK_VERDICT_NAMES;
    const char *separator = "";
    for (size_t i = 0; i < PTK_VERDICT_VALUE_COUNT; i++) {
        if (load->verdicts[i] > 0) {
            printf("%s\"%s\": %" PRIu64, separator, names[i], load->verdicts[i]);
            separator = ", ";
        }
    }
    printf("}}\n");
}

static void usage(void)
{
    fprintf(stderr, "usage: bench_load --host H [--port P] [--op ping|encode|count] --text FILE\n"
                    "  [--size BYTES] [--seconds S] [--count N] [--window N] [--rate PER_S]\n"
                    "  [--flows N] [--model ID] [--timeout-ms MS] [--core N]\n");
    exit(2);
}

static uint8_t parse_op(const char *name)
{
    if (strcmp(name, "ping") == 0) {
        return PTK_WIRE_OP_PING;
    }
    if (strcmp(name, "encode") == 0) {
        return PTK_WIRE_OP_ENCODE;
    }
    if (strcmp(name, "count") == 0) {
        return PTK_WIRE_OP_COUNT;
    }
    usage();
    return 0;
}

static struct options parse_options(int argc, char **argv)
{
    struct options options = {
        .port = "7265",
        .op = PTK_WIRE_OP_ENCODE,
        .text_len = 200,
        .seconds = 2,
        .count_max = UINT64_MAX,
        .window = 1,
        .flow_count = 1,
        .timeout_ns = 200000000ull,
        .core = -1,
    };
    static const struct option names[] = {
        {"host", required_argument, NULL, 'h'},  {"port", required_argument, NULL, 'p'},
        {"op", required_argument, NULL, 'o'},    {"text", required_argument, NULL, 't'},
        {"size", required_argument, NULL, 's'},  {"seconds", required_argument, NULL, 'd'},
        {"count", required_argument, NULL, 'n'}, {"window", required_argument, NULL, 'w'},
        {"rate", required_argument, NULL, 'r'},  {"flows", required_argument, NULL, 'f'},
        {"model", required_argument, NULL, 'm'}, {"timeout-ms", required_argument, NULL, 'x'},
        {"core", required_argument, NULL, 'c'},  {NULL, 0, NULL, 0},
    };
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (letter) {
        case 'h':
            options.host = optarg;
            break;
        case 'p':
            options.port = optarg;
            break;
        case 'o':
            options.op = parse_op(optarg);
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
        case 'n':
            options.count_max = strtoull(optarg, NULL, 10);
            break;
        case 'w':
            options.window = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'r':
            options.rate = strtod(optarg, NULL);
            break;
        case 'f':
            options.flow_count = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'm':
            options.model_id = (uint16_t)strtoul(optarg, NULL, 10);
            break;
        case 'x':
            options.timeout_ns = strtoull(optarg, NULL, 10) * 1000000ull;
            break;
        case 'c':
            options.core = (int)strtol(optarg, NULL, 10);
            break;
        default:
            usage();
        }
    }
    bool sane = options.host != NULL && options.text_path != NULL && options.window >= 1 &&
                options.window <= WINDOW_MAX && options.flow_count >= 1 &&
                options.flow_count <= FLOWS_MAX && options.text_len <= DATAGRAM_LEN_MAX - 512 &&
                options.seconds > 0 && options.seconds <= 600;
    if (!sane) {
        usage();
    }
    return options;
}

int main(int argc, char **argv)
{
    static struct load load;
    load.options = parse_options(argc, argv);
    load.text = load_read_text(load.options.text_path);
    load.next_id = load_now_ns() | 1u;
    if (load.options.core >= 0) {
        load_pin(load.options.core);
    }
    open_sockets(&load);
    double seconds = run(&load);
    print_result(&load, seconds);
    for (uint32_t i = 0; i < load.options.flow_count; i++) {
        (void)close(load.flows[i].fd); /* The process ends here. */
    }
    free(load.text.bytes);
    return load.received > 0 ? 0 : 1;
}
