"""Fuzzing of the doors that Python opens: `.model` files and chat templates.

    scripts/dev fuzz model 60
    scripts/dev fuzz template 60
    python -m tests.fuzz.doors template 60 --seed 7

Beside the files of `tests/corpus/TARGET`, an input whose outcome was not seen before (another
sentence of refusal, another kind of text) is mutated further. Anything but an answer or a refusal
in time is a find: its input lies under `native/build/fuzz/found/TARGET`, and the exit status is 1.
The charsmaps inside of `.model` files and the regular expressions have libFuzzer targets, too:
`norm` and `regex`.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence

from pintok._content import SpecialTokens
from pintok.chat import ChatTemplate, ChatTemplateError
from pintok.errors import ModelError, RefusedError
from pintok.tokenizer import Tokenizer
from pintok_server.vocab import formats, sources, writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACCEPTED = "accepted"
_SECONDS_MAX = 30.0
_LEN_MAX = 1 << 16
_INPUTS_MAX = 2000

_MODEL_TEXTS = ("", " ab\u3000AB  xyab e\u0301 \u00e9", "abc" * 40)
_SPECIAL = SpecialTokens(["<|end|>", "<s>"])
_MESSAGES = [
    {"role": "user", "content": "hello <|end|> 12"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
    {"role": "tool", "content": "x" * 1000},
]

Mutate = Callable[[bytes, Sequence[bytes], random.Random], bytes]


def open_model(data: bytes, folder: pathlib.Path) -> str:
    """Compile and use a `.model` file: ACCEPTED, or the sentence of its refusal."""
    path, image = folder / "fuzzed.model", folder / "fuzzed.image"
    path.write_bytes(data)
    try:
        source = sources.read(path)
        description = formats.describe(source)
        image.write_bytes(writer.write_image(description, fingerprint=source.fingerprint()))
        tokenizer = Tokenizer(image)
    except ModelError as refusal:
        return _sentence(refusal)
    for text in _MODEL_TEXTS:
        try:
            ids = tokenizer.encode_full(text).ids
            tokenizer.decode(ids, skip_special_tokens=True)
            tokenizer.decode(list(range(tokenizer.ids_end)))
        except RefusedError:
            pass
    return ACCEPTED


def render_template(data: bytes, folder: pathlib.Path) -> str:
    """Render a template, with the tokens of callers found: ACCEPTED or its refusal."""
    template = ChatTemplate({"default": data.decode("utf-8", "replace")})
    tools = [{"name": "f"}]
    try:
        text = template.render(_MESSAGES, tools=tools)
    except ChatTemplateError as refusal:
        return _sentence(refusal)
    try:
        content = template.render_content(_SPECIAL, _MESSAGES, tools=tools)
    except ChatTemplateError as refusal:
        return "with content: " + _sentence(refusal)
    assert content.text == text, "the policy changes the text"
    assert all(0 <= begin < end <= len(text) for begin, end in content.plain)
    return ACCEPTED if not content.plain else ACCEPTED + " with ranges"


def _sentence(refusal: Exception) -> str:
    sentence = str(refusal)
    assert sentence.strip(), "a refusal without a sentence"
    return sentence


def mutate_bytes(data: bytes, others: Sequence[bytes], source: random.Random) -> bytes:
    """Some bytes changed, flipped, removed or doubled."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        at = source.randrange(len(changed) + 1)
        action = source.randrange(5)
        if action == 0:
            changed[at : at + 1] = bytes([source.randrange(256)])
        elif action == 1 and at < len(changed):
            changed[at] ^= 1 << source.randrange(8)
        elif action == 2:
            del changed[at : at + source.randrange(1, 20)]
        else:
            changed[at:at] = _part(data if action == 3 else source.choice(others), source)
    return bytes(changed)


def mutate_text(data: bytes, others: Sequence[bytes], source: random.Random) -> bytes:
    """Parts put in from other texts, in place of some characters or between them."""
    text = data.decode("utf-8", "replace")
    for _ in range(source.choice((1, 2, 5))):
        at, end = sorted(source.choices(range(len(text) + 1), k=2))
        part = _part(source.choice(others), source).decode("utf-8", "replace")
        text = text[:at] + part + text[source.choice((at, min(end, at + 20))) :]
    return text.encode()


def _part(data: bytes, source: random.Random) -> bytes:
    cut = source.randrange(len(data) + 1)
    return data[cut : cut + source.randrange(40)]


TARGETS: dict[str, tuple[Callable[[bytes, pathlib.Path], str], Mutate]] = {
    "model": (open_model, mutate_bytes),
    "template": (render_template, mutate_text),
}


def fuzz(target: str, seconds: float, seed: int) -> int:
    """Mutate for so long; the number of finds."""
    attempt, mutate = TARGETS[target]
    source = random.Random(seed)
    inputs = [path.read_bytes() for path in sorted((ROOT / "tests/corpus" / target).iterdir())]
    waiting = list(inputs)
    seen: set[str] = set()
    runs = finds = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = waiting.pop() if waiting else mutate(source.choice(inputs), inputs, source)
            begin = time.process_time()
            try:
                outcome = re.sub(
                    r"'[^']*'|\"[^\"]*\"|\d+", "_", attempt(data, pathlib.Path(folder))
                )
                problem = "" if time.process_time() - begin < _SECONDS_MAX else "it takes too long"
            except Exception:
                outcome, problem = "", traceback.format_exc()
            runs += 1
            if problem:
                finds += 1
                print(f"{_keep(target, data)}: {problem}", flush=True)
            elif outcome not in seen and len(data) <= _LEN_MAX and len(inputs) < _INPUTS_MAX:
                seen.add(outcome)
                inputs.append(data)
    print(f"{target}: {runs} runs, {len(seen)} outcomes, {finds} finds, seed {seed}")
    return finds


def _keep(target: str, data: bytes) -> pathlib.Path:
    folder = ROOT / "native" / "build" / "fuzz" / "found" / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    args = parser.parse_args()
    return 1 if fuzz(args.target, args.seconds, args.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
