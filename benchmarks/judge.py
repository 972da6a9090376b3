"""Judges a history: nothing lost, nothing twice, nothing unexplained. Pure functions over records.

The rules have the names of the specification: H1 to H9 of the checker, S1 to S18 of the protocol's invariants.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from uuid import UUID

from benchmarks.causes import (
    AFTERMATH_SECONDS,
    CLOCKS_AGREE_SECONDS,
    INFRASTRUCTURE,
    causes_of,
    executions_of,
    leases_of,
    recovery_seconds,
)
from benchmarks.history import (
    Answer,
    AttemptRow,
    Change,
    Disturbance,
    Execution,
    Exit,
    History,
    Said,
    Verdict,
    Violation,
)

AFTER_THAW_SECONDS = 0.25
"""A guard that thaws has so long to end what is overdue."""

STARTING_SECONDS = 5.0
"""A process that is asked to end before it has come to listen for that ends as any other would."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})
STEPS = {
    (None, "pending"),
    ("pending", "leased"),
    ("pending", "cancelled"),
    ("leased", "succeeded"),
    ("leased", "failed"),
    ("leased", "pending"),
    ("leased", "leased"),
    ("leased", "cancelled"),
}

LOST = "H4 lost"
UNEXPECTED = "H5 unexpected"
OVERLAP = "H3 overlap"
TWICE = "H1 recorded twice"
STEP = "H1 illegal step"
TOKEN = "S4 token"
ARITHMETIC = "H8 attempt arithmetic"
TOO_OFTEN = "S15 too many attempts"
UNFAITHFUL = "S9 outcome unfaithful"
WITHOUT_LEASE = "S8 executed without a lease"
UNEXPLAINED = "H6 unexplained re-execution"
EARLY = "S11 early"
CAPACITY = "S10 capacity"
NOT_ENDED = "L6 not ended"
ENDED_BY_ITSELF = "S18 supervisor ended"
LEFT_BEHIND = "S17 left behind"

Keyed = TypeVar("Keyed", Execution, Change, AttemptRow, Said)


def judge(history: History) -> Verdict:
    """Hold the history against all rules."""
    executions, changes = _by_run(history.executions), _by_run(history.changes)
    overlaps = list(find_overlaps(history.executions))
    tagged = [pair for pair in overlaps if _is_excused(*pair, history.disturbances)]
    reexecutions = [cause for of_run in executions.values() for cause in causes_of(of_run, changes, history)]
    violations = [
        *check_enqueues(history),
        *check_ends(history),
        *_each(check_steps, changes),
        *_each(check_tokens, changes),
        *_each(check_attempts, changes),
        *check_records(history, changes),
        *check_executions(history, executions, changes),
        *(_overlap(first, second) for first, second in overlaps if (first, second) not in tagged),
        *check_capacity(history),
        *check_exits(history),
        *(Violation(UNEXPLAINED, cause.what, run_id) for run_id, cause in reexecutions if cause.by is None),
    ]
    stored = {row.run_id for row in history.rows}
    answers = Counter(intent.answer for intent in history.intents)
    uncertain = [intent for intent in history.intents if intent.answer is Answer.UNCERTAIN]
    return Verdict(
        acknowledged=answers[Answer.ACKNOWLEDGED],
        uncertain=answers[Answer.UNCERTAIN],
        uncertain_stored=sum(intent.run_id in stored for intent in uncertain),
        refused=answers[Answer.REFUSED],
        statuses=dict(Counter(row.status for row in history.rows)),
        executions=len(history.executions),
        claims=sum(change.is_claim for change in history.changes),
        refunds=sum(change.is_refund for change in history.changes),
        reexecuted=dict(Counter(cause for _, cause in reexecutions)),
        tagged_overlaps=len(tagged),
        recovery_seconds=recovery_seconds(history, executions),
        violations=violations,
    )


def _by_run(records: Iterable[Keyed]) -> dict[UUID, list[Keyed]]:
    runs: defaultdict[UUID, list[Keyed]] = defaultdict(list)
    for record in records:
        runs[record.run_id].append(record)
    return runs


def _each(
    check: Callable[[UUID, list[Change]], Iterator[Violation]], changes: dict[UUID, list[Change]]
) -> Iterator[Violation]:
    for run_id, of_run in changes.items():
        yield from check(run_id, of_run)


# --- what went in must come out


