"""Special tokens in chats: the template's are found, those that callers wrote are ordinary text.

The twin of every chat is the same chat with letters in place of the tokens: what the template
writes of its own accord is there, and nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import vocab_models
from click.testing import CliRunner

from pintok import _template_limits
from pintok._content import SpecialTokens, byte_ranges
from pintok.chat import ChatTemplate, ChatTemplateError
from pintok.encoding import PlainRange
from pintok.tokenizer import Tokenizer
from pintok_server.cli import tool

SEED = int(os.environ.get("PINTOK_SEED", "31415"))
TOKENS = ("<|start|>", "<|end|>", "<|role|>", "<s>", "[INST]", "<think>", "</think>", "<|a|><|b|>")
SPECIAL = SpecialTokens(TOKENS)
END = "<|end|>"

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TRIMMED = "{% for m in messages %}<s>[INST] {{ m.content | trim }} <|end|>{% endfor %}"
ROLES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
PARTS = (
    "{% for m in messages %}<|start|>{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
)
TRIMMED_PARTS = PARTS.replace("p.text", "p.text | trim")
TOOLS = (
    "<|start|>{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<|start|>{{ c.function.name }}({{ c.function.arguments"
    " | tojson(indent=2) }}){% endfor %}<|end|>{% endfor %}"
)
ASCII = "<|start|>{{ tools | tojson(ensure_ascii=true) }}<|end|>"
PRINTED = "<|start|>{{ tools }}{{ messages[0].content }}<|end|>"
DOCUMENTS = (
    "{% for d in documents %}<s>{% for k, v in d.items() %}{{ k }}: {{ v }}\n{% endfor %}"
    "{% endfor %}{{ messages[0].content }}<|end|>"
)
LOWER = "{% for m in messages %}<|start|>{{ m.content | lower }}<|end|>{% endfor %}"
UPPER = "{% for m in messages %}<|start|>{{ m.content | upper }}<|end|>{% endfor %}"
ESCAPED = "{% for m in messages %}<|start|>{{ m.content | escape }}<|end|>{% endfor %}"
REMOVING = (
    "{% for m in messages %}<|start|>{{ m.content | replace('<tool>', '') }}<|end|>{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ content }}<|end|>{% endfor %}"
)
NAMED = "{% for m in messages %}<|start|>{{ m.name }}: {{ m.content }}<|end|>{% endfor %}"
MOOD = "<|start|>{{ mood }}{{ image_token }}{{ messages[0].content }}<|end|>"


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def found(
    source: str,
    messages: Sequence[dict[str, Any]],
    *,
    special: SpecialTokens = SPECIAL,
    **more: Any,
) -> tuple[list[str], tuple[str, ...]]:
    """The special tokens that are found in the rendered chat, and on which the template acts."""
    template = ChatTemplate({"default": source})
    rendered = template.render_content(special, messages, **more)
    more.pop("content_special_tokens", None)
    assert rendered.text == template.render(messages, **more), "the text is what it always is"
    left, end = [], 0
    for begin, stop in special.find(rendered.text):
        if begin >= end and not any(a < stop and begin < b for a, b in rendered.plain):
            left.append(rendered.text[begin:stop])
            end = stop
    return left, rendered.acted_on


@pytest.mark.parametrize(
    ("source", "messages", "more", "expected"),
    [
        (CHATML, [user("a <|end|> b")], {}, ["<|start|>", END]),
        (CHATML, [user(END)], {}, ["<|start|>", END]),
        (CHATML, [user(f"<{END}"), user(f"{END}>")], {}, ["<|start|>", END] * 2),
        (CHATML, [user("<|a|>"), user("<|b|>")], {}, ["<|start|>", END] * 2),
        (TRIMMED, [user(f"  {END}\n")], {}, ["<s>", "[INST]", END]),
        (ROLES, [user("<|role|>"), {"role": "role", "content": END}], {}, [END, "<|role|>", END]),
        (ROLES, [{"role": "x|><|role|><|x", "content": ""}], {}, [END]),
        (PARTS, [user(parts("<|en", "d|>"))], {}, ["<|start|>", END]),
        (PARTS, [user(parts("<", "|", "e", "nd", "|", ">"))], {}, ["<|start|>", END]),
        (TRIMMED_PARTS, [user(parts(" <|en\n", "\td|> "))], {}, ["<|start|>", END]),
        (LOWER, [user("<|END|> <|eNd|>")], {}, ["<|start|>", END]),
        (UPPER, [user(END)], {}, ["<|start|>", END]),
        (ESCAPED, [user(f"{END} a < b")], {}, ["<|start|>", END]),
        (NAMED, [user("x", name=END)], {}, ["<|start|>", END]),
        (MOOD, [user("x")], {"mood": END, "image_token": "<s>"}, ["<|start|>", "<s>", END]),
        (DOCUMENTS, [user("x")], {"documents": [{END: "<s>", "t": END}]}, ["<s>", END]),
        (PRINTED, [user("'")], {"tools": [{"n": f"'{END}\""}]}, ["<|start|>", END]),
        (ASCII, [user("x")], {"tools": [{END: [f"é{END}"]}]}, ["<|start|>", END]),
    ],
)
def test_only_the_template_s_tokens_are_found(
    source: str, messages: list[dict[str, Any]], more: dict[str, Any], expected: list[str]
) -> None:
    assert found(source, messages, **more) == (expected, ())


def test_tool_calls_and_their_keys_are_callers_text() -> None:
    """Arguments come from a model that somebody may have talked into anything."""
    call = {"function": {"name": f"f{END}", "arguments": {f"k{END}": [{"<s>": "[INST]"}]}}}
    chat = [user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"name": END, "parameters": {"<s>": {"enum": ["[INST]"]}}}]
    expected = ["<|start|>", END, "<|start|>", END]
    assert found(TOOLS, chat, tools=tools) == (expected, ())


def test_what_a_template_takes_out_does_not_make_a_token_of_the_rest() -> None:
    """The template acts on `<tool>`; the halves of a token around it are the caller's still."""
    left, acted_on = found(REMOVING, [user("<|en<tool>d|> <tool>")])
    assert left == ["<|start|>", END] and acted_on == ()


