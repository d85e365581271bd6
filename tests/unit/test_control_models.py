"""Images in the cache and the `models` commands: read without trust, explained in words."""

from __future__ import annotations

import json
import os
import pathlib
import random

import pytest
from click.testing import CliRunner

from pintok.errors import ModelError
from pintok_server import vocab
from pintok_server.cli import server
from pintok_server.control.images import list_summaries, read_summary
from pintok_server.control.models import describe_certificate, explain_source
from tests.conftest import ROOT

DEFAULT = ROOT / "pintok" / "data" / "default"


@pytest.fixture(scope="module")
def image() -> vocab.CompiledModel:
    return vocab.load_image("default")


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(server.main, ["models", *arguments])
    assert result.exit_code == status, result.output + result.stderr
    return result.stdout if status == 0 else result.stderr


def test_image_is_summarised(image: vocab.CompiledModel) -> None:
    summary = read_summary(image.path)
    assert summary.fingerprint == image.fingerprint.hex()
    assert (summary.algorithm, summary.source) == ("bpe", "tokenizer_json")
    assert (summary.vocab_len, summary.image_len) == (32768, image.image_len)
    assert summary in list_summaries(image.path.parent.parent)


def test_damaged_image_is_refused_or_read_but_nothing_else(
    image: vocab.CompiledModel, tmp_path: pathlib.Path
) -> None:
    seed = int(os.environ.get("PINTOK_SEED", "9"))
    rng = random.Random(seed)
    # Head, table and the first sections are what a summary reads.
    whole = image.path.read_bytes()
    path = tmp_path / "images" / "x.ptkimage"
    path.parent.mkdir()
    refused = 0
    for _ in range(300):
        data = bytearray(whole[: rng.choice([0, 100, 128, 500, 4096, len(whole)])])
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(min(len(data), 1200))] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(data)
        try:
            read_summary(path)
        except ModelError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused
    path.write_bytes(b"no image")
    assert list_summaries(tmp_path) == []


def test_commands_list_check_and_certify(image: vocab.CompiledModel) -> None:
    rows = json.loads(run("list", "--json"))
    assert image.fingerprint.hex() in {row["fingerprint"] for row in rows}
    assert image.fingerprint.hex()[:16] in run("list")
    assert run("compile", "default").startswith(image.fingerprint.hex())
    certificate = json.loads(run("certificate", "default"))
    assert certificate == vocab.load_image("default").certificate
    explained = json.loads(run("check", str(DEFAULT), "--json"))
    assert explained == explain_source(DEFAULT)
    assert explained["ids"] == 32768 and explained["pre-tokenizer"] == "split_known, byte_level"
    assert "split_known" in run("check", str(DEFAULT))


def test_unsupported_model_is_explained_by_name(tmp_path: pathlib.Path) -> None:
    source = json.loads((DEFAULT / "tokenizer.json").read_text())
    source["pre_tokenizer"] = {"type": "Sorcery"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(source))
    for command in ("check", "compile", "certificate"):
        sentence = run(command, str(path), status=1)
        assert sentence.startswith("pintok-server: ") and "Sorcery" in sentence
        assert sentence.count("\n") == 1
    assert "no such file" in run("check", str(tmp_path / "absent"), status=1)


def test_certificate_becomes_a_sentence() -> None:
    assert describe_certificate({}).startswith("not compared: ")
    made = {"compared": True, "reference": "tokenizers 0.23.3", "cases": 7}
    assert describe_certificate(made) == "equal to tokenizers 0.23.3 in 7 cases"
