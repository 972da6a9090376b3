"""One slot of the pool: a child process, the pipe to it, and the runs that it has.

The slot is lasting, the child is not. A child that dies is replaced, and what its death means for the run in hand
is reported. A run that no child has seen yet waits for the next child, or is given back.

Behind a short run others may wait, in the order in which the child takes them. Whatever happens to the one in front
is not their affair: what the child has not taken then is taken back, and is for others to do.

    booting --Ready--> idle --assign--> busy --Succeeded | Failed--> idle, or retired: Stop
       ^                |                |
       |                v                v  timeout, cancel, stop, CPU limit: Cancel, STACK_SIGNAL, SIGTERM, SIGKILL
       +---- restart -- dead <-----------+  memory limit: STACK_SIGNAL, SIGKILL; lease lost: SIGKILL

`boot` starts the child, `line` has the runs, `escalation` ends them before their time, `ended` says how they ended.
Here is the life of the slot, and what the child says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

import anyio

from durablestack.runs import Run

from . import dump, usage, wire
from .boot import Boot, BootFailed
from .bus import NOT_BEGUN, Course
from .death import Death
from .ended import ended_by
from .escalation import Escalation
from .in_hand import Assignment, InHand
from .leases import boottime
from .line import Line
from .process import ChildProcess
from .reports import Reports
from .residue import PROCESSES
from .restarts import restart_delay_seconds
from .slots import Limits, Slots
from .starter import Starter
from .verdict import Ending

log = logging.getLogger(__name__)


class Executor:
    """The pool gives runs to its `line`, and has its `escalation` end them."""

    def __init__(self, number: int, slots: Slots, reports: Reports, starter: Starter, limits: Limits) -> None:
        self.number = number
        self.pid: int | None = None
        self.left = anyio.Event()  # once `leave` was called and there is no child any more
        self.line = Line(
            slots,
            reports,
            limits,
            idle=lambda: slots.idle(self),
            time_out=lambda: self.escalation.end_run(Ending.TIMED_OUT),
            end_it=lambda: self.escalation.go_on(),
        )
        self.escalation = Escalation(self.line, limits, abandon=self._abandon)
        self._slots = slots
        self._reports = reports
        self._starter = starter
        self._limits = limits
        self._boot = Boot(slots, starter, limits.startup_timeout_seconds)
        self._wears_out = limits.runs_per_child_max is not None or limits.child_memory_max is not None
        self._leaving = False
        self._deaths_in_a_row = 0

    @property
    def assignment(self) -> Assignment | None:
        return None if self.line.in_hand is None else self.line.in_hand.assignment

    @property
    def behind(self) -> int:
        """How many runs wait behind the one in hand."""
        return len(self.line.behind)

    @property
    def began_at(self) -> float:
        """Of the run in hand; 0 if there is none."""
        return 0.0 if self.line.in_hand is None else self.line.in_hand.began_at

    def run_of(self, run_id: UUID) -> Run | None:
        """The run with this id, if it is here."""
        held = self.line.find(run_id)
        return None if held is None else held.run

    # --- the slot's life

    async def run(self) -> None:
        async with anyio.create_task_group() as self.escalation.tasks:
            while not self._leaving:
                try:
                    await self._one_child()
                except BootFailed as failure:
                    self.line.give_back()
                    self._died(f"child of slot {self.number} cannot start: {failure}")
                if delay_seconds := restart_delay_seconds(self._deaths_in_a_row):
                    self.line.give_back()
                    await anyio.sleep(delay_seconds)

    async def _one_child(self) -> None:
        child = ChildProcess(
            self._starter, output_bytes_max=self._limits.output_bytes_max, name=f"durablestack-{self.number}"
        )
        child.on_replies = self._on_replies
        child.on_gone = lambda: self._slots.busy_or_gone(self)
        try:
            await self._boot.start(child)
            self.pid = child.pid
            self.line.open(child)
            self._bury(child, await child.dead())
        finally:
            self.line.child, self.pid = None, None
            self._slots.busy_or_gone(self)
            await child.end()
            self.left.set()

    def _bury(self, child: ChildProcess, death: Death) -> None:
        """The child is dead: say what became of the run in hand, and whether anyone should worry."""
        how, held = death.how, self.line.in_hand
        untaken = self.line.take_untaken(child)
        if held is not None and held.begun and held.ending is None and child.killed and death.reason is None:
            held.ending = Ending.STOPPING  # the kill was meant for a run before this one, which is not to blame
        if held is None or not held.delivered:
            if not self.line.retiring:
                self._died(f"idle child {child.pid} of slot {self.number} ended with {how}")
        else:
            self._finish(held, death, child)
        while self.line.behind:  # it has begun these too; what it said of those before them did not come through
            self.line.move_on()
            self._finish_taken(death, child)
        self.line.hand_on(untaken)

    def _finish_taken(self, death: Death, child: ChildProcess) -> None:
        held = self.line.in_hand
        assert held is not None
        self.line.begin([held])
        self._finish(held, death, child)

    def _died(self, why: str) -> None:
        """A death for which no run is to blame: the more of them in a row, the longer until the next child."""
        self._deaths_in_a_row += 1
        self._reports.child_lost(why)

    def _abandon(self, child: ChildProcess, held: InHand) -> None:
        """Its run is for others, once its lease has expired. The slot is lost until the kernel lets go of the child."""
        self.line.let_go(held)
        why = f"child {child.pid} of slot {self.number} cannot be killed: it waits in the kernel for what does not come"
        self._reports.abandoned(held.run, why)

    def leave(self) -> None:
        """Ask the child to leave in good order; none takes its place."""
        self._leaving, self.left = True, anyio.Event()
        if self.line.child is None:
            self.left.set()
        else:
            self.line.retiring = True
            self.line.child.send(wire.Stop())

    # --- what the child says

    def _on_replies(self, replies: Sequence[wire.Reply]) -> None:
        """Successes of which nothing is to be said one by one, which nearly all are, are recorded together, up to a
        reply that is something else."""
        heard = 0
        while heard < len(replies):
            if plain := self._plain(replies[heard:]):
                self._on_successes(plain)
                heard += len(plain)
            else:
                self._on_reply(replies[heard])
                heard += 1

    def _plain(self, replies: Sequence[wire.Reply]) -> list[wire.Succeeded]:
        """Those at the beginning that are of short runs which nobody wanted to end, and whose child may go on."""
        line, child, plain = self.line, self.line.child, list[wire.Succeeded]()
        if child is None or child.killed or line.retiring or self._wears_out:
            return plain
        for held, reply in zip(line.all, replies, strict=False):
            if not isinstance(reply, wire.Succeeded) or reply.number != held.order or reply.retires:
                break
            if held.ending is not None or not held.assignment.short:
                break
            plain.append(reply)
        return plain

    def _on_successes(self, plain: Sequence[wire.Succeeded]) -> None:
        child, ended = self.line.child, self.line.all[: len(plain)]
        assert child is not None  # it was looked at
        self._deaths_in_a_row = 0
        self.line.step(len(plain))
        for held in ended:
            held.end()
        self.line.begin(ended)
        seconds = [reply.seconds for reply in plain]
        self._reports.succeeded(list(zip(ended, seconds, child.told_outputs(plain), strict=True)))
        self.line.stepped(len(plain))
        if self.line.in_hand is None and not child.gone:
            self._slots.idle(self)

    def _on_reply(self, reply: wire.Reply) -> None:
        held = self.line.in_hand
        match reply:
            case wire.Succeeded() | wire.Failed() if held is not None and held.order == reply.number:
                self._on_result(held, reply)
            case wire.Began() if held is not None and held.order == reply.number:
                self._on_beginning(held, reply)
            case wire.Ready():
                self._boot.on_ready(reply)
            case wire.Spoilt():
                self._on_spoilt(reply)
            case wire.BootFailed():
                self._boot.on_failure(reply)
            case _:
                log.warning("slot %d: a reply to order %d, which is not in hand", self.number, reply.number)

    def _on_beginning(self, held: InHand, began: wire.Began) -> None:
        """We may have found out before: it knows more of it."""
        held.cpu_before = (began.user_cpu_seconds, began.system_cpu_seconds)
        held.began_boottime = min(began.boottime or held.began_boottime, boottime())
        held.course = Course(None, began.trace_id, began.span_id) if began.trace_id else NOT_BEGUN
        self.line.begin([held])

    def _on_result(self, held: InHand, reply: wire.Succeeded | wire.Failed) -> None:
        line, child = self.line, self.line.child
        self._deaths_in_a_row = 0
        line.begin([held])
        if reply.boottime:
            held.began_boottime = min(reply.boottime, held.began_boottime)
        is_dying = child is not None and child.killed
        line.retiring = line.retiring or is_dying or reply.retires or self._is_worn_out(child, held)
        if child is not None and reply.left:
            _tell_left(child, held, reply.left)
        if line.retiring:
            line.take_back()
        self._finish(held, reply, child)
        if line.behind:
            line.move_on()
        elif child is None or child.gone:
            return
        elif line.retiring:
            line.retire()
        else:
            self._slots.idle(self)

    def _on_spoilt(self, spoilt: wire.Spoilt) -> None:
        """What it was given meanwhile is for the next child."""
        child = self.line.child
        if child is None or self._leaving:
            return
        latest = f"latest_run_id={spoilt.run_id} latest_job_name={spoilt.job_name}"
        log.info("child %d is replaced for what a run has left: %s left=%s", child.pid, latest, ", ".join(spoilt.left))
        self._slots.busy_or_gone(self)
        self.line.retiring = True
        self.line.take_back()
        self.line.retire()

    def _is_worn_out(self, child: ChildProcess | None, held: InHand) -> bool:
        """Whether a child that has done its run is to be replaced though nothing is wrong with it."""
        runs_max = self._limits.runs_per_child_max
        if held.assignment.terms.fresh_process_per_run or (runs_max is not None and self.line.runs_begun >= runs_max):
            return True
        if self._limits.child_memory_max is None or child is None:
            return False
        process = usage.look(child.pid)
        return process is not None and process.resident_bytes > self._limits.child_memory_max

    def _finish(self, held: InHand, how: wire.Succeeded | wire.Failed | Death, child: ChildProcess | None) -> None:
        ended = ended_by(how, held, child, self.pid)
        self.line.let_go(held)
        self._reports.ended(ended)
        if isinstance(how, Death) and ended.ending is None:
            self._deaths_in_a_row = 0  # it was able to start and to begin

    # --- looking at a run

    def measure(self) -> usage.Sample | None:
        """What the run in hand uses now; remembered, should its child die. None if none has begun."""
        child, held = self.line.child, self.line.begun_in_hand()
        if child is None or held is None:
            return None
        sample = usage.sample(child.pid, held.began_boottime, held.cpu_before)
        if sample is not None:
            held.used = usage.most(held.used, sample.usage)
        return sample

    async def stacks(self) -> str | None:
        """The Python stacks of the run in hand, taken twice, in words; None if none has begun, or it ends meanwhile."""
        child, held = self.line.child, self.line.begun_in_hand()
        if child is None or held is None:
            return None
        return await dump.look_twice(child, held)


def _tell_left(child: ChildProcess, held: InHand, left: Sequence[str]) -> None:
    """The run is over; what it has started is to be so too, before anybody is told."""
    run = held.run
    names = f"run_id={run.id} job_name={run.job_name} attempt={run.attempt}"
    if PROCESSES in left and (count := usage.end_descendants(child.pid, held.began_boottime)):
        log.warning("processes that a run had left were ended: %s leaked_processes=%d", names, count)
    log.info("child %d is replaced for what its run has left: %s left=%s", child.pid, names, ", ".join(left))
