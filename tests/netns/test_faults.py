"""Faults of the machine: each has a named behaviour, for the client and for the operator.

What is not here: a killed control process (test_server.py), a foreign XDP program and a missing
right (test_life.py), failures of a take-over (test_take_over.py, test_upgrade.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
import veth
from load import Steady, ask, wait_for
from test_life import Mailbox
from test_paths import check_reply, ping
from veth import IFACE, SERVER4, Link, huge_pages

from pintok.client import Client
from pintok.tokenizer import Tokenizer
from pintok_server._spec import metrics
from pintok_server.control.runtime import current_state
from pintok_server.control.statistics import HEARTBEAT_AGE_MAX_S, StatisticsReader
from tests.netns.test_upgrade import TEXTS, Asking
from tests.server_process import Instance, wait_until

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

XDP = (f"--iface={IFACE}", "--cores=0", "--path=xdp", "--message-len-max=65536")


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with veth.veth_link() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="ptk-test-", dir="/dev/shm") as name:
        yield pathlib.Path(name)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    tokenizer = Tokenizer.from_pretrained("default")
    return [tokenizer.encode(text).tolist() for text in TEXTS]


def instance_on(link: Link, folder: pathlib.Path, *options: str) -> Instance:
    core = max(os.sched_getaffinity(0))
    given = [f"--iface={IFACE}", "--path=xdp", f"--cores={core}", *options]
    return Instance(folder, given, prefix=["ip", "netns", "exec", link.server])


# --- the interface -------------------------------------------------------------------------------


def test_link_down_and_up_under_load(link: Link, folder: pathlib.Path) -> None:
    """Requests of the time in between are lost by the link; those sent again are answered."""
    with veth.datapath(link, folder, *XDP) as process:
        steady = Steady(link)
        steady.start()
        wait_for(lambda: steady.answered > 200)
        for _ in range(3):
            link.ip(link.server, "link", "set", IFACE, "down")
            wait_for(lambda: process.statistics().process["link_up"] == 0)
            link.ip(link.server, "link", "set", IFACE, "up")
            wait_for(lambda: process.statistics().process["link_up"] == 1)
            answered = steady.answered
            wait_for(lambda answered=answered: steady.answered > answered + 200)
        figures = steady.finish()
        assert (figures.unanswered, figures.wrong) == (0, 0)
        assert figures.resent > 0
        seen = process.statistics()
        assert seen.process["link_changes"] == 6
        assert seen.workers[0].counters["rx_packets"] > 200  # over AF_XDP again
        assert seen.workers[0].gauges["frames_missing"] == 0
        assert process.says("is down") and process.says("is up again")
        assert process.stop() == 0


def test_interface_removed_and_back(folder: pathlib.Path, expected: list[list[int]]) -> None:
    """The datapath says that it is gone and goes on; when there is one of that name again, the
    control process starts the datapath anew, and it serves over AF_XDP as before."""
    with veth.veth_link() as link, contextlib.closing(instance_on(link, folder)) as instance:
        server = instance.start()
        link.ip(link.client, "link", "delete", IFACE)
        while "is gone" not in server.read_until("datapath")["text"]:
            pass
        assert server.process.poll() is None
        with pytest.raises(OSError):
            ask(link, ping(100, 8))
        link.make()
        server.read_until("interface_back")
        instance.note(server.read_until("restart")["pid"])
        wait_until(lambda: link.xdp_program() is not None, seconds=30)
        with link.inside(link.client), Client(SERVER4, timeout=15, retries=60) as client:
            assert client.encode(TEXTS[3]).tolist() == expected[3]
        shown = json.loads(instance.tool("status", "--json").stdout)
        assert shown["modes"]["path"] == "xdp"
        server.process.send_signal(signal.SIGTERM)
        server.read_until("stopped")
        assert server.process.wait(20) == 0


def test_queues_changed_while_serving(folder: pathlib.Path) -> None:
    """Fewer or more of them: what has no poller is answered by the kernel's socket."""
    with veth.veth_link(queues=2) as link:
        link.exec(link.server, "ethtool", "-L", IFACE, "rx", "1", "tx", "1")
        link.exec(link.client, "ethtool", "-L", IFACE, "rx", "1", "tx", "1")
        with veth.datapath(link, folder, *XDP, "--xdp-mode=drv") as process:
            assert process.statistics().process["queues"] == 1
            for count, changes in ((2, 1), (1, 2)):
                ends = (link.server, link.client) if count == 2 else (link.client, link.server)
                for end in ends:
                    number = str(count)
                    link.exec(end, "ethtool", "-L", IFACE, "rx", number, "tx", number)
                wait_for(lambda count=count: process.statistics().process["queues"] == count)
                assert process.statistics().process["queue_changes"] == changes
                for _ in range(40):
                    check_reply(ping(140, 32), ask(link, ping(140, 32)))
            assert process.says("has 2 queues now and had 1")
            # veth gives a queue that was added no program: its packets pass without a look.
            wait_for(lambda: process.statistics().total("tx_packets") == 80)
            answered = {each.kind: each.counters["tx_packets"]
                        for each in process.statistics().workers}  # fmt: skip
            assert answered["socket"] > 0 and answered["poller"] > 40
            assert process.statistics().workers[0].gauges["frames_missing"] == 0
            assert process.stop() == 0


