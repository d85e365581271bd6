"""A running instance as people and programs look at it: `status` once, `top` again and again."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from pintok_server._spec import metrics as spec
from pintok_server.control.memory import format_len, process_memory
from pintok_server.control.metrics import info_labels
from pintok_server.control.report import modes_line
from pintok_server.control.runtime import RunDir, State, current_state, is_held
from pintok_server.control.statistics import (
    WORKER_NAMES,
    Snapshot,
    StatisticsReader,
    Worker,
)
from pintok_server.errors import InstanceError

# Counters of a worker for packets that got no answer.
UNANSWERED = tuple(
    name
    for name in WORKER_NAMES
    if name.startswith("refused_")
    or name in {"rx_skipped", "tx_full", "tx_no_frame", "tx_errors", "silent"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """A running datapath: its record and its statistics."""

    run_dir: RunDir
    state: State
    reader: StatisticsReader


def open_instance(run_dir: RunDir) -> Instance:
    """The running datapath of a runtime directory.

    Raises InstanceError when none runs there, StatisticsError when it has not begun to serve.
    """
    state = current_state(run_dir)
    if state is None or not state.alive():
        raise InstanceError(f"no datapath runs in {run_dir.path}")
    return Instance(run_dir=run_dir, state=state, reader=StatisticsReader(run_dir.stats))


def status_document(instance: Instance) -> dict[str, Any]:
    """Everything about the instance as plain data, for --json."""
    snapshot = instance.reader.read()
    return {
        "instance": instance.run_dir.path.name,
        "runtime_dir": str(instance.run_dir.path),
        "pid": snapshot.pid,
        "supervised": is_held(instance.run_dir.control_lock),
        "state": snapshot.state,
        "heartbeat_age_seconds": round(snapshot.heartbeat_age_s, 3),
        "start_time_seconds": snapshot.start_time_ns / 1e9,
        "restarts": instance.state.restarts,
        "modes": info_labels(snapshot),
        "memory_bytes": process_memory(snapshot.pid),
        "process": snapshot.process,
        "workers": [dataclasses.asdict(worker) for worker in snapshot.workers],
        "queues": [dataclasses.asdict(queue) for queue in snapshot.queues],
        "xdp": snapshot.steer,
        "models": [dataclasses.asdict(model) for model in snapshot.models],
    }


def status_text(instance: Instance) -> str:
    """The same for people, a page at most."""
    snapshot = instance.reader.read()
    up_s = max(0.0, time.time() - snapshot.start_time_ns / 1e9)
    lines = [
        f"{instance.run_dir.path.name}: {snapshot.state}, datapath process {snapshot.pid}, "
        f"up {up_s:.0f} s, restarts {instance.state.restarts}, "
        f"last heartbeat {snapshot.heartbeat_age_s:.1f} s ago",
        modes_line(snapshot),
    ]
    if not is_held(instance.run_dir.control_lock):
        lines.append(
            "no control process looks after it: start pintok-server with the same options again, "
            f"or end the datapath with: kill {snapshot.pid}"
        )
    lines += [
        f"model {model.name} in slot {model.slot}: fingerprint {model.fingerprint[:16]}, "
        f"{format_len(model.image_len)}"
        for model in snapshot.models
    ]
    counts = {
        "requests": snapshot.total("requests"),
        "ids": snapshot.total("ids"),
        "packets received": snapshot.total("rx_packets"),
        "packets sent": snapshot.total("tx_packets"),
    }
    lines.append(", ".join(f"{value} {name}" for name, value in counts.items()))
    refused = {
        verdict: sum(worker.verdicts.get(verdict, 0) for worker in snapshot.workers)
        for worker in snapshot.workers
        for verdict in worker.verdicts
        if verdict != "ok"
    }
    dropped = {name: snapshot.total(name) for name in UNANSWERED}
    listed = ", ".join(f"{count} {name}" for name, count in dropped.items() if count)
    if listed:
        lines.append(f"not answered: {listed}")
    listed = ", ".join(f"{count} {verdict}" for verdict, count in refused.items() if count)
    if listed:
        lines.append(f"refused: {listed}")
    return "\n".join(lines)


def quantile_us(buckets: tuple[int, ...], share: float) -> float | None:
    """The upper bound in microseconds of the bucket that the quantile falls into; None when empty.

    The last bucket has no bound: there it is infinity.
    """
    total = sum(buckets)
    if not total:
        return None
    running = 0
    for index, count in enumerate(buckets):
        running += count
        if running >= share * total:
            last = index == spec.STATS_LATENCY_BUCKETS - 1
            return float("inf") if last else float(1 << index)
    return float("inf")


_HEADING = (
    "worker    kind  cpu queue   busy  request/s       ids/s  rx Mbit/s  tx Mbit/s  p50 us  p99 us "
    "dropped/s"
)


def top_text(old: Snapshot, new: Snapshot, *, elapsed_s: float) -> str:
    """One screen: what each worker did between two snapshots."""
    rows = [_HEADING]
    # A restart between the two leaves nothing to subtract.
    same = old.pid == new.pid and len(old.workers) == len(new.workers)
    for index, worker in enumerate(new.workers):
        rows.append(_top_row(old.workers[index] if same else None, worker, elapsed_s))
    return "\n".join(rows)


def _top_row(old: Worker | None, new: Worker, elapsed_s: float) -> str:
    def rate(*names: str) -> float:
        before = sum(old.counters.get(name, 0) for name in names) if old else 0
        return max(0, sum(new.counters.get(name, 0) for name in names) - before) / elapsed_s

    latency = new.latency
    if old is not None:
        latency = tuple(max(0, b - a) for a, b in zip(old.latency, new.latency, strict=True))
    cycles_per_s = new.gauges.get("cycles_per_us", 0) * 1e6
    busy = min(rate("busy_cycles") / cycles_per_s, 1.0) if cycles_per_s else 0.0
    p50, p99 = quantile_us(latency, 0.5), quantile_us(latency, 0.99)
    dropped = rate(*UNANSWERED)
    return (
        f"{new.index:>6} {new.kind:>7} {_or_dash(new.cpu):>4} {_or_dash(new.queue):>5} "
        f"{busy:>6.1%} {rate('requests'):>10.0f} {rate('ids'):>11.0f} "
        f"{rate('rx_bytes') * 8 / 1e6:>10.1f} {rate('tx_bytes') * 8 / 1e6:>10.1f} "
        f"{_or_dash(p50):>7} {_or_dash(p99):>7} {dropped:>9.0f}"
    )


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
