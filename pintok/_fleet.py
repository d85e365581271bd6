"""Several servers as one, without sockets: who is asked for what, when another one is, who is down.

A call is cut into shares, one for each server that is the first choice of some of its items. Each
share is a race: its servers are asked in their order, the next one when one has failed, or, with
hedging, also when one is late. Whatever is known of a share when a server fails stays known.

    race = state.races(question, patience)[n]
    while not race.done:
        while (name := race.next(now)) is not None:
            start race.steps(name, now)               # at that server
        wait for the first of them, until race.due
        race.won(name, result)   or   race.failed(name, error, now)
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from pintok._codec import Outcome
from pintok._conversation import Counters
from pintok._exchange import ItemBatch
from pintok._pacing import Patience, RetryBudget, jittered
from pintok._questions import Question
from pintok._session import Session, Steps
from pintok._wire import Verdict
from pintok.errors import ELSEWHERE, RefusedError, TransportError

_T = TypeVar("_T")

_KEY_LEN_MAX: Final = 4096
_DOWN_FIRST_S: Final = 1.0
_DOWN_MOST_S: Final = 30.0
# A server that was late so often in a row, without an answer in between, is taken for down.
_LATE_MAX: Final = 3


class Health:
    """Whether a server answers, as this client has seen it.

    One that has failed is asked last for a second, twice as long with each further failure, up to
    half a minute. After that one call tries it, while the others wait for what becomes of it.
    """

    __slots__ = ("_failures", "_lates", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._lates = 0
        self._until = 0.0

    def down(self, now: float) -> bool:
        return now < self._until

    def tried(self, now: float) -> None:
        """A call has begun there."""
        if self._failures > 0:
            self._wait(now)

    def answered(self) -> None:
        self._failures = self._lates = 0
        self._until = 0.0

    def failed(self, now: float) -> None:
        self._failures += 1
        self._wait(now)

    def late(self, now: float) -> None:
        """Another one had to be asked before it has answered."""
        self._lates += 1
        if self._lates >= _LATE_MAX:
            self._lates = 0
            self.failed(now)

    def _wait(self, now: float) -> None:
        seconds = min(_DOWN_FIRST_S * 2 ** (self._failures - 1), _DOWN_MOST_S)
        self._until = now + jittered(seconds)


@dataclasses.dataclass(slots=True)
class FleetCounters:
    """What a fleet has done; under threads these are approximate."""

    servers: dict[str, Counters]
    """Of each server."""
    hedged: int = 0
    """Times that a second server was asked because the first one was late."""
    withheld: int = 0
    """Times that the budget did not allow that."""
    moved: int = 0
    """Times that the next server was asked because one had failed."""


class Race(Generic[_T]):
    """One share of a call on its way through the servers."""

    __slots__ = (
        "_ask",
        "_asked_at",
        "_error",
        "_left",
        "_patience",
        "_result",
        "_running",
        "_state",
        "done",
    )

    def __init__(
        self,
        state: FleetState,
        order: Sequence[str],
        patience: Patience,
        ask: Callable[[Session, Patience], Steps[_T]],
    ) -> None:
        self._state = state
        self._left = list(order)
        self._patience = patience
        self._ask = ask
        self._asked_at = 0.0
        self._running: list[str] = []
        self._error: Exception | None = None
        self._result: list[_T] = []
        self.done = False

    @property
    def result(self) -> _T:
        return self._result[0]

    @property
    def _hedges(self) -> bool:
        """Whether another server is asked when the only one that runs is late."""
        hedge_after = self._state.hedge_after
        return hedge_after is not None and len(self._running) == 1 and bool(self._left)

    @property
    def due(self) -> float:
        """When `next` may have another server although nothing has happened."""
        hedge_after = self._state.hedge_after
        if hedge_after is None or not self._hedges:
            return float("inf")
        return self._asked_at + hedge_after

    def next(self, now: float) -> str | None:
        """The server to ask now, if one is."""
        if self.done or not self._left:
            return None
        if self._running:
            if not self._hedges or now < self.due:
                return None
            if not self._state.budget.withdraw(now):
                self._state.counters.withheld += 1
                self._asked_at = now  # Perhaps after as long again.
                return None
            self._state.healths[self._running[0]].late(now)
            self._state.counters.hedged += 1
        elif self._error is not None:
            self._state.counters.moved += 1
        else:
            self._state.budget.deposit()
        self._asked_at = now
        name = self._left.pop(0)
        self._running.append(name)
        self._state.healths[name].tried(now)
        return name

    def steps(self, name: str, now: float) -> Steps[_T]:
        """What to ask that server."""
        return self._ask(self._state.sessions[name], self.patience(now))

    def patience(self, now: float) -> Patience:
        """Of the server that was given last: its share of the time, or, with hedging, all of it."""
        hedged = self._state.hedge_after is not None
        return self._patience.share(now, len(self._left) + 1, hedged=hedged)

    def won(self, name: str, result: _T) -> None:
        """A server has answered. Raises RefusedError when it has another model than the others."""
        self._running.remove(name)
        self._state.healths[name].answered()
        self._state.check_model(name)
        self._result.append(result)
        self.done = True

    def failed(self, name: str, error: Exception, now: float) -> None:
        """A server has not; the error is raised when others would say the same, or none is left."""
        self._running.remove(name)
        if isinstance(error, TransportError):
            self._state.healths[name].failed(now)
        elif not isinstance(error, RefusedError) or error.verdict not in ELSEWHERE:
            self._state.healths[name].answered()
            raise error
        self._error = error
        if not self._left and not self._running:
            raise error


class FleetState:
    """What a fleet knows: its servers, which of them are down, and the model that all must have."""

    __slots__ = ("_tag", "budget", "counters", "healths", "hedge_after", "sessions")

    def __init__(self, sessions: dict[str, Session], hedge_after: float | None) -> None:
        """Raises ValueError for a time that cannot be."""
        if hedge_after is not None and hedge_after <= 0:
            raise ValueError("hedge_after must be positive")
        self.sessions = sessions
        share = next(iter(sessions.values())).settings.retry_share
        self.budget = RetryBudget(share, time.monotonic())
        """Of hedges: where all are late, asking everything twice would make them later."""
        self.hedge_after = hedge_after
        self.healths = {name: Health() for name in sessions}
        servers = {name: session.counters for name, session in sessions.items()}
        self.counters = FleetCounters(servers)
        self._tag: dict[str, int] = {}

    def order(self, key: bytes, now: float) -> list[str]:
        """All servers by rendezvous hashing of a key, those down at the end.

        Without a server, only the keys whose first choice it was move, and evenly to the others.
        """
        data = key[:_KEY_LEN_MAX]

        def weight(name: str) -> bytes:
            return hashlib.blake2b(data, digest_size=8, key=name.encode()[:64]).digest()

        return self._up_first(sorted(self.sessions, key=weight, reverse=True), now)

    def _up_first(self, names: Sequence[str], now: float) -> list[str]:
        return sorted(names, key=lambda name: self.healths[name].down(now))

    @property
    def tag(self) -> int | None:
        """Of the model that answered first."""
        return self._tag.get("tag")

    def check_model(self, name: str) -> None:
        """Raises RefusedError (model_changed) when a server has another model than the others."""
        tag = self.sessions[name].identity.tag
        if tag is not None and self._tag.setdefault("tag", tag) != tag:
            raise RefusedError(
                Verdict.MODEL_CHANGED,
                detail=f"{name} has another model than the others; accept_model() goes on with it",
            )

    def accept_model(self) -> None:
        for session in self.sessions.values():
            session.identity.forget()
        self._tag = {}

    def patience(self) -> Patience:
        """Of a call that begins now."""
        return next(iter(self.sessions.values())).patience()

    def race(self, ask: Callable[[Session, Patience], Steps[_T]]) -> Race[_T]:
        """For what any server can say."""
        return Race(
            self, self._up_first(list(self.sessions), time.monotonic()), self.patience(), ask
        )

    def race_for(self, key: bytes, ask: Callable[[Session, Patience], Steps[_T]]) -> Race[_T]:
        """For one item, by the servers' order for it."""
        return Race(self, self.order(key, time.monotonic()), self.patience(), ask)

    def races(self, question: Question[Any], outcomes: list[Outcome | None]) -> list[Race[None]]:
        """The shares of a question; their outcomes go into their places."""
        now = time.monotonic()
        orders: dict[str, list[str]] = {}
        batches: dict[str, list[ItemBatch]] = {}
        for batch in question.batches:
            indices: dict[str, list[int]] = {}
            for index, item in enumerate(batch.items):
                order = self.order(item.data, now)
                orders.setdefault(order[0], order)
                indices.setdefault(order[0], []).append(index)
            for name, chosen in indices.items():
                batches.setdefault(name, []).append(batch.pick(chosen))
        races = []
        for name, parts in batches.items():
            share = dataclasses.replace(question, batches=tuple(parts))
            patience = self.patience()

            def ask(
                session: Session, patience: Patience, share: Question[Any] = share
            ) -> Steps[None]:
                return session.fill(share, outcomes, patience)

            races.append(Race(self, orders[name], patience, ask))
        return races


class SeveralServers:
    """What `Fleet` and `AsyncFleet` tell of their servers."""

    __slots__ = ("_state",)

    def __init__(self, sessions: dict[str, Session], hedge_after: float | None) -> None:
        self._state = FleetState(sessions, hedge_after)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._state.sessions)!r})"

    def order(self, key: str | bytes) -> list[str]:
        """The servers in the order in which they are asked for this text, those down at the end."""
        data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        return self._state.order(data, time.monotonic())

    @property
    def model_tag(self) -> int | None:
        """The tag of the model that answered first; None before that."""
        return self._state.tag

    def accept_model(self) -> None:
        """After a `model_changed` refusal: go on with the model that the servers hold now."""
        self._state.accept_model()

    @property
    def counters(self) -> FleetCounters:
        """How often servers were changed, and what was sent to each."""
        return self._state.counters


def different(servers: Iterable[str]) -> list[str]:
    """The servers. Raises ValueError unless they differ and there is at least one."""
    names = list(servers)
    if not names or len(set(names)) != len(names):
        raise ValueError("servers must be different, and at least one")
    return names
