"""Tokenizer files are a door: whatever stands in one, it compiles or is refused with a sentence.

Seeded mutations of small models of every family, in their JSON and in their bytes. What compiles
must open, and encode and decode without a crash. `PINTOK_SEED` chooses the run.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from pintok import Tokenizer
from pintok.errors import ModelError, RefusedError
from pintok_server import vocab
from tests.unit import vocab_models as models

ROUNDS = 120
SEED = int(os.environ.get("PINTOK_SEED", "70523"))
TEXT = "the thing  in 123 é漢😀 <s>tok <|end|>\n\nWE'LL [CLS] a"

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**32, 2**64, 1e300, -0.0),
    *("", "a", "Ġ", "\x00", "é" * 40, "Right", "Contiguous"),
    *([], {}, [[]], [None]),
    *({"type": "Sequence"}, {"type": "ByteLevel"}, {"type": "NFKC"}),
    *({"Regex": "("}, {"Regex": "a|"}, {"String": " "}),
    {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False},
    {"type": "Metaspace", "replacement": "▁"},
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value of a JSON tree; of long lists and dicts only some."""
    out = [path] if path else []
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return out
    for key, inner in items[:12] + items[-6:]:
        out += _places(inner, (*path, key))
    return out


def _mutate(root: Any, source: random.Random) -> None:
    """Change, remove, rename or double one value somewhere."""
    path = source.choice(_places(root))
    parent = root
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    action = source.randrange(4)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[source.choice(("type", "x", "é", "vocab", "<s>"))] = parent.pop(key)
    elif action == 2 and isinstance(parent, list):
        parent.insert(source.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(source.choice(_VALUES))


def _attempt(path: pathlib.Path, cache_dir: pathlib.Path) -> bool:
    """Compile and use a model; False when it was refused."""
    try:
        compiled = vocab.load_image(path, cache_dir=cache_dir, certify=False)
        tokenizer = Tokenizer(compiled.path)
    except ModelError as refusal:
        assert str(refusal).strip(), "a refusal without a sentence"
        assert "\n" not in str(refusal), str(refusal)
        return False
    try:
        ids = tokenizer.encode(TEXT)
        tokenizer.encode(TEXT, pair=TEXT, add_special_tokens=False)
        tokenizer.decode(ids)
        tokenizer.decode(list(range(0, tokenizer.ids_end, 7)), skip_special_tokens=True)
    except RefusedError:
        pass
    return True


_JSON_MODELS: dict[str, Callable[[], Any]] = {
    "byte_level": models.byte_level,
    "split": lambda: models.byte_level(
        pre_tokenizer=models.split_pre_tokenizer(),
        ignore_merges=True,
        normalizer={"type": "NFC"},
        post_processor=models.template("<s>", 269),
        truncation={"max_length": 5, "strategy": "LongestFirst", "stride": 0},
    ),
    "sentencepiece_bpe": models.sentencepiece_bpe,
    "unigram": models.unigram,
    "wordpiece": models.wordpiece,
    "wordlevel": models.wordlevel,
}


@pytest.mark.parametrize("name", _JSON_MODELS)
def test_mutated_json_compiles_or_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(f"{SEED} {name}")
    accepted = 0
    for _ in range(ROUNDS):
        root = _JSON_MODELS[name]()
        for _ in range(source.choice((1, 1, 2, 4))):
            _mutate(root, source)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(root), encoding="utf-8")
        accepted += _attempt(path, tmp_path / "cache")
    assert 0 < accepted < ROUNDS


@pytest.mark.parametrize(
    "write",
    [
        lambda directory: models.write(directory, models.byte_level()),
        lambda directory: models.write_tiktoken(directory).with_name("small.tiktoken"),
        models.write_tiktoken,
        models.write_tekken,
    ],
    ids=["tokenizer.json", "ranks", "encoding.json", "tekken.json"],
)
def test_mutated_bytes_compile_or_are_refused(
    write: Callable[[pathlib.Path], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    print(f"PINTOK_SEED={SEED}")
    path = write(tmp_path / "model")
    whole = path.read_bytes()
    source = random.Random(f"{SEED} {path.name}")
    for _ in range(ROUNDS):
        data = bytearray(whole)
        for _ in range(source.choice((1, 1, 3, 20))):
            at = source.randrange(len(data))
            action = source.randrange(3)
            if action == 0:
                data[at] = source.randrange(256)
            elif action == 1:
                del data[at : at + source.randrange(1, 40)]
            else:
                data[at:at] = source.choice((b'"', b"{", b"\xff", b"\n", b"0", data[at : at + 9]))
        path.write_bytes(data)
        _attempt(path, tmp_path / "cache")


def test_truncated_files_are_refused(tmp_path: pathlib.Path) -> None:
    """No beginning of a tokenizer.json is a model."""
    path = models.write(tmp_path / "model", models.wordpiece())
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        assert not _attempt(path, tmp_path / "cache"), length
