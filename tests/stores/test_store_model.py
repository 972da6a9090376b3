"""Random sequences of operations against a model of a few lines; the same for every store.

Checked at each step: what the operation answers, and every run's status, attempt and lease (RELIABILITY S1-S6, S15).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import pytest
from exam import (
    LEASE_DURATION,
    Place,
    age_completion,
    age_lease,
    all_runs,
    broken_invariants,
    claimed,
    enqueue,
    failed,
    make_due,
    request,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durablestack.runs import Cancelled, Lease, Outcome, Released, Run, RunStatus, Succeeded
from durablestack.stores.contract import Store

PENDING, LEASED, SUCCEEDED = RunStatus.PENDING, RunStatus.LEASED, RunStatus.SUCCEEDED
FAILED, CANCELLED = RunStatus.FAILED, RunStatus.CANCELLED

OPERATIONS = (
    *(
        "enqueue",
        "claim",
        "claim",
        "claim",
        "exchange",
        "extend",
        "succeed",
        "fail",
        "retry",
        "retry",
        "release",
        "stop",
    ),
    *("expire", "expire", "cancel", "requeue", "release_claim", "prune", "make_due"),
)
steps = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1000)), min_size=5, max_size=45)


@dataclass
class ModelRun:
    max_attempts: int
    status: RunStatus = PENDING
    attempt: int = 0
    due: bool = True
    token: UUID | None = None
    last_token: UUID | None = None
    expired: bool = False
    cancel_requested: bool = False
    claims: int = 0
    refunds: int = 0


@dataclass
class Model:
    """What the store should hold. Each method answers what the store should answer."""

    runs: dict[UUID, ModelRun] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)

    def expire(self) -> dict[UUID, RunStatus]:
        ended: dict[UUID, RunStatus] = {}
        for run_id, run in self.runs.items():
            if run.status is LEASED and run.expired:
                exhausted = FAILED if run.attempt >= run.max_attempts else PENDING
                ended[run_id] = CANCELLED if run.cancel_requested else exhausted
                self._unlease(run, ended[run_id])
        return ended

    def check_claim(self, claimed_runs: list[Run]) -> None:
        claimable = {run_id for run_id, run in self.runs.items() if run.status is PENDING and run.due}
        assert {run.id for run in claimed_runs} <= claimable
        for claimed_run in claimed_runs:
            run = self.runs[claimed_run.id]
            assert claimed_run.lease not in self.leases
            run.status, run.token, run.expired = LEASED, claimed_run.lease_token, False
            run.attempt, run.claims = run.attempt + 1, run.claims + 1
            self.leases.append(claimed_run.lease)

    def holds(self, lease: Lease) -> bool:
        run = self.runs.get(lease.run_id)
        return run is not None and run.status is LEASED and run.token == lease.token

    def record(self, outcome: Outcome) -> bool:
        run = self.runs.get(outcome.lease.run_id)
        if run is None or not self.holds(outcome.lease):
            return run is not None and run.last_token == outcome.lease.token
        run.last_token = run.token
        match outcome:
            case Succeeded():
                self._unlease(run, SUCCEEDED)
            case Cancelled():
                self._unlease(run, CANCELLED)
            case Released() if not run.cancel_requested:
                run.attempt, run.refunds, run.due = run.attempt - 1, run.refunds + 1, True
                self._unlease(run, PENDING)
            case _ if isinstance(outcome, Released) or outcome.retry_after is not None:
                run.due = getattr(outcome, "retry_after", None) == timedelta(0)
                self._unlease(run, CANCELLED if run.cancel_requested else PENDING)
            case _:
                self._unlease(run, FAILED)
        return True

    def _unlease(self, run: ModelRun, status: RunStatus) -> None:
        run.status, run.token, run.expired = status, None, False


class Play:
    """One sequence, on the store and on the model."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.model = Model()

    def step(self, operation: str, number: int) -> None:
        getattr(self, operation)(number)
        self.check()

    def check(self) -> None:
        stored = all_runs(self.store)
        assert stored.keys() == self.model.runs.keys()
        for run_id, run in self.model.runs.items():
            seen = stored[run_id]
            assert (seen.status, seen.attempt, seen.lease_token) == (run.status, run.attempt, run.token), run_id
            assert (seen.cancel_requested_at is not None) >= run.cancel_requested
            assert run.attempt == run.claims - run.refunds <= run.max_attempts

    def some_run(self, number: int) -> UUID | None:
        ids = list(self.model.runs)
        return ids[number % len(ids)] if ids else None

    def some_lease(self, number: int) -> Lease | None:
        leases = self.model.leases
        return leases[-1 - number % len(leases)] if leases else None

    def some_leased(self, number: int) -> UUID | None:
        ids = [run_id for run_id, run in self.model.runs.items() if run.status is LEASED]
        return ids[number % len(ids)] if ids else None

    def enqueue(self, number: int) -> None:
        max_attempts = 1 + number % 4
        self.model.runs[enqueue(self.store, max_attempts=max_attempts)] = ModelRun(max_attempts)

    def claim(self, number: int) -> None:
        batch_size = 100 if number % 2 else 1
        if batch_size == 1:
            claimed(self.store, job_names=[], batch_size=100)  # so that which ones expire is no question of order
            self.model.expire()
        answer = claimed(self.store, batch_size=batch_size)
        assert {expired.run_id: expired.status for expired in answer.expired} == self.model.expire()
        due = sum(run.status is PENDING and run.due for run in self.model.runs.values())
        assert len(answer.runs) == min(batch_size, due)
        self.model.check_claim(answer.runs)

    def extend(self, number: int) -> None:
        shown = [lease for lease in (self.some_lease(number), self.some_lease(number // 7)) if lease]
        extended = self.store.extend_leases(shown, LEASE_DURATION)
        held = {lease.run_id for lease in shown if self.model.holds(lease)}
        assert extended.held == held
        assert extended.cancel_requested == {run_id for run_id in held if self.model.runs[run_id].cancel_requested}
        for run_id in held:
            self.model.runs[run_id].expired = False

    def record(self, outcome: Outcome) -> None:
        recorded = self.store.record([outcome])
        run_id = outcome.lease.run_id
        assert recorded == ({run_id: self.model.runs[run_id].status} if self.model.record(outcome) else {})

    def exchange(self, number: int) -> None:
        lease = self.some_lease(number)
        if lease is None:
            return
        outcome: Outcome = Released(lease) if number % 2 else Succeeded(lease)
        answer = self.store.exchange([outcome], request(batch_size=100))
        kept = self.model.record(outcome)
        assert answer.recorded == ({lease.run_id: self.model.runs[lease.run_id].status} if kept else {})
        assert {expired.run_id: expired.status for expired in answer.claimed.expired} == self.model.expire()
        due = {run_id for run_id, run in self.model.runs.items() if run.status is PENDING and run.due}
        assert {run.id for run in answer.claimed.runs} == due - answer.recorded.keys()
        assert answer.claimed.passed_over == len(due & answer.recorded.keys())
        self.model.check_claim(answer.claimed.runs)

    def succeed(self, number: int) -> None:
        if lease := self.some_lease(number):
            self.record(Succeeded(lease))

    def fail(self, number: int) -> None:
        if lease := self.some_lease(number):
            self.record(failed(lease))

    def retry(self, number: int) -> None:
        lease = self.some_lease(number)
        if lease is None:
            return
        run = self.model.runs.get(lease.run_id)
        if run and self.model.holds(lease) and run.attempt >= run.max_attempts:
            return self.fail(number)  # the caller's promise: no retry after the last attempt
        self.record(failed(lease, 0 if number % 3 else 3600))

    def release(self, number: int) -> None:
        if lease := self.some_lease(number):
            self.record(Released(lease))

    def stop(self, number: int) -> None:
        if lease := self.some_lease(number):
            self.record(Cancelled(lease))

    def expire(self, number: int) -> None:
        if run_id := self.some_leased(number):
            age_lease(self.store, run_id)
            self.model.runs[run_id].expired = True

    def make_due(self, number: int) -> None:
        run_id = self.some_run(number)
        if run_id and self.model.runs[run_id].status is PENDING:
            make_due(self.store, run_id)
            self.model.runs[run_id].due = True

    def cancel(self, number: int) -> None:
        if run_id := self.some_run(number):
            run = self.model.runs[run_id]
            assert self.store.cancel_run(run_id) is (run.status in (PENDING, LEASED))
            if run.status is PENDING:
                run.status = CANCELLED
            elif run.status is LEASED:
                run.cancel_requested = True

    def requeue(self, number: int) -> None:
        if run_id := self.some_run(number):
            run = self.model.runs[run_id]
            new_id = self.store.requeue_run(run_id)
            assert (new_id is not None) == (run.status in (FAILED, CANCELLED))
            if new_id is not None:
                self.model.runs[new_id] = ModelRun(run.max_attempts)

    def release_claim(self, number: int) -> None:
        if lease := self.some_lease(number):
            held = [run_id for run_id, run in self.model.runs.items() if run.token == lease.token]
            assert self.store.release_claim(lease.token) == set(held)
            for run_id in held:
                self.model.record(Released(Lease(run_id, lease.token, 0, "")))

    def prune(self, number: int) -> None:
        run_id = self.some_run(number)
        if run_id and self.model.runs[run_id].status.terminal:
            age_completion(self.store, run_id)
            assert self.store.prune_runs(timedelta(hours=1), 10) == 1
            del self.model.runs[run_id]


@pytest.fixture
def emptied(place: Place) -> Iterator[Store]:
    store = place.open()
    store.migrate()
    yield store
    store.close()


def empty(store: Store) -> None:
    for lease_or_run in all_runs(store).values():
        if lease_or_run.status is LEASED:
            store.record([Cancelled(lease_or_run.lease)])
        store.cancel_run(lease_or_run.id)
    while store.prune_runs(timedelta(days=-1), 1000):
        pass
    assert all_runs(store) == {}


@settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=steps)
def test_any_sequence_of_operations_agrees_with_the_model(emptied: Store, sequence: list[tuple[str, int]]) -> None:
    empty(emptied)
    play = Play(emptied)
    for operation, number in sequence:
        play.step(operation, number)
    assert broken_invariants(emptied) == []
