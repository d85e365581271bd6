"""A datapath is taken over by another one: nothing is lost, and nothing breaks when it fails."""

from __future__ import annotations

import array
import contextlib
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
import veth
from load import Load, Steady, ask, wait_for
from test_abuse import exchange, extended, signed, verdict_of
from test_paths import check_reply, header, ping
from veth import IFACE, Datapath, Link

from pintok import _wire
from pintok._wire import Verdict, WireFlags, WireOp, WireType
from pintok_server._spec import metrics
from pintok_server.control.keys import make_key

pytestmark = [
    pytest.mark.needs("root", "netns", "af_xdp"),
    pytest.mark.skipif(not veth.program_path().exists(), reason="ptk-datapath is not built"),
]

HELLO, SERVER, QUEUE, SOCKET, HOLD, HELD, TAKEN, REFUSE = range(1, 9)
VERSION = 2


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with veth.veth_link() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """In memory, so that no statistics are written to a disk."""
    with tempfile.TemporaryDirectory(prefix="ptk-test-", dir="/dev/shm") as name:
        yield pathlib.Path(name)


# Little memory for long messages: two datapaths are up at a time, and start often here.
SMALL = "--message-len-max=65536"


def options(folder: pathlib.Path, path: str, *more: str) -> tuple[str, ...]:
    where = f"--hand-over={folder / 'handover'}"
    return (f"--iface={IFACE}", "--cores=0", f"--path={path}", where, SMALL, *more)


def successor(folder: pathlib.Path) -> str:
    return f"--take-over={folder / 'handover'}"


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_three_in_a_row_under_load(link: Link, folder: pathlib.Path, path: str) -> None:
    """Every request is answered, rightly and by its first sending; the counters go on."""
    with contextlib.ExitStack() as stack:
        flood = Load(link, window=32)
        steady = Steady(link)
        current = stack.enter_context(veth.datapath(link, folder, *options(folder, path)))
        flood.start()
        steady.start()
        wait_for(lambda: len(flood.answered) > 2000, 20.0)
        served = 0
        for count in range(1, 4):
            old = current
            current = stack.enter_context(
                veth.datapath(link, folder, *options(folder, path), successor(folder))
            )
            assert old.ended(5.0) == 0
            assert old.lines[-1] == "ptk-datapath: handed over"
            seen = current.statistics()
            assert seen.process["take_overs"] == count
            assert seen.total("rx_packets") > served
            served = seen.total("rx_packets")
            answered = len(flood.answered)
            wait_for(lambda answered=answered: len(flood.answered) > answered + 2000, 20.0)
        flood.stopping.set()
        flood.join(30.0)
        figures = steady.finish()
        gap_us = seen.process["take_over_gap_ns"] / 1000
        print(f"\nstood still at the last take-over: {gap_us:.0f} us")
        print(f"\n{path}: flood of {flood.sent}: {figures}")
        lost = set(range(flood.sent)) - flood.answered
        assert not lost, f"{len(lost)} of {flood.sent}, first {min(lost)}"
        assert (figures.unanswered, figures.wrong) == (0, 0)
        # Nothing was dropped and nothing was sent twice by a client: the sums are equal.
        asked = flood.sent + figures.requests + figures.resent
        wait_for(lambda: current.statistics().total("tx_packets") == asked)
        seen = current.statistics()
        assert seen.total("rx_packets") == asked
        assert seen.total("requests") == asked
        assert sum(sum(worker.latency) for worker in seen.workers) == asked
        assert sum(worker.verdicts["ok"] for worker in seen.workers) == asked
        assert sum(worker.ops["ping"] for worker in seen.workers) == asked
        assert all(worker.gauges["frames_missing"] == 0 for worker in seen.workers)
        assert all(worker.counters["frame_faults"] == 0 for worker in seen.workers)
        if path == "xdp":
            wait_for(lambda: current.statistics().steer["redirect"] == asked)
            assert "stays" not in current.text  # the XDP program was replaced as well
        assert current.stop() == 0
    assert link.xdp_program() is None
    assert not (folder / "handover").exists()


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_two_queues_and_any_mtu(folder: pathlib.Path, mtu: int) -> None:
    """Several workers stand still together, also where packets span several frames."""
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(veth.veth_link(queues=2, mtu=mtu))
        arguments = (f"--iface={IFACE}", "--cores=0,1", "--path=xdp", "--ring=64", SMALL,
                     f"--hand-over={folder / 'handover'}")  # fmt: skip
        current = stack.enter_context(veth.datapath(link, folder, *arguments))
        load = Load(link, window=16)
        load.start()
        for _ in range(5):
            current = stack.enter_context(
                veth.datapath(link, folder, *arguments, successor(folder))
            )
            check_reply(ping(130, mtu - 200 & ~7), ask(link, ping(130, mtu - 200 & ~7)))
        load.stopping.set()
        load.join(30.0)
        assert not set(range(load.sent)) - load.answered
        for worker in current.statistics().workers:
            assert worker.gauges["frames_missing"] == worker.counters["frame_faults"] == 0
        assert current.stop() == 0


