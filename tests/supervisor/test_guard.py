"""Supervisors that cannot end their children: killed, frozen, blocked, with and without a guard that does it for them.

What was executed when is read from the diary, by the clock of the boot: two attempts of a run must not overlap.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from durablestack import RunStatus
from durablestack.runs import AttemptOutcome
from processes import stat_fields, still_running
from workers import TESTS, Bench, eventually, guard_below

THREE_AT_ONCE = {"DURABLESTACK__MAX_CONCURRENT_RUNS": "3"}
WATCHDOGS = {"DURABLESTACK__GUARD": "child"}


@pytest.fixture(params=["sqlite", "postgres"])
def either_bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(f"{request.param}_bench")
    return made


def is_stopped(pid: int) -> bool:
    return stat_fields(pid)[:1] == ["T"]


def until_dead(*pids: int) -> None:
    eventually(lambda: not any(map(still_running, pids)), what=f"the end of {pids}")


def begun(bench: Bench, job: str, *arguments: object) -> int:
    """The child that executes a run of this job."""
    return bench.until_noted(bench.client.enqueue(job, *arguments), "start").pid


def assert_attempts_do_not_overlap(bench: Bench) -> None:
    for run_id in bench.executions():
        notes = bench.notes(run_id)
        last = {n.attempt: max(other.at for other in notes if other.attempt == n.attempt) for n in notes}
        first = {n.attempt: min(other.at for other in notes if other.attempt == n.attempt) for n in notes}
        assert all(last[attempt] < first[attempt + 1] for attempt in last if attempt + 1 in first), notes


# --- the supervisor is killed


def test_a_killed_supervisor_takes_along_children_that_could_not_leave_and_daemons_they_sent_off(
    sqlite_bench: Bench,
) -> None:
    worker = sqlite_bench.worker(settings=THREE_AT_ONCE)
    guard = worker.guard()
    daemon_run = sqlite_bench.client.enqueue("sends-off-a-daemon")
    spins = begun(sqlite_bench, "spins-holding-the-gil")
    stopped = begun(sqlite_bench, "sleeps", {"seconds": 60.0})
    daemon = sqlite_bench.until_noted(daemon_run, "daemon").pid
    sends = sqlite_bench.until_noted(daemon_run, "start").pid
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: is_stopped(stopped))
    worker.kill()
    until_dead(spins, stopped, sends, daemon, guard)


def test_a_daemon_whose_child_died_unnoticed_ends_with_the_supervisor_too(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    guard = worker.guard()
    daemon_run = sqlite_bench.client.enqueue("sends-off-a-daemon")
    daemon = sqlite_bench.until_noted(daemon_run, "daemon").pid
    sends = sqlite_bench.until_noted(daemon_run, "start").pid
    worker.freeze()
    os.kill(sends, signal.SIGKILL)
    until_dead(sends)
    assert still_running(daemon)
    worker.kill()
    until_dead(daemon, guard)


def test_when_supervisor_and_guard_are_killed_at_once_the_children_go_with_their_parent(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    spins, sleeps = begun(sqlite_bench, "spins-holding-the-gil"), begun(sqlite_bench, "sleeps", {"seconds": 60.0})
    os.kill(worker.guard(), signal.SIGKILL)
    worker.kill()
    until_dead(spins, sleeps)


def test_children_that_watch_themselves_die_with_a_killed_supervisor_too(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker(settings=WATCHDOGS)
    spins, sleeps = begun(sqlite_bench, "spins-holding-the-gil"), begun(sqlite_bench, "sleeps", {"seconds": 60.0})
    assert not guard_below(worker.pid)
    worker.kill()
    until_dead(spins, sleeps)


def test_a_program_that_is_killed_takes_its_runs_along_and_not_what_else_it_started(
    sqlite_bench: Bench, tmp_path: Path
) -> None:
    """Where a supervisor runs inside of an application, the processes of this are none of the guard's business."""
    program = tmp_path / "program.py"
    program.write_text(EMBEDDING)
    environment = {**os.environ, **sqlite_bench.settings, "CHAOS_DIARY": str(sqlite_bench.diary)}
    environment["PYTHONPATH"] = str(TESTS)
    with subprocess.Popen([sys.executable, str(program)], env=environment, stdout=subprocess.PIPE) as application:
        assert application.stdout is not None
        own = [int(pid) for pid in application.stdout.readline().split()]
        try:
            daemon_run = sqlite_bench.client.enqueue("sends-off-a-daemon")
            daemon = sqlite_bench.until_noted(daemon_run, "daemon").pid
            sends = sqlite_bench.until_noted(daemon_run, "start").pid
            guard = eventually(lambda: guard_below(application.pid))
            application.kill()
            until_dead(sends, daemon, guard)
            assert all(map(still_running, own))
        finally:
            for pid in own:
                os.kill(pid, signal.SIGKILL)


