"""Finds the image of a model, or has it built: the front of this package."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from typing import Any

from pintok import hub
from pintok.profiles import DEFAULT_PROFILE
from pintok_server._spec.image import ImageSource
from pintok_server.vocab import cache, certificate, profiles, remembered, sources


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
    profile: str
    """The reference profile that its ids follow."""
    image_len: int
    certificate: dict[str, Any] = dataclasses.field(default_factory=dict)


def load_image(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    corpus: str | os.PathLike[str] | None = None,
    certify: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    profile: str = DEFAULT_PROFILE,
    whole: bool = True,
) -> CompiledModel:
    """Compile a model, or take its image from the cache.

    `model` is a file, a directory, `default`, or `ORG/NAME` of the Hugging Face Hub. With `certify`
    the image is compared with the reference library where that is installed, once; `corpus` adds
    the lines of a file to what is compared. `profile` names the version of the reference that the
    ids equal, one of `pintok.profiles.PROFILES`. Without `whole` a stored image is not read here:
    whoever opens it finds damage. Raises ModelError with one sentence when the model cannot be had,
    read, or run exactly.
    """
    since_ns = time.time_ns()
    resolved = hub.resolve(os.fspath(model), revision=revision)
    source = sources.read(resolved.path, name=resolved.name)
    reference = profiles.find(profile)
    fingerprint = source.fingerprint(reference)
    directory = pathlib.Path(cache_dir) if cache_dir is not None else remembered.default_dir()
    path = cache.image_path(directory, fingerprint)
    stored = cache.find(path, fingerprint, whole=whole)
    corpus_path = None if corpus is None else pathlib.Path(corpus)
    corpus_sha256 = certificate.corpus_sha256(corpus_path)
    if stored is None or (
        certify and not certificate.is_current(stored, source, reference, corpus_sha256)
    ):
        # Imported late: slow to import, and an image that is there does not need it.
        from pintok_server.vocab import building

        stored = building.build(
            path,
            source,
            reference,
            image=None if stored is None else cache.load(path),
            certify=certify,
            corpus=corpus_path,
        )
    if resolved.name is None and certificate.lasts(stored, source):
        remembered.keep(
            os.fspath(model),
            reference.name,
            image=path,
            name=source.name,
            places=source.places,
            absent=certificate.awaited_package(stored, source),
            since_ns=since_ns,
            cache_dir=directory,
        )
    return CompiledModel(
        path=path,
        name=source.name,
        fingerprint=fingerprint,
        tag=int.from_bytes(fingerprint[:4], "little") or 1,
        source=ImageSource(source.kind).name.lower(),
        profile=reference.name,
        image_len=path.stat().st_size,
        certificate=stored,
    )
