"""How often a process tells listeners that it has enqueued.

A commit that notifies waits for all others that do: PostgreSQL lets through one at a time, disk and all. So some hints
are withheld: those that come close on others, after which listeners look again by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from durablestack.runs import NewRun

WITHHELD = "others are withheld"
"""What a hint says after which the next ones may be withheld. Others say nothing."""

PER_SECOND_MAX = 50.0
PER_SECOND_OF_CALLERS = 10.0  # whose commits we do not see
IN_A_ROW = 10.0
SHARE_MAX = 0.1
"""Of its time, what a process spends at most in transactions with a hint; more of them wait for each other."""


class HintRate:
    """A bucket that holds so many, and fills at a rate, which is lower where transactions with a hint take long.

    Read and written by all threads that enqueue, without a lock: at worst one hint too many is sent.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second_max = self._per_second = per_second
        self._clock = clock
        self._left = IN_A_ROW if per_second > 0 else 0.0
        self._counted_at = clock()

    def take(self, runs: Sequence[NewRun]) -> str | None:
        """What to say of these runs now; None to say nothing."""
        if not any_due(runs):
            return None
        now = self._clock()
        left = min(IN_A_ROW, self._left + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        self._left = left - 1 if left >= 1 else left
        if left < 1:
            return None
        return WITHHELD if self._left < 1 else ""

    def took(self, seconds: float) -> None:
        """A transaction with a hint did, for each of its runs."""
        self._per_second = min(self._per_second_max, SHARE_MAX / max(seconds, 0.001))


NO_HINTS = HintRate(0.0)


def any_due(runs: Sequence[NewRun]) -> bool:
    """Whether there is one among these that need not wait for its time; nearly so, by our own clock."""
    now = datetime.now(UTC)
    return any(run.scheduled_for is None or run.scheduled_for <= now for run in runs)
