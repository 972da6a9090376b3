"""Who gets which run, when, and with what lease."""

from datetime import timedelta
from uuid import uuid4

import pytest
from exam import (
    JOB,
    LEASE_DURATION,
    all_runs,
    claim,
    claim_one,
    claimed,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    make_due,
    new_run,
    status,
    the_run,
)

from durablestack.runs import Lease, Released, RunStatus
from durablestack.stores.contract import Claimed, Store

MINUTE = timedelta(minutes=1)


def test_an_empty_store_has_nothing_to_claim(store: Store) -> None:
    assert claimed(store) == Claimed([], [])


def test_a_claimed_run_is_leased_under_the_token_of_the_claim(store: Store) -> None:
    run_id = enqueue(store, payload="{}", max_attempts=5)
    before, token = store.now(), uuid4()
    (given,) = claim(store, token=token, worker_name="ada")
    assert given.lease == Lease(run_id, token, 1, "ada")
    run, after = the_run(store, run_id), store.now()
    assert (run.status, run.attempt, run.max_attempts) == (RunStatus.LEASED, 1, 5)
    assert run.lease == given.lease
    assert run.lease_until is not None
    assert before + LEASE_DURATION <= run.lease_until <= after + LEASE_DURATION
    assert run.started_at is not None
    assert before <= run.started_at <= after
    assert run.completed_at is None


def test_a_claim_hands_out_what_a_worker_needs_to_know(store: Store) -> None:
    run_id = enqueue(store, payload='{"n": 1}', max_attempts=4)
    (given,) = claim(store)
    stored = the_run(store, run_id)
    for field in ("id", "job_name", "status", "payload", "scheduled_for", "attempt", "max_attempts", "created_at"):
        assert getattr(given, field) == getattr(stored, field), field


def test_a_leased_run_is_not_claimed_again(store: Store) -> None:
    enqueue_and_claim(store)
    assert claimed(store) == Claimed([], [])


def test_the_runs_of_one_claim_share_its_token(store: Store) -> None:
    enqueue_many(store, 3)
    token = uuid4()
    assert {run.lease_token for run in claim(store, token=token)} == {token}
    assert {run.lease_token for run in all_runs(store).values()} == {token}


def test_the_earliest_due_comes_first_then_the_lowest_id(store: Store) -> None:
    now = store.now()
    late, later, latest = now - 3 * MINUTE, now - 2 * MINUTE, now - MINUTE
    runs = [new_run(scheduled_for=at) for at in (latest, late, later, late, latest, later)]
    store.enqueue(runs)
    expected = [run.id for run in sorted(runs, key=lambda run: (run.scheduled_for, run.id))]
    assert [run.id for run in claim(store)] == expected


def test_the_order_holds_from_batch_to_batch(store: Store) -> None:
    now = store.now()
    runs = [new_run(scheduled_for=now - timedelta(seconds=100 + seconds)) for seconds in (5, 3, 9, 1, 7, 2, 8)]
    store.enqueue(runs)
    order = [run.id for _ in range(4) for run in claim(store, batch_size=2)]
    assert order == [run.id for run in sorted(runs, key=lambda run: run.scheduled_for or now)]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 6])
def test_a_claim_takes_no_more_than_its_batch_size(store: Store, batch_size: int) -> None:
    enqueue_many(store, 5)
    assert len(claim(store, batch_size=batch_size)) == min(batch_size, 5)


def test_a_run_is_not_claimed_before_it_is_due(store: Store) -> None:
    run_id = enqueue(store, scheduled_for=store.now() + MINUTE)
    assert claim(store) == []
    assert store.measure_backlog([JOB], 10).due == 0
    make_due(store, run_id)
    assert claim_one(store).run_id == run_id


def test_a_run_that_is_due_is_not_held_up_by_those_that_are_not(store: Store) -> None:
    enqueue_many(store, 5, scheduled_for=store.now() + MINUTE)
    run_id = enqueue(store)
    assert [run.id for run in claim(store, batch_size=1)] == [run_id]


def test_only_registered_jobs_are_claimed(store: Store) -> None:
    mine, other = enqueue(store), enqueue(store, job_name="of another application")
    assert [run.id for run in claim(store)] == [mine]
    assert status(store, other) is RunStatus.PENDING
    assert claim_one(store, job_names=["of another application"]).run_id == other


def test_a_full_batch_of_unregistered_runs_at_the_head_holds_nobody_up(store: Store) -> None:
    unregistered = enqueue_many(store, 30, job_name="unknown here", scheduled_for=store.now() - MINUTE)
    mine = enqueue_many(store, 4)
    assert [run.id for run in claim(store, batch_size=3)] == mine[:3]
    assert [run.id for run in claim(store, batch_size=3)] == mine[3:]
    assert claim(store, batch_size=3) == []
    assert len(claim(store, job_names={"unknown here"}, batch_size=50)) == len(unregistered)


def test_a_worker_without_jobs_claims_nothing(store: Store) -> None:
    enqueue(store)
    assert claimed(store, job_names=[]) == Claimed([], [])
    assert store.measure_backlog([], 10).due == 0


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_job_names_may_be_any_collection(store: Store, kind: type) -> None:
    run_id = enqueue(store)
    assert claim_one(store, job_names=kind([JOB, "other"])).run_id == run_id


def test_job_names_are_compared_exactly(store: Store) -> None:
    enqueue(store, job_name="send_email")
    assert claim(store, job_names=["Send_Email", "send_email ", "send%", "sendXemail"]) == []


def test_each_claim_counts_an_attempt(store: Store) -> None:
    lease = enqueue_and_claim(store)
    for attempt in (2, 3):
        store.record([failed(lease, 0)])
        lease = claim_one(store)
        assert lease.attempt == attempt
        assert the_run(store, lease.run_id).attempt == attempt


# --- a claim whose answer was lost


def test_a_claim_is_found_by_its_token_and_given_back(store: Store) -> None:
    ids, token = enqueue_many(store, 3), uuid4()
    claim(store, token=token)
    assert store.release_claim(token) == set(ids)
    assert {(run.status, run.attempt) for run in all_runs(store).values()} == {(RunStatus.PENDING, 0)}
    assert len(claim(store)) == 3


def test_giving_back_a_claim_leaves_other_claims_alone(store: Store) -> None:
    enqueue_many(store, 2)
    token = uuid4()
    (mine,), (other,) = claim(store, batch_size=1, token=token), claim(store, batch_size=1)
    assert store.release_claim(token) == {mine.id}
    assert the_run(store, other.id).lease == other.lease


def test_giving_back_an_unknown_claim_or_one_twice_does_nothing(store: Store) -> None:
    assert store.release_claim(uuid4()) == set()
    lease = enqueue_and_claim(store)
    assert store.release_claim(lease.token) == {lease.run_id}
    assert store.release_claim(lease.token) == set()
    assert the_run(store, lease.run_id).attempt == 0


def test_what_ended_meanwhile_is_not_given_back(store: Store) -> None:
    enqueue_many(store, 2)
    token = uuid4()
    first, second = claim(store, token=token)
    store.record([failed(first.lease)])
    assert store.release_claim(token) == {second.id}
    assert status(store, first.id) is RunStatus.FAILED


def test_a_claim_that_was_given_back_is_fenced_out(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.release_claim(lease.token)
    assert store.extend_leases([lease], LEASE_DURATION).held == frozenset()
    again = claim_one(store)
    assert again.attempt == lease.attempt
    store.record([Released(lease)])
    assert the_run(store, lease.run_id).lease == again
