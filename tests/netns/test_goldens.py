"""Every reference case through the command and a server gives the reference's answer.

The link's MTU is the largest that the datapath takes, so that nearly each case is one datagram.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest
import veth
from veth import Link

from tests.golden import cases, command, report

ROOT = cases.data_root()
FILES = cases.golden_files(ROOT) if ROOT else []
GROUP = 8
MTU = 65000
EVERY = int(os.environ.get("PINTOK_GOLDENS_EVERY", "16"))
"""One of so many cases of each file is asked for; 1 for all of them, which takes an hour."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(ROOT is None, reason="no reference cases: set PINTOK_TEST_DATA"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]


@contextlib.contextmanager
def pintok_server(
    link: Link, folder: pathlib.Path, path: str, goldens: Sequence[cases.GoldenFile]
) -> Iterator[None]:
    """The server as an operator starts it, with the models of these files."""
    words = ["ip", "netns", "exec", link.server, sys.executable, "-m", "pintok_server.cli.server"]
    words += ["--iface", veth.IFACE, "--cores", "0-1", "--idle", "adaptive", "--path", path]
    words += ["--no-http", "--runtime-dir", str(folder)]
    for golden in goldens:
        words += ["--model", f"{golden.label}={golden.model}"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 600
        while b"\nready: " not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()


@pytest.mark.parametrize("path", ["xdp", "socket"])
@pytest.mark.parametrize("first", range(0, len(FILES), GROUP))
def test_every_case_equals_the_reference(path: str, first: int, tmp_path: pathlib.Path) -> None:
    """The same lines as in process, the same answers, on the XDP path and on the socket path."""
    chosen = FILES[first : first + GROUP]
    cores = len(os.sched_getaffinity(0))
    with (
        veth.veth_link(queues=min(cores, 2), mtu=MTU) as link,
        pintok_server(link, tmp_path, path, chosen),
    ):
        server = ["--server", f"{veth.SERVER4}:{veth.PORT}", "--datagram-len-max", str(MTU - 64)]
        for golden in chosen:
            outcome = command.compare(
                golden,
                kinds=frozenset(report.KINDS),
                model=golden.label,
                arguments=server,
                prefix=("ip", "netns", "exec", link.client),
                every=EVERY,
            )
            assert not outcome.failures, "\n".join(filter(None, outcome.failures))
            assert outcome.passed > 10
