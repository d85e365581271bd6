"""Talk to `test_norm --serve`: normalizers of tokenizer.json run by the native code."""

from __future__ import annotations

import base64
import dataclasses
import os
import pathlib
import struct
import subprocess
from types import TracebackType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "native" / "build" / os.environ.get("PINTOK_BUILD", "release")

# Numbers of `op_norm` in native/spec/image.toml, by the names that tokenizer.json uses.
PLAIN = {
    "NFC": 1,
    "NFD": 2,
    "NFKC": 3,
    "NFKD": 4,
    "Lowercase": 5,
    "StripAccents": 6,
    "Nmt": 11,
    "ByteLevel": 14,
}
SAME_PROGRAM = 0xFFFFFFFF
STRIP, REPLACE_STRING, REPLACE_REGEX, PREPEND, PRECOMPILED, BERT = 7, 8, 9, 10, 12, 13


class NormError(Exception):
    """The native code refused the program or gave a verdict; the message is its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Normalized:
    """Result of a run; `align` holds each character's range of original bytes, if asked for."""

    text: str
    align: list[tuple[int, int]]


def string(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def op(kind: int, *, flags: int = 0, params: bytes = b"") -> bytes:
    padding = b"\0" * (-len(params) % 8)
    return struct.pack("<HHI", kind, flags, len(params)) + params + padding


def compile_normalizer(component: dict[str, Any] | None) -> bytes:
    """The image program of a normalizer as tokenizer.json writes it."""
    if component is None:
        return b""
    kind = component["type"]
    if kind == "Sequence":
        return b"".join(map(compile_normalizer, component["normalizers"]))
    if kind in PLAIN:
        return op(PLAIN[kind])
    if kind == "Strip":
        return op(STRIP, flags=component["strip_left"] | component["strip_right"] << 1)
    if kind == "Prepend":
        return op(PREPEND, params=string(component["prepend"].encode()))
    if kind == "Precompiled":
        return op(PRECOMPILED, params=string(base64.b64decode(component["precompiled_charsmap"])))
    if kind == "BertNormalizer":
        accents = component["strip_accents"]
        accents = component["lowercase"] if accents is None else accents
        bits = (component["clean_text"], component["handle_chinese_chars"], accents)
        flags = sum(bool(bit) << i for i, bit in enumerate((*bits, component["lowercase"])))
        return op(BERT, flags=flags)
    if kind == "Replace":
        [(how, pattern)] = component["pattern"].items()
        number = {"String": REPLACE_STRING, "Regex": REPLACE_REGEX}[how]
        params = string(pattern.encode()) + string(component["content"].encode())
        return op(number, params=params)
    raise ValueError(f"no such normalizer: {kind}")


class NormDriver:
    """A running `test_norm --serve`; use it as a context manager."""

    PROGRAM = BUILD / "tests" / "test_norm"

    def __enter__(self) -> NormDriver:
        self._process = subprocess.Popen(
            [self.PROGRAM, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._program: bytes | None = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stdin.close()
        self._process.wait(timeout=10)
        self._stdout.close()

    def run(self, program: bytes, *, text: str, align: bool = False) -> Normalized:
        """Run a program on a text of at most 1 MiB.

        Raises NormError when the program is refused or the run does not end well.
        """
        data = text.encode()
        if program == self._program:
            head = struct.pack("<III", align, SAME_PROGRAM, len(data))
        else:
            head = struct.pack("<III", align, len(program), len(data)) + program
        self._program = program
        self._stdin.write(head + data)
        self._stdin.flush()
        status, size = struct.unpack("<II", self._read(8))
        if status == 1:
            self._program = None
            raise NormError(self._read(size).decode())
        if status == 2:
            raise NormError(f"verdict {size}")
        result = self._read(size).decode()
        spans: list[tuple[int, int]] = []
        if align:
            every_byte = list(struct.iter_unpack("<II", self._read(8 * size)))
            pos = 0
            for char in result:
                width = len(char.encode())
                assert len(set(every_byte[pos : pos + width])) == 1, "a character has one range"
                spans.append(every_byte[pos])
                pos += width
        return Normalized(result, spans)

    def _read(self, size: int) -> bytes:
        data = self._stdout.read(size)
        if len(data) != size:
            raise AssertionError("test_norm --serve ended early")
        return data
