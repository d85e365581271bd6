"""Encodings cut into overlapping windows, and padded to a common length.

The core cuts a text to its first window. What overflows is made here from the encoding of the
whole text: ids, offsets and types of a window's texts are rows of it, and the special tokens of the
post-processor stand around every window. Windows, their order and the padding are those of the
reference library; for a pair every window of the one text meets every window of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pintok._wire import Verdict
from pintok.encoding import Encoding, Padding, Truncation
from pintok.errors import RefusedError

Rows = npt.NDArray[np.int64]

_OUTPUT_IDS_MAX: Final = 1 << 26
"""Most ids in all windows of one text: windows may overlap by all but one id."""


def encode_windows(
    encode: Callable[..., Encoding],
    text: str | bytes,
    *,
    pair: str | bytes | None,
    truncation: Truncation,
    **options: Any,
) -> Encoding:
    """`encode` with truncation, and with what is cut off in `overflowing`.

    `encode` is an `encode_full` that gives the first window. Raises RefusedError as it does, and
    reply_too_long where all windows together have more than 2**26 ids.
    """
    # Only the windows after the first depend on the stride, which servers refuse.
    start = dataclasses.replace(truncation, stride=0)
    first = encode(text, pair=pair, truncation=start, **options)
    if len(first) < truncation.max_length:  # Whatever is cut is as long as it may be.
        return first
    whole = encode(text, pair=pair, **options)
    if len(whole) == len(first):
        return first
    plain = {**options, "add_special_tokens": False, "bos": False, "eos": False}
    alone = [encode(side, **plain).ids for side in (text, pair) if side is not None]
    pieces = _pieces(whole, alone)
    lens = [len(ids) for ids in alone]
    keep = truncation.max_length - (len(whole) - sum(lens))
    kept = _kept_lens(lens, keep, truncation)
    if any(0 < left < n and truncation.stride >= left for n, left in zip(lens, kept, strict=True)):
        raise RefusedError(Verdict.BAD_OPTION, detail="the stride leaves no progress")
    cut = [_windows(length, left, truncation) for length, left in zip(lens, kept, strict=True)]
    _check_size(cut)
    overflowing = [_take(whole, rows) for rows in _combined(pieces, cut)]
    return dataclasses.replace(first, overflowing=tuple(overflowing))


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of the whole encoding that belong together."""

    rows: Rows
    side: int | None
    """0 for the first text, 1 for the second, None for special tokens around them."""


def _pieces(whole: Encoding, alone: Sequence[npt.NDArray[np.uint32]]) -> list[_Piece]:
    """The encoding as special tokens and texts, in order."""
    text_rows = np.flatnonzero(whole.special_tokens_mask == 0)
    order = next(
        (
            sides
            for sides in ([*range(len(alone))], [*reversed(range(len(alone)))])
            if np.array_equal(whole.ids[text_rows], np.concatenate([alone[s] for s in sides]))
        ),
        None,
    )
    if order is None:
        raise RefusedError(
            Verdict.UNSUPPORTED, detail="the post-processor changes the texts that it joins"
        )
    pieces = []
    begin = done = 0
    for side in order:
        rows = text_rows[done : done + len(alone[side])]
        done += len(rows)
        if len(rows):
            pieces.append(_Piece(np.arange(begin, rows[0]), None))
            begin = int(rows[-1]) + 1
        pieces.append(_Piece(rows, side))
    pieces.append(_Piece(np.arange(begin, len(whole)), None))
    return pieces


def _kept_lens(lens: Sequence[int], keep: int, truncation: Truncation) -> list[int]:
    """How many ids of each text a window has, where there are more than `keep`."""
    if keep == 0:
        return [0] * len(lens)
    excess = sum(lens) - keep
    if truncation.strategy == "only_second":
        return [lens[0], lens[1] - excess]
    if truncation.strategy == "only_first" or len(lens) == 1:
        return [lens[0] - excess, *lens[1:]]
    shorter, longer = sorted(lens)
    longer = shorter if shorter > keep else max(shorter, keep - shorter)
    if shorter + longer > keep:
        shorter, longer = keep // 2, keep // 2 + keep % 2
    return [longer, shorter] if lens[0] > lens[1] else [shorter, longer]