def check_enqueues(history: History) -> Iterator[Violation]:
    """H4: what was acknowledged is there. H5: nothing else is, but for what may have happened (H7)."""
    stored = {row.run_id for row in history.rows}
    may_be_there = {intent.run_id for intent in history.intents if intent.answer is not Answer.REFUSED}
    for intent in history.intents:
        if intent.answer is Answer.ACKNOWLEDGED and intent.run_id not in stored:
            yield Violation(LOST, f"a run of {intent.job_name} was acknowledged and is not there", intent.run_id)
    for run_id in stored - may_be_there:
        yield Violation(UNEXPECTED, "a run is there that nobody enqueued, or that was refused", run_id)
    for run_id in {execution.run_id for execution in history.executions} - may_be_there:
        yield Violation(UNEXPECTED, "a run was executed that nobody enqueued, or that was refused", run_id)


def check_ends(history: History) -> Iterator[Violation]:
    """L6: every run has ended. S15: none was tried more often than it may."""
    wanted = {intent.run_id for intent in history.intents if intent.cancelled}
    for row in history.rows:
        if row.status not in FINAL:
            yield Violation(NOT_ENDED, f"it is {row.status} after {row.attempt} attempts", row.run_id)
        if row.attempt > row.max_attempts:
            yield Violation(TOO_OFTEN, f"attempt {row.attempt} of {row.max_attempts}", row.run_id)
        if row.status == "cancelled" and row.run_id not in wanted:
            yield Violation(UNFAITHFUL, "it is cancelled, and nobody asked for it", row.run_id)


# --- what the database did


def check_steps(run_id: UUID, changes: Sequence[Change]) -> Iterator[Violation]:
    """H1: only legal steps, each from where the last one led, and none after the end. One end, at most."""
    status: str | None = None
    ends = 0
    for change in changes:
        ends += change.after in FINAL
        if change.before != status:
            yield Violation(STEP, f"from {change.before}, but it was {status}", run_id)
        if (change.before, change.after) not in STEPS:
            yield Violation(STEP, f"{change.before} to {change.after}", run_id)
        status = change.after
    if ends > 1:
        yield Violation(TWICE, f"it ended {ends} times", run_id)


def check_tokens(run_id: UUID, changes: Sequence[Change]) -> Iterator[Violation]:
    """S4: each claim has a token that no claim of the run had before; without a lease there is none."""
    seen: set[str] = set()
    for change in changes:
        if (change.token is not None) != change.is_claim:
            yield Violation(TOKEN, f"{change.after} with token {change.token}", run_id)
        elif change.token is not None and change.token in seen:
            yield Violation(TOKEN, f"token {change.token} was used before", run_id)
        if change.token is not None:
            seen.add(change.token)


def check_attempts(run_id: UUID, changes: Sequence[Change]) -> Iterator[Violation]:
    """H8: a claim adds one, a refund of a lease takes one, nothing else touches it."""
    attempt = 0
    for change in changes:
        if change.is_claim:
            allowed = {attempt + 1}
        elif (change.before, change.after) == ("leased", "pending"):
            allowed = {attempt, attempt - 1}
        elif (change.before, change.after) == ("leased", "cancelled"):
            allowed = {attempt, attempt - 1}  # what was to be released, and met a request to cancel it
        else:
            allowed = {attempt}
        if change.attempt not in allowed:
            text = f"{change.before} to {change.after} made attempt {change.attempt} of {attempt}"
            yield Violation(ARITHMETIC, text, run_id)
        attempt = change.attempt


# --- what was recorded, and what was done


def check_records(history: History, changes: dict[UUID, list[Change]]) -> Iterator[Violation]:
    """Nothing is recorded twice, in the product's own history or by two supervisors; the end is the last change."""
    for run_id, attempts in _by_run(history.attempts).items():
        for attempt, count in Counter(each.attempt for each in attempts).items():
            if count > 1:
                yield Violation(TWICE, f"its history has {count} lines of attempt {attempt}", run_id)
        if (successes := sum(each.outcome == "succeeded" for each in attempts)) > 1:
            yield Violation(TWICE, f"its history has {successes} successes", run_id)
    for run_id, said in _by_run(history.said).items():
        if (successes := sum(each.what == "succeeded" for each in said)) > 1:
            yield Violation(TWICE, f"supervisors said {successes} times that its success was recorded", run_id)
    for row in history.rows:
        last = changes[row.run_id][-1] if changes.get(row.run_id) else None
        if last is not None and (last.after, last.attempt) != (row.status, row.attempt):
            yield Violation(STEP, f"it is {row.status}, and the last change made it {last.after}", row.run_id)


