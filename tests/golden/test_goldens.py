"""Ids, offsets, masks and decoded texts equal the reference's in every recorded case."""

from __future__ import annotations

import pytest

from pintok import Tokenizer
from tests.golden import cases, report
from tests.strange_words import check_waiting_words

ROOT = cases.data_root()
FILES = cases.golden_files(ROOT) if ROOT else []

pytestmark = pytest.mark.skipif(ROOT is None, reason="no reference cases: set PINTOK_TEST_DATA")


@pytest.mark.parametrize("golden", FILES, ids=lambda golden: golden.label)
def test_every_case_equals_the_reference(golden: cases.GoldenFile) -> None:
    """Exactness is the first promise: one differing case is a failure."""
    outcome = report.compare(
        golden, report.open_answer(golden), kinds=frozenset(report.KINDS), show=3
    )
    assert not outcome.failures, "\n".join(filter(None, outcome.failures))
    assert outcome.passed > 0


WAITING = (
    "o200k_base llama-3 qwen2.5 gpt2 llama-2 gemma-3 lab-bpe-prefix-suffix clip-vit-base-patch32 "
    "bert-base-uncased lab-wordlevel"
).split()


@pytest.mark.parametrize("name", WAITING)
def test_words_that_wait_for_each_other_are_encoded_as_at_once(name: str) -> None:
    """Every way that a piece takes through the encoder: bytes and characters, affixes, words."""
    [model] = {golden.model for golden in FILES if (golden.name, golden.reference) == (name, "hf")}
    for seed in range(3):
        check_waiting_words(lambda: Tokenizer.from_file(model), seed)


def test_every_byte_level_file_is_there() -> None:
    """A file that went missing must not make the comparison pass."""
    assert {golden.label for golden in FILES} >= report.BYTE_LEVEL
