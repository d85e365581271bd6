"""Both clients against a server whose network is spoiled on purpose: every case runs on each."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pintok import (
    AsyncClient,
    Client,
    DeadlineError,
    Key,
    RefusedError,
    TransportError,
    Truncation,
)
from pintok._path import parse_server
from pintok.client import Strand
from tests.unit.byte_server import HEADER, ByteServer, Model, serving
from tests.unit.driven import DrivenClient

FAST = {"retry_after": 0.02, "timeout": 2.0}


@pytest.fixture
def server() -> Iterator[ByteServer]:
    with serving() as running:
        yield running


Connect = Callable[..., Any]


def wait_until(condition: Callable[[], bool]) -> None:
    """For what the server's thread does on its own time."""
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(params=[Client, DrivenClient], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of one kind: `with connect(server) as client`."""

    def make(server: ByteServer, **settings: Any) -> Any:
        return request.param(server.host, server.port, **{**FAST, **settings})

    return make


# --- results -------------------------------------------------------------------------------------


def test_encode_gives_an_array(server: ByteServer, connect: Connect) -> None:
    """The plain call: specials on, uint32."""
    with connect(server) as client:
        ids = client.encode("h\u00fc")
        assert ids.dtype == np.uint32
        assert ids.tolist() == [256, 0x68, 0xC3, 0xBC, 257]
        assert client.encode(b"hi", add_special_tokens=False).tolist() == [0x68, 0x69]
        assert client.encode("", add_special_tokens=False).tolist() == []
        assert client.encode("a", pair="b").tolist() == [256, 97, 98, 257]


def test_encode_full_gives_every_array(server: ByteServer, connect: Connect) -> None:
    """One row per id in each array; offsets count characters unless bytes are asked for."""
    with connect(server) as client:
        encoding = client.encode_full("ab", pair="c")
        assert encoding.ids.tolist() == [256, 97, 98, 99, 257]
        assert encoding.offsets.tolist() == [[0, 0], [0, 1], [1, 2], [0, 1], [0, 0]]
        assert encoding.type_ids.tolist() == [0, 0, 0, 1, 1]
        assert encoding.special_tokens_mask.tolist() == [1, 0, 0, 0, 1]
        assert struct.unpack_from("<H", server.received[-1], 34)[0] & 64
        client.encode_full("ab", offset_unit="bytes")
        assert not struct.unpack_from("<H", server.received[-1], 34)[0] & 64


def test_options_travel(server: ByteServer, connect: Connect) -> None:
    """Each argument is the bit that the protocol names."""
    with connect(server) as client:

        def options(**arguments: Any) -> int:
            try:
                client.encode("x", **arguments)
            except RefusedError:
                pass
            return struct.unpack_from("<H", server.received[-1], 34)[0]

        assert options() == 0b11
        assert options(add_special_tokens=False) == 0b10
        assert options(parse_special="none") == 0b01
        assert options(bos=True, eos=True) == 0b11011
        assert options(encode_special_tokens=True) == 0b100000011
        assert options(truncation=Truncation(2)) == 0b100011
        assert client.encode("abcdef", truncation=Truncation(2)).tolist() == [256, 97]
        with pytest.raises(ValueError, match="parse_special"):
            client.encode("x", parse_special="some")


def test_decode_and_count(server: ByteServer, connect: Connect) -> None:
    """Ids in whatever width they need."""
    with connect(server) as client:
        assert client.decode([256, 104, 105, 257]) == "<s>hi</s>"
        assert client.decode(np.array([256, 104, 257]), skip_special_tokens=True) == "h"
        assert client.decode([]) == ""
        assert client.decode([2**32 - 1, 70000, 104]) == "h"
        assert client.decode_batch([[104], [], [105, 106]]) == ["h", "", "ij"]
        assert client.count("hello") == 7
        assert client.count("he", pair="llo", add_special_tokens=False) == 5
        assert client.count_batch(["a", "", "abc"]) == [3, 2, 5]
        with pytest.raises(ValueError, match="integers"):
            client.decode([1.5])


@pytest.mark.parametrize("model", [1, 2])
def test_wide_ids(server: ByteServer, connect: Connect, model: int) -> None:
    """Models beyond 65536 ids answer in three or four bytes an id."""
    base = server.engine.models[model].base
    with connect(server, model=model) as client:
        assert client.encode("hi", add_special_tokens=False).tolist() == [base + 104, base + 105]
        assert client.decode([base + 104]) == "h"


def test_checksums_are_sent_and_wrong_ones_not_believed(
    server: ByteServer, connect: Connect
) -> None:
    """With `checksum`, a reply that was damaged on the way is as good as lost."""

    def damage(request: bytes, reply: bytes, number: int) -> list[bytes]:
        assert request[3] == 16
        return [reply[:-8] + b"\x01" + reply[-7:], reply] if number % 2 else [reply]

    server.script = damage
    with connect(server, checksum=True) as client:
        for _ in range(4):
            assert client.encode("hi").tolist() == [256, 104, 105, 257]
        assert client.ping(datagram_len=100) > 0


def test_server_is_described(server: ByteServer, connect: Connect) -> None:
    """Info, the list of models with a gap in it, and a model by its name."""
    server.engine.models = {
        1: Model(0, 0x11111111, "first"),
        3: Model(1 << 16, 0x44444444, "third"),
    }
    with connect(server, model="third") as client:
        assert [(m.model_id, m.name) for m in client.models()] == [(1, "first"), (3, "third")]
        assert client.encode("a", add_special_tokens=False).tolist() == [(1 << 16) + 97]
        assert client.model_tag == 0x44444444
        assert client.info().ids_end == (1 << 16) + 258
    with connect(server, model="fourth") as client:
        with pytest.raises(RefusedError, match="'fourth'; the server has 'first', 'third'") as info:
            client.encode("a")
        assert info.value.code == "unknown_model"


def test_ipv6(connect: Connect) -> None:
    """The same over IPv6, whose frames carry a little less."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        running = serving(host="::1")
        with running as server, connect(server) as client:
            assert client.encode("a", add_special_tokens=False).tolist() == [97]
            assert client.datagram_len_max == 1452
            assert (
                struct.unpack_from("<H", server.received[-1], 38)[0] == 1436
            )  # A cookie has room.
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")


# --- the network ----------------------------------------------------------------------------------


def test_lost_datagrams_are_sent_again(server: ByteServer, connect: Connect) -> None:
    """The first two of every request are lost; the third attempt is the same datagram."""
    server.script = lambda request, reply, number: [reply] if number % 3 == 2 else []
    with connect(server) as client:
        assert client.encode("hi").tolist() == [256, 104, 105, 257]
    assert len(set(server.received)) == 1 and len(server.received) >= 3


def test_foreign_late_and_repeated_datagrams_are_ignored(
    server: ByteServer, connect: Connect
) -> None:
    """Only the reply to this very request counts, and only once."""

    def noise(request: bytes, reply: bytes, number: int) -> list[bytes]:
        other_id = reply[:8] + struct.pack("<Q", 1) + reply[16:]
        other_op = reply[:22] + b"\x05" + reply[23:]
        longer = reply + b"\0" * 8
        return [b"", b"PT", request, other_id, other_op, reply[:-8], longer, reply, reply]

    server.script = noise
    with connect(server) as client:
        for text in ("a", "b", "c"):
            wanted = [256, ord(text), 257]
            assert client.encode(text).tolist() == wanted
            assert [ids.tolist() for ids in client.encode_batch([text] * 3)] == [wanted] * 3


def test_an_answer_that_lies_unread_is_not_asked_for_again(
    server: ByteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread did not run when its time was over; what came meanwhile is read first."""
    stray = HEADER.pack(0x5450, 0x12, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0)
    server.script = lambda request, reply, number: [stray, stray, reply]
    wait = Strand.wait

    def wait_late(self: Strand[Any]) -> None:
        time.sleep(0.1)
        wait(self)

    monkeypatch.setattr(Strand, "wait", wait_late)
    with Client(server.host, server.port, **FAST) as client:
        assert client.encode("hi").tolist() == [256, 104, 105, 257]
    assert len(server.received) == 1


def test_stray_datagrams_without_end_do_not_stop_the_clock(server: ByteServer) -> None:
    """However many come, the request is sent again, and the call ends in time."""
    stray = HEADER.pack(0x5450, 0x12, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0)
    server.script = lambda request, reply, number: [stray] * 200
    with (
        Client(server.host, server.port, retry_after=0.001, timeout=0.3) as client,
        pytest.raises(DeadlineError),
    ):
        client.encode("hi")
    assert len(server.received) > 1


def test_deadline(server: ByteServer, connect: Connect) -> None:
    """No answer at all ends in time, after the promised number of repetitions."""
    server.script = lambda request, reply, number: []
    with connect(server, timeout=0.2, retries=2) as client:
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer from 127\.0\.0\.1:\d+ within 0\.2 s"):
            client.encode("a")
        assert 0.15 < time.monotonic() - begin < 1.0
        wait_until(lambda: len(server.received) >= 3)
        assert len(server.received) == 3
        with pytest.raises(TimeoutError):
            client.encode_batch(["a", "b"])


def test_busy_is_tried_again_and_then_told(server: ByteServer, connect: Connect) -> None:
    """A transient refusal is no answer yet; at the deadline it is the reason."""
    busy = 17

    def sometimes(request: bytes, reply: bytes, number: int) -> list[bytes]:
        refusal = reply[:4] + bytes(4) + reply[8:23] + bytes([busy]) + bytes(8)
        return [refusal] if number < 2 else [reply]

    server.script = sometimes
    with connect(server) as client:
        assert client.encode("a").tolist() == [256, 97, 257]
    server.received.clear()
    server.script = lambda request, reply, number: sometimes(request, reply, 0)
    with connect(server, timeout=0.2) as client:
        for call in (lambda: client.encode("a"), lambda: client.encode_batch(["a"])):
            with pytest.raises(RefusedError) as info:
                call()
            assert info.value.code == "busy"


def test_a_busy_server_says_how_long_to_wait(server: ByteServer, connect: Connect) -> None:
    """Its hint takes the place of the client's own wait, which would be past the deadline here."""

    def busy(request: bytes, reply: bytes, number: int) -> list[bytes]:
        head = reply[:4] + bytes(4) + reply[8:23] + bytes([17]) + bytes(4)
        return [head + struct.pack("<I", 20_000)] if number < 2 else [reply]

    server.script = busy
    with connect(server, retry_after=500.0, timeout=600.0) as client:
        assert client.encode("a").tolist() == [256, 97, 257]
        assert client.encode_batch(["a", "b"]).ids.tolist() == [256, 97, 257, 256, 98, 257]
        assert client.counters.repeated == 2


def test_repetitions_have_a_budget(server: ByteServer, connect: Connect) -> None:
    """However much is lost: a hundred that were saved up, ten a second, and a share."""
    server.script = lambda request, reply, number: []
    settings = {"timeout": 1.5, "retry_after": 0.001, "retry_share": 0.0, "datagram_len_max": 1472}
    with connect(server, **settings) as client:
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            client.count_batch(["x" * 900] * 30)
        seconds = time.monotonic() - begin
        assert client.counters.sent == 30
        assert client.counters.repeated <= 100 + 10 * seconds + 1
        assert client.counters.withheld > 0


def test_late_answers_are_dropped_and_counted(server: ByteServer, connect: Connect) -> None:
    """The second answer to a request, and one to none at all, change nothing."""
    stray = HEADER.pack(0x5450, 0x12, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0)
    server.script = lambda request, reply, number: [stray, reply, reply]
    with connect(server) as client:
        for number in range(20):
            assert client.count("x" * number, add_special_tokens=False) == number
        assert client.counters.late >= 20


def test_a_cookie_outlives_refusals(server: ByteServer, connect: Connect) -> None:
    """A refused text, or one without an answer, does not make the next call a stranger's."""
    cookie = bytes(range(16))

    def challenge(request: bytes, reply: bytes, number: int) -> list[bytes]:
        if request[3] & 1:
            return [reply] if b"silent" not in request else []
        return [reply[:3] + b"\x01" + bytes(4) + reply[8:23] + bytes([19]) + bytes(8) + cookie]

    server.script = challenge
    with connect(server, timeout=1.5, retry_after=1.0) as client:
        client.encode("a")
        with pytest.raises(RefusedError):
            client.encode(b"\xff")
        with pytest.raises(RefusedError):
            client.encode_batch([b"a", b"\xff"])
        with pytest.raises(DeadlineError):
            client.encode("silent")
        client.encode("a")
        assert sum(not request[3] & 1 for request in server.received) == 1


def test_server_that_comes_back(connect: Connect) -> None:
    """A restart within the deadline is not seen by the caller, though the port is closed first."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    late = ByteServer.__new__(ByteServer)

    def start() -> None:
        late.__init__(port=port)  # type: ignore[misc]
        late.start()

    class Nobody:
        host = "127.0.0.1"

    nobody = Nobody()
    nobody.port = port  # type: ignore[attr-defined]
    with connect(nobody, timeout=5.0) as client:
        timer = threading.Timer(0.1, start)
        timer.start()
        assert client.encode("a").tolist() == [256, 97, 257]
        timer.join()
        late.stop()
    with connect(nobody, timeout=0.1) as client, pytest.raises(DeadlineError):
        client.encode("a")


def test_model_is_never_mixed_with_another(server: ByteServer, connect: Connect) -> None:
    """After the first answer another generation is refused by name until it is accepted."""
    with connect(server) as client:
        client.encode("a")
        server.engine.models[0] = Model(0, 0x99999999)
        with pytest.raises(RefusedError, match="expected tag 11111111, the server has 99999999"):
            client.encode("a")
        with pytest.raises(RefusedError) as info:
            client.encode_batch(["a", "b"])
        assert info.value.code == "model_changed"
        client.accept_model()
        assert client.encode("a").tolist() == [256, 97, 257]
        assert client.model_tag == 0x99999999


# --- packing --------------------------------------------------------------------------------------


def test_short_texts_share_datagrams(server: ByteServer, connect: Connect) -> None:
    """A thousand short texts cost tens of datagrams, each within the path, in the right order."""
    texts = [f"text {n}" for n in range(1000)]
    with connect(server, retry_after=1.0, timeout=20.0) as client:
        batch = client.encode_batch(texts, add_special_tokens=False)
        assert [bytes(ids.astype(np.uint8)).decode() for ids in batch] == texts
        # A slow moment may make the client repeat one: those are equal to the byte.
        assert len(set(server.received)) < 40
        assert max(map(len, server.received)) <= client.datagram_len_max
        assert client.encode_batch([]).ids.tolist() == []
        assert client.decode_batch([list(text.encode()) for text in texts]) == texts
        assert client.count_batch(texts, add_special_tokens=False) == [len(t) for t in texts]


def test_losses_in_a_batch_are_repaired(server: ByteServer, connect: Connect) -> None:
    """Every second datagram is lost and the others come twice and out of order."""
    held: list[bytes] = []

    def spoil(request: bytes, reply: bytes, number: int) -> list[bytes]:
        if number % 2:
            return []
        held.append(reply)
        return [reply, held[len(held) // 2], reply]

    server.script = spoil
    texts = [f"{n:>300}" for n in range(100)]
    with connect(server, window=8, timeout=20.0) as client:
        batch = client.encode_batch(texts, add_special_tokens=False)
        assert [bytes(ids.astype(np.uint8)).decode() for ids in batch] == texts


def test_large_datagrams_are_fewer_at_a_time(server: ByteServer, connect: Connect) -> None:
    """What is under way at once stays within the receive buffer of a socket, in bytes."""
    released = threading.Event()
    held: list[int] = []

    def release() -> None:
        held.append(len(server.received))
        released.set()

    server.engine.datagram_len_max = 65507
    server.script = lambda request, reply, number: [reply] if released.is_set() else []
    with connect(server, datagram_len_max=16000, retry_after=1.0, timeout=20.0) as client:
        timer = threading.Timer(0.3, release)
        timer.start()
        assert client.count_batch(["x" * 7000] * 50, add_special_tokens=False) == [7000] * 50
        timer.join()
    assert 0 < held[0] <= 6


def test_what_does_not_fit_a_reply_is_sent_again_alone(
    server: ByteServer, connect: Connect
) -> None:
    """Offsets make replies larger than requests: texts travel in smaller company, none is lost."""
    texts = ["x" * 60, "y" * 110, "z" * 5] * 20
    with connect(server, datagram_len_max=400) as client:
        batch = client.encode_batch(texts, add_special_tokens=False)
        assert [bytes(ids.astype(np.uint8)).decode() for ids in batch] == texts
        assert max(map(len, server.received)) <= 400
        with pytest.raises(RefusedError) as info:
            client.encode_full("x" * 60)
        assert info.value.code == "reply_too_long"


def test_refused_item_is_named(server: ByteServer, connect: Connect) -> None:
    """One bad text among many raises, and the message says which."""
    with connect(server) as client:
        with pytest.raises(RefusedError, match="item 7") as info:
            client.encode_batch([b"ok"] * 7 + [b"\xff"])
        assert info.value.code == "bad_utf8"
        with pytest.raises(RefusedError, match="not valid UTF-8") as info:
            client.encode(b"\xff")
        assert "item" not in str(info.value)
        with pytest.raises(RefusedError, match="surrogate at character 1"):
            client.encode("a\ud800")


def test_surrogates_follow_the_reference_of_the_model(server: ByteServer, connect: Connect) -> None:
    """tiktoken joins pairs and replaces lone ones; the others refuse, as in process."""
    server.engine.models[0].source = 2
    wanted = list("\U0001f600\ufffd".encode())
    text = "\ud83d\ude00\ud800"
    with connect(server) as client:
        assert client.encode(text, add_special_tokens=False).tolist() == wanted
        assert client.encode(b"", pair=text, add_special_tokens=False).tolist() == wanted
        batch = client.encode_batch(["a", text], add_special_tokens=False)
        assert [ids.tolist() for ids in batch] == [[97], wanted]
        assert client.count(text, add_special_tokens=False) == len(wanted)
    server.engine.models[0].source = 1
    with connect(server) as client, pytest.raises(RefusedError) as info:
        client.encode_batch(["a", text])
    assert info.value.code == "bad_utf8"


def test_text_too_long_for_a_narrow_path_is_refused_before_it_is_sent(
    server: ByteServer, connect: Connect
) -> None:
    """Where no segment fits, the limit is exact, and the message names it."""
    with connect(server, datagram_len_max=1000) as client:
        assert client.count("a" * 936, add_special_tokens=False) == 936
        received = len(server.received)
        for call in (
            lambda: client.encode("a" * 937),
            lambda: client.count("a" * 937),
            lambda: client.encode_batch(["a", "b" * 937]),
        ):
            with pytest.raises(RefusedError, match="937 bytes, this path carries 936") as info:
                call()
            assert info.value.code == "text_too_long"
        assert len(server.received) == received


def test_path_is_probed(server: ByteServer, connect: Connect) -> None:
    """The probe finds what the path carries, and the client then uses it."""
    server.engine.datagram_len_max = 65507
    server.script = lambda request, reply, number: [reply] if len(request) <= 3000 else []
    with connect(server, timeout=20.0, retry_after=0.06) as client:
        assert client.datagram_len_max == 1472
        found = client.probe_path(datagram_len_max=4048)
        assert 3000 - 8 < found <= 3000
        assert client.datagram_len_max == found
        assert len(client.encode("a" * 1400, add_special_tokens=False)) == 1400


def test_malformed_replies_have_a_name(server: ByteServer, connect: Connect) -> None:
    """A server that contradicts itself is an error at once, not a silent wait."""
    server.script = lambda request, reply, number: [reply[:34] + b"\x07" + reply[35:]]
    with connect(server) as client:
        for call in (lambda: client.encode("a"), lambda: client.encode_batch(["a", "b"])):
            with pytest.raises(TransportError, match="shape") as info:
                call()
            assert info.value.code == "malformed_reply"


# --- sharing --------------------------------------------------------------------------------------


def test_threads_share_a_client(server: ByteServer) -> None:
    """Eight threads on one client: each gets its own answers."""
    failures: list[str] = []
    with Client(server.host, server.port, timeout=20.0) as client:

        def work(name: str) -> None:
            for n in range(100):
                text = f"{name}-{n}"
                ids = client.encode(text, add_special_tokens=False)
                if bytes(ids.astype(np.uint8)).decode() != text:
                    failures.append(text)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_child_of_fork_gets_its_own_answers(server: ByteServer) -> None:
    """Sockets are not shared over a fork: neither side can take the other's reply."""
    with Client(server.host, server.port, timeout=10.0) as client:
        client.encode("a")
        child = os.fork()
        if child == 0:
            right = all(client.encode("c", add_special_tokens=False)[0] == 99 for _ in range(200))
            os._exit(0 if right else 1)
        assert all(client.encode("p", add_special_tokens=False)[0] == 112 for _ in range(200))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_calls_of_an_async_client_run_at_the_same_time(server: ByteServer) -> None:
    """Fifty calls wait together: replies that come in reverse order find their callers."""
    waiting: list[bytes] = []

    def hold(request: bytes, reply: bytes, number: int) -> list[bytes]:
        waiting.append(reply)
        return waiting[::-1] if len(waiting) == 50 else []

    server.script = hold

    async def main() -> None:
        async with AsyncClient(server.host, server.port, timeout=10.0, retry_after=5.0) as client:
            answers = await asyncio.gather(
                *(client.encode(chr(65 + n), add_special_tokens=False) for n in range(50))
            )
            assert [ids.tolist() for ids in answers] == [[65 + n] for n in range(50)]

    asyncio.run(main())


def test_a_cancelled_call_leaves_nothing(server: ByteServer) -> None:
    """Neither what waits for answers nor timers; the answer that comes later is counted."""
    held: list[tuple[bytes, int]] = []
    server.script = lambda request, reply, number: held.append((reply, number)) or []

    async def main() -> None:
        async with AsyncClient(
            server.host, server.port, timeout=600.0, retry_after=300.0
        ) as client:
            calls: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(call)
                for call in (client.encode("a"), client.encode_batch(["a", "b"]), client.info())
            ]
            while len(server.received) < 3:
                await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
            assert all(
                isinstance(result, asyncio.CancelledError)
                for result in await asyncio.gather(*calls, return_exceptions=True)
            )
            assert client._link is not None and not client._link.talks
            assert len(asyncio.all_tasks()) == 1
            replies = [reply for reply, _ in held]
            server.script = lambda request, reply, number: [*replies, reply]
            assert (await client.encode("b")).tolist() == [256, 98, 257]
            assert client.counters.late == 3

    asyncio.run(main())


def test_a_client_serves_one_event_loop_after_another(server: ByteServer) -> None:
    """A socket belongs to the loop that it was opened in."""
    client = AsyncClient(server.host, server.port, timeout=20.0)

    async def ask() -> None:
        assert (await client.encode("a")).tolist() == [256, 97, 257]

    for _ in range(3):
        asyncio.run(ask())
    asyncio.run(client.close())


def test_child_of_fork_has_a_loop_and_a_socket_of_its_own(server: ByteServer) -> None:
    """Also where the parent's client has calls under way: its socket and timers stay its own."""
    client = AsyncClient(server.host, server.port, timeout=30.0)

    async def ask(letter: str) -> bool:
        answers = await asyncio.gather(*(client.encode(letter) for _ in range(50)))
        return all(answer.tolist() == [256, ord(letter), 257] for answer in answers)

    async def parent() -> bool:
        call = asyncio.ensure_future(ask("p"))
        while not server.received:
            await asyncio.sleep(0.001)
        child = os.fork()
        if child == 0:
            well = False
            try:
                # The child is inside of the parent's running loop; another thread has none.
                answers: list[bool] = []
                thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask("c"))))
                thread.start()
                thread.join()
                well = answers == [True]
            finally:
                os._exit(0 if well else 1)
        well = await call and await ask("p")
        _, status = os.waitpid(child, 0)
        await client.close()
        return well and status == 0

    assert asyncio.run(parent())


