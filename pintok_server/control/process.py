"""A handle on the datapath process: the one this process started, or one that was found running.

Both kinds are held by a pidfd, so a signal or a wait can never meet a stranger that was given the
same number later.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import subprocess
from collections.abc import Sequence

from pintok_server.control.runtime import State, process_start_time
from pintok_server.errors import DatapathError


class Process:
    """One datapath process. Closing the handle leaves the process alone."""

    def __init__(self, pid: int, *, start_time: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.start_time = start_time
        self._child = child
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def spawn(cls, argv: Sequence[str], *, log: pathlib.Path) -> Process:
        """Start `argv` in a session of its own, with `log` as its standard error.

        It survives this process and no terminal signal reaches it. Raises DatapathError when the
        program cannot be started.
        """
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        try:
            with log.open("ab") as stream:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
        except OSError as error:
            raise DatapathError(f"{argv[0]}: cannot be started: {error.strerror}") from None
        # The child is ours and not waited for yet, so its number cannot have been given away.
        start_time = process_start_time(child.pid)
        return cls(child.pid, start_time=start_time or 0, child=child)

    @classmethod
    def adopt(cls, state: State) -> Process | None:
        """The process that `state` records, or None when it does not run any more."""
        try:
            process = cls(state.pid, start_time=state.start_time, child=None)
        except OSError:
            return None
        # Checked after the pidfd is held: from here on the number cannot change hands unseen.
        if state.alive():
            return process
        process.close()
        return None

    def wait(self, timeout_s: float) -> bool:
        """Whether the process has ended, after waiting up to `timeout_s` for it."""
        if self._child is not None and self._child.poll() is not None:
            return True
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            return False
        if self._child is not None:
            self._child.wait()
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended is left in peace."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def outcome(self) -> str:
        """How it ended, for a sentence: only the parent is told."""
        code = self._child.returncode if self._child is not None else None
        if code is None:
            return "ended"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
            return f"was killed by signal {-code}"
        return f"ended with status {code}"

    def failed(self) -> bool:
        """Whether it is known to have ended otherwise than by a clean drain."""
        return self._child is not None and self._child.returncode not in (None, 0)

    def close(self) -> None:
        """Let go of the handle."""
        os.close(self.pidfd)


class LogTail:
    """Reads what the datapath appends to its log, line by line."""

    def __init__(self, path: pathlib.Path, *, from_end: bool) -> None:
        self._path = path
        self._off = 0
        self._rest = b""
        if from_end:
            with contextlib.suppress(OSError):
                self._off = path.stat().st_size

    def lines(self) -> list[str]:
        """The complete lines since the last call."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._off)
                data = stream.read(1 << 20)
        except OSError:
            return []
        self._off += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in lines if line.strip()]