def _windows(length: int, kept: int, truncation: Truncation) -> list[tuple[int, int]]:
    """The windows of a text: half-open ranges of its ids, the one that is kept first."""
    if kept >= length:
        return [(0, length)]
    if kept == 0:
        return [(0, 0), (0, length)]
    step = kept - truncation.stride
    count = 1 + -(-(length - kept) // step)
    if truncation.direction == "right":
        return [(i * step, min(i * step + kept, length)) for i in range(count)]
    return [(max(length - i * step - kept, 0), length - i * step) for i in range(count)]


def _check_size(cut: Sequence[Sequence[tuple[int, int]]]) -> None:
    lens = [sum(end - begin for begin, end in windows) for windows in cut]
    total = lens[0] if len(cut) == 1 else lens[0] * len(cut[1]) + lens[1] * len(cut[0])
    if total > _OUTPUT_IDS_MAX:
        raise RefusedError(Verdict.REPLY_TOO_LONG, detail=f"{total} ids in all windows")


def _combined(pieces: Sequence[_Piece], cut: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Rows]:
    """The rows of every window after the first, as the reference orders them."""
    first: list[Rows] = []
    others: list[list[Rows]] = []
    for piece in pieces:
        mine, *more = (
            [piece.rows]
            if piece.side is None
            else [piece.rows[begin:end] for begin, end in cut[piece.side]]
        )
        others = [[*other, rows] for other in others for rows in (mine, *more)]
        others += [[*first, rows] for rows in more]
        first.append(mine)
    return (np.concatenate(rows) for rows in others)


def _take(whole: Encoding, rows: Rows) -> Encoding:
    return Encoding(
        whole.ids[rows],
        whole.offsets[rows],
        whole.type_ids[rows],
        whole.special_tokens_mask[rows],
    )


def pad(encodings: Sequence[Encoding], padding: Padding) -> list[Encoding]:
    """Every encoding, and what overflows of it, filled up to a common length.

    That is `padding.length`, or the longest encoding's (its overflow does not count), rounded up.
    Longer ones stay as they are. Raises ValueError for settings that cannot be.
    """
    _check_padding(padding)
    length = padding.length
    if length is None:
        length = max((len(encoding) for encoding in encodings), default=0)
    if padding.pad_to_multiple_of:
        length += -length % padding.pad_to_multiple_of
    return [_padded(encoding, length, padding) for encoding in encodings]


def _check_padding(padding: Padding) -> None:
    if padding.direction not in ("right", "left"):
        raise ValueError(f"unknown direction of padding: {padding}")
    if not 0 <= padding.pad_id < 1 << 32 or not 0 <= padding.pad_type_id < 1 << 8:
        raise ValueError(f"padding needs a pad_id of 32 bits and a pad_type_id of 8: {padding}")
    for length in (padding.length, padding.pad_to_multiple_of):
        if length is not None and not 0 <= length <= _OUTPUT_IDS_MAX:
            raise ValueError(f"padding needs lengths from 0 to {_OUTPUT_IDS_MAX}: {padding}")


def _padded(encoding: Encoding, length: int, padding: Padding) -> Encoding:
    overflowing = tuple(_padded(window, length, padding) for window in encoding.overflowing)
    missing = max(length - len(encoding), 0)
    width = (0, missing) if padding.direction == "right" else (missing, 0)

    def filled(array: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
        return np.pad(array, width, constant_values=value)

    return Encoding(
        filled(encoding.ids, padding.pad_id),
        np.pad(encoding.offsets, (width, (0, 0))),
        filled(encoding.type_ids, padding.pad_type_id),
        filled(encoding.special_tokens_mask, 1),
        overflowing,
        filled(encoding.attention_mask, 0),
    )
