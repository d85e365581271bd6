"""One call of a client over many items, without a socket: what to send next, what came back.

    exchange = Exchange(call, items, datagram_len_max)
    while (part := exchange.take()) is not None:
        datagram = part.datagram(target, request_id)
        exchange.accept(part, reply)
    exchange.outcomes

Many short items share a datagram. What does not fit into a reply is sent again with less beside it.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import numpy as np

from pintok import _codec, _wire
from pintok._codec import Call, MalformedReply, ModelInfo, Outcome, Reply, Target
from pintok._options import truncation_limits, utf8
from pintok._path import PAYLOAD_LEN_MAX, PAYLOAD_LEN_MIN, Address
from pintok._shape import windows_of
from pintok._transfer import DATAGRAM_LEN_MIN
from pintok._wire import Verdict, WireOp, WireOptions, WireOutputs
from pintok.encoding import Batch, Encoding, Ids, PlainEncoding, PlainRange, Truncation
from pintok.errors import DeadlineError, RefusedError, TransportError
from pintok.stream import Step, Stepped

TRANSIENT: Final = frozenset(
    {Verdict.BUSY, Verdict.RATE_LIMITED, Verdict.BAD_CRC, Verdict.REPLAYED}
)
"""Verdicts after which the same request may succeed a little later."""

ALL_OUTPUTS: Final = int(
    WireOutputs.OFFSETS
    | WireOutputs.OFFSETS_SHORT
    | WireOutputs.TYPE_IDS
    | WireOutputs.SPECIAL_TOKENS_MASK
)

_SLOTS_SEARCHED: Final = 64
# Replies under way together must fit the receive buffer of a socket: 212,992 bytes by default in
# Linux, which also counts the kernel's own share of every packet.
_IN_FLIGHT_LEN_MAX: Final = 96 * 1024
_STEP_IDS_MAX: Final = 0xFFFF
_RANGES_LEN_MAX: Final = _wire.WIRE_RANGES_MAX * _wire.WIRE_RANGE.size
# Bytes of texts that share a message in segments: enough to spare round trips, few enough to keep
# a busy server fair.
_LONG_FILL: Final = 64 * 1024
_PROBE_STEP: Final = 8
_PROBE_LENS: Final = (1200, 1448, 1472, 4048)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One item of a request: its entries of the item table, and its bytes."""

    lengths: tuple[int, ...]
    data: bytes
    ranges: bytes = b""
    """wire_ranges, when the call's options announce them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Items that share a datagram; `indices` are their places in the call."""

    call: Call
    indices: tuple[int, ...]
    items: tuple[Item, ...]
    segmented: bool = False
    """Request or reply may be longer than a datagram: for `pintok._transfer`."""

    def datagram(self, target: Target, request_id: int) -> bytes:
        lengths = [length for item in self.items for length in item.lengths]
        data = b"".join(item.data for item in self.items)
        ranges = [item.ranges for item in self.items]
        return _codec.build_batch(
            self.call, target, request_id, len(self.items), lengths, data, ranges
        )

    def message(self, target: Target) -> bytes:
        """The message alone, for segments."""
        lengths = [length for item in self.items for length in item.lengths]
        data = b"".join(item.data for item in self.items)
        ranges = [item.ranges for item in self.items]
        return _codec.build_batch_message(self.call, target, len(self.items), lengths, data, ranges)


