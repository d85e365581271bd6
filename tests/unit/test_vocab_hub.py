"""ORG/NAME goes through huggingface_hub: only tokenizer files, its cache, variables, offline mode.

The Hub is a stand-in on the loopback interface that speaks the part of its protocol used here.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pintok import hub
from pintok.errors import ModelError
from tests.unit import vocab_models as models

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITS = {"main": "a" * 40, "v2": "b" * 40}
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree)/(?P<revision>[^/?]+)/?)?(\?.*)?"
)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class _Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: {(repo, commit): {path: bytes}}."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        info = _INFO.fullmatch(self.path)
        resolve = _RESOLVE.fullmatch(self.path)
        found = info or resolve
        if found is None:
            return self._refuse(404, "EntryNotFound")
        repo, revision = found["repo"], found["revision"] or "main"
        commit = COMMITS.get(revision, revision)
        if not any(name == repo for name, _ in self.server.files):
            return self._refuse(404, "RepoNotFound")
        if repo in self.server.gated:
            return self._refuse(403, "GatedRepo")
        files = self.server.files.get((repo, commit))
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if info is not None:
            answer: Any = [
                {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}
                for path, data in files.items()
            ]
            if info["what"] != "tree":
                siblings = [{"rfilename": path} for path in files]
                answer = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
            return self._send(
                json.dumps(answer).encode(), {"Content-Type": "application/json"}, body
            )
        assert resolve is not None
        data = files.get(resolve["path"])
        if data is None:
            return self._refuse(404, "EntryNotFound")
        if body:
            self.server.fetched.append(resolve["path"])
        return self._send(data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}, body)

    def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def stand_in() -> Iterator[_Hub]:
    server = _Hub()
    tokenizer = json.dumps(models.byte_level()).encode()
    newer = json.dumps(models.byte_level(merges=[["t", "h"]])).encode()
    server.files["org/small", COMMITS["main"]] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": b'{"eos_token": "<|end|>"}',
        "model.safetensors": b"weights that nobody asked for",
        "README.md": b"# small",
        "chat_template.jinja": b"{{ messages[0].content }}",
    }
    server.files["org/small", COMMITS["v2"]] = {"tokenizer.json": newer}
    server.files["org/closed", COMMITS["main"]] = {"tokenizer.json": tokenizer}
    server.gated.add("org/closed")
    server.files["org/weights", COMMITS["main"]] = {"model.safetensors": b"only weights"}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


_PROGRAM = """
import json, sys
from pintok.errors import ModelError
from pintok_server import vocab
out = []
for model, revision in json.loads(sys.argv[1]):
    try:
        compiled = vocab.load_image(model, revision=revision, certify=False)
        out.append({"name": compiled.name, "fingerprint": compiled.fingerprint.hex()})
    except ModelError as error:
        out.append({"error": str(error)})
print(json.dumps(out))
"""


def ask(
    tmp_path: pathlib.Path, endpoint: str, wanted: list[tuple[str, str | None]], **environment: str
) -> list[dict[str, str]]:
    """Load models in a fresh process: huggingface_hub reads its variables when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(wanted)],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "PINTOK_CACHE_DIR": str(tmp_path / "images"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers


def test_only_the_tokenizer_files_are_fetched(stand_in: _Hub, tmp_path: pathlib.Path) -> None:
    (answer,) = ask(tmp_path, stand_in.endpoint, [("org/small", None)])
    assert answer["name"] == "org/small"
    assert sorted(stand_in.fetched) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_revision_is_another_model(stand_in: _Hub, tmp_path: pathlib.Path) -> None:
    main, v2, again = ask(
        tmp_path,
        stand_in.endpoint,
        [("org/small", None), ("org/small", "v2"), ("org/small", "main")],
    )
    assert main["fingerprint"] == again["fingerprint"] != v2["fingerprint"]


def test_offline_the_cache_answers(stand_in: _Hub, tmp_path: pathlib.Path) -> None:
    (online,) = ask(tmp_path, stand_in.endpoint, [("org/small", None)])
    before = len(stand_in.fetched)
    kept, missing = ask(
        tmp_path,
        stand_in.endpoint,
        [("org/small", None), ("org/other", None)],
        HF_HUB_OFFLINE="1",
    )
    assert kept == online
    assert "not in the local cache" in missing["error"]
    assert len(stand_in.fetched) == before


def test_a_hub_that_cannot_be_reached_is_a_sentence(tmp_path: pathlib.Path) -> None:
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", [("org/small", None)])
    assert "org/small" in answer["error"]
    assert "cannot be reached" in answer["error"]


def test_refusals_of_the_hub_are_sentences(stand_in: _Hub, tmp_path: pathlib.Path) -> None:
    unknown, revision, gated, weights = ask(
        tmp_path,
        stand_in.endpoint,
        [("org/none", None), ("org/small", "v9"), ("org/closed", None), ("org/weights", None)],
    )
    assert "no such repository" in unknown["error"]
    assert "no such revision" in revision["error"]
    assert "access must be granted" in gated["error"]
    assert "holds no tokenizer" in weights["error"]


def test_a_path_wins_over_a_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.write(tmp_path / "org" / "small", models.byte_level())
    assert hub.resolve("org/small").name is None
    assert hub.resolve("default").name == "default"


@pytest.mark.parametrize("model", ["no/such/thing", "nothing", "a b/c", "../x/y", "org/"])
def test_neither_path_nor_name_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="no such file or directory"):
        hub.resolve(model)
