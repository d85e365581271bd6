#!/usr/bin/env python3
"""Short texts beside long ones over a link that loses datagrams, and over a clean one.

    bench/mixed.py             two minutes; needs root
    bench/mixed.py --smoke     shows that it works, seconds

For each path a fresh link and server. One client asks for texts of 200 bytes, one after another,
first alone, then beside a second client that asks for texts of 900 KB: straight over the link, and
through a proxy that loses 2 % of the datagrams, doubles 1 % and lets 5 % be overtaken. Every answer
is compared with the ids of the in-process tokenizer, and those with the reference library's; one
that differs ends the run. Reported are p50 and p99 of whole calls of the Python client, repetitions
included. Clients and proxy share one process on the cores that the server does not have. The test
`tests/netns/test_mixed_load.py` does the same. Writes bench/out/mixed.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import services  # noqa: E402
from private_link import SERVER_IPV4, Hugepages, run_inside, set_up_inside  # noqa: E402

from pintok import Tokenizer  # noqa: E402
from pintok._wire import WIRE_PORT  # noqa: E402
from tests.lossy_link import LossyLink  # noqa: E402
from tests.mixed_load import FAULTS, LONG_LEN, SMALL_LEN, Texts, measure  # noqa: E402

OUT = ROOT / "bench" / "out"
PATHS = (services.XDP, services.SOCKET)
LINKS = ("clean", "lossy")

Row = dict[str, Any]


def say(text: str) -> None:
    print(text, flush=True)


def measure_path(
    path: str | None, small: Texts, long: Texts, *, seconds: float, number: int
) -> list[Row]:
    """The rows of one round: the server of the path is there."""
    rows = []
    server = (SERVER_IPV4, WIRE_PORT)
    with LossyLink(server, FAULTS, seed=number) as proxy:
        for link, address in zip(LINKS, (server, ("127.0.0.1", proxy.port)), strict=True):
            for kinds in ([small], [small, long]):
                figures = measure(address, kinds, seconds=seconds)
                for what, found in zip(("small", "long"), figures, strict=False):
                    row = {"kind": "mixed", "path": path, "link": link, "round": number}
                    row |= {"what": what, "beside": len(kinds) > 1}
                    rows.append(row | dataclasses.asdict(found))
    return rows


def measure_all(args: argparse.Namespace, work: Path) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    tokenizer = Tokenizer.from_pretrained("default")
    small = Texts.make(tokenizer, length=SMALL_LEN, count=50)
    long = Texts.make(tokenizer, length=LONG_LEN, count=2)
    rows = []
    for number in range(args.rounds):
        for service in PATHS if number % 2 == 0 else reversed(PATHS):
            with services.serving(service, queue_count=1, cores=cores[-1:], work=work):
                if number == 0:
                    services.prove(service, [*small.texts, *long.texts], say=say)
                # Threads have the cores of the one that starts them.
                os.sched_setaffinity(0, cores[:-1] or cores)
                try:
                    rows += measure_path(
                        service.path, small, long, seconds=args.seconds, number=number
                    )
                finally:
                    os.sched_setaffinity(0, cores)
    return rows


def print_table(rows: list[Row]) -> None:
    """Medians over rounds."""
    columns = (
        (f"{SMALL_LEN} B alone", "small", False),
        (f"{SMALL_LEN} B beside", "small", True),
        (f"{LONG_LEN // 1000} KB", "long", True),
    )
    say("\nmilliseconds a call, p50 / p99, and answers, all of them exact")
    say(f"{'':16}" + "".join(f"{head:>30}" for head, _, _ in columns))
    for service in PATHS:
        for link in LINKS:
            cells = []
            for _, what, beside in columns:
                wanted = (service.path, link, what, beside)
                group = [
                    r for r in rows if (r["path"], r["link"], r["what"], r["beside"]) == wanted
                ]
                p50, p99 = (
                    statistics.median(r[name] for r in group) for name in ("p50_ms", "p99_ms")
                )
                cells.append(f"{p50:.2f} / {p99:.2f} {sum(r['answers'] for r in group):>9,}")
            say(f"{service.path or '':8}{link:8}" + "".join(f"{cell:>30}" for cell in cells))


def inside(args: argparse.Namespace) -> int:
    set_up_inside()
    with tempfile.TemporaryDirectory(prefix="ptk-mixed-") as folder:
        rows = measure_all(args, Path(folder))
    OUT.mkdir(parents=True, exist_ok=True)
    out = OUT / ("mixed-smoke.jsonl" if args.smoke else "mixed.jsonl")
    run = services.facts(rounds=args.rounds, seconds=args.seconds)
    run |= {"small_len": SMALL_LEN, "long_len": LONG_LEN, "faults": dataclasses.asdict(FAULTS)}
    out.write_text("".join(json.dumps(row) + "\n" for row in [run, *rows]))
    print_table(rows)
    say("\n" + ", ".join(f"{name} {value}" for name, value in run.items() if name != "kind"))
    say(f"written: {out.relative_to(ROOT)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="one measurement (0.2 to 60)")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.5
    if not 0.2 <= args.seconds <= 60:
        parser.error("--seconds must be from 0.2 to 60")
    if os.geteuid() != 0:
        parser.error("network namespaces and AF_XDP need root")
    if args.inside:
        try:
            return inside(args)
        except (services.ServiceError, AssertionError) as error:
            say(f"bench/mixed.py: {error}")
            return 1
    with Hugepages(count=services.HUGEPAGE_COUNT):
        return run_inside([sys.executable, __file__, *sys.argv[1:], "--inside"])


if __name__ == "__main__":
    sys.exit(main())
