"""What the content of a `normalized` added token becomes: the model's normalizer applied to it."""

from __future__ import annotations

from pintok import _native
from pintok._wire import VERDICT_TEXTS
from pintok.errors import ModelError
from pintok_server._spec.image import ImageProfile


def normalize(program: bytes, content: bytes, *, profile: ImageProfile) -> bytes:
    """Run a normalizer program over one content. Raises ModelError where it cannot be run."""
    try:
        return bytes(_native.normalize(program, profile, content))
    except _native.SetupError as error:
        raise ModelError(f"normalizer: {error.sentence}") from None
    except _native.Refused as refused:
        reason = VERDICT_TEXTS.get(refused.verdict, "refused")
        raise ModelError(
            f"added_tokens: {content.decode()!r} cannot be normalized: {reason}"
        ) from None
