"""A profile's Unicode tables as differences to the default's: one line a fact, for people too.

    category Lo 10940-10959             general category, as the split patterns see it
    + PUNCT 1B4E-1B4F                    joins a class; `-` leaves it
    split_script 7 A7DC                 class of UnicodeScripts
    canonical 105C9 105D2 307           decomposition; also `compatible` and `lower`
    combining 230 1ACF-1ADD             combining class
    pair 105D2 307 105C9                composition; 0 takes one away
    + NFC 105C9                         may change in this form; `-` stays itself
    grapheme 2 1ACF-1ADD                class of grapheme clusters, with flags
    long_s false

Scripts of regular expressions are the default's, but for Han, which a split pattern names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from unicode_probes import CATEGORIES, Tables

MAPS = ("canonical", "compatible", "lower")


def ranges(cps: Iterable[int]) -> str:
    """Hexadecimal ranges, ascending."""
    out: list[list[int]] = []
    for cp in sorted(cps):
        if out and out[-1][1] == cp - 1:
            out[-1][1] = cp
        else:
            out.append([cp, cp])
    return " ".join(f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in out)


def code_points(words: Iterable[str]) -> Iterator[int]:
    """The code points of such ranges."""
    for word in words:
        first, _, last = word.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def map_of(tables: Tables, name: str) -> dict[int, str]:
    if name == "lower":
        return tables.lower
    return tables.norm.canonical if name == "canonical" else tables.norm.compatible


def write_differences(base: Tables, other: Tables, *, name: str) -> str:
    """The text that turns `base` into `other`; `name` is the version that was asked."""
    lines = [
        f"# What tokenizers {name} answers otherwise than the default profile's version.",
        "# Written by scripts/gen_unicode.py --probe; the form stands in unicode_differences.py.",
        f"long_s {str(other.long_s).lower()}",
    ]

    def lists(label: str, old: list[int], new: list[int], names: list[str] | None = None) -> None:
        changed: dict[int, list[int]] = {}
        for cp, value in enumerate(new):
            if old[cp] != value:
                changed.setdefault(value, []).append(cp)
        for value, cps in sorted(changed.items()):
            lines.append(f"{label} {names[value] if names else value} {ranges(cps)}")

    def sets(label: str, old: set[int], new: set[int]) -> None:
        for sign, cps in (("+", new - old), ("-", old - new)):
            if cps:
                lines.append(f"{sign} {label} {ranges(cps)}")

    lists("category", base.category, other.category, CATEGORIES)
    for label, members in base.members.items():
        sets(label, members, other.members[label])
    lists("split_script", base.split_script, other.split_script)
    lists("grapheme", base.grapheme, other.grapheme)
    classes = [
        [tables.norm.combining.get(cp, 0) for cp in range(0x110000)] for tables in (base, other)
    ]
    lists("combining", *classes)
    for label in MAPS:
        old, new = map_of(base, label), map_of(other, label)
        for cp in sorted(old.keys() | new.keys()):
            if old.get(cp) != new.get(cp):
                parts = " ".join(f"{ord(char):X}" for char in new.get(cp, chr(cp)))
                lines.append(f"{label} {cp:X} {parts}")
    for pair in sorted(base.norm.pairs.keys() | other.norm.pairs.keys()):
        composite = other.norm.pairs.get(pair, 0)
        if base.norm.pairs.get(pair, 0) != composite:
            lines.append(f"pair {pair[0]:X} {pair[1]:X} {composite:X}")
    for label, members in base.norm.checks.items():
        sets(label, members, other.norm.checks[label])
    return "\n".join(lines) + "\n"


def read_differences(base: Tables, text: str) -> Tables:
    """The tables that such a text describes."""
    tables = copy.deepcopy(base)
    norm = tables.norm
    lists = {
        "split_script": tables.split_script,
        "grapheme": tables.grapheme,
        "category": tables.category,
    }
    for line in text.splitlines():
        kind, *words = line.split()
        if kind in lists:
            value = CATEGORIES.index(words[0]) if kind == "category" else int(words[0])
            for cp in code_points(words[1:]):
                lists[kind][cp] = value
        elif kind in ("+", "-"):
            members = tables.members if words[0] in tables.members else norm.checks
            cps = set(code_points(words[1:]))
            members[words[0]] = members[words[0]] | cps if kind == "+" else members[words[0]] - cps
        elif kind == "combining":
            norm.combining.update(dict.fromkeys(code_points(words[1:]), int(words[0])))
        elif kind in MAPS:
            cp, *parts = (int(word, 16) for word in words)
            map_of(tables, kind)[cp] = "".join(map(chr, parts))
        elif kind == "pair":
            first, second, composite = (int(word, 16) for word in words)
            norm.pairs[first, second] = composite
        elif kind == "long_s":
            tables.long_s = words == ["true"]
        elif kind != "#":
            raise ValueError(f"not a difference: {line}")
    for pair in [pair for pair, composite in norm.pairs.items() if composite == 0]:
        del norm.pairs[pair]
    for cp in [cp for cp, value in norm.combining.items() if value == 0]:
        del norm.combining[cp]
    han, common = tables.script_names.index("Han"), tables.script_names.index("Common")
    for cp in tables.members["HAN"] ^ base.members["HAN"]:
        tables.script[cp] = han if cp in tables.members["HAN"] else common
    for name in MAPS:
        same = [cp for cp, parts in map_of(tables, name).items() if parts == chr(cp)]
        for cp in same:
            del map_of(tables, name)[cp]
    return tables
