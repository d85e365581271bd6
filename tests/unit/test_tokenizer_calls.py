"""Calls of `Tokenizer` that keep the GIL and calls that do not: same answers, same refusals."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest

pytest.importorskip("pintok._native", reason="the native core is not built")

from pintok import Tokenizer
from pintok.errors import RefusedError

# Lengths around the 8 KiB up to which a call keeps the GIL, and beyond what a context starts with.
LENGTHS = [0, 1, 8191, 8192, 8193, 16384, 16385, 200_000]


def text_of(length: int) -> str:
    return (
        ("Grace l\u00f6st 42 R\u00e4tsel; " * (length // 20 + 1))
        .encode()[:length]
        .decode("utf-8", "ignore")
    )


def test_every_length_gives_the_same_by_every_call() -> None:
    """Short and long texts go different ways through the wrapper."""
    tokenizer = Tokenizer.from_pretrained("default")
    for length in LENGTHS:
        text = text_of(length)
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids) == text
        assert tokenizer.count(text) == len(ids)
        assert np.array_equal(tokenizer.encode(text.encode()), ids)
        assert np.array_equal(tokenizer.encode_full(text).ids, ids)
        assert np.array_equal(tokenizer.encode_batch([text, ""]).ids, ids)


def test_subclasses_of_str_and_bytes_are_texts() -> None:
    """They take the long way; the answer is the same."""
    tokenizer = Tokenizer.from_pretrained("default")
    wanted = tokenizer.encode("h\u00e9llo")
    assert np.array_equal(tokenizer.encode(type("S", (str,), {})("h\u00e9llo")), wanted)
    assert np.array_equal(tokenizer.encode(type("B", (bytes,), {})("h\u00e9llo".encode())), wanted)
    assert tokenizer.count(type("S", (str,), {})("h\u00e9llo")) == len(wanted)


@pytest.mark.parametrize("call", ["encode", "count"])
def test_what_is_refused_is_refused_before_and_after_an_answer(call: str) -> None:
    """The short way answers only what it is sure of; the first call has no context yet."""
    tokenizer = Tokenizer.from_pretrained("default")
    method = getattr(tokenizer, call)
    for _ in range(2):
        for bad in (b"\xff", b"abc\xe2\x82", "\ud800"):
            with pytest.raises(RefusedError):
                method(bad)
        for wrong in (None, 7, bytearray(b"x"), ["x"]):
            with pytest.raises(TypeError):
                method(wrong)
        with pytest.raises(ValueError, match="parse_special"):
            method("x", parse_special="some")
        with pytest.raises(TypeError):
            method("x", nonsense=True)
        method("Hello")


def test_an_equal_string_that_is_another_object_means_the_same() -> None:
    """`parse_special` is compared by value in the end."""
    tokenizer = Tokenizer.from_pretrained("default")
    every = "".join(["a", "ll"])
    assert np.array_equal(tokenizer.encode("x", parse_special=every), tokenizer.encode("x"))
    assert list(inspect.signature(tokenizer.encode).parameters)[:3] == [
        "text",
        "pair",
        "add_special_tokens",
    ]


def test_threads_do_not_meet_in_one_context() -> None:
    """Short texts with the GIL held beside long ones without it, on one tokenizer."""
    tokenizer = Tokenizer.from_pretrained("default")
    texts = [text_of(length) for length in (5, 300, 9000, 30_000)]
    wanted = [Tokenizer.from_pretrained("default").encode(text) for text in texts]
    failures: list[int] = []

    def work(shift: int) -> None:
        for i in range(60):
            k = (i + shift) % len(texts)
            if not np.array_equal(tokenizer.encode(texts[k]), wanted[k]):
                failures.append(k)
            if tokenizer.count(texts[k]) != len(wanted[k]):
                failures.append(k)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- str of every width ---------------------------------------------------------------------------

WIDTHS = {
    "one byte": "naïve café ÿ ",
    "two bytes": "don’t “quote” 中文 ",
    "four bytes": "an 😀 among words ",
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 40, 3000])
def test_a_str_of_any_width_has_the_ids_of_its_utf8(width: str, count: int) -> None:
    """New, asked again, with its UTF-8 kept, of a subclass, alone, in a pair and in a batch."""
    tokenizer = Tokenizer.from_pretrained("default")
    text = WIDTHS[width] * count
    utf8 = text.encode()
    ids = tokenizer.encode(utf8).tolist()
    for _ in range(3):
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.count(text) == len(ids)
    assert tokenizer.encode(type("Text", (str,), {})(text)).tolist() == ids
    pair = tokenizer.encode(utf8, pair=utf8).tolist()
    assert tokenizer.encode(WIDTHS[width] * count, pair="".join([text, ""])).tolist() == pair
    other = tokenizer.encode((text + "x").encode()).tolist()
    batch = tokenizer.encode_batch([WIDTHS[width] * count, text + "x"])
    assert [one.tolist() for one in batch] == [ids, other]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["\ud800", "’ and \udfff", "😀\udc00", "’" * 9000 + "\ud800"])
def test_a_surrogate_is_named_by_its_place(text: str) -> None:
    """Whatever the width, and whether or not the UTF-8 has room at hand."""
    tokenizer = Tokenizer.from_pretrained("default")
    at = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    for call in (tokenizer.encode, tokenizer.count, tokenizer.encode_full):
        with pytest.raises(RefusedError, match=f"surrogate at character {at}"):
            call(text)
