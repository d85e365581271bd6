"""The reference cases through the command `pintok`: in process, or through a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from tests.golden import cases
from tests.golden.report import Outcome


def run_lines(op: str, requests: Sequence[cases.Json], arguments: Sequence[str]) -> list[cases.Json]:
    """The answers of `pintok OP --jsonl` to request lines, in their order."""
    command = [sys.executable, "-m", "pintok_server.cli.tool", op, "--jsonl", *arguments]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(
    golden: cases.GoldenFile,
    *,
    kinds: frozenset[str],
    arguments: Sequence[str] = (),
    show: int = 3,
) -> Outcome:
    """Every check of one golden file by one run of the command per operation.

    `arguments` go to the command beside --model: --server and its options.
    """
    outcome = Outcome(golden.label)
    checks = list(cases.checks(golden, kinds))
    for op in ("encode", "decode"):
        chosen = [check for check in checks if check.op == op]
        if not chosen:
            continue
        words = ["--model", str(golden.model), *arguments]
        answers = run_lines(op, [check.request for check in chosen], words)
        if len(answers) != len(chosen):
            outcome.failures.append(f"{len(answers)} answers to {len(chosen)} lines of {op}")
        for check, answer in zip(chosen, answers, strict=False):
            outcome.add(check, cases.difference(check, answer), show=show)
    return outcome
