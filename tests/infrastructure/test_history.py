"""The judge of chaos runs finds nothing wrong with a sound history, and each kind of wrong in a broken one."""

import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

sys.path.append(str(Path(__file__).parent.parent.parent))  # benchmarks are not installed

from benchmarks import judge as rules
from benchmarks.chaos.schedule import Kind, Store, draw_schedule
from benchmarks.history import (
    Answer,
    AttemptRow,
    Change,
    Disturbance,
    Execution,
    Exit,
    History,
    Intent,
    Row,
    Said,
    Verdict,
)
from benchmarks.judge import judge

RUN, OTHER = UUID(int=1), UUID(int=2)
TOKENS = ["a", "b", "c"]


def step(
    at: float,
    before: str | None,
    after: str,
    attempts: tuple[int | None, int],
    tokens: tuple[str | None, str | None] = (None, None),
    error_type: str | None = None,
) -> Change:
    return Change(
        run_id=RUN,
        at=at,
        before=before,
        after=after,
        attempt_before=attempts[0],
        attempt=attempts[1],
        token_before=tokens[0],
        token=tokens[1],
        error_type=error_type,
    )


def execution(attempt: int, started_at: float, last_seen_at: float, ended: str | None, life: str = "0.1") -> Execution:
    return Execution(
        run_id=RUN,
        attempt=attempt,
        life=life,
        pid=attempt,
        started_at=started_at,
        last_seen_at=last_seen_at,
        ended=ended,
    )


ENQUEUED = step(1.0, None, "pending", (None, 0))
CLAIMED = step(2.0, "pending", "leased", (0, 1), (None, "a"))
EXPIRED = step(5.0, "leased", "pending", (1, 1), ("a", None), "LeaseExpired")
CLAIMED_AGAIN = step(5.5, "pending", "leased", (1, 2), (None, "b"), "LeaseExpired")
SUCCEEDED = step(7.0, "leased", "succeeded", (2, 2), ("b", None))
FIRST, SECOND = execution(1, 2.1, 3.0, None), execution(2, 5.6, 6.9, "end", "1.1")
KILLED = Disturbance(kind="kill supervisor", began_at=3.0, ended_at=3.5, lives=frozenset({"0.1"}), took_holder=True)

SOUND = History(
    intents=[Intent(run_id=RUN, job_name="works", answer=Answer.ACKNOWLEDGED, due_at=0.0)],
    executions=[FIRST, SECOND],
    changes=[ENQUEUED, CLAIMED, EXPIRED, CLAIMED_AGAIN, SUCCEEDED],
    rows=[Row(run_id=RUN, status="succeeded", attempt=2, max_attempts=3)],
    attempts=[
        AttemptRow(run_id=RUN, attempt=1, outcome="expired", error_type="LeaseExpired"),
        AttemptRow(run_id=RUN, attempt=2, outcome="succeeded"),
    ],
    said=[Said(life="1.1", run_id=RUN, attempt=2, what="succeeded")],
    disturbances=[KILLED],
    exits=[Exit(life="0.1", code=-9, started_at=0.0, at=3.0, by="killed")],
)


def broken(verdict: Verdict) -> set[str]:
    return {violation.rule for violation in verdict.violations}


def with_changes(*changes: Change) -> History:
    return replace(SOUND, changes=changes)


def test_a_run_that_was_recovered_from_a_killed_supervisor_is_sound() -> None:
    verdict = judge(SOUND)
    assert verdict.violations == []
    assert (verdict.acknowledged, verdict.executions, verdict.claims, verdict.refunds) == (1, 2, 2, 0)
    assert [(cause.what, cause.by, count) for cause, count in verdict.reexecuted.items()] == [
        ("LeaseExpired", "kill supervisor", 1)
    ]
    assert verdict.recovery_seconds == [pytest.approx(2.6)]


def test_an_acknowledged_run_that_is_not_there_is_lost() -> None:
    lost = replace(SOUND, rows=[], changes=[], executions=[], attempts=[], said=[])
    assert broken(judge(lost)) == {rules.LOST}


