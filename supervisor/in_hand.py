"""A run that an executor has in hand: whether a child has it, how far it has come, and what is wanted of it."""

from __future__ import annotations

import asyncio

import anyio
from msgspec import Struct

from durablestack.runs import Run, Usage

from .bus import NOT_BEGUN
from .leases import boottime
from .terms import Terms
from .verdict import Ending


class Assignment(Struct, frozen=True, eq=False):
    """A run that is to be executed."""

    run: Run
    terms: Terms = Terms()


class InHand:
    """From when an executor takes a run until it lets go of it. Written by the executor alone."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.ended = anyio.Event()
        self.ending: Ending | None = None  # why we end it, if we do
        self.reached: float | None = None  # of the limit that we end it for
        self.order: int | None = None  # by which the child has it, if one does
        self.begun = False
        self.began_at = anyio.current_time()
        self.began_boottime = boottime()
        self.cpu_before = (0.0, 0.0)  # what the child had used when it began the run
        self.used = Usage()  # by the run, as far as it was seen from here
        self.course = NOT_BEGUN
        self.timeout: asyncio.TimerHandle | None = None

    @property
    def run(self) -> Run:
        return self.assignment.run

    @property
    def delivered(self) -> bool:
        return self.order is not None

    def deliver(self, order: int) -> None:
        self.order = order
        self.began_at, self.began_boottime = anyio.current_time(), boottime()

    def take_back(self) -> None:
        """The child that had it is dead, and has not begun it."""
        self.order = None
        self._forget_timeout()

    def end(self) -> None:
        self._forget_timeout()
        self.ended.set()

    def _forget_timeout(self) -> None:
        if self.timeout is not None:
            self.timeout.cancel()
            self.timeout = None

    async def ends_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self.ended.wait()
        return self.ended.is_set()
