"""When to send again, how often in all, and until when: numbers; the clock is the caller's."""

from __future__ import annotations

import dataclasses
import random
from typing import Final

_WAIT_MOST: Final = 1.0
_SAVED_MOST: Final = 100.0
_REFILL_PER_SECOND: Final = 10.0


class Patience:
    """Until when a call waits: one point in time through everything that it does.

    A call of many datagrams has its time anew with each that is answered; so a silent server ends a
    batch as soon as a single request.
    """

    __slots__ = ("_fixed", "_whole", "alone", "deadline", "timeout")

    def __init__(
        self,
        timeout: float,
        now: float,
        *,
        whole: Patience | None = None,
        alone: bool = True,
        fixed: bool = False,
    ) -> None:
        self.timeout = timeout
        self.deadline = now + timeout
        self.alone = alone
        """There is no other server to ask: one that is not there may come back in time."""
        self._whole = whole
        self._fixed = fixed

    def renew(self, now: float) -> None:
        """There is progress."""
        if self._fixed:
            return
        self.deadline = now + self.timeout
        if self._whole is not None:
            self._whole.renew(now)

    def share(self, now: float, servers_left: int, *, hedged: bool) -> Patience:
        """What one of the servers that are left may have of it: all, if others do not wait."""
        left = max(self.deadline - now, 0.0)
        alone = servers_left <= 1
        return Patience(left if hedged else left / servers_left, now, whole=self, alone=alone)

    def limited(self, now: float, seconds: float) -> Patience:
        """At most so long, for a question on the side."""
        left = max(min(self.deadline - now, seconds), 0.0)
        return Patience(left, now, alone=self.alone, fixed=True)


class RetryBudget:
    """How many datagrams may be sent again: a share of those that are sent for the first time.

    When a server is in trouble, all its clients repeat; without a bound their repetitions keep it
    there. A bucket takes `share` for each new datagram, and ten a second, so that a client that
    asks seldom may repeat at all; it holds a hundred. There is no lock: an update that threads lose
    is a repetition more or less.
    """

    __slots__ = ("_filled_at", "_saved", "_share")

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._saved = _SAVED_MOST
        self._filled_at = now

    def deposit(self) -> None:
        """A datagram was sent for the first time."""
        self._saved = min(self._saved + self._share, _SAVED_MOST)

    def withdraw(self, now: float) -> bool:
        """Whether one may be sent again; counts it."""
        refill = max(now - self._filled_at, 0.0) * _REFILL_PER_SECOND
        self._filled_at = now
        saved = min(self._saved + refill, _SAVED_MOST)
        self._saved = saved - 1.0 if saved >= 1.0 else saved
        return saved >= 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Pacing:
    """How a client repeats: at most `retries` times, first after `retry_after` seconds."""

    retries: int
    retry_after: float
    budget: RetryBudget


class Backoff:
    """The waits of one request: they double up to a second, each of them jittered.

    Without jitter the clients of a server that was away for a moment would all be back at once.
    """

    __slots__ = ("_wait", "left")

    def __init__(self, pacing: Pacing) -> None:
        self.left = pacing.retries
        """Repetitions that may still be made."""
        self._wait = pacing.retry_after

    def wait(self) -> float:
        """Seconds until what is sent now counts as lost."""
        wait = jittered(self._wait)
        self._wait = min(2 * self._wait, _WAIT_MOST)
        return wait


def jittered(seconds: float) -> float:
    """About so long; different for everybody who waits."""
    return seconds * random.uniform(0.75, 1.25)


def after_hint(seconds: float) -> float:
    """How long to wait when a server has said how long: not less, and not everybody the same."""
    return seconds * random.uniform(1.0, 1.5)
