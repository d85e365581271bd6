"""Requests from the client's end of a private link: one, a flood, or a steady measured load."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time

from test_paths import header, ping
from veth import PORT, SERVER4, Link

from pintok._wire import WireOp


def ask(link: Link, request: bytes, *, address: str = SERVER4) -> bytes:
    """One request by a fresh socket; its reply. Raises TimeoutError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with link.client_socket(family) as sock:
        sock.connect((address, PORT))
        sock.send(request)
        return sock.recv(65536)


def wait_for(condition: object, timeout_s: float = 5.0) -> None:
    """Poll until `condition()` is true; AssertionError after the timeout."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


class Load(threading.Thread):
    """Sends numbered PINGs without a pause and collects the numbers that come back."""

    def __init__(self, link: Link, *, window: int) -> None:
        super().__init__(daemon=True)
        self._socks = [link.client_socket(socket.AF_INET) for _ in range(2)]
        for sock in self._socks:
            sock.connect((SERVER4, PORT))
            sock.settimeout(0.03)
        self._window = window
        self.sent = 0
        self.answered: set[int] = set()
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            first = self.sent
            for number in range(first, first + self._window):
                with contextlib.suppress(ConnectionRefusedError):
                    self._socks[number % 2].send(header(number, WireOp.PING, 0))
                self.sent = number + 1
            for number in range(first, first + self._window):
                try:
                    data = self._socks[number % 2].recv(2048)
                except (TimeoutError, ConnectionRefusedError):
                    continue
                self.answered.add(int.from_bytes(data[8:16], "little"))
        # What was late all the time is still on its way.
        for sock in self._socks:
            with contextlib.suppress(TimeoutError):
                while True:
                    self.answered.add(int.from_bytes(sock.recv(2048)[8:16], "little"))


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What a steady load has seen; times in milliseconds from first sending to the reply."""

    requests: int
    unanswered: int
    wrong: int
    resent: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Steady(threading.Thread):
    """One request at a time, sent again after 50 ms without its reply, given up after 40 times.

    Every reply is compared byte for byte with what was asked.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(daemon=True)
        self._sock = link.client_socket(socket.AF_INET)
        self._sock.connect((SERVER4, PORT))
        self._sock.settimeout(0.05)
        self._latencies: list[float] = []
        self._unanswered = self._wrong = self._resent = 0
        self.stopping = threading.Event()

    @property
    def answered(self) -> int:
        return len(self._latencies)

    def run(self) -> None:
        number = 1 << 32
        while not self.stopping.is_set():
            number += 1
            self._ask(number, ping(number, 200))

    def _ask(self, number: int, request: bytes) -> None:
        started = time.perf_counter()
        for attempt in range(40):
            self._resent += attempt > 0
            # A refused port, or no route, is an answer that no server gave: ask again.
            with contextlib.suppress(OSError):
                self._sock.send(request)
            while True:
                try:
                    reply = self._sock.recv(2048)
                except TimeoutError:
                    break
                except OSError:
                    time.sleep(0.05)
                    break
                if reply[8:16] != number.to_bytes(8, "little"):
                    continue  # The second reply to an earlier request that was sent twice.
                self._wrong += reply[32:] != request[32:]
                self._latencies.append(time.perf_counter() - started)
                return
        self._unanswered += 1

    def finish(self) -> Figures:
        """Stop, and say what was seen."""
        self.stopping.set()
        self.join(30.0)
        ordered = sorted(self._latencies)
        return Figures(
            requests=len(ordered) + self._unanswered,
            unanswered=self._unanswered,
            wrong=self._wrong,
            resent=self._resent,
            p50_ms=1000 * ordered[len(ordered) // 2],
            p99_ms=1000 * ordered[len(ordered) * 99 // 100],
            max_ms=1000 * ordered[-1],
        )