@pytest.mark.parametrize("stored", [True, False])
def test_an_uncertain_enqueue_may_be_there_or_not(stored: bool) -> None:
    intents = [replace(SOUND.intents[0], answer=Answer.UNCERTAIN)]
    absent = History(intents=intents)
    verdict = judge(replace(SOUND, intents=intents) if stored else absent)
    assert verdict.violations == []
    assert (verdict.uncertain, verdict.uncertain_stored) == (1, int(stored))


def test_a_refused_enqueue_must_not_be_there() -> None:
    refused = replace(SOUND, intents=[replace(SOUND.intents[0], answer=Answer.REFUSED)])
    assert broken(judge(refused)) == {rules.UNEXPECTED}


def test_a_run_that_nobody_enqueued_is_unexpected() -> None:
    stranger = Row(run_id=OTHER, status="cancelled", attempt=0, max_attempts=3)
    assert rules.UNEXPECTED in broken(judge(replace(SOUND, rows=[*SOUND.rows, stranger])))


def test_a_run_that_has_not_ended_is_told() -> None:
    stuck = replace(
        with_changes(ENQUEUED, CLAIMED, EXPIRED, CLAIMED_AGAIN),
        rows=[Row(run_id=RUN, status="leased", attempt=2, max_attempts=3)],
        said=[],
        attempts=SOUND.attempts[:1],
    )
    assert broken(judge(stuck)) == {rules.NOT_ENDED}


def test_an_execution_that_is_seen_alive_after_the_next_one_began_overlaps() -> None:
    overlapping = replace(SOUND, executions=[replace(FIRST, last_seen_at=5.61), SECOND])
    verdict = judge(overlapping)
    assert broken(verdict) == {rules.OVERLAP}
    assert verdict.tagged_overlaps == 0


def test_an_overlap_is_excused_only_while_supervisor_and_guard_were_frozen_together() -> None:
    overlapping = replace(SOUND, executions=[replace(FIRST, last_seen_at=5.9), SECOND])
    frozen = Disturbance(
        kind="freeze supervisor and guard",
        began_at=3.0,
        ended_at=6.0,
        lives=frozenset({"0.1"}),
        froze_together=True,
        took_holder=True,
    )
    excused = judge(replace(overlapping, disturbances=[frozen]))
    assert (excused.violations, excused.tagged_overlaps) == ([], 1)
    for unlike in (
        replace(frozen, froze_together=False),
        replace(frozen, lives=frozenset({"1.1"})),
        replace(frozen, ended_at=5.0),
        replace(frozen, ended_at=5.62),
    ):
        assert broken(judge(replace(overlapping, disturbances=[KILLED, unlike]))) == {rules.OVERLAP}


def test_a_second_success_is_recorded_twice() -> None:
    again = step(8.0, "succeeded", "succeeded", (2, 2))
    assert {rules.TWICE, rules.STEP} <= broken(judge(replace(SOUND, changes=[*SOUND.changes, again])))


@pytest.mark.parametrize(
    "changed",
    [
        replace(SOUND, attempts=[*SOUND.attempts, SOUND.attempts[1]]),
        replace(SOUND, attempts=[*SOUND.attempts, AttemptRow(run_id=RUN, attempt=1, outcome="failed")]),
        replace(SOUND, said=[*SOUND.said, Said(life="0.1", run_id=RUN, attempt=1, what="succeeded")]),
    ],
    ids=["two lines of one success", "two lines of one attempt", "two supervisors said so"],
)
def test_what_two_records_tell_is_recorded_twice(changed: History) -> None:
    assert broken(judge(changed)) == {rules.TWICE}


@pytest.mark.parametrize(
    "changes",
    [
        [ENQUEUED, CLAIMED, step(5.0, "leased", "succeeded", (1, 1), ("a", None)), CLAIMED_AGAIN, SUCCEEDED],
        [ENQUEUED, step(5.5, "pending", "succeeded", (0, 0))],
        [CLAIMED, EXPIRED, CLAIMED_AGAIN, SUCCEEDED],
        [ENQUEUED, CLAIMED, EXPIRED, SUCCEEDED],
    ],
    ids=["out of an end", "without a claim", "from nowhere", "from where it was not"],
)
def test_a_step_that_the_protocol_does_not_know_is_illegal(changes: Sequence[Change]) -> None:
    assert rules.STEP in broken(judge(with_changes(*changes)))


