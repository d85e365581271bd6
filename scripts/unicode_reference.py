"""Asks an installed `tokenizers` what a single normalizer or pre-tokenizer does to a text.

Up to 0.23 the library has an object for each component. From 1.0 on it only turns texts into ids,
so a component is put into a small `tokenizer.json` whose ids can be read back: 256 byte tokens for
what a normalizer gives, one token a character, and another one inside of a piece, for where a
pre-tokenizer splits.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import tokenizers

Json = dict[str, Any]
Span = tuple[int, int]

UNK = "[UNK]"
INSIDE = "##"
PIECE_CHARS_MAX = 1 << 30
# U+0000 cannot be in a vocabulary of 1.0.
NUL_STANDS_IN = "\1"


class Reference(Protocol):
    """One version of the library."""

    version: str

    def normalizer(self, component: Json) -> Callable[[str], str]:
        """What a normalizer does. Raises whatever the library raises for a component."""

    def normalize_each(self, component: Json, texts: Sequence[str]) -> list[str]:
        """What it does to each of many texts."""

    def splitter(self, component: Json) -> Callable[[str], list[Span]]:
        """Where the pieces of a text begin and end, in code points; what is dropped is in none."""


def installed() -> Reference:
    """The library that can be imported here."""
    return Components() if hasattr(tokenizers, "normalizers") else Ids()


def settings(model: Json, **parts: Any) -> Json:
    """A tokenizer.json with one model and the given parts."""
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    rest = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    return {**rest, **empty, **parts, "model": model}


def load(root: Json) -> Any:
    """A tokenizer of the installed library; 1.0 reads nothing but files."""
    with tempfile.TemporaryDirectory(prefix="pintok-") as directory:
        path = pathlib.Path(directory) / "tokenizer.json"
        path.write_text(json.dumps(root), encoding="utf-8")
        return tokenizers.Tokenizer.from_file(str(path))


def characters(chars: Iterable[str]) -> tuple[Json, dict[int, tuple[str, bool]]]:
    """A model with two tokens a character, first of a piece or not, and what an id says of them."""
    vocab, meaning = {UNK: 0}, {}
    for char in sorted(set(chars) - {"\0"}):
        for is_first in (True, False):
            meaning[len(vocab)] = (char, is_first)
            vocab[char if is_first else INSIDE + char] = len(vocab)
    model = {
        "type": "WordPiece",
        "unk_token": UNK,
        "continuing_subword_prefix": INSIDE,
        "max_input_chars_per_word": PIECE_CHARS_MAX,
        "vocab": vocab,
    }
    return model, meaning


class Components:
    """tokenizers up to 0.23."""

    version = tokenizers.__version__

    def normalizer(self, component: Json) -> Callable[[str], str]:
        root = settings(characters("x")[0], normalizer=component)
        return tokenizers.Tokenizer.from_str(json.dumps(root)).normalizer.normalize_str  # type: ignore[no-any-return]

    def normalize_each(self, component: Json, texts: Sequence[str]) -> list[str]:
        return list(map(self.normalizer(component), texts))

    def splitter(self, component: Json) -> Callable[[str], list[Span]]:
        root = settings(characters("x")[0], pre_tokenizer=component)
        pre = tokenizers.Tokenizer.from_str(json.dumps(root)).pre_tokenizer
        return lambda text: [span for _, span in pre.pre_tokenize_str(text)]


class Ids:
    """tokenizers from 1.0 on."""

    version = tokenizers.__version__.replace("-rc.", "rc")

    def normalizer(self, component: Json) -> Callable[[str], str]:
        tokenizer = self._bytes(component)
        return lambda text: bytes(tokenizer.encode(text).ids).decode()

    def normalize_each(self, component: Json, texts: Sequence[str]) -> list[str]:
        return [bytes(one.ids).decode() for one in self._bytes(component).encode_batch(texts)]

    def _bytes(self, component: Json) -> Any:
        """A tokenizer whose ids are the bytes of the normalized text."""
        model = {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {f"<0x{byte:02X}>": byte for byte in range(256)},
            "merges": [],
        }
        return load(settings(model, normalizer=component))

    def splitter(self, component: Json) -> Callable[[str], list[Span]]:
        def split(text: str) -> list[Span]:
            text = text.replace("\0", NUL_STANDS_IN)
            model, meaning = characters(text)
            tokenizer = load(settings(model, pre_tokenizer=component))
            spans: list[list[int]] = []
            at = 0
            for token_id in tokenizer.encode(text).ids:
                char, is_first = meaning[token_id]
                at = text.index(char, at)
                if is_first:
                    spans.append([at, at])
                at += 1
                spans[-1][1] = at
            return [(begin, end) for begin, end in spans]

        # No word of this model is known, so its ids are as many as there are pieces.
        pieces = load(settings(characters("")[0], pre_tokenizer=component))
        if len(pieces.encode("x\0x").ids) != len(pieces.encode(f"x{NUL_STANDS_IN}x").ids):
            raise ValueError(
                f"{component} takes U+0000 for something else than a control character"
            )
        return split
