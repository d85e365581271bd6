"""The runtime directory of one instance: where control and datapath process meet, and its record.

    stats           statistics segment; the datapath writes
    mailbox         commands; whoever holds `mailbox.lock` writes
    mailbox.lock    flock of the one command in flight
    control.lock    flock of the control process, with its pid; a second one is refused
    handover        socket by which another datapath takes this one's place; the datapath listens
    state.json      the datapath's pid and start time, its command line, its models
    datapath.log    standard error of the datapath

A record is believed only while the process it names runs with the start time it names, so a stale
directory, also of a machine that was switched off, never leads to a signal to a stranger. Every
file is replaced whole by rename: a reader sees the old record or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from pintok_server.errors import InstanceError

STATE_VERSION = 1
# A record is a few hundred bytes a model; more is not ours.
STATE_LEN_MAX = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one instance."""

    path: pathlib.Path

    @property
    def stats(self) -> pathlib.Path:
        return self.path / "stats"

    @property
    def mailbox(self) -> pathlib.Path:
        return self.path / "mailbox"

    @property
    def state(self) -> pathlib.Path:
        return self.path / "state.json"

    @property
    def log(self) -> pathlib.Path:
        return self.path / "datapath.log"

    @property
    def handover(self) -> pathlib.Path:
        return self.path / "handover"

    @property
    def control_lock(self) -> pathlib.Path:
        return self.path / "control.lock"

    @property
    def mailbox_lock(self) -> pathlib.Path:
        return self.path / "mailbox.lock"


def runtime_root() -> pathlib.Path:
    """Where instances live: /run/pintok for root, else below the user's own runtime directory."""
    if os.geteuid() == 0:
        return pathlib.Path("/run/pintok")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and pathlib.Path(base).is_dir():
        return pathlib.Path(base) / "pintok"
    return pathlib.Path(tempfile.gettempdir()) / f"pintok-{os.geteuid()}"


def run_dir_of(instance: str, *, runtime_dir: str | None) -> RunDir:
    """The paths of `instance`; nothing is created."""
    if runtime_dir is not None:
        return RunDir(pathlib.Path(runtime_dir).absolute())
    return RunDir(runtime_root() / instance)


def create_run_dir(run_dir: RunDir) -> None:
    """Make the directory, or accept the existing one if nobody else could have prepared it.

    Raises InstanceError when it belongs to another user, others may write to it, or it is a link.
    """
    path = run_dir.path
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o755)
        status = path.lstat()
    except OSError as error:
        raise InstanceError(
            f"the runtime directory {path} cannot be made: {error.strerror}; "
            "choose another one with --runtime-dir"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise InstanceError(f"the runtime directory {path} is not a directory")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise InstanceError(
            f"the runtime directory {path} belongs to another user or others may write to it; "
            "remove it or choose another one with --runtime-dir"
        )


def process_start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when it does not run (any more).

    A zombie counts as gone: it answers nothing.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses and may hold anything; the last `)` ends it.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in {"Z", "X"}:
        return None
    return int(fields[19])


def boot_id() -> str:
    """The kernel's name of this boot: start times of different boots cannot be compared."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model slot as the control plane filled it."""

    slot: int
    name: str
    source: str
    image: str
    fingerprint: str


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The record of a running datapath.

    `options` is what it was started with, by option name, and `asked` the models of the
    configuration by name and fingerprint: both are compared when a new control process finds it.
    `models` is what it holds now, live changes included. `heir` is the record of a datapath that is
    about to take this one's place: if this one does not run any more, it has.
    """

    pid: int
    start_time: int
    boot: str
    argv: tuple[str, ...]
    options: dict[str, Any]
    asked: dict[str, str]
    models: tuple[LoadedModel, ...]
    restarts: int = 0
    heir: State | None = None

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.boot == boot_id() and process_start_time(self.pid) == self.start_time


def write_state(run_dir: RunDir, state: State) -> None:
    """Replace the record."""
    document = {"version": STATE_VERSION, **dataclasses.asdict(state)}
    _replace(run_dir.state, json.dumps(document, indent=1).encode())


def read_state(run_dir: RunDir) -> State | None:
    """The record, or None when there is none. Raises InstanceError when it is damaged."""
    try:
        with run_dir.state.open("rb") as stream:
            data = stream.read(STATE_LEN_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstanceError(f"{run_dir.state}: cannot be read: {error.strerror}") from None
    try:
        document = json.loads(data)
        if document.pop("version") != STATE_VERSION:
            raise ValueError("another version")
        state = _parse_state(document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InstanceError(
            f"{run_dir.state}: not a record of this version; if no datapath runs, remove it"
        ) from None
    return state


def _parse_state(document: dict[str, Any]) -> State:
    document["argv"] = tuple(document["argv"])
    document["models"] = tuple(LoadedModel(**model) for model in document["models"])
    if document.get("heir") is not None:
        document["heir"] = _parse_state(document["heir"])
    state = State(**document)
    if type(state.pid) is not int or state.pid < 2 or type(state.start_time) is not int:
        raise ValueError("not a process")
    return state


def current_state(run_dir: RunDir) -> State | None:
    """The record of the datapath that serves: of its heir, if that has taken over and whoever
    started it ended before it could say so. Raises as read_state."""
    state = read_state(run_dir)
    if state is not None and state.heir is not None and not state.alive() and state.heir.alive():
        return state.heir
    return state


def _replace(path: pathlib.Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    scratch.replace(path)


def note_holder(path: pathlib.Path) -> None:
    """Write this process's number into a lock file that it holds."""
    path.write_text(f"{os.getpid()}\n", encoding="ascii")


def read_holder(path: pathlib.Path) -> int | None:
    """The process that holds the lock and has said so; None when nobody does."""
    if not is_held(path):
        return None
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, *, wait: bool, busy: str) -> Iterator[None]:
    """Hold the flock of `path`; without `wait`, raise InstanceError(busy) when it is taken.

    The kernel gives the lock back however the holder ends.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InstanceError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InstanceError(busy) from None
        yield
    finally:
        os.close(descriptor)


def is_held(path: pathlib.Path) -> bool:
    """Whether a process holds the flock of `path`; False when it cannot be known."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def find_instances() -> list[str]:
    """Names of the instances under the runtime root that have a record."""
    try:
        entries = sorted(runtime_root().iterdir())
    except OSError:
        return []
    return [entry.name for entry in entries if (entry / "state.json").is_file()]


def find_run_dir(instance: str | None, *, runtime_dir: str | None) -> RunDir:
    """The instance that a command without other hints means: the named one, or the only one.

    Raises InstanceError when there is none, or several to choose from.
    """
    if instance is not None or runtime_dir is not None:
        run_dir = run_dir_of(instance or "", runtime_dir=runtime_dir)
        if not run_dir.state.is_file():
            raise InstanceError(f"no server was started in {run_dir.path}")
        return run_dir
    names = find_instances()
    if not names:
        raise InstanceError(f"no server was started here (nothing in {runtime_root()})")
    if len(names) > 1:
        running = [name for name in names if _runs(run_dir_of(name, runtime_dir=None))]
        if len(running) != 1:
            raise InstanceError(
                f"several instances: choose one with --instance: {', '.join(names)}"
            )
        names = running
    return run_dir_of(names[0], runtime_dir=None)


def _runs(run_dir: RunDir) -> bool:
    with contextlib.suppress(InstanceError):
        state = current_state(run_dir)
        return state is not None and state.alive()
    return False
