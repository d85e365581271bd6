"""The asyncio client of a PinTok server.

    async with AsyncClient("127.0.0.1") as client:
        ids = await client.encode("Hello, world!")

One connected socket; any number of calls at a time, told apart by request id. It speaks exactly as
`pintok.Client` does; arguments, results and errors are the same. A call that is cancelled leaves
nothing behind: what still comes for it is dropped and counted.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

from pintok import _codec, _path, _wire
from pintok._calls import AsyncCalls
from pintok._conversation import Conversation
from pintok._pacing import Patience
from pintok._questions import Question
from pintok._seal import Key, Seal
from pintok._session import OneServer, Session, Settings, Steps
from pintok._transfer import Inlet
from pintok.errors import TransportError

_T = TypeVar("_T")

# Datagrams taken in one turn of the event loop: others want theirs, too.
_BURST_MAX: Final = 64


class _Talk:
    """A conversation on its way, as the link sees it: its requests, its timer, who waits for it."""

    __slots__ = ("_due", "_link", "_timer", "conversation", "ended", "ids", "inlet", "seal")

    def __init__(self, link: _Link, conversation: Conversation[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._link = link
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.conversation = conversation
        self.seal = link.seal
        self.inlet = link.inlet
        self.ids: list[int] = []
        self.ended: asyncio.Future[None] = loop.create_future()

    def request_id(self) -> int:
        """The next one of the socket; what answers it comes here."""
        request_id = self._link.request_id()
        self.ids.append(request_id)
        self._link.talks[request_id] = self
        return request_id

    async def carry(self) -> None:
        """To its end. Raises what the conversation raises."""
        try:
            self._step(lambda now: self.conversation.begin(self, now))
            await self.ended
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for request_id in self.ids:
                self._link.talks.pop(request_id, None)
            if not self.conversation.done:
                self._link.send(self.conversation.abandon(), None)

    def receive(self, datagram: bytes) -> None:
        """What has come for one of its requests."""
        self._step(lambda now: self.conversation.receive(datagram, now))

    def refused(self) -> None:
        """Nobody listens at the server."""

        def tell(_: float) -> list[bytes]:
            self.conversation.refused()
            return []

        self._step(tell)

    def fail(self, error: Exception) -> None:
        """It ends with this."""
        if not self.ended.done():
            self.ended.set_exception(error)

    def _expire(self) -> None:
        self._timer = None
        self._step(lambda now: [])

    def _step(self, happens: Callable[[float], list[bytes]]) -> None:
        conversation = self.conversation
        if self.ended.done():
            return
        try:
            self._link.send(happens(time.monotonic()), conversation)
            now = time.monotonic()
            if not conversation.done and now >= conversation.due:
                self._link.send(conversation.expire(now), conversation)
        except Exception as error:
            self.fail(error)
            return
        if conversation.done:
            self.ended.set_result(None)
            return
        due = conversation.due
        if self._timer is None or due != self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(due - time.monotonic(), 0.0), self._expire)


class _Link:
    """One connected socket and the conversations under way on it, in one event loop."""

    def __init__(self, session: Session, *, probe: bool = False) -> None:
        """Raises TransportError."""
        self._session = session
        self._sock = _path.open_socket(session.address, probe=probe)
        self._sock.setblocking(False)
        self.inlet = Inlet(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        self._backlog: collections.deque[bytes] = collections.deque()
        self._last_id = random.SystemRandom().getrandbits(64)
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.seal = Seal(session.settings.key)
        self.talks: dict[int, _Talk] = {}
        self.loop.add_reader(self._sock.fileno(), self._readable)

    def request_id(self) -> int:
        self._last_id = (self._last_id + 1) & 0xFFFFFFFFFFFFFFFF
        return self._last_id

    def close(self, why: str) -> None:
        """Ends the conversations with TransportError."""
        if not self.loop.is_closed() and self._sock.fileno() >= 0:
            self.loop.remove_reader(self._sock.fileno())
            self.loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for talk in set(self.talks.values()):
            talk.fail(TransportError(why))

    def send(self, datagrams: Sequence[bytes], conversation: Conversation[Any] | None) -> None:
        """Send now, or, when the kernel's buffer is full, as soon as it is not."""
        for datagram in datagrams:
            if self._backlog:
                self._backlog.append(datagram)
                continue
            try:
                self._sock.send(datagram)
            except BlockingIOError:
                self._backlog.append(datagram)
                self.loop.add_writer(self._sock.fileno(), self._writable)
            except ConnectionRefusedError:
                # The answer to an earlier datagram; this one counts as lost and is repeated.
                if conversation is not None:
                    conversation.refused()
            except OSError as error:
                if conversation is None:
                    return
                if error.errno != errno.EMSGSIZE:
                    raise TransportError(f"{self._session.address.text}: {error}") from None
                conversation.oversized(len(datagram), time.monotonic())

    def _writable(self) -> None:
        while self._backlog:
            try:
                self._sock.send(self._backlog[0])
            except BlockingIOError:
                return
            except OSError:
                pass  # As good as lost.
            self._backlog.popleft()
        self.loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        """All that is there; what answers nothing under way is counted and dropped."""
        for _ in range(_BURST_MAX):
            try:
                datagram = self._sock.recv(_path.PAYLOAD_LEN_MAX + 1)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                for talk in set(self.talks.values()):
                    talk.refused()
                continue
            except OSError as error:
                for talk in set(self.talks.values()):
                    talk.fail(TransportError(f"{self._session.address.text}: {error}"))
                return
            request_id = _codec.any_id(datagram)
            found = self.talks.get(request_id) if request_id is not None else None
            if found is None:
                self._session.counters.late += 1
            else:
                found.receive(datagram)


