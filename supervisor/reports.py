"""What became of runs and of children is told: to the lease table, to who records it, to who listens to events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from durablestack.events import EventType
from durablestack.options import CrashedRunPolicy
from durablestack.runs import Failed, Outcome, Output, Released, Run, Succeeded

from . import verdict, wire
from .bus import NOT_BEGUN, Course, Emit, Told
from .death import Death
from .ended import Ended
from .in_hand import InHand
from .leases import LeaseTable
from .restarts import Restarts
from .verdict import Ending, RetryAfter
from .windows import Windows

log = logging.getLogger(__name__)

_LEASE_IS_LOST = "its lease is lost"


class Reports:
    """Executors report here. `on_told` is called when runs have come to an end for us, whatever became of them."""

    def __init__(
        self,
        leases: LeaseTable,
        windows: Windows,
        restarts: Restarts,
        *,
        crashed_run_policy: CrashedRunPolicy,
        retry_after: RetryAfter,
        record: Callable[[Sequence[Told]], None],
        emit: Emit,
    ) -> None:
        self.children_lost = 0
        self.on_told: Callable[[], None] = lambda: None
        self._leases = leases
        self._windows = windows
        self._restarts = restarts
        self._crashed_run_policy = crashed_run_policy
        self._retry_after = retry_after
        self._record = record
        self._emit = emit

    # --- runs

    def began(self, begun: Sequence[InHand]) -> None:
        for held in begun:
            self._emit(EventType.JOB_STARTED, held.run, course=held.course)
            if held.run.attempt > 1:
                self._emit(EventType.JOB_RETRIED, held.run, course=held.course)

    def succeeded(self, ended: Sequence[tuple[InHand, float, Output]]) -> None:
        """The plain case of `ended`, which is the most frequent one by far: nobody wanted them to end. With the seconds
        that they took, and what they wrote."""
        lost = self._leases.all_finished([held.lease for held, _, _ in ended])
        self._windows.ended([(held.run.job_name, seconds) for held, seconds, _ in ended])
        told: list[Told] = []
        for held, seconds, output in ended:
            course = Course(seconds, held.course.trace_id, held.course.span_id)
            if lost and held.lease in lost:
                self._emit(EventType.LEASE_LOST, held.run, course=course)
                self._tell(held.run, None, _LEASE_IS_LOST)
            else:
                told.append((held.run, Succeeded(held.lease, output), course))
        self._record(told)
        self.on_told()

    def ended(self, ended: Ended) -> None:
        run = ended.assignment.run
        if not isinstance(ended.how, Death):
            self._windows.ended([(run.job_name, ended.how.seconds)])
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
        why_not = _LEASE_IS_LOST if ending is Ending.LEASE_LOST else "its lease is left to expire"
        course = ended.course
        if isinstance(outcome, Failed) and outcome.failure.crashed:
            course = replace(course, quarantined=verdict.has_crashed_enough(run, ended.assignment.terms))
        self._tell(run, outcome, why_not, course)

    def _is_lost(self, run: Run, how: wire.Succeeded | wire.Failed | Death) -> bool:
        """What died when its lease was not to be trusted did not crash, whoever came first; a result is worth a try."""
        if self._leases.is_lost(run.lease):
            return True
        return isinstance(how, Death) and (how.by_guard or not self._leases.is_trusted(run.lease))

    def never_begun(self, run: Run) -> None:
        self._tell(run, Released(run.lease), "it had not begun")

    def abandoned(self, run: Run, why: str) -> None:
        self.child_lost(why, run)
        self._tell(run, None, "its lease is left to expire")

    def _tell(self, run: Run, outcome: Outcome | None, why_not: str, course: Course = NOT_BEGUN) -> None:
        if outcome is None:
            log.warning(
                "run abandoned, %s: run_id=%s job_name=%s attempt=%d", why_not, run.id, run.job_name, run.attempt
            )
            self._leases.drop([run.lease])
        else:
            self._leases.finished(run.lease)
            self._record([(run, outcome, course)])
        self.on_told()

    # --- children

    def child_lost(self, why: str, run: Run | None = None) -> None:
        self.children_lost += 1
        log.warning("%s", why)
        self._emit(EventType.CHILD_CRASHED, run, message=why)
        if self._restarts.record():
            log.error("more children have died than the restart limit allows: this worker is degraded, and goes on")

    @property
    def degraded(self) -> bool:
        """Whether children die more often than the restart limit allows."""
        return self._restarts.degraded
