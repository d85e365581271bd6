"""The life of the datapath: starts, crashes, drains, refusals, and what it leaves to the kernel."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
import veth
from load import Load, ask, wait_for
from test_paths import check_reply, header, ping
from veth import IFACE, PORT, SERVER4, SERVER6, Datapath, Link

from pintok._wire import WireOp
from pintok_server._spec import metrics
from pintok_server.control.statistics import StatisticsReader

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

XDP = (f"--iface={IFACE}", "--cores=0", "--path=xdp")


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with veth.veth_link() as made:
        yield made


# --- crash and restart ---------------------------------------------------------------------------


def test_killed_process_leaves_nothing(link: Link, tmp_path: pathlib.Path) -> None:
    """After `kill -9` no program is attached and the link carries ordinary traffic."""
    with veth.datapath(link, tmp_path, *XDP) as process:
        check_reply(ping(100, 8), ask(link, ping(100, 8)))
        assert link.xdp_program() is not None
        process.kill()
    wait_for(lambda: link.xdp_program() is None)
    link.exec(link.client, "ping", "-c1", "-W2", SERVER4)


def test_twenty_restarts(link: Link, tmp_path: pathlib.Path) -> None:
    """A queue is still busy for a moment after its process was killed: no start fails."""
    for number in range(20):
        with veth.datapath(link, tmp_path, *XDP) as process:
            request = ping(100 + number, 64)
            check_reply(request, ask(link, request))
            assert process.statistics().path == "xdp"
            if number % 4 == 3:
                assert process.stop() == 0
            else:
                process.kill()


# --- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_drain_answers_all_that_was_asked(link: Link, tmp_path: pathlib.Path, path: str) -> None:
    """Under load, SIGTERM ends with status 0 and answers every request from before it."""
    with veth.datapath(
        link, tmp_path, f"--iface={IFACE}", "--cores=0", f"--path={path}"
    ) as process:
        load = Load(link, window=64)
        load.start()
        wait_for(lambda: len(load.answered) > 2000, 20.0)
        asked = load.sent
        started = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - started < 4.0
        load.stopping.set()
        load.join(30.0)
        lost = set(range(asked)) - load.answered
        assert not lost, f"{len(lost)} of {asked}, first {min(lost)}"
    assert process.says("drained")
    assert link.xdp_program() is None


def test_drain_hands_the_queue_to_the_kernel_socket(link: Link, tmp_path: pathlib.Path) -> None:
    """Packets that come while the poller finishes are passed by the program and answered there."""
    with veth.datapath(link, tmp_path, *XDP) as process:
        load = Load(link, window=8)
        load.start()
        wait_for(lambda: len(load.answered) > 100, 10.0)
        process.process.send_signal(signal.SIGTERM)
        assert process.ended(10.0) == 0
        load.stopping.set()
        load.join(20.0)
        with StatisticsReader(process.stats_path) as reader:
            after = reader.read()
    assert after.state == "stopped"
    received = {worker.kind: worker.counters["rx_packets"] for worker in after.workers}
    assert received["poller"] == after.steer["redirect"] > 100
    assert 0 < received["socket"] <= after.steer["pass_no_socket"]


# --- refusals ------------------------------------------------------------------------------------


def refused(link: Link, folder: pathlib.Path, *arguments: str) -> tuple[int, str]:
    """Exit status and words of a datapath that does not start."""
    with veth.datapath(link, folder, *arguments, ready=False) as process:
        status = process.ended(20.0)
    return status, process.lines[-1]


def test_foreign_program_is_left_alone(link: Link, tmp_path: pathlib.Path) -> None:
    """An interface with an XDP program is refused by its id and name, and goes on working."""
    with veth.datapath(link, tmp_path, *XDP):
        shown = link.xdp_program()
        assert shown is not None
        status, words = refused(link, tmp_path, *XDP, "--port=7300")
        assert status == 1
        assert re.search(
            rf"program {shown['prog']['id']} \(name ptk_steer, tag [0-9a-f]{{16}}\)", words
        )
        check_reply(ping(120, 8), ask(link, ping(120, 8)))
        # Without the demand for XDP it starts, and says what it has instead.
        with veth.datapath(
            link, tmp_path, f"--iface={IFACE}", "--cores=0", "--path=auto", "--port=7300"
        ) as second:
            assert second.statistics().path == "socket"
            assert second.statistics().process["lesser_modes"] > 0
            assert "lesser mode: AF_XDP" in second.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--require=zerocopy",), "zero-copy"),
        (("--zerocopy=require",), "zero-copy"),
        (("--require=isolation",), "isolated"),
        (("--queues=1",), "has queues 0 to 0"),
        (("--queues=0,1",), "each queue needs a core"),
        (("--model=0:x=/nowhere",), "/nowhere: No such file"),
        (("--mailbox=/nowhere",), "mailbox /nowhere"),
        (("--iface=nowhere",), "interface nowhere"),
        (("--cores=4000",), "core 4000"),
        (("--steer-object=/nowhere",), "/nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_refusal_names_the_cause(
    link: Link, tmp_path: pathlib.Path, arguments: tuple[str, ...], words: str
) -> None:
    status, line = refused(link, tmp_path, *XDP, *arguments)
    assert status == 1
    assert words in line
    assert link.xdp_program() is None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--cores=0", "--port=0"),
        ("--cores=0", "--port=65536"),
        ("--cores=0", "--path=fast"),
        ("--cores=0", "--nonsense"),
        ("--cores=0", "nonsense"),
        ("--cores=0", "--ring=100"),
        ("--cores=0", "--address=224.0.0.1"),
        ("--cores=0", "--model=0:a"),
        ("--cores=0", "--model=9:a=b"),
        ("--cores=0", "--model=0:a=b", "--model=0:c=d"),
        ("--cores=0", "--path=socket", "--require=xdp"),
        ("--cores=0", "--require="),
    ],
    ids=" ".join,
)
def test_wrong_command_line(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(veth.program_path()), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ptk-datapath: ")
    assert done.stderr.count("\n") == 1


# --- privileges ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    "PINTOK_DATAPATH" in os.environ, reason="another build may have threads of a sanitizer"
)
def test_every_thread_is_without_capabilities(link: Link, tmp_path: pathlib.Path) -> None:
    with veth.datapath(link, tmp_path, *XDP) as process:
        pid = process.statistics().pid
        threads = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
        assert len(threads) == 3  # main, poller, kernel-socket worker
        names = set()
        for thread in threads:
            status = dict(
                line.split(":\t", 1) for line in (thread / "status").read_text().splitlines()
            )
            names.add(status["Name"])
            for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[field], 16) == 0, (status["Name"], field)
            assert status["NoNewPrivs"].strip() == "1"
        assert names == {"ptk-datapath", "ptk-poll-0", "ptk-socket"}
        modes = {
            line.split(":\t")[1]
            for thread in threads
            for line in (thread / "status").read_text().splitlines()
            if line.startswith("Seccomp:")
        }
        assert modes == {"2"}  # each thread is confined to the calls it needs
        assert process.statistics().process["sandboxed"] == 1
        assert all(worker.gauges["sandboxed"] for worker in process.statistics().workers)


# --- what is not ours ----------------------------------------------------------------------------


def test_other_traffic_passes(link: Link, tmp_path: pathlib.Path) -> None:
    """While serving: ping and ping6, ARP, TCP on our port, UDP on another."""
    with contextlib.ExitStack() as stack, veth.datapath(link, tmp_path, *XDP) as process:
        link.exec(link.client, "ping", "-c1", "-W2", SERVER4)
        link.exec(link.client, "ping", "-6", "-c1", "-W2", SERVER6)
        link.ip(link.client, "neighbour", "delete", SERVER4, "dev", IFACE)
        link.exec(link.client, "ping", "-c1", "-W2", SERVER4)
        with link.inside(link.server):
            listener = stack.enter_context(socket.create_server((SERVER4, PORT)))
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind((SERVER4, PORT + 1))
        with link.inside(link.client):
            stream = stack.enter_context(socket.create_connection((SERVER4, PORT), 2.0))
        accepted, _ = listener.accept()
        stream.sendall(b"stream")
        assert accepted.recv(16) == b"stream"
        accepted.close()
        with link.client_socket(socket.AF_INET) as sock:
            sock.sendto(b"datagram", (SERVER4, PORT + 1))
        other.settimeout(2.0)
        assert other.recv(16) == b"datagram"
        wait_for(lambda: process.statistics().steer["pass_port"] > 0)
        steer = process.statistics().steer
        assert steer["pass_not_udp"] > 0
        assert steer["pass_not_ip"] > 0


# --- counters and conditions ---------------------------------------------------------------------


def test_link_down_and_up(link: Link, tmp_path: pathlib.Path) -> None:
    with veth.datapath(link, tmp_path, *XDP) as process:
        assert process.statistics().process["link_up"] == 1
        link.ip(link.client, "link", "set", IFACE, "down")
        wait_for(lambda: process.statistics().process["link_up"] == 0)
        link.ip(link.client, "link", "set", IFACE, "up")
        wait_for(lambda: process.statistics().process["link_up"] == 1)
        link.ip(
            link.client, "neighbour", "replace", SERVER4, "lladdr", veth.SERVER_MAC, "dev", IFACE
        )
        assert process.statistics().process["link_changes"] == 2
        check_reply(ping(130, 8), ask(link, ping(130, 8)))
        assert process.says("is down")


def test_starved_rings_move_their_counters(link: Link, tmp_path: pathlib.Path) -> None:
    """A process that stands still loses packets, counts them, and answers again afterwards."""
    with veth.datapath(link, tmp_path, *XDP, "--ring=32") as process:
        pid = process.statistics().pid
        with link.client_socket(socket.AF_INET) as sock:
            sock.connect((SERVER4, PORT))
            subprocess.run(["kill", "-STOP", str(pid)], check=True)
            try:
                for number in range(400):
                    sock.send(header(number, WireOp.PING, 0))
            finally:
                subprocess.run(["kill", "-CONT", str(pid)], check=True)
            # What had room in the rings is answered late, the rest is counted as lost.
            answered = 0
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    sock.recv(2048)
                    answered += 1
        assert 32 <= answered < 400
        check_reply(ping(131, 8), ask(link, ping(131, 8)))

        def lost() -> int:
            counters = process.statistics().queues[0].counters
            return counters["rx_dropped"] + counters["rx_ring_full"]

        # The veth pair's own queue may have dropped some before the socket saw them.
        wait_for(lambda: 0 < lost() <= 400 - answered)
        wait_for(lambda: process.statistics().total("tx_packets") >= answered + 1)
        worker = process.statistics().workers[0]
        assert worker.gauges["frames_missing"] == 0
        assert worker.gauges["frames"] == sum(
            worker.gauges[name] for name in ("frames_free", "frames_rx", "frames_tx")
        )


def test_queue_without_core_is_answered_by_the_kernel_socket(tmp_path: pathlib.Path) -> None:
    with (
        veth.veth_link(queues=2) as link,
        veth.datapath(link, tmp_path, *XDP, "--xdp-mode=drv", "--queues=1") as process,
    ):
        for _ in range(40):
            request = ping(140, 32)
            check_reply(request, ask(link, request))
        wait_for(lambda: process.statistics().steer["pass_no_socket"] > 0)
        wait_for(lambda: process.statistics().total("tx_packets") == 40)
        kinds = {
            worker.kind for worker in process.statistics().workers if worker.counters["requests"]
        }
        assert kinds == {"poller", "socket"}
        assert process.says("1 of the 2 queues")


def test_heartbeat_and_idle(link: Link, tmp_path: pathlib.Path) -> None:
    """An idle adaptive server sleeps, and its main thread comes round."""
    with veth.datapath(link, tmp_path, *XDP, "--idle=adaptive") as process:
        first = process.statistics()
        wait_for(
            lambda: process.statistics().process["heartbeat_ns"] > first.process["heartbeat_ns"]
        )
        wait_for(lambda: process.statistics().workers[0].counters["sleeps"] > 5)
        assert first.process["busy_spin"] == 0


def test_latency_histogram_counts_every_reply(link: Link, tmp_path: pathlib.Path) -> None:
    with veth.datapath(link, tmp_path, *XDP) as process:
        for number in range(50):
            ask(link, ping(150 + number, 8))
        wait_for(lambda: process.statistics().total("tx_packets") == 50)
        worker = process.statistics().workers[0]
        assert sum(worker.latency) == 50
        assert {name: count for name, count in worker.verdicts.items() if count} == {"ok": 50}
        assert {name: count for name, count in worker.ops.items() if count} == {"ping": 50}
        assert worker.counters["request_bytes"] == worker.counters["reply_bytes"] == 50 * 40


# --- the mailbox ---------------------------------------------------------------------------------


class Mailbox:
    """The control process's side of the mailbox."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._values: dict[str, object] = dict.fromkeys(metrics.MAILBOX_FIELDS, 0)
        for name in ("reserved_line", "name", "path", "reserved_end"):
            self._values[name] = b""
        self._values["magic"] = metrics.MAILBOX_MAGIC.encode()
        self._values["version"] = metrics.STATS_VERSION
        self._write()

    def _write(self) -> None:
        data = metrics.MAILBOX.pack(*(self._values[name] for name in metrics.MAILBOX_FIELDS))
        with self.path.open("r+b" if self.path.exists() else "wb") as stream:
            stream.write(data)

    def send(self, process: Datapath, **values: object) -> tuple[int, str]:
        """Write a command and wait for its ack; result and text."""
        sequence = int(str(self._values["sequence"])) + 1
        self._values |= values
        self._write()
        self._values["sequence"] = sequence
        self._write()
        with StatisticsReader(process.stats_path) as reader:
            wait_for(lambda: reader.ack().sequence == sequence)
            return reader.ack().result, reader.ack().text


