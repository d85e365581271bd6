"""JSON lines of `pintok chat`: messages in, the rendered text and its ids out.

A template is rendered in this process always, since it belongs to the model's files; the ids come
from the tokenizer in process or from a server. As in `lines`, whatever a line holds, the outcome
is one line.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from pintok._content import ContentPolicy, Rendered, byte_ranges
from pintok._wire import WIRE_RANGES_MAX
from pintok.chat import ChatTemplate, ChatTemplateError, check_policies
from pintok_server.cli.lines import (
    Backend,
    Job,
    LineRefused,
    Options,
    Refusal,
    bad,
    join_text,
    parse_object,
    refuse_slips,
)

if TYPE_CHECKING:
    from pintok._calls import BlockingCalls
    from pintok.tokenizer import Tokenizer

_FLAGS = ("add_generation_prompt", "continue_final_message")
_LISTS = ("tools", "documents")
# Names that the rendering itself uses; all others are variables of the template.
_RESERVED = frozenset(("self",))


@dataclasses.dataclass(frozen=True, slots=True)
class Chat:
    """One line, checked: the messages, and the arguments of `ChatTemplate.render_content`."""

    messages: list[Any]
    arguments: dict[str, Any]


def parse_chat(line: bytes, policy: ContentPolicy = "text") -> Chat | Refusal:
    """The chat of a line of JSON, or why it cannot be one; `policy` is for lines that name none."""
    try:
        fields = parse_object(line)
        refuse_slips(fields, "chat")
        fields.setdefault("content_special_tokens", policy)
        return _checked(fields)
    except LineRefused as refused:
        return refused.refusal


def _checked(fields: dict[str, Any]) -> Chat:
    messages = fields.pop("messages", None)
    if not isinstance(messages, list):
        raise bad("bad_field", "messages is not there, or is not a list")
    for name in _FLAGS:
        if not isinstance(fields.get(name, False), bool):
            raise bad("bad_field", f"{name} is neither true nor false")
    for name in _LISTS:
        if not isinstance(fields.get(name), list | None):
            raise bad("bad_field", f"{name} is not a list")
    if not isinstance(fields.get("template"), str | None):
        raise bad("bad_field", "template is not a string")
    if fields.get("now") is not None:
        fields["now"] = _time(fields["now"])
    try:
        check_policies(fields["content_special_tokens"])
    except ValueError as error:
        raise bad("bad_field", str(error)) from None
    for name in _RESERVED & fields.keys():
        raise bad("bad_field", f"{name} cannot be a variable of a template")
    return Chat(messages, fields)


def _time(value: Any) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise bad("bad_field", "now is not a time like 2026-07-04T12:00:00") from None


class ChatBackend:
    """Serves chats with the template of a tokenizer, and it or a server for the ids."""

    def __init__(
        self, local: Tokenizer, engine: Tokenizer | BlockingCalls, *, policy: ContentPolicy = "text"
    ) -> None:
        """`policy` is for special tokens in the strings of lines that name no policy."""
        self._local = local
        self._template: ChatTemplate | None = None
        self._backend = Backend(engine)
        self._remote = engine is not local
        self._policy = policy

    def serve(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """One object for each line, in order; a refusal becomes an object with `error`.

        Raises a PinTokError when a server does not answer: then the fault is not the line's.
        """
        rendered = [self._render(parse_chat(line, self._policy)) for line in lines]
        jobs = [one if isinstance(one, Refusal) else self._job(one) for one in rendered]
        answers = self._backend.serve("encode", jobs)
        return [
            {"rendered": one.text, **answer, **_acted_on(one)}
            if isinstance(one, Rendered) and "error" not in answer
            else answer
            for one, answer in zip(rendered, answers, strict=True)
        ]

    def _render(self, chat: Chat | Refusal) -> Rendered | Refusal:
        if isinstance(chat, Refusal):
            return chat
        try:
            self._template = self._template or self._local.chat_template
            return self._template.render_content(
                self._local.special_tokens, chat.messages, **chat.arguments
            )
        except ChatTemplateError as error:
            return Refusal(error.code, str(error))

    def _job(self, rendered: Rendered) -> Job | Refusal:
        """The template writes the special tokens, so none are added: no second BOS."""
        data, surrogates = join_text(rendered.text)
        plain = tuple(byte_ranges(rendered.text, rendered.plain))
        if self._remote and len(plain) > WIRE_RANGES_MAX:
            return Refusal(
                "bad_items",
                f"special tokens of the template and of its callers alternate {len(plain)} times:"
                f" a request has no room for more than {WIRE_RANGES_MAX}",
            )
        return Job(Options(add_special_tokens=False), text=data, surrogates=surrogates, plain=plain)


def _acted_on(rendered: Rendered) -> dict[str, list[str]]:
    return {"acted_on": list(rendered.acted_on)} if rendered.acted_on else {}
