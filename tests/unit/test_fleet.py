"""Several servers as one: who is asked, what happens when one is gone or late."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pintok import (
    AsyncFleet,
    Client,
    DeadlineError,
    DecodeStream,
    Fleet,
    RefusedError,
    TransportError,
)
from tests.datapath_process import HOST, PROGRAM, datapath
from tests.unit.byte_server import ByteServer, Model, serving
from tests.unit.driven import DrivenFleet

SILENT: Any = lambda request, reply, number: []  # noqa: E731
Connect = Callable[..., Any]


@pytest.fixture
def servers() -> Iterator[list[ByteServer]]:
    with serving() as first, serving() as second, serving() as third:
        yield [first, second, third]


@pytest.fixture(params=[Fleet, DrivenFleet], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a fleet of one kind: `with connect(servers) as fleet`."""

    def make(servers: list[ByteServer], **settings: Any) -> Any:
        return request.param(names(servers), **{"timeout": 20.0, **settings})

    return make


def names(servers: list[ByteServer]) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in servers]


def named(servers: list[ByteServer], name: str) -> ByteServer:
    return servers[names(servers).index(name)]


def refusing(verdict: int) -> Any:
    """The script of a server that refuses everything."""

    def script(request: bytes, reply: bytes, number: int) -> list[bytes]:
        return [reply[:4] + bytes(4) + reply[8:23] + bytes([verdict]) + bytes(8)]

    return script


def bytes_of(ids: Any) -> str:
    return bytes(ids.astype(np.uint8)).decode()


# --- who is asked ---------------------------------------------------------------------------------


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


def test_every_call_goes_where_its_text_belongs(
    servers: list[ByteServer], connect: Connect
) -> None:
    """Whatever is asked, the first choice answers, and nobody else hears of it."""
    calls: list[Callable[[Any], Any]] = [
        lambda fleet: fleet.encode("abc"),
        lambda fleet: fleet.encode_full("abc"),
        lambda fleet: fleet.encode_plain("abc", []),
        lambda fleet: fleet.count("abc"),
        lambda fleet: fleet.encode_batch(["abc"]),
        lambda fleet: fleet.encode_each(["abc"]),
        lambda fleet: fleet.count_batch(["abc", "abc"]),
    ]
    with connect(servers) as fleet:
        first = named(servers, fleet.order("abc")[0])
        for call in calls:
            call(fleet)
        assert len(first.received) >= len(calls)
        assert sum(len(server.received) for server in servers) == len(first.received)
        assert fleet.counters.hedged == fleet.counters.moved == 0
        sent = {name: counters.sent for name, counters in fleet.counters.servers.items()}
        assert sent[fleet.order("abc")[0]] == len(calls)


def test_batches_are_split_and_put_together(servers: list[ByteServer], connect: Connect) -> None:
    """Each server gets the texts whose first choice it is, and results stand in their places."""
    texts = [f"text {number}" for number in range(300)]
    with connect(servers) as fleet:
        batch = fleet.encode_batch(texts, add_special_tokens=False)
        assert [bytes_of(ids) for ids in batch] == texts
        assert fleet.count_batch(texts, add_special_tokens=False) == [len(t) for t in texts]
        assert fleet.decode_batch([list(text.encode()) for text in texts]) == texts
        pairs = [(text, "b") if number % 3 else text for number, text in enumerate(texts)]
        full = fleet.encode_batch_full(pairs, add_special_tokens=False)
        assert [bytes_of(one.ids) for one in full] == [
            "".join(pair) if isinstance(pair, tuple) else pair for pair in pairs
        ]
        assert fleet.encode_batch([]).ids.tolist() == []
        for server in servers:
            asked = b"".join(server.received)
            mine = [text for text in texts if named(servers, fleet.order(text)[0]) is server]
            assert len(mine) > 40 and all(text.encode() in asked for text in mine)


