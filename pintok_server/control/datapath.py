"""The datapath's command line: from settings and compiled models to options of `ptk-datapath`.

The options are also the identity of a running datapath: a new control process takes over one that
was started with equal options, and refuses one that was not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pintok_server
from pintok_server.control.config import Settings
from pintok_server.control.keys import check_keys
from pintok_server.control.runtime import LoadedModel, RunDir
from pintok_server.errors import ConfigError, DatapathError

PROGRAM = "ptk-datapath"
STEER_OBJECT = "ptk_steer.bpf.o"


def find_artifact(name: str) -> pathlib.Path:
    """A built file of the installed package, else of the source tree's build.

    Raises DatapathError when neither has it.
    """
    package = pathlib.Path(pintok_server.__file__).resolve().parent
    installed = package / "bin" / name
    if installed.is_file():
        return installed
    for folder in ("", "bpf/"):
        built = package.parent / "native" / "build" / "release" / f"{folder}{name}"
        if built.is_file():
            return built
    raise DatapathError(f"{name} is neither in {package / 'bin'} nor built: run make -C native")


def has_interface(name: str) -> bool:
    """Whether this network namespace has the interface; sysfs may show another one's."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def choose_cores(settings: Settings, allowed: Sequence[int]) -> tuple[int, ...]:
    """The cores to pin pollers to. Raises ConfigError when this process may not use one of them."""
    if settings.cores is None:
        return (max(allowed),)
    missing = [core for core in settings.cores if core not in allowed]
    if missing:
        raise ConfigError(
            f"core {missing[0]} does not exist or is not allowed to this process "
            f"(allowed: {', '.join(map(str, sorted(allowed)))})"
        )
    return settings.cores


def keys_file(name: str) -> pathlib.Path:
    """The file of keys. Raises ConfigError when it is not usable."""
    path = pathlib.Path(name).absolute()
    check_keys(path)
    return path


def datapath_options(settings: Settings) -> dict[str, Any]:
    """What decides how a datapath serves, by option name, in types that JSON keeps equal.

    Raises ConfigError when the host lacks a core or the interface.
    """
    if settings.iface is not None and not has_interface(settings.iface):
        raise ConfigError(f"there is no interface {settings.iface} here; see: ip link")
    return {
        "cores": list(choose_cores(settings, sorted(os.sched_getaffinity(0)))),
        "iface": settings.iface,
        "address": list(settings.address),
        "port": settings.port,
        "path": settings.path,
        "xdp-mode": settings.xdp_mode,
        "zerocopy": settings.zerocopy,
        "queues": None if settings.queues is None else list(settings.queues),
        "idle": settings.idle,
        "rx-checksum": settings.rx_checksum,
        "require": list(settings.require),
        "models-max": settings.models_max,
        "cache": settings.cache,
        "message-len-max": settings.message_len_max,
        "arena": settings.arena,
        "validate": settings.address_validation,
        "stranger-percent": settings.stranger_percent,
        "limit-address": list(settings.limit_address),
        "limit-network": list(settings.limit_network),
        "allow": list(settings.allow),
        "keys": None if settings.keys is None else str(keys_file(settings.keys)),
        "require-key": settings.require_key,
        "ring": settings.ring,
        "frames": settings.frames,
        "drain-timeout-ms": round(settings.drain_timeout_s * 1000),
    }


def refuse_taken_port(port: int) -> None:
    """Raise ConfigError when another socket is bound to this UDP port.

    The datapath's sockets share their port among its own workers, and the kernel would let those of
    a second server of the same user join in: half of the requests would go astray without a word.
    """
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            # What else may be wrong, with the port or with IPv6, is for the datapath to say.
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"UDP port {port} is in use by another process; "
                    "end that or choose another one with --port"
                ) from None


def datapath_argv(
    options: Mapping[str, Any],
    *,
    run_dir: RunDir,
    models: Sequence[LoadedModel],
    take_over: bool = False,
) -> tuple[str, ...]:
    """The command line that starts the datapath with these options and models.

    With `take_over` it takes the place of the one that runs, without a packet lost.
    """
    argv = [
        str(find_artifact(PROGRAM)),
        f"--stats={run_dir.stats}",
        f"--mailbox={run_dir.mailbox}",
        f"--hand-over={run_dir.handover}",
        f"--steer-object={find_artifact(STEER_OBJECT)}",
    ]
    for name, value in options.items():
        if name in ("address", "allow"):
            argv += [f"--{name}={entry}" for entry in value]
        elif isinstance(value, list) and value:
            argv.append(f"--{name}={','.join(map(str, value))}")
        elif value is not None and not isinstance(value, list):
            argv.append(f"--{name}={value}")
    if take_over:
        argv.append(f"--take-over={run_dir.handover}")
    argv += [f"--model={model.slot}:{model.name}={model.image}" for model in models]
    return tuple(argv)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Which options differ, each as `name old -> new`."""
    return [
        f"{name} {_show(old.get(name))} -> {_show(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _show(value: object) -> str:
    if value is None or value == []:
        return "(none)"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
