#!/usr/bin/env python3
"""What a run of the engine benchmark says: a table of ratios beside the goals, and a plot.

    bench/engine_report.py [bench/out/engine.jsonl]

draws both again from the records of a run.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import sys
from typing import Any

OURS = "pintok"
ROOT = pathlib.Path(__file__).resolve().parents[1]

Record = dict[str, Any]


def print_summary(records: list[Record], out: pathlib.Path) -> None:
    """The last words of a run, and OUT with the suffix .png."""
    rows = [record for record in records if record["kind"] == "row"]
    cells: dict[tuple[Any, ...], list[Record]] = collections.defaultdict(list)
    for record in records:
        if record["kind"] == "cell":
            cells[key(record)].append(record)
    print_loads(records)
    print("\nratio to the best exact peer, by processor time (wall time in brackets)")
    for row in rows:
        print(line_of(row, cells[key(row)]))
    print_lines_of_goals(rows)
    draw(records[0], rows, out.with_suffix(".png"))


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("model", "text", "size", "what", "hot"))


def line_of(row: Record, cells: list[Record]) -> str:
    if row["ratio"] is None:
        return f"  {row['name']:45} no exact peer"
    unit = "us p50" if row["what"] == "latency" else "MB/s"
    line = f"  {row['name']:45} {row['ratio']:5.2f} ({row['wall_ratio']:.2f})"
    line += f"  {row['ours']:.3g} against {row['best_value']:.3g} {unit} of {row['best']}"
    if row["goal"] is not None:
        line += f"; goal {row['goal']:g}{' reached' if row['ratio'] >= row['goal'] else ''}"
    if row["goal_us"] is not None:
        line += f"; goal {row['goal_us']:g} us{' reached' if row['ours'] < row['goal_us'] else ''}"
    # An inexact peer is never best, but it is not hidden where it is the faster one.
    faster = [
        f"{cell['peer']} {cell['cpu_mb_per_s']:.3g} ({cell['differing']} texts differ)"
        for cell in cells
        if not cell["exact"] and row["what"] != "latency"
        if cell["cpu_mb_per_s"] > row["best_value"]
    ]
    return f"{line}; inexact: {', '.join(faster)}" if faster else line


def print_loads(records: list[Record]) -> None:
    """Time of a load and memory of a loaded model, ours beside the leanest exact peer."""
    loads: dict[str, dict[str, Record]] = collections.defaultdict(dict)
    for record in records:
        if record["kind"] == "load":
            loads[record["model"]][record["peer"]] = record
    print("\nload, ms (memory, MB): the compiled model from its cache, compiling it, exact peers")
    for model, peers in loads.items():
        ours, cold = peers.get(OURS), peers.get(f"{OURS} (cold)")
        if ours is None:
            continue
        others = [p for name, p in peers.items() if not name.startswith(OURS)]
        others = [p for p in others if p["differing"] == 0]
        others.sort(key=lambda p: p["memory_bytes"])
        line = f"  {model:20} {ours['load_ns'] / 1e6:7.1f} ({ours['memory_bytes'] / 1e6:.0f})"
        line += f"  cold {cold['load_ns'] / 1e6:.0f}  |" if cold else "  |"
        line += "".join(
            f" {p['peer']} {p['load_ns'] / 1e6:.0f} ({p['memory_bytes'] / 1e6:.0f})" for p in others
        )
        print(line)


def print_lines_of_goals(rows: list[Record]) -> None:
    """One line for each line of the goals: least, middle and greatest ratio of its rows."""
    groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
    for row in rows:
        if row["goal"] is not None and row["ratio"] is not None:
            what = "hot" if row["hot"] else row["what"]
            groups[row["family"], f"{row['text']} {what}"].append(row)
    if not groups:
        return
    print("\ngoals: ratios of all rows of a line, least / geometric mean / greatest")
    for (family, what), members in groups.items():
        ratios = [row["ratio"] for row in members]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        reached = sum(row["ratio"] >= row["goal"] for row in members)
        print(
            f"  {family:10} {what:20} {min(ratios):5.2f} / {mean:5.2f} / {max(ratios):5.2f}"
            f"   goal {members[0]['goal']:g}, reached in {reached} of {len(members)} rows"
        )


def draw(run: Record, rows: list[Record], path: pathlib.Path) -> None:
    """Ratios as bars, a panel for each operation and kind of text, the goal as a mark."""
    rows = [row for row in rows if row["ratio"] is not None]
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    if not rows:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, list[Record]] = collections.defaultdict(list)
    for row in rows:
        what = f"{row['what']} hot" if row["hot"] else row["what"]
        panels[f"{what}, {row['text']}"].append(row)
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    height = max(3.0, 0.13 * max(map(len, panels.values())) + 1)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(6.5 * columns, height * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, members) in zip(axes.flat, panels.items(), strict=False):
        spots = range(len(members))
        values = [row["ratio"] for row in members]
        reached = [row["goal"] is None or row["ratio"] >= row["goal"] for row in members]
        axis.barh(spots, values, color=["#2a7f62" if yes else "#b0662b" for yes in reached])
        axis.set_yticks(
            spots, [f"{row['model']} {size_name(row['size'])}" for row in members], fontsize=6
        )
        for spot, row in zip(spots, members, strict=True):
            axis.text(
                row["ratio"], spot, f" {row['ratio']:.2f} {row['best']}", fontsize=6, va="center"
            )
            if row["goal"] is not None:
                axis.plot([row["goal"]] * 2, [spot - 0.45, spot + 0.45], color="black", lw=1)
        axis.axvline(1, color="grey", lw=0.6)
        axis.set_xlim(0, max([*values, *(row["goal"] or 0 for row in members)]) * 1.35)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=8)
    figure.suptitle(
        f"Speed by that of the best exact peer (black: goal), commit {run['commit']}, {run['cpu']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"plot: {path}")


def size_name(size: int) -> str:
    return {200: "200 B", 1400: "1.4 KB", 32768: "32 KB", 1 << 20: "1 MB"}.get(size, str(size))


def main() -> int:
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench/out/engine.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    print_summary([json.loads(line) for line in lines], path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
