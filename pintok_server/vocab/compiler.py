"""Compiles models and keeps the images: the front of this package."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from pintok import hub
from pintok.profiles import DEFAULT_PROFILE
from pintok_server._spec.image import ImageSection, ImageSource
from pintok_server.vocab import cache, certificate, profiles, sources, writer


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
) -> CompiledModel:
    """Compile a model, or take its image from the cache.

    `model` is a file, a directory, `default`, or `ORG/NAME` of the Hugging Face Hub. With `certify`
    the image is compared with the reference library where that is installed, once; `corpus` adds
    the lines of a file to what is compared. `profile` names the version of the reference that the
    ids equal, one of `pintok.profiles.PROFILES`. Raises ModelError with one sentence when the model
    cannot be had, read, or run exactly.
    """
    resolved = hub.resolve(os.fspath(model), revision=revision)
    source = sources.read(resolved.path, name=resolved.name)
    reference = profiles.find(profile)
    fingerprint = source.fingerprint(reference)
    directory = pathlib.Path(cache_dir) if cache_dir is not None else cache.default_dir()
    path = cache.image_path(directory, fingerprint)
    image = cache.load(path, fingerprint)
    stored = {} if image is None else writer.read_certificate(image)
    corpus_path = None if corpus is None else pathlib.Path(corpus)
    corpus_sha256 = certificate.corpus_sha256(corpus_path)
    current = certificate.is_current(stored, source, reference, corpus_sha256)
    if image is None or (certify and not current):
        description = sources.describe(source, reference)
        image = image or writer.write_image(
            description, fingerprint=fingerprint, meta=_meta(source)
        )
        if certify:
            with cache.temporary(path, image) as candidate:
                stored = certificate.certify(
                    candidate, source, description, profile=reference, corpus=corpus_path
                )
            body = json.dumps(stored).encode()
            image = writer.replace_section(image, ImageSection.CERTIFICATE, body)
        cache.store(path, image)
    return CompiledModel(
        path=path,
        name=source.name,
        fingerprint=fingerprint,
        tag=int.from_bytes(fingerprint[:4], "little") or 1,
        source=ImageSource(source.kind).name.lower(),
        profile=reference.name,
        image_len=len(image),
        certificate=stored,
    )


def _meta(source: sources.Source) -> dict[str, Any]:
    """What the image says about where it came from."""
    return {
        "name": source.name,
        "files": [
            {"name": file.path.name, "role": file.role, "sha256": file.sha256}
            for file in source.files
        ],
    }
