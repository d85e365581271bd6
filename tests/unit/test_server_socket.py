"""The whole server over kernel sockets on the loopback, as any user: start, answer, die, return.

The same over AF_XDP, which needs root, is in tests/netns/test_server.py.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import vocab_models
from prometheus_client.parser import text_string_to_metric_families

from pintok._seal import Key
from pintok._wire import Verdict
from pintok.client import Client
from pintok.errors import PinTokError, RefusedError
from pintok.profiles import PROFILES
from pintok.tokenizer import Tokenizer
from pintok_server.control.keys import make_key, reload_keys
from pintok_server.control.runtime import process_start_time, read_state
from tests.server_process import ROOT, Instance, Server, free_port, wait_until
from tests.unit.profile_models import by_character, splits

TEXTS = ["Hello, world!", "", "naïve 😀 text", "x" * 300, "def f(x):\n    return x\n"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    subprocess.run(["make", "-C", str(ROOT / "native"), "bin"], check=True, capture_output=True)


class SocketInstance(Instance):
    """An instance on kernel sockets of the loopback."""

    def __init__(self, folder: pathlib.Path, *, port: int | None = None) -> None:
        self.port = port or free_port()
        core = max(os.sched_getaffinity(0))
        options = [
            f"--port={self.port}",
            "--path=socket",
            "--address=127.0.0.1",
            f"--cores={core}",
        ]
        super().__init__(folder, options)

    def client(self, **options: Any) -> Client:
        return Client("127.0.0.1", self.port, **options)


def metric_sum(server: Server, name: str) -> float:
    """What /metrics shows under a name, over all labels."""
    families = text_string_to_metric_families(server.get("/metrics")[1])
    return sum(s.value for family in families for s in family.samples if s.name == name)


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[SocketInstance]:
    made = SocketInstance(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


def answers_well(client: Client, tokenizer: Tokenizer) -> bool:
    ids = [client.encode(text).tolist() for text in TEXTS]
    assert ids == [tokenizer.encode(text).tolist() for text in TEXTS]
    return True


def test_start_answer_measure_drain(instance: SocketInstance, tokenizer: Tokenizer) -> None:
    server = instance.start()
    assert server.event("modes")[0]["path"] == "socket"
    assert server.event("model")[0]["fingerprint"] == tokenizer.fingerprint
    assert server.event("certificate")
    with instance.client() as client:
        assert answers_well(client, tokenizer)
        assert client.info().fingerprint == tokenizer.fingerprint
        with pytest.raises(RefusedError, match="not valid UTF-8"):
            client.encode(b"\xff")
    assert server.get("/healthz")[0] == server.get("/readyz")[0] == 200

    def total(name: str) -> float:
        return metric_sum(server, name)

    # Counters are published about every millisecond.
    wait_until(lambda: total("pintok_worker_requests_total") >= len(TEXTS) + 1)
    assert total("pintok_worker_ids_total") == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert total("pintok_worker_service_seconds_count") >= len(TEXTS)
    assert total("pintok_datapath_up") == 1 and total("pintok_datapath_restarts_total") == 0

    status = json.loads(instance.tool("status", "--json").stdout)
    assert status["pid"] == server.ready["pid"] and status["state"] == "ready"
    assert status["models"][0]["name"] == "default"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"not PTK1", ("127.0.0.1", instance.port))
    wait_until(lambda: "not answered: 1 silent" in instance.tool("status").stdout)
    top = instance.tool("top", "--interval=0.1", "--count=2").stdout.splitlines()
    assert len(top) == 4 and top[0].split()[0] == "worker"

    server.process.send_signal(signal.SIGTERM)
    server.read_until("stopped")
    assert server.process.wait(20) == 0
    assert process_start_time(server.ready["pid"]) is None
    assert instance.tool("status").returncode == 1


def test_service_manager_is_told(instance: SocketInstance, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        instance.environment["NOTIFY_SOCKET"] = str(path)
        server = instance.start()
        assert manager.recv(64) == b"READY=1"
        server.process.send_signal(signal.SIGTERM)
        assert manager.recv(64) == b"STOPPING=1"
        assert server.process.wait(20) == 0


def test_killed_control_process_is_replaced_without_a_lost_answer(
    instance: SocketInstance, tokenizer: Tokenizer
) -> None:
    first = instance.start()
    with instance.client() as client:
        client.encode("before")
        first.process.kill()
        first.process.wait()
        assert answers_well(client, tokenizer), "the datapath needs no control process"

        # The same configuration adopts, another one is refused and named.
        second = instance.start()
        assert second.event("adopted") and second.ready["pid"] == first.ready["pid"]
        assert "looks after instance" in instance.refuse()
        second.process.kill()
        second.process.wait()
        assert "idle auto -> adaptive" in instance.refuse("--idle=adaptive")
        assert "model default" in instance.refuse("--model=chat=default")
        assert answers_well(client, tokenizer)

        third = instance.start("--idle=adaptive", "--replace")
        assert third.event("replace") and third.ready["pid"] != first.ready["pid"]
        assert process_start_time(first.ready["pid"]) is None
        assert answers_well(client, tokenizer)
    third.process.send_signal(signal.SIGINT)
    assert third.process.wait(20) == 0


def test_requests_do_not_notice_control_processes_coming_and_going(
    instance: SocketInstance, tokenizer: Tokenizer
) -> None:
    first = instance.start()
    pid = first.ready["pid"]
    expected = tokenizer.encode("constant load").tolist()
    answered: list[int] = []
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        # Not one repetition: a single lost answer would be an error here.
        with instance.client(retries=0, timeout=5) as client:
            while not stop.is_set():
                try:
                    ids = client.encode("constant load").tolist()
                except PinTokError as error:
                    wrong.append(error)
                    return
                answered.append(len(ids))
                if ids != expected:
                    wrong.append(ids)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(5):
            instance.kill(instance.servers[-1])
            before = len(answered)
            wait_until(lambda seen=before: bool(wrong) or len(answered) > seen + 10)
            assert instance.start().ready["pid"] == pid
    finally:
        stop.set()
        thread.join()
    assert not wrong and len(answered) > 50


def test_killed_datapath_is_restarted(instance: SocketInstance, tokenizer: Tokenizer) -> None:
    server = instance.start()
    for restart in range(1, 4):
        state = read_state(instance.run_dir)
        assert state is not None
        os.kill(state.pid, signal.SIGKILL)
        instance.note(server.read_until("restart")["pid"])
        with instance.client(timeout=15, retries=60) as client:
            assert answers_well(client, tokenizer)
        wait_until(lambda: server.get("/readyz")[0] == 200)
        text = server.get("/metrics")[1]
        assert f"pintok_datapath_restarts_total {restart}.0" in text
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_models_are_loaded_and_unloaded_while_serving(
    instance: SocketInstance, tokenizer: Tokenizer
) -> None:
    server = instance.start()
    assert "slot 1" in instance.tool("models", "load", "second=default").stdout
    with instance.client(model="second") as client:
        assert answers_well(client, tokenizer)
        assert [info.name for info in client.models()] == ["default", "second"]
    # A live change survives the death of the datapath.
    os.kill(server.ready["pid"], signal.SIGKILL)
    instance.note(server.read_until("restart")["pid"])
    with instance.client(model="second", timeout=15, retries=60) as client:
        assert answers_well(client, tokenizer)
    assert "gone from slot 1" in instance.tool("models", "unload", "second").stdout
    with instance.client(model="second") as client, pytest.raises(PinTokError):
        client.encode("x")
    refused = instance.tool("models", "unload", "second")
    assert refused.returncode == 1
    assert refused.stderr == "pintok-server: no model is called 'second' there; loaded: default\n"
    wrong = instance.tool("models", "load", "x=/absent")
    assert wrong.returncode == 1 and "no such file" in wrong.stderr
    with instance.client() as client:
        assert answers_well(client, tokenizer)


def test_a_profile_decides_ids_over_the_wire(
    instance: SocketInstance, tmp_path: pathlib.Path
) -> None:
    """The server's profile is that of its models; a live load states its own."""
    text = "1\U00011de0"  # two digits for tokenizers 1.0
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(by_character([text], splits()["llama3"])), encoding="utf-8")
    new, old = (Tokenizer.from_file(path, profile=profile) for profile in reversed(PROFILES))
    instance.start(f"--model=m={path}", f"--profile={PROFILES[1]}")
    assert "slot 1" in instance.tool("models", "load", f"old={path}").stdout
    for name, local in (("m", new), ("old", old)):
        with instance.client(model=name) as client:
            assert client.info().fingerprint == local.fingerprint
            assert client.encode(text).tolist() == local.encode(text).tolist()
    assert new.encode(text).tolist() != old.encode(text).tolist()


