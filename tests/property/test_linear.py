"""Work grows with the text and no faster, also where somebody chose the text to make it grow.

Instructions are counted by callgrind at doubling sizes: counts repeat, times do not.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest

from pintok_server import vocab
from tests.golden import cases
from tests.unit import spm_file, vocab_models

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "native" / "build" / "release" / "bench" / "bench_once"
DATA = cases.data_root()

# What is repeated: single characters, prefixes of special tokens, what normalizers dislike.
UNITS = {
    "letters": "a",
    "two letters": "ab",
    "spaces": " ",
    "line ends": "\n",
    "digits": "7",
    "punctuation": "!",
    "emoji": "\U0001f600",
    "ideographs": "\u4e2d",
    "fragments": "<|",
    "words": "a ",
    "marks": "\u0301",
    "marks in two orders": "\u0323\u0301",
    "contractions": "'s",
    "special tokens": "<|end|>",
}
# One of each family and of each normalizer, where the reference data is there: (tokenizer, source).
MODELS = (
    ("gpt2", "hf"),
    ("llama-3", "hf"),
    ("o200k_base", "hf"),
    ("qwen2.5", "hf"),
    ("deepseek-v3", "hf"),
    ("gpt-neox-20b", "hf"),
    ("falcon-7b", "hf"),
    ("clip-vit-base-patch32", "hf"),
    ("lab-bpe-prefix-suffix", "hf"),
    ("llama-2", "hf"),
    ("gemma-3", "hf"),
    ("bert-base-uncased", "hf"),
    ("lab-wordlevel", "hf"),
    ("t5-small", "hf"),
    ("xlm-roberta-metaspace", "hf"),
    ("ms-nmt-unigram", "hf"),
    ("lab-unigram-bytefallback", "hf"),
    ("kimi-k2", "tiktoken"),
    ("mistral-tekken-v3", "tekken"),
    ("llama-2", "spm"),
    ("chatglm-6b", "spm"),
    ("xlnet-base-cased", "spm"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
    pytest.mark.skipif(not PROGRAM.exists(), reason="make -C native bench is missing"),
]


def instructions(
    image: pathlib.Path, unit: str, size: int, folder: pathlib.Path, *options: str
) -> int:
    """Instructions that one encode of `size` bytes and the decode of its ids take together."""
    words = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind.out'}"]
    words += [f"--toggle-collect=ptk_tokenizer_{call}" for call in ("encode", "decode")]
    words += [str(PROGRAM), str(image), unit, str(size), *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def check_linear(
    image: pathlib.Path, size: int, folder: pathlib.Path, units: list[str], *options: str
) -> None:
    for name in units:
        once = instructions(image, UNITS[name], size, folder, *options)
        twice = instructions(image, UNITS[name], 2 * size, folder, *options)
        assert once > size / 64, f"{name}: {once} instructions for {size} bytes cannot be all"
        # A growth by the logarithm would pass, a square would give 4.
        assert twice < 2.3 * once, f"{name}: {once} instructions, then {twice} for twice the text"


def test_hostile_text_costs_linear_work(tmp_path: pathlib.Path) -> None:
    """The embedded model on a text of every kind."""
    image = pathlib.Path(vocab.load_image("default").path)
    check_linear(image, 1 << 16, tmp_path, list(UNITS))


def test_ranges_of_ordinary_text_cost_linear_work(tmp_path: pathlib.Path) -> None:
    """As many ranges as there can be: a special token in every second unit, and pieces of some."""
    model = vocab_models.write(tmp_path, vocab_models.byte_level())
    image = pathlib.Path(vocab.load_image(str(model), certify=False).path)
    check_linear(image, 1 << 15, tmp_path, ["special tokens", "fragments"], "plain")


def test_a_model_of_characters_is_linear(tmp_path: pathlib.Path) -> None:
    """The one algorithm of `.model` files that no model of the reference data has."""
    pieces = (*spm_file.BASE, ("\u2581", -2.0, spm_file.NORMAL), ("a", -1.0, spm_file.NORMAL))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(spm_file.model(pieces, kind=spm_file.CHAR))
    image = pathlib.Path(vocab.load_image(str(path), certify=False).path)
    check_linear(image, 1 << 15, tmp_path, ["letters", "spaces"])


@pytest.mark.skipif(DATA is None, reason="no reference data: set PINTOK_TEST_DATA")
@pytest.mark.parametrize(("model", "source"), MODELS, ids=map(".".join, MODELS))
def test_every_family_is_linear(model: str, source: str, tmp_path: pathlib.Path) -> None:
    """Merging, lattices, greedy matching and normalizers of real models."""
    assert DATA is not None
    path = cases.model_path(DATA / "tokenizers" / model, source)
    image = pathlib.Path(vocab.load_image(str(path)).path)
    units = ["letters", "spaces", "emoji", "marks in two orders"]
    check_linear(image, 1 << 15, tmp_path, units)
