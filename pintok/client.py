"""The synchronous client of a PinTok server.

    >>> from pintok import Client
    >>> with Client("127.0.0.1") as client:           # doctest: +SKIP
    ...     ids = client.encode("Hello, world!")
    ...     text = client.decode(ids)

One request is one datagram and its answer another, and nothing is kept between them; what is longer
travels in segments, in the same call. The client adds a system call each way and no thread, lock or
event loop. Each concurrent call has a socket of its own out of a pool, so a client may be shared by
threads, and a child of fork() gets fresh ones, with numbers and sequences of its own.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Self, TypeVar

from pintok import _codec, _path, _questions, _wire
from pintok._calls import BlockingCalls
from pintok._codec import Outcome
from pintok._conversation import Adopted, Conversation, PathInDoubt
from pintok._options import utf8
from pintok._pacing import Patience
from pintok._questions import Question
from pintok._seal import Key, Seal
from pintok._session import OneServer, Session, Settings, Steps
from pintok._transfer import Inlet
from pintok._wire import Verdict, WireOp
from pintok.encoding import Ids
from pintok.errors import DeadlineError, RefusedError, TransportError

_T = TypeVar("_T")

_POOL_MAX: Final = 64
_TIMEVAL: Final = struct.Struct("@ll")
# Datagrams that are read, one by one, before what is due is done in spite of them.
_OVERDUE_MAX: Final = 64
# What ends a conversation and says nothing against its socket.
_HARMLESS: Final = (DeadlineError, PathInDoubt, RefusedError)


class Channel:
    """One connected socket; used by one conversation at a time."""

    __slots__ = ("inlet", "last_id", "probe", "seal", "sock", "wait")

    def __init__(self, address: _path.Address, key: Key | None, *, probe: bool) -> None:
        """Raises TransportError. A probe's datagrams may be longer than the kernel likes."""
        self.sock = _path.open_socket(address, probe=probe)
        self.probe = probe
        self.seal = Seal(key)
        self.inlet = Inlet(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        self.last_id = random.SystemRandom().getrandbits(64)
        self.wait = 0.0

    def request_id(self) -> int:
        """The next one; the first is random."""
        self.last_id = (self.last_id + 1) & 0xFFFFFFFFFFFFFFFF
        return self.last_id

    def set_wait(self, seconds: float) -> None:
        """Bound the next receive. A call only when it changes: the kernel keeps it."""
        seconds = max(seconds, 0.001)
        # A few per cent do not matter and would cost a system call each time.
        if not 0.8 * seconds <= self.wait <= 1.2 * seconds:
            whole = int(seconds)
            self.sock.setsockopt(
                socket.SOL_SOCKET,
                socket.SO_RCVTIMEO,
                _TIMEVAL.pack(whole, int((seconds - whole) * 1e6)),
            )
            self.wait = seconds


class Strand(Generic[_T]):
    """Steps at one server as they are carried out: one conversation after another, each on a
    socket out of the client's pool. `wait` blocks; `take` does not, for several strands at once.
    """

    __slots__ = ("_channel", "_client", "_conversation", "_overdue", "_result", "_steps", "done")

    def __init__(self, client: Client, steps: Steps[_T]) -> None:
        """The first datagrams are sent. Raises what the steps raise, here and in `wait`, `take`."""
        self._client = client
        self._steps = steps
        self._channel: Channel | None = None
        self._conversation: Conversation[Any] | None = None
        self._overdue = 0  # datagrams read one after another since the time was over
        self._result: list[_T] = []
        self.done = False
        self._advance(None)

    @property
    def result(self) -> _T:
        """Once it is done."""
        return self._result[0]

    @property
    def sock(self) -> socket.socket:
        """What to wait for; another one after each step."""
        assert self._channel is not None
        return self._channel.sock

    @property
    def due(self) -> float:
        """When to `take` at the latest."""
        assert self._conversation is not None
        return self._conversation.due

    def wait(self) -> None:
        """Go on with the next datagram, or when the time for it is over."""
        channel, conversation = self._channel, self._conversation
        assert channel is not None and conversation is not None
        channel.set_wait(conversation.due - time.monotonic())
        self._receive(channel, conversation, 0)

    def take(self) -> None:
        """Go on with what is there, or with what is due."""
        assert self._channel is not None and self._conversation is not None
        self._receive(self._channel, self._conversation, socket.MSG_DONTWAIT)

    def abandon(self, *, keep: bool) -> None:
        """The answer is not wanted any more: tell the server where it matters.

        `keep` gives the socket, and with it the server's cookie, to the next call: what still comes
        for this one has another number.
        """
        channel, conversation = self._channel, self._conversation
        self._channel = self._conversation = None
        self.done = True
        if channel is None or conversation is None:
            return
        for datagram in conversation.abandon():
            try:
                channel.sock.send(datagram)
            except OSError:
                break
        if keep:
            self._client._release(channel)
        else:
            channel.sock.close()

    def _receive(self, channel: Channel, conversation: Conversation[Any], flags: int) -> None:
        try:
            self._receive_one(channel, conversation, flags)
        except Exception as error:
            self.abandon(keep=isinstance(error, _HARMLESS))
            self.done = False
            self._advance(error)
        except BaseException:
            self.abandon(keep=False)
            raise
        else:
            if conversation.done:
                self._client._release(channel)
                self._channel = self._conversation = None
                self._advance(None)

    def _receive_one(self, channel: Channel, conversation: Conversation[Any], flags: int) -> None:
        out: list[bytes] = []
        received: bytes | None = None
        try:
            received = channel.sock.recv(conversation.room, flags)
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            conversation.refused()
        except OSError as error:
            raise TransportError(f"{self._client.address.text}: {error}") from None
        else:
            out = conversation.receive(received, time.monotonic())
        now = time.monotonic()
        is_overdue = not conversation.done and now >= conversation.due
        self._overdue = self._overdue + 1 if is_overdue else 0
        # The answer may lie behind what was read: this thread may not have run for a while.
        if is_overdue and (received is None or self._overdue > _OVERDUE_MAX):
            self._overdue = 0
            out += conversation.expire(now)
        self._client._send(channel, conversation, out)

    def _advance(self, error: Exception | None) -> None:
        """To the next conversation, with what the one before has raised."""
        while True:
            try:
                if error is None:
                    conversation = next(self._steps)
                else:
                    conversation = self._steps.throw(error)
            except StopIteration as stop:
                self._result.append(stop.value)
                self.done = True
                return
            except BaseException:
                self.done = True
                raise
            error = self._begin(conversation)
            if error is None and not conversation.done:
                return

    def _begin(self, conversation: Conversation[Any]) -> Exception | None:
        """Send what comes first; returns what that raised."""
        client = self._client
        try:
            adopted = conversation.adopted
            if adopted is not None:
                assert isinstance(adopted.link, Channel)
                channel = adopted.link
            else:
                channel = client._acquire(probe=conversation.probe)
            self._channel, self._conversation = channel, conversation
            out = conversation.begin(channel, time.monotonic())
            client._send(channel, conversation, out)
        except Exception as error:
            self.abandon(keep=isinstance(error, _HARMLESS))
            self.done = False
            return error
        except BaseException:
            self.abandon(keep=False)
            raise
        if conversation.done:
            client._release(channel)
            self._channel = self._conversation = None
        return None


class Client(OneServer, BlockingCalls):
    """Talks to one model of one server; thread-safe, blocking.

    Methods raise `RefusedError` with the server's verdict, `DeadlineError` when no answer came in
    time, and `TransportError` for what the network or a foreign server does wrong.
    """

    __slots__ = ("_plain", "_pool", "_pool_pid")

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
        """Resolve the address; nothing is sent yet.

        `model` is a slot of the server or the name of a model in it. `timeout` bounds each call in
        seconds, whatever it does in them; one of many datagrams has them anew with each answer.
        What is lost is sent again: the first time after `retry_after`, then at doubled intervals
        with some jitter, at most `retries` times, and in the long run no more than `retry_share` of
        what is sent for the first time, so that a server in trouble is not kept there. A server
        that is busy says how long to wait. Up to `window` datagrams of one batch are under way at a
        time. `datagram_len_max` is the largest UDP payload to send and to accept; without it the
        client finds out: what an Ethernet frame carries, or more or less where the path is wider or
        narrower, which is asked by a few pings when it matters. `checksum` adds a CRC32C to every
        message, `key` a code of that tenant to every datagram. A server that wants to know whether
        this client receives at its address is answered without a word: it costs one more round trip
        now and then.
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
        self._plain = not checksum
        self._pool: list[Channel] = []
        self._pool_pid = os.getpid()

    # --- life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the sockets that no call is using. A closed client opens new ones when used."""
        while self._pool:
            self._pool.pop().sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- this server --------------------------------------------------------------------------

    def ping(self, *, datagram_len: int = _codec.HEADER_LEN) -> float:
        """The round-trip time in seconds of a datagram of this length.

        A lost one is repeated like any request, and the time then counts from the first.
        """
        return self._ask(lambda session, patience: session.ping(datagram_len, patience))

    def probe_path(self, *, datagram_len_max: int = _path.PAYLOAD_LEN_JUMBO) -> int:
        """Find the largest UDP payload up to `datagram_len_max` that travels both ways, and use it.

        Exact to eight bytes, by padded pings one after another, each waited for at most five times
        `retry_after`; what the client finds out by itself is one of the usual lengths. Returns the
        length, which becomes the client's. Raises DeadlineError when not even the smallest is
        answered.
        """
        return self._ask(lambda session, patience: session.probe_path(datagram_len_max, patience))

    # --- inside -------------------------------------------------------------------------------

    def _answer(self, question: Question[_T]) -> _T:
        session = self._session
        return self._run(session.answer(question, session.patience()))

    def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        return self._run(ask(self._session, self._session.patience()))

    def _run(self, steps: Steps[_T]) -> _T:
        strand = Strand(self, steps)
        while not strand.done:
            strand.wait()
        return strand.result

    def _encode_one(self, text: str | bytes, options: int) -> Ids:
        return self._encode_within(text, options, self._session.patience())

    def _encode_within(self, text: str | bytes, options: int, patience: Patience) -> Ids:
        """One text in one datagram, straight away: the path that latency is measured on.

        Whatever is unusual becomes a conversation, this first datagram included.
        """
        session = self._session
        identity = session.identity
        try:
            data = utf8(text)
        except RefusedError:
            data = b""  # For the model's reference to say; see below.
        too_long = len(data) + _codec.ONE_ITEM_LEN > session.limit
        if not data or too_long or not self._plain or not identity.known:
            question = _questions.encode(text, None, options, None)
            return self._run(session.answer(question, patience))
        target = identity.target
        channel = self._acquire()
        request_id = channel.request_id()
        datagram = _codec.build_one(options, target, request_id, data)
        received: bytes | None = None
        refused = False
        try:
            sent_at = time.monotonic()
            channel.sock.send(channel.seal.wrap(datagram))
            channel.set_wait(min(session.settings.retry_after, patience.deadline - sent_at))
            received = channel.sock.recv(session.limit + 1)
        except ConnectionRefusedError:
            refused = True
        except OSError:
            pass  # Nothing came yet; or it was not sent, and counts as lost.
        except BaseException:
            channel.sock.close()
            raise
        reply = None if received is None else _codec.parse_reply(received, WireOp.ENCODE)
        if (
            reply is not None
            and reply.request_id == request_id
            and reply.verdict == Verdict.OK
            and reply.model_tag == target.model_tag
        ):
            verdict, ids = _codec.parse_one_ids(reply.message)
            if ids is not None:
                self._release(channel)
                session.pacing.budget.deposit()
                session.counters.sent += 1
                return ids
        question = _questions.encode(text, None, options, None)
        outcomes: list[Outcome | None] = [None]
        adopted = Adopted(channel, request_id, datagram, sent_at, received, refused)
        self._run(session.fill(question, outcomes, patience, adopted))
        return question.finish([_questions.present(outcomes[0])])

    def _acquire(self, *, probe: bool = False) -> Channel:
        if self._pool_pid != os.getpid():
            # A child of fork() shares the sockets; answers must not go to the wrong process.
            self._pool = []
            self._pool_pid = os.getpid()
        if not probe:
            try:
                return self._pool.pop()
            except IndexError:
                pass
        return Channel(self.address, self._session.settings.key, probe=probe)

    def _release(self, channel: Channel) -> None:
        """Give a channel back after a conversation that went well."""
        if len(self._pool) < _POOL_MAX and not channel.probe:
            self._pool.append(channel)
        else:
            channel.sock.close()

    def _send(
        self, channel: Channel, conversation: Conversation[Any], datagrams: Sequence[bytes]
    ) -> None:
        for datagram in datagrams:
            try:
                channel.sock.send(datagram)
            except ConnectionRefusedError:
                # The answer to an earlier datagram; this one counts as lost and is repeated.
                conversation.refused()
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise TransportError(f"{self.address.text}: {error}") from None
                conversation.oversized(len(datagram), time.monotonic())
