"""The configuration door: options, environment and YAML file become one checked `Settings`.

    flag  >  PINTOK_* variable  >  file given with --config  >  default

Every setting is one row of `SETTINGS`; the command line, the environment and the file are read
through the same parser of that row, so a value means the same wherever it is written. Unknown
names are refused and the nearest valid one is named. Nothing here looks at the host: whether a
core or an interface exists is asked later, by the part that uses it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from pintok import _wire
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server._spec import metrics as spec
from pintok_server.control.cores import parse_number_list
from pintok_server.errors import ConfigError

ENVIRONMENT_PREFIX = "PINTOK_"
DEFAULT_HTTP = "127.0.0.1:9465"
DEFAULT_MODEL = "default"

# A configuration is a page of text; anything larger is the wrong file.
FILE_LEN_MAX = 1 << 20
# Nesting that no valid file reaches; the YAML reader would recurse as deep as the file says.
FILE_DEPTH_MAX = 16

# Networks that the datapath's list holds.
NETWORKS_MAX = 64

# Endings of vocabulary files: what stands before them names the model.
_FILE_SUFFIXES = {".json", ".tiktoken", ".model", ".txt", ".ptk"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]*")
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to serve: the name clients use and where its tokenizer comes from."""

    name: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where metrics and health are served."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What one server was asked to be. Fields are named and explained by `SETTINGS`."""

    cores: tuple[int, ...] | None
    iface: str | None
    models: tuple[ModelChoice, ...]
    profile: str
    port: int
    address: tuple[str, ...]
    path: str
    xdp_mode: str
    zerocopy: str
    queues: tuple[int, ...] | None
    idle: str
    rx_checksum: str
    require: tuple[str, ...]
    models_max: int
    cache: int
    message_len_max: int
    arena: int | None
    address_validation: str
    stranger_percent: int
    limit_address: tuple[int, ...]
    limit_network: tuple[int, ...]
    allow: tuple[str, ...]
    keys: str | None
    require_key: str
    ring: int
    frames: int | None
    http: HttpAddress | None
    instance: str | None
    runtime_dir: str | None
    drain_timeout_s: float

    @property
    def instance_name(self) -> str:
        """The name of the runtime directory: as given, else interface and port."""
        return self.instance or f"{self.iface or 'any'}-{self.port}"


def describe(value: object) -> str:
    """A short picture of an untrusted value for a message: never longer than a line."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else "a very large number"
    if isinstance(value, float):
        return repr(value)
    names: dict[type, str] = {list: "a list", dict: "a mapping"}
    return names.get(type(value), f"a {type(value).__name__}")


def parse_text(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096 or not value.isprintable():
        raise ValueError(f"{describe(value)} is not a text")
    return value


def parse_cores(value: object) -> tuple[int, ...]:
    """Numbers as `2-5,8`, as one number, or as a list of numbers."""
    if isinstance(value, bool):
        raise ValueError(f"{describe(value)} is not a list of numbers such as 2-5")
    if isinstance(value, int):
        value = str(value)
    if isinstance(value, list):
        if not value or not all(type(item) is int and item >= 0 for item in value):
            raise ValueError("a list here holds numbers from 0 on")
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        raise ValueError(f"{describe(value)} is not a list of numbers such as 2-5")
    return parse_number_list(value)


def parse_interface(value: object) -> str:
    text = parse_text(value)
    if not _INTERFACE.fullmatch(text) or text in {".", ".."}:
        raise ValueError(f"{describe(value)} cannot be the name of a network interface")
    return text


def parse_int(value: object, *, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{describe(value)} is not a whole number from {low} to {high}")
    return value


def parse_len(value: object) -> int:
    """Bytes, as a number or with K, M or G behind it; a power of two from 64 KiB to 1 GiB."""
    length = value
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,10})([KMG]?)", value)):
        length = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    if type(length) is not int or not 1 << 16 <= length <= 1 << 30 or length & (length - 1):
        raise ValueError(f"{describe(value)} is not a power of two from 64K to 1G")
    return length


def parse_message_len(value: object) -> int:
    """As `parse_len`, up to what the protocol can announce."""
    length = parse_len(value)
    if length > _wire.WIRE_MESSAGE_LEN_MAX:
        raise ValueError(f"{describe(value)} is more than the 16M that a message may have")
    return length


def parse_ring(value: object) -> int:
    length = parse_int(value, low=32, high=32768)
    if length & (length - 1):
        raise ValueError(f"{length} is not a power of two")
    return length


def parse_port(value: object) -> int:
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            f"{describe(value)} is what Kubernetes sets for a service called pintok; "
            "set enableServiceLinks: false in the pod"
        )
    return parse_int(value, low=1, high=65535)


def parse_seconds(value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise ValueError(f"{describe(value)} is not a number of seconds above 0, up to 3600")
    return float(value)


def parse_strings(value: object) -> list[str]:
    """A list, or one text with commas between the entries."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list):
        raise ValueError(f"{describe(value)} is not a list")
    return [parse_text(item) for item in value]


