"""Decoding by table, by program, by streams and by the reference give one text.

Ids are arbitrary, not those of a text: unfinished characters, byte tokens that make none, special
tokens, ids that are not in use. PINTOK_TEST_SEED chooses other ones.
"""

from __future__ import annotations

import gzip
import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers

from pintok import Tokenizer
from pintok.stream import DecodeStream
from tests.golden import cases

SEED = int(os.environ.get("PINTOK_TEST_SEED", "20261125"))
DATA = cases.data_root()
# One of each decoder program, where the reference data is there.
MODELS = (
    "gpt2",
    "o200k_base",
    "llama-2",
    "gemma-3",
    "yi-34b",
    "chatglm3",
    "bert-base-uncased",
    "t5-small",
    "xlm-roberta-base",
    "lab-unigram-bytefallback",
    "lab-wordlevel",
    "lab-bpe-prefix-suffix",
)
with_models = pytest.mark.parametrize(
    "model",
    [
        "default",
        *(
            pytest.param(name, marks=pytest.mark.skipif(DATA is None, reason="no reference data"))
            for name in MODELS
        ),
    ],
)


def open_model(model: str) -> Tokenizer:
    if model == "default":
        return Tokenizer.from_pretrained(model)
    assert DATA is not None
    return Tokenizer.from_file(cases.model_path(DATA / "tokenizers" / model, "hf"))


def open_reference(model: str) -> tokenizers.Tokenizer:
    if model == "default":
        path = cases.ROOT / "pintok" / "data" / "default" / "tokenizer.json"
    else:
        assert DATA is not None
        path = cases.model_path(DATA / "tokenizers" / model, "hf")
    source = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return tokenizers.Tokenizer.from_str(source.decode())


def id_lists(tokenizer: Tokenizer, count: int) -> Iterator[list[int]]:
    """Runs of byte tokens, of special tokens, of anything, and of a text, one after another."""
    rng = random.Random(SEED)
    every = range(tokenizer.ids_end)
    special = [i for i in every if tokenizer.is_special(i)] or [0]
    bytes_ = [i for i in every if (tokenizer.id_to_token(i) or "").startswith("<0x")] or [1]
    text = tokenizer.encode("The café's 東京 don't , 😀 x . 1\n\n  y", add_special_tokens=False)
    for _ in range(count):
        ids: list[int] = []
        for _ in range(rng.randrange(6)):
            source = rng.choice((every, every, special, bytes_, text.tolist()))
            ids += rng.choices(source, k=rng.randrange(5))
        yield ids


@with_models
def test_random_ids_decode_as_the_reference_does(model: str) -> None:
    """The table must not differ from the program that it stands for."""
    tokenizer, reference = open_model(model), open_reference(model)
    for ids in id_lists(tokenizer, 1500):
        for skip in (False, True):
            got = tokenizer.decode(ids, skip_special_tokens=skip)
            wanted = reference.decode(ids, skip_special_tokens=skip)
            assert got == wanted, f"{ids} skip={skip} seed={SEED}"


@with_models
def test_a_stream_by_pieces_is_one_by_windows(model: str) -> None:
    """The short way of a stream gives what its rule gives, step by step."""
    tokenizer = open_model(model)
    rng = random.Random(SEED)
    for ids in id_lists(tokenizer, 400):
        cut = rng.randrange(len(ids) + 1) if rng.random() < 0.3 else 0
        quick = DecodeStream(tokenizer, skip_special_tokens=cut % 2 == 0, prefill=ids[:cut])
        plain = DecodeStream(tokenizer, skip_special_tokens=cut % 2 == 0, prefill=ids[:cut])
        plain._piece = None
        for token_id in ids[cut:]:
            assert quick.step(token_id) == plain.step(token_id), f"{ids} {cut} seed={SEED}"
        assert quick.flush() == plain.flush(), f"{ids} {cut} seed={SEED}"


def test_a_str_is_as_narrow_as_its_characters() -> None:
    """CPython compares and hashes by representation: a str of each width must be its twin."""
    tokenizer = Tokenizer.from_pretrained("default")
    for text in (
        "",
        "a",
        "plain",
        "caf\u00e9 \u00ff",
        "\u0100",
        "\u6771\u4eac x",
        "a\U0001f600\u00e9",
    ):
        got = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        assert got == text
        assert hash(got) == hash(text)
        assert sys.getsizeof(got) == sys.getsizeof(text.encode().decode())


def test_every_kind_of_sequence_decodes() -> None:
    """Arrays of any integer type, strided or not, buffers, lists and tuples mean the same ids."""
    tokenizer = Tokenizer.from_pretrained("default")
    ids = tokenizer.encode("A text, and some more of it: 東京.")
    wanted = tokenizer.decode(ids)
    for kind in ("u4", "i4", "u8", "i8", "u2", ">u4", ">i8"):
        assert tokenizer.decode(ids.astype(kind)) == wanted, kind
    assert tokenizer.decode(np.repeat(ids, 2)[::2]) == wanted
    assert tokenizer.decode(memoryview(ids.copy())) == wanted
    for kind in (list, tuple):
        assert tokenizer.decode(kind(ids.tolist())) == wanted
        assert tokenizer.decode(kind(ids)) == wanted
    assert tokenizer.decode([]) == tokenizer.decode(np.empty(0, np.uint32)) == ""
    assert tokenizer.decode_batch([ids, ids.tolist()]) == [wanted, wanted]
    for refused in ([-1], [1 << 32], [1.5], [True, False], np.array([-1]), np.array([[1]]), "1"):
        with pytest.raises(ValueError):
            tokenizer.decode(refused)
