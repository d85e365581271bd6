"""What callers ask, without a server: arguments to items, outcomes to results.

A question is the same whoever answers it: one server or one of several, blocking or asyncio.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pintok import _codec, _wire
from pintok._codec import Call, MalformedReply, Outcome
from pintok._exchange import Item, ItemBatch
from pintok._options import id_array, joined, offset_options, truncation_limits, utf8
from pintok._shape import pad, windows_of
from pintok._wire import Verdict, WireOp, WireOptions, WireOutputs
from pintok.encoding import Batch, Encoding, Ids, Padding, PlainEncoding, PlainRange, Truncation
from pintok.errors import RefusedError
from pintok.stream import Step, Stepped

ALL_OUTPUTS: Final = int(
    WireOutputs.OFFSETS
    | WireOutputs.OFFSETS_SHORT
    | WireOutputs.TYPE_IDS
    | WireOutputs.SPECIAL_TOKENS_MASK
)
_STEP_IDS_MAX: Final = 0xFFFF

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

Text = str | bytes
Outcomes = Sequence[Outcome]


@dataclasses.dataclass(frozen=True, slots=True)
class Question(Generic[_T_co]):
    """Items to ask for, and what their outcomes mean together."""

    batches: tuple[ItemBatch, ...]
    finish: Callable[[list[Outcome]], _T_co]
    each: bool = False
    """A refused item is an outcome beside the others; otherwise the first refusal is raised."""

    @property
    def total(self) -> int:
        """Of all items."""
        return self.batches[0].total if self.batches else 0

    @property
    def data_len(self) -> int:
        """Bytes of all items."""
        return sum(len(item.data) for batch in self.batches for item in batch.items)

    @property
    def strange(self) -> bool:
        """Whether the model's reference must be asked what some texts mean."""
        items = (item for batch in self.batches for item in batch.items)
        return any(item.strange is not None for item in items)


# --- questions --------------------------------------------------------------------------------


def encode(
    text: Text, pair: Text | None, options: int, truncation: Truncation | None
) -> Question[Ids]:
    call = encode_call(WireOp.ENCODE, options, 0, pair is not None, truncation)
    return _one(call, _text_item(text, pair), lambda outcome: present(outcome.ids))


def encode_full(
    text: Text,
    pair: Text | None,
    options: int,
    truncation: Truncation | None,
    overflowing: bool,
) -> Question[Encoding]:
    call = full_call(options, pair is not None, truncation, overflowing)
    return _one(call, _text_item(text, pair), encoding_of)


def encode_batch_full(
    texts: Iterable[Text | tuple[Text, Text]],
    options: int,
    truncation: Truncation | None,
    padding: Padding | None,
) -> Question[list[Encoding]]:
    """A request has one kind, so texts and pairs are asked for apart."""
    sides = [text if isinstance(text, tuple) else (text, None) for text in texts]
    batches = []
    for paired in (False, True):
        places = [place for place, side in enumerate(sides) if (side[1] is not None) == paired]
        if places:
            items = [_text_item(*sides[place]) for place in places]
            call = full_call(options, paired, truncation)
            batches.append(ItemBatch(call, items, places, len(sides)))

    def finish(outcomes: Outcomes) -> list[Encoding]:
        encodings = [encoding_of(outcome) for outcome in outcomes]
        return encodings if padding is None else pad(encodings, padding)

    return Question(tuple(batches), finish)


def encode_plain(text: Text, plain: Sequence[PlainRange], options: int) -> Question[PlainEncoding]:
    """Ranges are places in the text's UTF-8, so surrogates are refused whatever the model."""
    call, (item,) = _with_ranges(Call(WireOp.ENCODE, options), [_exact_item(text, None)], [plain])
    return _one(call, item, lambda outcome: PlainEncoding(present(outcome.ids), outcome.hits))


def encode_batch(
    texts: Iterable[Text], options: int, truncation: Truncation | None
) -> Question[Batch]:
    call = encode_call(WireOp.ENCODE, options, 0, False, truncation)
    items = [_text_item(text, None) for text in texts]
    return Question((ItemBatch.of(call, items),), _batch_of)


def count(text: Text, pair: Text | None, options: int) -> Question[int]:
    call = encode_call(WireOp.COUNT, options, 0, pair is not None, None)
    return _one(call, _text_item(text, pair), lambda outcome: outcome.count)


def count_batch(texts: Iterable[Text], options: int) -> Question[list[int]]:
    call = encode_call(WireOp.COUNT, options, 0, False, None)
    items = [_text_item(text, None) for text in texts]
    return Question((ItemBatch.of(call, items),), lambda all_: [one.count for one in all_])


def decode(ids: Sequence[int] | npt.NDArray[Any], options: int) -> Question[str]:
    call, items = _decode_items([id_array(ids)], options)
    return _one(call, items[0], lambda outcome: present(outcome.text))


