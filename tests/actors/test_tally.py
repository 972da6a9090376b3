"""The tally: what events add up to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from durablestack.events import Event, EventType
from durablestack.supervisor.tally import DURATION_BOUNDS_SECONDS, NO_JOB, Durations, RunTally


def event(event_type: EventType, job_name: str | None = "mail", **fields: Any) -> Event:
    return Event(
        event_type=event_type, occurred_at=datetime.now(UTC), worker_name="worker-1", job_name=job_name, **fields
    )


def test_every_registered_job_is_there_before_anything_has_happened() -> None:
    tally = RunTally(["mail", "bill"])
    assert tally.counts[EventType.JOB_FAILED] == {"mail": 0, "bill": 0}


def test_a_failed_attempt_with_another_one_to_come_is_a_retry_and_no_failed_run() -> None:
    tally = RunTally(["mail"])
    later = datetime.now(UTC)
    tally.emit(
        [
            event(EventType.JOB_FAILED, duration_ms=10, retry_at=later),
            event(EventType.RETRY_SCHEDULED, retry_at=later),
            event(EventType.JOB_FAILED, duration_ms=20),
        ]
    )
    assert tally.counts[EventType.JOB_FAILED]["mail"] == 1
    assert tally.counts[EventType.RETRY_SCHEDULED]["mail"] == 1
    assert tally.run_durations["mail"].up_to_each_bound()[-1] == ("+Inf", 2)


def test_names_that_are_not_registered_here_make_no_labels() -> None:
    tally = RunTally(["mail"])
    tally.emit([event(EventType.RUN_QUARANTINED, f"stranger-{i}") for i in range(100)])
    tally.emit([event(EventType.CHILD_CRASHED, None)])
    assert tally.counts[EventType.RUN_QUARANTINED] == {"mail": 0, NO_JOB: 100}
    assert tally.counts[EventType.CHILD_CRASHED] == {"mail": 0, NO_JOB: 1}


def test_durations_are_counted_up_to_each_bound() -> None:
    durations = Durations()
    for seconds in (0.0, 0.005, 0.006, 3600.0, 1e9):
        durations.add(seconds)
    counted = dict(durations.up_to_each_bound())
    assert [float(bound) for bound in counted] == [*DURATION_BOUNDS_SECONDS, float("inf")]
    assert (counted["0.005"], counted["0.025"], counted["900.0"], counted["3600.0"], counted["+Inf"]) == (2, 3, 3, 4, 5)
    assert durations.total_seconds == 0.011 + 3600.0 + 1e9


def test_the_wait_in_the_queue_is_that_of_the_runs_that_began() -> None:
    tally = RunTally(["mail"])
    tally.emit([event(EventType.JOB_STARTED, queue_wait_ms=1500), event(EventType.JOB_RETRIED)])
    assert tally.queue_waits["mail"].total_seconds == 1.5
    assert tally.run_durations == {}
