"""The store on SQL databases. Lock candidates, decide in Python, write by key, in one transaction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from durablestack.errors import ScheduleError
from durablestack.ids import new_run_id
from durablestack.runs import (
    CANCELLED_MESSAGE,
    Attempt,
    Failure,
    Lease,
    NewRun,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
)
from durablestack.schedules import Schedule
from durablestack.text import ERROR_MESSAGE_LENGTH_MAX, clean
from durablestack.workers import Worker

from . import migrate
from .connections import Connections, Transaction
from .connections.callers import async_driver_connection, in_callers_transaction
from .contract import (
    EXPIRED_PER_CLAIM_MAX,
    WORKERS_PER_PRUNE_MAX,
    Backlog,
    ChangeSchedule,
    Claim,
    Claimed,
    Extended,
    Requests,
    SlotDue,
    Stack,
    scheduled_run,
)
from .dialects import Dialect
from .outcomes import Recordable, end_expired_lease, write_outcomes
from .rows import (
    Rows,
    UnreadableRow,
    Value,
    error_parameters,
    new_run_parameters,
    output_parameters,
    schedule_parameters,
    worker_parameters,
)
from .session import Session
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
        with self._read() as tx:
            return self._now(tx)

    def server_facts(self) -> dict[str, str]:
        with self._connections.read() as tx:
            return {name: str(tx.fetch(probe, {})[0][-1]) for name, probe in self.dialect.facts.items()}

    # --- enqueue

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        if connection is not None:
            self._insert(self._session(in_callers_transaction(connection, self._connections.driver)), runs)
            return
        with self._transaction() as tx:
            self._insert(tx, runs)

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        cursor = (await async_driver_connection(connection, self._connections.driver)).cursor()
        parameters = [self.dialect.bind(each) for each in new_run_parameters(runs)]
        inserted = cursor.executemany(self._sql["RUN_INSERT"], parameters)
        if inspect.isawaitable(inserted):  # the connection may be synchronous too
            await inserted

    def _insert(self, tx: Session, runs: Sequence[NewRun]) -> None:
        tx.run_many("RUN_INSERT", new_run_parameters(runs))

    # --- claim

    def claim_due_runs(self, claim: Claim) -> Claimed:
        with self._transaction() as tx:
            rows = tx.fetch("RUNS_EXPIRED_SELECT", limit=EXPIRED_PER_CLAIM_MAX) if claim.end_expired else []
            expired = self._each(tx, rows, lambda row: end_expired_lease(tx, self._rows, row))
            rows = tx.fetch("RUNS_DUE_SELECT", job_names=list(claim.job_names), limit=claim.batch_size)
            runs = self._each(tx, rows, lambda row: self._rows.claimed_run(row, claim))
            if runs:
                runs = self._lease(tx, runs, claim)
        return Claimed(runs, expired)

    def _each(self, tx: Session, rows: list[tuple[Any, ...]], read: Callable[[tuple[Any, ...]], Value]) -> list[Value]:
        """What is made of each run; one whose row cannot be read fails for good, or no claim would get past it."""
        values: list[Value] = []
        for row in rows:
            try:
                values.append(read(row))
            except UnreadableRow as error:
                self._rows.tell(error)
                failure = Failure(error_type="UnreadableRow", error_message=clean(str(error), ERROR_MESSAGE_LENGTH_MAX))
                tx.run("RUN_FAIL", id=row[0], crashed=0, **error_parameters(failure), **output_parameters(Output()))
        return values

    def _lease(self, tx: Session, runs: list[Run], claim: Claim) -> list[Run]:
        """Lease the runs whose rows we have locked; where the database may think little of locks, those that were."""
        parameters = {
            "ids": [run.id for run in runs],
            "worker_name": claim.worker_name,
            "worker_id": claim.worker_id,
            "lease_token": claim.lease_token,
            "seconds": claim.lease_duration.total_seconds(),
        }
        if not self.dialect.tells_leased:
            tx.run("RUNS_LEASE", **parameters)
            return runs
        leased = {self._rows.uuid(row[0]) for row in tx.fetch("RUNS_LEASE", **parameters)}
        return [run for run in runs if run.id in leased]

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        with self._read() as tx:
            rows = tx.fetch("RUNS_OF_CLAIM_SELECT", lease_token=lease_token)
        leases = [Lease(self._rows.uuid(id), lease_token, attempt, owner) for id, attempt, owner in rows]
        return set(self.record([Released(lease) for lease in leases]))

    # --- hold

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        if not leases:
            return Extended(frozenset(), frozenset())
        shown = {(lease.run_id, lease.token) for lease in leases}
        held: set[UUID] = set()
        cancel_requested: set[UUID] = set()
        with self._transaction() as tx:
            for id, status, lease_token, _, _, cancel_requested_at in self._lock(tx, {run_id for run_id, _ in shown}):
                run_id = self._rows.uuid(id)
                if status == RunStatus.LEASED and (run_id, self._rows.uuid_or_none(lease_token)) in shown:
                    held.add(run_id)
                    if cancel_requested_at is not None:
                        cancel_requested.add(run_id)
            if held:
                tx.run("LEASES_EXTEND", ids=sorted(held), seconds=lease_duration.total_seconds())
        return Extended(frozenset(held), frozenset(cancel_requested))

    def find_requests(self, leases: Sequence[Lease]) -> Requests:
        if not leases:
            return Requests()
        shown = {(lease.run_id, lease.token) for lease in leases}
        cancel: set[UUID] = set()
        stack: set[UUID] = set()
        with self._read() as tx:
            rows = tx.fetch("REQUESTS_SELECT", ids=sorted({run_id for run_id, _ in shown}))
        for id, token, cancel_requested_at, stack_requested_at, stack_taken_at in rows:
            run_id = self._rows.uuid(id)
            if (run_id, self._rows.uuid_or_none(token)) in shown:
                if cancel_requested_at is not None:
                    cancel.add(run_id)
                if stack_requested_at is not None and stack_taken_at is None:
                    stack.add(run_id)
        return Requests(frozenset(cancel), frozenset(stack))

    def _lock(self, tx: Session, ids: Collection[UUID]) -> list[tuple[Any, ...]]:
        """Lock runs in the order of their ids, as everyone does, so that no two wait for each other."""
        return tx.fetch("LEASES_SELECT_FOR_UPDATE", ids=sorted(ids))

    def _lock_leased(self, tx: Session, ids: Collection[UUID]) -> set[tuple[UUID, UUID | None]]:
        """Lock runs, and say which are leased, and under which token."""
        return {
            (self._rows.uuid(id), self._rows.uuid_or_none(token))
            for id, status, token, *_ in self._lock(tx, ids)
            if status == RunStatus.LEASED
        }

    # --- record

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        if not outcomes:
            return {}
        by_lease: dict[tuple[UUID, UUID | None], Outcome] = {(o.lease.run_id, o.lease.token): o for o in outcomes}
        recorded: dict[UUID, RunStatus] = {}
        recordables: list[Recordable] = []
        with self._transaction() as tx:
            rows = self._lock(tx, {run_id for run_id, _ in by_lease})
            for id, status, lease_token, last_token, started_at, cancel_requested_at in rows:
                run_id = self._rows.uuid(id)
                if (run_id, self._rows.uuid_or_none(last_token)) in by_lease:
                    recorded[run_id] = RunStatus(status)  # before, and the answer was lost
                outcome = by_lease.get((run_id, self._rows.uuid_or_none(lease_token)))
                if status == RunStatus.LEASED and outcome is not None:
                    recordable = Recordable(outcome, started_at, cancel_requested_at is not None)
                    recordables.append(recordable)
                    recorded[run_id] = recordable.status
            write_outcomes(tx, recordables)
        return recorded

    # --- cancel, requeue

    def cancel_run(self, run_id: UUID) -> bool:
        with self._transaction() as tx:
            rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
            match RunStatus(rows[0][0]) if rows else None:
                case RunStatus.PENDING:
                    tx.run("RUN_CANCEL_PENDING", id=run_id, error_message=CANCELLED_MESSAGE)
                case RunStatus.LEASED:
                    tx.run("RUN_REQUEST_CANCEL", id=run_id)
                case _:
                    return False
        return True

    def requeue_run(self, run_id: UUID) -> UUID | None:
        with self._transaction() as tx:
            rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
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

    # --- stacks

    def request_stack(self, run_id: UUID) -> bool:
        with self._transaction() as tx:
            rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
            leased = bool(rows) and rows[0][0] == RunStatus.LEASED
            if leased:
                tx.run("STACK_REQUEST", id=run_id)
        return leased

    def write_stack(self, lease: Lease, text: str) -> bool:
        with self._transaction() as tx:
            held = self._lock_leased(tx, {lease.run_id}) == {(lease.run_id, lease.token)}
            if held:
                tx.run("STACK_WRITE", id=lease.run_id, stack=text)
        return held

    def get_stack(self, run_id: UUID) -> Stack | None:
        with self._read() as tx:
            rows = tx.fetch("STACK_SELECT", id=run_id)
        return self._rows.stack(rows[0]) if rows else None

    # --- workers

    def register_worker(self, worker: Worker) -> None:
        with self._transaction() as tx:
            tx.run("WORKER_INSERT", **worker_parameters(worker))
            tx.run("WORKER_SEEN_UPDATE", id=worker.id)

    def find_workers(self, boot_id: str) -> list[Worker]:
        with self._read() as tx:
            return self._rows.readable(tx.fetch("WORKERS_SELECT", boot_id=boot_id), self._rows.worker)

    def forget_worker(self, worker_id: UUID) -> None:
        with self._transaction() as tx:
            tx.run("WORKER_DELETE", id=worker_id)

    def prune_workers(self, unseen_for: timedelta) -> int:
        with self._transaction() as tx:
            seconds = unseen_for.total_seconds()
            rows = tx.fetch("WORKERS_UNSEEN_SELECT", seconds=seconds, limit=WORKERS_PER_PRUNE_MAX)
            tx.run_many("WORKER_DELETE", [{"id": row[0]} for row in rows])
        return len(rows)

    def expire_leases(self, worker_id: UUID) -> int:
        with self._transaction() as tx:
            rows = tx.fetch("RUNS_OF_WORKER_SELECT", worker_id=worker_id)
            found = {(self._rows.uuid(id), self._rows.uuid_or_none(token)) for id, token in rows}
            held = self._lock_leased(tx, {run_id for run_id, _ in found}) & found if found else set()
            if held:
                tx.run("LEASES_EXPIRE", ids=sorted(run_id for run_id, _ in held))
        return len(held)

    # --- read

    def get_run(self, run_id: UUID) -> Run | None:
        with self._read() as tx:
            rows = tx.fetch("RUN_SELECT", id=run_id)
        return self._rows.run(rows[0]) if rows else None

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        with self._read() as tx:
            rows = tx.fetch("ATTEMPTS_SELECT", run_id=run_id)
        return [self._rows.attempt(row) for row in rows]

    def list_runs(
        self, *, take: int, status: RunStatus | None = None, job_name: str | None = None, due_first: bool = False
    ) -> list[Run]:
        if due_first:
            name = "RUNS_SELECT_DUE_FIRST"
            status, job_name = None, None
        elif status is not None and job_name is not None:
            name = "RUNS_SELECT_BY_STATUS_AND_JOB_NAME"
        elif status is not None:
            name = "RUNS_SELECT_BY_STATUS"
        else:
            name = "RUNS_SELECT_RECENT" if job_name is None else "RUNS_SELECT_BY_JOB_NAME"
        filters = {"status": status and status.value, "job_name": job_name}
        with self._read() as tx:
            rows = tx.fetch(name, limit=take, **{key: value for key, value in filters.items() if value is not None})
        return self._rows.readable(rows, self._rows.run)

    def count_runs(self) -> dict[RunStatus, int]:
        with self._read() as tx:
            counted: dict[str, int] = dict(tx.fetch("RUNS_COUNT_BY_STATUS"))
        return {status: counted.get(status.value, 0) for status in RunStatus}

    def measure_backlog(self, job_names: Collection[str], count_max: int) -> Backlog:
        with self._read() as tx:
            ((due, first, now),) = tx.fetch("BACKLOG_SELECT", job_names=list(job_names), limit=count_max)
        return Backlog(int(due), self._rows.instant(now) - self._rows.instant(first) if due else None)

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        with self._transaction() as tx:
            before = self._schedule(tx, "JOB_SELECT_FOR_UPDATE", job_name)
            changed = change(before, self._now(tx))
            if changed is None:
                return before
            tx.run("JOB_INSERT" if before is None else "JOB_UPDATE", **schedule_parameters(changed))
            return self._schedule(tx, "JOB_SELECT", job_name)  # somebody else may have inserted it before us

    def get_schedule(self, job_name: str) -> Schedule | None:
        with self._read() as tx:
            return self._schedule(tx, "JOB_SELECT", job_name)

    def list_schedules(self) -> list[Schedule]:
        with self._read() as tx:
            return self._rows.readable(tx.fetch("JOBS_SELECT"), self._rows.schedule)

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        with self._read() as tx:
            rows = tx.fetch("JOBS_SELECT_NEXT", job_names=list(job_names), seconds=within.total_seconds())
            return self._now(tx), self._rows.readable(rows, self._rows.schedule)

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        with self._transaction() as tx:
            # in the order of their names, as everyone does, so that no two wait for each other
            names, seconds = list(job_names), every.total_seconds()
            unseen = tx.fetch("JOBS_UNSEEN_SELECT_FOR_UPDATE", job_names=names, seconds=seconds)
            if unseen:
                tx.run("JOBS_SEEN_UPDATE", job_names=[row[0] for row in unseen])

    def materialize_recurring_run(self, job_name: str, slot_due: SlotDue) -> NewRun | None:
        with self._transaction() as tx:
            schedule = self._schedule(tx, "JOB_SELECT_SKIP_LOCKED", job_name)
            if schedule is None or not schedule.enabled:
                return None
            slot = slot_due(schedule, self._now(tx))
            if slot is None or (slot.at is not None and self._has_to_wait(tx, schedule)):
                return None
            run = None
            if slot.at is not None and not tx.fetch("RUN_OF_SLOT_SELECT", job_name=job_name, slot=slot.at):
                run = scheduled_run(schedule, slot.at)
                self._insert(tx, [run])
            tx.run(
                "JOB_MATERIALIZED_UPDATE",
                job_name=job_name,
                next_run_at=slot.next_run_at,
                last_slot=slot.at or schedule.last_slot,
            )
        return run

    def run_schedule_now(self, job_name: str) -> UUID | None:
        with self._transaction() as tx:
            schedule = self._schedule(tx, "JOB_SELECT_FOR_UPDATE", job_name)
            if schedule is None:
                raise ScheduleError(f"there is no schedule of a job {job_name!r}")
            if self._has_to_wait(tx, schedule):
                return None
            run = scheduled_run(schedule, slot=None)
            self._insert(tx, [run])
        return run.id

    def _has_to_wait(self, tx: Session, schedule: Schedule) -> bool:
        """The row of the schedule is locked by us: nobody can make a run of it between this look and our insert."""
        if schedule.allow_concurrent_runs:
            return False
        return bool(tx.fetch("RUNS_ACTIVE_SELECT", job_name=schedule.job_name, limit=1))

    def _schedule(self, tx: Session, statement: str, job_name: str) -> Schedule | None:
        rows = tx.fetch(statement, job_name=job_name)
        return self._rows.schedule(rows[0]) if rows else None

    # --- prune

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        with self._transaction() as tx:
            rows = tx.fetch("RUNS_PRUNABLE_SELECT", seconds=older_than.total_seconds(), limit=batch_size)
            ids = [row[0] for row in rows]
            if ids:
                tx.run("ATTEMPTS_DELETE", ids=ids)
                tx.run("RUNS_DELETE", ids=ids)
        return len(ids)

    def close(self) -> None:
        self._connections.close()

    # --- transactions

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._connections.transaction() as tx:
            yield self._session(tx)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """Single statements, each for itself."""
        with self._connections.read() as tx:
            yield self._session(tx)

    def _session(self, tx: Transaction) -> Session:
        return Session(tx, self._sql, self.dialect)

    def _now(self, tx: Session) -> datetime:
        return self._rows.instant(tx.fetch("CLOCK_SELECT")[0][0])