def check_executions(
    history: History, executions: dict[UUID, list[Execution]], changes: dict[UUID, list[Change]]
) -> Iterator[Violation]:
    """S8: one execution per lease. S9: success stands where a job ended well, and only there. S11: none was early."""
    due_at = {intent.run_id: intent.due_at for intent in history.intents}
    for run_id, of_run in executions.items():
        for execution in of_run:
            if execution.started_at < due_at.get(run_id, 0.0) - CLOCKS_AGREE_SECONDS:
                yield Violation(EARLY, f"it started {due_at[run_id] - execution.started_at:.2f} s early", run_id)
    for run_id, changed in changes.items():
        leases = leases_of(changed)
        found = executions_of(leases, executions.get(run_id, []))
        homeless = len(executions.get(run_id, [])) - sum(map(len, found))
        if homeless:
            yield Violation(WITHOUT_LEASE, f"{homeless} executions belong to no lease", run_id)
        for (claim, end), of_lease in zip(leases, found, strict=True):
            if len(of_lease) > 1:
                yield Violation(WITHOUT_LEASE, f"attempt {claim.attempt} was executed {len(of_lease)} times", run_id)
            if end is not None:
                yield from _check_outcome(run_id, end, [each.ended for each in of_lease])


def _check_outcome(run_id: UUID, end: Change, ended: list[str | None]) -> Iterator[Violation]:
    if end.after == "succeeded" and "end" not in ended:
        yield Violation(UNFAITHFUL, f"recorded as success, but the job ended with {ended}", run_id)
    if end.after in ("failed", "pending") and not end.is_refund and end.error_type not in INFRASTRUCTURE:
        if "end" in ended:
            yield Violation(UNFAITHFUL, f"the job ended well, and {end.error_type} is recorded", run_id)
        elif "raise" not in ended and "told" not in ended:
            yield Violation(UNFAITHFUL, f"{end.error_type} is recorded, but the job ended with {ended}", run_id)


# --- overlap


def find_overlaps(executions: Iterable[Execution]) -> Iterator[tuple[Execution, Execution]]:
    """H3: an execution that was seen alive after a later one of the same run had begun, and that later one."""
    for of_run in _by_run(executions).values():
        in_order = sorted(of_run, key=lambda execution: execution.started_at)
        for number, first in enumerate(in_order):
            for second in in_order[number + 1 :]:
                if first.last_seen_at > second.started_at:
                    yield first, second


def _is_excused(first: Execution, second: Execution, disturbances: Iterable[Disturbance]) -> bool:
    """Nobody could end the older one: its supervisor and its guard were both frozen when the newer one began."""
    return any(
        first.life in each.lives
        and each.began_at <= second.started_at <= each.ended_at
        and first.last_seen_at <= each.ended_at + AFTER_THAW_SECONDS
        for each in disturbances
        if each.froze_together
    )


def _overlap(first: Execution, second: Execution) -> Violation:
    seconds = first.last_seen_at - second.started_at
    text = (
        f"attempt {first.attempt} (pid {first.pid} of {first.life}) was alive {seconds:.3f} s after attempt "
        f"{second.attempt} (pid {second.pid} of {second.life}) had begun at {second.started_at:.3f}"
    )
    return Violation(OVERLAP, text, first.run_id)


def check_capacity(history: History) -> Iterator[Violation]:
    """S10: no supervisor executes more runs at once than it may."""
    lives: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for execution in history.executions:
        lives[execution.life] += [(execution.started_at, 1), (execution.last_seen_at, -1)]
    for life, edges in lives.items():
        at_once = most = 0
        for _, step in sorted(edges):
            at_once += step
            most = max(most, at_once)
        if most > history.runs_at_once_max:
            yield Violation(CAPACITY, f"{life} executed {most} runs at once, of {history.runs_at_once_max}")


def check_exits(history: History) -> Iterator[Violation]:
    """S18, L5: a supervisor ends when it is killed, when it is asked to, or when it cannot start for want of its
    database. S17: it leaves nothing behind."""
    for each in history.exits:
        expected = {"killed": {-9}, "asked": {0, 4}}.get(each.by, set())
        if each.by == "asked" and each.code == -15 and each.at - each.started_at < STARTING_SECONDS:
            continue
        if each.code == 3 and any(_strikes(it, each) for it in history.disturbances):
            continue
        if each.code not in expected:
            text = (
                f"{each.life} ended with {each.code}, {each.by or 'unasked'}, after {each.at - each.started_at:.1f} s"
            )
            yield Violation(ENDED_BY_ITSELF, text)
    for left in history.left_behind:
        yield Violation(LEFT_BEHIND, left)


def _strikes(disturbance: Disturbance, end: Exit) -> bool:
    in_time = disturbance.began_at <= end.at and disturbance.ended_at + AFTERMATH_SECONDS >= end.started_at
    return in_time and (not disturbance.lives or end.life in disturbance.lives)
