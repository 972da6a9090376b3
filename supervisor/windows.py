"""How many runs a child may be given at once: of short ones as many as it does in a moment, else one.

A claimed run that waits is a lease that ages, and a run that takes its time keeps those behind it waiting. So we go by
how long the runs of each job have taken lately, and what has been given out can be taken back. What is not known to be
short, or has no other attempt left, never waits behind another run.

What is claimed and finds no place, since it takes longer than it did a moment ago, may fill children three times as far
before it is given back to the database.
"""

from __future__ import annotations

from durablestack.runs import Run

AHEAD_SECONDS = 0.010
"""A child is given what it is expected to do within this time."""

SHORT_RUNS_FIRST = 32
"""Before there have been so many, nothing is claimed to wait: a few short ones among others would not find a place."""

SHORT_RUNS_ALONE = 4
"""The same where there have been no others."""

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

    def ended(self, job_name: str, seconds: float) -> None:
        """A run has taken so long, in its child."""
        before = self._seconds.get(job_name, seconds)
        self._seconds[job_name] = before + _WEIGHT * (seconds - before)
        before = seconds if self._seconds_of_all is None else self._seconds_of_all
        self._seconds_of_all = before + _WEIGHT * (seconds - before)
        if is_short(seconds):
            self._short += 1
            if self._short % _SHORT_PER_TRY == 0 and self.limit < self._limit_max:
                self.limit += 1
        else:
            self._others += 1

    def expected_seconds(self, run: Run) -> float:
        """Infinite if nothing is known of its job."""
        seconds = self._seconds.get(run.job_name)
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
    return seconds <= AHEAD_SECONDS / 2


def fits(seconds: float) -> bool:
    """Whether a child may have runs at once that are expected to take so long together."""
    return seconds <= AHEAD_SECONDS * 1.001  # sums of fractions
