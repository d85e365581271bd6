"""One message in segments, without a socket or a clock: what to send next, what came back.

    transfer = Transfer(op, target, message, datagram_len_max, new_id, pacing, patience, inlet)
    send(transfer.start(now))
    while transfer.reply is None:
        wait until transfer.due for a datagram of transfer.request_id
        send(transfer.receive(datagram, now) or transfer.expire(now))
    send([transfer.cancel()])

The client owns every timer. What the server grants is sent at once, in one flight; what the server
says is missing is sent again; a server that has forgotten the message gets it from the start, under
a new request id, so that nothing of the first attempt can be mistaken for the second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from pintok import _codec, _seal, _wire
from pintok._codec import Reply, Target
from pintok._pacing import Pacing, Patience, after_hint, jittered
from pintok._wire import Verdict, WireFlags, WireOp, WireState, WireType

SEGMENT_LEN_MIN: Final = _wire.WIRE_SEGMENT_LEN_MIN
DATAGRAM_LEN_MIN: Final = _codec.HEADER_LEN + SEGMENT_LEN_MIN
"""Smallest datagram limit of a client that can send and receive segments."""

_REQUEST: Final = _wire.WIRE_VERSION << 4 | WireType.REQUEST
_REPLY: Final = _wire.WIRE_VERSION << 4 | WireType.REPLY
_NEED: Final = _wire.WIRE_VERSION << 4 | WireType.NEED
_PULL: Final = _wire.WIRE_VERSION << 4 | WireType.PULL
_CANCEL: Final = _wire.WIRE_VERSION << 4 | WireType.CANCEL
_CRC: Final = int(WireFlags.CRC)
_LAST: Final = int(WireFlags.LAST_FLIGHT)
_WORDS_MAX: Final = _wire.WIRE_WINDOW_WORDS_MAX
_WINDOW: Final = _wire.WIRE_WINDOW
_HEADER: Final = _codec.HEADER
_HEADER_LEN: Final = _codec.HEADER_LEN
# Refusals that a damaged datagram can cause although the message is well: a few are tolerated, then
# the message begins anew, in case a damaged segment was the first that the server saw of it.
_DOUBTFUL: Final = frozenset(
    {
        Verdict.BAD_VERSION,
        Verdict.BAD_TYPE,
        Verdict.BAD_FLAGS,
        Verdict.BAD_LENGTH,
        Verdict.BAD_OP,
        Verdict.BAD_OPTION,
        Verdict.UNSUPPORTED,
        Verdict.TEXT_TOO_LONG,
    }
)
_STRIKES_MAX: Final = 3
_CHALLENGES: Final = frozenset({Verdict.CHALLENGE, Verdict.BAD_COOKIE})
# The server has the message or parts of it no more: from the start.
_FORGOTTEN: Final = frozenset({Verdict.UNKNOWN_REQUEST, Verdict.BAD_CRC})
_WAIT_LEAST: Final = 0.002
_WAIT_MOST: Final = 1.0
# Replies under way together must fit the receive buffer of a socket: 212,992 bytes by default in
# Linux, which also counts the kernel's own share of every packet.
IN_FLIGHT_LEN_MAX: Final = 96 * 1024
_BUFFER_LEN_USUAL: Final = 212_992


class Inlet:
    """The receive buffer of one socket: the long messages under way there share it.

    A reply that the server sends while there is no room is lost, and costs a timer.
    """

    __slots__ = ("_len", "transfers")

    def __init__(self, buffer_len: int) -> None:
        """`buffer_len` is what SO_RCVBUF says."""
        self._len = buffer_len * IN_FLIGHT_LEN_MAX // _BUFFER_LEN_USUAL
        self.transfers = 0
        """Long messages under way: each is added when it starts, and taken away when it ends."""

    def segments(self, datagram_len_max: int) -> int:
        """How many segments of its reply one of them may have under way."""
        share = min(self._len // max(self.transfers, 1), IN_FLIGHT_LEN_MAX)
        return max(1, min(64, share // datagram_len_max))


class Transfer:
    """See the module."""

    __slots__ = (
        "_asked",
        "_base",
        "_challenges",
        "_datagram_len_max",
        "_inlet",
        "_left",
        "_message",
        "_missing",
        "_new_id",
        "_op",
        "_pacing",
        "_parts",
        "_patience",
        "_paused",
        "_probing",
        "_pulls",
        "_reply_head",
        "_restarted",
        "_seen",
        "_segment_count",
        "_segment_len",
        "_sent_at",
        "_strikes",
        "_target",
        "_wait",
        "_working",
        "crc",
        "due",
        "quiet",
        "reply",
        "request_id",
        "verdict",
    )

    def __init__(
        self,
        op: WireOp,
        target: Target,
        message: bytes,
        datagram_len_max: int,
        new_id: Callable[[], int],
        pacing: Pacing,
        patience: Patience,
        inlet: Inlet,
    ) -> None:
        if datagram_len_max < DATAGRAM_LEN_MIN:
            raise ValueError(f"segments need datagrams of {DATAGRAM_LEN_MIN} bytes at least")
        self._op = op
        self._target = target
        self._message = memoryview(message)
        self._datagram_len_max = datagram_len_max
        self._segment_len = (datagram_len_max - _HEADER_LEN) & ~7
        self._segment_count = -(-len(message) // self._segment_len)
        self._new_id = new_id
        self._pacing = pacing
        self.crc = _codec.crc32c(message)
        self._patience = patience
        self._inlet = inlet
        self.reply: Reply | None = None
        """The answer, or the refusal, once it is there."""
        self.verdict = int(Verdict.OK)
        """The last transient refusal."""
        self._wait = pacing.retry_after
        self.quiet = 0
        """Timers in a row that ran out without news."""
        self._restarted = False
        self._challenges = 0
        self._reset()

    def _reset(self) -> None:
        self.request_id = self._new_id()
        self._working = False
        self._seen: tuple[int, bytes] | None = None
        self._probing = False
        self._strikes = 0
        self._paused = False
        self._sent_at: float | None = None
        self._reply_head: tuple[int, int, int] | None = None
        self._parts: list[memoryview | None] = []
        self._left = 0
        self._base = 0
        self._pulls = 0
        self._asked: dict[int, int] = {}
        self.due = 0.0

    # --- what to send -------------------------------------------------------------------------

    def start(self, now: float) -> list[bytes]:
        """The first flight."""
        self._paused = False
        self._arm(now)
        return self._flight(list(range(min(_wire.WIRE_FLIGHT_FIRST, self._segment_count))), now)

    def cancel(self) -> bytes:
        """Tells the server that its answer has been read, or is not wanted any more."""
        target = self._target
        return _HEADER.pack(
            _wire.WIRE_MAGIC,
            _CANCEL,
            0,
            0,
            self.request_id,
            0,
            0,
            target.model_id,
            self._op,
            0,
            target.model_tag,
            0,
        )

    def _flight(self, indices: list[int], now: float) -> list[bytes]:
        self._sent_at = now
        last = len(indices) - 1
        if last > 0 and indices[last] == self._segment_count - 1:
            # A need is no longer than what it answers, and the last segment may be short.
            indices = [indices[last], *indices[:last]]
        return [self._segment(index, at == last) for at, index in enumerate(indices)]

    def _segment(self, index: int, last: bool) -> bytes:
        target = self._target
        off = index * self._segment_len
        return b"".join(
            (
                _HEADER.pack(
                    _wire.WIRE_MAGIC,
                    _REQUEST,
                    _CRC | (_LAST if last else 0),
                    len(self._message),
                    self.request_id,
                    index,
                    self._segment_len,
                    target.model_id,
                    self._op,
                    0,
                    target.model_tag,
                    self.crc,
                ),
                self._message[off : off + self._segment_len],
            )
        )

    def _pull(self) -> bytes:
        """Asks for missing segments of the reply that are not on their way."""
        room = self._room()
        if self._reply_head is None:
            first, words = 0, [(1 << min(room, 64)) - 1]
        else:
            while self._parts[self._base] is not None:
                self._base += 1
            first = self._base & ~63
            words = [0] * _WORDS_MAX
            end = min(len(self._parts), first + 64 * _WORDS_MAX)
            self._pulls += 1
            free = room - len(self._asked)
            for index in range(self._base, end):
                if free <= 0:
                    break
                if self._parts[index] is None and index not in self._asked:
                    words[index - first >> 6] |= 1 << (index - first & 63)
                    self._asked[index] = self._pulls
                    free -= 1
            while len(words) > 1 and words[-1] == 0:
                words.pop()
        target = self._target
        return b"".join(
            (
                _HEADER.pack(
                    _wire.WIRE_MAGIC,
                    _PULL,
                    0,
                    0,
                    self.request_id,
                    first,
                    0,
                    target.model_id,
                    self._op,
                    0,
                    target.model_tag,
                    0,
                ),
                _WINDOW.pack(room, len(words), 0, 0),
                struct.pack(f"<{len(words)}Q", *words),
            )
        )

    def _room(self) -> int:
        return self._inlet.segments(self._datagram_len_max)

    # --- timers -------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        self.due = min(now + jittered(self._wait), self._patience.deadline)

    def _news(self, now: float) -> None:
        """The server has answered: the waits begin anew, as long as the path takes."""
        self.quiet = 0
        if self._sent_at is not None:
            taken = now - self._sent_at
            self._sent_at = None
            self._wait = min(max(4 * taken, _WAIT_LEAST), self._pacing.retry_after)
        self._arm(now)

    def expire(self, now: float) -> list[bytes]:
        """What to send when `due` has passed without an answer; nothing before that."""
        deadline = self._patience.deadline
        if now < self.due or now >= deadline or self.reply is not None:
            return []
        if self.quiet >= self._pacing.retries and not self._working:
            self.due = deadline
            return []
        if not self._pacing.budget.withdraw(now):
            self._arm(now)
            return []
        if self._paused:
            return self.start(now)  # The server had asked for a while.
        self.quiet += 1
        self._wait = min(2 * self._wait, _WAIT_MOST)
        self._sent_at = None
        self._arm(now)
        self._probing = True
        if self._working or self._reply_head is not None:
            self._asked.clear()
            return [self._pull()]
        lowest = self._lowest()
        return [self._segment(lowest, True)]

    def _lowest(self) -> int:
        """A segment that the server certainly lacks, or the first."""
        if self._seen is None:
            return 0
        base, bits = self._seen
        word = int.from_bytes(bits, "little")
        return min(base + (word & -word).bit_length() - 1, self._segment_count - 1)

    # --- what came back -----------------------------------------------------------------------

    def receive(self, datagram: bytes | memoryview, now: float) -> list[bytes]:
        """Take a datagram with this request id; returns what to send because of it."""
        if len(datagram) < _HEADER_LEN or datagram[0] != 0x50 or datagram[1] != 0x54:
            return []
        fields = _HEADER.unpack_from(datagram)
        if fields[4] != self.request_id or fields[8] != self._op or self.reply is not None:
            return []
        if fields[1] == _NEED:
            return self._receive_need(memoryview(datagram), fields[5], now)
        if fields[1] == _REPLY:
            if fields[9] != Verdict.OK:
                return self._receive_refusal(fields, len(datagram), now)
            return self._receive_part(memoryview(datagram), fields, now)
        return []

    def _receive_need(self, datagram: memoryview, base: int, now: float) -> list[bytes]:
        if len(datagram) < _HEADER_LEN + _WINDOW.size:
            return []
        grant, words, state, reserved = _WINDOW.unpack_from(datagram, _HEADER_LEN)
        bits = bytes(datagram[_HEADER_LEN + _WINDOW.size :])
        if len(bits) != 8 * words or words > _WORDS_MAX or reserved:
            return []
        if state == WireState.WORKING:
            self._working = True
            self._news(now)
            return []
        missing = int.from_bytes(bits, "little")
        if not missing:
            return []  # There was no room to say what.
        # The same need twice is a double, and a second flight for it would double every one after.
        seen = (base, bits)
        if seen == self._seen and not self._probing:
            return []
        self._seen = seen
        self._working = self._probing = False
        self._strikes = 0
        self._news(now)
        indices: list[int] = []
        while missing and len(indices) < grant:
            low = missing & -missing
            index = base + low.bit_length() - 1
            missing ^= low
            if index < self._segment_count:
                indices.append(index)
        return self._flight(indices, now) if indices else []

    def _receive_refusal(self, fields: tuple[int, ...], length: int, now: float) -> list[bytes]:
        verdict = fields[9]
        if verdict in _CHALLENGES:
            return self._receive_challenge(fields, now)
        if length != _HEADER_LEN or verdict == Verdict.REPLAYED:
            return []  # The network has doubled a datagram: the other one is answered.
        if verdict in (Verdict.BUSY, Verdict.RATE_LIMITED):
            self.verdict = verdict
            forget = self.cancel()
            self._reset()
            self._paused = True
            # The server says how long; whoever comes back again and again waits longer.
            pause = fields[11] / 1e6 or self._pacing.retry_after
            self.due = min(now + after_hint(max(self._wait, pause)), self._patience.deadline)
            self._wait = min(2 * max(self._wait, pause), _WAIT_MOST)
            return [forget]
        if verdict in _FORGOTTEN:
            self.verdict = verdict
            forget = self.cancel()
            self._reset()
            return [forget, *self.start(now)]
        if verdict in _DOUBTFUL and self._strikes < _STRIKES_MAX:
            self._strikes += 1
            return []
        if verdict in _DOUBTFUL and not self._restarted:
            self._restarted = True
            forget = self.cancel()
            self._reset()
            return [forget, *self.start(now)]
        self.reply = Reply(fields[4], fields[7], fields[10], fields[8], verdict, memoryview(b""))
        return []

    def challenge(self, datagram: bytes | memoryview) -> bytes | None:
        """The cookie that a datagram for this message asks to repeat; None for any other.

        The caller sees to it that what `receive` then gives, the message from its start, is sent
        with that cookie.
        """
        reply = _codec.parse_reply(datagram, self._op)
        if reply is None or reply.request_id != self.request_id:
            return None
        return _seal.cookie_of(reply)

    def _receive_challenge(self, fields: tuple[int, ...], now: float) -> list[bytes]:
        self._challenges += 1
        if self._challenges > _seal.CHALLENGES_MAX:
            verdict = fields[9]
            self.reply = Reply(
                fields[4], fields[7], fields[10], fields[8], verdict, memoryview(b"")
            )
            return []
        self._reset()
        return self.start(now)

    def _receive_part(
        self, datagram: memoryview, fields: tuple[int, ...], now: float
    ) -> list[bytes]:
        flags, message_len, index, segment_len = fields[2], fields[3], fields[5], fields[6]
        part = datagram[_HEADER_LEN:]
        if flags != _CRC or message_len == 0 or message_len > _wire.WIRE_MESSAGE_LEN_MAX:
            return []
        each = segment_len or message_len
        if segment_len and (segment_len < SEGMENT_LEN_MIN or segment_len & 7):
            return []
        count = -(-message_len // each)
        if index >= count or len(part) != min(each, message_len - index * each):
            return []
        head = (message_len, each, fields[11])
        if head != self._reply_head:
            # The first one; or one of them was damaged, and the later one is believed.
            self._reply_head = head
            self._parts = [None] * count
            self._left = count
            self._base = 0
            self._pulls = 0
            first = min(count, _wire.WIRE_FLIGHT_FIRST)
            self._asked = dict.fromkeys(range(first), 0)
        number = self._asked.pop(index, None)
        self._working = False
        if self._parts[index] is not None:
            return []
        self._parts[index] = part
        self._left -= 1
        self._news(now)
        if self._left == 0:
            return self._finish(fields, now)
        if number is not None and number >= 2:
            # Segments of a pull come in order, but for some overtaking: older ones are lost.
            for late in [i for i, asked in self._asked.items() if asked <= number - 2]:
                del self._asked[late]
        if len(self._asked) <= self._room() // 2 and self._left > len(self._asked):
            return [self._pull()]
        return []

    def _finish(self, fields: tuple[int, ...], now: float) -> list[bytes]:
        message = b"".join(part for part in self._parts if part is not None)
        if _codec.crc32c(message) != fields[11]:
            # Damage that every checksum below has missed: fetch it once more.
            self._reply_head = None
            self._asked = {}
            return [self._pull()]
        self.reply = Reply(
            fields[4], fields[7], fields[10], fields[8], Verdict.OK, memoryview(message)
        )
        return []
