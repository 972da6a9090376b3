"""The cron expressions that the documents give as examples, and when each of them fires."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from durablestack.scheduling.cron import CronSchedule

START = datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)  # a Thursday


def fired(expression: str, count: int) -> list[datetime]:
    instants = [START]
    while len(instants) <= count:
        instants.append(CronSchedule(expression).next_after(instants[-1]))
    return instants[1:]


@pytest.mark.parametrize(
    ("expression", "first", "step"),
    [
        ("* * * * *", "2026-01-01 00:01:00", timedelta(minutes=1)),
        ("*/5 * * * *", "2026-01-01 00:05:00", timedelta(minutes=5)),
        ("*/10 * * * *", "2026-01-01 00:10:00", timedelta(minutes=10)),
        ("0 * * * *", "2026-01-01 01:00:00", timedelta(hours=1)),
        ("0 */1 * * *", "2026-01-01 01:00:00", timedelta(hours=1)),
        ("0 2 * * *", "2026-01-01 02:00:00", timedelta(days=1)),
        ("*/20 * * * * *", "2026-01-01 00:00:40", timedelta(seconds=20)),
    ],
)
def test_what_fires_at_one_step(expression: str, first: str, step: timedelta) -> None:
    instants = fired(expression, 50)
    assert f"{instants[0]:%Y-%m-%d %H:%M:%S}" == first
    assert {later - earlier for earlier, later in pairwise(instants)} == {step}


def test_weekdays_at_half_past_eight() -> None:
    assert [f"{instant:%a %d %H:%M}" for instant in fired("30 8 * * 1-5", 4)] == [
        "Thu 01 08:30",
        "Fri 02 08:30",
        "Mon 05 08:30",
        "Tue 06 08:30",
    ]


def test_the_first_day_of_each_month_at_midnight() -> None:
    assert [f"{instant:%Y-%m-%d %H:%M}" for instant in fired("0 0 1 * *", 3)] == [
        "2026-02-01 00:00",
        "2026-03-01 00:00",
        "2026-04-01 00:00",
    ]
