"""The store in memory: the whole contract, for tests, demos and local runs. Gone with its process."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from msgspec.structs import asdict, replace

from durablestack.errors import ScheduleError, StoreError
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
from durablestack.workers import Worker

from .contract import (
    ATTEMPTS_KEPT_MAX,
    EXPIRED_PER_CLAIM_MAX,
    WORKERS_PER_PRUNE_MAX,
    Backlog,
    ChangeSchedule,
    Claim,
    Claimed,
    Exchanged,
    ExpiredLook,
    ExpiredRun,
    Extended,
    Requests,
    SlotDue,
    Stack,
    after_expiry,
    after_outcome,
    scheduled_run,
    taken_by,
)
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
        self._runs: dict[UUID, Run] = {}
        self._last_tokens: dict[UUID, UUID] = {}
        self._worker_ids: dict[UUID, UUID | None] = {}
        self._stacks: dict[UUID, Stack] = {}
        self._workers: dict[UUID, tuple[Worker, datetime]] = {}
        self._attempts: dict[UUID, list[Attempt]] = {}
        # what is pending, earliest first; an entry is good while its run is pending and due at that instant
        self._due: list[tuple[datetime, UUID]] = []
        self._leased: set[UUID] = set()
        self._schedules: dict[str, Schedule] = {}
        # the runs of scheduled jobs that are pending or leased, by job
        self._active_recurring: dict[str, set[UUID]] = {}
        self._recurring: set[UUID] = set()
        self._slots: set[tuple[str, datetime]] = set()

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
        with self._locked() as now:
            for new in runs:
                self._add(new, now)

    async def enqueue_async(self, runs: Sequence[NewRun], connection: Any) -> None:
        self.enqueue(runs, connection)

    def _add(self, new: NewRun, now: datetime) -> None:
        if new.id in self._runs:
            return
        if new.recurring:
            self._recurring.add(new.id)
        if new.slot is not None:
            self._slots.add((new.job_name, new.slot))
        self._put(
            Run(
                id=new.id,
                job_name=new.job_name,
                status=RunStatus.PENDING,
                payload=new.payload,
                scheduled_for=new.scheduled_for.astimezone(UTC) if new.scheduled_for else now,
                attempt=0,
                max_attempts=new.max_attempts,
                created_at=now,
                requeued_from=new.requeued_from,
                slot=new.slot,
                trace_context=new.trace_context,
            )
        )

    # --- claim

    def warm_up(self) -> None:
        return

    def look_for_expired(self) -> Steps[ExpiredLook]:
        return in_one(self._look_for_expired)

    def _look_for_expired(self) -> ExpiredLook:
        with self._locked() as now:
            return self._look(now)

    def _look(self, now: datetime) -> ExpiredLook:
        return ExpiredLook(now, bool(self._expired(now)))

    def claim_due_runs(self, claim: Claim) -> Claimed:
        return self.exchange((), claim).claimed

    def exchange(self, outcomes: Sequence[Outcome], claim: Claim) -> Exchanged:
        with self._locked() as now:
            recorded = self._record(outcomes, now)
            claimed = self._claim(claim, now, recorded)
        return Exchanged(recorded, claimed)

    def exchange_in_steps(self, outcomes: Sequence[Outcome], claim: Claim) -> Steps[Exchanged]:
        return in_one(partial(self.exchange, outcomes, claim))

    def _claim(self, claim: Claim, now: datetime, recorded: Mapping[UUID, RunStatus]) -> Claimed:
        found = self._expired(now)[:EXPIRED_PER_CLAIM_MAX] if claim.end_expired else []
        expired = [self._end_expired_lease(run, now) for run in found]
        due = [self._leased_by(claim, run, now) for run in self._take_due(claim, now)]
        taken = taken_by(claim, due, recorded)
        for run in taken:
            self._worker_ids[run.id] = claim.worker_id
            self._put(run)
        for run in due:
            if self._runs[run.id].status is RunStatus.PENDING:
                heapq.heappush(self._due, (run.scheduled_for, run.id))
        look = self._look(now) if claim.looks_for_expired else None
        return Claimed(taken, expired, len(due) - len(taken), look)

    def _expired(self, now: datetime) -> list[Run]:
        leased = (self._runs[id] for id in sorted(self._leased))
        return [run for run in leased if run.lease_until is not None and run.lease_until <= now]

    def _end_expired_lease(self, run: Run, now: datetime) -> ExpiredRun:
        cancel_requested = run.cancel_requested_at is not None
        status, message = after_expiry(
            run.attempt, run.max_attempts, run.lease_owner, cancel_requested=cancel_requested
        )
        failure = Failure(error_type=LEASE_EXPIRED, error_message=message)
        self._keep_attempt(run, run.lease, AttemptOutcome.EXPIRED, now, failure)
        self._put(
            self._unleased(
                run,
                status=status,
                completed_at=now if status.terminal else None,
                error_type=None if status is RunStatus.CANCELLED else LEASE_EXPIRED,
                error_message=message,
                error_detail=None,
            )
        )
        return ExpiredRun(run.id, run.job_name, run.attempt, run.lease_owner, status)

    def _take_due(self, claim: Claim, now: datetime) -> list[Run]:
        taken: list[Run] = []
        passed_over: list[tuple[datetime, UUID]] = []
        while self._due and self._due[0][0] <= now and len(taken) < claim.batch_size:
            entry = heapq.heappop(self._due)
            run = self._runs.get(entry[1])
            if run is None or run.status is not RunStatus.PENDING or run.scheduled_for != entry[0]:
                continue
            if run.job_name in claim.job_names:
                taken.append(run)
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._due, entry)
        return taken

    @staticmethod
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

    def release_claim(self, lease_token: UUID) -> set[UUID]:
        with self._locked():
            leases = [self._runs[id].lease for id in self._leased if self._runs[id].lease_token == lease_token]
        return set(self.record([Released(lease) for lease in leases]))

    # --- hold

    def extend_leases(self, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
        with self._locked() as now:
            held = [self._runs[lease.run_id] for lease in leases if self._holds(lease)]
            for run in held:
                self._put(replace(run, lease_until=now + lease_duration))
        return Extended(
            frozenset(run.id for run in held),
            frozenset(run.id for run in held if run.cancel_requested_at is not None),
        )

    def find_requests(self, leases: Sequence[Lease]) -> Requests:
        with self._locked():
            held = [self._runs[lease.run_id] for lease in leases if self._holds(lease)]
            return Requests(
                frozenset(run.id for run in held if run.cancel_requested_at is not None),
                frozenset(run.id for run in held if run.id in self._stacks and self._stacks[run.id].taken_at is None),
            )

    def _holds(self, lease: Lease) -> bool:
        run = self._runs.get(lease.run_id)
        return run is not None and run.status is RunStatus.LEASED and run.lease_token == lease.token

    # --- record

    def record(self, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
        with self._locked() as now:
            return self._record(outcomes, now)

    def _record(self, outcomes: Sequence[Outcome], now: datetime) -> dict[UUID, RunStatus]:
        recorded: dict[UUID, RunStatus] = {}
        for outcome in outcomes:
            lease = outcome.lease
            if self._holds(lease):
                self._write(self._runs[lease.run_id], outcome, now)
                self._last_tokens[lease.run_id] = lease.token
                recorded[lease.run_id] = self._runs[lease.run_id].status
            elif self._last_tokens.get(lease.run_id) == lease.token:
                recorded[lease.run_id] = self._runs[lease.run_id].status  # before
        return recorded

    def _write(self, run: Run, outcome: Outcome, now: datetime) -> None:
        status = after_outcome(outcome, cancel_requested=run.cancel_requested_at is not None)
        match outcome:
            case Succeeded():
                if run.attempt > 1:
                    self._keep_attempt(run, outcome.lease, AttemptOutcome.SUCCEEDED, now)
                self._end(run, RunStatus.SUCCEEDED, now, None, outcome.output)
            case Failed(failure=failure, retry_after=retry_after):
                self._keep_attempt(run, outcome.lease, AttemptOutcome.FAILED, now, failure)
                run = replace(run, crash_count=run.crash_count + failure.crashed)
                if retry_after is None:
                    self._end(run, RunStatus.FAILED, now, failure, outcome.output)
                elif status is RunStatus.CANCELLED:
                    self._end_cancelled(run, now, outcome.output)
                else:
                    self._retry(run, now + retry_after, failure, outcome.output)
            case Released() if status is RunStatus.PENDING:
                scheduled_for = min(run.scheduled_for, now)
                self._put(
                    self._unleased(run, status=RunStatus.PENDING, attempt=run.attempt - 1, scheduled_for=scheduled_for)
                )
            case Cancelled() | Released():
                cancelled = outcome if isinstance(outcome, Cancelled) else Cancelled(outcome.lease)
                self._keep_attempt(run, cancelled.lease, AttemptOutcome.CANCELLED, now, cancelled.failure)
                self._end_cancelled(run, now, cancelled.output)

    def _end_cancelled(self, run: Run, now: datetime, output: Output) -> None:
        self._end(run, RunStatus.CANCELLED, now, None, output, message=CANCELLED_MESSAGE)

    def _end(
        self,
        run: Run,
        status: RunStatus,
        now: datetime,
        failure: Failure | None,
        output: Output,
        message: str | None = None,
    ) -> None:
        self._put(
            self._unleased(
                run,
                status=status,
                completed_at=now,
                error_type=failure.error_type if failure else None,
                error_message=failure.error_message if failure else message,
                error_detail=failure.error_detail if failure else None,
                stdout_tail=output.stdout_tail,
                stderr_tail=output.stderr_tail,
            )
        )

    def _retry(self, run: Run, scheduled_for: datetime, failure: Failure, output: Output) -> None:
        self._put(
            self._unleased(
                run,
                status=RunStatus.PENDING,
                scheduled_for=scheduled_for,
                error_type=failure.error_type,
                error_message=failure.error_message,
                error_detail=failure.error_detail,
                stdout_tail=output.stdout_tail,
                stderr_tail=output.stderr_tail,
            )
        )

    def _keep_attempt(
        self,
        run: Run,
        lease: Lease,
        outcome: AttemptOutcome,
        now: datetime,
        failure: Failure | None = None,
    ) -> None:
        attempt = Attempt(
            run_id=run.id,
            attempt=lease.attempt,
            worker_name=lease.worker_name,
            started_at=run.started_at,
            ended_at=now,
            outcome=outcome,
        )
        if failure is not None:
            attempt = replace(
                attempt,
                error_type=failure.error_type,
                error_message=failure.error_message,
                error_detail=failure.error_detail,
                signal=failure.signal,
                exit_code=failure.exit_code,
                ended_by=failure.ended_by,
                **asdict(failure.usage),
            )
        history = self._attempts.setdefault(run.id, [])
        history.append(attempt)
        del history[:-ATTEMPTS_KEPT_MAX]

    # --- cancel, requeue

    def cancel_run(self, run_id: UUID) -> bool:
        with self._locked() as now:
            run = self._runs.get(run_id)
            if run is None or run.status.terminal:
                return False
            run = self._put(replace(run, cancel_requested_at=run.cancel_requested_at or now))
            if run.status is RunStatus.PENDING:
                self._end_cancelled(run, now, Output(run.stdout_tail, run.stderr_tail))
            return True

    def requeue_run(self, run_id: UUID) -> UUID | None:
        run = self.get_run(run_id)
        if run is None or run.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
            return None
        new = NewRun(
            id=new_run_id(),
            job_name=run.job_name,
            payload=run.payload,
            max_attempts=run.max_attempts,
            requeued_from=run.id,
            recurring=run.id in self._recurring,
        )
        self.enqueue([new])
        return new.id

    # --- stacks

    def request_stack(self, run_id: UUID) -> bool:
        with self._locked() as now:
            if run_id not in self._leased:
                return False
            self._stacks[run_id] = Stack(now)
            return True

    def write_stack(self, lease: Lease, text: str) -> bool:
        with self._locked() as now:
            if not self._holds(lease):
                return False
            asked = self._stacks.get(lease.run_id)
            self._stacks[lease.run_id] = Stack(asked.requested_at if asked else now, now, text)
            return True

    def get_stack(self, run_id: UUID) -> Stack | None:
        with self._locked():
            return self._stacks.get(run_id)

    # --- workers

    def register_worker(self, worker: Worker) -> None:
        with self._locked() as now:
            known, _ = self._workers.get(worker.id, (worker, now))
            self._workers[worker.id] = known, now

    def find_workers(self, boot_id: str) -> list[Worker]:
        with self._locked():
            found = [worker for worker, _ in self._workers.values() if worker.boot_id == boot_id]
        return sorted(found, key=lambda worker: worker.id)

    def forget_worker(self, worker_id: UUID) -> None:
        with self._locked():
            self._workers.pop(worker_id, None)

    def prune_workers(self, unseen_for: timedelta) -> int:
        with self._locked() as now:
            unseen = [id for id, (_, seen_at) in self._workers.items() if seen_at <= now - unseen_for]
            for id in unseen[:WORKERS_PER_PRUNE_MAX]:
                del self._workers[id]
        return len(unseen[:WORKERS_PER_PRUNE_MAX])

    def expire_leases(self, worker_id: UUID) -> int:
        with self._locked() as now:
            if worker_id not in self._workers:
                return 0
            claimed = [self._runs[id] for id in self._leased if self._worker_ids.get(id) == worker_id]
            held = [run for run in claimed if run.lease_until and run.lease_until > now]
            for run in held:
                self._put(replace(run, lease_until=now))
        return len(held)

    # --- read

    def get_run(self, run_id: UUID) -> Run | None:
        with self._locked():
            return self._runs.get(run_id)

    def get_attempts(self, run_id: UUID) -> list[Attempt]:
        with self._locked():
            return list(self._attempts.get(run_id, ()))

    def list_runs(
        self, *, take: int, status: RunStatus | None = None, job_name: str | None = None, due_first: bool = False
    ) -> list[Run]:
        if due_first:
            status, job_name = RunStatus.PENDING, None
        with self._locked():
            runs = [
                run
                for run in self._runs.values()
                if (status is None or run.status is status) and (job_name is None or run.job_name == job_name)
            ]
        if due_first:
            return sorted(runs, key=lambda run: (run.scheduled_for, run.id))[:take]
        return sorted(runs, key=lambda run: run.id, reverse=True)[:take]

    def count_runs(self) -> dict[RunStatus, int]:
        with self._locked():
            counts = dict.fromkeys(RunStatus, 0)
            for run in self._runs.values():
                counts[run.status] += 1
            return counts

    def measure_backlog(self, job_names: Collection[str], count_max: int) -> Backlog:
        with self._locked() as now:
            due = [
                run.scheduled_for
                for run in self._runs.values()
                if run.status is RunStatus.PENDING and run.scheduled_for <= now and run.job_name in job_names
            ]
        return Backlog(min(len(due), count_max), now - min(due) if due else None)

    # --- schedules

    def change_schedule(self, job_name: str, change: ChangeSchedule) -> Schedule | None:
        with self._locked() as now:
            before = self._schedules.get(job_name)
            changed = change(before, now)
            if changed is not None:
                created_at = before.created_at if before is not None else now
                self._schedules[job_name] = replace(changed, created_at=created_at, updated_at=now)
            return self._schedules.get(job_name)

    def get_schedule(self, job_name: str) -> Schedule | None:
        with self._locked():
            return self._schedules.get(job_name)

    def list_schedules(self) -> list[Schedule]:
        with self._locked():
            return [self._schedules[job_name] for job_name in sorted(self._schedules)]

    def next_schedules(self, job_names: Collection[str], within: timedelta) -> tuple[datetime, list[Schedule]]:
        with self._locked() as now:
            found = [
                (schedule.next_run_at, schedule.job_name, schedule)
                for name in job_names
                if (schedule := self._schedules.get(name)) is not None
                and schedule.enabled
                and schedule.next_run_at is not None
                and schedule.next_run_at <= now + within
            ]
        return now, [schedule for _, _, schedule in sorted(found, key=lambda each: each[:2])]

    def keep_schedules_seen(self, job_names: Collection[str], every: timedelta) -> None:
        with self._locked() as now:
            for name in job_names:
                schedule = self._schedules.get(name)
                if schedule is not None and schedule.seen_at <= now - every:
                    self._schedules[name] = replace(schedule, seen_at=now)

    def materialize_recurring_run(self, job_name: str, slot_due: SlotDue) -> NewRun | None:
        with self._locked() as now:
            schedule = self._schedules.get(job_name)
            if schedule is None or not schedule.enabled:
                return None
            slot = slot_due(schedule, now)
            if slot is None or (slot.at is not None and self._has_to_wait(schedule)):
                return None
            run = None
            if slot.at is not None and (job_name, slot.at) not in self._slots:
                run = scheduled_run(schedule, slot.at)
                self._add(run, now)
            self._schedules[job_name] = replace(
                schedule,
                next_run_at=slot.next_run_at,
                last_slot=slot.at or schedule.last_slot,
                error_message=None,
            )
        return run

    def run_schedule_now(self, job_name: str) -> UUID | None:
        with self._locked() as now:
            schedule = self._schedules.get(job_name)
            if schedule is None:
                raise ScheduleError(f"there is no schedule of a job {job_name!r}")
            if self._has_to_wait(schedule):
                return None
            run = scheduled_run(schedule, slot=None)
            self._add(run, now)
        return run.id

    def _has_to_wait(self, schedule: Schedule) -> bool:
        return not schedule.allow_concurrent_runs and bool(self._active_recurring.get(schedule.job_name))

    # --- prune

    def prune_runs(self, older_than: timedelta, batch_size: int) -> int:
        with self._locked() as now:
            old = [
                run.id
                for run in self._runs.values()
                if run.completed_at is not None and run.completed_at <= now - older_than
            ][:batch_size]
            for id in old:
                run = self._runs.pop(id)
                if run.slot is not None:
                    self._slots.discard((run.job_name, run.slot))
                self._attempts.pop(id, None)
                self._last_tokens.pop(id, None)
                self._worker_ids.pop(id, None)
                self._stacks.pop(id, None)
                self._recurring.discard(id)
        return len(old)

    def listen(self) -> None:
        """Whoever enqueues is in this process."""

    def close(self) -> None:
        return

    # --- rows

    @contextmanager
    def _locked(self) -> Iterator[datetime]:
        if os.getpid() != self._pid:
            raise StoreError("the in-memory store was carried into another process, which sees only a copy of it")
        with self._lock:
            yield self._clock()

    def _put(self, run: Run) -> Run:
        before = self._runs.get(run.id)
        self._runs[run.id] = run
        (self._leased.add if run.status is RunStatus.LEASED else self._leased.discard)(run.id)
        if run.id in self._recurring:
            active = self._active_recurring.setdefault(run.job_name, set())
            (active.discard if run.status.terminal else active.add)(run.id)
        is_newly_due = before is None or (before.status, before.scheduled_for) != (run.status, run.scheduled_for)
        if run.status is RunStatus.PENDING and is_newly_due:
            heapq.heappush(self._due, (run.scheduled_for, run.id))
        return run

    @staticmethod
    def _unleased(run: Run, **changes: Any) -> Run:
        return replace(run, lease_owner=None, lease_token=None, lease_until=None, **changes)
