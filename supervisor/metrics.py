"""What a supervisor counts and measures, in the words of Prometheus.

    events -> RunTally ------------+
    the supervisor, as it is ------+-> Metrics -> text

Needs the package prometheus_client, and is made only where somebody may ask. A registry of our own keeps what the
application counts out of it, and what we count out of the application's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from durablestack.events import EventType

from .backlog import DUE_COUNT_MAX
from .tally import Durations

if TYPE_CHECKING:
    from .tree import Supervisor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TEXT_KEPT_SECONDS = 0.5

_COUNTED = {
    EventType.JOB_CLAIMED: ("runs_claimed", "Runs leased by this worker"),
    EventType.JOB_STARTED: ("runs_started", "Attempts that a child began"),
    EventType.JOB_SUCCEEDED: ("runs_succeeded", "Runs that succeeded, and were recorded as such"),
    EventType.JOB_FAILED: ("runs_failed", "Runs that failed, with no further attempt"),
    EventType.RETRY_SCHEDULED: ("retries", "Attempts that failed, with a further one to come"),
    EventType.JOB_CANCELLED: ("runs_cancelled", "Runs that were cancelled while leased"),
    EventType.JOB_RELEASED: ("runs_released", "Runs given back, so that the attempt does not count"),
    EventType.LEASE_LOST: ("leases_lost", "Attempts ended or refused because the lease was gone"),
    EventType.RUN_QUARANTINED: (
        "runs_quarantined",
        "Runs whose last lease was found expired, or that reached their crash_limit",
    ),
    EventType.CHILD_CRASHED: ("children_crashed", "Children that died or could not start, and were not asked to end"),
}


class Metrics(Collector):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._text = b""
        self._text_until = 0.0

    def text(self) -> bytes:
        """All of it. Whoever asks very often is told the same again, for the event loop has other things to do."""
        if time.monotonic() >= self._text_until:
            self._text = generate_latest(self._registry)
            self._text_until = time.monotonic() + _TEXT_KEPT_SECONDS
        return self._text

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        tally = self._supervisor.tally
        with tally.lock:
            for event_type, (name, help_text) in _COUNTED.items():
                yield _counter(name, help_text, "job_name", tally.counts[event_type])
            yield _histogram("run_duration_seconds", "How long attempts took in their child", tally.run_durations)
            yield _histogram("queue_wait_seconds", "From when runs were due until a child began", tally.queue_waits)
            jumps = sum(tally.counts[EventType.CLOCK_JUMP_DETECTED].values())
        yield CounterMetricFamily("durablestack_clock_jumps", "Jumps of the database's clock", jumps)
        yield from self._other_counters()
        yield from self._gauges()

    def _other_counters(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        yield _counter("recurring_runs_enqueued", "Runs made for schedules", "job_name", supervisor.scheduler.enqueued)
        yield _counter("events_dropped", "Events that a sink missed, too slow for them", "sink", supervisor.bus.dropped)
        yield CounterMetricFamily("durablestack_runs_pruned", "Old runs deleted", supervisor.sweeper.pruned)
        yield CounterMetricFamily("durablestack_lease_extensions", "Leases extended", supervisor.heartbeat.extensions)

    def _gauges(self) -> Iterator[Metric]:
        pool, backlog = self._supervisor.pool, self._supervisor.backlog.latest
        unrecorded = self._supervisor.completer.unrecorded
        yield _gauge("slots", "Runs that may be in flight at once", len(pool.executors))
        yield _gauge("runs_in_flight", "Runs in the hands of children", len(pool.busy))
        yield _gauge("outcomes_unrecorded", "Attempts that have ended and are not yet recorded", unrecorded)
        if backlog is not None:
            age = backlog.oldest_due_age_seconds
            yield _gauge("due_runs", f"Due runs of this worker's jobs, counted up to {DUE_COUNT_MAX}", backlog.due)
            yield _gauge("oldest_due_age_seconds", "For how long the first of them has been due; 0 if none is", age)


def _counter(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"durablestack_{name}", help_text, labels=[label])
    for label_value, value in values.items():
        family.add_metric([label_value], value)
    return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"durablestack_{name}", help_text, value)


def _histogram(name: str, help_text: str, durations: Mapping[str, Durations]) -> Metric:
    family = HistogramMetricFamily(f"durablestack_{name}", help_text, labels=["job_name"])
    for job_name, of_job in durations.items():
        family.add_metric([job_name], of_job.up_to_each_bound(), of_job.total_seconds)
    return family
