"""The reference cases through the command `pintok`: in process, or through a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from tests.golden import cases
from tests.golden.report import Outcome


def run_lines(
    op: str,
    requests: Sequence[cases.Json],
    arguments: Sequence[str],
    *,
    prefix: Sequence[str] = (),
) -> list[cases.Json]:
    """The answers of `pintok OP --jsonl` to request lines, in their order.

    `prefix` stands before the command: what runs it in another namespace, for instance.
    """
    command = [*prefix, sys.executable, "-m", "pintok_server.cli.tool", op, "--jsonl", *arguments]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(
    golden: cases.GoldenFile,
    *,
    kinds: frozenset[str],
    model: str | None = None,
    arguments: Sequence[str] = (),
    prefix: Sequence[str] = (),
    show: int = 3,
    every: int = 1,
) -> Outcome:
    """Every check of one golden file by one run of the command per operation.

    `model` is what --model is given, the file itself by default; `arguments` stand beside it:
    --server and its options. One of `every` checks is made. Batches that are padded together are
    no lines: only their texts that do not depend on each other are.
    """
    outcome = Outcome(golden.label)
    checks = list(cases.checks(golden, kinds))[::every]
    for op in ("encode", "decode", "chat"):
        chosen = [check for check in checks if check.op == op]
        if not chosen:
            continue
        named = model or str(golden.model)
        if model and op == "chat":  # The template is in the file, whatever the server calls it.
            named = f"{model}={golden.model}"
        words = ["--model", named, *arguments]
        answers = run_lines(op, [check.request for check in chosen], words, prefix=prefix)
        if len(answers) != len(chosen):
            outcome.failures.append(f"{len(answers)} answers to {len(chosen)} lines of {op}")
        for check, answer in zip(chosen, answers, strict=False):
            outcome.add(check, cases.difference(check, answer), show=show)
    return outcome
