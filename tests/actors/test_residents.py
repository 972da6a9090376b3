"""Who works on this host: written down, looked after, and freed of its leases once it is proven dead."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import anyio
import pytest
from msgspec.structs import replace

from durablestack.ids import new_run_id
from durablestack.runs import NewRun, RunStatus
from durablestack.stores.contract import Claim
from durablestack.stores.memory import InMemoryStore
from durablestack.supervisor.incarnation import this_worker
from durablestack.supervisor.residents import Residents
from durablestack.workers import Worker

pytestmark = pytest.mark.anyio

ME = this_worker("me")
DEAD = replace(ME, id=uuid4(), name="it", process_started=ME.process_started - 1, marker="nobody's")
ALIVE = replace(ME, id=uuid4(), name="it")


def held_by(store: InMemoryStore, worker: Worker) -> None:
    """A run that a worker holds for an hour."""
    store.enqueue([NewRun(id=new_run_id(), job_name="job")])
    claim = Claim(
        worker_name=worker.name,
        worker_id=worker.id,
        lease_token=uuid4(),
        job_names=["job"],
        batch_size=1,
        lease_duration=timedelta(hours=1),
    )
    assert len(store.claim_due_runs(claim).runs) == 1


async def look(store: InMemoryStore, worker: Worker = ME, times: int = 1) -> int:
    """What was freed after so many looks."""
    residents = Residents(store, worker, look_every_seconds=3_600, on_freed=lambda: None)
    for _ in range(times):
        await residents._register()
        await residents._look()
    return residents.freed


async def test_what_a_dead_worker_holds_is_free_at_once_and_it_is_forgotten_when_it_holds_nothing() -> None:
    store = InMemoryStore()
    store.register_worker(DEAD)
    held_by(store, DEAD)
    woken = anyio.Event()
    residents = Residents(store, ME, look_every_seconds=0.01, on_freed=woken.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(residents.run)
        await woken.wait()
        while len(store.find_workers(ME.boot_id)) > 1:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert residents.freed == 1
    assert store.find_workers(ME.boot_id) == [ME]
    claim = Claim(
        worker_name="me", lease_token=uuid4(), job_names=["job"], batch_size=1, lease_duration=timedelta(hours=1)
    )
    assert [expired.status for expired in store.claim_due_runs(claim).expired] == [RunStatus.PENDING]


async def test_what_a_living_worker_holds_is_none_of_our_business() -> None:
    store = InMemoryStore()
    store.register_worker(ALIVE)
    held_by(store, ALIVE)
    assert await look(store, times=3) == 0
    assert {worker.id for worker in store.find_workers(ME.boot_id)} == {ME.id, ALIVE.id}


async def test_a_namesake_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryStore()
    store.register_worker(ALIVE)
    await look(store, replace(ME, name=ALIVE.name), times=3)
    (told,) = caplog.messages
    assert f"another worker that may be alive has our name, it (process {ALIVE.pid})" in told


async def test_whoever_leaves_is_forgotten() -> None:
    store = InMemoryStore()
    residents = Residents(store, ME, look_every_seconds=3_600, on_freed=lambda: None)
    await residents._register()
    assert store.find_workers(ME.boot_id) == [ME]
    await residents.leave()
    assert store.find_workers(ME.boot_id) == []


async def test_where_nothing_can_be_proven_nothing_is_written_down() -> None:
    store = InMemoryStore()
    await Residents(store, replace(ME, boot_id=""), look_every_seconds=0.01, on_freed=lambda: None).run()
    assert store.find_workers("") == []
