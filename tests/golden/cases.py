"""The reference cases as requests and expected answers.

Every case of the golden files becomes one or more lines for `pintok encode --jsonl` or
`pintok decode --jsonl`, with what must come back. The same lines drive the in-process tokenizer,
the command and a server, so that all three are held to the same answers.

The data is not part of this repository: it is looked for in `PINTOK_TEST_DATA`, then in `../shared`
beside the repository, and must hold `tokenizers/` and `goldens/`.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import os
import pathlib
import tomllib
import unicodedata
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUFFIXES = {"tiktoken": ".tiktoken.jsonl.gz", "spm": ".spm.jsonl.gz", "tekken": ".tekken.jsonl.gz"}

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenFile:
    """One golden file: the tokenizer it speaks of and the reference that wrote it."""

    name: str
    reference: str  # "hf", "tiktoken", "spm" or "tekken"
    path: pathlib.Path
    model: pathlib.Path  # what `--model` is given

    @property
    def label(self) -> str:
        return self.name if self.reference == "hf" else f"{self.name}.{self.reference}"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One request line, the operation it belongs to, and what the answer must hold."""

    op: str  # "encode", "decode", "chat"; "batch" and "plain" are no lines
    request: Json
    expected: Json
    case: int
    kind: str


def data_root() -> pathlib.Path | None:
    """The directory that holds tokenizers/ and goldens/, or None where it is not installed."""
    for candidate in (os.environ.get("PINTOK_TEST_DATA"), ROOT.parent / "shared"):
        if candidate and (pathlib.Path(candidate) / "goldens").is_dir():
            return pathlib.Path(candidate)
    return None


def golden_files(root: pathlib.Path) -> list[GoldenFile]:
    """Every golden file that belongs to a tokenizer, sorted by label."""
    files = []
    for path in sorted((root / "goldens").glob("*.jsonl.gz")):
        if path.name.startswith("_"):
            continue
        reference = next((r for r, suffix in SUFFIXES.items() if path.name.endswith(suffix)), "hf")
        name = path.name.removesuffix(SUFFIXES.get(reference, ".jsonl.gz"))
        model = model_path(root / "tokenizers" / name, reference)
        files.append(GoldenFile(name=name, reference=reference, path=path, model=model))
    return files


def model_path(directory: pathlib.Path, reference: str) -> pathlib.Path:
    """The file of a tokenizer directory that this reference reads."""
    patterns = {
        "hf": ["tokenizer.json", "tokenizer.json.gz"],
        "tiktoken": ["encoding.json"],
        "spm": ["*.model", "*.model.gz"],
        "tekken": ["tekken.json", "tekken.json.gz"],
    }[reference]
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            return path
    return directory / patterns[0]


