"""Leases that ran out: found by whoever claims next."""

from datetime import timedelta

import pytest
from exam import (
    JOB,
    WORKER,
    age_lease,
    claim,
    claim_one,
    claimed,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    in_steps,
    outcomes,
    reclaimed_after_expiry,
    request,
    status,
    the_run,
)

from durablestack.runs import LEASE_EXPIRED, Output, RunStatus, Succeeded
from durablestack.stores.contract import EXPIRED_PER_CLAIM_MAX, ExpiredRun, Store


def test_an_expired_run_is_claimed_by_another(store: Store) -> None:
    lease = enqueue_and_claim(store)
    age_lease(store, lease.run_id)
    answer = claimed(store, worker_name="another")
    assert answer.expired == [ExpiredRun(lease.run_id, JOB, 1, WORKER, RunStatus.PENDING)]
    (run,) = answer.runs
    assert run.id == lease.run_id
    assert (run.attempt, run.lease_owner) == (2, "another")
    assert run.lease_token != lease.token


def test_an_expired_run_tells_whose_lease_it_was(store: Store) -> None:
    lease = enqueue_and_claim(store)
    started_at = the_run(store, lease.run_id).started_at
    age_lease(store, lease.run_id)
    claim(store, job_names=[])
    run = the_run(store, lease.run_id)
    assert (run.status, run.attempt, run.completed_at) == (RunStatus.PENDING, 1, None)
    assert (run.error_type, run.error_message, run.error_detail) == (LEASE_EXPIRED, f"lease of {WORKER} expired", None)
    (attempt,) = store.get_attempts(lease.run_id)
    assert (attempt.outcome, attempt.worker_name, attempt.started_at) == ("expired", WORKER, started_at)
    assert (attempt.error_type, attempt.error_message) == (LEASE_EXPIRED, run.error_message)


def test_a_run_whose_last_attempt_expires_has_failed(store: Store) -> None:
    lease = enqueue_and_claim(store, max_attempts=2)
    lease = reclaimed_after_expiry(store, lease)
    assert lease.attempt == 2
    age_lease(store, lease.run_id)
    answer = claimed(store)
    assert answer.runs == []
    assert answer.expired == [ExpiredRun(lease.run_id, JOB, 2, WORKER, RunStatus.FAILED)]
    run = the_run(store, lease.run_id)
    assert (run.status, run.error_type, run.attempt) == (RunStatus.FAILED, LEASE_EXPIRED, 2)
    assert "no attempts remaining" in (run.error_message or "")
    assert WORKER in (run.error_message or "")
    assert run.completed_at is not None
    assert outcomes(store, lease.run_id) == [(1, "expired"), (2, "expired")]
    assert store.record([Succeeded(lease)]) == {}


def test_an_only_attempt_that_expires_is_not_executed_again(store: Store) -> None:
    lease = enqueue_and_claim(store, max_attempts=1)
    age_lease(store, lease.run_id)
    assert claim(store) == []
    assert the_run(store, lease.run_id).status is RunStatus.FAILED
    assert claimed(store).expired == []


def test_expired_leases_of_jobs_unknown_here_are_dealt_with_too(store: Store) -> None:
    enqueue(store, job_name="unknown here")
    lease = claim_one(store, job_names=["unknown here"])
    age_lease(store, lease.run_id)
    answer = claimed(store)
    assert answer.runs == []
    assert [(expired.job_name, expired.status) for expired in answer.expired] == [("unknown here", RunStatus.PENDING)]
    assert claim_one(store, job_names=["unknown here"]).attempt == 2


def test_a_lease_that_has_not_run_out_is_left_alone(store: Store) -> None:
    first, second = enqueue_and_claim(store), enqueue_and_claim(store)
    age_lease(store, first.run_id)
    answer = claimed(store)
    assert [expired.run_id for expired in answer.expired] == [first.run_id]
    assert the_run(store, second.run_id).lease == second


