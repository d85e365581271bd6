"""What a client and one server say to each other about one piece of work: no socket, no clock.

    conversation = Conversation(agenda, session, patience)
    send(conversation.begin(link, now))
    while not conversation.done:
        wait until conversation.due for a datagram
        send(conversation.receive(datagram, now))   or   send(conversation.expire(now))
    send(conversation.abandon())                    # when it is given up before it is done

Datagrams come out of it as they are sent, with cookie and code. It follows challenges, repeats what
is lost as far as the client's budget allows, carries messages in segments, and drops what answers
nothing that is under way. Refusals, contradictions and the end of patience are raised.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from pintok import _codec, _seal
from pintok._codec import Reply, Target
from pintok._pacing import Backoff, Patience, after_hint
from pintok._path import PAYLOAD_LEN_SURE
from pintok._seal import Seal
from pintok._transfer import IN_FLIGHT_LEN_MAX, Inlet, Transfer
from pintok._wire import Verdict, WireOp
from pintok.errors import ELSEWHERE, RETRYABLE, DeadlineError, RefusedError, TransportError

if TYPE_CHECKING:
    from pintok._session import Session

# Repetitions of something long after which the path is in doubt.
_STALLED_AFTER: Final = 2
_NEVER: Final = float("inf")


class PathInDoubt(Exception):
    """What may be long gets lost, or is not sent: for `Session`, never for callers."""

    def __init__(self, *, known: bool) -> None:
        super().__init__()
        self.known = known
        """The kernel has said how narrow the path is."""


class Part(Protocol):
    """One message: of one datagram, or in segments."""

    @property
    def op(self) -> WireOp: ...

    @property
    def segmented(self) -> bool: ...

    def may_be_longer(self, length: int) -> bool:
        """Whether request or reply may be a datagram of more bytes."""

    def datagram(self, target: Target, request_id: int, sealed_len: int = 0) -> bytes:
        """The request, which will be longer by `sealed_len` when it is sent."""

    def message(self, target: Target) -> bytes:
        """The message alone, for segments."""


_PartT = TypeVar("_PartT", bound=Part)


class Agenda(Protocol[_PartT]):
    """The work: what is to be asked, and who takes the answers."""

    @property
    def of_model(self) -> bool:
        """Every reply must be of the model that the client speaks of."""

    def take(self) -> _PartT | None:
        """The next part to send; None when none is waiting."""

    def accept(self, part: _PartT, reply: Reply) -> None:
        """Take an answer, which may bring further parts. Raises RefusedError, MalformedReply."""

    @property
    def unanswered(self) -> int:
        """0 when the work is done."""


class Link(Protocol):
    """One socket as a conversation sees it."""

    seal: Seal
    inlet: Inlet

    def request_id(self) -> int:
        """A number that no other request of this socket has."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What a client has sent and got, since it was made; under threads these are approximate."""

    sent: int = 0
    """Datagrams with requests, and first segments of long messages, sent for the first time."""
    repeated: int = 0
    """Requests sent again, and timers of long messages that ran out."""
    withheld: int = 0
    """Repetitions that the retry budget did not allow."""
    late: int = 0
    """Datagrams that answered nothing under way: late, doubled, or of a cancelled call."""
    probed: int = 0
    """Pings that asked what the path carries."""


@dataclasses.dataclass(slots=True)
class _Flight(Generic[_PartT]):
    """A part on its way in one datagram."""

    part: _PartT
    request_id: int
    datagram: bytes
    backoff: Backoff
    due: float
    verdict: int = Verdict.OK
    challenges: int = 0
    repeats: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Adopted:
    """A first datagram that was sent before the conversation began, and what came, if anything."""

    link: Link
    request_id: int
    datagram: bytes
    sent_at: float
    received: bytes | None
    refused: bool
    """The server's machine has said that nobody listens."""


