#!/usr/bin/env python3
"""Our engine beside other tokenizer libraries: same vocabularies, same texts, one core, one run.

    bench/engine.py                      everything: installs the peers in environments of its own
    bench/engine.py --quick              the rows that have a goal, about ten minutes
    bench/engine.py --smoke              our engine and the reference only, seconds
    bench/engine.py --rows 'llama-3/english/*/encode/*' 'o200k_base/*/1400/decode/*'
    bench/engine.py --list               the names of the rows, MODEL/TEXT/SIZE/OPERATION/fresh|hot

Outputs are compared first, on hard texts and slices of every kind: a peer whose ids differ from the
reference's anywhere is marked with a star, and its times do not count as best. The texts of a row's
first round are compared as well. Then rounds: in each one every peer in turn gets the same texts,
never seen before by the process (after a first megabyte of warm-up of the same kind), and the order
reverses each second round. Medians over rounds, of wall time and of the process's processor time;
ratios of processor time to the best exact peer. README.md in this folder says more.

Models and texts come from PINTOK_TEST_DATA (or ../shared); without it the embedded default
vocabulary and the interpreter's own library as text are used. Results go to bench/out/.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from engine_report import print_summary
from engine_rows import (
    MODELS,
    QUICK_MODELS,
    QUICK_ROUND_BYTES,
    ROUND_BYTES,
    TEXTS,
    Row,
    all_rows,
    chosen,
    family_of,
    goal_ratio,
    goal_us,
    quick_rows,
)
from engine_texts import Source, check_texts, data_root, load_source, read_plain
from engine_worker import PEERS, QUICK_PEERS, ROOT, Worker, install

OUT = ROOT / "bench" / "out"
OURS, REFERENCE = "pintok", "tokenizers"
WARM_BYTES = 1 << 20
LOAD_SECONDS, CHECK_SECONDS, TIME_SECONDS = 90.0, 120.0, 60.0
LOAD_SHORT_NS, LOAD_TIMES = 300_000_000, 5
# A peer this much behind the best after a row's first round is measured in that round only.
BEHIND = 4.0
CHECKS = {
    "count": "check_count",
    "decode": "check_decode",
    "decode-list": "check_decode",
    "stream": "check_stream",
}
FROM_IDS = ("decode", "decode-list", "stream")

Emit = Callable[..., None]


@dataclasses.dataclass(slots=True)
class Settings:
    """What a run was asked for."""

    rows: list[Row]
    rounds: int
    round_bytes: dict[int, int]
    warm_bytes: int
    core: int
    scratch: pathlib.Path
    quick: bool

    def rounds_of(self, row: Row) -> int:
        """Texts of 1 MB are few: two rounds use up what there is of some kinds."""
        return min(self.rounds, 2) if row.size >= 1 << 20 and not row.hot else self.rounds

    def fresh_bytes(self, row: Row) -> int:
        """How much text a row takes that its processes must not have seen."""
        if row.what in FROM_IDS:
            return 0
        return self.round_bytes[row.size] * (1 if row.hot else self.rounds_of(row))


@dataclasses.dataclass(slots=True)
class Contender:
    """A peer with a model loaded."""

    worker: Worker
    differing: int  # check texts whose ids are not the reference's


def model_file(name: str, scratch: pathlib.Path) -> pathlib.Path:
    """tokenizer.json as a plain file, with everything the peers look for beside it."""
    root = data_root()
    if name == "default":
        return ROOT / "pintok" / "data" / "default" / "tokenizer.json"
    if root is None or not (root / "tokenizers" / name).is_dir():
        raise SystemExit(f"engine: no vocabulary {name} here: set PINTOK_TEST_DATA")
    target = scratch / "models" / name
    if not target.exists():
        target.mkdir(parents=True)
        for path in (root / "tokenizers" / name).iterdir():
            plain = path.name.removesuffix(".gz")
            (target / plain).write_bytes(read_plain(path.with_name(plain)))
    return target / "tokenizer.json"


class Files:
    """Texts and id lists on their way to the workers, removed when a row is over."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.paths: list[pathlib.Path] = []

    def write(self, items: list[Any]) -> str:
        path = self.reserve()
        pathlib.Path(path).write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
        return path

    def reserve(self) -> str:
        handle, path = tempfile.mkstemp(suffix=".json", dir=self.directory)
        os.close(handle)
        self.paths.append(pathlib.Path(path))
        return path

    def clear(self) -> None:
        for path in self.paths:
            path.unlink()
        self.paths = []