def test_long_messages_are_unknown_and_their_counters_go_on(
    link: Link, folder: pathlib.Path
) -> None:
    """A message that is half there is sent again: the heir says that it does not know it."""
    pull = bytearray(header(7, WireOp.ENCODE, 0))
    pull[2] = _wire.WIRE_VERSION << 4 | WireType.PULL
    asked = bytes(pull) + bytes(_wire.WIRE_WINDOW.size)
    with contextlib.ExitStack() as stack:
        current = stack.enter_context(veth.datapath(link, folder, *options(folder, "xdp")))
        for count in range(1, 4):
            reply = ask(link, asked)
            fields = _wire.WIRE_HEADER.unpack_from(reply)
            assert Verdict.UNKNOWN_REQUEST in fields[_wire.WIRE_HEADER_FIELDS.index("verdict") :]
            wait_for(lambda at=current, count=count: at.statistics().total("bulk_unknown") == count)
            current = stack.enter_context(
                veth.datapath(link, folder, *options(folder, "xdp"), successor(folder))
            )
        assert current.statistics().total("bulk_unknown") == 3
        assert current.stop() == 0


@pytest.mark.parametrize("path", ["xdp", "socket"])
def test_validated_clients_and_keys_notice_nothing(
    link: Link, folder: pathlib.Path, path: str
) -> None:
    """Cookies hold over take-overs, counters go on, and what was answered is not answered again."""
    line = make_key(1)
    key = bytes.fromhex(line.split()[1])
    (folder / "keys").write_text(line + "\n")
    arguments = options(folder, path, "--validate=on", "--stranger-percent=100",
                        f"--keys={folder / 'keys'}")  # fmt: skip
    with contextlib.ExitStack() as stack:
        current = stack.enter_context(veth.datapath(link, folder, *arguments))
        sock = stack.enter_context(link.client_socket(socket.AF_INET))
        sock.connect((veth.SERVER4, veth.PORT))
        sock.settimeout(10.0)

        def once(request: bytes) -> bytes:
            return exchange(sock, request, attempts=1)

        no_cookie = extended(ping(150, 64), WireFlags.COOKIE, bytes(_wire.WIRE_COOKIE.size))
        cookie = once(no_cookie)[_wire.WIRE_HEADER_LEN :]
        answered = []
        for number in range(151, 160):
            if number > 151:
                old = current
                current = stack.enter_context(
                    veth.datapath(link, folder, *arguments, successor(folder))
                )
                assert old.ended(5.0) == 0
            shown = ping(number, 64)
            check_reply(shown, once(extended(shown, WireFlags.COOKIE, cookie)))
            answered.append(signed(ping(number, 64), 1, key, sequence=1000 + number))
            check_reply(ping(number, 64), once(answered[-1]))
            for copy in answered:
                assert verdict_of(once(copy)) == "REPLAYED"
        # The nine were each shown once, and nobody was asked to validate in between.
        copies = sum(range(1, 10))

        def counted() -> dict[str, int]:
            (worker,) = [w for w in current.statistics().workers if w.counters["keyed"]]
            return {name: worker.verdicts[name] for name in ("challenge", "bad_cookie", "replayed")}

        wait_for(lambda: counted()["replayed"] == copies)
        assert counted() == {"challenge": 0, "bad_cookie": 1, "replayed": copies}
        seen = current.statistics()
        assert (seen.total("validated"), seen.total("keyed")) == (9, 9)
        assert current.stop() == 0


