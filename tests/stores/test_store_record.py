"""How attempts end, and what is told of them: once, however often it is said."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from exam import (
    BOOM,
    all_runs,
    claim,
    claim_one,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    make_due,
    outcomes,
    postpone,
    reclaimed_after_expiry,
    status,
    the_run,
)

from durablestack.runs import (
    CANCELLED_MESSAGE,
    Attempt,
    AttemptOutcome,
    Cancelled,
    Failed,
    Failure,
    Lease,
    Outcome,
    Output,
    Released,
    Run,
    RunStatus,
    Succeeded,
)
from durablestack.stores.contract import ATTEMPTS_KEPT_MAX, Store

OUTCOMES: dict[str, tuple[Callable[[Lease], Outcome], RunStatus]] = {
    "succeeded": (Succeeded, RunStatus.SUCCEEDED),
    "failed": (failed, RunStatus.FAILED),
    "retried": (lambda lease: failed(lease, 0), RunStatus.PENDING),
    "cancelled": (Cancelled, RunStatus.CANCELLED),
    "released": (Released, RunStatus.PENDING),
}
every_outcome = pytest.mark.parametrize(("outcome", "becomes"), OUTCOMES.values(), ids=OUTCOMES)
OUTPUT = Output("out", "err")


def error(run: Run | Attempt) -> tuple[str | None, str | None, str | None]:
    return run.error_type, run.error_message, run.error_detail


BOOM_ERROR = (BOOM.error_type, BOOM.error_message, BOOM.error_detail)


@every_outcome
def test_an_outcome_ends_the_lease(store: Store, outcome: Callable[[Lease], Outcome], becomes: RunStatus) -> None:
    lease = enqueue_and_claim(store)
    before = store.now()
    assert store.record([outcome(lease)]) == {lease.run_id: becomes}
    run = the_run(store, lease.run_id)
    assert run.status is becomes
    assert run.lease_owner is run.lease_token is run.lease_until is None
    if becomes.terminal:
        assert run.completed_at is not None
        assert before <= run.completed_at <= store.now()
    else:
        assert run.completed_at is None


@every_outcome
def test_repeating_an_outcome_counts_as_recorded_and_changes_nothing(
    store: Store, outcome: Callable[[Lease], Outcome], becomes: RunStatus
) -> None:
    lease = enqueue_and_claim(store)
    store.record([outcome(lease)])
    before, history = the_run(store, lease.run_id), store.get_attempts(lease.run_id)
    for _ in range(3):
        assert store.record([outcome(lease)]) == {lease.run_id: becomes}
    assert the_run(store, lease.run_id) == before
    assert store.get_attempts(lease.run_id) == history


@pytest.mark.parametrize("outcome", [lambda lease: failed(lease, 0), Released], ids=["retried", "released"])
def test_an_outcome_counts_as_recorded_after_the_run_was_claimed_again(
    store: Store, outcome: Callable[[Lease], Outcome]
) -> None:
    first = enqueue_and_claim(store)
    store.record([outcome(first)])
    second = claim_one(store)
    before, history = the_run(store, first.run_id), store.get_attempts(first.run_id)
    assert store.record([outcome(first)]) == {first.run_id: RunStatus.LEASED}, "what stands by now"
    assert the_run(store, first.run_id) == before
    assert store.get_attempts(first.run_id) == history
    assert store.record([Succeeded(second)]) == {first.run_id: RunStatus.SUCCEEDED}
    assert status(store, first.run_id) is RunStatus.SUCCEEDED


def test_an_outcome_counts_as_recorded_after_the_next_attempt_expired(store: Store) -> None:
    first = enqueue_and_claim(store)
    store.record([failed(first, 0)])
    third = reclaimed_after_expiry(store, claim_one(store))
    assert store.record([failed(first, 0)]) == {first.run_id: RunStatus.LEASED}
    assert the_run(store, first.run_id).lease == third


@every_outcome
def test_another_outcome_of_the_same_attempt_comes_too_late(
    store: Store, outcome: Callable[[Lease], Outcome], becomes: RunStatus
) -> None:
    lease = enqueue_and_claim(store)
    store.record([Succeeded(lease)])
    before = the_run(store, lease.run_id)
    store.record([outcome(lease)])
    assert the_run(store, lease.run_id) == before
    assert store.get_attempts(lease.run_id) == []


def test_all_kinds_of_outcomes_are_recorded_together(store: Store) -> None:
    enqueue_many(store, len(OUTCOMES))
    leases = [run.lease for run in claim(store)]
    kinds = dict(zip(leases, OUTCOMES.values(), strict=True))
    written = [make(lease) for lease, (make, _) in kinds.items()]
    for _ in range(2):
        assert store.record(written) == {lease.run_id: becomes for lease, (_, becomes) in kinds.items()}
        assert [status(store, lease.run_id) for lease in leases] == [becomes for _, becomes in kinds.values()]
    assert set(store.record(written[::-1])) == {lease.run_id for lease in leases}


def test_what_is_fenced_out_is_left_out_and_the_rest_recorded(store: Store) -> None:
    stale = enqueue_and_claim(store)
    reclaimed_after_expiry(store, stale)
    mine, repeated = enqueue_and_claim(store), enqueue_and_claim(store)
    store.record([Succeeded(repeated)])
    answer = store.record([Succeeded(stale), Succeeded(repeated), failed(mine)])
    assert answer == {mine.run_id: RunStatus.FAILED, repeated.run_id: RunStatus.SUCCEEDED}
    assert status(store, stale.run_id) is RunStatus.LEASED


def test_an_outcome_that_is_said_twice_at_once_is_recorded_once(store: Store) -> None:
    lease = enqueue_and_claim(store)
    assert store.record([failed(lease), failed(lease)]) == {lease.run_id: RunStatus.FAILED}
    assert outcomes(store, lease.run_id) == [(1, "failed")]


# --- success


def test_a_success_at_once_has_no_history(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Succeeded(lease, OUTPUT)])
    run = the_run(store, lease.run_id)
    assert store.get_attempts(lease.run_id) == []
    assert run.attempt == 1
    assert run.started_at is not None
    assert run.completed_at is not None
    assert run.created_at <= run.started_at <= run.completed_at
    assert Output(run.stdout_tail, run.stderr_tail) == OUTPUT


def test_a_success_clears_the_error_of_the_attempt_before(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 0, OUTPUT)])
    store.record([Succeeded(claim_one(store))])
    run = the_run(store, lease.run_id)
    assert error(run) == (None, None, None)
    assert run.stdout_tail is run.stderr_tail is None
    assert outcomes(store, lease.run_id) == [(1, "failed"), (2, "succeeded")]


def test_a_success_that_was_given_back_once_has_no_history(store: Store) -> None:
    store.record([Released(enqueue_and_claim(store))])
    lease = claim_one(store)
    store.record([Succeeded(lease)])
    assert store.get_attempts(lease.run_id) == []
    assert the_run(store, lease.run_id).attempt == 1


def test_the_output_of_each_run_is_its_own(store: Store) -> None:
    enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    outputs = [Output("a"), Output(), Output(None, "b")]
    store.record([Succeeded(lease, output) for lease, output in zip(leases, outputs, strict=True)])
    runs = [the_run(store, lease.run_id) for lease in leases]
    assert [Output(run.stdout_tail, run.stderr_tail) for run in runs] == outputs


# --- failure, retry


def test_a_failure_is_told_with_its_error_and_output(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, output=OUTPUT)])
    run = the_run(store, lease.run_id)
    assert run.status is RunStatus.FAILED
    assert error(run) == BOOM_ERROR
    assert Output(run.stdout_tail, run.stderr_tail) == OUTPUT
    (attempt,) = store.get_attempts(lease.run_id)
    assert error(attempt) == BOOM_ERROR
    assert (attempt.run_id, attempt.attempt, attempt.worker_name) == (lease.run_id, 1, lease.worker_name)
    assert (attempt.outcome, attempt.signal) == (AttemptOutcome.FAILED, "SIGSEGV")
    assert (attempt.started_at, attempt.ended_at) == (run.started_at, run.completed_at) or (
        attempt.started_at == run.started_at and run.completed_at is not None and attempt.ended_at >= run.completed_at
    )


def test_a_retry_waits_its_delay_from_now(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before = store.now()
    store.record([failed(lease, 90.25, OUTPUT)])
    run = the_run(store, lease.run_id)
    assert run.status is RunStatus.PENDING
    delay = timedelta(seconds=90.25)
    assert before + delay <= run.scheduled_for <= store.now() + delay
    assert error(run) == BOOM_ERROR
    assert Output(run.stdout_tail, run.stderr_tail) == OUTPUT
    assert claim(store) == []
    make_due(store, lease.run_id)
    assert claim_one(store).attempt == 2


def test_the_milliseconds_of_a_delay_are_honoured(store: Store) -> None:
    lease = enqueue_and_claim(store)
    before = store.now()
    store.record([failed(lease, 3600.007)])
    run = the_run(store, lease.run_id)
    assert before + timedelta(seconds=3600.007) <= run.scheduled_for
    assert run.scheduled_for <= store.now() + timedelta(seconds=3600.007)


def test_the_error_stays_visible_while_the_next_attempt_executes(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 0)])
    claim_one(store)
    assert error(the_run(store, lease.run_id)) == BOOM_ERROR


def test_the_latest_failure_is_the_one_told_and_history_keeps_them_all(store: Store) -> None:
    run_id = enqueue(store, max_attempts=4)
    for number in (1, 2, 3):
        failure = Failure(error_type=f"E{number}", error_message=f"m{number}")
        store.record([Failed(claim_one(store, worker_name=f"w{number}"), failure, timedelta(0), OUTPUT)])
    failure = Failure(error_type="E4", error_message="m4", error_detail="d4", signal="SIGKILL")
    store.record([Failed(claim_one(store, worker_name="w4"), failure, None)])
    run = the_run(store, run_id)
    assert (run.status, run.attempt) == (RunStatus.FAILED, 4)
    assert error(run) == ("E4", "m4", "d4")
    assert run.stdout_tail is run.stderr_tail is None
    history = store.get_attempts(run_id)
    assert [(a.attempt, a.worker_name, a.error_type, a.signal) for a in history] == [
        (1, "w1", "E1", None),
        (2, "w2", "E2", None),
        (3, "w3", "E3", None),
        (4, "w4", "E4", "SIGKILL"),
    ]
    assert all(a.started_at is not None and a.started_at <= a.ended_at for a in history)


def test_history_is_bounded_and_the_oldest_go_first(store: Store) -> None:
    attempts = ATTEMPTS_KEPT_MAX + 5
    run_id = enqueue(store, max_attempts=attempts)
    for _ in range(attempts - 1):
        store.record([failed(claim_one(store), 0)])
    store.record([Succeeded(claim_one(store))])
    assert [attempt.attempt for attempt in store.get_attempts(run_id)] == list(range(6, attempts + 1))
    assert the_run(store, run_id).attempt == attempts


def test_the_history_of_one_run_is_not_cut_by_that_of_another(store: Store) -> None:
    short = enqueue_and_claim(store)
    store.record([failed(short)])
    run_id = enqueue(store, max_attempts=ATTEMPTS_KEPT_MAX + 3)
    for _ in range(ATTEMPTS_KEPT_MAX + 2):
        store.record([failed(claim_one(store), 0)])
    assert outcomes(store, short.run_id) == [(1, "failed")]
    assert len(store.get_attempts(run_id)) == ATTEMPTS_KEPT_MAX


# --- release


def test_a_release_refunds_the_attempt(store: Store) -> None:
    lease = enqueue_and_claim(store, max_attempts=1)
    for _ in range(3):
        store.record([Released(lease)])
        assert the_run(store, lease.run_id).attempt == 0
        lease = claim_one(store)
        assert lease.attempt == 1
    assert store.get_attempts(lease.run_id) == []


def test_a_released_run_keeps_its_place(store: Store) -> None:
    at = store.now() - timedelta(hours=1)
    lease = enqueue_and_claim(store, scheduled_for=at)
    enqueue(store)
    store.record([Released(lease)])
    assert the_run(store, lease.run_id).scheduled_for == at
    assert claim(store, batch_size=1)[0].id == lease.run_id


def test_a_released_run_is_due_now_even_if_its_schedule_lies_ahead(store: Store) -> None:
    lease = enqueue_and_claim(store)
    postpone(store, lease.run_id)
    store.record([Released(lease)])
    assert the_run(store, lease.run_id).scheduled_for <= store.now()
    assert claim_one(store).run_id == lease.run_id


def test_a_release_keeps_the_error_of_the_attempt_before(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 0)])
    store.record([Released(claim_one(store))])
    run = the_run(store, lease.run_id)
    assert error(run) == BOOM_ERROR
    assert run.attempt == 1
    assert outcomes(store, lease.run_id) == [(1, "failed")]


# --- cancelled


def test_a_cancelled_attempt_is_told_as_cancelled(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Cancelled(lease, OUTPUT, "SIGTERM")])
    run = the_run(store, lease.run_id)
    assert error(run) == (None, CANCELLED_MESSAGE, None)
    assert Output(run.stdout_tail, run.stderr_tail) == OUTPUT
    (attempt,) = store.get_attempts(lease.run_id)
    assert (attempt.outcome, attempt.error_message, attempt.signal) == ("cancelled", CANCELLED_MESSAGE, "SIGTERM")


def test_terminal_is_final(store: Store) -> None:
    enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.record([Succeeded(leases[0]), failed(leases[1]), Cancelled(leases[2])])
    before = all_runs(store)
    for lease in leases:
        store.record([Released(lease), failed(lease, 0), Cancelled(lease), Succeeded(lease)])
        store.extend_leases([lease], timedelta(hours=1))
        store.release_claim(lease.token)
        assert store.cancel_run(lease.run_id) is False
    assert claim(store) == []
    assert all_runs(store) == before
