"""Windows and padding: as the reference cuts and fills, in the library and by lines."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import pytest
import vocab_models

from pintok.encoding import Encoding, Padding, Truncation
from pintok.errors import RefusedError
from pintok.tokenizer import Tokenizer
from pintok_server.cli.lines import Backend, Options, Refusal, parse_line

TEXTS = ["", "the", "in the thing", "the 123 in the ther\n\ner  in", "é the inner thing " * 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = vocab_models.byte_level(
        post_processor=vocab_models.template("<s>", 256),
        truncation={
            "direction": "Left", "max_length": 9, "strategy": "OnlyFirst", "stride": 2,
        },
        padding={
            "strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 3, "pad_type_id": 1, "pad_token": "!",
        },
    )  # fmt: skip
    vocab = root["model"]["vocab"]
    root["added_tokens"][0]["id"] = len(vocab)
    root["post_processor"] = vocab_models.template("<s>", len(vocab))
    return vocab_models.write(tmp_path_factory.mktemp("model"), root)


@pytest.fixture(scope="module")
def tokenizer(model: pathlib.Path) -> Tokenizer:
    return Tokenizer.from_file(model)


def rows(encoding: Any) -> list[Any]:
    names = ("ids", "special_tokens_mask", "attention_mask")
    return [[int(item) for item in getattr(encoding, name)] for name in names]


def spans(encoding: Any) -> list[tuple[int, int]]:
    return [(int(begin), int(end)) for begin, end in encoding.offsets]


def _typed(token_id: int) -> dict[str, Any]:
    """A template that names other types than 0 for the first text and 1 for the second."""
    special = {"SpecialToken": {"id": "<s>", "type_id": 2}}
    text, pair = ({"Sequence": {"id": name, "type_id": 3}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [text, special],
        "pair": [text, special, pair],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [token_id], "tokens": ["<s>"]}},
    }


POST_PROCESSORS = {
    "template": lambda token_id: vocab_models.template("<s>", token_id),
    "template with types": _typed,
    "bert": lambda token_id: {
        "type": "BertProcessing", "cls": ["<s>", token_id], "sep": ["<|end|>", token_id + 1],
    },
    "roberta": lambda token_id: {
        "type": "RobertaProcessing", "cls": ["<s>", token_id], "sep": ["<|end|>", token_id + 1],
        "trim_offsets": True, "add_prefix_space": True,
    },
    "byte level": lambda _: {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    },
    "none": lambda _: None,
}  # fmt: skip


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_windows_are_the_reference_library_s(
    name: str, add_special_tokens: bool, tmp_path: pathlib.Path
) -> None:
    """Ids, offsets, masks and type ids of every window, also those the reference leaves alone."""
    root = vocab_models.byte_level()
    vocab = root["model"]["vocab"]
    for offset, token in enumerate(root["added_tokens"]):
        token["id"] = len(vocab) + offset
    root["post_processor"] = POST_PROCESSORS[name](len(vocab))
    path = vocab_models.write(tmp_path, root)
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    tokenizer = Tokenizer.from_file(path)
    compared = refused = 0
    strategies = ("longest_first", "only_first", "only_second")
    items = [*TEXTS, *itertools.product(TEXTS[1:], TEXTS)]
    for length, stride, strategy, direction in itertools.product(
        (4, 5, 7, 8), (0, 1, 2), strategies, ("right", "left")
    ):
        truncation = Truncation(length, stride, strategy, direction)  # type: ignore[arg-type]
        try:
            theirs.enable_truncation(length, stride=stride, strategy=strategy, direction=direction)
        except ValueError:  # The stride is too long for a single text already.
            continue
        for item in items:
            text, pair = item if isinstance(item, tuple) else (item, None)
            try:
                ours = tokenizer.encode_full(
                    text, pair=pair, truncation=truncation, add_special_tokens=add_special_tokens
                )
            except RefusedError:
                with pytest.raises(BaseException):  # noqa: B017, PT011 (it panics, too)
                    theirs.encode(text, pair, add_special_tokens=add_special_tokens)
                refused += 1
                continue
            reference = theirs.encode(text, pair, add_special_tokens=add_special_tokens)
            windows = [reference, *reference.overflowing]
            assert len(windows) == 1 + len(ours.overflowing)
            for mine, wanted in zip([ours, *ours.overflowing], windows, strict=True):
                assert rows(mine) == rows(wanted), (item, truncation)
                assert spans(mine) == spans(wanted), (item, truncation)
                assert mine.type_ids.tolist() == wanted.type_ids, (item, truncation)
                compared += 1
    assert compared > 2000 and refused > 10


def test_windows_have_the_offsets_of_the_whole(tmp_path: pathlib.Path) -> None:
    """A kept piece does not say where ids end that spell bytes: windows do not ask for it."""
    tokenizer = Tokenizer.from_file(vocab_models.write(tmp_path, vocab_models.sentencepiece_bpe()))
    text = "the thé ☃ the snow☃"
    wanted = tokenizer.encode_full(text)
    tokenizer.encode(text)  # Its pieces are kept from here on.
    windows = tokenizer.encode_full(text, truncation=Truncation(1000))
    assert rows(windows) == rows(wanted)
    assert spans(windows) == spans(wanted)


def test_padding_is_the_reference_library_s(model: pathlib.Path, tokenizer: Tokenizer) -> None:
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(model))
    theirs.no_truncation()
    for direction, length, multiple in itertools.product(
        ("right", "left"), (None, 0, 6, 40), (None, 0, 8)
    ):
        padding = Padding(direction, 5, 1, length, multiple)  # type: ignore[arg-type]
        theirs.enable_padding(
            direction=direction, pad_id=5, pad_type_id=1, length=length, pad_to_multiple_of=multiple
        )
        ours = tokenizer.encode_batch_full(TEXTS, padding=padding)
        for mine, wanted in zip(ours, theirs.encode_batch(TEXTS), strict=True):
            assert rows(mine) == rows(wanted), padding
            assert mine.type_ids.tolist() == wanted.type_ids
            assert spans(mine) == spans(wanted)


def test_the_settings_of_the_file_are_there_and_not_used_unasked(tokenizer: Tokenizer) -> None:
    assert tokenizer.truncation == Truncation(9, 2, "only_first", "left")
    assert tokenizer.padding == Padding("left", 3, 1, 12, None)
    assert len(tokenizer.encode_full(TEXTS[-1])) > 12
    default = Tokenizer.from_pretrained("default")
    assert default.truncation is None and default.padding is None


def test_a_batch_is_as_long_as_its_longest(tokenizer: Tokenizer) -> None:
    encodings = tokenizer.encode_batch_full(
        ["the", ("the", "in"), TEXTS[3]], truncation=Truncation(6), padding=Padding(pad_id=7)
    )
    assert {len(encoding) for encoding in encodings} == {6}
    assert encodings[0].attention_mask.tolist() == [1, 1, 0, 0, 0, 0]
    assert {len(window) for window in encodings[2].overflowing} == {6}


@pytest.mark.parametrize(
    "padding",
    [
        Padding("up"),  # type: ignore[arg-type]
        Padding(pad_id=-1),
        Padding(pad_type_id=256),
        Padding(length=-1),
        Padding(length=1 << 40),
        Padding(pad_to_multiple_of=-8),
    ],
)
def test_padding_that_cannot_be_is_refused(tokenizer: Tokenizer, padding: Padding) -> None:
    with pytest.raises(ValueError, match="padding"):
        tokenizer.encode_batch_full(["a"], padding=padding)


def test_windows_without_end_are_refused(tokenizer: Tokenizer) -> None:
    """Overlap makes the output the square of the text."""
    text = "1 " * 8000
    with pytest.raises(RefusedError, match="reply"):
        tokenizer.encode_full(text, truncation=Truncation(6000, 5998))
    whole = tokenizer.encode_full(text)
    encoding = tokenizer.encode_full(text, truncation=Truncation(6000))
    assert isinstance(encoding, Encoding)
    assert sum(len(window) for window in (encoding, *encoding.overflowing)) >= len(whole)


def serve(tokenizer: Tokenizer, line: dict[str, Any]) -> dict[str, Any]:
    job = parse_line(json.dumps(line).encode(), "encode", defaults=Options())
    return Backend(tokenizer).serve("encode", [job])[0]


def test_a_line_gives_windows_and_mask(tokenizer: Tokenizer) -> None:
    line = {
        "text": TEXTS[3],
        "truncation": {"max_length": 5, "stride": 1, "strategy": "longest_first"},
        "padding": {"length": None, "pad_to_multiple_of": 8, "pad_id": 2, "pad_token": "x"},
    }
    answer = serve(tokenizer, line)
    full = tokenizer.encode_full(TEXTS[3], truncation=Truncation(5, 1))
    assert answer["ids"] == [*full.ids.tolist(), 2, 2, 2]
    assert answer["attention_mask"] == [1] * 5 + [0] * 3
    assert [window[:5] for window in answer["overflowing"]][:-1] == [
        window.ids.tolist() for window in full.overflowing
    ][:-1]
    assert "overflowing" not in serve(tokenizer, {**line, "truncation": None})
    assert "attention_mask" not in serve(tokenizer, {**line, "padding": None})
    as_file = serve(tokenizer, {"text": TEXTS[3], "truncation": "file", "padding": "file"})
    assert len(as_file["ids"]) == 12 and as_file["attention_mask"][:3] == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ({"truncation": 5}, "truncation is neither an object nor 'file'"),
        ({"truncation": {}}, "truncation.max_length is not a whole number"),
        ({"truncation": {"max_length": True}}, "truncation.max_length is not"),
        ({"truncation": {"max_length": 4, "stride": 5}}, "more than truncation.max_length"),
        ({"truncation": {"max_length": 4, "strategy": []}}, "truncation.strategy is none of"),
        ({"truncation": {"max_length": 4, "side": "left"}}, "truncation has an unknown field"),
        ({"padding": "longest"}, "padding is neither"),
        ({"padding": {"direction": "up"}}, "padding.direction is none of"),
        ({"padding": {"length": 1 << 40}}, "padding.length is not"),
        ({"padding": {"pad_type_id": 256}}, "padding.pad_type_id is not"),
        ({"paddings": {}}, "padding is meant"),
    ],
)
def test_bad_settings_are_refused(line: dict[str, Any], hint: str) -> None:
    data = json.dumps({"text": "a", **line}).encode()
    refusal = parse_line(data, "encode", defaults=Options())
    assert isinstance(refusal, Refusal)
    assert refusal.code == "bad_field" and hint in refusal.message
