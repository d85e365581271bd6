"""The asyncio client of a PinTok server.

    async with AsyncClient("127.0.0.1") as client:
        ids = await client.encode("Hello, world!")

One connected socket; any number of calls at a time, told apart by request id. It speaks exactly as
`pintok.Client` does; arguments, results and errors are the same.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import errno
import functools
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, cast

import numpy.typing as npt

from pintok import _codec, _exchange, _path, _seal, _wire
from pintok._codec import Call, FileSettings, ModelInfo, Outcome, Reply, Target
from pintok._exchange import (
    Backoff,
    Exchange,
    Identity,
    Item,
    ModelSearch,
    Part,
    PathSearch,
    no_answer,
    oversized,
)
from pintok._options import (
    SOURCE_TIKTOKEN,
    encode_options,
    id_array,
    joined,
    offset_options,
)
from pintok._seal import Key, Seal
from pintok._shape import pad
from pintok._transfer import Pacing, Transfer
from pintok._wire import Verdict, WireOp, WireOptions
from pintok.encoding import (
    Batch,
    Encoding,
    Ids,
    OffsetUnit,
    Padding,
    ParseSpecial,
    PlainEncoding,
    PlainRange,
    Truncation,
)
from pintok.errors import RefusedError, TransportError
from pintok.stream import AsyncDecodeStream, Step, Stepped


class _Flight:
    """A request on its way: its datagram, its timer, and who waits for the answer."""

    __slots__ = ("backoff", "challenges", "datagram", "future", "op", "timer", "verdict")

    def __init__(self, op: WireOp, datagram: bytes, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        self.op = op
        self.datagram = datagram
        self.backoff = backoff
        self.future: asyncio.Future[Reply] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.verdict = int(Verdict.OK)
        self.challenges = 0


class _Inbox:
    """What has come for one message in segments, and who waits for it."""

    __slots__ = ("_waiter", "datagrams", "error")

    def __init__(self) -> None:
        self.datagrams: collections.deque[bytes] = collections.deque()
        self.error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, datagram: bytes) -> None:
        self.datagrams.append(datagram)
        self._wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Until something is there, or for so long."""
        if self.datagrams or self.error is not None or seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