def parse_addresses(value: object) -> tuple[str, ...]:
    addresses = []
    for text in parse_strings(value):
        try:
            addresses.append(str(ipaddress.ip_address(text)))
        except ValueError:
            raise ValueError(f"{describe(text)} is not an IPv4 or IPv6 address") from None
    return tuple(dict.fromkeys(addresses))


def parse_networks(value: object) -> tuple[str, ...]:
    networks = []
    for text in parse_strings(value):
        try:
            networks.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise ValueError(f"{describe(text)} is not a network such as 192.0.2.0/24") from None
    if len(networks) > NETWORKS_MAX:
        raise ValueError(f"{len(networks)} networks; the list holds {NETWORKS_MAX}")
    return tuple(dict.fromkeys(networks))


def parse_rate(value: object) -> tuple[int, ...]:
    """Packets, bytes and microseconds of work a second; 0: no limit.

    >>> parse_rate("1000,2000000,0")
    (1000, 2000000, 0)
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{describe(value)} is not PACKETS,BYTES,MICROSECONDS a second")
    return tuple(parse_int(part, low=0, high=(1 << 32) - 1) for part in value)


def parse_choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        # YAML reads a bare `off` as false and `on` as true.
        text = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else value
        if text not in choices:
            raise ValueError(f"{describe(value)} is not one of {', '.join(choices)}")
        assert isinstance(text, str)
        return text

    return parse


def parse_choices(*choices: str) -> Callable[[object], tuple[str, ...]]:
    def parse(value: object) -> tuple[str, ...]:
        names = parse_strings(value) if value != "" else []
        for name in names:
            if name not in choices:
                raise ValueError(
                    f"{describe(name)} is not one of {', '.join(choices)}{_nearest(name, choices)}"
                )
        return tuple(dict.fromkeys(names))

    return parse


def parse_http(value: object) -> HttpAddress | None:
    """HOST:PORT, [IPv6]:PORT, or `off`."""
    if value is False or value == "off":
        return None
    text = parse_text(value)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{describe(value)}: write an IPv6 address as [ADDRESS]:PORT")
    if not colon or not host:
        raise ValueError(f"{describe(value)} is not HOST:PORT")
    return HttpAddress(host=host, port=parse_int(port, low=0, high=65535))


def split_revision(source: str) -> tuple[str, str | None]:
    """The name and the revision of `ORG/NAME@REVISION`; a path has no revision.

    >>> split_revision("Qwen/Qwen3-8B@main")
    ('Qwen/Qwen3-8B', 'main')
    >>> split_revision("/models/a@b")
    ('/models/a@b', None)
    """
    name, at, revision = source.partition("@")
    if not at or source.startswith((".", "/", "~")) or pathlib.Path(source).exists():
        return source, None
    return name, revision or None


def choose_model(name: str, source: str) -> ModelChoice:
    """`source` under `name`. Raises ValueError for a name that the datapath cannot hold."""
    cap = spec.STATS_MODEL_NAME_CAP - 1
    if not _NAME.fullmatch(name) or len(name) > cap:
        raise ValueError(
            f"{describe(name)} cannot be a model's name (letters, digits and ._/@+-, up to {cap}); "
            f"write NAME={source}"
        )
    return ModelChoice(name=name, source=source)


def parse_model(text: str) -> ModelChoice:
    """`NAME=SOURCE`, or a source that also gives the name.

    >>> parse_model("chat=/models/qwen3")
    ModelChoice(name='chat', source='/models/qwen3')
    >>> parse_model("Qwen/Qwen3-8B").name
    'Qwen/Qwen3-8B'
    >>> parse_model("/models/qwen3/tokenizer.json").name
    'qwen3'
    """
    name, equals, source = text.partition("=")
    # A path may hold a `=` too; what stands before it then begins as no name does.
    if equals and not name.startswith((".", "/", "~")):
        if not source:
            raise ValueError(f"{describe(text)} names no source: write NAME=SOURCE")
        return choose_model(name, source)
    path = pathlib.PurePath(text.removesuffix(".gz"))
    is_file = path.suffix in _FILE_SUFFIXES
    if not text.startswith((".", "/", "~")) and not is_file:
        return choose_model(text, text)
    if not is_file:
        return choose_model(path.name, text)
    generic = path.stem in {"tokenizer", "tekken", "encoding", "vocab"}
    return choose_model(path.parent.name if generic and path.parent.name else path.stem, text)


def parse_models(value: object) -> tuple[ModelChoice, ...]:
    """Texts as `parse_model` reads them, or a mapping of names to sources."""
    if isinstance(value, dict):
        models = tuple(choose_model(parse_text(k), parse_text(v)) for k, v in value.items())
    else:
        models = tuple(parse_model(text) for text in parse_strings(value))
    if not 1 <= len(models) <= spec.MODEL_SLOTS_MAX:
        raise ValueError(f"{len(models)} models; a server holds 1 to {spec.MODEL_SLOTS_MAX}")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two models are called {name!r}; write NAME=SOURCE to tell them apart"
            )
    return models


def parse_instance(value: object) -> str:
    text = parse_text(value)
    if not _INSTANCE.fullmatch(text):
        raise ValueError(f"{describe(value)} is not a name: letters, digits and ._@+-, up to 64")
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name in file and `Settings`, its parser, its default and what it means."""

    key: str
    parse: Callable[[object], Any]
    default: Any
    metavar: str
    doc: str
    flag: str = ""
    repeatable: bool = False

    @property
    def option(self) -> str:
        return self.flag or "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.key.upper()


