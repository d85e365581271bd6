"""Keys of tenants: make one, check a file of them, give a running server those of its file.

A file holds one key a line, a number, a space and 64 hexadecimal digits (32 bytes). Its readers are
the server and whoever hands the keys to tenants, so a file that others may read is refused. The
datapath reads it itself; nothing here keeps or shows a key.
"""

from __future__ import annotations

import pathlib
import re
import secrets
import stat
from collections.abc import Sequence

from pintok_server._spec import metrics as spec
from pintok_server.control.mailbox import send_command
from pintok_server.control.runtime import RunDir, current_state, hold_lock
from pintok_server.errors import ConfigError, InstanceError

KEYS_MAX = 64
_LINE = re.compile(r"([0-9]{1,10}) [0-9a-f]{64}")
_FILE_LEN_MAX = KEYS_MAX * 80


def make_key(key_id: int) -> str:
    """A line for a file of keys, with 32 bytes from the system's random numbers."""
    if not 0 <= key_id < 1 << 32:
        raise ConfigError(f"key {key_id}: a key's number is from 0 to {(1 << 32) - 1}")
    return f"{key_id} {secrets.token_hex(32)}"


def check_keys(path: pathlib.Path) -> Sequence[int]:
    """The numbers of the keys in a file.

    Raises ConfigError that names the line and never the key, also when others may read the file.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(_FILE_LEN_MAX + 1)
    except OSError as error:
        raise ConfigError(f"keys {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"keys {path}: others may read or change it; run: chmod 600 {path}")
    if len(data) > _FILE_LEN_MAX:
        raise ConfigError(f"keys {path}: longer than {KEYS_MAX} keys are")
    ids: list[int] = []
    for number, line in enumerate(data.decode("latin-1").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) >= 1 << 32:
            raise ConfigError(
                f"keys {path}: line {number} is not a number, a space and 64 hexadecimal digits"
            )
        if int(match[1]) in ids:
            raise ConfigError(f"keys {path}: line {number} repeats key {match[1]}")
        ids.append(int(match[1]))
    if len(ids) > KEYS_MAX:
        raise ConfigError(f"keys {path}: more than {KEYS_MAX}")
    return ids


def reload_keys(run_dir: RunDir) -> tuple[pathlib.Path, Sequence[int]]:
    """Let a running datapath read its file of keys again; requests are not interrupted.

    Raises InstanceError when none runs or it was started without keys, ConfigError for a file that
    is not usable, DatapathError when the datapath refuses.
    """
    with hold_lock(run_dir.mailbox_lock, wait=True, busy=""):
        state = current_state(run_dir)
        if state is None or not state.alive():
            raise InstanceError(f"no server runs in {run_dir.path}")
        path = state.options.get("keys")
        if path is None:
            raise InstanceError("the server was started without --keys")
        ids = check_keys(pathlib.Path(path))
        send_command(run_dir, spec.MailboxCommand.KEYS, image=pathlib.Path(path))
    return pathlib.Path(path), ids
