"""The demonstration works as the README promises, and leaves nothing however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "netns", "af_xdp")]


def _start(mark: str) -> subprocess.Popen[str]:
    """The demo, with a variable in its environment that all of its processes inherit."""
    command = [sys.executable, "-u", str(ROOT / "scripts" / "demo.py"), "--seconds", "0.2"]
    return subprocess.Popen(
        command,
        env={**os.environ, "PTK_DEMO_MARK": mark, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _links() -> list[str]:
    done = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    return [line.split(":")[1] for line in done.stdout.splitlines()]


def _processes(mark: str) -> list[str]:
    """Command lines of the processes that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"PTK_DEMO_MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:  # It ended meanwhile.
            continue
    return found


def _wait_for_line(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if wanted in line:
            return
    raise AssertionError(f"no line with {wanted!r} in:\n{''.join(seen)}")


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def host_unchanged(mark: str) -> Iterator[None]:
    """Links, huge pages and processes are the same before and after the test."""
    pages = HUGEPAGES.read_text() if HUGEPAGES.exists() else ""
    links = _links()
    yield
    assert _links() == links
    assert (HUGEPAGES.read_text() if HUGEPAGES.exists() else "") == pages
    assert _processes(mark) == []


def test_demo_shows_ids_proof_and_table(mark, host_unchanged):
    """All three services answer with the reference's ids and appear in the table in each size."""
    process = _start(mark)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("all equal to the reference's") == 4
    table = output[output.index("requests/s") :]
    for service in ("PinTok, AF_XDP", "PinTok, kernel sockets", "tokenizers, FastAPI + uvicorn"):
        assert table.count(service) == 3
    assert "requests without an answer: 0" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(mark, host_unchanged, number):
    """Ctrl-C in the middle of a measurement, or SIGTERM from a supervisor."""
    process = _start(mark)
    _wait_for_line(process, "Measuring")
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode in (130, 128 + number)


def test_killed_demo_leaves_no_process(mark):
    """SIGKILL of the outermost process takes servers, clients and namespaces with it."""
    pages = HUGEPAGES.read_text() if HUGEPAGES.exists() else ""
    links = _links()
    process = _start(mark)
    try:
        _wait_for_line(process, "Measuring")
        process.kill()
        process.wait(10)
        deadline = time.monotonic() + 10
        while _processes(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _processes(mark) == []
        assert _links() == links
    finally:
        if pages:
            HUGEPAGES.write_text(pages)
