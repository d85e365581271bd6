"""Fixed texts take no more instructions than bench/instructions.json says, within its tolerance.

What to do where this fails after a change that is meant: bench/instructions.py --update.
"""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import types
import warnings

import pytest

PATH = pathlib.Path(__file__).resolve().parents[2] / "bench" / "instructions.py"


@pytest.fixture(scope="module")
def instructions() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("instructions", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_no_operation_takes_more_instructions(instructions: types.ModuleType) -> None:
    """A slower path is seen on any machine, whatever else it does."""
    kept_compiler, kept = instructions.load()
    assert min(kept.values()) > 1000, "a text of 8 KB takes more: these are not counts"
    try:
        compiler, counts = instructions.measure()
    except instructions.Unavailable as reason:
        pytest.skip(str(reason))
    if compiler != kept_compiler:
        pytest.skip(f"the figures are of {kept_compiler}, this build is of {compiler}")
    worse, better = instructions.compare(counts, kept)
    if better:
        warnings.warn(f"bench/instructions.py --update: {'; '.join(better[:5])}", stacklevel=1)
    assert not worse, "\n".join(["more instructions than kept (--update where meant):", *worse])


def test_the_comparison_sees_what_is_beyond_the_tolerance(instructions: types.ModuleType) -> None:
    """One per cent more passes, six do not; a great gain and a new name are notes only."""
    kept = {"a": 1000, "b": 1000, "c": 1000}
    worse, better = instructions.compare({"a": 1010, "b": 1060, "c": 800, "d": 1}, kept)
    assert [line[0] for line in worse] == ["b"]
    assert [line[0] for line in better] == ["c", "d"]
