"""A client that says anything, and knows what it may hear: a state machine over raw datagrams.

Every step sends a few datagrams from one of several sources, then a ping that fences them off: what
comes back in between is held to `wire_oracle`, exactly or to the few things that the protocol
leaves open. After every step each packet must have one fate among the server's counters, every
frame its place, and the arena its bounds. What fails is reduced to a short list of datagrams, which
the failure shows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import veth
import wire_oracle as oracle
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_life import Mailbox
from veth import CLIENT4, CLIENT6, IFACE, PORT, SERVER4, SERVER6, Datapath, Link

from pintok import _wire
from pintok._wire import Verdict, WireFlags, WireOp, WireType
from pintok.tokenizer import Tokenizer
from pintok_server import vocab
from pintok_server._spec import metrics
from pintok_server.control.keys import make_key
from pintok_server.control.statistics import Snapshot
from tests.conformance import peer

NEIGHBOUR4 = "192.0.2.9"
WAIT_S = 20.0
MESSAGE_LEN_MAX = 65536
ARENA_LEN = 16 * MESSAGE_LEN_MAX
SLOTS, SOURCE_SLOTS = 64, 32
EPOCH_NS = 64 * 10**9
# With cookie and code none of them is cut into fragments, which another worker would receive.
SEGMENT_LENS = (1024, 1200, 1352)

# Of a worker: each packet has one of these fates, and each datagram for the server one of those.
PACKET_FATES = (
    *(f"refused_{why}" for why in ("truncated", "protocol", "length", "ip_checksum")),
    *(f"refused_{why}" for why in ("udp_checksum", "source", "destination", "large")),
    *("rx_skipped", "requests"),
)
REQUEST_FATES = (
    *("guard_refused", "handled"),
    *(f"bulk_{fate}" for fate in ("segments", "duplicates", "late", "conflicts", "pulls")),
    *(f"bulk_{fate}" for fate in ("unknown", "busy", "capped", "refused", "early", "cancels")),
)


def fates_are_whole(snapshot: Snapshot) -> bool:
    """Whether the fates add up: of packets and of datagrams, in every worker."""
    for worker in snapshot.workers:
        counters = worker.counters
        if sum(counters[name] for name in PACKET_FATES) != counters["rx_packets"]:
            return False
        if sum(counters[name] for name in REQUEST_FATES) != counters["requests"]:
            return False
    return True


@dataclasses.dataclass
class Message:
    """A message in segments, and how far the server is with it."""

    source: int
    op: int
    body: bytes
    segment_len: int
    model_id: int
    crc: int
    request_id: int
    model_tag: int = 0
    got: set[int] = dataclasses.field(default_factory=set)
    state: str = "new"
    """new, receiving, ready, or ended."""
    parts: dict[int, bytes] = dataclasses.field(default_factory=dict)
    reply: Verdict | oracle.Answer | None = None
    reply_len: int = 0
    reply_segment_len: int = 0

    @property
    def count(self) -> int:
        return -(-len(self.body) // self.segment_len)

    @property
    def part_count(self) -> int:
        return -(-self.reply_len // self.reply_segment_len) if self.reply_segment_len else 1

    def header(self, index: int, *, last: bool) -> oracle.Header:
        return oracle.Header(
            magic=_wire.WIRE_MAGIC,
            version_type=0x11,
            flags=int(WireFlags.CRC | (WireFlags.LAST_FLIGHT if last else 0)),
            message_len=len(self.body),
            request_id=self.request_id,
            segment_idx=index,
            segment_len=self.segment_len,
            model_id=self.model_id,
            op=self.op,
            verdict=0,
            model_tag=self.model_tag,
            message_crc=self.crc,
        )

    def segment(self, index: int) -> bytes:
        return self.body[index * self.segment_len : (index + 1) * self.segment_len]


class Bench:
    """One server on one path, and sockets of several sources: what all examples share."""

    def __init__(self, link: Link, folder: pathlib.Path, path: str) -> None:
        self.link, self.folder, self.path = link, folder, path
        self.tokenizer = Tokenizer.from_pretrained("default")
        self.image = vocab.load_image("default").path
        lines = [make_key(number) for number in (1, 2)]
        self.keys = {
            number + 1: bytes.fromhex(line.split()[1]) for number, line in enumerate(lines)
        }
        self.key_file = folder / "keys"
        self.key_file.write_text("\n".join(lines) + "\n")
        self.mailbox = Mailbox(folder / "mailbox")
        self.stack = contextlib.ExitStack()
        self.process: Datapath | None = None
        self.sources = [(CLIENT4, 41001), (CLIENT4, 41002), (NEIGHBOUR4, 41003), (CLIENT6, 41004)]
        self.socks = [
            link.client_socket(
                socket.AF_INET6 if ":" in host else socket.AF_INET, source=(host, port)
            )
            for host, port in self.sources
        ]
        for sock, (host, _) in zip(self.socks, self.sources, strict=True):
            sock.connect((SERVER6 if ":" in host else SERVER4, PORT))
        self.cookies = [bytes(16)] * len(self.socks)
        self.issued: list[set[bytes]] = [set() for _ in self.socks]
        self.sent = 0
        self.take_overs = 0
        self.number = time.time_ns() // 1000
        self.tags: dict[int, int] = {}
        self.ids_end = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    @property
    def running(self) -> Datapath:
        assert self.process is not None
        return self.process

    def _arguments(self) -> list[str]:
        return [
            *(f"--iface={IFACE}", f"--path={self.path}", "--cores=0", "--idle=adaptive"),
            *("--validate=on", "--stranger-percent=100", f"--keys={self.key_file}"),
            *(f"--message-len-max={MESSAGE_LEN_MAX}", "--models-max=2", "--cache=65536"),
            *(f"--model=0:default={self.image}", f"--mailbox={self.mailbox.path}"),
            f"--hand-over={self.folder / 'handover'}",
        ]

    def ensure(self) -> None:
        """The server runs: one that has died in an example before is started anew."""
        if self.process is not None and self.process.process.poll() is None:
            return
        self.stack.close()
        self.process = self.stack.enter_context(
            veth.datapath(self.link, self.folder, *self._arguments())
        )
        self.sent = 0
        self.take_overs = 0
        self.tags = {0: 0}
        for index in range(len(self.socks)):
            self.fence(index)
        for number, tag in self._tags().items():
            self.tags[number] = tag
        question = oracle.Header(_wire.WIRE_MAGIC, 0x11, 0, 208, self.next(), 0, 0, 0, 2, 0, 0, 0)
        reply = self.exchange(0, [question.pack() + bytes(208)])[0]
        self.ids_end = struct.unpack_from("<I", reply, 32 + 32)[0]

    def _tags(self) -> dict[int, int]:
        return {model.slot: model.tag for model in self.running.statistics().models}

    def take_over(self) -> None:
        """Another process goes on where this one is."""
        old = self.running
        self.process = self.stack.enter_context(
            veth.datapath(
                self.link,
                self.folder,
                *self._arguments(),
                f"--take-over={self.folder / 'handover'}",
            )
        )
        assert old.ended(10.0) == 0
        self.take_overs += 1
        self.tags = self._tags()

    def command(self, command: metrics.MailboxCommand, **values: object) -> None:
        result, text = self.mailbox.send(self.running, command=command, **values)
        assert result == 0, text
        self.tags = self._tags()

    def close(self) -> None:
        self.stack.close()
        for sock in self.socks:
            sock.close()

    def learn(self, index: int, reply: bytes) -> None:
        """The cookie of a refusal, which is this source's."""
        if len(reply) == 48 and reply[3] & WireFlags.COOKIE:
            self.cookies[index] = reply[32:]
            self.issued[index].add(reply[32:])

    def send(self, index: int, datagram: bytes) -> None:
        self.sent += 1
        self.socks[index].send(datagram)

    def fence(self, index: int) -> list[bytes]:
        """Everything that came before the reply to a ping that is sent now."""
        found: list[bytes] = []
        deadline = time.monotonic() + WAIT_S
        number = self.next()
        flags, cookie = int(WireFlags.COOKIE), self.cookies[index]
        head = oracle.Header(_wire.WIRE_MAGIC, 0x11, flags, 0, number, 0, 0, 0, 1, 0, 0, 0)
        self.send(index, head.pack() + cookie)
        while True:
            reply = self.receive(index, deadline)
            if reply[8:16] != struct.pack("<Q", number):
                found.append(reply)
                continue
            self.learn(index, reply)
            if reply[23] in (Verdict.BAD_COOKIE, Verdict.CHALLENGE, Verdict.OK):
                return found
            raise AssertionError(f"the fence is answered with {Verdict(reply[23]).name}")

    def receive(self, index: int, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        assert left > 0, f"nothing came; {self.running.text[-2000:]}"
        self.socks[index].settimeout(left)
        try:
            return self.socks[index].recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing came; {self.running.text[-2000:]}") from None

    def exchange(self, index: int, datagrams: Sequence[bytes]) -> list[bytes]:
        for datagram in datagrams:
            self.send(index, datagram)
        return self.fence(index)


@dataclasses.dataclass(frozen=True, slots=True)
class Seal:
    """What stands between header and message: which cookie, which code."""

    cookie: str = "good"
    """none, zero, good, forged, other (another source's), aged."""
    mac: str = "none"
    """none, good, wrong, unknown (a key that is not there)."""


GOOD = Seal()
seals = st.builds(
    Seal,
    st.sampled_from(["good", "good", "good", "none", "zero", "forged", "other", "aged"]),
    st.sampled_from(["none", "none", "none", "good", "wrong", "unknown"]),
)
source_numbers = st.integers(0, 3)
TEXTS = (
    *(b"", b"Hello, world!", "größer \N{CJK UNIFIED IDEOGRAPH-65E5} 🙂".encode(), b"\xff bad"),
    *(b"<|endoftext|>", b"ab cd! " * 20, b"\n\n  x" * 9, b"a\xcc\x81"),
)
texts = st.lists(st.sampled_from(TEXTS), min_size=0, max_size=4)
id_lists = st.lists(st.lists(st.integers(0, 70000), max_size=9), min_size=1, max_size=4)


@st.composite
def batches(draw: Any) -> tuple[int, bytes]:
    """Operation and message of a batch, mostly a right one."""
    op = draw(st.sampled_from([WireOp.ENCODE, WireOp.COUNT, WireOp.DECODE, WireOp.DECODE_STEP]))
    reply_len_max = draw(st.sampled_from([0, 0, 40, 200, 1056, 1440, 9000]))
    if op in (WireOp.ENCODE, WireOp.COUNT):
        items = draw(texts)
        pair = draw(st.booleans()) and len(items) % 2 == 0
        rows = [items[i : i + 2] for i in range(0, len(items), 2)] if pair else [[i] for i in items]
        message = peer.texts(
            rows,
            options=draw(st.sampled_from([0, 1, 2, 3, 3, 3, 11, 64, 258])),
            outputs=draw(st.sampled_from([0, 0, 0, 1, 7, 9, 8])) if op == WireOp.ENCODE else 0,
            id_format=draw(st.sampled_from([0, 0, 1, 2, 3, 4])) if op == WireOp.ENCODE else 0,
            reply_len_max=reply_len_max,
        )
    elif op == WireOp.DECODE:
        message = peer.id_lists(
            draw(id_lists), id_format=draw(st.sampled_from([2, 3])), reply_len_max=reply_len_max
        )
    else:
        lists = draw(id_lists)
        steps = [(ids, 0, len(ids), draw(st.integers(0, 1))) for ids in lists]
        message = peer.steps(steps, id_format=3, reply_len_max=reply_len_max)
    return op, message


@st.composite
def long_batches(draw: Any) -> tuple[int, bytes]:
    """Operation and message for several segments; a short one now and then."""
    op = draw(st.sampled_from([WireOp.ENCODE, WireOp.COUNT, WireOp.DECODE, WireOp.DECODE_STEP]))
    size = draw(st.sampled_from([1, 40, 200, 400, 700]))
    reply_len_max = draw(st.sampled_from([0, 1056, 1440, 60000, 600]))
    if op in (WireOp.ENCODE, WireOp.COUNT):
        text = draw(st.sampled_from([b"ab cd! ", "größer 🙂".encode(), b"aaaa\n"])) * size
        return op, peer.texts([[text], [b"end"]], reply_len_max=reply_len_max)
    ids = [(at * 37) % 60000 for at in range(size)]
    if op == WireOp.DECODE:
        return op, peer.id_lists([ids, ids[:3]], id_format=3, reply_len_max=reply_len_max)
    steps = [(ids[at : at + 4], 0, min(4, size - at), 1) for at in range(0, min(size, 900), 4)]
    return op, peer.steps(steps, id_format=3, reply_len_max=reply_len_max)


class WireMachine(RuleBasedStateMachine):
    """See the module; `bench` is set by whoever runs it."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.accepted: list[tuple[int, bytes]] = []
        """Signed datagrams that were taken: copies of them are refused."""
        self.recent: list[bytes] = []

    @initialize()
    def begin(self) -> None:
        self.bench.ensure()

    # --- sending ---------------------------------------------------------------------------------

    def seal(self, source: int, head: oracle.Header, body: bytes, seal: Seal) -> bytes:
        """Header, extensions and body."""
        bench = self.bench
        flags, extensions = head.flags, b""
        if seal.cookie != "none":
            flags |= int(WireFlags.COOKIE)
            extensions += self.cookie(source, seal.cookie)
        if seal.mac == "none":
            return dataclasses.replace(head, flags=flags).pack() + extensions + body
        flags |= int(WireFlags.MAC)
        key_id = 9 if seal.mac == "unknown" else 1
        mac = _wire.WIRE_MAC.pack(key_id, 77, bench.next(), bytes(16))
        front = dataclasses.replace(head, flags=flags).pack() + extensions + mac
        code = hashlib.blake2b(front + body, key=bench.keys[1], digest_size=16).digest()
        if seal.mac == "wrong":
            code = bytes([code[0] ^ 1]) + code[1:]
        return front[:-16] + code + body

    def cookie(self, source: int, which: str) -> bytes:
        good = self.bench.cookies[source]
        if which == "zero":
            return bytes(16)
        if which == "forged":
            return good[:15] + bytes([good[15] ^ 64])
        if which == "other":
            return self.bench.cookies[(source + 1) % len(self.bench.cookies)]
        if which == "aged":
            epoch = struct.unpack_from("<I", good)[0]
            return struct.pack("<I", epoch - 2 & 0xFFFFFFFF) + good[4:]
        return good

    def admission(self, source: int, datagram: bytes) -> tuple[set[object], bool]:
        """What the guard may refuse it with (None: it may also pass), and whether its source is
        validated then."""
        if not oracle.has_extensions(datagram):
            return set(), False
        flags = datagram[3]
        mac_off = 32 + (16 if flags & WireFlags.COOKIE else 0)
        key = None
        if flags & WireFlags.MAC:
            key = self.bench.keys.get(struct.unpack_from("<I", datagram, mac_off)[0])
            if key is None:
                return {Verdict.BAD_KEY}, False
        open_ends: set[object] = set()
        if flags & WireFlags.COOKIE:
            cookie = datagram[32:48]
            # It holds in its epoch and in the next one; what its last moments are is open.
            ends = struct.unpack_from("<I", cookie)[0] * EPOCH_NS
            now = time.monotonic_ns()
            if cookie not in self.bench.issued[source] or now > ends + 10**9:
                return {Verdict.BAD_COOKIE}, False
            if now > ends - 10**9:
                open_ends = {Verdict.BAD_COOKIE, None}
        validated = bool(flags & WireFlags.COOKIE)
        if key is not None:
            signed = datagram[: mac_off + 16] + bytes(16) + datagram[mac_off + 32 :]
            right = hashlib.blake2b(signed, key=key, digest_size=16).digest()
            if datagram[mac_off + 16 : mac_off + 32] != right:
                return {Verdict.BAD_KEY, *(open_ends - {None})}, validated
            if any(datagram == other for _, other in self.accepted):
                return {Verdict.REPLAYED, *(open_ends - {None})}, validated
        return open_ends, validated

    def say(self, source: int, datagram: bytes) -> None:
        """Send one datagram, and hold what comes back to what may."""
        shown = datagram.rstrip(b"\0").hex()
        note(f"source {source}: {shown} and zeros up to {len(datagram)} bytes")
        bench = self.bench
        judged = oracle.judge(datagram)
        message = self.message_of(source, judged)
        refusals, validated = self.admission(source, datagram)
        self.recent = [*self.recent[-15:], datagram]
        found = bench.exchange(source, [datagram])
        for reply in found:
            note(f"  <- {reply[:64].hex()} ({len(reply)} bytes)")
            bench.learn(source, reply)
        refused = any(self.is_refusal(found, datagram, verdict) for verdict in refusals)
        must_be = bool(refusals) and None not in refusals
        assert refused or not must_be, f"refused with one of {refusals}; {self.show(found)}"
        if refused:
            return
        if oracle.has_extensions(datagram) and datagram[3] & WireFlags.MAC:
            self.accepted.append((source, datagram))
        if not validated:
            assert sum(map(len, found)) <= len(datagram), "more bytes than were sent"
            judged_as_stranger = oracle.has_extensions(datagram) or self.is_segmented(datagram)
            if judged_as_stranger and self.is_refusal(found, datagram, Verdict.CHALLENGE):
                return
            assert not self.is_segmented(datagram), "a stranger's segment is kept"
        if not isinstance(judged, oracle.Asked):
            if judged == oracle.SILENCE:
                assert found == [], self.show(found)
            else:
                assert self.is_refusal(found, datagram, judged), f"{judged}; {self.show(found)}"
            return
        if self.is_segmented(datagram):
            self.check_segmented(source, datagram, judged, message, found)
        else:
            self.check_answer(source, datagram, judged, found, validated=validated)

    @staticmethod
    def is_segmented(datagram: bytes) -> bool:
        if len(datagram) < 32 or datagram[:2] != b"PT":
            return False
        one = datagram[2] == 0x11 and datagram[18:20] != b"\0\0"
        return one or datagram[2] in (0x14, 0x15)

    @staticmethod
    def show(found: Sequence[bytes]) -> str:
        return (
            "; ".join(
                f"type {reply[2] & 15}, verdict {Verdict(reply[23]).name}, {len(reply)} bytes"
                for reply in found
            )
            or "silence"
        )

    def is_refusal(self, found: Sequence[bytes], asked: bytes, verdict: Any) -> bool:
        """One header with this verdict, and a cookie where it belongs and had room."""
        if len(found) != 1 or verdict is None:
            return False
        reply, head = found[0], oracle.header_of(found[0])
        with_cookie = len(reply) == 48 and head.flags == WireFlags.COOKIE
        may_have = verdict in (Verdict.CHALLENGE, Verdict.BAD_COOKIE) and len(asked) >= 48
        return (
            len(reply) == (48 if may_have else 32)
            and with_cookie == may_have
            and head.verdict == verdict
            and head.type == WireType.REPLY
            and head.message_len == 0
            and reply[8:16] == asked[8:16]
            and (head.message_crc == 0 or verdict == Verdict.BUSY)
        )

    # --- one datagram, one reply -----------------------------------------------------------------

    @property
    def server(self) -> oracle.Server:
        return oracle.Server(self.bench.tags, self.bench.ids_end, len("default"), MESSAGE_LEN_MAX)

    def room(self, source: int) -> int:
        return self.bench.link.mtu - (48 if ":" in self.bench.sources[source][0] else 28)

    def check_answer(
        self,
        source: int,
        datagram: bytes,
        asked: oracle.Asked,
        found: list[bytes],
        *,
        validated: bool,
    ) -> None:
        room = self.room(source)
        if not validated:
            room = min(room, len(datagram))
        settled = oracle.settle(
            asked, self.server, self.bench.tokenizer, room=room, stated=len(datagram)
        )
        if isinstance(settled, Verdict):
            assert self.is_refusal(found, datagram, settled), f"{settled}; {self.show(found)}"
            return
        assert len(found) == 1, self.show(found)
        head, message = oracle.header_of(found[0]), found[0][32:]
        assert (head.type, head.verdict, head.op) == (WireType.REPLY, 0, asked.header.op)
        assert head.request_id == asked.header.request_id and head.segment_len == 0
        assert len(found[0]) <= settled.datagram_len_max and head.message_len == len(message)
        crc = bool(asked.header.flags & WireFlags.CRC)
        assert head.flags == (WireFlags.CRC if crc else 0)
        assert head.message_crc == (oracle.crc32c(message) if crc else 0)
        assert settled.right(message), message.hex()

    # --- messages in segments --------------------------------------------------------------------

    def message_of(self, source: int, judged: oracle.Judged) -> Message | None:
        if not isinstance(judged, oracle.Asked):
            return None
        for message in self.messages:
            same = message.request_id == judged.header.request_id
            if same and self.same_source(message.source, source) and message.state != "new":
                return message
        return None

    def same_source(self, one: int, other: int) -> bool:
        return one == other

    def check_segmented(
        self,
        source: int,
        datagram: bytes,
        asked: oracle.Asked,
        message: Message | None,
        found: list[bytes],
    ) -> None:
        head = asked.header
        known = message is not None and message.state != "ended"
        if head.type == WireType.CANCEL:
            assert found == [], self.show(found)
            if message is not None:
                message.state = "ended"
            return
        if head.type == WireType.PULL:
            if not known:
                assert self.is_refusal(found, datagram, Verdict.UNKNOWN_REQUEST), self.show(found)
                return
            assert message is not None
            self.check_pull(message, asked, datagram, found)
            return
        if head.message_len > MESSAGE_LEN_MAX:
            assert self.is_refusal(found, datagram, Verdict.TEXT_TOO_LONG), self.show(found)
            return
        if message is None:
            message = self.adopt(source, asked)
        elif message.state == "ended":
            self.check_late(source, head, found)
            return
        self.check_segment(message, asked, datagram, found)

    def adopt(self, source: int, asked: oracle.Asked) -> Message:
        """The message that a first segment begins: as its header says."""
        head = asked.header
        for message in self.messages:
            same = message.request_id == head.request_id and message.source == source
            if same and message.state == "new":
                break
        else:
            body = bytes(head.message_len)
            message = Message(
                source, head.op, body, head.segment_len, head.model_id, -1, head.request_id
            )
            self.messages.append(message)
        if message.crc != head.message_crc or len(message.body) != head.message_len:
            # Another message under this number, whose whole is not known: it stays unfinished.
            message.body = bytes(head.message_len)
            message.crc = head.message_crc
        message.op, message.model_id, message.model_tag = head.op, head.model_id, head.model_tag
        message.segment_len = head.segment_len
        message.state = "receiving"
        message.got = set()
        return message

    def check_late(self, source: int, head: oracle.Header, found: list[bytes]) -> None:
        """Silence as long as the server remembers the end; it may also begin anew."""
        if found:
            assert oracle.header_of(found[0]).type in (WireType.NEED, WireType.REPLY)
        self.cancel_now(source, head.request_id)

    def cancel_now(self, source: int, request_id: int) -> None:
        head = oracle.Header(
            _wire.WIRE_MAGIC, 0x15, 0, 0, request_id, 0, 0, 0, int(WireOp.ENCODE), 0, 0, 0
        )
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            sealed = self.seal(source, head, b"", GOOD)
            found = self.bench.exchange(source, [sealed])
            stale = [reply for reply in found if reply[23] == Verdict.BAD_COOKIE]
            for reply in stale:
                self.bench.learn(source, reply)
            if not stale:
                return
        raise AssertionError("no cookie holds")

    def check_segment(
        self, message: Message, asked: oracle.Asked, datagram: bytes, found: list[bytes]
    ) -> None:
        head = asked.header
        last = bool(head.flags & WireFlags.LAST_FLIGHT)
        conflict = self.conflict(message, head)
        if conflict is not None:
            assert self.is_refusal(found, datagram, conflict), f"{conflict}; {self.show(found)}"
            return
        if not message.got and self.is_refusal(found, datagram, Verdict.BUSY):
            assert self.is_crowded(message), f"busy without need: {len(self.live())} are live"
            message.state = "ended"
            self.cancel_now(message.source, message.request_id)
            return
        fresh = message.state == "receiving" and head.segment_idx not in message.got
        if not fresh:
            if not last:
                assert found == [], self.show(found)
            elif message.state == "ready":
                self.check_parts(message, found, range(min(8, message.part_count)))
            else:
                self.check_need(message, datagram, found)
            return
        message.got.add(head.segment_idx)
        at = head.segment_idx * message.segment_len
        body = bytearray(message.body)
        body[at : at + len(asked.body)] = asked.body
        message.body = bytes(body)
        if len(message.got) < message.count:
            if last:
                self.check_need(message, datagram, found)
            else:
                assert found == [], self.show(found)
            return
        self.finish(message, datagram, found)

    @staticmethod
    def conflict(message: Message, head: oracle.Header) -> Verdict | None:
        if (head.message_len, head.segment_len) != (len(message.body), message.segment_len):
            return Verdict.BAD_LENGTH
        if head.message_crc != message.crc:
            return Verdict.BAD_CRC
        theirs = (head.op, head.model_id, head.model_tag)
        if theirs != (message.op, message.model_id, message.model_tag):
            return Verdict.BAD_OPTION
        return None

    def live(self) -> list[Message]:
        return [each for each in self.messages if each.state in ("receiving", "ready")]

    def is_crowded(self, message: Message) -> bool:
        """Whether the server may say that there is no room: its source's part, or all of it."""
        live = [each for each in self.live() if each is not message]
        host = self.bench.sources[message.source][0]
        own = [each for each in live if self.bench.sources[each.source][0] == host]

        def taken(messages: list[Message]) -> int:
            units = (max(len(each.body), each.reply_len) + 4095 for each in messages)
            return sum(unit // 4096 * 4096 for unit in units)

        return (
            len(own) >= SOURCE_SLOTS
            or len(live) >= SLOTS
            or taken([*own, message]) > ARENA_LEN // 2
            or taken([*live, message]) > ARENA_LEN // 2
        )

    def check_need(self, message: Message, datagram: bytes, found: list[bytes]) -> None:
        """Exactly what is missing, in no more bytes than it answers."""
        room = len(datagram) - 40
        if room < 0:
            assert found == [], self.show(found)
            return
        assert len(found) == 1, self.show(found)
        head = oracle.header_of(found[0])
        assert head.type == WireType.NEED and head.request_id == message.request_id
        assert (head.message_len, head.segment_len) == (len(message.body), message.segment_len)
        assert len(found[0]) <= len(datagram)
        grant, words, state, reserved = struct.unpack_from("<HBBI", found[0], 32)
        assert (state, reserved) == (0, 0) and 1 <= grant <= 64
        missing = [i for i in range(message.count) if i not in message.got]
        base = missing[0] // 64 * 64
        count = min(room // 8, 8, -(-(message.count - base) // 64))
        assert (head.segment_idx, words) == (base, count) and len(found[0]) == 40 + 8 * words
        shown = struct.unpack_from(f"<{words}Q", found[0], 40)
        wanted = [0] * words
        for index in missing:
            if (index - base) // 64 < words:
                wanted[(index - base) // 64] |= 1 << (index - base) % 64
        assert list(shown) == wanted

    def finish(self, message: Message, datagram: bytes, found: list[bytes]) -> None:
        """The last missing segment: a need that says working, and the reply when it is made."""
        needs = [reply for reply in found if oracle.header_of(reply).type == WireType.NEED]
        parts = [reply for reply in found if oracle.header_of(reply).type == WireType.REPLY]
        assert len(needs) == 1 or len(datagram) < 40, self.show(found)
        if needs:
            assert found[0] == needs[0]
            assert struct.unpack_from("<HBBI", needs[0], 32) == (0, 0, 1, 0)
        message.state = "ready"
        message.reply = self.reply_of(message)
        deadline = time.monotonic() + WAIT_S
        if not parts:
            parts.append(self.bench.receive(message.source, deadline))
        first = oracle.header_of(parts[0])
        if first.verdict == 0:
            message.reply_len, message.reply_segment_len = first.message_len, first.segment_len
        while len(parts) < min(8, message.part_count):
            parts.append(self.bench.receive(message.source, deadline))
        for reply in parts:
            note(f"  <- {reply[:64].hex()} ({len(reply)} bytes)")
        if first.verdict == Verdict.BUSY and self.is_crowded(message):
            message.reply = Verdict.BUSY
        self.check_parts(message, parts, range(min(8, message.part_count)))

    def reply_of(self, message: Message) -> Verdict | oracle.Answer:
        """What a complete message is answered with."""
        if oracle.crc32c(message.body) != message.crc:
            return Verdict.BAD_CRC
        asked = oracle.Asked(message.header(0, last=True), message.body)
        return oracle.settle(
            asked,
            self.server,
            self.bench.tokenizer,
            room=self.room(message.source),
            stated=32 + message.segment_len,
        )

    def check_parts(self, message: Message, found: list[bytes], wanted: range | list[int]) -> None:
        """These segments of the reply, in this order; or its refusal, once."""
        reply = message.reply
        if isinstance(reply, oracle.Answer) and message.reply_len == 0:
            # A reply that does not fit the client's datagrams in segments.
            assert reply.datagram_len_max < 1024 + 32, self.show(found)
            reply = message.reply = Verdict.REPLY_TOO_LONG
        if isinstance(reply, Verdict):
            assert len(found) == (1 if 0 in wanted else 0), self.show(found)
            for refusal in found:
                head = oracle.header_of(refusal)
                assert (head.verdict, len(refusal)) == (reply, 32), self.show(found)
            return
        assert reply is not None
        assert len(found) == len(wanted), self.show(found)
        each = message.reply_segment_len or message.reply_len
        for index, part in zip(wanted, found, strict=True):
            head = oracle.header_of(part)
            assert (head.type, head.verdict, head.segment_idx) == (WireType.REPLY, 0, index)
            assert head.message_len == message.reply_len and head.flags == WireFlags.CRC
            assert head.segment_len == message.reply_segment_len
            assert len(part) - 32 == min(each, message.reply_len - index * each)
            assert len(part) <= reply.datagram_len_max
            assert message.parts.setdefault(index, part[32:]) == part[32:]
            if len(message.parts) == message.part_count:
                whole = b"".join(message.parts[at] for at in range(message.part_count))
                assert oracle.crc32c(whole) == head.message_crc
                assert reply.right(whole), "the reply is not the exact one"

    def check_pull(
        self, message: Message, asked: oracle.Asked, datagram: bytes, found: list[bytes]
    ) -> None:
        if message.state == "receiving":
            self.check_need(message, datagram, found)
            return
        if message.reply == Verdict.BUSY:
            assert self.is_refusal(found, datagram, Verdict.BUSY), self.show(found)
            message.state = "ended"
            return
        grant, words = struct.unpack_from("<HB", asked.body)
        bits = struct.unpack_from(f"<{words}Q", asked.body, 8)
        base = asked.header.segment_idx
        wanted = [
            index
            for word in range(words)
            for bit in range(64)
            if bits[word] >> bit & 1 and (index := base + 64 * word + bit) < message.part_count
        ][: min(grant, 64)]
        self.check_parts(message, found, wanted)

    # --- rules: one datagram ---------------------------------------------------------------------

    def header(self, op: int, message: bytes, **fields: int) -> oracle.Header:
        plain = oracle.Header(
            _wire.WIRE_MAGIC, 0x11, 0, len(message), self.bench.next(), 0, 0, 0, op, 0, 0, 0
        )
        return dataclasses.replace(plain, **fields)

    @rule(source=source_numbers, seal=seals, size=st.sampled_from([0, 8, 100, 1300]))
    def ping(self, source: int, seal: Seal, size: int) -> None:
        message = bytes(at & 255 for at in range(size))
        self.say(source, self.seal(source, self.header(WireOp.PING, message), message, seal))

    @rule(
        source=source_numbers,
        seal=seals,
        op=st.sampled_from([WireOp.INFO, WireOp.SETTINGS]),
        model=st.integers(0, 2),
        size=st.sampled_from([0, 32, 40, 88, 200, 41]),
    )
    def info(self, source: int, seal: Seal, op: int, model: int, size: int) -> None:
        message = bytes(size)
        head = self.header(op, message, model_id=model)
        self.say(source, self.seal(source, head, message, seal))

    @rule(
        source=source_numbers,
        seal=seals,
        batch=batches(),
        model=st.sampled_from([0, 0, 0, 1, 2]),
        crc=st.sampled_from(["none", "right", "wrong"]),
        tag=st.sampled_from(["any", "any", "right", "wrong"]),
    )
    def batch(
        self, source: int, seal: Seal, batch: tuple[int, bytes], model: int, crc: str, tag: str
    ) -> None:
        op, message = batch
        fields = {"model_id": model}
        if crc != "none":
            fields |= {"flags": int(WireFlags.CRC)}
            fields |= {"message_crc": oracle.crc32c(message) ^ (crc == "wrong")}
        if tag != "any":
            fields |= {"model_tag": self.bench.tags.get(model, 5) ^ (tag == "wrong")}
        head = self.header(op, message, **fields)
        self.say(source, self.seal(source, head, message, seal))

    @rule(
        source=source_numbers,
        back=st.integers(0, 15),
        edit=st.sampled_from(["flip", "set", "cut", "add", "again"]),
        at=st.integers(0, 1500),
        value=st.integers(0, 255),
    )
    def mutate(self, source: int, back: int, edit: str, at: int, value: int) -> None:
        """One of the last datagrams, changed in one place, from whichever source."""
        if not self.recent:
            return
        datagram = bytearray(self.recent[-1 - back % len(self.recent)])
        if edit == "cut":
            del datagram[at % (len(datagram) + 1) :]
        elif edit == "add":
            datagram += bytes([value]) * (1 + at % 9)
        elif datagram and edit != "again":
            place = at % min(len(datagram), 64 if at % 2 else len(datagram))
            datagram[place] = datagram[place] ^ 1 << value % 8 if edit == "flip" else value
        if len(datagram) <= self.room(source):
            self.say(source, bytes(datagram))

    @rule(source=source_numbers, data=st.binary(max_size=80))
    def raw(self, source: int, data: bytes) -> None:
        self.say(source, data)

    # --- rules: segments -------------------------------------------------------------------------

    @rule(
        source=source_numbers,
        batch=long_batches(),
        segment_len=st.sampled_from(SEGMENT_LENS),
        model=st.sampled_from([0, 0, 0, 1]),
        wrong=st.sampled_from([0, 0, 0, 0, 1]),
        reuse=st.booleans(),
    )
    def new_message(
        self,
        source: int,
        batch: tuple[int, bytes],
        segment_len: int,
        model: int,
        wrong: int,
        reuse: bool,
    ) -> None:
        """A message to send segments of: its number may be one that another source uses."""
        op, body = batch
        taken = {each.request_id for each in self.messages if each.source == source}
        others = [each.request_id for each in self.messages if each.request_id not in taken]
        number = others[-1] if reuse and others else self.bench.next()
        crc = oracle.crc32c(body) ^ wrong
        self.messages.append(Message(source, op, body, segment_len, model, crc, number))

    def pick(self, which: int) -> Message | None:
        return self.messages[-1 - which % len(self.messages)] if self.messages else None

    def say_segment(self, message: Message, index: int, seal: Seal, last: bool) -> None:
        head = message.header(index, last=last)
        self.say(message.source, self.seal(message.source, head, message.segment(index), seal))

    @rule(
        which=st.integers(0, 3),
        index=st.integers(0, 63),
        seal=st.one_of(st.just(GOOD), seals),
        last=st.booleans(),
        twist=st.sampled_from(["", "", "", "crc", "length", "each", "op", "model", "tag", "op 0"]),
    )
    def segment(self, which: int, index: int, seal: Seal, last: bool, twist: str) -> None:
        """Any one of a message: again, out of order, or with a header that contradicts others."""
        message = self.pick(which)
        if message is None:
            return
        index %= message.count
        head, body = message.header(index, last=last), message.segment(index)
        changes: dict[str, dict[str, int]] = {
            "crc": {"message_crc": head.message_crc ^ 4},
            "length": {"message_len": head.message_len + 8},
            "each": {"segment_len": head.segment_len + 8},
            "op": {"op": WireOp.COUNT if head.op != WireOp.COUNT else WireOp.ENCODE},
            "model": {"model_id": head.model_id + 1},
            "tag": {"model_tag": 3},
            "op 0": {"op": 0},
        }
        head = dataclasses.replace(head, **changes.get(twist, {}))
        self.say(message.source, self.seal(message.source, head, body, seal))

    @rule(which=st.integers(0, 3), seal=st.just(GOOD), backwards=st.booleans())
    def rest(self, which: int, seal: Seal, backwards: bool) -> None:
        """All segments that are missing."""
        message = self.pick(which)
        if message is None or message.state in ("ready", "ended"):
            return
        missing = [index for index in range(message.count) if index not in message.got]
        for index in reversed(missing) if backwards else missing:
            if message.state in ("new", "receiving"):
                self.say_segment(message, index, seal, last=index == missing[-1])

    @rule(
        which=st.integers(0, 3),
        seal=st.one_of(st.just(GOOD), st.just(GOOD), seals),
        base=st.sampled_from([0, 0, 1, 2, 8, 64, 65535]),
        words=st.lists(st.sampled_from([1, 0xFF, 0xFFFFFFFFFFFFFFFF, 6, 0]), max_size=3),
        grant=st.sampled_from([0, 1, 3, 64, 65535]),
        stray=st.sampled_from([False, False, True]),
    )
    def pull(
        self, which: int, seal: Seal, base: int, words: list[int], grant: int, stray: bool
    ) -> None:
        message = self.pick(which)
        number = self.bench.next() if stray or message is None else message.request_id
        source = message.source if message is not None else which % len(self.bench.sources)
        body = struct.pack(f"<HBBI{len(words)}Q", grant, len(words), 0, 0, *words)
        head = oracle.Header(
            _wire.WIRE_MAGIC, 0x14, 0, 0, number, base, 0, 0, int(WireOp.ENCODE), 0, 0, 0
        )
        self.say(source, self.seal(source, head, body, seal))

    @rule(which=st.integers(0, 3), seal=st.one_of(st.just(GOOD), seals), stray=st.booleans())
    def cancel(self, which: int, seal: Seal, stray: bool) -> None:
        message = self.pick(which)
        number = self.bench.next() if stray or message is None else message.request_id
        source = message.source if message is not None else which % len(self.bench.sources)
        head = oracle.Header(
            _wire.WIRE_MAGIC, 0x15, 0, 0, number, 0, 0, 0, int(WireOp.ENCODE), 0, 0, 0
        )
        self.say(source, self.seal(source, head, b"", seal))

    @rule(source=source_numbers, count=st.integers(30, 36))
    def crowd(self, source: int, count: int) -> None:
        """First segments of many messages: a source gets its part and no more."""
        begun = []
        for _ in range(count):
            body = bytes(1100)
            message = Message(source, int(WireOp.ENCODE), body, 1024, 0, 1, self.bench.next())
            self.messages.append(message)
            begun.append(message)
            self.say_segment(message, 0, GOOD, last=True)
        for message in begun:
            self.cancel_now(source, message.request_id)
        self.messages = [each for each in self.messages if each not in begun]
        self.recent = []  # Copies of these would be late for messages that are not known here.

    # --- rules: the server -----------------------------------------------------------------------

    @rule()
    def model_comes_or_goes(self) -> None:
        bench = self.bench
        if 1 in bench.tags:
            bench.command(metrics.MailboxCommand.UNLOAD, slot=1)
        else:
            path = str(bench.image).encode()
            bench.command(metrics.MailboxCommand.LOAD, slot=1, name=b"default", path=path)

    @rule(chance=st.integers(0, 199))
    def take_over(self, chance: int) -> None:
        """Rare. What was under way is unknown to the next one; cookies and numbers hold."""
        if chance != 77:
            return
        self.bench.take_over()
        self.forget()

    def forget(self) -> None:
        for message in self.messages:
            message.state = "ended" if message.state != "new" else "new"
        self.messages = [each for each in self.messages if each.state == "new"]

    # --- after each step -------------------------------------------------------------------------

    @invariant()
    def everything_is_accounted_for(self) -> None:
        bench = self.bench
        if bench.process is None:
            return
        deadline = time.monotonic() + WAIT_S
        while True:
            seen = bench.running.statistics()
            if seen.total("rx_packets") == bench.sent and fates_are_whole(seen):
                break
            assert time.monotonic() < deadline, self.account(seen)
            time.sleep(0.0005)
        assert seen.state == "ready"
        for worker in seen.workers:
            assert worker.gauges["frames_missing"] == 0
            assert worker.counters["frame_faults"] == 0
            assert worker.gauges["arena_used_len"] <= worker.gauges["arena_len"]
            assert worker.counters["tx_full"] == worker.counters["tx_no_frame"] == 0

    def account(self, seen: Snapshot) -> str:
        lines = [f"{self.bench.sent} packets were sent"]
        for worker in seen.workers:
            counters = {name: count for name, count in worker.counters.items() if count}
            lines.append(f"{worker.kind}: {counters}")
        return "\n".join(lines)

    def teardown(self) -> None:
        """Nothing stays: every message is cancelled, and the arena is empty then."""
        bench = self.bench
        if bench.process is None or bench.process.process.poll() is not None:
            return
        for message in self.messages:
            if message.state in ("receiving", "ready"):
                self.cancel_now(message.source, message.request_id)
        deadline = time.monotonic() + WAIT_S
        while True:
            gauges = [worker.gauges for worker in bench.running.statistics().workers]
            if not any(each["bulk_slots"] or each["arena_used_len"] for each in gauges):
                return
            assert time.monotonic() < deadline, gauges
            time.sleep(0.0005)


@contextlib.contextmanager
def bench_on(folder: pathlib.Path, path: str) -> Iterator[Bench]:
    """A link, a server behind it on this path, and its clients."""
    with veth.veth_link() as link:
        link.ip(link.client, "address", "add", f"{NEIGHBOUR4}/24", "dev", IFACE)
        link.ip(
            *(link.server, "neighbour", "replace", NEIGHBOUR4, "lladdr", veth.CLIENT_MAC),
            *("dev", IFACE, "nud", "permanent"),
        )
        bench = Bench(link, folder, path)
        try:
            yield bench
        finally:
            bench.close()