class AsyncClient(OneServer, AsyncCalls):
    """Talks to one model of one server from one event loop; any number of calls at a time.

    Methods raise `RefusedError` with the server's verdict, `DeadlineError` when no answer came in
    time, and `TransportError` for what the network or a foreign server does wrong.
    """

    __slots__ = ("_link",)

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = _wire.WIRE_PORT,
        *,
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
        """Keep the settings, which are those of `pintok.Client`; the first call opens the socket.

        A host name is resolved here, blocking: give an address where that matters.
        """
        super().__init__(
            host,
            port,
            Settings(
                model=model,
                timeout=timeout,
                retries=retries,
                retry_after=retry_after,
                retry_share=retry_share,
                window=window,
                datagram_len_max=datagram_len_max,
                checksum=checksum,
                key=key,
            ),
        )
        self._link: _Link | None = None

    async def close(self) -> None:
        """Close the socket; calls under way end with TransportError."""
        link, self._link = self._link, None
        if link is not None:
            link.close("the client was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- this server --------------------------------------------------------------------------

    async def ping(self, *, datagram_len: int = _codec.HEADER_LEN) -> float:
        """The round-trip time in seconds of a datagram of this length.

        A lost one is repeated like any request, and the time then counts from the first.
        """
        return await self._ask(lambda session, patience: session.ping(datagram_len, patience))

    async def probe_path(self, *, datagram_len_max: int = _path.PAYLOAD_LEN_JUMBO) -> int:
        """Find the largest UDP payload up to `datagram_len_max` that travels both ways, and use it.

        Exact to eight bytes, by padded pings one after another, each waited for at most five times
        `retry_after`; what the client finds out by itself is one of the usual lengths. Returns the
        length, which becomes the client's. Raises DeadlineError when not even the smallest is
        answered.
        """
        return await self._ask(
            lambda session, patience: session.probe_path(datagram_len_max, patience)
        )

    # --- inside -------------------------------------------------------------------------------

    async def _answer(self, question: Question[_T]) -> _T:
        session = self._session
        return await self._run(session.answer(question, session.patience()))

    async def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        return await self._run(ask(self._session, self._session.patience()))

    async def _run(self, steps: Steps[_T]) -> _T:
        """The steps, one conversation after another."""
        error: Exception | None = None
        while True:
            try:
                conversation = next(steps) if error is None else steps.throw(error)
            except StopIteration as stop:
                result: _T = stop.value
                return result
            error = None
            try:
                await self._talk(conversation)
            except Exception as raised:
                error = raised

    async def _talk(self, conversation: Conversation[Any]) -> None:
        if not conversation.probe:
            await _Talk(self._open_link(), conversation).carry()
            return
        link = _Link(self._session, probe=True)
        try:
            await _Talk(link, conversation).carry()
        finally:
            link.close("the path was probed")

    def _open_link(self) -> _Link:
        """The socket of this event loop. In a child of fork() it is a new one: the parent's, and
        whatever waits for it, is the parent's alone, and is left as it is."""
        link = self._link
        if link is not None and link.pid == os.getpid() and link.loop.is_closed():
            link.close("its event loop was closed")
            link = None
        if link is None or link.pid != os.getpid() or link.loop is not asyncio.get_running_loop():
            link = self._link = _Link(self._session)
        return link
