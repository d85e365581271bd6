"""Byte pair encoding as it is defined, and small random vocabularies to try it on.

The oracle works on strings and looks at every pair before each merge; no more than a page, so that
it can be checked by eye against the description of the reference's model.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

# Letters that every vocabulary here has, and some that none has.
KNOWN = "abcdé世"
UNKNOWN = "xyzß🙂"

WORDS = {"type": "WhitespaceSplit"}


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """A BPE model over characters. `merges` are in order of rank."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    unk: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False
    suffix: str = ""

    def encode(self, piece: str) -> list[int]:
        """The ids of one piece: the lowest rank merges first, the leftmost on a tie."""
        if self.ignore_merges and piece in self.ids:
            return [self.ids[piece]]
        symbols = self._symbols(piece)
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        while True:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            found = [(ranks[pair], at) for at, pair in enumerate(pairs) if pair in ranks]
            if not found:
                return [self.ids[symbol] for symbol in symbols]
            at = min(found)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]

    def _symbols(self, piece: str) -> list[str]:
        """The characters, with byte tokens or the unknown token where one is not known. Unknown
        ones wait for the next known character; byte tokens pass them by, as in the reference."""
        symbols: list[str] = []
        waiting = 0
        for at, character in enumerate(piece):
            symbol = character + (self.suffix if at + 1 == len(piece) else "")
            fallback = [f"<0x{byte:02X}>" for byte in symbol.encode()]
            if symbol in self.ids:
                symbols += [self.unk or ""] * waiting + [symbol]
                waiting = 0
            elif self.byte_fallback and all(token in self.ids for token in fallback):
                symbols += fallback
            elif self.unk is not None:
                waiting = 1 if self.fuse_unk else waiting + 1
        return symbols + [self.unk or ""] * waiting

    def write(
        self,
        path: Path,
        *,
        normalizer: dict[str, Any] | None = None,
        pre_tokenizer: dict[str, Any] | None = WORDS,
    ) -> Path:
        """As a tokenizer.json; its pieces are the words between spaces if nothing else is said."""
        model: dict[str, Any] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": self.unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": self.suffix or None,
            "fuse_unk": self.fuse_unk,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": self.ignore_merges,
            "vocab": self.ids,
            "merges": [list(pair) for pair in self.merges],
        }
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": None,
            "model": model,
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return path


def random_vocabulary(rng: random.Random, letters: str = KNOWN) -> Vocabulary:
    """Merges of tokens that exist, in an order that training could give or in none; sometimes with
    tokens that no merge makes."""
    suffix = rng.choice(["", "", "</w>"])
    unk = rng.choice([None, "<unk>"])
    byte_fallback = not suffix and rng.random() < 0.4
    tokens = list(letters) + ([letter + suffix for letter in letters] if suffix else [])
    merges: list[tuple[str, str]] = []
    for _ in range(rng.randrange(60)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if (suffix and left.endswith(suffix)) or (left, right) in merges or len(left + right) > 24:
            continue
        merges.append((left, right))
        if left + right not in tokens:
            tokens.append(left + right)
    if rng.random() < 0.3:
        rng.shuffle(merges)
    whole = "".join(rng.choices(letters, k=5)) + suffix
    extra = [token for token in (whole,) if token not in tokens]
    special = ([f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []) + (
        [unk] if unk else []
    )
    names = tokens + extra + special
    rng.shuffle(names)
    return Vocabulary(
        ids={name: number for number, name in enumerate(names)},
        merges=merges,
        unk=unk,
        fuse_unk=rng.random() < 0.5,
        byte_fallback=byte_fallback,
        ignore_merges=rng.random() < 0.5,
        suffix=suffix,
    )


def random_word(rng: random.Random) -> str:
    """Letters at random or a short pattern again and again; some long, some with unknown ones."""
    letters = rng.choice([KNOWN[:1], KNOWN[:2], KNOWN, KNOWN + UNKNOWN])
    size = rng.choice([1, 2, 3, 5, 8, 13, 21, 60, 70, 200])
    pattern = "".join(rng.choices(letters, k=rng.choice([1, 2, 3, size])))
    return (pattern * size)[:size]
