"""Compares an image with the reference library of its format, and says so in writing.

    tokenizer.json, vocab.txt  tokenizers      ids with and without special tokens, pairs, decoding
    tiktoken                   tiktoken        ids with special tokens parsed and not, decoding
    tekken                     mistral-common  ids with and without bos and eos
    .model                     sentencepiece   ids, with bos and eos, offsets, decoding

Compared are the texts of `adversarial.py` and the lines of the caller's corpus. The first
difference refuses the model. Where the library is not installed the certificate says that nothing
was compared.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from pintok.errors import ModelError, RefusedError
from pintok.tokenizer import Tokenizer
from pintok_server._spec.image import ImageSource
from pintok_server.vocab import adversarial, certificate, sources, tiktoken_ranks, vocab_txt
from pintok_server.vocab.description import Description
from pintok_server.vocab.json_fields import shorten
from pintok_server.vocab.profiles import Profile
from pintok_server.vocab.sources import Source

_PAIR_EVERY = 23
_DECODE_EVERY = 5


class _Reference(Protocol):
    """One reference library with one model loaded."""

    def checks(self, text: str, number: int) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        """What to compare on a text: (what, the reference's answer, ours)."""


def ambiguous(description: Description) -> str | None:
    """Why the reference itself does not answer the same each time, or None.

    Of added tokens that normalization makes equal it takes one that its hash order decides, anew in
    each process.
    """
    seen: dict[bytes, bytes] = {}
    for token in description.added:
        if token.normalized and seen.setdefault(token.match, token.content) != token.content:
            first, second = seen[token.match].decode(), token.content.decode()
            return (
                f"the reference takes {first!r} or {second!r} at random: both are normalized alike"
            )
    return None


def certify(
    image: pathlib.Path,
    source: Source,
    description: Description,
    *,
    profile: Profile,
    corpus: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compare an image with its reference and return the certificate.

    Raises ModelError at the first difference, showing the text, and when this build cannot run the
    image at all.
    """
    ours = Tokenizer(image, name=source.name)
    base = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "profile": profile.name,
        "fingerprint": source.fingerprint(profile).hex(),
    }
    for is_ambiguous, reason in (
        (False, certificate.unavailable(source, profile)),
        (True, ambiguous(description)),
    ):
        if reason is not None:
            return {"compared": False, "reason": reason, "ambiguous": is_ambiguous, **base}
    package = certificate.PACKAGES[source.kind]
    name = f"{package.replace('_', '-')} {importlib.metadata.version(package)}"
    reference = _open(source, description, ours)
    added = [token.content.decode() for token in description.added]
    cases = _compare(reference, adversarial.texts(added), name)
    out: dict[str, Any] = {
        "compared": True,
        "reference": name,
        "cases": cases,
        "mismatches": 0,
        **base,
    }
    if corpus is not None:
        out["corpus_cases"] = _compare(reference, _lines(corpus), name)
        out["corpus"] = corpus.name
        out["corpus_sha256"] = certificate.corpus_sha256(corpus)
        out["cases"] = cases + out["corpus_cases"]
    return out


def _lines(corpus: pathlib.Path) -> Iterator[str]:
    with open(corpus, encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            yield line.removesuffix("\n")


def _compare(reference: _Reference, texts: Iterable[str], name: str) -> int:
    """Compare on every text; the number of texts."""
    number = 0
    for number, text in enumerate(texts, 1):
        for what, expected, ask in reference.checks(text, number):
            try:
                got = ask()
            except RefusedError as error:
                got = f"refusal: {error}"
            if got != expected:
                raise ModelError(
                    f"the image differs from {name} in {what} of {shorten(text)}:"
                    f" {shorten(got)} instead of {shorten(expected)}; the model is refused"
                )
    return number


def _open(source: Source, description: Description, ours: Tokenizer) -> _Reference:
    if source.kind == ImageSource.TIKTOKEN:
        return _Tiktoken(source, ours)
    if source.kind == ImageSource.TEKKEN:
        return _Tekken(source, ours)
    if source.kind == ImageSource.SENTENCEPIECE:
        return _Sentencepiece(source, ours)
    return _Tokenizers(source, ours)


class _Tokenizers:
    """Hugging Face tokenizers."""

    def __init__(self, source: Source, ours: Tokenizer) -> None:
        tokenizers = importlib.import_module("tokenizers")
        if source.kind == ImageSource.VOCAB_TXT:
            root = vocab_txt.as_tokenizer_json(
                source.main.data, config=sources.json_of(source, "config")
            )
            data = json.dumps({"truncation": None, "padding": None, **root}).encode()
        else:
            data = source.main.data
        self._takes_pairs = hasattr(tokenizers.Tokenizer, "from_buffer")
        try:
            if self._takes_pairs:
                self._theirs = tokenizers.Tokenizer.from_buffer(data)
                self._theirs.no_truncation()
                self._theirs.no_padding()
            else:  # From 1.0 on.
                self._theirs = _from_file(tokenizers, data)
        except Exception as error:  # The library raises bare exceptions for any malformed file.
            raise ModelError(f"tokenizers refuses the file: {error}") from None
        self._ours = ours

    def checks(self, text: str, number: int) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        ours, theirs = self._ours, self._theirs
        ids = theirs.encode(text).ids
        yield "the ids", ids, lambda: ours.encode(text).tolist()
        yield (
            "the ids without special tokens",
            theirs.encode(text, add_special_tokens=False).ids,
            lambda: ours.encode(text, add_special_tokens=False).tolist(),
        )
        if number % _PAIR_EVERY == 0:
            yield (
                "the ids of a pair",
                (
                    theirs.encode(text, "pair " + text)
                    if self._takes_pairs
                    else theirs.encode((text, "pair " + text))
                ).ids,
                lambda: ours.encode(text, pair="pair " + text).tolist(),
            )
        if number % _DECODE_EVERY == 0:
            for skip in (False, True):
                yield (
                    "the decoded text",
                    theirs.decode(ids, skip_special_tokens=skip),
                    functools.partial(ours.decode, ids, skip_special_tokens=skip),
                )


def _from_file(tokenizers: Any, data: bytes) -> Any:
    """A tokenizer of the library's 1.0 line, without truncation and padding."""
    with tempfile.TemporaryDirectory(prefix="pintok-") as directory:
        path = pathlib.Path(directory) / "tokenizer.json"
        path.write_bytes(data)
        theirs = tokenizers.Tokenizer.from_file(path)
    theirs.truncation = theirs.padding = None
    return theirs


class _Tiktoken:
    """tiktoken."""

    def __init__(self, source: Source, ours: Tokenizer) -> None:
        tiktoken = importlib.import_module("tiktoken")
        ranks = source.file("ranks")
        assert ranks is not None
        root = source.parse()
        self._theirs = tiktoken.Encoding(
            name=source.name,
            pat_str=root["pat_str"],
            mergeable_ranks=tiktoken_ranks.read_ranks(ranks.data),
            special_tokens=root["special_tokens"],
        )
        self._ours = ours

    def checks(self, text: str, number: int) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        ours, theirs = self._ours, self._theirs
        ids = theirs.encode(text, allowed_special="all")
        yield "the ids", ids, lambda: ours.encode(text, parse_special="all").tolist()
        yield (
            "the ids without special tokens",
            theirs.encode(text, disallowed_special=()),
            lambda: ours.encode(text, parse_special="none").tolist(),
        )
        if number % _DECODE_EVERY == 0:
            yield "the decoded text", theirs.decode(ids), lambda: ours.decode(ids)


class _Tekken:
    """mistral-common."""

    def __init__(self, source: Source, ours: Tokenizer) -> None:
        tekken = importlib.import_module("mistral_common.tokens.tokenizers.tekken")
        with tempfile.TemporaryDirectory(prefix="pintok-") as directory:
            path = pathlib.Path(directory) / "tekken.json"
            path.write_bytes(source.main.data)
            self._theirs = tekken.Tekkenizer.from_file(path)
        self._ours = ours

    def checks(self, text: str, number: int) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        ours, theirs = self._ours, self._theirs
        yield (
            "the ids",
            theirs.encode(text, bos=False, eos=False),
            lambda: ours.encode(text).tolist(),
        )
        if number % _PAIR_EVERY == 0:
            yield (
                "the ids with bos and eos",
                theirs.encode(text, bos=True, eos=True),
                lambda: ours.encode(text, bos=True, eos=True).tolist(),
            )


class _Sentencepiece:
    """sentencepiece."""

    def __init__(self, source: Source, ours: Tokenizer) -> None:
        sentencepiece = importlib.import_module("sentencepiece")
        try:
            self._theirs = sentencepiece.SentencePieceProcessor(model_proto=source.main.data)
        except Exception as error:  # Whatever the library makes of a malformed file.
            raise ModelError(f"sentencepiece refuses the file: {error}") from None
        self._ours = ours
        self._around = ours.bos_id is not None and ours.eos_id is not None

    def checks(self, text: str, number: int) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        ours, theirs = self._ours, self._theirs
        ids = theirs.encode(text)
        yield "the ids", ids, lambda: ours.encode(text).tolist()
        if number % _PAIR_EVERY == 0 and self._around:
            yield (
                "the ids with bos and eos",
                theirs.encode(text, add_bos=True, add_eos=True),
                lambda: ours.encode(text, bos=True, eos=True).tolist(),
            )
        if number % _DECODE_EVERY == 0:
            offsets = theirs.encode(text, return_type="offset_mapping")["offsets"]
            yield (
                "the offsets",
                [list(span) for span in offsets],
                lambda: ours.encode_full(text).offsets.tolist(),
            )
            yield (
                "the decoded text",
                theirs.decode(ids),
                lambda: ours.decode(ids, skip_special_tokens=True),
            )
