"""Components of tokenizer.json as image programs.

Each function takes the JSON of one component, nested sequences included, and returns the operations
in order. A component or value that the image cannot express is refused by name, never left out.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Iterator
from typing import Any

from pintok.errors import ModelError
from pintok_server._spec.image import OpDec, OpNorm, OpPost, OpPre, SplitScanner
from pintok_server.vocab import patterns
from pintok_server.vocab.json_fields import Json, field, option, shorten

BEHAVIOURS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SCHEMES = {"always": 0, "never": 1, "first": 2}
_ALPHABET = 0x8000


def op(kind: int, *, flags: int = 0, params: bytes = b"") -> bytes:
    """One operation: header, parameters, padding."""
    return struct.pack("<HHI", kind, flags, len(params)) + params + b"\0" * (-len(params) % 8)


def string(text: str | bytes) -> bytes:
    """A STRING parameter."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(raw)) + raw


def flatten(component: Json | None, key: str, where: str) -> Iterator[tuple[Json, str]]:
    """The components of nested sequences in order, each with its place for error messages."""
    if component is None:
        return
    if not isinstance(component, dict):
        raise ModelError(f"{where}: not a component: {shorten(component)}")
    if component.get("type") == "Sequence" or ("type" not in component and key in component):
        for index, inner in enumerate(field(component, key, list, where)):
            yield from flatten(inner, key, f"{where}[{index}]")
        return
    kind = component.get("type")
    if not isinstance(kind, str):
        raise ModelError(f"{where}: a component without type: {shorten(component)}")
    yield component, f"{where} {kind}"


def _unsupported(component: Json, where: str) -> ModelError:
    return ModelError(f"{where} is not supported: {shorten(component)}")


# --- Normalizers ---------------------------------------------------------------------------------


def _pattern(component: Json, where: str) -> tuple[str, bool]:
    """(text, is a regular expression) of a `pattern` field."""
    pattern = field(component, "pattern", (dict, str), where)
    if isinstance(pattern, str):
        return pattern, False
    if len(pattern) == 1:
        for kind, text in pattern.items():
            if kind in ("String", "Regex") and isinstance(text, str):
                return text, kind == "Regex"
    raise ModelError(f"{where}: the pattern {shorten(pattern)} is neither String nor Regex")


def _replace(component: Json, where: str, *, kinds: tuple[int, int]) -> bytes:
    text, is_regex = _pattern(component, where)
    content = field(component, "content", str, where)
    if not text:
        raise ModelError(f"{where}: an empty pattern is not supported")
    return op(kinds[is_regex], params=string(text) + string(content))


def _bert_normalizer(component: Json, where: str) -> bytes:
    lowercase = field(component, "lowercase", bool, where)
    strip_accents = component.get("strip_accents")
    if strip_accents not in (None, True, False):
        raise ModelError(f"{where}: strip_accents has the value {shorten(strip_accents)}")
    flags = (
        field(component, "clean_text", bool, where)
        | field(component, "handle_chinese_chars", bool, where) << 1
        | (lowercase if strip_accents is None else strip_accents) << 2
        | lowercase << 3
    )
    return op(OpNorm.BERT, flags=flags)


def _precompiled(component: Json, where: str) -> bytes:
    text = field(component, "precompiled_charsmap", str, where)
    try:
        charsmap = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ModelError(f"{where}: precompiled_charsmap is not base64: {error}") from None
    return op(OpNorm.PRECOMPILED, params=string(charsmap))


def _strip_normalizer(component: Json, where: str) -> bytes:
    left = field(component, "strip_left", bool, where)
    right = field(component, "strip_right", bool, where)
    return op(OpNorm.STRIP, flags=left | right << 1)


_NORMALIZERS: dict[str, Callable[[Json, str], bytes]] = {
    "NFC": lambda component, where: op(OpNorm.NFC),
    "NFD": lambda component, where: op(OpNorm.NFD),
    "NFKC": lambda component, where: op(OpNorm.NFKC),
    "NFKD": lambda component, where: op(OpNorm.NFKD),
    "Lowercase": lambda component, where: op(OpNorm.LOWERCASE),
    "StripAccents": lambda component, where: op(OpNorm.STRIP_ACCENTS),
    "Nmt": lambda component, where: op(OpNorm.NMT),
    "ByteLevel": lambda component, where: op(OpNorm.BYTE_LEVEL),
    "Strip": _strip_normalizer,
    "Replace": lambda component, where: _replace(
        component, where, kinds=(OpNorm.REPLACE_STRING, OpNorm.REPLACE_REGEX)
    ),
    "Prepend": lambda component, where: op(
        OpNorm.PREPEND, params=string(field(component, "prepend", str, where))
    ),
    "Precompiled": _precompiled,
    "Bert": _bert_normalizer,
    "BertNormalizer": _bert_normalizer,
}


