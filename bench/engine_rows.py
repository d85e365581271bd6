"""The rows of the engine benchmark: what is measured, and what is aimed at."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Iterable

MODELS = (
    "o200k_base cl100k_base gpt2 llama-3 qwen2.5 deepseek-v3 mistral-nemo llama-2 gemma-3 "
    "bert-base-uncased t5-small xlnet-base-cased xlm-roberta-base"
).split()
# The pass of about ten minutes leaves gpt2 out, whose splitting is the simplest of its family.
QUICK_MODELS = [name for name in MODELS if name != "gpt2"]
TEXTS = ("english", "languages", "code", "json")
SIZES = (200, 1400, 32768, 1 << 20)
# Bytes of text that one round takes; a round of one call is what a large text allows.
ROUND_BYTES = {200: 64_000, 1400: 160_000, 32768: 1 << 18, 1 << 20: 1 << 20}
QUICK_ROUND_BYTES = {200: 40_000, 1400: 80_000, 32768: 1 << 18, 1 << 20: 1 << 20}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One model, kind of text, size and operation; `hot` says that rounds repeat one text."""

    model: str
    text: str
    size: int
    what: str
    hot: bool = False

    @property
    def name(self) -> str:
        state = "hot" if self.hot else "fresh"
        return f"{self.model}/{self.text}/{self.size}/{self.what}/{state}"


def all_rows(models: Iterable[str], texts: Iterable[str]) -> list[Row]:
    """Everything: each operation at each size where it says something of its own."""
    rows = []
    for model in models:
        for text in texts:
            for size in SIZES:
                rows.append(Row(model, text, size, "encode"))
                rows.append(Row(model, text, size, "encode", hot=True))
                if size <= 32768:
                    rows.append(Row(model, text, size, "count"))
                    rows.append(Row(model, text, size, "decode"))
                if size <= 1400:
                    rows.append(Row(model, text, size, "latency"))
                    rows.append(Row(model, text, size, "batch"))
                    rows.append(Row(model, text, size, "decode-list"))
                    rows.append(Row(model, text, size, "stream"))
    return rows


def quick_rows(models: Iterable[str], texts: Iterable[str]) -> list[Row]:
    """The rows that have a goal, each family by its own vocabularies, and one of each operation."""
    rows = []
    for model in models:
        for text in texts:
            sizes = SIZES if text == "english" else (1400, 32768)
            rows += [Row(model, text, size, "encode") for size in sizes]
            if text in ("english", "languages"):
                rows.append(Row(model, text, 1400, "decode"))
            if text == "english":
                rows.append(Row(model, text, 32768, "encode", hot=True))
                rows += [Row(model, text, size, "latency") for size in (200, 1400)]
                rows += [Row(model, text, 1400, what) for what in ("batch", "count", "stream")]
    return rows


def chosen(rows: Iterable[Row], patterns: list[str] | None) -> list[Row]:
    """Rows whose name, MODEL/TEXT/SIZE/OPERATION/fresh|hot, fits one of the shell patterns."""
    if not patterns:
        return list(rows)
    return [row for row in rows if any(fnmatch.fnmatch(row.name, p) for p in patterns)]


def family_of(model: pathlib.Path) -> str:
    """bytes, spm, wordpiece, unigram or other: which line of the goals a tokenizer.json is in."""
    source = json.loads(model.read_text(encoding="utf-8"))
    model_part = source["model"]
    if "merges" in model_part:
        # By how a space is written: bytes in an alphabet of characters, or a mark.
        return "bytes" if '"ByteLevel"' in json.dumps(source["decoder"]) else "spm"
    # Older files do not name the type.
    if isinstance(model_part.get("vocab"), list):
        return "unigram"
    return "wordpiece" if "continuing_subword_prefix" in model_part else "other"


# Ratio to the best exact peer on fresh text, by family and kind of text.
GOALS = {
    ("bytes", "english"): 2.0,
    ("bytes", "code"): 2.0,
    ("bytes", "json"): 1.5,
    ("bytes", "languages"): 4.0,
    ("spm", "english"): 4.0,
    ("spm", "languages"): 3.0,
    ("wordpiece", "english"): 3.0,
    ("wordpiece", "languages"): 4.0,
    ("unigram", "english"): 4.0,
    ("unigram", "languages"): 3.0,
}
HOT_GOAL = 1.2  # English, 32 KB
DECODE_GOAL = 4.0  # 1.4 KB
# p50 of one call on English text, in us.
LATENCY_GOALS = {200: 0.9, 1400: 4.0}


def goal_ratio(row: Row, family: str) -> float | None:
    """What the row's ratio to the best exact peer shall reach; None where none is set."""
    if row.what == "encode" and row.hot:
        return HOT_GOAL if (row.text, row.size) == ("english", 32768) else None
    if row.what == "encode":
        return GOALS.get((family, row.text))
    if row.what == "decode" and row.size == 1400:
        return DECODE_GOAL
    return None


def goal_us(row: Row) -> float | None:
    """What the p50 of one call shall stay under, in us; None where none is set."""
    return LATENCY_GOALS.get(row.size) if (row.what, row.text) == ("latency", "english") else None
