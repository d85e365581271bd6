"""What one socket of a client puts between header and message: a cookie, a tenant's code.

    seal = Seal(key)
    sock.send(seal.wrap(datagram))
    ...
    if (cookie := cookie_of(reply)) is not None:
        seal.learn(cookie)             # and send again

Nothing of it is known to those who build requests: a datagram is wrapped each time it is sent, so a
repeated one has a sequence number of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from typing import Final

from pintok import _wire
from pintok._codec import Reply
from pintok._wire import Verdict, WireFlags

COOKIE_LEN: Final = _wire.WIRE_COOKIE.size
MAC_LEN: Final = _wire.WIRE_MAC.size
CHALLENGES_MAX: Final = 4
"""Challenges that one request follows: more mean that the server cannot be pleased."""

_CODE_LEN: Final = 16
_NO_CODE: Final = bytes(_CODE_LEN)
_SECRET_LEN: Final = 32
_VERDICTS: Final = frozenset({int(Verdict.CHALLENGE), int(Verdict.BAD_COOKIE)})


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """A tenant's key: its number at the server, and 32 secret bytes.

    >>> Key.parse("7 " + "00" * 32).number
    7
    """

    number: int
    secret: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.number < 1 << 32:
            raise ValueError(f"the number of a key is from 0 to {(1 << 32) - 1}")
        if len(self.secret) != _SECRET_LEN:
            raise ValueError(f"a key has {_SECRET_LEN} bytes, not {len(self.secret)}")

    @classmethod
    def parse(cls, line: str) -> Key:
        """The key that a line of `pintok-server keys make` holds. Raises ValueError."""
        words = line.split()
        try:
            number, secret = int(words[0]), bytes.fromhex(words[1])
        except (ValueError, IndexError):
            raise ValueError("a key is a number, a space and 64 hexadecimal digits") from None
        if len(words) != 2:
            raise ValueError("a key is a number, a space and 64 hexadecimal digits")
        return cls(number, secret)


class Seal:
    """The state of one socket; used by one call at a time."""

    __slots__ = ("_cookie", "_key", "_sender", "_sequence")

    def __init__(self, key: Key | None = None) -> None:
        self._key = key
        self._cookie = b""
        self._sender = random.SystemRandom().getrandbits(32)
        # Above whatever an earlier process has sent: a server may remember that.
        self._sequence = time.time_ns() // 1000

    def learn(self, cookie: bytes) -> None:
        """Repeat this cookie from now on."""
        self._cookie = cookie

    @property
    def length(self) -> int:
        """Bytes that `wrap` adds now."""
        return len(self._cookie) + (MAC_LEN if self._key is not None else 0)

    def wrap(self, datagram: bytes) -> bytes:
        """The datagram as it is sent: up to `room_of` bytes longer."""
        if self._key is None and not self._cookie:
            return datagram
        flags = datagram[3]
        if self._cookie:
            flags |= WireFlags.COOKIE
        if self._key is None:
            return b"".join(
                (datagram[:3], bytes((flags,)), datagram[4:32], self._cookie, datagram[32:])
            )
        self._sequence += 1
        head = b"".join(
            (
                datagram[:3],
                bytes((flags | WireFlags.MAC,)),
                datagram[4:32],
                self._cookie,
                _wire.WIRE_MAC.pack(self._key.number, self._sender, self._sequence, _NO_CODE),
            )
        )
        code = hashlib.blake2b(head, key=self._key.secret, digest_size=_CODE_LEN)
        code.update(datagram[32:])
        return b"".join((head[:-_CODE_LEN], code.digest(), datagram[32:]))


def room_of(key: Key | None) -> int:
    """Bytes of a datagram that a request must leave free for its seal."""
    return COOKIE_LEN + (MAC_LEN if key is not None else 0)


def cookie_of(reply: Reply) -> bytes | None:
    """The cookie to repeat, when a reply is a refusal that asks for one; else None.

    Zeros where there was no room for it: they are refused with one.
    """
    if reply.verdict not in _VERDICTS:
        return None
    return bytes(reply.message) if len(reply.message) == COOKIE_LEN else bytes(COOKIE_LEN)
