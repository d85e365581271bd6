"""JSON lines of `pintok chat`: messages in, the rendered text and its ids out.

A template is rendered in this process always, since it belongs to the model's files; the ids come
from the tokenizer in process or from a server. As in `lines`, whatever a line holds, the outcome
is one line.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from pintok.chat import ChatTemplate, ChatTemplateError
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
    """One line, checked: the messages, and the arguments of `ChatTemplate.render`."""

    messages: list[Any]
    arguments: dict[str, Any]


def parse_chat(line: bytes) -> Chat | Refusal:
    """The chat of a line of JSON, or why it cannot be one."""
    try:
        fields = parse_object(line)
        refuse_slips(fields, "chat")
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

    def __init__(self, local: Tokenizer, engine: Tokenizer | BlockingCalls) -> None:
        self._local = local
        self._template: ChatTemplate | None = None
        self._backend = Backend(engine)

    def serve(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """One object for each line, in order; a refusal becomes an object with `error`.

        Raises a PinTokError when a server does not answer: then the fault is not the line's.
        """
        rendered = [self._render(parse_chat(line)) for line in lines]
        jobs = [text if isinstance(text, Refusal) else _job(text) for text in rendered]
        answers = self._backend.serve("encode", jobs)
        return [
            answer if "error" in answer else {"rendered": text, **answer}
            for text, answer in zip(rendered, answers, strict=True)
        ]

    def _render(self, chat: Chat | Refusal) -> str | Refusal:
        if isinstance(chat, Refusal):
            return chat
        try:
            self._template = self._template or self._local.chat_template
            return self._template.render(chat.messages, **chat.arguments)
        except ChatTemplateError as error:
            return Refusal(error.code, str(error))


def _job(text: str) -> Job:
    """The template writes the special tokens, so none are added: no second BOS."""
    data, surrogates = join_text(text)
    return Job(Options(add_special_tokens=False), text=data, surrogates=surrogates)
