"""Long messages on one socket: their replies under way together fit its receive buffer.

The server is in memory and answers at once, so what is under way is what waits in the queue.
"""

from __future__ import annotations

import collections
import random
import socket
import struct

import pytest

from pintok import _codec, _path, _wire
from pintok._codec import Reply, Target
from pintok._conversation import Conversation
from pintok._pacing import Patience
from pintok._seal import Seal
from pintok._session import Session, Settings
from pintok._transfer import Inlet
from pintok._wire import WireOp, WireType

DATAGRAM_LEN = 1472
SEGMENT_LEN = DATAGRAM_LEN - _codec.HEADER_LEN & ~7
ANSWER = random.Random(5).randbytes(200_000)
USUAL = 212_992
"""Bytes of a receive buffer that nobody has asked for, in Linux."""


class Text:
    """One message in three segments, as agenda and as part."""

    op = WireOp.ENCODE
    segmented = True
    of_model = False

    def __init__(self) -> None:
        self._taken = False
        self.answer: bytes | None = None

    def may_be_longer(self, length: int) -> bool:
        return True

    def datagram(self, target: Target, request_id: int, sealed_len: int = 0) -> bytes:
        raise NotImplementedError

    def message(self, target: Target) -> bytes:
        return bytes(3 * SEGMENT_LEN)

    def take(self) -> Text | None:
        taken, self._taken = self._taken, True
        return None if taken else self

    def accept(self, part: Text, reply: Reply) -> None:
        self.answer = bytes(reply.message)

    @property
    def unanswered(self) -> int:
        return int(self.answer is None)


class Server:
    """One socket with a server behind it that has every answer ready."""

    def __init__(self, buffer_len: int) -> None:
        self.seal = Seal()
        self.inlet = Inlet(buffer_len)
        self.queue: collections.deque[bytes] = collections.deque()
        self.most = 0
        self._last_id = 0

    def request_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def send(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            _, kind, flags, _, request_id, base, *_ = _codec.HEADER.unpack_from(datagram)
            if kind & 15 == WireType.PULL:
                grant, words, _, _ = _wire.WIRE_WINDOW.unpack_from(datagram, _codec.HEADER_LEN)
                off = _codec.HEADER_LEN + _wire.WIRE_WINDOW.size
                bits = struct.unpack_from(f"<{words}Q", datagram, off)
                wanted = [base + at for at in range(64 * words) if bits[at // 64] >> at % 64 & 1]
                self._answer(request_id, wanted[:grant])
            elif kind & 15 == WireType.REQUEST and flags & _wire.WireFlags.LAST_FLIGHT:
                self._answer(request_id, list(range(_wire.WIRE_FLIGHT_FIRST)))
        self.most = max(self.most, len(self.queue))

    def _answer(self, request_id: int, indices: list[int]) -> None:
        kind = _wire.WIRE_VERSION << 4 | WireType.REPLY
        crc = _codec.crc32c(ANSWER)
        for index in indices:
            head = (_wire.WIRE_MAGIC, kind, _wire.WireFlags.CRC, len(ANSWER), request_id, index)
            rest = (SEGMENT_LEN, 0, WireOp.ENCODE, 0, 0, crc)
            part = ANSWER[index * SEGMENT_LEN : (index + 1) * SEGMENT_LEN]
            self.queue.append(_codec.HEADER.pack(*head, *rest) + part)


@pytest.fixture
def session() -> Session:
    settings = Settings(
        model=0,
        timeout=5.0,
        retries=8,
        retry_after=0.05,
        retry_share=0.2,
        window=32,
        datagram_len_max=DATAGRAM_LEN,
        checksum=False,
        key=None,
    )
    return Session("127.0.0.1", 7265, settings)


def begun(session: Session, server: Server, count: int) -> list[tuple[Text, Conversation[Text]]]:
    """So many at once, each with its first flight sent; no timer runs out."""
    found = []
    for _ in range(count):
        text = Text()
        conversation = Conversation(text, session, Patience(5.0, 0.0))
        server.send(conversation.begin(server, 0.0))
        found.append((text, conversation))
    return found


@pytest.mark.parametrize(
    ("buffer_len", "count", "most"),
    [(USUAL, 1, 64), (USUAL, 4, 64), (2 * USUAL, 8, 128), (64 * USUAL, 8, 512)],
)
def test_replies_under_way_fit_the_buffer(
    session: Session, buffer_len: int, count: int, most: int
) -> None:
    """One alone has 64 segments under way, and all together never more than the buffer holds."""
    server = Server(buffer_len)
    pairs = begun(session, server, count)
    talks = [conversation for _, conversation in pairs]
    while server.queue:
        datagram = server.queue.popleft()
        # The transfers have the numbers of their only requests, from 1 up.
        conversation = talks[_codec.HEADER.unpack_from(datagram)[4] - 1]
        server.send(conversation.receive(datagram, 0.0))
    assert all(text.answer == ANSWER for text, _ in pairs)
    assert 0.7 * most <= server.most <= most
    assert server.inlet.transfers == 0
    assert session.counters.repeated == session.counters.late == 0


def test_who_is_given_up_leaves_its_share(session: Session) -> None:
    server = Server(USUAL)
    pairs = begun(session, server, 3)
    assert server.inlet.transfers == 3
    for _, conversation in pairs:
        server.send(conversation.abandon())
        server.send(conversation.abandon())
    assert server.inlet.transfers == 0


def test_sockets_ask_for_more_than_the_usual() -> None:
    """What the kernel gives without being asked is full after a few long datagrams."""
    with (
        _path.open_socket(_path.resolve("127.0.0.1", 7265)) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        asked = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == asked
