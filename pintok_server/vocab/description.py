"""A tokenizer in plain terms: what sources are read into, and what an image is written from.

Nothing here knows a file format or the layout of an image. All strings are bytes of UTF-8.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pintok_server._spec.image import ImageAlgorithm, ImageFlags, ImageProfile, ImageSource

U32 = npt.NDArray[np.uint32]


@dataclasses.dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of the text before anything else happens to it."""

    id: int
    content: bytes
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    match: bytes = b""
    """What is looked for: the normalized content of `normalized` tokens, otherwise the content."""


@dataclasses.dataclass(frozen=True, slots=True)
class Programs:
    """The four pipelines as image programs; empty where the source has none."""

    normalizer: bytes = b""
    pre_tokenizer: bytes = b""
    post_processor: bytes = b""
    decoder: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Truncation:
    """Truncation that the source itself sets; numbers as in the wire protocol."""

    max_length: int
    stride: int
    strategy: int
    direction: int


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """Padding that the source itself sets."""

    fixed: int | None
    """Length for a fixed padding; None pads to the longest of a batch."""
    left: bool
    multiple_of: int
    id: int
    type_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """One tokenizer, complete. Lists are indexed by id and have `ids_end` entries."""

    source: ImageSource
    algorithm: ImageAlgorithm
    flags: ImageFlags
    texts: list[bytes | None]
    """The string that id_to_token gives; None for a gap."""
    decoded: list[bytes]
    """With DECODE_CONCAT the bytes of the id, otherwise what the decoder program starts from."""
    keys: list[bytes]
    """What the model itself looks up; empty for ids that only added tokens have."""
    model_len: int
    """Tokens of the model's own vocabulary."""
    special_ids: frozenset[int]
    """Ids that skip_special_tokens leaves out."""
    added: tuple[AddedToken, ...]
    programs: Programs
    profile: ImageProfile = ImageProfile.TOKENIZERS_0_23
    merges: U32 | None = None
    """Rows of left, right, rank, id; a later row with the same halves counts."""
    ranks: U32 | None = None
    """Instead of merges: per id its rank, 0xFFFFFFFF for none."""
    byte_ids: U32 | None = None
    """256 ids: of single bytes with BYTE_UNITS, otherwise of <0xNN>."""
    scores: npt.NDArray[np.float64] | None = None
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    prefix: bytes = b""
    suffix: bytes = b""
    word_chars_max: int = 0
    truncation: Truncation | None = None
    padding: Padding | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What tools show: special token names, chat template and the like; JSON-serialisable."""

    @property
    def ids_end(self) -> int:
        """Largest id plus one."""
        return len(self.texts)
