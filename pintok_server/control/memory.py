"""How much memory the datapath really holds: from its statistics and from the kernel's account."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from pintok_server.control.statistics import Snapshot

Row = tuple[str, str, int]
"""What, an explanation, bytes."""

_STATUS_LINE = re.compile(r"(\w+):\s+(\d+) kB")


def format_len(length: int) -> str:
    """A number of bytes for people, in binary units.

    >>> format_len(5 * 1024 * 1024)
    '5.0 MiB'
    """
    value = float(length)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def process_memory(pid: int) -> dict[str, int]:
    """The kernel's account of a process in bytes, by names of /proc/PID/status; empty if gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in _STATUS_LINE.findall(text)}


def memory_rows(snapshot: Snapshot) -> list[Row]:
    """The table that is printed at start: images, packet frames, and the process as a whole."""
    rows: list[Row] = [
        (f"image {model.name}", "huge pages" if model.pages == "huge_2m" else "small pages",
         model.image_len)
        for model in snapshot.models
    ]  # fmt: skip
    status = process_memory(snapshot.pid)
    for name, what, detail in (
        ("HugetlbPages", "datapath process", "in huge pages, images included"),
        ("VmRSS", "datapath process", "in small pages, resident"),
        ("VmLck", "datapath process", "locked"),
    ):
        if name in status:
            rows.append((what, detail, status[name]))
    return rows


def memory_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, one a line, under a heading."""
    what_width = max((len(what) for what, _, _ in rows), default=0)
    detail_width = max((len(detail) for _, detail, _ in rows), default=0)
    lines = [
        f"  {what:{what_width}}  {detail:{detail_width}}  {format_len(length):>10}"
        for what, detail, length in rows
    ]
    return "\n".join(["memory:", *lines])