def test_tool_gives_equal_lines_both_ways(instance: SocketInstance) -> None:
    instance.start()
    lines = [
        *({"text": text} for text in TEXTS),
        {"text": "one", "pair": "two"},
        {"text": "\ud800"},
        {"text_b64": "//8="},
        {"text": "a b", "offsets": True, "type_ids": True},
        {"text": "a b c d e", "truncation": {"max_length": 2, "stride": 1}},
        {
            "text": "a b c",
            "pair": "d e f",
            "truncation": {"max_length": 3},
            "padding": {"length": 9},
        },
        {"text": "a b c", "truncation": {"max_length": 2, "stride": 2}},
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

    there = ["--server", f"127.0.0.1:{instance.port}"]
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
    streams = ids.replace(b"}", b', "stream": true}')
    chunks = run("decode", streams)
    assert chunks == run("decode", streams, *there)
    assert chunks.count(b'{"chunks"') == ids.count(b"\n")


def test_chats_are_rendered_here_and_encoded_there(
    instance: SocketInstance, tmp_path: pathlib.Path
) -> None:
    """The server must hold the very model that the template is from."""
    template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    models = []
    for name in ("one", "two"):
        models.append(vocab_models.write(tmp_path / name, vocab_models.byte_level()))
        config = {"chat_template": template, "bos_token": name}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    server = instance.start(f"--model=first={models[0]}")
    line = b"".join(
        json.dumps({"messages": [{"role": "user", "content": text}] * count}).encode() + b"\n"
        for text, count in (("the thing", 1), ("<s> <|end|>", 100), ("<s>", 4000), ("<s>", 5000))
    )
    line += b'{"messages":5}\n'

    def run(*options: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "pintok_server.cli.tool", "chat", "--jsonl", *options],
            input=line,
            capture_output=True,
            cwd=ROOT,
            timeout=60,
        )

    here = run("--model", str(models[0])).stdout
    answers = [json.loads(answer) for answer in here.splitlines()]
    assert answers[0]["rendered"] == "<s>the thing" and "hits" not in answers[0]
    assert [answers[1]["hits"], answers[2]["hits"]] == [200, 4000]
    there = ["--server", f"127.0.0.1:{instance.port}"]
    answers[2]["hits"] = 255  # and more: that is what a reply has room for
    shown = run("--model", f"first={models[0]}", *there).stdout
    got = [json.loads(answer) for answer in shown.splitlines()]
    assert "a request has no room" in got.pop(3)["error"]["message"]
    answers.pop(3)
    assert got == answers
    counted = "pintok_worker_plain_hits_total"
    wait_until(lambda: metric_sum(server, counted) == 4200)
    other = run("--model", f"first={models[1]}", *there)
    assert other.returncode == 1 and b"is another than the one here" in other.stderr


