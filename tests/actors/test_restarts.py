"""How soon a child is started again, and when so many died that somebody should look."""

import pytest
from parts import Clock

from durablestack.supervisor.restarts import Restarts, restart_delay_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("durablestack.supervisor.restarts.anyio.current_time", clock)
    return clock


def test_the_first_death_costs_no_time_and_the_next_ones_ever_more() -> None:
    delays = [restart_delay_seconds(deaths) for deaths in range(6)]
    assert delays == [0, 0, 0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize("deaths", [11, 12, 100, 10**6, 10**12])
def test_no_delay_is_longer_than_half_a_minute(deaths: int) -> None:
    assert restart_delay_seconds(deaths) == 30.0


def test_the_limit_may_be_reached_but_not_exceeded(clock: Clock) -> None:
    restarts = Restarts(3, 60)
    assert [restarts.record() for _ in range(3)] == [False] * 3
    assert not restarts.degraded
    assert restarts.record()
    assert restarts.degraded


def test_only_the_death_that_exceeds_the_limit_says_so(clock: Clock) -> None:
    restarts = Restarts(1, 60)
    assert [restarts.record() for _ in range(5)] == [False, True, False, False, False]


def test_deaths_are_forgotten_after_the_period(clock: Clock) -> None:
    restarts = Restarts(2, 60)
    for _ in range(3):
        restarts.record()
    clock.now += 60
    assert restarts.degraded
    clock.now += 0.001
    assert not restarts.degraded
    assert [restarts.record() for _ in range(3)] == [False, False, True]


def test_deaths_far_apart_never_exceed_the_limit(clock: Clock) -> None:
    restarts = Restarts(2, 60)
    for _ in range(100):
        clock.now += 31
        assert not restarts.record()


def test_a_limit_of_none_is_exceeded_by_the_first_death(clock: Clock) -> None:
    assert Restarts(0, 60).record()


def test_what_is_remembered_is_bounded(clock: Clock) -> None:
    restarts = Restarts(2, 60)
    for _ in range(1_000):
        restarts.record()
    assert len(restarts._recent) == 3
