"""How long datagrams may be is found out: wider paths are used, narrower ones survived."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")

from pintok import Client, DeadlineError, Key, Tokenizer
from pintok._path import PAYLOAD_LEN_SURE, Address, PathState
from pintok_server import vocab
from tests.datapath_process import HOST, PROGRAM, datapath
from tests.lossy_link import Faults, LossyLink
from tests.unit.byte_server import serving
from tests.unit.driven import DrivenClient

TEXT = "Größe matters: 日本語, one two three. " * 800
Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    if not PROGRAM.exists():
        pytest.skip("ptk-datapath is not built")
    with datapath({"default": vocab.load_image("default").path}) as number:
        yield number


@pytest.fixture
def link(port: int) -> Iterator[LossyLink]:
    with LossyLink((HOST, port), Faults(), 1) as between:
        yield between


@pytest.fixture(params=[Client, DrivenClient], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    def make(port: int, **settings: Any) -> Any:
        return request.param(HOST, port, **{"timeout": 60.0, "retry_after": 0.05, **settings})

    return make


def test_a_wider_path_is_used_by_itself(
    link: LossyLink, connect: Connect, tokenizer: Tokenizer
) -> None:
    """Short texts ask nothing; the first long one costs a few pings, the others none."""
    wanted = tokenizer.encode(TEXT)
    with connect(link.port, retry_after=1.0) as client:  # Patient with pings on a busy machine.
        client.encode("short")
        assert client.datagram_len_max == 1472 and client.counters.probed == 0
        assert np.array_equal(client.encode(TEXT), wanted)
        assert client.datagram_len_max == 8972
        asked = client.counters.probed
        assert 1 <= asked <= 4
        assert np.array_equal(client.encode(TEXT), wanted)
        assert client.counters.probed == asked


def test_pings_that_are_lost_leave_the_usual_length(
    link: LossyLink, connect: Connect, tokenizer: Tokenizer
) -> None:
    """The first link carries more than the path: nothing but the pings is lost."""
    link.longest = 1500
    with connect(link.port) as client:
        assert np.array_equal(client.encode(TEXT), tokenizer.encode(TEXT))
        assert client.datagram_len_max == 1472
        asked = client.counters.probed
        assert client.count(TEXT) == tokenizer.count(TEXT)
        assert client.counters.probed == asked <= 4


@pytest.mark.parametrize("longest", [4100, 1480, 1400, 1232])
def test_a_path_that_becomes_narrower_is_survived(
    link: LossyLink, connect: Connect, tokenizer: Tokenizer, longest: int
) -> None:
    """Long datagrams vanish, as where routers do not say: every answer is exact all the same."""
    wanted = tokenizer.encode(TEXT)
    with connect(link.port) as client:
        assert np.array_equal(client.encode(TEXT), wanted)
        link.longest = longest
        assert np.array_equal(client.encode(TEXT), wanted)
        assert PAYLOAD_LEN_SURE <= client.datagram_len_max <= longest
        assert client.counters.probed <= 12
        texts = [TEXT[at : at + 700] for at in range(0, 14000, 700)]
        batch = client.encode_batch(texts)
        assert np.array_equal(batch.ids, tokenizer.encode_batch(texts).ids)
        assert client.counters.probed <= 12


def test_replies_that_vanish_say_the_same(
    link: LossyLink, connect: Connect, tokenizer: Tokenizer
) -> None:
    """Ids are short and their text is long: it is the reply that does not get through."""
    longest = max(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.decode([i])))
    ids = [longest] * 400
    with connect(link.port) as client:
        link.longest = 1300
        assert client.decode(ids) == tokenizer.decode(ids)
        assert client.datagram_len_max == PAYLOAD_LEN_SURE


def test_a_length_that_was_chosen_stays(link: LossyLink, connect: Connect) -> None:
    """Then nobody is asked, and what does not get through is an error in its time."""
    link.longest = 1300
    with connect(link.port, datagram_len_max=1472, timeout=0.6) as client:
        with pytest.raises(DeadlineError):
            client.encode(TEXT)
        assert client.datagram_len_max == 1472
        assert client.counters.probed == 0


def test_silence_is_not_taken_for_a_narrow_path(connect: Connect) -> None:
    """A server that says nothing costs a few pings in ten seconds, not a few for every call."""
    with serving() as server:
        server.script = lambda request, reply, number: []
        with connect(server.port, timeout=0.4) as client:
            for _ in range(3):
                with pytest.raises(DeadlineError):
                    client.encode("x" * 1000)
            assert client.datagram_len_max == 1472
            assert client.counters.probed <= 4


# --- the state alone, with a clock that the test moves --------------------------------------------


@pytest.fixture
def route(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the kernel says of the first link; the test may change it."""
    known = [1472]
    monkeypatch.setattr("pintok._path.route_len", lambda address: known[0])
    return known


