"""Reference profiles: ids as each version gives them, and what one version refuses."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import pintok
from pintok import Tokenizer
from pintok.errors import ModelError
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server import vocab
from pintok_server._spec import image as spec
from pintok_server.cli.server import main as server_command
from pintok_server.cli.tool import main as tool_command
from pintok_server.control.images import read_summary
from pintok_server.control.models import explain_source
from pintok_server.vocab import certificate, profiles, sources
from tests.unit.profile_models import (
    SAME,
    Candidate,
    Json,
    by_character,
    candidate_python,
    differing,
    isolating,
    splits,
    texts,
    variants,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "profiles.json.gz"
DEFAULT = pathlib.Path(pintok.__file__).parent / "data" / "default" / "tokenizer.json"
NEW = PROFILES[1]


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.fixture(scope="module")
def candidate() -> Iterator[Candidate]:
    python = candidate_python()
    if python is None:
        pytest.skip(
            "tokenizers 1.0.0rc3 is not installed (scripts/gen_unicode.py --probe, or"
            " PINTOK_CANDIDATE_PYTHON names an interpreter that has it)"
        )
    made = Candidate(python)
    yield made
    made.close()


def write(directory: pathlib.Path, root: Json) -> pathlib.Path:
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    return path


def ids_of(path: pathlib.Path, cases: list[str], profile: str) -> list[list[int]]:
    """Ids without a certificate: this is the comparison."""
    compiled = vocab.load_image(path, cache_dir=path.parent, certify=False, profile=profile)
    tokenizer = Tokenizer(compiled.path)
    return [tokenizer.encode(text).tolist() for text in cases]


@pytest.mark.parametrize("profile", PROFILES)
def test_ids_are_the_recorded_ones(golden: Any, tmp_path: pathlib.Path, profile: str) -> None:
    """Every component whose answers belong to a profile, on characters where they differ."""
    cases = golden["texts"]
    models = dict(variants(cases))
    assert models.keys() == golden["ids"].keys()
    for name, root in models.items():
        got = ids_of(write(tmp_path, root), cases, profile)
        wrong = [
            (text, ours, theirs)
            for text, ours, theirs in zip(cases, got, golden["ids"][name][profile], strict=True)
            if ours != theirs
        ]
        assert not wrong, (name, wrong[0])


def test_profiles_give_different_ids(golden: Any) -> None:
    """The recorded cases tell profiles apart wherever the two versions differ, and only there."""
    equal = {name for name, ids in golden["ids"].items() if ids[PROFILES[0]] == ids[PROFILES[1]]}
    assert equal == SAME


def test_one_text_has_two_kinds_of_ids(tmp_path: pathlib.Path) -> None:
    """U+11DE0 is a digit of Unicode 17: 1.0 keeps it together with another one."""
    text = "1\U00011de0"
    path = write(tmp_path, by_character([text], splits()["llama3"]))
    old, new = (ids_of(path, [text], profile)[0] for profile in PROFILES)
    pieces = json.loads(path.read_text())["model"]["vocab"]
    assert old == [pieces["1"], pieces["\U00011de0"]]
    assert new == [pieces["1"], pieces["##\U00011de0"]]


def test_random_texts_equal_the_candidate(candidate: Candidate, tmp_path: pathlib.Path) -> None:
    """What is recorded are single characters: here they stand together in any order."""
    seed = int(os.environ.get("PINTOK_TEST_SEED", random.randrange(1 << 30)))
    print(f"PINTOK_TEST_SEED={seed}")
    rng = random.Random(seed)
    odd, plain = (
        differing(every=20),
        "aAbZ '1,.\n\t!?-é漢字あカ한สवاא😀\u0301\u200d\u00a0\u3000\u017f\u212a",
    )
    cases = [
        "".join(rng.choice(odd if rng.random() < 0.3 else plain) for _ in range(rng.randrange(40)))
        for _ in range(300)
    ]
    for name, root in variants(cases):
        path = write(tmp_path, root)
        answers = candidate.ask(path, cases)
        assert "error" not in answers, (name, answers)
        assert ids_of(path, cases, NEW) == [ids for ids, _ in answers["ids"]], name


def test_default_vocabulary_equals_the_candidate(candidate: Candidate) -> None:
    """A whole model: ids, pairs and decoding."""
    tokenizer = Tokenizer.from_pretrained("default", profile=NEW)
    cases = texts(differing(every=200))
    pairs = [list(pair) for pair in zip(cases[::7], cases[3::7], strict=False)]
    ids = [list(range(first, first + 8)) for first in range(0, 32000, 997)]
    answers = candidate.ask(DEFAULT, cases, pairs=pairs, ids=ids)
    assert [
        [tokenizer.encode(text, add_special_tokens=special).tolist() for special in (True, False)]
        for text in cases
    ] == answers["ids"]
    assert [tokenizer.encode(a, pair=b).tolist() for a, b in pairs] == answers["pairs"]
    assert [
        [tokenizer.decode(one, skip_special_tokens=skip) for skip in (False, True)] for one in ids
    ] == answers["decoded"]


def test_the_candidate_refuses_or_differs_where_we_refuse(
    candidate: Candidate, tmp_path: pathlib.Path
) -> None:
    """No refusal is for nothing: the file is refused there, or a text has other ids than here."""
    for name, root, cases in refused():
        path = write(tmp_path, root)
        answers = candidate.ask(path, cases)
        if "error" in answers:
            continue
        default = ids_of(path, cases, DEFAULT_PROFILE)
        assert default != [ids for ids, _ in answers["ids"]], name


def token(content: str, **flags: bool) -> Json:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": 9999, "content": content, **dict.fromkeys(names, False), **flags}


def characters(cases: list[str], **parts: Any) -> Json:
    return by_character(cases, parts.pop("pre_tokenizer", None), **parts)


def default_model(**changes: Any) -> Json:
    root: Json = json.loads(DEFAULT.read_bytes())
    return {**root, **changes}


def refused() -> Iterator[tuple[str, Json, list[str]]]:
    """Models that are refused under 1.0: part of the sentence, the model, texts that show why."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split_string = {**isolating(""), "pattern": {"String": "x"}}
    cases = ["a1 b2  q", "xq qx q éq", "\n\n\n\n a"]
    yield (
        "no regex engine",
        characters(cases, pre_tokenizer=isolating(r"\s?\p{L}+")),
        cases,
    )
    yield "only together", characters(cases, pre_tokenizer=isolating(r"\p{N}{1,3}")), cases
    yield (
        "ByteLevel that is not the last",
        default_model(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [byte_level, split_string],
            }
        ),
        cases,
    )
    replace = {"type": "Replace", "pattern": {"Regex": r"[[:word:]]"}, "content": "-"}
    yield "other regex engine", characters(["é-a"], normalizer=replace), ["éa"]
    single = [token("é", single_word=True)]
    yield "single_word", characters(["é日 "], added_tokens=single), ["éé"]
    stripped = [token("\n\n", rstrip=True)]
    yield "strips white space", characters(["\n a"], added_tokens=stripped), ["\n\n\n\n\n\n"]


