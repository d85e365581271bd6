"""Probes the Unicode tables of an installed `tokenizers`, property by property.

The reference mixes several Unicode versions: one for its regular expressions, one for Rust's `char`
methods, others for normalization, punctuation and scripts. No published table set matches the mix,
so every property is probed here, code point by code point, through the library's components.
Surrogates are not characters and get class `Cs` alone.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from unicode_reference import Json, Reference

CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
SCALARS = [cp for cp in range(CODE_POINTS) if cp not in SURROGATES]
CHUNK = 8192

WHITESPACE: Json = {"type": "Whitespace"}
BERT: Json = {"type": "BertPreTokenizer"}
STRIP: Json = {"type": "Strip", "strip_left": True, "strip_right": True}

CATEGORY_NAMES = """
Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn
"""
CATEGORIES = CATEGORY_NAMES.split()
PUNCTUATION = [name for name in CATEGORIES if name[0] == "P"]
SYMBOLS = [name for name in CATEGORIES if name[0] == "S"]

# Bits after the thirty categories: name, what it is.
PROPERTIES = [
    ("SPACE", r"\s of the regular expressions."),
    ("HAN", r"\p{Han} of the regular expressions."),
    ("WORD", r"\w of the regular expressions."),
    ("WORD_POSIX", r"[[:word:]] of the regular expressions, which is not \w."),
    ("ALPHA", r"\p{Alphabetic} of the regular expressions."),
    ("UPPER", r"\p{Uppercase} of the regular expressions."),
    ("LOWER", r"\p{Lowercase} of the regular expressions."),
    ("WORD_RUST", "Word character of the Whitespace pre-tokenizer."),
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


# What the library says of a name that its regular expressions do not know.
UNKNOWN_NAME = ("invalid character property name", "Error compiling regex")


class ProbeError(Exception):
    """The reference answered in a way that the tables cannot express; the message says where."""


# ---------------------------------------------------------------------------------------- probing


def chunks(cps: Sequence[int], *, size: int = CHUNK) -> Iterator[Sequence[int]]:
    """Yield `cps` in pieces that the reference handles quickly."""
    for start in range(0, len(cps), size):
        yield cps[start : start + size]


def text_of(cps: Iterable[int]) -> str:
    return "".join(map(chr, cps))


def removed_by(ref: Reference, component: Json, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a context-free normalizer deletes (everything else stays in place)."""
    normalize = ref.normalizer(component)
    gone: set[int] = set()
    for chunk in chunks(cps):
        kept = set(map(ord, normalize(text_of(chunk))))
        gone.update(cp for cp in chunk if cp not in kept)
    return gone


def replace_regex(pattern: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}


def regex_class(ref: Reference, pattern: str, *, cps: Sequence[int] = SCALARS) -> set[int]:
    """Code points that a one-character pattern matches."""
    return removed_by(ref, replace_regex(pattern), cps=cps)


def maps_of(ref: Reference, component: Json) -> dict[int, str]:
    """Single code points that a normalizer changes, each asked for alone, with the result."""
    found: dict[int, str] = {}
    for chunk in chunks(SCALARS, size=1 << 16):
        texts = list(map(chr, chunk))
        results = ref.normalize_each(component, texts)
        found.update(
            (cp, result)
            for cp, text, result in zip(chunk, texts, results, strict=True)
            if result != text
        )
    return found


def bordering(ref: Reference, component: Json) -> set[int]:
    """Code points that a pre-tokenizer isolates or drops when they stand after the letter x."""
    split = ref.splitter(component)
    found: set[int] = set()
    for chunk in chunks(SCALARS, size=1024):
        text = "".join(f"x{chr(cp)}" for cp in chunk)
        ends = {end for _, end in split(text)}
        found.update(cp for i, cp in enumerate(chunk) if 2 * i + 1 in ends)
    return found


def dropped(ref: Reference, component: Json) -> set[int]:
    """Code points that a pre-tokenizer leaves out of every piece."""
    split = ref.splitter(component)
    found: set[int] = set()
    for chunk in chunks(SCALARS):
        kept: set[int] = set()
        for begin, end in split(text_of(chunk)):
            kept.update(chunk[begin:end])
        found.update(cp for cp in chunk if cp not in kept)
    return found


def context_free(ref: Reference, component: Json) -> tuple[set[int], set[int]]:
    """Code points that a normalizer removes, and those that it turns into a space."""
    removed: set[int] = set()
    spaced: set[int] = set()
    for cp, result in maps_of(ref, component).items():
        if result == "":
            removed.add(cp)
        elif result == " ":
            spaced.add(cp)
        else:
            raise ProbeError(f"U+{cp:04X}: {component} gives {result!a}")
    return removed, spaced


