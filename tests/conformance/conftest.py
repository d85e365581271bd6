"""Which server the suite holds to the protocol: `--ptk1-server HOST:PORT`, or this project's own.

    python -m pytest tests/conformance --ptk1-server HOST:PORT

The suite knows the tables of the protocol and nothing of any implementation: any server of PTK1
with a model in slot 0 may be named. One that validates addresses must let strangers have some time;
what a server does not offer is skipped. Without the option (or PTK1_SERVER in the environment) it
starts the datapath of this tree on the loopback, with the embedded vocabulary, and skips where that
is not built.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pintok._path import parse_server
from tests.datapath_process import HOST, PROGRAM, datapath

pytest.register_assert_rewrite("tests.conformance.peer")
from tests.conformance import peer  # noqa: E402


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


def own_server(*options: str) -> Iterator[tuple[str, int]]:
    if not PROGRAM.exists():
        pytest.skip("ptk-datapath is not built")
    pytest.importorskip("pintok._native", reason="the native core is not built")
    from pintok_server import vocab

    with datapath({"default": vocab.load_image("default").path}, *options) as port:
        yield HOST, port


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[peer.Peer]:
    with peer.Peer(*address) as connected:
        yield connected


@pytest.fixture(scope="session")
def model(address: tuple[str, int]) -> peer.Info:
    """What the server says about the model in slot 0."""
    with peer.Peer(*address) as connected:
        return peer.read_info(connected.ask(peer.request("info", bytes(208))))
