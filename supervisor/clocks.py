"""Does the database's clock go as ours does? Where it was set forward, every lease looks expired at once.

Whoever holds them goes on renewing them, by the new time. So for the length of a lease nobody's lease is ended: by
then it has been renewed, or its holder is gone indeed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec import Struct

from .leases import boottime

_TOLERANCE_SECONDS = 1.0
_TOLERANCE_RATIO = 0.05
"""Of the time between two looks: two clocks never go quite alike, and one that is wrong is slowly set right."""

_TOLERANCE_OF_LEASE_MAX = 0.25
"""More than this part of a lease is a jump in any case: leases that are alive might look expired."""


class _Look(Struct, frozen=True):
    told: datetime
    asked_at: float
    answered_at: float


class DatabaseClock:
    """Compared with the clock of this machine that no one sets, from one look to the next."""

    def __init__(self, lease_duration: timedelta, clock: Callable[[], float] = boottime) -> None:
        self._lease_seconds = lease_duration.total_seconds()
        self._clock = clock
        self._last: _Look | None = None
        self._distrusted_until = 0.0

    @property
    def trusted(self) -> bool:
        return self._clock() >= self._distrusted_until

    def saw(self, told: datetime, asked_at: float, answered_at: float) -> timedelta | None:
        """Take in what the database's clock showed between two of our instants; return how far it jumped, if it did.

        Backwards is told too. Leases then last longer than they should, which harms nobody who holds one.
        """
        last, self._last = self._last, _Look(told, asked_at, answered_at)
        if last is None:
            return None
        went_seconds = (told - last.told).total_seconds()
        least_seconds, most_seconds = asked_at - last.answered_at, answered_at - last.asked_at
        drift_seconds = min(_TOLERANCE_RATIO * most_seconds, _TOLERANCE_OF_LEASE_MAX * self._lease_seconds)
        tolerance_seconds = max(_TOLERANCE_SECONDS, drift_seconds)
        if least_seconds - tolerance_seconds <= went_seconds <= most_seconds + tolerance_seconds:
            return None
        self._distrusted_until = self._clock() + self._lease_seconds
        return timedelta(seconds=went_seconds - most_seconds)
