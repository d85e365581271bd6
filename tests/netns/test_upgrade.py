"""The whole server is upgraded, drained and restarted while a client asks without a pause."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from pintok.client import Client
from pintok.errors import PinTokError, RefusedError
from pintok.tokenizer import Tokenizer
from pintok_server.control.runtime import current_state
from tests.netns.test_server import answers_well, total
from tests.netns.veth import IFACE, SERVER4, Link, veth_link
from tests.server_process import ROOT, Instance, Server, wait_until

pytestmark = pytest.mark.needs("root", "netns", "af_xdp")

TEXTS = [f"{number} prompts, and naïve 😀 text " * (1 + number % 20) for number in range(200)]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with veth_link() as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


@pytest.fixture(scope="module")
def expected(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).tolist() for text in TEXTS]


@pytest.fixture(params=["xdp", "socket"])
def instance(
    request: pytest.FixtureRequest, link: Link, tmp_path: pathlib.Path
) -> Iterator[Instance]:
    core = max(os.sched_getaffinity(0))
    options = [f"--iface={IFACE}", f"--path={request.param}", f"--cores={core}"]
    made = Instance(tmp_path, options, prefix=["ip", "netns", "exec", link.server])
    yield made
    made.close()


@dataclasses.dataclass
class Asking:
    """A client that encodes one text after the other and compares all ids."""

    link: Link
    expected: list[list[int]]
    retries: int = 40
    texts: list[str] = dataclasses.field(default_factory=lambda: TEXTS)
    latencies_s: list[float] = dataclasses.field(default_factory=list)
    wrong: list[object] = dataclasses.field(default_factory=list)
    unanswered: list[PinTokError] = dataclasses.field(default_factory=list)
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __enter__(self) -> Asking:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with (
            self.link.inside(self.link.client),
            Client(SERVER4, timeout=10, retries=self.retries) as client,
        ):
            for number in itertools.cycle(range(len(self.texts))):
                if self.stopping.is_set():
                    return
                started = time.perf_counter()
                try:
                    ids = client.encode(self.texts[number]).tolist()
                except RefusedError as error:
                    self.wrong.append(error)
                    continue
                except PinTokError as error:
                    self.unanswered.append(error)
                    continue
                self.latencies_s.append(time.perf_counter() - started)
                if ids != self.expected[number]:
                    self.wrong.append(ids)

    def more(self, count: int = 300) -> None:
        """Wait for this many answers more."""
        seen = len(self.latencies_s)
        wait_until(lambda: len(self.latencies_s) > seen + count, seconds=60)

    def check(self, what: str) -> None:
        ordered = sorted(self.latencies_s)
        print(
            f"\n{what}: {len(ordered)} requests, {len(self.unanswered)} unanswered, "
            f"{len(self.wrong)} wrong, p50 {1000 * ordered[len(ordered) // 2]:.2f} ms, "
            f"p99 {1000 * ordered[len(ordered) * 99 // 100]:.2f} ms, "
            f"max {1000 * ordered[-1]:.1f} ms"
        )
        assert not self.unanswered
        assert not self.wrong


def test_three_upgrades_in_a_row(
    link: Link, instance: Instance, tokenizer: Tokenizer, expected: list[list[int]]
) -> None:
    """Continuous load: zero unanswered, zero wrong, no request sent twice; the counters go on, and
    the control process is the same process with the new program."""
    server = instance.start()
    pids = [server.ready["pid"]]
    # Long messages that are under way are asked for again, by the client itself.
    texts = [f"{number} " + "long prompts in segments, naïve 😀. " * 3000 for number in range(5)]
    ids = [tokenizer.encode(text).tolist() for text in texts]
    with (
        Asking(link, ids, texts=texts) as long,
        Asking(link, expected, retries=0) as asking,
    ):
        asking.more()
        for count in range(1, 4):
            before = total(link, server, "pintok_worker_requests_total")
            done = instance.upgrade()
            assert done.returncode == 0, done.stderr
            assert f"in the place of process {pids[-1]}" in done.stderr
            server.read_until("handed_over")
            server.ready = server.read_until("ready")
            pids.append(server.ready["pid"])
            assert server.event("adopted")[-1]["pid"] == pids[-1]
            assert total(link, server, "pintok_worker_requests_total") > before
            assert total(link, server, "pintok_datapath_take_overs_total") == count
            asking.more()
        long.more(3)
    asking.check("three upgrades")
    long.check("three upgrades, texts of 110 KB")
    assert len(set(pids)) == 4
    assert len(server.event("restart")) == 0
    assert total(link, server, "pintok_worker_frames_missing") == 0
    wait_until(
        lambda: total(link, server, "pintok_worker_requests_total") >= len(asking.latencies_s)
    )
    assert answers_well(link, tokenizer)
    server.process.send_signal(signal.SIGTERM)
    server.read_until("stopped")
    assert server.process.wait(20) == 0
    assert link.xdp_program() is None


def test_models_change_with_the_upgrade(
    link: Link, instance: Instance, tokenizer: Tokenizer, expected: list[list[int]]
) -> None:
    """The new datapath serves other models from its first request on; live ones stay."""
    instance.start()
    assert instance.tool("models", "load", "live=default").returncode == 0
    with Asking(link, expected, retries=0) as asking:
        asking.more()
        done = instance.upgrade("--model=default", "--model=second=default")
        assert done.returncode == 0, done.stderr
        asking.more()
    asking.check("another model")
    with link.inside(link.client), Client(SERVER4, timeout=10) as client:
        assert [info.name for info in client.models()] == ["default", "second", "live"]
    with link.inside(link.client), Client(SERVER4, model="live", timeout=10) as client:
        assert client.encode(TEXTS[1]).tolist() == expected[1]


def test_refused_upgrade_changes_nothing(
    link: Link, instance: Instance, expected: list[list[int]]
) -> None:
    """It says why, exits with 1, and control process, datapath, files and models are as before."""
    assert "no datapath runs in" in instance.upgrade().stderr
    server = instance.start()
    state = current_state(instance.run_dir)
    log = instance.run_dir.log.read_text()
    with Asking(link, expected, retries=0) as asking:
        for options, words in (
            (["--ring=64"], "restart instead" if "--path=xdp" in instance.command() else ""),
            (["--port=7300"], "UDP port 7265, this one is to have 7300"),
            (["--model=/absent"], "no such file"),
            (["--iface=absent"], "there is no interface absent"),
            (["--require=isolation"], "isolated"),
        ):
            if not words:
                continue
            done = instance.upgrade("--instance=any", *options)
            assert done.returncode == 1, options
            assert words in done.stderr.splitlines()[-1], options
            assert "Traceback" not in done.stderr
            assert current_state(instance.run_dir) == state
        asking.more()
    asking.check("refused upgrades")
    assert instance.run_dir.log.read_text().startswith(log)  # the old one's, with its own words
    assert server.process.poll() is None
    assert total(link, server, "pintok_datapath_take_overs_total") == 0
    done = instance.upgrade()
    assert done.returncode == 0, done.stderr
    server.ready = server.read_until("ready")


def test_killed_upgrade_leaves_one_server(
    link: Link, instance: Instance, expected: list[list[int]]
) -> None:
    """SIGKILL of the command at any moment: one datapath serves, the control process finds it."""
    server = instance.start()
    with Asking(link, expected) as asking:
        for delay_s in (0.3, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4):
            command = subprocess.Popen(
                instance.command("--no-http", name="upgrade"), cwd=ROOT, stderr=subprocess.DEVNULL
            )
            time.sleep(delay_s)
            command.kill()
            command.wait()
            asking.more(100)
    asking.check("killed upgrades")

    def supervised() -> bool:
        shown = instance.tool("status", "--json")
        return shown.returncode == 0 and bool(json.loads(shown.stdout)["supervised"])

    wait_until(supervised, seconds=30)
    assert server.process.poll() is None
    state = current_state(instance.run_dir)
    assert state is not None and state.alive()
    instance.note(state.pid)
    done = instance.upgrade()
    assert done.returncode == 0, done.stderr


def test_upgrade_without_a_control_process(
    link: Link, instance: Instance, expected: list[list[int]]
) -> None:
    """It is not needed for it, and the next one adopts what serves then."""
    first = instance.start()
    instance.kill(first)
    with Asking(link, expected, retries=0) as asking:
        asking.more(100)
        done = instance.upgrade()
        assert done.returncode == 0, done.stderr
        asking.more(100)
        second = instance.start()
        assert second.event("adopted")
        assert second.ready["pid"] != first.ready["pid"]
        asking.more(100)
    asking.check("upgrade alone")


def test_signal_during_the_change_of_program_is_not_lost(instance: Instance) -> None:
    """SIGTERM while the control process begins anew drains the datapath that it is to adopt."""
    server = instance.start()
    done = instance.upgrade()
    assert done.returncode == 0
    server.read_until("handed_over")
    server.process.send_signal(signal.SIGTERM)
    server.read_until("stopped")
    assert server.process.wait(20) == 0
    state = current_state(instance.run_dir)
    assert state is None or not state.alive()


def test_drain_and_restart_under_load(
    link: Link, instance: Instance, expected: list[list[int]]
) -> None:
    """A client that asks again misses nothing over restarts: `drain`, then a new server."""
    server: Server = instance.start()
    with Asking(link, expected) as asking:
        for _ in range(3):
            asking.more()
            done = instance.tool("drain")
            assert done.returncode == 0, done.stderr
            assert "control process" in done.stdout
            assert server.process.wait(20) == 0
            server.read_until("stopped")
            assert link.xdp_program() is None
            server = instance.start()
        asking.more()
    asking.check("three restarts")
    # Without a control process the datapath itself is told.
    instance.kill(server)
    done = instance.tool("drain")
    assert done.returncode == 0 and "datapath" in done.stdout
    assert instance.tool("drain").returncode == 1
