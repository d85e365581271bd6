"""Compiles models and keeps the images: the front of this package."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from pintok import hub
from pintok_server._spec.image import ImageSource
from pintok_server.vocab import cache, sources, writer


@dataclasses.dataclass(frozen=True, slots=True)
class CompiledModel:
    """A model whose image lies in the cache, whole and ready to be opened."""

    path: pathlib.Path
    """The image."""
    name: str
    fingerprint: bytes
    """SHA-256: the identity of the model, whatever its name."""
    tag: int
    """First four bytes of the fingerprint, as the wire protocol carries it."""
    source: str
    """The format it was compiled from: a name of `image_source`."""
    image_len: int
    certificate: dict[str, Any] = dataclasses.field(default_factory=dict)


def load_image(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    corpus: str | os.PathLike[str] | None = None,
    certify: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> CompiledModel:
    """Compile a model, or take its image from the cache.

    `model` is a file, a directory, `default`, or `ORG/NAME` of the Hugging Face Hub. Raises
    ModelError with one sentence when it cannot be had, read, or run exactly.
    """
    resolved = hub.resolve(os.fspath(model), revision=revision)
    source = sources.read(resolved.path, name=resolved.name)
    fingerprint = source.fingerprint()
    directory = pathlib.Path(cache_dir) if cache_dir is not None else cache.default_dir()
    path = cache.image_path(directory, fingerprint)
    if not cache.is_whole(path, fingerprint):
        image = writer.write_image(sources.describe(source), fingerprint=fingerprint)
        cache.store(path, image)
    return CompiledModel(
        path=path,
        name=source.name,
        fingerprint=fingerprint,
        tag=int.from_bytes(fingerprint[:4], "little") or 1,
        source=ImageSource(source.kind).name.lower(),
        image_len=path.stat().st_size,
    )
