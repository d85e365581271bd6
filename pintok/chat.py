"""Chat templates: a list of messages to the text that a model was trained to read.

A template is untrusted code out of a model's repository. It runs in jinja2's immutable sandbox,
sees nothing but plain JSON values, is held to the limits of `_template_limits.py`, and renders
exactly what `transformers` renders (5.x): trimmed blocks, loop controls, `generation` blocks,
`raise_exception`, `strftime_now`, JSON without HTML escapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils

from pintok import _template_limits
from pintok._content import (
    AmbiguousError,
    ContentPolicy,
    Rendered,
    SpecialTokens,
    Strings,
    map_strings,
    protect,
)
from pintok.encoding import Ids
from pintok.errors import PinTokError

Message = Mapping[str, Any]
ContentPolicies = ContentPolicy | Mapping[str, ContentPolicy]

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplateError(PinTokError):
    """A template raised, is not valid, or cannot render these messages; the message says which."""

    code = "template"


@dataclasses.dataclass(frozen=True, slots=True)
class ChatEncoding:
    """A rendered conversation."""

    text: str
    ids: Ids
    """uint32, shape (n,)."""
    hits: int = 0
    """Special tokens in callers' strings that were left as ordinary text."""
    acted_on: tuple[str, ...] = ()
    """Special tokens that were found because of what callers wrote: the template looks for it
    itself, as for `</think>` in earlier answers, and its reading stands."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The template or templates of one model, with the special tokens they may write."""

    templates: Mapping[str, str]
    """By name: `default` and, where the model has them, `tool_use`, `rag` and so on."""
    special_tokens: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """bos_token, eos_token and the like, as the template names them."""

    @classmethod
    def from_source(
        cls, source: str | Sequence[Mapping[str, str]], *, special_tokens: Mapping[str, Any]
    ) -> ChatTemplate:
        """From `chat_template` of a tokenizer_config.json: one template or a list of named ones.

        Raises ChatTemplateError for anything else.
        """
        if isinstance(source, str):
            return cls({"default": source}, special_tokens)
        try:
            templates = {entry["name"]: entry["template"] for entry in source}
            named = all(isinstance(text, str) for item in templates.items() for text in item)
        except (TypeError, KeyError):
            named = False
        if not named:
            raise ChatTemplateError("the chat template is neither a text nor a list of named ones")
        return cls(templates, special_tokens)

    def select(self, name: str | None, *, tools: bool) -> str:
        """The template's text: by name, else `tool_use` where there are tools, else `default`."""
        if name is not None:
            if name not in self.templates:
                known = ", ".join(sorted(self.templates))
                raise ChatTemplateError(f"no chat template {name!r}: this model has {known}")
            return self.templates[name]
        if tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            known = ", ".join(sorted(self.templates)) or "none"
            raise ChatTemplateError(f"no default chat template: this model has {known}")
        return self.templates["default"]

    def render(self, messages: Sequence[Message], /, **arguments: Any) -> str:
        """The text of a conversation.

        Arguments: `tools` and `documents`, lists of objects; `add_generation_prompt` and
        `continue_final_message`; `template`, a name; `now`, what `strftime_now` sees (the current
        local time by default); any other is a variable of the template. Raises ChatTemplateError
        when the template refuses the messages.
        """
        return self._filled(_Chat(messages, **arguments), _as_written)

    def render_content(
        self,
        special: SpecialTokens,
        messages: Sequence[Message],
        /,
        *,
        content_special_tokens: ContentPolicies = "text",
        **arguments: Any,
    ) -> Rendered:
        """The same text, with the ranges where special tokens of the callers stay ordinary text.

        `content_special_tokens` is "text" or "parse" for all, or a mapping from places to these:
        roles of messages, `tools`, `documents`, and `variables`, the variables of the template but
        for those that end in `_token` or `_tokens`; a place that it lacks is "text". Other
        arguments as `render`. Raises ChatTemplateError as well when it cannot be told whose a
        special token is.
        """
        policies = content_special_tokens
        check_policies(policies)
        chat = _Chat(messages, **arguments)
        if policies == "parse":
            return Rendered(self._filled(chat, _as_written))
        by_place: Mapping[str, str] = {} if isinstance(policies, str) else policies
        source = self.select(chat.template, tools=bool(chat.tools))
        try:
            with _template_limits.one_allowance(), _template_errors():
                return protect(
                    lambda strings: self._fill(chat, strings),
                    special,
                    source=source,
                    constants=lambda: _constants(source),
                    parsed=lambda place: by_place.get(place) == "parse",
                )
        except AmbiguousError as error:
            raise ChatTemplateError(
                f"whose the special tokens in the chat are cannot be told: {error}; with"
                " content_special_tokens 'parse' they are found wherever they stand"
            ) from None

    def _filled(self, chat: _Chat, strings: Strings) -> str:
        with _template_errors():
            return self._fill(chat, strings)

    def _fill(self, chat: _Chat, strings: Strings) -> str:
        """The text, with each string of the caller put through `strings`."""
        source = self.select(chat.template, tools=bool(chat.tools))
        if chat.add_generation_prompt and chat.continue_final_message:
            raise ChatTemplateError(
                "a prompt for generation cannot follow a message to be continued"
            )
        messages = [_with_reasoning(_plain(message)) for message in chat.messages]
        messages = [map_strings(one, partial(strings, _role(one))) for one in messages]
        field = _mark_final_message(messages, source) if chat.continue_final_message else None
        variables = {
            name: value
            if name.endswith(("_token", "_tokens"))
            else map_strings(value, partial(strings, "variables"))
            for name, value in _plain(chat.variables).items()
        }
        rendered = _template_limits.render(
            _compile(source),
            {
                **self.special_tokens,
                **variables,
                "messages": messages,
                "tools": map_strings(_plain(chat.tools), partial(strings, "tools")),
                "documents": map_strings(_plain(chat.documents), partial(strings, "documents")),
                "add_generation_prompt": chat.add_generation_prompt,
                "strftime_now": _clock(chat.now),
            },
        )
        return rendered if field is None else _cut_at_mark(rendered, field)


