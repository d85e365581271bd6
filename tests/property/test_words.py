"""Models whose spaces become marks: words are found in the text as it stands, and the ids are those
of the text rewritten."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from pintok import Tokenizer, _native
from pintok_server._spec import image as spec
from pintok_server._spec.image import ImageFlags, ImageSection
from pintok_server.vocab import compiler
from tests.oracle.bpe import Vocabulary, random_vocabulary

SEED = int(os.environ.get("PTK_TEST_SEED", "20240229"))
VOCABULARIES = int(os.environ.get("PTK_TEST_VOCABULARIES", "60"))

MARK = "\u2581"
LETTERS = f"{MARK}abcé世.,\n"
UNKNOWN = "xyß🙂!-\t"

PREPEND = {"type": "Prepend", "prepend": MARK}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def metaspace(scheme: str) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": MARK,
        "prepend_scheme": scheme,
        "split": False,
    }


# Normalizer and pre-tokenizer of the models that this is for.
PROGRAMS: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = [
    ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None),
    ({"type": "Sequence", "normalizers": [REPLACE]}, None),
    (REPLACE, SPLIT),
    (None, metaspace("always")),
    (None, metaspace("never")),
    (None, metaspace("first")),
]


def random_text(rng: random.Random) -> str:
    letters = rng.choice(
        [
            " a",
            " ab",
            f" {MARK}ab",
            " abcé世",
            " aab.,",
            " ab.\n",
            " éa世.!",
            f" {LETTERS}{UNKNOWN}",
        ]
    )
    size = rng.choice([1, 2, 3, 8, 15, 16, 40, 64, 130, 400])
    pattern = "".join(rng.choices(letters, k=rng.choice([1, 3, size])))
    return (pattern * size)[:size]


@pytest.mark.parametrize("number", range(VOCABULARIES))
def test_words_equal_the_rewritten_text(number: int, tmp_path: Path) -> None:
    """Marks and signs inside of tokens, unknown characters, byte fallback, spaces in a row and at
    both ends, marks in the text itself; twice, the second time out of the cache."""
    rng = random.Random(SEED + number)
    vocabulary = random_vocabulary(rng, LETTERS)
    normalizer, pre_tokenizer = PROGRAMS[number % len(PROGRAMS)]
    path = vocabulary.write(
        tmp_path / "tokenizer.json", normalizer=normalizer, pre_tokenizer=pre_tokenizer
    )
    native = Tokenizer.from_file(path)
    reference = tokenizers.Tokenizer.from_file(str(path))
    texts = [random_text(rng) for _ in range(60)]
    for text in texts * 2:
        expected = reference.encode(text).ids
        assert native.encode(text).tolist() == expected, f"seed {SEED + number}: {text!r}"
        assert native.count(text) == len(expected)
        assert native.encode_full(text).ids.tolist() == expected


def write_marked(path: Path, normalizer: dict[str, Any] | None) -> Path:
    names = [MARK, "a", "b", MARK + "a", "?"]
    vocabulary = Vocabulary(
        ids={name: number for number, name in enumerate(names)}, merges=[(MARK, "a")], unk="?"
    )
    return vocabulary.write(path, normalizer=normalizer, pre_tokenizer=None)


def flags_of(image: bytes) -> tuple[int, int]:
    """(where the flags stand, the flags)."""
    header = dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack_from(image), strict=True))
    for index in range(header["section_count"]):
        at = spec.IMAGE_HEADER.size + index * spec.IMAGE_SECTION_ENTRY.size
        kind, _, off, _, _ = spec.IMAGE_SECTION_ENTRY.unpack_from(image, at)
        if kind == ImageSection.CONFIG:
            at = off + spec.IMAGE_CONFIG_OFFSETS["flags"]
            return at, struct.unpack_from("<I", image, at)[0]
    raise AssertionError("no configuration")


def test_the_flag_is_there_only_where_spaces_become_marks(tmp_path: Path) -> None:
    for normalizer, marks in (
        (REPLACE, True),
        (None, False),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, REPLACE]}, False),
    ):
        model = compiler.load_image(
            write_marked(tmp_path / "tokenizer.json", normalizer), cache_dir=tmp_path
        )
        assert bool(flags_of(model.path.read_bytes())[1] & ImageFlags.SPACE_MARKS) == marks


def test_a_flag_that_does_not_fit_the_programs_is_refused(tmp_path: Path) -> None:
    """Otherwise keys with spaces would be looked up where spaces stay spaces."""
    model = compiler.load_image(write_marked(tmp_path / "tokenizer.json", None), cache_dir=tmp_path)
    image = bytearray(model.path.read_bytes())
    at, flags = flags_of(bytes(image))
    struct.pack_into("<I", image, at, flags | ImageFlags.SPACE_MARKS)
    checksum = _native.image_checksum(np.frombuffer(image, dtype=np.uint8))
    struct.pack_into("<Q", image, spec.IMAGE_HEADER_OFFSETS["checksum"], checksum)
    path = tmp_path / "flagged.ptkimage"
    path.write_bytes(image)
    with pytest.raises(_native.SetupError, match="space_marks does not fit"):
        _native.Model(str(path))
