"""The way to a server: its address, a connected socket, what the path carries."""

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

# From linux/in.h and linux/in6.h; the socket module of Python 3.11 has no names for them.
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_PMTUDISC_DO: Final = 2
_PMTUDISC_PROBE: Final = 3


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
    """A connected UDP socket that never fragments. Raises TransportError.

    With `probe`, the kernel's idea of the path MTU is not applied to what is sent.
    """
    sock = socket.socket(address.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
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


def payload_len(address: Address, sock: socket.socket) -> int:
    """The UDP payload to count on for a connected socket without asking the path.

    What an Ethernet frame carries, or less where the kernel knows of a smaller path.
    """
    if address.family == socket.AF_INET6:
        known = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - 48
        return max(min(PAYLOAD_LEN_IPV6, known), PAYLOAD_LEN_MIN)
    known = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) - 28
    return max(min(PAYLOAD_LEN_IPV4, known), PAYLOAD_LEN_MIN)
