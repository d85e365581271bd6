"""The doctor: what it finds on a made-up host, and that it reads this one without harm."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from click.testing import CliRunner

from pintok_server.cli import server
from pintok_server.control import doctor
from pintok_server.control.config import Settings, resolve_settings
from pintok_server.control.doctor import Check
from pintok_server.control.link import Link, read_link

LINK = Link("eth9", kind="", state="up", mtu=1500, rx_queues=2, master=None, has_xdp=False)


class Host:
    """A made-up /sys and /proc."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.sys = folder / "sys"
        self.proc = folder / "proc"

    def put(self, path: str, text: str) -> None:
        target = self.sys.parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")


@pytest.fixture
def host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which everything is as it should be, for cores 2 and 3."""
    made = Host(tmp_path)
    monkeypatch.setattr(doctor, "SYSFS", made.sys)
    monkeypatch.setattr(doctor, "PROC", made.proc)
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.12.1-amd64")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(doctor, "find_artifact", lambda name: tmp_path / name)
    monkeypatch.setattr(doctor, "read_link", lambda name: LINK)
    made.put("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff")
    made.put("proc/sys/net/core/bpf_jit_enable", "1")
    made.put("proc/sys/kernel/numa_balancing", "0")
    made.put("sys/devices/system/cpu/isolated", "2-3")
    for core in (2, 3):
        cpu = f"sys/devices/system/cpu/cpu{core}"
        made.put(f"{cpu}/topology/thread_siblings_list", str(core))
        made.put(f"{cpu}/cpufreq/scaling_governor", "performance")
        made.put(f"{cpu}/node0/x", "")
    made.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "500")
    made.put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512")
    made.put("sys/class/net/eth9/device/numa_node", "0")
    made.put("sys/devices/system/node/node0/cpulist", "0-3")
    return made


def settings(**flags: object) -> Settings:
    defaults = {"cores": "2-3", "iface": "eth9"}
    return resolve_settings(flags=defaults | flags, environment={}, file=None)


def find(name: str, **flags: object) -> Check:
    (found,) = [check for check in doctor.examine(settings(**flags)) if check.name == name]
    return found


def test_good_host_has_nothing_to_repair(host: Host) -> None:
    checks = doctor.examine(settings())
    assert [check for check in checks if check.outcome != "OK"] == []
    assert [check for check in checks if check.repair] == []
    assert doctor.exit_status(checks, strict=True) == 0


@pytest.mark.parametrize(
    ("path", "text", "name", "repair"),
    [
        ("sys/devices/system/cpu/isolated", "2", "cpu.isolated", "isolcpus=2-3"),
        ("sys/devices/system/cpu/isolated", "", "cpu.isolated", "isolcpus=2-3"),
        ("proc/sys/net/core/bpf_jit_enable", "0", "bpf.jit", "sysctl -w"),
        ("proc/sys/kernel/numa_balancing", "1", "mem.numa_balancing", "sysctl -w"),
        (
            "sys/devices/system/cpu/cpu2/topology/thread_siblings_list",
            "0,2",
            "cpu.siblings",
            "/online",
        ),
        (
            "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
            "powersave",
            "cpu.governor",
            "cpupower -c 3",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "12",
            "mem.hugepages",
            "echo 852 >",
        ),
        ("sys/class/net/eth9/device/numa_node", "1", "mem.numa", "--cores"),
    ],
)
def test_each_fault_is_found_with_its_repair(
    host: Host, path: str, text: str, name: str, repair: str
) -> None:
    host.put(path, text)
    check = find(name)
    assert check.outcome == "WARN" and repair in check.repair and check.why
    checks = doctor.examine(settings())
    assert [other.name for other in checks if other.outcome != "OK"] == [name]
    assert doctor.exit_status(checks, strict=False) == 0
    assert doctor.exit_status(checks, strict=True) == 2


def test_what_is_required_fails_instead_of_warning(host: Host) -> None:
    host.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0")
    assert find("mem.hugepages").outcome == "WARN"
    assert find("mem.hugepages", require="hugepages").outcome == "FAIL"
    host.put("proc/self/status", "CapEff:\t0000000000000000")
    assert find("caps.net_admin").outcome == "WARN"
    assert find("caps.net_admin", path="xdp").outcome == "FAIL"
    assert find("cpu.allowed", cores="9").outcome == "FAIL"


def test_capabilities_are_read_bit_by_bit(host: Host) -> None:
    # NET_ADMIN (12), NET_RAW (13) and SYS_ADMIN (21), which stands in for BPF.
    host.put("proc/self/status", f"CapEff:\t{1 << 12 | 1 << 13 | 1 << 21:016x}")
    assert find("caps.net_admin").outcome == find("caps.net_raw").outcome == "OK"
    assert find("caps.bpf").outcome == "OK"
    assert find("caps.ipc_lock").outcome == "WARN"


@pytest.mark.parametrize(
    ("change", "name", "outcome", "found"),
    [
        ({"rx_queues": 1}, "nic.channels", "FAIL", "1 for 2 cores"),
        ({"rx_queues": 8}, "nic.channels", "WARN", "8 for 2 cores"),
        ({"state": "down"}, "nic.up", "WARN", "down"),
        ({"master": "br0"}, "nic.master", "WARN", "part of br0"),
        ({"has_xdp": True}, "nic.other_xdp", "FAIL", "attached"),
        ({"kind": "veth"}, "nic.peer", "OK", "veth"),
    ],
)
def test_interface_is_looked_at(
    host: Host, monkeypatch: pytest.MonkeyPatch, change, name: str, outcome: str, found: str
) -> None:
    changed = doctor.dataclasses.replace(LINK, **change)
    monkeypatch.setattr(doctor, "read_link", lambda iface: changed)
    check = find(name, path="xdp")
    assert check.outcome == outcome and found in check.found
    assert bool(check.repair) == (outcome != "OK")


def test_absent_interface_and_old_kernel_fail(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_link", read_link)
    assert find("nic.exists", iface="ptk-absent").outcome == "FAIL"
    monkeypatch.setattr(doctor.platform, "release", lambda: "5.4.0-150-generic")
    assert find("kernel.version").outcome == "FAIL"
    assert find("kernel.version", path="socket").outcome == "WARN"
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.1.0-18-amd64")
    assert find("kernel.version").outcome == "WARN"


def test_this_host_is_examined_without_a_privilege() -> None:
    core = max(os.sched_getaffinity(0))
    arguments = ["doctor", "--json", f"--cores={core}", "--iface=lo", "--path=socket"]
    result = CliRunner().invoke(server.main, arguments)
    checks = [Check(**row) for row in json.loads(result.stdout)]
    assert {check.outcome for check in checks} <= {"OK", "WARN", "FAIL", "SKIP"}
    assert result.exit_code == (1 if any(check.outcome == "FAIL" for check in checks) else 0)
    names = [check.name for check in checks]
    assert {"cpu.allowed", "mem.hugepages", "nic.channels", "kernel.version"} <= set(names)
    text = CliRunner().invoke(server.main, [word for word in arguments if word != "--json"])
    assert len(text.stdout.splitlines()) >= len(checks)


def test_link_of_the_loopback() -> None:
    link = read_link("lo")
    assert link is not None
    assert (link.kind, link.mtu, link.master, link.has_xdp) == ("", 65536, None, False)
    assert link.rx_queues >= 1
