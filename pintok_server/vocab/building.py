"""Builds the image of a model and has it compared with the reference."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from pintok_server._spec.image import ImageSection
from pintok_server.vocab import cache, comparison, formats, writer
from pintok_server.vocab.profiles import Profile
from pintok_server.vocab.sources import Source


def build(
    path: pathlib.Path,
    source: Source,
    profile: Profile,
    *,
    image: bytes | None,
    certify: bool,
    corpus: pathlib.Path | None,
) -> dict[str, Any]:
    """Write the image of a source to its path in the cache and return its certificate.

    `image` is the stored one if only the comparison is to be made up for. Raises ModelError when
    the source cannot be understood, differs from its reference, or cannot be stored.
    """
    description = formats.describe(source, profile)
    if image is None:
        fingerprint = source.fingerprint(profile)
        image = writer.write_image(description, fingerprint=fingerprint, meta=_meta(source))
    stored: dict[str, Any] = {}
    if certify:
        with cache.temporary(path, image) as candidate:
            stored = comparison.certify(
                candidate, source, description, profile=profile, corpus=corpus
            )
        body = json.dumps(stored).encode()
        image = writer.replace_section(image, ImageSection.CERTIFICATE, body)
    cache.store(path, image)
    return stored


def _meta(source: Source) -> dict[str, Any]:
    """What the image says about where it came from."""
    return {
        "name": source.name,
        "files": [
            {"name": file.path.name, "role": file.role, "sha256": file.sha256}
            for file in source.files
        ],
    }