def decode_batch(
    batch: Iterable[Sequence[int] | npt.NDArray[Any]], options: int
) -> Question[list[str]]:
    call, items = _decode_items([id_array(ids) for ids in batch], options)
    return Question(
        (ItemBatch.of(call, items),), lambda all_: [present(outcome.text) for outcome in all_]
    )


def decode_steps(steps: Sequence[Step], options: int) -> Question[list[Stepped]]:
    call, items = step_items(steps, options)
    return Question((ItemBatch.of(call, items),), lambda all_: [stepped_of(one) for one in all_])


def encode_each(
    texts: Sequence[Text],
    pairs: Sequence[Text] | None,
    plain: Sequence[Sequence[PlainRange]] | None,
    full: bool,
    options: int,
    truncation: Truncation | None,
) -> Question[list[Outcome]]:
    if full:
        call = full_call(options | offset_options("chars"), pairs is not None, truncation)
    else:
        call = encode_call(WireOp.ENCODE, options, 0, pairs is not None, truncation, overflow=True)
    items = list(_sided_items(texts, pairs))
    if plain is not None:
        call, items = _with_ranges(call, items, plain)
    return _each(call, items)


def count_each(
    texts: Sequence[Text], pairs: Sequence[Text] | None, options: int
) -> Question[list[Outcome]]:
    call = encode_call(WireOp.COUNT, options, 0, pairs is not None, None)
    return _each(call, list(_sided_items(texts, pairs)))


def decode_each(
    batch: Iterable[Sequence[int] | npt.NDArray[Any]], options: int
) -> Question[list[Outcome]]:
    return _each(*_decode_items([id_array(ids) for ids in batch], options))


def decode_steps_each(steps: Sequence[Step], options: int) -> Question[list[Outcome]]:
    return _each(*step_items(steps, options))


def _one(call: Call, item: Item, finish: Callable[[Outcome], _T]) -> Question[_T]:
    return Question((ItemBatch.of(call, [item]),), lambda outcomes: finish(outcomes[0]))


def _each(call: Call, items: Sequence[Item]) -> Question[list[Outcome]]:
    return Question((ItemBatch.of(call, items),), list, each=True)


# --- calls and items --------------------------------------------------------------------------


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


def skip_option(skip_special_tokens: bool) -> int:
    """WireOptions of a decode."""
    return int(WireOptions.SKIP_SPECIAL_TOKENS) if skip_special_tokens else 0


def _with_ranges(
    call: Call, items: Sequence[Item], plain: Sequence[Sequence[PlainRange]]
) -> tuple[Call, list[Item]]:
    """The call and the items with ranges of ordinary text."""
    ranged = dataclasses.replace(call, options=call.options | WireOptions.RANGES)
    return ranged, [
        dataclasses.replace(item, ranges=range_bytes(ranges))
        for item, ranges in zip(items, plain, strict=True)
    ]


def _text_item(text: Text, pair: Text | None) -> Item:
    """A text, or a pair of them; strange ones wait for what the model's reference says."""
    try:
        return _exact_item(text, pair)
    except RefusedError:
        sides = (text,) if pair is None else (text, pair)
        seen = b"".join(
            side.encode("utf-8", "surrogatepass") if isinstance(side, str) else side
            for side in sides
        )
        return Item((), seen, strange=sides)


def _exact_item(text: Text, pair: Text | None) -> Item:
    """A text, or a pair of them. Raises RefusedError (bad_utf8) for lone surrogates."""
    first = utf8(text)
    if pair is None:
        return Item((len(first),), first)
    second = utf8(pair)
    return Item((len(first), len(second)), first + second)


def _sided_items(texts: Sequence[Text], pairs: Sequence[Text] | None) -> Iterator[Item]:
    if pairs is None:
        return (_text_item(text, None) for text in texts)
    return (_text_item(text, pair) for text, pair in zip(texts, pairs, strict=True))


def settled(
    batch: ItemBatch, outcomes: list[Outcome | None], *, joins: bool, each: bool
) -> ItemBatch:
    """The batch with its strange texts as the model's reference takes them.

    It joins surrogates, or refuses them: an outcome with `each`, else RefusedError (bad_utf8).
    """
    items = []
    for item, place in zip(batch.items, batch.places, strict=True):
        if item.strange is None:
            items.append(item)
        elif joins and not item.ranges:
            sides = [joined(side) for side in item.strange]
            items.append(_exact_item(sides[0], sides[1] if len(sides) > 1 else None))
        elif each:
            outcomes[place] = Outcome(Verdict.BAD_UTF8)
            items.append(item)
        else:
            for side in item.strange:
                utf8(side)  # The sentence says which character.
    return dataclasses.replace(batch, items=items)


def _decode_items(batch: Sequence[Ids], options: int) -> tuple[Call, list[Item]]:
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


def _batch_of(outcomes: Sequence[Outcome]) -> Batch:
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
