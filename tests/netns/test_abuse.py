"""Whoever abuses the port gets little and takes little: false addresses, networks, rates, keys.

The datagrams are made here as native/gen/WIRE.md says, not by the clients.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import pathlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
import veth
from load import wait_for
from test_paths import header, ping
from veth import CLIENT4, IFACE, PORT, SERVER4, Link

from pintok import _codec, _wire
from pintok._wire import Verdict, WireFlags, WireOp, WireOptions
from pintok.tokenizer import Tokenizer
from pintok_server.control.keys import make_key
from pintok_server.control.statistics import Snapshot, StatisticsReader
from tests.server_process import Instance

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

PATHS = pytest.mark.parametrize("path", ["xdp", "socket"])
NEIGHBOUR4 = "192.0.2.9"
FALSE_NETWORK = "198.18.0.0/15"
VERDICT_OFF = _wire.WIRE_HEADER_OFFSETS["verdict"]
FLAGS_OFF = _wire.WIRE_HEADER_OFFSETS["flags"]
OPTIONS = WireOptions.ADD_SPECIAL_TOKENS | WireOptions.PARSE_SPECIAL
TEXT = "Wherever a flood comes from, 1,234 words of text cost the same work. " * 9
# Nearly every byte is an id of its own, and an id has two bytes: a reply longer than its request.
RARE_TEXT = "\N{CUNEIFORM SIGN A}\N{CUNEIFORM SIGN AB}" * 60


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    """The client has a second address, and false addresses are behind it for the server."""
    with veth.veth_link() as made:
        made.ip(made.client, "address", "add", f"{NEIGHBOUR4}/24", "dev", IFACE)
        made.ip(made.server, "route", "add", FALSE_NETWORK, "via", CLIENT4)
        made.ip(
            *(made.server, "neighbour", "replace", NEIGHBOUR4, "lladdr", veth.CLIENT_MAC),
            *("dev", IFACE, "nud", "permanent"),
        )
        yield made


def datapath_options(path: str) -> list[str]:
    return [f"--iface={IFACE}", f"--path={path}", "--cores=0"]


@contextlib.contextmanager
def instance_on(link: Link, folder: pathlib.Path, path: str, *options: str) -> Iterator[Instance]:
    """A whole server on one core."""
    core = max(os.sched_getaffinity(0))
    words = [f"--iface={IFACE}", f"--path={path}", f"--cores={core}", *options]
    made = Instance(folder, words, prefix=["ip", "netns", "exec", link.server])
    try:
        yield made
    finally:
        made.close()


def connected(link: Link, *, source: str = CLIENT4, timeout_s: float = 0.2) -> socket.socket:
    sock = link.client_socket(socket.AF_INET, source=(source, 0))
    sock.connect((SERVER4, PORT))
    sock.settimeout(timeout_s)
    return sock


def extended(request: bytes, flag: WireFlags, extension: bytes) -> bytes:
    """The request with an extension right behind its header."""
    head = bytearray(request[: _wire.WIRE_HEADER_LEN])
    head[FLAGS_OFF] |= flag
    return bytes(head) + extension + request[_wire.WIRE_HEADER_LEN :]


def signed(request: bytes, key_id: int, key: bytes, *, sequence: int, sender: int = 7) -> bytes:
    """The request with the code of a key over all of it."""

    def put(code: bytes) -> bytes:
        mac = _wire.WIRE_MAC.pack(key_id, sender, sequence, code)
        return extended(request, WireFlags.MAC, mac)

    return put(hashlib.blake2b(put(bytes(16)), key=key, digest_size=16).digest())


def exchange(sock: socket.socket, request: bytes, *, attempts: int = 50) -> bytes:
    """The reply to the request, which is sent again while there is none."""
    for _ in range(attempts):
        sock.send(request)
        with contextlib.suppress(TimeoutError):
            while True:
                reply = sock.recv(65536)
                if reply[8:16] == request[8:16]:
                    return reply
    raise AssertionError("no reply")


def verdict_of(reply: bytes) -> str:
    return Verdict(reply[VERDICT_OFF]).name


def verdicts(snapshot: Snapshot, name: str) -> int:
    return sum(worker.verdicts.get(name, 0) for worker in snapshot.workers)


# --- false addresses -----------------------------------------------------------------------------


class Flood(threading.Thread):
    """Encode requests from false addresses: at most `count` in `seconds`. Sees their replies."""

    def __init__(self, link: Link, *, count: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._count, self._seconds = count, seconds
        with link.inside(link.client):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._in = link.raw_socket()
        self._in.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._random = random.Random(1)
        self.sent: collections.Counter[bytes] = collections.Counter()
        self.received: collections.Counter[bytes] = collections.Counter()
        self.over = threading.Event()  # Nothing more is sent; the replies are counted yet.

    def _datagram(self, number: int) -> tuple[bytes, bytes]:
        """A false address, and a packet that claims to come from it."""
        source = struct.pack("!I", 0xC6120000 | self._random.randrange(1 << 17))
        target = _codec.Target(model_id=0, model_tag=0, reply_len_max=1400)
        text = RARE_TEXT if number % 2 == 0 else TEXT
        payload = _codec.build_one(OPTIONS, target, number + 1, text.encode())
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
        udp = struct.pack("!HHHH", 40000, PORT, 8 + len(payload), 0)
        return source, ip + source + socket.inet_aton(SERVER4) + udp + payload

    def run(self) -> None:
        packets = [self._datagram(number) for number in range(2000)]
        end = time.monotonic() + self._seconds
        for number in range(self._count):
            if time.monotonic() > end:
                break
            source, packet = packets[number % len(packets)]
            self.sent[source] += len(packet) - 28
            self._out.sendto(packet, (SERVER4, 0))
        self.over.set()
        self._in.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                frame = self._in.recv(2048)
                # From the server's port to a false address: IPv4 without options.
                if frame[30:32] in (b"\xc6\x12", b"\xc6\x13") and frame[23] == socket.IPPROTO_UDP:
                    self.received[frame[30:34]] += len(frame) - 42
        self._out.close()
        self._in.close()


def resident_len(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


@PATHS
def test_flood_does_not_stop_the_validated_client(
    link: Link, tmp_path: pathlib.Path, path: str
) -> None:
    """Who shows a cookie gets every reply, exactly; no false address gets more than it sent, most
    are challenged, and the server's memory stays as it is."""
    tokenizer = Tokenizer.from_pretrained("default")
    expected = tokenizer.encode(TEXT).tolist()
    assert 2 * len(tokenizer.encode(RARE_TEXT)) > len(RARE_TEXT.encode()) + 8
    target = _codec.Target(model_id=0, model_tag=0, reply_len_max=1400)
    options = ("--address-validation=on", "--stranger-percent=1")
    with instance_on(link, tmp_path, path, *options) as instance, connected(link) as sock:
        pid = instance.start().ready["pid"]
        question = header(1, WireOp.PING, 0)
        refusal = exchange(sock, extended(question, WireFlags.COOKIE, bytes(16)))
        assert verdict_of(refusal) == "BAD_COOKIE" and len(refusal) == 48
        cookie = refusal[32:]

        def encode(number: int) -> None:
            request = _codec.build_one(OPTIONS, target, number, TEXT.encode())
            reply = exchange(sock, extended(request, WireFlags.COOKIE, cookie))
            assert verdict_of(reply) == "OK"
            _, ids = _codec.parse_one_ids(memoryview(reply)[32:])
            assert ids is not None and ids.tolist() == expected

        for number in range(100):
            encode(1000 + number)
        memory = resident_len(pid)
        flood = Flood(link, count=60000, seconds=3)
        flood.start()
        answered = 0
        while not flood.over.is_set():
            answered += 1
            encode(2000 + answered)
        flood.join(30.0)
        assert not flood.is_alive()
        assert answered > 20
        with StatisticsReader(instance.run_dir.stats) as reader:
            wait_for(lambda: verdicts(reader.read(), "challenge") > 100)
            assert reader.read().total("validated") >= 100 + answered
            assert reader.read().total("bulk_begun") == 0
        assert resident_len(pid) - memory < 1 << 20
    assert len(flood.sent) > 500 and len(flood.received) > 100
    assert [a for a, n in flood.received.items() if n > flood.sent[a]] == []


