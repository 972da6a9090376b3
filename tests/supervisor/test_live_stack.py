"""Where is the code of a run that does not end? Asked from outside, through the database, by library and command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from durablestack import RunStatus
from workers import TESTS, Bench


def test_the_stack_of_a_run_that_holds_the_gil_is_shown_and_called_stuck(any_bench: Bench) -> None:
    any_bench.worker()
    run_id = any_bench.client.enqueue("spins-holding-the-gil")
    any_bench.until_noted(run_id, "start")
    stack = any_bench.stack.queries.get_stack(run_id)
    assert stack is not None
    assert stack.startswith("stuck")  # two stacks, which are the same
    assert "in spins_holding_the_gil" in stack
    assert any_bench.run(run_id).status is RunStatus.LEASED


def test_a_run_whose_stack_was_taken_goes_on_and_succeeds(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 4.0})
    sqlite_bench.until_noted(run_id, "start")
    for _ in range(2):  # asked again, it answers again
        assert "in sleeps" in (sqlite_bench.stack.queries.get_stack(run_id) or "")
    run = sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert (run.attempt, run.stderr_tail) == (1, None)


def test_the_command_shows_the_stack(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 60.0})
    sqlite_bench.until_noted(run_id, "start")
    told = subprocess.run(
        [Path(sys.executable).with_name("durablestack"), "runs", "stack", str(run_id)],
        env={**os.environ, **sqlite_bench.settings, "DURABLESTACK_APP": "chaos_jobs", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert "in sleeps" in told.stdout


@pytest.mark.parametrize("job", ["keeps-threads-busy", "sets-all-signals-back"])
def test_nobody_dies_of_being_looked_at(sqlite_bench: Bench, job: str) -> None:
    worker = sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue(job, {"seconds": 6.0})
    sqlite_bench.until_noted(run_id, "start")
    looks = 0
    while sqlite_bench.stack.queries.get_stack(run_id) is not None:
        looks += 1
    assert sqlite_bench.run(run_id).status is RunStatus.SUCCEEDED, worker.log()
    assert looks  # one that is not answered takes seconds