def test_a_refusal_in_a_batch_is_named_by_its_place(
    servers: list[ByteServer], connect: Connect
) -> None:
    """The place in the caller's list, not in the share of a server."""
    texts: list[str | bytes] = [f"text {number}" for number in range(50)]
    texts[37] = b"\xff"
    with connect(servers) as fleet:
        with pytest.raises(RefusedError, match="item 37"):
            fleet.encode_batch(texts)
        outcomes = fleet.encode_each(texts)
        assert [outcome.verdict for outcome in outcomes] == [
            10 if n == 37 else 0 for n in range(50)
        ]


def test_streams_run_over_a_fleet(servers: list[ByteServer]) -> None:
    """A stream's state is the caller's, so each step may go to another server."""
    with Fleet(names(servers), timeout=20.0) as fleet:
        stream = fleet.decode_stream()
        assert isinstance(stream, DecodeStream)
        chunks = [stream.step(byte) for byte in b"hello~"]
        assert "".join(chunk or "" for chunk in chunks) + stream.flush() == "hello~"

    async def main() -> None:
        async with AsyncFleet(names(servers), timeout=20.0) as fleet:
            stream = fleet.decode_stream()
            chunks = [await stream.step(byte) for byte in b"hello~"]
            assert "".join(chunk or "" for chunk in chunks) + await stream.flush() == "hello~"

    asyncio.run(main())


def test_the_server_is_described(servers: list[ByteServer], connect: Connect) -> None:
    """Any server may say it; one that is gone is passed over."""
    servers[0].script = SILENT
    with connect(servers, timeout=2.0) as fleet:
        assert fleet.info().name == "byte-level"
        assert [info.model_id for info in fleet.models()] == [0, 1, 2]
        assert fleet.file_settings().padding is None
        assert set(fleet.clients) == set(names(servers))


# --- one is gone ----------------------------------------------------------------------------------


def test_a_silent_server_is_passed_over_and_then_asked_last(
    servers: list[ByteServer], connect: Connect
) -> None:
    """Within the time of one call; the calls after it do not wait."""
    with connect(servers, timeout=4.5, retries=1) as fleet:
        order = fleet.order("abc")
        silent = named(servers, order[0])
        silent.script = SILENT
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        heard = len(silent.received)
        assert fleet.order("abc") == [*order[1:], order[0]]
        assert fleet.count("abc", add_special_tokens=False) == 3
        assert len(silent.received) == heard
        assert fleet.counters.moved == 1


def test_a_server_that_is_back_is_asked_again(servers: list[ByteServer], connect: Connect) -> None:
    """After its pause one call tries it, and with the answer everything is as before."""
    with connect(servers, timeout=4.5, retries=1) as fleet:
        order = fleet.order("abc")
        first = named(servers, order[0])
        first.script = SILENT
        fleet.encode("abc")
        first.script = lambda request, reply, number: [reply]
        deadline = time.monotonic() + 20.0
        while fleet.order("abc") != order:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        heard = len(first.received)
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        assert len(first.received) > heard
        assert fleet.order("abc") == order


def test_a_closed_port_is_left_at_once(servers: list[ByteServer], connect: Connect) -> None:
    """As after a drain: nobody listens, which the kernel says, so nobody waits for the deadline."""
    with connect(servers, timeout=600.0, retry_after=100.0) as fleet:
        named(servers, fleet.order("abc")[0]).stop()
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        texts = [f"text {number}" for number in range(60)]
        batch = fleet.encode_batch(texts, add_special_tokens=False)
        assert [bytes_of(ids) for ids in batch] == texts


def test_the_share_of_a_failing_server_goes_to_the_next(
    servers: list[ByteServer], connect: Connect
) -> None:
    """What it has answered before stays; the rest is asked elsewhere, and all of it is right."""
    texts = [f"{number:>300}" for number in range(120)]
    with connect(servers, timeout=4.5, retries=1, window=2) as fleet:
        failing = named(servers, fleet.order(texts[0])[0])
        failing.script = lambda request, reply, number: [reply] if number < 3 else []
        assert fleet.count_batch(texts, add_special_tokens=False) == [300] * 120
        assert fleet.counters.moved == 1
        answered = {text for text in texts if text.encode() in b"".join(failing.received[:3])}
        assert answered
        for server in servers:
            if server is not failing:
                asked = b"".join(server.received)
                assert not any(text.encode() in asked for text in answered)


