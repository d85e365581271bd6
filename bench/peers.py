"""One tokenizer library in one process: the worker that `bench/engine.py` drives.

    python bench/peers.py PEER

reads one JSON command a line on standard input and answers each with one JSON line. Every peer is
called with its fastest result type and gives plain ids, without special tokens of a post-processor
unless its fast call cannot do without them. Only one worker is told to work at a time, so that
rounds interleave on one core.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Encode = Callable[[str], Any]

DECODE_PASSES = 4
# Texts of 1.4 KB that are encoded again before a block is timed: about what a second cache holds.
AGAIN_TEXTS = 180


class Peer:
    """A loaded model of one library; None where the library has no such call."""

    def __init__(
        self,
        encode: Encode,
        *,
        batch: Callable[[list[str]], Any] | None = None,
        count: Encode | None = None,
        decode: Callable[[Any], str | bytes | None] | None = None,
        stream: Callable[[], Callable[[int], Any]] | None = None,
        ids: Callable[[Any], Sequence[int]] = lambda result: result,
        arrays: bool = False,
        special: Encode | None = None,
        adds_special: bool = False,
    ) -> None:
        self.encode = encode
        self.batch = batch
        self.count = count or encode  # a library without a count has to encode
        self.counts = count is not None
        self.decode = decode
        self.stream = stream  # makes a stream: the function of one step
        self.ids = ids
        self.arrays = arrays  # decodes a numpy array faster than a list
        self.special = special  # the reference only: ids with special tokens
        self.adds_special = adds_special  # its fast call adds the post-processor's special tokens


def open_pintok(model: pathlib.Path) -> Peer:
    from pintok import Tokenizer
    from pintok.stream import DecodeStream

    tokenizer = Tokenizer.from_file(model)
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        batch=lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False),
        count=lambda text: tokenizer.count(text, add_special_tokens=False),
        decode=tokenizer.decode,
        stream=lambda: DecodeStream(tokenizer, skip_special_tokens=False).step,
        arrays=True,
    )


def open_tokenizers(model: pathlib.Path) -> Peer:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    tokenizer = Tokenizer.from_file(str(model))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def stream() -> Callable[[int], Any]:
        step = DecodeStream(skip_special_tokens=False).step
        return lambda token_id: step(tokenizer, token_id)

    return Peer(
        lambda text: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids,
        batch=lambda texts: [
            encoding.ids
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ],
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        stream=stream,
        special=lambda text: tokenizer.encode(text).ids,
    )


def open_tokenizers1(model: pathlib.Path) -> Peer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids_array,
        batch=lambda texts: [
            encoding.ids_array
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        ],
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        arrays=True,
    )


def tiktoken_parts(model: pathlib.Path) -> tuple[dict[str, Any], dict[bytes, int]]:
    """Pattern, special tokens and ranks; FileNotFoundError for models of other kinds."""
    path = model.with_name("encoding.json")
    if not path.exists():
        raise FileNotFoundError("no encoding.json with ranks and pattern beside tokenizer.json")
    spec = json.loads(path.read_text(encoding="utf-8"))
    lines = (model.parent / spec["ranks_file"]).read_text(encoding="utf-8").splitlines()
    return spec, {base64.b64decode(a): int(b) for a, b in (line.split() for line in lines if line)}


def open_tiktoken(model: pathlib.Path) -> Peer:
    import tiktoken

    spec, ranks = tiktoken_parts(model)
    encoding = tiktoken.Encoding(
        model.parent.name,
        pat_str=spec["pat_str"],
        mergeable_ranks=ranks,
        special_tokens=spec["special_tokens"],
    )
    return Peer(
        lambda text: encoding.encode(text, allowed_special="all"),
        batch=lambda texts: encoding.encode_batch(texts, num_threads=1, allowed_special="all"),
        decode=encoding.decode_bytes,
    )


def open_riptoken(model: pathlib.Path) -> Peer:
    import riptoken

    spec, ranks = tiktoken_parts(model)
    core = riptoken.CoreBPE(ranks, spec["special_tokens"], spec["pat_str"])
    return Peer(
        core.encode_ordinary,
        batch=core.encode_ordinary_batch,
        decode=core.decode_bytes,
    )


def open_gigatoken(model: pathlib.Path) -> Peer:
    import gigatoken

    backend = gigatoken.Tokenizer(str(model)).backend
    return Peer(
        backend.encode,
        batch=lambda texts: backend.encode_batch(texts, parallel=False),
        decode=backend.decode,
        arrays=True,
    )


def open_fastokens(model: pathlib.Path) -> Peer:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        batch=tokenizer.encode_batch_flat,
        decode=tokenizer.decode,
        ids=lambda result: getattr(result, "ids", result),
    )


def open_basetenkenizer(model: pathlib.Path) -> Peer:
    import basetenkenizer

    tokenizer = basetenkenizer.Tokenizer.from_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        batch=tokenizer.encode_batch,
        decode=tokenizer.decode,
        ids=lambda result: getattr(result, "ids", result),
    )


def open_nanotoken(model: pathlib.Path) -> Peer:
    import nanotoken

    tokenizer = nanotoken.Tokenizer.from_json(model.read_text(encoding="utf-8"))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        batch=lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False),
        decode=tokenizer.decode,
        arrays=True,
    )


def open_splintr(model: pathlib.Path) -> Peer:
    import numpy as np
    import splintr

    tokenizer = splintr.from_json(str(model))
    return Peer(
        tokenizer.encode_flat,
        batch=tokenizer.encode_batch_flat,
        decode=getattr(tokenizer, "decode_with_special", tokenizer.decode_bytes),
        stream=lambda: tokenizer.streaming_decoder_with_special().add_token,
        ids=lambda result: np.frombuffer(result, dtype=np.uint32),
        adds_special=True,
    )


def open_tokie(model: pathlib.Path) -> Peer:
    import tokie

    tokenizer = tokie.Tokenizer.from_json(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        batch=lambda texts: tokenizer.encode_batch_flat(texts, add_special_tokens=False),
        decode=tokenizer.decode_bytes,
        count=tokenizer.count_tokens,
        ids=lambda result: result.ids,
    )


def open_kitoken(model: pathlib.Path) -> Peer:
    import kitoken

    tokenizer = kitoken.Kitoken.from_tokenizers_file(str(model))
    return Peer(
        lambda text: tokenizer.encode(text, True),
        batch=lambda texts: tokenizer.encode_all(texts, True),
        decode=lambda ids: tokenizer.decode(ids, True),
    )


def open_iree(model: pathlib.Path) -> Peer:
    from iree.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(str(model))

    def stream() -> Callable[[int], Any]:
        feed = tokenizer.decode_stream().feed
        return lambda token_id: feed([token_id])

    return Peer(
        tokenizer.encode_to_array,
        batch=tokenizer.encode_batch_to_array,
        decode=tokenizer.decode,
        stream=stream,
    )


def open_quicktok(model: pathlib.Path) -> Peer:
    import quicktok

    bundled = {
        "cl100k_base": "cl100k_base",
        "o200k_base": "o200k_base",
        "llama-3": "llama3",
        "qwen2.5": "qwen3",
    }
    if model.parent.name not in bundled:
        raise FileNotFoundError("the library does not bundle this vocabulary")
    encoding = quicktok.get_encoding(bundled[model.parent.name])
    return Peer(
        encoding.encode_ordinary,
        batch=lambda texts: encoding.encode_batch(texts, threads=1),
        count=encoding.count,
        decode=encoding.decode_bytes,
    )


def open_wordchipper(model: pathlib.Path) -> Peer:
    import wordchipper

    name = model.parent.name
    ranks = model.with_name(f"{name}.tiktoken")
    if name not in ("cl100k_base", "o200k_base") or not ranks.exists():
        raise FileNotFoundError("the library does not know this vocabulary")
    # It downloads ranks by its own names; without a network it takes an empty file for them.
    cached = model.parent / "wordchipper" / "openai" / name / ranks.name
    cached.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ranks, cached)
    os.environ["WORDCHIPPER_CACHE_DIR"] = str(model.parent / "wordchipper")
    tokenizer = wordchipper.Tokenizer.from_pretrained(name)
    return Peer(tokenizer.encode, batch=tokenizer.encode_batch, decode=tokenizer.decode)


def open_rs_bpe(model: pathlib.Path) -> Peer:
    from rs_bpe.bpe import openai

    makers = {"cl100k_base": openai.cl100k_base, "o200k_base": openai.o200k_base}
    if model.parent.name not in makers:
        raise FileNotFoundError("the library does not bundle this vocabulary")
    tokenizer = makers[model.parent.name]()
    return Peer(tokenizer.encode, count=tokenizer.count, decode=tokenizer.decode)


def open_bpe_qwen(model: pathlib.Path) -> Peer:
    import bpe_qwen

    if not model.parent.name.startswith("qwen"):
        raise FileNotFoundError("the library runs Qwen vocabularies only")
    source = json.loads(model.read_text(encoding="utf-8"))["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["merges"]]
    (model.parent / "vocab.json").write_text(json.dumps(source["vocab"]), encoding="utf-8")
    (model.parent / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = bpe_qwen.QwenTokenizer(str(model.parent))
    return Peer(tokenizer.encode, decode=tokenizer.decode)


def open_flash(model: pathlib.Path) -> Peer:
    from flash_tokenizer import BertTokenizerFlash

    source = json.loads(model.read_text(encoding="utf-8"))
    if "continuing_subword_prefix" not in source["model"] or "merges" in source["model"]:
        raise FileNotFoundError("the library runs BERT vocabularies only")
    tokens = sorted(source["model"]["vocab"].items(), key=lambda item: item[1])
    vocab = model.with_name("vocab.txt")
    vocab.write_text("\n".join(token for token, _ in tokens) + "\n", encoding="utf-8")
    lower = bool(source["normalizer"]["lowercase"])
    tokenizer = BertTokenizerFlash(str(vocab), do_lower_case=lower, model_max_length=1 << 30)
    call = tokenizer.tokenizer
    return Peer(
        lambda text: call.encode(text, "longest", 1 << 30),
        batch=lambda texts: call.batch_encode(texts, "longest", 1 << 30, False),
        adds_special=True,
    )


def open_sentencepiece(model: pathlib.Path) -> Peer:
    import sentencepiece

    paths = sorted(model.parent.glob("*.model"))
    if not paths:
        raise FileNotFoundError(f"no .model beside {model.name}")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(paths[0]))
    return Peer(processor.encode, batch=processor.encode, decode=processor.decode)


# The module is imported before the clock of a load starts.
OPENERS: dict[str, tuple[str, Callable[[pathlib.Path], Peer]]] = {
    "pintok": ("pintok.tokenizer", open_pintok),
    "tokenizers": ("tokenizers", open_tokenizers),
    "tokenizers1": ("tokenizers", open_tokenizers1),
    "tiktoken": ("tiktoken", open_tiktoken),
    "gigatoken": ("gigatoken", open_gigatoken),
    "fastokens": ("fastokens", open_fastokens),
    "basetenkenizer": ("basetenkenizer", open_basetenkenizer),
    "nanotoken": ("nanotoken", open_nanotoken),
    "splintr": ("splintr", open_splintr),
    "tokie": ("tokie", open_tokie),
    "kitoken": ("kitoken", open_kitoken),
    "iree": ("iree.tokenizer", open_iree),
    "quicktok": ("quicktok", open_quicktok),
    "riptoken": ("riptoken", open_riptoken),
    "wordchipper": ("wordchipper", open_wordchipper),
    "rs_bpe": ("rs_bpe", open_rs_bpe),
    "bpe_qwen": ("bpe_qwen", open_bpe_qwen),
    "flash": ("flash_tokenizer", open_flash),
    "sentencepiece": ("sentencepiece", open_sentencepiece),
}


def digest(ids: Sequence[int]) -> str:
    """A short hash of an id list, equal between libraries whatever their result type."""
    import numpy as np

    array = np.ascontiguousarray(np.asarray(ids, dtype=np.uint32))
    return hashlib.blake2b(array.tobytes(), digest_size=12).hexdigest()


def text_digest(text: str | bytes | None) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text or b"")
    # Bytes that are not UTF-8 count as the U+FFFD that a decoder to str gives for them.
    data = data.decode("utf-8", "replace").encode()
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def memory_bytes() -> int:
    """Memory of this process, its share of what it shares, and its hugepages."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what a loader has freed does not count
    total = 0
    for line in pathlib.Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("Pss", "Private_Hugetlb", "Shared_Hugetlb"):
            total += int(value.split()[0]) * 1024
    return total


