/* Long options to a server configuration. */
#include "serve/ptk_datapath_options.h"

#include "algo/ptk_tokenizer.h"
#include "serve/ptk_poller.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

/* Entries of the receive and transmit ring: 2048 packets are some 2 ms of a million packets a
 * second. */
#define RING_LEN_DEFAULT 2048u

/* Piece cache of a model and worker: a share of the second-level cache, a few thousand pieces. */
#define CACHE_LEN_DEFAULT (1u << 20)

/* Longest message: what the largest context windows hold as text. Scratch is some 200 times that.
 */
#define MESSAGE_LEN_MAX_DEFAULT (1u << 20)

/* The least --message-len-max: below, datagrams do. */
#define MESSAGE_LEN_MAX_MIN (1u << 16)

#define MODEL_SLOTS_DEFAULT      8u
#define DRAIN_TIMEOUT_MS_DEFAULT 5000u
#define STRANGER_PERCENT_DEFAULT 50u

const char PTK_DATAPATH_USAGE[] =
    "usage: ptk-datapath --cores LIST [--iface NAME] [options]\n"
    "\n"
    "Answers PTK1 requests. Started by pintok-server; runs on its own until it gets SIGTERM.\n"
    "\n"
    "  --iface NAME            interface to serve; without one: all, by the socket path\n"
    "  --queues auto|LIST      its queues, one a core (auto: the first ones)\n"
    "  --cores LIST            cores to pin workers to, for instance 2-5,8\n"
    "  --port PORT             UDP port (7265)\n"
    "  --address ADDRESS       address to answer on; repeatable (all of the interface)\n"
    "  --path auto|xdp|socket  how packets come in (auto)\n"
    "  --xdp-mode auto|drv|skb hook of the XDP program (auto)\n"
    "  --zerocopy auto|require|off\n"
    "  --idle auto|spin|adaptive\n"
    "  --rx-checksum auto|verify|off\n"
    "  --require LIST          refuse to start without: "
    "xdp,drv,zerocopy,hugepages,memlock,isolation\n"
    "  --ring N                entries of the receive and transmit ring, a power of two (2048)\n"
    "  --frames N              frames of packet memory a queue (what the rings need)\n"
    "  --model SLOT:NAME=PATH  image to load; repeatable\n"
    "  --models-max N          model slots (8)\n"
    "  --cache BYTES           piece cache of each slot and worker, a power of two (1048576)\n"
    "  --message-len-max BYTES longest message in segments, up to 16777216 (1048576)\n"
    "  --arena BYTES           memory of each worker for these (16 of the longest)\n"
    "  --validate on|off       challenge sources without a cookie (off)\n"
    "  --stranger-percent N    share of each worker's time for them (50)\n"
    "  --limit-address P,B,W   packets, bytes, microseconds of work a second for one source\n"
    "  --limit-network P,B,W   the same for its network; 0: no limit (0,0,0)\n"
    "  --allow NETWORK         network that may send; repeatable (all)\n"
    "  --keys PATH             keys of tenants\n"
    "  --require-key on|off    refuse requests without a key's code (off)\n"
    "  --stats PATH            statistics segment to write\n"
    "  --mailbox PATH          mailbox to read commands from\n"
    "  --hand-over PATH        socket by which another process may take over\n"
    "  --take-over PATH        take the place of the server with this socket\n"
    "  --steer-object PATH     the XDP program\n"
    "  --drain-timeout-ms N    how long SIGTERM may take (5000)\n"
    "  --help\n";

enum option_id {
    OPTION_HELP = 1,
    OPTION_IFACE,
    OPTION_QUEUES,
    OPTION_CORES,
    OPTION_PORT,
    OPTION_ADDRESS,
    OPTION_PATH,
    OPTION_XDP_MODE,
    OPTION_ZEROCOPY,
    OPTION_IDLE,
    OPTION_RX_CHECKSUM,
    OPTION_REQUIRE,
    OPTION_RING,
    OPTION_FRAMES,
    OPTION_MODEL,
    OPTION_MODELS_MAX,
    OPTION_CACHE,
    OPTION_MESSAGE_LEN_MAX,
    OPTION_ARENA,
    OPTION_VALIDATE,
    OPTION_STRANGER_PERCENT,
    OPTION_LIMIT_ADDRESS,
    OPTION_LIMIT_NETWORK,
    OPTION_ALLOW,
    OPTION_KEYS,
    OPTION_REQUIRE_KEY,
    OPTION_STATS,
    OPTION_MAILBOX,
    OPTION_HAND_OVER,
    OPTION_TAKE_OVER,
    OPTION_STEER_OBJECT,
    OPTION_DRAIN_TIMEOUT_MS,
};

