"""Streams of ids: chunks never taken back, bad lines refused, many streams at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pintok._wire import Verdict
from pintok.errors import RefusedError
from pintok.stream import DecodeStream, stream_work
from pintok.tokenizer import Tokenizer
from pintok_server.cli.lines import Backend, Job, Options, Refusal, parse_line

TEXTS = ["Grüße, 世界 😀!", "", "plain words only", "\ufffd kept", "end 🎉"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


def parse(**line: Any) -> Job | Refusal:
    return parse_line(json.dumps(line).encode(), "decode", defaults=Options())


def serve(tokenizer: Tokenizer, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return Backend(tokenizer).serve("decode", [parse(**line) for line in lines])


def test_chunks_and_flush_are_the_text(tokenizer: Tokenizer) -> None:
    lines = [{"ids": tokenizer.encode(text).tolist(), "stream": True} for text in TEXTS]
    for text, line, answer in zip(TEXTS, lines, serve(tokenizer, lines), strict=True):
        assert len(answer["chunks"]) == len(line["ids"])
        assert "".join(chunk or "" for chunk in answer["chunks"]) + answer["flush"] == text


def test_an_unfinished_character_waits_for_the_flush(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀").tolist()
    assert len(ids) > 2, "the character must be several ids"
    (answer,) = serve(tokenizer, [{"ids": ids[:-1], "stream": True}])
    assert answer["chunks"] == ["a"] + [None] * (len(ids) - 2)
    assert answer["flush"] == "\ufffd"


def test_prefill_is_context_and_not_given_again(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x😀 y").tolist()
    for cut in range(1, len(ids)):
        stream = DecodeStream(tokenizer, prefill=ids[:cut])
        chunks = [stream.step(token_id) for token_id in ids[cut:]]
        (answer,) = serve(tokenizer, [{"ids": ids[cut:], "prefill": ids[:cut], "stream": True}])
        assert answer == {"chunks": chunks, "flush": stream.flush()}
    assert chunks == [" y"]


def test_special_tokens_are_left_out_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b").tolist()
    lines = [
        {"ids": ids, "stream": True, **more}
        for more in ({}, {"skip_special_tokens": True}, {"skip_special_tokens": False})
    ]
    absent, left_out, kept = serve(tokenizer, lines)
    assert absent == left_out
    assert absent["chunks"] == ["a", None, "b"]
    assert kept["chunks"] == ["a", "<|endoftext|>", "b"]


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        ({"stream": True}, "bad_field", "ids is not there"),
        ({"ids": [1], "stream": 1}, "bad_field", "stream is neither true nor false"),
        ({"ids": [1], "prefill": [1]}, "bad_field", "prefill needs stream"),
        ({"ids": [1], "stream": True, "prefill": 3}, "bad_field", "prefill is not there"),
        ({"ids": [1], "stream": True, "prefill": [-1]}, "bad_id", ""),
        ({"ids": [1], "streams": True}, "bad_field", "stream is meant"),
    ],
)
def test_bad_lines_are_refused(line: dict[str, Any], code: str, hint: str) -> None:
    refusal = parse(**line)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code and hint in refusal.message


class Remote:
    """Decodes as a server does, which gives no bytes of tokens."""

    def __init__(self, tokenizer: Tokenizer, source: int) -> None:
        self._tokenizer = tokenizer
        self._source = source

    def info(self) -> Any:
        return type("Info", (), {"source": self._source})

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def test_a_stream_over_a_server_gives_the_same_chunks(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(TEXTS)).tolist()
    here = DecodeStream(tokenizer)
    there = DecodeStream(Remote(tokenizer, tokenizer.source))  # type: ignore[arg-type]
    assert [here.step(i) for i in ids] == [there.step(i) for i in ids]
    assert here.flush() == there.flush()


@pytest.mark.parametrize("source", [2, 3])
def test_what_a_server_cannot_stream_is_refused(tokenizer: Tokenizer, source: int) -> None:
    with pytest.raises(RefusedError, match="bytes of tokens") as refused:
        DecodeStream(Remote(tokenizer, source))  # type: ignore[arg-type]
    assert refused.value.verdict == Verdict.UNSUPPORTED


def test_a_refused_stream_leaves_the_others_alone(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window that the engine refuses is one line with an error."""
    poison = int(tokenizer.encode("z")[0])
    decode = Tokenizer.decode

    def decode_some(self: Tokenizer, ids: Any, *, skip_special_tokens: bool = False) -> str:
        if poison in np.asarray(ids):
            raise RefusedError(Verdict.TEXT_TOO_LONG)
        return decode(self, ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", decode_some)
    good = tokenizer.encode("a b").tolist()
    lines = [{"ids": [*good, poison], "stream": True}, {"ids": good, "stream": True}]
    refused, served = serve(tokenizer, lines)
    assert refused["error"]["code"] == "text_too_long"
    assert served == {"chunks": ["a", " b"], "flush": ""}


def test_questions_of_a_stream_stay_small(tokenizer: Tokenizer) -> None:
    """A long stream must not send all of its past with every id."""
    ids = tokenizer.encode("word " * 500).tolist()
    work = stream_work(tokenizer, ids, source=tokenizer.source, skip_special_tokens=True)
    longest = 0
    question = next(work)
    while True:
        longest = max(longest, len(question))
        try:
            question = work.send(tokenizer.decode(question))
        except StopIteration as end:
            chunks, flushed = end.value
            break
    assert "".join(chunk or "" for chunk in chunks) + flushed == "word " * 500
    assert longest <= 4
