"""Shows the whole way on one machine: text in, ids out, proof, and what it costs.

Starts pintok-server with the embedded default vocabulary on one end of a private veth link, sends
text from the other end, compares the ids with Hugging Face `tokenizers` on the same file, and then
measures three services on the same link, the same core and the same texts: PinTok over AF_XDP,
PinTok over kernel sockets, and `tokenizers` behind FastAPI on uvicorn.

All of it lives in namespaces that vanish with this program, however it ends; the huge pages it adds
are given back. Run it through scripts/demo, which installs what it needs first.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import services
import tokenizers
from private_link import SERVER_IPV4, Hugepages, run_inside, set_up_inside

import pintok

SIZES = (64, 200, 1400)
WINDOW = 32
PROOF_COUNT = 2000

SAMPLES = (
    "PinTok turns text into token ids at the speed of the network card.",
    "def quantile(values, q):\n    return sorted(values)[int(q * len(values))]\n",
    '{"role": "user", "content": "What is the weather in Zürich?", "temperature": 0.7}',
    "Tokenisierung ist überall nötig. 分词是第一步。 トークン化は最初の一歩です。 تقسيم النص",
    "<|im_start|>user\nHow many 🍓 are 12345 👩‍👩‍👧‍👦?<|im_end|>\n",
)


def say(text: str = "") -> None:
    print(text, flush=True)


def step(text: str) -> None:
    say(f"\n== {text}")


def show_ids(work: Path, texts: Path, cores: Sequence[int]) -> None:
    """Texts, their ids from the server, and the comparison with the reference library."""

    reference = tokenizers.Tokenizer.from_file(str(services.VOCABULARY))
    with services.serving(services.XDP, queue_count=2, cores=cores, work=work) as log:
        say(log.rstrip())
        step("Texts and their ids, over UDP and AF_XDP")
        with pintok.Client(SERVER_IPV4) as client:
            for text in SAMPLES:
                ids = client.encode(text)
                pieces = [reference.decode([int(i)], skip_special_tokens=False) for i in ids]
                say(f"\n  text    {text!r}")
                say(f"  ids     {' '.join(map(str, ids))}")
                say(f"  pieces  {'|'.join(pieces)!r}")
                back = client.decode(ids, skip_special_tokens=False)
                if back != text:
                    raise services.ServiceError(f"decoding gave {back!r}")
        step("Proof: the same texts and random cuts of real ones, against Hugging Face tokenizers")
        random_cuts = services.cuts(
            texts, count=PROOF_COUNT, bytes_max=services.CUT_BYTES_MAX, seed=1
        )
        services.prove(services.XDP, [*SAMPLES, *random_cuts], say=say)


def compare(
    work: Path, texts: Path, *, core: int, load_core: int, seconds: float
) -> list[dict[str, Any]]:
    """The services one after another, each alone on `core` and on a fresh link of one queue."""
    random_cuts = services.cuts(texts, count=300, bytes_max=services.CUT_BYTES_MAX, seed=2)
    rows = []
    for service in (services.XDP, services.SOCKET, services.HTTP):
        with services.serving(service, queue_count=1, cores=[core], work=work):
            services.prove(service, random_cuts, say=say)
            for size in SIZES:
                rows.append(measure(service, texts, size=size, core=load_core, seconds=seconds))
                say(f"  {service.name}: {size} B measured")
    return rows


def measure(
    service: services.Service, texts: Path, *, size: int, core: int, seconds: float
) -> dict[str, Any]:
    """One row of the table: alone, with one request under way, and full, with WINDOW."""

    def put(window: int, length: float) -> dict[str, Any]:
        return services.load(service, texts, size=size, window=window, seconds=length, core=core)

    put(1, 0.3)  # Connections, caches and clocks settle before anything is counted.
    alone, full = put(1, seconds), put(WINDOW, seconds)
    return {"service": service.name, "size": size, "alone": alone, "full": full}


def print_table(rows: list[dict[str, Any]]) -> None:
    step(f"Latency with one request under way; rate with {WINDOW} under way; one core each")
    say(
        f"\n  {'service':30} {'text':>7} {'p50 us':>9} {'p99 us':>9} {'p99.9 us':>9}"
        f" {'requests/s':>11} {'text MB/s':>10}"
    )
    for size in SIZES:
        say()
        for row in rows:
            if row["size"] != size:
                continue
            alone, full = row["alone"], row["full"]
            micro = [alone[key] / 1000 for key in ("p50_ns", "p99_ns", "p999_ns")]
            say(
                f"  {row['service']:30} {size:5} B {micro[0]:9.1f} {micro[1]:9.1f} {micro[2]:9.1f}"
                f" {full['requests_per_s']:11,} {full['text_mb_per_s']:10.1f}"
            )
    lost = sum(row[kind].get("lost", 0) for row in rows for kind in ("alone", "full"))
    say(f"\n  requests without an answer: {lost}")
    say(f"  {os.cpu_count()} CPUs, {services.cpu_name()}, Linux {os.uname().release}, veth")


def raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def inside(seconds: float) -> int:
    """The part that runs in the namespaces: this process is the client's side."""
    set_up_inside()
    allowed = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        work = Path(folder)
        texts = work / "texts"
        services.write_texts(texts)
        try:
            step("Starting pintok-server on a private veth link with two queues")
            show_ids(work, texts, allowed[-2:])
            step("Measuring: one service at a time, on the same core, link and texts")
            rows = compare(work, texts, core=allowed[-1], load_core=allowed[0], seconds=seconds)
        except (services.ServiceError, pintok.PinTokError) as error:
            say(f"\ndemo: {error}")
            return 1
    print_table(rows)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="length of each measurement (0.2 to 20)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 0.2 <= args.seconds <= 20:
        parser.error("--seconds must be from 0.2 to 20")
    if os.geteuid() != 0:
        parser.error("network namespaces and AF_XDP need root; run it with sudo")
    signal.signal(signal.SIGTERM, raise_exit)
    if args.inside:
        signal.signal(signal.SIGINT, raise_exit)
        return inside(args.seconds)
    try:
        with Hugepages(count=services.HUGEPAGE_COUNT) as pages:
            say(f"demo: {pages.free} free huge pages of 2 MB")
            words = [sys.executable, str(Path(__file__).resolve()), "--inside"]
            return run_inside([*words, "--seconds", str(args.seconds)])
    except KeyboardInterrupt:
        say("\ndemo: stopped; the link, the servers and the huge pages are gone")
        return 130


if __name__ == "__main__":
    sys.exit(main())