static const struct option OPTIONS[] = {
    {"help", no_argument, NULL, OPTION_HELP},
    {"iface", required_argument, NULL, OPTION_IFACE},
    {"queues", required_argument, NULL, OPTION_QUEUES},
    {"cores", required_argument, NULL, OPTION_CORES},
    {"port", required_argument, NULL, OPTION_PORT},
    {"address", required_argument, NULL, OPTION_ADDRESS},
    {"path", required_argument, NULL, OPTION_PATH},
    {"xdp-mode", required_argument, NULL, OPTION_XDP_MODE},
    {"zerocopy", required_argument, NULL, OPTION_ZEROCOPY},
    {"idle", required_argument, NULL, OPTION_IDLE},
    {"rx-checksum", required_argument, NULL, OPTION_RX_CHECKSUM},
    {"require", required_argument, NULL, OPTION_REQUIRE},
    {"ring", required_argument, NULL, OPTION_RING},
    {"frames", required_argument, NULL, OPTION_FRAMES},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"models-max", required_argument, NULL, OPTION_MODELS_MAX},
    {"cache", required_argument, NULL, OPTION_CACHE},
    {"message-len-max", required_argument, NULL, OPTION_MESSAGE_LEN_MAX},
    {"arena", required_argument, NULL, OPTION_ARENA},
    {"validate", required_argument, NULL, OPTION_VALIDATE},
    {"stranger-percent", required_argument, NULL, OPTION_STRANGER_PERCENT},
    {"limit-address", required_argument, NULL, OPTION_LIMIT_ADDRESS},
    {"limit-network", required_argument, NULL, OPTION_LIMIT_NETWORK},
    {"allow", required_argument, NULL, OPTION_ALLOW},
    {"keys", required_argument, NULL, OPTION_KEYS},
    {"require-key", required_argument, NULL, OPTION_REQUIRE_KEY},
    {"stats", required_argument, NULL, OPTION_STATS},
    {"mailbox", required_argument, NULL, OPTION_MAILBOX},
    {"hand-over", required_argument, NULL, OPTION_HAND_OVER},
    {"take-over", required_argument, NULL, OPTION_TAKE_OVER},
    {"steer-object", required_argument, NULL, OPTION_STEER_OBJECT},
    {"drain-timeout-ms", required_argument, NULL, OPTION_DRAIN_TIMEOUT_MS},
    {NULL, 0, NULL, 0},
};

static const char *const SWITCHES[] = {"off", "on"};
static const char *const PATHS[] = {"auto", "xdp", "socket"};
static const char *const XDP_MODES[] = {"auto", "drv", "skb"};
static const char *const ZEROCOPIES[] = {"auto", "require", "off"};
static const char *const IDLES[] = {"auto", "spin", "adaptive"};
static const char *const CHECKSUMS[] = {"auto", "verify", "off"};
static const char *const REQUIREMENTS[] = {"xdp",       "drv",     "zerocopy",
                                           "hugepages", "memlock", "isolation"};
_Static_assert(PTK_REQUIRE_ISOLATION == 1u << 5, "REQUIREMENTS stands in the order of the bits");
_Static_assert((int)PTK_DATAPATH_PATH_SOCKET == 2, "PATHS stands in the order of the enum");
_Static_assert((int)PTK_XDP_MODE_SKB == 2, "XDP_MODES stands in the order of the enum");

