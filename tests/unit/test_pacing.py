"""How often and how long: the numbers of `pintok._pacing`, with a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pintok._fleet import Health
from pintok._pacing import Backoff, Pacing, Patience, RetryBudget, after_hint


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


def test_repetitions_are_a_share_of_requests() -> None:
    """The property that keeps a client from making trouble worse, whatever it asks for."""
    budget = RetryBudget(0.2, 0.0)
    granted = 0
    for _ in range(10_000):
        budget.deposit()
        granted += sum(budget.withdraw(0.0) for _ in range(8))
    assert 0.2 * 10_000 <= granted <= 0.2 * 10_000 + 100


def test_a_seldom_client_may_repeat_too() -> None:
    """Ten a second come by themselves; never more than a hundred are saved."""
    budget = RetryBudget(0.0, 0.0)
    assert sum(budget.withdraw(0.0) for _ in range(1000)) == 100
    assert sum(budget.withdraw(1.0) for _ in range(1000)) == 10
    assert sum(budget.withdraw(1000.0) for _ in range(1000)) == 100
    assert not budget.withdraw(900.0)  # A clock that goes back gives nothing.


def test_waits_double_with_jitter_up_to_a_second() -> None:
    """Clients that were cut off together do not come back together."""
    seen = []
    for _ in range(200):
        backoff = Backoff(Pacing(8, 0.05, RetryBudget(1.0, 0.0)))
        seen.append([backoff.wait() for _ in range(8)])
    for step in range(8):
        middle = min(0.05 * 2**step, 1.0)
        waits = [each[step] for each in seen]
        assert 0.75 * middle <= min(waits) < 0.8 * middle
        assert 1.2 * middle < max(waits) <= 1.25 * middle


def test_a_hint_is_never_undercut() -> None:
    assert all(0.3 <= after_hint(0.3) <= 0.45 for _ in range(1000))


def test_one_deadline_through_every_part() -> None:
    """Servers share what is left, and what they use up is used up for those after them."""
    whole = Patience(6.0, 100.0)
    first = whole.share(100.0, 3, hedged=False)
    assert (first.deadline, first.alone) == (102.0, False)
    second = whole.share(102.0, 2, hedged=False)
    assert (second.deadline, second.alone) == (104.0, False)
    last = whole.share(104.0, 1, hedged=False)
    assert (last.deadline, last.alone) == (106.0, True)
    assert whole.share(107.0, 1, hedged=False).deadline == 107.0
    hedged = whole.share(100.5, 2, hedged=True)
    assert (hedged.deadline, hedged.alone) == (106.0, False)


def test_progress_renews_and_questions_on_the_side_do_not() -> None:
    """A batch goes on as long as answers come; a ping of the path has its seconds and no more."""
    whole = Patience(6.0, 100.0)
    share = whole.share(100.0, 3, hedged=False)
    aside = whole.limited(100.0, 0.25)
    aside.renew(101.0)
    assert (aside.deadline, whole.deadline) == (100.25, 106.0)
    share.renew(101.0)
    assert (share.deadline, whole.deadline) == (103.0, 107.0)
    assert whole.limited(106.9, 0.25).deadline == pytest.approx(107.0)


def test_a_server_is_left_alone_for_longer_and_longer() -> None:
    """One call tries it after each pause; an answer forgets everything."""
    health = Health()
    now = 0.0
    for doubled in (1, 2, 4, 8, 16, 30, 30):
        health.failed(now)
        assert health.down(now + 0.74 * doubled) and not health.down(now + 1.26 * doubled)
        now += 1.26 * doubled
    health.tried(now)
    assert health.down(now)  # The others wait for what becomes of it.
    health.answered()
    assert not health.down(now)
    health.tried(now)
    assert not health.down(now)


def test_a_server_that_is_always_late_is_down() -> None:
    health = Health()
    health.late(0.0)
    health.late(0.0)
    health.answered()
    health.late(0.0)
    health.late(0.0)
    assert not health.down(0.0)
    health.late(0.0)
    assert health.down(0.0)
