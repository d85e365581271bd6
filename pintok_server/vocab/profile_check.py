"""What a model must not have under a reference profile.

Beyond tables tokenizers 1.0 differs from 0.23 in places that no table expresses; a model that has
such a place is refused here by name, so that what is left has the same ids as the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pintok.errors import ModelError
from pintok_server._spec.image import ImageProfile
from pintok_server.vocab import alphabet, patterns, programs
from pintok_server.vocab.json_fields import Json, shorten
from pintok_server.vocab.profiles import Profile


def check(root: Json, profile: Profile) -> None:
    """Raise ModelError for the first part of a tokenizer.json that has other ids, or is refused, by
    the profile's library, and that no table of the profile expresses."""
    if profile.number == ImageProfile.TOKENIZERS_1_0:
        for sentence in _other_in_1_0(root):
            raise ModelError(f"profile {profile.name}: {sentence}")


# --- tokenizers 1.0 ------------------------------------------------------------------------------

# Split patterns that it has programs for; it has no engine for others. Those of DeepSeek V3 only
# stand together.
_SPLITS: Final = frozenset({"llama3", "qwen2", "o200k", "tekken", "kimi"})
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEEPSEEK: Final = ["deepseek_digits", "deepseek_cjk", "deepseek_v3"]
# The pattern of DeepSeek V3 with line ends as escapes is another text.
_DEEPSEEK_LINE_END: Final = "\n"
# What Replace may match: characters and simple classes, one after the other, each repeated or not.
# Both regex engines read these alike.
_PLAIN_REGEX: Final = re.compile(
    r"(?:(?:[^\\\[\](){}.*+?^$|]|\\[sdnrt]|\\p\{[A-Z][a-z]?\})(?:[+*?]|\{\d+(?:,\d*)?\})?\|?)+"
)
_FORMS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


def _other_in_1_0(root: Json) -> Iterator[str]:
    """Sentences about what differs."""
    normalizers = list(programs.flatten(root.get("normalizer"), "normalizers", "normalizer"))
    pre = list(programs.flatten(root.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer"))
    kinds = [part["type"] for part, _ in pre]
    added = {
        token.get("content") for token in root.get("added_tokens") or [] if isinstance(token, dict)
    }
    yield from _model_in_1_0(root["model"], "ByteLevel" in kinds, added)
    for part, where in normalizers:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(regex, str) and not _PLAIN_REGEX.fullmatch(regex):
            yield f"{where}: its other regex engine may read {shorten(regex)} otherwise"
    if "ByteLevel" in kinds[:-1]:
        yield "pre_tokenizer: it refuses a ByteLevel that is not the last of its sequence"
    if "Metaspace" in kinds and len(kinds) > 1:
        split = pre[-1][0].get("split")
        if kinds != ["WhitespaceSplit", "Metaspace"] or split is False:
            yield "pre_tokenizer: it refuses a Metaspace in a sequence"
    yield from _splits_in_1_0(pre)
    only_forms = _FORMS.issuperset(part["type"] for part, _ in normalizers)
    can_match = only_forms and "Metaspace" not in kinds
    byte_decoder = programs.has_byte_level(root.get("decoder"), "decoders", "decoder")
    for token in root.get("added_tokens") or []:
        yield from _added_in_1_0(token, can_match, byte_decoder)


def _model_in_1_0(model: Json, byte_level: bool, added: set[Any]) -> Iterator[str]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or "merges" not in model:
        return
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            yield f"model.{name}: it gives other ids with {shorten(model[name])}"
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
    tokens += (
        [alphabet.CHARACTERS[byte] for byte in sorted(alphabet.UTF8_BYTES)] if byte_level else []
    )
    for token in tokens:
        if token not in vocab:
            yield f"model.vocab: it refuses a vocabulary that lacks the byte {shorten(token)}"
    for token in vocab if byte_level else ():
        if token not in added and alphabet.to_bytes(token) is None:
            yield f"model.vocab: it finds {shorten(token)}, which has no bytes, in the text itself"


def _splits_in_1_0(pre: list[tuple[Json, str]]) -> Iterator[str]:
    scanners: list[str | None] = []
    for part, where in pre:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if part["type"] != "Split" or not isinstance(regex, str):
            continue
        scanner = patterns.scanner_of(regex, dialect=patterns.Dialect.ONIGURUMA)
        scanners.append(scanner)
        whole = (part.get("behavior"), part.get("invert"))
        keeps_all = whole in (("Isolated", False), ("Removed", True))
        known = scanner in _SPLITS or regex == _GPT2 or scanner in _DEEPSEEK
        if not known or not keeps_all:
            yield f"{where}: it has no regex engine for {shorten(regex)}"
        if scanner == "deepseek_v3" and _DEEPSEEK_LINE_END not in regex:
            yield f"{where}: it has no regex engine for {shorten(regex)}"
    if set(_DEEPSEEK) & set(scanners) and scanners != _DEEPSEEK:
        yield "pre_tokenizer: it knows DeepSeek's three splits only together"
    elif len(scanners) > 1 and scanners != _DEEPSEEK:
        yield "pre_tokenizer: it has no regex engine for a sequence of splits"


def _added_in_1_0(token: Any, can_match: bool, byte_decoder: bool) -> Iterator[str]:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        return
    content = token["content"]
    where = f"added_tokens: {shorten(content)}"
    if token.get("single_word"):
        yield f"{where}: it matches tokens with single_word at other places"
    if (token.get("lstrip") or token.get("rstrip")) and content != content.strip():
        yield f"{where}: it strips white space otherwise around a token that has some of its own"
    if token.get("normalized") and not can_match:
        yield f"{where}: it matches normalized tokens at other places behind this normalizer"
    if byte_decoder and not content.isascii() and alphabet.to_bytes(content) is not None:
        yield f"{where}: it decodes a token of the byte alphabet's letters otherwise"
