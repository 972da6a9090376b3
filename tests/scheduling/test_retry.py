"""How long a failed attempt waits: growth, jitter, then the clamp."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durablestack.scheduling.retry import RetryBehavior, RetryPolicy

FIXED, BACKOFF = RetryBehavior.FIXED_DELAY, RetryBehavior.BACKOFF


def seconds(policy: RetryPolicy, attempt: int) -> float:
    return policy.delay_after(attempt).total_seconds()


def at(edge: float) -> Callable[[float, float], float]:
    """A draw that always falls at one place: 0 for the lower edge, 1 for the upper one."""
    return lambda low, high: low + (high - low) * edge


def test_the_delay_doubles_from_five_seconds_as_the_documents_have_it() -> None:
    policy = RetryPolicy(behavior=BACKOFF)
    assert [seconds(policy, attempt) for attempt in (1, 2, 3, 4)] == [5, 10, 20, 40]


def test_a_fixed_delay_stays_as_it_is() -> None:
    assert [seconds(RetryPolicy(), attempt) for attempt in (1, 2, 3, 1_000)] == [5, 5, 5, 5]


def test_no_delay_grows_beyond_the_clamp() -> None:
    policy = RetryPolicy(behavior=BACKOFF, max_delay=timedelta(seconds=12))
    assert [seconds(policy, attempt) for attempt in (1, 2, 3, 4)] == [5, 10, 12, 12]
    assert seconds(RetryPolicy(base_delay=timedelta(hours=2)), 1) == 3_600


@pytest.mark.parametrize("attempt", [64, 65, 1_024, 1_025, 10**6, 10**12])
def test_no_attempt_is_so_late_that_the_delay_overflows(attempt: int) -> None:
    assert seconds(RetryPolicy(behavior=BACKOFF), attempt) == 3_600
    tiny = RetryPolicy(behavior=BACKOFF, base_delay=timedelta.resolution, max_delay=timedelta.max)
    assert seconds(tiny, attempt) > 0


def test_milliseconds_are_honoured() -> None:
    policy = RetryPolicy(behavior=BACKOFF, base_delay=timedelta(milliseconds=1.5))
    assert [seconds(policy, attempt) for attempt in (1, 2, 3)] == [0.0015, 0.003, 0.006]


@pytest.mark.parametrize("behavior", RetryBehavior)
def test_no_delay_stays_no_delay(behavior: RetryBehavior) -> None:
    policy = RetryPolicy(behavior=behavior, base_delay=timedelta(0), jitter_ratio=0.5)
    assert [seconds(policy, attempt) for attempt in (1, 2, 10**6)] == [0, 0, 0]


def test_an_attempt_before_the_first_waits_as_after_the_first() -> None:
    policy = RetryPolicy(behavior=BACKOFF)
    assert seconds(policy, 0) == seconds(policy, -5) == 5


def test_jitter_spreads_the_grown_delay_evenly_to_both_sides() -> None:
    policy = RetryPolicy(behavior=BACKOFF, jitter_ratio=0.2)
    assert [policy.delay_after(2, at(edge)).total_seconds() for edge in (0, 0.5, 1)] == [8, 10, 12]


def test_jitter_comes_before_the_clamp() -> None:
    policy = RetryPolicy(base_delay=timedelta(seconds=10), max_delay=timedelta(seconds=10), jitter_ratio=0.2)
    assert [policy.delay_after(1, at(edge)).total_seconds() for edge in (0, 1)] == [8, 10]


def test_full_jitter_reaches_from_nothing_to_twice_the_delay() -> None:
    policy = RetryPolicy(jitter_ratio=1.0)
    assert [policy.delay_after(1, at(edge)).total_seconds() for edge in (0, 1)] == [0, 10]


def test_jitter_is_drawn_anew_for_each_delay() -> None:
    policy = RetryPolicy(jitter_ratio=0.2)
    delays = {seconds(policy, 1) for _ in range(200)}
    assert len(delays) > 100
    assert all(4 <= delay <= 6 for delay in delays)


@given(
    behavior=st.sampled_from(RetryBehavior),
    base_delay=st.timedeltas(timedelta(0), timedelta(days=3_660)),
    max_delay=st.timedeltas(timedelta(0), timedelta(days=3_660)),
    jitter_ratio=st.floats(0, 1),
    attempt=st.integers(0, 10**9),
)
@settings(deadline=None)
def test_a_delay_is_never_negative_and_never_beyond_the_clamp(
    behavior: RetryBehavior, base_delay: timedelta, max_delay: timedelta, jitter_ratio: float, attempt: int
) -> None:
    policy = RetryPolicy(behavior=behavior, base_delay=base_delay, max_delay=max_delay, jitter_ratio=jitter_ratio)
    assert timedelta(0) <= policy.delay_after(attempt) <= max_delay


@given(base_delay=st.timedeltas(timedelta(0), timedelta(days=3_660)), attempt=st.integers(1, 10**6))
@settings(deadline=None)
def test_without_jitter_a_later_attempt_never_waits_less(base_delay: timedelta, attempt: int) -> None:
    policy = RetryPolicy(behavior=BACKOFF, base_delay=base_delay)
    assert policy.delay_after(attempt) <= policy.delay_after(attempt + 1)