def test_numbers_and_senders_are_not_shared_over_a_fork(server: ByteServer) -> None:
    """A key's numbers are used once: a child that went on with its parent's would be refused."""
    key = Key(7, bytes(32))
    seen: set[bytes] = set()

    def note(request: bytes, reply: bytes, number: int) -> list[bytes]:
        seen.add(request[32:48])
        return [reply]

    server.script = note
    with Client(server.host, server.port, timeout=30.0, key=key) as client:
        client.encode("a")
        child = os.fork()
        if child == 0:
            well = False
            try:
                for _ in range(50):
                    client.encode("c")
                well = True
            finally:
                os._exit(0 if well else 1)
        for _ in range(50):
            client.encode("p")
        _, status = os.waitpid(child, 0)
        assert status == 0
    # Key, sender and number of every datagram differ; two processes are two senders.
    assert len(seen) == len(server.received) >= 101
    assert len({name[4:8] for name in seen}) == 2


def test_closed_async_client_ends_its_calls(server: ByteServer) -> None:
    """A call that waits is told at once when the client is closed."""
    server.script = lambda request, reply, number: []

    async def main() -> None:
        client = AsyncClient(server.host, server.port, timeout=10.0)
        call = asyncio.ensure_future(client.encode("a"))
        while not server.received:
            await asyncio.sleep(0.001)
        await client.close()
        with pytest.raises(TransportError, match="closed"):
            await call

    asyncio.run(main())


