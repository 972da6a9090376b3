"""The runs that an executor has: one in hand, in front, and behind it those that its child was given to do next.

Orders lie in a socket that two read: the child takes the next one when it is ready for it, and we take back what it
has not taken. Each order goes to one of them, and neither needs the other for that, be it stuck, stopped or dead.

    put --> [ 5 | 4 | 3 ] --> the child: Began, then Succeeded or Failed, by which the next in line is in front
                 |
                 +----------> taken back by us: for others to do

What we took back was not begun. What is gone from there without us the child has, though its word of that may have
yet to come. While both take, any of them may become ours, the front included: then the next one that the child has
is in front.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from uuid import UUID

from . import wire
from .delivery import Delivery, listen_to
from .in_hand import Assignment, InHand
from .process import ChildProcess
from .slots import Limits, Slots
from .windows import fits

_RETIRE_WITHIN_SECONDS = 2.0
_SHORT_RUN_WITHIN_SECONDS = 0.05
"""One that takes longer was not short: nobody waits behind it."""


class Line:
    """What waits behind is of this child alone; the run in hand, if no child has begun it, may wait for the next.

    `idle` is called when there is a child and nothing for it to do, `time_out` when the run in hand has had its time,
    and `end_it` when it was to end while it waited, and the child has taken it all the same.
    """

    def __init__(
        self,
        slots: Slots,
        limits: Limits,
        *,
        idle: Callable[[], None],
        time_out: Callable[[], None],
        end_it: Callable[[], None],
    ) -> None:
        self.child: ChildProcess | None = None  # that is ready; the executor lets go of it once it is dead
        self.retiring = False  # the child is given no run any more, for it leaves, or is made to
        self.runs_begun = 0  # by this child
        self.in_hand: InHand | None = None
        self.behind: deque[InHand] = deque()  # delivered, to be done after the one in hand
        self._slots = slots
        self._limits = limits
        self._idle = idle
        self._time_out = time_out
        self._end_it = end_it
        self._delivery = Delivery()

    # --- the child

    def open(self, child: ChildProcess) -> None:
        """A child is ready: it begins the run that waits for it, if one does."""
        self.child, self.retiring, self.runs_begun = child, False, 0
        if self.in_hand is None:
            self._idle()
        else:
            self._begin(child, self.in_hand)

    def retire(self) -> None:
        """Ask the child, which has no run, to leave; another one takes its place."""
        if self.child is not None:
            self.retiring = True
            self.child.send(wire.Stop())
            asyncio.get_running_loop().call_later(_RETIRE_WITHIN_SECONDS, self.child.kill)

    def _takes_runs(self, child: ChildProcess) -> bool:
        return not (self.retiring or child.killed or child.gone)

    # --- in front

    def assign(self, assignment: Assignment) -> None:
        """Take a run in hand. It begins now if there is a child for it, or as soon as there is."""
        assert self.in_hand is None, "an executor takes one run at a time"
        self.in_hand = held = InHand(assignment)
        child = self.child
        if child is None or not self._takes_runs(child):
            return
        if assignment.terms.fresh_process_per_run and self.runs_begun:
            self.retire()
        else:
            self._begin(child, held)

    def _begin(self, child: ChildProcess, held: InHand) -> None:
        if not self._slots.may_begin(held.run, child):
            self.give_back()
            self._idle()
            return
        listen_to(child, held)
        held.count_from_here()
        self.runs_begun += 1
        self._deliver(child, held)

    def _deliver(self, child: ChildProcess, held: InHand) -> None:
        if self._delivery.put(child, held):
            self._start_timeout(held)
        else:  # there is nothing in its way but the child
            self.retire()

    def _start_timeout(self, held: InHand) -> None:
        timeout_seconds = held.assignment.terms.timeout_seconds
        if timeout_seconds is not None:
            held.timeout = asyncio.get_running_loop().call_later(timeout_seconds, self._on_timeout, held)

    def _on_timeout(self, held: InHand) -> None:
        if held is self.in_hand:
            self._time_out()

    def let_go(self, held: InHand) -> None:
        """Of the run in hand: whatever becomes of it, it is not ours any more."""
        self.in_hand = None
        held.end()

    def give_back(self) -> None:
        """Let go of the run in hand if no child has it."""
        held = self.in_hand
        if held is not None and not held.delivered:
            self.let_go(held)
            self._slots.never_begun(held.run)

    def give_back_and_idle(self) -> None:
        self.give_back()
        if self.child is not None and self.in_hand is None and self._takes_runs(self.child):
            self._idle()

    # --- behind

    @property
    def lets_follow(self) -> bool:
        """Whether runs may wait behind the one in hand."""
        child, front = self.child, self.in_hand
        if child is None or front is None or not self._takes_runs(child):
            return False
        if not front.delivered or front.ending is not None or front.overdue:
            return False
        return front.assignment.short and self._limits.runs_per_child_max is None

    def add(self, waiting: deque[Assignment], at_most: int, times: int = 1) -> bool:
        """Take runs from those waiting, to be done after those that the child has; whether it may be given more.

        `times` as many as a child should have.
        """
        child = self.child
        if child is None or not self.lets_follow:
            return False
        seconds = self._expected_seconds
        room = times * self._limits.window_max - 1 - len(self.behind)
        for _ in range(min(at_most, room, len(waiting))):
            seconds += waiting[0].expected_seconds
            if not fits(seconds / times) or not self._add(child, InHand(waiting[0])):
                return False
            waiting.popleft()
        return at_most < room

    @property
    def _expected_seconds(self) -> float:
        """Of all that are here."""
        front = 0.0 if self.in_hand is None else self.in_hand.assignment.expected_seconds
        return front + sum(held.assignment.expected_seconds for held in self.behind)

    def _add(self, child: ChildProcess, held: InHand) -> bool:
        if not self._slots.may_begin(held.run, child):
            self._slots.never_begun(held.run)
            return True
        if not self._delivery.put_behind(child, held):
            return False
        self.behind.append(held)
        return True

    def move_on(self) -> None:
        """The child goes on with the next run, or has done so already."""
        self.in_hand = held = self.behind.popleft()
        held.count_from_here()
        self.runs_begun += 1
        self._start_timeout(held)
        self._slots.moved_on()
        if held.ending is not None:
            self._end_it()

    def look_for_replies(self) -> bool:
        """While runs wait here, replies are looked for now and then; whether that goes on."""
        child = self.child
        if child is None:
            return False
        child.look_for_replies()
        return self._delivery.goes_on_looking(child, some_wait=bool(self.behind))

    # --- taken back

    def take_back(self) -> None:
        """What the child has not taken of what it was given is for others to do, but for the run in hand."""
        child, front = self.child, self.in_hand
        if child is None or (not self.behind and (front is None or not front.delivered or front.begun)):
            return
        numbers = child.take_back()
        back = [held for held in self.behind if held.order in numbers]
        self.behind = deque(held for held in self.behind if held.order not in numbers)
        if front is not None and front.order in numbers:
            front.take_back()
            if self.behind:  # both sides took at once: the first one was ours, the next one the child's
                back.insert(0, front)
                self.move_on()
        self.hand_on(back)

    def take_all_behind(self) -> list[InHand]:
        """Of a child that is dead."""
        behind, self.behind = list(self.behind), deque()
        return behind

    def hand_on(self, back: Sequence[InHand]) -> None:
        """Have others do what no child has begun, unless it was to end anyway."""
        for held in back:
            held.end()
        wanted = [held.assignment for held in back if held.ending is None]
        for held in back:
            if held.ending is not None:
                self._slots.never_begun(held.run)
        self._slots.place(wanted)

    def let_go_of_waiting(self) -> None:
        """Have what waits behind the run in hand done by others."""
        if self.child is None or not self.behind:
            return
        self.take_back()
        if self.in_hand is not None and not self.in_hand.delivered:
            self._deliver(self.child, self.in_hand)

    def look_after(self, now: float) -> None:
        """A run that should have been short and is not keeps nobody waiting, and is listened to as others are."""
        child, held = self.child, self.in_hand
        if child is None or held is None or not held.assignment.short:
            return
        if now - held.began_at < _SHORT_RUN_WITHIN_SECONDS:
            return
        held.overdue = True
        self.let_go_of_waiting()
        if held.begun and not self.behind:
            child.listens_to_output(True)

    # --- one of them

    def find(self, run_id: UUID) -> InHand | None:
        """The run with this id, if it is here."""
        if self.in_hand is not None and self.in_hand.run.id == run_id:
            return self.in_hand
        return next((held for held in self.behind if held.run.id == run_id), None)
