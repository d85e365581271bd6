"""Native normalizers against recorded answers and against the installed reference.

The recorded ones are the `normalize` cases of `goldens/_components.jsonl.gz`. With the reference
installed, text and offsets are compared for every code point and for random strings; the seed of
those is printed and taken from PTK_TEST_SEED.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.norm_driver import NormDriver, NormError, compile_normalizer
from tests.unit.spm_file import charsmap

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("PINTOK_TEST_DATA", ROOT.parent / "shared"))
CASES = DATA / "goldens" / "_components.jsonl.gz"
SEED = int(os.environ.get("PTK_TEST_SEED", "20240229"))

SCALARS = [cp for cp in range(0x110000) if not 0xD800 <= cp < 0xE000]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def driver() -> Iterator[NormDriver]:
    if not NormDriver.PROGRAM.exists():
        pytest.skip(f"{NormDriver.PROGRAM} is not built (make -C native tests)")
    with NormDriver() as running:
        yield running


def field(case: Json, name: str) -> str:
    """A text field, which may be stored in base64."""
    packed = case.get(f"{name}_b64")
    return base64.b64decode(packed).decode() if packed is not None else case[name]


def resolve(component: Json) -> Json | None:
    """The component itself, or the field of another tokenizer that it names."""
    if "ref" not in component:
        return component
    path = DATA / "tokenizers" / component["ref"] / "tokenizer.json"
    if path.exists():
        text = path.read_bytes()
    else:
        text = gzip.decompress(path.with_name("tokenizer.json.gz").read_bytes())
    return json.loads(text)[component["field"]]


def recorded() -> list[tuple[str, list[Json]]]:
    """Recorded cases by component, as JSON text; empty where there is no data."""
    if not CASES.exists():
        return []
    groups: dict[str, list[Json]] = {}
    with gzip.open(CASES, "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            if case["kind"] == "normalize" and "error" not in case:
                groups.setdefault(json.dumps(case["component"]), []).append(case)
    return list(groups.items())


RECORDED = recorded()


@pytest.mark.skipif(not RECORDED, reason="no recorded cases: set PINTOK_TEST_DATA")
@pytest.mark.parametrize(("component", "cases"), RECORDED, ids=[name[:80] for name, _ in RECORDED])
def test_recorded_cases(driver: NormDriver, component: str, cases: list[Json]) -> None:
    """Every recorded text of the component comes out as the reference gave it."""
    program = compile_normalizer(resolve(json.loads(component)))
    for case in cases:
        for align in (False, True):
            got = driver.run(program, text=field(case, "text"), align=align).text
            assert got == field(case, "out"), case["n"]


# Keys: a character, a cluster, a prefix of another key. Values: longer, shorter, empty.
MAPPED_TEXTS = {
    b"\xef\xac\x81": "fi",
    "e\u0301".encode(): "\u00e9",
    "a\u0301".encode(): "xyz",
    "\u0301".encode(): "",
    b"b": "",
    b"c": "long string",
    "\u00a9\u200d".encode(): "!",
    b"\r\n": "\n",
    "\u0915".encode(): "k",
    "\u1161".encode(): "\u314f",
    "\u0600".encode(): "#",
    "\u0600x".encode(): "never: the shorter key wins",
    "d\u0308".encode(): "D",
}
MAPPED = {key: text.encode() for key, text in MAPPED_TEXTS.items()}

MAPS = DATA / "goldens" / "unicode_maps.json.gz"
MAP_COMPONENTS: dict[str, Json] = {
    **{name: {"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")},
    "BertNormalizer lowercase+accents": {
        "type": "BertNormalizer",
        "clean_text": False,
        "handle_chinese_chars": False,
        "strip_accents": True,
        "lowercase": True,
    },
    "Precompiled (nmt_nfkc of t5)": {"ref": "t5-small", "field": "normalizer"},
}


@pytest.mark.skipif(not MAPS.exists(), reason="no recorded maps: set PINTOK_TEST_DATA")
@pytest.mark.parametrize("name", MAP_COMPONENTS)
def test_recorded_maps(driver: NormDriver, name: str) -> None:
    """Each code point alone becomes what was recorded, and stays itself where nothing was."""
    recorded_map = json.loads(gzip.decompress(MAPS.read_bytes()))[name]
    program = compile_normalizer(resolve(MAP_COMPONENTS[name]))
    for cp in [*(int(key, 16) for key in recorded_map), *SCALARS[::97]]:
        want = recorded_map.get(f"{cp:X}", chr(cp))
        assert driver.run(program, text=chr(cp)).text == want, hex(cp)


COMPONENTS: list[Json] = [
    {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap(MAPPED)).decode(),
    },
    {"type": "NFC"},
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "NFKD"},
    {"type": "Lowercase"},
    {"type": "StripAccents"},
    {"type": "Nmt"},
    {"type": "ByteLevel"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Prepend", "prepend": "\u2581x"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    {"type": "Replace", "pattern": {"String": "aa"}, "content": ""},
    {"type": "Replace", "pattern": {"String": ""}, "content": "-"},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": "\\p{M}|(?=x)"}, "content": "<>"},
    {"type": "Replace", "pattern": {"Regex": "[^\\p{L}\\s]*"}, "content": "."},
    *[
        {
            "type": "BertNormalizer",
            "clean_text": bool(bits & 1),
            "handle_chinese_chars": bool(bits & 2),
            "strip_accents": bool(bits & 4),
            "lowercase": bool(bits & 8),
        }
        for bits in range(16)
    ],
    {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Strip", "strip_left": True, "strip_right": False},
            {"type": "Lowercase"},
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "__"},
            {"type": "NFC"},
        ],
    },
]


def component_id(component: Json) -> str:
    if component["type"] == "BertNormalizer":
        return "Bert" + "".join(str(int(value)) for value in list(component.values())[1:])
    return json.dumps(component)[:60]


class Reference:
    """The installed reference running one normalizer, with the offsets that its encode reports."""

    def __init__(self, component: Json) -> None:
        tokenizers = pytest.importorskip("tokenizers", "0.23.3")
        self.tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
        spec = json.loads(self.tokenizer.to_str())
        spec["normalizer"] = component
        # Each character of the normalized text is a piece, and each piece an unknown token.
        spec["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": "(?m:.)"},
            "behavior": "Isolated",
            "invert": False,
        }
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self.normalizer = self.tokenizer.normalizer

    def text(self, text: str) -> str:
        return self.normalizer.normalize_str(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The range of original characters of each normalized character."""
        return self.tokenizer.encode(text).offsets


