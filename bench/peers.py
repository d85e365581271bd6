"""One tokenizer library in one process: the worker that `bench/engine.py` drives.

    python bench/peers.py PEER

reads one JSON command a line on standard input and answers each with one JSON line. Every peer is
called with its fastest result type and gives plain ids, without special tokens of a post-processor.
Only one worker is told to work at a time, so that rounds interleave on one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Encode = Callable[[str], Any]


class Peer:
    """A loaded model of one library; None where the library has no such call."""

    def __init__(
        self,
        encode: Encode,
        *,
        decode: Callable[[Any], Any] | None = None,
        count: Encode | None = None,
        ids: Callable[[Any], Sequence[int]] = lambda result: result,
        special: bool = False,
    ) -> None:
        self.encode = encode
        self.decode = decode
        self.count = count
        self.ids = ids
        self.encode_special: Encode | None = None  # the reference only: with special tokens
        self.special = special  # its fast call adds the post-processor's special tokens


def open_pintok(model: pathlib.Path) -> Peer:
    from pintok import Tokenizer

    tokenizer = Tokenizer.from_file(model)
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=tokenizer.decode,
        count=lambda text: tokenizer.count(text, add_special_tokens=False),
    )


def open_tokenizers(model: pathlib.Path) -> Peer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    peer = Peer(
        lambda text: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )
    peer.encode_special = lambda text: tokenizer.encode(text).ids
    return peer


def open_tokenizers1(model: pathlib.Path) -> Peer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids_array,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )


def open_tiktoken(model: pathlib.Path) -> Peer:
    import base64

    import tiktoken

    spec = json.loads((model.parent / "encoding.json").read_text(encoding="utf-8"))
    lines = (model.parent / spec["ranks_file"]).read_text(encoding="utf-8").splitlines()
    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in lines if line)}
    encoding = tiktoken.Encoding(
        model.parent.name,
        pat_str=spec["pat_str"],
        mergeable_ranks=ranks,
        special_tokens=spec["special_tokens"],
    )
    return Peer(
        lambda text: encoding.encode(text, allowed_special="all"), decode=encoding.decode_bytes
    )


def open_gigatoken(model: pathlib.Path) -> Peer:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(str(model))
    return Peer(tokenizer.encode, decode=tokenizer.decode)


def open_fastokens(model: pathlib.Path) -> Peer:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=tokenizer.decode,
        ids=lambda result: getattr(result, "ids", result),
    )


def open_nanotoken(model: pathlib.Path) -> Peer:
    import nanotoken

    tokenizer = nanotoken.Tokenizer.from_json(model.read_text(encoding="utf-8"))
    return Peer(lambda text: tokenizer.encode(text, add_special_tokens=False))


def open_splintr(model: pathlib.Path) -> Peer:
    import numpy as np
    import splintr

    tokenizer = splintr.from_json(str(model))
    return Peer(
        tokenizer.encode_flat,
        decode=tokenizer.decode_bytes,
        ids=lambda result: np.frombuffer(result, dtype=np.uint32),
        special=True,
    )


def open_tokie(model: pathlib.Path) -> Peer:
    import tokie

    tokenizer = tokie.Tokenizer.from_json(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=tokenizer.decode_bytes,
        count=tokenizer.count_tokens,
        ids=lambda result: result.ids,
    )


def open_kitoken(model: pathlib.Path) -> Peer:
    import kitoken

    tokenizer = kitoken.Kitoken.from_tokenizers_file(str(model))
    return Peer(lambda text: tokenizer.encode(text, True), decode=tokenizer.decode)


def open_iree(model: pathlib.Path) -> Peer:
    from iree.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(str(model))
    return Peer(lambda text: tokenizer.encode(text), decode=tokenizer.decode)


def open_sentencepiece(model: pathlib.Path) -> Peer:
    import sentencepiece

    paths = sorted(model.parent.glob("*.model"))
    if not paths:
        raise FileNotFoundError(f"no .model beside {model.name}")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(paths[0]))
    return Peer(processor.encode, decode=processor.decode)


OPENERS: dict[str, Callable[[pathlib.Path], Peer]] = {
    "pintok": open_pintok,
    "tokenizers": open_tokenizers,
    "tokenizers1": open_tokenizers1,
    "tiktoken": open_tiktoken,
    "gigatoken": open_gigatoken,
    "fastokens": open_fastokens,
    "nanotoken": open_nanotoken,
    "splintr": open_splintr,
    "tokie": open_tokie,
    "kitoken": open_kitoken,
    "iree": open_iree,
    "sentencepiece": open_sentencepiece,
}


def digest(ids: Sequence[int]) -> str:
    """A short hash of an id list, equal between libraries whatever their result type."""
    import numpy as np

    array = np.ascontiguousarray(np.asarray(ids, dtype=np.uint32))
    return hashlib.blake2b(array.tobytes(), digest_size=12).hexdigest()


def resident_bytes() -> int:
    """Memory of this process now, from the kernel."""
    fields = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def read_texts(path: str) -> list[str]:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def time_calls(call: Callable[[Any], Any], items: Sequence[Any]) -> dict[str, Any]:
    """Total time of all calls, without a clock between them."""
    begin = time.perf_counter_ns()
    for item in items:
        call(item)
    return {"ns": time.perf_counter_ns() - begin, "calls": len(items)}


def time_each(call: Callable[[Any], Any], items: Sequence[Any]) -> dict[str, Any]:
    """Every call on its own: quantiles in ns."""
    clock = time.perf_counter_ns
    times = []
    for item in items:
        begin = clock()
        call(item)
        times.append(clock() - begin)
    times.sort()
    return {"p50_ns": times[len(times) // 2], "p99_ns": times[len(times) * 99 // 100]}


class Worker:
    """Carries out commands for one library."""

    def __init__(self, name: str) -> None:
        self.opener = OPENERS[name]
        self.peer: Peer | None = None

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        before = resident_bytes()
        begin = time.perf_counter_ns()
        self.peer = self.opener(pathlib.Path(command["model"]))
        self.peer.encode("warm")
        elapsed = time.perf_counter_ns() - begin
        return {"load_ns": elapsed, "memory_bytes": resident_bytes() - before}

    def check(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.peer is not None
        results = []
        for text in read_texts(command["texts"]):
            try:
                results.append(digest(self.peer.ids(self.peer.encode(text))))
            except Exception as error:  # A peer may raise whatever it likes.
                results.append(f"{type(error).__name__}")
        answer = {"digests": results, "special": self.peer.special}
        if self.peer.encode_special is not None:
            special = self.peer.encode_special
            answer["digests_special"] = [
                digest(special(text)) for text in read_texts(command["texts"])
            ]
        return answer

    def time(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.peer is not None
        texts = read_texts(command["texts"])
        what = command["what"]
        if what == "encode":
            return time_calls(self.peer.encode, texts)
        if what == "latency":
            return time_each(self.peer.encode, texts)
        if what == "count" and self.peer.count is not None:
            return time_calls(self.peer.count, texts)
        if what == "decode" and self.peer.decode is not None:
            lists = [self.peer.ids(self.peer.encode(text)) for text in texts]
            return time_calls(self.peer.decode, lists)
        return {"none": True}


def main() -> int:
    worker = Worker(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints must not mix with the answers.
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command["do"])(command)
        except BaseException as error:  # Rust panics arrive as BaseException.
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        out.write(json.dumps(answer) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