def test_huge_pages_are_handed_over(link: Link, folder: pathlib.Path) -> None:
    """Packet memory in 2 MiB pages is the same memory afterwards: no page more is needed for it."""
    arguments = options(folder, "xdp", "--frames=4096", "--ring=512", "--cache=65536",
                        "--models-max=1", "--require=hugepages")  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(veth.huge_pages(100))
        free = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        current = stack.enter_context(veth.datapath(link, folder, *arguments))
        left = int(free.read_text())
        load = Load(link, window=16)
        load.start()
        for _ in range(3):
            old = current
            current = stack.enter_context(
                veth.datapath(link, folder, *arguments, successor(folder))
            )
            assert old.ended(5.0) == 0
            assert current.statistics().process["umem_pages"] == metrics.PageKind.HUGE_2M
        load.stopping.set()
        load.join(30.0)
        assert not set(range(load.sent)) - load.answered
        wait_for(lambda: int(free.read_text()) == left)  # nothing is kept by those that have ended
        assert current.stop() == 0


def test_what_is_queued_at_the_kernel_socket_is_inherited(link: Link, folder: pathlib.Path) -> None:
    """Requests that came while nobody read are answered by the successor."""
    arguments = options(folder, "socket")
    with veth.datapath(link, folder, *arguments) as old, Heir(link, folder) as heir:
        heir.greet()
        heir.send(HOLD)
        assert heir.receive()[0] == HELD
        with link.client_socket(socket.AF_INET) as sock:
            sock.connect((veth.SERVER4, veth.PORT))
            for number in range(100, 150):
                sock.send(ping(number, 64))
            heir.close()  # and the old one goes on
            assert {sock.recv(2048)[8:16] for _ in range(50)} == {
                number.to_bytes(8, "little") for number in range(100, 150)
            }
        with veth.datapath(link, folder, *arguments, successor(folder)):
            assert old.ended(5.0) == 0


# --- failures ------------------------------------------------------------------------------------


class Heir:
    """A successor that is played by the test: it speaks, and ends, as the test wants."""

    def __init__(self, link: Link, folder: pathlib.Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(5.0)
        self._sock.connect(str(folder / "handover"))
        self.fds: list[int] = []

    def __enter__(self) -> Heir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def send(self, kind: int, *, version: int = VERSION, raw: bytes | None = None) -> None:
        head = b"PTKHAND\0" + struct.pack("<IIII", version, kind, 24, 0)
        self._sock.send(head if raw is None else raw)

    def receive(self) -> tuple[int, bytes]:
        """Kind and rest of the next message; 0 at the end of the connection."""
        data, control, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(64))
        for _, _, raw in control:
            self.fds += array.array("i", raw[: len(raw) & ~3])
        return (struct.unpack_from("<I", data, 12)[0], data[24:]) if data else (0, b"")

    def greet(self) -> list[int]:
        """HELLO, and everything that is offered; the kinds of the messages."""
        self.send(HELLO)
        kind, rest = self.receive()
        assert kind == SERVER, rest
        queues, sockets = struct.unpack_from("<II", rest, 24)
        return [kind, *(self.receive()[0] for _ in range(queues + sockets))]


@pytest.fixture(params=["xdp", "socket"])
def served(
    request: pytest.FixtureRequest, link: Link, folder: pathlib.Path
) -> Iterator[tuple[Datapath, pathlib.Path]]:
    """A datapath under load that must be unharmed at the end of the test."""
    with veth.datapath(link, folder, *options(folder, request.param)) as process:
        load = Load(link, window=8)
        load.start()
        wait_for(lambda: len(load.answered) > 200, 10.0)
        yield process, folder
        answered = len(load.answered)
        wait_for(lambda: len(load.answered) > answered + 200, 10.0)
        load.stopping.set()
        load.join(30.0)
        assert not set(range(load.sent)) - load.answered
        seen = process.statistics()
        assert seen.state == "ready"
        assert seen.process["take_overs"] == 0
        assert all(worker.gauges["frames_missing"] == 0 for worker in seen.workers)
        # And it can still be taken over.
        path = "xdp" if seen.path == "xdp" else "socket"
        with veth.datapath(link, folder, *options(folder, path), successor(folder)) as heir:
            assert process.ended(5.0) == 0
            assert heir.stop() == 0


