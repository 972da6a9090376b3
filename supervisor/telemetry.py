"""What a supervisor counts and measures, for OpenTelemetry, where the application has loaded it.

events -----------------> counters, histograms  ┐
the supervisor, as it is -> observable gauges   ┴-> the meter "DurableStack" of the provider that is configured
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from durablestack.events import Event, EventType
from durablestack.events.tracing import SOURCE
from durablestack.stores.contract import Backlog

from .backlog import DUE_COUNT_MAX

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

    from .tree import Supervisor

_COUNTED = {
    EventType.JOB_CLAIMED: ("durablestack.runs.claimed", "Runs leased by this worker"),
    EventType.JOB_STARTED: ("durablestack.runs.started", "Attempts that a child began"),
    EventType.JOB_SUCCEEDED: ("durablestack.runs.succeeded", "Runs that succeeded"),
    EventType.JOB_FAILED: ("durablestack.attempts.failed", "Attempts that failed, whether or not another follows"),
    EventType.RETRY_SCHEDULED: ("durablestack.retries.scheduled", "Attempts that failed, with another one to come"),
    EventType.JOB_CANCELLED: ("durablestack.runs.cancelled", "Runs that were cancelled while leased"),
    EventType.JOB_RELEASED: ("durablestack.runs.released", "Runs given back, so that the attempt does not count"),
    EventType.LEASE_LOST: ("durablestack.leases.lost", "Attempts ended or refused because the lease was gone"),
    EventType.RUN_QUARANTINED: (
        "durablestack.runs.quarantined",
        "Runs whose last lease was found expired, or that reached their crash_limit",
    ),
    EventType.CHILD_CRASHED: ("durablestack.children.crashed", "Children that died and were not asked to end"),
    EventType.CLOCK_JUMP_DETECTED: ("durablestack.clock.jumps", "Jumps of the database's clock"),
}
_ATTEMPT_ENDED = frozenset({EventType.JOB_SUCCEEDED, EventType.JOB_FAILED})


class TelemetrySink:
    """An EventSink. Make it only where OpenTelemetry is loaded."""

    def __init__(self, supervisor: Supervisor) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter(SOURCE)
        self._counters = {kind: meter.create_counter(name, "1", text) for kind, (name, text) in _COUNTED.items()}
        self._run_duration = meter.create_histogram(
            "durablestack.run.duration", "s", "How long attempts took in their child"
        )
        self._queue_wait = meter.create_histogram(
            "durablestack.run.queue_wait", "s", "From when runs were due until a child began"
        )
        _observe(meter, supervisor)

    def emit(self, events: Sequence[Event]) -> None:
        for event in events:
            attributes = {"durablestack.job.name": event.job_name} if event.job_name is not None else {}
            if event.event_type in self._counters:
                self._counters[event.event_type].add(1, attributes)
            if event.event_type in _ATTEMPT_ENDED and event.duration_ms is not None:
                self._run_duration.record(event.duration_ms / 1000, attributes)
            if event.queue_wait_ms is not None:
                self._queue_wait.record(event.queue_wait_ms / 1000, attributes)


def _observe(meter: Any, supervisor: Supervisor) -> None:
    meter.create_observable_counter(
        "durablestack.leases.extended", [_observed(lambda: supervisor.heartbeat.extensions)], "1", "Leases extended"
    )
    meter.create_observable_gauge(
        "durablestack.runs.in_flight",
        [_observed(lambda: len(supervisor.pool.busy))],
        "1",
        "Runs in the hands of children",
    )
    meter.create_observable_gauge(
        "durablestack.runs.due",
        [_observed(_of_backlog(supervisor, lambda backlog: backlog.due))],
        "1",
        f"Due runs of this worker's jobs, up to {DUE_COUNT_MAX:,}",
    )
    meter.create_observable_gauge(
        "durablestack.runs.oldest_due_age",
        [_observed(_of_backlog(supervisor, lambda backlog: backlog.oldest_due_age_seconds))],
        "s",
        "For how long the first of them has been due",
    )


def _of_backlog(supervisor: Supervisor, look: Callable[[Backlog], float]) -> Callable[[], float | None]:
    return lambda: None if (latest := supervisor.backlog.latest) is None else look(latest)


def _observed(look: Callable[[], float | None]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        value = look()
        return [] if value is None else [Observation(value)]

    return observe
