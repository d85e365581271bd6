"""A path is taken at its word only while nothing that its image depends on has changed."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable

import pytest

from pintok import Tokenizer
from pintok.errors import ModelError
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server import vocab
from pintok_server.vocab import certificate, compiler, remembered
from tests.unit import vocab_models as models


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A cache that also remembers what was changed a moment ago."""
    monkeypatch.setenv("PINTOK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_MOMENT_NS", -(10**12))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return models.write(tmp_path / "model", models.byte_level())


def _find(model: pathlib.Path, profile: str = DEFAULT_PROFILE) -> pathlib.Path | None:
    found = remembered.find(str(model), profile)
    return None if found is None else found[0]


def _no_compiler(*_: object, **__: object) -> None:
    raise AssertionError("the compiler was asked")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_second_load_does_not_look_at_the_source(
    kind: str, model: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model.parent if kind == "directory" else model
    first = Tokenizer.from_file(model)
    monkeypatch.setattr(compiler, "load_image", _no_compiler)
    again = Tokenizer.from_file(model)
    assert again.name == first.name == "model"
    assert again.fingerprint == first.fingerprint
    assert again.encode("the").tolist() == [257]
    monkeypatch.chdir(model.parent)
    assert Tokenizer.from_file(model.name).fingerprint == first.fingerprint


def _same_length_and_times(directory: pathlib.Path) -> None:
    """Two merges in the other order: no other length, and the times of before."""
    path = directory / "tokenizer.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    before = path.stat()
    text = path.read_text(encoding="utf-8")
    merges = root["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    changed = json.dumps(root, ensure_ascii="\\u" in text)
    path.write_text(changed.ljust(len(text)), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _new_file(directory: pathlib.Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def _new_further_template(directory: pathlib.Path) -> None:
    further = directory / "additional_chat_templates"
    further.mkdir()
    (further / "tool.jinja").write_text("{{ tools }}", encoding="utf-8")


def _replaced(directory: pathlib.Path) -> None:
    path = directory / "tokenizer.json"
    other = directory.parent / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)


def _gone(directory: pathlib.Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "change", [_same_length_and_times, _new_file, _new_further_template, _replaced, _gone]
)
def test_a_change_is_noticed(
    change: Callable[[pathlib.Path], None], model: pathlib.Path, cache: pathlib.Path
) -> None:
    Tokenizer.from_file(model)
    assert _find(model) is not None
    time.sleep(0.02)  # a grain of the clock
    change(model.parent)
    assert _find(model) is None


def test_a_file_in_the_folder_of_further_templates_is_noticed(
    model: pathlib.Path, cache: pathlib.Path
) -> None:
    directory = model.parent
    _new_further_template(directory)
    Tokenizer.from_file(model)
    assert _find(model) is not None
    time.sleep(0.02)
    (directory / "additional_chat_templates" / "more.jinja").write_text("", encoding="utf-8")
    assert _find(model) is None


def test_what_has_just_changed_is_not_remembered(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINTOK_CACHE_DIR", str(tmp_path / "cache"))
    Tokenizer.from_file(model)
    assert _find(model) is None
    assert not (tmp_path / "cache" / "paths").exists()


def test_another_profile_is_another_image(model: pathlib.Path, cache: pathlib.Path) -> None:
    Tokenizer.from_file(model)
    assert _find(model) is not None
    assert _find(model, PROFILES[1]) is None


def test_an_image_without_certificate_is_not_remembered(
    model: pathlib.Path, cache: pathlib.Path
) -> None:
    vocab.load_image(model, certify=False)
    assert _find(model) is None


def test_a_changed_compiler_is_noticed(
    model: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tokenizer.from_file(model)
    assert _find(model) is not None
    monkeypatch.setattr(remembered, "compiler_state", lambda: "another")
    assert _find(model) is None


def test_the_reference_that_arrives_is_noticed(
    model: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be compared is remembered until it can be."""
    monkeypatch.setattr(certificate, "unavailable", lambda *_: "tokenizers is not installed")
    monkeypatch.setattr(certificate.importlib.util, "find_spec", lambda _: None)
    assert Tokenizer.from_file(model).certificate["compared"] is False
    assert _find(model) is not None
    monkeypatch.setattr(certificate.importlib.util, "find_spec", lambda _: "here")
    assert _find(model) is None


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"places": 7}']
)
def test_a_damaged_record_is_none(record: bytes, model: pathlib.Path, cache: pathlib.Path) -> None:
    Tokenizer.from_file(model)
    (path,) = (cache / "paths").iterdir()
    path.write_bytes(record)
    assert _find(model) is None
    assert Tokenizer.from_file(model).encode("the").tolist() == [257]
    assert _find(model) is not None


@pytest.mark.parametrize("key", ["compiler", "profile", "path", "places", "image", "name"])
@pytest.mark.parametrize("value", [None, 7, [], {}, {"/": None}])
def test_a_record_with_a_strange_value_refuses_or_names_no_image(
    key: str, value: object, model: pathlib.Path, cache: pathlib.Path
) -> None:
    Tokenizer.from_file(model)
    (path,) = (cache / "paths").iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    record[key] = value
    path.write_text(json.dumps(record), encoding="utf-8")
    assert Tokenizer.from_file(model).encode("the").tolist() == [257]


@pytest.mark.parametrize("damage", ["gone", "flip"])
def test_an_image_that_is_gone_or_damaged_is_compiled_again(
    damage: str, model: pathlib.Path, cache: pathlib.Path
) -> None:
    Tokenizer.from_file(model)
    image = _find(model)
    assert image is not None
    if damage == "gone":
        image.unlink()
    else:
        whole = bytearray(image.read_bytes())
        whole[5000] ^= 1
        image.write_bytes(whole)
    with pytest.raises(ModelError):
        Tokenizer(image)
    assert Tokenizer.from_file(model).encode("the").tolist() == [257]
    assert Tokenizer(image).encode("the").tolist() == [257]


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    model: pathlib.Path, cache: pathlib.Path
) -> None:
    Tokenizer.from_file(model)
    for path in (cache / "paths").iterdir():
        path.unlink()
    (cache / "paths").rmdir()
    (cache / "paths").write_text("a file", encoding="utf-8")
    assert Tokenizer.from_file(model).encode("the").tolist() == [257]
    assert _find(model) is None


def test_two_paths_with_one_record_take_turns(
    tmp_path: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered._native, "crc32c", lambda data: 7)
    other = models.byte_level()
    other["model"]["merges"] = other["model"]["merges"][:1]
    paths = [
        models.write(tmp_path / "one", models.byte_level()),
        models.write(tmp_path / "other", other),
    ]
    wanted = [[257], Tokenizer.from_file(paths[1]).encode("the").tolist()]
    assert wanted[0] != wanted[1]
    for turn in (0, 1, 0, 0, 1):
        assert Tokenizer.from_file(paths[turn]).encode("the").tolist() == wanted[turn]
        assert _find(paths[turn]) is not None
        assert _find(paths[1 - turn]) is None
    assert len(list((cache / "paths").iterdir())) == 1
