"""Texts on which tokenizers go wrong: what a certificate compares, made from a seed.

Every class of character beside every other, white space of all kinds, contractions, numbers, every
script, forms that normalization changes, code points at the edges of UTF-8, long runs, code, and
each added token in surroundings that its flags care about. Always the same texts for the same
tokens.
"""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_SEED: Final = 0x70696E746F6B

# One or two of each class that split patterns and normalizers tell apart.
_CLASSES: Final = (
    "a",
    "Z",
    "é",
    "ß",
    "ſ",
    "ǅ",
    "ʰ",
    "я",
    "ع",
    "का",
    "ก",
    "漢",
    "あ",
    "ー",
    "한",
    "7",
    "٣",
    "²",
    "Ⅷ",
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\u00a0",
    "\u0085",
    "\u2028",
    "\u3000",
    "\u200b",
    "\u200d",
    "\ufeff",
    "'",
    "’",
    "_",
    ".",
    "/",
    "<",
    "|",
    "▁",
    "Ġ",
    "€",
    "+",
    "\u0301",
    "\u0903",
    "😀",
    "👩\u200d👧",
    "\ue000",
    "\ufffd",
    "\x00",
    "\x1f",
)

_EDGES: Final = (
    0x00, 0x01, 0x08, 0x0B, 0x0C, 0x1C, 0x1F, 0x7F, 0x80, 0x9F, 0xA0, 0xAD, 0xFF, 0x100, 0x17F,
    0x1C4, 0x1C5, 0x2B0, 0x300, 0x345, 0x378, 0x600, 0x7FF, 0x800, 0xFFF, 0x1000, 0x180E, 0x1FFF,
    0x200B, 0x200C, 0x200D, 0x200E, 0x202F, 0x205F, 0x2060, 0x212A, 0x2581, 0x3000, 0x3007, 0x32FF,
    0x4DFF, 0x9FFF, 0xA66E, 0xABFF, 0xD7FF, 0xE000, 0xF8FF, 0xFDD0, 0xFE0F, 0xFEFF, 0xFF9E, 0xFFFC,
    0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x104B0, 0x11938, 0x1D7FF, 0x1E900, 0x1F1E6, 0x1FAFF, 0x2A6DF,
    0x30000, 0x323AF, 0xE0001, 0xE0100, 0xF0000, 0x10FFFD, 0x10FFFF,
)  # fmt: skip

# First and last code point of blocks with letters, one per script or so.
_BLOCKS: Final = (
    (0x41, 0x5A), (0xC0, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x587),
    (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1), (0x7C0, 0x7FA), (0x800, 0x83E),
    (0x900, 0x97F), (0x980, 0x9FE), (0xA01, 0xA76), (0xA81, 0xAFF), (0xB01, 0xB77), (0xB82, 0xBFA),
    (0xC00, 0xC7F), (0xC80, 0xCF2), (0xD00, 0xD7F), (0xD81, 0xDF4), (0xE01, 0xE5B), (0xE81, 0xEDF),
    (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x139F),
    (0x13A0, 0x13FD), (0x1401, 0x167F), (0x1680, 0x169C), (0x16A0, 0x16F8), (0x1780, 0x17F9),
    (0x1800, 0x18AA), (0x1900, 0x194F), (0x1A00, 0x1A1F), (0x1B00, 0x1B7C), (0x1D00, 0x1DBF),
    (0x1E00, 0x1FFF), (0x2070, 0x209C), (0x2100, 0x218B), (0x2460, 0x24FF), (0x2C00, 0x2C5F),
    (0x2D30, 0x2D7F), (0x3041, 0x30FF), (0x3105, 0x312F), (0x3131, 0x318E), (0x3400, 0x34FF),
    (0x4E00, 0x9FFC), (0xA000, 0xA48C), (0xA500, 0xA62B), (0xA640, 0xA69F), (0xA720, 0xA7BF),
    (0xA800, 0xA82B), (0xA880, 0xA8D9), (0xA9CF, 0xA9D9), (0xAA00, 0xAA5F), (0xABC0, 0xABF9),
    (0xAC00, 0xD7A3), (0xF900, 0xFA6D), (0xFB00, 0xFB4F), (0xFB50, 0xFDFD), (0xFE70, 0xFEFC),
    (0xFF01, 0xFFDC), (0x10000, 0x100FA), (0x10330, 0x1034A), (0x10400, 0x1044F),
    (0x10900, 0x1091B), (0x11000, 0x1104D), (0x11080, 0x110C1), (0x12000, 0x12399),
    (0x13000, 0x1342E), (0x16800, 0x16A38), (0x17000, 0x187F7), (0x1D400, 0x1D7FF),
    (0x1E900, 0x1E943), (0x1EE00, 0x1EEBB), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF),
    (0x20000, 0x2A6D6),
)  # fmt: skip

