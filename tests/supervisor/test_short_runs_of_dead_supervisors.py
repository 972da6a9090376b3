"""Supervisors that are killed or frozen while many short runs are on their way to their children."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

import short_jobs
from durablestack import DurableStack, RunStatus
from durablestack.options import DurableStackOptions
from processes import still_running
from short_bench import PATIENCE_SECONDS
from workers import Bench, Note, eventually


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """For supervisors in processes of their own, which can be killed."""
    made = Bench(tmp_path, request.getfixturevalue(f"{request.param}_settings"))
    made.stack.close()
    made.stack = DurableStack("short_jobs", options=DurableStackOptions.from_environment(made.settings))
    made.client = made.stack.client
    try:
        yield made
    finally:
        made.close()


def enqueue(bench: Bench, count: int, seconds: float = 0.001) -> list[UUID]:
    return bench.client.enqueue_many("short", [short_jobs.Work(str(bench.diary), seconds=seconds)] * count)


def until_many_are_claimed(bench: Bench, noted: int) -> None:
    """More than children could have in hand."""
    eventually(lambda: len(bench.notes()) >= noted, what=f"{noted} runs begun: {bench.logs()}")
    eventually(lambda: bench.stack.queries.count_runs()[RunStatus.LEASED] > 4, what="runs that wait")


def until_all_succeeded(bench: Bench) -> None:
    eventually(
        lambda: all(status.terminal or not count for status, count in bench.stack.queries.count_runs().items()),
        PATIENCE_SECONDS,
        what="the end of all",
    )


def executed_by_the_book(bench: Bench, run_ids: list[UUID], dead: set[int]) -> list[UUID]:
    """Each attempt at most once, and no attempt of those that are dead after another one has begun the run.

    Returns those executed twice.
    """
    by_run: dict[UUID, list[Note]] = {run_id: [] for run_id in run_ids}
    for note in bench.notes():
        by_run[note.run_id].append(note)
    for run_id, notes in by_run.items():
        run = bench.run(run_id)
        assert run.status is RunStatus.SUCCEEDED
        assert len({note.attempt for note in notes}) == len(notes), "one attempt was executed twice"
        assert notes[-1].attempt == run.attempt
        before = [note.at for note in notes if note.pid in dead]
        after = [note.at for note in notes if note.pid not in dead]
        assert not (before and after) or max(before) < min(after)
    return [run_id for run_id, notes in by_run.items() if len(notes) > 1]


def test_a_killed_supervisor_loses_no_short_run_and_none_is_executed_by_its_children_later(bench: Bench) -> None:
    first = bench.worker(target="short_jobs")
    children = first.until_ready(children=2)
    run_ids = enqueue(bench, 2_000)
    until_many_are_claimed(bench, noted=300)
    first.kill()
    eventually(lambda: not any(map(still_running, children)), within_seconds=5, what="the end of the children")
    at_the_end = len(bench.notes())
    left = [run_id for run_id in run_ids if bench.run(run_id).status is RunStatus.LEASED]
    assert len(left) > 2, "this proves nothing otherwise"
    bench.worker(target="short_jobs")
    until_all_succeeded(bench)
    twice = executed_by_the_book(bench, run_ids, set(children))
    assert set(twice) <= set(left), "what was recorded is not executed again"
    assert at_the_end < len(bench.notes())
    assert {bench.run(run_id).attempt for run_id in run_ids} == {1, 2}


@pytest.mark.parametrize("bench", ["postgres"], indirect=True)  # who is frozen in a transaction keeps all of SQLite
def test_a_frozen_supervisor_keeps_no_short_run_and_none_is_executed_by_its_children_later(bench: Bench) -> None:
    frozen = bench.worker(target="short_jobs")
    children = frozen.until_ready(children=2)
    run_ids = enqueue(bench, 2_000)
    until_many_are_claimed(bench, noted=300)
    frozen.freeze()
    bench.worker(target="short_jobs")
    until_all_succeeded(bench)
    eventually(lambda: not any(map(still_running, children)), what="their guard ends them")
    frozen.thaw()
    frozen.terminate()
    assert frozen.exit_code() == 0
    executed_by_the_book(bench, run_ids, set(children))
