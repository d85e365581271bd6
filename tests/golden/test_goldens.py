"""Ids, offsets, masks and decoded texts equal the reference's in every recorded case."""

from __future__ import annotations

import pytest

from tests.golden import cases, report

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


def test_every_byte_level_file_is_there() -> None:
    """A file that went missing must not make the comparison pass."""
    assert {golden.label for golden in FILES} >= report.BYTE_LEVEL
