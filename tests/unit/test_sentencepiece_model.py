"""`.model` files are a door: each refusal has its test, and whatever stands in one, it is refused
with a sentence or runs as sentencepiece runs it.

The files are written field by field. `PINTOK_SEED` chooses the mutations; the files of
`tests/corpus/model` are replayed in every run.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import struct
import time

import pytest
import sentencepiece
from click.testing import CliRunner

from pintok.errors import ModelError, RefusedError
from pintok_server import vocab
from pintok_server.cli import server
from pintok_server.vocab import sources
from tests.fuzz import doors
from tests.unit import spm_compare
from tests.unit import spm_file as spm
from tests.unit.spm_file import BPE, CHAR, CONTROL, NORMAL, UNIGRAM, UNUSED, USER_DEFINED, WORD

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "corpus" / "model"
SEED = int(os.environ.get("PINTOK_SEED", "3141"))
ROUNDS = 300

PLAIN = spm.field(3, 0) + spm.field(4, 0)  # No dummy prefix, no white space removed.
MAP = spm.charsmap(
    {
        b"A": b"a",
        b"AB": b"b  a",
        "\u3000".encode(): b" ",
        "\u00a0".encode(): b"  ",
        b"\x01": b"",
        "e\u0301".encode(): "\u00e9".encode(),
        "e\u0301\u0301".encode(): b"ab",
        b"Z": "\u2581".encode(),
    }
)
SMALL: tuple[spm.Piece, ...] = (
    *spm.BASE,
    *((char, -3.0 - index / 8, NORMAL) for index, char in enumerate("\u2581abc\u00e9")),
    ("ab", -2.0, NORMAL),
    ("\u2581a", -2.5, NORMAL),
    ("bc", -2.0, NORMAL),
    ("abc", -2.0, NORMAL),
    ("a\u2581", -2.25, NORMAL),
)
SYMBOLS: tuple[spm.Piece, ...] = tuple(
    (text, 0.0, USER_DEFINED) for text in ("xy", "x", " b", "\u2581c", "xyab", "\u00e9\u00e9")
)
TEXTS = [
    "".join(
        random.Random(index).choices(
            "aabbc AB\u3000\u00a0\u0301\u00e9exyqZ\u2581\x01<", k=index % 40
        )
    )
    for index in range(600)
]
ACCEPTED = {
    "charsmap": spm.model(SMALL, normalizer=spm.field(2, MAP)),
    "charsmap plain": spm.model(SMALL, normalizer=spm.field(2, MAP) + PLAIN),
    "charsmap bpe": spm.model(SMALL, kind=BPE, normalizer=spm.field(2, MAP)),
    "symbols": spm.model((*SMALL, *SYMBOLS), normalizer=spm.field(2, MAP)),
    "symbols bpe": spm.model((*SMALL, *SYMBOLS), kind=BPE, normalizer=spm.field(2, MAP) + PLAIN),
    "symbols char": spm.model((*SMALL, *SYMBOLS), kind=CHAR),
    "unescaped": spm.model(
        (*SMALL, (" ", -3.0, NORMAL), ("a ", -2.0, NORMAL)), kind=BPE, normalizer=spm.field(5, 0)
    ),
    "suffix": spm.model(
        (*SMALL, *spm.BYTES), kind=BPE, trainer=spm.field(24, 1) + spm.field(35, 1)
    ),
    "bytes": spm.model((*SMALL, *spm.BYTES), trainer=spm.field(35, 1), normalizer=PLAIN),
    "denormalizer": spm.model(SMALL, denormalizer=spm.field(2, MAP)),
    "denormalizer plain": spm.model(
        SMALL, denormalizer=spm.field(2, MAP) + PLAIN + spm.field(5, 0), normalizer=PLAIN
    ),
    "unused char": spm.model((*SMALL, ("q", -1.0, UNUSED)), kind=BPE),
    "unused": spm.model((*SMALL, ("abca", -0.1, UNUSED)), kind=UNIGRAM),
    "unreachable": spm.model((*SMALL, ("qqqq", -0.1, UNUSED), ("zzzz", 0.0, NORMAL)), kind=BPE),
    "control char": spm.model((*SMALL, ("q", 0.0, CONTROL)), kind=BPE),
    "equal scores": spm.model(
        (*SMALL, *(("a" * count, -2.0, NORMAL) for count in range(2, 9)), ("aab", -2.0, NORMAL)),
        kind=BPE,
    ),
    "scores against the order": spm.model(
        (*SMALL, *(("a" * count, count - 9.0, NORMAL) for count in range(2, 9))), kind=BPE
    ),
    "positive scores": spm.model((*SMALL, *SYMBOLS, ("aa", 3.5, NORMAL), ("aab", 5.0, NORMAL))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_files_equal_the_reference(name: str, tmp_path: pathlib.Path) -> None:
    """What the trainer never writes, but the format allows."""
    reference, ours = spm_compare.open_both(ACCEPTED[name], tmp_path)
    spm_compare.compare(reference, ours, TEXTS, seed=SEED)
    runs = ["a" * count for count in (63, 64, 65, 66, 200, 1000)]
    spm_compare.compare(reference, ours, [*runs, "ab" * 500, "abc" * 100 + "a" * 99], seed=SEED)


def test_scores_stay_f32_over_a_long_text(tmp_path: pathlib.Path) -> None:
    """Sums of f32 lose bits, and are brought back to 0 below -100,000: at the same places."""
    pieces = (
        *spm.BASE,
        ("a", -5.0353556, NORMAL),
        ("b", -4.587524, NORMAL),
        ("bb", -7.339, NORMAL),
    )
    reference, ours = spm_compare.open_both(spm.model(pieces, normalizer=PLAIN), tmp_path)
    source = random.Random(SEED)
    for _ in range(6):
        text = "".join("a" * source.randint(1, 9) + "b" * source.randint(1, 4) for _ in range(9000))
        assert ours.encode(text).tolist() == reference.encode(text)
    steep = (*spm.BASE, ("a", -70000.5, NORMAL), ("aa", -130000.25, NORMAL), ("b", -1.0, NORMAL))
    reference, ours = spm_compare.open_both(spm.model(steep, normalizer=PLAIN), tmp_path)
    for text in ("a" * 100, "ab" * 50, "aab" * 50):
        assert ours.encode(text).tolist() == reference.encode(text)


def map_refusal(data: bytes) -> bytes:
    return spm.model(SMALL, normalizer=spm.field(2, data))


def looped() -> bytes:
    """A trie whose node for `a` is its own child."""
    units = bytearray(spm.charsmap({b"ab": b"x"}))
    node = 4 + 4 * (256 + ord("a"))
    struct.pack_into("<I", units, node, ((256 + ord("a")) ^ 256) << 10 | ord("a"))
    return bytes(units)


NESTED = tuple(("x" * count, 0.0, USER_DEFINED) for count in range(1, 70))
REFUSED = {
    "a number is cut off": b"\x0a",
    "a number at byte 1 has more than 10 bytes": b"\x0a" + b"\xff" * 11,
    "field 1 is cut off": b"\x0a\x05<unk>"[:-1],
    "the field number 0": b"\x02\x00",
    "field 1 has the wire type 3": b"\x0b",
    "field 1 is a varint instead of bytes": b"\x08\x01",
    "field 2 is a varint instead of 4 bytes": spm.field(1, spm.field(1, "a") + spm.field(2, 1)),
    "field 3 is bytes instead of a varint": spm.field(1, spm.field(1, "a") + spm.field(3, "")),
    "piece 0: field 1 is not UTF-8": spm.field(1, spm.field(1, b"\xff")),
    "it has no pieces": spm.field(2, b""),
    "piece 3 is empty or holds a zero byte": spm.model((*spm.BASE, ("", 0.0, NORMAL))),
    "piece 4 is empty": spm.model((*spm.BASE, ("a", 0.0, NORMAL), ("a\0b", 0.0, NORMAL))),
    "the type 7 is not known": spm.model((*spm.BASE, ("a", 0.0, 7))),
    "the score nan": spm.model((*spm.BASE, ("a", float("nan"), NORMAL))),
    "the score -inf": spm.model((*spm.BASE, ("a", float("-inf"), NORMAL))),
    '"a" stands there twice': spm.model((*SMALL, ("a", 0.0, CONTROL))),
    "second unknown piece": spm.model((*spm.BASE, ("<u>", 0.0, spm.UNKNOWN))),
    "it has no unknown piece": spm.model(SMALL[1:]),
    '"<0x00>" without byte_fallback': spm.model((*SMALL, *spm.BYTES)),
    "without the byte piece <0xFF>": spm.model((*SMALL, *spm.BYTES[:-1]), trainer=spm.field(35, 1)),
    '"<0xfF>" names no byte': spm.model(
        (*SMALL, *spm.BYTES, ("<0xfF>", 0.0, spm.BYTE)), trainer=spm.field(35, 1)
    ),
    "no piece can be found": spm.model(spm.BASE),
    "the model type WORD is not supported": spm.model(SMALL, kind=WORD),
    "the model type 9 is not supported": spm.model(SMALL, kind=9),
    'unused piece "abca" can be merged': spm.model((*SMALL, ("abca", 0.0, UNUSED)), kind=BPE),
    'merged from "q", which is no piece': spm.model((*SMALL, ("qa", 0.0, NORMAL)), kind=BPE),
    'merged from "q", which is no piece ': spm.model(
        (*SMALL, ("q", 0.0, UNUSED), ("qa", 0.0, NORMAL)), kind=BPE
    ),
    "piece 13 has 1025 bytes": spm.model((*SMALL, ("a" * 1025, 0.0, NORMAL)), kind=BPE),
    "user-defined pieces begin alike": spm.model((*SMALL, *NESTED)),
    "the length of the trie is cut off": map_refusal(b"\0\0"),
    "the trie is cut off": map_refusal(b"\xff\xff\0\0"),
    "the trie is empty": map_refusal(bytes(5)),
    "a node of the trie lies outside": map_refusal(b"\x04\0\0\0" + b"\0\xff\xff\0" + b"\0"),
    "the strings are not valid UTF-8": map_refusal(spm.charsmap({b"a": b"\xff"})),
    "the last string has no end": map_refusal(MAP[:-1]),
    "a key of the trie ends inside of a character": map_refusal(spm.charsmap({b"\xc3": b"x"})),
    "a key of the trie is too long": map_refusal(looped()),
    "a key of the trie is too long ": map_refusal(spm.charsmap({b"a" * 300: b""})),
    "too many keys of the trie begin alike": map_refusal(
        spm.charsmap({b"a" * count: b"" for count in range(1, 40)})
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals_say_what_is_wrong(sentence: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError) as refusal:
        spm_compare.open_ours(REFUSED[sentence], tmp_path)
    assert sentence.strip() in str(refusal.value)
    assert "\n" not in str(refusal.value)
    # `pintok-server models check` says the same.
    path = tmp_path / "tokenizer.model"
    path.write_bytes(REFUSED[sentence])
    result = CliRunner().invoke(server.main, ["models", "check", str(path)])
    assert result.exit_code == 1 and sentence.strip() in result.stderr
    assert result.stderr.startswith("pintok-server: ") and result.stderr.count("\n") == 1


def test_a_file_that_runs_is_explained(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ACCEPTED["charsmap bpe"])
    result = CliRunner().invoke(server.main, ["models", "check", "--json", str(path)])
    explained = json.loads(result.stdout)
    assert explained["format"] == "sentencepiece" and explained["algorithm"] == "bpe"
    assert explained["ids"] == len(SMALL) and explained["normalizer"] == "sentencepiece"
    assert list(tmp_path.iterdir()) == [path], "nothing is kept"


def attempt(data: bytes, folder: pathlib.Path) -> bool:
    """Compile and use a file; False when it was refused."""
    return doors.open_model(data, folder) == doors.ACCEPTED


def test_a_file_cut_off_anywhere_is_refused_or_runs(tmp_path: pathlib.Path) -> None:
    """Cut between two fields it is a smaller model, elsewhere a sentence."""
    whole = spm.model((*SMALL, *SYMBOLS), normalizer=PLAIN)
    outcomes = {attempt(whole[:end], tmp_path) for end in range(len(whole))}
    assert outcomes == {False, True}


@pytest.mark.parametrize("name", ["charsmap", "symbols bpe", "suffix", "denormalizer"])
def test_mutated_files_run_or_are_refused(name: str, tmp_path: pathlib.Path) -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(f"{SEED} {name}")
    whole = ACCEPTED[name]
    accepted = 0
    for _ in range(ROUNDS):
        accepted += attempt(doors.mutate_bytes(whole, [whole], source), tmp_path)
    assert 0 < accepted < ROUNDS


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.model")), ids=lambda path: path.name)
def test_corpus(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Files that once went wrong, and one of each kind."""
    attempt(path.read_bytes(), tmp_path)


