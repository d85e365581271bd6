"""Many items of one kind to one server, without a socket: what to send next, what came back.

    exchange = Exchange(batch, outcomes, datagram_len_max)
    while (part := exchange.take()) is not None:
        datagram = part.datagram(target, request_id)
        exchange.accept(part, reply)

Many short items share a datagram. What does not fit into a reply is sent again with less beside it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Final

from pintok import _codec, _wire
from pintok._codec import Call, Outcome, Reply, Target
from pintok._transfer import DATAGRAM_LEN_MIN
from pintok._wire import Verdict, WireOp, WireOutputs
from pintok.errors import RefusedError

_RANGES_LEN_MAX: Final = _wire.WIRE_RANGES_MAX * _wire.WIRE_RANGE.size
# Bytes of texts that share a message in segments: enough to spare round trips, few enough to keep
# a busy server fair.
_LONG_FILL: Final = 64 * 1024
# A reply this much longer than its request is not unusual.
_GROWTH: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One item of a request: its entries of the item table, and its bytes."""

    lengths: tuple[int, ...]
    data: bytes
    ranges: bytes = b""
    """wire_ranges, when the call's options announce them."""
    strange: tuple[str | bytes, ...] | None = None
    """The texts themselves where one has surrogates: only the model's reference knows what they
    mean, and `data` is not to be sent."""


@dataclasses.dataclass(frozen=True, slots=True)
class ItemBatch:
    """Items of one call that may share datagrams."""

    call: Call
    items: Sequence[Item]
    places: Sequence[int]
    """Of each item, where its outcome belongs among `total` of them."""
    total: int

    @classmethod
    def of(cls, call: Call, items: Sequence[Item]) -> ItemBatch:
        """All items there are."""
        return cls(call, items, range(len(items)), len(items))

    def pick(self, indices: Sequence[int]) -> ItemBatch:
        """Some of the items."""
        items = [self.items[index] for index in indices]
        places = [self.places[index] for index in indices]
        return ItemBatch(self.call, items, places, self.total)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Items that share a datagram; `indices` are their places in the call."""

    call: Call
    indices: tuple[int, ...]
    items: tuple[Item, ...]
    segmented: bool = False
    """Request or reply may be longer than a datagram: for `pintok._transfer`."""

    @property
    def op(self) -> WireOp:
        return self.call.op

    def may_be_longer(self, length: int) -> bool:
        """Whether request or reply may well be a datagram of more bytes than this."""
        sent = _len_of(self.call, self.items)
        growth = 1 if self.call.op == WireOp.COUNT else _GROWTH
        return self.segmented or sent * growth > length

    def datagram(self, target: Target, request_id: int, sealed_len: int = 0) -> bytes:
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
    """The state of one batch at one server: items waiting, outcomes known."""

    __slots__ = (
        "_batch",
        "_call",
        "_each",
        "_fill",
        "_items",
        "_items_max",
        "_long",
        "_long_call",
        "_long_fill",
        "_outcomes",
        "_segments",
        "_waiting",
        "unanswered",
    )

    of_model = True

    def __init__(
        self,
        batch: ItemBatch,
        outcomes: list[Outcome | None],
        datagram_len_max: int,
        *,
        each: bool = False,
    ) -> None:
        """What `outcomes` has at an item's place already is not asked for; the others go there.

        With `each`, a refused item gets an outcome with its verdict and the others go on. Without,
        raises RefusedError (text_too_long) when an item alone is too long for a message, or for a
        datagram where the path is too narrow for segments.
        """
        call = batch.call
        self._batch = batch
        self._each = each
        self._call = call
        self._items = batch.items
        self._outcomes = outcomes
        self._waiting: collections.deque[int] = collections.deque()
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
        self.unanswered = 0
        """Items without an outcome."""
        for index, item in enumerate(batch.items):
            if outcomes[batch.places[index]] is not None:
                continue
            item_len = _len_of(call, [item])
            if item_len > len_max and each:
                outcomes[batch.places[index]] = Outcome(Verdict.TEXT_TOO_LONG)
                continue
            self.unanswered += 1
            if item_len > len_max:
                room = len_max - _len_of(call, [dataclasses.replace(item, data=b"")])
                raise too_long(batch.places[index], batch.total, len(item.data), room)
            if item_len > datagram_len_max:
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
            self._put(part.indices[0], Outcome(reply.verdict))
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
                raise refused_item(outcome.verdict, self._batch.places[index], self._batch.total)
            else:
                self._put(index, outcome)
        if again:
            self._again(again, part)

    def _put(self, index: int, outcome: Outcome) -> None:
        self._outcomes[self._batch.places[index]] = outcome
        self.unanswered -= 1

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


def _len_of(call: Call, items: Sequence[Item]) -> int:
    """Bytes of the datagram that carries these items."""
    return _codec.batch_len(
        call,
        sum(len(item.lengths) for item in items),
        sum(len(item.data) for item in items),
        len(items),
        sum(len(item.ranges) for item in items),
    )


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
