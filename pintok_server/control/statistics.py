"""Read the statistics segment that a datapath process writes.

The segment is another process's memory: its head is checked completely when it is opened, and after
that nothing in it can make a reader leave the mapping. Words are read whole, one machine load each,
through a view of 64-bit words; blocks may mix two moments, as the specification says.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
import pathlib
import time
from types import TracebackType
from typing import Self

from pintok import _wire
from pintok_server._spec import metrics as spec
from pintok_server.errors import StatisticsError, UnfinishedStatisticsError

# Bounds that no writer of this version exceeds; they keep a damaged head from asking for the moon.
WORKERS_MAX = 4096
QUEUES_MAX = 4096

# The main thread comes round every 20 ms; one that has not for this long does not any more.
HEARTBEAT_AGE_MAX_S = 3.0

_NONE_U32 = 0xFFFFFFFF


def _names(group: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(name for name, _ in group)


PROCESS_NAMES = _names(spec.PROCESS_COUNTERS)
WORKER_NAMES = _names(spec.WORKER_COUNTERS)
WORKER_GAUGE_NAMES = _names(spec.WORKER_GAUGE_COUNTERS)
QUEUE_NAMES = _names(spec.QUEUE_COUNTERS)
STEER_NAMES = _names(spec.STEER_COUNTERS)


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    """One worker at a moment. Verdicts, item verdicts and operations are counted by name."""

    index: int
    kind: str
    cpu: int | None
    queue: int | None
    thread_id: int
    epoch: int
    counters: dict[str, int]
    gauges: dict[str, int]
    ops: dict[str, int]
    verdicts: dict[str, int]
    item_verdicts: dict[str, int]
    latency: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Queue:
    """One XDP queue at a moment."""

    queue: int
    zerocopy: bool
    multi_buffer: bool
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """One model slot in use."""

    slot: int
    name: str
    generation: int
    image_len: int
    tag: int
    fingerprint: str
    pages: str
    locked: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Ack:
    """The datapath's answer to a mailbox command."""

    sequence: int
    result: int
    slot: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the segment says at a moment."""

    pid: int
    start_time_ns: int
    process: dict[str, int]
    workers: tuple[Worker, ...]
    queues: tuple[Queue, ...]
    steer: dict[str, int]
    models: tuple[Model, ...]

    @property
    def state(self) -> str:
        return enum_name(spec.ProcessState, self.process.get("state", 0))

    @property
    def path(self) -> str:
        return enum_name(spec.DatapathPath, self.process.get("path", 0))

    @property
    def xdp_mode(self) -> str:
        return enum_name(spec.XdpMode, self.process.get("xdp_mode", 0))

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the datapath's main thread last came round."""
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return max(0, now_ns - self.process.get("heartbeat_ns", 0)) / 1e9

    def total(self, counter: str) -> int:
        """Sum of one worker counter over all workers."""
        return sum(worker.counters.get(counter, 0) for worker in self.workers)


def enum_name(names: type[enum.IntEnum], value: int) -> str:
    """The lower-case name of a value of a generated enum; its number when this version has none."""
    try:
        return names(value).name.lower()
    except ValueError:
        return str(value)


