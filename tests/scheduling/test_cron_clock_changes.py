"""What an expression does where the clocks of a zone change: by a table, and by what holds at every change."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from durablestack.scheduling.cron import CronSchedule
from durablestack.scheduling.time_zones import check_time_zone

# (zone, expression, local start, expected local times; "+" marks those of the second pass)
TABLE = [
    # New York, 2025-03-09: from 02:00 on to 03:00
    ("America/New_York", "30 2 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-10 02:30"]),
    ("America/New_York", "0 3 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-10 03:00"]),
    ("America/New_York", "0,30 2 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-10 02:00"]),
    ("America/New_York", "*/30 2 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-10 02:00", "03-10 02:30"]),
    ("America/New_York", "30 2,3 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-09 03:30", "03-10 02:30"]),
    ("America/New_York", "0 */2 * * *", "2025-03-08 23:00", ["03-09 00:00", "03-09 03:00", "03-09 04:00"]),
    ("America/New_York", "15 1-3 * * *", "2025-03-09 00:00", ["03-09 01:15", "03-09 03:00", "03-09 03:15"]),
    ("America/New_York", "*/30 * * * *", "2025-03-09 01:00", ["03-09 01:30", "03-09 03:00", "03-09 03:30"]),
    ("America/New_York", "15 * * * *", "2025-03-09 00:30", ["03-09 01:15", "03-09 03:15", "03-09 04:15"]),
    ("America/New_York", "15 0-23 * * *", "2025-03-09 00:30", ["03-09 01:15", "03-09 03:15", "03-09 04:15"]),
    ("America/New_York", "30 30 2 * * *", "2025-03-08 12:00", ["03-09 03:00", "03-10 02:30:30"]),
    ("America/New_York", "*/20 59 1 * * *", "2025-03-09 01:59:30", ["03-09 01:59:40", "03-10 01:59"]),
    ("America/New_York", "30 2 9 3 *", "2025-01-01 00:00", ["03-09 03:00", "2026-03-09 02:30"]),
    ("America/New_York", "30 2 * * sun", "2025-03-05 00:00", ["03-09 03:00", "03-16 02:30"]),
    # New York, 2025-11-02: at 02:00 back to 01:00
    ("America/New_York", "30 1 * * *", "2025-11-01 12:00", ["11-02 01:30", "11-03 01:30"]),
    ("America/New_York", "0 1 * * *", "2025-11-01 12:00", ["11-02 01:00", "11-03 01:00"]),
    ("America/New_York", "0 2 * * *", "2025-11-01 12:00", ["11-02 02:00", "11-03 02:00"]),
    ("America/New_York", "0,30 1 * * *", "2025-11-01 12:00", ["11-02 01:00", "11-02 01:30", "11-03 01:00"]),
    ("America/New_York", "30-30 1 * * *", "2025-11-01 12:00", ["11-02 01:30", "11-03 01:30"]),
    ("America/New_York", "30 1,2 * * *", "2025-11-02 01:30", ["11-02 02:30", "11-03 01:30"]),
    ("America/New_York", "15 30 1 * * *", "2025-11-01 12:00", ["11-02 01:30:15", "11-03 01:30:15"]),
    ("America/New_York", "30 * * * *", "2025-11-02 00:00", ["00:30", "01:30", "+01:30", "02:30"]),
    ("America/New_York", "30 0-1 * * *", "2025-11-02 00:00", ["00:30", "01:30", "+01:30", "11-03 00:30"]),
    ("America/New_York", "*/30 * * * *", "2025-11-02 01:00", ["01:30", "+01:00", "+01:30", "02:00"]),
    ("America/New_York", "*/30 1 * * *", "2025-11-02 00:00", ["01:00", "01:30", "+01:00", "+01:30", "11-03 01:00"]),
    ("America/New_York", "0 */2 * * *", "2025-11-02 00:00", ["02:00", "04:00"]),
    ("America/New_York", "*/30 59 1 * * *", "2025-11-02 01:59", ["01:59:30", "+01:59", "+01:59:30", "11-03 01:59"]),
    # starts in the second pass
    ("America/New_York", "30 1 * * *", "+2025-11-02 01:10", ["11-03 01:30"]),
    ("America/New_York", "0 2 * * *", "+2025-11-02 01:10", ["02:00"]),
    ("America/New_York", "*/30 * * * *", "+2025-11-02 01:10", ["+01:30", "02:00"]),
    ("America/New_York", "*/30 1 * * *", "+2025-11-02 01:40", ["11-03 01:00"]),
    # London, 2025-03-30 and 2025-10-26
    ("Europe/London", "30 1 * * *", "2025-03-29 12:00", ["03-30 02:00", "03-31 01:30"]),
    ("Europe/London", "30 1 * * *", "2025-10-25 12:00", ["10-26 01:30", "10-27 01:30"]),
    ("Europe/London", "*/20 * * * *", "2025-10-26 01:20", ["01:40", "+01:00", "+01:20", "+01:40", "02:00"]),
    # Dublin: the same clocks, but there winter is the exception, and the offset of "DST" is negative
    ("Europe/Dublin", "30 1 * * *", "2025-03-29 12:00", ["03-30 02:00", "03-31 01:30"]),
    ("Europe/Dublin", "30 1 * * *", "2025-10-25 12:00", ["10-26 01:30", "10-27 01:30"]),
    ("Europe/Dublin", "*/30 * * * *", "2025-10-26 01:00", ["01:30", "+01:00", "+01:30", "02:00"]),
    # Casablanca: back at the begin of Ramadan (2025-02-23, 03:00 to 02:00), forward after it (2025-04-06)
    ("Africa/Casablanca", "30 2 * * *", "2025-02-22 12:00", ["02-23 02:30", "02-24 02:30"]),
    ("Africa/Casablanca", "*/30 * * * *", "2025-02-23 02:00", ["02:30", "+02:00", "+02:30", "03:00"]),
    ("Africa/Casablanca", "30 2 * * *", "2025-04-05 12:00", ["04-06 03:00", "04-07 02:30"]),
    # Lord Howe: half an hour, forward on 2025-10-05 (02:00 to 02:30), back on 2025-04-06 (02:00 to 01:30)
    ("Australia/Lord_Howe", "15 2 * * *", "2025-10-04 12:00", ["10-05 02:30", "10-06 02:15"]),
    ("Australia/Lord_Howe", "30 2 * * *", "2025-10-04 12:00", ["10-05 02:30", "10-06 02:30"]),
    ("Australia/Lord_Howe", "*/10 * * * *", "2025-10-05 01:40", ["01:50", "02:30", "02:40"]),
    ("Australia/Lord_Howe", "15 * * * *", "2025-10-05 01:00", ["01:15", "03:15"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2025-04-05 12:00", ["04-06 01:45", "04-07 01:45"]),
    ("Australia/Lord_Howe", "15 1 * * *", "2025-04-05 12:00", ["04-06 01:15", "04-07 01:15"]),
    ("Australia/Lord_Howe", "*/15 * * * *", "2025-04-06 01:30", ["01:45", "+01:30", "+01:45", "02:00"]),
    # Sao Paulo, 2018-11-04: from midnight on to 01:00; 2018-02-18: at midnight back to 23:00 of the 17th
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-03 12:00", ["11-04 01:00", "11-05 00:00"]),
    ("America/Sao_Paulo", "30 0 * * sun", "2018-11-03 12:00", ["11-04 01:00", "11-11 00:30"]),
    ("America/Sao_Paulo", "0 0 4 11 *", "2018-11-03 12:00", ["11-04 01:00", "2019-11-04 00:00"]),
    ("America/Sao_Paulo", "*/30 * * * *", "2018-11-03 23:00", ["11-03 23:30", "11-04 01:00", "11-04 01:30"]),
    ("America/Sao_Paulo", "30 23 * * *", "2018-02-17 12:00", ["02-17 23:30", "02-18 23:30"]),
    ("America/Sao_Paulo", "0 0 * * *", "2018-02-17 12:00", ["02-18 00:00", "02-19 00:00"]),
    ("America/Sao_Paulo", "30 * * * *", "2018-02-17 23:00", ["02-17 23:30", "+02-17 23:30", "02-18 00:30"]),
    # Havana, 2025-11-02: at 01:00 back to midnight
    ("America/Havana", "0 0 * * *", "2025-11-01 12:00", ["11-02 00:00", "11-03 00:00"]),
    ("America/Havana", "0 0 2 * *", "2025-11-01 12:00", ["11-02 00:00", "12-02 00:00"]),
    ("America/Havana", "*/30 * * * *", "2025-11-02 00:00", ["00:30", "+00:00", "+00:30", "01:00"]),
    ("America/Havana", "30 0 * * *", "2025-03-08 12:00", ["03-09 01:00", "03-10 00:30"]),
    # Apia had no 2011-12-30
    ("Pacific/Apia", "0 12 * * *", "2011-12-29 00:00", ["12-29 12:00", "12-31 00:00", "12-31 12:00"]),
    ("Pacific/Apia", "0 0 * * *", "2011-12-29 00:00", ["12-31 00:00", "2012-01-01 00:00"]),
    ("Pacific/Apia", "0 12 30 12 *", "2011-12-01 00:00", ["12-31 00:00", "2012-12-30 12:00"]),
    ("Pacific/Apia", "0 12 * * fri", "2011-12-25 00:00", ["12-31 00:00", "2012-01-06 12:00"]),
    ("Pacific/Apia", "0 */8 * * *", "2011-12-29 12:00", ["12-29 16:00", "12-31 00:00", "12-31 08:00"]),
    ("Pacific/Apia", "30 * * * *", "2011-12-29 23:00", ["12-29 23:30", "12-31 00:30"]),
    # no changes at all
    ("UTC", "30 2 * * *", "2025-03-08 12:00", ["03-09 02:30", "03-10 02:30"]),
    ("Asia/Kolkata", "0 0 * * *", "2025-03-08 12:00", ["03-09 00:00", "03-10 00:00"]),
]


def local_time(text: str, zone: str) -> datetime:
    wall = datetime.fromisoformat(text.removeprefix("+"))
    return wall.replace(tzinfo=ZoneInfo(zone), fold=int(text.startswith("+")))


def written_out(expected: str, start: str) -> str:
    """`+01:30` with the date of the start, `03-09 03:00` with its year."""
    date = start.removeprefix("+")[:10]
    text = expected.removeprefix("+")
    day, _, time = text.rpartition(" ")
    return expected[: len(expected) - len(text)] + (date[: 10 - len(day)] + day) + " " + time


def shown(local: datetime) -> str:
    return "+" * local.fold + (f"{local:%Y-%m-%d %H:%M:%S}" if local.second else f"{local:%Y-%m-%d %H:%M}")


@pytest.mark.parametrize(("zone", "expression", "start", "expected"), TABLE)
def test_the_clock_changes(zone: str, expression: str, start: str, expected: list[str]) -> None:
    schedule, instant, fired = CronSchedule(expression, zone), local_time(start, zone), []
    for _ in expected:
        instant = schedule.next_after(instant)
        fired.append(shown(instant.astimezone(ZoneInfo(zone))))
    assert fired == [written_out(text, start) for text in expected]


CHANGES = [
    ("America/New_York", "2025-03-09"),
    ("America/New_York", "2025-11-02"),
    ("Europe/London", "2025-10-26"),
    ("Europe/Dublin", "2025-10-26"),
    ("Africa/Casablanca", "2025-02-23"),
    ("Africa/Casablanca", "2025-04-06"),
    ("Australia/Lord_Howe", "2025-04-06"),
    ("Australia/Lord_Howe", "2025-10-05"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/Havana", "2025-11-02"),
    ("Pacific/Apia", "2011-12-30"),
    ("Asia/Pyongyang", "2018-05-05"),  # half an hour, for good
    ("Asia/Kathmandu", "1986-01-01"),  # a quarter of an hour
    ("Africa/Monrovia", "1972-01-07"),  # 44 minutes and 30 seconds
]


@pytest.mark.parametrize(("zone", "date"), CHANGES)
@pytest.mark.parametrize("expression", ["*/7 * * * *", "*/45 0-3 * * *", "17 0,1,2,3,23 * * *", "50 */10 1-2 * * *"])
def test_a_sequence_that_is_fed_its_own_output_is_what_any_start_gives(zone: str, date: str, expression: str) -> None:
    """No slot is repeated, and none is missed, wherever the caller comes in."""
    schedule = CronSchedule(expression, zone)
    middle = datetime.fromisoformat(date).replace(hour=1, tzinfo=UTC)
    instant, end = middle - timedelta(hours=30), middle + timedelta(hours=30)
    sequence = [schedule.next_after(instant)]
    while sequence[-1] < end:
        sequence.append(schedule.next_after(sequence[-1]))
    assert all(earlier < later for earlier, later in pairwise(sequence))
    for minutes in range(0, 60 * 60, 11):
        start = instant + timedelta(minutes=minutes, seconds=minutes % 60, microseconds=minutes)
        assert schedule.next_after(start) == next(fired for fired in sequence if fired > start)


@pytest.mark.parametrize("microsecond", [1, 499_999, 500_000, 999_999])
@pytest.mark.parametrize("expression", ["30 1 * * *", "*/30 * * * *", "*/20 30 * * * *"])
def test_a_fraction_of_a_second_changes_nothing_but_the_second_that_it_is_past(
    expression: str, microsecond: int
) -> None:
    schedule = CronSchedule(expression, "America/New_York")
    slot = datetime(2025, 11, 2, 5, 30, tzinfo=UTC)  # 01:30, in the first pass
    just_before = slot - timedelta(seconds=1) + timedelta(microseconds=microsecond)
    assert schedule.next_after(just_before) == slot
    assert schedule.next_after(slot + timedelta(microseconds=microsecond)) == schedule.next_after(slot)


def test_the_zone_of_the_start_does_not_matter() -> None:
    schedule = CronSchedule("*/30 * * * *", "America/New_York")
    start = datetime(2025, 11, 2, 5, 40, tzinfo=UTC)
    found = {
        schedule.next_after(start.astimezone(check_time_zone(name)))
        for name in ("UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Apia")
    }
    assert found == {datetime(2025, 11, 2, 6, 0, tzinfo=UTC)}
