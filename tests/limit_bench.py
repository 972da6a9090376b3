"""A bench for the jobs of `limit_jobs`, and how to ask what became of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from durablestack import DurableStack, Run
from durablestack.options import DurableStackOptions
from durablestack.runs import Attempt
from processes import still_running
from workers import Bench, Worker, eventually


class LimitBench(Bench):
    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        super().__init__(folder, settings)
        self.stack.close()
        self.stack = DurableStack("limit_jobs", options=DurableStackOptions.from_environment(settings))
        self.client = self.stack.client
        self.events = folder / "events"

    def begin(self, *arguments: str, **settings: str) -> Worker:
        """A supervisor; of its settings, which begin with DURABLESTACK__, only the rest is named."""
        named = {f"DURABLESTACK__{name.upper()}": value for name, value in settings.items()}
        return self.worker(*arguments, settings={**named, "EVENTS_FILE": str(self.events)}, target="limit_jobs")

    def finished(self, job: str, args: Any = None) -> Run:
        """A run of a job, once it has ended."""
        return self.until_terminal(self.client.enqueue(job, args))

    def words(self, job: str, args: Any = None) -> list[str]:
        """What a run of a job has printed."""
        return (self.finished(job, args).stdout_tail or "").split()

    def attempt(self, run: Run) -> Attempt:
        """The last one."""
        return self.stack.queries.get_attempts(run.id)[-1]

    def started_by(self, run_id: UUID) -> list[int]:
        """The processes that a run has noted."""
        whats = [note.what for note in self.notes(run_id)]
        pids = [note.pid for note in self.notes(run_id, "daemon")]
        return pids + [int(what.removeprefix("child-")) for what in whats if what.startswith("child-")]

    def until_all_ended(self, run_id: UUID) -> None:
        pids = self.started_by(run_id)
        assert pids
        eventually(lambda: not any(map(still_running, pids)), what=f"the end of {pids}")


@contextmanager
def limit_bench(folder: Path, settings: dict[str, str]) -> Iterator[LimitBench]:
    made = LimitBench(folder, settings)
    try:
        yield made
    finally:
        made.close()
