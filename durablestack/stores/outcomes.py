"""How attempts end, as it is written down: by key, in runs that are locked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard
from uuid import UUID

from msgspec import Struct

from durablestack.runs import (
    CANCELLED_MESSAGE,
    LEASE_EXPIRED,
    NO_OUTPUT,
    AttemptOutcome,
    Cancelled,
    Failed,
    Failure,
    Lease,
    Outcome,
    Output,
    Released,
    RunStatus,
    Succeeded,
    Usage,
)

from .contract import ATTEMPTS_KEPT_MAX, ExpiredRun, after_expiry, after_outcome
from .leases import lock
from .rows import error_parameters, output_parameters, usage_parameters
from .session import Answer, Session


class Recordable(Struct, frozen=True):
    """An outcome that has shown the lease of its run, and what the run's row says besides, as the database has it."""

    outcome: Outcome
    started_at: Any
    cancel_requested: bool

    @property
    def status(self) -> RunStatus:
        """What the run's status is to be."""
        return after_outcome(self.outcome, cancel_requested=self.cancel_requested)


def is_plain_success(outcome: Outcome) -> TypeGuard[Succeeded]:
    """Whether nothing is to be written of it but in its run: the first attempt has no history."""
    return isinstance(outcome, Succeeded) and outcome.lease.attempt == 1


def written_length(outcomes: Sequence[Outcome]) -> int:
    """How many characters their runs have written, which are to be stored."""
    outputs = [o.output for o in outcomes if not isinstance(o, Released) and o.output is not NO_OUTPUT]
    return sum([len(output.stdout_tail or "") + len(output.stderr_tail or "") for output in outputs])


def record(tx: Session, outcomes: Sequence[Outcome]) -> dict[UUID, RunStatus]:
    """Write down how attempts ended, as far as they show the leases of their runs; see the contract."""
    if tx.knows("RUNS_SUCCEED_BY_LEASE") and _succeed_by_lease(tx, outcomes):
        return {outcome.lease.run_id: RunStatus.SUCCEEDED for outcome in outcomes}
    stored = tx.dialect.from_uuid
    by_lease = {(stored(outcome.lease.run_id), stored(outcome.lease.token)): outcome for outcome in outcomes}
    recorded: dict[UUID, RunStatus] = {}
    recordables: list[Recordable] = []
    rows = lock(tx, {outcome.lease.run_id for outcome in outcomes})
    for id, status, lease_token, last_token, started_at, cancel_requested_at in rows:
        if (outcome := by_lease.get((id, last_token))) is not None:
            recorded[outcome.lease.run_id] = RunStatus(status)  # before, and the answer was lost
        if status == RunStatus.LEASED and (outcome := by_lease.get((id, lease_token))) is not None:
            recordable = Recordable(outcome, started_at, cancel_requested_at is not None)
            recordables.append(recordable)
            recorded[outcome.lease.run_id] = recordable.status
    _write_outcomes(tx, recordables)
    return recorded


def _succeed_by_lease(tx: Session, outcomes: Sequence[Outcome]) -> bool:
    """Lock and write in one statement, in the order of the ids, as everyone does; False if that is not all.

    The rest is still to be looked at; what was written by then counts as recorded before.
    """
    if not all(is_plain_success(outcome) and not outcome.output for outcome in outcomes):
        return False
    leases = [(outcome.lease.run_id, outcome.lease.token) for outcome in outcomes]
    ids = [run_id for run_id, _ in leases]
    return tx.count("RUNS_SUCCEED_BY_LEASE", ids=ids, leases=leases) == len(outcomes)


def ask_to_succeed(tx: Session, outcomes: Sequence[Outcome]) -> Answer:
    """Lock and write in one statement, in the order of the ids, as everyone does; the answer is how many."""
    return _ask_to_succeed(tx, outcomes) if outcomes else lambda: [(0,)]


def rehearse_success(tx: Session) -> None:
    """Have the database read, plan and keep what `ask_to_succeed` asks of it. Nothing is written."""
    _ask_to_succeed(tx, ())


def _ask_to_succeed(tx: Session, outcomes: Sequence[Outcome]) -> Answer:
    shown = sorted([o for o in outcomes if isinstance(o, Succeeded)], key=lambda o: o.lease.run_id.int)
    with_output = any(outcome.output is not NO_OUTPUT and outcome.output for outcome in shown)
    return tx.ask(
        "RUNS_SUCCEED_SHOWN",
        ids=[outcome.lease.run_id for outcome in shown],
        tokens=[outcome.lease.token for outcome in shown],
        stdout_tails=[outcome.output.stdout_tail for outcome in shown] if with_output else [],
        stderr_tails=[outcome.output.stderr_tail for outcome in shown] if with_output else [],
    )


