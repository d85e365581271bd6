#!/usr/bin/env python3
"""Write the Unicode tables of a reference profile by asking the reference itself.

The reference (`tokenizers`) mixes several Unicode versions: one for its regular expressions, one
for Rust's `char` methods, older ones for normalization, punctuation and scripts. No published table
set matches the mix, so every property is probed here, code point by code point, through the public
components of the installed library. Surrogates are not characters and get class `Cs` alone.

    pip install tokenizers==0.23.3
    scripts/gen_unicode.py            writes native/gen/ptk_unicode_gen.h and one .c file a profile
    scripts/gen_unicode.py --check    writes nothing, fails when a file is stale

A further profile is one entry of PROFILES: its tables are written when the installed library is the
version that the entry names; the tables of other profiles are left as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
GEN_DIR = ROOT / "native" / "gen"

# Profile of `native/spec/image.toml` -> version of tokenizers that is probed for it.
PROFILES = {"tokenizers_0_23": "0.23.3"}

CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
SCALARS = [cp for cp in range(CODE_POINTS) if cp not in SURROGATES]
CHUNK = 8192

CATEGORY_NAMES = """
Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn
"""
CATEGORIES = CATEGORY_NAMES.split()

# Bits after the thirty categories: name, what it is.
PROPERTIES = [
    ("SPACE", r"\s of the regular expressions."),
    ("HAN", r"\p{Han} of the regular expressions."),
    ("WORD", r"\w of the regular expressions."),
    ("WORD_POSIX", r"[[:word:]] of the regular expressions, which is not \w."),
    ("ALPHA", r"\p{Alphabetic} of the regular expressions."),
    ("UPPER", r"\p{Uppercase} of the regular expressions."),
    ("LOWER", r"\p{Lowercase} of the regular expressions."),
    ("WORD_RUST", "Word character of the Whitespace pre-tokenizer and of single_word tokens."),
    ("WHITE", "Rust's char::is_whitespace: Strip, WhitespaceSplit, Bert, Metaspace."),
    ("NUMERIC", "Rust's char::is_numeric: Digits."),
    ("PUNCT", "Punctuation and BertPreTokenizer."),
    ("BERT_REMOVED", "Removed by BertNormalizer's clean_text."),
    ("BERT_SPACE", "Turned into a space by BertNormalizer's clean_text."),
    ("BERT_HAN", "Set off by spaces by BertNormalizer's handle_chinese_chars."),
    ("BERT_MARK", "Removed by BertNormalizer's strip_accents, after NFD."),
    ("MARK", "Removed by StripAccents."),
    ("NMT_REMOVED", "Removed by Nmt."),
    ("NMT_SPACE", "Turned into a space by Nmt."),
]

# Scripts that the regular expressions know, by the names that Unicode gives them.
SCRIPT_NAMES = """
Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah Batak Bengali
Bhaiksuki Bopomofo Brahmi Braille Buginese Buhid Canadian_Aboriginal Carian Caucasian_Albanian
Chakma Cham Cherokee Chorasmian Common Coptic Cuneiform Cypriot Cypro_Minoan Cyrillic Deseret
Devanagari Dives_Akuru Dogra Duployan Egyptian_Hieroglyphs Elbasan Elymaic Ethiopic Garay
Georgian Glagolitic Gothic Grantha Greek Gujarati Gunjala_Gondi Gurmukhi Gurung_Khema Han Hangul
Hanifi_Rohingya Hanunoo Hatran Hebrew Hiragana Imperial_Aramaic Inherited Inscriptional_Pahlavi
Inscriptional_Parthian Javanese Kaithi Kannada Katakana Kawi Kayah_Li Kharoshthi
Khitan_Small_Script Khmer Khojki Khudawadi Kirat_Rai Lao Latin Lepcha Limbu Linear_A Linear_B
Lisu Lycian Lydian Mahajani Makasar Malayalam Mandaic Manichaean Marchen Masaram_Gondi
Medefaidrin Meetei_Mayek Mende_Kikakui Meroitic_Cursive Meroitic_Hieroglyphs Miao Modi Mongolian
Mro Multani Myanmar Nabataean Nag_Mundari Nandinagari New_Tai_Lue Newa Nko Nushu
Nyiakeng_Puachue_Hmong Ogham Ol_Chiki Ol_Onal Old_Hungarian Old_Italic Old_North_Arabian
Old_Permic Old_Persian Old_Sogdian Old_South_Arabian Old_Turkic Old_Uyghur Oriya Osage Osmanya
Pahawh_Hmong Palmyrene Pau_Cin_Hau Phags_Pa Phoenician Psalter_Pahlavi Rejang Runic Samaritan
Saurashtra Sharada Shavian Siddham Sidetic SignWriting Sinhala Sogdian Sora_Sompeng Soyombo
Sundanese Sunuwar Syloti_Nagri Syriac Tagalog Tagbanwa Tai_Le Tai_Tham Tai_Viet Tai_Yo Takri
Tamil Tangsa Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta Todhri Tolong_Siki Toto
Tulu_Tigalari Ugaritic Unknown Vai Vithkuqi Wancho Warang_Citi Yezidi Yi Zanabazar_Square
Beria_Erfe
"""


class ProbeError(Exception):
    """The reference answered in a way that the tables cannot express; the message says where."""


# ---------------------------------------------------------------------------------------- probing


def chunks(cps: Sequence[int], *, size: int = CHUNK) -> Iterator[Sequence[int]]:
    """Yield `cps` in pieces that the reference handles quickly."""
    for start in range(0, len(cps), size):
        yield cps[start : start + size]


def text_of(cps: Iterable[int]) -> str:
    return "".join(map(chr, cps))


def removed_by(normalizer: normalizers.Normalizer, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a context-free normalizer deletes (everything else stays in place)."""
    gone: set[int] = set()
    for chunk in chunks(cps):
        kept = set(map(ord, normalizer.normalize_str(text_of(chunk))))
        gone.update(cp for cp in chunk if cp not in kept)
    return gone


