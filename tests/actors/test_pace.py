"""The pace of the claimer: soon again after work, seldom while it is quiet."""

from __future__ import annotations

import pytest
from parts import Clock

from durablestack.supervisor.pace import REST_SECONDS_MIN, Pace

INTERVAL_SECONDS = 5.0


def rests_while_quiet(pace: Pace, clock: Clock, for_seconds: float) -> list[float]:
    """How long the rests are, one after the other, until so long a time has gone by."""
    rests: list[float] = []
    while sum(rests) < for_seconds:
        rests.append(pace.rest_seconds())
        clock.now += rests[-1]
    return rests


def test_who_has_never_found_work_looks_once_per_interval() -> None:
    clock = Clock()
    assert set(rests_while_quiet(Pace(INTERVAL_SECONDS, 0.0, clock), clock, 60)) == {INTERVAL_SECONDS}


def test_after_work_the_rests_grow_to_the_interval_within_a_few_looks() -> None:
    clock = Clock()
    pace = Pace(INTERVAL_SECONDS, 0.0, clock)
    pace.found_work()
    rests = rests_while_quiet(pace, clock, 60)
    short = [rest for rest in rests if rest < INTERVAL_SECONDS]
    assert rests[0] == REST_SECONDS_MIN
    assert rests == sorted(rests)
    assert len(short) <= 11  # log2(5 / 0.01) and two
    assert set(rests[len(short) :]) == {INTERVAL_SECONDS}


@pytest.mark.parametrize("late_seconds", [0.003, 0.08, 0.7, 3.0])
def test_what_follows_on_work_is_found_after_no_more_than_twice_the_time(late_seconds: float) -> None:
    clock = Clock()
    pace = Pace(INTERVAL_SECONDS, 0.0, clock)
    pace.found_work()
    assert sum(rests_while_quiet(pace, clock, late_seconds)) <= 2 * late_seconds + REST_SECONDS_MIN


def test_a_look_that_was_called_for_in_between_does_not_make_the_next_one_later() -> None:
    clock = Clock()
    pace = Pace(INTERVAL_SECONDS, 0.0, clock)
    pace.found_work()
    clock.now += 0.1
    for _ in range(100):
        assert pace.rest_seconds() == pytest.approx(0.1)


def test_work_is_no_reason_to_look_again_for_who_is_told_but_word_that_not_all_is_told_is() -> None:
    clock = Clock()
    pace = Pace(INTERVAL_SECONDS, 0.0, clock)
    pace.told = True
    pace.found_work()
    assert pace.rest_seconds() == INTERVAL_SECONDS
    pace.stir()
    assert pace.rest_seconds() == REST_SECONDS_MIN


def test_no_rest_is_longer_than_the_interval_and_its_jitter() -> None:
    clock = Clock()
    pace = Pace(0.002, 0.5, clock)
    pace.found_work()
    rests = [pace.rest_seconds() for _ in range(500)]
    assert 0.001 <= min(rests) < 0.0012
    assert 0.0028 < max(rests) <= 0.003