def start(
    peer: str, folders: dict[str, pathlib.Path | None], core: int, cache: str | None = None
) -> Worker:
    folder = folders.get(peer)
    worker = [str(ROOT / "bench" / "peers.py"), peer]
    environment = {} if cache is None else {"PINTOK_CACHE_DIR": cache}
    if folder is None:  # ours, and without environments the reference, run in this interpreter
        return Worker(
            peer,
            [sys.executable, *worker],
            core=core,
            python_path=str(ROOT),
            environment=environment,
        )
    python = str(folder.parent / "base" / "bin" / "python")
    return Worker(peer, [python, *worker], core=core, python_path=str(folder))


def load_peers(
    name: str,
    folders: dict[str, pathlib.Path | None],
    sources: dict[str, Source],
    settings: Settings,
    emit: Emit,
) -> dict[str, Contender]:
    """Every peer that can run the model, with its ids compared. The reference comes first."""
    model = model_file(name, settings.scratch)
    files = Files(settings.scratch)
    texts = files.write(check_texts(sources))
    reference: dict[bool, list[str]] = {}
    contenders: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory(dir=settings.scratch) as empty:
        cold = start(OURS, folders, settings.core, empty)
        answer = cold.ask(LOAD_SECONDS, do="load", model=str(model))
        cold.stop()
    if "load_ns" in answer:
        emit(kind="load", model=name, peer=f"{OURS} (cold)", load_ns=answer["load_ns"])
        print(f"  {OURS + ' (cold)':15} load {answer['load_ns'] / 1e6:8.1f} ms", flush=True)
        start_once(folders, settings.core, model)
        os.sync()  # what was written for this model is no part of anybody's load
    for peer in [REFERENCE, OURS, *(p for p in folders if p not in (REFERENCE, OURS))]:
        worker = start(peer, folders, settings.core)
        loaded = worker.ask(LOAD_SECONDS, do="load", model=str(model))
        checked = {} if "error" in loaded else worker.ask(CHECK_SECONDS, do="check", texts=texts)
        error = loaded.get("error") or checked.get("error")
        if error:
            print(f"  {peer:15} not here: {error[:100]}", flush=True)
            emit(kind="absent", model=name, peer=peer, reason=error)
            worker.stop()
            if peer == REFERENCE:
                raise SystemExit("engine: without the reference nothing can be compared")
            continue
        digests = checked["digests"]
        if peer == REFERENCE:
            reference = {False: digests, True: checked["digests_special"]}
        wanted = reference[checked["adds_special"]]
        differing = sum(a != b for a, b in zip(digests, wanted, strict=True))
        loaded = {key: loaded[key] for key in ("load_ns", "memory_bytes")}
        loaded["load_ns"] = load_again(loaded["load_ns"], peer, folders, settings.core, model)
        contenders[peer] = Contender(worker, differing)
        emit(kind="load", model=name, peer=peer, differing=differing, of=len(wanted), **loaded)
        print(
            f"  {peer:15} load {loaded['load_ns'] / 1e6:8.1f} ms"
            f" {loaded['memory_bytes'] / 1e6:7.1f} MB"
            f"  {differing} of {len(wanted)} texts differ",
            flush=True,
        )
    files.clear()
    return contenders


def load_again(
    first_ns: int,
    peer: str,
    folders: dict[str, pathlib.Path | None],
    core: int,
    model: pathlib.Path,
) -> int:
    """The median of some processes, where a load is so short that a neighbour's moment shows."""
    times = [first_ns]
    for _ in range(LOAD_TIMES - 1 if first_ns < LOAD_SHORT_NS else 0):
        worker = start(peer, folders, core)
        answer = worker.ask(LOAD_SECONDS, do="load", model=str(model))
        worker.stop()
        if "load_ns" in answer:
            times.append(answer["load_ns"])
    return int(statistics.median(times))


