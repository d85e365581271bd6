#!/usr/bin/env python3
"""Write the Unicode tables of every reference profile, as C.

The default profile is probed from the installed `tokenizers` (`unicode_probes.py`: minutes). Every
other profile is a file of differences to it in `native/spec/`, so that only the default's library
has to be installed. A release candidate is probed in an environment of its own:

    scripts/gen_unicode.py                   writes native/gen/ptk_unicode_gen.h and .c
    scripts/gen_unicode.py --check           writes nothing, fails when a file is stale
    scripts/gen_unicode.py --probe PROFILE   installs the version that PROFILES names for the
                                             profile in bench/out, probes it and writes its
                                             differences first

A further profile is one entry of PROFILES and its file of differences.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import pickle
import subprocess
import sys
import types
import venv
from collections.abc import Callable, Sequence

import tokenizers
from unicode_differences import read_differences, write_differences
from unicode_probes import (
    CATEGORIES,
    CODE_POINTS,
    GRAPHEME_BITS,
    GRAPHEME_FLAGS,
    GRAPHEMES,
    PROPERTIES,
    Normalization,
    ProbeError,
    Tables,
    isolating,
    probe,
    probe_split_classes,
)
from unicode_reference import Json, installed

ROOT = pathlib.Path(__file__).resolve().parent.parent
GEN_DIR = ROOT / "native" / "gen"
SPEC_DIR = ROOT / "native" / "spec"

# Profile of `native/spec/image.toml` -> version of tokenizers that is probed for it; the first is
# the default.
PROFILES = {"tokenizers_0_23": "0.23.3", "tokenizers_1_0": "1.0.0rc3"}
DEFAULT = next(iter(PROFILES))

# ---------------------------------------------------------------------------------------- packing


class Stages:
    """Tables over all code points in two stages; blocks of equal content are stored once.

    All profiles share the leaves, in the order in which they were first needed.
    """

    def __init__(self, *, shift: int) -> None:
        self.width = 1 << shift
        self.leaves: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}

    def add(self, values: Sequence[int]) -> list[int]:
        """The blocks of one more table."""
        blocks = []
        for start in range(0, len(values), self.width):
            block = tuple(values[start : start + self.width])
            if block not in self._seen:
                self._seen[block] = len(self._seen)
                self.leaves.extend(block)
            blocks.append(self._seen[block])
        return blocks


class Numbers:
    """Distinct values numbered in the order of their coming, those of one call by size."""

    def __init__(self, what: str, *, cap: int) -> None:
        self.values: list[int] = []
        self._what, self._cap = what, cap
        self._index: dict[int, int] = {}

    def add(self, values: Sequence[int]) -> list[int]:
        """The number of each value."""
        for value in sorted(set(values) - set(self._index)):
            self._index[value] = len(self.values)
            self.values.append(value)
        if len(self.values) > self._cap:
            raise ProbeError(f"{len(self.values)} {self._what} are more than {self._cap}")
        return [self._index[value] for value in values]


class Maps:
    """Maps from code points to sequences; all of them share one pool of code points."""

    LEN_BITS = 5
    SHIFT = 6

    def __init__(self) -> None:
        self.pool: list[int] = []
        self.found: dict[str, int] = {}
        self.stages = {
            name: Stages(shift=self.SHIFT) for name in ("canonical", "compatible", "lower")
        }
        self.entries = {name: [0] for name in self.stages}
        self.index: dict[str, dict[str, int]] = {name: {} for name in self.stages}

    def add(self, name: str, sequences: dict[int, str]) -> tuple[list[int], int]:
        """Pack one more map of a kind; returns its blocks and the code point where it ends."""
        end = (max(sequences) >> self.SHIFT) + 1 << self.SHIFT
        entries, index = self.entries[name], self.index[name]
        for text in sequences.values():
            if text in index:
                continue
            if text not in self.found:
                self.found[text] = len(self.pool)
                self.pool.extend(map(ord, text))
            if len(text) >> self.LEN_BITS:
                raise ProbeError(f"{name}: {text!a} is too long for the table")
            index[text] = len(entries)
            entries.append(self.found[text] << self.LEN_BITS | len(text))
        values = [index[sequences[cp]] if cp in sequences else 0 for cp in range(end)]
        return self.stages[name].add(values), end


# Slots of the composition table: about half of them stay empty.
PAIR_BITS = 11
PAIR_FACTOR = 0x9E3779B97F4A7C15


def pair_table(pairs: dict[tuple[int, int], int]) -> list[int]:
    """Open addressing with linear probing; a slot is first << 42 | second << 21 | composite."""
    slots = [0] * (1 << PAIR_BITS)
    if len(pairs) * 3 > len(slots) * 2:
        raise ProbeError(f"{len(pairs)} pairs fill the table of {len(slots)} slots")
    for (first, second), composite in sorted(pairs.items()):
        key = first << 21 | second
        slot = (key * PAIR_FACTOR & 0xFFFFFFFFFFFFFFFF) >> (64 - PAIR_BITS)
        while slots[slot]:
            slot = (slot + 1) % len(slots)
        slots[slot] = key << 21 | composite
    return slots


NORM_CHECKS = ["NFC", "NFD", "NFKC", "NFKD"]


def norm_words(norm: Normalization) -> list[int]:
    """The property word of every code point."""
    words = [norm.combining.get(cp, 0) for cp in range(CODE_POINTS)]
    for bit, name in enumerate(NORM_CHECKS, start=8):
        for cp in norm.checks[name]:
            words[cp] |= 1 << bit
    return words


def class_masks(tables: Tables) -> list[int]:
    """The mask of every code point."""
    masks = [1 << category for category in tables.category]
    for bit, (name, _) in enumerate(PROPERTIES, start=len(CATEGORIES)):
        for cp in tables.members[name]:
            masks[cp] |= 1 << bit
    return masks


def c_array(kind: str, name: str, values: Sequence[int], *, fmt: Callable[[int], str] = str) -> str:
    """One static array, wrapped at 100 columns."""
    lines: list[str] = []
    line = "   "
    for value in values:
        item = f" {fmt(value)},"
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    body = "\n".join(lines)
    return f"static const {kind} {name}[{len(values)}] = {{\n{body}\n}};\n"


def bit_name(name: str) -> str:
    return f"PTK_UNICODE_{name.upper()}"


def header_text() -> str:
    """The header: class bits, and the struct that a profile fills."""
    bits = "\n".join(
        f"#define {bit_name(name):<26} (UINT64_C(1) << {bit})"
        for bit, name in enumerate(CATEGORIES)
    )
    more = "\n".join(
        f"/* {doc} */\n#define {bit_name(name):<26} (UINT64_C(1) << {bit})"
        for bit, (name, doc) in enumerate(PROPERTIES, start=len(CATEGORIES))
    )
    groups = "\n".join(
        f"#define {bit_name(group):<14} \\\n    ("
        + " | ".join(bit_name(c) for c in CATEGORIES if c[0] == group)
        + ")"
        for group in "LMNPSZC"
    )
    norm_bits = "\n".join(
        f"#define PTK_UNICODE_NORM_{name:<5} (1u << {bit})"
        for bit, name in enumerate(NORM_CHECKS, start=8)
    )
    grapheme_names = [(name, str(value)) for value, name in enumerate(GRAPHEMES)] + [
        (name, f"(1u << {bit})") for bit, name in enumerate(GRAPHEME_FLAGS, start=GRAPHEME_BITS)
    ]
    grapheme_bits = "\n".join(
        f"#define PTK_UNICODE_GRAPHEME_{name:<10} {value}" for name, value in grapheme_names
    )
    externs = "\n".join(f"extern const struct ptk_unicode ptk_unicode_{p};" for p in PROFILES)
    return f"""\
