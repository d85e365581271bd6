"""Address validation: what every server of PTK1 that has it does with cookies.

A server without it, or with a share of time for strangers that is used up, is not at fault: such
tests are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.conformance import peer
from tests.conformance.conftest import own_server
from tests.conformance.peer import HEADER, Peer, patched, request, texts
from tests.conformance.test_segments import NEED, long_message, segment

OK, CHALLENGE, BAD_COOKIE = (peer.VERDICTS[name] for name in ("ok", "challenge", "bad_cookie"))
# Two bytes a word, and with offsets ten or more in the reply for each.
WORDS = b"a b c d e f g h " * 10


@pytest.fixture(scope="module")
def where(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """The server that was named, or one of this project that validates addresses."""
    named = request.config.getoption("--ptk1-server", default=None)
    if named:
        yield request.getfixturevalue("address")
        return
    yield from own_server("--validate=on")


@pytest.fixture
def stranger(where: tuple[str, int]) -> Iterator[Peer]:
    with Peer(*where) as connected:
        yield connected


def with_cookie(datagram: bytes, cookie: bytes) -> bytes:
    return patched(datagram[:32] + cookie + datagram[32:], 3, datagram[3] | 1)


def refusal(asking: Peer, datagram: bytes) -> tuple[int, bytes]:
    """Verdict and payload of the answer, which is never longer than the datagram if it refuses."""
    for _ in range(peer.ATTEMPTS_MAX):
        asking.send(datagram)
        reply = asking.receive(0.5)
        while reply is not None and reply[8:16] != datagram[8:16]:
            reply = asking.receive(0.5)
        if reply is not None:
            assert reply[23] == OK or len(reply) <= len(datagram)
            return reply[23], reply[32:]
    raise AssertionError("no answer")


def ping(size: int = 64) -> bytes:
    return request("ping", bytes(size))


@pytest.fixture
def cookie(stranger: Peer) -> bytes:
    """A cookie of this source; the test is skipped where there are none."""
    verdict, payload = refusal(stranger, with_cookie(ping(), bytes(16)))
    if verdict == OK:
        pytest.skip("this server does not validate addresses")
    assert verdict == BAD_COOKIE and len(payload) == 16
    return payload


def test_a_cookie_is_repeated(stranger: Peer, cookie: bytes) -> None:
    """In whatever datagram, any number of times; the answer is that to the message alone."""
    asked = request("encode", texts([[b"Hello, world!"]]))
    verdict, payload = refusal(stranger, with_cookie(asked, cookie))
    assert verdict == OK and payload
    assert refusal(stranger, with_cookie(asked, cookie)) == (OK, payload)
    assert refusal(stranger, with_cookie(ping(), cookie)) == (OK, bytes(64))


def test_the_refusal_names_the_request(stranger: Peer, cookie: bytes) -> None:
    asked = with_cookie(ping(), bytes(16))
    verdict, payload = refusal(stranger, asked)
    assert verdict == BAD_COOKIE
    assert struct.unpack_from("<I", payload, 4)[0] == HEADER.unpack_from(asked)[4] & 0xFFFFFFFF


@pytest.mark.parametrize("at", range(16))
def test_every_byte_of_a_cookie_counts(stranger: Peer, cookie: bytes, at: int) -> None:
    wrong = patched(cookie, at, cookie[at] ^ 1)
    verdict, payload = refusal(stranger, with_cookie(ping(), wrong))
    assert verdict == BAD_COOKIE and len(payload) == 16
    assert refusal(stranger, with_cookie(ping(), payload))[0] == OK


def test_a_cookie_is_its_sources(where: tuple[str, int], stranger: Peer, cookie: bytes) -> None:
    """Another port is another source."""
    with Peer(*where) as other:
        verdict, payload = refusal(other, with_cookie(ping(), cookie))
        assert verdict == BAD_COOKIE and payload != cookie
        assert refusal(other, with_cookie(ping(), payload))[0] == OK
    assert refusal(stranger, with_cookie(ping(), cookie))[0] == OK


def test_a_stranger_gets_no_more_than_it_sent(stranger: Peer, cookie: bytes) -> None:
    """What would be longer is challenged, and answered to who repeats the cookie."""
    asked = request("encode", texts([[WORDS]], outputs=1, reply_len_max=1440))
    verdict, payload = refusal(stranger, asked)
    assert verdict == CHALLENGE and len(payload) == 16
    verdict, answer = refusal(stranger, with_cookie(asked, payload))
    assert verdict == OK and 32 + len(answer) > len(asked)


def test_a_strangers_segment_is_not_kept(stranger: Peer, cookie: bytes) -> None:
    """It is challenged; with the cookie it begins a message."""
    first = segment(long_message(), HEADER.unpack_from(ping())[4], 0, last=True)
    verdict, payload = refusal(stranger, first)
    if verdict == peer.VERDICTS["unsupported"]:
        pytest.skip("this server does not offer segments")
    assert verdict == CHALLENGE and len(payload) == 16
    stranger.send(with_cookie(first, payload))
    need = stranger.receive(2.0)
    assert need is not None and need[2] == NEED
    stranger.send(with_cookie(patched(first[:32], 2, 0x15, 0, 0, 0, 0, 0), payload))