def start_once(folders: dict[str, pathlib.Path | None], core: int, model: pathlib.Path) -> None:
    """Fill the cache of compiled models, so that the next load is the cached one."""
    worker = start(OURS, folders, core)
    worker.ask(LOAD_SECONDS, do="load", model=str(model))
    worker.stop()


def run_model(
    name: str,
    folders: dict[str, pathlib.Path | None],
    sources: dict[str, Source],
    settings: Settings,
    emit: Emit,
) -> None:
    """All rows of one model."""
    model = model_file(name, settings.scratch)
    contenders = load_peers(name, folders, sources, settings, emit)
    family = family_of(model)
    try:
        for kind, source in sources.items():
            rows = [row for row in settings.rows if (row.model, row.text) == (name, kind)]
            for row_idx, row in enumerate(rows):
                fresh = settings.fresh_bytes(row)
                if row_idx == 0:
                    source.rewind()
                    warm_up(contenders, source, settings)
                elif not source.lasts(fresh):
                    for peer, contender in contenders.items():
                        contender.worker.stop()
                        contender.worker = start(peer, folders, settings.core)
                        contender.worker.ask(LOAD_SECONDS, do="load", model=str(model))
                    source.rewind()
                    warm_up(contenders, source, settings)
                result = run_row(row, contenders, source, settings)
                report_row(row, family, result, emit)
    finally:
        for contender in contenders.values():
            contender.worker.stop()


def warm_up(contenders: dict[str, Contender], source: Source, settings: Settings) -> None:
    files = Files(settings.scratch)
    half = int(len(source.text) * source.bytes_per_char / 2)  # where a kind has little text
    texts = files.write(source.take_many(1400, min(settings.warm_bytes, half)))
    for contender in contenders.values():
        contender.worker.ask(TIME_SECONDS, do="warm", texts=texts)
    files.clear()


@dataclasses.dataclass(slots=True)
class Measured:
    """What one peer did in one row: a value for each round."""

    exact: bool
    differing: int
    bytes: list[int] = dataclasses.field(default_factory=list)
    ns: list[int] = dataclasses.field(default_factory=list)
    cpu_ns: list[int] = dataclasses.field(default_factory=list)
    p50_ns: list[int] = dataclasses.field(default_factory=list)
    p99_ns: list[int] = dataclasses.field(default_factory=list)

    def add(self, size: int, answer: dict[str, Any]) -> None:
        self.bytes.append(size)
        self.ns.append(answer["ns"])
        self.cpu_ns.append(answer["cpu_ns"])
        if "p50_ns" in answer:
            self.p50_ns.append(answer["p50_ns"])
            self.p99_ns.append(answer["p99_ns"])

    def mb_per_s(self, cpu: bool) -> float:
        times = self.cpu_ns if cpu else self.ns
        return statistics.median(b * 1e3 / ns for b, ns in zip(self.bytes, times, strict=True))


def run_row(
    row: Row, contenders: dict[str, Contender], source: Source, settings: Settings
) -> dict[str, Measured]:
    """The rounds of one row: the times of each peer, and whether its output was right."""
    files = Files(settings.scratch)
    results: dict[str, Measured] = {}
    reference = contenders[REFERENCE].worker
    racing = list(contenders)
    texts: list[str] = []
    path = ""
    for round_idx in range(settings.rounds_of(row)):
        if round_idx == 0 or not row.hot:
            texts = source.take_many(row.size, settings.round_bytes[row.size])
            path = files.write(texts)
            if row.what in FROM_IDS:
                ids = files.reserve()
                reference.ask(CHECK_SECONDS, do="write_ids", texts=path, out=ids)
                path = ids
        size = sum(len(text.encode()) for text in texts)
        for peer in racing if round_idx % 2 == 0 else racing[::-1]:
            answer = contenders[peer].worker.ask(
                TIME_SECONDS, do="time", what=row.what, texts=path, hot=row.hot
            )
            if "ns" not in answer:
                continue
            if peer not in results:
                results[peer] = Measured(exact=False, differing=contenders[peer].differing)
            results[peer].add(size, answer)
        if round_idx == 0:
            compare(row, path, contenders, results)
            racing = [peer for peer in racing if peer in results]
            racing = still_racing(racing, results)
    files.clear()
    return results


