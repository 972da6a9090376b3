"""What must hold at each step of the lease protocol (RELIABILITY 2.7), seen from outside of workers and stores.

worker ──Ask──> store ──answer──> worker
          └───────┴─ Witness: the rows before and after, what was shown, what was answered, who executes
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from exam import LEASE_DURATION

from durablestack.runs import Failed, Lease, NewRun, Outcome, Released, Run, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Claimed, Extended, Store
from durablestack.workers import Worker

PENDING, LEASED, SUCCEEDED = RunStatus.PENDING, RunStatus.LEASED, RunStatus.SUCCEEDED
FAILED, CANCELLED = RunStatus.FAILED, RunStatus.CANCELLED

KILLED = "ChildCrashed"
"""The error of an attempt that left no result: nobody's failure but ours."""

Key = tuple[UUID, UUID]


class InvariantViolated(AssertionError):
    """Its text begins with the name of the invariant."""


def require(holds: bool, invariant: str, text: str) -> None:
    if not holds:
        raise InvariantViolated(f"{invariant}: {text}")


def key(lease: Lease) -> Key:
    return lease.run_id, lease.token


# --- what is asked of a store


@dataclass(frozen=True)
class Enqueue:
    run: NewRun

    def carry_out(self, store: Store) -> None:
        store.enqueue([self.run])


@dataclass(frozen=True)
class ClaimRuns:
    claim: Claim

    def carry_out(self, store: Store) -> Claimed:
        return store.claim_due_runs(self.claim)


@dataclass(frozen=True)
class ReleaseClaim:
    token: UUID

    def carry_out(self, store: Store) -> set[UUID]:
        return store.release_claim(self.token)


@dataclass(frozen=True)
class Extend:
    leases: tuple[Lease, ...]

    def carry_out(self, store: Store) -> Extended:
        return store.extend_leases(self.leases, LEASE_DURATION)


@dataclass(frozen=True)
class Record:
    outcomes: tuple[Outcome, ...]

    def carry_out(self, store: Store) -> Any:
        return store.record(self.outcomes)


@dataclass(frozen=True)
class RegisterWorker:
    worker: Worker

    def carry_out(self, store: Store) -> None:
        store.register_worker(self.worker)


@dataclass(frozen=True)
class ExpireLeases:
    """Of a life of a worker that is over."""

    worker_id: UUID

    def carry_out(self, store: Store) -> int:
        return store.expire_leases(self.worker_id)


@dataclass(frozen=True)
class CancelRun:
    run_id: UUID

    def carry_out(self, store: Store) -> bool:
        return store.cancel_run(self.run_id)


Ask = Enqueue | ClaimRuns | ReleaseClaim | Extend | Record | CancelRun | RegisterWorker | ExpireLeases

LEGAL_STEPS: dict[type, set[tuple[RunStatus | None, RunStatus]]] = {
    Enqueue: {(None, PENDING)},
    ClaimRuns: {(PENDING, LEASED), *((LEASED, status) for status in (LEASED, PENDING, FAILED, CANCELLED))},
    ReleaseClaim: {(LEASED, PENDING), (LEASED, CANCELLED)},
    Extend: {(LEASED, LEASED)},
    Record: {(LEASED, status) for status in (PENDING, SUCCEEDED, FAILED, CANCELLED)},
    CancelRun: {(PENDING, CANCELLED), (LEASED, LEASED)},
    RegisterWorker: set(),
    ExpireLeases: {(LEASED, LEASED)},
}


def shown(ask: Ask, run_id: UUID, tokens: Mapping[UUID, set[UUID]]) -> set[UUID]:
    """The tokens with which an operation may touch this run; `tokens` are those that each worker drew."""
    match ask:
        case ReleaseClaim(token):
            return {token}
        case ExpireLeases(worker_id):
            return tokens.get(worker_id, set())
        case Extend(leases):
            return {lease.token for lease in leases if lease.run_id == run_id}
        case Record(outcomes):
            return {outcome.lease.token for outcome in outcomes if outcome.lease.run_id == run_id}
    return set()


def _may_become(outcome: Outcome, before: Run) -> set[RunStatus]:
    match outcome:
        case Succeeded():
            return {SUCCEEDED}
        case Failed(retry_after=None):
            return {FAILED}
        case Failed() | Released() if before.cancel_requested_at is None:
            return {PENDING}
    return {CANCELLED}


