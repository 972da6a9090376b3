"""How many runs a child may be given at once: of short ones as many as it does in a moment, else one.

A claimed run that waits is a lease that ages, and a run that takes its time keeps those behind it waiting. So we go by
how long the runs of each job have taken lately, and what has been given out can be taken back. What is not known to be
short, or has no other attempt left, never waits behind another run.

What is claimed and finds no place, since it takes longer than it did a moment ago, may fill children three times as far
before it is given back to the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

AHEAD_SECONDS = 0.010
"""A child is given what it is expected to do within this time."""

SHORT_RUNS_FIRST = 32
"""Before there have been so many, nothing is claimed to wait: a few short ones among others would not find a place."""

SHORT_RUNS_ALONE = 4
"""The same where there have been no others."""

_SHORT_SECONDS = AHEAD_SECONDS / 2
_FULL_SECONDS = AHEAD_SECONDS * 1.001  # sums of fractions
_WEIGHT = 0.1  # of the latest run in what is expected of the next one
_SHORT_PER_TRY = 32  # after so many short runs another one may be claimed to wait, where none found a place
_SECONDS_MIN = 0.0001  # what a run costs at least, whatever its job does


class Windows:
    """`limit` is how many runs may be claimed beyond those that begin at once, as far as all of them found a place.

    A child should have no more than `runs_max`.
    """

    def __init__(self, children: int, runs_max: int) -> None:
        self._runs_max = runs_max
        self._limit_max = children * (runs_max - 1)
        self.limit = self._limit_max
        self._short = 0
        self._others = 0
        self._seconds: dict[str, float] = {}
        self._seconds_of_all: float | None = None

    def ended(self, runs: Sequence[tuple[str, float]]) -> None:
        """Runs of these jobs have taken so long, in their children."""
        for job_name, seconds in runs:
            before = self._seconds.get(job_name, seconds)
            self._seconds[job_name] = before + _WEIGHT * (seconds - before)
            before = seconds if self._seconds_of_all is None else self._seconds_of_all
            self._seconds_of_all = before + _WEIGHT * (seconds - before)
        short = sum([seconds <= _SHORT_SECONDS for _, seconds in runs])
        tries = (self._short + short) // _SHORT_PER_TRY - self._short // _SHORT_PER_TRY
        if self.limit < self._limit_max:
            self.limit = min(self._limit_max, self.limit + tries)
        self._short += short
        self._others += len(runs) - short

    def expected_seconds(self, job_name: str) -> float:
        """Of its next run; infinite if nothing is known of it."""
        seconds = self._seconds.get(job_name)
        return float("inf") if seconds is None else max(seconds, _SECONDS_MIN)

    @property
    def short_jobs(self) -> list[str]:
        """Those whose runs may wait, for they are known to be short."""
        return [job_name for job_name, seconds in self._seconds.items() if is_short(seconds)]

    @property
    def size(self) -> int:
        """How many runs a child does in a moment, if they are like the latest ones."""
        if self._seconds_of_all is None or self._short < (SHORT_RUNS_FIRST if self._others else SHORT_RUNS_ALONE):
            return 1
        return min(self._runs_max, max(1, int(AHEAD_SECONDS / max(self._seconds_of_all, _SECONDS_MIN))))

    def claimed(self, ahead: int, without_place: int) -> None:
        """So many runs were claimed beyond those that begin at once; some of them could not be placed."""
        if without_place:
            self.limit = (ahead - without_place) // 2
        elif ahead:
            self.limit = min(self._limit_max, 2 * self.limit + 1)


def is_short(seconds: float) -> bool:
    """Whether others may wait behind a run that is expected to take so long."""
    return seconds <= _SHORT_SECONDS


def how_many_fit(expected_seconds: Iterable[float], *, beside_seconds: float, times: int = 1) -> int:
    """How many runs that are expected to take so long a child may have beside others, `times` as long together as it
    should be given at once."""
    together_seconds, count = beside_seconds, 0
    for seconds in expected_seconds:
        together_seconds += seconds
        if together_seconds > times * _FULL_SECONDS:
            break
        count += 1
    return count