def compare(
    row: Row, path: str, contenders: dict[str, Contender], results: dict[str, Measured]
) -> None:
    """Compare the outputs for the texts of the first round with the reference's."""
    check = CHECKS.get(row.what, "check")
    wanted = contenders[REFERENCE].worker.ask(CHECK_SECONDS, do=check, texts=path)
    for peer, result in results.items():
        got = contenders[peer].worker.ask(CHECK_SECONDS, do=check, texts=path)
        special = got.get("adds_special", False)
        expected = wanted.get("digests_special" if special else "digests", [])
        wrong = sum(a != b for a, b in zip(got.get("digests", []), expected, strict=False))
        wrong += abs(len(expected) - len(got.get("digests", [])))
        # Decoding is judged by its texts alone: the ids it gets are the reference's.
        result.differing = wrong + (0 if row.what in FROM_IDS else contenders[peer].differing)
        result.exact = result.differing == 0 and len(expected) > 0


def still_racing(racing: list[str], results: dict[str, Measured]) -> list[str]:
    """Those worth further rounds: near the best so far, whether exact or not."""
    best = max((r.mb_per_s(True) for p, r in results.items() if r.exact and p != OURS), default=0.0)
    return [p for p in racing if p == OURS or results[p].mb_per_s(True) * BEHIND >= best]


def report_row(row: Row, family: str, results: dict[str, Measured], emit: Emit) -> None:
    """Print one line and write one record for each peer, and one of the comparison."""
    name = dataclasses.asdict(row)
    for peer, result in results.items():
        emit(
            kind="cell",
            **name,
            peer=peer,
            exact=result.exact,
            differing=result.differing,
            rounds=len(result.ns),
            mb_per_s=round(result.mb_per_s(False), 2),
            cpu_mb_per_s=round(result.mb_per_s(True), 2),
            **({"p50_ns": statistics.median(result.p50_ns)} if result.p50_ns else {}),
            **({"p99_ns": statistics.median(result.p99_ns)} if result.p99_ns else {}),
        )
    if row.what == "latency":
        shown = {p: statistics.median(r.p50_ns) / 1e3 for p, r in results.items() if r.p50_ns}
        ranked = sorted(shown.items(), key=lambda item: item[1])
        best = next((p for p, _ in ranked if p != OURS and results[p].exact), None)
        ratio = shown[best] / shown[OURS] if best and OURS in shown else None
        wall = ratio
    else:
        shown = {p: r.mb_per_s(True) for p, r in results.items()}
        ranked = sorted(shown.items(), key=lambda item: -item[1])
        best = next((p for p, _ in ranked if p != OURS and results[p].exact), None)
        ratio = ratio_of(results, best, cpu=True)
        wall = ratio_of(results, best, cpu=False)
    ours_exact = OURS in results and results[OURS].exact
    goal, goal_p50 = goal_ratio(row, family), goal_us(row)
    emit(
        kind="row",
        **name,
        name=row.name,
        family=family,
        best=best,
        ratio=ratio,
        wall_ratio=wall,
        ours=shown.get(OURS),
        ours_exact=ours_exact,
        goal=goal,
        goal_us=goal_p50,
        best_value=shown.get(best) if best else None,
    )
    unit = "us" if row.what == "latency" else "MB/s"
    line = " ".join(f"{p}{'' if results[p].exact else '*'} {v:.3g}" for p, v in ranked)
    aim = f" (goal {goal:g})" if goal else f" (goal {goal_p50:g} us)" if goal_p50 else ""
    said = f"{ratio:.2f}x {best}" if ratio else "no exact peer"
    print(f"  {row.text:9} {row.size:7} {row.what + (' hot' if row.hot else ''):12}", end=" ")
    print(f"{said}{aim} | {line} {unit}", flush=True)


