"""The store on SQL databases. Lock candidates, decide in Python, write by key, in one transaction."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from durablestack.errors import ScheduleError
from durablestack.ids import new_run_id
from durablestack.runs import (
    CANCELLED_MESSAGE,
    LEASE_EXPIRED,
    Attempt,
    AttemptOutcome,
    Cancelled,
    Failed,
    Failure,
    Lease,
    NewRun,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
    Succeeded,
)
from durablestack.schedules import Schedule

from . import migrate
from .connections import Connections, Transaction
from .connections.callers import async_driver_connection, in_callers_transaction
from .contract import (
    ATTEMPTS_KEPT_MAX,
    EXPIRED_PER_CLAIM_MAX,
    Backlog,
    ChangeSchedule,
    Claim,
    Claimed,
    ExpiredRun,
    Extended,
    NextSlot,
    scheduled_run,
)
from .dialects import Dialect
from .rows import Rows
from .statements import TEMPLATES


class SqlStore:
    """See `durablestack.stores.contract.Store`, where each method is described."""

    durable = True

    def __init__(self, connections: Connections, dialect: Dialect, prefix: str = "") -> None:
        self.dialect = dialect
        self.prefix = prefix
        self._connections = connections
        self._rows = Rows(dialect)
        self._sql = {name: dialect.render(name, template, prefix) for name, template in TEMPLATES.items()}

    # --- schema

    def migrate(self) -> list[int]:
        return migrate.migrate(self._connections, self.dialect, self.prefix)

    def verify_schema(self) -> None:
        migrate.verify(self._connections, self.dialect, self.prefix)

    def now(self) -> datetime:
        with self._connections.read() as tx:
            return self._now(tx)

    def server_facts(self) -> dict[str, str]:
        with self._connections.read() as tx:
            return {name: str(tx.fetch(probe, {})[0][-1]) for name, probe in self.dialect.facts.items()}

    # --- enqueue

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        if connection is not None:
            self._insert(in_callers_transaction(connection, self._connections.driver), runs)
            return
        with self._connections.transaction() as tx:
            self._insert(tx, runs)

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        cursor = (await async_driver_connection(connection, self._connections.driver)).cursor()
        inserted = cursor.executemany(self._sql["RUN_INSERT"], self._new_runs_parameters(runs))
        if inspect.isawaitable(inserted):  # the connection may be synchronous too
            await inserted

    def _insert(self, tx: Transaction, runs: Iterable[NewRun]) -> None:
        tx.run_many(self._sql["RUN_INSERT"], self._new_runs_parameters(runs))

    def _new_runs_parameters(self, runs: Iterable[NewRun]) -> list[dict[str, Any]]:
        # in the order of their ids, or two who store the same runs could wait for each other
        return [self._new_run_parameters(run) for run in sorted(runs, key=lambda run: run.id)]

    def _new_run_parameters(self, run: NewRun) -> dict[str, Any]:
        return self.dialect.bind(
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
        )

    # --- claim

    def claim_due_runs(self, claim: Claim) -> Claimed:
        with self._connections.transaction() as tx:
            expired = self._end_expired_leases(tx) if claim.end_expired else []
            due = self._fetch(tx, "RUNS_DUE_SELECT", job_names=list(claim.job_names), limit=claim.batch_size)
            if due:
                due = self._lease(tx, due, claim)
        return Claimed([self._rows.claimed_run(row, claim) for row in due], expired)

    def _lease(self, tx: Transaction, due: list[tuple[Any, ...]], claim: Claim) -> list[tuple[Any, ...]]:
        """Lease the runs whose rows we have locked; where the database may think little of locks, those that were."""
        parameters = {
            "ids": [row[0] for row in due],
            "worker_name": claim.worker_name,
            "lease_token": claim.lease_token,
            "seconds": claim.lease_duration.total_seconds(),
        }
        if not self.dialect.tells_leased:
            self._run(tx, "RUNS_LEASE", **parameters)
            return due
        leased = {self._rows.uuid(row[0]) for row in self._fetch(tx, "RUNS_LEASE", **parameters)}
        return [row for row in due if self._rows.uuid(row[0]) in leased]

    def _end_expired_leases(self, tx: Transaction) -> list[ExpiredRun]:
        rows = self._fetch(tx, "RUNS_EXPIRED_SELECT", limit=EXPIRED_PER_CLAIM_MAX)
        return [self._end_expired_lease(tx, *row) for row in rows]

    def _end_expired_lease(
        self,
        tx: Transaction,
        id: Any,
        job_name: str,
        attempt: int,
        max_attempts: int,
        owner: str | None,
        token: Any,
        started_at: Any,
        cancel_requested_at: Any,
    ) -> ExpiredRun:
        """Failed if it was the last attempt, else pending again: the holder is gone, and its token with it."""
        error_type: str | None = LEASE_EXPIRED
        if cancel_requested_at is not None:
            status, error_type, message = RunStatus.CANCELLED, None, CANCELLED_MESSAGE
        elif attempt >= max_attempts:
            status, message = RunStatus.FAILED, f"lease of {owner} expired with no attempts remaining"
        else:
            status, message = RunStatus.PENDING, f"lease of {owner} expired"
        self._run(
            tx,
            "RUN_EXPIRED_UPDATE",
            id=id,
            status=status.value,
            terminal=int(status.terminal),
            error_type=error_type,
            error_message=message,
        )
        lease = Lease(self._rows.uuid(id), self._rows.uuid(token), attempt, owner or "")
        failure = Failure(error_type=LEASE_EXPIRED, error_message=message)
        self._keep_attempt(tx, lease, AttemptOutcome.EXPIRED, started_at, failure)
        return ExpiredRun(lease.run_id, job_name, attempt, owner, status)

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        with self._connections.read() as tx:
            rows = self._fetch(tx, "RUNS_OF_CLAIM_SELECT", lease_token=lease_token)
        leases = [Lease(self._rows.uuid(id), lease_token, attempt, owner) for id, attempt, owner in rows]
        return self.record([Released(lease) for lease in leases])

    # --- hold

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        if not leases:
            return Extended(frozenset(), frozenset())
        shown = {(lease.run_id, lease.token) for lease in leases}
        held: set[UUID] = set()
        cancel_requested: set[UUID] = set()
        with self._connections.transaction() as tx:
            for id, status, lease_token, _, _, cancel_requested_at in self._lock(tx, {run_id for run_id, _ in shown}):
                run_id = self._rows.uuid(id)
                if status == RunStatus.LEASED and (run_id, self._rows.uuid(lease_token)) in shown:
                    held.add(run_id)
                    if cancel_requested_at is not None:
                        cancel_requested.add(run_id)
            if held:
                self._run(tx, "LEASES_EXTEND", ids=sorted(held), seconds=lease_duration.total_seconds())
        return Extended(frozenset(held), frozenset(cancel_requested))

    def find_cancel_requests(self, leases: Sequence[Lease]) -> set[UUID]:
        if not leases:
            return set()
        shown = {(lease.run_id, lease.token) for lease in leases}
        with self._connections.read() as tx:
            rows = self._fetch(tx, "CANCEL_REQUESTS_SELECT", ids=sorted({run_id for run_id, _ in shown}))
        wanted = {(self._rows.uuid(id), self._rows.uuid(token)) for id, token in rows}
        return {run_id for run_id, _ in wanted & shown}

    def _lock(self, tx: Transaction, ids: Collection[UUID]) -> list[tuple[Any, ...]]:
        """Lock runs in the order of their ids, as everyone does, so that no two wait for each other."""
        return self._fetch(tx, "LEASES_SELECT_FOR_UPDATE", ids=sorted(ids))

    # --- record

    def record(self, outcomes: Sequence[Outcome]) -> set[UUID]:
        if not outcomes:
            return set()
        by_lease: dict[tuple[UUID, UUID | None], Outcome] = {(o.lease.run_id, o.lease.token): o for o in outcomes}
        recorded: set[UUID] = set()
        current: list[tuple[Outcome, Any, bool]] = []
        with self._connections.transaction() as tx:
            rows = self._lock(tx, {run_id for run_id, _ in by_lease})
            for id, status, lease_token, last_token, started_at, cancel_requested_at in rows:
                run_id = self._rows.uuid(id)
                if (run_id, self._rows.uuid_or_none(last_token)) in by_lease:
                    recorded.add(run_id)  # before, and the answer was lost
                outcome = by_lease.get((run_id, self._rows.uuid_or_none(lease_token)))
                if status == RunStatus.LEASED and outcome is not None:
                    current.append((outcome, started_at, cancel_requested_at is not None))
                    recorded.add(run_id)
            self._write(tx, current)
        return recorded

    def _write(self, tx: Transaction, current: Sequence[tuple[Outcome, Any, bool]]) -> None:
        succeeded: list[Succeeded] = []
        released: list[UUID] = []
        for outcome, started_at, cancel_requested in current:
            match outcome:
                case Succeeded():
                    succeeded.append(outcome)
                    if outcome.lease.attempt > 1:
                        self._keep_attempt(tx, outcome.lease, AttemptOutcome.SUCCEEDED, started_at)
                case Failed(failure=failure) if cancel_requested and outcome.retry_after is not None:
                    self._write_cancelled(tx, outcome.lease, outcome.output)
                    self._keep_attempt(tx, outcome.lease, AttemptOutcome.FAILED, started_at, failure)
                case Failed(failure=failure):
                    self._write_failed(tx, outcome)
                    self._keep_attempt(tx, outcome.lease, AttemptOutcome.FAILED, started_at, failure)
                case Released() if not cancel_requested:
                    released.append(outcome.lease.run_id)
                case Cancelled() | Released():
                    cancelled = outcome if isinstance(outcome, Cancelled) else Cancelled(outcome.lease)
                    self._write_cancelled(tx, cancelled.lease, cancelled.output)
                    self._keep_attempt(tx, cancelled.lease, AttemptOutcome.CANCELLED, started_at, cancelled.failure)
        if succeeded:
            self._write_succeeded(tx, succeeded)
        if released:
            self._run(tx, "RUNS_RELEASE", ids=sorted(released))

    def _write_succeeded(self, tx: Transaction, succeeded: Sequence[Succeeded]) -> None:
        self._run(tx, "RUNS_SUCCEED", ids=sorted(outcome.lease.run_id for outcome in succeeded))
        with_output = [outcome for outcome in succeeded if outcome.output]
        tx.run_many(
            self._sql["RUN_OUTPUT_UPDATE"],
            [self.dialect.bind({"id": o.lease.run_id, **_output(o.output)}) for o in with_output],
        )

    def _write_failed(self, tx: Transaction, outcome: Failed) -> None:
        parameters = {"id": outcome.lease.run_id, **_error(outcome.failure), **_output(outcome.output)}
        if outcome.retry_after is None:
            self._run(tx, "RUN_FAIL", **parameters)
        else:
            self._run(tx, "RUN_RETRY", **parameters, seconds=outcome.retry_after.total_seconds())

    def _write_cancelled(self, tx: Transaction, lease: Lease, output: Output) -> None:
        self._run(tx, "RUN_CANCEL_LEASED", id=lease.run_id, error_message=CANCELLED_MESSAGE, **_output(output))

    def _keep_attempt(
        self, tx: Transaction, lease: Lease, outcome: AttemptOutcome, started_at: Any, failure: Failure | None = None
    ) -> None:
        error = {"error_type": None, "error_message": None, "error_detail": None}
        self._run(
            tx,
            "ATTEMPT_INSERT",
            run_id=lease.run_id,
            attempt=lease.attempt,
            worker_name=lease.worker_name,
            started_at=started_at,
            outcome=outcome.value,
            signal=failure.signal if failure else None,
            **(_error(failure) if failure else error),
        )
        if lease.attempt > ATTEMPTS_KEPT_MAX:
            self._run(tx, "ATTEMPTS_FORGET", run_id=lease.run_id, attempt=lease.attempt - ATTEMPTS_KEPT_MAX)

    # --- cancel, requeue

    def cancel_run(self, run_id: UUID) -> bool:
        with self._connections.transaction() as tx:
            rows = self._fetch(tx, "RUN_SELECT_FOR_UPDATE", id=run_id)
            match RunStatus(rows[0][0]) if rows else None:
                case RunStatus.PENDING:
                    self._run(tx, "RUN_CANCEL_PENDING", id=run_id, error_message=CANCELLED_MESSAGE)
                case RunStatus.LEASED:
                    self._run(tx, "RUN_REQUEST_CANCEL", id=run_id)
                case _:
                    return False
        return True

    def requeue_run(self, run_id: UUID) -> UUID | None:
        with self._connections.transaction() as tx:
            rows = self._fetch(tx, "RUN_SELECT_FOR_UPDATE", id=run_id)
            if not rows or rows[0][0] not in (RunStatus.FAILED, RunStatus.CANCELLED):
                return None
            _, job_name, payload, max_attempts, recurring_job_name = rows[0]
            new_run = NewRun(
                id=new_run_id(),
                job_name=job_name,
                payload=payload,
                max_attempts=max_attempts,
                requeued_from=run_id,
                recurring=recurring_job_name is not None,
            )
            self._insert(tx, [new_run])
        return new_run.id

    # --- read

    def get_run(self, run_id: UUID) -> Run | None:
        with self._connections.read() as tx:
            rows = self._fetch(tx, "RUN_SELECT", id=run_id)
        return self._rows.run(rows[0]) if rows else None

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        with self._connections.read() as tx:
            rows = self._fetch(tx, "ATTEMPTS_SELECT", run_id=run_id)
        return [self._rows.attempt(row) for row in rows]

    def list_runs(
        self, *, take: int, status: RunStatus | None = None, job_name: str | None = None, due_first: bool = False
    ) -> list[Run]:
        if due_first:
            name = "RUNS_SELECT_DUE_FIRST"
        elif status and job_name:
            name = "RUNS_SELECT_BY_STATUS_AND_JOB_NAME"
        elif status:
            name = "RUNS_SELECT_BY_STATUS"
        else:
            name = "RUNS_SELECT_BY_JOB_NAME" if job_name else "RUNS_SELECT_RECENT"
        parameters: dict[str, Any] = {"limit": take}
        if status and not due_first:
            parameters["status"] = status.value
        if job_name and not due_first:
            parameters["job_name"] = job_name
        with self._connections.read() as tx:
            rows = self._fetch(tx, name, **parameters)
        return [self._rows.run(row) for row in rows]

    def count_runs(self) -> dict[RunStatus, int]:
        with self._connections.read() as tx:
            counted = dict(self._fetch(tx, "RUNS_COUNT_BY_STATUS"))
        return {status: counted.get(status.value, 0) for status in RunStatus}

    def count_due(self, job_names: Collection[str], count_max: int) -> int:
        with self._connections.read() as tx:
            return int(self._fetch(tx, "RUNS_COUNT_DUE", job_names=list(job_names), limit=count_max)[0][0])

    def measure_backlog(self, job_names: Collection[str], count_max: int) -> Backlog:
        with self._connections.read() as tx:
            ((due, first, now),) = self._fetch(tx, "BACKLOG_SELECT", job_names=list(job_names), limit=count_max)
        return Backlog(int(due), self._rows.instant(now) - self._rows.instant(first) if due else None)

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        with self._connections.transaction() as tx:
            before = self._schedule(tx, "JOB_SELECT_FOR_UPDATE", job_name)
            changed = change(before, self._now(tx))
            if changed is None:
                return before
            self._run(tx, "JOB_INSERT" if before is None else "JOB_UPDATE", **_schedule_parameters(changed))
            return self._schedule(tx, "JOB_SELECT", job_name)  # somebody else may have inserted it before us

    def get_schedule(self, job_name: str) -> Schedule | None:
        with self._connections.read() as tx:
            return self._schedule(tx, "JOB_SELECT", job_name)

    def list_schedules(self) -> list[Schedule]:
        with self._connections.read() as tx:
            return [self._rows.schedule(row) for row in self._fetch(tx, "JOBS_SELECT")]

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        with self._connections.read() as tx:
            rows = self._fetch(tx, "JOBS_SELECT_NEXT", job_names=list(job_names), seconds=within.total_seconds())
            return self._now(tx), [self._rows.schedule(row) for row in rows]

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        with self._connections.transaction() as tx:
            # in the order of their names, as everyone does, so that no two wait for each other
            names, seconds = list(job_names), every.total_seconds()
            unseen = self._fetch(tx, "JOBS_UNSEEN_SELECT_FOR_UPDATE", job_names=names, seconds=seconds)
            if unseen:
                self._run(tx, "JOBS_SEEN_UPDATE", job_names=[row[0] for row in unseen])

    def materialize_recurring_run(self, job_name: str, next_slot: NextSlot) -> NewRun | None:
        with self._connections.transaction() as tx:
            schedule = self._schedule(tx, "JOB_SELECT_SKIP_LOCKED", job_name)
            if schedule is None or not schedule.enabled:
                return None
            slot = next_slot(schedule, self._now(tx))
            if slot is None or (slot.slot is not None and self._has_to_wait(tx, schedule)):
                return None
            run = None
            if slot.slot is not None and not self._fetch(tx, "RUN_OF_SLOT_SELECT", job_name=job_name, slot=slot.slot):
                run = scheduled_run(schedule, slot.slot)
                self._insert(tx, [run])
            self._run(
                tx,
                "JOB_MATERIALIZED_UPDATE",
                job_name=job_name,
                next_run_at=slot.next_run_at,
                last_slot=slot.slot or schedule.last_slot,
            )
        return run

    def run_schedule_now(self, job_name: str) -> UUID | None:
        with self._connections.transaction() as tx:
            schedule = self._schedule(tx, "JOB_SELECT_FOR_UPDATE", job_name)
            if schedule is None:
                raise ScheduleError(f"there is no schedule of a job {job_name!r}")
            if self._has_to_wait(tx, schedule):
                return None
            run = scheduled_run(schedule, slot=None)
            self._insert(tx, [run])
        return run.id

    def _has_to_wait(self, tx: Transaction, schedule: Schedule) -> bool:
        """The row of the schedule is locked by us: nobody can make a run of it between this look and our insert."""
        if schedule.allow_concurrent_runs:
            return False
        return bool(self._fetch(tx, "RUNS_ACTIVE_SELECT", job_name=schedule.job_name, limit=1))

    def _schedule(self, tx: Transaction, statement: str, job_name: str) -> Schedule | None:
        rows = self._fetch(tx, statement, job_name=job_name)
        return self._rows.schedule(rows[0]) if rows else None

    # --- prune

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        with self._connections.transaction() as tx:
            rows = self._fetch(tx, "RUNS_PRUNABLE_SELECT", seconds=older_than.total_seconds(), limit=batch_size)
            ids = [row[0] for row in rows]
            if ids:
                self._run(tx, "ATTEMPTS_DELETE", ids=ids)
                self._run(tx, "RUNS_DELETE", ids=ids)
        return len(ids)

    def close(self) -> None:
        self._connections.close()

    # --- rows

    def _now(self, tx: Transaction) -> datetime:
        return self._rows.instant(self._fetch(tx, "CLOCK_SELECT")[0][0])

    def _fetch(self, tx: Transaction, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return tx.fetch(self._sql[name], self.dialect.bind(parameters))

    def _run(self, tx: Transaction, name: str, **parameters: Any) -> None:
        tx.run(self._sql[name], self.dialect.bind(parameters))


def _error(failure: Failure) -> Mapping[str, Any]:
    return {
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "error_detail": failure.error_detail,
    }


def _schedule_parameters(schedule: Schedule) -> Mapping[str, Any]:
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


def _output(output: Output) -> Mapping[str, Any]:
    return {"stdout_tail": output.stdout_tail, "stderr_tail": output.stderr_tail}