def normalizer(component: Json | None) -> bytes:
    """The program of a normalizer. Raises ModelError naming what it cannot express."""
    out = []
    for part, where in flatten(component, "normalizers", "normalizer"):
        make = _NORMALIZERS.get(part["type"])
        if make is None:
            raise _unsupported(part, where)
        out.append(make(part, where))
    return b"".join(out)


# --- Spaces that become marks --------------------------------------------------------------------

MARK = "\u2581".encode()
_PREPEND_MARK = op(OpNorm.PREPEND, params=string(MARK))
_MARK_SPACES = op(OpNorm.REPLACE_STRING, params=string(" ") + string(MARK))
# Behind it there are no spaces: such a split does nothing.
_SPLIT_SPACES = {
    op(OpPre.SPLIT_STRING, params=struct.pack("<BBH", behaviour, 0, 0) + string(" "))
    for behaviour in range(len(BEHAVIOURS))
}
_METASPACE = {
    op(OpPre.METASPACE, params=struct.pack("<BBH", scheme, 0, 0) + string(MARK))
    for scheme in _SCHEMES.values()
}


def marks_spaces(normalizer: bytes, pre_tokenizer: bytes) -> bool:
    """Whether all that the programs do is to turn spaces into U+2581, put one before the text or
    not, and take all of it as one piece: what `ptk_words.h` does on the text as it stands."""
    if normalizer in (_MARK_SPACES, _PREPEND_MARK + _MARK_SPACES):
        return pre_tokenizer == b"" or pre_tokenizer in _SPLIT_SPACES
    return normalizer == b"" and pre_tokenizer in _METASPACE


# --- Pre-tokenizers ------------------------------------------------------------------------------


def split(pattern: str, *, behaviour: int, invert: bool, dialect: patterns.Dialect) -> bytes:
    """A split by a regular expression: by its scanner where the pattern has one."""
    scanner = patterns.scanner_of(pattern, dialect=dialect)
    if scanner is not None:
        known = SplitScanner[scanner.upper()]
        return op(OpPre.SPLIT_KNOWN, params=struct.pack("<HBBI", known, behaviour, invert, 0))
    return op(OpPre.SPLIT_REGEX, params=struct.pack("<BBH", behaviour, invert, 0) + string(pattern))


def _behaviour(component: Json, where: str, default: str | None = None) -> int:
    name = component.get("behavior", default)
    if name not in BEHAVIOURS:
        raise ModelError(f"{where}: the behavior {shorten(name)} is not known")
    return BEHAVIOURS.index(name)


def _split(component: Json, where: str) -> bytes:
    text, is_regex = _pattern(component, where)
    behaviour = _behaviour(component, where)
    invert = field(component, "invert", bool, where)
    if not text:
        raise ModelError(f"{where}: an empty pattern is not supported")
    if is_regex:
        return split(text, behaviour=behaviour, invert=invert, dialect=patterns.Dialect.ONIGURUMA)
    return op(OpPre.SPLIT_STRING, params=struct.pack("<BBH", behaviour, invert, 0) + string(text))


def _metaspace_params(component: Json, where: str) -> bytes:
    replacement = field(component, "replacement", str, where)
    if len(replacement) != 1:
        raise ModelError(f"{where}: the replacement {shorten(replacement)} is not one character")
    scheme = component.get("prepend_scheme", "always")
    if scheme not in _SCHEMES:
        raise ModelError(f"{where}: the prepend_scheme {shorten(scheme)} is not known")
    if component.get("add_prefix_space") is False:
        if "prepend_scheme" in component and scheme != "never":
            raise ModelError(f"{where}: add_prefix_space contradicts prepend_scheme {scheme!r}")
        scheme = "never"
    does_split = component.get("split")
    return struct.pack("<BBH", _SCHEMES[scheme], does_split in (None, True), 0) + string(
        replacement
    )


def _byte_level_flags(component: Json, where: str) -> int:
    return int(
        field(component, "add_prefix_space", bool, where)
        | option(component, "use_regex", True, where) << 1
        | field(component, "trim_offsets", bool, where) << 2
    )


def _char_delimiter(component: Json, where: str) -> bytes:
    delimiter = field(component, "delimiter", str, where)
    if len(delimiter) != 1:
        raise ModelError(f"{where}: the delimiter {shorten(delimiter)} is not one character")
    return op(OpPre.CHAR_DELIMITER, params=struct.pack("<I", ord(delimiter)))


