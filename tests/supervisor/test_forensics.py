"""What is told of an attempt that did not succeed: how it ended, who ended it, where it was, and what it had used."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from durablestack import RunStatus
from durablestack.runs import EndedBy
from limit_bench import LimitBench, limit_bench
from workers import eventually

MEBIBYTE = 1_048_576


@pytest.fixture
def bench(tmp_path: Path, sqlite_settings: dict[str, str]) -> Iterator[LimitBench]:
    with limit_bench(tmp_path, sqlite_settings) as made:
        yield made


DEATHS = {
    # how              error           signal     code  ended by            a crash
    "segfault": ("ChildCrashed", "SIGSEGV", None, EndedBy.ITSELF, 1),
    "exit-0": ("ChildExited", None, 0, EndedBy.ITSELF, 1),
    "sys-exit": ("SystemExit", None, None, EndedBy.ITSELF, 0),
    "soft-cpu-limit": ("ChildCrashed", "SIGXCPU", None, EndedBy.ITSELF, 1),
    "hard-cpu-limit": ("ChildCrashed", "SIGKILL", None, EndedBy.OUTSIDE, 1),
    "closes-all-descriptors": ("ProtocolError", None, 71, EndedBy.SUPERVISOR, 1),
}


def test_of_each_death_it_is_told_how_and_by_whom(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="4")
    run_ids = {how: bench.client.enqueue("dies", how) for how in DEATHS}
    for how, expected in DEATHS.items():
        run = bench.until_terminal(run_ids[how])
        attempt = bench.attempt(run)
        told = (run.error_type, attempt.signal, attempt.exit_code, attempt.ended_by, run.crash_count)
        assert told == expected, how
        assert "last words" in (run.stderr_tail or "")


def test_a_crash_tells_the_python_stack_first_and_then_the_last_words(bench: LimitBench) -> None:
    bench.begin()
    run = bench.finished("dies", "segfault")
    stack, between, stderr = (run.error_detail or "").partition("\nThe end of standard error:\n")
    assert stack.startswith("Fatal Python error: Segmentation fault")
    assert "in dies" in stack
    assert (bool(between), stderr) == (True, "last words\n")
    assert run.stderr_tail == "last words\n"  # the job's own, and nothing of ours


def test_a_child_that_is_killed_from_outside_has_no_stack_but_what_it_used_is_known(bench: LimitBench) -> None:
    bench.begin(memory_limit="64 GiB")  # runs with a limit are looked at more often
    run_id = bench.client.enqueue("dies", "waits")
    pid = bench.until_noted(run_id, "start").pid
    eventually(lambda: resident_bytes(pid) > 100 * MEBIBYTE, what="100 MiB in use")
    bench.finished("is-slow")  # by then the other one has been looked at, for the same loop does both
    os.kill(pid, signal.SIGKILL)
    run = bench.until(run_id, RunStatus.FAILED)
    attempt = bench.attempt(run)
    assert (run.error_message, attempt.ended_by) == ("the child process was ended by SIGKILL", EndedBy.OUTSIDE)
    assert run.error_detail == "last words\n"
    assert (attempt.peak_memory_bytes or 0) > 100 * MEBIBYTE
    assert attempt.user_cpu_seconds is not None
    assert attempt.system_cpu_seconds is not None


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_a_run_that_the_kernel_ended_for_want_of_memory_is_told_so_and_its_supervisor_lives(bench: LimitBench) -> None:
    with memory_group(400 * MEBIBYTE) as group:
        enter = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
        settings = {"DURABLESTACK__MAX_CONCURRENT_RUNS": "1"}
        worker = bench.worker(settings=settings, target="limit_jobs", under=enter)
        run = bench.finished("eats-all-memory")
        attempt = bench.attempt(run)
        assert run.error_type == "OutOfMemory", run
        assert (attempt.signal, attempt.ended_by, run.crash_count) == ("SIGKILL", EndedBy.KERNEL, 1)
        assert bench.finished("keeps-nothing").status is RunStatus.SUCCEEDED
        assert worker.process.poll() is None
        worker.close()


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A control group below which no more memory can be had; skips, by name, where none can be made."""
    name, failures = f"durablestack-test-{uuid4().hex[:8]}", []
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(folder) / name
        try:
            group.mkdir()
            try:
                (group / limit).write_text(str(limit_bytes))
                yield group
            finally:
                eventually(lambda group=group: not (group / "cgroup.procs").read_text(), what=f"an empty {group}")
                group.rmdir()
            return
        except OSError as error:
            failures.append(str(error))
            with suppress(OSError):
                group.rmdir()
    pytest.skip(f"no control group for memory can be made here: {'; '.join(failures)}")


def test_children_are_the_first_to_go_when_memory_is_short(bench: LimitBench) -> None:
    bench.begin()
    assert bench.words("tells-its-process")[2] == "500"


def test_what_we_ended_is_told_as_ended_by_us(bench: LimitBench) -> None:
    bench.begin()
    timed_out = bench.finished("is-slow")
    assert (timed_out.error_type, timed_out.crash_count) == ("RunTimeout", 0)
    assert "in is_slow" in (timed_out.error_detail or "")
    assert bench.attempt(timed_out).ended_by is EndedBy.TIMEOUT
    run_id = bench.client.enqueue("moves")
    bench.until_noted(run_id, "start")
    bench.client.cancel_run(run_id)
    cancelled = bench.until(run_id, RunStatus.CANCELLED)
    attempt = bench.attempt(cancelled)
    assert (attempt.ended_by, attempt.signal, cancelled.crash_count) == (EndedBy.CANCEL, "SIGTERM", 0)


def test_an_attempt_that_raised_tells_what_it_used_itself_and_not_what_others_did(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="1")
    run = bench.finished("wants-much-at-first")
    first, second = bench.stack.queries.get_attempts(run.id)
    assert (first.peak_memory_bytes or 0) > 200 * MEBIBYTE > (second.peak_memory_bytes or 0) > MEBIBYTE
    assert (first.user_cpu_seconds or 0) + (first.system_cpu_seconds or 0) > 0.25
    assert 0 <= (second.user_cpu_seconds or 0) + (second.system_cpu_seconds or 0) < 0.25


def test_the_stack_of_a_run_that_moves_is_called_moving(bench: LimitBench) -> None:
    bench.begin()
    run_id = bench.client.enqueue("moves")
    bench.until_noted(run_id, "start")
    told = eventually(
        lambda: stack if (stack := bench.stack.queries.get_stack(run_id) or "").startswith("moving") else "",
        what="two looks that differ",
    )
    assert told.count("in moves") == 2


def test_a_stopped_process_is_said_to_be_stopped(bench: LimitBench) -> None:
    bench.begin()
    run_id = bench.client.enqueue("dies", "waits")
    os.kill(bench.until_noted(run_id, "start").pid, signal.SIGSTOP)
    assert bench.stack.queries.get_stack(run_id) == "its process did not answer: it is stopped"
