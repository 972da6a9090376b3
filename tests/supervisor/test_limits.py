"""What a run may take: memory, CPU time, address space, processes. Past it, it is ended, and that is told."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from durablestack import RunStatus
from durablestack.runs import EndedBy
from limit_bench import LimitBench, limit_bench

MEBIBYTE = 1_048_576


@pytest.fixture
def bench(tmp_path: Path, sqlite_settings: dict[str, str]) -> Iterator[LimitBench]:
    with limit_bench(tmp_path, sqlite_settings) as made:
        yield made


# --- memory


def test_a_run_above_its_memory_limit_is_ended_and_shows_where_it_was(bench: LimitBench) -> None:
    bench.begin()
    run = bench.finished("grows")
    attempt = bench.attempt(run)
    assert run.error_type == "MemoryLimitExceeded"
    assert "more than its limit of 250.0 MiB, ended by SIGKILL" in (run.error_message or "")
    assert "in grows" in (run.error_detail or "")
    assert (attempt.signal, attempt.ended_by, run.crash_count) == ("SIGKILL", EndedBy.MEMORY_LIMIT, 0)
    assert (attempt.peak_memory_bytes or 0) > 250 * MEBIBYTE
    assert bench.finished("keeps-nothing").status is RunStatus.SUCCEEDED


def test_what_a_run_has_started_counts_and_is_ended_with_it(bench: LimitBench) -> None:
    bench.begin(memory_limit="300 MiB")  # of all jobs
    run = bench.finished("has-a-child-that-grows")
    assert run.error_type == "MemoryLimitExceeded", run
    assert (bench.attempt(run).peak_memory_bytes or 0) > 300 * MEBIBYTE
    bench.until_all_ended(run.id)


# --- CPU time


@pytest.mark.parametrize("job", ["spins-holding-the-gil", "has-a-child-that-spins"])
def test_a_run_above_its_cpu_time_is_ended_whatever_it_does(bench: LimitBench, job: str) -> None:
    bench.begin()
    run = bench.finished(job)
    attempt = bench.attempt(run)
    assert run.error_type == "CpuLimitExceeded", run
    assert "more than its limit of 0.5 s" in (run.error_message or "")
    assert job.replace("-", "_") in (run.error_detail or "")
    assert (attempt.ended_by, run.crash_count) == (EndedBy.CPU_LIMIT, 0)
    assert (attempt.user_cpu_seconds or 0) + (attempt.system_cpu_seconds or 0) > 0.5
    if job == "has-a-child-that-spins":
        bench.until_all_ended(run.id)


def test_a_run_above_its_cpu_time_may_leave_when_it_is_asked_to(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="1", cancel_grace_seconds="30")
    run = bench.finished("spins-until-told")
    assert (run.error_type, bench.attempt(run).signal) == ("CpuLimitExceeded", None)
    assert bench.words("keeps-nothing") == (run.stdout_tail or "").split()


def test_the_cpu_time_of_earlier_runs_is_not_counted(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="1")
    assert bench.words("spins-briefly") == bench.words("spins-briefly") == bench.words("spins-briefly") != []


# --- address space


@pytest.mark.parametrize(("how", "error_type"), [("raises", "MemoryError"), ("raises-another", "ValueError")])
def test_a_child_whose_run_was_refused_memory_is_replaced(bench: LimitBench, how: str, error_type: str) -> None:
    bench.begin(max_concurrent_runs="1")
    run = bench.finished("asks-for-too-much", how)
    assert (run.error_type, bench.attempt(run).ended_by) == (error_type, EndedBy.ITSELF)
    assert bench.words("tells-its-process")[0] not in (run.stdout_tail or "").split()


def test_a_child_that_came_near_its_address_space_is_replaced_though_the_job_did_not_mind(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="1")
    run = bench.finished("takes-nearly-all")
    assert run.status is RunStatus.SUCCEEDED
    assert bench.words("tells-its-process")[0] not in (run.stdout_tail or "").split()


def test_the_address_space_is_limited_for_the_time_of_the_run_alone(bench: LimitBench) -> None:
    bench.begin(max_concurrent_runs="1")
    pid, limit, _ = bench.words("tells-its-process-limited")
    other_pid, other_limit, _ = bench.words("tells-its-process")
    assert (pid, limit) == (other_pid, str(64 * 1024 * MEBIBYTE))
    assert other_limit != limit


# --- crashes


def test_a_run_that_keeps_killing_its_process_is_quarantined(bench: LimitBench) -> None:
    bench.begin()
    run = bench.finished("dies-always")
    assert (run.status, run.attempt, run.crash_count) == (RunStatus.FAILED, 3, 3)
    assert "SIGABRT; this run has ended its process 3 times, and 3 is the limit" in (run.error_message or "")
    assert bench.executions()[run.id] == 3
    bench.workers[0].terminate()
    assert bench.workers[0].exit_code() == 0
    told = [msgspec.json.decode(line) for line in bench.events.read_bytes().splitlines()]
    ends = [event["event_type"] for event in told if event["event_type"] in ("job_failed", "run_quarantined")]
    assert ends == ["job_failed", "job_failed", "job_failed", "run_quarantined"]