def test_mailbox_refusals(link: Link, tmp_path: pathlib.Path) -> None:
    """Every command is answered by its number; a refusal has an errno and a sentence."""
    mailbox = Mailbox(tmp_path / "mailbox")
    with veth.datapath(
        link, tmp_path, *XDP, f"--mailbox={mailbox.path}", "--models-max=2"
    ) as process:
        load = metrics.MailboxCommand.LOAD
        result, text = mailbox.send(process, command=load, slot=0, name=b"a", path=b"/nowhere")
        assert (result, text) == (2, "image /nowhere: No such file or directory")
        result, text = mailbox.send(process, command=load, slot=2, name=b"a", path=b"/etc/passwd")
        assert (result, text) == (22, "model slot 2: this server has slots 0 to 1")
        result, text = mailbox.send(process, command=load, slot=1, name=b"a", path=b"/etc/passwd")
        assert result == 22
        assert text.startswith("image /etc/passwd: ")
        result, text = mailbox.send(process, command=metrics.MailboxCommand.UNLOAD, slot=0)
        assert (result, text) == (2, "model slot 0: is empty")
        result, text = mailbox.send(process, command=77, slot=0)
        assert (result, text) == (22, "mailbox: command 77 is unknown")
        assert process.statistics().process["commands"] == 5
        assert mailbox.send(process, command=metrics.MailboxCommand.DRAIN) == (0, "")
        assert process.ended(10.0) == 0


