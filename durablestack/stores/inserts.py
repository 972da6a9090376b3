"""Runs on their way into the table. Many of one job go in portions: the first is under way while the next is made."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from durablestack.runs import NewRun

from .rows import new_run_parameters
from .session import Session

COPIED_MIN = 5_000
"""From so many it pays to copy, though it takes some journeys more."""

_ALONE_CHARACTERS_MAX = 5_000
"""What is longer may be cut with only a part of it sent, where it should be known that nothing was stored."""
_INSERTED_MAX = 2_000
_COPIED_TOGETHER_MAX = 500
_CHARACTERS_MAX = 1_000_000

# PostgreSQL's binary form of rows: numbers with the highest byte first, instants in microseconds since 2000
_FOUR_BYTES = struct.Struct(">i").pack
_EIGHT_BYTES = struct.Struct(">q").pack
_ZERO = datetime(2000, 1, 1, tzinfo=UTC)
_COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_ROW_BEGIN = struct.pack(">hi", 10, 16)  # ten columns, the first of 16 bytes
_COPY_END = struct.pack(">h", -1)


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
    now = tx.now()
    tx.copy("RUNS_COPY", lambda encoding: copy_portions(runs, now, encoding))


def goes_alone(runs: Sequence[NewRun]) -> bool:
    """Whether it is a single one, and so short that it is sent at once."""
    return len(runs) == 1 and len(runs[0].payload or "") < _ALONE_CHARACTERS_MAX


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


def copy_portions(runs: Sequence[NewRun], now: datetime, encoding: str) -> Iterator[bytes]:
    """The rows of `RUNS_COPY`, for such runs, due now: each field begins with the length of what follows."""
    first, at = runs[0], _EIGHT_BYTES((now - _ZERO) // timedelta(microseconds=1))
    recurring_job_name = first.job_name if first.recurring else None
    attempts = b"\0\0\0\0", _FOUR_BYTES(first.max_attempts)
    texts = (first.job_name, "pending", recurring_job_name, first.trace_context)
    job_name, pending, *others = (None if text is None else text.encode(encoding) for text in texts)
    same = b"".join(map(_field, (job_name, pending, at, *attempts, at, *others)))
    yield _COPY_BEGIN
    for portion in _portions(_sorted(runs), _COPIED_TOGETHER_MAX):
        rows: list[bytes] = []
        for run in portion:
            payload = b"" if run.payload is None else run.payload.encode(encoding)
            length = -1 if run.payload is None else len(payload)
            rows += (_ROW_BEGIN, run.id.bytes, _FOUR_BYTES(length), payload, same)
        yield b"".join(rows)
    yield _COPY_END


def _field(value: bytes | None) -> bytes:
    return _FOUR_BYTES(-1) if value is None else _FOUR_BYTES(len(value)) + value


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
