"""Hostile conversations with a running server, on both paths: see wire_machine.py.

`scripts/dev fuzz wire-state SECONDS` runs the same for as long as is wanted, with another seed each
time; a run of the tests always does the same.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import pytest
import veth
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from wire_machine import Bench, WireMachine, bench_on

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

SECONDS = int(os.environ.get("PINTOK_FUZZ_SECONDS", "0"))


@pytest.fixture(params=["xdp", "socket"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="ptk-test-", dir="/dev/shm") as folder,
        bench_on(pathlib.Path(folder), request.param) as made,
    ):
        yield made


def profile(examples: int, steps: int, *, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=not derandomize,
    )


@pytest.mark.timeout(SECONDS + 1200)
def test_whatever_is_said_has_its_answer(bench: Bench) -> None:
    """Each reply is the exact one, a verdict by name, or the silence that the protocol asks for."""
    machine = type("Bound", (WireMachine,), {"bench": bench})
    if SECONDS == 0:
        run_state_machine_as_test(machine, settings=profile(30, 40, derandomize=True))
        return
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        run_state_machine_as_test(machine, settings=profile(50, 60, derandomize=False))
