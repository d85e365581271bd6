"""Errors of the server's own Python: each message says what, with which value, and what to do.

Everything here is a `pintok.errors.PinTokError`, so one `except` at the command line turns any of
them into a sentence on standard error and a non-zero exit status. Not here: verdicts, which are
answers of the protocol, and programming mistakes, which keep Python's own exceptions.
"""

from __future__ import annotations

from pintok.errors import PinTokError


class ServerError(PinTokError):
    """The server cannot do what was asked of it."""


class ConfigError(ServerError):
    """An option, an environment variable or the configuration file is not usable."""


class InstanceError(ServerError):
    """The runtime directory or another process stands in the way of this instance."""


class DatapathError(ServerError):
    """The datapath process refused, died, or does not answer."""


class StatisticsError(ServerError):
    """The statistics segment is absent or not one that this version reads."""


class UnfinishedStatisticsError(StatisticsError):
    """The statistics segment is not there yet, or not finished: asking again may help."""
