"""Short runs that come to a child several at once: what is told of each, what they leave, what a child has not read."""

import logging
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from durablestack import Event
from durablestack.events import EventType
from durablestack.supervisor.line import Line
from short_bench import PATIENCE_SECONDS, ShortBench, short_bench

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str) -> dict[str, Any]:
    if request.param == "sqlite":
        return {"database_url": f"sqlite:///{tmp_path}/runs.db"}
    return {"database_url": request.getfixturevalue("postgres_dsn"), "database_table_prefix": table_prefix}


@pytest.fixture
def any_bench(tmp_path: Path, database: dict[str, Any]) -> Iterator[ShortBench]:
    with short_bench(tmp_path, **database) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ShortBench]:
    with short_bench(tmp_path, database_url=f"sqlite:///{tmp_path}/runs.db") as made:
        yield made


class ByRun:
    """An event sink."""

    def __init__(self) -> None:
        self.events: dict[UUID, list[Event]] = defaultdict(list)

    def emit(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.run_id is not None:
                self.events[event.run_id].append(event)


# --- what is told


async def test_of_each_run_all_is_told_once_and_in_its_order(any_bench: ShortBench) -> None:
    sink = ByRun()
    any_bench.sinks.append(sink)
    run_ids = any_bench.enqueue("short", 2_000)
    async with any_bench.supervised() as watched:
        await any_bench.until_ended()
    any_bench.all_succeeded_at_once(run_ids)
    assert watched.behind_max > 0
    assert set(sink.events) == set(run_ids)
    for events in sink.events.values():
        told = [event.event_type for event in events]
        given_back = [EventType.JOB_CLAIMED, EventType.JOB_RELEASED] * told.count(EventType.JOB_RELEASED)
        assert told == [*given_back, EventType.JOB_CLAIMED, EventType.JOB_STARTED, EventType.JOB_SUCCEEDED]
        assert [event.occurred_at for event in events] == sorted(event.occurred_at for event in events)
        assert events[-1].duration_ms is not None


async def test_each_of_thousands_of_runs_has_the_line_that_it_wrote(any_bench: ShortBench) -> None:
    run_ids = any_bench.enqueue("writes", 3_000, what="print")
    async with any_bench.supervised() as watched:
        await any_bench.until_ended()
    assert watched.behind_max > 0
    for run in any_bench.runs(run_ids):
        assert (run.attempt, run.stdout_tail, run.stderr_tail) == (1, f"print of {run.id}\n", None)


# --- what is left


async def test_a_limit_that_the_last_of_several_runs_has_spoilt_is_met_by_none_of_those_that_come_later(
    bench: ShortBench,
) -> None:
    run_ids: list[UUID] = []
    async with bench.supervised(max_concurrent_runs=1) as watched:
        for _ in range(10):
            run_ids += bench.enqueue_all("short-and-limits", [{}] * 40 + [{"what": "limit"}])
            await bench.until_ended()
    bench.all_succeeded_at_once(run_ids)
    assert watched.supervisor.reports.children_lost == 0
    assert watched.behind_max > 0
    assert len({note.pid for note in bench.notes()}) == 10


async def test_a_limit_that_a_run_has_spoilt_is_met_by_none_of_those_that_were_taken_back_meanwhile(
    bench: ShortBench, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes so long that they are taken back from behind it, and done by the other child; until then its own thought
    that they would follow, and did not look at all that it might have left."""
    caplog.set_level(logging.INFO, "durablestack.supervisor.executor")
    run_ids: list[UUID] = []
    async with bench.supervised(max_concurrent_runs=2) as watched:
        for _ in range(5):
            spoils = {"what": "limit", "seconds": 0.3}
            run_ids += bench.enqueue_all("short-and-limits", [{"what": "looks-seldom"}] * 4 + [{}] * 250)
            await bench.until_ended()
            run_ids += bench.enqueue_all("short-and-limits", [{}] * 4 + [spoils] + [{}] * 16)
            await bench.until_ended()
    bench.all_succeeded_at_once(run_ids)
    assert watched.supervisor.reports.children_lost == 0
    assert watched.behind_max > 0
    found = [message for message in caplog.messages if "is replaced for what a run has left" in message]
    assert found, "this proves nothing otherwise"
    assert all(any(f"run_id={run_id} " in message for run_id in run_ids) for message in found)


# --- what is not read


async def test_a_child_that_is_frozen_for_long_does_what_it_was_given_last_and_not_what_it_was_given_first(
    bench: ShortBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked after again and again meanwhile."""
    looks = 0
    look_after = Line.look_after

    def counted(line: Line, now: float) -> None:
        nonlocal looks
        looks += 1
        look_after(line, now)

    monkeypatch.setattr("durablestack.supervisor.pool._LOOK_SECONDS", 0.001)
    monkeypatch.setattr(Line, "look_after", counted)
    run_ids = bench.enqueue("short", 200)
    async with bench.supervised(max_concurrent_runs=1) as watched:
        await bench.until_ended()
        (pid,) = watched.pids
        os.kill(pid, signal.SIGSTOP)
        run_ids += bench.enqueue("short", 5)
        with anyio.fail_after(PATIENCE_SECONDS):
            looks = 0
            while looks < 400:
                await anyio.sleep(0.01)
        with suppress(ProcessLookupError):  # it has been replaced
            os.kill(pid, signal.SIGCONT)
        with anyio.fail_after(30):
            await bench.until_ended()
    bench.all_succeeded_at_once(run_ids)
