"""Models with normalizers under random and hostile texts, beside the reference: a bounded run."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")
pytest.importorskip("tokenizers", reason="the reference library is not installed")

from tests.golden import cases, families

DATA = cases.data_root()

pytestmark = pytest.mark.skipif(DATA is None, reason="the test data is not here")


@pytest.mark.parametrize("name", families.MODELS)
def test_ids_equal_the_reference_s(name: str) -> None:
    """`python -m tests.golden.families` is the long run of the same."""
    seed = int(os.environ.get("PTK_TEST_SEED", "20240229"))
    count = int(os.environ.get("PTK_TEST_TEXTS", "1000"))
    assert DATA is not None
    assert families.compare(DATA, name, count, seed) == [], f"seed {seed}"
