"""Many at once: threads, processes, and transactions that stay open."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from exam import (
    LEASE_DURATION,
    Place,
    age_lease,
    all_runs,
    claim,
    claimed,
    enqueue,
    enqueue_many,
    failed,
    new_run,
    on_databases,
    on_examined_servers,
    on_postgres,
    status,
    words_of_processes,
)

from durablestack.runs import Released, RunStatus, Succeeded
from durablestack.stores.contract import Store

RUNS = 2_000
THREADS = 8
PROCESSES = 4
CLAIMING_PROCESS = Path(__file__).with_name("claiming_process.py")


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What the calls return, each in a thread of its own, all let go at the same moment."""
    barrier = threading.Barrier(len(calls))

    def after_the_barrier(call: Callable[[], object]) -> object:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(after_the_barrier, call) for call in calls]]


def claim_until_empty(store: Store, batch_size: int) -> list[UUID]:
    ids: list[UUID] = []
    while runs := claim(store, batch_size=batch_size):
        ids += [run.id for run in runs]
        store.record([Succeeded(run.lease) for run in runs])
    return ids


@contextmanager
def rows_locked(place: Place, ids: list[UUID]) -> Iterator[Any]:
    """Somebody else's transaction that holds these runs, and does not end."""
    among: dict[str, tuple[str, list[Any]]] = {
        "postgres": ("= any(%s)", ids),
        "mysql": ("in %s", [id.bytes for id in ids]),
    }
    condition, values = among[place.provider]
    with closing(place.connect()) as connection:
        connection.cursor().execute(f"select 1 from {place.runs} where id {condition} order by id for update", [values])
        yield connection
        connection.rollback()


def test_threads_claim_every_run_exactly_once(store: Store) -> None:
    ids = enqueue_many(store, RUNS)
    claimed_ids = at_once(*[lambda: claim_until_empty(store, 7)] * THREADS)
    counts = Counter(run_id for each in claimed_ids for run_id in each)  # type: ignore[attr-defined]
    assert counts == Counter(ids)
    assert store.count_runs()[RunStatus.SUCCEEDED] == RUNS
    assert {run.attempt for run in all_runs(store).values()} == {1}


@on_databases
def test_processes_claim_every_run_exactly_once(place: Place, store: Store) -> None:
    ids = enqueue_many(store, RUNS)
    command = [sys.executable, str(CLAIMING_PROCESS), place.database_url or "", place.table_prefix]
    words = words_of_processes(command, PROCESSES)
    assert Counter(map(UUID, words)) == Counter(ids)
    assert store.count_runs()[RunStatus.SUCCEEDED] == RUNS


def test_threads_reclaim_an_expired_run_exactly_once(store: Store) -> None:
    ids = enqueue_many(store, 40)
    claim(store)
    age_lease(store, *ids)
    answers = at_once(*[lambda: claimed(store)] * THREADS)
    expired = Counter(each.run_id for answer in answers for each in answer.expired)  # type: ignore[attr-defined]
    reclaimed = Counter(run.id for answer in answers for run in answer.runs)  # type: ignore[attr-defined]
    assert expired == Counter(ids)
    assert reclaimed == Counter(ids)


def test_a_run_that_is_recorded_and_reclaimed_at_once_has_one_story(store: Store) -> None:
    for _ in range(10):
        run_id = enqueue(store, max_attempts=2)
        (run,) = claim(store)
        age_lease(store, run_id)
        recorded, answer = at_once(lambda run=run: store.record([Succeeded(run.lease)]), lambda: claimed(store))
        reclaimed = [each.id for each in answer.runs]  # type: ignore[attr-defined]
        assert (recorded, reclaimed) in [({run_id: RunStatus.SUCCEEDED}, []), ({}, [run_id])]
        assert status(store, run_id) is (RunStatus.LEASED if reclaimed else RunStatus.SUCCEEDED)


def test_the_same_runs_enqueued_at_once_in_opposite_orders_are_stored_once(store: Store) -> None:
    runs = [new_run() for _ in range(300)]
    at_once(*[lambda: store.enqueue(runs), lambda: store.enqueue(runs[::-1])] * 3)
    assert set(all_runs(store)) == {run.id for run in runs}


