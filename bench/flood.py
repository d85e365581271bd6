#!/usr/bin/env python3
"""A validated client while false addresses flood the server, with and without address validation.

    bench/flood.py             some minutes; needs root
    bench/flood.py --smoke     shows that it works, seconds

For each path a fresh link and server, three situations that take turns over the rounds:

    quiet       nobody but the client; addresses are validated
    flood       encode requests from 131,072 false addresses beside it; addresses are validated
    no guard    the same flood, and the server believes every address

The client (bench/native/bench_load.c) asks at a fixed rate. Reported are what it got, the server's
counters, how much its memory grew, and what reached the false addresses: the flood's sender
(bench/native/bench_flood.c) accounts for every address, and one that was sent more bytes than it
sent under validation fails the run. Sender, client and the kernel's part of the link share one
core, the server has the other one. Writes bench/out/flood.jsonl.
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
from private_link import (  # noqa: E402
    CLIENT_INTERFACE,
    SERVER_IPV4,
    Hugepages,
    run_inside,
    set_up_inside,
)

from pintok_server.control.runtime import RunDir, current_state  # noqa: E402
from pintok_server.control.statistics import Snapshot, StatisticsReader  # noqa: E402

OUT = ROOT / "bench" / "out"
FALSE_NETWORK = "198.18.0.0/15"
SITUATIONS = {"quiet": "on", "flood": "on", "no guard": "off"}
COUNTERS = ("challenge", "bad_cookie", "rate_limited")

Row = dict[str, Any]


def say(text: str) -> None:
    print(text, flush=True)


def memory_len(pid: int) -> int:
    """Resident bytes of a process, hugepages left out: those are fixed at the start."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counted(before: Snapshot, after: Snapshot) -> Row:
    """What the server's counters moved by."""
    row: Row = {}
    for name in ("requests", "validated", "silent", "request_bytes", "reply_bytes", "rx_packets"):
        row[name] = after.total(name) - before.total(name)
    for name in COUNTERS:
        row[name] = sum(
            new.verdicts.get(name, 0) - old.verdicts.get(name, 0)
            for old, new in zip(before.workers, after.workers, strict=True)
        )
    # Neither shown a cookie nor refused: done for an address that nobody has proven.
    row["strangers_served"] = row["requests"] - row["validated"] - sum(row[n] for n in COUNTERS)
    return row


def measure(
    args: argparse.Namespace, run_dir: RunDir, service: services.Service, texts: Path, core: int
) -> Row:
    """One row: the client's figures, the flood's if there is one, and the server's."""
    state = current_state(run_dir)
    assert state is not None

    def load(seconds: float) -> Row:
        return services.load(
            service, texts, size=200, window=256, seconds=seconds, core=core, rate=args.client_rate
        )

    load(0.3)  # Caches and clocks settle, and the cookies of the client are asked for.
    with StatisticsReader(run_dir.stats) as reader:
        before, memory = reader.read(), memory_len(state.pid)
        command = [str(services.LOAD_PROGRAMS / "bench_flood")]
        command += ["--interface", CLIENT_INTERFACE, "--host", SERVER_IPV4, "--text", str(texts)]
        command += ["--rate", str(args.flood_rate), "--seconds", str(args.seconds + 0.4)]
        if not args.flooding:
            row = {"client": load(args.seconds), "flood": None}
        else:
            sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                client = load(args.seconds)
                out, _ = sender.communicate(timeout=args.seconds + 30)
            finally:
                sender.kill()
                sender.wait()
            if sender.returncode != 0:
                raise services.ServiceError(f"bench_flood: exit {sender.returncode}")
            row = {"client": client, "flood": json.loads(out)}
        return row | {
            "server": counted(before, reader.read()),
            "memory_grown": memory_len(state.pid) - memory,
        }


def measure_all(args: argparse.Namespace, work: Path, texts: Path) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for number in range(args.rounds):
        for path in (services.XDP, services.SOCKET):
            for situation, validation in SITUATIONS.items():
                run_dir = RunDir(work / f"run-{len(rows)}")
                options = ("--address-validation", validation, "--runtime-dir", str(run_dir.path))
                service = services.Service(path.name, path.path, options)
                # Replies to the false addresses have a way out, and it is the client's end.
                with services.serving(
                    service,
                    queue_count=1,
                    cores=cores[-1:],
                    work=work,
                    routes=[FALSE_NETWORK],
                ):
                    if number == 0 and validation == "off":
                        cuts = services.cuts(
                            texts, count=200, bytes_max=services.CUT_BYTES_MAX, seed=4
                        )
                        services.prove(service, cuts, say=say)
                    args.flooding = situation != "quiet"
                    row = measure(args, run_dir, service, texts, cores[0])
                rows.append(
                    row | {"kind": "flood", "path": path.path, "what": situation, "round": number}
                )
    return rows


