"""Which claim an execution belongs to, why it was not the last one of its run, and how soon the next one came.

Pure functions over the records of a chaos run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

from benchmarks.history import Cause, Change, Disturbance, Execution, History

CLOCKS_AGREE_SECONDS = 0.1
"""The database tells wall time, rounded; two clocks that are read one after the other differ by that much."""

CLOCKS_TICK_SECONDS = 0.002
"""What a timestamp in milliseconds may be off; enough to tell what came first, where both are possible."""

AFTERMATH_SECONDS = 3.0
"""What a disturbance causes may show so much later: a connection that is made anew, a process that starts."""

INFRASTRUCTURE = frozenset(
    {
        "ChildCrashed",
        "ChildExited",
        "CpuLimitExceeded",
        "LeaseExpired",
        "MemoryLimitExceeded",
        "OutOfMemory",
        "ProtocolError",
        "RunTimeout",
    }
)
"""Errors that we record; all others are those of the job."""

Leased = tuple[Change, Change | None]


def leases_of(changes: Sequence[Change]) -> list[Leased]:
    """Each claim of a run, with the change that ended it."""
    leases: list[Leased] = []
    for change in changes:
        if leases and leases[-1][1] is None:
            leases[-1] = (leases[-1][0], change)
        if change.is_claim:
            leases.append((change, None))
    return leases


def executions_of(leases: Sequence[Leased], executions: Sequence[Execution]) -> list[list[Execution]]:
    """The executions of each lease: of its attempt, and begun while it was held."""
    found: list[list[Execution]] = [[] for _ in leases]
    for execution in executions:
        fitting = [number for number, lease in enumerate(leases) if _may_be_of(execution, lease)]
        if fitting:
            # where the clocks leave a choice: one that has none yet, and of these the latest one before it
            best = min(fitting, key=lambda number: (bool(found[number]), _is_after(leases[number], execution), -number))
            found[best].append(execution)
    return found


def _may_be_of(execution: Execution, lease: Leased) -> bool:
    claim, end = lease
    begins, ends = claim.at - CLOCKS_AGREE_SECONDS, None if end is None else end.at + CLOCKS_AGREE_SECONDS
    return claim.attempt == execution.attempt and begins <= execution.started_at <= (ends or execution.started_at)


def _is_after(lease: Leased, execution: Execution) -> bool:
    return lease[0].at > execution.started_at + CLOCKS_TICK_SECONDS


# --- why again, and how soon


def causes_of(
    executions: Sequence[Execution], changes: dict[UUID, list[Change]], history: History
) -> Iterator[tuple[UUID, Cause]]:
    """H6: for each execution that was followed by another one, why."""
    run_id = executions[0].run_id
    leases = leases_of(changes.get(run_id, []))
    found = executions_of(leases, sorted(executions, key=lambda execution: execution.started_at))
    executed = [(lease, of_lease[0]) for lease, of_lease in zip(leases, found, strict=True) if of_lease]
    for (claim, end), execution in executed[:-1]:
        if end is not None:
            yield run_id, _cause(claim, end, execution, history.disturbances)


def _cause(claim: Change, end: Change, execution: Execution, disturbances: Iterable[Disturbance]) -> Cause:
    what = "released" if end.is_refund else str(end.error_type)
    if what not in INFRASTRUCTURE and not end.is_refund and execution.ended in ("raise", "told"):
        return Cause("the job raised", "the job")
    if what in ("ChildCrashed", "ChildExited") and execution.ended == "die":
        return Cause(what, "the job")
    if what == "RunTimeout" and execution.ended is None:
        return Cause(what, "its time limit")
    near = {
        each.kind
        for each in disturbances
        if each.began_at <= end.at and each.ended_at + AFTERMATH_SECONDS >= claim.at
        if not each.lives or execution.life in each.lives
        if not each.pids or execution.pid in each.pids or each.took_holder
    }
    return Cause(what, ", ".join(sorted(near)) or None)


def recovery_seconds(history: History, executions: dict[UUID, list[Execution]]) -> list[float]:
    """H9: from the moment at which the holder of a run was killed or stopped, to the next start of the run."""
    found: list[float] = []
    for struck in (each for each in history.disturbances if each.took_holder):
        for of_run in executions.values():
            held = [each for each in of_run if _was_held(each, struck)]
            later = [each.started_at for each in of_run if each.started_at > struck.began_at and each not in held]
            if held and later:
                found.append(min(later) - struck.began_at)
    return sorted(found)


def _was_held(execution: Execution, struck: Disturbance) -> bool:
    """Whether it was in the middle of its work, and never came to the end of it."""
    if execution.ended is not None or (struck.pids and execution.pid not in struck.pids):
        return False
    in_time = execution.started_at <= struck.began_at <= execution.last_seen_at + CLOCKS_AGREE_SECONDS
    return execution.life in struck.lives and in_time
