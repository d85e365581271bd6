"""`pintok-server upgrade`: another datapath takes the place of the running one, and none is lost.

    compile models · start the heir · it prepares itself · the running one hands over and ends

Program, options and models of the heir are those of this process; what comes with the descriptors
(interface, queues, rings, port, path) must be what the running one has, and the heir says so where
it is not. Whatever fails before the hand-over, the running datapath serves on. The control process
that looked after it notices that it has ended in favour of another one and begins anew with the
program that is installed now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Sequence

from pintok_server._spec import metrics as spec
from pintok_server.control.config import Settings
from pintok_server.control.datapath import datapath_argv, datapath_options
from pintok_server.control.log import Log
from pintok_server.control.models import compile_models
from pintok_server.control.process import LogTail, Process
from pintok_server.control.runtime import (
    LoadedModel,
    RunDir,
    State,
    current_state,
    hold_lock,
    run_dir_of,
    write_state,
)
from pintok_server.control.statistics import StatisticsReader
from pintok_server.control.supervisor import LINE_PREFIX, READY_TIMEOUT_S, Plan, load_order
from pintok_server.errors import DatapathError, InstanceError, StatisticsError

_POLL_S = 0.005
# The running datapath ends as soon as another one serves.
_END_TIMEOUT_S = 10.0


def upgrade(settings: Settings, *, log: Log) -> None:
    """Let a new datapath take over and return when it serves.

    Raises InstanceError when none runs, a PinTokError of the settings or models, and DatapathError,
    with the new datapath's own sentence, when that did not take over: then nothing has changed.
    """
    run_dir = run_dir_of(settings.instance_name, runtime_dir=settings.runtime_dir)
    _running(run_dir)
    started = time.monotonic()
    options = datapath_options(settings)
    plan = Plan(
        options=options,
        models=load_order(compile_models(settings.models, profile=settings.profile, log=log)),
    )
    # No model is loaded or unloaded meanwhile, and no control process starts.
    with hold_lock(run_dir.mailbox_lock, wait=True, busy=""):
        old = _running(run_dir)
        models = keep_live_models(plan, old)
        heir = _take_over(run_dir, plan, models, old)
    names = ", ".join(model.name for model in models)
    log.say(
        "upgraded",
        f"upgraded: process {heir.pid} serves in the place of process {old.pid} after "
        f"{time.monotonic() - started:.1f} s; models: {names}",
        pid=heir.pid,
        old_pid=old.pid,
    )


def _running(run_dir: RunDir) -> State:
    state = current_state(run_dir)
    if state is None or not state.alive():
        raise InstanceError(f"no datapath runs in {run_dir.path}: start one with pintok-server")
    return state


def keep_live_models(plan: Plan, old: State) -> list[LoadedModel]:
    """The plan's models, and those that were loaded into the old datapath while it ran.

    A model that was loaded live stays in its slot where that is free, else it goes to the next free
    one. Raises InstanceError when there is none.
    """
    models = list(plan.models)
    names = {model.name for model in models}
    slot_count = plan.options.get("models-max", spec.MODEL_SLOTS_MAX)
    for model in old.models:
        if model.name in names or model.name in old.asked:
            continue
        free = set(range(slot_count)) - {other.slot for other in models}
        if not free:
            raise InstanceError(
                f"model {model.name} was loaded while the server ran, and no slot is left for it: "
                "unload it, or raise --models-max"
            )
        slot = model.slot if model.slot in free else min(free)
        models.append(dataclasses.replace(model, slot=slot))
    return sorted(models, key=lambda model: model.slot)


def _take_over(run_dir: RunDir, plan: Plan, models: Sequence[LoadedModel], old: State) -> State:
    """Start the heir, wait until it serves, and record it."""
    argv = datapath_argv(plan.options, run_dir=run_dir, models=models, take_over=True)
    process = Process.spawn(argv, log=run_dir.log)
    heir = plan.record(process, argv, models, restarts=old.restarts)
    try:
        # If this process is killed right after the hand-over, the record shows who serves.
        write_state(run_dir, dataclasses.replace(old, heir=heir))
        try:
            _await_taken(run_dir, process, old)
        except BaseException:
            if _pid_that_serves(run_dir) != process.pid:
                process.send(signal.SIGKILL)
                process.wait(_END_TIMEOUT_S)
                write_state(run_dir, dataclasses.replace(old, heir=None))
                with contextlib.suppress(FileNotFoundError):
                    run_dir.log.with_suffix(".log.1").replace(run_dir.log)
            raise
        write_state(run_dir, heir)
    finally:
        process.close()
    return heir


def _pid_that_serves(run_dir: RunDir) -> int | None:
    """The datapath whose statistics stand in the runtime directory, once it is ready."""
    try:
        with StatisticsReader(run_dir.stats) as reader:
            return reader.pid if reader.state() == "ready" else None
    except StatisticsError:
        return None


def _await_taken(run_dir: RunDir, process: Process, old: State) -> None:
    tail = LogTail(run_dir.log, from_end=False)
    lines: list[str] = []
    deadline = time.monotonic() + READY_TIMEOUT_S
    while _pid_that_serves(run_dir) != process.pid:
        lines += tail.lines()
        ended = process.wait(_POLL_S)
        if ended or time.monotonic() > deadline:
            lines += tail.lines()
            outcome = process.outcome() if ended else "did not take over"
            reason = lines[-1].removeprefix(LINE_PREFIX) if lines else f"the new one {outcome}"
            raise DatapathError(f"not upgraded, process {old.pid} serves on: {reason}")
    deadline = time.monotonic() + _END_TIMEOUT_S
    while old.alive() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
