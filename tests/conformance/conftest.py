"""Which server the suite holds to the protocol: `--ptk1-server HOST:PORT`, or this project's own.

The suite knows the tables of the protocol and nothing of any implementation: any server of PTK1
with a model in slot 0 may be named. Without the option (or PTK1_SERVER in the environment) it
starts the datapath of this tree on the loopback, with the embedded vocabulary, and skips where that
is not built.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pintok._path import parse_server

pytest.register_assert_rewrite("tests.conformance.peer")
from tests.conformance import peer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DATAPATH = ROOT / "native" / "build" / "release" / "ptk-datapath"
START_SECONDS_MAX = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ptk1-server", metavar="HOST:PORT", help="server for tests/conformance")


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Host and port of the server under test."""
    named = request.config.getoption("--ptk1-server", default=None) or os.environ.get("PTK1_SERVER")
    if named:
        yield parse_server(named)
        return
    yield from own_server()


def own_server() -> Iterator[tuple[str, int]]:
    if not DATAPATH.exists():
        pytest.skip(f"{DATAPATH.relative_to(ROOT)} is not built")
    pytest.importorskip("pintok._native", reason="the native core is not built")
    from pintok_server import vocab

    image = vocab.load_image("default").path
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    core = min(os.sched_getaffinity(0))
    command = [
        DATAPATH,
        "--path=socket",
        "--idle=adaptive",
        "--address=127.0.0.1",
        f"--port={port}",
        f"--cores={core}",
        f"--model=0:default={image}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(process, "127.0.0.1", port)
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_for(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    with peer.Peer(host, port) as client:
        while client.once(peer.request("ping"), wait=0.1) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                output, _ = process.communicate()
                pytest.fail(f"the datapath did not start:\n{output.decode(errors='replace')}")


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[peer.Peer]:
    with peer.Peer(*address) as connected:
        yield connected


@pytest.fixture(scope="session")
def model(address: tuple[str, int]) -> peer.Info:
    """What the server says about the model in slot 0."""
    with peer.Peer(*address) as connected:
        return peer.read_info(connected.ask(peer.request("info", bytes(208))))
