"""Looks at what busy children use: for the record, should one of them die, and to end what uses more than it may.

look --sample of each busy child--> more than its terms allow? --> end it
  ^                                                  |
  +---- rest: 0.25 s, or longer if looking costs ----+
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import anyio

from .executor import Executor
from .oom import OomKills
from .terms import Terms
from .usage import Sample
from .verdict import Ending

_REST_SECONDS_MIN = 0.25
_REST_PER_LOOK = 150
"""So that looking takes less than a hundredth of a core, however many children there are."""

_LOOKS_PER_UNLIMITED = 4
"""What has no limits is only looked at for the record."""


class Watch:
    def __init__(self, busy: Callable[[], Sequence[Executor]], oom_kills: OomKills) -> None:
        self._busy = busy
        self._oom_kills = oom_kills
        self._looks = 0

    async def run(self) -> None:
        while True:
            cpu_seconds_before = time.thread_time()
            self._look()
            await anyio.sleep(rest_seconds(time.thread_time() - cpu_seconds_before))

    def _look(self) -> None:
        self._looks += 1
        self._oom_kills.look()
        for executor in self._busy():
            if executor.assignment is not None:
                self._look_at(executor, executor.assignment.terms)

    def _look_at(self, executor: Executor, terms: Terms) -> None:
        is_limited = terms.memory_limit is not None or terms.cpu_seconds is not None
        if (is_limited or self._looks % _LOOKS_PER_UNLIMITED == 0) and (sample := executor.measure()) is not None:
            exceeded = exceeds(sample, terms)
            if exceeded is not None:
                executor.escalation.end_exceeding(*exceeded)


def rest_seconds(look_seconds: float) -> float:
    return max(_REST_SECONDS_MIN, _REST_PER_LOOK * look_seconds)


def exceeds(sample: Sample, terms: Terms) -> tuple[Ending, float] | None:
    """What a run has too much of, and what it has reached."""
    if terms.memory_limit is not None and sample.resident_bytes > terms.memory_limit:
        return Ending.MEMORY_LIMIT, sample.resident_bytes
    if terms.cpu_seconds is not None and sample.cpu_seconds > terms.cpu_seconds:
        return Ending.CPU_LIMIT, sample.cpu_seconds
    return None
