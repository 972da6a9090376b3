"""One supervisor for many hostile runs: what each of them is told of, and that nobody else notices.

Such a supervisor outlives a test. Who has one takes `no_process_left_behind` from here, in the place of the one that
all tests have, and looks at the family of the supervisor with `until_whole`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from durablestack import DurableStack, Run, RunStatus
from durablestack.options import DurableStackOptions
from durablestack.runs import EndedBy
from processes import descendants, still_running, without_tracker
from workers import Bench, eventually

SLOTS = 4
WHOLE_AGAIN_WITHIN_SECONDS = 5.0
SETTINGS = {
    "DURABLESTACK__LEASE_DURATION_SECONDS": "300",
    "DURABLESTACK__POLL_INTERVAL_SECONDS": "0.03",
    "DURABLESTACK__MAX_CONCURRENT_RUNS": str(SLOTS),
    "DURABLESTACK__RETRY_DELAY": "0.05",
    "DURABLESTACK__CANCEL_GRACE_SECONDS": "0.1",
    "DURABLESTACK__TERMINATE_GRACE_SECONDS": "0.3",
    "DURABLESTACK__SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "1",
}


class Told(NamedTuple):
    """What a run and the record of its first attempt say; a run that succeeds at once has no such record."""

    error_type: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    ended_by: EndedBy | None = None
    crash_count: int = 0
    attempt: int = 1


def raised(error_type: str) -> Told:
    return Told(error_type, ended_by=EndedBy.ITSELF)


def crashed_of(signal_name: str, ended_by: EndedBy = EndedBy.ITSELF) -> Told:
    return Told("ChildCrashed", signal_name, None, ended_by, 1)


def left_with(exit_code: int) -> Told:
    return Told("ChildExited", None, exit_code, EndedBy.ITSELF, 1)


SUCCEEDED = Told()
KILLED = crashed_of("SIGKILL", EndedBy.OUTSIDE)


class HostileBench(Bench):
    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        super().__init__(folder, settings)
        self.stack.close()
        self.stack = DurableStack("hostile_jobs", options=DurableStackOptions.from_environment(settings))
        self.client = self.stack.client
        self.death_at_import = folder / "death-at-import"

    def begin(self, **settings: str) -> None:
        named = {f"DURABLESTACK__{name.upper()}": value for name, value in settings.items()}
        named["DEATH_AT_IMPORT"] = str(self.death_at_import)
        self.supervisor = self.worker(settings=named, target="hostile_jobs")
        self.slots = int({**self.settings, **named}["DURABLESTACK__MAX_CONCURRENT_RUNS"])
        self._meet()
        self.family_size = eventually(self._family_at_rest)

    def finished(self, job: str, args: Any = None) -> Run:
        """A run of a job, once it has ended."""
        return self.until_terminal(self.client.enqueue(job, args))

    def told(self, run: Run) -> Told:
        attempts = self.stack.queries.get_attempts(run.id)
        if not attempts:
            assert run.status is RunStatus.SUCCEEDED, run
            return Told(attempt=run.attempt)
        first = attempts[0]
        return Told(
            first.error_type, first.signal, first.exit_code, first.ended_by, run.crash_count, attempt=run.attempt
        )

    @contextmanager
    def innocent_neighbour(self) -> Iterator[None]:
        """A run that executes all the while, and succeeds at its first attempt."""
        with self._innocent(1):
            yield

    @contextmanager
    def _innocent(self, count: int) -> Iterator[None]:
        """Runs that execute at the same time."""
        gate = self.folder / uuid4().hex
        run_ids = self.client.enqueue_many("waits-for-file", [str(gate)] * count)
        try:
            eventually(
                lambda: len([*self.folder.glob(f"{gate.name}-begun-*")]) >= count,
                what=f"{count} innocent runs at once: {self.logs()[-5000:]}",
            )
            yield
        finally:
            gate.touch()
        for run_id in run_ids:
            assert self.until(run_id, RunStatus.SUCCEEDED).attempt == 1

    def until_whole(self) -> float:
        """Wait until every slot executes runs again, and the supervisor has no other processes than it had.

        Return after how many seconds that was.
        """
        began = time.monotonic()
        self._meet()
        eventually(
            lambda: self._family_at_rest() == self.family_size,
            what=f"a family of {self.family_size}: {sorted(descendants(self.supervisor.pid))}",
        )
        took = time.monotonic() - began
        assert self.supervisor.process.poll() is None
        assert took <= WHOLE_AGAIN_WITHIN_SECONDS
        return took

    def _meet(self) -> None:
        """As many runs at once as there are slots."""
        with self._innocent(self.slots):
            pass

    def _family_at_rest(self) -> int:
        """How many processes there are below the supervisor; 0 while any of them is a zombie, or children lack."""
        family = without_tracker(descendants(self.supervisor.pid))
        complete = len(self.supervisor.children()) == self.slots and all(map(still_running, family))
        return len(family) if complete else 0

    def memory_of_the_supervisor(self) -> float:
        """Resident, in MiB."""
        pages = int(Path(f"/proc/{self.supervisor.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1_048_576

    def until_replaced(self, run: Run) -> None:
        """Wait for the end of the child that printed its number first of all."""
        pid = int((run.stdout_tail or "").split()[0])
        eventually(lambda: not still_running(pid), what=f"the end of child {pid}, which {run.job_name} has used up")

    def until_more_is_logged(self, text: str, than: int = 0) -> None:
        eventually(lambda: self.supervisor.log().count(text) > than, what=f"more of {text!r}")

    def end(self) -> None:
        """Whatever was done to its children, a supervisor can be stopped, and leaves nothing behind."""
        family = descendants(self.supervisor.pid)
        self.supervisor.terminate()
        assert self.supervisor.exit_code() == 0
        eventually(lambda: not any(map(still_running, family)), what="the end of the family")


BenchOn = Callable[[str], HostileBench]


@pytest.fixture(scope="module")
def bench_on(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchOn]:
    """A bench on a store, whose supervisor was started when it was first asked for."""
    with ExitStack() as opened:
        benches: dict[str, HostileBench] = {}

        def bench_on(store: str) -> HostileBench:
            if store not in benches:
                made = HostileBench(folder := tmp_path_factory.mktemp(store), settings_on(store, folder, request))
                opened.callback(made.close)
                made.begin()
                opened.callback(made.end)
                benches[store] = made
            return benches[store]

        yield bench_on


def settings_on(store: str, folder: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    if store == "sqlite":
        return {**SETTINGS, "DURABLESTACK__DATABASE_URL": f"sqlite:///{folder}/runs.db"}
    prefix = f"t{secrets.token_hex(5)}_"
    url: str = request.getfixturevalue(f"{store}_dsn")
    return {**SETTINGS, "DURABLESTACK__DATABASE_URL": url, "DURABLESTACK__DATABASE_TABLE_PREFIX": prefix}


@pytest.fixture(autouse=True)
def no_process_left_behind() -> None:
    pass


def pids_in(run: Run) -> list[int]:
    """Processes of which a run has told by printing their numbers."""
    return [int(word) for word in (run.stdout_tail or "").split()]


__all__ = [
    "KILLED",
    "SETTINGS",
    "SUCCEEDED",
    "BenchOn",
    "HostileBench",
    "Told",
    "bench_on",
    "crashed_of",
    "left_with",
    "no_process_left_behind",
    "pids_in",
    "raised",
]
