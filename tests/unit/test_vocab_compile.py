"""The compiler accepts every dialect, refuses by name, and its images answer as the reference does.

Models are small and made here. Where the reference library is installed, each accepted model is
also certified: several thousand adversarial texts must give equal ids.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from pintok import Tokenizer, _native
from pintok.errors import ModelError
from pintok_server import vocab
from pintok_server._spec import image as spec
from pintok_server.control.models import explain_source
from pintok_server.vocab import json_fields, writer
from tests.unit import vocab_models as models

Json = dict[str, Any]


@pytest.fixture
def compiled(tmp_path: pathlib.Path) -> Callable[[pathlib.Path | Json], vocab.CompiledModel]:
    """Compile a model given as a path or as the JSON of a tokenizer.json."""

    def run(model: pathlib.Path | Json) -> vocab.CompiledModel:
        path = models.write(tmp_path / "model", model) if isinstance(model, dict) else model
        return vocab.load_image(path, cache_dir=tmp_path / "cache")

    return run


def _strings_merges() -> Json:
    return models.byte_level(merges=[f"{left} {right}" for left, right in models.MERGES])


def _untyped() -> Json:
    """As files of the first versions are: no type, no newer fields, an old ByteLevel."""
    root = _strings_merges()
    for name in ("type", "fuse_unk", "byte_fallback", "ignore_merges"):
        del root["model"][name]
    del root["pre_tokenizer"]["use_regex"]
    del root["decoder"]["use_regex"]
    root["model"]["merges"].insert(0, "#version: 0.2")
    return root


def _gaps() -> Json:
    """Added tokens inside a vocabulary with gaps; the ids that the file states are ignored."""
    root = models.byte_level()
    root["model"]["vocab"]["<|far|>"] = 900
    root["added_tokens"] += [models.added("<|far|>", special=True), models.added("<|new|>")]
    return root


def _flags() -> Json:
    """All combinations of the flags of added tokens."""
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [
        models.added(
            f"tok{bits:02d}", **{name: bool(bits >> i & 1) for i, name in enumerate(names)}
        )
        for bits in range(32)
    ]
    return models.byte_level(
        added_tokens=tokens,
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
    )


ACCEPTED: dict[str, Callable[[], Json]] = {
    "pairs": models.byte_level,
    "strings": _strings_merges,
    "untyped": _untyped,
    "gaps": _gaps,
    "flags": _flags,
    "ignore merges": lambda: models.byte_level(
        ignore_merges=True, pre_tokenizer=models.split_pre_tokenizer()
    ),
    "regex": lambda: models.byte_level(
        pre_tokenizer=models.split_pre_tokenizer(r"\d+|[a-z]+\s?|\W")
    ),
    "removed": lambda: models.byte_level(
        pre_tokenizer=models.split_pre_tokenizer(models.LLAMA3, "Removed", True)
    ),
    "template": lambda: models.byte_level(
        post_processor={
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
                models.template("<s>", 269),
            ],
        }
    ),
    "sentencepiece bpe": models.sentencepiece_bpe,
    "unigram": models.unigram,
    "wordpiece": models.wordpiece,
    "wordlevel": models.wordlevel,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_models_equal_the_reference(
    name: str, compiled: Callable[[Json], vocab.CompiledModel]
) -> None:
    certificate = compiled(ACCEPTED[name]()).certificate
    if not certificate["compared"]:
        pytest.skip(f"not compared: {certificate['reason']}")
    assert certificate["mismatches"] == 0
    assert certificate["cases"] > 5000


@pytest.mark.parametrize("write", [models.write_tiktoken, models.write_tekken])
def test_rank_formats_equal_the_reference(
    write: Callable[[pathlib.Path], pathlib.Path],
    tmp_path: pathlib.Path,
    compiled: Callable[[pathlib.Path], vocab.CompiledModel],
) -> None:
    certificate = compiled(write(tmp_path / "ranks")).certificate
    if not certificate["compared"]:
        pytest.skip(f"not compared: {certificate['reason']}")
    assert certificate["cases"] > 5000


def test_ids_of_added_tokens_follow_the_vocabulary_not_the_file(
    compiled: Callable[[Json], vocab.CompiledModel],
) -> None:
    """A content that the model knows keeps its id, every other gets the next free one."""
    tokenizer = Tokenizer(compiled(_gaps()).path)
    size = len(_gaps()["model"]["vocab"])
    assert tokenizer.encode("<|far|>").tolist() == [900]
    assert tokenizer.encode("<s><|end|><|new|>").tolist() == [size, size + 1, size + 2]
    assert tokenizer.ids_end == 901
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.id_to_token(800) is None


def test_vocab_txt_needs_its_case(
    tmp_path: pathlib.Path, compiled: Callable[[pathlib.Path], vocab.CompiledModel]
) -> None:
    """A vocab.txt does not say whether it is lower-cased, so a model without that is refused."""
    directory = tmp_path / "bert"
    tokens = list(models.wordpiece()["model"]["vocab"])
    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n")
    with pytest.raises(ModelError, match="do_lower_case"):
        compiled(directory)
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = Tokenizer(compiled(directory).path)
    assert tokenizer.encode("THE going, é a.").tolist() == [2, 5, 9, 6, 10, 1, 7, 11, 3]


def test_gzip_gives_the_same_model(
    tmp_path: pathlib.Path, compiled: Callable[[pathlib.Path], vocab.CompiledModel]
) -> None:
    plain = models.write(tmp_path / "plain", models.byte_level())
    packed = tmp_path / "packed" / "tokenizer.json.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert compiled(plain).fingerprint == compiled(packed.parent).fingerprint


def _broken(change: Callable[[Json], object]) -> Json:
    root = models.byte_level()
    change(root)
    return root


REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "dropout": (lambda root: root["model"].update(dropout=0.1), r"dropout: 0\.1"),
    "unknown model": (lambda root: root["model"].update(type="Neural"), '"Neural" is not known'),
    "no model": (lambda root: root.pop("model"), "has no model"),
    "version": (lambda root: root.update(version="2.0"), 'version "2.0"'),
    "normalizer": (lambda root: root.update(normalizer={"type": "Rot13"}), "normalizer Rot13"),
    "pre-tokenizer": (
        lambda root: root.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "X"}]}
        ),
        r"pre_tokenizer\[0\] X is not supported",
    ),
    "post-processor": (lambda root: root.update(post_processor={"type": "Y"}), "post_processor Y"),
    "decoder": (lambda root: root.update(decoder={"type": "Z"}), "decoder Z is not supported"),
    "merge without token": (
        lambda root: root["model"]["merges"].append(["q", "z"]),
        r'needs the token "qz"',
    ),
    "merge of three": (lambda root: root["model"].update(merges=["a b c"]), "is not two tokens"),
    "two tokens, one id": (
        lambda root: root["model"]["vocab"].update({"new": 5}),
        "two tokens have the same id",
    ),
    "negative id": (lambda root: root["model"]["vocab"].update({"new": -1}), "has the id -1"),
    "huge id": (lambda root: root["model"]["vocab"].update({"new": 2**22}), "has the id 4194304"),
    "text as id": (lambda root: root["model"]["vocab"].update({"new": "7"}), 'has the id "7"'),
    "template token": (
        lambda root: root.update(
            post_processor={**models.template("<s>", 1), "special_tokens": {}}
        ),
        "'<s>' is not defined",
    ),
    "template id": (
        lambda root: root.update(post_processor=models.template("<s>", 99_999)),
        "malformed parameters",
    ),
    "behavior": (
        lambda root: root.update(pre_tokenizer=models.split_pre_tokenizer(behavior="Sideways")),
        '"Sideways" is not known',
    ),
    "metaspace": (
        lambda root: root.update(
            pre_tokenizer={
                "type": "Metaspace",
                "replacement": "▁",
                "add_prefix_space": False,
                "prepend_scheme": "first",
            }
        ),
        "contradicts",
    ),
    "half a surrogate pair": (
        lambda root: root["model"]["vocab"].update({"\ud800": 500}),
        "surrogate",
    ),
    "no byte-level vocabulary": (
        lambda root: root.update(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]),
        "there are no tokens",
    ),
    "no vocabulary": (
        lambda root: root.update(
            model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[], pre_tokenizer=None
        ),
        "there are no tokens",
    ),
}


def refusal_of(path: pathlib.Path, sentence: str, folder: pathlib.Path) -> str:
    """The refusal of a model, which `pintok-server models check` says, too."""
    with pytest.raises(ModelError, match=sentence) as refusal:
        vocab.load_image(path, cache_dir=folder / "cache")
    with pytest.raises(ModelError, match=sentence):
        explain_source(path)
    return str(refusal.value)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_models_are_refused_with_one_sentence(name: str, tmp_path: pathlib.Path) -> None:
    change, sentence = REFUSED[name]
    root = _broken(change)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    said = refusal_of(path, sentence, tmp_path)
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("tokenizer.json", b"\xff\xfe{}", "not UTF-8 at byte 0"),
        ("tokenizer.json", b'{"model": NaN}', "NaN is not JSON"),
        ("tokenizer.json", b"[" * 100_000, "not JSON"),
        ("tokenizer.json.gz", b"\x1f\x8b broken", "cannot be read"),
        ("other.json", b'{"hello": 1}', "neither tokenizer.json"),
        ("tokenizer.bin", b"\x00\x01", "not a format that is known"),
        ("ranks.tiktoken", b"AA== 0\n", "ranks without a pattern"),
        ("tokenizer.model", b"\n\x05<unk>", "sentencepiece model: piece 0"),
    ],
)
def test_unreadable_files_are_refused(
    name: str, data: bytes, sentence: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / name).write_bytes(data)
    refusal_of(tmp_path / name, sentence, tmp_path)


def test_directories_without_a_tokenizer_say_what_is_looked_for(tmp_path: pathlib.Path) -> None:
    refusal_of(tmp_path, r"holds none of tokenizer\.json", tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pat_str": 5}, "'pat_str' has the value 5"),
        ({"ranks_file": "../x"}, "ranks_file"),
        ({"ranks_file": "none.tiktoken"}, "named by encoding.json, but not there"),
        ({"special_tokens": {"<|a|>": 3}}, "used twice"),
        ({"special_tokens": {"<|a|>": "3"}}, "has the id"),
        ({"explicit_n_vocab": 1}, "explicit_n_vocab is 1"),
        ({"format": "other"}, "format"),
    ],
)
def test_wrong_encodings_are_refused(changes: Json, sentence: str, tmp_path: pathlib.Path) -> None:
    path = models.write_tiktoken(tmp_path / "ranks", **changes)
    refusal_of(path, sentence, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"default_vocab_size": 10_000}, "do not fit"),
        (
            {"default_num_special_tokens": 5, "default_vocab_size": 270},
            "special tokens, 5 are stated",
        ),
        ({"version": "v99"}, "without special_tokens"),
    ],
)
def test_wrong_tekkens_are_refused(changes: Json, sentence: str, tmp_path: pathlib.Path) -> None:
    path = models.write_tekken(tmp_path / "tekken", **changes)
    refusal_of(path, sentence, tmp_path)


def test_numbers_are_rounded_as_the_reference_rounds_them() -> None:
    """Not to the nearest: the last bit of a score decides ties, so it must be the same bit."""
    tokenizers = pytest.importorskip("tokenizers")
    source = random.Random(5)
    numbers = ["0.0", "-0.0", "1e5", "1.5E-7", "1e-310", "5e-324", "18446744073709551616.5"]
    numbers += [repr(-source.random() * 20) for _ in range(400)]
    for _ in range(400):
        digits = "".join(source.choices("0123456789", k=source.randrange(1, 25)))
        numbers.append(f"-{source.randrange(10**12)}.{digits}e{source.randrange(-320, 250)}")
    vocab_json = ",".join(f'["{index}",{number}]' for index, number in enumerate(numbers))
    root = f'{{"model":{{"type":"Unigram","unk_id":0,"vocab":[{vocab_json}]}}}}'
    model = json.loads(tokenizers.Tokenizer.from_str(root).to_str())["model"]
    ours = json_fields.parse_json(root.encode(), "scores")["model"]["vocab"]
    theirs = [score for _, score in model["vocab"]]
    assert [score for _, score in ours] == theirs
    assert theirs != [float(number) for number in numbers]


def test_merges_that_no_text_reaches_are_left_out(tmp_path: pathlib.Path) -> None:
    """Of two ways to one token only the one that merging takes is kept; ids stay the same."""
    path = vocab.load_image(
        models.write(tmp_path / "m", models.byte_level()), cache_dir=tmp_path / "cache"
    ).path
    image = path.read_bytes()
    pairs = _section(image, spec.ImageSection.PAIRS)
    kept = [
        spec.IMAGE_PAIR.unpack_from(pairs, off)
        for off in range(0, len(pairs), spec.IMAGE_PAIR.size)
    ]
    used = [pair for pair in kept if pair[0] != spec.IMAGE_NONE]
    # "th" and "the" merge first, so " t" + "h" and " th" + "e" never meet.
    assert len(used) == len(models.MERGES) - 2


def _section(image: bytes, kind: int) -> bytes:
    count = spec.IMAGE_HEADER.unpack_from(image)[2]
    for index in range(count):
        at = spec.IMAGE_HEADER.size + index * spec.IMAGE_SECTION_ENTRY.size
        entry, _, off, length, _ = spec.IMAGE_SECTION_ENTRY.unpack_from(image, at)
        if entry == kind:
            return image[off : off + length]
    return b""


NEIGHBOURS = (
    spec.ImageSection.NEIGHBOURS,
    spec.ImageSection.NEIGHBOUR_CHARS,
    spec.ImageSection.UNIGRAM_NEIGHBOURS,
)


@pytest.mark.parametrize(
    ("root", "present"),
    [
        (models.byte_level(), (True, True, False)),
        (models.sentencepiece_bpe(), (True, True, False)),
        (models.unigram(), (False, False, True)),
        (models.wordpiece(), (False, False, False)),
    ],
    ids=["byte-level", "sentencepiece", "unigram", "wordpiece"],
)
def test_neighbours_of_the_image_are_those_that_opening_gathers(
    compiled: Callable[[pathlib.Path | Json], vocab.CompiledModel],
    tmp_path: pathlib.Path,
    root: Json,
    present: tuple[bool, bool, bool],
) -> None:
    image = compiled(root).path.read_bytes()
    stored = tuple(_section(image, kind) for kind in NEIGHBOURS)
    assert tuple(bool(body) for body in stored) == present
    bare = image
    for kind in NEIGHBOURS:
        bare = writer.replace_section(bare, kind, b"")
    assert _native.build_neighbours(bare) == stored  # gathered from the tokens
    assert _native.build_neighbours(image) == stored  # taken from the image
    path = tmp_path / "bare.ptki"
    path.write_bytes(bare)
    with_them, without = Tokenizer(compiled(root).path), Tokenizer(path)
    for text in (
        "the other thing\u2019s",
        "\u4e2d\u6587 the\u00e9 \u2581 a,b",
        "<unk> <0x41> \n\n",
    ):
        assert with_them.encode(text).tolist() == without.encode(text).tolist()


def test_neighbours_of_an_image_that_cannot_be_opened_are_an_error() -> None:
    with pytest.raises(_native.SetupError, match="too few for a header"):
        _native.build_neighbours(b"PTKIMAGE")
    with pytest.raises(ValueError, match="not empty"):
        _native.build_neighbours(b"")


def test_a_trie_that_lies_about_its_keys_is_another_vocabulary(
    compiled: Callable[[pathlib.Path | Json], vocab.CompiledModel], tmp_path: pathlib.Path
) -> None:
    """Whoever forges an image states whatever vocabulary they like: it opens, and does no harm."""
    image = compiled(models.unigram()).path.read_bytes()
    trie = bytearray(_section(image, spec.ImageSection.TRIE))
    base, word = spec.IMAGE_TRIE_UNIT.unpack_from(trie)
    spec.IMAGE_TRIE_UNIT.pack_into(trie, 0, base ^ 1, word)
    path = tmp_path / "forged.ptki"
    path.write_bytes(writer.replace_section(image, spec.ImageSection.TRIE, bytes(trie)))
    forged = Tokenizer(path)
    text = "the other thing"
    assert all(0 <= token < forged.vocab_size for token in forged.encode(text).tolist())
    assert (
        forged.encode(text).tolist()
        != Tokenizer(compiled(models.unigram()).path).encode(text).tolist()
    )