_PROSE: Final = (
    "The quick brown fox doesn't jump; it's tired, and we'll see what they've done by 10:45 p.m.",
    "«L'été dernier, j'ai vu 12 345,67 € s'envoler…» — déjà vu?",
    "Größe, Straße, Übermut: fünfundzwanzig Prozent (25 %).",
    "¿Dónde está la biblioteca? ¡Allí, en el número 42!",
    "В начале было слово, и слово стоило 3,14 рубля.",
    "Καλημέρα κόσμε, σήμερα είναι 7η μέρα.",
    "يُقال إن ١٢٣ رقمٌ جميل، أليس كذلك؟",
    "בְּרֵאשִׁית נִכְתַּב הקוד הזה.",
    "हिन्दी में लिखा हुआ वाक्य, जिसमें १२३ अंक हैं।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "今天天气很好，我们去公园玩吧。价格是￥1,234.56元。",
    "東京タワーは333メートルです。ｶﾞｷﾞｸﾞ半角も。",
    "대한민국의 수도는 서울이고, 인구는 약 950만 명이다.",
    "Tiếng Việt có nhiều dấu thanh: ngã, hỏi, sắc, huyền, nặng.",
    "İstanbul'da ılık bir gün; ΑΣΟΣ ΟΔΥΣΣΕΥΣ.",
    "e\u0301 vs é, Å vs Å vs Å, ﬁ vs fi, ① vs 1, Ⅳ vs IV, 각 vs 각",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 ☺︎",
    "zalgo: z̷̡͈͔a̶͎͒l̵̜̈g̴̛̱o̸͓͐",
)

_CODE: Final = (
    "def f(x):\n    return {'a': x**2, \"b\": [i for i in range(10) if i % 2 == 0]}\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\t// dot product\n}\n",
    '{"id": 12345, "tags": ["x", "y"], "nested": {"k": null, "v": -1.5e-10}}',
    "https://user:pw@example.org:8080/a/b%20c?q=1&r=%E2%82%AC#frag-ment",
    "SELECT * FROM users WHERE name LIKE '%O''Brien%' AND age >= 18;",
    '<div class="a b"><p>Text &amp; more</p><!-- x --></div>\r\n',
    "# Title\n\n* item one\n* item two\n\n```rust\nfn main() {}\n```\n",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "camelCaseIdentifierHTTPServerXMLParser2Go snake_case_name SCREAMING_SNAKE kebab-case-name",
    "0x7FFF 0b1010 1e-9 3.14159265358979 1,000,000 2024-02-29T23:59:59Z 192.168.0.1 ::1",
    "<|im_start|>user\n<|endoftext|> <s>[INST] </s> [CLS] <unk> <pad> <0x0A> <|>|<<||>>",
    "\u001b[31mred\u001b[0m \\u0041 \\x41 \\n\n\\t\t",
)


def texts(added: Sequence[str] = ()) -> list[str]:
    """All texts for a model with these added tokens: a few thousand, well below a megabyte."""
    source = random.Random(_SEED)
    out = [
        "",
        *_PROSE,
        *_CODE,
        *_neighbours(source),
        *_white_space(source),
        *_contractions(),
        *_numbers(source),
        *_scripts(source),
        *_forms(),
        *_random_code_points(source),
        *_runs(),
        *_mixtures(source),
        *_tokens(added, source),
    ]
    return list(dict.fromkeys(out))


def _neighbours(source: random.Random) -> Iterator[str]:
    """Every class alone, beside every other, and in random company."""
    yield from _CLASSES
    for pair in itertools.product(_CLASSES, repeat=2):
        yield "".join(pair)
    for _ in range(600):
        yield "".join(source.choices(_CLASSES, k=source.randint(3, 12)))


