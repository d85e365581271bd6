"""Compiled images in the cache, as `pintok-server models` shows them.

Reads only the head, the section table and the JSON sections of a file, each checked against the
file's length; that an image is whole and sound is verified when it is opened to be used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any, BinaryIO

from pintok.errors import ModelError
from pintok_server._spec import image as spec
from pintok_server.vocab import cache, profiles

# No image has more kinds of sections; the table of a damaged file is not believed beyond it.
SECTIONS_MAX = 256
# Certificates, names and a chat template; vocabularies are in other sections.
JSON_LEN_MAX = 16 << 20


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
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


def list_summaries(directory: pathlib.Path | None = None) -> list[ImageSummary]:
    """The images of the cache, the latest first. Files that are no images are left out."""
    folder = (directory or cache.default_dir()) / "images"
    found: list[tuple[float, ImageSummary]] = []
    for path in folder.glob("*.ptkimage"):
        try:
            found.append((path.stat().st_mtime, read_summary(path)))
        except (ModelError, OSError):
            continue
    return [summary for _, summary in sorted(found, key=lambda pair: -pair[0])]


def _read(path: pathlib.Path, stream: BinaryIO) -> ImageSummary:
    file_len = os.fstat(stream.fileno()).st_size
    data = stream.read(spec.IMAGE_HEADER.size)
    if len(data) < spec.IMAGE_HEADER.size or not data.startswith(spec.IMAGE_MAGIC.encode()):
        raise ModelError(f"{path}: not a vocabulary image")
    head = dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack(data), strict=True))
    if head["version"] != spec.IMAGE_VERSION or head["section_count"] > SECTIONS_MAX:
        raise ModelError(f"{path}: an image of another version, {head['version']}")
    sections: dict[int, bytes] = {}
    wanted = {spec.ImageSection.CONFIG, spec.ImageSection.META, spec.ImageSection.CERTIFICATE}
    table = stream.read(head["section_count"] * spec.IMAGE_SECTION_ENTRY.size)
    if len(table) != head["section_count"] * spec.IMAGE_SECTION_ENTRY.size:
        raise ModelError(f"{path}: cut off")
    for values in spec.IMAGE_SECTION_ENTRY.iter_unpack(table):
        entry = dict(zip(spec.IMAGE_SECTION_ENTRY_FIELDS, values, strict=True))
        if entry["kind"] in wanted:
            if entry["len"] > JSON_LEN_MAX or entry["off"] + entry["len"] > file_len:
                raise ModelError(f"{path}: a section lies outside of the file")
            stream.seek(entry["off"])
            sections[entry["kind"]] = stream.read(entry["len"])
    config_data = sections.get(spec.ImageSection.CONFIG, b"")
    if len(config_data) != spec.IMAGE_CONFIG.size:
        raise ModelError(f"{path}: has no configuration")
    config_values = spec.IMAGE_CONFIG.unpack(config_data)
    config = dict(zip(spec.IMAGE_CONFIG_FIELDS, config_values, strict=False))
    return ImageSummary(
        path=str(path),
        fingerprint=head["fingerprint"].hex(),
        image_len=head["image_len"],
        source=_name(spec.ImageSource, head["source"]),
        profile=profiles.name_of(head["profile"]),
        algorithm=_name(spec.ImageAlgorithm, config["algorithm"]),
        vocab_len=config["vocab_len"],
        meta=_object(path, sections.get(spec.ImageSection.META)),
        certificate=_object(path, sections.get(spec.ImageSection.CERTIFICATE)),
    )


def _name(enum: type, value: int) -> str:
    try:
        return str(enum(value).name).lower()
    except ValueError:
        return str(value)


def _object(path: pathlib.Path, data: bytes | None) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: a section is not JSON") from None
    return value if isinstance(value, dict) else {}
