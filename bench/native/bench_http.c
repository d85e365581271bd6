/*
 * Load generator for a tokenization service over HTTP: keep-alive connections in a closed loop.
 *
 * The counterpart of bench_load for the conventional service that the benchmarks compare with: the
 * same slices of the same text, the same histogram, one JSON line. Each of `window` connections has
 * one POST in flight. A reply must be a 200 with a Content-Length and a body that holds "count".
 *
 *   bench_http --host 10.0.0.1 --port 8000 --size 200 --text FILE --seconds 3 --window 32
 */
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/ptk_base.h"
#include "load_measure.h"

#define WINDOW_MAX    1024u
#define TEXT_LEN_MAX  ((size_t)16 << 10)
#define HEAD_LEN_MAX  512u
/* JSON writes a control byte as six. */
#define REQUEST_CAP   (HEAD_LEN_MAX + 64u + 6u * TEXT_LEN_MAX)
#define REPLY_CAP     ((size_t)1 << 20)

struct options {
    const char *host;
    const char *port;
    const char *path;
    const char *text_path;
    size_t text_len;
    double seconds;
    uint64_t count_max;
    uint32_t window;
    int core;
};

struct connection {
    int fd;
    uint64_t sent_ns;
    size_t reply_len;
    char *reply;
};

struct load {
    struct options options;
    struct load_text text;
    struct load_histogram latency;
    struct connection connections[WINDOW_MAX];
    uint64_t sent, received, refused, tokens, text_bytes;
    char body[REQUEST_CAP];
    char request[REQUEST_CAP + HEAD_LEN_MAX];
};

/* Appends the text as the inside of a JSON string; returns the new length. */
static size_t append_json_text(char *out, size_t len, struct load_slice slice)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < slice.len; i++) {
        uint8_t byte = slice.bytes[i];
        if (byte == '"' || byte == '\\') {
            out[len++] = '\\';
            out[len++] = (char)byte;
        } else if (byte < 0x20) {
            memcpy(out + len, "\\u00", 4);
            out[len + 4] = digits[byte >> 4];
            out[len + 5] = digits[byte & 15];
            len += 6;
        } else {
            out[len++] = (char)byte;
        }
    }
    return len;
}

static void send_request(struct load *load, struct connection *connection)
{
    static const char begin[] = "{\"text\":\"";
    struct load_slice slice = load_next_slice(&load->text, load->options.text_len);
    memcpy(load->body, begin, sizeof begin - 1);
    size_t body_len = append_json_text(load->body, sizeof begin - 1, slice);
    memcpy(load->body + body_len, "\"}", 2);
    body_len += 2;
    int head_len = snprintf(load->request, HEAD_LEN_MAX,
                            "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
                            "Content-Length: %zu\r\n\r\n",
                            load->options.path, load->options.host, body_len);
    if (head_len < 0 || (size_t)head_len >= HEAD_LEN_MAX) {
        fprintf(stderr, "load: host and path are too long\n");
        exit(1);
    }
    memcpy(load->request + head_len, load->body, body_len);
    size_t len = (size_t)head_len + body_len;
    connection->sent_ns = load_now_ns();
    connection->reply_len = 0;
    for (size_t done = 0; done < len;) {
        ssize_t part = send(connection->fd, load->request + done, len - done, MSG_NOSIGNAL);
        if (part <= 0) {
            load_fail("send");
        }
        done += (size_t)part;
    }
    load->sent++;
    load->text_bytes += slice.len;
}

static void open_connections(struct load *load)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(load->options.host, load->options.port, &hints, &found) != 0) {
        fprintf(stderr, "load: no address for %s\n", load->options.host);
        exit(1);
    }
    for (uint32_t i = 0; i < load->options.window; i++) {
        struct connection *connection = &load->connections[i];
        connection->fd = socket(found->ai_family, SOCK_STREAM, 0);
        int one = 1;
        if (connection->fd < 0 ||
            connect(connection->fd, found->ai_addr, found->ai_addrlen) != 0 ||
            setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
            load_fail("connect");
        }
        connection->reply = malloc(REPLY_CAP + 1);
        if (connection->reply == NULL) {
            load_fail("memory");
        }
    }
    freeaddrinfo(found);
}

