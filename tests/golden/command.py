"""The reference cases as lines of the command `pintok`, answered by a tokenizer or by a server.

Each goes the way of a line of the command, from its JSON to the JSON of the answer, without a
process for every file. What is no line, texts that are padded to the longest of them and ranges of
ordinary text, is asked by the library's calls, which are the same on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pintok.client import Client
from pintok.errors import PinTokError
from pintok.tokenizer import Tokenizer
from pintok_server.cli.chats import ChatBackend
from pintok_server.cli.lines import Backend, Operation, Options, format_line, parse_line
from tests.golden import cases
from tests.golden.report import Outcome, error_answer, plain_answer, shaped_answer


class Lines:
    """Answers lines; `local` is the tokenizer here, whose chat template is rendered here."""

    def __init__(self, engine: Tokenizer | Client, local: Tokenizer) -> None:
        self._engine = engine
        self._backend = Backend(engine)
        self._chats = ChatBackend(local, engine)

    def answers(self, op: str, requests: Sequence[cases.Json]) -> list[cases.Json]:
        """The answers to requests of one operation, in their order."""
        if op in ("batch", "plain"):
            return [self._call(op, request) for request in requests]
        lines = [json.dumps(request).encode() for request in requests]
        if op == "chat":
            answers = self._chats.serve(lines)
        else:
            operation: Operation = "decode" if op == "decode" else "encode"
            jobs = [parse_line(line, operation, defaults=Options()) for line in lines]
            answers = self._backend.serve(operation, jobs)
        return [json.loads(format_line(answer)) for answer in answers]

    def _call(self, op: str, request: cases.Json) -> cases.Json:
        try:
            answer = shaped_answer if op == "batch" else plain_answer
            return answer(self._engine, dict(request))
        except PinTokError as error:
            return error_answer(error)


def compare(
    golden: cases.GoldenFile,
    lines: Lines,
    *,
    kinds: frozenset[str],
    show: int = 3,
    every: int = 1,
) -> Outcome:
    """One of `every` checks of one golden file; at most `show` failures are described."""
    outcome = Outcome(golden.label)
    checks = list(cases.checks(golden, kinds))[::every]
    for op in ("encode", "decode", "chat", "batch", "plain"):
        chosen = [check for check in checks if check.op == op]
        answers = lines.answers(op, [check.request for check in chosen]) if chosen else []
        for check, answer in zip(chosen, answers, strict=True):
            outcome.add(check, cases.difference(check, answer), show=show)
    return outcome
