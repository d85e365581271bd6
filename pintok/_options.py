"""Arguments of encode, count and decode, checked and turned into the numbers of the core.

The in-process tokenizer and the clients take the same arguments and refuse the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pintok._wire import Verdict, WireDirection, WireOptions, WireStrategy
from pintok.encoding import Ids, OffsetUnit, ParseSpecial, Truncation
from pintok.errors import RefusedError

_ID_MAX: Final = 0xFFFFFFFF
_STRATEGIES: Final = {strategy.name.lower(): strategy.value for strategy in WireStrategy}
_DIRECTIONS: Final = {direction.name.lower(): direction.value for direction in WireDirection}
SOURCE_TIKTOKEN: Final = 2
"""The `image_source` whose reference joins surrogates; the others refuse them."""
DEFAULT_OPTIONS: Final = int(WireOptions.ADD_SPECIAL_TOKENS | WireOptions.PARSE_SPECIAL)
PARSE_ONLY_OPTIONS: Final = int(WireOptions.PARSE_SPECIAL)


def encode_options(
    add_special_tokens: bool,
    parse_special: ParseSpecial,
    encode_special_tokens: bool = False,
    bos: bool = False,
    eos: bool = False,
) -> int:
    """WireOptions of an encode or count.

    Raises ValueError for an unknown `parse_special`, and for `encode_special_tokens` where no
    special token is looked for anyway.
    """
    if parse_special == "all" and not (encode_special_tokens or bos or eos):
        # The usual request, without the flag type: it costs as much as a short text.
        return DEFAULT_OPTIONS if add_special_tokens else PARSE_ONLY_OPTIONS
    if parse_special not in ("all", "none"):
        raise ValueError(f"parse_special must be 'all' or 'none', not {parse_special!r}")
    if encode_special_tokens and parse_special == "none":
        raise ValueError("encode_special_tokens needs parse_special='all'")
    options = 0
    if add_special_tokens:
        options |= WireOptions.ADD_SPECIAL_TOKENS
    if parse_special == "all":
        options |= WireOptions.PARSE_SPECIAL
    if encode_special_tokens:
        options |= WireOptions.ENCODE_SPECIAL_TOKENS
    if bos:
        options |= WireOptions.BOS
    if eos:
        options |= WireOptions.EOS
    return int(options)


def offset_options(unit: OffsetUnit) -> int:
    """WireOptions of the unit of offsets. Raises ValueError for an unknown one."""
    if unit not in ("chars", "bytes"):
        raise ValueError(f"offset_unit must be 'chars' or 'bytes', not {unit!r}")
    return int(WireOptions.OFFSETS_CHARS) if unit == "chars" else 0


def truncation_limits(truncation: Truncation | None) -> tuple[int, int, int, int] | None:
    """max_length, stride, strategy and direction as numbers.

    Raises ValueError for unknown names and for lengths that contradict each other.
    """
    if truncation is None:
        return None
    if truncation.strategy not in _STRATEGIES or truncation.direction not in _DIRECTIONS:
        raise ValueError(f"unknown truncation strategy or direction: {truncation}")
    if not 0 <= truncation.stride <= truncation.max_length < _ID_MAX:
        raise ValueError(f"truncation needs 0 <= stride <= max_length: {truncation}")
    return (
        truncation.max_length,
        truncation.stride,
        _STRATEGIES[truncation.strategy],
        _DIRECTIONS[truncation.direction],
    )


def id_array(ids: Sequence[int] | npt.NDArray[Any]) -> Ids:
    """The ids as a contiguous uint32 array.

    Raises ValueError for what is not a flat sequence of integers in 0 ... 2**32 - 1.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, dtype=np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError("ids must be a flat sequence of integers")
    if array.dtype != np.uint32:
        if int(array.min()) < 0 or int(array.max()) > _ID_MAX:
            raise ValueError("ids must lie in 0 ... 2**32 - 1")
        array = array.astype(np.uint32)
    return np.ascontiguousarray(array)


def id_list(ids: int | Iterable[int]) -> list[int]:
    """One id or many as a list. Raises ValueError as `id_array`."""
    items = [ids] if isinstance(ids, int) else [int(token_id) for token_id in ids]
    for item in items:
        if not 0 <= item <= _ID_MAX:
            raise ValueError("ids must lie in 0 ... 2**32 - 1")
    return items


def surrogate_refusal(error: UnicodeEncodeError) -> RefusedError:
    """A str with lone surrogates has no UTF-8: the same refusal as for invalid bytes."""
    return RefusedError(Verdict.BAD_UTF8, detail=f"lone surrogate at character {error.start}")


def join_surrogates(text: str) -> str:
    """The text with pairs of surrogates joined and lone ones as U+FFFD: tiktoken's rule."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def joined(text: str | bytes) -> str | bytes:
    """`join_surrogates` for what may be bytes, which cannot hold any."""
    return join_surrogates(text) if isinstance(text, str) else text


def utf8(text: str | bytes) -> bytes:
    """The UTF-8 of a text. Raises RefusedError (bad_utf8) for lone surrogates."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise surrogate_refusal(error) from None
