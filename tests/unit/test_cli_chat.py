"""`pintok chat`: the model's own template, whatever a line holds."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import vocab_models
from click.testing import CliRunner

from pintok.tokenizer import Tokenizer
from pintok_server.cli import tool
from pintok_server.cli.chats import Chat, parse_chat
from pintok_server.cli.lines import Refusal

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if mood %}[{{ mood }}]{% endif %}{{ image_token }}"
    "{% if add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}"
)
CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
    "pad_token": None,
    "add_bos_token": True,
    "extra_special_tokens": {"image_token": "<|image|>"},
}
HELLO = [{"role": "user", "content": "the thing"}]


def write_model(directory: pathlib.Path, **config: Any) -> pathlib.Path:
    path = vocab_models.write(directory, vocab_models.byte_level())
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_model(tmp_path / "model", **CONFIG, chat_template=TEMPLATE)


def chat(model: pathlib.Path, *lines: Any) -> list[dict[str, Any]]:
    data = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    result = CliRunner().invoke(tool.main, ["chat", "--jsonl", "--model", str(model)], input=data)
    assert result.exit_code == 0, result.output + result.stderr
    return [json.loads(line) for line in result.stdout_bytes.splitlines()]


def test_the_text_and_its_ids_without_a_second_beginning(model: pathlib.Path) -> None:
    plain, rich = chat(
        model,
        {"messages": HELLO, "n": 7},
        {
            "messages": HELLO,
            "add_generation_prompt": True,
            "now": "2031-02-03T04:05:06",
            "mood": "calm",
            "tools": None,
        },
    )
    assert plain["rendered"] == "<s>user: the thing<|end|>\n<|image|>"
    assert rich["rendered"] == "<s>user: the thing<|end|>\n[calm]<|image|>2031"
    tokenizer = Tokenizer.from_file(model)
    begin, end = tokenizer.encode("<s><|end|>", add_special_tokens=False).tolist()
    for answer in (plain, rich):
        expected = tokenizer.encode(answer["rendered"], add_special_tokens=False).tolist()
        assert answer["ids"] == expected
        assert expected.count(begin) == 1 and expected.count(end) == 1


def test_template_files_win_over_the_configuration(tmp_path: pathlib.Path) -> None:
    path = write_model(tmp_path, **CONFIG, chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag {{ documents }}")
    default, named, unknown = chat(
        path,
        {"messages": HELLO},
        {"messages": HELLO, "template": "rag", "documents": [1]},
        {"messages": HELLO, "template": "none"},
    )
    assert default["rendered"] == "new"
    assert named["rendered"] == "rag [1]"
    assert unknown["error"]["message"].endswith("this model has default, rag")


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({}, "has no chat template"),
        ({"chat_template": 5}, "neither a text nor a list"),
        ({"chat_template": [{"name": "default"}]}, "neither a text nor a list"),
        ({"chat_template": {"default": "x"}}, "neither a text nor a list"),
        ({"chat_template": "{% if %}"}, "not valid"),
    ],
)
def test_a_model_without_a_usable_template_answers_so(
    tmp_path: pathlib.Path, config: dict[str, Any], hint: str
) -> None:
    (answer,) = chat(write_model(tmp_path, **config), {"messages": HELLO})
    assert answer["error"]["code"] == "template" and hint in answer["error"]["message"]


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        (b"{", "bad_json", "not JSON"),
        ({}, "bad_field", "messages is not there"),
        ({"messages": {}}, "bad_field", "messages is not there"),
        ({"messages": [], "tools": {}}, "bad_field", "tools is not a list"),
        ({"messages": [], "documents": "d"}, "bad_field", "documents is not a list"),
        ({"messages": [], "template": 1}, "bad_field", "template is not a string"),
        ({"messages": [], "add_generation_prompt": 1}, "bad_field", "neither true nor false"),
        ({"messages": [], "add_generation_promt": True}, "bad_field", "prompt is meant"),
        ({"messages": [], "now": "noon"}, "bad_field", "now is not a time"),
        ({"messages": [], "now": 5}, "bad_field", "now is not a time"),
        ({"messages": [], "self": 5}, "bad_field", "self cannot be"),
    ],
)
def test_bad_lines_are_refused(line: Any, code: str, hint: str) -> None:
    refusal = parse_chat(line if isinstance(line, bytes) else json.dumps(line).encode())
    assert isinstance(refusal, Refusal)
    assert refusal.code == code and hint in refusal.message


@pytest.mark.parametrize(
    "line",
    [
        {"messages": ["hi"]},
        {"messages": [], "continue_final_message": True},
        {"messages": [{"content": 5}], "continue_final_message": True},
        {"messages": [{"content": {"text": "a"}}], "continue_final_message": True},
        {"messages": [{"content": [{"text": 1}]}], "continue_final_message": True},
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
        b'{"messages":[{"content":' + b"[" * 400 + b"]" * 400 + b"}]}",
    ],
)
def test_messages_that_cannot_be_rendered_are_one_line(model: pathlib.Path, line: Any) -> None:
    """The chat after it is served as if it were alone."""
    bad, good = chat(model, line, {"messages": HELLO})
    assert "rendered" in good
    assert bad.get("error", {}).get("code") == "template" or "rendered" in bad


def test_any_other_name_is_a_variable_of_the_template() -> None:
    parsed = parse_chat(b'{"messages":[],"enable_thinking":false,"render":1,"source":2}')
    variables = {"enable_thinking": False, "render": 1, "source": 2}
    assert parsed == Chat([], {**variables, "content_special_tokens": "text"})


def test_variables_cannot_break_the_rendering(model: pathlib.Path) -> None:
    names = [
        "source",
        "cls",
        "args",
        "kwargs",
        "loop",
        "environment",
        "strftime_now",
        "context",
    ]
    answers = chat(model, *({"messages": HELLO, name: 1} for name in names))
    for name, answer in zip(names, answers, strict=True):
        assert answer.get("rendered", "").startswith("<s>user"), (name, answer)


def test_lone_surrogates_in_a_message_are_refused(model: pathlib.Path) -> None:
    (answer,) = chat(model, {"messages": [{"role": "user", "content": "a\ud800"}]})
    assert answer["error"]["code"] == "bad_utf8"


def test_without_lines_the_text_is_written_as_it_is(model: pathlib.Path) -> None:
    arguments = ["chat", "--model", str(model)]
    result = CliRunner().invoke(
        tool.main, arguments, input=json.dumps({"messages": HELLO}, indent=1)
    )
    assert result.exit_code == 0
    assert result.stdout == "<s>user: the thing<|end|>\n<|image|>"
    result = CliRunner().invoke(tool.main, arguments, input="[]")
    assert result.exit_code == 1 and "not a JSON object" in result.stderr
