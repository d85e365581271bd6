"""The native Unicode tables against recorded answers of the reference."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import struct
import subprocess
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "native" / "build" / os.environ.get("PINTOK_BUILD", "release")
DATA = pathlib.Path(os.environ.get("PINTOK_TEST_DATA", ROOT.parent / "shared"))
PROBES = DATA / "goldens" / "unicode_probes.json"

CATEGORY_NAMES = """
Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn
"""


def load_json(path: pathlib.Path) -> Any:
    """The JSON of `path` or of its gzip beside it; skips the test where neither is there."""
    if path.exists():
        return json.loads(path.read_bytes())
    packed = path.with_name(path.name + ".gz")
    if packed.exists():
        return json.loads(gzip.decompress(packed.read_bytes()))
    pytest.skip(f"no {path.name} (set PINTOK_TEST_DATA to the directory that holds goldens/)")


def bit_positions() -> dict[str, int]:
    """Names of the class bits in the generated header, categories and properties."""
    header = (ROOT / "native" / "gen" / "ptk_unicode_gen.h").read_text(encoding="utf-8")
    bits = {}
    for line in header.splitlines():
        if line.startswith("#define PTK_UNICODE_") and "UINT64_C(1) <<" in line:
            name, value = line.split(maxsplit=2)[1:]
            bits[name.removeprefix("PTK_UNICODE_")] = int(value.split("<<")[1].split(")")[0])
    return bits


@pytest.fixture(scope="module")
def tables() -> list[tuple[int, int]]:
    """Mask and UnicodeScripts class of every code point, from the program that reads the tables."""
    program = BUILD / "tests" / "test_unicode"
    if not program.exists():
        pytest.skip(f"{program} is not built (make -C native tests)")
    dump = subprocess.run([program, "--dump"], check=True, capture_output=True).stdout
    found = list(struct.iter_unpack("<QB", dump))
    assert len(found) == 0x110000
    return found


def members(ranges: list[str]) -> set[int]:
    """The code points of a list of hexadecimal ranges."""
    found: set[int] = set()
    for item in ranges:
        first, _, last = item.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


def group(names: str) -> list[str]:
    return [name.upper() for name in CATEGORY_NAMES.split() if name[0] in names]


# Component of the probes, key in its entry or None, class bits of which any makes a member.
CASES: list[tuple[str, str | None, list[str]]] = [
    *[(rf"\p{{{g}}}", "tokenizers_split", group(g)) for g in "LMNPS"],
    *[(rf"\p{{{c}}}", "tokenizers_split", [c.upper()]) for c in ("Lu", "Ll", "Lt", "Lm", "Lo")],
    (r"\p{Han}", "tokenizers_split", ["HAN"]),
    (r"\s", "tokenizers_split", ["SPACE"]),
    (r"\w", "tokenizers_split", ["WORD"]),
    (r"\d", "tokenizers_split", ["ND"]),
    ("ByteLevel(use_regex)", "L", group("L")),
    ("ByteLevel(use_regex)", "N", group("N")),
    ("ByteLevel(use_regex)", "S", ["SPACE"]),
    ("Digits splits after x", None, ["NUMERIC"]),
    ("Punctuation splits after x", None, ["PUNCT"]),
    ("WhitespaceSplit treats as space", None, ["WHITE"]),
    ("Whitespace: word char", None, ["WORD_RUST"]),
    ("Whitespace: dropped", None, ["WHITE"]),
    ("BertPreTokenizer: dropped", None, ["WHITE"]),
    ("BertPreTokenizer: splits after x", None, ["PUNCT"]),
    ("BertNormalizer clean_text: removed", None, ["BERT_REMOVED"]),
    ("BertNormalizer chinese padding", None, ["BERT_HAN"]),
    ("StripAccents: removed", None, ["MARK"]),
    ("Nmt: removed", None, ["NMT_REMOVED"]),
    ("Strip treats as space", None, ["WHITE"]),
]


@pytest.mark.parametrize(("probe", "key", "names"), CASES)
def test_class_is_the_reference_class(
    tables: list[tuple[int, int]], probe: str, key: str | None, names: list[str]
) -> None:
    """A wrong class moves a boundary between pieces: each one equals what was recorded."""
    entry = load_json(PROBES)[probe]
    want = members(entry[key] if key is not None else entry)
    bits = bit_positions()
    mask = sum(1 << bits[name] for name in names)
    got = {cp for cp, (found, _) in enumerate(tables) if found & mask and not 0xD800 <= cp < 0xE000}
    assert got == want


@pytest.mark.parametrize(
    ("probe", "name"),
    [("BertNormalizer clean_text: to space", "BERT_SPACE"), ("Nmt: to space", "NMT_SPACE")],
)
def test_space_class_is_the_recorded_one_and_space(
    tables: list[tuple[int, int]], probe: str, name: str
) -> None:
    """The probes list what changes; our bit also holds for the space itself."""
    bit = 1 << bit_positions()[name]
    got = {cp for cp, (mask, _) in enumerate(tables) if mask & bit}
    assert got == members(load_json(PROBES)[probe]) | {0x20}
