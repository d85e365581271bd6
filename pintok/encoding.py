"""What encoding yields: arrays, in process and from a server alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
ParseSpecial = Literal["all", "none"]
OffsetUnit = Literal["chars", "bytes"]
Strategy = Literal["longest_first", "only_first", "only_second"]
Direction = Literal["right", "left"]


class PlainRange(NamedTuple):
    """Bytes of a text's UTF-8 where special tokens are ordinary text."""

    begin: int
    end: int
    every: bool = False
    """Added tokens that are not special are ordinary text there, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Truncation:
    """How a text is cut to a number of ids, as the reference library's `enable_truncation`."""

    max_length: int
    """Most ids in the result, special tokens included."""
    stride: int = 0
    """Ids that neighbouring windows share."""
    strategy: Strategy = "longest_first"
    direction: Direction = "right"


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """How encodings are filled up, as the reference library's `enable_padding`."""

    direction: Direction = "right"
    """Where the padding stands."""
    pad_id: int = 0
    pad_type_id: int = 0
    length: int | None = None
    """Ids in every encoding; None for as many as the longest of the batch has."""
    pad_to_multiple_of: int | None = None
    """The length is rounded up to a multiple of this; None or 0 for as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Encoding:
    """Everything known about the ids of one text or pair; all arrays have one row per id."""

    ids: Ids
    """uint32, shape (n,)."""
    offsets: npt.NDArray[np.uint32]
    """uint32, shape (n, 2): half-open ranges of the original text, in the unit asked for."""
    type_ids: npt.NDArray[np.uint8]
    """uint8, shape (n,): 0 for the first text, 1 for the second, as the post-processor says."""
    special_tokens_mask: npt.NDArray[np.uint8]
    """uint8, shape (n,): 1 for ids the post-processor added, padding included."""
    overflowing: tuple[Encoding, ...] = ()
    """The windows after this one, where the text was cut."""
    attention_mask: npt.NDArray[np.uint8] = dataclasses.field(default=None)  # type: ignore[arg-type]
    """uint8, shape (n,): 0 for padding, 1 for all else."""

    def __post_init__(self) -> None:
        if self.attention_mask is None:
            object.__setattr__(self, "attention_mask", np.ones(len(self.ids), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, slots=True)
class PlainEncoding:
    """The ids of a text with ranges where special tokens are ordinary text."""

    ids: Ids
    """uint32, shape (n,)."""
    hits: int
    """Tokens written there that were left as text; from a server 255 stands for more, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Ids of many texts in one array."""

    ids: Ids
    """uint32, shape (total,): the ids of all texts, one after another."""
    splits: npt.NDArray[np.int64]
    """int64, shape (texts + 1,): text i has ids[splits[i]:splits[i + 1]]."""

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __getitem__(self, index: int) -> Ids:
        """A view of the ids of one text; negative indices count from the end."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"text {index} of {count}")
        index %= count
        return self.ids[self.splits[index] : self.splits[index + 1]]

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))
