"""What somebody wants of one run: that it is cancelled, done again, or tells where it is."""

from __future__ import annotations

from uuid import UUID

from durablestack.ids import new_run_id
from durablestack.runs import CANCELLED_MESSAGE, Lease, NewRun, RunStatus

from .leases import lock_leased
from .session import Session


def cancel_run(tx: Session, run_id: UUID) -> bool:
    rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
    match RunStatus(rows[0][0]) if rows else None:
        case RunStatus.PENDING:
            tx.run("RUN_CANCEL_PENDING", id=run_id, error_message=CANCELLED_MESSAGE)
        case RunStatus.LEASED:
            tx.run("RUN_REQUEST_CANCEL", id=run_id)
        case _:
            return False
    return True


def requeued(tx: Session, run_id: UUID) -> NewRun | None:
    """The run that is to be enqueued in its place; None if it has not ended badly."""
    rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
    if not rows or rows[0][0] not in (RunStatus.FAILED, RunStatus.CANCELLED):
        return None
    _, job_name, payload, max_attempts, recurring_job_name = rows[0]
    return NewRun(
        id=new_run_id(),
        job_name=job_name,
        payload=payload,
        max_attempts=max_attempts,
        requeued_from=run_id,
        recurring=recurring_job_name is not None,
    )


def request_stack(tx: Session, run_id: UUID) -> bool:
    rows = tx.fetch("RUN_SELECT_FOR_UPDATE", id=run_id)
    leased = bool(rows) and rows[0][0] == RunStatus.LEASED
    if leased:
        tx.run("STACK_REQUEST", id=run_id)
    return leased


def write_stack(tx: Session, lease: Lease, text: str) -> bool:
    held = lock_leased(tx, {lease.run_id}) == {(lease.run_id, lease.token)}
    if held:
        tx.run("STACK_WRITE", id=lease.run_id, stack=text)
    return held
