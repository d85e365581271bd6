#!/usr/bin/env python3
"""Instructions that fixed texts take, kept in instructions.json: a gate that noise does not move.

    bench/instructions.py            count again and compare; exit 1 where something is worse
    bench/instructions.py --update   rewrite the figures, for review beside the change

Callgrind counts encode, count and decode of two generated texts of 8 KB, each with an empty and
with a warm cache of pieces, as on a CPU with AVX2 (which is what callgrind knows) and without. The
embedded vocabulary is always counted, one of each family where the reference data is there; an
update keeps what it cannot count. The figures belong to the compiler that they name: with another
one the comparison is skipped, and says so. More than TOLERANCE above a figure is an error; more
than NOTE below is a note to update.

The counts of one build differ by a few per mille from run to run: the cache's seed is random.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = ROOT / "bench" / "instructions.json"
TOLERANCE = 0.05
NOTE = 0.10
MODELS = ("default", "llama-3", "llama-2", "bert-base-uncased", "t5-small")
VARIANTS = {"avx2": "bench_op_avx2", "scalar": "bench_op_scalar"}
TEXT_BYTES = 8192
TIMEOUT_SECONDS = 240

Counts = dict[str, int]


class Unavailable(Exception):
    """What is needed to count is not here; the sentence says what."""


def texts() -> dict[str, str]:
    """ASCII and many scripts, from a seed: words by a skewed choice, as in real text."""
    rng = random.Random(1)

    def words(letters: str, count: int) -> list[str]:
        size = len(letters)
        return [
            "".join(
                letters[int(size * rng.random() ** 1.5)] for _ in range(1 + int(9 * rng.random()))
            )
            for _ in range(count)
        ]

    def prose(vocabulary: list[str], total: int) -> str:
        text = ""
        while len(text.encode()) < total:
            word = vocabulary[int(len(vocabulary) * rng.random() ** 3)]
            text += word + (" " if rng.random() < 0.85 else rng.choice((", ", ". ", "\n", " 42 ")))
        return text

    latin = words("etaoinshrdlucmfwypvbgkqjxz", 900)
    ascii_text = prose(
        [*latin, *(w.capitalize() for w in latin[:90]), "don't", "x_1", "=="], TEXT_BYTES
    )
    scripts = ("\u4e00", 900), ("\u3042", 80), ("\uac00", 900), ("\u0430", 32), ("\u0627", 30)
    scripts += ("\u0905", 50), ("\u0e01", 46), ("\u05d0", 27), ("\u03b1", 25)
    parts = [
        prose(words("".join(chr(ord(first) + i) for i in range(size)), 200), TEXT_BYTES // 9)
        for first, size in scripts
    ]
    return {"ascii": ascii_text, "scripts": "\n".join([*parts, "\U0001f600 \U0001f680"])}


def image_of(model: str) -> pathlib.Path | None:
    """The compiled model, or None where its source is not here."""
    sys.path.insert(0, str(ROOT))
    from pintok_server import vocab

    if model == "default":
        return pathlib.Path(vocab.load_image("default").path)
    for data in (os.environ.get("PINTOK_TEST_DATA"), ROOT.parent / "shared"):
        source = pathlib.Path(data or "/nonexistent") / "tokenizers" / model
        if source.is_dir():
            return pathlib.Path(vocab.load_image(str(source)).path)
    return None


def programs() -> dict[str, pathlib.Path]:
    """The counted programs, built when they are not current."""
    folder = ROOT / "native" / "build" / "release" / "bench"
    targets = [f"build/release/bench/{name}" for name in VARIANTS.values()]
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT / "native"), "BUILD=release", *targets],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"the programs do not build: {done.stderr[-300:]}")
    return {variant: folder / name for variant, name in VARIANTS.items()}


def compiler_of(program: pathlib.Path, image: pathlib.Path, text: pathlib.Path) -> tuple[str, str]:
    """Which compiler made the program, and which splitters it runs."""
    done = subprocess.run([str(program), str(image), str(text)], capture_output=True, text=True)
    found = re.match(r"compiler (.*), splitters (\w+)\n", done.stdout)
    if found is None:
        raise Unavailable(f"{program.name} does not run: {done.stderr[-300:]}")
    return found[1], found[2]


def count(program: pathlib.Path, image: pathlib.Path, folder: pathlib.Path) -> Counts:
    """TEXT/OPERATION/cold|hot to instructions, of one model and variant."""
    names = list(texts())
    out = folder / "callgrind.out"
    words = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    try:
        done = subprocess.run(
            [*words, str(program), str(image), *names],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise Unavailable("valgrind is not installed") from None
    if done.returncode != 0:
        raise RuntimeError(f"{program.name}: {done.stderr[-500:]}")
    counts = {}
    for path in folder.glob("callgrind.out.*"):
        dump = path.read_text(encoding="utf-8", errors="replace")
        label = re.search(r"^desc: Trigger: Client Request: (.+)$", dump, re.MULTILINE)
        total = re.search(r"^totals: (\d+)", dump, re.MULTILINE)
        if label is not None and total is not None:
            counts[label[1].strip()] = int(total[1])
        path.unlink()
    if len(counts) != 6 * len(names) or min(counts.values()) < 1000:
        raise RuntimeError(f"{program.name}: not {6 * len(names)} true counts: {counts}")
    return counts


def measure(models: tuple[str, ...] = MODELS) -> tuple[str, Counts]:
    """The compiler's name, and MODEL/VARIANT/TEXT/OPERATION/cold|hot to instructions."""
    built = programs()
    counts: Counts = {}
    compiler = ""
    with tempfile.TemporaryDirectory(prefix="pintok-instructions-") as scratch:
        folder = pathlib.Path(scratch)
        for name, text in texts().items():
            (folder / name).write_text(text, encoding="utf-8")
        for model in models:
            image = image_of(model)
            if image is None:
                continue
            for variant, program in built.items():
                compiler, splitters = compiler_of(program, image, folder / "ascii")
                if splitters != variant:
                    raise Unavailable(f"this CPU has no {variant}")
                for name, value in count(program, image, folder).items():
                    counts[f"{model}/{variant}/{name}"] = value
    return compiler, counts