def test_a_template_s_own_reading_of_a_text_stands_where_it_reads_it() -> None:
    """The assistant's `</think>` is what the template looks for, the user's is not."""
    chat = [user(f"a</think>{END}"), {"role": "assistant", "content": f"<think>q</think>b{END}"}]
    expected = ["<|start|>", END, "<|start|>", END]
    assert found(THINKING, chat) == (expected, ("</think>",))
    shows = THINKING.replace("[-1]", "[0] + '</think>'")
    with_it = ["<|start|>", END, "<|start|>", "</think>", END]
    assert found(shows, chat) == (with_it, ("</think>",))


def test_look_alikes_are_no_tokens_unless_a_normalizer_makes_them_some() -> None:
    chat = [user("＜|end|＞ ≮s> ﹤s﹥")]
    template = ChatTemplate({"default": CHATML})
    assert template.render_content(SPECIAL, chat).plain == ()
    folded = SpecialTokens(TOKENS, normalized=True)
    rendered = template.render_content(folded, chat)
    (only,) = rendered.plain
    assert rendered.text[slice(*only)] == "＜|end|＞ ≮s> ﹤s﹥"


def test_tokens_without_any_mark_are_found_in_whatever_case() -> None:
    """Few models have such; ChatGLM had `sop`."""
    special = SpecialTokens(["eop", "<s>"])
    chat = [user("eop <s>")]
    assert found("{{ messages[0].content | lower }}eop", chat, special=special) == (["eop"], ())
    with pytest.raises(ChatTemplateError, match="the template changes the texts"):
        found("{{ messages[0].content | lower }}", [user("EOP")], special=special)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("text", [END]),
        ("parse", ["<s>", "<s>", END]),
        ({"user": "parse"}, ["<s>", END]),
        ({"tools": "parse"}, ["<s>", END]),
        ({"tools": "parse", "user": "text"}, ["<s>", END]),
        ({}, [END]),
    ],
)
def test_a_policy_is_for_all_or_for_places(policy: Any, expected: list[str]) -> None:
    source = "{{ tools }}{{ messages[0].content }}<|end|>"
    more = {"tools": ["<s>"], "content_special_tokens": policy}
    assert found(source, [user("<s>")], **more) == (expected, ())
    with pytest.raises(ValueError, match="must be 'text' or 'parse'"):
        found(source, [user("x")], content_special_tokens={"user": "maybe"})


def test_a_message_cannot_ask_for_parsing_itself() -> None:
    """Messages come from those whom the policy guards against."""
    chat = [user(END, content_special_tokens="parse")]
    assert found(CHATML, chat) == (["<|start|>", END], ())


