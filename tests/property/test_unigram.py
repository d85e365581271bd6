"""Native Unigram against the reference library, on vocabularies made for ties and for cuts."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

pytest.importorskip("pintok._native", reason="the native core is not built")

from pintok import Tokenizer
from tests.unit import vocab_models

SEED = int(os.environ.get("PTK_TEST_SEED", "20240229"))
VOCABULARIES = int(os.environ.get("PTK_TEST_VOCABULARIES", "25"))
TEXTS = int(os.environ.get("PTK_TEST_TEXTS", "150"))

# Letters that tokens are made of, one that only longer tokens have, and some that none has.
LETTERS = "ab-,c\u4e2d\u6587\u0430"
STRANGE = "zq\u0e01\u3042"


def random_model(rng: random.Random) -> dict[str, Any]:
    """Tokens of few letters whose scores are few values, so that sums tie up to rounding."""
    scores = [-2.5, -5.0, -7.5, -2.0122928619384766, -5.129043102264404, -0.1, -0.3]
    scores += [rng.uniform(-12.0, -1.0) for _ in range(3)]
    tokens = {"\u2581": rng.choice(scores)}
    for letter in LETTERS[: rng.randint(3, len(LETTERS))]:
        if rng.random() < 0.85:
            tokens[letter] = rng.choice(scores)
    for _ in range(rng.randint(5, 40)):
        token = "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 4)))
        tokens[token if rng.random() < 0.8 else "\u2581" + token] = rng.choice(scores)
    root: dict[str, Any] = vocab_models.unigram()
    vocab = [["<unk>", 0.0], *([token, score] for token, score in tokens.items())]
    root["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocab}
    if rng.random() < 0.7:
        mark = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
        root["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, mark],
        }
    if rng.random() < 0.4:
        pattern = "".join(rng.choice("ab-,") for _ in range(rng.randint(2, 3)))
        content = rng.choice(["a", ",", "b-"])
        replace = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
        root["normalizer"] = replace
    return root


def random_text(rng: random.Random) -> str:
    words = []
    for _ in range(rng.randint(1, 6)):
        letters = LETTERS if rng.random() < 0.6 else LETTERS + STRANGE + "<unk>"
        word = "".join(rng.choice(letters) for _ in range(rng.choice((1, 3, 8, 30))))
        if rng.random() < 0.5:
            word += rng.choice((",", "-", ",,", "-,", "a,", "ab-,"))
        if rng.random() < 0.3:
            word += rng.choice(letters) * rng.randint(2, 20)
        words.append(word)
    return " ".join(words)


@pytest.mark.parametrize("number", range(VOCABULARIES))
def test_parts_of_words_are_what_whole_words_are(number: int, tmp_path: Path) -> None:
    """A word is cut where no token lies across, and remembered in parts, and so is a word without
    the sign behind it: neither ties nor strings that are replaced must show it."""
    rng = random.Random(SEED + number)
    path = vocab_models.write(tmp_path / "model", random_model(rng))
    native = Tokenizer.from_file(path)
    reference = tokenizers.Tokenizer.from_file(str(path))
    for text in [random_text(rng) for _ in range(TEXTS)]:
        wanted = reference.encode(text).ids
        assert native.encode(text).tolist() == wanted, f"seed {SEED + number}: {text!r}"
        assert native.count(text) == len(wanted)


def test_a_sign_in_a_string_that_is_replaced_stays_with_its_word(tmp_path: Path) -> None:
    """Elsewhere the sign is on its own: no token holds it with what stands before it."""
    root = vocab_models.unigram()
    pieces = ["\u2581", "a", "b", "c", ",", "x"]
    vocab = [["<unk>", 0.0], *([piece, -2.0 - number] for number, piece in enumerate(pieces))]
    mark = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    split = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, mark]}
    for pattern in ("ba,", ",a", "a,"):
        replace = {"type": "Replace", "pattern": {"String": pattern}, "content": "x"}
        model = {"type": "Unigram", "unk_id": 0, "vocab": vocab}
        path = vocab_models.write(
            tmp_path, root | {"normalizer": replace, "pre_tokenizer": split, "model": model}
        )
        reference = tokenizers.Tokenizer.from_file(str(path))
        native = Tokenizer.from_file(path)
        for text in ("ca, aa, ba, cba, cba", "b, ba, c, cc, ,a ,aa, a,a,", "ba,, ba,,, ,,"):
            assert native.encode(text).tolist() == reference.encode(text).ids, f"{pattern} {text}"
