"""What pre-tokenizers do: the reference library, and a program that runs the native ones.

Also texts that make a difference: pieces are decided by the kinds of a few neighbouring characters,
so short texts over one or two characters of every kind reach nearly every decision.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import tokenizers

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "native" / "build" / os.environ.get("PINTOK_BUILD", "release") / "tests/test_split"

Piece = tuple[str, int, int]  # text, begin and end in characters of the original text
PreTokenize = Callable[[str], list[Piece]]

# One or two characters of every kind that a pattern tells apart, most of them with a reason.
EDGE_CHARACTERS = (
    "aAbBzZkK''''sStTdDmMrReEvVlL"  # letters of contractions, often
    "\u017f\u212a\u0130\u00df"  # long s, Kelvin sign, dotted I, sharp s: case folding
    " \t\n\r\n  \x0b\x0c\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"  # white space
    "\u180e\u200b\u2060\ufeff\x1c\x1f"  # what only looks like it
    '/!-._<|^`~"#'  # ASCII punctuation and symbols
    "0123456789\u0663\u06f4\u0967\u00b2\u00bd\u2167\u3007\u3021\U0001d7d8\u4e00"  # numbers
    "\u0301\u0300\u093e\u20dd\u3099\u0e33\u200d\ufe0f\U00016ff0"  # marks and joiners
    "\u01c5\u1fbf\u02b0\u00aa\u30fc\uff9e\u00e9\u00c9\u10a0\ua7f2\U00010400\U00010428"  # cases
    "\u3042\u30a2\u30fb\u309b\u3040\u4e2d\u9fa5\u9fa6\u3005\u2e80\ud55c\U00020000"  # CJK
    "\U0001f600\U0001f468\U0001f3fb\u20ac\u00b4\u2581\u0378\U000e0001\x00\x7f\u0f3a"  # others
)


def random_text(rng: random.Random, *, length_max: int = 150) -> str:
    """A text over few or many edge characters, or over any code points of one plane."""
    length = rng.randint(0, rng.choice((3, 8, 20, length_max)))
    how = rng.random()
    if how < 0.5:
        return "".join(rng.choices(EDGE_CHARACTERS, k=length))
    if how < 0.85:
        return "".join(rng.choices(rng.sample(EDGE_CHARACTERS, 5), k=length))
    begin, end = rng.choice(((0, 0x80), (0, 0x3000), (0, 0xD800), (0xE000, 0x20000)))
    return "".join(chr(rng.randrange(begin, end)) for _ in range(length))


def reference(component: dict[str, Any]) -> PreTokenize:
    """The pre-tokenizer that tokenizer.json describes by `component`, run by the reference."""
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    text = json.dumps({"version": "1.0", "model": model, "pre_tokenizer": component})
    tokenizer = tokenizers.Tokenizer.from_str(text)

    def run(text: str) -> list[Piece]:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [(piece, begin, end) for piece, (begin, end) in pieces]

    return run


def split(pattern: str, *, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """The component of one regular expression."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def alphabet(byte: int) -> str:
    """The character of a byte in the byte-level alphabet."""
    if byte <= 0x20:
        return chr(0x100 + byte)
    if 0x7F <= byte <= 0xA0:
        return chr(0x121 + byte - 0x7F)
    return chr(0x143) if byte == 0xAD else chr(byte)


class NativeSplit:
    """A pre-tokenizer program, run by `test_split --serve`; a context manager."""

    def __init__(self, program: bytes, *, source: int = 1, byte_units: bool = False) -> None:
        self._byte_units = byte_units
        self._process = subprocess.Popen(
            [PROGRAM, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._write(struct.pack("<IBB", len(program), source, byte_units) + program)

    def __enter__(self) -> NativeSplit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(length)
        assert len(data) == length, "test_split ended early; see its message"
        return data

    def __call__(self, text: str) -> list[Piece]:
        """The pieces of `text`. Raises ValueError with the verdict if it is not OK."""
        encoded = text.encode()
        self._write(struct.pack("<II", len(encoded), 0) + encoded)
        assert self._process.stdin is not None
        self._process.stdin.flush()
        verdict, count = struct.unpack("<II", self._read(8))
        if verdict != 0:
            raise ValueError(f"verdict {verdict}")
        pieces = []
        for _ in range(count):
            length, begin, end = struct.unpack("<III", self._read(12))
            piece = self._read(length)
            while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
                end += 1  # part of a character: the reference gives all of it
            characters = [len(encoded[:offset].decode(errors="ignore")) for offset in (begin, end)]
            shown = "".join(map(alphabet, piece)) if self._byte_units else piece.decode()
            pieces.append((shown, *characters))
        return pieces
