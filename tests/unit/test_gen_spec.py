"""The specs and what is generated from them: one source, no stale copy, the same in Python."""

from __future__ import annotations

import copy
import importlib.util
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gen_spec.py"
SPECS = sorted((ROOT / "native" / "spec").glob("*.toml"))
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f64": "d"}


def load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def module_from(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_generated_is_stale() -> None:
    """A change of a spec that was not generated again would split C from Python."""
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_python_reads_each_field_where_the_spec_puts_it(path: Path) -> None:
    """C has static asserts for its offsets; Python's format strings are held to the same ones."""
    spec = load(path)
    module = module_from(ROOT / spec["spec"]["python"])
    for entry in spec.get("struct", []):
        layout: struct.Struct = getattr(module, entry["name"].upper())
        assert layout.size == entry["size"]
        ramp = bytes(n % 251 for n in range(entry["size"]))
        values = list(layout.unpack(ramp))
        for field in entry["fields"]:
            count, code = field.get("count", 1), CODES[field["type"]]
            wanted = struct.unpack_from(f"<{count}{code}", ramp, field["off"])
            if field["type"] == "u8" and "count" in field:
                assert values.pop(0) == bytes(wanted)
            else:
                assert tuple(values[:count]) == wanted
                del values[:count]
        assert not values


def small_spec() -> dict[str, Any]:
    return {
        "spec": {"name": "small"},
        "enum": [{"name": "e", "values": [{"name": "a", "value": 0}, {"name": "b", "value": 1}]}],
        "flags": [{"name": "f", "values": [{"name": "a", "bit": 0}, {"name": "b", "bit": 1}]}],
        "struct": [
            {
                "name": "s",
                "size": 8,
                "fields": [
                    {"name": "x", "type": "u32", "off": 0},
                    {"name": "y", "type": "u16", "off": 4},
                    {"name": "z", "type": "u8", "off": 6, "count": 2},
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("struct", 0, "fields", 1, "off"), 2, "overlaps"),
        (("struct", 0, "fields", 1, "off"), 6, "hole"),
        (("struct", 0, "fields", 0, "type"), "u16", "hole"),
        (("struct", 0, "fields", 0, "type"), "u33", "unknown type"),
        (("struct", 0, "size"), 12, "end at 8"),
        (("enum", 0, "values", 1, "value"), 0, "duplicate value"),
        (("enum", 0, "values", 1, "name"), "a", "duplicate name"),
        (("flags", 0, "values", 1, "bit"), 0, "duplicate bit"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    """Before anything is written from it."""
    generator = module_from(SCRIPT)
    spec = small_spec()
    generator.check_spec(copy.deepcopy(spec))
    target: Any = spec
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(generator.SpecError, match=message):
        generator.check_spec(spec)
