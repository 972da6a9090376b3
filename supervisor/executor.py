"""One slot of the pool: a child process, the pipe to it, and the run it is busy with.

The slot is lasting, the child is not. A child that dies is replaced, and what its death means for the run in hand
is told to the pool. A run that no child has seen yet waits for the next child, or is given back.

    booting --Ready--> idle --assign--> busy --Succeeded | Failed--> idle, or retired: Stop
       ^                |                |
       |                v                v  timeout, cancel, stop: Cancel, SIGTERM, SIGKILL
       +---- restart -- dead <-----------+
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
from .bus import NOT_BEGUN, Course
from .child import EXIT_REENTERED, STACK_SIGNAL
from .leases import boottime
from .process import ChildProcess, Death, Starter
from .residue import PROCESSES
from .restarts import restart_delay_seconds
from .terms import Terms
from .verdict import Ending, Evidence

log = logging.getLogger(__name__)

_RETIRE_WITHIN_SECONDS = 2.0
_KILLED_WITHIN_SECONDS = 5.0
_STACK_DUMP_WITHIN_SECONDS = 0.1
_STACK_TOLD_WITHIN_SECONDS = 1.0
_STACKS_APART_SECONDS = 0.2
_LOOK_FOR_STACK_SECONDS = 0.02


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


class Assignment(Struct, frozen=True, eq=False):
    """A run that is to be executed."""

    run: Run
    terms: Terms = Terms()


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
        self.assignment: Assignment | None = None
        self.began_at = 0.0
        self.left = anyio.Event()  # once `leave` was called and there is no child any more
        self._slots = slots
        self._starter = starter
        self._limits = limits
        self._child: ChildProcess | None = None
        self._answered = anyio.Event()
        self._boot_failure: wire.BootFailed | None = None
        self._order = 0  # number of the order that the child has in hand, if `_delivered`
        self._delivered = False
        self._begun = False
        self._course = NOT_BEGUN
        self._ending: Ending | None = None
        self._reached: float | None = None  # of the limit that we end the run for
        self._ended = anyio.Event()
        self._began_boottime = 0.0
        self._cpu_before = (0.0, 0.0)  # what the child had used when it began the run
        self._used = Usage()  # by the run, as far as it was seen from here
        self._runs_begun = 0  # by this child
        self._retiring = False
        self._leaving = False
        self._deaths_in_a_row = 0
        self._timeout: asyncio.TimerHandle | None = None
        self._tasks: TaskGroup | None = None

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
        how = death.how
        if self._delivered and (self._begun or not self._slots.may_begin_elsewhere(self._run_in_hand)):
            self._finish(death, child)
        elif self._delivered:
            self._delivered = False
            self._give_back()
            self._died(f"child {child.pid} of slot {self.number} ended with {how} before it began its run")
        elif not self._retiring:
            self._died(f"idle child {child.pid} of slot {self.number} ended with {how}")

    @property
    def _run_in_hand(self) -> Run:
        assert self.assignment is not None
        return self.assignment.run

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
        assert self.assignment is None, "an executor takes one run at a time"
        self.assignment, self._ending, self._ended = assignment, None, anyio.Event()
        child = self._child
        if child is None or not self._takes_runs(child):
            return
        if assignment.terms.fresh_process_per_run and self._runs_begun:
            self._retire(child)
        else:
            self._begin(child, assignment)

    def _takes_runs(self, child: ChildProcess) -> bool:
        return not self._retiring and not child.gone

    def _begin_or_idle(self) -> None:
        if self.assignment is None:
            self._slots.idle(self)
        elif self._child is not None:
            self._begin(self._child, self.assignment)

    def _begin(self, child: ChildProcess, assignment: Assignment) -> None:
        run = assignment.run
        if not self._slots.may_begin(run, child):
            self._give_back()
            self._slots.idle(self)
            return
        child.take_output()  # what was written between two runs belongs to neither
        child.take_stack()
        self._order += 1
        self._runs_begun += 1
        self._delivered, self._begun, self._course = True, False, NOT_BEGUN
        self._used, self._reached = Usage(), None
        self.began_at, self._began_boottime = anyio.current_time(), boottime()
        if (timeout_seconds := assignment.terms.timeout_seconds) is not None:
            loop = asyncio.get_running_loop()
            self._timeout = loop.call_later(timeout_seconds, self.end_run, Ending.TIMED_OUT)
        child.send(
            wire.Execute(
                self._order,
                run.id,
                run.job_name,
                run.attempt,
                run.max_attempts,
                run.slot or run.scheduled_for,
                run.payload,
                run.trace_context,
                assignment.terms.address_space_limit,
            )
        )

    def _give_back(self) -> None:
        """Let go of a run that no child has begun."""
        if self.assignment is not None and not self._delivered:
            run, self.assignment = self.assignment.run, None
            self._forget_timeout()
            self._ended.set()
            self._slots.never_begun(run)

    def _on_reply(self, reply: wire.Reply) -> None:
        match reply:
            case wire.Ready(job_names=job_names):
                self._on_ready(frozenset(job_names))
            case wire.BootFailed():
                self._boot_failure = reply
                self._answered.set()
            case wire.Began() if self._delivered and not self._begun and reply.number == self._order:
                self._begun = True
                self._cpu_before = (reply.user_cpu_seconds, reply.system_cpu_seconds)
                self._course = Course(None, reply.trace_id or None, reply.span_id or None)
                self._slots.began(self._run_in_hand, self._course)
            case wire.Succeeded() | wire.Failed() if self._delivered and reply.number == self._order:
                self._on_result(reply)
            case _:
                log.warning("slot %d: a reply to order %d, which is not in hand", self.number, reply.number)

    def _on_ready(self, job_names: frozenset[str]) -> None:
        missing = self._slots.job_names - job_names
        if missing:
            message = f"it does not know the jobs {', '.join(sorted(missing))}, which the supervisor has registered"
            self._boot_failure = wire.BootFailed("JobsDiffer", message, "")
        self._answered.set()

    def _on_result(self, reply: wire.Succeeded | wire.Failed) -> None:
        child = self._child
        self._deaths_in_a_row = 0
        self._retiring = self._retiring or reply.retires or self._is_worn_out(child)
        if child is not None and reply.left:
            self._tell_left(child, reply.left)
        self._finish(reply, child)
        if child is None or child.gone:
            return
        if self._retiring:
            self._retire(child)
        else:
            self._slots.idle(self)

    def _is_worn_out(self, child: ChildProcess | None) -> bool:
        """Whether a child that has done its run is to be replaced though nothing is wrong with it."""
        assert self.assignment is not None
        if self.assignment.terms.fresh_process_per_run or self._runs_begun == self._limits.runs_per_child_max:
            return True
        if self._limits.child_memory_max is None or child is None:
            return False
        process = usage.look(child.pid)
        return process is not None and process.resident_bytes > self._limits.child_memory_max

    def _tell_left(self, child: ChildProcess, left: Sequence[str]) -> None:
        """The run is over; what it has started is to be so too, before anybody is told."""
        run = self._run_in_hand
        names = f"run_id={run.id} job_name={run.job_name} attempt={run.attempt}"
        if PROCESSES in left and (count := usage.end_descendants(child.pid, self._began_boottime)):
            log.warning("processes that a run had left were ended: %s leaked_processes=%d", names, count)
        log.info("child %d is replaced for what its run has left: %s left=%s", child.pid, names, ", ".join(left))

    def _retire(self, child: ChildProcess) -> None:
        self._retiring = True
        child.send(wire.Stop())
        asyncio.get_running_loop().call_later(_RETIRE_WITHIN_SECONDS, child.kill)

    def _finish(self, how: wire.Succeeded | wire.Failed | Death, child: ChildProcess | None) -> None:
        assert self.assignment is not None
        self._forget_timeout()
        output, stack = (child.take_output(), child.take_stack()) if child is not None else (Output(), None)
        used = self._used if isinstance(how, Death) else usage.most(self._used, Usage(*astuple(how.used)))
        ended = Ended(
            assignment=self.assignment,
            how=how,
            ending=self._ending,
            evidence=Evidence(output=output, stack=stack, usage=used, reached=self._reached),
            course=replace(self._course, duration_seconds=anyio.current_time() - self.began_at),
            pid=self.pid,
        )
        self.assignment, self._delivered, self._ending = None, False, None
        self._ended.set()
        self._slots.ended(ended)
        if isinstance(how, Death) and ended.ending is None:
            self._deaths_in_a_row = 0  # it was able to start and to begin

    def _forget_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    # --- ending a run

    def end_run(self, ending: Ending) -> None:
        """End the run in hand: ask it to leave, then make it. A lost lease is not a thing to ask about."""
        if self.assignment is None:
            return
        first = self._ending is None
        if first or ending is Ending.LEASE_LOST:
            self._ending = ending
        if self._child is None or not self._delivered:
            self._give_back()
        elif ending is Ending.LEASE_LOST:
            self._kill(self._child)
        elif first and self._tasks is not None:
            self._tasks.start_soon(self._escalate, self._child, self._ended)

    def kill_run(self, ending: Ending) -> None:
        """End the run in hand without asking."""
        if self.assignment is None:
            return
        self._ending = self._ending or ending
        if self._child is None or not self._delivered:
            self._give_back()
        else:
            self._kill(self._child)

    def end_exceeding(self, ending: Ending, reached: float) -> None:
        """End the run in hand, which uses more than it may. Memory is not a thing to wait for."""
        if self._ending is None:
            self._reached = reached
        if ending is not Ending.MEMORY_LIMIT:
            self.end_run(ending)
        elif self._child is not None and self._tasks is not None and self._ending is not Ending.MEMORY_LIMIT:
            self._ending = self._ending or ending
            self._retiring = True
            self._tasks.start_soon(self._kill_with_stack, self._child, self._ended)

    async def _kill_with_stack(self, child: ChildProcess, ended: anyio.Event) -> None:
        child.signal_self(STACK_SIGNAL)
        if not await _set_within(ended, _STACK_DUMP_WITHIN_SECONDS):
            self._kill(child)

    async def _escalate(self, child: ChildProcess, ended: anyio.Event) -> None:
        child.send(wire.Cancel(self._order))
        if await _set_within(ended, self._limits.cancel_grace_seconds):
            return
        child.signal_self(STACK_SIGNAL)  # where it was stuck, for whoever reads the error
        if await _set_within(ended, _STACK_DUMP_WITHIN_SECONDS):
            return
        self._retiring = True  # whatever it still replies, it is dying
        child.signal_group(signal.SIGTERM)
        if not await _set_within(ended, self._limits.terminate_grace_seconds):
            self._kill(child)

    def _kill(self, child: ChildProcess) -> None:
        child.kill()
        if self._tasks is not None:
            self._tasks.start_soon(self._abandon_unless_dead, child, self._ended)

    async def _abandon_unless_dead(self, child: ChildProcess, ended: anyio.Event) -> None:
        """A process that waits in the kernel cannot be killed, and will not execute anything either.

        Its run is for others, once its lease has expired. The slot is lost until the kernel lets go of the process.
        """
        if await _set_within(ended, _KILLED_WITHIN_SECONDS) or self._child is not child:
            return
        run, self.assignment, self._delivered, self._ending = self._run_in_hand, None, False, None
        self._retiring = True
        self._forget_timeout()
        self._ended.set()
        why = f"child {child.pid} of slot {self.number} cannot be killed: it waits in the kernel for what does not come"
        self._slots.abandoned(run, why)

    # --- looking at a run

    def measure(self) -> usage.Sample | None:
        """What the run in hand uses now; remembered, should its child die. None if none has begun."""
        if self._child is None or not self._delivered or not self._begun:
            return None
        sample = usage.sample(self._child.pid, self._began_boottime, self._cpu_before)
        if sample is not None:
            self._used = usage.most(self._used, sample.usage)
        return sample

    async def stacks(self) -> str | None:
        """The Python stacks of the run in hand, taken twice, in words; None if none has begun."""
        child, ended = self._child, self._ended
        if child is None or not self._delivered or not self._begun:
            return None
        first = await _stack(child, ended)
        await _set_within(ended, _STACKS_APART_SECONDS)
        second = await _stack(child, ended)
        if ended.is_set():
            return None
        process = usage.look(child.pid)
        return dump.told(first, second, process.state if process is not None else "", _STACKS_APART_SECONDS)


async def _stack(child: ChildProcess, ended: anyio.Event) -> str:
    """Empty if it does not answer."""
    child.signal_self(STACK_SIGNAL)
    deadline, told = anyio.current_time() + _STACK_TOLD_WITHIN_SECONDS, ""
    while not told and anyio.current_time() < deadline and not await _set_within(ended, _LOOK_FOR_STACK_SECONDS):
        told = child.take_stack() or ""
    if told and not await _set_within(ended, _LOOK_FOR_STACK_SECONDS):  # it may not have been all
        told += child.take_stack() or ""
    return told


async def _set_within(event: anyio.Event, seconds: float) -> bool:
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()
