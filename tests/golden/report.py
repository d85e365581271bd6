"""Compare with the reference cases and print cases, passes and exceptions per tokenizer.

    python -m tests.golden.report                       in process
    python -m tests.golden.report --only gpt2 --kind encode --show 5
    python -m tests.golden.report --veth                and by servers on both paths, as root
    python -m tests.golden.report --server HOST:PORT    by a server that runs already

A server holds the files of --only, each under its label: `pintok-server --model LABEL=PATH ...`.
Through a server a case is a line of `pintok encode`, `decode` or `chat`, or a call of the client
where there is no such line; a stream is a step of decoding for each of its ids.
Exit status 0 when every case passes or is listed in `exceptions.toml` with its reason.
"""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import datetime
import pathlib
import sys
import tomllib
from collections.abc import Callable
from typing import Any

from pintok import errors
from pintok._path import parse_server
from pintok.client import Client
from pintok.encoding import PlainRange
from pintok.stream import DecodeStream
from pintok.tokenizer import Tokenizer
from pintok_server.cli.shape_fields import AS_FILE, parse_padding, parse_truncation
from tests.golden import cases

KINDS = (
    "encode",
    "pair",
    "decode",
    "stream",
    "chat",
    "batch",
    "encode_as_file",
    "json_surrogates",
)

# Byte-level BPE: every case of these must pass. (label of the golden file)
BYTE_LEVEL = frozenset(
    """
    aya-expanse cl100k_base cl100k_base.tiktoken claude-legacy command-r-plus deepseek-api
    deepseek-coder deepseek-llm deepseek-v3 falcon-7b gpt-neox-20b gpt-oss gpt2 kimi-k2.tiktoken
    lab-flags-gpt2 lab-flags-qwen llama-3 llama-3.1 llama-3.2 llama-3.tiktoken llama-4.tiktoken
    minicpm-v4.5 mistral-nemo mistral-tekken-240718.tekken mistral-tekken-v3.tekken modernbert-base
    o200k_base o200k_base.tiktoken olmo-1 olmo-2 p50k_base p50k_base.tiktoken phi-2 phi-4 phi-4-mini
    qwen1-tiktoken.tiktoken qwen2.5 qwen3 r50k_base.tiktoken roberta-base starcoder whisper-large-v3
    """.split()
)


def _read_exceptions() -> dict[tuple[str, str, int], str]:
    """(label, kind, case) -> why the reference's answer is not one to follow."""
    path = pathlib.Path(__file__).with_name("exceptions.toml")
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("exception", [])
    return {(e["label"], e["kind"], e["case"]): e["reason"] for e in entries}


EXCEPTIONS = _read_exceptions()

Answer = Callable[[cases.Check], cases.Json]


@dataclasses.dataclass(slots=True)
class Outcome:
    """What came of one golden file."""

    label: str
    passed: int = 0
    excepted: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    refused: str = ""

    def add(self, check: cases.Check, problem: str | None, *, show: int) -> None:
        """Count one check; the first `show` failures are described."""
        excepted = (self.label, check.kind, check.case) in EXCEPTIONS
        if problem is None and not excepted:
            self.passed += 1
        elif problem is None:
            self.failures.append(f"case {check.case} passes: it is no exception any more")
        elif excepted:
            self.excepted += 1
        elif len(self.failures) < show:
            shown = cases.shorten(check.request)
            self.failures.append(f"case {check.case} {check.op} {shown}\n      {problem}")
        else:
            self.failures.append("")


def answer_in_process(tokenizer: Tokenizer, check: cases.Check) -> cases.Json:
    """The answer line that `pintok encode`, `decode` or `chat` would print for the request."""
    request = dict(check.request)
    try:
        if check.op == "chat":
            now = datetime.datetime.fromisoformat(request.pop("now"))
            chat = tokenizer.apply_chat_template(request.pop("messages"), now=now, **request)
            return {"rendered": chat.text, "ids": chat.ids.tolist()}
        if check.op == "decode":
            ids = request.pop("ids")
            if request.pop("stream", False):
                stream = DecodeStream(tokenizer, **request)
                return {"chunks": [stream.step(i) for i in ids], "flush": stream.flush()}
            return {"text": tokenizer.decode(ids, **request)}
        if check.op == "plain":
            return plain_answer(tokenizer, request)
        if check.op == "batch" or "truncation" in request:
            return shaped_answer(tokenizer, request)
        text = _text(request, "text")
        assert text is not None
        pair = _text(request, "pair")
        offsets = request.pop("offsets", False)
        request.pop("type_ids", None)  # The answer always has them.
        options: dict[str, Any] = request
        if not offsets:
            ids = tokenizer.encode(text, pair=pair, **options)
            if "type_ids" not in check.expected:
                return {"ids": ids.tolist()}
        full = tokenizer.encode_full(text, pair=pair, **options)
        return {
            "ids": full.ids.tolist() if offsets else ids.tolist(),
            "offsets": full.offsets.tolist(),
            "type_ids": full.type_ids.tolist(),
            "special_tokens_mask": full.special_tokens_mask.tolist(),
        }
    except errors.PinTokError as error:
        return error_answer(error)


def error_answer(error: errors.PinTokError) -> cases.Json:
    return {"error": {"code": error.code, "message": str(error)}}


def plain_answer(engine: Tokenizer | Client, request: cases.Json) -> cases.Json:
    """A text that is ordinary text altogether."""
    text = _text(request, "text")
    assert text is not None
    data = text.encode() if isinstance(text, str) else text
    request.pop("offsets", None)  # Ranges go with ids alone.
    request.pop("type_ids", None)
    ranges = [PlainRange(0, len(data))] if data else []
    return {"ids": engine.encode_plain(data, ranges, **request).ids.tolist()}


