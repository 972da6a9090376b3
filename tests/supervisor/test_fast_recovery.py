"""A supervisor is killed, and its runs need not wait for their leases: on its own host its death can be proven."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from msgspec.structs import replace

from durablestack import RunStatus
from durablestack.stores.contract import Store
from durablestack.supervisor.incarnation import MARKER, this_worker
from durablestack.workers import Worker as Incarnation
from workers import Bench, Worker, eventually

LONG_LEASE_SECONDS = 300.0


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


def begun(made: Bench) -> tuple[Worker, UUID, Incarnation]:
    """A supervisor with a run in hand, and what the database knows of it."""
    first = made.worker()
    run_id = made.client.enqueue("slow-at-first")
    made.until_noted(run_id, "start")
    (incarnation,) = incarnations(made.stack.store)
    return first, run_id, incarnation


def taken_over_after_its_lease(made: Bench, run_id: UUID) -> bool:
    """Another supervisor is started, and executes the run: whether it has waited."""
    lease_until = made.run(run_id).lease_until
    made.worker()
    run = made.until(run_id, RunStatus.SUCCEEDED)
    return run.started_at is not None and lease_until is not None and run.started_at >= lease_until


def test_what_a_dead_worker_of_another_host_held_waits_for_its_lease(any_bench: Bench) -> None:
    first, run_id, incarnation = begun(any_bench)
    first.kill()
    any_bench.stack.store.forget_worker(incarnation.id)
    any_bench.stack.store.register_worker(replace(incarnation, boot_id="of another machine"))
    assert taken_over_after_its_lease(any_bench, run_id)


def test_nothing_is_taken_from_a_dead_supervisor_while_something_of_it_may_be_left(sqlite_bench: Bench) -> None:
    first, run_id, incarnation = begun(sqlite_bench)
    with left_running(incarnation):
        guard = first.guard()
        first.freeze()
        os.kill(guard, signal.SIGKILL)  # it would end that too; nor is there to be another
        first.kill()
        assert taken_over_after_its_lease(sqlite_bench, run_id)


def test_a_frozen_supervisor_loses_nothing_to_its_neighbour_before_its_leases_expire(sqlite_bench: Bench) -> None:
    first, run_id, _ = begun(sqlite_bench)
    first.freeze()
    assert taken_over_after_its_lease(sqlite_bench, run_id)


def test_a_supervisor_that_leaves_in_good_order_takes_itself_out_of_the_database(any_bench: Bench) -> None:
    worker = any_bench.worker()
    eventually(lambda: incarnations(any_bench.stack.store), what="the worker in the database")
    worker.terminate()
    assert worker.exit_code() == 0
    assert incarnations(any_bench.stack.store) == []
