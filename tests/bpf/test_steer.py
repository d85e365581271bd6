"""The verdict of the XDP program for every header shape and every port, run inside the kernel."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

scapy = pytest.importorskip("scapy.all")
from bpf_program import XDP_DROP, XDP_PASS, XDP_REDIRECT, SteerProgram, object_path  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

from pintok_server._spec import metrics  # noqa: E402

PORT = 7265
V4, V6 = "192.0.2.1", "2001:db8::1"
PEER4, PEER6 = "192.0.2.2", "2001:db8::2"
REASONS = [name for name, _ in metrics.STEER_COUNTERS]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="running an XDP program needs root"),
    pytest.mark.skipif(not object_path().exists(), reason=f"{object_path()} is not built"),
]


@pytest.fixture(scope="module")
def program() -> Iterator[SteerProgram]:
    """Serves V4 and V6 with a socket on queue 0, which is where test packets arrive."""
    steer = SteerProgram(port=PORT, addresses=[V4, V6], reason_count=len(REASONS))
    steer.add_socket(0)
    yield steer
    steer.close()


def verdict(program: SteerProgram, frame: bytes) -> tuple[int, str]:
    """Verdict and the one reason that was counted for it."""
    before = program.reasons()
    action = program.run(frame)
    moved = [after - was for after, was in zip(program.reasons(), before, strict=True)]
    assert sum(moved) == 1, f"one packet moved {moved}"
    return action, REASONS[moved.index(1)]


def eth(*tags: Packet) -> Packet:
    frame = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
    for tag in tags:
        frame = frame / tag
    return frame


def udp4(*, payload: bytes = b"x" * 40, **ip: object) -> Packet:
    return IP(**{"src": PEER4, "dst": V4, **ip}) / UDP(sport=4000, dport=PORT) / Raw(payload)


def udp6(*, payload: bytes = b"x" * 40, src: str = PEER6, dst: str = V6) -> Packet:
    return IPv6(src=src, dst=dst) / UDP(sport=4000, dport=PORT) / Raw(payload)


def patched(frame: Packet, offset: int, value: bytes) -> bytes:
    """The built frame with `value` written at `offset`: lies that scapy would correct."""
    raw = bytearray(bytes(frame))
    raw[offset : offset + len(value)] = value
    return bytes(raw)


OURS = {
    "v4": eth() / udp4(),
    "v6": eth() / udp6(),
    "v4 tagged": eth(Dot1Q(vlan=7)) / udp4(),
    "v6 tagged": eth(Dot1Q(vlan=7)) / udp6(),
    "v4 service tag": eth(Dot1AD(vlan=7)) / udp4(),
    "v4 padded": bytes(eth() / udp4(payload=b"")) + b"\x00" * 18,
    "v4 empty": eth() / udp4(payload=b""),
    "v4 do not fragment": eth() / udp4(flags="DF"),
    "v4 other ttl and tos": eth() / udp4(ttl=1, tos=0xFF),
    "v4 large": eth() / udp4(payload=b"x" * 1400),
}

THEIRS = {
    "arp": (eth() / ARP(pdst=V4), "pass_not_ip"),
    "lldp": (Ether(type=0x88CC) / Raw(b"x" * 46), "pass_not_ip"),
    "ethertype v4, version 6": (patched(eth() / udp4(), 14, b"\x65"), "pass_not_ip"),
    "ethertype v6, version 4": (patched(eth() / udp6(), 14, b"\x40"), "pass_not_ip"),
    "two tags": (eth(Dot1Q(vlan=7), Dot1Q(vlan=8)) / udp4(), "pass_vlan"),
    "service and customer tag": (eth(Dot1AD(vlan=7), Dot1Q(vlan=8)) / udp4(), "pass_vlan"),
    "ping": (eth() / IP(src=PEER4, dst=V4) / ICMP(), "pass_not_udp"),
    "tcp same port": (eth() / IP(src=PEER4, dst=V4) / TCP(dport=PORT), "pass_not_udp"),
    "tcp v6": (eth() / IPv6(src=PEER6, dst=V6) / TCP(dport=PORT), "pass_not_udp"),
    "icmp v6": (eth() / IPv6(src=PEER6, dst=V6, nh=58) / Raw(b"x" * 40), "pass_not_udp"),
    "no next header": (eth() / IPv6(src=PEER6, dst=V6, nh=59), "pass_not_udp"),
    "first fragment": (eth() / udp4(flags="MF"), "pass_fragment"),
    "middle fragment": (eth() / udp4(flags="MF", frag=100), "pass_fragment"),
    "last fragment": (eth() / udp4(frag=100), "pass_fragment"),
    "smallest offset": (eth() / udp4(frag=1), "pass_fragment"),
    "v6 fragment": (
        eth() / IPv6(src=PEER6, dst=V6) / IPv6ExtHdrFragment(m=1) / UDP(dport=PORT) / Raw(b"x"),
        "pass_fragment",
    ),
    "v4 options": (eth() / udp4(options=[IPOption_NOP()] * 4), "pass_ip_options"),
    "other port": (eth() / IP(src=PEER4, dst=V4) / UDP(dport=PORT + 1), "pass_port"),
    "our source port only": (
        eth() / IP(src=PEER4, dst=V4) / UDP(sport=PORT, dport=53),
        "pass_port",
    ),
    "other address": (eth() / udp4(dst="192.0.2.3"), "pass_address"),
    "broadcast": (eth() / udp4(dst="255.255.255.255"), "pass_address"),
    "multicast": (eth() / udp4(dst="224.0.0.1"), "pass_address"),
    "other v6 address": (eth() / udp6(dst="2001:db8::3"), "pass_address"),
    "v6 multicast": (eth() / udp6(dst="ff02::1"), "pass_address"),
    "v4-mapped v6": (eth() / udp6(dst=f"::ffff:{V4}"), "pass_address"),
    "udp longer than ip": (patched(eth() / udp4(), 38, struct.pack("!H", 49)), "pass_length"),
    "udp shorter than ip": (patched(eth() / udp4(), 38, struct.pack("!H", 47)), "pass_length"),
    "udp shorter than itself": (
        patched(patched(eth() / udp4(), 38, struct.pack("!H", 7)), 16, struct.pack("!H", 27)),
        "pass_length",
    ),
    "udp length zero": (patched(eth() / udp4(), 38, b"\x00\x00"), "pass_length"),
    "ip longer than frame": (
        patched(patched(eth() / udp4(), 38, struct.pack("!H", 49)), 16, struct.pack("!H", 69)),
        "pass_length",
    ),
    "ip longer than frame, v6": (
        patched(patched(eth() / udp6(), 58, struct.pack("!H", 49)), 18, struct.pack("!H", 49)),
        "pass_length",
    ),
    "v6 jumbogram": (patched(eth() / udp6(), 18, b"\x00\x00"), "pass_length"),
}
for header in (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting):
    THEIRS[f"v6 {header.__name__}"] = (
        eth() / IPv6(src=PEER6, dst=V6) / header() / UDP(dport=PORT) / Raw(b"x" * 40),
        "pass_ip_options",
    )
for number in (50, 51, 135):
    THEIRS[f"v6 next header {number}"] = (
        eth() / IPv6(src=PEER6, dst=V6, nh=number) / Raw(b"x" * 40),
        "pass_ip_options",
    )


@pytest.mark.parametrize("name", OURS)
def test_ours_is_redirected(program: SteerProgram, name: str) -> None:
    assert verdict(program, bytes(OURS[name])) == (XDP_REDIRECT, "redirect")


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_is_passed_with_its_reason(program: SteerProgram, name: str) -> None:
    frame, reason = THEIRS[name]
    assert verdict(program, bytes(frame)) == (XDP_PASS, reason)


@pytest.mark.parametrize("length", range(16))
def test_every_ipv4_header_length(program: SteerProgram, length: int) -> None:
    frame = patched(eth() / udp4(), 14, bytes([0x40 | length]))
    expected = (XDP_REDIRECT, "redirect") if length == 5 else (XDP_PASS, "pass_ip_options")
    assert verdict(program, frame) == expected


@pytest.mark.parametrize("name", ["v4", "v6", "v4 tagged", "v6 tagged"])
def test_truncated_at_every_byte(program: SteerProgram, name: str) -> None:
    """A frame cut anywhere is the kernel's, and no cut reads past the end."""
    frame = bytes(OURS[name])
    for length in range(14, len(frame)):
        action, reason = verdict(program, frame[:length])
        assert action == XDP_PASS, length
        assert reason in ("pass_short", "pass_length"), (length, reason)