EMBEDDING = """
import asyncio, multiprocessing, subprocess, time
from durablestack import DurableStack
from durablestack.supervisor.embedded import supervise

async def main():
    async with supervise(DurableStack("chaos_jobs")) as supervisor:
        while not supervisor.pool.has_started:
            await asyncio.sleep(0.01)
        before = subprocess.Popen(["sleep", "600"], start_new_session=True)
        forked = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
        forked.start()
        print(before.pid, forked.pid, flush=True)
        await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


# --- the supervisor is frozen


def test_the_children_of_a_frozen_supervisor_die_before_another_takes_its_runs(either_bench: Bench) -> None:
    frozen = either_bench.worker(settings=THREE_AT_ONCE)
    run_id = either_bench.client.enqueue("ticks-at-first")
    spins, stopped = begun(either_bench, "spins-holding-the-gil"), begun(either_bench, "sleeps", {"seconds": 60.0})
    ticks = either_bench.until_noted(run_id, "start").pid
    os.kill(stopped, signal.SIGSTOP)
    frozen.freeze()
    either_bench.worker()
    until_dead(ticks, spins, stopped)
    assert is_stopped(frozen.pid)
    outcome = either_bench.until(run_id, RunStatus.SUCCEEDED)
    assert_attempts_do_not_overlap(either_bench)
    frozen.thaw()
    frozen.until_logged("lease lost")
    frozen.until_logged("the guard has killed child")
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert "died of run" not in frozen.log(), "that was no crash"
    assert either_bench.run(run_id) == outcome
    history = [(a.attempt, a.worker_name, a.outcome) for a in either_bench.stack.queries.get_attempts(run_id)]
    assert history == [(1, "worker-0", AttemptOutcome.EXPIRED), (2, "worker-1", AttemptOutcome.SUCCEEDED)]


def test_what_was_frozen_whole_dies_when_it_thaws_and_changes_nothing(either_bench: Bench) -> None:
    """As a container that is paused: supervisor, guard and child."""
    frozen = either_bench.worker()
    run_id = either_bench.client.enqueue("ticks-at-first")
    ticks = either_bench.until_noted(run_id, "start").pid
    whole = [frozen.guard(), frozen.pid, ticks]
    for pid in reversed(whole):
        os.kill(pid, signal.SIGSTOP)
    either_bench.worker()
    outcome = either_bench.until(run_id, RunStatus.SUCCEEDED)
    ticked = len(either_bench.notes(run_id, "tick"))
    for pid in whole:
        with suppress(ProcessLookupError):  # the guard, which goes on first, has ended the child already
            os.kill(pid, signal.SIGCONT)
    until_dead(ticks)
    assert len(either_bench.notes(run_id, "tick")) - ticked < 50, "of a hundred a second"
    frozen.until_logged("lease lost")
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert either_bench.run(run_id) == outcome


def test_children_that_watch_themselves_die_in_time_unless_the_gil_is_held(sqlite_bench: Bench) -> None:
    frozen = sqlite_bench.worker(settings=WATCHDOGS)
    run_id = sqlite_bench.client.enqueue("ticks-at-first")
    spins = begun(sqlite_bench, "spins-holding-the-gil")
    ticks = sqlite_bench.until_noted(run_id, "start").pid
    frozen.freeze()
    sqlite_bench.worker()
    until_dead(ticks)
    assert is_stopped(frozen.pid)
    sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert_attempts_do_not_overlap(sqlite_bench)
    assert still_running(spins), "this is what a guard is for"
    frozen.thaw()
    until_dead(spins)
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert "died of run" not in frozen.log(), "that was no crash"


# --- the guard is killed


def test_a_guard_that_is_killed_costs_no_run_and_its_successor_knows_the_runs_in_hand(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    short = sqlite_bench.client.enqueue("sleeps", {"seconds": 1.0})
    ticks = begun(sqlite_bench, "ticks-at-first")
    sqlite_bench.until_noted(short, "start")
    killed = worker.guard()
    os.kill(killed, signal.SIGKILL)
    worker.until_logged("a new guard watches over 2 children")
    assert worker.guard() != killed
    assert sqlite_bench.until(short, RunStatus.SUCCEEDED).attempt == 1
    assert still_running(ticks)
    worker.freeze()
    until_dead(ticks)
    assert is_stopped(worker.pid)


# --- the supervisor is held up


@pytest.mark.parametrize("guard", ["process", "child"])
def test_an_event_loop_that_is_blocked_for_two_leases_loses_none(sqlite_bench: Bench, guard: str) -> None:
    block_for = sqlite_bench.folder / "block-for"
    settings = {"BLOCK_FOR": str(block_for), "DURABLESTACK__GUARD": guard}
    lease_seconds = 5  # of one of 2 seconds the trust is over when a heartbeat is late by 0.6
    worker = sqlite_bench.worker(
        "--lease-duration-seconds", str(lease_seconds), settings=settings, target="blocking_jobs"
    )
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 2.1 * lease_seconds})
    sqlite_bench.until_noted(run_id, "start")
    block_for.write_text(str(2 * lease_seconds))
    run = sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert not block_for.exists(), "the loop was to be blocked"
    assert run.attempt == 1
    assert "lease lost" not in worker.log()


# --- a graceful stop


def test_a_supervisor_that_stops_leaves_no_guard_behind(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    worker.until_ready(children=2)
    guard = worker.guard()
    worker.terminate()
    assert worker.exit_code() == 0
    assert not os.path.exists(f"/proc/{guard}")
