"""Compiled images on disk, one file per model and compiler, safe to share between processes.

    <cache_dir>/images/<key>.ptkimage       key: fingerprint of the source and of the compiler

A file appears whole by an atomic rename, so a reader sees nothing or an image. Two writers write
the same bytes but for the certificate's date; the later rename stands. A damaged file is compiled
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from pintok import _native
from pintok.errors import ModelError
from pintok_server._spec import image as spec
from pintok_server.vocab import image_head, remembered


def image_path(cache_dir: pathlib.Path, fingerprint: bytes) -> pathlib.Path:
    """Where the image of a source belongs, below `remembered.default_dir` or elsewhere."""
    key = hashlib.sha256(fingerprint + remembered.compiler_state().encode()).hexdigest()[:40]
    return cache_dir / "images" / f"{key}.ptkimage"


def find(path: pathlib.Path, fingerprint: bytes, *, whole: bool) -> dict[str, Any] | None:
    """The certificate of a stored image; None when the image must be compiled.

    With `whole` all of it is read to find damage, which whoever opens the image finds, too.
    """
    try:
        head = image_head.read(path)
    except ModelError:
        return None
    if head.header["fingerprint"] != fingerprint or (whole and load(path) is None):
        return None
    return head.certificate


def load(path: pathlib.Path) -> bytes | None:
    """A stored image if it is there and whole. The contents are proved by whoever opens it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < spec.IMAGE_HEADER.size or len(data) % spec.IMAGE_SECTION_ALIGN:
        return None
    header = dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack_from(data), strict=True))
    return data if header["checksum"] == _native.image_checksum(data) else None


@contextlib.contextmanager
def temporary(path: pathlib.Path, image: bytes) -> Iterator[pathlib.Path]:
    """An image as a file beside its later place, for as long as the block runs.

    Raises ModelError when it cannot be written.
    """
    # Imported late: slow to import, and an image that is there does not need it.
    import tempfile

    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(image)
    except OSError as error:
        if name is not None:
            # A full disk would stay full by it.
            pathlib.Path(name).unlink(missing_ok=True)
        raise ModelError(
            f"{path.parent}: the compiled image cannot be stored: {error.strerror};"
            " set PINTOK_CACHE_DIR to a directory that can be written"
        ) from None
    try:
        yield pathlib.Path(name)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


def store(path: pathlib.Path, image: bytes) -> None:
    """Put an image in its place, whole or not at all. Raises ModelError when that fails."""
    with temporary(path, image) as file:
        os.chmod(file, 0o644)
        os.replace(file, path)
