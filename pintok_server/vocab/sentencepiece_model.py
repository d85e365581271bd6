"""Reads sentencepiece's `.model` files: BPE, Unigram and CHAR models.

    pieces (1)             piece, score and type of each id
    trainer_spec (2)       model type, byte fallback, names of special pieces, white space as suffix
    normalizer_spec (3)    character map, dummy prefix, extra and escaped white space
    denormalizer_spec (5)  a character map for decoded text

As the reference runs them: user-defined pieces stay whole (BPE and CHAR match them in the
normalized text, Unigram prefers them by score), control pieces are never found in a text, unknown
characters become bytes with byte fallback and otherwise one unknown id for a run of them. What
would change ids and cannot be expressed (WORD models, merges over unused pieces or over characters
that are no piece) is refused by name.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, Final

import numpy as np

from pintok.errors import ModelError
from pintok_server._spec.image import (
    IMAGE_IDS_MAX,
    ImageAlgorithm,
    ImageFlags,
    ImageSource,
    OpDec,
    OpNorm,
)
from pintok_server.vocab import programs, protobuf
from pintok_server.vocab.description import U32, AddedToken, Description, Programs
from pintok_server.vocab.json_fields import shorten

_WHERE: Final = "sentencepiece model"
_UNK_SURFACE: Final = " \u2047 ".encode()
_SPACE: Final = "\u2581".encode()

# The reference keeps this many symbols that begin alike.
_NESTED_MAX: Final = 64

# Longest piece that merges may make, in bytes: finding its halves takes the square of it.
_MERGED_LEN_MAX: Final = 1024

# Unigram: what an unknown character costs beyond the lowest score, and what each byte of a
# user-defined piece but the first brings.
_UNK_PENALTY: Final = np.float32(10.0)
_USER_DEFINED_BONUS: Final = 0.1
_FLOAT_MAX: Final = np.float32(np.finfo(np.float32).max)


class _Type(enum.IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TYPES: Final = frozenset(_Type)


class _Kind(enum.IntEnum):
    """What a model is."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    text: bytes
    score: float
    type: _Type

    @property
    def name(self) -> str:
        return shorten(self.text.decode())


@dataclasses.dataclass(slots=True)
class _Normalizer:
    """A normalizer_spec or denormalizer_spec, with the format's defaults."""

    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


@dataclasses.dataclass(slots=True)
class _Model:
    """A whole file, with the format's defaults for what it leaves out."""

    pieces: list[_Piece] = dataclasses.field(default_factory=list)
    kind: int = _Kind.UNIGRAM
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    unk_surface: bytes = _UNK_SURFACE
    names: dict[str, bytes] = dataclasses.field(
        default_factory=lambda: {
            "unk_token": b"<unk>",
            "bos_token": b"<s>",
            "eos_token": b"</s>",
            "pad_token": b"<pad>",
        }
    )
    normalizer: _Normalizer = dataclasses.field(default_factory=_Normalizer)
    denormalizer: _Normalizer = dataclasses.field(default_factory=_Normalizer)


def load(data: bytes, *, meta: dict[str, Any]) -> Description:
    """Read a `.model` file. Raises ModelError with one sentence."""
    model = _read(data)
    vocabulary = _Vocabulary(model)
    if model.kind in (_Kind.BPE, _Kind.CHAR):
        return _describe_bpe(model, vocabulary, meta)
    if model.kind == _Kind.UNIGRAM:
        return _describe_unigram(model, vocabulary, meta)
    raise ModelError(f"{_WHERE}: the model type {_name_of(_Kind, model.kind)} is not supported")


def _name_of(names: type[enum.IntEnum], value: int) -> str:
    return names(value).name if value in set(names) else str(value)


# --- The file ------------------------------------------------------------------------------------


def _read(data: bytes) -> _Model:
    model = _Model()
    for field in protobuf.fields(memoryview(data), _WHERE):
        if field.number == 1:
            if len(model.pieces) == IMAGE_IDS_MAX:
                raise ModelError(f"{_WHERE}: more than {IMAGE_IDS_MAX} pieces are not supported")
            model.pieces.append(_read_piece(field, len(model.pieces)))
        elif field.number == 2:
            _read_trainer(field, model)
        elif field.number == 3:
            _read_normalizer(field, model.normalizer, "normalizer_spec")
        elif field.number == 5:
            _read_normalizer(field, model.denormalizer, "denormalizer_spec")
    if not model.pieces:
        raise ModelError(f"{_WHERE}: it has no pieces")
    return model