def ratio_of(results: dict[str, Measured], best: str | None, *, cpu: bool) -> float | None:
    """Median over rounds of our speed by the best peer's in the same round."""
    if best is None or OURS not in results:
        return None
    pairs = zip(
        results[OURS].cpu_ns if cpu else results[OURS].ns,
        results[best].cpu_ns if cpu else results[best].ns,
        strict=False,
    )
    return statistics.median(theirs / ours for ours, theirs in pairs)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="default: all")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="shell patterns over names")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--peers-dir", type=pathlib.Path, default=OUT / "envs")
    parser.add_argument("--out", type=pathlib.Path, help="default: engine.jsonl in bench/out")
    parser.add_argument("--quick", action="store_true", help="rows with a goal, ten minutes")
    parser.add_argument("--smoke", action="store_true", help="one model, two sizes, one round")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    args = parser.parse_args()
    if args.models is None:
        models = QUICK_MODELS if args.quick else MODELS
        args.models = models if data_root() and not args.smoke else ["default"]
    if args.peers is None:
        args.peers = QUICK_PEERS if args.quick else list(PEERS)
    args.peers = [REFERENCE, *(p for p in args.peers if p != REFERENCE)]
    if args.out is None:
        args.out = OUT / ("engine-smoke.jsonl" if args.smoke else "engine.jsonl")
    return args


def rows_of(args: argparse.Namespace) -> list[Row]:
    if args.smoke:
        rows = [r for r in all_rows(args.models, args.texts[:2]) if r.size <= 1400]
    else:
        rows = (quick_rows if args.quick else all_rows)(args.models, args.texts)
    return chosen(rows, args.rows)


def build_name() -> str:
    """Compiler and instruction sets that decide how fast our library is here."""
    done = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=False)
    flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    sets = [name for name in ("avx2", "avx512bw", "avx512_vbmi2") if f" {name} " in flags]
    return " ".join([*done.stdout.splitlines()[:1], "release", *sets])


def cpu_name() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def run_header(settings: Settings) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "kind": "run",
        "commit": commit,
        "cpu": cpu_name(),
        "kernel": platform.release(),
        "build": build_name(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": settings.rounds,
        "core": settings.core,
        "quick": settings.quick,
        "peers": {name: PEERS[name][0] for name in PEERS},
    }


def by_model(rows: list[Row]) -> Iterator[str]:
    yield from collections.Counter(row.model for row in rows)


def main() -> int:
    args = parse_args()
    rows = rows_of(args)
    if args.list:
        print("\n".join(row.name for row in rows))
        return 0
    if not rows:
        raise SystemExit("engine: no row fits; --list prints their names")
    OUT.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        folders: dict[str, pathlib.Path | None] = {REFERENCE: None}
    else:
        folders = install(args.peers, args.peers_dir)
    folders[OURS] = None
    # All kinds, whichever rows were asked for: the comparison of ids is the same in every run.
    sources = {kind: load_source(data_root(), kind) for kind in TEXTS}
    started = time.monotonic()
    records = []
    with (
        args.out.open("w", encoding="utf-8") as out,
        tempfile.TemporaryDirectory(prefix="pintok-bench-") as scratch,
    ):
        settings = Settings(
            rows=rows,
            rounds=args.rounds or (1 if args.smoke else 3 if args.quick else 5),
            round_bytes=QUICK_ROUND_BYTES if args.quick or args.smoke else ROUND_BYTES,
            warm_bytes=50_000 if args.smoke else WARM_BYTES,
            core=args.core,
            scratch=pathlib.Path(scratch),
            quick=args.quick,
        )

        def emit(**row: Any) -> None:
            records.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()

        emit(**run_header(settings))
        for name in by_model(rows):
            print(name, flush=True)
            run_model(name, folders, sources, settings, emit)
    print_summary(records, args.out)
    print(f"{time.monotonic() - started:.0f} s; written: {args.out}")
    wrong = [r["name"] for r in records if r["kind"] == "row" and not r["ours_exact"]]
    if wrong:
        print(f"OUR OUTPUT DIFFERS in {len(wrong)} rows: {', '.join(wrong[:5])}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
