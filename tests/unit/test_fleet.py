"""Several servers as one: who is asked, what happens when one is gone or late."""

from __future__ import annotations

import collections
import socket
import time
from collections.abc import Iterator

import pytest

from pintok.errors import RefusedError, TransportError
from pintok.fleet import Fleet
from tests.unit.byte_server import ByteServer, serving


@pytest.fixture
def servers() -> Iterator[list[ByteServer]]:
    with serving() as first, serving() as second, serving() as third:
        yield [first, second, third]


def names(servers: list[ByteServer]) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in servers]


def test_only_the_texts_of_a_lost_server_move() -> None:
    """The property that rendezvous hashing is chosen for, and an even share for each."""
    all_of_them = [f"127.0.0.1:{port}" for port in (7001, 7002, 7003, 7004)]
    with Fleet(all_of_them) as whole, Fleet(all_of_them[:-1]) as rest:
        share: collections.Counter[str] = collections.Counter()
        for number in range(2000):
            before, after = whole.order(f"text {number}"), rest.order(f"text {number}")
            assert [name for name in before if name != all_of_them[-1]] == after
            share[before[0]] += 1
    assert min(share.values()) > 400


def test_answers_and_failing_over(servers: list[ByteServer]) -> None:
    """A server that is silent is passed over, and then asked last for a while."""
    with Fleet(names(servers), timeout=0.3, retries=1, retry_after=0.05) as fleet:
        order = fleet.order("abc")
        silent = servers[names(servers).index(order[0])]
        silent.script = lambda request, reply, number: []
        assert fleet.encode("abc", add_special_tokens=False).tolist() == [97, 98, 99]
        assert fleet.order("abc") == [*order[1:], order[0]]
        begin = time.monotonic()
        assert fleet.count("abc", add_special_tokens=False) == 3
        assert time.monotonic() - begin < 0.25
        ids = fleet.encode("xyz", add_special_tokens=False)
        assert fleet.decode(ids) == "xyz"


def test_hedging_does_not_wait_for_the_late_one(servers: list[ByteServer]) -> None:
    """The second server answers long before the first one's deadline."""
    with Fleet(names(servers), hedge_after=0.03, timeout=1.0, retries=1, retry_after=0.4) as fleet:
        late = servers[names(servers).index(fleet.order("abc")[0])]
        late.script = lambda request, reply, number: []
        begin = time.monotonic()
        assert fleet.encode("abc", add_special_tokens=False).tolist() == [97, 98, 99]
        assert time.monotonic() - begin < 0.6


def test_errors_have_names(servers: list[ByteServer]) -> None:
    """A refusal is final, another model is refused, and all silent is a transport error."""
    with Fleet(names(servers)) as fleet, pytest.raises(RefusedError) as info:
        fleet.encode(b"\xff")
    assert info.value.code == "bad_utf8"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for hedge_after in (None, 0.02):
            with (
                Fleet([address], timeout=0.1, retries=0, hedge_after=hedge_after) as fleet,
                pytest.raises(TransportError),
            ):
                fleet.encode("a")
    with pytest.raises(ValueError, match="different"):
        Fleet(["a", "a"])
