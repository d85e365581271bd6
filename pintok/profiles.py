"""The reference profiles by name: which version of Hugging Face `tokenizers` ids equal.

Versions differ in their Unicode tables and in small choices, so one text can have other ids. A
profile is chosen when a model is compiled and is part of its fingerprint.
"""

from __future__ import annotations

from typing import Final

PROFILES: Final = ("hf-tokenizers-0.23", "hf-tokenizers-1.0")
"""Their names; `enum image_profile` numbers them in this order, from 1 on."""
DEFAULT_PROFILE: Final = PROFILES[0]
