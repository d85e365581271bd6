"""A server and the library give the same arrays: any text, options and batch, either client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pintok import (
    AsyncClient,
    AsyncFleet,
    Client,
    Fleet,
    RefusedError,
    Truncation,
    step_streams,
)
from tests.datapath_process import HOST, PROGRAM, datapath

pytest.importorskip("pintok._native", reason="the native core is not built")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="ptk-datapath is not built")

TIMEOUT = 20.0

alphabet = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from(list(" \n\t'0129abcABC<|>._-\u00fc\u0301\u4f60\U0001f600\u200d")),
)
texts = st.text(alphabet, max_size=80)
options = st.fixed_dictionaries(
    {"add_special_tokens": st.booleans(), "parse_special": st.sampled_from(["all", "none"])}
)
truncations = st.one_of(
    st.none(),
    st.builds(Truncation, st.integers(1, 20), direction=st.sampled_from(["left", "right"])),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from pintok import Tokenizer

    return Tokenizer.from_pretrained("default")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    from pintok_server import vocab

    with datapath({"default": vocab.load_image("default").path}) as bound:
        yield bound


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[Client]:
    with Client(HOST, port, model="default", timeout=TIMEOUT) as connected:
        yield connected


def two_names(port: int) -> list[str]:
    """Of one server, which is two to a fleet."""
    return [f"127.0.0.1:{port}", f"127.1:{port}"]


@pytest.fixture(scope="module")
def fleet(port: int) -> Iterator[Fleet]:
    with Fleet(two_names(port), model="default", timeout=TIMEOUT) as connected:
        yield connected


MODULE_FIXTURES = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MODULE_FIXTURES
@given(texts, st.one_of(st.none(), texts), options, truncations)
def test_one_text(
    client: Client,
    tokenizer: Any,
    text: str,
    pair: str | None,
    chosen: dict[str, Any],
    truncation: Truncation | None,
) -> None:
    """ids, count, every array of the full answer, and the text back."""
    ids = tokenizer.encode(text, pair=pair, truncation=truncation, **chosen)
    assert np.array_equal(client.encode(text, pair=pair, truncation=truncation, **chosen), ids)
    assert client.count(text, pair=pair, **chosen) == tokenizer.count(text, pair=pair, **chosen)
    assert client.decode(ids) == tokenizer.decode(ids)
    whole = {"pair": pair, "truncation": truncation, "overflowing": False, **chosen}
    wanted = tokenizer.encode_full(text, **whole)
    answer = client.encode_full(text, **whole)
    for name in ("ids", "offsets", "type_ids", "special_tokens_mask"):
        assert np.array_equal(getattr(answer, name), getattr(wanted, name)), name


@MODULE_FIXTURES
@given(
    st.text(alphabet, max_size=30),
    st.one_of(st.none(), st.text(alphabet, max_size=8)),
    options,
    st.builds(
        Truncation,
        st.integers(6, 20),
        st.integers(0, 2),
        direction=st.sampled_from(["left", "right"]),
        strategy=st.sampled_from(["longest_first", "only_first", "only_second"]),
    ),
)
def test_windows(
    client: Client,
    tokenizer: Any,
    text: str,
    pair: str | None,
    chosen: dict[str, Any],
    truncation: Truncation,
) -> None:
    """Every array of every window, or the same refusal."""
    whole = {"pair": pair, "truncation": truncation, **chosen}
    try:
        wanted = tokenizer.encode_full(text, **whole)
    except RefusedError as refused:
        with pytest.raises(RefusedError) as info:
            client.encode_full(text, **whole)
        assert info.value.code == refused.code
        return
    windows = [wanted, *wanted.overflowing]
    assume(sum(8 * len(window) + 8 for window in windows) < 1200)  # They share a datagram.
    answer = client.encode_full(text, **whole)
    for mine, theirs in zip([answer, *answer.overflowing], windows, strict=True):
        for name in ("ids", "offsets", "type_ids", "special_tokens_mask"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


@MODULE_FIXTURES
@given(st.lists(st.lists(st.integers(0, 9000), max_size=12), min_size=1, max_size=40))
def test_streams(client: Client, tokenizer: Any, batch: list[list[int]]) -> None:
    """Streams of any ids, all of them in each datagram, chunk by chunk and to the flush."""
    here = [tokenizer.decode_stream() for _ in batch]
    there = [client.decode_stream() for _ in batch]
    for number in range(max(map(len, batch))):
        going = [place for place, ids in enumerate(batch) if number < len(ids)]
        new = [batch[place][number] for place in going]
        chunks = step_streams([there[place] for place in going], new)
        assert chunks == [
            here[place].step(token_id) for place, token_id in zip(going, new, strict=True)
        ]
    assert [stream.flush() for stream in there] == [stream.flush() for stream in here]


@MODULE_FIXTURES
@given(st.lists(texts, max_size=60), options)
def test_batches(
    client: Client, fleet: Fleet, tokenizer: Any, batch: list[str], chosen: dict[str, Any]
) -> None:
    """However the texts are spread over datagrams and servers."""
    wanted = tokenizer.encode_batch(batch, **chosen)
    for several in (client, fleet):
        answer = several.encode_batch(batch, **chosen)
        assert np.array_equal(answer.ids, wanted.ids)
        assert np.array_equal(answer.splits, wanted.splits)
        assert several.decode_batch(wanted) == tokenizer.decode_batch(wanted)


@pytest.mark.parametrize("kind", ["client", "fleet"])
def test_asyncio_client(port: int, tokenizer: Any, kind: str) -> None:
    """Single calls and batches beside each other, thousands of texts."""
    batch = [f"{n} " + "the quick brown fox "[: n % 20] * (n % 7) for n in range(3000)]

    async def main() -> None:
        alone = kind == "client"
        async with (
            AsyncClient(HOST, port, timeout=TIMEOUT)
            if alone
            else AsyncFleet(two_names(port), timeout=TIMEOUT)
        ) as client:
            answers = await asyncio.gather(
                client.encode_batch(batch), *(client.encode(text) for text in batch[:100])
            )
            wanted = tokenizer.encode_batch(batch)
            assert np.array_equal(answers[0].ids, wanted.ids)
            for index, ids in enumerate(answers[1:]):
                assert np.array_equal(ids, wanted[index])

    asyncio.run(main())


def test_refusals_are_the_same(client: Client, tokenizer: Any) -> None:
    """The code of the exception does not tell whether there was a network."""
    for engine in (client, tokenizer):
        for call in (
            lambda engine=engine: engine.encode(b"\xff"),
            lambda engine=engine: engine.encode("a\ud800"),
            lambda engine=engine: engine.encode_batch([b"ok", b"\xc3"]),
            lambda engine=engine: engine.count(b"\xed\xa0\x80"),
        ):
            with pytest.raises(RefusedError) as info:
                call()
            assert info.value.code == "bad_utf8"
