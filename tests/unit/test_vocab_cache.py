"""The cache gives one image per model and compiler, whole or not at all, whoever else writes."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import subprocess
import sys

import pytest

from pintok import Tokenizer
from pintok.errors import ModelError
from pintok_server import vocab
from pintok_server.vocab import certificate
from tests.unit import vocab_models as models


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return models.write(tmp_path / "model", models.byte_level())


def test_the_second_load_takes_the_stored_image(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = vocab.load_image(model, cache_dir=tmp_path)
    written = first.path.stat().st_mtime_ns
    again = vocab.load_image(model, cache_dir=tmp_path)
    assert again == first
    assert again.path.stat().st_mtime_ns == written
    assert list((tmp_path / "images").iterdir()) == [first.path]


def test_the_cache_directory_follows_the_environment(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PINTOK_CACHE_DIR", raising=False)
    assert vocab.load_image(model).path.parent == tmp_path / "xdg" / "pintok" / "images"
    monkeypatch.setenv("PINTOK_CACHE_DIR", str(tmp_path / "own"))
    assert vocab.load_image(model).path.parent == tmp_path / "own" / "images"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other version"])
def test_a_damaged_image_is_compiled_again(
    damage: str, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    compiled = vocab.load_image(model, cache_dir=tmp_path)
    whole = compiled.path.read_bytes()
    spoiled = {
        "flip": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "other version": whole[:8] + b"\x63\0\0\0" + whole[12:],
    }[damage]
    compiled.path.write_bytes(spoiled)
    with pytest.raises(ModelError):
        Tokenizer(compiled.path)
    again = vocab.load_image(model, cache_dir=tmp_path)
    assert again.fingerprint == compiled.fingerprint
    assert Tokenizer(again.path).encode("the").tolist() == [257]
    assert len(again.path.read_bytes()) == len(whole)


def test_a_tokenizer_of_a_damaged_image_is_compiled_again(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening finds the damage that looking at the head of a stored image does not."""
    monkeypatch.setenv("PINTOK_CACHE_DIR", str(tmp_path / "own"))
    compiled = vocab.load_image(model)
    whole = compiled.path.read_bytes()
    compiled.path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert vocab.load_image(model, whole=False) == compiled
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer(compiled.path)
    assert Tokenizer.from_file(model).encode("the").tolist() == [257]
    assert Tokenizer(compiled.path).encode("the").tolist() == [257]


def test_a_stored_image_is_opened_without_the_compiler(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """What compiles is slow to import."""
    program = f"""
import sys
from pintok import Tokenizer
Tokenizer.from_file({str(model)!r})
slow = {{"tempfile", "pintok_server.vocab.building", "pintok_server.vocab.tokenizer_json"}}
print(sorted(slow & set(sys.modules)))
"""
    environment = {**os.environ, "PINTOK_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert "building" in said[0]
    assert said[1] == "[]"


def test_another_source_is_another_image(tmp_path: pathlib.Path) -> None:
    """One changed merge is another model: another fingerprint, another file."""
    merges = [list(pair) for pair in models.MERGES]
    one = models.write(tmp_path / "one", models.byte_level())
    two = models.write(tmp_path / "two", models.byte_level(merges=merges[::-1]))
    first = vocab.load_image(one, cache_dir=tmp_path)
    second = vocab.load_image(two, cache_dir=tmp_path)
    assert first.fingerprint != second.fingerprint
    assert first.tag != second.tag
    assert first.path != second.path


def _compile(model: str, directory: str) -> bytes:
    return vocab.load_image(model, cache_dir=directory, certify=False).path.read_bytes()


def test_many_writers_at_once_leave_one_whole_image(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        images = pool.starmap(_compile, [(str(model), str(tmp_path / "c"))] * 8)
    assert len(set(images)) == 1
    assert len(list((tmp_path / "c" / "images").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_names_the_variable(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ModelError, match="PINTOK_CACHE_DIR"):
        vocab.load_image(model, cache_dir=tmp_path / "c")


def test_a_cache_below_a_file_names_the_variable(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="PINTOK_CACHE_DIR"):
        vocab.load_image(model, cache_dir=tmp_path / "file")


# --- certificates --------------------------------------------------------------------------------


def test_without_the_reference_the_certificate_says_so(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the comparison is made up for once the library is there."""
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(certificate, "unavailable", lambda *_: "tokenizers is not installed")
    compiled = vocab.load_image(model, cache_dir=tmp_path)
    assert compiled.certificate["compared"] is False
    assert compiled.certificate["reason"] == "tokenizers is not installed"
    monkeypatch.undo()
    assert vocab.load_image(model, cache_dir=tmp_path).certificate["compared"] is True


def test_the_certificate_is_part_of_the_image(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    compiled = vocab.load_image(model, cache_dir=tmp_path)
    assert Tokenizer(compiled.path).certificate == compiled.certificate
    assert compiled.certificate["fingerprint"] == compiled.fingerprint.hex()


def test_a_corpus_is_compared_once_and_named(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tokenizers")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the thing\nin 123\n\nlast line", encoding="utf-8")
    plain = vocab.load_image(model, cache_dir=tmp_path)
    with_corpus = vocab.load_image(model, cache_dir=tmp_path, corpus=corpus)
    assert with_corpus.certificate["corpus_cases"] == 4
    assert with_corpus.certificate["cases"] == plain.certificate["cases"] + 4
    assert with_corpus.certificate["corpus"] == "corpus.txt"
    again = vocab.load_image(model, cache_dir=tmp_path, corpus=corpus)
    assert again.certificate == with_corpus.certificate
    with pytest.raises(ModelError, match="cannot be read"):
        vocab.load_image(model, cache_dir=tmp_path, corpus=tmp_path / "none")


def test_a_difference_refuses_the_model_and_shows_the_text(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that answers otherwise for one text stands for an engine that is wrong there."""
    tokenizers = pytest.importorskip("tokenizers")
    honest = tokenizers.Tokenizer

    class Liar:
        def __init__(self, theirs: object) -> None:
            self._theirs = theirs

        @classmethod
        def from_buffer(cls, data: bytes) -> Liar:
            return cls(honest.from_buffer(data))

        def __getattr__(self, name: str) -> object:
            return getattr(self._theirs, name)

        def encode(self, text: str, *rest: object, **options: object) -> object:
            spoiled = "never" if "brown fox" in text else text
            return self._theirs.encode(spoiled, *rest, **options)  # type: ignore[attr-defined]

    monkeypatch.setattr(tokenizers, "Tokenizer", Liar)
    with pytest.raises(ModelError, match=r"differs from tokenizers .* quick brown fox .* refused"):
        vocab.load_image(model, cache_dir=tmp_path)
    assert not list((tmp_path / "images").iterdir())
