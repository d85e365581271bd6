#!/usr/bin/env python3
"""Record what both reference versions answer where they differ: tests/golden/profiles.json.gz.

Needs the installed tokenizers of the default profile and the environment of the other one, which
`scripts/gen_unicode.py --probe tokenizers_1_0` makes.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import sys
import tempfile

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pintok.profiles import PROFILES  # noqa: E402
from tests.unit.profile_models import (  # noqa: E402
    Candidate,
    candidate_python,
    differing,
    texts,
    variants,
)

OUT = ROOT / "tests" / "golden" / "profiles.json.gz"
# Of each range of differing characters the first and every so many behind it.
EVERY = 100


def main() -> int:
    python = candidate_python()
    if python is None or not tokenizers.__version__.startswith("0.23."):
        print("record_profiles: both versions of tokenizers are needed", file=sys.stderr)
        return 1
    cases = texts(differing(every=EVERY)[::4])
    candidate = Candidate(python)
    recorded = {}
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "tokenizer.json"
        for name, root in variants(cases):
            path.write_text(json.dumps(root), encoding="utf-8")
            old = tokenizers.Tokenizer.from_file(str(path))
            answers = candidate.ask(path, cases)["ids"]
            recorded[name] = {
                PROFILES[0]: [old.encode(text).ids for text in cases],
                PROFILES[1]: [ids for ids, _ in answers],
            }
    candidate.close()
    body = json.dumps({"texts": cases, "ids": recorded}, separators=(",", ":")).encode()
    OUT.write_bytes(gzip.compress(body, 9, mtime=0))
    print(f"wrote {OUT.relative_to(ROOT)}: {len(cases)} texts, {len(recorded)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
