#!/usr/bin/env python3
"""Our engine beside other tokenizer libraries: same vocabularies, same texts, one core, one run.

    bench/engine.py                      everything: installs the peers in environments of its own
    bench/engine.py --smoke              our engine and the reference only, seconds
    bench/engine.py --models llama-3 --texts english code --sizes 1400 32768

Outputs are compared first: a peer whose ids differ from the reference's on any text is marked with
a star, and its times do not count as best. Then rounds: in each one every peer in turn gets the
same texts, never seen before by the process (after a first megabyte of warm-up), and the order
reverses each second round. Medians over rounds; ratios to the best exact peer.

Models and texts come from PINTOK_TEST_DATA (or ../shared); without it the embedded default
vocabulary and the interpreter's own library as text are used. Results go to bench/out/.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "bench" / "out"

# Two environments, since the two lines of the reference cannot share one.
PEERS: dict[str, tuple[str, str]] = {
    "tokenizers": ("peers", "tokenizers==0.23.3"),
    "tokenizers1": ("peers-1.0", "tokenizers==1.0.0rc3"),
    "tiktoken": ("peers", "tiktoken"),
    "gigatoken": ("peers", "gigatoken"),
    "fastokens": ("peers", "fastokens"),
    "nanotoken": ("peers", "nanotoken"),
    "splintr": ("peers", "splintr-rs"),
    "tokie": ("peers", "tokie"),
    "kitoken": ("peers", "kitoken"),
    "iree": ("peers", "iree-tokenizer"),
    "sentencepiece": ("peers", "sentencepiece"),
}
MODELS = (
    "gpt2 cl100k_base o200k_base llama-3 qwen2.5 deepseek-v3 mistral-nemo llama-2 gemma-3 "
    "bert-base-uncased t5-small xlnet-base-cased xlm-roberta-base"
).split()
TEXTS = {
    "english": ["english_prose.txt"],
    "languages": [
        f"{name}.txt"
        for name in (
            ("chinese", "japanese", "korean", "russian", "arabic", "hindi", "thai", "hebrew")
        )
    ],
    "code": ["code_python.txt", "code_c_cpp_js.txt", "code_rust.txt", "code_go.txt"],
    "json": ["json_and_tool_schemas.txt"],
}
SIZES = (200, 1400, 32768, 1 << 20)
WARM_BYTES = 1 << 20
ROUND_BYTES = {200: 60_000, 1400: 120_000, 32768: 260_000, 1 << 20: 1 << 20}


@dataclasses.dataclass(slots=True)
class Cell:
    """One model, one kind of text, one size, one operation."""

    model: str
    text: str
    size: int
    what: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.model, self.text, self.size, self.what)


class Worker:
    """One peer in its own process, pinned to the core given."""

    def __init__(self, peer: str, python: pathlib.Path, core: int) -> None:
        env = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT) if peer == "pintok" else "",
        }
        self.peer = peer
        self.process = subprocess.Popen(
            [str(python), str(ROOT / "bench" / "peers.py"), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command; a worker that died answers with an error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"{self.peer} died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Source:
    """Text of one kind: consecutive slices, so that no text is seen twice until it is used up."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def take(self, size: int) -> str:
        """About `size` bytes of UTF-8, cut between characters."""
        piece = self.text[self.pos : self.pos + size]
        if len(piece) < size:
            self.pos = 0
            piece = self.text[:size]
        encoded = piece.encode()
        if len(encoded) > size:
            piece = encoded[:size].decode("utf-8", "ignore")
        self.pos += len(piece)
        return piece

    def take_many(self, size: int, total: int) -> list[str]:
        return [self.take(size) for _ in range(max(1, total // size))]


def data_root() -> pathlib.Path | None:
    for candidate in (os.environ.get("PINTOK_TEST_DATA"), ROOT.parent / "shared"):
        if candidate and (pathlib.Path(candidate) / "tokenizers").is_dir():
            return pathlib.Path(candidate)
    return None


def read_maybe_gz(path: pathlib.Path) -> bytes:
    packed = path.with_name(path.name + ".gz")
    return path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())


def load_source(root: pathlib.Path | None, kind: str) -> Source:
    """The text of one kind, in blocks of a few kilobytes in an order that the seed fixes."""
    if root is not None:
        texts = [read_maybe_gz(root / "corpora" / name).decode() for name in TEXTS[kind]]
    else:
        library = pathlib.Path(sysconfig.get_paths()["stdlib"])
        texts = [path.read_text(errors="ignore") for path in sorted(library.glob("*.py"))]
    share = 8_000_000 // len(texts)
    blocks = [text[i : i + 1500] for text in texts for i in range(0, min(len(text), share), 1500)]
    random.Random(7).shuffle(blocks)
    return Source("".join(blocks))


def model_file(root: pathlib.Path | None, name: str, scratch: pathlib.Path) -> pathlib.Path:
    """tokenizer.json as a plain file, with everything the peers look for beside it."""
    if name == "default":
        return ROOT / "pintok" / "data" / "default" / "tokenizer.json"
    assert root is not None
    target = scratch / name
    if not target.exists():
        target.mkdir(parents=True)
        for path in (root / "tokenizers" / name).iterdir():
            plain = path.name.removesuffix(".gz")
            (target / plain).write_bytes(read_maybe_gz(path.with_name(plain)))
    return target / "tokenizer.json"


def install_peers(names: list[str], directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """A Python for each peer; peers that cannot be installed are left out and named."""
    pythons = {}
    for name in names:
        folder, requirement = PEERS[name]
        python = directory / folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(directory / folder)], check=True)
        marker = directory / folder / f".{name}"
        if not marker.exists():
            print(f"installing {requirement}", flush=True)
            done = subprocess.run(
                [str(python), "-m", "pip", "install", "-q", "numpy", requirement],
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                print(f"  {name} is left out: it does not install here")
                continue
            marker.touch()
        pythons[name] = python
    return pythons


def check_texts(sources: dict[str, Source]) -> list[str]:
    """Texts for the comparison: hard ones and slices of every source."""
    hard = [
        "",
        " ",
        "\n",
        "a",
        "  a  b   c\t\td\n\n e\r\n f",
        "it's IT'S I'LL we'd o'clock 'tis it\u017f 'S 'ſ",
        "1 22 333 4444 55555 12,345.67 \u0661\u0662\u0663 ½ ² Ⅷ",
        "\u00a0\u0085\u2003\u3000 x\u200by\ufeffz",
        "e\u0301 \u00e9 \uac00\u11a8 \u1100\u1161 ﬁ Å \u212b",
        "你好，世界。こんにちは世界 สวัสดี",
        "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪🇫🇷 👍🏽",
        "snake_case camelCase HTTPServer X509v3 don't_split",
        "!!!???...---===___***///\\\\\\",
        "a" * 500,
        " " * 500,
        "ab" * 300,
        "\n" * 100,
    ]
    rng = random.Random(11)
    for source in sources.values():
        for _ in range(60):
            begin = rng.randrange(max(1, len(source.text) - 4000))
            hard.append(source.text[begin : begin + rng.choice((20, 200, 1400, 4000))])
    return hard


def write_texts(directory: pathlib.Path, texts: list[str]) -> str:
    handle, path = tempfile.mkstemp(suffix=".json", dir=directory)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(texts, file, ensure_ascii=False)
    return path


def run_model(
    name: str,
    args: argparse.Namespace,
    pythons: dict[str, pathlib.Path],
    sources: dict[str, Source],
    scratch: pathlib.Path,
    emit: Any,
) -> None:
    """All cells of one model."""
    model = model_file(data_root(), name, scratch / "models")
    workers, differing = {}, {}
    texts_path = write_texts(scratch, check_texts(sources))
    wanted: dict[bool, list[str]] = {False: [], True: []}
    for peer in [
        "tokenizers",
        "pintok",
        *(p for p in pythons if p not in ("tokenizers", "pintok")),
    ]:
        worker = Worker(peer, pythons[peer], args.core)
        loaded = worker.ask(do="load", model=str(model))
        if "error" in loaded:
            print(f"  {peer:14} cannot: {loaded['error'][:90]}", flush=True)
            worker.stop()
            continue
        answer = worker.ask(do="check", texts=texts_path)
        got = answer.get("digests", [])
        if peer == "tokenizers":
            wanted = {False: got, True: answer["digests_special"]}
        reference = wanted[answer.get("special", False)]
        differing[peer] = sum(a != b for a, b in zip(got, reference, strict=False))
        differing[peer] += abs(len(reference) - len(got))
        emit(kind="load", model=name, peer=peer, differing=differing[peer], **loaded)
        print(
            f"  {peer:14} load {loaded['load_ns'] / 1e6:8.1f} ms"
            f" {loaded['memory_bytes'] / 1e6:7.1f} MB"
            f"  {differing[peer]} of {len(reference)} texts differ",
            flush=True,
        )
        workers[peer] = worker
    try:
        run_cells(name, args, workers, differing, sources, scratch, emit)
    finally:
        for worker in workers.values():
            worker.stop()


def run_cells(
    name: str,
    args: argparse.Namespace,
    workers: dict[str, Worker],
    differing: dict[str, int],
    sources: dict[str, Source],
    scratch: pathlib.Path,
    emit: Any,
) -> None:
    for kind, source in sources.items():
        warm = write_texts(scratch, source.take_many(1400, args.warm_bytes))
        for worker in workers.values():
            worker.ask(do="time", what="encode", texts=warm)
        for cell in cells_of(name, kind, args):
            results: dict[str, list[float]] = collections.defaultdict(list)
            quantiles: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
            hot = (
                source.take_many(cell.size, ROUND_BYTES[cell.size]) if cell.what == "hot" else None
            )
            for round_idx in range(args.rounds):
                texts = hot or source.take_many(cell.size, ROUND_BYTES[cell.size])
                size = sum(len(text.encode()) for text in texts)
                path = write_texts(scratch, texts)
                order = list(workers)
                for peer in order if round_idx % 2 == 0 else reversed(order):
                    what = "encode" if cell.what == "hot" else cell.what
                    answer = workers[peer].ask(do="time", what=what, texts=path)
                    if "ns" in answer:
                        results[peer].append(size / answer["ns"] * 1000)
                    elif "p50_ns" in answer:
                        quantiles[peer].append(answer)
                os.unlink(path)
            report_cell(cell, results, quantiles, differing, emit)


def cells_of(model: str, kind: str, args: argparse.Namespace) -> list[Cell]:
    cells = [Cell(model, kind, size, "encode") for size in args.sizes]
    for size in args.sizes:
        if size <= 1400:
            cells.append(Cell(model, kind, size, "latency"))
        if size == 1400:
            cells += [Cell(model, kind, size, "decode"), Cell(model, kind, size, "count")]
        if size == 32768 and kind == "english":
            cells.append(Cell(model, kind, size, "hot"))
    return cells


def report_cell(
    cell: Cell,
    results: dict[str, list[float]],
    quantiles: dict[str, list[dict[str, Any]]],
    differing: dict[str, int],
    emit: Any,
) -> None:
    medians = {peer: statistics.median(values) for peer, values in results.items() if values}
    for peer, values in quantiles.items():
        p50 = statistics.median(answer["p50_ns"] for answer in values)
        p99 = statistics.median(answer["p99_ns"] for answer in values)
        emit(
            kind="cell",
            **dataclasses.asdict(cell),
            peer=peer,
            p50_ns=p50,
            p99_ns=p99,
            exact=differing[peer] == 0,
        )
    for peer, value in medians.items():
        emit(
            kind="cell",
            **dataclasses.asdict(cell),
            peer=peer,
            mb_per_s=round(value, 2),
            exact=differing[peer] == 0,
        )
    head = f"  {cell.text:10} {cell.size:8} {cell.what:8}"
    if quantiles:
        shown = {p: statistics.median(a["p50_ns"] for a in v) / 1e3 for p, v in quantiles.items()}
        ranked = sorted(shown.items(), key=lambda item: item[1])
        print(head, " ".join(f"{peer} {value:.2f}us" for peer, value in ranked), flush=True)
        return
    ranked = sorted(medians.items(), key=lambda item: -item[1])
    line = " ".join(
        f"{peer}{'' if differing[peer] == 0 else '*'} {value:.0f}" for peer, value in ranked
    )
    best = max((v for p, v in medians.items() if p != "pintok" and differing[p] == 0), default=0.0)
    ratio = medians.get("pintok", 0.0) / best if best else float("nan")
    print(f"{head} {line} MB/s | pintok to best exact peer: {ratio:.2f}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--peers-dir", type=pathlib.Path, default=OUT / "envs")
    parser.add_argument("--smoke", action="store_true", help="one model, two sizes, one round")
    args = parser.parse_args()
    args.warm_bytes = WARM_BYTES
    if args.smoke:
        args.sizes, args.rounds, args.peers, args.warm_bytes = (
            [200, 1400],
            1,
            ["tokenizers"],
            50_000,
        )
        args.models = args.models or ["default"]
    if args.models is None:
        args.models = MODELS if data_root() else ["default"]
    return args


def main() -> int:
    args = parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        pythons = {"tokenizers": pathlib.Path(sys.executable)}
    else:
        pythons = install_peers(args.peers, args.peers_dir)
    pythons["pintok"] = pathlib.Path(sys.executable)
    root = data_root()
    kinds = args.texts if root else ["code"]
    sources = {kind: load_source(root, kind) for kind in kinds}
    out_path = OUT / ("engine-smoke.jsonl" if args.smoke else "engine.jsonl")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    with (
        out_path.open("w", encoding="utf-8") as out,
        tempfile.TemporaryDirectory(prefix="pintok-bench-") as scratch,
    ):

        def emit(**row: Any) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        emit(
            kind="run",
            commit=commit,
            cpu=cpu_name(),
            kernel=platform.release(),
            python=platform.python_version(),
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            rounds=args.rounds,
        )
        for name in args.models:
            print(f"{name}", flush=True)
            run_model(name, args, pythons, sources, pathlib.Path(scratch), emit)
    print(f"written: {out_path.relative_to(ROOT)}")
    return 0


def cpu_name() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
