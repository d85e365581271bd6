"""Lists of small numbers as people write them: `2-5`, `0,2,8-11`.

Cores and queues are named this way on the command line, in the environment, in the configuration
file and by the kernel itself (`/sys/devices/system/cpu/isolated`), so one parser serves all of
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# No machine has more cores or queues; a range such as 0-4000000000 must not become a list.
NUMBER_MAX = 65535

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_number_list(text: str) -> tuple[int, ...]:
    """The numbers of `text` in the order written, without repetition.

    >>> parse_number_list("2-5,8")
    (2, 3, 4, 5, 8)

    Raises ValueError with a sentence on anything else, an empty text included.
    """
    numbers: dict[int, None] = {}
    for part in text.strip().split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a number or a range such as 2-5")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise ValueError(f"the range {part.strip()} runs backwards")
        if last > NUMBER_MAX:
            raise ValueError(f"{last} is larger than {NUMBER_MAX}")
        numbers.update(dict.fromkeys(range(first, last + 1)))
    return tuple(numbers)


def format_number_list(numbers: Iterable[int]) -> str:
    """The shortest way to write these numbers, ascending.

    >>> format_number_list([5, 2, 3, 4, 8])
    '2-5,8'
    """
    parts: list[str] = []
    first = last = -2
    for number in [*sorted(set(numbers)), -1]:
        if number == last + 1:
            last = number
            continue
        if first >= 0:
            parts.append(f"{first}" if first == last else f"{first}-{last}")
        first = last = number
    return ",".join(parts)
