"""`pintok-server drain`: let a running server finish what it has, and end it.

The order is that of SIGTERM to the control process, which is what this sends:

    1  state "draining": /readyz says 503, and a balancer sends no more
    2  the queues' entries leave the XDP program's map: new packets go to the kernel's socket
    3  the pollers answer what stands in their rings, and their replies leave
    4  the kernel's sockets are emptied
    5  the datapath ends, and with it the XDP program; then the control process

Without a control process the datapath itself is told, and does 2 to 5.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from pintok_server.control.runtime import RunDir, current_state, read_holder
from pintok_server.errors import DatapathError, InstanceError


def drain(run_dir: RunDir, *, timeout_s: float) -> str:
    """End the server of this directory; returns who was told.

    Raises InstanceError when none runs and DatapathError when it has not ended in time.
    """
    state = current_state(run_dir)
    if state is None or not state.alive():
        raise InstanceError(f"no datapath runs in {run_dir.path}")
    control = read_holder(run_dir.control_lock)
    pid, who = (control, "control process") if control is not None else (state.pid, "datapath")
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise InstanceError(f"the {who} (process {pid}) has just ended") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, pidfd)
        # The number is that of whom we mean only if this still holds; now it cannot change hands.
        if read_holder(run_dir.control_lock) != control or not state.alive():
            raise InstanceError(f"the {who} (process {pid}) has just ended")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        if not poller.poll(timeout_s * 1000):
            raise DatapathError(f"the {who} (process {pid}) has not ended after {timeout_s:.0f} s")
    while state.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    if state.alive():
        raise DatapathError(f"the datapath (process {state.pid}) has not ended")
    return f"{who} (process {pid})"
