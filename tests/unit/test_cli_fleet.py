"""The command with several servers: one fleet, whose answers are those of one server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from pintok_server.cli import tool
from tests.unit.byte_server import ByteServer, serving

LINES = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(200))


@pytest.fixture
def servers() -> Iterator[list[ByteServer]]:
    with serving() as first, serving() as second:
        yield [first, second]


def run(*arguments: str, text: str = "", status: int = 0) -> str:
    result = CliRunner().invoke(tool.main, arguments, input=text)
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


def names(servers: list[ByteServer]) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in servers]


def test_answers_are_those_of_one_server(servers: list[ByteServer]) -> None:
    """With commas, or the option twice; each server gets a share, and no two the same text."""
    first, second = names(servers)
    options = ("encode", "--jsonl", "--timeout", "30")
    alone = run(*options, "--server", first, text=LINES)
    for server in servers:
        server.received.clear()
    together = run(*options, "--server", f"{first},{second}", "--hedge-after", "20", text=LINES)
    assert together == alone
    asked = [b"".join(server.received) for server in servers]
    texts = [f"text {number}".encode() for number in range(100, 200)]
    assert all((text in asked[0]) != (text in asked[1]) for text in texts)
    assert all(sum(text in one for text in texts) > 20 for one in asked)
    servers[0].stop()
    assert run(*options, "--server", first, "--server", second, text=LINES) == alone


def test_every_server_is_pinged(servers: list[ByteServer]) -> None:
    """One line each, and a failure when one of them never answers."""
    both = ",".join(names(servers))
    seen = run("ping", "--count", "2", "--interval", "0", "--timeout", "20", "--server", both)
    for name in names(servers):
        assert seen.count(f"{name}: 32 bytes") == 2 and f"{name}: 2 of 2 answered" in seen
    assert run("models", "--server", both).count("byte-level") == 3
    servers[1].stop()
    seen = run("ping", "--count", "1", "--timeout", "1.5", "--server", both, status=1)
    assert f"{names(servers)[0]}: 1 of 1 answered" in seen
    assert f"no answer from {names(servers)[1]}" in seen


def test_what_several_servers_need_is_refused_for_one(servers: list[ByteServer]) -> None:
    """By name, and with the status of wrong usage."""
    (first, _) = names(servers)
    hedged = ("encode", "--hedge-after", "0.1")
    assert "for several servers" in run(*hedged, status=2)
    assert "for several servers" in run(*hedged, "--server", first, status=2)
    assert "must be different" in run("encode", "--server", f"{first},{first}", text="a", status=2)
    assert "HOST:PORT" in run("encode", "--server", f"{first},:", text="a", status=2)