def test_a_row_that_is_other_than_its_last_change_is_told() -> None:
    rows = [Row(run_id=RUN, status="failed", attempt=2, max_attempts=3)]
    assert broken(judge(replace(SOUND, rows=rows))) == {rules.STEP}


def test_a_token_that_comes_again_is_told() -> None:
    again = replace(CLAIMED_AGAIN, token="a")
    end = replace(SUCCEEDED, token_before="a")
    assert broken(judge(with_changes(ENQUEUED, CLAIMED, EXPIRED, again, end))) == {rules.TOKEN}


def test_a_claim_without_a_token_is_told() -> None:
    bare = replace(CLAIMED, token=None)
    assert rules.TOKEN in broken(judge(with_changes(ENQUEUED, bare, EXPIRED, CLAIMED_AGAIN, SUCCEEDED)))


@pytest.mark.parametrize(
    ("number", "attempt"),
    [(1, 2), (2, 0), (2, 2), (4, 1)],
    ids=["a claim takes two", "an expiry is taken for a refund", "an expiry takes one", "a success gives one back"],
)
def test_wrong_arithmetic_of_attempts_is_told(number: int, attempt: int) -> None:
    changes = list(SOUND.changes)
    changes[number] = replace(changes[number], attempt=attempt)
    assert rules.ARITHMETIC in broken(judge(with_changes(*changes)))


def test_more_attempts_than_allowed_are_told() -> None:
    rows = [Row(run_id=RUN, status="succeeded", attempt=2, max_attempts=1)]
    assert broken(judge(replace(SOUND, rows=rows))) == {rules.TOO_OFTEN}


def test_a_release_gives_the_attempt_back_and_is_no_wrong() -> None:
    released = step(5.0, "leased", "pending", (1, 0), ("a", None))
    again = step(5.5, "pending", "leased", (0, 1), (None, "b"))
    end = step(7.0, "leased", "succeeded", (1, 1), ("b", None))
    verdict = judge(
        replace(
            with_changes(ENQUEUED, CLAIMED, released, again, end),
            executions=[FIRST, replace(SECOND, attempt=1)],
            rows=[Row(run_id=RUN, status="succeeded", attempt=1, max_attempts=1)],
            attempts=[],
        )
    )
    assert (verdict.violations, verdict.refunds) == ([], 1)
    assert [(cause.what, cause.by) for cause in verdict.reexecuted] == [("released", "kill supervisor")]


def test_two_executions_of_one_lease_are_told() -> None:
    twice = replace(SOUND, executions=[FIRST, replace(FIRST, pid=7, started_at=3.1, last_seen_at=3.2), SECOND])
    assert broken(judge(twice)) == {rules.WITHOUT_LEASE}


@pytest.mark.parametrize("started_at", [1.5, 6.0], ids=["before its claim", "after its lease"])
def test_an_execution_outside_of_its_lease_is_told(started_at: float) -> None:
    stray = replace(FIRST, started_at=started_at, last_seen_at=started_at)
    assert rules.WITHOUT_LEASE in broken(judge(replace(SOUND, executions=[stray, SECOND])))


def test_a_re_execution_that_nothing_explains_is_told() -> None:
    for disturbances in ([], [replace(KILLED, lives=frozenset({"2.1"}))], [replace(KILLED, began_at=6, ended_at=6)]):
        verdict = judge(replace(SOUND, disturbances=disturbances))
        assert broken(verdict) == {rules.UNEXPLAINED}


def test_a_job_that_raised_explains_its_retry() -> None:
    raised = replace(EXPIRED, error_type="RuntimeError")
    verdict = judge(
        replace(
            with_changes(ENQUEUED, CLAIMED, raised, CLAIMED_AGAIN, SUCCEEDED),
            executions=[replace(FIRST, ended="raise"), SECOND],
            attempts=[],
            disturbances=[],
        )
    )
    assert verdict.violations == []
    assert [(cause.what, cause.by) for cause in verdict.reexecuted] == [("the job raised", "the job")]


