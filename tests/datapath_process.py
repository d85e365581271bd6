"""Starts the datapath alone, on the loopback and the socket path: for tests of what it answers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pintok import Client, DeadlineError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "native" / "build" / "release" / "ptk-datapath"
HOST = "127.0.0.1"
START_SECONDS_MAX = 30.0


@contextlib.contextmanager
def datapath(models: Mapping[str, Path], *options: str) -> Iterator[int]:
    """Serve these images by name, from slot 0 up; yields the port. The program must be built."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    command = [
        str(PROGRAM),
        "--path=socket",
        "--idle=adaptive",
        f"--address={HOST}",
        f"--port={port}",
        f"--cores={min(os.sched_getaffinity(0))}",
        *(f"--model={slot}:{name}={path}" for slot, (name, path) in enumerate(models.items())),
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait_for(process, port)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    with Client(HOST, port, timeout=0.2) as client:
        while True:
            try:
                client.ping()
                return
            except DeadlineError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    output, _ = process.communicate()
                    raise AssertionError(output.decode(errors="replace")) from None
