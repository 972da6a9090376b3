"""Which names are time zones, and what the clocks of a zone do."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest

from durablestack.errors import ScheduleError
from durablestack.scheduling import time_zones
from durablestack.scheduling.cron import CronSchedule
from durablestack.scheduling.time_zones import check_time_zone, clock_change


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "GMT"])
def test_iana_ids_are_time_zones(name: str) -> None:
    assert check_time_zone(name) == ZoneInfo(name)


def test_every_id_of_the_time_zone_database_fits() -> None:
    assert {check_time_zone(name).key for name in available_timezones() - {"localtime", "Factory"}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "time zone '' is not known; it takes an IANA id such as 'UTC' or 'Europe/Berlin'"),
        ("America", "time zone 'America' is not known"),
        ("America/", "'America/' is not known"),
        ("Mars/Olympus", "'Mars/Olympus' is not known"),
        ("localtime", "'localtime' is not known"),
        ("Factory", "'Factory' is not known"),
        ("posixrules", "'posixrules' is not known"),
        ("posix/UTC", "'posix/UTC' is not known"),
        ("right/UTC", "'right/UTC' is not known"),
        ("zone.tab", "'zone.tab' is not known"),
        ("tzdata.zi", "'tzdata.zi' is not known"),
        ("../zoneinfo/UTC", "is not known"),
        ("/usr/share/zoneinfo/UTC", "is not known"),
        (" UTC", "' UTC' is not known"),
        ("+01:00", "'+01:00' is not known"),
        ("UTC\0", r"'UTC\x00' is not known"),
        ("Europe/Z\u00fcrich", r"'Europe/Z\xfcrich' is not known"),
        ("utc", "time zone 'utc' is written 'UTC'"),
        ("europe/berlin", "'europe/berlin' is written 'Europe/Berlin'"),
        ("E" * 65, "is 65 characters long; an IANA id such as 'Europe/Berlin' has at most 64"),
        ("A/" * 500_000, "is 1000000 characters long"),
        ("Central Standard Time", "is a Windows id; use the IANA id 'America/Chicago'"),
        ("Pacific Standard Time", "is a Windows id; use the IANA id 'America/Los_Angeles'"),
        ("W. Europe Standard Time", "is a Windows id; use the IANA id 'Europe/Berlin'"),
        ("GMT Standard Time", "is a Windows id; use the IANA id 'Europe/London'"),
        ("Fiji Standard Time", "is a Windows id; use an IANA id such as 'America/Chicago'"),
        (None, "a time zone is an IANA id such as 'Europe/Berlin', not a NoneType"),
        (ZoneInfo("UTC"), "not a ZoneInfo"),
    ],
)
def test_anything_else_is_refused_with_a_sentence_that_helps(name: str, message: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        check_time_zone(name)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300
    with pytest.raises(ScheduleError):
        CronSchedule("0 2 * * *", name)


def test_the_zones_that_are_recommended_exist() -> None:
    assert [name for name in time_zones._IANA_OF_WINDOWS.values() if name not in available_timezones()] == []


@pytest.mark.parametrize(
    ("zone", "wall", "expected"),
    [
        ("America/New_York", "2025-03-09 01:59:59", None),
        ("America/New_York", "2025-03-09 02:00:00", "07:00:00Z 02:00 -> 03:00"),
        ("America/New_York", "2025-03-09 02:59:59", "07:00:00Z 02:00 -> 03:00"),
        ("America/New_York", "2025-03-09 03:00:00", None),
        ("America/New_York", "2025-11-02 00:59:59", None),
        ("America/New_York", "2025-11-02 01:00:00", "06:00:00Z 02:00 -> 01:00"),
        ("America/New_York", "2025-11-02 01:59:59", "06:00:00Z 02:00 -> 01:00"),
        ("America/New_York", "2025-11-02 02:00:00", None),
        ("Australia/Lord_Howe", "2025-10-05 02:29:59", "15:30:00Z 02:00 -> 02:30"),
        ("Europe/Dublin", "2025-10-26 01:30:00", "01:00:00Z 02:00 -> 01:00"),
        ("Pacific/Apia", "2011-12-30 00:00:00", "10:00:00Z 00:00 -> 00:00"),
        ("Pacific/Apia", "2011-12-30 23:59:59", "10:00:00Z 00:00 -> 00:00"),
        ("UTC", "2025-03-09 02:00:00", None),
    ],
)
def test_a_clock_change_is_found_from_each_time_that_it_skips_or_repeats(
    zone: str, wall: str, expected: str | None
) -> None:
    change = clock_change(datetime.fromisoformat(wall), ZoneInfo(zone))
    shown = None if change is None else f"{change.at:%H:%M:%SZ} {change.before:%H:%M} -> {change.after:%H:%M}"
    assert shown == expected


def test_a_change_knows_whether_it_skips_or_repeats() -> None:
    zone = ZoneInfo("Pacific/Apia")
    change = clock_change(datetime(2011, 12, 30, 12), zone)
    assert change is not None
    assert change.skips
    assert (change.before, change.after) == (datetime(2011, 12, 30), datetime(2011, 12, 31))
    assert change.at.tzinfo is UTC
    back = clock_change(datetime(2025, 11, 2, 1), ZoneInfo("America/New_York"))
    assert back is not None
    assert not back.skips
