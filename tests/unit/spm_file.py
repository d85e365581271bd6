"""Writes sentencepiece `.model` files field by field, so that a test can say what is in one."""

from __future__ import annotations

import struct
from collections.abc import Iterable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)

Piece = tuple[str | bytes, float, int]

BASE: tuple[Piece, ...] = (("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL))
BYTES: tuple[Piece, ...] = tuple((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field: a number as varint, a float as 4 bytes, text as bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def piece(text: str | bytes, score: float, kind: int) -> bytes:
    return field(1, field(1, text) + field(2, float(score)) + field(3, kind))


def charsmap(entries: dict[bytes, bytes]) -> bytes:
    """A character map: a double array with one block of 256 units a node, and its strings."""
    nodes: list[bytes] = sorted({key[:end] for key in entries for end in range(len(key) + 1)})
    strings, values = b"", {}
    for key, value in entries.items():
        values[key] = len(strings)
        strings += value + b"\0"
    # Node n has its children in block n + 1; unused units are led to by a byte that no text has.
    units = [0xFF] * (256 * (len(nodes) + 1))
    for index, node in enumerate(nodes):
        base = 256 * (index + 1)
        place = 0 if not node else 256 * (nodes.index(node[:-1]) + 1) ^ node[-1]
        units[place] = (place ^ base) << 10 | (node in entries) << 8 | (node[-1] if node else 0)
        if node in entries:
            units[base] = 0x8000_0000 | values[node]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + strings


def model(
    pieces: Iterable[Piece],
    *,
    kind: int = UNIGRAM,
    trainer: bytes = b"",
    normalizer: bytes = b"",
    denormalizer: bytes = b"",
) -> bytes:
    """A whole file; `trainer` and the others are fields of theirs, already written."""
    out = b"".join(piece(*entry) for entry in pieces)
    out += field(2, field(3, kind) + trainer) + field(3, normalizer)
    return out + (field(5, denormalizer) if denormalizer else b"")