def test_batches_in_opposite_orders_do_not_wait_for_each_other(store: Store) -> None:
    enqueue_many(store, 60)
    leases = [run.lease for run in claim(store, batch_size=60)]

    def extend_and_record(order: int) -> None:
        for _ in range(15):
            assert len(store.extend_leases(leases[::order], LEASE_DURATION).held) == len(leases)
            store.find_requests(leases[::order])

    at_once(*[lambda: extend_and_record(1), lambda: extend_and_record(-1)] * 2)
    ended = [Succeeded(lease) if number % 2 else failed(lease, 0) for number, lease in enumerate(leases)]
    answers = at_once(*[lambda: store.record(ended), lambda: store.record(ended[::-1])] * 2)
    becomes = {o.lease.run_id: RunStatus.SUCCEEDED if isinstance(o, Succeeded) else RunStatus.PENDING for o in ended}
    assert answers == [becomes] * 4
    assert len(store.get_attempts(leases[0].run_id)) == 1


def test_heartbeats_records_cancels_and_claims_get_along(store: Store) -> None:
    ids = enqueue_many(store, 120, max_attempts=20)

    def work() -> None:
        for _ in range(12):
            leases = [run.lease for run in claim(store, batch_size=10)]
            store.extend_leases(leases[::-1], LEASE_DURATION)
            kinds = (Succeeded, Released, lambda lease: failed(lease, 0))
            recorded = store.record([kinds[number % 3](lease) for number, lease in enumerate(leases)])
            assert set(recorded) == {lease.run_id for lease in leases}

    def meddle() -> None:
        for run_id in ids[::4]:
            store.cancel_run(run_id)
            store.requeue_run(run_id)

    at_once(work, work, work, meddle)
    assert store.count_runs()[RunStatus.LEASED] == 0
    assert set(ids) <= set(all_runs(store))


# --- a transaction that stays open


@on_examined_servers
def test_a_claimer_is_served_while_another_holds_its_rows(place: Place, store: Store) -> None:
    ids = enqueue_many(store, 6)
    with rows_locked(place, ids[:3]):
        assert [run.id for run in claim(store, batch_size=3)] == ids[3:]
        assert claim(store) == []
    assert [run.id for run in claim(store)] == ids[:3]


@on_examined_servers
def test_producers_are_not_held_up_by_a_claimer(place: Place, store: Store) -> None:
    ids = enqueue_many(store, 3)
    with rows_locked(place, ids):
        other = enqueue(store)
        assert [run.id for run in claim(store)] == [other]


@on_examined_servers
def test_reading_and_counting_are_not_held_up_by_a_claimer(place: Place, store: Store) -> None:
    ids = enqueue_many(store, 3)
    with rows_locked(place, ids):
        assert len(store.list_runs(take=9)) == 3
        assert store.count_runs()[RunStatus.PENDING] == 3
        assert status(store, ids[0]) is RunStatus.PENDING


@on_examined_servers
def test_an_expired_run_that_is_being_written_is_passed_over(place: Place, store: Store) -> None:
    ids = enqueue_many(store, 2)
    claim(store)
    age_lease(store, *ids)
    with rows_locked(place, ids[:1]):
        answer = claimed(store)
        assert [expired.run_id for expired in answer.expired] == ids[1:]
        assert [run.id for run in answer.runs] == ids[1:]


@on_examined_servers
def test_pruning_passes_over_what_is_being_read_for_update(place: Place, store: Store) -> None:
    ids = enqueue_many(store, 2)
    store.record([Succeeded(run.lease) for run in claim(store)])
    with rows_locked(place, ids[:1]):
        assert store.prune_runs(-LEASE_DURATION, 100) == 1
    assert list(all_runs(store)) == ids[:1]


@pytest.mark.parametrize(
    ("place", "old_snapshot"),
    [("postgres", "repeatable read"), ("postgres", "serializable"), ("mysql", "repeatable read")],
    indirect=["place"],
)
def test_an_old_snapshot_holds_nobody_up(place: Place, store: Store, old_snapshot: str) -> None:
    ids = enqueue_many(store, 2)
    with closing(place.connect()) as connection:
        connection.cursor().execute(f"set transaction isolation level {old_snapshot}")
        connection.cursor().execute(f"select count(*) from {place.runs}")
        leases = [run.lease for run in claim(store)]
        assert set(store.record([Succeeded(lease) for lease in leases])) == set(ids)


@on_postgres
def test_a_default_of_serializable_does_not_reach_our_transactions(place: Place) -> None:
    url = f"{place.database_url}&options=-c%20default_transaction_isolation%3Dserializable"
    store = Place(place.provider, url, place.table_prefix).open(connections_max=THREADS)
    store.migrate()
    ids = enqueue_many(store, 100)
    answers = at_once(*[lambda: claim_until_empty(store, 3)] * THREADS)
    store.close()
    assert Counter(run_id for answer in answers for run_id in answer) == Counter(ids)  # type: ignore[attr-defined]