def _fixed_length(component: Json, where: str) -> bytes:
    length = field({"length": 5, **component}, "length", int, where)
    if not 0 < length <= 0xFFFFFFFF:
        raise ModelError(f"{where}: the length {length} is not supported")
    return op(OpPre.FIXED_LENGTH, params=struct.pack("<I", length))


_PRE_TOKENIZERS: dict[str, Callable[[Json, str], bytes]] = {
    "ByteLevel": lambda component, where: op(
        OpPre.BYTE_LEVEL, flags=_byte_level_flags(component, where)
    ),
    "Split": _split,
    "Metaspace": lambda component, where: op(
        OpPre.METASPACE, params=_metaspace_params(component, where)
    ),
    "Whitespace": lambda component, where: op(OpPre.WHITESPACE),
    "WhitespaceSplit": lambda component, where: op(OpPre.WHITESPACE_SPLIT),
    "Punctuation": lambda component, where: op(
        OpPre.PUNCTUATION, params=struct.pack("<I", _behaviour(component, where, "Isolated"))
    ),
    "Digits": lambda component, where: op(
        OpPre.DIGITS, flags=field(component, "individual_digits", bool, where)
    ),
    "BertPreTokenizer": lambda component, where: op(OpPre.BERT),
    "UnicodeScripts": lambda component, where: op(OpPre.UNICODE_SCRIPTS),
    "Delimiter": _char_delimiter,
    "CharDelimiterSplit": _char_delimiter,
    "FixedLength": _fixed_length,
}

# DeepSeek V3's three splits have one scanner when they stand together, each isolating its matches.
_FUSED = tuple(
    op(OpPre.SPLIT_KNOWN, params=struct.pack("<HBBI", scanner, BEHAVIOURS.index("Isolated"), 0, 0))
    for scanner in (
        SplitScanner.DEEPSEEK_DIGITS,
        SplitScanner.DEEPSEEK_CJK,
        SplitScanner.DEEPSEEK_V3,
        SplitScanner.DEEPSEEK_V3_ALL,
    )
)


def pre_tokenizer(component: Json | None, *, byte_units: bool) -> bytes:
    """The program of a pre-tokenizer. Raises ModelError naming what it cannot express.

    With `byte_units` the mapping of ByteLevel is left out when the program runs. The operations
    behind it still see its alphabet: they carry the ALPHABET flag, and their patterns stay regular
    expressions, since scanners read text.
    """
    out: list[bytes] = []
    mapped = False
    for part, where in flatten(component, "pretokenizers", "pre_tokenizer"):
        make = _PRE_TOKENIZERS.get(part["type"])
        if make is None:
            raise _unsupported(part, where)
        if mapped and part["type"] == "ByteLevel":
            raise ModelError(f"{where}: a second ByteLevel is not supported")
        if mapped and part["type"] == "Split" and _pattern(part, where)[1]:
            params = struct.pack(
                "<BBH", _behaviour(part, where), field(part, "invert", bool, where), 0
            )
            made = op(OpPre.SPLIT_REGEX, params=params + string(_pattern(part, where)[0]))
        else:
            made = make(part, where)
        if mapped and byte_units:
            kind, flags = struct.unpack_from("<HH", made)
            made = struct.pack("<HH", kind, flags | _ALPHABET) + made[4:]
        out.append(made)
        mapped = mapped or part["type"] == "ByteLevel"
    for index in range(len(out) - 2):
        if tuple(out[index : index + 3]) == _FUSED[:3]:
            out[index : index + 3] = [_FUSED[3]]
    return b"".join(out)


def has_byte_level(component: Json | None, key: str, where: str) -> bool:
    """Whether a ByteLevel stands anywhere in a (nested) component."""
    return any(part["type"] == "ByteLevel" for part, _ in flatten(component, key, where))


# --- Post-processors -----------------------------------------------------------------------------


def _template_entries(
    template: list[Any], special_tokens: Json, where: str
) -> Iterator[tuple[int, int, int]]:
    for piece in template:
        if not isinstance(piece, dict) or len(piece) != 1:
            raise ModelError(f"{where}: {shorten(piece)} is not a piece of a template")
        ((kind, value),) = piece.items()
        name = field(value, "id", str, where)
        type_id = field(value, "type_id", int, where)
        if not 0 <= type_id <= 255:
            raise ModelError(f"{where}: the type_id {type_id} does not fit a byte")
        if kind == "Sequence":
            if name not in ("A", "B"):
                raise ModelError(f"{where}: the sequence {name!r} is neither A nor B")
            yield (0 if name == "A" else 1), type_id, 0
        elif kind == "SpecialToken":
            if name not in special_tokens:
                raise ModelError(f"{where}: the special token {name!r} is not defined")
            for token_id in field(special_tokens[name], "ids", list, where):
                yield 2, type_id, token_id
        else:
            raise ModelError(f"{where}: {shorten(piece)} is not a piece of a template")


