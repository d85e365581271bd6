"""Everything that can be asked can be asked in four ways, with the same words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pintok import AsyncClient, AsyncFleet, Client, Fleet

FOUR = (Client, AsyncClient, Fleet, AsyncFleet)
# What is another type, or another word, for those that are awaited.
ASYNC_WORDS = {
    "DecodeStream": "AsyncDecodeStream",
    "dict[str, Client]": "dict[str, AsyncClient]",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
# Opened and closed where it is not awaited; its constructor says where it differs.
OWN = {"__init__"}


def members(kind: type) -> dict[str, Any]:
    """The public members, and those that open and close."""
    named = {name for name in dir(kind) if not name.startswith("_")}
    return {
        name: inspect.getattr_static(kind, name)
        for name in named | ({"__enter__", "__exit__", "__aenter__", "__aexit__"} & set(dir(kind)))
    }


def spoken(name: str, member: Any) -> tuple[str, str, str]:
    """Kind, signature and docstring of a member."""
    if isinstance(member, property):
        assert member.fget is not None
        return "property", str(inspect.signature(member.fget)), inspect.getdoc(member) or ""
    if not inspect.isfunction(member):
        return "attribute", "", ""
    return "method", str(inspect.signature(member)), inspect.getdoc(member) or ""


@pytest.mark.parametrize(("blocking", "waiting"), [(Client, AsyncClient), (Fleet, AsyncFleet)])
def test_asyncio_has_the_same_members(blocking: type, waiting: type) -> None:
    """Names, arguments, defaults, types of results, and words; all of them are awaited."""
    ours, theirs = members(blocking), members(waiting)
    assert {ASYNC_WORDS.get(name, name) for name in ours} == set(theirs)
    for name, member in ours.items():
        twin = theirs[ASYNC_WORDS.get(name, name)]
        kind, signature, doc = spoken(name, member)
        for word, other in ASYNC_WORDS.items():
            signature = signature.replace(word, other)
            doc = doc.replace(f"`{word}`", f"`{other}`")
        if name == "close":  # One socket of many calls, or one for each call.
            doc = inspect.getdoc(twin) or ""
        assert spoken(name, twin) == (kind, signature, doc), name
        streams = name == "decode_stream"
        told = name in {"accept_model", "order"}  # what no server is asked for
        if kind == "method" and not streams and not told:
            assert inspect.iscoroutinefunction(twin) and not inspect.iscoroutinefunction(member)


@pytest.mark.parametrize(("one", "several"), [(Client, Fleet), (AsyncClient, AsyncFleet)])
def test_several_servers_have_all_calls_of_one(one: type, several: type) -> None:
    """But what is about one server, which `clients` gives."""
    missing = set(members(one)) - set(members(several))
    assert missing == {"address", "datagram_len_max", "ping", "probe_path"}
    assert set(members(several)) - set(members(one)) == {"clients", "order"}
    for name, member in members(one).items():
        if name in missing or name in {"accept_model", "model_tag", "counters", "close"}:
            continue
        assert spoken(name, member) == spoken(name, members(several)[name]), name


def test_constructors_take_the_same_settings() -> None:
    """Whatever can be set of one server can be set of several, with the same defaults."""

    def settings(kind: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
        parameters = inspect.signature(kind).parameters.values()
        return {
            each.name: (each.annotation, each.default)
            for each in parameters
            if each.kind is inspect.Parameter.KEYWORD_ONLY
        }

    alone, *others = (settings(kind) for kind in FOUR)
    for kind, other in zip(FOUR[1:], others, strict=True):
        hedging = {"hedge_after"} if kind in (Fleet, AsyncFleet) else set()
        assert set(other) - set(alone) == hedging
        assert {name: other[name] for name in alone} == alone
    words = Client.__init__.__doc__ or ""
    assert all(f"`{name}`" in words for name in alone)


@pytest.mark.parametrize("kind", FOUR)
def test_every_call_is_described(kind: type) -> None:
    """A public call without a docstring is half a call."""
    for name, member in members(kind).items():
        if isinstance(member, property) or inspect.isfunction(member):
            described = inspect.getdoc(member)
            assert described or name.startswith("__"), name