# --- networks and rates --------------------------------------------------------------------------


@PATHS
def test_only_allowed_networks_are_answered(link: Link, tmp_path: pathlib.Path, path: str) -> None:
    """XDP program and socket worker drop the others without an answer, and count them."""
    options = [*datapath_options(path), "--allow=192.0.2.8/29", "--allow=2001:db8::/32"]
    with veth.datapath(link, tmp_path, *options) as process:
        with connected(link, source=NEIGHBOUR4) as sock:
            assert verdict_of(exchange(sock, ping(1, 64))) == "OK"
        with connected(link, timeout_s=0.05) as sock:
            for _ in range(5):
                sock.send(ping(2, 64))
                with pytest.raises(TimeoutError):
                    sock.recv(2048)

        def dropped() -> bool:
            seen = process.statistics()
            if path == "xdp":
                return seen.steer["drop_not_allowed"] == 5
            return verdicts(seen, "not_allowed") == 5

        wait_for(dropped)
        with connected(link, source=NEIGHBOUR4) as sock:
            assert verdict_of(exchange(sock, ping(3, 64))) == "OK"


@PATHS
def test_an_address_over_its_limit_is_refused_and_its_neighbour_is_not(
    link: Link, tmp_path: pathlib.Path, path: str
) -> None:
    """Twenty datagrams a second: no more are answered, and a second later again some are."""
    options = [*datapath_options(path), "--limit-address=20,0,0"]
    with veth.datapath(link, tmp_path, *options) as process, connected(link) as sock:
        seen: collections.Counter[str] = collections.Counter()
        begun = time.monotonic()
        for number in range(200):
            sock.send(ping(number + 1, 64))
        with contextlib.suppress(TimeoutError):
            while seen.total() < 200:
                seen[verdict_of(sock.recv(2048))] += 1
        most = 20 + 20 * (time.monotonic() - begun) + 1
        assert 20 <= seen["OK"] <= most and seen["RATE_LIMITED"] > 0
        assert set(seen) == {"OK", "RATE_LIMITED"}
        wait_for(lambda: verdicts(process.statistics(), "rate_limited") >= 200 - most)
        with connected(link, source=NEIGHBOUR4) as other:
            for number in range(10):
                assert verdict_of(exchange(other, ping(300 + number, 64))) == "OK"
        wait_for(lambda: verdict_of(exchange(sock, ping(400, 64))) == "OK")


