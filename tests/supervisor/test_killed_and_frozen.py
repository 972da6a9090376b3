"""Supervisors and children that are killed, frozen and stopped. Real processes, real signals, both databases."""

import os
import signal
import time

from durablestack import RunStatus
from durablestack.runs import AttemptOutcome
from processes import still_running
from workers import Bench, eventually

LONG = {"seconds": 60.0}


def test_a_killed_child_is_told_by_its_signal_and_its_slot_is_filled_again(any_bench: Bench) -> None:
    worker = any_bench.worker("--lease-duration-seconds", "300")
    before = worker.until_ready(children=2)
    run_id = any_bench.client.enqueue("dies-once", "sigkill")
    run = any_bench.until(run_id, RunStatus.SUCCEEDED)  # long before the lease would have expired
    assert run.attempt == 2
    first, second = any_bench.stack.queries.get_attempts(run_id)
    assert (first.outcome, first.error_type, first.signal) == (AttemptOutcome.FAILED, "ChildCrashed", "SIGKILL")
    assert "SIGKILL" in (first.error_message or "")
    assert second.outcome is AttemptOutcome.SUCCEEDED
    after = worker.until_ready(children=2)
    assert len(set(after) & set(before)) == 1


def test_a_child_killed_from_outside_mid_run_costs_its_run_an_attempt_and_its_neighbour_nothing(
    any_bench: Bench,
) -> None:
    worker = any_bench.worker("--lease-duration-seconds", "300")
    victim = any_bench.client.enqueue("sleeps", LONG)
    neighbour = any_bench.client.enqueue("sleeps", {"seconds": 2.0})
    any_bench.until_noted(neighbour, "start")
    os.kill(any_bench.until_noted(victim, "start").pid, signal.SIGKILL)
    any_bench.until_noted(victim, "start", count=2)
    assert any_bench.until(neighbour, RunStatus.SUCCEEDED).attempt == 1
    assert any_bench.run(victim).attempt == 2
    assert worker.process.poll() is None


def test_a_killed_supervisor_takes_its_children_along_and_another_completes_its_runs(any_bench: Bench) -> None:
    first = any_bench.worker()
    run_ids = [any_bench.client.enqueue("sleeps", {"seconds": 1.5}) for _ in range(2)]
    waiting = any_bench.client.enqueue("innocent")
    children = [any_bench.until_noted(run_id, "start").pid for run_id in run_ids]
    first.kill()
    eventually(lambda: not any(map(still_running, children)), within_seconds=5, what="the end of the children")
    any_bench.worker()
    for run_id in run_ids:
        run = any_bench.until(run_id, RunStatus.SUCCEEDED)
        assert run.attempt == 2
        assert [a.error_type for a in any_bench.stack.queries.get_attempts(run_id)] == ["LeaseExpired", None]
    assert any_bench.until(waiting, RunStatus.SUCCEEDED).attempt == 1


