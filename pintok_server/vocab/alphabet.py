"""The byte-level alphabet: GPT-2's bijection between the 256 bytes and 256 printable characters."""

from __future__ import annotations

from typing import Final


def _characters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return [table[byte] for byte in range(256)]


CHARACTERS: Final = tuple(_characters())
"""The character of each byte."""

UTF8_BYTES: Final = frozenset({*range(0xC0), *range(0xC2, 0xF5)})
"""Bytes that valid UTF-8 can hold."""

_BYTES: Final = {character: byte for byte, character in enumerate(CHARACTERS)}
# str.translate to code points below 256, then latin-1: two C loops instead of one in Python.
_TO_LATIN1: Final = {ord(character): byte for character, byte in _BYTES.items()}
_ALPHABET: Final = frozenset(CHARACTERS)


def to_bytes(text: str) -> bytes | None:
    """The bytes that the characters stand for; None when one is outside of the alphabet."""
    if not _ALPHABET.issuperset(text):
        return None
    return text.translate(_TO_LATIN1).encode("latin-1")


def decoded(text: str) -> bytes:
    """What the ByteLevel decoder makes of one token: its bytes, or else its own UTF-8."""
    as_bytes = to_bytes(text)
    return text.encode() if as_bytes is None else as_bytes
