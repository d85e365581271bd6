"""Several PinTok servers as one: rendezvous hashing, failing over, hedging.

    with Fleet(["10.0.0.7", "10.0.0.8:7265"], hedge_after=0.02) as fleet:
        ids = fleet.encode("Hello, world!")
    async with AsyncFleet(["10.0.0.7", "10.0.0.8:7265"]) as fleet:
        batch = await fleet.encode_batch(texts)

The same text goes to the same server as long as that answers, so its caches are warm; a batch is
split among all of them. When one does not answer, the next one in the text's own order is asked
within the same time; at once, when it refuses with `busy` or `rate_limited`, or has closed its port
as one does that was drained. One that did not answer is then asked last for a while, which doubles
with each failure, and one call tries it again after that.

All servers must hold the same model. The first answer decides which; another is refused by name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Self, TypeVar

from pintok import _questions
from pintok._calls import AsyncCalls, BlockingCalls
from pintok._codec import Outcome
from pintok._fleet import Race, SeveralServers, different
from pintok._pacing import Patience
from pintok._path import parse_server
from pintok._questions import Question, present
from pintok._seal import Key
from pintok._session import Session, Steps
from pintok.aclient import AsyncClient
from pintok.client import Client, Strand
from pintok.encoding import Ids

_T = TypeVar("_T")

_WAIT_MOST_MS: Final = 60_000


@dataclasses.dataclass(slots=True, eq=False)
class _Runner(Generic[_T]):
    """A race at one of its servers."""

    race: Race[_T]
    name: str
    strand: Strand[_T]


class Fleet(SeveralServers, BlockingCalls):
    """Thread-safe, blocking; no threads of its own, and safe in a child of fork().

    With `hedge_after`, a second server is asked as well when the first has not answered in so many
    seconds, and the earlier answer counts: requests are idempotent, so the other one is only work.
    In the long run that happens for no more than `retry_share` of the calls.
    """

    __slots__ = ("_clients",)

    def __init__(
        self,
        servers: Sequence[str],
        *,
        hedge_after: float | None = None,
        model: int | str = 0,
        timeout: float = 5.0,
        retries: int = 8,
        retry_after: float = 0.05,
        retry_share: float = 0.2,
        window: int = 32,
        datagram_len_max: int | None = None,
        checksum: bool = False,
        key: Key | None = None,
    ) -> None:
        """`servers` are `HOST`, `HOST:PORT` or `[IPV6]:PORT`; the others as `Client` takes them.

        `timeout` bounds a call however many servers it asks: without hedging each of them has an
        equal part of what is left. Nothing is sent yet.
        """
        self._clients = {
            name: Client(
                *parse_server(name),
                model=model,
                timeout=timeout,
                retries=retries,
                retry_after=retry_after,
                retry_share=retry_share,
                window=window,
                datagram_len_max=datagram_len_max,
                checksum=checksum,
                key=key,
            )
            for name in different(servers)
        }
        sessions = {name: client._session for name, client in self._clients.items()}
        super().__init__(sessions, hedge_after)

    # --- life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every client."""
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- these servers ------------------------------------------------------------------------

    @property
    def clients(self) -> dict[str, Client]:
        """The client of each server, for what concerns that one: `ping`, `probe_path`."""
        return dict(self._clients)

    # --- inside -------------------------------------------------------------------------------

    def _answer(self, question: Question[_T]) -> _T:
        outcomes: list[Outcome | None] = [None] * question.total
        self._run(self._state.races(question, outcomes))
        return question.finish([present(outcome) for outcome in outcomes])

    def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        race = self._state.race(ask)
        self._run([race])
        return race.result

    def _encode_one(self, text: str | bytes, options: int) -> Ids:
        """Without hedging one server at a time is waited for: straight through its client."""
        if self._state.hedge_after is not None:
            return super()._encode_one(text, options)
        question = _questions.encode(text, None, options, None)
        key = question.batches[0].items[0].data
        race = self._state.race_for(key, lambda session, within: session.answer(question, within))
        while not race.done:
            name = race.next(now := time.monotonic())
            assert name is not None  # `failed` raises when none is left.
            try:
                ids = self._clients[name]._encode_within(text, options, race.patience(now))
            except Exception as error:
                race.failed(name, error, time.monotonic())
            else:
                race.won(name, ids)
        return race.result

    def _run(self, races: Sequence[Race[Any]]) -> None:
        """All races at a time, to their ends. The first error ends them all."""
        runners: list[_Runner[Any]] = []
        try:
            while not all(race.done for race in races):
                for race in races:
                    self._start(race, runners)
                for runner in self._ready(races, runners):
                    self._advance(runner, runners)
        finally:
            for runner in runners:
                runner.strand.abandon(keep=False)

    def _start(self, race: Race[Any], runners: list[_Runner[Any]]) -> None:
        """Ask those servers that are to be asked now."""
        while (name := race.next(now := time.monotonic())) is not None:
            try:
                strand = Strand(self._clients[name], race.steps(name, now))
            except Exception as error:
                race.failed(name, error, time.monotonic())
                continue
            runner = _Runner(race, name, strand)
            runners.append(runner)
            if strand.done:
                self._finish(runner, runners)

    def _ready(
        self, races: Sequence[Race[Any]], runners: Sequence[_Runner[Any]]
    ) -> list[_Runner[Any]]:
        """Wait until a datagram has come, or something is due; the runners to go on with."""
        if not runners:
            return []
        due = min(
            min(runner.strand.due for runner in runners),
            min(race.due for race in races if not race.done),
        )
        wait_ms = min(max(due - time.monotonic(), 0.0) * 1000, _WAIT_MOST_MS)
        poll = select.poll()
        sockets = {runner.strand.sock.fileno(): runner for runner in runners}
        for number in sockets:
            poll.register(number, select.POLLIN)
        ready = {number for number, _ in poll.poll(wait_ms + 0.5)}
        now = time.monotonic()
        return [
            runner
            for number, runner in sockets.items()
            if number in ready or runner.strand.due <= now
        ]

    def _advance(self, runner: _Runner[Any], runners: list[_Runner[Any]]) -> None:
        if runner not in runners:
            return  # Its race was decided a moment ago.
        try:
            runner.strand.take()
        except Exception as error:
            runners.remove(runner)
            runner.race.failed(runner.name, error, time.monotonic())
            return
        if runner.strand.done:
            self._finish(runner, runners)

    def _finish(self, runner: _Runner[Any], runners: list[_Runner[Any]]) -> None:
        """It has the answer: the others in its race are not wanted any more."""
        runners.remove(runner)
        runner.race.won(runner.name, runner.strand.result)
        for other in [other for other in runners if other.race is runner.race]:
            runners.remove(other)
            other.strand.abandon(keep=True)