class _Channel(asyncio.DatagramProtocol):
    """One connected socket and the requests under way on it."""

    def __init__(self, address: _path.Address, key: Key | None) -> None:
        self._address = address
        self._seal = Seal(key)
        self._flights: dict[int, _Flight] = {}
        self._inboxes: dict[int, _Inbox] = {}
        self._last_id = random.SystemRandom().getrandbits(64)
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, address: _path.Address, key: Key | None, *, probe: bool = False) -> Self:
        channel = cls(address, key)
        sock = _path.open_socket(address, probe=probe)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: channel, sock=sock)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._fail_all(TransportError("the client was closed"))

    @property
    def sock(self) -> socket.socket:
        assert self._transport is not None
        return cast(socket.socket, self._transport.get_extra_info("socket"))

    async def ask(
        self, op: WireOp, build: Callable[[int], bytes], backoff: Backoff, timeout: float
    ) -> Reply:
        """Send a request, repeat it as `backoff` says, and return the answer."""
        self._last_id = request_id = (self._last_id + 1) & 0xFFFFFFFFFFFFFFFF
        flight = _Flight(op, build(request_id), backoff)
        self._flights[request_id] = flight
        try:
            self._attempt(flight, timeout)
            return await flight.future
        finally:
            del self._flights[request_id]
            if flight.timer is not None:
                flight.timer.cancel()

    def request_id(self) -> int:
        self._last_id = (self._last_id + 1) & 0xFFFFFFFFFFFFFFFF
        return self._last_id

    async def carry(self, transfer: Transfer, timeout: float) -> Reply:
        """One message in segments: send and receive until there is a reply."""
        assert self._transport is not None
        self._send_all(transfer.start(time.monotonic()))
        try:
            while transfer.reply is None:
                now = time.monotonic()
                if now >= transfer.deadline or transfer.failed:
                    raise no_answer(self._address, transfer.verdict, timeout)
                request_id = transfer.request_id
                inbox = self._inboxes.setdefault(request_id, _Inbox())
                await inbox.wait(transfer.due - now)
                while inbox.datagrams and transfer.request_id == request_id:
                    datagram = inbox.datagrams.popleft()
                    cookie = transfer.challenge(datagram)
                    if cookie is not None:
                        self._seal.learn(cookie)
                    self._send_all(transfer.receive(datagram, time.monotonic()))
                if inbox.error is not None:
                    raise inbox.error
                self._send_all(transfer.expire(time.monotonic()))
                if transfer.request_id != request_id:
                    del self._inboxes[request_id]
        finally:
            self._inboxes.pop(transfer.request_id, None)
            if not self._transport.is_closing():
                self._transport.sendto(self._seal.wrap(transfer.cancel()))
        return transfer.reply

    def _send_all(self, datagrams: Sequence[bytes]) -> None:
        assert self._transport is not None
        for datagram in datagrams:
            self._transport.sendto(self._seal.wrap(datagram))

    def _attempt(self, flight: _Flight, timeout: float) -> None:
        assert self._transport is not None
        self._transport.sendto(self._seal.wrap(flight.datagram))
        now = time.monotonic()
        due = flight.backoff.due(now)
        loop = asyncio.get_running_loop()
        flight.timer = loop.call_later(due - now, self._expire, flight, timeout)

    def _expire(self, flight: _Flight, timeout: float) -> None:
        if flight.future.done():
            return
        if flight.backoff.again(time.monotonic()):
            self._attempt(flight, timeout)
        else:
            flight.future.set_exception(no_answer(self._address, flight.verdict, timeout))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Give a reply to its request; what answers nothing under way is ignored."""
        request_id = _codec.any_id(data)
        if request_id is None:
            return
        inbox = self._inboxes.get(request_id)
        if inbox is not None:
            inbox.put(data)
            return
        flight = self._flights.get(request_id)
        if flight is None or flight.future.done():
            return
        reply = _codec.parse_reply(data, flight.op)
        if reply is None:
            return
        cookie = _seal.cookie_of(reply)
        if reply.verdict in _exchange.TRANSIENT:
            flight.verdict = reply.verdict
        elif cookie is not None and flight.challenges < _seal.CHALLENGES_MAX:
            flight.challenges += 1
            self._seal.learn(cookie)
            self._send_all([flight.datagram])
        else:
            flight.future.set_result(reply)

    def error_received(self, exc: Exception) -> None:
        """No server at the moment is no error yet: it may come back before the deadline."""
        if isinstance(exc, ConnectionRefusedError):
            return
        if isinstance(exc, OSError) and exc.errno == errno.EMSGSIZE:
            longest = max((len(flight.datagram) for flight in self._flights.values()), default=0)
            self._fail_all(oversized(self._address, longest))
            return
        self._fail_all(TransportError(f"{self._address.text}: {exc}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail_all(TransportError(f"{self._address.text}: {exc or 'the socket was closed'}"))

    def _fail_all(self, error: Exception) -> None:
        for flight in self._flights.values():
            if not flight.future.done():
                flight.future.set_exception(error)
        for inbox in self._inboxes.values():
            inbox.fail(error)


class AsyncClient:
    """Talks to one model of one server from one event loop; any number of calls at a time.

    Methods raise `RefusedError` with the server's verdict, `DeadlineError` when no answer came in
    time, and `TransportError` for what the network or a foreign server does wrong.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = _wire.WIRE_PORT,
        *,
        model: int | str = 0,
        timeout: float = 5.0,
        retries: int = 8,
        retry_after: float = 0.05,
        window: int = 32,
        datagram_len_max: int | None = None,
        checksum: bool = False,
        key: Key | None = None,
    ) -> None:
        """Keep the settings, which are those of `pintok.Client`; the first call opens the socket.

        A host name is resolved here, blocking: give an address where that matters.
        """
        _exchange.check_settings(timeout, retries, retry_after, window, datagram_len_max)
        self.address = _path.resolve(host, port)
        self.timeout = timeout
        self.retries = retries
        self.retry_after = retry_after
        self.window = window
        self._key = key
        self._identity = Identity(model, 0, checksum)
        self._plain = not checksum
        self._datagram_len_max = 0
        self._datagram_len_stated = datagram_len_max
        self._opening: asyncio.Future[_Channel] | None = None

    async def close(self) -> None:
        """Close the socket; calls under way end with TransportError."""
        opening, self._opening = self._opening, None
        if opening is not None:
            (await opening).close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.address.text!r}, model={self._identity.model!r})"

    async def encode(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> Ids:
        """The ids of a text, or of a pair: uint32, shape (n,)."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        call = _exchange.encode_call(WireOp.ENCODE, options, 0, pair is not None, truncation)
        outcomes = await self._run(call, await self._items([(text, pair)]))
        return _exchange.present(outcomes[0].ids)

    async def encode_full(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        offset_unit: OffsetUnit = "chars",
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
        overflowing: bool = True,
    ) -> Encoding:
        """The ids with offsets, type ids and special tokens mask; arguments as in `encode`."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        options |= offset_options(offset_unit)
        call = _exchange.full_call(options, pair is not None, truncation, overflowing)
        outcomes = await self._run(call, await self._items([(text, pair)]))
        return _exchange.encoding_of(outcomes[0])

    async def encode_batch_full(
        self,
        texts: Iterable[str | bytes | tuple[str | bytes, str | bytes]],
        *,
        offset_unit: OffsetUnit = "chars",
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
    ) -> list[Encoding]:
        """`encode_full` of many texts, or pairs as tuples, as `Client.encode_batch_full`."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens)
        options |= offset_options(offset_unit)
        encodings = _exchange.InOrder[Encoding]()
        for paired, places, sides in _exchange.by_pairs(texts):
            call = _exchange.full_call(options, paired, truncation)
            outcomes = await self._run(call, await self._items(sides))
            encodings.put(places, map(_exchange.encoding_of, outcomes))
        return encodings.items if padding is None else pad(encodings.items, padding)

    async def encode_plain(
        self,
        text: str | bytes,
        plain: Sequence[PlainRange],
        *,
        add_special_tokens: bool = True,
        bos: bool = False,
        eos: bool = False,
    ) -> PlainEncoding:
        """The ids of a text with ranges of ordinary text, as `Tokenizer.encode_plain`."""
        options = encode_options(add_special_tokens, "all", bos=bos, eos=eos)
        call, item = _exchange.plain_item(text, plain, options)
        return _exchange.plain_of((await self._run(call, [item]))[0])

    async def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        truncation: Truncation | None = None,
    ) -> Batch:
        """The ids of many texts in one array; the first refusal raises and names its text."""
        options = encode_options(add_special_tokens, parse_special)
        call = _exchange.encode_call(WireOp.ENCODE, options, 0, False, truncation)
        items = await self._items([(text, None) for text in texts])
        return _exchange.batch_of(await self._run(call, items))

    async def count(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> int:
        """How many ids `encode` would give."""
        options = encode_options(add_special_tokens, parse_special)
        call = _exchange.encode_call(WireOp.COUNT, options, 0, pair is not None, None)
        return (await self._run(call, await self._items([(text, pair)])))[0].count

    async def count_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> list[int]:
        """How many ids each text has."""
        options = encode_options(add_special_tokens, parse_special)
        call = _exchange.encode_call(WireOp.COUNT, options, 0, False, None)
        outcomes = await self._run(call, await self._items([(text, None) for text in texts]))
        return [outcome.count for outcome in outcomes]

    async def decode(
        self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of the ids, as `Tokenizer.decode`."""
        return (await self.decode_batch([ids], skip_special_tokens=skip_special_tokens))[0]

    async def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[str]:
        """The texts of many id lists."""
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.decode_items([id_array(ids) for ids in batch], options)
        return [_exchange.present(outcome.text) for outcome in await self._run(call, items)]

    def decode_stream(
        self, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> AsyncDecodeStream:
        """A stream of ids to decode one at a time; the server keeps nothing of it."""
        return AsyncDecodeStream(self, skip_special_tokens=skip_special_tokens, prefill=prefill)

    async def decode_steps(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Stepped]:
        """One step each of many streams, as `Client.decode_steps`."""
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.step_items(steps, options)
        return [_exchange.stepped_of(outcome) for outcome in await self._run(call, items)]

    async def file_settings(self) -> FileSettings:
        """The truncation and padding that the model's own file sets; applied only if asked for."""
        channel = await self._ready()
        target = self._identity.target
        reply = await self._ask(
            channel,
            WireOp.SETTINGS,
            lambda request_id: _codec.build_settings(target, request_id),
        )
        self._identity.check(reply)
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return _codec.parse_settings(reply)

    async def info(self) -> ModelInfo:
        """What the server says about this client's model."""
        channel = await self._ready()
        reply = await self._ask_info(channel, self._identity.target.model_id)
        self._identity.check(reply)
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return _codec.parse_info(reply)

    async def models(self) -> list[ModelInfo]:
        """Every model of the server, by slot."""
        return (await self._search(await self._channel())).found

    async def ping(self, *, datagram_len: int = _codec.HEADER_LEN) -> float:
        """The round-trip time in seconds of a datagram of this length, as `Client.ping`."""
        if not _codec.HEADER_LEN <= datagram_len <= _path.PAYLOAD_LEN_MAX:
            raise ValueError(f"datagram_len must be 32 ... 65507, not {datagram_len}")
        channel = await self._channel()
        begin = time.perf_counter()
        reply = await self._ask(channel, WireOp.PING, self._ping_builder(datagram_len))
        seconds = time.perf_counter() - begin
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return seconds

    async def probe_path(self, *, datagram_len_max: int = _path.PAYLOAD_LEN_JUMBO) -> int:
        """Find the largest UDP payload that travels both ways, and use it.

        As `Client.probe_path`.
        """
        search = PathSearch(datagram_len_max)
        await self.ping(datagram_len=search.low)
        while (datagram_len := search.next_len) is not None:
            search.accept(datagram_len, await self._passes(datagram_len))
        self._set_datagram_len_max(search.low)
        return search.low

    @property
    def datagram_len_max(self) -> int:
        """Largest UDP payload that this client sends and accepts; 0 before the first call."""
        if self._datagram_len_max == 0:
            return 0
        return self._datagram_len_max + _seal.room_of(self._key)

    @property
    def model_tag(self) -> int | None:
        """The tag of the model that answered first; None before that."""
        return self._identity.tag

    def accept_model(self) -> None:
        """After a `model_changed` refusal: go on with the model that the server holds now."""
        self._identity.forget()

    # --- inside -------------------------------------------------------------------------------

    def _set_datagram_len_max(self, datagram_len_max: int) -> None:
        self._datagram_len_max = datagram_len_max - _seal.room_of(self._key)
        self._identity.limit(self._datagram_len_max)

    async def _channel(self) -> _Channel:
        """The socket; opened once, however many calls begin at the same time."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(_Channel.open(self.address, self._key))
        try:
            channel = await asyncio.shield(self._opening)
        except TransportError:
            self._opening = None
            raise
        if self._identity.target.reply_len_max == 0:
            usual = _path.payload_len(self.address, channel.sock)
            self._set_datagram_len_max(self._datagram_len_stated or usual)
        return channel

    async def _ready(self) -> _Channel:
        """The socket, and the model's name looked up."""
        channel = await self._channel()
        identity = self._identity
        if not identity.known and identity.name is not None:
            info = (await self._search(channel)).choose(identity.name)
            identity.resolve(info.model_id, info.tag)
        return channel

    async def _items(self, texts: Sequence[tuple[str | bytes, str | bytes | None]]) -> list[Item]:
        """The texts as items; surrogates as the model's reference takes them."""
        try:
            return [_exchange.text_item(text, pair) for text, pair in texts]
        except RefusedError:
            if (await self.info()).source != SOURCE_TIKTOKEN:
                raise
        return [
            _exchange.text_item(joined(text), pair if pair is None else joined(pair))
            for text, pair in texts
        ]

    async def _search(self, channel: _Channel) -> ModelSearch:
        search = ModelSearch()
        while (model_id := search.next_id) is not None:
            search.accept(await self._ask_info(channel, model_id))
        return search

    async def _ask(self, channel: _Channel, op: WireOp, build: Callable[[int], bytes]) -> Reply:
        backoff = Backoff(time.monotonic(), self.timeout, self.retries, self.retry_after)
        return await channel.ask(op, build, backoff, self.timeout)

    async def _ask_info(self, channel: _Channel, model_id: int) -> Reply:
        target = dataclasses.replace(
            self._identity.target, model_id=model_id, model_tag=_wire.WIRE_ANY_MODEL_TAG
        )
        return await self._ask(
            channel, WireOp.INFO, lambda request_id: _codec.build_info(target, request_id)
        )

    def _ping_builder(self, datagram_len: int) -> Callable[[int], bytes]:
        target = Target(checksum=not self._plain)
        sealed_len = _codec.HEADER_LEN + (_seal.MAC_LEN if self._key is not None else 0)
        message = bytes(max(datagram_len - sealed_len, 0))
        return lambda request_id: _codec.build_message(WireOp.PING, target, request_id, message)

    async def _passes(self, datagram_len: int) -> bool:
        """Whether a ping of this length is answered, whatever the kernel thinks of the path."""
        channel = await _Channel.open(self.address, self._key, probe=True)
        timeout = 5 * self.retry_after
        backoff = Backoff(time.monotonic(), timeout, self.retries, self.retry_after)
        try:
            build = self._ping_builder(datagram_len)
            reply = await channel.ask(WireOp.PING, build, backoff, timeout)
        except TransportError:
            return False
        finally:
            channel.close()
        return reply.verdict == Verdict.OK

    async def _run(self, call: Call, items: Sequence[Item]) -> list[Outcome]:
        """All items of one call, packed into datagrams, `window` of them under way at a time."""
        channel = await self._ready()
        exchange = Exchange(call, items, self._datagram_len_max)
        if len(items) == 1:
            await self._carry(channel, exchange)
        elif items:
            window = _exchange.window_of(self.window, self._datagram_len_max)
            # One worker is one datagram under way; the first refusal ends them all.
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(window, len(items))):
                        group.create_task(self._carry(channel, exchange))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return exchange.finished()

    async def _carry(self, channel: _Channel, exchange: Exchange) -> None:
        """Send parts of an exchange, one after another, until none is waiting."""
        while (part := exchange.take()) is not None:
            if part.segmented:
                reply = await self._ask_long(channel, part)
            else:
                build = functools.partial(part.datagram, self._identity.target)
                reply = await self._ask(channel, part.call.op, build)
            self._identity.check(reply)
            exchange.accept(part, reply)

    async def _ask_long(self, channel: _Channel, part: Part) -> Reply:
        """A message in segments and its answer."""
        target = self._identity.target
        transfer = Transfer(
            part.call.op,
            target,
            part.message(target),
            target.reply_len_max,
            channel.request_id,
            Pacing(self.timeout, self.retries, self.retry_after),
            time.monotonic(),
        )
        return await channel.carry(transfer, self.timeout)
