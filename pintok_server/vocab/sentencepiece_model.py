"""Recognises sentencepiece's `.model` files, which this version does not compile.

Their normalization runs over the whole text at once and differs from what tokenizer.json
expresses, so a translation would be nearly right. It is refused instead.
"""

from __future__ import annotations

from typing import Any

from pintok.errors import ModelError
from pintok_server.vocab.description import Description


def load(data: bytes, *, meta: dict[str, Any]) -> Description:
    """Refuse the model with a sentence that says what to use."""
    raise ModelError(
        "a sentencepiece .model file is not supported; use the tokenizer.json of the same model"
    )
