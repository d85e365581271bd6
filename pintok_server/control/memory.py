"""Lengths for people, and the kernel's account of a process's memory."""

from __future__ import annotations

import pathlib
import re

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
