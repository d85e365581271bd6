"""Runtime directory, process handles, mailbox and supervision, with a stand-in for the datapath.

The stand-in is a script with the datapath's manners: it writes a segment, says it is ready,
drains on SIGTERM. The real datapath is driven by tests/netns and test_server_socket.py.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from pintok_server._spec import metrics as spec
from pintok_server.control import datapath, mailbox, supervisor
from pintok_server.control.config import resolve_settings
from pintok_server.control.log import Log
from pintok_server.control.process import LogTail, Process
from pintok_server.control.runtime import (
    LoadedModel,
    RunDir,
    State,
    boot_id,
    create_run_dir,
    hold_lock,
    process_start_time,
    read_state,
    write_state,
)
from pintok_server.control.supervisor import Plan, Supervisor
from pintok_server.errors import ConfigError, DatapathError, InstanceError, StatisticsError

STAND_IN = """
    #!{python}
    import os, signal, struct, sys, time
    sys.path.insert(0, {root!r})
    from tests.unit.segment import build_segment
    from pintok_server._spec import metrics as spec
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    if options["port"] == "1":
        print("first line", file=sys.stderr)
        sys.exit("queue 0 of eth9: busy")
    if options["port"] == "2":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("lesser mode: no hugepages", file=sys.stderr, flush=True)
    path = options["stats"]
    while os.path.exists(path + ".wait"):
        time.sleep(0.01)
    with open(path + ".new", "wb") as stream:
        version = 99 if options["port"] == "3" else spec.STATS_VERSION
        stream.write(build_segment(pid=os.getpid(), version=version))
    os.rename(path + ".new", path)
    while True:
        time.sleep(0.05)
"""

MODEL = LoadedModel(slot=0, name="m", source="/m", image="/m.ptk", fingerprint="ab" * 32)


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> RunDir:
    made = RunDir(tmp_path / "instance")
    create_run_dir(made)
    return made


@pytest.fixture
def stand_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Puts the stand-in where the datapath is looked for; ends what is left of it afterwards."""
    program = tmp_path / "stand-in"
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    program.write_text(textwrap.dedent(STAND_IN).lstrip().format(python=sys.executable, root=root))
    program.chmod(0o755)
    monkeypatch.setattr(datapath, "find_artifact", lambda name: program)
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def plan(**options: object) -> Plan:
    return Plan(options={"port": 60000, "cores": [1]} | options, models=[MODEL])


def make_supervisor(run_dir: RunDir, stand_in: list[int], *, drain_timeout_s: float = 5, **options):
    log = Log(stream=io.StringIO())
    made = Supervisor(plan(**options), run_dir=run_dir, drain_timeout_s=drain_timeout_s, log=log)
    return made, log.stream


def wait_until(condition, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def state_of(pid: int, **changes: object) -> State:
    state = State(
        pid=pid,
        start_time=process_start_time(pid) or 0,
        boot=boot_id(),
        argv=("x",),
        options={"cores": [1, 2]},
        asked={"m": "ab"},
        models=(MODEL,),
    )
    return dataclasses.replace(state, **changes)


# --- runtime directory ---------------------------------------------------------------------------


def test_record_survives_a_round_trip_and_names_this_process(run_dir: RunDir) -> None:
    assert read_state(run_dir) is None
    state = state_of(os.getpid())
    write_state(run_dir, state)
    assert read_state(run_dir) == state
    assert state.alive()


def test_record_of_another_start_or_boot_is_not_alive() -> None:
    # The pid may belong to a stranger by now, who must never get our signals.
    state = state_of(os.getpid())
    assert not dataclasses.replace(state, start_time=state.start_time + 1).alive()
    assert not dataclasses.replace(state, boot="x").alive()
    assert Process.adopt(dataclasses.replace(state, boot="x")) is None


def test_zombie_counts_as_gone() -> None:
    child = subprocess.Popen(["true"])
    wait_until(lambda: process_start_time(child.pid) is None)
    assert child.wait() == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 2}',
        "null",
        "[" * 100000,
        '{"version":1,"pid":1}',
    ],
)
def test_damaged_record_is_refused_by_name(run_dir: RunDir, text: str) -> None:
    run_dir.state.write_text(text)
    with pytest.raises(InstanceError, match=r"state.json: not a record"):
        read_state(run_dir)


