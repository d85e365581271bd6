"""The reference cases through whole servers on a private link, on the XDP and the socket path.

The link's MTU is the largest that the datapath takes, so that nearly each case is one datagram.
Needs root.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.golden import cases, report
from tests.netns import veth

PATHS = ("xdp", "socket")
GROUP = 8
"""Models of one server."""
_MTU = 65000
_READY_S = 600.0
"""A server compiles what the cache lacks before it is ready, and compares it with the reference."""


@contextlib.contextmanager
def _server(link: veth.Link, folder: pathlib.Path, words: Sequence[str]) -> Iterator[None]:
    """The server as an operator starts it."""
    command = ["ip", "netns", "exec", link.server, sys.executable, "-m", "pintok_server.cli.server"]
    command += ["--iface", veth.IFACE, "--idle", "adaptive", "--no-http"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *words], stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _READY_S
        while b"\nready: " not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server is not ready: {log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status != 0:
        raise AssertionError(f"the server ended with {status}: {log.read_text()}")


def compare_all(
    files: Sequence[cases.GoldenFile],
    path: str,
    *,
    kinds: frozenset[str] = frozenset(report.KINDS),
    show: int = 3,
    every: int = 1,
) -> Iterator[report.Outcome]:
    """What came of one of `every` checks of each file, by servers with GROUP models each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    for first in range(0, len(files), GROUP):
        chosen = files[first : first + GROUP]
        with (
            tempfile.TemporaryDirectory() as folder,
            veth.veth_link(queues=len(cores), mtu=_MTU) as link,
        ):
            words = ["--path", path, "--runtime-dir", folder]
            words += ["--cores", ",".join(map(str, cores))]
            for golden in chosen:
                words += ["--model", f"{golden.label}={golden.model}"]
            with _server(link, pathlib.Path(folder), words), link.inside(link.client):
                for golden in chosen:
                    yield report.compare_with_server(
                        golden,
                        veth.SERVER4,
                        veth.PORT,
                        kinds=kinds,
                        show=show,
                        every=every,
                        datagram_len_max=_MTU - 64,
                    )
