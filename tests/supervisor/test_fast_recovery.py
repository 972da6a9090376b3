"""A supervisor is killed, and its runs need not wait for their leases: on its own host its death can be proven."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from durablestack import RunStatus
from durablestack.stores.contract import Store
from durablestack.supervisor.incarnation import MARKER, this_worker
from durablestack.workers import Worker as Incarnation
from workers import Bench, eventually

LONG_LEASE_SECONDS = 300.0
LEASE_SECONDS = 3.0


def incarnations(store: Store) -> list[Incarnation]:
    return store.find_workers(this_worker("me").boot_id)


@contextmanager
def left_running(incarnation: Incarnation) -> Iterator[None]:
    """Something that a worker has started, and that outlives it."""
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: incarnation.marker})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_runs_of_a_killed_supervisor_go_on_when_it_is_started_again(any_bench: Bench) -> None:
    settings = {
        "DURABLESTACK__LEASE_DURATION_SECONDS": str(LONG_LEASE_SECONDS),
        "DURABLESTACK__MAX_CONCURRENT_RUNS": "20",
    }
    first = any_bench.worker(settings=settings)
    run_ids = [any_bench.client.enqueue("slow-at-first") for _ in range(20)]
    for run_id in run_ids:
        any_bench.until_noted(run_id, "start")
    first.kill()
    any_bench.worker(settings=settings)
    for run_id in run_ids:  # patience is a tenth of the lease
        run = any_bench.until(run_id, RunStatus.SUCCEEDED)
        assert run.attempt == 2
        assert [a.error_type for a in any_bench.stack.queries.get_attempts(run_id)] == ["LeaseExpired", None]
    assert any_bench.executions() == dict.fromkeys(run_ids, 2)


def test_a_supervisor_that_is_there_already_takes_over_what_a_neighbour_held(any_bench: Bench) -> None:
    settings = {"DURABLESTACK__LEASE_DURATION_SECONDS": str(LONG_LEASE_SECONDS)}
    first = any_bench.worker(settings=settings)
    run_ids = [any_bench.client.enqueue("slow-at-first") for _ in range(2)]
    for run_id in run_ids:
        any_bench.until_noted(run_id, "start")
    second = any_bench.worker(settings=settings)
    second.until_ready(children=2)
    eventually(lambda: len(incarnations(any_bench.stack.store)) == 2, what="two workers in the database")
    first.kill()
    for run_id in run_ids:
        any_bench.until(run_id, RunStatus.SUCCEEDED)
    eventually(lambda: len(incarnations(any_bench.stack.store)) == 1, what="the dead one forgotten")


def test_what_a_dead_worker_of_another_host_held_waits_for_its_lease(any_bench: Bench) -> None:
    settings = {"DURABLESTACK__LEASE_DURATION_SECONDS": str(LEASE_SECONDS)}
    first = any_bench.worker(settings=settings)
    run_id = any_bench.client.enqueue("slow-at-first")
    any_bench.until_noted(run_id, "start")
    (incarnation,) = incarnations(any_bench.stack.store)
    first.kill()
    any_bench.stack.store.forget_worker(incarnation.id)
    any_bench.stack.store.register_worker(replace(incarnation, boot_id="of another machine"))
    lease_until = any_bench.run(run_id).lease_until
    assert lease_until is not None
    any_bench.worker(settings=settings)
    run = any_bench.until(run_id, RunStatus.SUCCEEDED)
    assert run.started_at is not None
    assert run.started_at >= lease_until


def test_nothing_is_taken_from_a_dead_supervisor_while_something_of_it_may_be_left(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__LEASE_DURATION_SECONDS": str(LEASE_SECONDS)}
    first = sqlite_bench.worker(settings=settings)
    run_id = sqlite_bench.client.enqueue("slow-at-first")
    sqlite_bench.until_noted(run_id, "start")
    (incarnation,) = incarnations(sqlite_bench.stack.store)
    with left_running(incarnation):
        guard = first.guard()
        first.freeze()
        os.kill(guard, signal.SIGKILL)  # it would end that too; nor is there to be another
        first.kill()
        lease_until = sqlite_bench.run(run_id).lease_until
        assert lease_until is not None
        sqlite_bench.worker(settings=settings)
        run = sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert run.started_at is not None
    assert run.started_at >= lease_until


def test_a_frozen_supervisor_loses_nothing_to_its_neighbour_before_its_leases_expire(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__LEASE_DURATION_SECONDS": str(LEASE_SECONDS)}
    first = sqlite_bench.worker(settings=settings)
    run_id = sqlite_bench.client.enqueue("slow-at-first")
    sqlite_bench.until_noted(run_id, "start")
    first.freeze()
    lease_until = sqlite_bench.run(run_id).lease_until
    assert lease_until is not None
    sqlite_bench.worker(settings=settings)
    run = sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert run.started_at is not None
    assert run.started_at >= lease_until


def test_a_supervisor_that_leaves_in_good_order_takes_itself_out_of_the_database(any_bench: Bench) -> None:
    worker = any_bench.worker()
    eventually(lambda: incarnations(any_bench.stack.store), what="the worker in the database")
    worker.terminate()
    assert worker.exit_code() == 0
    assert incarnations(any_bench.stack.store) == []