# --- keys ----------------------------------------------------------------------------------------


class SignedPings(threading.Thread):
    """Signed pings one after another; the verdicts."""

    def __init__(self, link: Link, key_id: int, key: bytes) -> None:
        super().__init__(daemon=True)
        self._sock = connected(link, timeout_s=5)
        self._key_id, self._key = key_id, key
        self.seen: collections.Counter[str] = collections.Counter()
        self.stopping = threading.Event()

    def run(self) -> None:
        sequence = time.time_ns() // 1000
        with self._sock:
            while not self.stopping.is_set():
                sequence += 1
                request = signed(
                    ping(sequence, 64), self._key_id, self._key, sequence=sequence, sender=8
                )
                self.seen[verdict_of(exchange(self._sock, request))] += 1


@PATHS
def test_keys_are_required_and_replaced_while_serving(
    link: Link, tmp_path: pathlib.Path, path: str
) -> None:
    """None, a wrong one, a changed byte and a copy are refused by name; `keys reload` ends one key
    and begins another, and who has a third one notices nothing."""
    lines = {number: make_key(number) for number in (1, 2, 3)}
    keys = {number: bytes.fromhex(line.split()[1]) for number, line in lines.items()}
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"{lines[1]}\n{lines[2]}\n")
    options = (f"--keys={file}", "--require-key=on", "--address-validation=off")
    with (
        instance_on(link, tmp_path, path, *options) as instance,
        connected(link, timeout_s=5) as sock,
    ):
        instance.start()
        numbers = iter(range(time.time_ns() // 1000, 1 << 63))

        def ask(key_id: int, key: bytes) -> str:
            number = next(numbers)
            return verdict_of(
                exchange(sock, signed(ping(number, 64), key_id, key, sequence=number))
            )

        assert verdict_of(exchange(sock, ping(1, 64))) == "BAD_KEY"
        assert ask(1, keys[1]) == "OK"
        assert ask(1, keys[2]) == "BAD_KEY"
        assert ask(3, keys[3]) == "BAD_KEY"
        number = next(numbers)
        request = signed(ping(number, 64), 1, keys[1], sequence=number)
        assert verdict_of(exchange(sock, request[:-1] + bytes([request[-1] ^ 1]))) == "BAD_KEY"
        assert verdict_of(exchange(sock, request, attempts=1)) == "OK"
        assert verdict_of(exchange(sock, request)) == "REPLAYED"

        others = SignedPings(link, 2, keys[2])
        others.start()
        file.write_text(f"{lines[2]}\n{lines[3]}\n")
        done = instance.tool("keys", "reload")
        assert done.returncode == 0 and "2 keys: 2, 3" in done.stdout
        wait_for(lambda: ask(1, keys[1]) == "BAD_KEY")
        assert ask(3, keys[3]) == "OK"
        others.stopping.set()
        others.join(15.0)
        assert others.seen["OK"] > 10
        # A copy that was sent because its reply was late is replayed; nothing else goes wrong.
        assert set(others.seen) <= {"OK", "REPLAYED"}
        with StatisticsReader(instance.run_dir.stats) as reader:
            wait_for(lambda: reader.read().total("keyed") >= others.seen["OK"])