REQUIREMENTS = ("xdp", "drv", "zerocopy", "hugepages", "memlock", "isolation")

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "cores", parse_cores, None, "LIST",
        "Cores of the pollers, as 2-5 or 2,4,6; one poller and one queue a core. "
        "Default: the last core this process may use.",
    ),
    Setting(
        "iface", parse_interface, None, "NAME",
        "Network interface to serve. Without one, kernel sockets on every address.",
    ),
    Setting(
        "models", parse_models, (ModelChoice(DEFAULT_MODEL, DEFAULT_MODEL),), "[NAME=]SOURCE",
        "Model to serve: a directory, a file, ORG/NAME on the hub, or 'default' (embedded). "
        "May be repeated; the first is the default model.",
        flag="--model", repeatable=True,
    ),
    Setting(
        "profile", parse_choice(*PROFILES), DEFAULT_PROFILE, "|".join(PROFILES),
        "Reference profile of all models: which version of Hugging Face tokenizers the ids equal.",
    ),
    Setting("port", parse_port, _wire.WIRE_PORT, "PORT", "UDP port."),
    Setting(
        "address", parse_addresses, (), "ADDRESS",
        "Destination address to answer on; may be repeated. Default: all of the interface.",
        repeatable=True,
    ),
    Setting(
        "path", parse_choice("auto", "xdp", "socket"), "auto", "auto|xdp|socket",
        "How packets reach the pollers: AF_XDP, kernel sockets, or the best that can be had.",
    ),
    Setting(
        "xdp_mode", parse_choice("auto", "drv", "skb"), "auto", "auto|drv|skb",
        "Hook of the XDP program: the driver's or the generic one.",
    ),
    Setting(
        "zerocopy", parse_choice("auto", "require", "off"), "auto", "auto|require|off",
        "Whether the card shall use the packet memory directly.",
    ),
    Setting(
        "queues", parse_cores, None, "LIST",
        "Queues of the interface, one a core. Default: the first ones.",
    ),
    Setting(
        "idle", parse_choice("auto", "spin", "adaptive"), "auto", "auto|spin|adaptive",
        "What a poller without work does: spin, or sleep after a while. auto: spin if isolated.",
    ),
    Setting(
        "rx_checksum", parse_choice("auto", "verify", "off"), "auto", "auto|verify|off",
        "UDP checksums of requests. auto verifies and knows virtual drivers' partial checksums.",
    ),
    Setting(
        "require", parse_choices(*REQUIREMENTS), (), "LIST",
        f"Refuse to start without these: {', '.join(REQUIREMENTS)}.",
    ),
    Setting(
        "models_max", functools.partial(parse_int, low=1, high=spec.MODEL_SLOTS_MAX), 8, "N",
        "Model slots; each costs every poller a piece cache.",
    ),
    Setting(
        "cache", parse_len, 1 << 20, "BYTES",
        "Piece cache of each slot and poller, a power of two, as 512K or 2M. Default: 1M.",
    ),
    Setting(
        "message_len_max", parse_message_len, 1 << 20, "BYTES",
        "Longest message, a power of two; scratch of each poller is some 190 times that. "
        "Default: 1M.",
    ),
    Setting(
        "arena", parse_len, None, "BYTES",
        "Memory of each poller for long messages under way. Default: 16 of the longest.",
    ),
    Setting(
        "address_validation", parse_choice("on", "off"), "on", "on|off",
        "Challenge sources that have not shown that they receive at their address: no reply "
        "longer than its request, no state, a share of time.",
    ),
    Setting(
        "stranger_percent", functools.partial(parse_int, low=1, high=100), 50, "N",
        "Share of each poller's time for sources that are not validated, in percent.",
    ),
    Setting(
        "limit_address", parse_rate, (0, 0, 0), "P,B,W",
        "Most packets, bytes and microseconds of work a second for one IPv4 address or IPv6 /64, "
        "on each poller; 0: no limit. Default: 0,0,0.",
    ),
    Setting(
        "limit_network", parse_rate, (0, 0, 0), "P,B,W",
        "The same for an IPv4 /24 or IPv6 /48. Default: 0,0,0.",
    ),
    Setting(
        "allow", parse_networks, (), "NETWORK",
        "Network that may send, as 192.0.2.0/24; may be repeated. Default: all.",
        repeatable=True,
    ),
    Setting(
        "keys", parse_text, None, "FILE",
        "Keys of tenants, one a line: a number and 64 hexadecimal digits. See: keys make.",
    ),
    Setting(
        "require_key", parse_choice("on", "off"), "off", "on|off",
        "Refuse requests without the code of a tenant's key.",
    ),
    Setting(
        "ring", parse_ring, 2048, "N", "Entries of the receive and transmit ring, a power of two.",
    ),
    Setting(
        "frames", functools.partial(parse_int, low=64, high=1 << 20), None, "N",
        "Frames of packet memory of each queue. Default: what the rings need.",
    ),
    Setting(
        "http", parse_http, parse_http(DEFAULT_HTTP), "HOST:PORT",
        f"Metrics and health over HTTP, or 'off'. Default: {DEFAULT_HTTP}.",
    ),
    Setting(
        "instance", parse_instance, None, "NAME",
        "Name of this server on this machine. Default: interface and port.",
    ),
    Setting(
        "runtime_dir", parse_text, None, "DIR",
        "Directory of this instance's shared files. Default: /run/pintok/INSTANCE.",
    ),
    Setting(
        "drain_timeout_s", parse_seconds, 10.0, "SECONDS",
        "How long a stopping datapath may take to finish its work.",
    ),
)  # fmt: skip


