"""A private link: two network namespaces joined by a veth pair, and the datapath on one end.

Every name carries the id of the test process, so runs beside each other do not meet. Whatever
happens in a test, leaving the context removes what it made.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pintok_server.control.statistics import Snapshot, StatisticsReader

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 7265
SERVER4, SERVER6 = "192.0.2.1", "2001:db8::1"
CLIENT4, CLIENT6 = "192.0.2.2", "2001:db8::2"
SERVER_MAC, CLIENT_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
IFACE = "ptk0"

_CLONE_NEWNET = 0x40000000
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def program_path() -> pathlib.Path:
    """The datapath under test: `PINTOK_DATAPATH`, or the one of the release build."""
    default = ROOT / "native" / "build" / "release" / "ptk-datapath"
    return pathlib.Path(os.environ.get("PINTOK_DATAPATH", default))


def steer_path() -> pathlib.Path:
    """The XDP program, which does not depend on the build variant."""
    return ROOT / "native" / "build" / "release" / "ptk_steer.bpf.o"


def run(*command: str) -> str:
    """Run a command; its output. Raises with both outputs when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """Both ends: namespaces `server` and `client`, each with an interface IFACE."""

    server: str
    client: str
    mtu: int
    queues: int

    def ip(self, namespace: str, *arguments: str) -> str:
        return run("ip", "-netns", namespace, *arguments)

    def exec(self, namespace: str, *arguments: str) -> str:
        return run("ip", "netns", "exec", namespace, *arguments)

    def make(self) -> None:
        """Make the pair of interfaces with addresses, and fixed neighbours on both ends."""
        count = str(self.queues)
        run(
            *("ip", "-netns", self.server, "link", "add", IFACE, "address", SERVER_MAC),
            *("numrxqueues", count, "numtxqueues", count, "type", "veth"),
            *("peer", "name", IFACE, "address", CLIENT_MAC),
            *("numrxqueues", count, "numtxqueues", count, "netns", self.client),
        )
        ends = (
            (self.server, (SERVER4, SERVER6), (CLIENT4, CLIENT6), CLIENT_MAC),
            (self.client, (CLIENT4, CLIENT6), (SERVER4, SERVER6), SERVER_MAC),
        )
        for namespace, (four, six), peers, peer_mac in ends:
            self.ip(namespace, "link", "set", IFACE, "mtu", str(self.mtu), "up")
            self.ip(namespace, "address", "add", f"{four}/24", "dev", IFACE)
            self.ip(namespace, "address", "add", f"{six}/64", "dev", IFACE, "nodad")
            for peer in peers:
                self.ip(
                    *(namespace, "neighbour", "replace", peer, "lladdr", peer_mac),
                    *("dev", IFACE, "nud", "permanent"),
                )

    def set_peer_checksum(self, *, on: bool) -> None:
        """Whether the client's kernel leaves UDP checksums partial, for absent hardware."""
        self.exec(self.client, "ethtool", "-K", IFACE, "tx", "on" if on else "off")

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """Sockets made by this thread inside the block belong to the namespace, for good."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(home)
            os.close(there)
            os.close(home)

    def client_socket(self, family: int, *, source: tuple[str, int] | None = None) -> socket.socket:
        """A UDP socket in the client's namespace, with a timeout of 2 s."""
        with self.inside(self.client):
            sock = socket.socket(family, socket.SOCK_DGRAM)
        if source is not None:
            sock.bind(source)
        sock.settimeout(2.0)
        return sock

    def raw_socket(self) -> socket.socket:
        """A socket for whole frames on the client's end; VLAN tags come as ancillary data."""
        with self.inside(self.client):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            sock.bind((IFACE, 0))
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.settimeout(2.0)
        return sock

    def xdp_program(self) -> dict[str, Any] | None:
        """What `ip link` says of a program on the server's interface."""
        text = self.ip(self.server, "-json", "-details", "link", "show", "dev", IFACE)
        shown: dict[str, Any] | None = json.loads(text)[0].get("xdp")
        return shown


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def veth_link(*, queues: int = 1, mtu: int = 1500) -> Iterator[Link]:
    """Make the link, with fixed neighbours on both ends."""
    number = next(_numbers)
    server, client = (f"ptk-{os.getpid()}-{number}-{end}" for end in ("s", "c"))
    link = Link(server, client, mtu, queues)
    try:
        for namespace in (server, client):
            run("ip", "netns", "add", namespace)
            link.ip(namespace, "link", "set", "lo", "up")
        link.make()
        yield link
    finally:
        for namespace in (server, client):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


class Datapath:
    """A running ptk-datapath in the server's namespace. Standard error is kept in `lines`."""

    def __init__(
        self,
        link: Link,
        folder: pathlib.Path,
        arguments: Sequence[str],
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        self.stats_path = folder / f"stats-{next(_numbers)}"
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *("ip", "netns", "exec", link.server, *prefix, str(program_path())),
                *(f"--stats={self.stats_path}", f"--steer-object={steer_path()}"),
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        """Until the segment says so. Raises AssertionError with its words if it ends instead."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self._reader.join(1.0)
                raise AssertionError(f"the datapath ended: {self.text}")
            if any(" ready on port " in line for line in self.lines):
                return
            time.sleep(0.01)
        raise AssertionError(f"the datapath is not ready: {self.text}")

    def statistics(self) -> Snapshot:
        """What the segment shows now."""
        reader = StatisticsReader(self.stats_path)
        try:
            return reader.read()
        finally:
            reader.close()

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended(timeout_s)

    def ended(self, timeout_s: float = 10.0) -> int:
        """Wait for its end and its last words; the exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(5.0)
        return status

    def says(self, words: str, timeout_s: float = 5.0) -> bool:
        """Whether it says `words`: what it has written may be a moment on its way."""
        deadline = time.monotonic() + timeout_s
        while words not in self.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return words in self.text

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.wait(5.0)


@contextlib.contextmanager
def datapath(
    link: Link,
    folder: pathlib.Path,
    *arguments: str,
    ready: bool = True,
    prefix: Sequence[str] = (),
) -> Iterator[Datapath]:
    """Start the datapath, behind the command `prefix`, and wait until it serves if `ready`."""
    process = Datapath(link, folder, arguments, prefix=prefix)
    try:
        if ready:
            process.wait_ready()
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


@contextlib.contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """`count` more 2 MiB pages of this machine, given back afterwards; skips without them."""
    path = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = int(path.read_text())
    try:
        path.write_text(str(before + count))
    except OSError:
        pytest.skip("huge pages cannot be set aside here")
    try:
        if int(path.read_text()) < before + count:
            pytest.skip(f"this machine has no {count} huge pages to set aside")
        yield
    finally:
        path.write_text(str(before))
