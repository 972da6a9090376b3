"""Jobs that do what jobs should not: what happened is written on the run, and nobody else notices."""

import os
import signal
from pathlib import Path
from uuid import UUID

import pytest

from durablestack import Run, RunStatus
from processes import still_running
from workers import Bench, eventually

DEATHS = {
    "sigkill": ("ChildCrashed", "SIGKILL"),
    "segfault": ("ChildCrashed", "SIGSEGV"),
    "abort": ("ChildCrashed", "SIGABRT"),
    "exit-0": ("ChildExited", None),
    "exit-3": ("ChildExited", None),
    "sys-exit": ("SystemExit", None),
    "keyboard-interrupt": ("KeyboardInterrupt", None),
    "closes-all-descriptors": ("ProtocolError", None),
    "writes-garbage-into-every-descriptor": ("ProtocolError", "SIGKILL"),
    "bus-error": ("ChildCrashed", "SIGBUS"),
}


def neighbours_do_not_notice(bench: Bench) -> None:
    """Innocent runs succeed, as many at once as there are slots."""
    run_ids = bench.client.enqueue_many("burns", [{"seconds": 0.05}] * 4)
    for run_id in run_ids:
        assert bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1


@pytest.mark.parametrize("how", DEATHS)
def test_a_child_that_dies_of_its_run_is_told_and_replaced(sqlite_bench: Bench, how: str) -> None:
    worker = sqlite_bench.worker("--lease-duration-seconds", "300")
    run_id = sqlite_bench.client.enqueue("dies", how)
    run = sqlite_bench.until(run_id, RunStatus.FAILED)
    error_type, signal_name = DEATHS[how]
    assert run.error_type == error_type
    assert [attempt.signal for attempt in sqlite_bench.stack.queries.get_attempts(run_id)] == [signal_name]
    worker.until_ready(children=2)
    neighbours_do_not_notice(sqlite_bench)


