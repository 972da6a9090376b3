"""Which steps of the database's clock are a jump, and for how long it is not trusted then."""

from __future__ import annotations

from datetime import timedelta

import pytest
from parts import NOON, Clock

from durablestack.supervisor.clocks import DatabaseClock

LEASE = timedelta(seconds=30)


def after(went_seconds: float, elapsed_seconds: float, answer_took_seconds: float = 0.0) -> timedelta | None:
    """What is said of a clock that went so far while so much time passed."""
    watched = DatabaseClock(LEASE, Clock())
    assert watched.saw(NOON, 100.0, 100.0) is None
    asked_at = 100.0 + elapsed_seconds
    return watched.saw(NOON + timedelta(seconds=went_seconds), asked_at, asked_at + answer_took_seconds)


@pytest.mark.parametrize(
    ("went_seconds", "elapsed_seconds", "answer_took_seconds"),
    [
        (5.0, 5.0, 0.0),
        (5.9, 5.0, 0.0),  # within a second
        (4.1, 5.0, 0.0),
        (100 * 1.04, 100.0, 0.0),  # a clock that is slowly set right
        (100 * 0.96, 100.0, 0.0),
        (5.0, 5.0, 9.0),  # whenever the database looked, between question and answer
        (14.0, 5.0, 9.0),
    ],
)
def test_clocks_that_go_about_alike(went_seconds: float, elapsed_seconds: float, answer_took_seconds: float) -> None:
    assert after(went_seconds, elapsed_seconds, answer_took_seconds) is None


@pytest.mark.parametrize(
    ("went_seconds", "elapsed_seconds", "answer_took_seconds", "jump_seconds"),
    [
        (3_605.0, 5.0, 0.0, 3_600.0),
        (-3_595.0, 5.0, 0.0, -3_600.0),
        (6.5, 5.0, 0.0, 1.5),
        (100 * 1.06, 100.0, 0.0, 6.0),
        (3_608.0, 3_600.0, 0.0, 8.0),  # however long it took: more than a quarter of a lease
        (20.0, 5.0, 9.0, 6.0),
    ],
)
def test_jumps(went_seconds: float, elapsed_seconds: float, answer_took_seconds: float, jump_seconds: float) -> None:
    jump = after(went_seconds, elapsed_seconds, answer_took_seconds)
    assert jump is not None
    assert jump.total_seconds() == pytest.approx(jump_seconds)


def test_after_a_jump_the_clock_is_not_trusted_for_the_length_of_a_lease_and_then_is() -> None:
    ours = Clock()
    watched = DatabaseClock(LEASE, ours)
    watched.saw(NOON, ours(), ours())
    assert watched.trusted
    watched.saw(NOON + timedelta(hours=1), ours(), ours())
    assert not watched.trusted
    ours.now += 29.9
    assert watched.saw(NOON + timedelta(hours=1, seconds=29.9), ours(), ours()) is None
    assert not watched.trusted
    ours.now += 0.2
    assert watched.trusted
