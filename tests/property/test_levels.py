"""A CPU without AVX-512, and one without AVX2, gives the same ids and the same text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize(
    "model", ["default", "llama-3", "llama-2", "bert-base-uncased", "t5-small"]
)
def test_every_level_gives_the_same_ids(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    import instructions
    import levels

    image = instructions.image_of(model)
    if image is None:
        pytest.skip("no reference data")
    programs = levels.build()
    if len(programs) == 1:
        pytest.skip("this CPU has neither AVX-512 nor AVX2: there is one level only")
    for name, text in instructions.texts().items():
        path = tmp_path / name
        path.write_text(text * 3)
        for size in (37, 1400, 30000):
            sums = {
                level: levels.ids_sum(program, image, path, size)
                for level, program in programs.items()
            }
            assert len(set(sums.values())) == 1, (name, size, sums)