def load() -> tuple[str, Counts]:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures["compiler"], figures["instructions"]


def compare(counts: Counts, kept: Counts) -> tuple[list[str], list[str]]:
    """(what has become worse, what has become so much better that the figures are stale)."""
    worse, better = [], []
    for name, value in counts.items():
        figure = kept.get(name)
        if figure is None:
            better.append(f"{name}: {value}, no figure kept")
        elif value > figure * (1 + TOLERANCE):
            worse.append(f"{name}: {value}, {value / figure - 1:+.1%} against {figure}")
        elif value < figure * (1 - NOTE):
            better.append(f"{name}: {value}, {value / figure - 1:+.1%} against {figure}")
    return worse, better


def update(compiler: str, counts: Counts) -> None:
    kept = load()[1] if FIGURES.exists() and load()[0] == compiler else {}
    known = {name: value for name, value in kept.items() if name.split("/")[0] in MODELS}
    figures = {"compiler": compiler, "instructions": dict(sorted({**known, **counts}.items()))}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{FIGURES.relative_to(ROOT)}: {len(counts)} figures of {compiler}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="rewrite the figures")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = parser.parse_args()
    try:
        compiler, counts = measure(tuple(args.models))
    except Unavailable as reason:
        raise SystemExit(f"instructions: {reason}") from None
    if args.update:
        update(compiler, counts)
        return 0
    kept_compiler, kept = load()
    if kept_compiler != compiler:
        print(f"instructions: the figures are of {kept_compiler}, this build is of {compiler}")
        return 0
    worse, better = compare(counts, kept)
    print("\n".join([*(f"WORSE {line}" for line in worse), *(f"better {line}" for line in better)]))
    print(f"{len(counts)} counted, {len(worse)} worse, {len(better)} better or new")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
