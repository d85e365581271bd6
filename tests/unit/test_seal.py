"""What the clients add to datagrams is what WIRE.md says, and a challenge is followed."""

from __future__ import annotations

import hashlib
import struct

import pytest

from pintok import Key, _codec, _wire
from pintok._codec import Target
from pintok._seal import COOKIE_LEN, MAC_LEN, Seal, cookie_of, room_of
from pintok._wire import Verdict, WireOp

KEY = Key(7, bytes(range(32)))
PLAIN = _codec.build_message(WireOp.PING, Target(), 42, b"twelve bytes")
COOKIE = bytes(range(100, 100 + COOKIE_LEN))


def test_without_cookie_and_key_nothing_is_added() -> None:
    assert Seal().wrap(PLAIN) is PLAIN
    assert room_of(None) == COOKIE_LEN and room_of(KEY) == COOKIE_LEN + MAC_LEN


def test_a_cookie_stands_behind_the_header() -> None:
    seal = Seal()
    seal.learn(COOKIE)
    wrapped = seal.wrap(PLAIN)
    assert wrapped[:3] == PLAIN[:3] and wrapped[3] == PLAIN[3] | 1
    assert wrapped[4:32] == PLAIN[4:32]
    assert wrapped[32:] == COOKIE + PLAIN[32:]


@pytest.mark.parametrize("cookie", [b"", COOKIE])
def test_a_code_covers_the_datagram_with_itself_zero(cookie: bytes) -> None:
    seal = Seal(KEY)
    seal.learn(cookie)
    sequences = []
    for _ in range(3):
        wrapped = seal.wrap(PLAIN)
        off = 32 + len(cookie)
        number, _sender, sequence, code = _wire.WIRE_MAC.unpack_from(wrapped, off)
        blank = wrapped[: off + 16] + bytes(16) + wrapped[off + 32 :]
        expected = hashlib.blake2b(blank, key=KEY.secret, digest_size=16).digest()
        assert (number, code) == (7, expected)
        assert wrapped[3] == (3 if cookie else 2)
        assert wrapped[off + 32 :] == PLAIN[32:]
        sequences.append(sequence)
    assert sequences == sorted(set(sequences))
    assert sequences[0] > 1_700_000_000_000_000  # Microseconds since 1970.


def test_senders_differ() -> None:
    assert len({Seal(KEY).wrap(PLAIN)[36:40] for _ in range(8)}) == 8


def refusal(verdict: int, flags: int, tail: bytes) -> bytes:
    head = bytearray(PLAIN[:32])
    head[2], head[3], head[23] = 0x12, flags, verdict
    head[4:8] = struct.pack("<I", 0)
    return bytes(head) + tail


@pytest.mark.parametrize("verdict", [Verdict.CHALLENGE, Verdict.BAD_COOKIE])
def test_the_cookie_of_a_refusal_is_found(verdict: Verdict) -> None:
    reply = _codec.parse_reply(refusal(verdict, 1, COOKIE), WireOp.PING)
    assert reply is not None and cookie_of(reply) == COOKIE
    short = _codec.parse_reply(refusal(verdict, 0, b""), WireOp.PING)
    assert short is not None and cookie_of(short) == bytes(COOKIE_LEN)
    assert _codec.parse_reply(refusal(verdict, 1, COOKIE[:-1]), WireOp.PING) is None
    assert _codec.parse_reply(refusal(verdict, 1, b""), WireOp.PING) is None


def test_other_refusals_carry_none() -> None:
    assert _codec.parse_reply(refusal(Verdict.BUSY, 1, COOKIE), WireOp.PING) is None
    reply = _codec.parse_reply(refusal(Verdict.BUSY, 0, b""), WireOp.PING)
    assert reply is not None and cookie_of(reply) is None


@pytest.mark.parametrize("line", ["", "7", "7 00", "x " + "00" * 32, "7 " + "00" * 32 + " 1"])
def test_a_key_is_read_strictly(line: str) -> None:
    with pytest.raises(ValueError):
        Key.parse(line)
    assert "00" * 8 not in repr(Key.parse("7 " + "00" * 32))
