"""What on this host costs latency or keeps the server from starting, and what repairs it.

Every check answers OK, WARN or FAIL (SKIP where it cannot know), with what was found, what is
wanted, why it matters in a clause, and the exact command. Nothing is ever changed, and no check
needs a privilege. FAIL means that a server as configured would not start or not serve over
AF_XDP.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import resource
from collections.abc import Iterator
from typing import Literal

from pintok_server.control.config import Settings
from pintok_server.control.cores import format_number_list, parse_number_list
from pintok_server.control.datapath import PROGRAM, STEER_OBJECT, choose_cores, find_artifact
from pintok_server.control.link import Link, read_link
from pintok_server.errors import ConfigError, DatapathError

Outcome = Literal["OK", "WARN", "FAIL", "SKIP"]

HUGE_PAGE_LEN = 2 << 20
# Packet memory, engine scratch, arena and piece caches of one poller, and the images, rounded up
# generously.
POLLER_LEN = 320 << 20
IMAGES_LEN = 64 << 20
# AF_XDP with multi-buffer and bpf_link for XDP; older ones lack parts of the datapath.
KERNEL_WANTED = (6, 6)
KERNEL_NEEDED = (5, 15)

# Numbers of linux/capability.h, and what the datapath does with each before it drops them.
CAPABILITIES = {
    "CAP_NET_RAW": (13, "open AF_XDP sockets"),
    "CAP_NET_ADMIN": (12, "attach the XDP program"),
    "CAP_BPF": (39, "load the XDP program"),
    "CAP_IPC_LOCK": (14, "lock memory"),
}
_CAP_SYS_ADMIN = 21

SYSFS = pathlib.Path("/sys")
PROC = pathlib.Path("/proc")


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One answer of the doctor. `repair` is a command, or empty where nothing is to be done."""

    name: str
    outcome: Outcome
    found: str
    wanted: str = ""
    why: str = ""
    repair: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks for a server with these settings on this host."""
    checks = [
        *check_program(settings),
        *check_kernel(settings),
        *check_capabilities(settings),
        *check_cores(settings),
        *check_memory(settings),
    ]
    if settings.iface is not None:
        checks += check_interface(settings, settings.iface)
    return checks


def exit_status(checks: list[Check], *, strict: bool) -> int:
    """1 when something fails; 2 for warnings only, if they are to count; otherwise 0."""
    outcomes = {check.outcome for check in checks}
    if "FAIL" in outcomes:
        return 1
    return 2 if strict and "WARN" in outcomes else 0


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _read_int(path: pathlib.Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def check_program(settings: Settings) -> Iterator[Check]:
    """Whether the native parts are there."""
    names = [PROGRAM] if settings.path == "socket" else [PROGRAM, STEER_OBJECT]
    for name in names:
        try:
            path = find_artifact(name)
        except DatapathError as error:
            yield Check("program", "FAIL", str(error), name, "it serves", "make -C native")
        else:
            yield Check("program", "OK", str(path))


def check_kernel(settings: Settings) -> Iterator[Check]:
    """Version and bpf settings of the running kernel."""
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    wanted = f"{KERNEL_WANTED[0]}.{KERNEL_WANTED[1]} or later"
    why = "multi-buffer packets need it"
    if numbers < KERNEL_NEEDED:
        outcome: Outcome = "WARN" if settings.path == "socket" else "FAIL"
        yield Check("kernel.version", outcome, release, wanted, "AF_XDP as used here needs it")
    elif numbers < KERNEL_WANTED:
        yield Check("kernel.version", "WARN", release, wanted, why)
    else:
        yield Check("kernel.version", "OK", release)
    jit = _read_int(PROC / "sys/net/core/bpf_jit_enable")
    if jit is None:
        yield Check("bpf.jit", "SKIP", "not visible here")
    elif jit == 0:
        yield Check(
            "bpf.jit", "WARN", "off", "on", "the XDP program is interpreted for every packet",
            "sysctl -w net.core.bpf_jit_enable=1",
        )  # fmt: skip
    else:
        yield Check("bpf.jit", "OK", "on")


def check_capabilities(settings: Settings) -> Iterator[Check]:
    """What a server started by this user may do."""
    status = _read(PROC / "self/status") or ""
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    effective = int(line.split()[1], 16)
    for name, (number, use) in CAPABILITIES.items():
        held = effective >> number & 1
        # Before 5.8 there was no CAP_BPF; SYS_ADMIN implies it since.
        if name == "CAP_BPF" and effective >> _CAP_SYS_ADMIN & 1:
            held = 1
        if held:
            yield Check(f"caps.{name.removeprefix('CAP_').lower()}", "OK", "held")
            continue
        needed = settings.path == "xdp" and name != "CAP_IPC_LOCK"
        yield Check(
            f"caps.{name.removeprefix('CAP_').lower()}",
            "FAIL" if needed else "WARN",
            "not held",
            name,
            f"the datapath needs it to {use}",
            "run as root, or with AmbientCapabilities in a systemd unit",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or effective >> CAPABILITIES["CAP_IPC_LOCK"][0] & 1:
        yield Check("mem.memlock", "OK", "unlimited")
    else:
        yield Check(
            "mem.memlock", "WARN", f"{soft >> 20} MiB", "unlimited",
            "memory that is not locked can be taken away under load", "ulimit -l unlimited",
        )  # fmt: skip


def check_cores(settings: Settings) -> Iterator[Check]:
    """The cores of the pollers: allowed, isolated, not each other's sibling, at full clock."""
    allowed = sorted(os.sched_getaffinity(0))
    try:
        cores = choose_cores(settings, allowed)
    except ConfigError as error:
        yield Check(
            "cpu.allowed", "FAIL", str(error), format_number_list(settings.cores or ()),
            "pollers are pinned to them", f"choose from --cores {format_number_list(allowed)}",
        )  # fmt: skip
        return
    chosen = format_number_list(cores)
    yield Check("cpu.allowed", "OK", chosen)
    if set(cores) >= set(allowed):
        yield Check(
            "cpu.control", "WARN", f"pollers on every allowed core ({format_number_list(allowed)})",
            "a core left over", "control plane and kernel work interrupt the pollers",
            f"leave one core out of --cores {chosen}",
        )  # fmt: skip
    else:
        yield Check("cpu.control", "OK", "a core is left for everything else")
    yield _isolation(cores)
    yield _siblings(cores)
    yield _governor(cores)


