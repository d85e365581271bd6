"""Every way a call can fail has a name, a class and a word about trying again, in one table."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import pintok
from pintok import DeadlineError, ModelError, PinTokError, RefusedError, TransportError, errors
from pintok._codec import MalformedReply
from pintok._conversation import PathInDoubt

SPEC = Path(__file__).parents[2] / "native" / "spec" / "wire.toml"


def spec_verdicts() -> dict[str, int]:
    enums = tomllib.loads(SPEC.read_text())["enum"]
    (verdict,) = [enum for enum in enums if enum["name"] == "verdict"]
    return {value["name"]: value["value"] for value in verdict["values"]}


def table() -> dict[str, str]:
    """The rows of the module's docstring: code and what comes of it."""
    text = (errors.__doc__ or "").partition("what it says\n")[2]
    return dict(re.findall(r"^    (\w+) +(no|again|elsewhere|followed) +\S", text, re.MULTILINE))


def test_the_table_has_every_verdict_of_the_wire() -> None:
    """A verdict that is added to the specification must be decided about here."""
    assert list(table()) == [name for name in spec_verdicts() if name != "ok"]


@pytest.mark.parametrize(("name", "value"), [v for v in spec_verdicts().items() if v[0] != "ok"])
def test_a_refusal_says_what_the_table_says(name: str, value: int) -> None:
    """Code, number, and whether it may be tried again: what clients and fleets go by."""
    refused = RefusedError(value)
    word = table()[name]
    assert (refused.code, refused.verdict) == (name, value)
    assert refused.retryable == (word != "no")
    assert (value in errors.RETRYABLE) == (word in ("again", "elsewhere"))
    assert (value in errors.ELSEWHERE) == (word == "elsewhere")
    assert (value in errors.FOLLOWED) == (word == "followed")


def test_newer_verdicts_are_errors_all_the_same() -> None:
    refused = RefusedError(255)
    assert refused.code == "error" and "unknown verdict 255" in str(refused)
    assert not refused.retryable


def test_classes_and_codes() -> None:
    """What is raised can be caught as what it is, and as PinTokError."""
    assert issubclass(DeadlineError, TransportError) and issubclass(DeadlineError, TimeoutError)
    classes = (ModelError, TransportError, DeadlineError, MalformedReply)
    assert all(issubclass(kind, PinTokError) for kind in (*classes, RefusedError))
    codes = [kind.code for kind in classes]
    assert codes == ["model", "transport", "deadline", "malformed_reply"]
    assert not set(codes) & set(spec_verdicts())
    assert [kind.retryable for kind in classes] == [False, True, True, True]
    for code in codes:
        assert f"`{code}`" in (errors.__doc__ or "")
    assert not issubclass(PathInDoubt, PinTokError)  # It never gets out.
    assert {"RefusedError", "DeadlineError"} <= set(pintok.__all__)