/*
 * Class bits of code points and the shape of a profile's tables.
 * Generated by scripts/gen_unicode.py; do not edit. Readers include text/ptk_unicode.h.
 */
#ifndef PTK_UNICODE_GEN_H
#define PTK_UNICODE_GEN_H

#include <stdbool.h>
#include <stdint.h>

/* General categories, one bit each. */
{bits}

/* Groups of categories. */
{groups}

/* Other classes; several may hold. */
{more}

/*
 * Normalization: bits 0 to 7 hold the combining class. A code point without the bit of a form is
 * itself in that form, and in NFC and NFKC nothing before it can combine with it.
 */
#define PTK_UNICODE_NORM_CLASS 0xFFu
{norm_bits}

/* Grapheme clusters: bits 0 to {GRAPHEME_BITS - 1} hold the class, the others are flags. */
#define PTK_UNICODE_GRAPHEME_CLASS {(1 << GRAPHEME_BITS) - 1}u
{grapheme_bits}

/* A map from code points to sequences of code points. */
struct ptk_unicode_map {{
    const uint16_t *blocks;  /* code point >> PTK_UNICODE_MAP_SHIFT -> block of leaves */
    const uint16_t *leaves;  /* index in entries, 0: not in the map */
    const uint32_t *entries; /* offset in pool << PTK_UNICODE_MAP_LEN_BITS | length */
    const uint32_t *pool;
    uint32_t end; /* code points from here on are not in the map */
}};

