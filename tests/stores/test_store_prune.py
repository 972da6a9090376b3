"""Forgetting what ended long ago, and nothing else."""

from datetime import timedelta

from exam import (
    age_completion,
    age_lease,
    all_runs,
    claim,
    claim_one,
    enqueue,
    enqueue_and_claim,
    enqueue_many,
    failed,
    make_due,
    outcomes,
)

from durablestack.runs import Cancelled, Succeeded
from durablestack.stores.contract import Store

HOUR = timedelta(hours=1)


def test_only_runs_that_ended_are_pruned(store: Store) -> None:
    pending, leased = enqueue(store, job_name="waits"), enqueue_and_claim(store).run_id
    make_due(store, pending, leased)
    age_lease(store, leased)
    assert store.prune_runs(timedelta(0), 100) == 0
    assert set(all_runs(store)) == {pending, leased}


def test_every_kind_of_end_is_pruned(store: Store) -> None:
    enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.record([Succeeded(leases[0]), failed(leases[1]), Cancelled(leases[2])])
    cancelled = enqueue(store)
    store.cancel_run(cancelled)
    ids = [*(lease.run_id for lease in leases), cancelled]
    assert store.prune_runs(HOUR, 100) == 0
    age_completion(store, *ids)
    assert store.prune_runs(HOUR, 100) == 4
    assert all_runs(store) == {}


def test_only_what_ended_long_enough_ago_is_pruned(store: Store) -> None:
    enqueue_many(store, 3)
    leases = [run.lease for run in claim(store)]
    store.record([Succeeded(lease) for lease in leases])
    age_completion(store, leases[1].run_id)
    assert store.prune_runs(timedelta(days=2), 100) == 0
    assert store.prune_runs(timedelta(hours=23), 100) == 1
    assert set(all_runs(store)) == {leases[0].run_id, leases[2].run_id}


def test_pruning_is_bounded_by_its_batch_size(store: Store) -> None:
    ids = enqueue_many(store, 5)
    store.record([Succeeded(run.lease) for run in claim(store)])
    age_completion(store, *ids)
    assert [store.prune_runs(HOUR, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_the_history_goes_with_its_run_and_no_other(store: Store) -> None:
    old = enqueue_and_claim(store)
    store.record([failed(old, 0)])
    store.record([failed(claim_one(store))])
    young = enqueue_and_claim(store)
    store.record([failed(young)])
    age_completion(store, old.run_id)
    assert store.prune_runs(HOUR, 100) == 1
    assert store.get_run(old.run_id) is None
    assert store.get_attempts(old.run_id) == []
    assert outcomes(store, young.run_id) == [(1, "failed")]


def test_the_outcome_of_a_pruned_run_is_refused(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Succeeded(lease)])
    age_completion(store, lease.run_id)
    store.prune_runs(HOUR, 100)
    assert store.record([Succeeded(lease)]) == {}
    assert store.extend_leases([lease], HOUR).held == frozenset()
    assert store.cancel_run(lease.run_id) is False
    assert store.requeue_run(lease.run_id) is None
