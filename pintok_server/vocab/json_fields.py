"""Reads JSON that others wrote, as strictly as the reference reads it, and takes fields out of it.

Numbers are rounded as the reference's reader rounds them. A wrong field is refused with a sentence
that names the place, the field and the value.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from pintok.errors import ModelError

Json = dict[str, Any]

_U64_MAX: Final = 2**64 - 1


def parse_json(data: bytes, name: str) -> Any:
    """JSON as the reference reads it: strict UTF-8, no NaN, numbers rounded as it rounds them."""
    try:
        root = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_parse_float
        )
    except UnicodeDecodeError as error:
        raise ModelError(f"{name}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: not JSON: {error}") from None
    return root


def _parse_float(text: str) -> float:
    """A decimal number as the reference's JSON reader rounds it: not always to the nearest.

    It makes an integer of the digits, as many as fit 64 bits, and divides or multiplies it once by
    a power of ten. Scores of a Unigram model that differ in the last bit decide ties.
    """
    mantissa, _, exponent_text = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = whole + fraction
    exponent = int(exponent_text or 0) - len(fraction)
    significand = int(digits)
    if significand > _U64_MAX:
        kept = 20 if int(digits.lstrip("0")[:20]) <= _U64_MAX else 19
        kept += len(digits) - len(digits.lstrip("0"))
        exponent += len(digits) - kept
        significand = int(digits[:kept])
    value = float(significand)
    while exponent < -308 and value != 0.0:
        value /= 1e308
        exponent += 308
    if value != 0.0:
        if exponent > 308 or (exponent > 0 and value * float(10**exponent) == math.inf):
            raise ValueError(f"the number {text} is out of range")
        value = value * float(10**exponent) if exponent >= 0 else value / float(10**-exponent)
    return -value if text.startswith("-") else value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def shorten(value: object) -> str:
    """A JSON value for a sentence."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def field(component: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A required field of the right type."""
    if not isinstance(component, dict):
        raise ModelError(f"{where}: not a component: {shorten(component)}")
    if name not in component:
        raise ModelError(f"{where}: the field {name!r} is missing")
    value = component[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ModelError(f"{where}: the field {name!r} has the value {shorten(value)}")
    return value


def option(component: Json, name: str, default: bool, where: str) -> bool:
    """An optional switch."""
    return bool(field({name: default, **component}, name, bool, where))