def test_a_full_batch_of_living_leases_does_not_hide_an_expired_one(store: Store) -> None:
    ids = enqueue_many(store, EXPIRED_PER_CLAIM_MAX + 5)
    claim(store, batch_size=len(ids))
    age_lease(store, ids[-1])
    answer = claimed(store, batch_size=2)
    assert [expired.run_id for expired in answer.expired] == ids[-1:]
    assert [run.id for run in answer.runs] == ids[-1:]


def test_one_claim_deals_with_a_bounded_number_of_expired_leases(store: Store) -> None:
    ids = enqueue_many(store, EXPIRED_PER_CLAIM_MAX + 5, max_attempts=1)
    claim(store, batch_size=len(ids))
    age_lease(store, *ids)
    batches = [len(claimed(store, batch_size=2).expired) for _ in range(3)]
    assert batches == [EXPIRED_PER_CLAIM_MAX, 5, 0]
    assert store.count_runs()[RunStatus.FAILED] == len(ids)


def test_a_look_tells_whether_leases_have_expired_and_by_which_clock(store: Store) -> None:
    before, lease = store.now(), enqueue_and_claim(store)
    held = in_steps(store.look_for_expired())
    assert not held.some
    assert before <= held.now <= store.now()
    age_lease(store, lease.run_id)
    assert in_steps(store.look_for_expired()).some
    claim(store, job_names=[])
    assert not in_steps(store.look_for_expired()).some


@pytest.mark.parametrize("ended", [True, False], ids=["beside an outcome", "alone"])
def test_a_claim_looks_along_if_asked_to_and_ends_nothing_by_that(store: Store, ended: bool) -> None:
    silent = enqueue_and_claim(store)
    written = [Succeeded(enqueue_and_claim(store))] if ended else []
    assert claimed(store, end_expired=False).look is None
    asked = request(end_expired=False, looks_for_expired=True)
    before = store.now()
    held = in_steps(store.exchange_in_steps(written, asked)).claimed.look
    assert held is not None
    assert not held.some
    assert before <= held.now <= store.now()
    age_lease(store, silent.run_id)
    for answer in (store.exchange(written, asked), in_steps(store.exchange_in_steps(written, asked))):
        assert answer.claimed.look is not None
        assert answer.claimed.look.some
        assert answer.claimed.expired == []
    assert status(store, silent.run_id) is RunStatus.LEASED


def test_an_expired_run_keeps_its_place_in_the_queue(store: Store) -> None:
    at = store.now() - timedelta(hours=1)
    lease = enqueue_and_claim(store, scheduled_for=at)
    enqueue(store)
    age_lease(store, lease.run_id)
    (first,) = claim(store, batch_size=1)
    assert (first.id, first.scheduled_for) == (lease.run_id, at)


def test_a_claim_deals_with_expired_leases_when_nothing_else_is_due(store: Store) -> None:
    lease = enqueue_and_claim(store)
    age_lease(store, lease.run_id)
    answer = claimed(store, job_names=[])
    assert answer.runs == []
    assert len(answer.expired) == 1
    assert the_run(store, lease.run_id).status is RunStatus.PENDING


def test_a_lease_without_duration_is_expired_at_once(store: Store) -> None:
    enqueue(store)
    stale = claim_one(store, lease_duration=timedelta(0))
    assert claim_one(store).attempt == stale.attempt + 1


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_a_run_is_leased_no_more_often_than_it_has_attempts(store: Store, max_attempts: int) -> None:
    run_id = enqueue(store, max_attempts=max_attempts)
    claims = 0
    for _ in range(max_attempts + 3):
        claims += len(claim(store))
        if the_run(store, run_id).lease_token is not None:
            age_lease(store, run_id)
    run = the_run(store, run_id)
    assert claims == max_attempts == run.attempt
    assert run.status is RunStatus.FAILED


def test_expiry_replaces_the_error_but_not_the_output_of_the_attempt_before(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 0, Output("out", "err"))])
    second = claim_one(store)
    reclaimed_after_expiry(store, second)
    run = the_run(store, lease.run_id)
    assert (run.error_type, run.error_detail) == (LEASE_EXPIRED, None)
    assert (run.stdout_tail, run.stderr_tail) == ("out", "err")
    assert outcomes(store, lease.run_id) == [(1, "failed"), (2, "expired")]
