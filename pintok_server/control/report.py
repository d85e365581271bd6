"""What `pintok-server` says once it serves: models, modes really obtained, address."""

from __future__ import annotations

from collections.abc import Mapping

from pintok_server.control.config import HttpAddress, Settings
from pintok_server.control.cores import format_number_list
from pintok_server.control.log import Log
from pintok_server.control.memory import format_len
from pintok_server.control.metrics import info_labels
from pintok_server.control.runtime import RunDir
from pintok_server.control.statistics import Snapshot
from pintok_server.control.supervisor import Supervisor

PAGES = {"huge_2m": "2 MiB pages", "small": "4 KiB pages", "none": "no memory"}


def modes_line(snapshot: Snapshot) -> str:
    """One sentence of what packets really go through."""
    labels = info_labels(snapshot)
    cpus = [worker.cpu for worker in snapshot.workers if worker.cpu is not None]
    cores = f"core{'s' if len(cpus) > 1 else ''} {format_number_list(cpus)}"
    if not cpus:
        cores = "no core of its own"
    idle = "spinning" if labels["busy_spin"] == "1" else "sleeping when idle"
    checksum = labels["rx_checksum"].replace("_", " with ")
    if labels["path"] == "xdp":
        queues = format_number_list(queue.queue for queue in snapshot.queues)
        queues = f"queue{'s' if len(snapshot.queues) > 1 else ''} {queues}"
        copy = "zero-copy" if labels["zerocopy"] == "1" else "copy"
        return (
            f"path: AF_XDP, {labels['xdp_mode']} mode, {copy}, packet memory in "
            f"{PAGES[labels['umem_pages']]}; {queues} on {cores}, {idle}; "
            f"receive checksums: {checksum}"
        )
    return f"path: kernel sockets on {cores}, {idle}"


def report_start(
    supervisor: Supervisor,
    *,
    settings: Settings,
    certificates: Mapping[str, str],
    http: HttpAddress | None,
    run_dir: RunDir,
    log: Log,
    elapsed_s: float,
) -> None:
    """Say what serves now. `certificates` are the models' sentences by fingerprint.

    Lesser modes and memory were named by the datapath itself, a line each.
    """
    snapshot = supervisor.snapshot()
    assert snapshot is not None
    if supervisor.adopted:
        log.say(
            "adopted",
            f"adopted the datapath of process {snapshot.pid}, which kept serving",
            pid=snapshot.pid,
        )
    for model in snapshot.models:
        log.say(
            "model",
            f"model {model.name} in slot {model.slot}: fingerprint {model.fingerprint[:16]}, "
            f"{format_len(model.image_len)} in {PAGES.get(model.pages, model.pages)}"
            f"{', locked' if model.locked else ''}",
            slot=model.slot,
            name=model.name,
            fingerprint=model.fingerprint,
        )
        if model.fingerprint in certificates:
            line = certificates[model.fingerprint]
            log.say("certificate", f"  certificate: {line}", fingerprint=model.fingerprint)
    log.say("modes", modes_line(snapshot), **info_labels(snapshot))
    lesser = snapshot.process.get("lesser_modes", 0)
    if lesser and supervisor.adopted:
        log.say("lesser", f"lesser modes at its start: {lesser}; they are named in {run_dir.log}")
    where = settings.iface or "every interface"
    metrics = f"; metrics on http://{http}/metrics" if http is not None else ""
    log.say(
        "ready",
        f"ready: UDP port {settings.port} on {where}, datapath process {snapshot.pid}, "
        f"after {elapsed_s:.1f} s{metrics}",
        port=settings.port,
        iface=settings.iface,
        pid=snapshot.pid,
        http=str(http) if http is not None else None,
    )
