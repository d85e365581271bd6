"""Random and hostile texts under the models with normalizers, beside the reference.

    python -m tests.golden.families [--models NAME ...] [--texts 100000] [--seed 1]

compares ids with `tokenizers` of the test environment, text by text, for every WordPiece, Unigram
and WordLevel model of the test data, and prints one line a model; any difference is shown as the
shortest text that has it and makes the exit code 1. Texts are made of what these pipelines are
sensitive to: white space of all kinds, marks, prefixes of grapheme clusters, ideographs,
punctuation, letters that change, runs whose segmentations tie. Texts come again in other
surroundings, so that what a cache knows is asked, too. Alternating texts are asked for offsets,
which takes the way that knows no cache of segments.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import random
import sys
import unicodedata
from collections.abc import Sequence

import tokenizers

from pintok import Tokenizer
from tests.golden import cases

MODELS = (
    "bert-base-uncased bert-base-cased bert-base-chinese bert-base-multilingual-cased "
    "all-minilm-l6-v2 gte-small t5-small xlnet-base-cased xlm-roberta-base xlm-roberta-metaspace "
    "ms-nmt-unigram lab-unigram-bytefallback lab-flags-t5 lab-wordlevel"
).split()

SPACES = [" ", " ", " ", "\n", "\t", "\r", "\r\n", "\u00a0", "\u0085", "\u2003", "\u3000", "\u2028",
          "\u200b", "\ufeff", "\u1680", "\x0b", "\x0c", "\x1f"]  # fmt: skip
MARKS = ["\u0301", "\u0308", "\u0323", "\u0345", "\u094d", "\u093f", "\u0903", "\u200d", "\ufe0f",
         "\u3099", "\uff9e", "\u20dd", "\U0001f3fb", "\u302e", "\U0001d165", "\u0e31"]  # fmt: skip
ODD = ["\u0600", "\u06dd", "\U000110bd", "\u0130", "\u1e9e", "\u03a3", "\ufb01", "\u00a8", "\u037e",
       "\u226e", "\u1fef", "\u212a", "\u2126", "\ufdfa", "\u2581", "``", "''", "\x00", "\x01",
       "\x7f", "\ufffd", "\U0002fa2f", "\u1100", "\u1161", "\u11a8", "\uac00", "\u0344", "\ufc5e",
       "\u061d", "\u2e2f", "\u0378", "\ue000", "\U000e0001", "\U00020000", "##"]  # fmt: skip
SCRIPTS = [(0x21, 0x7E), (0x61, 0x7A), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x45F),
           (0x5D0, 0x5EA), (0x620, 0x652), (0x904, 0x94D), (0xE01, 0xE4E), (0x1E00, 0x1EFF),
           (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2100, 0x214F), (0x3041, 0x30FE),
           (0x4E00, 0x4FFF), (0xAC00, 0xAD00), (0xF900, 0xFAFF), (0xFE70, 0xFEFF),
           (0xFF01, 0xFFEF), (0x1F300, 0x1F64F), (0x20000, 0x200FF)]  # fmt: skip


def character(source: random.Random) -> str:
    """One character: of a script, or any at all."""
    if source.random() < 0.03:
        while True:
            code_point = source.randrange(0x110000)
            if not 0xD800 <= code_point < 0xE000:
                return chr(code_point)
    first, last = source.choice(SCRIPTS)
    return chr(source.randint(first, last))


def word(source: random.Random) -> str:
    """A few characters of one script, perhaps with something odd in or around them."""
    kind = source.random()
    if kind < 0.1:
        return source.choice("aA\u4e2d!\u0430.\u3042\u0e01") * source.randint(1, 12)
    first, last = source.choice(SCRIPTS)
    letters = [chr(source.randint(first, last)) for _ in range(source.randint(1, 8))]
    for odd in (MARKS, ODD):
        if source.random() < 0.25:
            letters.insert(source.randint(0, len(letters)), source.choice(odd))
    return "".join(letters)


def texts_of(source: random.Random, words: Sequence[str], count: int) -> list[str]:
    """Texts of words of the language and made ones, joined in every way."""
    known = [word(source) for _ in range(2000)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(source.choice((1, 2, 3, 5, 8, 20))):
            kind = source.random()
            part = source.choice(known) if kind < 0.4 else word(source)
            if kind > 0.7 and words:
                part = source.choice(words)
            if source.random() < 0.05:
                part = character(source)
            parts.append(part)
            if source.random() < 0.75:
                parts.append(source.choice(SPACES) * source.choice((1, 1, 1, 2, 3)))
            if source.random() < 0.15:
                parts.append(source.choice(",.:;()[]{}\"'-_/\u3002\u060c\u201c\u2019"))
            if source.random() < 0.08:
                parts.append(source.choice(MARKS))
            if source.random() < 0.08:
                parts.append(source.choice(ODD))
        texts.append("".join(parts))
    return texts


def corpus_words(root: pathlib.Path, source: random.Random) -> list[str]:
    """Words of real texts in many languages, with their punctuation."""
    words: list[str] = []
    for path in sorted((root / "corpora").glob("*.txt*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        begin = source.randrange(max(1, len(data) - 20000))
        words += data[begin : begin + 20000].decode("utf-8", "ignore").split()
    return [one[:40] for one in words]


def shortest_difference(tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str) -> str:
    """A text made of `text` by leaving out characters that still differs."""

    def differs(candidate: str) -> bool:
        wanted = reference.encode(candidate).ids
        return tokenizer.encode(candidate).tolist() != wanted

    if not differs(text):
        return text  # Only what was asked before makes the difference.
    at = 0
    while at < len(text):
        shorter = text[:at] + text[at + 1 :]
        if differs(shorter):
            text = shorter
        else:
            at += 1
    return text


def compare(root: pathlib.Path, name: str, count: int, seed: int) -> list[str]:
    """Texts whose ids differ, a sentence each; empty where all agree."""
    model = cases.model_path(root / "tokenizers" / name, "hf")
    packed = model.read_bytes()
    plain = gzip.decompress(packed) if model.suffix == ".gz" else packed
    reference = tokenizers.Tokenizer.from_str(json.dumps(json.loads(plain)))
    reference.no_truncation()
    reference.no_padding()
    tokenizer = Tokenizer.from_file(model)
    source = random.Random(f"{seed} {name}")
    words = corpus_words(root, source)
    differences = []
    done = 0
    while done < count and len(differences) < 5:
        texts = texts_of(source, words, min(2000, count - done))
        done += len(texts)
        for number, (text, wanted) in enumerate(
            zip(texts, reference.encode_batch_fast(texts), strict=True)
        ):
            got = tokenizer.encode(text).tolist()
            if number % 16 == 0 and got == wanted.ids:
                got = tokenizer.encode_full(text).ids.tolist()
            if number % 16 == 1 and tokenizer.count(text) != len(wanted.ids):
                differences.append(f"{name}: the count of {text!r}")
            if got != wanted.ids:
                short = shortest_difference(tokenizer, reference, text)
                names = [unicodedata.name(c, hex(ord(c))) for c in short[:12]]
                differences.append(f"{name}: {short!r} ({', '.join(names)})")
                break
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    root = cases.data_root()
    if root is None:
        print("the test data is not here: set PINTOK_TEST_DATA")
        return 2
    failed = False
    for name in args.models:
        differences = compare(root, name, args.texts, args.seed)
        failed |= bool(differences)
        print(f"{name:28} {args.texts} texts, {'differs' if differences else 'equal'}", flush=True)
        for line in differences:
            print(f"    {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
