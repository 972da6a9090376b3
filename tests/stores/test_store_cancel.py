"""Cancelling, from outside, and making new work of what ended."""

from uuid import uuid4

import pytest
from exam import (
    BOOM,
    JOB,
    LEASE_DURATION,
    WORKER,
    age_lease,
    all_runs,
    claim,
    claim_one,
    claimed,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    outcomes,
    reclaimed_after_expiry,
    status,
    the_run,
)

from durablestack.runs import CANCELLED_MESSAGE, Cancelled, Lease, Output, Released, RunStatus, Succeeded
from durablestack.stores.contract import Store


def test_a_pending_run_is_cancelled_at_once(store: Store) -> None:
    run_id = enqueue(store)
    before = store.now()
    assert store.cancel_run(run_id) is True
    run = the_run(store, run_id)
    assert run.status is RunStatus.CANCELLED
    assert run.completed_at is not None
    assert before <= run.completed_at <= store.now()
    assert run.cancel_requested_at is not None
    assert (run.attempt, run.error_type, run.error_message) == (0, None, CANCELLED_MESSAGE)
    assert store.get_attempts(run_id) == []
    assert claim(store) == []


def test_a_run_that_waits_for_its_retry_is_cancelled_at_once(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([failed(lease, 60, Output("out", "err"))])
    assert store.cancel_run(lease.run_id) is True
    run = the_run(store, lease.run_id)
    assert (run.status, run.attempt) == (RunStatus.CANCELLED, 1)
    assert (run.error_type, run.error_message, run.error_detail) == (None, CANCELLED_MESSAGE, None)
    assert (run.stdout_tail, run.stderr_tail) == ("out", "err")
    assert outcomes(store, lease.run_id) == [(1, "failed")]


def test_the_holder_of_a_leased_run_is_asked_to_stop_it(store: Store) -> None:
    lease = enqueue_and_claim(store)
    assert store.cancel_run(lease.run_id) is True
    run = the_run(store, lease.run_id)
    assert run.status is RunStatus.LEASED
    assert run.lease == lease
    assert run.cancel_requested_at is not None


def test_asking_twice_changes_nothing(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    before = the_run(store, lease.run_id)
    assert store.cancel_run(lease.run_id) is True
    assert the_run(store, lease.run_id) == before


def test_what_is_unknown_or_has_ended_is_not_cancelled(store: Store) -> None:
    assert store.cancel_run(uuid4()) is False
    enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.record([Succeeded(leases[0]), failed(leases[1]), Cancelled(leases[2])])
    before = all_runs(store)
    assert [store.cancel_run(lease.run_id) for lease in leases] == [False] * 3
    assert all_runs(store) == before


def test_a_heartbeat_tells_which_runs_to_stop(store: Store) -> None:
    ids = enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.cancel_run(ids[1])
    extended = store.extend_leases(leases, LEASE_DURATION)
    assert extended.held == set(ids)
    assert extended.cancel_requested == {ids[1]}


def test_only_the_holder_finds_the_request(store: Store) -> None:
    ids = enqueue_many(store, 2)
    leases = [run.lease for run in claim(store)]
    store.cancel_run(ids[0])
    assert store.find_requests(leases).cancel == {ids[0]}
    assert store.find_requests(leases[1:]).cancel == set()
    assert store.find_requests([Lease(ids[0], uuid4(), 1, WORKER)]).cancel == set()
    store.record([Cancelled(leases[0])])
    assert store.find_requests(leases).cancel == set()


def test_a_zombie_does_not_find_the_request_meant_for_another(store: Store) -> None:
    stale = enqueue_and_claim(store)
    current = reclaimed_after_expiry(store, stale)
    store.cancel_run(stale.run_id)
    assert store.find_requests([stale]).cancel == set()
    assert store.find_requests([current]).cancel == {stale.run_id}


def test_a_run_that_succeeds_before_it_is_stopped_has_succeeded(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    assert store.record([Succeeded(lease)]) == {lease.run_id: RunStatus.SUCCEEDED}
    assert status(store, lease.run_id) is RunStatus.SUCCEEDED


def test_a_run_that_fails_for_good_before_it_is_stopped_has_failed(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    assert store.record([failed(lease)]) == {lease.run_id: RunStatus.FAILED}
    run = the_run(store, lease.run_id)
    assert (run.status, run.error_type) == (RunStatus.FAILED, BOOM.error_type)


def test_a_failed_attempt_is_not_retried_once_the_run_is_to_be_cancelled(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    for _ in range(2):
        assert store.record([failed(lease, 0, Output("out"))]) == {lease.run_id: RunStatus.CANCELLED}
        run = the_run(store, lease.run_id)
        assert (run.status, run.error_message) == (RunStatus.CANCELLED, CANCELLED_MESSAGE)
        assert run.stdout_tail == "out"
        assert outcomes(store, lease.run_id) == [(1, "failed")]
    assert claim(store) == []


def test_a_released_run_is_not_pending_again_once_it_is_to_be_cancelled(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    for _ in range(2):
        assert store.record([Released(lease)]) == {lease.run_id: RunStatus.CANCELLED}
        run = the_run(store, lease.run_id)
        assert (run.status, run.error_message, run.attempt) == (RunStatus.CANCELLED, CANCELLED_MESSAGE, 1)
        assert outcomes(store, lease.run_id) == [(1, "cancelled")]


def test_a_claim_given_back_is_cancelled_once_it_is_to_be(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.cancel_run(lease.run_id)
    assert store.release_claim(lease.token) == {lease.run_id}
    assert status(store, lease.run_id) is RunStatus.CANCELLED


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_an_expired_run_is_cancelled_once_it_is_to_be(store: Store, max_attempts: int) -> None:
    lease = enqueue_and_claim(store, max_attempts=max_attempts)
    store.cancel_run(lease.run_id)
    age_lease(store, lease.run_id)
    answer = claimed(store)
    assert answer.runs == []
    assert [(expired.run_id, expired.status) for expired in answer.expired] == [(lease.run_id, RunStatus.CANCELLED)]
    run = the_run(store, lease.run_id)
    assert (run.status, run.error_type, run.error_message) == (RunStatus.CANCELLED, None, CANCELLED_MESSAGE)
    assert run.completed_at is not None
    assert outcomes(store, lease.run_id) == [(1, "expired")]
    assert store.record([Succeeded(lease)]) == {}


# --- requeue


@pytest.mark.parametrize("ended", [failed, Cancelled])
def test_a_run_that_ended_badly_is_enqueued_anew_as_a_run_of_its_own(store: Store, ended: type[Cancelled]) -> None:
    lease = enqueue_and_claim(store, payload='{"n": 1}', max_attempts=7)
    store.record([ended(lease)])
    origin = the_run(store, lease.run_id)
    before = store.now()
    new_id = store.requeue_run(lease.run_id)
    assert new_id is not None
    assert new_id != lease.run_id
    assert the_run(store, lease.run_id) == origin
    run = the_run(store, new_id)
    assert (run.job_name, run.payload, run.max_attempts) == (JOB, '{"n": 1}', 7)
    assert (run.status, run.attempt, run.requeued_from) == (RunStatus.PENDING, 0, lease.run_id)
    assert run.cancel_requested_at is run.error_type is run.error_message is run.started_at is None
    assert before <= run.scheduled_for <= store.now()
    assert claim_one(store).run_id == new_id


def test_a_run_cancelled_while_pending_is_requeued_too(store: Store) -> None:
    run_id = enqueue(store, scheduled_for=store.now() + LEASE_DURATION)
    store.cancel_run(run_id)
    assert store.requeue_run(run_id) is not None
    assert claim_one(store).attempt == 1


def test_what_is_unknown_or_under_way_or_succeeded_is_not_requeued(store: Store) -> None:
    assert store.requeue_run(uuid4()) is None
    run_id = enqueue(store)
    assert store.requeue_run(run_id) is None
    lease = claim_one(store)
    assert store.requeue_run(run_id) is None
    store.record([Succeeded(lease)])
    assert store.requeue_run(run_id) is None
    assert list(all_runs(store)) == [run_id]
