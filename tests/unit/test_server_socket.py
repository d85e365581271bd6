"""The whole server over kernel sockets on the loopback, as any user: start, answer, die, return.

What needs root and AF_XDP is in tests/netns; this is the same life cycle without either.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pintok._wire import Verdict
from pintok.client import Client
from pintok.errors import PinTokError, RefusedError
from pintok.tokenizer import Tokenizer
from pintok_server.control.runtime import RunDir, process_start_time, read_state
from tests.conftest import ROOT

TEXTS = ["Hello, world!", "", "naïve 😀 text", "x" * 300, "def f(x):\n    return x\n"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    subprocess.run(["make", "-C", str(ROOT / "native"), "bin"], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Server:
    """One pintok-server process and what it said."""

    process: subprocess.Popen[bytes]
    events: list[dict[str, Any]]
    ready: dict[str, Any]

    def event(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def read_until(self, name: str) -> dict[str, Any]:
        """Read its log up to the next event of this name."""
        stream: IO[bytes] | None = self.process.stderr
        assert stream is not None
        while line := stream.readline():
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == name:
                return self.events[-1]
        raise AssertionError(f"it ended without {name}: {self.events}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.ready['http']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Farm:
    """Starts servers of one instance; ends every process they leave."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.run_dir = RunDir(folder / "run")
        self.port = free_port()
        self.servers: list[Server] = []
        self.pids: set[int] = set()

    def command(self, *options: str) -> list[str]:
        core = max(os.sched_getaffinity(0))
        return [
            sys.executable,
            "-m",
            "pintok_server.cli.server",
            f"--port={self.port}",
            "--path=socket",
            "--address=127.0.0.1",
            f"--cores={core}",
            f"--runtime-dir={self.run_dir.path}",
            *options,
        ]

    def start(self, *options: str) -> Server:
        process = subprocess.Popen(
            self.command("--http=127.0.0.1:0", "--log-format=json", *options),
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        server = Server(process, [], {})
        self.servers.append(server)
        server.ready = server.read_until("ready")
        self.pids.add(server.ready["pid"])
        return server

    def refuse(self, *options: str) -> str:
        """The sentence with which a server refuses to start."""
        done = subprocess.run(
            self.command("--no-http", *options), capture_output=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 1, done.stderr.decode()
        lines = done.stderr.decode().splitlines()
        assert "Traceback" not in done.stderr.decode()
        return lines[-1]

    def tool(self, *arguments: str) -> Any:
        """Output of a pintok-server command on this instance."""
        command = [sys.executable, "-m", "pintok_server.cli.server", *arguments]
        return subprocess.run(
            [*command, f"--runtime-dir={self.run_dir.path}"],
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            text=True,
        )

    def client(self, **options: Any) -> Client:
        return Client("127.0.0.1", self.port, **options)

    def close(self) -> None:
        for server in self.servers:
            server.process.kill()
            server.process.wait()
            assert server.process.stderr is not None
            server.process.stderr.close()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def farm(tmp_path: pathlib.Path) -> Iterator[Farm]:
    made = Farm(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


def wait_until(condition: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def answers_well(client: Client, tokenizer: Tokenizer) -> bool:
    ids = [client.encode(text).tolist() for text in TEXTS]
    assert ids == [tokenizer.encode(text).tolist() for text in TEXTS]
    return True


def test_start_answer_measure_drain(farm: Farm, tokenizer: Tokenizer) -> None:
    server = farm.start()
    assert server.event("modes")[0]["path"] == "socket"
    assert server.event("model")[0]["fingerprint"] == tokenizer.fingerprint
    assert server.event("certificate")
    with farm.client() as client:
        assert answers_well(client, tokenizer)
        assert client.info().fingerprint == tokenizer.fingerprint
        with pytest.raises(RefusedError, match="not valid UTF-8"):
            client.encode(b"\xff")
    assert server.get("/healthz")[0] == server.get("/readyz")[0] == 200

    def total(name: str) -> float:
        families = text_string_to_metric_families(server.get("/metrics")[1])
        return sum(s.value for family in families for s in family.samples if s.name == name)

    # Counters are published about every millisecond.
    wait_until(lambda: total("pintok_worker_requests_total") >= len(TEXTS) + 1)
    assert total("pintok_worker_ids_total") == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert total("pintok_worker_service_seconds_count") >= len(TEXTS)
    assert total("pintok_datapath_up") == 1 and total("pintok_datapath_restarts_total") == 0

    status = json.loads(farm.tool("status", "--json").stdout)
    assert status["pid"] == server.ready["pid"] and status["state"] == "ready"
    assert status["models"][0]["name"] == "default"
    top = farm.tool("top", "--interval=0.1", "--count=2").stdout.splitlines()
    assert len(top) == 4 and top[0].split()[0] == "worker"

    server.process.send_signal(signal.SIGTERM)
    server.read_until("stopped")
    assert server.process.wait(20) == 0
    assert process_start_time(server.ready["pid"]) is None
    assert farm.tool("status").returncode == 1


def test_killed_control_process_is_replaced_without_a_lost_answer(
    farm: Farm, tokenizer: Tokenizer
) -> None:
    first = farm.start()
    with farm.client() as client:
        client.encode("before")
        first.process.kill()
        first.process.wait()
        assert answers_well(client, tokenizer), "the datapath needs no control process"

        # The same configuration adopts, another one is refused and named.
        second = farm.start()
        assert second.event("adopted") and second.ready["pid"] == first.ready["pid"]
        assert "looks after instance" in farm.refuse()
        second.process.kill()
        second.process.wait()
        assert "idle auto -> adaptive" in farm.refuse("--idle=adaptive")
        assert "model default" in farm.refuse("--model=chat=default")
        assert answers_well(client, tokenizer)

        third = farm.start("--idle=adaptive", "--replace")
        assert third.event("replace") and third.ready["pid"] != first.ready["pid"]
        assert process_start_time(first.ready["pid"]) is None
        assert answers_well(client, tokenizer)
    third.process.send_signal(signal.SIGINT)
    assert third.process.wait(20) == 0


def test_killed_datapath_is_restarted(farm: Farm, tokenizer: Tokenizer) -> None:
    server = farm.start()
    for restart in range(1, 4):
        state = read_state(farm.run_dir)
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        farm.pids.add(server.read_until("restart")["pid"])
        with farm.client(timeout=15, retries=60) as client:
            assert answers_well(client, tokenizer)
        wait_until(lambda: server.get("/readyz")[0] == 200)
        text = server.get("/metrics")[1]
        assert f"pintok_datapath_restarts_total {restart}.0" in text
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_models_are_loaded_and_unloaded_while_serving(farm: Farm, tokenizer: Tokenizer) -> None:
    server = farm.start()
    assert "slot 1" in farm.tool("models", "load", "second=default").stdout
    with farm.client(model="second") as client:
        assert answers_well(client, tokenizer)
        assert [info.name for info in client.models()] == ["default", "second"]
    # A live change survives the death of the datapath.
    os.kill(server.ready["pid"], signal.SIGKILL)
    farm.pids.add(server.read_until("restart")["pid"])
    with farm.client(model="second", timeout=15, retries=60) as client:
        assert answers_well(client, tokenizer)
    assert "gone from slot 1" in farm.tool("models", "unload", "second").stdout
    with farm.client(model="second") as client, pytest.raises(PinTokError):
        client.encode("x")
    refused = farm.tool("models", "unload", "second")
    assert refused.returncode == 1
    assert refused.stderr == "pintok-server: no model is called 'second' there; loaded: default\n"
    wrong = farm.tool("models", "load", "x=/absent")
    assert wrong.returncode == 1 and "no such file" in wrong.stderr
    with farm.client() as client:
        assert answers_well(client, tokenizer)


def test_tool_gives_equal_lines_both_ways(farm: Farm) -> None:
    farm.start()
    lines = [
        *({"text": text} for text in TEXTS),
        {"text": "one", "pair": "two"},
        {"text": "\ud800"},
        {"text_b64": "//8="},
        {"text": "a b", "offsets": True, "type_ids": True},
        {"text": "<|endoftext|>", "parse_special": "none"},
        {"text": "<|endoftext|>"},
        {"text": "x", "eos": True},
        {"text": 5},
        *({"text": f"line {number} of many"} for number in range(3000)),
        {"text_b64": "/w=="},
        *({"text": f"line {number} of more"} for number in range(300)),
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines[:10], "x", *lines[10:]])

    def run(command: str, stdin: bytes, *options: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "pintok_server.cli.tool", command, "--jsonl", *options],
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            check=True,
        )
        return done.stdout

    there = ["--server", f"127.0.0.1:{farm.port}"]
    encoded = run("encode", data)
    assert encoded == run("encode", data, *there)
    assert encoded.count(b"\n") == len(lines) + 1
    assert run("count", data) == run("count", data, *there)
    ids = b"".join(
        line.replace(b"}", b', "skip_special_tokens": true}') + b"\n"
        for line in encoded.splitlines()
        if line.startswith(b'{"ids"')
    )
    assert run("decode", ids) == run("decode", ids, *there)


def test_each_request_of_many_gets_its_own_outcome(farm: Farm, tokenizer: Tokenizer) -> None:
    farm.start()
    texts: list[str | bytes] = [*TEXTS * 40, b"\xff", "y" * 5000, *TEXTS]
    with farm.client() as client:
        outcomes = client.encode_each(texts)
        assert [(o.verdict, i) for i, o in enumerate(outcomes) if o.verdict] == [
            (Verdict.BAD_UTF8, 200),
            (Verdict.TEXT_TOO_LONG, 201),
        ]
        for text, outcome in zip(texts, outcomes, strict=True):
            if outcome.verdict == 0:
                assert outcome.ids is not None
                assert outcome.ids.tolist() == tokenizer.encode(text).tolist()
        counts = client.count_each(texts, eos=False)
        assert [o.count for o in counts if not o.verdict] == [
            len(o.ids) for o in outcomes if o.ids is not None
        ]
        # Nothing to begin with: every item is refused alone, and none of them ends the call.
        assert {o.verdict for o in client.encode_each(TEXTS, bos=True)} == {Verdict.UNSUPPORTED}
        full = client.encode_each(["a b"], pairs=["c"], full=True)[0]
        assert full.type_ids is not None and len(full.type_ids) == full.count
        ids = [o.ids for o in outcomes if o.ids is not None]
        decoded = client.decode_each(ids)
        assert [o.text for o in decoded] == [t for t in texts[:200] + texts[202:]]
        assert client.encode_each([]) == [] and client.decode_each([]) == []


def test_refusals_to_start_are_one_sentence(farm: Farm, tmp_path: pathlib.Path) -> None:
    assert "core 4095 does not exist" in farm.refuse("--cores=4095")
    assert "no such file or directory" in farm.refuse("--model=/absent/model")
    config = tmp_path / "c.yaml"
    config.write_text("xdp-mode: drv\n")
    assert "did you mean xdp_mode?" in farm.refuse(f"--config={config}")
    assert not farm.run_dir.state.exists()
    farm.start()
    other = Farm(tmp_path / "other")
    other.port = farm.port
    sentence = other.refuse()
    assert str(farm.port) in sentence and not other.run_dir.state.exists()