static int choose(const char *option, const char *value, const char *const choices[], size_t count,
                  uint32_t *chosen, struct ptk_err *err)
{
    char list[128] = "";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(value, choices[i]) == 0) {
            *chosen = (uint32_t)i;
            return 0;
        }
        strncat(list, i > 0 ? ", " : "", sizeof list - strlen(list) - 1);
        strncat(list, choices[i], sizeof list - strlen(list) - 1);
    }
    return ptk_err_set(err, -EINVAL, "--%s %s: must be one of %s", option, value, list);
}

static int number(const char *option, const char *value, uint32_t least, uint32_t most,
                  uint32_t *parsed, struct ptk_err *err)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long wide = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0' || errno != 0 || wide < least || wide > most) {
        return ptk_err_set(err, -EINVAL, "--%s %s: must be a number from %u to %u", option, value,
                           least, most);
    }
    *parsed = (uint32_t)wide;
    return 0;
}

static int power_of_two(const char *option, const char *value, uint32_t least, uint32_t most,
                        uint32_t *parsed, struct ptk_err *err)
{
    const int code = number(option, value, least, most, parsed, err);
    if (code == 0 && (*parsed & (*parsed - 1)) != 0) {
        return ptk_err_set(err, -EINVAL, "--%s %s: must be a power of two", option, value);
    }
    return code;
}

static int parse_address(const char *value, struct ptk_server_config *config, struct ptk_err *err)
{
    struct ptk_address address;
    const int code = ptk_address_parse(value, &address, err);
    return code == 0 ? ptk_address_set_add(&config->address, &address, err) : code;
}

static int parse_require(char *value, struct ptk_server_config *config, struct ptk_err *err)
{
    char *rest = value;
    for (char *name = strsep(&rest, ","); name != NULL; name = strsep(&rest, ",")) {
        uint32_t bit = 0;
        const int code =
            choose("require", name, REQUIREMENTS, PTK_ARRAY_LEN(REQUIREMENTS), &bit, err);
        if (code != 0) {
            return code;
        }
        config->require |= 1u << bit;
    }
    return 0;
}

/* SLOT:NAME=PATH; a name holds no '='. */
static int parse_model(const char *value, struct ptk_server_config *config, struct ptk_err *err)
{
    char *end = NULL;
    const unsigned long slot = strtoul(value, &end, 10);
    const char *path = *end == ':' ? strchr(end, '=') : NULL;
    if (*value < '0' || *value > '9' || path == NULL || slot >= PTK_MODELS_CAP || path[1] == '\0') {
        return ptk_err_set(err, -EINVAL,
                           "--model %s: must be SLOT:NAME=PATH with a slot from 0 to %u", value,
                           PTK_MODELS_CAP - 1);
    }
    const char *name = end + 1;
    const size_t name_len = (size_t)(path - name);
    struct ptk_server_image *image = &config->images[config->image_count];
    if (name_len == 0 || name_len >= sizeof image->name) {
        return ptk_err_set(err, -EINVAL, "--model %s: the name must have 1 to %zu bytes", value,
                           sizeof image->name - 1);
    }
    for (uint32_t i = 0; i < config->image_count; i++) {
        if (config->images[i].slot == slot) {
            return ptk_err_set(err, -EINVAL, "--model %s: slot %lu is named twice", value, slot);
        }
    }
    image->slot = (uint32_t)slot;
    memcpy(image->name, name, name_len);
    image->path = path + 1;
    config->image_count++; /* At most PTK_MODELS_CAP, since slots differ. */
    return 0;
}

/* PACKETS,BYTES,MICROSECONDS */
static int parse_rate(const char *option, char *value, struct ptk_guard_rate *rate,
                      struct ptk_err *err)
{
    uint32_t *const parts[] = {&rate->packets, &rate->bytes, &rate->work_us};
    char *rest = value;
    for (size_t i = 0; i < PTK_ARRAY_LEN(parts); i++) {
        const char *word = strsep(&rest, ",");
        if (word == NULL) {
            return ptk_err_set(err, -EINVAL, "--%s: must be three numbers with commas", option);
        }
        const int code = number(option, word, 0, UINT32_MAX, parts[i], err);
        if (code != 0) {
            return code;
        }
    }
    return rest == NULL ? 0
                        : ptk_err_set(err, -EINVAL, "--%s: has more than three numbers", option);
}

