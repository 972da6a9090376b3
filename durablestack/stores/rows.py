"""Between the rows of a database and runs, attempts, schedules and workers: how they are read, what is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from durablestack.errors import StoreError
from durablestack.runs import Attempt, AttemptOutcome, EndedBy, Failure, NewRun, Output, Run, RunStatus, Usage
from durablestack.schedules import Schedule
from durablestack.workers import Worker

from .contract import Claim, OldSnapshot, Stack
from .dialects import Dialect
from .statements import ATTEMPT_COLUMNS, JOB_COLUMNS, RUN_COLUMNS, WORKER_COLUMNS

log = logging.getLogger(__name__)

_RUN_FIELDS = tuple(column.strip().removesuffix("_utc") for column in RUN_COLUMNS.split(","))
_ATTEMPT_FIELDS = tuple(column.strip().removesuffix("_utc") for column in ATTEMPT_COLUMNS.split(","))
_SCHEDULE_FIELDS = tuple(column.strip().removesuffix("_utc") for column in JOB_COLUMNS.split(","))
_WORKER_FIELDS = tuple(column.strip() for column in WORKER_COLUMNS.split(","))
_INSTANTS = {
    "scheduled_for",
    "created_at",
    "started_at",
    "completed_at",
    "lease_until",
    "cancel_requested_at",
    "ended_at",
    "slot",
    "next_run_at",
    "last_slot",
    "seen_at",
    "orphaned_at",
    "updated_at",
}
_UUIDS = {"id", "run_id", "lease_token", "requeued_from"}
_UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError)
_TOLD_MAX = 1_000

Value = TypeVar("Value")


class UnreadableRow(StoreError):
    """A row that was altered by hand, or damaged: there is nothing to be made of it."""


class Rows:
    """Reads what statements return, in the order of the columns that they name."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._told: set[str] = set()

    def readable(self, rows: Iterable[Sequence[Any]], read: Callable[[Sequence[Any]], Value]) -> list[Value]:
        """What can be read of these; of the others it is told once in the log: they must not hide the rest."""
        values: list[Value] = []
        for row in rows:
            try:
                values.append(read(row))
            except UnreadableRow as error:
                self.tell(error)
        return values

    def tell(self, error: UnreadableRow) -> None:
        text = str(error)
        if text not in self._told:
            if len(self._told) >= _TOLD_MAX:
                self._told.clear()
            self._told.add(text)
            log.error("%s", text)

    def run(self, row: Sequence[Any]) -> Run:
        try:
            fields = self._decoded(_RUN_FIELDS, row)
            return Run(**{**fields, "status": RunStatus(fields["status"])})
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error

    def attempt(self, row: Sequence[Any]) -> Attempt:
        try:
            fields = self._decoded(_ATTEMPT_FIELDS, row)
            ended_by = fields["ended_by"] and EndedBy(fields["ended_by"])
            return Attempt(**{**fields, "outcome": AttemptOutcome(fields["outcome"]), "ended_by": ended_by})
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error

    def claimed_run(self, row: Sequence[Any], claim: Claim) -> Run:
        """The run as the claim that read the row has left it."""
        id, job_name, payload, scheduled_for, attempt, max_attempts, created_at, slot, trace_context, crashes, _ = row
        try:
            return Run(
                id=self.uuid(id),
                job_name=job_name,
                status=RunStatus.LEASED,
                payload=payload,
                scheduled_for=self.instant(scheduled_for),
                attempt=int(attempt) + 1,
                max_attempts=int(max_attempts),
                created_at=self.instant(created_at),
                lease_owner=claim.worker_name,
                lease_token=claim.lease_token,
                slot=self._dialect.to_datetime(slot),
                trace_context=trace_context,
                crash_count=int(crashes),
            )
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error

    def stack(self, row: Sequence[Any]) -> Stack | None:
        """None if nobody has asked."""
        _, requested_at, taken_at, text = row
        try:
            asked = self._dialect.to_datetime(requested_at)
            return None if asked is None else Stack(asked, self._dialect.to_datetime(taken_at), text)
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error

    def old_snapshot(self, row: Sequence[Any]) -> OldSnapshot:
        holder, seconds, changes = row
        return OldSnapshot(holder, None if seconds is None else timedelta(seconds=float(seconds)), int(changes))

    def worker(self, row: Sequence[Any]) -> Worker:
        try:
            return Worker(**self._decoded(_WORKER_FIELDS, row))
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error

    def schedule(self, row: Sequence[Any]) -> Schedule:
        try:
            fields = self._decoded(_SCHEDULE_FIELDS, row)
        except _UNREADABLE as error:
            raise _unreadable(row, error) from error
        every_seconds = fields.pop("every_seconds")
        flags = {name: bool(fields[name]) for name in ("enabled", "allow_concurrent_runs")}
        return Schedule(**{**fields, **flags, "every": _interval(every_seconds)})

    def uuid(self, value: Any) -> UUID:
        if type(value) is UUID:
            return value
        uuid = self.uuid_or_none(value)
        if uuid is None:
            raise UnreadableRow(f"{value!r} is no id and no token: the table was altered by hand")
        return uuid

    def uuid_or_none(self, value: Any) -> UUID | None:
        """None also for what is no id: it is not equal to any of ours."""
        try:
            return self._dialect.to_uuid(value)
        except _UNREADABLE:
            return None

    def instant(self, value: Any) -> datetime:
        if type(value) is datetime and value.tzinfo is UTC:
            return value
        instant = self._dialect.to_datetime(value)
        if instant is None:
            raise UnreadableRow("a row without the instant that it must have: the table was altered by hand")
        return instant

    def _decoded(self, names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in zip(names, row, strict=True):
            if name in _UUIDS:
                fields[name] = self._dialect.to_uuid(value)
            elif name in _INSTANTS:
                fields[name] = self._dialect.to_datetime(value)
            else:
                fields[name] = value
        return fields


def _unreadable(row: Sequence[Any], error: Exception) -> UnreadableRow:
    return UnreadableRow(f"the row {row[0]!r} cannot be read, it was altered by hand or damaged: {error}")


def _interval(seconds: Any) -> timedelta | None:
    """None also for what is no interval, so that the schedule alone cannot be meant, and not the whole table."""
    try:
        return timedelta(seconds=seconds)
    except (TypeError, ValueError, OverflowError):
        return None


# --- what is written, as the parameters of statements


def new_run_parameters(runs: Iterable[NewRun]) -> list[dict[str, Any]]:
    """In the order of their ids, or two who store the same runs could wait for each other."""
    return [
        {
            "id": run.id,
            "job_name": run.job_name,
            "payload": run.payload,
            "scheduled_for": run.scheduled_for,
            "max_attempts": run.max_attempts,
            "requeued_from": run.requeued_from,
            "slot": run.slot,
            "recurring_job_name": run.job_name if run.recurring else None,
            "trace_context": run.trace_context,
        }
        for run in sorted(runs, key=lambda run: run.id)
    ]


def schedule_parameters(schedule: Schedule) -> dict[str, Any]:
    return {
        "job_name": schedule.job_name,
        "cron_expression": schedule.cron_expression,
        "every_seconds": schedule.every.total_seconds() if schedule.every is not None else None,
        "time_zone": schedule.time_zone,
        "enabled": int(schedule.enabled),
        "allow_concurrent_runs": int(schedule.allow_concurrent_runs),
        "payload": schedule.payload,
        "max_attempts": schedule.max_attempts,
        "next_run_at": schedule.next_run_at,
        "last_slot": schedule.last_slot,
        "application": schedule.application,
        "seen_at": schedule.seen_at,
        "orphaned_at": schedule.orphaned_at,
        "error_message": schedule.error_message,
    }


def worker_parameters(worker: Worker) -> dict[str, Any]:
    return msgspec.structs.asdict(worker)


def error_parameters(failure: Failure | None) -> dict[str, Any]:
    return {
        "error_type": failure.error_type if failure else None,
        "error_message": failure.error_message if failure else None,
        "error_detail": failure.error_detail if failure else None,
    }


def output_parameters(output: Output) -> dict[str, Any]:
    return {"stdout_tail": output.stdout_tail, "stderr_tail": output.stderr_tail}


def usage_parameters(usage: Usage) -> dict[str, Any]:
    return msgspec.structs.asdict(usage)