def end_expired_lease(tx: Session, row: Sequence[Any]) -> ExpiredRun:
    """Write what becomes of a run whose holder is gone, and the holder's token with it."""
    id, job_name, attempt, max_attempts, owner, token, started_at, cancel_requested_at = row
    lease = Lease(tx.rows.uuid(id), tx.rows.uuid(token), attempt, owner or "")  # before anything is written
    status, message = after_expiry(attempt, max_attempts, owner, cancel_requested=cancel_requested_at is not None)
    tx.run(
        "RUN_EXPIRED_UPDATE",
        id=id,
        status=status.value,
        terminal=int(status.terminal),
        error_type=None if status is RunStatus.CANCELLED else LEASE_EXPIRED,
        error_message=message,
    )
    failure = Failure(error_type=LEASE_EXPIRED, error_message=message)
    _keep_attempt(tx, lease, AttemptOutcome.EXPIRED, started_at, failure)
    return ExpiredRun(lease.run_id, job_name, attempt, owner, status)


def _write_outcomes(tx: Session, recordables: Sequence[Recordable]) -> None:
    """Successes are written together, and so are releases; of the others each has something of its own to tell."""
    succeeded: list[Succeeded] = []
    released: list[Released] = []
    for recordable in recordables:
        match recordable.outcome:
            case Succeeded() as outcome:
                succeeded.append(outcome)
                if outcome.lease.attempt > 1:
                    _keep_attempt(tx, outcome.lease, AttemptOutcome.SUCCEEDED, recordable.started_at)
            case Failed(failure=failure) as outcome:
                if recordable.status is RunStatus.CANCELLED:
                    _write_cancelled(tx, outcome.lease, outcome.output, crashed=failure.crashed)
                else:
                    _write_failed(tx, outcome)
                _keep_attempt(tx, outcome.lease, AttemptOutcome.FAILED, recordable.started_at, failure)
            case Released() as outcome if recordable.status is RunStatus.PENDING:
                released.append(outcome)
            case Cancelled() | Released() as outcome:
                cancelled = outcome if isinstance(outcome, Cancelled) else Cancelled(outcome.lease)
                _write_cancelled(tx, cancelled.lease, cancelled.output)
                _keep_attempt(tx, cancelled.lease, AttemptOutcome.CANCELLED, recordable.started_at, cancelled.failure)
    if succeeded:
        _write_succeeded(tx, succeeded)
    if released:
        tx.run("RUNS_RELEASE", ids=sorted(outcome.lease.run_id for outcome in released))


def _write_succeeded(tx: Session, succeeded: Sequence[Succeeded]) -> None:
    tx.run("RUNS_SUCCEED", ids=[outcome.lease.run_id for outcome in succeeded])  # in the order in which they are locked
    with_output = (outcome for outcome in succeeded if outcome.output)
    tx.run_many("RUN_OUTPUT_UPDATE", ({"id": o.lease.run_id, **output_parameters(o.output)} for o in with_output))


def _write_failed(tx: Session, outcome: Failed) -> None:
    parameters = {
        "id": outcome.lease.run_id,
        "crashed": int(outcome.failure.crashed),
        **error_parameters(outcome.failure),
        **output_parameters(outcome.output),
    }
    if outcome.retry_after is None:
        tx.run("RUN_FAIL", **parameters)
    else:
        tx.run("RUN_RETRY", **parameters, seconds=outcome.retry_after.total_seconds())


def _write_cancelled(tx: Session, lease: Lease, output: Output, *, crashed: bool = False) -> None:
    tx.run(
        "RUN_CANCEL_LEASED",
        id=lease.run_id,
        crashed=int(crashed),
        error_message=CANCELLED_MESSAGE,
        **output_parameters(output),
    )


def _keep_attempt(
    tx: Session, lease: Lease, outcome: AttemptOutcome, started_at: Any, failure: Failure | None = None
) -> None:
    tx.run(
        "ATTEMPT_INSERT",
        run_id=lease.run_id,
        attempt=lease.attempt,
        worker_name=lease.worker_name,
        started_at=started_at,
        outcome=outcome.value,
        signal=failure.signal if failure else None,
        exit_code=failure.exit_code if failure else None,
        ended_by=failure.ended_by.value if failure and failure.ended_by else None,
        **error_parameters(failure),
        **usage_parameters(failure.usage if failure else Usage()),
    )
    if lease.attempt > ATTEMPTS_KEPT_MAX:
        tx.run("ATTEMPTS_FORGET", run_id=lease.run_id, attempt=lease.attempt - ATTEMPTS_KEPT_MAX)
