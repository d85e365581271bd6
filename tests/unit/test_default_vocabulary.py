"""The embedded default vocabulary is the file that its training script wrote."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "pintok" / "data" / "default" / "tokenizer.json"


def _load_script():
    path = ROOT / "scripts" / "train_default_vocabulary.py"
    spec = importlib.util.spec_from_file_location("train_default_vocabulary", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_default_vocabulary"] = module
    spec.loader.exec_module(module)
    return module


def test_shipped_file_is_the_recorded_result():
    """Nobody edits the trained file by hand: its digest stands in the script."""
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == _load_script().RESULT_SHA256


def test_shape_of_the_vocabulary():
    """32,768 entries without a gap, every byte a token, every merge makes a token."""
    document = json.loads(VOCABULARY.read_text())
    vocab = document["model"]["vocab"]
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    assert sorted([*vocab.values(), *added.values()]) == list(range(32_768))
    assert sum(len(token) == 1 for token in vocab) == 256
    for merge in document["model"]["merges"]:
        left, right = merge.split(" ")
        assert left in vocab and right in vocab and left + right in vocab


def test_reference_library_reads_it():
    """Special tokens are found in the text, and decoding gives every byte back."""
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(VOCABULARY))
    assert reference.get_vocab_size() == 32_768
    text = "<|im_start|>user\nGrüße, 世界! 👩‍🚀\t12345<|im_end|>"
    ids = reference.encode(text).ids
    assert ids[0] == reference.token_to_id("<|im_start|>")
    assert ids[-1] == reference.token_to_id("<|im_end|>")
    assert reference.decode(ids, skip_special_tokens=False) == text


def test_notice_names_every_source():
    """Each package that gave text stands in NOTICE with its version and licence."""
    notice = (ROOT / "NOTICE").read_text()
    for package in _load_script().PACKAGES.values():
        line = next(x for x in notice.splitlines() if x.strip().startswith(package.name + " "))
        assert package.version in line
        assert line.endswith(package.licence)
