"""When a cron expression fires, in a time zone whose clocks are put forward and back.

    expression ──read_cron──> values ──croniter──> slots: local times, one after the other ──clock──> instants

croniter finds the next local time on a plain calendar. What becomes of a local time where the clocks change is
decided here:

skipped (spring)    The slot fires at the first instant after the gap, and several slots in it fire once. Where every
                    hour is named (`15 * * * *`) nothing is lost, and the expression just goes on with the clock.
repeated (autumn)   A fixed time fires once, in the first pass. An interval expression (a `*`, a range or a step in
                    the seconds, minutes or hours) fires in both.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from durablestack.errors import ScheduleError

from .cron_fields import CronFields, read_cron
from .time_zones import ClockChange, check_time_zone, clock_change, instant_of

_SECOND = timedelta(seconds=1)
# croniter looks 50 years ahead; no date that exists at all is longer in coming (a Monday that is a 29 February: 40)
_REACHABLE_FROM = datetime(2001, 1, 1)
# what croniter and the calendar raise when there is no date, or none in the years that exist
_NO_DATE = (ValueError, OverflowError, AssertionError)


class Firing(Struct, frozen=True):
    at: datetime
    """The instant, in UTC."""
    slot: datetime
    """The local time that the expression names, without a zone. In a gap it is not the one that the clock shows."""
    change: ClockChange | None = None
    """The change of the clock that skips or repeats the slot, or, where every hour is named, the slots before it."""


class CronSchedule(Struct, frozen=True):
    """A cron expression of 5 fields, or of 6 with seconds first, in the time of an IANA zone.

    Raises:
        ScheduleError: the expression or the zone cannot be meant, or no date ever matches.
    """

    expression: str
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        check_time_zone(self.time_zone)
        _timetable(self.expression)

    def next_after(self, instant: datetime) -> datetime:
        """The first instant later than `instant`, which has a zone, at which it fires: in UTC, on a whole second.

        Raises:
            ScheduleError: there is none in the years that the calendar knows.
        """
        return self.firing_after(instant).at

    def firing_after(self, instant: datetime) -> Firing:
        """The same, with what the clock does there."""
        if instant.tzinfo is None:
            raise ValueError("next_after takes an instant with a time zone")
        zone = check_time_zone(self.time_zone)
        try:
            firing = _firing_after(instant.astimezone(zone), zone, _timetable(self.expression))
        except _NO_DATE as error:
            raise ScheduleError(
                f"cron expression {self.expression!r} does not fire after {instant} in {self.time_zone}"
            ) from error
        if firing.at <= instant:  # or whoever follows it would go round for ever
            raise ScheduleError(f"cron expression {self.expression!r} after {instant} gave {firing.at}, which is a bug")
        return firing

    @property
    def fields(self) -> CronFields:
        """What the expression says."""
        return _timetable(self.expression).fields


# --- the calendar, without clocks


class _Timetable(Struct, frozen=True):
    fields: CronFields
    calendars: tuple[Any, ...]
    """One croniter, or two of which either may name the next slot. Read only: shared between threads."""

    def slot_after(self, wall: datetime) -> datetime:
        """The first local time later than `wall`, both without a zone, that the expression names."""
        # a copy, because a croniter keeps its place in itself
        slots: list[datetime] = [copy(calendar).get_next(datetime, start_time=wall) for calendar in self.calendars]
        return min(slots)


@lru_cache(maxsize=1024)
def _timetable(expression: str) -> _Timetable:
    """Raises ScheduleError for an expression that cannot be read, or that no date ever matches."""
    fields = read_cron(expression)
    days, weekdays = fields.day_of_month.text, fields.day_of_week.text
    pairs = [(days, "*"), ("*", weekdays)] if fields.either_day else [(days, weekdays)]
    calendars = [_calendar(fields, *pair) for pair in pairs]
    reachable = tuple(calendar for calendar in calendars if _is_reachable(calendar))
    if not reachable:
        raise ScheduleError(f"cron expression {expression!r} never fires: no date matches its day and month fields")
    return _Timetable(fields, reachable)


def _calendar(fields: CronFields, day_of_month: str, day_of_week: str) -> Any:
    from croniter import croniter  # type: ignore[import-untyped]  # here, because it takes 50 ms to import

    texts = (fields.second.text, fields.minute.text, fields.hour.text, day_of_month, fields.month.text, day_of_week)
    return croniter(" ".join(texts), _REACHABLE_FROM, day_or=False, second_at_beginning=True)


def _is_reachable(calendar: Any) -> bool:
    try:
        copy(calendar).get_next(datetime)
    except _NO_DATE:
        return False
    return True


# --- the clock


def _firing_after(local: datetime, zone: ZoneInfo, timetable: _Timetable) -> Firing:
    wall = local.replace(microsecond=0, fold=0, tzinfo=None)
    repeat = clock_change(wall, zone)  # not a gap: an instant has a local time
    if repeat is not None and timetable.fields.is_interval:
        firing = _firing_in_both_passes(wall, zone, timetable, repeat, second_pass=bool(local.fold))
        if firing is not None:
            return firing
    elif repeat is not None and local.fold:
        wall = repeat.before - _SECOND  # all that is repeated has fired in the first pass
    return _first_firing(timetable.slot_after(wall), zone, timetable)


def _firing_in_both_passes(
    wall: datetime, zone: ZoneInfo, timetable: _Timetable, repeat: ClockChange, *, second_pass: bool
) -> Firing | None:
    """The next slot while the clock repeats itself; None once both passes are over."""
    slot = timetable.slot_after(wall)
    if slot >= repeat.before and not second_pass:
        slot, second_pass = timetable.slot_after(repeat.after - _SECOND), True
    if slot >= repeat.before:
        return None
    return Firing(instant_of(slot, zone, second_pass=second_pass), slot, repeat)


def _first_firing(slot: datetime, zone: ZoneInfo, timetable: _Timetable) -> Firing:
    """Where `slot` fires first."""
    gap = None
    change = clock_change(slot, zone)
    while change is not None and change.skips:
        if not timetable.fields.every_hour:
            return Firing(change.at, slot, change)
        gap, slot = change, timetable.slot_after(change.after - _SECOND)
        change = clock_change(slot, zone)
    return Firing(instant_of(slot, zone), slot, change or gap)
