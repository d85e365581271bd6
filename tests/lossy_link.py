"""A UDP proxy that does to datagrams what networks do: loss, doubles, overtaking, damage, cutting.

Every decision comes from one seeded generator, so a run can be repeated as far as the scheduling of
the processes allows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """Chances per datagram, 0 to 1."""

    loss: float = 0.0
    double: float = 0.0
    overtake: float = 0.0
    damage: float = 0.0
    cut: float = 0.0


class LossyLink:
    """Listens on `port` and stands between any number of clients and one server."""

    def __init__(
        self,
        server: tuple[str, int],
        faults: Faults,
        seed: int,
        *,
        inside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`inside` is entered where sockets are made: they may belong to another namespace."""
        self.faults = faults
        self.blocked = False
        """While set, nothing passes."""
        self.longest = 65507
        """Longer datagrams are lost, and nobody says so: a path with a black hole."""
        self.passed = 0
        self._random = random.Random(seed)
        self._server = server
        self._inside = inside
        with inside():
            self._front = self._socket()
        self._front.bind(("127.0.0.1", 0))
        self.port = int(self._front.getsockname()[1])
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._clients: dict[socket.socket, tuple[str, int]] = {}
        self._held: list[tuple[socket.socket, bytes, tuple[str, int] | None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setblocking(False)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for sock in (self._front, *self._backs.values()):
            sock.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._front, *self._backs.values()], [], [], 0.005)
            for sock in ready:
                self._drain(sock)
            if not ready:
                self._release()

    def _drain(self, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                datagram, sender = sock.recvfrom(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if sock is not self._front:
                self._pass(self._front, datagram, self._clients[sock])
                continue
            back = self._backs.get(sender)
            if back is None:
                with self._inside():
                    back = self._socket()
                back.connect(self._server)
                self._backs[sender] = back
                self._clients[back] = sender
            self._pass(back, datagram, None)

    def _pass(self, sock: socket.socket, datagram: bytes, to: tuple[str, int] | None) -> None:
        chance, faults = self._random.random, self.faults
        if self.blocked or len(datagram) > self.longest or chance() < faults.loss:
            return
        if chance() < faults.damage:
            at = self._random.randrange(len(datagram))
            bit = 1 << self._random.randrange(8)
            datagram = datagram[:at] + bytes([datagram[at] ^ bit]) + datagram[at + 1 :]
        if chance() < faults.cut:
            datagram = datagram[: self._random.randrange(len(datagram))]
        if chance() < faults.overtake:
            self._held.append((sock, datagram, to))
            return
        for _ in range(2 if chance() < faults.double else 1):
            self._send(sock, datagram, to)
        if len(self._held) > 8:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        for sock, datagram, to in held:
            self._send(sock, datagram, to)

    def _send(self, sock: socket.socket, datagram: bytes, to: tuple[str, int] | None) -> None:
        try:
            if to is None:
                sock.send(datagram)
            else:
                sock.sendto(datagram, to)
            self.passed += 1
        except (BlockingIOError, ConnectionRefusedError):
            pass  # A full buffer is one loss more.
