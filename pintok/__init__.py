"""PinTok: exact tokenization for language models, in process or by a server at wire speed.

    Tokenizer     in this process, over the native core
    Client        of a PinTok server, blocking
    AsyncClient   of a PinTok server, for asyncio
    Fleet         of several servers as one, and AsyncFleet
    DecodeStream  ids that arrive one at a time, as text
    ChatTemplate  messages to the text a model reads

Names are imported when they are first used: the clients need numpy only, not the native core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pintok._codec import FileSettings, ModelInfo
    from pintok._seal import Key
    from pintok.aclient import AsyncClient
    from pintok.chat import ChatEncoding, ChatTemplate, ChatTemplateError
    from pintok.client import Client
    from pintok.encoding import (
        Batch,
        Encoding,
        Padding,
        PlainEncoding,
        PlainRange,
        Truncation,
    )
    from pintok.errors import (
        DeadlineError,
        ModelError,
        PinTokError,
        RefusedError,
        TransportError,
    )
    from pintok.fleet import AsyncFleet, Fleet
    from pintok.stream import (
        AsyncDecodeStream,
        DecodeStream,
        Step,
        Stepped,
        step_streams,
        step_streams_async,
    )
    from pintok.tokenizer import Tokenizer

__all__ = [
    "AsyncClient",
    "AsyncDecodeStream",
    "AsyncFleet",
    "Batch",
    "ChatEncoding",
    "ChatTemplate",
    "ChatTemplateError",
    "Client",
    "DeadlineError",
    "DecodeStream",
    "Encoding",
    "FileSettings",
    "Fleet",
    "Key",
    "ModelError",
    "ModelInfo",
    "Padding",
    "PinTokError",
    "PlainEncoding",
    "PlainRange",
    "RefusedError",
    "Step",
    "Stepped",
    "Tokenizer",
    "TransportError",
    "Truncation",
    "step_streams",
    "step_streams_async",
]

_MODULES = {
    "Key": "_seal",
    "AsyncClient": "aclient",
    "AsyncDecodeStream": "stream",
    "AsyncFleet": "fleet",
    "Batch": "encoding",
    "ChatEncoding": "chat",
    "ChatTemplate": "chat",
    "ChatTemplateError": "chat",
    "Client": "client",
    "DeadlineError": "errors",
    "DecodeStream": "stream",
    "Encoding": "encoding",
    "FileSettings": "_codec",
    "Fleet": "fleet",
    "ModelError": "errors",
    "ModelInfo": "_codec",
    "Padding": "encoding",
    "PinTokError": "errors",
    "PlainEncoding": "encoding",
    "PlainRange": "encoding",
    "RefusedError": "errors",
    "Step": "stream",
    "Stepped": "stream",
    "Tokenizer": "tokenizer",
    "TransportError": "errors",
    "Truncation": "encoding",
    "step_streams": "stream",
    "step_streams_async": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pintok' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pintok.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
