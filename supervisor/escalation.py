"""Ends runs before their time: asks the child that has one to let go of it, then makes it.

end --no child has taken it--> given back, or done by nobody
 |
 +--a child has--> Cancel --grace--> STACK_SIGNAL, SIGTERM --grace--> SIGKILL --5 s--> abandoned
    lease lost: SIGKILL; memory limit: STACK_SIGNAL, SIGKILL
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from uuid import UUID

from anyio.abc import TaskGroup

from . import wire
from .in_hand import InHand
from .line import Line
from .process import ChildProcess
from .slots import Limits
from .verdict import Ending

_STACK_DUMP_WITHIN_SECONDS = 0.1
_KILLED_WITHIN_SECONDS = 5.0


class Escalation:
    """`tasks` is where it waits for a child to give way; `abandon` is called if not even SIGKILL ends it."""

    def __init__(self, line: Line, limits: Limits, *, abandon: Callable[[ChildProcess, InHand], None]) -> None:
        self.tasks: TaskGroup | None = None  # while the executor runs
        self._line = line
        self._limits = limits
        self._abandon = abandon

    # --- what is wanted

    def end(self, run_id: UUID, ending: Ending) -> None:
        """End a run that is here, wherever it stands."""
        held = self._line.find(run_id)
        if held is None:
            return
        if held is self._line.in_hand:
            self.end_run(ending)
            return
        held.ending = ending if ending is Ending.LEASE_LOST else held.ending or ending
        self._line.let_go_of_waiting()

    def end_run(self, ending: Ending) -> None:
        """End the run in hand: ask it to leave, then make it. A lost lease is not a thing to ask about."""
        held = self._line.in_hand
        if held is None:
            return
        is_news = held.ending is None or ending is Ending.LEASE_LOST
        if is_news:
            held.ending = ending
        child = self._child_that_has(held)
        if child is None:
            self._line.give_back_and_idle()
        elif is_news:
            self._make_end(child, held, ending)

    def kill_run(self, ending: Ending) -> None:
        """End the run in hand without asking."""
        held = self._line.in_hand
        if held is None:
            return
        held.ending = held.ending or ending
        child = self._child_that_has(held)
        if child is None:
            self._line.give_back_and_idle()
        else:
            self._kill(child, held)

    def end_exceeding(self, ending: Ending, reached: float) -> None:
        """End the run in hand, which uses more than it may. Memory is not a thing to wait for."""
        held = self._line.in_hand
        if held is None:
            return
        if held.ending is None:
            held.reached = reached
        if ending is not Ending.MEMORY_LIMIT:
            self.end_run(ending)
            return
        self._line.take_back()
        child = self._line.child
        if child is not None and self.tasks is not None and held.ending is not Ending.MEMORY_LIMIT:
            held.ending = held.ending or ending
            self._line.retiring = True
            self.tasks.start_soon(self._kill_with_stack, child, held)

    def go_on(self) -> None:
        """The run in hand was to end while it waited, and its child has taken it all the same."""
        child, held = self._line.child, self._line.in_hand
        if child is not None and held is not None and held.ending is not None:
            self._make_end(child, held, held.ending)

    # --- what is done for it

    def _child_that_has(self, held: InHand) -> ChildProcess | None:
        """For good. What it has not taken is taken back, what waits behind included."""
        if held.delivered:
            self._line.take_back()
        return self._line.child if held.delivered else None

    def _make_end(self, child: ChildProcess, held: InHand, ending: Ending) -> None:
        if ending is Ending.LEASE_LOST:
            self._kill(child, held)
        elif self.tasks is not None:
            self.tasks.start_soon(self._escalate, child, held)

    async def _escalate(self, child: ChildProcess, held: InHand) -> None:
        if held.order is not None:
            child.send(wire.Cancel(held.order))
        if await held.ends_within(self._limits.cancel_grace_seconds):
            return
        child.ask_for_stack()  # where it was stuck, for whoever reads the error
        if await held.ends_within(_STACK_DUMP_WITHIN_SECONDS):
            return
        self._line.retiring = True  # whatever it still replies, it is dying
        child.signal_group(signal.SIGTERM)
        if not await held.ends_within(self._limits.terminate_grace_seconds):
            self._kill(child, held)

    async def _kill_with_stack(self, child: ChildProcess, held: InHand) -> None:
        child.ask_for_stack()
        if not await held.ends_within(_STACK_DUMP_WITHIN_SECONDS):
            self._kill(child, held)

    def _kill(self, child: ChildProcess, held: InHand) -> None:
        child.kill()
        if self.tasks is not None:
            self.tasks.start_soon(self._abandon_unless_dead, child, held)

    async def _abandon_unless_dead(self, child: ChildProcess, held: InHand) -> None:
        """A process that waits in the kernel cannot be killed, and will not execute anything either."""
        if not await held.ends_within(_KILLED_WITHIN_SECONDS) and self._line.child is child:
            self._line.retiring = True
            self._abandon(child, held)
