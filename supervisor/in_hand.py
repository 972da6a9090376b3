"""A run that an executor has, in hand or behind: whether a child has it, how far it has come, what is wanted of it."""

from __future__ import annotations

import asyncio
from time import monotonic

import anyio
from msgspec import Struct

from durablestack.runs import Lease, Run, Usage

from .bus import NOT_BEGUN, Course
from .leases import boottime
from .terms import Terms
from .verdict import Ending

_NOTHING = Usage()


class Assignment(Struct, frozen=True, eq=False, gc=False):
    """A run that is to be executed.

    `expected_seconds` is how long runs of its job have taken lately. `short`: others may wait behind it.
    """

    run: Run
    terms: Terms = Terms()
    expected_seconds: float = float("inf")
    short: bool = False

    @property
    def may_wait(self) -> bool:
        """Behind another run. Not if it has no attempt left: should this host go, it would have lost it."""
        return self.short and self.run.attempt < self.run.max_attempts


class InHand(Struct, eq=False):
    """From when a slot takes a run until it lets go of it. Written by that slot alone, on the event loop."""

    assignment: Assignment
    run: Run
    lease: Lease
    ending: Ending | None = None  # why we end it, if we do
    reached: float | None = None  # of the limit that we end it for
    order: int | None = None  # by which the child has it, if one does
    begun: bool = False  # its child has taken the order, as far as we know
    told: bool = False  # that it begins
    overdue: bool = False  # it was to be short, and is not
    began_at: float = 0.0  # by the clock of the event loop
    began_boottime: float = 0.0  # by that of leases
    cpu_before: tuple[float, float] = (0.0, 0.0)  # what the child had used when it began the run
    used: Usage = _NOTHING  # by the run, as far as it was seen from here
    course: Course = NOT_BEGUN
    timeout: asyncio.TimerHandle | None = None
    has_ended: bool = False
    _ended: anyio.Event | None = None  # made for those who wait, which are few

    @property
    def delivered(self) -> bool:
        return self.order is not None

    def count_from_here(self) -> None:
        """Nothing of ours is before it any more: its time begins."""
        self.began_at, self.began_boottime = monotonic(), boottime()

    def take_back(self) -> None:
        """No child has it any more, and none has begun it."""
        self.order = None
        if self.timeout is not None:
            self.timeout.cancel()

    def end(self) -> None:
        self.has_ended = True
        if self.timeout is not None:
            self.timeout.cancel()
        if self._ended is not None:
            self._ended.set()

    async def ends_within(self, seconds: float) -> bool:
        if not self.has_ended:
            self._ended = self._ended or anyio.Event()
            with anyio.move_on_after(seconds):
                await self._ended.wait()
        return self.has_ended