def test_only_our_port_of_all_ports(program: SteerProgram) -> None:
    before = program.reasons()
    frame = bytes(OURS["v4"])
    redirected = [
        port for port in range(65536) if program.run(patched_port(frame, 36, port)) == XDP_REDIRECT
    ]
    moved = [after - was for after, was in zip(program.reasons(), before, strict=True)]
    assert redirected == [PORT]
    assert moved[REASONS.index("pass_port")] == 65535
    assert moved[REASONS.index("redirect")] == 1


def test_only_our_port_over_ipv6(program: SteerProgram) -> None:
    """Every port that shares a byte with ours; the comparison is the same code as for IPv4."""
    frame = bytes(OURS["v6"])
    ports = {PORT & 0xFF00 | low for low in range(256)} | {
        high << 8 | PORT & 0xFF for high in range(256)
    }
    redirected = [
        port for port in sorted(ports) if program.run(patched_port(frame, 56, port)) == XDP_REDIRECT
    ]
    assert redirected == [PORT]


def patched_port(frame: bytes, offset: int, port: int) -> bytes:
    return frame[:offset] + struct.pack("!H", port) + frame[offset + 2 :]


def test_every_protocol_number(program: SteerProgram) -> None:
    """Of the 256 transports only UDP is ours, in both families."""
    for number in range(256):
        four = patched(eth() / udp4(), 23, bytes([number]))
        six = patched(eth() / udp6(), 20, bytes([number]))
        assert (program.run(four) == XDP_REDIRECT) == (number == 17)
        assert (program.run(six) == XDP_REDIRECT) == (number == 17)


