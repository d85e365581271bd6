"""Starts pintok-server processes of one instance, for tests of the whole server."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import IO, Any

from pintok_server.control.runtime import RunDir, current_state, process_start_time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A UDP port that nothing is bound to at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, seconds: float = 15) -> None:
    """Poll until the condition holds. Raises AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@dataclasses.dataclass
class Server:
    """One pintok-server process and what it said."""

    process: subprocess.Popen[bytes]
    events: list[dict[str, Any]]
    ready: dict[str, Any]

    def event(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def read_until(self, name: str) -> dict[str, Any]:
        """Read its log up to the next event of this name."""
        stream: IO[bytes] | None = self.process.stderr
        assert stream is not None
        while line := stream.readline():
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == name:
                return self.events[-1]
        raise AssertionError(f"it ended without {name}: {self.events}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.ready['http']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Instance:
    """Control processes of one instance, one after another; ends all that they leave behind.

    `prefix` are words before the command, to run it in a network namespace.
    """

    def __init__(
        self, folder: pathlib.Path, options: Sequence[str], *, prefix: Sequence[str] = ()
    ) -> None:
        self.run_dir = RunDir(folder / "run")
        self.servers: list[Server] = []
        self.pids: dict[int, int | None] = {}
        self.environment: dict[str, str] = {}
        self._options = options
        self._prefix = prefix

    def command(self, *options: str, name: str = "serve") -> list[str]:
        program = [*self._prefix, sys.executable, "-m", "pintok_server.cli.server", name]
        return [*program, *self._options, f"--runtime-dir={self.run_dir.path}", *options]

    def start(self, *options: str) -> Server:
        process = subprocess.Popen(
            self.command("--http=127.0.0.1:0", "--log-format=json", *options),
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | self.environment,
        )
        server = Server(process, [], {})
        self.servers.append(server)
        server.ready = server.read_until("ready")
        self.note(server.ready["pid"])
        return server

    def refuse(self, *options: str) -> str:
        """The sentence with which a server refuses to start."""
        done = subprocess.run(
            self.command("--no-http", *options), capture_output=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 1, done.stderr.decode()
        lines = done.stderr.decode().splitlines()
        assert "Traceback" not in done.stderr.decode()
        return lines[-1]

    def upgrade(self, *options: str) -> Any:
        """`pintok-server upgrade` with the server's own options and these; as it has ended."""
        done = subprocess.run(
            self.command("--no-http", *options, name="upgrade"),
            capture_output=True,
            cwd=ROOT,
            env=os.environ | self.environment,
            timeout=120,
            text=True,
        )
        state = current_state(self.run_dir)
        if state is not None and state.alive():
            self.note(state.pid)
        return done

    def tool(self, *arguments: str) -> Any:
        """Output of a pintok-server command on this instance."""
        command = [sys.executable, "-m", "pintok_server.cli.server", *arguments]
        return subprocess.run(
            [*command, f"--runtime-dir={self.run_dir.path}"],
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            text=True,
        )

    def note(self, pid: int) -> None:
        """Remember a datapath, to be ended in the end if it still runs then."""
        self.pids[pid] = process_start_time(pid)

    @staticmethod
    def kill(server: Server) -> None:
        """SIGKILL of the control process, as a crash."""
        # `ip netns exec` replaces itself by the command, so this is the server.
        server.process.kill()
        server.process.wait()

    def close(self) -> None:
        for server in self.servers:
            self.kill(server)
            assert server.process.stderr is not None
            server.process.stderr.close()
        state = current_state(self.run_dir) if self.run_dir.path.exists() else None
        if state is not None and state.alive():
            self.note(state.pid)
        for pid, start_time in self.pids.items():
            if process_start_time(pid) != start_time:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
