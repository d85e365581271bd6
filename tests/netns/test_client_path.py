"""The clients find out how long datagrams may be on a real link, of any MTU, also one that changes.

Every answer is exact, whatever they find.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")
import veth
from veth import IFACE, Link

from pintok import AsyncClient, Client, Tokenizer
from pintok_server import vocab

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

TEXT = "Größe matters: 日本語, one two three. " * 3000
# Also with pings, on a busy machine.
PATIENT = {"timeout": 60.0, "retry_after": 0.2}
HEADERS = {veth.SERVER4: 28, veth.SERVER6: 48}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


@contextlib.contextmanager
def serving(mtu: int, path: str, folder: pathlib.Path) -> Iterator[Link]:
    """A server with the default model on a link of this MTU; this thread is at the client's end."""
    image = vocab.load_image("default").path
    with veth.veth_link(mtu=mtu) as link:
        arguments = (f"--iface={IFACE}", "--cores=0", f"--path={path}", "--idle=adaptive",
                     f"--model=0:default={image}")  # fmt: skip
        with veth.datapath(link, folder, *arguments) as process:
            with link.inside(link.client):
                yield link
            assert process.stop() == 0


@pytest.mark.parametrize("path", ["xdp", "socket"])
@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_every_mtu_is_used(
    tmp_path: pathlib.Path, tokenizer: Tokenizer, mtu: int, path: str
) -> None:
    """As it is, over both families, by both clients; where it is usual nothing is asked."""
    wanted = tokenizer.encode(TEXT)
    with serving(mtu, path, tmp_path):
        for address, headers in HEADERS.items():
            longest = mtu - headers

            def check(client: Client | AsyncClient, longest: int = longest) -> None:
                assert client.datagram_len_max == longest
                probed = client.counters.probed
                assert (probed > 0) == (mtu > 1500) and probed <= 4

            with Client(address, **PATIENT) as client:
                assert client.datagram_len_max == min(longest, 1500 - headers)
                assert np.array_equal(client.encode(TEXT), wanted)
                check(client)
                client.encode("short")
                assert np.array_equal(client.encode(TEXT), wanted)
                check(client)
            with Client(address, datagram_len_max=1200, **PATIENT) as client:
                assert np.array_equal(client.encode(TEXT), wanted)
                assert client.datagram_len_max == 1200 and client.counters.probed == 0

            async def main(address: str = address) -> None:
                async with AsyncClient(address, **PATIENT) as several:
                    for answer in await asyncio.gather(*(several.encode(TEXT) for _ in range(3))):
                        assert np.array_equal(answer, wanted)
                    check(several)

            asyncio.run(main())


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_an_mtu_that_falls_while_serving(
    tmp_path: pathlib.Path, tokenizer: Tokenizer, path: str
) -> None:
    """At the client's own end, where the kernel knows; and beyond it, where long ones vanish."""
    wanted = tokenizer.encode(TEXT)
    texts = [TEXT[at : at + 700] for at in range(0, 14000, 700)]
    batch = tokenizer.encode_batch(texts)
    with serving(1500, path, tmp_path) as link:
        for address, headers in HEADERS.items():
            for end in (link.client, link.server):
                link.ip(end, "link", "set", IFACE, "mtu", "1500")
                with Client(address, **PATIENT) as client:
                    assert np.array_equal(client.encode(TEXT), wanted)
                    link.ip(end, "link", "set", IFACE, "mtu", "1400")
                    assert np.array_equal(client.encode(TEXT), wanted)
                    assert np.array_equal(client.encode_batch(texts).ids, batch.ids)
                    assert 1232 <= client.datagram_len_max <= 1400 - headers
                    assert client.counters.probed <= 12
                link.ip(end, "link", "set", IFACE, "mtu", "1500")
