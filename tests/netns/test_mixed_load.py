"""Small requests and long messages together over a bad link, on both paths.

Every answer is exact, and no frame is lost by the server. With `-s` the latencies of the small ones
are shown, with and without long ones beside them, over a clean link and a bad one; `bench/mixed.py`
measures the same.
"""

from __future__ import annotations

import contextlib
import pathlib

import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")
import veth

from pintok import Tokenizer
from pintok_server import vocab
from tests.lossy_link import LossyLink
from tests.mixed_load import FAULTS, LONG_LEN, SMALL_LEN, Texts, measure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

SECONDS = 4.0


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_small_and_long_over_a_bad_link(tmp_path: pathlib.Path, path: str) -> None:
    """200-byte texts beside 900 KB ones, with loss, doubles and overtaking."""
    tokenizer = Tokenizer.from_pretrained("default")
    small = Texts.make(tokenizer, length=SMALL_LEN, count=50)
    long = Texts.make(tokenizer, length=LONG_LEN, count=2)
    image = vocab.load_image("default").path
    arguments = [f"--model=0:default={image}", "--cores=0", "--idle=adaptive", f"--path={path}"]
    if path == "xdp":
        arguments += [f"--iface={veth.IFACE}"]
    with (
        veth.veth_link() as link,
        veth.datapath(link, tmp_path, *arguments) as server,
    ):
        link.ip(link.client, "link", "set", "lo", "up")
        server_address = (veth.SERVER4, veth.PORT)

        def inside() -> contextlib.AbstractContextManager[None]:
            return link.inside(link.client)

        with LossyLink(server_address, FAULTS, seed=1, inside=inside) as proxy:
            for name, address in (
                ("clean link", server_address),
                ("bad link", ("127.0.0.1", proxy.port)),
            ):
                for kinds in ([small], [small, long]):
                    figures = measure(address, kinds, seconds=SECONDS, inside=inside)
                    for what, shown in zip(("small", "long"), figures, strict=False):
                        print(f"{path}, {name}, {what}: {shown}")
                    assert figures[0].answers > 50
        if path == "xdp":
            worker = server.statistics().workers[0]
            assert worker.gauges["frames_missing"] == 0
            assert worker.counters["frame_faults"] == 0
            assert worker.counters["bulk_begun"] > 0
            print(f"longest slice {worker.gauges['slice_max_ns'] / 1e3:.0f} us")
