"""Every exception that PinTok raises on purpose, and what can be done about it.

PinTokError
    ModelError          a model file is missing, damaged, or cannot be run exactly
    RefusedError        a request was refused: `verdict` says why, in process or from a server
    TransportError      no answer came: unreachable host, foreign protocol
        DeadlineError   no answer in time; a TimeoutError as well

Each has a `code`: of a refusal it is the verdict's name, else `model`, `transport`, `deadline`,
`malformed_reply`, or `error` for a verdict that only newer servers know. `retryable` says whether
the same call may succeed later. What stands below is the whole table of refusals: `again` are those
that clients repeat by themselves until their time is over, and that a fleet takes to another server
(`elsewhere`); `followed` are steps of the protocol, which callers see only when a server insists.

    code                again       what it says
    bad_magic           no          not PTK1: never answered
    bad_version         no          the server speaks another version
    bad_type            no          not a datagram that clients send
    bad_flags           no          a reserved bit is set
    bad_length          no          lengths contradict each other
    bad_op              no          the server does not know the operation
    bad_option          no          an option does not belong there
    bad_items           no          no items, or too many
    bad_format          no          the id format is too narrow for the model
    bad_utf8            no          the text is not valid UTF-8
    unknown_model       no          the server has no such model
    model_changed       no          the server has another generation; `accept_model` goes on
    text_too_long       no          longer than the server is configured for
    reply_too_long      no          the path is too narrow for segments
    unsupported         no          not offered for this model
    bad_crc             again       damaged on the way
    busy                elsewhere   no room at the moment; the server may say for how long
    unknown_request     followed    the server has forgotten the message: sent anew
    challenge           followed    the address must be validated: repeated with its cookie
    bad_cookie          followed    the cookie is too old: repeated with the new one
    bad_key             no          the key is unknown, wrong or missing
    rate_limited        elsewhere   over the limit of the address or its network
    not_allowed         no          not an allowed network: never answered
    unknown_prefix      no          no such prefix is stored
    bad_id              no          the ids are malformed
    replayed            again       the network has doubled it, or it was too late
"""

from __future__ import annotations

from typing import Final

from pintok._wire import VERDICT_TEXTS, Verdict

ELSEWHERE: Final = frozenset({int(Verdict.BUSY), int(Verdict.RATE_LIMITED)})
"""Verdicts of one server that say nothing about others."""
RETRYABLE: Final = ELSEWHERE | {int(Verdict.BAD_CRC), int(Verdict.REPLAYED)}
"""Verdicts after which the same request may succeed a little later."""
FOLLOWED: Final = frozenset(
    {int(Verdict.CHALLENGE), int(Verdict.BAD_COOKIE), int(Verdict.UNKNOWN_REQUEST)}
)
"""Verdicts that are steps of the protocol."""


class PinTokError(Exception):
    """Base of all; the message says what, with which value, and what to do where that is known."""

    code = "error"
    retryable = False
    """Whether the same call may succeed later."""


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
        self.retryable = verdict in RETRYABLE or verdict in FOLLOWED


class TransportError(PinTokError):
    """The network gave no usable answer."""

    code = "transport"
    retryable = True


class DeadlineError(TransportError, TimeoutError):
    """No answer within the deadline, retries included."""

    code = "deadline"
