#!/usr/bin/env python3
"""The server on a private veth link: network only, engine only, and both, per size of text.

    bench/server.py                 the table, JSON lines and a plot in bench/out/
    bench/server.py --smoke         the same in seconds, to show that it works, not to be quoted

Network only is the ping operation with the text as its payload: the whole way of a request but the
tokenizer. Engine only is the tokenizer in this process, on the same slices, on the server's core.
Both is the encode operation. Latency is taken with one request under way, the rate with WINDOW. The
load generator runs on the first core, the server on the last; ids are proven equal to the reference
library's before anything is timed. Needs root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import services  # noqa: E402
from private_link import Hugepages, run_inside, set_up_inside  # noqa: E402

OUT = ROOT / "bench" / "out"
SIZES = (64, 200, 700, 1400)
WINDOW = 64
COLOURS = {"xdp": "#1f77b4", "socket": "#ff7f0e", "http": "#7f7f7f"}

Row = dict[str, Any]


def facts() -> Row:
    """What every line carries: the commit, the machine and the kernel."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit or "unknown",
        "cpu": services.cpu_name(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "link": "veth",
        "build": "release",
    }


def measure_engine(texts: Path, *, core: int, seconds: float, sizes: tuple[int, ...]) -> list[Row]:
    """The tokenizer alone, in batches of one datagram's texts."""
    import pintok

    tokenizer = pintok.Tokenizer.from_pretrained("default")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    rows: list[Row] = []
    try:
        data = texts.read_bytes()
        for size in sizes:
            parts = [data[at : at + size] for at in range(0, len(data) - size, size)]
            batch = [part.decode("utf-8", "ignore") for part in parts]
            done = bytes_done = at = 0
            begin = time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < seconds:
                group = batch[at : at + 256]
                tokenizer.encode_batch(group)
                done += len(group)
                bytes_done += size * len(group)
                at = (at + 256) % len(batch)
            rows.append(
                {
                    "what": "engine",
                    "size": size,
                    "requests_per_s": round(done / elapsed),
                    "text_mb_per_s": round(bytes_done / elapsed / 1e6, 2),
                }
            )
    finally:
        os.sched_setaffinity(0, before)
    return rows


def measure_service(
    service: services.Service,
    texts: Path,
    *,
    core: int,
    seconds: float,
    sizes: tuple[int, ...],
    work: Path,
) -> list[Row]:
    """Rows of one service: for PinTok network only and both, for the HTTP service both."""
    rows: list[Row] = []
    proof = services.cuts(texts, count=200, bytes_max=1400, seed=3)
    with services.serving(service, queue_count=1, cores=[core], work=work):
        services.prove(service, proof, say=print)
        for what, op in (("network", "ping"), ("both", "encode")):
            if service.path is None and what == "network":
                continue
            for size in sizes:

                def put(
                    window: int, length: float, size: int = size, op: str = op
                ) -> dict[str, Any]:
                    return services.load(
                        service, texts, size=size, window=window, seconds=length, core=0, op=op
                    )

                put(1, min(0.3, seconds))
                for window in (1, WINDOW):
                    row = {"what": what, "path": service.path or "http", "window": window}
                    rows.append(row | put(window, seconds) | {"op": op})
    return rows


def print_rows(rows: list[Row]) -> None:
    print(
        f"\n{'what':8} {'path':7} {'text':>7} {'p50 us':>8} {'p99 us':>8} {'p99.9 us':>9}"
        f" {'requests/s':>11} {'text MB/s':>10} {'lost':>5}"
    )
    for row in rows:
        if row["what"] == "engine":
            print(
                f"{'engine':8} {'-':7} {row['size']:5} B {'':8} {'':8} {'':9}"
                f" {row['requests_per_s']:11,} {row['text_mb_per_s']:10.1f}"
            )
        elif row["window"] == 1:
            full = next(
                other
                for other in rows
                if other["what"] == row["what"]
                and other.get("path") == row["path"]
                and other["size"] == row["size"]
                and other.get("window") == WINDOW
            )
            micro = [row[key] / 1000 for key in ("p50_ns", "p99_ns", "p999_ns")]
            print(
                f"{row['what']:8} {row['path']:7} {row['size']:5} B {micro[0]:8.1f} {micro[1]:8.1f}"
                f" {micro[2]:9.1f} {full['requests_per_s']:11,} {full['text_mb_per_s']:10.1f}"
                f" {row.get('lost', 0) + full.get('lost', 0):5}"
            )


def write_plot(rows: list[Row], path: Path) -> None:
    """The rate per size of text as an SVG, logarithmic, one line per path of the encode rows."""
    width, height, margin = 640, 400, 60
    full = [row for row in rows if row["what"] == "both" and row["window"] == WINDOW]
    top = max(row["requests_per_s"] for row in full)
    decades = len(str(top))
    sizes = sorted({row["size"] for row in full})

    def place(row: Row) -> tuple[float, float]:
        x = margin + sizes.index(row["size"]) * (width - 2 * margin) / max(1, len(sizes) - 1)
        share = math.log10(max(row["requests_per_s"], 1)) / decades
        return x, height - margin - share * (height - 2 * margin)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{margin}" y="24">encode requests per second and core, {WINDOW} under way</text>',
    ]
    for decade in range(decades + 1):
        y = height - margin - decade * (height - 2 * margin) / decades
        parts.append(
            f'<line x1="{margin}" x2="{width - margin}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="4" y="{y + 4:.1f}">{10**decade:,}</text>'
        )
    for idx, size in enumerate(sizes):
        x = margin + idx * (width - 2 * margin) / max(1, len(sizes) - 1)
        parts.append(f'<text x="{x - 16:.1f}" y="{height - margin + 20}">{size} B</text>')
    for idx, name in enumerate(dict.fromkeys(row["path"] for row in full)):
        points = [place(row) for row in full if row["path"] == name]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>'
            f'<text x="{margin + 120 * idx}" y="{height - 12}" fill="{COLOURS[name]}">{name}</text>'
        )
    path.write_text("\n".join([*parts, "</svg>\n"]))


def inside(*, smoke: bool) -> int:
    set_up_inside()
    core = max(os.sched_getaffinity(0))
    seconds, sizes = (0.2, (200, 1400)) if smoke else (2.0, SIZES)
    common = facts()
    with tempfile.TemporaryDirectory(prefix="ptk-bench-") as folder:
        work = Path(folder)
        texts = work / "texts"
        services.write_texts(texts)
        rows = measure_engine(texts, core=core, seconds=seconds, sizes=sizes)
        for service in (services.XDP, services.SOCKET, services.HTTP):
            rows += measure_service(
                service, texts, core=core, seconds=seconds, sizes=sizes, work=work
            )
    print_rows(rows)
    if smoke:
        print("\nsmoke: it works; these times mean nothing")
        return 0
    OUT.mkdir(parents=True, exist_ok=True)
    name = time.strftime("server-%Y%m%d-%H%M%S")
    lines = [json.dumps(common | row) for row in rows]
    (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_plot(rows, OUT / f"{name}.svg")
    print(f"\nwrote {OUT / name}.jsonl and .svg")
    return 0


def raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and AF_XDP need root")
    signal.signal(signal.SIGTERM, raise_exit)
    if args.inside:
        signal.signal(signal.SIGINT, raise_exit)
        return inside(smoke=args.smoke)
    words = [sys.executable, str(Path(__file__).resolve()), "--inside"]
    with Hugepages(count=services.HUGEPAGE_COUNT):
        return run_inside([*words, *(["--smoke"] if args.smoke else [])])


if __name__ == "__main__":
    sys.exit(main())
