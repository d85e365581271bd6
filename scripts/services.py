"""The services that the demo and the benchmarks run on a private link, and the load put on them.

Three services answer the same texts: PinTok over AF_XDP, PinTok over kernel sockets, and Hugging
Face `tokenizers` behind FastAPI on uvicorn. Before one is timed, `prove` holds its ids to the
reference library's. Every load is bounded in time and in requests under way.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from private_link import CLIENT_IPV4, SERVER_INTERFACE, SERVER_IPV4, PrivateLink

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "pintok" / "data" / "default" / "tokenizer.json"
LOAD_PROGRAMS = ROOT / "native" / "build" / "release" / "bench"
BIN = Path(sys.executable).parent
# 2 MB pages for the packet memory and the vocabulary of two pollers.
HUGEPAGE_COUNT = 128
HTTP_PORT = 8000
START_SECONDS = 60
STOP_SECONDS = 15
TEXT_BYTES_MAX = 8 << 20
# Every text of this length has few enough ids for one datagram, however strange it is.
CUT_BYTES_MAX = 600


class ServiceError(Exception):
    """A service or a load did not do its work; the message has what it printed."""


@dataclass(frozen=True, slots=True)
class Service:
    """One of the services that are compared."""

    name: str
    path: str | None  # pintok-server's --path; None: the HTTP service
    options: tuple[str, ...] = ()  # more of pintok-server's

    def command(self, *, cores: Sequence[int]) -> list[str]:
        """What starts it with the embedded vocabulary on the server's end of a PrivateLink."""
        if self.path is None:
            script = str(ROOT / "bench" / "http_service.py")
            options = ["--tokenizer", str(VOCABULARY), "--host", SERVER_IPV4]
            options += ["--port", str(HTTP_PORT), "--core", str(cores[-1])]
            return [sys.executable, script, *options]
        options = ["--iface", SERVER_INTERFACE, "--path", self.path, "--model", "default"]
        options += ["--cores", ",".join(map(str, cores)), "--http", "off"]
        return [str(BIN / "pintok-server"), *options, *self.options]

    def answers(self) -> bool:
        """Whether it answers now; waits a second at most."""
        import pintok

        if self.path is None:
            try:
                with urllib.request.urlopen(_http_url("/healthz"), timeout=1):
                    return True
            except OSError:
                return False
        with pintok.Client(SERVER_IPV4, timeout=0.5) as client:
            try:
                client.ping()
            except pintok.PinTokError:
                return False
        return True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, one request after another."""
        import pintok

        if self.path is None:
            return [_http_encode(text) for text in texts]
        with pintok.Client(SERVER_IPV4) as client:
            return [client.encode(text).tolist() for text in texts]


XDP = Service("PinTok, AF_XDP", "xdp")
SOCKET = Service("PinTok, kernel sockets", "socket")
HTTP = Service("tokenizers, FastAPI + uvicorn", None)


def _http_url(path: str) -> str:
    return f"http://{SERVER_IPV4}:{HTTP_PORT}{path}"


def _http_encode(text: str) -> list[int]:
    request = urllib.request.Request(
        _http_url("/tokenize"),
        data=json.dumps({"text": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        tokens: list[int] = json.load(reply)["tokens"]
        return tokens


@contextlib.contextmanager
def serving(
    service: Service,
    *,
    queue_count: int,
    cores: Sequence[int],
    work: Path,
    mtu: int = 1500,
    routes: Sequence[str] = (),
) -> Iterator[str]:
    """The service on a fresh link for the block, from its first answer on; yields its log so far.

    `routes` are more networks that the server's side reaches through the client's.

    Raises ServiceError when it does not answer in START_SECONDS or ends by itself. It is stopped
    with SIGTERM, and killed when that does not help.
    """
    log = work / f"{service.path or 'http'}-{time.monotonic_ns()}.log"
    with PrivateLink(queue_count=queue_count, mtu=mtu) as link:
        for network in routes:
            words = ["ip", "route", "add", network, "via", CLIENT_IPV4]
            subprocess.run([*link.command(), *words], check=True)
        process = link.start(service.command(cores=cores), log=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not service.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServiceError(f"{service.name}: no answer; its log:\n{log.read_text()}")
                time.sleep(0.05)
            yield log.read_text()
            if process.poll() is not None:
                raise ServiceError(f"{service.name}: ended by itself; log:\n{log.read_text()}")
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- texts ---------------------------------------------------------------------------------------


def write_texts(path: Path) -> None:
    """What is sent: this repository's documents, then Python's standard library, up to 8 MiB.

    Real text that every machine has; none of it was used to train the vocabulary.
    """
    documents = [*ROOT.glob("*.md"), *(ROOT / "native" / "gen").glob("*.md"), ROOT / "LICENSE"]
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py"))
    used = 0
    with path.open("wb") as file:
        for source in [*sorted(documents), *sources]:
            data = source.read_bytes()[: TEXT_BYTES_MAX - used]
            used += file.write(data)


def cuts(texts: Path, *, count: int, bytes_max: int, seed: int) -> list[str]:
    """`count` random cuts of 1 to `bytes_max` bytes, at character boundaries."""
    text = texts.read_bytes()
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        begin = rng.randrange(len(text))
        found.append(text[begin : begin + rng.randint(1, bytes_max)].decode("utf-8", "ignore"))
    return found


# --- proof and load ------------------------------------------------------------------------------


def prove(service: Service, texts: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Raises ServiceError at the first text whose ids are not the reference library's."""
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(VOCABULARY))
    total = 0
    for text, ids in zip(texts, service.encode(texts), strict=True):
        wanted = reference.encode(text).ids
        if ids != wanted:
            raise ServiceError(f"{service.name}: ids differ for {text!r}:\n  {ids}\n  {wanted}")
        total += len(ids)
    say(f"  {service.name}: {len(texts):,} texts, {total:,} ids, all equal to the reference's")


def load(
    service: Service,
    texts: Path,
    *,
    size: int,
    window: int,
    seconds: float,
    core: int,
    op: str = "encode",
    rate: float = 0,
) -> dict[str, Any]:
    """Slices of `size` bytes, `window` under way, for `seconds`; the generator's JSON line.

    `rate` requests a second at most; 0: as many as are answered. Not with the HTTP service.

    Raises ServiceError where the generator fails.
    """
    program = "bench_http" if service.path is None else "bench_load"
    options = ["--host", SERVER_IPV4, "--text", str(texts), "--size", str(size)]
    options += ["--window", str(window), "--seconds", str(seconds), "--core", str(core)]
    if service.path is None:
        options += ["--port", str(HTTP_PORT)]
    else:
        options += ["--op", op, "--rate", str(rate)]
    command = [str(LOAD_PROGRAMS / program), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"{program}: exit {done.returncode}: {done.stderr}{done.stdout}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def facts(*, rounds: int, seconds: float) -> dict[str, Any]:
    """What a reader needs to judge the figures of a run."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "kind": "run",
        "commit": commit,
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "link": "veth",
        "rounds": rounds,
        "seconds": seconds,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