def _read_piece(message: protobuf.Field, token_id: int) -> _Piece:
    where = f"{_WHERE}: piece {token_id}"
    text, score, kind = b"", 0.0, int(_Type.NORMAL)
    for field in protobuf.fields(message.as_bytes(), where):
        if field.number == 1:
            text = field.as_text()
        elif field.number == 2:
            score = field.as_float()
        elif field.number == 3:
            kind = field.as_int()
    if not text or 0 in text:
        raise ModelError(f"{where} is empty or holds a zero byte")
    if kind not in _TYPES:
        raise ModelError(f"{where}: the type {kind} is not known")
    if not math.isfinite(score):
        raise ModelError(f"{where}: the score {score} is not a number to compare with")
    return _Piece(text, score, _Type(kind))


def _read_trainer(message: protobuf.Field, model: _Model) -> None:
    names = {45: "unk_token", 46: "bos_token", 47: "eos_token", 48: "pad_token"}
    for field in protobuf.fields(message.as_bytes(), f"{_WHERE}: trainer_spec"):
        if field.number == 3:
            model.kind = field.as_int()
        elif field.number == 24:
            model.whitespace_as_suffix = field.as_bool()
        elif field.number == 35:
            model.byte_fallback = field.as_bool()
        elif field.number == 44:
            model.unk_surface = field.as_text().partition(b"\0")[0]
        elif field.number in names:
            text = field.as_text()
            if text:
                model.names[names[field.number]] = text


def _read_normalizer(message: protobuf.Field, spec: _Normalizer, name: str) -> None:
    for field in protobuf.fields(message.as_bytes(), f"{_WHERE}: {name}"):
        if field.number == 2:
            spec.charsmap = bytes(field.as_bytes())
        elif field.number == 3:
            spec.add_dummy_prefix = field.as_bool()
        elif field.number == 4:
            spec.remove_extra_whitespaces = field.as_bool()
        elif field.number == 5:
            spec.escape_whitespaces = field.as_bool()


# --- The vocabulary ------------------------------------------------------------------------------


class _Vocabulary:
    """The pieces by what they are, checked as the reference checks them when it loads."""

    def __init__(self, model: _Model) -> None:
        self.ids: dict[bytes, int] = {}
        self.unk_id = -1
        self.byte_ids: U32 | None = None
        for token_id, piece in enumerate(model.pieces):
            if self.ids.setdefault(piece.text, token_id) != token_id:
                raise ModelError(f"{_WHERE}: the piece {piece.name} stands there twice")
            if piece.type == _Type.UNKNOWN:
                if self.unk_id >= 0:
                    raise ModelError(f"{_WHERE}: {piece.name} is a second unknown piece")
                self.unk_id = token_id
            if piece.type == _Type.BYTE and not model.byte_fallback:
                raise ModelError(f"{_WHERE}: the byte piece {piece.name} without byte_fallback")
        if self.unk_id < 0:
            raise ModelError(f"{_WHERE}: it has no unknown piece")
        if model.byte_fallback:
            self.byte_ids = self._find_bytes(model)
        self.user_defined = sorted(
            piece.text for piece in model.pieces if piece.type == _Type.USER_DEFINED
        )
        self._check_nested()

    def _find_bytes(self, model: _Model) -> U32:
        names = [b"<0x%02X>" % byte for byte in range(256)]
        for piece in model.pieces:
            if piece.type == _Type.BYTE and piece.text not in names:
                raise ModelError(f"{_WHERE}: the byte piece {piece.name} names no byte")
        for name in names:
            token_id = self.ids.get(name)
            if token_id is None or model.pieces[token_id].type != _Type.BYTE:
                raise ModelError(f"{_WHERE}: byte_fallback without the byte piece {name.decode()}")
        return np.array([self.ids[name] for name in names], dtype=np.uint32)

    def _check_nested(self) -> None:
        inside: list[bytes] = []
        for text in self.user_defined:
            while inside and not text.startswith(inside[-1]):
                inside.pop()
            inside.append(text)
            if len(inside) > _NESTED_MAX:
                raise ModelError(
                    f"{_WHERE}: more than {_NESTED_MAX} user-defined pieces begin alike:"
                    f" {shorten(text.decode())}"
                )


