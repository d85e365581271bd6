"""Makes statistics segments for tests, as a datapath would: every word is known."""

from __future__ import annotations

import pathlib
import struct
import time
from typing import Any

from pintok_server._spec import metrics as spec

_WIDE = {"epoch", "generation", "image_len", "sequence"}


def pack(layout: str, /, **values: Any) -> bytes:
    """One struct of the specification: bytes, lists of words and numbers at their offsets."""
    data = bytearray(getattr(spec, layout).size)
    offsets = getattr(spec, f"{layout}_OFFSETS")
    for field, value in values.items():
        if isinstance(value, bytes):
            data[offsets[field] : offsets[field] + len(value)] = value
        elif isinstance(value, list):
            struct.pack_into(f"<{len(value)}Q", data, offsets[field], *value)
        else:
            struct.pack_into("<Q" if field in _WIDE else "<I", data, offsets[field], value)
    return bytes(data)


def build_segment(
    *,
    pid: int = 4242,
    state: spec.ProcessState = spec.ProcessState.READY,
    heartbeat_ns: int | None = None,
    workers: int = 2,
    models: int = 1,
    queues: int = 2,
    **head: int,
) -> bytes:
    """A whole segment. Worker i has counters 1000 * (i + 1) + index of the counter."""
    if heartbeat_ns is None:
        heartbeat_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    process = [0] * len(spec.PROCESS_COUNTERS)
    names = [name for name, _ in spec.PROCESS_COUNTERS]
    process[names.index("state")] = int(state)
    process[names.index("heartbeat_ns")] = heartbeat_ns
    process[names.index("path")] = int(spec.DatapathPath.XDP)
    process[names.index("xdp_mode")] = int(spec.XdpMode.DRV)
    process[names.index("umem_pages")] = int(spec.PageKind.HUGE_2M)
    process[names.index("port")] = 7265
    body = bytearray()
    offsets: dict[str, int] = {}

    def add(name: str, data: bytes) -> None:
        body.extend(bytes(-len(body) % 64))
        offsets[f"{name}_off"] = spec.STATS_HEAD.size + len(body)
        body.extend(data)

    add("process", struct.pack(f"<{len(process)}Q", *process))
    add("worker", b"".join(build_worker(index) for index in range(workers)))
    queue = b"".join(
        pack("STATS_QUEUE", queue=index, zerocopy=index, counters=[10 * index + 1] * 7)
        for index in range(queues)
    )
    add("queue", queue)
    add("steer", struct.pack(f"<{len(spec.STEER_COUNTERS)}Q", *range(len(spec.STEER_COUNTERS))))
    slots = [
        pack(
            "STATS_MODEL",
            generation=2,
            image_len=4096 * (slot + 1) if slot < models else 0,
            model_tag=0xABCD0000 + slot,
            pages=int(spec.PageKind.HUGE_2M),
            fingerprint=bytes([slot + 1] * 32),
            locked=1,
            name=f"model-{slot}".encode(),
        )
        for slot in range(4)
    ]
    add("model", b"".join(slots))
    add("ack", pack("STATS_ACK", sequence=7, result=2, slot=3, text=b"no such file"))
    values: dict[str, Any] = {
        "magic": spec.STATS_MAGIC.encode(),
        "version": spec.STATS_VERSION,
        "pid": pid,
        "segment_len": spec.STATS_HEAD.size + len(body),
        "start_time_ns": 1_700_000_000_000_000_000,
        "process_count": len(process),
        "worker_count": workers,
        "queue_count": queues,
        "steer_count": len(spec.STEER_COUNTERS),
        "model_count": len(slots),
        "worker_counter_count": len(spec.WORKER_COUNTERS),
        "worker_gauge_count": len(spec.WORKER_GAUGE_COUNTERS),
        "verdict_count": 26,
        "op_count": 9,
        "reserved": b"",
    }
    values |= offsets | head
    return spec.STATS_HEAD.pack(*(values[field] for field in spec.STATS_HEAD_FIELDS)) + body


def build_worker(index: int) -> bytes:
    counters = [1000 * (index + 1) + place for place in range(len(spec.WORKER_COUNTERS))]
    return pack(
        "STATS_WORKER",
        kind=int(spec.WorkerKind.POLLER if index == 0 else spec.WorkerKind.SOCKET),
        cpu=index + 2 if index == 0 else 0xFFFFFFFF,
        queue=index if index == 0 else 0xFFFFFFFF,
        thread_id=99,
        epoch=5,
        counters=counters,
        gauges=list(range(len(spec.WORKER_GAUGE_COUNTERS))),
        ops=[0, 1, 0, 70 + index],
        verdicts=[60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
        item_verdicts=[61],
        latency=[1, 2, 4] + [0] * (spec.STATS_LATENCY_BUCKETS - 4) + [8],
    )


def write_segment(path: pathlib.Path, **values: Any) -> pathlib.Path:
    path.write_bytes(build_segment(**values))
    return path
