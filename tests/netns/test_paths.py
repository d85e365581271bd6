"""Every way in gives the same bytes: queues, MTU, checksums, VLAN, family, hook, path."""

from __future__ import annotations

import pathlib
import random
import socket
import struct
from collections.abc import Iterator

import pytest

pytest.importorskip("scapy.all")
import veth
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from veth import PORT, Datapath, Link

from pintok import _wire
from pintok._wire import Verdict, WireOp, WireType

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

HOOKS = {
    "drv": ("--path=xdp", "--xdp-mode=drv"),
    "skb": ("--path=xdp", "--xdp-mode=skb"),
    "socket": ("--path=socket",),
}
ADDRESSES = (f"--address={veth.SERVER4}", f"--address={veth.SERVER6}")


def header(request_id: int, op: int, message_len: int, *, flags: int = 0, tag: int = 0) -> bytes:
    """The header of a request."""
    version_type = _wire.WIRE_VERSION << 4 | WireType.REQUEST
    return _wire.WIRE_HEADER.pack(
        _wire.WIRE_MAGIC, version_type, flags, message_len, request_id, 0, 0, 0, op, 0, tag, 0
    )


def ping(request_id: int, payload_len: int) -> bytes:
    """A PING whose datagram has 32 + payload_len bytes."""
    payload = random.Random(request_id).randbytes(payload_len)
    return header(request_id, WireOp.PING, payload_len) + payload


def requests(link: Link) -> list[bytes]:
    """Requests of all sizes that the link carries over both families, and refused ones."""
    largest = link.mtu - 48 - 32
    sizes = {0, 8, 1000, 1400, largest & ~7}
    if link.mtu > 3822:  # around the end of the first and of the second frame
        sizes |= {size & ~7 for size in (3700, 3740, 3760, 3800, 3840, 4096, 7600, 7700)}
    return [
        *(ping(100 + index, size) for index, size in enumerate(sorted(sizes))),
        header(200, WireOp.INFO, 0),  # no model is loaded: unknown_model
        header(201, 99, 0),
        header(202, WireOp.PING, 0, flags=0x80),
        header(203, WireOp.PING, 4096),  # announces what is not there
    ]


# The replies of the first configuration that was tried; every other one must give the same.
_replies: dict[bytes, bytes] = {}


def check_reply(request: bytes, reply: bytes) -> None:
    """The reply belongs to the request, and is the one that every other configuration gave."""
    fields = dict(zip(_wire.WIRE_HEADER_FIELDS, _wire.WIRE_HEADER.unpack_from(reply), strict=True))
    sent = dict(zip(_wire.WIRE_HEADER_FIELDS, _wire.WIRE_HEADER.unpack_from(request), strict=True))
    assert fields["magic"] == _wire.WIRE_MAGIC
    assert fields["version_type"] & 15 == WireType.REPLY
    assert fields["request_id"] == sent["request_id"]
    if 100 <= sent["request_id"] < 200:
        assert fields["verdict"] == Verdict.OK
        assert reply[32:] == request[32:]
    else:
        assert fields["verdict"] != Verdict.OK
        assert len(reply) == _wire.WIRE_HEADER_LEN
    assert _replies.setdefault(request, reply) == reply


@pytest.fixture(scope="module", params=[(1, 1500), (2, 1500), (1, 9000), (2, 9000)], ids=str)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    queues, mtu = request.param
    with veth.veth_link(queues=queues, mtu=mtu) as made:
        yield made


@pytest.fixture(scope="module", params=HOOKS)
def server(
    request: pytest.FixtureRequest, link: Link, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Datapath]:
    cores = "0" if link.queues == 1 else "0,1"
    folder = tmp_path_factory.mktemp("paths")
    with veth.datapath(
        link, folder, f"--iface={veth.IFACE}", f"--cores={cores}", *HOOKS[request.param], *ADDRESSES
    ) as process:
        yield process


def test_mode_is_what_was_asked(link: Link, server: Datapath) -> None:
    """The segment shows what the kernel reports, and so does `ip link`."""
    seen = server.statistics()
    assert seen.state == "ready"
    assert seen.process["mtu"] == link.mtu
    assert seen.process["capabilities"] == 0
    if seen.path == "socket":
        assert link.xdp_program() is None
        return
    shown = link.xdp_program()
    assert shown is not None
    assert seen.xdp_mode == {1: "drv", 2: "skb"}[shown["mode"]]
    assert [queue.multi_buffer for queue in seen.queues] == [link.mtu > 3822] * link.queues
    assert not any(queue.zerocopy for queue in seen.queues)  # veth has none


