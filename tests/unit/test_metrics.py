"""Statistics segment to metrics to HTTP: every number arrives, and no bytes break the reader."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import random
import socket
import time
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from pintok_server._spec import metrics as spec
from pintok_server.control import http as door
from pintok_server.control.config import HttpAddress
from pintok_server.control.metrics import latency_bounds
from pintok_server.control.statistics import Snapshot, StatisticsReader
from pintok_server.control.top import quantile_us, top_text
from pintok_server.errors import ConfigError, StatisticsError
from tests.unit.segment import build_segment, write_segment

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class FileSource:
    """Statistics out of a file, as the supervisor gives them."""

    restarts = 3

    def __init__(self, path: pathlib.Path | None) -> None:
        self.path = path

    def snapshot(self) -> Snapshot | None:
        if self.path is None:
            return None
        with StatisticsReader(self.path) as reader:
            return reader.read()


@pytest.fixture
def source(tmp_path: pathlib.Path) -> FileSource:
    return FileSource(write_segment(tmp_path / "stats"))


@pytest.fixture
def server(source: FileSource) -> Iterator[door.HttpServer]:
    health = door.Health(source, draining=lambda: False)
    running = door.HttpServer(HttpAddress("127.0.0.1", 0), health)
    yield running
    running.close()


def fetch(server: door.HttpServer, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type") or "", answer.read().decode()
    finally:
        connection.close()


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


POLLER = {"worker": "0", "kind": "poller", "cpu": "2", "queue": "0"}
SOCKET = {"worker": "1", "kind": "socket", "cpu": "", "queue": ""}


def test_every_counter_of_the_specification_is_exported(server: door.HttpServer) -> None:
    status, content_type, text = fetch(server, "/metrics")
    assert status == 200 and content_type.startswith("text/plain; version=")
    samples = samples_of(text)
    for place, (name, _) in enumerate(spec.WORKER_COUNTERS):
        if name not in {"latency_ns", "busy_cycles"}:
            key = f"pintok_worker_{name}_total"
            assert samples[key, labels(**POLLER)] == 1000 + place
            assert samples[key, labels(**SOCKET)] == 2000 + place
    gauges = [name for name, _ in spec.WORKER_GAUGE_COUNTERS]
    for place, name in enumerate(gauges):
        if name != "cycles_per_us":
            assert samples[f"pintok_worker_{name}", labels(**POLLER)] == place
    cycles = 1000 + [name for name, _ in spec.WORKER_COUNTERS].index("busy_cycles")
    busy_s = cycles / (gauges.index("cycles_per_us") * 1e6)
    assert samples["pintok_worker_busy_seconds_total", labels(**POLLER)] == pytest.approx(busy_s)
    for name, _ in spec.QUEUE_COUNTERS:
        assert samples[f"pintok_queue_{name}_total", labels(queue="1")] == 11
    for place, (name, _) in enumerate(spec.STEER_COUNTERS):
        assert samples["pintok_xdp_packets_total", labels(reason=name)] == place
    assert samples["pintok_worker_ops_total", labels(**POLLER, op="encode")] == 70
    assert samples["pintok_worker_verdicts_total", labels(**POLLER, verdict="bad_utf8")] == 3
    # A series that appears with its first event has no rate for it.
    assert samples["pintok_worker_verdicts_total", labels(**POLLER, verdict="busy")] == 0
    assert samples["pintok_datapath_restarts_total", frozenset()] == 3
    assert samples["pintok_datapath_state", labels(state="ready")] == 1
    assert samples["pintok_datapath_state", labels(state="draining")] == 0
    assert samples["pintok_datapath_port", frozenset()] == 7265
    model = {"slot": "0", "model": "model-0"}
    assert samples["pintok_model_image_bytes", labels(**model)] == 4096
    known = {name for name, _ in samples}
    assert not any("tokens" in name for name in known)
    info = labels(**model, fingerprint="01" * 32, tag="abcd0000", pages="huge_2m", locked="1")
    assert samples["pintok_model_info", info] == 1


def test_process_gauges_are_exported_one_way_or_the_other(server: door.HttpServer) -> None:
    # A gauge added to the specification must not be lost between two lists of names.
    _, _, text = fetch(server, "/metrics")
    for name, _ in spec.PROCESS_COUNTERS:
        if name in {"heartbeat_ns", "numa_node"}:
            continue
        exported = f"{name.removesuffix('_ns')}_seconds" if name.endswith("_ns") else name
        shown = f"pintok_datapath_{exported}" in text or f'{name}="' in text
        assert shown, name


def test_latency_is_a_cumulative_histogram_from_one_microsecond(server: door.HttpServer) -> None:
    samples = samples_of(fetch(server, "/metrics")[2])
    bounds = latency_bounds()
    assert [bounds[0], bounds[1], bounds[10]] == ["0.000001", "0.000002", "0.001024"]
    name = "pintok_worker_service_seconds"
    values = [samples[f"{name}_bucket", labels(**POLLER, le=bound)] for bound in bounds]
    assert values == [1, 3, *[7] * 21, 15]
    assert samples[f"{name}_count", labels(**POLLER)] == 15
    place = [counter for counter, _ in spec.WORKER_COUNTERS].index("latency_ns")
    assert samples[f"{name}_sum", labels(**POLLER)] == pytest.approx((1000 + place) / 1e9)


def test_openmetrics_is_served_to_who_asks(server: door.HttpServer) -> None:
    _, content_type, text = fetch(server, "/metrics", Accept="application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text)}
    assert {"pintok_worker_requests", "pintok_datapath", "pintok_worker_service_seconds"} <= names


def test_health_follows_the_datapath(source: FileSource, tmp_path: pathlib.Path) -> None:
    draining = False
    health = door.Health(source, draining=lambda: draining)

    def answer(path: str) -> tuple[int, str]:
        status, _, body = health.answer(path, "")
        return status, json.loads(body).get("reason", "")

    assert answer("/healthz") == (200, "") and answer("/readyz") == (200, "")
    draining = True
    assert answer("/healthz") == (200, "")
    assert answer("/readyz") == (503, "the server is being stopped")
    draining = False
    source.path = write_segment(tmp_path / "starting", state=spec.ProcessState.STARTING)
    assert answer("/healthz")[0] == 200 and answer("/readyz")[1] == "the datapath is starting"
    source.path = write_segment(tmp_path / "empty", models=0)
    assert answer("/readyz") == (503, "no model is loaded")
    old_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 60 * 10**9
    source.path = write_segment(tmp_path / "hung", heartbeat_ns=old_ns)
    assert answer("/healthz")[0] == answer("/readyz")[0] == 503
    source.path = None
    assert answer("/healthz") == (503, "no datapath process runs")
    assert health.answer("/metrics", "")[0] == 200
    assert health.answer("/", "")[0] == 404


def test_door_refuses_what_it_does_not_serve(server: door.HttpServer) -> None:
    assert fetch(server, "/metrics/../etc/passwd")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=10)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501
    connection.close()
    connection.request("HEAD", "/healthz")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_occupied_address_is_a_sentence(server: door.HttpServer) -> None:
    health = door.Health(FileSource(None), draining=lambda: False)
    with pytest.raises(ConfigError, match="cannot serve HTTP on 127.0.0.1:.*--no-http"):
        door.HttpServer(server.address, health)


def test_door_survives_anything(server: door.HttpServer) -> None:
    # After each batch of hostile connections the door still answers a good one.
    seed = int(os.environ.get("PINTOK_SEED", "77"))
    rng = random.Random(seed)
    valid = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
    for number in range(150):
        data = bytearray(valid)
        for _ in range(rng.randrange(0, 6)):
            at = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            elif what == 2:
                del data[at : at + rng.randrange(1, 20)]
            else:
                data[at:at] = bytes([rng.randrange(256)]) * rng.choice([100, 5000, 70000])
            if not data:
                data = bytearray(b"\r\n")
        with socket.create_connection(("127.0.0.1", server.address.port), timeout=10) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                reply = b""
                while piece := connection.recv(65536):
                    reply += piece
            except OSError:
                continue
        # A request line without a version is answered as HTTP/0.9 asks: by the body alone.
        known = (b"HTTP/1.", b"# HELP", b'{"', b"<!DOCTYPE")
        assert not reply or reply.startswith(known), f"seed {seed}, case {number}"
    assert fetch(server, "/healthz")[0] == 200


def test_slow_client_is_cut_off_and_does_not_hold_the_door(
    server: door.HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "REQUEST_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.address.port), timeout=10) as slow:
        begin = time.monotonic()
        # A byte now and then restarts no clock.
        with pytest.raises(OSError):
            while time.monotonic() - begin < 8:
                slow.sendall(b"G")
                slow.settimeout(0.05)
                try:
                    if slow.recv(1) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    continue
        assert time.monotonic() - begin < 3
    assert fetch(server, "/healthz")[0] == 200


def test_connections_are_bounded(
    server: door.HttpServer,
) -> None:
    address = ("127.0.0.1", server.address.port)
    held = [socket.create_connection(address) for _ in range(door.CONNECTIONS_MAX + 20)]
    try:
        closed = 0
        deadline = time.monotonic() + 3
        while closed < 20 and time.monotonic() < deadline:
            closed = 0
            for connection in held:
                connection.settimeout(0.01)
                try:
                    closed += connection.recv(1, socket.MSG_PEEK) == b""
                except TimeoutError:
                    pass
                except ConnectionError:
                    closed += 1
        assert closed >= 20
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"magic": b"PTKSTATX"}, "not a statistics segment"),
        ({"magic": b"\0" * 8}, "not finished yet"),
        ({"version": 99}, "version 99; this program reads"),
        ({"worker_count": 1 << 31}, "worker_count 2147483648 is too large"),
        ({"worker_count": 4000}, "points outside"),
        ({"worker_off": 1 << 31}, "points outside"),
        ({"process_off": 129}, "not aligned"),
        ({"verdict_count": 65}, "verdict_count 65 is larger than 64"),
        ({"segment_len": 1 << 40}, "points outside"),
    ],
)
def test_damaged_segment_is_refused(tmp_path: pathlib.Path, change, hint: str) -> None:
    path = write_segment(tmp_path / "stats", **change)
    with pytest.raises(StatisticsError, match=hint):
        StatisticsReader(path)


def test_reader_never_leaves_the_segment(tmp_path: pathlib.Path) -> None:
    # Flip anything in the head, cut anywhere: a refusal or a snapshot, nothing else.
    seed = int(os.environ.get("PINTOK_SEED", "5"))
    rng = random.Random(seed)
    whole = build_segment()
    path = tmp_path / "stats"
    served = 0
    for number in range(1500):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(8, spec.STATS_HEAD.size)] = rng.choice([0, 1, 127, 128, 255])
        if number % 3 == 0:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            with StatisticsReader(path) as reader:
                reader.read()
                reader.ack()
                served += 1
        except StatisticsError:
            continue
    assert served


def test_missing_segment_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StatisticsError, match="there is no statistics segment"):
        StatisticsReader(tmp_path / "stats")
    (tmp_path / "stats").write_bytes(b"")
    with pytest.raises(StatisticsError, match="not finished yet"):
        StatisticsReader(tmp_path / "stats")


def test_changing_model_slot_is_left_out(tmp_path: pathlib.Path) -> None:
    data = bytearray(build_segment())
    head = dict(zip(spec.STATS_HEAD_FIELDS, spec.STATS_HEAD.unpack_from(data), strict=True))
    data[head["model_off"]] = 3
    path = tmp_path / "stats"
    path.write_bytes(data)
    with StatisticsReader(path) as reader:
        assert reader.read().models == ()
        assert reader.ack().text == "no such file"
        assert reader.pid == 4242 and reader.state() == "ready"


def test_quantiles_name_the_bucket_bound() -> None:
    buckets = [0] * spec.STATS_LATENCY_BUCKETS
    assert quantile_us(tuple(buckets), 0.5) is None
    buckets[0], buckets[3] = 50, 50
    assert quantile_us(tuple(buckets), 0.5) == 1.0
    assert quantile_us(tuple(buckets), 0.51) == 8.0
    buckets[-1] = 1000
    assert quantile_us(tuple(buckets), 0.99) == float("inf")


def test_top_shows_rates_and_survives_a_restart(tmp_path: pathlib.Path) -> None:
    with StatisticsReader(write_segment(tmp_path / "a")) as reader:
        old = reader.read()
    with StatisticsReader(write_segment(tmp_path / "b", pid=5)) as reader:
        new = reader.read()
    same = top_text(old, old, elapsed_s=1.0).splitlines()
    assert len(same) == 3 and same[1].split()[5] == "0"
    restarted = top_text(old, new, elapsed_s=1.0).splitlines()
    place = [name for name, _ in spec.WORKER_COUNTERS].index("requests")
    assert restarted[1].split()[5] == str(1000 + place)
