"""Native byte pair encoding against its definition and against the reference library."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tokenizers

from pintok import Tokenizer, Truncation
from tests.oracle.bpe import Vocabulary, random_vocabulary, random_word

SEED = int(os.environ.get("PTK_TEST_SEED", "20240229"))
VOCABULARIES = int(os.environ.get("PTK_TEST_VOCABULARIES", "40"))
WORDS = 60


def words_and_texts(rng: random.Random) -> list[str]:
    words = [random_word(rng) for _ in range(WORDS)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(1, 12))) for _ in range(WORDS // 4)]
    return words + texts


@pytest.mark.parametrize("number", range(VOCABULARIES))
def test_bpe_equals_its_definition_and_the_reference(number: int, tmp_path: Path) -> None:
    """Characters as units: unknown ones, byte fallback, suffix, whole words, any order of ranks."""
    rng = random.Random(SEED + number)
    vocabulary = random_vocabulary(rng)
    path = vocabulary.write(tmp_path / "tokenizer.json")
    native = Tokenizer.from_file(path)
    reference = tokenizers.Tokenizer.from_file(str(path))
    for text in words_and_texts(rng) * 2:  # the second time the cache knows the words
        expected = [number for word in text.split(" ") for number in vocabulary.encode(word)]
        known = reference.encode(text)
        assert known.ids == expected, f"oracle and reference, seed {SEED + number}: {text!r}"
        assert native.encode(text).tolist() == expected, f"seed {SEED + number}: {text!r}"
        assert native.count(text) == len(expected)
        full = native.encode_full(text)
        assert full.ids.tolist() == expected
        if all(vocabulary.encode(letter) for letter in set(text) - {" "}):
            assert [tuple(span) for span in full.offsets.tolist()] == known.offsets


@pytest.mark.parametrize("direction", ["right", "left"])
def test_truncation_is_the_same_window_of_ids(direction: Literal["left", "right"]) -> None:
    """Truncated ids are the first or last ones of all, at every length."""
    native = Tokenizer.from_pretrained("default")
    text = "The quick brown fox jumps over the lazy dog, 世界 ünï; 1234567 times. " * 3
    ids = native.encode(text, add_special_tokens=False)
    for size in range(1, len(ids) + 2):
        kept = native.encode(
            text,
            add_special_tokens=False,
            truncation=Truncation(size, direction=direction),
        )
        window = ids[:size] if direction == "right" else ids[max(0, len(ids) - size) :]
        np.testing.assert_array_equal(kept, window)


def test_part_of_a_word_is_not_a_whole_word(tmp_path: Path) -> None:
    """With ignore_merges a token that no merge makes counts only where it is the whole word: not
    between two safe cuts, and not in the cache from there."""
    ids = {name: number for number, name in enumerate(["a", "b", "c", "世", "ab", "abc", "?"])}
    vocabulary = Vocabulary(ids=ids, merges=[("a", "b")], unk="?", ignore_merges=True)
    native = Tokenizer.from_file(vocabulary.write(tmp_path / "tokenizer.json"))
    whole, part = [ids["abc"]], [ids["ab"], ids["c"]]
    for _ in range(2):
        assert native.encode("abc").tolist() == whole
        assert native.encode("世abc世").tolist() == [ids["世"], *part, ids["世"]]


def test_cut_piece_at_the_edge_of_a_window_is_not_kept_in_part(tmp_path: Path) -> None:
    """Left truncation may begin inside a piece that is encoded in parts; the cache must not take
    what is left of it for the whole."""
    ids = {name: number for number, name in enumerate(["a", "b", "世", "界", "ab", "?"])}
    vocabulary = Vocabulary(ids=ids, merges=[("a", "b")], unk="?")
    native = Tokenizer.from_file(vocabulary.write(tmp_path / "tokenizer.json"))
    expected = [ids["世"], ids["ab"], ids["界"]]
    for size in (1, 2, 3):
        kept = native.encode("世ab界", truncation=Truncation(size, direction="left"))
        assert kept.tolist() == expected[-size:]
        assert native.encode("世ab界").tolist() == expected


def test_a_piece_may_have_more_ids_than_bytes(tmp_path: Path) -> None:
    """An unknown character at the end of a word becomes the bytes of it and of the suffix."""
    tokens = ["a", "b", "ab", "ab</w>", "?", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {name: number for number, name in enumerate(tokens)}
    vocabulary = Vocabulary(
        ids=ids, merges=[("a", "b")], unk="?", byte_fallback=True, suffix="</w>"
    )
    native = Tokenizer.from_file(vocabulary.write(tmp_path / "tokenizer.json"))
    words = [chr(code) for code in range(0x3B1, 0x3B1 + 200)] + ["ab" * 12 + "\u4e16", "ab"]
    expected = [number for word in words for number in vocabulary.encode(word)]
    assert len(expected) > len("".join(words).encode())
    for _ in range(2):
        assert native.count(" ".join(words)) == len(expected)
        assert native.encode(" ".join(words)).tolist() == expected


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


def random_byte_level(rng: random.Random) -> Vocabulary:
    """Merges within characters, of parts of characters with what is beside them, and of whole ones:
    in the order of training or shuffled."""
    alphabet = byte_alphabet()
    letters = rng.choice(["aé世", "жщ aб", "世界中 a", "ก็ไท", "😀😁a世"])
    spelled = ["".join(alphabet[byte] for byte in letter.encode()) for letter in letters]
    corpus = "".join(rng.choices(spelled, k=60))
    tokens = list(alphabet.values())
    merges: list[tuple[str, str]] = []
    for _ in range(rng.randrange(10, 120)):
        # Two neighbours somewhere in the text, as training would find them.
        at = rng.randrange(len(corpus) - 1)
        left = max((token for token in tokens if corpus.startswith(token, at)), key=len)
        rest = at + len(left)
        right = max(
            (token for token in tokens if corpus.startswith(token, rest)), key=len, default=""
        )
        if rng.random() < 0.5:
            left, right = corpus[at], corpus[at + 1]
        if right and (left, right) not in merges and len(left + right) <= 20:
            merges.append((left, right))
            if left + right not in tokens:
                tokens.append(left + right)
    if rng.random() < 0.4:
        rng.shuffle(merges)
    return Vocabulary(ids={name: number for number, name in enumerate(tokens)}, merges=merges)


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
# Bytes that stand for a superscript or a fraction are numbers to it: it cuts inside characters.
DIGITS = {"type": "Digits", "individual_digits": False}


@pytest.mark.parametrize("number", range(VOCABULARIES))
@pytest.mark.parametrize("behind", [[], [DIGITS]], ids=["whole", "digits"])
def test_byte_level_merges_cross_characters(
    number: int, behind: list[dict[str, object]], tmp_path: Path
) -> None:
    """Parts of characters merge with their neighbours, before and after the characters are made;
    cuts between characters must not be seen."""
    rng = random.Random(SEED + 1000 + number)
    path = random_byte_level(rng).write(
        tmp_path / "tokenizer.json",
        pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL, *behind]},
    )
    native = Tokenizer.from_file(path)
    reference = tokenizers.Tokenizer.from_file(str(path))
    letters = "aé世界中жщб ก็ไท😀😁"
    for _ in range(150):
        some = rng.choices(letters, k=rng.choice([1, 2, 3, len(letters)]))
        text = "".join(rng.choices(some, k=rng.choice([1, 2, 4, 8, 20, 100])))
        expected = reference.encode(text).ids
        for _ in range(2):
            assert native.encode(text).tolist() == expected, f"seed {SEED + number}: {text!r}"
        assert native.encode_full(text).ids.tolist() == expected
