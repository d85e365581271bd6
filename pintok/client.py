"""The synchronous client of a PinTok server.

    >>> from pintok import Client
    >>> with Client("127.0.0.1") as client:           # doctest: +SKIP
    ...     ids = client.encode("Hello, world!")
    ...     text = client.decode(ids)

One request is one datagram and its answer another, and nothing is kept between them; what is longer
travels in segments, in the same call. The client adds a system call each way and no thread, lock or
event loop. Each concurrent call has a socket of its
own out of a pool, so a client may be shared by threads, and a child of fork() gets fresh ones.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

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
    utf8,
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
from pintok.stream import DecodeStream, Step, Stepped

_POOL_MAX: Final = 64
_TIMEVAL: Final = struct.Struct("@ll")


class _Channel:
    """One connected socket; used by one call at a time."""

    __slots__ = ("last_id", "seal", "sock", "wait")

    def __init__(self, sock: socket.socket, key: Key | None) -> None:
        self.sock = sock
        self.seal = Seal(key)
        self.last_id = random.SystemRandom().getrandbits(64)
        self.wait = 0.0

    def request_id(self) -> int:
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


@dataclasses.dataclass(slots=True)
class _Flight:
    """A part on its way."""

    part: Part
    datagram: bytes
    backoff: Backoff
    due: float
    verdict: int = Verdict.OK
    challenges: int = 0


class Client:
    """Talks to one model of one server; thread-safe, blocking.

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
        """Resolve the address; nothing is sent yet.

        `model` is a slot of the server or the name of a model in it. `timeout` bounds each request
        in seconds, repetitions included: the first after `retry_after`, then at doubled intervals,
        at most `retries`. Up to `window` datagrams of one batch are under way at a time.
        `datagram_len_max` is the largest UDP payload to send and to accept; by default what an
        Ethernet frame, or the smaller path that the kernel knows, carries. `checksum` adds a CRC32C
        to every message, `key` a code of that tenant to every datagram. A server that wants to know
        whether this client receives at its address is answered without a word: it costs one more
        round trip now and then.
        """
        _exchange.check_settings(timeout, retries, retry_after, window, datagram_len_max)
        self.address = _path.resolve(host, port)
        self.timeout = timeout
        self.retries = retries
        self.retry_after = retry_after
        self.window = window
        self._key = key
        self._pool: list[_Channel] = []
        self._pool_pid = os.getpid()
        self._identity = Identity(model, 0, checksum)
        self._plain = not checksum
        channel = self._acquire()
        self._set_datagram_len_max(
            datagram_len_max or _path.payload_len(self.address, channel.sock)
        )
        self._release(channel)

    # --- life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the sockets that no call is using. A closed client opens new ones when used."""
        while self._pool:
            self._pool.pop().sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address.text!r}, model={self._identity.model!r})"

    # --- text to ids --------------------------------------------------------------------------

    def encode(
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
        """The ids of a text, or of a pair: uint32, shape (n,). Arguments as `Tokenizer.encode`."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        if pair is None and truncation is None and self._plain:
            try:
                data = utf8(text)
            except RefusedError as refusal:
                data = utf8(self._joined(text, refusal))
            return self._encode_one(data, options)
        call = _exchange.encode_call(WireOp.ENCODE, options, 0, pair is not None, truncation)
        outcome = self._run(call, [self._item(text, pair)])[0]
        return _exchange.present(outcome.ids)

    def encode_full(
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
        """The ids with offsets, type ids and special tokens mask; arguments as in `encode`.

        What truncation cuts off is in `overflowing` of the result, window after window, unless it
        is not wanted: the first window alone is a shorter reply.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        options |= offset_options(offset_unit)
        call = _exchange.full_call(options, pair is not None, truncation, overflowing)
        return _exchange.encoding_of(self._run(call, [self._item(text, pair)])[0])

    def encode_batch_full(
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
        """`encode_full` of many texts, or pairs as tuples, padded to a common length.

        `file_settings` has the settings of the model's own file. The first text that is refused
        raises. Texts share datagrams as in `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens)
        options |= offset_options(offset_unit)
        encodings = _exchange.InOrder[Encoding]()
        for paired, places, sides in _exchange.by_pairs(texts):
            call = _exchange.full_call(options, paired, truncation)
            outcomes = self._run(call, [self._item(*side) for side in sides])
            encodings.put(places, map(_exchange.encoding_of, outcomes))
        return encodings.items if padding is None else pad(encodings.items, padding)

    def encode_plain(
        self,
        text: str | bytes,
        plain: Sequence[PlainRange],
        *,
        add_special_tokens: bool = True,
        bos: bool = False,
        eos: bool = False,
    ) -> PlainEncoding:
        """The ids of a text in which special tokens are ordinary text where `plain` says so.

        As `Tokenizer.encode_plain`.
        """
        options = encode_options(add_special_tokens, "all", bos=bos, eos=eos)
        call, item = _exchange.plain_item(text, plain, options)
        return _exchange.plain_of(self._run(call, [item])[0])

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        truncation: Truncation | None = None,
    ) -> Batch:
        """The ids of many texts in one array; the first refusal raises and names its text.

        Short texts share datagrams, and `window` datagrams are under way at a time.
        """
        options = encode_options(add_special_tokens, parse_special)
        call = _exchange.encode_call(WireOp.ENCODE, options, 0, False, truncation)
        return _exchange.batch_of(self._run(call, [self._item(text) for text in texts]))

    def count(
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
        return self._run(call, [self._item(text, pair)])[0].count

    def count_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> list[int]:
        """How many ids each text has."""
        options = encode_options(add_special_tokens, parse_special)
        call = _exchange.encode_call(WireOp.COUNT, options, 0, False, None)
        outcomes = self._run(call, [self._item(text) for text in texts])
        return [outcome.count for outcome in outcomes]

    # --- ids to text --------------------------------------------------------------------------

    def decode(
        self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of the ids, as `Tokenizer.decode`."""
        return self.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[str]:
        """The texts of many id lists."""
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.decode_items([id_array(ids) for ids in batch], options)
        return [_exchange.present(outcome.text) for outcome in self._run(call, items)]

    def decode_stream(
        self, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> DecodeStream:
        """A stream of ids to decode one at a time; the server keeps nothing of it."""
        return DecodeStream(self, skip_special_tokens=skip_special_tokens, prefill=prefill)

    def decode_steps(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Stepped]:
        """One step each of many streams whose windows the caller keeps; see `DecodeStream`.

        They share datagrams, and the first one that is refused raises.
        """
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.step_items(steps, options)
        return [_exchange.stepped_of(outcome) for outcome in self._run(call, items)]

    # --- many independent requests ------------------------------------------------------------

    def encode_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        plain: Sequence[Sequence[PlainRange]] | None = None,
        full: bool = False,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> list[Outcome]:
        """As `encode` of each text (with its pair), but a refusal is an outcome beside the others.

        An outcome has `ids` when its `verdict` is 0, with `full` also offsets in characters, type
        ids and special tokens mask, and with truncation all windows, one after another. `plain`
        are ranges of each text as `encode_plain` takes them. Texts share datagrams as in
        `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        if full:
            options |= offset_options("chars")
            call = _exchange.full_call(options, pairs is not None, truncation)
        else:
            call = _exchange.encode_call(
                WireOp.ENCODE, options, 0, pairs is not None, truncation, overflow=True
            )
        items = _text_items(texts, pairs)
        if plain is not None:
            call, items = _exchange.with_ranges(call, items, plain)
        return self._run_each(call, items)

    def count_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
    ) -> list[Outcome]:
        """As `encode_each`, but an outcome has only the `count` of ids."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        call = _exchange.encode_call(WireOp.COUNT, options, 0, pairs is not None, None)
        return self._run_each(call, _text_items(texts, pairs))

    def decode_each(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[Outcome]:
        """As `decode` of each id list; an outcome has `text` when its `verdict` is 0."""
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.decode_items([id_array(ids) for ids in batch], options)
        return self._run_each(call, items)

    def decode_steps_each(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Outcome]:
        """As `decode_steps`; an outcome has the parts of a step when its `verdict` is 0."""
        options = int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0
        call, items = _exchange.step_items(steps, options)
        return self._run_each(call, items)

    # --- the server ---------------------------------------------------------------------------

    def info(self) -> ModelInfo:
        """What the server says about this client's model."""
        self._resolve()
        reply = self._ask_info(self._identity.target.model_id)
        self._identity.check(reply)
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return _codec.parse_info(reply)

    def file_settings(self) -> FileSettings:
        """The truncation and padding that the model's own file sets; applied only if asked for."""
        self._resolve()
        target = self._identity.target
        reply = self._ask(
            WireOp.SETTINGS, lambda request_id: _codec.build_settings(target, request_id)
        )
        self._identity.check(reply)
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return _codec.parse_settings(reply)

    def models(self) -> list[ModelInfo]:
        """Every model of the server, by slot."""
        search = ModelSearch()
        while (model_id := search.next_id) is not None:
            search.accept(self._ask_info(model_id))
        return search.found

    def ping(self, *, datagram_len: int = _codec.HEADER_LEN) -> float:
        """The round-trip time in seconds of a datagram of this length.

        A lost one is repeated like any request, and the time then counts from the first.
        """
        if not _codec.HEADER_LEN <= datagram_len <= _path.PAYLOAD_LEN_MAX:
            raise ValueError(f"datagram_len must be 32 ... 65507, not {datagram_len}")
        begin = time.perf_counter()
        reply = self._ask(WireOp.PING, self._ping_builder(datagram_len))
        seconds = time.perf_counter() - begin
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        return seconds

    def probe_path(self, *, datagram_len_max: int = _path.PAYLOAD_LEN_JUMBO) -> int:
        """Find the largest UDP payload up to `datagram_len_max` that travels both ways, and use it.

        Sends padded pings, each waited for at most five times `retry_after`. Returns the length,
        which becomes the client's. Raises DeadlineError when not even the smallest is answered.
        """
        search = PathSearch(datagram_len_max)
        self.ping(datagram_len=search.low)
        while (datagram_len := search.next_len) is not None:
            search.accept(datagram_len, self._passes(datagram_len))
        self._set_datagram_len_max(search.low)
        return search.low

    @property
    def datagram_len_max(self) -> int:
        """Largest UDP payload that this client sends and accepts, in bytes."""
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

    def _acquire(self) -> _Channel:
        if self._pool_pid != os.getpid():
            # A child of fork() shares the sockets; answers must not go to the wrong process.
            self._pool = []
            self._pool_pid = os.getpid()
        try:
            return self._pool.pop()
        except IndexError:
            return _Channel(_path.open_socket(self.address), self._key)

    def _release(self, channel: _Channel) -> None:
        """Give a channel back after a call that went well; one that raised is left to be closed."""
        if len(self._pool) < _POOL_MAX:
            self._pool.append(channel)
        else:
            channel.sock.close()

    def _resolve(self) -> None:
        """Look up the model's name if that has not been done."""
        identity = self._identity
        if identity.known or identity.name is None:
            return
        search = ModelSearch()
        while (model_id := search.next_id) is not None:
            search.accept(self._ask_info(model_id))
        info = search.choose(identity.name)
        identity.resolve(info.model_id, info.tag)

    def _item(self, text: str | bytes, pair: str | bytes | None = None) -> Item:
        """The texts as an item; surrogates as the model's reference takes them."""
        try:
            return _exchange.text_item(text, pair)
        except RefusedError as refusal:
            text = self._joined(text, refusal)
            return _exchange.text_item(text, pair if pair is None else joined(pair))

    def _joined(self, text: str | bytes, refusal: RefusedError) -> str | bytes:
        """The text with joined surrogates if the model's reference does that; raises otherwise."""
        if self.info().source != SOURCE_TIKTOKEN:
            raise refusal
        return joined(text)

    def _encode_one(self, text: bytes, options: int) -> Ids:
        """One text, mostly in one datagram: the path that latency is measured on."""
        if not self._identity.known:
            self._resolve()
        if len(text) + _codec.ONE_ITEM_LEN > self._datagram_len_max:
            return self._encode_long(text, options)
        target = self._identity.target
        reply = self._ask(
            WireOp.ENCODE, lambda request_id: _codec.build_one(options, target, request_id, text)
        )
        self._identity.check(reply)
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        verdict, ids = _codec.parse_one_ids(reply.message)
        if ids is None:
            if verdict == Verdict.REPLY_TOO_LONG:
                return self._encode_long(text, options)
            raise RefusedError(verdict)
        return ids

    def _encode_long(self, text: bytes, options: int) -> Ids:
        """As `_encode_one` where text or ids may be longer than a datagram."""
        call = Call(WireOp.ENCODE, options)
        return _exchange.present(self._run(call, [Item((len(text),), text)])[0].ids)

    def _ask_info(self, model_id: int) -> Reply:
        target = dataclasses.replace(
            self._identity.target, model_id=model_id, model_tag=_wire.WIRE_ANY_MODEL_TAG
        )
        return self._ask(WireOp.INFO, lambda request_id: _codec.build_info(target, request_id))

    def _ping_builder(self, datagram_len: int) -> Callable[[int], bytes]:
        target = Target(checksum=self._identity.target.checksum)
        sealed_len = _codec.HEADER_LEN + (_seal.MAC_LEN if self._key is not None else 0)
        message = bytes(max(datagram_len - sealed_len, 0))
        return lambda request_id: _codec.build_message(WireOp.PING, target, request_id, message)

    def _passes(self, datagram_len: int) -> bool:
        """Whether a ping of this length is answered, whatever the kernel thinks of the path."""
        channel = _Channel(_path.open_socket(self.address, probe=True), self._key)
        build = self._ping_builder(datagram_len)
        try:
            datagram = build(channel.request_id())
            reply = self._transact(channel, WireOp.PING, datagram, 5 * self.retry_after)
        except TransportError:
            return False
        finally:
            channel.sock.close()
        return reply.verdict == Verdict.OK

    def _ask(self, op: WireOp, build: Callable[[int], bytes]) -> Reply:
        """One request and its answer; `build` is given the request id."""
        channel = self._acquire()
        try:
            reply = self._transact(channel, op, build(channel.request_id()), self.timeout)
        except BaseException:
            channel.sock.close()
            raise
        self._release(channel)
        return reply

    def _transact(self, channel: _Channel, op: WireOp, datagram: bytes, timeout: float) -> Reply:
        """Send a datagram and wait for its answer, repeating it as configured."""
        sock = channel.sock
        room = max(self._datagram_len_max, len(datagram)) + 1
        self._send(channel, datagram)
        now = time.monotonic()
        backoff = Backoff(now, timeout, self.retries, self.retry_after)
        due = backoff.due(now)
        channel.set_wait(due - now)
        verdict = int(Verdict.OK)
        challenges = 0
        while True:
            try:
                received = sock.recv(room)
            except BlockingIOError:
                pass
            except ConnectionRefusedError:
                # No server at the moment; it may come back before the deadline.
                time.sleep(max(due - time.monotonic(), 0))
            except OSError as error:
                raise TransportError(f"{self.address.text}: {error}") from None
            else:
                reply = _codec.parse_reply(received, op)
                if reply is not None and reply.request_id == channel.last_id:
                    if reply.verdict in _exchange.TRANSIENT:
                        verdict = reply.verdict
                    elif self._follow(channel, reply, challenges):
                        challenges += 1
                        self._send(channel, datagram)
                    else:
                        return reply
            now = time.monotonic()
            if now >= due:
                if not backoff.again(now):
                    raise no_answer(self.address, verdict, timeout)
                self._send(channel, datagram)
                due = backoff.due(now)
            channel.set_wait(due - now)

    def _follow(self, channel: _Channel, reply: Reply, challenges: int) -> bool:
        """Whether a reply is a challenge that another attempt answers; takes its cookie."""
        cookie = _seal.cookie_of(reply)
        if cookie is None or challenges >= _seal.CHALLENGES_MAX:
            return False
        channel.seal.learn(cookie)
        return True

    def _run(self, call: Call, items: Sequence[Item]) -> list[Outcome]:
        """All items of one call, packed into datagrams, `window` of them under way at a time."""
        self._resolve()
        exchange = Exchange(call, items, self._datagram_len_max)
        if len(items) == 1:
            while (part := exchange.take()) is not None:
                if part.segmented:
                    self._carry(part, exchange)
                    continue
                reply = self._ask(call.op, functools.partial(part.datagram, self._identity.target))
                self._identity.check(reply)
                exchange.accept(part, reply)
            return exchange.finished()
        channel = self._acquire()
        try:
            self._drive(channel, exchange, call.op)
        except BaseException:
            channel.sock.close()
            raise
        self._release(channel)
        return exchange.finished()

    def _run_each(self, call: Call, items: Sequence[Item]) -> list[Outcome]:
        """As `_run`, with an outcome for every item, refused or not."""
        self._resolve()
        exchange = Exchange(call, items, self._datagram_len_max, each=True)
        channel = self._acquire()
        try:
            self._drive(channel, exchange, call.op)
        except BaseException:
            channel.sock.close()
            raise
        self._release(channel)
        return exchange.finished()

    def _carry(self, part: Part, exchange: Exchange) -> None:
        """One message in segments, on a channel of its own."""
        target = self._identity.target
        channel = self._acquire()
        transfer = Transfer(
            part.call.op,
            target,
            part.message(target),
            target.reply_len_max,
            channel.request_id,
            Pacing(self.timeout, self.retries, self.retry_after),
            time.monotonic(),
        )
        try:
            self._transfer(channel, transfer)
        except BaseException:
            channel.sock.close()
            raise
        self._release(channel)
        reply = _exchange.present(transfer.reply)
        self._identity.check(reply)
        exchange.accept(part, reply)

    def _transfer(self, channel: _Channel, transfer: Transfer) -> None:
        """Send and receive until there is a reply. Raises as `_transact`."""
        sock = channel.sock
        room = self._datagram_len_max + 1
        for datagram in transfer.start(time.monotonic()):
            self._send(channel, datagram)
        while True:
            now = time.monotonic()
            if now >= transfer.deadline or transfer.failed:
                self._send(channel, transfer.cancel())
                raise no_answer(self.address, transfer.verdict, self.timeout)
            channel.set_wait(transfer.due - now)
            try:
                received = sock.recv(room)
            except BlockingIOError:
                answers = []
            except ConnectionRefusedError:
                time.sleep(max(min(transfer.due - now, 0.01), 0))
                answers = []
            except OSError as error:
                raise TransportError(f"{self.address.text}: {error}") from None
            else:
                cookie = transfer.challenge(received)
                if cookie is not None:
                    channel.seal.learn(cookie)
                answers = transfer.receive(received, time.monotonic())
            answers = answers or transfer.expire(time.monotonic())
            for datagram in answers:
                self._send(channel, datagram)
            if transfer.reply is not None:
                self._send(channel, transfer.cancel())
                return

    def _drive(self, channel: _Channel, exchange: Exchange, op: WireOp) -> None:
        flights: dict[int, _Flight] = {}
        window = _exchange.window_of(self.window, self._datagram_len_max)
        while True:
            while len(flights) < window and (part := exchange.take()) is not None:
                if part.segmented:
                    self._carry(part, exchange)
                else:
                    self._launch(channel, part, flights)
            if not flights:
                return
            channel.set_wait(min(f.due for f in flights.values()) - time.monotonic())
            try:
                received = channel.sock.recv(self._datagram_len_max + 1)
            except BlockingIOError:
                pass
            except ConnectionRefusedError:
                time.sleep(0.001)
            except OSError as error:
                raise TransportError(f"{self.address.text}: {error}") from None
            else:
                self._land(channel, received, op, exchange, flights)
            self._repeat(channel, flights)

    def _launch(self, channel: _Channel, part: Part, flights: dict[int, _Flight]) -> None:
        request_id = channel.request_id()
        datagram = part.datagram(self._identity.target, request_id)
        self._send(channel, datagram)
        now = time.monotonic()
        backoff = Backoff(now, self.timeout, self.retries, self.retry_after)
        flights[request_id] = _Flight(part, datagram, backoff, backoff.due(now))

    def _land(
        self,
        channel: _Channel,
        received: bytes,
        op: WireOp,
        exchange: Exchange,
        flights: dict[int, _Flight],
    ) -> None:
        """Take a reply; what answers nothing under way (a duplicate, for instance) is ignored."""
        reply = _codec.parse_reply(received, op)
        if reply is None:
            return
        flight = flights.get(reply.request_id)
        if flight is None:
            return
        if reply.verdict in _exchange.TRANSIENT:
            flight.verdict = reply.verdict
            return
        if self._follow(channel, reply, flight.challenges):
            flight.challenges += 1
            self._send(channel, flight.datagram)
            return
        del flights[reply.request_id]
        self._identity.check(reply)
        exchange.accept(flight.part, reply)

    def _repeat(self, channel: _Channel, flights: dict[int, _Flight]) -> None:
        now = time.monotonic()
        for flight in flights.values():
            if now < flight.due:
                continue
            if not flight.backoff.again(now):
                raise no_answer(self.address, flight.verdict, self.timeout)
            self._send(channel, flight.datagram)
            flight.due = flight.backoff.due(now)

    def _send(self, channel: _Channel, datagram: bytes) -> None:
        try:
            channel.sock.send(channel.seal.wrap(datagram))
        except ConnectionRefusedError:
            # The answer to an earlier datagram; this one counts as lost and is repeated.
            return
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise oversized(self.address, len(datagram)) from None
            raise TransportError(f"{self.address.text}: {error}") from None


def _text_items(texts: Sequence[str | bytes], pairs: Sequence[str | bytes] | None) -> list[Item]:
    if pairs is None:
        return [_exchange.text_item(text) for text in texts]
    return [_exchange.text_item(text, pair) for text, pair in zip(texts, pairs, strict=True)]
