"""Compiled images in the cache, as `pintok-server models` shows them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from pintok.errors import ModelError
from pintok_server._spec import image as spec
from pintok_server.vocab import image_head, profiles, remembered


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSummary:
    """What an image file says about itself."""

    path: str
    fingerprint: str
    image_len: int
    source: str
    profile: str
    algorithm: str
    vocab_len: int
    meta: dict[str, Any]
    certificate: dict[str, Any]


def read_summary(path: pathlib.Path) -> ImageSummary:
    """Read the summary of one image. Raises ModelError when the file is not an image."""
    head = image_head.read(path)
    return ImageSummary(
        path=str(path),
        fingerprint=head.header["fingerprint"].hex(),
        image_len=head.header["image_len"],
        source=_name(spec.ImageSource, head.header["source"]),
        profile=profiles.name_of(head.header["profile"]),
        algorithm=_name(spec.ImageAlgorithm, head.config["algorithm"]),
        vocab_len=head.config["vocab_len"],
        meta=head.meta,
        certificate=head.certificate,
    )


def list_summaries(directory: pathlib.Path | None = None) -> list[ImageSummary]:
    """The images of the cache, the latest first. Files that are no images are left out."""
    folder = (directory or remembered.default_dir()) / "images"
    found: list[tuple[float, ImageSummary]] = []
    for path in folder.glob("*.ptkimage"):
        try:
            found.append((path.stat().st_mtime, read_summary(path)))
        except (ModelError, OSError):
            continue
    return [summary for _, summary in sorted(found, key=lambda pair: -pair[0])]


def _name(enum: type, value: int) -> str:
    try:
        return str(enum(value).name).lower()
    except ValueError:
        return str(value)
