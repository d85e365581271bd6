"""The head and the small sections of an image file, read without its tables.

Each is checked against the file's length; that an image is whole and sound is verified when it is
opened to be used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any, BinaryIO, Final

from pintok.errors import ModelError
from pintok_server._spec import image as spec

# No image has more kinds of sections; the table of a damaged file is not believed beyond it.
_SECTIONS_MAX: Final = 256
# Certificates, names and a chat template; vocabularies are in other sections.
_JSON_LEN_MAX: Final = 16 << 20
_SMALL: Final = frozenset(
    {spec.ImageSection.CONFIG, spec.ImageSection.META, spec.ImageSection.CERTIFICATE}
)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageHead:
    """What an image file says about itself."""

    header: dict[str, Any]
    config: dict[str, Any]
    meta: dict[str, Any]
    certificate: dict[str, Any]


def read(path: pathlib.Path) -> ImageHead:
    """Read the head of an image. Raises ModelError when the file is none of this version."""
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: pathlib.Path, stream: BinaryIO) -> ImageHead:
    file_len = os.fstat(stream.fileno()).st_size
    data = stream.read(spec.IMAGE_HEADER.size)
    if len(data) < spec.IMAGE_HEADER.size or not data.startswith(spec.IMAGE_MAGIC.encode()):
        raise ModelError(f"{path}: not a vocabulary image")
    header = dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack(data), strict=True))
    if header["version"] != spec.IMAGE_VERSION or header["section_count"] > _SECTIONS_MAX:
        raise ModelError(f"{path}: an image of another version, {header['version']}")
    table = stream.read(header["section_count"] * spec.IMAGE_SECTION_ENTRY.size)
    if (
        header["image_len"] != file_len
        or len(table) != header["section_count"] * spec.IMAGE_SECTION_ENTRY.size
    ):
        raise ModelError(f"{path}: cut off")
    sections: dict[int, bytes] = {}
    for values in spec.IMAGE_SECTION_ENTRY.iter_unpack(table):
        entry = dict(zip(spec.IMAGE_SECTION_ENTRY_FIELDS, values, strict=True))
        if entry["kind"] in _SMALL:
            if entry["len"] > _JSON_LEN_MAX or entry["off"] + entry["len"] > file_len:
                raise ModelError(f"{path}: a section lies outside of the file")
            stream.seek(entry["off"])
            sections[entry["kind"]] = stream.read(entry["len"])
    config = sections.get(spec.ImageSection.CONFIG, b"")
    if len(config) != spec.IMAGE_CONFIG.size:
        raise ModelError(f"{path}: has no configuration")
    return ImageHead(
        header=header,
        config=dict(zip(spec.IMAGE_CONFIG_FIELDS, spec.IMAGE_CONFIG.unpack(config), strict=False)),
        meta=_object(path, sections.get(spec.ImageSection.META)),
        certificate=_object(path, sections.get(spec.ImageSection.CERTIFICATE)),
    )


def _object(path: pathlib.Path, data: bytes | None) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: a section is not JSON") from None
    return value if isinstance(value, dict) else {}
