#!/usr/bin/env python3
"""The server over a private link: network only, engine only, both; XDP path beside socket path.

    bench/server.py             a few minutes; needs root
    bench/server.py --smoke     shows that it works, seconds

For each size of text:

    network only   `ping` with a payload of the same size: the datapath around an engine that does
                   nothing (a null tokenizer)
    engine only    the same requests given to the engine in memory
    both           `encode` over the link

with one request under way (latency) and with 32 (rate). The paths take turns over the rounds, each
round on a fresh link and server; medians over rounds. Before anything is timed the ids over the
link are compared with the reference library's. The load generator is bench/native/bench_load.c on
the other core. Writes bench/out/server.jsonl and, where matplotlib is installed,
bench/out/server.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import services  # noqa: E402
from private_link import Hugepages, run_inside, set_up_inside  # noqa: E402

OUT = ROOT / "bench" / "out"
SIZES = (200, 1400)
WINDOWS = (1, 32)
PATHS = (services.XDP, services.SOCKET)
OPS = {"ping": "network only", "encode": "both"}
ENGINE_ROUNDS = 50

Row = dict[str, Any]


def measure_engine(texts: Path, *, rounds: int) -> list[Row]:
    """The engine in memory: one row per operation and size."""
    from pintok_server import vocab

    image = vocab.load_image("default").path
    words = [str(services.LOAD_PROGRAMS / "bench_engine"), str(image), str(texts), str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [{"kind": "engine", **json.loads(line)} for line in done.stdout.splitlines()]


def measure_links(args: argparse.Namespace, work: Path, texts: Path) -> list[Row]:
    """One row per path, operation, size, window and round."""
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for number in range(args.rounds):
        for service in PATHS if number % 2 == 0 else reversed(PATHS):
            with services.serving(service, queue_count=1, cores=cores[-1:], work=work):
                if number == 0:
                    cuts = services.cuts(texts, count=300, bytes_max=services.CUT_BYTES_MAX, seed=3)
                    services.prove(service, cuts, say=say)
                for op, what in OPS.items():
                    for size in SIZES:
                        for window in WINDOWS:
                            row = services.load(
                                service,
                                texts,
                                size=size,
                                window=window,
                                seconds=args.seconds,
                                core=cores[0],
                                op=op,
                            )
                            row |= {"kind": "link", "path": service.path, "what": what}
                            row |= {"size": size, "window": window, "round": number}
                            rows.append(row)
    return rows


def median(rows: list[Row], name: str, **where: Any) -> float:
    """The median over rounds of one figure."""
    return statistics.median(
        row[name] for row in rows if all(row.get(key) == value for key, value in where.items())
    )


def engine_ns(engine: list[Row], size: int) -> float:
    return float(next(r["engine_ns"] for r in engine if r["size"] == size and r["op"] == "encode"))


def print_tables(rows: list[Row], engine: list[Row]) -> None:
    """Latency, rate, and the ratio of the paths."""
    heads = "".join(f"{f'{size} B':>26}" for size in SIZES)
    say(f"\none request under way, microseconds (p50 / p99 / p99.9)\n{'':22}{heads}")
    for what in OPS.values():
        for service in PATHS:
            cells = [
                " / ".join(
                    f"{median(rows, q, what=what, path=service.path, size=s, window=1) / 1e3:.1f}"
                    for q in ("p50_ns", "p99_ns", "p999_ns")
                )
                for s in SIZES
            ]
            say(f"{what:14}{service.path:8}" + "".join(f"{cell:>26}" for cell in cells))
    cells = [f"{engine_ns(engine, s) / 1e3:.2f}" for s in SIZES]
    say(f"{'engine only':14}{'memory':8}" + "".join(f"{cell:>26}" for cell in cells))

    say(f"\n32 requests under way, requests per second\n{'':22}{heads}")
    for what in OPS.values():
        for service in PATHS:
            cells = [
                f"{median(rows, 'requests_per_s', what=what, path=service.path, size=s, window=32):,.0f}"  # noqa: E501
                for s in SIZES
            ]
            say(f"{what:14}{service.path:8}" + "".join(f"{cell:>26}" for cell in cells))
    cells = [f"{1e9 / engine_ns(engine, s):,.0f}" for s in SIZES]
    say(f"{'engine only':14}{'memory':8}" + "".join(f"{cell:>26}" for cell in cells))

    say("\nXDP path to socket path (latency: how many times shorter; rate: how many times higher)")
    for what in OPS.values():
        cells = []
        for s in SIZES:
            where = {"what": what, "size": s}
            shorter = median(rows, "p50_ns", path="socket", window=1, **where) / median(
                rows, "p50_ns", path="xdp", window=1, **where
            )
            higher = median(rows, "requests_per_s", path="xdp", window=32, **where) / median(
                rows, "requests_per_s", path="socket", window=32, **where
            )
            cells.append(f"{shorter:.2f} / {higher:.2f}")
        say(f"{what:22}" + "".join(f"{cell:>26}" for cell in cells))
    say(
        f"\nrequests without an answer: {sum(row['lost'] for row in rows):,}"
        f" of {sum(row['sent'] for row in rows):,}"
    )


def plot(rows: list[Row], path: Path) -> bool:
    """Latency and rate over size; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    labels = [f"{what}\n{size} B" for what in OPS.values() for size in SIZES]
    for number, service in enumerate(PATHS):
        places = [index + 0.4 * number - 0.2 for index in range(len(labels))]
        keys = [(what, size) for what in OPS.values() for size in SIZES]
        latency = [
            median(rows, "p50_ns", what=w, size=s, path=service.path, window=1) / 1e3
            for w, s in keys
        ]
        rate = [
            median(rows, "requests_per_s", what=w, size=s, path=service.path, window=32) / 1e3
            for w, s in keys
        ]
        left.bar(places, latency, 0.38, label=service.name)
        right.bar(places, rate, 0.38, label=service.name)
    left.set(ylabel="microseconds", title="p50 with one request under way")
    right.set(ylabel="thousand requests/s", title="32 under way, one core")
    for axis in (left, right):
        axis.set_xticks(range(len(labels)), labels)
        axis.grid(axis="y", alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    return True


def inside(args: argparse.Namespace) -> int:
    set_up_inside()
    with tempfile.TemporaryDirectory(prefix="ptk-bench-") as folder:
        work = Path(folder)
        texts = work / "texts"
        services.write_texts(texts)
        engine = measure_engine(texts, rounds=3 if args.smoke else ENGINE_ROUNDS)
        rows = measure_links(args, work, texts)
    OUT.mkdir(parents=True, exist_ok=True)
    out = OUT / ("server-smoke.jsonl" if args.smoke else "server.jsonl")
    run = services.facts(rounds=args.rounds, seconds=args.seconds)
    out.write_text("".join(json.dumps(row) + "\n" for row in [run, *engine, *rows]))
    print_tables(rows, engine)
    say("\n" + ", ".join(f"{name} {value}" for name, value in run.items() if name != "kind"))
    say(f"written: {out.relative_to(ROOT)}")
    if not args.smoke and plot(rows, OUT / "server.png"):
        say(f"written: {(OUT / 'server.png').relative_to(ROOT)}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.2
    if os.geteuid() != 0:
        parser.error("network namespaces and AF_XDP need root")
    if args.inside:
        try:
            return inside(args)
        except services.ServiceError as error:
            say(f"bench/server.py: {error}")
            return 1
    subprocess.run(["make", "-C", str(ROOT / "native"), "-j2", "bench"], check=True)
    with Hugepages(count=services.HUGEPAGE_COUNT):
        return run_inside([sys.executable, __file__, *sys.argv[1:], "--inside"])


if __name__ == "__main__":
    sys.exit(main())
