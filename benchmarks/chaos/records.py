"""From the files, tables and logs that a chaos run leaves behind to what the judge reads."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.chaos.database import Database
from benchmarks.chaos_jobs import boottime
from benchmarks.history import Answer, AttemptRow, Change, Execution, Intent, Row, Said
from durablestack import DurableStack

RUNS_MAX = 1_000_000

_SAID = re.compile(
    r"(run succeeded|run failed|attempt failed, retry in [^:]+|run cancelled|run released): "
    r"run_id=(\S+) job_name=\S+ attempt=(\d+)"
)
_WORDS = {
    "run succeeded": "succeeded",
    "run failed": "failed",
    "run cancelled": "cancelled",
    "run released": "released",
}


def read_intents(folder: Path) -> list[Intent]:
    """What clients set out to do, and what they were told; a client that was killed was told nothing."""
    intents: dict[UUID, dict[str, Any]] = {}
    cancelled: set[UUID] = set()
    for path in sorted((folder / "intents").iterdir()):
        for entry in map(msgspec.json.decode, whole_lines(path)):
            run_ids = [UUID(run_id) for run_id in entry["run_ids"]]
            match entry["what"]:
                case "intent":
                    for run_id in run_ids:
                        intents[run_id] = {**entry, "answer": Answer.UNCERTAIN}
                case "cancel":
                    cancelled.update(run_ids)
                case answer:
                    for run_id in run_ids:
                        intents[run_id]["answer"] = Answer(answer)
    return [
        Intent(
            run_id=run_id,
            job_name=entry["job_name"],
            answer=entry["answer"],
            due_at=entry["due_at"],
            cancelled=run_id in cancelled,
        )
        for run_id, entry in intents.items()
    ]


def read_executions(folder: Path) -> list[Execution]:
    return [execution for path in sorted((folder / "executions").iterdir()) for execution in _executions_in(path)]


def _executions_in(path: Path) -> Iterator[Execution]:
    life, pid, _ = path.name.split()
    begun: list[tuple[UUID, int, float]] = []
    seen_at, ended = 0.0, None
    for line in whole_lines(path):
        what, run_id, attempt, at = line.decode().split()
        if what == "start":
            yield from (_execution(*each, life, int(pid), seen_at, ended) for each in begun)
            begun, ended = [(UUID(run_id), int(attempt), float(at))], None
        elif what != "beat":
            ended = what
        seen_at = float(at)
    yield from (_execution(*each, life, int(pid), seen_at, ended) for each in begun)


def _execution(
    run_id: UUID, attempt: int, started_at: float, life: str, pid: int, seen_at: float, ended: str | None
) -> Execution:
    return Execution(
        run_id=run_id,
        attempt=attempt,
        life=life,
        pid=pid,
        started_at=started_at,
        last_seen_at=seen_at,
        ended=ended,
    )


def whole_lines(path: Path) -> list[bytes]:
    """What was written to its end; of a line that was cut, nothing."""
    return path.read_bytes().split(b"\n")[:-1]


def read_said(folder: Path) -> list[Said]:
    said = []
    for path in sorted(folder.glob("supervisor-*.log")):
        life = path.stem.removeprefix("supervisor-")
        for what, run_id, attempt in _SAID.findall(path.read_text(errors="replace")):
            said.append(Said(life=life, run_id=UUID(run_id), attempt=int(attempt), what=_WORDS.get(what, "retried")))
    return said


def read_changes(database: Database) -> list[Change]:
    wall_minus_boot = time.time() - boottime()
    return [_change(row, wall_minus_boot) for row in database.audited()]


def _change(row: Sequence[Any], wall_minus_boot: float) -> Change:
    run_id, at, before, after, attempt_before, attempt, token_before, token, error_type = row
    return Change(
        run_id=_uuid(run_id),
        at=float(at) - wall_minus_boot,
        before=before,
        after=after,
        attempt_before=attempt_before,
        attempt=attempt,
        token_before=None if token_before is None else str(_uuid(token_before)),
        token=None if token is None else str(_uuid(token)),
        error_type=error_type,
    )


def _uuid(value: UUID | str | bytes) -> UUID:
    match value:
        case UUID():
            return value
        case bytes():
            return UUID(bytes=value)
        case str():
            return UUID(value)


def read_rows(stack: DurableStack) -> list[Row]:
    return [
        Row(
            run_id=run.id,
            status=run.status,
            attempt=run.attempt,
            max_attempts=run.max_attempts,
            error_type=run.error_type,
        )
        for run in stack.store.list_runs(take=RUNS_MAX)
    ]


def read_attempts(stack: DurableStack, run_ids: Sequence[UUID]) -> list[AttemptRow]:
    return [
        AttemptRow(run_id=run_id, attempt=each.attempt, outcome=each.outcome, error_type=each.error_type)
        for run_id in run_ids
        for each in stack.queries.get_attempts(run_id)
    ]