@pytest.mark.parametrize("verdict", [17, 22], ids=["busy", "rate_limited"])
def test_a_server_without_room_is_left_for_another(
    servers: list[ByteServer], connect: Connect, verdict: int
) -> None:
    """At once; it says nothing about the others, and it is not down."""
    with connect(servers, timeout=600.0, retry_after=200.0) as fleet:
        order = fleet.order("abc")
        named(servers, order[0]).script = refusing(verdict)
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        assert fleet.order("abc") == order
        texts = [f"text {number}" for number in range(60)]
        assert fleet.count_batch(texts, add_special_tokens=False) == [len(t) for t in texts]


def test_a_fleet_without_room_says_so(servers: list[ByteServer], connect: Connect) -> None:
    """The last server is asked until the time is over, and its refusal is the reason."""
    for server in servers:
        server.script = refusing(17)
    with connect(servers, timeout=1.5, retry_after=0.05) as fleet:
        with pytest.raises(RefusedError) as info:
            fleet.encode("abc")
        assert info.value.code == "busy" and info.value.retryable
        last = named(servers, fleet.order("abc")[-1])
        assert len(last.received) > 1 and all(server.received for server in servers)


def test_all_attempts_share_one_deadline(servers: list[ByteServer], connect: Connect) -> None:
    """Three silent servers do not take three times as long as one."""
    for server in servers:
        server.script = SILENT
    for hedge_after in (None, 0.05):
        with connect(servers, timeout=1.0, retries=2, hedge_after=hedge_after) as fleet:
            begin = time.monotonic()
            with pytest.raises(DeadlineError):
                fleet.encode("abc")
            assert 0.95 < time.monotonic() - begin < 2.9  # Three deadlines are 3 s.
    assert all(server.received for server in servers)


def test_errors_have_names(servers: list[ByteServer], connect: Connect) -> None:
    """A refusal is final, another model is refused, and nobody there is an error in time."""
    with connect(servers, retry_after=5.0) as fleet:
        with pytest.raises(RefusedError) as info:
            fleet.encode(b"\xff")
        assert info.value.code == "bad_utf8"
        assert sum(len(server.received) for server in servers) == 1
    for server in servers:
        server.stop()
    for hedge_after in (None, 0.02):
        with (
            connect(servers, timeout=0.2, retries=0, hedge_after=hedge_after) as fleet,
            pytest.raises(TransportError),
        ):
            fleet.encode("a")


def test_all_servers_must_hold_one_model(servers: list[ByteServer], connect: Connect) -> None:
    """The first answer decides, and the other model is named, until it is accepted."""
    servers[1].engine.models[0] = Model(0, 0x99999999)
    texts = [f"text {number}" for number in range(30)]
    with connect(servers) as fleet:
        with pytest.raises(RefusedError, match="another model than the others") as info:
            for text in texts:
                fleet.encode(text)
        assert info.value.code == "model_changed"
        for server in servers:
            server.engine.models[0] = Model(0, 0x77777777)
        fleet.accept_model()
        for text in texts:
            fleet.encode(text)
        assert fleet.model_tag == 0x77777777


@pytest.mark.parametrize("kind", [Fleet, AsyncFleet])
@pytest.mark.parametrize("hosts", [["a", "a"], []])
def test_servers_differ_and_are_there(kind: Any, hosts: list[str]) -> None:
    with pytest.raises(ValueError, match="different"):
        kind(hosts)


@pytest.mark.parametrize("kind", [Fleet, AsyncFleet])
@pytest.mark.parametrize("settings", [{"hedge_after": 0}, {"retry_share": 1.5}, {"timeout": 0}])
def test_impossible_settings_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        kind(["127.0.0.1"], **settings)


