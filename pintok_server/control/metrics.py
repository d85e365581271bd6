"""The statistics segment as Prometheus metrics, by the conventions of that format.

Names begin with `pintok_`, counters end in `_total`, times are seconds and sizes bytes. Which
metrics there are follows from the generated specification: a counter added there appears here by
itself. A collection copies the segment once; nothing is kept between two collections.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from pintok_server._spec import metrics as spec
from pintok_server.control.statistics import Snapshot, Worker, enum_name

# Process gauges that are enumerations or choices: they are labels of `pintok_datapath_info`.
_INFO_ENUMS = {
    "path": spec.DatapathPath,
    "xdp_mode": spec.XdpMode,
    "umem_pages": spec.PageKind,
    "image_pages": spec.PageKind,
}
_INFO_FLAGS = ("zerocopy", "busy_spin", "memory_locked", "cores_isolated", "capabilities")
_RX_CHECKSUM = {0: "off", 1: "verify", 2: "verify_partial"}
# Process gauges with a metric of their own name and meaning below.
_SPECIAL = {"state", "heartbeat_ns", "rx_checksum", "link_changes", "commands", "numa_node"}


class Source(Protocol):
    """Where a collection gets its numbers: the supervisor, or a stand-in in tests."""

    restarts: int

    def snapshot(self) -> Snapshot | None:
        """The statistics now, None while no datapath runs."""


def package_version() -> str:
    """The installed version; `unknown` in a bare source tree."""
    try:
        return importlib.metadata.version("pintok")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def latency_bounds() -> tuple[str, ...]:
    """Upper bounds of the latency buckets in seconds, as label values: 1 us doubled, then +Inf."""
    bounds = [f"{(1 << i) / 1e6:.9f}".rstrip("0") for i in range(spec.STATS_LATENCY_BUCKETS - 1)]
    return (*bounds, "+Inf")


class Collector:
    """Yields the metrics of one datapath and its control process."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """All metrics now. Without a running datapath only those of the control process."""
        snapshot = self._source.snapshot()
        yield InfoMetricFamily(
            "pintok_build", "Version of this server.", value={"version": package_version()}
        )
        yield CounterMetricFamily(
            "pintok_datapath_restarts",
            "Times the control process started the datapath again.",
            value=self._source.restarts,
        )
        yield GaugeMetricFamily(
            "pintok_datapath_up",
            "1 while a datapath process runs.",
            value=int(snapshot is not None),
        )
        if snapshot is None:
            return
        yield from _process_metrics(snapshot)
        yield from _worker_metrics(snapshot.workers)
        yield from _queue_metrics(snapshot)
        yield from _model_metrics(snapshot)


def info_labels(snapshot: Snapshot) -> dict[str, str]:
    """What the datapath really obtained, as `pintok_datapath_info` and the start report show it."""
    process = snapshot.process
    labels = {name: enum_name(enum, process.get(name, 0)) for name, enum in _INFO_ENUMS.items()}
    labels |= {name: str(process.get(name, 0)) for name in _INFO_FLAGS}
    labels["rx_checksum"] = _RX_CHECKSUM.get(process.get("rx_checksum", 0), "unknown")
    return labels


def _process_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    process = snapshot.process
    yield InfoMetricFamily(
        "pintok_datapath", "Modes that the datapath obtained.", value=info_labels(snapshot)
    )
    state = GaugeMetricFamily(
        "pintok_datapath_state", "1 for the state the datapath is in.", labels=["state"]
    )
    for value in spec.ProcessState:
        state.add_metric([value.name.lower()], int(snapshot.state == value.name.lower()))
    yield state
    yield GaugeMetricFamily(
        "pintok_datapath_heartbeat_age_seconds",
        "Time since the datapath's main thread last came round.",
        value=snapshot.heartbeat_age_s,
    )
    yield GaugeMetricFamily(
        "pintok_datapath_start_time_seconds",
        "When the datapath started, as seconds since the epoch.",
        value=snapshot.start_time_ns / 1e9,
    )
    for name, doc in spec.PROCESS_COUNTERS:
        if name in {"link_changes", "queue_changes", "commands", "take_overs"}:
            yield CounterMetricFamily(f"pintok_datapath_{name}", doc, value=process.get(name, 0))
        elif name == "take_over_gap_ns":
            yield GaugeMetricFamily(
                "pintok_datapath_take_over_gap_seconds",
                "Time that the workers stood still at the last take-over.",
                value=process.get(name, 0) / 1e9,
            )
        elif name == "mtu":
            yield GaugeMetricFamily("pintok_datapath_mtu_bytes", doc, value=process.get(name, 0))
        elif name not in _SPECIAL and name not in _INFO_ENUMS and name not in _INFO_FLAGS:
            yield GaugeMetricFamily(f"pintok_datapath_{name}", doc, value=process.get(name, 0))


_WORKER_LABELS = ["worker", "kind", "cpu", "queue"]


def _worker_values(worker: Worker) -> list[str]:
    cpu = "" if worker.cpu is None else str(worker.cpu)
    queue = "" if worker.queue is None else str(worker.queue)
    return [str(worker.index), worker.kind, cpu, queue]


def _worker_metrics(workers: Iterable[Worker]) -> Iterator[Metric]:
    workers = tuple(workers)
    latency = HistogramMetricFamily(
        "pintok_worker_service_seconds",
        "Time from taking a request off the ring or socket to handing over its reply.",
        labels=_WORKER_LABELS,
    )
    for worker in workers:
        running, buckets = 0, []
        for bound, count in zip(latency_bounds(), worker.latency, strict=True):
            running += count
            buckets.append((bound, running))
        total_s = worker.counters.get("latency_ns", 0) / 1e9
        latency.add_metric(_worker_values(worker), buckets=buckets, sum_value=total_s)
    yield latency
    for name, doc in spec.WORKER_COUNTERS:
        if name not in {"latency_ns", "busy_cycles"}:
            counter = CounterMetricFamily(f"pintok_worker_{name}", doc, labels=_WORKER_LABELS)
            for worker in workers:
                counter.add_metric(_worker_values(worker), worker.counters.get(name, 0))
            yield counter
    busy = CounterMetricFamily(
        "pintok_worker_busy_seconds",
        "Time spent in loops that had packets.",
        labels=_WORKER_LABELS,
    )
    for worker in workers:
        cycles_per_s = 1e6 * worker.gauges.get("cycles_per_us", 0)
        cycles = worker.counters.get("busy_cycles", 0)
        busy.add_metric(_worker_values(worker), cycles / cycles_per_s if cycles_per_s else 0)
    yield busy
    for name, doc in spec.WORKER_GAUGE_COUNTERS:
        if name == "cycles_per_us":
            continue
        gauge = GaugeMetricFamily(f"pintok_worker_{name}", doc, labels=_WORKER_LABELS)
        for worker in workers:
            gauge.add_metric(_worker_values(worker), worker.gauges.get(name, 0))
        yield gauge
    tallies = (
        ("ops", "op", "Requests by operation."),
        ("verdicts", "verdict", "Datagrams by verdict."),
        ("item_verdicts", "verdict", "Items of requests by verdict."),
    )
    for field, label, doc in tallies:
        tally = CounterMetricFamily(f"pintok_worker_{field}", doc, labels=[*_WORKER_LABELS, label])
        for worker in workers:
            for name, value in getattr(worker, field).items():
                tally.add_metric([*_worker_values(worker), name], value)
        yield tally


def _queue_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    if snapshot.queues:
        for name, doc in spec.QUEUE_COUNTERS:
            counter = CounterMetricFamily(f"pintok_queue_{name}", doc, labels=["queue"])
            for queue in snapshot.queues:
                counter.add_metric([str(queue.queue)], queue.counters.get(name, 0))
            yield counter
        for field, doc in (
            ("zerocopy", "1 when the kernel reports zero-copy for this queue."),
            ("multi_buffer", "1 when packets may come in several buffers."),
        ):
            gauge = GaugeMetricFamily(f"pintok_queue_{field}", doc, labels=["queue"])
            for queue in snapshot.queues:
                gauge.add_metric([str(queue.queue)], int(getattr(queue, field)))
            yield gauge
    if snapshot.steer:
        program = CounterMetricFamily(
            "pintok_xdp_packets",
            "Packets by what the XDP program decided and why.",
            labels=["reason"],
        )
        for name, value in snapshot.steer.items():
            program.add_metric([name], value)
        yield program


def _model_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    info = InfoMetricFamily("pintok_model", "A loaded model.", labels=["slot", "model"])
    size = GaugeMetricFamily(
        "pintok_model_image_bytes", "Size of a model's image.", labels=["slot", "model"]
    )
    for model in snapshot.models:
        labels = [str(model.slot), model.name]
        info.add_metric(
            labels,
            {
                "fingerprint": model.fingerprint,
                "tag": f"{model.tag:08x}",
                "pages": model.pages,
                "locked": str(int(model.locked)),
            },
        )
        size.add_metric(labels, model.image_len)
    yield info
    yield size
