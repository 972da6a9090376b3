"""A supervisor inside the test, for the jobs of `short_jobs`: so that it can be seen what waits behind what."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from anyio import to_thread

import short_jobs
from durablestack import DurableStack, Run, RunStatus
from durablestack.events import EventSink
from durablestack.supervisor.embedded import supervise
from durablestack.supervisor.tree import Supervisor
from workers import Note

PATIENCE_SECONDS = 120.0
"""For thousands of runs, on a machine that is busy. It goes on as soon as they are done."""

_LOOK_SECONDS = 0.002


class ShortBench:
    """One database, one diary, and supervisors one after the other, or at once."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.diary = folder / "diary"
        self.options = {"max_concurrent_runs": 3, "retry_delay": 0.05, "poll_interval_seconds": 0.2, **options}
        self.stack = DurableStack("short_jobs", **self.options)
        self.stack.migrate()
        self.sinks: list[EventSink] = []

    def enqueue(self, job: str, count: int = 1, **work: Any) -> list[UUID]:
        return self.enqueue_all(job, [work] * count)

    def enqueue_all(self, job: str, works: Iterable[dict[str, Any]]) -> list[UUID]:
        return self.stack.client.enqueue_many(job, [short_jobs.Work(str(self.diary), **work) for work in works])

    # --- what became of them

    def run(self, run_id: UUID) -> Run:
        run = self.stack.queries.get_run(run_id)
        assert run is not None, f"run {run_id} is lost"
        return run

    def runs(self, run_ids: Iterable[UUID]) -> list[Run]:
        return [self.run(run_id) for run_id in run_ids]

    def failed_attempts(self, run_id: UUID) -> list[str | None]:
        """The error types of the attempts that did not succeed."""
        attempts = self.stack.queries.get_attempts(run_id)
        return [attempt.error_type for attempt in attempts if attempt.error_type is not None]

    def notes(self) -> list[Note]:
        if not self.diary.exists():
            return []
        text = self.diary.read_text()
        lines = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())  # the last one is being written
        return [Note(UUID(id), int(attempt), what, int(pid), float(at)) for id, attempt, what, pid, at in lines]

    def executions(self) -> Counter[UUID]:
        return Counter(note.run_id for note in self.notes())

    def all_succeeded_at_once(self, run_ids: Sequence[UUID]) -> None:
        """Each at its first attempt, and executed exactly once."""
        states = Counter((run.status, run.attempt) for run in self.runs(run_ids))
        assert states == {(RunStatus.SUCCEEDED, 1): len(run_ids)}
        executions = self.executions()
        assert Counter(executions[run_id] for run_id in run_ids) == {1: len(run_ids)}

    # --- while they are executed

    @asynccontextmanager
    async def supervised(self, **options: Any) -> AsyncIterator[Watched]:
        """A supervisor, which is asked to stop in the end."""
        with DurableStack("short_jobs", **{**self.options, **options}) as stack:
            for sink in self.sinks:
                stack.add_event_sink(sink)
            async with supervise(stack) as supervisor, anyio.create_task_group() as tasks:
                watched = Watched(supervisor)
                tasks.start_soon(watched.run)
                yield watched
                tasks.cancel_scope.cancel()

    async def until_ended(self, *, but: int = 0) -> None:
        """Until no more runs are there than those that are not waited for."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while await self.unended() > but:
                await anyio.sleep(0.02)

    async def unended(self) -> int:
        counts = await to_thread.run_sync(self.stack.queries.count_runs)
        return sum(count for status, count in counts.items() if not status.terminal)

    async def until_status(self, run_id: UUID, status: RunStatus) -> Run:
        with anyio.fail_after(PATIENCE_SECONDS):
            while (run := await to_thread.run_sync(self.run, run_id)).status is not status:
                await anyio.sleep(0.02)
        return run

    async def until_noted(self, count: int) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while len(self.notes()) < count:
                await anyio.sleep(0.005)


class Watched:
    """A supervisor, and what has been seen to wait there."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.behind_max = 0
        self.kept_waiting: set[UUID] = set()
        """Runs behind which others have waited."""
        self.waited: dict[UUID, Run] = {}
        """Runs that have waited behind others."""

    @property
    def pids(self) -> list[int]:
        return [executor.pid for executor in self.supervisor.pool.executors if executor.pid is not None]

    async def run(self) -> None:
        while True:
            self.look()
            await anyio.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        for executor in self.supervisor.pool.executors:
            self.behind_max = max(self.behind_max, executor.behind)
            if executor.behind and executor.assignment is not None:
                self.kept_waiting.add(executor.assignment.run.id)
            self.waited |= {held.run.id: held.run for held in executor.line.behind}

    async def until_some_wait(self, at_least: int = 1) -> None:
        """Until so many wait behind one; returns without giving anybody time to change that."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while not any(executor.behind >= at_least for executor in self.supervisor.pool.executors):
                await anyio.sleep(0)


@contextmanager
def short_bench(folder: Path, **options: Any) -> Iterator[ShortBench]:
    made = ShortBench(folder, **options)
    try:
        yield made
    finally:
        made.stack.close()
