"""The JSON lines of `pintok`: every line gets one answer, a bad one a sentence of its own."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from pintok.tokenizer import Tokenizer
from pintok_server.cli import tool
from pintok_server.cli.lines import Backend, Job, Options, Refusal, format_line, parse_line

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("default")


def parse(line: object, operation: Any = "encode", **defaults: Any) -> Job | Refusal:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_line(data, operation, defaults=Options(**defaults))


def run(*arguments: str, stdin: bytes = b"", status: int = 0) -> Any:
    result = CliRunner().invoke(tool.main, arguments, input=stdin)
    assert result.exit_code == status, result.output + result.stderr
    return result


def run_lines(command: str, lines: list[object], *options: str) -> list[dict[str, Any]]:
    stdin = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    out = run(command, "--jsonl", *options, stdin=stdin).stdout_bytes
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        (b"", "bad_json", "column 1"),
        (b"{", "bad_json", "not JSON"),
        (b"[1]", "bad_json", "not a JSON object"),
        (b"null", "bad_json", "not a JSON object"),
        (b'{"text":"\xff"}', "bad_utf8", "not valid UTF-8"),
        (b"[" * 100_000, "bad_json", "too deep"),
        (b'{"text":"a","n":' + b"9" * 10_000 + b"}", "bad_json", "number too long"),
        ({}, "bad_field", "neither text nor text_b64"),
        ({"text": 1}, "bad_field", "text is not a string"),
        ({"text": None}, "bad_field", "text is null"),
        ({"text": ["a"]}, "bad_field", "text is not a string"),
        ({"text": "a", "text_b64": "YQ=="}, "bad_field", "both text and text_b64"),
        ({"text_b64": "YQ="}, "bad_field", "text_b64 is not base64"),
        ({"text_b64": "é"}, "bad_field", "text_b64 is not base64"),
        ({"text_b64": 7}, "bad_field", "text_b64 is not a string"),
        ({"text": "a", "pair": 2}, "bad_field", "pair is not a string"),
        ({"text": "a", "pair": "a", "pair_b64": ""}, "bad_field", "both pair and pair_b64"),
        ({"text": "a", "bos": 1}, "bad_field", "bos is neither true nor false"),
        ({"text": "a", "offsets": "true"}, "bad_field", "offsets is neither"),
        ({"text": "a", "add_special_tokens": None}, "bad_field", "add_special_tokens is neither"),
        ({"text": "a", "parse_special": "some"}, "bad_field", "neither 'all' nor 'none'"),
        ({"text": "a", "parse_special": ["all"]}, "bad_field", "neither 'all' nor 'none'"),
        ({"text": "a", "add_special_token": True}, "bad_field", "add_special_tokens is meant"),
        ({"text": "a", "offset": True}, "bad_field", "offsets is meant"),
        (
            {"text": "a", "parse_special": "none", "encode_special_tokens": True},
            "bad_field",
            "needs parse_special",
        ),
    ],
)
def test_bad_line_is_refused_with_code_and_sentence(line: object, code: str, hint: str) -> None:
    refusal = parse(line)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code and hint in refusal.message
    format_line({"error": {"code": refusal.code, "message": refusal.message}})


@pytest.mark.parametrize("line", [{"text": "a\ud800"}, {"text": "a", "pair": "b\udfff"}])
def test_lone_surrogates_depend_on_the_reference(line: object, tokenizer: Tokenizer) -> None:
    """tiktoken replaces them, Hugging Face tokenizers refuse the text."""
    job = parse(line)
    assert isinstance(job, Job)
    assert job.surrogates
    assert b"\xef\xbf\xbd" in job.text + (job.pair or b"")
    (answer,) = Backend(tokenizer).serve("encode", [job])
    assert answer["error"]["code"] == "bad_utf8"


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        (None, "bad_field"),
        ("1 2", "bad_field"),
        ([1, -1], "bad_id"),
        ([1, 2**32], "bad_id"),
        ([1, True], "bad_id"),
        ([1.0], "bad_id"),
        ([[1]], "bad_id"),
        (["1"], "bad_id"),
    ],
)
def test_bad_ids_are_refused(ids: object, code: str) -> None:
    refusal = parse({"ids": ids}, "decode")
    assert isinstance(refusal, Refusal) and refusal.code == code


def test_fields_of_the_caller_are_left_alone() -> None:
    job = parse({"text": "a", "id": 7, "meta": {"x": 1}, "n": 3, "a" * 100_000: 1, "ids": [1]})
    assert job == Job(Options(), text=b"a")


def test_line_wins_over_command_line_and_joined_surrogates_are_text() -> None:
    job = parse(b'{"text": "\\ud83d\\ude00", "add_special_tokens": true}', add_special_tokens=False)
    assert isinstance(job, Job)
    assert job.text == "😀".encode() and job.options.add_special_tokens
    assert not parse({"text": "a"}, add_special_tokens=False).options.add_special_tokens


def test_lines_answer_in_order_and_a_bad_one_stops_nothing(tokenizer: Tokenizer) -> None:
    lines: list[object] = [
        {"text": "Hello, world!"},
        b"not json",
        {"text_b64": base64.b64encode("naïve café".encode()).decode()},
        {"text_b64": base64.b64encode(b"\xff\xfe").decode()},
        {"text": ""},
        b"",
        {"text": "a b", "offsets": True},
        {"text": "one", "pair": "two"},
        {"text": "a\u2028b\x00c"},
    ]
    answers = run_lines("encode", lines)
    assert len(answers) == len(lines)
    assert answers[0] == {"ids": tokenizer.encode("Hello, world!").tolist()}
    assert answers[1]["error"]["code"] == "bad_json"
    assert answers[2] == {"ids": tokenizer.encode("naïve café").tolist()}
    assert answers[3]["error"] == {"code": "bad_utf8", "message": "the text is not valid UTF-8"}
    assert answers[4] == {"ids": []}
    assert answers[5]["error"]["code"] == "bad_json"
    full = tokenizer.encode_full("a b")
    assert answers[6] == {
        "ids": full.ids.tolist(),
        "offsets": full.offsets.tolist(),
        "type_ids": full.type_ids.tolist(),
        "special_tokens_mask": full.special_tokens_mask.tolist(),
    }
    ids = tokenizer.encode("one", pair="two").tolist()
    assert answers[7]["ids"] == ids
    assert len(answers[7]["type_ids"]) == len(answers[7]["special_tokens_mask"]) == len(ids)
    assert answers[8] == {"ids": tokenizer.encode("a\u2028b\x00c").tolist()}


def test_count_and_decode_agree_with_encode(tokenizer: Tokenizer) -> None:
    texts = ["Hello", "", "naïve 😀 text", " spaces  and\nlines"]
    ids = [answer["ids"] for answer in run_lines("encode", [{"text": text} for text in texts])]
    counts = run_lines("count", [{"text": text} for text in texts])
    assert counts == [{"count": len(each)} for each in ids]
    assert run_lines("decode", [{"ids": each} for each in ids]) == [{"text": t} for t in texts]
    special = tokenizer.encode("<|endoftext|>").tolist()
    kept, skipped = run_lines(
        "decode", [{"ids": special}, {"ids": special, "skip_special_tokens": True}]
    )
    assert (kept, skipped) == ({"text": "<|endoftext|>"}, {"text": ""})


def test_plain_text_goes_through_and_comes_back(tokenizer: Tokenizer, tmp_path) -> None:
    text = "First line\nsecond — naïve\n"
    ids = tokenizer.encode(text).tolist()
    out = run("encode", stdin=text.encode()).stdout
    assert out == " ".join(map(str, ids)) + "\n"
    assert run("decode", stdin=out.encode()).stdout_bytes == text.encode()
    assert run("decode", stdin=out.replace(" ", ", ").encode()).stdout_bytes == text.encode()
    assert run("count", stdin=text.encode()).stdout == f"{len(ids)}\n"
    lines = run("encode", "--lines", stdin=text.encode()).stdout.splitlines()
    assert [list(map(int, line.split())) for line in lines] == [
        tokenizer.encode(line).tolist() for line in text.splitlines()
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a b c")
    two.write_bytes(b"\xff")
    out = run("count", str(one), str(two), status=1)
    assert out.stdout.splitlines()[0] == f"{len(tokenizer.encode('a b c'))}\t{one}"
    assert out.stderr == f"pintok: {two}: the text is not valid UTF-8\n"
    refused = run("encode", "--lines", stdin=b"a\n\xff\nb\n", status=1)
    assert len(refused.stdout.splitlines()) == 3 and refused.stdout.splitlines()[1] == ""
    assert run("decode", stdin=b"1 x", status=1).stdout == ""


def test_missing_file_model_and_wrong_options_are_sentences(tmp_path) -> None:
    absent = str(tmp_path / "absent")
    result = run("encode", absent, status=1)
    assert result.stderr == f"pintok: {absent}: cannot be read: No such file or directory\n"
    assert "no such file or directory" in run("encode", "--model", absent, status=1).stderr
    assert "exclude each other" in run("encode", "--jsonl", "--lines", status=2).stderr
    assert "HOST:PORT" in run("ping", "--server", "a:b", status=2).stderr


def test_lines_door_survives_anything() -> None:
    # Whatever a line holds: a job or a refusal, and an answer that is itself a line of JSON.
    seed = int(os.environ.get("PINTOK_SEED", "31337"))
    rng = random.Random(seed)
    valid = (
        b'{"text": "a\\ud83d\\ude00b", "pair": "c", "add_special_tokens": false, "bos": true}',
        b'{"text_b64": "aGVsbG8=", "parse_special": "none", "offsets": true, "n": [1, {"a": 2.5}]}',
        b'{"ids": [1, 2, 4294967295], "skip_special_tokens": true}',
    )
    for number in range(4000):
        data = bytearray(rng.choice(valid))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data) or 1)
            what = rng.randrange(4)
            if what == 0 and data:
                data[at] = rng.randrange(256)
            elif what == 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 6))
            elif what == 2:
                del data[at : at + rng.randrange(1, 12)]
            else:
                data[at:at] = rng.choice([b"\\ud800", b'"', b"{", b"]", b"1e999", b"null", b"\0"])
        operation = rng.choice(["encode", "count", "decode"])
        outcome = parse_line(bytes(data), operation, defaults=Options())
        if isinstance(outcome, Refusal):
            line = format_line({"error": {"code": outcome.code, "message": outcome.message}})
            assert line.count(b"\n") == 1 and len(line) < 400, f"seed {seed}, case {number}"


def test_answers_leave_before_the_input_ends() -> None:
    # A line that was written is answered without waiting for more: the tool is used as a coprocess.
    process = subprocess.Popen(
        [sys.executable, "-m", "pintok_server.cli.tool", "encode", "--jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None and process.stdout is not None
    for _ in range(3):
        process.stdin.write(b'{"text": "a"}\n')
        process.stdin.flush()
        assert b"ids" in process.stdout.readline()
    process.stdin.close()
    assert process.wait(30) == 0


def test_reader_that_goes_away_ends_the_tool_quietly() -> None:
    done = subprocess.run(
        f'yes \'{{"text": "a"}}\' | head -n 100000 | {sys.executable} -m pintok_server.cli.tool'
        " encode --jsonl | head -n 1",
        shell=True,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""