def _template(component: Json, where: str) -> bytes:
    special_tokens = field(component, "special_tokens", dict, where)
    sides = [
        list(_template_entries(field(component, side, list, where), special_tokens, where))
        for side in ("single", "pair")
    ]
    params = struct.pack("<II", len(sides[0]), len(sides[1]))
    for what, type_id, token_id in (*sides[0], *sides[1]):
        _check_id(token_id, where)
        params += struct.pack("<BBHI", what, type_id, 0, token_id)
    return op(OpPost.TEMPLATE, params=params)


def _check_id(token_id: object, where: str) -> None:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < 2**32:
        raise ModelError(f"{where}: {shorten(token_id)} is not an id")


def _token_pair(component: Json, where: str) -> bytes:
    ids = []
    for name in ("cls", "sep"):
        pair = field(component, name, list, where)
        if len(pair) != 2:
            raise ModelError(f"{where}: {name} has the value {shorten(pair)}")
        _check_id(pair[1], where)
        ids.append(pair[1])
    return struct.pack("<II", *ids)


def _offset_flags(component: Json, where: str) -> int:
    return int(
        field(component, "add_prefix_space", bool, where)
        | field(component, "trim_offsets", bool, where) << 2
    )


_POST_PROCESSORS: dict[str, Callable[[Json, str], bytes]] = {
    "ByteLevel": lambda component, where: op(
        OpPost.BYTE_LEVEL, flags=_offset_flags(component, where)
    ),
    "TemplateProcessing": _template,
    "RobertaProcessing": lambda component, where: op(
        OpPost.ROBERTA,
        flags=_offset_flags(component, where),
        params=_token_pair(component, where),
    ),
    "BertProcessing": lambda component, where: op(
        OpPost.BERT, params=_token_pair(component, where)
    ),
}


def post_processor(component: Json | None) -> bytes:
    """The program of a post-processor. Raises ModelError naming what it cannot express."""
    out = []
    for part, where in flatten(component, "processors", "post_processor"):
        make = _POST_PROCESSORS.get(part["type"])
        if make is None:
            raise _unsupported(part, where)
        out.append(make(part, where))
    return b"".join(out)


# --- Decoders ------------------------------------------------------------------------------------


def _strip_decoder(component: Json, where: str) -> bytes:
    content = field(component, "content", str, where)
    if len(content) != 1:
        raise ModelError(f"{where}: the content {shorten(content)} is not one character")
    start = field(component, "start", int, where)
    stop = field(component, "stop", int, where)
    if not (0 <= start < 2**32 and 0 <= stop < 2**32):
        raise ModelError(f"{where}: start {start} and stop {stop} are not supported")
    return op(OpDec.STRIP, params=struct.pack("<III", ord(content), start, stop))


def _ctc(component: Json, where: str) -> bytes:
    return op(
        OpDec.CTC,
        flags=field(component, "cleanup", bool, where),
        params=string(field(component, "pad_token", str, where))
        + string(field(component, "word_delimiter_token", str, where)),
    )


_DECODERS: dict[str, Callable[[Json, str], bytes]] = {
    "ByteLevel": lambda component, where: op(OpDec.BYTE_LEVEL),
    "Replace": lambda component, where: _replace(
        component, where, kinds=(OpDec.REPLACE, OpDec.REPLACE_REGEX)
    ),
    "ByteFallback": lambda component, where: op(OpDec.BYTE_FALLBACK),
    "Fuse": lambda component, where: op(OpDec.FUSE),
    "Strip": _strip_decoder,
    "Metaspace": lambda component, where: op(
        OpDec.METASPACE, params=_metaspace_params(component, where)
    ),
    "WordPiece": lambda component, where: op(
        OpDec.WORDPIECE,
        flags=field(component, "cleanup", bool, where),
        params=string(field(component, "prefix", str, where)),
    ),
    "BPEDecoder": lambda component, where: op(
        OpDec.BPE, params=string(field(component, "suffix", str, where))
    ),
    "CTC": _ctc,
}


def decoder(component: Json | None) -> bytes:
    """The program of a decoder. Raises ModelError naming what it cannot express."""
    out = []
    for part, where in flatten(component, "decoders", "decoder"):
        make = _DECODERS.get(part["type"])
        if make is None:
            raise _unsupported(part, where)
        out.append(make(part, where))
    return b"".join(out)
