"""The kernel's own bad link (tc netem) between client and server: loss, doubles, delay, damage.

Replies over AF_XDP pass no queueing discipline, so on that path the requests alone are hurt; over
sockets both directions are. `tests/lossy_link.py` does the same in a process of its own, where the
kernel has no netem, and cuts datagrams as well.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import veth
from load import wait_for
from veth import IFACE, PORT, SERVER4
from wire_machine import fates_are_whole

from pintok import Client, Tokenizer
from pintok_server import vocab
from tests.mixed_load import words

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp", "netem"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

NETEM = "delay 2ms 1ms loss 3% duplicate 2% corrupt 1% reorder 10%"
LENGTHS = (40, 200, 1300, 9_000, 60_000, 300_000)


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_every_answer_is_exact_over_a_bad_link(tmp_path: pathlib.Path, path: str) -> None:
    """Short texts and long ones, one after another; and no frame or packet is lost unseen."""
    tokenizer = Tokenizer.from_pretrained("default")
    image = vocab.load_image("default").path
    arguments = [f"--iface={IFACE}", "--cores=0", f"--path={path}", "--idle=adaptive"]
    with (
        veth.veth_link() as link,
        veth.datapath(link, tmp_path, *arguments, f"--model=0:default={image}") as process,
    ):
        for end in (link.client, link.server):
            tc = ("tc", "qdisc", "add", "dev", IFACE, "root", "netem", "limit", "10000")
            link.exec(end, *tc, *NETEM.split())
        with (
            link.inside(link.client),
            Client(SERVER4, PORT, timeout=60, retries=100, retry_after=0.02) as client,
        ):
            for turn in range(10):
                for length in LENGTHS:
                    text = words(length, turn)
                    assert np.array_equal(client.encode(text), tokenizer.encode(text))
        wait_for(lambda: fates_are_whole(process.statistics()))
        for worker in process.statistics().workers:
            assert worker.gauges["frames_missing"] == worker.counters["frame_faults"] == 0
        assert process.stop() == 0
