"""`truncation` and `padding` of a JSON line: objects as the reference takes them, or "file"."""

from __future__ import annotations

from typing import Any, Literal

from pintok.encoding import Padding, Truncation

AS_FILE: Literal["file"] = "file"
"""The settings that the model's own file has."""

_LEN_MAX = 1 << 26
_DIRECTIONS = ("right", "left")
_STRATEGIES = ("longest_first", "only_first", "only_second")


def parse_truncation(value: Any) -> Truncation | Literal["file"] | None:
    """The truncation that a field asks for. Raises ValueError with a sentence."""
    if value is None or value == AS_FILE:
        return AS_FILE if value else None
    fields = _object(value, "truncation", ("max_length", "stride", "strategy", "direction"))
    truncation = Truncation(
        _whole(fields, "truncation.max_length", None),
        _whole(fields, "truncation.stride", 0),
        _one_of(fields, "truncation.strategy", _STRATEGIES),
        _one_of(fields, "truncation.direction", _DIRECTIONS),
    )
    if truncation.stride > truncation.max_length:
        raise ValueError("truncation.stride is more than truncation.max_length")
    return truncation


def parse_padding(value: Any) -> Padding | Literal["file"] | None:
    """The padding that a field asks for. Raises ValueError with a sentence."""
    if value is None or value == AS_FILE:
        return AS_FILE if value else None
    names = ("direction", "pad_id", "pad_type_id", "pad_token", "length", "pad_to_multiple_of")
    fields = _object(value, "padding", names)
    lens = [
        None if fields.get(name) is None else _whole(fields, f"padding.{name}", None)
        for name in ("length", "pad_to_multiple_of")
    ]
    return Padding(
        direction=_one_of(fields, "padding.direction", _DIRECTIONS),
        pad_id=_whole(fields, "padding.pad_id", 0, most=0xFFFFFFFF),
        pad_type_id=_whole(fields, "padding.pad_type_id", 0, most=0xFF),
        length=lens[0],
        pad_to_multiple_of=lens[1],
    )


def _object(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is neither an object nor {AS_FILE!r}")
    for name in value:
        if name not in names:
            raise ValueError(f"{where} has an unknown field: it takes {', '.join(names)}")
    return value


def _whole(fields: dict[str, Any], where: str, default: int | None, most: int = _LEN_MAX) -> int:
    value = fields.get(where.partition(".")[2], default)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{where} is not a whole number from 0 to {most}")
    return value


def _one_of(fields: dict[str, Any], where: str, names: tuple[str, ...]) -> Any:
    value = fields.get(where.partition(".")[2], names[0])
    if value not in names:
        raise ValueError(f"{where} is none of {', '.join(names)}")
    return value
