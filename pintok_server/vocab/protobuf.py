"""Reads the wire format of protocol buffers, as little of it as model files need.

    tag      varint: field number << 3 | wire type
    type 0   varint         type 1   8 bytes
    type 2   length, bytes  type 5   4 bytes

Lengths are checked against what is there, numbers against their width, and nothing recurses: the
work is linear in the bytes. Groups (types 3 and 4), which no writer of today makes, are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pintok.errors import ModelError

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5

_NAMES = {VARINT: "a varint", FIXED64: "8 bytes", BYTES: "bytes", FIXED32: "4 bytes"}
_VARINT_MAX = 10

Value = int | memoryview


class Field:
    """One field of a message: its number, its wire type, and its value still undecoded."""

    __slots__ = ("kind", "number", "value", "where")

    def __init__(self, number: int, kind: int, value: Value, where: str) -> None:
        self.number = number
        self.kind = kind
        self.value = value
        self.where = where

    def _refusal(self, wanted: str) -> ModelError:
        return ModelError(
            f"{self.where}: field {self.number} is {_NAMES[self.kind]} instead of {wanted}"
        )

    def as_bytes(self) -> memoryview:
        """The value of a string, bytes or message field."""
        if not isinstance(self.value, memoryview) or self.kind != BYTES:
            raise self._refusal(_NAMES[BYTES])
        return self.value

    def as_text(self) -> bytes:
        """A string, which must be UTF-8."""
        raw = bytes(self.as_bytes())
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise ModelError(f"{self.where}: field {self.number} is not UTF-8") from None
        return raw

    def as_int(self) -> int:
        """A number that is not negative."""
        if not isinstance(self.value, int):
            raise self._refusal(_NAMES[VARINT])
        return self.value

    def as_bool(self) -> bool:
        """A switch."""
        return self.as_int() != 0

    def as_float(self) -> float:
        """A number of 32 bits."""
        if not isinstance(self.value, memoryview) or self.kind != FIXED32:
            raise self._refusal(_NAMES[FIXED32])
        value: float = struct.unpack("<f", self.value)[0]
        return value


def fields(message: memoryview, where: str) -> Iterator[Field]:
    """The fields of a message in order. Raises ModelError at the first byte that is wrong."""
    pos = 0
    while pos < len(message):
        tag, pos = _varint(message, pos, where)
        number, kind = tag >> 3, tag & 7
        value: Value
        if not 0 < number < 1 << 29:
            raise ModelError(f"{where}: the field number {number} at byte {pos} is not allowed")
        if kind == VARINT:
            value, pos = _varint(message, pos, where)
        elif kind in (BYTES, FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
            if kind == BYTES:
                length, pos = _varint(message, pos, where)
            if length > len(message) - pos:
                raise ModelError(f"{where}: field {number} is cut off at byte {pos}")
            value = message[pos : pos + length]
            pos += length
        else:
            raise ModelError(f"{where}: field {number} has the wire type {kind}")
        yield Field(number, kind, value, where)


def _varint(message: memoryview, pos: int, where: str) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_MAX):
        if pos + index >= len(message):
            raise ModelError(f"{where}: a number is cut off at byte {pos}")
        byte = message[pos + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, pos + index + 1
    raise ModelError(f"{where}: a number at byte {pos} has more than {_VARINT_MAX} bytes")
