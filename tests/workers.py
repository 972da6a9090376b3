"""A language for tests with real supervisors: start one, freeze it, kill it, look at its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import UUID

from durablestack import DurableStack, Run, RunStatus
from durablestack.options import DurableStackOptions
from processes import children_of, command_line, descendants, stat_fields, still_running

TESTS = Path(__file__).parent
PATIENCE_SECONDS = 30.0
"""How long a test waits for what must happen: generous, for a machine may be busy. It goes on as soon as it has."""

Value = TypeVar("Value")


def eventually(look: Callable[[], Value], within_seconds: float = PATIENCE_SECONDS, what: str = "") -> Value:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + within_seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {within_seconds:g} s: {what or look}"
        time.sleep(0.01)
    return value


class Note(NamedTuple):
    """A line of the diary: see chaos_jobs.note."""

    run_id: UUID
    attempt: int
    what: str
    pid: int
    at: float


class Bench:
    """One database, one diary, and any number of supervisors for the jobs of `chaos_jobs`."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.diary = folder / "diary"
        self.workers: list[Worker] = []
        import chaos_jobs

        self.stack = DurableStack("chaos_jobs", options=DurableStackOptions.from_environment(settings))
        self.jobs = chaos_jobs
        self.stack.migrate()
        self.client = self.stack.client

    def worker(
        self,
        *arguments: str,
        settings: dict[str, str] | None = None,
        target: str = "chaos_jobs",
        under: Sequence[str] = (),
    ) -> Worker:
        """`under` is a command that becomes the one after it, as `nohup` does."""
        worker = Worker(self, arguments, {**self.settings, **(settings or {})}, target, under)
        self.workers.append(worker)
        return worker

    def run(self, run_id: UUID) -> Run:
        run = self.stack.queries.get_run(run_id)
        assert run is not None, f"run {run_id} is lost"
        return run

    def until(self, run_id: UUID, status: RunStatus, within_seconds: float = PATIENCE_SECONDS) -> Run:
        eventually(lambda: self.run(run_id).status is status, within_seconds, f"{status}; it is {self.run(run_id)}")
        return self.run(run_id)

    def until_terminal(self, run_id: UUID, within_seconds: float = PATIENCE_SECONDS) -> Run:
        eventually(lambda: self.run(run_id).status.terminal, within_seconds, f"an end of {self.run(run_id)}")
        return self.run(run_id)

    def notes(self, run_id: UUID | None = None, what: str | None = None) -> list[Note]:
        if not self.diary.exists():
            return []
        text = self.diary.read_text()
        lines = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())  # the last one is being written
        notes = [Note(UUID(id), int(attempt), what_, int(pid), float(at)) for id, attempt, what_, pid, at in lines]
        return [n for n in notes if (run_id is None or n.run_id == run_id) and (what is None or n.what == what)]

    def until_noted(self, run_id: UUID, what: str, count: int = 1) -> Note:
        """Wait until the run has noted `what` for the `count`th time; return that note."""
        eventually(lambda: len(self.notes(run_id, what)) >= count, what=f"{what} of {run_id}: {self.logs()}")
        return self.notes(run_id, what)[count - 1]

    def executions(self) -> Counter[UUID]:
        return Counter(note.run_id for note in self.notes(what="start"))

    def logs(self) -> str:
        return "\n".join(worker.log() for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.stack.close()


class Worker:
    """A real supervisor process, with real children."""

    def __init__(
        self, bench: Bench, arguments: tuple[str, ...], settings: dict[str, str], target: str, under: Sequence[str] = ()
    ) -> None:
        number = len(bench.workers)
        self._log_path = bench.folder / f"worker-{number}.log"
        environment = {
            **os.environ,
            **settings,
            "CHAOS_DIARY": str(bench.diary),
            "DURABLESTACK__WORKER_NAME": f"worker-{number}",
            "PYTHONPATH": str(TESTS),
        }
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "durablestack.supervisor", target, "--plain", *arguments],
                env=environment,
                cwd=bench.folder,
                stdin=subprocess.PIPE,  # open, and nothing ever comes
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def until_logged(self, text: str) -> None:
        eventually(lambda: text in self.log(), what=f"{text!r} in {self.log()}")

    def children(self) -> list[int]:
        """The processes that execute runs."""
        return [pid for pid in sorted(descendants(self.pid)) if _is_child(pid)]

    def guard(self) -> int:
        """The process that ends our children when we cannot."""
        return eventually(lambda: guard_below(self.pid), what=f"a guard: {self.log()}")

    def until_ready(self, children: int) -> list[int]:
        return eventually(
            lambda: found if len(found := self.children()) == children else [],
            what=f"{children} children: {self.log()}",
        )

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def exit_code(self, within_seconds: float = PATIENCE_SECONDS) -> int:
        return self.process.wait(within_seconds)

    def close(self) -> None:
        """End it, however the test left it, and whatever belongs to it."""
        family = sorted(descendants(self.pid)) if self.process.poll() is None else []
        for pid in [self.pid, *family]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(PATIENCE_SECONDS)
        if self.process.stdin is not None:
            self.process.stdin.close()
        eventually(lambda: not any(still_running(pid) for pid in family), what="the end of the family")


def guard_below(pid: int) -> int:
    """The guard of the supervisor in a process; 0 if there is none."""
    return next((child for child in children_of(pid) if b"guard.py" in command_line(child)), 0)


def _is_child(pid: int) -> bool:
    """Children lead a session of their own, below the fork server; the fork server leads one too, above them."""
    command, fields = command_line(pid), stat_fields(pid)
    if not fields or fields[0] == "Z" or int(fields[3]) != pid or b"resource_tracker" in command:
        return False
    return b"spawn_main" in command or (b"forkserver" in command and b"forkserver" in command_line(int(fields[1])))


@contextmanager
def bench(folder: Path, settings: dict[str, str]) -> Iterator[Bench]:
    made = Bench(folder, settings)
    try:
        yield made
    finally:
        made.close()
