"""A private link for one server and one client: two network namespaces joined by a veth pair.

All of it runs inside one PID namespace (`run_inside`), whose first process is the client's side.
The namespaces have no names: when that process ends, however it ends, the kernel kills all that was
started inside and removes the link, so nothing can be left behind. Needs root. Standard library
only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

SERVER_INTERFACE = "ptk0"
CLIENT_INTERFACE = "ptk1"
SERVER_IPV4 = "10.77.0.1"
CLIENT_IPV4 = "10.77.0.2"
SERVER_IPV6 = "fd77::1"
CLIENT_IPV6 = "fd77::2"

_libc = ctypes.CDLL(None, use_errno=True)


def run_inside(command: Sequence[str]) -> int:
    """Runs `command` as the first process of new PID, network and mount namespaces.

    Returns its exit status. When this function is left by an exception (a signal handler's, a
    KeyboardInterrupt), the command gets SIGTERM, and SIGKILL after STOP_SECONDS; it and all that it
    started are dead before the exception goes on.
    """
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", *command]
    outer = subprocess.Popen(words, preexec_fn=die_with_parent)
    try:
        return outer.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if outer.poll() is None:
                _signal_children(outer.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    outer.wait(STOP_SECONDS)


def _signal_children(pid: int, number: signal.Signals) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), number)


def set_up_inside() -> None:
    """To be called first by a command that run_inside() started: its own /sys, /run and loopback.

    /run is memory that goes with the namespaces: the place for sockets, logs and segments.
    """
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills this child when its parent is gone, however it went."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class PrivateLink:
    """The link and the server's namespace, from `with` to the end of the block.

    The caller runs inside run_inside() and has called set_up_inside(). `queue_count` queues on both
    ends, `mtu` bytes.
    """

    def __init__(self, *, queue_count: int, mtu: int = 1500) -> None:
        self._queue_count = queue_count
        self._mtu = mtu
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PrivateLink:
        own = os.readlink("/proc/self/ns/net")
        script = "mount --make-rprivate / && mount -t sysfs sysfs /sys && exec sleep 3600"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        pid = self._holder.pid
        deadline = time.monotonic() + 10
        # The name changes when the holder runs `sleep`: then its namespaces are complete.
        while (
            os.readlink(f"/proc/{pid}/ns/net") == own
            or Path(f"/proc/{pid}/comm").read_text().strip() != "sleep"
        ):
            if self._holder.poll() is not None or time.monotonic() > deadline:
                raise OSError("the server's network namespace did not come up")
            time.sleep(0.01)
        try:
            self._join(pid)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _join(self, pid: int) -> None:
        queues = ["numtxqueues", str(self._queue_count), "numrxqueues", str(self._queue_count)]
        create = ["ip", "link", "add", CLIENT_INTERFACE, *queues, "type", "veth"]
        create += ["peer", "name", SERVER_INTERFACE, *queues, "netns", str(pid)]
        subprocess.run(create, check=True)
        ends = (
            ([], CLIENT_INTERFACE, CLIENT_IPV4, CLIENT_IPV6),
            (self.command(), SERVER_INTERFACE, SERVER_IPV4, SERVER_IPV6),
        )
        for prefix, interface, ipv4, ipv6 in ends:
            for words in (
                ["link", "set", "lo", "up"],
                ["link", "set", interface, "mtu", str(self._mtu)],
                ["address", "add", f"{ipv4}/24", "dev", interface],
                ["address", "add", f"{ipv6}/64", "dev", interface, "nodad"],
                ["link", "set", interface, "up"],
            ):
                subprocess.run([*prefix, "ip", *words], check=True)

    def command(self) -> list[str]:
        """The words that, put before a command, run it on the server's side."""
        assert self._holder is not None
        pid = str(self._holder.pid)
        return ["nsenter", "--target", pid, "--net", "--mount", "--root", "--wd"]

    def start(self, command: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        """Starts `command` on the server's side, its output in `log`; it dies with this process."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [*self.command(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["ip", "link", "del", CLIENT_INTERFACE], capture_output=True, check=False)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None


class Hugepages:
    """At least `count` free pages of 2 MB for the block; afterwards the pool is as it was.

    Where the kernel has not so much contiguous memory, the block runs with what there is: `free`
    says how many.
    """

    def __init__(self, *, count: int) -> None:
        self._count = count
        self._before: int | None = None
        self.free = 0

    def _free(self) -> int:
        return int(HUGEPAGES.with_name("free_hugepages").read_text())

    def __enter__(self) -> Hugepages:
        if HUGEPAGES.exists():
            missing = self._count - self._free()
            if missing > 0:
                self._before = int(HUGEPAGES.read_text())
                HUGEPAGES.write_text(str(self._before + missing))
            self.free = self._free()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            HUGEPAGES.write_text(str(self._before))