static int parse_allow(const char *value, struct ptk_guard_limits *guard, struct ptk_err *err)
{
    if (guard->network_count == PTK_NETWORKS_MAX) {
        return ptk_err_set(err, -EINVAL, "--allow %s: at most %u networks", value,
                           PTK_NETWORKS_MAX);
    }
    return ptk_network_parse(value, &guard->networks[guard->network_count++], err);
}

static int parse_one(int id, char *value, struct ptk_server_config *config, struct ptk_err *err)
{
    uint32_t chosen = 0;
    int code = 0;
    switch ((enum option_id)id) {
    case OPTION_HELP:
        return 1;
    case OPTION_IFACE:
        config->interface = value;
        return 0;
    case OPTION_QUEUES:
        return strcmp(value, "auto") == 0
                   ? 0
                   : ptk_cpu_list_parse(value, "--queues", &config->queues, err);
    case OPTION_CORES:
        return ptk_cpu_list_parse(value, "--cores", &config->cores, err);
    case OPTION_PORT:
        code = number("port", value, 1, 65535, &chosen, err);
        config->port = (uint16_t)chosen;
        return code;
    case OPTION_ADDRESS:
        return parse_address(value, config, err);
    case OPTION_PATH:
        code = choose("path", value, PATHS, PTK_ARRAY_LEN(PATHS), &chosen, err);
        config->path = (enum ptk_datapath_path)chosen;
        return code;
    case OPTION_XDP_MODE:
        code = choose("xdp-mode", value, XDP_MODES, PTK_ARRAY_LEN(XDP_MODES), &chosen, err);
        config->xdp_mode = (enum ptk_xdp_mode)chosen;
        return code;
    case OPTION_ZEROCOPY:
        code = choose("zerocopy", value, ZEROCOPIES, PTK_ARRAY_LEN(ZEROCOPIES), &chosen, err);
        config->zerocopy = (enum ptk_zerocopy)chosen;
        return code;
    case OPTION_IDLE:
        code = choose("idle", value, IDLES, PTK_ARRAY_LEN(IDLES), &chosen, err);
        config->idle = (enum ptk_idle)chosen;
        return code;
    case OPTION_RX_CHECKSUM:
        code = choose("rx-checksum", value, CHECKSUMS, PTK_ARRAY_LEN(CHECKSUMS), &chosen, err);
        config->checksum_strict = chosen == 1;
        config->checksum_off = chosen == 2;
        return code;
    case OPTION_REQUIRE:
        return parse_require(value, config, err);
    case OPTION_RING:
        return power_of_two("ring", value, PTK_POLLER_BATCH, 32768, &config->ring_len, err);
    case OPTION_FRAMES:
        return number("frames", value, 2 * PTK_POLLER_BATCH, 1u << 20, &config->frame_count, err);
    case OPTION_MODEL:
        return parse_model(value, config, err);
    case OPTION_MODELS_MAX:
        return number("models-max", value, 1, PTK_MODELS_CAP, &config->model_slots, err);
    case OPTION_CACHE:
        code = power_of_two("cache", value, PTK_CACHE_LEN_MIN, 1u << 30, &chosen, err);
        config->cache_len = chosen;
        return code;
    case OPTION_MESSAGE_LEN_MAX:
        return number("message-len-max", value, MESSAGE_LEN_MAX_MIN, PTK_WIRE_MESSAGE_LEN_MAX,
                      &config->message_len_max, err);
    case OPTION_ARENA:
        code = number("arena", value, 2 * MESSAGE_LEN_MAX_MIN, 1u << 31, &chosen, err);
        config->arena_len = chosen;
        return code;
    case OPTION_VALIDATE:
        code = choose("validate", value, SWITCHES, PTK_ARRAY_LEN(SWITCHES), &chosen, err);
        config->guard.validate = chosen == 1;
        return code;
    case OPTION_STRANGER_PERCENT:
        return number("stranger-percent", value, 1, 100, &config->guard.stranger_percent, err);
    case OPTION_LIMIT_ADDRESS:
        return parse_rate("limit-address", value, &config->guard.address, err);
    case OPTION_LIMIT_NETWORK:
        return parse_rate("limit-network", value, &config->guard.network, err);
    case OPTION_ALLOW:
        return parse_allow(value, &config->guard, err);
    case OPTION_KEYS:
        config->keys_path = value;
        return 0;
    case OPTION_REQUIRE_KEY:
        code = choose("require-key", value, SWITCHES, PTK_ARRAY_LEN(SWITCHES), &chosen, err);
        config->guard.require_key = chosen == 1;
        return code;
    case OPTION_STATS:
        config->stats_path = value;
        return 0;
    case OPTION_MAILBOX:
        config->mailbox_path = value;
        return 0;
    case OPTION_HAND_OVER:
        config->hand_over_path = value;
        return 0;
    case OPTION_TAKE_OVER:
        config->take_over_path = value;
        return 0;
    case OPTION_STEER_OBJECT:
        config->steer_object = value;
        return 0;
    case OPTION_DRAIN_TIMEOUT_MS:
        return number("drain-timeout-ms", value, 0, 3600000, &config->drain_timeout_ms, err);
    }
    return ptk_err_set(err, -EINVAL, "an option is unknown or lacks its value; see --help");
}

