"""The README's tables of faults name tests that exist and metrics that are exported."""

from __future__ import annotations

import pathlib
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pintok_server.control.http import Health
from tests.unit.segment import write_segment
from tests.unit.test_metrics import FileSource

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows() -> list[list[str]]:
    """The cells of every row of the section, without the heads."""
    section = (ROOT / "README.md").read_text().partition("\n## Faults\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[-1].strip() != "shown by"]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_row_is_proven(row: list[str]) -> None:
    """Four cells, none empty, and each test named in the last is one of the file named there."""
    assert len(row) == 4 and all(row)
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row[3])
    assert named and row[3].count("`") == 2 * len(named)
    for file, name in named:
        text = (ROOT / file).read_text()
        assert re.search(rf"^(def|static void) {name}\(", text, re.MULTILINE), (file, name)


def test_metrics_are_exported(tmp_path: pathlib.Path) -> None:
    source = FileSource(write_segment(tmp_path / "stats"))
    text = Health(source, draining=lambda: False).answer("/metrics", "")[2].decode()
    exported = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    used = {name for row in rows() for name in re.findall(r"`(pintok_\w+)`", row[2])}
    assert len(used) > 15
    assert used <= exported


def test_every_group_has_rows() -> None:
    assert len(rows()) > 25
