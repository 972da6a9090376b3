"""Lives of supervisors: remembered, found by the next on the same machine, and what they held given to others."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from exam import (
    LEASE_DURATION,
    LONG_AGO,
    WORKER,
    Place,
    change,
    claimed,
    enqueue,
    enqueue_many,
    failed,
    on_databases,
    on_sqlite,
    outcomes,
    status,
    the_run,
)
from test_store_concurrency import at_once

from durablestack.runs import Lease, RunStatus, Succeeded
from durablestack.stores.contract import Claim, Store
from durablestack.stores.memory import InMemoryStore
from durablestack.workers import Worker

BOOT = "9f1c6d4e-0a53-4a4e-8d2f-2c7d1b5f3e10"


def new_worker(**fields: Any) -> Worker:
    known = {
        "id": uuid4(),
        "name": WORKER,
        "boot_id": BOOT,
        "pid_namespace": "pid:[4026531836]",
        "user_id": 1000,
        "pid": 4711,
        "process_started": 123_456_789,
        "marker": "5f3e10c6d4e0a53",
    }
    return Worker(**{**known, **fields})


def registered(store: Store, **fields: Any) -> Worker:
    worker = new_worker(**fields)
    store.register_worker(worker)
    return worker


def claim_of(store: Store, worker_id: UUID | None, *, worker_name: str = WORKER, batch_size: int = 50) -> list[Lease]:
    claim = Claim(
        worker_name=worker_name,
        lease_token=uuid4(),
        job_names=["send_email"],
        batch_size=batch_size,
        lease_duration=LEASE_DURATION,
        worker_id=worker_id,
    )
    return [run.lease for run in store.claim_due_runs(claim).runs]


def age_seen(store: Store, worker: Worker) -> None:
    """Let it have been seen a day ago."""
    if isinstance(store, InMemoryStore):
        store._tables.workers[worker.id] = worker, store.now() - LONG_AGO
    else:
        statement = "update {workers} set seen_at_utc = :value where id = :id"
        change(store, statement, value=store.now() - LONG_AGO, id=worker.id)


# --- remembered


def test_a_worker_is_found_by_the_boot_of_its_machine(store: Store) -> None:
    mine, other = registered(store), registered(store, boot_id="another")
    unknown = registered(store, boot_id="")
    assert store.find_workers(BOOT) == [mine]
    assert store.find_workers("another") == [other]
    assert store.find_workers("") == [unknown]
    assert store.find_workers(BOOT.upper()) == []


def test_workers_are_found_in_the_order_of_their_ids(store: Store) -> None:
    workers = [registered(store, pid=number) for number in range(5)]
    assert store.find_workers(BOOT) == sorted(workers, key=lambda worker: worker.id)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "w" * 200, "marker": "m" * 64, "boot_id": "b" * 64, "pid_namespace": "p" * 64},
        {"name": "é🦕'; --", "pid_namespace": ""},
        {"user_id": 4_294_967_294, "pid": 4_194_304, "process_started": 2**53},
        {"user_id": 0, "pid": 1, "process_started": 0},
    ],
    ids=["longest", "hostile", "largest", "least"],
)
def test_a_worker_comes_back_as_it_was(store: Store, fields: dict[str, Any]) -> None:
    worker = registered(store, **fields)
    assert store.find_workers(worker.boot_id) == [worker]


def test_a_worker_that_is_registered_again_is_seen_again(store: Store) -> None:
    worker = registered(store)
    age_seen(store, worker)
    store.register_worker(worker)
    assert store.find_workers(BOOT) == [worker]
    assert store.prune_workers(timedelta(hours=1)) == 0


def test_a_worker_is_forgotten(store: Store) -> None:
    gone, stays = registered(store), registered(store)
    store.forget_worker(gone.id)
    store.forget_worker(gone.id)
    assert store.find_workers(BOOT) == [stays]


def test_a_worker_that_was_forgotten_by_mistake_is_there_again_when_it_registers(store: Store) -> None:
    worker = registered(store)
    store.forget_worker(worker.id)
    store.register_worker(worker)
    assert store.find_workers(BOOT) == [worker]


def test_workers_that_nobody_has_seen_for_long_are_forgotten(store: Store) -> None:
    unseen, seen = [registered(store) for _ in range(3)], registered(store)
    for worker in unseen:
        age_seen(store, worker)
    assert store.prune_workers(LONG_AGO * 2) == 0
    assert store.prune_workers(timedelta(hours=1)) == 3
    assert store.prune_workers(timedelta(hours=1)) == 0
    assert store.find_workers(BOOT) == [seen]


def test_no_more_workers_are_forgotten_at_once_than_is_promised(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sql", "memory"):
        monkeypatch.setattr(f"durablestack.stores.{module}.WORKERS_PER_PRUNE_MAX", 2)
    for _ in range(5):
        age_seen(store, registered(store))
    assert [store.prune_workers(timedelta(hours=1)) for _ in range(4)] == [2, 2, 1, 0]


def test_workers_that_register_at_once_are_all_remembered(store: Store) -> None:
    workers = [new_worker() for _ in range(6)] * 2

    def register(worker: Worker) -> None:
        for _ in range(5):
            store.register_worker(worker)

    at_once(*[lambda worker=worker: register(worker) for worker in workers])
    assert {worker.id for worker in store.find_workers(BOOT)} == {worker.id for worker in workers}


@on_sqlite
def test_a_worker_whose_row_cannot_be_read_hides_no_other(store: Store) -> None:
    sound, damaged = registered(store), registered(store)
    change(store, "update {workers} set id = 'nonsense' where id = :id", id=damaged.id)
    assert store.find_workers(BOOT) == [sound]


# --- what a dead worker held


def test_leases_of_a_dead_worker_expire_at_once_and_those_of_others_do_not(store: Store) -> None:
    ids = enqueue_many(store, 6)
    dead, alive = registered(store, name="dead"), registered(store, name="alive")
    claim_of(store, dead.id, worker_name="dead", batch_size=2)
    others = claim_of(store, alive.id, worker_name="alive", batch_size=2)
    nameless = claim_of(store, None, worker_name="dead")
    before = {lease.run_id: the_run(store, lease.run_id) for lease in others + nameless}
    assert store.expire_leases(dead.id) == 2
    assert {run_id: the_run(store, run_id) for run_id in before} == before
    answer = claimed(store)
    assert {expired.run_id for expired in answer.expired} == set(ids[:2])
    assert {expired.lease_owner for expired in answer.expired} == {"dead"}
    assert [run.id for run in answer.runs] == ids[:2]
    assert [outcomes(store, run_id) for run_id in ids[:2]] == [[(1, "expired")]] * 2
    assert store.expire_leases(dead.id) == 0, "they are another's by now"


def test_a_lease_that_was_let_expire_is_told_until_when_it_lasted(store: Store) -> None:
    run_id, worker = enqueue(store), registered(store)
    claim_of(store, worker.id)
    assert store.expire_leases(worker.id) == 1
    run = the_run(store, run_id)
    assert run.status is RunStatus.LEASED
    assert run.lease_until is not None
    assert run.lease_until <= store.now()
    assert store.expire_leases(worker.id) == 0, "it has expired"
    claimed(store)


def test_of_a_worker_that_nobody_remembers_no_lease_expires(store: Store) -> None:
    enqueue(store)
    worker = new_worker()
    (lease,) = claim_of(store, worker.id)
    assert store.expire_leases(worker.id) == 0
    assert store.expire_leases(uuid4()) == 0
    assert store.extend_leases([lease], LEASE_DURATION).held == {lease.run_id}


def test_what_a_dead_worker_has_ended_or_given_back_is_left_alone(store: Store) -> None:
    ids, worker = enqueue_many(store, 2), registered(store)
    ended, retried = claim_of(store, worker.id)
    store.record([Succeeded(ended), failed(retried, 3600)])
    assert store.expire_leases(worker.id) == 0
    assert [status(store, run_id) for run_id in ids] == [RunStatus.SUCCEEDED, RunStatus.PENDING]


def test_a_claim_that_names_no_worker_takes_over_from_one_that_did(store: Store) -> None:
    run_id, dead = enqueue(store), registered(store)
    claim_of(store, dead.id)
    store.expire_leases(dead.id)
    (lease,) = claim_of(store, None)
    assert store.expire_leases(dead.id) == 0
    assert store.extend_leases([lease], LEASE_DURATION).held == {run_id}


@on_databases
def test_a_lease_that_an_older_version_took_over_is_not_that_of_the_dead_worker(store: Store) -> None:
    """Its claim says nothing of workers, so that the id of the dead one stays in the row."""
    run_id, dead = enqueue(store), registered(store, name="dead")
    claim_of(store, dead.id, worker_name="dead")
    store.expire_leases(dead.id)
    (lease,) = claim_of(store, None, worker_name="older version")
    change(store, "update {runs} set worker_id = :worker_id where id = :id", worker_id=dead.id, id=run_id)
    assert store.expire_leases(dead.id) == 0
    assert store.extend_leases([lease], LEASE_DURATION).held == {run_id}


def test_a_worker_that_is_forgotten_leaves_its_leases_as_they_are(store: Store) -> None:
    run_id, worker = enqueue(store), registered(store)
    (lease,) = claim_of(store, worker.id)
    store.forget_worker(worker.id)
    assert store.extend_leases([lease], LEASE_DURATION).held == {run_id}


def test_leases_that_expire_while_others_are_extended_and_claimed_get_along(place: Place, store: Store) -> None:
    enqueue_many(store, 60, max_attempts=50)
    workers = [registered(store, name=f"worker-{number}") for number in range(3)]

    def work(worker: Worker) -> None:
        for _ in range(10):
            leases = claim_of(store, worker.id, worker_name=worker.name, batch_size=10)
            store.extend_leases(leases[::-1], LEASE_DURATION)
            store.record([failed(lease, 0) for lease in leases[::2]])
            store.expire_leases(worker.id)

    at_once(*[lambda worker=worker: work(worker) for worker in workers])
    for worker in workers:
        store.expire_leases(worker.id)
    claimed(store, job_names=[])
    assert store.count_runs()[RunStatus.LEASED] == 0