def test_the_corpus_is_there() -> None:
    assert len(list(CORPUS.glob("*.model"))) >= 5


def test_reading_is_linear(tmp_path: pathlib.Path) -> None:
    """A length that promises much, or a million empty fields, costs what the bytes cost."""
    begin = time.process_time()
    for data in (b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x00" * 300_000, b"\x78\x00" * 300_000):
        assert not attempt(data, tmp_path)
    assert time.process_time() - begin < 20


def test_bos_and_eos_are_added_on_request(tmp_path: pathlib.Path) -> None:
    """As the options add_bos and add_eos of the reference; a name that is no control piece has no
    id."""
    reference, ours = spm_compare.open_both(ACCEPTED["charsmap"], tmp_path)
    assert ours.encode("ab").tolist() == reference.encode("ab")
    assert ours.encode("ab", bos=True, eos=True).tolist() == reference.encode(
        "ab", add_bos=True, add_eos=True
    )
    assert (ours.bos_id, ours.eos_id) == (reference.bos_id(), reference.eos_id())
    named = spm.model(SMALL, trainer=spm.field(46, "abc") + spm.field(47, "<s>"))
    reference, ours = spm_compare.open_both(named, tmp_path)
    assert (ours.bos_id, ours.eos_id) == (None, 1)
    assert (reference.bos_id(), reference.eos_id()) == (-1, 1)
    with pytest.raises(RefusedError):
        ours.encode("ab", bos=True)


def test_control_pieces_show_unless_they_are_skipped(tmp_path: pathlib.Path) -> None:
    """The reference cannot show them; everything else stays as it decodes."""
    ours = spm_compare.open_ours(ACCEPTED["charsmap"], tmp_path)
    ids = [1, *ours.encode("ab a"), 2]
    assert ours.decode(ids, skip_special_tokens=True) == "ab a"
    assert ours.decode(ids) == "<s> ab a</s>"
    assert ours.decode([0]) == " \u2047 "
    assert [ours.id_to_token(token_id) for token_id in (0, 1, 3)] == ["<unk>", "<s>", "\u2581"]
    assert ours.id_to_bytes(3) == b" "
    assert ours.decode([99_999]) == ""


def test_the_certificate_names_the_library(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ACCEPTED["charsmap bpe"])
    compiled = vocab.load_image(path, cache_dir=tmp_path / "cache")
    assert compiled.source == "sentencepiece"
    assert compiled.certificate["reference"] == f"sentencepiece {sentencepiece.__version__}"
    assert compiled.certificate["cases"] > 5000
    assert sources.read(path).main.role == "tokenizer"