def test_each_request_of_many_gets_its_own_outcome(
    instance: SocketInstance, tokenizer: Tokenizer
) -> None:
    instance.start()
    texts: list[str | bytes] = [*TEXTS * 40, b"\xff", "y" * (1 << 20), *TEXTS]
    with instance.client() as client:
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
        full = client.encode_each(["é😀x"], full=True)[0]
        assert full.offsets is not None and full.offsets.max() == 3, "offsets are characters"
        ids = [o.ids for o in outcomes if o.ids is not None]
        decoded = client.decode_each(ids)
        assert [o.text for o in decoded] == [*texts[:200], *texts[202:]]
        assert client.encode_each([]) == [] and client.decode_each([]) == []


def test_refusals_to_start_are_one_sentence(
    instance: SocketInstance, tmp_path: pathlib.Path
) -> None:
    assert "core 4095 does not exist" in instance.refuse("--cores=4095")
    assert "no such file or directory" in instance.refuse("--model=/absent/model")
    config = tmp_path / "c.yaml"
    config.write_text("xdp-mode: drv\n")
    assert "did you mean xdp_mode?" in instance.refuse(f"--config={config}")
    assert not instance.run_dir.state.exists()
    instance.start()
    other = SocketInstance(tmp_path / "other", port=instance.port)
    sentence = other.refuse()
    assert str(instance.port) in sentence and not other.run_dir.state.exists()


def test_tenants_show_their_keys_and_keys_change_while_serving(
    instance: SocketInstance, tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    """Without a good key nothing is served; a reload ends one key and begins another."""
    keys = tmp_path / "keys"
    lines = [make_key(number) for number in (1, 2)]

    def store(line: str) -> None:
        keys.write_text(line + "\n")
        keys.chmod(0o600)

    store(lines[0])
    instance.start(f"--keys={keys}", "--require-key=on")
    first, second = (Key.parse(line) for line in lines)
    with instance.client() as client, pytest.raises(RefusedError) as info:
        client.encode("a")
    assert info.value.verdict == Verdict.BAD_KEY
    long_text = "A text of many words. " * 4000
    with instance.client(key=first) as client:
        assert answers_well(client, tokenizer)
        assert client.encode(long_text).tolist() == tokenizer.encode(long_text).tolist()
        own = tmp_path / "own"
        own.write_text(lines[0])
        done = subprocess.run(
            [sys.executable, "-m", "pintok_server.cli.tool", "encode", "--server"]
            + [f"127.0.0.1:{instance.port}"],
            input=b"Hello",
            capture_output=True,
            cwd=ROOT,
            env=os.environ | {"PINTOK_KEY_FILE": str(own)},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        store(lines[1])
        path, ids = reload_keys(instance.run_dir)
        assert (path, list(ids)) == (keys, [2])
        wait_until(lambda: refused_with(client) == Verdict.BAD_KEY)
    with instance.client(key=second) as client:
        assert answers_well(client, tokenizer)
    with instance.client(key=Key(2, bytes(32))) as client:
        assert refused_with(client) == Verdict.BAD_KEY


def refused_with(client: Client) -> int:
    try:
        client.encode("a")
    except RefusedError as refusal:
        return refusal.verdict
    return Verdict.OK
