"""The executors: as many as runs may be in flight at once.

An idle executor is a token. Whoever wants work done takes tokens out, and hands each a run or gives it back; an
executor without a child that is ready is no token, so that nothing is claimed while no child can start.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from uuid import UUID

import anyio
from msgspec import Struct

from durablestack.jobs import JobRegistry
from durablestack.options import CrashedRunPolicy
from durablestack.runs import Cancelled, Failed, Outcome, Released, Run, Succeeded

from . import verdict
from .executor import Assignment, Ended, Executor, Limits
from .leases import LeaseTable
from .process import ChildProcess, Death, Starter
from .restarts import Restarts
from .verdict import Ending

log = logging.getLogger(__name__)


class Counts(Struct):
    """What happened since the start."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    released: int = 0
    crashed: int = 0
    abandoned: int = 0
    children_lost: int = 0


class Pool:
    def __init__(
        self,
        size: int,
        starter: Starter,
        limits: Limits,
        jobs: JobRegistry,
        leases: LeaseTable,
        restarts: Restarts,
        *,
        timeout_seconds: float | None,
        crashed_run_policy: CrashedRunPolicy,
        retry_after: Callable[[Run, float | None], timedelta | None],
        record: Callable[[Outcome], None],
    ) -> None:
        self.executors = [Executor(number, self, starter, limits) for number in range(size)]
        self.job_names = frozenset(jobs.names)
        self.counts = Counts()
        self.on_room: Callable[[], None] = lambda: None
        self._jobs = jobs
        self._leases = leases
        self._restarts = restarts
        self._timeout_seconds = timeout_seconds
        self._crashed_run_policy = crashed_run_policy
        self._retry_after = retry_after
        self._record = record
        self._idle: deque[Executor] = deque()
        self._some_idle = anyio.Event()
        self._quiet = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as executors:
            for executor in self.executors:
                executors.start_soon(executor.run, name=f"executor {executor.number}")

    # --- the claimer's side

    async def take_idle(self, at_most: int) -> list[Executor]:
        """Wait for an idle executor; take along the others that are idle too."""
        while not self._idle:
            self._some_idle = anyio.Event()
            await self._some_idle.wait()
        return [self._idle.popleft() for _ in range(min(at_most, len(self._idle)))]

    def give_back(self, executors: Iterable[Executor]) -> None:
        """Return tokens that no work was found for."""
        for executor in executors:
            if executor.assignment is None and executor.pid is not None:
                self._put_idle(executor)

    def assign(self, executor: Executor, run: Run) -> None:
        timeout_seconds = self._jobs.find(run.job_name).timeout_seconds
        executor.assign(Assignment(run, timeout_seconds or self._timeout_seconds))

    # --- the executors' side

    def idle(self, executor: Executor) -> None:
        self._put_idle(executor)
        self.on_room()

    def _put_idle(self, executor: Executor) -> None:
        if executor not in self._idle:
            self._idle.append(executor)
        self._some_idle.set()
        self._check_quiet()

    def busy_or_gone(self, executor: Executor) -> None:
        if executor in self._idle:
            self._idle.remove(executor)

    def may_begin(self, run: Run, child: ChildProcess) -> bool:
        return self._leases.executing(run.lease, child.kill)

    def never_begun(self, run: Run) -> None:
        self._tell(run, Released(run.lease), "it had not begun")

    def ended(self, ended: Ended) -> None:
        run = ended.assignment.run
        ending = Ending.LEASE_LOST if self._leases.is_lost(run.lease) else ended.ending
        if isinstance(ended.how, Death):
            self.counts.crashed += ending is None
            outcome = verdict.of_death(
                run,
                ended.how,
                ending,
                timeout_seconds=ended.assignment.timeout_seconds,
                output=ended.output,
                retry_after=self._retry_after,
                crashed_run_policy=self._crashed_run_policy,
            )
        else:
            outcome = verdict.of_reply(
                run,
                ended.how,
                ending,
                timeout_seconds=ended.assignment.timeout_seconds,
                output=ended.output,
                retry_after=self._retry_after,
            )
        self._tell(run, outcome, "its lease was lost" if ending is Ending.LEASE_LOST else "its lease is left to expire")

    def _tell(self, run: Run, outcome: Outcome | None, why: str) -> None:
        _log(run, outcome, why)
        self._count(outcome)
        if outcome is None:
            self._leases.drop([run.lease])
        else:
            self._leases.finished(run.lease)
            self._record(outcome)
        self._check_quiet()

    def _count(self, outcome: Outcome | None) -> None:
        match outcome:
            case Succeeded():
                self.counts.succeeded += 1
            case Failed(retry_after=None):
                self.counts.failed += 1
            case Failed():
                self.counts.retried += 1
            case Cancelled():
                self.counts.cancelled += 1
            case Released():
                self.counts.released += 1
            case None:
                self.counts.abandoned += 1

    def child_lost(self, executor: Executor, why: str) -> None:
        self.counts.children_lost += 1
        log.warning("%s", why)
        if self._restarts.record():
            log.error("children die faster than the restart limit allows; they are replaced with growing delays")

    # --- ending runs

    def end_run(self, run_id: UUID, ending: Ending) -> None:
        for executor in self.executors:
            if executor.assignment is not None and executor.assignment.run.id == run_id:
                executor.end_run(ending)

    def end_runs(self, run_ids: Collection[UUID], ending: Ending) -> None:
        for run_id in run_ids:
            self.end_run(run_id, ending)

    def end_all(self, ending: Ending) -> None:
        for executor in self.executors:
            executor.end_run(ending)

    def kill_all(self, ending: Ending) -> None:
        for executor in self.executors:
            executor.kill_run(ending)

    @property
    def busy(self) -> list[Executor]:
        return [executor for executor in self.executors if executor.assignment is not None]

    @property
    def degraded(self) -> bool:
        return self._restarts.degraded

    async def quiet(self) -> None:
        """Wait until no run is in hand."""
        while self.busy:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    def _check_quiet(self) -> None:
        if not self.busy:
            self._quiet.set()


def _log(run: Run, outcome: Outcome | None, why: str) -> None:
    names = f"run_id={run.id} job_name={run.job_name} attempt={run.attempt}"
    match outcome:
        case Succeeded():
            log.info("run succeeded: %s", names)
        case Failed(failure=failure, retry_after=None):
            log.error("run failed: %s error=%s: %s", names, failure.error_type, failure.error_message)
        case Failed(failure=failure, retry_after=delay):
            delay_seconds = delay.total_seconds() if delay else 0.0
            log.warning(
                "attempt failed, retry in %.3g s: %s error=%s: %s",
                delay_seconds,
                names,
                failure.error_type,
                failure.error_message,
            )
        case Cancelled():
            log.info("run cancelled: %s", names)
        case Released():
            log.info("run released: %s", names)
        case None:
            log.warning("run abandoned, %s: %s", why, names)
