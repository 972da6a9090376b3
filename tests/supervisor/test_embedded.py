"""The supervisor inside an application's event loop."""

from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

import chaos_jobs
from durablestack import DurableStack, JobDefinitionError, Run, RunStatus, SchemaError
from durablestack.supervisor.embedded import supervise
from processes import still_running
from workers import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


def stack(**options: Any) -> DurableStack:
    return DurableStack("chaos_jobs", max_concurrent_runs=2, **options)


async def ended(stack: DurableStack, run_id: UUID) -> Run:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (run := stack.queries.get_run(run_id)) is None or not run.status.terminal:
            await anyio.sleep(0.01)
    return run


async def test_runs_of_the_in_memory_store_are_executed_in_children() -> None:
    mine = stack(storage_provider="in_memory")
    async with supervise(mine) as supervisor:
        succeeded = await mine.async_client.enqueue("prints", 1)
        crashed = await mine.async_client.enqueue("dies", "segfault")
        assert (await ended(mine, succeeded)).stdout_tail is not None
        assert (await ended(mine, crashed)).error_type == "ChildCrashed"
        pids = [executor.pid for executor in supervisor.pool.executors if executor.pid]
    assert not any(map(still_running, pids))


async def test_an_enqueue_in_the_same_process_does_not_wait_for_the_poll(tmp_path: Path) -> None:
    mine = stack(database_url=f"sqlite:///{tmp_path}/runs.db", poll_interval_seconds=3600)
    with mine:
        async with supervise(mine):
            for _ in range(3):
                run_id = await mine.async_client.enqueue("innocent")
                assert (await ended(mine, run_id)).status is RunStatus.SUCCEEDED


async def test_leaving_the_block_lets_short_runs_finish_and_releases_long_ones(tmp_path: Path) -> None:
    mine = stack(
        database_url=f"sqlite:///{tmp_path}/runs.db",
        shutdown_drain_timeout_seconds=1,
        cancel_grace_seconds=0.2,
        terminate_grace_seconds=0.2,
    )
    with mine:
        async with supervise(mine):
            short = await mine.async_client.enqueue("sleeps", {"seconds": 0.3})
            long = await mine.async_client.enqueue("sleeps", {"seconds": 60.0})
            with anyio.fail_after(PATIENCE_SECONDS):
                while mine.queries.count_runs()[RunStatus.LEASED] < 2:
                    await anyio.sleep(0.01)
        runs = {run_id: mine.queries.get_run(run_id) for run_id in (short, long)}
        assert [(run.status, run.attempt) for run in runs.values() if run] == [
            (RunStatus.SUCCEEDED, 1),
            (RunStatus.PENDING, 0),
        ]


async def test_an_error_in_the_block_is_raised_as_it_is_after_a_graceful_stop() -> None:
    mine = stack(storage_provider="in_memory")
    with pytest.raises(ZeroDivisionError):
        async with supervise(mine) as supervisor:
            raise ZeroDivisionError
    assert supervisor.stopped.is_set()


async def test_what_keeps_it_from_starting_is_raised_before_the_block(tmp_path: Path) -> None:
    with pytest.raises(JobDefinitionError, match="no job to run"):
        async with supervise(DurableStack(storage_provider="in_memory")):
            pytest.fail("entered")
    mine = stack(database_url=f"sqlite:///{tmp_path}/runs.db", auto_migrate=False)
    with pytest.raises(SchemaError, match="durablestack migrate"):
        async with supervise(mine):
            pytest.fail("entered")
    mine.close()


async def test_two_supervisors_in_one_process_share_the_work(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    with stack(database_url=url, worker_name="one") as one, stack(database_url=url, worker_name="two") as two:
        async with supervise(one), supervise(two):
            run_ids = await one.async_client.enqueue_many(chaos_jobs.burns, [chaos_jobs.Seconds(0.05)] * 12)
            runs = [await ended(one, run_id) for run_id in run_ids]
    assert {(run.status, run.attempt) for run in runs} == {(RunStatus.SUCCEEDED, 1)}
