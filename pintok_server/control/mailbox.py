"""The mailbox: how models are loaded into and unloaded from a running datapath.

One command is in flight at a time; `mailbox.lock` of the runtime directory says whose. The control
process and the `models` commands all go through here, so a model can be changed while the control
process is away. A command is written whole, then its sequence number, one aligned 64-bit store; x86
keeps the order. The answer comes through the statistics segment.
"""

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import time

from pintok_server._spec import metrics as spec
from pintok_server.control.runtime import RunDir, process_start_time
from pintok_server.control.statistics import StatisticsReader
from pintok_server.errors import DatapathError

# A load maps, copies and verifies an image of some tens of megabytes; seconds on a slow disk.
COMMAND_TIMEOUT_S = 60.0
_POLL_S = 0.005


def create_mailbox(path: pathlib.Path) -> None:
    """Put an empty mailbox at `path`, as a new file: an older datapath keeps its own."""
    values: dict[str, object] = dict.fromkeys(spec.MAILBOX_FIELDS, 0)
    for name in ("reserved_line", "name", "path", "reserved_end"):
        values[name] = b""
    values["magic"] = spec.MAILBOX_MAGIC.encode()
    values["version"] = spec.STATS_VERSION
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(spec.MAILBOX.pack(*(values[name] for name in spec.MAILBOX_FIELDS)))
    scratch.replace(path)


def send_command(
    run_dir: RunDir,
    command: spec.MailboxCommand,
    *,
    slot: int = 0,
    name: str = "",
    image: pathlib.Path | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> None:
    """Give one command to the datapath and wait until it has carried it out.

    The caller holds `mailbox.lock`. Raises DatapathError with the datapath's own sentence when it
    refuses, or when no answer comes in time.
    """
    name_bytes = name.encode()
    path_bytes = os.fsencode(image.absolute()) if image is not None else b""
    if len(name_bytes) >= spec.STATS_MODEL_NAME_CAP:
        raise DatapathError(f"the model name {name!r} is longer than the mailbox holds")
    if len(path_bytes) >= spec.MAILBOX_PATH_CAP:
        raise DatapathError(f"the path {image} is longer than the mailbox holds")
    with StatisticsReader(run_dir.stats) as reader:
        sequence = _write(run_dir.mailbox, command, slot, name_bytes, path_bytes)
        deadline = time.monotonic() + timeout_s
        while (ack := reader.ack()).sequence != sequence:
            if process_start_time(reader.pid) is None:
                raise DatapathError(f"the datapath (process {reader.pid}) has ended")
            if time.monotonic() > deadline:
                raise DatapathError(
                    f"the datapath (process {reader.pid}) did not answer a "
                    f"{command.name.lower()} command within {timeout_s:.0f} s"
                )
            time.sleep(_POLL_S)
    if ack.result:
        raise DatapathError(ack.text or os.strerror(ack.result))


def _write(
    path: pathlib.Path, command: spec.MailboxCommand, slot: int, name: bytes, image: bytes
) -> int:
    """Write the command and return its sequence number."""
    off = spec.MAILBOX_OFFSETS
    try:
        with (
            path.open("r+b") as stream,
            mmap.mmap(stream.fileno(), spec.MAILBOX.size) as mapping,
        ):
            if mapping[:8] != spec.MAILBOX_MAGIC.encode():
                raise OSError(errno.EINVAL, "not a mailbox")
            mapping[off["command"] : off["slot"]] = int(command).to_bytes(4, "little")
            mapping[off["slot"] : off["name"]] = slot.to_bytes(4, "little")
            mapping[off["name"] : off["path"]] = name.ljust(spec.STATS_MODEL_NAME_CAP, b"\0")
            mapping[off["path"] : off["reserved_end"]] = image.ljust(spec.MAILBOX_PATH_CAP, b"\0")
            with memoryview(mapping) as view, view.cast("Q") as words:
                sequence = words[off["sequence"] // 8] + 1
                words[off["sequence"] // 8] = sequence
    except (OSError, ValueError) as error:
        raise DatapathError(f"{path}: the mailbox cannot be written: {error}") from None
    return sequence
