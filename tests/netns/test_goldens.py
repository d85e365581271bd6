"""Every reference case through a server gives the reference's answer, on both paths."""

from __future__ import annotations

import os

import pytest
import veth

from tests.golden import cases, link

ROOT = cases.data_root()
FILES = cases.golden_files(ROOT) if ROOT else []
EVERY = int(os.environ.get("PINTOK_GOLDENS_EVERY", "4"))
"""One of so many cases of each file; `scripts/dev golden --veth` asks for all of them."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(ROOT is None, reason="no reference cases: set PINTOK_TEST_DATA"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]


@pytest.mark.parametrize("path", link.PATHS)
@pytest.mark.parametrize("first", range(0, len(FILES), link.GROUP))
def test_every_case_equals_the_reference(path: str, first: int) -> None:
    """The same cases as in process, the same answers."""
    chosen = FILES[first : first + link.GROUP]
    for outcome in link.compare_all(chosen, path, every=EVERY):
        assert not outcome.failures, "\n".join(filter(None, outcome.failures))
        assert outcome.passed > 10
