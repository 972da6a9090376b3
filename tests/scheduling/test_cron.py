"""Cron schedules as values: what they take, what they give, what they cost."""

import subprocess
import sys
from calendar import isleap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from durablestack.errors import ScheduleError
from durablestack.scheduling.cron import CronSchedule

NEW_YEAR_2026 = datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday


def fired(expression: str, count: int = 3, start: datetime = NEW_YEAR_2026) -> list[str]:
    schedule, instants = CronSchedule(expression), [start]
    for _ in range(count):
        instants.append(schedule.next_after(instants[-1]))
    return [f"{instant:%Y-%m-%d %H:%M:%S}" for instant in instants[1:]]


def days(expression: str, count: int = 3) -> list[str]:
    """The days at whose midnight an expression of day fields fires."""
    return [text.removesuffix(" 00:00:00") for text in fired(f"0 0 {expression}", count)]


# --- what they give


def test_the_result_is_a_later_instant_in_utc_on_a_whole_second() -> None:
    start = datetime(2026, 1, 1, 11, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=1)))
    found = CronSchedule("*/5 * * * *").next_after(start)
    assert found == datetime(2026, 1, 1, 11, 0, tzinfo=UTC)
    assert found.tzinfo is UTC


def test_a_slot_is_strictly_later_than_the_slot_it_is_asked_from() -> None:
    assert fired("0 0 * * *", 1) == ["2026-01-02 00:00:00"]
    assert fired("* * * * * *", 1) == ["2026-01-01 00:00:01"]