def test_control_process_may_die(link: Link, tmp_path: pathlib.Path) -> None:
    """The datapath goes on without its parent and without anyone who reads its words."""
    stats = tmp_path / "orphan"
    script = (
        f"ip netns exec {link.server} {veth.program_path()} --stats={stats} "
        f"--steer-object={veth.steer_path()} {' '.join(XDP)} & wait"
    )
    parent = subprocess.Popen(["sh", "-c", script], stderr=subprocess.PIPE)
    pid = 0
    try:
        wait_for(stats.exists, 20.0)

        def ready() -> bool:
            with StatisticsReader(stats) as reader:
                return reader.state() == "ready"

        wait_for(ready, 20.0)
        with StatisticsReader(stats) as reader:
            pid = reader.pid
        parent.kill()
        parent.wait(5.0)
        assert parent.stderr is not None
        parent.stderr.close()
        link.ip(link.client, "link", "set", IFACE, "down")  # it now has something to say
        link.ip(link.client, "link", "set", IFACE, "up")
        link.ip(
            link.client, "neighbour", "replace", SERVER4, "lladdr", veth.SERVER_MAC, "dev", IFACE
        )
        time.sleep(0.3)  # longer than a look at the link takes to come round
        check_reply(ping(190, 8), ask(link, ping(190, 8)))
    finally:
        if pid:
            subprocess.run(["kill", "-TERM", str(pid)], check=True)
            wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), 10.0)


