"""The way to a server: its address, a connected socket, what the path carries.

What a path carries is asked of the kernel, which knows the first link and what routers have told,
and, where that is not enough, of the path itself by pings of a few lengths at once. That happens
when it pays (long messages where the first link carries more than an Ethernet frame), and when
datagrams that may be long get lost again and again (a link on the way has become narrower and
nobody says so), and then not again for a while.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any, Final

from pintok import _wire
from pintok.errors import TransportError

PAYLOAD_LEN_MIN: Final = _wire.WIRE_INFO_REQUEST_LEN
"""Smallest datagram limit of a client: every model's info fits."""
PAYLOAD_LEN_MAX: Final = 65507
"""Largest UDP payload over IPv4."""
PAYLOAD_LEN_IPV4: Final = 1472
"""UDP payload of an Ethernet frame without IP options: 1500 - 20 - 8."""
PAYLOAD_LEN_IPV6: Final = 1452
"""The same for IPv6: 1500 - 40 - 8."""
PAYLOAD_LEN_JUMBO: Final = 8952
"""For IPv6 on links with jumbo frames: 9000 - 40 - 8."""
PAYLOAD_LEN_SURE: Final = 1232
"""What every IPv6 path carries: 1280 - 40 - 8."""

# From linux/in.h and linux/in6.h; the socket module of Python 3.11 has no names for them.
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_PMTUDISC_DO: Final = 2
_PMTUDISC_PROBE: Final = 3

# Replies to many calls at a time, while the process does something else.
_RECEIVE_BUFFER_LEN: Final = 4 << 20
_PROBE_STEP: Final = 8
_SEARCHED_LENS: Final = (1200, 1448, 1472, 4048)
# Payloads of usual links: Ethernet, with headers of tunnels, PPPoE, VPNs, and jumbo frames.
_USUAL_LENS: Final = (PAYLOAD_LEN_SURE, 1392, PAYLOAD_LEN_IPV6, PAYLOAD_LEN_IPV4, 4048)
_PINGS_MAX: Final = 4
_REFRESH_S: Final = 300.0
_SUSPECT_AGAIN_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A resolved server address."""

    family: int
    sockaddr: Any
    text: str


def resolve(host: str, port: int) -> Address:
    """The first UDP address of a host. Raises TransportError when it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise TransportError(f"{host}: {error}") from None
    family, _, _, _, sockaddr = found[0]
    name = str(sockaddr[0])
    if family == socket.AF_INET6:
        name = f"[{name}]"
    return Address(family, sockaddr, f"{name}:{port}")


