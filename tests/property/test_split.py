"""Native pre-tokenizers against the reference: recorded cases, and random texts per pattern."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from pintok_server.vocab import patterns, programs
from tests.oracle.split import (
    PROGRAM,
    NativeSplit,
    random_text,
    reference,
    sequence,
    split,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("PINTOK_TEST_DATA", ROOT.parent / "shared"))
CASES = DATA / "goldens" / "_components.jsonl.gz"
SEED = int(os.environ.get("PTK_TEST_SEED", "20240229"))
TEXTS = int(os.environ.get("PTK_TEST_TEXTS", "3000"))

Json = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason=f"{PROGRAM} is not built (make -C native tests)"
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
WORDS_THEN_MARKS = sequence(
    {"type": "WhitespaceSplit"},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
)

# Constructs of regular expressions whose meaning the translation must keep.
CONSTRUCTS = [
    r"\w+", r"\W+", r"[\w]+", r"[^\W]+", r"[\w&&[^\d]&&[^_]]+", r"\b", r"\B", r"\bs", r"^", r"$",
    r"^\s+", r"\s+$", r"^.+$", r".", r"[^\n]", r"[\s\S]{5}", r"\A\s*", r"\s*\z", r"(?<=a)b",
    r"(?<!\s)\d", r"(?<=\p{L})\p{M}+", r"(?<![a-z])[A-Z]", r"(?=[A-Z])", r"\d+(?=\D)", r"",
    r"a|", r"|a", r"(?:)", r"[[:alpha:]]+", r"[[:alnum:]]+", r"[[:space:]]+", r"[[:upper:]]",
    r"[[:lower:]]+", r"[[:word:]]+", r"[[:digit:]]", r"[^[:alpha:]]+", r"(?i:k)", r"(?i:[a-z])+",
    r"(?i:'s|'t|'re)", r"(?i:[^a-m])", r"(?i:a(?-i:b))", r"a*?b", r"(?:a|b)*?z", r"\p{L}{2,3}+",
    r"\p{L}{2,4}?", r"\p{L}{2,}", r"\p{L}++", r"[a-z]?+z", r"(?>a|ab)z", r"(a|b)(c|s)?",
    r"(?:[sd]|ll)*m", r"(?:\p{L}\p{M}*)+", r"\p{Han}+", r"\p{^L}+", r"\P{N}+", r"\p{Greek}",
    r"[\p{L}&&[^a-z]]+", r"[a-z&&b-y]+", r"[\]\[\-]+", r"[-a]+", r"[a-]+", r"[^-]+",
    r"\x41|\u0042|\x{43}", r"[\t\x0b\f]", r"\s+(?!\S)|\s+",
]  # fmt: skip


@functools.cache
def recorded_cases() -> dict[str, list[Json]]:
    """Recorded cases of pre-tokenizers by component (as JSON)."""
    cases: dict[str, list[Json]] = {}
    if CASES.exists():
        with gzip.open(CASES, "rt") as lines:
            for case in map(json.loads, lines):
                if case["kind"] == "pre_tokenize":
                    cases.setdefault(json.dumps(case["component"]), []).append(case)
    return cases


def resolve(component: Json) -> Json:
    """The component itself, or the one in a tokenizer.json that it names."""
    if "ref" not in component:
        return component
    path = DATA / "tokenizers" / component["ref"] / "tokenizer.json"
    text = path.read_bytes() if path.exists() else gzip.open(f"{path}.gz").read()
    found: Json = json.loads(text)[component["field"]]
    return found


def field(case: Json, name: str) -> str:
    """A text field, which may be stored in base64."""
    packed = case.get(f"{name}_b64")
    return base64.b64decode(packed).decode() if packed is not None else str(case[name])


def test_recorded_cases_agree() -> None:
    """Every recorded case of every component, with the byte-level step run and left out."""
    if not recorded_cases():
        pytest.skip(f"no {CASES.name} (set PINTOK_TEST_DATA to the directory that holds goldens/)")
    count = 0
    for name, cases in recorded_cases().items():
        component = resolve(json.loads(name))
        if component.get("pattern") == {"Regex": ""}:
            continue  # refused by the compiler; among CONSTRUCTS here
        has_bytes = "ByteLevel" in json.dumps(component)
        for byte_units in (False, True) if has_bytes else (False,):
            program = programs.pre_tokenizer(component, byte_units=byte_units)
            with NativeSplit(program, byte_units=byte_units) as native:
                for case in cases:
                    expected = [tuple(piece) for piece in case["pieces"]]
                    assert native(field(case, "text")) == expected, (name, case["n"])
                    count += 1
    print(f"{count} cases")
    assert count > 0


def sources() -> Iterator[tuple[str, Json]]:
    """Names and components to be compared on random texts."""
    for pattern, scanner in patterns.PATTERNS.items():
        yield scanner, split(pattern)
        yield f"{scanner}-kept", split(pattern, behavior="Removed", invert=True)
        yield f"{scanner}-gaps", split(pattern, behavior="MergedWithNext")
    deepseek = [p for p, name in patterns.PATTERNS.items() if name.startswith("deepseek")][:3]
    yield "deepseek-all", sequence(*map(split, deepseek))
    yield "starcoder", sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)
    yield "words-then-marks", WORDS_THEN_MARKS
    for number, pattern in enumerate(CONSTRUCTS):
        if pattern:
            yield f"construct-{number}", split(pattern)
    for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield f"{behavior}-{invert}", split(r"[a-e]|\s", behavior=behavior, invert=invert)


@pytest.mark.parametrize(("name", "component"), list(sources()), ids=lambda value: str(value)[:30])
def test_native_equals_reference(name: str, component: Json) -> None:
    """Same pieces and same offsets on random texts heavy in edge characters."""
    expected = reference(component)
    rng = random.Random(f"{SEED} {name}")
    program = programs.pre_tokenizer(component, byte_units=False)
    count = TEXTS if not name.startswith(("construct", "Removed", "Merged")) else TEXTS // 10
    with NativeSplit(program) as native:
        for number in range(count):
            text = random_text(rng)
            assert native(text) == expected(text), f"seed {SEED}, {name}, text {number}: {text!r}"


def test_an_empty_pattern_cuts_everywhere() -> None:
    """The compiler refuses it; the native code has it nevertheless, as recorded."""
    expected = reference(split(""))
    rng = random.Random(SEED)
    part = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
    program = bytearray(programs.pre_tokenizer(part, byte_units=False))
    program[4:8] = (8).to_bytes(4, "little")  # parameters without the pattern's one byte
    program[12:16] = (0).to_bytes(4, "little")
    with NativeSplit(bytes(program[:16])) as native:
        for _ in range(100):
            text = random_text(rng)
            assert native(text) == expected(text)


@pytest.mark.parametrize("pattern", list(patterns.TIKTOKEN_PATTERNS), ids=lambda value: value[:30])
def test_scanners_equal_the_regex_of_tiktoken(pattern: str) -> None:
    """tiktoken's own spellings: the scanner against the same pattern translated for PCRE2."""
    behaviours = programs.BEHAVIOURS
    known = programs.split(
        pattern,
        behaviour=behaviours.index("Isolated"),
        invert=False,
        dialect=patterns.Dialect.FANCY_REGEX,
    )
    as_regex = programs.op(
        programs.OpPre.SPLIT_REGEX,
        params=bytes([behaviours.index("Isolated"), 0, 0, 0]) + programs.string(pattern),
    )
    assert known != as_regex
    rng = random.Random(SEED)
    tiktoken_source = 2
    with (
        NativeSplit(known, source=tiktoken_source) as scanner,
        NativeSplit(as_regex, source=tiktoken_source) as regex,
    ):
        for number in range(TEXTS):
            text = random_text(rng)
            assert scanner(text) == regex(text), f"seed {SEED}, text {number}: {text!r}"