def compare(driver: NormDriver, component: Json, reference: Reference, texts: list[str]) -> None:
    """Assert equal text and equal offsets for every text."""
    program = compile_normalizer(component)
    for text in texts:
        plain = driver.run(program, text=text)
        got = driver.run(program, text=text, align=True)
        assert plain.text == got.text == reference.text(text), ascii(text)
        char_of = {0: 0}
        pos = 0
        for i, char in enumerate(text):
            pos += len(char.encode())
            char_of[pos] = i + 1
        offsets = [(char_of[begin], char_of[end]) for begin, end in got.align]
        assert offsets == reference.offsets(text), ascii(text)


@pytest.mark.parametrize("component", COMPONENTS, ids=component_id)
def test_every_code_point(driver: NormDriver, component: Json) -> None:
    """Text of all code points, a letter between each two, has the reference's normal form."""
    reference = Reference(component)
    program = compile_normalizer(component)
    for start in range(0, len(SCALARS), 4096):
        text = "".join(f"x{chr(cp)}" for cp in SCALARS[start : start + 4096])
        assert driver.run(program, text=text).text == reference.text(text), hex(SCALARS[start])


def random_text(rng: random.Random, *, alphabet: list[str], length: int) -> str:
    """Characters of the alphabet, each often repeated nearby so that they meet again and again."""
    few = rng.choices(alphabet, k=rng.randint(1, 6))
    return "".join(rng.choice(few if rng.random() < 0.8 else alphabet) for _ in range(length))


def doubtful_characters() -> list[str]:
    """Characters with something to normalize, marks, jamo, syllables, spaces, plain letters."""
    import unicodedata

    cps = [
        cp for cp in SCALARS if unicodedata.decomposition(chr(cp)) or unicodedata.combining(chr(cp))
    ]
    extra = [*range(0x180), *range(0x1100, 0x1200), 0xAC00, 0xAC01, 0xD7A3, 0x4E00, 0x2581]
    extra += [*map(ord, "".join(key.decode() for key in MAPPED)), 0x200D, 0x2603, 0x94D, 0x600]
    return [chr(cp) for cp in cps + extra * 4]


@pytest.mark.parametrize("component", COMPONENTS, ids=component_id)
def test_random_texts(driver: NormDriver, component: Json) -> None:
    """Marks in any order and number, after anything, keep text and offsets of the reference."""
    print(f"PTK_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    alphabet = doubtful_characters()
    texts = [random_text(rng, alphabet=alphabet, length=rng.randint(1, 40)) for _ in range(600)]
    compare(driver, component, Reference(component), texts)


def test_bad_program_names_the_operation(driver: NormDriver) -> None:
    """A refusal says which operation and why, so that a broken image can be found."""
    with pytest.raises(NormError, match=r"operation 1 \(nfd\): unknown flags"):
        driver.run(compile_normalizer({"type": "NFC"}) + b"\x02\0\x01\0\0\0\0\0", text="x")
