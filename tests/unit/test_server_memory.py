"""The datapath's memory after its start stays as it is, with a model of every family at work."""

from __future__ import annotations

import os
import pathlib
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")

import vocab_models

from pintok.client import Client
from pintok.encoding import PlainRange, Truncation
from pintok.stream import Step
from tests.server_process import Instance, free_port
from tests.unit import spm_file as spm

GROWTH_MAX = 1 << 18
"""Pages that only now are touched for the first time; the texts below have ten times as much."""
PIECES = (
    *spm.BASE,
    *((char, -3.0 - index / 8, spm.NORMAL) for index, char in enumerate("\u2581thein\u00e9")),
    *((text, -2.0, spm.NORMAL) for text in ("th", "the", "\u2581the", "in")),
)
UNITS = ("a", " ", "7", "!", "\u0301", "\u4e2d", "\U0001f600", "the thing ", "<s><|end|>", "'s")


def write_models(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """A model of every algorithm and format."""
    paths = {
        name: vocab_models.write(folder / name, getattr(vocab_models, name)())
        for name in ("byte_level", "sentencepiece_bpe", "unigram", "wordpiece", "wordlevel")
    }
    paths["tiktoken"] = vocab_models.write_tiktoken(folder / "tiktoken")
    paths["tekken"] = vocab_models.write_tekken(folder / "tekken")
    for name, kind in (("spm_unigram", spm.UNIGRAM), ("spm_bpe", spm.BPE), ("spm_char", spm.CHAR)):
        (folder / name).mkdir()
        paths[name] = folder / name / "tokenizer.model"
        paths[name].write_bytes(spm.model(PIECES, kind=kind))
    return paths


def texts(seed: int) -> Iterator[str]:
    """Short, long and hostile ones; each seed gives others of the same lengths."""
    source = random.Random(seed)
    yield ""
    for unit in UNITS:
        yield unit * (15_000 // len(unit.encode()))
    for length in (10, 100, 1000, 10_000, 100_000):
        yield "".join(source.choices("theinao  \n\u00e9\u4e2d7<|>", k=length))


def work(client: Client, seed: int) -> int:
    """Everything that a model can be asked for; the bytes of the texts."""
    total = 0
    for text in texts(seed):
        data = text.encode()
        total += len(data)
        ids = client.encode(text)
        assert client.count(text) == len(ids)
        client.decode(ids)
        client.encode_full(text, truncation=Truncation(500, 20))
        if data:
            client.encode_plain(text, [PlainRange(0, len(data))])
        short = text[:2000]
        client.encode_full(short, pair=short)
        steps = [Step(ids[:4].tolist(), 0, 4, False)] * 8 if len(ids) >= 4 else []
        client.decode_steps(steps)
    generator = np.random.default_rng(seed)
    client.decode(generator.integers(0, 400, 20_000).astype(np.uint32))
    return total


def memory(pid: int) -> dict[str, int]:
    """Bytes mapped, and bytes resident."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmSize|VmRSS):\s+(\d+) kB$", status, re.MULTILINE))
    return {name: int(value) << 10 for name, value in found.items()}


def test_memory_stays_fixed_whatever_the_models_are_asked(tmp_path: pathlib.Path) -> None:
    """What was mapped at the start is all there is: nothing is allocated for a text."""
    port = free_port()
    core = max(os.sched_getaffinity(0))
    words = [f"--port={port}", "--path=socket", "--address=127.0.0.1", f"--cores={core}"]
    words.append("--models-max=16")
    models = write_models(tmp_path)
    instance = Instance(tmp_path, words)
    try:
        names = [f"--model={name}={path}" for name, path in models.items()]
        pid = instance.start(*names).ready["pid"]
        clients = [Client("127.0.0.1", port, model=name, timeout=60) for name in models]
        for client in clients:
            work(client, 1)
        before = memory(pid)
        sent = sum(work(client, 2) for client in clients)
        after = memory(pid)
        for client in clients:
            client.close()
    finally:
        instance.close()
    assert sent > 10 * GROWTH_MAX
    assert after["VmSize"] == before["VmSize"]
    assert after["VmRSS"] - before["VmRSS"] < GROWTH_MAX
