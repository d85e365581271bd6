"""What a client knows of one server, and everything it can ask of it, as steps without a socket.

A step is a `Conversation`; whoever takes the steps carries it to its end, blocking or not, and
throws into them what it raised:

    steps = session.info(patience)
    conversation = next(steps)            # StopIteration has the result
    ...                                   # carry the conversation
    steps.send(None)   or   steps.throw(error)

The blocking client and the asyncio client, alone and in fleets, differ in nothing but that.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from pintok import _codec, _questions, _seal, _wire
from pintok._codec import FileSettings, ModelInfo, Outcome, Reply, Target
from pintok._conversation import Adopted, Conversation, Counters, PathInDoubt
from pintok._exchange import Exchange
from pintok._model import Identity, ModelSearch
from pintok._options import SOURCE_TIKTOKEN
from pintok._pacing import Pacing, Patience, RetryBudget
from pintok._path import PAYLOAD_LEN_MAX, Address, PathSearch, PathState, resolve
from pintok._questions import Question
from pintok._seal import Key
from pintok._wire import Verdict, WireOp
from pintok.errors import RefusedError, TransportError

_T = TypeVar("_T")
Steps = Generator[Conversation[Any], None, _T]

# Datagrams' worth of text that make it worth asking whether the path carries longer ones.
_WORTH_ASKING: Final = 4
# How long a ping of the path may take, in first waits of a repetition; and in seconds, where
# nobody has asked for the ping.
_PING_WAITS: Final = 5
_PING_SECONDS_MAX: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a client that are the same for every server. Raises ValueError."""

    model: int | str
    timeout: float
    retries: int
    retry_after: float
    retry_share: float
    window: int
    datagram_len_max: int | None
    checksum: bool
    key: Key | None

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retry_after <= 0 or self.retries < 0 or self.window < 1:
            raise ValueError(
                "timeout, retry_after and window are positive, retries is not negative"
            )
        if not 0 <= self.retry_share <= 1:
            raise ValueError(f"retry_share must be 0 ... 1, not {self.retry_share}")
        if self.datagram_len_max is not None:
            PathSearch(self.datagram_len_max)


class Single:
    """One message whose answer is taken as it is: info, settings, ping."""

    __slots__ = ("_build", "_op", "_taken", "of_model", "reply")

    segmented = False

    def __init__(
        self, op: WireOp, build: Callable[[Target, int, int], bytes], *, of_model: bool = False
    ) -> None:
        """`build` gets target, request id, and the bytes that a seal will add."""
        self._op = op
        self._build = build
        self._taken = False
        self.of_model = of_model
        self.reply: Reply | None = None

    @property
    def op(self) -> WireOp:
        return self._op

    def may_be_longer(self, length: int) -> bool:
        return False

    def datagram(self, target: Target, request_id: int, sealed_len: int = 0) -> bytes:
        return self._build(target, request_id, sealed_len)

    def message(self, target: Target) -> bytes:
        return self._build(target, 0, 0)[_codec.HEADER_LEN :]

    def take(self) -> Single | None:
        taken, self._taken = self._taken, True
        return None if taken else self

    def accept(self, part: Single, reply: Reply) -> None:
        self.reply = reply

    @property
    def unanswered(self) -> int:
        return int(self.reply is None)


class Ping(Single):
    """A ping that is so long when it is sent, cookie and code included."""

    __slots__ = ("datagram_len",)

    def __init__(self, datagram_len: int, *, checksum: bool) -> None:
        def build(_: Target, request_id: int, sealed_len: int) -> bytes:
            message = bytes(max(datagram_len - _codec.HEADER_LEN - sealed_len, 0))
            return _codec.build_message(WireOp.PING, Target(checksum=checksum), request_id, message)

        super().__init__(WireOp.PING, build)
        self.datagram_len = datagram_len