def test_second_server_on_the_interface(
    link: Link, tmp_path: pathlib.Path, expected: list[list[int]]
) -> None:
    """Refused by name: by instance, by port, and by the XDP program that is there already."""
    with contextlib.closing(instance_on(link, tmp_path)) as instance:
        instance.start()
        assert "another pintok-server looks after" in instance.refuse()
        other = instance_on(link, tmp_path / "other")
        assert "UDP port 7265 is in use" in other.refuse()
        words = other.refuse("--port=7300")
        assert "is attached already; it is left in place" in words and "ptk_steer" in words
        with link.inside(link.client), Client(SERVER4, timeout=10) as client:
            assert client.encode(TEXTS[5]).tolist() == expected[5]


# --- processes -----------------------------------------------------------------------------------


def test_datapath_killed_under_load(
    link: Link, tmp_path: pathlib.Path, expected: list[list[int]]
) -> None:
    """SIGKILL, three times: the supervisor starts it again, a busy queue is tried again, and a
    client that asks again misses nothing."""
    with contextlib.closing(instance_on(link, tmp_path)) as instance:
        server = instance.start()
        pid = server.ready["pid"]
        with Asking(link, expected, retries=100) as asking:
            for _ in range(3):
                asking.more(200)
                os.kill(pid, signal.SIGKILL)
                assert "was killed by SIGKILL" in server.read_until("datapath_ended")["text"]
                pid = server.read_until("restart")["pid"]
                instance.note(pid)
            asking.more(200)
        asking.check("datapath killed three times")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_stopped_datapath_is_noticed(link: Link, tmp_path: pathlib.Path) -> None:
    """One that hangs is said to, by log and heartbeat; it is not killed, and comes round again."""
    with contextlib.closing(instance_on(link, tmp_path)) as instance:
        server = instance.start()
        os.kill(server.ready["pid"], signal.SIGSTOP)
        try:
            assert "does not come round" in server.read_until("heartbeat")["text"]
            with link.inside(link.server):
                assert server.get("/healthz")[0] == 503
        finally:
            os.kill(server.ready["pid"], signal.SIGCONT)
        assert "comes round again" in server.read_until("heartbeat")["text"]
        check_reply(ping(101, 8), ask(link, ping(101, 8)))


def test_machine_that_was_suspended(
    link: Link, tmp_path: pathlib.Path, expected: list[list[int]]
) -> None:
    """Both processes stand still while all clocks go on, as in a machine that sleeps: nobody takes
    the leap for a death, and the same datapath goes on."""
    with contextlib.closing(instance_on(link, tmp_path)) as instance:
        server = instance.start()
        pids = (server.process.pid, server.ready["pid"])
        with Asking(link, expected, retries=400) as asking:
            asking.more(100)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(HEARTBEAT_AGE_MAX_S + 1)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            asking.more(200)
        asking.check("suspended")
        with StatisticsReader(instance.run_dir.stats) as reader:
            assert reader.pid == server.ready["pid"] and reader.state() == "ready"
            assert reader.read().workers[0].gauges["frames_missing"] == 0
        server.process.send_signal(signal.SIGTERM)
        server.read_until("stopped")
        assert server.process.wait(20) == 0
        assert not server.event("restart") and not server.event("datapath_ended")


# --- memory, disk, time --------------------------------------------------------------------------


