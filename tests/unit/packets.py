"""Reads the golden packets of `tests/golden/packets/`, which the C tests read too."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "packets"


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    name: str
    call: dict[str, Any] | None
    """What a client is asked for; None for requests that no client makes."""
    result: dict[str, Any] | None
    request: bytes
    reply: bytes
    """Empty where the server stays silent."""


def read(path: pathlib.Path) -> Packet:
    call = result = None
    parts = {"request": bytearray(), "reply": bytearray()}
    into = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("call "):
            call = json.loads(line.removeprefix("call "))
        elif line.startswith("result "):
            result = json.loads(line.removeprefix("result "))
        elif line.startswith("  "):
            assert into is not None, path
            into += bytes.fromhex(line)
        elif not line.startswith("#"):
            into = parts[line.removeprefix("no ")]
    return Packet(path.stem, call, result, bytes(parts["request"]), bytes(parts["reply"]))


def read_all() -> list[Packet]:
    return [read(path) for path in sorted(FOLDER.glob("*.hex"))]
