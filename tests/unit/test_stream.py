"""Streams of ids: chunks never taken back, bad lines refused, many streams at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import vocab_models

from pintok._wire import Verdict
from pintok.errors import RefusedError
from pintok.stream import DecodeStream, StreamWindow, step_streams
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


def test_many_streams_go_on_together(tokenizer: Tokenizer) -> None:
    """Each with its own ids, as it would alone."""
    ids = [tokenizer.encode(text).tolist() for text in TEXTS if text]
    alone = [DecodeStream(tokenizer) for _ in ids]
    wanted = [[stream.step(i) for i in some[:4]] for stream, some in zip(alone, ids, strict=True)]
    together = [DecodeStream(tokenizer) for _ in ids]
    rounds = [step_streams(together, [some[n] for some in ids]) for n in range(3)]
    assert [list(chunks) for chunks in zip(*rounds, strict=True)] == [some[:3] for some in wanted]
    with pytest.raises(ValueError, match="twice"):
        step_streams([together[0], together[0]], [1, 1])
    with pytest.raises(ValueError, match="differ"):
        step_streams([together[0], DecodeStream(tokenizer, skip_special_tokens=False)], [1, 1])
    assert step_streams([], []) == []


def test_ids_that_come_together_are_one_step(tokenizer: Tokenizer) -> None:
    """Speculative decoding takes several ids on at once."""
    ids = tokenizer.encode("Grüße, 世界 😀!").tolist()
    stream = DecodeStream(tokenizer)
    assert (stream.step(ids[:5]) or "") + (stream.step(ids[5:]) or "") == "Grüße, 世界 😀!"
    assert stream.flush() == ""


def test_a_refused_stream_leaves_the_others_alone(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window that the engine refuses is one line with an error."""
    poison = int(tokenizer.encode("z")[0])
    decode_steps = Tokenizer.decode_steps

    def decode_some(self: Tokenizer, steps: Any, *, skip_special_tokens: bool = True) -> Any:
        if any(poison in step.ids for step in steps):
            raise RefusedError(Verdict.TEXT_TOO_LONG)
        return decode_steps(self, steps, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode_steps", decode_some)
    good = tokenizer.encode("a b").tolist()
    lines = [{"ids": [*good, poison], "stream": True}, {"ids": good, "stream": True}]
    refused, served = serve(tokenizer, lines)
    assert refused["error"]["code"] == "text_too_long"
    assert served == {"chunks": ["a", " b"], "flush": ""}


def test_windows_of_a_stream_stay_small(tokenizer: Tokenizer) -> None:
    """A long stream must not carry all of its past with every id."""
    window = StreamWindow([])
    text, longest = "", 0
    for token_id in tokenizer.encode("word " * 500).tolist():
        step = window.ask([token_id])
        longest = max(longest, len(step.ids))
        text += window.accept(step, tokenizer.decode_steps([step])[0])
    assert text == "word " * 500
    assert longest <= 4


def test_what_never_completes_is_given_in_the_end(tokenizer: Tokenizer) -> None:
    """Bytes without a character must not hold a stream back, nor make its steps ever longer."""
    byte = tokenizer.encode("😀").tolist()[0]
    window = StreamWindow([])
    given, longest = "", 0
    for _ in range(1000):
        step = window.ask([byte])
        longest = max(longest, len(step.ids))
        given += window.accept(step, tokenizer.decode_steps([step])[0])
    assert len(given) >= 700 and set(given) == {"\ufffd"}
    assert longest <= 520


BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A model whose decoder reads runs of byte tokens: there the reference may raise."""
    root = vocab_models.byte_level(
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    )
    root["model"] |= {"vocab": {**BYTE_TOKENS, "x": 256, "y": 257}, "merges": [],
                      "byte_fallback": True}  # fmt: skip
    root["added_tokens"] = []
    return Tokenizer.from_file(vocab_models.write(tmp_path_factory.mktemp("fallback"), root))


def test_where_the_reference_raises_the_stream_goes_on(fallback: Tokenizer) -> None:
    """A given byte turns out to belong to a run that is no character: it cannot be taken back."""
    ids = [256, 0x41, 0xFF, 256, 257]
    stream = DecodeStream(fallback)
    assert [stream.step(i) for i in ids] == ["x", "A", None, "\ufffdx", "y"]
    assert stream.flush() == ""
    stream = DecodeStream(fallback)
    assert [stream.step(i) for i in (0x41, 0xE4)] == ["A", None]
    assert stream.flush() == "\ufffd"