def test_huge_pages_run_out(link: Link, folder: pathlib.Path) -> None:
    """At the start: a refusal if they are required. At a model's load: the model is refused and the
    server goes on; without --require both take 4 KiB pages and say so."""
    image = folder / "image"
    size = 64 << 20
    image.write_bytes(b"\0" * size)
    small = ("--frames=64", "--ring=32", "--cache=65536", "--models-max=1")
    box = Mailbox(folder / "mailbox")
    required = (*XDP, *small, "--require=hugepages", f"--mailbox={box.path}")
    with huge_pages(2), veth.datapath(link, folder, *required, ready=False) as process:
        assert process.ended(20.0) == 1
        wait_for(lambda: "raise vm.nr_hugepages or leave hugepages out" in process.text)
    # Some 36 are needed for frames and workers; a model of 64 MiB does not fit the rest.
    with huge_pages(48), veth.datapath(link, folder, *required) as process:
        load = metrics.MailboxCommand.LOAD
        result, text = box.send(
            process, command=load, slot=0, name=b"big", path=str(image).encode()
        )
        assert result == 12 and "huge pages: 32 free pages of 2 MiB are needed" in text
        check_reply(ping(102, 8), ask(link, ping(102, 8)))
        assert process.statistics().state == "ready"
        assert process.stop() == 0
    with veth.datapath(link, folder, *XDP, *small) as process:
        assert process.says("lesser mode: huge pages: too few are free, 4 KiB pages are used")
        assert process.statistics().process["umem_pages"] == metrics.PageKind.SMALL
        check_reply(ping(103, 8), ask(link, ping(103, 8)))


def test_disk_of_the_image_cache_is_full(
    link: Link, tmp_path: pathlib.Path, expected: list[list[int]]
) -> None:
    """A model that cannot be stored is refused by that name, nothing is left behind, and a server
    that runs goes on."""
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(cache)], check=True)
    try:
        with contextlib.closing(instance_on(link, tmp_path)) as instance:
            instance.environment = {"PINTOK_CACHE_DIR": str(cache)}
            words = subprocess.run(
                instance.command("--no-http"), capture_output=True, text=True, timeout=60,
                env=os.environ | instance.environment, check=False,
            ).stderr.splitlines()[-1]  # fmt: skip
            assert "cannot be stored: No space left on device; set PINTOK_CACHE_DIR" in words
            assert [path for path in cache.rglob("*") if path.is_file()] == []
            instance.environment = {}
            server = instance.start()
            state = current_state(instance.run_dir)
            command = [*instance.command(name="models"), "load", "second=default"]
            done = subprocess.run(
                [*command[: command.index("models") + 1], "load", "second=default",
                 f"--runtime-dir={instance.run_dir.path}"],
                capture_output=True, text=True, timeout=60, check=False,
                env=os.environ | {"PINTOK_CACHE_DIR": str(cache)},
            )  # fmt: skip
            assert done.returncode == 1 and "No space left on device" in done.stderr
            assert current_state(instance.run_dir) == state
            with link.inside(link.client), Client(SERVER4, timeout=10) as client:
                assert client.encode(TEXTS[7]).tolist() == expected[7]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
    finally:
        subprocess.run(["umount", str(cache)], check=True)


JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>
/* The wall clock leaps a year ahead or back with every look at it. */
static long leap(void)
{
    static atomic_int looks;
    return (atomic_fetch_add(&looks, 1) % 2 == 0 ? 1 : -1) * 365L * 86400;
}
int clock_gettime(clockid_t which, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) {
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    const int code = real(which, now);
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) {
        now->tv_sec += leap();
    }
    return code;
}
time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) {
        *out = now.tv_sec;
    }
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    (void)zone;
    out->tv_sec = time(NULL);
    out->tv_usec = 0;
    return 0;
}
"""


def test_wall_clock_that_jumps(
    link: Link, tmp_path: pathlib.Path, expected: list[list[int]]
) -> None:
    """Nothing but the date of the start depends on it: control process and datapath start, serve,
    notice a death, drain in time and are upgraded while it leaps by years at each look."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(JUMPING_CLOCK)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    with contextlib.closing(instance_on(link, tmp_path)) as instance:
        instance.environment = {"LD_PRELOAD": str(library)}
        server = instance.start()
        with Asking(link, expected, retries=100) as asking:
            asking.more(200)
            first = server.ready["pid"]
            maps = pathlib.Path(f"/proc/{first}/maps").read_text()
            assert "clock.so" in maps  # the datapath has the clock as well
            done = instance.upgrade()
            assert done.returncode == 0, done.stderr
            server.ready = server.read_until("ready")
            asking.more(200)
            os.kill(server.ready["pid"], signal.SIGKILL)
            instance.note(server.read_until("restart")["pid"])
            asking.more(200)
        asking.check("jumping clock")
        assert not server.event("heartbeat")
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.read_until("stopped")
        assert server.process.wait(20) == 0
        assert time.monotonic() - started < 8