class _Chat:
    """The arguments of `ChatTemplate.render`."""

    __slots__ = (
        "add_generation_prompt",
        "continue_final_message",
        "documents",
        "messages",
        "now",
        "template",
        "tools",
        "variables",
    )

    def __init__(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        template: str | None = None,
        now: datetime.datetime | None = None,
        **variables: Any,
    ) -> None:
        self.messages = messages
        self.tools = tools
        self.documents = documents
        self.add_generation_prompt = add_generation_prompt
        self.continue_final_message = continue_final_message
        self.template = template
        self.now = now
        self.variables = variables


def _as_written(place: str, string: str) -> str:
    return string


def _role(message: dict[str, Any]) -> str:
    role = message.get("role")
    return role if isinstance(role, str) else ""


def check_policies(policies: object) -> None:
    """Raises ValueError for what is neither a policy nor a mapping from places to policies."""
    for policy in policies.values() if isinstance(policies, Mapping) else [policies]:
        if policy not in ("text", "parse"):
            raise ValueError(
                f"content_special_tokens must be 'text' or 'parse', not {policy!r:.40}"
            )


@contextlib.contextmanager
def _template_errors() -> Iterator[None]:
    """Whatever untrusted template code manages to raise becomes a ChatTemplateError."""
    try:
        yield
    except (ChatTemplateError, AmbiguousError):
        raise
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template says: {error}") from None
    except RecursionError:
        raise ChatTemplateError(
            "the chat template recurses without end, or the messages are nested too deep"
        ) from None
    except Exception as error:
        raise ChatTemplateError(f"the chat template fails: {error!r}") from None


def _mark_final_message(chat: list[dict[str, Any]], source: str) -> str:
    """Put the mark behind the text to be continued; returns that text without the mark."""
    if not chat:
        raise ChatTemplateError("there is no message to be continued")
    final = chat[-1]
    content = final.get("content")
    if content is None or "content" not in source:
        raise ChatTemplateError("the last message has no content that could be continued")
    if isinstance(content, str):
        final["content"] = content + _CONTINUE_MARK
        return content
    for block in reversed(content if isinstance(content, list) else []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE_MARK
            return text
    raise ChatTemplateError("the last message has no text that could be continued")


def _cut_at_mark(rendered: str, text: str) -> str:
    """Everything before the mark; white space that the template trimmed from the text goes too."""
    mark = _CONTINUE_MARK.strip()
    if mark not in rendered or text.strip() not in rendered:
        raise ChatTemplateError("the template changes the last message: it cannot be continued")
    begin = rendered.rindex(mark)
    whole = rendered.startswith(_CONTINUE_MARK, begin)
    return rendered[:begin] if whole else rendered[:begin].rstrip()


def _with_reasoning(message: Any) -> dict[str, Any]:
    """The message with its reasoning under every name that templates read it by."""
    if not isinstance(message, dict):
        raise ChatTemplateError(f"a message must be an object, not {type(message).__name__}")
    reasoning = next(
        (message[name] for name in _REASONING_NAMES if message.get(name) is not None), None
    )
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A copy made of exact JSON types; whatever is not JSON becomes the name of its type in <>."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _clock(now: datetime.datetime | None) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        return (now or datetime.datetime.now()).strftime(format)

    return strftime_now


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Dict:
    """`dict` for templates: a constructor and nothing to climb out by."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model is trained on; it renders its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        block = jinja2.nodes.CallBlock(call, [], [], body)
        block.set_lineno(line)
        return block

    def _body(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


@functools.lru_cache(maxsize=64)
def _constants(source: str) -> frozenset[str]:
    """The texts that a template names outside of what it writes as it stands."""
    nodes = _environment().parse(source).find_all(jinja2.nodes.Const)
    return frozenset(node.value for node in nodes if isinstance(node.value, str))


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid: {error.message} (line {error.lineno})"
        ) from None


def _environment() -> jinja2.Environment:
    environment = _template_limits.BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.guard_filters()
    return environment
