"""The store on SQL databases. Lock candidates, decide in Python, write by key, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from durablestack.errors import StoreUnavailable
from durablestack.runs import Attempt, Lease, NewRun, Outcome, Released, Run, RunStatus
from durablestack.schedules import Schedule
from durablestack.workers import Worker

from . import claims, migrate, recurring, wishes
from .connections import Connections, Transaction
from .connections.transaction import Row
from .contract import (
    WORKERS_PER_PRUNE_MAX,
    Backlog,
    ChangeSchedule,
    Claim,
    Claimed,
    Exchanged,
    ExpiredLook,
    ExpiredRun,
    Extended,
    Listener,
    OldSnapshot,
    Requests,
    SlotDue,
    Stack,
)
from .dialects import Dialect
from .enqueuer import Enqueuer
from .leases import expire_leases, extend_leases, find_requests
from .low_water import LowWater
from .outcomes import ask_to_succeed, is_plain_success, record, rehearse_success, written_length
from .rows import Rows, worker_parameters
from .session import Answer, Session
from .statements import TEMPLATES
from .steps import Steps, in_one

_REHEARSALS = 6
"""Until connections to PostgreSQL keep a statement."""

_WRITTEN_IN_STEPS_MAX = 1_000_000
"""Characters. To put more into a statement keeps others waiting: it is done in a thread."""

_CLAIMERS_MAX = 16
"""Of so many sets of jobs it is remembered how far claims have come."""


class SqlStore:
    """See `durablestack.stores.contract.Store`, where each method is described."""

    durable = True

    def __init__(
        self, connections: Connections, dialect: Dialect, prefix: str = "", *, wake_on_enqueue: bool = True
    ) -> None:
        self.dialect = dialect
        self.exchanges_max = dialect.writers_max
        self.prefix = prefix
        self._connections = connections
        self._rows = Rows(dialect)
        templates = {**TEMPLATES, **dialect.own}
        self._sql = {name: dialect.render(name, template, prefix) for name, template in templates.items()}
        self._low_water = lru_cache(maxsize=_CLAIMERS_MAX)(lambda job_names: LowWater())
        self._listens = wake_on_enqueue
        self._channel = f"{prefix}durable_stack"
        if dialect.hint and wake_on_enqueue:
            self._sql["HINT"] = dialect.render("HINT", dialect.hint, prefix)
        self._enqueuer = Enqueuer(connections, self._sql, dialect, self._session, self._channel)

    # --- schema

    def migrate(self) -> list[int]:
        return migrate.migrate(self._connections, self.dialect, self.prefix)

    def verify_schema(self) -> None:
        migrate.verify(self._connections, self.dialect, self.prefix)

    def now(self) -> datetime:
        with self._read() as tx:
            return tx.now()

    def server_facts(self) -> dict[str, str]:
        with self._connections.read() as tx:
            return {name: str(tx.fetch(probe, {})[0][-1]) for name, probe in self.dialect.facts.items()}

    def oldest_snapshot(self) -> OldSnapshot | None:
        if not self.dialect.oldest_snapshot:
            return None
        with self._connections.read() as tx:
            rows = tx.fetch(self.dialect.oldest_snapshot, {})
        return self._rows.old_snapshot(rows[0]) if rows else None

    # --- enqueue

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        if connection is None:
            self._enqueuer.enqueue(runs)
        else:
            self._enqueuer.enqueue_with(connection, runs)

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        await self._enqueuer.enqueue_with_async(connection, runs)

    # --- claim, record

    def warm_up(self) -> None:
        if "RUNS_CLAIM" not in self._sql:
            return
        for _ in range(_REHEARSALS):
            with self._transaction() as tx:
                rehearse_success(tx)
                claims.rehearse(tx)

    def look_for_expired(self) -> Steps[ExpiredLook]:
        waits = self._connections.waits_of_transaction(lambda tx: claims.ask_for_expired(self._session(tx)))
        if waits is None:
            return (yield from in_one(self._look_for_expired))
        look = yield from waits
        return look()

    def _look_for_expired(self) -> ExpiredLook:
        with self._look() as tx:
            return claims.ask_for_expired(tx)()

    def claim_due_runs(self, claim: Claim) -> Claimed:
        return self.exchange((), claim).claimed

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        """First the rows that we may have to wait for: the claim waits for none, so that no two wait for each other."""
        low_water = self._low_water(frozenset(claim.job_names))
        if not claim.end_expired and self._at_once(outcomes):
            return self._exchange_at_once(outcomes, claim, low_water)
        with self._transaction() as tx:
            recorded = record(tx, outcomes) if outcomes else {}
            claimed = claims.claim_due_runs(tx, claim, recorded, low_water)
        self._forget_marks(outcomes, claimed.expired)
        return Exchanged(recorded, claimed)

    def _forget_marks(self, outcomes: Sequence[Outcome], expired: Sequence[ExpiredRun] = ()) -> None:
        """What was given back, or has expired, is due as it was before, which may be before the mark."""
        if expired or any(isinstance(outcome, Released) for outcome in outcomes):
            self._low_water.cache_clear()

    def _at_once(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether the database decides by itself what becomes of these."""
        return "RUNS_SUCCEED_SHOWN" in self._sql and all(map(is_plain_success, outcomes))

    def _exchange_at_once(self, outcomes: Sequence[Outcome], claim: Claim, low_water: LowWater) -> Exchanged:
        """The same in a single journey."""
        with self._transaction() as tx:
            succeeded, brought = _ask_to_exchange(tx, outcomes, claim, low_water)
        return self._exchanged(outcomes, succeeded(), brought())

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        low_water = self._low_water(frozenset(claim.job_names))
        waits = None
        is_light = written_length(outcomes) <= _WRITTEN_IN_STEPS_MAX
        if is_light and not claim.end_expired and self._at_once(outcomes):
            waits = self._connections.waits_of_transaction(
                lambda tx: _ask_to_exchange(self._session(tx), outcomes, claim, low_water)
            )
        if waits is None:
            return (yield from in_one(partial(self.exchange, outcomes, claim)))
        succeeded, brought = yield from waits
        rows, claimed = succeeded(), brought()
        if _all_succeeded(outcomes, rows):
            return self._exchanged(outcomes, rows, claimed)
        return (yield from in_one(partial(self._exchanged, outcomes, rows, claimed)))

    def _exchanged(self, outcomes: Sequence[Outcome], rows: list[Row], claimed: Claimed) -> Exchanged:
        """`rows` is the answer of `ask_to_succeed`."""
        try:
            return Exchanged(self._succeeded(outcomes, rows), claimed)
        except StoreUnavailable as error:  # and the claim is committed
            raise StoreUnavailable(str(error), uncertain=True) from error

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        if not outcomes:
            return {}
        if self._at_once(outcomes):
            with self._transaction() as tx:
                succeeded = ask_to_succeed(tx, outcomes)
            return self._succeeded(outcomes, succeeded())
        with self._transaction() as tx:
            recorded = record(tx, outcomes)
        self._forget_marks(outcomes)
        return recorded

    def _succeeded(self, outcomes: Sequence[Outcome], rows: list[Row]) -> dict[UUID, RunStatus]:
        """Where not all are, it is asked which: the others were recorded before, or are refused now as then."""
        if _all_succeeded(outcomes, rows):
            return {outcome.lease.run_id: RunStatus.SUCCEEDED for outcome in outcomes}
        with self._transaction() as tx:
            return record(tx, outcomes)

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        with self._read() as tx:
            releases = claims.releases_of_claim(tx, lease_token)
        return set(self.record(releases))

    # --- hold

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        if not leases:
            return Extended(frozenset(), frozenset())
        with self._transaction() as tx:
            return extend_leases(tx, leases, lease_duration)

    def find_requests(self, leases: Sequence[Lease]) -> Requests:
        if not leases:
            return Requests()
        with self._read() as tx:
            return find_requests(tx, leases)

    # --- one run

    def cancel_run(self, run_id: UUID) -> bool:
        with self._transaction() as tx:
            return wishes.cancel_run(tx, run_id)

    def requeue_run(self, run_id: UUID) -> UUID | None:
        with self._transaction() as tx:
            run = wishes.requeued(tx, run_id)
            if run is not None:
                self._enqueuer.insert_one(tx, run)
        return run.id if run is not None else None

    def request_stack(self, run_id: UUID) -> bool:
        with self._transaction() as tx:
            return wishes.request_stack(tx, run_id)

    def write_stack(self, lease: Lease, text: str) -> bool:
        with self._transaction() as tx:
            return wishes.write_stack(tx, lease, text)

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
            return expire_leases(tx, worker_id)

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
        with self._look() as tx:
            ((due, first, now),) = tx.fetch("BACKLOG_SELECT", job_names=list(job_names), limit=count_max)
        return Backlog(int(due), self._rows.instant(now) - self._rows.instant(first) if due else None)

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        with self._transaction() as tx:
            return recurring.change_schedule(tx, job_name, change)

    def get_schedule(self, job_name: str) -> Schedule | None:
        with self._read() as tx:
            return recurring.find_schedule(tx, job_name)

    def list_schedules(self) -> list[Schedule]:
        with self._read() as tx:
            return self._rows.readable(tx.fetch("JOBS_SELECT"), self._rows.schedule)

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        with self._read() as tx:
            rows = tx.fetch("JOBS_SELECT_NEXT", job_names=list(job_names), seconds=within.total_seconds())
            return tx.now(), self._rows.readable(rows, self._rows.schedule)

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        with self._transaction() as tx:
            recurring.keep_seen(tx, job_names, every)

    def materialize_recurring_run(self, job_name: str, slot_due: SlotDue) -> NewRun | None:
        with self._transaction() as tx:
            return recurring.materialize(tx, job_name, slot_due, self._enqueuer.insert_one)

    def run_schedule_now(self, job_name: str) -> UUID | None:
        with self._transaction() as tx:
            return recurring.run_now(tx, job_name, self._enqueuer.insert_one)

    # --- prune

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        with self._transaction() as tx:
            rows = tx.fetch("RUNS_PRUNABLE_SELECT", seconds=older_than.total_seconds(), limit=batch_size)
            ids = [row[0] for row in rows]
            if ids:
                tx.run("ATTEMPTS_DELETE", ids=ids)
                tx.run("RUNS_DELETE", ids=ids)
        return len(ids)

    # --- hints

    def listen(self) -> Listener | None:
        return self._connections.listen(self._channel) if self._listens else None

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

    def _look(self) -> AbstractContextManager[Session]:
        """A read that is to stop early."""
        return self._transaction() if self.dialect.begin_plans else self._read()

    def _session(self, tx: Transaction) -> Session:
        return Session(tx, self._sql, self.dialect, self._rows)


def _ask_to_exchange(
    tx: Session, outcomes: Sequence[Outcome], claim: Claim, low_water: LowWater
) -> tuple[Answer, Callable[[], Claimed]]:
    return ask_to_succeed(tx, outcomes), claims.ask_to_claim(tx, claim, low_water)


def _all_succeeded(outcomes: Sequence[Outcome], rows: list[Row]) -> bool:
    return bool(rows[0][0] == len(outcomes))
