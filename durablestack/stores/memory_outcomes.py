"""How the end of an attempt changes the tables in memory. The counterpart for SQL is `outcomes`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec.structs import replace

from durablestack.runs import (
    CANCELLED_MESSAGE,
    LEASE_EXPIRED,
    AttemptOutcome,
    Cancelled,
    Failed,
    Failure,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
    Succeeded,
)

from .contract import ExpiredRun, after_expiry, after_outcome
from .memory_tables import Tables


def record(tables: Tables, outcomes: Sequence[Outcome], now: datetime) -> dict[UUID, RunStatus]:
    """See `Store.record`."""
    recorded: dict[UUID, RunStatus] = {}
    for outcome in outcomes:
        lease = outcome.lease
        if tables.holds(lease):
            _write(tables, tables.runs[lease.run_id], outcome, now)
            tables.last_tokens[lease.run_id] = lease.token
            recorded[lease.run_id] = tables.runs[lease.run_id].status
        elif tables.last_tokens.get(lease.run_id) == lease.token:
            recorded[lease.run_id] = tables.runs[lease.run_id].status  # before
    return recorded


def _write(tables: Tables, run: Run, outcome: Outcome, now: datetime) -> None:
    status = after_outcome(outcome, cancel_requested=run.cancel_requested_at is not None)
    match outcome:
        case Succeeded():
            if run.attempt > 1:
                tables.keep_attempt(run, outcome.lease, AttemptOutcome.SUCCEEDED, now)
            _end(tables, run, RunStatus.SUCCEEDED, now, None, outcome.output)
        case Failed(failure=failure, retry_after=retry_after):
            tables.keep_attempt(run, outcome.lease, AttemptOutcome.FAILED, now, failure)
            run = replace(run, crash_count=run.crash_count + failure.crashed)
            if retry_after is None:
                _end(tables, run, RunStatus.FAILED, now, failure, outcome.output)
            elif status is RunStatus.CANCELLED:
                end_cancelled(tables, run, now, outcome.output)
            else:
                _retry(tables, run, now + retry_after, failure, outcome.output)
        case Released() if status is RunStatus.PENDING:
            scheduled_for = min(run.scheduled_for, now)
            tables.put_unleased(run, status=RunStatus.PENDING, attempt=run.attempt - 1, scheduled_for=scheduled_for)
        case Cancelled() | Released():
            cancelled = outcome if isinstance(outcome, Cancelled) else Cancelled(outcome.lease)
            tables.keep_attempt(run, cancelled.lease, AttemptOutcome.CANCELLED, now, cancelled.failure)
            end_cancelled(tables, run, now, cancelled.output)


def end_cancelled(tables: Tables, run: Run, now: datetime, output: Output) -> None:
    _end(tables, run, RunStatus.CANCELLED, now, None, output, message=CANCELLED_MESSAGE)


def _end(
    tables: Tables,
    run: Run,
    status: RunStatus,
    now: datetime,
    failure: Failure | None,
    output: Output,
    message: str | None = None,
) -> None:
    tables.put_unleased(
        run,
        status=status,
        completed_at=now,
        error_type=failure.error_type if failure else None,
        error_message=failure.error_message if failure else message,
        error_detail=failure.error_detail if failure else None,
        stdout_tail=output.stdout_tail,
        stderr_tail=output.stderr_tail,
    )


def _retry(tables: Tables, run: Run, scheduled_for: datetime, failure: Failure, output: Output) -> None:
    tables.put_unleased(
        run,
        status=RunStatus.PENDING,
        scheduled_for=scheduled_for,
        error_type=failure.error_type,
        error_message=failure.error_message,
        error_detail=failure.error_detail,
        stdout_tail=output.stdout_tail,
        stderr_tail=output.stderr_tail,
    )


def end_expired_lease(tables: Tables, run: Run, now: datetime) -> ExpiredRun:
    """Nobody has renewed it: the attempt is over, whatever its worker still does."""
    cancel_requested = run.cancel_requested_at is not None
    status, message = after_expiry(run.attempt, run.max_attempts, run.lease_owner, cancel_requested=cancel_requested)
    failure = Failure(error_type=LEASE_EXPIRED, error_message=message)
    tables.keep_attempt(run, run.lease, AttemptOutcome.EXPIRED, now, failure)
    tables.put_unleased(
        run,
        status=status,
        completed_at=now if status.terminal else None,
        error_type=None if status is RunStatus.CANCELLED else LEASE_EXPIRED,
        error_message=message,
        error_detail=None,
    )
    return ExpiredRun(run.id, run.job_name, run.attempt, run.lease_owner, status)
