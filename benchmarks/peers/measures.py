"""What a scenario did to the jobs: read from the diary of the executions, and from the outcomes in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import psycopg

from benchmarks.peers.bench import Bench, Note, Outcome, boottime, until

STILL_RUNNING_SECONDS = 1.0
"""Who has noted something within the last second is not dead."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One repetition of one scenario with one setup."""

    jobs: int
    """Acknowledged jobs that do nothing wrong."""
    lost: int
    """Those of them that the database does not call succeeded within the bound."""
    twice: int
    """Those that were executed to their end more than once."""
    overlapping: int
    """Those of which an execution still got on after another had begun."""
    cut: int
    """Executions of them that did not come to their end."""
    seconds: float | None
    """From the fault until all of them had succeeded; None: not within the bound."""
    hostile: str
    """What became of the job that did something wrong, or was too long; empty if there was none."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happened, when, and how long we look."""

    at: float
    bound_seconds: float
    special: str | None = None
    """The job whose fate is told."""
    harmless: bool = False
    """Whether the special job is expected to succeed, as all others."""
    look_seconds_min: float = 0.0


def measure(bench: Bench, fault: Fault) -> Measure:
    """Look until all is settled, or the bound is reached."""
    good = [key for key in bench.ids if key != fault.special or fault.harmless]
    peer = bench.setup.peer
    latest: dict[str, Outcome] = {}
    attempts: dict[str, int] = defaultdict(int)
    seconds: float | None = None

    def settled() -> bool:
        nonlocal seconds
        try:
            latest.update(bench.outcomes())
        except psycopg.Error:  # it is being restarted, or has not enough connections left
            return False
        for key, outcome in latest.items():
            attempts[key] = max(attempts[key], outcome.attempts)
        if seconds is None and all(key in latest and latest[key].status == peer.succeeded for key in good):
            seconds = boottime() - fault.at
        early = boottime() < fault.at + fault.look_seconds_min
        return not early and all(key in latest and latest[key].status in peer.ended for key in bench.ids)

    until(settled, fault.at + fault.bound_seconds)
    executions, looked_at = _executions(bench.notes()), boottime()
    return Measure(
        jobs=len(good),
        lost=sum(key not in latest or latest[key].status != peer.succeeded for key in good),
        twice=sum(sum(map(_ended, executions[key])) > 1 for key in good),
        overlapping=sum(_overlap(executions[key]) for key in good),
        cut=sum(_cut(execution, looked_at) for key in good for execution in executions[key]),
        seconds=seconds,
        hostile=_fate(fault, latest, attempts, executions, peer.attempts_without_a_fault),
    )


def _executions(notes: Iterable[Note]) -> dict[str, list[list[Note]]]:
    """The notes of each execution, of each key, in the order in which they began."""
    found: dict[str, dict[str, list[Note]]] = defaultdict(dict)
    for note in sorted(notes, key=lambda note: note.at):
        found[note.key].setdefault(note.execution, []).append(note)
    return defaultdict(list, {key: list(executions.values()) for key, executions in found.items()})


def _ended(execution: list[Note]) -> bool:
    return execution[-1].what == "end"


def _cut(execution: list[Note], looked_at: float) -> bool:
    return not _ended(execution) and execution[-1].at < looked_at - STILL_RUNNING_SECONDS


def _overlap(executions: list[list[Note]]) -> bool:
    return any(earlier[-1].at > later[0].at for earlier, later in pairwise(executions))


def _fate(
    fault: Fault,
    latest: dict[str, Outcome],
    attempts: dict[str, int],
    executions: dict[str, list[list[Note]]],
    attempts_without_a_fault: int,
) -> str:
    if fault.special is None:
        return ""
    status = latest[fault.special].status if fault.special in latest else "gone"
    executed = len(executions[fault.special])
    if not fault.harmless:
        return f"{status}, executed {'once' if executed == 1 else f'{executed} times'}"
    counted = attempts[fault.special] - attempts_without_a_fault
    cost = f", {counted} attempt counted for it" if counted > 0 else ", no attempt counted for it"
    return f"{status}" + (cost if executed > 1 else ", executed once")


def worst(measures: list[Measure]) -> Measure:
    """Of repetitions: the median of the seconds, and the worst of everything else."""
    times = [each.seconds for each in measures if each.seconds is not None]
    return Measure(
        jobs=max(each.jobs for each in measures),
        lost=max(each.lost for each in measures),
        twice=max(each.twice for each in measures),
        overlapping=max(each.overlapping for each in measures),
        cut=max(each.cut for each in measures),
        seconds=median(times) if len(times) == len(measures) else None,
        hostile=" / ".join(dict.fromkeys(each.hostile for each in measures)),
    )
