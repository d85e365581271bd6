"""SIGTERM is never lost between a program and the one that takes its place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server_process import ROOT

SECOND = """
from pintok_server.control.serve import StopSignals
with StopSignals().installed() as signals:
    print(signals.count, signals.name)
"""

FIRST = f"""
import os, signal, sys, threading, time
from pintok_server.control.serve import StopSignals
before, during, thread = map(int, sys.argv[1:])
replace = os.execv
def execv(path, argv):
    if during:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # Long enough for another thread to take it.
    replace(path, argv)
os.execv = execv
with StopSignals().installed() as signals:
    if thread:  # As libraries have them: with the signals not blocked.
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    if before:
        os.kill(os.getpid(), signal.SIGTERM)
    signals.begin_anew([sys.executable, "-c", {SECOND!r}])
"""


@pytest.mark.parametrize("thread", [0, 1])
@pytest.mark.parametrize(("before", "during"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_signal_at_the_change_of_program_is_left_to_the_next(
    before: int, during: int, thread: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, str(before), str(during), str(thread)],
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        text=True,
    )
    count, _, name = done.stdout.strip().partition(" ")
    assert done.returncode == 0, done.stderr
    assert (int(count) > 0, name) == ((True, "SIGTERM") if before or during else (False, ""))
    if before + during == 1:
        assert count == "1"  # Two would mean a hurry.
