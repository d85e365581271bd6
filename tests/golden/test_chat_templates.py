"""Rendered chats equal the reference's, and where the reference raises we raise."""

from __future__ import annotations

import base64
import collections
import datetime
import gzip
import json
import re
from typing import Any

import pytest

from pintok._content import SpecialTokens
from pintok.chat import ChatTemplate, ChatTemplateError
from tests.golden import cases

ROOT = cases.data_root()
BRACKETS = re.compile(r"<[^<>\s\"']{1,40}>|\[/?[A-Z_]{3,20}\]")
VARIABLES = (
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "enable_thinking",
)


def render(case: cases.Json, source: str) -> str | None:
    """What we render, or None where the template refuses."""
    template = ChatTemplate({"default": source}, case["special"])
    options = {name: case[name] for name in VARIABLES if name in case}
    try:
        return template.render(
            case["messages"], now=datetime.datetime.fromisoformat(case["now"]), **options
        )
    except ChatTemplateError:
        return None


@pytest.mark.skipif(ROOT is None, reason="no reference cases: set PINTOK_TEST_DATA")
def test_every_template_renders_as_the_reference() -> None:
    """One differing character puts a model off its training."""
    assert ROOT is not None
    outcomes: collections.Counter[str] = collections.Counter()
    wrong = []
    with gzip.open(ROOT / "goldens" / "_chat_templates.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            source = (ROOT / "chat_templates" / case["template"]).read_text(encoding="utf-8")
            wanted = case.get("rendered")
            if "rendered_b64" in case:
                wanted = base64.b64decode(case["rendered_b64"]).decode()
            if render(case, source) == wanted:
                outcomes["error" if wanted is None else "rendered"] += 1
            else:
                wrong.append(f"case {case['n']} {case['template']}")
    assert not wrong, wrong[:10]
    assert outcomes["rendered"] > 1000
    assert outcomes["error"] > 100


def special_tokens(case: cases.Json, source: str) -> SpecialTokens:
    """What stands in brackets in a template, and the tokens that its model names."""
    named = [value for value in case["special"].values() if isinstance(value, str)]
    return SpecialTokens([*BRACKETS.findall(source), *named, "<|im_end|>", "[INST]"])


def spoilt(value: Any, texts: list[str]) -> Any:
    """The messages with one of these texts behind each content."""
    if isinstance(value, list):
        return [spoilt(item, texts) for item in value]
    if isinstance(value, dict):
        return {
            name: f"a{texts[0]}b{item}{texts[-1]}"
            if name in ("content", "text") and isinstance(item, str) and item
            else spoilt(item, texts)
            for name, item in value.items()
        }
    return value


@pytest.mark.skipif(ROOT is None, reason="no reference cases: set PINTOK_TEST_DATA")
def test_contents_add_no_special_token_to_any_template() -> None:
    """With tokens in the contents each template writes those that it writes with letters there."""
    assert ROOT is not None
    shapes = set()
    compared = refused = 0
    with gzip.open(ROOT / "goldens" / "_chat_templates.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            options = {name: case[name] for name in VARIABLES if name in case}
            roles = tuple(message.get("role") for message in case["messages"])
            shape = (case["template"], roles, "tools" in case)
            if "error" in case or shape in shapes:
                continue
            shapes.add(shape)
            source = (ROOT / "chat_templates" / case["template"]).read_text(encoding="utf-8")
            special = special_tokens(case, source)
            template = ChatTemplate({"default": source}, case["special"])
            clock = datetime.datetime.fromisoformat(case["now"])
            # What no template looks for, so that its reading is the same with letters.
            tokens = ["<|im_end|>", "[INST]"]
            chat = spoilt(case["messages"], tokens)
            twin = spoilt(case["messages"], ["x" * len(token) for token in tokens])
            try:
                expected = special.texts(template.render(twin, now=clock, **options))
                rendered = template.render_content(special, chat, now=clock, **options)
            except ChatTemplateError:
                refused += 1
                continue
            assert rendered.text == template.render(chat, now=clock, **options)
            own = special.find(json.dumps([case["messages"], options.get("tools")]))
            if not rendered.acted_on and not own:
                left = special.texts(rendered.text, without=rendered.plain)
                assert left == expected, f"case {case['n']} {case['template']}"
                compared += 1
    assert compared > 500
    assert refused < 20


HOSTILE = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{% set n = namespace(_x=1) %}",
    "{% set n = namespace() %}{% set n._x = 1 %}",
    "{{ dict.__init__.__globals__ }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{% for x in range(10 ** 9) %}x{% endfor %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_are_refused(source: str) -> None:
    """A template is somebody else's code: it may raise, and nothing more."""
    template = ChatTemplate({"default": source})
    try:
        rendered = template.render([{"role": "user", "content": "hi"}])
    except ChatTemplateError:
        return
    assert "object" not in rendered


def test_objects_reach_the_template_as_their_type_name() -> None:
    """Methods of rich objects would be a way out of the sandbox."""
    template = ChatTemplate({"default": "{{ messages[0].content }}"})
    assert template.render([{"role": "user", "content": object()}]) == "<object>"


def test_a_continued_message_ends_the_text() -> None:
    """The text must stop exactly where generation goes on."""
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    template = ChatTemplate({"default": source})
    messages = [{"role": "assistant", "content": "so far "}]
    assert template.render(messages, continue_final_message=True) == "<assistant>so far"


def test_the_tool_template_is_chosen_for_tools() -> None:
    """Models with several templates name the one for tools."""
    source = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    template = ChatTemplate.from_source(source, special_tokens={})
    assert template.render([]) == "d"
    assert template.render([], tools=[{"type": "function"}]) == "t"
    with pytest.raises(ChatTemplateError, match="no chat template 'rag'"):
        template.render([], template="rag")
