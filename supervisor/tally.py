"""Counts what happens to runs, job by job, as events tell it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import accumulate

from durablestack.events import Event, EventType

DURATION_BOUNDS_SECONDS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

NO_JOB = ""
"""Where no job is to be named: a child died idle, or a lease of a job that is not registered here had expired."""

_ATTEMPT_ENDED = frozenset({EventType.JOB_SUCCEEDED, EventType.JOB_FAILED})


class Durations:
    """How many were how long."""

    __slots__ = ("_counts", "total_seconds")

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self._counts = [0] * (len(DURATION_BOUNDS_SECONDS) + 1)  # the last one: longer than all bounds

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(DURATION_BOUNDS_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def up_to_each_bound(self) -> list[tuple[str, float]]:
        bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class RunTally:
    """An EventSink. Written in its thread, read by whoever asks; either under the lock.

    Each registered job is there from the beginning, with 0, or the first of anything would not show as an increase.
    """

    def __init__(self, job_names: Collection[str]) -> None:
        self.lock = threading.Lock()
        self.counts = {event_type: dict.fromkeys(job_names, 0) for event_type in EventType}
        self.run_durations: dict[str, Durations] = {}
        self.queue_waits: dict[str, Durations] = {}
        self._job_names = frozenset(job_names)

    def emit(self, events: Sequence[Event]) -> None:
        with self.lock:
            for event in events:
                # a name that others may choose is no label, or there would be no end of labels
                self._count(event, event.job_name if event.job_name in self._job_names else NO_JOB)

    def _count(self, event: Event, job_name: str) -> None:
        if event.event_type is not EventType.JOB_FAILED or event.retry_at is None:  # else only an attempt has failed
            counts = self.counts[event.event_type]
            counts[job_name] = counts.get(job_name, 0) + 1
        if event.event_type in _ATTEMPT_ENDED and event.duration_ms is not None:
            self.run_durations.setdefault(job_name, Durations()).add(event.duration_ms / 1000)
        if event.queue_wait_ms is not None:
            self.queue_waits.setdefault(job_name, Durations()).add(event.queue_wait_ms / 1000)
