"""The whole server over AF_XDP on a private link: control process, datapath, client, metrics."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pintok.client import Client
from pintok.tokenizer import Tokenizer
from pintok_server.control.runtime import process_start_time
from tests.netns.veth import IFACE, SERVER4, SERVER6, Link, veth_link
from tests.server_process import Instance, Server, wait_until

pytestmark = pytest.mark.needs("root", "netns", "af_xdp")

TEXTS = ["Hello, world!", "", "naïve 😀 text", "word " * 200, "def f(x):\n    return x\n"]


@pytest.fixture
def link() -> Iterator[Link]:
    with veth_link(queues=2) as made:
        yield made


@pytest.fixture
def instance(link: Link, tmp_path: pathlib.Path) -> Iterator[Instance]:
    core = max(os.sched_getaffinity(0))
    options = [f"--iface={IFACE}", "--path=xdp", f"--cores={core}"]
    made = Instance(tmp_path, options, prefix=["ip", "netns", "exec", link.server])
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


def answers_well(link: Link, tokenizer: Tokenizer, *, host: str = SERVER4) -> bool:
    with link.inside(link.client), Client(host, timeout=15, retries=60) as client:
        ids = [client.encode(text).tolist() for text in TEXTS]
    assert ids == [tokenizer.encode(text).tolist() for text in TEXTS]
    return True


def total(link: Link, server: Server, name: str, **labels: str) -> float:
    """Sum of a metric over the samples that have these labels."""
    with link.inside(link.server):
        status, text = server.get("/metrics")
    assert status == 200
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_requests_go_over_af_xdp_and_are_measured(
    link: Link, instance: Instance, tokenizer: Tokenizer
) -> None:
    server = instance.start("--require=xdp,drv")
    modes = server.event("modes")[0]
    assert (modes["path"], modes["xdp_mode"], modes["capabilities"]) == ("xdp", "drv", "0")
    assert answers_well(link, tokenizer)
    assert answers_well(link, tokenizer, host=SERVER6)
    # One core serves one of the two queues; the other's packets take the kernel's sockets. The port
    # that a client happens to have decides where its packets go.
    clients = 2

    def received() -> float:
        return total(link, server, "pintok_worker_rx_packets_total", kind="poller")

    while received() == 0:
        assert clients < 60, "no client's packets went over AF_XDP"
        assert answers_well(link, tokenizer)
        clients += 1
    asked = clients * len(TEXTS)
    # A busy machine may make the client repeat itself; the kernel's counters are read now and then.
    wait_until(lambda: total(link, server, "pintok_worker_requests_total") >= asked)
    wait_until(
        lambda: total(link, server, "pintok_xdp_packets_total", reason="redirect") == received()
    )
    assert total(link, server, "pintok_worker_service_seconds_count") >= asked
    assert total(link, server, "pintok_worker_frames_missing") == 0
    assert total(link, server, "pintok_worker_frame_faults_total") == 0
    status = json.loads(instance.tool("status", "--json").stdout)
    assert status["modes"]["path"] == "xdp" and status["supervised"]
    server.process.send_signal(signal.SIGTERM)
    server.read_until("stopped")
    assert server.process.wait(20) == 0
    assert link.xdp_program() is None


def test_every_process_may_be_killed(link: Link, instance: Instance, tokenizer: Tokenizer) -> None:
    first = instance.start()
    pid = first.ready["pid"]
    # The control process: nothing happens to the requests.
    instance.kill(first)
    assert answers_well(link, tokenizer) and link.xdp_program() is not None
    status = json.loads(instance.tool("status", "--json").stdout)
    assert status["state"] == "ready" and not status["supervised"]
    # The datapath too: the link is as if nothing had ever been attached.
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: process_start_time(pid) is None)
    wait_until(lambda: link.xdp_program() is None)
    link.exec(link.client, "ping", "-c", "1", "-W", "2", SERVER4)
    # A new control process finds neither and starts over; then its datapath is killed.
    second = instance.start()
    assert not second.event("adopted") and answers_well(link, tokenizer)
    os.kill(second.ready["pid"], signal.SIGKILL)
    instance.note(second.read_until("restart")["pid"])
    assert answers_well(link, tokenizer) and link.xdp_program() is not None
    # And one more control process takes the new datapath over.
    instance.kill(second)
    third = instance.start()
    assert third.event("adopted") and answers_well(link, tokenizer)
    third.process.send_signal(signal.SIGTERM)
    assert third.process.wait(20) == 0
    assert link.xdp_program() is None
