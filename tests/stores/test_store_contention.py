"""Who locks what, and who waits for whom: claims that are under way, and writes in every order at once.

SQLite is not here: it has one writer at a time.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from exam import (
    JOB,
    LEASE_DURATION,
    Place,
    age_marks,
    all_runs,
    claim,
    enqueue,
    enqueue_many,
    failed,
    on_servers,
    status,
)
from test_store_concurrency import at_once

from durablestack.runs import Lease, Released, RunStatus, Succeeded
from durablestack.stores.claims import lock_expired
from durablestack.stores.contract import Store
from durablestack.stores.sql import SqlStore

ROUNDS = 30
IMPATIENT_SECONDS = 2.0


class NotThisTime(Exception):
    """Ends a transaction that is not to be committed."""


@contextmanager
def claim_under_way(store: Store, batch_size: int) -> Iterator[list[UUID]]:
    """Between the writes of a claim and its commit, which does not come; the ids of what it holds."""
    assert isinstance(store, SqlStore)
    with suppress(NotThisTime), store._transaction() as tx:
        lock_expired(tx)
        rows = tx.fetch("RUNS_DUE_SELECT", job_names=[JOB], limit=batch_size)
        ids = [row[0] for row in rows]
        tx.run("RUNS_LEASE", ids=ids, worker_name="slow", worker_id=None, lease_token=uuid4(), seconds=30.0)
        yield [store._rows.uuid(id) for id in ids]
        raise NotThisTime


@pytest.fixture
def impatient(place: Place, store: Store) -> Iterator[Store]:
    """Another worker's store on the same tables; whoever makes it wait fails the test."""
    impatient = place.open(timeout_seconds=IMPATIENT_SECONDS)
    yield impatient
    impatient.close()


@on_servers
def test_a_claim_holds_what_it_takes_and_nothing_else(store: Store, impatient: Store) -> None:
    ids = enqueue_many(store, 60)
    leases = [run.lease for run in claim(store, batch_size=20)]
    with claim_under_way(store, 10) as held:
        assert held == ids[20:30]
        assert [run.id for run in claim(impatient, batch_size=10)] == ids[30:40]
        assert [run.id for run in claim(impatient)] == ids[40:]
        assert impatient.extend_leases(leases, LEASE_DURATION).held == set(ids[:20])
        assert set(impatient.record([Succeeded(lease) for lease in leases])) == set(ids[:20])
        assert impatient.prune_runs(-LEASE_DURATION, 100) == 20
    age_marks(impatient)
    assert [run.id for run in claim(impatient)] == ids[20:30]


@on_servers
def test_who_enqueues_and_cancels_does_not_wait_for_a_claim(store: Store, impatient: Store) -> None:
    ids = enqueue_many(store, 12)
    with claim_under_way(store, 6):
        earlier, later = enqueue(impatient, scheduled_for=store.now() - timedelta(days=1)), enqueue(impatient)
        assert impatient.cancel_run(ids[6])
        assert impatient.requeue_run(ids[6]) is not None
        due = [run.id for run in claim(impatient)]
    assert (due[0], due[1:6]) == (earlier, ids[7:12])
    assert later in due
    assert status(store, ids[0]) is RunStatus.PENDING


@on_servers
def test_who_holds_leases_does_not_wait_for_a_claim_that_came_by_them(store: Store, impatient: Store) -> None:
    assert isinstance(impatient, SqlStore)
    enqueue_many(store, 200)
    ids = [run.id for run in claim(store, batch_size=10)]
    with impatient._transaction() as tx:
        tx.fetch("LEASES_SELECT_FOR_UPDATE", ids=ids)
        with claim_under_way(store, 5):
            tx.run("RUNS_SUCCEED", ids=ids)
    assert [status(store, id) for id in ids] == [RunStatus.SUCCEEDED] * 10


@on_servers
def test_claims_under_way_share_what_is_due(store: Store) -> None:
    ids = enqueue_many(store, 40)
    with claim_under_way(store, 10) as first, claim_under_way(store, 10) as second, claim_under_way(store, 10) as third:
        assert first + second + third == ids[:30]
        assert [run.id for run in claim(store)] == ids[30:]


@on_servers
def test_writes_of_every_kind_in_every_order_at_once_end_without_a_deadlock(place: Place, store: Store) -> None:
    """Each of them would be told as StoreUnavailable, and end its thread."""
    stores = [place.open() for _ in range(4)]
    ids = enqueue_many(store, 200, max_attempts=1_000)
    shared: list[Lease] = []

    def shuffled(seed: int) -> Iterator[tuple[random.Random, list[Lease]]]:
        chance = random.Random(seed)
        for _ in range(ROUNDS):
            leases = list(shared)
            chance.shuffle(leases)
            yield chance, leases

    def work(store: Store, seed: int) -> None:
        for chance, _ in shuffled(seed):
            leases = [run.lease for run in claim(store, batch_size=chance.randrange(1, 40))]
            shared[:] = (shared + leases)[-120:]
            chance.shuffle(leases)
            kinds: list[Callable[[Lease], object]] = [Succeeded, Released, lambda lease: failed(lease, 0), failed]
            store.record([chance.choice(kinds)(lease) for lease in leases[: len(leases) // 2]])  # type: ignore[misc]

    def hold(store: Store, seed: int) -> None:
        for chance, leases in shuffled(seed):
            store.extend_leases(leases, LEASE_DURATION)
            store.find_requests(leases)
            store.record([Succeeded(lease) for lease in leases[: chance.randrange(1, 30)]])

    def meddle(store: Store, seed: int) -> None:
        for chance, _ in shuffled(seed):
            for run_id in chance.sample(ids, 5):
                store.cancel_run(run_id)
                store.requeue_run(run_id)
            enqueue_many(store, 5, max_attempts=1_000)

    def prune(store: Store, seed: int) -> None:
        for chance, _ in shuffled(seed):
            store.prune_runs(-LEASE_DURATION, chance.randrange(1, 50))

    kinds = (work, work, hold, hold, meddle, prune)
    at_once(*[lambda kind=kind, n=n: kind(stores[n % 4], n) for n, kind in enumerate(kinds)])  # type: ignore[misc]
    for each in stores:
        each.close()
    assert all_runs(store)