class Conversation(Generic[_PartT]):
    """See the module."""

    __slots__ = (
        "_agenda",
        "_flights",
        "_link",
        "_session",
        "_transfer",
        "_transfer_part",
        "_window",
        "adopted",
        "patience",
        "probe",
    )

    def __init__(
        self,
        agenda: Agenda[_PartT],
        session: Session,
        patience: Patience,
        *,
        window: int = 1,
        probe: bool = False,
        adopted: Adopted | None = None,
    ) -> None:
        self._agenda = agenda
        self._session = session
        self._window = window
        self._flights: dict[int, _Flight[_PartT]] = {}
        self._transfer: Transfer | None = None
        self._transfer_part: _PartT | None = None
        self._link: Link | None = None
        self.patience = patience
        self.probe = probe
        """It is about the path: the kernel must send what it thinks too long."""
        self.adopted = adopted

    @property
    def done(self) -> bool:
        return self._agenda.unanswered == 0

    @property
    def due(self) -> float:
        """When `expire` wants to be called at the latest."""
        due = self.patience.deadline
        for flight in self._flights.values():
            due = min(due, flight.due)
        if self._transfer is not None:
            due = min(due, self._transfer.due or due)
        return due

    @property
    def room(self) -> int:
        """Bytes of the longest datagram that may come, and one more."""
        longest = max((len(flight.datagram) for flight in self._flights.values()), default=0)
        return max(self._session.limit, longest) + 1

    # --- what happens -------------------------------------------------------------------------

    def begin(self, link: Link, now: float) -> list[bytes]:
        """What to send first."""
        self._link = link
        adopted = self.adopted
        if adopted is None:
            return self._fill(now)
        part = self._agenda.take()
        assert part is not None
        self._launch(part, adopted.request_id, adopted.datagram, adopted.sent_at)
        if adopted.refused:
            self.refused()
        return [] if adopted.received is None else self.receive(adopted.received, now)

    def receive(self, datagram: bytes, now: float) -> list[bytes]:
        """Take a datagram; returns what to send because of it."""
        request_id = _codec.any_id(datagram)
        transfer = self._transfer
        if transfer is not None and request_id == transfer.request_id:
            return self._receive_segment(transfer, datagram, now)
        flight = self._flights.get(request_id) if request_id is not None else None
        if flight is None:
            self._session.counters.late += 1
            return []
        reply = _codec.parse_reply(datagram, flight.part.op)
        if reply is None:
            return []
        if reply.verdict in RETRYABLE:
            flight.verdict = reply.verdict
            self._leave(reply.verdict)
            if reply.pause:
                flight.due = now + after_hint(reply.pause)
            return []
        cookie = _seal.cookie_of(reply)
        if cookie is not None and flight.challenges < _seal.CHALLENGES_MAX:
            flight.challenges += 1
            self._seal.learn(cookie)
            flight.datagram = self._datagram(flight.part, flight.request_id)
            return self._wrapped([flight.datagram])
        del self._flights[reply.request_id]
        return self._accept(flight.part, reply, now)

    def expire(self, now: float) -> list[bytes]:
        """What to send again. Raises DeadlineError, or the last refusal, when patience is over."""
        if now >= self.patience.deadline:
            raise self._no_answer()
        again = []
        for flight in self._flights.values():
            if now >= flight.due and self._may_repeat(flight, now):
                again.append(flight.datagram)
        if self._transfer is not None:
            again += self._expire_transfer(self._transfer, now)
        return self._wrapped(again)

    def refused(self) -> None:
        """The server's machine says that nobody listens. Raises TransportError if others can be
        asked; otherwise somebody may listen again in time."""
        if not self.patience.alone:
            raise TransportError(f"{self._session.address.text}: nobody listens there")

    def oversized(self, length: int, now: float) -> None:
        """The kernel has not sent a datagram of this length, for the path is narrower."""
        if self.probe:
            return  # As good as lost.
        if self._session.path.refused(now):
            raise PathInDoubt(known=True)
        raise TransportError(
            f"a datagram of {length} bytes is too large for the path to "
            f"{self._session.address.text}: lower datagram_len_max"
        )

    def abandon(self) -> list[bytes]:
        """What to send when the answer is not wanted any more."""
        ended = self._end_transfer()
        return self._wrapped(ended) if ended else []

    # --- datagrams ----------------------------------------------------------------------------

    @property
    def _seal(self) -> Seal:
        assert self._link is not None
        return self._link.seal

    def _wrapped(self, datagrams: list[bytes]) -> list[bytes]:
        seal = self._seal
        return [seal.wrap(datagram) for datagram in datagrams]

    def _datagram(self, part: _PartT, request_id: int) -> bytes:
        return part.datagram(self._session.identity.target, request_id, self._seal.length)

    def _fill(self, now: float) -> list[bytes]:
        """Further parts, as many as may be under way: datagrams together, a long message alone."""
        assert self._link is not None
        out: list[bytes] = []
        limit = max(min(self._window, IN_FLIGHT_LEN_MAX // self._session.limit), 1)
        while self._transfer is None and len(self._flights) < limit:
            part = self._transfer_part or self._agenda.take()
            if part is None:
                break
            if part.segmented:
                self._transfer_part = part
                if not self._flights:
                    out += self._start_transfer(part, now)
                break
            request_id = self._link.request_id()
            datagram = self._datagram(part, request_id)
            self._launch(part, request_id, datagram, now)
            out.append(datagram)
        return self._wrapped(out)

    def _launch(self, part: _PartT, request_id: int, datagram: bytes, now: float) -> None:
        pacing = self._session.pacing
        backoff = Backoff(pacing)
        due = now + backoff.wait()
        self._flights[request_id] = _Flight(part, request_id, datagram, backoff, due)
        pacing.budget.deposit()
        counters = self._session.counters
        counters.sent += 1
        counters.probed += self.probe

    def _accept(self, part: _PartT, reply: Reply, now: float) -> list[bytes]:
        if self._agenda.of_model:
            self._session.identity.check(reply)
        self._agenda.accept(part, reply)
        if self.done:
            return []
        self.patience.renew(now)
        return self._fill(now)

    def _may_repeat(self, flight: _Flight[_PartT], now: float) -> bool:
        if flight.backoff.left == 0 or (self.probe and flight.repeats > 0):
            flight.due = _NEVER
            return False
        if flight.repeats >= _STALLED_AFTER and flight.part.may_be_longer(PAYLOAD_LEN_SURE):
            self._doubt(now)
        flight.due = now + flight.backoff.wait()
        if not self._session.pacing.budget.withdraw(now):
            self._session.counters.withheld += 1
            return False
        flight.backoff.left -= 1
        flight.repeats += 1
        self._session.counters.repeated += 1
        return True

    def _leave(self, verdict: int) -> None:
        """Raise the refusal of a server without room, when others can be asked at once."""
        if verdict in ELSEWHERE and not self.patience.alone:
            raise RefusedError(verdict)

    def _doubt(self, now: float) -> None:
        if not self.probe and self._session.path.may_be_narrower(now):
            raise PathInDoubt(known=False)

    def _no_answer(self) -> RefusedError | DeadlineError:
        """What to raise at the deadline: the last transient refusal, if there was one."""
        verdicts = [flight.verdict for flight in self._flights.values()]
        if self._transfer is not None:
            verdicts.append(self._transfer.verdict)
        refusal = next((verdict for verdict in verdicts if verdict != Verdict.OK), None)
        if refusal is not None:
            return RefusedError(refusal)
        timeout = self.patience.timeout
        return DeadlineError(f"no answer from {self._session.address.text} within {timeout:g} s")

    # --- long messages ------------------------------------------------------------------------

    def _start_transfer(self, part: _PartT, now: float) -> list[bytes]:
        assert self._link is not None
        target = self._session.identity.target
        self._transfer = Transfer(
            part.op,
            target,
            part.message(target),
            target.reply_len_max,
            self._link.request_id,
            self._session.pacing,
            self.patience,
            self._link.inlet,
        )
        self._link.inlet.transfers += 1
        flight = self._transfer.start(now)
        self._session.counters.sent += len(flight)
        return flight

    def _receive_segment(self, transfer: Transfer, datagram: bytes, now: float) -> list[bytes]:
        cookie = transfer.challenge(datagram)
        if cookie is not None:
            self._seal.learn(cookie)
        answers = transfer.receive(datagram, now)
        if transfer.reply is None:
            self._leave(transfer.verdict)
            return self._wrapped(answers)
        part, self._transfer_part = self._transfer_part, None
        assert part is not None
        ended = self._wrapped(self._end_transfer())
        return ended + self._accept(part, transfer.reply, now)

    def _end_transfer(self) -> list[bytes]:
        """What tells the server, if a long message is under way."""
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            return []
        assert self._link is not None
        self._link.inlet.transfers -= 1
        return [transfer.cancel()]

    def _expire_transfer(self, transfer: Transfer, now: float) -> list[bytes]:
        again = transfer.expire(now)
        counters = self._session.counters
        counters.repeated += bool(again)
        if again and transfer.quiet > _STALLED_AFTER:
            self._doubt(now)
        return again
