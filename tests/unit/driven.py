"""Clients for asyncio as if they blocked, so that one test is for both kinds."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from pintok import AsyncClient, AsyncFleet


class Driven:
    """One of them, used as its blocking twin, on an event loop of its own."""

    kind: type[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._driven = self.kind(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._driven, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *args, **kwargs: self._loop.run_until_complete(member(*args, **kwargs))

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._driven.close())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class DrivenClient(Driven):
    kind = AsyncClient


class DrivenFleet(Driven):
    kind = AsyncFleet
