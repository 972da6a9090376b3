"""Schedules, and the runs that are made of them: each is changed under a lock on its row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from uuid import UUID

from durablestack.errors import ScheduleError
from durablestack.runs import NewRun
from durablestack.schedules import Schedule

from .contract import ChangeSchedule, SlotDue, scheduled_run
from .rows import schedule_parameters
from .session import Session

Insert = Callable[[Session, NewRun], None]


def find_schedule(tx: Session, job_name: str, statement: str = "JOB_SELECT") -> Schedule | None:
    rows = tx.fetch(statement, job_name=job_name)
    return tx.rows.schedule(rows[0]) if rows else None


def change_schedule(tx: Session, job_name: str, change: ChangeSchedule) -> Schedule | None:
    before = find_schedule(tx, job_name, "JOB_SELECT_FOR_UPDATE")
    changed = change(before, tx.now())
    if changed is None:
        return before
    tx.run("JOB_INSERT" if before is None else "JOB_UPDATE", **schedule_parameters(changed))
    return find_schedule(tx, job_name)  # somebody else may have inserted it before us


def keep_seen(tx: Session, job_names: Collection[str], every: timedelta) -> None:
    # in the order of their names, as everyone does, so that no two wait for each other
    names, seconds = list(job_names), every.total_seconds()
    unseen = tx.fetch("JOBS_UNSEEN_SELECT_FOR_UPDATE", job_names=names, seconds=seconds)
    if unseen:
        tx.run("JOBS_SEEN_UPDATE", job_names=[row[0] for row in unseen])


def materialize(tx: Session, job_name: str, slot_due: SlotDue, insert: Insert) -> NewRun | None:
    schedule = find_schedule(tx, job_name, "JOB_SELECT_SKIP_LOCKED")
    if schedule is None or not schedule.enabled:
        return None
    slot = slot_due(schedule, tx.now())
    if slot is None or (slot.at is not None and _has_to_wait(tx, schedule)):
        return None
    run = None
    if slot.at is not None and not tx.fetch("RUN_OF_SLOT_SELECT", job_name=job_name, slot=slot.at):
        run = scheduled_run(schedule, slot.at)
        insert(tx, run)
    tx.run(
        "JOB_MATERIALIZED_UPDATE",
        job_name=job_name,
        next_run_at=slot.next_run_at,
        last_slot=slot.at or schedule.last_slot,
    )
    return run


def run_now(tx: Session, job_name: str, insert: Insert) -> UUID | None:
    schedule = find_schedule(tx, job_name, "JOB_SELECT_FOR_UPDATE")
    if schedule is None:
        raise ScheduleError(f"there is no schedule of a job {job_name!r}")
    if _has_to_wait(tx, schedule):
        return None
    run = scheduled_run(schedule, slot=None)
    insert(tx, run)
    return run.id


def _has_to_wait(tx: Session, schedule: Schedule) -> bool:
    """The row of the schedule is locked by us: nobody can make a run of it between this look and our insert."""
    if schedule.allow_concurrent_runs:
        return False
    return bool(tx.fetch("RUNS_ACTIVE_SELECT", job_name=schedule.job_name, limit=1))
