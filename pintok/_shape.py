"""Encodings cut into overlapping windows, and padded to a common length, as the reference does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pintok.encoding import Encoding, Ids, Padding

_LEN_MAX: Final = 1 << 26


def windows_of(
    ids: Ids,
    offsets: npt.NDArray[np.uint32],
    type_ids: npt.NDArray[np.uint8],
    special_tokens_mask: npt.NDArray[np.uint8],
    lens: Sequence[int],
) -> Encoding:
    """The encoding whose rows are those of all windows, of these lengths, one after another.

    The first is the encoding, the others are in `overflowing`. Without lengths all is one window.
    """
    windows = []
    begin = 0
    for length in lens or [len(ids)]:
        rows = slice(begin, begin + length)
        begin += length
        windows.append(
            Encoding(ids[rows], offsets[rows], type_ids[rows], special_tokens_mask[rows])
        )
    first, *others = windows
    return dataclasses.replace(first, overflowing=tuple(others)) if others else first


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
        if length is not None and not 0 <= length <= _LEN_MAX:
            raise ValueError(f"padding needs lengths from 0 to {_LEN_MAX}: {padding}")


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
