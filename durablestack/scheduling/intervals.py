"""A schedule that counts time, and knows no calendar: every 90 seconds, every 36 hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec import Struct

from durablestack.errors import ScheduleError

EVERY_MIN = timedelta(seconds=1)
EVERY_MAX = timedelta(days=3_660)
_RESOLUTION = timedelta(milliseconds=1)


class IntervalSchedule(Struct, frozen=True):
    """Fires `every` so often, from 1 second to 10 years, in whole milliseconds.

    Raises:
        ScheduleError: `every` is something else.
    """

    every: timedelta

    def __post_init__(self) -> None:
        if not isinstance(self.every, timedelta):
            raise ScheduleError(f"an interval is a timedelta, not a {type(self.every).__name__}")
        if not EVERY_MIN <= self.every <= EVERY_MAX:
            raise ScheduleError(f"interval {self.every} is out of range: from 1 second to 10 years is allowed")
        if self.every % _RESOLUTION:
            raise ScheduleError(f"interval {self.every} is too fine: whole milliseconds are allowed")

    def next_after(self, instant: datetime) -> datetime:
        """`instant`, which has a zone, plus `every`, in UTC.

        Raises:
            ScheduleError: it lies outside the calendar.
        """
        if instant.tzinfo is None:
            raise ValueError("next_after takes an instant with a time zone")
        try:
            return instant.astimezone(UTC) + self.every
        except OverflowError:
            raise ScheduleError(f"an interval of {self.every} after {instant} ends outside the calendar") from None