class StatisticsReader:
    """A read-only mapping of one segment. Use as a context manager, or close it."""

    def __init__(self, path: pathlib.Path) -> None:
        """Map and check the segment at `path`.

        Raises StatisticsError when it is absent, unfinished, damaged or of another version.
        """
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UnfinishedStatisticsError(f"{path}: there is no statistics segment") from None
        except ValueError:
            # An empty file cannot be mapped.
            raise UnfinishedStatisticsError(f"{path}: not finished yet") from None
        except OSError as error:
            raise StatisticsError(f"{path}: cannot be mapped: {error.strerror}") from None
        self._bytes = memoryview(self._map)
        self._words = self._bytes[: len(self._bytes) & ~7].cast("Q")
        try:
            self._head = self._check_head(path)
        except StatisticsError:
            self.close()
            raise

    def _check_head(self, path: pathlib.Path) -> dict[str, int]:
        if len(self._bytes) < spec.STATS_HEAD.size:
            raise StatisticsError(f"{path}: shorter than the head of a statistics segment")
        values = spec.STATS_HEAD.unpack_from(self._bytes)
        head = dict(zip(spec.STATS_HEAD_FIELDS, values, strict=True))
        if head["magic"] == bytes(8):
            raise UnfinishedStatisticsError(f"{path}: not finished yet")
        if head["magic"] != spec.STATS_MAGIC.encode():
            raise StatisticsError(f"{path}: not a statistics segment")
        if head["version"] != spec.STATS_VERSION:
            raise StatisticsError(
                f"{path}: version {head['version']}; this program reads {spec.STATS_VERSION}"
            )
        blocks = (
            ("process", 8, 1024),
            ("worker", spec.STATS_WORKER.size, WORKERS_MAX),
            ("queue", spec.STATS_QUEUE.size, QUEUES_MAX),
            ("steer", 8, 1024),
            ("model", spec.STATS_MODEL.size, spec.MODEL_SLOTS_MAX),
        )
        ends = [head["ack_off"] + spec.STATS_ACK.size]
        for name, size, count_max in blocks:
            if head[f"{name}_count"] > count_max:
                raise StatisticsError(f"{path}: {name}_count {head[f'{name}_count']} is too large")
            ends.append(head[f"{name}_off"] + size * head[f"{name}_count"])
        offsets = [value for name, value in head.items() if name.endswith("_off")]
        if max(ends) > len(self._bytes) or head["segment_len"] > len(self._bytes):
            raise StatisticsError(f"{path}: its head points outside of the file")
        if any(offset % 8 for offset in offsets):
            raise StatisticsError(f"{path}: its head names an offset that is not aligned")
        caps = {
            "worker_counter_count": spec.STATS_COUNTER_CAP,
            "worker_gauge_count": spec.STATS_GAUGE_CAP,
            "verdict_count": spec.STATS_VERDICT_CAP,
            "op_count": spec.STATS_OP_CAP,
        }
        for name, cap in caps.items():
            if head[name] > cap:
                raise StatisticsError(f"{path}: {name} {head[name]} is larger than {cap}")
        del head["magic"], head["reserved"]
        return head

    def close(self) -> None:
        """Release the mapping; the reader is of no use afterwards."""
        self._words.release()
        self._bytes.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process that made the segment."""
        return self._head["pid"]

    def _list(self, off: int, count: int) -> list[int]:
        return self._words[off // 8 : off // 8 + count].tolist()

    def _u32(self, off: int) -> int:
        return int.from_bytes(self._bytes[off : off + 4], "little")

    def _text(self, off: int, cap: int) -> str:
        data = bytes(self._bytes[off : off + cap])
        return data.partition(b"\0")[0].decode("utf-8", errors="replace")

    def _named(self, names: tuple[str, ...], off: int, count: int) -> dict[str, int]:
        return dict(zip(names, self._list(off, min(count, len(names))), strict=False))

    def ack(self) -> Ack:
        """The last answer to the mailbox; `sequence` is read first, as it is written last."""
        off = self._head["ack_off"]
        fields = spec.STATS_ACK_OFFSETS
        sequence = self._list(off + fields["sequence"], 1)[0]
        return Ack(
            sequence=sequence,
            result=self._u32(off + fields["result"]),
            slot=self._u32(off + fields["slot"]),
            text=self._text(off + fields["text"], spec.STATS_TEXT_CAP),
        )

    def state(self) -> str:
        """Where the process is in its life, by the names of `process_state`."""
        value = self._list(self._head["process_off"], 1)[0]
        return enum_name(spec.ProcessState, value)

    def read(self) -> Snapshot:
        """Copy everything out of the segment."""
        head = self._head
        process = self._named(PROCESS_NAMES, head["process_off"], head["process_count"])
        return Snapshot(
            pid=head["pid"],
            start_time_ns=head["start_time_ns"],
            process=process,
            workers=tuple(self._worker(index) for index in range(head["worker_count"])),
            queues=tuple(self._queue(index) for index in range(head["queue_count"])),
            steer=self._named(STEER_NAMES, head["steer_off"], head["steer_count"]),
            models=tuple(
                model
                for model in (self._model(slot) for slot in range(head["model_count"]))
                if model is not None
            ),
        )

    def _worker(self, index: int) -> Worker:
        base = self._head["worker_off"] + index * spec.STATS_WORKER.size
        off = {name: base + value for name, value in spec.STATS_WORKER_OFFSETS.items()}
        cpu, queue = self._u32(off["cpu"]), self._u32(off["queue"])
        return Worker(
            index=index,
            kind=enum_name(spec.WorkerKind, self._u32(off["kind"])),
            cpu=None if cpu == _NONE_U32 else cpu,
            queue=None if queue == _NONE_U32 else queue,
            thread_id=self._u32(off["thread_id"]),
            epoch=self._list(off["epoch"], 1)[0],
            counters=self._named(WORKER_NAMES, off["counters"], self._head["worker_counter_count"]),
            gauges=self._named(WORKER_GAUGE_NAMES, off["gauges"], self._head["worker_gauge_count"]),
            ops=self._tally(_wire.WireOp, off["ops"], self._head["op_count"]),
            verdicts=self._tally(_wire.Verdict, off["verdicts"], self._head["verdict_count"]),
            item_verdicts=self._tally(
                _wire.Verdict, off["item_verdicts"], self._head["verdict_count"]
            ),
            latency=tuple(self._list(off["latency"], spec.STATS_LATENCY_BUCKETS)),
        )

    def _tally(self, names: type[enum.IntEnum], off: int, count: int) -> dict[str, int]:
        values = self._list(off, count)
        known = {int(member) for member in names}
        return {
            enum_name(names, code): value
            for code, value in enumerate(values)
            if value or code in known
        }

    def _queue(self, index: int) -> Queue:
        base = self._head["queue_off"] + index * spec.STATS_QUEUE.size
        off = {name: base + value for name, value in spec.STATS_QUEUE_OFFSETS.items()}
        return Queue(
            queue=self._u32(off["queue"]),
            zerocopy=bool(self._u32(off["zerocopy"])),
            multi_buffer=bool(self._u32(off["multi_buffer"])),
            counters=self._named(QUEUE_NAMES, off["counters"], len(QUEUE_NAMES)),
        )

    def _model(self, slot: int) -> Model | None:
        base = self._head["model_off"] + slot * spec.STATS_MODEL.size
        off = {name: base + value for name, value in spec.STATS_MODEL_OFFSETS.items()}
        # A slot that changes under the reader is read again; one that keeps changing is left out.
        for _ in range(100):
            generation = self._list(off["generation"], 1)[0]
            image_len = self._list(off["image_len"], 1)[0]
            model = Model(
                slot=slot,
                name=self._text(off["name"], spec.STATS_MODEL_NAME_CAP),
                generation=generation,
                image_len=image_len,
                tag=self._u32(off["model_tag"]),
                fingerprint=bytes(self._bytes[off["fingerprint"] : off["fingerprint"] + 32]).hex(),
                pages=enum_name(spec.PageKind, self._u32(off["pages"])),
                locked=bool(self._u32(off["locked"])),
            )
            if generation % 2 == 0 and self._list(off["generation"], 1)[0] == generation:
                return model if image_len else None
        return None