def bert(**options: bool) -> Json:
    settings = {
        "type": "BertNormalizer",
        "clean_text": False,
        "handle_chinese_chars": False,
        "strip_accents": False,
        "lowercase": False,
    }
    return settings | options


def probe_categories(ref: Reference) -> list[int]:
    """The general category of every code point, as an index of CATEGORIES."""
    category = [CATEGORIES.index("Cs")] * CODE_POINTS
    left = set(SCALARS)
    for index, name in enumerate(CATEGORIES):
        if name == "Cs":
            continue
        members = regex_class(ref, rf"\p{{{name}}}")
        if not members <= left:
            raise ProbeError(f"category {name} overlaps another one")
        left -= members
        for cp in members:
            category[cp] = index
    if left:
        raise ProbeError(f"U+{min(left):04X} has no general category")
    for group in "LMNPSZC":
        want = {cp for cp in SCALARS if CATEGORIES[category[cp]][0] == group}
        if regex_class(ref, rf"\p{{{group}}}") != want:
            raise ProbeError(rf"\p{{{group}}} is not the union of its categories")
    if regex_class(ref, r"\d") != {cp for cp in SCALARS if CATEGORIES[category[cp]] == "Nd"}:
        raise ProbeError(r"\d is not Nd")
    return category


def probe_properties(ref: Reference) -> dict[str, set[int]]:
    """Members of every entry of PROPERTIES."""
    bert_removed, bert_space = context_free(ref, bert(clean_text=True))
    nmt_removed, nmt_space = context_free(ref, {"type": "Nmt"})
    bert_space.add(ord(" "))
    nmt_space.add(ord(" "))
    spaced_han = {
        cp
        for cp, out in maps_of(ref, bert(handle_chinese_chars=True)).items()
        if out == f" {chr(cp)} "
    }
    members = {
        "SPACE": regex_class(ref, r"\s"),
        "HAN": regex_class(ref, r"\p{Han}"),
        "WORD": regex_class(ref, r"\w"),
        "WORD_POSIX": regex_class(ref, r"[[:word:]]"),
        "ALPHA": regex_class(ref, r"\p{Alphabetic}"),
        "UPPER": regex_class(ref, r"\p{Uppercase}"),
        "LOWER": regex_class(ref, r"\p{Lowercase}"),
        "WORD_RUST": set(SCALARS) - bordering(ref, WHITESPACE),
        "WHITE": dropped(ref, {"type": "WhitespaceSplit"}),
        "NUMERIC": bordering(ref, {"type": "Digits", "individual_digits": False}),
        "PUNCT": bordering(ref, {"type": "Punctuation", "behavior": "Isolated"}),
        "BERT_REMOVED": bert_removed,
        "BERT_SPACE": bert_space,
        "BERT_HAN": spaced_han,
        "BERT_MARK": {
            cp for cp, out in maps_of(ref, bert(strip_accents=True)).items() if out == ""
        },
        "MARK": removed_by(ref, {"type": "StripAccents"}),
        "NMT_REMOVED": nmt_removed,
        "NMT_SPACE": nmt_space,
    }
    white = members["WHITE"]
    same_as_white = {
        "Strip": {cp for cp, out in maps_of(ref, STRIP).items() if out == ""},
        "Whitespace": dropped(ref, WHITESPACE),
        "BertPreTokenizer": dropped(ref, BERT),
    }
    for name, found in same_as_white.items():
        if found != white:
            raise ProbeError(f"{name} has white space of its own")
    if bordering(ref, BERT) - white != members["PUNCT"]:
        raise ProbeError("BertPreTokenizer has punctuation of its own")
    return members


def probe_scripts(ref: Reference) -> tuple[list[str], list[int]]:
    """Names of the regular expressions' scripts, and the index of each code point's script."""
    names: list[str] = []
    script = [0] * CODE_POINTS
    left = list(SCALARS)
    for name in SCRIPT_NAMES.split():
        try:
            members = regex_class(ref, rf"\p{{{name}}}", cps=left)
        except Exception as error:  # The library raises bare Exception for unknown names.
            if not any(text in str(error) for text in UNKNOWN_NAME):
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


def probe_split_scripts(ref: Reference) -> list[int]:
    """Script classes of the UnicodeScripts pre-tokenizer: 0 joins anything, others split."""
    split = ref.splitter({"type": "UnicodeScripts"})

    def boundaries(cps: Sequence[int]) -> set[int]:
        return {begin for begin, _ in split(text_of(cps))}

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


