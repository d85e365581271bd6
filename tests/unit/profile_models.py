"""Models in which the reference profiles differ, texts for them, and the candidate that answers.

Two vocabularies show what a component does: one with two tokens a character, first of a piece or
inside of it, for pre-tokenizers; and 256 byte tokens, for normalizers.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

from pintok_server.vocab import patterns

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIFFERENCES = ROOT / "native" / "spec" / "unicode_tokenizers_1_0.txt"
WORKER = ROOT / "tests" / "candidate.py"
CANDIDATE = ROOT / "bench" / "out" / "tokenizers-1.0.0rc3" / "bin" / "python"

Json = dict[str, Any]

_CONTEXT = "a{0}b A{0}B 1{0}2 !{0}! {0} 漢{0}字\n{0}'s x'{0} e\u0315{0}\u0316{0}"
_ORDINARY = [
    "Hello, world!",
    "x'ſa don'T",
    "漢字かな 12345",
    "Ａé\u0301e\u0323\u0307 ſ ﬁ",
    "  \n\n 1",
]


def candidate_python() -> pathlib.Path | None:
    """The interpreter that has tokenizers 1.0, or None: PINTOK_CANDIDATE_PYTHON, or that of the
    environment which `scripts/gen_unicode.py --probe` made."""
    stated = os.environ.get("PINTOK_CANDIDATE_PYTHON")
    path = pathlib.Path(stated) if stated else CANDIDATE
    return path if path.exists() else None


class Candidate:
    """The candidate as a process of its own, which one may ask many times."""

    def __init__(self, python: pathlib.Path) -> None:
        self._process = subprocess.Popen(
            [python, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, path: pathlib.Path, texts: list[str], **more: Any) -> Json:
        """What it answers for a file; see tests/candidate.py."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": str(path), "texts": texts, **more}) + "\n")
        self._process.stdin.flush()
        reply: Json = json.loads(self._process.stdout.readline())
        return reply

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def differing(*, every: int = 1) -> list[str]:
    """Characters that the profiles take for something else: of each range every so many."""
    found: set[int] = set()
    for line in DIFFERENCES.read_text(encoding="utf-8").splitlines():
        kind, *words = line.split()
        if kind in ("canonical", "compatible"):
            found.add(int(words[0], 16))
        if kind in ("category", "combining") or (
            kind in "+-" and not words[0].startswith("WORD_P")
        ):
            for word in words[1:]:
                first, _, last = word.partition("-")
                found.update(range(int(first, 16), int(last or first, 16) + 1, every))
    return [chr(cp) for cp in sorted(found)]


def texts(characters: list[str]) -> list[str]:
    """Each character in all contexts, then texts without any."""
    return [*(_CONTEXT.format(char) for char in characters), *_ORDINARY]


def settings(model: Json, **parts: Any) -> Json:
    """A tokenizer.json."""
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"))
    rest = {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None}
    return {**rest, **empty, **parts, "model": model}


def by_character(cases: list[str], pre_tokenizer: Json, **parts: Any) -> Json:
    """A model that shows where pieces begin."""
    vocab = {"[UNK]": 0}
    for char in sorted(set("".join(cases)) - {"\0"}):
        vocab[char] = len(vocab)
        vocab["##" + char] = len(vocab)
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 1000,
        "vocab": vocab,
    }
    return settings(model, pre_tokenizer=pre_tokenizer, **parts)


def by_byte(normalizer: Json) -> Json:
    """A model whose ids are the bytes of the normalized text."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "vocab": {f"<0x{byte:02X}>": byte for byte in range(256)},
        "merges": [],
    }
    return settings(model, normalizer=normalizer)


def isolating(pattern: str) -> Json:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def splits() -> dict[str, Json]:
    """The split patterns that tokenizers 1.0 knows, by family."""
    first = {scanner: text for text, scanner in reversed(patterns.PATTERNS.items())}
    found = {
        name: isolating(first[name])
        for name in ("gpt2", "llama3", "qwen2", "o200k", "tekken", "kimi")
    }
    parts = [first[name] for name in ("deepseek_digits", "deepseek_cjk", "deepseek_v3")]
    found["deepseek"] = {"type": "Sequence", "pretokenizers": list(map(isolating, parts))}
    return found


def variants(cases: list[str]) -> Iterator[tuple[str, Json]]:
    """A model for each component whose answers belong to a profile."""
    for name, split in splits().items():
        yield f"split {name}", by_character(cases, split)
    for name, more in (
        ("Whitespace", {}),
        ("WhitespaceSplit", {}),
        ("BertPreTokenizer", {}),
        ("UnicodeScripts", {}),
        ("Punctuation", {"behavior": "Isolated"}),
        ("Digits", {"individual_digits": True}),
    ):
        yield name, by_character(cases, {"type": name, **more})
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"):
        yield name, by_byte({"type": name})
    bert = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    yield "BertNormalizer", by_byte({"type": "BertNormalizer", **bert, "lowercase": True})
    for form in ("NFD", "NFKD"):
        sequence = [{"type": form}, {"type": "StripAccents"}, {"type": "Lowercase"}]
        yield f"{form} bare", by_byte({"type": "Sequence", "normalizers": sequence})


# Components in which no text may differ: their tables are the same.
SAME = frozenset(
    {"Lowercase", "StripAccents", "Nmt", "WhitespaceSplit", "Digits", "UnicodeScripts"}
)
