"""Forgetting what ended long ago, and nothing else."""

from datetime import timedelta

from exam import (
    Place,
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
    on_examined_servers,
    outcomes,
)

from durablestack.runs import Cancelled, Succeeded
from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore

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


@on_examined_servers
def test_a_deletion_under_way_holds_nobody_up(place: Place, store: Store) -> None:
    assert isinstance(store, SqlStore)
    enqueue_many(store, 400)
    store.record([Succeeded(run.lease) for run in claim(store, batch_size=400)])
    enqueue_many(store, 40)
    (leased,) = claim(store, batch_size=1)
    with store._transaction() as tx:
        old = tx.fetch("RUNS_PRUNABLE_SELECT", seconds=0.0, limit=10)
        tx.run("RUNS_DELETE", ids=[row[0] for row in old])
        other = place.open(timeout_seconds=3)
        assert other.extend_leases([leased.lease], HOUR).held == {leased.id}
        runs = claim(other, batch_size=20)
        assert len(runs) == 20
        assert len(other.record([Succeeded(run.lease) for run in runs])) == 20
        enqueue_many(other, 5)
        assert other.prune_runs(timedelta(0), 10) == 10  # and another worker deletes what is left
        other.close()
    assert len(all_runs(store)) == 400 - 20 + 45


def test_the_outcome_of_a_pruned_run_is_refused(store: Store) -> None:
    lease = enqueue_and_claim(store)
    store.record([Succeeded(lease)])
    age_completion(store, lease.run_id)
    store.prune_runs(HOUR, 100)
    assert store.record([Succeeded(lease)]) == {}
    assert store.extend_leases([lease], HOUR).held == frozenset()
    assert store.cancel_run(lease.run_id) is False
    assert store.requeue_run(lease.run_id) is None