def test_a_segfault_leaves_its_python_stack_in_the_error(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run = sqlite_bench.until(sqlite_bench.client.enqueue("dies", "segfault"), RunStatus.FAILED)
    assert "Segmentation fault" in (run.error_detail or "")
    assert "in die" in (run.error_detail or "")


@pytest.mark.parametrize("job", ["hangs-limited", "spins-holding-the-gil-limited", "ignores-sigterm-limited"])
def test_a_run_is_ended_by_its_timeout_whatever_it_does(any_bench: Bench, job: str) -> None:
    any_bench.worker("--lease-duration-seconds", "300")
    run_id = any_bench.client.enqueue(job)
    neighbour = any_bench.client.enqueue("sleeps", {"seconds": 3.0})
    run = any_bench.until(run_id, RunStatus.FAILED)
    assert run.error_type == "RunTimeout"
    assert "1 s" in (run.error_message or "")
    assert any_bench.until(neighbour, RunStatus.SUCCEEDED).attempt == 1
    neighbours_do_not_notice(any_bench)


def test_a_timeout_shows_where_the_run_was_stuck(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run = sqlite_bench.until(sqlite_bench.client.enqueue("spins-holding-the-gil-limited"), RunStatus.FAILED)
    assert "in spins_holding_the_gil" in (run.error_detail or "")


def test_the_default_timeout_holds_for_jobs_that_name_none(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__TIMEOUT_SECONDS": "0.5"})
    run_id = sqlite_bench.client.enqueue("spins-holding-the-gil")
    assert sqlite_bench.until(run_id, RunStatus.FAILED).error_type == "RunTimeout"


def test_a_busy_loop_that_holds_the_gil_is_ended_by_cancel(any_bench: Bench) -> None:
    any_bench.worker("--lease-duration-seconds", "300")
    run_id = any_bench.client.enqueue("spins-holding-the-gil")
    neighbour = any_bench.client.enqueue("sleeps", {"seconds": 3.0})
    pid = any_bench.until_noted(run_id, "start").pid
    assert any_bench.client.cancel_run(run_id)
    run = any_bench.until(run_id, RunStatus.CANCELLED)
    assert run.error_message == "Run was cancelled."
    assert not still_running(pid)
    assert any_bench.until(neighbour, RunStatus.SUCCEEDED).attempt == 1


def test_a_job_that_looks_leaves_by_itself_when_cancelled_and_its_child_lives_on(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__CANCEL_GRACE_SECONDS": "30"})
    run_id = sqlite_bench.client.enqueue("waits-until-told")
    pid = sqlite_bench.until_noted(run_id, "start").pid
    sqlite_bench.client.cancel_run(run_id)
    sqlite_bench.until(run_id, RunStatus.CANCELLED)
    assert sqlite_bench.notes(run_id, "told")
    assert still_running(pid)


def test_an_async_job_is_cancelled_as_a_task_is(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__CANCEL_GRACE_SECONDS": "30"})
    run_id = sqlite_bench.client.enqueue("awaits", {"seconds": 60.0})
    sqlite_bench.until_noted(run_id, "start")
    sqlite_bench.client.cancel_run(run_id)
    sqlite_bench.until(run_id, RunStatus.CANCELLED)
    assert sqlite_bench.notes(run_id, "cancelled")


def test_a_run_that_completes_its_work_although_cancelled_has_succeeded(sqlite_bench: Bench) -> None:
    sqlite_bench.worker(settings={"DURABLESTACK__CANCEL_GRACE_SECONDS": "30"})
    run_id = sqlite_bench.client.enqueue("finishes-although-told", {"seconds": 3.0})
    sqlite_bench.until_noted(run_id, "start")
    sqlite_bench.client.cancel_run(run_id)
    assert sqlite_bench.until_terminal(run_id).status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("kind", "error_type"),
    [
        ("unprintable", "Unprintable"),
        ("nul-and-surrogates", "ValueError"),
        ("huge", "ValueError"),
        ("group", "ExceptionGroup"),
        ("base", "GeneratorExit"),
    ],
)
def test_hostile_errors_are_recorded_within_bounds(any_bench: Bench, kind: str, error_type: str) -> None:
    any_bench.worker()
    run = any_bench.until(any_bench.client.enqueue("raises-hostile", kind), RunStatus.FAILED)
    assert error_type in (run.error_type or "")
    assert len(run.error_message or "") <= 2_000
    assert len(run.error_detail or "") <= 16_384


def test_an_error_is_recorded_with_its_traceback_and_retried(any_bench: Bench) -> None:
    any_bench.worker()
    run = any_bench.until(any_bench.client.enqueue("raises", "what went wrong"), RunStatus.FAILED)
    assert (run.attempt, run.error_type, run.error_message) == (2, "ValueError", "what went wrong")
    assert "raise ValueError(message)" in (run.error_detail or "")
    assert "invoke" not in (run.error_detail or "")  # our own frames are of no interest
    assert len(any_bench.stack.queries.get_attempts(run.id)) == 2


def test_a_job_can_refuse_and_ask_for_retries(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    refused = sqlite_bench.client.enqueue("gives-up")
    asked = sqlite_bench.client.enqueue("asks-for-retry")
    assert sqlite_bench.until(refused, RunStatus.FAILED).attempt == 1
    assert sqlite_bench.until(asked, RunStatus.SUCCEEDED).attempt == 2


def test_what_a_run_prints_is_kept_with_it(any_bench: Bench) -> None:
    any_bench.worker("--max-concurrent-runs", "1")
    first = any_bench.client.enqueue("prints", 3)
    second = any_bench.client.enqueue("innocent")
    run = any_bench.until(first, RunStatus.SUCCEEDED)
    assert run.stdout_tail == "out 0\nout 1\nout 2\nbytes \N{REPLACEMENT CHARACTER}\N{SYMBOL FOR NULL} end\n"
    assert run.stderr_tail == "err é \x1b[31m\n"
    assert any_bench.until(second, RunStatus.SUCCEEDED).stdout_tail is None


def test_a_flood_of_output_is_bounded_and_harms_nobody(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("floods", 40)
    neighbours_do_not_notice(sqlite_bench)
    run = sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    assert (run.stdout_tail or "").endswith("the very end\n")
    assert len(run.stdout_tail or "") < 20_000
    assert _resident_mebibytes(worker.pid) < 200


def test_a_process_left_behind_does_not_hold_the_outcome_back_and_is_ended(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("leaves-things-behind")
    sqlite_bench.until(run_id, RunStatus.SUCCEEDED, within_seconds=20)
    left = next(int(note.what.removeprefix("left-")) for note in sqlite_bench.notes(run_id))
    eventually(lambda: not still_running(left), what="the end of what the job left running")
    neighbours_do_not_notice(sqlite_bench)


def test_a_fork_in_a_job_does_not_end_its_run_twice(sqlite_bench: Bench) -> None:
    worker = sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("forks")
    assert sqlite_bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1
    neighbours_do_not_notice(sqlite_bench)
    assert worker.process.poll() is None


def test_processes_event_loops_and_subprocesses_work_inside_a_job(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run = sqlite_bench.until_terminal(sqlite_bench.client.enqueue("uses-processes-and-loops"))
    assert run.status is RunStatus.SUCCEEDED, run


def test_a_stopped_child_is_ended_by_the_timeout_of_its_run(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("hangs-limited")
    os.kill(sqlite_bench.until_noted(run_id, "start").pid, signal.SIGSTOP)
    assert sqlite_bench.until(run_id, RunStatus.FAILED).error_type == "RunTimeout"


def test_a_poison_run_is_started_as_often_as_it_may_be_and_no_more(sqlite_bench: Bench) -> None:
    sqlite_bench.worker()
    run_id = sqlite_bench.client.enqueue("dies-once", "segfault")
    poison = sqlite_bench.client.enqueue("dies", "segfault")
    sqlite_bench.until(run_id, RunStatus.SUCCEEDED)
    sqlite_bench.until(poison, RunStatus.FAILED)
    assert sqlite_bench.executions() == {run_id: 2, poison: 1}


def test_never_more_runs_at_once_than_allowed_while_children_die(sqlite_bench: Bench) -> None:
    sqlite_bench.worker("--max-concurrent-runs", "2")
    run_ids: list[UUID] = []
    for _ in range(6):
        run_ids += [
            sqlite_bench.client.enqueue("dies", "sigkill"),
            sqlite_bench.client.enqueue("sleeps", {"seconds": 0.2}),
        ]
    ends: dict[UUID, Run] = {run_id: sqlite_bench.until_terminal(run_id) for run_id in run_ids}
    assert sum(run.status is RunStatus.SUCCEEDED for run in ends.values()) == 6
    spans = [
        (n.at, sqlite_bench.notes(n.run_id, "end")[0].at)
        for n in sqlite_bench.notes(what="start")
        if sqlite_bench.notes(n.run_id, "end")
    ]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) <= 2


def _resident_mebibytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1_048_576