def test_every_address_byte_matters(program: SteerProgram) -> None:
    for offset in range(30, 34):
        frame = bytearray(bytes(OURS["v4"]))
        frame[offset] ^= 0x01
        assert verdict(program, bytes(frame)) == (XDP_PASS, "pass_address")
    for offset in range(38, 54):
        frame = bytearray(bytes(OURS["v6"]))
        frame[offset] ^= 0x01
        assert verdict(program, bytes(frame)) == (XDP_PASS, "pass_address")


def test_without_socket_ours_goes_to_the_kernel() -> None:
    """A queue without a poller, and the time between two processes, are served by the kernel."""
    steer = SteerProgram(port=PORT, addresses=[V4, V6], reason_count=len(REASONS))
    try:
        for name in OURS:
            assert verdict(steer, bytes(OURS[name])) == (XDP_PASS, "pass_no_socket")
    finally:
        steer.close()


def test_reasons_have_the_order_of_the_spec() -> None:
    """The counter names of spec/metrics.toml stand in the order of the shared header."""
    header = object_path().parents[2] / "bpf" / "ptk_steer_shared.h"
    names = [
        line.split(",")[0].split("=")[0].strip().removeprefix("PTK_STEER_REASON_").lower()
        for line in header.read_text().splitlines()
        if line.strip().startswith("PTK_STEER_REASON_")
    ]
    assert names == [*REASONS, "count"]


def test_only_listed_networks_come_in() -> None:
    """Others are dropped and counted; what is not for us is passed whoever sends it."""
    inside = ("192.0.2.128/25", "198.51.100.7/32", "2001:db8:5::/48")
    steer = SteerProgram(port=PORT, addresses=[V4, V6], reason_count=len(REASONS), networks=inside)
    try:
        steer.add_socket(0)
        for source, allowed in {
            "192.0.2.128": True,
            "192.0.2.127": False,
            "198.51.100.7": True,
            "198.51.100.6": False,
        }.items():
            expected = (XDP_REDIRECT, "redirect") if allowed else (XDP_DROP, "drop_not_allowed")
            assert verdict(steer, bytes(eth() / udp4(src=source))) == expected
            other = bytes(eth() / udp4(src=source, dst="192.0.2.3"))
            assert verdict(steer, other) == (XDP_PASS, "pass_address")
        for source, allowed in {"2001:db8:5:9::1": True, "2001:db8:6::1": False}.items():
            expected = (XDP_REDIRECT, "redirect") if allowed else (XDP_DROP, "drop_not_allowed")
            assert verdict(steer, bytes(eth() / udp6(src=source))) == expected
    finally:
        steer.close()