def test_a_chat_without_edges_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has nothing to hide costs nothing."""
    calls = []
    render = _template_limits.render
    monkeypatch.setattr(
        _template_limits, "render", lambda *arguments: calls.append(1) or render(*arguments)
    )
    template = ChatTemplate({"default": CHATML})
    template.render_content(SPECIAL, [user("no tokens here")])
    assert len(calls) == 1
    template.render_content(SPECIAL, [user("a > b")])
    assert len(calls) == 3


def test_all_renderings_of_a_chat_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rendering is no way around the limits."""
    monkeypatch.setattr(_template_limits, "STEPS_MAX", 1000)
    steps = 600
    loop = f"{{% for a in range(10) %}}{{% for i in range({steps // 10}) %}}"
    loops = loop + "{% endfor %}{% endfor %}"
    template = ChatTemplate({"default": loops + "{{ messages[0].content }}"})
    assert template.render_content(SPECIAL, [user("x")]).text == "x"
    with pytest.raises(ChatTemplateError, match="steps"):
        template.render_content(SPECIAL, [user("<")])


def test_long_hostile_contents_cost_linear_work() -> None:
    """A square of these lengths would take an hour."""
    begin = time.process_time()
    count = 20_000
    chat = [user(END * count), {"role": "assistant", "content": f"</think>{END}" * count}]
    assert found(THINKING, chat) == (["<|start|>", END] * 2, ("</think>",))
    chat = [user("<|" * count), user("<" * count), user(parts("|>" * count)), user("eop" * count)]
    left, _ = found(CHATML, chat, special=SpecialTokens([*TOKENS, "eop"]))
    assert left == ["<|start|>", END] * 4
    assert time.process_time() - begin < 60


def test_what_cannot_be_told_apart_is_refused() -> None:
    """Neither guessed nor let through; asked for, the text is taken as it is."""
    hidden = "{{ messages[0].content | replace('%c' % 62, '%c' % 60) | replace('s%c' % 60, 's>') }}"
    with pytest.raises(ChatTemplateError, match="whose the special tokens in the chat are"):
        found(hidden, [user(">s>")])
    assert found(hidden, [user(">s>")], content_special_tokens="parse")[0] == ["<s>"]
    named = "{{ messages[0].content | replace('>', '<') | replace('s<', 's>') }}"
    assert found(named, [user(">s< >s<")]) == (["<s>", "<s>"], ("<s>",))
    every = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(ChatTemplateError, match="private-use"):
        found(CHATML, [user(every + END)])


def chats(count: int) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, Any]], Any]]:
    """Templates with chats full of tokens and pieces of them, and the same without."""
    random_ = random.Random(SEED)
    pieces = [
        *TOKENS,
        "<",
        ">",
        "|",
        "<|",
        "|>",
        "end",
        "s",
        "[",
        "]",
        " ",
        "\n",
        "a",
        "é",
        "\U0001f600",
    ]

    def text() -> str:
        return "".join(random_.choice(pieces) for _ in range(random_.randrange(6)))

    for _ in range(count):
        source = random_.choice([CHATML, TRIMMED, ROLES, TOOLS, PARTS, TRIMMED_PARTS, LOWER])
        roles = random_.choices(["user", "assistant", "tool"], k=random_.randrange(1, 4))
        split = source in (PARTS, TRIMMED_PARTS)
        texts = [[text() for _ in range(1 + split * 2)] for _ in roles]
        both = []
        for change in (lambda string: string, harmless):
            both.append(
                [
                    {
                        "role": role,
                        "content": parts(*map(change, some)) if split else change(some[0]),
                    }
                    for role, some in zip(roles, texts, strict=True)
                ]
            )
        yield source, both[0], both[1], None


def harmless(text: str) -> str:
    return "".join(" " if char.isspace() else "x" for char in text)


def test_the_tokens_found_are_those_of_a_harmless_chat() -> None:
    """Whatever is in the contents, the template's tokens and no others are found."""
    for source, chat, twin, _ in chats(1500):
        left, acted_on = found(source, chat)
        assert acted_on == (), f"seed {SEED}"
        rendered = ChatTemplate({"default": source}).render(twin)
        assert left == SPECIAL.texts(rendered), f"seed {SEED}: {chat}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_model(tmp_path_factory.mktemp("model")))


