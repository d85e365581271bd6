"""Texts of the engine benchmark: kinds of them in slices that are never seen twice, and hard ones.

Kinds come from the reference data (`corpora/`) where it is there. Without it the sources of
Python's own library are the code, its docstrings the English, its test data and message tables
what there is of other languages and JSON: less varied, but on every machine.
"""

from __future__ import annotations

import ast
import functools
import gzip
import json
import os
import pathlib
import random
import sysconfig
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK_CHARS = 1500
KIND_CHARS = 10_000_000
LIBRARY_FILES = 400
FILES = {
    "english": ["english_prose"],
    "languages": (
        "chinese japanese korean russian arabic hindi thai hebrew vietnamese other_languages"
    ).split(),
    "code": ["code_python", "code_c_cpp_js", "code_rust", "code_go"],
    "json": ["json_and_tool_schemas", "chat_transcripts"],
}


class Source:
    """Consecutive slices of one kind of text. After the end it begins again: who wants text that a
    process has not seen asks `lasts` before, and starts a new process where it does not."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.bytes_per_char = len(text.encode()) / max(1, len(text))
        self.pos = 0

    def lasts(self, total: int) -> bool:
        return self.pos + total / self.bytes_per_char <= len(self.text)

    def rewind(self) -> None:
        self.pos = 0

    def take(self, size: int) -> str:
        """About `size` bytes of UTF-8, cut between characters."""
        if self.pos >= len(self.text):
            self.pos = 0
        piece = self.text[self.pos : self.pos + size].encode()[:size].decode("utf-8", "ignore")
        self.pos += len(piece)
        return piece

    def take_many(self, size: int, total: int) -> list[str]:
        return [self.take(size) for _ in range(max(1, total // size))]


def data_root() -> pathlib.Path | None:
    """The reference data: PINTOK_TEST_DATA, or `shared` beside the repository."""
    for candidate in (os.environ.get("PINTOK_TEST_DATA"), ROOT.parent / "shared"):
        if candidate and (pathlib.Path(candidate) / "tokenizers").is_dir():
            return pathlib.Path(candidate)
    return None


def read_plain(path: pathlib.Path) -> bytes:
    """A file, or what PATH.gz holds."""
    packed = path.with_name(path.name + ".gz")
    return path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())


def load_source(root: pathlib.Path | None, kind: str) -> Source:
    """The text of one kind, in blocks of a few kilobytes in an order that the seed fixes."""
    if root is not None:
        folder = root / "corpora"
        texts = [read_corpus(folder, name) for name in FILES[kind]]
    else:
        texts = library_texts(kind)
    share = KIND_CHARS // len(texts)
    blocks = [
        text[i : i + BLOCK_CHARS]
        for text in texts
        for i in range(0, min(len(text), share), BLOCK_CHARS)
    ]
    random.Random(7).shuffle(blocks)
    return Source("".join(blocks))


def read_corpus(folder: pathlib.Path, name: str) -> str:
    lines = (folder / f"{name}.jsonl.gz").exists() or (folder / f"{name}.jsonl").exists()
    return read_plain(folder / f"{name}.{'jsonl' if lines else 'txt'}").decode()


def library_texts(kind: str) -> list[str]:
    """Text of one kind from the interpreter's own library."""
    if kind == "code":
        return ["".join(path.read_text(errors="ignore") for path in library_files())]
    if kind == "languages":
        return ["".join(words_of_scripts())]
    strings = library_strings()
    if kind == "english":
        return ["\n".join(strings)]
    items = [{"index": i, "title": text[:30], "text": text} for i, text in enumerate(strings)]
    groups = [items[i : i + 8] for i in range(0, len(items), 8)]
    return ["\n".join(json.dumps(group, indent=i % 4 or None) for i, group in enumerate(groups))]


def library_files() -> list[pathlib.Path]:
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    return [p for p in sorted(library.rglob("*.py")) if "site-packages" not in p.parts][
        :LIBRARY_FILES
    ]


@functools.cache
def library_strings() -> tuple[str, ...]:
    """The longer string constants: docstrings for the most part."""
    trees = [tree for path in library_files() if (tree := parsed(path)) is not None]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return tuple(n.value for n in nodes if isinstance(n.value, str) and len(n.value) > 40)


def parsed(path: pathlib.Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(errors="ignore"))
    except (SyntaxError, ValueError):
        return None


def words_of_scripts() -> list[str]:
    """Made-up words in many scripts: letters of one block each, a seed's choice."""
    rng = random.Random(5)
    scripts = [(0x4E00, 3000), (0x3041, 80), (0xAC00, 3000), (0x430, 32), (0x627, 36)]
    scripts += [(0x905, 50), (0xE01, 46), (0x5D0, 27), (0x3B1, 25)]
    words = []
    for _ in range(400_000):
        first, count = scripts[len(words) // 200 % len(scripts)]
        letters = [chr(first + int(count * rng.random() ** 2)) for _ in range(rng.randint(1, 8))]
        words.append("".join(c for c in letters if unicodedata.category(c)[0] in "LM") + " ")
    return words


def check_texts(sources: dict[str, Source]) -> list[str]:
    """Texts for the comparison: hard ones and slices of every source."""
    hard = [
        "",
        " ",
        "\n",
        "a",
        "  a  b   c\t\td\n\n e\r\n f",
        "it's IT'S I'LL we'd o'clock 'tis it\u017f 'S 'ſ",
        "1 22 333 4444 55555 12,345.67 \u0661\u0662\u0663 ½ ² Ⅷ",
        "\u00a0\u0085\u2003\u3000 x\u200by\ufeffz",
        "e\u0301 \u00e9 \uac00\u11a8 \u1100\u1161 ﬁ Å \u212b",
        "你好，世界。こんにちは世界 สวัสดี",
        "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪🇫🇷 👍🏽",
        "snake_case camelCase HTTPServer X509v3 don't_split",
        "!!!???...---===___***///\\\\\\",
        "a" * 500,
        " " * 500,
        "ab" * 300,
        "\n" * 100,
    ]
    rng = random.Random(11)
    for source in sources.values():
        for _ in range(60):
            begin = rng.randrange(max(1, len(source.text) - 4000))
            hard.append(source.text[begin : begin + rng.choice((20, 200, 1400, 4000))])
    return hard
