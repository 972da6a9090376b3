"""Leases on runs: locked, shown to be those of their runs, renewed, ended early."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from durablestack.runs import Lease, RunStatus

from .contract import Extended, Requests
from .session import Session

_number = attrgetter("int")  # of a UUID, which compares it by way of Python


def lock(tx: Session, ids: Collection[UUID]) -> list[tuple[Any, ...]]:
    """Lock runs in the order of their ids, as everyone does, so that no two wait for each other."""
    return tx.fetch("LEASES_SELECT_FOR_UPDATE", ids=sorted(ids, key=_number))


def lock_leased(tx: Session, ids: Collection[UUID]) -> set[tuple[UUID, UUID | None]]:
    """Lock runs, and say which are leased, and under which token."""
    return {
        (tx.rows.uuid(id), tx.rows.uuid_or_none(token))
        for id, status, token, *_ in lock(tx, ids)
        if status == RunStatus.LEASED
    }


def extend_leases(tx: Session, leases: Sequence[Lease], lease_duration: timedelta) -> Extended:
    shown = {(lease.run_id, lease.token) for lease in leases}
    held: set[UUID] = set()
    cancel_requested: set[UUID] = set()
    for id, status, lease_token, _, _, cancel_requested_at in lock(tx, {run_id for run_id, _ in shown}):
        run_id = tx.rows.uuid(id)
        if status == RunStatus.LEASED and (run_id, tx.rows.uuid_or_none(lease_token)) in shown:
            held.add(run_id)
            if cancel_requested_at is not None:
                cancel_requested.add(run_id)
    if held:
        tx.run("LEASES_EXTEND", ids=sorted(held), seconds=lease_duration.total_seconds())
    return Extended(frozenset(held), frozenset(cancel_requested))


def find_requests(tx: Session, leases: Sequence[Lease]) -> Requests:
    shown = {(lease.run_id, lease.token) for lease in leases}
    cancel: set[UUID] = set()
    stack: set[UUID] = set()
    rows = tx.fetch("REQUESTS_SELECT", ids=sorted({run_id for run_id, _ in shown}))
    for id, token, cancel_requested_at, stack_requested_at, stack_taken_at in rows:
        run_id = tx.rows.uuid(id)
        if (run_id, tx.rows.uuid_or_none(token)) in shown:
            if cancel_requested_at is not None:
                cancel.add(run_id)
            if stack_requested_at is not None and stack_taken_at is None:
                stack.add(run_id)
    return Requests(frozenset(cancel), frozenset(stack))


def expire_leases(tx: Session, worker_id: UUID) -> int:
    rows = tx.fetch("RUNS_OF_WORKER_SELECT", worker_id=worker_id)
    found = {(tx.rows.uuid(id), tx.rows.uuid_or_none(token)) for id, token in rows}
    held = lock_leased(tx, {run_id for run_id, _ in found}) & found if found else set()
    if held:
        tx.run("LEASES_EXPIRE", ids=sorted(run_id for run_id, _ in held))
    return len(held)