def figures(row: Row) -> dict[str, float]:
    client, flood, server = row["client"], row["flood"], row["server"]
    found = {
        "requests/s": client["requests_per_s"],
        "lost %": 100 * client["lost"] / max(1, client["sent"]),
        "p50 us": client["p50_ns"] / 1e3,
        "p99 us": client["p99_ns"] / 1e3,
        "flood/s": 0.0 if flood is None else flood["sent_per_s"],
        "served": server["strangers_served"],
        "challenge": server["challenge"],
        "silent": server["silent"],
        "bytes back %": 0.0
        if flood is None
        else 100 * flood["reply_bytes"] / max(1, flood["sent_bytes"]),
        "grown KiB": row["memory_grown"] / 1024,
    }
    return {name: float(value) for name, value in found.items()}


def print_table(rows: list[Row]) -> None:
    names = list(figures(rows[0]))
    say(f"\nmedians\n{'':18}" + "".join(f"{name:>14}" for name in names))
    for path in ("xdp", "socket"):
        for what in SITUATIONS:
            group = [figures(r) for r in rows if (r["path"], r["what"]) == (path, what)]
            cells = [f"{statistics.median(f[n] for f in group):,.1f}" for n in names]
            say(f"{path:8}{what:10}" + "".join(f"{cell:>14}" for cell in cells))


def find_faults(rows: list[Row]) -> list[str]:
    """What must not be under validation, in words."""
    faults = []
    for row in rows:
        where = f"{row['path']}, {row['what']}, round {row['round']}"
        wrong = {name: n for name, n in row["client"]["verdicts"].items() if name != "ok"}
        if wrong:
            faults.append(f"{where}: the client was refused: {wrong}")
        if row["what"] == "flood" and row["flood"]["exceeded"] > 0:
            faults.append(f"{where}: {row['flood']['exceeded']} addresses got more than they sent")
        if row["what"] == "flood" and row["flood"]["sent"] == 0:
            faults.append(f"{where}: nothing was sent")
        if row["memory_grown"] > 4 << 20:
            faults.append(f"{where}: the memory grew by {row['memory_grown']:,} bytes")
    return faults


def inside(args: argparse.Namespace) -> int:
    set_up_inside()
    with tempfile.TemporaryDirectory(prefix="ptk-flood-") as folder:
        work = Path(folder)
        texts = work / "texts"
        services.write_texts(texts)
        rows = measure_all(args, work, texts)
    OUT.mkdir(parents=True, exist_ok=True)
    out = OUT / ("flood-smoke.jsonl" if args.smoke else "flood.jsonl")
    run = services.facts(rounds=args.rounds, seconds=args.seconds)
    run |= {"client_rate": args.client_rate, "flood_rate": args.flood_rate}
    out.write_text("".join(json.dumps(row) + "\n" for row in [run, *rows]))
    print_table(rows)
    say("\n" + ", ".join(f"{name} {value}" for name, value in run.items() if name != "kind"))
    say(f"written: {out.relative_to(ROOT)}")
    faults = find_faults(rows)
    for fault in faults:
        say(f"bench/flood.py: {fault}")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="one measurement (0.2 to 20)")
    parser.add_argument("--client-rate", type=float, default=2000, help="requests a second")
    parser.add_argument("--flood-rate", type=float, default=40000, help="datagrams a second")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.3
    if not 0.2 <= args.seconds <= 20:
        parser.error("--seconds must be from 0.2 to 20")
    if os.geteuid() != 0:
        parser.error("network namespaces and AF_XDP need root")
    if args.inside:
        try:
            return inside(args)
        except services.ServiceError as error:
            say(f"bench/flood.py: {error}")
            return 1
    subprocess.run(["make", "-C", str(ROOT / "native"), "-j2", "bench"], check=True)
    with Hugepages(count=services.HUGEPAGE_COUNT):
        return run_inside([sys.executable, __file__, *sys.argv[1:], "--inside"])


if __name__ == "__main__":
    sys.exit(main())
