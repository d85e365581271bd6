"""The life of one datapath process under a control process: find or start it, watch it, stop it.

    start   a live datapath with equal options is adopted; with other options it is left alone and
            the start refused, or drained first with `replace`; otherwise a new one is started
    watch   a datapath that ends is started again, later each time it ends quickly; one whose place
            another one has taken (`upgrade`) is left behind
    stop    it is asked to drain, and killed when it does not within the time configured

The supervisor never forwards a packet and holds nothing the datapath needs: killing it is harmless.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pintok_server.control.datapath import datapath_argv, differences, refuse_taken_port
from pintok_server.control.link import interface_index, is_usable
from pintok_server.control.log import Log
from pintok_server.control.mailbox import create_mailbox
from pintok_server.control.models import CompiledModel
from pintok_server.control.process import LogTail, Process
from pintok_server.control.runtime import (
    LoadedModel,
    RunDir,
    State,
    boot_id,
    current_state,
    hold_lock,
    write_state,
)
from pintok_server.control.statistics import (
    HEARTBEAT_AGE_MAX_S,
    Snapshot,
    StatisticsReader,
)
from pintok_server.errors import (
    DatapathError,
    InstanceError,
    StatisticsError,
    UnfinishedStatisticsError,
)

# Setting up maps and locks gigabytes at most and retries a busy queue for seconds.
READY_TIMEOUT_S = 60.0
DRAIN_GRACE_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 10.0
# A datapath that served this long did not die of its start: the next restart is immediate again.
STEADY_S = 30.0
_POLL_S = 0.01
LINE_PREFIX = "ptk-datapath: "


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What shall run: the datapath's options and the models of the configuration, in slot order."""

    options: Mapping[str, Any]
    models: Sequence[LoadedModel]

    @property
    def asked(self) -> dict[str, str]:
        """The configured models as the record keeps them."""
        return {model.name: model.fingerprint for model in self.models}

    def record(
        self,
        process: Process,
        argv: tuple[str, ...],
        models: Sequence[LoadedModel],
        *,
        restarts: int,
    ) -> State:
        """The record of a datapath that was started for this plan with these models."""
        return State(
            pid=process.pid,
            start_time=process.start_time,
            boot=boot_id(),
            argv=argv,
            options=dict(self.options),
            asked=self.asked,
            models=tuple(models),
            restarts=restarts,
        )


def load_order(models: list[CompiledModel]) -> list[LoadedModel]:
    """The models in their slots: the first is the default model."""
    return [
        LoadedModel(
            slot=slot,
            name=model.name,
            source=model.source,
            image=str(model.image),
            fingerprint=model.fingerprint,
        )
        for slot, model in enumerate(models)
    ]


