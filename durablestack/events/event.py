"""An event: one thing that happened to a run, to a worker, or to a child of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

EVENT_VERSION = 2


class EventType(StrEnum):
    JOB_CLAIMED = "job_claimed"
    """A worker has leased the run; this is committed."""
    JOB_STARTED = "job_started"
    """A child begins the attempt."""
    JOB_RETRIED = "job_retried"
    """Directly after `job_started`: it is not the first attempt."""
    JOB_SUCCEEDED = "job_succeeded"
    JOB_FAILED = "job_failed"
    """An attempt failed. If there is to be another one, `retry_at` says when, and `retry_scheduled` follows."""
    RETRY_SCHEDULED = "retry_scheduled"
    JOB_CANCELLED = "job_cancelled"
    JOB_RELEASED = "job_released"
    """The run was given back, and the attempt does not count: the worker stops, or no child began it."""
    LEASE_LOST = "lease_lost"
    """The attempt was ended, or its outcome refused, because the run may be somebody else's by now."""
    RUN_QUARANTINED = "run_quarantined"
    """The last attempt's lease had expired: the run has failed, and whoever held it did not say why. Or, directly
    after `job_failed`, the run has ended its process as often as its `crash_limit` allows."""
    CHILD_CRASHED = "child_crashed"
    """A child process died, or could not start, and nobody had wanted it to end."""
    CLOCK_JUMP_DETECTED = "clock_jump_detected"
    """The database's clock was set. This worker ends nobody's lease for as long as a lease lasts."""
    WORKER_HEARTBEAT = "worker_heartbeat"
    """The worker lives. Told at each beat, also when it holds no run."""


class Event(Struct, frozen=True, kw_only=True):
    """Fields that do not apply are None. `occurred_at` is aware, in UTC, by the clock of the worker.

    `duration_ms` is as long as the job took in its child, or from when its turn came until its child died;
    `queue_wait_ms`, of `job_started`, goes from when the run was due. `error_detail` is None unless the option
    `eventing.include_error_detail` is on. Known secrets have been removed from all texts.
    """

    event_type: EventType
    event_version: int = EVENT_VERSION
    occurred_at: datetime
    worker_name: str
    run_id: UUID | None = None
    job_name: str | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    duration_ms: int | None = None
    queue_wait_ms: int | None = None
    message: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_detail: str | None = None
    retry_at: datetime | None = None
    trace_id: str | None = None
    span_id: str | None = None
