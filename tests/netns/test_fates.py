"""Every packet has one fate, and the counters say which: sums over a mixed hostile load.

Beside each other: a flood from false addresses, frames that are damaged, cut or lie about their
lengths, small requests, and long messages over a bad link. What was received must be what was
refused, skipped and judged; what was judged must be what the guard, the engine and the long
messages say; what the program redirected must be what the pollers got and the queues dropped.
"""

from __future__ import annotations

import pathlib
import random
import threading
import time

import numpy as np
import pytest

pytest.importorskip("scapy.all")
import veth
from load import wait_for
from test_abuse import Flood
from test_paths import ping, request_frame
from veth import CLIENT4, IFACE, SERVER4, Link
from wire_machine import fates_are_whole

from pintok import Client, Tokenizer
from pintok_server import vocab
from pintok_server.control.statistics import Snapshot
from tests.lossy_link import Faults, LossyLink
from tests.mixed_load import words

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

FAULTS = Faults(loss=0.03, double=0.03, overtake=0.05, damage=0.01, cut=0.01)


def bad_frames(link: Link, count: int) -> None:
    """Requests with a bit flipped anywhere, cut anywhere, or longer than their headers say."""
    chance = random.Random(7)
    with link.raw_socket() as sock:
        for number in range(count):
            frame = bytearray(bytes(request_frame(payload=ping(number, 64), sport=41000)))
            kind = number % 3
            if kind == 0:
                frame[chance.randrange(12, len(frame))] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del frame[chance.randrange(14, len(frame)) :]
            else:
                frame[16:18] = chance.randrange(1 << 16).to_bytes(2, "big")
            sock.send(bytes(frame))


def long_messages(link: Link, address: tuple[str, int], stop: threading.Event) -> list[int]:
    """How many long texts were answered, each exactly."""
    tokenizer = Tokenizer.from_pretrained("default")
    texts = [words(20_000, seed) for seed in range(3)]
    wanted = [tokenizer.encode(text) for text in texts]
    answered = [0]
    with (
        link.inside(link.client),
        Client(*address, timeout=60.0, retries=200, retry_after=0.01) as client,
    ):
        while not stop.is_set():
            at = answered[0] % len(texts)
            assert np.array_equal(client.encode(texts[at]), wanted[at])
            answered[0] += 1
    return answered


def messages_are_whole(snapshot: Snapshot) -> bool:
    """Whether every long message that began has ended in one way, or is under way."""
    ends = ("bulk_answered", "bulk_cancelled", "bulk_evicted")
    return all(
        worker.counters["bulk_begun"]
        == sum(worker.counters[end] for end in ends) + worker.gauges["bulk_slots"]
        for worker in snapshot.workers
    )


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_every_packet_has_one_fate(tmp_path: pathlib.Path, path: str) -> None:
    image = vocab.load_image("default").path
    arguments = [f"--iface={IFACE}", "--cores=0", f"--path={path}", "--idle=adaptive", "--ring=256"]
    arguments += [f"--model=0:default={image}", "--message-len-max=65536", "--validate=on"]
    results: list[list[int]] = []
    with veth.veth_link() as link, veth.datapath(link, tmp_path, *arguments) as process:
        link.ip(link.server, "route", "add", "198.18.0.0/15", "via", CLIENT4)
        address = (SERVER4, veth.PORT)
        with LossyLink(address, FAULTS, seed=3, inside=lambda: link.inside(link.client)) as proxy:
            stop = threading.Event()
            long = threading.Thread(
                target=lambda: results.append(long_messages(link, ("127.0.0.1", proxy.port), stop)),
                daemon=True,
            )
            flood = Flood(link, count=20000, seconds=3)
            long.start()
            flood.start()
            bad_frames(link, 1500)
            flood.over.wait(30.0)
            time.sleep(0.2)
            stop.set()
            long.join(90.0)
            flood.join(30.0)
            assert not long.is_alive() and not flood.is_alive()
        assert results and results[0][0] > 0

        def whole() -> bool:
            seen = process.statistics()
            return fates_are_whole(seen) and messages_are_whole(seen)

        wait_for(whole, 20.0)
        seen = process.statistics()
        if path == "xdp":
            pollers = [worker for worker in seen.workers if worker.kind == "poller"]
            received = sum(worker.counters["rx_packets"] for worker in pollers)
            lost = sum(
                queue.counters["rx_dropped"] + queue.counters["rx_ring_full"]
                for queue in seen.queues
            )
            wait_for(lambda: process.statistics().steer["redirect"] == received + lost)
        names = {name for worker in seen.workers for name, n in worker.counters.items() if n}
        assert {"guard_refused", "handled", "bulk_segments", "bulk_cancels"} <= names
        if path == "xdp":
            assert {"refused_udp_checksum", "refused_length"} & names
        for worker in seen.workers:
            assert worker.gauges["frames_missing"] == worker.counters["frame_faults"] == 0
        assert process.stop() == 0
