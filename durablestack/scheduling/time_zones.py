"""Time zones by their IANA ids, and the changes of their clocks."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from msgspec import Struct

from durablestack.errors import ScheduleError

TIME_ZONE_LENGTH_MAX = 64

# zoneinfo finds them, but they say something else on each machine, or nothing
_NOT_A_PLACE = {"localtime", "Factory"}
_WINDOWS_SUFFIX = "Standard Time"
_IANA_OF_WINDOWS = {
    "AUS Eastern Standard Time": "Australia/Sydney",
    "Central Europe Standard Time": "Europe/Budapest",
    "Central Standard Time": "America/Chicago",
    "China Standard Time": "Asia/Shanghai",
    "E. South America Standard Time": "America/Sao_Paulo",
    "Eastern Standard Time": "America/New_York",
    "GMT Standard Time": "Europe/London",
    "India Standard Time": "Asia/Kolkata",
    "Mountain Standard Time": "America/Denver",
    "Pacific Standard Time": "America/Los_Angeles",
    "Romance Standard Time": "Europe/Paris",
    "Russian Standard Time": "Europe/Moscow",
    "Tokyo Standard Time": "Asia/Tokyo",
    "W. Europe Standard Time": "Europe/Berlin",
}


def check_time_zone(name: str) -> ZoneInfo:
    """The time zone of an IANA id, such as `UTC` or `Europe/Berlin`.

    Raises:
        ScheduleError: there is no such id. Only listed ids reach `ZoneInfo`, which takes any path that it can open.
    """
    if not isinstance(name, str):
        raise ScheduleError(f"a time zone is an IANA id such as 'Europe/Berlin', not a {type(name).__name__}")
    if len(name) > TIME_ZONE_LENGTH_MAX:
        raise ScheduleError(
            f"time zone {name[:20]!a}… is {len(name)} characters long; an IANA id such as 'Europe/Berlin' has at "
            f"most {TIME_ZONE_LENGTH_MAX}"
        )
    if name != "UTC" and name not in _ids():
        raise ScheduleError(f"time zone {name!a} {_what_is_wrong_with(name)}")
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def _ids() -> frozenset[str]:
    """Read from the disk once: it takes some 25 ms."""
    return frozenset(available_timezones() - _NOT_A_PLACE)


def _what_is_wrong_with(name: str) -> str:
    if name in _IANA_OF_WINDOWS:
        return f"is a Windows id; use the IANA id {_IANA_OF_WINDOWS[name]!r}"
    if name.endswith(_WINDOWS_SUFFIX):
        return "is a Windows id; use an IANA id such as 'America/Chicago'"
    meant = next((known for known in _ids() if known.casefold() == name.casefold()), None)
    if meant is not None:
        return f"is written {meant!r}"
    return "is not known; it takes an IANA id such as 'UTC' or 'Europe/Berlin'"


class ClockChange(Struct, frozen=True):
    """A moment at which the clocks of a zone are put forward or back.

    forward   …01:59:59 │ 03:00:00…   before 02:00, after 03:00: the times from 02:00 on to 03:00 are skipped
    back      …01:59:59 │ 01:00:00…   before 02:00, after 01:00: the times from 01:00 on to 02:00 are repeated
    """

    at: datetime
    """The instant, in UTC."""
    before: datetime
    """What the clock would have shown at that instant; local, without a zone."""
    after: datetime
    """What it shows instead."""

    @property
    def skips(self) -> bool:
        return self.after > self.before


def clock_change(wall: datetime, zone: ZoneInfo) -> ClockChange | None:
    """The change that skips or repeats the local time `wall` (without a zone); None where the time is plain."""
    offset_before = wall.replace(tzinfo=zone, fold=0).utcoffset()
    offset_after = wall.replace(tzinfo=zone, fold=1).utcoffset()
    if offset_before == offset_after or offset_before is None or offset_after is None:
        return None
    earliest, latest = sorted((wall - offset_before, wall - offset_after))

    def has_changed(seconds: int) -> bool:
        instant = (earliest + timedelta(seconds=seconds)).replace(tzinfo=UTC)
        return instant.astimezone(zone).utcoffset() != offset_before

    seconds = bisect_left(range((latest - earliest) // timedelta(seconds=1)), True, key=has_changed)
    at = earliest + timedelta(seconds=seconds)
    return ClockChange(at=at.replace(tzinfo=UTC), before=at + offset_before, after=at + offset_after)


def instant_of(wall: datetime, zone: ZoneInfo, *, second_pass: bool = False) -> datetime:
    """The UTC instant at which the clock shows `wall`; of a repeated time the first, or the second."""
    return wall.replace(tzinfo=zone, fold=int(second_pass)).astimezone(UTC)