@pytest.mark.parametrize("step", ["connect", "hello", "offer", "hold", "held"])
def test_heir_that_dies_at_each_step(
    link: Link, served: tuple[Datapath, pathlib.Path], step: str
) -> None:
    """Whenever it goes, the one that serves goes on."""
    process, folder = served
    with Heir(link, folder) as heir:
        if step != "connect":
            heir.send(HELLO)
        if step in {"offer", "hold", "held"}:
            workers = 2 if process.statistics().path == "xdp" else 1
            assert [heir.receive()[0] for _ in range(1 + workers)][0] == SERVER
        if step in {"hold", "held"}:
            heir.send(HOLD)
        if step == "held":
            assert heir.receive()[0] == HELD
    if step != "connect":
        wait_for(lambda: "hand-over" in process.text)


def test_heir_that_hangs_after_hold(link: Link, served: tuple[Datapath, pathlib.Path]) -> None:
    """The one that serves waits two seconds and goes on; the requests of these have waited."""
    process, folder = served
    with Heir(link, folder) as heir:
        heir.greet()
        heir.send(HOLD)
        assert heir.receive()[0] == HELD
        started = time.monotonic()
        wait_for(lambda: "this one goes on" in process.text)
        assert 1.0 < time.monotonic() - started < 4.0


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"PTKHAND\0" + struct.pack("<IIII", 99, HELLO, 24, 0), "version 99"),
        (b"PTKHAND\0" + struct.pack("<IIII", VERSION, HOLD, 24, 0), "out of its turn"),
        (b"PTKHAND\0" + struct.pack("<IIII", VERSION, HELLO, 25, 0), "no server sends"),
        (b"GET / HTTP/1.1\r\n\r\n", "no message of it"),
        (b"\xff" * 3000, "too long"),
    ],
    ids=["version", "turn", "length", "foreign", "long"],
)
def test_wrong_messages_are_refused_by_name(
    link: Link, served: tuple[Datapath, pathlib.Path], raw: bytes, words: str
) -> None:
    process, folder = served
    with Heir(link, folder) as heir:
        heir.send(0, raw=raw)
        kind, rest = heir.receive()
        assert kind == REFUSE
        assert words in rest.rstrip(b"\0").decode()
    wait_for(lambda: words in process.text)