def test_clients_need_no_native_core() -> None:
    """The package may be installed where nothing can be built: numpy is enough."""
    program = (
        "import sys\n"
        "sys.modules['pintok._native'] = None\n"
        "from pintok import Client, AsyncClient, RefusedError\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'click', 'pyroute2', 'prometheus_client', 'pintok_server'}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("server_text", "wanted"),
    [
        ("host", ("host", 7265)),
        ("10.0.0.1:99", ("10.0.0.1", 99)),
        ("::1", ("::1", 7265)),
        ("[::1]", ("::1", 7265)),
        ("[fe80::1%eth0]:8", ("fe80::1%eth0", 8)),
    ],
)
def test_server_addresses(server_text: str, wanted: tuple[str, int]) -> None:
    """What the command line accepts as a server."""
    assert parse_server(server_text) == wanted


@pytest.mark.parametrize("server_text", ["", "host:", ":1", "host:x", "host:0", "h:65536", "[::1"])
def test_bad_server_addresses(server_text: str) -> None:
    """And what it refuses, with the form it wants."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_server(server_text)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"retries": -1},
        {"retry_after": 0},
        {"window": 0},
        {"datagram_len_max": 239},
        {"datagram_len_max": 65508},
        {"model": 65536},
        {"model": -1},
    ],
)
def test_impossible_settings_are_refused(
    server: ByteServer, connect: Connect, settings: dict[str, Any]
) -> None:
    """At once, not at the first call."""
    with pytest.raises(ValueError):
        connect(server, **settings)


def test_unknown_host(connect: Connect) -> None:
    """A name that does not resolve is a transport error that names it."""

    class Nowhere:
        host = "nowhere.invalid"
        port = 1

    with pytest.raises(TransportError, match=r"nowhere\.invalid"):
        connect(Nowhere())
