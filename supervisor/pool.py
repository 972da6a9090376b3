"""The executors: as many as runs may be in flight at once.

An idle executor is a token. Whoever wants work done takes tokens out, and hands each a run or gives it back; an
executor without a child that is ready is no token, so that nothing is claimed while no child can start.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

import anyio
from msgspec.structs import replace

from durablestack.events import EventType
from durablestack.jobs import JobRegistration, JobRegistry
from durablestack.options import CrashedRunPolicy
from durablestack.runs import Failed, Outcome, Released, Run

from . import verdict, wire
from .bus import NOT_BEGUN, Course, Emit
from .executor import Ended, Executor, Limits
from .in_hand import Assignment
from .leases import LeaseTable
from .process import ChildProcess, Death
from .restarts import Restarts
from .starter import Starter
from .terms import Terms
from .verdict import Ending, RetryAfter
from .watch import Watch

log = logging.getLogger(__name__)

_UNBEGUN_MAX = 3
_UNBEGUN_RUNS_MAX = 1_000


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
        terms_of: Callable[[JobRegistration], Terms],
        crashed_run_policy: CrashedRunPolicy,
        retry_after: RetryAfter,
        record: Callable[[Run, Outcome, Course], None],
        emit: Emit,
    ) -> None:
        self.executors = [Executor(number, self, starter, limits) for number in range(size)]
        self.job_names = frozenset(jobs.names)
        self.has_started = False
        self.children_lost = 0
        self.on_room: Callable[[], None] = lambda: None
        self._watch = Watch(lambda: self.busy, starter.oom_kills)
        self._jobs = jobs
        self._leases = leases
        self._restarts = restarts
        self._terms_of = terms_of
        self._crashed_run_policy = crashed_run_policy
        self._retry_after = retry_after
        self._record = record
        self._emit = emit
        self._idle: deque[Executor] = deque()
        self._unbegun: Counter[UUID] = Counter()
        self._some_idle = anyio.Event()
        self._quiet = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as executors:
            executors.start_soon(self._watch.run, name="watch")
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
        self.busy_or_gone(executor)  # its child may have been replaced since the token was taken, which made another
        executor.assign(self._assignment(run))

    def _assignment(self, run: Run) -> Assignment:
        return Assignment(run, self._terms_of(self._jobs.find(run.job_name)))

    # --- the executors' side

    def idle(self, executor: Executor) -> None:
        self.has_started = True
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
        return self._leases.executing(run.lease, child)

    def may_begin_elsewhere(self, run: Run) -> bool:
        """Whether a run whose child died before it began is to be given back. Not for ever: perhaps it is the run."""
        if len(self._unbegun) > _UNBEGUN_RUNS_MAX:  # most of them have ended elsewhere
            self._unbegun.clear()
        self._unbegun[run.id] += 1
        return self._unbegun[run.id] <= _UNBEGUN_MAX

    def never_begun(self, run: Run) -> None:
        self._tell(run, Released(run.lease), "it had not begun")

    def abandoned(self, run: Run, why: str) -> None:
        self.child_lost(why, run)
        self._tell(run, None, "its lease is left to expire")

    def began(self, run: Run, course: Course) -> None:
        self._emit(EventType.JOB_STARTED, run, course=course)
        if run.attempt > 1:
            self._emit(EventType.JOB_RETRIED, run, course=course)

    def ended(self, ended: Ended) -> None:
        run = ended.assignment.run
        self._unbegun.pop(run.id, None)
        ending = Ending.LEASE_LOST if self._is_lost(run, ended.how) else ended.ending
        outcome = verdict.of(
            run,
            ended.how,
            ending,
            ended.evidence,
            terms=ended.assignment.terms,
            retry_after=self._retry_after,
            crashed_run_policy=self._crashed_run_policy,
        )
        if ending is Ending.LEASE_LOST:
            self._emit(EventType.LEASE_LOST, run, course=ended.course)
        elif ending is None and isinstance(ended.how, Death):
            self.child_lost(f"child {ended.pid} died of run {run.id} ({run.job_name}): {ended.how.how}", run)
        why_not = "its lease is lost" if ending is Ending.LEASE_LOST else "its lease is left to expire"
        course = ended.course
        if isinstance(outcome, Failed) and outcome.failure.crashed:
            course = replace(course, quarantined=verdict.has_crashed_enough(run, ended.assignment.terms))
        self._tell(run, outcome, why_not, course)

    def _is_lost(self, run: Run, how: wire.Succeeded | wire.Failed | Death) -> bool:
        """What died when its lease was not to be trusted did not crash, whoever came first; a result is worth a try."""
        if self._leases.is_lost(run.lease):
            return True
        return isinstance(how, Death) and (how.by_guard or not self._leases.is_trusted(run.lease))

    def _tell(self, run: Run, outcome: Outcome | None, why_not: str, course: Course = NOT_BEGUN) -> None:
        if outcome is None:
            log.warning(
                "run abandoned, %s: run_id=%s job_name=%s attempt=%d", why_not, run.id, run.job_name, run.attempt
            )
            self._leases.drop([run.lease])
        else:
            self._leases.finished(run.lease)
            self._record(run, outcome, course)
        self._check_quiet()

    def child_lost(self, why: str, run: Run | None = None) -> None:
        self.children_lost += 1
        log.warning("%s", why)
        self._emit(EventType.CHILD_CRASHED, run, message=why)
        if self._restarts.record():
            log.error("more children have died than the restart limit allows: this worker is degraded, and goes on")

    # --- ending runs

    def end_run(self, run_id: UUID, ending: Ending) -> None:
        for executor in self.executors:
            run = executor.assignment.run if executor.assignment is not None else None
            if run is None or run.id != run_id:
                continue
            if ending is not Ending.LEASE_LOST or self._leases.is_lost(run.lease):  # else it was claimed anew meanwhile
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

    # --- all of them

    async def leave(self) -> None:
        """Let all children leave in good order, as long as they need."""
        for executor in self.executors:
            executor.leave()
        for executor in self.executors:
            await executor.left.wait()

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