def read_cases(golden: GoldenFile) -> Iterator[Json]:
    """The cases of one file as they were written."""
    with gzip.open(golden.path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def text_of(case: Json, field: str) -> str | None:
    """The text field of a case, whichever of its two spellings it has; None where it is absent."""
    if field in case:
        return case[field]
    if field + "_b64" in case:
        return base64.b64decode(case[field + "_b64"]).decode("utf-8", "surrogatepass")
    return None


def text_fields(case: Json, field: str, target: str) -> Json:
    """The same text as a request field, keeping its spelling."""
    if field in case:
        return {target: case[field]}
    return {target + "_b64": case[field + "_b64"]}


def present(case: Json, **fields: str) -> Json:
    return {target: case[source] for target, source in fields.items() if source in case}


def encode_checks(golden: GoldenFile, case: Json) -> Iterator[Check]:
    """An `encode` case: the ids, and the decoded texts where the case has them."""
    number, kind = case["n"], case["kind"]
    expected = present(
        case, ids="ids", offsets="offsets", special_tokens_mask="special_tokens_mask"
    )
    request: Json
    if golden.reference == "hf":
        request = {
            **text_fields(case, "text", "text"),
            **present(
                case,
                add_special_tokens="add_special_tokens",
                encode_special_tokens="encode_special_tokens",
            ),
        }
        if "offsets" in case:
            request["offsets"] = True
        if "type_ids" in case:  # Left out where all are 0.
            request["type_ids"] = True
        expected["type_ids"] = case.get("type_ids", [0] * len(case["ids"]))
    elif golden.reference == "tiktoken":
        text = text_of(case, "text")
        assert text is not None
        if case.get("nfc"):
            text = unicodedata.normalize("NFC", text)
        request = {"text": text, "parse_special": case["allowed_special"]}
        if "char_offsets" in case:
            request["offsets"] = True
            expected["char_offsets"] = case["char_offsets"]
    elif golden.reference == "tekken":
        request = {**text_fields(case, "text", "text"), **present(case, bos="bos", eos="eos")}
    else:
        request = {**text_fields(case, "text", "text"), "bos": case["add_bos"]}
    yield Check("encode", request, expected, number, kind)
    if case.get("encode_special_tokens"):  # The same by a range over all of it.
        request = {name: request[name] for name in request if name != "encode_special_tokens"}
        yield Check("plain", request, {"ids": case["ids"]}, number, kind)
    yield from decoded_checks(golden, case)


def decoded_checks(golden: GoldenFile, case: Json) -> Iterator[Check]:
    """The texts that a case's ids decode to, with and without special tokens."""
    names = {
        "hf": (("decoded", False), ("decoded_skip", True)),
        "tiktoken": (("decoded", False),),
        "tekken": (("decoded_keep", False), ("decoded_ignore", True)),
        "spm": (("decoded", True),),
    }[golden.reference]
    for field, skip in names:
        text = text_of(case, field)
        if text is not None:
            request = {"ids": case["ids"], "skip_special_tokens": skip}
            yield Check("decode", request, {"text": text}, case["n"], case["kind"])


def pair_checks(case: Json) -> Iterator[Check]:
    request = {
        **text_fields(case, "text", "text"),
        **text_fields(case, "pair", "pair"),
        "add_special_tokens": case["add_special_tokens"],
        "offsets": True,
    }
    fields = ("ids", "type_ids", "special_tokens_mask", "offsets")
    expected = {field: case[field] for field in fields}
    yield Check("encode", request, expected, case["n"], case["kind"])


def batch_checks(case: Json) -> Iterator[Check]:
    """Many texts cut and padded together; and alone, where the others cannot matter."""
    texts = [text_fields(entry, "text", "text") for entry in case["texts"]]
    settings = {
        "add_special_tokens": case["add_special_tokens"],
        "truncation": case["truncation"],
        "padding": case["padding"],
    }
    request = {"texts": texts, **settings}
    expected = {"encodings": case["encodings"]}
    yield Check("batch", request, expected, case["n"], case["kind"])
    padding = case["padding"]
    if padding is None or padding["length"] is not None or len(texts) == 1:
        for text, wanted in zip(texts, case["encodings"], strict=True):
            request = {**text, **settings, "type_ids": True, "special_tokens_mask": True}
            if padding is None:
                wanted = {name: wanted[name] for name in wanted if name != "attention_mask"}
            if case["truncation"] is None:
                wanted = {name: wanted[name] for name in wanted if name != "overflowing"}
            yield Check("encode", request, wanted, case["n"], case["kind"])


def as_file_checks(case: Json) -> Iterator[Check]:
    """Truncation and padding as the model's own file sets them."""
    request = {
        **text_fields(case, "text", "text"),
        "add_special_tokens": case["add_special_tokens"],
        "truncation": "file",
        "padding": "file",
    }
    expected = present(case, ids="ids", attention_mask="attention_mask")
    yield Check("encode", request, expected, case["n"], case["kind"])


_CHAT_ANSWERS = frozenset(("n", "kind", "rendered", "rendered_b64", "ids", "error"))


def _read_parsed_contents() -> list[str]:
    """Contents of chats whose special tokens the reference parses; see `exceptions.toml`."""
    path = pathlib.Path(__file__).with_name("exceptions.toml")
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("parsed", [])
    return [entry["content"] for entry in entries]


PARSED_CONTENTS = _read_parsed_contents()


def chat_checks(golden: GoldenFile, case: Json) -> Iterator[Check]:
    """The messages render to this text with these ids, or are refused; the text has these ids."""
    asked = {name: value for name, value in case.items() if name not in _CHAT_ANSWERS}
    text = text_of(case, "rendered")
    if text is None:
        yield Check("chat", asked, {"error": None}, case["n"], case["kind"])
        return
    expected: Json = {"rendered": text, "ids": case["ids"]}
    if any(message.get("content") in PARSED_CONTENTS for message in case["messages"]):
        asked["content_special_tokens"] = "parse"
    yield Check("chat", asked, expected, case["n"], case["kind"])
    request: Json = {"text": text, "add_special_tokens": False}
    if golden.reference == "tiktoken":
        request = {"text": text, "parse_special": "all"}
    yield Check("encode", request, {"ids": case["ids"]}, case["n"], case["kind"])


def stream_checks(golden: GoldenFile, case: Json) -> Iterator[Check]:
    """Chunks of a streaming decode, up to where the reference raised."""
    request: Json = {"ids": case["ids"], "stream": True, **present(case, prefill="prefill")}
    request["skip_special_tokens"] = case.get("skip_special_tokens", False)
    chunks = case.get("chunks")
    if chunks is None:
        chunks = [
            None if chunk is None else base64.b64decode(chunk).decode()
            for chunk in case["chunks_b64"]
        ]
    if "semantics" in case:  # There an empty chunk is an empty string.
        chunks = [chunk or None for chunk in chunks]
    expected: Json = {"chunks": chunks}
    if "flush" in case:
        expected["flush"] = case["flush"]
    yield Check("decode", request, expected, case["n"], case["kind"])


def surrogate_checks(case: Json) -> Iterator[Check]:
    request = {"text": json.loads(case["json"])}
    yield Check("encode", request, {"ids": case["ids"]}, case["n"], case["kind"])


def checks(golden: GoldenFile, kinds: frozenset[str]) -> Iterator[Check]:
    """All checks of one file for the kinds asked for, in the order of the file."""
    for case in read_cases(golden):
        kind = case["kind"]
        if kind not in kinds:
            continue
        if kind == "encode":
            yield from encode_checks(golden, case)
        elif kind == "pair":
            yield from pair_checks(case)
        elif kind == "decode":
            yield from decoded_checks(golden, case)
        elif kind == "chat":
            yield from chat_checks(golden, case)
        elif kind == "batch":
            yield from batch_checks(case)
        elif kind == "encode_as_file":
            yield from as_file_checks(case)
        elif kind == "stream":
            yield from stream_checks(golden, case)
        elif kind == "json_surrogates":
            yield from surrogate_checks(case)


def difference(check: Check, answer: Json) -> str | None:
    """None when the answer holds everything that was expected, else the first difference."""
    if "error" in check.expected:  # Any will do.
        return None if "error" in answer else "no error"
    if "error" in answer:
        return f"error {answer['error']}"
    for field, wanted in check.expected.items():
        if field == "char_offsets":
            got = [begin for begin, _ in answer["offsets"]]
        elif field == "chunks":
            got = answer["chunks"][: len(wanted)]
        elif field == "type_ids" and field not in answer:
            got = [0] * len(answer["ids"])
        elif field not in answer:
            return f"{field} is missing"
        else:
            got = answer[field]
            if field == "offsets":
                got, wanted = [list(span) for span in got], [list(span) for span in wanted]
        if got != wanted:
            return f"{field}: {shorten(got)} instead of {shorten(wanted)}"
    return None


def shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:300] + "..."
