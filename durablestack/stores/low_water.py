"""Where claims begin to look while what is due lies behind much that is done: before the low-water mark is nothing.

A database cannot remove what an old snapshot may still read. Each run that was claimed leaves an entry in the index of
what is due, before all that still is, and each claim walks over more of them than the one before.

    look from the beginning ── a short walk ──> look from the beginning
       ^        └── the second long walk in a row ──> look from the first run that was found
       └── twenty times as long as the walk has taken, at most 5 seconds ───┘

What comes to lie before the mark, a run that another supervisor gave back or a commit that came late, waits for the
next look from the beginning; for what this store gave back or let expire, marks are forgotten. Nothing else depends on
the mark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

MARK_SECONDS_MAX = 5.0
"""For how long at most claims do not look from the beginning."""

_WALKS = 20
_LONG_WALK_SECONDS = 0.0005
_SECONDS_PER_RUN = 0.00001  # to find, lock and read it


class Mark(Struct, frozen=True):
    """A run in the order in which runs are due, in the words of its row; there is nothing to be found before it."""

    scheduled_for: Any
    id: Any


class LowWater:
    """What claims for the same jobs have found out. Any thread may tell: a mark that is too low costs time only."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._mark: Mark | None = None
        self._lasts_seconds = 0.0
        self._until = 0.0
        self._walked_long = False

    def mark(self) -> Mark | None:
        """Where the next claim is to begin; None for the beginning."""
        return self._mark if self._monotonic() < self._until else None

    def found(self, rows: Sequence[Sequence[Any]], *, from_beginning: bool) -> None:
        """What `RUNS_DUE_SELECT` has found, in any order, or the same from the mark."""
        if from_beginning:
            if rows:
                self._measure(rows)
            self._until = self._monotonic() + self._lasts_seconds  # where nothing was found: as long as the last time
        elif rows:
            self._mark = _first(rows)

    def _measure(self, rows: Sequence[Sequence[Any]]) -> None:
        seconds = [float(row[-1]) for row in rows]
        walk_seconds = max(min(seconds), max(seconds) - _SECONDS_PER_RUN * len(rows))  # to the first, or between them
        long_walk = walk_seconds > _LONG_WALK_SECONDS
        # once may be the doing of a busy machine
        self._mark = _first(rows) if long_walk and self._walked_long else None
        self._walked_long = long_walk
        self._lasts_seconds = min(_WALKS * walk_seconds, MARK_SECONDS_MAX)


def _first(rows: Sequence[Sequence[Any]]) -> Mark:
    return min((Mark(scheduled_for=row[3], id=row[0]) for row in rows), key=lambda mark: (mark.scheduled_for, mark.id))
