"""How many short runs a child may be given at once, and how many may be claimed for that."""

import pytest

from durablestack.supervisor.windows import (
    AHEAD_SECONDS,
    SHORT_RUNS_ALONE,
    SHORT_RUNS_FIRST,
    Windows,
    how_many_fit,
    is_short,
)

WINDOW_MAX = 32


@pytest.fixture
def windows() -> Windows:
    return Windows(children=4, runs_max=WINDOW_MAX)


def ended(windows: Windows, seconds: float, count: int = 1, job_name: str = "job") -> None:
    windows.ended([(job_name, seconds)] * count)


def expected_seconds(windows: Windows, job_name: str = "job") -> float:
    return windows.expected_seconds(job_name)


def fits(seconds: float) -> bool:
    return how_many_fit([seconds], beside_seconds=0.0) == 1


def test_nothing_waits_before_anything_is_known(windows: Windows) -> None:
    assert windows.size == 1
    assert not is_short(expected_seconds(windows))


def test_what_is_known_of_one_job_says_nothing_of_another(windows: Windows) -> None:
    ended(windows, 0.001)
    assert is_short(expected_seconds(windows))
    assert not is_short(expected_seconds(windows, "another"))


@pytest.mark.parametrize(
    ("seconds", "size"), [(0.0, 32), (0.0003, 32), (0.0009, 11), (0.003, 3), (0.004, 2), (0.02, 1)]
)
def test_a_child_gets_what_it_does_in_a_moment_and_not_more_than_a_number(
    windows: Windows, seconds: float, size: int
) -> None:
    ended(windows, seconds, SHORT_RUNS_FIRST)
    assert windows.size == size
    assert size == 1 or fits(size * seconds)


@pytest.mark.parametrize("tenths_of_a_millisecond", range(1, 51))
def test_as_many_as_the_window_has_fit_together_however_their_sum_is_rounded(
    windows: Windows, tenths_of_a_millisecond: int
) -> None:
    ended(windows, tenths_of_a_millisecond / 10_000, SHORT_RUNS_FIRST)
    each = expected_seconds(windows)
    assert fits(sum([each] * windows.size))
    assert windows.size == WINDOW_MAX or not fits(sum([each] * (windows.size + 1)))


@pytest.mark.parametrize("seconds", [0.0005, 0.001, 0.002, 0.0025, 0.005])
def test_a_window_is_full_where_runs_fill_it_without_a_rest(seconds: float) -> None:
    windows = Windows(children=4, runs_max=1_000)
    ended(windows, seconds, SHORT_RUNS_FIRST)
    assert windows.size == round(AHEAD_SECONDS / seconds)


def test_a_few_short_runs_are_not_enough_among_others(windows: Windows) -> None:
    ended(windows, AHEAD_SECONDS, 1)
    ended(windows, 0.0001, SHORT_RUNS_FIRST - 1)
    assert windows.size == 1
    ended(windows, 0.0001, 1)
    assert windows.size > 1


def test_where_all_runs_were_short_fewer_are_enough(windows: Windows) -> None:
    ended(windows, 0.0001, SHORT_RUNS_ALONE - 1)
    assert windows.size == 1
    ended(windows, 0.0001, 1)
    assert windows.size > 1


def test_no_more_than_one_at_once_if_that_is_wanted() -> None:
    windows = Windows(children=4, runs_max=1)
    ended(windows, 0.0001, 100)
    assert windows.size == 1
    assert windows.limit == 0


def test_a_run_is_short_if_two_of_them_are_done_in_a_moment() -> None:
    assert is_short(AHEAD_SECONDS / 2)
    assert not is_short(AHEAD_SECONDS / 2 + 0.0001)
    assert fits(AHEAD_SECONDS)
    assert not fits(AHEAD_SECONDS + 0.0001)


def test_one_run_that_takes_its_time_makes_its_job_one_that_takes_its_time(windows: Windows) -> None:
    ended(windows, 0.001, 100)
    ended(windows, 60.0)
    assert not is_short(expected_seconds(windows))
    assert windows.size == 1


def test_a_job_that_is_short_again_is_trusted_again_after_a_while(windows: Windows) -> None:
    ended(windows, 60.0)
    ended(windows, 0.001, 20)
    assert not is_short(expected_seconds(windows)), "not at once"
    ended(windows, 0.001, 100)
    assert is_short(expected_seconds(windows))
    assert windows.size > 1


def test_the_window_goes_by_all_jobs_and_who_may_wait_by_each(windows: Windows) -> None:
    for _ in range(100):
        ended(windows, 0.001, job_name="short")
        ended(windows, 0.1, job_name="long")
    assert windows.size == 1
    assert is_short(expected_seconds(windows, "short"))
    assert not is_short(expected_seconds(windows, "long"))


def test_less_is_claimed_ahead_after_some_had_no_place_and_more_again_when_all_had(windows: Windows) -> None:
    most = windows.limit
    assert most == 4 * (WINDOW_MAX - 1)
    windows.claimed(ahead=100, without_place=60)
    assert windows.limit == 20
    windows.claimed(ahead=20, without_place=0)
    assert windows.limit == 41
    for _ in range(10):
        windows.claimed(ahead=windows.limit, without_place=0)
    assert windows.limit == most


def test_it_does_not_matter_that_nothing_was_claimed_ahead(windows: Windows) -> None:
    windows.claimed(ahead=100, without_place=60)
    windows.claimed(ahead=0, without_place=0)
    assert windows.limit == 20


def test_it_makes_no_difference_whether_runs_are_told_of_one_by_one_or_together(windows: Windows) -> None:
    runs = [("short", 0.001), ("long", 0.3), *[("short", 0.002)] * 70, ("long", 0.2), *[("short", 0.0)] * 70]
    other = Windows(children=4, runs_max=WINDOW_MAX)
    for one in (windows, other):
        one.claimed(ahead=10, without_place=4)
    windows.ended(runs)
    for run in runs:
        other.ended([run])
    assert vars(windows) == vars(other)
    assert windows.limit > 3


@pytest.mark.parametrize(("beside", "times", "count"), [(0.0, 1, 3), (0.003, 1, 2), (AHEAD_SECONDS, 1, 0), (0.0, 2, 6)])
def test_runs_fit_up_to_the_first_that_would_be_too_much(beside: float, times: int, count: int) -> None:
    expected = [AHEAD_SECONDS / 3] * 6 + [float("inf"), 0.0]
    assert how_many_fit(expected, beside_seconds=beside, times=times) == count