@dataclasses.dataclass(slots=True)
class Tables:
    """Everything that is known of a profile."""

    category: list[int]  # index of CATEGORIES, by code point
    members: dict[str, set[int]]  # by the names of PROPERTIES
    script_names: list[str]
    script: list[int]  # index of script_names, by code point
    split_script: list[int]  # classes of UnicodeScripts
    norm: Normalization
    grapheme: list[int]
    lower: dict[int, str]
    long_s: bool  # (?i:s) matches U+017F


def probe(ref: Reference, *, scripts: bool = True) -> Tables:
    """All tables of one version, from its components; those of scripts only if wanted."""
    script_names, script = probe_scripts(ref) if scripts else ([], [])
    return Tables(
        category=probe_categories(ref),
        members=probe_properties(ref),
        script_names=script_names,
        script=script,
        split_script=probe_split_scripts(ref),
        norm=probe_normalization(ref),
        grapheme=probe_graphemes(ref),
        lower=maps_of(ref, {"type": "Lowercase"}),
        long_s=ord("\u017f") in regex_class(ref, "(?i:s)"),
    )


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


def probe_normalization(ref: Reference) -> Normalization:
    """Decompositions, combining classes and compositions of the reference."""
    nfc = ref.normalizer({"type": "NFC"})
    nfd = ref.normalizer({"type": "NFD"})
    nfkc = ref.normalizer({"type": "NFKC"})
    check_hangul(nfc, nfd)
    canonical = {cp: out for cp, out in maps_of(ref, {"type": "NFD"}).items() if not is_hangul(cp)}
    compatible = {
        cp: out for cp, out in maps_of(ref, {"type": "NFKD"}).items() if not is_hangul(cp)
    }
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


def grapheme_counter(ref: Reference) -> Callable[[str], str]:
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
    return ref.normalizer(
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    )


def probe_graphemes(ref: Reference) -> list[int]:
    """The grapheme cluster class of every code point, as far as Precompiled can show it.

    Only clusters below six bytes are visible, and where a longer one ends matters only for what
    follows it. A regional indicator has four bytes, and six with anything that joins it, so that
    pairs of them cannot be seen.
    """
    normalize = grapheme_counter(ref)

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


# ------------------------------------------------------------------------------- split patterns


def isolating(pattern: str) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def joined(ref: Reference, component: Json, before: str, after: str = "") -> set[int]:
    """Code points that are in one piece with what stands before them, or behind them."""
    split = ref.splitter(component)
    found: set[int] = set()
    for chunk in chunks([cp for cp in VISIBLE if cp != ord("\n")]):
        lines = [f"{before}{chr(cp)}{after}\n" for cp in chunk]
        starts = {begin for begin, _ in split("".join(lines))}
        at = 1
        for cp, line in zip(chunk, lines, strict=True):
            if at not in starts:
                found.add(cp)
            at += len(line)
    return found


# Planes that hold characters, and some behind them.
VISIBLE = [cp for cp in SCALARS[1:] if cp < 0x40000 or 0xE0000 <= cp < 0xE1000]


def probe_split_classes(ref: Reference, patterns: dict[str, Json], tables: Tables) -> None:
    """Put what the split patterns see in the place of what the regular expressions say.

    In 1.0 each known pattern is a program of its own, with classes of its own. A category changes
    only where the patterns see another one; which of several categories it is, they do not show.
    """
    deepseek, o200k = patterns["deepseek"], patterns["o200k"]
    letters = joined(ref, patterns["llama3"], "a")
    words = joined(ref, deepseek, "a")
    small = joined(ref, o200k, "a")
    capital = joined(ref, o200k, "", "Bb") & letters
    seen = [
        ("Lu", ("Lu", "Lt"), letters & capital - small),
        ("Ll", ("Ll",), letters & small - capital),
        ("Lo", ("Lm", "Lo"), letters & small & capital),
        ("Mn", ("Mn", "Mc", "Me"), words - letters),
        ("Nd", ("Nd", "Nl", "No"), joined(ref, deepseek, "1")),
        ("So", (*PUNCTUATION, *SYMBOLS), joined(ref, deepseek, "!") - letters - {ord("\r")}),
    ]
    # DeepSeek's second split takes its ranges away before the third one sees them.
    hidden = {*range(0x4E00, 0x9FA6), *range(0x3040, 0x3100)} - letters
    others = set(VISIBLE) - hidden
    for name, same, members in seen:
        others -= members
        for cp in members - hidden:
            if CATEGORIES[tables.category[cp]] not in same:
                tables.category[cp] = CATEGORIES.index(name)
    for cp in others:
        if CATEGORIES[tables.category[cp]][0] in "LMNPS" and cp != ord("\n"):
            tables.category[cp] = CATEGORIES.index("Cn")
    tables.members["HAN"] = joined(ref, patterns["kimi"], "\u6f22")
    tables.long_s = len(ref.splitter(patterns["llama3"])("'\u017fx")) == 2