def parse_server(server: str) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`. Raises ValueError."""
    host, port = server, str(_wire.WIRE_PORT)
    if server.startswith("["):
        host, bracket, rest = server[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"server must be HOST:PORT or [IPV6]:PORT, not {server!r}")
        port = rest[1:] or port
    elif server.count(":") == 1:
        host, port = server.split(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"server must be HOST:PORT or [IPV6]:PORT, not {server!r}")
    return host, int(port)


def open_socket(address: Address, *, probe: bool = False) -> socket.socket:
    """A connected UDP socket that never fragments, with a deep queue. Raises TransportError.

    With `probe`, the kernel's idea of the path MTU is not applied to what is sent.
    """
    sock = socket.socket(address.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        # Up to net.core.rmem_max, and the kernel doubles it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_LEN)
        mode = _PMTUDISC_PROBE if probe else _PMTUDISC_DO
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        sock.connect(address.sockaddr)
    except OSError as error:
        sock.close()
        raise TransportError(f"{address.text}: {error}") from None
    return sock


def route_len(address: Address) -> int:
    """The UDP payload that the kernel sends to an address without fragments: it knows the first
    link, and what routers have said. Raises TransportError."""
    with open_socket(address) as sock:
        return route_len_of(address, sock)


def route_len_of(address: Address, sock: socket.socket) -> int:
    """`route_len` of a connected socket."""
    if address.family == socket.AF_INET6:
        known = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - 48
    else:
        known = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) - 28
    return max(min(known, PAYLOAD_LEN_MAX), PAYLOAD_LEN_MIN)


class PathState:
    """What is known of the path to one server; the caller sends the pings."""

    __slots__ = ("_address", "_ask_at", "_fixed", "_suspect_at", "datagram_len_max")

    def __init__(self, address: Address, fixed: int | None) -> None:
        """`fixed` is a length that somebody has chosen: then nothing is asked and nothing changes.

        Raises ValueError for one that cannot be. An address without a route gets the usual length.
        """
        if fixed is not None:
            PathSearch(fixed)
        self._address = address
        self._fixed = fixed is not None
        self.datagram_len_max = fixed or self._usual()
        """UDP payload to send and to accept, in bytes."""
        self._ask_at = 0.0
        self._suspect_at = 0.0

    def _route_len(self) -> int:
        try:
            return route_len(self._address)
        except TransportError:
            return 0

    def _usual(self) -> int:
        """What an Ethernet frame carries, or less where the kernel knows of a smaller path."""
        usual = PAYLOAD_LEN_IPV6 if self._address.family == socket.AF_INET6 else PAYLOAD_LEN_IPV4
        return min(usual, self._route_len() or usual)

    def longer(self, now: float) -> list[int]:
        """Lengths worth a ping before long messages are sent; mostly none."""
        if self._fixed or now < self._ask_at:
            return []
        self._ask_at = now + _REFRESH_S
        route = self._route_len()
        if 0 < route < self.datagram_len_max:
            self.datagram_len_max = route
        jumbo = PAYLOAD_LEN_JUMBO if self._address.family == socket.AF_INET6 else 8972
        most = min(route, jumbo)
        if most <= self.datagram_len_max:
            return []
        lens = [length for length in _USUAL_LENS if self.datagram_len_max < length < most]
        return [*lens, most][-_PINGS_MAX:]

    def may_be_narrower(self, now: float) -> bool:
        """Whether losses may come from the path, and it was not asked a moment ago."""
        return (
            not self._fixed and self.datagram_len_max > PAYLOAD_LEN_SURE and now >= self._suspect_at
        )

    def suspects(self, now: float) -> list[int]:
        """Lengths to ping after losses of long datagrams: those that may have got through."""
        self._suspect_at = now + _SUSPECT_AGAIN_S
        shorter = [length for length in _USUAL_LENS if length < self.datagram_len_max]
        return [PAYLOAD_LEN_SURE, *shorter[1:][-2:], self.datagram_len_max]

    def passed(self, datagram_len: int, now: float) -> bool:
        """The longest ping that was answered; says whether that is news."""
        changed = datagram_len != self.datagram_len_max
        if changed:
            self.datagram_len_max = datagram_len
            self._ask_at = now + _REFRESH_S
        return changed

    def refused(self, now: float) -> bool:
        """The kernel does not send what it sent before: it knows of a narrower path now.

        Says whether that is so, and the length another one.
        """
        route = self._route_len()
        if self._fixed or not 0 < route < self.datagram_len_max:
            return False
        return self.passed(route, now)


class PathSearch:
    """Which datagram lengths to try: usual ones from the top, then halving between the last two."""

    __slots__ = ("_high", "_usual", "low")

    def __init__(self, datagram_len_max: int) -> None:
        if not PAYLOAD_LEN_MIN <= datagram_len_max <= PAYLOAD_LEN_MAX:
            raise ValueError(f"datagram_len_max must be 240 ... 65507, not {datagram_len_max}")
        self.low = PAYLOAD_LEN_MIN
        """Longest length known to pass; the first one is for the caller to try."""
        self._high = datagram_len_max + 1
        self._usual = [length for length in _SEARCHED_LENS if length < datagram_len_max]
        self._usual.append(datagram_len_max)

    @property
    def next_len(self) -> int | None:
        """The length to try next; None when `low` is the answer, to within eight bytes."""
        if self._usual:
            return self._usual[-1]
        return (self.low + self._high) // 2 if self._high - self.low > _PROBE_STEP else None

    def accept(self, datagram_len: int, passed: bool) -> None:
        if passed:
            self.low = datagram_len
            self._usual.clear()
        else:
            self._high = datagram_len
            if self._usual:
                self._usual.pop()