@pytest.mark.parametrize("peer_checksum", [True, False], ids=["partial", "full"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_replies_are_equal(link: Link, server: Datapath, family: int, peer_checksum: bool) -> None:
    link.set_peer_checksum(on=peer_checksum)
    target = veth.SERVER4 if family == socket.AF_INET else veth.SERVER6
    before = server.statistics()
    asked = requests(link)
    with link.client_socket(family) as sock:
        sock.connect((target, PORT))
        for request in asked:
            sock.send(request)
            check_reply(request, sock.recv(65536))
    after = server.statistics()
    answered = {
        kind: sum(
            new.counters["tx_packets"] - old.counters["tx_packets"]
            for old, new in zip(before.workers, after.workers, strict=True)
            if old.kind == kind
        )
        for kind in ("poller", "socket")
    }
    wanted = "socket" if after.path == "socket" else "poller"
    assert answered[wanted] <= len(asked)
    # The segment is published about every millisecond: what it lacks was answered after that.
    assert sum(answered.values()) == answered[wanted]
    for worker in after.workers:
        assert worker.gauges["frames_missing"] == 0
        assert worker.counters["frame_faults"] == 0


def test_every_queue_answers(link: Link, server: Datapath) -> None:
    """Many flows spread over the queues, and none is lost."""
    for number in range(40):
        with link.client_socket(socket.AF_INET) as sock:
            sock.connect((veth.SERVER4, PORT))
            request = ping(150, 64)
            sock.send(request)
            assert sock.recv(65536)[32:] == request[32:], number
    seen = server.statistics()
    if seen.path == "xdp":
        busy = [worker for worker in seen.workers if worker.counters["rx_packets"]]
        # The generic hook is run by veth for queue 0 only.
        expected = link.queues if seen.xdp_mode == "drv" else 1
        assert sum(worker.kind == "poller" for worker in busy) == expected


# --- whole frames --------------------------------------------------------------------------------


def request_frame(
    *, six: bool = False, tagged: bool = False, sport: int = 40001, payload: bytes = b""
) -> Packet:
    frame = Ether(src=veth.CLIENT_MAC, dst=veth.SERVER_MAC)
    if tagged:
        frame = frame / Dot1Q(vlan=7, prio=5)
    if six:
        frame = frame / IPv6(src=veth.CLIENT6, dst=veth.SERVER6, hlim=3, tc=3)
    else:
        frame = frame / IP(src=veth.CLIENT4, dst=veth.SERVER4, ttl=3, tos=3)
    return frame / UDP(sport=sport, dport=PORT) / Raw(payload)


def exchange(
    sock: socket.socket, frames: list[bytes], *, timeout_s: float = 2.0
) -> tuple[Packet, int] | None:
    """Send frames; the first UDP packet that comes back from our port and its VLAN tag.

    The kernel takes the tag out of the frame and reports it beside: 0 for none. None after the
    timeout.
    """
    sock.settimeout(timeout_s)
    for frame in frames:
        sock.send(frame)
    while True:
        try:
            data, control, _, sender = sock.recvmsg(65536, 256)
        except TimeoutError:
            return None
        if sender[2] == socket.PACKET_OUTGOING:
            continue
        packet = Ether(data)
        if UDP in packet and packet[UDP].sport == PORT:
            # struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid
            return packet, struct.unpack("IIIHHHH", control[0][2])[5]


@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "vlan"])
@pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])
def test_headers_of_a_reply(link: Link, server: Datapath, six: bool, tagged: bool) -> None:
    """Ends swapped, tag kept, TTL and ECN our own, checksums right by scapy's reckoning."""
    if server.statistics().path == "socket":
        pytest.skip("the kernel writes these headers")
    requests_here = [ping(160, size) for size in (0, 40, 1400)]
    for request in requests_here:
        sent = Ether(bytes(request_frame(six=six, tagged=tagged, payload=request)))
        with link.raw_socket() as sock:
            answer = exchange(sock, [bytes(sent)])
        assert answer is not None
        reply, tag = answer
        assert tag == (5 << 13 | 7 if tagged else 0)
        assert (reply[Ether].src, reply[Ether].dst) == (veth.SERVER_MAC, veth.CLIENT_MAC)
        layer = IPv6 if six else IP
        assert (reply[layer].src, reply[layer].dst) == (sent[layer].dst, sent[layer].src)
        assert (reply[UDP].sport, reply[UDP].dport) == (PORT, 40001)
        if six:
            assert (reply[IPv6].hlim, reply[IPv6].tc) == (64, 0)
        else:
            assert (reply[IP].ttl, reply[IP].tos, reply[IP].flags) == (64, 0, "DF")
        rebuilt = reply.copy()
        del rebuilt[UDP].chksum, rebuilt[UDP].len
        if six:
            del rebuilt[IPv6].plen
        else:
            del rebuilt[IP].chksum, rebuilt[IP].len
        assert bytes(rebuilt) == bytes(reply)
        assert bytes(reply[UDP].payload)[32:] == request[32:]


@pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])
def test_fragments_are_answered_by_the_kernel_socket(
    link: Link, server: Datapath, six: bool
) -> None:
    """A request in fragments gets the same reply as one in one piece."""
    request = ping(170, 1200)
    whole = request_frame(six=six, sport=40002, payload=request)
    if six:
        frame = Ether(src=veth.CLIENT_MAC, dst=veth.SERVER_MAC) / IPv6(
            src=veth.CLIENT6, dst=veth.SERVER6
        )
        frame = frame / IPv6ExtHdrFragment(id=7) / whole[UDP]
        # A template as scapy's fragment6 wants it; the checksum is that of the whole packet.
        frame[UDP].chksum = Ether(bytes(whole))[UDP].chksum
        parts = [bytes(part) for part in fragment6(frame, 700)]
    else:
        whole[IP].flags = 0
        parts = [bytes(part) for part in fragment(whole, 600)]
    assert len(parts) > 1
    with link.raw_socket() as sock:
        answer = exchange(sock, parts)
    assert answer is not None
    check_reply(request, bytes(answer[0][UDP].payload))


def test_padding_is_no_payload(link: Link, server: Datapath) -> None:
    """Ethernet pads short frames; what is behind the IP packet is not part of it."""
    frame = bytes(request_frame(payload=header(161, WireOp.PING, 0))) + b"\xff" * 20
    with link.raw_socket() as sock:
        answer = exchange(sock, [frame])
    assert answer is not None
    assert len(bytes(answer[0][UDP].payload)) == 32


@pytest.mark.parametrize(
    "change",
    ["bad checksum", "port 0", "reflector", "own address", "multicast source", "not ptk", "reply"],
)
def test_never_answered(link: Link, server: Datapath, change: str) -> None:
    """Each is sent between two good requests: the second good one is answered, it is not."""
    request = ping(162, 16)
    frame = request_frame(payload=request, sport=40003)
    if change == "bad checksum":
        frame[UDP].chksum = 0x1234
    elif change == "port 0":
        frame[UDP].sport = 0
    elif change == "reflector":
        frame[UDP].sport = 19
    elif change == "own address":
        frame[IP].src, frame[UDP].sport = veth.SERVER4, PORT
    elif change == "multicast source":
        frame[IP].src = "224.0.0.9"
    elif change == "not ptk":
        frame[Raw].load = b"GET / HTTP/1.0\r\n" * 4
    elif change == "reply":
        frame[Raw].load = request[:2] + bytes([0x12]) + request[3:]
    good = bytes(request_frame(payload=ping(163, 16), sport=40004))
    with link.raw_socket() as sock:
        answer = exchange(sock, [bytes(frame), good])
    assert answer is not None
    assert answer[0][UDP].dport == 40004
    assert struct.unpack_from("<8xQ", bytes(answer[0][UDP].payload))[0] == 163


def test_reply_leaves_from_the_address_asked(
    link: Link, server: Datapath, tmp_path: pathlib.Path
) -> None:
    """Also over the link-local address, which the server was not told to answer on: silence."""
    with link.client_socket(socket.AF_INET6) as sock:
        sock.settimeout(0.3)
        request = ping(164, 16)
        index = int(link.exec(link.client, "cat", f"/sys/class/net/{veth.IFACE}/ifindex"))
        sock.sendto(request, ("fe80::ff:fe00:1", PORT, 0, index))
        with pytest.raises(TimeoutError):
            sock.recvfrom(65536)
        sock.sendto(request, (veth.SERVER6, PORT))
        reply, sender = sock.recvfrom(65536)
        assert sender[0] == veth.SERVER6
        assert reply[32:] == request[32:]
