"""Types of the native core; the code and its documentation stand in native/py/_native.pyx."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pintok.encoding import ParseSpecial, Truncation

_U32 = npt.NDArray[np.uint32]
_U8 = npt.NDArray[np.uint8]
_Text = str | bytes
_Limit = tuple[int, int, int, int] | None

class Refused(Exception):
    verdict: int
    def __init__(self, verdict: int) -> None: ...

class SetupError(Exception):
    code: int
    sentence: str
    def __init__(self, code: int, sentence: str) -> None: ...

class Model:
    def __init__(self, path: str, *, share: bool = False) -> None: ...
    def encode(
        self, text: _Text, pair: _Text | None, options: int, truncation: _Limit = None
    ) -> _U32: ...
    def encode_full(
        self, text: _Text, pair: _Text | None, options: int, truncation: _Limit = None
    ) -> tuple[_U32, _U32, _U8, _U8]: ...
    def encode_batch(
        self, texts: list[Any], options: int, truncation: _Limit = None
    ) -> tuple[_U32, npt.NDArray[np.int64]]: ...
    def count(
        self, text: _Text, pair: _Text | None, options: int, truncation: _Limit = None
    ) -> int: ...
    def decode(self, ids: object, options: int) -> str: ...
    def piece(self, token_id: int, skip_special: bool) -> bytes | None: ...
    @property
    def config(self) -> dict[str, int]: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def image_len(self) -> int: ...
    @property
    def certificate(self) -> bytes: ...
    @property
    def meta(self) -> bytes: ...
    def id_to_token(self, token_id: int) -> bytes | None: ...
    def is_special(self, token_id: int) -> bool: ...
    def id_to_bytes(self, token_id: int) -> bytes | None: ...

class Coder:
    def __init__(self, model: Model) -> None: ...
    @property
    def _model(self) -> Model: ...
    def encode(
        self,
        text: _Text,
        *,
        pair: _Text | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> _U32: ...
    def count(
        self,
        text: _Text,
        *,
        pair: _Text | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> int: ...

def build_pairs(merges: _U32) -> tuple[_U32, int]: ...
def build_vocab(offs: _U32, keys: _U8) -> tuple[_U32, int]: ...
def build_pieces(pieces: _U8) -> tuple[_U32, int]: ...
def build_trie(offs: _U32, keys: _U8, ids: _U32) -> _U32: ...
def build_rank_merges(offs: _U32, keys: _U8, table: _U32, ranks: _U32) -> tuple[_U32, _U8]: ...
def prune_merges(
    offs: _U32, keys: _U8, table: _U32, pairs: _U32, merges: _U32, byte_ids: _U32 | None
) -> tuple[_U8, _U8]: ...
def seed_pieces(
    offs: _U32,
    keys: _U8,
    table: _U32,
    pairs: _U32,
    byte_ids: _U32 | None,
    text_offs: _U32,
    texts: _U8,
    *,
    whole: bool,
    space_marks: bool,
) -> _U8: ...
def normalize(program: bytes, profile: int, text: bytes) -> bytes: ...
def image_checksum(image: _U8) -> int: ...
