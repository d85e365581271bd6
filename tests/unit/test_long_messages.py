"""Messages in segments, from the clients to the datapath and back, over good and bad links.

Every call ends in the exact answer of the in-process tokenizer or in a named error in its time.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")

from pintok import AsyncClient, Client, DeadlineError, RefusedError, Tokenizer, TransportError
from pintok._codec import crc32c, crc32c_python
from pintok_server import vocab
from tests.datapath_process import HOST, PROGRAM, datapath
from tests.lossy_link import Faults, LossyLink

SEED = int(os.environ.get("PTK_SEED", "1"))
LINKS = {
    "clean": Faults(),
    "loss": Faults(loss=0.02),
    "doubles": Faults(double=0.3),
    "overtaking": Faults(overtake=0.2),
    "damage": Faults(damage=0.0003, cut=0.0003),
    "everything": Faults(loss=0.05, double=0.05, overtake=0.1, damage=0.0002, cut=0.0005),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    if not PROGRAM.exists():
        pytest.skip("ptk-datapath is not built")
    with datapath({"default": vocab.load_image("default").path}) as number:
        yield number


def words(count: int, seed: int) -> str:
    """Text of many scripts, `count` words long."""
    chance = random.Random(seed)
    parts = [
        "the",
        "Kernel",
        "größer",
        "日本語",
        "ids",
        "\n\n",
        "==",
        "🙂",
        "1234567",
        "naïve",
        "x",
    ]
    return " ".join(chance.choice(parts) for _ in range(count))


def test_native_checksum_is_the_definition() -> None:
    """Whichever of the two a client has, servers get the same."""
    for length in (0, 1, 7, 8, 9, 1000):
        data = random.Random(length).randbytes(length)
        assert crc32c(data) == crc32c_python(data)
    assert crc32c(memoryview(b"123456789")) == 0xE3069283


@pytest.mark.parametrize("name", LINKS)
def test_every_answer_is_exact(port: int, tokenizer: Tokenizer, name: str) -> None:
    """Encode, count and decode of texts around every limit, over one kind of link."""
    with LossyLink((HOST, port), LINKS[name], SEED) as link:
        with Client(HOST, link.port, timeout=30.0, retries=40, retry_after=0.02) as client:
            for number, count in enumerate((3, 180, 220, 260, 2000, 30000)):
                text = words(count, SEED + number)
                wanted = tokenizer.encode(text)
                assert np.array_equal(client.encode(text), wanted)
                assert client.count(text) == len(wanted)
                assert client.decode(wanted) == tokenizer.decode(wanted)
            text = words(4000, SEED)
            full, wanted_full = client.encode_full(text), tokenizer.encode_full(text)
            assert np.array_equal(full.ids, wanted_full.ids)
            assert np.array_equal(full.offsets, wanted_full.offsets)
            assert np.array_equal(full.type_ids, wanted_full.type_ids)
        assert link.passed > 100


def test_reply_longer_than_a_datagram(port: int, tokenizer: Tokenizer) -> None:
    """A request in one datagram whose answer is none: all outputs, and ids that mean long texts."""
    text = "a b c d e f g " * 90
    longest = max(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.decode([i])))
    with Client(HOST, port) as client:
        wanted = tokenizer.encode_full(text)
        full = client.encode_full(text)
        assert np.array_equal(full.offsets, wanted.offsets)
        assert client.decode([longest] * 600) == tokenizer.decode([longest] * 600)


def test_batches_mix_short_and_long(port: int, tokenizer: Tokenizer) -> None:
    """The order stays, whatever travels how."""
    chance = random.Random(SEED)
    texts = [words(chance.choice([1, 5, 50, 500, 5000]), number) for number in range(60)]
    wanted = tokenizer.encode_batch(texts)
    with Client(HOST, port, timeout=20.0) as client:
        batch = client.encode_batch(texts)
        assert np.array_equal(batch.ids, wanted.ids)
        assert client.count_batch(texts) == [len(ids) for ids in wanted]
        outcomes = client.encode_each([*texts, b"\xff" * 5000])
        assert [outcome.verdict for outcome in outcomes] == [0] * len(texts) + [10]

    async def concurrently() -> None:
        async with AsyncClient(HOST, port, timeout=20.0) as several:
            answers = await asyncio.gather(*(several.encode(text) for text in texts))
            for answer, ids in zip(answers, wanted, strict=True):
                assert np.array_equal(answer, ids)

    asyncio.run(concurrently())


def test_asyncio_over_a_bad_link(port: int, tokenizer: Tokenizer) -> None:
    """Several long messages at a time on one socket."""
    texts = [words(8000, number) for number in range(6)]

    async def run(link_port: int) -> None:
        async with AsyncClient(
            HOST, link_port, timeout=30.0, retries=40, retry_after=0.02
        ) as client:
            answers = await asyncio.gather(*(client.encode(text) for text in texts))
        for answer, text in zip(answers, texts, strict=True):
            assert np.array_equal(answer, tokenizer.encode(text))

    with LossyLink((HOST, port), LINKS["everything"], SEED) as link:
        asyncio.run(run(link.port))


def test_calls_cancelled_at_any_moment_leave_nothing(port: int, tokenizer: Tokenizer) -> None:
    """Short and long, half of them cancelled over a bad link; the others are exact."""
    chance = random.Random(SEED)
    texts = [words(chance.choice([1, 50, 400, 4000]), number) for number in range(100)]
    wanted = [tokenizer.encode(text) for text in texts]

    async def one(client: AsyncClient, place: int, cancelled_after: float | None) -> None:
        call = asyncio.ensure_future(client.encode(texts[place]))
        if cancelled_after is not None:
            await asyncio.sleep(cancelled_after)
            call.cancel()
        try:
            assert np.array_equal(await call, wanted[place])
        except asyncio.CancelledError:
            assert cancelled_after is not None

    async def run(link_port: int) -> None:
        async with AsyncClient(
            HOST, link_port, timeout=60.0, retries=60, retry_after=0.02
        ) as client:
            await asyncio.gather(
                *(
                    one(client, place, chance.random() * 0.02 if place % 2 else None)
                    for place in range(len(texts))
                )
            )
            assert client._link is not None and not client._link.talks
            assert client._link.inlet.transfers == 0
            assert len(asyncio.all_tasks()) == 1

    # No damage: texts in one datagram have no checksum of their own.
    faults = Faults(loss=0.05, double=0.05, overtake=0.1)
    with LossyLink((HOST, port), faults, SEED) as link:
        asyncio.run(run(link.port))


def test_threads_share_a_client(port: int, tokenizer: Tokenizer) -> None:
    """Each call has a socket of its own."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(4):
                text = words(3000 + 100 * number + step, number)
                assert np.array_equal(client.encode(text), tokenizer.encode(text))
        except BaseException as error:
            failures.append(error)

    with Client(HOST, port, timeout=30.0) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_child_of_fork_has_its_own_sockets(port: int, tokenizer: Tokenizer) -> None:
    """Parent and child ask at the same time, and each gets its own answers."""
    ours, theirs = words(4000, 1), words(4000, 2)
    with Client(HOST, port, timeout=30.0) as client:
        assert client.count(ours) == tokenizer.count(ours)
        child = os.fork()
        text = theirs if child == 0 else ours
        try:
            well = all(client.count(text) == tokenizer.count(text) for _ in range(10))
        except BaseException:
            well = False
        if child == 0:
            os._exit(0 if well else 1)
        _, status = os.waitpid(child, 0)
    assert well and status == 0


