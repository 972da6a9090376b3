"""Claims: runs that are due are found, locked and leased, and leases that have expired are ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from durablestack.runs import Failure, Lease, Output, Released, Run, RunStatus
from durablestack.text import ERROR_MESSAGE_LENGTH_MAX, clean

from .contract import EXPIRED_PER_CLAIM_MAX, Claim, Claimed, ExpiredLook, taken_by
from .low_water import LowWater, Mark
from .outcomes import end_expired_lease
from .rows import UnreadableRow, Value, error_parameters, output_parameters
from .session import Answer, Session


def ask_for_expired(tx: Session) -> Callable[[], ExpiredLook]:
    """Asked now; what is returned reads the answer."""
    answer = tx.ask("EXPIRED_LOOK")

    def look() -> ExpiredLook:
        ((now, some),) = answer()
        return ExpiredLook(tx.rows.instant(now), bool(some))

    return look


def claim_due_runs(tx: Session, claim: Claim, recorded: Mapping[UUID, RunStatus], low_water: LowWater) -> Claimed:
    """Look, decide, and write: in a journey each."""
    expired = _each(tx, lock_expired(tx), lambda row: end_expired_lease(tx, row)) if claim.end_expired else []
    mark = None if expired else low_water.mark()  # what has expired is due as it was before
    due = _each(tx, _due(tx, claim, mark, low_water), lambda row: tx.rows.claimed_run(row, claim))
    taken = taken_by(claim, due, recorded)
    runs = _lease(tx, taken, claim) if taken else []
    look = ask_for_expired(tx)() if claim.looks_for_expired else None
    return Claimed(runs, expired, len(due) - len(taken), look)


def lock_expired(tx: Session) -> list[tuple[Any, ...]]:
    """Rows of runs whose leases have expired, but for those that others have locked."""
    if not tx.knows("EXPIRED_IDS_SELECT"):
        return tx.fetch("RUNS_EXPIRED_SELECT", limit=EXPIRED_PER_CLAIM_MAX)
    ids: list[Any] = [UUID(int=0)]
    rows: list[tuple[Any, ...]] = []
    while ids and not rows:
        ids = [row[0] for row in tx.fetch("EXPIRED_IDS_SELECT", after=ids[-1], limit=EXPIRED_PER_CLAIM_MAX)]
        rows = tx.fetch("RUNS_EXPIRED_SELECT", ids=ids) if ids else []
    return rows


def ask_to_claim(tx: Session, claim: Claim, low_water: LowWater) -> Callable[[], Claimed]:
    """The same in a single journey, without the expired. Asked now; what is returned reads the answer.

    A row that cannot be read is told of, and ends with its lease.
    """
    mark = low_water.mark()
    answer = _ask(tx, claim, mark)
    look = ask_for_expired(tx) if claim.looks_for_expired else None

    def claimed() -> Claimed:
        rows = answer()
        low_water.found(rows, from_beginning=mark is None)
        taken = [row for row in rows if row[1] is not None]
        runs = tx.rows.readable(taken, lambda row: tx.rows.claimed_run(row, claim))
        return Claimed(runs, [], len(rows) - len(taken), look() if look else None)

    return claimed


def rehearse(tx: Session) -> None:
    """Have the database read, plan and keep what claims ask of it in a single journey. Nothing is claimed."""
    nobody, now = UUID(int=0), datetime.now(UTC)
    claim = Claim(
        worker_name="",
        worker_id=nobody,
        lease_token=nobody,
        job_names=(),
        batch_size=0,
        lease_duration=timedelta(),
    )
    tx.ask("EXPIRED_LOOK")
    for mark in (None, Mark(now, nobody)):
        _ask(tx, claim, mark)


def releases_of_claim(tx: Session, lease_token: UUID) -> list[Released]:
    """Of what it has leased."""
    rows = tx.fetch("RUNS_OF_CLAIM_SELECT", lease_token=lease_token)
    return [Released(Lease(tx.rows.uuid(id), lease_token, attempt, owner)) for id, attempt, owner in rows]


def _ask(tx: Session, claim: Claim, mark: Mark | None) -> Answer:
    return tx.ask(
        "RUNS_CLAIM" if mark is None else "RUNS_CLAIM_FROM_MARK",
        **_due_parameters(claim, mark),
        **_lease_parameters(claim),
        may_wait=list(claim.may_wait),
        begin_max=claim.batch_size if claim.begin_max is None else claim.begin_max,
    )


def _due(tx: Session, claim: Claim, mark: Mark | None, low_water: LowWater) -> list[tuple[Any, ...]]:
    statement = "RUNS_DUE_SELECT" if mark is None else "RUNS_DUE_FROM_MARK_SELECT"
    rows = tx.fetch(statement, **_due_parameters(claim, mark))
    low_water.found(rows, from_beginning=mark is None)
    return rows


def _due_parameters(claim: Claim, mark: Mark | None) -> dict[str, Any]:
    asked = {"job_names": list(claim.job_names), "limit": claim.batch_size}
    return asked if mark is None else {**asked, "mark_scheduled_for": mark.scheduled_for, "mark_id": mark.id}


def _lease_parameters(claim: Claim) -> dict[str, Any]:
    return {
        "worker_name": claim.worker_name,
        "worker_id": claim.worker_id,
        "lease_token": claim.lease_token,
        "seconds": claim.lease_duration.total_seconds(),
    }


def _each(tx: Session, rows: list[tuple[Any, ...]], read: Callable[[tuple[Any, ...]], Value]) -> list[Value]:
    """What is made of each run; one whose row cannot be read fails for good, or no claim would get past it."""
    values: list[Value] = []
    for row in rows:
        try:
            values.append(read(row))
        except UnreadableRow as error:
            tx.rows.tell(error)
            failure = Failure(error_type="UnreadableRow", error_message=clean(str(error), ERROR_MESSAGE_LENGTH_MAX))
            tx.run("RUN_FAIL", id=row[0], crashed=0, **error_parameters(failure), **output_parameters(Output()))
    return values


def _lease(tx: Session, runs: list[Run], claim: Claim) -> list[Run]:
    """Lease the runs whose rows we have locked; where the database may think little of locks, those that were."""
    parameters = {"ids": [run.id for run in runs], **_lease_parameters(claim)}
    if not tx.dialect.tells_leased:
        tx.run("RUNS_LEASE", **parameters)
        return runs
    leased = {tx.rows.uuid(row[0]) for row in tx.fetch("RUNS_LEASE", **parameters)}
    return [run for run in runs if run.id in leased]