class AsyncFleet(SeveralServers, AsyncCalls):
    """As `Fleet`, for one event loop; any number of calls at a time.

    With `hedge_after`, a second server is asked as well when the first has not answered in so many
    seconds, and the earlier answer counts: requests are idempotent, so the other one is only work.
    In the long run that happens for no more than `retry_share` of the calls.
    """

    __slots__ = ("_clients",)

    def __init__(
        self,
        servers: Sequence[str],
        *,
        hedge_after: float | None = None,
        model: int | str = 0,
        timeout: float = 5.0,
        retries: int = 8,
        retry_after: float = 0.05,
        retry_share: float = 0.2,
        window: int = 32,
        datagram_len_max: int | None = None,
        checksum: bool = False,
        key: Key | None = None,
    ) -> None:
        """`servers` are `HOST`, `HOST:PORT` or `[IPV6]:PORT`; the others as `Client` takes them.

        `timeout` bounds a call however many servers it asks: without hedging each of them has an
        equal part of what is left. Nothing is sent yet. Host names are resolved here, blocking.
        """
        self._clients = {
            name: AsyncClient(
                *parse_server(name),
                model=model,
                timeout=timeout,
                retries=retries,
                retry_after=retry_after,
                retry_share=retry_share,
                window=window,
                datagram_len_max=datagram_len_max,
                checksum=checksum,
                key=key,
            )
            for name in different(servers)
        }
        sessions = {name: client._session for name, client in self._clients.items()}
        super().__init__(sessions, hedge_after)

    async def close(self) -> None:
        """Close every client."""
        for client in self._clients.values():
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- these servers ------------------------------------------------------------------------

    @property
    def clients(self) -> dict[str, AsyncClient]:
        """The client of each server, for what concerns that one: `ping`, `probe_path`."""
        return dict(self._clients)

    # --- inside -------------------------------------------------------------------------------

    async def _answer(self, question: Question[_T]) -> _T:
        outcomes: list[Outcome | None] = [None] * question.total
        races = self._state.races(question, outcomes)
        if len(races) == 1:
            await self._run(races[0])
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    for race in races:
                        group.create_task(self._run(race))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return question.finish([present(outcome) for outcome in outcomes])

    async def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        race = self._state.race(ask)
        await self._run(race)
        return race.result

    async def _run(self, race: Race[Any]) -> None:
        """A race to its end; what still runs then is cancelled."""
        tasks: dict[asyncio.Task[Any], str] = {}
        try:
            while not race.done:
                while (name := race.next(now := time.monotonic())) is not None:
                    steps = race.steps(name, now)
                    tasks[asyncio.create_task(self._clients[name]._run(steps))] = name
                wait = None if race.due == float("inf") else max(race.due - time.monotonic(), 0.0)
                done, _ = await asyncio.wait(
                    tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    self._settle(race, tasks.pop(task), task)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _settle(self, race: Race[Any], name: str, task: asyncio.Task[Any]) -> None:
        error = task.exception()
        if race.done:
            return  # The other one was there in the same moment.
        if error is None:
            race.won(name, task.result())
        elif isinstance(error, Exception):
            race.failed(name, error, time.monotonic())
        else:
            raise error