def test_limits_have_names(port: int) -> None:
    """A message over the server's limit is refused, one over the protocol's is not even sent."""
    with Client(HOST, port, timeout=10.0) as client:
        with pytest.raises(RefusedError) as info:
            client.encode("a " * 600_000)
        assert info.value.code == "text_too_long"
        with pytest.raises(RefusedError, match="this path carries") as info:
            client.encode("a" * (17 << 20))
        assert info.value.code == "text_too_long"
        with pytest.raises(RefusedError) as info:
            client.encode(b"\xff" * 100_000)
        assert info.value.code == "bad_utf8"
    with Client(HOST, port, model=5) as client, pytest.raises(RefusedError) as info:
        client.encode("a " * 50_000)
    assert info.value.code == "unknown_model"


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_silence_ends_at_the_deadline(port: int, kind: str) -> None:
    """A link that stops in the middle of a message is an error in time."""
    text = words(100_000, SEED)

    async def ask(link_port: int) -> None:
        async with AsyncClient(HOST, link_port, timeout=1.0) as client:
            await client.encode(text)

    with LossyLink((HOST, port), Faults(), SEED) as link:

        def block() -> None:
            while link.passed < 60:
                time.sleep(0.0001)
            link.blocked = True

        blocker = threading.Thread(target=block)
        blocker.start()
        begin = time.monotonic()
        with pytest.raises((DeadlineError, TransportError)):
            if kind == "asyncio":
                asyncio.run(ask(link.port))
            else:
                with Client(HOST, link.port, timeout=1.0) as client:
                    client.encode(text)
        assert time.monotonic() - begin < 2.0
        blocker.join()
