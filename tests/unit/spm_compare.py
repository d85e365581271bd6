"""Holds an image of a `.model` file to the sentencepiece library."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterable
from typing import Any

import sentencepiece

from pintok.stream import DecodeStream
from pintok.tokenizer import Tokenizer
from pintok_server.vocab import formats, sources, writer

# A stream asks for the text of each of its windows.
_STREAM_IDS_MAX = 200


def open_ours(data: bytes, folder: pathlib.Path) -> Tokenizer:
    """Ours, without the comparison of a certificate. Raises ModelError."""
    path = folder / "m.model"
    path.write_bytes(data)
    source = sources.read(path)
    image = writer.write_image(formats.describe(source), fingerprint=source.fingerprint())
    (folder / "m.img").write_bytes(image)
    return Tokenizer(folder / "m.img")


def open_both(data: bytes, folder: pathlib.Path) -> tuple[Any, Tokenizer]:
    """The reference and ours for the bytes of a file."""
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    return reference, open_ours(data, folder)


def compare(reference: Any, ours: Tokenizer, texts: Iterable[str], *, seed: int) -> None:
    """Ids, offsets, counts, decoded texts and streams; then decoded texts of random ids."""
    for number, text in enumerate(texts):
        wanted = reference.encode(text, return_type="offset_mapping")
        got = ours.encode_full(text)
        assert got.ids.tolist() == wanted["ids"], repr(text)
        assert [tuple(span) for span in got.offsets.tolist()] == wanted["offsets"], repr(text)
        assert ours.encode(text).tolist() == wanted["ids"], repr(text)
        assert ours.count(text) == len(wanted["ids"])
        if number % 3 == 0:
            _compare_decoding(reference, ours, wanted["ids"])
    source = random.Random(seed)
    for _ in range(400):
        ids = source.choices(range(reference.get_piece_size()), k=source.randint(0, 12))
        _compare_decoding(reference, ours, ids)


def _compare_decoding(reference: Any, ours: Tokenizer, ids: list[int]) -> None:
    wanted = reference.decode(ids)
    assert ours.decode(ids, skip_special_tokens=True) == wanted, ids
    if len(ids) <= _STREAM_IDS_MAX:
        stream = DecodeStream(ours, skip_special_tokens=True)
        chunks = [stream.step(token_id) or "" for token_id in ids]
        assert "".join(chunks) + stream.flush() == wanted, ids