@pytest.mark.parametrize("index", range(6))
def test_what_is_different_there_is_refused_by_name(tmp_path: pathlib.Path, index: int) -> None:
    """What no table expresses must not be served with other ids than the reference's."""
    sentence, root, _ = list(refused())[index]
    path = write(tmp_path, root)
    ids_of(path, [], DEFAULT_PROFILE)
    with pytest.raises(ModelError, match=f"profile {NEW}: .*{sentence}"):
        Tokenizer.from_file(path, profile=NEW)
    with pytest.raises(ModelError, match=sentence):
        explain_source(path, profile=NEW)


def test_other_formats_have_no_such_profile(tmp_path: pathlib.Path) -> None:
    """tiktoken's files are none of the library's."""
    (tmp_path / "encoding.json").write_text('{"pat_str": "x", "ranks_file": "r.tiktoken"}')
    (tmp_path / "r.tiktoken").write_text("eA== 0\n")
    with pytest.raises(ModelError, match="does not read tiktoken files"):
        Tokenizer.from_file(tmp_path, profile=NEW)


def test_unknown_profile_is_refused() -> None:
    with pytest.raises(ModelError, match="is none of hf-tokenizers-0.23, hf-tokenizers-1.0"):
        Tokenizer.from_pretrained("default", profile="hf-tokenizers-2.0")


def test_default_profile_is_what_it_was() -> None:
    """Profiles changed no fingerprint: the number that stands in it is the default's."""
    source = sources.read(DEFAULT)
    digest = hashlib.sha256(f"pintok image {spec.IMAGE_VERSION} 1 {source.kind}".encode())
    for file in source.files:
        digest.update(f"\0{file.role}\0{file.sha256}".encode())
    assert source.fingerprint() == digest.digest()
    assert source.fingerprint(profiles.find(NEW)) != digest.digest()
    assert Tokenizer.from_pretrained("default").profile == DEFAULT_PROFILE


def test_images_of_two_profiles_differ_in_their_header(tmp_path: pathlib.Path) -> None:
    """Tables are the core's, not the image's: a model is one image with another number."""
    compiled = [
        vocab.load_image("default", cache_dir=tmp_path, certify=False, profile=profile)
        for profile in PROFILES
    ]
    images = [one.path.read_bytes() for one in compiled]
    assert [read_summary(one.path).profile for one in compiled] == list(PROFILES)
    assert [one.profile for one in compiled] == list(PROFILES)
    heads = [
        dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack_from(image), strict=True))
        for image in images
    ]
    changed = {name for name in heads[0] if heads[0][name] != heads[1][name]}
    assert changed <= {"fingerprint", "profile", "checksum", "tag"}
    assert images[0][spec.IMAGE_HEADER.size :] == images[1][spec.IMAGE_HEADER.size :]


def test_certificate_names_profile_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is compared with its own profile's version, or says that this is not installed."""
    source, new = sources.read(DEFAULT), profiles.find(NEW)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.23.3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert certificate.unavailable(source, profiles.DEFAULT) is None
    reason = certificate.unavailable(source, new)
    assert reason is not None
    assert reason.startswith("tokenizers==1.0.0rc3 is not installed, but 0.23.3")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.0rc3")
    assert certificate.unavailable(source, new) is None
    assert certificate.unavailable(source, profiles.DEFAULT) is not None


def test_commands_take_a_profile(tmp_path: pathlib.Path) -> None:
    """--profile of both commands, and of the environment for the server's."""
    text = "1\U00011de0"
    path = write(tmp_path, by_character([text], splits()["llama3"]))
    answers = [
        CliRunner().invoke(
            tool_command, ["encode", "--model", str(path), "--profile", profile], input=text
        )
        for profile in PROFILES
    ]
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert answers[0].output != answers[1].output
    shown = CliRunner().invoke(
        server_command, ["models", "check", str(path)], env={"PINTOK_PROFILE": NEW}
    )
    assert f"profile         {NEW}" in shown.output
    asked = CliRunner().invoke(tool_command, ["encode", "--server", "h", "--profile", NEW])
    assert "--profile is not for --server" in asked.output
