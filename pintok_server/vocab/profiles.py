"""Reference profiles: their names and versions.

A profile's tables are the core's (`native/spec/unicode_*.txt`); what no table expresses is refused
in `profile_check.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from pintok.errors import ModelError
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server._spec.image import ImageProfile, ImageSource
from pintok_server.vocab.json_fields import shorten


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """One reference profile."""

    name: str
    number: ImageProfile
    versions: tuple[str, ...]
    """Beginnings of the versions of tokenizers that images of this profile are compared with."""
    install: str
    """What to install for the comparison."""

    def follows(self, version: str) -> bool:
        """Whether a version of tokenizers has this profile's tables."""
        return version.startswith(self.versions)


_BY_NAME: Final = {
    PROFILES[0]: Profile(
        PROFILES[0], ImageProfile.TOKENIZERS_0_23, ("0.21.", "0.22.", "0.23."), "tokenizers==0.23.3"
    ),
    PROFILES[1]: Profile(
        PROFILES[1], ImageProfile.TOKENIZERS_1_0, ("1.0.0rc3",), "tokenizers==1.0.0rc3"
    ),
}
DEFAULT: Final = _BY_NAME[DEFAULT_PROFILE]

# Files that tokenizers reads; the other formats have a reference of their own.
_SOURCES: Final = (ImageSource.TOKENIZER_JSON, ImageSource.VOCAB_TXT)


def find(name: str) -> Profile:
    """The profile of this name. Raises ModelError naming those there are."""
    if name not in _BY_NAME:
        raise ModelError(f"profile: {shorten(name)} is none of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def name_of(number: int) -> str:
    """The name of an image's profile."""
    return next((one.name for one in _BY_NAME.values() if one.number == number), str(number))


def check_source(kind: ImageSource, profile: Profile) -> None:
    """Raise ModelError for a format that the profile's library does not read."""
    if profile is not DEFAULT and kind not in _SOURCES:
        raise ModelError(
            f"profile {profile.name}: tokenizers does not read {kind.name.lower()} files;"
            f" leave the profile at {DEFAULT.name}"
        )
