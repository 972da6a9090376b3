"""The supervisor inside an application's event loop."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

import chaos_jobs
from durablestack import DurableStack, JobDefinitionError, Run, RunStatus, SchemaError
from durablestack.options import StartMethod
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.incarnation import MARKER, marker
from durablestack.supervisor.process import ChildProcess
from durablestack.supervisor.starter import Starter, end_fork_server
from durablestack.supervisor.tree import Supervisor
from processes import children_of, stat_fields, still_running
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


async def test_who_enqueues_as_soon_as_it_runs_is_not_told_that_none_does(caplog: pytest.LogCaptureFixture) -> None:
    mine = stack(storage_provider="in_memory", poll_interval_seconds=3600)
    async with supervise(mine):
        run_id = mine.client.enqueue("innocent")
        assert (await ended(mine, run_id)).status is RunStatus.SUCCEEDED
    assert "where no supervisor runs" not in caplog.text


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


# --- the fork server, which all of this process share


LOADS_WHEN_TOLD = """
    import os, pathlib, time
    from durablestack import durable_job

    folder = pathlib.Path({folder!r})
    if os.getpid() != {application}:
        (folder / "loading").touch()
        while not (folder / "go-on").exists():
            time.sleep(0.01)

    @durable_job(name="loads-when-told")
    def loads_when_told() -> None:
        pass
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


async def children(supervisor: Supervisor) -> list[int]:
    """Once all of them are there."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not all(executor.pid for executor in supervisor.pool.executors):
            await anyio.sleep(0.01)
    return [executor.pid for executor in supervisor.pool.executors if executor.pid]


def is_marked(pid: int) -> bool:
    return f"{MARKER}={marker()}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@linux_only
async def test_starts_that_are_abandoned_cost_another_supervisor_no_run_and_leave_no_process(tmp_path: Path) -> None:
    with stack(database_url=f"sqlite:///{tmp_path}/runs.db", shutdown_drain_timeout_seconds=0) as mine:
        async with supervise(mine) as busy:
            run_ids = [await mine.async_client.enqueue("sleeps", {"seconds": 60.0}) for _ in range(2)]
            pids = await children(busy)
            fork_server = int(stat_fields(pids[0])[1])
            with anyio.fail_after(PATIENCE_SECONDS):
                while mine.queries.count_runs()[RunStatus.LEASED] < 2:
                    await anyio.sleep(0.01)
            starter = Starter(StartMethod.FORKSERVER, ("chaos_jobs",))
            for patience_milliseconds in [*range(6)] * 25:
                child = ChildProcess(starter, output_bytes_max=100, name="abandoned")
                with anyio.move_on_after(patience_milliseconds / 1000):
                    await child.start()
                starter.unstick()
                await child.end()
            with anyio.fail_after(PATIENCE_SECONDS):
                while set(filter(still_running, children_of(fork_server))) != set(pids):
                    await anyio.sleep(0.01)
            assert busy.reports.children_lost == 0
            assert [run.attempt for id in run_ids if (run := mine.queries.get_run(id))] == [1, 1]


@linux_only
async def test_what_the_application_starts_while_children_load_is_not_taken_for_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loads_when_told.py").write_text(
        textwrap.dedent(LOADS_WHEN_TOLD.format(folder=str(tmp_path), application=os.getpid()))
    )
    end_fork_server()  # the next one loads the application
    try:
        async with supervise(DurableStack("loads_when_told", storage_provider="in_memory")) as supervisor:
            with anyio.fail_after(PATIENCE_SECONDS):
                while not (tmp_path / "loading").exists():
                    await anyio.sleep(0.01)
            others = subprocess.Popen(["sleep", "60"])
            try:
                assert not is_marked(others.pid)
            finally:
                others.kill()
                others.wait()
                (tmp_path / "go-on").touch()
            assert all(map(is_marked, await children(supervisor)))
    finally:
        end_fork_server()  # which knows other jobs than those of its neighbours


@linux_only
async def test_what_a_process_of_the_application_sends_off_is_left_alone_when_a_child_dies() -> None:
    mine = stack(storage_provider="in_memory")
    async with supervise(mine) as supervisor:
        before = await children(supervisor)
        fork_server = int(stat_fields(before[0])[1])
        sends_off = multiprocessing.get_context("forkserver").Process(
            target=subprocess.Popen, args=(["sleep", "60"],), kwargs={"start_new_session": True}
        )
        await anyio.to_thread.run_sync(sends_off.start)
        await anyio.to_thread.run_sync(sends_off.join)
        (daemon,) = filter(still_running, children_of(fork_server) - set(before))
        try:
            crashed = await mine.async_client.enqueue("dies", "segfault")
            assert (await ended(mine, crashed)).error_type == "ChildCrashed"
            assert still_running(daemon)
        finally:
            os.kill(daemon, signal.SIGKILL)


@linux_only
async def test_a_fork_server_that_was_stopped_goes_on_when_the_supervisor_leaves() -> None:
    async with supervise(stack(storage_provider="in_memory")) as supervisor:
        fork_server = int(stat_fields((await children(supervisor))[0])[1])
        os.kill(fork_server, signal.SIGSTOP)
    with anyio.fail_after(PATIENCE_SECONDS):
        while stat_fields(fork_server)[:1] == ["T"]:
            await anyio.sleep(0.01)
    assert still_running(fork_server)