# --- one is late ----------------------------------------------------------------------------------


def test_hedging_does_not_wait_for_the_late_one(
    servers: list[ByteServer], connect: Connect
) -> None:
    """The second server answers; the first one would have had ten minutes."""
    with connect(servers, hedge_after=0.02, timeout=600.0, retry_after=200.0) as fleet:
        order = fleet.order("abc")
        late = named(servers, order[0])
        late.script = SILENT
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        assert fleet.counters.hedged == 1 and fleet.counters.moved == 0
        assert fleet.order("abc") == order  # Late once is not down,
        fleet.encode("abc")
        fleet.encode("abc")
        assert fleet.order("abc")[-1] == order[0]  # late three times in a row is.


def test_batches_are_hedged_too(servers: list[ByteServer], connect: Connect) -> None:
    """Each share on its own; the late server's answers so far are not asked for again."""
    texts = [f"{number:>300}" for number in range(120)]
    with connect(
        servers, hedge_after=0.1, timeout=600.0, retry_after=200.0, window=2, datagram_len_max=1472
    ) as fleet:
        late = named(servers, fleet.order(texts[0])[0])
        late.script = lambda request, reply, number: [reply] if number < 3 else []
        assert fleet.count_batch(texts, add_special_tokens=False) == [300] * 120
        assert fleet.counters.hedged >= 1


def test_a_fast_server_is_not_hedged(servers: list[ByteServer], connect: Connect) -> None:
    """Nobody else is asked while the first one is in time."""
    with connect(servers, hedge_after=600.0, timeout=700.0, retry_after=60.0) as fleet:
        for number in range(20):
            fleet.encode(f"text {number}")
        assert fleet.counters.hedged == 0
        assert sum(len(server.received) for server in servers) == 20


def test_hedges_have_a_budget(servers: list[ByteServer], connect: Connect) -> None:
    """Where all are late, asking everything twice would make them later."""

    def late(request: bytes, reply: bytes, number: int) -> list[bytes]:
        time.sleep(0.002)
        return [reply]

    for server in servers:
        server.script = late
    with connect(servers, hedge_after=1e-6, retry_share=0.0, timeout=600.0) as fleet:
        begin = time.monotonic()
        for number in range(2000):
            fleet.encode(f"text {number}")
            if fleet.counters.withheld > 0:
                break
        assert 0 < fleet.counters.hedged <= 100 + 10 * (time.monotonic() - begin) + 1
        assert fleet.counters.withheld > 0


def test_an_answer_that_comes_after_the_hedge_counts(
    servers: list[ByteServer], connect: Connect
) -> None:
    """Both run: the first server is late, the second silent, and the late answer is the one."""
    held: list[bytes] = []
    with connect(servers[:2], hedge_after=0.02, timeout=600.0, retry_after=0.1) as fleet:
        order = fleet.order("abc")
        named(servers, order[1]).script = SILENT

        def late(request: bytes, reply: bytes, number: int) -> list[bytes]:
            held.append(reply)
            return [reply] if named(servers, order[1]).received else []

        named(servers, order[0]).script = late
        assert bytes_of(fleet.encode("abc", add_special_tokens=False)) == "abc"
        assert fleet.counters.hedged == 1 and len(held) >= 1


# --- sharing --------------------------------------------------------------------------------------


def test_threads_share_a_fleet(servers: list[ByteServer]) -> None:
    """Eight threads, one server dies in between: each gets its own answers."""
    failures: list[str] = []
    with Fleet(names(servers), timeout=30.0, hedge_after=0.5) as fleet:

        def work(name: str) -> None:
            try:
                for number in range(60):
                    text = f"{name}-{number}"
                    if bytes_of(fleet.encode(text, add_special_tokens=False)) != text:
                        failures.append(text)
                    if name == "t0" and number == 20:
                        servers[0].stop()
            except Exception as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("hedge_after", [None, 0.5])
