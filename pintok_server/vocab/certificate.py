"""What an image's certificate says, and whether it still says all that there is to say.

`comparison.py` makes certificates.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib
from typing import Any

from pintok.errors import ModelError
from pintok_server._spec.image import ImageSource
from pintok_server.vocab.profiles import Profile
from pintok_server.vocab.sources import Source

# The first sentencepiece that gives offsets in code points without the protobuf package.
_SENTENCEPIECE_MIN = (0, 2, 3)

PACKAGES = {
    ImageSource.TOKENIZER_JSON: "tokenizers",
    ImageSource.VOCAB_TXT: "tokenizers",
    ImageSource.TIKTOKEN: "tiktoken",
    ImageSource.TEKKEN: "mistral_common",
    ImageSource.SENTENCEPIECE: "sentencepiece",
}


def unavailable(source: Source, profile: Profile) -> str | None:
    """Why nothing can be compared for this source under this profile, or None."""
    package = PACKAGES.get(source.kind)
    if package is None:
        return f"there is no reference for {source.kind.name.lower()}"
    wanted = profile.install if package == "tokenizers" else package
    if importlib.util.find_spec(package) is None:
        return f"{wanted} is not installed"
    if package == "tokenizers":
        version = _version("tokenizers")
        if not profile.follows(version):
            return f"{wanted} is not installed, but {version}, which is not of {profile.name}"
    if package == "sentencepiece":
        version = _version("sentencepiece")
        if _release(version) < _SENTENCEPIECE_MIN:
            return f"sentencepiece {version} is older than 0.2.3"
    return None


def _version(package: str) -> str:
    # Imported late: slow to import, and a certificate that compared something does not need it.
    from importlib import metadata

    return metadata.version(package)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, as far as they are numbers."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def is_current(
    certificate: dict[str, Any], source: Source, profile: Profile, corpus_sha256: str | None
) -> bool:
    """Whether a stored certificate still says all that comparing again could."""
    if not certificate:
        return False
    if not certificate.get("compared"):
        is_final = bool(certificate.get("ambiguous", False))
        return is_final or certificate.get("reason") == unavailable(source, profile)
    return corpus_sha256 is None or certificate.get("corpus_sha256") == corpus_sha256


def awaited_package(certificate: dict[str, Any], source: Source) -> str | None:
    """The package whose arrival would let a certificate say more; None: there is none to wait for,
    or it is there in a version that is not compared with."""
    package = PACKAGES.get(source.kind)
    if _is_final(certificate) or package is None or importlib.util.find_spec(package) is not None:
        return None
    return package


def lasts(certificate: dict[str, Any], source: Source) -> bool:
    """Whether it stays current until the source changes or the awaited package arrives."""
    return bool(certificate) and (
        _is_final(certificate) or awaited_package(certificate, source) is not None
    )


def _is_final(certificate: dict[str, Any]) -> bool:
    return bool(certificate.get("compared") or certificate.get("ambiguous"))


def corpus_sha256(corpus: pathlib.Path | None) -> str | None:
    """Identity of a corpus file. Raises ModelError when it cannot be read."""
    if corpus is None:
        return None
    try:
        with open(corpus, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{corpus}: the corpus cannot be read: {error.strerror}") from None