class Exchange:
    """The state of one call: items waiting, outcomes known."""

    __slots__ = (
        "_call",
        "_each",
        "_fill",
        "_items",
        "_items_max",
        "_long",
        "_long_call",
        "_long_fill",
        "_segments",
        "_waiting",
        "outcomes",
    )

    def __init__(
        self, call: Call, items: Sequence[Item], datagram_len_max: int, *, each: bool = False
    ) -> None:
        """With `each`, a refused item gets an outcome with its verdict and the others go on.

        Without, raises RefusedError (text_too_long) when an item alone is too long for a message,
        or for a datagram where the path is too narrow for segments.
        """
        self._each = each
        self._call = call
        self._items = items
        self._waiting: collections.deque[int] = collections.deque()
        self.outcomes: list[Outcome | None] = [None] * len(items)
        # A first guess at what leaves room for the reply; a wrong one costs another datagram.
        share = 1.0
        if call.op in (WireOp.DECODE, WireOp.DECODE_STEP):
            share = 0.5
        elif call.outputs & WireOutputs.OFFSETS:
            share = 0.5
        self._fill = max(int(datagram_len_max * share), _codec.ONE_ITEM_LEN)
        room = datagram_len_max - _codec.HEADER_LEN - _codec.PRELUDE_LEN
        self._items_max = min(max(room // (8 if call.op == WireOp.COUNT else 12), 1), 256)
        self._segments = datagram_len_max >= DATAGRAM_LEN_MIN
        self._long: collections.deque[int] = collections.deque()
        self._long_fill = _LONG_FILL
        # Positions in long texts need all of their 32 bits.
        outputs = call.outputs & ~int(WireOutputs.OFFSETS_SHORT)
        self._long_call = dataclasses.replace(call, outputs=outputs)
        len_max = datagram_len_max
        if self._segments:
            len_max = _wire.WIRE_MESSAGE_LEN_MAX + _codec.HEADER_LEN
        for index, item in enumerate(items):
            item_len = _len_of(call, [item])
            if item_len > len_max and each:
                self.outcomes[index] = Outcome(Verdict.TEXT_TOO_LONG)
            elif item_len > len_max:
                room = len_max - _len_of(call, [dataclasses.replace(item, data=b"")])
                raise too_long(index, len(items), len(item.data), room)
            elif item_len > datagram_len_max:
                self._long.append(index)
            else:
                self._waiting.append(index)

    def take(self) -> Part | None:
        """The next items to send together; None when none is waiting."""
        if not self._waiting:
            return self._take_long() if self._long else None
        indices = [self._waiting.popleft()]
        item = self._items[indices[0]]
        lens_count, data_len, ranges_len = len(item.lengths), len(item.data), len(item.ranges)
        while self._waiting and len(indices) < self._items_max:
            item = self._items[self._waiting[0]]
            lens_count += len(item.lengths)
            data_len += len(item.data)
            ranges_len += len(item.ranges)
            item_count = len(indices) + 1
            length = _codec.batch_len(self._call, lens_count, data_len, item_count, ranges_len)
            if length > self._fill or ranges_len > _RANGES_LEN_MAX:
                break
            indices.append(self._waiting.popleft())
        return Part(self._call, tuple(indices), tuple(self._items[index] for index in indices))

    def _take_long(self) -> Part:
        """Long items, some together in one message where they are not very long."""
        indices = [self._long.popleft()]
        item = self._items[indices[0]]
        data_len, ranges_len = len(item.data), len(item.ranges)
        while self._long and len(indices) < _wire.WIRE_ITEMS_MAX:
            item = self._items[self._long[0]]
            data_len += len(item.data)
            ranges_len += len(item.ranges)
            if data_len > self._long_fill or ranges_len > _RANGES_LEN_MAX:
                break
            indices.append(self._long.popleft())
        items = tuple(self._items[index] for index in indices)
        return Part(self._long_call, tuple(indices), items, segmented=True)

    def accept(self, part: Part, reply: Reply) -> None:
        """Take the answer to a part. Raises RefusedError, naming the item, and MalformedReply."""
        divide = self._each or reply.verdict == Verdict.REPLY_TOO_LONG
        if reply.verdict != Verdict.OK and divide and len(part.indices) > 1:
            self._again(part.indices, part)
            return
        if reply.verdict == Verdict.REPLY_TOO_LONG and self._lengthen(part.indices, part):
            return
        if reply.verdict != Verdict.OK and self._each:
            self.outcomes[part.indices[0]] = Outcome(reply.verdict)
            return
        if reply.verdict != Verdict.OK:
            raise RefusedError(reply.verdict)
        again = []
        outcomes = _codec.parse_batch(reply.message, part.call, len(part.items))
        for index, outcome in zip(part.indices, outcomes, strict=True):
            if outcome.verdict == Verdict.REPLY_TOO_LONG and len(part.indices) > 1:
                again.append(index)
            elif outcome.verdict == Verdict.REPLY_TOO_LONG and self._lengthen([index], part):
                pass
            elif outcome.verdict != Verdict.OK and not self._each:
                raise refused_item(outcome.verdict, index, len(self._items))
            else:
                self.outcomes[index] = outcome
        if again:
            self._again(again, part)

    def _again(self, indices: Sequence[int], part: Part) -> None:
        """Queue items whose reply did not fit, to travel with at most half as much beside them."""
        if part.segmented:
            self._long_fill = sum(len(item.data) for item in part.items) // 2
            self._long.extendleft(reversed(indices))
            return
        self._items_max = max(len(part.indices) // 2, 1)
        self._fill = min(self._fill, _len_of(self._call, part.items) // 2)
        self._waiting.extendleft(reversed(indices))

    def _lengthen(self, indices: Sequence[int], part: Part) -> bool:
        """Queue items whose reply is longer than a datagram to have it in segments, if they can."""
        if part.segmented or not self._segments:
            return False
        self._long.extend(indices)
        return True

    def finished(self) -> list[Outcome]:
        """All outcomes; asserts that there are no others to come."""
        outcomes = [outcome for outcome in self.outcomes if outcome is not None]
        assert len(outcomes) == len(self.outcomes)
        return outcomes


def _len_of(call: Call, items: Sequence[Item]) -> int:
    """Bytes of the datagram that carries these items."""
    return _codec.batch_len(
        call,
        sum(len(item.lengths) for item in items),
        sum(len(item.data) for item in items),
        len(items),
        sum(len(item.ranges) for item in items),
    )


class Identity:
    """The model a client speaks of: its slot, and the tag that every reply must then carry.

    The tag is learned from the first answer. From then on another generation of the model is
    refused by name, never silently mixed in, until `forget` accepts it.
    """

    __slots__ = ("_target", "name")

    def __init__(self, model: int | str, reply_len_max: int, checksum: bool) -> None:
        self.name = model if isinstance(model, str) else None
        model_id = -1 if isinstance(model, str) else model
        if not -1 <= model_id <= 0xFFFF or model_id < 0 and self.name is None:
            raise ValueError(f"model must be a name or 0 ... 65535, not {model!r}")
        self._target = Target(model_id, reply_len_max=reply_len_max, checksum=checksum)

    @property
    def model(self) -> int | str:
        """The model as the client was asked for it."""
        return self.name if self.name is not None else self._target.model_id

    @property
    def known(self) -> bool:
        """False while the name is not yet resolved to a slot."""
        return self._target.model_id >= 0

    @property
    def target(self) -> Target:
        return self._target

    @property
    def tag(self) -> int | None:
        return self._target.model_tag or None

    def resolve(self, model_id: int, tag: int) -> None:
        self._target = dataclasses.replace(self._target, model_id=model_id, model_tag=tag)

    def forget(self) -> None:
        """Accept whatever model the server holds now; a name is looked up again."""
        model_id = self._target.model_id if self.name is None else -1
        self._target = dataclasses.replace(
            self._target, model_id=model_id, model_tag=_wire.WIRE_ANY_MODEL_TAG
        )

    def limit(self, reply_len_max: int) -> None:
        self._target = dataclasses.replace(self._target, reply_len_max=reply_len_max)

    def check(self, reply: Reply) -> None:
        """Raise RefusedError for the verdicts that concern the model; learn the tag otherwise."""
        target = self._target
        if reply.verdict == Verdict.OK:
            if reply.model_tag == target.model_tag:
                return
            if target.model_tag == _wire.WIRE_ANY_MODEL_TAG:
                self._target = dataclasses.replace(target, model_tag=reply.model_tag)
                return
        elif reply.verdict == Verdict.UNKNOWN_MODEL:
            raise RefusedError(Verdict.UNKNOWN_MODEL, detail=f"model {target.model_id}")
        elif reply.verdict != Verdict.MODEL_CHANGED:
            return
        raise RefusedError(
            Verdict.MODEL_CHANGED,
            detail=f"expected tag {target.model_tag:08x}, the server has {reply.model_tag:08x}; "
            "accept_model() goes on with it",
        )


class Backoff:
    """When to send again: waits that double from `first` up to a second, with some jitter.

    Plain numbers in seconds; the clock belongs to the caller.
    """

    __slots__ = ("_attempts_left", "_wait", "deadline")

    def __init__(self, now: float, timeout: float, retries: int, first: float) -> None:
        self.deadline = now + timeout
        self._attempts_left = retries
        self._wait = first

    def due(self, now: float) -> float:
        """When the attempt made now counts as lost: at the latest at the deadline."""
        if self._attempts_left == 0:
            return self.deadline
        due = min(now + self._wait * random.uniform(0.9, 1.1), self.deadline)
        self._wait = min(self._wait * 2, 1.0)
        return due

    def again(self, now: float) -> bool:
        """Whether another attempt may be made; counts it."""
        if self._attempts_left == 0 or now >= self.deadline:
            return False
        self._attempts_left -= 1
        return True


class ModelSearch:
    """Which slots to ask for: all below the end that the first answer names."""

    __slots__ = ("_end", "_model_id", "found")

    def __init__(self) -> None:
        self.found: list[ModelInfo] = []
        self._end = _SLOTS_SEARCHED
        self._model_id = 0

    @property
    def next_id(self) -> int | None:
        return self._model_id if self._model_id < self._end else None

    def accept(self, reply: Reply) -> None:
        """Take the answer for `next_id`. Raises RefusedError, but not for an empty slot."""
        if reply.verdict == Verdict.OK:
            info = _codec.parse_info(reply)
            self.found.append(info)
            self._end = info.models_end
        elif reply.verdict != Verdict.UNKNOWN_MODEL:
            raise RefusedError(reply.verdict)
        self._model_id += 1

    def choose(self, name: str) -> ModelInfo:
        """The model of this name. Raises RefusedError (unknown_model) naming those there are."""
        for info in self.found:
            if info.name == name:
                return info
        names = ", ".join(repr(info.name) for info in self.found) or "none"
        raise RefusedError(Verdict.UNKNOWN_MODEL, detail=f"{name!r}; the server has {names}")


class PathSearch:
    """Which datagram lengths to try: usual ones from the top, then halving between the last two."""

    __slots__ = ("_high", "_usual", "low")

    def __init__(self, datagram_len_max: int) -> None:
        if not PAYLOAD_LEN_MIN <= datagram_len_max <= PAYLOAD_LEN_MAX:
            raise ValueError(f"datagram_len_max must be 240 ... 65507, not {datagram_len_max}")
        self.low = PAYLOAD_LEN_MIN
        """Longest length known to pass; the first one is for the caller to try."""
        self._high = datagram_len_max + 1
        self._usual = [length for length in _PROBE_LENS if length < datagram_len_max]
        self._usual.append(datagram_len_max)

    @property
    def next_len(self) -> int | None:
        """The length to try next; None when `low` is the answer, to within eight bytes."""
        if self._usual:
            return self._usual[-1]
        return (self.low + self._high) // 2 if self._high - self.low > _PROBE_STEP else None

    def accept(self, datagram_len: int, passed: bool) -> None:
        if passed:
            self.low = datagram_len
            self._usual.clear()
        else:
            self._high = datagram_len
            if self._usual:
                self._usual.pop()


# --- arguments to items, outcomes to results --------------------------------------------------


def encode_call(
    op: WireOp,
    options: int,
    outputs: int,
    pair: bool,
    truncation: Truncation | None,
    *,
    overflow: bool = False,
) -> Call:
    """The call of an encode or count. Raises ValueError as `truncation_limits` does.

    `overflow` asks for all windows that truncation makes.
    """
    if overflow and truncation is not None:
        options |= WireOptions.OVERFLOW
    if pair:
        options |= WireOptions.PAIR
    limits = truncation_limits(truncation)
    if limits is None:
        return Call(op, options, outputs)
    packed = struct.pack("<IIBB6x", *limits)
    return Call(op, options | WireOptions.TRUNCATION, outputs, truncation=packed)


def full_call(
    options: int, pair: bool, truncation: Truncation | None, overflow: bool = True
) -> Call:
    """The call of an encode to everything, by default with all windows that truncation makes."""
    return encode_call(WireOp.ENCODE, options, ALL_OUTPUTS, pair, truncation, overflow=overflow)


class InOrder(Generic[_T]):
    """Results that come out of order, by their places."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[int, _T] = {}

    def put(self, places: Sequence[int], results: Iterable[_T]) -> None:
        self._found.update(zip(places, results, strict=True))

    @property
    def items(self) -> list[_T]:
        return [self._found[place] for place in sorted(self._found)]


Sides = tuple[str | bytes, str | bytes | None]


def by_pairs(
    texts: Iterable[str | bytes | tuple[str | bytes, str | bytes]],
) -> Iterator[tuple[bool, list[int], list[Sides]]]:
    """Texts and pairs apart, since a request has one kind: whether pairs, places, and sides."""
    sides: list[Sides] = [item if isinstance(item, tuple) else (item, None) for item in texts]
    for paired in (False, True):
        places = [place for place, side in enumerate(sides) if (side[1] is not None) == paired]
        if places:
            yield paired, places, [sides[place] for place in places]


def with_ranges(
    call: Call, items: Sequence[Item], plain: Sequence[Sequence[PlainRange]]
) -> tuple[Call, list[Item]]:
    """The call and the items with ranges of ordinary text."""
    ranged = dataclasses.replace(call, options=call.options | WireOptions.RANGES)
    return ranged, [
        dataclasses.replace(item, ranges=range_bytes(ranges))
        for item, ranges in zip(items, plain, strict=True)
    ]


def plain_item(text: str | bytes, plain: Sequence[PlainRange], options: int) -> tuple[Call, Item]:
    """The call and the item of an encode with ranges of ordinary text."""
    call, (item,) = with_ranges(Call(WireOp.ENCODE, options), [text_item(text)], [plain])
    return call, item


def plain_of(outcome: Outcome) -> PlainEncoding:
    """An outcome of such a call."""
    return PlainEncoding(present(outcome.ids), outcome.hits)


def text_item(text: str | bytes, pair: str | bytes | None = None) -> Item:
    """A text, or a pair of them. Raises RefusedError (bad_utf8) for lone surrogates."""
    first = utf8(text)
    if pair is None:
        return Item((len(first),), first)
    second = utf8(pair)
    return Item((len(first), len(second)), first + second)


def decode_items(batch: Sequence[Ids], options: int) -> tuple[Call, list[Item]]:
    """The call and the items of a decode, in the narrowest format for its ids."""
    largest = max((int(ids.max()) for ids in batch if len(ids)), default=0)
    id_format = _codec.narrowest_format(largest)
    call = Call(WireOp.DECODE, options, id_format=id_format)
    return call, [Item((len(ids),), _codec.build_ids(ids, id_format)) for ids in batch]


def step_items(steps: Sequence[Step], options: int) -> tuple[Call, list[Item]]:
    """The call and the items of a decode_step, in the narrowest format for its ids."""
    largest = max((max(step.ids) for step in steps if step.ids), default=0)
    id_format = _codec.narrowest_format(largest)
    call = Call(WireOp.DECODE_STEP, options, id_format=id_format)
    items = []
    for index, step in enumerate(steps):
        if len(step.ids) > _STEP_IDS_MAX:
            which = None if len(steps) == 1 else f"stream {index}"
            raise RefusedError(Verdict.TEXT_TOO_LONG, detail=which)
        table = (
            len(step.ids) | step.given_count << 16,
            step.new_count | int(step.flush) << 16,
        )
        ids = np.array(step.ids, dtype=np.uint32)
        items.append(Item(table, _codec.build_ids(ids, id_format)))
    return call, items


def stepped_of(outcome: Outcome) -> Stepped:
    """What a step gave."""
    return Stepped(present(outcome.text), outcome.dropped_count, outcome.given_count)


def range_bytes(ranges: Sequence[PlainRange]) -> bytes:
    """wire_ranges of one item."""
    return b"".join(
        _wire.WIRE_RANGE.pack(begin, end - begin << 1 | int(every)) for begin, end, every in ranges
    )


def batch_of(outcomes: Sequence[Outcome]) -> Batch:
    """The ids of many outcomes in one array."""
    splits = np.zeros(len(outcomes) + 1, dtype=np.int64)
    np.cumsum([outcome.count for outcome in outcomes], out=splits[1:])
    arrays = [present(outcome.ids) for outcome in outcomes]
    ids = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.uint32)
    return Batch(ids, splits)


def encoding_of(outcome: Outcome) -> Encoding:
    """An outcome of a call for all outputs, cut into its windows."""
    return windows_of(
        present(outcome.ids),
        present(outcome.offsets),
        present(outcome.type_ids),
        present(outcome.special_tokens_mask),
        outcome.windows,
    )


def present(value: _T | None) -> _T:
    """A part of an outcome that its call asked for; parsing made sure that it is there."""
    if value is None:
        raise MalformedReply("the server's reply lacks what was asked for")
    return value


# --- settings and errors ----------------------------------------------------------------------


def check_settings(
    timeout: float, retries: int, retry_after: float, window: int, datagram_len_max: int | None
) -> None:
    """Raise ValueError for settings that no client can work with."""
    if timeout <= 0 or retry_after <= 0 or retries < 0 or window < 1:
        raise ValueError("timeout, retry_after and window are positive, retries is not negative")
    if datagram_len_max is not None:
        PathSearch(datagram_len_max)


def window_of(window: int, datagram_len_max: int) -> int:
    """How many datagrams of this length may be under way: `window`, or fewer large ones."""
    return max(min(window, _IN_FLIGHT_LEN_MAX // datagram_len_max), 1)


def too_long(index: int, count: int, data_len: int, room: int) -> RefusedError:
    """The refusal of an item that no datagram of this path can carry."""
    which = "" if count == 1 else f"item {index}: "
    return RefusedError(
        Verdict.TEXT_TOO_LONG,
        detail=f"{which}{data_len} bytes, this path carries {max(room, 0) // 8 * 8}; use "
        f"pintok.Tokenizer, or a datagram_len_max from {DATAGRAM_LEN_MIN} on",
    )


def refused_item(verdict: int, index: int, count: int) -> RefusedError:
    return RefusedError(verdict, detail=None if count == 1 else f"item {index}")


def no_answer(address: Address, verdict: int, timeout: float) -> RefusedError | DeadlineError:
    """What to raise at the deadline: the last transient verdict, if there was one."""
    if verdict != Verdict.OK:
        return RefusedError(verdict)
    return DeadlineError(f"no answer from {address.text} within {timeout:g} s")


def oversized(address: Address, datagram_len: int) -> TransportError:
    """A datagram that the path to the server does not carry in one piece."""
    return TransportError(
        f"a datagram of {datagram_len} bytes is too large for the path to {address.text}: "
        "lower datagram_len_max"
    )
