"""Small requests and long messages together over a bad link, on both paths.

Every answer is exact, and no frame is lost by the server. With `-s` the latencies of the small ones
are shown, with and without long ones beside them, over a clean link and a bad one.
"""

from __future__ import annotations

import pathlib
import random
import threading
import time

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")
import veth
from veth import Link

from pintok import Client, Tokenizer
from pintok_server import vocab
from tests.lossy_link import Faults, LossyLink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

# A proxy instead of tc netem, which not every kernel has; damage as UDP lets it pass.
FAULTS = Faults(loss=0.02, double=0.01, overtake=0.05, damage=0.0001)
SECONDS = 4.0
LONG_LEN = 900_000


def words(length: int, seed: int) -> str:
    """About `length` bytes of text of several scripts."""
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
    text = " ".join(chance.choice(parts) for _ in range(length // 7 + 1))
    return text.encode()[:length].decode("utf-8", "ignore")


class Load(threading.Thread):
    """Asks for one text after another until it is told to stop, and checks each answer."""

    def __init__(
        self, link: Link, address: tuple[str, int], tokenizer: Tokenizer, texts: list[str]
    ) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._link = link
        self._texts = texts
        self._wanted = [tokenizer.encode(text) for text in texts]
        self.stopping = threading.Event()
        self.seconds: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with (
                self._link.inside(self._link.client),
                Client(*self._address, timeout=20.0, retries=30, retry_after=0.01) as client,
            ):
                while not self.stopping.is_set():
                    at = len(self.seconds) % len(self._texts)
                    begin = time.perf_counter()
                    ids = client.encode(self._texts[at])
                    self.seconds.append(time.perf_counter() - begin)
                    assert np.array_equal(ids, self._wanted[at])
        except BaseException as error:
            self.error = error

    def finish(self) -> str:
        """Stop; how many answers there were, and how long they took."""
        self.stopping.set()
        self.join(30)
        assert not self.is_alive() and self.error is None, repr(self.error)
        p50, p99 = np.percentile(self.seconds, (50, 99)) * 1e3
        return f"{len(self.seconds)} answers, p50 {p50:.2f} ms, p99 {p99:.2f} ms"


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_small_and_long_over_a_bad_link(tmp_path: pathlib.Path, path: str) -> None:
    """200-byte texts beside 900 KB ones, with loss, doubles, damage and overtaking."""
    tokenizer = Tokenizer.from_pretrained("default")
    small = [words(200, seed) for seed in range(50)]
    long = [words(LONG_LEN, seed) for seed in range(2)]
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
        proxy = LossyLink(server_address, FAULTS, seed=1, inside=lambda: link.inside(link.client))
        with proxy:
            for kind, address in (
                ("clean link", server_address),
                ("bad link", ("127.0.0.1", proxy.port)),
            ):
                for count in (0, 1):
                    loads = [Load(link, address, tokenizer, small)]
                    loads += [Load(link, address, tokenizer, long) for _ in range(count)]
                    for load in loads:
                        load.start()
                    time.sleep(SECONDS)
                    shown = [load.finish() for load in loads]
                    print(f"{path}, {kind}, small: {shown[0]}")
                    if count:
                        print(f"{path}, {kind}, long: {shown[1]}")
                        assert len(loads[1].seconds) > 0
                    assert len(loads[0].seconds) > 50
        if path == "xdp":
            worker = server.statistics().workers[0]
            assert worker.gauges["frames_missing"] == 0
            assert worker.counters["frame_faults"] == 0
            assert worker.counters["bulk_begun"] > 0
            print(f"longest slice {worker.gauges['slice_max_ns'] / 1e3:.0f} us")