def _white_space(source: random.Random) -> Iterator[str]:
    for count in (*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 200):
        yield " " * count
        yield "a" + " " * count + "b"
        yield "x\n" + " " * count + "y"
        yield "\n" * count
    for _ in range(150):
        run = "".join(source.choices(" \t\n\r\v\f\u00a0\u2003\u3000\u0085\u2028", k=4))
        yield source.choice(("", "a", "7", "é", ".")) + run + source.choice(("", "b", "7", "!"))


def _contractions() -> Iterator[str]:
    for apostrophe in "'’ʼ`":
        for ending in ("s", "t", "re", "ve", "m", "ll", "d", "S", "RE", "Ll", "ſ", "x", "st", ""):
            for word in ("it", "WE", "ü", "9", " ", "\n"):
                yield f"{word}{apostrophe}{ending}"
                yield f"{word}{apostrophe}{ending} a"


def _numbers(source: random.Random) -> Iterator[str]:
    for digits in (
        "0123456789",
        "٠١٢٣٤٥٦٧٨٩",
        "०१२३४५६७८९",
        "０１２３４５６７８９",
        "²³¹½¾",
        "ⅠⅡⅢⅣ",
        "①②③㊿",
    ):
        for count in range(1, 11):
            number = "".join(source.choices(digits, k=count))
            yield number
            yield f"a{number}b {number}.{number}"


def _scripts(source: random.Random) -> Iterator[str]:
    for first, last in _BLOCKS:
        assigned = [
            chr(code_point)
            for code_point in range(first, last + 1)
            if unicodedata.category(chr(code_point)) != "Cn"
        ]
        for _ in range(5):
            words = (
                "".join(source.choices(assigned, k=source.randint(1, 8)))
                for _ in range(source.randint(1, 6))
            )
            yield source.choice((" ", "", ", ", "-")).join(words)


def _forms() -> Iterator[str]:
    """The prose in each normalization form, and in both cases."""
    for text in _PROSE:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield unicodedata.normalize(form, text)
        yield text.upper()
        yield text.lower()
        yield text.title()
        yield " " + text + " "
        yield text.replace(" ", "▁")
        yield text.replace(" ", "\u00a0")


def _random_code_points(source: random.Random) -> Iterator[str]:
    for edge in _EDGES:
        yield chr(edge)
        yield f"a{chr(edge)}b {chr(edge)} {chr(edge)}{chr(edge)}1"
    for limit in (0x80, 0x800, 0x3100, 0x10000, 0x110000):
        for _ in range(60):
            points = (source.randrange(limit) for _ in range(source.randint(1, 30)))
            yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def _runs() -> Iterator[str]:
    for unit in (
        "a",
        "A",
        "aB",
        "é",
        "漢",
        "7",
        "=",
        "-",
        "\n",
        " ",
        "\t",
        "😀",
        "\u0301",
        "<|",
        "ab ",
    ):
        for count in (17, 100, 1000):
            yield unit * count
    yield "".join(chr(0x61 + index * index % 26) for index in range(3000))


def _mixtures(source: random.Random) -> Iterator[str]:
    """Pieces of everything side by side: longer texts as users write them."""
    material = [*_PROSE, *_CODE]
    for _ in range(120):
        parts = []
        for _ in range(source.randint(2, 6)):
            text = source.choice(material)
            begin = source.randrange(len(text))
            parts.append(text[begin : begin + source.randint(1, 60)])
        yield source.choice(("", " ", "\n", "\n\n", "'")).join(parts)


def _tokens(added: Iterable[str], source: random.Random) -> Iterator[str]:
    """Each added token alone and crowded; with very many, most stand in groups only."""
    tokens = [token for token in added if token]
    for token in tokens[:400]:
        yield token
        yield f"a{token}b"
        yield f"word {token} word"
        yield f"  {token}\n\n{token}{token}é"
        yield token[:-1]
        yield f"{token.upper()} {token.lower()}"
    for start in range(0, len(tokens), 12):
        group = tokens[start : start + 12]
        source.shuffle(group)
        yield source.choice(("", " ", "x", "\n", " - ")).join(group)