def test_child_of_fork_gets_its_own_answers(
    servers: list[ByteServer], hedge_after: float | None
) -> None:
    """Parent and child ask at the same time, and no request of theirs has the same number."""
    with Fleet(names(servers), timeout=30.0, hedge_after=hedge_after) as fleet:
        fleet.encode("before")
        child = os.fork()
        if child == 0:
            try:
                well = all(
                    bytes_of(fleet.encode(f"c{n}", add_special_tokens=False)) == f"c{n}"
                    for n in range(60)
                )
            finally:
                os._exit(0 if well else 1)
        for number in range(60):
            assert bytes_of(fleet.encode(f"p{number}", add_special_tokens=False)) == f"p{number}"
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    texts: dict[int, set[bytes]] = collections.defaultdict(set)
    for server in servers:
        for request in server.received:
            texts[struct.unpack_from("<Q", request, 8)[0]].add(request[48:])
    assert all(len(of_one) == 1 for of_one in texts.values())


def test_cancelled_races_leave_nothing(servers: list[ByteServer]) -> None:
    """Neither a task nor a request that still waits."""
    for server in servers:
        server.script = SILENT

    async def main() -> None:
        async with AsyncFleet(names(servers), timeout=600.0, hedge_after=0.01) as fleet:
            texts = [f"text {number}" for number in range(30)]
            call = asyncio.ensure_future(fleet.encode_batch(texts))
            while fleet.counters.hedged < 3:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert len(asyncio.all_tasks()) == 1
            for client in fleet.clients.values():
                assert client._link is not None and not client._link.talks

    asyncio.run(main())


def test_a_client_of_a_fleet_is_a_client(servers: list[ByteServer]) -> None:
    """What concerns one server is asked of its client."""
    with Fleet(names(servers), timeout=20.0) as fleet:
        for name, client in fleet.clients.items():
            assert isinstance(client, Client) and client.address.text == name
            assert client.ping() > 0


# --- real servers ---------------------------------------------------------------------------------


@pytest.mark.skipif(not PROGRAM.exists(), reason="ptk-datapath is not built")
def test_a_server_that_is_drained_under_load_costs_no_call() -> None:
    """It answers what it has got and closes its port; whoever comes then goes to the other one."""
    pytest.importorskip("pintok._native", reason="the native core is not built")
    from pintok import Tokenizer
    from pintok_server import vocab

    tokenizer = Tokenizer.from_pretrained("default")
    image = vocab.load_image("default").path
    texts = [f"text {number} of many, " * (1 + number % 120) for number in range(240)]
    wanted = [tokenizer.encode(text) for text in texts]
    failures: list[str] = []
    answered = [0, 0]
    stopping = threading.Event()

    def blocking() -> None:
        with Fleet(addresses, timeout=60.0, retry_after=0.05) as fleet:
            while not stopping.is_set():
                at = answered[0] % len(texts)
                if not np.array_equal(fleet.encode(texts[at]), wanted[at]):
                    failures.append(texts[at])
                answered[0] += 1

    async def waiting() -> None:
        async with AsyncFleet(addresses, timeout=60.0, retry_after=0.05) as fleet:
            while not stopping.is_set():
                batch = await fleet.encode_batch(texts)
                if not all(np.array_equal(*pair) for pair in zip(batch, wanted, strict=True)):
                    failures.append("a batch")
                answered[1] += 1

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failures.append(repr(error))

    with contextlib.ExitStack() as first, datapath({"default": image}) as other:
        addresses = [f"{HOST}:{first.enter_context(datapath({'default': image}))}"]
        addresses.append(f"{HOST}:{other}")
        threads = [
            threading.Thread(target=guarded, args=(work,))
            for work in (blocking, lambda: asyncio.run(waiting()))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):  # with both servers, then with one
                before = list(answered)
                deadline = time.monotonic() + 60.0
                while not failures and not (
                    answered[0] > before[0] + 240 and answered[1] > before[1] + 2
                ):
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                first.close()
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    assert not failures
