"""The store in memory: the whole contract, for tests, demos and local runs. Gone with its process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from durablestack.errors import ScheduleError, StoreError
from durablestack.ids import new_run_id
from durablestack.runs import (
    Attempt,
    Lease,
    NewRun,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
)
from durablestack.schedules import Schedule
from durablestack.workers import Worker

from .contract import (
    EXPIRED_PER_CLAIM_MAX,
    WORKERS_PER_PRUNE_MAX,
    Backlog,
    ChangeSchedule,
    Claim,
    Claimed,
    Exchanged,
    ExpiredLook,
    Extended,
    Requests,
    SlotDue,
    Stack,
    scheduled_run,
    taken_by,
)
from .memory_outcomes import end_cancelled, end_expired_lease, record
from .memory_tables import Tables
from .steps import Steps, in_one


def _utc_now() -> datetime:
    return datetime.now(UTC)


class InMemoryStore:
    """See `durablestack.stores.contract.Store`, where each method is described.

    Args:
        clock: what time it is, for tests that decide it themselves.
    """

    durable = False
    exchanges_max = 1

    def __init__(self, clock: Callable[[], datetime] = _utc_now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._tables = Tables()

    def migrate(self) -> list[int]:
        return []

    def verify_schema(self) -> None:
        return

    def now(self) -> datetime:
        return self._clock()

    def server_facts(self) -> dict[str, str]:
        return {}

    def oldest_snapshot(self) -> None:
        return None

    def enqueue(self, runs: Sequence[NewRun], connection: Any = None) -> None:
        if connection is not None:
            raise StoreError("connection= was given, but the in-memory store has no transactions to take part in")
        with self._locked() as (tables, now):
            for new in runs:
                tables.add(new, now)

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        self.enqueue(runs, connection)

    # --- claim

    def warm_up(self) -> None:
        return

    def look_for_expired(self) -> Steps[ExpiredLook]:
        return in_one(self._look_for_expired)

    def _look_for_expired(self) -> ExpiredLook:
        with self._locked() as (tables, now):
            return _look(tables, now)

    def claim_due_runs(self, claim: Claim) -> Claimed:
        return self.exchange((), claim).claimed

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        with self._locked() as (tables, now):
            recorded = record(tables, outcomes, now)
            claimed = _claim(tables, claim, now, recorded)
        return Exchanged(recorded, claimed)

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        return in_one(partial(self.exchange, outcomes, claim))

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        with self._locked() as (tables, _):
            leases = [tables.runs[id].lease for id in tables.leased if tables.runs[id].lease_token == lease_token]
        return set(self.record([Released(lease) for lease in leases]))

    # --- hold

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        with self._locked() as (tables, now):
            held = [tables.runs[lease.run_id] for lease in leases if tables.holds(lease)]
            for run in held:
                tables.put(replace(run, lease_until=now + lease_duration))
        return Extended(
            frozenset(run.id for run in held),
            frozenset(run.id for run in held if run.cancel_requested_at is not None),
        )

    def find_requests(self, leases: Sequence[Lease]) -> Requests:
        with self._locked() as (tables, _):
            held = [tables.runs[lease.run_id] for lease in leases if tables.holds(lease)]
            return Requests(
                frozenset(run.id for run in held if run.cancel_requested_at is not None),
                frozenset(run.id for run in held if run.id in tables.stacks and tables.stacks[run.id].taken_at is None),
            )

    # --- record

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        with self._locked() as (tables, now):
            return record(tables, outcomes, now)

    # --- cancel, requeue

    def cancel_run(self, run_id: UUID) -> bool:
        with self._locked() as (tables, now):
            run = tables.runs.get(run_id)
            if run is None or run.status.terminal:
                return False
            run = tables.put(replace(run, cancel_requested_at=run.cancel_requested_at or now))
            if run.status is RunStatus.PENDING:
                end_cancelled(tables, run, now, Output(run.stdout_tail, run.stderr_tail))
            return True

    def requeue_run(self, run_id: UUID) -> UUID | None:
        with self._locked() as (tables, now):
            run = tables.runs.get(run_id)
            if run is None or run.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
                return None
            new = NewRun(
                id=new_run_id(),
                job_name=run.job_name,
                payload=run.payload,
                max_attempts=run.max_attempts,
                requeued_from=run.id,
                recurring=run.id in tables.recurring,
            )
            tables.add(new, now)
        return new.id

    # --- stacks

    def request_stack(self, run_id: UUID) -> bool:
        with self._locked() as (tables, now):
            if run_id not in tables.leased:
                return False
            tables.stacks[run_id] = Stack(now)
            return True

    def write_stack(self, lease: Lease, text: str) -> bool:
        with self._locked() as (tables, now):
            if not tables.holds(lease):
                return False
            asked = tables.stacks.get(lease.run_id)
            tables.stacks[lease.run_id] = Stack(asked.requested_at if asked else now, now, text)
            return True

    def get_stack(self, run_id: UUID) -> Stack | None:
        with self._locked() as (tables, _):
            return tables.stacks.get(run_id)

    # --- workers

    def register_worker(self, worker: Worker) -> None:
        with self._locked() as (tables, now):
            known, _ = tables.workers.get(worker.id, (worker, now))
            tables.workers[worker.id] = known, now

    def find_workers(self, boot_id: str) -> list[Worker]:
        with self._locked() as (tables, _):
            found = [worker for worker, _ in tables.workers.values() if worker.boot_id == boot_id]
        return sorted(found, key=lambda worker: worker.id)

    def forget_worker(self, worker_id: UUID) -> None:
        with self._locked() as (tables, _):
            tables.workers.pop(worker_id, None)

    def prune_workers(self, unseen_for: timedelta) -> int:
        with self._locked() as (tables, now):
            unseen = [id for id, (_, seen_at) in tables.workers.items() if seen_at <= now - unseen_for]
            for id in unseen[:WORKERS_PER_PRUNE_MAX]:
                del tables.workers[id]
        return len(unseen[:WORKERS_PER_PRUNE_MAX])

    def expire_leases(self, worker_id: UUID) -> int:
        with self._locked() as (tables, now):
            if worker_id not in tables.workers:
                return 0
            claimed = [tables.runs[id] for id in tables.leased if tables.worker_ids.get(id) == worker_id]
            held = [run for run in claimed if run.lease_until and run.lease_until > now]
            for run in held:
                tables.put(replace(run, lease_until=now))
        return len(held)

    # --- read

    def get_run(self, run_id: UUID) -> Run | None:
        with self._locked() as (tables, _):
            return tables.runs.get(run_id)

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        with self._locked() as (tables, _):
            return list(tables.attempts.get(run_id, ()))

    def list_runs(
        self, *, take: int, status: RunStatus | None = None, job_name: str | None = None, due_first: bool = False
    ) -> list[Run]:
        if due_first:
            status, job_name = RunStatus.PENDING, None
        with self._locked() as (tables, _):
            runs = [
                run
                for run in tables.runs.values()
                if (status is None or run.status is status) and (job_name is None or run.job_name == job_name)
            ]
        if due_first:
            return sorted(runs, key=lambda run: (run.scheduled_for, run.id))[:take]
        return sorted(runs, key=lambda run: run.id, reverse=True)[:take]

    def count_runs(self) -> dict[RunStatus, int]:
        with self._locked() as (tables, _):
            counts = dict.fromkeys(RunStatus, 0)
            for run in tables.runs.values():
                counts[run.status] += 1
            return counts

    def measure_backlog(self, job_names: Collection[str], count_max: int) -> Backlog:
        with self._locked() as (tables, now):
            due = [
                run.scheduled_for
                for run in tables.runs.values()
                if run.status is RunStatus.PENDING and run.scheduled_for <= now and run.job_name in job_names
            ]
        return Backlog(min(len(due), count_max), now - min(due) if due else None)

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        with self._locked() as (tables, now):
            before = tables.schedules.get(job_name)
            changed = change(before, now)
            if changed is not None:
                created_at = before.created_at if before is not None else now
                tables.schedules[job_name] = replace(changed, created_at=created_at, updated_at=now)
            return tables.schedules.get(job_name)

    def get_schedule(self, job_name: str) -> Schedule | None:
        with self._locked() as (tables, _):
            return tables.schedules.get(job_name)

    def list_schedules(self) -> list[Schedule]:
        with self._locked() as (tables, _):
            return [tables.schedules[job_name] for job_name in sorted(tables.schedules)]

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        with self._locked() as (tables, now):
            found = [
                (schedule.next_run_at, schedule.job_name, schedule)
                for name in job_names
                if (schedule := tables.schedules.get(name)) is not None
                and schedule.enabled
                and schedule.next_run_at is not None
                and schedule.next_run_at <= now + within
            ]
        return now, [schedule for _, _, schedule in sorted(found, key=lambda each: each[:2])]

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        with self._locked() as (tables, now):
            for name in job_names:
                schedule = tables.schedules.get(name)
                if schedule is not None and schedule.seen_at <= now - every:
                    tables.schedules[name] = replace(schedule, seen_at=now)

    def materialize_recurring_run(self, job_name: str, slot_due: SlotDue) -> NewRun | None:
        with self._locked() as (tables, now):
            schedule = tables.schedules.get(job_name)
            if schedule is None or not schedule.enabled:
                return None
            slot = slot_due(schedule, now)
            if slot is None or (slot.at is not None and _has_to_wait(tables, schedule)):
                return None
            run = None
            if slot.at is not None and (job_name, slot.at) not in tables.slots:
                run = scheduled_run(schedule, slot.at)
                tables.add(run, now)
            tables.schedules[job_name] = replace(
                schedule,
                next_run_at=slot.next_run_at,
                last_slot=slot.at or schedule.last_slot,
                error_message=None,
            )
        return run

    def run_schedule_now(self, job_name: str) -> UUID | None:
        with self._locked() as (tables, now):
            schedule = tables.schedules.get(job_name)
            if schedule is None:
                raise ScheduleError(f"there is no schedule of a job {job_name!r}")
            if _has_to_wait(tables, schedule):
                return None
            run = scheduled_run(schedule, slot=None)
            tables.add(run, now)
        return run.id

    # --- prune

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        with self._locked() as (tables, now):
            old = [
                run.id
                for run in tables.runs.values()
                if run.completed_at is not None and run.completed_at <= now - older_than
            ][:batch_size]
            for id in old:
                tables.remove(id)
        return len(old)

    def listen(self) -> None:
        """Whoever enqueues is in this process."""

    def close(self) -> None:
        return

    @contextmanager
    def _locked(self) -> Iterator[tuple[Tables, datetime]]:
        """What there is, for the length of the block for nobody else, and what time it is."""
        if os.getpid() != self._pid:
            raise StoreError("the in-memory store was carried into another process, which sees only a copy of it")
        with self._lock:
            yield self._tables, self._clock()


def _claim(tables: Tables, claim: Claim, now: datetime, recorded: Mapping[UUID, RunStatus]) -> Claimed:
    found = tables.expired(now)[:EXPIRED_PER_CLAIM_MAX] if claim.end_expired else []
    expired = [end_expired_lease(tables, run, now) for run in found]
    due = tables.take_due(now, lambda run: run.job_name in claim.job_names, claim.batch_size)
    taken = taken_by(claim, [_leased_by(claim, run, now) for run in due], recorded)
    for run in taken:
        tables.worker_ids[run.id] = claim.worker_id
        tables.put(run)
    for run in due:
        if tables.runs[run.id].status is RunStatus.PENDING:
            tables.give_back_due(run)
    look = _look(tables, now) if claim.looks_for_expired else None
    return Claimed(taken, expired, len(due) - len(taken), look)


def _leased_by(claim: Claim, run: Run, now: datetime) -> Run:
    return replace(
        run,
        status=RunStatus.LEASED,
        attempt=run.attempt + 1,
        lease_owner=claim.worker_name,
        lease_token=claim.lease_token,
        lease_until=now + claim.lease_duration,
        started_at=now,
    )


def _look(tables: Tables, now: datetime) -> ExpiredLook:
    return ExpiredLook(now, bool(tables.expired(now)))


def _has_to_wait(tables: Tables, schedule: Schedule) -> bool:
    return not schedule.allow_concurrent_runs and tables.has_active_recurring(schedule.job_name)
