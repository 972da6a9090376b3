"""When a child is replaced between two runs, and what of a run is over when it is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durablestack import RunStatus
from limit_bench import LimitBench, limit_bench

MEBIBYTE = 1_048_576


@pytest.fixture
def bench(tmp_path: Path, sqlite_settings: dict[str, str]) -> Iterator[LimitBench]:
    with limit_bench(tmp_path, {**sqlite_settings, "DURABLESTACK__MAX_CONCURRENT_RUNS": "1"}) as made:
        yield made


def nobody_died(bench: LimitBench) -> None:
    """As far as the log and the events are concerned."""
    assert "died" not in bench.logs()
    assert "ended with" not in bench.logs()
    assert not bench.events.exists() or b"child_crashed" not in bench.events.read_bytes()


def test_a_child_keeps_working_as_long_as_runs_leave_it_as_it_was(bench: LimitBench) -> None:
    bench.begin()
    assert len({bench.words("keeps-nothing")[0] for _ in range(6)}) == 1


def test_a_child_is_replaced_after_so_many_runs(bench: LimitBench) -> None:
    bench.begin(runs_per_child_max="2")
    pids = [bench.words("tells-its-process")[0] for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]
    nobody_died(bench)


def test_a_child_that_keeps_too_much_memory_is_replaced(bench: LimitBench) -> None:
    bench.begin(child_memory_max="180 MiB")
    first, second = bench.words("tells-its-process")[0], bench.words("keeps-memory")[0]
    assert first == second != bench.words("tells-its-process")[0]
    nobody_died(bench)


def test_a_job_can_have_a_process_that_no_other_run_is_ever_in(bench: LimitBench) -> None:
    bench.begin()
    jobs = ["tells-its-process", *["tells-its-process-fresh"] * 3, "tells-its-process", "tells-its-process"]
    pids = [bench.words(job)[0] for job in jobs]
    assert len(set(pids[:5])) == 5
    assert pids[4] == pids[5]
    nobody_died(bench)


def test_each_run_can_have_a_process_of_its_own(bench: LimitBench) -> None:
    bench.begin(fresh_process_per_run="true", max_concurrent_runs="2")
    run_ids = bench.client.enqueue_many("tells-its-process", [None] * 8)
    runs = [bench.until(run_id, RunStatus.SUCCEEDED) for run_id in run_ids]
    assert len({(run.stdout_tail or "").split()[0] for run in runs}) == 8
    nobody_died(bench)


SEEN = ["environment", "umask", "sys.path", "locale", "socket timeout", "clocks"]
LEFT = [*SEEN, "what raises TypeError", "what raises AttributeError"]


def test_a_child_is_replaced_for_what_its_run_has_left_which_the_log_names(bench: LimitBench) -> None:
    worker = bench.begin()
    for what in LEFT:
        pid = bench.words("leaves", what)[0]
        assert bench.words("tells-its-process")[0] != pid, what
        worker.until_logged(f"left={what}")
    nobody_died(bench)


def test_what_a_run_sent_off_on_its_own_is_over_when_the_run_is(bench: LimitBench) -> None:
    worker = bench.begin()
    run = bench.finished("sends-off-a-daemon", "returns")
    assert run.status is RunStatus.SUCCEEDED
    assert len(bench.started_by(run.id)) == 2
    bench.until_all_ended(run.id)
    worker.until_logged(f"run_id={run.id} job_name=sends-off-a-daemon attempt=1 leaked_processes=2")
    nobody_died(bench)


def test_what_a_run_sent_off_ends_when_the_run_is_cancelled(bench: LimitBench) -> None:
    bench.begin()
    run_id = bench.client.enqueue("sends-off-a-daemon", "waits")
    bench.until_noted(run_id, "start")
    bench.client.cancel_run(run_id)
    bench.until(run_id, RunStatus.CANCELLED)
    bench.until_all_ended(run_id)


def test_what_a_run_sent_off_ends_when_its_child_crashes(bench: LimitBench) -> None:
    bench.begin()
    run = bench.finished("sends-off-a-daemon", "crashes")
    assert run.error_type == "ChildCrashed"
    bench.until_all_ended(run.id)
    assert "unexpected pid" not in bench.logs()