/* What single options cannot see. */
static int verify(const struct ptk_server_config *config, struct ptk_err *err)
{
    if (config->cores.count == 0) {
        return ptk_err_set(err, -EINVAL, "--cores is missing: name at least one core");
    }
    for (uint32_t i = 0; i < config->image_count; i++) {
        if (config->images[i].slot >= config->model_slots) {
            return ptk_err_set(err, -EINVAL, "--model: slot %u, but --models-max is %u",
                               config->images[i].slot, config->model_slots);
        }
    }
    if (config->guard.require_key && config->keys_path == NULL) {
        return ptk_err_set(err, -EINVAL, "--require-key on: there are no keys (--keys)");
    }
    const uint32_t needs_xdp = PTK_REQUIRE_XDP | PTK_REQUIRE_DRV | PTK_REQUIRE_ZEROCOPY;
    if (config->path == PTK_DATAPATH_PATH_SOCKET && (config->require & needs_xdp) != 0) {
        return ptk_err_set(err, -EINVAL,
                           "--path socket contradicts --require xdp, drv or zerocopy");
    }
    if (config->xdp_mode == PTK_XDP_MODE_SKB && (config->require & PTK_REQUIRE_DRV) != 0) {
        return ptk_err_set(err, -EINVAL, "--xdp-mode skb contradicts --require drv");
    }
    if (config->zerocopy == PTK_ZEROCOPY_OFF && (config->require & PTK_REQUIRE_ZEROCOPY) != 0) {
        return ptk_err_set(err, -EINVAL, "--zerocopy off contradicts --require zerocopy");
    }
    return 0;
}

int ptk_datapath_options_parse(int argc, char **argv, struct ptk_server_config *config,
                               struct ptk_err *err)
{
    memset(config, 0, sizeof *config);
    config->port = PTK_WIRE_PORT;
    config->ring_len = RING_LEN_DEFAULT;
    config->model_slots = MODEL_SLOTS_DEFAULT;
    config->cache_len = CACHE_LEN_DEFAULT;
    config->message_len_max = MESSAGE_LEN_MAX_DEFAULT;
    config->drain_timeout_ms = DRAIN_TIMEOUT_MS_DEFAULT;
    config->guard.stranger_percent = STRANGER_PERCENT_DEFAULT;
    optind = 1;
    opterr = 0;
    for (;;) {
        const int id = getopt_long(argc, argv, "", OPTIONS, NULL);
        if (id < 0) {
            break;
        }
        if (id == '?') {
            return ptk_err_set(err, -EINVAL,
                               "%s: unknown, ambiguous or without its value; see --help",
                               argv[optind - 1]);
        }
        const int code = parse_one(id, optarg, config, err);
        if (code != 0) {
            return code;
        }
    }
    if (optind < argc) {
        return ptk_err_set(err, -EINVAL, "%s: is no option; see --help", argv[optind]);
    }
    return verify(config, err);
}
