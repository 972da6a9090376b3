"""What the store in memory holds, and how it finds it again. Whoever comes here has the lock of the store."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from msgspec.structs import asdict, replace

from durablestack.runs import Attempt, AttemptOutcome, Failure, Lease, NewRun, Run, RunStatus
from durablestack.schedules import Schedule
from durablestack.workers import Worker

from .contract import ATTEMPTS_KEPT_MAX, Stack


class Tables:
    """Runs are put by `add` and `put`, and removed by `remove`, which keep what they are found by in step."""

    def __init__(self) -> None:
        self.runs: dict[UUID, Run] = {}
        self.attempts: dict[UUID, list[Attempt]] = {}
        self.stacks: dict[UUID, Stack] = {}
        self.schedules: dict[str, Schedule] = {}
        self.workers: dict[UUID, tuple[Worker, datetime]] = {}
        self.last_tokens: dict[UUID, UUID] = {}
        self.worker_ids: dict[UUID, UUID | None] = {}
        self.leased: set[UUID] = set()
        self.recurring: set[UUID] = set()
        self.slots: set[tuple[str, datetime]] = set()
        # what is pending, earliest first; an entry is good while its run is pending and due at that instant
        self._due: list[tuple[datetime, UUID]] = []
        # the runs of scheduled jobs that are pending or leased, by job
        self._active_recurring: dict[str, set[UUID]] = {}

    # --- runs

    def add(self, new: NewRun, now: datetime) -> None:
        """What has this id already is left as it is."""
        if new.id in self.runs:
            return
        if new.recurring:
            self.recurring.add(new.id)
        if new.slot is not None:
            self.slots.add((new.job_name, new.slot))
        self.put(
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

    def put(self, run: Run) -> Run:
        before = self.runs.get(run.id)
        self.runs[run.id] = run
        (self.leased.add if run.status is RunStatus.LEASED else self.leased.discard)(run.id)
        if run.id in self.recurring:
            active = self._active_recurring.setdefault(run.job_name, set())
            (active.discard if run.status.terminal else active.add)(run.id)
        is_newly_due = before is None or (before.status, before.scheduled_for) != (run.status, run.scheduled_for)
        if run.status is RunStatus.PENDING and is_newly_due:
            self.give_back_due(run)
        return run

    def put_unleased(self, run: Run, **changes: Any) -> None:
        self.put(replace(run, lease_owner=None, lease_token=None, lease_until=None, **changes))

    def remove(self, run_id: UUID) -> None:
        run = self.runs.pop(run_id)
        if run.slot is not None:
            self.slots.discard((run.job_name, run.slot))
        self.attempts.pop(run_id, None)
        self.last_tokens.pop(run_id, None)
        self.worker_ids.pop(run_id, None)
        self.stacks.pop(run_id, None)
        self.recurring.discard(run_id)

    def holds(self, lease: Lease) -> bool:
        run = self.runs.get(lease.run_id)
        return run is not None and run.status is RunStatus.LEASED and run.lease_token == lease.token

    def expired(self, now: datetime) -> list[Run]:
        leased = (self.runs[id] for id in sorted(self.leased))
        return [run for run in leased if run.lease_until is not None and run.lease_until <= now]

    def has_active_recurring(self, job_name: str) -> bool:
        return bool(self._active_recurring.get(job_name))

    # --- what is due

    def take_due(self, now: datetime, is_wanted: Callable[[Run], bool], at_most: int) -> list[Run]:
        """Earliest first. What is not leased then is to be given back."""
        taken: list[Run] = []
        passed_over: list[Run] = []
        while self._due and self._due[0][0] <= now and len(taken) < at_most:
            scheduled_for, run_id = heapq.heappop(self._due)
            run = self.runs.get(run_id)
            if run is None or run.status is not RunStatus.PENDING or run.scheduled_for != scheduled_for:
                continue
            (taken if is_wanted(run) else passed_over).append(run)
        for run in passed_over:
            self.give_back_due(run)
        return taken

    def give_back_due(self, run: Run) -> None:
        heapq.heappush(self._due, (run.scheduled_for, run.id))

    # --- attempts

    def keep_attempt(
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
        history = self.attempts.setdefault(run.id, [])
        history.append(attempt)
        del history[:-ATTEMPTS_KEPT_MAX]