/* Tables of one profile; read through the functions of text/ptk_unicode.h only. */
struct ptk_unicode {{
    const uint16_t *class_blocks; /* code point >> PTK_UNICODE_CLASS_SHIFT -> block of leaves */
    const uint8_t *class_leaves;  /* index in class_masks */
    const uint64_t *class_masks;
    const uint16_t *script_blocks;      /* as above, with PTK_UNICODE_SCRIPT_SHIFT */
    const uint8_t *script_leaves;       /* index in script_names */
    const char *const *script_names;    /* scripts of the regular expressions */
    const uint16_t *split_script_blocks;
    const uint8_t *split_script_leaves; /* classes of UnicodeScripts; 0 joins anything */
    uint32_t script_count;
    uint32_t class_count; /* of all profiles */
    bool long_s;          /* in the split patterns (?i:s) matches U+017F, too */
    const uint16_t *norm_blocks; /* as above, with PTK_UNICODE_NORM_SHIFT */
    const uint8_t *norm_leaves;  /* index in norm_words */
    const uint16_t *norm_words;  /* combining class | PTK_UNICODE_NORM_* */
    const uint64_t *pairs;       /* first << 42 | second << 21 | composite; 0: empty */
    const uint16_t *grapheme_blocks; /* as above, with PTK_UNICODE_GRAPHEME_SHIFT */
    const uint8_t *grapheme_leaves;  /* PTK_UNICODE_GRAPHEME_* */
    struct ptk_unicode_map canonical;
    struct ptk_unicode_map compatible;
    struct ptk_unicode_map lower;
}};

#define PTK_UNICODE_CLASS_SHIFT  {CLASS_SHIFT}
#define PTK_UNICODE_SCRIPT_SHIFT {SCRIPT_SHIFT}
#define PTK_UNICODE_NORM_SHIFT   {NORM_SHIFT}
#define PTK_UNICODE_GRAPHEME_SHIFT {GRAPHEME_SHIFT}
#define PTK_UNICODE_MAP_SHIFT    {Maps.SHIFT}
#define PTK_UNICODE_MAP_LEN_BITS {Maps.LEN_BITS}
#define PTK_UNICODE_MAP_LEN_MAX  {(1 << Maps.LEN_BITS) - 1}
#define PTK_UNICODE_PAIR_BITS    {PAIR_BITS}
#define PTK_UNICODE_PAIR_FACTOR  UINT64_C(0x{PAIR_FACTOR:X})

{externs}

#endif
"""


CLASS_SHIFT = 7
SCRIPT_SHIFT = 7
NORM_SHIFT = 7
GRAPHEME_SHIFT = 7


class Source:
    """The C file while profiles are added to it. What they have in common is written once."""

    def __init__(self) -> None:
        self.masks = Numbers("classes", cap=256)
        self.words = Numbers("normalization properties", cap=256)
        self.stages = {
            name: Stages(shift=shift)
            for name, shift in (
                ("class", CLASS_SHIFT),
                ("script", SCRIPT_SHIFT),
                ("split_script", SCRIPT_SHIFT),
                ("norm", NORM_SHIFT),
                ("grapheme", GRAPHEME_SHIFT),
            )
        }
        self.maps = Maps()
        self.arrays: dict[tuple[int, ...], str] = {}
        self.parts: list[str] = []
        self.script_names: list[str] = []

    def add(self, profile: str, tables: Tables) -> None:
        """One more profile."""
        self.script_names = self.script_names or tables.script_names
        if tables.script_names != self.script_names:
            raise ProbeError(f"{profile} has scripts of other names")
        lines = [f"const struct ptk_unicode ptk_unicode_{profile} = {{"]
        values = {
            "class": self.masks.add(class_masks(tables)),
            "script": tables.script,
            "split_script": tables.split_script,
            "norm": self.words.add(norm_words(tables.norm)),
            "grapheme": tables.grapheme,
        }
        for name, stages in self.stages.items():
            blocks = self._array("uint16_t", f"{profile}_{name}_blocks", stages.add(values[name]))
            lines += [f"    .{name}_blocks = {blocks},", f"    .{name}_leaves = {name}_leaves,"]
        pairs = self._array(
            "uint64_t", f"{profile}_pairs", pair_table(tables.norm.pairs), fmt=lambda v: f"0x{v:X}"
        )
        lines += [
            "    .class_masks = class_masks,",
            "    .class_count = sizeof class_masks / sizeof class_masks[0],",
            "    .script_names = script_names,",
            f"    .script_count = {len(self.script_names)},",
            f"    .long_s = {str(tables.long_s).lower()},",
            "    .norm_words = norm_words,",
            f"    .pairs = {pairs},",
        ]
        for name, sequences in (
            ("canonical", tables.norm.canonical),
            ("compatible", tables.norm.compatible),
            ("lower", tables.lower),
        ):
            found, end = self.maps.add(name, sequences)
            blocks = self._array("uint16_t", f"{profile}_{name}_blocks", found)
            pointers = f"{blocks}, {name}_leaves, {name}_entries, map_pool"
            lines.append(f"    .{name} = {{{pointers}, 0x{end:X}}},")
        self.parts.append("\n".join([*lines, "};\n"]))

    def _array(
        self, kind: str, name: str, values: Sequence[int], *, fmt: Callable[[int], str] = str
    ) -> str:
        """Write an array unless it is there already; returns its name."""
        key = tuple(values)
        if key not in self.arrays:
            self.arrays[key] = name
            self.parts.append(c_array(kind, name, values, fmt=fmt))
        return self.arrays[key]

    def text(self) -> str:
        """The file."""
        names = "\n".join(f'    "{name}",' for name in self.script_names)
        answers = ", ".join(f"{profile}: {version}" for profile, version in PROFILES.items())
        head = f"""\