class Supervisor:
    """Starts, adopts, watches and stops one datapath. Other threads may only call `snapshot`."""

    def __init__(self, plan: Plan, *, run_dir: RunDir, drain_timeout_s: float, log: Log) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._drain_timeout_s = drain_timeout_s
        self._log = log
        self._process: Process | None = None
        self._reader: StatisticsReader | None = None
        self._reader_lock = threading.Lock()
        self._tail = LogTail(run_dir.log, from_end=False)
        self._backoff_s = 0.0
        self._started_at = 0.0
        self._restart_at: float | None = None
        self._hung = False
        self.adopted = False
        self.replaced = False
        """The datapath has handed over to another one: time for a new control process."""
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The datapath's process id while one runs."""
        return self._process.pid if self._process is not None else None

    @property
    def pidfd(self) -> int | None:
        """A descriptor that becomes readable when the datapath ends."""
        return self._process.pidfd if self._process is not None else None

    def snapshot(self) -> Snapshot | None:
        """The statistics now; None while no datapath runs. May be called by any thread."""
        with self._reader_lock:
            return self._reader.read() if self._reader is not None else None

    def start(self, *, replace: bool = False, tick: Callable[[], None] = lambda: None) -> None:
        """Adopt or start the datapath and wait until it serves.

        `tick` is called while waiting and may raise to give up. Raises InstanceError when a
        datapath with other options is in the way and DatapathError, with the datapath's own
        sentence, when the new one does not come up.
        """
        # An upgrade that is under way comes to its end first.
        with hold_lock(self._run_dir.mailbox_lock, wait=True, busy=""):
            state = current_state(self._run_dir)
        if state is not None and (process := Process.adopt(state)) is not None:
            changes = self._changes(state)
            if changes and not replace:
                process.close()
                raise InstanceError(
                    f"a datapath with other settings serves this instance (process {state.pid}: "
                    f"{'; '.join(changes)}); start with --replace to drain and replace it"
                )
            self._process = process
            self._started_at = time.monotonic()
            self._tail = LogTail(self._run_dir.log, from_end=True)
            if not changes and self._adopt(state, replace=replace, tick=tick):
                return
            if self._process is not None:
                self._log.say("replace", f"draining the datapath of process {state.pid}")
                self.stop()
        refuse_taken_port(self._plan.options["port"])
        self._spawn(self._plan.models)
        try:
            self._await_ready(tick)
        except StatisticsError:
            # A datapath of another version than this package.
            self.stop()
            raise

    def _changes(self, state: State) -> list[str]:
        """What a running datapath was asked otherwise than by this configuration."""
        changes = differences(state.options, self._plan.options)
        return changes + differences(
            {f"model {name}": value[:12] for name, value in state.asked.items()},
            {f"model {name}": value[:12] for name, value in self._plan.asked.items()},
        )

    def _adopt(self, state: State, *, replace: bool, tick: Callable[[], None]) -> bool:
        """Take over the running datapath; False when it has ended or is to be replaced.

        One that is still starting is waited for, one that is draining until it is gone.
        """
        try:
            self._await_ready(tick)
        except StatisticsError as error:
            if replace:
                return False
            assert self._process is not None
            self._process.close()
            self._process = None
            raise InstanceError(
                f"the datapath (process {state.pid}) runs but cannot be taken over: {error}; "
                "start with --replace to drain and replace it"
            ) from None
        except DatapathError as error:
            self._log.say("datapath", str(error))
            return False
        self.restarts = state.restarts
        self.adopted = True
        return True

    def _open_reader(self) -> None:
        assert self._process is not None
        reader = StatisticsReader(self._run_dir.stats)
        if reader.pid != self._process.pid:
            reader.close()
            raise StatisticsError(f"{self._run_dir.stats}: belongs to process {reader.pid}")
        with self._reader_lock:
            self._reader = reader

    def _close_reader(self) -> None:
        with self._reader_lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _spawn(self, models: Sequence[LoadedModel]) -> None:
        run_dir = self._run_dir
        argv = datapath_argv(self._plan.options, run_dir=run_dir, models=models)
        # A new file: whoever has mapped the old one must not see it shrink under his eyes.
        run_dir.stats.unlink(missing_ok=True)
        create_mailbox(run_dir.mailbox)
        self._tail = LogTail(run_dir.log, from_end=False)
        self._process = process = Process.spawn(argv, log=run_dir.log)
        self._started_at = time.monotonic()
        self._hung = False
        write_state(run_dir, self._plan.record(process, argv, models, restarts=self.restarts))

    def _is_ready(self) -> bool:
        if self._reader is None:
            with contextlib.suppress(UnfinishedStatisticsError):
                self._open_reader()
        return self._reader is not None and self._reader.state() == "ready"

    def _await_ready(self, tick: Callable[[], None]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        lines: list[str] = []
        while not self._is_ready():
            lines += self._tail.lines()
            ended = self._process.wait(_POLL_S)
            if ended or time.monotonic() > deadline:
                lines += self._tail.lines()
                outcome = self._process.outcome() if ended else "is not ready"
                self.stop()
                raise DatapathError(
                    lines[-1].removeprefix(LINE_PREFIX)
                    if lines
                    else f"the datapath {outcome} without a word"
                )
            try:
                tick()
            except BaseException:
                self.stop()
                raise
        # What it says last, it says at the moment it becomes ready: give the lines time to arrive.
        time.sleep(2 * _POLL_S)
        self._relay([*lines, *self._tail.lines()])

    def _relay(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._log.say("datapath", line.removeprefix(LINE_PREFIX))

    def watch(self) -> float:
        """Look after the datapath once; returns in how many seconds to look again at the latest."""
        self._relay(self._tail.lines())
        now = time.monotonic()
        if self._process is None:
            if self._restart_at is not None and now < self._restart_at:
                return self._restart_at - now
            self._restart()
            return _POLL_S
        if self._process.wait(0):
            return self._bury()
        if self._reader is None and not self._is_ready():
            return _POLL_S * 10
        snapshot = self.snapshot()
        if snapshot is not None and snapshot.state == "ready":
            self._follow_interface(snapshot)
            hung = snapshot.heartbeat_age_s > HEARTBEAT_AGE_MAX_S
            if hung != self._hung:
                self._hung = hung
                what = "does not come round any more" if hung else "comes round again"
                self._log.say("heartbeat", f"the datapath's main thread {what}")
        return 1.0

    def _follow_interface(self, snapshot: Snapshot) -> None:
        """Drain a datapath whose interface was removed and has come back: its sockets are bound to
        the one that is gone, and only a new one can serve the other. It is started again then."""
        name, old = self._plan.options.get("iface"), snapshot.process.get("interface_index", 0)
        if name is None or old in (0, interface_index(name)) or not is_usable(name):
            return
        assert self._process is not None
        self._log.say(
            "interface_back",
            f"interface {name} is another one than before: draining the datapath "
            f"(process {self._process.pid}) to start it there",
            iface=name,
        )
        self._process.send(signal.SIGTERM)
        self._backoff_s = 0.0

    def _bury(self) -> float:
        """Take note of a datapath that ended, and plan the next one."""
        assert self._process is not None
        lasted_s = time.monotonic() - self._started_at
        outcome, pid = self._process.outcome(), self._process.pid
        self._close_reader()
        self._process.close()
        self._process = None
        state = current_state(self._run_dir)
        if state is not None and state.pid != pid and state.alive():
            self.replaced = True
            self._log.say(
                "handed_over",
                f"the datapath (process {pid}) has handed over to process {state.pid}",
                pid=state.pid,
            )
            return 0.0
        if lasted_s >= STEADY_S:
            self._backoff_s = 0.0
        delay_s = self._backoff_s
        self._backoff_s = min(max(BACKOFF_FIRST_S, 2 * self._backoff_s), BACKOFF_LAST_S)
        self._restart_at = time.monotonic() + delay_s
        self._log.say(
            "datapath_ended",
            f"the datapath (process {pid}) {outcome} after {lasted_s:.1f} s; "
            f"starting it again{f' in {delay_s:.1f} s' if delay_s else ''}",
            pid=pid,
        )
        return delay_s

    def _restart(self) -> None:
        """Start the datapath again with the models it held last, live changes included."""
        self.restarts += 1
        try:
            # A live change of models that is under way finishes first, and is not lost.
            with hold_lock(self._run_dir.mailbox_lock, wait=True, busy=""):
                state = current_state(self._run_dir)
                self._spawn(state.models if state is not None else self._plan.models)
        except DatapathError as error:
            self._log.say("restart_failed", str(error))
            self._restart_at = time.monotonic() + BACKOFF_LAST_S
            return
        self.adopted = False
        self._log.say("restart", f"the datapath runs again as process {self.pid}", pid=self.pid)

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Drain and end the datapath. Returns whether it went by itself; it is gone in any case.

        It is killed when the time configured is over, or as soon as `hurry` says so.
        """
        if self._process is None:
            return True
        self._process.send(signal.SIGTERM)
        # The datapath keeps to this time itself; a little more shows that it does not.
        deadline = time.monotonic() + self._drain_timeout_s + DRAIN_GRACE_S
        drained = self._process.wait(_POLL_S)
        while not drained and time.monotonic() < deadline and not hurry():
            drained = self._process.wait(10 * _POLL_S)
        if not drained:
            self._process.send(signal.SIGKILL)
            self._process.wait(self._drain_timeout_s)
        self._relay(self._tail.lines())
        drained = drained and not self._process.failed()
        self._close_reader()
        self._process.close()
        self._process = None
        self._run_dir.state.unlink(missing_ok=True)
        return drained
