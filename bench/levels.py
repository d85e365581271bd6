#!/usr/bin/env python3
"""What a CPU without AVX-512, or without AVX2, makes of the engine: one C call, MB/s.

    bench/levels.py                          some models of each family, four kinds of text
    bench/levels.py --models llama-3 --texts english code --rounds 9

The same program in three variants that differ in what they believe the CPU can do, in turn, on one
core; the median of the rounds. Ids and decoded text of the whole text are compared before a time
counts. Vocabularies and texts are those of bench/engine.py.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import engine_texts  # noqa: E402
import instructions  # noqa: E402

LEVELS = {"AVX-512": "bench_encode", "AVX2": "bench_encode_avx2", "neither": "bench_encode_scalar"}
MODELS = ("default", "o200k_base", "llama-3", "llama-2", "bert-base-uncased", "t5-small")
MEASURED = {"fresh": "fresh_mb_s", "hot": "hot_mb_s", "decode": "decode_mb_s"}
SIZE = 1400
SECONDS = 0.15
TIMEOUT_SECONDS = 120

Json = dict[str, Any]


def build() -> dict[str, pathlib.Path]:
    """The programs of the levels that this CPU has."""
    folder = ROOT / "native" / "build" / "release" / "bench"
    targets = [f"build/release/bench/{name}" for name in LEVELS.values()]
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "native"), "BUILD=release", *targets], check=True
    )
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    able = {"AVX-512": "avx512_vbmi2" in flags, "AVX2": "avx2" in flags, "neither": True}
    return {level: folder / name for level, name in LEVELS.items() if able[level]}


def run(program: pathlib.Path, image: pathlib.Path, text: pathlib.Path, *options: str) -> Json:
    done = subprocess.run(
        [str(program), str(image), str(text), *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    found: Json = json.loads(done.stdout)
    return found


def measure(program: pathlib.Path, image: pathlib.Path, text: pathlib.Path) -> dict[str, float]:
    """MB/s of one run, by what was measured."""
    options = ("--lens", str(SIZE), "--what", ",".join(MEASURED), "--seconds", str(SECONDS))
    found = run(program, image, text, *options)
    return {what: float(found[key]) for what, key in MEASURED.items()}


def ids_sum(program: pathlib.Path, image: pathlib.Path, text: pathlib.Path, size: int) -> int:
    """A checksum of all ids of a text, in calls of `size` bytes, and of what they decode to."""
    return int(run(program, image, text, "--lens", str(size), "--what", "ids")["ids_crc32c"])


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--texts", nargs="+", choices=engine_texts.FILES, default=engine_texts.FILES
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    programs = build()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    head = [f"{what}, {level}" for what in MEASURED for level in programs]
    print("| model | text | " + " | ".join(head) + " |")
    print("|---|---|" + "---|" * len(head))
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.texts:
            path = pathlib.Path(folder) / kind
            path.write_text(engine_texts.load_source(engine_texts.data_root(), kind).text)
        for model in options.models:
            image = instructions.image_of(model)
            for kind in options.texts if image is not None else ():
                path = pathlib.Path(folder) / kind
                sums = {ids_sum(program, image, path, SIZE) for program in programs.values()}
                if len(sums) != 1:
                    sys.exit(f"{model}, {kind}: the levels have different ids")
                runs: dict[str, list[dict[str, float]]] = {level: [] for level in programs}
                for _ in range(options.rounds):
                    for level, program in programs.items():
                        runs[level].append(measure(program, image, path))
                cells = [
                    f"{statistics.median(run[what] for run in runs[level]):.0f}"
                    for what in MEASURED
                    for level in programs
                ]
                print(f"| {model} | {kind} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