def test_another_user_is_refused(link: Link, served: tuple[Datapath, pathlib.Path]) -> None:
    """The file keeps others out, and where it does not, the kernel says who they are."""
    process, folder = served
    path = folder / "handover"
    assert path.stat().st_mode & 0o777 == 0o600
    folder.chmod(0o755)
    program = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "sock.connect(sys.argv[1])\n"
        "print(sock.recv(4096)[24:].rstrip(bytes(1)).decode())\n"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
               "/usr/bin/python3", "-c", program, str(path)]  # fmt: skip
    shut = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert "PermissionError" in shut.stderr
    path.chmod(0o666)
    opened = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert "another user's" in opened.stdout, opened.stderr
    wait_for(lambda: "another user's" in process.text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port=7300",), "UDP port 7265, this one is to have 7300"),
        (("--ring=64",), "rings of 2048, this one is to have 64"),
        (("--frames=4096",), "frames in a number of 8209, this one is to have 4096"),
        (("--path=socket",), "the running server uses AF_XDP"),
        (("--queues=1",), "has queues 0 to 0"),
        (("--xdp-mode=drv", "--require=zerocopy"), "no zero-copy"),
        (("--model=0:x=/nowhere",), "/nowhere: No such file"),
        (("--mailbox=/nowhere",), "mailbox /nowhere"),
        (("--steer-object=/nowhere",), "/nowhere"),
        (("--require=isolation",), "isolated"),
        (("--hand-over=/nowhere/x",), "hand-over socket /nowhere/x"),
        (("--take-over=/nowhere/x",), "/nowhere/x"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_successor_that_cannot_start(
    link: Link, folder: pathlib.Path, arguments: tuple[str, ...], words: str
) -> None:
    """It says why and ends with status 1; the running one is untouched, its files too."""
    with veth.datapath(link, folder, *options(folder, "xdp")) as process:
        before = process.stats_path.stat().st_ino
        steady = Steady(link)
        steady.start()
        stats = f"--stats={process.stats_path}"
        with veth.datapath(
            link, folder, *options(folder, "xdp"), successor(folder), stats, *arguments, ready=False
        ) as heir:
            assert heir.ended(20.0) == 1
            wait_for(lambda: words in heir.text)
        figures = steady.finish()
        assert (figures.unanswered, figures.wrong) == (0, 0)
        assert process.stats_path.stat().st_ino == before
        assert [path.name for path in folder.iterdir() if "." in path.name] == []
        check_reply(ping(120, 8), ask(link, ping(120, 8)))
        assert link.xdp_program() is not None
        assert process.stop() == 0


def test_successor_without_the_right_to_load_a_program(link: Link, folder: pathlib.Path) -> None:
    """Taking over AF_XDP asks for the same right to load the program as a start does."""
    with veth.datapath(link, folder, *options(folder, "xdp")) as process:
        prefix = ("setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon", "--inh-caps=-all")
        with veth.datapath(
            link, folder, *options(folder, "xdp"), successor(folder), ready=False, prefix=prefix
        ) as heir:
            assert heir.ended(20.0) == 1
            wait_for(lambda: "CAP_BPF is missing" in heir.text)
        check_reply(ping(121, 8), ask(link, ping(121, 8)))
        assert process.stop() == 0


def test_killed_successor_leaves_the_rest(link: Link, folder: pathlib.Path) -> None:
    """SIGKILL at any moment of a take-over: afterwards exactly one of the two serves."""
    with contextlib.ExitStack() as stack:
        current = stack.enter_context(veth.datapath(link, folder, *options(folder, "xdp")))
        steady = Steady(link)
        steady.start()
        outcomes = set()
        for delay_ms in range(0, 60, 4):
            heir = stack.enter_context(
                veth.datapath(link, folder, *options(folder, "xdp"), successor(folder), ready=False)
            )
            time.sleep(delay_ms / 1000)
            heir.process.send_signal(signal.SIGKILL)
            heir.ended(5.0)
            # The old one ends only if it has been taken over: then a server has crashed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                current.process.wait(0.3)
            taken = current.process.poll() is not None
            outcomes.add(taken)
            if taken:
                assert current.process.returncode == 0
                wait_for(lambda: link.xdp_program() is None)
                current = stack.enter_context(veth.datapath(link, folder, *options(folder, "xdp")))
        assert False in outcomes
        figures = steady.finish()
        assert (figures.unanswered, figures.wrong) == (0, 0)
        assert current.statistics().workers[0].gauges["frames_missing"] == 0
        assert current.stop() == 0


def test_parent_that_ends_takes_the_unfinished_successor_along(
    link: Link, folder: pathlib.Path
) -> None:
    """Nobody wants a take-over that happens when whoever has asked for it is gone."""
    with veth.datapath(link, folder, *options(folder, "xdp")) as process:
        stopped = Heir(link, folder)  # keeps the real one waiting
        command = ["ip", "netns", "exec", link.server, str(veth.program_path()),
                   f"--stats={folder / 'heir'}", f"--steer-object={veth.steer_path()}",
                   *options(folder, "xdp"), successor(folder)]  # fmt: skip
        parent = subprocess.Popen(
            [sys.executable, "-c",
             "import subprocess, sys; subprocess.run(sys.argv[1:])", *command],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def children() -> list[int]:
            text = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
            return [int(word) for word in text.split()]

        wait_for(lambda: bool(children()))
        (pid,) = children()
        wait_for(lambda: b"ptk-datapath" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
        time.sleep(0.1)  # it waits for an answer
        parent.kill()
        parent.wait(5.0)
        wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists())
        stopped.close()
        check_reply(ping(122, 8), ask(link, ping(122, 8)))
        assert process.stop() == 0