/*
 * Unicode tables of the profiles: answers of tokenizers ({answers}).
 * Generated by scripts/gen_unicode.py; do not edit.
 */
#include "gen/ptk_unicode_gen.h"
"""
        shared = [
            c_array("uint64_t", "class_masks", self.masks.values, fmt=lambda v: f"0x{v:X}"),
            f"static const char *const script_names[{len(self.script_names)}] = {{\n{names}\n}};\n",
            *(
                c_array("uint8_t", f"{name}_leaves", stages.leaves)
                for name, stages in self.stages.items()
            ),
            c_array("uint16_t", "norm_words", self.words.values),
            c_array("uint32_t", "map_pool", self.maps.pool, fmt=lambda v: f"0x{v:X}"),
        ]
        for name, stages in self.maps.stages.items():
            shared.append(c_array("uint16_t", f"{name}_leaves", stages.leaves))
            shared.append(c_array("uint32_t", f"{name}_entries", self.maps.entries[name]))
        return "\n".join([head, *shared, *self.parts])


# ------------------------------------------------------------------------------------- profiles


def differences_path(profile: str) -> pathlib.Path:
    return SPEC_DIR / f"unicode_{profile}.txt"


def known_patterns() -> dict[str, Json]:
    """The split patterns whose classes are probed, by the names of their scanners."""
    path = ROOT / "pintok_server" / "vocab" / "patterns.py"
    spec = importlib.util.spec_from_file_location("patterns", path)
    assert spec is not None and spec.loader is not None
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["patterns"] = module
    spec.loader.exec_module(module)
    first = {scanner: text for text, scanner in reversed(module.PATTERNS.items())}
    found = {name: isolating(first[name]) for name in ("llama3", "o200k", "kimi")}
    parts = [first[name] for name in ("deepseek_digits", "deepseek_cjk", "deepseek_v3")]
    found["deepseek"] = {"type": "Sequence", "pretokenizers": list(map(isolating, parts))}
    return found


def probe_elsewhere(profile: str) -> Tables:
    """The tables of a version that is installed in an environment of its own."""
    requirement = f"tokenizers=={PROFILES[profile]}"
    directory = ROOT / "bench" / "out" / requirement.replace("==", "-")
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    raw = directory / "tables.pickle"
    subprocess.run([python, __file__, "--dump", raw], check=True)
    return pickle.loads(raw.read_bytes())  # type: ignore[no-any-return]


def dump(path: pathlib.Path) -> None:
    """Probe the library of this environment, with the classes of its own split patterns."""
    ref = installed()
    tables = probe(ref, scripts=False)
    probe_split_classes(ref, known_patterns(), tables)
    path.write_bytes(pickle.dumps(tables))


def outputs(probed: str | None) -> dict[pathlib.Path, str]:
    """Every file, with its content."""
    base = probe(installed())
    source = Source()
    source.add(DEFAULT, base)
    files = {GEN_DIR / "ptk_unicode_gen.h": header_text()}
    for profile in list(PROFILES)[1:]:
        path = differences_path(profile)
        if profile == probed:
            text = write_differences(base, probe_elsewhere(profile), name=PROFILES[profile])
            files[path] = text
        else:
            text = path.read_text(encoding="utf-8")
        source.add(profile, read_differences(base, text))
    return {**files, GEN_DIR / "ptk_unicode_gen.c": source.text()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when a file is stale")
    parser.add_argument("--probe", choices=list(PROFILES)[1:], help="probe this profile anew")
    parser.add_argument("--dump", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dump is not None:
        dump(args.dump)
        return 0
    if tokenizers.__version__ != PROFILES[DEFAULT]:
        print(
            f"gen_unicode: tokenizers {tokenizers.__version__} is installed, the default profile"
            f" needs {PROFILES[DEFAULT]}",
            file=sys.stderr,
        )
        return 1
    stale = 0
    for path, text in outputs(args.probe).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if args.check:
            print(f"gen_unicode: {path.relative_to(ROOT)} is stale", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