/* Takes in what has arrived; true when the reply is complete and counted. */
static bool receive_reply(struct load *load, struct connection *connection)
{
    ssize_t part = recv(connection->fd, connection->reply + connection->reply_len,
                        REPLY_CAP - connection->reply_len, MSG_DONTWAIT);
    if (part < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    if (part <= 0) {
        errno = part == 0 ? ECONNRESET : errno;
        load_fail("the service closed a connection");
    }
    connection->reply_len += (size_t)part;
    connection->reply[connection->reply_len] = '\0';
    char *body = strstr(connection->reply, "\r\n\r\n");
    if (body == NULL) {
        return false;
    }
    body += 4;
    const char *length = strcasestr(connection->reply, "\ncontent-length:");
    if (length == NULL || length > body) {
        fprintf(stderr, "load: a reply without Content-Length\n");
        exit(1);
    }
    size_t body_len = strtoull(length + strlen("\ncontent-length:"), NULL, 10);
    if (connection->reply_len < (size_t)(body - connection->reply) + body_len) {
        return false;
    }
    load_record(&load->latency, load_now_ns() - connection->sent_ns);
    load->received++;
    const char *count = strstr(body, "\"count\":");
    if (strncmp(connection->reply, "HTTP/1.1 200", 12) != 0 || count == NULL) {
        load->refused++;
    } else {
        load->tokens += strtoull(count + strlen("\"count\":"), NULL, 10);
    }
    return true;
}

/* The main loop; returns the seconds it ran, the wait for the last replies included. */
static double run(struct load *load)
{
    const struct options *options = &load->options;
    static struct pollfd waits[WINDOW_MAX];
    uint64_t begin = load_now_ns();
    uint64_t end = begin + (uint64_t)(options->seconds * 1e9);
    uint32_t in_flight = 0;
    for (uint32_t i = 0; i < options->window && load->sent < options->count_max; i++) {
        waits[i] = (struct pollfd){.fd = load->connections[i].fd, .events = POLLIN};
        send_request(load, &load->connections[i]);
        in_flight++;
    }
    while (in_flight > 0) {
        if (poll(waits, options->window, 5000) <= 0) {
            load_fail("no reply for five seconds");
        }
        for (uint32_t i = 0; i < options->window; i++) {
            if (waits[i].revents == 0 || !receive_reply(load, &load->connections[i])) {
                continue;
            }
            if (load_now_ns() < end && load->sent < options->count_max) {
                send_request(load, &load->connections[i]);
            } else {
                waits[i].fd = -1; /* poll() passes over it. */
                in_flight--;
            }
        }
    }
    return (double)(load_now_ns() - begin) * 1e-9;
}

static void print_result(const struct load *load, double seconds)
{
    const struct options *options = &load->options;
    double rate = (double)load->received / seconds;
    printf("{\"op\": \"http\", \"size\": %zu, \"window\": %u, \"seconds\": %.3f, ",
           options->text_len, options->window, seconds);
    printf("\"sent\": %" PRIu64 ", \"received\": %" PRIu64 ", \"refused\": %" PRIu64 ", ",
           load->sent, load->received, load->refused);
    printf("\"requests_per_s\": %.0f, \"text_mb_per_s\": %.2f, \"tokens_per_s\": %.0f, ", rate,
           (double)load->text_bytes / 1e6 / seconds, (double)load->tokens / seconds);
    printf("\"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p999_ns\": %" PRIu64
           ", \"max_ns\": %" PRIu64 "}\n",
           load_quantile_ns(&load->latency, 0.50), load_quantile_ns(&load->latency, 0.99),
           load_quantile_ns(&load->latency, 0.999), load->latency.max_ns);
}

_Noreturn static void usage(void)
{
    fprintf(stderr, "usage: bench_http --host H --text FILE [--port P] [--path /tokenize]\n"
                    "  [--size BYTES] [--seconds S] [--count N] [--window N] [--core N]\n");
    exit(2);
}

static struct options parse_options(int argc, char **argv)
{
    struct options options = {
        .port = "8000",
        .path = "/tokenize",
        .text_len = 200,
        .seconds = 2,
        .count_max = UINT64_MAX,
        .window = 1,
        .core = -1,
    };
    static const struct option names[] = {
        {"host", required_argument, NULL, 'h'},   {"port", required_argument, NULL, 'p'},
        {"path", required_argument, NULL, 'u'},   {"text", required_argument, NULL, 't'},
        {"size", required_argument, NULL, 's'},   {"seconds", required_argument, NULL, 'd'},
        {"count", required_argument, NULL, 'n'},  {"window", required_argument, NULL, 'w'},
        {"core", required_argument, NULL, 'c'},   {NULL, 0, NULL, 0},
    };
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (letter) {
        case 'h': options.host = optarg; break;
        case 'p': options.port = optarg; break;
        case 'u': options.path = optarg; break;
        case 't': options.text_path = optarg; break;
        case 's': options.text_len = strtoull(optarg, NULL, 10); break;
        case 'd': options.seconds = strtod(optarg, NULL); break;
        case 'n': options.count_max = strtoull(optarg, NULL, 10); break;
        case 'w': options.window = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'c': options.core = (int)strtol(optarg, NULL, 10); break;
        default: usage();
        }
    }
    bool sane = options.host != NULL && options.text_path != NULL && options.window >= 1 &&
                options.window <= WINDOW_MAX && options.text_len <= TEXT_LEN_MAX &&
                options.seconds > 0 && options.seconds <= 600 && options.count_max >= 1;
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
    if (load.options.core >= 0) {
        load_pin(load.options.core);
    }
    open_connections(&load);
    double seconds = run(&load);
    print_result(&load, seconds);
    for (uint32_t i = 0; i < load.options.window; i++) {
        (void)close(load.connections[i].fd); /* The process ends here. */
        free(load.connections[i].reply);
    }
    free(load.text.bytes);
    return load.received > load.refused ? 0 : 1;
}