def test_five_fields_begin_with_minutes_and_six_with_seconds() -> None:
    assert fired("10 2 * * *", 1) == ["2026-01-01 02:10:00"]
    assert fired("30 10 2 * * *", 1) == ["2026-01-01 02:10:30"]
    assert fired("*/20 * * * * *") == ["2026-01-01 00:00:20", "2026-01-01 00:00:40", "2026-01-01 00:01:00"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("5-5 * * * *", ["00:05", "01:05", "02:05"]),  # croniter alone: every minute
        ("5-5/3 * * * *", ["00:05", "01:05", "02:05"]),
        ("59/15 * * * *", ["00:59", "01:59", "02:59"]),
        ("5/15 3 * * *", ["03:05", "03:20", "03:35"]),
        ("58-2/2 * * * *", ["00:02", "00:58", "01:00"]),
        ("0 22-4/5 * * *", ["03:00", "22:00", "03:00"]),
        ("0 7-7 * * *", ["07:00", "07:00", "07:00"]),
        ("*/60 * * * *", ["01:00", "02:00", "03:00"]),
        ("007 1 * * *", ["01:07", "01:07", "01:07"]),
        ("1,1,01 1 * * *", ["01:01", "01:01", "01:01"]),
    ],
)
def test_ranges_and_steps_of_the_clock(expression: str, expected: list[str]) -> None:
    assert [text[11:16] for text in fired(expression)] == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * 7", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("* * 0", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("* * SUN", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("* * mon-mon", ["2026-01-05", "2026-01-12", "2026-01-19"]),
        ("* * 7-0", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("* * fri-mon", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("* * 5-7", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("* * 6-2/2", ["2026-01-03", "2026-01-05", "2026-01-10"]),
        ("* * 0-7/2", ["2026-01-03", "2026-01-04", "2026-01-06"]),
        ("* apr-apr 1", ["2026-04-06", "2026-04-13", "2026-04-20"]),
        ("1 nov-feb/2 *", ["2026-11-01", "2027-01-01", "2027-11-01"]),
        ("1 MAR,Jun *", ["2026-03-01", "2026-06-01", "2027-03-01"]),
        ("L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("1,L * *", ["2026-01-31", "2026-02-01", "2026-02-28"]),
        ("15W * *", ["2026-01-15", "2026-02-16", "2026-03-16"]),
        ("31w * *", ["2026-01-30", "2026-02-27", "2026-03-31"]),
        ("* * 5#3", ["2026-01-16", "2026-02-20", "2026-03-20"]),
        ("* * Fri#3,mon#1", ["2026-01-05", "2026-01-16", "2026-02-02"]),
        ("* * L5", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("* * 7#1", ["2026-01-04", "2026-02-01", "2026-03-01"]),
        ("? * ?", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("28-3 * *", ["2026-01-02", "2026-01-03", "2026-01-28"]),
    ],
)
def test_days(expression: str, expected: list[str]) -> None:
    assert days(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("13 * fri", ["2026-01-02", "2026-01-09", "2026-01-13", "2026-01-16"]),
        ("13 * 0-6", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05"]),
        ("30 2 mon", ["2026-02-02", "2026-02-09", "2026-02-16", "2026-02-23"]),  # a 30 February adds nothing
        ("15 * 5#3", ["2026-01-15", "2026-01-16", "2026-02-15", "2026-02-20"]),  # croniter alone: no 15th
        ("15W * mon", ["2026-01-05", "2026-01-12", "2026-01-15", "2026-01-19"]),  # croniter alone: no Mondays
        ("1 * L5", ["2026-01-30", "2026-02-01", "2026-02-27", "2026-03-01"]),  # croniter alone: never
        ("L * sun#1", ["2026-01-04", "2026-01-31", "2026-02-01", "2026-02-28"]),
    ],
)
def test_if_both_day_fields_are_set_either_matches(expression: str, expected: list[str]) -> None:
    assert days(expression, 4) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/2 * mon", ["2026-01-05", "2026-01-19", "2026-02-09"]),
        ("13 * */5", ["2026-02-13", "2026-03-13", "2026-09-13"]),  # Sundays and Fridays
        ("2 * */1", ["2026-01-02", "2026-02-02", "2026-03-02"]),  # croniter alone: daily
        ("*/1 * mon", ["2026-01-05", "2026-01-12", "2026-01-19"]),
        ("? * mon", ["2026-01-05", "2026-01-12", "2026-01-19"]),
        ("13 * ?", ["2026-01-13", "2026-02-13", "2026-03-13"]),
    ],
)
def test_if_a_day_field_begins_with_a_star_both_have_to_match(expression: str, expected: list[str]) -> None:
    assert days(expression) == expected


@pytest.mark.parametrize("weekday", range(7))
def test_a_date_that_comes_once_in_forty_years_is_found(weekday: int) -> None:
    """The weekday's fifth in a February, over the year 2100, which is no leap year."""
    start = datetime(2089, 1, 1, tzinfo=UTC)
    leap_days = (date(year, 2, 29) for year in range(2089, 2140) if isleap(year))
    expected = next(day for day in leap_days if day.isoweekday() % 7 == weekday)
    assert CronSchedule(f"0 0 * 2 {weekday}#5").next_after(start).date() == expected


# --- what they are


def test_a_schedule_is_a_value() -> None:
    schedule = CronSchedule("0 2 * * *", "Europe/Berlin")
    assert schedule == CronSchedule("0 2 * * *", time_zone="Europe/Berlin")
    assert schedule not in (CronSchedule("0 2 * * *"), CronSchedule("0 3 * * *", "Europe/Berlin"))
    assert len({schedule, CronSchedule("0 2 * * *", "Europe/Berlin")}) == 1
    assert repr(schedule) == "CronSchedule(expression='0 2 * * *', time_zone='Europe/Berlin')"
    with pytest.raises(AttributeError):
        schedule.expression = "* * * * *"  # type: ignore[misc]


def test_the_zone_is_utc_unless_another_is_given() -> None:
    assert CronSchedule("0 2 * * *").time_zone == "UTC"


def test_a_start_without_a_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="time zone"):
        CronSchedule("0 2 * * *").next_after(datetime(2026, 1, 1))


@pytest.mark.parametrize("start", [datetime.max, datetime(9999, 12, 31, 23), datetime(9990, 1, 1)])
def test_after_the_last_slot_of_the_calendar_there_is_none(start: datetime) -> None:
    with pytest.raises(ScheduleError, match="does not fire after"):
        CronSchedule("0 0 29 2 1#5", "Pacific/Apia").next_after(start.replace(tzinfo=UTC))


def test_the_first_instant_of_the_calendar_can_be_asked() -> None:
    assert CronSchedule("0 0 * * *").next_after(datetime.min.replace(tzinfo=UTC)) == datetime(1, 1, 2, tzinfo=UTC)


def test_threads_share_a_schedule() -> None:
    schedule = CronSchedule("*/7 3 1,15 * mon", "Europe/Berlin")
    starts = [NEW_YEAR_2026 + timedelta(hours=37 * number) for number in range(200)]
    expected = [schedule.next_after(start) for start in starts]
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(schedule.next_after, starts * 5)) == expected * 5
    finally:
        sys.setswitchinterval(switch_interval)


def test_without_a_cron_expression_croniter_is_not_imported() -> None:
    program = (
        "import sys, durablestack, durablestack.scheduling.cron as cron\n"
        "assert not {'croniter', 'dateutil'} & set(sys.modules)\n"
        "cron.CronSchedule('* * * * *')\n"
        "assert 'croniter' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
