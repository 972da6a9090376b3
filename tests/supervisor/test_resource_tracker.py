"""multiprocessing's resource tracker is there for the job that needs it, and for nobody else."""

import os
import signal
from pathlib import Path

import pytest

from durablestack import DurableStack, RunStatus
from durablestack.options import DurableStackOptions
from processes import children_of, command_line, still_running
from workers import Bench, Worker, eventually


@pytest.fixture
def sharing(sqlite_bench: Bench, sqlite_settings: dict[str, str]) -> Bench:
    sqlite_bench.stack.close()
    sqlite_bench.stack = DurableStack("sharing_jobs", options=DurableStackOptions.from_environment(sqlite_settings))
    sqlite_bench.client = sqlite_bench.stack.client
    return sqlite_bench


def tracker_of(worker: Worker) -> int | None:
    return next((pid for pid in children_of(worker.pid) if b"resource_tracker" in command_line(pid)), None)


def leaked(bench: Bench) -> Path:
    told = bench.folder / "told"
    run_id = bench.client.enqueue("leak", str(told))
    bench.until(run_id, RunStatus.FAILED)
    return Path("/dev/shm") / told.read_text()


def test_nobody_has_a_tracker_who_shares_nothing_however_often_it_is_asked_for(sharing: Bench) -> None:
    worker = sharing.worker(target="sharing_jobs")
    sharing.until(sharing.client.enqueue("innocent"), RunStatus.SUCCEEDED)
    sharing.until(sharing.client.enqueue("probe"), RunStatus.SUCCEEDED)
    assert tracker_of(worker) is None


def test_what_a_killed_job_leaves_in_shared_memory_goes_with_its_supervisor(sharing: Bench) -> None:
    worker = sharing.worker(target="sharing_jobs")
    shared = leaked(sharing)
    assert shared.exists()
    eventually(lambda: tracker_of(worker) is not None, what="a tracker")
    worker.terminate()
    assert worker.exit_code() == 0
    eventually(lambda: not shared.exists(), what="nothing left in shared memory")


def test_it_goes_too_when_supervisor_and_children_are_killed(sharing: Bench) -> None:
    worker = sharing.worker("--start-method", "spawn", target="sharing_jobs")
    shared = leaked(sharing)
    eventually(lambda: tracker_of(worker) is not None, what="a tracker")
    tracker = tracker_of(worker)
    assert tracker is not None
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not shared.exists(), what="nothing left in shared memory")
    eventually(lambda: not still_running(tracker), what="the end of the tracker")


def test_one_tracker_serves_all_children_and_one_that_dies_costs_nobody_a_run(sharing: Bench) -> None:
    worker = sharing.worker(target="sharing_jobs")
    for run_id in sharing.client.enqueue_many("share", [None] * 20):
        assert sharing.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    eventually(lambda: tracker_of(worker) is not None, what="a tracker")
    assert sum(b"resource_tracker" in command_line(pid) for pid in children_of(worker.pid)) == 1
    os.kill(tracker_of(worker) or 0, signal.SIGKILL)
    for run_id in sharing.client.enqueue_many("share", [None] * 20):
        assert sharing.until(run_id, RunStatus.SUCCEEDED).attempt == 1
