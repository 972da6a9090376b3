"""Runs on their way into the table. Many of one job go in portions: the first is under way while the next is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from durablestack.runs import NewRun

from .rows import new_run_parameters
from .session import Session

COPIED_MIN = 5_000
"""From so many it pays to copy, though it takes some journeys more."""

_INSERTED_MAX = 2_000
_COPIED_TOGETHER_MAX = 500
_CHARACTERS_MAX = 1_000_000


def insert(tx: Session, runs: Sequence[NewRun]) -> None:
    """What is there already is left as it is."""
    if len(runs) == 1:
        tx.run("RUN_INSERT", **new_run_parameters(runs)[0])
    elif tx.knows("RUNS_INSERT") and are_alike(runs):
        for portion in insert_portions(runs):
            tx.run("RUNS_INSERT", **portion)
    else:
        tx.run_many("RUN_INSERT", new_run_parameters(runs))


def copy(tx: Session, runs: Sequence[NewRun]) -> None:
    """The same for runs that `may_be_copied`; AlreadyThere, and nothing is done, if one of them is."""
    tx.copy("RUNS_COPY", copy_portions(runs, tx.now()))


def are_alike(runs: Sequence[NewRun]) -> bool:
    """Whether there are several, of one job, and not traced apart from each other."""
    if len(runs) < 2:
        return False
    first = runs[0]
    for run in runs:
        if run.job_name != first.job_name or run.max_attempts != first.max_attempts or run.recurring != first.recurring:
            return False
        if run.trace_context != first.trace_context:
            return False
    return True


def insert_portions(runs: Sequence[NewRun]) -> Iterator[dict[str, Any]]:
    """The parameters of `RUNS_INSERT`, for runs that are alike: what is the same for all of them once, the rest as
    lists."""
    return map(_alike_parameters, _portions(_sorted(runs), _INSERTED_MAX))


def may_be_copied(runs: Sequence[NewRun]) -> bool:
    """Whether they are told apart by id and payload alone, and so many that it pays to copy them."""
    if len(runs) < COPIED_MIN or not are_alike(runs):
        return False
    return all(run.scheduled_for is None and run.slot is None and run.requeued_from is None for run in runs)


def copy_portions(runs: Sequence[NewRun], now: datetime) -> Iterator[str]:
    """The rows of `RUNS_COPY`, for such runs, due now."""
    first, at = runs[0], now.isoformat()
    recurring_job_name = first.job_name if first.recurring else None
    same = (first.job_name, "pending", at, "0", str(first.max_attempts), at, recurring_job_name, first.trace_context)
    ending = "".join(f"\t{_copied(value)}" for value in same) + "\n"
    for portion in _portions(_sorted(runs), _COPIED_TOGETHER_MAX):
        yield "".join([f"{run.id.hex}\t{_copied(run.payload)}{ending}" for run in portion])


def _copied(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _sorted(runs: Sequence[NewRun]) -> list[NewRun]:
    """In the order of their ids, as everyone does, so that no two wait for each other."""
    return sorted(runs, key=lambda run: run.id.int)


def _portions(runs: Sequence[NewRun], runs_max: int) -> Iterator[Sequence[NewRun]]:
    begin = characters = 0
    for end, run in enumerate(runs):
        characters += len(run.payload or "")
        if end - begin == runs_max or characters > _CHARACTERS_MAX:
            yield runs[begin:end]
            begin, characters = end, len(run.payload or "")
    yield runs[begin:]


def _alike_parameters(runs: Sequence[NewRun]) -> dict[str, Any]:
    first = runs[0]
    return {
        "ids": [run.id for run in runs],
        "job_name": first.job_name,
        "payloads": _unless_none([run.payload for run in runs]),
        "scheduled_fors": _unless_none([run.scheduled_for for run in runs]),
        "max_attempts": first.max_attempts,
        "requeued_froms": _unless_none([run.requeued_from for run in runs]),
        "slots": _unless_none([run.slot for run in runs]),
        "recurring_job_name": first.job_name if first.recurring else None,
        "trace_context": first.trace_context,
    }


def _unless_none(values: list[Any]) -> list[Any]:
    return [] if values.count(None) == len(values) else values