def _isolation(cores: tuple[int, ...]) -> Check:
    text = _read(SYSFS / "devices/system/cpu/isolated")
    if text is None:
        return Check("cpu.isolated", "SKIP", "the kernel does not say")
    isolated = set(parse_number_list(text)) if text else set()
    shared = [core for core in cores if core not in isolated]
    if not shared:
        return Check("cpu.isolated", "OK", format_number_list(cores))
    chosen = format_number_list(cores)
    return Check(
        "cpu.isolated", "WARN", f"not isolated: {format_number_list(shared)}", chosen,
        "other processes run on the pollers' cores",
        f"add isolcpus={chosen} nohz_full={chosen} rcu_nocbs={chosen} to the kernel command line",
    )  # fmt: skip


def _siblings(cores: tuple[int, ...]) -> Check:
    busy = []
    for core in cores:
        text = _read(SYSFS / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        if text is None:
            return Check("cpu.siblings", "SKIP", "the kernel does not say")
        siblings = set(parse_number_list(text)) - {core}
        if siblings & set(cores) or siblings & os.sched_getaffinity(0):
            busy.append(f"{core} with {format_number_list(siblings)}")
    if not busy:
        return Check("cpu.siblings", "OK", "no shared physical core")
    return Check(
        "cpu.siblings", "WARN", f"hardware threads share a core: {'; '.join(busy)}",
        "one poller a physical core", "the sibling takes half of the core when it runs",
        "echo 0 > /sys/devices/system/cpu/cpuN/online for each sibling N",
    )  # fmt: skip


def _governor(cores: tuple[int, ...]) -> Check:
    slow = {}
    for core in cores:
        governor = _read(SYSFS / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor")
        if governor is None:
            return Check("cpu.governor", "SKIP", "no frequency control visible")
        if governor != "performance":
            slow[core] = governor
    if not slow:
        return Check("cpu.governor", "OK", "performance")
    listed = ", ".join(f"{core}: {governor}" for core, governor in slow.items())
    return Check(
        "cpu.governor", "WARN", listed, "performance", "the first packets after a pause wait",
        f"cpupower -c {format_number_list(slow)} frequency-set -g performance",
    )  # fmt: skip


def check_memory(settings: Settings) -> Iterator[Check]:
    """Huge pages for packet memory and images."""
    pool = SYSFS / "kernel/mm/hugepages/hugepages-2048kB"
    free = _read_int(pool / "free_hugepages")
    cores = len(settings.cores) if settings.cores is not None else 1
    need = -(-(cores * POLLER_LEN + len(settings.models) * IMAGES_LEN) // HUGE_PAGE_LEN)
    required: Outcome = "FAIL" if "hugepages" in settings.require else "WARN"
    if free is None:
        yield Check(
            "mem.hugepages", required, "the kernel has no 2 MiB pages", f"{need} free",
            "every look-up in a large vocabulary misses the TLB",
        )  # fmt: skip
    elif free < need:
        total = _read_int(pool / "nr_hugepages") or 0
        yield Check(
            "mem.hugepages", required, f"{free} of {total} free", f"{need} free",
            "every look-up in a large vocabulary misses the TLB",
            f"echo {total + need - free} > {pool / 'nr_hugepages'}",
        )  # fmt: skip
    else:
        yield Check("mem.hugepages", "OK", f"{free} free, {need} wanted")
    balancing = _read_int(PROC / "sys/kernel/numa_balancing")
    if balancing:
        yield Check(
            "mem.numa_balancing", "WARN", "on", "off", "the kernel unmaps memory to sample it",
            "sysctl -w kernel.numa_balancing=0",
        )  # fmt: skip
    else:
        yield Check("mem.numa_balancing", "OK", "off" if balancing == 0 else "not in this kernel")


def check_interface(settings: Settings, iface: str) -> Iterator[Check]:
    """The interface: there, up, on its own, with a queue a core, and the checksums of a veth."""
    link = read_link(iface)
    if link is None:
        yield Check("nic.exists", "FAIL", f"no interface {iface}", iface, "it is to be served")
        return
    device = SYSFS / "class/net" / iface / "device"
    driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
    yield Check("nic.driver", "OK", link.kind or driver or "unknown")
    if link.state in ("up", "unknown"):
        yield Check("nic.up", "OK", link.state)
    else:
        yield Check(
            "nic.up", "WARN", link.state, "up", "no packet arrives", f"ip link set {iface} up"
        )
    yield _channels(settings, link)
    if link.master is not None:
        yield Check(
            "nic.master", "WARN", f"part of {link.master}", "on its own",
            "a bridge or bond takes packets before the kernel's sockets see them",
            f"ip link set {iface} nomaster",
        )  # fmt: skip
    if link.has_xdp:
        yield Check(
            "nic.other_xdp", "FAIL" if settings.path == "xdp" else "WARN",
            "an XDP program is attached", "none, unless a server of this name runs",
            "an interface takes one program", f"ip link set {iface} xdp off",
        )  # fmt: skip
    if settings.cores is not None:
        yield from _numa(settings.cores, _read_int(device / "numa_node"))
    if link.kind == "veth":
        yield Check(
            "nic.peer", "WARN" if settings.rx_checksum == "verify" else "OK",
            "veth: local senders leave UDP checksums unfinished", "--rx-checksum auto",
            "a checksum that is only begun does not verify",
            f"ethtool -K PEER tx off  (PEER: the other end of {iface})"
            if settings.rx_checksum == "verify" else "",
        )  # fmt: skip


def _numa(cores: tuple[int, ...], node: int | None) -> Iterator[Check]:
    if node is None or node < 0:
        return
    away = [
        core for core in cores if not (SYSFS / f"devices/system/cpu/cpu{core}/node{node}").exists()
    ]
    if not away:
        yield Check("mem.numa", "OK", f"node {node}")
        return
    local = _read(SYSFS / f"devices/system/node/node{node}/cpulist") or "?"
    yield Check(
        "mem.numa", "WARN", f"cores {format_number_list(away)} are not on node {node}",
        f"cores of node {node}", "every packet crosses the socket interconnect",
        f"choose from --cores {local}",
    )  # fmt: skip


def _channels(settings: Settings, link: Link) -> Check:
    """One queue a core: more queues than pollers leave packets to the kernel's slow path."""
    pollers = len(settings.cores) if settings.cores is not None else 1
    found = f"{link.rx_queues} for {pollers} core{'s' if pollers > 1 else ''}"
    if link.rx_queues == pollers:
        return Check("nic.channels", "OK", found)
    few = link.rx_queues < pollers
    return Check(
        "nic.channels", "FAIL" if few and settings.path == "xdp" else "WARN", found, f"{pollers}",
        "a poller would have no queue" if few
        else "packets of the other queues take the kernel's slow path",
        f"ethtool -L {link.name} combined {pollers}",
    )  # fmt: skip