# --- fewer rights --------------------------------------------------------------------------------


FOUR = "-all,+net_admin,+net_raw,+bpf,+ipc_lock"


def unprivileged(capabilities: str) -> tuple[str, ...]:
    """A command prefix: user nobody with these capabilities, as setpriv writes them."""
    return (
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *(f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
        f"--bounding-set={capabilities}",
    )


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A folder in memory that every user may write to; pytest's own are root's.

    The XDP program is read from a copy there: the clone may lie where only root looks.
    """
    with tempfile.TemporaryDirectory(prefix="ptk-test-", dir="/dev/shm") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o777)
        steer = folder / "ptk_steer.bpf.o"
        shutil.copyfile(veth.steer_path(), steer)
        steer.chmod(0o644)
        monkeypatch.setattr(veth, "steer_path", lambda: steer)
        yield folder


def test_four_capabilities_are_enough(link: Link, open_folder: pathlib.Path) -> None:
    """CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK: a user of no other rank serves XDP."""
    with veth.datapath(link, open_folder, *XDP, prefix=unprivileged(FOUR)) as process:
        check_reply(ping(180, 8), ask(link, ping(180, 8)))
        assert process.statistics().path == "xdp"
        assert process.statistics().process["memory_locked"] == 1
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("net_admin", "CAP_NET_ADMIN is missing"),
        ("net_raw", "CAP_NET_RAW is missing"),
        ("bpf", "CAP_BPF is missing"),
    ],
)
def test_missing_capability_is_named(
    link: Link, open_folder: pathlib.Path, missing: str, words: str
) -> None:
    three = FOUR.replace(f",+{missing}", "")
    with veth.datapath(link, open_folder, *XDP, prefix=unprivileged(three), ready=False) as process:
        assert process.ended(20.0) == 1
        wait_for(lambda: words in process.text)


def test_without_rights_the_socket_path_serves(link: Link, open_folder: pathlib.Path) -> None:
    """`--path auto` of a user without any capability: it serves, and says what it lacks."""
    with veth.datapath(
        link, open_folder, f"--iface={IFACE}", "--cores=0", prefix=unprivileged("-all")
    ) as process:
        check_reply(ping(181, 8), ask(link, ping(181, 8)))
        assert process.statistics().path == "socket"
        assert process.says("lesser mode: AF_XDP")
        assert process.stop() == 0


def test_interface_that_vanishes(tmp_path: pathlib.Path) -> None:
    """The process says so, goes on, and can still be drained."""
    with veth.veth_link() as link, veth.datapath(link, tmp_path, *XDP) as process:
        check_reply(ping(182, 8), ask(link, ping(182, 8)))
        link.ip(link.client, "link", "delete", IFACE)
        wait_for(lambda: "is gone" in process.text)
        assert process.statistics().process["link_up"] == 0
        assert process.stop() == 0
