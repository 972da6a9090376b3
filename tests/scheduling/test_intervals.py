"""Interval schedules: what they take, and what comes next."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from durablestack.errors import ScheduleError
from durablestack.scheduling.intervals import IntervalSchedule

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "every",
    [
        timedelta(seconds=1),
        timedelta(seconds=1, milliseconds=1),
        timedelta(seconds=90),
        timedelta(hours=36),
        timedelta(days=3_660),
    ],
)
def test_the_next_one_is_that_much_later(every: timedelta) -> None:
    assert IntervalSchedule(every).next_after(NOON) == NOON + every


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (timedelta(0), "interval 0:00:00 is out of range: from 1 second to 10 years is allowed"),
        (timedelta(seconds=-5), "out of range"),
        (timedelta(milliseconds=999), "0:00:00.999000 is out of range"),
        (timedelta(days=3_660, milliseconds=1), "out of range"),
        (timedelta.max, "out of range"),
        (timedelta.min, "out of range"),
        (timedelta(seconds=1, microseconds=1), "0:00:01.000001 is too fine: whole milliseconds are allowed"),
        (90, "an interval is a timedelta, not a int"),
        (None, "an interval is a timedelta, not a NoneType"),
    ],
)
def test_anything_else_is_refused(every: timedelta, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        IntervalSchedule(every)
    assert message in str(refused.value)


def test_it_counts_time_and_not_the_hands_of_a_clock() -> None:
    before_the_change = datetime(2025, 3, 8, 12, tzinfo=ZoneInfo("America/New_York"))
    found = IntervalSchedule(timedelta(days=1)).next_after(before_the_change)
    assert found == datetime(2025, 3, 9, 17, tzinfo=UTC)
    assert found.tzinfo is UTC


def test_it_keeps_the_fraction_of_a_second_that_it_starts_from() -> None:
    start = NOON + timedelta(microseconds=123_456)
    assert IntervalSchedule(timedelta(seconds=1)).next_after(start) == start + timedelta(seconds=1)


def test_past_the_end_of_the_calendar_there_is_none() -> None:
    with pytest.raises(ScheduleError, match="outside the calendar"):
        IntervalSchedule(timedelta(days=1)).next_after(datetime.max.replace(tzinfo=UTC))


def test_a_start_without_a_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="time zone"):
        IntervalSchedule(timedelta(days=1)).next_after(datetime(2026, 1, 1))


def test_an_interval_is_a_value() -> None:
    assert IntervalSchedule(timedelta(seconds=90)) == IntervalSchedule(timedelta(minutes=1.5))
    assert IntervalSchedule(timedelta(seconds=90)) != IntervalSchedule(timedelta(seconds=91))
    assert repr(IntervalSchedule(timedelta(hours=1))) == "IntervalSchedule(every=datetime.timedelta(seconds=3600))"
    assert len({IntervalSchedule(timedelta(hours=1)), IntervalSchedule(timedelta(minutes=60))}) == 1