def regex_class(pattern: str, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a one-character pattern matches."""
    return removed_by(normalizers.Replace(Regex(pattern), ""), cps=cps)


def maps_of(normalizer: normalizers.Normalizer) -> dict[int, str]:
    """Single code points that a normalizer changes, each asked for alone, with the result."""
    found: dict[int, str] = {}
    for cp in SCALARS:
        result = normalizer.normalize_str(chr(cp))
        if result != chr(cp):
            found[cp] = result
    return found


def bordering(pre: pre_tokenizers.PreTokenizer, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a pre-tokenizer isolates or drops when they stand after the letter x."""
    found: set[int] = set()
    for chunk in chunks(cps, size=1024):
        text = "".join(f"x{chr(cp)}" for cp in chunk)
        ends = {end for _, (_, end) in pre.pre_tokenize_str(text)}
        found.update(cp for i, cp in enumerate(chunk) if 2 * i + 1 in ends)
    return found


def dropped(pre: pre_tokenizers.PreTokenizer, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a pre-tokenizer leaves out of every piece."""
    found: set[int] = set()
    for chunk in chunks(cps):
        kept: set[int] = set()
        for _, (begin, end) in pre.pre_tokenize_str(text_of(chunk)):
            kept.update(chunk[begin:end])
        found.update(cp for cp in chunk if cp not in kept)
    return found


def rust_word() -> set[int]:
    """Word characters of the Whitespace pre-tokenizer: they do not end a run of letters."""
    pre = pre_tokenizers.Whitespace()
    return set(SCALARS) - bordering(pre)


def single_word_blockers() -> set[int]:
    """Code points that keep a single_word token from being matched when they touch it."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_tokens([AddedToken("q", single_word=True, normalized=False)])
    found: set[int] = set()
    for chunk in chunks(SCALARS, size=1024):
        # A space separates the probes; the token counts only where it was matched.
        text = "".join(f" {chr(cp)}q" for cp in chunk)
        encoding = tokenizer.encode(text)
        matched = {
            begin
            for token, (begin, _) in zip(encoding.tokens, encoding.offsets, strict=True)
            if token == "q"
        }
        found.update(cp for i, cp in enumerate(chunk) if 3 * i + 2 not in matched)
    return found


def context_free(normalizer: normalizers.Normalizer) -> tuple[set[int], set[int]]:
    """Code points that a normalizer removes, and those that it turns into a space."""
    removed: set[int] = set()
    spaced: set[int] = set()
    for cp, result in maps_of(normalizer).items():
        if result == "":
            removed.add(cp)
        elif result == " ":
            spaced.add(cp)
        else:
            raise ProbeError(f"U+{cp:04X}: {normalizer} gives {result!a}")
    return removed, spaced


def bert(**options: bool) -> normalizers.Normalizer:
    settings = {
        "clean_text": False,
        "handle_chinese_chars": False,
        "strip_accents": False,
        "lowercase": False,
    }
    return normalizers.BertNormalizer(**(settings | options))


def probe_categories() -> list[int]:
    """The general category of every code point, as an index of CATEGORIES."""
    category = [CATEGORIES.index("Cs")] * CODE_POINTS
    left = set(SCALARS)
    for index, name in enumerate(CATEGORIES):
        if name == "Cs":
            continue
        members = regex_class(rf"\p{{{name}}}")
        if not members <= left:
            raise ProbeError(f"category {name} overlaps another one")
        left -= members
        for cp in members:
            category[cp] = index
    if left:
        raise ProbeError(f"U+{min(left):04X} has no general category")
    for group in "LMNPSZC":
        want = {cp for cp in SCALARS if CATEGORIES[category[cp]][0] == group}
        if regex_class(rf"\p{{{group}}}") != want:
            raise ProbeError(rf"\p{{{group}}} is not the union of its categories")
    if regex_class(r"\d") != {cp for cp in SCALARS if CATEGORIES[category[cp]] == "Nd"}:
        raise ProbeError(r"\d is not Nd")
    return category


def probe_properties() -> dict[str, set[int]]:
    """Members of every entry of PROPERTIES."""
    bert_removed, bert_space = context_free(bert(clean_text=True))
    nmt_removed, nmt_space = context_free(normalizers.Nmt())
    bert_space.add(ord(" "))
    nmt_space.add(ord(" "))
    spaced_han = {
        cp for cp, out in maps_of(bert(handle_chinese_chars=True)).items() if out == f" {chr(cp)} "
    }
    members = {
        "SPACE": regex_class(r"\s"),
        "HAN": regex_class(r"\p{Han}"),
        "WORD": regex_class(r"\w"),
        "WORD_POSIX": regex_class(r"[[:word:]]"),
        "ALPHA": regex_class(r"\p{Alphabetic}"),
        "UPPER": regex_class(r"\p{Uppercase}"),
        "LOWER": regex_class(r"\p{Lowercase}"),
        "WORD_RUST": rust_word(),
        "WHITE": dropped(pre_tokenizers.WhitespaceSplit()),
        "NUMERIC": bordering(pre_tokenizers.Digits()),
        "PUNCT": bordering(pre_tokenizers.Punctuation()),
        "BERT_REMOVED": bert_removed,
        "BERT_SPACE": bert_space,
        "BERT_HAN": spaced_han,
        "BERT_MARK": {cp for cp, out in maps_of(bert(strip_accents=True)).items() if out == ""},
        "MARK": removed_by(normalizers.StripAccents()),
        "NMT_REMOVED": nmt_removed,
        "NMT_SPACE": nmt_space,
    }
    white = members["WHITE"]
    same_as_white = {
        "Strip": {cp for cp, out in maps_of(normalizers.Strip()).items() if out == ""},
        "Whitespace": dropped(pre_tokenizers.Whitespace()),
        "BertPreTokenizer": dropped(pre_tokenizers.BertPreTokenizer()),
    }
    for name, found in same_as_white.items():
        if found != white:
            raise ProbeError(f"{name} has white space of its own")
    if bordering(pre_tokenizers.BertPreTokenizer()) - white != members["PUNCT"]:
        raise ProbeError("BertPreTokenizer has punctuation of its own")
    if single_word_blockers() != members["WORD_RUST"]:
        raise ProbeError("single_word tokens have word characters of their own")
    return members


def probe_scripts() -> tuple[list[str], list[int]]:
    """Names of the regular expressions' scripts, and the index of each code point's script."""
    names: list[str] = []
    script = [0] * CODE_POINTS
    left = list(SCALARS)
    for name in SCRIPT_NAMES.split():
        try:
            members = regex_class(rf"\p{{{name}}}", cps=left)
        except Exception as error:  # The library raises bare Exception for unknown names.
            if "invalid character property name" not in str(error):
                raise
            continue
        names.append(name)
        for cp in members:
            script[cp] = len(names) - 1
        left = [cp for cp in left if cp not in members]
    if left:
        raise ProbeError(f"U+{left[0]:04X} has no script")
    for cp in SURROGATES:
        script[cp] = names.index("Unknown")
    return names, script


def probe_split_scripts() -> list[int]:
    """Script classes of the UnicodeScripts pre-tokenizer: 0 joins anything, others split."""
    pre = pre_tokenizers.UnicodeScripts()

    def boundaries(cps: Sequence[int]) -> set[int]:
        return {begin for _, (begin, _) in pre.pre_tokenize_str(text_of(cps))}

    # Transparent code points do not part either of two letters that are parted otherwise.
    classes = [0] * CODE_POINTS
    transparent: set[int] = set()
    for chunk in chunks(SCALARS, size=512):
        text = [c for cp in chunk for c in (ord("a"), cp, 0x431, cp)]
        cuts = boundaries(text)
        for i, cp in enumerate(chunk):
            if not cuts & {4 * i + 1, 4 * i + 3}:
                transparent.add(cp)
    # Runs of equal script, then every run against one member of each class found so far.
    heads: list[int] = []
    opaque = [cp for cp in SCALARS if cp not in transparent]
    run_of: list[tuple[int, list[int]]] = []
    for chunk in chunks(opaque):
        cuts = boundaries(chunk)
        for i, cp in enumerate(chunk):
            if i == 0 or i in cuts:
                run_of.append((cp, []))
            run_of[-1][1].append(cp)
    for first, members in run_of:
        probe = [c for head in heads for c in (first, head)]
        cuts = boundaries([*probe, first])
        same = [k for k in range(len(heads)) if 2 * k + 1 not in cuts]
        if len(same) > 1:
            raise ProbeError(f"U+{first:04X} belongs to several script classes")
        if not same:
            heads.append(first)
            same = [len(heads) - 1]
        for cp in members:
            classes[cp] = same[0] + 1
    if len(heads) > 254:
        raise ProbeError(f"{len(heads)} script classes do not fit in a byte")
    return classes


def is_hangul(cp: int) -> bool:
    return 0xAC00 <= cp < 0xAC00 + 11172


@dataclasses.dataclass(frozen=True, slots=True)
class Normalization:
    """What the reference's normal forms do to code points; Hangul is left to arithmetic."""

    canonical: dict[int, str]  # full decompositions
    compatible: dict[int, str]
    combining: dict[int, int]  # combining classes other than 0
    pairs: dict[tuple[int, int], int]  # primary composites
    checks: dict[str, set[int]]  # NFC ...: code points that are not themselves in any context


def check_hangul(nfc: Callable[[str], str], nfd: Callable[[str], str]) -> None:
    """Raise ProbeError unless syllables follow the standard's arithmetic."""
    for index in range(11172):
        syllable = chr(0xAC00 + index)
        jamo = chr(0x1100 + index // 588) + chr(0x1161 + index % 588 // 28)
        if index % 28:
            jamo += chr(0x11A7 + index % 28)
        if nfd(syllable) != jamo or nfc(jamo) != syllable:
            raise ProbeError(f"U+{ord(syllable):04X} is not composed by arithmetic")


def probe_combining(nfd: Callable[[str], str], *, plain: Sequence[int]) -> dict[int, int]:
    """Combining classes of code points without decomposition, by the order that NFD gives them.

    CPython's table only names candidates: a representative for each class, whose order among each
    other is checked here. A code point has the class of the one representative that it never swaps
    places with.
    """
    # A starter keeps the marks on its two sides apart; between 230 and 220 others change places.
    nonstarters: list[int] = []
    for chunk in chunks(plain):
        text = "".join(f"a\u0301{chr(cp)}\u0316" for cp in chunk)
        result = nfd(text)
        if len(result) != len(text):
            raise ProbeError("NFD of code points without decomposition changes their number")
        nonstarters.extend(
            cp for i, cp in enumerate(chunk) if result[4 * i : 4 * i + 4] != text[4 * i : 4 * i + 4]
        )
    heads: dict[int, str] = {}
    for cp in nonstarters:
        if value := unicodedata.combining(chr(cp)):
            heads.setdefault(value, chr(cp))
    ordered = [heads[value] for value in sorted(heads)]
    for low, high in itertools.pairwise(ordered):
        if nfd(high + low) != low + high or nfd(low + high) != low + high:
            raise ProbeError(f"{low!a} and {high!a} are not ordered by combining class")
    combining: dict[int, int] = {}
    for cp in nonstarters:
        c = chr(cp)
        same = [
            value
            for value, head in heads.items()
            if nfd(c + head) == c + head and nfd(head + c) == head + c
        ]
        if len(same) != 1:
            raise ProbeError(f"U+{cp:04X} has the combining classes {same}")
        combining[cp] = same[0]
    return combining


def probe_normalization() -> Normalization:
    """Decompositions, combining classes and compositions of the reference."""
    nfc = normalizers.NFC().normalize_str
    nfd = normalizers.NFD().normalize_str
    nfkc = normalizers.NFKC().normalize_str
    check_hangul(nfc, nfd)
    canonical = {cp: out for cp, out in maps_of(normalizers.NFD()).items() if not is_hangul(cp)}
    compatible = {cp: out for cp, out in maps_of(normalizers.NFKD()).items() if not is_hangul(cp)}
    plain = [cp for cp in SCALARS if cp not in compatible and not is_hangul(cp)]
    combining = probe_combining(nfd, plain=plain)
    pairs: dict[tuple[int, int], int] = {}
    for cp, parts in canonical.items():
        if nfc(parts) != chr(cp):
            continue
        first, second = nfc(parts[:-1]), parts[-1]
        if len(parts) < 2 or len(first) != 1 or nfc(first + second) != chr(cp):
            raise ProbeError(f"U+{cp:04X} is not composed of two code points")
        pairs[ord(first), ord(second)] = cp
    seconds = {second for _, second in pairs} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    checks = {
        "NFD": set(canonical) | set(filter(is_hangul, SCALARS)),
        "NFKD": set(compatible) | set(filter(is_hangul, SCALARS)),
    }
    for name, normalize, decompose in (("NFC", nfc, canonical), ("NFKC", nfkc, compatible)):
        checks[name] = {
            cp
            for cp in SCALARS
            if cp in seconds
            or normalize(chr(cp)) != chr(cp)
            or ord(decompose.get(cp, "a")[0]) in seconds | set(combining)
        }
    return Normalization(canonical, compatible, combining, pairs, checks)


# Classes of grapheme clusters: a number and flags. Regional indicators are not told from others:
# see probe_graphemes.
GRAPHEME_NAMES = """
OTHER CONTROL EXTEND ZWJ SPACING PREPEND HANGUL_L HANGUL_V HANGUL_T HANGUL_LV HANGUL_LVT
"""
GRAPHEMES = GRAPHEME_NAMES.split()
GRAPHEME_FLAGS = ["PICTOGRAPH", "CONSONANT", "LINKER", "CONJUNCT"]
GRAPHEME_BITS = 4


def grapheme_counter() -> Callable[[str], str]:
    """A normalizer that turns every grapheme cluster of less than six bytes into one character.

    Precompiled hands such a cluster to its map as a whole, and longer ones character by character.
    The map made here has every byte but zero as a key and one character as the value of all, so
    that the length of the result tells clusters apart. U+0000 may part what is probed.
    """
    units = [0] * 1024
    units[0] = 256 << 10  # The root's children begin at 256.
    for byte in range(1, 256):
        units[256 + byte] = 512 << 10 | 1 << 8 | byte  # A key ends; its value is unit 768 + byte.
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    charsmap = len(trie).to_bytes(4, "little") + trie + b"1\0"
    return normalizers.Precompiled(charsmap).normalize_str


def probe_graphemes() -> list[int]:
    """The grapheme cluster class of every code point, as far as Precompiled can show it.

    Only clusters below six bytes are visible, and where a longer one ends matters only for what
    follows it. A regional indicator has four bytes, and six with anything that joins it, so that
    pairs of them cannot be seen.
    """
    normalize = grapheme_counter()

    def counts(before: str, cps: Sequence[int], after: str) -> dict[int, int]:
        """How many clusters, or characters of long clusters, `before` + cp + `after` has."""
        found: dict[int, int] = {}
        for chunk in chunks(cps, size=1024):
            text = "\0".join(f"{before}{chr(cp)}{after}" for cp in chunk)
            parts = normalize(text).split("\0")
            found.update((cp, len(part)) for cp, part in zip(chunk, parts, strict=True))
        return found

    def having(count: int, before: str, cps: Sequence[int], after: str) -> set[int]:
        return {cp for cp, found in counts(before, cps, after).items() if found == count}

    mark, zwj, letter, virama = "\u0300", "\u200d", "\u0915", "\u094d"
    cps = SCALARS[1:]
    joins = having(1, "x", cps, "")
    extend = having(5, "\u00a9", sorted(joins), f"{zwj}\u2603{mark}") - {ord(zwj)}
    others = sorted(set(cps) - joins)
    control = having(2, "", others, mark * 2)
    prepend = having(1, "", others, "x") - control
    three = [cp for cp in others if 0x800 <= cp < 0x10000 and cp not in control | prepend]
    after_l = having(3, "\u1100", three, mark)
    after_v = having(3, "\u1161", three, mark)
    before_v = having(3, "", three, f"\u1161{mark}")
    before_l = having(3, "", three, f"\u1100{mark}") & after_l
    members = {
        "CONTROL": control | {0},
        "EXTEND": extend,
        "ZWJ": {ord(zwj)},
        "SPACING": joins - extend - {ord(zwj)},
        "PREPEND": prepend,
        "HANGUL_L": before_l,
        "HANGUL_V": after_l & after_v,
        "HANGUL_T": after_v - after_l,
        "HANGUL_LV": after_l & before_v - before_l - after_v,
        "HANGUL_LVT": after_l - before_v - after_v - before_l,
    }
    flags = {
        "PICTOGRAPH": having(3, f"\u00a9{zwj}", others, ""),
        "CONSONANT": having(4, letter + virama, three, mark),
        "LINKER": having(4, letter, sorted(joins), letter + mark),
        "CONJUNCT": having(5, letter, sorted(joins), virama + letter + mark),
    }
    classes = [0] * CODE_POINTS
    for index, name in enumerate(GRAPHEMES):
        for cp in members.get(name, ()):
            if classes[cp]:
                raise ProbeError(f"U+{cp:04X} has two grapheme classes")
            classes[cp] = index
    for bit, name in enumerate(GRAPHEME_FLAGS, start=GRAPHEME_BITS):
        for cp in flags[name]:
            classes[cp] |= 1 << bit
    return classes


# ---------------------------------------------------------------------------------------- packing


class Stages:
    """A table over all code points in two stages: blocks of equal content are stored once."""

    def __init__(self, values: Sequence[int], *, shift: int) -> None:
        width = 1 << shift
        seen: dict[tuple[int, ...], int] = {}
        self.shift = shift
        self.blocks: list[int] = []
        self.leaves: list[int] = []
        for start in range(0, len(values), width):
            block = tuple(values[start : start + width])
            if block not in seen:
                seen[block] = len(seen)
                self.leaves.extend(block)
            self.blocks.append(seen[block])


class Maps:
    """Maps from code points to sequences; all of them share one pool of code points."""

    LEN_BITS = 5
    SHIFT = 6

    def __init__(self) -> None:
        self.pool: list[int] = []
        self.found: dict[str, int] = {}

    def add(self, name: str, sequences: dict[int, str]) -> tuple[str, str]:
        """Pack one map; returns the C of its tables and the initializer that points to them."""
        end = (max(sequences) >> self.SHIFT) + 1 << self.SHIFT
        entries = [0]
        index: dict[str, int] = {}
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
        stages = Stages(values, shift=self.SHIFT)
        tables = "\n".join(
            [
                c_array("uint16_t", f"{name}_blocks", stages.blocks),
                c_array("uint16_t", f"{name}_leaves", stages.leaves),
                c_array("uint32_t", f"{name}_entries", entries),
            ]
        )
        init = (
            f"    .{name} = {{{name}_blocks, {name}_leaves, {name}_entries, map_pool, 0x{end:X}}},"
        )
        return tables, init


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


def norm_tables(norm: Normalization) -> tuple[list[int], Stages]:
    """Distinct property words, and the table of their indexes."""
    words = [norm.combining.get(cp, 0) for cp in range(CODE_POINTS)]
    for bit, name in enumerate(NORM_CHECKS, start=8):
        for cp in norm.checks[name]:
            words[cp] |= 1 << bit
    distinct = sorted(set(words))
    if len(distinct) > 256:
        raise ProbeError(f"{len(distinct)} normalization properties do not fit in a byte")
    index = {word: i for i, word in enumerate(distinct)}
    return distinct, Stages([index[word] for word in words], shift=NORM_SHIFT)


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
    uint32_t class_count;
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


def profile_text(profile: str) -> str:
    """The tables of one profile, probed from the installed library."""
    category = probe_categories()
    members = probe_properties()
    masks = [1 << category[cp] for cp in range(CODE_POINTS)]
    for bit, (name, _) in enumerate(PROPERTIES, start=len(CATEGORIES)):
        for cp in members[name]:
            masks[cp] |= 1 << bit
    distinct = sorted(set(masks))
    if len(distinct) > 256:
        raise ProbeError(f"{len(distinct)} classes do not fit in a byte")
    index = {mask: i for i, mask in enumerate(distinct)}
    classes = Stages([index[mask] for mask in masks], shift=CLASS_SHIFT)
    script_names, script = probe_scripts()
    scripts = Stages(script, shift=SCRIPT_SHIFT)
    split_scripts = Stages(probe_split_scripts(), shift=SCRIPT_SHIFT)
    norm = probe_normalization()
    norm_words, norms = norm_tables(norm)
    graphemes = Stages(probe_graphemes(), shift=GRAPHEME_SHIFT)
    maps = Maps()
    packed = [
        maps.add("canonical", norm.canonical),
        maps.add("compatible", norm.compatible),
        maps.add("lower", maps_of(normalizers.Lowercase())),
    ]
    names = "\n".join(f'    "{name}",' for name in script_names)
    map_inits = "\n".join(init for _, init in packed)
    parts = [
        f"""\
/*
 * Unicode tables of the profile {profile}: answers of tokenizers {PROFILES[profile]}.
 * Generated by scripts/gen_unicode.py; do not edit.
 */
#include "gen/ptk_unicode_gen.h"
""",
        c_array("uint64_t", "class_masks", distinct, fmt=lambda v: f"0x{v:X}"),
        c_array("uint16_t", "class_blocks", classes.blocks),
        c_array("uint8_t", "class_leaves", classes.leaves),
        f"static const char *const script_names[{len(script_names)}] = {{\n{names}\n}};\n",
        c_array("uint16_t", "script_blocks", scripts.blocks),
        c_array("uint8_t", "script_leaves", scripts.leaves),
        c_array("uint16_t", "split_script_blocks", split_scripts.blocks),
        c_array("uint8_t", "split_script_leaves", split_scripts.leaves),
        c_array("uint16_t", "norm_words", norm_words),
        c_array("uint16_t", "norm_blocks", norms.blocks),
        c_array("uint8_t", "norm_leaves", norms.leaves),
        c_array("uint16_t", "grapheme_blocks", graphemes.blocks),
        c_array("uint8_t", "grapheme_leaves", graphemes.leaves),
        c_array("uint64_t", "pairs", pair_table(norm.pairs), fmt=lambda v: f"0x{v:X}"),
        c_array("uint32_t", "map_pool", maps.pool, fmt=lambda v: f"0x{v:X}"),
        *(tables for tables, _ in packed),
        f"""\
const struct ptk_unicode ptk_unicode_{profile} = {{
    .class_blocks = class_blocks,
    .class_leaves = class_leaves,
    .class_masks = class_masks,
    .script_blocks = script_blocks,
    .script_leaves = script_leaves,
    .script_names = script_names,
    .split_script_blocks = split_script_blocks,
    .split_script_leaves = split_script_leaves,
    .script_count = {len(script_names)},
    .class_count = {len(distinct)},
    .norm_blocks = norm_blocks,
    .norm_leaves = norm_leaves,
    .norm_words = norm_words,
    .pairs = pairs,
    .grapheme_blocks = grapheme_blocks,
    .grapheme_leaves = grapheme_leaves,
{map_inits}
}};
""",
    ]
    return "\n".join(parts)


def outputs() -> dict[pathlib.Path, str]:
    """Every file that the installed library determines, with its content."""
    files = {GEN_DIR / "ptk_unicode_gen.h": header_text()}
    for profile, version in PROFILES.items():
        if version == tokenizers.__version__:
            files[GEN_DIR / f"ptk_unicode_{profile}_gen.c"] = profile_text(profile)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when a file is stale")
    args = parser.parse_args()
    if tokenizers.__version__ not in PROFILES.values():
        print(
            f"gen_unicode: tokenizers {tokenizers.__version__} is installed, profiles need one of "
            f"{', '.join(PROFILES.values())}",
            file=sys.stderr,
        )
        return 1
    stale = 0
    for path, text in outputs().items():
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
