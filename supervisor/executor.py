"""One slot of the pool: a child process, the pipe to it, and the run it is busy with.

The slot is lasting, the child is not. A child that dies is replaced, and what its death means for the run in hand
is told to the pool. A run that no child has seen yet waits for the next child, or is given back.

    booting --Ready--> idle --assign--> busy --Succeeded | Failed--> idle, or retired: Stop
       ^                |                |
       |                v                v  timeout, cancel, stop, CPU limit: Cancel, STACK_SIGNAL, SIGTERM, SIGKILL
       +---- restart -- dead <-----------+  memory limit: STACK_SIGNAL, SIGKILL; lease lost: SIGKILL
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct
from msgspec.structs import astuple, replace

from durablestack.errors import JobDefinitionError, TargetError
from durablestack.runs import Output, Run, Usage

from . import dump, usage, wire
from .bus import Course
from .child import EXIT_REENTERED
from .in_hand import Assignment, InHand
from .process import ChildProcess, Death
from .residue import PROCESSES
from .restarts import restart_delay_seconds
from .starter import Starter
from .verdict import Ending, Evidence

log = logging.getLogger(__name__)

_RETIRE_WITHIN_SECONDS = 2.0
_KILLED_WITHIN_SECONDS = 5.0
_STACK_DUMP_WITHIN_SECONDS = 0.1


class BootFailed(Exception):
    """A child could not be started, or could not load the application. No run is to blame."""


class Limits(Struct, frozen=True, kw_only=True):
    startup_timeout_seconds: float
    cancel_grace_seconds: float
    terminate_grace_seconds: float
    output_bytes_max: int
    runs_per_child_max: int | None = None
    child_memory_max: int | None = None
    """In bytes: a child that keeps more than that when a run has ended is replaced."""


class Ended(Struct, frozen=True, kw_only=True, eq=False):
    """How an assignment ended: by a reply of the child, or by its death; `ending` if we wanted it to end."""

    assignment: Assignment
    how: wire.Succeeded | wire.Failed | Death
    ending: Ending | None
    evidence: Evidence
    course: Course
    pid: int | None


class Slots(Protocol):
    """What an executor tells the pool it belongs to."""

    job_names: frozenset[str]
    has_started: bool  # a child has been ready

    @property
    def busy(self) -> Sequence[Executor]: ...
    def idle(self, executor: Executor) -> None: ...
    def busy_or_gone(self, executor: Executor) -> None: ...
    def may_begin(self, run: Run, child: ChildProcess) -> bool: ...
    def began(self, run: Run, course: Course) -> None: ...
    def ended(self, ended: Ended) -> None: ...
    def never_begun(self, run: Run) -> None: ...
    def abandoned(self, run: Run, why: str) -> None: ...
    def may_begin_elsewhere(self, run: Run) -> bool: ...
    def child_lost(self, why: str, run: Run | None = None) -> None: ...


class Executor:
    def __init__(self, number: int, slots: Slots, starter: Starter, limits: Limits) -> None:
        self.number = number
        self.pid: int | None = None
        self.left = anyio.Event()  # once `leave` was called and there is no child any more
        self._slots = slots
        self._starter = starter
        self._limits = limits
        self._child: ChildProcess | None = None
        self._answered = anyio.Event()
        self._boot_failure: wire.BootFailed | None = None
        self._in_hand: InHand | None = None
        self._orders = 0  # given so far, by which they are numbered
        self._runs_begun = 0  # by this child
        self._retiring = False
        self._leaving = False
        self._deaths_in_a_row = 0
        self._tasks: TaskGroup | None = None

    @property
    def assignment(self) -> Assignment | None:
        return None if self._in_hand is None else self._in_hand.assignment

    @property
    def began_at(self) -> float:
        """Of the run in hand; 0 if there is none."""
        return 0.0 if self._in_hand is None else self._in_hand.began_at

    # --- the slot's life

    async def run(self) -> None:
        async with anyio.create_task_group() as self._tasks:
            while not self._leaving:
                try:
                    await self._one_child()
                except BootFailed as failure:
                    self._give_back()
                    self._died(f"child of slot {self.number} cannot start: {failure}")
                if delay_seconds := restart_delay_seconds(self._deaths_in_a_row):
                    self._give_back()
                    await anyio.sleep(delay_seconds)

    async def _one_child(self) -> None:
        child = ChildProcess(
            self._starter, output_bytes_max=self._limits.output_bytes_max, name=f"durablestack-{self.number}"
        )
        child.on_reply = self._on_reply
        child.on_gone = lambda: self._slots.busy_or_gone(self)
        self._answered, self._boot_failure, self._retiring = anyio.Event(), None, False
        self._runs_begun = 0
        try:
            await self._boot(child)
            self._child, self.pid = child, child.pid
            self._begin_or_idle()
            self._bury(child, await child.dead())
        finally:
            self._child, self.pid = None, None
            self._slots.busy_or_gone(self)
            await child.end()
            self.left.set()

    async def _boot(self, child: ChildProcess) -> None:
        """Start the child, and wait for its word that it is ready."""
        try:
            with anyio.fail_after(self._limits.startup_timeout_seconds):
                await child.start()
                death = await self._answered_or_dead(child)
        except TimeoutError:
            if not self._slots.busy:
                self._starter.unstick()
            raise BootFailed(f"it was not ready within {self._limits.startup_timeout_seconds:g} s") from None
        except (OSError, EOFError, RuntimeError) as error:  # RuntimeError: no thread, or no process, can be had
            raise BootFailed(f"{type(error).__name__}: {error}") from error
        if self._boot_failure is not None:
            failure = self._boot_failure
            if failure.final and not self._slots.has_started:
                raise JobDefinitionError(failure.error_message)
            raise BootFailed(f"{failure.error_type}: {failure.error_message}\n{failure.error_detail}".strip())
        if death is not None:
            if death.exit_code == EXIT_REENTERED:
                raise TargetError(
                    "the program starts a supervisor again in each child that imports it; put what it does under "
                    "if __name__ == '__main__':"
                )
            how = death.how
            stderr = child.take_output().stderr_tail or "What it said stands above, if it said anything."
            raise BootFailed(f"it ended with {how} before it was ready. {stderr}")

    async def _answered_or_dead(self, child: ChildProcess) -> Death | None:
        """Wait until the child says whether it is ready; return its death if that comes first."""
        death: Death | None = None
        async with anyio.create_task_group() as waiting:

            async def watch_death() -> None:
                nonlocal death
                death = await child.dead()
                waiting.cancel_scope.cancel()

            waiting.start_soon(watch_death)
            await self._answered.wait()
            waiting.cancel_scope.cancel()
        return None if self._answered.is_set() else death

    def _bury(self, child: ChildProcess, death: Death) -> None:
        """The child is dead: say what became of the run in hand, and whether anyone should worry."""
        how, held = death.how, self._in_hand
        if held is None or not held.delivered:
            if not self._retiring:
                self._died(f"idle child {child.pid} of slot {self.number} ended with {how}")
        elif not held.begun and held.ending is None and self._runs_begun > 1:
            # whatever killed it, an earlier run has left it there: the one in hand waits for the next child
            held.take_back()
            self._died(f"child {child.pid} of slot {self.number} ended with {how} after its run")
        elif held.begun or not self._slots.may_begin_elsewhere(held.run):
            self._finish(held, death, child)
        else:
            held.take_back()
            self._give_back()
            self._died(f"child {child.pid} of slot {self.number} ended with {how} before it began its run")

    def _died(self, why: str) -> None:
        """A death for which no run is to blame: the more of them in a row, the longer until the next child."""
        self._deaths_in_a_row += 1
        self._slots.child_lost(why)

    def leave(self) -> None:
        """Ask the child to leave in good order; none takes its place."""
        self._leaving, self.left = True, anyio.Event()
        if self._child is None:
            self.left.set()
        else:
            self._retiring = True
            self._child.send(wire.Stop())

    # --- a run

    def assign(self, assignment: Assignment) -> None:
        """Take a run in hand. It begins now if there is a child for it, or as soon as there is."""
        assert self._in_hand is None, "an executor takes one run at a time"
        self._in_hand = held = InHand(assignment)
        child = self._child
        if child is None or not self._takes_runs(child):
            return
        if assignment.terms.fresh_process_per_run and self._runs_begun:
            self._retire(child)
        else:
            self._begin(child, held)

    def _takes_runs(self, child: ChildProcess) -> bool:
        return not (self._retiring or child.killed or child.gone)

    def _begin_or_idle(self) -> None:
        if self._in_hand is None:
            self._slots.idle(self)
        elif self._child is not None:
            self._begin(self._child, self._in_hand)

    def _begin(self, child: ChildProcess, held: InHand) -> None:
        run, terms = held.run, held.assignment.terms
        if not self._slots.may_begin(run, child):
            self._give_back()
            self._slots.idle(self)
            return
        child.take_output()  # what was written between two runs belongs to neither
        child.take_stack()
        self._orders += 1
        self._runs_begun += 1
        held.deliver(self._orders)
        if terms.timeout_seconds is not None:
            loop = asyncio.get_running_loop()
            held.timeout = loop.call_later(terms.timeout_seconds, self.end_run, Ending.TIMED_OUT)
        child.send(
            wire.Execute(
                self._orders,
                run.id,
                run.job_name,
                run.attempt,
                run.max_attempts,
                run.slot or run.scheduled_for,
                run.payload,
                run.trace_context,
                terms.address_space_limit,
            )
        )

    def _give_back(self) -> None:
        """Let go of a run that no child has begun."""
        held = self._in_hand
        if held is not None and not held.delivered:
            self._let_go(held)
            self._slots.never_begun(held.run)

    def _let_go(self, held: InHand) -> None:
        self._in_hand = None
        held.end()

    def _on_reply(self, reply: wire.Reply) -> None:
        held = self._in_hand
        match reply:
            case wire.Ready(job_names=job_names):
                self._on_ready(frozenset(job_names))
            case wire.BootFailed():
                self._boot_failure = reply
                self._answered.set()
            case wire.Began() if held is not None and held.order == reply.number and not held.begun:
                held.begun = True
                held.cpu_before = (reply.user_cpu_seconds, reply.system_cpu_seconds)
                held.course = Course(None, reply.trace_id or None, reply.span_id or None)
                self._slots.began(held.run, held.course)
            case wire.Succeeded() | wire.Failed() if held is not None and held.order == reply.number:
                self._on_result(held, reply)
            case _:
                log.warning("slot %d: a reply to order %d, which is not in hand", self.number, reply.number)

    def _on_ready(self, job_names: frozenset[str]) -> None:
        missing = self._slots.job_names - job_names
        if missing:
            message = f"it does not know the jobs {', '.join(sorted(missing))}, which the supervisor has registered"
            self._boot_failure = wire.BootFailed("JobsDiffer", message, "")
        self._answered.set()

    def _on_result(self, held: InHand, reply: wire.Succeeded | wire.Failed) -> None:
        child = self._child
        self._deaths_in_a_row = 0
        is_dying = child is not None and child.killed
        self._retiring = self._retiring or is_dying or reply.retires or self._is_worn_out(child, held)
        if child is not None and reply.left:
            self._tell_left(child, held, reply.left)
        self._finish(held, reply, child)
        if child is None or child.gone:
            return
        if self._retiring:
            self._retire(child)
        else:
            self._slots.idle(self)

    def _is_worn_out(self, child: ChildProcess | None, held: InHand) -> bool:
        """Whether a child that has done its run is to be replaced though nothing is wrong with it."""
        if held.assignment.terms.fresh_process_per_run or self._runs_begun == self._limits.runs_per_child_max:
            return True
        if self._limits.child_memory_max is None or child is None:
            return False
        process = usage.look(child.pid)
        return process is not None and process.resident_bytes > self._limits.child_memory_max

    def _tell_left(self, child: ChildProcess, held: InHand, left: Sequence[str]) -> None:
        """The run is over; what it has started is to be so too, before anybody is told."""
        run = held.run
        names = f"run_id={run.id} job_name={run.job_name} attempt={run.attempt}"
        if PROCESSES in left and (count := usage.end_descendants(child.pid, held.began_boottime)):
            log.warning("processes that a run had left were ended: %s leaked_processes=%d", names, count)
        log.info("child %d is replaced for what its run has left: %s left=%s", child.pid, names, ", ".join(left))

    def _retire(self, child: ChildProcess) -> None:
        self._retiring = True
        child.send(wire.Stop())
        asyncio.get_running_loop().call_later(_RETIRE_WITHIN_SECONDS, child.kill)

    def _finish(self, held: InHand, how: wire.Succeeded | wire.Failed | Death, child: ChildProcess | None) -> None:
        output, stack = (child.take_output(), child.take_stack()) if child is not None else (Output(), None)
        used = held.used if isinstance(how, Death) else usage.most(held.used, Usage(*astuple(how.used)))
        ended = Ended(
            assignment=held.assignment,
            how=how,
            ending=held.ending,
            evidence=Evidence(output=output, stack=stack, usage=used, reached=held.reached),
            course=replace(held.course, duration_seconds=anyio.current_time() - held.began_at),
            pid=self.pid,
        )
        self._let_go(held)
        self._slots.ended(ended)
        if isinstance(how, Death) and ended.ending is None:
            self._deaths_in_a_row = 0  # it was able to start and to begin

    # --- ending a run

    def end_run(self, ending: Ending) -> None:
        """End the run in hand: ask it to leave, then make it. A lost lease is not a thing to ask about."""
        held = self._in_hand
        if held is None:
            return
        first = held.ending is None
        if first or ending is Ending.LEASE_LOST:
            held.ending = ending
        if self._child is None or not held.delivered:
            self._give_back()
        elif ending is Ending.LEASE_LOST:
            self._kill(self._child, held)
        elif first and self._tasks is not None:
            self._tasks.start_soon(self._escalate, self._child, held)

    def kill_run(self, ending: Ending) -> None:
        """End the run in hand without asking."""
        held = self._in_hand
        if held is None:
            return
        held.ending = held.ending or ending
        if self._child is None or not held.delivered:
            self._give_back()
        else:
            self._kill(self._child, held)

    def end_exceeding(self, ending: Ending, reached: float) -> None:
        """End the run in hand, which uses more than it may. Memory is not a thing to wait for."""
        held = self._in_hand
        if held is None:
            return
        if held.ending is None:
            held.reached = reached
        if ending is not Ending.MEMORY_LIMIT:
            self.end_run(ending)
        elif self._child is not None and self._tasks is not None and held.ending is not Ending.MEMORY_LIMIT:
            held.ending = held.ending or ending
            self._retiring = True
            self._tasks.start_soon(self._kill_with_stack, self._child, held)

    async def _kill_with_stack(self, child: ChildProcess, held: InHand) -> None:
        child.ask_for_stack()
        if not await held.ends_within(_STACK_DUMP_WITHIN_SECONDS):
            self._kill(child, held)

    async def _escalate(self, child: ChildProcess, held: InHand) -> None:
        if held.order is not None:
            child.send(wire.Cancel(held.order))
        if await held.ends_within(self._limits.cancel_grace_seconds):
            return
        child.ask_for_stack()  # where it was stuck, for whoever reads the error
        if await held.ends_within(_STACK_DUMP_WITHIN_SECONDS):
            return
        self._retiring = True  # whatever it still replies, it is dying
        child.signal_group(signal.SIGTERM)
        if not await held.ends_within(self._limits.terminate_grace_seconds):
            self._kill(child, held)

    def _kill(self, child: ChildProcess, held: InHand) -> None:
        child.kill()
        if self._tasks is not None:
            self._tasks.start_soon(self._abandon_unless_dead, child, held)

    async def _abandon_unless_dead(self, child: ChildProcess, held: InHand) -> None:
        """A process that waits in the kernel cannot be killed, and will not execute anything either.

        Its run is for others, once its lease has expired. The slot is lost until the kernel lets go of the process.
        """
        if await held.ends_within(_KILLED_WITHIN_SECONDS) or self._child is not child:
            return
        self._retiring = True
        self._let_go(held)
        why = f"child {child.pid} of slot {self.number} cannot be killed: it waits in the kernel for what does not come"
        self._slots.abandoned(held.run, why)

    # --- looking at a run

    def measure(self) -> usage.Sample | None:
        """What the run in hand uses now; remembered, should its child die. None if none has begun."""
        held = self._in_hand
        if self._child is None or held is None or not held.begun:
            return None
        sample = usage.sample(self._child.pid, held.began_boottime, held.cpu_before)
        if sample is not None:
            held.used = usage.most(held.used, sample.usage)
        return sample

    async def stacks(self) -> str | None:
        """The Python stacks of the run in hand, taken twice, in words; None if none has begun, or it ends meanwhile."""
        held = self._in_hand
        if self._child is None or held is None or not held.begun:
            return None
        return await dump.look_twice(self._child, held)
