"""Which image a path led to the last time, for as long as nothing of the model has changed.

    <cache_dir>/paths/<key>.json            key: absolute path and profile

Reading and hashing tens of megabytes takes longer than opening the image they lead to, and so does
importing what does it. A path is taken at its word while its files and their directories have the
identity, the length and the times of change that they had (a change sets the time of the inode,
which nobody can set back), and the compiler is the one that was. A change within the clock's grain
would not show: what has changed a moment before it was read is not remembered.

Only the standard library is imported here, and none of it that is slow: hashlib, which makes
OpenSSL ready, takes three milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any, Final

from pintok import _native

_MOMENT_NS: Final = 2_000_000_000
"""Longer than the grain of any file system's clock."""


def default_dir() -> pathlib.Path:
    """PINTOK_CACHE_DIR, or pintok below the user's cache directory."""
    stated = os.environ.get("PINTOK_CACHE_DIR")
    if stated:
        return pathlib.Path(stated)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "pintok"


def compiler_state() -> str:
    """Of the compiler's own sources: another compiler may write another image of the same model."""
    package = pathlib.Path(__file__).resolve().parent
    lines = []
    for path in (*sorted(package.glob("*.py")), pathlib.Path(_native.__file__)):
        status = path.stat()
        lines.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)


def find(
    path: str, profile: str, *, cache_dir: pathlib.Path | None = None
) -> tuple[pathlib.Path, str] | None:
    """The image of a model's file or directory and the model's name; None: it must be looked at.

    The image may have gone or be damaged: whoever opens it finds that.
    """
    record = _read(_record_path(path, profile, cache_dir))
    try:
        if (
            record["compiler"] != compiler_state()
            or record["profile"] != profile
            or record["path"] != _absolute(path)
            or not record["places"]
            or any(_status(place) != status for place, status in record["places"].items())
            or (record["absent"] and importlib.util.find_spec(record["absent"]) is not None)
        ):
            return None
        return pathlib.Path(record["image"]), str(record["name"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def keep(
    path: str,
    profile: str,
    *,
    image: pathlib.Path,
    name: str,
    places: Iterable[pathlib.Path],
    absent: str | None,
    since_ns: int,
    cache_dir: pathlib.Path | None = None,
) -> None:
    """Remember where a path leads to, if that will hold; a failure only costs the next load.

    `places` are the files that were read and their directories, `since_ns` is the time before that
    (`time.time_ns()`), and `absent` names a package whose arrival would change what is stored.
    """
    with contextlib.suppress(OSError):
        states = {str(place): _status(place) for place in places}
        if any(status[-1] > since_ns - _MOMENT_NS for status in states.values()):
            return
        record = {
            "path": _absolute(path),
            "profile": profile,
            "compiler": compiler_state(),
            "places": states,
            "absent": absent,
            "image": str(image),
            "name": name,
        }
        record_path = _record_path(path, profile, cache_dir)
        temporary = record_path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
        record_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(record_path)
        finally:
            temporary.unlink(missing_ok=True)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _record_path(path: str, profile: str, cache_dir: pathlib.Path | None) -> pathlib.Path:
    """Two paths with one checksum take turns: the record says which one it is of."""
    key = _native.crc32c(f"{_absolute(path)}\0{profile}".encode(errors="surrogateescape"))
    return (cache_dir or default_dir()) / "paths" / f"{key:08x}.json"


def _read(record_path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(record_path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _status(place: str | pathlib.Path) -> list[int]:
    """What changes with a file or directory; the time of change last. Raises OSError."""
    status = os.stat(place)
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]
