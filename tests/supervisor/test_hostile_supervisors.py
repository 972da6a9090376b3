"""Rows of the catalogue's part B that cost a supervisor, or its only slot, or very many processes."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from durablestack import RunStatus
from durablestack.runs import AttemptOutcome
from hostile_bench import SETTINGS, HostileBench, no_process_left_behind
from processes import children_of, descendants, stat_fields, still_running, without_tracker
from workers import Worker, eventually

__all__ = ["no_process_left_behind"]

CPU_SHARE_MAX = 0.2


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[HostileBench]:
    made = HostileBench(tmp_path, {**SETTINGS, "DURABLESTACK__DATABASE_URL": f"sqlite:///{tmp_path}/runs.db"})
    try:
        yield made
    finally:
        made.close()


# --- 25, 51: a job against its supervisor


def test_a_run_that_ends_all_processes_is_tried_as_often_as_it_may_be_and_no_more(bench: HostileBench) -> None:
    """As with `memory.oom.group`: the supervisor, its guard and all children are gone at once, each time."""
    first = bench.worker(target="hostile_jobs")
    run_id = bench.client.enqueue("kills-all", first.pid)
    assert first.exit_code() == -9
    second = bench.worker(target="hostile_jobs")
    bench.until_noted(run_id, "start", count=2)  # the second time it spares the supervisor, whose number is another
    run = bench.until(run_id, RunStatus.FAILED)
    assert (run.attempt, bench.executions()[run_id]) == (2, 2)
    outcomes = [(attempt.attempt, attempt.outcome) for attempt in bench.stack.queries.get_attempts(run_id)]
    assert outcomes == [(1, AttemptOutcome.EXPIRED), (2, AttemptOutcome.FAILED)]
    assert second.process.poll() is None


def test_a_run_that_kills_the_parent_of_all_children_costs_them_an_attempt_and_the_supervisor_nothing(
    bench: HostileBench,
) -> None:
    """The fork server, that is."""
    bench.begin()
    run = bench.finished("kills-its-parent-at-first")
    assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 2)
    bench.until_whole()


# --- 29: no false alarm


def test_a_run_that_holds_the_gil_beyond_its_lease_and_has_no_timeout_keeps_it(bench: HostileBench) -> None:
    bench.begin(lease_duration_seconds="3")
    run = bench.finished("holds-the-gil", 5)
    assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 1)
    assert "lease lost" not in bench.logs()


# --- 30, 52: what not even SIGKILL ends


@contextmanager
def frozen_group() -> Iterator[Callable[[int], None]]:
    """A control group whose processes wait in the kernel, as for a disk that is gone; skips, by name, without one."""
    group = Path("/sys/fs/cgroup/freezer") / f"durablestack-test-{uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group that freezes can be made here: {error}")

    def freeze(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        eventually(lambda: stat_fields(pid)[:1] == ["D"], what=f"{pid} in the kernel")

    with ExitStack() as at_end:
        at_end.callback(group.rmdir)
        at_end.callback(lambda: eventually(lambda: not (group / "cgroup.procs").read_text(), what=f"an empty {group}"))
        at_end.callback((group / "freezer.state").write_text, "THAWED")
        yield freeze


def test_a_child_that_cannot_be_killed_costs_its_slot_and_no_other_and_its_run_is_executed_elsewhere(
    bench: HostileBench,
) -> None:
    one_slot = {"DURABLESTACK__MAX_CONCURRENT_RUNS": "1", "DURABLESTACK__LEASE_DURATION_SECONDS": "3"}
    worker = bench.worker(settings=one_slot, target="hostile_jobs")
    run_id = bench.client.enqueue("sleeps-at-first")
    pid = bench.until_noted(run_id, "start").pid
    with frozen_group() as freeze:
        freeze(pid)
        worker.until_logged(f"child {pid} of slot 0 cannot be killed")
        assert worker.process.poll() is None
        other = bench.worker(settings=one_slot, target="hostile_jobs")
        run = bench.until(run_id, RunStatus.SUCCEEDED)
        assert (run.attempt, bench.stack.queries.get_attempts(run_id)[-1].worker_name) == (2, "worker-1")
        other.terminate()
        assert other.exit_code() == 0
        innocent = bench.client.enqueue("innocent")
        time.sleep(0.5)
        assert bench.run(innocent).status is RunStatus.PENDING, "there is no slot for it"
    bench.until(innocent, RunStatus.SUCCEEDED)
    assert not still_running(pid)
    assert bench.run(run_id) == run


def test_a_supervisor_whose_child_cannot_be_killed_can_be_stopped(bench: HostileBench) -> None:
    worker = bench.worker(settings={"DURABLESTACK__MAX_CONCURRENT_RUNS": "1"}, target="hostile_jobs")
    run_id = bench.client.enqueue("sleeps-at-first")
    pid = bench.until_noted(run_id, "start").pid
    with frozen_group() as freeze:
        freeze(pid)
        worker.terminate()
        assert worker.exit_code() == 0


# --- 48: children that die as soon as they are started


def test_children_that_die_a_hundred_times_at_their_start_cost_little_and_the_first_that_lives_works(
    bench: HostileBench,
) -> None:
    slots = 20
    bench.death_at_import.write_text("exit-0")
    settings = {"DURABLESTACK__MAX_CONCURRENT_RUNS": str(slots), "DEATH_AT_IMPORT": str(bench.death_at_import)}
    worker = bench.worker(settings=settings, target="hostile_jobs")
    run_id = bench.client.enqueue("innocent")
    deaths = eventually(lambda: count if (count := worker.log().count("cannot start")) >= 100 else 0)
    assert "this worker is degraded" in worker.log()
    assert bench.run(run_id).attempt == 0
    cpu_seconds, began = cpu_seconds_of(worker.pid), time.monotonic()
    eventually(lambda: time.monotonic() - began >= 3)
    share = (cpu_seconds_of(worker.pid) - cpu_seconds) / (time.monotonic() - began)
    assert share < CPU_SHARE_MAX
    assert worker.log().count("cannot start") - deaths <= 3 * slots, "ever more seldom"
    assert len(worker.log().splitlines()) <= 4 * worker.log().count("cannot start") + 20
    bench.death_at_import.unlink()
    assert bench.until(run_id, RunStatus.SUCCEEDED).attempt == 1


def cpu_seconds_of(pid: int) -> float:
    return sum(map(int, stat_fields(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


# --- 53: very many short runs, each in a process of its own


@pytest.mark.parametrize("runs", [500, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_new_process_for_each_of_very_many_runs_leaves_neither_zombies_nor_descriptors(
    bench: HostileBench, runs: int
) -> None:
    bench.begin(runs_per_child_max="1")
    worker = bench.supervisor
    before = descriptors_at_rest(worker)
    run_ids = bench.client.enqueue_many("once", [None] * runs)
    zombies: dict[int, float] = {}
    while bench.run(run_ids[-1]).status is not RunStatus.SUCCEEDED:
        now = time.monotonic()
        seen = {pid for pid in descendants(worker.pid) if stat_fields(pid)[:1] == ["Z"]}
        zombies = {pid: zombies.get(pid, now) for pid in seen}
        assert all(now - since < 5 for since in zombies.values()), "nobody waits for them"
        time.sleep(0.02)
    for run_id in run_ids:
        assert bench.until_terminal(run_id, within_seconds=60).status is RunStatus.SUCCEEDED
    bench.until_whole()
    assert len({note.pid for note in bench.notes(what="start")}) >= runs * 0.9, "numbers of processes may come again"
    assert descriptors_at_rest(worker) == before


def lasting(worker: Worker) -> list[int]:
    """The supervisor, its fork server and its guard."""
    return [worker.pid, *without_tracker(children_of(worker.pid))]


def descriptors_at_rest(worker: Worker) -> dict[int, int]:
    """How many each of them has once that has been the same for a second: some come and go while children start."""
    found: dict[int, int] = {}
    same_since = time.monotonic()

    def look() -> bool:
        nonlocal found, same_since
        now = {pid: descriptors(pid) for pid in lasting(worker)}
        if now != found:
            found, same_since = now, time.monotonic()
        return time.monotonic() - same_since > 1

    eventually(look)
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