def _nearest(name: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse(setting: Setting, value: object, *, where: str) -> Any:
    try:
        return setting.parse(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


class _Loader(yaml.SafeLoader):
    """The safe YAML reader, without aliases, with a depth limit, refusing repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here")
        self.depth += 1
        if self.depth > FILE_DEPTH_MAX:
            raise yaml.YAMLError(f"nested deeper than {FILE_DEPTH_MAX} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError("a key is not a text")
            if key in seen:
                raise yaml.YAMLError(f"the key {describe(key)} is there twice")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_document(data: bytes, *, where: str) -> dict[str, object]:
    """The mapping that `data` (YAML, UTF-8) holds. Raises ConfigError that begins with `where`."""
    if len(data) > FILE_LEN_MAX:
        raise ConfigError(f"{where}: larger than {FILE_LEN_MAX} bytes, so not a configuration")
    try:
        document = yaml.load(data.decode("utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        problem = " ".join(problem.split())
        raise ConfigError(f"{where}: not valid YAML{line}: {problem}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: holds {describe(document)}, not `key: value` lines")
    return document


def parse_document(document: Mapping[str, object], *, where: str) -> dict[str, Any]:
    """Checked values by key. Raises ConfigError on an unknown key or an unusable value."""
    by_key = {setting.key: setting for setting in SETTINGS}
    values = {}
    for key, value in document.items():
        if key not in by_key:
            near = _nearest(key, tuple(by_key))
            raise ConfigError(f"{where}: there is no setting {describe(key)}{near}")
        if value is not None:
            values[key] = _parse(by_key[key], value, where=f"{where}: {key}")
    return values


def parse_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of the PINTOK_* variables that are settings.

    Other variables with the prefix belong to other parts (tests, clients) and are left alone,
    unless one is so near to a setting that it must be a slip: that is refused with the name
    meant.
    """
    by_variable = {setting.variable: setting for setting in SETTINGS}
    values = {}
    for name, value in environment.items():
        if name in by_variable:
            setting = by_variable[name]
            values[setting.key] = _parse(setting, value, where=name)
        elif name.startswith(ENVIRONMENT_PREFIX):
            near = difflib.get_close_matches(name, by_variable, n=1, cutoff=0.93)
            if near:
                raise ConfigError(f"there is no variable {name} (did you mean {near[0]}?)")
    return values


def parse_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    """Checked values of command-line options by setting key; None and () mean not given."""
    values = {}
    for setting in SETTINGS:
        value = flags.get(setting.key)
        if value is None or value == ():
            continue
        if setting.repeatable:
            assert isinstance(value, tuple)
            value = list(value)
        values[setting.key] = _parse(setting, value, where=setting.option)
    return values


def resolve_settings(
    *,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: pathlib.Path | None,
) -> Settings:
    """The settings of one server. Raises ConfigError that names the flag, variable or file."""
    values = {setting.key: setting.default for setting in SETTINGS}
    if file is not None:
        try:
            with file.open("rb") as stream:
                data = stream.read(FILE_LEN_MAX + 1)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        values |= parse_document(read_document(data, where=str(file)), where=str(file))
    values |= parse_environment(environment)
    values |= parse_flags(flags)
    return check_together(Settings(**values))


def check_together(settings: Settings) -> Settings:
    """Refuse settings that contradict each other; returns them unchanged otherwise."""
    if settings.path == "xdp" and settings.iface is None:
        raise ConfigError("--path xdp needs an interface: add --iface NAME")
    if settings.path == "socket":
        for name in ("xdp", "drv", "zerocopy"):
            if name in settings.require:
                raise ConfigError(f"--path socket and --require {name} contradict each other")
        if settings.zerocopy == "require":
            raise ConfigError("--path socket and --zerocopy require contradict each other")
    if settings.zerocopy == "off" and "zerocopy" in settings.require:
        raise ConfigError("--zerocopy off and --require zerocopy contradict each other")
    if settings.xdp_mode == "skb" and "drv" in settings.require:
        raise ConfigError("--xdp-mode skb and --require drv contradict each other")
    if settings.require_key == "on" and settings.keys is None:
        raise ConfigError("--require-key on: name the keys with --keys")
    if settings.arena is not None and settings.arena < 2 * settings.message_len_max:
        raise ConfigError("--arena must hold two messages of --message-len-max: raise it")
    if len(settings.models) > settings.models_max:
        raise ConfigError(
            f"{len(settings.models)} models and --models-max {settings.models_max}: raise it"
        )
    if settings.queues is not None and settings.cores is not None:
        if len(settings.queues) != len(settings.cores):
            raise ConfigError(
                f"{len(settings.cores)} cores and {len(settings.queues)} queues: "
                "give as many queues as cores"
            )
    return settings