def test_directory_that_others_prepared_is_refused(tmp_path: pathlib.Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(InstanceError, match="others may write"):
        create_run_dir(RunDir(shared))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(InstanceError, match="not a directory"):
        create_run_dir(RunDir(link))


def test_lock_is_exclusive_and_given_back(run_dir: RunDir) -> None:
    with hold_lock(run_dir.control_lock, wait=False, busy="busy"):
        with pytest.raises(InstanceError, match="^busy$"):
            with hold_lock(run_dir.control_lock, wait=False, busy="busy"):
                pass
    with hold_lock(run_dir.control_lock, wait=False, busy="busy"):
        pass


# --- processes -----------------------------------------------------------------------------------


def test_process_ends_are_told_apart(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    good = Process.spawn(["true"], log=log)
    bad = Process.spawn(["false"], log=log)
    assert good.wait(10) and bad.wait(10)
    assert (good.outcome(), good.failed()) == ("ended with status 0", False)
    assert (bad.outcome(), bad.failed()) == ("ended with status 1", True)
    long = Process.spawn(["sleep", "60"], log=log)
    assert not long.wait(0)
    long.send(signal.SIGKILL)
    assert long.wait(10) and long.outcome() == "was killed by SIGKILL"
    long.send(signal.SIGTERM)
    with pytest.raises(DatapathError, match="absent: cannot be started: No such file"):
        Process.spawn([str(tmp_path / "absent")], log=log)


def test_log_is_read_by_whole_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    tail = LogTail(path, from_end=False)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == ["one"]
    path.write_bytes(b"one\ntwo\n\xff\n\n")
    assert tail.lines() == ["two", "\ufffd"]
    assert LogTail(path, from_end=True).lines() == []


# --- options -------------------------------------------------------------------------------------


def test_command_line_of_the_datapath(run_dir: RunDir, stand_in: list[int]) -> None:
    core = max(os.sched_getaffinity(0))
    flags = {"cores": str(core), "path": "socket", "address": ("127.0.0.1", "::1"), "queues": "3"}
    settings = resolve_settings(flags=flags, environment={}, file=None)
    argv = datapath.datapath_argv(
        datapath.datapath_options(settings), run_dir=run_dir, models=[MODEL]
    )
    assert f"--cores={core}" in argv and "--queues=3" in argv and "--path=socket" in argv
    assert [word for word in argv if word.startswith("--address")] == [
        "--address=127.0.0.1",
        "--address=::1",
    ]
    assert f"--stats={run_dir.stats}" in argv
    assert not any(word.startswith(("--iface", "--require=")) for word in argv)


def test_host_without_core_or_interface_is_refused() -> None:
    def options(**flags: object) -> object:
        settings = resolve_settings(flags=flags, environment={}, file=None)
        return datapath.datapath_options(settings)

    with pytest.raises(ConfigError, match="core 4095 does not exist or is not allowed"):
        options(cores="4095")
    with pytest.raises(ConfigError, match="no interface ptk-absent"):
        options(iface="ptk-absent")


def test_taken_port_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        # As a second server would share it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"UDP port {port} is in use"):
            datapath.refuse_taken_port(port)
    datapath.refuse_taken_port(port)


def test_differences_name_option_and_both_values() -> None:
    old = {"port": 1, "cores": [1, 2], "iface": None}
    assert datapath.differences(old, dict(old)) == []
    assert datapath.differences(old, {"port": 2, "cores": [1], "iface": "a"}) == [
        "port 1 -> 2",
        "cores 1,2 -> 1",
        "iface (none) -> a",
    ]


# --- supervision ---------------------------------------------------------------------------------


def test_start_adopt_refuse_replace_stop(run_dir: RunDir, stand_in: list[int]) -> None:
    first, _ = make_supervisor(run_dir, stand_in)
    first.start()
    stand_in.append(first.pid)
    state = read_state(run_dir)
    assert state is not None and state.pid == first.pid and state.models == (MODEL,)
    assert first.snapshot().pid == first.pid

    # A second control process, as after kill -9 of the first.
    second, _ = make_supervisor(run_dir, stand_in)
    second.start()
    assert second.adopted and second.pid == first.pid

    third, _ = make_supervisor(run_dir, stand_in, port=60001)
    with pytest.raises(InstanceError, match=r"port 60000 -> 60001\); start with --replace"):
        third.start()
    assert state.alive()

    third.start(replace=True)
    stand_in.append(third.pid)
    assert not state.alive() and third.pid != first.pid
    assert third.stop()
    assert third.snapshot() is None and not run_dir.state.exists()


def test_datapath_that_still_starts_is_waited_for(run_dir: RunDir, stand_in: list[int]) -> None:
    # The first control process was killed while its datapath was setting up.
    hold = pathlib.Path(f"{run_dir.stats}.wait")
    hold.touch()
    first, _ = make_supervisor(run_dir, stand_in)
    first._spawn([MODEL])
    stand_in.append(first.pid)
    second, _ = make_supervisor(run_dir, stand_in)
    ticks = itertools.count()
    second.start(tick=lambda: hold.unlink() if next(ticks) == 5 else None)
    assert second.adopted and second.pid == first.pid
    assert second.stop()


def test_datapath_that_ends_while_it_is_adopted_is_replaced(
    run_dir: RunDir, stand_in: list[int]
) -> None:
    hold = pathlib.Path(f"{run_dir.stats}.wait")
    hold.touch()
    first, _ = make_supervisor(run_dir, stand_in)
    first._spawn([MODEL])
    old = first.pid
    second, _ = make_supervisor(run_dir, stand_in)

    def tick() -> None:
        hold.unlink(missing_ok=True)
        if second.pid == old:
            os.kill(old, signal.SIGKILL)

    second.start(tick=tick)
    stand_in.append(second.pid)
    assert not second.adopted and second.pid != old
    assert second.stop()


def test_datapath_of_another_version_is_not_taken_over(
    run_dir: RunDir, stand_in: list[int]
) -> None:
    made, _ = make_supervisor(run_dir, stand_in, port=3)
    with pytest.raises(StatisticsError, match="version 99"):
        made.start()
    assert made.pid is None and not run_dir.state.exists()
    made._spawn([MODEL])
    stand_in.append(made.pid)
    wait_until(run_dir.stats.exists)
    second, _ = make_supervisor(run_dir, stand_in, port=3)
    with pytest.raises(InstanceError, match="cannot be taken over: .*version 99"):
        second.start()
    third, _ = make_supervisor(run_dir, stand_in)
    third.start(replace=True)
    stand_in.append(third.pid)
    assert process_start_time(made.pid) is None and third.stop()


def test_refusal_of_the_datapath_is_its_own_sentence(run_dir: RunDir, stand_in: list[int]) -> None:
    made, _ = make_supervisor(run_dir, stand_in, port=1)
    with pytest.raises(DatapathError, match="^queue 0 of eth9: busy$"):
        made.start()
    assert not run_dir.state.exists()


def test_signal_while_starting_leaves_nothing_behind(run_dir: RunDir, stand_in: list[int]) -> None:
    made, _ = make_supervisor(run_dir, stand_in)

    def tick() -> None:
        stand_in.append(made.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.start(tick=tick)
    assert process_start_time(stand_in[0]) is None


def test_dead_datapath_is_restarted_later_each_time(run_dir: RunDir, stand_in: list[int]) -> None:
    made, stream = make_supervisor(run_dir, stand_in)
    made.start()
    delays = []
    for restart in range(1, 4):
        pid = made.pid
        stand_in.append(pid)
        os.kill(pid, signal.SIGKILL)
        assert made._process.wait(10)
        delays.append(made.watch())
        assert made.snapshot() is None

        def again(before: int = pid) -> bool:
            made.watch()
            return made.pid not in (None, before) and made.snapshot() is not None

        wait_until(again)
        assert made.restarts == restart
        assert read_state(run_dir).restarts == restart
    stand_in.append(made.pid)
    assert delays == [0.0, supervisor.BACKOFF_FIRST_S, 2 * supervisor.BACKOFF_FIRST_S]
    assert "was killed by SIGKILL" in stream.getvalue()
    assert made.stop()


def test_datapath_that_does_not_drain_is_killed(run_dir: RunDir, stand_in: list[int]) -> None:
    made, _ = make_supervisor(run_dir, stand_in, drain_timeout_s=0.3, port=2)
    made.start()
    pid = made.pid
    stand_in.append(pid)
    assert not made.stop()
    assert process_start_time(pid) is None


def test_impatience_cuts_the_drain_short(run_dir: RunDir, stand_in: list[int]) -> None:
    made, _ = make_supervisor(run_dir, stand_in, drain_timeout_s=60, port=2)
    made.start()
    stand_in.append(made.pid)
    begin = time.monotonic()
    assert not made.stop(hurry=lambda: True)
    assert time.monotonic() - begin < 10


# --- mailbox -------------------------------------------------------------------------------------


def ack(run_dir: RunDir, *, sequence: int, result: int, text: bytes) -> None:
    """Write an answer into the segment as the datapath does: the number last."""
    data = bytearray(run_dir.stats.read_bytes())
    head = dict(zip(spec.STATS_HEAD_FIELDS, spec.STATS_HEAD.unpack_from(data), strict=True))
    off = head["ack_off"]
    fields = spec.STATS_ACK_OFFSETS
    with run_dir.stats.open("r+b") as stream:
        for name, value in (
            ("result", result.to_bytes(4, "little")),
            ("text", text.ljust(spec.STATS_TEXT_CAP, b"\0")),
            ("sequence", sequence.to_bytes(8, "little")),
        ):
            stream.seek(off + fields[name])
            stream.write(value)


@pytest.mark.parametrize(("result", "text"), [(0, b""), (2, b"m.ptk: no such file")])
def test_command_is_written_whole_and_answered(run_dir: RunDir, result: int, text: bytes) -> None:
    from tests.unit.segment import write_segment

    write_segment(run_dir.stats, pid=os.getpid())
    mailbox.create_mailbox(run_dir.mailbox)
    seen: dict[str, object] = {}

    def answer() -> None:
        def read() -> dict[str, object]:
            values = spec.MAILBOX.unpack(run_dir.mailbox.read_bytes())
            return dict(zip(spec.MAILBOX_FIELDS, values, strict=True))

        wait_until(lambda: read()["sequence"] == 1)
        seen.update(read())
        ack(run_dir, sequence=1, result=result, text=text)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        mailbox.send_command(
            run_dir,
            spec.MailboxCommand.LOAD,
            slot=3,
            name="chat",
            image=pathlib.Path("/x/m.ptk"),
        )
        assert result == 0
    except DatapathError as error:
        assert str(error) == text.decode()
    thread.join()
    assert seen["command"] == spec.MailboxCommand.LOAD and seen["slot"] == 3
    assert bytes(seen["name"]).rstrip(b"\0") == b"chat"
    assert bytes(seen["path"]).rstrip(b"\0") == b"/x/m.ptk"
    assert seen["magic"] == spec.MAILBOX_MAGIC.encode()


def test_silent_datapath_is_an_error(run_dir: RunDir) -> None:
    from tests.unit.segment import write_segment

    write_segment(run_dir.stats, pid=os.getpid())
    mailbox.create_mailbox(run_dir.mailbox)
    with pytest.raises(DatapathError, match="did not answer a drain command within 0 s"):
        mailbox.send_command(run_dir, spec.MailboxCommand.DRAIN, timeout_s=0.05)
    child = subprocess.Popen(["true"])
    child.wait()
    write_segment(run_dir.stats, pid=child.pid)
    with pytest.raises(DatapathError, match="has ended"):
        mailbox.send_command(run_dir, spec.MailboxCommand.DRAIN, timeout_s=5)


def test_too_long_names_and_paths_are_refused(run_dir: RunDir) -> None:
    with pytest.raises(DatapathError, match="longer than the mailbox holds"):
        mailbox.send_command(run_dir, spec.MailboxCommand.LOAD, name="n" * 200)
    with pytest.raises(DatapathError, match="longer than the mailbox holds"):
        mailbox.send_command(
            run_dir, spec.MailboxCommand.LOAD, image=pathlib.Path("/" + "p" * 5000)
        )