class PathPings:
    """Pings of several lengths at once: done when the longest has come back, or time is over."""

    __slots__ = ("_waiting", "longest", "passed")

    of_model = False

    def __init__(self, lens: list[int], *, checksum: bool) -> None:
        self._waiting = [Ping(length, checksum=checksum) for length in sorted(lens)]
        self.longest = max(lens)
        self.passed = 0

    def take(self) -> Ping | None:
        return self._waiting.pop() if self._waiting else None

    def accept(self, part: Ping, reply: Reply) -> None:
        if reply.verdict == Verdict.OK:
            self.passed = max(self.passed, part.datagram_len)

    @property
    def unanswered(self) -> int:
        return int(self.passed < self.longest)


class Session:
    """One server as one client knows it; shared by all calls of that client."""

    __slots__ = ("address", "counters", "identity", "pacing", "path", "settings")

    def __init__(self, host: str, port: int, settings: Settings) -> None:
        """Raises TransportError for a host without an address; nothing is sent."""
        self.identity = Identity(settings.model, 0, settings.checksum)
        self.address: Address = resolve(host, port)
        self.settings = settings
        budget = RetryBudget(settings.retry_share, time.monotonic())
        self.pacing = Pacing(settings.retries, settings.retry_after, budget)
        self.path = PathState(self.address, settings.datagram_len_max)
        self.counters = Counters()
        self.identity.limit(self.limit)

    def patience(self) -> Patience:
        """Of a call that begins now."""
        return Patience(self.settings.timeout, time.monotonic())

    @property
    def limit(self) -> int:
        """Bytes of a datagram without cookie and code, for which room is left."""
        return self.path.datagram_len_max - _seal.room_of(self.settings.key)

    # --- questions ----------------------------------------------------------------------------

    def answer(self, question: Question[_T], patience: Patience) -> Steps[_T]:
        """The result of a question."""
        outcomes: list[Outcome | None] = [None] * question.total
        yield from self.fill(question, outcomes, patience)
        return question.finish([_questions.present(outcome) for outcome in outcomes])

    def fill(
        self,
        question: Question[Any],
        outcomes: list[Outcome | None],
        patience: Patience,
        adopted: Adopted | None = None,
    ) -> Steps[None]:
        """The outcomes that are missing, each into its place.

        `adopted` is a first datagram that was sent already, of the only item.
        """
        yield from self.resolve(patience)
        batches = question.batches
        if question.strange:
            joins = (yield from self.info(patience)).source == SOURCE_TIKTOKEN
            batches = tuple(
                _questions.settled(batch, outcomes, joins=joins, each=question.each)
                for batch in batches
            )
        if question.data_len > _WORTH_ASKING * self.limit:
            yield from self._ping_path(self.path.longer(time.monotonic()), patience)
        for batch in batches:
            exchange = Exchange(batch, outcomes, self.limit, each=question.each)
            while exchange.unanswered:
                window = self.settings.window
                conversation = Conversation(
                    exchange, self, patience, window=window, adopted=adopted
                )
                adopted = None
                try:
                    yield conversation
                except PathInDoubt as doubt:
                    now = time.monotonic()
                    if not doubt.known:
                        yield from self._ping_path(self.path.suspects(now), patience)
                    self.identity.limit(self.limit)
                    exchange = Exchange(batch, outcomes, self.limit, each=question.each)

    def info(self, patience: Patience) -> Steps[ModelInfo]:
        """What the server says about the client's model."""
        yield from self.resolve(patience)
        reply = yield from self._ask_info(self.identity.target.model_id, patience)
        self.identity.check(reply)
        return _codec.parse_info(_answered(reply))

    def file_settings(self, patience: Patience) -> Steps[FileSettings]:
        """What the model's own file sets."""
        yield from self.resolve(patience)

        def build(target: Target, request_id: int, _: int) -> bytes:
            return _codec.build_settings(target, request_id)

        reply = yield from self._ask(Single(WireOp.SETTINGS, build, of_model=True), patience)
        return _codec.parse_settings(_answered(reply))

    def models(self, patience: Patience) -> Steps[list[ModelInfo]]:
        """Every model of the server, by slot."""
        return (yield from self._search(patience)).found

    def resolve(self, patience: Patience) -> Steps[None]:
        """Look up the model's name if that has not been done."""
        identity = self.identity
        if identity.known or identity.name is None:
            return
        info = (yield from self._search(patience)).choose(identity.name)
        identity.resolve(info.model_id, info.tag)

    def _search(self, patience: Patience) -> Steps[ModelSearch]:
        search = ModelSearch()
        while (model_id := search.next_id) is not None:
            search.accept((yield from self._ask_info(model_id, patience)))
        return search

    def _ask_info(self, model_id: int, patience: Patience) -> Steps[Reply]:
        def build(target: Target, request_id: int, _: int) -> bytes:
            asked = dataclasses.replace(
                target, model_id=model_id, model_tag=_wire.WIRE_ANY_MODEL_TAG
            )
            return _codec.build_info(asked, request_id)

        return (yield from self._ask(Single(WireOp.INFO, build), patience))

    def _ask(self, single: Single, patience: Patience, *, probe: bool = False) -> Steps[Reply]:
        yield Conversation(single, self, patience, probe=probe)
        return _questions.present(single.reply)

    # --- the path -----------------------------------------------------------------------------

    def ping(self, datagram_len: int, patience: Patience) -> Steps[float]:
        """The round-trip time of a datagram of this length, in seconds."""
        if not _codec.HEADER_LEN <= datagram_len <= PAYLOAD_LEN_MAX:
            raise ValueError(f"datagram_len must be 32 ... 65507, not {datagram_len}")
        begin = time.perf_counter()
        reply = yield from self._ask(Ping(datagram_len, checksum=self.settings.checksum), patience)
        _answered(reply)
        return time.perf_counter() - begin

    def probe_path(self, datagram_len_max: int, patience: Patience) -> Steps[int]:
        """The longest UDP payload that travels both ways, to within eight bytes; it is used."""
        search = PathSearch(datagram_len_max)
        yield from self.ping(search.low, patience)
        while (datagram_len := search.next_len) is not None:
            search.accept(datagram_len, (yield from self._passes([datagram_len])) > 0)
        self.path.passed(search.low, time.monotonic())
        self.identity.limit(self.limit)
        return search.low

    def _ping_path(self, lens: list[int], patience: Patience) -> Steps[None]:
        """Use the longest of these that travels both ways, if any does; none at all: do nothing."""
        if lens:
            passed = yield from self._passes(lens, patience)
            if passed:
                self.path.passed(passed, time.monotonic())
        self.identity.limit(self.limit)

    def _passes(self, lens: list[int], patience: Patience | None = None) -> Steps[int]:
        """The longest of these lengths that is answered, whatever the kernel thinks; 0 if none."""
        pings = PathPings(lens, checksum=self.settings.checksum)
        now = time.monotonic()
        seconds = _PING_WAITS * self.settings.retry_after
        if patience is None:
            limited = Patience(seconds, now)
        else:
            limited = patience.limited(now, min(seconds, _PING_SECONDS_MAX))
        try:
            yield Conversation(pings, self, limited, window=len(lens), probe=True)
        except (TransportError, RefusedError):
            pass  # What was answered before is known all the same.
        return pings.passed


class OneServer:
    """What `Client` and `AsyncClient` tell of their server."""

    __slots__ = ("_session", "address")

    def __init__(self, host: str, port: int, settings: Settings) -> None:
        self._session = Session(host, port, settings)
        self.address = self._session.address

    def __repr__(self) -> str:
        model = self._session.identity.model
        return f"{type(self).__name__}({self.address.text!r}, model={model!r})"

    @property
    def datagram_len_max(self) -> int:
        """Largest UDP payload that this client sends and accepts, in bytes."""
        return self._session.path.datagram_len_max

    @property
    def model_tag(self) -> int | None:
        """The tag of the model that answered first; None before that."""
        return self._session.identity.tag

    def accept_model(self) -> None:
        """After a `model_changed` refusal: go on with the model that the server holds now."""
        self._session.identity.forget()

    @property
    def counters(self) -> Counters:
        """What this client has sent, repeated and dropped so far."""
        return self._session.counters


def _answered(reply: Reply) -> Reply:
    if reply.verdict != Verdict.OK:
        raise RefusedError(reply.verdict)
    return reply
