"""`pintok-server serve`: from settings to a served port, until a signal.

    lock · compile models · HTTP · adopt or start the datapath · report · watch · drain

After an upgrade (`upgrade.py`) this process replaces its own program by the one that is installed
now, which adopts the new datapath: the process number stays, so a service manager sees nothing.

The control process may be killed at any of these points: what it holds is given back by the kernel,
and a datapath that serves goes on serving until the next control process finds it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from pintok_server.control.config import Settings
from pintok_server.control.datapath import datapath_options
from pintok_server.control.http import Health, HttpServer
from pintok_server.control.log import Log
from pintok_server.control.models import compile_models
from pintok_server.control.notify import notify_manager
from pintok_server.control.report import report_start
from pintok_server.control.runtime import (
    create_run_dir,
    hold_lock,
    note_holder,
    run_dir_of,
)
from pintok_server.control.supervisor import Plan, Supervisor, load_order
from pintok_server.errors import ServerError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# The descriptor on which the program before this one noted signals.
INHERITED = "PINTOK_SIGNALS_FD"


class Interrupted(ServerError):
    """A signal asked the server to stop before it served."""


class StopSignals:
    """SIGTERM and SIGINT as a count and a descriptor that becomes readable."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._inherit()

    @contextlib.contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Take the two signals while the block runs."""
        old = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Blocked by `begin_anew` of the program before this one, perhaps with one that waits.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
            self._reader.close()
            self._writer.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.name = signal.Signals(number).name

    def begin_anew(self, argv: list[str]) -> NoReturn:
        """Replace the program; signals that came, and those that come meanwhile, are left to it.

        Blocked signals wait for the next program, unless a thread of some library takes them; then
        the handler's byte waits in the socket, which the next program inherits.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._drain()
        signal.pthread_sigmask(signal.SIG_BLOCK, [])  # Handlers of what was drained run here.
        if self.count:
            os.kill(os.getpid(), signal.SIGTERM)
        self._reader.set_inheritable(True)
        os.environ[INHERITED] = str(self._reader.fileno())
        os.execv(argv[0], argv)

    def _inherit(self) -> None:
        """Take note of what came while the program before this one was replaced."""
        fd = os.environ.pop(INHERITED, None)
        if fd is None:
            return
        with socket.socket(fileno=int(fd)) as left, contextlib.suppress(BlockingIOError):
            left.setblocking(False)
            for number in STOP_SIGNALS:
                if number in left.recv(4096, socket.MSG_PEEK):
                    self.count, self.name = 1, number.name

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.count:
            raise Interrupted(f"{self.name} before the server was ready")

    def wait(self, pidfd: int | None, timeout_s: float) -> None:
        """Sleep until a signal comes, the process of `pidfd` ends, or the time is over."""
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        if pidfd is not None:
            poller.register(pidfd, select.POLLIN)
        poller.poll(max(timeout_s, 0) * 1000)
        self._drain()


def serve(settings: Settings, *, replace: bool, log: Log) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Raises a PinTokError with one sentence when the server cannot start, or when the datapath had to
    be killed at the end. Does not return after an upgrade: the program begins anew.
    """
    name = settings.instance_name
    run_dir = run_dir_of(name, runtime_dir=settings.runtime_dir)
    create_run_dir(run_dir)
    busy = f"another pintok-server looks after instance {name} ({run_dir.path})"
    with (
        hold_lock(run_dir.control_lock, wait=False, busy=busy),
        StopSignals().installed() as signals,
        contextlib.ExitStack() as stack,
    ):
        note_holder(run_dir.control_lock)
        started = time.monotonic()
        options = datapath_options(settings)
        models = compile_models(settings.models, profile=settings.profile, log=log)
        supervisor = Supervisor(
            Plan(options=options, models=load_order(models)),
            run_dir=run_dir,
            drain_timeout_s=settings.drain_timeout_s,
            log=log,
        )
        http = None
        if settings.http is not None:
            health = Health(supervisor, draining=lambda: signals.count > 0)
            http = HttpServer(settings.http, health)
            stack.callback(http.close)
        supervisor.start(replace=replace, tick=signals.check)
        report_start(
            supervisor,
            settings=settings,
            certificates={model.fingerprint: model.certificate_line for model in models},
            http=http.address if http is not None else None,
            run_dir=run_dir,
            log=log,
            elapsed_s=time.monotonic() - started,
        )
        notify_manager("READY=1")
        while not signals.count and not supervisor.replaced:
            signals.wait(supervisor.pidfd, supervisor.watch())
        if supervisor.replaced:
            stack.close()
            # The locks and whatever else is open close by themselves.
            signals.begin_anew([sys.executable, *sys.orig_argv[1:]])
        notify_manager("STOPPING=1")
        log.say("drain", f"{signals.name}: draining")
        if not supervisor.stop(hurry=lambda: signals.count > 1):
            raise ServerError("the datapath did not drain in time and was killed")
        log.say("stopped", "stopped")
