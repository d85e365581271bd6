"""What the content of a `normalized` added token becomes: the model's own normalizer applied to it.

Added tokens are few and short, so this is the plain form of the operations, in Python. Where the
answer could depend on the version of the Unicode tables it refuses: characters that Unicode 3.2
already had normalize and fold alike in every later version.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator
from typing import Literal

from pintok.errors import ModelError
from pintok_server._spec.image import IMAGE_OP, OpNorm
from pintok_server.vocab import alphabet

_FORMS: dict[int, Literal["NFC", "NFD", "NFKC", "NFKD"]] = {
    OpNorm.NFC: "NFC",
    OpNorm.NFD: "NFD",
    OpNorm.NFKC: "NFKC",
    OpNorm.NFKD: "NFKD",
}
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
_SPACES = _SPACE + "\u200a\u2028\u2029\u202f\u205f\u3000"


def normalize(program: bytes, content: bytes) -> bytes:
    """Run a normalizer program over one content. Raises ModelError where it cannot be exact."""
    text = content.decode()
    for kind, flags, params in _operations(program):
        text = _apply(kind, flags, params, text)
    return text.encode()


def _operations(program: bytes) -> Iterator[tuple[OpNorm, int, bytes]]:
    pos = 0
    while pos < len(program):
        kind, flags, param_len = IMAGE_OP.unpack_from(program, pos)
        pos += IMAGE_OP.size
        yield OpNorm(kind), flags, program[pos : pos + param_len]
        pos += param_len + -param_len % 8


def _strings(params: bytes) -> list[str]:
    out = []
    pos = 0
    while pos < len(params):
        (length,) = struct.unpack_from("<I", params, pos)
        out.append(params[pos + 4 : pos + 4 + length].decode())
        pos += 4 + length
    return out


def _apply(kind: OpNorm, flags: int, params: bytes, text: str) -> str:
    if kind is OpNorm.REPLACE_STRING:
        pattern, content = _strings(params)
        return text.replace(pattern, content)
    if kind is OpNorm.PREPEND:
        return _strings(params)[0] + text if text else text
    if kind is OpNorm.BYTE_LEVEL:
        return "".join(alphabet.CHARACTERS[byte] for byte in text.encode())
    if kind is OpNorm.STRIP:
        text = text.lstrip(_SPACES) if flags & 1 else text
        return text.rstrip(_SPACES) if flags & 2 else text
    if text.isascii() and kind in _FORMS:
        return text
    if not all(unicodedata.ucd_3_2_0.category(character) != "Cn" for character in text):
        raise ModelError(f"added_tokens: {text!r} needs newer Unicode tables to be normalized")
    if kind in _FORMS:
        return unicodedata.normalize(_FORMS[kind], text)
    if kind is OpNorm.LOWERCASE:
        return "".join(character.lower() for character in text)
    if kind is OpNorm.STRIP_ACCENTS:
        return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Mc", "Me"))
    raise ModelError(f"added_tokens: {text!r} cannot be normalized by {kind.name.lower()}")
