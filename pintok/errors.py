"""Every exception that PinTok raises on purpose.

PinTokError
    ModelError          a model file is missing, damaged, or cannot be run exactly
    RefusedError        a request was refused: `verdict` says why, in process or from a server
    TransportError      no answer came: deadline, unreachable host, foreign protocol
"""

from __future__ import annotations

from pintok._wire import VERDICT_TEXTS, Verdict


class PinTokError(Exception):
    """Base of all; the message says what, with which value, and what to do where that is known."""

    code = "error"


class ModelError(PinTokError):
    """A model cannot be opened; the message names the file or component and its value."""

    code = "model"


class RefusedError(PinTokError):
    """A request got a verdict other than OK."""

    def __init__(self, verdict: int, *, detail: str | None = None) -> None:
        text = VERDICT_TEXTS.get(verdict, f"unknown verdict {verdict}")
        super().__init__(f"{text} ({detail})" if detail else text)
        self.verdict = verdict
        """Value of the wire protocol's verdict table."""
        self.code = Verdict(verdict).name.lower() if verdict in VERDICT_TEXTS else "error"
        """Name of the verdict: `bad_utf8`, for instance."""


class TransportError(PinTokError):
    """The network gave no usable answer."""

    code = "transport"


class DeadlineError(TransportError, TimeoutError):
    """No answer within the deadline, retries included."""

    code = "deadline"