def _describe_bpe(model: _Model, vocabulary: _Vocabulary, meta: dict[str, Any]) -> Description:
    """BPE; a CHAR model is one without merges."""
    keys = [b""] * len(model.pieces)
    for token_id, piece in enumerate(model.pieces):
        is_char = len(piece.text.decode()) == 1
        if piece.type == _Type.NORMAL and (is_char or model.kind == _Kind.BPE):
            keys[token_id] = piece.text
    added = tuple(
        AddedToken(id=vocabulary.ids[text], content=text, normalized=True, match=text)
        for text in vocabulary.user_defined
    )
    merges = _merges(model) if model.kind == _Kind.BPE else np.empty((0, 4), dtype=np.uint32)
    return _describe(
        model,
        vocabulary,
        meta,
        algorithm=ImageAlgorithm.BPE,
        keys=keys,
        added=tuple(sorted(added, key=lambda token: token.id)),
        merges=merges,
    )


def _merges(model: _Model) -> U32:
    """Every two symbols that make a piece merge; the higher its score, the sooner."""
    # What may stand beside something else while merging.
    symbols = {
        piece.text: token_id
        for token_id, piece in enumerate(model.pieces)
        if piece.type == _Type.NORMAL
    }
    frozen = {piece.text for piece in model.pieces if piece.type == _Type.USER_DEFINED}
    scores = sorted({piece.score for piece in model.pieces}, reverse=True)
    rank_of = {score: rank for rank, score in enumerate(scores)}
    rows: list[tuple[int, int, int, int]] = []
    for token_id, piece in enumerate(model.pieces):
        if piece.type not in (_Type.NORMAL, _Type.UNUSED):
            continue
        text = piece.text
        if len(text) > _MERGED_LEN_MAX:
            raise ModelError(
                f"{_WHERE}: piece {token_id} has {len(text)} bytes, {_MERGED_LEN_MAX} are supported"
            )
        for cut in range(1, len(text)):
            if text[cut] & 0xC0 == 0x80:
                continue
            left, right = symbols.get(text[:cut]), symbols.get(text[cut:])
            if left is None or right is None:
                _check_unknown(piece, text[:cut], text[cut:], symbols, frozen)
                continue
            if piece.type == _Type.UNUSED:
                raise ModelError(
                    f"{_WHERE}: the unused piece {piece.name} can be merged, which is not supported"
                )
            rows.append((left, right, rank_of[piece.score], token_id))
    rows.sort(key=lambda row: row[2])
    return np.array(rows, dtype=np.uint32).reshape(-1, 4)


def _check_unknown(
    piece: _Piece, left: bytes, right: bytes, symbols: dict[bytes, int], frozen: set[bytes]
) -> None:
    """The reference merges characters that are no piece, too; then they would need an id."""
    halves = [
        "symbol" if half in symbols else "unknown" if _is_unknown_char(half, frozen) else "none"
        for half in (left, right)
    ]
    if "unknown" in halves and "none" not in halves:
        missing = left if halves[0] == "unknown" else right
        raise ModelError(
            f"{_WHERE}: the piece {piece.name} is merged from {shorten(missing.decode())}, which is"
            " no piece itself; that is not supported"
        )


def _is_unknown_char(text: bytes, frozen: set[bytes]) -> bool:
    return len(text) <= 4 and len(text.decode()) == 1 and text not in frozen