def test_a_success_that_is_recorded_as_an_error_of_the_job_is_unfaithful() -> None:
    wrong = replace(EXPIRED, error_type="RuntimeError")
    ended_well = replace(
        with_changes(ENQUEUED, CLAIMED, wrong, CLAIMED_AGAIN, SUCCEEDED),
        executions=[replace(FIRST, ended="end"), SECOND],
        attempts=[],
    )
    assert rules.UNFAITHFUL in broken(judge(ended_well))


@pytest.mark.parametrize("ended", [None, "raise", "die"])
def test_a_success_that_the_job_did_not_have_is_unfaithful(ended: str | None) -> None:
    assert broken(judge(replace(SOUND, executions=[FIRST, replace(SECOND, ended=ended)]))) == {rules.UNFAITHFUL}


def test_a_cancelled_run_must_have_been_wanted_so() -> None:
    changes = [ENQUEUED, step(2.0, "pending", "cancelled", (0, 0))]
    rows = [Row(run_id=RUN, status="cancelled", attempt=0, max_attempts=3)]
    cancelled = replace(with_changes(*changes), rows=rows, executions=[], attempts=[], said=[])
    assert broken(judge(cancelled)) == {rules.UNFAITHFUL}
    wanted = [replace(SOUND.intents[0], cancelled=True)]
    assert judge(replace(cancelled, intents=wanted)).violations == []


def test_an_execution_before_its_time_is_told() -> None:
    intents = [replace(SOUND.intents[0], due_at=3.0)]
    assert broken(judge(replace(SOUND, intents=intents))) == {rules.EARLY}


def test_more_runs_at_once_than_a_supervisor_may_are_told() -> None:
    assert broken(judge(replace(SOUND, runs_at_once_max=0))) == {rules.CAPACITY}


@pytest.mark.parametrize(
    ("code", "by", "holds"),
    [
        (-9, "killed", True),
        (0, "asked", True),
        (4, "asked", True),
        (-9, "asked", False),
        (1, "", False),
        (0, "", False),
    ],
)
def test_a_supervisor_ends_only_when_somebody_ends_it(code: int, by: str, holds: bool) -> None:
    exits = [Exit(life="0.1", code=code, started_at=0.0, at=3.0, by=by)]
    assert broken(judge(replace(SOUND, exits=exits))) == (set() if holds else {rules.ENDED_BY_ITSELF})


def test_a_supervisor_may_fail_to_start_while_its_database_is_away_and_not_otherwise() -> None:
    exits = [Exit(life="5.1", code=3, started_at=10.0, at=11.0, by="")]
    assert broken(judge(replace(SOUND, exits=exits))) == {rules.ENDED_BY_ITSELF}
    away = Disturbance(kind="crash database", began_at=9.0, ended_at=10.5)
    assert judge(replace(SOUND, exits=exits, disturbances=[KILLED, away])).violations == []


def test_what_is_left_behind_is_told() -> None:
    assert broken(judge(replace(SOUND, left_behind=["pid 5: sleep"]))) == {rules.LEFT_BEHIND}


def test_the_same_seed_draws_the_same_schedule_and_another_one_another() -> None:
    first, same, other = (draw_schedule(s, 60, Store.POSTGRES, supervisors=3, clients=2) for s in (7, 7, 8))
    assert first == same != other
    assert len(first) > 20


@pytest.mark.parametrize("store", [*Store])
def test_every_kind_of_fault_comes_on_the_stores_that_have_it(store: Store) -> None:
    drawn = {fault.kind for seed in range(20) for fault in draw_schedule(seed, 300, store, supervisors=3, clients=2)}
    assert (Kind.CRASH_DATABASE in drawn) == (store is not Store.SQLITE)
    assert (Kind.FULL_DISK in drawn) == (store is Store.SQLITE)
    assert {Kind.KILL_SUPERVISOR, Kind.FREEZE_BOTH, Kind.KILL_CHILD, Kind.LOCK_RUNS} <= drawn


def test_a_target_is_not_struck_while_it_is_down() -> None:
    down_until: dict[tuple[str, int], float] = {}
    for fault in draw_schedule(3, 300, Store.POSTGRES, supervisors=3, clients=2, every_seconds=0.3):
        assert fault.at >= down_until.get((fault.target, fault.number), 0.0)
        down_until[fault.target, fault.number] = fault.at + fault.seconds