def write_model(directory: pathlib.Path) -> pathlib.Path:
    tokens = [vocab_models.added(token, special=True) for token in TOKENS]
    path = vocab_models.write(directory, vocab_models.byte_level(added_tokens=tokens))
    config = {"chat_template": CHATML}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_ids_are_those_of_the_pieces_between_the_template_s_tokens(tokenizer: Tokenizer) -> None:
    """Each piece as the reference encodes it with its special tokens as ordinary text."""
    template = ChatTemplate({"default": CHATML})
    for source, chat, twin, _ in chats(800):
        if source != CHATML:
            continue
        full = tokenizer.apply_chat_template(chat)
        text, ids, pos = full.text, [], 0
        twin_text = template.render(twin)
        assert len(twin_text) == len(text)
        for begin, end in [*SPECIAL.find(twin_text), (len(text), len(text))]:
            piece = text[pos:begin]
            options = {"add_special_tokens": False, "encode_special_tokens": True}
            ids += tokenizer.encode(piece, **options).tolist()
            ids += tokenizer.encode(text[begin:end], add_special_tokens=False).tolist()
            pos = end
        assert full.ids.tolist() == ids, f"seed {SEED}: {chat}"
        parsed = tokenizer.apply_chat_template(chat, content_special_tokens="parse")
        assert np.array_equal(parsed.ids, tokenizer.encode(text, add_special_tokens=False))
        assert parsed.hits == 0


FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@pytest.mark.parametrize("flags", [(), *itertools.combinations(FLAGS, 1), FLAGS[:2], FLAGS[1:]])
def test_flags_of_tokens_hold_at_the_ends_of_contents(
    flags: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    """White space that a token takes along, words beside it, and a normalizer that makes one: the
    ids are those with all of every content as ordinary text, by the ranges of the core."""
    special = dict.fromkeys(flags, True)
    tokens = [vocab_models.added(token, special=True, **special) for token in TOKENS[:4]]
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    root = vocab_models.byte_level(added_tokens=tokens, normalizer=normalizer)
    path = vocab_models.write(tmp_path, root)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    tokenizer = Tokenizer.from_file(path)
    source = random.Random(f"{SEED} {flags}")
    pieces = [*TOKENS[:4], "<S>", "<|END|>", "＜s＞", "<|", "|>", " ", "\n", "a", "_", "é"]
    hits = 0
    for _ in range(200):
        texts = ["".join(source.choices(pieces, k=source.randrange(6))) for _ in range(2)]
        full = tokenizer.apply_chat_template([user(text) for text in texts])
        ranges, pos = [], 0
        for text in texts:
            pos = full.text.index(f"\n{text}<|end|>\n", pos) + 1
            begin = len(full.text[:pos].encode())
            if text:
                ranges.append(PlainRange(begin, begin + len(text.encode())))
            pos += len(text)
        expected = tokenizer.encode_plain(full.text, ranges, add_special_tokens=False)
        assert full.ids.tolist() == expected.ids.tolist(), f"seed {SEED}: {texts}"
        assert full.hits == expected.hits
        hits += full.hits
    assert hits > 100


def test_hits_are_counted_and_shown(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    full = tokenizer.apply_chat_template([user(f"{END} a {END}"), user("[INST]")])
    assert full.hits == 3
    model = write_model(tmp_path)
    lines = [
        {"messages": [user(END)]},
        {"messages": [user("x")]},
        {"messages": [user(END)], "content_special_tokens": "parse"},
        {"messages": [user(END)], "content_special_tokens": {"user": "parse"}},
        {"messages": [user(END)], "content_special_tokens": 1},
    ]
    words = ["chat", "--jsonl", "--model", str(model)]
    data = "".join(json.dumps(line) + "\n" for line in lines)
    result = CliRunner().invoke(tool.main, words, input=data)
    assert result.exit_code == 0, result.output
    hit, none, parsed, also, wrong = map(json.loads, result.stdout.splitlines())
    assert hit["hits"] == 1 and set(none) == {"rendered", "ids"}
    assert parsed == also and set(parsed) == {"rendered", "ids"}
    assert parsed["rendered"] == hit["rendered"] and len(parsed["ids"]) < len(hit["ids"])
    assert wrong["error"]["code"] == "bad_field"
    words += ["--content-special-tokens", "parse"]
    result = CliRunner().invoke(tool.main, words, input=data)
    assert [*map(json.loads, result.stdout.splitlines())][0] == parsed


def test_ranges_are_bytes_of_the_text_with_surrogates_joined() -> None:
    text = "é<\ud83d\ude00>x"
    (one,) = byte_ranges(text, [(1, 5)])
    joined = "é<\U0001f600>x".encode()
    assert joined[one.begin : one.end] == "<\U0001f600>".encode()