def state(fixed: int | None = None) -> PathState:
    return PathState(Address(socket.AF_INET, ("192.0.2.1", 7265), "192.0.2.1:7265"), fixed)


def test_nothing_is_asked_where_the_first_link_is_usual(route: list[int]) -> None:
    path = state()
    assert path.longer(0.0) == []
    route[0] = 8972
    assert path.longer(299.0) == []  # The kernel was asked a moment ago.
    assert path.longer(301.0) == [4048, 8972]
    assert path.longer(302.0) == []
    path.passed(8972, 302.0)
    assert path.datagram_len_max == 8972


def test_a_path_that_was_narrow_is_tried_again_after_minutes(route: list[int]) -> None:
    path = state()
    assert path.may_be_narrower(0.0)
    assert path.suspects(0.0) == [1232, 1392, 1452, 1472]
    assert not path.may_be_narrower(9.0) and path.may_be_narrower(11.0)
    assert path.passed(1232, 11.0)
    assert not path.may_be_narrower(30.0)  # No path is narrower.
    assert path.longer(310.0) == []
    assert path.longer(312.0) == [1392, 1452, 1472]


@pytest.mark.parametrize("mtu", [1500, 1280, 9000, 65535])
def test_pings_are_few_whatever_the_length(route: list[int], mtu: int) -> None:
    route[0] = mtu - 28
    path = state()
    assert path.datagram_len_max == min(mtu, 1500) - 28
    assert len(path.longer(0.0)) <= 4
    path.passed(min(mtu - 28, 8972), 0.0)
    suspects = path.suspects(1.0)
    assert len(suspects) <= 4
    assert suspects == sorted(suspects) and suspects[-1] == path.datagram_len_max


def test_what_the_kernel_hears_of_is_used_at_once(route: list[int]) -> None:
    """A router has said how narrow it is, or the first link was changed."""
    path = state()
    assert not path.refused(0.0)
    route[0] = 1372
    assert path.refused(0.0)
    assert path.datagram_len_max == 1372
    fixed = state(1472)
    assert not fixed.refused(0.0) and fixed.longer(0.0) == [] and not fixed.may_be_narrower(0.0)
    assert fixed.datagram_len_max == 1472


def test_a_ping_is_as_long_as_it_says(connect: Connect) -> None:
    """Cookie and code included: what a probe says of the path is true of what is then sent."""
    cookie = bytes(range(16))

    def challenge(request: bytes, reply: bytes, number: int) -> list[bytes]:
        if number > 0:
            return [reply]
        return [reply[:3] + b"\x01" + bytes(4) + reply[8:23] + bytes([19]) + bytes(8) + cookie]

    for key, flags in ((None, 1), (Key(7, bytes(32)), 3)):
        with serving() as server:
            server.script = challenge
            with connect(server.port, key=key) as client:
                assert client.ping(datagram_len=600) > 0
                first, second = server.received
                assert len(first) == len(second) == 600
                assert second[3] == flags and second[32:48] == cookie