def _describe_unigram(model: _Model, vocabulary: _Vocabulary, meta: dict[str, Any]) -> Description:
    """Unigram: scores are what the reference adds, the unknown piece's that of any character."""
    own = np.array(
        [piece.score for piece in model.pieces if piece.type == _Type.NORMAL], dtype=np.float32
    )
    score_min = own.min(initial=_FLOAT_MAX)
    keys = [b""] * len(model.pieces)
    scores = np.zeros(len(model.pieces), dtype=np.float64)
    for token_id, piece in enumerate(model.pieces):
        if piece.type == _Type.NORMAL:
            scores[token_id] = np.float32(piece.score)
        elif piece.type == _Type.USER_DEFINED:
            bonus = _USER_DEFINED_BONUS * len(piece.text) - _USER_DEFINED_BONUS
            scores[token_id] = np.float32(bonus)
        else:
            continue
        keys[token_id] = piece.text
    scores[vocabulary.unk_id] = score_min - _UNK_PENALTY
    if not any(keys):
        raise ModelError(f"{_WHERE}: no piece can be found in a text")
    return _describe(
        model, vocabulary, meta, algorithm=ImageAlgorithm.UNIGRAM, keys=keys, scores=scores
    )


def _describe(
    model: _Model,
    vocabulary: _Vocabulary,
    meta: dict[str, Any],
    *,
    algorithm: ImageAlgorithm,
    keys: list[bytes],
    added: tuple[AddedToken, ...] = (),
    merges: U32 | None = None,
    scores: np.ndarray[Any, np.dtype[np.float64]] | None = None,
) -> Description:
    flags = ImageFlags.FUSE_UNK
    if model.byte_fallback:
        flags |= ImageFlags.BYTE_FALLBACK
    if added:
        flags |= ImageFlags.ADDED_NORMALIZED
    named = {}
    for name, text in model.names.items():
        token_id = vocabulary.ids.get(text)
        wanted = _Type.UNKNOWN if name == "unk_token" else _Type.CONTROL
        if token_id is not None and model.pieces[token_id].type == wanted:
            named[name] = token_id
    texts: list[bytes | None] = [piece.text for piece in model.pieces]
    return Description(
        source=ImageSource.SENTENCEPIECE,
        algorithm=algorithm,
        flags=flags,
        texts=texts,
        decoded=[_decoded(piece, model) for piece in model.pieces],
        keys=keys,
        model_len=len(model.pieces),
        special_ids=frozenset(
            token_id for token_id, piece in enumerate(model.pieces) if piece.type == _Type.CONTROL
        ),
        added=added,
        programs=Programs(
            normalizer=_normalizer(
                model.normalizer, vocabulary.user_defined, as_suffix=model.whitespace_as_suffix
            ),
            decoder=_decoder(model),
        ),
        merges=merges,
        byte_ids=vocabulary.byte_ids,
        scores=scores,
        unk_id=vocabulary.unk_id,
        bos_id=named.get("bos_token"),
        eos_id=named.get("eos_token"),
        pad_id=named.get("pad_token"),
        meta={
            **meta,
            "model": _name_of(_Kind, model.kind).lower(),
            "special_tokens": {name: model.names[name].decode() for name in named},
        },
    )


def _decoded(piece: _Piece, model: _Model) -> bytes:
    """What a piece becomes in the middle of a text."""
    if piece.type == _Type.CONTROL:
        return b""
    if piece.type == _Type.UNKNOWN:
        return model.unk_surface
    if piece.type == _Type.BYTE:
        return bytes([int(piece.text[3:5], 16)])
    return piece.text.replace(_SPACE, b" ")


def _normalizer(spec: _Normalizer, symbols: list[bytes], *, as_suffix: bool) -> bytes:
    flags = (
        spec.add_dummy_prefix
        | spec.remove_extra_whitespaces << 1
        | spec.escape_whitespaces << 2
        | as_suffix << 3
    )
    listed = b"".join(programs.string(symbol) for symbol in symbols)
    params = programs.string(spec.charsmap) + programs.string(listed)
    return programs.op(OpNorm.SENTENCEPIECE, flags=flags, params=params)


def _decoder(model: _Model) -> bytes:
    spec = model.normalizer
    flags = (
        spec.add_dummy_prefix or spec.remove_extra_whitespaces
    ) | spec.remove_extra_whitespaces << 1
    denormalizer = b""
    if model.denormalizer.charsmap:
        denormalizer = _normalizer(model.denormalizer, [], as_suffix=False)
    params = programs.string(model.unk_surface) + programs.string(denormalizer)
    return programs.op(OpDec.SENTENCEPIECE, flags=flags, params=params)