def shaped_answer(engine: Tokenizer | Client, request: cases.Json) -> cases.Json:
    """Texts cut and padded; one text's answer, or the list of a batch."""
    batch = request.get("texts", [request])
    texts = [_text(dict(entry), "text") for entry in batch]
    truncation = parse_truncation(request["truncation"])
    padding = parse_padding(request["padding"])
    if isinstance(engine, Tokenizer):
        truncation = engine.truncation if truncation == AS_FILE else truncation
        padding = engine.padding if padding == AS_FILE else padding
    full = engine.encode_batch_full(
        [text for text in texts if text is not None],
        add_special_tokens=request["add_special_tokens"],
        truncation=truncation,
        padding=padding,
    )
    answers = [
        {
            "ids": encoding.ids.tolist(),
            "attention_mask": encoding.attention_mask.tolist(),
            "type_ids": encoding.type_ids.tolist(),
            "special_tokens_mask": encoding.special_tokens_mask.tolist(),
            "overflowing": [window.ids.tolist() for window in encoding.overflowing],
        }
        for encoding in full
    ]
    return {"encodings": answers} if "texts" in request else answers[0]


def _text(request: cases.Json, field: str) -> str | bytes | None:
    if field + "_b64" in request:
        return base64.b64decode(request.pop(field + "_b64"))
    text: str | None = request.pop(field, None)
    return text


def compare(
    golden: cases.GoldenFile, answer: Answer, *, kinds: frozenset[str], show: int = 3
) -> Outcome:
    """Run every check of one file; at most `show` failures are described, all are counted."""
    outcome = Outcome(golden.label)
    for check in cases.checks(golden, kinds):
        outcome.add(check, cases.difference(check, answer(check)), show=show)
    return outcome


def open_answer(golden: cases.GoldenFile) -> Answer:
    """In process: the tokenizer of this golden file. Raises ModelError when it is refused."""
    tokenizer = Tokenizer.from_file(golden.model)
    return lambda check: answer_in_process(tokenizer, check)


def compare_with_server(
    golden: cases.GoldenFile,
    host: str,
    port: int,
    *,
    kinds: frozenset[str] = frozenset(KINDS),
    show: int = 3,
    every: int = 1,
    datagram_len_max: int | None = None,
) -> Outcome:
    """One of `every` checks of one file, by a server that has the model under the file's label."""
    from tests.golden import command

    options: dict[str, Any] = {"timeout": 30, "datagram_len_max": datagram_len_max}
    with Client(host, port, model=golden.label, **options) as client:
        lines = command.Lines(client, Tokenizer.from_file(golden.model))
        return command.compare(golden, lines, kinds=kinds, show=show, every=every)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", help="label of a golden file; repeatable")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; all by default")
    parser.add_argument("--show", type=int, default=3, help="failures to describe per file")
    parser.add_argument("--byte-level", action="store_true", help="only the byte-level family")
    parser.add_argument("--server", metavar="HOST[:PORT]", help="ask this server")
    parser.add_argument("--veth", action="store_true", help="and servers on both paths; as root")
    parser.add_argument("--datagram-len-max", type=int, help="with --server")
    parser.add_argument("--every", type=int, default=1, help="of a server, one of so many cases")
    args = parser.parse_args()
    root = cases.data_root()
    if root is None:
        print("no reference cases: set PINTOK_TEST_DATA", file=sys.stderr)
        return 2
    kinds = frozenset(args.kind or KINDS)
    files = [
        golden
        for golden in cases.golden_files(root)
        if (not args.only or golden.label in args.only)
        and (not args.byte_level or golden.label in BYTE_LEVEL)
    ]
    totals: collections.Counter[str] = collections.Counter()
    served = {"kinds": kinds, "show": args.show, "every": args.every}
    if args.server:
        host, port = parse_server(args.server)
        for golden in files:
            outcome = compare_with_server(
                golden, host, port, datagram_len_max=args.datagram_len_max, **served
            )
            report(outcome, "server", totals)
    else:
        for golden in files:
            report(compare_here(golden, kinds, args.show), "in process", totals)
    if args.veth:
        from tests.golden import link

        for path in link.PATHS:
            for outcome in link.compare_all(files, path, **served):
                report(outcome, path, totals)
    print(", ".join(f"{count} {name}" for name, count in totals.items()))
    return 1 if totals["failed"] or totals["refused files"] else 0


def compare_here(golden: cases.GoldenFile, kinds: frozenset[str], show: int) -> Outcome:
    """Every check of one file in process."""
    try:
        return compare(golden, open_answer(golden), kinds=kinds, show=show)
    except errors.ModelError as error:
        return Outcome(golden.label, refused=str(error))


def report(outcome: Outcome, where: str, totals: collections.Counter[str]) -> None:
    """One line, and one for each failure that is described."""
    totals[f"passed {where}"] += outcome.passed
    totals["failed"] += len(outcome.failures)
    totals["excepted"] += outcome.excepted
    totals["refused files"] += bool(outcome.refused)
    if outcome.refused:
        print(f"{outcome.label:32} {where:10} refused: {outcome.refused}")
        return
    count = outcome.passed + len(outcome.failures) + outcome.excepted
    print(
        f"{outcome.label:32} {where:10} {count:6} cases {outcome.passed:6} passed"
        f" {len(outcome.failures):4} failed {outcome.excepted:4} excepted",
        flush=True,
    )
    for failure in filter(None, outcome.failures):
        print("   ", failure)


if __name__ == "__main__":
    sys.exit(main())