def read_json(path: str) -> Any:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


class Clock:
    """Wall time and processor time of a block; the collector of garbage rests meanwhile.

    `before` runs first and is not timed: it brings back into the caches what other processes, the
    texts' file and the collector have pushed out.
    """

    def __init__(self, before: Callable[[], object]) -> None:
        self.before = before

    def __enter__(self) -> Clock:
        gc.collect()
        gc.disable()
        self.before()
        self.cpu_ns = -time.process_time_ns()
        self.ns = -time.perf_counter_ns()
        return self

    def __exit__(self, *error: object) -> None:
        self.ns += time.perf_counter_ns()
        self.cpu_ns += time.process_time_ns()
        gc.enable()

    def result(self) -> dict[str, Any]:
        return {"ns": max(1, self.ns), "cpu_ns": max(1, self.cpu_ns)}


def run_calls(call: Callable[[Any], Any], items: Sequence[Any]) -> None:
    for item in items:
        call(item)


def time_calls(
    call: Callable[[Any], Any], items: Sequence[Any], before: Callable[[], object]
) -> dict[str, Any]:
    """Total time of all calls, without a clock between them."""
    with Clock(before) as clock:
        run_calls(call, items)
    return clock.result()


def time_each(
    call: Callable[[Any], Any], items: Sequence[Any], before: Callable[[], object]
) -> dict[str, Any]:
    """Every call on its own: quantiles in ns."""
    clock = time.perf_counter_ns
    times = []
    with Clock(before) as whole:
        for item in items:
            begin = clock()
            call(item)
            times.append(clock() - begin)
    times.sort()
    return {
        **whole.result(),
        "p50_ns": times[len(times) // 2],
        "p99_ns": times[len(times) * 99 // 100],
    }


def time_passes(call: Callable[[Any], Any], items: Sequence[Any]) -> dict[str, Any]:
    """As time_calls, several times over, by pass, after a pass that is not timed: calls are short,
    and ids need not be fresh."""
    result = time_calls(call, [*items] * DECODE_PASSES, lambda: run_calls(call, items))
    return {name: max(1, value // DECODE_PASSES) for name, value in result.items()}


def run_streams(open_stream: Callable[[], Callable[[int], Any]], lists: Any) -> None:
    """A stream for each list, one step for each id."""
    for ids in lists:
        step = open_stream()
        for token_id in ids:
            step(token_id)


def time_streams(open_stream: Callable[[], Callable[[int], Any]], lists: Any) -> dict[str, Any]:
    """All streams, after one that is not timed."""
    with Clock(lambda: run_streams(open_stream, lists[:1])) as clock:
        run_streams(open_stream, lists)
    return clock.result()


class Worker:
    """Carries out commands for one library."""

    def __init__(self, name: str) -> None:
        self.module, self.opener = OPENERS[name]
        self.opened: Peer | None = None
        self.seen: list[str] = []

    @property
    def peer(self) -> Peer:
        assert self.opened is not None
        return self.opened

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        """Open a model and use it once; the import is not timed."""
        importlib.import_module(self.module)
        importlib.import_module("numpy")
        gc.collect()
        before = memory_bytes()
        begin = time.perf_counter_ns()
        self.opened = self.opener(pathlib.Path(command["model"]))
        self.opened.encode("warm")
        elapsed = time.perf_counter_ns() - begin
        gc.collect()
        return {"load_ns": elapsed, "memory_bytes": memory_bytes() - before}

    def memory(self, command: dict[str, Any]) -> dict[str, Any]:
        gc.collect()
        return {"memory_bytes": memory_bytes()}

    def check(self, command: dict[str, Any]) -> dict[str, Any]:
        """A digest of the ids of each text; of the reference also those with special tokens."""
        texts = read_json(command["texts"])
        answer = {"digests": [self.digest_of(self.peer.encode, text) for text in texts]}
        answer["adds_special"] = self.peer.adds_special
        if self.peer.special is not None:
            answer["digests_special"] = [digest(self.peer.special(text)) for text in texts]
        return answer

    def check_count(self, command: dict[str, Any]) -> dict[str, Any]:
        """The number of ids of each text, as digests for the comparison."""
        peer, results = self.peer, []
        for text in read_json(command["texts"]):
            try:
                count = peer.count(text) if peer.counts else len(peer.ids(peer.encode(text)))
                results.append(str(count))
            except Exception as error:
                results.append(type(error).__name__)
        return {"digests": results}

    def digest_of(self, call: Encode, text: str) -> str:
        try:
            return digest(self.peer.ids(call(text)))
        except Exception as error:  # A peer may raise whatever it likes.
            return type(error).__name__

    def write_ids(self, command: dict[str, Any]) -> dict[str, Any]:
        """The ids of each text into a file, for decoding."""
        lists = [
            [int(i) for i in self.peer.ids(self.peer.encode(text))]
            for text in read_json(command["texts"])
        ]
        pathlib.Path(command["out"]).write_text(json.dumps(lists), encoding="ascii")
        return {"count": sum(map(len, lists))}

    def check_decode(self, command: dict[str, Any]) -> dict[str, Any]:
        """A digest of the text of each id list, and of what a stream of them gives."""
        decode, lists = self.peer.decode, read_json(command["texts"])
        if decode is None:
            return {"none": True}
        results = []
        for ids in self.prepared(lists):
            try:
                results.append(text_digest(decode(ids)))
            except Exception as error:
                results.append(type(error).__name__)
        return {"digests": results}

    def check_stream(self, command: dict[str, Any]) -> dict[str, Any]:
        if self.peer.stream is None:
            return {"none": True}
        results = []
        for ids in read_json(command["texts"]):
            step = self.peer.stream()
            try:
                results.append(text_digest("".join(step(token_id) or "" for token_id in ids)))
            except Exception as error:
                results.append(type(error).__name__)
        return {"digests": results}

    def prepared(self, lists: list[list[int]]) -> Sequence[Any]:
        """Id lists in the type that the library decodes fastest."""
        if not self.peer.arrays:
            return lists
        import numpy as np

        return [np.array(ids, dtype=np.uint32) for ids in lists]

    def warm(self, command: dict[str, Any]) -> dict[str, Any]:
        """Encode all texts of a file; some of them come again before each block that is timed."""
        texts = read_json(command["texts"])
        run_calls(self.peer.encode, texts)
        self.seen = texts[-AGAIN_TEXTS:]
        return {}

    def time(self, command: dict[str, Any]) -> dict[str, Any]:
        """One operation over all texts, or id lists, of a file."""
        peer, items, what = self.peer, read_json(command["texts"]), command["what"]
        again = items if command.get("hot") else self.seen

        def before() -> None:
            run_calls(peer.encode, again)

        if what == "encode":
            return time_calls(peer.encode, items, before)
        if what == "latency":
            return time_each(peer.encode, items, before)
        if what == "batch" and peer.batch is not None:
            return time_calls(peer.batch, [items], before)
        if what == "count":
            return time_calls(peer.count, items, before)
        if what == "decode" and peer.decode is not None:
            return time_passes(peer.decode, self.prepared(items))
        if what == "decode-list" and peer.decode is not None:
            return time_passes(peer.decode, items)
        if what == "stream" and peer.stream is not None:
            return time_streams(peer.stream, items)
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
