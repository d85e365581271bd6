"""Finds out what a file or directory is and reads its files.

A directory is taken by the first of: tokenizer.json, tekken.json, encoding.json, a lone *.tiktoken,
tokenizer.model, vocab.txt. Every one of them may be gzipped (`.gz`). `tokenizer_config.json` and
`special_tokens_map.json` beside it name the special tokens, and `chat_template.jinja` stands beside
newer models, further ones as `additional_chat_templates/NAME.jinja`; ids never depend on these.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pathlib
import zlib
from typing import Any

from pintok.errors import ModelError
from pintok_server._spec.image import IMAGE_VERSION, ImageSource
from pintok_server.vocab import json_fields, profiles
from pintok_server.vocab.json_fields import shorten
from pintok_server.vocab.profiles import Profile

SOURCE_LEN_MAX = 512 << 20
"""Longest source file in bytes, unpacked."""

_DIRECTORY_ORDER = (
    "tokenizer.json",
    "tekken.json",
    "encoding.json",
    "*.tiktoken",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
_FURTHER_TEMPLATES = "additional_chat_templates"
_GENERIC_STEMS = frozenset({"tokenizer", "tekken", "encoding", "vocab", "spiece"})


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as it was read."""

    path: pathlib.Path
    role: str
    """What it is to the model: tokenizer, ranks, config, special_tokens_map, chat_template (a
    further one: chat_template:NAME)."""
    data: bytes

    @property
    def sha256(self) -> str:
        """Of the unpacked content."""
        return hashlib.sha256(self.data).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A recognised model: its files, all read, and how to understand them."""

    kind: ImageSource
    name: str
    files: tuple[SourceFile, ...]

    @property
    def places(self) -> tuple[pathlib.Path, ...]:
        """The files, and the directories that others may appear in."""
        beside = self.main.path.parent
        further = beside / _FURTHER_TEMPLATES
        return (beside, *([further] if further.is_dir() else []), *(f.path for f in self.files))

    def file(self, role: str) -> SourceFile | None:
        """The file with a role."""
        return next((file for file in self.files if file.role == role), None)

    @property
    def main(self) -> SourceFile:
        """The file that defines the model."""
        return self.files[0]

    def parse(self) -> Any:
        """The JSON of the main file. Raises ModelError when it is none."""
        return json_fields.parse_json(self.main.data, self.main.path.name)

    def fingerprint(self, profile: Profile = profiles.DEFAULT) -> bytes:
        """SHA-256 over contents, profile and format version: the identity of the model."""
        digest = hashlib.sha256(
            f"pintok image {IMAGE_VERSION} {profile.number} {self.kind}".encode()
        )
        for file in self.files:
            digest.update(f"\0{file.role}\0{file.sha256}".encode())
        return digest.digest()


def read(path: pathlib.Path, *, name: str | None = None) -> Source:
    """Recognise a file or directory and read all of its files.

    Raises ModelError when there is nothing, or nothing that is known.
    """
    if path.is_dir():
        main = _main_file(path)
    elif path.is_file():
        main = path
    else:
        raise ModelError(f"{path}: no such file or directory")
    if name is None:
        stem = main.name.removesuffix(".gz").rsplit(".", 1)[0]
        name = main.resolve().parent.name if stem in _GENERIC_STEMS or path.is_dir() else stem
    return _recognise(main, name)


def _main_file(directory: pathlib.Path) -> pathlib.Path:
    for pattern in _DIRECTORY_ORDER:
        found = sorted({*directory.glob(pattern), *directory.glob(pattern + ".gz")})
        if found:
            if len({file.name.removesuffix(".gz") for file in found}) > 1:
                raise ModelError(f"{directory}: several {pattern}; name the one that is meant")
            return found[0]
    raise ModelError(
        f"{directory}: holds none of {', '.join(_DIRECTORY_ORDER)}: not a tokenizer's directory"
    )


def _read_file(path: pathlib.Path, role: str) -> SourceFile:
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if is_gzip:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    data = unpacked.read(SOURCE_LEN_MAX + 1)
            else:
                data = raw.read(SOURCE_LEN_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    if len(data) > SOURCE_LEN_MAX:
        raise ModelError(f"{path}: longer than {SOURCE_LEN_MAX >> 20} MiB")
    return SourceFile(path, role, data)


def _beside(main: pathlib.Path, name: str, role: str) -> SourceFile | None:
    for candidate in (main.parent / name, main.parent / (name + ".gz")):
        if candidate.is_file():
            return _read_file(candidate, role)
    return None


def _recognise(path: pathlib.Path, name: str) -> Source:
    main = _read_file(path, "tokenizer")
    config = [
        file
        for file in (
            _beside(path, "tokenizer_config.json", "config"),
            _beside(path, "special_tokens_map.json", "special_tokens_map"),
            _beside(path, "chat_template.jinja", "chat_template"),
            *(
                _read_file(further, f"chat_template:{further.stem}")
                for further in sorted(path.parent.glob(f"{_FURTHER_TEMPLATES}/*.jinja"))
            ),
        )
        if file is not None
    ]
    plain_name = path.name.removesuffix(".gz")
    # By name where that tells, since parsing tens of megabytes only to know is slow.
    if plain_name == "tokenizer.json":
        return Source(ImageSource.TOKENIZER_JSON, name, (main, *config))
    if plain_name == "tekken.json":
        return Source(ImageSource.TEKKEN, name, (main,))
    if main.data.lstrip()[:1] == b"{":
        root = json_fields.parse_json(main.data, plain_name)
        if "model" in root:
            return Source(ImageSource.TOKENIZER_JSON, name, (main, *config))
        if "pat_str" in root:
            return _with_ranks(main, root, name, config)
        if isinstance(root.get("config"), dict) and "vocab" in root:
            return Source(ImageSource.TEKKEN, name, (main,))
        raise ModelError(f"{path}: JSON, but neither tokenizer.json, encoding.json nor tekken.json")
    if plain_name.endswith((".tiktoken", ".model")) and _is_ranks(main.data):
        encoding = _beside(path, "encoding.json", "tokenizer")
        if encoding is None:
            raise ModelError(
                f"{path}: ranks without a pattern; an encoding.json beside it must name pat_str"
                " and special_tokens"
            )
        ranks = SourceFile(path, "ranks", main.data)
        return Source(ImageSource.TIKTOKEN, name, (encoding, ranks, *config))
    if plain_name.endswith(".model"):
        return Source(ImageSource.SENTENCEPIECE, name, (main,))
    if plain_name.endswith(".txt"):
        return Source(ImageSource.VOCAB_TXT, name, (main, *config))
    raise ModelError(f"{path}: not a format that is known ({shorten(main.data[:16].hex())} ...)")


def _is_ranks(data: bytes) -> bool:
    parts = data[:4096].split(b"\n", 1)[0].split()
    return len(parts) == 2 and parts[1].isdigit()


def _with_ranks(main: SourceFile, root: Any, name: str, config: list[SourceFile]) -> Source:
    ranks_file = root.get("ranks_file")
    if not isinstance(ranks_file, str) or "/" in ranks_file:
        raise ModelError(f"{main.path}: ranks_file has the value {shorten(ranks_file)}")
    ranks = _beside(main.path, ranks_file, "ranks")
    if ranks is None:
        raise ModelError(f"{main.path.parent / ranks_file}: named by encoding.json, but not there")
    return Source(ImageSource.TIKTOKEN, name, (main, ranks, *config))


def json_of(source: Source, role: str) -> dict[str, Any]:
    """A configuration file of the source, empty where there is none."""
    file = source.file(role)
    root = {} if file is None else json_fields.parse_json(file.data, file.path.name)
    return root if isinstance(root, dict) else {}