def test_children_that_hold_the_gil_die_with_their_supervisor_too(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    pid = sqlite_bench.until_noted(sqlite_bench.client.enqueue("spins-holding-the-gil"), "start").pid
    worker.kill()
    eventually(lambda: not still_running(pid), within_seconds=5, what="the end of the child")


def test_spawned_children_die_with_their_supervisor_too(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker("--start-method", "spawn")
    pid = sqlite_bench.until_noted(sqlite_bench.client.enqueue("spins-holding-the-gil"), "start").pid
    worker.kill()
    eventually(lambda: not still_running(pid), within_seconds=5, what="the end of the child")


def test_a_run_on_its_last_attempt_is_not_executed_again_after_its_supervisor_was_killed(any_bench: Bench) -> None:
    first = any_bench.worker()
    run_id = any_bench.client.enqueue("spins-holding-the-gil")  # max_attempts=1
    any_bench.until_noted(run_id, "start")
    first.kill()
    any_bench.worker()
    run = any_bench.until(run_id, RunStatus.FAILED)
    assert (run.attempt, run.error_type) == (1, "LeaseExpired")
    assert "no attempts remaining" in (run.error_message or "")
    assert any_bench.executions()[run_id] == 1


def test_a_terminated_supervisor_finishes_what_is_short_and_releases_what_is_not(any_bench: Bench) -> None:
    worker = any_bench.worker("--lease-duration-seconds", "300")
    short = any_bench.client.enqueue("sleeps", {"seconds": 0.5})
    long = any_bench.client.enqueue("sleeps", LONG)
    for run_id in (short, long):
        any_bench.until_noted(run_id, "start")
    family = worker.children()
    worker.terminate()
    assert worker.exit_code(within_seconds=10) == 0  # drain 1 s, graces 0.5 s each
    assert any_bench.run(short).status is RunStatus.SUCCEEDED
    released = any_bench.run(long)
    assert (released.status, released.attempt) == (RunStatus.PENDING, 0)
    assert any_bench.stack.queries.get_attempts(long) == []
    assert not any(map(still_running, family))


def test_a_second_signal_skips_the_drain(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "300", "DURABLESTACK__CANCEL_GRACE_SECONDS": "300"}
    worker = sqlite_bench.worker(settings=settings)
    run_id = sqlite_bench.client.enqueue("sleeps", LONG)
    sqlite_bench.until_noted(run_id, "start")
    worker.terminate()
    worker.until_logged("stopping")
    worker.terminate()
    assert worker.exit_code() == 0
    assert (sqlite_bench.run(run_id).status, sqlite_bench.run(run_id).attempt) == (RunStatus.PENDING, 0)


def test_an_idle_supervisor_leaves_at_once_when_asked(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    worker.until_ready(children=2)
    worker.terminate()
    assert worker.exit_code() == 0


def test_a_signal_to_the_whole_process_group_does_not_reach_the_children(sqlite_bench: Bench) -> None:
    settings = {"DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "30"}
    worker = sqlite_bench.worker(settings=settings)
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 1.5})
    sqlite_bench.until_noted(run_id, "start")
    os.killpg(worker.pid, signal.SIGINT)
    assert worker.exit_code() == 0
    assert sqlite_bench.run(run_id).status is RunStatus.SUCCEEDED


def test_an_interrupt_that_reaches_a_child_does_not_end_its_run(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("sleeps", {"seconds": 1.0})
    os.kill(sqlite_bench.until_noted(run_id, "start").pid, signal.SIGINT)
    assert sqlite_bench.until_terminal(run_id).attempt == 1
    assert sqlite_bench.notes(run_id, "end")


def test_a_supervisor_frozen_beyond_its_lease_ends_its_child_and_leaves_the_run_to_another(any_bench: Bench) -> None:
    frozen = any_bench.worker()
    run_id = any_bench.client.enqueue("slow-at-first")
    stale_child = any_bench.until_noted(run_id, "start").pid
    frozen.freeze()
    any_bench.worker()
    outcome = any_bench.until(run_id, RunStatus.SUCCEEDED)
    eventually(lambda: time.time() - outcome.created_at.timestamp() > 6, what="two leases of 3 s")
    frozen.thaw()
    frozen.until_logged("lease lost")
    eventually(lambda: not still_running(stale_child), what="the end of the stale child")
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert any_bench.run(run_id) == outcome
    history = [(a.attempt, a.worker_name, a.outcome) for a in any_bench.stack.queries.get_attempts(run_id)]
    assert history == [(1, "worker-0", AttemptOutcome.EXPIRED), (2, "worker-1", AttemptOutcome.SUCCEEDED)]


def test_what_a_child_finished_while_its_supervisor_was_frozen_too_long_is_refused(any_bench: Bench) -> None:
    frozen = any_bench.worker()
    run_id = any_bench.client.enqueue("sleeps", {"seconds": 2.0})
    any_bench.until_noted(run_id, "start")
    frozen.freeze()
    any_bench.worker()
    outcome = any_bench.until(run_id, RunStatus.SUCCEEDED)
    frozen.thaw()
    eventually(lambda: "no longer ours" in frozen.log() or "lease lost" in frozen.log(), what=frozen.log())
    frozen.terminate()
    assert frozen.exit_code() == 0
    assert any_bench.run(run_id) == outcome
    assert "run succeeded" not in frozen.log()


def test_a_run_longer_than_its_lease_keeps_it(any_bench: Bench) -> None:
    for _ in range(2):
        any_bench.worker("--lease-duration-seconds", "3")
    run_id = any_bench.client.enqueue("sleeps", {"seconds": 8.0})
    assert any_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    assert any_bench.executions()[run_id] == 1


def test_a_job_that_kills_the_supervisor_is_run_again_by_another(sqlite_bench: Bench) -> None:
    first = sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("kills-the-supervisor", first.pid)
    assert first.exit_code() == -signal.SIGKILL
    sqlite_bench.worker()
    assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 2
