"""Templates are a door: whatever one asks for, it renders or is refused, soon and in little memory.

Each limit has its template; `tests/corpus/template` and seeded mutations of it are replayed in
every run. `PINTOK_SEED` chooses the mutations.
"""

from __future__ import annotations

import os
import pathlib
import random
import threading
import time
import tracemalloc

import pytest

from pintok import _template_limits
from pintok.chat import ChatTemplate, ChatTemplateError
from tests.fuzz import doors

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests" / "corpus" / "template").glob("*.jinja"))
SEED = int(os.environ.get("PINTOK_SEED", "2718"))
SECONDS_MAX = 30.0
MESSAGES = [
    {"role": "user", "content": "hello <|end|> 12"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
    {"role": "tool", "content": "x" * 1000},
]
TOOLS = [{"name": "f"}]

REFUSED = {
    "loops in loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "output": "{% for a in range(99999) %}{{ messages[2].content }}{% endfor %}",
    "doubling": (
        "{% set n = namespace(s='ab') %}"
        "{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    ),
    "sums": (
        "{% set n = namespace(s='ab') %}"
        "{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"
    ),
    "lists": (
        "{% set n = namespace(s=[1]) %}"
        "{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"
    ),
    "product": "{{ 'a' * 999999999999 }}",
    "list product": "{{ ([0] * 9999999999) | length }}",
    "power": "{{ 10 ** 9999999 }}",
    "large product": (
        "{% set n = namespace(i=2) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}"
    ),
    "width": "{{ '%999999999d' % 1 }}",
    "width of its own": "{{ '%*d' % (999999999, 1) }}",
    "format width": "{{ '{:>999999999}'.format(1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "center": "{{ 'a' | center(999999999) }}",
    "ljust": "{{ 'a'.ljust(999999999) }}",
    "zfill": "{{ 'a'.zfill(999999999) }}",
    "indent": "{{ 'a\n' | indent(999999999) }}",
    "tojson": "{{ messages | tojson(indent=999999999) }}",
    "batch": "{{ [1] | batch(999999999, 0) | list }}",
    "slice": "{{ [1] | slice(999999999) | list }}",
    "lipsum": "{{ lipsum(n=999999999) }}",
    "replace": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 1000000 %}{{ s | replace('a', s) }}",
    "join": "{% set s = 'a' * 1000000 %}{{ s.join(s) }}",
    "join filter": "{% set s = 'a' * 1000000 %}{{ s | join(s) }}",
    "tabs": "{% set s = '\t' * 1000000 %}{{ s.expandtabs(1000) }}",
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
    ),
    "recursive loops": "{% for x in [[1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "searches": "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}",
    "copies": (
        "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s.upper() | length }}{% endfor %}"
    ),
    "filters in a loop": (
        "{% for i in range(99999) %}{{ ('ab' * 9999) | upper | length }}{% endfor %}"
    ),
}


def render(source: str) -> str | None:
    """What comes out, or None where it is refused with a sentence."""
    try:
        return ChatTemplate({"default": source}).render(MESSAGES, tools=TOOLS)
    except ChatTemplateError as refusal:
        assert str(refusal).strip()
        return None


@pytest.mark.parametrize("name", REFUSED)
def test_what_grows_without_end_is_refused(name: str) -> None:
    begin = time.process_time()
    assert render(REFUSED[name]) is None
    assert time.process_time() - begin < SECONDS_MAX


@pytest.mark.parametrize("name", ["product", "power", "width", "center", "replace", "lipsum"])
def test_memory_stays_small(name: str) -> None:
    """Refused before it is made, not after."""
    tracemalloc.start()
    assert render(REFUSED[name]) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_the_refusal_names_the_limit() -> None:
    template = ChatTemplate({"default": REFUSED["loops in loops"]})
    with pytest.raises(ChatTemplateError, match="more than 1000000 steps"):
        template.render(MESSAGES)
    template = ChatTemplate({"default": REFUSED["product"]})
    with pytest.raises(ChatTemplateError, match="a text of more than 16777216 characters"):
        template.render(MESSAGES)


def test_each_rendering_has_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one took, the next one has again; so has another thread."""
    monkeypatch.setattr(_template_limits, "STEPS_MAX", 50_000)
    source = "{% for i in range(20000) %}{{ 'a' ~ i }}{% endfor %}"
    wanted = render(source)
    assert wanted is not None
    outcomes: list[str | None] = []
    threads = [threading.Thread(target=lambda: outcomes.append(render(source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    outcomes += [render(source) for _ in range(2)]
    for thread in threads:
        thread.join()
    assert outcomes == [wanted] * 4


def test_ordinary_templates_do_what_they_did() -> None:
    """The operators and filters that are watched still give their results."""
    for source, wanted in (
        ("{{ 'a' * 3 ~ 2 ** 10 ~ 7 // 2 ~ 7 % 4 ~ 1.5 * 2 }}", "aaa1024333.0"),
        ("{{ '%-5s|%03d' % ('a', 7) }}{{ '{:>4}'.format('b') }}", "a    |007   b"),
        ("{{ [1, 2] + [3] }}{{ 'x' in 'axb' }}{{ 4 not in [4] }}", "[1, 2, 3]TrueFalse"),
        ("{{ 'a,b'.split(',') | join('-') | upper | replace('A', 'cc') }}", "cc-B"),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ 'a\nb' | indent(2) }}", "<1>a\n  b"),
        ("{% for m in messages if m.role != 'tool' %}{{ loop.index }}{% endfor %}", "12"),
        ("{{ messages | map(attribute='role') | list | length }}", "3"),
    ):
        assert render(source) == wanted


def test_limits_are_far_from_what_templates_need() -> None:
    """A long conversation stays far below: a thousand turns with a thousand words each."""
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content | trim }}{% endif %}"
        "<|end|>{{ '\n' }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(ChatTemplate({"default": source}).render(turns)) > 4_900_000
    assert _template_limits.STEPS_MAX == 1_000_000


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_mutated_templates_render_or_are_refused(path: pathlib.Path) -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(f"{SEED} {path.name}")
    others = [other.read_bytes() for other in CORPUS]
    whole = path.read_bytes()
    for data in [whole, *(doors.mutate_text(whole, others, source) for _ in range(40))]:
        begin = time.process_time()
        doors.render_template(data, path.parent)
        assert time.process_time() - begin < SECONDS_MAX, data


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 6