# --- what executes


@dataclass(frozen=True)
class Executing:
    """A child at work; `trusted_until` on its worker's clock, which shows `clock`."""

    worker: str
    lease: Lease
    clock: float
    trusted_until: float


class Witness:
    """Sees each operation in the order in which the store carries them out."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Run] = {}
        self.max_attempts: dict[UUID, int] = {}
        self._counted: dict[UUID, int] = {}  # claims less refunds
        self._tokens: dict[UUID, set[UUID]] = {}  # of the claims that each life of a worker has made
        self._granted: set[Key] = set()
        self._recorded: dict[UUID, UUID] = {}  # the token whose outcome was recorded last
        self._ever_recorded: set[Key] = set()
        self._begun: set[Key] = set()
        self._succeeded: dict[Key, bool] = {}  # what children produced

    def saw(self, ask: Ask, answer: Any, rows: dict[UUID, Run], now: datetime) -> None:
        before, self.rows = self.rows, rows
        if isinstance(ask, Enqueue):
            self.max_attempts[ask.run.id] = ask.run.max_attempts
            self._counted[ask.run.id] = 0
        require(self.max_attempts.keys() == rows.keys(), "S12", f"{len(self.max_attempts)} enqueued, {len(rows)} there")
        expected = self._expected(ask, before, now)
        for run_id, after in rows.items():
            if after != before.get(run_id):
                self._check_step(ask, before.get(run_id), after, now)
                self._check_row(after)
        self._check_answer(ask, answer, expected, before)

    # --- one row

    def _check_row(self, run: Run) -> None:
        lease_fields = (run.lease_owner, run.lease_token, run.lease_until)
        require(all((field is not None) == (run.status is LEASED) for field in lease_fields), "S1", f"{run}")
        require(run.status.terminal == (run.completed_at is not None), "S1", f"{run}")
        require(run.attempt == self._counted[run.id], "S15", f"{self._counted[run.id]} claims that count, and {run}")
        require(0 <= run.attempt <= self.max_attempts[run.id], "S15", f"more attempts than there may be: {run}")

    def _check_step(self, ask: Ask, before: Run | None, after: Run, now: datetime) -> None:
        require(before is None or not before.status.terminal, "S2", f"{before} became {after}")
        step = (before and before.status, after.status)
        require(step in LEGAL_STEPS[type(ask)], "S3", f"{step} by {ask}")
        if before is None:
            return
        match ask:
            case ClaimRuns(claim):
                self._check_claim(claim, before, after, now)
            case CancelRun():
                require((before.lease_token, before.attempt) == (after.lease_token, after.attempt), "S4", f"{after}")
            case _:
                require(before.lease_token in self._shown(ask, after.id), "S6", f"{ask} changed {before} to {after}")
                self._check_held(ask, before, after, now)

    def _check_claim(self, claim: Claim, before: Run, after: Run, now: datetime) -> None:
        if before.lease_until is not None:
            require(before.lease_until <= now, "S5", f"a live lease was taken at {now}: {before} became {after}")
            exhausted = before.attempt >= self.max_attempts[before.id] and before.cancel_requested_at is None
            require(not exhausted or after.status is FAILED, "S15", f"no attempt was left: {before} became {after}")
        if after.status is LEASED:
            require(after.lease_token == claim.lease_token != before.lease_token, "S4", f"{claim} made {after}")
            require(after.attempt == before.attempt + 1, "S4", f"{before} became {after}")
            require(before.scheduled_for <= now, "S11", f"claimed at {now}: {before}")
            self._counted[after.id] += 1
            self._granted.add(key(after.lease))

    def _check_held(self, ask: Ask, before: Run, after: Run, now: datetime) -> None:
        if after.status is LEASED:
            require(before.lease == after.lease, "S4", f"{before} became {after}")
            require(not isinstance(ask, ExpireLeases) or after.lease_until == now, "S5", f"{ask}: {after}")
            return
        released = after.status is PENDING and after.attempt == before.attempt - 1
        require(released or after.attempt == before.attempt, "S4", f"{before} became {after}")
        if isinstance(ask, Record):
            (outcome,) = [each for each in ask.outcomes if key(each.lease) == key(before.lease)]
            as_shown = after.status in _may_become(outcome, before)
            require(as_shown, "S6", f"{before} became {after} by another outcome than {outcome}")
        self._counted[after.id] -= released
        self._recorded[after.id] = before.lease.token
        self._ever_recorded.add(key(before.lease))
        self._check_faithful(before, after, released=released)

    def _check_faithful(self, before: Run, after: Run, *, released: bool) -> None:
        succeeded = self._succeeded.get(key(before.lease))
        if after.status is SUCCEEDED:
            faithful = succeeded is True
        elif after.status is CANCELLED:
            faithful = succeeded is not True and before.cancel_requested_at is not None
        elif released:
            faithful = succeeded is None
        else:
            faithful = succeeded is False or (succeeded is None and after.error_type == KILLED)
        produced = {True: "success", False: "failure", None: "nothing"}[succeeded]
        require(faithful, "S9", f"the child produced {produced}, recorded was {after}")

    # --- what the store answered

    def _expected(self, ask: Ask, before: dict[UUID, Run], now: datetime) -> set[UUID]:
        """The runs that the operation should name: whose lease it ended, or was shown, or whose outcome it knows."""
        match ask:
            case ClaimRuns(claim):
                assert claim.worker_id is not None
                known = {token for drawn in self._tokens.values() for token in drawn}
                require(claim.lease_token not in known, "S4", f"two claims with one token: {claim}")
                self._tokens.setdefault(claim.worker_id, set()).add(claim.lease_token)
                leased = (run for run in before.values() if run.lease_until is not None)
                return {run.id for run in leased if claim.end_expired and run.lease_until <= now}
            case Record():
                known = {id for id, token in self._recorded.items() if token in self._shown(ask, id)}
                return known | {run.id for run in before.values() if run.lease_token in self._shown(ask, run.id)}
            case ExpireLeases():
                lasting = (run for run in before.values() if run.lease_until is not None and run.lease_until > now)
                return {run.id for run in lasting if run.lease_token in self._shown(ask, run.id)}
        return {run.id for run in before.values() if run.lease_token in self._shown(ask, run.id)}

    def _shown(self, ask: Ask, run_id: UUID) -> set[UUID]:
        return shown(ask, run_id, self._tokens)

    def _check_answer(self, ask: Ask, answer: Any, expected: set[UUID], before: dict[UUID, Run]) -> None:
        match ask, answer:
            case ClaimRuns(claim), Claimed(runs=runs, expired=expired):
                require({run.run_id for run in expired} == expected, "S5", f"ended {expired}, expired had {expected}")
                leased = {run.id: run.lease for run in self.rows.values() if run.lease_token == claim.lease_token}
                require({run.id: run.lease for run in runs} == leased, "S8", f"answered {runs}, leased were {leased}")
            case Extend(), Extended(held=held):
                require(held == expected, "S6", f"{ask} held {held}, and should have {expected}: {before}")
            case ExpireLeases(), _:
                require(answer == len(expected), "S6", f"{ask} ended {answer} leases, and should have {expected}")
            case Record() | ReleaseClaim(), _:
                require(set(answer) == expected, "S6", f"{ask} recorded {answer}, and should have {expected}: {before}")

    # --- children

    def began(self, lease: Lease) -> None:
        require(key(lease) in self._granted, "S8", f"nobody granted {lease}")
        require(key(lease) not in self._begun, "S8", f"begun twice: {lease}")
        self._begun.add(key(lease))

    def produced(self, lease: Lease, *, success: bool) -> None:
        self._succeeded[key(lease)] = success

    def told(self, lease: Lease, *, recorded: bool) -> None:
        """What a worker says of its own outcome, in its log and its events."""
        require(
            recorded == (key(lease) in self._ever_recorded), "S16", f"told that it was recorded: {recorded}, {lease}"
        )

    def check_executing(self, children: Iterable[Executing], now: datetime) -> None:
        """Of children whose guard is frozen nothing can be promised: they are not among these."""
        executing: dict[UUID, Executing] = {}
        for child in children:
            run = self.rows[child.lease.run_id]
            require(child.clock < child.trusted_until, "S7", f"executes past its time: {child}")
            require(run.id not in executing, "S7", f"executes twice: {child}, {executing.get(run.id)}")
            live = run.lease_token == child.lease.token and run.lease_until is not None and run.lease_until > now
            require(live, "S7", f"executes at {now} without a lease: {child}, {run}")
            executing[run.id] = child
